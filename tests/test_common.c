/* What the headers share: the same words in each, and what its helpers promise. */
#define NODEDB_WAL_IMPLEMENTATION /* any that stores brings all of it */
#include "nodedb_wal.h"
#include "test.h"
#include "text.h"
#include <glob.h>

static const char *const headers[] = {"nodedb_wal.h", "nodedb_mem.h", "nodedb_tpc.h", "nodedb_vamana.h",
                                      "nodedb_prefetch.h"};
enum { HEADERS = sizeof headers / sizeof headers[0] };

/* ---- the headers as text ---------------------------------------------------------------------------------------- */

/* Cuts `text` down to the block of that name; NULL if it has none, or more than one. */
static char *block_of(char *text, const char *name) {
    char begin_mark[64], end_mark[64], *begin, *end;
    snprintf(begin_mark, sizeof begin_mark, "BEGIN NODEDB %s", name);
    snprintf(end_mark, sizeof end_mark, "END NODEDB %s", name);
    begin = text == NULL ? NULL : strstr(text, begin_mark);
    end = begin == NULL ? NULL : strstr(begin, end_mark);
    if (end == NULL || strstr(end, begin_mark) != NULL) return NULL;
    *end = 0;
    return begin;
}

static void check_block(const char *name, const char *const *in, int n, size_t at_least) {
    char *first_text = read_text(in[0]), *first = block_of(first_text, name), what[200];
    int i;
    REQUIRE(first != NULL);
    CHECK(strlen(first) > at_least);
    for (i = 1; i < n; i++) {
        char *text = read_text(in[i]), *block = block_of(text, name);
        snprintf(what, sizeof what, "the %s of %s is not that of %s: run ./build.sh sync", name, in[i], in[0]);
        if (block == NULL || strcmp(first, block) != 0) test_fail(__FILE__, __LINE__, what);
        free(text);
    }
    free(first_text);
}

TEST(blocks_that_headers_share_are_word_for_word_the_same) {
    static const char *const storing[] = {"nodedb_wal.h", "nodedb_mem.h", "nodedb_vamana.h"};
    check_block("BASE BLOCK", headers, HEADERS, 6000);
    check_block("STORAGE BLOCK", storing, 3, 8000);
    check_block("LICENCE", headers, HEADERS, 1500);
}

TEST(base_has_at_most_200_lines_and_those_that_do_not_store_have_no_more) {
    int i, lines = 1;
    const char *p;
    for (i = 0; i < HEADERS; i++) {
        char *text = read_text(headers[i]);
        bool stores = text != NULL && strstr(text, "BEGIN NODEDB STORAGE BLOCK") != NULL;
        CHECK_EQ(stores, strcmp(headers[i], "nodedb_tpc.h") != 0 && strcmp(headers[i], "nodedb_prefetch.h") != 0);
        free(text);
    }
    {
        char *text = read_text(headers[0]), *block = block_of(text, "BASE BLOCK");
        REQUIRE(block != NULL);
        for (p = block; *p != 0; p++) lines += *p == '\n';
        CHECK(lines <= 200);
        free(text);
    }
}

/* Blanks the comments, manuals with their examples included. */
static void blank_comments(char *text) {
    char *p = text;
    while ((p = strstr(p, "/*")) != NULL) {
        char *end = strstr(p + 2, "*/");
        for (end = end != NULL ? end + 2 : p + strlen(p); p < end; p++)
            if (*p != '\n') *p = ' ';
    }
}

/* Is `line` a preprocessor's include of something that begins with `name`? */
static bool includes(const char *line, const char *name) {
    while (*line == ' ' || *line == '\t') line++;
    if (*line++ != '#') return false;
    while (*line == ' ' || *line == '\t') line++;
    if (strncmp(line, "include", 7) != 0) return false;
    for (line += 7; *line == ' ' || *line == '\t' || *line == '"' || *line == '<'; line++) continue;
    return strncmp(line, name, strlen(name)) == 0;
}

