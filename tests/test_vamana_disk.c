/* nodedb_vamana.h in a file: the two layouts, searched where they lie; what damage does to them; saving in slices while
 * the index changes; power cuts and kills during a save. Small sets, made here, so that everything can be tried. The
 * rooms:
 *
 *   DATA         vectors, indexes and files
 *   LAYOUTS      both answer as memory does
 *   TOGETHER     many queries in one call: refused memory, reads that fail
 *   DOUBT        codes that blur: how much is found, and how much is read
 *   DAMAGE       quarantine, verify, truncation
 *   SAVING       the index changes meanwhile; memory is short
 *   SLICES       what one step asks of the disk
 *   POWER CUTS   and kills during a save */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "refusing_allocator.h"
#include "simdisk.h"
#include "test.h"
#include "vamana_file.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { DIM = 24, K = 5 };

/* ===================================================================================================================
 * DATA: vectors, indexes and files
 * ================================================================================================================ */

static uint8_t vectors[6000][DIM]; /* the same for every test; clusters, so that neighbours are near */
static const float *floats_of(uint32_t i) {
    static float f[DIM];
    uint32_t j;
    for (j = 0; j < DIM; j++) f[j] = (float)vectors[i][j];
    return f;
}
static const void *vector_of(nodedb_vamana_type type, uint32_t i) {
    return type == NODEDB_VAMANA_F32 ? (const void *)floats_of(i) : vectors[i];
}

__attribute__((constructor)) static void make_vectors(void) {
    uint64_t state = 5;
    uint32_t i, j;
    for (i = 0; i < 6000; i++) {
        uint64_t centre = i % 97 * 1000;
        for (j = 0; j < DIM; j++)
            vectors[i][j] = (uint8_t)(20 + nodedb_mix64(centre + j) % 60 + test_random(&state) % 25);
    }
}

static nodedb_vamana_config small_config(nodedb_vamana_type type, nodedb_vamana_metric metric) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.type = type, c.metric = metric, c.degree = 12, c.beam_build = 24;
    return c;
}

static nodedb_vamana *filled(const nodedb_vamana_config *c, uint32_t n, uint32_t removed) {
    nodedb_vamana *index = nodedb_vamana_create(c, NULL);
    uint32_t i;
    for (i = 0; i < n; i++) CHECK_EQ(nodedb_vamana_insert(index, 10 + i, vector_of(c->type, i), NULL), NODEDB_OK);
    for (i = 0; i < removed; i++) CHECK_EQ(nodedb_vamana_remove(index, 10 + 3 * i, NULL), NODEDB_OK);
    return index;
}

static void save_as(nodedb_vamana *index, const char *path, nodedb_vamana_layout layout) {
    bool more = true;
    nodedb_error err;
    err.message[0] = 0;
    CHECK_EQ(nodedb_vamana_save_begin(index, path, layout, &err), NODEDB_OK);
    while (more && nodedb_vamana_save_step(index, 50, &more, &err) == NODEDB_OK) {
    }
    if (more) test_fail(__FILE__, __LINE__, err.message);
}

static const char *path_of(const char *name) {
    static char paths[4][700];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 700, "%s/%s", test_dir(), name);
    return path;
}

static uint8_t *read_whole(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    uint8_t *p;
    *bytes = 0;
    if (f == NULL) return NULL;
    fseek(f, 0, SEEK_END), *bytes = (size_t)ftell(f), rewind(f);
    p = (uint8_t *)malloc(*bytes + 1);
    if (fread(p, 1, *bytes, f) != *bytes) *bytes = 0;
    fclose(f);
    return p;
}

static bool same_file(const char *a, const char *b) {
    size_t na, nb;
    uint8_t *pa = read_whole(a, &na), *pb = read_whole(b, &nb);
    bool same = pa != NULL && pb != NULL && na == nb && memcmp(pa, pb, na) == 0;
    free(pa), free(pb);
    return same;
}

static nodedb_vamana_open_config memory_config(memory_file *f, nodedb_vamana_mode mode) {
    nodedb_vamana_open_config o;
    memset(&o, 0, sizeof o);
    o.mode = mode;
    memory_io(&o.io, f);
    return o;
}

static nodedb_vamana_query query_of(const void *vector, uint32_t beam) {
    nodedb_vamana_query q;
    memset(&q, 0, sizeof q);
    q.vector = vector, q.k = K, q.beam = beam;
    return q;
}

/* The squared distance of two vectors of the set. */
static double apart(uint32_t a, uint32_t b) {
    double sum = 0;
    uint32_t j;
    for (j = 0; j < DIM; j++) sum += ((double)vectors[a][j] - vectors[b][j]) * ((double)vectors[a][j] - vectors[b][j]);
    return sum;
}

/* ===================================================================================================================
 * LAYOUTS: both answer as memory does
 * ================================================================================================================ */

static uint32_t common(const nodedb_vamana_result *a, uint32_t na, const nodedb_vamana_result *b, uint32_t nb) {
    uint32_t i, j, n = 0;
    for (i = 0; i < na; i++)
        for (j = 0; j < nb; j++) n += a[i].id == b[j].id;
    return n;
}

TEST(both_layouts_find_what_memory_finds_by_every_way_of_reading) {
    static const char *const names[2] = {"resident", "packed"};
    enum { N = 2500, ASKED = 60 };
    int type, metric, layout, fetch;
    for (type = 0; type < 3; type++) {
        for (metric = 0; metric < 3; metric++) {
            nodedb_vamana_config c = small_config((nodedb_vamana_type)type, (nodedb_vamana_metric)metric);
            nodedb_vamana *index;
            nodedb_vamana_searcher *sm;
            if (SLOW && type != metric) continue;
            index = filled(&c, N, N / 5);
            sm = nodedb_vamana_searcher_create(index, NULL, NULL);
            for (layout = 0; layout < 2; layout++) {
                const char *path = path_of(names[layout]);
                save_as(index, path, (nodedb_vamana_layout)layout);
                CHECK_EQ(nodedb_vamana_verify(path, NULL, NULL, NULL, NULL), NODEDB_OK);
                for (fetch = 0; fetch < 3; fetch++) {
                    nodedb_vamana_open_config o;
                    nodedb_vamana *disk;
                    nodedb_vamana_searcher *s;
                    nodedb_vamana_result got[K], want[K];
                    nodedb_vamana_stats stats;
                    nodedb_error err;
                    uint32_t i, j, found, wanted, hits = 0, usual = 0, all = 0;
                    float out[DIM], same[DIM];
                    memset(&o, 0, sizeof o);
                    o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = (nodedb_vamana_fetch)fetch, o.no_direct = fetch == 1;
                    disk = nodedb_vamana_open(path, &o, &err);
                    REQUIRE(disk != NULL);
                    s = nodedb_vamana_searcher_create(disk, NULL, &err);
                    REQUIRE(s != NULL);
                    for (i = 0; i < ASKED; i++) {
                        uint32_t at = i * 41 % N;
                        nodedb_vamana_query q = query_of(vector_of(c.type, at), 40);
                        bool more = true;
                        if (i == ASKED / 2) CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, &err), NODEDB_OK);
                        CHECK_EQ(nodedb_vamana_search(s, &q, got, &found, &stats, &err), NODEDB_OK);
                        CHECK_EQ(nodedb_vamana_scan(sm, &q, want, &wanted, NULL, NULL), NODEDB_OK);
                        CHECK(found == K && wanted == K && stats.damaged == 0 && !stats.scanned && stats.retries == 0);
                        CHECK(i > 0 || stats.reads > 0);
                        hits += common(got, K, want, K), all += K;
                        CHECK_EQ(nodedb_vamana_search(sm, &q, got, &found, NULL, NULL), NODEDB_OK);
                        usual += common(got, K, want, K);
                        for (j = 0; j + 1 < K; j++) CHECK(got[j].distance <= got[j + 1].distance);
                        for (j = 0; j < K; j++) CHECK(!nodedb_vamana_contains(index, got[j].id) == 0);
                        if (i % 20 != 0) continue;
                        CHECK_EQ(nodedb_vamana_scan(s, &q, got, &found, NULL, &err), NODEDB_OK);
                        for (j = 0; j < K; j++)
                            CHECK(got[j].id == want[j].id && fabsf(got[j].distance - want[j].distance) <=
                                                                 1e-5f * (1 + fabsf(want[j].distance)));
                    }
                    CHECK(hits + 3 >= usual && hits * 100 >= all * 94);
                    CHECK_EQ(nodedb_vamana_count(disk), nodedb_vamana_count(index));
                    CHECK(nodedb_vamana_contains(disk, 11) && !nodedb_vamana_contains(disk, 10));
                    CHECK_EQ(nodedb_vamana_get(disk, 11, out, &err), NODEDB_OK);
                    CHECK_EQ(nodedb_vamana_get(index, 11, same, &err), NODEDB_OK);
                    CHECK(memcmp(out, same, sizeof out) == 0);
                    CHECK_EQ(nodedb_vamana_get(disk, 10, out, &err), NODEDB_ERR_NOT_FOUND);
                    nodedb_vamana_searcher_destroy(s);
                    nodedb_vamana_destroy(disk);
                }
            }
            nodedb_vamana_searcher_destroy(sm);
            nodedb_vamana_destroy(index);
        }
    }
}

