/* Tests of nodedb_vamana.h with vectors that graph indexes stumble over (tests/hard_kinds.h), random histories, and
 * sizes and numbers at the edges of what is allowed. Each name is a promise of the manual. The implementation is part
 * of this file: codes are made earlier than at 4,096 vectors, where that saves time. The rooms:
 *
 *   DATA         rows of every type
 *   HISTORIES    every live vector stays reachable
 *   EDGES        sizes and numbers at the limits
 *   RECALL       of the hard kinds, on codes and on vectors
 *   BEAM_BUILD   it adapts
 *   MEMORY       a small index is small
 *   FILTERS      k results at any selectivity */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "hard_kinds.h"
#include "refusing_allocator.h"
#include "test.h"

/* ===================================================================================================================
 * DATA: rows of every type
 * ================================================================================================================ */

/* Rows of components of the index's type. The owner calls free(rows.bytes). */
typedef struct rows {
    uint8_t *bytes;
    size_t row_bytes;
} rows;

static size_t vector_bytes(nodedb_vamana_type type, uint32_t dim) {
    return type == NODEDB_VAMANA_F32 ? dim * sizeof(float) : dim;
}

static const void *row_at(const rows *r, size_t i) { return r->bytes + i * r->row_bytes; }

/* How floats become bytes: value v becomes (v - least) / step, from 0 to 255. */
typedef struct byte_scale {
    double least, step;
} byte_scale;

static byte_scale scale_of(const float *values, size_t count) {
    byte_scale s = {0, 1};
    double least = values[0], most = values[0];
    size_t i;
    for (i = 0; i < count; i++) {
        if (values[i] < least) least = values[i];
        if (values[i] > most) most = values[i];
    }
    s.least = least;
    if (most > least) s.step = (most - least) / 255;
    return s;
}

/* `n` rows of floats as the type has them. Bytes are signed with 128 less, and cut off at the ends of their range. */
static rows rows_of(const float *values, uint32_t n, uint32_t dim, nodedb_vamana_type type, byte_scale scale) {
    rows r;
    size_t i;
    r.row_bytes = vector_bytes(type, dim);
    r.bytes = (uint8_t *)malloc(n * r.row_bytes + 1);
    if (type == NODEDB_VAMANA_F32) {
        memcpy(r.bytes, values, n * r.row_bytes);
        return r;
    }
    for (i = 0; i < (size_t)n * dim; i++) {
        double v = floor((values[i] - scale.least) / scale.step + 0.5);
        uint8_t byte = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
        r.bytes[i] = type == NODEDB_VAMANA_U8 ? byte : byte ^ 0x80;
    }
    return r;
}

static nodedb_vamana_query query_of(const void *vector, uint32_t k, uint32_t beam) {
    nodedb_vamana_query q;
    memset(&q, 0, sizeof q);
    q.vector = vector, q.k = k, q.beam = beam;
    return q;
}

static uint32_t below(uint64_t *random, uint32_t bound) { return (uint32_t)(test_random(random) % bound); }

static uint64_t unreachable_in(const nodedb_vamana *index) {
    nodedb_vamana_info info;
    nodedb_vamana_inspect(index, &info);
    return info.unreachable;
}

/* Files of tests need not survive a loss of power. */
static int no_sync(void *ctx, int fd) {
    (void)ctx, (void)fd;
    return 0;
}

static const char *path_of(const char *name) {
    static char path[700];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    return path;
}

static nodedb_vamana *open_as(const char *path, nodedb_vamana_mode mode) {
    nodedb_vamana_open_config o;
    nodedb_vamana *index;
    nodedb_error err;
    memset(&o, 0, sizeof o);
    o.mode = mode, o.io.sync = no_sync, o.no_direct = true;
    index = nodedb_vamana_open(path, &o, &err);
    if (index == NULL) test_fail(__FILE__, __LINE__, err.message);
    return index;
}

/* ===================================================================================================================
 * HISTORIES: every live vector stays reachable
 * ================================================================================================================ */

enum { GENERATIONS = 2 }; /* sets of vectors of a kind: a replaced id may get one of the other set */

/* An index, what has been done to it, and what must be in it. Vector i of either generation belongs to id
 * first_id + i. */
typedef struct history {
    uint32_t number;
    uint64_t random;
    const hard_kind *kind;
    nodedb_vamana_config config;
    nodedb_vamana *index;
    rows vectors[GENERATIONS], queries;
    uint32_t n, query_count;
    uint64_t first_id;
    bool *there; /* n: true if id first_id + i is in the index */
    uint32_t live;
    uint32_t step;       /* number of the step */
    const char *doing;   /* its name */
    char said[512];      /* what the history is, for messages */
    bool failed;         /* ends it: later failures would only follow from this one */
} history;

static void history_fails(history *h, int line, const char *what) {
    char text[900];
    snprintf(text, sizeof text, "history %u (%s), step %u (%s), %u live: %s", (unsigned)h->number, h->said,
             (unsigned)h->step, h->doing, (unsigned)h->live, what);
    test_fail(__FILE__, line, text);
    h->failed = true;
}
#define HOLDS(h, condition) ((condition) ? (void)0 : history_fails((h), __LINE__, "does not hold: " #condition))

static const void *some_vector(history *h, uint32_t i) {
    return row_at(&h->vectors[below(&h->random, GENERATIONS)], i);
}

/* The first id from a random one on that is there, or is not. n: none. */
static uint32_t some_id(history *h, bool there) {
    uint32_t start = below(&h->random, h->n), i;
    for (i = 0; i < h->n; i++)
        if (h->there[(start + i) % h->n] == there) return (start + i) % h->n;
    return h->n;
}

static void insert_id(history *h, uint32_t i) {
    nodedb_error err;
    if (nodedb_vamana_insert(h->index, h->first_id + i, some_vector(h, i), &err) != NODEDB_OK)
        history_fails(h, __LINE__, err.message);
    h->live += !h->there[i];
    h->there[i] = true;
}

static void remove_id(history *h, uint32_t i) {
    nodedb_error err;
    if (nodedb_vamana_remove(h->index, h->first_id + i, &err) != NODEDB_OK) history_fails(h, __LINE__, err.message);
    h->there[i] = false;
    h->live--;
}

/* Few mostly, sometimes many. */
static uint32_t some_count(history *h) {
    uint32_t most = below(&h->random, 6) == 0 ? h->n / 2 : h->n / 12;
    return 1 + below(&h->random, most);
}

static void do_insert(history *h) {
    uint32_t count = some_count(h), i;
    for (; count > 0 && (i = some_id(h, false)) < h->n; count--) insert_id(h, i);
}

static void do_replace(history *h) {
    uint32_t count = some_count(h), i;
    for (; count > 0 && (i = some_id(h, true)) < h->n; count--) insert_id(h, i);
}

static void do_remove(history *h) {
    uint32_t count = some_count(h), i;
    for (; count > 0 && (i = some_id(h, true)) < h->n; count--) remove_id(h, i);
}

/* Ids in a row: of some kinds a whole cluster, or one end of a curve. */
static void do_remove_in_order(history *h) {
    uint32_t count = some_count(h), i = some_id(h, true);
    for (; count > 0 && i < h->n && h->there[i]; count--, i++) remove_id(h, i);
}

/* Again and again the vector where all walks begin. */
static void do_remove_the_entry(history *h) {
    uint32_t count = 1 + below(&h->random, 8);
    nodedb_vamana_info info;
    for (; count > 0 && h->live > 0; count--) {
        nodedb_vamana_inspect(h->index, &info);
        HOLDS(h, info.entry_id >= h->first_id && info.entry_id < h->first_id + h->n);
        if (h->failed) return;
        if (h->there[info.entry_id - h->first_id]) remove_id(h, (uint32_t)(info.entry_id - h->first_id));
        else (void)nodedb_vamana_maintain(h->index, 64);
    }
}

