/* Benchmark of nodedb_vamana.h, beside hnswlib where `build.sh bench vamana` finds it. Rows: see bench.h.
 *
 *   bench_vamana [--base F --query F --gt F] [--type u8|f32|both] [--threads N] [--degree R] [--beam-build L]
 *                [--alpha A] [--code auto|none|8|4] [--inserts N] [--rounds N] [--quick] [--only PREFIX] [--dir D]
 *                [--save-index F] [--load-index F] [--hnsw-index F]
 *   bench_vamana --hard [--kind all|all+|NAME,..] [--how insert,build,replaced,halved] [--beams 10,64,256] [--n N]
 *                [--dim D] [--queries N] [--seed S] [--threads N] [--degree R] [--beam-build L] [--alpha A] [--code ..]
 *                [--rounds N] [--quick] [--only PREFIX]
 *   bench_vamana --hard --write PREFIX --kind NAME [--n N] [--dim D] [--queries N] [--seed S]
 *
 * Base and query are u8bin or fbin files of the big-ann-benchmarks, gt their ground truth; without them
 * tests/data/sift10k. make_glosses.py makes a set of 384 floats. Bytes are measured as bytes and as floats (--type),
 * and given to hnswlib as floats. Everything is built first. Then come rounds: in each, every case of ours and then
 * every one of hnswlib goes over the queries for 100 ms (--quick: 20); a row is the median of its rounds, and a ratio
 * that of the rounds' ratios. Recall and distances are counted in a pass of their own, which nobody times.
 *
 *   ours/build, hnswlib/build      build_s (--threads, 2), insert_per_s (one thread, the first --inserts vectors one by
 *                                  one; default all, at most 100,000, --quick 5,000), bytes_per_vector,
 *                                  bytes_beyond_vector; of a second type ours/build/type=f32
 *   ours/inserted/beam=N, hnswlib/inserted/ef=N    recall_at_10, distances_per_query of what those inserts made
 *   ours/type=T/beam=N, hnswlib/ef=N               recall_at_10, qps (one thread), distances_per_query
 *   ours/type=T/beam=N/many        qps, many queries to a call
 *   ours/type=T/beam=N/threads=N   qps of N threads, and of_one_thread, their gain (--threads)
 *   ours/exact-walk/type=T/beam=N  as ours/type=T, without codes: the graph itself
 *   ours/type=T/recall=R, hnswlib/recall=R    qps between the two beams around that recall, on a line of log qps; of
 *                                  the narrowest, where that finds more. No row where the widest finds less
 *   ratio/type=T/recall=R          ours_over_hnswlib
 *   kernel/NAME                    bytes_per_s over vectors that do not fit the caches; limit/memory-read is their
 *                                  ceiling
 *   kernel-cached/NAME             the same over vectors that fit the first level: what the arithmetic costs
 *   disk/layout=L/save             seconds, and worst_slice_ms of its steps of 64 vectors
 *   disk/layout=L/open             open_ms; load_ms of all that searches want in memory
 *   disk/layout=L/fetch=F/beam=N   recall_at_10, qps, reads_per_query, reads_per_s, of_limit, p50_us and p99_us of a
 *                                  call, resident_bytes of index and searchers; one query to a call. L: resident,
 *                                  packed; F: uring (past the page cache), pread (so too, one round), mapped (through
 *                                  it, one round)
 *   disk/layout=L/fetch=uring/beam=N/many=16, /many   the same but for recall, 16 queries to a call, or all
 *   limit/random-read              reads_per_s of a bare io_uring: random blocks of the same file, 64 always in flight;
 *                                  limit/random-read/packed: of that file; limit/random-read/batch=24: 24 at a time,
 *                                  all waited for before the next, which no question that reads one batch can pass
 *
 * --only: cases that begin so, and nothing built that they do not need. --save-index and --load-index keep ours (with
 * both types F.u8 and F.f32), --hnsw-index loads hnswlib's or, where the file is missing, builds and saves it; what was
 * loaded has no build_s. D is where the file for disk mode goes: a disk, not a tmpfs. One seed gives the same graphs
 * and counts each time, but for hnswlib's built by more than one thread.
 *
 * --hard measures nothing of this, but the kinds of tests/hard_kinds.h: the ten (all), or those and more (all+), 20,000
 * vectors of 128 floats each (--quick: 2,000). HOW says what was done: insert, one by one; build, in a batch; replaced,
 * inserted, and then each id again with another vector of the kind; halved, inserted, and then the older half removed.
 * A returned vector counts as found if it is as near as the tenth, as many are equally far.
 *
 *   hard/KIND/how=HOW                     seconds of the last step, code_bits, unreachable: vectors that no walk meets
 *   hard/KIND/how=HOW/beam=N              recall_at_10, distances_per_query, qps (one thread)
 *   hard/KIND/how=HOW/exact-walk/beam=N   recall_at_10, distances_per_query
 *   hnswlib/hard/KIND/how=insert          seconds; hnswlib/hard/KIND/how=insert/ef=N as ours
 *
 * --write measures nothing. It writes the kind's set to PREFIX.base.fbin, PREFIX.query.fbin and PREFIX.gt, the formats
 * above, and prints the metric that it is meant for, which the files do not tell: l2, ip or cosine. So other programs
 * measure the same vectors: ann_peers.py does.
 *
 * The rooms:
 *
 *   DATA           bases, queries, and the truth
 *   ANSWERING      queries, counted and timed
 *   SUBJECTS       what answers them: an index of ours in one of its ways, or hnswlib
 *   EQUAL RECALL   queries/s at a recall, between two beams
 *   BUILDING       in a batch, and one by one
 *   KERNELS        against the speed of the memory
 *   DISK           both layouts, against the device
 *   THE RUN        options, and what is measured in which order */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "bench.h"
#include "peer_hnswlib.h"
#include "../hard_kinds.h"

enum {
    K = 10, WIDTHS_MAX = 10, ROUNDS_MAX = 21, SUBJECTS_MAX = 16, THREADS_MAX = 64, PATH_BYTES = 1024,
    INSERTS_MAX = 100000,      /* beyond, one by one takes too long for a benchmark */
    INSERTS_QUICK = 5000,
    SUBSET_QUERIES_MAX = 1000, /* whose truth among the first vectors is found by looking at all of those */
    DISK_QUERIES_MAX = 1000,   /* with pread one by one it takes long */
    SAVE_SLICE = 64            /* vectors to a step of a save */
};

