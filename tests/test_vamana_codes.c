/* Tests of nodedb_vamana.h: codes, signed bytes, ranges, bitmaps, many queries at once, two passes. Each name is a
 * promise of the manual. The implementation is part of this file: tests read the codes in its arrays, and make codes
 * before there are 4096 vectors where that saves time. Data: tests/data/sift10k, and random vectors from the seed.
 *
 * Contents:
 *   data                      vectors, indexes with codes, comparisons
 *   when there are codes      from 4096 vectors on; what is refused
 *   what codes find           recall beside a walk on vectors; the rerank
 *   the choice                4 bits, 8 bits or none
 *   codes made again          training, remaking, growth, an emptied index
 *   files                     codes in a file
 *   many queries              search_many
 *   by radius                 search_range
 *   bitmaps                   filters by bitmap
 *   two passes                builds of two passes, cancelled builds
 *   signed bytes              the type I8
 *   memory                    what is allocated, huge pages, refused allocations */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "test.h"

#define FIRST NODEDB_VAMANA__CODE_FIRST
#define NONE NODEDB_VAMANA__NONE

/* ---- data -------------------------------------------------------------------------------------------------------- */

typedef struct sift {
    uint8_t *base, *queries;
    uint32_t n, dim, query_count;
} sift;

static uint8_t *load_matrix(const char *path, uint32_t *n, uint32_t *width) {
    uint8_t header[8], *rows;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(header, 1, 8, file) != 8) {
        fprintf(stderr, "cannot read %s: run the tests in the project's folder\n", path);
        exit(2);
    }
    *n = nodedb_get_u32(header), *width = nodedb_get_u32(header + 4);
    rows = (uint8_t *)malloc((size_t)*n * *width);
    if (rows == NULL || fread(rows, 1, (size_t)*n * *width, file) != (size_t)*n * *width) exit(2);
    fclose(file);
    return rows;
}

static const sift *sift10k(void) {
    static sift s;
    if (s.base != NULL) return &s;
    s.base = load_matrix("tests/data/sift10k.base.u8bin", &s.n, &s.dim);
    s.queries = load_matrix("tests/data/sift10k.query.u8bin", &s.query_count, &s.dim);
    if (SLOW) s.n = FIRST + 4, s.query_count = 30;
    return &s;
}

/* Bytes of sift as vectors of a type; I8 has them less 128. */
static uint8_t *as_type(const uint8_t *bytes, size_t count, nodedb_vamana_type type) {
    uint8_t *out = (uint8_t *)malloc(count * (type == NODEDB_VAMANA_F32 ? 4 : 1));
    size_t i;
    for (i = 0; i < count; i++)
        if (type == NODEDB_VAMANA_F32) ((float *)(void *)out)[i] = bytes[i];
        else out[i] = type == NODEDB_VAMANA_U8 ? bytes[i] : bytes[i] ^ 0x80;
    return out;
}

static size_t vector_bytes(nodedb_vamana_type type, uint32_t dim) { return type == NODEDB_VAMANA_F32 ? 4 * dim : dim; }

static float random_float(uint64_t *state) { return (float)(test_random(state) >> 40) / 8388608.0f - 1.0f; }

static float *random_vectors(size_t n, uint32_t dim, uint64_t seed) {
    float *v = (float *)malloc(n * dim * sizeof *v);
    size_t i;
    for (i = 0; i < n * dim; i++) v[i] = random_float(&seed);
    return v;
}

/* n vectors, each `noise` around one of `centres` places that are spread over [-1, 1]. */
static float *clusters(size_t n, uint32_t dim, uint32_t centres, float noise, uint64_t seed) {
    float *v = random_vectors(n, dim, seed), *c = random_vectors(centres, dim, 77 + test_seed);
    size_t i;
    for (i = 0; i < n * dim; i++) v[i] = noise * v[i] + c[i / dim * 31 % centres * dim + i % dim];
    free(c);
    return v;
}

static nodedb_vamana_config config_of(uint32_t dim, nodedb_vamana_type type, nodedb_vamana_metric metric,
                                      nodedb_vamana_code code) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = dim, c.type = type, c.metric = metric, c.code = code, c.seed = test_seed;
    c.degree = SLOW ? 16 : 32, c.beam_build = SLOW ? 24 : 50;
    return c;
}

static nodedb_vamana_query query_of(const void *vector, uint32_t k, uint32_t beam) {
    nodedb_vamana_query q;
    memset(&q, 0, sizeof q);
    q.vector = vector, q.k = k, q.beam = beam;
    return q;
}

static nodedb_vamana *build_of(const nodedb_vamana_config *c, const void *vectors, uint64_t n, uint32_t threads) {
    nodedb_vamana *index = nodedb_vamana_create(c, NULL);
    CHECK(index != NULL);
    CHECK_EQ(nodedb_vamana_build(index, NULL, vectors, n, threads, NULL, NULL, NULL), NODEDB_OK);
    return index;
}

static nodedb_vamana_info info_of(const nodedb_vamana *index) {
    nodedb_vamana_info info;
    nodedb_vamana_inspect(index, &info);
    return info;
}

/* Makes an index's codes again, of another kind: the graph does not depend on them. */
static void recode(nodedb_vamana *index, nodedb_vamana_code code) {
    index->code = code, index->code_due = 0;
    while (nodedb_vamana__make_codes(index, 1000000)) {
    }
}

/* sift10k as U8 and L2 with the codes that it chooses, built once. */
static nodedb_vamana *shared_sift10k(void) {
    static nodedb_vamana *index;
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
    if (index == NULL) index = build_of(&c, s->base, s->n, 2);
    return index;
}