/* Alone or among many, in either layout, cold or loaded, a question has one answer. */
TEST(many_questions_get_the_answers_of_each) {
    enum { N = 4000, ASKED = 150 };
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = filled(&c, N, 500);
    int layout, loaded;
    for (layout = 0; layout < 2; layout++)
        for (loaded = 0; loaded < 2; loaded++) {
            const char *path = path_of("many");
            nodedb_vamana_open_config o;
            nodedb_vamana *disk;
            nodedb_vamana_searcher *s;
            static nodedb_vamana_result many[ASKED * K];
            nodedb_vamana_result one[K];
            nodedb_vamana_query q = query_of(NULL, 30);
            nodedb_vamana_stats stats, total, sum;
            nodedb_error err;
            uint32_t found[ASKED], n, i, j;
            uint64_t bytes;
            bool more;
            save_as(index, path, (nodedb_vamana_layout)layout);
            memset(&o, 0, sizeof o);
            memset(&sum, 0, sizeof sum);
            o.mode = NODEDB_VAMANA_ON_DISK;
            disk = nodedb_vamana_open(path, &o, &err);
            s = nodedb_vamana_searcher_create(disk, NULL, &err);
            REQUIRE(s != NULL);
            if (loaded) CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, NULL), NODEDB_OK);
            bytes = nodedb_vamana_searcher_memory_bytes(s);
            CHECK_EQ(nodedb_vamana_search_many(s, &q, vectors, ASKED, many, found, &total, &err), NODEDB_OK);
            CHECK(nodedb_vamana_searcher_memory_bytes(s) > bytes);
            for (i = 0; i < ASKED; i++) {
                q.vector = vectors[i];
                CHECK_EQ(nodedb_vamana_search(s, &q, one, &n, &stats, &err), NODEDB_OK);
                CHECK(n == K && found[i] == K);
                for (j = 0; j < K; j++)
                    CHECK(one[j].id == many[i * K + j].id && one[j].distance == many[i * K + j].distance);
                sum.hops += stats.hops, sum.distances += stats.distances, sum.exact += stats.exact;
            }
            CHECK(total.hops == sum.hops && total.distances == sum.distances && total.exact == sum.exact);
            CHECK(total.reads > 0 && total.damaged == 0 && !total.scanned);
            nodedb_vamana_searcher_destroy(s);
            nodedb_vamana_destroy(disk);
        }
    nodedb_vamana_destroy(index);
}

static bool is_third(void *ctx, uint64_t id) {
    (void)ctx;
    return id % 3 == 0;
}
static bool is_rare(void *ctx, uint64_t id) {
    (void)ctx;
    return id % 500 == 7;
}

TEST(filters_and_radii_work_in_the_packed_layout) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = filled(&c, 4000, 0), *disk;
    const char *path = path_of("packed");
    nodedb_vamana_open_config o;
    nodedb_vamana_searcher *s, *sm;
    uint32_t i, j, n, m, hits = 0, within = 0, truly = 0;
    nodedb_vamana_result got[K], want[K], near[64], all[64];
    save_as(index, path, NODEDB_VAMANA_PACKED);
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK;
    disk = nodedb_vamana_open(path, &o, NULL);
    s = nodedb_vamana_searcher_create(disk, NULL, NULL), sm = nodedb_vamana_searcher_create(index, NULL, NULL);
    REQUIRE(s != NULL && sm != NULL);
    for (i = 0; i < 40; i++) {
        nodedb_vamana_query q = query_of(vectors[i * 90], 32);
        nodedb_vamana_stats stats;
        q.filter = i % 2 == 0 ? is_third : is_rare;
        CHECK_EQ(nodedb_vamana_search(s, &q, got, &n, &stats, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_scan(sm, &q, want, &m, NULL, NULL), NODEDB_OK);
        CHECK(n == K && m == K);
        for (j = 0; j < n; j++) CHECK(q.filter(NULL, got[j].id));
        if (i % 2 == 1) for (j = 0; j < n; j++) CHECK(stats.scanned && got[j].id == want[j].id);
        hits += common(got, n, want, m);
        q.filter = NULL;
        CHECK_EQ(nodedb_vamana_search_range(s, &q, 2500, near, 64, &n, NULL, NULL), NODEDB_OK);
        q.k = 64;
        CHECK_EQ(nodedb_vamana_scan(sm, &q, all, &m, NULL, NULL), NODEDB_OK);
        for (j = 0; j < n; j++) CHECK(near[j].distance <= 2500);
        for (j = 0; j < m && all[j].distance <= 2500; j++) truly++;
        within += common(near, n, all, m);
    }
    CHECK(hits >= 40 * K - 4);
    CHECK(truly > 400 && within * 100 >= truly * 97);
    nodedb_vamana_searcher_destroy(s), nodedb_vamana_searcher_destroy(sm);
    nodedb_vamana_destroy(disk), nodedb_vamana_destroy(index);
}

/* A record longer than a block, and rows whose stride is no divisor of a chunk. */
TEST(long_records_and_odd_rows_are_read_whole) {
    enum { N = 300, WIDE = 1500 };
    float *v = (float *)malloc((size_t)N * WIDE * sizeof *v);
    uint64_t state = test_seed;
    nodedb_vamana_config c;
    nodedb_vamana *index;
    uint32_t i, j;
    int layout;
    for (i = 0; i < N * WIDE; i++) /* along a line, so that any graph leads to all of them */
        v[i] = (float)(i / WIDE * 10 * (nodedb_mix64(i % WIDE) % 100) / 100 + test_random(&state) % 5);
    memset(&c, 0, sizeof c);
    c.dim = WIDE, c.degree = 20, c.beam_build = 30;
    index = nodedb_vamana_create(&c, NULL);
    CHECK_EQ(nodedb_vamana_build(index, NULL, v, N, 1, NULL, NULL, NULL), NODEDB_OK);
    for (layout = 0; layout < 2; layout++) {
        const char *path = path_of("wide");
        nodedb_vamana_open_config o;
        nodedb_vamana *disk;
        nodedb_vamana_searcher *s;
        int fetch;
        save_as(index, path, (nodedb_vamana_layout)layout);
        for (fetch = 0; fetch < 3; fetch++) {
            memset(&o, 0, sizeof o);
            o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = (nodedb_vamana_fetch)fetch;
            disk = nodedb_vamana_open(path, &o, NULL);
            s = nodedb_vamana_searcher_create(disk, NULL, NULL);
            REQUIRE(s != NULL);
            for (i = 0; i < N; i += 7) {
                nodedb_vamana_query q = query_of(v + (size_t)i * WIDE, 40);
                nodedb_vamana_result r[K];
                uint32_t n;
                CHECK_EQ(nodedb_vamana_search(s, &q, r, &n, NULL, NULL), NODEDB_OK);
                CHECK(n == K && r[0].id == i && r[0].distance == 0);
            }
            nodedb_vamana_searcher_destroy(s);
            nodedb_vamana_destroy(disk);
        }
        disk = nodedb_vamana_open(path, NULL, NULL); /* into memory */
        for (i = 0; i < N && disk != NULL; i += 50) {
            float out[WIDE], same[WIDE];
            CHECK_EQ(nodedb_vamana_get(disk, i, out, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_get(index, i, same, NULL), NODEDB_OK);
            for (j = 0; j < WIDE; j++) CHECK(out[j] == same[j]);
        }
        CHECK(disk != NULL);
        nodedb_vamana_destroy(disk);
    }
    nodedb_vamana_destroy(index);
    free(v);
}

TEST(a_packed_file_in_memory_is_the_same_index) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, NODEDB_VAMANA_IP);
    nodedb_vamana *index = filled(&c, 900, 200), *opened;
    char first[700], second[700];
    snprintf(first, sizeof first, "%s", path_of("first")), snprintf(second, sizeof second, "%s", path_of("second"));
    save_as(index, first, NODEDB_VAMANA_PACKED);
    opened = nodedb_vamana_open(first, NULL, NULL);
    REQUIRE(opened != NULL);
    save_as(opened, second, NODEDB_VAMANA_PACKED);
    CHECK(same_file(first, second));
    save_as(index, first, NODEDB_VAMANA_RESIDENT), save_as(opened, second, NODEDB_VAMANA_RESIDENT);
    CHECK(same_file(first, second));
    nodedb_vamana_destroy(opened), nodedb_vamana_destroy(index);
}

TEST(a_whole_save_has_the_layout_that_was_asked_for) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = filled(&c, 600, 50);
    char whole[700], sliced[700];
    nodedb_error err;
    snprintf(whole, sizeof whole, "%s", path_of("whole")), snprintf(sliced, sizeof sliced, "%s", path_of("sliced"));
    for (int layout = 0; layout < 2; layout++) {
        uint8_t *file;
        size_t bytes;
        CHECK_EQ(nodedb_vamana_save(index, whole, (nodedb_vamana_layout)layout, &err), NODEDB_OK);
        save_as(index, sliced, (nodedb_vamana_layout)layout);
        CHECK(same_file(whole, sliced));
        file = read_whole(whole, &bytes);
        REQUIRE(file != NULL && bytes > 4096);
        CHECK_EQ(nodedb_get_u32(file + 216), layout);
        CHECK((section(file, ROWS) == section(file, HEADS)) == (layout == NODEDB_VAMANA_PACKED));
        free(file);
    }
    CHECK_EQ(nodedb_vamana_save(index, whole, (nodedb_vamana_layout)2, &err), NODEDB_ERR_INVALID);
    nodedb_vamana_destroy(index);
}

/* An index of `c` where it lives: in memory, in a resident file, in a packed one. The other two go to `path`. */
enum { IN_MEMORY, IN_RESIDENT, IN_PACKED, WAYS };
static nodedb_vamana *living(const nodedb_vamana_config *c, int way, uint32_t n, uint32_t removed, const char *path) {
    nodedb_vamana *index = filled(c, n, removed);
    nodedb_vamana_open_config o;
    nodedb_error err;
    if (way == IN_MEMORY) return index;
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK;
    CHECK_EQ(nodedb_vamana_save(index, path, way == IN_PACKED ? NODEDB_VAMANA_PACKED : NODEDB_VAMANA_RESIDENT, &err),
             NODEDB_OK);
    nodedb_vamana_destroy(index);
    index = nodedb_vamana_open(path, &o, &err);
    if (index == NULL) test_fail(__FILE__, __LINE__, err.message);
    return index;
}

