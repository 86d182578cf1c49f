/* Tests of how nodedb_wal.h reads: mapped, buffered or streamed past the page cache, it is the same log. */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "test.h"
#include "wal_helpers.h"

/* Room for a stream's chunks: small, so that a small log goes round in it often. Zero: the default. */
typedef struct geometry { size_t chunk_bytes, headroom_bytes; uint32_t chunks; } geometry;
static const geometry geometries[] = {
    {0, 0, 0}, {4096, 4096, 2}, {4096, 8192, 3}, {16384, 16384, 4}, {65536, 131072, 5}};
enum { GEOMETRIES = sizeof geometries / sizeof *geometries };

/* A reader that streams, if this system lets it: is_streaming says so. */
static nodedb_wal_reader *open_reader(nodedb_wal_reader_config reading, nodedb_wal_access access, geometry g,
                                      nodedb_error *err) {
    nodedb_wal_reader *r;
    reading.access = access;
    r = nodedb_wal_reader_open(&reading, err);
    if (r != NULL && g.chunk_bytes != 0)
        r->stream.chunk_bytes = g.chunk_bytes, r->stream.headroom_bytes = g.headroom_bytes, r->stream.chunks = g.chunks;
    return r;
}

static bool is_streaming(const nodedb_wal_reader *r) { return r != NULL && r->may_stream; }

static uint32_t checksum(const nodedb_wal_record *record) {
    uint64_t head[5];
    head[0] = record->lsn, head[1] = record->watermark, head[2] = record->database;
    head[3] = (uint64_t)record->tenant << 32 | record->vshard;
    head[4] = (uint64_t)record->type << 32 | record->payload_bytes;
    return nodedb_crc32c(nodedb_crc32c(0, head, sizeof head), record->payload, record->payload_bytes);
}

/* What a reader says about a log, from its opening on. */
typedef struct verdict {
    nodedb_error err;
    uint64_t records, torn_bytes, skipped;
    uint32_t hash;
} verdict;

static verdict read_log(const nodedb_wal_reader_config *reading, nodedb_wal_access access, geometry g) {
    nodedb_wal_reader_stats stats;
    nodedb_wal_record record;
    verdict v;
    nodedb_wal_reader *r;
    memset(&v, 0, sizeof v);
    r = open_reader(*reading, access, g, &v.err);
    if (r == NULL) return v;
    while (nodedb_wal_reader_next(r, &record, &v.err) == NODEDB_OK)
        v.records++, v.hash = v.hash * 31 + checksum(&record);
    nodedb_wal_reader_get_stats(r, &stats);
    v.torn_bytes = stats.torn_bytes, v.skipped = stats.skipped;
    CHECK(stats.records == v.records);
    CHECK(access == NODEDB_WAL_ACCESS_STREAMED || stats.segments_streamed == 0);
    nodedb_wal_reader_close(r);
    return v;
}

static void check_same(const verdict *got, const verdict *want) {
    CHECK_EQ(got->err.status, want->err.status);
    CHECK_EQ(got->err.lsn, want->err.lsn);
    CHECK_EQ(got->err.offset, want->err.offset);
    CHECK(strcmp(got->err.message, want->err.message) == 0);
    CHECK_EQ(got->records, want->records);
    CHECK_EQ(got->hash, want->hash);
    CHECK_EQ(got->torn_bytes, want->torn_bytes);
}

/* All ways of reading agree; answers what they say. */
static verdict read_every_way(uint64_t from_lsn) {
    nodedb_wal_reader_config reading = reading_here();
    verdict mapped, other;
    int i;
    reading.from_lsn = from_lsn;
    mapped = read_log(&reading, NODEDB_WAL_ACCESS_MAPPED, geometries[0]);
    other = read_log(&reading, NODEDB_WAL_ACCESS_BUFFERED, geometries[0]);
    check_same(&other, &mapped);
    for (i = 0; i < GEOMETRIES; i++) {
        other = read_log(&reading, NODEDB_WAL_ACCESS_STREAMED, geometries[i]);
        check_same(&other, &mapped);
    }
    return mapped;
}

