/* Tests of nodedb_vamana.h without what a small program leaves out: disk mode (NODEDB_VAMANA_NO_DISK) and the kernels
 * of each CPU (NODEDB_VAMANA_NO_SIMD). */
#define NODEDB_VAMANA_NO_DISK
#define NODEDB_VAMANA_NO_SIMD
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "test.h"

#define DIM 32
#define COUNT 5000 /* enough for codes */
#define QUERIES 20

static float vectors[COUNT][DIM];

static const char *path_of_file(void) {
    static char path[600];
    snprintf(path, sizeof path, "%s/index", test_dir());
    return path;
}

static nodedb_vamana *build(void) {
    nodedb_vamana_config c;
    nodedb_vamana *index;
    uint64_t state = test_seed;
    for (size_t i = 0; i < COUNT; i++)
        for (size_t j = 0; j < DIM; j++) vectors[i][j] = (float)(test_random(&state) % 1000) / 1000;
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.degree = 16;
    index = nodedb_vamana_create(&c, NULL);
    CHECK(index != NULL);
    CHECK_EQ(nodedb_vamana_build(index, NULL, vectors, COUNT, 1, NULL, NULL, NULL), NODEDB_OK);
    return index;
}

/* Every query is a vector of the index, so the vector itself must be the first result. */
static void check_searches(nodedb_vamana *index) {
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(index, NULL, NULL);
    nodedb_vamana_result results[QUERIES][10];
    uint32_t found[QUERIES];
    nodedb_vamana_query q;
    CHECK(s != NULL);
    memset(&q, 0, sizeof q);
    for (uint32_t i = 0; i < QUERIES; i++) {
        q.vector = vectors[i * 100];
        CHECK_EQ(nodedb_vamana_search(s, &q, results[0], &found[0], NULL, NULL), NODEDB_OK);
        CHECK(found[0] == 10 && results[0][0].id == i * 100);
    }
    CHECK_EQ(nodedb_vamana_search_many(s, &q, vectors, QUERIES, results[0], found, NULL, NULL), NODEDB_OK);
    for (uint32_t i = 0; i < QUERIES; i++) CHECK(found[i] == 10 && results[i][0].id == i);
    nodedb_vamana_searcher_destroy(s);
}

TEST(without_disk_mode_an_index_is_built_searched_changed_saved_and_opened_in_memory) {
    nodedb_vamana *index = build();
    nodedb_error err;
    float out[DIM];
    check_searches(index);
    CHECK_EQ(nodedb_vamana_remove(index, COUNT - 1, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_insert(index, COUNT, vectors[COUNT - 1], NULL), NODEDB_OK);
    CHECK_EQ(nodedb_vamana_save(index, path_of_file(), NODEDB_VAMANA_RESIDENT, &err), NODEDB_OK);
    nodedb_vamana_destroy(index);
    CHECK_EQ(nodedb_vamana_verify(path_of_file(), NULL, NULL, NULL, &err), NODEDB_OK);
    index = nodedb_vamana_open(path_of_file(), NULL, &err);
    CHECK(index != NULL && nodedb_vamana_count(index) == COUNT);
    check_searches(index);
    CHECK(nodedb_vamana_contains(index, COUNT) && !nodedb_vamana_contains(index, COUNT - 1));
    CHECK_EQ(nodedb_vamana_get(index, COUNT, out, NULL), NODEDB_OK);
    CHECK(memcmp(out, vectors[COUNT - 1], sizeof out) == 0);
    nodedb_vamana_destroy(index);
}

TEST(without_disk_mode_opening_on_disk_is_an_error_that_names_the_macro) {
    nodedb_vamana *index = build();
    nodedb_vamana_open_config c;
    nodedb_error err;
    CHECK_EQ(nodedb_vamana_save(index, path_of_file(), NODEDB_VAMANA_RESIDENT, &err), NODEDB_OK);
    memset(&c, 0, sizeof c);
    c.mode = NODEDB_VAMANA_ON_DISK;
    CHECK(nodedb_vamana_open(path_of_file(), &c, &err) == NULL);
    CHECK(err.status == NODEDB_ERR_UNSUPPORTED && strstr(err.message, "NODEDB_VAMANA_NO_DISK") != NULL);
    nodedb_vamana_destroy(index);
}

TEST(without_disk_mode_verify_finds_a_damaged_block) {
    nodedb_vamana *index = build();
    nodedb_error err;
    FILE *f;
    CHECK_EQ(nodedb_vamana_save(index, path_of_file(), NODEDB_VAMANA_RESIDENT, &err), NODEDB_OK);
    nodedb_vamana_destroy(index);
    f = fopen(path_of_file(), "r+b");
    CHECK(f != NULL && fseek(f, 50000, SEEK_SET) == 0 && fputc(0x5A, f) == 0x5A && fclose(f) == 0);
    CHECK_EQ(nodedb_vamana_verify(path_of_file(), NULL, NULL, NULL, &err), NODEDB_ERR_CORRUPT);
    CHECK(nodedb_vamana_open(path_of_file(), NULL, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
}

TEST(without_kernels_for_each_cpu_there_is_the_plain_set) {
    nodedb_vamana_config c;
    nodedb_error err;
    CHECK(nodedb_vamana_kernels_at(0) != NULL && strcmp(nodedb_vamana_kernels_at(0)->name, "plain") == 0);
    CHECK(nodedb_vamana_kernels_at(1) == NULL);
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.kernel = "avx2";
    CHECK(nodedb_vamana_create(&c, &err) == NULL && err.status == NODEDB_ERR_UNSUPPORTED);
}

TEST_MAIN("vamana_small")