TEST(a_stored_vector_comes_back_in_its_own_type_wherever_the_index_lives) {
    const char *path = path_of("index");
    for (int type = 0; type < 3; type++)
        for (int metric = 0; metric < 3; metric++)
            for (int way = 0; way < WAYS; way++) {
                nodedb_vamana_config c = small_config((nodedb_vamana_type)type, (nodedb_vamana_metric)metric);
                nodedb_vamana *index = living(&c, way, 120, 10, path);
                size_t bytes = type == NODEDB_VAMANA_F32 ? DIM * sizeof(float) : DIM;
                nodedb_error err;
                REQUIRE(index != NULL);
                for (uint32_t i = 0; i < 120; i++) {
                    bool removed = i % 3 == 0 && i < 30;
                    uint8_t guarded[DIM * sizeof(float) + 1];
                    float stored[DIM];
                    guarded[bytes] = 77;
                    CHECK_EQ(nodedb_vamana_get_stored(index, 10 + i, guarded, &err),
                             removed ? NODEDB_ERR_NOT_FOUND : NODEDB_OK);
                    CHECK_EQ(guarded[bytes], 77); /* not a byte more */
                    if (removed) continue;
                    if (type != NODEDB_VAMANA_F32 || metric != NODEDB_VAMANA_COSINE) {
                        CHECK(memcmp(guarded, vector_of((nodedb_vamana_type)type, i), bytes) == 0);
                        continue;
                    }
                    memcpy(stored, guarded, sizeof stored); /* COSINE: of length 1, and in the same direction */
                    double length = 0, along = 0, squares = 0;
                    for (uint32_t j = 0; j < DIM; j++) {
                        length += (double)stored[j] * (double)stored[j];
                        along += (double)stored[j] * vectors[i][j], squares += (double)vectors[i][j] * vectors[i][j];
                    }
                    CHECK(fabs(length - 1) < 1e-5 && fabs(along - sqrt(squares)) < 1e-5 * sqrt(squares));
                }
                CHECK_EQ(nodedb_vamana_get_stored(index, 10, NULL, &err), NODEDB_ERR_INVALID);
                CHECK_EQ(nodedb_vamana_get_stored(NULL, 10, vectors[0], &err), NODEDB_ERR_INVALID);
                nodedb_vamana_destroy(index);
            }
}

static bool is_another(void *ctx, uint64_t id) { return id != *(const uint64_t *)ctx; }

TEST(a_question_about_an_id_is_the_question_about_its_vector) {
    const char *path = path_of("index");
    for (int type = 0; type < 3; type++)
        for (int metric = 0; metric < 3; metric++)
            for (int way = 0; way < WAYS; way++) {
                nodedb_vamana_config c = small_config((nodedb_vamana_type)type, (nodedb_vamana_metric)metric);
                nodedb_vamana *index = living(&c, way, 900, 10, path);
                nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
                nodedb_vamana_result by_id[64], by_vector[64];
                uint32_t n, m;
                nodedb_error err;
                REQUIRE(s != NULL);
                for (uint64_t id = 41; id < 900; id += 97) {
                    uint8_t stored[DIM * sizeof(float)];
                    nodedb_vamana_query q = query_of(NULL, 40), plain = query_of(stored, 40);
                    float radius;
                    q.by_id = true, q.id = id;
                    CHECK_EQ(nodedb_vamana_get_stored(index, id, stored, &err), NODEDB_OK);
                    CHECK_EQ(nodedb_vamana_search(s, &q, by_id, &n, NULL, &err), NODEDB_OK);
                    CHECK_EQ(nodedb_vamana_search(s, &plain, by_vector, &m, NULL, &err), NODEDB_OK);
                    CHECK(n == K && m == K);
                    for (uint32_t i = 0; i < n; i++)
                        CHECK(by_id[i].id == by_vector[i].id && by_id[i].distance == by_vector[i].distance);
                    if (metric != NODEDB_VAMANA_IP) CHECK(by_id[0].distance < 1e-5f); /* itself is its nearest */
                    radius = by_id[K - 1].distance;
                    CHECK_EQ(nodedb_vamana_scan(s, &q, by_id, &n, NULL, &err), NODEDB_OK);
                    CHECK_EQ(nodedb_vamana_scan(s, &plain, by_vector, &m, NULL, &err), NODEDB_OK);
                    CHECK(n == K && m == K && by_id[K - 1].id == by_vector[K - 1].id);
                    CHECK_EQ(nodedb_vamana_search_range(s, &q, radius, by_id, 64, &n, NULL, &err), NODEDB_OK);
                    CHECK_EQ(nodedb_vamana_search_range(s, &plain, radius, by_vector, 64, &m, NULL, &err), NODEDB_OK);
                    CHECK(n == m && n >= 1 && by_id[n - 1].id == by_vector[n - 1].id);
                    q.filter = is_another, q.filter_ctx = &q.id;
                    CHECK_EQ(nodedb_vamana_search(s, &q, by_id, &n, NULL, &err), NODEDB_OK);
                    CHECK_EQ(n, K);
                    for (uint32_t i = 0; i < n; i++) CHECK(by_id[i].id != id);
                    CHECK_EQ(nodedb_vamana_search_many(s, &q, stored, 1, by_id, &n, NULL, &err), NODEDB_ERR_INVALID);
                    q.id = id < 700 ? 10 : 5000; /* removed; never there */
                    CHECK_EQ(nodedb_vamana_search(s, &q, by_id, &n, NULL, &err), NODEDB_ERR_NOT_FOUND);
                    CHECK_EQ(n, 0);
                    CHECK_HAS(err.message, id < 700 ? "10" : "5000");
                    CHECK_EQ(nodedb_vamana_search(s, &q, by_id, &n, NULL, NULL), NODEDB_ERR_NOT_FOUND);
                }
                nodedb_vamana_searcher_destroy(s);
                nodedb_vamana_destroy(index);
            }
}

TEST(opening_on_disk_reads_the_header_and_no_more_however_large_the_file) {
    uint64_t reads[2] = {0, 0};
    int large, layout;
    for (layout = 0; layout < 2; layout++)
        for (large = 0; large < 2; large++) {
            nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, NODEDB_VAMANA_L2);
            nodedb_vamana *index = filled(&c, large ? 5000 : 60, 20), *disk;
            const char *path = path_of("file");
            nodedb_vamana_open_config o;
            nodedb_vamana_info info;
            memory_file f;
            bool more = true;
            uint64_t slices = 0;
            save_as(index, path, (nodedb_vamana_layout)layout);
            f.bytes = read_whole(path, &f.size), f.reads = 0;
            o = memory_config(&f, NODEDB_VAMANA_ON_DISK);
            disk = nodedb_vamana_open("file", &o, NULL);
            REQUIRE(disk != NULL);
            reads[large] = f.reads;
            CHECK(f.reads <= 5);
            while (more) {
                uint64_t before = f.reads;
                CHECK_EQ(nodedb_vamana_load(disk, 1, &more, NULL), NODEDB_OK);
                CHECK(f.reads - before <= 140); /* a chunk and its checksums, or a batch of nodes */
                slices++;
            }
            CHECK(slices > (large ? 6u : 2u));
            f.reads = 0;
            CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, NULL), NODEDB_OK);
            CHECK(f.reads == 0 && !more);
            nodedb_vamana_inspect(disk, &info);
            CHECK(info.damaged_blocks == 0 && info.live == nodedb_vamana_count(index));
            nodedb_vamana_destroy(disk), nodedb_vamana_destroy(index);
            free(f.bytes);
        }
    CHECK_EQ(reads[0], reads[1]);
}

TEST(an_empty_index_is_a_whole_file_in_both_layouts) {
    int layout, emptied;
    for (layout = 0; layout < 2; layout++)
        for (emptied = 0; emptied < 2; emptied++) {
            nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, NODEDB_VAMANA_COSINE);
            nodedb_vamana *index = filled(&c, emptied ? 1 : 0, 0), *disk;
            const char *path = path_of("empty");
            nodedb_vamana_open_config o;
            nodedb_vamana_searcher *s;
            nodedb_vamana_result r[K];
            nodedb_vamana_query q = query_of(floats_of(1), 10);
            nodedb_vamana_stats stats;
            float out[DIM];
            uint64_t cursor = 0, id;
            uint32_t n;
            bool more = true;
            if (emptied) CHECK_EQ(nodedb_vamana_remove(index, 10, NULL), NODEDB_OK);
            save_as(index, path, (nodedb_vamana_layout)layout);
            CHECK_EQ(nodedb_vamana_verify(path, NULL, NULL, NULL, NULL), NODEDB_OK);
            memset(&o, 0, sizeof o);
            o.mode = NODEDB_VAMANA_ON_DISK;
            disk = nodedb_vamana_open(path, &o, NULL);
            s = nodedb_vamana_searcher_create(disk, NULL, NULL);
            REQUIRE(s != NULL);
            CHECK_EQ(nodedb_vamana_search(s, &q, r, &n, &stats, NULL), NODEDB_OK);
            CHECK(n == 0 && stats.damaged == 0);
            CHECK_EQ(nodedb_vamana_get(disk, 10, out, NULL), NODEDB_ERR_NOT_FOUND);
            CHECK(!nodedb_vamana_contains(disk, 10) && !nodedb_vamana_next(disk, &cursor, &id));
            CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, NULL), NODEDB_OK);
            CHECK_EQ(disk->file->damaged_blocks, 0);
            nodedb_vamana_searcher_destroy(s);
            nodedb_vamana_destroy(disk), nodedb_vamana_destroy(index);
        }
}