TEST(no_header_includes_another_of_ours_or_reads_the_environment) {
    int i;
    CHECK(includes("  # include \"nodedb_x.h\"", "nodedb") && !includes("#include <stdio.h> // nodedb", "nodedb"));
    for (i = 0; i < HEADERS; i++) {
        char *text = read_text(headers[i]), *line;
        REQUIRE(text != NULL);
        blank_comments(text);
        if (strstr(text, "getenv") != NULL) test_fail(__FILE__, __LINE__, headers[i]);
        for (line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
            if (includes(line, "nodedb") || includes(line, "stb")) test_fail(__FILE__, __LINE__, line);
        free(text);
    }
}

/* ---- one shape for all: sections of the manual, rooms of the code ------------------------------------------------ */

TEST(manuals_have_the_same_sections_under_the_same_titles) {
    static const char *const titles[] = {"1. WHAT IT IS FOR, AND NOT FOR", "2. QUICK START", "3. CONCEPTS",
                                         "4. API BY TASK", "5. THREADS", "6. MEMORY", "7. ERRORS", "8. LIMITS",
                                         "9. ON DISK", "10. BUILDING", "11. DEPARTURES", "12. MEASURED",
                                         "13. LICENCE"};
    for (int i = 0; i < HEADERS; i++) {
        char *text = read_text(headers[i]), *end, *at, line[80];
        size_t found = 0;
        REQUIRE(text != NULL);
        end = strstr(text, "*/");
        REQUIRE(end != NULL);
        *end = 0;
        for (at = strchr(text, '\n'); at != NULL; at = strchr(at + 1, '\n')) {
            if (at[1] < '0' || at[1] > '9') continue;
            snprintf(line, sizeof line, "%.*s", (int)strcspn(at + 1, "\n"), at + 1);
            if (found >= sizeof titles / sizeof titles[0] || strcmp(line, titles[found]) != 0) {
                test_fail(__FILE__, __LINE__, headers[i]);
                test_fail(__FILE__, __LINE__, line);
            }
            found++;
        }
        CHECK_EQ(found, sizeof titles / sizeof titles[0]);
        free(text);
    }
}

/* The name in a room's banner or a line of the map: what stands before a colon, or before two spaces. */
static void name_in(const char *line, char *name, size_t bytes) {
    size_t length = strcspn(line, ":\n");
    const char *gap = strstr(line, "  ");
    if (gap != NULL && (size_t)(gap - line) < length) length = (size_t)(gap - line);
    while (length > 0 && line[length - 1] == ' ') length--;
    snprintf(name, bytes, "%.*s", (int)length, line);
}

/* The map is the banner IMPLEMENTATION: a line `*   NAME   what it holds` for each room, in order. */
TEST(map_of_the_implementation_names_its_rooms_in_order) {
    enum { NAMES = 16 };
    for (int i = 0; i < HEADERS; i++) {
        char *text = read_text(headers[i]), *at, *map_end, map[NAMES][100], name[100];
        int rooms = 0, banners = 0;
        REQUIRE(text != NULL);
        at = strstr(text, "\n * IMPLEMENTATION");
        REQUIRE(at != NULL);
        map_end = strstr(at, "*/");
        for (at = strstr(at, "\n *   "); at != NULL && at < map_end; at = strstr(at + 1, "\n *   "))
            if (at[6] >= 'A' && at[6] <= 'Z' && rooms < NAMES) name_in(at + 6, map[rooms++], sizeof map[0]);
        CHECK(rooms >= 5 && rooms <= 12);
        for (at = map_end; (at = strstr(at, "\n/* =====")) != NULL; at = strstr(at, "*/")) {
            const char *line = strchr(at + 1, '\n');
            REQUIRE(line != NULL && strncmp(line, "\n * ", 4) == 0);
            name_in(line + 4, name, sizeof name);
            if (banners >= rooms || strcmp(name, map[banners]) != 0) {
                test_fail(__FILE__, __LINE__, headers[i]);
                test_fail(__FILE__, __LINE__, name);
            }
            banners++;
        }
        CHECK_EQ(banners, rooms);
        free(text);
    }
}

/* A column is a character: the second and later bytes of one in UTF-8 do not count. */
static int columns_of(const char *line) {
    int columns = 0;
    for (; *line != 0; line++) columns += ((unsigned char)*line & 0xc0) != 0x80;
    return columns;
}

TEST(sources_have_lines_of_120_columns_at_most) {
    glob_t found;
    REQUIRE(glob("nodedb_*.h", 0, NULL, &found) == 0 && glob("build.sh", GLOB_APPEND, NULL, &found) == 0 &&
            glob("tests/*.[chs]*", GLOB_APPEND, NULL, &found) == 0 &&
            glob("tests/*/*.[chs]*", GLOB_APPEND, NULL, &found) == 0 &&
            glob("examples/*.c", GLOB_APPEND, NULL, &found) == 0 &&
            glob("examples/nodedb/*.[ch]", GLOB_APPEND, NULL, &found) == 0 &&
            glob("examples/nodedb/commands/*.c", GLOB_APPEND, NULL, &found) == 0);
    CHECK(found.gl_pathc > 80);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        const char *path = found.gl_pathv[i], *dot = strrchr(path, '.');
        char *text, *line, *end, what[300];
        if (strcmp(dot, ".c") != 0 && strcmp(dot, ".h") != 0 && strcmp(dot, ".sh") != 0 && strcmp(dot, ".cpp") != 0)
            continue;
        text = read_text(path);
        REQUIRE(text != NULL);
        for (line = text; (end = strchr(line, '\n')) != NULL; line = end + 1) {
            *end = 0;
            snprintf(what, sizeof what, "%s: %.200s", path, line);
            if (columns_of(line) > 120) test_fail(__FILE__, __LINE__, what);
        }
        free(text);
    }
    globfree(&found);
}

