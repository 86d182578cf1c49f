/* nodedb_prefetch.h - v0.1 - page prefetch, release and fault accounting for mapped data, public domain or MIT
 *
 * 1. WHAT IT IS FOR
 *    A program that maps its data (mmap) and knows what it will touch next: it asks for those pages now, all of them at
 *    once, instead of faulting them in one after another. With cold random pages in batches of 64, one after the other,
 *    that moves four to five times as many pages per second as faults with MADV_RANDOM (1.3 to 1.9 times as many as
 *    faults with the kernel's default read-around), and 88 to 96 per cent of what O_DIRECT reads do with 64 in flight
 *    (by process_madvise; by madvise 76 to 94, by io_uring 68 to 89 on two busy cores). One ticket at a time (section
 *    3) makes 50 to 82 per cent, four under way make 100 (`./build.sh bench prefetch`). It also gives memory back,
 *    tells what is resident, and counts the major faults of one thread, so that a core notices when its memory is too
 *    small.
 *    Not for: data that is not mapped (read it), sequential scans (the kernel's own read-ahead is good at those), or
 *    hiding the errors of a disk: touching a page that cannot be read still raises SIGBUS, prefetched or not.
 *
 * 2. QUICK START
 *        #define NODEDB_PREFETCH_IMPLEMENTATION
 *        #include <nodedb_prefetch.h> // compile with -I and the folder it is in
 *        #include <sys/mman.h>
 *
 *        // `map` is a mapping of a data file. MADV_RANDOM: otherwise every fault reads around itself as well.
 *        nodedb_status warm(const char *map, size_t map_bytes, const size_t *offsets, size_t n, nodedb_error *err) {
 *            nodedb_prefetch *p = nodedb_prefetch_create(NULL, err);
 *            nodedb_prefetch_range ranges[64];
 *            nodedb_status status;
 *            size_t i;
 *            if (p == NULL) return err->status;
 *            madvise((void *)map, map_bytes, MADV_RANDOM);
 *            for (i = 0; i < n && i < 64; i++) ranges[i].start = map + offsets[i], ranges[i].bytes = 100;
 *            status = nodedb_prefetch_batch(p, ranges, i, err); // all reads are under way now: touch the data
 *            nodedb_prefetch_destroy(p);
 *            return status;
 *        }
 *    A program keeps one object per thread for its whole life; creating one costs some ten system calls.
 *
 * 3. CONCEPTS
 *    Range    What the caller means, in bytes: any address, any length. Nothing has to be aligned.
 *    Run      What the kernel is asked: whole pages. A prefetch rounds *outward* (the start down, the end up), a
 *             release *inward* (only pages that lie wholly in the ranges), so that a neighbour's bytes survive. Ranges
 *             that touch, overlap or repeat become one run. nodedb_prefetch_plan() does this, without system calls.
 *    Step     The kernel silently caps one MADV_WILLNEED at the larger of the device's read_ahead_kb and max_sectors_kb
 *             (mm/readahead.c, force_page_cache_ra), so a run is asked for in steps of NODEDB_PREFETCH_STEP_BYTES.
 *    Method   How the kernel is asked. Chosen by trying it at creation, not by the version of a kernel or header:
 *               madvise          one call per step. Works everywhere.
 *               process_madvise  one call for up to 1024 steps (Linux 5.10; for oneself without privilege 6.13 or so).
 *               io_uring         the kernel's worker threads make the calls (Linux 5.6). The asking thread is free
 *                                sooner, spends about half the CPU time (`own_cpu` of the same benchmark), and can be
 *                                told when all is there; but the reads start a little later.
 *    Batch    `nodedb_prefetch_batch` starts the reads and returns. Touching a page too soon waits for its read alone.
 *    Ticket   `nodedb_prefetch_begin` also tells when a batch is in memory *and in the page table* (MADV_POPULATE_READ,
 *             Linux 5.14), so that touching it costs not even a minor fault: a descriptor becomes readable, once per
 *             batch, and `nodedb_prefetch_reap` hands back the tag. A thread-per-core server parks the request and
 *             serves others meanwhile. Where io_uring is refused the same calls work, but the ticket comes back at
 *             once with `resident` false: the reads are under way, and touching may wait.
 *
 * 4. API BY TASK
 *    make, name          nodedb_prefetch_create  _destroy  _method_in_use  _method_name  _can_wait  _page_bytes
 *    bring in            nodedb_prefetch_one  nodedb_prefetch_batch
 *    bring in and wait   nodedb_prefetch_begin  nodedb_prefetch_fd  nodedb_prefetch_reap
 *    give back           nodedb_prefetch_release  nodedb_prefetch_release_batch
 *    look                nodedb_prefetch_residency  nodedb_prefetch_get_stats
 *    only compute        nodedb_prefetch_plan
 *    count faults        nodedb_prefetch_faults_start  nodedb_prefetch_faults_tick
 *
 * 5. THREADS
 *    An object belongs to one thread at a time; two threads use two objects. nodedb_prefetch_plan and _method_name are
 *    pure. A nodedb_prefetch_faults belongs to the thread that started it; a tick from another is an error. After fork
 *    the child makes its own objects and does not use or destroy the parent's.
 *
 * 6. MEMORY
 *    One allocation of about 40 KiB per object, at creation, from the config's allocator. liburing maps its ring itself
 *    (64 bytes for each entry of `queue_depth`, and 32 for completions), and uses malloc while the kernel is probed.
 *    Nothing is allocated afterwards. A nodedb_prefetch_faults is the caller's own struct.
 *
 * 7. ERRORS
 *    INVALID      NULL, a range that wraps around the end of the address space, a page size that is no power of two or
 *                 no multiple of the system's; memory that is not mapped (sys_errno ENOMEM; the message names the first
 *                 unmapped address; the mapped parts and all other ranges of the batch were advised all the same).
 *                 DROP of a mapping that is private.
 *    NO_MEMORY    the allocator or the kernel has none.
 *    AGAIN        begin: too many batches or pages are under way; reap and try again.
 *    LIMIT        begin: this batch is too large for a ticket, even alone; split it, or raise `queue_depth`.
 *    STATE        a tick from another thread than the owner.
 *    UNSUPPORTED  an advice that this kernel does not have, or not for this memory (locked, huge, a device's); DROP
 *                 without /proc. A method that the kernel refuses is no error: a simpler one takes its place.
 *    IO           the kernel refused for another reason (sys_errno).
 *    Length 0 is nothing to do, and success, whatever the address.
 *
 * 8. LIMITS
 *    NODEDB_PREFETCH_GROUP_RANGES: a batch may have any size, and is worked off in groups of so many; ranges are merged
 *    within a group. NODEDB_PREFETCH_MAX_TICKETS batches under way, `queue_depth` ring entries for them.
 *    A page that is prefetched may be evicted again before it is touched, if memory is short. mincore tells the truth
 *    only for files that the process owns or may write (Linux 5.2), and says "resident" for others.
 *
 * 9. CONFIGURATION MACROS
 *    NODEDB_PREFETCH_IMPLEMENTATION   in exactly one file: compile the code.
 *    NODEDB_PREFETCH_STATIC           make everything private to this file.
 *    NODEDB_PREFETCH_API              what stands before each function instead of extern: an export attribute, say.
 *    NODEDB_NO_LIBURING               leave io_uring out, as if <liburing.h> were not found. Otherwise link -luring.
 *
 * 10. LICENCE
 *    Public domain (Unlicense) or MIT, as you prefer: see the end of this file.
 */
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

#ifndef NODEDB_PREFETCH_H
#define NODEDB_PREFETCH_H

#if defined(NODEDB_PREFETCH_STATIC) && !defined(NODEDB_PREFETCH_IMPLEMENTATION)
#error "NODEDB_PREFETCH_STATIC needs NODEDB_PREFETCH_IMPLEMENTATION in the same file"
#endif
#if !defined(NODEDB_PREFETCH_API) && defined(NODEDB_PREFETCH_STATIC)
#define NODEDB_PREFETCH_API static __attribute__((unused))
#elif !defined(NODEDB_PREFETCH_API)
#define NODEDB_PREFETCH_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- limits ----------------------------------------------------------------------------------------------------- */

#define NODEDB_PREFETCH_GROUP_RANGES 1024             /* ranges that are merged together: UIO_MAXIOV of one call */
#define NODEDB_PREFETCH_STEP_BYTES (128 * 1024)       /* one MADV_WILLNEED: Linux' default read_ahead_kb */
#define NODEDB_PREFETCH_MAX_TICKETS 64                /* batches under way at once */
#define NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH 512       /* ring entries: a batch of 64 scattered pages takes 129 */
#define NODEDB_PREFETCH_MIN_QUEUE_DEPTH 3             /* a batch of one page */
#define NODEDB_PREFETCH_MAX_QUEUE_DEPTH 4096
#define NODEDB_PREFETCH_MAX_PAGE_BYTES ((size_t)1 << 30) /* also the most that one system call is asked for */
#define NODEDB_PREFETCH_DEFAULT_INTERVAL_NS UINT64_C(1000000000)
#define NODEDB_PREFETCH_DEFAULT_MAJOR_FAULTS_MAX 100  /* per interval, before a thread counts as degraded */
#define NODEDB_PREFETCH_DEFAULT_DEPTH_MIN 4           /* ranges to prefetch ahead: adaptive depth's bounds */
#define NODEDB_PREFETCH_DEFAULT_DEPTH_MAX 256