static void do_insert_all(history *h) {
    uint32_t i;
    while ((i = some_id(h, false)) < h->n) insert_id(h, i);
}

static void do_remove_all(history *h) {
    uint32_t i;
    while ((i = some_id(h, true)) < h->n) remove_id(h, i);
}

typedef struct build_watch {
    uint32_t calls_left;
    uint64_t done;
} build_watch;

static bool watch_build(void *ctx, uint64_t done, uint64_t total) {
    build_watch *w = (build_watch *)ctx;
    (void)total;
    w->done = done;
    return w->calls_left-- > 0;
}

/* Builds a batch of ids that are not there; a build that is cancelled leaves some of them. */
static void build_batch(history *h, uint32_t calls) {
    uint32_t count = some_count(h), taken = 0, i, before = h->live, start = below(&h->random, h->n);
    uint64_t *ids = (uint64_t *)calloc(count, sizeof *ids);
    uint8_t *batch = (uint8_t *)calloc(count, h->queries.row_bytes);
    build_watch watch = {0, 0};
    nodedb_status status;
    nodedb_error err;
    watch.calls_left = calls;
    for (i = 0; i < h->n && taken < count; i++) {
        uint32_t at = (start + i) % h->n;
        if (h->there[at]) continue;
        memcpy(batch + taken * h->queries.row_bytes, some_vector(h, at), h->queries.row_bytes);
        ids[taken++] = h->first_id + at;
    }
    status = nodedb_vamana_build(h->index, ids, batch, taken, 1 + below(&h->random, 2), watch_build, &watch, &err);
    if (status != NODEDB_OK && status != NODEDB_ERR_CANCELLED) history_fails(h, __LINE__, err.message);
    for (i = 0; i < taken; i++) {
        uint32_t at = (uint32_t)(ids[i] - h->first_id);
        h->there[at] = nodedb_vamana_contains(h->index, ids[i]);
        h->live += h->there[at];
    }
    if (watch.done > taken) watch.done = taken; /* the second of two passes counts on, and adds none */
    HOLDS(h, h->live == before + (status == NODEDB_OK ? taken : watch.done));
    free(ids), free(batch);
}

static void do_build(history *h) { build_batch(h, UINT32_MAX); }
static void do_cancelled_build(history *h) { build_batch(h, below(&h->random, 4)); }

static void do_maintain(history *h) {
    uint32_t calls = 1 + below(&h->random, 20);
    while (calls-- > 0 && nodedb_vamana_maintain(h->index, 1 + below(&h->random, 200))) {}
}

static void do_compact(history *h) {
    nodedb_error err;
    if (nodedb_vamana_compact(h->index, &err) != NODEDB_OK) history_fails(h, __LINE__, err.message);
}

static void do_reserve(history *h) {
    nodedb_error err;
    if (nodedb_vamana_reserve(h->index, h->live + below(&h->random, h->n), &err) != NODEDB_OK)
        history_fails(h, __LINE__, err.message);
}

/* Where there are only hundreds of vectors, codes are made when a test says so. */
static void do_make_codes(history *h) {
    h->index->code_due = 0;
    (void)nodedb_vamana_maintain(h->index, 1 + below(&h->random, 100));
}

static void do_search(history *h) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(h->index, NULL, NULL);
    nodedb_vamana_result results[10];
    uint32_t i, found;
    for (i = 0; i < h->query_count; i++) {
        nodedb_vamana_query q = query_of(row_at(&h->queries, i), 10, 16);
        HOLDS(h, nodedb_vamana_search(s, &q, results, &found, NULL, NULL) == NODEDB_OK);
        HOLDS(h, found == (h->live < 10 ? h->live : 10));
    }
    nodedb_vamana_searcher_destroy(s);
}

/* What a file must hold, read in each way. */
static void check_file(history *h, const char *path, uint32_t live) {
    nodedb_vamana *disk;
    nodedb_error err;
    bool more = true;
    if (nodedb_vamana_verify(path, NULL, NULL, NULL, &err) != NODEDB_OK) history_fails(h, __LINE__, err.message);
    disk = open_as(path, NODEDB_VAMANA_ON_DISK);
    HOLDS(h, disk != NULL && nodedb_vamana_load(disk, UINT64_MAX, &more, NULL) == NODEDB_OK && !more);
    HOLDS(h, nodedb_vamana_count(disk) == live);
    HOLDS(h, unreachable_in(disk) == 0);
    nodedb_vamana_destroy(disk);
}

static void do_save_and_open(history *h) {
    char path[700];
    bool more = true, *then = (bool *)malloc(h->n), busy = below(&h->random, 2) == 0;
    uint32_t live_then = h->live;
    nodedb_status status;
    nodedb_error err;
    snprintf(path, sizeof path, "%s", path_of("history"));
    memcpy(then, h->there, h->n);
    status = nodedb_vamana_save_begin(
        h->index, path, below(&h->random, 2) == 0 ? NODEDB_VAMANA_RESIDENT : NODEDB_VAMANA_PACKED, &err);
    while (status == NODEDB_OK && more) {
        if (busy && below(&h->random, 4) == 0) do_remove(h), do_insert(h);
        status = nodedb_vamana_save_step(h->index, 1 + below(&h->random, h->n), &more, &err);
    }
    if (status != NODEDB_OK) history_fails(h, __LINE__, err.message);
    else check_file(h, path, live_then);
    if (!h->failed && below(&h->random, 2) == 0) { /* go on with the file */
        nodedb_vamana_destroy(h->index);
        h->index = open_as(path, NODEDB_VAMANA_IN_MEMORY);
        memcpy(h->there, then, h->n), h->live = live_then;
        HOLDS(h, h->index != NULL);
    }
    free(then);
}

typedef struct history_step {
    const char *name;
    void (*run)(history *h);
    uint32_t weight;
} history_step;

static const history_step history_steps[] = {
    {"insert", do_insert, 12},
    {"insert all", do_insert_all, 2},
    {"replace", do_replace, 12},
    {"remove", do_remove, 10},
    {"remove in order", do_remove_in_order, 6},
    {"remove the entry", do_remove_the_entry, 4},
    {"remove all", do_remove_all, 1},
    {"build", do_build, 8},
    {"build, cancelled", do_cancelled_build, 4},
    {"maintain", do_maintain, 6},
    {"compact", do_compact, 2},
    {"reserve", do_reserve, 2},
    {"make codes", do_make_codes, 2},
    {"search", do_search, 4},
    {"save and open", do_save_and_open, 4},
};
enum { HISTORY_STEP_COUNT = sizeof history_steps / sizeof history_steps[0] };

static const history_step *some_step(history *h) {
    uint32_t total = 0, i, at;
    for (i = 0; i < HISTORY_STEP_COUNT; i++) total += history_steps[i].weight;
    at = below(&h->random, total);
    for (i = 0; at >= history_steps[i].weight; i++) at -= history_steps[i].weight;
    return &history_steps[i];
}