/* True if a banner of either kind names the room. */
static bool has_banner(const char *code, const char *room) {
    static const char *const banners[] = {"/* ---- %s", " * %s:", " * %s\n"};
    char banner[120];
    for (size_t i = 0; i < sizeof banners / sizeof banners[0]; i++) {
        snprintf(banner, sizeof banner, banners[i], room);
        if (strstr(code, banner) != NULL) return true;
    }
    return false;
}

/* A test file that is too long to survey says at its top which rooms it has: a line `*   NAME` for each. */
TEST(long_test_files_begin_with_a_list_of_their_rooms) {
    glob_t found;
    REQUIRE(glob("tests/test_*.c", 0, NULL, &found) == 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *text = read_text(found.gl_pathv[i]), *end, *at, line[100], room[100];
        int lines = 0, rooms = 0;
        REQUIRE(text != NULL);
        for (at = text; (at = strchr(at, '\n')) != NULL; at++) lines++;
        end = strstr(text, "*/");
        REQUIRE(end != NULL);
        for (at = text; lines > 800 && (at = strstr(at, "\n *   ")) != NULL && at < end; at++) {
            snprintf(line, sizeof line, "%.*s", (int)strcspn(at + 6, ";*\n"), at + 6);
            name_in(line, room, sizeof room);
            rooms += has_banner(end, room);
        }
        if (lines > 800 && rooms < 3) test_fail(__FILE__, __LINE__, found.gl_pathv[i]);
        free(text);
    }
    globfree(&found);
}

/* ---- checksum, byte order, arithmetic --------------------------------------------------------------------------- */

static uint32_t crc_plain(const void *data, size_t bytes) {
    return ~nodedb__crc32c_plain(~0u, (const unsigned char *)data, bytes);
}

static void check_crc(const void *data, size_t bytes, uint32_t want) {
    CHECK_EQ(nodedb_crc32c(0, data, bytes), want);
    CHECK_EQ(crc_plain(data, bytes), want);
    if (nodedb__crc32c_cpu_present()) CHECK_EQ(~nodedb__crc32c_cpu(~0u, (const unsigned char *)data, bytes), want);
}