/* Mostly small, some long, now and then several MiB, and one in eight all zeros, as a segment's unwritten end is. */
static uint32_t random_payload(uint64_t *state, unsigned char *payload, uint32_t largest) {
    uint64_t kind = test_random(state) % 64;
    uint32_t most = kind == 0 ? largest : kind < 8 ? 70000 : kind < 32 ? 5000 : kind < 60 ? 300 : 1, i, bytes;
    bytes = (uint32_t)(test_random(state) % (most < largest ? most : largest));
    if (test_random(state) % 8 == 0) memset(payload, 0, bytes);
    else
        for (i = 0; i < bytes; i++) payload[i] = (unsigned char)(*state + i * 13 + (i >> 9));
    return bytes;
}

/* A log of `lives` lives, each a process that ends in order or not; answers how many records were acknowledged. */
static uint64_t random_log(nodedb_wal_config *config, uint64_t *state, int lives, uint32_t largest) {
    static unsigned char payload[5 << 20];
    nodedb_error err;
    uint64_t lsn = 0;
    for (; lives > 0; lives--) {
        int pipes[2], status = 1;
        pid_t child;
        uint64_t seed = test_random(state);
        bool closes = test_random(state) % 2 == 0;
        if (pipe(pipes) != 0) return 0;
        child = fork();
        if (child == 0) {
            nodedb_wal *wal = nodedb_wal_open(config, &err);
            int n = (int)(test_random(&seed) % 200) + 40;
            nodedb_wal_record record;
            memset(&record, 0, sizeof record);
            if (wal == NULL) _exit(1);
            record.type = NODEDB_WAL_TYPE_USER, record.payload = payload;
            for (; n > 0; n--) {
                record.payload_bytes = random_payload(&seed, payload, largest);
                record.tenant = (uint32_t)n;
                while (nodedb_wal_append(wal, &record, &lsn, &err) == NODEDB_ERR_AGAIN)
                    if (nodedb_wal_wait(wal, nodedb_wal_durable_lsn(wal) + 1, &err) != NODEDB_OK) _exit(1);
                if (test_random(&seed) % 16 == 0) (void)nodedb_wal_submit(wal, NULL);
            }
            if (nodedb_wal_wait(wal, lsn, &err) != NODEDB_OK) _exit(1);
            if (closes && nodedb_wal_close(wal, &err) != NODEDB_OK) _exit(1);
            if (write(pipes[1], &lsn, sizeof lsn) != (ssize_t)sizeof lsn) _exit(1);
            _exit(0);
        }
        close(pipes[1]);
        CHECK(read(pipes[0], &lsn, sizeof lsn) == (ssize_t)sizeof lsn);
        close(pipes[0]);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    return lsn;
}

/* The name of segment number `n` (modulo their number), and its size. */
static void pick_segment(uint64_t n, char *name, nodedb_wal__segment *segment) {
    nodedb_wal__list list;
    nodedb_allocator none;
    nodedb_io io = nodedb__io_or_posix(NULL);
    memset(&none, 0, sizeof none);
    CHECK_EQ(nodedb_wal__list_segments(&io, &none, log_dir, &list, NULL), NODEDB_OK);
    *segment = list.at[n % list.count];
    (void)snprintf(name, 40, "%020llu.wal", (unsigned long long)segment->first_lsn);
    nodedb_wal__list_free(&list);
}

TEST(every_way_of_reading_gives_the_same_records) {
    static const uint64_t segment_bytes[] = {64 << 10, 256 << 10, 1 << 20, 6 << 20};
    int rounds = test_long ? 60 : 6, i, k;
    uint64_t state = test_seed;
    for (i = 0; i < rounds; i++) {
        char name[24];
        nodedb_wal_config config;
        uint64_t last;
        verdict v;
        (void)snprintf(name, sizeof name, "same%d", i);
        config = config_here(name);
        config.segment_bytes = segment_bytes[test_random(&state) % 4];
        config.group_bytes = (size_t)4096 << test_random(&state) % 10;
        last = random_log(&config, &state, 1 + i % 3, i % 3 == 0 ? 5 << 20 : 200000);
        v = read_every_way(0);
        CHECK_EQ(v.err.status, NODEDB_ERR_AGAIN);
        CHECK(v.records > 0 && v.records <= last);
        for (k = 0; k < 3; k++) {
            uint64_t from = test_random(&state) % (last + 2) + 1;
            v = read_every_way(from);
            CHECK_EQ(v.err.status, NODEDB_ERR_AGAIN);
            CHECK(v.records <= last);
        }
    }
}

/* A torn tail and damage: garbage from some place on, a flipped bit, blocks of zeros. */
TEST(every_way_of_reading_says_the_same_about_damage) {
    int rounds = test_long ? 300 : 24, i, corrupt = 0, torn = 0;
    uint64_t state = test_seed + 1;
    for (i = 0; i < rounds; i++) {
        static unsigned char garbage[1 << 16];
        nodedb_wal__segment segment;
        char name[40];
        uint64_t offset;
        size_t bytes, k;
        verdict v;
        if (i % 4 == 0) {
            nodedb_wal_config config;
            (void)snprintf(name, sizeof name, "damaged%d", i);
            config = config_here(name);
            config.segment_bytes = i % 8 == 0 ? 128 << 10 : 1 << 20;
            (void)random_log(&config, &state, 2, 100000);
        }
        pick_segment(test_random(&state), name, &segment);
        offset = segment.block_bytes + test_random(&state) % (segment.bytes - segment.block_bytes) / 2;
        bytes = (size_t)(test_random(&state) % 3 == 0 ? 1 : test_random(&state) % sizeof garbage);
        if (bytes > segment.bytes - offset) bytes = (size_t)(segment.bytes - offset);
        for (k = 0; k < bytes; k++) garbage[k] = i % 3 == 0 ? 0 : (unsigned char)test_random(&state);
        poke(name, offset, garbage, bytes);
        v = read_every_way(0);
        CHECK(v.err.status == NODEDB_ERR_AGAIN || v.err.status == NODEDB_ERR_CORRUPT);
        corrupt += v.err.status == NODEDB_ERR_CORRUPT;
        torn += v.torn_bytes > 0;
    }
    CHECK(corrupt > 0);
    CHECK(!test_long || torn > 0);
}

TEST(every_way_of_reading_sees_the_same_torn_tail) {
    nodedb_wal_config config = config_here("torn");
    unsigned char half[3000];
    uint64_t offset;
    verdict v;
    memset(half, 0xAB, sizeof half);
    config.segment_bytes = 8 << 20;
    crashed_log(&config, 40, 3000);
    v = read_every_way(0);
    CHECK(v.err.status == NODEDB_ERR_AGAIN && v.records == 40 && v.torn_bytes == 0);
    for (offset = 512 << 10; offset < 8 << 20; offset = offset * 2 + 4096) { /* each further behind the last record */
        poke("00000000000000000001.wal", offset, half, sizeof half);
        v = read_every_way(0);
        CHECK(v.err.status == NODEDB_ERR_AGAIN && v.records == 40 && v.torn_bytes > 0);
    }
}

/* Records of one length, in one group, so that they begin at every multiple of 8 bytes of the ring of chunks. */
TEST(a_record_may_cross_the_end_of_the_buffer_anywhere) {
    enum { RECORDS = 2048, PAYLOAD = 1992, RING = 8192 };
    static const geometry g = {4096, 4096, 2};
    static bool crossed[PAYLOAD + 64];
    nodedb_wal_config config = config_here("wrap");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_record record;
    nodedb_wal_reader *r;
    nodedb_wal *wal;
    nodedb_error err;
    unsigned char payload[PAYLOAD];
    uint64_t n, lsn;
    size_t i;
    config.segment_bytes = 8 << 20, config.group_bytes = 6 << 20, config.groups = 2;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = payload, record.payload_bytes = PAYLOAD;
    for (n = 1; n <= RECORDS; n++) {
        for (i = 0; i < PAYLOAD; i++) payload[i] = (unsigned char)(n * 31 + i * 7);
        CHECK_EQ(nodedb_wal_append(wal, &record, &lsn, &err), NODEDB_OK);
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    r = open_reader(reading, NODEDB_WAL_ACCESS_STREAMED, g, &err);
    REQUIRE(r != NULL);
    for (n = 1; nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK; n++) {
        const unsigned char *p = (const unsigned char *)record.payload;
        bool same = record.payload_bytes == PAYLOAD;
        for (i = 0; same && i < PAYLOAD; i++) same = p[i] == (unsigned char)(n * 31 + i * 7);
        CHECK(same);
        p -= NODEDB_WAL_RECORD_HEADER_BYTES;
        if (is_streaming(r) && p >= r->stream.memory && p < r->stream.slots) crossed[r->stream.slots - p] = true;
    }
    CHECK_EQ(n, RECORDS + 1);
    for (i = 8; is_streaming(r) && i < PAYLOAD + 64; i += 8) CHECK(crossed[i]);
    nodedb_wal_reader_close(r);
}

/* ---- reads that fail, are short, interrupted, or end in another order ------------------------------------------- */

enum { IN_ORDER, SHORT = 1 }; /* or -errno */

/* Between the stream and its ring. What a read that is made to fail had brought is overwritten. */
typedef struct meddler {
    nodedb_wal__fetch real;
    unsigned char *buffer[NODEDB_WAL__STREAM_MAX_CHUNKS];
    size_t bytes[NODEDB_WAL__STREAM_MAX_CHUNKS];
    uint32_t tag[NODEDB_WAL__STREAM_MAX_CHUNKS];
    int result[NODEDB_WAL__STREAM_MAX_CHUNKS], held;
    int fault; /* SHORT or -errno, of every read from number `from` on, `times` times; bad_offset: of the last one */
    int from, times, seen;
    uint64_t offset[NODEDB_WAL__STREAM_MAX_CHUNKS], bad_offset, state;
} meddler;

static void meddle_start(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset, uint32_t tag) {
    meddler *m = (meddler *)ctx;
    m->buffer[tag] = (unsigned char *)buffer, m->bytes[tag] = bytes, m->offset[tag] = offset;
    m->real.start(m->real.ctx, fd, buffer, bytes, offset, tag);
}

static void meddle_with(meddler *m, uint32_t tag, int *result) {
    size_t kept = m->fault == SHORT ? (size_t)(test_random(&m->state) % m->bytes[tag]) : 0;
    if (++m->seen < m->from || m->times == 0) return;
    m->times--;
    memset(m->buffer[tag] + kept, 0xEE, m->bytes[tag] - kept);
    *result = m->fault == SHORT ? (int)kept : m->fault;
    m->bad_offset = m->offset[tag];
}

/* Takes all that have ended, and hands out any of them. */
static int meddle_finish(void *ctx, bool wait, uint32_t *tag, int *result) {
    meddler *m = (meddler *)ctx;
    int i, finished;
    while ((finished = m->real.finish(m->real.ctx, wait && m->held == 0, &m->tag[m->held], &m->result[m->held])) == 1) {
        meddle_with(m, m->tag[m->held], &m->result[m->held]);
        m->held++;
    }
    if (finished < 0 || m->held == 0) return finished;
    i = (int)(test_random(&m->state) % (uint64_t)m->held--);
    *tag = m->tag[i], *result = m->result[i];
    m->tag[i] = m->tag[m->held], m->result[i] = m->result[m->held];
    return 1;
}

/* A streaming reader whose reads `m` meddles with; NULL where this system does not stream. */
static nodedb_wal_reader *open_meddled(meddler *m, geometry g, nodedb_logger logger) {
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    nodedb_wal_reader *r;
    reading.logger = logger;
    r = open_reader(reading, NODEDB_WAL_ACCESS_STREAMED, g, &err);
    if (!is_streaming(r)) {
        nodedb_wal_reader_close(r);
        return NULL;
    }
    m->real = r->stream.fetch;
    m->state = test_seed;
    r->stream.fetch.start = meddle_start, r->stream.fetch.finish = meddle_finish, r->stream.fetch.ctx = m;
    return r;
}

/* Reads 1000 records; answers how many came, all of them right. */
static uint64_t read_meddled(nodedb_wal_reader *r, nodedb_error *err) {
    nodedb_wal_record record;
    uint64_t n = 0;
    memset(err, 0, sizeof *err);
    while (nodedb_wal_reader_next(r, &record, err) == NODEDB_OK) {
        n++;
        CHECK(record.lsn == n && is_record(&record, n, 20000));
    }
    return n;
}

static void meddled_log(void) {
    nodedb_wal_config config = config_here("meddled");
    nodedb_wal *wal = nodedb_wal_open(&config, NULL);
    REQUIRE(wal != NULL);
    CHECK(append_range(wal, 1, 1000, 20000));
    CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
}

static const nodedb_logger nobody = {NULL, NULL};

TEST(reads_that_are_short_interrupted_or_out_of_order_make_no_difference) {
    static const int faults[] = {IN_ORDER, SHORT, -EINTR, -EAGAIN, -ECANCELED, -ENOMEM};
    size_t i, k;
    meddled_log();
    for (i = 0; i < sizeof faults / sizeof *faults; i++)
        for (k = 0; k < GEOMETRIES; k++) {
            nodedb_wal_reader_stats stats;
            nodedb_error err;
            meddler m;
            nodedb_wal_reader *r;
            memset(&m, 0, sizeof m);
            m.fault = faults[i], m.from = 3, m.times = faults[i] == IN_ORDER ? 0 : 1000000;
            r = open_meddled(&m, geometries[k], nobody);
            if (r == NULL) return;
            CHECK_EQ(read_meddled(r, &err), 1000);
            CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
            CHECK(m.seen > 10);
            nodedb_wal_reader_get_stats(r, &stats);
            CHECK_EQ(stats.segments_streamed, stats.segments_opened);
            nodedb_wal_reader_close(r);
        }
}

TEST(a_read_error_while_streaming_says_where_and_is_no_signal) {
    int from;
    meddled_log();
    for (from = 1; from < 60; from += 7) {
        nodedb_error err, again;
        nodedb_wal_record record;
        meddler m;
        nodedb_wal_reader *r;
        uint64_t n;
        memset(&m, 0, sizeof m);
        m.fault = -EIO, m.from = from, m.times = 1;
        r = open_meddled(&m, geometries[3], nobody);
        if (r == NULL) return;
        n = read_meddled(r, &err);
        CHECK(n < 1000 && (from > 1 || n == 0));
        CHECK_EQ(err.status, NODEDB_ERR_IO);
        CHECK_EQ(err.sys_errno, EIO);
        CHECK_EQ(err.offset, m.bad_offset);
        CHECK_HAS(err.message, ".wal at offset");
        CHECK_EQ(nodedb_wal_reader_next(r, &record, &again), NODEDB_ERR_IO); /* and for ever */
        nodedb_wal_reader_close(r);
    }
}

static void count_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    CHECK_EQ(level, NODEDB_LOG_WARNING);
    CHECK_HAS(sentence, "page cache");
    ++*(int *)ctx;
}

TEST(where_direct_reads_are_refused_it_says_so_once_and_reads_on) {
    int from;
    meddled_log();
    for (from = 1; from < 40; from += 9) {
        nodedb_wal_reader_stats stats;
        nodedb_logger logger;
        nodedb_error err;
        meddler m;
        nodedb_wal_reader *r;
        int sentences = 0;
        logger.write = count_sentence, logger.ctx = &sentences;
        memset(&m, 0, sizeof m);
        m.fault = -EINVAL, m.from = from, m.times = 1000000;
        r = open_meddled(&m, geometries[3], logger);
        if (r == NULL) return;
        CHECK_EQ(read_meddled(r, &err), 1000);
        CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
        CHECK_EQ(sentences, 1);
        nodedb_wal_reader_get_stats(r, &stats);
        CHECK(stats.segments_streamed < stats.segments_opened);
        nodedb_wal_reader_close(r);
    }
}

static int open_files(void) {
    int fd, n = 0;
    for (fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* A reader that is closed in the middle waits for what the device still writes into its memory. */
TEST(a_streaming_reader_may_be_closed_at_any_time) {
    int n, k, files;
    meddled_log();
    files = open_files();
    for (k = 0; k < GEOMETRIES; k++)
        for (n = 0; n < 40; n += 3) {
            nodedb_wal_reader_config reading = reading_here();
            nodedb_wal_record record;
            nodedb_error err;
            nodedb_wal_reader *r;
            int i;
            reading.from_lsn = (uint64_t)n * 20 + 1;
            r = open_reader(reading, NODEDB_WAL_ACCESS_STREAMED, geometries[k], &err);
            REQUIRE(r != NULL);
            for (i = 0; i < n; i++) CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_OK);
            nodedb_wal_reader_close(r);
        }
    CHECK_EQ(open_files(), files);
}

/* ---- what is chosen, and what it costs --------------------------------------------------------------------------- */

enum { LARGE_RECORDS = 600, LARGE_MAX = 60000 }; /* some 18 MiB */

static void large_log(void) {
    nodedb_wal_config config = config_here("large");
    nodedb_wal *wal;
    config.segment_bytes = 4 << 20, config.group_bytes = 1 << 20;
    wal = nodedb_wal_open(&config, NULL);
    REQUIRE(wal != NULL);
    CHECK(append_range(wal, 1, LARGE_RECORDS, LARGE_MAX));
    CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
}

/* Calls for each segment file: drops it from the page cache, or reads it into it; answers the pages that are there. */
static size_t cached_pages(bool drop, bool fill) {
    char name[40], path[700];
    nodedb_wal__segment segment;
    size_t pages = 0, page = (size_t)sysconf(_SC_PAGESIZE), k;
    uint64_t i, first = 0;
    for (i = 0;; i++) {
        static unsigned char vector[2048];
        void *map;
        int fd;
        pick_segment(i, name, &segment);
        if (i > 0 && segment.first_lsn == first) return pages;
        if (i == 0) first = segment.first_lsn;
        (void)snprintf(path, sizeof path, "%s/%s", log_dir, name);
        fd = open(path, O_RDONLY);
        if (drop) (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        while (fill && read(fd, vector, sizeof vector) > 0) {}
        map = mmap(NULL, (size_t)segment.bytes, PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
        CHECK(map != MAP_FAILED && mincore(map, (size_t)segment.bytes, vector) == 0);
        for (k = 0; k * page < segment.bytes; k++) pages += vector[k] & 1;
        (void)munmap(map, (size_t)segment.bytes);
    }
}

enum { PREAMBLE_PAGES = 5 * 32 }; /* listing a log reads the segments' first blocks through the page cache */

static void replay_large(nodedb_wal_access access, uint32_t threads, nodedb_wal_reader_stats *stats) {
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    counting c;
    memset(&c, 0, sizeof c);
    c.max = LARGE_MAX;
    reading.access = access;
    reading.threads = threads;
    CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, stats, &err), NODEDB_OK);
    CHECK(c.count == LARGE_RECORDS && !c.wrong);
}

TEST(a_log_that_is_not_in_the_page_cache_is_streamed_and_leaves_it_empty) {
    nodedb_wal_reader_stats stats;
    uint32_t threads;
    large_log();
    replay_large(NODEDB_WAL_ACCESS_STREAMED, 1, &stats);
    if (stats.segments_streamed == 0) return; /* no io_uring, or no O_DIRECT, here */
    for (threads = 0; threads < 3; threads++) {
        (void)cached_pages(true, false);
        replay_large(NODEDB_WAL_ACCESS_AUTO, threads, &stats);
        CHECK_EQ(stats.segments_streamed, stats.segments_opened);
        CHECK(cached_pages(false, false) <= PREAMBLE_PAGES);
    }
}

TEST(a_log_that_is_in_the_page_cache_is_mapped) {
    nodedb_wal_reader_stats stats;
    uint32_t threads;
    large_log();
    for (threads = 0; threads < 3; threads++) {
        (void)cached_pages(false, true);
        replay_large(NODEDB_WAL_ACCESS_AUTO, threads, &stats);
        CHECK_EQ(stats.segments_streamed, 0);
        CHECK_EQ(stats.hints_sequential, stats.segments_opened);
    }
    (void)cached_pages(false, true);
    replay_large(NODEDB_WAL_ACCESS_STREAMED, 1, &stats); /* as it is asked for */
    CHECK_EQ(stats.hints_sequential, 0);
}

TEST(opening_a_log_reads_past_the_page_cache) {
    nodedb_wal_config config;
    nodedb_wal_reader_stats stats;
    nodedb_error err;
    nodedb_wal *wal;
    large_log();
    replay_large(NODEDB_WAL_ACCESS_STREAMED, 1, &stats);
    (void)cached_pages(true, false);
    memset(&config, 0, sizeof config);
    config.dir = log_dir, config.segment_bytes = 4 << 20;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_last_lsn(wal), LARGE_RECORDS + 1);
    if (stats.segments_streamed > 0) CHECK(cached_pages(false, false) <= PREAMBLE_PAGES + 32);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

/* An allocator that knows how much is out. */
typedef struct ledger { size_t now, most; } ledger;
static void *ledger_alloc(void *ctx, size_t bytes, size_t align) {
    ledger *l = (ledger *)ctx;
    void *memory = NULL;
    if (posix_memalign(&memory, align, bytes) != 0) return NULL;
    l->now += bytes;
    if (l->now > l->most) l->most = l->now;
    return memory;
}
static void ledger_release(void *ctx, void *memory, size_t bytes) {
    if (memory != NULL) ((ledger *)ctx)->now -= bytes;
    free(memory);
}

TEST(streaming_takes_6_mib_however_long_the_log_is) {
    nodedb_wal_reader_config reading;
    nodedb_error err;
    ledger l = {0, 0};
    counting c;
    large_log();
    memset(&c, 0, sizeof c);
    c.max = LARGE_MAX;
    reading = reading_here();
    reading.access = NODEDB_WAL_ACCESS_STREAMED;
    reading.allocator.alloc = ledger_alloc, reading.allocator.release = ledger_release, reading.allocator.ctx = &l;
    CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, NULL, &err), NODEDB_OK);
    CHECK(c.count == LARGE_RECORDS && !c.wrong);
    CHECK_EQ(l.now, 0);
    CHECK(l.most < (6 << 20) + (64 << 10));
}

