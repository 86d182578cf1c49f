/* What all benchmarks share: the rows (DESIGN: `bench  case  metric  value  unit`, tab-separated, on stdout; anything
 * else on stderr), the clock, the median, and a histogram-free percentile of samples. */
#ifndef NODEDB_BENCH_H
#define NODEDB_BENCH_H

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *bench_name = "?";

static inline uint64_t bench_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static inline void bench_row(const char *case_name, const char *metric, double value, const char *unit) {
    printf("%s\t%s\t%s\t%.6g\t%s\n", bench_name, case_name, metric, value, unit);
    fflush(stdout);
}

static inline int bench_compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value at `fraction` (0.5: median, 0.99: p99) of `n` samples, which are sorted in place. 0 for none. */
static inline double bench_percentile(double *samples, size_t n, double fraction) {
    size_t at;
    if (n == 0) return 0;
    qsort(samples, n, sizeof *samples, bench_compare_doubles);
    at = (size_t)(fraction * (double)(n - 1) + 0.5);
    return samples[at];
}

static inline double bench_median(double *samples, size_t n) { return bench_percentile(samples, n, 0.5); }

/* Is `--flag` among the arguments? */
static inline bool bench_flag(int argc, char **argv, const char *flag) {
    int i;
    for (i = 1; i < argc; i++)
        if (strcmp(argv[i], flag) == 0) return true;
    return false;
}

/* The word after `--option`, or `otherwise`. */
static inline const char *bench_option(int argc, char **argv, const char *option, const char *otherwise) {
    int i;
    for (i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], option) == 0) return argv[i + 1];
    return otherwise;
}

static inline void bench_pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

#endif