/* ===================================================================================================================
 * TOGETHER: many queries in one call: refused memory, reads that fail
 * ================================================================================================================ */

/* Vectors without any structure, so that the 4-bit codes leave many queries in doubt. */
enum { NOISE = 4500, WIDE = 64, CALL = 40, TEN = 10 };
static float noise[NOISE + CALL][WIDE];

static nodedb_vamana *noise_index(nodedb_vamana_metric metric) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, metric);
    nodedb_vamana *index;
    uint64_t state = 9;
    uint32_t i, j;
    for (i = 0; i < NOISE + CALL; i++)
        for (j = 0; j < WIDE; j++) noise[i][j] = (float)(test_random(&state) % 2001) / 1000 - 1;
    c.dim = WIDE;
    index = nodedb_vamana_create(&c, NULL);
    for (i = 0; i < NOISE; i++) CHECK_EQ(nodedb_vamana_insert(index, i, noise[i], NULL), NODEDB_OK);
    return index;
}

/* A file in memory, one block of which cannot be read. */
typedef struct bad_file { memory_file file; uint64_t bad; } bad_file;
static int64_t bad_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    bad_file *f = (bad_file *)ctx;
    return offset == f->bad ? -EIO : memory_pread(&f->file, fd, buffer, bytes, offset);
}

TEST(the_first_query_that_fails_is_named_those_before_it_are_answered_none_behind) {
    nodedb_vamana *index = noise_index(NODEDB_VAMANA_L2);
    int layout;
    for (layout = 0; layout < 2; layout++) {
        static nodedb_vamana_result results[CALL * TEN];
        const char *path = path_of("bad");
        nodedb_vamana_query q = query_of(NULL, 64);
        nodedb_vamana_open_config o;
        nodedb_vamana *disk;
        bad_file f;
        uint64_t at;
        uint32_t failures = 0;
        q.k = TEN;
        save_as(index, path, (nodedb_vamana_layout)layout);
        f.file.bytes = read_whole(path, &f.file.size), f.file.reads = 0, f.bad = UINT64_MAX;
        o = memory_config(&f.file, NODEDB_VAMANA_ON_DISK);
        o.io.pread = bad_pread;
        disk = nodedb_vamana_open("memory", &o, NULL);
        REQUIRE(disk != NULL);
        for (at = section(f.file.bytes, RECORDS); at < section(f.file.bytes, TABLE); at += 4096) {
            nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(disk, NULL, NULL);
            uint32_t found[CALL], i, named;
            nodedb_error err;
            nodedb_status status;
            f.bad = at;
            status = nodedb_vamana_search_many(s, &q, noise[NOISE], CALL, results, found, NULL, &err);
            f.bad = UINT64_MAX;
            nodedb_vamana_searcher_destroy(s);
            named = status == NODEDB_OK ? CALL : (uint32_t)strtoul(err.message + strlen("query "), NULL, 10);
            CHECK(status == NODEDB_OK || status == NODEDB_ERR_IO);
            for (i = 0; i < CALL; i++) CHECK_EQ(found[i], i < named ? TEN : 0);
            failures += status != NODEDB_OK;
        }
        CHECK(failures > 20);
        nodedb_vamana_destroy(disk);
        free(f.file.bytes);
    }
    nodedb_vamana_destroy(index);
}

TEST(many_queries_are_answered_one_by_one_where_memory_is_refused) {
    int metric, layout;
    for (metric = 0; metric < 3; metric++) {
        nodedb_vamana *index = noise_index((nodedb_vamana_metric)metric);
        for (layout = 0; layout < 2; layout++) {
            static nodedb_vamana_result results[CALL * TEN], truth[CALL * TEN];
            const char *path = path_of("refused");
            nodedb_vamana_query q = query_of(NULL, 16);
            refusing r;
            long refuse;
            bool refused = true;
            q.k = TEN;
            save_as(index, path, (nodedb_vamana_layout)layout);
            for (refuse = -1; refused || refuse == 0; refuse++) {
                nodedb_vamana_open_config o;
                nodedb_vamana_searcher *s;
                nodedb_vamana *disk;
                uint32_t found[CALL], i;
                memset(&o, 0, sizeof o);
                o.mode = NODEDB_VAMANA_ON_DISK, o.allocator = refusing_allocator(&r, -1);
                disk = nodedb_vamana_open(path, &o, NULL);
                s = nodedb_vamana_searcher_create(disk, NULL, NULL);
                REQUIRE(s != NULL);
                r.calls = 0, r.refuse_at = refuse;
                CHECK_EQ(nodedb_vamana_search_many(s, &q, noise[NOISE], CALL, results, found, NULL, NULL), NODEDB_OK);
                for (i = 0; i < CALL; i++) CHECK_EQ(found[i], TEN);
                if (refuse < 0) memcpy(truth, results, sizeof truth);
                for (i = 0; i < CALL * TEN; i++) CHECK(results[i].id == truth[i].id);
                refused = r.calls > refuse;
                nodedb_vamana_searcher_destroy(s);
                nodedb_vamana_destroy(disk);
                CHECK_EQ(r.live, 0);
            }
        }
        nodedb_vamana_destroy(index);
    }
}

/* ===================================================================================================================
 * DOUBT: codes that blur: how much is found, and how much is read
 * ================================================================================================================ */

/* Clusters, far closer within than between: all vectors of one have the same 8-bit code. */
enum { TIGHT = 6000, CENTRES = 20 };
static float tight[TIGHT + CALL][WIDE];

static nodedb_vamana *tight_index(nodedb_vamana_metric metric) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, metric);
    nodedb_vamana *index;
    uint64_t state = 3;
    uint32_t i, j;
    for (i = 0; i < TIGHT + CALL; i++)
        for (j = 0; j < WIDE; j++) {
            uint64_t centre = nodedb_mix64(i % CENTRES * 1000 + j) % 2001;
            tight[i][j] = ((float)centre - 1000) / 10 + (float)(test_random(&state) % 2001) / 100000;
        }
    c.dim = WIDE, c.degree = 32, c.beam_build = 64;
    index = nodedb_vamana_create(&c, NULL);
    for (i = 0; i < TIGHT; i++) CHECK_EQ(nodedb_vamana_insert(index, i, tight[i], NULL), NODEDB_OK);
    return index;
}

/* Recall of CALL queries, one by one or together, beside what a scan of `memory` finds; *reads: of one query. */
static double recall_of(nodedb_vamana *index, nodedb_vamana *memory, float (*queries)[WIDE],
                        const nodedb_vamana_query *like, bool together, double *reads) {
    static nodedb_vamana_result results[CALL * TEN];
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_searcher *scans = nodedb_vamana_searcher_create(memory, NULL, NULL);
    nodedb_vamana_query q = *like;
    nodedb_vamana_stats stats;
    uint32_t found[CALL], i, hits = 0, all = 0;
    uint64_t sum = 0;
    CHECK(s != NULL && scans != NULL);
    q.k = TEN;
    for (i = 0; i < CALL && !together; i++) {
        q.vector = queries[i];
        CHECK_EQ(nodedb_vamana_search(s, &q, results + i * TEN, &found[i], &stats, NULL), NODEDB_OK);
        sum += stats.reads;
        CHECK_EQ(stats.damaged, 0);
    }
    if (together) {
        CHECK_EQ(nodedb_vamana_search_many(s, &q, queries, CALL, results, found, &stats, NULL), NODEDB_OK);
        sum = stats.reads;
    }
    for (i = 0; i < CALL; i++) {
        nodedb_vamana_result truth[TEN];
        uint32_t n;
        q.vector = queries[i];
        CHECK_EQ(nodedb_vamana_scan(scans, &q, truth, &n, NULL, NULL), NODEDB_OK);
        hits += common(results + i * TEN, found[i], truth, n), all += n;
    }
    nodedb_vamana_searcher_destroy(s), nodedb_vamana_searcher_destroy(scans);
    *reads = (double)sum / CALL;
    return (double)hits / all;
}

TEST(where_codes_blur_a_search_on_disk_finds_what_an_exact_walk_finds) {
    static const uint32_t beams[3] = {16, 64, 256};
    int metric, layout, beam, together;
    for (metric = 0; metric < (SLOW ? 1 : 3); metric++) { /* with an emulator, the first */
        nodedb_vamana *index = tight_index((nodedb_vamana_metric)metric);
        for (layout = 0; layout < 2; layout++) {
            const char *path = path_of("tight");
            nodedb_vamana_open_config o;
            nodedb_vamana *disk;
            bool more;
            memset(&o, 0, sizeof o);
            o.mode = NODEDB_VAMANA_ON_DISK, o.no_direct = true, o.cache_bytes = 1; /* no cache of nodes */
            save_as(index, path, (nodedb_vamana_layout)layout);
            disk = nodedb_vamana_open(path, &o, NULL);
            REQUIRE(disk != NULL);
            CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, NULL), NODEDB_OK);
            for (beam = 0; beam < 3; beam++)
                for (together = 0; together < 2; together++) {
                    nodedb_vamana_query q = query_of(NULL, beams[beam]);
                    double reads, exact, recall;
                    q.exact_walk = true;
                    exact = recall_of(index, index, &tight[TIGHT], &q, false, &reads);
                    recall = recall_of(disk, index, &tight[TIGHT], &q, together, &reads);
                    CHECK(recall >= exact - 0.005);
                    CHECK(reads < 800);
                }
            nodedb_vamana_destroy(disk);
        }
        nodedb_vamana_destroy(index);
    }
}