/* ---- prefetching ------------------------------------------------------------------------------------------------ */

/* How the kernel is asked (manual, section 3). AUTO: batches by process_madvise, else by madvise, and tickets by
 * io_uring where the kernel allows it. MADVISE and PROCESS_MADVISE: this one and no ring. IO_URING: batches go through
 * the ring as well; an address that is wrong is then found by the workers, counted in the statistics and logged,
 * instead of being the call's error. */
typedef enum nodedb_prefetch_method {
    NODEDB_PREFETCH_AUTO = 0,
    NODEDB_PREFETCH_MADVISE,
    NODEDB_PREFETCH_PROCESS_MADVISE,
    NODEDB_PREFETCH_IO_URING
} nodedb_prefetch_method;

/* Bytes that the caller means; nothing needs to be aligned. 0 bytes: ignored. */
typedef struct nodedb_prefetch_range {
    const void *start;
    size_t bytes;
} nodedb_prefetch_range;

/* Works zeroed. A method other than AUTO and MADVISE that the kernel refuses falls back to the next simpler one, and
 * the logger is told once, with the reason and the remedy; nodedb_prefetch_method_in_use() names what is used. */
typedef struct nodedb_prefetch_config {
    nodedb_prefetch_method method;
    size_t page_bytes;        /* 0: the system's. Else a power of two and a multiple of the system's, to which all
                                 mappings are aligned at both ends (huge pages) */
    unsigned queue_depth;     /* entries of the ring; 0: NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH. A ticket under way takes
                                 one for each run, one for each of the runs' steps, and one more */
    nodedb_allocator allocator;
    nodedb_logger logger;
} nodedb_prefetch_config;

typedef struct nodedb_prefetch nodedb_prefetch;

/* What one object has done since its creation. */
typedef struct nodedb_prefetch_stats {
    uint64_t ranges_asked;    /* ranges of more than 0 bytes, prefetch and release */
    uint64_t ranges_merged;   /* of these, how many got no run of their own: part of a neighbour's, or (release) no
                                 whole page */
    uint64_t pages_advised;   /* asked of the kernel by prefetches, in page_bytes */
    uint64_t pages_released;  /* asked of the kernel by releases, in page_bytes */
    uint64_t system_calls;    /* for advice: madvise, process_madvise and io_uring_enter */
    uint64_t failures;        /* steps that the kernel refused */
    uint64_t tickets_begun;
    uint64_t tickets_done;
    uint64_t residency_hits;   /* pages that nodedb_prefetch_residency found in memory ... */
    uint64_t residency_misses; /* ... and did not */
} nodedb_prefetch_stats;

/* A new prefetcher, or NULL and `err`: INVALID, NO_MEMORY, IO (no descriptor left). `config` NULL: all defaults. The
 * calling thread owns the object (section 5). */
NODEDB_PREFETCH_API nodedb_prefetch *nodedb_prefetch_create(const nodedb_prefetch_config *config, nodedb_error *err);

/* Frees everything. Reads under way go on and harm nothing, their tickets are lost. NULL: nothing. */
NODEDB_PREFETCH_API void nodedb_prefetch_destroy(nodedb_prefetch *p);

/* How batches are asked for, after probing; never AUTO. */
NODEDB_PREFETCH_API nodedb_prefetch_method nodedb_prefetch_method_in_use(const nodedb_prefetch *p);

/* "madvise", "process_madvise", "io_uring", "auto". Never NULL. */
NODEDB_PREFETCH_API const char *nodedb_prefetch_method_name(nodedb_prefetch_method method);

/* Do tickets tell when the pages are in memory (true), or only that they were asked for (false)? */
NODEDB_PREFETCH_API bool nodedb_prefetch_can_wait(const nodedb_prefetch *p);

/* The page size that ranges are rounded to. */
NODEDB_PREFETCH_API size_t nodedb_prefetch_page_bytes(const nodedb_prefetch *p);

/* Starts to read what is not in memory of [start, start + bytes), and does not wait for it. Errors: INVALID (wraps,
 * NULL, not mapped), NO_MEMORY, IO. madvise(2), MADV_WILLNEED. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_one(nodedb_prefetch *p, const void *start, size_t bytes,
                                                      nodedb_error *err);

/* The same for `n` ranges at once, in any order; `ranges` is only read, during the call. A range that wraps or is NULL
 * refuses the whole batch before anything is done; an unmapped one is the call's error after all others were asked
 * for. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, nodedb_error *err);

/* ---- prefetching with a ticket ---------------------------------------------------------------------------------- */

/* A batch that nodedb_prefetch_begin took and that is done. */
typedef struct nodedb_prefetch_ticket {
    uint64_t tag;          /* the caller's */
    nodedb_status status;  /* OK; INVALID: not all of it is mapped; IO: a page lies behind the end of its file, or the
                              disk could not read it, so that touching it would raise SIGBUS */
    int sys_errno;         /* the kernel's first refusal, or 0 */
    const void *failed_at; /* where the piece starts that it refused, or NULL */
    bool resident;         /* true: everything is in memory and in the page table. False: only asked for */
} nodedb_prefetch_ticket;

/* Starts a batch of at most NODEDB_PREFETCH_GROUP_RANGES ranges; `tag` comes back from nodedb_prefetch_reap. `ranges`
 * may go away after the call, the memory they name must stay mapped until the ticket is back. A batch with nothing to
 * do comes back as well. Errors, on which no ticket exists: INVALID, AGAIN, LIMIT, IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_begin(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, uint64_t tag, nodedb_error *err);

/* A descriptor (an eventfd, the object's, non-blocking) that is readable while tickets may be ready: for poll, epoll
 * or an io_uring of the caller's. nodedb_prefetch_reap resets it; nobody else reads it. */
NODEDB_PREFETCH_API int nodedb_prefetch_fd(const nodedb_prefetch *p);

/* Up to `max` tickets that are done, in the order in which they were done, into `tickets`; returns how many. Never
 * blocks. The descriptor stays readable while there are more. */
NODEDB_PREFETCH_API size_t nodedb_prefetch_reap(nodedb_prefetch *p, nodedb_prefetch_ticket *tickets, size_t max);

/* ---- giving memory back ----------------------------------------------------------------------------------------- */

typedef enum nodedb_prefetch_release_how {
    NODEDB_PREFETCH_COLD = 0,    /* keep it, but evict it before other memory (MADV_COLD, Linux 5.4) */
    NODEDB_PREFETCH_PAGE_OUT,    /* write it back or swap it out now, free the memory (MADV_PAGEOUT, Linux 5.4) */
    NODEDB_PREFETCH_DROP,        /* take it out of the page table; the page cache keeps what it likes (MADV_DONTNEED).
                                    Shared mappings only: on a private one it would throw away what was written there,
                                    and turn anonymous memory to zeros, so that is INVALID, and nothing is done. Needs
                                    /proc (/proc/self/maps tells which is which), else UNSUPPORTED */
    NODEDB_PREFETCH_DROP_PRIVATE /* the same without asking: "I know that private changes are lost" */
} nodedb_prefetch_release_how;

/* Gives back the whole pages inside [start, start + bytes); pages that it covers only in part are left alone. No
 * contents are lost, except under DROP_PRIVATE. Errors as for nodedb_prefetch_one; UNSUPPORTED. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release(nodedb_prefetch *p, const void *start, size_t bytes,
                                                          nodedb_prefetch_release_how how, nodedb_error *err);

/* The same for `n` ranges; ranges that touch count as one, so a page that two of them share is released. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                                size_t n, nodedb_prefetch_release_how how,
                                                                nodedb_error *err);

/* ---- looking ---------------------------------------------------------------------------------------------------- */

/* How many pages that [start, start + bytes) touches are in memory right now, and how many there are, counted in the
 * *system's* pages; adds them to the statistics as hits and misses. mincore(2): one call per 4096 pages. Errors:
 * INVALID (NULL, wraps, not mapped), NO_MEMORY. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_residency(nodedb_prefetch *p, const void *start, size_t bytes,
                                                            uint64_t *resident_pages, uint64_t *total_pages,
                                                            nodedb_error *err);

/* A copy of the counters. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_get_stats(const nodedb_prefetch *p, nodedb_prefetch_stats *stats,
                                                            nodedb_error *err);

/* ---- only computing --------------------------------------------------------------------------------------------- */

typedef enum nodedb_prefetch_rounding {
    NODEDB_PREFETCH_OUTWARD = 0, /* every page that a range touches: for prefetch */
    NODEDB_PREFETCH_INWARD       /* only pages that lie wholly in the ranges: for release */
} nodedb_prefetch_rounding;

/* The runs of whole pages that `ranges` come to: sorted, disjoint, not even touching, aligned to `page_bytes` at both
 * ends. `runs` has room for `n` and may be `ranges` itself; `*runs_n` says how many there are. Pure: no system call,
 * no state, any thread, no memory is touched but the two arrays. Errors: INVALID (NULL, wraps, `page_bytes` no power
 * of two). */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_plan(const nodedb_prefetch_range *ranges, size_t n, size_t page_bytes,
                                                       nodedb_prefetch_rounding rounding, nodedb_prefetch_range *runs,
                                                       size_t *runs_n, nodedb_error *err);

