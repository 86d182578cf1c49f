/* nodedb_mem.h - v0.2 - exact memory budgets, pressure, spill to a file, arenas - public domain or MIT, as you prefer

1. WHAT IT IS FOR, AND NOT FOR
   A server that must stay inside a fixed amount of memory, with several parts ("engines") and a thread per core:
     - a GOVERNOR that answers "may I hold N more bytes", exactly, for a few nanoseconds;
     - PRESSURE levels and a SPILL controller, which tell when to move cold data out of memory and when to bring it
       back;
     - an OVERFLOW REGION, a mapped file for that data, whose pointers stay valid while it grows: scratch, or kept;
     - ARENAS: the allocator's memory of one thread or one set of data, apart from all others (needs jemalloc);
     - what the process REALLY uses, beside what was accounted.
   It is not an allocator: it counts what you say you hold. It does not kill, evict or free anything by itself. A kept
   region is no log and has no transactions: what was written since the last sync may be gone after a power cut; then
   a read of it answers NODEDB_ERR_NOT_FOUND or NODEDB_ERR_CORRUPT.

2. QUICK START
   A value is accounted before it is allocated, moved to the file when memory is short, and read from there. An object
   moves whole, so it may be more than what was asked for (`move`): go on until the sum is reached.

        #define NODEDB_MEM_IMPLEMENTATION
        #include <nodedb_mem.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        static int fail(const nodedb_error *err) { return fprintf(stderr, "%s\n", err->message), 1; }
        int main(void) {
            nodedb_mem_config config;
            nodedb_mem_overflow_config file;
            nodedb_mem_spill spill;
            nodedb_mem_spill_action action;
            nodedb_mem_handle handle;
            nodedb_error err;
            size_t bytes = 1000, move, length;
            memset(&config, 0, sizeof config), memset(&file, 0, sizeof file), memset(&spill, 0, sizeof spill);
            config.ceiling_bytes = 1100, config.max_cores = 1;
            file.dir = ".";
            nodedb_mem *mem = nodedb_mem_create(&config, &err);
            if (mem == NULL) return fail(&err);
            nodedb_mem_overflow *region = nodedb_mem_overflow_open(&file, &err);
            if (region == NULL) return fail(&err);
            // core 0 asks the governor first; a refusal says which limit, how much was asked, how much is left
            if (nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, bytes, &err) != NODEDB_OK) return fail(&err);
            char *value = (char *)calloc(1, bytes);
            if (value == NULL) return 1;
            // in its maintenance it asks what to move: here 1000 of 1100 bytes are in use, so it is told to begin
            if (nodedb_mem_spill_decide(mem, &spill, 0, NODEDB_MEM_QUERY, 0, &action, &move, &err) != NODEDB_OK)
                return fail(&err);
            if (action == NODEDB_MEM_SPILL_BEGIN || action == NODEDB_MEM_SPILL_CONTINUE) {
                if (nodedb_mem_overflow_write(region, value, bytes, &handle, &err) != NODEDB_OK) return fail(&err);
                free(value);
                if (nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, bytes, &err) != NODEDB_OK) return fail(&err);
                const char *cold = (const char *)nodedb_mem_overflow_read(region, handle, &length, &err);
                if (cold == NULL) return fail(&err);
                printf("%lu bytes asked for, %lu moved out, the first is %d\n", (unsigned long)move,
                       (unsigned long)length, cold[0]);
            } else free(value);
            nodedb_mem_overflow_close(region);
            nodedb_mem_destroy(mem);
            return 0;
        }

3. CONCEPTS
   Ceiling, engine, limit. The ceiling bounds the sum over all engines; each engine may have a limit of its own. Seven
   engines exist from the start, more are registered by name. A reservation that would pass either is refused; the
   sentence in nodedb_error says which, how much was asked and how much is left. Both hold exactly under any
   interleaving of threads: what was granted never passes them, and nothing is refused that would have fitted (a release
   on another core counts when it has arrived: see DEPARTURES).

   Credit. If each reservation asked a shared counter, all cores would write one cache line. Instead each core holds
   some credit for each engine: bytes already drawn from the engine's limit and the ceiling, in chunks
   (config.chunk_bytes, less when little is left), that no other core can reserve. A reservation that the credit covers,
   and every release, writes a line of the core's own and nothing else. Credit counts inside the limits. When the common
   pool cannot serve a draw, idle credit of all cores is reclaimed first; only then is a reservation refused. So a
   refusal is not cheap: it reads the cells of all cores under a lock. After one, spill or wait; do not ask in a loop.

   Forced reservations are never refused and may pass the limits: for what exists already (recovery), and for what
   cannot be avoided. They are counted apart. While a limit is passed, every ordinary reservation under it that begins
   is refused.

   NODEDB_MEM_GLOBAL names the ceiling, the sum of all engines. Every function that looks at an engine, sets its limit
   or decides about it takes NODEDB_MEM_GLOBAL in its place. Only bytes must belong to an engine: reserve,
   reserve_forced and release answer NODEDB_ERR_NOT_FOUND to it.

   Pressure. How full an engine or the ceiling is: NORMAL, WARNING from 70 %, CRITICAL from 85 %, EMERGENCY from 95 %. A
   level is left only 5 points below the mark where it was entered. A level is computed when somebody asks
   (nodedb_mem_pressure, nodedb_mem_poll); changes are then reported to a callback.

   Lending. nodedb_mem_rebalance moves what engines leave idle of their limits to those in need, within the sum that was
   set, and back when the owner needs it.

   Spill. An engine or the ceiling begins to spill when it is 90 % full, and goes on until it is under 75 %:
       0 %                            75 %             90 %           100 %
       |   bring back, or do nothing   |   as before    |   move out   |
   Each core asks nodedb_mem_spill_decide in its maintenance, with a controller of its own, about one engine or about
   NODEDB_MEM_GLOBAL. While it spills, every core is told to move bytes out: BEGIN the first time, then CONTINUE (a core
   that holds nothing: 0 bytes). Otherwise a core that has bytes out is told to RESTORE some, as long as there is room
   under 75 %. All others are told NONE. Each core gets a share. The shares that go out suffice together to get under
   75 %, as far as the cores hold that much: the bytes of NODEDB_MEM_ANY_THREAD are for one that asks as such. The
   shares that come back stay under 75 % together, if each core acts once before it asks again. The governor itself
   remembers whether it spills. So all cores agree, and none brings bytes back while another still moves some out.
   To bring an object back: read it, reserve its length (a refusal means: not now), copy it into memory, free the
   handle. Nobody has to: a cold object may be served from the region's pointer for as long as it lives.
   A reservation may be refused between two decisions, and also while the decision is NONE: one large value does not fit
   into the last tenth. Then move that many bytes out yourself, release them, and reserve again.

   Overflow region. A mapped file of one core, with best-fit allocation and neighbours merged. A handle names an object
   and its generation: after a free it is stale, and every use of it is an error. Addresses for the maximum are taken
   once, so the region grows without moving. Disk blocks are allocated before they are touched: a full disk is
   NODEDB_ERR_DISK_FULL from write, not a SIGBUS later. Scratch is a nameless file, gone with the region or the process.

   Update and compaction. nodedb_mem_overflow_update replaces an object's bytes under the same handle.
   nodedb_mem_overflow_compact moves objects down into holes, a bounded number at a time, so that whole granules of the
   file become free; nodedb_mem_overflow_trim gives free granules back to the file system. A handle survives an update
   and a compaction. A pointer does not: read again after them, or tell compact which objects must stay.

   Kept regions (config.name). The file has a table besides the data, with a checksum for each object. Opened again, by
   whatever process, all objects are there under the handles that they had: save those in your own data, or step through
   them with nodedb_mem_overflow_next. Free what you do not need any more: objects of an earlier run stay until then. A
   process that is killed loses nothing. After a power cut, looking back to the last nodedb_mem_overflow_sync:
     - an object that was there, and has not been freed or updated since, is there;
     - one that was updated since has its old bytes or its new ones, or it is gone, or its read answers
       NODEDB_ERR_CORRUPT; one that was freed since is gone, or there again, or corrupt (a write, a compaction or a trim
       may have taken its place);
     - one that was written since is there, or gone, or corrupt.
   Never are other bytes taken for an object's: contents are compared with their checksum when they are first read.

   Views. Another thread reads a region through a view: read-only memory, without a message to the owner. It may use a
   pointer (nodedb_mem_overflow_view_read) while the two have agreed that the object stays, or take a copy
   (nodedb_mem_overflow_view_copy), which is whole or refused, whatever the owner does meanwhile.

4. API BY TASK
   set up        nodedb_mem_create, nodedb_mem_destroy, nodedb_mem_register_engine, nodedb_mem_set_limit
   account       nodedb_mem_reserve, nodedb_mem_reserve_forced, nodedb_mem_release, nodedb_mem_rebalance
   look          nodedb_mem_get_usage, nodedb_mem_get_reality
   react         nodedb_mem_pressure, nodedb_mem_poll, nodedb_mem_spill_decide
   spill         nodedb_mem_overflow_open, _close, _write, _read, _update, _free, _next
   tidy up       nodedb_mem_overflow_compact, _trim, _get_stats
   arenas        nodedb_mem_arena_available, _create, _bind_thread, _allocator, _get_stats, _reset, _destroy
   NUMA          nodedb_mem_numa_bind_thread
   keep          nodedb_mem_overflow_sync, _verify
   share reads   nodedb_mem_overflow_view_open, _view_read, _view_copy, _view_close

   How a maintenance makes a fragmented file smaller: when stats.disk_bytes is much more than stats.used_bytes (twice
   as much, say), call compact once in each round until it sets *complete, then trim. One call moves 1 MiB by default.

5. THREADS
   Governor: `core` is an index below config.max_cores. At one time only one thread may use one index for
   nodedb_mem_reserve, _reserve_forced and _release. Which one may change if the old thread's calls happen before the
   new thread's (a join, a lock, a queue). NODEDB_MEM_ANY_THREAD instead of an index may be used by all threads at any
   time, at the price of a lock. Bytes are released through the index that reserved them: a core that hands memory to
   another has it released by a message back, or the two account it again. All other functions of the governor may be
   called by any thread at any time, except create and destroy, which must be alone.
   Overflow region: one thread at a time, except nodedb_mem_overflow_get_stats and _view_open, which any thread may
   call. Pointers that read returned may be read by any thread until the object is freed, updated or moved. A view is
   used by one thread at a time, while the region's own thread goes on.
   Arenas: bind_thread acts on the calling thread; the rest by any thread. NUMA: the calling thread.
   fork(2): the child must call nothing here. It shares the region's mapping, and a kept file stays locked until the
   child has ended or called exec, too.
   Callbacks run on the calling thread, without locks held: on_pressure may call the governor, may_move must not call
   the region. The allocator is called by create and destroy, and for a region by its thread and those that open and
   close views.

6. MEMORY
   Governor: 2 KiB for each core and 10 KiB, taken at creation; nothing later.
   Overflow region: 32 bytes of ordinary memory for each block (object or hole), taken 4096 blocks at a time and kept
   until close; 180 KiB at opening, with the first 4096 (and with 1 GiB: 8 bytes more for each 4096 of max_blocks). It
   is not accounted: if it shall count, reserve stats.metadata_bytes. Sizes are rounded up to 16 bytes in the file.
   Kept: 32 bytes more for each block in the file, mapped; reopening takes 8 bytes a block for a moment, and qsort(3)
   may take as much.
   Addresses: max_bytes, kept 32 * max_blocks more (512 MiB by default, before 1 GiB of data), and as much again for
   each view.
   What the kernel caches of the file is its own: it counts as resident, in a cgroup too, and is written out and dropped
   under pressure.

7. ERRORS
   Each function lists its own. After any answer but NODEDB_OK no object, limit or reservation was changed, except where
   the function says so (compact, trim). NODEDB_ERR_LIMIT is a refusal and part of life. NODEDB_ERR_INVALID (also: a
   release of more than is reserved) and NODEDB_ERR_NOT_FOUND (also: a stale handle) are faults of the caller's. Any
   nodedb_error may be NULL; a refusal is cheaper then, as no sentence is made.
   A call that was not understood never looks like "all is well": nodedb_mem_spill_decide sets NODEDB_MEM_SPILL_INVALID,
   and a level, which has no room for an error, is NODEDB_MEM_EMERGENCY.
   Reading an object whose disk block has become unreadable (a failing disk) is a SIGBUS, as with all mapped files; so
   is a file that somebody else truncates while it is open. Opening a kept file, the first read of an object that it
   brought, verify and view_copy read by system calls: there it is NODEDB_ERR_IO or NODEDB_ERR_CORRUPT.
   A file system that copies on write (btrfs, ZFS, a file that was cloned on XFS) may run full in spite of allocated
   blocks: put regions elsewhere. On tmpfs a region's "disk" is memory. It opens, with a warning to the logger and
   stats.in_memory; a kept one survives the process there but not the machine, so its sync is NODEDB_ERR_UNSUPPORTED.

8. LIMITS
   NODEDB_MEM_MAX_ENGINES 64, NODEDB_MEM_MAX_CORES 1024, NODEDB_MEM_MAX_NAME_BYTES 32 with the final zero.
   Overflow: NODEDB_MEM_OVERFLOW_MAX_BYTES 32 GiB a region (1 GiB on 32 bits), objects below 4 GiB,
   config.max_blocks blocks. A handle is known as stale until its slot has been reused 2^38 times. In a kept region that
   has been reopened, generations begin at random, so that a stale handle passes for a live one with probability 2^-38.
   A compaction looks at 4096 blocks a call, and at 64 holes for each object. An object stays where it is if may_move
   says so, if it is larger than max_bytes of the call, if it is damaged, if no hole below it that has its disk blocks
   is large enough, or if the rest of that hole would be one block too many.

9. ON DISK
   A scratch region stores nothing that anybody reads again. A kept file is little-endian; checksums are CRC-32C.
   Header, at 0 and again at 4096:
       0   8  "NDBOVFL" and a zero
       8   4  format, 1
      12   4  unit: 16, what sizes and places are counted in
      16   4  slots that the table has room for: max_blocks + 2
      20   4  bytes of an entry: 32
      24   8  where the data begin: behind the table, at a multiple of 65536
      32   4  checksum of bytes 0 .. 31
      36   4  zero
      40   4  slots in use: a multiple of 4096, or all
      44   4  checksum of bytes 40 .. 43
   Table, at 8192: an entry for each slot, from number 0, which is never used:
       0   4  checksum of bytes 4 .. 31, begun with the slot's number
       4   1  1: an object; 0: none
       5   1  upper 6 bits of the generation
       6   1  object: bytes of its last unit that are not its own (16: it is empty and has one unit)
       7   1  zero
       8   4  lower 32 bits of the generation
      12   4  object: its place in the data, in units
      16   4  object: its units
      20   4  object: checksum of its bytes
      24   8  number of this change of the table; a move by a compaction keeps it
   A handle is slot << 38 | generation. The file is sparse: it looks larger than it is (by default ls shows 512 MiB
   more than there is), so copy it with a tool that keeps holes.

10. BUILDING
   In *one* C or C++ file define NODEDB_MEM_IMPLEMENTATION before the include; include the file plainly wherever else
   you need it. It comes before any system header, or the compiler gets -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64. Linux, C99
   or C++11. -I names its folder. Link with -lpthread, and with -ljemalloc for arenas (without it they answer
   NODEDB_ERR_UNSUPPORTED); -latomic only where the compiler asks for it.
   NODEDB_MEM_IMPLEMENTATION   the code, in one file of the program
   NODEDB_MEM_STATIC           with it: all functions private to that file
   NODEDB_MEM_API              what stands before each function instead of `extern`: an export attribute, say
   NODEDB_MEM_NO_KEPT          leaves out kept regions and views, in all files of the program alike; config.name is then
                               NODEDB_ERR_UNSUPPORTED. Saves 940 lines, and 24 KiB of a stripped
                               program of 87 KiB (x86-64, gcc 12 -O2)
   NODEDB_NO_JEMALLOC          never ask jemalloc; assumed where <jemalloc/jemalloc.h> is missing

11. DEPARTURES
   Per-core counters that are exact at a limit usually lock (Linux's percpu_counter is not exact at all). Here the owner
   of a cell writes `used` and then reads `granted`; a thread that reclaims credit writes `granted` and then reads
   `used`. At least one of the two sees the other (Dekker's rule), and the owner then goes to the lock. That costs an
   exchange on a line that no other core touches; a release is a plain store, so a refusal at the same moment may not
   have seen it yet. Moving even that barrier to the other
   side, with membarrier(2), was tried and gained nothing that could be measured (AMD EPYC; other processors were not
   tried).

   The overflow allocator is best fit by exact size: one bin per size below 64 KiB, found through a two-level bitmap (as
   in TLSF, Masmano et al., ECRTS 2004, but with exact bins: the fit is the best, not a good one), and a treap (Seidel
   and Aragon, 1996) by size and address above. O(1) and O(log n). The bookkeeping stays outside of the file, so that
   merging neighbours never waits for the disk.

   Compaction usually slides objects, which copies onto bytes that an entry or a reader still names. Here an object
   moves only into a hole that holds all of it, from the end of the file downward. That is safe for readers and at a
   power cut, at the price of some holes that stay: of objects of 1 to 256 bytes with every second one freed, 93 % of
   the free space comes back (`./build.sh bench mem` in the repository prints it).

12. MEASURED
   By `./build.sh bench mem` in the repository, on 2 virtual cores, AMD EPYC. A reservation 2.8 to 3.1 ns on one core,
   2.8 to 5.2 ns on two at once; its release 3.2 to 3.6 ns, 3.3 to 6.0 ns. An uncontended atomic addition 2.7 to 3.2 ns,
   on a counter that both cores write 7 to 19 ns. A refusal 0.1 to 0.15 us with 2 cores; it grows with max_cores *
   engines. A write and a free among 1,000,000 objects of up to 256 bytes 0.45 to 0.47 us (malloc and free: 0.20 to 0.25
   us), in a kept file 0.55 to 0.70 us; that file reopens in 0.13 to 0.15 s. A read through a view 0.16 to 0.19 us, a
   copy 1.4 to 1.7 us. With --quick: a move by a compaction 0.2 us, the slowest call, of 1 MiB, 1 ms.

13. LICENCE
   Public domain (Unlicense) or MIT, as you prefer: both texts stand at the end of the file. */
/* ===================================================================================================================
 * BEGIN NODEDB BASE BLOCK: statuses, errors, memory, sentences, time. The same words in every nodedb_*.h, behind one
 * guard, so that any set of them compiles together; `./build.sh sync` copies it from nodedb_wal.h.
 * ================================================================================================================ */
#ifndef NODEDB_VERSION
#define NODEDB_VERSION "0.2.0"
#define NODEDB_VERSION_NUMBER 200 /* major * 10000 + minor * 100 + patch */

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* O_DIRECT, CPU affinity, madvise: must be seen before the first system header */
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* files over 2 GiB on 32-bit systems */
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NODEDB_CACHE_LINE_BYTES 64       /* what two threads must not share; 128 would also cover paired prefetch */
#define NODEDB_ERROR_MESSAGE_BYTES 256   /* longest sentence in nodedb_error, its final zero included */

/* What a call answers. Zero is success; every other value is explained by the nodedb_error that the caller passed. */
typedef enum nodedb_status {
    NODEDB_OK = 0,
    NODEDB_ERR_INVALID,     /* an argument is wrong: nothing was done */
    NODEDB_ERR_STATE,       /* the object is not in a state that allows this call (closed, failed, degraded ...) */
    NODEDB_ERR_NO_MEMORY,   /* the allocator refused */
    NODEDB_ERR_LIMIT,       /* a limit with a name would be passed: a budget, a table, a payload size */
    NODEDB_ERR_AGAIN,       /* not now: a bounded queue is full, or there is nothing to do yet; try later */
    NODEDB_ERR_NOT_FOUND,   /* no such record, file, engine, handle or id */
    NODEDB_ERR_EXISTS,      /* it is there already */
    NODEDB_ERR_LOCKED,      /* another process or object owns it */
    NODEDB_ERR_IO,          /* the system refused a read, write, sync or map; see sys_errno */
    NODEDB_ERR_DISK_FULL,   /* no space left on the device, or quota used up; goes away when there is room */
    NODEDB_ERR_CORRUPT,     /* stored data is not what was written: see offset and lsn */
    NODEDB_ERR_UNSUPPORTED, /* this system, file system or build cannot do it */
    NODEDB_ERR_FAULT,       /* a task panicked or faulted and was abandoned */
    NODEDB_ERR_DEGRADED,    /* refused at once, because of earlier faults */
    NODEDB_ERR_TIMEOUT,     /* the deadline passed */
    NODEDB_ERR_CANCELLED,   /* the caller, or a stop, asked for it */
    NODEDB_ERR_KEY          /* an encryption key is missing or does not fit */
} nodedb_status;

/* Why a call failed, for a program and for a person. The caller owns it, passes it or NULL; it is written only on
 * failure. `message` is one sentence: what failed, on which path, where. `offset` and `lsn` are 0 where they mean
 * nothing; `sys_errno` is the system's errno or 0. */
typedef struct nodedb_error {
    nodedb_status status;
    int sys_errno;
    uint64_t offset; /* bytes from the start of the file that the message names */
    uint64_t lsn;
    char message[NODEDB_ERROR_MESSAGE_BYTES];
} nodedb_error;

/* Where memory comes from. Zeroed: posix_memalign and free. `alloc` returns `bytes` bytes aligned to `align` (a power
 * of two, at least sizeof(void *)) or NULL; `release` gets the same `bytes` back. Called from the threads that the
 * header's manual names. */
typedef struct nodedb_allocator {
    void *(*alloc)(void *ctx, size_t bytes, size_t align);
    void (*release)(void *ctx, void *memory, size_t bytes);
    void *ctx;
} nodedb_allocator;

typedef enum nodedb_log_level { NODEDB_LOG_INFO = 0, NODEDB_LOG_WARNING, NODEDB_LOG_ERROR } nodedb_log_level;
/* Where sentences for a person go (what fell back and why, what was dropped). Zeroed: nowhere. */
typedef struct nodedb_logger {
    void (*write)(void *ctx, nodedb_log_level level, const char *sentence);
    void *ctx;
} nodedb_logger;

/* The clock. Zeroed: CLOCK_MONOTONIC. Nanoseconds that never go back; tests pass a virtual one. */
typedef struct nodedb_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
} nodedb_clock;

/* The name of a status as a sentence; never NULL. Any thread. */
static inline const char *nodedb_status_text(nodedb_status status) {
    static const char *const texts[] = {
        "success", "an argument is wrong", "the object's state does not allow this call", "out of memory",
        "a limit would be passed", "not now, try again", "not found", "exists already", "locked by another",
        "input or output failed", "no space left on the device", "stored data is damaged", "not supported here",
        "the task faulted and was abandoned", "refused, degraded after repeated faults", "the deadline passed",
        "cancelled", "an encryption key is missing or does not fit"};
    return (size_t)status < sizeof texts / sizeof texts[0] ? texts[status] : "unknown status";
}
#elif NODEDB_VERSION_NUMBER != 200
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS. A program that defines NODEDB_COMMON_TOOLS before it includes a header may use what has one underscore here
 * and in the storage block. What has two is private.
 *     nodedb_fail, nodedb_io_status, nodedb_say    fill an error; the status of an errno; tell a logger
 *     nodedb_now_ns                                the clock of a config; NULL: CLOCK_MONOTONIC
 *     nodedb_mix64                                 a mixer for seeds and hashes; no secret */
#if !defined(NODEDB_BASE_INTERNALS) &&                                                                               \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) || defined(NODEDB_TPC_IMPLEMENTATION) || \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_PREFETCH_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_BASE_INTERNALS 1
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "include nodedb_*.h before any system header, or compile with -D_GNU_SOURCE"
#endif

/* ThreadSanitizer does not know fences: where an argument stands on one, another way is taken under it. */
#if defined(__SANITIZE_THREAD__)
#define NODEDB__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NODEDB__TSAN 1
#endif
#endif
#define nodedb__load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define nodedb__load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define nodedb__store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define nodedb__store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define nodedb__add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define nodedb__cas(p, expected, v) \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* Fills `err` (if there is one) and returns `status`, so that `return nodedb_fail(...)` reads as one step. */
__attribute__((format(printf, 4, 5))) static inline nodedb_status
nodedb_fail(nodedb_error *err, nodedb_status status, int sys_errno, const char *format, ...) {
    char reason[96] = "unknown error";
    const char *why = reason;
    va_list args;
    int used;
    if (err == NULL) return status;
    memset(err, 0, sizeof *err);
    err->status = status, err->sys_errno = sys_errno;
    va_start(args, format);
    used = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (sys_errno == 0 || used < 0 || (size_t)used + 4 >= sizeof err->message) return status;
#if defined(__GLIBC__)
    why = strerror_r(sys_errno, reason, sizeof reason);
#else
    (void)strerror_r(sys_errno, reason, sizeof reason);
#endif
    (void)snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", why);
    return status;
}

__attribute__((format(printf, 3, 4))) static inline void
nodedb_say(const nodedb_logger *logger, nodedb_log_level level, const char *format, ...) {
    char sentence[NODEDB_ERROR_MESSAGE_BYTES * 2];
    va_list args;
    if (logger == NULL || logger->write == NULL) return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    logger->write(logger->ctx, level, sentence);
}

static inline void *nodedb__alloc(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = NULL;
    if (bytes == 0) bytes = 1;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (allocator != NULL && allocator->alloc != NULL) return allocator->alloc(allocator->ctx, bytes, align);
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}
static inline void *nodedb__alloc_zero(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = nodedb__alloc(allocator, bytes, align);
    return memory != NULL ? memset(memory, 0, bytes) : NULL;
}
static inline void nodedb__release(const nodedb_allocator *allocator, void *memory, size_t bytes) {
    if (memory == NULL) return;
    if (allocator == NULL || allocator->release == NULL) free(memory);
    else allocator->release(allocator->ctx, memory, bytes == 0 ? 1 : bytes);
}

static inline uint64_t nodedb_now_ns(const nodedb_clock *clock) {
    struct timespec t;
    if (clock != NULL && clock->now_ns != NULL) return clock->now_ns(clock->ctx);
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* A small mixer for seeds and hashes: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t nodedb_mix64(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* A system call that a signal may cut off: again, until it was not. */
#define nodedb__retry(result, call) do (result) = (call); while ((result) < 0 && errno == EINTR)
/* The status that an errno means. */
static inline nodedb_status nodedb_io_status(int error) {
    if (error == ENOSPC || error == EDQUOT) return NODEDB_ERR_DISK_FULL;
    return error == ENOMEM ? NODEDB_ERR_NO_MEMORY : NODEDB_ERR_IO;
}
#endif
/* END NODEDB BASE BLOCK =========================================================================================== */

/* ===================================================================================================================
 * BEGIN NODEDB STORAGE BLOCK: files, checksums, byte order. The same words in the headers that store: nodedb_wal.h,
 * which has the master, nodedb_mem.h and nodedb_vamana.h.
 * ================================================================================================================ */
#ifndef NODEDB_STORAGE_BLOCK
#define NODEDB_STORAGE_BLOCK 1

/* The file system. Zeroed: the system's own. Tests put a simulated disk here and fail every call in turn. Each function
 * returns a value >= 0, or -errno; a read or write may be short, as in POSIX. `flags` are those of open(2); `sync`
 * makes the data of a file, or the entries of a directory, durable; `allocate` makes space exist, so that writing into
 * it cannot fail for want of room; `list` calls `visit` for each entry but "." and "..", until it returns nonzero;
 * `lock` takes an exclusive lock that dies with the descriptor, or returns -EWOULDBLOCK at once. */
typedef struct nodedb_io {
    int (*open)(void *ctx, const char *path, int flags, int mode);
    int (*close)(void *ctx, int fd);
    int64_t (*pread)(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset);
    int64_t (*pwrite)(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset);
    int (*sync)(void *ctx, int fd);
    int (*allocate)(void *ctx, int fd, uint64_t offset, uint64_t bytes);
    int (*truncate)(void *ctx, int fd, uint64_t bytes);
    int64_t (*size)(void *ctx, int fd);
    int (*rename)(void *ctx, const char *from, const char *to);
    int (*unlink)(void *ctx, const char *path);
    int (*make_dir)(void *ctx, const char *path, int mode);
    int (*list)(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name), void *visitor);
    int (*lock)(void *ctx, int fd);
    void *ctx;
} nodedb_io;

#elif NODEDB_STORAGE_BLOCK != 1
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS, with NODEDB_COMMON_TOOLS defined:
 *     nodedb_put_u16, _u32, _u64, nodedb_get_u16, _u32, _u64    little-endian, at any address
 *     nodedb_crc32c                                             the checksum of all our formats */
#if !defined(NODEDB_STORAGE_INTERNALS) &&                                                                              \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) ||                                       \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_STORAGE_INTERNALS 1
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* A compiler that stops here had a 32-bit system's headers included before ours, without -D_FILE_OFFSET_BITS=64: files
 * over 2 GiB would be written at wrong offsets. */
typedef char nodedb__off_t_has_8_bytes[sizeof(off_t) == 8 ? 1 : -1];

/* Little-endian on disk, whatever the machine. */
static inline void nodedb_put_u16(void *at, uint16_t v) {
    unsigned char *p = (unsigned char *)at;
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}
static inline void nodedb_put_u32(void *at, uint32_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb_put_u16(p, (uint16_t)v);
    nodedb_put_u16(p + 2, (uint16_t)(v >> 16));
}
static inline void nodedb_put_u64(void *at, uint64_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb_put_u32(p, (uint32_t)v);
    nodedb_put_u32(p + 4, (uint32_t)(v >> 32));
}
static inline uint16_t nodedb_get_u16(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}
static inline uint32_t nodedb_get_u32(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb_get_u16(p) | (uint32_t)nodedb_get_u16(p + 2) << 16;
}
static inline uint64_t nodedb_get_u64(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb_get_u32(p) | (uint64_t)nodedb_get_u32(p + 4) << 32;
}

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected, polynomial 0x82F63B78. `crc` is 0 to begin with, or the
 * value of the bytes before these. The CPU's own instruction where it has one, asked at run time; else four bits a
 * step from a table of 16. */
static inline uint32_t nodedb__crc32c_plain(uint32_t crc, const unsigned char *p, size_t bytes) {
    static const uint32_t step[16] = {
        0x00000000u, 0x105EC76Fu, 0x20BD8EDEu, 0x30E349B1u, 0x417B1DBCu, 0x5125DAD3u, 0x61C69362u, 0x7198540Du,
        0x82F63B78u, 0x92A8FC17u, 0xA24BB5A6u, 0xB21572C9u, 0xC38D26C4u, 0xD3D3E1ABu, 0xE330A81Au, 0xF36E6F75u};
    while (bytes-- > 0) {
        crc ^= *p++;
        crc = crc >> 4 ^ step[crc & 15];
        crc = crc >> 4 ^ step[crc & 15];
    }
    return crc;
}
#if defined(__x86_64__)
/* The instruction has a latency of three cycles and can begin every cycle, so three parts are summed side by side, and
 * joined: a sum is moved over n bytes by a carry-less product with x^(8n-33) mod P and one more crc32 (Gopal et al.,
 * "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel, 2011). 7.6 GB/s become 18. */
#define NODEDB__CRC_PART_BYTES 256
typedef long long nodedb__crc_pair __attribute__((vector_size(16)));
__attribute__((target("sse4.2,pclmul"))) static inline uint32_t nodedb__crc32c_cpu(uint32_t crc, const unsigned char *p,
                                                                                   size_t bytes) {
    const nodedb__crc_pair over = {0xDD7E3B0C, 0xB9E02B86}; /* x^(8*512-33), x^(8*256-33) */
    uint64_t a = crc, b, c, word;
    size_t i;
    for (; bytes >= 3 * NODEDB__CRC_PART_BYTES; bytes -= 3 * NODEDB__CRC_PART_BYTES) {
        nodedb__crc_pair sums, moved;
        for (i = 0, b = c = 0; i < NODEDB__CRC_PART_BYTES; i += 8, p += 8) {
            memcpy(&word, p, 8), a = __builtin_ia32_crc32di(a, word);
            memcpy(&word, p + NODEDB__CRC_PART_BYTES, 8), b = __builtin_ia32_crc32di(b, word);
            memcpy(&word, p + 2 * NODEDB__CRC_PART_BYTES, 8), c = __builtin_ia32_crc32di(c, word);
        }
        p += 2 * NODEDB__CRC_PART_BYTES;
        sums[0] = (long long)a, sums[1] = (long long)b;
        moved = __builtin_ia32_pclmulqdq128(sums, over, 0x00) ^ __builtin_ia32_pclmulqdq128(sums, over, 0x11);
        a = __builtin_ia32_crc32di(0, (uint64_t)moved[0]) ^ c;
    }
    for (; bytes >= 8; bytes -= 8, p += 8) memcpy(&word, p, 8), a = __builtin_ia32_crc32di(a, word);
    for (crc = (uint32_t)a; bytes > 0; bytes--) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#define nodedb__crc32c_cpu_present() (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
static inline uint32_t nodedb__crc32c_cpu(uint32_t crc, const unsigned char *p, size_t bytes) {
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word = nodedb_get_u64(p);
        __asm__("crc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    }
    for (; bytes > 0; bytes--) __asm__("crc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)*p++));
    return crc;
}
#define nodedb__crc32c_cpu_present() 1
#else
#define nodedb__crc32c_cpu nodedb__crc32c_plain
#define nodedb__crc32c_cpu_present() 0
#endif
static inline uint32_t nodedb_crc32c(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    crc = ~crc;
    crc = nodedb__crc32c_cpu_present() ? nodedb__crc32c_cpu(crc, p, bytes) : nodedb__crc32c_plain(crc, p, bytes);
    return ~crc;
}

/* The system's file calls behind nodedb_io: the same, with EINTR retried and -errno returned. */
static inline int nodedb__posix_open(void *ctx, const char *path, int flags, int mode) {
    int fd;
    (void)ctx;
    nodedb__retry(fd, open(path, flags | O_CLOEXEC, mode));
    return fd < 0 ? -errno : fd;
}
static inline int nodedb__posix_close(void *ctx, int fd) {
    (void)ctx;
    return close(fd) != 0 && errno != EINTR ? -errno : 0;
}
static inline int64_t nodedb__posix_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    (void)ctx;
    nodedb__retry(n, pread(fd, buffer, bytes, (off_t)offset));
    return n < 0 ? -errno : (int64_t)n;
}
static inline int64_t nodedb__posix_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    (void)ctx;
    nodedb__retry(n, pwrite(fd, buffer, bytes, (off_t)offset));
    return n < 0 ? -errno : (int64_t)n;
}
static inline int nodedb__posix_sync(void *ctx, int fd) {
    (void)ctx;
    return fdatasync(fd) != 0 ? -errno : 0; /* never retried: after a failure the kernel has dropped the pages */
}
static inline int nodedb__posix_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    int error;
    (void)ctx;
    do error = posix_fallocate(fd, (off_t)offset, (off_t)bytes);
    while (error == EINTR);
    return -error;
}
static inline int nodedb__posix_truncate(void *ctx, int fd, uint64_t bytes) {
    int result;
    (void)ctx;
    nodedb__retry(result, ftruncate(fd, (off_t)bytes));
    return result != 0 ? -errno : 0;
}
static inline int64_t nodedb__posix_size(void *ctx, int fd) {
    struct stat st;
    (void)ctx;
    return fstat(fd, &st) != 0 ? -errno : (int64_t)st.st_size;
}
static inline int nodedb__posix_rename(void *ctx, const char *from, const char *to) {
    (void)ctx;
    return rename(from, to) != 0 ? -errno : 0;
}
static inline int nodedb__posix_unlink(void *ctx, const char *path) {
    (void)ctx;
    return unlink(path) != 0 ? -errno : 0;
}
static inline int nodedb__posix_make_dir(void *ctx, const char *path, int mode) {
    (void)ctx;
    return mkdir(path, (mode_t)mode) != 0 ? -errno : 0;
}
static inline int nodedb__posix_list(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name),
                                     void *visitor) {
    DIR *stream = opendir(dir);
    struct dirent *entry;
    int stop = 0, error;
    (void)ctx;
    if (stream == NULL) return -errno;
    for (errno = 0; stop == 0 && (entry = readdir(stream)) != NULL; errno = 0)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) stop = visit(visitor, entry->d_name);
    error = stop == 0 ? errno : 0;
    (void)closedir(stream);
    return -error;
}
static inline int nodedb__posix_lock(void *ctx, int fd) {
    (void)ctx;
    return flock(fd, LOCK_EX | LOCK_NB) != 0 ? -errno : 0;
}