TEST(where_codes_are_certain_a_search_on_disk_reads_little) {
    static const double most[2] = {40, 75};
    nodedb_vamana *index = noise_index(NODEDB_VAMANA_L2);
    int layout;
    for (layout = 0; layout < 2; layout++) {
        const char *path = path_of("certain");
        nodedb_vamana_query q = query_of(NULL, 64);
        nodedb_vamana_open_config o;
        nodedb_vamana *disk;
        double reads, exact, recall;
        memset(&o, 0, sizeof o);
        o.mode = NODEDB_VAMANA_ON_DISK;
        save_as(index, path, (nodedb_vamana_layout)layout);
        disk = nodedb_vamana_open(path, &o, NULL);
        REQUIRE(disk != NULL);
        q.exact_walk = true;
        exact = recall_of(index, index, &noise[NOISE], &q, false, &reads);
        recall = recall_of(disk, index, &noise[NOISE], &q, false, &reads);
        CHECK(recall >= exact - 0.005 && reads < most[layout]);
        nodedb_vamana_destroy(disk);
    }
    nodedb_vamana_destroy(index);
}

/* ===================================================================================================================
 * DAMAGE: quarantine, verify, truncation
 * ================================================================================================================ */

typedef struct reported { uint64_t offsets[64]; uint32_t count; } reported;
static void report(void *ctx, uint64_t offset, const char *section_name) {
    reported *r = (reported *)ctx;
    CHECK(section_name != NULL && section_name[0] != 0);
    if (r->count < 64) r->offsets[r->count++] = offset;
}

TEST(verify_names_every_damaged_block) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, NODEDB_VAMANA_COSINE);
    int layout;
    for (layout = 0; layout < 2; layout++) {
        nodedb_vamana *index = filled(&c, 1500, 100);
        const char *path = path_of("file");
        uint64_t state = test_seed;
        memory_file f;
        uint8_t *good;
        int round;
        save_as(index, path, (nodedb_vamana_layout)layout);
        good = read_whole(path, &f.size), f.bytes = (uint8_t *)malloc(f.size);
        for (round = 0; round < 40; round++) {
            nodedb_vamana_open_config o = memory_config(&f, NODEDB_VAMANA_IN_MEMORY);
            uint64_t want[6];
            uint32_t n = (uint32_t)(round % 7), i, j;
            reported r;
            nodedb_error err;
            nodedb_status status;
            memset(&r, 0, sizeof r);
            memcpy(f.bytes, good, f.size);
            for (i = 0; i < n; i++) {
                want[i] = test_random(&state) % (f.size / 4096) * 4096;
                if (want[i] == f.size - 4096) want[i] = 0; /* one header must be left */
                for (j = 0; j < i && want[j] != want[i]; j++) {
                }
                if (j < i) n--, i--;
                else f.bytes[want[i] + test_random(&state) % 4096] ^= (uint8_t)(1u << test_random(&state) % 8);
            }
            status = nodedb_vamana_verify("file", &o, report, &r, &err);
            CHECK_EQ(status, n == 0 ? NODEDB_OK : NODEDB_ERR_CORRUPT);
            CHECK_EQ(r.count, n);
            for (i = 0; i < n; i++) {
                for (j = 0; j < r.count && r.offsets[j] != want[i]; j++) {
                }
                CHECK(j < r.count);
            }
            CHECK(n == 0 || err.offset % 4096 == 0);
        }
        free(good), free(f.bytes);
        nodedb_vamana_destroy(index);
    }
}

/* A block of the table of ids is lost, or a block of ids: every id outside it is found. */
TEST(what_is_not_damaged_is_found_whatever_is) {
    int part;
    for (part = 0; part < 2; part++) {
        nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        nodedb_vamana *index = filled(&c, 1500, 0), *disk;
        nodedb_vamana_open_config o;
        const char *path = path_of("file");
        memory_file f;
        uint32_t i, got = 0;
        save_as(index, path, NODEDB_VAMANA_RESIDENT);
        f.bytes = read_whole(path, &f.size), f.reads = 0;
        f.bytes[section(f.bytes, part == 0 ? TABLE : IDS) + 4096 + 77] ^= 4;
        o = memory_config(&f, NODEDB_VAMANA_ON_DISK);
        disk = nodedb_vamana_open("file", &o, NULL);
        REQUIRE(disk != NULL);
        for (i = 0; i < 1500; i++) {
            float out[DIM];
            nodedb_status status = nodedb_vamana_get(disk, 10 + i, out, NULL);
            CHECK(status == NODEDB_OK || (part == 1 && i >= 512 && i < 1024 && status == NODEDB_ERR_CORRUPT));
            CHECK(nodedb_vamana_contains(disk, 10 + i) == (status == NODEDB_OK));
            got += status == NODEDB_OK;
        }
        CHECK_EQ(got, part == 0 ? 1500 : 1500 - 512);
        nodedb_vamana_destroy(disk), nodedb_vamana_destroy(index);
        free(f.bytes);
    }
}

/* Elsewhere damage makes the answer worse, and is counted. But without the vector there is no question. */
TEST(a_question_about_a_damaged_vector_is_an_error) {
    for (int layout = 0; layout < 2; layout++) {
        nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        nodedb_vamana *index = filled(&c, 1500, 0), *disk;
        nodedb_vamana_open_config o;
        nodedb_vamana_searcher *s;
        const char *path = path_of("file");
        uint32_t refused = 0, n;
        memory_file f;
        save_as(index, path, (nodedb_vamana_layout)layout);
        f.bytes = read_whole(path, &f.size), f.reads = 0;
        f.bytes[section(f.bytes, RECORDS) + 4096 + 77] ^= 4;
        o = memory_config(&f, NODEDB_VAMANA_ON_DISK);
        disk = nodedb_vamana_open("file", &o, NULL);
        s = nodedb_vamana_searcher_create(disk, NULL, NULL);
        REQUIRE(s != NULL);
        for (uint32_t i = 0; i < 1500; i++) {
            nodedb_vamana_query q = query_of(NULL, 40);
            nodedb_vamana_result got[K];
            uint8_t stored[DIM];
            nodedb_error err;
            nodedb_status status;
            q.by_id = true, q.id = 10 + i;
            status = nodedb_vamana_search(s, &q, got, &n, NULL, &err);
            CHECK(status == NODEDB_OK || (status == NODEDB_ERR_CORRUPT && n == 0));
            CHECK_EQ(nodedb_vamana_get_stored(disk, q.id, stored, &err), status);
            if (status == NODEDB_OK) CHECK(memcmp(stored, vectors[i], DIM) == 0 && got[0].distance <= 0);
            refused += status != NODEDB_OK;
        }
        CHECK_EQ(refused, layout == 0 ? 4096 / DIM : 4096 / (DIM + 12 * 4));
        nodedb_vamana_searcher_destroy(s);
        nodedb_vamana_destroy(disk), nodedb_vamana_destroy(index);
        free(f.bytes);
    }
}

/* Rows of the packed layout that make no sense though their checksums are right. */
TEST(verify_reads_the_rows_of_a_packed_file_too) {
    int forgery;
    for (forgery = 0; forgery < 4; forgery++) {
        nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        nodedb_vamana *index = filled(&c, 200, 20), *opened;
        nodedb_vamana_open_config o;
        const char *path = path_of("file");
        memory_file f;
        uint8_t *row;
        while (nodedb_vamana_maintain(index, 1000)) {
        }
        save_as(index, path, NODEDB_VAMANA_PACKED);
        f.bytes = read_whole(path, &f.size), f.reads = 0;
        row = f.bytes + section(f.bytes, RECORDS) + DIM; /* of slot 0, which is free */
        if (forgery == 1) nodedb_put_u32(row, 1);                /* the next free slot is one that is not */
        if (forgery == 2) nodedb_put_u32(row + 12 * 4 + DIM, 0x12345678); /* a neighbour of slot 1 */
        if (forgery == 3) nodedb_put_u32(f.bytes + 220, 0xFFFFFFFFu);     /* no free slot at all */
        repair_checksums(f.bytes, section(f.bytes, SUMS), f.size);
        o = memory_config(&f, NODEDB_VAMANA_IN_MEMORY);
        CHECK_EQ(nodedb_vamana_verify("file", &o, NULL, NULL, NULL), forgery == 0 ? NODEDB_OK : NODEDB_ERR_CORRUPT);
        opened = nodedb_vamana_open("file", &o, NULL);
        CHECK((opened != NULL) == (forgery == 0));
        nodedb_vamana_destroy(opened), nodedb_vamana_destroy(index);
        free(f.bytes);
    }
}

/* Asks a damaged index on disk: whatever it returns is right, and what it does not find it has announced. */
static void ask_damaged(nodedb_vamana *disk, nodedb_vamana_result truth[][K], const uint32_t *asked, uint32_t n,
                        bool many) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(disk, NULL, NULL);
    nodedb_vamana_result got[8 * K];
    nodedb_vamana_stats stats;
    uint8_t input[8][DIM];
    uint32_t found[8], i, j;
    nodedb_vamana_query q = query_of(NULL, 60);
    if (s == NULL) {
        test_fail(__FILE__, __LINE__, "no searcher");
        return;
    }
    for (i = 0; i < n; i++) memcpy(input[i], vectors[asked[i]], DIM);
    if (many) CHECK_EQ(nodedb_vamana_search_many(s, &q, input, n, got, found, &stats, NULL), NODEDB_OK);
    for (i = 0; i < n; i++) {
        q.vector = input[i];
        if (!many) CHECK_EQ(nodedb_vamana_search(s, &q, got + i * K, &found[i], &stats, NULL), NODEDB_OK);
        for (j = 0; j < found[i]; j++) {
            uint64_t id = got[i * K + j].id;
            CHECK(id >= 10 && id < 6010);
            CHECK(got[i * K + j].distance == (float)apart(asked[i], (uint32_t)id - 10));
        }
        if (stats.damaged == 0) {
            CHECK_EQ(found[i], K);
            for (j = 0; j < K && j < found[i]; j++) CHECK_EQ(got[i * K + j].id, truth[i][j].id);
        }
    }
    nodedb_vamana_searcher_destroy(s);
}

