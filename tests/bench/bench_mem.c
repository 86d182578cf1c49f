/* Benchmark of nodedb_mem.h. Rows:
 *   reserve, release         on one core and two, beside one shared atomic counter, which they replace; a refusal
 *   overflow                 a write and a free among many objects, beside malloc and free of the same sizes
 *   overflow-view            a read of an object through a view, by pointer and as a copy
 *   overflow-compact         every second object freed: what a move costs, and how much of the free space comes back
 *   overflow-kept            as overflow, in a kept file; and what it takes to open that again */
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#include <pthread.h>

#include "bench.h"

#define ROUNDS 9
#define RUN 10000 /* reservations, and then as many releases: more than one chunk of credit */
#define MAX_OBJECT_BYTES 256

static nodedb_mem *create(size_t ceiling) {
    nodedb_mem_config config;
    nodedb_error err;
    nodedb_mem *mem;
    memset(&config, 0, sizeof config);
    config.ceiling_bytes = ceiling;
    config.max_cores = 2;
    mem = nodedb_mem_create(&config, &err);
    if (mem == NULL) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    return mem;
}

typedef struct work {
    nodedb_mem *mem; /* NULL: the shared counter */
    uint32_t core;
    size_t *counter;
    long pairs;
    pthread_barrier_t *start;
    double reserve_ns, release_ns, pair_ns; /* each */
} work;

static void reserve_or_abort(const work *w) {
    if (nodedb_mem_reserve(w->mem, w->core, NODEDB_MEM_QUERY, 128, NULL) != NODEDB_OK) abort();
}

static void release_or_abort(const work *w) {
    if (nodedb_mem_release(w->mem, w->core, NODEDB_MEM_QUERY, 128, NULL) != NODEDB_OK) abort();
}

/* First many reservations and then as many releases, again and again, each kind on its own clock; then in pairs. */
static void *run_work(void *argument) {
    work *w = (work *)argument;
    uint64_t from, middle, reserve_ns = 0, release_ns = 0;
    long i, k;
    bench_pin((int)w->core);
    pthread_barrier_wait(w->start);
    for (i = 0; i < w->pairs && w->mem != NULL; i += RUN) {
        from = bench_now_ns();
        for (k = 0; k < RUN; k++) reserve_or_abort(w);
        middle = bench_now_ns();
        for (k = 0; k < RUN; k++) release_or_abort(w);
        reserve_ns += middle - from;
        release_ns += bench_now_ns() - middle;
    }
    pthread_barrier_wait(w->start);
    from = bench_now_ns();
    for (i = 0; i < w->pairs && w->mem != NULL; i++) {
        reserve_or_abort(w);
        release_or_abort(w);
    }
    for (i = 0; i < w->pairs && w->mem == NULL; i++) {
        __atomic_fetch_add(w->counter, 128, __ATOMIC_SEQ_CST);
        __atomic_fetch_sub(w->counter, 128, __ATOMIC_SEQ_CST);
    }
    w->pair_ns = (double)(bench_now_ns() - from) / (double)w->pairs;
    w->reserve_ns = (double)reserve_ns / (double)w->pairs;
    w->release_ns = (double)release_ns / (double)w->pairs;
    return NULL;
}

/* Rows with the medians over rounds and threads. `mem` NULL: the counter, whose addition and subtraction are a pair. */
static void bench_reserve(nodedb_mem *mem, int threads, long pairs) {
    double samples[3][ROUNDS * 2];
    static const char *const names[] = {"reserve", "release", "reserve+release"};
    size_t counter = 0, taken = 0;
    int round, t;
    char name[64];
    for (round = 0; round < ROUNDS; round++) {
        pthread_t thread[2];
        work w[2];
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, (unsigned)threads);
        for (t = 0; t < threads; t++) {
            w[t].mem = mem, w[t].core = (uint32_t)t, w[t].counter = &counter, w[t].pairs = pairs, w[t].start = &start;
            if (pthread_create(&thread[t], NULL, run_work, &w[t]) != 0) abort();
        }
        for (t = 0; t < threads; t++, taken++) {
            pthread_join(thread[t], NULL);
            samples[0][taken] = w[t].reserve_ns, samples[1][taken] = w[t].release_ns, samples[2][taken] = w[t].pair_ns;
        }
        pthread_barrier_destroy(&start);
    }
    for (t = 0; t < 3; t++) {
        if (mem == NULL && t < 2) continue;
        snprintf(name, sizeof name, "%s/threads=%d", mem == NULL ? "limit/atomic-add-twice" : names[t], threads);
        bench_row(name, "ns", bench_median(samples[t], taken), "ns");
    }
}