/* The caller's file system, with the system's own call wherever he left a NULL. */
static inline nodedb_io nodedb__io_or_posix(const nodedb_io *io) {
    nodedb_io full;
    memset(&full, 0, sizeof full);
    if (io != NULL) full = *io;
    if (full.open == NULL) full.open = nodedb__posix_open;
    if (full.close == NULL) full.close = nodedb__posix_close;
    if (full.pread == NULL) full.pread = nodedb__posix_pread;
    if (full.pwrite == NULL) full.pwrite = nodedb__posix_pwrite;
    if (full.sync == NULL) full.sync = nodedb__posix_sync;
    if (full.allocate == NULL) full.allocate = nodedb__posix_allocate;
    if (full.truncate == NULL) full.truncate = nodedb__posix_truncate;
    if (full.size == NULL) full.size = nodedb__posix_size;
    if (full.rename == NULL) full.rename = nodedb__posix_rename;
    if (full.unlink == NULL) full.unlink = nodedb__posix_unlink;
    if (full.make_dir == NULL) full.make_dir = nodedb__posix_make_dir;
    if (full.list == NULL) full.list = nodedb__posix_list;
    if (full.lock == NULL) full.lock = nodedb__posix_lock;
    return full;
}

/* All of `bytes`, or -errno; a write that makes no progress is -EIO, the end of the file within a read is -ENODATA. */
static inline int nodedb__write_all(const nodedb_io *io, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    const char *p = (const char *)buffer;
    while (bytes > 0) {
        int64_t n = io->pwrite(io->ctx, fd, p, bytes, offset);
        if (n == -EINTR) continue;
        if (n <= 0) return n < 0 ? (int)n : -EIO;
        p += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return 0;
}
static inline int nodedb__read_all(const nodedb_io *io, int fd, void *buffer, size_t bytes, uint64_t offset) {
    char *p = (char *)buffer;
    while (bytes > 0) {
        int64_t n = io->pread(io->ctx, fd, p, bytes, offset);
        if (n == -EINTR) continue;
        if (n <= 0) return n < 0 ? (int)n : -ENODATA;
        p += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return 0;
}

/* The end of a long path: so much of it as leaves room in a nodedb_error for what happened, and at which offset. */
static inline const char *nodedb__path_end(const char *path) {
    size_t bytes = strlen(path);
    return bytes > NODEDB_ERROR_MESSAGE_BYTES / 2 ? path + bytes - NODEDB_ERROR_MESSAGE_BYTES / 2 : path;
}

#endif
/* END NODEDB STORAGE BLOCK ======================================================================================== */

#ifndef NODEDB_MEM_H
#define NODEDB_MEM_H

#if defined(NODEDB_MEM_STATIC) && !defined(NODEDB_MEM_IMPLEMENTATION)
#error "NODEDB_MEM_STATIC needs NODEDB_MEM_IMPLEMENTATION in the same file"
#endif
#if !defined(NODEDB_MEM_API) && defined(NODEDB_MEM_STATIC)
#define NODEDB_MEM_API static __attribute__((unused))
#elif !defined(NODEDB_MEM_API)
#define NODEDB_MEM_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- limits and defaults ----------------------------------------------------------------------------------------- */

#define NODEDB_MEM_MAX_ENGINES 64
#define NODEDB_MEM_MAX_CORES 1024
#define NODEDB_MEM_MAX_NAME_BYTES 32                 /* of an engine's name, its final zero included */
#define NODEDB_MEM_NO_LIMIT_BYTES SIZE_MAX           /* an engine bounded by the ceiling alone */
#define NODEDB_MEM_DEFAULT_CHUNK_BYTES (256u << 10)  /* most credit that a core draws ahead */
#define NODEDB_MEM_DEFAULT_SYSTEM_PERCENT 75         /* of the cgroup's limit or the RAM, for a ceiling of 0 */
#define NODEDB_MEM_DEFAULT_WARNING_PERCENT 70
#define NODEDB_MEM_DEFAULT_CRITICAL_PERCENT 85
#define NODEDB_MEM_DEFAULT_EMERGENCY_PERCENT 95
#define NODEDB_MEM_DEFAULT_HYSTERESIS_PERCENT 5      /* a level is left that far below the mark where it was entered */
#define NODEDB_MEM_DEFAULT_SPILL_BEGIN_PERCENT 90
#define NODEDB_MEM_DEFAULT_SPILL_RESTORE_PERCENT 75
#define NODEDB_MEM_GLOBAL UINT32_MAX                 /* in place of an engine: the ceiling, the sum of all engines */
#define NODEDB_MEM_ANY_THREAD UINT32_MAX             /* in place of a core: any thread, at the price of a lock */

/* ---- governor: set up -------------------------------------------------------------------------------------------- */

typedef struct nodedb_mem nodedb_mem; /* a governor; any thread, see THREADS */

/* The engines that exist from the start. Their names are the words in lower case: "vector", "sparse" ... */
typedef enum nodedb_mem_engine {
    NODEDB_MEM_VECTOR = 0,
    NODEDB_MEM_SPARSE,
    NODEDB_MEM_CRDT,
    NODEDB_MEM_TIMESERIES,
    NODEDB_MEM_QUERY,
    NODEDB_MEM_WAL,
    NODEDB_MEM_BRIDGE,
    NODEDB_MEM_PREDEFINED_ENGINES
} nodedb_mem_engine;

/* How full an engine or the ceiling is. Greater is worse. */
typedef enum nodedb_mem_level {
    NODEDB_MEM_NORMAL = 0,
    NODEDB_MEM_WARNING,
    NODEDB_MEM_CRITICAL,
    NODEDB_MEM_EMERGENCY
} nodedb_mem_level;

/* Is told each change of a level, on the thread that asked, without a lock held, never two at a time. It may call the
 * governor and must return. `engine` may be NODEDB_MEM_GLOBAL. */
typedef void nodedb_mem_on_pressure(void *ctx, uint32_t engine, nodedb_mem_level from, nodedb_mem_level to);

/* Zeroed: the defaults. The governor copies it; the contexts of callbacks must outlive the governor. */
typedef struct nodedb_mem_config {
    size_t ceiling_bytes;           /* 0: system_percent of the least of the RAM and the cgroup limits (v2, v1) */
    uint32_t max_cores;             /* indexes 0 .. max_cores - 1; 0: the processors of the machine */
    size_t chunk_bytes;             /* 0: NODEDB_MEM_DEFAULT_CHUNK_BYTES */
    uint32_t system_percent;        /* 1 .. 100, like all below; 0: the default */
    uint32_t warning_percent;       /* warning <= critical <= emergency */
    uint32_t critical_percent;
    uint32_t emergency_percent;
    uint32_t hysteresis_percent;    /* below warning_percent */
    uint32_t spill_begin_percent;
    uint32_t spill_restore_percent; /* below spill_begin_percent */
    nodedb_mem_on_pressure *on_pressure; /* NULL: nobody is told */
    void *on_pressure_ctx;
    nodedb_clock clock;
    nodedb_logger logger;
    nodedb_allocator allocator;
    nodedb_io io;                   /* reads /proc and /sys/fs/cgroup */
} nodedb_mem_config;

/* Creates a governor; `config` NULL: all defaults. The caller owns it and ends it with nodedb_mem_destroy. NULL:
 * NODEDB_ERR_INVALID (percentages out of order, too many cores), NODEDB_ERR_NO_MEMORY. */
NODEDB_MEM_API nodedb_mem *nodedb_mem_create(const nodedb_mem_config *config, nodedb_error *err);

/* Ends a governor; NULL is allowed. No thread may be in a call. What is still reserved is a leak of the caller's: a
 * warning is logged for each engine. */
NODEDB_MEM_API void nodedb_mem_destroy(nodedb_mem *mem);

/* Adds an engine; *engine gets its id. limit_bytes may be NODEDB_MEM_NO_LIMIT_BYTES. Any thread. Errors:
 * NODEDB_ERR_INVALID (name empty or too long), NODEDB_ERR_EXISTS (*engine is set to the one that has the name;
 * "ceiling" is NODEDB_MEM_GLOBAL), NODEDB_ERR_LIMIT (NODEDB_MEM_MAX_ENGINES). */
NODEDB_MEM_API nodedb_status nodedb_mem_register_engine(nodedb_mem *mem, const char *name, size_t limit_bytes,
                                                        uint32_t *engine, nodedb_error *err);

/* Sets an engine's limit, or with NODEDB_MEM_GLOBAL the ceiling (which may not be 0), and ends all loans. The limit may
 * be below what is reserved: nothing is taken away, and nothing more is granted until enough is released. Any thread.
 * Errors: NODEDB_ERR_INVALID, NODEDB_ERR_NOT_FOUND (no such engine). */
NODEDB_MEM_API nodedb_status nodedb_mem_set_limit(nodedb_mem *mem, uint32_t engine, size_t limit_bytes,
                                                  nodedb_error *err);

/* ---- governor: account ------------------------------------------------------------------------------------------- */

/* Asks whether `engine` may hold `bytes` more; 0 bytes are always granted. Only the thread of `core`. Errors:
 * NODEDB_ERR_LIMIT (refused: the sentence says whether by the engine or the ceiling, what was asked and what is left; a
 * refusal is O(max_cores * engines), under the lock), NODEDB_ERR_INVALID, NODEDB_ERR_NOT_FOUND (no such engine;
 * NODEDB_MEM_GLOBAL is none). */
NODEDB_MEM_API nodedb_status nodedb_mem_reserve(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_error *err);

/* The same for what exists already: never refused, may pass the limits, counted apart. Errors: NODEDB_ERR_INVALID (also
 * where the sum does not fit size_t), NODEDB_ERR_NOT_FOUND (as there). */
NODEDB_MEM_API nodedb_status nodedb_mem_reserve_forced(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                       nodedb_error *err);

/* Gives back what this core reserved for this engine, in any portions. Only the thread of `core`. Errors:
 * NODEDB_ERR_INVALID (more than is reserved there: nothing changes), NODEDB_ERR_NOT_FOUND (as there). */
NODEDB_MEM_API nodedb_status nodedb_mem_release(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_error *err);

/* Lets engines that need more than their limit borrow from those that need less; the sum of all limits stays what was
 * set. Call it now and then, on any thread; one that calls it suffices.
 *   In need: its own limit refused it since the last call, or it holds critical_percent of what was set for it. Its
 *     limit becomes 1.5 times what it holds, if that is more than was set and as far as others lend. If it was refused
 *     while it had all that was set, and 1.5 times what it holds is no more than that, one request was larger than the
 *     limit: then the limit becomes 1.5 times what was set, for this and max_cores calls more. So each core may make a
 *     call before the engine asks again.
 *   Not in need: it keeps 1.5 times what it holds, and at least a quarter of what was set. It lends the rest, as far as
 *     that is wanted.
 * Each call computes from what was set, so a loan ends with the call that finds the owner in need: what the borrower
 * holds stays, but it gets no more. Engines without a limit take no part. *moved (may be NULL): bytes lent now. Errors:
 * NODEDB_ERR_INVALID. */
NODEDB_MEM_API nodedb_status nodedb_mem_rebalance(nodedb_mem *mem, size_t *moved, nodedb_error *err);

/* ---- governor: look ---------------------------------------------------------------------------------------------- */

/* One engine, or all together, at one moment. */
typedef struct nodedb_mem_usage {
    char name[NODEDB_MEM_MAX_NAME_BYTES]; /* "ceiling" for NODEDB_MEM_GLOBAL */
    size_t limit_bytes;     /* the engine's own or the ceiling, whichever is less */
    size_t base_bytes;      /* what was set; a rebalance makes the limit more or less than that */
    size_t reserved_bytes;  /* granted and not released */
    size_t credit_bytes;    /* drawn ahead by cores; can be reclaimed, counts as available */
    size_t available_bytes; /* the largest reservation that would be granted; 0 while a limit is passed */
    size_t peak_bytes;      /* most ever reserved; exact for an engine on one core, else an upper bound */
    uint64_t rejections;    /* reservations refused (of the engine by either limit; GLOBAL: by the ceiling) */
    uint64_t forced;        /* forced reservations */
    uint64_t forced_bytes;  /* those of their bytes that passed a limit at that moment (GLOBAL: or only an engine's) */
    nodedb_mem_level level; /* as last reported; NORMAL before the first nodedb_mem_pressure or _poll */
    uint64_t level_since_ns;
} nodedb_mem_usage;

/* Fills *usage for an engine or NODEDB_MEM_GLOBAL. Any thread; takes a lock. Errors: NODEDB_ERR_INVALID,
 * NODEDB_ERR_NOT_FOUND. */
NODEDB_MEM_API nodedb_status nodedb_mem_get_usage(nodedb_mem *mem, uint32_t engine, nodedb_mem_usage *usage,
                                                  nodedb_error *err);

/* What the process really uses, beside what was accounted. Resident are also the pages of overflow regions that the
 * kernel caches, so drift_bytes rises after a spill until the kernel drops them. */
typedef struct nodedb_mem_reality {
    uint64_t rss_bytes;           /* resident set: /proc/self/statm, proc(5) */
    uint64_t accounted_bytes;     /* reserved by all engines */
    int64_t drift_bytes;          /* rss - accounted */
    bool jemalloc;                /* the two below are known */
    uint64_t allocator_resident_bytes;
    uint64_t allocator_allocated_bytes;
} nodedb_mem_reality;

/* Fills *reality. Any thread; some microseconds. Errors: NODEDB_ERR_INVALID, NODEDB_ERR_IO (no /proc),
 * NODEDB_ERR_CORRUPT (it makes no sense); *reality is zeroed by the last two. */
NODEDB_MEM_API nodedb_status nodedb_mem_get_reality(nodedb_mem *mem, nodedb_mem_reality *reality, nodedb_error *err);

/* ---- governor: react --------------------------------------------------------------------------------------------- */

/* The level of an engine or of NODEDB_MEM_GLOBAL now; a change calls on_pressure. Any thread, also from the callback;
 * takes a lock. Inside the callback, and while another thread runs it, the new level is returned but not reported; the
 * next call reports it.
 * For an engine that does not exist, and for `mem` NULL, the answer is NODEDB_MEM_EMERGENCY: a level has no room for an
 * error, so this takes the safe side. A caller that is told EMERGENCY sheds load for nothing, and somebody notices. One
 * that is told NORMAL fills the memory, and nobody does. */
NODEDB_MEM_API nodedb_mem_level nodedb_mem_pressure(nodedb_mem *mem, uint32_t engine);

/* The same for all engines and the ceiling; answers the worst level of all. Changes are noticed by such calls only:
 * call it in the maintenance of one core, or of each. Any thread; O(max_cores * engines), under the lock. */
NODEDB_MEM_API nodedb_mem_level nodedb_mem_poll(nodedb_mem *mem);

/* What a core is to do. Zero is no decision, so that an action nobody filled in is never taken for "nothing to do". */
typedef enum nodedb_mem_spill_action {
    NODEDB_MEM_SPILL_INVALID = 0, /* the call failed: see its status */
    NODEDB_MEM_SPILL_NONE,        /* nothing to move */
    NODEDB_MEM_SPILL_BEGIN,       /* spill_begin_percent was reached: start to move cold data out */
    NODEDB_MEM_SPILL_CONTINUE,    /* go on: it is not yet under spill_restore_percent */
    NODEDB_MEM_SPILL_RESTORE      /* there is room: bring spilled data back */
} nodedb_mem_spill_action;

/* The controller of one core for one engine or for NODEDB_MEM_GLOBAL. The caller owns it and zeroes it before the first
 * use. One thread at a time may use it. */
typedef struct nodedb_mem_spill {
    bool spilling;                        /* the last decision was BEGIN or CONTINUE */
    uint64_t begins, continues, restores; /* decisions so far */
} nodedb_mem_spill;

/* Decides what `core` should move now: *action, and in *bytes (may be NULL) how much. Any thread; takes a lock.
 * `engine` may be NODEDB_MEM_GLOBAL. An engine spills when its own limit or the ceiling is too full, NODEDB_MEM_GLOBAL
 * when the ceiling is.
 *   BEGIN, CONTINUE: *bytes is this core's share of what must go to get under spill_restore_percent. Shares are in
 *     proportion to what the cores have reserved of `engine` (NODEDB_MEM_GLOBAL: of all engines), rounded up, and at
 *     most what this core has reserved. So a core that holds nothing has a share of 0. What NODEDB_MEM_ANY_THREAD holds
 *     has no share: the cores move its part, too, as far as they hold that much.
 *   RESTORE: *bytes is at most the room under spill_restore_percent / max_cores, and at most `spilled_bytes`, which is
 *     what this core has out.
 *   NONE: *bytes is 0.
 * `core` may be NODEDB_MEM_ANY_THREAD: then one share is the whole, its own bytes included.
 * A decision is a proposal of this moment; it reserves nothing. Act on it at once, on all or on a batch, and ask again.
 * Errors: NODEDB_ERR_INVALID, NODEDB_ERR_NOT_FOUND (no such engine). Then *action is NODEDB_MEM_SPILL_INVALID, *bytes
 * is 0 and *spill is as before. */
NODEDB_MEM_API nodedb_status nodedb_mem_spill_decide(nodedb_mem *mem, nodedb_mem_spill *spill, uint32_t core,
                                                     uint32_t engine, size_t spilled_bytes,
                                                     nodedb_mem_spill_action *action, size_t *bytes, nodedb_error *err);

/* ---- overflow region: spill -------------------------------------------------------------------------------------- */

#define NODEDB_MEM_OVERFLOW_UNIT_BYTES 16                   /* what sizes in the file are rounded up to */
#define NODEDB_MEM_OVERFLOW_GRANULE_BYTES (UINT32_C(1) << 20) /* disk blocks are allocated and given back by this */
#define NODEDB_MEM_OVERFLOW_MAX_SLOTS (UINT32_C(1) << 26)
#define NODEDB_MEM_OVERFLOW_DEFAULT_INITIAL_BYTES (UINT64_C(64) << 20)
#define NODEDB_MEM_OVERFLOW_DEFAULT_COMPACT_BYTES (UINT64_C(1) << 20)
#define NODEDB_MEM_OVERFLOW_COMPACT_BLOCKS 4096             /* most that one compaction looks at */
#if SIZE_MAX > 0xFFFFFFFFu
#define NODEDB_MEM_OVERFLOW_MAX_BYTES (UINT64_C(32) << 30)
#define NODEDB_MEM_OVERFLOW_DEFAULT_MAX_BYTES (UINT64_C(1) << 30)
#else /* addresses are scarce */
#define NODEDB_MEM_OVERFLOW_MAX_BYTES (UINT64_C(1) << 30)
#define NODEDB_MEM_OVERFLOW_DEFAULT_MAX_BYTES (UINT64_C(256) << 20)
#endif

typedef struct nodedb_mem_overflow nodedb_mem_overflow; /* a region; one thread at a time, see THREADS */

/* Names one object and its generation. {0} names nothing. Valid until the object is freed, in its own region only. A
 * handle of a kept region stays valid when the file is reopened, by another process or on another machine too; after a
 * power cut, if its object is still there. */
typedef struct nodedb_mem_handle {
    uint64_t bits;
} nodedb_mem_handle;

/* Zeroed but for `dir`: scratch, with the defaults. Strings are copied. */
typedef struct nodedb_mem_overflow_config {
    const char *dir;        /* where the file is; must exist. Not tmpfs, which is memory. Required */
    const char *name;       /* of a file in `dir` that is made, or reopened, and kept; NULL or "": scratch */
    uint64_t initial_bytes; /* 0: 64 MiB, or max_bytes if that is less; rounded up to the page, like max_bytes */
    uint64_t max_bytes;     /* 0: 1 GiB (256 MiB on 32 bits). May differ each time a kept file is opened */
    uint32_t max_blocks;    /* most objects and holes together, at least 2; 0: max_bytes / 64, at least 65536. When it
                               is reached, only a hole of exactly the right size serves. A kept file keeps what it
                               was made with: then 0, or the same */
    nodedb_allocator allocator;
    nodedb_logger logger;
    nodedb_io io;           /* open must return a descriptor that can be mapped */
} nodedb_mem_overflow_config;

/* Opens a region: without config->name an empty one, in a nameless file in config->dir (O_TMPFILE; else created and
 * unlinked at once). With a name the file is made, durably, or reopened: its table is read, not yet its objects; see
 * stats.reopened and .lost. On tmpfs or ramfs it opens, with a warning to the logger and stats.in_memory set. The
 * caller owns the region and closes it. NULL: NODEDB_ERR_INVALID (also: other max_blocks than the file has),
 * NODEDB_ERR_NO_MEMORY (also: no address space), NODEDB_ERR_IO, NODEDB_ERR_DISK_FULL, NODEDB_ERR_LOCKED (open
 * elsewhere), NODEDB_ERR_CORRUPT (no overflow file, or both headers are damaged), NODEDB_ERR_LIMIT (objects beyond
 * max_bytes), NODEDB_ERR_UNSUPPORTED (a name, with NODEDB_MEM_NO_KEPT). A file that cannot be opened loses nothing. */
NODEDB_MEM_API nodedb_mem_overflow *nodedb_mem_overflow_open(const nodedb_mem_overflow_config *config,
                                                             nodedb_error *err);

/* Unmaps and forgets everything; all pointers die, and the handles of a scratch region. A kept file is made durable
 * first; an error of that goes to the logger only, so call nodedb_mem_overflow_sync to get it. Open views go on
 * reading, and the last one to close frees everything (a kept file stays locked until then). NULL is allowed. */
NODEDB_MEM_API void nodedb_mem_overflow_close(nodedb_mem_overflow *region);

/* Copies `bytes` bytes (0 is allowed) into the region; *handle names them. Errors: NODEDB_ERR_INVALID, NODEDB_ERR_LIMIT
 * (max_bytes reached and no hole is large enough; max_blocks), NODEDB_ERR_DISK_FULL, NODEDB_ERR_NO_MEMORY,
 * NODEDB_ERR_IO. On failure nothing changed and *handle is {0}. */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_write(nodedb_mem_overflow *region, const void *data, size_t bytes,
                                                       nodedb_mem_handle *handle, nodedb_error *err);

/* Where the object is, aligned to 16, and its exact length in *bytes (may be NULL). The region owns the bytes; any
 * thread may read them until the object is freed, updated or moved by a compaction, also while the region grows. An
 * object that a kept file brought is read and checked once, the first time. NULL: NODEDB_ERR_INVALID,
 * NODEDB_ERR_NOT_FOUND (stale, foreign, never given); kept: NODEDB_ERR_CORRUPT (not what was written; offset says where
 * in the file), NODEDB_ERR_IO. */
NODEDB_MEM_API const void *nodedb_mem_overflow_read(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                    size_t *bytes, nodedb_error *err);

/* Replaces the object's bytes, and its length; the handle stays. If it takes as many units of 16 bytes as before, a
 * scratch region writes in place. Otherwise, and always in a kept region, the new bytes go to another place first, so
 * there must be room for both. `data` may lie in the object itself. A process that dies meanwhile leaves the old bytes
 * or the new. After a power cut an object that was updated since the last sync has the old bytes or the new, or it is
 * lost or NODEDB_ERR_CORRUPT. Errors: as write, and NODEDB_ERR_NOT_FOUND; on failure the object is as it was. */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_update(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                        const void *data, size_t bytes, nodedb_error *err);

/* Frees the object; its space is merged with free neighbours. Errors: NODEDB_ERR_INVALID, NODEDB_ERR_NOT_FOUND (also:
 * it is freed already). */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_free(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                      nodedb_error *err);

/* Steps through all objects: {0} becomes the first handle, each handle the next, in no order that means something. What
 * the caller frees or writes meanwhile may be met or not; all others are met once. It passes over all slots: O(the most
 * blocks that there ever were) for all together, and for one call that finds few objects.
 * Errors: NODEDB_ERR_INVALID, NODEDB_ERR_NOT_FOUND (that was the last; *handle is {0} again). */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_next(nodedb_mem_overflow *region, nodedb_mem_handle *handle,
                                                      nodedb_error *err);

/* ---- overflow region: tidy up, look ------------------------------------------------------------------------------ */

/* Answers whether an object may move now; false for one whose pointer is in use. It must not call the region. */
typedef bool nodedb_mem_may_move(void *ctx, nodedb_mem_handle handle);

/* Moves objects from the end of the region into holes further down, so that free space gathers at the end and
 * nodedb_mem_overflow_trim can give it back. Handles stay valid. Pointers to the objects that move die, those of views
 * too: `may_move` (NULL: all may) answers false for objects that must stay. Copies through views are never wrong.
 * One call moves at most max_bytes of objects (0: 1 MiB), and looks at no more than NODEDB_MEM_OVERFLOW_COMPACT_BLOCKS
 * blocks; an object above max_bytes stays. *complete (may be NULL): the pass has reached its end; the next call begins
 * another. In a kept region a call that moves something syncs twice, and a power cut or a kill finds each object at its
 * old place or at its new one. No disk blocks are allocated. Errors: NODEDB_ERR_INVALID; kept: NODEDB_ERR_IO,
 * NODEDB_ERR_DISK_FULL, NODEDB_ERR_STATE (as sync). Objects and handles are intact after any of them, but some pointers
 * may be dead, and places that objects left may stay taken until the file is opened again. */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_compact(nodedb_mem_overflow *region, uint64_t max_bytes,
                                                         nodedb_mem_may_move *may_move, void *ctx, bool *complete,
                                                         nodedb_error *err);

/* Gives the disk blocks of whole free granules back to the file system; *bytes (may be NULL) gets how many. What shares
 * a granule with an object stays. O(holes of a granule or more). Errors: NODEDB_ERR_INVALID, NODEDB_ERR_UNSUPPORTED
 * (the file system cannot), NODEDB_ERR_IO; *bytes is what was given back before the error. */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_trim(nodedb_mem_overflow *region, uint64_t *bytes, nodedb_error *err);

/* A region at one moment. Bytes; counts are since opening. */
typedef struct nodedb_mem_overflow_stats {
    uint64_t objects;            /* alive */
    uint64_t object_bytes;       /* their exact lengths */
    uint64_t used_bytes;         /* their lengths rounded up */
    uint64_t free_bytes;         /* within the capacity */
    uint64_t holes;              /* free blocks */
    uint64_t largest_hole_bytes;
    uint32_t fragmentation_percent; /* of the free bytes, those not in the largest hole. What was never written counts
                                       as a hole: compare disk_bytes with used_bytes to decide about a compaction */
    uint64_t capacity_bytes;     /* grows up to max_bytes */
    uint64_t max_bytes;
    uint64_t disk_bytes;         /* of the data, allocated on disk; a kept file's headers and table come on top */
    bool in_memory;              /* the file system is tmpfs or ramfs: "disk" is memory, and nothing is durable */
    uint64_t metadata_bytes;     /* of ordinary memory */
    uint64_t writes, updates, reads, frees, grows; /* since opening */
    uint64_t moves, moved_bytes; /* by compactions */
    uint64_t refused;            /* writes and updates, for any reason */
    uint64_t disk_full;          /* of these, for want of disk blocks */
    uint64_t reopened;           /* kept: objects that were found in the file */
    uint64_t lost;               /* kept: entries of its table that could not be used: at most so many objects */
    uint64_t damaged;            /* kept: reads and verifications, through views too, that found other bytes than were
                                    written; an object counts each time */
} nodedb_mem_overflow_stats;

/* Fills *stats. Any thread. Figures may be of slightly different moments where another thread is writing. Errors:
 * NODEDB_ERR_INVALID. */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_get_stats(const nodedb_mem_overflow *region,
                                                           nodedb_mem_overflow_stats *stats, nodedb_error *err);

/* ---- arenas: jemalloc(3), mallctl -------------------------------------------------------------------------------- */

/* What an arena holds. */
typedef struct nodedb_mem_arena_stats {
    uint64_t allocated_bytes; /* in live allocations */
    uint64_t resident_bytes;  /* of memory that the arena holds */
} nodedb_mem_arena_stats;

/* NODEDB_OK if jemalloc is this process's malloc, with statistics. Else NODEDB_ERR_UNSUPPORTED, and the sentence says
 * what is missing; all calls below then answer the same. Any thread. */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_available(nodedb_error *err);

/* Creates an arena; *arena gets its index. The caller owns it until nodedb_mem_arena_destroy. jemalloc gives the index
 * of a destroyed arena to a later one, and no call can tell the two apart: forget it. Any thread. Errors:
 * NODEDB_ERR_UNSUPPORTED, NODEDB_ERR_INVALID, NODEDB_ERR_NO_MEMORY. */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_create(uint32_t *arena, nodedb_error *err);

/* From now on `arena` serves the calling thread's malloc; arena 0 is jemalloc's own. Errors: NODEDB_ERR_UNSUPPORTED,
 * NODEDB_ERR_NOT_FOUND (never created, or destroyed). */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_bind_thread(uint32_t arena, nodedb_error *err);

/* An allocator over an arena, for any config: a set of data has its memory for itself and can be dropped at once. Any
 * thread; each of its calls takes the arena's lock. Without jemalloc, or without such an arena now, it allocates
 * nothing: it answers NULL. It must not be used after the arena was destroyed. */
NODEDB_MEM_API nodedb_allocator nodedb_mem_arena_allocator(uint32_t arena);

/* Fills *stats. Any thread. Errors: NODEDB_ERR_UNSUPPORTED, NODEDB_ERR_INVALID, NODEDB_ERR_NOT_FOUND (never created, or
 * destroyed). */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_get_stats(uint32_t arena, nodedb_mem_arena_stats *stats,
                                                        nodedb_error *err);

/* Frees everything that was ever allocated from the arena, at once. No pointer into it may be used or freed after
 * that. No other thread may be bound to it, and one that was must have ended, or flushed its cache by binding itself to
 * another arena. Errors: NODEDB_ERR_UNSUPPORTED, NODEDB_ERR_NOT_FOUND (never created, destroyed, or made by jemalloc
 * for itself). */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_reset(uint32_t arena, nodedb_error *err);

/* The same, and the arena is gone; jemalloc may give its index to the next one. Errors: those, and NODEDB_ERR_STATE (a
 * thread is still bound to it). */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_destroy(uint32_t arena, nodedb_error *err);

/* ---- NUMA: set_mempolicy(2), getcpu(2), sysfs -------------------------------------------------------------------- */

/* What nodedb_mem_numa_bind_thread found and did. */
typedef struct nodedb_mem_numa {
    uint32_t nodes; /* that the machine has */
    uint32_t node;  /* of the CPU that the thread runs on */
    bool bound;     /* false: there is one node, so nothing was done */
} nodedb_mem_numa;

/* From now on new pages of the calling thread come from the node of the CPU that it runs on, as long as that has any:
 * so pin the thread first. On a machine with one node, and on a kernel without NUMA, it does nothing, and says so to
 * the logger (NULL: to nobody). `io` NULL: the system's; reads /sys/devices/system/node/online. Errors:
 * NODEDB_ERR_INVALID, NODEDB_ERR_UNSUPPORTED (the kernel or a sandbox refuses the policy), NODEDB_ERR_IO,
 * NODEDB_ERR_CORRUPT (the list of nodes cannot be read, or makes no sense). */
NODEDB_MEM_API nodedb_status nodedb_mem_numa_bind_thread(const nodedb_io *io, const nodedb_logger *logger,
                                                         nodedb_mem_numa *numa, nodedb_error *err);

#if !defined(NODEDB_MEM_NO_KEPT)
/* ---- kept regions: keep ------------------------------------------------------------------------------------------ */

/* Makes a kept file durable as it is: an object written before, and not freed or updated since, survives a power cut
 * (and what was freed since may be there again). A process that dies loses nothing, synced or not. The region's thread;
 * blocks for the device. Errors: NODEDB_ERR_INVALID, NODEDB_ERR_UNSUPPORTED (scratch; or a file on tmpfs, where nothing
 * is durable), NODEDB_ERR_IO, NODEDB_ERR_DISK_FULL, and NODEDB_ERR_STATE ever after one of these two: what is durable
 * is known only when the file is opened again. */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_sync(nodedb_mem_overflow *region, nodedb_error *err);

/* Reads an object of a kept region from the file and compares it with its checksum, whether or not that was done
 * before. Errors: as read, and NODEDB_ERR_UNSUPPORTED (scratch). */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_verify(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                        nodedb_error *err);

/* ---- views: share reads ------------------------------------------------------------------------------------------ */

/* How another thread reads a region while its owner goes on: a mapping of its own, that cannot be written through. */
typedef struct nodedb_mem_overflow_view nodedb_mem_overflow_view;

/* Opens a view, on any thread, while the region is open; one thread at a time uses it. The caller owns it. NULL:
 * NODEDB_ERR_INVALID, NODEDB_ERR_NO_MEMORY (also: no address space), NODEDB_ERR_IO. */
NODEDB_MEM_API nodedb_mem_overflow_view *nodedb_mem_overflow_view_open(nodedb_mem_overflow *region, nodedb_error *err);

/* Closes a view, before or after its region. NULL is allowed. */
NODEDB_MEM_API void nodedb_mem_overflow_view_close(nodedb_mem_overflow_view *view);

/* As nodedb_mem_overflow_read, for an object that the owner will not free, update or move before the reader is done:
 * the pointer is valid until then. An object that a kept file brought is checked each time, until its owner has read
 * it. Errors: as there, and NODEDB_ERR_AGAIN (the owner was changing it all the time). */
NODEDB_MEM_API const void *nodedb_mem_overflow_view_read(nodedb_mem_overflow_view *view, nodedb_mem_handle handle,
                                                         size_t *bytes, nodedb_error *err);

/* Copies an object into `buffer` of `capacity` bytes, by pread(2). The owner may free, update or move it at any moment:
 * then this answers NODEDB_ERR_NOT_FOUND or copies again, and never returns a mixture or another object's bytes. *bytes
 * (may be NULL) gets its length. Errors: as read, NODEDB_ERR_LIMIT (the buffer is too small; *bytes is set), and
 * NODEDB_ERR_AGAIN (the owner was changing it all the time). */
NODEDB_MEM_API nodedb_status nodedb_mem_overflow_view_copy(nodedb_mem_overflow_view *view, nodedb_mem_handle handle,
                                                           void *buffer, size_t capacity, size_t *bytes,
                                                           nodedb_error *err);
#endif /* NODEDB_MEM_NO_KEPT */

#ifdef __cplusplus
}
#endif

#endif /* NODEDB_MEM_H */

#ifdef NODEDB_MEM_IMPLEMENTATION
#ifndef NODEDB_MEM_IMPLEMENTED
#define NODEDB_MEM_IMPLEMENTED

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#if !defined(__has_include)
#define NODEDB_NO_JEMALLOC 1
#elif !defined(NODEDB_NO_JEMALLOC)
#if __has_include(<jemalloc/jemalloc.h>)
#include <jemalloc/jemalloc.h>
#pragma weak mallctl /* NULL where the program is linked without it, so that one object file serves both */
#pragma weak mallocx
#pragma weak dallocx
#else
#define NODEDB_NO_JEMALLOC 1
#endif
#endif

/* ===================================================================================================================
 * IMPLEMENTATION
 *
 *   GOVERNOR             cells, credit, reserve and release: why the ceiling holds exactly
 *   LIMITS               set by the caller, and lent between engines
 *   PRESSURE AND SPILL   usage, levels, and what a core is to move
 *   LIFE CYCLE           creation, the system's ceiling, engines by name, the process's real use
 *   OVERFLOW REGION      blocks, slots, handles, and holes by size
 *   DISK BLOCKS          allocated before use, given back by granules: why no neighbour's bytes are dropped
 *   OBJECTS              open, write, read, update, free
 *   COMPACTION           objects move down into holes
 *   ARENAS               jemalloc's
 *   NUMA                 a thread's own node
 *   KEPT REGIONS         the table in the file, sync, reopening after a kill or a power cut
 *   VIEWS                other threads read
 * ================================================================================================================ */

/* ===================================================================================================================
 * GOVERNOR: reserve and release, exactly, on lines that no other core writes
 *
 * One cell for each pair of core and engine holds two numbers. `used` is what the core has reserved. `covered` is what
 * the limits already count for the cell; the difference is its credit, drawn ahead.
 *
 *     |<------------------------------ limit of the ceiling ------------------------------>|
 *     |#### used ####|.. credit ..|## used ##|... credit ...|                              |
 *     |<---- core 0, covered ---->|<---- core 1, covered -->|<---- free, nobody's yet ---->|
 *
 * The ceiling holds exactly because of two rules:
 *   1. The sum of all `covered` never passes a limit. Only a thread with the lock changes `covered`.
 *   2. A core is granted bytes without the lock only as far as its own `covered`. So the sum of all that was granted
 *      is at most the sum of all `covered`, whatever the cores do at the same time. A raise of `used` that has not been
 *      answered yet may be above `covered`; then it does not count.
 * No line is hot: a reservation that its credit covers, and every release, write the core's own cell and nothing else.
 * A core takes the lock when its credit is used up, which a chunk of credit makes rare. Near a limit it is not rare: a
 * refusal freezes and reads all cells under the lock, and the other cores meet at the lock meanwhile.
 *
 * Nothing is refused that would have fitted, either. Before a refusal all credit is reclaimed, under the lock, while
 * the owners go on without it. Each cell has a third number for that: `granted` is `covered`, or 0 while it is frozen.
 *
 *     owner of the cell             reclaiming thread, with the lock
 *     used := used + bytes          granted := 0
 *     read granted                  read used
 *
 * All four are sequentially consistent, so at least one of the two reads sees the other's write (Dekker's rule). If the
 * owner sees 0, it goes to the lock, its raise pending. If it does not, the reclaiming thread has seen the raised
 * `used` and leaves that much covered.
 *
 * With the lock, a pending raise is granted if the cell still covers it, even where a limit is exceeded by now: the
 * reservation counts from the store of `used`. While a raise is pending, `covered` of its cell can only fall, so it
 * has been high enough since that store, and every refusal in between rightly counted the bytes. Else the credit was
 * reclaimed before the store, nobody counted the raise, and the owner takes it back and asks again.
 *
 * A release is a plain store. A reclaiming thread may read the old, higher `used` and leave too much covered, never too
 * little. The next one reads the new `used`; only where the owner is in the middle of a raise by then it cannot tell
 * how far `used` had fallen, and what is covered too much stays so until the owner has been to the lock.
 * ================================================================================================================ */

#define NODEDB_MEM__ALL NODEDB_MEM_MAX_ENGINES /* index of the ceiling's budget: behind the engines' */
#define NODEDB_MEM__MAX_PATH_BYTES 4096

/* What one core holds of one engine. Two fit a cache line, and a core's lines are its own.
 *   used     reserved by this core. Its thread writes it; in the row of NODEDB_MEM_ANY_THREAD the thread with the lock.
 *   granted  how far `used` may rise without the lock: `covered`, or 0 while frozen. Written under the lock.
 *   peak     the highest `used`. Written like `used`.
 *   covered  what the budgets count for this cell. Under the lock.
 * Between calls used <= covered. During a call of its owner `used` may be above `covered`: a pending raise that does
 * not count, because its credit was reclaimed before. The owner then starts over under the lock. */
typedef struct nodedb_mem__cell {
    size_t used;
    size_t granted;
    size_t peak;
    size_t covered;
} nodedb_mem__cell;

/* An engine's account, or the ceiling's. Everything in it is read and written under the lock. Between calls `covered`
 * is the sum over its cells. It passes `limit` only by a forced reservation or a lower limit; then the cells are frozen
 * until it no longer does, so that what is released does not become credit again. */
typedef struct nodedb_mem__budget {
    char name[NODEDB_MEM_MAX_NAME_BYTES];
    size_t limit;
    size_t base;                    /* the limit that was set; `limit` differs from it while something is lent */
    size_t covered;
    size_t covered_peak;
    uint64_t rejections, forced, forced_bytes;
    uint64_t too_small;             /* refused for want of the engine's own limit */
    uint64_t too_small_at_rebalance; /* the same at the last rebalance: a difference means need */
    nodedb_mem_level level;
    bool spilling;                  /* from the upper mark of the spill controllers down to the lower one */
    uint16_t large_request_calls;   /* rebalances that still lend for one request larger than all of `base` */
    uint64_t level_since_ns;
} nodedb_mem__budget;

/* The governor. All threads share it; the comments at its parts say who may touch what. Between calls the `covered` of
 * the ceiling's budget is the sum of the engines', and no cell's `granted` is above its `covered`. */
struct nodedb_mem {
    /* Fixed at creation and read by every call. */
    nodedb_mem__cell *cells; /* [max_cores + 1][NODEDB_MEM_MAX_ENGINES]; the last row is NODEDB_MEM_ANY_THREAD's */
    size_t cells_bytes;
    uint32_t max_cores;
    nodedb_mem_config config;
    /* Written under the lock, and therefore on other lines. */
    char apart[NODEDB_CACHE_LINE_BYTES];
    pthread_mutex_t lock;
    uint32_t engines; /* only grows; also read without the lock */
    bool evaluating;  /* a thread computes levels and calls back */
    bool lent;        /* some limits are not what was set */
    nodedb_mem__budget budgets[NODEDB_MEM_MAX_ENGINES + 1];
};

static inline nodedb_mem__cell *nodedb_mem__cell_of(const nodedb_mem *mem, uint32_t core, uint32_t engine) {
    return &mem->cells[(size_t)core * NODEDB_MEM_MAX_ENGINES + engine];
}

/* ---- without the lock -------------------------------------------------------------------------------------------- */

/* How a call comes to the lock: an ordinary reservation, one whose raise of `used` is pending, or a forced one. */
typedef enum nodedb_mem__request { NODEDB_MEM__ASK, NODEDB_MEM__PENDING, NODEDB_MEM__FORCE } nodedb_mem__request;

static nodedb_status nodedb_mem__reserve_locked(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_mem__request request, nodedb_error *err);
static nodedb_status nodedb_mem__release_locked(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_error *err);

/* The owner's half of Dekker's rule. */
static inline size_t nodedb_mem__raise(nodedb_mem__cell *cell, size_t used) {
    __atomic_store_n(&cell->used, used, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&cell->granted, __ATOMIC_SEQ_CST);
}

NODEDB_MEM_API nodedb_status nodedb_mem_reserve(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_error *err) {
    if (mem != NULL && core < mem->max_cores && engine < NODEDB_MEM_MAX_ENGINES) {
        nodedb_mem__cell *cell = nodedb_mem__cell_of(mem, core, engine);
        size_t used = nodedb__load_relaxed(&cell->used), raised = used + bytes;
        if (raised > used && raised <= nodedb__load_relaxed(&cell->granted)) { /* neither 0 bytes nor an overflow */
            if (raised > nodedb_mem__raise(cell, raised))
                return nodedb_mem__reserve_locked(mem, core, engine, bytes, NODEDB_MEM__PENDING, err);
            if (raised > cell->peak) nodedb__store_relaxed(&cell->peak, raised);
            return NODEDB_OK;
        }
    }
    return nodedb_mem__reserve_locked(mem, core, engine, bytes, NODEDB_MEM__ASK, err);
}

NODEDB_MEM_API nodedb_status nodedb_mem_reserve_forced(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                       nodedb_error *err) {
    return nodedb_mem__reserve_locked(mem, core, engine, bytes, NODEDB_MEM__FORCE, err);
}

NODEDB_MEM_API nodedb_status nodedb_mem_release(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_error *err) {
    if (mem != NULL && core < mem->max_cores && engine < NODEDB_MEM_MAX_ENGINES) {
        nodedb_mem__cell *cell = nodedb_mem__cell_of(mem, core, engine);
        size_t used = nodedb__load_relaxed(&cell->used);
        if (bytes - 1 < used) { /* 1 <= bytes <= used */
            nodedb__store_relaxed(&cell->used, used - bytes);
            return NODEDB_OK;
        }
    }
    return nodedb_mem__release_locked(mem, core, engine, bytes, err);
}

/* ---- arguments, rows and budgets --------------------------------------------------------------------------------- */

static void nodedb_mem__lock(nodedb_mem *mem) {
    int error = pthread_mutex_lock(&mem->lock);
    assert(error == 0);
    (void)error;
}

static void nodedb_mem__unlock(nodedb_mem *mem) {
    int error = pthread_mutex_unlock(&mem->lock);
    assert(error == 0);
    (void)error;
}

/* OK if `core` is a core or NODEDB_MEM_ANY_THREAD, and `engine` an engine or NODEDB_MEM_GLOBAL. */
static nodedb_status nodedb_mem__check(const nodedb_mem *mem, uint32_t core, uint32_t engine, nodedb_error *err) {
    if (mem == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory governor: NULL");
    if (core >= mem->max_cores && core != NODEDB_MEM_ANY_THREAD)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory governor: core %lu of %lu", (unsigned long)core,
                           (unsigned long)mem->max_cores);
    if (engine >= nodedb__load_acquire(&mem->engines) && engine != NODEDB_MEM_GLOBAL)
        return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "memory governor: no engine %lu", (unsigned long)engine);
    return NODEDB_OK;
}