/* What was read ahead shows the log as it was; the writer has gone on, and what is behind says so. */
TEST(a_log_that_grows_while_it_is_streamed_is_not_called_damaged) {
    int i;
    for (i = 0; i < GEOMETRIES; i++) {
        char name[24];
        nodedb_wal_config config;
        nodedb_wal_reader_config reading;
        nodedb_wal_record record;
        nodedb_error err;
        nodedb_wal_reader *r;
        nodedb_wal *wal;
        uint64_t n = 0, stop;
        (void)snprintf(name, sizeof name, "grows%d", i);
        config = config_here(name);
        reading = reading_here();
        config.segment_bytes = 16 << 20;
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        CHECK(commit_range(wal, 1, 60, 20000));
        r = open_reader(reading, NODEDB_WAL_ACCESS_STREAMED, geometries[i], &err);
        REQUIRE(r != NULL);
        for (stop = 60; stop <= 300; stop += 60) {
            if (stop > 60) CHECK(commit_range(wal, stop - 59, stop, 20000));
            while (n < stop - 20 && nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK)
                n++, CHECK(record.lsn == n && is_record(&record, n, 20000));
        }
        while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK) n++;
        CHECK_EQ(err.status, NODEDB_ERR_AGAIN); /* perhaps at the end as it was: the reader does not follow */
        CHECK(n >= 60 && n <= 300);
        nodedb_wal_reader_close(r);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    }
}