static double refusal_ns(long refusals) {
    double samples[ROUNDS];
    nodedb_mem *mem = create(1000);
    int round;
    long i;
    for (round = 0; round < ROUNDS; round++) {
        uint64_t from = bench_now_ns();
        for (i = 0; i < refusals; i++)
            if (nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1001, NULL) == NODEDB_OK) abort();
        samples[round] = (double)(bench_now_ns() - from) / (double)refusals;
    }
    nodedb_mem_destroy(mem);
    return bench_median(samples, ROUNDS);
}

static uint64_t next_random(uint64_t *state) { return nodedb_mix64((*state)++); }

static size_t object_bytes(uint64_t *random) { return (size_t)(next_random(random) % MAX_OBJECT_BYTES) + 1; }

/* Reads all objects in random order through a view: by pointer, or a copy. */
static double view_ns(nodedb_mem_overflow *region, const nodedb_mem_handle *handles, long live, bool copy) {
    nodedb_mem_overflow_view *view = nodedb_mem_overflow_view_open(region, NULL);
    char data[MAX_OBJECT_BYTES];
    uint64_t random = 7, from, ns;
    long i;
    size_t sum = 0, bytes;
    if (view == NULL) abort();
    from = bench_now_ns();
    for (i = 0; i < live; i++) {
        nodedb_mem_handle handle = handles[next_random(&random) % (uint64_t)live];
        if (!copy) sum += *(const unsigned char *)nodedb_mem_overflow_view_read(view, handle, NULL, NULL);
        else if (nodedb_mem_overflow_view_copy(view, handle, data, sizeof data, &bytes, NULL) != NODEDB_OK) abort();
    }
    ns = bench_now_ns() - from;
    if (!copy && sum != (size_t)live) abort();
    nodedb_mem_overflow_view_close(view);
    return (double)ns / (double)live;
}

/* Frees every second object, compacts, and trims. */
static void bench_compact(nodedb_mem_overflow *region, const nodedb_mem_handle *handles, long live) {
    nodedb_mem_overflow_stats before, after;
    uint64_t start, slowest = 0, total = 0, ns;
    bool complete = false;
    for (long i = 0; i < live; i += 2)
        if (nodedb_mem_overflow_free(region, handles[i], NULL) != NODEDB_OK) abort();
    (void)nodedb_mem_overflow_trim(region, NULL, NULL);
    (void)nodedb_mem_overflow_get_stats(region, &before, NULL);
    while (!complete) {
        start = bench_now_ns();
        if (nodedb_mem_overflow_compact(region, 0, NULL, NULL, &complete, NULL) != NODEDB_OK) abort();
        ns = bench_now_ns() - start;
        total += ns;
        if (ns > slowest) slowest = ns;
    }
    (void)nodedb_mem_overflow_trim(region, NULL, NULL);
    (void)nodedb_mem_overflow_get_stats(region, &after, NULL);
    bench_row("overflow-compact", "move", (double)total / (double)(after.moves + (after.moves == 0)), "ns");
    bench_row("overflow-compact", "slowest_call", (double)slowest / 1e6, "ms");
    bench_row("overflow-compact", "given_back",
              100.0 * (double)(before.disk_bytes - after.disk_bytes) /
                  (double)(before.disk_bytes - before.used_bytes), "%");
}