/* The same for a reservation or a release: only an engine holds bytes. */
static nodedb_status nodedb_mem__check_holder(const nodedb_mem *mem, uint32_t core, uint32_t engine,
                                              nodedb_error *err) {
    nodedb_status status = nodedb_mem__check(mem, core, engine, err);
    if (status == NODEDB_OK && engine == NODEDB_MEM_GLOBAL)
        return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "memory governor: NODEDB_MEM_GLOBAL holds no bytes itself");
    return status;
}

/* The row of cells of a core and the index of an engine's budget; both arguments are checked before. */
static inline uint32_t nodedb_mem__row(const nodedb_mem *mem, uint32_t core) {
    return core == NODEDB_MEM_ANY_THREAD ? mem->max_cores : core;
}

static inline uint32_t nodedb_mem__budget_index(uint32_t engine) {
    return engine == NODEDB_MEM_GLOBAL ? NODEDB_MEM__ALL : engine;
}

/* The engines that a budget is the sum of: [*first, *last). */
static void nodedb_mem__engines_of(const nodedb_mem *mem, uint32_t budget, uint32_t *first, uint32_t *last) {
    *first = budget == NODEDB_MEM__ALL ? 0 : budget;
    *last = budget == NODEDB_MEM__ALL ? mem->engines : budget + 1;
}

/* What a budget still has to give. */
static inline size_t nodedb_mem__left(const nodedb_mem__budget *budget) {
    return budget->limit > budget->covered ? budget->limit - budget->covered : 0;
}

static inline bool nodedb_mem__is_exceeded(const nodedb_mem__budget *budget) { return budget->covered > budget->limit; }

/* ---- with the lock ----------------------------------------------------------------------------------------------- */

/* Freezes the cells of a budget and takes all their credit back: the reclaiming half of Dekker's rule. Until
 * nodedb_mem__unfreeze nobody reserves there without the lock, and releases only lower `used`. So what is left covered
 * is reserved, or a pending raise that will be granted, and a refusal based on it is just. */
static void nodedb_mem__freeze_and_reclaim(nodedb_mem *mem, uint32_t budget) {
    uint32_t first, last;
    nodedb_mem__engines_of(mem, budget, &first, &last);
    for (uint32_t core = 0; core <= mem->max_cores; core++)
        for (uint32_t engine = first; engine < last; engine++)
            __atomic_store_n(&nodedb_mem__cell_of(mem, core, engine)->granted, 0, __ATOMIC_SEQ_CST);
    for (uint32_t core = 0; core <= mem->max_cores; core++)
        for (uint32_t engine = first; engine < last; engine++) {
            nodedb_mem__cell *cell = nodedb_mem__cell_of(mem, core, engine);
            size_t used = __atomic_load_n(&cell->used, __ATOMIC_SEQ_CST), credit;
            if (used >= cell->covered) continue;
            credit = cell->covered - used;
            assert(mem->budgets[engine].covered >= credit && mem->budgets[NODEDB_MEM__ALL].covered >= credit);
            cell->covered = used;
            mem->budgets[engine].covered -= credit;
            mem->budgets[NODEDB_MEM__ALL].covered -= credit;
        }
}

/* Lets the owners go on without the lock, except where a limit is exceeded. */
static void nodedb_mem__unfreeze(nodedb_mem *mem, uint32_t budget) {
    bool all_exceeded = nodedb_mem__is_exceeded(&mem->budgets[NODEDB_MEM__ALL]);
    uint32_t first, last;
    nodedb_mem__engines_of(mem, budget, &first, &last);
    for (uint32_t engine = first; engine < last; engine++) {
        bool frozen = all_exceeded || nodedb_mem__is_exceeded(&mem->budgets[engine]);
        for (uint32_t core = 0; core <= mem->max_cores; core++) {
            nodedb_mem__cell *cell = nodedb_mem__cell_of(mem, core, engine);
            nodedb__store_relaxed(&cell->granted, frozen ? 0 : cell->covered);
        }
    }
}

/* Counts `bytes` more as covered: in the cell, its engine and the ceiling. */
static void nodedb_mem__cover(nodedb_mem *mem, nodedb_mem__cell *cell, uint32_t engine, size_t bytes) {
    const uint32_t both[2] = {engine, NODEDB_MEM__ALL};
    for (int i = 0; i < 2; i++) {
        nodedb_mem__budget *budget = &mem->budgets[both[i]];
        budget->covered += bytes;
        if (budget->covered > budget->covered_peak) budget->covered_peak = budget->covered;
    }
    cell->covered += bytes;
}

/* How much credit a core draws ahead when `left` bytes are free: a quarter of its fair share, at most a chunk. Little
 * is drawn where little is left, because others would have to reclaim it. */
static size_t nodedb_mem__credit_ahead(const nodedb_mem *mem, size_t left) {
    size_t share = left / 4 / mem->max_cores;
    return share < mem->config.chunk_bytes ? share : mem->config.chunk_bytes;
}

/* Raises a cell's `covered` to at least `used` + `bytes`; false: they do not fit. First from what is free. If that does
 * not suffice, all idle credit is reclaimed. If that does not suffice, `forced` passes the limit. */
static bool nodedb_mem__draw(nodedb_mem *mem, nodedb_mem__cell *cell, uint32_t engine, size_t bytes, bool forced) {
    nodedb_mem__budget *own = &mem->budgets[engine], *all = &mem->budgets[NODEDB_MEM__ALL];
    size_t used = nodedb__load_relaxed(&cell->used), credit = cell->covered - used;
    size_t need = bytes > credit ? bytes - credit : 0, left;
    uint32_t scope;
    bool fits;
    assert(used <= cell->covered);
    left = nodedb_mem__left(own) < nodedb_mem__left(all) ? nodedb_mem__left(own) : nodedb_mem__left(all);
    if (!nodedb_mem__is_exceeded(own) && !nodedb_mem__is_exceeded(all) && need <= left) {
        nodedb_mem__cover(mem, cell, engine, need + nodedb_mem__credit_ahead(mem, left - need));
        nodedb__store_relaxed(&cell->granted, cell->covered);
        return true;
    }
    scope = nodedb_mem__is_exceeded(all) || need > nodedb_mem__left(all) ? NODEDB_MEM__ALL : engine;
    nodedb_mem__freeze_and_reclaim(mem, scope);
    assert(cell->covered == used);
    left = nodedb_mem__left(own) < nodedb_mem__left(all) ? nodedb_mem__left(own) : nodedb_mem__left(all);
    fits = bytes <= left;
    if (fits || forced)
        nodedb_mem__cover(mem, cell, engine, bytes + (fits ? nodedb_mem__credit_ahead(mem, left - bytes) : 0));
    if (forced && !fits) own->forced_bytes += bytes - left, all->forced_bytes += bytes - left;
    nodedb_mem__unfreeze(mem, scope);
    return fits || forced;
}

/* The sentence of a refusal; `own` and `all` are copies that were made under the lock. */
static nodedb_status nodedb_mem__refusal(const nodedb_mem__budget *own, const nodedb_mem__budget *all, size_t bytes,
                                         nodedb_error *err) {
    if (nodedb_mem__left(own) < bytes)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "engine %s: %llu bytes asked, %llu left of its limit of %llu",
                           own->name, (unsigned long long)bytes, (unsigned long long)nodedb_mem__left(own),
                           (unsigned long long)own->limit);
    return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "memory ceiling: %llu bytes asked for engine %s, %llu left of %llu",
                       (unsigned long long)bytes, own->name, (unsigned long long)nodedb_mem__left(all),
                       (unsigned long long)all->limit);
}

static nodedb_status nodedb_mem__reserve_locked(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_mem__request request, nodedb_error *err) {
    nodedb_status status = nodedb_mem__check_holder(mem, core, engine, err);
    nodedb_mem__budget *own, *all, own_then, all_then;
    nodedb_mem__cell *cell;
    bool forced = request == NODEDB_MEM__FORCE, granted;
    size_t used;
    if (status != NODEDB_OK || bytes == 0) return status;
    own = &mem->budgets[engine], all = &mem->budgets[NODEDB_MEM__ALL];
    cell = nodedb_mem__cell_of(mem, nodedb_mem__row(mem, core), engine);
    nodedb_mem__lock(mem);
    used = nodedb__load_relaxed(&cell->used);
    if (request == NODEDB_MEM__PENDING && used <= cell->covered) { /* it has counted since its store: see above */
        if (used > cell->peak) nodedb__store_relaxed(&cell->peak, used);
        nodedb_mem__unlock(mem);
        return NODEDB_OK;
    }
    if (request == NODEDB_MEM__PENDING) {
        used -= bytes;
        nodedb__store_relaxed(&cell->used, used);
    }
    if (forced && bytes > SIZE_MAX - all->covered) {
        nodedb_mem__unlock(mem);
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "engine %s: %llu bytes forced do not fit the address space",
                           own->name, (unsigned long long)bytes);
    }
    granted = nodedb_mem__draw(mem, cell, engine, bytes, forced);
    if (granted) {
        assert(used + bytes <= cell->covered);
        nodedb__store_relaxed(&cell->used, used + bytes);
        if (used + bytes > cell->peak) nodedb__store_relaxed(&cell->peak, used + bytes);
        if (forced) own->forced++, all->forced++;
    } else {
        own->rejections++;
        if (nodedb_mem__left(own) >= bytes) all->rejections++;
        else own->too_small++;
    }
    if (!granted && err != NULL) own_then = *own, all_then = *all;
    nodedb_mem__unlock(mem);
    if (granted) return NODEDB_OK;
    return err != NULL ? nodedb_mem__refusal(&own_then, &all_then, bytes, err) : NODEDB_ERR_LIMIT;
}

static nodedb_status nodedb_mem__release_locked(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes,
                                                nodedb_error *err) {
    nodedb_status status = nodedb_mem__check_holder(mem, core, engine, err);
    nodedb_mem__cell *cell;
    size_t used;
    if (status != NODEDB_OK || bytes == 0) return status;
    cell = nodedb_mem__cell_of(mem, nodedb_mem__row(mem, core), engine);
    nodedb_mem__lock(mem);
    used = nodedb__load_relaxed(&cell->used);
    if (bytes <= used) nodedb__store_relaxed(&cell->used, used - bytes);
    nodedb_mem__unlock(mem);
    if (bytes <= used) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "engine %s: release of %llu bytes, but this core holds only %llu",
                       mem->budgets[engine].name, (unsigned long long)bytes, (unsigned long long)used);
}

/* ===================================================================================================================
 * LIMITS: set by the caller, and lent between engines
 *
 * Every change of a limit is made while all credit is reclaimed, so that what is covered is what is used.
 * ================================================================================================================ */

/* `percent` of `bytes`, rounded down, without overflow. */
static inline size_t nodedb_mem__percent_of(size_t bytes, uint32_t percent) {
    return bytes / 100 * percent + bytes % 100 * percent / 100;
}

