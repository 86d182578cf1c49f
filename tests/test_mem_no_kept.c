/* nodedb_mem.h without kept regions and views: what is left compiles alone and works, and a name is an error. */
#define NODEDB_MEM_NO_KEPT
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#include "test.h"

TEST(without_kept_regions_the_governor_grants_and_refuses) {
    nodedb_mem_config config;
    nodedb_error err;
    nodedb_mem *mem;
    memset(&config, 0, sizeof config);
    config.ceiling_bytes = 1000, config.max_cores = 1;
    mem = nodedb_mem_create(&config, &err);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1000, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_WAL, 1, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 1000, &err), NODEDB_OK);
    nodedb_mem_destroy(mem);
}

TEST(without_kept_regions_a_scratch_region_writes_reads_and_frees) {
    nodedb_mem_overflow_config config;
    nodedb_mem_overflow *region;
    nodedb_mem_handle handle;
    nodedb_error err;
    const char *object;
    size_t bytes;
    memset(&config, 0, sizeof config);
    config.dir = test_dir();
    region = nodedb_mem_overflow_open(&config, &err);
    REQUIRE(region != NULL);
    CHECK_EQ(nodedb_mem_overflow_write(region, "twelve bytes", 12, &handle, &err), NODEDB_OK);
    object = (const char *)nodedb_mem_overflow_read(region, handle, &bytes, &err);
    REQUIRE(object != NULL);
    CHECK(bytes == 12 && memcmp(object, "twelve bytes", 12) == 0);
    CHECK_EQ(nodedb_mem_overflow_free(region, handle, &err), NODEDB_OK);
    CHECK(nodedb_mem_overflow_read(region, handle, &bytes, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_NOT_FOUND);
    nodedb_mem_overflow_close(region);
}

TEST(without_kept_regions_a_name_is_refused_and_makes_no_file) {
    nodedb_mem_overflow_config config;
    nodedb_error err;
    memset(&config, 0, sizeof config);
    config.dir = test_dir(), config.name = "kept";
    CHECK(nodedb_mem_overflow_open(&config, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "NODEDB_MEM_NO_KEPT");
    CHECK_EQ(rmdir(config.dir), 0); /* it is empty */
}

TEST_MAIN("mem_no_kept")