/* `live` objects of random sizes; then each step frees one at random and writes another. `file` NULL: scratch. */
static void bench_overflow(long live, long steps, const char *dir, const char *file) {
    nodedb_mem_overflow_config config;
    nodedb_mem_overflow_stats stats;
    nodedb_error err;
    nodedb_mem_overflow *region;
    nodedb_mem_handle *handles = (nodedb_mem_handle *)malloc((size_t)live * sizeof *handles);
    const char *kind = file == NULL ? "overflow" : "overflow-kept";
    char data[MAX_OBJECT_BYTES], name[64];
    double samples[ROUNDS];
    uint64_t random = 1, start;
    int round;
    long i;
    memset(data, 1, sizeof data);
    memset(&config, 0, sizeof config);
    config.dir = dir;
    config.name = file;
    region = nodedb_mem_overflow_open(&config, &err);
    if (region == NULL || handles == NULL) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    for (i = 0; i < live; i++)
        if (nodedb_mem_overflow_write(region, data, object_bytes(&random), &handles[i], NULL) != NODEDB_OK) abort();
    for (round = -1; round < ROUNDS; round++) { /* the first makes holes, and is not counted */
        uint64_t from = bench_now_ns();
        for (i = 0; i < steps; i++) {
            long victim = (long)(next_random(&random) % (uint64_t)live);
            if (nodedb_mem_overflow_free(region, handles[victim], NULL) != NODEDB_OK) abort();
            if (nodedb_mem_overflow_write(region, data, object_bytes(&random), &handles[victim], NULL) != NODEDB_OK)
                abort();
        }
        if (round >= 0) samples[round] = (double)(bench_now_ns() - from) / (double)steps;
    }
    (void)nodedb_mem_overflow_get_stats(region, &stats, NULL);
    snprintf(name, sizeof name, "%s/live=%ld", kind, live);
    bench_row(name, "ns", bench_median(samples, ROUNDS), "ns");
    bench_row(name, "metadata", (double)stats.metadata_bytes / (double)live, "bytes/object");
    if (file != NULL) {
        start = bench_now_ns();
        nodedb_mem_overflow_close(region);
        bench_row(name, "close", (double)(bench_now_ns() - start) / 1e6, "ms");
        start = bench_now_ns();
        region = nodedb_mem_overflow_open(&config, &err);
        if (region == NULL) abort();
        bench_row(name, "reopen", (double)(bench_now_ns() - start) / 1e6, "ms");
        start = bench_now_ns();
        for (i = 0; i < live; i++)
            if (nodedb_mem_overflow_read(region, handles[i], NULL, NULL) == NULL) abort();
        bench_row(name, "first_read", (double)(bench_now_ns() - start) / (double)live, "ns");
    } else {
        bench_row("overflow-view/read", "ns", view_ns(region, handles, live, false), "ns");
        bench_row("overflow-view/copy", "ns", view_ns(region, handles, live, true), "ns");
        bench_compact(region, handles, live);
    }
    nodedb_mem_overflow_close(region);
    if (file != NULL) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, file);
        (void)unlink(path);
    }
    free(handles);
}

static void bench_malloc(long live, long steps) {
    void **blocks = (void **)malloc((size_t)live * sizeof *blocks);
    char name[64];
    double samples[ROUNDS];
    uint64_t random = 1;
    int round;
    long i;
    if (blocks == NULL) abort();
    for (i = 0; i < live; i++) blocks[i] = malloc(object_bytes(&random));
    for (round = -1; round < ROUNDS; round++) {
        uint64_t from = bench_now_ns();
        for (i = 0; i < steps; i++) {
            long victim = (long)(next_random(&random) % (uint64_t)live);
            size_t bytes = object_bytes(&random);
            free(blocks[victim]);
            blocks[victim] = malloc(bytes);
            if (blocks[victim] == NULL) abort();
            memset(blocks[victim], 1, bytes);
        }
        if (round >= 0) samples[round] = (double)(bench_now_ns() - from) / (double)steps;
    }
    snprintf(name, sizeof name, "limit/malloc+free/live=%ld", live);
    bench_row(name, "ns", bench_median(samples, ROUNDS), "ns");
    for (i = 0; i < live; i++) free(blocks[i]);
    free(blocks);
}

int main(int argc, char **argv) {
    bool quick = bench_flag(argc, argv, "--quick");
    long pairs = quick ? 2000000 : 10000000, live = quick ? 100000 : 1000000, steps = quick ? 100000 : 500000;
    const char *dir = bench_option(argc, argv, "--dir", ".");
    nodedb_mem *mem = create((size_t)1 << 30);
    bench_name = "mem";
    bench_reserve(NULL, 1, pairs);
    bench_reserve(NULL, 2, pairs / 4);
    bench_reserve(mem, 1, pairs);
    bench_reserve(mem, 2, pairs);
    bench_row("refuse/threads=1", "ns", refusal_ns(quick ? 2000 : 20000), "ns");
    bench_malloc(live, steps);
    bench_overflow(live, steps, dir, NULL);
    bench_overflow(live, steps, dir, "bench_mem.overflow");
    nodedb_mem_destroy(mem);
    return 0;
}