#define ENOUGH_RECALL 0.99 /* widths above ENOUGH_WIDTH are for data where that one does not get there */
#define ENOUGH_WIDTH 128u

/* By nodedb_vamana_type: F32, U8. */
static const char *const type_names[2] = {"f32", "u8"};

/* What is searched, and for what. Never changes once it is loaded. */
typedef struct data_set {
    uint32_t n, dim, query_count, truth_k;
    uint8_t *base[2], *queries[2]; /* by type; NULL: nobody needs them so */
    const uint32_t *truth;         /* of each query, the truth_k nearest */
    const hard_truth *hard;        /* if not NULL, stands for it: see bench_vamana_hard.h */
} data_set;

/* What one width of the beam gives. */
typedef struct point {
    uint32_t width, passes; /* passes over the queries in a round */
    double recall, distances, reads, qps[ROUNDS_MAX];
} point;

/* Something that answers queries: an index of ours in one of its ways, or hnswlib's. Its cases are
 * NAME/WIDTH_NAME=N SUFFIX. */
typedef struct subject {
    char name[48], suffix[24];
    const char *width_name;
    const data_set *data;
    uint32_t query_count;
    nodedb_vamana_type type;
    nodedb_vamana_searcher *searchers[THREADS_MAX]; /* ours: one for each thread */
    uint32_t threads;
    bool exact_walk, many, disk;
    uint32_t call;                /* many: queries to a call. 0: all in one */
    peer_hnswlib *peer;           /* hnswlib's, or NULL */
    const struct subject *single; /* many, threads: the same index asked in the plain way, counted and timed before */
    point points[WIDTHS_MAX];
    uint32_t point_count;
} subject;

static bool quick;
static const char *only;
static uint32_t rounds;
static subject subjects[SUBJECTS_MAX];
static uint32_t subject_count;

static void die(const char *what, const char *which) {
    fprintf(stderr, "bench_vamana: %s %s\n", what, which);
    exit(1);
}

/* True if this case, or one whose name begins so, is asked for. */
static bool wanted(const char *name) {
    size_t a = strlen(name), b = strlen(only);
    return strncmp(name, only, a < b ? a : b) == 0;
}

static void put_row(const char *name, const char *metric, double value, const char *unit) {
    if (strncmp(name, only, strlen(only)) == 0) bench_row(name, metric, value, unit);
}

static double seconds_since(uint64_t begin) { return (double)(bench_now_ns() - begin) / 1e9; }

/* ===================================================================================================================
 * DATA: bases, queries, and the truth
 * ================================================================================================================ */

static size_t row_bytes(const data_set *d, nodedb_vamana_type type) {
    return d->dim * (type == NODEDB_VAMANA_F32 ? sizeof(float) : 1);
}

static const uint8_t *base_row(const data_set *d, nodedb_vamana_type type, size_t i) {
    return d->base[type] + i * row_bytes(d, type);
}

static const uint8_t *query_row(const data_set *d, nodedb_vamana_type type, size_t i) {
    return d->queries[type] + i * row_bytes(d, type);
}

static uint8_t *load(const char *path, uint32_t *n, uint32_t *width, size_t size) {
    uint8_t header[8], *rows;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(header, 1, 8, file) != 8) die("cannot read", path);
    *n = nodedb_get_u32(header), *width = nodedb_get_u32(header + 4);
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

static bool is_fbin(const char *path) {
    size_t length = strlen(path);
    return length > 5 && strcmp(path + length - 5, ".fbin") == 0;
}

static data_set load_all(int argc, char **argv) {
    data_set d;
    const char *base = bench_option(argc, argv, "--base", "tests/data/sift10k.base.u8bin");
    const char *query = bench_option(argc, argv, "--query", "tests/data/sift10k.query.u8bin");
    nodedb_vamana_type type = is_fbin(base) ? NODEDB_VAMANA_F32 : NODEDB_VAMANA_U8;
    size_t size = type == NODEDB_VAMANA_F32 ? sizeof(float) : 1;
    uint32_t dim, n;
    if (is_fbin(base) != is_fbin(query)) die("base and query differ in type:", query);
    memset(&d, 0, sizeof d);
    d.base[type] = load(base, &d.n, &d.dim, size);
    d.queries[type] = load(query, &d.query_count, &dim, size);
    if (dim != d.dim) die("the dimensions differ:", query);
    d.truth = (uint32_t *)(void *)load(bench_option(argc, argv, "--gt", "tests/data/sift10k.gt"), &n, &d.truth_k, 4);
    if (n != d.query_count || d.truth_k < K) die("the truth does not fit", query);
    if (d.base[NODEDB_VAMANA_F32] == NULL) {
        d.base[NODEDB_VAMANA_F32] = as_floats(d.base[NODEDB_VAMANA_U8], (size_t)d.n * d.dim);
        d.queries[NODEDB_VAMANA_F32] = as_floats(d.queries[NODEDB_VAMANA_U8], (size_t)d.query_count * d.dim);
    }
    return d;
}

/* The data as if only its first `n` vectors were there: some of the queries, and their truth, found by looking. */
static data_set first_of(const data_set *all, uint32_t n) {
    nodedb_vamana_type type = all->base[NODEDB_VAMANA_U8] != NULL ? NODEDB_VAMANA_U8 : NODEDB_VAMANA_F32;
    const nodedb_vamana_kernels *k = NULL;
    data_set d = *all;
    uint32_t *truth, i, at;
    size_t set;
    if (n == all->n) return d;
    for (set = 0; nodedb_vamana_kernels_at(set) != NULL; set++) /* the last that this CPU has is the best */
        if (nodedb_vamana_kernels_usable(nodedb_vamana_kernels_at(set))) k = nodedb_vamana_kernels_at(set);
    d.n = n, d.truth_k = K;
    if (d.query_count > SUBSET_QUERIES_MAX) d.query_count = SUBSET_QUERIES_MAX;
    truth = (uint32_t *)malloc((size_t)d.query_count * K * sizeof *truth);
    if (truth == NULL || n < K) die("no truth for", "the vectors inserted");
    for (i = 0; i < d.query_count; i++) {
        const uint8_t *q = query_row(all, type, i);
        uint32_t *best = truth + (size_t)i * K, found = 0;
        float distances[K];
        for (at = 0; at < n; at++) {
            const uint8_t *v = base_row(all, type, at);
            float distance = type == NODEDB_VAMANA_U8
                                 ? k->l2_u8(q, v, d.dim)
                                 : k->l2_f32((const float *)(const void *)q, (const float *)(const void *)v, d.dim);
            uint32_t j;
            if (found == K && distance >= distances[K - 1]) continue; /* ties by id: the first stays */
            if (found < K) found++;
            for (j = found - 1; j > 0 && distances[j - 1] > distance; j--)
                distances[j] = distances[j - 1], best[j] = best[j - 1];
            distances[j] = distance, best[j] = at;
        }
    }
    d.truth = truth;
    return d;
}

