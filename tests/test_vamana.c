/* Tests of nodedb_vamana.h: each name is a promise of its manual. The data are random vectors from the seed, and real
 * ones: tests/data/sift10k, in the formats u8bin and gt of the big-ann-benchmarks. The rooms:
 *
 *   DATA        real and random vectors, recall, an allocator that counts
 *   KERNELS     they can be named
 *   INPUT       what is refused, what distances are, what get returns
 *   GRAPH       building, inserting, equal vectors
 *   REMOVING    sweeps, churn, compacting
 *   SEARCHING   filters, cost, threads, allocations that fail
 *   FILES       saving, opening, damage, forgery
 *   DISK        reranks, reads that fail or rot, fallbacks, fetchers
 *   HISTORIES   random changes beside a model, what rows keep, a large set */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "test.h"
#include "vamana_file.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#if defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#endif

#define ALL (SLOW ? 1500u : 10000u)
#define METRICS (SLOW ? 1 : 3)
#define GOOD (SLOW ? 0.9 : 0.98) /* recall at beam 64 */

/* ===================================================================================================================
 * DATA: real and random vectors, recall, an allocator that counts
 * ================================================================================================================ */

typedef struct sift { /* vectors, queries, and the true ten nearest */
    uint8_t *base, *queries;
    uint32_t *truth;
    uint32_t n, dim, query_count;
} sift;

static uint8_t *load_matrix(const char *path, uint32_t *n, uint32_t *width, size_t size) {
    uint8_t header[8], *rows;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(header, 1, 8, file) != 8) {
        fprintf(stderr, "cannot read %s: run the tests in the project's folder\n", path);
        exit(2);
    }
    *n = nodedb_get_u32(header), *width = nodedb_get_u32(header + 4);
    rows = (uint8_t *)malloc((size_t)*n * *width * size);
    if (rows == NULL || fread(rows, size, (size_t)*n * *width, file) != (size_t)*n * *width) exit(2);
    fclose(file);
    return rows;
}

static const sift *sift10k(void) {
    static sift s;
    uint32_t n, k, i;
    if (s.base != NULL) return &s;
    s.base = load_matrix("tests/data/sift10k.base.u8bin", &s.n, &s.dim, 1);
    s.queries = load_matrix("tests/data/sift10k.query.u8bin", &s.query_count, &s.dim, 1);
    s.truth = (uint32_t *)(void *)load_matrix("tests/data/sift10k.gt", &n, &k, 4);
    for (i = 0; i < n * k; i++) s.truth[i] = nodedb_get_u32(&s.truth[i]);
    return &s;
}

static float random_float(uint64_t *state) { return (float)(test_random(state) >> 40) / 8388608.0f - 1.0f; }

/* n vectors around `centres` random centres. */
static float *random_vectors(uint32_t n, uint32_t dim, uint32_t centres, uint64_t seed) {
    float *v = (float *)malloc((size_t)n * dim * sizeof *v), *c = (float *)malloc((size_t)centres * dim * sizeof *c);
    uint64_t state = seed;
    uint32_t i, j;
    for (i = 0; i < centres * dim; i++) c[i] = random_float(&state);
    for (i = 0; i < n; i++) {
        const float *centre = c + (size_t)(test_random(&state) % centres) * dim;
        for (j = 0; j < dim; j++) v[(size_t)i * dim + j] = centre[j] + 0.4f * random_float(&state);
    }
    free(c);
    return v;
}

static nodedb_vamana_config config_of(uint32_t dim, nodedb_vamana_type type, nodedb_vamana_metric metric) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = dim, c.type = type, c.metric = metric, c.seed = test_seed;
    if (SLOW) c.degree = 24, c.beam_build = 40;
    return c;
}

static nodedb_vamana_query query_of(const void *vector, uint32_t k, uint32_t beam) {
    nodedb_vamana_query q;
    memset(&q, 0, sizeof q);
    q.vector = vector, q.k = k, q.beam = beam;
    return q;
}

/* An index of the first n vectors of sift10k, built by two threads. */
static nodedb_vamana *build_sift(uint32_t n, nodedb_vamana_type type, nodedb_vamana_metric metric, uint32_t threads) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, type, metric);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    float *floats = (float *)malloc((size_t)n * s->dim * sizeof *floats);
    size_t i;
    for (i = 0; i < (size_t)n * s->dim; i++) floats[i] = s->base[i];
    CHECK(index != NULL);
    CHECK_EQ(nodedb_vamana_build(index, NULL, type == NODEDB_VAMANA_U8 ? (const void *)s->base : floats, n, threads,
                                 NULL,
                                 NULL, NULL), NODEDB_OK);
    free(floats);
    return index;
}

/* Mean share of the true ten (by scan) that a search finds, over queries of the index's type. */
static double recall_by_scan(const nodedb_vamana *index, const uint8_t *queries, size_t query_bytes, uint32_t n,
                             uint32_t beam) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t i, j, k, hits = 0, all = 0;
    for (i = 0; i < n; i++) {
        nodedb_vamana_query q = query_of(queries + i * query_bytes, 10, beam);
        nodedb_vamana_result got[10], want[10];
        uint32_t got_n, want_n;
        CHECK_EQ(nodedb_vamana_search(s, &q, got, &got_n, NULL, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_scan(s, &q, want, &want_n, NULL, NULL), NODEDB_OK);
        CHECK_EQ(got_n, want_n);
        for (j = 0; j < got_n; j++)
            for (k = 0; k < want_n; k++) hits += got[j].id == want[k].id;
        all += want_n;
    }
    nodedb_vamana_searcher_destroy(s);
    return all == 0 ? 1 : (double)hits / all;
}

/* sift10k, built once for the tests that only read it. */
static const nodedb_vamana *shared_sift10k(void) {
    static nodedb_vamana *index;
    if (index == NULL) index = build_sift(ALL, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    return index;
}

static double recall_of_sift10k(const nodedb_vamana *index, uint32_t beam) {
    const sift *s = sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t i, j, k, hits = 0;
    if (nodedb_vamana_count(index) < s->n) {
        nodedb_vamana_searcher_destroy(searcher);
        return recall_by_scan(index, s->queries, s->dim, s->query_count, beam);
    }
    for (i = 0; i < s->query_count; i++) {
        nodedb_vamana_query q = query_of(s->queries + (size_t)i * s->dim, 10, beam);
        nodedb_vamana_result got[10];
        uint32_t found;
        CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 10);
        for (j = 0; j < found; j++)
            for (k = 0; k < 10; k++) hits += got[j].id == s->truth[i * 10 + k];
    }
    nodedb_vamana_searcher_destroy(searcher);
    return hits / (10.0 * s->query_count);
}

static char *path_in_test_dir(const char *name) {
    static char path[700];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    return path;
}

static uint8_t *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    *bytes = 0;
    if (file == NULL) return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    data = (uint8_t *)malloc(*bytes + 1);
    if (fread(data, 1, *bytes, file) != *bytes) *bytes = 0;
    fclose(file);
    return data;
}

static void write_file(const char *path, const uint8_t *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(data, 1, bytes, file) == bytes);
    if (file != NULL) fclose(file);
}

/* An allocator that counts, and can be told to fail. */
typedef struct counting { uint64_t calls, bytes, fail_at, peak; } counting;
static void *counting_alloc(void *ctx, size_t bytes, size_t align) {
    counting *c = (counting *)ctx;
    void *memory = NULL;
    if (++c->calls == c->fail_at || posix_memalign(&memory, align, bytes) != 0) return NULL;
    memset(memory, 0xA5, bytes);
    c->bytes += bytes;
    if (c->bytes > c->peak) c->peak = c->bytes;
    return memory;
}
static void counting_release(void *ctx, void *memory, size_t bytes) {
    counting *c = (counting *)ctx;
    CHECK(c->bytes >= bytes);
    c->bytes -= bytes;
    free(memory);
}
static nodedb_allocator counting_allocator(counting *c) {
    nodedb_allocator a;
    memset(c, 0, sizeof *c);
    a.alloc = counting_alloc, a.release = counting_release, a.ctx = c;
    return a;
}

typedef struct said { int count; char last[600]; } said;
static void remember(void *ctx, nodedb_log_level level, const char *sentence) {
    said *s = (said *)ctx;
    (void)level;
    s->count++;
    snprintf(s->last, sizeof s->last, "%s", sentence);
}

/* ===================================================================================================================
 * KERNELS: they can be named
 * ================================================================================================================ */