NODEDB_MEM_API nodedb_status nodedb_mem_set_limit(nodedb_mem *mem, uint32_t engine, size_t limit_bytes,
                                                  nodedb_error *err) {
    uint32_t budget = nodedb_mem__budget_index(engine), scope;
    nodedb_status status = nodedb_mem__check(mem, NODEDB_MEM_ANY_THREAD, engine, err);
    if (status != NODEDB_OK) return status;
    if (budget == NODEDB_MEM__ALL && limit_bytes == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory ceiling: a ceiling of 0 bytes");
    nodedb_mem__lock(mem);
    scope = mem->lent ? NODEDB_MEM__ALL : budget; /* all loans end, or the sum of the limits would grow */
    nodedb_mem__freeze_and_reclaim(mem, scope);
    for (uint32_t i = 0; i < mem->engines && mem->lent; i++) mem->budgets[i].limit = mem->budgets[i].base;
    mem->lent = false;
    mem->budgets[budget].limit = mem->budgets[budget].base = limit_bytes;
    mem->budgets[budget].large_request_calls = 0;
    nodedb_mem__unfreeze(mem, scope);
    nodedb_mem__unlock(mem);
    return NODEDB_OK;
}

/* What an engine can lend of the limit that was set for it, or what it needs beyond that; never both. Under the lock,
 * while no credit is out. The rule is told at nodedb_mem_rebalance. A loan for one large request shows in nothing that
 * the engine holds, so it is remembered for max_cores calls more, or a call by the next core would end it before the
 * engine has asked again. */
static void nodedb_mem__lend_or_need(nodedb_mem *mem, uint32_t engine, size_t *lends, size_t *needs) {
    nodedb_mem__budget *budget = &mem->budgets[engine];
    size_t used = budget->covered, base = budget->base, keep = used < SIZE_MAX / 2 ? used + used / 2 : used;
    bool refused = budget->too_small != budget->too_small_at_rebalance;
    *lends = 0, *needs = 0;
    if (base == NODEDB_MEM_NO_LIMIT_BYTES) return;
    if (refused && keep <= base && budget->limit >= base) budget->large_request_calls = (uint16_t)(mem->max_cores + 1);
    if (keep > base) budget->large_request_calls = 0;
    if (budget->large_request_calls > 0) {
        budget->large_request_calls--;
        *needs = base / 2;
    } else if (refused || used >= nodedb_mem__percent_of(base, mem->config.critical_percent)) {
        if (keep > base) *needs = keep - base;
    } else {
        if (keep < base / 4) keep = base / 4;
        if (keep < base) *lends = base - keep;
    }
}

/* bytes * part / whole, rounded down or up; `bytes` if part >= whole. Exact for all sizes, without a wider type: a long
 * multiplication, one bit of `bytes` at a time, whose product is kept as quotient and remainder of `whole`. */
static size_t nodedb_mem__share(size_t bytes, size_t part, size_t whole, bool round_up) {
    size_t quotient = 0, remainder = 0;
    if (part >= whole) return bytes;
    for (size_t bit = ~(SIZE_MAX >> 1); bit != 0; bit >>= 1) {
        quotient += quotient;
        if (remainder >= whole - remainder) remainder -= whole - remainder, quotient++;
        else remainder += remainder;
        if ((bytes & bit) == 0) continue;
        if (remainder >= whole - part) remainder -= whole - part, quotient++;
        else remainder += part;
    }
    return quotient + (round_up && remainder > 0 ? 1 : 0);
}

static inline size_t nodedb_mem__add_capped(size_t a, size_t b) { return b > SIZE_MAX - a ? SIZE_MAX : a + b; }

NODEDB_MEM_API nodedb_status nodedb_mem_rebalance(nodedb_mem *mem, size_t *moved, nodedb_error *err) {
    size_t lends[NODEDB_MEM_MAX_ENGINES], needs[NODEDB_MEM_MAX_ENGINES];
    size_t offered = 0, wanted = 0, given, lent = 0;
    if (mem == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "rebalance: NULL");
    nodedb_mem__lock(mem);
    nodedb_mem__freeze_and_reclaim(mem, NODEDB_MEM__ALL);
    for (uint32_t i = 0; i < mem->engines; i++) {
        nodedb_mem__lend_or_need(mem, i, &lends[i], &needs[i]);
        offered = nodedb_mem__add_capped(offered, lends[i]);
        wanted = nodedb_mem__add_capped(wanted, needs[i]);
    }
    given = offered < wanted ? offered : wanted;
    for (uint32_t i = 0; i < mem->engines; i++) { /* lenders first, rounded down: no more than that is borrowed */
        nodedb_mem__budget *budget = &mem->budgets[i];
        size_t share = nodedb_mem__share(lends[i], given, offered, false);
        budget->limit = budget->base - share;
        if (lends[i] > 0) lent += share;
    }
    if (lent < given) given = lent;
    for (uint32_t i = 0; i < mem->engines; i++) {
        nodedb_mem__budget *budget = &mem->budgets[i];
        size_t share = nodedb_mem__share(needs[i], given, wanted, false);
        if (share > lent) share = lent;
        if (needs[i] > 0) budget->limit = budget->base + share, lent -= share;
        budget->too_small_at_rebalance = budget->too_small;
    }
    mem->lent = given > 0;
    nodedb_mem__unfreeze(mem, NODEDB_MEM__ALL);
    nodedb_mem__unlock(mem);
    if (moved != NULL) *moved = given;
    return NODEDB_OK;
}

/* ===================================================================================================================
 * PRESSURE AND SPILL: what the accounts say, and what to do about it
 *
 * Two controllers with hysteresis read the same sums. A level tells how full a budget is; a spill controller tells a
 * core how much to move out, or back. Both compare a sum over cells with a limit, under the lock.
 * ================================================================================================================ */

/* ---- usage ------------------------------------------------------------------------------------------------------- */

/* What a cell holds: a pending raise within `covered` counts, one above it does not. Under the lock. */
static inline size_t nodedb_mem__reserved_of(const nodedb_mem__cell *cell) {
    size_t used = nodedb__load_relaxed(&cell->used);
    return used < cell->covered ? used : cell->covered;
}

/* What the rows [row, row_end) have reserved of a budget. Under the lock. */
static size_t nodedb_mem__reserved_by(const nodedb_mem *mem, uint32_t budget, uint32_t row, uint32_t row_end) {
    size_t sum = 0;
    uint32_t first, last;
    nodedb_mem__engines_of(mem, budget, &first, &last);
    for (; row < row_end; row++)
        for (uint32_t engine = first; engine < last; engine++)
            sum += nodedb_mem__reserved_of(nodedb_mem__cell_of(mem, row, engine));
    assert(sum <= mem->budgets[budget].covered);
    return sum;
}

/* What all rows have reserved, that of NODEDB_MEM_ANY_THREAD too. Under the lock. */
static size_t nodedb_mem__reserved(const nodedb_mem *mem, uint32_t budget) {
    return nodedb_mem__reserved_by(mem, budget, 0, mem->max_cores + 1);
}

/* The limit that counts: the engine's own or the ceiling. Under the lock. */
static size_t nodedb_mem__limit(const nodedb_mem *mem, uint32_t budget) {
    size_t ceiling = mem->budgets[NODEDB_MEM__ALL].limit, own = mem->budgets[budget].limit;
    return own < ceiling ? own : ceiling;
}

/* The sum of the cells' peaks, which need not have been at one moment; never more than was ever covered. */
static size_t nodedb_mem__peak(const nodedb_mem *mem, uint32_t budget) {
    size_t sum = 0, most = mem->budgets[budget].covered_peak;
    uint32_t first, last;
    nodedb_mem__engines_of(mem, budget, &first, &last);
    for (uint32_t core = 0; core <= mem->max_cores; core++)
        for (uint32_t engine = first; engine < last; engine++) {
            size_t peak = nodedb__load_relaxed(&nodedb_mem__cell_of(mem, core, engine)->peak);
            if (peak > most - sum) return most;
            sum += peak;
        }
    return sum;
}

NODEDB_MEM_API nodedb_status nodedb_mem_get_usage(nodedb_mem *mem, uint32_t engine, nodedb_mem_usage *usage,
                                                  nodedb_error *err) {
    uint32_t index = nodedb_mem__budget_index(engine);
    nodedb_status status = nodedb_mem__check(mem, NODEDB_MEM_ANY_THREAD, engine, err);
    const nodedb_mem__budget *budget;
    size_t total, own_left, all_left;
    if (status != NODEDB_OK) return status;
    if (usage == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory usage: NULL to fill");
    memset(usage, 0, sizeof *usage);
    budget = &mem->budgets[index];
    nodedb_mem__lock(mem);
    total = nodedb_mem__reserved(mem, NODEDB_MEM__ALL);
    memcpy(usage->name, budget->name, sizeof usage->name);
    usage->limit_bytes = nodedb_mem__limit(mem, index);
    usage->base_bytes = budget->base;
    usage->reserved_bytes = index == NODEDB_MEM__ALL ? total : nodedb_mem__reserved(mem, index);
    usage->credit_bytes = budget->covered - usage->reserved_bytes;
    own_left = budget->limit > usage->reserved_bytes ? budget->limit - usage->reserved_bytes : 0;
    all_left = mem->budgets[NODEDB_MEM__ALL].limit > total ? mem->budgets[NODEDB_MEM__ALL].limit - total : 0;
    usage->available_bytes = own_left < all_left ? own_left : all_left;
    usage->peak_bytes = nodedb_mem__peak(mem, index);
    usage->rejections = budget->rejections;
    usage->forced = budget->forced;
    usage->forced_bytes = budget->forced_bytes;
    usage->level = budget->level;
    usage->level_since_ns = budget->level_since_ns;
    nodedb_mem__unlock(mem);
    return NODEDB_OK;
}

/* ---- pressure ---------------------------------------------------------------------------------------------------- */

/* Rises at once to the highest level whose mark is reached. Falls only out of levels whose mark, less the hysteresis,
 * is no longer reached. */
static nodedb_mem_level nodedb_mem__next_level(const nodedb_mem *mem, nodedb_mem_level now, size_t used, size_t limit) {
    const uint32_t marks[] = {0, mem->config.warning_percent, mem->config.critical_percent,
                              mem->config.emergency_percent};
    int reached = NODEDB_MEM_EMERGENCY;
    if (used == 0) return NODEDB_MEM_NORMAL;
    while (used < nodedb_mem__percent_of(limit, marks[reached])) reached--;
    while ((int)now > reached &&
           used < nodedb_mem__percent_of(limit, marks[now] - mem->config.hysteresis_percent))
        now = (nodedb_mem_level)((int)now - 1);
    return (int)now > reached ? now : (nodedb_mem_level)reached;
}

/* Computes the levels of the budgets first .. last, reports changes, and answers the worst. Callbacks run without the
 * lock, one evaluation at a time: a thread that finds another evaluating computes the levels and reports nothing. */
static nodedb_mem_level nodedb_mem__evaluate(nodedb_mem *mem, uint32_t first, uint32_t last) {
    nodedb_mem_level from[NODEDB_MEM_MAX_ENGINES + 1], to[NODEDB_MEM_MAX_ENGINES + 1], worst = NODEDB_MEM_NORMAL;
    uint64_t now_ns = nodedb_now_ns(&mem->config.clock);
    bool busy;
    nodedb_mem__lock(mem);
    busy = mem->evaluating;
    mem->evaluating = true;
    for (uint32_t i = first; i <= last; i++) {
        nodedb_mem__budget *budget = &mem->budgets[i];
        from[i] = to[i] = budget->level;
        if (i < mem->engines || i == NODEDB_MEM__ALL) {
            to[i] = nodedb_mem__next_level(mem, from[i], nodedb_mem__reserved(mem, i), nodedb_mem__limit(mem, i));
            if (!busy && to[i] != from[i]) budget->level = to[i], budget->level_since_ns = now_ns;
        }
        if (to[i] > worst) worst = to[i];
    }
    nodedb_mem__unlock(mem);
    if (busy) return worst;
    for (uint32_t i = first; i <= last && mem->config.on_pressure != NULL; i++)
        if (from[i] != to[i])
            mem->config.on_pressure(mem->config.on_pressure_ctx, i == NODEDB_MEM__ALL ? NODEDB_MEM_GLOBAL : i, from[i],
                                    to[i]);
    nodedb_mem__lock(mem);
    mem->evaluating = false;
    nodedb_mem__unlock(mem);
    return worst;
}

NODEDB_MEM_API nodedb_mem_level nodedb_mem_pressure(nodedb_mem *mem, uint32_t engine) {
    uint32_t budget = nodedb_mem__budget_index(engine);
    if (nodedb_mem__check(mem, NODEDB_MEM_ANY_THREAD, engine, NULL) != NODEDB_OK) return NODEDB_MEM_EMERGENCY;
    return nodedb_mem__evaluate(mem, budget, budget);
}

NODEDB_MEM_API nodedb_mem_level nodedb_mem_poll(nodedb_mem *mem) {
    return mem == NULL ? NODEDB_MEM_EMERGENCY : nodedb_mem__evaluate(mem, 0, NODEDB_MEM__ALL);
}

/* ---- spill ------------------------------------------------------------------------------------------------------- */

/* What one budget asks of the cores that share it, at one moment. */
typedef struct nodedb_mem__spill_state {
    bool spilling;
    size_t excess; /* what all together must move out to get under the lower mark; 0 if it does not spill */
    size_t room;   /* what all together may bring back and stay under the lower mark */
    size_t held;   /* what the sharing rows hold */
} nodedb_mem__spill_state;

/* Brings budget->spilling up to date and tells what it means. Rows 0 .. rows - 1 share. A budget with nothing reserved
 * is under the lower mark even where that mark is 0. Under the lock. */
static nodedb_mem__spill_state nodedb_mem__update_spill(nodedb_mem *mem, uint32_t index, uint32_t rows) {
    nodedb_mem__budget *budget = &mem->budgets[index];
    size_t used = nodedb_mem__reserved(mem, index), limit = nodedb_mem__limit(mem, index);
    size_t begin = nodedb_mem__percent_of(limit, mem->config.spill_begin_percent);
    size_t restore = nodedb_mem__percent_of(limit, mem->config.spill_restore_percent);
    nodedb_mem__spill_state state;
    if (used == 0 || used < restore) budget->spilling = false;
    else if (used >= begin) budget->spilling = true;
    state.spilling = budget->spilling;
    state.excess = !state.spilling ? 0 : restore > 0 ? used - restore + 1 : used;
    state.room = used < restore ? restore - 1 - used : 0;
    state.held = nodedb_mem__reserved_by(mem, index, 0, rows);
    return state;
}

/* The part of the excess that falls to a core which holds `mine`. Rounded up, so that all parts together suffice. */
static size_t nodedb_mem__spill_share(const nodedb_mem__spill_state *state, size_t mine) {
    size_t share = nodedb_mem__share(state->excess, mine, state->held, true);
    return share < mine ? share : mine;
}

NODEDB_MEM_API nodedb_status nodedb_mem_spill_decide(nodedb_mem *mem, nodedb_mem_spill *spill, uint32_t core,
                                                     uint32_t engine, size_t spilled_bytes,
                                                     nodedb_mem_spill_action *action, size_t *bytes,
                                                     nodedb_error *err) {
    nodedb_status status = nodedb_mem__check(mem, core, engine, err);
    bool everyone = core == NODEDB_MEM_ANY_THREAD, was_spilling;
    uint32_t budget = nodedb_mem__budget_index(engine), rows;
    nodedb_mem__spill_state own, all;
    size_t mine, move, all_share;
    if (action != NULL) *action = NODEDB_MEM_SPILL_INVALID;
    if (bytes != NULL) *bytes = 0;
    if (status != NODEDB_OK) return status;
    if (spill == NULL || action == NULL)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "spill: no controller, or no action to fill");
    rows = everyone ? mem->max_cores + 1 : mem->max_cores;
    nodedb_mem__lock(mem);
    mine = everyone ? nodedb_mem__reserved(mem, budget) : nodedb_mem__reserved_by(mem, budget, core, core + 1);
    own = nodedb_mem__update_spill(mem, budget, rows);
    all = budget == NODEDB_MEM__ALL ? own : nodedb_mem__update_spill(mem, NODEDB_MEM__ALL, rows);
    nodedb_mem__unlock(mem);
    was_spilling = spill->spilling;
    spill->spilling = own.spilling || all.spilling;
    if (spill->spilling) {
        move = nodedb_mem__spill_share(&own, mine), all_share = nodedb_mem__spill_share(&all, mine);
        if (move < all_share) move = all_share;
        *action = was_spilling ? NODEDB_MEM_SPILL_CONTINUE : NODEDB_MEM_SPILL_BEGIN;
    } else {
        move = (own.room < all.room ? own.room : all.room) / (everyone ? 1 : mem->max_cores);
        if (move > spilled_bytes) move = spilled_bytes;
        *action = move > 0 ? NODEDB_MEM_SPILL_RESTORE : NODEDB_MEM_SPILL_NONE;
    }
    spill->begins += *action == NODEDB_MEM_SPILL_BEGIN;
    spill->continues += *action == NODEDB_MEM_SPILL_CONTINUE;
    spill->restores += *action == NODEDB_MEM_SPILL_RESTORE;
    if (bytes != NULL) *bytes = move;
    return NODEDB_OK;
}

/* ===================================================================================================================
 * LIFE CYCLE: creation, the ceiling that the system suggests, engines by name, and what the process really uses
 * ================================================================================================================ */

/* ---- small text files of the kernel ------------------------------------------------------------------------------ */

/* Reads the beginning of a file as a string; its length, or -errno. */
static int nodedb_mem__read_text(const nodedb_io *io, const char *path, char *text, size_t text_bytes) {
    size_t used = 0;
    int64_t n = 0;
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd < 0) return fd;
    while (used + 1 < text_bytes && (n = io->pread(io->ctx, fd, text + used, text_bytes - 1 - used, used)) > 0)
        used += (size_t)n;
    text[used] = 0;
    (void)io->close(io->ctx, fd);
    return n < 0 ? (int)n : (int)used;
}

/* Parses a decimal number at *text and moves *text behind it; false if there is none or it is too large. */
static bool nodedb_mem__parse_number(const char **text, uint64_t *value) {
    const char *p = *text;
    for (*value = 0; *p >= '0' && *p <= '9'; p++) {
        if (*value > (UINT64_MAX - 9) / 10) return false;
        *value = *value * 10 + (uint64_t)(*p - '0');
    }
    if (p == *text) return false;
    *text = p;
    return true;
}

/* The least limit of a control group and of the groups above it; `group` is shortened on the way up. In a container the
 * names above may be missing, and the container's own limit stands at `base`. */
static uint64_t nodedb_mem__group_limit(const nodedb_io *io, const char *base, char *group, const char *file) {
    char path[NODEDB_MEM__MAX_PATH_BYTES], text[64];
    uint64_t least = UINT64_MAX, value;
    for (;;) {
        const char *number = text;
        int used = snprintf(path, sizeof path, "%s%s/%s", base, strcmp(group, "/") == 0 ? "" : group, file);
        if (used > 0 && (size_t)used < sizeof path && nodedb_mem__read_text(io, path, text, sizeof text) > 0 &&
            nodedb_mem__parse_number(&number, &value) && value < least) least = value; /* "max" is no number */
        if (strrchr(group, '/') == NULL) return least;
        *strrchr(group, '/') = 0;
    }
}

/* /proc/self/cgroup, cgroups(7): lines of "number:controllers:path". Version 2 has number 0 and no controllers. */
static uint64_t nodedb_mem__cgroup_limit(const nodedb_io *io) {
    char text[NODEDB_MEM__MAX_PATH_BYTES], *next;
    uint64_t least = UINT64_MAX;
    if (nodedb_mem__read_text(io, "/proc/self/cgroup", text, sizeof text) <= 0) return least;
    for (char *line = text; line != NULL && *line != 0; line = next) {
        char *controllers = strchr(line, ':'), *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        uint64_t limit = UINT64_MAX;
        next = strchr(line, '\n');
        if (next != NULL) *next++ = 0;
        if (group == NULL || (next != NULL && group >= next)) continue;
        *group++ = 0;
        if (strncmp(line, "0::", 2) == 0 && controllers[1] == 0)
            limit = nodedb_mem__group_limit(io, "/sys/fs/cgroup", group, "memory.max");
        else if (strcmp(controllers + 1, "memory") == 0)
            limit = nodedb_mem__group_limit(io, "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
        if (limit < least) least = limit;
    }
    return least;
}

static size_t nodedb_mem__system_ceiling(const nodedb_io *io, uint32_t percent) {
    const uint64_t unknown_ram_bytes = UINT64_C(1) << 30; /* a guess where sysconf does not tell */
    uint64_t limit = nodedb_mem__cgroup_limit(io);
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t ram = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : unknown_ram_bytes;
    if (ram < limit) limit = ram;
    if (limit > SIZE_MAX / 2) limit = SIZE_MAX / 2; /* 32 bits: the other half is code, stacks and mappings */
    limit = nodedb_mem__percent_of((size_t)limit, percent);
    return limit > 0 ? (size_t)limit : 1;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static void nodedb_mem__default(uint32_t *value, uint32_t otherwise) {
    if (*value == 0) *value = otherwise;
}

/* Fills the defaults in, or says what is wrong. */
static nodedb_status nodedb_mem__complete_config(nodedb_mem_config *c, nodedb_error *err) {
    long processors = sysconf(_SC_NPROCESSORS_CONF);
    nodedb_mem__default(&c->max_cores, processors > 0 ? (uint32_t)processors : 1);
    nodedb_mem__default(&c->system_percent, NODEDB_MEM_DEFAULT_SYSTEM_PERCENT);
    nodedb_mem__default(&c->warning_percent, NODEDB_MEM_DEFAULT_WARNING_PERCENT);
    nodedb_mem__default(&c->critical_percent, NODEDB_MEM_DEFAULT_CRITICAL_PERCENT);
    nodedb_mem__default(&c->emergency_percent, NODEDB_MEM_DEFAULT_EMERGENCY_PERCENT);
    nodedb_mem__default(&c->hysteresis_percent, NODEDB_MEM_DEFAULT_HYSTERESIS_PERCENT);
    nodedb_mem__default(&c->spill_begin_percent, NODEDB_MEM_DEFAULT_SPILL_BEGIN_PERCENT);
    nodedb_mem__default(&c->spill_restore_percent, NODEDB_MEM_DEFAULT_SPILL_RESTORE_PERCENT);
    if (c->chunk_bytes == 0) c->chunk_bytes = NODEDB_MEM_DEFAULT_CHUNK_BYTES;
    if (c->max_cores > NODEDB_MEM_MAX_CORES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory governor: %lu cores, at most %d are possible",
                           (unsigned long)c->max_cores, NODEDB_MEM_MAX_CORES);
    if (c->system_percent > 100 || c->emergency_percent > 100 || c->critical_percent > c->emergency_percent ||
        c->warning_percent > c->critical_percent || c->hysteresis_percent >= c->warning_percent ||
        c->spill_begin_percent > 100 || c->spill_restore_percent >= c->spill_begin_percent)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory governor: percentages above 100 or out of order");
    c->io = nodedb__io_or_posix(&c->io);
    if (c->ceiling_bytes == 0) c->ceiling_bytes = nodedb_mem__system_ceiling(&c->io, c->system_percent);
    return NODEDB_OK;
}

static void nodedb_mem__start_budget(nodedb_mem *mem, uint32_t budget, const char *name, size_t limit_bytes) {
    memset(&mem->budgets[budget], 0, sizeof mem->budgets[budget]);
    (void)snprintf(mem->budgets[budget].name, sizeof mem->budgets[budget].name, "%s", name);
    mem->budgets[budget].limit = mem->budgets[budget].base = limit_bytes;
}

NODEDB_MEM_API nodedb_mem *nodedb_mem_create(const nodedb_mem_config *config, nodedb_error *err) {
    static const char *const names[NODEDB_MEM_PREDEFINED_ENGINES] = {"vector", "sparse", "crdt",  "timeseries",
                                                                     "query",  "wal",    "bridge"};
    nodedb_mem_config complete;
    nodedb_mem *mem;
    memset(&complete, 0, sizeof complete);
    if (config != NULL) complete = *config;
    if (nodedb_mem__complete_config(&complete, err) != NODEDB_OK) return NULL;
    mem = (nodedb_mem *)nodedb__alloc_zero(&complete.allocator, sizeof *mem, NODEDB_CACHE_LINE_BYTES);
    if (mem == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "memory governor: the allocator refused %lu bytes",
                          (unsigned long)sizeof *mem);
        return NULL;
    }
    mem->config = complete;
    mem->max_cores = complete.max_cores;
    mem->cells_bytes = ((size_t)mem->max_cores + 1) * NODEDB_MEM_MAX_ENGINES * sizeof *mem->cells; /* below 3 MiB */
    mem->cells = (nodedb_mem__cell *)nodedb__alloc_zero(&complete.allocator, mem->cells_bytes, NODEDB_CACHE_LINE_BYTES);
    if (mem->cells == NULL || pthread_mutex_init(&mem->lock, NULL) != 0) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "memory governor: the allocator refused %lu bytes",
                          (unsigned long)mem->cells_bytes);
        nodedb__release(&complete.allocator, mem->cells, mem->cells_bytes);
        nodedb__release(&complete.allocator, mem, sizeof *mem);
        return NULL;
    }
    for (uint32_t i = 0; i < NODEDB_MEM_PREDEFINED_ENGINES; i++)
        nodedb_mem__start_budget(mem, i, names[i], NODEDB_MEM_NO_LIMIT_BYTES);
    mem->engines = NODEDB_MEM_PREDEFINED_ENGINES;
    nodedb_mem__start_budget(mem, NODEDB_MEM__ALL, "ceiling", complete.ceiling_bytes);
    return mem;
}

NODEDB_MEM_API void nodedb_mem_destroy(nodedb_mem *mem) {
    nodedb_mem_config config;
    if (mem == NULL) return;
    config = mem->config;
    for (uint32_t i = 0; i < mem->engines; i++) {
        size_t left = nodedb_mem__reserved(mem, i);
        if (left > 0)
            nodedb_say(&config.logger, NODEDB_LOG_WARNING, "memory governor: engine %s ends with %llu bytes reserved",
                       mem->budgets[i].name, (unsigned long long)left);
    }
    (void)pthread_mutex_destroy(&mem->lock);
    nodedb__release(&config.allocator, mem->cells, mem->cells_bytes);
    nodedb__release(&config.allocator, mem, sizeof *mem);
}

/* ---- engines by name --------------------------------------------------------------------------------------------- */

/* False if no engine has that name, and it is not the ceiling's. Under the lock. */
static bool nodedb_mem__lookup(const nodedb_mem *mem, const char *name, uint32_t *engine) {
    for (uint32_t i = 0; i < mem->engines; i++)
        if (strcmp(mem->budgets[i].name, name) == 0) {
            *engine = i;
            return true;
        }
    if (strcmp(mem->budgets[NODEDB_MEM__ALL].name, name) != 0) return false;
    *engine = NODEDB_MEM_GLOBAL;
    return true;
}

NODEDB_MEM_API nodedb_status nodedb_mem_register_engine(nodedb_mem *mem, const char *name, size_t limit_bytes,
                                                        uint32_t *engine, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    if (mem == NULL || engine == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "register engine: NULL");
    if (name == NULL || name[0] == 0 || strlen(name) >= NODEDB_MEM_MAX_NAME_BYTES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "register engine: a name has 1 to %d bytes",
                           NODEDB_MEM_MAX_NAME_BYTES - 1);
    nodedb_mem__lock(mem);
    if (nodedb_mem__lookup(mem, name, engine)) status = NODEDB_ERR_EXISTS;
    else if (mem->engines == NODEDB_MEM_MAX_ENGINES) status = NODEDB_ERR_LIMIT;
    else {
        *engine = mem->engines;
        nodedb_mem__start_budget(mem, *engine, name, limit_bytes);
        nodedb__store_release(&mem->engines, *engine + 1);
    }
    nodedb_mem__unlock(mem);
    if (status == NODEDB_ERR_EXISTS) return nodedb_fail(err, status, 0, "register engine: %s is there already", name);
    if (status == NODEDB_ERR_LIMIT)
        return nodedb_fail(err, status, 0, "register engine %s: there are %d already", name, NODEDB_MEM_MAX_ENGINES);
    return NODEDB_OK;
}

/* ---- reality ----------------------------------------------------------------------------------------------------- */

static void nodedb_mem__ask_jemalloc(nodedb_mem_reality *reality); /* see ARENAS below */

NODEDB_MEM_API nodedb_status nodedb_mem_get_reality(nodedb_mem *mem, nodedb_mem_reality *reality, nodedb_error *err) {
    char text[256];
    const char *at = text;
    uint64_t pages, page = (uint64_t)sysconf(_SC_PAGESIZE);
    int used;
    if (mem == NULL || reality == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "memory reality: NULL");
    memset(reality, 0, sizeof *reality);
    used = nodedb_mem__read_text(&mem->config.io, "/proc/self/statm", text, sizeof text);
    if (used < 0) return nodedb_fail(err, NODEDB_ERR_IO, -used, "/proc/self/statm");
    /* "size resident shared ...", in pages: proc(5) */
    if (!nodedb_mem__parse_number(&at, &pages) || *at++ != ' ' || !nodedb_mem__parse_number(&at, &pages) ||
        pages > INT64_MAX / page)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "/proc/self/statm: \"%.60s\" is no line of page counts", text);
    reality->rss_bytes = pages * page;
    nodedb_mem__lock(mem);
    reality->accounted_bytes = nodedb_mem__reserved(mem, NODEDB_MEM__ALL);
    nodedb_mem__unlock(mem);
    reality->drift_bytes = (int64_t)(reality->rss_bytes - reality->accounted_bytes);
    nodedb_mem__ask_jemalloc(reality);
    return NODEDB_OK;
}

/* ===================================================================================================================
 * OVERFLOW REGION: blocks, slots and holes
 *
 * The data are a row of blocks without gaps. A block is an object or a hole, and no two holes lie side by side.
 *
 *     data   | object 7 | hole 2 |    object 5    | object 9 |            hole 4            |
 *            0                                                                        capacity
 *     slot   7: at, size, state; before 0, after 2      2: before 7, after 5      5: before 2, after 9 ...
 *
 * All that is known of a block stands in its slot, in ordinary memory, so that merging neighbours never waits for the
 * disk. A handle is a slot's number and its generation. Growing appends a hole; the mapping for the maximum exists from
 * the start, so nothing moves. A kept region has a table in its file besides: see KEPT REGIONS below.
 * ================================================================================================================ */

#define NODEDB_MEM__SLAB_SLOTS 4096u       /* slots are allocated by that many */
#define NODEDB_MEM__BINS 4096u             /* holes below 64 KiB: one bin for each size in units */
#define NODEDB_MEM__MIN_MAX_BLOCKS 65536u  /* least default of max_blocks: 2 MiB of slots when all are used */
#define NODEDB_MEM__BYTES_PER_BLOCK 64u    /* for the default of max_blocks */
#define NODEDB_MEM__GENERATION_BITS 38     /* of a handle; the slot's number has the upper 26 */
#define NODEDB_MEM__GENERATION_MASK ((UINT64_C(1) << NODEDB_MEM__GENERATION_BITS) - 1)
#define NODEDB_MEM__VERSIONS 64u           /* slots n, n + 64, n + 128 ... share one; more: fewer retries for nothing */

/* What a slot is.
 *
 *     SPARE --> HOLE --> TAKEN --> WRITTEN ----------.
 *       ^       ^  ^       |                         | free
 *       '-merge-'  '-------' failed, or moved away   v
 *     a reopened file: UNCHECKED --first read--> CHECKED --free--> HOLE
 *
 * An update leaves WRITTEN as it is and makes CHECKED of UNCHECKED. A free makes a new generation: the next one of a
 * WRITTEN object, a random one of the others (nodedb_mem__new_generation tells why). */
typedef enum nodedb_mem__state {
    NODEDB_MEM__SPARE = 0, /* no block: in the list of spare slots */
    NODEDB_MEM__HOLE,      /* a free block, filed by its size */
    NODEDB_MEM__TAKEN,     /* a block that belongs to a write, update or move that is not finished; in no list */
    NODEDB_MEM__UNCHECKED, /* an object that a kept file brought, not compared with its checksum yet */
    NODEDB_MEM__CHECKED,   /* an object that a kept file brought, known to be whole */
    NODEDB_MEM__WRITTEN    /* an object written since the region was opened */
} nodedb_mem__state;

/* 32 bytes. Numbers begin at 1; 0 is none. The owner writes. The generation changes when an object is freed and at no
 * other time.
 *
 * Views read generation, state, slack, at and size while the owner goes on. They read the generation before and after:
 * if it is the handle's both times, and the state is an object's, nothing but a move or an update can have changed the
 * rest meanwhile, and the slot's version tells of those. For that the owner changes state and generation first when it
 * frees, and stores what comes after with release, or behind a release fence. A view loads with acquire. */
typedef struct nodedb_mem__slot {
    uint32_t generation_low;
    uint8_t generation_high;
    uint8_t state;          /* nodedb_mem__state */
    uint8_t slack;          /* object: bytes of the last unit that are not its own; 16 for an empty one */
    uint32_t at, size;      /* in units */
    uint32_t before, after; /* the neighbours in the row; `after` links spare slots */
    uint32_t link[2];       /* hole: previous and next in its bin, or left and right in the tree; TAKEN by a move: the
                               moved object, and the next such block */
} nodedb_mem__slot;

/* The owner writes, any thread reads: size_t, so that one instruction loads them everywhere. */
typedef struct nodedb_mem__counters {
    size_t objects, object_bytes, used_units, holes, largest_units, capacity_units, disk_bytes, slabs;
    size_t writes, updates, reads, frees, moves, moved_bytes, grows, refused, disk_full, reopened, lost, damaged;
} nodedb_mem__counters;

