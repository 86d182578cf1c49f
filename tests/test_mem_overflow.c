/* Tests of the overflow regions of nodedb_mem.h, through its public API. In this order:
 *   write, read, free; update and compaction
 *   scratch files, disk blocks, statistics
 *   kept files: reopening; damage; power cuts; a process that is killed; failing calls, and file systems that cannot;
 *     after a power cut, generations and slots; memory and disk blocks
 *   views */
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "refusing_allocator.h"
#include "test.h"

#define MIB ((size_t)1024 * 1024)
#define OVERFLOW_MAX_LIVE 4096

/* ---- write, read, free ------------------------------------------------------------------------------------------- */

static nodedb_mem_overflow *open_region(uint64_t initial, uint64_t most, const nodedb_io *io) {
    nodedb_mem_overflow_config config;
    nodedb_error err;
    nodedb_mem_overflow *region;
    memset(&config, 0, sizeof config);
    config.dir = test_dir();
    config.initial_bytes = initial;
    config.max_bytes = most;
    if (io != NULL) config.io = *io;
    region = nodedb_mem_overflow_open(&config, &err);
    if (region == NULL) fprintf(stderr, "%s\n", err.message);
    return region;
}

static nodedb_mem_overflow_stats stats_of(const nodedb_mem_overflow *region) {
    nodedb_mem_overflow_stats stats;
    CHECK_EQ(nodedb_mem_overflow_get_stats(region, &stats, NULL), NODEDB_OK);
    return stats;
}

TEST(object_is_read_back_with_its_exact_length) {
    nodedb_mem_overflow *region = open_region(0, 0, NULL);
    nodedb_mem_handle handle, empty;
    size_t bytes = 99;
    const char *text;
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, "cold value", 10, &handle, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, NULL, 0, &empty, NULL), NODEDB_OK);
    text = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
    REQUIRE(text != NULL);
    CHECK_EQ(bytes, 10);
    CHECK_EQ(memcmp(text, "cold value", 10), 0);
    CHECK_EQ((uintptr_t)text % 16, 0);
    CHECK(nodedb_mem_overflow_read(region, empty, &bytes, NULL) != NULL);
    CHECK_EQ(bytes, 0);
    CHECK_EQ(stats_of(region).objects, 2);
    CHECK_EQ(stats_of(region).object_bytes, 10);
    CHECK_EQ(stats_of(region).used_bytes, 32);
    CHECK_EQ(stats_of(region).capacity_bytes, 64 * MIB);
    CHECK_EQ(stats_of(region).disk_bytes, MIB);
    nodedb_mem_overflow_close(region);
}

TEST(reused_space_has_the_new_length_not_the_old_one) {
    nodedb_mem_overflow *region = open_region(0, 0, NULL);
    nodedb_mem_handle old_one, new_one;
    const void *place;
    size_t bytes;
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, "a long old value of forty-eight bytes or so.....", 48, &old_one,
                 NULL), NODEDB_OK);
    place = nodedb_mem_overflow_read(region, old_one, &bytes, NULL);
    CHECK_EQ(nodedb_mem_overflow_free(region, old_one, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, "new", 3, &new_one, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, new_one, &bytes, NULL) == place);
    CHECK_EQ(bytes, 3);
    nodedb_mem_overflow_close(region);
}

TEST(stale_double_freed_and_foreign_handles_are_errors) {
    nodedb_mem_overflow *region = open_region(0, 0, NULL), *other = open_region(0, 0, NULL);
    nodedb_mem_handle handle, again, foreign, forged = {0};
    nodedb_error err;
    uint64_t random = test_seed;
    int i;
    REQUIRE(region != NULL && other != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, "one", 3, &handle, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(other, "two", 3, &foreign, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, foreign, NULL, &err) == NULL && err.status == NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_overflow_free(region, foreign, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_overflow_free(region, handle, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_free(region, handle, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_HAS(err.message, "stale");
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, &err) == NULL);
    /* the same place, a new generation */
    CHECK_EQ(nodedb_mem_overflow_write(region, "three", 5, &again, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, &err) == NULL);
    CHECK_EQ(nodedb_mem_overflow_free(region, handle, &err), NODEDB_ERR_NOT_FOUND);
    CHECK(nodedb_mem_overflow_read(region, again, NULL, &err) != NULL);
    CHECK(nodedb_mem_overflow_read(region, forged, NULL, &err) == NULL);
    for (i = 0; i < 1000; i++) {
        forged.bits = test_random(&random);
        CHECK(nodedb_mem_overflow_read(region, forged, NULL, NULL) == NULL);
    }
    CHECK_EQ(nodedb_mem_overflow_free(NULL, again, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_overflow_write(region, NULL, 1, &again, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_overflow_write(region, "x", 1, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(again.bits, 0);
    nodedb_mem_overflow_close(region);
    nodedb_mem_overflow_close(other);
    nodedb_mem_overflow_close(NULL);
}

/* What a test knows of a living object: its bytes are computed from its number. */
typedef struct model_object {
    nodedb_mem_handle handle;
    const unsigned char *at;
    size_t bytes;
    uint64_t number;
} model_object;

static void fill_object(unsigned char *bytes, size_t length, uint64_t number) {
    size_t i;
    for (i = 0; i < length; i++) bytes[i] = (unsigned char)(number * 131 + i * 7);
}

static bool object_is_whole(nodedb_mem_overflow *region, const model_object *o) {
    size_t bytes = 0, i;
    const unsigned char *at = (const unsigned char *)nodedb_mem_overflow_read(region, o->handle, &bytes, NULL);
    if (at != o->at || bytes != o->bytes) return false;
    for (i = 0; i < bytes; i += i + 9 < bytes ? 9 : 1)
        if (at[i] != (unsigned char)(o->number * 131 + i * 7)) return false;
    return true;
}

TEST(random_writes_and_frees_agree_with_a_model_and_all_space_comes_back) {
    static model_object live[OVERFLOW_MAX_LIVE];
    static unsigned char buffer[200000];
    nodedb_mem_overflow *region = open_region(MIB, 48 * MIB + 12288, NULL);
    uint64_t random = test_seed, number = 0, object_bytes = 0, used_bytes = 0;
    size_t count = 0, i;
    int round;
    REQUIRE(region != NULL);
    for (round = 0; round < (test_long ? 1000000 : 40000); round++) {
        if (count < OVERFLOW_MAX_LIVE && test_random(&random) % 100 < (round / 8000 % 2 == 0 ? 70u : 35u)) {
            model_object *o = &live[count];
            uint64_t kind = test_random(&random) % 100;
            size_t bytes = (size_t)(test_random(&random) % (kind < 80 ? 300 : kind < 98 ? 9000 : sizeof buffer));
            nodedb_status status;
            fill_object(buffer, bytes, number);
            status = nodedb_mem_overflow_write(region, buffer, bytes, &o->handle, NULL);
            if (status == NODEDB_ERR_LIMIT) { /* only where no hole is large enough, at the maximum */
                CHECK(stats_of(region).largest_hole_bytes < bytes);
                continue;
            }
            CHECK_EQ(status, NODEDB_OK);
            o->at = (const unsigned char *)nodedb_mem_overflow_read(region, o->handle, NULL, NULL);
            o->bytes = bytes, o->number = number++;
            object_bytes += bytes, used_bytes += bytes == 0 ? 16 : (bytes + 15) / 16 * 16;
            count++;
        } else if (count > 0) {
            size_t victim = (size_t)(test_random(&random) % count);
            CHECK(object_is_whole(region, &live[victim]));
            CHECK_EQ(nodedb_mem_overflow_free(region, live[victim].handle, NULL), NODEDB_OK);
            object_bytes -= live[victim].bytes;
            used_bytes -= live[victim].bytes == 0 ? 16 : (live[victim].bytes + 15) / 16 * 16;
            live[victim] = live[--count];
        }
        if (round % 10000 == 9999) CHECK_EQ(nodedb_mem_overflow_trim(region, NULL, NULL), NODEDB_OK);
    }
    for (i = 0; i < count; i++) CHECK(object_is_whole(region, &live[i]));
    CHECK_EQ(stats_of(region).objects, count);
    CHECK_EQ(stats_of(region).object_bytes, object_bytes);
    CHECK_EQ(stats_of(region).used_bytes, used_bytes);
    CHECK(stats_of(region).grows > 0);
    for (i = 0; i < count; i++) CHECK_EQ(nodedb_mem_overflow_free(region, live[i].handle, NULL), NODEDB_OK);
    CHECK_EQ(stats_of(region).holes, 1); /* all neighbours were merged */
    CHECK_EQ(stats_of(region).free_bytes, stats_of(region).capacity_bytes);
    CHECK_EQ(stats_of(region).largest_hole_bytes, stats_of(region).capacity_bytes);
    CHECK_EQ(stats_of(region).fragmentation_percent, 0);
    nodedb_mem_overflow_close(region);
}

TEST(pointers_stay_valid_while_the_region_grows_to_exactly_its_maximum) {
    static unsigned char buffer[1 << 20];
    nodedb_mem_handle first, handle;
    nodedb_mem_overflow *region = open_region(2 * MIB, 13 * MIB, NULL); /* doubling passes it: 2, 4, 8, 13 */
    const unsigned char *at;
    nodedb_error err;
    int written = 1;
    REQUIRE(region != NULL);
    fill_object(buffer, sizeof buffer, 5);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &first, NULL), NODEDB_OK);
    at = (const unsigned char *)nodedb_mem_overflow_read(region, first, NULL, NULL);
    while (written < 100 && nodedb_mem_overflow_write(region, buffer, sizeof buffer, &handle,
                 &err) == NODEDB_OK) written++;
    CHECK_EQ(written, 13);
    CHECK_EQ(err.status, NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "at its maximum");
    CHECK_EQ(stats_of(region).capacity_bytes, 13 * MIB);
    CHECK_EQ(stats_of(region).disk_bytes, 13 * MIB);
    CHECK_EQ(stats_of(region).grows, 3);
    CHECK_EQ(stats_of(region).refused, 1);
    CHECK(nodedb_mem_overflow_read(region, first, NULL, NULL) == at);
    CHECK_EQ(memcmp(at, buffer, sizeof buffer), 0);
    nodedb_mem_overflow_close(region);
}

TEST(one_object_may_fill_the_whole_region) {
    size_t most = 5 * MIB + 4096;
    char *buffer = (char *)calloc(1, most + 1);
    nodedb_mem_handle handle;
    nodedb_error err;
    nodedb_mem_overflow *region = open_region(4096, most, NULL);
    REQUIRE(region != NULL && buffer != NULL);
    most = (size_t)stats_of(region).max_bytes; /* rounded up to the page */
    buffer = (char *)realloc(buffer, most + 1);
    REQUIRE(buffer != NULL);
    memset(buffer, 7, most + 1);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, most + 1, &handle, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, most, &handle, &err), NODEDB_OK);
    CHECK_EQ(stats_of(region).free_bytes, 0);
    CHECK_EQ(stats_of(region).holes, 0);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 1, &handle, &err), NODEDB_ERR_LIMIT);
    nodedb_mem_overflow_close(region);
    free(buffer);
}

TEST(the_smallest_hole_that_fits_is_taken) {
    static char buffer[100000];
    static const size_t sizes[6] = {70000, 80, 66000, 4000, 48, 90000}; /* bins and tree */
    nodedb_mem_overflow *region = open_region(MIB, MIB, NULL);
    nodedb_mem_handle holes[6], between, handle;
    const void *at[6];
    int i;
    REQUIRE(region != NULL);
    for (i = 0; i < 6; i++) {
        CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizes[i], &holes[i], NULL), NODEDB_OK);
        at[i] = nodedb_mem_overflow_read(region, holes[i], NULL, NULL);
        CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 16, &between, NULL), NODEDB_OK);
    }
    for (i = 0; i < 6; i++) CHECK_EQ(nodedb_mem_overflow_free(region, holes[i], NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 65990, &handle, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, NULL) == at[2]);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 80000, &handle, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, NULL) == at[5]);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 40, &handle, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, NULL) == at[4]);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 49, &handle, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, NULL) == at[1]);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 81, &handle, NULL), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, NULL) == at[3]);
    CHECK(stats_of(region).fragmentation_percent > 0);
    nodedb_mem_overflow_close(region);
}

/* ---- update and compaction --------------------------------------------------------------------------------------- */