TEST(crc32c_agrees_with_the_vectors_of_rfc_3720) {
    static const unsigned char read_command[48] = {0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                   0x14, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18,
                                                   0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0};
    unsigned char bytes[32];
    int i;
    check_crc(memset(bytes, 0, 32), 32, 0x8a9136aau);
    check_crc(memset(bytes, 0xff, 32), 32, 0x62a8ab43u);
    for (i = 0; i < 32; i++) bytes[i] = (unsigned char)i;
    check_crc(bytes, 32, 0x46dd794eu);
    for (i = 0; i < 32; i++) bytes[i] = (unsigned char)(31 - i);
    check_crc(bytes, 32, 0x113fdb5cu);
    check_crc(read_command, sizeof read_command, 0xd9963a56u);
    check_crc("123456789", 9, 0xe3069283u);
    check_crc("", 0, 0);
}

/* The definition, bit by bit. */
static uint32_t crc_by_bits(const unsigned char *p, size_t bytes) {
    uint32_t crc = ~0u;
    int bit;
    for (; bytes > 0; bytes--)
        for (crc ^= *p++, bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1)));
    return ~crc;
}

TEST(crc32c_is_the_same_at_any_address_of_any_length_and_in_parts) {
    unsigned char data[2900]; /* on x86 768 bytes at a time are summed in three parts */
    uint64_t random = test_seed;
    size_t i, at, bytes;
    for (i = 0; i < sizeof data; i++) data[i] = (unsigned char)test_random(&random);
    for (at = 0; at < 17; at++)
        for (bytes = 0; bytes < 100; bytes++) check_crc(data + at, bytes, crc_by_bits(data + at, bytes));
    for (i = 0; i < 2000; i++) {
        size_t first;
        uint32_t crc;
        at = test_random(&random) % 100, bytes = test_random(&random) % 2800;
        first = bytes > 0 ? test_random(&random) % bytes : 0;
        crc = nodedb_crc32c(0, data + at, first);
        crc = nodedb_crc32c(crc, data + at + first, bytes - first);
        CHECK_EQ(crc, crc_by_bits(data + at, bytes));
    }
}

TEST(integers_on_disk_are_little_endian_at_any_address) {
    unsigned char b[32];
    size_t at;
    for (at = 0; at < 9; at++) {
        memset(b, 0xee, sizeof b);
        nodedb_put_u16(b + at + 1, 0xa1b2);
        CHECK(b[at + 1] == 0xb2 && b[at + 2] == 0xa1 && b[at] == 0xee && b[at + 3] == 0xee);
        CHECK_EQ(nodedb_get_u16(b + at + 1), 0xa1b2);
        nodedb_put_u32(b + at + 1, 0xf1e2d3c4u);
        CHECK(b[at + 1] == 0xc4 && b[at + 2] == 0xd3 && b[at + 3] == 0xe2 && b[at + 4] == 0xf1 && b[at + 5] == 0xee);
        CHECK_EQ(nodedb_get_u32(b + at + 1), 0xf1e2d3c4u);
        nodedb_put_u64(b + at + 1, UINT64_C(0x8182838485868788));
        CHECK(b[at + 1] == 0x88 && b[at + 8] == 0x81 && b[at] == 0xee && b[at + 9] == 0xee);
        CHECK(nodedb_get_u64(b + at + 1) == UINT64_C(0x8182838485868788));
    }
}

TEST(mixer_is_splitmix64) {
    CHECK(nodedb_mix64(0) == UINT64_C(0xe220a8397b1dcdaf));
    CHECK(nodedb_mix64(UINT64_C(0x9e3779b97f4a7c15)) == UINT64_C(0x6e789e6aa1b965f4)); /* its second number */
}

/* ---- errors and sentences --------------------------------------------------------------------------------------- */