/* A region. One thread owns it; views read the parts that say so. Between calls the row of blocks covers the capacity
 * without a gap, each hole is in exactly one bin or in the tree, and each object's granules are backed. */
struct nodedb_mem_overflow {
    /* Fixed at opening. */
    char *file;          /* all of it mapped, file_bytes of addresses; touched only where disk blocks are */
    size_t file_bytes;
    char *base;          /* the data: the last max_bytes of the file */
    size_t data_at;      /* kept: where they begin in the file; 0: scratch */
    size_t max_bytes;
    uint32_t max_slots;
    uint64_t seed;       /* first generations differ between regions, so that foreign handles are noticed */
    int fd;
    bool in_memory;      /* the file system keeps its files in memory */
    nodedb_allocator allocator;
    nodedb_logger logger;
    nodedb_io io;
    char dir[64], name[64]; /* their beginnings, for messages; no name: scratch */
    /* Shared by the owner and the views. */
    size_t users;        /* the owner and its views; the last one to leave frees everything */
    size_t versions[NODEDB_MEM__VERSIONS]; /* odd while an object moves or is updated; written by the owner */
    /* The owner's. */
    uint64_t sequence;   /* kept: of the newest entry in the table */
    bool sync_failed;    /* kept: for good; what is durable is unknown */
    nodedb_mem__slot **slabs;
    size_t slabs_bytes;
    uint64_t *backed;    /* a bit for each granule that has its disk blocks */
    size_t backed_bytes;
    uint32_t slots;      /* numbers below are valid */
    uint32_t spare;      /* first of the spare slots */
    uint32_t spares;
    uint32_t last;       /* the block at the end of the row */
    uint32_t cursor;     /* the block that compaction looks at next; 0: it begins at the end of the row */
    uint32_t root;       /* holes of 64 KiB and more: a treap by size and place */
    uint64_t summary;    /* bit w: map[w] is not 0 */
    uint64_t map[NODEDB_MEM__BINS / 64]; /* bit b of word w: bin 64 * w + b is not empty */
    uint32_t bins[NODEDB_MEM__BINS];
    nodedb_mem__counters count;
};

#define nodedb_mem__count(counter, change) nodedb__store_relaxed(&(counter), (counter) + (size_t)(change))
#define nodedb_mem__set(field, value) nodedb__store_release(&(field), (value)) /* of a slot: what views read */

/* ThreadSanitizer knows no fences. What these order goes through the kernel or is compared with a checksum. */
static inline void nodedb_mem__fence_release(void) {
#if !defined(NODEDB__TSAN)
    __atomic_thread_fence(__ATOMIC_RELEASE);
#endif
}
static inline void nodedb_mem__fence_acquire(void) {
#if !defined(NODEDB__TSAN)
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
#endif
}

/* ---- slots and handles ------------------------------------------------------------------------------------------- */

static inline nodedb_mem__slot *nodedb_mem__slot_of(const nodedb_mem_overflow *region, uint32_t slot) {
    assert(slot != 0 && slot < region->slots);
    return &region->slabs[slot / NODEDB_MEM__SLAB_SLOTS][slot % NODEDB_MEM__SLAB_SLOTS];
}

static inline bool nodedb_mem__is_object(const nodedb_mem__slot *s) { return s->state >= NODEDB_MEM__UNCHECKED; }

static inline void nodedb_mem__set_state(nodedb_mem__slot *s, nodedb_mem__state state) {
    nodedb_mem__set(s->state, (uint8_t)state);
}

static inline uint64_t nodedb_mem__generation(const nodedb_mem__slot *s) {
    return (uint64_t)s->generation_high << 32 | s->generation_low;
}

static inline void nodedb_mem__set_generation(nodedb_mem__slot *s, uint64_t generation) {
    nodedb_mem__set(s->generation_low, (uint32_t)generation);
    nodedb_mem__set(s->generation_high, (uint8_t)((generation & NODEDB_MEM__GENERATION_MASK) >> 32));
}

static inline uint32_t nodedb_mem__slot_number(nodedb_mem_handle handle) {
    return (uint32_t)(handle.bits >> NODEDB_MEM__GENERATION_BITS);
}

static inline nodedb_mem_handle nodedb_mem__handle_of(const nodedb_mem__slot *s, uint32_t slot) {
    nodedb_mem_handle handle;
    handle.bits = (uint64_t)slot << NODEDB_MEM__GENERATION_BITS | nodedb_mem__generation(s);
    return handle;
}

/* The exact length of an object, and where its bytes are. */
static inline size_t nodedb_mem__length(const nodedb_mem__slot *s) {
    return (size_t)s->size * NODEDB_MEM_OVERFLOW_UNIT_BYTES - s->slack;
}

static inline char *nodedb_mem__bytes_at(const nodedb_mem_overflow *region, uint32_t at) {
    return region->base + (size_t)at * NODEDB_MEM_OVERFLOW_UNIT_BYTES;
}

static uint32_t nodedb_mem__take_slot(nodedb_mem_overflow *region) {
    uint32_t slot = region->spare;
    assert(region->spares > 0);
    region->spare = nodedb_mem__slot_of(region, slot)->after;
    region->spares--;
    return slot;
}

static void nodedb_mem__give_slot(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    nodedb_mem__set_state(s, NODEDB_MEM__SPARE);
    s->after = region->spare;
    region->spare = slot;
    region->spares++;
}

/* An object moves, or its bytes change, between these two. A view that was copying it starts over. */
static inline void nodedb_mem__begin_change(nodedb_mem_overflow *region, uint32_t slot) {
    size_t *version = &region->versions[slot % NODEDB_MEM__VERSIONS];
    assert((*version & 1) == 0);
    nodedb__store_relaxed(version, *version + 1);
    nodedb_mem__fence_release();
}
static inline void nodedb_mem__end_change(nodedb_mem_overflow *region, uint32_t slot) {
    size_t *version = &region->versions[slot % NODEDB_MEM__VERSIONS];
    nodedb__store_release(version, *version + 1);
}

/* ---- large holes: a treap ---------------------------------------------------------------------------------------- */

static inline bool nodedb_mem__is_before(const nodedb_mem__slot *a, const nodedb_mem__slot *b) {
    return a->size != b->size ? a->size < b->size : a->at < b->at;
}

/* A treap's priority: random, but computed, so that it takes no room. */
static inline uint64_t nodedb_mem__priority(const nodedb_mem_overflow *region, uint32_t slot) {
    return nodedb_mix64(region->seed + slot);
}

static void nodedb_mem__tree_insert(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    uint64_t priority = nodedb_mem__priority(region, slot);
    uint32_t *link = &region->root, *side[2], at;
    while (*link != 0 && nodedb_mem__priority(region, *link) > priority) {
        nodedb_mem__slot *t = nodedb_mem__slot_of(region, *link);
        link = &t->link[nodedb_mem__is_before(t, s)];
    }
    at = *link; /* what is below is split into what comes before the new one and what comes after */
    *link = slot;
    side[0] = &s->link[0], side[1] = &s->link[1];
    while (at != 0) {
        nodedb_mem__slot *t = nodedb_mem__slot_of(region, at);
        int after = !nodedb_mem__is_before(t, s);
        *side[after] = at;
        side[after] = &t->link[!after];
        at = *side[after];
    }
    *side[0] = *side[1] = 0;
}

static void nodedb_mem__tree_remove(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    uint32_t *link = &region->root, left = s->link[0], right = s->link[1];
    while (*link != slot) {
        nodedb_mem__slot *t = nodedb_mem__slot_of(region, *link);
        link = &t->link[nodedb_mem__is_before(t, s)];
    }
    while (left != 0 && right != 0) {
        bool take_left = nodedb_mem__priority(region, left) > nodedb_mem__priority(region, right);
        uint32_t *taken = take_left ? &left : &right;
        *link = *taken;
        link = &nodedb_mem__slot_of(region, *taken)->link[take_left];
        *taken = *link;
    }
    *link = left != 0 ? left : right;
}

/* The first hole in the tree that is not before (size, at); 0 if there is none. */
static uint32_t nodedb_mem__tree_find(const nodedb_mem_overflow *region, uint32_t size, uint32_t at) {
    nodedb_mem__slot wanted;
    uint32_t found = 0, slot = region->root;
    memset(&wanted, 0, sizeof wanted);
    wanted.size = size, wanted.at = at;
    while (slot != 0) {
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        bool too_small = nodedb_mem__is_before(s, &wanted);
        if (!too_small) found = slot;
        slot = s->link[too_small];
    }
    return found;
}

/* ---- small holes: a bin for each size ---------------------------------------------------------------------------- */

static void nodedb_mem__bin_insert(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    uint32_t *bin = &region->bins[s->size];
    s->link[0] = 0, s->link[1] = *bin;
    if (*bin != 0) nodedb_mem__slot_of(region, *bin)->link[0] = slot;
    *bin = slot;
    region->map[s->size / 64] |= UINT64_C(1) << s->size % 64;
    region->summary |= UINT64_C(1) << s->size / 64;
}

static void nodedb_mem__bin_remove(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    if (s->link[1] != 0) nodedb_mem__slot_of(region, s->link[1])->link[0] = s->link[0];
    if (s->link[0] != 0) {
        nodedb_mem__slot_of(region, s->link[0])->link[1] = s->link[1];
        return;
    }
    assert(region->bins[s->size] == slot);
    region->bins[s->size] = s->link[1];
    if (s->link[1] != 0) return;
    region->map[s->size / 64] &= ~(UINT64_C(1) << s->size % 64);
    if (region->map[s->size / 64] == 0) region->summary &= ~(UINT64_C(1) << s->size / 64);
}

/* The first bin of `size` units or more that is not empty; NODEDB_MEM__BINS if there is none. */
static inline uint32_t nodedb_mem__next_bin(const nodedb_mem_overflow *region, uint32_t size) {
    uint32_t word = size / 64;
    uint64_t bits, words;
    if (size >= NODEDB_MEM__BINS) return NODEDB_MEM__BINS;
    bits = region->map[word] & UINT64_MAX << size % 64;
    if (bits == 0) {
        words = word == 63 ? 0 : region->summary & UINT64_MAX << (word + 1);
        if (words == 0) return NODEDB_MEM__BINS;
        word = (uint32_t)__builtin_ctzll(words);
        bits = region->map[word];
    }
    return word * 64 + (uint32_t)__builtin_ctzll(bits);
}

/* ---- holes of any size ------------------------------------------------------------------------------------------- */

static void nodedb_mem__add_hole(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    assert(s->size > 0);
    nodedb_mem__set_state(s, NODEDB_MEM__HOLE);
    if (s->size < NODEDB_MEM__BINS) nodedb_mem__bin_insert(region, slot);
    else nodedb_mem__tree_insert(region, slot);
    nodedb_mem__count(region->count.holes, 1);
}

static void nodedb_mem__remove_hole(nodedb_mem_overflow *region, uint32_t slot) {
    const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    assert(s->state == NODEDB_MEM__HOLE);
    if (s->size < NODEDB_MEM__BINS) nodedb_mem__bin_remove(region, slot);
    else nodedb_mem__tree_remove(region, slot);
    nodedb_mem__count(region->count.holes, -1);
}

/* The smallest hole of at least `size` units, or 0. */
static inline uint32_t nodedb_mem__best_fit(const nodedb_mem_overflow *region, uint32_t size) {
    uint32_t bin = nodedb_mem__next_bin(region, size);
    return bin < NODEDB_MEM__BINS ? region->bins[bin] : nodedb_mem__tree_find(region, size, 0);
}

static uint32_t nodedb_mem__largest_hole(const nodedb_mem_overflow *region) {
    uint32_t slot = region->root, word;
    if (slot != 0) {
        while (nodedb_mem__slot_of(region, slot)->link[1] != 0) slot = nodedb_mem__slot_of(region, slot)->link[1];
        return nodedb_mem__slot_of(region, slot)->size;
    }
    if (region->summary == 0) return 0;
    word = 63 - (uint32_t)__builtin_clzll(region->summary);
    return word * 64 + 63 - (uint32_t)__builtin_clzll(region->map[word]);
}

static inline void nodedb_mem__note_largest(nodedb_mem_overflow *region) {
    nodedb__store_relaxed(&region->count.largest_units, nodedb_mem__largest_hole(region));
}

/* Joins a block that is in no list with the holes beside it, and files the hole. */
static void nodedb_mem__merge(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    uint32_t before = s->before, after = s->after;
    if (after != 0 && nodedb_mem__slot_of(region, after)->state == NODEDB_MEM__HOLE) {
        const nodedb_mem__slot *n = nodedb_mem__slot_of(region, after);
        assert(s->at + s->size == n->at);
        nodedb_mem__remove_hole(region, after);
        nodedb_mem__set(s->size, s->size + n->size);
        s->after = n->after;
        nodedb_mem__give_slot(region, after);
        if (region->cursor == after) region->cursor = slot;
    }
    if (before != 0 && nodedb_mem__slot_of(region, before)->state == NODEDB_MEM__HOLE) {
        const nodedb_mem__slot *n = nodedb_mem__slot_of(region, before);
        assert(n->at + n->size == s->at);
        nodedb_mem__remove_hole(region, before);
        nodedb_mem__set(s->at, n->at);
        nodedb_mem__set(s->size, s->size + n->size);
        s->before = n->before;
        nodedb_mem__give_slot(region, before);
        if (region->cursor == before) region->cursor = slot;
        if (s->before != 0) nodedb_mem__slot_of(region, s->before)->after = slot;
    }
    if (s->after != 0) nodedb_mem__slot_of(region, s->after)->before = slot;
    else region->last = slot;
    nodedb_mem__add_hole(region, slot);
}

/* Takes the first `size` units of a hole; the rest, if any, is a hole of its own. Needs a spare slot for that. */
static inline void nodedb_mem__carve(nodedb_mem_overflow *region, uint32_t slot, uint32_t size) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    nodedb_mem__remove_hole(region, slot);
    nodedb_mem__set_state(s, NODEDB_MEM__TAKEN);
    if (s->size > size) {
        uint32_t rest = nodedb_mem__take_slot(region);
        nodedb_mem__slot *r = nodedb_mem__slot_of(region, rest);
        nodedb_mem__set(r->at, s->at + size);
        nodedb_mem__set(r->size, s->size - size);
        r->before = slot;
        r->after = s->after;
        if (r->after != 0) nodedb_mem__slot_of(region, r->after)->before = rest;
        else region->last = rest;
        nodedb_mem__set(s->size, size);
        s->after = rest;
        nodedb_mem__add_hole(region, rest);
    }
}

/* Two blocks change places in the row: each gets the other's place, size and neighbours. Bytes are not copied. */
static void nodedb_mem__exchange(nodedb_mem_overflow *region, uint32_t a, uint32_t b) {
    nodedb_mem__slot *x = nodedb_mem__slot_of(region, a), *y = nodedb_mem__slot_of(region, b), old = *x;
    nodedb_mem__set(x->at, y->at);
    nodedb_mem__set(x->size, y->size);
    x->before = y->before == a ? b : y->before; /* neighbours: each becomes the other's neighbour on the other side */
    x->after = y->after == a ? b : y->after;
    nodedb_mem__set(y->at, old.at);
    nodedb_mem__set(y->size, old.size);
    y->before = old.before == b ? a : old.before;
    y->after = old.after == b ? a : old.after;
    for (int i = 0; i < 2; i++) {
        uint32_t slot = i == 0 ? a : b;
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        if (s->before != 0) nodedb_mem__slot_of(region, s->before)->after = slot;
        if (s->after != 0) nodedb_mem__slot_of(region, s->after)->before = slot;
        else region->last = slot;
    }
}

/* ---- what a kept region adds; the code stands under KEPT REGIONS ------------------------------------------------- */

#if defined(NODEDB_MEM_NO_KEPT)
#define nodedb_mem__is_kept(region) ((void)(region), false)
static inline nodedb_status nodedb_mem__extend_table(nodedb_mem_overflow *region, uint32_t first, uint32_t count,
                                                     nodedb_error *err) {
    (void)region, (void)first, (void)count, (void)err;
    return NODEDB_OK;
}
static inline void nodedb_mem__announce_slots(nodedb_mem_overflow *region) { (void)region; }
static inline void nodedb_mem__store_entry(nodedb_mem_overflow *region, uint32_t slot, uint32_t checksum) {
    (void)region, (void)slot, (void)checksum;
}
static inline nodedb_status nodedb_mem__update_kept(nodedb_mem_overflow *region, uint32_t slot, uint32_t taken,
                                                    const void *data, size_t bytes, nodedb_error *err) {
    (void)region, (void)slot, (void)taken, (void)data, (void)bytes, (void)err;
    return NODEDB_OK;
}
static inline nodedb_status nodedb_mem__commit_moves(nodedb_mem_overflow *region, uint32_t moved, nodedb_error *err) {
    (void)region, (void)moved, (void)err;
    return NODEDB_OK;
}
static inline nodedb_status nodedb_mem__check_object(nodedb_mem_overflow *region, uint32_t slot, nodedb_error *err) {
    (void)region, (void)slot, (void)err;
    return NODEDB_OK;
}
static inline nodedb_status nodedb_mem__check_for_caller(nodedb_mem_overflow *region, uint32_t slot,
                                                         nodedb_error *err) {
    (void)region, (void)slot, (void)err;
    return NODEDB_OK;
}
static inline void nodedb_mem__new_generation(const nodedb_mem_overflow *region, uint32_t slot, nodedb_mem__slot *s) {
    (void)region, (void)slot, (void)s;
}
#else
#define nodedb_mem__is_kept(region) ((region)->data_at != 0)
static nodedb_status nodedb_mem__extend_table(nodedb_mem_overflow *region, uint32_t first, uint32_t count,
                                              nodedb_error *err);
static void nodedb_mem__announce_slots(nodedb_mem_overflow *region);
static void nodedb_mem__store_entry(nodedb_mem_overflow *region, uint32_t slot, uint32_t checksum);
static nodedb_status nodedb_mem__update_kept(nodedb_mem_overflow *region, uint32_t slot, uint32_t taken,
                                             const void *data, size_t bytes, nodedb_error *err);
static nodedb_status nodedb_mem__commit_moves(nodedb_mem_overflow *region, uint32_t moved, nodedb_error *err);
static nodedb_status nodedb_mem__check_object(nodedb_mem_overflow *region, uint32_t slot, nodedb_error *err);
static nodedb_status nodedb_mem__check_for_caller(nodedb_mem_overflow *region, uint32_t slot, nodedb_error *err);
static void nodedb_mem__new_generation(const nodedb_mem_overflow *region, uint32_t slot, nodedb_mem__slot *s);
static nodedb_status nodedb_mem__open_kept(nodedb_mem_overflow *region, const nodedb_mem_overflow_config *config,
                                           uint32_t *in_use, nodedb_error *err);
static nodedb_status nodedb_mem__reopen(nodedb_mem_overflow *region, uint32_t in_use, nodedb_error *err);
#endif

/* ===================================================================================================================
 * DISK BLOCKS: allocated before they are touched, given back by whole granules
 *
 * The file is divided into granules of 1 MiB. A granule is backed when its disk blocks are allocated; nothing writes to
 * one that is not, so that a full disk is an error of a write and never a SIGBUS.
 *
 * A trim gives granules back, and never drops a neighbour's bytes: a hole is rounded inward to whole granules, its
 * start up and its end down. What a granule shares with an object stays.
 *
 *     granules    |        0        |        1        |        2        |        3        |
 *     blocks      | object |                     hole                      |    object    |
 *     given back                    |=================|=================|
 * ================================================================================================================ */

static inline bool nodedb_mem__is_backed(const nodedb_mem_overflow *region, size_t granule) {
    return (region->backed[granule / 64] >> granule % 64 & 1) != 0;
}

static inline size_t nodedb_mem__granule_end(const nodedb_mem_overflow *region, size_t granule) {
    size_t end = (granule + 1) * NODEDB_MEM_OVERFLOW_GRANULE_BYTES;
    return end < region->max_bytes ? end : region->max_bytes;
}

/* Allocates disk blocks for a part of the file that has none and holds nothing. Where the file system cannot, zeros are
 * written. */
static int nodedb_mem__allocate_disk(nodedb_mem_overflow *region, uint64_t at, uint64_t bytes) {
    static const char zeros[4096] = {0};
    uint64_t end = at + bytes;
    int result = region->io.allocate(region->io.ctx, region->fd, at, bytes);
    if (result == -EOPNOTSUPP || result == -ENOSYS)
        for (result = 0; result == 0 && at < end; at += sizeof zeros)
            result = nodedb__write_all(&region->io, region->fd, zeros,
                                       (size_t)(end - at < sizeof zeros ? end - at : sizeof zeros), at);
    return result;
}

static nodedb_status nodedb_mem__no_disk_blocks(nodedb_mem_overflow *region, uint64_t at, int result,
                                                nodedb_error *err) {
    nodedb_status status = nodedb_io_status(-result);
    if (status == NODEDB_ERR_DISK_FULL) nodedb_mem__count(region->count.disk_full, 1);
    status = nodedb_fail(err, status, -result, "overflow region in %s: no disk blocks at offset %llu", region->dir,
                         (unsigned long long)at);
    if (err != NULL) err->offset = at;
    return status;
}

/* Backs all granules of [from, to) bytes of the data. What was backed stays so if a later one fails. */
static nodedb_status nodedb_mem__back(nodedb_mem_overflow *region, size_t from, size_t to, nodedb_error *err) {
    size_t granule = from / NODEDB_MEM_OVERFLOW_GRANULE_BYTES;
    size_t end = (to - 1) / NODEDB_MEM_OVERFLOW_GRANULE_BYTES + 1;
    while (granule < end) {
        size_t first = granule, at, bytes;
        int result;
        while (granule < end && !nodedb_mem__is_backed(region, granule)) granule++;
        if (granule == first) {
            granule++;
            continue;
        }
        at = first * NODEDB_MEM_OVERFLOW_GRANULE_BYTES;
        bytes = nodedb_mem__granule_end(region, granule - 1) - at;
        result = nodedb_mem__allocate_disk(region, region->data_at + at, bytes);
        if (result < 0) return nodedb_mem__no_disk_blocks(region, region->data_at + at, result, err);
        nodedb_mem__count(region->count.disk_bytes, bytes);
        for (; first < granule; first++) region->backed[first / 64] |= UINT64_C(1) << first % 64;
    }
    return NODEDB_OK;
}

static bool nodedb_mem__is_all_backed(const nodedb_mem_overflow *region, uint32_t at, uint32_t size) {
    size_t from = (size_t)at * NODEDB_MEM_OVERFLOW_UNIT_BYTES, bytes = (size_t)size * NODEDB_MEM_OVERFLOW_UNIT_BYTES;
    size_t end = (from + bytes - 1) / NODEDB_MEM_OVERFLOW_GRANULE_BYTES + 1;
    for (size_t granule = from / NODEDB_MEM_OVERFLOW_GRANULE_BYTES; granule < end; granule++)
        if (!nodedb_mem__is_backed(region, granule)) return false;
    return true;
}

/* ---- growing ----------------------------------------------------------------------------------------------------- */

static void nodedb_mem__add_slab(nodedb_mem_overflow *region, nodedb_mem__slot *slab, uint32_t count) {
    nodedb__store_release(&region->slabs[region->slots / NODEDB_MEM__SLAB_SLOTS], slab);
    nodedb__store_release(&region->slots, region->slots + count);
    nodedb_mem__count(region->count.slabs, 1);
}

/* Makes sure of `wanted` spare slots, before anything is changed. */
static nodedb_status nodedb_mem__need_slots(nodedb_mem_overflow *region, uint32_t wanted, nodedb_error *err) {
    nodedb_mem__slot *slab;
    uint32_t first = region->slots, count = NODEDB_MEM__SLAB_SLOTS;
    if (region->spares >= wanted) return NODEDB_OK;
    if (count > region->max_slots - first) count = region->max_slots - first;
    if (region->spares + count < wanted)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "overflow region in %s: max_blocks of %lu reached", region->dir,
                           (unsigned long)region->max_slots - 2);
    slab = (nodedb_mem__slot *)nodedb__alloc_zero(&region->allocator, NODEDB_MEM__SLAB_SLOTS * sizeof *slab,
                                                  NODEDB_CACHE_LINE_BYTES);
    if (slab == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "overflow region in %s: the allocator refused %lu bytes",
                           region->dir, (unsigned long)(NODEDB_MEM__SLAB_SLOTS * sizeof *slab));
    if (nodedb_mem__is_kept(region)) {
        nodedb_status status = nodedb_mem__extend_table(region, first, count, err);
        if (status != NODEDB_OK) {
            nodedb__release(&region->allocator, slab, NODEDB_MEM__SLAB_SLOTS * sizeof *slab);
            return status;
        }
    }
    nodedb_mem__add_slab(region, slab, count);
    for (uint32_t i = count; i-- > 0;) {
        nodedb_mem__set_generation(&slab[i], nodedb_mix64(region->seed ^ (first + i)));
        if (first + i != 0) nodedb_mem__give_slot(region, first + i); /* number 0 is none */
        if (nodedb_mem__is_kept(region)) nodedb_mem__store_entry(region, first + i, 0);
    }
    if (nodedb_mem__is_kept(region)) nodedb_mem__announce_slots(region);
    return NODEDB_OK;
}

/* Appends a hole, so that the region has `units` of capacity. Takes a slot. Touches no disk: see nodedb_mem__back. */
static void nodedb_mem__extend(nodedb_mem_overflow *region, size_t units) {
    uint32_t slot = nodedb_mem__take_slot(region);
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    assert(units > region->count.capacity_units && units <= region->max_bytes / NODEDB_MEM_OVERFLOW_UNIT_BYTES);
    nodedb_mem__set(s->at, (uint32_t)region->count.capacity_units);
    nodedb_mem__set(s->size, (uint32_t)(units - region->count.capacity_units));
    s->before = region->last;
    s->after = 0;
    if (region->last != 0) nodedb_mem__slot_of(region, region->last)->after = slot;
    region->last = slot;
    nodedb__store_relaxed(&region->count.capacity_units, units);
    nodedb_mem__merge(region, slot);
}

/* Grows until a hole of `size` units exists: to twice the capacity, to what is needed, or to exactly the maximum. */
static nodedb_status nodedb_mem__grow(nodedb_mem_overflow *region, uint32_t size, nodedb_error *err) {
    const nodedb_mem__slot *last = nodedb_mem__slot_of(region, region->last);
    size_t most = region->max_bytes / NODEDB_MEM_OVERFLOW_UNIT_BYTES, now = region->count.capacity_units;
    size_t missing = last->state == NODEDB_MEM__HOLE ? size - last->size : size;
    if (missing > most - now)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0,
                           "overflow region in %s: no hole of %llu bytes (largest %llu), at its maximum of %llu",
                           region->dir, (unsigned long long)size * NODEDB_MEM_OVERFLOW_UNIT_BYTES,
                           (unsigned long long)nodedb_mem__largest_hole(region) * NODEDB_MEM_OVERFLOW_UNIT_BYTES,
                           (unsigned long long)region->max_bytes);
    nodedb_mem__extend(region, missing > now ? now + missing : most - now < now ? most : now * 2);
    nodedb_mem__count(region->count.grows, 1);
    return NODEDB_OK;
}

/* ---- giving back ------------------------------------------------------------------------------------------------- */

/* Punches the backed granules among [first, last); adds to *bytes what they held. */
static nodedb_status nodedb_mem__punch(nodedb_mem_overflow *region, size_t first, size_t last, uint64_t *bytes,
                                       nodedb_error *err) {
    const int how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    for (; first < last; first++) {
        size_t at = first * NODEDB_MEM_OVERFLOW_GRANULE_BYTES, length = nodedb_mem__granule_end(region, first) - at;
        int result;
        if (!nodedb_mem__is_backed(region, first)) continue;
        nodedb__retry(result, fallocate(region->fd, how, (off_t)(region->data_at + at), (off_t)length));
        if (result != 0)
            return nodedb_fail(err, errno == EOPNOTSUPP ? NODEDB_ERR_UNSUPPORTED : NODEDB_ERR_IO, errno,
                               "overflow region in %s: cannot give disk blocks back", region->dir);
        region->backed[first / 64] &= ~(UINT64_C(1) << first % 64);
        nodedb_mem__count(region->count.disk_bytes, 0 - length);
        *bytes += length;
    }
    return NODEDB_OK;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_trim(nodedb_mem_overflow *region, uint64_t *bytes, nodedb_error *err) {
    const size_t unit = NODEDB_MEM_OVERFLOW_UNIT_BYTES, granule = NODEDB_MEM_OVERFLOW_GRANULE_BYTES;
    uint32_t slot, size = NODEDB_MEM_OVERFLOW_GRANULE_BYTES / NODEDB_MEM_OVERFLOW_UNIT_BYTES, at = 0;
    nodedb_status status = NODEDB_OK;
    uint64_t given = 0;
    if (bytes != NULL) *bytes = 0;
    if (region == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow trim: NULL");
    while (status == NODEDB_OK && (slot = nodedb_mem__tree_find(region, size, at)) != 0) {
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        size_t from = s->at * unit, to = from + s->size * unit;
        size_t end = to == region->max_bytes ? (to + granule - 1) / granule : to / granule; /* nothing is behind it */
        status = nodedb_mem__punch(region, (from + granule - 1) / granule, end, &given, err);
        size = s->size, at = s->at + 1;
    }
    if (bytes != NULL) *bytes = given;
    return status;
}

/* ===================================================================================================================
 * OBJECTS: open, write, read, update, free
 *
 * A write finds the smallest hole that fits, allocates its disk blocks, carves it, and copies the bytes. What can fail
 * comes first, so that a failed call has changed nothing.
 * ================================================================================================================ */

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

/* Fills the defaults in, or says which size makes no sense. */
static nodedb_status nodedb_mem__complete_overflow(nodedb_mem_overflow_config *c, nodedb_error *err) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), blocks;
    if (c->dir == NULL || c->dir[0] == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region: no directory");
    if (c->name != NULL && (strchr(c->name, '/') != NULL || strcmp(c->name, ".") == 0 || strcmp(c->name, "..") == 0))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region in %s: %.80s is no file's name", c->dir,
                           c->name);
    if (c->max_bytes == 0) c->max_bytes = NODEDB_MEM_OVERFLOW_DEFAULT_MAX_BYTES;
    if (c->max_bytes > NODEDB_MEM_OVERFLOW_MAX_BYTES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region in %s: max_bytes of %llu is too large", c->dir,
                           (unsigned long long)c->max_bytes);
    c->max_bytes = (c->max_bytes + page - 1) / page * page;
    if (c->initial_bytes == 0) {
        c->initial_bytes = NODEDB_MEM_OVERFLOW_DEFAULT_INITIAL_BYTES;
        if (c->initial_bytes > c->max_bytes) c->initial_bytes = c->max_bytes;
    }
    if (c->initial_bytes > c->max_bytes)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region in %s: initial_bytes above max_bytes", c->dir);
    c->initial_bytes = (c->initial_bytes + page - 1) / page * page;
    blocks = c->max_bytes / NODEDB_MEM__BYTES_PER_BLOCK;
    if (blocks < NODEDB_MEM__MIN_MAX_BLOCKS) blocks = NODEDB_MEM__MIN_MAX_BLOCKS;
    if (blocks > NODEDB_MEM_OVERFLOW_MAX_SLOTS - 2) blocks = NODEDB_MEM_OVERFLOW_MAX_SLOTS - 2;
    if (c->max_blocks == 0) c->max_blocks = (uint32_t)blocks;
    if (c->max_blocks < 2 || c->max_blocks > NODEDB_MEM_OVERFLOW_MAX_SLOTS - 2)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region in %s: max_blocks cannot be %lu", c->dir,
                           (unsigned long)c->max_blocks);
    c->io = nodedb__io_or_posix(&c->io);
    return NODEDB_OK;
}