/* Mean share of the true k (by scan) that a search finds. Every distance that it returns must be the scan's. */
static double recall_k(const nodedb_vamana *index, const void *queries, uint32_t n, uint32_t k, uint32_t beam,
                       bool exact_walk) {
    enum { MOST = 100 };
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result got[MOST], want[MOST];
    uint32_t i, j, l, hits = 0, all = 0, got_n, want_n;
    for (i = 0; i < n; i++) {
        const uint8_t *vector = (const uint8_t *)queries + (size_t)i * index->vector_bytes;
        nodedb_vamana_query q = query_of(vector, k, beam), w = query_of(vector, MOST, 0);
        nodedb_vamana_stats stats;
        q.exact_walk = exact_walk;
        CHECK_EQ(nodedb_vamana_search(s, &q, got, &got_n, &stats, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_scan(s, &w, want, &want_n, NULL, NULL), NODEDB_OK);
        CHECK_EQ(got_n, want_n < k ? want_n : k);
        CHECK(!stats.scanned || beam >= nodedb_vamana_count(index));
        for (j = 0; j < got_n; j++) {
            CHECK(j == 0 || got[j - 1].distance < got[j].distance ||
                  (got[j - 1].distance == got[j].distance && got[j - 1].id < got[j].id));
            for (l = 0; l < want_n && want[l].id != got[j].id; l++) {
            }
            if (l < want_n) CHECK(want[l].distance == got[j].distance);
            hits += got[j].distance <= want[got_n - 1].distance;
        }
        all += got_n;
    }
    nodedb_vamana_searcher_destroy(s);
    return all == 0 ? 1 : (double)hits / all;
}

static double recall(const nodedb_vamana *index, const void *queries, uint32_t n, uint32_t beam, bool exact_walk) {
    return recall_k(index, queries, n, 10, beam, exact_walk);
}

/* Slots in use whose code is not that of their vector, of the codes that there are and of those being made. */
static uint32_t wrong_codes(const nodedb_vamana *index) {
    const nodedb_vamana__arrays *a = index->arrays;
    float *turned = (float *)malloc(index->dim * sizeof *turned);
    uint8_t *code = (uint8_t *)malloc(index->dim + 128);
    uint32_t slot, wrong = 0;
    CHECK((a->codes == NULL) == (a->coder == NULL));
    CHECK((index->recodes == NULL) == (index->recoder == NULL));
    for (slot = 0; slot < a->slots; slot++) {
        float norm = a->norms != NULL ? a->norms[slot] : 0;
        const uint8_t *vector = nodedb_vamana__vector(index, a, slot);
        if (a->states[slot] == NODEDB_VAMANA__FREE) continue;
        if (a->codes != NULL) {
            nodedb_vamana__encode(index, a->coder, vector, norm, turned, code);
            wrong += memcmp(code, a->codes + slot * a->coder->stride, a->coder->stride) != 0;
        }
        if (index->recoder != NULL && slot < index->recode_at) {
            nodedb_vamana__encode(index, index->recoder, vector, norm, turned, code);
            wrong += memcmp(code, index->recodes + slot * index->recoder->stride, index->recoder->stride) != 0;
        }
    }
    free(code);
    free(turned);
    return wrong;
}

/* What holds between calls: see the struct. Once the index has been asked for its vectors this is all there is. */
static bool valid(const nodedb_vamana *index) {
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t slot, i, live = 0, removed = 0, entries = 0;
    size_t at;
    bool good = true;
    for (slot = 0; slot < a->slots; slot++) {
        const uint32_t *row = nodedb_vamana__row(index, a, slot);
        if (a->states[slot] == NODEDB_VAMANA__FREE) continue;
        if (a->states[slot] == NODEDB_VAMANA__LIVE) {
            live++;
            good = good && nodedb_vamana__find(a, a->ids[slot]) == slot;
        } else {
            removed++;
        }
        if (index->sweep == NODEDB_VAMANA__FREEING && nodedb_vamana__is_victim(index, slot)) continue;
        for (i = 0; i < index->degree && row[i] != NONE; i++)
            good = good && row[i] < a->slots && row[i] != slot && a->states[row[i]] != NODEDB_VAMANA__FREE;
    }
    for (at = 0; at < a->table_size; at++) entries += a->table[at] != NONE;
    for (i = 0; i < NODEDB_VAMANA__STARTS_MAX && a->starts[i] != NONE; i++)
        good = good && a->states[a->starts[i]] == NODEDB_VAMANA__LIVE;
    return good && live == index->live && removed == index->removed && entries == live &&
           (live == 0 ? a->entry == NONE : a->states[a->entry] == NODEDB_VAMANA__LIVE);
}

static bool same_graph(const nodedb_vamana *x, const nodedb_vamana *y) {
    const nodedb_vamana__arrays *a = x->arrays, *b = y->arrays;
    return a->slots == b->slots && a->entry == b->entry && memcmp(a->starts, b->starts, sizeof a->starts) == 0 &&
           memcmp(a->ids, b->ids, a->slots * sizeof *a->ids) == 0 &&
           memcmp(a->rows, b->rows, (size_t)a->slots * x->row_words * sizeof *a->rows) == 0 &&
           memcmp(a->states, b->states, a->slots) == 0;
}

static bool same_codes(const nodedb_vamana *x, const nodedb_vamana *y) {
    const nodedb_vamana__arrays *a = x->arrays, *b = y->arrays;
    uint32_t slot;
    bool same = a->slots == b->slots;
    if (a->codes == NULL || b->codes == NULL) return a->codes == b->codes;
    for (slot = 0; slot < a->slots && same; slot++)
        same = a->states[slot] == NODEDB_VAMANA__FREE ||
               memcmp(a->codes + slot * a->coder->stride, b->codes + slot * a->coder->stride, a->coder->stride) == 0;
    return a->coder->bits == b->coder->bits && a->coder->step == b->coder->step &&
           memcmp(a->coder->mean, b->coder->mean, x->dim * sizeof(float)) == 0 && same;
}

/* Have two indexes learnt as much for the codes that they are making? */
static bool same_training(const nodedb_vamana *x, const nodedb_vamana *y) {
    const nodedb_vamana__training *a = &x->training, *b = &y->training;
    if (x->recoder == NULL || y->recoder == NULL) return x->recoder == y->recoder;
    if (x->recoder->step != y->recoder->step || memcmp(x->recoder->mean, y->recoder->mean, x->dim * sizeof(float)) != 0)
        return false;
    return nodedb_vamana__is_trained(x->recoder) ||
           (a->slots == b->slots && a->at == b->at && a->sampled == b->sampled && a->squares == b->squares &&
            memcmp(a->errors, b->errors, sizeof a->errors) == 0);
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

/* An allocator that counts, and can be told to fail: once, from then on, or when much is asked for. */
typedef struct counting { uint64_t calls, bytes, fail_at, fail_over, align_max; bool fail_on; } counting;
static void *counting_alloc(void *ctx, size_t bytes, size_t align) {
    counting *c = (counting *)ctx;
    void *memory = NULL;
    c->calls++;
    if (c->fail_at != 0 && (c->calls == c->fail_at || (c->fail_on && c->calls > c->fail_at))) return NULL;
    if (c->fail_over != 0 && bytes > c->fail_over) return NULL;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (align > c->align_max) c->align_max = align;
    if (posix_memalign(&memory, align, bytes) != 0) return NULL;
    memset(memory, 0xA5, bytes);
    c->bytes += bytes;
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

/* ---- when there are codes ---------------------------------------------------------------------------------------- */

static uint32_t bits_of(nodedb_vamana_code code) {
    return code == NODEDB_VAMANA_CODE_4BIT ? 4 : code == NODEDB_VAMANA_CODE_8BIT ? 8 : 0;
}

TEST(an_index_of_4096_vectors_gets_the_codes_it_was_asked_for_by_a_build_and_by_inserts) {
    enum { DIM = 32, N = FIRST + 1200 };
    float *v = random_vectors(N, DIM, test_seed);
    int code;
    uint32_t i, at;
    for (code = NODEDB_VAMANA_CODE_NONE; code <= NODEDB_VAMANA_CODE_4BIT; code++) {
        nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, (nodedb_vamana_code)code);
        uint32_t bits = bits_of(c.code);
        nodedb_vamana *index;
        c.degree = 12, c.beam_build = 16;
        index = build_of(&c, v, FIRST - 1, 1);
        CHECK_EQ(info_of(index).code_bits, 0);
        CHECK_EQ(info_of(index).code_bytes, 0);
        for (i = FIRST - 1, at = 0; i < N; i++) {
            CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
            if (at == 0 && info_of(index).code_bits != 0) at = i + 1;
        }
        CHECK_EQ(info_of(index).code_bits, bits);
        CHECK_EQ(info_of(index).code_bytes, bits == 4 ? 32 : bits == 8 ? 32 : 0);
        /* 128 slices of training; 32 codes with each insert, of which one is for the new vector; then four
         * judgements of 64 */
        if (bits != 0) CHECK(at >= FIRST + 128 + 100 + 16 && at <= FIRST + 128 + (FIRST + 128) / 31 + 2 + 17);
        CHECK_EQ(wrong_codes(index), 0);
        CHECK(recall_k(index, v, 50, 1, 32, false) >= recall_k(index, v, 50, 1, 32, true) - 0.04);
        nodedb_vamana_destroy(index);
        index = build_of(&c, v, FIRST, 2);
        CHECK_EQ(info_of(index).code_bits, bits);
        CHECK_EQ(wrong_codes(index), 0);
        nodedb_vamana_destroy(index);
    }
    free(v);
}

TEST(small_indexes_have_no_codes_and_an_unknown_code_is_refused) {
    nodedb_vamana_config c = config_of(8, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, (nodedb_vamana_code)4);
    nodedb_error err;
    CHECK(nodedb_vamana_create(&c, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "code");
    c.code = NODEDB_VAMANA_CODE_NONE, c.passes = 3;
    CHECK(nodedb_vamana_create(&c, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "passes");
    c.passes = 0, c.type = (nodedb_vamana_type)3;
    CHECK(nodedb_vamana_create(&c, &err) == NULL && err.status == NODEDB_ERR_INVALID);
}

/* ---- what codes find --------------------------------------------------------------------------------------------- */

TEST(a_walk_on_codes_finds_what_a_walk_on_vectors_finds_for_every_metric_and_type) {
    static const char *const metrics[] = {"L2", "IP", "COSINE"}, *const types[] = {"F32", "U8", "I8"};
    const sift *s = sift10k();
    int metric, type, bits;
    uint32_t beam;
    for (metric = 0; metric < 3; metric++)
        for (type = 0; type < (SLOW ? 1 : 3); type++) {
            uint32_t n = (metric == 0 && type == 1) || test_long ? s->n : FIRST + 4;
            uint32_t asked = s->query_count / (test_long ? 1 : 4);
            nodedb_vamana_config c = config_of(s->dim, (nodedb_vamana_type)type, (nodedb_vamana_metric)metric,
                                               NODEDB_VAMANA_CODE_AUTO);
            uint8_t *base, *queries;
            nodedb_vamana *index;
            if (n > s->n) n = s->n;
            base = as_type(s->base, (size_t)n * s->dim, c.type);
            queries = as_type(s->queries, (size_t)asked * s->dim, c.type);
            if (!test_long) c.degree = 24, c.beam_build = 40;
            index = type == 1 && metric == 0 ? shared_sift10k() : build_of(&c, base, n, 2);
            CHECK_EQ(info_of(index).code_bits, 4); /* it chooses them itself */
            for (bits = 4; bits <= 8; bits += 4) {
                recode(index, bits == 4 ? NODEDB_VAMANA_CODE_4BIT : NODEDB_VAMANA_CODE_8BIT);
                CHECK_EQ(info_of(index).code_bits, bits);
                CHECK_EQ(info_of(index).code_bytes, bits == 4 ? 64 : 128);
                CHECK_EQ(wrong_codes(index), 0);
                for (beam = 32; beam <= 64; beam *= 2) {
                    double code = recall(index, queries, asked, beam, false),
                           exact = recall(index, queries, asked, beam, true);
                    printf("     %s %s, %d bits, beam %u: recall@10 %.4f by code, %.4f by vectors\n", metrics[metric],
                           types[type], bits, (unsigned)beam, code, exact);
                    CHECK(code >= exact - (bits == 8 ? 0.01 : beam == 32 ? 0.03 : 0.015));
                    if (!SLOW) CHECK(code >= (beam == 32 ? 0.90 : 0.95));
                }
            }
            recode(index, NODEDB_VAMANA_CODE_AUTO);
            if (index != shared_sift10k()) nodedb_vamana_destroy(index);
            free(queries);
            free(base);
        }
}

TEST(rerank_says_how_many_are_measured_exactly_and_is_what_the_query_needs_by_default) {
    static const uint32_t asked[][4] = {/* k, beam, rerank, expected; 0: at least 8 more than k, at most the beam */
                                        {10, 64, 0, 0}, {1, 64, 0, 0}, {10, 30, 0, 0}, {10, 64, 10, 10},
                                        {10, 64, 3, 10}, {10, 64, 64, 64}, {10, 64, 1000, 64}, {20, 40, 0, 0},
                                        {0, 0, 0, 0}, {16, 200, 100, 100}};
    const sift *s = sift10k();
    const nodedb_vamana *index = shared_sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result got[64];
    nodedb_vamana_stats stats, narrow, wide;
    uint32_t i, found;
    size_t at;
    REQUIRE(info_of(index).code_bits == 4);
    for (at = 0; at < sizeof asked / sizeof asked[0]; at++)
        for (i = 0; i < 5; i++) {
            nodedb_vamana_query q = query_of(s->queries + i * s->dim, asked[at][0], asked[at][1]);
            q.rerank = asked[at][2];
            CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &found, &stats, NULL), NODEDB_OK);
            CHECK_EQ(found, asked[at][0] == 0 ? 10 : asked[at][0]);
            if (asked[at][3] != 0) CHECK_EQ(stats.exact, asked[at][3]);
            else CHECK(stats.exact >= found + 8 && stats.exact <= (asked[at][1] == 0 ? 64 : asked[at][1]));
            CHECK(stats.distances > stats.exact && stats.hops > 0 && !stats.scanned && stats.reads == 0);
            q.exact_walk = true;
            CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &found, &stats, NULL), NODEDB_OK);
            CHECK(stats.exact == stats.distances && stats.exact > asked[at][3]);
            CHECK_EQ(nodedb_vamana_scan(searcher, &q, got, &found, &stats, NULL), NODEDB_OK);
            CHECK(stats.exact == stats.distances && stats.exact == s->n && stats.scanned);
        }
    { /* more of it finds more, and costs just that */
        double few = 0, many = 0;
        for (i = 0; i < 30; i++) {
            nodedb_vamana_query q = query_of(s->queries + i * s->dim, 10, 64);
            q.rerank = 10;
            CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &found, &narrow, NULL), NODEDB_OK);
            few += got[9].distance;
            q.rerank = 64;
            CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &found, &wide, NULL), NODEDB_OK);
            many += got[9].distance;
            CHECK(got[0].distance <= got[9].distance);
            CHECK_EQ(wide.distances - narrow.distances, 54);
        }
        CHECK(many < few);
    }
    nodedb_vamana_searcher_destroy(searcher);
}

/* ---- the choice -------------------------------------------------------------------------------------------------- */

/* Builds with AUTO, tells the bits chosen, and checks that nothing is lost against a walk on vectors. */
static uint32_t chosen_bits(const char *what, const float *v, uint32_t n, uint32_t dim, const float *queries,
                            uint32_t query_count, nodedb_vamana_metric metric) {
    nodedb_vamana_config c = config_of(dim, NODEDB_VAMANA_F32, metric, NODEDB_VAMANA_CODE_AUTO);
    nodedb_vamana *index;
    double code, exact;
    uint32_t bits;
    c.degree = 16, c.beam_build = 32;
    index = build_of(&c, v, n, 2);
    bits = info_of(index).code_bits;
    CHECK_EQ(wrong_codes(index), 0);
    code = recall(index, queries, query_count, 48, false), exact = recall(index, queries, query_count, 48, true);
    printf("     %s: %u bits, recall@10 %.4f, by vectors %.4f\n", what, (unsigned)bits, code, exact);
    CHECK(code >= exact - 0.02);
    nodedb_vamana_destroy(index);
    return bits;
}