TEST(failure_fills_the_error_and_answers_its_status) {
    nodedb_error err;
    memset(&err, 0xee, sizeof err);
    CHECK_EQ(nodedb_fail(&err, NODEDB_ERR_LIMIT, 0, "record %d of %s", 7, "log"), NODEDB_ERR_LIMIT);
    CHECK(strcmp(err.message, "record 7 of log") == 0);
    CHECK(err.status == NODEDB_ERR_LIMIT && err.sys_errno == 0 && err.offset == 0 && err.lsn == 0);
    CHECK_EQ(nodedb_fail(NULL, NODEDB_ERR_IO, ENOENT, "nobody listens"), NODEDB_ERR_IO);
}

TEST(failure_of_a_system_call_ends_with_the_systems_reason) {
    nodedb_error err;
    char want[300];
    CHECK_EQ(nodedb_fail(&err, NODEDB_ERR_IO, ENOENT, "cannot open %s", "log/1.seg"), NODEDB_ERR_IO);
    snprintf(want, sizeof want, "cannot open log/1.seg: %s", strerror(ENOENT));
    CHECK(strcmp(err.message, want) == 0);
    CHECK_EQ(err.sys_errno, ENOENT);
    (void)nodedb_fail(&err, NODEDB_ERR_IO, 9999, "odd");
    CHECK_HAS(err.message, "9999");
}

TEST(sentence_that_is_too_long_is_cut_and_never_overflows) {
    struct {
        nodedb_error err;
        char canary[16];
    } box;
    char text[600];
    int length, intact;
    for (length = 0; length < 599; length++) {
        memset(text, 'a' + length % 26, (size_t)length);
        text[length] = 0;
        memset(&box, 0x5a, sizeof box);
        (void)nodedb_fail(&box.err, NODEDB_ERR_IO, length % 2 ? EACCES : 0, "%s", text);
        for (intact = 0; intact < 16 && box.canary[intact] == 0x5a; intact++) continue;
        CHECK_EQ(intact, 16);
        CHECK(memchr(box.err.message, 0, sizeof box.err.message) != NULL);
        CHECK(strncmp(box.err.message, text, length < 255 ? (size_t)length : 255) == 0);
        if (length < 200 && length % 2) CHECK_HAS(box.err.message, strerror(EACCES));
        if (length % 2) CHECK_EQ(box.err.sys_errno, EACCES);
    }
}

TEST(every_status_has_a_sentence_of_its_own) {
    int i, k;
    for (i = NODEDB_OK; i <= NODEDB_ERR_KEY; i++) {
        const char *text = nodedb_status_text((nodedb_status)i);
        CHECK(text != NULL && strlen(text) > 3 && strcmp(text, "unknown status") != 0);
        for (k = 0; k < i; k++) CHECK(strcmp(text, nodedb_status_text((nodedb_status)k)) != 0);
    }
    CHECK(strcmp(nodedb_status_text(NODEDB_OK), "success") == 0);
    CHECK(strcmp(nodedb_status_text((nodedb_status)(NODEDB_ERR_KEY + 1)), "unknown status") == 0);
}

TEST(system_errors_become_the_status_that_they_mean) {
    CHECK_EQ(nodedb_io_status(ENOSPC), NODEDB_ERR_DISK_FULL);
    CHECK_EQ(nodedb_io_status(EDQUOT), NODEDB_ERR_DISK_FULL);
    CHECK_EQ(nodedb_io_status(ENOMEM), NODEDB_ERR_NO_MEMORY);
    CHECK_EQ(nodedb_io_status(EIO), NODEDB_ERR_IO);
}

typedef struct heard {
    int n;
    nodedb_log_level level;
    char sentence[1024];
} heard;

static void hear(void *ctx, nodedb_log_level level, const char *sentence) {
    heard *h = (heard *)ctx;
    h->n++, h->level = level;
    snprintf(h->sentence, sizeof h->sentence, "%s", sentence);
}