/* Every bit of a small file (`--long`; else one in about every fourth byte), in both layouts and modes: an error, a
 * quarantine that is announced, or the right answer. */
TEST(every_flipped_bit_is_an_error_a_quarantine_or_harmless) {
    enum { N = 70, ASKED = 3 };
    static const uint32_t asked[ASKED] = {5, 33, 61};
    nodedb_vamana_result truth[ASKED][K];
    int layout;
    for (layout = 0; layout < 2; layout++) {
        nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        nodedb_vamana *index;
        nodedb_vamana_searcher *s;
        const char *path = path_of("file");
        uint64_t state = test_seed, healed = 0, errors = 0, damaged = 0;
        memory_file f;
        size_t at, step = SLOW ? 97 : 7;
        uint32_t i, n;
        c.degree = 6, c.beam_build = 12;
        index = filled(&c, N, 6), s = nodedb_vamana_searcher_create(index, NULL, NULL);
        for (i = 0; i < ASKED; i++) {
            nodedb_vamana_query q = query_of(vectors[asked[i]], 60);
            CHECK_EQ(nodedb_vamana_scan(s, &q, truth[i], &n, NULL, NULL), NODEDB_OK);
        }
        nodedb_vamana_searcher_destroy(s);
        save_as(index, path, (nodedb_vamana_layout)layout);
        f.bytes = read_whole(path, &f.size), f.reads = 0;
        for (at = test_long ? 0 : test_random(&state) % step; at < 8 * f.size;
             at += test_long ? 1 : 8 * (1 + test_random(&state) % step)) {
            size_t bit = test_long ? at : at / 8 * 8 + test_random(&state) % 8;
            nodedb_vamana_open_config o = memory_config(&f, NODEDB_VAMANA_IN_MEMORY);
            nodedb_vamana_info info;
            nodedb_vamana *opened;
            nodedb_error err;
            if (bit >= 8 * f.size) break;
            f.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            opened = nodedb_vamana_open("file", &o, &err);
            if (opened == NULL) {
                CHECK(err.status == NODEDB_ERR_CORRUPT && err.message[0] != 0);
                errors++;
            } else {
                ask_damaged(opened, truth, asked, ASKED, false);
                healed++;
            }
            nodedb_vamana_destroy(opened);
            o.mode = NODEDB_VAMANA_ON_DISK, o.cache_bytes = bit % 3 == 0 ? 2000 : 0;
            opened = nodedb_vamana_open("file", &o, &err);
            if (opened == NULL) { /* only the means are read at once */
                CHECK(err.status == NODEDB_ERR_CORRUPT && bit / 8 >= section(f.bytes, MEANS) &&
                      bit / 8 < section(f.bytes, CODES));
            } else {
                bool more = true;
                if (bit % 2 == 0) CHECK_EQ(nodedb_vamana_load(opened, UINT64_MAX, &more, NULL), NODEDB_OK);
                ask_damaged(opened, truth, asked, ASKED, bit % 5 == 0);
                nodedb_vamana_inspect(opened, &info);
                damaged += info.damaged_blocks > 0;
            }
            nodedb_vamana_destroy(opened);
            f.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK(healed > 20 && errors > 20 && damaged > 20);
        free(f.bytes);
        nodedb_vamana_destroy(index);
    }
}

TEST(every_truncation_is_an_error_and_one_under_an_open_index_is_announced) {
    enum { N = 300, ASKED = 3 };
    static const uint32_t asked[ASKED] = {5, 33, 261};
    nodedb_vamana_result truth[ASKED][K];
    int layout;
    for (layout = 0; layout < 2; layout++) {
        nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        nodedb_vamana *index = filled(&c, N, 0);
        nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
        const char *path = path_of("file");
        memory_file f;
        size_t whole, at;
        uint32_t i, n;
        for (i = 0; i < ASKED; i++) {
            nodedb_vamana_query q = query_of(vectors[asked[i]], 60);
            CHECK_EQ(nodedb_vamana_scan(s, &q, truth[i], &n, NULL, NULL), NODEDB_OK);
        }
        nodedb_vamana_searcher_destroy(s);
        save_as(index, path, (nodedb_vamana_layout)layout);
        f.bytes = read_whole(path, &whole), f.size = whole;
        for (at = 0; at < whole; at += at % 4096 == 0 ? 1 : at % 4096 == 1 ? 2046 : 2049) {
            nodedb_vamana_open_config o = memory_config(&f, NODEDB_VAMANA_IN_MEMORY);
            int mode;
            for (mode = 0; mode < 2; mode++) {
                nodedb_vamana *opened;
                nodedb_error err;
                o.mode = mode == 0 ? NODEDB_VAMANA_IN_MEMORY : NODEDB_VAMANA_ON_DISK;
                f.size = at;
                opened = nodedb_vamana_open("file", &o, &err);
                CHECK(opened == NULL && err.status == NODEDB_ERR_CORRUPT);
                if (mode == 0) continue;
                f.size = whole;
                opened = nodedb_vamana_open("file", &o, &err);
                f.size = at; /* someone cuts it */
                REQUIRE(opened != NULL);
                ask_damaged(opened, truth, asked, ASKED, at % 2 == 0);
                f.size = whole;
                nodedb_vamana_destroy(opened);
            }
        }
        free(f.bytes);
        nodedb_vamana_destroy(index);
    }
}

/* The same under a mapping: an error, not SIGBUS. */
TEST(a_mapped_file_that_is_cut_is_announced_and_no_signal) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = filled(&c, 3000, 0), *disk;
    const char *path = path_of("file");
    nodedb_vamana_open_config o;
    nodedb_vamana_searcher *s;
    nodedb_vamana_stats stats;
    nodedb_vamana_result r[K];
    uint8_t *file;
    size_t bytes;
    uint32_t i, n;
    uint64_t damaged = 0;
    bool more;
    save_as(index, path, NODEDB_VAMANA_RESIDENT);
    file = read_whole(path, &bytes);
    memset(&o, 0, sizeof o);
    o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = NODEDB_VAMANA_FETCH_MAPPED;
    disk = nodedb_vamana_open(path, &o, NULL);
    s = nodedb_vamana_searcher_create(disk, NULL, NULL);
    REQUIRE(s != NULL);
    CHECK_EQ(nodedb_vamana_load(disk, UINT64_MAX, &more, NULL), NODEDB_OK);
    CHECK_EQ(truncate(path, (off_t)section(file, RECORDS) + 4096), 0);
    for (i = 0; i < 50; i++) {
        nodedb_vamana_query q = query_of(vectors[i * 50], 30);
        uint32_t j;
        CHECK_EQ(nodedb_vamana_search(s, &q, r, &n, &stats, NULL), NODEDB_OK);
        CHECK(stats.damaged > 0 || n == K);
        for (j = 0; j < n; j++) CHECK(r[j].distance == (float)apart(i * 50, (uint32_t)r[j].id - 10));
        damaged += stats.damaged;
    }
    CHECK(damaged > 500);
    nodedb_vamana_searcher_destroy(s);
    nodedb_vamana_destroy(disk), nodedb_vamana_destroy(index);
    free(file);
}

/* Threads that search a cold index together load each chunk once, and get the right answers. */
typedef struct asking { nodedb_vamana *disk; uint32_t from; uint32_t wrong; } asking;
static void *ask_some(void *ctx) {
    asking *a = (asking *)ctx;
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(a->disk, NULL, NULL);
    uint32_t i, n;
    for (i = a->from; i < 4000; i += 53) {
        nodedb_vamana_query q = query_of(vectors[i], 30);
        nodedb_vamana_result r[K];
        nodedb_vamana_stats stats;
        if (nodedb_vamana_search(s, &q, r, &n, &stats, NULL) != NODEDB_OK || n != K || stats.damaged != 0 ||
            r[0].distance != 0)
            a->wrong++;
    }
    nodedb_vamana_searcher_destroy(s);
    return NULL;
}

TEST(searchers_of_several_threads_warm_a_cold_index_up) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = filled(&c, 4000, 0);
    int layout, round;
    for (layout = 0; layout < 2; layout++) {
        const char *path = path_of("file");
        save_as(index, path, (nodedb_vamana_layout)layout);
        for (round = 0; round < 5; round++) {
            nodedb_vamana_open_config o;
            asking a[4];
            pthread_t threads[4];
            bool more = true;
            int i;
            memset(&o, 0, sizeof o);
            o.mode = NODEDB_VAMANA_ON_DISK, o.fetch = (nodedb_vamana_fetch)(round % 3);
            a[0].disk = nodedb_vamana_open(path, &o, NULL);
            REQUIRE(a[0].disk != NULL);
            for (i = 0; i < 4; i++) {
                a[i].disk = a[0].disk, a[i].from = (uint32_t)i * 7, a[i].wrong = 0;
                CHECK_EQ(pthread_create(&threads[i], NULL, ask_some, &a[i]), 0);
            }
            while (more && nodedb_vamana_load(a[0].disk, 1, &more, NULL) == NODEDB_OK) (void)sched_yield();
            for (i = 0; i < 4; i++) {
                CHECK_EQ(pthread_join(threads[i], NULL), 0);
                CHECK_EQ(a[i].wrong, 0);
            }
            CHECK_EQ(a[0].disk->file->chunks_left, 0);
            nodedb_vamana_destroy(a[0].disk);
        }
    }
    nodedb_vamana_destroy(index);
}