/* ===================================================================================================================
 * ANSWERING: queries, counted and timed
 * ================================================================================================================ */

typedef struct costs {
    uint64_t hits, distances, reads;
} costs;

static nodedb_vamana_query query_for(const subject *s, uint32_t width) {
    nodedb_vamana_query q;
    memset(&q, 0, sizeof q);
    q.k = K, q.beam = width;
    q.exact_walk = s->exact_walk;
    return q;
}

/* How many of the ids that query `i` got are among its K nearest. */
static uint32_t hits_of(const data_set *d, uint32_t i, const uint64_t *ids, uint32_t found) {
    uint32_t hits = 0, j, k;
    if (d->hard != NULL) return hard_hits(d->hard, i, ids, found);
    for (j = 0; j < found; j++)
        for (k = 0; k < K; k++) hits += ids[j] == d->truth[(size_t)i * d->truth_k + k];
    return hits;
}

/* Query `i`, answered as thread `thread` would. `c` is NULL where time is taken. */
static void answer(const subject *s, uint32_t thread, uint32_t width, uint32_t i, costs *c) {
    uint64_t ids[K];
    uint32_t found, j;
    if (s->peer != NULL) {
        const float *q = (const float *)(const void *)query_row(s->data, s->type, i);
        found = (uint32_t)peer_hnswlib_search(s->peer, q, K, width, ids, c != NULL ? &c->distances : NULL);
    } else {
        nodedb_vamana_result results[K];
        nodedb_vamana_query q = query_for(s, width);
        nodedb_vamana_stats stats;
        nodedb_error err;
        q.vector = query_row(s->data, s->type, i);
        if (nodedb_vamana_search(s->searchers[thread], &q, results, &found, c != NULL ? &stats : NULL, &err) !=
            NODEDB_OK)
            die("a search failed:", err.message);
        for (j = 0; j < found; j++) ids[j] = results[j].id;
        if (c != NULL) c->distances += stats.distances, c->reads += stats.reads;
    }
    if (c != NULL) c->hits += hits_of(s->data, i, ids, found);
}

typedef struct worker {
    const subject *s;
    const point *p;
    uint32_t thread;
    pthread_t id;
} worker;

static void *answer_all(void *ctx) {
    const worker *w = (const worker *)ctx;
    uint32_t pass, i;
    for (pass = 0; pass < w->p->passes; pass++)
        for (i = 0; i < w->s->query_count; i++) answer(w->s, w->thread, w->p->width, i, NULL);
    return NULL;
}

/* All queries, in calls of s->call; `took`, if there is one, gets the microseconds of each call. Returns the calls. */
static uint32_t answer_many(const subject *s, uint32_t width, double *took) {
    uint32_t call = s->call == 0 || s->call > s->query_count ? s->query_count : s->call, from, calls = 0;
    nodedb_vamana_result *results = (nodedb_vamana_result *)malloc((size_t)call * K * sizeof *results);
    uint32_t *found = (uint32_t *)malloc(call * sizeof *found);
    nodedb_vamana_query q = query_for(s, width);
    nodedb_error err;
    if (results == NULL || found == NULL) die("no memory for", "results");
    for (from = 0; from < s->query_count; from += call, calls++) {
        uint32_t n = s->query_count - from < call ? s->query_count - from : call;
        uint64_t begin = bench_now_ns();
        if (nodedb_vamana_search_many(s->searchers[0], &q, query_row(s->data, s->type, from), n, results, found, NULL,
                                      &err) != NODEDB_OK)
            die("a search failed:", err.message);
        if (took != NULL) took[calls] = (double)(bench_now_ns() - begin) / 1e3;
    }
    free(results), free(found);
    return calls;
}

/* One round's queries per second. */
static double timed(const subject *s, const point *p) {
    worker workers[THREADS_MAX];
    uint64_t begin = bench_now_ns();
    uint32_t i;
    for (i = 0; i < s->threads; i++) workers[i].s = s, workers[i].p = p, workers[i].thread = i;
    for (i = 1; i < s->threads; i++)
        if (pthread_create(&workers[i].id, NULL, answer_all, &workers[i]) != 0) die("no thread for", s->name);
    for (i = 0; i < p->passes && s->many; i++) (void)answer_many(s, p->width, NULL);
    if (!s->many) answer_all(&workers[0]);
    for (i = 1; i < s->threads; i++) (void)pthread_join(workers[i].id, NULL);
    return (double)s->threads * p->passes * s->query_count / seconds_since(begin);
}

/* ===================================================================================================================
 * SUBJECTS: what answers them: an index of ours in one of its ways, or hnswlib
 * ================================================================================================================ */

static void case_name(char *name, size_t size, const subject *s, uint32_t width) {
    (void)snprintf(name, size, "%.47s/%s=%u%.23s", s->name, s->width_name, (unsigned)width, s->suffix);
}

static subject make_subject(const data_set *d, nodedb_vamana_type type, const char *name) {
    subject s;
    memset(&s, 0, sizeof s);
    (void)snprintf(s.name, sizeof s.name, "%s", name);
    s.width_name = "beam", s.data = d, s.query_count = d->query_count, s.type = type, s.threads = 1;
    return s;
}

static void give_searchers(subject *s, const nodedb_vamana *index) {
    nodedb_error err;
    uint32_t i;
    for (i = 0; i < s->threads; i++)
        if ((s->searchers[i] = nodedb_vamana_searcher_create(index, NULL, &err)) == NULL) die("searcher:", err.message);
}

static void take_searchers(subject *s) {
    uint32_t i;
    for (i = 0; i < s->threads; i++) nodedb_vamana_searcher_destroy(s->searchers[i]);
}