/* Opens a nameless file; where the file system has none, a name that is removed at once. */
static int nodedb_mem__open_scratch(const nodedb_mem_overflow_config *config, const nodedb_io *io, uint64_t seed) {
    char path[NODEDB_MEM__MAX_PATH_BYTES];
    int used, fd, result;
#if defined(O_TMPFILE)
    fd = io->open(io->ctx, config->dir, O_TMPFILE | O_RDWR | O_EXCL, 0600);
    if (fd >= 0) return fd;
#endif
    used = snprintf(path, sizeof path, "%s/.nodedb-overflow-%ld-%016llx", config->dir, (long)getpid(),
                    (unsigned long long)seed);
    if (used < 0 || (size_t)used >= sizeof path) return -ENAMETOOLONG;
    fd = io->open(io->ctx, path, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0) return fd;
    result = io->unlink(io->ctx, path);
    if (result == 0) return fd;
    (void)io->close(io->ctx, fd);
    return result;
}

/* Notes a file system that keeps its files in memory, and says what that means. */
static void nodedb_mem__look_at_file_system(nodedb_mem_overflow *region) {
    const unsigned long tmpfs = 0x01021994ul, ramfs = 0x858458F6ul; /* linux/magic.h */
    struct statfs fs;
    if (fstatfs(region->fd, &fs) != 0) return;
    region->in_memory = (unsigned long)fs.f_type == tmpfs || (unsigned long)fs.f_type == ramfs;
    if (!region->in_memory) return;
    if (nodedb_mem__is_kept(region))
        nodedb_say(&region->logger, NODEDB_LOG_WARNING,
                   "overflow region %.80s in %s: this file system is in memory (tmpfs), so a restart of the machine "
                   "loses all and nodedb_mem_overflow_sync is refused; use one on disk", region->name, region->dir);
    else
        nodedb_say(&region->logger, NODEDB_LOG_WARNING,
                   "overflow region in %s: this file system is in memory (tmpfs), so what is spilled stays in memory; "
                   "use one on disk", region->dir);
}

/* The owner or a view is done. The last one frees everything. */
static void nodedb_mem__leave(nodedb_mem_overflow *region) {
    nodedb_allocator allocator = region->allocator;
    if (__atomic_sub_fetch(&region->users, 1, __ATOMIC_ACQ_REL) > 0) return;
    if (region->file != NULL) (void)munmap(region->file, region->file_bytes);
    if (region->sync_failed) (void)posix_fadvise(region->fd, 0, 0, POSIX_FADV_DONTNEED); /* reopening sees the disk */
    if (region->fd >= 0) (void)region->io.close(region->io.ctx, region->fd);
    for (size_t i = 0; i < region->count.slabs; i++)
        nodedb__release(&allocator, region->slabs[i], NODEDB_MEM__SLAB_SLOTS * sizeof **region->slabs);
    nodedb__release(&allocator, region->slabs, region->slabs_bytes);
    nodedb__release(&allocator, region->backed, region->backed_bytes);
    nodedb__release(&allocator, region, sizeof *region);
}

NODEDB_MEM_API void nodedb_mem_overflow_close(nodedb_mem_overflow *region) {
    if (region == NULL) return;
#if !defined(NODEDB_MEM_NO_KEPT)
    if (nodedb_mem__is_kept(region) && !region->in_memory) {
        nodedb_error err;
        if (nodedb_mem_overflow_sync(region, &err) != NODEDB_OK)
            nodedb_say(&region->logger, NODEDB_LOG_ERROR, "%s", err.message);
    }
#endif
    nodedb_mem__leave(region);
}

/* Opens the file of a region. *in_use: the slots that a kept file brings. */
static nodedb_status nodedb_mem__open_file(nodedb_mem_overflow *region, const nodedb_mem_overflow_config *c,
                                           uint32_t *in_use, nodedb_error *err) {
    *in_use = 0;
    if (region->name[0] != 0) {
#if defined(NODEDB_MEM_NO_KEPT)
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0,
                           "overflow region: config.name needs a build without NODEDB_MEM_NO_KEPT");
#else
        return nodedb_mem__open_kept(region, c, in_use, err);
#endif
    }
    region->fd = nodedb_mem__open_scratch(c, &region->io, region->seed);
    if (region->fd >= 0) return NODEDB_OK;
    return nodedb_fail(err, nodedb_io_status(-region->fd), -region->fd, "overflow region: no scratch file in %s",
                       region->dir);
}

/* Memory, file and mapping of a region. On failure the caller closes what is there. */
static nodedb_status nodedb_mem__set_up(nodedb_mem_overflow *region, const nodedb_mem_overflow_config *c,
                                        nodedb_error *err) {
    uint32_t in_use;
    nodedb_status status = nodedb_mem__open_file(region, c, &in_use, err);
    void *map;
    if (status != NODEDB_OK) return status;
    region->slabs_bytes = (region->max_slots / NODEDB_MEM__SLAB_SLOTS + 1) * sizeof *region->slabs;
    region->backed_bytes = (region->max_bytes / NODEDB_MEM_OVERFLOW_GRANULE_BYTES / 64 + 1) * sizeof *region->backed;
    region->slabs = (nodedb_mem__slot **)nodedb__alloc_zero(&region->allocator, region->slabs_bytes, sizeof(void *));
    region->backed = (uint64_t *)nodedb__alloc_zero(&region->allocator, region->backed_bytes, sizeof(uint64_t));
    if (region->slabs == NULL || region->backed == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "overflow region in %s: the allocator refused", region->dir);
    region->file_bytes = region->data_at + region->max_bytes;
    map = mmap(NULL, region->file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
    if (map == MAP_FAILED)
        return nodedb_fail(err, nodedb_io_status(errno), errno, "overflow region in %s: cannot map %llu bytes",
                           region->dir, (unsigned long long)region->file_bytes);
    region->file = (char *)map;
    region->base = region->file + region->data_at;
#if !defined(NODEDB_MEM_NO_KEPT)
    if (nodedb_mem__is_kept(region)) return nodedb_mem__reopen(region, in_use, err);
#endif
    return nodedb_mem__need_slots(region, 1, err);
}

NODEDB_MEM_API nodedb_mem_overflow *nodedb_mem_overflow_open(const nodedb_mem_overflow_config *config,
                                                             nodedb_error *err) {
    nodedb_mem_overflow_config c;
    nodedb_mem_overflow *region;
    size_t initial;
    memset(&c, 0, sizeof c);
    if (config != NULL) c = *config;
    if (nodedb_mem__complete_overflow(&c, err) != NODEDB_OK) return NULL;
    region = (nodedb_mem_overflow *)nodedb__alloc_zero(&c.allocator, sizeof *region, NODEDB_CACHE_LINE_BYTES);
    if (region == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "overflow region in %s: the allocator refused", c.dir);
        return NULL;
    }
    region->max_bytes = (size_t)c.max_bytes;
    region->max_slots = c.max_blocks + 2; /* number 0, and one that growing needs for a moment */
    c.max_blocks = config->max_blocks;    /* what was asked, which a kept file compares with its own */
    region->users = 1;
    region->seed = nodedb_mix64(nodedb_now_ns(NULL) ^ (uint64_t)getpid() << 40);
    region->seed = nodedb_mix64(region->seed ^ (uint64_t)(uintptr_t)region);
    region->fd = -1;
    region->allocator = c.allocator;
    region->logger = c.logger;
    region->io = c.io;
    (void)snprintf(region->dir, sizeof region->dir, "%.*s", (int)sizeof region->dir - 1, c.dir);
    if (c.name != NULL) (void)snprintf(region->name, sizeof region->name, "%.*s", (int)sizeof region->name - 1, c.name);
    if (nodedb_mem__set_up(region, &c, err) != NODEDB_OK) {
        nodedb_mem__leave(region);
        return NULL;
    }
    nodedb_mem__look_at_file_system(region);
    initial = (size_t)c.initial_bytes / NODEDB_MEM_OVERFLOW_UNIT_BYTES;
    if (initial > region->count.capacity_units && nodedb_mem__need_slots(region, 1, NULL) == NODEDB_OK)
        nodedb_mem__extend(region, initial); /* else it is a reopened one with a full table, and grows later */
    nodedb_mem__note_largest(region);
    return region;
}

/* ---- write, read, update, free ----------------------------------------------------------------------------------- */

/* Takes a block of `size` units, with its disk blocks; growing and disk blocks come first, as they may fail. A hole
 * that fits exactly adds no block, so it serves when the table is full, too. Otherwise two slots must be spare: one to
 * grow, one for the rest of a hole. */
static inline nodedb_status nodedb_mem__place(nodedb_mem_overflow *region, uint32_t size, uint32_t *slot,
                                              nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    size_t at;
    *slot = nodedb_mem__best_fit(region, size);
    if (*slot == 0 || nodedb_mem__slot_of(region, *slot)->size > size)
        status = nodedb_mem__need_slots(region, 2, err);
    if (status != NODEDB_OK) return status;
    if (*slot == 0) {
        status = nodedb_mem__grow(region, size, err);
        if (status != NODEDB_OK) return status;
        *slot = nodedb_mem__best_fit(region, size);
        assert(*slot != 0);
    }
    at = (size_t)nodedb_mem__slot_of(region, *slot)->at * NODEDB_MEM_OVERFLOW_UNIT_BYTES;
    status = nodedb_mem__back(region, at, at + (size_t)size * NODEDB_MEM_OVERFLOW_UNIT_BYTES, err);
    if (status == NODEDB_OK) nodedb_mem__carve(region, *slot, size);
    return status;
}

/* The units that an object of `bytes` takes: at least one, as a block cannot be empty. */
static nodedb_status nodedb_mem__units_of(nodedb_mem_overflow *region, size_t bytes, uint32_t *units,
                                          nodedb_error *err) {
    const size_t unit = NODEDB_MEM_OVERFLOW_UNIT_BYTES;
    if (bytes > region->max_bytes || bytes > UINT32_MAX - unit) {
        nodedb_mem__count(region->count.refused, 1);
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "overflow region in %s: %llu bytes asked, at most %llu fit",
                           region->dir, (unsigned long long)bytes, (unsigned long long)region->max_bytes);
    }
    *units = bytes == 0 ? 1 : (uint32_t)((bytes + unit - 1) / unit);
    return NODEDB_OK;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_write(nodedb_mem_overflow *region, const void *data, size_t bytes,
                                                       nodedb_mem_handle *handle, nodedb_error *err) {
    nodedb_status status;
    nodedb_mem__slot *s;
    uint32_t slot = 0, size = 0;
    if (handle != NULL) handle->bits = 0;
    if (region == NULL || handle == NULL || (data == NULL && bytes > 0))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow write: NULL");
    status = nodedb_mem__units_of(region, bytes, &size, err);
    if (status != NODEDB_OK) return status;
    status = nodedb_mem__place(region, size, &slot, err);
    if (status != NODEDB_OK) {
        nodedb_mem__count(region->count.refused, 1);
        return status;
    }
    s = nodedb_mem__slot_of(region, slot);
    if (bytes > 0) memcpy(nodedb_mem__bytes_at(region, s->at), data, bytes);
    nodedb_mem__set(s->slack, (uint8_t)(size * NODEDB_MEM_OVERFLOW_UNIT_BYTES - bytes));
    nodedb_mem__set_state(s, NODEDB_MEM__WRITTEN);
    if (nodedb_mem__is_kept(region)) nodedb_mem__store_entry(region, slot, nodedb_crc32c(0, data, bytes));
    *handle = nodedb_mem__handle_of(s, slot);
    nodedb_mem__count(region->count.objects, 1);
    nodedb_mem__count(region->count.object_bytes, bytes);
    nodedb_mem__count(region->count.used_units, size);
    nodedb_mem__count(region->count.writes, 1);
    nodedb_mem__note_largest(region);
    return NODEDB_OK;
}

static nodedb_status nodedb_mem__stale(const nodedb_mem_overflow *region, nodedb_mem_handle handle, nodedb_error *err) {
    return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "overflow region in %s: handle %016llx is stale or foreign",
                       region->dir, (unsigned long long)handle.bits);
}

/* The slot of a living object, or NULL and the reason. */
static nodedb_mem__slot *nodedb_mem__resolve(const nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                             nodedb_error *err) {
    uint32_t slot = nodedb_mem__slot_number(handle);
    if (region == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region: NULL");
        return NULL;
    }
    if (slot != 0 && slot < region->slots) {
        nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        if (nodedb_mem__is_object(s) &&
            nodedb_mem__generation(s) == (handle.bits & NODEDB_MEM__GENERATION_MASK)) return s;
    }
    (void)nodedb_mem__stale(region, handle, err);
    return NULL;
}

NODEDB_MEM_API const void *nodedb_mem_overflow_read(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                    size_t *bytes, nodedb_error *err) {
    nodedb_mem__slot *s = nodedb_mem__resolve(region, handle, err);
    if (s != NULL && s->state == NODEDB_MEM__UNCHECKED &&
        nodedb_mem__check_for_caller(region, nodedb_mem__slot_number(handle), err) != NODEDB_OK)
        s = NULL;
    if (bytes != NULL) *bytes = s != NULL ? nodedb_mem__length(s) : 0;
    if (s == NULL) return NULL;
    nodedb_mem__count(region->count.reads, 1);
    return nodedb_mem__bytes_at(region, s->at);
}

/* Frees the block of a finished or failed update. */
static void nodedb_mem__return_block(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__merge(region, slot);
    nodedb_mem__note_largest(region);
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_update(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                        const void *data, size_t bytes, nodedb_error *err) {
    nodedb_mem__slot *s = nodedb_mem__resolve(region, handle, err);
    uint32_t slot = nodedb_mem__slot_number(handle), size = 0, old_size, taken = 0;
    size_t old_bytes;
    nodedb_status status;
    if (s == NULL) return region == NULL ? NODEDB_ERR_INVALID : NODEDB_ERR_NOT_FOUND;
    if (data == NULL && bytes > 0) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow update: NULL");
    status = nodedb_mem__units_of(region, bytes, &size, err);
    if (status != NODEDB_OK) return status;
    old_size = s->size, old_bytes = nodedb_mem__length(s);
    if (size != old_size || nodedb_mem__is_kept(region)) { /* kept: the old bytes stay until the entry changes */
        status = nodedb_mem__place(region, size, &taken, err);
        if (status != NODEDB_OK) {
            nodedb_mem__count(region->count.refused, 1);
            return status;
        }
        if (bytes > 0) memcpy(nodedb_mem__bytes_at(region, nodedb_mem__slot_of(region, taken)->at), data, bytes);
    }
    nodedb_mem__begin_change(region, slot);
    if (nodedb_mem__is_kept(region)) status = nodedb_mem__update_kept(region, slot, taken, data, bytes, err);
    if (status == NODEDB_OK) {
        if (taken != 0) nodedb_mem__exchange(region, slot, taken);
        else if (bytes > 0) memmove(nodedb_mem__bytes_at(region, s->at), data, bytes); /* `data` may be its own bytes */
        nodedb_mem__set(s->slack, (uint8_t)(size * NODEDB_MEM_OVERFLOW_UNIT_BYTES - bytes));
        if (s->state == NODEDB_MEM__UNCHECKED) nodedb_mem__set_state(s, NODEDB_MEM__CHECKED);
    }
    nodedb_mem__end_change(region, slot);
    if (taken != 0) nodedb_mem__return_block(region, taken);
    if (status != NODEDB_OK) return status;
    nodedb_mem__count(region->count.object_bytes, bytes - old_bytes);
    nodedb_mem__count(region->count.used_units, (size_t)size - old_size);
    nodedb_mem__count(region->count.updates, 1);
    return NODEDB_OK;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_next(nodedb_mem_overflow *region, nodedb_mem_handle *handle,
                                                      nodedb_error *err) {
    if (region == NULL || handle == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow next: NULL");
    for (uint32_t slot = nodedb_mem__slot_number(*handle) + 1; slot < region->slots; slot++) {
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        if (!nodedb_mem__is_object(s)) continue;
        *handle = nodedb_mem__handle_of(s, slot);
        return NODEDB_OK;
    }
    handle->bits = 0;
    return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "overflow region in %s: no more objects", region->dir);
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_free(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                      nodedb_error *err) {
    nodedb_mem__slot *s = nodedb_mem__resolve(region, handle, err);
    uint32_t slot = nodedb_mem__slot_number(handle);
    bool written;
    if (s == NULL) return region == NULL ? NODEDB_ERR_INVALID : NODEDB_ERR_NOT_FOUND;
    nodedb_mem__count(region->count.objects, -1);
    nodedb_mem__count(region->count.object_bytes, 0 - nodedb_mem__length(s));
    nodedb_mem__count(region->count.used_units, 0 - (size_t)s->size);
    nodedb_mem__count(region->count.frees, 1);
    written = s->state == NODEDB_MEM__WRITTEN;
    nodedb_mem__set_state(s, NODEDB_MEM__HOLE);
    if (written) nodedb_mem__set_generation(s, nodedb_mem__generation(s) + 1);
    else nodedb_mem__new_generation(region, slot, s);
    nodedb_mem__fence_release(); /* before other bytes come into its place, and another entry */
    if (nodedb_mem__is_kept(region)) nodedb_mem__store_entry(region, slot, 0);
    nodedb_mem__merge(region, slot);
    nodedb_mem__note_largest(region);
    return NODEDB_OK;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_get_stats(const nodedb_mem_overflow *region,
                                                           nodedb_mem_overflow_stats *stats, nodedb_error *err) {
    const uint64_t unit = NODEDB_MEM_OVERFLOW_UNIT_BYTES;
    const nodedb_mem__counters *c;
    uint64_t scattered;
    if (region == NULL || stats == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow statistics: NULL");
    c = &region->count;
    memset(stats, 0, sizeof *stats);
    stats->objects = nodedb__load_relaxed(&c->objects);
    stats->object_bytes = nodedb__load_relaxed(&c->object_bytes);
    stats->used_bytes = nodedb__load_relaxed(&c->used_units) * unit;
    stats->capacity_bytes = nodedb__load_relaxed(&c->capacity_units) * unit;
    stats->free_bytes = stats->capacity_bytes > stats->used_bytes ? stats->capacity_bytes - stats->used_bytes : 0;
    stats->holes = nodedb__load_relaxed(&c->holes);
    stats->largest_hole_bytes = nodedb__load_relaxed(&c->largest_units) * unit;
    scattered = stats->free_bytes > stats->largest_hole_bytes ? stats->free_bytes - stats->largest_hole_bytes : 0;
    if (scattered > 0) stats->fragmentation_percent = (uint32_t)(scattered * 100 / stats->free_bytes);
    stats->max_bytes = region->max_bytes;
    stats->disk_bytes = nodedb__load_relaxed(&c->disk_bytes);
    stats->in_memory = region->in_memory;
    stats->metadata_bytes = sizeof *region + region->slabs_bytes + region->backed_bytes +
                            nodedb__load_relaxed(&c->slabs) * NODEDB_MEM__SLAB_SLOTS * sizeof(nodedb_mem__slot);
    stats->writes = nodedb__load_relaxed(&c->writes);
    stats->updates = nodedb__load_relaxed(&c->updates);
    stats->reads = nodedb__load_relaxed(&c->reads);
    stats->frees = nodedb__load_relaxed(&c->frees);
    stats->moves = nodedb__load_relaxed(&c->moves);
    stats->moved_bytes = nodedb__load_relaxed(&c->moved_bytes);
    stats->grows = nodedb__load_relaxed(&c->grows);
    stats->refused = nodedb__load_relaxed(&c->refused);
    stats->disk_full = nodedb__load_relaxed(&c->disk_full);
    stats->reopened = nodedb__load_relaxed(&c->reopened);
    stats->lost = nodedb__load_relaxed(&c->lost);
    stats->damaged = nodedb__load_relaxed(&c->damaged);
    return NODEDB_OK;
}

/* ===================================================================================================================
 * COMPACTION: objects from the end of the row move into holes further down
 *
 * Where every second object has been freed, no granule is free, and a trim gives nothing back. A pass walks the row
 * from its end and moves each object into the smallest hole below it that fits:
 *
 *     before   | a |   | b |   | c |   | d |   |                    the cursor walks from here <-- |
 *     after    | a | d | b | c |               |
 *
 * Handles stay valid, because a handle names a slot and only the slot's place changes. Bytes are copied to a place that
 * holds nothing, before anything points there: a view never sees half of a copy, and a kept file always has an entry
 * that names whole bytes. The pass ends where all objects would end if they lay side by side. A call stops after so
 * many bytes or blocks, and the next goes on at the cursor.
 * ================================================================================================================ */

#define NODEDB_MEM__COMPACT_TRIES 64u /* holes looked at for one object: large enough that most find one */

/* A hole below `limit` for `size` units, of the smallest that there are; 0: none among the first that were looked at.
 * It has its disk blocks: to allocate others for a move would gain nothing. */
static uint32_t nodedb_mem__find_below(const nodedb_mem_overflow *region, uint32_t size, uint32_t limit) {
    uint32_t tries = 0, bin = nodedb_mem__next_bin(region, size), slot, tree_size = size, tree_at = 0;
    for (; bin < NODEDB_MEM__BINS && tries < NODEDB_MEM__COMPACT_TRIES; bin = nodedb_mem__next_bin(region, bin + 1))
        for (slot = region->bins[bin]; slot != 0 && tries < NODEDB_MEM__COMPACT_TRIES; tries++) {
            const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
            if (s->at < limit && nodedb_mem__is_all_backed(region, s->at, size)) return slot;
            slot = s->link[1];
        }
    for (; tries < NODEDB_MEM__COMPACT_TRIES; tries++) {
        const nodedb_mem__slot *s;
        slot = nodedb_mem__tree_find(region, tree_size, tree_at);
        if (slot == 0) return 0;
        s = nodedb_mem__slot_of(region, slot);
        if (s->at < limit && nodedb_mem__is_all_backed(region, s->at, size)) return slot;
        tree_size = s->size, tree_at = s->at + 1;
    }
    return 0;
}

/* Moves an object into a hole; the block that it leaves, which is TAKEN, has the number of the hole. */
static void nodedb_mem__move(nodedb_mem_overflow *region, uint32_t slot, uint32_t hole) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    nodedb_mem__carve(region, hole, s->size);
    memcpy(nodedb_mem__bytes_at(region, nodedb_mem__slot_of(region, hole)->at), nodedb_mem__bytes_at(region, s->at),
           nodedb_mem__length(s));
    nodedb_mem__begin_change(region, slot);
    nodedb_mem__exchange(region, slot, hole);
    nodedb_mem__end_change(region, slot);
    nodedb_mem__count(region->count.moves, 1);
    nodedb_mem__count(region->count.moved_bytes, nodedb_mem__length(s));
}

/* The hole that the object of the cursor may move into now, or 0. */
static uint32_t nodedb_mem__target_of(nodedb_mem_overflow *region, uint32_t slot, uint64_t left_bytes,
                                      nodedb_mem_may_move *may_move, void *ctx) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    uint32_t hole;
    if (!nodedb_mem__is_object(s) || nodedb_mem__length(s) > left_bytes) return 0;
    hole = nodedb_mem__find_below(region, s->size, s->at);
    if (hole == 0 || (may_move != NULL && !may_move(ctx, nodedb_mem__handle_of(s, slot)))) return 0;
    if (nodedb_mem__slot_of(region, hole)->size > s->size && nodedb_mem__need_slots(region, 1, NULL) != NODEDB_OK)
        return 0; /* the rest of the hole would have no slot */
    if (s->state == NODEDB_MEM__UNCHECKED && nodedb_mem__check_object(region, slot, NULL) != NODEDB_OK)
        return 0; /* damaged: it stays as it is, so that a read reports and counts it */
    return hole;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_compact(nodedb_mem_overflow *region, uint64_t max_bytes,
                                                         nodedb_mem_may_move *may_move, void *ctx, bool *complete,
                                                         nodedb_error *err) {
    uint32_t moved = 0; /* kept: the first of the blocks that objects have left; link[1] leads to the next */
    uint64_t left_bytes = max_bytes == 0 ? NODEDB_MEM_OVERFLOW_DEFAULT_COMPACT_BYTES : max_bytes, most = left_bytes;
    nodedb_status status = NODEDB_OK;
    bool end = false;
    if (complete != NULL) *complete = false;
    if (region == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow compact: NULL");
    if (region->sync_failed)
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "overflow region: an earlier sync of %.80s in %s failed",
                           region->name, region->dir);
    if (region->cursor == 0) region->cursor = region->last;
    for (uint32_t blocks = 0; blocks < NODEDB_MEM_OVERFLOW_COMPACT_BLOCKS && !end; blocks++) {
        uint32_t slot = region->cursor, hole;
        const nodedb_mem__slot *s = slot != 0 ? nodedb_mem__slot_of(region, slot) : NULL;
        end = s == NULL || s->at < region->count.used_units;
        if (end) break;
        if (nodedb_mem__is_object(s) && nodedb_mem__length(s) > left_bytes && nodedb_mem__length(s) <= most)
            break; /* the next call has the bytes for it */
        hole = nodedb_mem__target_of(region, slot, left_bytes, may_move, ctx);
        if (hole == 0) {
            region->cursor = s->before;
            continue;
        }
        left_bytes -= nodedb_mem__length(s);
        nodedb_mem__move(region, slot, hole);
        region->cursor = nodedb_mem__slot_of(region, hole)->before;
        if (nodedb_mem__is_kept(region)) {
            nodedb_mem__slot *h = nodedb_mem__slot_of(region, hole);
            h->link[0] = slot, h->link[1] = moved;
            moved = hole;
        } else nodedb_mem__merge(region, hole);
    }
    if (moved != 0) status = nodedb_mem__commit_moves(region, moved, err);
    if (end) region->cursor = 0;
    nodedb_mem__note_largest(region);
    if (complete != NULL) *complete = end && status == NODEDB_OK;
    return status;
}

/* ===================================================================================================================
 * ARENAS: jemalloc's, for a thread or for a set of data that is dropped at once
 *
 * jemalloc is asked by name through mallctl(3). Its symbols are weak, so that one object file serves programs that link
 * it and programs that do not; each call first makes sure that it serves this process's malloc.
 * ================================================================================================================ */

#define NODEDB_MEM__NO_ARENA UINT32_MAX /* of an allocator that allocates nothing; jemalloc has at most 4095 arenas */

#if defined(NODEDB_NO_JEMALLOC)

NODEDB_MEM_API nodedb_status nodedb_mem_arena_available(nodedb_error *err) {
    return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "arenas need jemalloc: this program was compiled without it");
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_create(uint32_t *arena, nodedb_error *err) {
    (void)arena;
    return nodedb_mem_arena_available(err);
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_bind_thread(uint32_t arena, nodedb_error *err) {
    (void)arena;
    return nodedb_mem_arena_available(err);
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_get_stats(uint32_t arena, nodedb_mem_arena_stats *stats,
                                                        nodedb_error *err) {
    (void)arena, (void)stats;
    return nodedb_mem_arena_available(err);
}

static nodedb_status nodedb_mem__arena_call(uint32_t arena, const char *action, nodedb_error *err) {
    (void)arena, (void)action;
    return nodedb_mem_arena_available(err);
}

static nodedb_status nodedb_mem__find_arena(uint32_t arena, nodedb_error *err) {
    (void)arena;
    return nodedb_mem_arena_available(err);
}

static void nodedb_mem__ask_jemalloc(nodedb_mem_reality *reality) { reality->jemalloc = false; }

static void *nodedb_mem__arena_alloc(void *ctx, size_t bytes, size_t align) {
    (void)ctx, (void)bytes, (void)align;
    return NULL;
}

static void nodedb_mem__arena_release(void *ctx, void *memory, size_t bytes) { (void)ctx, (void)memory, (void)bytes; }

#else

/* jemalloc may be linked and yet not serve malloc: a sanitizer or a preloaded allocator stands in front of it. So this
 * looks whether jemalloc's count of the thread's allocations moves when the thread allocates. */
NODEDB_MEM_API nodedb_status nodedb_mem_arena_available(nodedb_error *err) {
    void *(*volatile allocate)(size_t) = malloc; /* volatile: a malloc that is only freed may be optimised away */
    uint64_t *allocated = NULL, before;
    size_t bytes = sizeof allocated;
    void *probe;
    bool moved;
    if (mallctl == NULL)
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "arenas need jemalloc: link this program with -ljemalloc");
    if (mallctl("thread.allocatedp", &allocated, &bytes, NULL, 0) != 0 || allocated == NULL)
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "arenas need jemalloc with statistics (--enable-stats)");
    before = *(volatile uint64_t *)allocated;
    probe = allocate(64);
    moved = *(volatile uint64_t *)allocated != before;
    free(probe);
    if (!moved)
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0,
                           "arenas: jemalloc is linked, but another allocator (a sanitizer?) serves malloc");
    return NODEDB_OK;
}

/* A number that jemalloc keeps under `name`, of type size_t. */
static bool nodedb_mem__jemalloc_size(const char *name, size_t *value) {
    size_t bytes = sizeof *value;
    *value = 0;
    return mallctl(name, value, &bytes, NULL, 0) == 0;
}

/* Renews jemalloc's statistics, which are a snapshot: writing its epoch does that. */
static void nodedb_mem__jemalloc_refresh(void) {
    uint64_t epoch = 1;
    (void)mallctl("epoch", NULL, NULL, &epoch, sizeof epoch);
}

static void nodedb_mem__ask_jemalloc(nodedb_mem_reality *reality) {
    size_t resident, allocated;
    if (nodedb_mem_arena_available(NULL) != NODEDB_OK) return;
    nodedb_mem__jemalloc_refresh();
    reality->jemalloc = nodedb_mem__jemalloc_size("stats.resident", &resident) &&
                        nodedb_mem__jemalloc_size("stats.allocated", &allocated);
    if (!reality->jemalloc) return;
    reality->allocator_resident_bytes = resident;
    reality->allocator_allocated_bytes = allocated;
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_create(uint32_t *arena, nodedb_error *err) {
    nodedb_status status = nodedb_mem_arena_available(err);
    unsigned index = 0;
    size_t bytes = sizeof index;
    int error;
    if (status != NODEDB_OK) return status;
    if (arena == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "arena: NULL to fill");
    error = mallctl("arenas.create", &index, &bytes, NULL, 0);
    if (error != 0) return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, error, "arena: jemalloc cannot make another");
    *arena = index;
    return NODEDB_OK;
}

/* OK if jemalloc has such an arena now. It would create a destroyed one again when it is named in thread.arena or
 * mallocx, and it takes the indexes behind the last possible arena (MALLCTL_ARENAS_ALL) for sums. */
static nodedb_status nodedb_mem__find_arena(uint32_t arena, nodedb_error *err) {
    nodedb_status status = nodedb_mem_arena_available(err);
    unsigned count = 0;
    bool initialized = false;
    size_t bytes = sizeof count;
    char name[64];
    if (status != NODEDB_OK) return status;
    nodedb_mem__jemalloc_refresh();
    (void)mallctl("arenas.narenas", &count, &bytes, NULL, 0);
    bytes = sizeof initialized;
    (void)snprintf(name, sizeof name, "arena.%lu.initialized", (unsigned long)arena);
    if (arena < count && mallctl(name, &initialized, &bytes, NULL, 0) == 0 && initialized) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "no arena %lu", (unsigned long)arena);
}

/* How many arenas jemalloc made for itself: the indexes below. It creates those on demand. */
static unsigned nodedb_mem__automatic_arenas(void) {
    unsigned automatic = 0;
    size_t bytes = sizeof automatic;
    (void)mallctl("opt.narenas", &automatic, &bytes, NULL, 0);
    return automatic;
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_bind_thread(uint32_t arena, nodedb_error *err) {
    nodedb_status status = nodedb_mem_arena_available(err);
    unsigned index = arena;
    int error;
    if (status == NODEDB_OK && arena >= nodedb_mem__automatic_arenas()) status = nodedb_mem__find_arena(arena, err);
    if (status != NODEDB_OK) return status;
    (void)mallctl("thread.tcache.flush", NULL, NULL, NULL, 0); /* or it serves some more from the old arena */
    error = mallctl("thread.arena", NULL, NULL, &index, sizeof index);
    if (error != 0) return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, error, "no arena %lu", (unsigned long)arena);
    return NODEDB_OK;
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_get_stats(uint32_t arena, nodedb_mem_arena_stats *stats,
                                                        nodedb_error *err) {
    static const char *const names[3] = {"small.allocated", "large.allocated", "resident"};
    nodedb_status status = nodedb_mem_arena_available(err);
    size_t values[3];
    char name[64];
    if (status != NODEDB_OK) return status;
    if (stats == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "arena: NULL to fill");
    status = nodedb_mem__find_arena(arena, err);
    if (status != NODEDB_OK) return status;
    for (int i = 0; i < 3; i++) {
        (void)snprintf(name, sizeof name, "stats.arenas.%lu.%s", (unsigned long)arena, names[i]);
        if (!nodedb_mem__jemalloc_size(name, &values[i]))
            return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "no arena %lu", (unsigned long)arena);
    }
    stats->allocated_bytes = (uint64_t)values[0] + values[1];
    stats->resident_bytes = values[2];
    return NODEDB_OK;
}

/* Runs "arena.<index>.<action>": reset or destroy. jemalloc answers EFAULT for its own arenas (there is one behind the
 * automatic ones, for huge allocations), and destroy where a thread is still bound. */
static nodedb_status nodedb_mem__arena_call(uint32_t arena, const char *action, nodedb_error *err) {
    nodedb_status status = nodedb_mem__find_arena(arena, err);
    unsigned threads = 0;
    size_t bytes = sizeof threads;
    char name[64];
    int error;
    if (status != NODEDB_OK) return status;
    (void)snprintf(name, sizeof name, "stats.arenas.%lu.nthreads", (unsigned long)arena);
    (void)mallctl(name, &threads, &bytes, NULL, 0);
    if (arena < nodedb_mem__automatic_arenas())
        return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "arena %lu belongs to jemalloc itself", (unsigned long)arena);
    (void)mallctl("thread.tcache.flush", NULL, NULL, NULL, 0); /* what this thread caches of it must not come back */
    (void)snprintf(name, sizeof name, "arena.%lu.%s", (unsigned long)arena, action);
    error = mallctl(name, NULL, NULL, NULL, 0);
    if (error == 0) return NODEDB_OK;
    if (threads > 0 && strcmp(action, "destroy") == 0)
        return nodedb_fail(err, NODEDB_ERR_STATE, error, "arena %lu: cannot %s while %u threads are bound to it",
                           (unsigned long)arena, action, threads);
    return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, error, "arena %lu belongs to jemalloc itself: cannot %s",
                       (unsigned long)arena, action);
}