TEST(a_kernel_can_be_named_and_an_unknown_one_is_refused) {
    nodedb_vamana_config c = config_of(8, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2);
    nodedb_vamana *index;
    nodedb_error err;
    size_t set;
    for (set = 0; nodedb_vamana_kernels_at(set) != NULL; set++) {
        const nodedb_vamana_kernels *k = nodedb_vamana_kernels_at(set);
        c.kernel = k->name;
        index = nodedb_vamana_create(&c, &err);
        CHECK((index != NULL) == nodedb_vamana_kernels_usable(k));
        if (index != NULL) CHECK_HAS(nodedb_vamana_kernel(index), k->name);
        else CHECK_EQ(err.status, NODEDB_ERR_UNSUPPORTED);
        nodedb_vamana_destroy(index);
    }
    c.kernel = "abacus";
    CHECK(nodedb_vamana_create(&c, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "abacus");
}

/* ===================================================================================================================
 * INPUT: what is refused, what distances are, what get returns
 * ================================================================================================================ */

TEST(a_wrong_config_or_a_null_is_an_error_and_not_a_crash) {
    nodedb_vamana_config good = config_of(4, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2), bad;
    nodedb_vamana *index = nodedb_vamana_create(&good, NULL);
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_searcher_config huge = {NODEDB_VAMANA_MAX_BEAM + 1, NULL};
    nodedb_vamana_result result;
    nodedb_vamana_query q = query_of("", 1, 1);
    nodedb_vamana_fetcher fetcher;
    nodedb_error err;
    uint32_t found;
    float out[4] = {1, 2, 3, 4};
    CHECK(nodedb_vamana_create(NULL, &err) == NULL);
    bad = good, bad.dim = 0;
    CHECK(nodedb_vamana_create(&bad, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    bad = good, bad.dim = NODEDB_VAMANA_MAX_DIM + 1;
    CHECK(nodedb_vamana_create(&bad, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    bad = good, bad.degree = 3;
    CHECK(nodedb_vamana_create(&bad, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    bad = good, bad.alpha = 0.5f;
    CHECK(nodedb_vamana_create(&bad, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    bad = good, bad.beam_build = NODEDB_VAMANA_MAX_BEAM_BUILD + 1;
    CHECK(nodedb_vamana_create(&bad, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    bad = good, bad.capacity = UINT64_C(1) << 32;
    CHECK(nodedb_vamana_create(&bad, &err) == NULL && err.status == NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_vamana_insert(NULL, 1, out, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_insert(index, 1, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_remove(index, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_vamana_build(index, NULL, NULL, 3, 1, NULL, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_build(index, NULL, out, 1, 1000, NULL, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_build(index, NULL, out, UINT64_C(1) << 33, 1, NULL, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_vamana_get(index, 1, out, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_vamana_get(index, 1, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_get_stored(index, 1, out, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_vamana_search(NULL, &q, &result, &found, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_search(s, NULL, &result, &found, NULL, &err), NODEDB_ERR_INVALID);
    q.vector = NULL;
    CHECK_EQ(nodedb_vamana_search(s, &q, &result, &found, NULL, &err), NODEDB_ERR_INVALID);
    q.vector = out, q.k = NODEDB_VAMANA_MAX_BEAM + 1;
    CHECK_EQ(nodedb_vamana_search(s, &q, &result, &found, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_vamana_scan(s, &q, &result, &found, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK(nodedb_vamana_searcher_create(NULL, NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK(nodedb_vamana_searcher_create(index, &huge, &err) == NULL && err.status == NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_vamana_save(index, NULL, NODEDB_VAMANA_RESIDENT, &err), NODEDB_ERR_INVALID);
    CHECK(nodedb_vamana_open("", NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK(nodedb_vamana_open("no/such/file", NULL, &err) == NULL && err.status == NODEDB_ERR_NOT_FOUND);
    CHECK_HAS(err.message, "no/such/file");
    CHECK_EQ(nodedb_vamana_fetcher_disk(index, 0, &fetcher, &err), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_vamana_count(NULL) + nodedb_vamana_dim(NULL) + nodedb_vamana_memory_bytes(NULL), 0);
    CHECK(!nodedb_vamana_maintain(NULL, 5) && !nodedb_vamana_contains(NULL, 1));
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
    nodedb_vamana_destroy(NULL);
    nodedb_vamana_searcher_destroy(NULL);
}

TEST(nan_and_infinity_are_refused_by_position_and_nothing_changes) {
    nodedb_vamana_config c = config_of(5, NODEDB_VAMANA_F32, NODEDB_VAMANA_COSINE);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    float rows[3][5] = {{1, 2, 3, 4, 5}, {1, 1, 1, 1, 1}, {5, 4, 3, 2, 1}}, bad[5] = {1, 2, 3, 4, 5};
    nodedb_vamana_query q = query_of(bad, 1, 1);
    nodedb_vamana_result result;
    nodedb_error err;
    uint32_t found = 7;
    bad[3] = NAN;
    CHECK_EQ(nodedb_vamana_insert(index, 1, bad, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "component 3");
    CHECK_EQ(nodedb_vamana_search(s, &q, &result, &found, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(found, 0);
    bad[3] = -INFINITY;
    CHECK_EQ(nodedb_vamana_insert(index, 1, bad, &err), NODEDB_ERR_INVALID);
    bad[3] = 2e18f;
    CHECK_EQ(nodedb_vamana_insert(index, 1, bad, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "length");
    rows[2][1] = INFINITY;
    CHECK_EQ(nodedb_vamana_build(index, NULL, rows, 3, 1, NULL, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "component 1 of vector 2");
    CHECK_EQ(nodedb_vamana_count(index), 0);
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
}

/* The definition, in double precision. */
static double distance_by_definition(nodedb_vamana_metric metric, const float *a, const float *b, uint32_t dim) {
    double dot = 0, aa = 0, bb = 0, l2 = 0;
    uint32_t i;
    for (i = 0; i < dim; i++) {
        dot += (double)a[i] * b[i], aa += (double)a[i] * a[i], bb += (double)b[i] * b[i];
        l2 += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    }
    if (metric == NODEDB_VAMANA_L2) return l2;
    if (metric == NODEDB_VAMANA_IP) return -dot;
    return aa == 0 || bb == 0 ? 1 : 1 - dot / sqrt(aa * bb);
}

TEST(returned_distances_are_those_of_the_metric_for_every_type_and_kernel) {
    enum { DIM = 37, N = 300 };
    static float vectors[N][DIM], out[DIM];
    static uint8_t bytes[N][DIM];
    uint64_t state = test_seed;
    uint32_t i, j, found;
    int type, metric;
    size_t set;
    for (i = 0; i < N; i++)
        for (j = 0; j < DIM; j++) bytes[i][j] = i == 7 ? 0 : (uint8_t)test_random(&state), vectors[i][j] = bytes[i][j];
    for (set = 0; nodedb_vamana_kernels_at(set) != NULL; set++)
        for (type = 0; type < 2; type++)
            for (metric = 0; metric < 3; metric++) {
                nodedb_vamana_config c = config_of(DIM, (nodedb_vamana_type)type, (nodedb_vamana_metric)metric);
                nodedb_vamana_searcher *s;
                nodedb_vamana *index;
                nodedb_vamana_result results[N];
                if (!nodedb_vamana_kernels_usable(nodedb_vamana_kernels_at(set))) continue;
                c.kernel = nodedb_vamana_kernels_at(set)->name;
                index = nodedb_vamana_create(&c, NULL);
                s = nodedb_vamana_searcher_create(index, NULL, NULL);
                for (i = 0; i < N; i++)
                    CHECK_EQ(nodedb_vamana_insert(index, i, type ? (void *)bytes[i] : (void *)vectors[i], NULL),
                             NODEDB_OK);
                for (i = 0; i < (SLOW ? 4u : 16u); i++) {
                    nodedb_vamana_query q = query_of(type ? (void *)bytes[i] : (void *)vectors[i], 50, 150);
                    CHECK_EQ(nodedb_vamana_search(s, &q, results, &found, NULL, NULL), NODEDB_OK);
                    CHECK_EQ(found, 50);
                    for (j = 0; j < found; j++) {
                        double want = distance_by_definition(c.metric, vectors[i], vectors[results[j].id], DIM);
                        CHECK(fabs(want - (double)results[j].distance) <= 2e-6 + 1e-6 * fabs(want));
                        CHECK(j == 0 || results[j - 1].distance <= results[j].distance);
                    }
                    CHECK_EQ(nodedb_vamana_get(index, i, out, NULL), NODEDB_OK);
                    for (j = 0; j < DIM; j++) CHECK(fabsf(out[j] - vectors[i][j]) <= 1e-4f);
                }
                nodedb_vamana_searcher_destroy(s);
                nodedb_vamana_destroy(index);
            }
}

TEST(the_cosine_with_a_vector_of_zeros_is_zero_and_never_a_nan) {
    int type;
    for (type = 0; type < 2; type++) {
        nodedb_vamana_config c = config_of(3, (nodedb_vamana_type)type, NODEDB_VAMANA_COSINE);
        nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
        nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
        float zeros[3] = {0, 0, 0}, x[3] = {1, 0, 0}, tiny[3] = {1e-42f, 0, 0}, out[3];
        uint8_t zero_bytes[3] = {0, 0, 0}, x_bytes[3] = {9, 0, 0}, tiny_bytes[3] = {1, 0, 0};
        nodedb_vamana_query q = query_of(type ? (void *)zero_bytes : (void *)zeros, 3, 3);
        nodedb_vamana_result r[3];
        uint32_t found, i;
        CHECK_EQ(nodedb_vamana_insert(index, 1, type ? (void *)zero_bytes : (void *)zeros, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_insert(index, 2, type ? (void *)x_bytes : (void *)x, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_insert(index, 3, type ? (void *)tiny_bytes : (void *)tiny, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 3);
        for (i = 0; i < found; i++) CHECK(r[i].distance == 1 && r[i].id == i + 1);
        q.vector = type ? (void *)x_bytes : (void *)x;
        CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, NULL), NODEDB_OK);
        CHECK(r[0].distance < 1e-6f && r[1].distance < 1e-6f && r[2].distance == 1 && r[2].id == 1);
        CHECK_EQ(nodedb_vamana_get(index, 1, out, NULL), NODEDB_OK);
        CHECK(out[0] == 0 && out[1] == 0 && out[2] == 0);
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(index);
    }
}

TEST(get_returns_the_bits_that_were_inserted_and_for_cosine_up_to_rounding) {
    float *v = random_vectors(200, 50, 5, test_seed), out[50];
    int metric;
    uint32_t i, j;
    for (metric = 0; metric < 3; metric++) {
        nodedb_vamana_config c = config_of(50, NODEDB_VAMANA_F32, (nodedb_vamana_metric)metric);
        nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana_build(index, NULL, v, 200, 1, NULL, NULL, NULL), NODEDB_OK);
        for (i = 0; i < 200; i++) {
            CHECK_EQ(nodedb_vamana_get(index, i, out, NULL), NODEDB_OK);
            for (j = 0; j < 50; j++)
                CHECK(fabsf(out[j] - v[i * 50 + j]) <= (metric == 2 ? 3e-7f * fabsf(v[i * 50 + j]) : 0));
        }
        nodedb_vamana_destroy(index);
    }
    free(v);
}

/* ===================================================================================================================
 * GRAPH: building, inserting, equal vectors
 * ================================================================================================================ */

TEST(a_batch_build_finds_98_of_100_true_neighbours_with_beam_64) {
    const nodedb_vamana *index = shared_sift10k();
    double recall = recall_of_sift10k(index, 64);
    printf("     recall@10 of a batch build, beam 64: %.4f, beam 20: %.4f\n", recall, recall_of_sift10k(index, 20));
    CHECK(recall >= GOOD);
}

TEST(inserting_one_by_one_finds_98_of_100_true_neighbours_with_beam_64) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    nodedb_vamana_info info;
    double recall;
    uint32_t i;
    for (i = 0; i < ALL; i++) CHECK_EQ(nodedb_vamana_insert(index, i, s->base + (size_t)i * s->dim, NULL), NODEDB_OK);
    recall = recall_of_sift10k(index, 64);
    printf("     recall@10 of single inserts, beam 64: %.4f\n", recall);
    CHECK(recall >= GOOD);
    nodedb_vamana_inspect(index, &info);
    CHECK_EQ(info.live, ALL);
    CHECK(info.mean_degree > 8 && info.mean_degree <= 64);
    nodedb_vamana_destroy(index);
}

TEST(inner_product_and_cosine_find_their_true_neighbours_too) {
    enum { N = SLOW ? 900 : 3000, DIM = 24, Q = 60 };
    float *v = random_vectors(N + Q, DIM, 30, test_seed);
    uint8_t *bytes = (uint8_t *)malloc((size_t)(N + Q) * DIM);
    int metric, type;
    size_t i;
    for (i = 0; i < (size_t)(N + Q) * DIM; i++) bytes[i] = (uint8_t)(128 + 80 * v[i]);
    for (i = 0; i < N; i += 3) v[i * DIM] *= 3; /* lengths differ */
    for (metric = 1; metric < 3; metric++)
        for (type = 0; type < 2; type++) {
            nodedb_vamana_config c = config_of(DIM, (nodedb_vamana_type)type, (nodedb_vamana_metric)metric);
            nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
            const uint8_t *rows = type ? bytes : (const uint8_t *)v;
            size_t row = type ? DIM : DIM * 4;
            double recall;
            CHECK_EQ(nodedb_vamana_build(index, NULL, rows, N / 2, 2, NULL, NULL, NULL), NODEDB_OK);
            for (i = N / 2; i < N; i++) CHECK_EQ(nodedb_vamana_insert(index, i, rows + i * row, NULL), NODEDB_OK);
            recall = recall_by_scan(index, rows + N * row, row, Q, 64);
            printf("     recall@10, metric %d, type %d: %.4f\n", metric, type, recall);
            CHECK(recall >= GOOD);
            nodedb_vamana_destroy(index);
        }
    free(v);
    free(bytes);
}

TEST(the_same_seed_gives_the_same_graph_whatever_the_number_of_threads) {
    uint8_t *first = NULL;
    size_t first_bytes = 0, bytes;
    uint32_t threads;
    for (threads = 1; threads <= 4; threads++) {
        nodedb_vamana *index = build_sift(SLOW ? 1000 : 2500, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, threads);
        const char *path = path_in_test_dir("graph");
        uint8_t *file;
        CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
        file = read_file(path, &bytes);
        if (threads == 1) first = file, first_bytes = bytes;
        else {
            CHECK(bytes == first_bytes && memcmp(file, first, bytes) == 0);
            free(file);
        }
        nodedb_vamana_destroy(index);
    }
    free(first);
}

TEST(a_build_goes_into_an_index_that_holds_some_and_refuses_an_id_twice) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    uint64_t ids[2000], i;
    nodedb_error err;
    double recall;
    for (i = 0; i < 500; i++) CHECK_EQ(nodedb_vamana_insert(index, i, s->base + i * s->dim, NULL), NODEDB_OK);
    for (i = 0; i < 2000; i++) ids[i] = 500 + i;
    ids[1999] = 77;
    CHECK_EQ(nodedb_vamana_build(index, ids, s->base + 500 * s->dim, 2000, 2, NULL, NULL, &err), NODEDB_ERR_EXISTS);
    CHECK_HAS(err.message, "77");
    CHECK_EQ(nodedb_vamana_count(index), 500);
    ids[1999] = ids[3];
    CHECK_EQ(nodedb_vamana_build(index, ids, s->base + 500 * s->dim, 2000, 2, NULL, NULL, &err), NODEDB_ERR_EXISTS);
    CHECK(!nodedb_vamana_contains(index, ids[3]));
    ids[1999] = 2499;
    CHECK_EQ(nodedb_vamana_build(index, ids, s->base + 500 * s->dim, 2000, 2, NULL, NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_count(index), 2500);
    recall = recall_by_scan(index, s->queries, s->dim, 100, 64);
    CHECK(recall >= 0.99);
    nodedb_vamana_destroy(index);
}

static bool stop_half_way(void *ctx, uint64_t done, uint64_t total) {
    *(uint64_t *)ctx = done;
    return done < total / 2;
}

TEST(a_cancelled_build_leaves_a_valid_index_of_what_was_done) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    uint64_t done = 0, cursor = 0, id, seen = 0;
    nodedb_error err;
    CHECK_EQ(nodedb_vamana_build(index, NULL, s->base, 2000, 2, stop_half_way, &done, &err), NODEDB_ERR_CANCELLED);
    CHECK(done >= 1000 && done < 2000);
    CHECK_EQ(nodedb_vamana_count(index), done);
    while (nodedb_vamana_next(index, &cursor, &id)) seen++;
    CHECK_EQ(seen, done);
    CHECK(recall_by_scan(index, s->queries, s->dim, 50, 64) >= 0.98);
    for (id = 0; id < 2000; id++)
        if (!nodedb_vamana_contains(index, id))
            CHECK_EQ(nodedb_vamana_insert(index, id, s->base + id * s->dim, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_count(index), 2000);
    CHECK(recall_by_scan(index, s->queries, s->dim, 50, 64) >= 0.98);
    nodedb_vamana_destroy(index);
}

TEST(a_build_takes_no_more_memory_than_it_said_before) {
    const sift *s = sift10k();
    static const nodedb_vamana_code codes[] = {NODEDB_VAMANA_CODE_AUTO, NODEDB_VAMANA_CODE_NONE,
                                               NODEDB_VAMANA_CODE_8BIT, NODEDB_VAMANA_CODE_4BIT};
    uint32_t n = s->n < 5000 ? s->n : 5000, i, threads;
    for (i = 0; i < 4; i++)
        for (threads = 1; threads <= 2; threads++) {
            nodedb_vamana_metric metric = i % 2 == 0 ? NODEDB_VAMANA_L2 : NODEDB_VAMANA_IP;
            nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, metric);
            nodedb_error err;
            nodedb_vamana *index;
            counting count;
            uint64_t bound;
            c.code = codes[i], c.beam_build = 40, c.degree = 32;
            c.capacity = (i + threads) % 3 == 0 ? n : (i + threads) % 3 == 1 ? 0 : n - 1; /* it has to grow at once */
            c.allocator = counting_allocator(&count);
            bound = nodedb_vamana_build_bytes(&c, n, threads, &err);
            CHECK_EQ(count.bytes, 0);
            index = nodedb_vamana_create(&c, &err);
            REQUIRE(index != NULL);
            CHECK_EQ(nodedb_vamana_build(index, NULL, s->base, n, threads, NULL, NULL, &err), NODEDB_OK);
            printf("     code %u, %u threads: peak %llu of %llu bytes\n", (unsigned)i, (unsigned)threads,
                   (unsigned long long)count.peak, (unsigned long long)bound);
            CHECK(count.peak <= bound && count.peak >= bound / 2);
            nodedb_vamana_destroy(index);
            CHECK_EQ(count.bytes, 0);
        }
}

TEST(a_crowd_of_equal_vectors_stays_connected_and_hides_no_other) {
    int metric;
    for (metric = 0; metric < 3; metric++) {
        enum { CROWD = SLOW ? 400 : 1500, OTHERS = CROWD, DIM = 16 };
        nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, (nodedb_vamana_metric)metric);
        nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
        nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
        float *v = random_vectors(OTHERS, DIM, 20, test_seed), same[DIM];
        nodedb_vamana_result r[200];
        uint32_t i, found, crowd = 0, missed = 0;
        nodedb_vamana_query q;
        for (i = 0; i < DIM; i++) same[i] = 0.3f + 0.01f * (float)i;
        for (i = 0; i < CROWD; i++) {
            CHECK_EQ(nodedb_vamana_insert(index, 10000 + i, same, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
        }
        q = query_of(same, 200, 200);
        CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, NULL), NODEDB_OK);
        for (i = 0; i < found; i++) crowd += r[i].id >= 10000;
        if (metric != NODEDB_VAMANA_IP) CHECK_EQ(crowd, 200);
        for (i = 0; i < OTHERS; i++) { /* each of the others finds itself */
            q = query_of(v + (size_t)i * DIM, 1, 64);
            CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, NULL), NODEDB_OK);
            missed += found != 1 || r[0].id != i;
        }
        if (metric != NODEDB_VAMANA_IP) CHECK(missed <= 5);
        free(v);
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(index);
    }
}

TEST(a_crowd_of_equal_vectors_in_a_batch_hides_few_of_the_others) {
    enum { CROWD = SLOW ? 300 : 2000, OTHERS = CROWD, DIM = 16 };
    uint32_t round, rounds = SLOW ? 1 : 4, missed = 0, found, i;
    float *v = (float *)malloc((size_t)(CROWD + OTHERS) * DIM * sizeof *v);
    for (round = 0; round < rounds; round++) {
        nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2);
        nodedb_vamana *index;
        nodedb_vamana_searcher *s;
        uint64_t state = test_seed + round;
        c.seed = round;
        index = nodedb_vamana_create(&c, NULL);
        s = nodedb_vamana_searcher_create(index, NULL, NULL);
        for (i = 0; i < (CROWD + OTHERS) * DIM; i++)
            v[i] = i < CROWD * DIM ? 0.3f + 0.01f * (float)(i % DIM) : random_float(&state);
        CHECK_EQ(nodedb_vamana_build(index, NULL, v, CROWD + OTHERS, 2, NULL, NULL, NULL), NODEDB_OK);
        for (i = CROWD; i < CROWD + OTHERS; i++) {
            nodedb_vamana_query q = query_of(v + (size_t)i * DIM, 1, 64);
            nodedb_vamana_result r;
            CHECK_EQ(nodedb_vamana_search(s, &q, &r, &found, NULL, NULL), NODEDB_OK);
            missed += found != 1 || r.id != i;
        }
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(index);
    }
    printf("     %u of %u missed\n", (unsigned)missed, (unsigned)(rounds * OTHERS));
    CHECK(missed * 20 <= rounds * OTHERS);
    free(v);
}

TEST(ties_are_broken_by_the_id_and_k_may_pass_the_count) {
    nodedb_vamana_config c = config_of(2, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint8_t vector[2] = {3, 4};
    nodedb_vamana_query q = query_of(vector, 20, 0);
    nodedb_vamana_result r[100];
    uint32_t found, i;
    CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, NULL), NODEDB_OK);
    CHECK_EQ(found, 0);
    for (i = 0; i < 60; i++) CHECK_EQ(nodedb_vamana_insert(index, (i * 37u) % 60u, vector, NULL), NODEDB_OK);
    for (q.k = 1; q.k <= 100; q.k += 9) {
        CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, q.k < 60 ? q.k : 60);
        for (i = 0; i < found; i++) CHECK(r[i].id == i && r[i].distance == 0);
    }
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
}

/* ===================================================================================================================
 * REMOVING: sweeps, churn, compacting
 * ================================================================================================================ */

TEST(a_removed_vector_is_never_returned_again_and_a_replaced_one_only_in_its_new_place) {
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(3000, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result r[10];
    uint32_t i, j, found;
    for (i = 0; i < 1000; i++) {
        nodedb_vamana_query q = query_of(s->base + (size_t)i * s->dim, 10, 32);
        CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_ERR_NOT_FOUND);
        CHECK(!nodedb_vamana_contains(index, i));
        CHECK_EQ(nodedb_vamana_search(searcher, &q, r, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 10);
        for (j = 0; j < found; j++) CHECK(r[j].id > i);
    }
    for (i = 2000; i < 2100; i++) { /* now at the place of one that was removed */
        nodedb_vamana_query q = query_of(s->base + (size_t)(i - 2000) * s->dim, 1, 32);
        CHECK_EQ(nodedb_vamana_insert(index, i, q.vector, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_search(searcher, &q, r, &found, NULL, NULL), NODEDB_OK);
        CHECK(found == 1 && r[0].id == i && r[0].distance == 0);
    }
    CHECK_EQ(nodedb_vamana_count(index), 2000);
    CHECK(recall_by_scan(index, s->queries, s->dim, 100, 64) >= 0.98);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
}

/* As in FreshDiskANN: 5% of all are removed and as many of the others inserted, fifty times over. */
TEST(recall_and_memory_stay_under_churn) {
    enum { N = SLOW ? 800 : 4000, POOL = 2 * N, ROUNDS = SLOW ? 20 : 50, PART = N / 20 };
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(N, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2), *fresh;
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana_info info;
    uint32_t i, round, ids[POOL];
    uint64_t live[N], state = test_seed, slots;
    uint8_t *vectors = (uint8_t *)malloc((size_t)N * s->dim);
    double churned, built;
    int beam;
    for (i = 0; i < POOL; i++) ids[i] = i; /* the first N are in the index */
    for (round = 0; round < ROUNDS; round++)
        for (i = 0; i < PART; i++) {
            uint32_t out = (uint32_t)(test_random(&state) % N), in = N + (uint32_t)(test_random(&state) % (POOL - N));
            uint32_t swap = ids[out];
            CHECK_EQ(nodedb_vamana_remove(index, ids[out], NULL), NODEDB_OK);
            ids[out] = ids[in], ids[in] = swap;
            CHECK_EQ(nodedb_vamana_insert(index, ids[out], s->base + (size_t)ids[out] * s->dim, NULL), NODEDB_OK);
            nodedb_vamana_inspect(index, &info);
            slots = info.live + info.removed + info.free; /* a sweep begins at 1/32, or 32, and takes 1/48 more */
            CHECK(info.removed <= (slots / 32 > 32 ? slots / 32 : 32) + slots / 48 + 3);
        }
    for (i = 0; i < N; i++)
        live[i] = ids[i], memcpy(vectors + (size_t)i * s->dim, s->base + (size_t)ids[i] * s->dim, s->dim);
    fresh = nodedb_vamana_create(&c, NULL);
    CHECK_EQ(nodedb_vamana_build(fresh, live, vectors, N, 2, NULL, NULL, NULL), NODEDB_OK);
    printf("     memory: %.4f of a fresh build's\n", (double)nodedb_vamana_memory_bytes(index) /
                                                         (double)nodedb_vamana_memory_bytes(fresh));
    CHECK(nodedb_vamana_memory_bytes(index) <= nodedb_vamana_memory_bytes(fresh) / 10 * 11);
    for (beam = 10; beam <= 80; beam *= 2) {
        churned = recall_by_scan(index, s->queries, s->dim, s->query_count, (uint32_t)beam);
        built = recall_by_scan(fresh, s->queries, s->dim, s->query_count, (uint32_t)beam);
        printf("     recall@10, beam %d: %.4f after churn, %.4f of a fresh build\n", beam, churned, built);
        CHECK(churned >= built - 0.01);
    }
    free(vectors);
    nodedb_vamana_destroy(fresh);
    nodedb_vamana_destroy(index);
}

/* With a beam as narrow as k, one removed vector in it leaves too few results. */
TEST(removed_vectors_in_the_beam_widen_it_and_make_no_search_look_at_all) {
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(ALL, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    uint32_t i, j, found, widened = 0;
    for (i = 0; i < ALL / 40; i++) CHECK_EQ(nodedb_vamana_remove(index, 37 * i % ALL, NULL), NODEDB_OK);
    for (i = 0; i < 200 && i < s->query_count; i++) {
        nodedb_vamana_query q = query_of(s->queries + (size_t)i * s->dim, 10, 10);
        nodedb_vamana_result r[10];
        nodedb_vamana_stats stats;
        CHECK_EQ(nodedb_vamana_search(searcher, &q, r, &found, &stats, NULL), NODEDB_OK);
        CHECK_EQ(found, 10);
        CHECK(!stats.scanned || SLOW);
        CHECK(stats.distances < ALL / 3 || SLOW);
        widened += searcher->beam_count > 10;
        for (j = 0; j < found; j++) CHECK(nodedb_vamana_contains(index, r[j].id));
    }
    CHECK(widened > 5);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
}

TEST(recall_stays_when_most_vectors_are_removed_and_none_inserted) {
    enum { N = SLOW ? 1000 : 6000 };
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(N, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    double recall;
    uint32_t i;
    for (i = 0; i < N; i++)
        if (i % 8 != 0) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    recall = recall_by_scan(index, s->queries, s->dim, s->query_count, 20);
    printf("     recall@10, beam 20, one of eight left: %.4f\n", recall);
    CHECK(recall >= 0.97);
    nodedb_vamana_destroy(index);
}

TEST(maintain_repairs_the_graph_in_slices_and_frees_the_slots) {
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(2000, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    nodedb_vamana_info info;
    uint32_t i, slices = 0;
    uint64_t most = 0, bound = 5 * (uint64_t)index->degree * index->degree;
    for (i = 0; i < 60; i++) CHECK_EQ(nodedb_vamana_remove(index, i * 20, NULL), NODEDB_OK);
    nodedb_vamana_inspect(index, &info);
    CHECK_EQ(info.removed, 60);
    for (i = 0; i < 500; i++) { /* node by node */
        index->writer->computed = 0;
        CHECK(nodedb_vamana_maintain(index, 1));
        if (index->writer->computed > most) most = index->writer->computed;
    }
    CHECK(most > 0 && most <= bound);
    while (nodedb_vamana_maintain(index, 100)) slices++;
    CHECK(slices >= 14 && slices < 25);
    nodedb_vamana_inspect(index, &info);
    CHECK(info.removed == 0 && info.free == 60 && info.live == 1940);
    CHECK(!nodedb_vamana_maintain(index, 100));
    CHECK(recall_by_scan(index, s->queries, s->dim, 100, 64) >= 0.99);
    nodedb_vamana_destroy(index);
}

TEST(the_entry_and_the_last_vectors_can_be_removed_and_the_index_filled_again) {
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(600, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 1);
    nodedb_vamana_info info;
    uint32_t i;
    while (nodedb_vamana_count(index) > 0) { /* always the entry itself */
        nodedb_vamana_inspect(index, &info);
        CHECK(nodedb_vamana_contains(index, info.entry_id));
        CHECK_EQ(nodedb_vamana_remove(index, info.entry_id, NULL), NODEDB_OK);
        if (nodedb_vamana_count(index) == 300) CHECK(recall_by_scan(index, s->queries, s->dim, 50, 64) >= 0.98);
    }
    nodedb_vamana_inspect(index, &info);
    CHECK(info.removed == 0 && info.free == 0);
    CHECK_EQ(recall_by_scan(index, s->queries, s->dim, 2, 10), 1);
    for (i = 0; i < 1000; i++) CHECK_EQ(nodedb_vamana_insert(index, i, s->base + (size_t)i * s->dim, NULL), NODEDB_OK);
    CHECK(recall_by_scan(index, s->queries, s->dim, 50, 64) >= 0.99);
    for (i = 0; i < 999; i++) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_insert(index, 999, s->base, NULL), NODEDB_OK); /* replaces the only one */
    CHECK_EQ(nodedb_vamana_count(index), 1);
    CHECK_EQ(recall_by_scan(index, s->queries, s->dim, 2, 10), 1);
    nodedb_vamana_destroy(index);
}

TEST(compact_gives_memory_back_and_changes_no_answer) {
    const sift *s = sift10k();
    nodedb_vamana *index = build_sift(3000, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    const char *path = path_in_test_dir("file");
    uint64_t before = nodedb_vamana_memory_bytes(index);
    size_t full, compacted;
    uint32_t i;
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    free(read_file(path, &full));
    for (i = 0; i < 3000; i++)
        if (i % 5 != 0) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_compact(index, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_count(index), 600);
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    free(read_file(path, &compacted));
    CHECK(compacted > 600 * 128 && compacted < full / 3);
    CHECK(nodedb_vamana_memory_bytes(index) < before / 2);
    for (i = 0; i < 3000; i++) CHECK(nodedb_vamana_contains(index, i) == (i % 5 == 0));
    CHECK(recall_by_scan(index, s->queries, s->dim, 100, 64) >= 0.99);
    for (i = 1; i < 3000; i += 5)
        CHECK_EQ(nodedb_vamana_insert(index, i, s->base + (size_t)i * s->dim, NULL), NODEDB_OK);
    CHECK(recall_by_scan(index, s->queries, s->dim, 100, 64) >= 0.99);
    nodedb_vamana_destroy(index);
}

TEST(next_visits_every_id_that_stays_exactly_once) {
    nodedb_vamana *index = build_sift(500, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 1);
    const sift *s = sift10k();
    uint8_t seen[1000];
    uint64_t cursor = 0, id, steps = 0;
    memset(seen, 0, sizeof seen);
    while (nodedb_vamana_next(index, &cursor, &id)) {
        CHECK(id < 1000);
        seen[id]++;
        if (++steps % 2 == 0 && steps < 200) {
            CHECK_EQ(nodedb_vamana_remove(index, 400 + steps / 2, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_insert(index, 500 + steps, s->base + steps * s->dim, NULL), NODEDB_OK);
        }
    }
    for (id = 0; id <= 400; id++) CHECK_EQ(seen[id], 1);
    for (id = 401; id < 1000; id++) CHECK(seen[id] <= 1);
    nodedb_vamana_destroy(index);
}

/* ===================================================================================================================
 * SEARCHING: filters, cost, threads, allocations that fail
 * ================================================================================================================ */

typedef struct one_in { uint64_t divisor, calls; } one_in;
static bool passes_one_in(void *ctx, uint64_t id) {
    one_in *f = (one_in *)ctx;
    f->calls++;
    return f->divisor != 0 && id % f->divisor == 0;
}

TEST(a_filter_gets_right_results_at_any_selectivity) {
    static const uint64_t divisors[] = {1, 2, 5, 20, 100, 1000, 0};
    const sift *s = sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(shared_sift10k(), NULL, NULL);
    size_t d;
    uint32_t i, j, k;
    for (d = 0; d < sizeof divisors / sizeof divisors[0]; d++) {
        uint32_t hits = 0, all = 0, scans = 0;
        one_in filter = {divisors[d], 0};
        for (i = 0; i < 50; i++) {
            nodedb_vamana_query q = query_of(s->queries + (size_t)i * s->dim, 10, 24);
            nodedb_vamana_result got[10], want[10];
            nodedb_vamana_stats stats;
            uint32_t got_n, want_n;
            q.filter = passes_one_in, q.filter_ctx = &filter;
            CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &got_n, &stats, NULL), NODEDB_OK);
            scans += stats.scanned;
            CHECK_EQ(nodedb_vamana_scan(searcher, &q, want, &want_n, NULL, NULL), NODEDB_OK);
            CHECK_EQ(got_n, want_n);
            CHECK_EQ(want_n, divisors[d] == 0 ? 0 : ALL > 9 * divisors[d] ? 10 : (ALL - 1) / divisors[d] + 1);
            for (j = 0; j < got_n; j++) {
                CHECK(got[j].id % divisors[d] == 0);
                for (k = 0; k < want_n; k++) hits += got[j].id == want[k].id;
            }
            all += want_n;
        }
        CHECK(hits >= (GOOD - 0.03) * all);
        if (divisors[d] <= 2 && divisors[d] > 0 && !SLOW) CHECK_EQ(scans, 0);
        if (divisors[d] >= 100) CHECK_EQ(hits, all);
    }
    nodedb_vamana_searcher_destroy(searcher);
}

TEST(a_search_allocates_nothing_and_says_what_it_cost) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana_searcher *searcher;
    nodedb_vamana *index;
    nodedb_vamana_result r[200];
    nodedb_vamana_stats stats;
    counting count;
    uint64_t calls;
    uint32_t i, found;
    nodedb_vamana_query q;
    c.allocator = counting_allocator(&count);
    index = nodedb_vamana_create(&c, NULL);
    CHECK_EQ(nodedb_vamana_build(index, NULL, s->base, 3000, 2, NULL, NULL, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_memory_bytes(index), count.bytes);
    searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    CHECK_EQ(nodedb_vamana_memory_bytes(index) + nodedb_vamana_searcher_memory_bytes(searcher), count.bytes);
    calls = count.calls;
    for (i = 0; i < 100; i++) {
        q = query_of(s->queries + (size_t)i * s->dim, 10, 16 + i);
        CHECK_EQ(nodedb_vamana_search(searcher, &q, r, &found, &stats, NULL), NODEDB_OK);
        CHECK(stats.hops >= 16 + i && stats.distances >= stats.hops && stats.distances < 3000);
        CHECK(stats.reads == 0 && !stats.scanned);
    }
    CHECK_EQ(count.calls, calls);
    q.k = 200; /* longer than the searcher was made for: once */
    for (i = 0; i < 10; i++) CHECK_EQ(nodedb_vamana_search(searcher, &q, r, &found, NULL, NULL), NODEDB_OK);
    CHECK_EQ(count.calls, calls + 1);
    CHECK_EQ(nodedb_vamana_reserve(index, 4000, NULL), NODEDB_OK);
    calls = count.calls;
    for (i = 3000; i < 4000; i++)
        CHECK_EQ(nodedb_vamana_insert(index, i, s->base + (size_t)i * s->dim, NULL), NODEDB_OK);
    CHECK_EQ(count.calls, calls); /* nor does an insert within the capacity */
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
    CHECK_EQ(count.bytes, 0);
}

typedef struct reader { const nodedb_vamana *index; uint64_t sum; pthread_t thread; } reader;
static void *search_all(void *argument) {
    reader *r = (reader *)argument;
    const sift *s = sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(r->index, NULL, NULL);
    uint32_t i, j, found;
    for (i = 0; i < s->query_count; i++) {
        nodedb_vamana_query q = query_of(s->queries + (size_t)i * s->dim, 10, 40);
        nodedb_vamana_result results[10];
        CHECK_EQ(nodedb_vamana_search(searcher, &q, results, &found, NULL, NULL), NODEDB_OK);
        for (j = 0; j < found; j++) r->sum = nodedb_mix64(r->sum ^ results[j].id);
    }
    nodedb_vamana_searcher_destroy(searcher);
    return NULL;
}

TEST(searchers_of_several_threads_get_the_same_answers) {
    nodedb_vamana *index = build_sift(3000, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, 2);
    reader readers[4];
    int i;
    for (i = 0; i < 4; i++) {
        readers[i].index = index, readers[i].sum = 0;
        REQUIRE(pthread_create(&readers[i].thread, NULL, search_all, &readers[i]) == 0);
    }
    for (i = 0; i < 4; i++) pthread_join(readers[i].thread, NULL);
    for (i = 1; i < 4; i++) CHECK(readers[i].sum == readers[0].sum && readers[i].sum != 0);
    nodedb_vamana_destroy(index);
}

/* One call of everything, with an allocation that fails. True: none failed. */
static bool live_a_life(nodedb_allocator allocator, const char *path) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_COSINE);
    nodedb_vamana_open_config o;
    nodedb_vamana_searcher *searcher = NULL;
    nodedb_vamana *index, *opened = NULL;
    nodedb_vamana_query q = query_of(s->queries, 110, 200);
    nodedb_vamana_result r[150];
    nodedb_error err;
    uint32_t i, found;
    bool good;
    memset(&err, 0, sizeof err);
    memset(&o, 0, sizeof o);
    c.allocator = allocator, o.allocator = allocator;
    index = nodedb_vamana_create(&c, &err);
    good = index != NULL && nodedb_vamana_build(index, NULL, s->base, 60, 2, NULL, NULL, &err) == NODEDB_OK;
    for (i = 60; i < 120 && good; i++) {
        good = nodedb_vamana_insert(index, i, s->base + (size_t)i * s->dim, &err) == NODEDB_OK;
        CHECK_EQ(nodedb_vamana_count(index), good ? i + 1 : i);
    }
    good = good && nodedb_vamana_remove(index, 3, &err) == NODEDB_OK && nodedb_vamana_compact(index, &err) == NODEDB_OK;
    good = good && (searcher = nodedb_vamana_searcher_create(index, NULL, &err)) != NULL;
    good = good && nodedb_vamana_search(searcher, &q, r, &found, NULL, &err) == NODEDB_OK;
    good = good && nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err) == NODEDB_OK &&
        (opened = nodedb_vamana_open(path, &o, &err)) != NULL;
    good = good && nodedb_vamana_verify(path, &o, NULL, NULL, &err) == NODEDB_OK;
    if (!good) CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(opened);
    nodedb_vamana_destroy(index);
    return good;
}

TEST(every_allocation_may_fail_without_harm_or_leak) {
    char path[700];
    uint64_t at;
    counting count;
    bool good = false;
    snprintf(path, sizeof path, "%s", path_in_test_dir("life"));
    for (at = 1; !good && at < 300; at++) {
        nodedb_allocator allocator = counting_allocator(&count);
        count.fail_at = at;
        good = live_a_life(allocator, path);
        CHECK_EQ(count.bytes, 0);
    }
    CHECK(good && at > 30);
}

/* ===================================================================================================================
 * FILES: saving, opening, damage, forgery
 * ================================================================================================================ */

static void same_answers(const nodedb_vamana *a, const nodedb_vamana *b, const uint8_t *queries, size_t query_bytes,
                         uint32_t n) {
    nodedb_vamana_searcher *sa = nodedb_vamana_searcher_create(a, NULL, NULL),
        *sb = nodedb_vamana_searcher_create(b, NULL, NULL);
    nodedb_vamana_result ra[10], rb[10];
    uint32_t i, j, na, nb;
    for (i = 0; i < n; i++) {
        nodedb_vamana_query q = query_of(queries + i * query_bytes, 10, 30);
        CHECK_EQ(nodedb_vamana_search(sa, &q, ra, &na, NULL, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_search(sb, &q, rb, &nb, NULL, NULL), NODEDB_OK);
        CHECK_EQ(na, nb);
        for (j = 0; j < na; j++) CHECK(ra[j].id == rb[j].id && ra[j].distance == rb[j].distance);
    }
    nodedb_vamana_searcher_destroy(sa);
    nodedb_vamana_searcher_destroy(sb);
}

TEST(an_opened_file_gives_the_same_answers_and_deletions_survive) {
    const sift *s = sift10k();
    float *floats = (float *)malloc((size_t)s->n * s->dim * sizeof *floats),
        *queries = random_vectors(50, s->dim, 1, test_seed);
    int metric, type;
    size_t i;
    for (i = 0; i < (size_t)s->n * s->dim; i++) floats[i] = s->base[i];
    for (i = 0; i < 50 * (size_t)s->dim; i++) queries[i] = 60 + 50 * queries[i];
    for (metric = 0; metric < METRICS; metric++)
        for (type = 0; type < 2; type++) {
            nodedb_vamana *index = build_sift(1000, (nodedb_vamana_type)type, (nodedb_vamana_metric)metric, 2), *opened;
            const char *path = path_in_test_dir("index");
            const uint8_t *asked = type ? s->queries : (const uint8_t *)queries;
            nodedb_error err;
            for (i = 0; i < 400; i++) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_verify(path, NULL, NULL, NULL, &err), NODEDB_OK);
            opened = nodedb_vamana_open(path, NULL, &err);
            if (opened == NULL) test_fail(__FILE__, __LINE__, err.message);
            REQUIRE(opened != NULL);
            CHECK_EQ(nodedb_vamana_count(opened), 600);
            CHECK((int)nodedb_vamana_metric_of(opened) == metric && (int)nodedb_vamana_type_of(opened) == type);
            CHECK(!nodedb_vamana_contains(opened, 5) && nodedb_vamana_contains(opened, 500));
            same_answers(index, opened, asked, type ? s->dim : s->dim * 4, 50);
            for (i = 0; i < 500; i++) /* and it goes on changing */
                CHECK_EQ(nodedb_vamana_insert(opened, i,
                                              type ? (const void *)(s->base + i * s->dim) : floats + i * s->dim, NULL),
                         NODEDB_OK);
            CHECK_EQ(nodedb_vamana_count(opened), 1000);
            CHECK(recall_by_scan(opened, asked, type ? s->dim : s->dim * 4, 50, 64) >= 0.97);
            nodedb_vamana_destroy(opened);
            nodedb_vamana_destroy(index);
        }
    free(floats);
    free(queries);
}

TEST(an_empty_index_and_one_of_a_single_wide_vector_can_be_saved) {
    const char *path = path_in_test_dir("small");
    nodedb_vamana_config c = config_of(NODEDB_VAMANA_MAX_DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_COSINE);
    nodedb_vamana_open_config disk;
    float *wide = random_vectors(1, NODEDB_VAMANA_MAX_DIM, 1, test_seed),
        *out = random_vectors(1, NODEDB_VAMANA_MAX_DIM, 1, 2);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL), *opened;
    int mode;
    uint32_t i;
    memset(&disk, 0, sizeof disk);
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    opened = nodedb_vamana_open(path, NULL, NULL);
    CHECK(opened != NULL && nodedb_vamana_count(opened) == 0);
    CHECK_EQ(nodedb_vamana_insert(opened, 9, wide, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_save(opened, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    nodedb_vamana_destroy(opened);
    for (mode = 0; mode < 2; mode++) {
        disk.mode = (nodedb_vamana_mode)mode;
        opened = nodedb_vamana_open(path, &disk, NULL);
        REQUIRE(opened != NULL);
        CHECK_EQ(nodedb_vamana_get(opened, 9, out, NULL), NODEDB_OK);
        for (i = 0; i < NODEDB_VAMANA_MAX_DIM; i++) CHECK(fabsf(out[i] - wide[i]) < 1e-6f);
        CHECK_EQ(recall_by_scan(opened, (const uint8_t *)wide, 4 * NODEDB_VAMANA_MAX_DIM, 1, 10), 1);
        nodedb_vamana_destroy(opened);
    }
    nodedb_vamana_destroy(index);
    free(wide);
    free(out);
}

/* The system's files, with the call number `fail_at` failing (all kinds counted, or reads alone). */
typedef struct failing { uint64_t calls, fail_at, fail_times, syncs; int error; bool short_write; } failing;
static int fails(void *ctx) {
    failing *f = (failing *)ctx;
    uint64_t call = ++f->calls;
    return f->fail_at != 0 && call >= f->fail_at && call < f->fail_at + f->fail_times ? f->error : 0;
}
static int failing_open(void *ctx, const char *path, int flags, int mode) {
    return fails(ctx) ? -((failing *)ctx)->error : nodedb__posix_open(NULL, path, flags, mode);
}
static int failing_close(void *ctx, int fd) {
    int failed = fails(ctx), result = nodedb__posix_close(NULL, fd);
    return failed ? -failed : result;
}
static int64_t failing_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    return fails(ctx) ? -((failing *)ctx)->error : nodedb__posix_pread(NULL, fd, buffer, bytes, offset);
}
static int64_t failing_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    failing *f = (failing *)ctx;
    if (fails(ctx)) return -f->error;
    return nodedb__posix_pwrite(NULL, fd, buffer, f->short_write && bytes > 1000 ? 1000 : bytes, offset);
}
static int failing_sync(void *ctx, int fd) {
    ((failing *)ctx)->syncs++;
    return fails(ctx) ? -((failing *)ctx)->error : nodedb__posix_sync(NULL, fd);
}
static int failing_rename(void *ctx, const char *from, const char *to) {
    return fails(ctx) ? -((failing *)ctx)->error : nodedb__posix_rename(NULL, from, to);
}
static nodedb_io failing_io(failing *f, bool only_reads) {
    nodedb_io io;
    memset(&io, 0, sizeof io);
    io.pread = failing_pread;
    if (!only_reads) {
        io.open = failing_open, io.close = failing_close, io.pwrite = failing_pwrite, io.sync = failing_sync;
        io.rename = failing_rename;
    }
    io.ctx = f;
    return io;
}

TEST(whatever_call_fails_while_saving_the_old_or_the_new_file_stands) {
    const sift *s = sift10k();
    char path[700], temporary[720];
    uint64_t at, failures = 0;
    bool good = false;
    failing f;
    snprintf(path, sizeof path, "%s", path_in_test_dir("index"));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    for (at = 1; !good && at < 200; at++) {
        nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        nodedb_vamana *old_index, *index, *opened;
        nodedb_error err;
        uint64_t count;
        memset(&f, 0, sizeof f);
        f.fail_at = at, f.fail_times = 1, f.error = at % 2 ? EIO : ENOSPC, f.short_write = true;
        old_index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana_insert(old_index, 1, s->base, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_save(old_index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
        c.io = failing_io(&f, false);
        index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana_build(index, NULL, s->base, 100, 1, NULL, NULL, NULL), NODEDB_OK);
        memset(&err, 0, sizeof err);
        good = nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err) == NODEDB_OK;
        if (!good) {
            failures++;
            CHECK_EQ(err.status, at % 2 ? NODEDB_ERR_IO : NODEDB_ERR_DISK_FULL);
            CHECK_EQ(err.sys_errno, f.error);
            CHECK_HAS(err.message, "index");
        }
        CHECK(access(temporary, F_OK) != 0);
        opened = nodedb_vamana_open(path, NULL, &err);
        CHECK(opened != NULL);
        count = nodedb_vamana_count(opened);
        CHECK(good ? count == 100 : count == 1 || count == 100);
        nodedb_vamana_destroy(opened);
        nodedb_vamana_destroy(index);
        nodedb_vamana_destroy(old_index);
    }
    CHECK(good && failures >= 8);
    CHECK_EQ(f.syncs, 2); /* the file and its directory */
}

TEST(garbage_truncation_and_every_flipped_bit_are_errors_that_name_the_file) {
    nodedb_vamana *index = build_sift(300, NODEDB_VAMANA_F32, NODEDB_VAMANA_COSINE, 1), *opened;
    char path[700], other[700];
    uint8_t *good, *bad;
    size_t bytes, at;
    uint64_t state = test_seed;
    nodedb_error err;
    snprintf(path, sizeof path, "%s", path_in_test_dir("index"));
    snprintf(other, sizeof other, "%s", path_in_test_dir("other"));
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    good = read_file(path, &bytes);
    bad = (uint8_t *)malloc(bytes + 1);
    for (at = 0; at < bytes; at += 4096) { /* one bit in each block */
        size_t place = at + test_random(&state) % 4096;
        memcpy(bad, good, bytes);
        bad[place] ^= (uint8_t)(1u << test_random(&state) % 8);
        write_file(other, bad, bytes);
        CHECK(nodedb_vamana_verify(other, NULL, NULL, NULL, &err) == NODEDB_ERR_CORRUPT);
        CHECK_HAS(err.message, other);
        CHECK(err.offset / 4096 == at / 4096);
        opened = nodedb_vamana_open(other, NULL, &err);
        CHECK((opened != NULL) == (at == 0 || at >= section(good, TABLE) ||       /* there twice, or rebuilt */
                                   (at >= section(good, CODES) && at < section(good, RECORDS)))); /* for disk alone */
        CHECK(opened != NULL || (err.status == NODEDB_ERR_CORRUPT && err.offset / 4096 == at / 4096));
        nodedb_vamana_destroy(opened);
    }
    for (at = 0; at < bytes; at += at < 5000 ? 477 : 4096) {
        write_file(other, good, at);
        opened = nodedb_vamana_open(other, NULL, &err);
        CHECK(opened == NULL && err.status == NODEDB_ERR_CORRUPT);
        CHECK_HAS(err.message, other);
    }
    memcpy(bad, good, bytes);
    bad[bytes] = 0;
    write_file(other, bad, bytes + 1);
    CHECK(nodedb_vamana_open(other, NULL, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    for (at = 0; at < bytes; at++) bad[at] = (uint8_t)test_random(&state);
    write_file(other, bad, bytes);
    CHECK(nodedb_vamana_open(other, NULL, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    memcpy(bad, good, bytes);
    nodedb_put_u32(bad + 8, NODEDB_VAMANA_FORMAT_VERSION + 1); /* a later format, with the right checksum */
    nodedb_put_u32(bad + 4092, nodedb_crc32c(0, bad, 4092));
    write_file(other, bad, bytes);
    CHECK(nodedb_vamana_open(other, NULL, &err) == NULL && err.status == NODEDB_ERR_UNSUPPORTED);
    CHECK(nodedb_vamana_open(test_dir(), NULL, &err) == NULL); /* a directory */
    free(good);
    free(bad);
    nodedb_vamana_destroy(index);
}

TEST(a_file_with_right_checksums_and_wrong_contents_is_refused) {
    nodedb_vamana *index = build_sift(200, NODEDB_VAMANA_F32, NODEDB_VAMANA_IP, 1);
    char path[700], other[700];
    uint8_t *good, *bad;
    size_t bytes, ids, states, norms, rows, mean, vectors, table, at;
    int forgery;
    nodedb_error err;
    snprintf(path, sizeof path, "%s", path_in_test_dir("index"));
    snprintf(other, sizeof other, "%s", path_in_test_dir("other"));
    CHECK_EQ(nodedb_vamana_remove(index, 7, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_remove(index, 9, NULL), NODEDB_OK);
    while (nodedb_vamana_maintain(index, 1000)) {
    }
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    good = read_file(path, &bytes);
    bad = (uint8_t *)malloc(bytes);
    ids = section(good, IDS), states = section(good, STATES), norms = section(good, NORMS), rows = section(good, ROWS);
    mean = section(good, MEANS), vectors = section(good, RECORDS), table = section(good, TABLE);
    for (forgery = 0; forgery <= 34; forgery++) {
        memcpy(bad, good, bytes);
        switch (forgery) {
        case 0: break; /* none: the checksums are repaired rightly */
        case 1: nodedb_put_u32(bad + rows, 200); break;                                       /* out of range */
        case 2: nodedb_put_u32(bad + rows, 0xFFFFFFFFu); break;                               /* a gap in a row */
        case 3: nodedb_put_u32(bad + rows, 7); break;                                         /* a free neighbour */
        case 4: nodedb_put_u32(bad + rows, 0); break;                                         /* itself */
        case 5: memcpy(bad + ids, bad + ids + 8, 8); break;                                    /* two of one id */
        case 6: bad[states + 3] = 9; break;
        case 7: bad[states + 3] = 0; break;                                                    /* one live slot less */
        case 8: nodedb_put_u32(bad + norms, 0x7FC00000u); break;                              /* NaN */
        case 9: nodedb_put_u32(bad + vectors, 0x7F800000u); break;                            /* infinity */
        case 10: nodedb_put_u32(bad + 36, 200); break;                                        /* entry out of range */
        case 11: nodedb_put_u32(bad + 36, 7); break;                                          /* a free entry */
        case 12: nodedb_put_u32(bad + 48, 4000000000u); break;                                /* slots */
        case 13: nodedb_put_u32(bad + 12, 0); break;                                          /* dim */
        case 14: nodedb_put_u32(bad + 16, 3); break;                                          /* type */
        case 15: nodedb_put_u32(bad + 20, 3); break;                                          /* metric */
        case 16: nodedb_put_u32(bad + 24, 1u << 30); break;                                   /* degree */
        case 17: nodedb_put_u64(bad + 120, vectors + 4096); break;                            /* an offset */
        case 18: nodedb_put_u32(bad + 32, 0x7FC00000u); break;                                /* alpha */
        case 19: nodedb_put_u32(bad + mean + 4, 0xFF800000u); break;                          /* a mean of -infinity */
        case 20: nodedb_put_u32(bad + 52, 197); break;                                        /* live */
        case 21: nodedb_put_u32(bad + 168, 3); break;                                         /* passes */
        case 22: nodedb_put_u32(bad + 172, 4); break;                                         /* code */
        case 23: nodedb_put_u32(bad + 176, 5); break;                                         /* bits */
        case 24: nodedb_put_u32(bad + 180, 2); break;                                         /* resident */
        case 25: nodedb_put_u32(bad + 184, 0x7FC00000u); break;                               /* a step of NaN */
        case 26: nodedb_put_u32(bad + 184, 0); break;                                         /* and of zero */
        case 27: nodedb_put_u32(bad + 216, 2); break;                                         /* layout */
        case 28: nodedb_put_u32(bad + 220, 200); break;                                       /* first free slot */
        case 29: nodedb_put_u32(bad + 220, 3); break;                                         /* which is none */
        case 30: nodedb_put_u32(bad + rows + 7 * 256, 7); break;                              /* a circle of them */
        case 31: nodedb_put_u32(bad + 228, 4); break;                                         /* sweep */
        case 32: nodedb_put_u32(bad + 256, 7); break;                                         /* a start that is free */
        case 33: /* an id that the table does not lead to: in memory the table is made, on disk it is read */
            for (at = table; nodedb_get_u32(bad + at) == 0xFFFFFFFFu; at += 4) {
            }
            nodedb_put_u32(bad + at, 0xFFFFFFFFu);
            break;
        case 34: nodedb_put_u32(bad + 244, 201); break;                                       /* codes being made */
        }
        repair_checksums(bad, section(good, SUMS), bytes);
        write_file(other, bad, bytes);
        if (forgery == 0) CHECK_EQ(nodedb_vamana_verify(other, NULL, NULL, NULL, &err), NODEDB_OK);
        else {
            nodedb_vamana *opened = nodedb_vamana_open(other, NULL, &err);
            CHECK(forgery == 33 ? opened != NULL : opened == NULL && err.status == NODEDB_ERR_CORRUPT);
            nodedb_vamana_destroy(opened);
            CHECK_EQ(nodedb_vamana_verify(other, NULL, NULL, NULL, &err), NODEDB_ERR_CORRUPT);
            CHECK_HAS(err.message, other);
        }
    }
    free(good);
    free(bad);
    nodedb_vamana_destroy(index);
}

/* ===================================================================================================================
 * DISK: reranks, reads that fail or rot, fallbacks, fetchers
 * ================================================================================================================ */

/* sift10k's first n as floats, saved in the test's directory. */
static const char *saved_sift(uint32_t n, nodedb_vamana_metric metric) {
    static char path[700];
    nodedb_vamana *index = build_sift(n, NODEDB_VAMANA_F32, metric, 2);
    snprintf(path, sizeof path, "%s", path_in_test_dir("disk"));
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    nodedb_vamana_destroy(index);
    return path;
}

static float *sift_queries(uint32_t n) {
    const sift *s = sift10k();
    float *q = (float *)malloc((size_t)n * s->dim * sizeof *q);
    size_t i;
    for (i = 0; i < (size_t)n * s->dim; i++) q[i] = s->queries[i];
    return q;
}

TEST(on_disk_the_walk_uses_codes_and_the_rerank_gives_exact_distances) {
    int metric, way;
    float *queries = sift_queries(60), out[128];
    for (metric = 0; metric < METRICS; metric++) {
        const char *path = saved_sift(2000, (nodedb_vamana_metric)metric);
        nodedb_vamana *memory = nodedb_vamana_open(path, NULL, NULL);
        for (way = 0; way < 3; way++) { /* io_uring, pread, pread through the page cache */
            nodedb_vamana_open_config o;
            nodedb_vamana *disk;
            nodedb_vamana_searcher *sd, *sm;
            nodedb_error err;
            uint32_t i, j, k, hits = 0;
            uint64_t reads = 0;
            memset(&o, 0, sizeof o);
            o.mode = NODEDB_VAMANA_ON_DISK, o.no_direct = way > 1;
            o.fetch = way > 0 ? NODEDB_VAMANA_FETCH_PREAD : NODEDB_VAMANA_FETCH_AUTO;
            disk = nodedb_vamana_open(path, &o, &err);
            REQUIRE(disk != NULL && memory != NULL);
            CHECK(nodedb_vamana_memory_bytes(disk) < nodedb_vamana_memory_bytes(memory));
            sd = nodedb_vamana_searcher_create(disk, NULL, &err);
            sm = nodedb_vamana_searcher_create(memory, NULL, NULL);
            REQUIRE(sd != NULL);
            for (i = 0; i < 60; i++) {
                nodedb_vamana_query q = query_of(queries + (size_t)i * 128, 10, 64);
                nodedb_vamana_result got[10], want[10], scanned[10];
                nodedb_vamana_stats stats;
                uint32_t found, want_n;
                CHECK_EQ(nodedb_vamana_search(sd, &q, got, &found, &stats, &err), NODEDB_OK);
                CHECK_EQ(nodedb_vamana_scan(sm, &q, want, &want_n, NULL, NULL), NODEDB_OK);
                CHECK(found == 10 && stats.reads <= 64 && stats.retries == 0 && stats.damaged == 0);
                reads += stats.reads;
                CHECK(i > 0 || stats.reads > 10); /* later the pool may hold what is wanted */
                for (j = 0; j < found; j++)
                    for (k = 0; k < want_n; k++)
                        if (got[j].id == want[k].id) {
                            hits++;
                            CHECK(fabsf(got[j].distance - want[k].distance) <= 1e-6f + 1e-5f * fabsf(want[k].distance));
                        }
                if (i > 2) continue;
                CHECK_EQ(nodedb_vamana_scan(sd, &q, scanned, &found, NULL, &err), NODEDB_OK);
                for (j = 0; j < 10; j++) CHECK_EQ(scanned[j].id, want[j].id);
            }
            CHECK(hits >= 588 && reads <= 24 * 60);
            CHECK_EQ(nodedb_vamana_get(disk, 1234, out, &err), NODEDB_OK);
            for (j = 0; j < 128; j++) CHECK(fabsf(out[j] - sift10k()->base[1234 * 128 + j]) < 1e-4f);
            CHECK_EQ(nodedb_vamana_insert(disk, 1, queries, &err), NODEDB_ERR_STATE);
            CHECK_EQ(nodedb_vamana_remove(disk, 1, &err), NODEDB_ERR_STATE);
            CHECK_EQ(nodedb_vamana_save(disk, path, NODEDB_VAMANA_RESIDENT, &err), NODEDB_ERR_STATE);
            CHECK(!nodedb_vamana_maintain(disk, 10));
            nodedb_vamana_searcher_destroy(sd);
            nodedb_vamana_searcher_destroy(sm);
            nodedb_vamana_destroy(disk);
        }
        nodedb_vamana_destroy(memory);
    }
    free(queries);
}

TEST(a_filter_works_on_disk_too) {
    const char *path = saved_sift(1500, NODEDB_VAMANA_L2);
    float *queries = sift_queries(20);
    nodedb_vamana_open_config o;
    nodedb_vamana *disk;
    nodedb_vamana_searcher *s;
    uint64_t divisor;
    uint32_t i, j, got_n, want_n;
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK;
    disk = nodedb_vamana_open(path, &o, NULL);
    s = nodedb_vamana_searcher_create(disk, NULL, NULL);
    REQUIRE(s != NULL);
    for (divisor = 2; divisor <= 200; divisor *= 10)
        for (i = 0; i < 20; i++) {
            nodedb_vamana_query q = query_of(queries + (size_t)i * 128, 5, 64);
            nodedb_vamana_result got[5], want[5];
            one_in filter = {divisor, 0};
            q.filter = passes_one_in, q.filter_ctx = &filter;
            CHECK_EQ(nodedb_vamana_search(s, &q, got, &got_n, NULL, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_scan(s, &q, want, &want_n, NULL, NULL), NODEDB_OK);
            CHECK(got_n == 5 && want_n == 5);
            for (j = 0; j < 5; j++) CHECK(got[j].id % divisor == 0 && (divisor < 20 || got[j].id == want[j].id));
        }
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(disk);
    free(queries);
}

TEST(each_read_comes_to_its_own_request_and_wrong_slots_are_errors) {
    const char *path = saved_sift(6000, NODEDB_VAMANA_L2);
    nodedb_vamana *memory = nodedb_vamana_open(path, NULL, NULL);
    int way;
    for (way = 0; way < 2; way++) {
        nodedb_vamana_open_config o;
        nodedb_vamana_fetcher disk;
        nodedb_vamana *index;
        uint32_t slots[300], i, round;
        uint64_t state = test_seed, reads, retries;
        nodedb_error err;
        memset(&o, 0, sizeof o);
        o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = way == 1 ? NODEDB_VAMANA_FETCH_PREAD : NODEDB_VAMANA_FETCH_AUTO;
        index = nodedb_vamana_open(path, &o, &err);
        REQUIRE(index != NULL && memory != NULL);
        CHECK_EQ(nodedb_vamana_fetcher_disk(index, NODEDB_VAMANA_MAX_BATCH + 1, &disk, &err), NODEDB_ERR_INVALID);
        CHECK_EQ(nodedb_vamana_fetcher_disk(index, 300, &disk, &err), NODEDB_OK);
        CHECK(disk.dim == 128 && disk.batch_max == 300);
        for (round = 0; round < 60; round++) { /* more than the queue's depth, fetched in another order */
            for (i = 0; i < 300; i++) slots[i] = (uint32_t)(test_random(&state) % 6000);
            CHECK_EQ(disk.prefetch_batch(disk.ctx, slots, 300, &err), NODEDB_OK);
            if (round % 7 == 3) continue; /* and a batch may be abandoned while its reads are under way */
            for (i = 300; i-- > 0;) {
                const void *got = disk.fetch(disk.ctx, slots[i], &err);
                float want[128]; /* slot i holds id i, as the index has only grown */
                CHECK_EQ(nodedb_vamana_get_stored(memory, slots[i], want, &err), NODEDB_OK);
                CHECK(got != NULL && memcmp(got, want, sizeof want) == 0);
            }
        }
        disk.counters(disk.ctx, &reads, &retries);
        CHECK(reads > 3000 && retries == 0);
        slots[0] = 6000;
        CHECK_EQ(disk.prefetch_batch(disk.ctx, slots, 1, &err), NODEDB_ERR_INVALID);
        CHECK(disk.fetch(disk.ctx, 6000, &err) == NULL && err.status == NODEDB_ERR_INVALID);
        slots[0] = 5;
        CHECK_EQ(disk.prefetch_batch(disk.ctx, slots, 1, &err), NODEDB_OK);
        for (i = 0; i < 6000 && disk.fetch(disk.ctx, i, &err) != NULL; i++) { /* until the pool has it no more */
        }
        CHECK(i < 6000 && err.status == NODEDB_ERR_STATE);
        CHECK_EQ(disk.prefetch_batch(disk.ctx, slots, 301, &err), NODEDB_ERR_LIMIT);
        disk.destroy(disk.ctx);
        nodedb_vamana_destroy(index);
    }
    nodedb_vamana_destroy(memory);
}

/* While some questions walk, the device reads for others: here five groups, and a smaller one. */
TEST(many_questions_on_disk_get_the_answers_of_each_and_errors_name_the_first) {
    enum { ASKED = 57, K = 10 };
    const char *path = saved_sift(2000, NODEDB_VAMANA_L2);
    float *queries = sift_queries(ASKED);
    int way;
    for (way = 0; way < 3; way++) { /* io_uring, pread, calls that fail */
        nodedb_vamana_open_config o;
        nodedb_vamana *index;
        nodedb_vamana_searcher *s;
        nodedb_vamana_result many[ASKED * K], one[K];
        nodedb_vamana_stats total, stats, sum;
        uint32_t found[ASKED], found_one, i, j, reranks[3] = {0, 12, 64}, at, answered;
        nodedb_error err;
        failing f;
        float kept;
        memset(&f, 0, sizeof f);
        memset(&o, 0, sizeof o);
        o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = way > 0 ? NODEDB_VAMANA_FETCH_PREAD : NODEDB_VAMANA_FETCH_AUTO;
        if (way == 2) o.io = failing_io(&f, true);
        index = nodedb_vamana_open(path, &o, &err);
        s = nodedb_vamana_searcher_create(index, NULL, &err);
        REQUIRE(s != NULL);
        for (at = 0; at < 3; at++) {
            nodedb_vamana_query q = query_of(NULL, K, 64);
            q.rerank = reranks[at];
            memset(&sum, 0, sizeof sum);
            CHECK_EQ(nodedb_vamana_search_many(s, &q, queries, ASKED, many, found, &total, &err), NODEDB_OK);
            for (i = 0; i < ASKED; i++) {
                q.vector = queries + (size_t)i * 128;
                CHECK_EQ(nodedb_vamana_search(s, &q, one, &found_one, &stats, &err), NODEDB_OK);
                CHECK(found[i] == K && found_one == K);
                for (j = 0; j < K; j++)
                    CHECK(one[j].id == many[i * K + j].id && one[j].distance == many[i * K + j].distance);
                sum.hops += stats.hops, sum.distances += stats.distances, sum.exact += stats.exact;
            }
            CHECK(sum.hops == total.hops && sum.distances == total.distances && sum.exact == total.exact);
            CHECK((at > 0 || total.reads > 100) && total.retries == 0 && !total.scanned);
        }
        {
            nodedb_vamana_query q = query_of(NULL, K, 64);
            q.rerank = 20;
            kept = queries[40 * 128 + 7], queries[40 * 128 + 7] = (float)strtod("inf", NULL);
            CHECK_EQ(nodedb_vamana_search_many(s, &q, queries, ASKED, many, found, &total, &err), NODEDB_ERR_INVALID);
            CHECK_HAS(err.message, "query 40");
            for (i = 0; i < ASKED; i++) CHECK_EQ(found[i], i < 40 ? K : 0);
            queries[40 * 128 + 7] = kept;
            if (way == 2) { /* one read fails twice: all before its question are answered */
                nodedb_vamana_searcher_destroy(s); /* for one whose pool is empty */
                s = nodedb_vamana_searcher_create(index, NULL, &err);
                REQUIRE(s != NULL);
                f.calls = 0, f.fail_at = 150, f.fail_times = 2, f.error = EIO;
                CHECK_EQ(nodedb_vamana_search_many(s, &q, queries, ASKED, many, found, &total, &err), NODEDB_ERR_IO);
                CHECK(err.sys_errno == EIO && err.offset > 0 && total.reads > 0);
                for (answered = 0; answered < ASKED && found[answered] == K; answered++) {
                }
                CHECK(answered > 3 && answered < 25);
                for (i = answered; i < ASKED; i++) CHECK_EQ(found[i], 0);
                {
                    char name[32];
                    snprintf(name, sizeof name, "query %u:", (unsigned)answered);
                    CHECK_HAS(err.message, name);
                }
                nodedb_vamana_searcher_destroy(s);
                s = nodedb_vamana_searcher_create(index, NULL, &err);
                REQUIRE(s != NULL);
                f.calls = 0, f.fail_times = 1; /* once: repeated */
                CHECK_EQ(nodedb_vamana_search_many(s, &q, queries, ASKED, many, found, &total, &err), NODEDB_OK);
                CHECK_EQ(total.retries, 1);
                f.fail_at = 0;
            }
            q.beam = 4000; /* as many as there are: everything is looked at */
            CHECK_EQ(nodedb_vamana_search_many(s, &q, queries, 3, many, found, &total, &err), NODEDB_OK);
            CHECK(total.scanned && found[2] == K);
        }
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(index);
    }
    free(queries);
}

TEST(a_failed_read_is_repeated_once_and_then_reported) {
    const char *path = saved_sift(1000, NODEDB_VAMANA_L2);
    float *queries = sift_queries(1);
    nodedb_vamana_query q = query_of(queries, 10, 40);
    nodedb_vamana_open_config o;
    nodedb_vamana_result r[10];
    nodedb_vamana_stats stats;
    nodedb_vamana_searcher *s;
    nodedb_vamana *index;
    nodedb_error err;
    uint32_t found, at;
    bool more;
    failing f;
    memset(&f, 0, sizeof f);
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK, o.io = failing_io(&f, true);
    index = nodedb_vamana_open(path, &o, &err);
    CHECK_EQ(nodedb_vamana_load(index, UINT64_MAX, &more, &err), NODEDB_OK);
    for (at = 0; at < 3; at++) { /* each time an empty pool */
        nodedb_status status;
        s = nodedb_vamana_searcher_create(index, NULL, &err);
        REQUIRE(s != NULL);
        f.calls = 0, f.fail_at = at < 2 ? 5 : 0, f.fail_times = at + 1, f.error = EIO;
        status = nodedb_vamana_search(s, &q, r, &found, &stats, &err);
        CHECK_EQ(status, at == 1 ? NODEDB_ERR_IO : NODEDB_OK);
        if (at == 1) {
            CHECK(found == 0 && err.sys_errno == EIO && err.offset > 0);
            CHECK_HAS(err.message, path);
            f.fail_at = 0; /* a failed read does not quarantine the block */
            CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, &stats, &err), NODEDB_OK);
        }
        CHECK(found == 10 && stats.retries == (at == 0) && stats.damaged == 0);
        nodedb_vamana_searcher_destroy(s);
    }
    nodedb_vamana_destroy(index);
    free(queries);
}

TEST(a_block_that_rots_or_vanishes_after_opening_is_counted_and_never_used) {
    int way, damage;
    float *queries = sift_queries(40);
    for (way = 0; way < (SLOW ? 1 : 2); way++)
        for (damage = 0; damage < 2; damage++) {
            const char *path = saved_sift(1000, NODEDB_VAMANA_L2);
            nodedb_vamana_open_config o;
            nodedb_vamana_result r[10];
            nodedb_vamana_searcher *s;
            nodedb_vamana *index;
            nodedb_error err;
            nodedb_vamana_stats stats;
            uint32_t i, j, found, damaged = 0;
            uint64_t blocks;
            bool more;
            nodedb_vamana_info info;
            size_t bytes, at, vectors;
            uint8_t *file = read_file(path, &bytes);
            FILE *stream;
            memset(&o, 0, sizeof o);
            o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = way == 1 ? NODEDB_VAMANA_FETCH_PREAD : NODEDB_VAMANA_FETCH_AUTO;
            index = nodedb_vamana_open(path, &o, &err);
            s = nodedb_vamana_searcher_create(index, NULL, &err);
            REQUIRE(s != NULL);
            vectors = section(file, RECORDS);
            CHECK_EQ(nodedb_vamana_load(index, UINT64_MAX, &more, &err), NODEDB_OK);
            CHECK(!more);
            if (damage == 0) {
                for (at = vectors; at + 4096 < section(file, TABLE); at += 3 * 4096) file[at + 17] ^= 1;
                stream = fopen(path, "r+b");
                CHECK(stream != NULL && fwrite(file, 1, bytes, stream) == bytes);
                fflush(stream);
                CHECK_EQ(fsync(fileno(stream)), 0);
                fclose(stream);
            } else CHECK_EQ(truncate(path, (off_t)(vectors + 8 * 4096)), 0);
            for (i = 0; i < 40; i++) {
                const uint8_t *base = sift10k()->base;
                nodedb_vamana_query q = query_of(queries + (size_t)i * 128, 10, 40);
                CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, &stats, &err), NODEDB_OK);
                damaged += stats.damaged > 0;
                CHECK(found == 10 || stats.damaged > 0);
                for (j = 0; j < found; j++) { /* what is returned is right */
                    double sum = 0;
                    uint32_t c;
                    for (c = 0; c < 128; c++) {
                        double apart = (double)queries[(size_t)i * 128 + c] - base[r[j].id * 128 + c];
                        sum += apart * apart;
                    }
                    CHECK(fabs(sum - (double)r[j].distance) <= 1e-5 * sum);
                }
            }
            CHECK(damaged >= 30);
            nodedb_vamana_inspect(index, &info);
            blocks = info.damaged_blocks;
            CHECK(blocks > 10 && blocks <= (section(file, TABLE) - vectors) / 4096);
            { /* what is known to be damaged is not read again */
                nodedb_vamana_query q = query_of(queries, 10, 40);
                uint64_t reads;
                CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, &stats, &err), NODEDB_OK);
                reads = stats.reads;
                CHECK(stats.damaged > 0 && stats.retries == 0 && reads <= 24 - stats.damaged);
            }
            nodedb_vamana_searcher_destroy(s);
            nodedb_vamana_destroy(index);
            free(file);
        }
    free(queries);
}

TEST(a_refused_direct_open_falls_back_to_the_page_cache_and_says_so) {
    const char *path = saved_sift(500, NODEDB_VAMANA_L2);
    nodedb_vamana_open_config o;
    nodedb_vamana *index;
    said log;
    failing f;
    memset(&log, 0, sizeof log);
    memset(&f, 0, sizeof f);
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK, o.logger.write = remember, o.logger.ctx = &log;
    o.io = failing_io(&f, false);
    f.fail_at = 1, f.fail_times = 1, f.error = EINVAL; /* the open with O_DIRECT */
    index = nodedb_vamana_open(path, &o, NULL);
    CHECK(index != NULL);
    CHECK_EQ(log.count, 1);
    CHECK_HAS(log.last, "O_DIRECT");
    nodedb_vamana_destroy(index);
}

#if defined(__linux__) && defined(NODEDB_VAMANA__URING) && defined(SYS_io_uring_setup)
static int search_without_uring(const char *path, const float *query) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, code};
    nodedb_vamana_query q = query_of(query, 10, 40);
    nodedb_vamana_open_config o;
    nodedb_vamana_searcher *a, *b;
    nodedb_vamana_result r[10];
    nodedb_vamana *index;
    uint32_t found;
    said log;
    memset(&log, 0, sizeof log);
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK, o.logger.write = remember, o.logger.ctx = &log;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return 3;
    index = nodedb_vamana_open(path, &o, NULL);
    a = nodedb_vamana_searcher_create(index, NULL, NULL), b = nodedb_vamana_searcher_create(index, NULL, NULL);
    if (a == NULL || b == NULL) return 4;
    if (log.count != 1 || strstr(log.last, "io_uring") == NULL || strstr(log.last, "seccomp") == NULL) return 5;
    if (nodedb_vamana_search(a, &q, r, &found, NULL, NULL) != NODEDB_OK || found != 10) return 6;
    nodedb_vamana_searcher_destroy(a);
    nodedb_vamana_searcher_destroy(b);
    nodedb_vamana_destroy(index);
    return 0;
}

TEST(where_io_uring_is_refused_pread_does_its_work_and_it_is_said_once) {
    const char *path = saved_sift(1000, NODEDB_VAMANA_L2);
    float *queries = sift_queries(1);
    int status = 0;
    pid_t child = fork();
    if (child == 0) _exit(search_without_uring(path, queries));
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) == 3) printf("     this system has no seccomp filters\n");
    else CHECK_EQ(WEXITSTATUS(status), 0);
    free(queries);
}
#endif

/* A fetcher of the caller's own, over vectors that are kept elsewhere. */
typedef struct elsewhere { const float *vectors; uint32_t n, calls; } elsewhere;
static nodedb_status elsewhere_prefetch(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err) {
    (void)ctx, (void)slots, (void)n, (void)err;
    return NODEDB_OK;
}
static const void *elsewhere_fetch(void *ctx, uint32_t slot, nodedb_error *err) {
    elsewhere *e = (elsewhere *)ctx;
    (void)err;
    e->calls++;
    return slot < e->n ? e->vectors + (size_t)slot * 128 : NULL;
}

TEST(a_searcher_can_use_a_fetcher_of_the_callers) {
    const sift *s = sift10k();
    const char *path = saved_sift(1000, NODEDB_VAMANA_L2); /* slots are the input's order */
    float *vectors = (float *)malloc(1000 * 128 * sizeof *vectors), *queries = sift_queries(1);
    nodedb_vamana_query q = query_of(queries, 10, 40);
    nodedb_vamana_searcher_config c;
    nodedb_vamana_open_config o;
    nodedb_vamana_fetcher fetcher;
    nodedb_vamana_searcher *mine, *usual;
    nodedb_vamana_result a[10], b[10];
    nodedb_vamana *index;
    elsewhere e = {vectors, 1000, 0};
    nodedb_error err;
    uint32_t i, na, nb;
    for (i = 0; i < 1000 * 128; i++) vectors[i] = s->base[i];
    memset(&o, 0, sizeof o);
    memset(&c, 0, sizeof c);
    memset(&fetcher, 0, sizeof fetcher);
    o.mode = NODEDB_VAMANA_ON_DISK;
    index = nodedb_vamana_open(path, &o, NULL);
    c.fetcher = &fetcher;
    CHECK(nodedb_vamana_searcher_create(index, &c, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    fetcher.ctx = &e, fetcher.dim = 128, fetcher.batch_max = 7;
    fetcher.prefetch_batch = elsewhere_prefetch, fetcher.fetch = elsewhere_fetch;
    mine = nodedb_vamana_searcher_create(index, &c, &err), usual = nodedb_vamana_searcher_create(index, NULL, &err);
    REQUIRE(mine != NULL && usual != NULL);
    CHECK_EQ(nodedb_vamana_search(mine, &q, a, &na, NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_search(usual, &q, b, &nb, NULL, &err), NODEDB_OK);
    CHECK(na == 10 && nb == 10 && e.calls >= 10);
    for (i = 0; i < 10; i++) CHECK(a[i].id == b[i].id && a[i].distance == b[i].distance);
    nodedb_vamana_searcher_destroy(mine);
    nodedb_vamana_searcher_destroy(usual);
    nodedb_vamana_destroy(index);
    free(vectors);
    free(queries);
}

/* ===================================================================================================================
 * HISTORIES: random changes beside a model, what rows keep, a large set
 * ================================================================================================================ */

TEST(a_long_run_of_random_changes_agrees_with_a_model) {
    enum { IDS = 600, DIM = 12 };
    uint64_t state = test_seed;
    uint32_t steps = test_long ? 60000 : 6000, step, i, found, model = 0;
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_COSINE);
    nodedb_vamana *index;
    nodedb_vamana_searcher *s;
    static float vectors[IDS][DIM];
    static bool present[IDS];
    float out[DIM];
    nodedb_vamana_result r[5];
    nodedb_error err;
    memset(present, 0, sizeof present);
    c.degree = 8, c.beam_build = 24;
    index = nodedb_vamana_create(&c, NULL);
    s = nodedb_vamana_searcher_create(index, NULL, NULL);
    for (step = 0; step < steps; step++) {
        uint32_t id = (uint32_t)(test_random(&state) % IDS), what = (uint32_t)(test_random(&state) % 100);
        if (step / 1000 % 3 == 2 && what < 40) what = 70; /* times when more is removed than inserted */
        if (what < 60) {
            for (i = 0; i < DIM; i++) vectors[id][i] = random_float(&state);
            CHECK_EQ(nodedb_vamana_insert(index, id, vectors[id], &err), NODEDB_OK);
            model += !present[id];
            present[id] = true;
        } else if (what < 90) {
            CHECK_EQ(nodedb_vamana_remove(index, id, &err), present[id] ? NODEDB_OK : NODEDB_ERR_NOT_FOUND);
            model -= present[id];
            present[id] = false;
        } else if (what < 97) {
            nodedb_vamana_query q = query_of(vectors[id], 5, 48);
            CHECK_EQ(nodedb_vamana_search(s, &q, r, &found, NULL, &err), NODEDB_OK);
            CHECK_EQ(found, model < 5 ? model : 5);
            for (i = 0; i < found; i++) CHECK(r[i].id < IDS && present[r[i].id]);
            if (present[id]) CHECK(found > 0 && r[0].distance < 1e-6f);
        } else if (what == 97) (void)nodedb_vamana_maintain(index, test_random(&state) % 50);
        else if (what == 98 && step % 8 == 0) CHECK_EQ(nodedb_vamana_compact(index, &err), NODEDB_OK);
        else if (what == 99 && step % 16 == 0) {
            const char *path = path_in_test_dir("model");
            nodedb_vamana_searcher_destroy(s);
            CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err), NODEDB_OK);
            nodedb_vamana_destroy(index);
            index = nodedb_vamana_open(path, NULL, &err);
            REQUIRE(index != NULL);
            s = nodedb_vamana_searcher_create(index, NULL, NULL);
        }
        CHECK_EQ(nodedb_vamana_count(index), model);
        CHECK(nodedb_vamana_contains(index, id) == present[id]);
    }
    for (i = 0; i < IDS; i++) {
        CHECK_EQ(nodedb_vamana_get(index, i, out, &err), present[i] ? NODEDB_OK : NODEDB_ERR_NOT_FOUND);
        if (present[i]) CHECK(fabsf(out[0] - vectors[i][0]) < 1e-5f);
    }
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
}

/* By how much `to`, as a query, prefers itself to `from`: what the pruning rules compare. */
static float preference(const nodedb_vamana *index, uint32_t from, uint32_t to) {
    const nodedb_vamana__arrays *a = index->arrays;
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, a, from);
    float distance;
    nodedb_vamana__measure_many(index, &target, &to, 1, &distance);
    return index->metric == NODEDB_VAMANA_IP ? a->norms[to] + distance : distance;
}

/* True if the nearer one of a pair in a row does not shut the other out: by the strict rule if both passed that, else
 * by the relaxed one. */
static bool pair_holds(const nodedb_vamana *index, uint32_t slot, uint32_t nearer, uint32_t other, bool strict) {
    float to = preference(index, slot, other), apart = preference(index, nearer, other);
    const float *norms = index->arrays->norms;
    float alpha = to > 0 ? index->alpha : 1;
    if (index->metric != NODEDB_VAMANA_IP && to <= 1e-5f) return true; /* equal vectors */
    if (strict) return apart > to * (to > 0 ? 0.9999f : 1.0001f);
    if (index->metric == NODEDB_VAMANA_IP) { /* by the squared distance too */
        float length = norms[other];
        if (index->alpha * (norms[nearer] - length + 2 * apart) > 0.9999f * (norms[slot] - length + 2 * to))
            return true;
    }
    return alpha * apart > to * (to > 0 ? 0.9999f : 1.0001f);
}

/* A pruning skips the distances between edges that have passed a rule together: none of them shuts another out. */
TEST(the_head_of_every_row_stays_as_a_pruning_left_it_through_all_changes) {
    const sift *s = sift10k();
    uint32_t n = SLOW ? 400 : 3000, metric, i, slot;
    for (metric = 0; metric < METRICS; metric++) {
        nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, (nodedb_vamana_metric)metric);
        nodedb_vamana *index;
        const nodedb_vamana__arrays *a;
        uint64_t state = test_seed, checked = 0, long_rows = 0;
        c.degree = 24, c.beam_build = 48, c.passes = 2;
        index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana_build(index, NULL, s->base, n, 2, NULL, NULL, NULL), NODEDB_OK);
        for (i = 0; i < n; i++) {
            uint64_t id = test_random(&state) % n;
            if (test_random(&state) % 2 == 0) (void)nodedb_vamana_remove(index, id, NULL);
            else CHECK_EQ(nodedb_vamana_insert(index, id, s->base + (size_t)(n + i) * s->dim, NULL), NODEDB_OK);
        }
        while (nodedb_vamana_maintain(index, 100)) {
        }
        CHECK_EQ(nodedb_vamana_compact(index, NULL), NODEDB_OK);
        for (i = 0; i < n; i++)
            CHECK_EQ(nodedb_vamana_insert(index, n + i, s->base + (size_t)(2 * n + i) * s->dim, NULL), NODEDB_OK);
        a = index->arrays;
        for (slot = 0; slot < a->slots; slot++) {
            nodedb_vamana__head head = a->heads[slot];
            const uint32_t *row = nodedb_vamana__row(index, a, slot) + head.far;
            uint32_t j, k;
            CHECK((uint32_t)head.far + head.pruned <= nodedb_vamana__row_count(index, row - head.far));
            CHECK(head.strict <= head.pruned && (head.far > 0) <= (head.level > 0));
            long_rows += head.pruned > 6;
            for (j = 0; j < head.pruned; j++)
                for (k = 0; k < head.pruned; k++) {
                    bool strict = j < head.strict && k < head.strict;
                    nodedb_vamana__target from = nodedb_vamana__slot_target(index, a, slot);
                    float to[2];
                    nodedb_vamana__measure_many(index, &from, row + j, 1, &to[0]);
                    nodedb_vamana__measure_many(index, &from, row + k, 1, &to[1]);
                    if (j == k || !(to[0] < to[1]) || (k < head.strict && !strict)) continue;
                    checked++;
                    CHECK(pair_holds(index, slot, row[j], row[k], strict));
                }
            for (j = 0; j < head.far; j++) CHECK(a->heads[row[(int)j - head.far]].level > 0);
        }
        CHECK(checked > 10 * (uint64_t)n && long_rows > n / 2);
        nodedb_vamana_destroy(index);
    }
}

/* The long form, 100,000 vectors, is for the sanitizers and valgrind: test_vamana --long a_large_set */
TEST(a_large_set_is_built_by_two_threads_and_searched) {
    const sift *s = sift10k();
    uint32_t n = test_long ? 100000 : SLOW ? 500 : 5000, i;
    uint8_t *base = (uint8_t *)malloc((size_t)n * s->dim);
    uint64_t state = test_seed;
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    size_t j;
    REQUIRE(base != NULL && index != NULL);
    for (i = 0; i < n; i++) /* real vectors, and others beside them */
        for (j = 0; j < s->dim; j++) {
            uint32_t x = s->base[(size_t)(i % s->n) * s->dim + j];
            base[(size_t)i * s->dim + j] =
                (uint8_t)(i < s->n ? x : (x * (64 + test_random(&state) % 128) / 128 + test_random(&state) % 16) & 255);
        }
    CHECK_EQ(nodedb_vamana_build(index, NULL, base, n, 2, NULL, NULL, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_count(index), n);
    CHECK(recall_by_scan(index, s->queries, s->dim, SLOW ? 40 : 100, 64) > GOOD);
    nodedb_vamana_destroy(index);
    free(base);
}

TEST_MAIN("vamana")