/* ===================================================================================================================
 * SAVING: the index changes meanwhile; memory is short
 * ================================================================================================================ */

/* One change out of a random stream: insert, replace or remove, as the caller's log would have it. */
typedef struct change { uint64_t id; uint32_t vector; bool removes; } change;
static change random_change(uint64_t *state) {
    change c;
    c.id = 10 + test_random(state) % 900, c.vector = (uint32_t)(test_random(state) % 6000);
    c.removes = test_random(state) % 5 < 2;
    return c;
}
static void apply(nodedb_vamana *index, const change *c) {
    nodedb_status status = c->removes ? nodedb_vamana_remove(index, c->id, NULL)
                                      : nodedb_vamana_insert(index, c->id, vector_of(index->type, c->vector), NULL);
    CHECK(status == NODEDB_OK || (c->removes && status == NODEDB_ERR_NOT_FOUND));
}

/* The log since a save began, applied to the opened file, gives the live index to the bit, although the index changed
 * all the time: with a sweep under way, free slots, and codes that are being made. */
TEST(the_last_file_and_the_log_since_give_the_same_index_to_the_bit) {
    int type, metric, run;
    for (run = 0; run < (SLOW ? 2 : 12); run++) {
        nodedb_vamana_config c;
        nodedb_vamana *index, *copy;
        static change log[4000];
        uint32_t logged = 0, i, steps = 0, saves;
        uint64_t state = test_seed * 1000 + (uint64_t)run;
        char first[700], second[700], file[700];
        type = run % 3, metric = run / 3 % 3;
        snprintf(first, sizeof first, "%s", path_of("first")), snprintf(second, sizeof second, "%s", path_of("second"));
        snprintf(file, sizeof file, "%s", path_of("file"));
        c = small_config((nodedb_vamana_type)type, (nodedb_vamana_metric)metric);
        c.code = run % 2 == 0 ? NODEDB_VAMANA_CODE_4BIT : NODEDB_VAMANA_CODE_AUTO;
        index = nodedb_vamana_create(&c, NULL);
        index->code_due = 300; /* not only when there are thousands */
        for (i = 0; i < 500 + (uint32_t)run * 37; i++) {
            change one = random_change(&state);
            apply(index, &one);
        }
        for (saves = 0; saves < 3; saves++) {
            nodedb_vamana_layout layout = (nodedb_vamana_layout)((run + (int)saves) % 2);
            bool more = true;
            logged = 0;
            if (saves == 1) index->code_due = 0; /* the codes are remade from here on */
            if (saves == 2) index->code_due = index->live + 20; /* and are replaced while the file is written */
            CHECK_EQ(nodedb_vamana_save_begin(index, file, layout, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_save_begin(index, file, layout, NULL), NODEDB_ERR_STATE);
            CHECK_EQ(nodedb_vamana_compact(index, NULL), NODEDB_ERR_STATE);
            while (more) {
                for (i = 0; i < 3; i++) {
                    log[logged] = random_change(&state);
                    apply(index, &log[logged++]);
                }
                CHECK_EQ(nodedb_vamana_save_step(index, 1 + test_random(&state) % 9, &more, NULL), NODEDB_OK);
                REQUIRE(logged < 3000);
                steps++;
            }
            for (i = 0; i < 300; i++) {
                log[logged] = random_change(&state);
                apply(index, &log[logged++]);
            }
            copy = nodedb_vamana_open(file, NULL, NULL);
            REQUIRE(copy != NULL);
            for (i = 0; i < logged; i++) apply(copy, &log[i]);
            CHECK_EQ(nodedb_vamana_save(index, first, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_save(copy, second, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
            CHECK(same_file(first, second));
            CHECK_EQ(nodedb_vamana_verify(first, NULL, NULL, NULL, NULL), NODEDB_OK);
            nodedb_vamana_destroy(copy);
        }
        CHECK(steps > 100);
        nodedb_vamana_destroy(index);
    }
}

/* All vectors are removed while the file is written. It holds those that were there when the save began. */
TEST(a_save_outlives_the_removal_of_everything) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index, *copy;
    char path[700], want[700], again[700];
    bool more = true;
    uint32_t i;
    snprintf(path, sizeof path, "%s", path_of("file")), snprintf(want, sizeof want, "%s", path_of("want"));
    snprintf(again, sizeof again, "%s", path_of("again"));
    c.code = NODEDB_VAMANA_CODE_4BIT;
    index = nodedb_vamana_create(&c, NULL);
    index->code_due = 100;
    for (i = 0; i < 400; i++) CHECK_EQ(nodedb_vamana_insert(index, 10 + i, vectors[i], NULL), NODEDB_OK);
    CHECK(index->arrays->codes != NULL);
    save_as(index, want, NODEDB_VAMANA_PACKED);
    CHECK_EQ(nodedb_vamana_save_begin(index, path, NODEDB_VAMANA_PACKED, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_save_step(index, 50, &more, NULL), NODEDB_OK);
    for (i = 0; i < 400; i++) CHECK_EQ(nodedb_vamana_remove(index, 10 + i, NULL), NODEDB_OK);
    CHECK(nodedb_vamana_count(index) == 0 && more);
    for (i = 0; i < 30; i++) CHECK_EQ(nodedb_vamana_insert(index, i, vectors[i], NULL), NODEDB_OK);
    while (more) CHECK_EQ(nodedb_vamana_save_step(index, 10, &more, NULL), NODEDB_OK);
    CHECK(same_file(path, want));
    copy = nodedb_vamana_open(path, NULL, NULL);
    CHECK_EQ(nodedb_vamana_count(copy), 400);
    CHECK_EQ(nodedb_vamana_count(index), 30);
    save_as(copy, again, NODEDB_VAMANA_PACKED);
    CHECK(same_file(again, want));
    nodedb_vamana_destroy(copy), nodedb_vamana_destroy(index);
}

/* A save that fails for want of memory, or is cancelled, harms neither the index nor the old file. */
typedef struct scarce { int64_t bytes; uint64_t fail_at, calls; } scarce;
static void *scarce_alloc(void *ctx, size_t bytes, size_t align) {
    scarce *s = (scarce *)ctx;
    void *memory = NULL;
    if (++s->calls == s->fail_at || posix_memalign(&memory, align, bytes) != 0) return NULL;
    s->bytes += (int64_t)bytes;
    return memory;
}
static void scarce_release(void *ctx, void *memory, size_t bytes) {
    if (memory != NULL) ((scarce *)ctx)->bytes -= (int64_t)bytes;
    free(memory);
}

TEST(a_save_without_memory_or_cancelled_harms_nothing_and_leaks_nothing) {
    char path[700], temporary[720];
    uint64_t at;
    bool good = false;
    snprintf(path, sizeof path, "%s", path_of("file")), snprintf(temporary, sizeof temporary, "%s.tmp", path);
    for (at = 1; !good && at < 60; at++) {
        nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
        scarce s = {0, 0, 0};
        nodedb_vamana *index, *opened;
        bool more = true;
        nodedb_status status;
        nodedb_error err;
        uint64_t state = at;
        uint32_t i;
        int64_t before;
        c.allocator.alloc = scarce_alloc, c.allocator.release = scarce_release, c.allocator.ctx = &s;
        c.capacity = 2000;
        index = filled(&c, 500, 0);
        CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
        before = s.bytes, s.calls = 0, s.fail_at = at;
        status = nodedb_vamana_save_begin(index, path, NODEDB_VAMANA_RESIDENT, &err);
        while (status == NODEDB_OK && more) {
            for (i = 0; i < 20; i++) {
                change one = random_change(&state);
                apply(index, &one);
            }
            status = nodedb_vamana_save_step(index, 20, &more, &err);
        }
        good = status == NODEDB_OK;
        if (!good) CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY);
        CHECK_EQ(s.bytes, before);
        CHECK(access(temporary, F_OK) != 0);
        opened = nodedb_vamana_open(path, NULL, NULL);
        CHECK_EQ(nodedb_vamana_count(opened), 500);
        nodedb_vamana_destroy(opened);
        s.fail_at = 0;
        CHECK_EQ(nodedb_vamana_save_begin(index, path, NODEDB_VAMANA_PACKED, NULL), NODEDB_OK);
        CHECK_EQ(nodedb_vamana_save_step(index, 40, &more, NULL), NODEDB_OK);
        CHECK(more && access(temporary, F_OK) == 0);
        if (at % 2 == 0) nodedb_vamana_save_cancel(index);
        if (at % 2 == 0) CHECK(access(temporary, F_OK) != 0 && s.bytes == before);
        if (at % 2 == 0) CHECK_EQ(nodedb_vamana_save_step(index, 40, &more, NULL), NODEDB_ERR_STATE);
        nodedb_vamana_destroy(index); /* cancels too */
        CHECK(s.bytes == 0 && access(temporary, F_OK) != 0);
    }
    CHECK(good && at > 12);
}

/* ===================================================================================================================
 * SLICES: what one step asks of the disk
 * ================================================================================================================ */

/* What one step of a save asked of the disk. */
typedef struct slice_io {
    nodedb_io real;
    uint64_t syncs, cuts, cut_bytes, unsynced;
} slice_io;
static int64_t slice_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    slice_io *s = (slice_io *)ctx;
    s->unsynced += bytes;
    return s->real.pwrite(s->real.ctx, fd, buffer, bytes, offset);
}
static int slice_sync(void *ctx, int fd) {
    slice_io *s = (slice_io *)ctx;
    s->syncs++, s->unsynced = 0;
    return s->real.sync(s->real.ctx, fd);
}
static int slice_truncate(void *ctx, int fd, uint64_t bytes) {
    slice_io *s = (slice_io *)ctx;
    int64_t size = s->real.size(s->real.ctx, fd);
    s->cuts++, s->cut_bytes += (uint64_t)size - bytes;
    return s->real.truncate(s->real.ctx, fd, bytes);
}

/* A step waits for the disk once: for a sync of little more than a MiB, or for 4 MiB of a file to be freed. */
TEST(a_step_of_a_save_waits_for_the_disk_once) {
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_F32, NODEDB_VAMANA_L2);
    nodedb_vamana *index;
    slice_io s;
    char path[700], temporary[720];
    int layout;
    snprintf(path, sizeof path, "%s", path_of("slices")), snprintf(temporary, sizeof temporary, "%s.tmp", path);
    memset(&s, 0, sizeof s);
    s.real = nodedb__io_or_posix(NULL);
    c.io.pwrite = slice_pwrite, c.io.sync = slice_sync, c.io.truncate = slice_truncate, c.io.ctx = &s;
    c.degree = c.beam_build = 64; /* for rows that are more than a MiB */
    index = filled(&c, 5000, 0);
    for (layout = 0; layout < 2; layout++) {
        uint64_t syncs = 0, cut = 0, most = 0;
        uint32_t steps = 0;
        bool more = true;
        FILE *stale = fopen(temporary, "wb");
        CHECK(stale != NULL && ftruncate(fileno(stale), 21 << 20) == 0 && fclose(stale) == 0);
        if (layout > 0) CHECK(truncate(path, 13 << 20) == 0); /* the file that will be replaced */
        CHECK_EQ(nodedb_vamana_save_begin(index, path, (nodedb_vamana_layout)layout, NULL), NODEDB_OK);
        for (; more; steps++) {
            s.syncs = s.cuts = s.cut_bytes = 0;
            CHECK_EQ(nodedb_vamana_save_step(index, UINT64_MAX, &more, NULL), NODEDB_OK);
            CHECK(s.syncs + s.cuts <= 1 && s.cut_bytes <= 4 << 20);
            if (s.unsynced > most) most = s.unsynced;
            syncs += s.syncs, cut += s.cut_bytes;
        }
        CHECK(steps > 8 && syncs >= 3 && cut >= 21 << 20 && most < 3 << 20);
        CHECK_EQ(nodedb_vamana_verify(path, NULL, NULL, NULL, NULL), NODEDB_OK);
    }
    nodedb_vamana_destroy(index);
}

/* True if this file system tells whether a file without a name is open elsewhere. */
static bool tells_who_has_it(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    bool tells = fd >= 0 && unlink(path) == 0 && fcntl(fd, F_SETLEASE, F_WRLCK) == 0;
    (void)close(fd);
    return tells;
}

/* The file that a save replaces is cut a piece at a time, but only if nobody else has it: open, mapped, or by another
 * name. */
TEST(a_file_that_is_replaced_stays_whole_for_those_who_have_it) {
    enum { NOBODY, OPEN, MAPPED, LINKED, WAYS };
    nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
    nodedb_vamana *index = filled(&c, 300, 0);
    char path[700], other[700];
    bool tells;
    int way;
    snprintf(path, sizeof path, "%s", path_of("file")), snprintf(other, sizeof other, "%s", path_of("other"));
    tells = tells_who_has_it(other);
    for (way = NOBODY; way < WAYS; way++) {
        uint8_t *before, *map = NULL, *after;
        size_t bytes;
        int watch, fd = -1;
        struct stat st;
        bool more = true;
        off_t was;
        CHECK_EQ(nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
        CHECK(truncate(path, 14 << 20) == 0);
        before = read_whole(path, &bytes);
        watch = open(path, O_PATH | O_CLOEXEC); /* sees the file, and does not count as having it open */
        if (way == OPEN || way == MAPPED) fd = open(path, O_RDONLY | O_CLOEXEC);
        if (way == MAPPED) map = (uint8_t *)mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0), close(fd);
        if (way == LINKED) CHECK(link(path, other) == 0);
        CHECK_EQ(nodedb_vamana_save_begin(index, path, NODEDB_VAMANA_PACKED, NULL), NODEDB_OK);
        for (was = 14 << 20; more; was = st.st_size) {
            CHECK_EQ(nodedb_vamana_save_step(index, 100, &more, NULL), NODEDB_OK);
            REQUIRE(fstat(watch, &st) == 0);
            CHECK(st.st_size <= was && st.st_size >= was - (4 << 20));
        }
        if (way == NOBODY) CHECK_EQ(st.st_size, tells ? 0 : 14 << 20);
        else CHECK_EQ(st.st_size, 14 << 20);
        if (way == MAPPED) CHECK(memcmp(map, before, bytes) == 0 && munmap(map, bytes) == 0);
        if (way == OPEN) {
            after = (uint8_t *)malloc(bytes);
            CHECK(pread(fd, after, bytes, 0) == (ssize_t)bytes && memcmp(after, before, bytes) == 0);
            free(after), close(fd);
        }
        if (way == LINKED) {
            after = read_whole(other, &bytes);
            CHECK(after != NULL && bytes == 14 << 20 && memcmp(after, before, bytes) == 0);
            free(after), CHECK(unlink(other) == 0);
        }
        CHECK_EQ(nodedb_vamana_verify(path, NULL, NULL, NULL, NULL), NODEDB_OK);
        free(before), close(watch);
    }
    nodedb_vamana_destroy(index);
}

/* ===================================================================================================================
 * POWER CUTS: and kills during a save
 * ================================================================================================================ */

/* The power goes at every call of a save in turn, each time in several ways: the old index or the new, whole. */
TEST(a_power_cut_at_any_call_of_a_save_leaves_the_old_index_or_the_new) {
    uint64_t at, ended = 0, news = 0, olds = 0;
    int ways = test_long ? 20 : SLOW ? 1 : 3, way;
    for (at = 1; ended < (uint64_t)ways; at++)
        for (way = 0, ended = 0; way < ways; way++) {
            nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
            nodedb_vamana_layout layout = (nodedb_vamana_layout)((at + (uint64_t)way) % 2);
            nodedb_vamana_open_config o;
            nodedb_vamana *index, *opened;
            nodedb_status status;
            nodedb_error err;
            uint64_t count;
            bool more = true;
            sim_disk *disk = sim_new(test_seed * 100 + at * 31 + (uint64_t)way);
            c.io = disk->io;
            index = filled(&c, 150, 0);
            CHECK_EQ(nodedb_vamana_save(index, "sim/index", NODEDB_VAMANA_RESIDENT, NULL), NODEDB_OK);
            CHECK_EQ(nodedb_vamana_insert(index, 5, vectors[7], NULL), NODEDB_OK);
            disk->calls = 0, disk->fail_at = at, disk->fail_error = way % 3 == 0 ? 0 : EIO, disk->fail_on = true;
            status = nodedb_vamana_save_begin(index, "sim/index", layout, &err);
            while (status == NODEDB_OK && more) status = nodedb_vamana_save_step(index, 60, &more, &err);
            ended += status == NODEDB_OK && disk->calls < at;
            disk->fail_at = 0, disk->fail_on = false;
            sim_power_cut(disk);
            memset(&o, 0, sizeof o);
            o.io = disk->io, o.mode = way % 2 == 0 ? NODEDB_VAMANA_IN_MEMORY : NODEDB_VAMANA_ON_DISK;
            CHECK_EQ(nodedb_vamana_verify("sim/index", &o, NULL, NULL, &err), NODEDB_OK);
            opened = nodedb_vamana_open("sim/index", &o, &err);
            REQUIRE(opened != NULL);
            count = nodedb_vamana_count(opened);
            CHECK(count == 151 || (count == 150 && status != NODEDB_OK));
            CHECK(nodedb_vamana_contains(opened, 5) == (count == 151));
            news += count == 151, olds += count == 150;
            nodedb_vamana_destroy(opened), nodedb_vamana_destroy(index);
            sim_free(disk);
        }
    CHECK(at > 10 && news > 0 && olds > 8);
}

TEST(a_kill_during_a_save_leaves_the_old_index_or_the_new) {
    int round, rounds = test_long ? 300 : 12;
    char path[700];
    uint64_t state = test_seed;
    snprintf(path, sizeof path, "%s", path_of("file"));
    for (round = 0; round < rounds; round++) {
        int status;
        nodedb_vamana *opened;
        pid_t child = fork();
        if (child == 0) {
            nodedb_vamana_config c = small_config(NODEDB_VAMANA_U8, NODEDB_VAMANA_L2);
            nodedb_vamana *index = filled(&c, 300, 0);
            uint32_t i;
            for (i = 0;; i++) {
                if (nodedb_vamana_save(index, path, NODEDB_VAMANA_RESIDENT, NULL) != NODEDB_OK) _exit(1);
                if (nodedb_vamana_insert(index, 1000 + i, vectors[300 + i % 5000], NULL) != NODEDB_OK) _exit(2);
            }
        }
        CHECK(child > 0);
        do (void)usleep((unsigned)(2000 + test_random(&state) % 60000));
        while (access(path, F_OK) != 0);
        CHECK_EQ(kill(child, SIGKILL), 0);
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
        CHECK_EQ(nodedb_vamana_verify(path, NULL, NULL, NULL, NULL), NODEDB_OK);
        opened = nodedb_vamana_open(path, NULL, NULL);
        CHECK(opened != NULL && nodedb_vamana_count(opened) >= 300);
        nodedb_vamana_destroy(opened);
    }
}

TEST_MAIN("vamana_disk")