static const point *point_of(const subject *s, uint32_t width) {
    uint32_t i;
    for (i = 0; i < s->point_count; i++)
        if (s->points[i].width == width) return &s->points[i];
    return NULL;
}

/* Fills the points: what each width finds and what it looks at, all queries once; and so how often a round asks them.
 * `all`: also widths that --only does not name. */
static void count(subject *s, const uint32_t *widths, bool all) {
    double round_s = quick ? 0.02 : 0.1;
    for (; *widths != 0; widths++) {
        point *p = &s->points[s->point_count];
        char name[96];
        uint64_t begin = bench_now_ns();
        costs c = {0, 0, 0};
        uint32_t i;
        case_name(name, sizeof name, s, *widths);
        if (!all && !wanted(name)) continue;
        if (*widths > ENOUGH_WIDTH && s->point_count > 0 && p[-1].recall >= ENOUGH_RECALL && s->data->hard == NULL)
            return;
        memset(p, 0, sizeof *p);
        p->width = *widths, p->passes = 1, s->point_count++;
        if (s->single != NULL) {
            const point *same = point_of(s->single, *widths);
            if (same == NULL) s->point_count--;
            else p->passes = same->passes;
            continue;
        }
        for (i = 0; i < s->query_count; i++) answer(s, 0, *widths, i, &c);
        p->passes += (uint32_t)(round_s / seconds_since(begin));
        p->recall = (double)c.hits / ((double)K * s->query_count);
        p->distances = (double)c.distances / s->query_count, p->reads = (double)c.reads / s->query_count;
    }
}

static void counted_rows(const subject *s, const point *p) {
    char name[96];
    case_name(name, sizeof name, s, p->width);
    put_row(name, "recall_at_10", p->recall, "ratio");
    if (s->disk) put_row(name, "reads_per_query", p->reads, "reads");
    else put_row(name, "distances_per_query", p->distances, "distances");
}

static void timed_rows(const subject *s, const point *p) {
    double samples[ROUNDS_MAX];
    char name[96];
    uint32_t round;
    case_name(name, sizeof name, s, p->width);
    memcpy(samples, p->qps, sizeof samples);
    put_row(name, "qps", bench_median(samples, rounds), "1/s");
    if (s->threads == 1) return;
    for (round = 0; round < rounds; round++)
        samples[round] = p->qps[round] / point_of(s->single, p->width)->qps[round];
    put_row(name, "of_one_thread", bench_median(samples, rounds), "ratio");
}

static void measure(subject *list, uint32_t n) {
    uint32_t round, i, at;
    for (round = 0; round < rounds; round++)
        for (i = 0; i < n; i++)
            for (at = 0; at < list[i].point_count; at++)
                list[i].points[at].qps[round] = timed(&list[i], &list[i].points[at]);
    for (i = 0; i < n; i++)
        for (at = 0; at < list[i].point_count; at++) {
            if (list[i].single == NULL) counted_rows(&list[i], &list[i].points[at]);
            timed_rows(&list[i], &list[i].points[at]);
        }
}

/* ===================================================================================================================
 * EQUAL RECALL: queries/s at a recall, between two beams
 * ================================================================================================================ */

/* Queries per second at a recall, from the first two neighbouring widths around it; those of the narrowest, K, if that
 * finds more already: it can not be asked to find less and be faster. 0: no width gets there. */
static double qps_at(const subject *s, const double *qps, double recall) {
    uint32_t i;
    if (s->point_count > 0 && s->points[0].recall >= recall) return qps[0];
    for (i = 1; i < s->point_count; i++) {
        double low = s->points[i - 1].recall, high = s->points[i].recall, share;
        if (low > recall || high < recall) continue;
        share = high > low ? (recall - low) / (high - low) : 0;
        return exp(log(qps[i - 1]) + share * (log(qps[i]) - log(qps[i - 1])));
    }
    return 0;
}

static double round_qps_at(const subject *s, uint32_t round, double recall) {
    double qps[WIDTHS_MAX];
    uint32_t i;
    for (i = 0; i < s->point_count; i++) qps[i] = s->points[i].qps[round];
    return qps_at(s, qps, recall);
}

static void recall_rows(const subject *s, const subject *peer, double recall) {
    double qps[WIDTHS_MAX], ratios[ROUNDS_MAX], samples[ROUNDS_MAX], value;
    char name[96];
    uint32_t i;
    for (i = 0; i < s->point_count; i++) {
        memcpy(samples, s->points[i].qps, sizeof samples);
        qps[i] = bench_median(samples, rounds);
    }
    (void)snprintf(name, sizeof name, "%.47s/recall=%g", s->name, recall);
    value = qps_at(s, qps, recall);
    if (value > 0) put_row(name, "qps", value, "1/s");
    if (s->point_count > 0 && wanted(name)) {
        double narrowest = s->points[0].recall, widest = s->points[s->point_count - 1].recall;
        if (value == 0) fprintf(stderr, "%s: left out, the widest finds %g\n", name, widest);
        else if (narrowest > recall) fprintf(stderr, "%s: that of the narrowest, which finds %g\n", name, narrowest);
    }
    if (peer == NULL || value == 0 || round_qps_at(peer, 0, recall) == 0) return;
    for (i = 0; i < rounds; i++) ratios[i] = round_qps_at(s, i, recall) / round_qps_at(peer, i, recall);
    (void)snprintf(name, sizeof name, "ratio/type=%s/recall=%g", type_names[s->type], recall);
    put_row(name, "ours_over_hnswlib", bench_median(ratios, rounds), "ratio");
}

/* ===================================================================================================================
 * BUILDING: in a batch, and one by one
 * ================================================================================================================ */

static const uint32_t inserted_widths[] = {16, 32, 64, 128, 0};

static nodedb_vamana_config config_for(const data_set *d, nodedb_vamana_type type, int argc, char **argv) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = d->dim, c.type = type, c.capacity = d->n;
    c.degree = (uint32_t)atoi(bench_option(argc, argv, "--degree", "0"));
    c.beam_build = (uint32_t)atoi(bench_option(argc, argv, "--beam-build", "0"));
    c.alpha = (float)atof(bench_option(argc, argv, "--alpha", "0"));