TEST(tight_clusters_far_apart_get_no_4_bit_codes_and_keep_their_recall) {
    enum { N = FIRST + 100, DIM = 64, ASKED = SLOW ? 100 : 400 };
    float *v = clusters(N, DIM, 64, 1e-3f, test_seed), *q = clusters(ASKED, DIM, 64, 1e-3f, test_seed + 5);
    CHECK(chosen_bits("64 clusters, noise 1e-3", v, N, DIM, q, ASKED, NODEDB_VAMANA_L2) != 4);
    CHECK(chosen_bits("the same, COSINE", v, N, DIM, q, ASKED, NODEDB_VAMANA_COSINE) != 4);
    free(v), free(q);
    v = clusters(N, DIM, 64, 2e-2f, test_seed), q = clusters(ASKED, DIM, 64, 2e-2f, test_seed + 5);
    CHECK(chosen_bits("64 clusters, noise 2e-2", v, N, DIM, q, ASKED, NODEDB_VAMANA_L2) != 4);
    free(v), free(q);
    v = clusters(N, DIM, 64, 0.5f, test_seed), q = clusters(ASKED, DIM, 64, 0.5f, test_seed + 5);
    CHECK_EQ(chosen_bits("64 clusters, noise 0.5", v, N, DIM, q, ASKED, NODEDB_VAMANA_L2), 4);
    free(v), free(q);
}

TEST(vectors_too_short_to_gain_get_no_codes_of_their_own) {
    static const struct { uint32_t dim; nodedb_vamana_type type; uint32_t bits; } shapes[] = {
        {2, NODEDB_VAMANA_F32, 0}, {16, NODEDB_VAMANA_F32, 0}, {17, NODEDB_VAMANA_F32, 4},
        {64, NODEDB_VAMANA_U8, 0}, {64, NODEDB_VAMANA_I8, 0}, {65, NODEDB_VAMANA_U8, 4}};
    size_t at;
    for (at = 0; at < sizeof shapes / sizeof shapes[0]; at++) {
        nodedb_vamana_config c = config_of(shapes[at].dim, shapes[at].type, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
        nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana__first_bits(index), shapes[at].bits);
        nodedb_vamana_destroy(index);
    }
    {
        enum { N = FIRST + 1, ASKED = 10 };
        float *v = random_vectors(N, 16, test_seed);
        CHECK_EQ(chosen_bits("16 components", v, N, 16, v, ASKED, NODEDB_VAMANA_L2), 0);
        CHECK_EQ(chosen_bits("2 components", v, N, 2, v, ASKED, NODEDB_VAMANA_L2), 0);
        free(v);
    }
}

TEST(equal_vectors_and_zeros_predict_nothing_so_they_get_no_codes) {
    enum { N = FIRST + 10, DIM = 32, MORE = SLOW ? 300 : 1500 };
    float *v = (float *)calloc((size_t)(N + MORE) * DIM, sizeof *v), *some = random_vectors(MORE, DIM, test_seed);
    int metric, round;
    uint32_t i;
    for (round = 0; round < 2; round++)
        for (metric = 0; metric < (round == 0 ? 3 : 1); metric++) {
            nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, (nodedb_vamana_metric)metric,
                                               NODEDB_VAMANA_CODE_AUTO);
            nodedb_vamana_query q;
            nodedb_vamana_result got[10];
            nodedb_vamana_searcher *s;
            nodedb_vamana *index;
            uint32_t found;
            for (i = 0; i < N * DIM; i++) v[i] = round == 0 ? 0 : 0.25f * (float)(i % DIM);
            c.degree = 12, c.beam_build = 24;
            index = build_of(&c, v, N, 2);
            CHECK_EQ(info_of(index).code_bits, 0);
            s = nodedb_vamana_searcher_create(index, NULL, NULL);
            q = query_of(v, 10, 30);
            CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
            CHECK_EQ(found, 10);
            CHECK(got[0].distance == (metric == 2 ? 1.0f : 0.0f));
            for (i = 0; i < MORE && metric == 0; i++) /* and vectors inserted later are found */
                CHECK_EQ(nodedb_vamana_insert(index, N + i, some + (size_t)i * DIM, NULL), NODEDB_OK);
            if (metric == 0) {
                double share = recall_k(index, some, 100, 1, 48, false);
                printf("     others among equal ones: %.4f found\n", share);
                CHECK(share >= recall_k(index, some, 100, 1, 48, true) - 0.02);
            }
            nodedb_vamana_searcher_destroy(s);
            nodedb_vamana_destroy(index);
        }
    free(some);
    free(v);
}

TEST(long_tails_and_constant_components_keep_their_recall) {
    enum { N = FIRST + 10, DIM = 64, ASKED = SLOW ? 10 : 60 };
    float *v = clusters(N, DIM, 20, 0.5f, test_seed), *q = clusters(ASKED, DIM, 20, 0.5f, test_seed + 9);
    size_t i;
    for (i = 0; i < (size_t)N * DIM; i++)
        if (i / DIM % 800 == 3) v[i] *= 1000;
    (void)chosen_bits("a few are 1000 times longer", v, N, DIM, q, ASKED, NODEDB_VAMANA_L2);
    (void)chosen_bits("the same, COSINE", v, N, DIM, q, ASKED, NODEDB_VAMANA_COSINE);
    free(v), free(q);
    v = clusters(N, DIM, 20, 0.5f, test_seed), q = clusters(ASKED, DIM, 20, 0.5f, test_seed + 9);
    for (i = 0; i < (size_t)N * DIM; i++) /* the mean is subtracted: they cost nothing */
        if (i % 2 == 0) v[i] = 100;
    for (i = 0; i < (size_t)ASKED * DIM; i++)
        if (i % 2 == 0) q[i] = 100;
    CHECK_EQ(chosen_bits("half the components constant", v, N, DIM, q, ASKED, NODEDB_VAMANA_L2), 4);
    free(v), free(q);
}

TEST(any_number_of_components_can_be_coded) {
    static const uint32_t dims[] = {1, 2, 3, 63, 64, 65, 100, 384, 1000, 65535};
    size_t at;
    int bits, metric;
    for (at = 0; at < sizeof dims / sizeof dims[0]; at++)
        for (bits = 4; bits <= 8; bits += 4) {
            uint32_t dim = dims[at], n = dim > 4000 ? 16 : dim > 200 ? 80 : 200, i, found, hits = 0, walks = 0;
            float *v = random_vectors(n, dim, test_seed + dim);
            metric = (int)(at % 3);
            if (metric == NODEDB_VAMANA_IP) metric = 0; /* a vector is not its own nearest */
            if (dim < 3) metric = 0;
            {
                nodedb_vamana_config c = config_of(dim, NODEDB_VAMANA_F32, (nodedb_vamana_metric)metric,
                                                   bits == 4 ? NODEDB_VAMANA_CODE_4BIT : NODEDB_VAMANA_CODE_8BIT);
                nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
                nodedb_vamana_searcher *s;
                index->code_due = n / 2;
                CHECK_EQ(nodedb_vamana_build(index, NULL, v, n, 2, NULL, NULL, NULL), NODEDB_OK);
                CHECK_EQ(info_of(index).code_bits, bits);
                CHECK(info_of(index).code_bytes * 8 / (unsigned)bits >= dim);
                CHECK_EQ(wrong_codes(index), 0);
                s = nodedb_vamana_searcher_create(index, NULL, NULL);
                for (i = 0; i < n; i++) {
                    nodedb_vamana_query q = query_of(v + (size_t)i * dim, 1, n / 2);
                    nodedb_vamana_result got;
                    nodedb_vamana_stats stats;
                    CHECK_EQ(nodedb_vamana_search(s, &q, &got, &found, &stats, NULL), NODEDB_OK);
                    hits += found == 1 && got.id == i, walks += !stats.scanned;
                }
                if (n > 100) CHECK_EQ(walks, n); /* of fewer, what the codes' error wants is all of them */
                /* 16 values on a line cannot tell 400 apart */
                if (dim > 2 || bits == 8) CHECK(hits >= n * 97 / 100);
                nodedb_vamana_searcher_destroy(s);
                nodedb_vamana_destroy(index);
            }
            free(v);
        }
}

/* ---- codes made again -------------------------------------------------------------------------------------------- */