TEST(logger_gets_whole_sentences_and_a_zeroed_one_is_silent) {
    nodedb_logger logger;
    heard h;
    char text[2000];
    memset(&logger, 0, sizeof logger);
    memset(&h, 0, sizeof h);
    nodedb_say(NULL, NODEDB_LOG_ERROR, "nobody");
    nodedb_say(&logger, NODEDB_LOG_ERROR, "nobody");
    logger.write = hear, logger.ctx = &h;
    nodedb_say(&logger, NODEDB_LOG_WARNING, "%s %d", "fell back", 3);
    CHECK(h.n == 1 && h.level == NODEDB_LOG_WARNING && strcmp(h.sentence, "fell back 3") == 0);
    memset(text, 'x', sizeof text), text[sizeof text - 1] = 0;
    nodedb_say(&logger, NODEDB_LOG_INFO, "%s", text);
    CHECK(h.n == 2 && strlen(h.sentence) == 2 * NODEDB_ERROR_MESSAGE_BYTES - 1);
}

/* ---- memory and time -------------------------------------------------------------------------------------------- */

static size_t held_bytes;
static void *held_alloc(void *ctx, size_t bytes, size_t align) {
    (void)align;
    CHECK(ctx == &held_bytes);
    held_bytes += bytes;
    return malloc(bytes);
}
static void held_release(void *ctx, void *memory, size_t bytes) {
    CHECK(ctx == &held_bytes);
    held_bytes -= bytes;
    free(memory);
}

TEST(memory_is_aligned_and_the_allocator_gets_back_the_bytes_that_it_gave) {
    nodedb_allocator none, held;
    size_t align, i;
    memset(&none, 0, sizeof none);
    held.alloc = held_alloc, held.release = held_release, held.ctx = &held_bytes;
    for (align = 1; align <= 4096; align *= 2) {
        unsigned char *memory = (unsigned char *)nodedb__alloc_zero(align % 3 == 1 ? &none : NULL, 100, align);
        REQUIRE(memory != NULL);
        CHECK_EQ((uintptr_t)memory % align, 0);
        for (i = 0; i < 100; i++) CHECK_EQ(memory[i], 0);
        nodedb__release(&none, memory, 100);
    }
    for (i = 0; i < 3; i++) {
        void *memory = nodedb__alloc(&held, i * 50, 8);
        CHECK(memory != NULL && held_bytes == (i == 0 ? 1 : i * 50));
        nodedb__release(&held, memory, i * 50);
        CHECK_EQ(held_bytes, 0);
    }
    nodedb__release(&held, NULL, 10);
    CHECK_EQ(held_bytes, 0);
}

static uint64_t fixed_ns(void *ctx) { return *(uint64_t *)ctx; }

TEST(clock_is_monotonic_or_the_callers) {
    uint64_t instant = 12345, before = nodedb_now_ns(NULL), after;
    nodedb_clock clock;
    memset(&clock, 0, sizeof clock);
    after = nodedb_now_ns(&clock);
    CHECK(before > 0 && after >= before);
    clock.now_ns = fixed_ns, clock.ctx = &instant;
    CHECK_EQ(nodedb_now_ns(&clock), 12345);
}

/* ---- the file system -------------------------------------------------------------------------------------------- */

/* A file of 64 bytes in memory that does as `script` says, one letter per call: '1' to '9' at most so many bytes, 'i'
 * is interrupted, '0' makes no progress, 'e' fails; after the script everything is done at once. */
typedef struct scripted {
    const char *script;
    unsigned char bytes[64];
    int calls;
} scripted;

static int64_t scripted_turn(scripted *s, size_t bytes, uint64_t offset) {
    char letter = *s->script;
    s->calls++;
    if (letter != 0) s->script++;
    if (letter == 'i') return -EINTR;
    if (letter == 'e') return -EIO;
    if (offset >= sizeof s->bytes) return 0;
    if (bytes > sizeof s->bytes - offset) bytes = (size_t)(sizeof s->bytes - offset);
    return letter != 0 && (size_t)(letter - '0') < bytes ? letter - '0' : (int64_t)bytes;
}
static int64_t scripted_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    scripted *s = (scripted *)ctx;
    int64_t n = scripted_turn(s, bytes, offset);
    (void)fd;
    if (n > 0) memcpy(s->bytes + offset, buffer, (size_t)n);
    return n;
}
static int64_t scripted_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    scripted *s = (scripted *)ctx;
    int64_t n = scripted_turn(s, bytes, offset);
    (void)fd;
    if (n > 0) memcpy(buffer, s->bytes + offset, (size_t)n);
    return n;
}