/* That a search with this beam and as many results finds `want` ids, each of them there, none twice. */
static void check_search_finds(history *h, uint32_t beam, uint32_t want, bool walk) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(h->index, NULL, NULL);
    nodedb_vamana_query q = query_of(row_at(&h->queries, below(&h->random, h->query_count)), beam, beam);
    nodedb_vamana_result *results = (nodedb_vamana_result *)malloc((beam + 1) * sizeof *results);
    bool *seen = (bool *)calloc(h->n, 1);
    nodedb_vamana_stats stats;
    uint32_t found = 0, i;
    q.exact_walk = walk;
    HOLDS(h, nodedb_vamana_search(s, &q, results, &found, &stats, NULL) == NODEDB_OK);
    HOLDS(h, found == want);
    HOLDS(h, !walk || !stats.scanned);
    for (i = 0; i < found && !h->failed; i++) {
        uint64_t at = results[i].id - h->first_id;
        HOLDS(h, at < h->n && h->there[at] && !seen[at]);
        HOLDS(h, i == 0 || results[i - 1].distance <= results[i].distance);
        if (at < h->n) seen[at] = true;
    }
    free(results), free(seen);
    nodedb_vamana_searcher_destroy(s);
}

static void check_history(history *h) {
    HOLDS(h, nodedb_vamana_count(h->index) == h->live);
    HOLDS(h, unreachable_in(h->index) == 0);
}

/* All vectors are found, by a scan and by a walk. No removed ones are left, which would take places in the beam. */
static void check_history_at_its_end(history *h) {
    uint32_t calls;
    h->doing = "the end";
    if (h->live < 3) do_insert(h);
    check_search_finds(h, h->live, h->live, false);
    check_search_finds(h, h->live + 7, h->live, false);
    for (calls = 0; calls < 100000 && nodedb_vamana_maintain(h->index, 1000); calls++) {}
    HOLDS(h, calls < 100000);
    check_history(h);
    if (h->live > 1) check_search_finds(h, h->live - 1, h->live - 1, true);
}

/* What is random about a history but its steps. */
static void choose_history(history *h, uint32_t number) {
    static const uint32_t degrees[] = {4, 4, 8, 16, 64}, beams[] = {4, 10, 16, 32, 64};
    static const float alphas[] = {1, 1.1f, 1.2f, 1.2f, 2};
    static const char *const types[] = {"f32", "u8", "i8"}, *const metrics[] = {"L2", "IP", "cosine"};
    nodedb_vamana_config *c = &h->config;
    memset(h, 0, sizeof *h);
    h->number = number, h->random = test_seed * UINT64_C(1000003) + number;
    (void)test_random(&h->random);
    h->kind = &hard_kinds[number % HARD_KIND_COUNT];
    h->n = SLOW ? 60 + below(&h->random, 90) : 400 + below(&h->random, 1100);
    h->first_id = below(&h->random, 2) == 0 ? 0 : test_random(&h->random) >> 1;
    c->dim = 4 + below(&h->random, 37);
    c->type = below(&h->random, 2) == 0 ? NODEDB_VAMANA_F32 : (nodedb_vamana_type)(1 + below(&h->random, 2));
    c->metric = (nodedb_vamana_metric)h->kind->metric;
    if (below(&h->random, 3) == 0) c->metric = (nodedb_vamana_metric)below(&h->random, 3);
    c->degree = degrees[below(&h->random, 5)], c->beam_build = beams[below(&h->random, 5)];
    c->alpha = alphas[below(&h->random, 5)], c->passes = 1 + below(&h->random, 2);
    c->code = (nodedb_vamana_code)below(&h->random, 4);
    c->capacity = below(&h->random, 2) == 0 ? 0 : h->n, c->seed = test_random(&h->random);
    c->io.sync = no_sync;
    snprintf(h->said, sizeof h->said, "%s, %u x %u %s, %s, degree %u, beam_build %u, alpha %g, passes %u, code %d",
             h->kind->name, (unsigned)h->n, (unsigned)c->dim, types[c->type], metrics[c->metric], (unsigned)c->degree,
             (unsigned)c->beam_build, (double)c->alpha, (unsigned)c->passes, (int)c->code);
}

static void make_vectors(history *h) {
    uint32_t g;
    byte_scale scale = {0, 1};
    for (g = 0; g < GENERATIONS; g++) {
        hard_set set = hard_make(h->kind, h->n, h->config.dim, 8, test_seed, g);
        if (g == 0) scale = scale_of(set.base, (size_t)set.n * set.dim);
        h->vectors[g] = rows_of(set.base, set.n, set.dim, h->config.type, scale);
        h->query_count = set.query_count;
        if (g == 0) h->queries = rows_of(set.queries, set.query_count, set.dim, h->config.type, scale);
        hard_free(&set);
    }
    h->there = (bool *)calloc(h->n, 1);
}

/* False: it found a fault. */
static bool run_history(uint32_t number, uint32_t steps) {
    history h;
    nodedb_error err;
    choose_history(&h, number);
    make_vectors(&h);
    h.doing = "create";
    h.index = nodedb_vamana_create(&h.config, &err);
    if (h.index == NULL) history_fails(&h, __LINE__, err.message);
    for (h.step = 1; h.step <= steps && !h.failed; h.step++) {
        const history_step *step = h.step == 1 ? &history_steps[number % 2] : some_step(&h);
        h.doing = step->name;
        step->run(&h);
        if (!h.failed) check_history(&h);
    }
    if (!h.failed) check_history_at_its_end(&h);
    nodedb_vamana_destroy(h.index);
    free(h.vectors[0].bytes), free(h.vectors[1].bytes), free(h.queries.bytes), free(h.there);
    return !h.failed;
}

TEST(every_live_vector_can_be_reached_after_any_history) {
    uint32_t histories = (SLOW ? 1 : test_long ? 100 : 10) * HARD_KIND_COUNT, i, faults = 0;
    const char *only = getenv("HISTORY"); /* the number of one, to run it alone */
    for (i = 0; i < histories && faults < 5; i++)
        if (only == NULL || strtoul(only, NULL, 10) == i) faults += !run_history(i, SLOW ? 15 : 40);
}

/* ===================================================================================================================
 * EDGES: sizes and numbers at the limits
 * ================================================================================================================ */

/* A few vectors, as floats and as the index's type, and what is searched for. */
typedef struct edge_case {
    const char *name;
    nodedb_vamana_config config;
    uint32_t n;
    float *values; /* n rows of config.dim */
    rows vectors;
    bool failed;
} edge_case;

static void edge_fails(edge_case *e, int line, const char *what) {
    static const char *const types[] = {"f32", "u8", "i8"}, *const metrics[] = {"L2", "IP", "cosine"};
    char text[900];
    if (e->failed) return;
    snprintf(text, sizeof text, "%s, %u x %u %s, %s, degree %u: %s", e->name, (unsigned)e->n, (unsigned)e->config.dim,
             types[e->config.type], metrics[e->config.metric], (unsigned)e->config.degree, what);
    test_fail(__FILE__, line, text);
    e->failed = true;
}
#define EDGE_HOLDS(e, condition) ((condition) ? (void)0 : edge_fails((e), __LINE__, "does not hold: " #condition))

/* The distance by definition, and by how much a sum of floats may be off: by rounding, which grows with the number of
 * terms, and by terms too small for a float. Vectors under COSINE are stored with length 1. */