/* ---- counting faults -------------------------------------------------------------------------------------------- */

/* Works zeroed. */
typedef struct nodedb_prefetch_faults_config {
    uint64_t interval_ns;      /* 0: NODEDB_PREFETCH_DEFAULT_INTERVAL_NS */
    uint64_t major_faults_max; /* per interval; more is degraded. 0: NODEDB_PREFETCH_DEFAULT_MAJOR_FAULTS_MAX */
    unsigned depth_min;        /* 0: NODEDB_PREFETCH_DEFAULT_DEPTH_MIN */
    unsigned depth_max;        /* 0: NODEDB_PREFETCH_DEFAULT_DEPTH_MAX */
    nodedb_clock clock;
    nodedb_logger logger;      /* told when the thread becomes degraded, and when it recovers */
} nodedb_prefetch_faults_config;

/* The page faults of one thread: getrusage(RUSAGE_THREAD), the thread's own and never the process's. A major fault had
 * to wait for the disk (a miss); a minor one found its page in memory (a hit; also each first touch of fresh memory).
 * The caller owns the struct and may read all of it, in the owner's thread; only the two functions write it. Results
 * hold for the last closed interval. */
typedef struct nodedb_prefetch_faults {
    nodedb_prefetch_faults_config config; /* with the defaults filled in */
    bool degraded;                /* major faults, scaled to the interval's nominal length, were above the limit */
    unsigned depth;               /* ranges to prefetch ahead: doubled while more than 1 fault in 8 was a miss, halved
                                     while memory is short */
    uint64_t intervals;           /* closed ones */
    uint64_t interval_elapsed_ns; /* the real length of the last one: ticks may be late */
    uint64_t interval_major;
    uint64_t interval_minor;
    double major_per_second;
    double miss_rate;             /* major / (major + minor), 0 if there were none; the hit rate is 1 - miss_rate */
    uint64_t total_major;         /* since the start */
    uint64_t total_minor;
    uint64_t begun_ns;            /* of the running interval: clock, and the thread's counters then */
    uint64_t begun_major, begun_minor;
    long owner_tid;
} nodedb_prefetch_faults;

/* Starts to count, for the calling thread. `config` NULL: all defaults. Errors: INVALID (NULL, depth_min > depth_max),
 * IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_start(nodedb_prefetch_faults *f,
                                                               const nodedb_prefetch_faults_config *config,
                                                               nodedb_error *err);

/* Call it as often as you like, once per loop: it reads the clock, and once the interval is over, two system calls
 * close it and the results above change (`intervals` grows). `memory_is_short`: what the caller knows of its memory (a
 * governor's pressure, a cgroup's limit), for the depth. Errors: INVALID (NULL, not started), STATE (another
 * thread's), IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_tick(nodedb_prefetch_faults *f, bool memory_is_short,
                                                              nodedb_error *err);

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_PREFETCH_H */

#ifdef NODEDB_PREFETCH_IMPLEMENTATION
#ifndef NODEDB_PREFETCH_IMPLEMENTED
#define NODEDB_PREFETCH_IMPLEMENTED

#include <assert.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if !defined(NODEDB_NO_LIBURING) && defined(__has_include)
#if __has_include(<liburing.h>)
#define NODEDB_PREFETCH__URING 1
#include <liburing.h>
#endif
#endif

/* What headers older than the kernel lack. The numbers are the same on every architecture but alpha and parisc, where
 * the probe at creation finds that they do not work. */
#define NODEDB_PREFETCH__COLD 20          /* MADV_COLD */
#define NODEDB_PREFETCH__PAGE_OUT 21      /* MADV_PAGEOUT */
#define NODEDB_PREFETCH__POPULATE_READ 22 /* MADV_POPULATE_READ */
#define NODEDB_PREFETCH__SYS_PIDFD_OPEN 434
#define NODEDB_PREFETCH__SYS_PROCESS_MADVISE 440
#define NODEDB_PREFETCH__MIN_PAGE_BYTES 256      /* smaller than any: a completion's address has its low bits free */
#define NODEDB_PREFETCH__MISS_RATE_HIGH 0.125    /* share of faults above which the depth grows */
#define NODEDB_PREFETCH__PIDFD_SELF (-10001) /* PIDFD_SELF_THREAD_GROUP, Linux 6.14: oneself, without a descriptor */

/* ==== ranges to runs: pure arithmetic ============================================================================= */

/* Shell sort by start (Ciura's gaps): in place and without recursion; libc's qsort may allocate. */
static void nodedb_prefetch__sort(nodedb_prefetch_range *runs, size_t n) {
    static const size_t gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};
    size_t g, i, j;
    for (g = 0; g < sizeof gaps / sizeof gaps[0]; g++)
        for (i = gaps[g]; i < n; i++) {
            nodedb_prefetch_range moving = runs[i];
            for (j = i; j >= gaps[g] && (uintptr_t)runs[j - gaps[g]].start > (uintptr_t)moving.start; j -= gaps[g])
                runs[j] = runs[j - gaps[g]];
            runs[j] = moving;
        }
}

/* No NULL, and neither the range's end nor that end rounded up to a page passes the end of the address space. */
static nodedb_status nodedb_prefetch__check(const nodedb_prefetch_range *ranges, size_t n, size_t page_bytes,
                                            nodedb_error *err) {
    const uintptr_t end_max = UINTPTR_MAX - (page_bytes - 1);
    size_t i;
    if (ranges == NULL && n > 0) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: the ranges are NULL");
    for (i = 0; i < n; i++) {
        if (ranges[i].bytes == 0) continue;
        if (ranges[i].start == NULL)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: range %llu of %llu bytes starts at NULL",
                                (unsigned long long)i, (unsigned long long)ranges[i].bytes);
        if ((uintptr_t)ranges[i].start > end_max || ranges[i].bytes > end_max - (uintptr_t)ranges[i].start)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                                "prefetch: range %llu, %llu bytes at %p, wraps around the end of the address space",
                                (unsigned long long)i, (unsigned long long)ranges[i].bytes, ranges[i].start);
    }
    return NODEDB_OK;
}

static bool nodedb_prefetch__is_power_of_two(size_t x) { return x != 0 && (x & (x - 1)) == 0; }

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_plan(const nodedb_prefetch_range *ranges, size_t n, size_t page_bytes,
                                                       nodedb_prefetch_rounding rounding, nodedb_prefetch_range *runs,
                                                       size_t *runs_n, nodedb_error *err) {
    uintptr_t mask = (uintptr_t)page_bytes - 1;
    size_t kept = 0, merged = 0, i;
    nodedb_status status;
    if (runs_n == NULL || (runs == NULL && n > 0) || !nodedb_prefetch__is_power_of_two(page_bytes))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                            "prefetch: plan needs room for its runs, and pages of a power of "
                            "two bytes, not %llu", (unsigned long long)page_bytes);
    *runs_n = 0;
    status = nodedb_prefetch__check(ranges, n, page_bytes, err);
    if (status != NODEDB_OK) return status;

    for (i = 0; i < n; i++)
        if (ranges[i].bytes > 0) runs[kept++] = ranges[i];
    nodedb_prefetch__sort(runs, kept);

    /* Outward rounds first and then merges. Inward merges the bytes first: two halves of a page are a whole page. */
    for (i = 0; i < kept; i++) {
        uintptr_t start = (uintptr_t)runs[i].start, end = start + runs[i].bytes;
        if (rounding == NODEDB_PREFETCH_OUTWARD) start &= ~mask, end = (end + mask) & ~mask;
        if (merged > 0) {
            uintptr_t last = (uintptr_t)runs[merged - 1].start, last_end = last + runs[merged - 1].bytes;
            if (start <= last_end) {
                if (end > last_end) runs[merged - 1].bytes = (size_t)(end - last);
                continue;
            }
        }
        runs[merged].start = (const void *)start;
        runs[merged++].bytes = (size_t)(end - start);
    }
    if (rounding == NODEDB_PREFETCH_OUTWARD) {
        *runs_n = merged;
        return NODEDB_OK;
    }
    for (kept = 0, i = 0; i < merged; i++) {
        uintptr_t start = ((uintptr_t)runs[i].start + mask) & ~mask;
        uintptr_t end = ((uintptr_t)runs[i].start + runs[i].bytes) & ~mask;
        if (start >= end) continue;
        runs[kept].start = (const void *)start;
        runs[kept++].bytes = (size_t)(end - start);
    }
    *runs_n = kept;
    return NODEDB_OK;
}

/* ==== the object ================================================================================================== */

/* A batch under way. Its number within the table travels through the ring in the completion's user_data. */
typedef struct nodedb_prefetch__slot {
    nodedb_prefetch_ticket ticket; /* as it will be handed back */
    unsigned entries;              /* of the ring, which it holds until it is done */
    bool under_way;                /* in the ring */
} nodedb_prefetch__slot;

/* A prefetcher. Touched by its owner's thread alone; the kernel's workers reach only the ring. Never changes after
 * creation: everything up to `event_fd`, except that `has_ring` is cleared if the ring breaks. True between calls: the
 * submission queue is empty; every slot is either in `free_slots`, or in `ready`, or under way in the ring. */