static nodedb_io scripted_io(scripted *s, const char *script) {
    nodedb_io io;
    memset(&io, 0, sizeof io);
    memset(s, 0, sizeof *s);
    s->script = script;
    io.pwrite = scripted_pwrite, io.pread = scripted_pread, io.ctx = s;
    return nodedb__io_or_posix(&io);
}

TEST(write_all_and_read_all_go_on_after_short_and_interrupted_transfers) {
    unsigned char data[40], back[40];
    nodedb_io io;
    scripted s;
    int i;
    for (i = 0; i < 40; i++) data[i] = (unsigned char)(i + 1);
    io = scripted_io(&s, "1i3ii9");
    CHECK_EQ(nodedb__write_all(&io, 3, data, 40, 5), 0);
    CHECK_EQ(s.calls, 7);
    CHECK(memcmp(s.bytes + 5, data, 40) == 0 && s.bytes[4] == 0 && s.bytes[45] == 0);
    s.script = "i2i1", s.calls = 0;
    CHECK_EQ(nodedb__read_all(&io, 3, back, 40, 5), 0);
    CHECK_EQ(s.calls, 5);
    CHECK(memcmp(back, data, 40) == 0);
    s.calls = 0;
    CHECK_EQ(nodedb__write_all(&io, 3, data, 0, 5), 0);
    CHECK_EQ(nodedb__read_all(&io, 3, back, 0, 5), 0);
    CHECK_EQ(s.calls, 0);
}

TEST(write_all_and_read_all_end_where_nothing_moves_or_an_error_comes) {
    unsigned char data[40] = {1};
    nodedb_io io;
    scripted s;
    io = scripted_io(&s, "50");
    CHECK_EQ(nodedb__write_all(&io, 3, data, 40, 0), -EIO);
    CHECK_EQ(s.calls, 2);
    io = scripted_io(&s, "5e");
    CHECK_EQ(nodedb__write_all(&io, 3, data, 40, 0), -EIO);
    io = scripted_io(&s, "5e");
    CHECK_EQ(nodedb__read_all(&io, 3, data, 40, 0), -EIO);
    io = scripted_io(&s, "");
    CHECK_EQ(nodedb__read_all(&io, 3, data, 40, 50), -ENODATA); /* the file ends within it */
    CHECK_EQ(s.calls, 2);
}

static int fake_close(void *ctx, int fd) {
    (void)ctx;
    return fd + 1000;
}

TEST(file_system_left_empty_is_the_systems_own_and_what_is_given_is_kept) {
    nodedb_io given, full = nodedb__io_or_posix(NULL);
    int context;
    CHECK(full.open == nodedb__posix_open && full.close == nodedb__posix_close && full.pread == nodedb__posix_pread);
    CHECK(full.pwrite == nodedb__posix_pwrite && full.sync == nodedb__posix_sync && full.size == nodedb__posix_size);
    CHECK(full.allocate == nodedb__posix_allocate && full.truncate == nodedb__posix_truncate);
    CHECK(full.rename == nodedb__posix_rename && full.unlink == nodedb__posix_unlink);
    CHECK(full.make_dir == nodedb__posix_make_dir && full.list == nodedb__posix_list &&
          full.lock == nodedb__posix_lock);
    memset(&given, 0, sizeof given);
    given.close = fake_close, given.ctx = &context;
    full = nodedb__io_or_posix(&given);
    CHECK(full.close == fake_close && full.open == nodedb__posix_open && full.ctx == &context);
}

