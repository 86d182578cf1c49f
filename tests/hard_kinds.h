/* Vectors that graph indexes stumble over, and their exact neighbours: for tests and benchmarks. Real embeddings look
 * like these, and not like SIFT. Everything is made from a seed; one seed gives the same set each time.
 *
 *   the ten of which every index should think
 *     lengths      IP      directions of a Gaussian, lengths log-normal (spread 0.5): recommendation embeddings
 *     lengths-mix  IP      the same around 100 centres
 *     zeros        COSINE  one vector in 200 is all zeros: embeddings that failed, or padding
 *     topics       L2      20 tight clusters, inserted one after the other: documents that arrive source by source
 *     tight        COSINE  8 clusters, far closer within than between: what 4 bits blur
 *     many-tight   L2      one tight cluster for each 200 vectors, shuffled
 *     crowd        L2      a tenth of all are copies of 5 vectors
 *     foreign      IP      the queries come from another distribution than the base: text that searches images
 *     outliers     COSINE  three components are 20 times as large as the rest: language models
 *     line         L2      an 8-dimensional manifold that is bent into all dimensions
 *   and more
 *     subspace     COSINE  16 dimensions of all, and a little noise in the rest
 *     sorted-line  L2      points along a bent curve, inserted from one end to the other
 *     growing      IP      lengths grow to 3 times the first: a vector tends to be longer than all before it
 *     drift        L2      the mean of every component moves by about 10 of its deviations: queries are of all times
 *     sparse       COSINE  95% of the components are zero
 *     binary       L2      components are 0 or 1
 *     duplicates   L2      every vector is there 20 times, shuffled
 *     rare-long    IP      one vector in 1000 is 50 times as long as the rest */
#ifndef NODEDB_HARD_KINDS_H
#define NODEDB_HARD_KINDS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    HARD_K = 10,      /* neighbours that count */
    HARD_DIM_MIN = 4, /* `outliers` needs three components and one more */
    HARD_N_MIN = 20,
    HARD_COPIES = 20 /* of each vector among `duplicates` */
};

/* The numbers are those of nodedb_vamana_metric. */
typedef enum hard_metric { HARD_L2 = 0, HARD_IP, HARD_COSINE } hard_metric;

typedef struct hard_kind hard_kind;

/* A set of one kind. Vectors are meant to be inserted in their order; row i is id i. The caller owns it, and may change
 * nothing in it but by hard_free. */
typedef struct hard_set {
    const hard_kind *kind;
    hard_metric metric;
    uint32_t n, dim, query_count;
    float *base, *queries;                /* n and query_count rows of dim floats */
    double *base_lengths, *query_lengths; /* Euclidean, of each row */
} hard_set;

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

/* A stream of random numbers: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
typedef struct hard_random {
    uint64_t state;
    double spare; /* Box and Muller make two normal numbers at a time: the second, if `has_spare` */
    bool has_spare;
} hard_random;