/* Making codes of 4 bits, to find them useless, and then of 8 takes about as long as the arrays take to grow. */
TEST(codes_are_made_even_while_the_arrays_keep_growing) {
    enum { DIM = 64, N = FIRST + FIRST / 4 };
    float *v = clusters(N, DIM, 64, 5e-2f, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
    nodedb_vamana *index;
    uint32_t i, made = 0, grown = 0;
    uint64_t capacity = 0;
    c.degree = 12, c.beam_build = 16;
    index = nodedb_vamana_create(&c, NULL);
    for (i = 0; i < N; i++) {
        CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
        if (made == 0 && index->arrays->codes != NULL) made = i + 1;
        if (index->recoder != NULL && capacity != info_of(index).capacity) grown++;
        capacity = info_of(index).capacity;
    }
    printf("     codes after %u inserts, %u growths meanwhile\n", (unsigned)made, (unsigned)grown);
    CHECK_EQ(info_of(index).code_bits, 8);
    CHECK(grown > 0 && made > FIRST && made < FIRST + FIRST / 12 + 2 * (128 + 17)); /* trained and judged twice */
    CHECK_EQ(wrong_codes(index), 0);
    nodedb_vamana_destroy(index);
    free(v);
}

TEST(codes_are_remade_when_all_vectors_were_replaced_or_many_are_clipped) {
    enum { DIM = 24, N = FIRST + 100, ASKED = SLOW ? 30 : 200 };
    float *v = random_vectors(2 * N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT);
    const char *path = path_in_test_dir("file");
    const nodedb_vamana__coder *coder;
    nodedb_vamana *index;
    uint32_t i, made = 0, live;
    double code, exact;
    float step;
    size_t at;
    for (at = (size_t)N * DIM; at < (size_t)2 * N * DIM; at++) v[at] = 5 * v[at] + 20; /* of another kind */
    c.degree = 12, c.beam_build = 24;
    index = build_of(&c, v, N, 2);
    coder = index->arrays->coder, step = coder->step;
    live = index->code_live;
    CHECK(live >= FIRST && live <= N);
    CHECK_EQ(index->code_inserted, N - live);
    for (i = 0; i < 100; i++) /* of the same kind: no reason */
        CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
    CHECK(index->code_clipped < 5 && index->recoder == NULL);
    CHECK_EQ(index->code_inserted, N - live + 100);
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    nodedb_vamana_destroy(index);
    index = nodedb_vamana_open(path, NULL, NULL); /* which forgets none of it */
    REQUIRE(index != NULL);
    CHECK_EQ(index->code_live, live);
    CHECK_EQ(index->code_inserted, N - live + 100);
    CHECK_EQ(index->code_due, 8 * live);
    coder = index->arrays->coder;
    for (i = 0; i < 2 * N; i++) { /* soon codes that fit both kinds, and then the new one */
        CHECK_EQ(nodedb_vamana_insert(index, i % N, v + (size_t)(N + i % N) * DIM, NULL), NODEDB_OK);
        if (made == 0 && index->arrays->coder != coder) made = i + 1;
    }
    CHECK(made > N / 16 && made < N / 16 + N / 32 + 64 + 128);
    CHECK(index->arrays->coder->step > 3 * step);
    CHECK_EQ(wrong_codes(index), 0);
    code = recall(index, v + (size_t)N * DIM, ASKED, 48, false);
    exact = recall(index, v + (size_t)N * DIM, ASKED, 48, true);
    printf("     after all have been replaced by others: recall@10 %.4f, by vectors %.4f\n", code, exact);
    CHECK(code >= exact - 0.02);
    nodedb_vamana_destroy(index);
    free(v);
}

/* What the last change has done for codes that are being made: vectors looked at for the mean and for the step, codes,
 * and judges. */
typedef struct making { uint32_t mean, step, codes, judges; } making;

static making making_of(const nodedb_vamana *index) {
    uint32_t sample = nodedb_vamana__sample_size(index, index->training.slots), at = index->training.at;
    making m;
    m.mean = at < sample ? at : sample, m.step = at - m.mean, m.codes = index->recode_at, m.judges = index->judge_at;
    return m;
}

TEST(no_insert_does_more_for_the_first_codes_than_two_slices_and_no_sample_is_copied) {
    enum { DIM = 768, EARLY = 40 };
    const uint32_t first = SLOW ? 700 : FIRST;
    const uint32_t steps = first < 512 ? first : 512;
    float *v = random_vectors(first + first / 4, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT);
    nodedb_vamana *index;
    uint32_t i, mean = 0, step = 0;
    making before, now;
    uint64_t bytes;
    c.degree = 8, c.beam_build = 12, c.capacity = first + first / 4;
    index = build_of(&c, v, first - EARLY, 2);
    index->code_due = first;
    memset(&before, 0, sizeof before);
    bytes = index->bytes;
    for (i = first - EARLY; i < first + first / 4 && index->arrays->codes == NULL; i++, before = now) {
        CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
        now = making_of(index);
        if (index->recoder == NULL) memset(&now, 0, sizeof now);
        if (now.mean + now.step + now.codes + now.judges == 0) continue;
        CHECK((now.mean - before.mean) / 64.0 + (now.step - before.step) / 8.0 + (now.codes - before.codes) / 32.0 +
                  (now.judges - before.judges) / 4.0 <= 2); /* the last codes and the first judges */
        CHECK(index->bytes <= bytes + c.capacity * (uint64_t)(DIM / 2) + 2 * nodedb_vamana__coder_bytes(index));
        mean = now.mean, step = now.step;
    }
    CHECK(mean == (first < 4096 ? first : 4096) && step == steps);
    CHECK_EQ(info_of(index).code_bits, 4);
    nodedb_vamana_destroy(index);
    free(v);
}

/* At every 16th insert of the training, the file opened goes on to the same codes as the index that was saved. */
TEST(training_that_a_save_interrupts_continues_from_the_file) {
    enum { DIM = 96, N = 400, MORE = 120, EVERY = 16 };
    float *v = random_vectors(N + MORE, DIM, test_seed);
    int metric, bits;
    for (metric = 0; metric < 3; metric++)
        for (bits = 4; bits <= 8; bits += 4) {
            const char *path = path_in_test_dir("learning");
            nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, (nodedb_vamana_metric)metric,
                                               bits == 4 ? NODEDB_VAMANA_CODE_4BIT : NODEDB_VAMANA_CODE_8BIT);
            nodedb_vamana *index, *opened[MORE / EVERY + 1];
            uint32_t i, j, n = 0;
            c.degree = 8, c.beam_build = 12;
            index = build_of(&c, v, N, 1);
            index->code_due = N + 1;
            for (i = N; i < N + MORE; i++) {
                CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
                for (j = 0; j < n; j++) {
                    CHECK_EQ(nodedb_vamana_insert(opened[j], i, v + (size_t)i * DIM, NULL), NODEDB_OK);
                    CHECK(same_training(index, opened[j]));
                }
                if (i % EVERY != 0 || index->recoder == NULL || nodedb_vamana__is_trained(index->recoder)) continue;
                CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
                opened[n++] = nodedb_vamana_open(path, NULL, NULL);
                REQUIRE(opened[n - 1] != NULL);
            }
            CHECK(n >= 3 && index->arrays->codes != NULL);
            for (j = 0; j < n; j++) {
                CHECK(same_codes(index, opened[j]));
                nodedb_vamana_destroy(opened[j]);
            }
            nodedb_vamana_destroy(index);
        }
    free(v);
}

/* By hops, of which a walk makes about as many as its beam is wide. The index looks with up to four times its beam for
 * neighbours; among so many, codes displace by more places than they do in a search. */
