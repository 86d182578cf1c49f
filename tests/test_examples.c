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

TEST(example_wal_follows_every_change_and_goes_on_from_its_checkpoint) {
    CHECK_EQ(run("example_wal", "."), 0);
    check_line("counter 0 is 6");
    check_line("counter 1 is 6");
    check_line("truncated 0 segments: the log begins with record 1");
    CHECK_EQ(run("example_wal", "."), 0);
    check_line("counter 0 is 12");
    check_line("truncated 1 segments: the log begins with record 9"); /* 6 changes, a checkpoint, a seal */
    CHECK_EQ(run("example_wal", "."), 0);
    check_line("counter 1 is 18"); /* 6 of them from the checkpoint: its changes were truncated */
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

TEST(example_vamana_finds_the_nearest_colours_in_memory_and_on_disk) {
    CHECK_EQ(run("example_vamana", ""), 0);
    check_line("near a sunset: orange (650) coral (4154) gold (4650)");
    check_line("near a sunset, without orange: coral (4154) gold (4650) salmon (9320)");
    check_line("on disk, like gold: gold (0) yellow (1600) coral (14144)");
    check_line("on disk, near dusk, with an o: indigo (4425) maroon (33624) brown (34653)");
}

TEST(example_prefetch_scans_ahead_of_its_faults_and_releases_no_neighbour) {
    CHECK_EQ(run("example_prefetch", ""), 0);
    check_line("2048 records add up to 102237632");
    check_line("one record covers no whole page: 0 pages released");
    CHECK_HAS(output, "the table: ");
    check_line("record 7 still holds 7");
}

TEST_MAIN("examples")