struct nodedb_prefetch {
    nodedb_prefetch_config config; /* defaults filled in */
    size_t system_page_bytes;
    nodedb_prefetch_method method;
    unsigned vector_advice;        /* bit set of the advices that process_madvise took from us */
    int pidfd;                     /* for process_madvise: ourselves */
    bool pidfd_is_ours;            /* opened by us, to be closed */
    bool has_ring;
    int event_fd;                  /* readable: tickets may be ready */
#ifdef NODEDB_PREFETCH__URING
    struct io_uring ring;
    unsigned advice_under_way;     /* entries of IO_URING's batches; at most config.queue_depth */
#endif
    unsigned entries_in_use;       /* by tickets under way; at most config.queue_depth */
    nodedb_prefetch_stats stats;
    nodedb_prefetch__slot slots[NODEDB_PREFETCH_MAX_TICKETS];
    unsigned free_slots[NODEDB_PREFETCH_MAX_TICKETS]; /* a stack */
    unsigned free_n;
    unsigned ready[NODEDB_PREFETCH_MAX_TICKETS];      /* a queue of done ones: a ring from ready_first */
    unsigned ready_first, ready_n;
    nodedb_prefetch_range runs[NODEDB_PREFETCH_GROUP_RANGES]; /* scratch of one call: the planned group ... */
    struct iovec pieces[NODEDB_PREFETCH_GROUP_RANGES];        /* ... and one call's share of it */
};

/* The first step that the kernel refused in a call. */
typedef struct nodedb_prefetch__refusal {
    int sys_errno; /* 0: none */
    const void *start;
    size_t bytes;
} nodedb_prefetch__refusal;

static nodedb_status nodedb_prefetch__need(const void *object, nodedb_error *err) {
    if (object != NULL) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: a NULL object or result was passed");
}

/* ==== what the kernel refused ===================================================================================== */

/* MS_ASYNC starts nothing since Linux 2.6.19, and answers ENOMEM if a page of the range is not mapped. */
static bool nodedb_prefetch__is_mapped(uintptr_t start, size_t bytes) {
    return msync((void *)start, bytes, MS_ASYNC) == 0 || errno != ENOMEM;
}

/* The first unmapped page of [start, start + bytes), found by halving; false if all of it is mapped. */
static bool nodedb_prefetch__hole(const void *start, size_t bytes, size_t page_bytes, uintptr_t *hole) {
    uintptr_t low = (uintptr_t)start & ~((uintptr_t)page_bytes - 1);
    size_t pages = ((uintptr_t)start + bytes - low + page_bytes - 1) / page_bytes;
    if (nodedb_prefetch__is_mapped(low, pages * page_bytes)) return false;
    while (pages > 1) { /* the first hole lies in the `pages` pages from `low` */
        size_t half = pages / 2;
        if (!nodedb_prefetch__is_mapped(low, half * page_bytes)) pages = half;
        else low += half * page_bytes, pages -= half;
    }
    *hole = low;
    return true;
}

static const char *nodedb_prefetch__advice_name(int advice) {
    switch (advice) {
    case MADV_WILLNEED: return "MADV_WILLNEED";
    case MADV_DONTNEED: return "MADV_DONTNEED";
    case NODEDB_PREFETCH__COLD: return "MADV_COLD";
    case NODEDB_PREFETCH__PAGE_OUT: return "MADV_PAGEOUT";
    }
    return "mincore";
}

static nodedb_status nodedb_prefetch__refused(const nodedb_prefetch *p, const nodedb_prefetch__refusal *refusal,
                                              int advice, nodedb_error *err) {
    const char *name = nodedb_prefetch__advice_name(advice);
    nodedb_status status = NODEDB_ERR_IO;
    uintptr_t hole;
    if (refusal->sys_errno == 0) return NODEDB_OK;
    if (refusal->sys_errno == ENOMEM) {
        if (nodedb_prefetch__hole(refusal->start, refusal->bytes, p->system_page_bytes, &hole))
            return nodedb_fail(err, NODEDB_ERR_INVALID, ENOMEM, "prefetch: %s: address 0x%llx is not mapped", name,
                                (unsigned long long)hole);
        status = NODEDB_ERR_NO_MEMORY;
    }
    if (refusal->sys_errno == EINVAL) status = NODEDB_ERR_UNSUPPORTED; /* the advice, or locked or special memory */
    return nodedb_fail(err, status, refusal->sys_errno, "prefetch: the kernel refused %s of %llu bytes at %p", name,
                        (unsigned long long)refusal->bytes, refusal->start);
}

static void nodedb_prefetch__note_refusal(nodedb_prefetch *p, nodedb_prefetch__refusal *refusal, int sys_errno,
                                          const void *start, size_t bytes) {
    /* WILLNEED of anonymous memory on a kernel without swap: there is nothing to read */
    if (sys_errno == EBADF) return;
    p->stats.failures++;
    if (refusal->sys_errno != 0) return;
    refusal->sys_errno = sys_errno;
    refusal->start = start;
    refusal->bytes = bytes;
}

/* ==== advice: from runs to system calls =========================================================================== */

static long nodedb_prefetch__process_madvise(int pidfd, const struct iovec *pieces, size_t n, int advice) {
    return syscall(NODEDB_PREFETCH__SYS_PROCESS_MADVISE, pidfd, pieces, n, advice, 0UL);
}

/* A place within the runs. The rest of the run is the next piece, or as much of it as one step may be. */
typedef struct nodedb_prefetch__cursor {
    const nodedb_prefetch_range *runs;
    size_t runs_n, at;
    size_t offset; /* bytes of runs[at] that are done */
    size_t step;   /* most bytes of one piece */
} nodedb_prefetch__cursor;

static struct iovec nodedb_prefetch__piece(const nodedb_prefetch__cursor *c) {
    struct iovec piece;
    size_t rest = c->runs[c->at].bytes - c->offset;
    piece.iov_base = (void *)((uintptr_t)c->runs[c->at].start + c->offset);
    piece.iov_len = rest < c->step ? rest : c->step;
    return piece;
}

static void nodedb_prefetch__advance(nodedb_prefetch__cursor *c, size_t bytes) {
    assert(c->at < c->runs_n && bytes <= c->runs[c->at].bytes - c->offset);
    c->offset += bytes;
    if (c->offset == c->runs[c->at].bytes) c->at++, c->offset = 0;
}

/* The start of p->runs, in pieces as large as `advice` takes them. */
static nodedb_prefetch__cursor nodedb_prefetch__cursor_at(const nodedb_prefetch *p, size_t runs_n, int advice) {
    nodedb_prefetch__cursor c;
    c.runs = p->runs, c.runs_n = runs_n, c.at = 0, c.offset = 0;
    c.step = advice == MADV_WILLNEED ? NODEDB_PREFETCH_STEP_BYTES : NODEDB_PREFETCH_MAX_PAGE_BYTES;
    if (c.step < p->system_page_bytes) c.step = p->system_page_bytes;
    return c;
}

/* Fills p->pieces with the next pieces and returns how many. */
static size_t nodedb_prefetch__gather(nodedb_prefetch *p, nodedb_prefetch__cursor c) {
    size_t n = 0, bytes = 0;
    while (c.at < c.runs_n && n < NODEDB_PREFETCH_GROUP_RANGES) {
        struct iovec piece = nodedb_prefetch__piece(&c);
        /* MAX_RW_COUNT would cut the rest */
        if (n > 0 && piece.iov_len > NODEDB_PREFETCH_MAX_PAGE_BYTES - bytes) break;
        bytes += piece.iov_len;
        p->pieces[n++] = piece;
        nodedb_prefetch__advance(&c, piece.iov_len);
    }
    return n;
}

/* Gives `advice` for all runs; a piece that is refused is noted and passed over. process_madvise stops at the first
 * piece that it cannot do and answers the bytes before it, so the next turn meets that piece first and learns the
 * reason. */
static void nodedb_prefetch__advise(nodedb_prefetch *p, size_t runs_n, int advice, nodedb_prefetch__refusal *refusal) {
    nodedb_prefetch__cursor c = nodedb_prefetch__cursor_at(p, runs_n, advice);
    while (c.at < runs_n) {
        struct iovec piece = nodedb_prefetch__piece(&c);
        long done;
        p->stats.system_calls++;
        if ((p->vector_advice >> advice & 1) != 0) {
            size_t n = nodedb_prefetch__gather(p, c);
            done = nodedb_prefetch__process_madvise(p->pidfd, p->pieces, n, advice);
        } else {
            done = madvise(piece.iov_base, piece.iov_len, advice) == 0 ? (long)piece.iov_len : -1;
        }
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            nodedb_prefetch__note_refusal(p, refusal, done < 0 ? errno : EIO, piece.iov_base, piece.iov_len);
            done = (long)piece.iov_len;
        }
        while (done > 0) {
            size_t rest = c.runs[c.at].bytes - c.offset;
            size_t step = (size_t)done < rest ? (size_t)done : rest;
            nodedb_prefetch__advance(&c, step);
            done -= (long)step;
        }
    }
}