TEST(codes_are_judged_with_the_beam_of_a_search_however_wide_the_beam_of_an_insert_may_become) {
    enum { DIM = 64, N = FIRST + 300 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
    nodedb_vamana *index;
    uint64_t judged = 0;
    uint32_t slot;
    c.beam_build = 0;
    index = build_of(&c, v, N, 2);
    CHECK(index->beam_adapts && index->writer->beam_max == 512 && index->arrays->coder != NULL);
    for (slot = 0; slot < 64; slot++) {
        uint64_t before = index->writer->hops;
        nodedb_vamana__judge(index, index->arrays, index->writer, slot);
        judged = index->writer->hops - before > judged ? index->writer->hops - before : judged;
    }
    printf("     at most %u hops to judge by a node\n", (unsigned)judged);
    CHECK(judged >= 128 && judged < 2 * 128);
    nodedb_vamana_destroy(index);
    free(v);
}

TEST(codes_are_remade_a_little_per_insert_when_the_index_has_grown_eightfold) {
    enum { DIM = 24, SMALL = 300, TRAINED = SMALL / 64 + 1 + SMALL / 8 + 1, N = 8 * (SMALL + TRAINED + 80) + 600 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT);
    const nodedb_vamana__coder *first = NULL;
    uint32_t i, began = 0, ended = 0;
    nodedb_vamana *index;
    float step = 0;
    size_t at;
    for (at = SMALL * DIM; at < (size_t)N * DIM; at++) v[at] = 30 * v[at] + 100; /* the first were not typical */
    c.degree = 12, c.beam_build = 24, c.capacity = N;
    index = nodedb_vamana_create(&c, NULL);
    index->code_due = SMALL;
    for (i = 0; i < N; i++) {
        bool was = index->recoder != NULL && nodedb_vamana__is_trained(index->recoder);
        uint32_t before = index->recode_at;
        CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
        index->code_clipped = 0, index->code_asked = 0; /* which would be reasons, too */
        if (was && index->recoder != NULL && index->recode_at < index->arrays->slots)
            CHECK_EQ(index->recode_at - before, NODEDB_VAMANA__CODE_PER_CHANGE);
        if (first == NULL && index->arrays->coder != NULL) {
            CHECK(i + 1 >= SMALL && i + 1 <= SMALL + TRAINED + (SMALL + TRAINED) / 31 + 2 + 17);
            CHECK_EQ(index->code_due, 8 * (i + 1));
            first = index->arrays->coder, step = first->step;
        }
        if (first != NULL && began == 0 && index->recoder != NULL) began = i + 1;
        if (began != 0 && ended == 0 && index->recoder == NULL) ended = i + 1;
        if (i % 100 == 0 || i == ended - 1) CHECK_EQ(wrong_codes(index), 0);
    }
    CHECK(began >= 8 * SMALL && began <= 8 * (SMALL + TRAINED + (SMALL + TRAINED) / 31 + 2 + 17));
    CHECK(ended > began + 8 * SMALL / 40 && ended < began + 8 * SMALL / 20 + 2 + 17 + 64 + 128);
    CHECK(index->arrays->coder->step > 5 * step);
    CHECK_EQ(wrong_codes(index), 0);
    {
        double code = recall(index, v + SMALL * DIM, 50, 64, false);
        double exact = recall(index, v + SMALL * DIM, 50, 64, true);
        printf("     remade: recall@10 %.4f, by vectors %.4f\n", code, exact);
        CHECK(code >= exact - 0.04); /* 4 bits were forced on few components of no structure */
    }
    nodedb_vamana_destroy(index);
    free(v);
}

TEST(every_vector_has_its_own_code_after_any_changes_while_codes_are_made) {
    enum { IDS = 700, CHANGES = SLOW ? 2000 : 3000 };
    uint32_t seen[7] = {0}, learning = 0;
    int kind;
    for (kind = 0; kind < (test_long ? 6 : 4); kind++) {
        const uint32_t dim = 20 + 30 * (uint32_t)(kind % 3);
        const char *path = path_in_test_dir("middle");
        nodedb_vamana_config c = config_of(dim, NODEDB_VAMANA_F32, (nodedb_vamana_metric)(kind % 3),
                                           kind % 2 ? NODEDB_VAMANA_CODE_4BIT : NODEDB_VAMANA_CODE_8BIT);
        uint64_t state = test_seed * 10 + (uint64_t)kind;
        uint32_t during[7] = {0}, ended = 0, i, next_id = 1000000;
        nodedb_vamana *index;
        nodedb_error err;
        float *v = (float *)malloc(dim * 30 * sizeof *v);
        c.degree = 8, c.beam_build = 12;
        index = nodedb_vamana_create(&c, NULL);
        index->code_due = 100;
        for (i = 0; i < CHANGES; i++) {
            uint64_t what = test_random(&state) % 1000, id = test_random(&state) % IDS;
            bool making = index->recoder != NULL;
            uint32_t which = 0, j;
            for (j = 0; j < dim * 30; j++) v[j] = random_float(&state);
            if (what < 600) {
                CHECK_EQ(nodedb_vamana_insert(index, id, v, NULL), NODEDB_OK);
            } else if (what < 950) {
                const bool there = nodedb_vamana_contains(index, id);
                CHECK_EQ(nodedb_vamana_remove(index, id, NULL), there ? NODEDB_OK : NODEDB_ERR_NOT_FOUND);
                which = 1;
            } else if (what < 953) {
                uint64_t ids[30];
                for (j = 0; j < 30; j++) ids[j] = next_id++;
                which = 2;
                CHECK_EQ(nodedb_vamana_build(index, ids, v, 30, 2, NULL, NULL, NULL), NODEDB_OK);
                for (j = 0; j < 25; j++) CHECK_EQ(nodedb_vamana_remove(index, ids[j], NULL), NODEDB_OK);
            } else if (what < 970) {
                which = 3;
                CHECK_EQ(nodedb_vamana_reserve(index, index->arrays->capacity + 10, NULL), NODEDB_OK);
            } else if (what < 972) {
                which = 4;
                CHECK_EQ(nodedb_vamana_compact(index, NULL), NODEDB_OK);
            } else if (what < 980) {
                nodedb_vamana *opened;
                which = 5;
                CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
                opened = nodedb_vamana_open(path, NULL, &err);
                if (opened == NULL) test_fail(__FILE__, __LINE__, err.message);
                REQUIRE(opened != NULL);
                CHECK(same_codes(index, opened) && wrong_codes(opened) == 0 && valid(opened));
                CHECK(same_training(index, opened));
                learning += index->recoder != NULL && !nodedb_vamana__is_trained(index->recoder);
                nodedb_vamana_destroy(index);
                index = opened;
            } else if (what < 985) {
                which = 6;
                (void)nodedb_vamana_maintain(index, 5);
            } else {
                index->code_due = 0;
            }
            during[which] += making;
            ended += making && index->recoder == NULL && index->arrays->codes != NULL && which < 2;
            if (i % 20 == 0 || which > 1 || (making && index->recoder == NULL)) {
                CHECK(valid(index));
                CHECK_EQ(wrong_codes(index), 0);
            }
        }
        for (i = 0; i < 7; i++) seen[i] += during[i];
        CHECK(ended > 5);
        CHECK(recall(index, v, 30, 60, false) >= recall(index, v, 30, 60, true) - 0.05);
        nodedb_vamana_destroy(index);
        free(v);
    }
    for (kind = 0; kind < 7; kind++) CHECK(SLOW || seen[kind] > 0);
    CHECK(SLOW || learning > 0);
}

TEST(when_the_last_vector_is_removed_its_codes_go_and_new_vectors_are_found) {
    enum { DIM = 40, N = 1500 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT);
    nodedb_vamana *index;
    double code, exact;
    uint32_t i;
    c.degree = 12, c.beam_build = 24;
    index = nodedb_vamana_create(&c, NULL);
    index->code_due = 500;
    CHECK_EQ(nodedb_vamana_build(index, NULL, v, N, 1, NULL, NULL, NULL), NODEDB_OK);
    CHECK_EQ(info_of(index).code_bits, 4);
    for (i = 0; i < N; i++) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_count(index), 0);
    for (i = 0; i < N * DIM; i++) v[i] = 500 + v[i]; /* where the old codes are all at their end */
    for (i = 0; i < N; i++) CHECK_EQ(nodedb_vamana_insert(index, i, v + (size_t)i * DIM, NULL), NODEDB_OK);
    CHECK_EQ(wrong_codes(index), 0);
    code = recall(index, v, 50, 48, false), exact = recall(index, v, 50, 48, true);
    printf("     after all have gone: recall@10 %.4f, by vectors %.4f\n", code, exact);
    CHECK(code >= exact - 0.02);
    nodedb_vamana_destroy(index);
    free(v);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* Results and costs of the same questions, but for what the disk costs. */
static void same_answers(const nodedb_vamana *a, const nodedb_vamana *b, const uint8_t *queries, uint32_t n) {
    nodedb_vamana_searcher *sa = nodedb_vamana_searcher_create(a, NULL, NULL),
        *sb = nodedb_vamana_searcher_create(b, NULL, NULL);
    nodedb_vamana_result ra[10], rb[10];
    nodedb_vamana_stats ta, tb;
    uint32_t i, j, na = 0, nb = 0;
    for (i = 0; i < n && sa != NULL && sb != NULL; i++) {
        nodedb_vamana_query q = query_of(queries + i * a->vector_bytes, 10, 40);
        q.rerank = 30; /* its default is another on disk */
        CHECK_EQ(nodedb_vamana_search(sa, &q, ra, &na, &ta, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_search(sb, &q, rb, &nb, &tb, NULL), NODEDB_OK);
        CHECK_EQ(na, nb);
        for (j = 0; j < na; j++) {
            float apart = ra[j].distance - rb[j].distance;
            CHECK(ra[j].id == rb[j].id && fabsf(apart) <= 1e-5f * (1 + fabsf(ra[j].distance)));
            if ((a->file == NULL) == (b->file == NULL)) CHECK(apart == 0);
        }
        CHECK(ta.hops == tb.hops && ta.distances == tb.distances && ta.exact == tb.exact);
    }
    CHECK(sa != NULL && sb != NULL);
    nodedb_vamana_searcher_destroy(sa);
    nodedb_vamana_searcher_destroy(sb);
}

TEST(a_file_keeps_codes_parameters_and_passes_bit_for_bit_in_memory_and_on_disk) {
    enum { N = 600, ASKED = 20, MOVES = 50 };
    const sift *s = sift10k();
    int type, metric, code;
    char first[700], second[700];
    snprintf(first, sizeof first, "%s", path_in_test_dir("first"));
    snprintf(second, sizeof second, "%s", path_in_test_dir("second"));
    for (type = 0; type < 3; type++)
        for (code = 0; code <= NODEDB_VAMANA_CODE_4BIT; code++) {
            nodedb_vamana_config c = config_of(s->dim - 28, (nodedb_vamana_type)type, NODEDB_VAMANA_L2,
                                               (nodedb_vamana_code)code);
            uint8_t *base, *asked, *written, *again;
            nodedb_vamana *index, *opened, *disk;
            nodedb_vamana_open_config on_disk;
            bool more;
            size_t bytes, bytes_again;
            uint32_t bits = code == 0 ? 4 : bits_of(c.code), i;
            metric = (type + code) % 3, c.metric = (nodedb_vamana_metric)metric;
            base = as_type(s->base, N * c.dim, c.type), asked = as_type(s->queries, ASKED * c.dim, c.type);
            c.degree = 16, c.beam_build = 24, c.passes = 1 + (uint32_t)code % 2;
            index = nodedb_vamana_create(&c, NULL);
            index->code_due = 200;
            CHECK_EQ(nodedb_vamana_build(index, NULL, base, N, 1, NULL, NULL, NULL), NODEDB_OK);
            CHECK_EQ(info_of(index).code_bits, bits);
            CHECK_EQ(nodedb_vamana_save(index, first, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_verify(first, NULL, NULL, NULL, NULL), NODEDB_OK);
            opened = nodedb_vamana_open(first, NULL, NULL);
            REQUIRE(opened != NULL);
            CHECK(valid(opened) && same_graph(index, opened) && same_codes(index, opened));
            CHECK(opened->passes == c.passes && opened->code == c.code && opened->type == c.type);
            CHECK_EQ(info_of(opened).code_bits, bits);
            CHECK_EQ(info_of(opened).code_bytes, info_of(index).code_bytes);
            same_answers(index, opened, asked, ASKED);
            CHECK_EQ(nodedb_vamana_save(opened, second, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
            written = read_file(first, &bytes), again = read_file(second, &bytes_again);
            CHECK(bytes > 0 && bytes == bytes_again && memcmp(written, again, bytes) == 0);
            memset(&on_disk, 0, sizeof on_disk);
            on_disk.mode = NODEDB_VAMANA_ON_DISK;
            disk = nodedb_vamana_open(first, &on_disk, NULL);
            REQUIRE(disk != NULL);
            CHECK_EQ(info_of(disk).code_bits, bits != 0 ? bits : 8);
            if (bits != 0) same_answers(index, disk, asked, ASKED); /* each block when it is first needed */
            CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, NULL), NODEDB_OK);
            if (bits != 0) CHECK(same_codes(index, disk));
            if (bits != 0) same_answers(index, disk, asked, ASKED);
            CHECK(recall(disk, asked, ASKED, 64, false) >= 0.9);
            CHECK(recall(disk, asked, ASKED, 64, true) >= 0.9);
            for (i = 0; i < MOVES; i++) /* and it goes on changing */
                CHECK_EQ(nodedb_vamana_insert(opened, N / 2 + 2 * i * N, base + i * opened->vector_bytes, NULL), 0);
            CHECK_EQ(wrong_codes(opened), 0);
            nodedb_vamana_destroy(disk);
            nodedb_vamana_destroy(opened);
            nodedb_vamana_destroy(index);
            free(again), free(written), free(asked), free(base);
        }
}

TEST(an_index_without_codes_gets_8_bits_on_disk_and_none_in_memory) {
    enum { N = 500, DIM = 48, ASKED = 20 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
    nodedb_vamana_open_config on_disk;
    nodedb_vamana *index = build_of(&c, v, N, 1), *opened;
    const char *path = path_in_test_dir("file");
    nodedb_error err;
    CHECK_EQ(info_of(index).code_bits, 0);
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
    opened = nodedb_vamana_open(path, NULL, NULL);
    CHECK_EQ(info_of(opened).code_bits, 0);
    CHECK_EQ(opened->code_due, FIRST);
    same_answers(index, opened, (const uint8_t *)v, ASKED);
    nodedb_vamana_destroy(opened);
    memset(&on_disk, 0, sizeof on_disk);
    on_disk.mode = NODEDB_VAMANA_ON_DISK;
    opened = nodedb_vamana_open(path, &on_disk, NULL);
    CHECK_EQ(info_of(opened).code_bits, 8);
    CHECK(recall(opened, v, ASKED, 48, false) >= 0.95);
    CHECK_EQ(nodedb_vamana_insert(opened, N, v, &err), NODEDB_ERR_STATE);
    nodedb_vamana_destroy(opened);
    nodedb_vamana_destroy(index);
    free(v);
}

TEST(a_missing_file_is_not_found_by_open_and_by_verify) {
    nodedb_error err;
    CHECK(nodedb_vamana_open(path_in_test_dir("nothing"), NULL, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_vamana_verify(path_in_test_dir("nothing"), NULL, NULL, NULL, &err), NODEDB_ERR_NOT_FOUND);
}

/* A coder is made from a sample of the slots: there may be a vector where none of the sample is. */
TEST(few_vectors_left_among_many_slots_can_be_saved_and_coded) {
    enum { N = 300, DIM = 40000 };
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT);
    const char *path = path_in_test_dir("file");
    nodedb_vamana *index, *opened;
    nodedb_error err;
    uint32_t i;
    float *v = (float *)calloc(DIM, sizeof *v);
    c.degree = 4, c.beam_build = 4;
    index = nodedb_vamana_create(&c, NULL);
    for (i = 0; i < N; i++) {
        v[i] = (float)i;
        CHECK_EQ(nodedb_vamana_insert(index, i, v, NULL), NODEDB_OK);
    }
    for (i = 0; i < N; i++)
        if (i != 1) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    CHECK(nodedb_vamana__sample_size(index, index->arrays->slots) < index->arrays->slots);
    err.message[0] = 0;
    CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err), NODEDB_OK);
    opened = nodedb_vamana_open(path, NULL, &err);
    CHECK(opened != NULL && nodedb_vamana_contains(opened, 1) && nodedb_vamana_count(opened) == 1);
    recode(index, NODEDB_VAMANA_CODE_4BIT);
    CHECK_EQ(info_of(index).code_bits, 4);
    nodedb_vamana_destroy(opened);
    nodedb_vamana_destroy(index);
    free(v);
}

/* ---- many queries ------------------------------------------------------------------------------------------------ */

TEST(search_many_is_so_many_searches) {
    enum { ASKED = 30, K = 7 };
    const sift *s = sift10k();
    const nodedb_vamana *index = shared_sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result one[64], *many = (nodedb_vamana_result *)calloc(ASKED * K, sizeof *many);
    uint32_t found[ASKED], found_one, i, j;
    nodedb_vamana_stats sum, stats, total;
    nodedb_vamana_query q = query_of(NULL, K, 40);
    nodedb_error err;
    uint32_t *none = (uint32_t *)malloc(1);
    uint8_t *bitmap = (uint8_t *)malloc(2048);
    int round;
    memset(bitmap, 0x55, 2048);
    for (round = 0; round < 2; round++) {
        memset(&sum, 0, sizeof sum);
        q.bitmap = round == 0 ? NULL : bitmap, q.bitmap_bits = 1000u + 9000u * (uint32_t)round;
        CHECK_EQ(nodedb_vamana_search_many(searcher, &q, s->queries, ASKED, many, found, &total, NULL), NODEDB_OK);
        for (i = 0; i < ASKED; i++) {
            nodedb_vamana_query alone = q;
            alone.vector = s->queries + i * s->dim;
            CHECK_EQ(nodedb_vamana_search(searcher, &alone, one, &found_one, &stats, NULL), NODEDB_OK);
            CHECK_EQ(found[i], found_one);
            for (j = 0; j < found_one; j++)
                CHECK(one[j].id == many[i * K + j].id && one[j].distance == many[i * K + j].distance);
            sum.hops += stats.hops, sum.distances += stats.distances, sum.exact += stats.exact;
        }
        CHECK(sum.hops == total.hops && sum.distances == total.distances && sum.exact == total.exact);
        CHECK(total.reads == 0 && total.retries == 0 && !total.scanned);
    }
    q = query_of(NULL, NODEDB_VAMANA_MAX_BEAM + 1, 0);
    CHECK_EQ(nodedb_vamana_search_many(searcher, &q, s->queries, 2, many, found, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "query 0");
    q = query_of(NULL, K, 40);
    CHECK_EQ(nodedb_vamana_search_many(searcher, &q, NULL, 2, many, found, NULL, &err), NODEDB_ERR_INVALID);
    CHECK(found[0] == 0 && found[1] == 0);
    CHECK_EQ(nodedb_vamana_search_many(searcher, &q, s->queries, 0, many, none, &total, &err), NODEDB_OK);
    CHECK(total.distances == 0); /* and nothing was written where no number has room */
    free(none), free(bitmap), free(many);
    nodedb_vamana_searcher_destroy(searcher);
}

TEST(search_many_names_the_first_query_that_fails_and_answers_those_before) {
    enum { N = 200, DIM = 8, ASKED = 9 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
    nodedb_vamana *index = build_of(&c, v, N, 1);
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_query q = query_of(NULL, 0, 0); /* k is 10 */
    nodedb_vamana_result got[ASKED * 10];
    nodedb_vamana_stats stats;
    uint32_t found[ASKED], i;
    nodedb_error err;
    memset(found, 0xFF, sizeof found);
    v[6 * DIM + 3] = (float)strtod("nan", NULL);
    CHECK_EQ(nodedb_vamana_search_many(searcher, &q, v, ASKED, got, found, &stats, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "query 6");
    CHECK_HAS(err.message, "component 3");
    for (i = 0; i < ASKED; i++) {
        CHECK_EQ(found[i], i < 6 ? 10 : 0);
        if (i < 6) CHECK(got[i * 10].id == i && got[i * 10].distance == 0);
    }
    CHECK(stats.distances > 0);
    CHECK_EQ(nodedb_vamana_search_many(searcher, &q, v, ASKED, got, found, NULL, NULL), NODEDB_ERR_INVALID);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
    free(v);
}

/* ---- by radius --------------------------------------------------------------------------------------------------- */

/* Everything that a search by radius must keep, for each query; returns the share of the scan's that it finds. */
static double by_radius(const nodedb_vamana *index, const uint8_t *queries, uint32_t n, uint32_t rank, uint32_t most,
                        bool exact_walk) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result *want = (nodedb_vamana_result *)malloc(2048 * sizeof *want),
                         *got = (nodedb_vamana_result *)malloc((most + 1) * sizeof *got);
    uint32_t i, j, l, want_n, got_n, hits = 0, all = 0;
    for (i = 0; i < n; i++) {
        nodedb_vamana_query q = query_of(queries + i * index->vector_bytes, 2048, 0);
        nodedb_vamana_stats stats;
        float radius;
        CHECK_EQ(nodedb_vamana_scan(s, &q, want, &want_n, NULL, NULL), NODEDB_OK);
        radius = want[rank].distance;
        for (want_n = rank; want_n < 2047 && want[want_n].distance <= radius;) want_n++;
        q.k = 99999999, q.exact_walk = exact_walk; /* k is not used */
        got[most].id = 12345;
        CHECK_EQ(nodedb_vamana_search_range(s, &q, radius, got, most, &got_n, &stats, NULL), NODEDB_OK);
        CHECK(got_n <= most && got[most].id == 12345);
        CHECK(stats.distances > 0 && stats.exact > 0 && stats.exact <= stats.distances);
        if (want_n > most) {
            want_n = most;
            CHECK_EQ(got_n, most);
        }
        CHECK(got_n <= want_n);
        for (j = 0; j < got_n; j++) {
            CHECK(got[j].distance <= radius);
            CHECK(j == 0 || got[j - 1].distance <= got[j].distance);
            for (l = 0; l < want_n && want[l].id != got[j].id; l++) {
            }
            if (l == want_n) continue;
            CHECK(got[j].distance == want[l].distance);
            hits++;
        }
        all += want_n;
    }
    free(got), free(want);
    nodedb_vamana_searcher_destroy(s);
    return (double)hits / all;
}

TEST(a_search_by_radius_finds_all_within_and_none_beyond) {
    static const uint32_t ranks[] = {0, 4, 31, 32, 200, 1000};
    const sift *s = sift10k();
    nodedb_vamana *index = shared_sift10k();
    size_t at;
    for (at = 0; at < sizeof ranks / sizeof ranks[0]; at++) {
        double code = by_radius(index, s->queries, 12, ranks[at], 1500, false),
               exact = by_radius(index, s->queries, 12, ranks[at], 1500, true),
               cut = by_radius(index, s->queries, 12, ranks[at], 20, false);
        printf("     radius of the %u nearest: %.4f found by code, %.4f by vectors; the nearest 20 of them %.4f\n",
               (unsigned)ranks[at] + 1, code, exact, cut);
        CHECK(code >= 0.96 && exact >= 0.97 && cut >= 0.95);
    }
}

TEST(a_radius_may_be_zero_negative_or_infinite_but_not_nan) {
    enum { N = 700, DIM = 24 };
    const sift *s = sift10k();
    nodedb_vamana *index = shared_sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result *got = (nodedb_vamana_result *)malloc(20000 * sizeof *got);
    nodedb_vamana_query q;
    const float infinity = (float)strtod("inf", NULL), nan = (float)strtod("nan", NULL);
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_IP, NODEDB_VAMANA_CODE_4BIT);
    uint32_t i, found;
    nodedb_error err;
    for (i = 0; i < 50; i++) { /* 0: those that are equal */
        bool itself = false;
        uint32_t j;
        q = query_of(s->base + i * 7 * s->dim, 0, 0);
        CHECK_EQ(nodedb_vamana_search_range(searcher, &q, 0, got, 100, &found, NULL, NULL), NODEDB_OK);
        for (j = 0; j < found; j++) itself = itself || got[j].id == i * 7, CHECK(got[j].distance == 0);
        CHECK(itself);
        CHECK_EQ(nodedb_vamana_search_range(searcher, &q, -1, got, 100, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 0);
        CHECK_EQ(nodedb_vamana_search_range(searcher, &q, -infinity, got, 100, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 0);
    }
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, infinity, got, 25, &found, NULL, NULL), NODEDB_OK);
    CHECK_EQ(found, 25);
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, infinity, got, 20000, &found, NULL, NULL), NODEDB_OK);
    CHECK_EQ(found, s->n);
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, nan, got, 20, &found, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(found, 0);
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, 1, got, 0, &found, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, 1, got, NODEDB_VAMANA_MAX_BEAM + 1, &found, NULL, &err),
             NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_vamana_search_range(searcher, NULL, 1, got, 1, &found, NULL, &err), NODEDB_ERR_INVALID);
    nodedb_vamana_searcher_destroy(searcher);

    index = nodedb_vamana_create(&c, NULL);
    index->code_due = 100;
    CHECK_EQ(nodedb_vamana_build(index, NULL, v, N, 1, NULL, NULL, NULL), NODEDB_OK);
    searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    for (i = 0; i < 40; i++) {
        uint32_t within = 0, j;
        q = query_of(v + i * DIM, 0, 128);
        CHECK_EQ(nodedb_vamana_search_range(searcher, &q, -3.5f, got, N, &found, NULL, NULL), NODEDB_OK);
        for (j = 0; j < found; j++) CHECK(got[j].distance <= -3.5f);
        for (j = 0; j < N; j++) {
            double dot = 0;
            uint32_t d;
            for (d = 0; d < DIM; d++) dot += (double)v[i * DIM + d] * (double)v[j * DIM + d];
            within += -dot < -3.5 - 1e-5;
        }
        CHECK(found + 1 >= within && found > 0);
    }
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
    free(v), free(got);
}