TEST(pages_of_a_streamed_log_are_the_same_records) {
    nodedb_wal_reader_config reading;
    nodedb_wal_cursor cursor;
    nodedb_error err;
    counting c;
    bool more = true;
    int pages;
    large_log();
    memset(&c, 0, sizeof c);
    memset(&cursor, 0, sizeof cursor);
    c.max = LARGE_MAX;
    reading = reading_here();
    reading.access = NODEDB_WAL_ACCESS_STREAMED;
    for (pages = 0; more && pages < LARGE_RECORDS; pages++)
        CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 70, count_record, &c, &more, &err), NODEDB_OK);
    CHECK_EQ(pages, (LARGE_RECORDS + 69) / 70);
    CHECK(c.count == LARGE_RECORDS && !c.wrong);
}

/* Reads on until a call fails; *last is the last record that was handed out, each of them as it was written. */
static nodedb_status read_on(nodedb_wal_reader *r, uint64_t *last, nodedb_error *err) {
    nodedb_wal_record record;
    nodedb_status status;
    memset(err, 0, sizeof *err);
    while ((status = nodedb_wal_reader_next(r, &record, err)) == NODEDB_OK)
        CHECK(record.lsn == ++*last && is_record(&record, *last, 3000));
    return status;
}

TEST(a_reader_in_a_truncated_segment_is_told_so_and_not_of_damage) {
    static const nodedb_wal_access ways[] = {NODEDB_WAL_ACCESS_MAPPED, NODEDB_WAL_ACCESS_BUFFERED,
                                             NODEDB_WAL_ACCESS_STREAMED};
    uint32_t i, used_again, followed;
    for (i = 0; i < 12; i++) {
        nodedb_wal_config config;
        nodedb_wal_reader_config reading;
        nodedb_wal_reader *r;
        nodedb_wal *wal;
        nodedb_wal_record record;
        nodedb_error err;
        nodedb_status status;
        uint64_t last = 1, first;
        uint32_t removed = 0;
        char name[20];
        used_again = i / 3 % 2, followed = i / 6;
        snprintf(name, sizeof name, "gone-%u", (unsigned)i);
        config = config_here(name);
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL && append_range(wal, 1, 1000, 3000)); /* six segments */
        reading = reading_here();
        reading.access = ways[i % 3];
        reading.follow = followed ? wal : NULL;
        r = nodedb_wal_reader_open(&reading, &err);
        REQUIRE(r != NULL && nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK && record.lsn == 1);
        CHECK_EQ(nodedb_wal_truncate_before(wal, 1000, &removed, &err), NODEDB_OK);
        CHECK(removed >= 4);
        first = nodedb_wal_first_lsn(wal);
        if (used_again) CHECK(append_range(wal, 1001, 1900, 3000));
        status = read_on(r, &last, &err);
        CHECK_EQ(status, NODEDB_ERR_NOT_FOUND);
        CHECK(err.lsn == last + 1 && last + 1 < first);
        CHECK_HAS(err.message, "truncated");
        CHECK_EQ(read_on(r, &last, &err), NODEDB_ERR_NOT_FOUND); /* for good */
        nodedb_wal_reader_close(r);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    }
}

TEST_MAIN("wal_read")