/* Adds a planned group to the statistics. */
static void nodedb_prefetch__count(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n, size_t runs_n,
                                   uint64_t *pages) {
    size_t asked = 0, i;
    for (i = 0; i < n; i++) asked += ranges[i].bytes > 0;
    for (i = 0; i < runs_n; i++) *pages += p->runs[i].bytes / p->config.page_bytes;
    p->stats.ranges_asked += asked;
    p->stats.ranges_merged += asked - runs_n;
}

/* ==== tickets ===================================================================================================== */

static void nodedb_prefetch__signal(nodedb_prefetch *p) {
    uint64_t one = 1; /* fails only if 2^64 - 2 signals are unread: then it is readable already */
    ssize_t ignored = write(p->event_fd, &one, sizeof one);
    (void)ignored;
}

/* Notes the first thing that went wrong with a batch. */
static void nodedb_prefetch__ticket_failed(nodedb_prefetch_ticket *t, int sys_errno, const void *at) {
    if (t->status != NODEDB_OK) return;
    t->sys_errno = sys_errno;
    t->failed_at = at;
    t->status = sys_errno == ENOMEM ? NODEDB_ERR_INVALID : NODEDB_ERR_IO;
    t->resident = false;
}

static void nodedb_prefetch__slot_done(nodedb_prefetch *p, unsigned slot) {
    assert(p->ready_n < NODEDB_PREFETCH_MAX_TICKETS && p->entries_in_use >= p->slots[slot].entries);
    p->entries_in_use -= p->slots[slot].entries;
    p->slots[slot].under_way = false;
    p->ready[(p->ready_first + p->ready_n++) % NODEDB_PREFETCH_MAX_TICKETS] = slot;
    p->stats.tickets_done++;
}

#ifdef NODEDB_PREFETCH__URING
/* ==== the ring ==================================================================================================== */

/* A completion's user_data: the address of its piece, whose low bits are free because it starts a page, and in these
 * what it belongs to: a slot's number, perhaps with the bit for the last of its pieces, or one of two marks. */
enum {
    NODEDB_PREFETCH__MARK_BITS = 0xff,
    NODEDB_PREFETCH__MARK_LAST = 0x40,  /* + slot 0 to 63: the ticket is done */
    NODEDB_PREFETCH__MARK_NONE = 0x80,  /* nobody waits for it */
    NODEDB_PREFETCH__MARK_ADVICE = 0x81 /* MADV_WILLNEED of a batch */
};
#define NODEDB_PREFETCH__SUBMIT_TRIES 1000 /* a millisecond each, for a kernel that is short of memory */

static void nodedb_prefetch__prepare(nodedb_prefetch *p, struct iovec piece, int advice, unsigned mark,
                                     unsigned flags) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
    assert(sqe != NULL && ((uintptr_t)piece.iov_base & NODEDB_PREFETCH__MARK_BITS) == 0);
    io_uring_prep_madvise(sqe, piece.iov_base, (off_t)piece.iov_len, advice);
    sqe->flags = (unsigned char)flags;
    sqe->user_data = (uint64_t)(uintptr_t)piece.iov_base | mark;
}

/* Takes all completions out of the ring. Never blocks. */
static void nodedb_prefetch__drain(nodedb_prefetch *p) {
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&p->ring, &cqe) == 0) {
        unsigned mark = (unsigned)(cqe->user_data & NODEDB_PREFETCH__MARK_BITS);
        unsigned slot = mark % NODEDB_PREFETCH_MAX_TICKETS;
        const void *at = (const void *)(uintptr_t)(cqe->user_data & ~(uint64_t)NODEDB_PREFETCH__MARK_BITS);
        int error = cqe->res < 0 ? -cqe->res : 0;
        io_uring_cqe_seen(&p->ring, cqe);
        if (mark == NODEDB_PREFETCH__MARK_NONE) continue;
        if (error != 0 && error != EBADF) {
            p->stats.failures++;
            if (mark != NODEDB_PREFETCH__MARK_ADVICE)
                nodedb_prefetch__ticket_failed(&p->slots[slot].ticket, error, at);
            else
                nodedb_say(&p->config.logger, NODEDB_LOG_WARNING,
                            "prefetch: the kernel refused MADV_WILLNEED at %p with errno %d", at, error);
        }
        if (mark == NODEDB_PREFETCH__MARK_ADVICE) p->advice_under_way--;
        else if ((mark & NODEDB_PREFETCH__MARK_LAST) != 0) nodedb_prefetch__slot_done(p, slot);
    }
}

/* Hands all prepared entries to the kernel. Answers what io_uring_submit took at its first go (less than all: a chain
 * may have been cut in two), or -errno if the kernel would not take them at all: then the ring is given up. */
static int nodedb_prefetch__submit(nodedb_prefetch *p) {
    int first = -1, tries;
    for (tries = 0; tries < NODEDB_PREFETCH__SUBMIT_TRIES; tries++) {
        int taken = io_uring_submit(&p->ring);
        p->stats.system_calls++;
        if (taken > 0 && first < 0) first = taken;
        if (taken >= 0 && io_uring_sq_ready(&p->ring) == 0) return first < 0 ? 0 : first;
        if (taken < 0 && taken != -EINTR && taken != -EAGAIN && taken != -EBUSY) return taken;
        nodedb_prefetch__drain(p);
        if (taken <= 0) (void)usleep(1000);
    }
    return -EAGAIN;
}

/* A ring that takes nothing any more: what was under way comes back as failed, and calls go to the kernel directly. */
static void nodedb_prefetch__give_up_ring(nodedb_prefetch *p, int error) {
    unsigned slot;
    nodedb_say(&p->config.logger, NODEDB_LOG_ERROR,
                "prefetch: io_uring failed with errno %d and is given up; tickets come "
                "back at once from now on", error);
    nodedb_prefetch__drain(p);
    for (slot = 0; slot < NODEDB_PREFETCH_MAX_TICKETS; slot++) {
        if (!p->slots[slot].under_way) continue;
        nodedb_prefetch__ticket_failed(&p->slots[slot].ticket, error, NULL);
        nodedb_prefetch__slot_done(p, slot);
    }
    io_uring_queue_exit(&p->ring);
    p->has_ring = false;
    if (p->method == NODEDB_PREFETCH_IO_URING)
        p->method = p->vector_advice != 0 ? NODEDB_PREFETCH_PROCESS_MADVISE : NODEDB_PREFETCH_MADVISE;
    nodedb_prefetch__signal(p);
}

/* MADV_WILLNEED of all runs by the kernel's workers. Blocks only while too many of these are under way. */
static void nodedb_prefetch__advise_by_ring(nodedb_prefetch *p, size_t runs_n, nodedb_prefetch__refusal *refusal) {
    nodedb_prefetch__cursor c = nodedb_prefetch__cursor_at(p, runs_n, MADV_WILLNEED);
    int taken = 0;
    while (c.at < runs_n && taken >= 0) {
        struct io_uring_cqe *cqe;
        nodedb_prefetch__drain(p);
        if (p->advice_under_way == p->config.queue_depth) {
            p->stats.system_calls++;
            taken = io_uring_wait_cqe(&p->ring, &cqe);
            if (taken == -EINTR) taken = 0;
            continue;
        }
        for (; c.at < runs_n && p->advice_under_way < p->config.queue_depth; p->advice_under_way++) {
            struct iovec piece = nodedb_prefetch__piece(&c);
            nodedb_prefetch__prepare(p, piece, MADV_WILLNEED, NODEDB_PREFETCH__MARK_ADVICE, 0);
            nodedb_prefetch__advance(&c, piece.iov_len);
        }
        taken = nodedb_prefetch__submit(p);
    }
    if (taken >= 0) return;
    nodedb_prefetch__give_up_ring(p, -taken);
    nodedb_prefetch__advise(p, runs_n, MADV_WILLNEED, refusal);
}

/* The reads of a ticket, in one submission. First MADV_WILLNEED for every step, which the workers take up side by
 * side, so that all reads are under way. Then a chain that one worker goes through: MADV_POPULATE_READ for each run,
 * waiting for its pages, and at last a write to the event descriptor, so that the owner wakes up once per batch. (A
 * descriptor registered for completions would wake it at each; IOSQE_CQE_SKIP_SUCCESS would swallow refusals too,
 * since the kernel does not mark a refused madvise as failed.) A hard link goes on after a failure. The completion of
 * the last run is in the ring before the write begins. */
static void nodedb_prefetch__begin_by_ring(nodedb_prefetch *p, size_t runs_n, unsigned slot) {
    static const uint64_t one = 1;
    nodedb_prefetch__cursor c = nodedb_prefetch__cursor_at(p, runs_n, MADV_WILLNEED);
    struct io_uring_sqe *sqe;
    int taken;
    while (c.at < runs_n) {
        struct iovec piece = nodedb_prefetch__piece(&c);
        nodedb_prefetch__prepare(p, piece, MADV_WILLNEED, NODEDB_PREFETCH__MARK_NONE, 0);
        nodedb_prefetch__advance(&c, piece.iov_len);
    }
    c = nodedb_prefetch__cursor_at(p, runs_n, NODEDB_PREFETCH__POPULATE_READ);
    while (c.at < runs_n) {
        struct iovec piece = nodedb_prefetch__piece(&c);
        unsigned mark;
        nodedb_prefetch__advance(&c, piece.iov_len);
        mark = slot | (c.at == runs_n ? (unsigned)NODEDB_PREFETCH__MARK_LAST : 0u);
        nodedb_prefetch__prepare(p, piece, NODEDB_PREFETCH__POPULATE_READ, mark, IOSQE_IO_HARDLINK);
    }
    sqe = io_uring_get_sqe(&p->ring);
    assert(sqe != NULL);
    io_uring_prep_write(sqe, 0, &one, sizeof one, 0); /* the ring's own file 0: it and `one` outlive the object */
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->user_data = NODEDB_PREFETCH__MARK_NONE;
    p->slots[slot].under_way = true;
    taken = nodedb_prefetch__submit(p);
    if (taken < 0) nodedb_prefetch__give_up_ring(p, -taken);
    else if ((unsigned)taken < p->slots[slot].entries) p->slots[slot].ticket.resident = false; /* the chain was cut */
}
#endif