#if NODEDB_VAMANA_FORMAT_VERSION >= 2
    {
        const char *code = bench_option(argc, argv, "--code", "auto");
        c.code = strcmp(code, "none") == 0 ? NODEDB_VAMANA_CODE_NONE
                 : strcmp(code, "8") == 0  ? NODEDB_VAMANA_CODE_8BIT
                 : strcmp(code, "4") == 0  ? NODEDB_VAMANA_CODE_4BIT
                                           : NODEDB_VAMANA_CODE_AUTO;
        if (c.code == NODEDB_VAMANA_CODE_AUTO && strcmp(code, "auto") != 0)
            die("--code is auto, none, 8 or 4, not", code);
    }
#endif
    return c;
}

static uint32_t threads_of(int argc, char **argv) {
    int threads = atoi(bench_option(argc, argv, "--threads", "2"));
    return threads < 1 ? 1 : threads > THREADS_MAX ? THREADS_MAX : (uint32_t)threads;
}

static uint32_t inserts_of(const data_set *d, int argc, char **argv) {
    const char *option = bench_option(argc, argv, "--inserts", NULL);
    uint32_t inserts = option != NULL ? (uint32_t)strtoul(option, NULL, 10)
                       : quick        ? INSERTS_QUICK
                                      : INSERTS_MAX;
    return inserts < d->n ? inserts : d->n;
}

/* The file of an index of ours that an option names, with both types one for each; or NULL. `path`: room for it. */
static const char *index_file(int argc, char **argv, const char *option, nodedb_vamana_type type, bool both,
                              char path[PATH_BYTES]) {
    const char *file = bench_option(argc, argv, option, NULL);
    if (file == NULL) return NULL;
    (void)snprintf(path, PATH_BYTES, "%s%s%s", file, both ? "." : "", both ? type_names[type] : "");
    return path;
}

static void bytes_rows(const char *name, const data_set *d, nodedb_vamana_type type, uint64_t bytes) {
    put_row(name, "bytes_per_vector", (double)bytes / d->n, "bytes");
    put_row(name, "bytes_beyond_vector", (double)bytes / d->n - (double)row_bytes(d, type), "bytes");
}

/* The index that is searched, from the file `from` or by a build, and its rows but for the inserts; `name`: of its
 * case. What was built is saved to the file `to`. Both may be NULL. */
static nodedb_vamana *build_ours(const data_set *d, nodedb_vamana_type type, const char *name, const char *from,
                                 const char *to, int argc, char **argv) {
    nodedb_vamana_config c = config_for(d, type, argc, argv);
    nodedb_vamana *index;
    nodedb_error err;
    if (from != NULL) {
        index = nodedb_vamana_open(from, NULL, &err);
        if (index == NULL) die("open:", err.message);
        if (nodedb_vamana_count(index) != d->n || nodedb_vamana_dim(index) != d->dim ||
            nodedb_vamana_type_of(index) != type)
            die("an index of other vectors:", from);
        fprintf(stderr, "%s: loaded from %s\n", name, from);
    } else {
        uint32_t threads = threads_of(argc, argv);
        uint64_t begin = bench_now_ns();
        index = nodedb_vamana_create(&c, &err);
        if (index == NULL) die("create:", err.message);
        if (nodedb_vamana_build(index, NULL, d->base[type], d->n, threads, NULL, NULL, &err) != NODEDB_OK)
            die("build:", err.message);
        put_row(name, "build_s", seconds_since(begin), "s");
        if (to != NULL && nodedb_vamana_save(index, to, NODEDB_VAMANA_RESIDENT, &err) != NODEDB_OK)
            die("save:", err.message);
    }
    fprintf(stderr, "%s: type %s, kernel %s\n", name, type_names[type], nodedb_vamana_kernel(index));
    bytes_rows(name, d, type, nodedb_vamana_memory_bytes(index));
    return index;
}

/* How good what inserting one by one made is. */
static void inserted_rows(subject *s) {
    uint32_t i;
    count(s, inserted_widths, false);
    for (i = 0; i < s->point_count; i++) counted_rows(s, &s->points[i]);
}

static void insert_ours(const data_set *all, const data_set *d, nodedb_vamana_type type, const char *name,
                        const char *inserted_name, int argc, char **argv) {
    nodedb_vamana_config c = config_for(all, type, argc, argv);
    subject s = make_subject(d, type, inserted_name);
    nodedb_error err;
    nodedb_vamana *index = nodedb_vamana_create(&c, &err);
    uint64_t begin = bench_now_ns();
    uint32_t i;
    if (index == NULL) die("create:", err.message);
    for (i = 0; i < d->n; i++)
        if (nodedb_vamana_insert(index, i, base_row(d, type, i), &err) != NODEDB_OK) die("insert:", err.message);
    put_row(name, "insert_per_s", d->n / seconds_since(begin), "1/s");
    give_searchers(&s, index);
    inserted_rows(&s);
    take_searchers(&s);
    nodedb_vamana_destroy(index);
}

static peer_hnswlib *build_hnswlib(const data_set *d, int argc, char **argv) {
    const char *file = bench_option(argc, argv, "--hnsw-index", NULL);
    peer_hnswlib *peer = peer_hnswlib_create(d->dim, d->n, PEER_L2);
    uint64_t begin = bench_now_ns();
    if (peer == NULL) return NULL;
    if (file != NULL && access(file, F_OK) == 0) {
        if (!peer_hnswlib_load(peer, file, d->n)) die("hnswlib could not load", file);
        fprintf(stderr, "hnswlib/build: loaded from %s\n", file);
    } else {
        if (!peer_hnswlib_add(peer, (const float *)(const void *)d->base[NODEDB_VAMANA_F32], d->n,
                              threads_of(argc, argv)))
            die("hnswlib failed to", "build");
        put_row("hnswlib/build", "build_s", seconds_since(begin), "s");
        if (file != NULL && !peer_hnswlib_save(peer, file)) die("hnswlib could not save", file);
    }
    bytes_rows("hnswlib/build", d, NODEDB_VAMANA_F32, peer_hnswlib_bytes(peer));
    return peer;
}

static void insert_hnswlib(const data_set *d) {
    peer_hnswlib *peer = peer_hnswlib_create(d->dim, d->n, PEER_L2);
    subject s = make_subject(d, NODEDB_VAMANA_F32, "hnswlib/inserted");
    uint64_t begin = bench_now_ns();
    if (peer == NULL || !peer_hnswlib_add(peer, (const float *)(const void *)d->base[NODEDB_VAMANA_F32], d->n, 1))
        die("hnswlib failed to", "insert");
    put_row("hnswlib/build", "insert_per_s", d->n / seconds_since(begin), "1/s");
    s.width_name = "ef", s.peer = peer;
    inserted_rows(&s);
    peer_hnswlib_destroy(peer);
}