TEST(a_search_by_radius_that_fails_has_found_nothing) {
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_NONE);
    counting count;
    nodedb_vamana *index;
    nodedb_vamana_searcher *searcher;
    nodedb_vamana_result *got = (nodedb_vamana_result *)malloc(3000 * sizeof *got);
    nodedb_vamana_query q = query_of(s->queries, 0, 0);
    nodedb_error err;
    uint32_t found = 7;
    c.allocator = counting_allocator(&count);
    c.degree = 8, c.beam_build = 16;
    index = build_of(&c, s->base, 3000, 1);
    searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    count.fail_at = count.calls + 2; /* the first widening has memory, the next has not */
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, 1e30f, got, 2999, &found, NULL, &err), NODEDB_ERR_NO_MEMORY);
    CHECK_EQ(found, 0);
    CHECK_EQ(nodedb_vamana_search_range(searcher, &q, 1e30f, got, 2999, &found, NULL, &err), NODEDB_OK);
    CHECK_EQ(found, 2999);
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
    CHECK_EQ(count.bytes, 0);
    free(got);
}

/* ---- bitmaps ----------------------------------------------------------------------------------------------------- */

static bool is_even(void *ctx, uint64_t id) {
    ++*(uint64_t *)ctx;
    return id % 2 == 0;
}

TEST(a_bitmap_alone_or_with_a_callback_gets_right_results_at_any_selectivity) {
    static const uint32_t per_mille[] = {1000, 500, 100, 10, 1, 0};
    const sift *s = sift10k();
    const nodedb_vamana *index = shared_sift10k();
    nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    const uint64_t bits = 3 * (uint64_t)s->n / 4 - 3; /* ids behind it may not be returned */
    uint8_t *bitmap = (uint8_t *)malloc((size_t)(bits + 7) / 8);
    size_t at;
    int with;
    for (at = 0; at < sizeof per_mille / sizeof per_mille[0]; at++)
        for (with = 0; with < 2; with++) {
            uint32_t i, j, l, hits = 0, all = 0, pass = 0, scans = 0;
            uint64_t asked = 0;
            memset(bitmap, 0, (size_t)(bits + 7) / 8);
            for (i = 0; i < (bits + 7) / 8 * 8; i++)
                if (nodedb_mix64(i) % 1000 < per_mille[at]) bitmap[i / 8] |= (uint8_t)(1u << i % 8);
            for (i = 0; i < bits; i++) pass += (bitmap[i / 8] >> i % 8 & 1) && (!with || i % 2 == 0);
            for (i = 0; i < 30; i++) {
                nodedb_vamana_query q = query_of(s->queries + i * s->dim, 10, 64);
                nodedb_vamana_result got[10], want[10];
                nodedb_vamana_stats stats;
                uint32_t found, wanted;
                q.bitmap = bitmap, q.bitmap_bits = bits;
                if (with) q.filter = is_even, q.filter_ctx = &asked;
                CHECK_EQ(nodedb_vamana_search(searcher, &q, got, &found, &stats, NULL), NODEDB_OK);
                CHECK_EQ(nodedb_vamana_scan(searcher, &q, want, &wanted, NULL, NULL), NODEDB_OK);
                CHECK_EQ(found, pass < 10 ? pass : 10);
                CHECK_EQ(wanted, found);
                for (j = 0; j < found; j++) {
                    uint64_t id = got[j].id;
                    CHECK(id < bits && (bitmap[id / 8] >> id % 8 & 1) && (!with || id % 2 == 0));
                    for (l = 0; l < wanted; l++) hits += got[j].id == want[l].id;
                }
                all += found, scans += stats.scanned;
            }
            printf("     %u of 1000%s: recall@10 %.4f, %u of 30 scanned\n", (unsigned)per_mille[at],
                   with ? " and even" : "", all == 0 ? 1.0 : (double)hits / all, (unsigned)scans);
            CHECK(hits >= all * (per_mille[at] <= 10 ? 0.99 : 0.95));
            if (per_mille[at] <= 1) CHECK_EQ(scans, 30); /* looking at all of those few is cheaper */
            if (per_mille[at] == 1000) CHECK_EQ(scans, 0);
            CHECK(with == (asked > 0) || (with && pass == 0));
            if (!SLOW && with) CHECK(asked <= 60 * (uint64_t)(s->n + 256)); /* the callback is asked last */
        }
    free(bitmap);
    nodedb_vamana_searcher_destroy(searcher);
}

