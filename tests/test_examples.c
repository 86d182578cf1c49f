/* The example programs run, end well, and print what their readers are told to expect. They are taken from the
 * directory in NODEDB_BUILD_DIR (default "build"), and run in an empty one. */
#include "test.h"
#include <limits.h>
#include <sys/wait.h>

static char output[16384];

/* Runs build/`program` with `arguments`; its standard output is in `output`. Answers its exit status, or -1. */
static int run(const char *program, const char *arguments) {
    const char *build = getenv("NODEDB_BUILD_DIR");
    char path[PATH_MAX], command[PATH_MAX + 700];
    size_t bytes;
    FILE *pipe;
    int status;
    snprintf(command, sizeof command, "%s/%s", build != NULL && build[0] != 0 ? build : "build", program);
    output[0] = 0;
    if (realpath(command, path) == NULL) {
        fprintf(stderr, "there is no %s: ./build.sh build makes it\n", command);
        return -1;
    }
    snprintf(command, sizeof command, "cd '%s' && exec '%s' %s", test_dir(), path, arguments);
    pipe = popen(command, "r");
    if (pipe == NULL) return -1;
    bytes = fread(output, 1, sizeof output - 1, pipe);
    output[bytes] = 0;
    status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Is there an output line that is exactly this? */
static void check_line(const char *line) {
    char whole[400];
    size_t length = (size_t)snprintf(whole, sizeof whole, "%s\n", line);
    const char *p = output;
    for (; (p = strstr(p, whole)) != NULL; p += length)
        if (p == output || p[-1] == '\n') return;
    CHECK_HAS(output, whole);
}

TEST(example_wal_replays_every_posting_that_was_committed) {
    CHECK_EQ(run("example_wal", "."), 0); /* the log goes here, and not to /tmp */
    check_line("committed 6 records of 126 bytes with at most one write for each");
    check_line("replayed posting 1 of tenant 0");
    check_line("replayed posting 3 of tenant 1");
    check_line("replayed 6 records");
    CHECK_HAS(output, "checkpoint is record ");
    check_line("replayed 1 record");
}

TEST(example_mem_stays_inside_its_budget_loses_no_value_and_its_file_shrinks) {
    CHECK_EQ(run("example_mem", ""), 0);
    CHECK_HAS(output, "40000 of 40000 values intact");
    CHECK_HAS(output, "of 2000000 allowed; refused: 0\n");
    CHECK_HAS(output, "in the overflow file\n");
    CHECK_HAS(output, "trim gave back 0 MiB, after compaction 1"); /* 18 or so */
}

TEST(example_tpc_loses_no_money_and_refuses_the_request_that_keeps_failing) {
    CHECK_EQ(run("example_tpc", ""), 0);
    check_line("99996 transfers done, 2 failed, 2 refused; money made or lost: 0");
}

TEST(example_vamana_runs) {
    CHECK_EQ(run("example_vamana", ""), 0);
    CHECK(output[0] != 0);
}

TEST(example_prefetch_reads_records_when_their_ticket_is_back) {
    CHECK_EQ(run("example_prefetch", ""), 0);
    check_line("ticket 42 is back");
    check_line("48 records add up to 2208576");
    check_line("48 ranges were merged into 24 runs");
    check_line("this thread is well");
    check_line("released; record 7 still holds 7");
}

TEST_MAIN("examples")
