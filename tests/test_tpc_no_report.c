/* nodedb_tpc.h without its reports: NODEDB_TPC_NO_REPORT leaves out their code and their declarations. */
#define NODEDB_TPC_NO_REPORT
#define NODEDB_TPC_STATIC
#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#include "test.h"

/* These names are free: a declaration of the header's would clash with ours. */
typedef struct nodedb_tpc_format { int ours; } nodedb_tpc_format;
static int nodedb_tpc_report(nodedb_tpc_format format) { return format.ours; }

static void count_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    (void)core, (void)from, (void)message;
    ++*(int *)ctx;
}

TEST(without_reports_a_runtime_runs_and_its_statistics_are_there) {
    nodedb_tpc_config config;
    nodedb_tpc_stats stats;
    nodedb_tpc_format format = {7};
    uint64_t message[8] = {0};
    int messages = 0;
    nodedb_tpc *runtime;
    memset(&config, 0, sizeof config);
    config.ctx = &messages;
    config.on_message = count_message;
    runtime = nodedb_tpc_create_manual(&config, NULL);
    REQUIRE(runtime != NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, message, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(nodedb_tpc_core_at(runtime, 0), 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_get_stats(runtime, 0, &stats), NODEDB_OK);
    CHECK(messages == 1 && stats.messages == 1);
    CHECK_EQ(nodedb_tpc_report(format), 7);
    nodedb_tpc_destroy(runtime);
}

TEST_MAIN("tpc_no_report")
