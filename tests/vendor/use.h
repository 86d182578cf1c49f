/* What every way of vendoring must be able to do: use those of the five headers that the file included before this
 * one, plainly and for real. C99, and C++ without exceptions. use_all(dir) returns 0 if every result was right, and
 * otherwise says what was wrong; `dir` is an empty directory on a disk. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int use_failed(const char *what, const nodedb_error *err) {
    fprintf(stderr, "%s: %s\n", what, err != NULL ? err->message : "the result is wrong");
    return 1;
}

static const char *use_path(const char *dir, const char *name) {
    static char path[1024];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

#ifdef NODEDB_WAL_H
enum { USE_RECORDS = 100 };

/* The sum of what comes back, in order. */
static nodedb_status use_apply(void *ctx, const nodedb_wal_record *record) {
    uint64_t *expected = (uint64_t *)ctx, value;
    if (record->payload_bytes != sizeof value) return NODEDB_ERR_CORRUPT;
    memcpy(&value, record->payload, sizeof value);
    if (value != *expected) return NODEDB_ERR_CORRUPT;
    ++*expected;
    return NODEDB_OK;
}

/* A log is written, closed, opened again and replayed: every record comes back, in order. */
static int use_wal(const char *dir) {
    nodedb_error err;
    nodedb_wal_config config;
    nodedb_wal_reader_config reading;
    nodedb_wal_record record;
    nodedb_wal *wal;
    uint64_t value, lsn = 0, replayed = 0;
    memset(&config, 0, sizeof config);
    memset(&reading, 0, sizeof reading);
    memset(&record, 0, sizeof record);
    config.dir = use_path(dir, "log");
    config.segment_bytes = 1 << 20;
    wal = nodedb_wal_open(&config, &err);
    if (wal == NULL) return use_failed("open a log", &err);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = &value, record.payload_bytes = sizeof value;
    for (value = 0; value < USE_RECORDS - 1; value++)
        if (nodedb_wal_append(wal, &record, &lsn, &err) != NODEDB_OK) return use_failed("append", &err);
    if (nodedb_wal_commit(wal, &record, 1, &lsn, &err) != NODEDB_OK) return use_failed("commit", &err);
    if (nodedb_wal_durable_lsn(wal) < lsn) return use_failed("what was committed is durable", NULL);
    if (nodedb_wal_close(wal, &err) != NODEDB_OK) return use_failed("close", &err);
    wal = nodedb_wal_open(&config, &err);
    if (wal == NULL) return use_failed("open it again", &err);
    reading.dir = config.dir;
    if (nodedb_wal_replay(&reading, use_apply, &replayed, NULL, &err) != NODEDB_OK) return use_failed("replay", &err);
    if (replayed != USE_RECORDS) return use_failed("all records come back", NULL);
    return nodedb_wal_close(wal, &err) == NODEDB_OK ? 0 : use_failed("close it again", &err);
}
#endif

#ifdef NODEDB_MEM_H
/* A budget holds, and a value that left memory comes back. */
static int use_mem(const char *dir) {
    static const char text[] = "a cold value";
    nodedb_error err;
    nodedb_mem_config config;
    nodedb_mem_overflow_config overflow;
    nodedb_mem_overflow *region;
    nodedb_mem_handle handle;
    nodedb_mem *mem;
    const void *back;
    size_t bytes = 0;
    memset(&config, 0, sizeof config);
    memset(&overflow, 0, sizeof overflow);
    config.ceiling_bytes = 1 << 20, config.max_cores = 1;
    mem = nodedb_mem_create(&config, &err);
    if (mem == NULL) return use_failed("make a governor", &err);
    if (nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1 << 19, &err) != NODEDB_OK) return use_failed("reserve", &err);
    if (nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1 << 20, &err) != NODEDB_ERR_LIMIT)
        return use_failed("more than the ceiling is refused", NULL);
    if (nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 1 << 19, &err) != NODEDB_OK) return use_failed("release", &err);
    nodedb_mem_destroy(mem);
    overflow.dir = dir, overflow.initial_bytes = 1 << 16, overflow.max_bytes = 1 << 20;
    region = nodedb_mem_overflow_open(&overflow, &err);
    if (region == NULL) return use_failed("open an overflow file", &err);
    if (nodedb_mem_overflow_write(region, text, sizeof text, &handle, &err) != NODEDB_OK)
        return use_failed("write to it", &err);
    back = nodedb_mem_overflow_read(region, handle, &bytes, &err);
    if (back == NULL) return use_failed("read from it", &err);
    if (bytes != sizeof text || memcmp(back, text, bytes) != 0) return use_failed("the value comes back", NULL);
    nodedb_mem_overflow_close(region);
    return 0;
}
#endif

#ifdef NODEDB_TPC_H
enum { USE_MESSAGES = 10 };

static void use_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    uint64_t number;
    (void)core, (void)from;
    memcpy(&number, message, sizeof number);
    *(uint64_t *)ctx += number;
}