static inline uint64_t hard_next(hard_random *r) {
    uint64_t x = r->state += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* Streams of one seed have nothing in common. */
static inline hard_random hard_random_of(uint64_t seed, uint64_t stream) {
    hard_random r = {0, 0, false};
    r.state = seed;
    r.state = hard_next(&r) + stream;
    r.state = hard_next(&r);
    return r;
}

/* From 0 to less than 1. */
static inline double hard_uniform(hard_random *r) { return (double)(hard_next(r) >> 11) * (1.0 / 9007199254740992.0); }

static inline uint32_t hard_below(hard_random *r, uint32_t bound) { return (uint32_t)(hard_uniform(r) * bound); }

/* Of the standard normal distribution. */
static inline double hard_gauss(hard_random *r) {
    double radius, angle;
    if (r->has_spare) {
        r->has_spare = false;
        return r->spare;
    }
    radius = sqrt(-2 * log(1 - hard_uniform(r))), angle = 6.283185307179586 * hard_uniform(r);
    r->spare = radius * sin(angle), r->has_spare = true;
    return radius * cos(angle);
}

/* ---- how each kind draws a vector -------------------------------------------------------------------------------- */

/* What the vectors and queries of a kind share: centres, matrices, scales. It follows from the seed alone, so two
 * generations of a set have the same. */
typedef struct hard_shape {
    uint32_t n, dim, row_count;
    double *rows;         /* row_count rows of dim normal numbers, whose meaning is the kind's */
    uint32_t outliers[3]; /* three different components */
    uint64_t twin_seed;   /* differs from generation to generation: see hard_draw_duplicates */
} hard_shape;

/* Which vector is drawn. Of a query, both numbers are random. */
typedef struct hard_place {
    double time;       /* when it arrives, from 0 to less than 1 */
    uint32_t shuffled; /* its place in a random order, below n */
    bool is_query;
} hard_place;

static inline const double *hard_row(const hard_shape *s, uint32_t row) { return s->rows + (size_t)row * s->dim; }

static inline void hard_scale(const hard_shape *s, double factor, double *out) {
    uint32_t i;
    for (i = 0; i < s->dim; i++) out[i] *= factor;
}

static inline void hard_to_length(const hard_shape *s, double length, double *out) {
    double sum = 0;
    uint32_t i;
    for (i = 0; i < s->dim; i++) sum += out[i] * out[i];
    hard_scale(s, length / (sqrt(sum) + 1e-30), out);
}

/* out += factor * row */
static inline void hard_add(const hard_shape *s, double factor, const double *row, double *out) {
    uint32_t i;
    for (i = 0; i < s->dim; i++) out[i] += factor * row[i];
}

static inline void hard_noise(const hard_shape *s, hard_random *r, double spread, double *out) {
    uint32_t i;
    for (i = 0; i < s->dim; i++) out[i] += spread * hard_gauss(r);
}

/* Every function below gets `out` as zeros. */
static inline void hard_draw_lengths(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_noise(s, r, 1, out);
    if (!at->is_query) hard_to_length(s, exp(0.5 * hard_gauss(r)), out);
}

static inline void hard_draw_lengths_mix(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_add(s, 1, hard_row(s, hard_below(r, s->row_count)), out);
    hard_noise(s, r, 0.7, out);
    if (!at->is_query) hard_to_length(s, exp(0.5 * hard_gauss(r)), out);
}

static inline void hard_draw_zeros(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    if (at->is_query || at->shuffled >= s->n / 200) hard_noise(s, r, 1, out);
}

/* A member of one of row_count clusters, whose centres have length 1, and their members a distance of 0.1. */
static inline void hard_in_cluster(const hard_shape *s, uint32_t cluster, hard_random *r, double *out) {
    hard_add(s, 1, hard_row(s, cluster), out);
    hard_to_length(s, 1, out);
    hard_noise(s, r, 0.1 / sqrt(s->dim), out);
}

static inline void hard_draw_topics(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_in_cluster(s, (uint32_t)(at->time * s->row_count), r, out);
}

static inline void hard_draw_tight(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_in_cluster(s, (uint32_t)((uint64_t)at->shuffled * s->row_count / s->n), r, out);
}

static inline void hard_draw_crowd(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    if (at->is_query || at->shuffled >= s->n / 10) hard_noise(s, r, 1, out);
    else hard_add(s, 1, hard_row(s, hard_below(r, s->row_count)), out);
}

/* The first dim rows are a matrix that mixes the components of the base; the last is where the queries are. */
static inline void hard_draw_foreign(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    uint32_t i;
    if (at->is_query) {
        hard_noise(s, r, 1, out);
        hard_add(s, 2, hard_row(s, s->dim), out);
        hard_to_length(s, 1, out);
        return;
    }
    for (i = 0; i < s->dim; i++) hard_add(s, hard_gauss(r), hard_row(s, i), out);
    hard_to_length(s, 0.8 + 0.4 * hard_uniform(r), out);
}

static inline void hard_draw_outliers(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    int i;
    (void)at;
    hard_noise(s, r, 1, out);
    for (i = 0; i < 3; i++) out[s->outliers[i]] *= 20;
}

/* Eight coordinates from -1 to 1; each moves along one row, and to and fro along another. */
static inline void hard_draw_line(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    uint32_t i;
    (void)at;
    for (i = 0; i < 8; i++) {
        double low = 2 * hard_uniform(r) - 1;
        hard_add(s, low, hard_row(s, i), out);
        hard_add(s, sin(3 * low), hard_row(s, 8 + i), out);
    }
}

static inline void hard_draw_subspace(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    uint32_t i;
    (void)at;
    for (i = 0; i < s->row_count; i++) hard_add(s, hard_gauss(r) / sqrt(s->row_count), hard_row(s, i), out);
    hard_noise(s, r, 0.05, out);
}

/* Every component swings along the curve with a frequency and a phase of its own, at most a few dozen times. */
static inline void hard_draw_sorted_line(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    uint32_t i;
    (void)r;
    for (i = 0; i < s->dim; i++) out[i] = sin(40 * at->time * hard_row(s, 0)[i] + 3 * hard_row(s, 1)[i]);
}

static inline void hard_draw_growing(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_noise(s, r, 1, out);
    if (!at->is_query) hard_to_length(s, pow(3, at->time) * (1 + 0.02 * hard_gauss(r)), out);
}

static inline void hard_draw_drift(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_noise(s, r, 1, out);
    hard_add(s, 10 * at->time, hard_row(s, 0), out);
}

/* At least one component is not zero. */
static inline void hard_draw_sparse(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    uint32_t i;
    (void)at;
    out[hard_below(r, s->dim)] = hard_gauss(r);
    for (i = 0; i < s->dim; i++)
        if (hard_uniform(r) < 0.05) out[i] = hard_gauss(r);
}

static inline void hard_draw_binary(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    uint32_t i;
    (void)at;
    for (i = 0; i < s->dim; i++) out[i] = (double)(hard_next(r) >> 63);
}

/* Those who have the same stream are the same. */
static inline void hard_draw_duplicates(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_random twin = hard_random_of(s->twin_seed, at->shuffled / HARD_COPIES);
    hard_noise(s, at->is_query ? r : &twin, 1, out);
}

static inline void hard_draw_rare_long(const hard_shape *s, const hard_place *at, hard_random *r, double *out) {
    hard_noise(s, r, 1, out);
    if (!at->is_query && (uint64_t)at->shuffled * 1000 < s->n) hard_scale(s, 50, out);
}

/* ---- the kinds --------------------------------------------------------------------------------------------------- */

enum { HARD_ROWS_BY_N = -1, HARD_ROWS_BY_DIM = -2 };

struct hard_kind {
    const char *name;
    hard_metric metric;
    bool extra; /* not one of the ten */
    int rows;   /* of the shape. BY_N: one for each 200 vectors. BY_DIM: dim and one more */
    void (*draw)(const hard_shape *shape, const hard_place *at, hard_random *r, double *out);
};

static const hard_kind hard_kinds[] = {
    {"lengths", HARD_IP, false, 0, hard_draw_lengths},
    {"lengths-mix", HARD_IP, false, 100, hard_draw_lengths_mix},
    {"zeros", HARD_COSINE, false, 0, hard_draw_zeros},
    {"topics", HARD_L2, false, 20, hard_draw_topics},
    {"tight", HARD_COSINE, false, 8, hard_draw_tight},
    {"many-tight", HARD_L2, false, HARD_ROWS_BY_N, hard_draw_tight},
    {"crowd", HARD_L2, false, 5, hard_draw_crowd},
    {"foreign", HARD_IP, false, HARD_ROWS_BY_DIM, hard_draw_foreign},
    {"outliers", HARD_COSINE, false, 0, hard_draw_outliers},
    {"line", HARD_L2, false, 16, hard_draw_line},
    {"subspace", HARD_COSINE, true, 16, hard_draw_subspace},
    {"sorted-line", HARD_L2, true, 2, hard_draw_sorted_line},
    {"growing", HARD_IP, true, 0, hard_draw_growing},
    {"drift", HARD_L2, true, 1, hard_draw_drift},
    {"sparse", HARD_COSINE, true, 0, hard_draw_sparse},
    {"binary", HARD_L2, true, 0, hard_draw_binary},
    {"duplicates", HARD_L2, true, 0, hard_draw_duplicates},
    {"rare-long", HARD_IP, true, 0, hard_draw_rare_long},
};
enum { HARD_KIND_COUNT = sizeof hard_kinds / sizeof hard_kinds[0] };

/* NULL: there is none of that name. */
static inline const hard_kind *hard_kind_named(const char *name) {
    int i;
    for (i = 0; i < HARD_KIND_COUNT; i++)
        if (strcmp(hard_kinds[i].name, name) == 0) return &hard_kinds[i];
    return NULL;
}

/* ---- making a set ------------------------------------------------------------------------------------------------ */

enum { HARD_STREAM_SHAPE, HARD_STREAM_QUERIES, HARD_STREAM_GENERATIONS };

/* False: no memory. */
static inline bool hard_shape_make(hard_shape *s, const hard_kind *kind, uint32_t n, uint32_t dim, uint64_t seed,
                                   uint32_t generation) {
    hard_random r = hard_random_of(seed, HARD_STREAM_SHAPE);
    size_t i, count;
    memset(s, 0, sizeof *s);
    s->n = n, s->dim = dim;
    s->row_count = kind->rows == HARD_ROWS_BY_DIM ? dim + 1
                   : kind->rows != HARD_ROWS_BY_N ? (uint32_t)kind->rows
                   : n < 200                      ? 1
                                                  : n / 200;
    count = (size_t)s->row_count * dim;
    s->rows = (double *)malloc((count + 1) * sizeof *s->rows);
    if (s->rows == NULL) return false;
    for (i = 0; i < count; i++) s->rows[i] = hard_gauss(&r);
    for (i = 0; i < 3;) {
        uint32_t c = s->outliers[i] = hard_below(&r, dim);
        if ((i > 0 && c == s->outliers[0]) || (i > 1 && c == s->outliers[1])) continue;
        i++;
    }
    s->twin_seed = hard_next(&r) + generation;
    return true;
}

/* The numbers below n in a random order. NULL: no memory. */
static inline uint32_t *hard_shuffle(uint32_t n, hard_random *r) {
    uint32_t *order = (uint32_t *)malloc(n * sizeof *order), i;
    if (order == NULL) return NULL;
    for (i = 0; i < n; i++) {
        uint32_t j = hard_below(r, i + 1);
        order[i] = order[j], order[j] = i;
    }
    return order;
}

/* One vector, through `wide`, room for one; returns its length as it is stored. */
static inline double hard_draw(const hard_kind *kind, const hard_shape *s, const hard_place *at, hard_random *r,
                               double *wide, float *out) {
    double sum = 0;
    uint32_t i;
    memset(wide, 0, s->dim * sizeof *wide);
    kind->draw(s, at, r, wide);
    for (i = 0; i < s->dim; i++) out[i] = (float)wide[i], sum += (double)out[i] * out[i];
    return sqrt(sum);
}

static inline void hard_fill(hard_set *set, const hard_shape *shape, const uint32_t *order, double *wide,
                             hard_random *base, hard_random *queries) {
    hard_place at = {0, 0, false};
    uint32_t i;
    for (i = 0; i < set->n; i++) {
        at.time = (i + hard_uniform(base)) / set->n, at.shuffled = order[i];
        set->base_lengths[i] = hard_draw(set->kind, shape, &at, base, wide, set->base + (size_t)i * set->dim);
    }
    at.is_query = true;
    for (i = 0; i < set->query_count; i++) {
        at.time = hard_uniform(queries), at.shuffled = hard_below(queries, set->n);
        set->query_lengths[i] = hard_draw(set->kind, shape, &at, queries, wide, set->queries + (size_t)i * set->dim);
    }
}

/* NULL and an emptied set are fine. */
static inline void hard_free(hard_set *set) {
    if (set == NULL) return;
    free(set->base), free(set->queries), free(set->base_lengths), free(set->query_lengths);
    memset(set, 0, sizeof *set);
}

/* A set of `n` vectors. Generations 0, 1, ... of one seed have the same shape and queries, but other vectors. `base` is
 * NULL if there is no memory, or n or dim is less than HARD_N_MIN or HARD_DIM_MIN. */
static inline hard_set hard_make(const hard_kind *kind, uint32_t n, uint32_t dim, uint32_t query_count, uint64_t seed,
                                 uint32_t generation) {
    uint64_t own_seed = seed * HARD_KIND_COUNT + (uint64_t)(kind - hard_kinds);
    hard_random base = hard_random_of(own_seed, HARD_STREAM_GENERATIONS + generation);
    hard_random queries = hard_random_of(own_seed, HARD_STREAM_QUERIES);
    hard_shape shape;
    hard_set set;
    uint32_t *order;
    double *wide;
    memset(&set, 0, sizeof set);
    if (n < HARD_N_MIN || dim < HARD_DIM_MIN) return set;
    set.kind = kind, set.metric = kind->metric, set.n = n, set.dim = dim, set.query_count = query_count;
    set.base = (float *)malloc((size_t)n * dim * sizeof(float));
    set.queries = (float *)malloc(((size_t)query_count * dim + 1) * sizeof(float));
    set.base_lengths = (double *)malloc(n * sizeof(double));
    set.query_lengths = (double *)malloc((query_count + (size_t)1) * sizeof(double));
    order = hard_shuffle(n, &base), wide = (double *)malloc(dim * sizeof(double));
    if (!hard_shape_make(&shape, kind, n, dim, own_seed, generation) || set.base == NULL || set.queries == NULL ||
        set.base_lengths == NULL || set.query_lengths == NULL || order == NULL || wide == NULL)
        hard_free(&set);
    else hard_fill(&set, &shape, order, wide, &base, &queries);
    free(shape.rows), free(order), free(wide);
    return set;
}

/* ---- the truth --------------------------------------------------------------------------------------------------- */

/* From query `query` to vector `i`: squared L2, the negative inner product, or 1 - cosine, which is 1 for a vector of
 * zeros. Each vector has the same distance as its copies. Four sums, because one would wait for each addition. */
static inline double hard_distance(const hard_set *set, uint32_t query, uint32_t i) {
    const float *q = set->queries + (size_t)query * set->dim, *v = set->base + (size_t)i * set->dim;
    double sums[4] = {0, 0, 0, 0}, total, lengths;
    uint32_t at, k;
    for (at = 0; at + 4 <= set->dim; at += 4)
        for (k = 0; k < 4; k++) {
            double x = q[at + k], y = v[at + k], step = x - y;
            sums[k] += set->metric == HARD_L2 ? step * step : x * y;
        }
    for (; at < set->dim; at++) {
        double x = q[at], y = v[at], step = x - y;
        sums[0] += set->metric == HARD_L2 ? step * step : x * y;
    }
    total = sums[0] + sums[1] + sums[2] + sums[3];
    if (set->metric == HARD_L2) return total;
    if (set->metric == HARD_IP) return -total;
    lengths = set->query_lengths[query] * set->base_lengths[i];
    return lengths > 0 ? 1 - total / lengths : 1;
}

/* The HARD_K nearest of the vectors from `first` on, for each query, ties by id. */
typedef struct hard_truth {
    const hard_set *set; /* borrowed */
    uint32_t first, k;   /* k: HARD_K, or the number of vectors, if there are fewer */
    uint32_t *ids;       /* query_count rows of k, the nearest first */
    double *distances;
} hard_truth;

static inline void hard_truth_free(hard_truth *t) {
    free(t->ids), free(t->distances);
    memset(t, 0, sizeof *t);
}

/* Looks at every vector from `first` on: the older ones count as removed. `ids` is NULL if there is no memory. */
static inline hard_truth hard_truth_of(const hard_set *set, uint32_t first) {
    uint32_t query, i, left = first < set->n ? set->n - first : 0;
    hard_truth t = {set, first, left < HARD_K ? left : (uint32_t)HARD_K, NULL, NULL};
    size_t count = (size_t)set->query_count * t.k;
    t.ids = (uint32_t *)malloc((count + 1) * sizeof *t.ids);
    t.distances = (double *)malloc((count + 1) * sizeof *t.distances);
    if (t.ids == NULL || t.distances == NULL) {
        hard_truth_free(&t);
        return t;
    }
    for (query = 0; query < set->query_count; query++) {
        uint32_t *ids = t.ids + (size_t)query * t.k, found = 0;
        double *distances = t.distances + (size_t)query * t.k;
        for (i = first; i < set->n; i++) {
            double distance = hard_distance(set, query, i);
            uint32_t j;
            if (found == t.k && distance >= distances[t.k - 1]) continue; /* of equal ones the first stays */
            if (found < t.k) found++;
            for (j = found - 1; j > 0 && distances[j - 1] > distance; j--)
                distances[j] = distances[j - 1], ids[j] = ids[j - 1];
            distances[j] = distance, ids[j] = i;
        }
    }
    return t;
}

/* How many of the `found` ids (at most HARD_K) are right answers to a query. An id is right if its vector is as near as
 * the last true neighbour, up to rounding: where many vectors are equally far, any of them will do. An id that comes
 * twice counts once, and one that is not there any more does not count. */
static inline uint32_t hard_hits(const hard_truth *t, uint32_t query, const uint64_t *ids, uint32_t found) {
    uint32_t i, j, hits = 0;
    double limit = t->k > 0 ? t->distances[(size_t)query * t->k + t->k - 1] : 0;
    limit += 1e-6 * fabs(limit);
    for (i = 0; i < found && i < HARD_K; i++) {
        for (j = 0; j < i && ids[j] != ids[i]; j++) {}
        if (j < i || ids[i] < t->first || ids[i] >= t->set->n) continue;
        hits += hard_distance(t->set, query, (uint32_t)ids[i]) <= limit;
    }
    return hits < t->k ? hits : t->k;
}

#endif
