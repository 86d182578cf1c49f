/* A cache that spills. Values live in ordinary memory while the governor grants it. When memory is short the oldest
 * move to the overflow file, and a get finds them in either place. Later half are dropped, and the file shrinks. */
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VALUES 40000
#define BUDGET_BYTES 2000000

/* A value is in one of three places: in memory, in the file, or dropped (then both are zero). */
typedef struct value {
    char *memory;
    nodedb_mem_handle cold;
    size_t bytes;
} value;

static value values[VALUES];
static nodedb_mem *mem;
static nodedb_mem_overflow *region;
static nodedb_mem_spill controller;
static size_t oldest, cold_bytes; /* values before `oldest` are not in memory; what is in the file */
static nodedb_error err;          /* every call may fail, and its error is a sentence */

static void check(nodedb_status status) {
    if (status == NODEDB_OK) return;
    fprintf(stderr, "%s\n", err.message);
    exit(1);
}

static void move_to_file(value *v) {
    check(nodedb_mem_overflow_write(region, v->memory, v->bytes, &v->cold, &err));
    free(v->memory), v->memory = NULL, cold_bytes += v->bytes;
    check(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, v->bytes, &err));
}

/* What a core does now and then: ask the governor, and move as much as it says. */
static void maintain(size_t newest) {
    nodedb_mem_spill_action action;
    size_t bytes, done = 0;
    check(nodedb_mem_spill_decide(mem, &controller, 0, NODEDB_MEM_QUERY, cold_bytes, &action, &bytes, &err));
    if (action != NODEDB_MEM_SPILL_BEGIN && action != NODEDB_MEM_SPILL_CONTINUE) return;
    for (; done < bytes && oldest < newest; oldest++) move_to_file(&values[oldest]), done += values[oldest].bytes;
}

static void put(size_t i) {
    value *v = &values[i];
    v->bytes = 500 + i % 1000;
    check(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, v->bytes, &err)); /* first the account, then the memory */
    v->memory = (char *)malloc(v->bytes);
    if (v->memory == NULL) exit(1);
    memset(v->memory, (int)('a' + i % 26), v->bytes);
}

static const char *get(const value *v) {
    if (v->memory != NULL) return v->memory;
    return (const char *)nodedb_mem_overflow_read(region, v->cold, NULL, &err); /* valid until it is freed or moved */
}

static void drop(value *v) {
    if (v->memory != NULL) check(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, v->bytes, &err));
    else check(nodedb_mem_overflow_free(region, v->cold, &err)), cold_bytes -= v->bytes;
    free(v->memory), memset(v, 0, sizeof *v);
}

int main(void) {
    static nodedb_mem_config config;
    static nodedb_mem_overflow_config overflow;
    nodedb_mem_usage usage;
    uint64_t fragmented = 0, compact = 0;
    size_t intact = 0;
    bool complete = false;
    config.ceiling_bytes = BUDGET_BYTES, config.max_cores = 1;
    overflow.dir = ".";
    if ((mem = nodedb_mem_create(&config, &err)) == NULL) check(err.status);
    if ((region = nodedb_mem_overflow_open(&overflow, &err)) == NULL) check(err.status);
    for (size_t i = 0; i < VALUES; i++) put(i), maintain(i);
    for (size_t i = 0; i < VALUES; i++) {
        const char *at = get(&values[i]);
        intact += at != NULL && at[0] == (char)('a' + i % 26) && at[values[i].bytes - 1] == at[0];
    }
    check(nodedb_mem_get_usage(mem, NODEDB_MEM_QUERY, &usage, &err));
    printf("%lu of %d values intact, %lu of them in the overflow file\n", (unsigned long)intact, VALUES,
           (unsigned long)oldest);
    printf("at most %lu bytes in memory, of %d allowed; refused: %lu\n", (unsigned long)usage.peak_bytes, BUDGET_BYTES,
           (unsigned long)usage.rejections);
    for (size_t i = 0; i < VALUES; i += 2) drop(&values[i]);
    check(nodedb_mem_overflow_trim(region, &fragmented, &err)); /* no whole granule is free */
    while (!complete) check(nodedb_mem_overflow_compact(region, 0, NULL, NULL, &complete, &err));
    check(nodedb_mem_overflow_trim(region, &compact, &err));
    printf("every second dropped: trim gave back %lu MiB, after compaction %lu MiB\n",
           (unsigned long)(fragmented >> 20), (unsigned long)(compact >> 20));
    for (size_t i = 1; i < VALUES; i += 2) drop(&values[i]);
    nodedb_mem_overflow_close(region);
    nodedb_mem_destroy(mem);
    return 0;
}