/* ===================================================================================================================
 * KERNELS: against the speed of the memory
 * ================================================================================================================ */

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
        uint32_t round, pass, passes = total < 1000000 ? 200 : 1;
        char name[96];
        snprintf(name, sizeof name, "%s/%s-%s", prefix, k->name, names[f]);
        if (!wanted(name)) continue;
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
        put_row(name, "bytes_per_s", bench_median(rates, rounds), "bytes/s");
    }
}

static void memory_rows(void) {
    size_t total = (size_t)(quick ? 64 : 256) << 20, set;
    void *memory = NULL;
    double rates[ROUNDS_MAX];
    uint32_t round;
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

/* ===================================================================================================================
 * DISK: both layouts, against the device
 * ================================================================================================================ */

/* What the device gives: random blocks of the file, O_DIRECT, by nothing but io_uring: 64 always in flight, or 24 at a
 * time. */
static double random_read_row(const char *path, const char *name, bool in_batches) {
#if defined(NODEDB_VAMANA__URING)
    enum { DEPTH = 64, BATCH = 24 };
    const uint32_t depth = in_batches ? BATCH : DEPTH;
    double rates[ROUNDS_MAX];
    uint32_t round, reads = quick ? 4096 : 65536, done, submitted;
    uint64_t state = 7, blocks;
    int fd = open(path, O_RDONLY | O_DIRECT);
    uint8_t *buffers = (uint8_t *)aligned_alloc(4096, (size_t)DEPTH * 4096);
    struct io_uring ring;
    struct io_uring_cqe *cqe;
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    if (fd < 0 || buffers == NULL || size < 4096 || io_uring_queue_init(DEPTH, &ring, 0) < 0) {
        fprintf(stderr, "limit/random-read: no direct reads of %s\n", path);
        if (fd >= 0) close(fd);
        free(buffers);
        return 0;
    }
    blocks = (uint64_t)size / 4096;
    for (round = 0; round < rounds; round++) {
        uint64_t begin = bench_now_ns();
        for (submitted = 0, done = 0; done < reads;) {
            while (submitted < reads && submitted - done < depth) {
                struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
                if (sqe == NULL) break;
                /* nobody looks at what comes, so two reads may share a buffer */
                io_uring_prep_read(sqe, fd, buffers + (size_t)(submitted % DEPTH) * 4096, 4096,
                                   nodedb_mix64(state++) % blocks * 4096);
                submitted++;
            }
            if (io_uring_submit_and_wait(&ring, in_batches ? submitted - done : 1) < 0)
                die("limit/random-read:", "the ring is broken");
            while (io_uring_peek_cqe(&ring, &cqe) == 0 && cqe != NULL) {
                if (cqe->res != 4096) die("limit/random-read: cannot read", path);
                io_uring_cqe_seen(&ring, cqe);
                done++;
            }
        }
        rates[round] = (double)reads * 1e9 / (double)(bench_now_ns() - begin);
    }
    io_uring_queue_exit(&ring);
    close(fd);
    free(buffers);
    bench_row(name, "reads_per_s", bench_median(rates, rounds), "1/s");
    return bench_median(rates, rounds);
#else
    (void)path, (void)name, (void)in_batches;
    return 0;
#endif
}

/* What a disk case costs beside time: reads, the slowest calls (one more pass), and memory. */
static void cost_rows(const subject *s, const point *p, uint64_t resident, double limit) {
    static double samples[ROUNDS_MAX], took[DISK_QUERIES_MAX];
    char name[96];
    double rate;
    uint32_t calls = 0;
    case_name(name, sizeof name, s, p->width);
    memcpy(samples, p->qps, sizeof samples);
    rate = bench_median(samples, rounds) * point_of(s->single, p->width)->reads;
    put_row(name, "reads_per_s", rate, "1/s");
    if (limit > 0) put_row(name, "of_limit", rate / limit, "ratio");
    if (!s->many || s->call != 0) {
        if (s->many) calls = answer_many(s, p->width, took);
        for (; calls < s->query_count && !s->many; calls++) {
            uint64_t begin = bench_now_ns();
            answer(s, 0, p->width, calls, NULL);
            took[calls] = (double)(bench_now_ns() - begin) / 1e3;
        }
        put_row(name, "p50_us", bench_median(took, calls), "us");
        put_row(name, "p99_us", bench_percentile(took, calls, 0.99), "us");
    }
    put_row(name, "resident_bytes", (double)resident, "bytes");
}

/* Every byte that an index on disk and its searchers hold. */
static uint64_t held_bytes;
static void *held_alloc(void *ctx, size_t bytes, size_t align) {
    void *memory = NULL;
    (void)ctx;
    if (posix_memalign(&memory, align, bytes) != 0) return NULL;
    held_bytes += bytes;
    return memory;
}
static void held_release(void *ctx, void *memory, size_t bytes) {
    (void)ctx;
    if (memory != NULL) held_bytes -= bytes;
    free(memory);
}

static void save_for_disk(nodedb_vamana *index, const char *path, nodedb_vamana_layout layout, const char *name) {
    uint64_t begin = bench_now_ns(), slice;
    double worst = 0, took;
    bool more = true;
    nodedb_error err;
    char row[96];
    if (nodedb_vamana_save_begin(index, path, layout, &err) != NODEDB_OK) die("save:", err.message);
    while (more) {
        slice = bench_now_ns();
        if (nodedb_vamana_save_step(index, SAVE_SLICE, &more, &err) != NODEDB_OK) die("save:", err.message);
        took = (double)(bench_now_ns() - slice) / 1e6, worst = took > worst ? took : worst;
    }
    (void)snprintf(row, sizeof row, "disk/layout=%s/save", name);
    put_row(row, "seconds", seconds_since(begin), "s");
    put_row(row, "worst_slice_ms", worst, "ms");
}

/* One way of reading one layout: a query to a call, 16, and all. */
static void fetch_rows(const char *path, const data_set *d, nodedb_vamana_type type, nodedb_vamana_fetch fetch,
                       const char *layout, double limit) {
    static const uint32_t beams[] = {24, 28, 32, 48, 64, 128, 0}, few[] = {28, 64, 0};
    static const char *const names[] = {"uring", "pread", "mapped"}, *const suffixes[] = {"", "/many=16", "/many"};
    static const uint32_t calls[] = {0, 16, 0};
    subject ways[3];
    nodedb_vamana_open_config o;
    nodedb_vamana *disk;
    nodedb_error err;
    char name[96];
    uint32_t kept = rounds, n = fetch == NODEDB_VAMANA_FETCH_AUTO ? 3 : 1, i, at; /* one by one it takes long */
    uint64_t begin;
    double opened;
    bool more = true;
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = fetch;
    o.allocator.alloc = held_alloc, o.allocator.release = held_release;
    held_bytes = 0, begin = bench_now_ns();
    disk = nodedb_vamana_open(path, &o, &err);
    if (disk == NULL) die("open:", err.message);
    opened = seconds_since(begin), begin = bench_now_ns();
    while (more)
        if (nodedb_vamana_load(disk, UINT64_MAX, &more, &err) != NODEDB_OK) die("load:", err.message);
    if (fetch == NODEDB_VAMANA_FETCH_AUTO) {
        (void)snprintf(name, sizeof name, "disk/layout=%s/open", layout);
        put_row(name, "open_ms", opened * 1e3, "ms");
        put_row(name, "load_ms", seconds_since(begin) * 1e3, "ms");
    }
    (void)snprintf(name, sizeof name, "disk/layout=%s/fetch=%s", layout, names[fetch]);
    if (fetch != NODEDB_VAMANA_FETCH_AUTO) rounds = 1;
    for (i = 0; i < n; i++) {
        ways[i] = make_subject(d, type, name);
        ways[i].disk = true, ways[i].many = i > 0, ways[i].call = calls[i], ways[i].single = i > 0 ? &ways[0] : NULL;
        ways[i].query_count = quick ? DISK_QUERIES_MAX / 20 : DISK_QUERIES_MAX;
        if (ways[i].query_count > d->query_count) ways[i].query_count = d->query_count;
        (void)snprintf(ways[i].suffix, sizeof ways[i].suffix, "%s", suffixes[i]);
        give_searchers(&ways[i], disk);
        count(&ways[i], quick ? few : beams, false);
    }
    measure(ways, n);
    ways[0].single = &ways[0];
    for (i = 0; i < n; i++) {
        for (at = 0; at < ways[i].point_count; at++)
            cost_rows(&ways[i], &ways[i].points[at], held_bytes, fetch == NODEDB_VAMANA_FETCH_MAPPED ? 0 : limit);
        take_searchers(&ways[i]);
    }
    rounds = kept;
    nodedb_vamana_destroy(disk);
}

static void disk_rows(nodedb_vamana *index, const data_set *d, nodedb_vamana_type type, const char *dir) {
    static const char *const names[] = {"resident", "packed"};
    char path[600];
    double limit;
    int layout, fetch;
    (void)snprintf(path, sizeof path, "%s/bench_vamana.index", dir);
    for (layout = 0; layout < 2; layout++) {
        save_for_disk(index, path, (nodedb_vamana_layout)layout, names[layout]);
        limit = random_read_row(path, layout == 0 ? "limit/random-read" : "limit/random-read/packed", false);
        if (layout == 0) (void)random_read_row(path, "limit/random-read/batch=24", true);
        for (fetch = 0; fetch < 3; fetch++)
            fetch_rows(path, d, type, (nodedb_vamana_fetch)fetch, names[layout], limit);
    }
    (void)remove(path);
}

#include "bench_vamana_hard.h"

/* ===================================================================================================================
 * THE RUN: options, and what is measured in which order
 * ================================================================================================================ */

static const uint32_t widths[] = {10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 0};
static const uint32_t some_widths[] = {32, 64, 0}; /* for what is about threads and calls, not about recall */

/* True if a row at equal recall is asked for: it needs all widths. */
static bool at_recall(const char *name) {
    char at[96];
    (void)snprintf(at, sizeof at, "%s/recall=", name);
    return wanted(at);
}

/* Adds the ways to ask an index of ours. */
static void add_ours(const data_set *d, nodedb_vamana_type type, const nodedb_vamana *index, uint32_t threads) {
    subject *first = &subjects[subject_count], *s;
    char name[48];
    (void)snprintf(name, sizeof name, "ours/type=%s", type_names[type]);
    *first = make_subject(d, type, name);
    give_searchers(first, index);
    count(first, widths, at_recall(name) || wanted("ratio/"));
    subject_count++;
    s = &subjects[subject_count++], *s = make_subject(d, type, name);
    (void)snprintf(s->suffix, sizeof s->suffix, "/many");
    s->many = true, s->single = first;
    give_searchers(s, index);
    count(s, some_widths, false);
    if (threads > 1) {
        s = &subjects[subject_count++], *s = make_subject(d, type, name);
        (void)snprintf(s->suffix, sizeof s->suffix, "/threads=%u", (unsigned)threads);
        s->threads = threads, s->single = first;
        give_searchers(s, index);
        count(s, some_widths, false);
    }
    (void)snprintf(name, sizeof name, "ours/exact-walk/type=%s", type_names[type]);
    s = &subjects[subject_count++], *s = make_subject(d, type, name);
    s->exact_walk = true;
    give_searchers(s, index);
    count(s, widths, at_recall(name));
}

/* True if a row is wanted for which an index of ours of this type must be searched. */
static bool searches_ours(nodedb_vamana_type type) {
    char plain[48], exact[48], ratio[48];
    (void)snprintf(plain, sizeof plain, "ours/type=%s/", type_names[type]);
    (void)snprintf(exact, sizeof exact, "ours/exact-walk/type=%s/", type_names[type]);
    (void)snprintf(ratio, sizeof ratio, "ratio/type=%s/", type_names[type]);
    return wanted(plain) || wanted(exact) || wanted(ratio);
}

/* A run: what it measures with what. */
typedef struct run {
    int argc;
    char **argv;
    data_set data;
    bool takes[2];              /* types of ours; with `both` the second one's cases say so */
    bool both, disk;
    nodedb_vamana *indexes[2];
    peer_hnswlib *peer;
} run;

static void type_case(char name[64], const run *r, const char *what, nodedb_vamana_type type) {
    (void)snprintf(name, 64, "%s%s", what, r->both && type == NODEDB_VAMANA_F32 ? "/type=f32" : "");
}

/* Bytes first, if there are any. */
static const nodedb_vamana_type types_in_order[2] = {NODEDB_VAMANA_U8, NODEDB_VAMANA_F32};

static void build_all(run *r) {
    char name[64], from[PATH_BYTES], to[PATH_BYTES];
    int i;
    for (i = 0; i < 2; i++) {
        nodedb_vamana_type t = types_in_order[i];
        type_case(name, r, "ours/build", t);
        if (r->takes[t] && (searches_ours(t) || wanted(name)))
            r->indexes[t] = build_ours(&r->data, t, name,
                                       index_file(r->argc, r->argv, "--load-index", t, r->both, from),
                                       index_file(r->argc, r->argv, "--save-index", t, r->both, to), r->argc, r->argv);
    }
    if (r->disk && r->indexes[NODEDB_VAMANA_F32] == NULL) /* of floats there is more to leave on the disk */
        r->indexes[NODEDB_VAMANA_F32] = build_ours(&r->data, NODEDB_VAMANA_F32, "disk/build", NULL, NULL, r->argc,
                                                   r->argv);
    if (wanted("hnswlib/") || wanted("ratio/")) {
        r->peer = build_hnswlib(&r->data, r->argc, r->argv);
        if (r->peer == NULL)
            fprintf(stderr, "hnswlib is left out: its headers (libhnswlib-dev) were not there when this was built\n");
    }
}

static void insert_all(const run *r) {
    uint32_t inserts = inserts_of(&r->data, r->argc, r->argv);
    bool peer = r->peer != NULL && (wanted("hnswlib/build") || wanted("hnswlib/inserted/"));
    char name[64], inserted[64];
    data_set first;
    int i;
    if (inserts == 0 || !(peer || wanted("ours/build") || wanted("ours/inserted/"))) return;
    first = first_of(&r->data, inserts);
    for (i = 0; i < 2; i++) {
        nodedb_vamana_type t = types_in_order[i];
        type_case(name, r, "ours/build", t), type_case(inserted, r, "ours/inserted", t);
        if (r->takes[t] && (wanted(name) || wanted(inserted)))
            insert_ours(&r->data, &first, t, name, inserted, r->argc, r->argv);
    }
    if (peer) insert_hnswlib(&first);
    if (first.truth != r->data.truth) free((void *)(uintptr_t)first.truth);
}

static void search_all(const run *r) {
    static const double recalls[] = {0.95, 0.99};
    subject *hnswlib = NULL;
    uint32_t i, at;
    for (i = 0; i < 2; i++) {
        nodedb_vamana_type t = types_in_order[i];
        if (r->takes[t] && searches_ours(t)) add_ours(&r->data, t, r->indexes[t], threads_of(r->argc, r->argv));
    }
    if (r->peer != NULL && (wanted("hnswlib/ef=") || wanted("hnswlib/recall=") || wanted("ratio/"))) {
        hnswlib = &subjects[subject_count++], *hnswlib = make_subject(&r->data, NODEDB_VAMANA_F32, "hnswlib");
        hnswlib->width_name = "ef", hnswlib->peer = r->peer;
        count(hnswlib, widths, at_recall("hnswlib") || wanted("ratio/"));
    }
    measure(subjects, subject_count);
    for (at = 0; at < sizeof recalls / sizeof *recalls; at++)
        for (i = 0; i < subject_count; i++) {
            const subject *s = &subjects[i];
            bool compared = s != hnswlib && !s->exact_walk;
            if (s->single == NULL) recall_rows(s, compared ? hnswlib : NULL, recalls[at]);
        }
    for (i = 0; i < subject_count; i++)
        if (subjects[i].peer == NULL) take_searchers(&subjects[i]);
}

int main(int argc, char **argv) {
    const char *type = bench_option(argc, argv, "--type", "both"), *given_rounds;
    bool hard;
    run r;
    memset(&r, 0, sizeof r);
    r.argc = argc, r.argv = argv;
    bench_name = "vamana";
    quick = bench_flag(argc, argv, "--quick"), hard = bench_flag(argc, argv, "--hard");
    only = bench_option(argc, argv, "--only", "");
    given_rounds = bench_option(argc, argv, "--rounds", hard && quick ? "1" : hard || quick ? "3" : "7");
    rounds = (uint32_t)strtoul(given_rounds, NULL, 10);
    if (rounds < 1 || rounds > ROUNDS_MAX) die("--rounds is 1 to 21, not", given_rounds);
    if (hard) {
        hard_rows(argc, argv);
        return 0;
    }
    r.both = strcmp(type, "both") == 0;
    r.takes[NODEDB_VAMANA_F32] = r.both || strcmp(type, "f32") == 0;
    r.takes[NODEDB_VAMANA_U8] = r.both || strcmp(type, "u8") == 0;
    if (!r.takes[NODEDB_VAMANA_F32] && !r.takes[NODEDB_VAMANA_U8]) die("--type is u8, f32 or both, not", type);
    r.disk = wanted("disk/") || wanted("limit/random-read");
    if (r.disk || wanted("ours/") || wanted("hnswlib/") || wanted("ratio/")) {
        r.data = load_all(argc, argv);
        if (r.data.base[NODEDB_VAMANA_U8] == NULL) r.takes[NODEDB_VAMANA_U8] = r.both = false;
        if (!r.takes[NODEDB_VAMANA_F32] && !r.takes[NODEDB_VAMANA_U8]) die("--type u8 is for bytes, not for", "fbin");
        build_all(&r);
        insert_all(&r);
        search_all(&r);
    }
    if (wanted("kernel/") || wanted("kernel-cached/") || wanted("limit/memory-read")) memory_rows();
    if (r.disk)
        disk_rows(r.indexes[NODEDB_VAMANA_F32], &r.data, NODEDB_VAMANA_F32,
                  bench_option(argc, argv, "--dir", access("build", W_OK) == 0 ? "build" : "."));
    peer_hnswlib_destroy(r.peer);
    nodedb_vamana_destroy(r.indexes[NODEDB_VAMANA_U8]), nodedb_vamana_destroy(r.indexes[NODEDB_VAMANA_F32]);
    return 0;
}