TEST(update_replaces_the_bytes_under_the_same_handle_and_in_place_where_they_fit) {
    nodedb_mem_overflow *region = open_region(MIB, MIB, NULL);
    nodedb_mem_handle handle, neighbour, stale;
    const char *at, *now;
    static char large[2 * MIB];
    char word[33] = "thirty-two bytes of one object.";
    size_t bytes;
    nodedb_error err;
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, word, 32, &handle, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, "beside it", 9, &neighbour, NULL), NODEDB_OK);
    at = (const char *)nodedb_mem_overflow_read(region, handle, NULL, NULL);
    REQUIRE(at != NULL);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, "a shorter sentence", 18, &err), NODEDB_OK); /* two units */
    now = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
    CHECK(now == at && bytes == 18 && memcmp(now, "a shorter sentence", 18) == 0);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, now + 2, 16, &err), NODEDB_OK); /* its own bytes; one unit */
    now = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
    CHECK(bytes == 16 && memcmp(now, "shorter sentence", 16) == 0);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, now + 8, 8, &err), NODEDB_OK); /* the same in one place */
    now = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
    CHECK(bytes == 8 && memcmp(now, "sentence", 8) == 0);
    memset(large, 'x', 100000);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, large, 100000, &err), NODEDB_OK);
    now = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
    CHECK(bytes == 100000 && memcmp(now, large, bytes) == 0);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, large, sizeof large, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, large, MIB, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, NULL, 1, &err), NODEDB_ERR_INVALID);
    now = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, NULL);
    CHECK(bytes == 100000 && memcmp(now, large, bytes) == 0);
    CHECK_EQ(stats_of(region).updates, 4);
    CHECK_EQ(stats_of(region).refused, 2);
    CHECK_EQ(stats_of(region).object_bytes, 100009);
    CHECK_EQ(nodedb_mem_overflow_update(region, handle, NULL, 0, &err), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, &bytes, NULL) != NULL && bytes == 0);
    CHECK_EQ(stats_of(region).used_bytes, 32);
    now = (const char *)nodedb_mem_overflow_read(region, neighbour, &bytes, NULL);
    CHECK(bytes == 9 && memcmp(now, "beside it", 9) == 0);
    stale = handle;
    CHECK_EQ(nodedb_mem_overflow_free(region, handle, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_update(region, stale, "x", 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_overflow_update(NULL, neighbour, "x", 1, &err), NODEDB_ERR_INVALID);
    nodedb_mem_overflow_close(region);
}

/* Compacts until a pass is complete; each call stays within its bounds. */
static void compact_all(nodedb_mem_overflow *region, uint64_t max_bytes, nodedb_mem_may_move *may_move, void *ctx) {
    bool complete = false;
    for (int calls = 0; !complete && calls < 100000; calls++) {
        nodedb_mem_overflow_stats before = stats_of(region), after;
        CHECK_EQ(nodedb_mem_overflow_compact(region, max_bytes, may_move, ctx, &complete, NULL), NODEDB_OK);
        after = stats_of(region);
        CHECK(after.moved_bytes - before.moved_bytes <= (max_bytes == 0 ? MIB : max_bytes));
        CHECK(after.moves - before.moves <= NODEDB_MEM_OVERFLOW_COMPACT_BLOCKS);
        CHECK(after.objects == before.objects && after.used_bytes == before.used_bytes);
        CHECK(after.capacity_bytes == before.capacity_bytes && after.disk_bytes == before.disk_bytes);
    }
    CHECK(complete);
}

TEST(where_every_second_object_was_freed_compaction_makes_what_trim_gives_back) {
    enum { OBJECTS = SLOW ? 6000 : 20000 };
    static nodedb_mem_handle handles[OBJECTS];
    static unsigned char object[1000];
    nodedb_mem_overflow *region = open_region(MIB, 64 * MIB, NULL);
    uint64_t given = 1, disk;
    REQUIRE(region != NULL);
    for (size_t i = 0; i < OBJECTS; i++) {
        fill_object(object, sizeof object, i);
        CHECK_EQ(nodedb_mem_overflow_write(region, object, sizeof object, &handles[i], NULL), NODEDB_OK);
    }
    CHECK_EQ(nodedb_mem_overflow_trim(region, NULL, NULL), NODEDB_OK); /* what growing allocated and nobody uses */
    for (size_t i = 1; i < OBJECTS; i += 2) CHECK_EQ(nodedb_mem_overflow_free(region, handles[i], NULL), NODEDB_OK);
    disk = stats_of(region).disk_bytes;
    CHECK_EQ(nodedb_mem_overflow_trim(region, &given, NULL), NODEDB_OK);
    CHECK_EQ(given, 0);
    compact_all(region, 100000, NULL, NULL);
    CHECK_EQ(nodedb_mem_overflow_trim(region, &given, NULL), NODEDB_OK);
    CHECK(given + 2 * MIB > disk / 2 && stats_of(region).disk_bytes < stats_of(region).used_bytes + 2 * MIB);
    CHECK_EQ(stats_of(region).holes, 1);
    for (size_t i = 0; i < OBJECTS; i += 2) {
        size_t bytes;
        const void *at = nodedb_mem_overflow_read(region, handles[i], &bytes, NULL);
        fill_object(object, sizeof object, i);
        CHECK(at != NULL && bytes == sizeof object && memcmp(at, object, bytes) == 0);
    }
    {
        bool complete = false; /* what is compact costs one look */
        uint64_t moves = stats_of(region).moves;
        CHECK_EQ(nodedb_mem_overflow_compact(region, 0, NULL, NULL, &complete, NULL), NODEDB_OK);
        CHECK(complete && stats_of(region).moves == moves);
    }
    nodedb_mem_overflow_close(region);
}

static bool is_not_pinned(void *ctx, nodedb_mem_handle handle) {
    const nodedb_mem_handle *pinned = (const nodedb_mem_handle *)ctx;
    return handle.bits != pinned->bits;
}

TEST(compaction_leaves_what_may_not_move_and_what_is_larger_than_its_bound) {
    nodedb_mem_overflow *region = open_region(MIB, 4 * MIB, NULL);
    static unsigned char large[300000];
    nodedb_mem_handle gap, pinned, big, small;
    const void *at, *big_at;
    bool complete = true;
    nodedb_error err;
    REQUIRE(region != NULL);
    memset(large, 7, sizeof large);
    CHECK_EQ(nodedb_mem_overflow_write(region, large, sizeof large, &gap, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, large, 1000, &small, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, large, 200000, &big, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, "pinned", 6, &pinned, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_free(region, gap, NULL), NODEDB_OK);
    at = nodedb_mem_overflow_read(region, pinned, NULL, NULL);
    big_at = nodedb_mem_overflow_read(region, big, NULL, NULL);
    compact_all(region, 100000, is_not_pinned, &pinned);
    CHECK(nodedb_mem_overflow_read(region, pinned, NULL, NULL) == at && memcmp(at, "pinned", 6) == 0);
    CHECK(nodedb_mem_overflow_read(region, big, NULL, NULL) == big_at);
    compact_all(region, 200000, is_not_pinned, &pinned);
    CHECK(nodedb_mem_overflow_read(region, pinned, NULL, NULL) == at);
    CHECK((const char *)nodedb_mem_overflow_read(region, big, NULL, NULL) < (const char *)big_at);
    compact_all(region, 0, NULL, NULL);
    CHECK((const char *)nodedb_mem_overflow_read(region, pinned, NULL, NULL) < (const char *)at);
    CHECK(memcmp(nodedb_mem_overflow_read(region, small, NULL, NULL), large, 1000) == 0);
    CHECK_EQ(nodedb_mem_overflow_compact(NULL, 0, NULL, NULL, &complete, &err), NODEDB_ERR_INVALID);
    CHECK(!complete);
    nodedb_mem_overflow_close(region);
}

/* Writes, updates, frees and compacts at random beside a model; kept: closes and reopens in between. */
static void model_campaign(const char *name, uint64_t seed, int rounds) {
    static model_object live[OVERFLOW_MAX_LIVE];
    static unsigned char buffer[20000];
    nodedb_mem_overflow_config config;
    nodedb_mem_overflow *region;
    uint64_t random = seed, number = 1, object_bytes = 0, used_bytes = 0, moves = 0;
    size_t count = 0;
    memset(&config, 0, sizeof config);
    config.dir = test_dir(), config.name = name, config.initial_bytes = 65536, config.max_bytes = 6 * MIB;
    region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    for (int round = 0; round < rounds; round++) {
        uint64_t kind = test_random(&random) % 100, length = test_random(&random) % 100;
        size_t bytes = (size_t)(test_random(&random) % (length < 80 ? 300 : length < 98 ? 3000 : sizeof buffer));
        size_t i = count > 0 ? (size_t)(test_random(&random) % count) : 0;
        if (kind < (round / 2000 % 2 == 0 ? 45u : 20u) && count < OVERFLOW_MAX_LIVE) {
            model_object *o = &live[count];
            o->number = number++, o->bytes = bytes;
            fill_object(buffer, bytes, o->number);
            if (nodedb_mem_overflow_write(region, buffer, bytes, &o->handle, NULL) == NODEDB_OK) count++;
        } else if (kind < 60 && count > 0) {
            fill_object(buffer, bytes, number);
            if (nodedb_mem_overflow_update(region, live[i].handle, buffer, bytes, NULL) == NODEDB_OK)
                live[i].number = number, live[i].bytes = bytes;
            number++;
        } else if (kind < 95 && count > 0) {
            CHECK_EQ(nodedb_mem_overflow_free(region, live[i].handle, NULL), NODEDB_OK);
            live[i] = live[--count];
        } else if (kind < 98 && (name == NULL || round % 8 == 0)) { /* that one syncs */
            const void *at = count > 0 ? nodedb_mem_overflow_read(region, live[i].handle, NULL, NULL) : NULL;
            uint64_t max_bytes = 1 + test_random(&random) % 200000;
            CHECK_EQ(nodedb_mem_overflow_compact(region, max_bytes, count > 0 ? is_not_pinned : NULL, &live[i].handle,
                                                 NULL, NULL), NODEDB_OK);
            if (count > 0) CHECK(nodedb_mem_overflow_read(region, live[i].handle, NULL, NULL) == at);
        } else if (kind == 98) CHECK_EQ(nodedb_mem_overflow_trim(region, NULL, NULL), NODEDB_OK);
        else if (name != NULL && round % 16 == 0) {
            moves += stats_of(region).moves;
            nodedb_mem_overflow_close(region);
            region = nodedb_mem_overflow_open(&config, NULL);
            REQUIRE(region != NULL);
            CHECK(stats_of(region).reopened == count && stats_of(region).lost == 0);
        }
        if (count > 0) { /* any one of them is right at any time */
            i = (size_t)(test_random(&random) % count);
            live[i].at = (const unsigned char *)nodedb_mem_overflow_read(region, live[i].handle, NULL, NULL);
            CHECK(object_is_whole(region, &live[i]));
        }
        if (test_failures_here > 0) {
            fprintf(stderr, "round %d of seed %" PRIu64 "\n", round, seed);
            break;
        }
    }
    for (size_t i = 0; i < count; i++) {
        live[i].at = (const unsigned char *)nodedb_mem_overflow_read(region, live[i].handle, NULL, NULL);
        CHECK(object_is_whole(region, &live[i]));
        object_bytes += live[i].bytes, used_bytes += live[i].bytes == 0 ? 16 : (live[i].bytes + 15) / 16 * 16;
    }
    CHECK_EQ(stats_of(region).objects, count);
    CHECK_EQ(stats_of(region).object_bytes, object_bytes);
    CHECK_EQ(stats_of(region).used_bytes, used_bytes);
    CHECK(moves + stats_of(region).moves > 0);
    for (size_t i = 0; i < count; i++) CHECK_EQ(nodedb_mem_overflow_free(region, live[i].handle, NULL), NODEDB_OK);
    CHECK_EQ(stats_of(region).holes, 1); /* the row has neither gap nor overlap */
    CHECK_EQ(stats_of(region).largest_hole_bytes, stats_of(region).capacity_bytes);
    nodedb_mem_overflow_close(region);
}

TEST(random_updates_and_compactions_agree_with_a_model) {
    for (uint64_t i = 0; i < (test_long ? 100 : 3); i++) model_campaign(NULL, test_seed + i, SLOW ? 2000 : 12000);
}

/* ---- scratch files, disk blocks, statistics ---------------------------------------------------------------------- */

TEST(scratch_file_leaves_no_name_behind) {
    char command[600];
    nodedb_mem_overflow *region = open_region(0, 0, NULL);
    REQUIRE(region != NULL);
    snprintf(command, sizeof command, "test -z \"$(ls -A '%s')\"", test_dir());
    CHECK_EQ(system(command), 0);
    nodedb_mem_overflow_close(region);
}

/* A real file system whose calls fail when the test says so. */
typedef struct faulty {
    uint64_t room;       /* bytes that allocate still gives; UINT64_MAX: no end */
    int allocate_error, open_error, unlink_error;
    bool no_tmpfile;
    int opens, closes, unlinks;
} faulty;

static int faulty_open(void *ctx, const char *path, int flags, int mode) {
    faulty *f = (faulty *)ctx;
    int fd;
    if (f->open_error != 0) return -f->open_error;
    if (f->no_tmpfile && (flags & O_TMPFILE) == O_TMPFILE) return -EOPNOTSUPP;
    fd = open(path, flags, mode);
    f->opens += fd >= 0;
    return fd < 0 ? -errno : fd;
}
static int faulty_close(void *ctx, int fd) {
    ((faulty *)ctx)->closes++;
    return close(fd) != 0 ? -errno : 0;
}
static int faulty_unlink(void *ctx, const char *path) {
    faulty *f = (faulty *)ctx;
    f->unlinks++;
    return f->unlink_error != 0 ? -f->unlink_error : unlink(path) != 0 ? -errno : 0;
}
static int faulty_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    faulty *f = (faulty *)ctx;
    if (f->allocate_error != 0) return -f->allocate_error;
    if (bytes > f->room) return -ENOSPC;
    f->room -= bytes;
    return -posix_fallocate(fd, (off_t)offset, (off_t)bytes);
}

static nodedb_io faulty_io(faulty *f) {
    nodedb_io io;
    memset(&io, 0, sizeof io);
    memset(f, 0, sizeof *f);
    f->room = UINT64_MAX;
    io.open = faulty_open, io.close = faulty_close, io.unlink = faulty_unlink, io.allocate = faulty_allocate,
                 io.ctx = f;
    return io;
}

TEST(full_disk_is_an_error_of_write_and_goes_away_when_there_is_room) {
    static char buffer[3 << 20];
    faulty f;
    nodedb_io io = faulty_io(&f);
    nodedb_mem_overflow *region;
    nodedb_mem_handle first, handle;
    nodedb_mem_overflow_stats before;
    nodedb_error err;
    f.room = 2 * MIB;
    region = open_region(4 * MIB, 64 * MIB, &io);
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 2 * MIB - 100, &first, &err), NODEDB_OK);
    before = stats_of(region);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 3 * MIB, &handle, &err), NODEDB_ERR_DISK_FULL);
    CHECK_EQ(err.sys_errno, ENOSPC);
    CHECK_EQ(err.offset, 2 * MIB);
    CHECK_EQ(handle.bits, 0);
    CHECK_EQ(stats_of(region).used_bytes, before.used_bytes);
    CHECK_EQ(stats_of(region).objects, 1);
    CHECK_EQ(stats_of(region).disk_full, 1);
    CHECK(nodedb_mem_overflow_read(region, first, NULL, NULL) != NULL);
    f.room = 100 * MIB;
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 3 * MIB, &handle, &err), NODEDB_OK);
    f.allocate_error = EIO;
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 3 * MIB, &handle, &err), NODEDB_ERR_IO);
    f.allocate_error = EOPNOTSUPP; /* a file system without it: zeros are written instead */
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, 3 * MIB, &handle, &err), NODEDB_OK);
    nodedb_mem_overflow_close(region);
    CHECK_EQ(f.opens, f.closes);
}