static size_t nodedb_prefetch__count_pieces(nodedb_prefetch__cursor c) {
    size_t n = 0;
    for (; c.at < c.runs_n; n++) nodedb_prefetch__advance(&c, nodedb_prefetch__piece(&c).iov_len);
    return n;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_begin(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, uint64_t tag, nodedb_error *err) {
    nodedb_prefetch__refusal refusal = {0, NULL, 0};
    nodedb_prefetch_ticket *ticket;
    size_t runs_n = 0, entries;
    unsigned slot;
    nodedb_status status = nodedb_prefetch__need(p, err);
    if (status != NODEDB_OK) return status;
    if (n > NODEDB_PREFETCH_GROUP_RANGES)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "prefetch: a ticket takes up to %d ranges, not %llu",
                            NODEDB_PREFETCH_GROUP_RANGES, (unsigned long long)n);
    status = nodedb_prefetch_plan(ranges, n, p->config.page_bytes, NODEDB_PREFETCH_OUTWARD, p->runs, &runs_n, err);
    if (status != NODEDB_OK) return status;
    entries = 1 + nodedb_prefetch__count_pieces(nodedb_prefetch__cursor_at(p, runs_n, MADV_WILLNEED)) +
              nodedb_prefetch__count_pieces(nodedb_prefetch__cursor_at(p, runs_n, NODEDB_PREFETCH__POPULATE_READ));
    if (entries > p->config.queue_depth)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0,
                            "prefetch: this batch needs %llu entries of the ring, which has %u: "
                            "split it, or raise queue_depth", (unsigned long long)entries, p->config.queue_depth);
#ifdef NODEDB_PREFETCH__URING
    if (p->has_ring) nodedb_prefetch__drain(p);
#endif
    if (p->free_n == 0 || entries > p->config.queue_depth - p->entries_in_use)
        return nodedb_fail(err, NODEDB_ERR_AGAIN, 0, "prefetch: %u batches with %u entries are under way: reap first",
                            NODEDB_PREFETCH_MAX_TICKETS - p->free_n, p->entries_in_use);

    slot = p->free_slots[--p->free_n];
    ticket = &p->slots[slot].ticket;
    memset(ticket, 0, sizeof *ticket);
    ticket->tag = tag;
    ticket->resident = p->has_ring || runs_n == 0;
    p->slots[slot].entries = p->has_ring ? (unsigned)entries : 0;
    p->entries_in_use += p->slots[slot].entries;
    p->stats.tickets_begun++;
    nodedb_prefetch__count(p, ranges, n, runs_n, &p->stats.pages_advised);
#ifdef NODEDB_PREFETCH__URING
    if (p->has_ring && runs_n > 0) {
        nodedb_prefetch__begin_by_ring(p, runs_n, slot);
        return NODEDB_OK;
    }
#endif
    nodedb_prefetch__advise(p, runs_n, MADV_WILLNEED, &refusal);
    if (refusal.sys_errno != 0) nodedb_prefetch__ticket_failed(ticket, refusal.sys_errno, refusal.start);
    nodedb_prefetch__slot_done(p, slot);
    nodedb_prefetch__signal(p);
    return NODEDB_OK;
}

NODEDB_PREFETCH_API int nodedb_prefetch_fd(const nodedb_prefetch *p) { return p != NULL ? p->event_fd : -1; }

NODEDB_PREFETCH_API size_t nodedb_prefetch_reap(nodedb_prefetch *p, nodedb_prefetch_ticket *tickets, size_t max) {
    uint64_t signals;
    ssize_t ignored;
    size_t n = 0;
    if (p == NULL || (tickets == NULL && max > 0)) return 0;
    ignored = read(p->event_fd, &signals, sizeof signals); /* before the ring, so that no later completion is missed */
    (void)ignored;
#ifdef NODEDB_PREFETCH__URING
    if (p->has_ring) nodedb_prefetch__drain(p);
#endif
    for (; n < max && p->ready_n > 0; n++) {
        unsigned slot = p->ready[p->ready_first];
        p->ready_first = (p->ready_first + 1) % NODEDB_PREFETCH_MAX_TICKETS;
        p->ready_n--;
        tickets[n] = p->slots[slot].ticket;
        p->free_slots[p->free_n++] = slot;
    }
    if (p->ready_n > 0) nodedb_prefetch__signal(p);
    return n;
}

/* ==== batches ===================================================================================================== */

/* One group of at most NODEDB_PREFETCH_GROUP_RANGES checked ranges: plan, count, advise. */
static void nodedb_prefetch__advise_group(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n, int advice,
                                          nodedb_prefetch__refusal *refusal) {
    bool bring_in = advice == MADV_WILLNEED;
    size_t runs_n = 0; /* for compilers that do not see that every path to its use sets it */
    nodedb_status status = nodedb_prefetch_plan(ranges, n, p->config.page_bytes,
                                                bring_in ? NODEDB_PREFETCH_OUTWARD : NODEDB_PREFETCH_INWARD, p->runs,
                                                &runs_n, NULL);
    assert(status == NODEDB_OK);
    (void)status;
    nodedb_prefetch__count(p, ranges, n, runs_n, bring_in ? &p->stats.pages_advised : &p->stats.pages_released);
#ifdef NODEDB_PREFETCH__URING
    if (bring_in && p->method == NODEDB_PREFETCH_IO_URING) {
        nodedb_prefetch__advise_by_ring(p, runs_n, refusal);
        return;
    }
#endif
    nodedb_prefetch__advise(p, runs_n, advice, refusal);
}