static double true_distance(const edge_case *e, uint32_t i, uint32_t j, double *tolerance) {
    const float *a = e->values + (size_t)i * e->config.dim, *b = e->values + (size_t)j * e->config.dim;
    double dot = 0, aa = 0, bb = 0, l2 = 0, terms = 0;
    uint32_t k;
    for (k = 0; k < e->config.dim; k++) {
        double x = a[k], y = b[k];
        dot += x * y, aa += x * x, bb += y * y, l2 += (x - y) * (x - y), terms += fabs(x * y);
    }
    *tolerance = (e->config.dim / 4.0 + 16) / 16777216;
    if (e->config.metric == NODEDB_VAMANA_COSINE) {
        *tolerance *= 4;
        return aa > 0 && bb > 0 ? 1 - dot / sqrt(aa) / sqrt(bb) : 1;
    }
    *tolerance = *tolerance * (e->config.metric == NODEDB_VAMANA_L2 ? l2 : terms) + e->config.dim * 1.2e-38;
    return e->config.metric == NODEDB_VAMANA_L2 ? l2 : -dot;
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The last result is as near as the `place`-th of all from the end, from 0 on. */
static bool is_last_right(const edge_case *e, uint32_t first, uint32_t i, double last, uint32_t place) {
    double *all = (double *)malloc(e->n * sizeof *all), tolerance, most_tolerance = 0;
    uint32_t j;
    bool right;
    for (j = first; j < e->n; j++) {
        all[j - first] = true_distance(e, i, j, &tolerance);
        if (tolerance > most_tolerance) most_tolerance = tolerance;
    }
    qsort(all, e->n - first, sizeof *all, descending);
    right = last <= all[place] + most_tolerance;
    free(all);
    return right;
}

/* Searches for vector `i` among those from `first` on, which are all that there are: with a beam of all of them, and by
 * a walk that leaves out one: the farthest, if nobody who is removed takes a place in the beam, and there are no codes;
 * then the graph is `whole`. */
static void check_edge_search(edge_case *e, nodedb_vamana_searcher *s, uint32_t first, uint32_t i, bool whole) {
    uint32_t count = e->n - first, found = 0, j, walk;
    nodedb_vamana_result *results = (nodedb_vamana_result *)malloc((count + 1) * sizeof *results);
    for (walk = 0; walk <= (count > 1 ? 1u : 0u); walk++) {
        nodedb_vamana_query q = query_of(row_at(&e->vectors, i), count - walk, count - walk);
        bool *seen = (bool *)calloc(e->n, 1);
        nodedb_error err;
        q.exact_walk = walk != 0;
        if (nodedb_vamana_search(s, &q, results, &found, NULL, &err) != NODEDB_OK) edge_fails(e, __LINE__, err.message);
        EDGE_HOLDS(e, found == count - walk);
        for (j = 0; j < found && !e->failed; j++) {
            double tolerance, distance;
            EDGE_HOLDS(e, results[j].id >= first && results[j].id < e->n && !seen[results[j].id]);
            if (e->failed) break;
            seen[results[j].id] = true;
            distance = true_distance(e, i, (uint32_t)results[j].id, &tolerance);
            EDGE_HOLDS(e, fabs((double)results[j].distance - distance) <= tolerance);
            EDGE_HOLDS(e, j == 0 || results[j - 1].distance <= results[j].distance);
        }
        EDGE_HOLDS(e, found == 0 || !whole || is_last_right(e, first, i, (double)results[found - 1].distance, walk));
        free(seen);
    }
    free(results);
}

/* Searches for a few of the vectors, present or removed. */
static void check_edge_index(edge_case *e, nodedb_vamana *index, uint32_t first) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t i, step = e->n / 16 + 1;
    nodedb_vamana_info info;
    nodedb_vamana_inspect(index, &info);
    EDGE_HOLDS(e, nodedb_vamana_count(index) == e->n - first);
    EDGE_HOLDS(e, info.unreachable == 0);
    for (i = 0; i < e->n && !e->failed; i += step)
        check_edge_search(e, s, first, i, info.removed == 0 && info.code_bits == 0);
    nodedb_vamana_searcher_destroy(s);
}

/* Removes the first vector, saves, and opens again. Returns what is open then. */
static nodedb_vamana *shrink_and_open(edge_case *e, nodedb_vamana *index, nodedb_vamana_layout layout) {
    char path[700];
    nodedb_vamana *disk;
    nodedb_error err;
    bool more = true;
    snprintf(path, sizeof path, "%s", path_of("edge"));
    if (nodedb_vamana_remove(index, 0, &err) != NODEDB_OK) edge_fails(e, __LINE__, err.message);
    check_edge_index(e, index, 1);
    if (nodedb_vamana_save_begin(index, path, layout, &err) != NODEDB_OK) edge_fails(e, __LINE__, err.message);
    while (more && !e->failed)
        if (nodedb_vamana_save_step(index, 100, &more, &err) != NODEDB_OK) edge_fails(e, __LINE__, err.message);
    nodedb_vamana_destroy(index);
    if (e->failed) return NULL;
    if (nodedb_vamana_verify(path, NULL, NULL, NULL, &err) != NODEDB_OK) edge_fails(e, __LINE__, err.message);
    disk = open_as(path, NODEDB_VAMANA_ON_DISK);
    if (disk != NULL) check_edge_index(e, disk, 1);
    nodedb_vamana_destroy(disk);
    return open_as(path, NODEDB_VAMANA_IN_MEMORY);
}

/* The vectors of a case, inserted or built; searched; the first removed; saved, opened, and inserted again. */
static void check_edge_case(edge_case *e, bool build) {
    nodedb_error err;
    nodedb_vamana *index;
    uint32_t i;
    e->config.io.sync = no_sync, e->config.seed = test_seed, e->failed = false;
    index = nodedb_vamana_create(&e->config, &err);
    if (index == NULL) {
        edge_fails(e, __LINE__, err.message);
        return;
    }
    for (i = 0; i < e->n && !build; i++)
        if (nodedb_vamana_insert(index, i, row_at(&e->vectors, i), &err) != NODEDB_OK)
            edge_fails(e, __LINE__, err.message);
    if (build && nodedb_vamana_build(index, NULL, e->vectors.bytes, e->n, 2, NULL, NULL, &err) != NODEDB_OK)
        edge_fails(e, __LINE__, err.message);
    check_edge_index(e, index, 0);
    index = shrink_and_open(e, index, build ? NODEDB_VAMANA_PACKED : NODEDB_VAMANA_RESIDENT);
    if (index == NULL) return;
    check_edge_index(e, index, 1);
    if (nodedb_vamana_insert(index, 0, e->vectors.bytes, &err) != NODEDB_OK) edge_fails(e, __LINE__, err.message);
    check_edge_index(e, index, 0);
    nodedb_vamana_destroy(index);
}

/* Makes a case's vectors of its type, tries it, and frees them. */
static void try_edge_case(edge_case *e) {
    static const byte_scale as_they_are = {0, 1}, signed_ones = {-128, 1};
    e->vectors = rows_of(e->values, e->n, e->config.dim, e->config.type,
                         e->config.type == NODEDB_VAMANA_I8 ? signed_ones : as_they_are);
    check_edge_case(e, false);
    check_edge_case(e, true);
    free(e->vectors.bytes), free(e->values);
}

static edge_case edge_case_of(const char *name, uint32_t n, uint32_t dim, uint32_t degree,
                              nodedb_vamana_metric metric) {
    edge_case e;
    memset(&e, 0, sizeof e);
    e.name = name, e.n = n;
    e.config.dim = dim, e.config.degree = degree, e.config.metric = metric;
    e.values = (float *)calloc((size_t)n * dim, sizeof *e.values);
    return e;
}

enum { DATA_RANDOM, DATA_EQUAL, DATA_ZERO, DATA_COUNT };
static const char *const data_names[DATA_COUNT] = {"random", "all equal", "all zero"};

/* Whole numbers, so that each type has them. */
static void fill_whole(edge_case *e, int data, uint64_t *random) {
    size_t i;
    for (i = 0; i < (size_t)e->n * e->config.dim; i++)
        e->values[i] = data == DATA_ZERO    ? 0
                       : data == DATA_EQUAL ? (float)(1 + i % e->config.dim)
                                            : (float)below(random, 100);
}