static int count_name(void *visitor, const char *name) {
    int *counts = (int *)visitor;
    counts[0]++;
    if (strcmp(name, "b") == 0) counts[1]++;
    return counts[0] == counts[2]; /* stop after so many */
}

TEST(systems_file_calls_do_what_the_struct_says) {
    nodedb_io io = nodedb__io_or_posix(NULL);
    char a[700], b[700], back[6];
    int fd, other, counts[3] = {0, 0, 0};
    snprintf(a, sizeof a, "%s/a", test_dir());
    snprintf(b, sizeof b, "%s/b", test_dir());
    CHECK_EQ(io.open(io.ctx, a, O_RDWR, 0), -ENOENT);
    fd = io.open(io.ctx, a, O_RDWR | O_CREAT | O_EXCL, 0600);
    REQUIRE(fd >= 0);
    CHECK_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    CHECK_EQ(io.open(io.ctx, a, O_RDWR | O_CREAT | O_EXCL, 0600), -EEXIST);
    CHECK_EQ(nodedb__write_all(&io, fd, "sector", 6, 10), 0);
    CHECK_EQ(io.size(io.ctx, fd), 16);
    CHECK_EQ(nodedb__read_all(&io, fd, back, 6, 10), 0);
    CHECK(memcmp(back, "sector", 6) == 0);
    CHECK_EQ(nodedb__read_all(&io, fd, back, 6, 11), -ENODATA);
    CHECK_EQ(io.allocate(io.ctx, fd, 0, 8192), 0);
    CHECK_EQ(io.size(io.ctx, fd), 8192);
    CHECK_EQ(io.truncate(io.ctx, fd, 100), 0);
    CHECK_EQ(io.size(io.ctx, fd), 100);
    CHECK_EQ(io.sync(io.ctx, fd), 0);
    CHECK_EQ(io.lock(io.ctx, fd), 0);
    other = io.open(io.ctx, a, O_RDONLY, 0);
    CHECK_EQ(io.lock(io.ctx, other), -EWOULDBLOCK);
    CHECK_EQ(io.close(io.ctx, fd), 0); /* the lock dies with it */
    CHECK_EQ(io.lock(io.ctx, other), 0);
    CHECK_EQ(io.close(io.ctx, other), 0);
    CHECK_EQ(io.close(io.ctx, other), -EBADF);
    CHECK_EQ(io.pread(io.ctx, other, back, 6, 0), -EBADF);
    CHECK_EQ(io.pwrite(io.ctx, other, back, 6, 0), -EBADF);
    CHECK_EQ(io.sync(io.ctx, other), -EBADF);
    CHECK_EQ(io.size(io.ctx, other), -EBADF);
    CHECK_EQ(io.truncate(io.ctx, other, 0), -EBADF);
    CHECK_EQ(io.allocate(io.ctx, other, 0, 1), -EBADF);
    CHECK_EQ(io.rename(io.ctx, a, b), 0);
    CHECK_EQ(io.rename(io.ctx, a, b), -ENOENT);
    CHECK_EQ(io.make_dir(io.ctx, a, 0700), 0);
    CHECK_EQ(io.make_dir(io.ctx, a, 0700), -EEXIST);
    CHECK_EQ(io.list(io.ctx, test_dir(), count_name, counts), 0);
    CHECK(counts[0] == 2 && counts[1] == 1); /* without . and .. */
    counts[0] = 0, counts[2] = 1;
    CHECK_EQ(io.list(io.ctx, test_dir(), count_name, counts), 0);
    CHECK_EQ(counts[0], 1);
    fd = io.open(io.ctx, test_dir(), O_RDONLY | O_DIRECTORY, 0);
    CHECK_EQ(io.sync(io.ctx, fd), 0); /* a directory's entries */
    CHECK_EQ(io.close(io.ctx, fd), 0);
    CHECK_EQ(io.unlink(io.ctx, b), 0);
    CHECK_EQ(io.unlink(io.ctx, b), -ENOENT);
    CHECK_EQ(io.list(io.ctx, b, count_name, counts), -ENOENT);
}

TEST_MAIN("common")