TEST(failures_of_opening_are_errors_and_leak_nothing) {
    faulty f;
    nodedb_io io = faulty_io(&f);
    nodedb_mem_overflow_config config;
    nodedb_error err;
    nodedb_mem_overflow *region;
    char command[600];
    memset(&config, 0, sizeof config);
    CHECK(nodedb_mem_overflow_open(NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.dir = "build/there/is/no/such/directory";
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_IO && err.sys_errno == ENOENT);
    config.dir = test_dir();
    config.initial_bytes = 2 * MIB, config.max_bytes = MIB;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.initial_bytes = 0, config.max_bytes = UINT64_MAX;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.max_bytes = MIB, config.io = io;
    f.open_error = ENOSPC;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_DISK_FULL);
    f.open_error = 0, f.no_tmpfile = true, f.unlink_error = EIO;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_IO);
    CHECK_EQ(f.opens, f.closes);
    snprintf(command, sizeof command, "rm -f '%s'/.nodedb-overflow-*", test_dir());
    CHECK_EQ(system(command), 0);
    f.unlink_error = 0; /* without O_TMPFILE: a name, gone at once */
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    CHECK_EQ(f.unlinks, 2);
    snprintf(command, sizeof command, "test -z \"$(ls -A '%s')\"", test_dir());
    CHECK_EQ(system(command), 0);
    nodedb_mem_overflow_close(region);
}

TEST(trim_gives_disk_blocks_back_and_they_are_allocated_again_before_use) {
    static char buffer[1 << 20];
    faulty f;
    nodedb_io io = faulty_io(&f);
    nodedb_mem_overflow *region = open_region(16 * MIB, 16 * MIB, &io);
    nodedb_mem_handle handles[8], handle;
    nodedb_error err;
    uint64_t bytes = 1;
    int i;
    REQUIRE(region != NULL);
    memset(buffer, 3, sizeof buffer);
    for (i = 0; i < 8; i++) CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &handles[i], &err),
                 NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_trim(region, &bytes, &err), NODEDB_OK);
    CHECK_EQ(bytes, 0);
    for (i = 1; i < 6; i++) CHECK_EQ(nodedb_mem_overflow_free(region, handles[i], &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_trim(region, &bytes, &err), NODEDB_OK);
    CHECK_EQ(bytes, 5 * MIB);
    CHECK_EQ(stats_of(region).disk_bytes, 3 * MIB);
    f.room = 0;
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &handle, &err), NODEDB_ERR_DISK_FULL);
    f.room = UINT64_MAX;
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &handle, &err), NODEDB_OK);
    CHECK_EQ(memcmp(nodedb_mem_overflow_read(region, handle, NULL, NULL), buffer, sizeof buffer), 0);
    CHECK_EQ(memcmp(nodedb_mem_overflow_read(region, handles[0], NULL, NULL), buffer, sizeof buffer), 0);
    CHECK_EQ(memcmp(nodedb_mem_overflow_read(region, handles[6], NULL, NULL), buffer, sizeof buffer), 0);
    CHECK_EQ(stats_of(region).disk_bytes, 4 * MIB);
    nodedb_mem_overflow_close(region);
}

TEST(trim_does_not_touch_a_granule_that_an_object_shares) {
    static char buffer[3 << 19], expected[3 << 19];
    nodedb_mem_overflow *region = open_region(8 * MIB, 8 * MIB, NULL);
    nodedb_mem_handle left, middle, right;
    uint64_t bytes = 0;
    REQUIRE(region != NULL);
    memset(expected, 9, sizeof expected);
    memset(buffer, 9, sizeof buffer);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &left, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &middle, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &right, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_free(region, middle, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_trim(region, &bytes, NULL), NODEDB_OK);
    CHECK_EQ(bytes, MIB); /* of 1.5 .. 3 MiB only 2 .. 3 is a whole granule */
    CHECK_EQ(memcmp(nodedb_mem_overflow_read(region, left, NULL, NULL), expected, sizeof expected), 0);
    CHECK_EQ(memcmp(nodedb_mem_overflow_read(region, right, NULL, NULL), expected, sizeof expected), 0);
    nodedb_mem_overflow_close(region);
}

TEST(table_of_blocks_has_a_limit_and_reaching_it_is_an_error) {
    nodedb_mem_overflow_config config;
    nodedb_mem_overflow *region;
    nodedb_mem_handle handle;
    nodedb_error err;
    int written = 0;
    memset(&config, 0, sizeof config);
    config.dir = test_dir();
    config.max_blocks = 10;
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    while (written < 100 && nodedb_mem_overflow_write(region, "x", 1, &handle, &err) == NODEDB_OK) written++;
    CHECK_EQ(written, 9); /* and the hole behind them */
    CHECK_EQ(err.status, NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "max_blocks");
    nodedb_mem_overflow_close(region);
}

/* One object is freed and one of its size written, over and over, while no block more would be allowed. */
static void reuse_holes_of_full_table(const char *name) {
    nodedb_mem_overflow_config config;
    nodedb_mem_overflow *region;
    nodedb_mem_handle handles[10];
    nodedb_error err;
    const char *text;
    int written = 0;
    memset(&config, 0, sizeof config);
    config.dir = test_dir(), config.name = name;
    config.max_blocks = 10;
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    while (written < 10 && nodedb_mem_overflow_write(region, "x", 1, &handles[written], NULL) == NODEDB_OK) written++;
    CHECK_EQ(written, 9);
    for (int i = 0; i < 8; i++) { /* not the last one, whose place would join the hole behind it */
        CHECK_EQ(nodedb_mem_overflow_free(region, handles[i], NULL), NODEDB_OK);
        CHECK_EQ(nodedb_mem_overflow_write(region, "larger than one unit", 20, &handles[i], NULL), NODEDB_ERR_LIMIT);
        CHECK_EQ(nodedb_mem_overflow_write(region, "y", 1, &handles[i], &err), NODEDB_OK);
        CHECK_EQ(stats_of(region).objects + stats_of(region).holes, 10);
    }
    CHECK_EQ(nodedb_mem_overflow_free(region, handles[3], NULL), NODEDB_OK); /* room for an update of another one */
    CHECK_EQ(nodedb_mem_overflow_update(region, handles[6], "z", 1, &err), NODEDB_OK);
    text = (const char *)nodedb_mem_overflow_read(region, handles[6], NULL, NULL);
    CHECK(text != NULL && *text == 'z');
    nodedb_mem_overflow_close(region);
}

TEST(hole_that_fits_exactly_is_used_when_the_table_of_blocks_is_full) {
    reuse_holes_of_full_table(NULL);
    reuse_holes_of_full_table("full-table");
}

typedef struct watcher {
    nodedb_mem_overflow *region;
    int stop;
} watcher;

static void *watch(void *argument) {
    watcher *w = (watcher *)argument;
    while (__atomic_load_n(&w->stop, __ATOMIC_RELAXED) == 0) CHECK(stats_of(w->region).objects <= 100);
    return NULL;
}

TEST(statistics_of_a_region_are_readable_from_another_thread) {
    nodedb_mem_overflow *region = open_region(MIB, 16 * MIB, NULL);
    nodedb_mem_handle handles[100];
    watcher w;
    pthread_t thread;
    int i, round;
    REQUIRE(region != NULL);
    w.region = region, w.stop = 0;
    CHECK_EQ(pthread_create(&thread, NULL, watch, &w), 0);
    for (round = 0; round < 50; round++) {
        for (i = 0; i < 100; i++) CHECK_EQ(nodedb_mem_overflow_write(region, "abc", 3, &handles[i], NULL), NODEDB_OK);
        for (i = 0; i < 100; i++) CHECK_EQ(nodedb_mem_overflow_free(region, handles[i], NULL), NODEDB_OK);
    }
    __atomic_store_n(&w.stop, 1, __ATOMIC_RELAXED);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    nodedb_mem_overflow_close(region);
}


/* ---- kept files: reopening --------------------------------------------------------------------------------------- */

#define KEPT_NAME "cold.overflow"
#define KEPT_OBJECTS 400

/* An object of a model: its bytes follow from `id`. */
typedef struct kept_object {
    nodedb_mem_handle handle;
    uint64_t id;
    size_t bytes;
} kept_object;

static nodedb_mem_overflow_config kept_config(uint64_t max_bytes, uint32_t max_blocks) {
    nodedb_mem_overflow_config config;
    memset(&config, 0, sizeof config);
    config.dir = test_dir();
    config.name = KEPT_NAME;
    config.initial_bytes = 65536;
    config.max_bytes = max_bytes;
    config.max_blocks = max_blocks;
    return config;
}

static nodedb_mem_overflow *open_kept(uint64_t max_bytes, uint32_t max_blocks) {
    nodedb_mem_overflow_config config = kept_config(max_bytes, max_blocks);
    nodedb_error err;
    nodedb_mem_overflow *region = nodedb_mem_overflow_open(&config, &err);
    if (region == NULL) fprintf(stderr, "%s\n", err.message);
    return region;
}

static void keep_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    (void)level;
    snprintf((char *)ctx, 400, "%s", sentence);
}

static const char *kept_path(void) {
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", test_dir(), KEPT_NAME);
    return path;
}

static void fill_kept(unsigned char *at, const kept_object *o) {
    size_t i;
    for (i = 0; i < o->bytes; i++) at[i] = (unsigned char)(nodedb_mix64(o->id + i / 8) >> i % 8 * 8);
}

static bool is_kept(const unsigned char *at, size_t bytes, const kept_object *o) {
    static __thread unsigned char expected[65536];
    if (at == NULL || bytes != o->bytes || bytes > sizeof expected) return false;
    fill_kept(expected, o);
    return memcmp(at, expected, bytes) == 0;
}

static bool write_kept(nodedb_mem_overflow *region, kept_object *o, uint64_t id, size_t bytes) {
    static unsigned char buffer[65536];
    o->id = id, o->bytes = bytes;
    fill_kept(buffer, o);
    return nodedb_mem_overflow_write(region, buffer, bytes, &o->handle, NULL) == NODEDB_OK;
}

/* How the region answers for an object: 1 it is there and right, 0 gone, -1 damage is reported, -2 wrong bytes. */
static int look_at_kept(nodedb_mem_overflow *region, const kept_object *o) {
    nodedb_error err;
    size_t bytes;
    const unsigned char *at = (const unsigned char *)nodedb_mem_overflow_read(region, o->handle, &bytes, &err);
    if (at != NULL) return is_kept(at, bytes, o) ? 1 : -2;
    return err.status == NODEDB_ERR_NOT_FOUND ? 0 : err.status == NODEDB_ERR_CORRUPT ? -1 : -3;
}

