/* What a test and the shim inside the server share: one page of a file, mapped by both. See preload_shim.c. */
#ifndef NODEDB_PRELOAD_SHIM_H
#define NODEDB_PRELOAD_SHIM_H
#include <stdint.h>

#define SHIM_FILE_VARIABLE "NODEDB_TEST_SHIM" /* names the file */

typedef struct shim_state {
    int64_t offset_ns; /* added to the wall clock */
    int64_t frozen_ns; /* not 0: the wall clock stands at this time */
    uint64_t reads;    /* how often the wall clock was read: 0 means that the shim has no effect */
    int64_t die_at;    /* not 0: SIGKILL just before this call that changes files, counted from 1 */
    int64_t calls;     /* calls that change files, so far */
    uint64_t syncs;    /* of these: fsync and fdatasync */
} shim_state;

#endif