static nodedb_status nodedb_prefetch__advise_all(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n,
                                                 int advice, nodedb_error *err) {
    nodedb_prefetch__refusal refusal = {0, NULL, 0};
    size_t at, group;
    for (at = 0; at < n; at += group) {
        group = n - at < NODEDB_PREFETCH_GROUP_RANGES ? n - at : NODEDB_PREFETCH_GROUP_RANGES;
        nodedb_prefetch__advise_group(p, ranges + at, group, advice, &refusal);
    }
    return nodedb_prefetch__refused(p, &refusal, advice, err);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, nodedb_error *err) {
    nodedb_status status = nodedb_prefetch__need(p, err);
    if (status == NODEDB_OK) status = nodedb_prefetch__check(ranges, n, p->config.page_bytes, err);
    return status != NODEDB_OK ? status : nodedb_prefetch__advise_all(p, ranges, n, MADV_WILLNEED, err);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_one(nodedb_prefetch *p, const void *start, size_t bytes,
                                                      nodedb_error *err) {
    nodedb_prefetch_range range;
    range.start = start, range.bytes = bytes;
    return nodedb_prefetch_batch(p, &range, 1, err);
}

/* ==== release ===================================================================================================== */

/* One line of /proc/self/maps (proc(5)): "start-end perms offset dev inode path". It is read letter by letter, and
 * nothing after the second space is looked at, as a path may hold anything. */
typedef struct nodedb_prefetch__mapping {
    int field; /* 0: start, 1: end, 2: permissions, 3: the rest */
    uintptr_t start, end;
    char sharing; /* the last letter of the permissions: 's' shared, 'p' private */
} nodedb_prefetch__mapping;

static void nodedb_prefetch__mapping_letter(nodedb_prefetch__mapping *m, char c) {
    uintptr_t digit = (uintptr_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    if (m->field == 3) return;
    if (c == (m->field == 0 ? '-' : ' ')) m->field++;
    else if (m->field == 0) m->start = m->start << 4 | digit;
    else if (m->field == 1) m->end = m->end << 4 | digit;
    else m->sharing = c;
}

/* Is any part of `runs` mapped, but not shared? 1 and where, 0, or -errno. Both lists are sorted: one pass. */
static int nodedb_prefetch__find_private(const nodedb_prefetch_range *runs, size_t runs_n, uintptr_t *where) {
    nodedb_prefetch__mapping m = {0, 0, 0, 0};
    int fd, result = 0;
    size_t at = 0;
    nodedb__retry(fd, open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
    if (fd < 0) return -errno;
    while (result == 0 && at < runs_n) {
        char text[4096];
        ssize_t got, i;
        nodedb__retry(got, read(fd, text, sizeof text));
        if (got <= 0) {
            result = got < 0 ? -errno : 0;
            break;
        }
        for (i = 0; i < got && result == 0; i++) {
            if (text[i] != '\n') {
                nodedb_prefetch__mapping_letter(&m, text[i]);
                continue;
            }
            while (at < runs_n && (uintptr_t)runs[at].start + runs[at].bytes <= m.start) at++;
            if (at < runs_n && (uintptr_t)runs[at].start < m.end && m.sharing != 's') {
                *where = (uintptr_t)runs[at].start > m.start ? (uintptr_t)runs[at].start : m.start;
                result = 1;
            }
            memset(&m, 0, sizeof m);
        }
    }
    (void)close(fd);
    return result;
}

/* May all of these be dropped without losing a byte? Looks at everything before anything is dropped. */
static nodedb_status nodedb_prefetch__check_drop(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n,
                                                 nodedb_error *err) {
    size_t at, group, runs_n;
    for (at = 0; at < n; at += group) {
        uintptr_t where = 0;
        int found;
        group = n - at < NODEDB_PREFETCH_GROUP_RANGES ? n - at : NODEDB_PREFETCH_GROUP_RANGES;
        (void)nodedb_prefetch_plan(ranges + at, group, p->config.page_bytes, NODEDB_PREFETCH_INWARD, p->runs, &runs_n,
                                   NULL);
        found = runs_n > 0 ? nodedb_prefetch__find_private(p->runs, runs_n, &where) : 0;
        if (found < 0)
            return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, -found,
                                "prefetch: DROP needs /proc/self/maps to see that the "
                                "memory is shared; use DROP_PRIVATE if nothing can be lost");
        if (found > 0)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                                "prefetch: DROP of the private memory at 0x%llx would lose what was "
                                "written there; nothing was dropped (DROP_PRIVATE does it)", (unsigned long long)where);
    }
    return NODEDB_OK;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                                size_t n, nodedb_prefetch_release_how how,
                                                                nodedb_error *err) {
    static const int advices[] = {NODEDB_PREFETCH__COLD, NODEDB_PREFETCH__PAGE_OUT, MADV_DONTNEED, MADV_DONTNEED};
    nodedb_status status = nodedb_prefetch__need(p, err);
    if (status != NODEDB_OK) return status;
    if ((unsigned)how > NODEDB_PREFETCH_DROP_PRIVATE)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: there is no way %d to release memory", (int)how);
    status = nodedb_prefetch__check(ranges, n, p->config.page_bytes, err);
    if (status == NODEDB_OK && how == NODEDB_PREFETCH_DROP) status = nodedb_prefetch__check_drop(p, ranges, n, err);
    return status != NODEDB_OK ? status : nodedb_prefetch__advise_all(p, ranges, n, advices[how], err);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release(nodedb_prefetch *p, const void *start, size_t bytes,
                                                          nodedb_prefetch_release_how how, nodedb_error *err) {
    nodedb_prefetch_range range;
    range.start = start, range.bytes = bytes;
    return nodedb_prefetch_release_batch(p, &range, 1, how, err);
}

/* ==== looking ===================================================================================================== */

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_residency(nodedb_prefetch *p, const void *start, size_t bytes,
                                                            uint64_t *resident_pages, uint64_t *total_pages,
                                                            nodedb_error *err) {
    unsigned char in_memory[4096];
    nodedb_prefetch__refusal refusal = {0, NULL, 0};
    nodedb_prefetch_range run;
    size_t runs_n = 0, at, pages, i;
    uint64_t resident = 0;
    nodedb_status status = nodedb_prefetch__need(p != NULL && total_pages != NULL ? resident_pages : NULL, err);
    if (status != NODEDB_OK) return status;
    *resident_pages = *total_pages = 0;
    run.start = start, run.bytes = bytes;
    status = nodedb_prefetch_plan(&run, 1, p->system_page_bytes, NODEDB_PREFETCH_OUTWARD, &run, &runs_n, err);
    if (status != NODEDB_OK || runs_n == 0) return status;

    for (at = 0; at < run.bytes; at += pages * p->system_page_bytes) {
        refusal.start = (const void *)((uintptr_t)run.start + at);
        pages = (run.bytes - at) / p->system_page_bytes;
        if (pages > sizeof in_memory) pages = sizeof in_memory;
        refusal.bytes = pages * p->system_page_bytes;
        if (mincore((void *)(uintptr_t)refusal.start, refusal.bytes, in_memory) != 0) {
            refusal.sys_errno = errno;
            return nodedb_prefetch__refused(p, &refusal, -1, err);
        }
        for (i = 0; i < pages; i++) resident += in_memory[i] & 1;
    }
    *resident_pages = resident;
    *total_pages = run.bytes / p->system_page_bytes;
    p->stats.residency_hits += resident;
    p->stats.residency_misses += *total_pages - resident;
    return NODEDB_OK;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_get_stats(const nodedb_prefetch *p, nodedb_prefetch_stats *stats,
                                                            nodedb_error *err) {
    nodedb_status status = nodedb_prefetch__need(p != NULL ? stats : NULL, err);
    if (status == NODEDB_OK) *stats = p->stats;
    return status;
}

/* ==== creation: what does this kernel do for us? ================================================================== */

/* Tries process_madvise on a page of our own, advice by advice. Clears what does not work. */
static int nodedb_prefetch__probe_process_madvise(nodedb_prefetch *p, void *page) {
    static const int advices[] = {MADV_WILLNEED, NODEDB_PREFETCH__COLD, NODEDB_PREFETCH__PAGE_OUT, MADV_DONTNEED};
    struct iovec piece;
    size_t i;
    piece.iov_base = page, piece.iov_len = p->system_page_bytes;
    p->pidfd = NODEDB_PREFETCH__PIDFD_SELF;
    if (nodedb_prefetch__process_madvise(p->pidfd, &piece, 1, MADV_WILLNEED) < 0 && errno == EBADF) {
        long fd = syscall(NODEDB_PREFETCH__SYS_PIDFD_OPEN, getpid(), 0U);
        if (fd < 0) return errno;
        p->pidfd = (int)fd;
        p->pidfd_is_ours = true;
    }
    for (i = 0; i < sizeof advices / sizeof advices[0]; i++)
        if (nodedb_prefetch__process_madvise(p->pidfd, &piece, 1, advices[i]) == (long)piece.iov_len)
            p->vector_advice |= 1u << advices[i];
        else if (i == 0)
            return errno; /* without WILLNEED it is not worth having */
    return 0;
}

#ifdef NODEDB_PREFETCH__URING
/* A ring with MADV_WILLNEED and MADV_POPULATE_READ by its workers, and the descriptor told of completions. */
static int nodedb_prefetch__open_ring(nodedb_prefetch *p, void *page) {
    struct io_uring_probe *probe;
    int error;
    if (madvise(page, p->system_page_bytes, NODEDB_PREFETCH__POPULATE_READ) != 0) return errno;
    error = -io_uring_queue_init(p->config.queue_depth, &p->ring, 0);
    if (error != 0) return error;
    probe = io_uring_get_probe_ring(&p->ring);
    if (probe == NULL || !io_uring_opcode_supported(probe, IORING_OP_MADVISE)) error = EOPNOTSUPP;
    if (probe != NULL) io_uring_free_probe(probe);
    if (error == 0) error = -io_uring_register_files(&p->ring, &p->event_fd, 1);
    if (error != 0) {
        io_uring_queue_exit(&p->ring);
        return error;
    }
    return 0;
}
#endif

/* Chooses the methods, and says what fell back. */
static void nodedb_prefetch__choose(nodedb_prefetch *p, void *page) {
    const nodedb_logger *logger = &p->config.logger;
    nodedb_prefetch_method wanted = p->config.method;
    int error;
    p->method = NODEDB_PREFETCH_MADVISE;
    if (wanted == NODEDB_PREFETCH_MADVISE) return;
    error = nodedb_prefetch__probe_process_madvise(p, page);
    if (error == 0) p->method = NODEDB_PREFETCH_PROCESS_MADVISE;
    else nodedb_say(logger, NODEDB_LOG_INFO,
                     "prefetch: process_madvise on ourselves is refused (errno %d), so a batch takes "
                     "one madvise for each run; remedy: Linux 6.13, or a seccomp profile that allows it", error);
    if (wanted == NODEDB_PREFETCH_PROCESS_MADVISE) return;
#ifdef NODEDB_PREFETCH__URING
    error = nodedb_prefetch__open_ring(p, page);
    p->has_ring = error == 0;
    if (p->has_ring && wanted == NODEDB_PREFETCH_IO_URING) p->method = NODEDB_PREFETCH_IO_URING;
    if (!p->has_ring)
        nodedb_say(logger, NODEDB_LOG_WARNING,
                    "prefetch: io_uring with MADV_POPULATE_READ is refused (errno %d), so tickets come "
                    "back before their pages are in memory; remedy: Linux 5.14, kernel.io_uring_disabled=0, a seccomp "
                    "profile that allows io_uring", error);
#else
    nodedb_say(logger, NODEDB_LOG_WARNING,
                "prefetch: built without liburing, so tickets come back before their pages are in "
                "memory; remedy: liburing-dev, and no NODEDB_NO_LIBURING");
#endif
}

static nodedb_status nodedb_prefetch__check_config(nodedb_prefetch_config *c, size_t system_page_bytes,
                                                   nodedb_error *err) {
    if (c->page_bytes == 0) c->page_bytes = system_page_bytes;
    if (c->queue_depth == 0) c->queue_depth = NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH;
    if ((unsigned)c->method > NODEDB_PREFETCH_IO_URING)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: there is no method %d", (int)c->method);
    if (!nodedb_prefetch__is_power_of_two(c->page_bytes) || c->page_bytes < system_page_bytes ||
        c->page_bytes > NODEDB_PREFETCH_MAX_PAGE_BYTES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                            "prefetch: page_bytes is %llu: a power of two from the system's %llu to %llu "
                            "is needed", (unsigned long long)c->page_bytes, (unsigned long long)system_page_bytes,
                            (unsigned long long)NODEDB_PREFETCH_MAX_PAGE_BYTES);
    if (c->queue_depth < NODEDB_PREFETCH_MIN_QUEUE_DEPTH || c->queue_depth > NODEDB_PREFETCH_MAX_QUEUE_DEPTH)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: queue_depth is %u, outside %d to %d", c->queue_depth,
                            NODEDB_PREFETCH_MIN_QUEUE_DEPTH, NODEDB_PREFETCH_MAX_QUEUE_DEPTH);
    return NODEDB_OK;
}

NODEDB_PREFETCH_API nodedb_prefetch *nodedb_prefetch_create(const nodedb_prefetch_config *config, nodedb_error *err) {
    nodedb_prefetch_config c;
    nodedb_prefetch *p;
    long page_bytes = sysconf(_SC_PAGESIZE);
    void *page;
    unsigned i;
    memset(&c, 0, sizeof c);
    if (config != NULL) c = *config;
    assert(page_bytes > NODEDB_PREFETCH__MIN_PAGE_BYTES && nodedb_prefetch__is_power_of_two((size_t)page_bytes));
    if (nodedb_prefetch__check_config(&c, (size_t)page_bytes, err) != NODEDB_OK) return NULL;
    p = (nodedb_prefetch *)nodedb__alloc_zero(&c.allocator, sizeof *p, NODEDB_CACHE_LINE_BYTES);
    if (p == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "prefetch: no memory for %llu bytes",
                           (unsigned long long)sizeof *p);
        return NULL;
    }
    p->config = c;
    p->system_page_bytes = (size_t)page_bytes;
    for (i = 0; i < NODEDB_PREFETCH_MAX_TICKETS; i++) p->free_slots[i] = NODEDB_PREFETCH_MAX_TICKETS - 1 - i;
    p->free_n = NODEDB_PREFETCH_MAX_TICKETS;
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    page = mmap(NULL, p->system_page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->event_fd < 0 || page == MAP_FAILED) {
        (void)nodedb_fail(err, nodedb_io_status(errno), errno,
                           "prefetch: no descriptor or no page to try the kernel with");
        if (page != MAP_FAILED) (void)munmap(page, p->system_page_bytes);
        nodedb_prefetch_destroy(p);
        return NULL;
    }
    nodedb_prefetch__choose(p, page);
    (void)munmap(page, p->system_page_bytes);
    return p;
}

NODEDB_PREFETCH_API void nodedb_prefetch_destroy(nodedb_prefetch *p) {
    nodedb_allocator allocator;
    if (p == NULL) return;
#ifdef NODEDB_PREFETCH__URING
    if (p->has_ring) io_uring_queue_exit(&p->ring);
#endif
    if (p->pidfd_is_ours) (void)close(p->pidfd);
    if (p->event_fd >= 0) (void)close(p->event_fd);
    allocator = p->config.allocator;
    nodedb__release(&allocator, p, sizeof *p);
}

NODEDB_PREFETCH_API nodedb_prefetch_method nodedb_prefetch_method_in_use(const nodedb_prefetch *p) {
    return p != NULL ? p->method : NODEDB_PREFETCH_AUTO;
}

NODEDB_PREFETCH_API const char *nodedb_prefetch_method_name(nodedb_prefetch_method method) {
    switch (method) {
    case NODEDB_PREFETCH_AUTO: return "auto";
    case NODEDB_PREFETCH_MADVISE: return "madvise";
    case NODEDB_PREFETCH_PROCESS_MADVISE: return "process_madvise";
    case NODEDB_PREFETCH_IO_URING: return "io_uring";
    }
    return "unknown";
}

NODEDB_PREFETCH_API bool nodedb_prefetch_can_wait(const nodedb_prefetch *p) { return p != NULL && p->has_ring; }

NODEDB_PREFETCH_API size_t nodedb_prefetch_page_bytes(const nodedb_prefetch *p) {
    return p != NULL ? p->config.page_bytes : 0;
}

/* ==== faults ====================================================================================================== */

/* The calling thread's own counters; RUSAGE_SELF would be the whole process's. No text of /proc is parsed: its stat
 * line has the command's name in the middle, which may hold spaces and parentheses. */
static nodedb_status nodedb_prefetch__thread_faults(uint64_t *major, uint64_t *minor, nodedb_error *err) {
    struct rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0)
        return nodedb_fail(err, NODEDB_ERR_IO, errno, "prefetch: getrusage(RUSAGE_THREAD) failed");
    *major = (uint64_t)usage.ru_majflt;
    *minor = (uint64_t)usage.ru_minflt;
    return NODEDB_OK;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_start(nodedb_prefetch_faults *f,
                                                               const nodedb_prefetch_faults_config *config,
                                                               nodedb_error *err) {
    nodedb_prefetch_faults fresh;
    nodedb_prefetch_faults_config *c = &fresh.config;
    nodedb_status status = nodedb_prefetch__need(f, err);
    if (status != NODEDB_OK) return status;
    memset(&fresh, 0, sizeof fresh);
    if (config != NULL) *c = *config;
    if (c->interval_ns == 0) c->interval_ns = NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
    if (c->major_faults_max == 0) c->major_faults_max = NODEDB_PREFETCH_DEFAULT_MAJOR_FAULTS_MAX;
    if (c->depth_min == 0) c->depth_min = NODEDB_PREFETCH_DEFAULT_DEPTH_MIN;
    if (c->depth_max == 0) c->depth_max = NODEDB_PREFETCH_DEFAULT_DEPTH_MAX;
    if (c->depth_min > c->depth_max)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: depth_min %u is above depth_max %u", c->depth_min,
                            c->depth_max);
    status = nodedb_prefetch__thread_faults(&fresh.begun_major, &fresh.begun_minor, err);
    if (status != NODEDB_OK) return status;
    fresh.begun_ns = nodedb_now_ns(&c->clock);
    fresh.depth = c->depth_min;
    fresh.owner_tid = (long)syscall(SYS_gettid);
    *f = fresh;
    return NODEDB_OK;
}