/* 1, 2, 3, R and R + 1 vectors of 1, 2 and 3 dimensions. */
static void try_few_of_little(nodedb_vamana_metric metric, nodedb_vamana_type type, int data) {
    static const uint32_t degrees[] = {4, 64};
    uint64_t random = test_seed;
    uint32_t d, dim, count;
    for (d = 0; d < 2; d++)
        for (dim = 1; dim <= 3; dim++)
            for (count = 1; count <= 5; count++) {
                uint32_t n = count <= 3 ? count : degrees[d] + count - 4;
                edge_case e = edge_case_of(data_names[data], n, dim, degrees[d], metric);
                e.config.type = type;
                fill_whole(&e, data, &random);
                try_edge_case(&e);
            }
}

static void fill_gauss(edge_case *e, double spread) {
    hard_random r = hard_random_of(test_seed, 7);
    size_t i;
    for (i = 0; i < (size_t)e->n * e->config.dim; i++) e->values[i] = (float)(spread * hard_gauss(&r));
}

/* Adds `far` to one component, or to all, of every other vector, and takes it from that of the others. */
static void part(edge_case *e, float far, bool all_components) {
    uint32_t i, k;
    for (i = 0; i < e->n; i++)
        for (k = 0; k < (all_components ? e->config.dim : 1); k++)
            e->values[(size_t)i * e->config.dim + k] += i % 2 == 0 ? far : -far;
}

/* The share of the true ten nearest of each vector that a walk finds in another index of the same vectors. */
static double recall_of_edge_case(edge_case *e, uint32_t beam) {
    nodedb_vamana *index = nodedb_vamana_create(&e->config, NULL);
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t i, j, found, hits = 0;
    nodedb_vamana_result got[10], want[10];
    for (i = 0; i < e->n; i++)
        CHECK_EQ(nodedb_vamana_insert(index, i, e->values + (size_t)i * e->config.dim, NULL), NODEDB_OK);
    for (i = 0; i < e->n; i++) {
        nodedb_vamana_query q = query_of(e->values + (size_t)i * e->config.dim, 10, beam);
        CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 10);
        CHECK_EQ(nodedb_vamana_scan(s, &q, want, &found, NULL, NULL), NODEDB_OK);
        for (j = 0; j < 10; j++) hits += got[j].distance <= want[9].distance;
    }
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
    return hits / (10.0 * e->n);
}

/* Two groups, within which distances are about `spread`. */
static void try_two_groups(const char *name, float far, bool all_components, nodedb_vamana_metric metric) {
    edge_case e = edge_case_of(name, SLOW ? 100 : 400, 8, 8, metric);
    double recall;
    fill_gauss(&e, 1);
    part(&e, far, all_components);
    recall = metric == NODEDB_VAMANA_L2 ? recall_of_edge_case(&e, 64) : 1;
    if (recall < 0.99) {
        char text[64];
        snprintf(text, sizeof text, "recall@10 at beam 64 is %.4f", recall);
        edge_fails(&e, __LINE__, text);
    }
    try_edge_case(&e);
}

TEST(sizes_at_the_edges) {
    static const uint32_t wide = NODEDB_VAMANA_MAX_DIM;
    int metric, type, data;
    edge_case e;
    for (metric = 0; metric < 3; metric++)
        for (type = 0; type < 3; type++)
            for (data = 0; data < DATA_COUNT; data++)
                try_few_of_little((nodedb_vamana_metric)metric, (nodedb_vamana_type)type, data);
    for (metric = 0; metric < 3; metric++) {
        nodedb_vamana_metric m = (nodedb_vamana_metric)metric;
        try_two_groups("two groups 1e18 apart in one component", 5e17f, false, m);
        try_two_groups("two groups 1e18 apart", 5e17f / 3, true, m);
        try_two_groups("two groups 1e6 apart in one component", 5e5f, false, m);
        try_two_groups("two groups 1e6 apart", 5e5f, true, m);
        e = edge_case_of("subnormal components", 50, 12, 4, m), fill_gauss(&e, 1e-41), try_edge_case(&e);
        e = edge_case_of("components that underflow when squared", 50, 12, 4, m), fill_gauss(&e, 1e-25);
        try_edge_case(&e);
        e = edge_case_of("large components", 50, 12, 4, m), fill_gauss(&e, 1e17), try_edge_case(&e);
        e = edge_case_of("many components", SLOW ? 4 : 12, wide, 4, m), fill_gauss(&e, 1), try_edge_case(&e);
    }
}

/* ===================================================================================================================
 * RECALL: of the hard kinds, on codes and on vectors
 * ================================================================================================================ */

/* recall@10 of all queries. */
static double recall_of(const nodedb_vamana *index, const hard_truth *truth, uint32_t beam, bool exact_walk) {
    const hard_set *set = truth->set;
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result results[HARD_K];
    uint64_t ids[HARD_K];
    uint32_t i, j, found = 0, hits = 0;
    for (i = 0; i < set->query_count; i++) {
        nodedb_vamana_query q = query_of(set->queries + (size_t)i * set->dim, HARD_K, beam);
        q.exact_walk = exact_walk;
        CHECK_EQ(nodedb_vamana_search(s, &q, results, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, HARD_K);
        for (j = 0; j < found; j++) ids[j] = results[j].id;
        hits += hard_hits(truth, i, ids, found);
    }
    nodedb_vamana_searcher_destroy(s);
    return (double)hits / ((double)set->query_count * truth->k);
}

/* How much recall may be lost, however the vectors got into the index; with few queries more, by chance. */
#define WIDER_FINDS_LESS (SLOW ? 0.02 : 0.005)
#define CODES_LOSE (SLOW ? 0.02 : 0.01) /* 0.005, and as much by chance */

/* The recall that a beam of 256 must have. rare-long: a long vector among short ones is near to most queries, and far
 * from all vectors. duplicates: with twenty copies of each vector, a beam of 256 holds 13 different ones. */
static double least_recall_of(const hard_kind *kind) {
    return strcmp(kind->name, "rare-long") == 0 ? 0.94 : strcmp(kind->name, "duplicates") == 0 ? 0.97 : 0.99;
}

/* Checks the recall of an index that holds the vectors of `truth` and no others. */
static void check_recall(const nodedb_vamana *index, const hard_truth *truth, const char *how) {
    static const uint32_t beams[] = {16, 64, 256};
    double codes[3], exact[3];
    nodedb_vamana_info info;
    char text[300];
    int b;
    nodedb_vamana_inspect(index, &info);
    for (b = 0; b < 3; b++) {
        codes[b] = exact[b] = recall_of(index, truth, beams[b], false);
        if (b > 0 && info.code_bits != 0) exact[b] = recall_of(index, truth, beams[b], true);
    }
    snprintf(text, sizeof text, "%s, %s, %u-bit codes: recall@10 at beams 16, 64, 256 is %.4f, %.4f, %.4f, "
             "exact walk %.4f, %.4f", truth->set->kind->name, how, (unsigned)info.code_bits, codes[0], codes[1],
             codes[2], exact[1], exact[2]);
    for (b = 1; b < 3; b++) {
        if (codes[b] < codes[b - 1] - WIDER_FINDS_LESS) test_fail(__FILE__, __LINE__, text);
        if (codes[b] < exact[b] - CODES_LOSE) test_fail(__FILE__, __LINE__, text);
    }
    if (codes[2] < least_recall_of(truth->set->kind)) test_fail(__FILE__, __LINE__, text);
}

static nodedb_vamana *empty_index_of(const hard_set *set) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = set->dim, c.metric = (nodedb_vamana_metric)set->metric, c.seed = test_seed;
    return nodedb_vamana_create(&c, NULL);
}

