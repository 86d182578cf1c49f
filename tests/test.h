/* The test harness. It needs no library: a user who vendors a header can read and run its tests with a compiler alone.
 *
 *   #include "test.h"
 *   TEST(torn_tail_is_dropped_and_log_goes_on) {
 *       CHECK(nodedb_wal_open(...) != NULL);
 *       CHECK_EQ(records, 7);
 *   }
 *   TEST_MAIN("wal")
 *
 * A test reads as a sentence of the manual. CHECK goes on after a failure, REQUIRE leaves the test. Arguments of the
 * program: names (parts of names) of the tests to run, `--seed N` (default 1; printed at every failure), `--long` for
 * the long form of campaigns, `--list`. The last line is `N passed, N failed`. The exit status is 0 only if none
 * failed. `test_dir()` gives a new empty directory for the running test, on disk (build/tmp) and not on tmpfs. It is
 * removed after the test. */
#ifndef NODEDB_TEST_H
#define NODEDB_TEST_H

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* 1 where everything runs twenty times slower: under the thread sanitizer, or (by -DSLOW=1) an emulator. Tests then use
 * less data. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOW 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define SLOW 1
#endif
#if !defined(SLOW)
#define SLOW 0
#endif

typedef struct test_case {
    const char *name;
    void (*run)(void);
    struct test_case *next;
} test_case;

static test_case *test_first, **test_last = &test_first;
static int test_failures_here; /* failed checks of the running test; written with atomics, as tests have threads */
static uint64_t test_seed = 1;
static bool test_long;
static const char *test_name = "";
static char test_dir_path[512];

#define TEST(name)                                                                                                     \
    static void test_run_##name(void);                                                                                 \
    static test_case test_case_##name = {#name, test_run_##name, NULL};                                                \
    __attribute__((constructor)) static void test_add_##name(void) {                                                   \
        *test_last = &test_case_##name;                                                                                \
        test_last = &test_case_##name.next;                                                                            \
    }                                                                                                                  \
    static void test_run_##name(void)

static inline void test_fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: in %s (--seed %" PRIu64 "): %s\n", file, line, test_name, test_seed, what);
    __atomic_fetch_add(&test_failures_here, 1, __ATOMIC_RELAXED);
}

#define CHECK(condition) ((condition) ? (void)0 : test_fail(__FILE__, __LINE__, "does not hold: " #condition))
#define CHECK_EQ(got, want)                                                                                            \
    do {                                                                                                               \
        long long test_got = (long long)(got), test_want = (long long)(want);                                          \
        if (test_got != test_want) {                                                                                   \
            char test_text[320];                                                                                       \
            snprintf(test_text, sizeof test_text, "%s is %lld, not %lld", #got, test_got, test_want);                  \
            test_fail(__FILE__, __LINE__, test_text);                                                                  \
        }                                                                                                              \
    } while (0)
/* Is `part` somewhere in `text`? For messages to a person. */
#define CHECK_HAS(text, part)                                                                                          \
    do {                                                                                                               \
        const char *test_whole = (text);                                                                               \
        if (strstr(test_whole, (part)) == NULL) {                                                                      \
            char test_text[640];                                                                                       \
            snprintf(test_text, sizeof test_text, "\"%.400s\" does not contain \"%.200s\"", test_whole, (part));       \
            test_fail(__FILE__, __LINE__, test_text);                                                                  \
        }                                                                                                              \
    } while (0)
#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            test_fail(__FILE__, __LINE__, "does not hold: " #condition);                                               \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

/* A stream of numbers from the seed: the same seed, the same test. splitmix64. */
static inline uint64_t test_random(uint64_t *state) {
    uint64_t x = (*state += UINT64_C(0x9E3779B97F4A7C15));
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

static inline void test_remove_tree(const char *path) {
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    if (system(command) != 0) fprintf(stderr, "cannot remove %s\n", path);
}

static inline const char *test_dir(void) {
    if (test_dir_path[0] == 0) {
        const char *base = access("build", W_OK) == 0 ? "build/tmp" : "tmp";
        (void)mkdir(base, 0777);
        snprintf(test_dir_path, sizeof test_dir_path, "%s/%s-%d", base, test_name, (int)getpid());
        test_remove_tree(test_dir_path);
        if (mkdir(test_dir_path, 0777) != 0) test_fail(__FILE__, __LINE__, "cannot make the test's directory");
    }
    return test_dir_path;
}

static inline int test_main(const char *suite, int argc, char **argv) {
    int passed = 0, failed = 0, i, names = 0;
    test_case *t;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) test_seed = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--long") == 0) test_long = true;
        else if (strcmp(argv[i], "--list") == 0) {
            for (t = test_first; t != NULL; t = t->next) puts(t->name);
            return 0;
        } else argv[++names] = argv[i];
    }
    for (t = test_first; t != NULL; t = t->next) {
        bool wanted = names == 0;
        for (i = 1; i <= names; i++) wanted = wanted || strstr(t->name, argv[i]) != NULL;
        if (!wanted) continue;
        test_name = t->name;
        test_failures_here = 0;
        t->run();
        if (test_dir_path[0] != 0) test_remove_tree(test_dir_path);
        test_dir_path[0] = 0;
        if (test_failures_here == 0) passed++;
        else failed++;
        printf("%s %s: %s\n", test_failures_here == 0 ? "ok  " : "FAIL", suite, t->name);
        fflush(stdout);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}

#define TEST_MAIN(suite)                                                                                               \
    int main(int argc, char **argv) { return test_main(suite, argc, argv); }

#endif