TEST(a_bitmap_of_no_bits_lets_nothing_pass_and_large_ids_are_beyond_it) {
    enum { N = 300, DIM = 8 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
    nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
    nodedb_vamana_searcher *s;
    nodedb_vamana_result got[20];
    nodedb_vamana_query q = query_of(v, 20, 0);
    uint8_t *bitmap = (uint8_t *)malloc(2);
    uint32_t i, found;
    uint64_t asked = 0;
    memset(bitmap, 0xFF, 2);
    for (i = 0; i < N; i++) /* 0 .. 9, then beyond 2^32, up to the largest id there is */
        CHECK_EQ(nodedb_vamana_insert(index, i < 10 ? i : UINT64_MAX - i + 10, v + i * DIM, NULL), NODEDB_OK);
    s = nodedb_vamana_searcher_create(index, NULL, NULL);
    q.bitmap = bitmap, q.bitmap_bits = 0, q.filter = is_even, q.filter_ctx = &asked;
    CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
    CHECK(found == 0 && asked == 0);
    q.bitmap_bits = 9, q.filter = NULL;
    CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
    CHECK_EQ(found, 9);
    for (i = 0; i < found; i++) CHECK(got[i].id < 9);
    q.bitmap_bits = 16;
    CHECK_EQ(nodedb_vamana_search_range(s, &q, 1e30f, got, 20, &found, NULL, NULL), NODEDB_OK);
    CHECK_EQ(found, 10);
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
    free(bitmap);
    free(v);
}

/* ---- two passes -------------------------------------------------------------------------------------------------- */

TEST(two_passes_give_the_same_graph_whatever_the_threads_and_find_no_less_than_one) {
    enum { N = SLOW ? 600 : 2500 };
    static const uint32_t threads[] = {1, 2, 3, 5};
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_U8, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_NONE);
    nodedb_vamana *one, *two = NULL;
    double once, twice;
    size_t at;
    c.degree = 16, c.beam_build = 24;
    one = build_of(&c, s->base, N, 2);
    c.passes = 2;
    for (at = 0; at < 4; at++) {
        nodedb_vamana *index = build_of(&c, s->base, N, threads[at]);
        CHECK(valid(index));
        CHECK_EQ(nodedb_vamana_count(index), N);
        if (two != NULL) CHECK(same_graph(two, index));
        if (two == NULL) two = index;
        else nodedb_vamana_destroy(index);
    }
    CHECK(!same_graph(one, two));
    once = recall(one, s->queries, s->query_count, 12, true), twice = recall(two, s->queries, s->query_count, 12, true);
    printf("     recall@10, beam 12: %.4f after one pass, %.4f after two\n", once, twice);
    CHECK(twice >= once);
    nodedb_vamana_destroy(one);
    nodedb_vamana_destroy(two);
}

typedef struct until { uint64_t stop, last, total, calls; bool falls; } until;
static bool stop_at(void *ctx, uint64_t done, uint64_t total) {
    until *u = (until *)ctx;
    u->falls = u->falls || done <= u->last;
    u->last = done, u->total = total, u->calls++;
    return done < u->stop;
}

TEST(a_build_cancelled_in_either_pass_says_so_and_leaves_a_valid_index) {
    enum { N = 1200 };
    static const uint64_t stops[] = {1, N / 2, N, N + 1, 3 * N / 2, 2 * N - 1};
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_I8, NODEDB_VAMANA_COSINE, NODEDB_VAMANA_CODE_4BIT);
    uint8_t *base = as_type(s->base, N * s->dim, NODEDB_VAMANA_I8);
    size_t at;
    c.degree = 12, c.beam_build = 16, c.passes = 2;
    for (at = 0; at <= sizeof stops / sizeof stops[0]; at++) {
        uint64_t stop = at < 6 ? stops[at] : UINT64_MAX, holds;
        nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
        until u = {0, 0, 0, 0, false};
        nodedb_status status;
        nodedb_error err;
        uint32_t i;
        u.stop = stop;
        index->code_due = 300;
        status = nodedb_vamana_build(index, NULL, base, N, 2, stop_at, &u, &err);
        CHECK_EQ(u.total, 2 * N);
        CHECK(!u.falls && u.calls > 0);
        CHECK_EQ(status, stop == UINT64_MAX || u.last == 2 * N ? NODEDB_OK : NODEDB_ERR_CANCELLED);
        holds = u.last < N ? u.last : N;
        CHECK_EQ(nodedb_vamana_count(index), holds);
        CHECK(valid(index));
        CHECK_EQ(wrong_codes(index), 0);
        CHECK_EQ(info_of(index).code_bits, holds >= 300 ? 4 : 0);
        if (u.last >= N) CHECK(recall(index, base, 20, 64, false) >= 0.85);
        for (i = 0; i < N; i++) /* insert the missing ones one by one */
            if (!nodedb_vamana_contains(index, i))
                CHECK_EQ(nodedb_vamana_insert(index, i, base + i * s->dim, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_count(index), N);
        CHECK(valid(index));
        nodedb_vamana_destroy(index);
    }
    free(base);
}

/* ---- signed bytes ------------------------------------------------------------------------------------------------ */

TEST(signed_bytes_come_back_as_they_were_from_minus_128_to_127) {
    enum { DIM = 256, WIDE = 65535 };
    int8_t *low = (int8_t *)malloc(WIDE), *high = (int8_t *)malloc(WIDE), all[DIM];
    float *out = (float *)malloc(WIDE * sizeof *out);
    int metric, i;
    for (i = 0; i < DIM; i++) all[i] = (int8_t)(i - 128);
    memset(low, 0x80, WIDE), memset(high, 0x7F, WIDE);
    for (metric = 0; metric < 3; metric++) {
        const double n = WIDE, far[] = {n * 255 * 255, n * 128 * 127, 2}, self[] = {0, -n * 128 * 128, 0};
        nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_I8, (nodedb_vamana_metric)metric,
                                           NODEDB_VAMANA_CODE_AUTO);
        nodedb_vamana *index = nodedb_vamana_create(&c, NULL);
        nodedb_vamana_searcher *s;
        nodedb_vamana_query q = query_of(low, 2, 0);
        nodedb_vamana_result got[2];
        uint32_t found;
        CHECK_EQ(nodedb_vamana_insert(index, 9, all, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_get(index, 9, out, NULL), NODEDB_OK);
        for (i = 0; i < DIM; i++) CHECK(out[i] == (float)(i - 128));
        CHECK_EQ(nodedb_vamana_type_of(index), NODEDB_VAMANA_I8);
        nodedb_vamana_destroy(index);
        c.dim = WIDE;
        index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(nodedb_vamana_insert(index, 1, low, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_insert(index, 2, high, NULL), NODEDB_OK);
        s = nodedb_vamana_searcher_create(index, NULL, NULL);
        CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
        CHECK_EQ(found, 2);
        CHECK(got[0].id == 1 && got[1].id == 2);
        CHECK(fabs((double)got[0].distance - self[metric]) <= 1e-6 * (1 + fabs(self[metric])));
        CHECK(fabs((double)got[1].distance - far[metric]) <= 1e-6 * (1 + fabs(far[metric])));
        CHECK_EQ(nodedb_vamana_get(index, 2, out, NULL), NODEDB_OK);
        for (i = 0; i < WIDE; i += 100) CHECK(out[i] == 127);
        CHECK_EQ(nodedb_vamana_remove(index, 1, NULL), NODEDB_OK);
        CHECK(!nodedb_vamana_contains(index, 1) && nodedb_vamana_contains(index, 2));
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(index);
    }
    free(out), free(high), free(low);
}

TEST(signed_bytes_have_the_metrics_own_distances_and_zeros_no_cosine) {
    enum { N = 200, DIM = 37 };
    static int8_t v[N * DIM];
    uint64_t state = test_seed;
    int metric, i, d;
    for (i = 0; i < N * DIM; i++) v[i] = i / DIM == 3 ? 0 : i / DIM < 3 ? -128 : (int8_t)test_random(&state);
    for (metric = 0; metric < 3; metric++) {
        nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_I8, (nodedb_vamana_metric)metric,
                                           NODEDB_VAMANA_CODE_AUTO);
        nodedb_vamana *index = build_of(&c, v, N, 1);
        nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
        nodedb_vamana_result got[N];
        uint32_t found, j;
        for (i = 0; i < 10; i++) {
            nodedb_vamana_query q = query_of(v + i * DIM, N, 0);
            CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, NULL, NULL), NODEDB_OK);
            CHECK_EQ(found, N);
            for (j = 0; j < found; j++) {
                const int8_t *x = v + got[j].id * DIM;
                double l2 = 0, dot = 0, xx = 0, qq = 0, want;
                for (d = 0; d < DIM; d++) {
                    double a = v[i * DIM + d], b = x[d];
                    l2 += (a - b) * (a - b), dot += a * b, xx += b * b, qq += a * a;
                }
                want = metric == 0 ? l2 : metric == 1 ? -dot : xx == 0 || qq == 0 ? 1 : 1 - dot / sqrt(xx * qq);
                CHECK(fabs((double)got[j].distance - want) <= 1e-5 * (1 + fabs(want)) * (metric == 2));
                if (metric < 2) CHECK((double)got[j].distance == want);
            }
        }
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(index);
    }
}