/* Row i as id first_id + i. */
static void insert_all_of(nodedb_vamana *index, const hard_set *set, uint64_t first_id) {
    uint32_t i;
    for (i = 0; i < set->n; i++)
        CHECK_EQ(nodedb_vamana_insert(index, first_id + i, set->base + (size_t)i * set->dim, NULL), NODEDB_OK);
}

/* Vectors inserted one by one or built, each then replaced by another of the kind, and then the older half removed. */
static void try_recall(const hard_set *before, const hard_set *set, bool build) {
    nodedb_vamana *index = empty_index_of(set);
    hard_truth then = hard_truth_of(before, 0), all = hard_truth_of(set, 0), half = hard_truth_of(set, set->n / 2);
    uint32_t i;
    if (!build) insert_all_of(index, before, 0);
    else CHECK_EQ(nodedb_vamana_build(index, NULL, before->base, before->n, 1, NULL, NULL, NULL), NODEDB_OK);
    check_recall(index, &then, build ? "built" : "inserted");
    insert_all_of(index, set, 0);
    check_recall(index, &all, build ? "built, replaced" : "inserted, replaced");
    for (i = 0; i < half.first; i++) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    check_recall(index, &half, build ? "built, replaced, halved" : "inserted, replaced, halved");
    hard_truth_free(&then), hard_truth_free(&all), hard_truth_free(&half);
    nodedb_vamana_destroy(index);
}

/* In the short form two of three kinds, of which every other is built; with the next seeds the others. */
TEST(a_wide_walk_finds_no_less_than_a_narrow_one_and_codes_cost_nothing) {
    uint32_t n = SLOW ? 400 : test_long ? 20000 : 5000, query_count = SLOW ? 20 : 150, i, build;
    const char *only = getenv("KIND"); /* the name of one, to try it alone */
    for (i = 0; i < HARD_KIND_COUNT; i++) {
        hard_set before, set;
        if (only != NULL && strcmp(only, hard_kinds[i].name) != 0) continue;
        if (only == NULL && !test_long && (test_seed + i) % 3 == 0) continue;
        before = hard_make(&hard_kinds[i], n, 32, query_count, test_seed, 1);
        set = hard_make(&hard_kinds[i], n, 32, query_count, test_seed, 0);
        for (build = 0; build < 2; build++)
            if (test_long || only != NULL || (test_seed + i) % 2 == build) try_recall(&before, &set, build != 0);
        hard_free(&before), hard_free(&set);
    }
}

/* How many of the true ten, by a scan, the queries of a set find with the default beam. */
static uint32_t hits_by_scan(const nodedb_vamana *index, const hard_set *set, bool exact_walk) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result got[HARD_K], want[HARD_K];
    uint32_t i, j, found = 0, hits = 0;
    for (i = 0; i < set->query_count; i++) {
        nodedb_vamana_query q = query_of(set->queries + (size_t)i * set->dim, HARD_K, 0);
        CHECK_EQ(nodedb_vamana_scan(s, &q, want, &found, NULL, NULL), NODEDB_OK);
        q.exact_walk = exact_walk;
        CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
        for (j = 0; j < found; j++) hits += got[j].distance <= want[HARD_K - 1].distance;
    }
    nodedb_vamana_searcher_destroy(s);
    return hits;
}

/* Codes that were made for vectors far apart blur all vectors that are inserted later and lie close together. */
TEST(codes_follow_what_the_vectors_become) {
    uint32_t n = SLOW ? 400 : 5000, by_code, exact, all;
    hard_set wide = hard_make(hard_kind_named("line"), n, 32, 1, test_seed, 0);
    hard_set tight = hard_make(hard_kind_named("many-tight"), 2 * n, 32, SLOW ? 20 : 200, test_seed, 0);
    nodedb_vamana *index = empty_index_of(&wide);
    nodedb_vamana_info then, now;
    char text[200];
    insert_all_of(index, &wide, 0);
    nodedb_vamana_inspect(index, &then);
    CHECK(SLOW || then.code_bits != 0); /* so few have none: the histories above have them */
    insert_all_of(index, &tight, n);
    nodedb_vamana_inspect(index, &now);
    by_code = hits_by_scan(index, &tight, false), exact = hits_by_scan(index, &tight, true);
    all = tight.query_count * HARD_K;
    snprintf(text, sizeof text, "%u-bit codes at first, %u-bit ones now: %u of %u found, %u by exact walk",
             (unsigned)then.code_bits, (unsigned)now.code_bits, (unsigned)by_code, (unsigned)all, (unsigned)exact);
    if (by_code < exact - CODES_LOSE * all || exact < 0.98 * all) test_fail(__FILE__, __LINE__, text);
    nodedb_vamana_destroy(index);
    hard_free(&wide), hard_free(&tight);
}

/* ===================================================================================================================
 * BEAM_BUILD: it adapts
 * ================================================================================================================ */

/* Vectors whose components are independent: the more of them, the worse a beam serves. */
static rows independent_rows(uint32_t n, uint32_t dim, uint64_t *random) {
    float *values = (float *)malloc((size_t)n * dim * sizeof *values);
    byte_scale none = {0, 1};
    rows r;
    size_t i;
    for (i = 0; i < (size_t)n * dim; i++) values[i] = (float)below(random, 2001) - 1000;
    r = rows_of(values, n, dim, NODEDB_VAMANA_F32, none);
    free(values);
    return r;
}

static uint32_t beam_of(const nodedb_vamana *index) {
    nodedb_vamana_info info;
    nodedb_vamana_inspect(index, &info);
    return info.beam_build;
}

/* The beam widens where it misses neighbours, but only if config.beam_build is 0; an opened file continues with it. */
TEST(the_beam_that_finds_neighbours_follows_the_vectors) {
    enum { MANY = 8400, MORE = 1000, EASY_DIM = 4, HARD_DIM = 256 };
    const uint32_t n = SLOW ? 4700 : MANY, more = SLOW ? 100 : MORE;
    uint64_t random = test_seed;
    rows hard = independent_rows(n + more, HARD_DIM, &random), easy = independent_rows(n, EASY_DIM, &random);
    char path[700];
    int way;
    snprintf(path, sizeof path, "%s/beam", test_dir());
    for (way = 0; way < 3; way++) {
        const rows *r = way == 1 ? &easy : &hard;
        nodedb_vamana_config c;
        nodedb_vamana *index, *copy;
        uint32_t i;
        memset(&c, 0, sizeof c);
        c.dim = way == 1 ? EASY_DIM : HARD_DIM, c.seed = test_seed, c.beam_build = way == 2 ? 100 : 0;
        c.degree = 16, c.code = NODEDB_VAMANA_CODE_NONE;
        index = nodedb_vamana_create(&c, NULL);
        for (i = 0; i < n; i++) CHECK_EQ(nodedb_vamana_insert(index, i, row_at(r, i), NULL), NODEDB_OK);
        if (way == 0) CHECK(beam_of(index) > 128 && beam_of(index) <= 512);
        else CHECK_EQ(beam_of(index), way == 1 ? 128 : 100);
        if (way == 0) {
            CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
            copy = nodedb_vamana_open(path, NULL, NULL);
            REQUIRE(copy != NULL);
            CHECK_EQ(beam_of(copy), beam_of(index));
            for (i = n; i < n + more; i++) {
                CHECK_EQ(nodedb_vamana_insert(index, i, row_at(r, i), NULL), NODEDB_OK);
                CHECK_EQ(nodedb_vamana_insert(copy, i, row_at(r, i), NULL), NODEDB_OK);
            }
            CHECK_EQ(beam_of(copy), beam_of(index));
            CHECK(memcmp(copy->arrays->rows, index->arrays->rows, (n + more) * index->row_words * 4) == 0);
            nodedb_vamana_destroy(copy);
        }
        for (i = 0; i < n + more; i++) (void)nodedb_vamana_remove(index, i, NULL);
        CHECK_EQ(beam_of(index), way == 2 ? 100 : 128);
        nodedb_vamana_destroy(index);
    }
    free(hard.bytes), free(easy.bytes);
}