/* No thread caches anything of it, because a cached block would outlive a reset. */
static void *nodedb_mem__arena_alloc(void *ctx, size_t bytes, size_t align) {
    unsigned arena = (unsigned)(uintptr_t)ctx;
    if (mallocx == NULL || arena == NODEDB_MEM__NO_ARENA || bytes == 0 || align == 0) return NULL;
    return mallocx(bytes, MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE | MALLOCX_ALIGN(align));
}

static void nodedb_mem__arena_release(void *ctx, void *memory, size_t bytes) {
    (void)ctx, (void)bytes;
    if (memory != NULL) dallocx(memory, MALLOCX_TCACHE_NONE);
}

#endif

NODEDB_MEM_API nodedb_allocator nodedb_mem_arena_allocator(uint32_t arena) {
    nodedb_allocator allocator;
    allocator.alloc = nodedb_mem__arena_alloc, allocator.release = nodedb_mem__arena_release;
    if (nodedb_mem__find_arena(arena, NULL) != NODEDB_OK) arena = NODEDB_MEM__NO_ARENA;
    allocator.ctx = (void *)(uintptr_t)arena;
    return allocator;
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_reset(uint32_t arena, nodedb_error *err) {
    return nodedb_mem__arena_call(arena, "reset", err);
}

NODEDB_MEM_API nodedb_status nodedb_mem_arena_destroy(uint32_t arena, nodedb_error *err) {
    return nodedb_mem__arena_call(arena, "destroy", err);
}

/* ===================================================================================================================
 * NUMA: new pages of a thread from the node that it runs on
 * ================================================================================================================ */

#define NODEDB_MEM__MAX_NODES 1024u /* of a machine, as in the kernel */

/* "0-3,8": how many numbers a list of the kernel has; 0: it is none. */
static uint32_t nodedb_mem__count_list(const char *text) {
    uint32_t count = 0;
    uint64_t first, last;
    for (;; text++) {
        if (!nodedb_mem__parse_number(&text, &first)) return 0;
        last = first;
        if (*text == '-' && (text++, !nodedb_mem__parse_number(&text, &last))) return 0;
        if (last < first || last >= NODEDB_MEM__MAX_NODES) return 0;
        count += (uint32_t)(last - first + 1);
        if (*text != ',') return *text == 0 || *text == '\n' ? count : 0;
    }
}

/* Binds the calling thread to the node of the CPU that it runs on. */
static nodedb_status nodedb_mem__prefer_own_node(nodedb_mem_numa *numa, nodedb_error *err) {
    enum { WORD_BITS = 8 * (int)sizeof(unsigned long) };
    const int preferred = 1; /* MPOL_PREFERRED, linux/mempolicy.h: that node first, another when it is full */
    unsigned long mask[NODEDB_MEM__MAX_NODES / WORD_BITS];
    unsigned cpu = 0, node = 0;
    if (syscall(SYS_getcpu, &cpu, &node, NULL) != 0 || node >= NODEDB_MEM__MAX_NODES)
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, errno, "NUMA: the kernel does not say which node CPU %u is of",
                           cpu);
    memset(mask, 0, sizeof mask);
    mask[node / WORD_BITS] |= 1ul << node % WORD_BITS;
    if (syscall(SYS_set_mempolicy, preferred, mask, NODEDB_MEM__MAX_NODES + 1ul) != 0) /* the kernel takes one off */
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, errno, "NUMA: set_mempolicy for node %u is refused", node);
    numa->node = node, numa->bound = true;
    return NODEDB_OK;
}

NODEDB_MEM_API nodedb_status nodedb_mem_numa_bind_thread(const nodedb_io *io, const nodedb_logger *logger,
                                                         nodedb_mem_numa *numa, nodedb_error *err) {
    static const char online[] = "/sys/devices/system/node/online";
    nodedb_io files = nodedb__io_or_posix(io);
    char text[256] = "";
    int used;
    if (numa == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "NUMA: NULL to fill");
    memset(numa, 0, sizeof *numa);
    used = nodedb_mem__read_text(&files, online, text, sizeof text);
    if (used < 0 && used != -ENOENT) return nodedb_fail(err, NODEDB_ERR_IO, -used, "%s", online);
    numa->nodes = used < 0 ? 1 : nodedb_mem__count_list(text); /* no such file: a kernel without NUMA */
    if (numa->nodes == 0)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s: \"%.60s\" is no list of nodes", online, text);
    if (numa->nodes > 1) return nodedb_mem__prefer_own_node(numa, err);
    nodedb_say(logger, NODEDB_LOG_INFO,
               "NUMA: the machine has one node, all its memory is equally near, so nothing was bound");
    return NODEDB_OK;
}

#if !defined(NODEDB_MEM_NO_KEPT)
/* ===================================================================================================================
 * KEPT REGIONS: a table in the file, from which everything else is built again
 *
 *     0        4096     8192                              data_at
 *     | header | header | entry 0 | entry 1 | entry 2 ... | data ...
 *
 * The table has an entry for each slot. Entries are stored into the mapping when an object appears or goes, in this
 * order: its bytes, then its entry; and its entry, then other bytes in its place. So whatever kills the process, an
 * entry names bytes that are there. An update or a move changes the entry of a living object: that is one pwrite(2) of
 * 32 bytes within a page, which a dying process cannot tear.
 *
 * After a power cut the file may have pages of different moments. The checksums tell what is whole. Of two entries that
 * claim one place, the newer one counts if its bytes are there, else the older one.
 * ================================================================================================================ */

/* ---- the format: section 9 of the manual ------------------------------------------------------------------------- */

#define NODEDB_MEM__FILE_MAGIC "NDBOVFL"     /* and a zero: 8 bytes */
#define NODEDB_MEM__FILE_FORMAT 1u
#define NODEDB_MEM__HEADER_BYTES 4096u       /* twice, so that a torn write leaves one */
#define NODEDB_MEM__HEADER_USED_BYTES 48u
#define NODEDB_MEM__ENTRY_BYTES 32u
#define NODEDB_MEM__SEQUENCE_MAX ((UINT64_C(1) << 62) - 1)
#define NODEDB_MEM__DATA_ALIGN_BYTES 65536u  /* the largest page size, so that the file can be mapped anywhere */
#define NODEDB_MEM__PIECE_BYTES 16384u       /* contents and entries are read by that much */
#define NODEDB_MEM__CLAIM_READS 4u           /* to decide conflicting claims, this many times the data may be read */

enum { /* offsets in a header */
    NODEDB_MEM__HEADER_FORMAT_AT = 8,
    NODEDB_MEM__HEADER_UNIT_AT = 12,
    NODEDB_MEM__HEADER_SLOTS_AT = 16,
    NODEDB_MEM__HEADER_ENTRY_BYTES_AT = 20,
    NODEDB_MEM__HEADER_DATA_AT = 24,
    NODEDB_MEM__HEADER_CHECKSUM_AT = 32, /* of what is before it */
    NODEDB_MEM__HEADER_IN_USE_AT = 40,
    NODEDB_MEM__HEADER_IN_USE_CHECKSUM_AT = 44
};

enum { /* offsets in an entry */
    NODEDB_MEM__ENTRY_CHECKSUM_AT = 0, /* of what is behind it, begun with the slot's number */
    NODEDB_MEM__ENTRY_IS_OBJECT_AT = 4,
    NODEDB_MEM__ENTRY_GENERATION_HIGH_AT = 5,
    NODEDB_MEM__ENTRY_SLACK_AT = 6,
    NODEDB_MEM__ENTRY_GENERATION_LOW_AT = 8,
    NODEDB_MEM__ENTRY_PLACE_AT = 12,
    NODEDB_MEM__ENTRY_SIZE_AT = 16,
    NODEDB_MEM__ENTRY_CONTENTS_AT = 20, /* checksum of the object's bytes */
    NODEDB_MEM__ENTRY_SEQUENCE_AT = 24
};

static inline uint64_t nodedb_mem__entry_at(uint32_t slot) {
    return 2 * NODEDB_MEM__HEADER_BYTES + (uint64_t)slot * NODEDB_MEM__ENTRY_BYTES;
}

/* Where the data begin in a file with a table of `slots` entries. */
static inline uint64_t nodedb_mem__data_offset(uint32_t slots) {
    return (nodedb_mem__entry_at(slots) + NODEDB_MEM__DATA_ALIGN_BYTES - 1) / NODEDB_MEM__DATA_ALIGN_BYTES *
           NODEDB_MEM__DATA_ALIGN_BYTES;
}

static inline uint64_t nodedb_mem__sequence_of(const nodedb_mem_overflow *region, uint32_t slot) {
    return nodedb_get_u64(region->file + nodedb_mem__entry_at(slot) + NODEDB_MEM__ENTRY_SEQUENCE_AT);
}

/* What an entry says of its slot; `contents` is the checksum of the object's bytes, 0 where there is none. */
static void nodedb_mem__encode_entry(unsigned char *entry, uint32_t slot, const nodedb_mem__slot *s, uint32_t contents,
                                     uint64_t sequence) {
    bool object = nodedb_mem__is_object(s);
    memset(entry, 0, NODEDB_MEM__ENTRY_BYTES);
    entry[NODEDB_MEM__ENTRY_IS_OBJECT_AT] = object;
    entry[NODEDB_MEM__ENTRY_GENERATION_HIGH_AT] = s->generation_high;
    entry[NODEDB_MEM__ENTRY_SLACK_AT] = object ? s->slack : 0;
    nodedb_put_u32(entry + NODEDB_MEM__ENTRY_GENERATION_LOW_AT, s->generation_low);
    nodedb_put_u32(entry + NODEDB_MEM__ENTRY_PLACE_AT, object ? s->at : 0);
    nodedb_put_u32(entry + NODEDB_MEM__ENTRY_SIZE_AT, object ? s->size : 0);
    nodedb_put_u32(entry + NODEDB_MEM__ENTRY_CONTENTS_AT, contents);
    nodedb_put_u64(entry + NODEDB_MEM__ENTRY_SEQUENCE_AT, sequence);
    nodedb_put_u32(entry, nodedb_crc32c(slot, entry + 4, NODEDB_MEM__ENTRY_BYTES - 4));
}

static uint64_t nodedb_mem__next_sequence(nodedb_mem_overflow *region) {
    if (region->sequence < NODEDB_MEM__SEQUENCE_MAX) region->sequence++; /* a forged file may begin at the end */
    return region->sequence;
}

/* Stores the entry of an object that appears or goes. If the process dies in the middle the entry is torn, and that
 * costs nothing: the object's handle was not given out yet, or the caller was freeing it. */
static void nodedb_mem__store_entry(nodedb_mem_overflow *region, uint32_t slot, uint32_t checksum) {
    const nodedb_mem__slot *s = &region->slabs[slot / NODEDB_MEM__SLAB_SLOTS][slot % NODEDB_MEM__SLAB_SLOTS];
    unsigned char entry[NODEDB_MEM__ENTRY_BYTES];
    uint32_t *at = (uint32_t *)(void *)(region->file + nodedb_mem__entry_at(slot)), word;
    nodedb_mem__encode_entry(entry, slot, s, checksum, nodedb_mem__next_sequence(region));
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the order in which the kernel finds it, if the process dies */
    for (size_t i = 0; i < NODEDB_MEM__ENTRY_BYTES / sizeof word; i++) {
        memcpy(&word, entry + i * sizeof word, sizeof word);
        nodedb__store_relaxed(at + i, word); /* views look at the checksum */
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Replaces the entry of a living object in one system call; 0 or -errno. */
static int nodedb_mem__replace_entry(nodedb_mem_overflow *region, uint32_t slot, const nodedb_mem__slot *s,
                                     uint32_t contents, uint64_t sequence) {
    unsigned char entry[NODEDB_MEM__ENTRY_BYTES];
    nodedb_mem__encode_entry(entry, slot, s, contents, sequence);
    return nodedb__write_all(&region->io, region->fd, entry, sizeof entry, nodedb_mem__entry_at(slot));
}

/* Stores in both headers how many slots the table has, in one word that a dying process cannot tear. One copy after the
 * other: the greater number of the two is the right one. */
static void nodedb_mem__announce_slots(nodedb_mem_overflow *region) {
    unsigned char word[8];
    uint64_t stored;
    nodedb_put_u32(word, region->slots);
    nodedb_put_u32(word + 4, nodedb_crc32c(0, word, 4));
    memcpy(&stored, word, sizeof stored);
    for (int copy = 0; copy < 2; copy++)
        memcpy(region->file + copy * NODEDB_MEM__HEADER_BYTES + NODEDB_MEM__HEADER_IN_USE_AT, &stored, sizeof stored);
}

static nodedb_status nodedb_mem__fail_at(const nodedb_mem_overflow *region, nodedb_error *err, int result,
                                         const char *what) {
    return nodedb_fail(err, nodedb_io_status(-result), -result, "overflow region: cannot %s %.80s in %s", what,
                       region->name, region->dir);
}

/* Allocates disk blocks for the entries of `count` more slots. */
static nodedb_status nodedb_mem__extend_table(nodedb_mem_overflow *region, uint32_t first, uint32_t count,
                                              nodedb_error *err) {
    uint64_t at = nodedb_mem__entry_at(first), bytes = (uint64_t)count * NODEDB_MEM__ENTRY_BYTES;
    const uint64_t page = NODEDB_MEM__DATA_ALIGN_BYTES; /* whole pages, however large they are */
    uint64_t from = at / page * page, to = (at + bytes + page - 1) / page * page;
    int result = region->io.allocate(region->io.ctx, region->fd, from, to - from);
    if (result == -EOPNOTSUPP || result == -ENOSYS) result = nodedb_mem__allocate_disk(region, at, bytes);
    return result < 0 ? nodedb_mem__no_disk_blocks(region, at, result, err) : NODEDB_OK;
}

/* ---- an object and its checksum ---------------------------------------------------------------------------------- */

static inline uint32_t nodedb_mem__contents_of(const nodedb_mem_overflow *region, uint32_t slot) {
    const char *at = region->file + nodedb_mem__entry_at(slot) + NODEDB_MEM__ENTRY_CONTENTS_AT;
    uint32_t word = nodedb__load_relaxed((const uint32_t *)(const void *)at);
    return nodedb_get_u32(&word);
}

/* Reads an object's bytes from the file and compares them with the checksum in its entry. By system calls, so that a
 * disk that cannot be read is an error and no signal. */
static nodedb_status nodedb_mem__compare(nodedb_mem_overflow *region, uint32_t slot, uint32_t at, size_t bytes,
                                         nodedb_error *err) {
    uint64_t offset = region->data_at + (uint64_t)at * NODEDB_MEM_OVERFLOW_UNIT_BYTES, from = offset;
    uint32_t checksum = 0, wanted = nodedb_mem__contents_of(region, slot);
    unsigned char piece[NODEDB_MEM__PIECE_BYTES];
    while (bytes > 0) {
        size_t part = bytes < sizeof piece ? bytes : sizeof piece;
        int result = nodedb__read_all(&region->io, region->fd, piece, part, offset);
        if (result < 0) {
            nodedb_status status = result == -ENODATA ? NODEDB_ERR_CORRUPT : nodedb_io_status(-result);
            (void)nodedb_fail(err, status, -result, "overflow region in %s: cannot read an object at offset %llu",
                              region->dir, (unsigned long long)offset);
            if (err != NULL) err->offset = offset;
            return status;
        }
        checksum = nodedb_crc32c(checksum, piece, part);
        offset += part, bytes -= part;
    }
    if (checksum == wanted) return NODEDB_OK;
    (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "overflow region in %s: the object at offset %llu is damaged",
                      region->dir, (unsigned long long)from);
    if (err != NULL) err->offset = from;
    return NODEDB_ERR_CORRUPT;
}

/* The same for the owner, who notes that the object is whole. */
static nodedb_status nodedb_mem__check_object(nodedb_mem_overflow *region, uint32_t slot, nodedb_error *err) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    nodedb_status status = nodedb_mem__compare(region, slot, s->at, nodedb_mem__length(s), err);
    if (status == NODEDB_OK && s->state == NODEDB_MEM__UNCHECKED) nodedb_mem__set_state(s, NODEDB_MEM__CHECKED);
    return status;
}

/* The same where the caller is told, so that damage counts. */
static nodedb_status nodedb_mem__check_for_caller(nodedb_mem_overflow *region, uint32_t slot, nodedb_error *err) {
    nodedb_status status = nodedb_mem__check_object(region, slot, err);
    if (status == NODEDB_ERR_CORRUPT) (void)nodedb__add_relaxed(&region->count.damaged, 1); /* views count, too */
    return status;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_verify(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                        nodedb_error *err) {
    nodedb_mem__slot *s = nodedb_mem__resolve(region, handle, err);
    if (s == NULL) return region == NULL ? NODEDB_ERR_INVALID : NODEDB_ERR_NOT_FOUND;
    if (!nodedb_mem__is_kept(region))
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "overflow region in %s: scratch has no checksums",
                           region->dir);
    return nodedb_mem__check_for_caller(region, nodedb_mem__slot_number(handle), err);
}

/* ---- sync, update, move ------------------------------------------------------------------------------------------ */

static nodedb_status nodedb_mem__sync_file(nodedb_mem_overflow *region, nodedb_error *err) {
    int result = region->io.sync(region->io.ctx, region->fd);
    if (result >= 0) return NODEDB_OK;
    region->sync_failed = true; /* the kernel may have dropped the pages, and would answer the next one with success */
    return nodedb_mem__fail_at(region, err, result, "sync");
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_sync(nodedb_mem_overflow *region, nodedb_error *err) {
    if (region == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow sync: NULL");
    if (!nodedb_mem__is_kept(region))
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "overflow region in %s: scratch is not kept", region->dir);
    if (region->in_memory)
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0,
                           "overflow region: %.80s in %s is on tmpfs, where nothing survives a power cut", region->name,
                           region->dir);
    if (region->sync_failed)
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "overflow region: an earlier sync of %.80s in %s failed",
                           region->name, region->dir);
    return nodedb_mem__sync_file(region, err);
}

/* The new bytes of an object are in the block `taken`; makes its entry say so. */
static nodedb_status nodedb_mem__update_kept(nodedb_mem_overflow *region, uint32_t slot, uint32_t taken,
                                             const void *data, size_t bytes, nodedb_error *err) {
    nodedb_mem__slot now = *nodedb_mem__slot_of(region, slot);
    const nodedb_mem__slot *t = nodedb_mem__slot_of(region, taken);
    int result;
    now.at = t->at, now.size = t->size;
    now.slack = (uint8_t)((size_t)t->size * NODEDB_MEM_OVERFLOW_UNIT_BYTES - bytes);
    result = nodedb_mem__replace_entry(region, slot, &now, nodedb_crc32c(0, data, bytes),
                                       nodedb_mem__next_sequence(region));
    return result < 0 ? nodedb_mem__fail_at(region, err, result, "write an entry of") : NODEDB_OK;
}

/* The second half of a compaction. The objects' bytes are copied, their entries still name the old places, and `moved`
 * is a list of those. A power cut must find an entry and the bytes that it names, so the old places become holes only
 * when the copies are durable and then the entries. If anything fails they stay TAKEN until the region is closed: which
 * entry is durable is unknown, and both name whole bytes. The object is no newer, so its entry keeps its sequence. */
static nodedb_status nodedb_mem__commit_moves(nodedb_mem_overflow *region, uint32_t moved, nodedb_error *err) {
    nodedb_status status = nodedb_mem__sync_file(region, err);
    for (uint32_t block = moved; block != 0 && status == NODEDB_OK;) {
        const nodedb_mem__slot *b = nodedb_mem__slot_of(region, block);
        uint32_t slot = b->link[0];
        int result = nodedb_mem__replace_entry(region, slot, nodedb_mem__slot_of(region, slot),
                                               nodedb_mem__contents_of(region, slot),
                                               nodedb_mem__sequence_of(region, slot));
        if (result < 0) status = nodedb_mem__fail_at(region, err, result, "write an entry of");
        block = b->link[1];
    }
    if (status == NODEDB_OK) status = nodedb_mem__sync_file(region, err);
    while (moved != 0 && status == NODEDB_OK) {
        uint32_t next = nodedb_mem__slot_of(region, moved)->link[1];
        nodedb_mem__merge(region, moved);
        moved = next;
    }
    return status;
}

/* ---- opening: the header ----------------------------------------------------------------------------------------- */

/* Two copies of the header of a file with room for `slots` slots, none in use. */
static void nodedb_mem__encode_headers(unsigned char *pages, uint32_t slots) {
    memset(pages, 0, 2 * NODEDB_MEM__HEADER_BYTES);
    memcpy(pages, NODEDB_MEM__FILE_MAGIC, 8);
    nodedb_put_u32(pages + NODEDB_MEM__HEADER_FORMAT_AT, NODEDB_MEM__FILE_FORMAT);
    nodedb_put_u32(pages + NODEDB_MEM__HEADER_UNIT_AT, NODEDB_MEM_OVERFLOW_UNIT_BYTES);
    nodedb_put_u32(pages + NODEDB_MEM__HEADER_SLOTS_AT, slots);
    nodedb_put_u32(pages + NODEDB_MEM__HEADER_ENTRY_BYTES_AT, NODEDB_MEM__ENTRY_BYTES);
    nodedb_put_u64(pages + NODEDB_MEM__HEADER_DATA_AT, nodedb_mem__data_offset(slots));
    nodedb_put_u32(pages + NODEDB_MEM__HEADER_CHECKSUM_AT, nodedb_crc32c(0, pages, NODEDB_MEM__HEADER_CHECKSUM_AT));
    nodedb_put_u32(pages + NODEDB_MEM__HEADER_IN_USE_CHECKSUM_AT,
                   nodedb_crc32c(0, pages + NODEDB_MEM__HEADER_IN_USE_AT, 4));
    memcpy(pages + NODEDB_MEM__HEADER_BYTES, pages, NODEDB_MEM__HEADER_USED_BYTES);
}

#define NODEDB_MEM__UNKNOWN UINT32_MAX

/* What one copy of the header says: how many slots it has room for (0: this is no header), and how many are in use. */
static uint32_t nodedb_mem__decode_header(const unsigned char *page, uint32_t *in_use) {
    uint32_t slots = nodedb_get_u32(page + NODEDB_MEM__HEADER_SLOTS_AT);
    uint32_t used = nodedb_get_u32(page + NODEDB_MEM__HEADER_IN_USE_AT);
    *in_use = NODEDB_MEM__UNKNOWN;
    if (memcmp(page, NODEDB_MEM__FILE_MAGIC, 8) != 0 ||
        nodedb_get_u32(page + NODEDB_MEM__HEADER_FORMAT_AT) != NODEDB_MEM__FILE_FORMAT ||
        nodedb_get_u32(page + NODEDB_MEM__HEADER_CHECKSUM_AT) !=
            nodedb_crc32c(0, page, NODEDB_MEM__HEADER_CHECKSUM_AT) ||
        nodedb_get_u32(page + NODEDB_MEM__HEADER_UNIT_AT) != NODEDB_MEM_OVERFLOW_UNIT_BYTES ||
        nodedb_get_u32(page + NODEDB_MEM__HEADER_ENTRY_BYTES_AT) != NODEDB_MEM__ENTRY_BYTES || slots < 4 ||
        slots > NODEDB_MEM_OVERFLOW_MAX_SLOTS ||
        nodedb_get_u64(page + NODEDB_MEM__HEADER_DATA_AT) != nodedb_mem__data_offset(slots))
        return 0;
    if (nodedb_get_u32(page + NODEDB_MEM__HEADER_IN_USE_CHECKSUM_AT) ==
            nodedb_crc32c(0, page + NODEDB_MEM__HEADER_IN_USE_AT, 4) &&
        (used == slots || (used < slots && used % NODEDB_MEM__SLAB_SLOTS == 0)))
        *in_use = used;
    return slots;
}

/* True if no header was ever whole: then the file holds nothing, because the header is the first of all writes. */
static bool nodedb_mem__was_never_created(const unsigned char *pages, size_t bytes) {
    size_t i;
    for (i = 0; i < bytes && pages[i] == 0; i++) {}
    return i == bytes || (bytes >= 8 && memcmp(pages, NODEDB_MEM__FILE_MAGIC, 8) == 0);
}

static nodedb_status nodedb_mem__create_kept(nodedb_mem_overflow *region, unsigned char *pages, nodedb_error *err) {
    const nodedb_io *io = &region->io;
    int result;
    nodedb_mem__encode_headers(pages, region->max_slots);
    result = nodedb__write_all(io, region->fd, pages, 2 * NODEDB_MEM__HEADER_BYTES, 0);
    if (result == 0) result = io->sync(io->ctx, region->fd);
    return result < 0 ? nodedb_mem__fail_at(region, err, result, "write the header of") : NODEDB_OK;
}

/* Makes the file's name durable: syncs its directory. */
static nodedb_status nodedb_mem__sync_name(nodedb_mem_overflow *region, const char *dir, nodedb_error *err) {
    const nodedb_io *io = &region->io;
    int fd = io->open(io->ctx, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    int result = fd < 0 ? fd : io->sync(io->ctx, fd);
    if (fd >= 0) (void)io->close(io->ctx, fd);
    return result < 0 ? nodedb_mem__fail_at(region, err, result, "make the name durable of") : NODEDB_OK;
}

/* Opens and locks the file that `config` names. */
static nodedb_status nodedb_mem__open_and_lock(nodedb_mem_overflow *region, const nodedb_mem_overflow_config *config,
                                               nodedb_error *err) {
    const nodedb_io *io = &region->io;
    char path[NODEDB_MEM__MAX_PATH_BYTES];
    struct stat st;
    int result = snprintf(path, sizeof path, "%s/%s", config->dir, config->name);
    if (result < 0 || (size_t)result >= sizeof path) return nodedb_mem__fail_at(region, err, -ENAMETOOLONG, "open");
    region->fd = io->open(io->ctx, path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600); /* not wait at a pipe */
    if (region->fd < 0) return nodedb_mem__fail_at(region, err, region->fd, "open");
    if (fstat(region->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region: %.80s in %s is no file", region->name,
                           region->dir);
    result = io->lock(io->ctx, region->fd);
    if (result == -EWOULDBLOCK)
        return nodedb_fail(err, NODEDB_ERR_LOCKED, 0, "overflow region: %.80s in %s is open already", region->name,
                           region->dir);
    return result < 0 ? nodedb_mem__fail_at(region, err, result, "lock") : NODEDB_OK;
}

/* Reads the two headers. *in_use: the slots that the file has; 0: it is new. */
static nodedb_status nodedb_mem__read_headers(nodedb_mem_overflow *region, const nodedb_mem_overflow_config *config,
                                              uint32_t *in_use, nodedb_error *err) {
    const nodedb_io *io = &region->io;
    unsigned char pages[2 * NODEDB_MEM__HEADER_BYTES];
    uint32_t slots[2], used[2];
    int64_t size = io->size(io->ctx, region->fd);
    size_t there;
    int result, whole;
    if (size < 0) return nodedb_mem__fail_at(region, err, (int)size, "look at");
    memset(pages, 0, sizeof pages);
    there = (uint64_t)size < sizeof pages ? (size_t)size : sizeof pages;
    result = nodedb__read_all(io, region->fd, pages, there, 0);
    if (result < 0) return nodedb_mem__fail_at(region, err, result, "read the header of");
    slots[0] = nodedb_mem__decode_header(pages, &used[0]);
    slots[1] = nodedb_mem__decode_header(pages + NODEDB_MEM__HEADER_BYTES, &used[1]);
    if (used[0] == NODEDB_MEM__UNKNOWN && used[1] == NODEDB_MEM__UNKNOWN) {
        if ((uint64_t)size <= sizeof pages && nodedb_mem__was_never_created(pages, there))
            return nodedb_mem__create_kept(region, pages, err);
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                           "overflow region: %.80s in %s is no overflow file, or its headers are damaged",
                           region->name, region->dir);
    }
    whole = used[0] == NODEDB_MEM__UNKNOWN || (used[1] != NODEDB_MEM__UNKNOWN && used[1] > used[0]);
    if (config->max_blocks != 0 && config->max_blocks != slots[whole] - 2)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow region: %.80s in %s was made with max_blocks of %lu",
                           region->name, region->dir, (unsigned long)slots[whole] - 2);
    region->max_slots = slots[whole];
    *in_use = used[whole];
    if (slots[0] != slots[1] || used[0] != used[1])
        nodedb_say(&region->logger, NODEDB_LOG_WARNING, "overflow region: a header of %s in %s was damaged or old",
                   region->name, region->dir); /* nodedb_mem__repair_file rewrites it when all else has succeeded */
    return NODEDB_OK;
}