/* Frees all, by stepping through: what is left is one hole. So the row of blocks was without gap and overlap. */
static size_t free_all(nodedb_mem_overflow *region) {
    nodedb_mem_handle handle = {0}, next = {0};
    size_t freed = 0;
    nodedb_status status = nodedb_mem_overflow_next(region, &next, NULL);
    while (status == NODEDB_OK) {
        handle = next;
        status = nodedb_mem_overflow_next(region, &next, NULL);
        CHECK_EQ(nodedb_mem_overflow_free(region, handle, NULL), NODEDB_OK);
        freed++;
    }
    CHECK_EQ(status, NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(next.bits, 0);
    CHECK_EQ(stats_of(region).objects, 0);
    CHECK_EQ(stats_of(region).used_bytes, 0);
    CHECK_EQ(stats_of(region).object_bytes, 0);
    CHECK_EQ(stats_of(region).holes, 1);
    CHECK_EQ(stats_of(region).largest_hole_bytes, stats_of(region).capacity_bytes);
    return freed;
}

TEST(kept_objects_are_there_again_under_their_handles_and_freed_ones_are_not) {
    static kept_object live[KEPT_OBJECTS], gone[KEPT_OBJECTS];
    uint64_t random = test_seed, id = 1;
    size_t count = 0, freed = 0, i;
    int round, step;
    for (round = 0; round < 8; round++) {
        nodedb_mem_overflow *region = open_kept(16 * MIB, 0);
        REQUIRE(region != NULL);
        CHECK_EQ(stats_of(region).objects, count);
        CHECK_EQ(stats_of(region).reopened, count);
        CHECK_EQ(stats_of(region).lost, 0);
        for (i = 0; i < count; i++) CHECK_EQ(look_at_kept(region, &live[i]), 1);
        for (i = 0; i < freed; i++) CHECK_EQ(look_at_kept(region, &gone[i]), 0);
        for (step = 0; step < 600; step++) {
            uint64_t r = nodedb_mix64(random++);
            if (count < KEPT_OBJECTS && (count == 0 || r % 3 != 0)) {
                size_t most = r % 7 == 0 ? 60000 : 300;
                CHECK(write_kept(region, &live[count], id++ << 32, nodedb_mix64(random++) % most));
                count++;
            } else {
                i = (size_t)(r >> 8) % count;
                CHECK_EQ(nodedb_mem_overflow_free(region, live[i].handle, NULL), NODEDB_OK);
                gone[freed++ % KEPT_OBJECTS] = live[i];
                live[i] = live[--count];
            }
        }
        if (freed > KEPT_OBJECTS) freed = KEPT_OBJECTS;
        if (round % 2 == 1) CHECK_EQ(nodedb_mem_overflow_trim(region, NULL, NULL), NODEDB_OK);
        for (i = 0; i < count; i++) CHECK_EQ(look_at_kept(region, &live[i]), 1);
        for (i = 0; i < count; i++) CHECK_EQ(nodedb_mem_overflow_verify(region, live[i].handle, NULL), NODEDB_OK);
        if (round == 7) {
            CHECK_EQ(free_all(region), count);
            CHECK_EQ(nodedb_mem_overflow_trim(region, NULL, NULL), NODEDB_OK);
            CHECK(stats_of(region).disk_bytes == 0);
        }
        nodedb_mem_overflow_close(region);
    }
}

TEST(objects_can_be_stepped_through_and_each_is_met_once) {
    nodedb_mem_overflow *region = open_kept(MIB, 0);
    kept_object objects[50];
    nodedb_mem_handle handle = {0};
    int met[50] = {0}, i, steps = 0;
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_next(region, &handle, NULL), NODEDB_ERR_NOT_FOUND);
    for (i = 0; i < 50; i++) CHECK(write_kept(region, &objects[i], (uint64_t)i << 32, 40));
    for (i = 0; i < 50; i += 3) CHECK_EQ(nodedb_mem_overflow_free(region, objects[i].handle, NULL), NODEDB_OK);
    while (nodedb_mem_overflow_next(region, &handle, NULL) == NODEDB_OK)
        for (steps++, i = 0; i < 50; i++) met[i] += objects[i].handle.bits == handle.bits;
    for (i = 0; i < 50; i++) CHECK_EQ(met[i], i % 3 != 0);
    CHECK_EQ(steps, 33);
    CHECK_EQ(nodedb_mem_overflow_next(NULL, &handle, NULL), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_overflow_next(region, NULL, NULL), NODEDB_ERR_INVALID);
    nodedb_mem_overflow_close(region);
}

