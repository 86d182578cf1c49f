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
    uint64_t drops;    /* MADV_DONTNEED on a shared mapping of a GiB and more: the overflow file's */
    uint64_t strays;   /* of these: those that also went beyond that mapping */
    uint32_t watches;  /* not 0: drops and strays are counted, which takes a look at /proc/self/maps each; and such a
                        * mapping begins at no multiple of 64 KiB, between pages that are not the program's */
    char full[64];     /* not "": files whose path has this in it grow no more: ENOSPC */
} shim_state;

#endif