/* A build widens the beam too, and by as much with any number of threads. */
TEST(the_beam_of_a_build_does_not_depend_on_the_threads) {
    enum { MANY = 8400, DIM = 256 };
    const uint32_t n = SLOW ? 4700 : MANY;
    uint64_t random = test_seed;
    rows hard = independent_rows(n, DIM, &random);
    nodedb_vamana *indexes[2];
    nodedb_vamana_config c;
    uint32_t i;
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.seed = test_seed, c.degree = 16, c.code = NODEDB_VAMANA_CODE_NONE;
    for (i = 0; i < 2; i++) {
        indexes[i] = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana_build(indexes[i], NULL, hard.bytes, n, 1 + 2 * i, NULL, NULL, NULL), NODEDB_OK);
    }
    CHECK(beam_of(indexes[0]) > 128 && beam_of(indexes[0]) == beam_of(indexes[1]));
    CHECK(memcmp(indexes[0]->arrays->rows, indexes[1]->arrays->rows, n * indexes[0]->row_words * 4) == 0);
    nodedb_vamana_destroy(indexes[0]), nodedb_vamana_destroy(indexes[1]);
    free(hard.bytes);
}

/* ===================================================================================================================
 * MEMORY: a small index is small
 * ================================================================================================================ */

/* Makes an index of one vector, searches it and destroys it. Returns the bytes that it and its searcher report, which
 * must be what the allocator gave; 0: something failed. */
static uint64_t bytes_of_a_small_index(uint64_t *random) {
    nodedb_vamana_config c;
    nodedb_vamana_query q;
    nodedb_vamana_result result = {0, 0};
    nodedb_vamana *index;
    nodedb_vamana_searcher *s;
    refusing held;
    float vector[16];
    uint64_t bytes, id = test_random(random);
    uint32_t found = 0, i;
    bool right;
    memset(&c, 0, sizeof c);
    c.dim = 16, c.seed = test_seed, c.allocator = refusing_allocator(&held, -1);
    for (i = 0; i < c.dim; i++) vector[i] = (float)below(random, 1000) / 500 - 1;
    index = nodedb_vamana_create(&c, NULL);
    right = nodedb_vamana_insert(index, id, vector, NULL) == NODEDB_OK;
    s = nodedb_vamana_searcher_create(index, NULL, NULL);
    q = query_of(vector, 1, 0);
    right = right && nodedb_vamana_search(s, &q, &result, &found, NULL, NULL) == NODEDB_OK && found == 1 &&
            result.id == id && result.distance <= 0;
    bytes = nodedb_vamana_memory_bytes(index) + nodedb_vamana_searcher_memory_bytes(s);
    right = right && bytes == (uint64_t)held.live;
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
    return right && held.live == 0 ? bytes : 0;
}

TEST(an_index_of_one_vector_is_small) {
    uint64_t random = test_seed, most = 0;
    uint32_t i, failed = 0, times = SLOW ? 100 : 10000;
    for (i = 0; i < times; i++) {
        uint64_t bytes = bytes_of_a_small_index(&random);
        failed += bytes == 0;
        if (bytes > most) most = bytes;
    }
    CHECK_EQ(failed, 0);
    if (most >= 8192) CHECK_EQ(most, 8191);
}

/* ===================================================================================================================
 * FILTERS: k results at any selectivity
 * ================================================================================================================ */

enum { FILTER_DEFAULT_BEAM = 64, FILTER_SAMPLE = 256 }; /* of the index, as its manual and its comments say */

/* An index, questions to it, and a filter. Vector i has id 3 i + 1. */
typedef struct filter_case {
    const char *name;
    nodedb_vamana_config config;
    rows base, queries;
    uint32_t n, query_count;
    nodedb_vamana *index;
    nodedb_vamana_searcher *searcher;
    uint32_t *order; /* query_count rows of n vectors, the nearest to the query first */
    bool *passes;    /* n: the filter, as it is for the callback ... */
    uint8_t *bitmap; /* ... and for the index */
    uint32_t pass;   /* how many do */
    uint32_t walks;  /* searches so far that did not look at all vectors */
} filter_case;

static uint64_t filter_id_of(uint32_t i) { return 3 * (uint64_t)i + 1; }

static bool filter_callback(void *ctx, uint64_t id) { return ((const filter_case *)ctx)->passes[(id - 1) / 3]; }

/* Which vectors pass, seen from the query. */
typedef enum filter_relation { FILTER_ANY, FILTER_NEAREST, FILTER_FARTHEST, FILTER_RELATIONS } filter_relation;
static const char *const relation_names[FILTER_RELATIONS] = {"any", "the nearest", "the farthest"};

static void choose_filter(filter_case *f, filter_relation relation, uint32_t query, uint32_t per_mille) {
    const uint32_t *order = f->order + (size_t)query * f->n;
    uint32_t i, share = (uint32_t)((uint64_t)f->n * per_mille / 1000);
    memset(f->passes, 0, f->n), memset(f->bitmap, 0, 3 * (size_t)f->n / 8 + 1);
    for (i = 0; i < f->n; i++) {
        uint64_t hash = filter_id_of(i) + test_seed;
        if (relation == FILTER_ANY) f->passes[i] = test_random(&hash) % 1000 < per_mille;
        else if (relation == FILTER_NEAREST) f->passes[order[i]] = i < share;
        else f->passes[order[i]] = i >= f->n - share;
    }
    for (i = 0, f->pass = 0; i < f->n; i++) {
        uint64_t id = filter_id_of(i);
        if (f->passes[i]) f->bitmap[id / 8] |= (uint8_t)(1u << id % 8), f->pass++;
    }
}

/* What a walk may cost behind this filter; 0: there must not be one. Beside it a search may look at all that pass.
 *
 * A filter is asked about a sample of 256. If a share s of them passes, a walk needs a beam of 64 / s, and it is only
 * taken where that, at half a row of edges for an entry, is estimated not to cost more than looking at all that pass
 * and asking the filter: s n + n / 4. So the lowest share at which there may be one gives the widest beam. What a walk
 * really takes is at most a whole row for each entry, a fourth more for nodes that fell out of the beam, and 64 places
 * to begin at; and hardly any vector twice. The share of a sample is off by no more than five of its deviations. */
static double walk_at_most(const filter_case *f) {
    double n = f->n, degree = f->config.degree == 0 ? 64 : f->config.degree, share = f->pass / n;
    double off = 5 * sqrt(share * (1 - share) / FILTER_SAMPLE) + 1.0 / FILTER_SAMPLE, rows_cost, all_cost = 1.1 * n;
    uint32_t i;
    for (i = 1; i <= FILTER_SAMPLE; i++) {
        double s = (double)i / FILTER_SAMPLE, beam = FILTER_DEFAULT_BEAM / s;
        if (s < share - off || s > share + off || floor(beam) * degree / 2 > n * s + n / 4) continue;
        rows_cost = 1.25 * (beam + 1) * degree;
        return (rows_cost < all_cost ? rows_cost : all_cost) + 64;
    }
    return 0;
}