TEST(kept_file_is_owned_by_one_and_bound_to_what_it_was_made_with) {
    nodedb_mem_overflow *region = open_kept(4 * MIB, 1000), *other;
    nodedb_mem_overflow_config config = kept_config(4 * MIB, 1000);
    static unsigned char buffer[1 << 20];
    nodedb_mem_handle handle;
    nodedb_error err;
    REQUIRE(region != NULL);
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_LOCKED);
    CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &handle, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_sync(region, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_sync(NULL, &err), NODEDB_ERR_INVALID);
    nodedb_mem_overflow_close(region);
    config.max_blocks = 2000;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "max_blocks of 1000");
    config.max_blocks = 0, config.max_bytes = MIB / 2;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_LIMIT);
    config.name = "a/b";
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.name = "..";
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.name = KEPT_NAME, config.max_bytes = 64 * MIB; /* more than before is allowed */
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    CHECK_EQ(stats_of(region).max_bytes, 64 * MIB);
    CHECK(nodedb_mem_overflow_read(region, handle, NULL, &err) != NULL);
    config.name = ""; /* scratch */
    other = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(other != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(other, buffer, 10, &handle, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_sync(other, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_EQ(nodedb_mem_overflow_verify(other, handle, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_EQ(nodedb_mem_overflow_verify(NULL, handle, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_overflow_free(other, handle, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_verify(other, handle, &err), NODEDB_ERR_NOT_FOUND);
    nodedb_mem_overflow_close(other);
    nodedb_mem_overflow_close(region);
}

/* Whole files in memory, to be changed and put back. */
/* ---- kept files: damage ------------------------------------------------------------------------------------------ */

static unsigned char *load_file(size_t *bytes) {
    FILE *f = fopen(kept_path(), "rb");
    unsigned char *data;
    long end;
    if (f == NULL || fseek(f, 0, SEEK_END) != 0 || (end = ftell(f)) < 0 || fseek(f, 0, SEEK_SET) != 0) abort();
    data = (unsigned char *)malloc((size_t)end + 1);
    if (data == NULL || fread(data, 1, (size_t)end, f) != (size_t)end) abort();
    fclose(f);
    *bytes = (size_t)end;
    return data;
}

static void store_file(const unsigned char *data, size_t bytes) {
    FILE *f = fopen(kept_path(), "wb");
    if (f == NULL || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0) abort();
}

TEST(file_that_is_not_ours_is_refused_and_left_as_it_is) {
    static unsigned char garbage[20000], *after;
    static const size_t sizes[] = {1, 5, 8, 100, 4096, 8192, 8193, 20000};
    nodedb_mem_overflow_config config = kept_config(MIB, 0);
    nodedb_error err;
    size_t i, k, bytes;
    for (i = 0; i < sizeof garbage; i++) garbage[i] = (unsigned char)nodedb_mix64(test_seed + i);
    for (k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        store_file(garbage, sizes[k]);
        CHECK(nodedb_mem_overflow_open(&config, &err) == NULL);
        CHECK_EQ(err.status, NODEDB_ERR_CORRUPT);
        after = load_file(&bytes);
        CHECK(bytes == sizes[k] && memcmp(after, garbage, bytes) == 0);
        free(after);
    }
    store_file((const unsigned char *)"NDBO", 4);
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    (void)unlink(kept_path());
    CHECK_EQ(mkfifo(kept_path(), 0600), 0);
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    (void)unlink(kept_path());
    memset(garbage, 0, 8192); /* a creation that a power cut ended */
    for (i = 0; i < 3; i++) {
        nodedb_mem_overflow *region;
        if (i == 1) memcpy(garbage, "NDBOVFL", 8);
        store_file(garbage, i == 2 ? 0 : 8192);
        region = nodedb_mem_overflow_open(&config, &err);
        CHECK(region != NULL);
        nodedb_mem_overflow_close(region);
    }
}

/* A file with 12 objects in a table of 32 slots: [0] .. [11]; every third has been freed. */
static unsigned char *small_kept_file(kept_object *objects, size_t *bytes) {
    nodedb_mem_overflow *region;
    int i;
    (void)unlink(kept_path());
    region = open_kept(65536, 30);
    if (region == NULL) abort();
    for (i = 0; i < 12; i++) CHECK(write_kept(region, &objects[i], (uint64_t)(i + 1) << 32, (size_t)i * 37));
    for (i = 0; i < 12; i += 3) CHECK_EQ(nodedb_mem_overflow_free(region, objects[i].handle, NULL), NODEDB_OK);
    nodedb_mem_overflow_close(region);
    return load_file(bytes);
}

TEST(every_flipped_bit_is_an_error_or_a_lost_object_and_never_a_wrong_byte) {
    kept_object objects[12], extra;
    size_t bytes, at, header_refused = 0, missing = 0;
    unsigned char *file = small_kept_file(objects, &bytes);
    uint64_t used = 65536 + 16 * 200; /* data begin at 64 KiB, behind header and table; the rest is hole */
    for (at = 0; at < used; at++) {
        int bit, first = (int)(nodedb_mix64(test_seed + at) % 8);
        if (at >= 48 && at < 4096) continue;          /* nobody reads what is behind the header */
        if (at >= 4096 + 48 && at < 8192) continue;
        if (at >= 8192 + 32 * 32 && at < 65536) continue;
        for (bit = test_long ? 0 : first; bit <= (test_long ? 7 : first); bit++) {
            nodedb_mem_overflow_config config = kept_config(65536, 0);
            nodedb_mem_overflow *region;
            nodedb_error err;
            int i, wrong = 0;
            file[at] ^= (unsigned char)(1 << bit);
            store_file(file, bytes);
            region = nodedb_mem_overflow_open(&config, &err);
            if (region == NULL) header_refused++;
            else {
                for (i = 0; i < 12; i++) {
                    int answer = look_at_kept(region, &objects[i]);
                    CHECK(answer > -2);
                    CHECK(i % 3 != 0 || answer == 0);
                    wrong += i % 3 != 0 && answer != 1;
                }
                CHECK(wrong <= 1);
                CHECK(stats_of(region).lost + stats_of(region).damaged >= (uint64_t)wrong);
                missing += (size_t)wrong;
                CHECK(write_kept(region, &extra, UINT64_C(99) << 32, 100));
                CHECK_EQ(look_at_kept(region, &extra), 1);
                (void)free_all(region);
                nodedb_mem_overflow_close(region);
            }
            file[at] ^= (unsigned char)(1 << bit);
        }
    }
    CHECK_EQ(header_refused, 0); /* it is there twice */
    CHECK(missing > 300);
    for (at = 0; at < 48; at++) { /* the same place in both */
        nodedb_mem_overflow_config config = kept_config(65536, 0);
        nodedb_error err;
        file[at] ^= 4, file[4096 + at] ^= 4;
        if (at >= 36 && at < 40) { /* nothing is there */
            file[at] ^= 4, file[4096 + at] ^= 4;
            continue;
        }
        store_file(file, bytes);
        CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
        file[at] ^= 4, file[4096 + at] ^= 4;
    }
    free(file);
}

TEST(file_that_was_cut_off_loses_what_is_gone_and_nothing_else) {
    kept_object objects[12], extra;
    size_t bytes, cut, step = 61;
    unsigned char *file = small_kept_file(objects, &bytes);
    for (cut = 0; cut < bytes; cut += cut < 65536 + 16 * 200 ? step : 100000) {
        nodedb_mem_overflow_config config = kept_config(65536, 0);
        nodedb_mem_overflow *region;
        nodedb_error err;
        int i;
        if (cut > 8192 + 1024 + step && cut < 65536 - step) continue;
        store_file(file, cut);
        region = nodedb_mem_overflow_open(&config, &err);
        if (region == NULL) {
            CHECK_EQ(err.status, NODEDB_ERR_CORRUPT);
            continue;
        }
        for (i = 0; i < 12; i++) {
            int answer = look_at_kept(region, &objects[i]);
            CHECK(answer >= 0 && (i % 3 != 0 || answer == 0));
            if (cut >= 65536 + 16 * 200) CHECK_EQ(answer, i % 3 != 0);
        }
        CHECK(write_kept(region, &extra, UINT64_C(99) << 32, 100));
        CHECK_EQ(look_at_kept(region, &extra), 1);
        (void)free_all(region);
        nodedb_mem_overflow_close(region);
    }
    free(file);
}

/* ---- kept files: power cuts -------------------------------------------------------------------------------------- */

/* A power cut: of the pages that changed since the last sync, some are on the disk and some are not. */
TEST(what_was_synced_survives_a_power_cut_and_what_was_not_is_right_or_reported) {
    static kept_object synced[400], fresh[400], freed_before[400], later[400];
    size_t cuts = test_long ? 2000 : SLOW ? 30 : 150, cut, right = 0, reported = 0;
    for (cut = 0; cut < cuts; cut++) {
        nodedb_mem_overflow *region;
        uint64_t random = nodedb_mix64(test_seed + cut), id = 1;
        size_t count = 0, made = 0, freed = 0, before_bytes, after_bytes, at, i;
        unsigned char *before, *after;
        bool gone[400] = {false}, fresh_gone[400] = {false};
        (void)unlink(kept_path());
        region = open_kept(MIB, 1000);
        REQUIRE(region != NULL);
        for (i = 0; i < 400; i++) { /* the table has several pages */
            CHECK(write_kept(region, &synced[count], id++ << 32, nodedb_mix64(random++) % 2500));
            if (nodedb_mix64(random++) % 3 == 0) {
                CHECK_EQ(nodedb_mem_overflow_free(region, synced[count].handle, NULL), NODEDB_OK);
                freed_before[freed++] = synced[count];
            } else count++;
        }
        CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
        before = load_file(&before_bytes);
        for (i = 0; i < 500; i++) {
            uint64_t r = nodedb_mix64(random++);
            size_t victim = (size_t)(r >> 8) % count;
            if (r % 2 == 0 && made < 400) {
                if (write_kept(region, &fresh[made], id++ << 32, nodedb_mix64(random++) % 2500)) made++;
            } else if (r % 4 == 1 && made > 0) {
                victim = (size_t)(r >> 8) % made;
                if (!fresh_gone[victim])
                    CHECK_EQ(nodedb_mem_overflow_free(region, fresh[victim].handle, NULL), NODEDB_OK);
                fresh_gone[victim] = true;
            } else if (!gone[victim]) {
                CHECK_EQ(nodedb_mem_overflow_free(region, synced[victim].handle, NULL), NODEDB_OK);
                gone[victim] = true;
            }
        }
        after = load_file(&after_bytes);
        nodedb_mem_overflow_close(region);
        CHECK(after_bytes >= before_bytes);
        for (at = 0; at < before_bytes; at += 4096)
            if (nodedb_mix64(random++) % 2 == 0)
                memcpy(after + at, before + at, before_bytes - at < 4096 ? before_bytes - at : 4096);
        for (; at < after_bytes; at += 4096)
            if (nodedb_mix64(random++) % 2 == 0)
                memset(after + at, 0, after_bytes - at < 4096 ? after_bytes - at : 4096);
        store_file(after, after_bytes);
        free(before);
        free(after);
        region = open_kept(MIB, 1000);
        REQUIRE(region != NULL);
        for (i = 0; i < freed; i++) CHECK_EQ(look_at_kept(region, &freed_before[i]), 0);
        for (i = 0; i < count; i++) {
            int answer = look_at_kept(region, &synced[i]);
            CHECK(answer > -2);
            if (!gone[i]) CHECK_EQ(answer, 1);
        }
        for (i = 0; i < made; i++) {
            int answer = look_at_kept(region, &fresh[i]);
            CHECK(answer > -2);
            right += answer == 1, reported += answer != 1;
        }
        (void)free_all(region);
        for (i = 0; i < 400; i++) CHECK(write_kept(region, &later[i], id++ << 32, nodedb_mix64(random++) % 1000));
        for (i = 0; i < 400; i++) CHECK_EQ(look_at_kept(region, &later[i]), 1);
        for (i = 0; i < made; i++) CHECK_EQ(look_at_kept(region, &fresh[i]), 0); /* none names another object */
        for (i = 0; i < count; i++) CHECK_EQ(look_at_kept(region, &synced[i]), 0);
        for (i = 0; i < freed; i++) CHECK_EQ(look_at_kept(region, &freed_before[i]), 0);
        nodedb_mem_overflow_close(region);
        if (test_failures_here > 0) {
            fprintf(stderr, "power cut %zu\n", cut);
            return;
        }
    }
    CHECK(right > cuts && reported > cuts);
}

TEST(random_updates_and_compactions_of_a_kept_region_agree_with_a_model_across_reopenings) {
    for (uint64_t i = 0; i < (test_long ? 50 : 2); i++) model_campaign("model", test_seed + 77 + i, SLOW ? 4000 : 6000);
}

/* A file system whose power is cut at each sync: the pages that are dirty then have reached the disk, or not. What is
 * left is stored beside the real file and must open with every object. */
typedef struct cutting {
    unsigned char *durable;
    size_t durable_bytes;
    uint64_t random;
    kept_object *objects;
    size_t count, cuts;
    bool on;
} cutting;

static void cut_the_power(cutting *c) {
    nodedb_mem_overflow_config config = kept_config(4 * MIB, 4000);
    nodedb_mem_overflow *region;
    char path[600];
    size_t bytes;
    unsigned char *file = load_file(&bytes);
    FILE *f;
    for (size_t at = 0; at < bytes; at += 4096) {
        size_t page = bytes - at < 4096 ? bytes - at : 4096;
        if (nodedb_mix64(c->random++) % 2 == 0) continue; /* it has reached the disk */
        if (at + page <= c->durable_bytes) memcpy(file + at, c->durable + at, page);
        else memset(file + at, 0, page);
    }
    snprintf(path, sizeof path, "%s/cut", test_dir());
    f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(file, 1, bytes, f) == bytes && fclose(f) == 0);
    free(file);
    config.name = "cut";
    region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    for (size_t i = 0; i < c->count; i++) CHECK_EQ(look_at_kept(region, &c->objects[i]), 1);
    CHECK_EQ(stats_of(region).lost, 0);
    nodedb_mem_overflow_close(region);
    c->cuts++;
}

static int cutting_sync(void *ctx, int fd) {
    cutting *c = (cutting *)ctx;
    if (c->on) cut_the_power(c);
    free(c->durable);
    c->durable = load_file(&c->durable_bytes);
    return fdatasync(fd) != 0 ? -errno : 0;
}

TEST(power_cut_in_a_compaction_finds_every_object_at_its_old_place_or_its_new_one) {
    static kept_object objects[1200];
    for (uint64_t n = 0; n < (test_long ? 60 : SLOW ? 1 : 4); n++) {
        nodedb_mem_overflow_config config = kept_config(4 * MIB, 4000);
        nodedb_mem_overflow *region;
        cutting c;
        size_t made = 0;
        memset(&c, 0, sizeof c);
        c.random = nodedb_mix64(test_seed + n), c.objects = objects;
        (void)unlink(kept_path());
        config.io.sync = cutting_sync, config.io.ctx = &c;
        region = nodedb_mem_overflow_open(&config, NULL);
        REQUIRE(region != NULL);
        for (size_t i = 0; i < 1200; i++)
            CHECK(write_kept(region, &objects[i], (uint64_t)(i + 1) << 32, nodedb_mix64(c.random++) % 1500));
        for (size_t i = 0; i < 1200; i++) {
            if (i % 2 == 0) CHECK_EQ(nodedb_mem_overflow_free(region, objects[i].handle, NULL), NODEDB_OK);
            else objects[made++] = objects[i];
        }
        c.count = made;
        CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
        c.on = true;
        for (int calls = 0; calls < 6; calls++) {
            CHECK_EQ(nodedb_mem_overflow_compact(region, 100000, NULL, NULL, NULL, NULL), NODEDB_OK);
            for (int i = 0; i < 50; i++) { /* others take the places that were left */
                kept_object other;
                CHECK(write_kept(region, &other, UINT64_C(9) << 48, 700));
                CHECK_EQ(nodedb_mem_overflow_free(region, other.handle, NULL), NODEDB_OK);
            }
        }
        CHECK(c.cuts >= 8 && stats_of(region).moves > 100);
        c.on = false;
        for (size_t i = 0; i < made; i++) CHECK_EQ(look_at_kept(region, &objects[i]), 1);
        nodedb_mem_overflow_close(region);
        free(c.durable);
    }
}

TEST(of_two_objects_that_claim_one_place_the_one_is_kept_whose_bytes_are_there) {
    int newer;
    for (newer = 0; newer < 2; newer++) {
        nodedb_mem_overflow *region;
        kept_object x, a, b, y;
        unsigned char *before, *after;
        size_t bytes, entry;
        (void)unlink(kept_path());
        region = open_kept(65536, 30);
        REQUIRE(region != NULL);
        CHECK(write_kept(region, &x, UINT64_C(1) << 32, 1000) && write_kept(region, &a, UINT64_C(2) << 32, 1000));
        CHECK(write_kept(region, &y, UINT64_C(3) << 32, 1000));
        before = load_file(&bytes);
        CHECK_EQ(nodedb_mem_overflow_free(region, a.handle, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_mem_overflow_free(region, x.handle, NULL), NODEDB_OK);
        CHECK(write_kept(region, &b, UINT64_C(4) << 32, 2000)); /* in the place of both */
        after = load_file(&bytes);
        nodedb_mem_overflow_close(region);
        CHECK(b.handle.bits >> 38 != a.handle.bits >> 38);
        entry = 8192 + 32 * (size_t)(a.handle.bits >> 38);
        memcpy(after + entry, before + entry, 32); /* that a was freed has not reached the disk */
        if (!newer) memcpy(after + 65536, before + 65536, bytes - 65536); /* nor have the bytes of b */
        store_file(after, bytes);
        region = open_kept(65536, 30);
        REQUIRE(region != NULL);
        CHECK_EQ(look_at_kept(region, &a), !newer);
        CHECK_EQ(look_at_kept(region, &b), newer);
        CHECK_EQ(look_at_kept(region, &y), 1);
        CHECK_EQ(stats_of(region).lost, 1);
        (void)free_all(region);
        nodedb_mem_overflow_close(region);
        free(before);
        free(after);
    }
}

/* ---- kept files: a process that is killed ------------------------------------------------------------------------ */

/* What a child that will be killed has done so far, in shared memory: an object counts when `handle` is stored. */
typedef enum killed_state { KILLED_NONE, KILLED_WRITTEN, KILLED_FREEING_OR_WRITING, KILLED_UPDATING } killed_state;
typedef struct killed {
    kept_object objects[KEPT_OBJECTS], updated[KEPT_OBJECTS]; /* `updated`: what KILLED_UPDATING makes of it */
    uint32_t state[KEPT_OBJECTS];                             /* killed_state */
} killed;

static void work_until_killed(killed *k, uint64_t random, uint64_t id) {
    static unsigned char buffer[65536];
    nodedb_mem_overflow *region = open_kept(4 * MIB, 0);
    if (region == NULL) _exit(1);
    for (uint64_t n = 1;; n++) {
        uint64_t r = nodedb_mix64(random++);
        size_t i = (size_t)(r >> 8) % KEPT_OBJECTS;
        kept_object o = k->objects[i], written;
        if (n % 100 == 0 && nodedb_mem_overflow_compact(region, 50000, NULL, NULL, NULL, NULL) != NODEDB_OK) _exit(4);
        if (k->state[i] == KILLED_WRITTEN && (r >> 40) % 2 == 0) {
            o.id = id++ << 32, o.bytes = r % 500;
            fill_kept(buffer, &o);
            k->updated[i] = o;
            nodedb__store_release(&k->state[i], (uint32_t)KILLED_UPDATING);
            if (nodedb_mem_overflow_update(region, o.handle, buffer, o.bytes, NULL) != NODEDB_OK) _exit(5);
            k->objects[i] = o;
            nodedb__store_release(&k->state[i], (uint32_t)KILLED_WRITTEN);
        } else if (k->state[i] == KILLED_WRITTEN) {
            nodedb__store_release(&k->state[i], (uint32_t)KILLED_FREEING_OR_WRITING);
            if (nodedb_mem_overflow_free(region, o.handle, NULL) != NODEDB_OK) _exit(2);
        } else {
            nodedb__store_release(&k->state[i], (uint32_t)KILLED_FREEING_OR_WRITING);
            if (!write_kept(region, &o, id++ << 32, r % (r % 5 == 0 ? 30000 : 500))) _exit(3);
            nodedb__store_release(&k->objects[i].handle.bits, 0u); /* a kill may come in the middle of the copy */
            written = o, written.handle.bits = 0;
            k->objects[i] = written;
            nodedb__store_release(&k->objects[i].handle.bits, o.handle.bits);
            nodedb__store_release(&k->state[i], (uint32_t)KILLED_WRITTEN);
        }
    }
}

TEST(process_that_is_killed_leaves_every_object_that_it_had_written) {
    killed *k = (killed *)mmap(NULL, sizeof *k, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int kills = test_long ? 300 : SLOW ? 5 : 20, n;
    size_t i, kept = 0, unsure;
    REQUIRE(k != MAP_FAILED);
    (void)test_dir(); /* the children's, too */
    for (n = 0; n < kills; n++) {
        nodedb_mem_overflow *region;
        int status;
        pid_t child = fork();
        if (child == 0) work_until_killed(k, nodedb_mix64(test_seed + (uint64_t)n), (uint64_t)(n + 1) << 20);
        REQUIRE(child > 0);
        usleep((useconds_t)(2000 + nodedb_mix64(test_seed * 31 + (uint64_t)n) % 20000));
        CHECK_EQ(kill(child, SIGKILL), 0);
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFSIGNALED(status));
        region = open_kept(4 * MIB, 0);
        REQUIRE(region != NULL);
        for (i = 0, unsure = 0; i < KEPT_OBJECTS; i++) {
            if (k->state[i] == KILLED_WRITTEN) {
                CHECK_EQ(look_at_kept(region, &k->objects[i]), 1);
                kept++;
            } else if (k->state[i] == KILLED_UPDATING) { /* the old bytes or the new */
                if (look_at_kept(region, &k->objects[i]) != 1) {
                    CHECK_EQ(look_at_kept(region, &k->updated[i]), 1);
                    k->objects[i] = k->updated[i];
                }
                k->state[i] = KILLED_WRITTEN;
            } else if (k->state[i] == KILLED_FREEING_OR_WRITING) { /* done, or not */
                CHECK(look_at_kept(region, &k->objects[i]) >= 0 || k->objects[i].handle.bits == 0);
                if (nodedb_mem_overflow_free(region, k->objects[i].handle, NULL) == NODEDB_OK) unsure++;
                k->state[i] = KILLED_NONE;
            }
        }
        CHECK(unsure <= 1);
        CHECK(stats_of(region).lost <= 1); /* an entry in the middle of being stored */
        CHECK_EQ(stats_of(region).damaged, 0);
        nodedb_mem_overflow_close(region);
    }
    CHECK(kept > 0);
    (void)munmap(k, sizeof *k);
}

/* ---- kept files: failing calls, and file systems that cannot ----------------------------------------------------- */

/* Every call of the file system fails in turn. */
typedef struct failing {
    long call, fail_at; /* -1: never */
    int error;
    int opens, closes, syncs, dir_syncs;
} failing;

static bool fails(failing *f) { return f->call++ == f->fail_at; }
static int failing_open(void *ctx, const char *path, int flags, int mode) {
    failing *f = (failing *)ctx;
    int fd;
    if (fails(f)) return -f->error;
    fd = open(path, flags, mode);
    f->opens += fd >= 0;
    return fd < 0 ? -errno : fd;
}
static int failing_close(void *ctx, int fd) {
    failing *f = (failing *)ctx;
    f->closes++;
    return close(fd) != 0 ? -errno : fails(f) ? -f->error : 0;
}
static int64_t failing_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    if (fails((failing *)ctx)) return -((failing *)ctx)->error;
    n = pread(fd, buffer, bytes > 1000 ? 1000 : bytes, (off_t)offset); /* short, too */
    return n < 0 ? -errno : n;
}
static int64_t failing_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    if (fails((failing *)ctx)) return -((failing *)ctx)->error;
    n = pwrite(fd, buffer, bytes > 1000 ? 1000 : bytes, (off_t)offset);
    return n < 0 ? -errno : n;
}
static int failing_sync(void *ctx, int fd) {
    struct stat st;
    bool dir = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    ((failing *)ctx)->dir_syncs += dir, ((failing *)ctx)->syncs += !dir;
    return fails((failing *)ctx) ? -((failing *)ctx)->error : fsync(fd) != 0 ? -errno : 0;
}
static int no_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    (void)ctx, (void)fd, (void)offset, (void)bytes;
    return -EOPNOTSUPP;
}
static int failing_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    return fails((failing *)ctx) ? -((failing *)ctx)->error : -posix_fallocate(fd, (off_t)offset, (off_t)bytes);
}
static int64_t failing_size(void *ctx, int fd) {
    struct stat st;
    return fails((failing *)ctx) ? -((failing *)ctx)->error : fstat(fd, &st) != 0 ? -errno : (int64_t)st.st_size;
}
static int failing_lock(void *ctx, int fd) {
    return fails((failing *)ctx) ? -((failing *)ctx)->error : nodedb__posix_lock(NULL, fd);
}

static nodedb_mem_overflow_config failing_config(failing *f, long fail_at, int error) {
    nodedb_mem_overflow_config config = kept_config(4 * MIB, 1000);
    memset(f, 0, sizeof *f);
    f->fail_at = fail_at, f->error = error;
    config.io.open = failing_open, config.io.close = failing_close, config.io.pread = failing_pread;
    config.io.pwrite = failing_pwrite, config.io.sync = failing_sync, config.io.allocate = failing_allocate;
    config.io.size = failing_size, config.io.lock = failing_lock, config.io.ctx = f;
    return config;
}

TEST(every_failing_call_of_a_kept_file_is_an_error_and_what_was_synced_stays) {
    static const int errors[] = {EIO, ENOSPC, ENOMEM};
    static unsigned char copy[20000];
    nodedb_mem_overflow_view *view;
    kept_object objects[3], more, moving;
    failing f;
    nodedb_error err;
    uint64_t moves = 0;
    long fail_at, failures = 0;
    int e, i;
    for (e = 0; e < 3; e++)
        for (fail_at = 0; fail_at < 200; fail_at++) { /* making */
            nodedb_mem_overflow_config config = failing_config(&f, fail_at, errors[e]);
            nodedb_mem_overflow *region;
            (void)unlink(kept_path());
            region = nodedb_mem_overflow_open(&config, &err);
            if (region == NULL) {
                CHECK_EQ(err.status, e == 0 ? NODEDB_ERR_IO : e == 1 ? NODEDB_ERR_DISK_FULL : NODEDB_ERR_NO_MEMORY);
                failures++;
            } else nodedb_mem_overflow_close(region);
            CHECK_EQ(f.opens, f.closes);
            region = open_kept(4 * MIB, 1000); /* and then it can be made */
            REQUIRE(region != NULL);
            nodedb_mem_overflow_close(region);
            if (f.call <= fail_at) break;
        }
    CHECK(failures >= 3 * 8);
    (void)unlink(kept_path());
    {
        nodedb_mem_overflow *region = open_kept(4 * MIB, 1000);
        REQUIRE(region != NULL);
        for (i = 0; i < 3; i++) CHECK(write_kept(region, &objects[i], (uint64_t)(i + 1) << 32, 20000));
        nodedb_mem_overflow_close(region);
    }
    for (fail_at = 0, failures = 0; fail_at < 300; fail_at++) { /* reopening, reading, writing, closing */
        nodedb_mem_overflow_config config = failing_config(&f, fail_at, EIO);
        nodedb_mem_overflow *region = nodedb_mem_overflow_open(&config, &err);
        if (region == NULL) {
            CHECK_EQ(err.status, NODEDB_ERR_IO);
            failures++;
        } else {
            for (i = 0; i < 3; i++) {
                int answer = look_at_kept(region, &objects[i]);
                failures += answer != 1;
                CHECK(answer == 1 || answer == -3); /* an error of reading is not damage */
                if (answer != 1) CHECK_EQ(look_at_kept(region, &objects[i]), 1); /* and may pass */
            }
            view = nodedb_mem_overflow_view_open(region, NULL);
            REQUIRE(view != NULL);
            for (i = 0; i < 3; i++) {
                size_t got = 1;
                nodedb_status status = nodedb_mem_overflow_view_copy(view, objects[i].handle, copy, sizeof copy, &got,
                                                                     &err);
                failures += status != NODEDB_OK;
                CHECK(status == NODEDB_OK ? is_kept(copy, got, &objects[i]) : status == NODEDB_ERR_IO);
            }
            nodedb_mem_overflow_view_close(view);
            if (write_kept(region, &more, UINT64_C(9) << 32, 100))
                CHECK_EQ(nodedb_mem_overflow_free(region, more.handle, NULL), NODEDB_OK);
            else failures++;
            fill_kept(copy, &objects[2]);
            failures += nodedb_mem_overflow_update(region, objects[2].handle, copy, objects[2].bytes, NULL) != 0;
            CHECK_EQ(look_at_kept(region, &objects[2]), 1); /* updated or not */
            if (write_kept(region, &more, UINT64_C(10) << 32, 3000) &&
                write_kept(region, &moving, UINT64_C(11) << 32, 2900)) {
                nodedb_status status;
                CHECK_EQ(nodedb_mem_overflow_free(region, more.handle, NULL), NODEDB_OK);
                status = nodedb_mem_overflow_compact(region, 0, NULL, NULL, NULL, &err);
                failures += status != NODEDB_OK;
                CHECK(status == NODEDB_OK || status == NODEDB_ERR_IO);
                moves += stats_of(region).moves;
                CHECK_EQ(look_at_kept(region, &moving), 1);
                for (i = 0; i < 3; i++) CHECK_EQ(look_at_kept(region, &objects[i]), 1);
                CHECK_EQ(nodedb_mem_overflow_free(region, moving.handle, NULL), NODEDB_OK);
            }
            failures += nodedb_mem_overflow_sync(region, NULL) != NODEDB_OK;
            nodedb_mem_overflow_close(region);
        }
        CHECK_EQ(f.opens, f.closes);
        if (f.call <= fail_at) break;
    }
    CHECK(failures > 60 && fail_at > 60 && moves > 20);
}

TEST(kept_region_on_tmpfs_says_that_nothing_is_durable_there_and_refuses_to_sync) {
    nodedb_mem_overflow_config config = kept_config(4 * MIB, 0);
    char dir[64], said[400] = "";
    nodedb_mem_overflow *region;
    struct statfs fs;
    kept_object o;
    nodedb_error err;
    snprintf(dir, sizeof dir, "/dev/shm/nodedb-mem-%ld", (long)getpid());
    if (mkdir(dir, 0700) != 0 || statfs(dir, &fs) != 0 || (unsigned long)fs.f_type != 0x01021994ul) {
        fprintf(stderr, "skipped: /dev/shm is no tmpfs here\n");
        (void)rmdir(dir);
        return;
    }
    config.logger.write = keep_sentence, config.logger.ctx = said, config.dir = dir;
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    CHECK_HAS(said, "loses all");
    CHECK(stats_of(region).in_memory);
    CHECK(write_kept(region, &o, UINT64_C(1) << 32, 1000));
    CHECK_EQ(nodedb_mem_overflow_sync(region, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "tmpfs");
    said[0] = 0;
    nodedb_mem_overflow_close(region);
    CHECK_EQ(said[0], 0); /* it was said when it was opened */
    region = nodedb_mem_overflow_open(&config, &err); /* another process finds it, while the machine runs */
    REQUIRE(region != NULL);
    CHECK_EQ(look_at_kept(region, &o), 1);
    nodedb_mem_overflow_close(region);
    snprintf(said, sizeof said, "%s/%s", dir, KEPT_NAME);
    CHECK_EQ(unlink(said), 0);
    config.name = NULL;
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    CHECK_HAS(said, "stays in memory");
    CHECK(stats_of(region).in_memory);
    nodedb_mem_overflow_close(region);
    CHECK_EQ(rmdir(dir), 0);
    config.dir = test_dir();
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    CHECK(!stats_of(region).in_memory);
    nodedb_mem_overflow_close(region);
}

TEST(file_system_that_cannot_allocate_gets_zeros_and_never_in_place_of_data) {
    static const uint64_t sizes[] = {65536, 1048576, 4194304};
    nodedb_mem_overflow_config config = kept_config(0, 30);
    kept_object objects[3];
    nodedb_mem_overflow *region;
    unsigned char *file;
    size_t bytes, i, k;
    config.io.allocate = no_allocate;
    for (i = 0; i < 3; i++) { /* each time larger: the file ended within a granule */
        config.max_bytes = sizes[i];
        region = nodedb_mem_overflow_open(&config, NULL);
        REQUIRE(region != NULL);
        CHECK(write_kept(region, &objects[i], (uint64_t)(i + 1) << 32, i == 0 ? 50000 : 60000));
        for (k = 0; k <= i; k++) CHECK_EQ(look_at_kept(region, &objects[k]), 1);
        nodedb_mem_overflow_close(region);
    }
    file = load_file(&bytes);
    store_file(file, 8192); /* its table is gone */
    free(file);
    region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    CHECK_EQ(stats_of(region).lost, 32);
    CHECK(write_kept(region, &objects[0], UINT64_C(9) << 32, 50000));
    nodedb_mem_overflow_close(region);
}

TEST(kept_file_is_synced_when_it_is_made_when_asked_and_when_closed) {
    failing f;
    nodedb_mem_overflow_config config = failing_config(&f, -1, 0);
    nodedb_mem_overflow *region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    CHECK_EQ(f.syncs, 1);
    CHECK_EQ(f.dir_syncs, 1);
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
    CHECK_EQ(f.syncs, 2);
    nodedb_mem_overflow_close(region);
    CHECK_EQ(f.syncs, 3);
    region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    CHECK_EQ(f.syncs, 3); /* the name is there already */
    f.fail_at = f.call, f.error = EIO;
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_ERR_IO);
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_ERR_STATE); /* the system would say that all is well */
    nodedb_mem_overflow_close(region);
    CHECK_EQ(f.syncs, 4);
}

/* ---- kept files: after a power cut, generations and slots -------------------------------------------------------- */

TEST(handle_of_an_object_that_a_power_cut_took_never_names_another) {
    kept_object lost, other[20];
    unsigned char *before;
    size_t bytes;
    int i;
    nodedb_mem_overflow *region = open_kept(65536, 30);
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
    before = load_file(&bytes);
    CHECK(write_kept(region, &lost, 7, 100));
    nodedb_mem_overflow_close(region);
    store_file(before, bytes);
    region = open_kept(65536, 30);
    REQUIRE(region != NULL);
    CHECK_EQ(look_at_kept(region, &lost), 0);
    for (i = 0; i < 20; i++) CHECK(write_kept(region, &other[i], (uint64_t)i << 32, 100));
    CHECK_EQ(look_at_kept(region, &lost), 0);
    nodedb_mem_overflow_close(region);
    free(before);
}

TEST(damaged_header_is_repaired_only_when_the_file_has_been_opened) {
    nodedb_mem_overflow_config config = kept_config(4 * MIB, 30);
    nodedb_mem_overflow *region = nodedb_mem_overflow_open(&config, NULL);
    kept_object object;
    unsigned char *file, *after;
    size_t bytes, again;
    nodedb_error err;
    int copy;
    REQUIRE(region != NULL);
    CHECK(write_kept(region, &object, 3, 60000) && write_kept(region, &object, 5, 60000));
    nodedb_mem_overflow_close(region);
    for (copy = 0; copy < 2; copy++) {
        file = load_file(&bytes);
        file[copy * 4096 + 9] ^= 1;
        store_file(file, bytes);
        config.max_bytes = 65536; /* too little: it cannot be opened */
        CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_LIMIT);
        after = load_file(&again);
        CHECK(again == bytes && memcmp(after, file, 8192) == 0);
        config.max_bytes = 4 * MIB;
        region = nodedb_mem_overflow_open(&config, NULL);
        REQUIRE(region != NULL);
        CHECK_EQ(look_at_kept(region, &object), 1);
        nodedb_mem_overflow_close(region);
        free(after);
        after = load_file(&again); /* repaired */
        CHECK(memcmp(after, after + 4096, 48) == 0 && memcmp(after + !copy * 4096, file + !copy * 4096, 48) == 0);
        free(after);
        free(file);
    }
}