/* One core, and all that is posted to it is handled before a stop ends. */
static int use_tpc(void) {
    nodedb_error err;
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    uint64_t message[8] = {0, 0, 0, 0, 0, 0, 0, 0}, sum = 0; /* a message has 64 bytes */
    memset(&config, 0, sizeof config);
    config.cores = 1, config.ctx = &sum, config.on_message = use_message;
    runtime = nodedb_tpc_start(&config, &err);
    if (runtime == NULL) return use_failed("start a core", &err);
    for (message[0] = 1; message[0] <= USE_MESSAGES; message[0]++)
        if (nodedb_tpc_post(runtime, 0, message, &err) != NODEDB_OK) return use_failed("post", &err);
    nodedb_tpc_stop(runtime);
    if (nodedb_tpc_join(runtime, &err) != NODEDB_OK) return use_failed("join", &err);
    nodedb_tpc_destroy(runtime);
    return sum == USE_MESSAGES * (USE_MESSAGES + 1) / 2 ? 0 : use_failed("every message is handled", NULL);
}
#endif

#ifdef NODEDB_VAMANA_H
enum { USE_SIDE = 16 };

/* The point of the grid that is nearest to (7.2, 3.1) is (7, 3). */
static int use_nearest(const nodedb_vamana *index) {
    static const float question[2] = {7.2f, 3.1f};
    nodedb_error err;
    nodedb_vamana_query query;
    nodedb_vamana_result results[3];
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, &err);
    uint32_t found = 0;
    if (searcher == NULL) return use_failed("make a searcher", &err);
    memset(&query, 0, sizeof query);
    query.vector = question, query.k = 3;
    if (nodedb_vamana_search(searcher, &query, results, &found, NULL, &err) != NODEDB_OK)
        return use_failed("search", &err);
    nodedb_vamana_searcher_destroy(searcher);
    if (found != 3 || results[0].id != 7 * USE_SIDE + 3 || results[0].distance > results[1].distance)
        return use_failed("the nearest is found first", NULL);
    return 0;
}

/* An index of a grid's points is searched, written to a file and opened from it. */
static int use_vamana(const char *dir) {
    const char *path = use_path(dir, "index");
    nodedb_error err;
    nodedb_vamana_config config;
    nodedb_vamana *index;
    float point[2];
    uint64_t id;
    bool more = true;
    memset(&config, 0, sizeof config);
    config.dim = 2;
    index = nodedb_vamana_create(&config, &err);
    if (index == NULL) return use_failed("make an index", &err);
    for (id = 0; id < USE_SIDE * USE_SIDE; id++) {
        point[0] = (float)(id / USE_SIDE), point[1] = (float)(id % USE_SIDE);
        if (nodedb_vamana_insert(index, id, point, &err) != NODEDB_OK) return use_failed("insert", &err);
    }
    if (use_nearest(index) != 0) return 1;
    if (nodedb_vamana_save_begin(index, path, NODEDB_VAMANA_RESIDENT, &err) != NODEDB_OK)
        return use_failed("begin to save", &err);
    while (more)
        if (nodedb_vamana_save_step(index, 1000, &more, &err) != NODEDB_OK) return use_failed("save", &err);
    nodedb_vamana_destroy(index);
    index = nodedb_vamana_open(path, NULL, &err);
    if (index == NULL) return use_failed("open the file", &err);
    if (use_nearest(index) != 0) return 1;
    nodedb_vamana_destroy(index);
    return 0;
}
#endif

#ifdef NODEDB_PREFETCH_H
#include <sys/mman.h>

/* Two ranges of a mapped file are announced, read and given back. */
static int use_prefetch(const char *dir) {
    enum { BYTES = 1 << 18 };
    static char page[BYTES];
    FILE *file = fopen(use_path(dir, "table"), "w+b");
    nodedb_error err;
    nodedb_prefetch_range ranges[2];
    nodedb_prefetch *prefetch;
    char *map;
    if (file == NULL || fwrite(page, 1, BYTES, file) != BYTES || fflush(file) != 0) return use_failed("a file", NULL);
    map = (char *)mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fileno(file), 0);
    if (map == (char *)MAP_FAILED) return use_failed("map it", NULL);
    prefetch = nodedb_prefetch_create(NULL, &err);
    if (prefetch == NULL) return use_failed("make a prefetcher", &err);
    ranges[0].start = map + 5, ranges[0].bytes = 100;
    ranges[1].start = map + BYTES / 2, ranges[1].bytes = 5000;
    if (nodedb_prefetch_batch(prefetch, ranges, 2, &err) != NODEDB_OK) return use_failed("announce", &err);
    if (map[5] != 0 || map[BYTES / 2] != 0) return use_failed("read", NULL);
    if (nodedb_prefetch_release(prefetch, map, BYTES, NODEDB_PREFETCH_DROP, &err) != NODEDB_OK)
        return use_failed("give back", &err);
    nodedb_prefetch_destroy(prefetch);
    return munmap(map, BYTES) == 0 && fclose(file) == 0 ? 0 : use_failed("unmap", NULL);
}
#endif

static int use_all(const char *dir) {
    int failed = 0;
    (void)dir, (void)use_path;
#ifdef NODEDB_WAL_H
    failed |= use_wal(dir);
#endif
#ifdef NODEDB_MEM_H
    failed |= use_mem(dir);
#endif
#ifdef NODEDB_TPC_H
    failed |= use_tpc();
#endif
#ifdef NODEDB_VAMANA_H
    failed |= use_vamana(dir);
#endif
#ifdef NODEDB_PREFETCH_H
    failed |= use_prefetch(dir);
#endif
    return failed;
}
