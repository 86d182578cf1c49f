/* A tiny cache that stays inside its budget: values live in ordinary memory while the governor grants it; when it says
 * that memory is short, the oldest are moved to the overflow file, and reading finds them in either place. */
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VALUES 1000
#define BUDGET_BYTES 20000

typedef struct value {
    char *memory;           /* or NULL: it is spilled */
    nodedb_mem_handle cold; /* where it is then */
    size_t bytes;
} value;

static value values[VALUES];
static size_t oldest; /* values before this one are spilled */

static int fail(const nodedb_error *err) {
    fprintf(stderr, "%s\n", err->message);
    return 1;
}

/* Moves the oldest values out of memory, until `bytes` bytes are. */
static nodedb_status spill(nodedb_mem *mem, nodedb_mem_overflow *region, size_t bytes, nodedb_error *err) {
    while (bytes > 0 && values[oldest].memory != NULL) {
        value *v = &values[oldest++];
        nodedb_status status = nodedb_mem_overflow_write(region, v->memory, v->bytes, &v->cold, err);
        if (status != NODEDB_OK) return status;
        free(v->memory);
        v->memory = NULL;
        status = nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, v->bytes, err);
        if (status != NODEDB_OK) return status;
        bytes -= v->bytes < bytes ? v->bytes : bytes;
    }
    return NODEDB_OK;
}

int main(void) {
    nodedb_error err;
    nodedb_mem_config config = {0};
    nodedb_mem_overflow_config overflow = {0};
    nodedb_mem_spill controller = {0};
    nodedb_mem_spill_action action;
    nodedb_mem_usage usage;
    nodedb_mem_overflow_stats stats;
    nodedb_mem *mem;
    nodedb_mem_overflow *region;
    size_t i, bytes, intact = 0;
    config.ceiling_bytes = BUDGET_BYTES;
    config.max_cores = 1;
    mem = nodedb_mem_create(&config, &err);
    if (mem == NULL) return fail(&err);
    overflow.dir = ".";
    region = nodedb_mem_overflow_open(&overflow, &err);
    if (region == NULL) return fail(&err);

    for (i = 0; i < VALUES; i++) {
        value *v = &values[i];
        v->bytes = 50 + i % 100;
        if (nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, v->bytes, &err) != NODEDB_OK) return fail(&err);
        v->memory = (char *)malloc(v->bytes);
        if (v->memory == NULL) return 1;
        memset(v->memory, (int)('a' + i % 26), v->bytes);
        if (nodedb_mem_spill_decide(mem, &controller, 0, NODEDB_MEM_QUERY, 0, &action, &bytes, &err) != NODEDB_OK)
            return fail(&err);
        if (action != NODEDB_MEM_SPILL_NONE && spill(mem, region, bytes, &err) != NODEDB_OK) return fail(&err);
    }
    for (i = 0; i < VALUES; i++) {
        const char *at = values[i].memory;
        bytes = values[i].bytes;
        if (at == NULL) at = (const char *)nodedb_mem_overflow_read(region, values[i].cold, &bytes, &err);
        if (at == NULL) return fail(&err);
        intact += bytes == 50 + i % 100 && at[0] == (char)('a' + i % 26) && at[bytes - 1] == at[0];
    }
    if (nodedb_mem_get_usage(mem, NODEDB_MEM_QUERY, &usage, &err) != NODEDB_OK) return fail(&err);
    if (nodedb_mem_overflow_get_stats(region, &stats, &err) != NODEDB_OK) return fail(&err);
    printf("%lu of %d values intact\n", (unsigned long)intact, VALUES);
    printf("%lu bytes in memory, of %d allowed; at most %lu, none refused: %s\n", (unsigned long)usage.reserved_bytes,
           BUDGET_BYTES, (unsigned long)usage.peak_bytes, usage.rejections == 0 ? "yes" : "no");
    printf("%lu values with %lu bytes in the overflow file, after %lu spills\n", (unsigned long)stats.objects,
           (unsigned long)stats.object_bytes, (unsigned long)controller.begins);
    for (i = oldest; i < VALUES; i++) {
        if (nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, values[i].bytes, &err) != NODEDB_OK) return fail(&err);
        free(values[i].memory);
    }
    nodedb_mem_overflow_close(region);
    nodedb_mem_destroy(mem);
    return 0;
}