/* Old and new table pages that together hold more objects and holes than there are slots. */
TEST(file_with_more_objects_than_slots_after_a_power_cut_still_opens_with_what_was_synced) {
    static kept_object old[490], other[900];
    kept_object last;
    nodedb_mem_overflow *region = open_kept(32 * MIB, 1000);
    unsigned char *before, *after;
    size_t bytes, i, there = 0;
    REQUIRE(region != NULL);
    for (i = 0; i < 490; i++) CHECK(write_kept(region, &old[i], (uint64_t)i << 32, 48));
    CHECK(write_kept(region, &last, 999, 48)); /* so that these do not join what is free behind them */
    for (i = 1; i < 490; i += 2) CHECK_EQ(nodedb_mem_overflow_free(region, old[i].handle, NULL), NODEDB_OK);
    for (i = 1; i < 490; i += 2) CHECK(write_kept(region, &old[i], (uint64_t)i << 32, 16)); /* a hole behind each */
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
    before = load_file(&bytes);
    for (i = 1; i < 490; i++) CHECK_EQ(nodedb_mem_overflow_free(region, old[i].handle, NULL), NODEDB_OK); /* not 0 */
    for (i = 0; i < 900; i++) CHECK(write_kept(region, &other[i], (uint64_t)(1000 + i) << 32, 24000)); /* elsewhere */
    after = load_file(&bytes);
    nodedb_mem_overflow_close(region);
    memcpy(after + 8192, before + 8192, 4 * 4096); /* the first 512 slots as they were */
    store_file(after, bytes);
    free(before);
    free(after);
    region = open_kept(32 * MIB, 1000);
    REQUIRE(region != NULL);
    CHECK_EQ(look_at_kept(region, &old[0]), 1); /* synced, and never freed */
    CHECK_EQ(look_at_kept(region, &last), 1);
    for (i = 1; i < 490; i++) CHECK(look_at_kept(region, &old[i]) >= -1);
    for (i = 0; i < 900; i++) {
        int answer = look_at_kept(region, &other[i]);
        CHECK(answer >= -1);
        there += answer == 1;
    }
    CHECK(there > 0 && stats_of(region).lost > 0);
    (void)free_all(region);
    nodedb_mem_overflow_close(region);
}

