/* Benchmark of nodedb_vamana.h. Rows: see bench.h.
 *
 *   bench_vamana [--base F --query F --gt F] [--type u8|f32] [--threads N] [--degree R] [--beam-build L] [--alpha A]
 *                [--dir D] [--quick]
 *
 * F are u8bin and gt files of the big-ann-benchmarks; without them tests/data/sift10k. --type f32 (or both, the default
 * of disk mode) converts. D is where the file for disk mode goes: a disk, not a tmpfs.
 *
 *   ours/build              build_s, bytes_per_vector, insert_per_s (one thread, one by one)
 *   ours/type=T/beam=N      recall_at_10, qps (one thread), distances_per_query
 *   kernel/NAME             bytes_per_s over vectors that do not fit the caches; limit/memory-read is their ceiling
 *   kernel-cached/NAME      the same over vectors that fit the first level: what the arithmetic costs
 *   disk/fetch=F/beam=N     recall_at_10, qps, reads_per_query; limit/random-read is their ceiling (128 at once) */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "bench.h"

#define ROUNDS_MAX 9u

typedef struct data_set {
    uint32_t n, dim, query_count, truth_k;
    uint8_t *base, *queries;  /* of `size` bytes per component */
    uint32_t *truth;
    size_t row;               /* bytes of one vector */
    nodedb_vamana_type type;
} data_set;

static bool quick;

static void die(const char *what, const char *which) {
    fprintf(stderr, "bench_vamana: %s %s\n", what, which);
    exit(1);
}

static uint8_t *load(const char *path, uint32_t *n, uint32_t *width, size_t size) {
    uint8_t header[8], *rows;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(header, 1, 8, file) != 8) die("cannot read", path);
    *n = nodedb__get_u32(header), *width = nodedb__get_u32(header + 4);
    rows = (uint8_t *)malloc((size_t)*n * *width * size);
    if (rows == NULL || fread(rows, size, (size_t)*n * *width, file) != (size_t)*n * *width) die("cannot read", path);
    fclose(file);
    return rows;
}

static uint8_t *as_floats(const uint8_t *bytes, size_t count) {
    float *floats = (float *)malloc(count * sizeof *floats);
    size_t i;
    if (floats == NULL) die("no memory for", "floats");
    for (i = 0; i < count; i++) floats[i] = bytes[i];
    return (uint8_t *)floats;
}

static data_set load_all(int argc, char **argv, bool f32) {
    data_set d;
    const char *base = bench_option(argc, argv, "--base", "tests/data/sift10k.base.u8bin");
    const char *query = bench_option(argc, argv, "--query", "tests/data/sift10k.query.u8bin");
    uint32_t dim, n;
    memset(&d, 0, sizeof d);
    d.base = load(base, &d.n, &d.dim, 1);
    d.queries = load(query, &d.query_count, &dim, 1);
    if (dim != d.dim) die("the dimensions differ:", query);
    d.truth = (uint32_t *)(void *)load(bench_option(argc, argv, "--gt", "tests/data/sift10k.gt"), &n, &d.truth_k, 4);
    if (n != d.query_count || d.truth_k < 10) die("the truth does not fit", query);
    d.row = d.dim, d.type = NODEDB_VAMANA_U8;
    if (!f32) return d;
    d.base = as_floats(d.base, (size_t)d.n * d.dim), d.queries = as_floats(d.queries, (size_t)d.query_count * d.dim);
    d.row *= sizeof(float), d.type = NODEDB_VAMANA_F32;
    return d;
}

static nodedb_vamana_config config_for(const data_set *d, int argc, char **argv) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = d->dim, c.type = d->type, c.capacity = d->n;
    c.degree = (uint32_t)atoi(bench_option(argc, argv, "--degree", "0"));
    c.beam_build = (uint32_t)atoi(bench_option(argc, argv, "--beam-build", "0"));
    c.alpha = (float)atof(bench_option(argc, argv, "--alpha", "0"));
    return c;
}

/* All queries once; adds up hits and costs. */
static double one_round(nodedb_vamana_searcher *s, const data_set *d, uint32_t queries, uint32_t beam, uint64_t *hits,
                        nodedb_vamana_stats *sum) {
    uint64_t begin = bench_now_ns();
    uint32_t i, j, k;
    for (i = 0; i < queries; i++) {
        nodedb_vamana_result results[10];
        nodedb_vamana_stats stats;
        nodedb_vamana_query q;
        nodedb_error err;
        uint32_t found;
        memset(&q, 0, sizeof q);
        q.vector = d->queries + (size_t)i * d->row, q.k = 10, q.beam = beam;
        if (nodedb_vamana_search(s, &q, results, &found, &stats, &err) != NODEDB_OK) die("a search failed:",
                                                                                         err.message);
        sum->distances += stats.distances, sum->reads += stats.reads;
        for (j = 0; j < found; j++)
            for (k = 0; k < 10; k++) *hits += results[j].id == d->truth[(size_t)i * d->truth_k + k];
    }
    return (double)queries * 1e9 / (double)(bench_now_ns() - begin);
}