/* How many of the true `want_n` a search finds by callback or bitmap, at no more than it may cost. */
static uint32_t filtered_hits(filter_case *f, nodedb_vamana_query q, bool by_bitmap, const nodedb_vamana_result *want,
                              uint32_t want_n, double *over) {
    nodedb_vamana_result got[HARD_K];
    nodedb_vamana_stats stats;
    uint32_t found = 0, i, j, hits = 0;
    if (by_bitmap) q.bitmap = f->bitmap, q.bitmap_bits = 3 * (uint64_t)f->n;
    else q.filter = filter_callback, q.filter_ctx = f;
    CHECK_EQ(nodedb_vamana_search(f->searcher, &q, got, &found, &stats, NULL), NODEDB_OK);
    CHECK_EQ(found, want_n);
    for (i = 0; i < found; i++) {
        for (j = 0; j < i && got[j].id != got[i].id; j++) {}
        CHECK(j == i && got[i].id % 3 == 1 && f->passes[(got[i].id - 1) / 3]);
        hits += i < want_n && got[i].distance <= want[want_n - 1].distance;
    }
    f->walks += !stats.scanned;
    if ((double)stats.distances > *over + 1.2 * f->pass + walk_at_most(f))
        *over = (double)stats.distances - 1.2 * f->pass - walk_at_most(f);
    return hits;
}

static void try_filter(filter_case *f, filter_relation relation, uint32_t per_mille) {
    uint32_t query, hits[2] = {0, 0}, all = 0, want_n = 0, by_bitmap;
    nodedb_vamana_result want[HARD_K];
    double over = 0;
    char text[300];
    for (query = 0; query < f->query_count; query++) {
        nodedb_vamana_query q = query_of(row_at(&f->queries, query), HARD_K, 0), truth = q;
        choose_filter(f, relation, query, per_mille);
        truth.filter = filter_callback, truth.filter_ctx = f;
        CHECK_EQ(nodedb_vamana_scan(f->searcher, &truth, want, &want_n, NULL, NULL), NODEDB_OK);
        CHECK_EQ(want_n, f->pass < HARD_K ? f->pass : HARD_K);
        all += want_n;
        for (by_bitmap = 0; by_bitmap < 2; by_bitmap++)
            hits[by_bitmap] += filtered_hits(f, q, by_bitmap != 0, want, want_n, &over);
    }
    snprintf(text, sizeof text, "%s, degree %u, %u of 1000 pass, %s: by callback %u of %u found, by bitmap %u, and at "
             "most %.0f distances more than allowed", f->name, (unsigned)f->config.degree, (unsigned)per_mille,
             relation_names[relation], (unsigned)hits[0], (unsigned)all, (unsigned)hits[1], over);
    if (hits[0] < 0.95 * all || hits[1] < 0.95 * all || over > 0) test_fail(__FILE__, __LINE__, text);
}

/* All vectors in the order of their distances to each query. */
static void sort_by_distance(filter_case *f) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(f->index, NULL, NULL);
    nodedb_vamana_result *results = (nodedb_vamana_result *)malloc(f->n * sizeof *results);
    uint32_t query, found = 0, i;
    for (query = 0; query < f->query_count; query++) {
        nodedb_vamana_query q = query_of(row_at(&f->queries, query), f->n, 0);
        CHECK_EQ(nodedb_vamana_scan(s, &q, results, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, f->n);
        for (i = 0; i < found; i++) f->order[(size_t)query * f->n + i] = (uint32_t)((results[i].id - 1) / 3);
    }
    free(results);
    nodedb_vamana_searcher_destroy(s);
}

static void try_filters(filter_case *f, uint32_t degree) {
    static const uint32_t per_mille[] = {900, 500, 100, 10, 1};
    uint64_t *ids = (uint64_t *)malloc(f->n * sizeof *ids);
    uint32_t i, relation;
    f->config.degree = degree, f->config.seed = test_seed, f->walks = 0;
    f->index = nodedb_vamana_create(&f->config, NULL);
    for (i = 0; i < f->n; i++) ids[i] = filter_id_of(i);
    CHECK_EQ(nodedb_vamana_build(f->index, ids, f->base.bytes, f->n, 1, NULL, NULL, NULL), NODEDB_OK);
    f->searcher = nodedb_vamana_searcher_create(f->index, NULL, NULL);
    f->order = (uint32_t *)calloc((size_t)f->query_count * f->n, sizeof *f->order);
    f->passes = (bool *)calloc(f->n, sizeof *f->passes), f->bitmap = (uint8_t *)calloc(3 * (size_t)f->n / 8 + 1, 1);
    sort_by_distance(f);
    for (relation = 0; relation < FILTER_RELATIONS; relation++)
        for (i = 0; i < sizeof per_mille / sizeof per_mille[0]; i++)
            try_filter(f, (filter_relation)relation, per_mille[i]);
    CHECK(SLOW || f->walks > 0); /* or there was nothing to test */
    nodedb_vamana_searcher_destroy(f->searcher);
    nodedb_vamana_destroy(f->index);
    free(ids), free(f->order), free(f->passes), free(f->bitmap);
}

/* The first rows of a file of bytes: see test_vamana.c. NULL bytes: it cannot be read. */
static rows load_bytes(const char *path, uint32_t *n, uint32_t *dim) {
    rows r = {NULL, 0};
    uint8_t header[8];
    FILE *file = fopen(path, "rb");
    if (file != NULL && fread(header, 1, 8, file) == 8) {
        uint32_t there = nodedb_get_u32(header);
        *dim = nodedb_get_u32(header + 4), r.row_bytes = *dim;
        if (there < *n) *n = there;
        r.bytes = (uint8_t *)malloc((size_t)*n * *dim + 1);
        if (fread(r.bytes, *dim, *n, file) != *n) free(r.bytes), r.bytes = NULL;
    }
    if (file != NULL) fclose(file);
    return r;
}

static void try_filters_on_sift(uint32_t n, uint32_t query_count) {
    filter_case f;
    memset(&f, 0, sizeof f);
    f.name = "sift", f.n = n, f.query_count = query_count, f.config.type = NODEDB_VAMANA_U8;
    f.base = load_bytes("tests/data/sift10k.base.u8bin", &f.n, &f.config.dim);
    f.queries = load_bytes("tests/data/sift10k.query.u8bin", &f.query_count, &f.config.dim);
    REQUIRE(f.base.bytes != NULL && f.queries.bytes != NULL); /* run it in the project's folder */
    try_filters(&f, 64);
    try_filters(&f, 24);
    free(f.base.bytes), free(f.queries.bytes);
}

TEST(filters_fill_k_with_recall_at_any_selectivity) {
    static const char *const kinds[] = {"many-tight", "lengths-mix", "zeros"};
    static const byte_scale as_they_are = {0, 1};
    uint32_t n = SLOW ? 400 : 4000, query_count = SLOW ? 5 : test_long ? 200 : 20, i;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        hard_set set = hard_make(hard_kind_named(kinds[i]), n, 32, query_count, test_seed, 0);
        filter_case f;
        memset(&f, 0, sizeof f);
        f.name = kinds[i], f.n = n, f.query_count = query_count;
        f.config.dim = set.dim, f.config.metric = (nodedb_vamana_metric)set.metric;
        f.base = rows_of(set.base, n, set.dim, NODEDB_VAMANA_F32, as_they_are);
        f.queries = rows_of(set.queries, query_count, set.dim, NODEDB_VAMANA_F32, as_they_are);
        try_filters(&f, 64);
        try_filters(&f, 24);
        free(f.base.bytes), free(f.queries.bytes);
        hard_free(&set);
    }
    try_filters_on_sift(n, query_count);
}

TEST_MAIN("vamana_hard")