/* A part of the table that the header does not know of, after one power cut, must not come to life with the next. */
TEST(entries_behind_the_slots_in_use_do_not_come_back_after_another_power_cut) {
    enum { FIRST = 4000, MORE = 1000 };
    const size_t second_slab = 8192 + 4096 * 32;
    static kept_object first[FIRST], more[MORE], big;
    nodedb_mem_overflow *region = open_kept(MIB, 9000);
    unsigned char *before, *after;
    size_t bytes, old_bytes, i, gone = 0;
    REQUIRE(region != NULL);
    for (i = 0; i < FIRST; i++) CHECK(write_kept(region, &first[i], (uint64_t)i << 32, 16));
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
    before = load_file(&old_bytes);
    for (i = 0; i < MORE; i++) CHECK(write_kept(region, &more[i], (uint64_t)i << 32, 16)); /* most in a second slab */
    after = load_file(&bytes);
    nodedb_mem_overflow_close(region);
    memcpy(after, before, second_slab); /* the first cut: header and first slab are old */
    store_file(after, bytes);
    free(before);
    free(after);
    region = open_kept(MIB, 9000);
    REQUIRE(region != NULL);
    CHECK_EQ(stats_of(region).reopened, FIRST);
    for (i = 0; i < MORE; i++) CHECK_EQ(nodedb_mem_overflow_free(region, first[i].handle, NULL), NODEDB_OK);
    CHECK(write_kept(region, &big, UINT64_C(77) << 40, 16 * MORE)); /* in their place */
    for (i = 0; i < MORE; i++) CHECK(write_kept(region, &more[i], (uint64_t)i << 32, 16)); /* in the first slab */
    CHECK_EQ(nodedb_mem_overflow_sync(region, NULL), NODEDB_OK);
    before = load_file(&old_bytes);
    for (i = 0; i < FIRST; i++) CHECK(write_kept(region, &first[0], UINT64_C(5) << 40, 16)); /* the second slab again */
    after = load_file(&bytes);
    nodedb_mem_overflow_close(region);
    memcpy(before, after, 8192); /* the second cut: only the header is new */
    store_file(before, old_bytes);
    free(before);
    free(after);
    region = open_kept(MIB, 9000);
    REQUIRE(region != NULL);
    for (i = MORE; i < FIRST; i++) gone += look_at_kept(region, &first[i]) != 1;
    for (i = 0; i < MORE; i++) gone += look_at_kept(region, &more[i]) != 1;
    CHECK_EQ(gone, 0);
    CHECK_EQ(look_at_kept(region, &big), 1);
    nodedb_mem_overflow_close(region);
}

TEST(forged_number_of_the_last_change_costs_no_object_that_is_written_later) {
    kept_object objects[12], more;
    size_t bytes;
    unsigned char *file = small_kept_file(objects, &bytes);
    uint32_t slot = (uint32_t)(objects[1].handle.bits >> 38);
    unsigned char *entry = file + 8192 + 32 * (size_t)slot;
    nodedb_mem_overflow *region;
    int round;
    nodedb_put_u64(entry + 24, (UINT64_C(1) << 62) - 1);
    nodedb_put_u32(entry, nodedb_crc32c(slot, entry + 4, 28));
    store_file(file, bytes);
    free(file);
    for (round = 0; round < 2; round++) {
        region = open_kept(65536, 0);
        REQUIRE(region != NULL);
        CHECK_EQ(stats_of(region).lost, 0);
        CHECK_EQ(look_at_kept(region, &objects[1]), 1);
        if (round == 1) CHECK_EQ(look_at_kept(region, &more), 1);
        else CHECK(write_kept(region, &more, UINT64_C(9) << 40, 100));
        nodedb_mem_overflow_close(region);
    }
}

TEST(slot_whose_entry_was_lost_twice_never_gives_a_handle_twice) {
    nodedb_mem_handle handles[4];
    int i, k;
    for (i = 0; i < 4; i++) {
        nodedb_mem_overflow *region = open_kept(65536, 30);
        unsigned char *file;
        size_t bytes;
        REQUIRE(region != NULL);
        CHECK_EQ(stats_of(region).lost, i > 0);
        CHECK_EQ(nodedb_mem_overflow_write(region, "abc", 3, &handles[i], NULL), NODEDB_OK);
        for (k = 0; k < i; k++) CHECK(handles[k].bits != handles[i].bits);
        nodedb_mem_overflow_close(region);
        file = load_file(&bytes);
        file[8192 + 32 * (handles[i].bits >> 38) + 9] ^= 1;
        store_file(file, bytes);
        free(file);
    }
}

/* ---- kept files: memory and disk blocks -------------------------------------------------------------------------- */

TEST(reopening_and_viewing_survive_every_refusal_of_the_allocator) {
    kept_object object;
    long refuse;
    nodedb_mem_overflow *region = open_kept(MIB, 0);
    REQUIRE(region != NULL);
    CHECK(write_kept(region, &object, 7, 500));
    nodedb_mem_overflow_close(region);
    for (refuse = 0; refuse < 10; refuse++) {
        nodedb_mem_overflow_config config = kept_config(MIB, 0);
        nodedb_mem_overflow_view *view;
        nodedb_error err;
        refusing c;
        config.allocator = refusing_allocator(&c, refuse);
        region = nodedb_mem_overflow_open(&config, &err);
        if (region == NULL) CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY);
        else {
            CHECK_EQ(look_at_kept(region, &object), 1);
            view = nodedb_mem_overflow_view_open(region, &err);
            CHECK(view != NULL || err.status == NODEDB_ERR_NO_MEMORY);
            nodedb_mem_overflow_view_close(view);
        }
        nodedb_mem_overflow_close(region);
        CHECK_EQ(c.live, 0);
        if (c.calls <= refuse) break;
    }
    CHECK_EQ(refuse, 6); /* region, slab table, granules, order, slab, view */
}

TEST(full_disk_at_the_making_of_a_kept_file_is_an_error_and_goes_away) {
    faulty f;
    nodedb_mem_overflow_config config = kept_config(64 * MIB, 20000);
    nodedb_mem_overflow *region;
    nodedb_mem_handle handle;
    nodedb_error err;
    int written = 0;
    config.io = faulty_io(&f);
    f.room = 1000;
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL && err.status == NODEDB_ERR_DISK_FULL);
    f.room = MIB + 3 * 65536 + 8192; /* one granule, one part of the table, the headers */
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    while (written < 10000 && nodedb_mem_overflow_write(region, "x", 1, &handle, &err) == NODEDB_OK) written++;
    CHECK_EQ(err.status, NODEDB_ERR_DISK_FULL);
    CHECK_EQ(written, 4093);  /* slots 1 to 4095, but the hole's and one to spare */
    f.room = UINT64_MAX;
    CHECK_EQ(nodedb_mem_overflow_write(region, "x", 1, &handle, &err), NODEDB_OK);
    nodedb_mem_overflow_close(region);
    CHECK_EQ(f.opens, f.closes);
}