static void search_rows(const nodedb_vamana *index, const data_set *d, const char *prefix, const uint32_t *beams,
                        bool disk) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t queries = disk && quick && d->query_count > 100 ? 100 : d->query_count;
    if (s == NULL) die("no searcher for", prefix);
    for (; *beams != 0; beams++) {
        double qps[ROUNDS_MAX], rounds_of_queries;
        uint32_t round, rounds = quick ? 3 : 7;
        nodedb_vamana_stats sum;
        uint64_t hits = 0;
        char name[64];
        memset(&sum, 0, sizeof sum);
        for (round = 0; round < rounds; round++) qps[round] = one_round(s, d, queries, *beams, &hits, &sum);
        rounds_of_queries = (double)rounds * queries;
        snprintf(name, sizeof name, "%s/beam=%u", prefix, (unsigned)*beams);
        bench_row(name, "recall_at_10", (double)hits / (10 * rounds_of_queries), "ratio");
        bench_row(name, "qps", bench_median(qps, rounds), "1/s");
        if (disk) bench_row(name, "reads_per_query", (double)sum.reads / rounds_of_queries, "reads");
        else bench_row(name, "distances_per_query", (double)sum.distances / rounds_of_queries, "distances");
    }
    nodedb_vamana_searcher_destroy(s);
}

static nodedb_vamana *build_rows(const data_set *d, int argc, char **argv, bool measured) {
    nodedb_vamana_config c = config_for(d, argc, argv);
    nodedb_error err;
    nodedb_vamana *index = nodedb_vamana_create(&c, &err), *single;
    uint32_t threads = (uint32_t)atoi(bench_option(argc, argv, "--threads", "2"));
    uint32_t i, inserts = d->n < 100000 ? d->n : 100000;
    uint64_t begin = bench_now_ns();
    if (index == NULL) die("create:", err.message);
    if (nodedb_vamana_build(index, NULL, d->base, d->n, threads, NULL, NULL, &err) != NODEDB_OK) die("build:",
                                                                                                     err.message);
    if (!measured) return index;
    fprintf(stderr, "kernel %s, %u threads\n", nodedb_vamana_kernel(index), (unsigned)threads);
    bench_row("ours/build", "build_s", (double)(bench_now_ns() - begin) / 1e9, "s");
    bench_row("ours/build", "bytes_per_vector", (double)nodedb_vamana_memory_bytes(index) / d->n, "bytes");
    single = nodedb_vamana_create(&c, &err);
    begin = bench_now_ns();
    for (i = 0; i < inserts; i++)
        if (nodedb_vamana_insert(single, i, d->base + (size_t)i * d->row, &err) != NODEDB_OK) die("insert:",
                                                                                                  err.message);
    bench_row("ours/build", "insert_per_s", (double)inserts * 1e9 / (double)(bench_now_ns() - begin), "1/s");
    nodedb_vamana_destroy(single);
    return index;
}

/* ---- kernels against the memory ---------------------------------------------------------------------------------- */

static volatile float sink;

/* Bytes per second of a kernel's five functions in turn, over `total` bytes of vectors of 128 components. */
static void kernel_rows(const nodedb_vamana_kernels *k, const uint8_t *memory, size_t total, const char *prefix) {
    static const char *const names[] = {"l2_f32", "dot_f32", "l2_u8", "dot_u8", "dot_f32_u8"};
    float query[128];
    uint8_t bytes[128];
    int f, i;
    for (i = 0; i < 128; i++) query[i] = (float)i, bytes[i] = (uint8_t)(2 * i);
    for (f = 0; f < 5; f++) {
        size_t row = f < 2 ? 512 : 128, at;
        double rates[ROUNDS_MAX];
        uint32_t round, pass, rounds = quick ? 3 : 7, passes = total < 1000000 ? 200 : 1;
        char name[96];
        for (round = 0; round < rounds; round++) {
            uint64_t begin = bench_now_ns();
            float sum = 0;
            for (pass = 0; pass < passes; pass++)
                for (at = 0; at + row <= total; at += row) {
                    const float *x = (const float *)(const void *)(memory + at);
                    sum += f == 0   ? k->l2_f32(query, x, 128)
                           : f == 1 ? k->dot_f32(query, x, 128)
                           : f == 2 ? k->l2_u8(bytes, memory + at, 128)
                           : f == 3 ? k->dot_u8(bytes, memory + at, 128)
                                    : k->dot_f32_u8(query, memory + at, 128);
                }
            sink = sum;
            rates[round] = (double)(total / row * row) * passes * 1e9 / (double)(bench_now_ns() - begin);
        }
        snprintf(name, sizeof name, "%s/%s-%s", prefix, k->name, names[f]);
        bench_row(name, "bytes_per_s", bench_median(rates, rounds), "bytes/s");
    }
}