static void nodedb_prefetch__set_depth(nodedb_prefetch_faults *f, bool memory_is_short) {
    const nodedb_prefetch_faults_config *c = &f->config;
    bool many_misses = f->miss_rate > NODEDB_PREFETCH__MISS_RATE_HIGH;
    if (memory_is_short) f->depth = f->depth / 2 > c->depth_min ? f->depth / 2 : c->depth_min;
    else if (many_misses) f->depth = f->depth < c->depth_max / 2 ? f->depth * 2 : c->depth_max;
}

static void nodedb_prefetch__set_degraded(nodedb_prefetch_faults *f) {
    double scaled = (double)f->interval_major * (double)f->config.interval_ns / (double)f->interval_elapsed_ns;
    bool degraded = scaled > (double)f->config.major_faults_max;
    if (degraded != f->degraded)
        nodedb_say(&f->config.logger, degraded ? NODEDB_LOG_WARNING : NODEDB_LOG_INFO,
                    "prefetch: thread %ld is %s: %.0f major faults per interval, the limit is %llu", f->owner_tid,
                    degraded ? "degraded" : "well again", scaled, (unsigned long long)f->config.major_faults_max);
    f->degraded = degraded;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_tick(nodedb_prefetch_faults *f, bool memory_is_short,
                                                              nodedb_error *err) {
    uint64_t now, major = 0, minor = 0;
    double all;
    nodedb_status status = nodedb_prefetch__need(f, err);
    if (status != NODEDB_OK) return status;
    if (f->owner_tid == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: these fault counters were not started");
    now = nodedb_now_ns(&f->config.clock);
    if (now < f->begun_ns || now - f->begun_ns < f->config.interval_ns) return NODEDB_OK;
    if ((long)syscall(SYS_gettid) != f->owner_tid)
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "prefetch: these fault counters belong to thread %ld",
                            f->owner_tid);
    status = nodedb_prefetch__thread_faults(&major, &minor, err);
    if (status != NODEDB_OK) return status;

    f->interval_elapsed_ns = now - f->begun_ns;
    f->interval_major = major - f->begun_major;
    f->interval_minor = minor - f->begun_minor;
    f->total_major += f->interval_major;
    f->total_minor += f->interval_minor;
    f->major_per_second = (double)f->interval_major * 1e9 / (double)f->interval_elapsed_ns;
    all = (double)(f->interval_major + f->interval_minor);
    f->miss_rate = all > 0 ? (double)f->interval_major / all : 0;
    f->begun_ns = now, f->begun_major = major, f->begun_minor = minor;
    f->intervals++;
    nodedb_prefetch__set_degraded(f);
    nodedb_prefetch__set_depth(f, memory_is_short);
    return NODEDB_OK;
}

#endif /* NODEDB_PREFETCH_IMPLEMENTED */
#endif /* NODEDB_PREFETCH_IMPLEMENTATION */

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