TEST(reopening_gives_free_disk_blocks_back_and_makes_sure_of_the_others) {
    static unsigned char buffer[3 << 20];
    nodedb_mem_overflow *region = open_kept(32 * MIB, 0);
    nodedb_mem_overflow_config config = kept_config(32 * MIB, 0);
    nodedb_mem_handle handles[3];
    struct stat before, after;
    char command[1400];
    faulty f;
    int i;
    REQUIRE(region != NULL);
    for (i = 0; i < 3; i++)
        CHECK_EQ(nodedb_mem_overflow_write(region, buffer, sizeof buffer, &handles[i], NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_free(region, handles[1], NULL), NODEDB_OK);
    CHECK_EQ(stat(kept_path(), &before), 0);
    nodedb_mem_overflow_close(region);
    region = open_kept(32 * MIB, 0);
    REQUIRE(region != NULL);
    CHECK_EQ(stat(kept_path(), &after), 0);
    CHECK((before.st_blocks - after.st_blocks) * 512 >= (long long)(3 * MIB - 65536)); /* extents take blocks, too */
    CHECK_EQ(stats_of(region).disk_bytes, 6 * MIB);
    nodedb_mem_overflow_close(region);
    snprintf(command, sizeof command, "cd '%s' && cp --sparse=always %s copy && mv copy %s", test_dir(), KEPT_NAME,
             KEPT_NAME);
    CHECK_EQ(system(command), 0); /* zeros are holes now: without disk blocks a store on a full disk would be SIGBUS */
    config.io = faulty_io(&f);
    f.room = 2 * MIB;
    CHECK(nodedb_mem_overflow_open(&config, NULL) == NULL);
    f.room = UINT64_MAX;
    region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    CHECK_EQ(memcmp(nodedb_mem_overflow_read(region, handles[2], NULL, NULL), buffer, sizeof buffer), 0);
    CHECK_EQ(stat(kept_path(), &after), 0);
    CHECK(after.st_blocks * 512 >= (long long)(6 * MIB));
    nodedb_mem_overflow_close(region);
}

/* ---- views ------------------------------------------------------------------------------------------------------- */

TEST(view_reads_what_the_owner_wrote_and_nothing_that_he_freed) {
    int kept;
    for (kept = 0; kept < 2; kept++) {
        nodedb_mem_overflow *region = kept ? open_kept(8 * MIB, 0) : open_region(65536, 8 * MIB, NULL);
        nodedb_mem_overflow_view *view;
        nodedb_mem_handle none = {0}, forged = {UINT64_MAX};
        kept_object a, b;
        nodedb_error err;
        unsigned char buffer[60000];
        const void *at;
        size_t bytes, i;
        REQUIRE(region != NULL);
        view = nodedb_mem_overflow_view_open(region, &err);
        REQUIRE(view != NULL);
        CHECK(write_kept(region, &a, 1, 1000) && write_kept(region, &b, 2, 0));
        at = nodedb_mem_overflow_view_read(view, a.handle, &bytes, &err);
        CHECK(is_kept((const unsigned char *)at, bytes, &a));
        CHECK_EQ(nodedb_mem_overflow_view_copy(view, a.handle, buffer, sizeof buffer, &bytes, &err), NODEDB_OK);
        CHECK(is_kept(buffer, bytes, &a));
        CHECK_EQ(nodedb_mem_overflow_view_copy(view, a.handle, buffer, 999, &bytes, &err), NODEDB_ERR_LIMIT);
        CHECK_EQ(bytes, 1000);
        CHECK_EQ(nodedb_mem_overflow_view_copy(view, a.handle, NULL, 2000, &bytes, &err), NODEDB_ERR_INVALID);
        CHECK_EQ(nodedb_mem_overflow_view_copy(view, b.handle, NULL, 0, &bytes, &err), NODEDB_OK);
        CHECK_EQ(bytes, 0);
        CHECK_EQ(nodedb_mem_overflow_free(region, a.handle, NULL), NODEDB_OK);
        CHECK(nodedb_mem_overflow_view_read(view, a.handle, &bytes, &err) == NULL);
        CHECK_EQ(err.status, NODEDB_ERR_NOT_FOUND);
        CHECK_EQ(bytes, 0);
        CHECK_EQ(nodedb_mem_overflow_view_copy(view, a.handle, buffer, 2000, &bytes, &err), NODEDB_ERR_NOT_FOUND);
        CHECK(nodedb_mem_overflow_view_read(view, none, NULL, NULL) == NULL);
        CHECK(nodedb_mem_overflow_view_read(view, forged, NULL, NULL) == NULL);
        for (i = 0; i < 64; i++) {
            forged.bits = b.handle.bits ^ UINT64_C(1) << i;
            CHECK(nodedb_mem_overflow_view_read(view, forged, NULL, NULL) == NULL);
        }
        for (i = 0; i < 100; i++) CHECK(write_kept(region, &a, (uint64_t)i << 32, 50000)); /* it grows */
        at = nodedb_mem_overflow_view_read(view, a.handle, &bytes, &err);
        CHECK(is_kept((const unsigned char *)at, bytes, &a));
        nodedb_mem_overflow_close(region); /* the view goes on */
        CHECK(is_kept((const unsigned char *)at, bytes, &a));
        CHECK_EQ(nodedb_mem_overflow_view_copy(view, a.handle, buffer, sizeof buffer, &bytes, &err), NODEDB_OK);
        CHECK(is_kept(buffer, bytes, &a));
        nodedb_mem_overflow_view_close(view);
        nodedb_mem_overflow_view_close(NULL);
        CHECK(nodedb_mem_overflow_view_open(NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
        CHECK(nodedb_mem_overflow_view_read(NULL, none, NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    }
}

TEST(nobody_can_write_through_a_view) {
    nodedb_mem_overflow *region = open_region(0, 0, NULL);
    nodedb_mem_overflow_view *view;
    kept_object o;
    const char *at;
    pid_t child;
    int status = 0;
    REQUIRE(region != NULL);
    CHECK(write_kept(region, &o, 1, 100));
    view = nodedb_mem_overflow_view_open(region, NULL);
    REQUIRE(view != NULL);
    at = (const char *)nodedb_mem_overflow_view_read(view, o.handle, NULL, NULL);
    REQUIRE(at != NULL);
    child = fork();
    if (child == 0) {
        (void)signal(SIGSEGV, SIG_DFL);
        *(volatile char *)(uintptr_t)at = 1;
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    nodedb_mem_overflow_view_close(view);
    nodedb_mem_overflow_close(region);
}

TEST(view_of_a_reopened_file_checks_what_the_owner_has_not_read_yet) {
    nodedb_mem_overflow *region = open_kept(MIB, 30);
    nodedb_mem_overflow_view *view;
    kept_object a, b;
    nodedb_error err;
    unsigned char *file, buffer[3000];
    size_t bytes, at;
    REQUIRE(region != NULL);
    CHECK(write_kept(region, &a, UINT64_C(1) << 32, 2000) && write_kept(region, &b, UINT64_C(2) << 32, 3000));
    nodedb_mem_overflow_close(region);
    file = load_file(&bytes);
    at = 65536 + 2000 + 1500; /* within b */
    file[at] ^= 16;
    store_file(file, bytes);
    region = open_kept(MIB, 0);
    REQUIRE(region != NULL);
    view = nodedb_mem_overflow_view_open(region, NULL);
    REQUIRE(view != NULL);
    CHECK(nodedb_mem_overflow_view_read(view, a.handle, &bytes, &err) != NULL);
    CHECK(nodedb_mem_overflow_view_read(view, b.handle, &bytes, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_CORRUPT);
    CHECK_EQ(err.offset, 65536 + 2000);
    CHECK_EQ(nodedb_mem_overflow_view_copy(view, b.handle, buffer, sizeof buffer, NULL, &err), NODEDB_ERR_CORRUPT);
    CHECK_EQ(stats_of(region).damaged, 2);
    CHECK_EQ(look_at_kept(region, &b), -1);
    CHECK_EQ(nodedb_mem_overflow_verify(region, a.handle, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_verify(region, b.handle, &err), NODEDB_ERR_CORRUPT);
    CHECK_EQ(nodedb_mem_overflow_free(region, b.handle, &err), NODEDB_OK); /* its place can be used again */
    CHECK(write_kept(region, &b, UINT64_C(3) << 32, 3000));
    CHECK_EQ(look_at_kept(region, &b), 1);
    nodedb_mem_overflow_view_close(view);
    nodedb_mem_overflow_close(region);
    free(file);
}

/* The owner writes and frees without end; readers copy by handles that he publishes, while they may be freed. */
#define VIEWED 64
typedef struct viewing {
    nodedb_mem_overflow *region;
    uint64_t published[VIEWED]; /* handle bits */
    int stop;
    size_t copied, stale, wrong;
} viewing;

static void *view_thread(void *argument) {
    viewing *v = (viewing *)argument;
    nodedb_mem_overflow_view *view = nodedb_mem_overflow_view_open(v->region, NULL);
    unsigned char buffer[512];
    size_t copied = 0, stale = 0, wrong = 0, bytes, i, k;
    if (view == NULL) abort();
    for (i = 0; __atomic_load_n(&v->stop, __ATOMIC_RELAXED) == 0; i = (i + 1) % VIEWED) {
        nodedb_mem_handle handle;
        nodedb_status status;
        handle.bits = nodedb__load_acquire(&v->published[i]);
        status = nodedb_mem_overflow_view_copy(view, handle, buffer, sizeof buffer, &bytes, NULL);
        if (status == NODEDB_ERR_NOT_FOUND || status == NODEDB_ERR_AGAIN) stale++;
        else if (status != NODEDB_OK || bytes < 8) wrong++;
        else { /* the first word is told in all others, and with it the length */
            uint64_t first, word;
            memcpy(&first, buffer, 8);
            wrong += bytes != 8 + first % 60 * 8;
            for (k = 8; k + 8 <= bytes; k += 8) {
                memcpy(&word, buffer + k, 8);
                wrong += word != first;
            }
            copied++;
        }
    }
    nodedb_mem_overflow_view_close(view);
    (void)__atomic_fetch_add(&v->copied, copied, __ATOMIC_RELAXED);
    (void)__atomic_fetch_add(&v->stale, stale, __ATOMIC_RELAXED);
    (void)__atomic_fetch_add(&v->wrong, wrong, __ATOMIC_RELAXED);
    return NULL;
}

TEST(copy_through_a_view_is_whole_or_stale_while_the_owner_writes_and_frees) {
    static viewing v;
    pthread_t threads[2];
    uint64_t object[64], random = test_seed;
    nodedb_mem_handle handles[VIEWED];
    long rounds = test_long ? 3000000 : SLOW ? 30000 : 300000, n;
    size_t i;
    memset(&v, 0, sizeof v);
    v.region = open_region(65536, 65536, NULL); /* small, so that places are used again at once */
    REQUIRE(v.region != NULL);
    memset(handles, 0, sizeof handles);
    for (i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, view_thread, &v), 0);
    for (n = 0; n < rounds; n++) {
        uint64_t id = nodedb_mix64(random++);
        size_t words = 1 + (size_t)(id % 60);
        nodedb_mem_handle old;
        i = (size_t)(id >> 32) % VIEWED;
        old = handles[i];
        if (old.bits != 0) CHECK_EQ(nodedb_mem_overflow_free(v.region, old, NULL), NODEDB_OK);
        for (size_t k = 0; k < words; k++) object[k] = id;
        CHECK_EQ(nodedb_mem_overflow_write(v.region, object, words * 8, &handles[i], NULL), NODEDB_OK);
        nodedb__store_release(&v.published[i], handles[i].bits);
        if (n % 1000 == 0) usleep(10); /* on one CPU, too, the readers get in between */
    }
    __atomic_store_n(&v.stop, 1, __ATOMIC_RELAXED);
    for (i = 0; i < 2; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(v.wrong, 0);
    CHECK(v.copied > 0);
    nodedb_mem_overflow_close(v.region);
}

TEST(copy_through_a_view_is_never_a_mixture_while_the_owner_updates_and_compacts) {
    static viewing v;
    pthread_t threads[2];
    uint64_t object[64], random = test_seed;
    nodedb_mem_handle handles[VIEWED];
    long rounds = test_long ? 2000000 : SLOW ? 20000 : 200000, n;
    memset(&v, 0, sizeof v);
    v.region = open_region(65536, 65536, NULL);
    REQUIRE(v.region != NULL);
    memset(handles, 0, sizeof handles);
    for (size_t i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, view_thread, &v), 0);
    for (n = 0; n < rounds; n++) {
        uint64_t id = nodedb_mix64(random++);
        size_t words = 1 + (size_t)(id % 60), i = (size_t)(id >> 32) % VIEWED;
        for (size_t k = 0; k < words; k++) object[k] = id;
        if (handles[i].bits != 0 && id >> 60 == 0) {
            CHECK_EQ(nodedb_mem_overflow_free(v.region, handles[i], NULL), NODEDB_OK);
            handles[i].bits = 0;
        }
        if (handles[i].bits == 0) {
            CHECK_EQ(nodedb_mem_overflow_write(v.region, object, words * 8, &handles[i], NULL), NODEDB_OK);
            nodedb__store_release(&v.published[i], handles[i].bits);
        } else CHECK_EQ(nodedb_mem_overflow_update(v.region, handles[i], object, words * 8, NULL), NODEDB_OK);
        if (id >> 62 == 0) CHECK_EQ(nodedb_mem_overflow_compact(v.region, 2000, NULL, NULL, NULL, NULL), NODEDB_OK);
        if (n % 1000 == 0) usleep(10); /* on one CPU, too, the readers get in between */
    }
    __atomic_store_n(&v.stop, 1, __ATOMIC_RELAXED);
    for (size_t i = 0; i < 2; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(v.wrong, 0);
    CHECK(v.copied > 0 && stats_of(v.region).moves > 0);
    nodedb_mem_overflow_close(v.region);
}

/* The owner updates the object in the middle of a view's check, once; the view reads something that never was. */
typedef struct meddling {
    nodedb_mem_overflow *region;
    nodedb_mem_handle handle;
    int left;
} meddling;

static int64_t meddling_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    meddling *m = (meddling *)ctx;
    ssize_t n = pread(fd, buffer, bytes, (off_t)offset);
    if (m->region != NULL && m->left-- == 1) {
        CHECK_EQ(nodedb_mem_overflow_update(m->region, m->handle, "new", 3, NULL), NODEDB_OK);
        if (n > 0) ((char *)buffer)[0] ^= 1;
    }
    return n < 0 ? -errno : n;
}

TEST(view_that_succeeds_at_its_second_try_reports_no_error) {
    nodedb_mem_overflow_config config = kept_config(MIB, 0);
    nodedb_mem_overflow *region = nodedb_mem_overflow_open(&config, NULL);
    nodedb_mem_overflow_view *view;
    nodedb_error err;
    meddling m;
    char buffer[16];
    size_t bytes;
    REQUIRE(region != NULL);
    memset(&m, 0, sizeof m);
    CHECK_EQ(nodedb_mem_overflow_write(region, "old", 3, &m.handle, NULL), NODEDB_OK);
    nodedb_mem_overflow_close(region);
    config.io = nodedb__io_or_posix(NULL);
    config.io.pread = meddling_pread, config.io.ctx = &m;
    region = nodedb_mem_overflow_open(&config, NULL);
    REQUIRE(region != NULL);
    view = nodedb_mem_overflow_view_open(region, NULL);
    REQUIRE(view != NULL);
    memset(&err, 0, sizeof err);
    m.region = region, m.left = 1;
    CHECK_EQ(nodedb_mem_overflow_view_copy(view, m.handle, buffer, sizeof buffer, &bytes, &err), NODEDB_OK);
    CHECK(bytes == 3 && memcmp(buffer, "new", 3) == 0);
    CHECK(err.status == NODEDB_OK && err.message[0] == 0);
    CHECK_EQ(stats_of(region).damaged, 0);
    nodedb_mem_overflow_view_close(view);
    nodedb_mem_overflow_close(region);
    (void)unlink(kept_path());
}

TEST(compaction_of_a_damaged_object_leaves_it_and_counts_nothing) {
    nodedb_mem_overflow *region = open_kept(4 * MIB, 0);
    nodedb_mem_handle first, second;
    unsigned char *data;
    const char *text = "an object that will be damaged", *found = NULL;
    size_t bytes;
    nodedb_error err;
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, "in front of it: thirty-two bytes", 32, &first, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_write(region, text, 30, &second, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_overflow_free(region, first, NULL), NODEDB_OK);
    nodedb_mem_overflow_close(region);
    data = load_file(&bytes);
    for (size_t i = 0; i + 30 <= bytes && found == NULL; i++)
        if (memcmp(data + i, text, 30) == 0) found = (const char *)data + i, data[i] ^= 1;
    REQUIRE(found != NULL);
    store_file(data, bytes);
    free(data);
    region = open_kept(4 * MIB, 0);
    REQUIRE(region != NULL);
    for (int i = 0; i < 5; i++) CHECK_EQ(nodedb_mem_overflow_compact(region, 0, NULL, NULL, NULL, NULL), NODEDB_OK);
    CHECK_EQ(stats_of(region).moves, 0);
    CHECK_EQ(stats_of(region).damaged, 0);
    CHECK(nodedb_mem_overflow_read(region, second, NULL, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    CHECK_EQ(nodedb_mem_overflow_verify(region, second, NULL), NODEDB_ERR_CORRUPT);
    CHECK_EQ(stats_of(region).damaged, 2);
    nodedb_mem_overflow_close(region);
    (void)unlink(kept_path());
}

TEST_MAIN("mem_overflow")