static void memory_rows(void) {
    size_t total = (size_t)(quick ? 64 : 256) << 20, set;
    void *memory = NULL;
    double rates[ROUNDS_MAX];
    uint32_t round, rounds = quick ? 3 : 7;
    if (posix_memalign(&memory, 4096, total) != 0) die("no memory for", "the kernels");
    memset(memory, 1, total); /* as floats, small finite numbers */
    for (round = 0; round < rounds; round++) {
        uint64_t begin = bench_now_ns();
        sink = memchr(memory, 0, total) != NULL; /* there is none: libc's fastest pass over all of it */
        rates[round] = (double)total * 1e9 / (double)(bench_now_ns() - begin);
    }
    bench_row("limit/memory-read", "bytes_per_s", bench_median(rates, rounds), "bytes/s");
    for (set = 0; nodedb_vamana_kernels_at(set) != NULL; set++) {
        if (!nodedb_vamana_kernels_usable(nodedb_vamana_kernels_at(set))) continue;
        kernel_rows(nodedb_vamana_kernels_at(set), (const uint8_t *)memory, total, "kernel");
        kernel_rows(nodedb_vamana_kernels_at(set), (const uint8_t *)memory, 16384, "kernel-cached");
    }
    free(memory);
}

/* ---- disk mode --------------------------------------------------------------------------------------------------- */

/* What the device gives: random 4 KiB reads of the file, O_DIRECT, 128 at a time (by io_uring, else one by one). */
static void random_read_row(const nodedb_vamana *index) {
    double rates[ROUNDS_MAX];
    uint32_t round, rounds = quick ? 3 : 5, reads = quick ? 4096 : 16384, i;
    uint64_t state = 7;
    nodedb_vamana_fetcher f;
    nodedb_error err;
    uint32_t slots[128];
    if (nodedb_vamana_fetcher_disk(index, 128, &f, &err) != NODEDB_OK) die("limit/random-read:", err.message);
    for (round = 0; round < rounds; round++) {
        uint64_t begin = bench_now_ns(), before, after, retries;
        f.counters(f.ctx, &before, &retries);
        do {
            for (i = 0; i < 128; i++) slots[i] = (uint32_t)(nodedb__mix64(state++) % nodedb_vamana_count(index));
            if (f.prefetch_batch(f.ctx, slots, 128, &err) != NODEDB_OK) die("limit/random-read:", err.message);
            for (i = 0; i < 128; i++)
                if (f.fetch(f.ctx, slots[i], &err) == NULL) die("limit/random-read:", err.message);
            f.counters(f.ctx, &after, &retries);
        } while (after - before < reads);
        rates[round] = (double)(after - before) * 1e9 / (double)(bench_now_ns() - begin);
    }
    f.destroy(f.ctx);
    bench_row("limit/random-read", "reads_per_s", bench_median(rates, rounds), "1/s");
}

static void disk_rows(const nodedb_vamana *index, const data_set *d, const char *dir) {
    static const uint32_t beams[] = {32, 64, 128, 0};
    nodedb_vamana_open_config o;
    nodedb_error err;
    char path[600];
    int way;
    snprintf(path, sizeof path, "%s/bench_vamana.index", dir);
    if (nodedb_vamana_save(index, path, &err) != NODEDB_OK) die("save:", err.message);
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK;
    for (way = 0; way < 2; way++) {
        nodedb_vamana *disk;
        o.no_uring = way == 1;
        disk = nodedb_vamana_open(path, &o, &err);
        if (disk == NULL) die("open:", err.message);
        if (way == 0) {
            random_read_row(disk);
            bench_row("disk/open", "bytes_per_vector", (double)nodedb_vamana_memory_bytes(disk) / d->n, "bytes");
        }
        search_rows(disk, d, way == 0 ? "disk/fetch=uring" : "disk/fetch=pread", beams, true);
        nodedb_vamana_destroy(disk);
    }
    (void)remove(path);
}

int main(int argc, char **argv) {
    static const uint32_t beams[] = {10, 16, 24, 32, 48, 64, 96, 128, 0};
    const char *type = bench_option(argc, argv, "--type", "u8");
    bool f32 = strcmp(type, "f32") == 0;
    data_set d;
    nodedb_vamana *index;
    bench_name = "vamana";
    quick = bench_flag(argc, argv, "--quick");
    if (!f32 && strcmp(type, "u8") != 0) die("--type is u8 or f32, not", type);
    d = load_all(argc, argv, f32);
    index = build_rows(&d, argc, argv, true);
    search_rows(index, &d, f32 ? "ours/type=f32" : "ours/type=u8", beams, false);
    memory_rows();
    if (!f32) { /* codes, and so disk mode, are for floats */
        nodedb_vamana_destroy(index);
        d = load_all(argc, argv, true);
        index = build_rows(&d, argc, argv, false);
    }
    disk_rows(index, &d, bench_option(argc, argv, "--dir", access("build", W_OK) == 0 ? "build" : "."));
    nodedb_vamana_destroy(index);
    return 0;
}