static nodedb_status nodedb_mem__open_kept(nodedb_mem_overflow *region, const nodedb_mem_overflow_config *config,
                                           uint32_t *in_use, nodedb_error *err) {
    nodedb_status status = nodedb_mem__open_and_lock(region, config, err);
    if (status == NODEDB_OK) status = nodedb_mem__read_headers(region, config, in_use, err);
    if (status != NODEDB_OK) return status;
    region->data_at = (size_t)nodedb_mem__data_offset(region->max_slots);
    return *in_use == 0 ? nodedb_mem__sync_name(region, config->dir, err) : NODEDB_OK; /* or its maker died early */
}

/* ---- opening: the table ------------------------------------------------------------------------------------------ */

/* Gives a slot a generation that it has not had, except by one chance in 2^38. After a power cut the file may not know
 * of handles that were given since the last sync; counting on from what it says could give one of them again. */
static void nodedb_mem__new_generation(const nodedb_mem_overflow *region, uint32_t slot, nodedb_mem__slot *s) {
    uint64_t old = nodedb_mem__generation(s), salt = region->seed;
    do salt = nodedb_mix64(salt ^ slot);
    while ((salt & NODEDB_MEM__GENERATION_MASK) == old);
    nodedb_mem__set_generation(s, salt);
}

typedef enum nodedb_mem__entry {
    NODEDB_MEM__ENTRY_NONE,   /* no object */
    NODEDB_MEM__ENTRY_LOST,   /* damaged, or an object that the file is too short for */
    NODEDB_MEM__ENTRY_BEYOND, /* an object beyond max_bytes */
    NODEDB_MEM__ENTRY_FOUND
} nodedb_mem__entry;

/* Decodes an entry into its slot. `units` of the file hold data. */
static nodedb_mem__entry nodedb_mem__decode_entry(nodedb_mem_overflow *region, uint32_t slot, nodedb_mem__slot *s,
                                                  const unsigned char *entry, uint64_t units) {
    const uint64_t unit = NODEDB_MEM_OVERFLOW_UNIT_BYTES;
    uint64_t sequence = nodedb_get_u64(entry + NODEDB_MEM__ENTRY_SEQUENCE_AT);
    s->state = NODEDB_MEM__SPARE;
    if (nodedb_get_u32(entry) != nodedb_crc32c(slot, entry + 4, NODEDB_MEM__ENTRY_BYTES - 4) ||
        sequence > NODEDB_MEM__SEQUENCE_MAX)
        return NODEDB_MEM__ENTRY_LOST;
    if (sequence > region->sequence) region->sequence = sequence;
    if (entry[NODEDB_MEM__ENTRY_IS_OBJECT_AT] != 1) return NODEDB_MEM__ENTRY_NONE;
    s->generation_low = nodedb_get_u32(entry + NODEDB_MEM__ENTRY_GENERATION_LOW_AT);
    s->generation_high = entry[NODEDB_MEM__ENTRY_GENERATION_HIGH_AT] & (NODEDB_MEM__GENERATION_MASK >> 32);
    s->slack = entry[NODEDB_MEM__ENTRY_SLACK_AT];
    s->at = nodedb_get_u32(entry + NODEDB_MEM__ENTRY_PLACE_AT);
    s->size = nodedb_get_u32(entry + NODEDB_MEM__ENTRY_SIZE_AT);
    if (slot == 0 || s->size == 0 || s->slack > unit || (s->slack == unit && s->size > 1) ||
        s->size * unit - s->slack > UINT32_MAX - unit || (uint64_t)s->at + s->size > units)
        return NODEDB_MEM__ENTRY_LOST; /* the file was cut off, or is forged */
    if (((uint64_t)s->at + s->size) * unit > region->max_bytes) return NODEDB_MEM__ENTRY_BEYOND;
    s->state = NODEDB_MEM__UNCHECKED;
    return NODEDB_MEM__ENTRY_FOUND;
}

/* Reads the slots of one slab from the table; *found more objects are in `order`, as place << 32 | slot. */
static nodedb_status nodedb_mem__load_slab(nodedb_mem_overflow *region, uint32_t first, uint32_t count, uint64_t units,
                                           uint64_t *order, size_t *found, nodedb_error *err) {
    const uint32_t in_piece = NODEDB_MEM__PIECE_BYTES / NODEDB_MEM__ENTRY_BYTES;
    unsigned char piece[NODEDB_MEM__PIECE_BYTES];
    for (uint32_t slot = first; slot < first + count; slot++) {
        nodedb_mem__slot *s = &region->slabs[slot / NODEDB_MEM__SLAB_SLOTS][slot % NODEDB_MEM__SLAB_SLOTS];
        size_t at = (slot - first) % in_piece * NODEDB_MEM__ENTRY_BYTES;
        if (at == 0) {
            uint32_t left = first + count - slot;
            int result = nodedb__read_all(&region->io, region->fd, piece,
                                          (size_t)(left < in_piece ? left : in_piece) * NODEDB_MEM__ENTRY_BYTES,
                                          nodedb_mem__entry_at(slot));
            if (result < 0) return nodedb_mem__fail_at(region, err, result, "read the table of");
        }
        switch (nodedb_mem__decode_entry(region, slot, s, piece + at, units)) {
        case NODEDB_MEM__ENTRY_FOUND: order[(*found)++] = (uint64_t)s->at << 32 | slot; break;
        case NODEDB_MEM__ENTRY_LOST: nodedb_mem__count(region->count.lost, 1); break;
        case NODEDB_MEM__ENTRY_NONE: break;
        case NODEDB_MEM__ENTRY_BEYOND:
            return nodedb_fail(err, NODEDB_ERR_LIMIT, 0,
                               "overflow region: %.80s in %s has objects beyond max_bytes of %llu", region->name,
                               region->dir, (unsigned long long)region->max_bytes);
        }
    }
    return NODEDB_OK;
}

/* ---- opening: claims that conflict after a power cut ------------------------------------------------------------- */

static void nodedb_mem__discard(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__count(region->count.lost, 1);
    nodedb_mem__slot_of(region, slot)->state = NODEDB_MEM__SPARE;
}

/* Two objects claim the same place. The newer one is kept if its bytes are there; else the older one if its own are;
 * else none. Returns which: 0, 1 or 2. *budget: bytes that may still be read for this. A power cut leaves few such
 * pairs, but in a forged file every object could claim everything. */
static int nodedb_mem__choose_claim(nodedb_mem_overflow *region, const uint32_t slot[2], uint64_t *budget) {
    int newer = nodedb_mem__sequence_of(region, slot[1]) > nodedb_mem__sequence_of(region, slot[0]);
    for (int i = 0; i < 2; i++) {
        int which = i == 0 ? newer : !newer;
        nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot[which]);
        size_t bytes = nodedb_mem__length(s);
        if (s->state == NODEDB_MEM__CHECKED) return which;
        if (*budget < bytes) continue;
        *budget -= bytes;
        if (nodedb_mem__compare(region, slot[which], s->at, bytes, NULL) != NODEDB_OK) continue;
        s->state = NODEDB_MEM__CHECKED;
        return which;
    }
    return 2;
}

static int nodedb_mem__by_place(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Sorts the objects by place and drops those that lose a conflict; returns how many are left. */
static size_t nodedb_mem__resolve_claims(nodedb_mem_overflow *region, uint64_t *order, size_t found, uint64_t budget) {
    size_t kept = 0;
    qsort(order, found, sizeof *order, nodedb_mem__by_place);
    for (size_t i = 0; i < found; i++) {
        uint32_t pair[2] = {0, (uint32_t)order[i]};
        int winner = 1;
        if (kept > 0) {
            const nodedb_mem__slot *before;
            pair[0] = (uint32_t)order[kept - 1];
            before = nodedb_mem__slot_of(region, pair[0]);
            if ((uint64_t)before->at + before->size > order[i] >> 32) {
                winner = nodedb_mem__choose_claim(region, pair, &budget);
                if (winner != 0) nodedb_mem__discard(region, pair[0]), kept--;
                if (winner != 1) nodedb_mem__discard(region, pair[1]);
            }
        }
        if (winner == 1) order[kept++] = order[i];
    }
    return kept;
}

/* Reads the slots of the table. `order` gets the objects, sorted by place, without those that lost a conflict. */
static nodedb_status nodedb_mem__load_table(nodedb_mem_overflow *region, uint32_t in_use, uint64_t units,
                                            uint64_t *order, size_t *objects, nodedb_error *err) {
    size_t found = 0;
    while (region->slots < in_use) {
        uint32_t first = region->slots, count = NODEDB_MEM__SLAB_SLOTS;
        nodedb_status status;
        nodedb_mem__slot *slab = (nodedb_mem__slot *)nodedb__alloc_zero(
            &region->allocator, NODEDB_MEM__SLAB_SLOTS * sizeof *slab, NODEDB_CACHE_LINE_BYTES);
        if (slab == NULL)
            return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "overflow region in %s: the allocator refused",
                               region->dir);
        if (count > in_use - first) count = in_use - first;
        nodedb_mem__add_slab(region, slab, count);
        status = nodedb_mem__load_slab(region, first, count, units, order, &found, err);
        if (status != NODEDB_OK) return status;
    }
    *objects = nodedb_mem__resolve_claims(region, order, found,
                                          NODEDB_MEM__CLAIM_READS * units * NODEDB_MEM_OVERFLOW_UNIT_BYTES);
    return NODEDB_OK;
}

/* How many blocks the row has if only entries up to `newest` count: objects, and the holes between them. */
static size_t nodedb_mem__blocks_until(const nodedb_mem_overflow *region, const uint64_t *order, size_t objects,
                                       uint64_t newest) {
    uint64_t end = 0;
    size_t blocks = 0;
    for (size_t i = 0; i < objects; i++) {
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, (uint32_t)order[i]);
        if (nodedb_mem__sequence_of(region, (uint32_t)order[i]) > newest) continue;
        blocks += 1 + (s->at > end);
        end = (uint64_t)s->at + s->size;
    }
    return blocks;
}

/* A mixture of old and new pages may have more objects and holes than there are slots. Then the newest objects are
 * discarded, as few as suffice. What had been synced is not among them: those objects, and what else was there at that
 * moment, had slots enough, and to leave out an object never makes more blocks. */
static size_t nodedb_mem__discard_newest(nodedb_mem_overflow *region, uint64_t *order, size_t objects) {
    uint64_t fits = 0, too_many = region->sequence; /* no object at all fits */
    size_t most = region->max_slots - 1, kept = 0;
    if (nodedb_mem__blocks_until(region, order, objects, too_many) <= most) return objects;
    while (too_many - fits > 1) {
        uint64_t middle = fits + (too_many - fits) / 2;
        if (nodedb_mem__blocks_until(region, order, objects, middle) <= most) fits = middle;
        else too_many = middle;
    }
    for (size_t i = 0; i < objects; i++) {
        uint32_t slot = (uint32_t)order[i];
        if (nodedb_mem__sequence_of(region, slot) <= fits) order[kept++] = order[i];
        else nodedb_mem__discard(region, slot);
    }
    return kept;
}

/* ---- opening: the row and its disk blocks ------------------------------------------------------------------------ */

/* Appends the block of `slot` to the row. */
static void nodedb_mem__append(nodedb_mem_overflow *region, uint32_t slot) {
    nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
    s->before = region->last, s->after = 0;
    if (region->last != 0) nodedb_mem__slot_of(region, region->last)->after = slot;
    region->last = slot;
    nodedb__store_relaxed(&region->count.capacity_units, (size_t)s->at + s->size);
}

/* Builds the row of blocks: the objects and, between them, holes. Spare slots are in their list already. */
static nodedb_status nodedb_mem__build_row(nodedb_mem_overflow *region, const uint64_t *order, size_t objects,
                                           nodedb_error *err) {
    const size_t unit = NODEDB_MEM_OVERFLOW_UNIT_BYTES, granule = NODEDB_MEM_OVERFLOW_GRANULE_BYTES;
    for (size_t i = 0; i < objects; i++) {
        uint32_t slot = (uint32_t)order[i];
        const nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        size_t from = s->at * unit, to = from + s->size * unit;
        if (s->at > region->count.capacity_units) {
            nodedb_status status = nodedb_mem__need_slots(region, 1, err);
            uint32_t hole;
            if (status != NODEDB_OK) return status;
            hole = nodedb_mem__take_slot(region);
            nodedb_mem__slot_of(region, hole)->at = (uint32_t)region->count.capacity_units;
            nodedb_mem__slot_of(region, hole)->size = s->at - (uint32_t)region->count.capacity_units;
            nodedb_mem__append(region, hole);
            nodedb_mem__add_hole(region, hole);
        }
        nodedb_mem__append(region, slot);
        for (size_t g = from / granule; g <= (to - 1) / granule; g++) region->backed[g / 64] |= UINT64_C(1) << g % 64;
        nodedb_mem__count(region->count.object_bytes, nodedb_mem__length(s));
        nodedb_mem__count(region->count.used_units, s->size);
    }
    nodedb_mem__count(region->count.objects, objects);
    nodedb_mem__count(region->count.reopened, objects);
    return NODEDB_OK;
}

/* Allocates disk blocks for what a reopened file holds already: a copied file may have lost some. Where the file system
 * cannot allocate, zeros continue a file that ends too early; nothing that is there is written. */
static int nodedb_mem__ensure_disk(nodedb_mem_overflow *region, uint64_t file_bytes, uint64_t at, uint64_t bytes) {
    int result = region->io.allocate(region->io.ctx, region->fd, at, bytes);
    if (result != -EOPNOTSUPP && result != -ENOSYS) return result;
    if (file_bytes >= at + bytes) return 0;
    if (at < file_bytes) bytes -= file_bytes - at, at = file_bytes;
    return nodedb_mem__allocate_disk(region, at, bytes);
}

/* Clears the table behind the slots in use. After a power cut there may be entries of slots that the header does not
 * count yet. When it counts them again they must not come back with greater sequences than objects synced since. */
static nodedb_status nodedb_mem__clear_behind(nodedb_mem_overflow *region, uint32_t in_use, uint64_t file_bytes,
                                              nodedb_error *err) {
    static const char zeros[4096] = {0};
    uint64_t at = nodedb_mem__entry_at(in_use), end = file_bytes < region->data_at ? file_bytes : region->data_at;
    char piece[sizeof zeros];
    int result = 0;
    if (at >= end) return NODEDB_OK;
    if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(end - at)) == 0)
        return NODEDB_OK;
    for (; at < end && result == 0; at += sizeof piece) {
        size_t bytes = end - at < sizeof piece ? (size_t)(end - at) : sizeof piece;
        result = nodedb__read_all(&region->io, region->fd, piece, bytes, at);
        if (result == 0 && memcmp(piece, zeros, bytes) != 0)
            result = nodedb__write_all(&region->io, region->fd, zeros, bytes, at);
    }
    return result < 0 ? nodedb_mem__fail_at(region, err, result, "clear the end of the table of") : NODEDB_OK;
}

/* Allocates the disk blocks of granules that hold objects and gives the others back; but nothing is given back while
 * something is lost, because somebody may look for it in the file. */
static nodedb_status nodedb_mem__restore_disk_blocks(nodedb_mem_overflow *region, uint64_t file_bytes,
                                                     nodedb_error *err) {
    uint64_t data = file_bytes - region->data_at < region->max_bytes ? file_bytes - region->data_at : region->max_bytes;
    size_t granules = (size_t)((data + NODEDB_MEM_OVERFLOW_GRANULE_BYTES - 1) / NODEDB_MEM_OVERFLOW_GRANULE_BYTES);
    for (size_t first = 0, last; first < granules; first = last) {
        bool backed = nodedb_mem__is_backed(region, first);
        size_t at = first * NODEDB_MEM_OVERFLOW_GRANULE_BYTES, bytes;
        int result;
        for (last = first + 1; last < granules && nodedb_mem__is_backed(region, last) == backed; last++) {}
        bytes = nodedb_mem__granule_end(region, last - 1) - at;
        if (!backed) {
            if (nodedb__load_relaxed(&region->count.lost) == 0)
                (void)fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(region->data_at + at),
                                (off_t)bytes);
            continue;
        }
        result = nodedb_mem__ensure_disk(region, file_bytes, region->data_at + at, bytes);
        if (result < 0) return nodedb_mem__no_disk_blocks(region, region->data_at + at, result, err);
        nodedb_mem__count(region->count.disk_bytes, bytes);
    }
    return NODEDB_OK;
}

/* The last step of reopening, when nothing can fail any more: headers that are true, and no lost entries. */
static void nodedb_mem__repair_file(nodedb_mem_overflow *region, uint32_t in_use) {
    unsigned char pages[2 * NODEDB_MEM__HEADER_BYTES];
    for (uint32_t slot = 0; slot < in_use && region->count.lost > 0; slot++) {
        const nodedb_mem__slot *s = &region->slabs[slot / NODEDB_MEM__SLAB_SLOTS][slot % NODEDB_MEM__SLAB_SLOTS];
        if (!nodedb_mem__is_object(s)) nodedb_mem__store_entry(region, slot, 0);
    }
    nodedb_mem__announce_slots(region);
    nodedb_mem__encode_headers(pages, region->max_slots);
    for (int copy = 0; copy < 2; copy++)
        memcpy(region->file + copy * NODEDB_MEM__HEADER_BYTES, pages, NODEDB_MEM__HEADER_IN_USE_AT);
}

/* The objects of the table become blocks, and its other slots spare ones. `order` has room for all slots. */
static nodedb_status nodedb_mem__load_objects(nodedb_mem_overflow *region, uint32_t in_use, uint64_t units,
                                              uint64_t *order, nodedb_error *err) {
    size_t objects = 0;
    nodedb_status status = nodedb_mem__load_table(region, in_use, units, order, &objects, err);
    if (status != NODEDB_OK) return status;
    objects = nodedb_mem__discard_newest(region, order, objects);
    for (uint32_t slot = region->slots; slot-- > 1;) {
        nodedb_mem__slot *s = nodedb_mem__slot_of(region, slot);
        if (s->state != NODEDB_MEM__SPARE) continue;
        nodedb_mem__new_generation(region, slot, s);
        nodedb_mem__give_slot(region, slot);
    }
    return nodedb_mem__build_row(region, order, objects, err);
}

/* Builds all that stands in ordinary memory from the table of a file with `in_use` slots. */
static nodedb_status nodedb_mem__reopen(nodedb_mem_overflow *region, uint32_t in_use, nodedb_error *err) {
    int64_t size = region->io.size(region->io.ctx, region->fd);
    uint64_t bytes = size < 0 ? 0 : (uint64_t)size, units, *order;
    size_t order_bytes;
    nodedb_status status;
    int result;
    if (size < 0) return nodedb_mem__fail_at(region, err, (int)size, "look at");
    if (bytes < nodedb_mem__entry_at(in_use)) { /* a power cut before the last slab was durable, or it was cut off */
        uint64_t table = bytes > nodedb_mem__entry_at(0) ? bytes - nodedb_mem__entry_at(0) : 0;
        uint64_t whole = table / NODEDB_MEM__ENTRY_BYTES / NODEDB_MEM__SLAB_SLOTS * NODEDB_MEM__SLAB_SLOTS;
        nodedb_mem__count(region->count.lost, in_use - whole);
        in_use = (uint32_t)whole;
    }
    status = nodedb_mem__clear_behind(region, in_use, bytes, err);
    if (status != NODEDB_OK) return status;
    result = nodedb_mem__ensure_disk(region, bytes, 0, nodedb_mem__entry_at(in_use));
    if (result < 0) return nodedb_mem__fail_at(region, err, result, "have disk blocks for the table of");
    units = bytes > region->data_at ? (bytes - region->data_at) / NODEDB_MEM_OVERFLOW_UNIT_BYTES : 0;
    order_bytes = (size_t)in_use * sizeof *order;
    order = (uint64_t *)nodedb__alloc(&region->allocator, order_bytes, sizeof *order);
    if (order == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "overflow region in %s: the allocator refused", region->dir);
    status = nodedb_mem__load_objects(region, in_use, units, order, err);
    nodedb__release(&region->allocator, order, order_bytes);
    if (status == NODEDB_OK && in_use == 0) status = nodedb_mem__need_slots(region, 1, err);
    if (status == NODEDB_OK && bytes > region->data_at) status = nodedb_mem__restore_disk_blocks(region, bytes, err);
    if (status != NODEDB_OK) return status;
    if (region->count.lost > 0)
        nodedb_say(&region->logger, NODEDB_LOG_WARNING, "overflow region: %lu entries of %s in %s are lost",
                   (unsigned long)region->count.lost, region->name, region->dir);
    nodedb_mem__repair_file(region, in_use);
    return NODEDB_OK;
}

/* ===================================================================================================================
 * VIEWS: other threads read a region while its owner goes on
 *
 * A view reads a slot without a lock, then looks whether the handle still names the object and whether its version is
 * what it was. What it read in between is true if both are.
 *
 *     version even        odd                              even
 *     owner     | begin_change | place or bytes change | end_change |
 *     view      a look or a copy that touches this starts over
 * ================================================================================================================ */

#define NODEDB_MEM__VIEW_TRIES 64u /* after that the call answers NODEDB_ERR_AGAIN */

/* Used by one thread at a time. It keeps its region's memory and mapping alive until it is closed. */
struct nodedb_mem_overflow_view {
    nodedb_mem_overflow *region;
    char *file; /* mapped for reading only */
};

/* What a view knows of an object: as it was while `version` was the slot's. */
typedef struct nodedb_mem__snapshot {
    uint32_t slot, at;
    size_t bytes, version;
    bool checked;
} nodedb_mem__snapshot;

/* The slot of a handle while it names its object, else NULL. What was loaded from it before, with acquire, is then true
 * of that object. */
static const nodedb_mem__slot *nodedb_mem__alive(const nodedb_mem_overflow *region, nodedb_mem_handle handle) {
    uint32_t slot = nodedb_mem__slot_number(handle);
    uint64_t generation = handle.bits & NODEDB_MEM__GENERATION_MASK;
    const nodedb_mem__slot *s;
    if (slot == 0 || slot >= nodedb__load_acquire(&region->slots)) return NULL;
    s = &nodedb__load_acquire(&region->slabs[slot / NODEDB_MEM__SLAB_SLOTS])[slot % NODEDB_MEM__SLAB_SLOTS];
    return nodedb__load_acquire(&s->generation_low) == (uint32_t)generation &&
                   nodedb__load_acquire(&s->generation_high) == (uint8_t)(generation >> 32)
               ? s
               : NULL;
}

/* OK: what was read since the snapshot is the object's. NODEDB_ERR_AGAIN: it moved or was updated meanwhile. */
static nodedb_status nodedb_mem__still(const nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                       const nodedb_mem__snapshot *snapshot, nodedb_error *err) {
    nodedb_mem__fence_acquire();
    if (nodedb_mem__alive(region, handle) == NULL) return nodedb_mem__stale(region, handle, err);
    if ((snapshot->version & 1) == 0 &&
        nodedb__load_acquire(&region->versions[snapshot->slot % NODEDB_MEM__VERSIONS]) == snapshot->version)
        return NODEDB_OK;
    return NODEDB_ERR_AGAIN;
}

static nodedb_status nodedb_mem__look(const nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                      nodedb_mem__snapshot *snapshot, nodedb_error *err) {
    const nodedb_mem__slot *s = nodedb_mem__alive(region, handle);
    uint32_t size;
    uint8_t slack, state;
    if (s == NULL) return nodedb_mem__stale(region, handle, err);
    snapshot->slot = nodedb_mem__slot_number(handle);
    snapshot->version = nodedb__load_acquire(&region->versions[snapshot->slot % NODEDB_MEM__VERSIONS]);
    state = nodedb__load_acquire(&s->state);
    slack = nodedb__load_acquire(&s->slack);
    size = nodedb__load_acquire(&s->size);
    snapshot->at = nodedb__load_acquire(&s->at);
    snapshot->checked = state != NODEDB_MEM__UNCHECKED;
    snapshot->bytes = (size_t)size * NODEDB_MEM_OVERFLOW_UNIT_BYTES - slack;
    if (state < NODEDB_MEM__UNCHECKED) return nodedb_mem__stale(region, handle, err);
    return nodedb_mem__still(region, handle, snapshot, err);
}

/* Looks, and compares an object that a kept file brought with its checksum. Only the owner may note that this has been
 * done, so a view does it each time. */
static nodedb_status nodedb_mem__look_and_check(nodedb_mem_overflow *region, nodedb_mem_handle handle,
                                                nodedb_mem__snapshot *snapshot, nodedb_error *err) {
    nodedb_status status = nodedb_mem__look(region, handle, snapshot, err), still;
    nodedb_error found;
    if (status != NODEDB_OK || snapshot->checked) return status;
    status = nodedb_mem__compare(region, snapshot->slot, snapshot->at, snapshot->bytes, &found);
    still = nodedb_mem__still(region, handle, snapshot, err);
    if (still != NODEDB_OK) return still; /* what was found may be half of a change, and the next try may succeed */
    if (status != NODEDB_OK && err != NULL) *err = found;
    if (status == NODEDB_ERR_CORRUPT) (void)nodedb__add_relaxed(&region->count.damaged, 1);
    return status;
}

/* The tries of one call are used up. */
static nodedb_status nodedb_mem__busy(const nodedb_mem_overflow *region, nodedb_error *err) {
    return nodedb_fail(err, NODEDB_ERR_AGAIN, 0, "overflow view of %s: the owner is changing this object", region->dir);
}

NODEDB_MEM_API nodedb_mem_overflow_view *nodedb_mem_overflow_view_open(nodedb_mem_overflow *region, nodedb_error *err) {
    nodedb_mem_overflow_view *view;
    void *map;
    if (region == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow view: NULL");
        return NULL;
    }
    view = (nodedb_mem_overflow_view *)nodedb__alloc_zero(&region->allocator, sizeof *view, sizeof(void *));
    if (view == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "overflow view of %s: the allocator refused", region->dir);
        return NULL;
    }
    map = mmap(NULL, region->file_bytes, PROT_READ, MAP_SHARED, region->fd, 0);
    if (map == MAP_FAILED) {
        (void)nodedb_fail(err, nodedb_io_status(errno), errno, "overflow view of %s: cannot map %llu bytes",
                          region->dir, (unsigned long long)region->file_bytes);
        nodedb__release(&region->allocator, view, sizeof *view);
        return NULL;
    }
    view->region = region;
    view->file = (char *)map;
    (void)nodedb__add_relaxed(&region->users, 1);
    return view;
}

NODEDB_MEM_API void nodedb_mem_overflow_view_close(nodedb_mem_overflow_view *view) {
    nodedb_mem_overflow *region;
    if (view == NULL) return;
    region = view->region;
    (void)munmap(view->file, region->file_bytes);
    nodedb__release(&region->allocator, view, sizeof *view);
    nodedb_mem__leave(region);
}

NODEDB_MEM_API const void *nodedb_mem_overflow_view_read(nodedb_mem_overflow_view *view, nodedb_mem_handle handle,
                                                         size_t *bytes, nodedb_error *err) {
    nodedb_mem__snapshot snapshot;
    nodedb_status status = NODEDB_ERR_AGAIN;
    if (bytes != NULL) *bytes = 0;
    if (view == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow view: NULL");
        return NULL;
    }
    for (unsigned i = 0; i < NODEDB_MEM__VIEW_TRIES && status == NODEDB_ERR_AGAIN; i++) {
        if (i > 0) (void)sched_yield();
        status = nodedb_mem__look_and_check(view->region, handle, &snapshot, err);
    }
    if (status == NODEDB_ERR_AGAIN) (void)nodedb_mem__busy(view->region, err);
    if (status != NODEDB_OK) return NULL;
    if (bytes != NULL) *bytes = snapshot.bytes;
    return view->file + view->region->data_at + (size_t)snapshot.at * NODEDB_MEM_OVERFLOW_UNIT_BYTES;
}

/* One try of a copy. By pread(2) and not from the mapping: there is no data race of the language with an owner who
 * writes there meanwhile, and a disk that cannot be read is an error and no signal. */
static nodedb_status nodedb_mem__copy_once(nodedb_mem_overflow *region, nodedb_mem_handle handle, void *buffer,
                                           size_t capacity, size_t *bytes, nodedb_error *err) {
    nodedb_mem__snapshot snapshot;
    nodedb_status status = nodedb_mem__look_and_check(region, handle, &snapshot, err);
    int result;
    *bytes = 0;
    if (status != NODEDB_OK) return status;
    *bytes = snapshot.bytes;
    if (buffer == NULL && snapshot.bytes > 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow view: no buffer");
    if (snapshot.bytes > capacity)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "overflow view of %s: an object of %lu bytes, a buffer of %lu",
                           region->dir, (unsigned long)snapshot.bytes, (unsigned long)capacity);
    result = nodedb__read_all(&region->io, region->fd, buffer, snapshot.bytes,
                              region->data_at + (uint64_t)snapshot.at * NODEDB_MEM_OVERFLOW_UNIT_BYTES);
    status = nodedb_mem__still(region, handle, &snapshot, err);
    if (status != NODEDB_OK) *bytes = 0;
    else if (result < 0)
        return nodedb_fail(err, nodedb_io_status(-result), -result, "overflow view of %s: cannot read an object",
                           region->dir);
    return status;
}

NODEDB_MEM_API nodedb_status nodedb_mem_overflow_view_copy(nodedb_mem_overflow_view *view, nodedb_mem_handle handle,
                                                           void *buffer, size_t capacity, size_t *bytes,
                                                           nodedb_error *err) {
    nodedb_status status = NODEDB_ERR_AGAIN;
    size_t length = 0;
    if (bytes != NULL) *bytes = 0;
    if (view == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "overflow view: NULL");
    for (unsigned i = 0; i < NODEDB_MEM__VIEW_TRIES && status == NODEDB_ERR_AGAIN; i++) {
        if (i > 0) (void)sched_yield();
        status = nodedb_mem__copy_once(view->region, handle, buffer, capacity, &length, err);
    }
    if (bytes != NULL) *bytes = length;
    return status == NODEDB_ERR_AGAIN ? nodedb_mem__busy(view->region, err) : status;
}
#endif /* NODEDB_MEM_NO_KEPT */

#endif /* NODEDB_MEM_IMPLEMENTED */
#endif /* NODEDB_MEM_IMPLEMENTATION */

/* BEGIN NODEDB LICENCE
 *
 * This software is available under two licences. Choose the one that you prefer.
 *
 * ALTERNATIVE A: MIT License
 *
 * Copyright (c) 2026 the NodeDB authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 * documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 * permit persons to whom the Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 * Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * ALTERNATIVE B: Public Domain (www.unlicense.org)
 *
 * This is free and unencumbered software released into the public domain.
 *
 * Anyone is free to copy, modify, publish, use, compile, sell, or distribute this software, either in source code form
 * or as a compiled binary, for any purpose, commercial or non-commercial, and by any means.
 *
 * In jurisdictions that recognize copyright laws, the author or authors of this software dedicate any and all
 * copyright interest in the software to the public domain. We make this dedication for the benefit of the public at
 * large and to the detriment of our heirs and successors. We intend this dedication to be an overt act of
 * relinquishment in perpetuity of all present and future rights to this software under copyright law.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING
 * FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * END NODEDB LICENCE */