TEST(signed_bytes_inserted_one_by_one_are_found_like_a_batch_of_them) {
    enum { N = SLOW ? 500 : 2000, ASKED = 40 };
    const sift *s = sift10k();
    nodedb_vamana_config c = config_of(s->dim, NODEDB_VAMANA_I8, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_8BIT);
    uint8_t *base = as_type(s->base, N * s->dim, c.type), *queries = as_type(s->queries, ASKED * s->dim, c.type);
    nodedb_vamana *built = nodedb_vamana_create(&c, NULL), *single = nodedb_vamana_create(&c, NULL);
    double batch, one;
    uint32_t i;
    built->code_due = single->code_due = 300;
    CHECK_EQ(nodedb_vamana_build(built, NULL, base, N, 2, NULL, NULL, NULL), NODEDB_OK);
    for (i = 0; i < N; i++) CHECK_EQ(nodedb_vamana_insert(single, i, base + i * s->dim, NULL), NODEDB_OK);
    CHECK(info_of(built).code_bits == 8 && info_of(single).code_bits == 8);
    CHECK(wrong_codes(built) == 0 && wrong_codes(single) == 0 && valid(built) && valid(single));
    batch = recall(built, queries, ASKED, 40, false), one = recall(single, queries, ASKED, 40, false);
    printf("     I8: recall@10 %.4f built, %.4f inserted\n", batch, one);
    CHECK(batch >= 0.95 && one >= 0.95);
    for (i = 0; i < N; i += 2) CHECK_EQ(nodedb_vamana_remove(single, i, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_compact(single, NULL), NODEDB_OK);
    CHECK(valid(single) && wrong_codes(single) == 0 && recall(single, queries, ASKED, 40, false) >= 0.95);
    nodedb_vamana_destroy(single);
    nodedb_vamana_destroy(built);
    free(queries), free(base);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

TEST(memory_bytes_is_what_the_allocator_gave_and_follows_the_formula) {
    static const struct { nodedb_vamana_type type; nodedb_vamana_metric metric; uint32_t stride, norm; } shapes[] = {
        {NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, 448, 0}, {NODEDB_VAMANA_F32, NODEDB_VAMANA_IP, 448, 4},
        {NODEDB_VAMANA_U8, NODEDB_VAMANA_COSINE, 128, 4}, {NODEDB_VAMANA_I8, NODEDB_VAMANA_L2, 128, 0}};
    enum { DIM = 100, N = 400, CAPACITY = 1000 };
    float *v = random_vectors(N, DIM, test_seed);
    size_t at;
    int bits;
    uint32_t i;
    for (at = 0; at < 4; at++)
        for (bits = 0; bits <= 8; bits += 4) {
            nodedb_vamana_config c = config_of(DIM, shapes[at].type, shapes[at].metric,
                                               bits == 4   ? NODEDB_VAMANA_CODE_4BIT
                                               : bits == 8 ? NODEDB_VAMANA_CODE_8BIT
                                                           : NODEDB_VAMANA_CODE_NONE);
            /* rows of 30 neighbours take two cache lines; a table of 2048 is the first that is two thirds empty */
            /* beyond vector, row and norm: id, state, head and parent */
            uint64_t per_vector = shapes[at].stride + 128 + shapes[at].norm + 8 + 1 + 4 + 4;
            uint64_t formula = CAPACITY * per_vector + 2048 * 4, rest;
            nodedb_vamana *index;
            counting count;
            c.degree = 30, c.beam_build = 32, c.capacity = CAPACITY;
            c.allocator = counting_allocator(&count);
            index = nodedb_vamana_create(&c, NULL);
            rest = sizeof *index + sizeof *index->readers + sizeof *index->arrays +
                   nodedb_vamana_searcher_memory_bytes(index->writer);
            CHECK_EQ(nodedb_vamana_memory_bytes(index), count.bytes);
            CHECK_EQ(count.bytes, formula + rest);
            index->code_due = N / 2;
            for (i = 0; i < N; i++) {
                CHECK_EQ(nodedb_vamana_insert(index, i, v + i * DIM, NULL), NODEDB_OK);
                CHECK_EQ(nodedb_vamana_memory_bytes(index), count.bytes);
            }
            if (bits == 4) formula += CAPACITY * 64;
            if (bits == 8) formula += CAPACITY * 128;
            if (bits != 0) formula += sizeof(nodedb_vamana__coder) + DIM * sizeof(float);
            CHECK_EQ(count.bytes, formula + rest);
            CHECK_EQ(nodedb_vamana_compact(index, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_memory_bytes(index), count.bytes);
            nodedb_vamana_destroy(index);
            CHECK_EQ(count.bytes, 0);
        }
    free(v);
}

TEST(large_arrays_are_asked_for_in_huge_pages_unless_told_not_to) {
    int without;
    for (without = 0; without < 2; without++) {
        nodedb_vamana_config c = config_of(64, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO);
        const char *path = path_in_test_dir("file");
        nodedb_vamana_open_config o;
        nodedb_vamana *index;
        counting count;
        float v[64] = {1};
        c.capacity = 20000, c.no_huge_pages = without != 0; /* 5 MB of vectors */
        c.allocator = counting_allocator(&count);
        index = nodedb_vamana_create(&c, NULL);
        CHECK_EQ(count.align_max, without ? 64 : NODEDB_VAMANA__HUGE_BYTES);
        CHECK_EQ(nodedb_vamana_insert(index, 1, v, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
        nodedb_vamana_destroy(index);
        memset(&o, 0, sizeof o);
        o.capacity = 20000, o.no_huge_pages = without != 0, o.allocator = counting_allocator(&count);
        index = nodedb_vamana_open(path, &o, NULL);
        CHECK_EQ(count.align_max, without ? NODEDB_VAMANA__BLOCK : NODEDB_VAMANA__HUGE_BYTES);
        CHECK(index != NULL && nodedb_vamana_memory_bytes(index) == count.bytes);
        nodedb_vamana_destroy(index);
        CHECK_EQ(count.bytes, 0);
    }
}

/* Building, inserting, coding, growing, saving and opening with an allocator that may fail: each step does its work or
 * says NO_MEMORY and has changed nothing. Returns whether everything succeeded. */
static bool live_a_life(counting *count, nodedb_allocator allocator, const float *v, nodedb_vamana_type type,
                        const char *path) {
    enum { DIM = 8 };
    nodedb_vamana_config c = config_of(DIM, type, NODEDB_VAMANA_IP, NODEDB_VAMANA_CODE_4BIT);
    nodedb_vamana *index, *opened;
    nodedb_vamana_searcher *s;
    nodedb_vamana_result got[10];
    nodedb_vamana_query q = query_of(v, 10, 20);
    nodedb_vamana_open_config o;
    const size_t size = vector_bytes(type, DIM);
    const uint8_t *bytes = (const uint8_t *)v;
    nodedb_status status;
    nodedb_error err;
    uint32_t i, found, mode;
    uint64_t held;
    bool good = true;
    c.degree = 8, c.beam_build = 12, c.allocator = allocator, c.passes = 2;
    index = nodedb_vamana_create(&c, &err);
    if (index == NULL) {
        CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY);
        return false;
    }
    index->code_due = 50;
#define STEP(call)                                                                                                     \
    do {                                                                                                               \
        held = nodedb_vamana_count(index);                                                                             \
        status = (call);                                                                                               \
        CHECK(status == NODEDB_OK || status == NODEDB_ERR_NO_MEMORY);                                                  \
        if (status != NODEDB_OK) CHECK_EQ(nodedb_vamana_count(index), held);                                           \
        CHECK(valid(index) && wrong_codes(index) == 0);                                                                \
        CHECK_EQ(nodedb_vamana_memory_bytes(index), count->bytes);                                                     \
        good = good && status == NODEDB_OK;                                                                            \
    } while (0)
    STEP(nodedb_vamana_build(index, NULL, bytes, 70, 2, NULL, NULL, &err));
    good = good && index->arrays->codes != NULL;
    for (i = 0; i < 40; i++) STEP(nodedb_vamana_insert(index, 100 + i, bytes + (80 + i) * size, &err));
    index->code_due = 0;
    for (i = 0; i < 20; i++) {
        STEP(nodedb_vamana_insert(index, i, bytes + (130 + i) * size, &err));
        if (nodedb_vamana_contains(index, 100 + i)) STEP(nodedb_vamana_remove(index, 100 + i, &err));
        if (i == 1) STEP(nodedb_vamana_reserve(index, 200, &err));
    }
    index->code_due = 0;
    STEP(nodedb_vamana_compact(index, &err));
    STEP(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, &err));
#undef STEP
    s = nodedb_vamana_searcher_create(index, NULL, &err);
    if (s != NULL && nodedb_vamana_count(index) > 0) {
        q.beam = 200;
        status = nodedb_vamana_search(s, &q, got, &found, NULL, &err);
        CHECK(status == NODEDB_OK || status == NODEDB_ERR_NO_MEMORY);
        CHECK_EQ(found, status == NODEDB_OK ? 10 : 0);
        good = good && status == NODEDB_OK;
    }
    good = good && s != NULL;
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(index);
    CHECK_EQ(count->bytes, 0);
    memset(&o, 0, sizeof o);
    o.allocator = allocator;
    for (mode = 0; mode < 2 && good; mode++) {
        o.mode = mode ? NODEDB_VAMANA_ON_DISK : NODEDB_VAMANA_IN_MEMORY;
        opened = nodedb_vamana_open(path, &o, &err);
        if (opened == NULL) {
            CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY);
            return false;
        }
        CHECK_EQ(nodedb_vamana_memory_bytes(opened), count->bytes);
        s = nodedb_vamana_searcher_create(opened, NULL, &err);
        good = good && s != NULL;
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(opened);
    }
    return good;
}

TEST(any_allocation_may_fail_once_or_from_then_on_without_harm_or_leak) {
    enum { N = 200, DIM = 8 };
    float *v = random_vectors(N, DIM, test_seed);
    char path[700];
    int type, on;
    snprintf(path, sizeof path, "%s", path_in_test_dir("life"));
    for (type = 0; type < 3; type += 2)
        for (on = type != 0 && !test_long; on < 2; on++) {
            uint64_t at;
            bool good = false;
            for (at = 1; !good && at < 400; at++) {
                counting count;
                nodedb_allocator allocator = counting_allocator(&count);
                count.fail_at = at, count.fail_on = on != 0;
                good = live_a_life(&count, allocator, v, (nodedb_vamana_type)type, path) && count.calls < at;
                CHECK_EQ(count.bytes, 0);
            }
            CHECK(good && at > 60);
        }
    free(v);
}

TEST(without_memory_for_codes_there_are_none_and_they_are_not_tried_with_every_insert) {
    enum { N = 1500, DIM = 64 };
    float *v = random_vectors(N, DIM, test_seed);
    nodedb_vamana_config c = config_of(DIM, NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT);
    nodedb_vamana *index;
    counting count;
    uint64_t before;
    uint32_t i;
    c.degree = 8, c.beam_build = 12, c.capacity = N;
    c.allocator = counting_allocator(&count);
    index = nodedb_vamana_create(&c, NULL);
    index->code_due = 200;
    count.fail_over = 40000; /* no codes */
    before = count.calls;
    for (i = 0; i < 800; i++) CHECK_EQ(nodedb_vamana_insert(index, i, v + i * DIM, NULL), NODEDB_OK);
    CHECK_EQ(info_of(index).code_bits, 0);
    CHECK(count.calls > before && count.calls < before + 60);
    for (i = 0; i < 100; i++) CHECK_EQ(nodedb_vamana_remove(index, i, NULL), NODEDB_OK);
    before = count.calls;
    while (nodedb_vamana_maintain(index, 1000)) {
    }
    CHECK(count.calls < before + 10);
    count.fail_over = 0;
    for (; i < N; i++) CHECK_EQ(nodedb_vamana_insert(index, i, v + i * DIM, NULL), NODEDB_OK);
    CHECK_EQ(info_of(index).code_bits, 4); /* it comes to them when there is memory again */
    CHECK_EQ(wrong_codes(index), 0);
    nodedb_vamana_destroy(index);
    CHECK_EQ(count.bytes, 0);
    free(v);
}

TEST_MAIN("vamana_codes")
