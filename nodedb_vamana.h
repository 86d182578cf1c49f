/* nodedb_vamana.h - v0.1 - Vamana (DiskANN) graph index for nearest neighbours, public domain or MIT
 *
 * 1. WHAT IT IS FOR
 *    Finding the k vectors nearest to a query among thousands to billions, approximately but with a recall that the
 *    caller chooses per query, while vectors come and go. One header, one macro, C99 or C++11, no library but libc,
 *    pthreads and libm, and liburing where there is one.
 *    Not for: a few hundred vectors (a loop is as fast, and exact: so is nodedb_vamana_scan); sparse vectors; a writer
 *    and readers at the same time (see THREADS).
 *
 * 2. QUICK START
 *        #define NODEDB_VAMANA_IMPLEMENTATION
 *        #include <nodedb_vamana.h> // compile with -I and the folder it is in
 *
 *        int main(void) {
 *            float points[3][2] = {{0, 0}, {3, 4}, {10, 10}}, query_point[2] = {3, 3};
 *            nodedb_vamana_config config = {0};
 *            nodedb_vamana_query query = {0};
 *            nodedb_vamana_result results[2];
 *            uint32_t found = 0, i;
 *            nodedb_error err;
 *            config.dim = 2;
 *            nodedb_vamana *index = nodedb_vamana_create(&config, &err);
 *            for (i = 0; i < 3; i++) nodedb_vamana_insert(index, 100 + i, points[i], &err);
 *            nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, &err);
 *            query.vector = query_point, query.k = 2;
 *            if (nodedb_vamana_search(searcher, &query, results, &found, NULL, &err) != NODEDB_OK) puts(err.message);
 *            for (i = 0; i < found; i++) printf("%llu: %g\n", (unsigned long long)results[i].id, results[i].distance);
 *            nodedb_vamana_searcher_destroy(searcher);
 *            nodedb_vamana_destroy(index);
 *        }                                        // prints 101: 1 and 100: 18
 *
 *        cc -std=c99 -O2 quick.c -luring -lpthread -lm        (or with -DNODEDB_NO_LIBURING and without -luring)
 *
 * 3. CONCEPTS
 *    Graph     Every vector is a node with at most R (`degree`) edges to others: near ones, and, because an edge is
 *              dropped only if a detour is shorter by the factor alpha, some far ones.
 *    Beam      A search starts at the entry (an approximate medoid) and holds the `beam` nearest nodes that it has met;
 *              it looks at the neighbours of the nearest that it has not yet looked at, until none is left. A wider
 *              beam finds more and costs more, about in proportion.
 *    Slot      A node's place in the arrays. Ids are the caller's, 64 bits; slots are the index's, 32 bits, and reused.
 *    Recall    recall@10: how many of the true ten nearest are among the ten returned, divided by ten.
 *    DELETION  A removed vector is never returned again, but its node leads searches on until a sweep has mended the
 *              graph around it: each node that points to it gets the three nearest of its neighbours instead. Then its
 *              slot is free. A sweep starts when 1/16 of the slots (at least 32) are removed; every remove does 24
 *              nodes of it, so that no more than about an eighth of the slots are ever waiting. `maintain` does it in
 *              idle time.
 *    DISK MODE The graph and an 8-bit code of each float component stay in memory; the walk uses those. The best
 *              `rerank` entries of its beam (default 3 k + 16, at most the beam) then get their exact distance from the
 *              file, read in one batch past the page cache. U8 vectors are as small as codes, so they are kept in
 *              memory and need no rerank.
 *    Filter    A callback that says which ids may be returned. The search asks it about a sample; if it lets a share s
 *              pass, the beam is 1/s times as wide, or, where that costs more, every vector is looked at. So the
 *              results are right for any filter; it must give the same answer for the same id during one search.
 *
 * 4. API BY TASK
 *    make and change  nodedb_vamana_create, _destroy, _insert (an existing id is replaced), _remove, _build, _reserve,
 *                     _maintain, _compact
 *    search           nodedb_vamana_searcher_create, _searcher_destroy, _search, _scan (exact)
 *    ask              nodedb_vamana_count, _dim, _metric_of, _type_of, _degree, _kernel, _memory_bytes, _inspect,
 *                     _contains, _get, _next
 *    files            nodedb_vamana_save, _open, _verify
 *    exact vectors    nodedb_vamana_fetcher_memory, _fetcher_disk, or a struct of the caller's own
 *    kernels          nodedb_vamana_kernels_at, _kernels_usable
 *
 * 5. THREADS
 *    An index is changed by one thread at a time, and nobody searches it or asks it meanwhile: the caller keeps writer
 *    and readers apart. Any number of threads may search and ask at once, each with its own searcher. `save` only
 *    reads. `build` starts threads and joins them before it returns; they call nothing of the caller's. An index on
 *    disk never changes. A fetcher is used by one thread at a time.
 *
 * 6. MEMORY
 *    Per vector: its components, padded to 16 bytes (to 32 above 32 bytes, to 64 from 256 bytes on), 4 (R + 1) bytes of
 *    edges, 8 of id, 1 of state, 6 to 12 of hash table, and 4 of length unless the metric is L2. 128 bytes with R = 64:
 *    about 410. In disk mode a float takes one byte instead of four, and 4 bytes more per vector.
 *    The arrays grow by half when full, which copies them; `reserve` or config.capacity avoids it. They shrink only in
 *    `compact`, and slots are reused before they grow. A searcher has about 128 bytes per entry of its beam for the
 *    visited table (256 KiB at most) and 64 for its lists; on disk also a pool of 128 blocks and an io_uring.
 *    A build needs, beside the index, 8 bytes per vector, and 24 R for each vector of a batch (2% of all).
 *    Search allocates nothing unless its beam or k is larger than any before; insert nothing within the capacity.
 *
 * 7. ERRORS
 *    Every call that can fail returns a nodedb_status (or NULL) and says why in the nodedb_error. Refused input changes
 *    nothing. A NaN or an infinity is refused, with its position. No call returns a NaN.
 *    Damage in a file is NODEDB_ERR_CORRUPT with path and offset, at open or, for exact vectors in disk mode, when they
 *    are read: every block is checked against its checksum each time. A read that fails is tried once more.
 *
 * 8. LIMITS
 *    65,535 components; 2^32 - 2 vectors; R 4 .. 1024; beam and k up to 2^20; length of a vector 1e18. U8 sums are
 *    exact up to 2^24 (258 components), then rounded like any float. Lengths under COSINE below about 1e-38 lose digits
 *    in `get`. Floats are summed in another order by each kernel, so graphs built on different CPUs may differ; with
 *    one kernel (config.kernel) they are the same.
 *
 * 9. ON-DISK FORMAT (version 1; little-endian; blocks of 4096 bytes)
 *    Block 0, the header:
 *        offset  bytes  what
 *             0      8  "NDBVAMAN"
 *             8      4  version, 1
 *            12      4  dim
 *            16      4  type: 0 F32, 1 U8
 *            20      4  metric: 0 L2, 1 IP, 2 COSINE
 *            24      4  degree R
 *            28      4  beam_build
 *            32      4  alpha, float
 *            36      4  slot of the entry, 0xFFFFFFFF if the index is empty
 *            40      8  seed
 *            48      4  slots
 *            52      4  live slots
 *            56      4  removed slots
 *            60      4  greatest squared length so far, float (IP; else 0)
 *            64     72  offsets of ids, states, norms, rows, ranges, codes, vectors, checksums, and the file's size
 *           136      4  CRC-32C of the table of checksums, padding included
 *           140   3952  zeros
 *          4092      4  CRC-32C of the 4092 bytes before
 *    Then, each starting at a block and in this order, so that the offsets follow from the counts:
 *        ids        u64 per slot, 0 if free
 *        states     u8 per slot: 0 free, 1 live, 2 removed but not yet mended
 *        norms      float per slot; not for L2. IP: squared length. COSINE: F32 length, U8 1 / length (0 for zeros)
 *        rows       u32 per slot and R + 1: number of neighbours, their slots, zeros
 *        ranges     F32 only: per component float low, float step: value = low + code * step
 *        codes      F32 only: u8 per slot and component
 *        vectors    as stored (COSINE over F32: of length 1). Up to 4096 bytes long, they do not cross a block: as many
 *                   as fit, then zeros. Longer ones begin at a block each.
 *        checksums  u32 CRC-32C of each block from 1 to the one before this table
 *    Free slots are zeros everywhere. A reader refuses a file whose size or offsets differ from what the counts say.
 *
 * 10. CONFIGURATION MACROS
 *    NODEDB_VAMANA_IMPLEMENTATION  in one file: the implementation
 *    NODEDB_VAMANA_STATIC          the implementation is private to this file
 *    NODEDB_NO_LIBURING            without io_uring: disk mode reads with pread, one by one
 *
 * 11. DEPARTURES FROM THE PAPERS, AND WHY
 *    DiskANN = Subramanya et al., NeurIPS 2019; FreshDiskANN = Singh et al., 2021; ParlayANN = Manohar et al., PPoPP
 *    2024; IP-DiskANN = Xu et al., 2025. Figures: sift10k and sift100k (real SIFT, 128 x u8), `build.sh bench vamana`.
 *    a. One pass, with the final alpha, from an empty graph (as ParlayANN); DiskANN makes two, from a random graph.
 *    b. Prune candidates are the final beam and at most as many expanded nodes that fell out of it, not all expanded
 *       ones.
 *    c. The beam is a sorted array with binary search and memmove, not a heap: at these widths the move is one cache
 *       line or two, and the next node to expand is found by counting on.
 *    d. The visited set is a small table that forgets (as ParlayANN); see the comment at nodedb_vamana__walk.
 *    e. A full row that gets one more edge is pruned to 7/8 of R, not R, so that in high dimensions, where pruning
 *       drops little, not every insert prunes each of its neighbours again. Batch builds prune to R, once per batch.
 *    f. Of vectors equal to a node's own, 3 are kept and shut nobody out; ties are broken at random. By the paper's
 *       rule one is kept. With 2,000 equal vectors among 2,000 others, 16 dimensions, built in a batch, six seeds, a
 *       search for each other one with beam 64 misses 2.6% instead of 9.7% (L2), 0.7% instead of 7.3% (COSINE).
 *    g. Removal: FreshDiskANN prunes the union of all neighbours' neighbours (some 250 candidates) for nearly every
 *       node; here each lost edge is replaced by the 3 nearest of the lost node's neighbours (IP-DiskANN's c), and only
 *       a row that overflows is pruned. IP-DiskANN finds in-neighbours by a search and misses some; the sweep meets
 *       them all. After 20 rounds of replacing 5% of 4,000 vectors: recall@10 at beam 20 0.993, fresh build 0.996; at
 *       10 0.986, 0.973.
 *    h. IP: the graph is built by L2 over vectors with one more component that makes all equally long (DiskANN does
 *       this too), here against the greatest length so far, which may grow.
 *    i. Disk: DiskANN keeps product-quantised codes in memory and reads a node's edges and vector together at each hop;
 *       here 8-bit scalar codes and the edges are in memory, and a query reads once, one batch, at the end. More
 *       memory, one round trip instead of tens. The recall is that of the codes' beam; see `disk/` in the benchmark.
 *
 * 12. LICENCE
 *    Public domain (Unlicense) or MIT, at your choice; see the end of this file and LICENSE.
 */
/* ===================================================================================================================
 * BEGIN NODEDB COMMON BLOCK. The same words in every nodedb_*.h, behind one guard, so that any set of them compiles
 * together. The master stands in nodedb_wal.h; `./build.sh sync` copies it to the others and a test proves them equal.
 * ================================================================================================================ */
#ifndef NODEDB_COMMON_BLOCK
#define NODEDB_COMMON_BLOCK 1

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

/* The name of a status as a sentence; never NULL. Any thread. */
static inline const char *nodedb_status_text(nodedb_status status) {
    switch (status) {
    case NODEDB_OK: return "success";
    case NODEDB_ERR_INVALID: return "an argument is wrong";
    case NODEDB_ERR_STATE: return "the object's state does not allow this call";
    case NODEDB_ERR_NO_MEMORY: return "out of memory";
    case NODEDB_ERR_LIMIT: return "a limit would be passed";
    case NODEDB_ERR_AGAIN: return "not now, try again";
    case NODEDB_ERR_NOT_FOUND: return "not found";
    case NODEDB_ERR_EXISTS: return "exists already";
    case NODEDB_ERR_LOCKED: return "locked by another";
    case NODEDB_ERR_IO: return "input or output failed";
    case NODEDB_ERR_DISK_FULL: return "no space left on the device";
    case NODEDB_ERR_CORRUPT: return "stored data is damaged";
    case NODEDB_ERR_UNSUPPORTED: return "not supported here";
    case NODEDB_ERR_FAULT: return "the task faulted and was abandoned";
    case NODEDB_ERR_DEGRADED: return "refused, degraded after repeated faults";
    case NODEDB_ERR_TIMEOUT: return "the deadline passed";
    case NODEDB_ERR_CANCELLED: return "cancelled";
    case NODEDB_ERR_KEY: return "an encryption key is missing or does not fit";
    }
    return "unknown status";
}

#elif NODEDB_COMMON_BLOCK != 1
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

#if !defined(NODEDB_COMMON_INTERNALS) &&                                                                               \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) || defined(NODEDB_TPC_IMPLEMENTATION) || \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_PREFETCH_IMPLEMENTATION))
#define NODEDB_COMMON_INTERNALS 1
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "include nodedb_*.h before any system header, or compile with -D_GNU_SOURCE"
#endif

#define nodedb__load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define nodedb__load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define nodedb__store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define nodedb__store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define nodedb__add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define nodedb__cas(p, expected, v) \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
#define nodedb__fence_seq_cst() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* Fills `err` (if there is one) and returns `status`, so that `return nodedb__fail(...)` reads as one step. */
#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
static inline nodedb_status
nodedb__fail(nodedb_error *err, nodedb_status status, int sys_errno, const char *format, ...) {
    if (err != NULL) {
        va_list args;
        int used;
        memset(err, 0, sizeof *err);
        err->status = status;
        err->sys_errno = sys_errno;
        va_start(args, format);
        used = vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        if (sys_errno != 0 && used >= 0 && (size_t)used + 4 < sizeof err->message) {
            char reason[96];
            (void)snprintf(reason, sizeof reason, "errno %d", sys_errno);
#if defined(__GLIBC__) && defined(__USE_GNU)
            (void)snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s",
                           strerror_r(sys_errno, reason, sizeof reason));
#else
            (void)strerror_r(sys_errno, reason, sizeof reason);
            (void)snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", reason);
#endif
        }
    }
    return status;
}

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static inline void nodedb__say(const nodedb_logger *logger, nodedb_log_level level, const char *format, ...) {
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
    if (memory != NULL) memset(memory, 0, bytes);
    return memory;
}

static inline void nodedb__release(const nodedb_allocator *allocator, void *memory, size_t bytes) {
    if (memory == NULL) return;
    if (allocator != NULL && allocator->release != NULL)
        allocator->release(allocator->ctx, memory, bytes == 0 ? 1 : bytes);
    else free(memory);
}

static inline uint64_t nodedb__now_ns(const nodedb_clock *clock) {
    struct timespec t;
    if (clock != NULL && clock->now_ns != NULL) return clock->now_ns(clock->ctx);
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* a * b, or false where that does not fit. */
static inline bool nodedb__mul_size(size_t a, size_t b, size_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}

/* Little-endian on disk, whatever the machine. */
static inline void nodedb__put_u16(void *at, uint16_t v) {
    unsigned char *p = (unsigned char *)at;
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}
static inline void nodedb__put_u32(void *at, uint32_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb__put_u16(p, (uint16_t)v);
    nodedb__put_u16(p + 2, (uint16_t)(v >> 16));
}
static inline void nodedb__put_u64(void *at, uint64_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb__put_u32(p, (uint32_t)v);
    nodedb__put_u32(p + 4, (uint32_t)(v >> 32));
}
static inline uint16_t nodedb__get_u16(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}
static inline uint32_t nodedb__get_u32(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb__get_u16(p) | (uint32_t)nodedb__get_u16(p + 2) << 16;
}
static inline uint64_t nodedb__get_u64(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb__get_u32(p) | (uint64_t)nodedb__get_u32(p + 4) << 32;
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
        uint64_t word = nodedb__get_u64(p);
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
static inline uint32_t nodedb__crc32c(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    crc = ~crc;
    crc = nodedb__crc32c_cpu_present() ? nodedb__crc32c_cpu(crc, p, bytes) : nodedb__crc32c_plain(crc, p, bytes);
    return ~crc;
}

/* A small mixer for seeds and hashes: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t nodedb__mix64(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* The system's file calls behind nodedb_io: the same, with EINTR retried and -errno returned. */
#define nodedb__retry(result, call)                                                                                    \
    do { (result) = (call); } while ((result) < 0 && errno == EINTR)

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

/* The status that an errno means. */
static inline nodedb_status nodedb__io_status(int error) {
    return error == ENOSPC || error == EDQUOT ? NODEDB_ERR_DISK_FULL
           : error == ENOMEM                  ? NODEDB_ERR_NO_MEMORY
                                              : NODEDB_ERR_IO;
}

#endif
/* END NODEDB COMMON BLOCK ========================================================================================= */
/* ===================================================================================================================
 * DECLARATIONS
 * ================================================================================================================ */
#ifndef NODEDB_VAMANA_H
#define NODEDB_VAMANA_H

#if defined(NODEDB_VAMANA_STATIC) && defined(__GNUC__)
#define NODEDB_VAMANA_API static __attribute__((unused))
#elif defined(NODEDB_VAMANA_STATIC)
#define NODEDB_VAMANA_API static
#else
#define NODEDB_VAMANA_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define NODEDB_VAMANA_MAX_DIM 65535u              /* components of a vector */
#define NODEDB_VAMANA_MAX_VECTORS 4294967294u     /* slots of one index: 32 bits, and one means none */
#define NODEDB_VAMANA_MAX_LENGTH 1e18f            /* of a vector, Euclidean: no sum of squares overflows */
#define NODEDB_VAMANA_MIN_DEGREE 4u               /* neighbours of a node */
#define NODEDB_VAMANA_MAX_DEGREE 1024u            /* neighbours of a node */
#define NODEDB_VAMANA_MAX_BEAM 1048576u           /* entries of a search's list, so also results of one search */
#define NODEDB_VAMANA_MAX_THREADS 256u            /* threads of one build */
#define NODEDB_VAMANA_QUEUE_DEPTH 128u            /* reads of one fetcher that are under way at once */
#define NODEDB_VAMANA_BLOCK_BYTES 4096u           /* unit of checksums and of disk reads */
#define NODEDB_VAMANA_FORMAT_VERSION 1u           /* of the file */

typedef enum nodedb_vamana_type {
    NODEDB_VAMANA_F32 = 0, /* float components */
    NODEDB_VAMANA_U8       /* uint8_t components */
} nodedb_vamana_type;

/* What "near" means. Every distance that is returned is smaller for nearer vectors, and never a NaN.
 *   L2      squared Euclidean distance
 *   IP      the negative inner product, -<q, x> (so the nearest has the greatest inner product)
 *   COSINE  1 - cos(q, x), from 0 to 2; the cosine with a vector of only zeros is defined as 0, its distance as 1 */
typedef enum nodedb_vamana_metric { NODEDB_VAMANA_L2 = 0, NODEDB_VAMANA_IP, NODEDB_VAMANA_COSINE } nodedb_vamana_metric;

/* An index. A writer (insert, remove, build, maintain, compact, reserve) must have it alone; see THREADS. */
typedef struct nodedb_vamana nodedb_vamana;

/* What one thread needs to search: beam, visited table, buffers, and in disk mode its own reads. */
typedef struct nodedb_vamana_searcher nodedb_vamana_searcher;

/* How an index is. Only `dim` must be set. */
typedef struct nodedb_vamana_config {
    uint32_t dim;                 /* components of every vector, 1 .. NODEDB_VAMANA_MAX_DIM */
    nodedb_vamana_type type;      /* 0: NODEDB_VAMANA_F32 */
    nodedb_vamana_metric metric;  /* 0: NODEDB_VAMANA_L2 */
    uint32_t degree;              /* R, most neighbours of a node. 0: 64 */
    uint32_t beam_build;          /* L, entries of the beam that finds a new node's neighbours. 0: 128 */
    float alpha;                  /* how much longer a detour may be before an edge is kept, 1 .. 2. 0: 1.2 */
    uint64_t capacity;            /* vectors to make room for at once; the index grows by half when full. 0: 64 */
    uint64_t seed;                /* order of a batch build, ties of equal distances. 0 is a seed like any other */
    const char *kernel;           /* name of the distance kernels to use. NULL: the best that this CPU has */
    nodedb_allocator allocator;   /* called only from the threads that call this index */
    nodedb_logger logger;
    nodedb_io io;                 /* used by save */
} nodedb_vamana_config;

/* Makes an empty index. The config is copied. NULL on failure: NODEDB_ERR_INVALID (a field is out of its range),
 * NODEDB_ERR_UNSUPPORTED (this CPU or build lacks the kernel that was named), NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_create(const nodedb_vamana_config *config, nodedb_error *err);

/* Frees the index; NULL is fine. Every searcher and fetcher of it must be destroyed before. */
NODEDB_VAMANA_API void nodedb_vamana_destroy(nodedb_vamana *index);

/* ---- changing (the writer) --------------------------------------------------------------------------------------- */

/* Inserts a vector (`dim` floats or bytes, copied) under an id of the caller's. An id that is there already is
 * replaced. Source: FreshDiskANN section 4. On failure nothing has changed. NODEDB_ERR_INVALID (NULL, a component is
 * NaN or infinite: its position is named; longer than NODEDB_VAMANA_MAX_LENGTH), NODEDB_ERR_NO_MEMORY, NODEDB_ERR_LIMIT
 * (too many vectors), NODEDB_ERR_STATE (opened on disk, read-only). */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_insert(nodedb_vamana *index, uint64_t id, const void *vector,
                                                     nodedb_error *err);

/* Removes a vector: no search returns it from now on. Its node goes on routing until the next sweep (see DELETION) has
 * mended its neighbours; this call does its share of that sweep. NODEDB_ERR_NOT_FOUND, NODEDB_ERR_STATE (read-only). */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_remove(nodedb_vamana *index, uint64_t id, nodedb_error *err);

/* Called by a build between batches, from the building thread; `false` cancels. */
typedef bool (*nodedb_vamana_progress)(void *ctx, uint64_t done, uint64_t total);

/* Inserts `n` vectors (n rows of `dim` components, one after the other, copied) with several threads, into an empty
 * index or one that holds some already. `ids` are n different ones that the index does not hold; NULL: 0 .. n-1. The
 * same seed and input give the same graph whatever `threads` is (0: 1). Source: ParlayANN section 3, prefix doubling.
 * NODEDB_ERR_INVALID (as in insert, the row is named too), NODEDB_ERR_EXISTS (an id twice), NODEDB_ERR_LIMIT,
 * NODEDB_ERR_NO_MEMORY, NODEDB_ERR_STATE: nothing has changed. NODEDB_ERR_CANCELLED: the index is valid and holds those
 * vectors that `done` last counted. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_build(nodedb_vamana *index, const uint64_t *ids, const void *vectors,
                                                    uint64_t n, uint32_t threads, nodedb_vamana_progress progress,
                                                    void *progress_ctx, nodedb_error *err);

/* Makes room for `capacity` vectors in all, so that inserts up to there allocate nothing. NODEDB_ERR_NO_MEMORY,
 * NODEDB_ERR_LIMIT, NODEDB_ERR_STATE. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_reserve(nodedb_vamana *index, uint64_t capacity, nodedb_error *err);

/* Mends the graph around removed vectors and frees their slots, looking at no more than `budget` nodes; starts a sweep
 * if none is under way and there is something to mend. True: there is more to do. Nobody needs to call it, as `remove`
 * does enough by itself; it is for idle time. */
NODEDB_VAMANA_API bool nodedb_vamana_maintain(nodedb_vamana *index, uint64_t budget);

/* Gives memory back: finishes the sweep, moves the vectors together and shrinks the arrays to their number. Takes time
 * and, for that time, memory in proportion to the index. Cursors of `next` start again. NODEDB_ERR_NO_MEMORY (nothing
 * has changed but the sweep), NODEDB_ERR_STATE. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_compact(nodedb_vamana *index, nodedb_error *err);

/* ---- asking (any thread, while there is no writer) --------------------------------------------------------------- */

NODEDB_VAMANA_API uint64_t nodedb_vamana_count(const nodedb_vamana *index); /* vectors that a search can return */
NODEDB_VAMANA_API uint32_t nodedb_vamana_dim(const nodedb_vamana *index);
NODEDB_VAMANA_API nodedb_vamana_metric nodedb_vamana_metric_of(const nodedb_vamana *index);
NODEDB_VAMANA_API nodedb_vamana_type nodedb_vamana_type_of(const nodedb_vamana *index);
NODEDB_VAMANA_API uint32_t nodedb_vamana_degree(const nodedb_vamana *index);
NODEDB_VAMANA_API const char *nodedb_vamana_kernel(const nodedb_vamana *index); /* name of the kernels that it uses */

/* Bytes that the index holds from its allocator (its searchers and fetchers count for themselves). */
NODEDB_VAMANA_API uint64_t nodedb_vamana_memory_bytes(const nodedb_vamana *index);

/* Slots in use, those of removed vectors that are not yet mended, and those free for reuse, in numbers of vectors. */
typedef struct nodedb_vamana_info {
    uint64_t live, removed, free, capacity;
    double mean_degree; /* neighbours per live node; costs a look at every node */
    uint64_t entry_id;  /* id of the node where every search starts; 0 if there is none */
} nodedb_vamana_info;
NODEDB_VAMANA_API void nodedb_vamana_inspect(const nodedb_vamana *index, nodedb_vamana_info *info);

NODEDB_VAMANA_API bool nodedb_vamana_contains(const nodedb_vamana *index, uint64_t id);

/* The vector of `id` as `dim` floats, whatever the type: bit for bit what was inserted, but for COSINE over F32 up to
 * the rounding of a division and a multiplication. NODEDB_ERR_NOT_FOUND; of an index opened on disk also NODEDB_ERR_IO,
 * NODEDB_ERR_CORRUPT, NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_get(const nodedb_vamana *index, uint64_t id, float *out,
                                                  nodedb_error *err);

/* Walks over all ids: set *cursor to 0, call until false. An id that stays in the index for the whole walk comes
 * exactly once, even if others are inserted and removed between the calls; one that is replaced meanwhile changes its
 * place, so it may come twice or not at all. After compact, start again. */
NODEDB_VAMANA_API bool nodedb_vamana_next(const nodedb_vamana *index, uint64_t *cursor, uint64_t *id);

/* ---- exact vectors from elsewhere -------------------------------------------------------------------------------- */

/* Where the rerank gets exact vectors of an index that was opened on disk. `prefetch_batch` announces the next `n`
 * slots (n <= batch_max) and forgets those announced before; `fetch` waits for one of them and returns `dim` components
 * in the stored form (COSINE over F32: of length 1) and this machine's byte order, valid until the next prefetch_batch,
 * or NULL and the reason. A slot out of range is NODEDB_ERR_INVALID, one that was not announced NODEDB_ERR_STATE. Not
 * for two threads at once. */
typedef struct nodedb_vamana_fetcher {
    void *ctx;
    uint32_t dim;
    uint32_t batch_max; /* slots in one prefetch_batch */
    nodedb_status (*prefetch_batch)(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err);
    const void *(*fetch)(void *ctx, uint32_t slot, nodedb_error *err);
    void (*counters)(void *ctx, uint64_t *reads, uint64_t *retries); /* so far; NULL: it does not count */
    void (*destroy)(void *ctx);                                      /* NULL: nothing to free */
} nodedb_vamana_fetcher;

/* Over an index in memory. NODEDB_ERR_INVALID, NODEDB_ERR_STATE (its vectors are on disk). */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_fetcher_memory(const nodedb_vamana *index, nodedb_vamana_fetcher *fetcher,
                                                             nodedb_error *err);

/* Over the file of an index opened with NODEDB_VAMANA_ON_DISK: io_uring with registered buffers where the system allows
 * it, else pread; `batch_max` 0: 128. A read that fails or does not match its checksum is repeated once, then reported
 * by fetch: NODEDB_ERR_IO, NODEDB_ERR_CORRUPT. Allocates only here. NODEDB_ERR_INVALID, NODEDB_ERR_STATE,
 * NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_fetcher_disk(const nodedb_vamana *index, uint32_t batch_max,
                                                           nodedb_vamana_fetcher *fetcher, nodedb_error *err);

/* ---- searching --------------------------------------------------------------------------------------------------- */

typedef struct nodedb_vamana_searcher_config {
    uint32_t beam_max;                     /* largest k and beam to prepare for. 0: 128. A larger one allocates once */
    const nodedb_vamana_fetcher *fetcher;  /* for an index on disk; borrowed. NULL: one of its own, by fetcher_disk */
} nodedb_vamana_searcher_config;

/* Makes a searcher over an index; one thread at a time may use it, and it stays good while the index changes. config
 * NULL: all defaults. NODEDB_ERR_INVALID, NODEDB_ERR_LIMIT (beam_max), NODEDB_ERR_NO_MEMORY, NODEDB_ERR_IO. */
NODEDB_VAMANA_API nodedb_vamana_searcher *nodedb_vamana_searcher_create(const nodedb_vamana *index,
                                                                        const nodedb_vamana_searcher_config *config,
                                                                        nodedb_error *err);

/* Before its index is destroyed; NULL is fine. */
NODEDB_VAMANA_API void nodedb_vamana_searcher_destroy(nodedb_vamana_searcher *searcher);
NODEDB_VAMANA_API uint64_t nodedb_vamana_searcher_memory_bytes(const nodedb_vamana_searcher *searcher);

/* One question. */
typedef struct nodedb_vamana_query {
    const void *vector;  /* `dim` components of the index's type */
    uint32_t k;          /* results wanted, 1 .. NODEDB_VAMANA_MAX_BEAM. 0: 10 */
    uint32_t beam;       /* width of the search: more is slower and finds more. Raised to k if it is less. 0: 64 */
    uint32_t rerank;     /* disk mode: how many of the beam get their exact distance, k .. beam. 0: see DISK MODE */
    bool (*filter)(void *ctx, uint64_t id); /* true: this id may be returned. NULL: all may */
    void *filter_ctx;
} nodedb_vamana_query;

typedef struct nodedb_vamana_result {
    uint64_t id;
    float distance; /* see nodedb_vamana_metric */
} nodedb_vamana_result;

/* What one question cost. */
typedef struct nodedb_vamana_stats {
    uint64_t hops;      /* nodes whose neighbours were looked at */
    uint64_t distances; /* computed, the rerank's included */
    uint64_t reads;     /* from the disk, the repeated ones included */
    uint64_t retries;   /* reads that were repeated */
    bool scanned;       /* the filter left so little that every vector was looked at */
} nodedb_vamana_stats;

/* Greedy beam search (DiskANN algorithm 1): up to k results, the nearest first, ties by id; *found says how many (fewer
 * than k only if the index or the filter has no more). `results` has room for k. `stats` may be NULL. Allocates only if
 * k, beam or the share that passes the filter needs a longer list than this searcher has had. NODEDB_ERR_INVALID (NULL,
 * NaN, infinity, too long; a searcher of another index), NODEDB_ERR_LIMIT (k or beam), NODEDB_ERR_NO_MEMORY; on disk
 * also NODEDB_ERR_IO, NODEDB_ERR_CORRUPT (never a worse answer in silence). On failure *found is 0. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_search(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                     nodedb_vamana_result *results, uint32_t *found,
                                                     nodedb_vamana_stats *stats, nodedb_error *err);

/* The truth: the same by looking at every vector (on disk: reading every vector). `beam` and `rerank` are not used. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_scan(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                   nodedb_vamana_result *results, uint32_t *found,
                                                   nodedb_vamana_stats *stats, nodedb_error *err);

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* Writes the index to `path` so that a crash leaves the old file or the new: into `path`.tmp, synced, renamed over
 * `path`, the directory synced. Reads the index only, so searches may go on. NODEDB_ERR_INVALID, NODEDB_ERR_IO,
 * NODEDB_ERR_DISK_FULL, NODEDB_ERR_NO_MEMORY, NODEDB_ERR_STATE (opened on disk): the old file stands, except that a
 * failure to sync the directory leaves the new one. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_save(const nodedb_vamana *index, const char *path, nodedb_error *err);

typedef enum nodedb_vamana_mode {
    NODEDB_VAMANA_IN_MEMORY = 0, /* everything is read; the index can change */
    NODEDB_VAMANA_ON_DISK        /* read-only; exact F32 vectors stay in the file, 8-bit codes of them are in memory */
} nodedb_vamana_mode;

typedef struct nodedb_vamana_open_config {
    nodedb_vamana_mode mode;
    uint64_t capacity;          /* in memory: vectors to make room for. 0: as many as there are */
    bool no_uring;              /* on disk: read by pread even where io_uring would work */
    bool no_direct;             /* on disk: read through the page cache */
    const char *kernel;         /* as in nodedb_vamana_config */
    nodedb_allocator allocator;
    nodedb_logger logger;
    nodedb_io io;               /* with a `pread` of the caller's, disk mode does not use io_uring */
} nodedb_vamana_open_config;

/* Opens what `save` wrote; nothing is built again. Everything is checked: what is read against its checksums, every
 * count, offset, neighbour and id against its range. config NULL: all defaults. NULL on failure: NODEDB_ERR_NOT_FOUND
 * (no such file), NODEDB_ERR_CORRUPT (message and `offset` say where), NODEDB_ERR_UNSUPPORTED (a later format; a
 * kernel), NODEDB_ERR_IO, NODEDB_ERR_NO_MEMORY, NODEDB_ERR_INVALID. */
NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_open(const char *path, const nodedb_vamana_open_config *config,
                                                    nodedb_error *err);

/* Reads the whole file and checks all that open checks, and every vector besides. Errors as in open. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_verify(const char *path, const nodedb_vamana_open_config *config,
                                                     nodedb_error *err);

/* ---- distance kernels -------------------------------------------------------------------------------------------- */

/* One set of distance functions over n components, 1 .. 65,536; pointers need the alignment of their type only. l2 is
 * the squared distance, dot the inner product. Sums of integers are exact, and then rounded to float. Sums of floats
 * are off by at most (n / 4 + 8) / 2^24 of the sum of their terms' magnitudes, whatever the order of the additions.
 *   4-bit codes: n is a multiple of 64; a code has n / 2 bytes, in blocks of 32 for 64 components: byte b of block k
 * has component 64 k + b in its low half and 64 k + 32 + b in its high one. The query q has n components in plain
 * order. l2_code4 is the sum of c (4 c - q): the part that depends on the code c of (2 c - q / 4) squared. */
typedef struct nodedb_vamana_kernels {
    const char *name; /* "plain", "sse2", "avx2", "avx512", "avx512vnni", "neon", "neondot" */
    float (*l2_f32)(const float *a, const float *b, size_t n);
    float (*dot_f32)(const float *a, const float *b, size_t n);
    float (*l2_u8)(const uint8_t *a, const uint8_t *b, size_t n);
    float (*dot_u8)(const uint8_t *a, const uint8_t *b, size_t n);
    float (*l2_i8)(const int8_t *a, const int8_t *b, size_t n);
    float (*dot_i8)(const int8_t *a, const int8_t *b, size_t n);
    float (*dot_i8_u8)(const int8_t *q, const uint8_t *c, size_t n); /* a query against an 8-bit code */
    float (*l2_code4)(const int8_t *q, const uint8_t *code, size_t n);
    float (*dot_code4)(const int8_t *q, const uint8_t *code, size_t n);
    float (*dot_f32_u8)(const float *a, const uint8_t *b, size_t n); /* a query against an 8-bit code */
} nodedb_vamana_kernels;

/* The kernel sets of this build, the plainest first: 0, 1, ... until NULL. */
NODEDB_VAMANA_API const nodedb_vamana_kernels *nodedb_vamana_kernels_at(size_t i);
NODEDB_VAMANA_API bool nodedb_vamana_kernels_usable(const nodedb_vamana_kernels *kernels); /* has this CPU got it? */

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_VAMANA_H */

/* ===================================================================================================================
 * IMPLEMENTATION
 * Rooms, from the data structure up to the API: distance kernels; the index and its arrays; ids; distances between
 * vectors; the searcher and its walk; neighbours (pruning, linking); removal and the sweep; batch build; search; files;
 * fetchers.
 * ================================================================================================================ */
#if defined(NODEDB_VAMANA_IMPLEMENTATION) && !defined(NODEDB_VAMANA_IMPLEMENTED)
#define NODEDB_VAMANA_IMPLEMENTED 1

#include <assert.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#if defined(__x86_64__) && defined(__GNUC__)
#define NODEDB_VAMANA__X86 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && defined(__AARCH64EL__)
#define NODEDB_VAMANA__NEON 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif
#if !defined(NODEDB_NO_LIBURING) && defined(__has_include)
#if __has_include(<liburing.h>)
#define NODEDB_VAMANA__URING 1
#include <liburing.h>
#endif
#endif

/* ===================================================================================================================
 * DISTANCE KERNELS
 * One set per instruction set, in one file without compiler flags: each function names its own target. Every set has
 * the functions of nodedb_vamana_kernels and the same over a list of slots, so that the inner loop of a search makes
 * one call per node instead of one per neighbour. But for the plain set, a set is made of small pieces, for which
 * macros write the loops:
 *
 *   sums    the type of a running sum, whose lanes are added up at the end; of floats, signed or unsigned integers
 *   step    adds to the sums what WIDTH components of a query and a vector contribute
 *   rest    the same for the last components, fewer than WIDTH
 *   totals  the lanes of four sums added up: four numbers, of which `first` gives the first and `store` all, as floats
 *
 * The list takes four vectors at a time: what is made of the query (its odd bytes, say) is made once for the four, the
 * additions of the lanes are shared, and memory has four streams to deliver. Measured with AVX2, a list of 24 vectors
 * of 128 bytes: 6.7 -> 5.3 ns each from the cache; of 384 floats: 21 -> 15 ns, and 160 -> 130 ns from memory. One
 * vector alone is summed up in the same order, so that a distance is the same to the last bit however it was asked for.
 *
 * Integer sums: u8 products stay below 2^32 for all dimensions (255 * 255 * 65,536), those with an i8 below 2^31
 * (128 * 255 * 65,536), so 32-bit lanes that wrap add up to the right total in any order.
 * ================================================================================================================ */
#define NODEDB_VAMANA__INLINE static inline __attribute__((always_inline))
#define NODEDB_VAMANA__AHEAD 8        /* vectors whose memory is asked for before they are needed; measured: 4 .. 16 */
#define NODEDB_VAMANA__AHEAD_LINES 8  /* cache lines of each; the hardware fetches the rest of a long vector */
#define NODEDB_VAMANA__CODE4_BLOCK 64 /* components in a block of a 4-bit code: 32 bytes */
#if !defined(NODEDB_VAMANA__TARGET)   /* our tests define both, to run in an emulation what this CPU has not got */
#define NODEDB_VAMANA__TARGET(names) __attribute__((target(names)))
#define NODEDB_VAMANA__CPU_HAS(name) __builtin_cpu_supports(name)
#endif

typedef void nodedb_vamana__many(const void *query, const uint8_t *base, size_t stride, const uint32_t *slots,
                                 size_t count, size_t n, float *out);

typedef struct nodedb_vamana__kernel_set {
    nodedb_vamana_kernels one;
    nodedb_vamana__many *l2_f32, *dot_f32, *l2_u8, *dot_u8, *l2_i8, *dot_i8, *dot_i8_u8, *l2_code4, *dot_code4,
        *dot_f32_u8;
} nodedb_vamana__kernel_set;

static inline void nodedb_vamana__prefetch(const uint8_t *at, size_t bytes) {
    size_t line, lines = (bytes + NODEDB_CACHE_LINE_BYTES - 1) / NODEDB_CACHE_LINE_BYTES;
    if (lines > NODEDB_VAMANA__AHEAD_LINES) lines = NODEDB_VAMANA__AHEAD_LINES;
    for (line = 0; line < lines; line++) __builtin_prefetch(at + line * NODEDB_CACHE_LINE_BYTES);
    __asm__ __volatile__("" : : "r"(at)); /* or gcc takes this for a function without effect, and drops the calls */
}
/* Asks for the vectors in slots[from .. to). */
static inline void nodedb_vamana__prefetch_slots(const uint8_t *base, size_t stride, const uint32_t *slots, size_t from,
                                                 size_t to) {
    for (; from < to; from++) nodedb_vamana__prefetch(base + (size_t)slots[from] * stride, stride);
}
/* The vector in slots[i], whatever its components. */
static inline const void *nodedb_vamana__at(const uint8_t *base, size_t stride, const uint32_t *slots, size_t i) {
    return base + (size_t)slots[i] * stride;
}
static inline size_t nodedb_vamana__least(size_t a, size_t b) { return a < b ? a : b; }

/* A set's kernel NAME, of its pieces. A vector has PER_ITEM components in each of its items: two for a 4-bit code. */
#define NODEDB_VAMANA__ONE(target, set, sums, name, query_type, vector_type, width, per_item)                          \
    target static float nodedb_vamana__##set##_##name(const query_type *q, const vector_type *v, size_t n) {           \
        nodedb_vamana__##set##_##sums s = nodedb_vamana__##set##_zero_##sums();                                        \
        size_t i;                                                                                                      \
        for (i = 0; i + (width) <= n; i += (width))                                                                    \
            s = nodedb_vamana__##set##_step_##name(s, q + i, v + i / (per_item));                                      \
        if (i < n) s = nodedb_vamana__##set##_rest_##name(s, q + i, v + i / (per_item), n - i);                        \
        return nodedb_vamana__first_##sums(nodedb_vamana__##set##_totals_##sums(s, s, s, s));                          \
    }
/* And NAME_many, four at a time. USUAL: a dimension worth a copy of the code in which it is a constant; or 0. */
#define NODEDB_VAMANA__FOURS(target, set, sums, name, query_type, vector_type, width, per_item, usual)                 \
    NODEDB_VAMANA__ONE(target, set, sums, name, query_type, vector_type, width, per_item)                              \
    target NODEDB_VAMANA__INLINE void nodedb_vamana__##set##_##name##_four(                                            \
        const query_type *q, const vector_type *v0, const vector_type *v1, const vector_type *v2,                      \
        const vector_type *v3, size_t n, float *out) {                                                                 \
        nodedb_vamana__##set##_##sums s0 = nodedb_vamana__##set##_zero_##sums(), s1 = s0, s2 = s0, s3 = s0;            \
        size_t i;                                                                                                      \
        for (i = 0; i + (width) <= n; i += (width)) {                                                                  \
            s0 = nodedb_vamana__##set##_step_##name(s0, q + i, v0 + i / (per_item));                                   \
            s1 = nodedb_vamana__##set##_step_##name(s1, q + i, v1 + i / (per_item));                                   \
            s2 = nodedb_vamana__##set##_step_##name(s2, q + i, v2 + i / (per_item));                                   \
            s3 = nodedb_vamana__##set##_step_##name(s3, q + i, v3 + i / (per_item));                                   \
        }                                                                                                              \
        if (i < n) {                                                                                                   \
            s0 = nodedb_vamana__##set##_rest_##name(s0, q + i, v0 + i / (per_item), n - i);                            \
            s1 = nodedb_vamana__##set##_rest_##name(s1, q + i, v1 + i / (per_item), n - i);                            \
            s2 = nodedb_vamana__##set##_rest_##name(s2, q + i, v2 + i / (per_item), n - i);                            \
            s3 = nodedb_vamana__##set##_rest_##name(s3, q + i, v3 + i / (per_item), n - i);                            \
        }                                                                                                              \
        nodedb_vamana__store_##sums(out, nodedb_vamana__##set##_totals_##sums(s0, s1, s2, s3));                        \
    }                                                                                                                  \
    target NODEDB_VAMANA__INLINE void nodedb_vamana__##set##_##name##_each(                                            \
        const query_type *q, const uint8_t *base, size_t stride, const uint32_t *slots, size_t count, size_t n,        \
        float *out) {                                                                                                  \
        size_t i;                                                                                                      \
        nodedb_vamana__prefetch_slots(base, stride, slots, 0, nodedb_vamana__least(NODEDB_VAMANA__AHEAD, count));      \
        for (i = 0; i + 4 <= count; i += 4) {                                                                          \
            nodedb_vamana__prefetch_slots(base, stride, slots, i + NODEDB_VAMANA__AHEAD,                               \
                                          nodedb_vamana__least(i + NODEDB_VAMANA__AHEAD + 4, count));                  \
            nodedb_vamana__##set##_##name##_four(                                                                      \
                q, (const vector_type *)nodedb_vamana__at(base, stride, slots, i),                                     \
                (const vector_type *)nodedb_vamana__at(base, stride, slots, i + 1),                                    \
                (const vector_type *)nodedb_vamana__at(base, stride, slots, i + 2),                                    \
                (const vector_type *)nodedb_vamana__at(base, stride, slots, i + 3), n, out + i);                       \
        }                                                                                                              \
        for (; i < count; i++)                                                                                         \
            out[i] = nodedb_vamana__##set##_##name(                                                                    \
                q, (const vector_type *)nodedb_vamana__at(base, stride, slots, i), n);                                 \
    }                                                                                                                  \
    target static void nodedb_vamana__##set##_##name##_many(const void *query, const uint8_t *base, size_t stride,     \
                                                            const uint32_t *slots, size_t count, size_t n,             \
                                                            float *out) {                                              \
        const query_type *q = (const query_type *)query;                                                               \
        if ((usual) != 0 && n == (usual))                                                                              \
            nodedb_vamana__##set##_##name##_each(q, base, stride, slots, count, (usual), out);                         \
        else nodedb_vamana__##set##_##name##_each(q, base, stride, slots, count, n, out);                              \
    }
/* NAME_many, one at a time: for sets that are seldom used, as it is a fifth of the code. */
#define NODEDB_VAMANA__ONE_BY_ONE(set, name, query_type, vector_type)                                                  \
    static void nodedb_vamana__##set##_##name##_many(const void *query, const uint8_t *base, size_t stride,            \
                                                     const uint32_t *slots, size_t count, size_t n, float *out) {      \
        size_t i;                                                                                                      \
        nodedb_vamana__prefetch_slots(base, stride, slots, 0, nodedb_vamana__least(NODEDB_VAMANA__AHEAD, count));      \
        for (i = 0; i < count; i++) {                                                                                  \
            nodedb_vamana__prefetch_slots(base, stride, slots, i + NODEDB_VAMANA__AHEAD,                               \
                                          nodedb_vamana__least(i + NODEDB_VAMANA__AHEAD + 1, count));                  \
            out[i] = nodedb_vamana__##set##_##name((const query_type *)query,                                          \
                                                   (const vector_type *)nodedb_vamana__at(base, stride, slots, i), n); \
        }                                                                                                              \
    }
#define NODEDB_VAMANA__ONES(target, set, sums, name, query_type, vector_type, width, per_item, usual)                  \
    NODEDB_VAMANA__ONE(target, set, sums, name, query_type, vector_type, width, per_item)                              \
    NODEDB_VAMANA__ONE_BY_ONE(set, name, query_type, vector_type)

/* All kernels of a set, made by FOURS or ONES. */
#define NODEDB_VAMANA__FLOAT_KERNELS(make, target, set, width)                                                         \
    make(target, set, f32, l2_f32, float, float, width, 1, 0)                                                          \
    make(target, set, f32, dot_f32, float, float, width, 1, 0)                                                         \
    make(target, set, f32, dot_f32_u8, float, uint8_t, width, 1, 0)
#define NODEDB_VAMANA__INTEGER_KERNELS(make, target, set, bytes_width, code4_width)                                    \
    make(target, set, u32, l2_u8, uint8_t, uint8_t, bytes_width, 1, 0)                                                 \
    make(target, set, u32, dot_u8, uint8_t, uint8_t, bytes_width, 1, 0)                                                \
    make(target, set, u32, l2_i8, int8_t, int8_t, bytes_width, 1, 0)                                                   \
    make(target, set, i32, dot_i8, int8_t, int8_t, bytes_width, 1, 0)                                                  \
    make(target, set, i32, dot_i8_u8, int8_t, uint8_t, bytes_width, 1, 0)                                              \
    make(target, set, i32, l2_code4, int8_t, uint8_t, code4_width, 2, 128)                                             \
    make(target, set, i32, dot_code4, int8_t, uint8_t, code4_width, 2, 128)

/* The table of a set, whose functions of floats may be those of another. */
#define NODEDB_VAMANA__SET(set, floats)                                                                                \
    static const nodedb_vamana__kernel_set nodedb_vamana__set_##set = {                                                \
        {#set, nodedb_vamana__##floats##_l2_f32, nodedb_vamana__##floats##_dot_f32, nodedb_vamana__##set##_l2_u8,      \
         nodedb_vamana__##set##_dot_u8, nodedb_vamana__##set##_l2_i8, nodedb_vamana__##set##_dot_i8,                   \
         nodedb_vamana__##set##_dot_i8_u8, nodedb_vamana__##set##_l2_code4, nodedb_vamana__##set##_dot_code4,          \
         nodedb_vamana__##floats##_dot_f32_u8},                                                                        \
        nodedb_vamana__##floats##_l2_f32_many, nodedb_vamana__##floats##_dot_f32_many,                                 \
        nodedb_vamana__##set##_l2_u8_many, nodedb_vamana__##set##_dot_u8_many, nodedb_vamana__##set##_l2_i8_many,      \
        nodedb_vamana__##set##_dot_i8_many, nodedb_vamana__##set##_dot_i8_u8_many,                                     \
        nodedb_vamana__##set##_l2_code4_many, nodedb_vamana__##set##_dot_code4_many,                                   \
        nodedb_vamana__##floats##_dot_f32_u8_many};

/* A step for the last components of vectors: zeros contribute nothing to any distance, so it pads with them. */
#define NODEDB_VAMANA__PADDED_REST(inlined, set, sums, name, query_type, vector_type, width)                           \
    inlined nodedb_vamana__##set##_##sums nodedb_vamana__##set##_rest_##name(                                          \
        nodedb_vamana__##set##_##sums s, const query_type *q, const vector_type *v, size_t left) {                     \
        query_type x[width] = {0};                                                                                     \
        vector_type y[width] = {0};                                                                                    \
        memcpy(x, q, left * sizeof x[0]);                                                                              \
        memcpy(y, v, left * sizeof y[0]);                                                                              \
        return nodedb_vamana__##set##_step_##name(s, x, y);                                                            \
    }
/* For a step of one block of codes, of which there are only whole ones. */
#define NODEDB_VAMANA__NO_REST(inlined, set, name)                                                                     \
    inlined nodedb_vamana__##set##_i32 nodedb_vamana__##set##_rest_##name(                                             \
        nodedb_vamana__##set##_i32 s, const int8_t *q, const uint8_t *code, size_t left) {                             \
        (void)q, (void)code, (void)left;                                                                               \
        assert(left == 0);                                                                                             \
        return s;                                                                                                      \
    }
/* The pieces for floats, the same for every set but the plain one. A `vector` has `lanes` floats; the set has
 * multiply_add (a * b + c), load_part_f32 (of fewer floats, then zeros) and bytes_to_f32. */
#define NODEDB_VAMANA__FLOATS(inlined, set, vector, lanes, zero, load, subtract)                                       \
    typedef struct { vector a, b; } nodedb_vamana__##set##_f32; /* two chains, as one would wait for each addition */  \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_zero_f32(void) {                                         \
        nodedb_vamana__##set##_f32 s;                                                                                  \
        s.a = s.b = zero;                                                                                              \
        return s;                                                                                                      \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_add_l2_f32(vector s, vector x, vector y) {                                   \
        vector d = subtract(x, y);                                                                                     \
        return nodedb_vamana__##set##_multiply_add(d, d, s);                                                           \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_add_dot_f32(vector s, vector x, vector y) {                                  \
        return nodedb_vamana__##set##_multiply_add(x, y, s);                                                           \
    }                                                                                                                  \
    NODEDB_VAMANA__FLOAT_STEPS(inlined, set, l2_f32, lanes, load)                                                      \
    NODEDB_VAMANA__FLOAT_STEPS(inlined, set, dot_f32, lanes, load)                                                     \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_step_dot_f32_u8(nodedb_vamana__##set##_f32 s,            \
                                                                              const float *q, const uint8_t *v) {      \
        s.a = nodedb_vamana__##set##_multiply_add(load(q), nodedb_vamana__##set##_bytes_to_f32(v), s.a);               \
        s.b = nodedb_vamana__##set##_multiply_add(load(q + (lanes)), nodedb_vamana__##set##_bytes_to_f32(v + (lanes)), \
                                                  s.b);                                                                \
        return s;                                                                                                      \
    }                                                                                                                  \
    NODEDB_VAMANA__PADDED_REST(inlined, set, f32, dot_f32_u8, float, uint8_t, 2 * (lanes))
#define NODEDB_VAMANA__FLOAT_STEPS(inlined, set, name, lanes, load)                                                    \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_step_##name(nodedb_vamana__##set##_f32 s,                \
                                                                          const float *q, const float *v) {            \
        s.a = nodedb_vamana__##set##_add_##name(s.a, load(q), load(v));                                                \
        s.b = nodedb_vamana__##set##_add_##name(s.b, load(q + (lanes)), load(v + (lanes)));                            \
        return s;                                                                                                      \
    }                                                                                                                  \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_rest_##name(                                             \
        nodedb_vamana__##set##_f32 s, const float *q, const float *v, size_t left) {                                   \
        if (left >= (lanes)) {                                                                                         \
            s.a = nodedb_vamana__##set##_add_##name(s.a, load(q), load(v));                                            \
            q += (lanes), v += (lanes), left -= (lanes);                                                               \
        }                                                                                                              \
        if (left > 0)                                                                                                  \
            s.b = nodedb_vamana__##set##_add_##name(s.b, nodedb_vamana__##set##_load_part_f32(q, left),                \
                                                    nodedb_vamana__##set##_load_part_f32(v, left));                    \
        return s;                                                                                                      \
    }
#define NODEDB_VAMANA__ANY /* no target: what every CPU of the architecture has */

/* ---- plain C ----------------------------------------------------------------------------------------------------- */

/* Floats: four chains, as one would wait for each addition. */
#define NODEDB_VAMANA__PLAIN_FLOATS(name, vector_type, term)                                                           \
    static float nodedb_vamana__plain_##name(const float *a, const vector_type *b, size_t n) {                         \
        float sum[4] = {0, 0, 0, 0};                                                                                   \
        size_t i, j;                                                                                                   \
        for (i = 0; i + 4 <= n; i += 4)                                                                                \
            for (j = 0; j < 4; j++) sum[j] += term(a[i + j], (float)b[i + j]);                                         \
        for (; i < n; i++) sum[0] += term(a[i], (float)b[i]);                                                          \
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);                                                                  \
    }                                                                                                                  \
    NODEDB_VAMANA__ONE_BY_ONE(plain, name, float, vector_type)
#define NODEDB_VAMANA__PLAIN_BYTES(name, query_type, vector_type, sum_type, term)                                      \
    static float nodedb_vamana__plain_##name(const query_type *a, const vector_type *b, size_t n) {                    \
        sum_type sum = 0;                                                                                              \
        size_t i;                                                                                                      \
        for (i = 0; i < n; i++) sum += (sum_type)term((int)a[i], (int)b[i]);                                           \
        return (float)sum;                                                                                             \
    }                                                                                                                  \
    NODEDB_VAMANA__ONE_BY_ONE(plain, name, query_type, vector_type)
#define NODEDB_VAMANA__PLAIN_CODE4(name, term)                                                                         \
    static float nodedb_vamana__plain_##name(const int8_t *q, const uint8_t *code, size_t n) {                         \
        int32_t sum = 0;                                                                                               \
        size_t i, half = NODEDB_VAMANA__CODE4_BLOCK / 2;                                                               \
        assert(n % NODEDB_VAMANA__CODE4_BLOCK == 0);                                                                   \
        for (i = 0; i < n / 2; i++) { /* a byte's two components are half a block apart */                             \
            const int8_t *at = q + (i / half * 2) * half + i % half;                                                   \
            sum += term((int)at[0], code[i] % 16) + term((int)at[half], code[i] / 16);                                 \
        }                                                                                                              \
        return (float)sum;                                                                                             \
    }                                                                                                                  \
    NODEDB_VAMANA__ONE_BY_ONE(plain, name, int8_t, uint8_t)
#define NODEDB_VAMANA__SQUARED_DIFFERENCE(a, b) (((a) - (b)) * ((a) - (b)))
#define NODEDB_VAMANA__PRODUCT(a, b) ((a) * (b))
#define NODEDB_VAMANA__CODE4_TERM(q, c) ((c) * (4 * (c) - (q)))

NODEDB_VAMANA__PLAIN_FLOATS(l2_f32, float, NODEDB_VAMANA__SQUARED_DIFFERENCE)
NODEDB_VAMANA__PLAIN_FLOATS(dot_f32, float, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_FLOATS(dot_f32_u8, uint8_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_BYTES(l2_u8, uint8_t, uint8_t, uint32_t, NODEDB_VAMANA__SQUARED_DIFFERENCE)
NODEDB_VAMANA__PLAIN_BYTES(dot_u8, uint8_t, uint8_t, uint32_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_BYTES(l2_i8, int8_t, int8_t, uint32_t, NODEDB_VAMANA__SQUARED_DIFFERENCE)
NODEDB_VAMANA__PLAIN_BYTES(dot_i8, int8_t, int8_t, int32_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_BYTES(dot_i8_u8, int8_t, uint8_t, int32_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_CODE4(l2_code4, NODEDB_VAMANA__CODE4_TERM)
NODEDB_VAMANA__PLAIN_CODE4(dot_code4, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__SET(plain, plain)

#if defined(NODEDB_VAMANA__X86)
/* ---- x86-64: SSE2, AVX2, AVX-512 --------------------------------------------------------------------------------- */

NODEDB_VAMANA__INLINE float nodedb_vamana__first_f32(__m128 v) { return _mm_cvtss_f32(v); }
NODEDB_VAMANA__INLINE float nodedb_vamana__first_i32(__m128i v) { return (float)_mm_cvtsi128_si32(v); }
NODEDB_VAMANA__INLINE float nodedb_vamana__first_u32(__m128i v) { return (float)(uint32_t)_mm_cvtsi128_si32(v); }
NODEDB_VAMANA__INLINE void nodedb_vamana__store_f32(float *out, __m128 v) { _mm_storeu_ps(out, v); }
NODEDB_VAMANA__INLINE void nodedb_vamana__store_i32(float *out, __m128i v) { _mm_storeu_ps(out, _mm_cvtepi32_ps(v)); }
NODEDB_VAMANA__INLINE void nodedb_vamana__store_u32(float *out, __m128i v) {
    __m128 high = _mm_cvtepi32_ps(_mm_srli_epi32(v, 16)); /* exact halves, so that rounding is done once, as in C */
    __m128 low = _mm_cvtepi32_ps(_mm_and_si128(v, _mm_set1_epi32(65535)));
    _mm_storeu_ps(out, _mm_add_ps(_mm_mul_ps(high, _mm_set1_ps(65536)), low));
}

/* The pieces for bytes. The bytes at even and at odd places become 16-bit numbers, by `u`: zeros above, or `i`: the
 * sign; those are multiplied and added in pairs. The set has load, load_part (of fewer bytes, then zeros), products
 * (a * b + c * d, added in pairs) and transpose (all lanes of each of four into one). */
#define NODEDB_VAMANA__X86_BYTES(inlined, set, vector, mm, si)                                                         \
    typedef vector nodedb_vamana__##set##_u32, nodedb_vamana__##set##_i32;                                             \
    inlined vector nodedb_vamana__##set##_zero_u32(void) { return mm##_setzero_##si(); }                               \
    inlined vector nodedb_vamana__##set##_zero_i32(void) { return mm##_setzero_##si(); }                               \
    inlined __m128i nodedb_vamana__##set##_totals_u32(vector s0, vector s1, vector s2, vector s3) {                    \
        return nodedb_vamana__##set##_transpose(s0, s1, s2, s3);                                                       \
    }                                                                                                                  \
    inlined __m128i nodedb_vamana__##set##_totals_i32(vector s0, vector s1, vector s2, vector s3) {                    \
        return nodedb_vamana__##set##_transpose(s0, s1, s2, s3);                                                       \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_even_u(vector x) { return mm##_and_##si(x, mm##_set1_epi16(255)); }          \
    inlined vector nodedb_vamana__##set##_odd_u(vector x) { return mm##_srli_epi16(x, 8); }                            \
    inlined vector nodedb_vamana__##set##_even_i(vector x) { return mm##_srai_epi16(mm##_slli_epi16(x, 8), 8); }       \
    inlined vector nodedb_vamana__##set##_odd_i(vector x) { return mm##_srai_epi16(x, 8); }                            \
    inlined vector nodedb_vamana__##set##_squares(vector a, vector b, vector c, vector d) {                            \
        vector ab = mm##_sub_epi16(a, b), cd = mm##_sub_epi16(c, d);                                                   \
        return nodedb_vamana__##set##_products(ab, ab, cd, cd);                                                        \
    }                                                                                                                  \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, l2_u8, squares, uint8_t, u, uint8_t, u)                    \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, dot_u8, products, uint8_t, u, uint8_t, u)                  \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, l2_i8, squares, int8_t, i, int8_t, i)                      \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, dot_i8, products, int8_t, i, int8_t, i)
#define NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, name, terms, query_type, q_is, vector_type, v_is)      \
    inlined vector nodedb_vamana__##set##_add_##name(vector s, vector x, vector y) {                                   \
        return mm##_add_epi32(s, nodedb_vamana__##set##_##terms(                                                       \
                                     nodedb_vamana__##set##_even_##q_is(x), nodedb_vamana__##set##_even_##v_is(y),     \
                                     nodedb_vamana__##set##_odd_##q_is(x), nodedb_vamana__##set##_odd_##v_is(y)));     \
    }                                                                                                                  \
    NODEDB_VAMANA__X86_LOADS(inlined, set, vector, name, query_type, vector_type)
#define NODEDB_VAMANA__X86_LOADS(inlined, set, vector, name, query_type, vector_type)                                  \
    inlined vector nodedb_vamana__##set##_step_##name(vector s, const query_type *q, const vector_type *v) {           \
        return nodedb_vamana__##set##_add_##name(s, nodedb_vamana__##set##_load(q), nodedb_vamana__##set##_load(v));   \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_rest_##name(vector s, const query_type *q, const vector_type *v,             \
                                                      size_t left) {                                                   \
        return nodedb_vamana__##set##_add_##name(s, nodedb_vamana__##set##_load_part(q, left),                         \
                                                 nodedb_vamana__##set##_load_part(v, left));                           \
    }

/* A vector's worth of 4-bit codes against the query's bytes for their low and high halves: 16-bit sums of four
 * components each. The codes are the unsigned side of maddubs, the query or 4 c (at most 60) the signed one. A term of
 * dot lies within -1,920 .. 1,905, one of l2 within -1,005 .. 2,820; eight fit into 16 bits. */
#define NODEDB_VAMANA__X86_NIBBLES(inlined, set, vector, mm, si)                                                       \
    inlined vector nodedb_vamana__##set##_low(vector c) { return mm##_and_##si(c, mm##_set1_epi8(15)); }               \
    inlined vector nodedb_vamana__##set##_high(vector c) {                                                             \
        return mm##_and_##si(mm##_srli_epi16(c, 4), mm##_set1_epi8(15));                                               \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_fours_dot_code4(vector c, vector q_low, vector q_high) {                     \
        return mm##_add_epi16(mm##_maddubs_epi16(nodedb_vamana__##set##_low(c), q_low),                                \
                              mm##_maddubs_epi16(nodedb_vamana__##set##_high(c), q_high));                             \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_fours_l2_code4(vector c, vector q_low, vector q_high) {                      \
        vector low = nodedb_vamana__##set##_low(c), high = nodedb_vamana__##set##_high(c);                             \
        return mm##_sub_epi16(nodedb_vamana__##set##_fours_dot_code4(c, mm##_slli_epi16(low, 2),                       \
                                                                     mm##_slli_epi16(high, 2)),                        \
                              nodedb_vamana__##set##_fours_dot_code4(c, q_low, q_high));                               \
    }

/* SSE2: every x86-64. */
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_multiply_add(__m128 a, __m128 b, __m128 c) {
    return _mm_add_ps(_mm_mul_ps(a, b), c);
}
static __m128 nodedb_vamana__sse2_load_part_f32(const float *p, size_t count) {
    float part[4] = {0, 0, 0, 0};
    memcpy(part, p, count * sizeof *p);
    return _mm_loadu_ps(part);
}
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_bytes_to_f32(const uint8_t *p) {
    __m128i zero = _mm_setzero_si128();
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero));
}
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
static __m128i nodedb_vamana__sse2_load_part(const void *p, size_t bytes) {
    uint8_t part[16] = {0};
    memcpy(part, p, bytes);
    return nodedb_vamana__sse2_load(part);
}
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_products(__m128i a, __m128i b, __m128i c, __m128i d) {
    return _mm_add_epi32(_mm_madd_epi16(a, b), _mm_madd_epi16(c, d));
}
/* Four numbers of each into one: (a0 + a2) + (a1 + a3), and so on. */
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_transpose_f32(__m128 a, __m128 b, __m128 c, __m128 d) {
    __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_transpose(__m128i a, __m128i b, __m128i c, __m128i d) {
    __m128i ab = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    __m128i cd = _mm_add_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    return _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__INLINE, sse2, __m128, 4, _mm_setzero_ps(), _mm_loadu_ps, _mm_sub_ps)
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__INLINE, sse2, __m128i, _mm, si128)
NODEDB_VAMANA__X86_BYTE_STEPS(NODEDB_VAMANA__INLINE, sse2, __m128i, _mm, dot_i8_u8, products, int8_t, i, uint8_t, u)
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_totals_f32(nodedb_vamana__sse2_f32 s0, nodedb_vamana__sse2_f32 s1,
                                                            nodedb_vamana__sse2_f32 s2, nodedb_vamana__sse2_f32 s3) {
    return nodedb_vamana__sse2_transpose_f32(_mm_add_ps(s0.a, s0.b), _mm_add_ps(s1.a, s1.b), _mm_add_ps(s2.a, s2.b),
                                             _mm_add_ps(s3.a, s3.b));
}
/* There is no maddubs yet: the codes become 16-bit numbers, for which c (4 c - q) is one product. */
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_dot_terms(__m128i c, __m128i q) { return _mm_madd_epi16(c, q); }
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_l2_terms(__m128i c, __m128i q) {
    return _mm_madd_epi16(c, _mm_sub_epi16(_mm_slli_epi16(c, 2), q));
}
#define NODEDB_VAMANA__SSE2_CODE4(name, terms)                                                                         \
    NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_step_##name(__m128i s, const int8_t *q, const uint8_t *code) {   \
        const __m128i nibble = _mm_set1_epi16(15);                                                                     \
        size_t i;                                                                                                      \
        for (i = 0; i < 32; i += 16) {                                                                                 \
            __m128i c = nodedb_vamana__sse2_load(code + i);                                                            \
            __m128i low = nodedb_vamana__sse2_load(q + i), high = nodedb_vamana__sse2_load(q + 32 + i);                \
            s = _mm_add_epi32(s, terms(_mm_and_si128(c, nibble), nodedb_vamana__sse2_even_i(low)));                    \
            s = _mm_add_epi32(s, terms(_mm_and_si128(_mm_srli_epi16(c, 8), nibble), nodedb_vamana__sse2_odd_i(low)));  \
            s = _mm_add_epi32(s, terms(_mm_and_si128(_mm_srli_epi16(c, 4), nibble), nodedb_vamana__sse2_even_i(high)));\
            s = _mm_add_epi32(s, terms(_mm_srli_epi16(c, 12), nodedb_vamana__sse2_odd_i(high)));                       \
        }                                                                                                              \
        return s;                                                                                                      \
    }                                                                                                                  \
    NODEDB_VAMANA__NO_REST(NODEDB_VAMANA__INLINE, sse2, name)
NODEDB_VAMANA__SSE2_CODE4(l2_code4, nodedb_vamana__sse2_l2_terms)
NODEDB_VAMANA__SSE2_CODE4(dot_code4, nodedb_vamana__sse2_dot_terms)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__ONES, NODEDB_VAMANA__ANY, sse2, 8)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__ONES, NODEDB_VAMANA__ANY, sse2, 16, 64)
NODEDB_VAMANA__SET(sse2, sse2)

/* AVX2 and FMA: x86-64-v3. */
#define NODEDB_VAMANA__AVX2 NODEDB_VAMANA__TARGET("avx2,fma")
#define NODEDB_VAMANA__AVX2_INLINE NODEDB_VAMANA__AVX2 NODEDB_VAMANA__INLINE
#define NODEDB_VAMANA__AVX2_ONLY_INLINE NODEDB_VAMANA__TARGET("avx2") NODEDB_VAMANA__INLINE /* for AVX-512 to use */
NODEDB_VAMANA__AVX2_INLINE __m256 nodedb_vamana__avx2_multiply_add(__m256 a, __m256 b, __m256 c) {
    return _mm256_fmadd_ps(a, b, c);
}
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
/* A mask for the first 0 .. 8 of eight lanes. */
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_first_lanes(size_t count) {
    static const int32_t masks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return nodedb_vamana__avx2_load(masks + 8 - count);
}
NODEDB_VAMANA__AVX2_INLINE __m256 nodedb_vamana__avx2_load_part_f32(const float *p, size_t count) {
    return _mm256_maskload_ps(p, nodedb_vamana__avx2_first_lanes(count));
}
NODEDB_VAMANA__AVX2 static __m256i nodedb_vamana__avx2_load_odd_part(const void *p, size_t bytes) {
    uint8_t part[32] = {0};
    memcpy(part, p, bytes);
    return nodedb_vamana__avx2_load(part);
}
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_load_part(const void *p, size_t bytes) {
    if (bytes % 4 != 0) return nodedb_vamana__avx2_load_odd_part(p, bytes); /* there are masks for fours only */
    return _mm256_maskload_epi32((const int *)p, nodedb_vamana__avx2_first_lanes(bytes / 4));
}
NODEDB_VAMANA__AVX2_INLINE __m256 nodedb_vamana__avx2_bytes_to_f32(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_products(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_add_epi32(_mm256_madd_epi16(a, b), _mm256_madd_epi16(c, d));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128 nodedb_vamana__avx2_half_f32(__m256 v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128i nodedb_vamana__avx2_half(__m256i v) {
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128 nodedb_vamana__avx2_transpose_f32(__m256 a, __m256 b, __m256 c, __m256 d) {
    return nodedb_vamana__sse2_transpose_f32(nodedb_vamana__avx2_half_f32(a), nodedb_vamana__avx2_half_f32(b),
                                             nodedb_vamana__avx2_half_f32(c), nodedb_vamana__avx2_half_f32(d));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128i nodedb_vamana__avx2_transpose(__m256i a, __m256i b, __m256i c, __m256i d) {
    return nodedb_vamana__sse2_transpose(nodedb_vamana__avx2_half(a), nodedb_vamana__avx2_half(b),
                                         nodedb_vamana__avx2_half(c), nodedb_vamana__avx2_half(d));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_sub_ps)
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256i, _mm256, si256)
NODEDB_VAMANA__X86_BYTE_STEPS(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256i, _mm256, dot_i8_u8, products, int8_t, i,
                              uint8_t, u)
NODEDB_VAMANA__X86_NIBBLES(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256i, _mm256, si256)
NODEDB_VAMANA__AVX2_INLINE __m128 nodedb_vamana__avx2_totals_f32(nodedb_vamana__avx2_f32 s0, nodedb_vamana__avx2_f32 s1,
                                                                 nodedb_vamana__avx2_f32 s2,
                                                                 nodedb_vamana__avx2_f32 s3) {
    return nodedb_vamana__avx2_transpose_f32(_mm256_add_ps(s0.a, s0.b), _mm256_add_ps(s1.a, s1.b),
                                             _mm256_add_ps(s2.a, s2.b), _mm256_add_ps(s3.a, s3.b));
}
/* A step of two blocks, added up in 16 bits: eight terms. */
#define NODEDB_VAMANA__AVX2_CODE4(name)                                                                                \
    NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_block_##name(const int8_t *q, const uint8_t *code) {        \
        return nodedb_vamana__avx2_fours_##name(nodedb_vamana__avx2_load(code), nodedb_vamana__avx2_load(q),           \
                                                nodedb_vamana__avx2_load(q + 32));                                     \
    }                                                                                                                  \
    NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_step_##name(__m256i s, const int8_t *q,                     \
                                                                       const uint8_t *code) {                          \
        __m256i eights = _mm256_add_epi16(nodedb_vamana__avx2_block_##name(q, code),                                   \
                                          nodedb_vamana__avx2_block_##name(q + 64, code + 32));                        \
        return _mm256_add_epi32(s, _mm256_madd_epi16(eights, _mm256_set1_epi16(1)));                                   \
    }                                                                                                                  \
    NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_rest_##name(__m256i s, const int8_t *q,                     \
                                                                       const uint8_t *code, size_t left) {             \
        (void)left;                                                                                                    \
        assert(left == NODEDB_VAMANA__CODE4_BLOCK);                                                                    \
        return _mm256_add_epi32(                                                                                       \
            s, _mm256_madd_epi16(nodedb_vamana__avx2_block_##name(q, code), _mm256_set1_epi16(1)));                    \
    }
NODEDB_VAMANA__AVX2_CODE4(l2_code4)
NODEDB_VAMANA__AVX2_CODE4(dot_code4)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX2, avx2, 16)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX2, avx2, 32, 128)
NODEDB_VAMANA__SET(avx2, avx2)

/* AVX-512 F and BW: parts of vectors are loaded under a mask. */
#define NODEDB_VAMANA__AVX512 NODEDB_VAMANA__TARGET("avx512f,avx512bw")
#define NODEDB_VAMANA__AVX512_INLINE NODEDB_VAMANA__AVX512 NODEDB_VAMANA__INLINE
NODEDB_VAMANA__AVX512_INLINE __m512 nodedb_vamana__avx512_multiply_add(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
}
NODEDB_VAMANA__AVX512_INLINE __m512 nodedb_vamana__avx512_load_part_f32(const float *p, size_t count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
NODEDB_VAMANA__AVX512_INLINE __m512 nodedb_vamana__avx512_bytes_to_f32(const uint8_t *p) {
    /* masked: gcc 12 as C++ warns of uninitialised variables in its own unmasked ones; so are others below */
    return _mm512_maskz_cvtepi32_ps(
        0xFFFF, _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i *)(const void *)p)));
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_load(const void *p) { return _mm512_loadu_si512(p); }
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_load_part(const void *p, size_t bytes) {
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << bytes) - 1, p);
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_products(__m512i a, __m512i b, __m512i c, __m512i d) {
    return _mm512_add_epi32(_mm512_madd_epi16(a, b), _mm512_madd_epi16(c, d));
}
NODEDB_VAMANA__AVX512_INLINE __m256i nodedb_vamana__avx512_half(__m512i v) {
    return _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xF, v, 0), _mm512_maskz_extracti64x4_epi64(0xF, v, 1));
}
NODEDB_VAMANA__AVX512_INLINE __m128i nodedb_vamana__avx512_transpose(__m512i a, __m512i b, __m512i c, __m512i d) {
    return nodedb_vamana__avx2_transpose(nodedb_vamana__avx512_half(a), nodedb_vamana__avx512_half(b),
                                         nodedb_vamana__avx512_half(c), nodedb_vamana__avx512_half(d));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps,
                      _mm512_sub_ps)
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512i, _mm512, si512)
NODEDB_VAMANA__X86_BYTE_STEPS(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512i, _mm512, dot_i8_u8, products, int8_t, i,
                              uint8_t, u)
NODEDB_VAMANA__X86_NIBBLES(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512i, _mm512, si512)
NODEDB_VAMANA__AVX512_INLINE __m256 nodedb_vamana__avx512_half_f32(nodedb_vamana__avx512_f32 s) {
    __m512d v = _mm512_castps_pd(_mm512_add_ps(s.a, s.b));
    return _mm256_add_ps(_mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xF, v, 0)),
                         _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xF, v, 1)));
}
NODEDB_VAMANA__AVX512_INLINE __m128 nodedb_vamana__avx512_totals_f32(
    nodedb_vamana__avx512_f32 s0, nodedb_vamana__avx512_f32 s1, nodedb_vamana__avx512_f32 s2,
    nodedb_vamana__avx512_f32 s3) {
    return nodedb_vamana__avx2_transpose_f32(nodedb_vamana__avx512_half_f32(s0), nodedb_vamana__avx512_half_f32(s1),
                                             nodedb_vamana__avx512_half_f32(s2), nodedb_vamana__avx512_half_f32(s3));
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_add_l2_code4(__m512i s, __m512i c, __m512i q_low,
                                                                        __m512i q_high) {
    __m512i fours = nodedb_vamana__avx512_fours_l2_code4(c, q_low, q_high);
    return _mm512_add_epi32(s, _mm512_madd_epi16(fours, _mm512_set1_epi16(1)));
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_add_dot_code4(__m512i s, __m512i c, __m512i q_low,
                                                                         __m512i q_high) {
    __m512i fours = nodedb_vamana__avx512_fours_dot_code4(c, q_low, q_high);
    return _mm512_add_epi32(s, _mm512_madd_epi16(fours, _mm512_set1_epi16(1)));
}
/* A vector is two blocks of a code. The lower halves of the query's two blocks meet its low nibbles. */
#define NODEDB_VAMANA__AVX512_CODE4(inlined, set, name)                                                                \
    inlined __m512i nodedb_vamana__##set##_blocks_##name(__m512i s, __m512i c, __m512i q0, __m512i q1) {               \
        return nodedb_vamana__##set##_add_##name(s, c, _mm512_maskz_shuffle_i64x2(0xFF, q0, q1, 0x44),                 \
                                                 _mm512_maskz_shuffle_i64x2(0xFF, q0, q1, 0xEE));                      \
    }                                                                                                                  \
    inlined __m512i nodedb_vamana__##set##_step_##name(__m512i s, const int8_t *q, const uint8_t *code) {              \
        return nodedb_vamana__##set##_blocks_##name(s, nodedb_vamana__avx512_load(code),                               \
                                                    nodedb_vamana__avx512_load(q),                                     \
                                                    nodedb_vamana__avx512_load(q + 64));                               \
    }                                                                                                                  \
    inlined __m512i nodedb_vamana__##set##_rest_##name(__m512i s, const int8_t *q, const uint8_t *code,                \
                                                       size_t left) {                                                  \
        assert(left == NODEDB_VAMANA__CODE4_BLOCK);                                                                    \
        return nodedb_vamana__##set##_blocks_##name(s, nodedb_vamana__avx512_load_part(code, left / 2),                \
                                                    nodedb_vamana__avx512_load(q), _mm512_setzero_si512());            \
    }
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__AVX512_INLINE, avx512, l2_code4)
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__AVX512_INLINE, avx512, dot_code4)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX512, avx512, 32)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX512, avx512, 64, 128)
NODEDB_VAMANA__SET(avx512, avx512)

/* AVX-512 VNNI: multiplies, adds in pairs or in fours, and accumulates, in one instruction. Its form for bytes takes
 * one unsigned and one signed side, so it is for codes; all others take the one for 16 bits. */
#define NODEDB_VAMANA__VNNI NODEDB_VAMANA__TARGET("avx512f,avx512bw,avx512vnni")
#define NODEDB_VAMANA__VNNI_INLINE NODEDB_VAMANA__VNNI NODEDB_VAMANA__INLINE
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_load(const void *p) { return _mm512_loadu_si512(p); }
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_load_part(const void *p, size_t bytes) {
    return nodedb_vamana__avx512_load_part(p, bytes);
}
NODEDB_VAMANA__VNNI_INLINE __m128i nodedb_vamana__avx512vnni_transpose(__m512i a, __m512i b, __m512i c, __m512i d) {
    return nodedb_vamana__avx512_transpose(a, b, c, d);
}
/* Not onto the running sum, which would then wait for each multiplication. */
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_products(__m512i a, __m512i b, __m512i c, __m512i d) {
    return _mm512_dpwssd_epi32(_mm512_madd_epi16(a, b), c, d);
}
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_add_dot_i8_u8(__m512i s, __m512i q, __m512i c) {
    return _mm512_dpbusd_epi32(s, c, q);
}
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, __m512i, _mm512, si512)
NODEDB_VAMANA__X86_LOADS(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, __m512i, dot_i8_u8, int8_t, uint8_t)
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_add_dot_code4(__m512i s, __m512i c, __m512i q_low,
                                                                           __m512i q_high) {
    s = _mm512_dpbusd_epi32(s, nodedb_vamana__avx512_low(c), q_low);
    return _mm512_dpbusd_epi32(s, nodedb_vamana__avx512_high(c), q_high);
}
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_add_l2_code4(__m512i s, __m512i c, __m512i q_low,
                                                                          __m512i q_high) {
    __m512i low = nodedb_vamana__avx512_low(c), high = nodedb_vamana__avx512_high(c), none = _mm512_setzero_si512();
    s = nodedb_vamana__avx512vnni_add_dot_code4(s, c, _mm512_slli_epi16(low, 2), _mm512_slli_epi16(high, 2));
    return _mm512_sub_epi32(s, nodedb_vamana__avx512vnni_add_dot_code4(none, c, q_low, q_high));
}
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, l2_code4)
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, dot_code4)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__VNNI, avx512vnni, 64, 128)
NODEDB_VAMANA__SET(avx512vnni, avx512)
#endif /* NODEDB_VAMANA__X86 */

#if defined(NODEDB_VAMANA__NEON)
/* ---- aarch64: NEON, and NEON with the dot product ---------------------------------------------------------------- */

static inline float nodedb_vamana__first_f32(float32x4_t v) { return vgetq_lane_f32(v, 0); }
static inline float nodedb_vamana__first_i32(int32x4_t v) { return (float)vgetq_lane_s32(v, 0); }
static inline float nodedb_vamana__first_u32(uint32x4_t v) { return (float)vgetq_lane_u32(v, 0); }
static inline void nodedb_vamana__store_f32(float *out, float32x4_t v) { vst1q_f32(out, v); }
static inline void nodedb_vamana__store_i32(float *out, int32x4_t v) { vst1q_f32(out, vcvtq_f32_s32(v)); }
static inline void nodedb_vamana__store_u32(float *out, uint32x4_t v) { vst1q_f32(out, vcvtq_f32_u32(v)); }

NODEDB_VAMANA__INLINE float32x4_t nodedb_vamana__neon_multiply_add(float32x4_t a, float32x4_t b, float32x4_t c) {
    return vfmaq_f32(c, a, b);
}
static float32x4_t nodedb_vamana__neon_load_part_f32(const float *p, size_t count) {
    float part[4] = {0, 0, 0, 0};
    memcpy(part, p, count * sizeof *p);
    return vld1q_f32(part);
}
NODEDB_VAMANA__INLINE float32x4_t nodedb_vamana__neon_bytes_to_f32(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__INLINE, neon, float32x4_t, 4, vdupq_n_f32(0), vld1q_f32, vsubq_f32)
NODEDB_VAMANA__INLINE float32x4_t nodedb_vamana__neon_totals_f32(nodedb_vamana__neon_f32 s0, nodedb_vamana__neon_f32 s1,
                                                                 nodedb_vamana__neon_f32 s2,
                                                                 nodedb_vamana__neon_f32 s3) {
    return vpaddq_f32(vpaddq_f32(vaddq_f32(s0.a, s0.b), vaddq_f32(s1.a, s1.b)),
                      vpaddq_f32(vaddq_f32(s2.a, s2.b), vaddq_f32(s3.a, s3.b)));
}

/* The pieces for integers. A set has add_u8, add_i8 and add_i8_u8, which add the products of 16 bytes, and add_l2_code4
 * and add_dot_code4, which take 16 bytes of a code and the query's bytes for its low and for its high nibbles. */
#define NODEDB_VAMANA__NEON_INTEGERS(inlined, set)                                                                     \
    typedef uint32x4_t nodedb_vamana__##set##_u32;                                                                     \
    typedef int32x4_t nodedb_vamana__##set##_i32;                                                                      \
    inlined uint32x4_t nodedb_vamana__##set##_zero_u32(void) { return vdupq_n_u32(0); }                                \
    inlined int32x4_t nodedb_vamana__##set##_zero_i32(void) { return vdupq_n_s32(0); }                                 \
    inlined uint32x4_t nodedb_vamana__##set##_step_l2_u8(uint32x4_t s, const uint8_t *q, const uint8_t *v) {           \
        uint8x16_t d = vabdq_u8(vld1q_u8(q), vld1q_u8(v));                                                             \
        return nodedb_vamana__##set##_add_u8(s, d, d);                                                                 \
    }                                                                                                                  \
    inlined uint32x4_t nodedb_vamana__##set##_step_dot_u8(uint32x4_t s, const uint8_t *q, const uint8_t *v) {          \
        return nodedb_vamana__##set##_add_u8(s, vld1q_u8(q), vld1q_u8(v));                                             \
    }                                                                                                                  \
    inlined uint32x4_t nodedb_vamana__##set##_step_l2_i8(uint32x4_t s, const int8_t *q, const int8_t *v) {             \
        uint8x16_t d = vreinterpretq_u8_s8(vabdq_s8(vld1q_s8(q), vld1q_s8(v))); /* up to 255 */                        \
        return nodedb_vamana__##set##_add_u8(s, d, d);                                                                 \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_step_dot_i8(int32x4_t s, const int8_t *q, const int8_t *v) {              \
        return nodedb_vamana__##set##_add_i8(s, vld1q_s8(q), vld1q_s8(v));                                             \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_step_dot_i8_u8(int32x4_t s, const int8_t *q, const uint8_t *v) {          \
        return nodedb_vamana__##set##_add_i8_u8(s, vld1q_s8(q), vld1q_u8(v));                                          \
    }                                                                                                                  \
    NODEDB_VAMANA__PADDED_REST(inlined, set, u32, l2_u8, uint8_t, uint8_t, 16)                                         \
    NODEDB_VAMANA__PADDED_REST(inlined, set, u32, dot_u8, uint8_t, uint8_t, 16)                                        \
    NODEDB_VAMANA__PADDED_REST(inlined, set, u32, l2_i8, int8_t, int8_t, 16)                                           \
    NODEDB_VAMANA__PADDED_REST(inlined, set, i32, dot_i8, int8_t, int8_t, 16)                                          \
    NODEDB_VAMANA__PADDED_REST(inlined, set, i32, dot_i8_u8, int8_t, uint8_t, 16)                                      \
    NODEDB_VAMANA__NEON_CODE4(inlined, set, l2_code4)                                                                  \
    NODEDB_VAMANA__NEON_CODE4(inlined, set, dot_code4)                                                                 \
    inlined uint32x4_t nodedb_vamana__##set##_totals_u32(uint32x4_t s0, uint32x4_t s1, uint32x4_t s2,                  \
                                                         uint32x4_t s3) {                                              \
        return vpaddq_u32(vpaddq_u32(s0, s1), vpaddq_u32(s2, s3));                                                     \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_totals_i32(int32x4_t s0, int32x4_t s1, int32x4_t s2, int32x4_t s3) {      \
        return vpaddq_s32(vpaddq_s32(s0, s1), vpaddq_s32(s2, s3));                                                     \
    }
#define NODEDB_VAMANA__NEON_CODE4(inlined, set, name)                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_half_##name(int32x4_t s, const int8_t *q, const uint8_t *code) {          \
        uint8x16_t c = vld1q_u8(code);                                                                                 \
        return nodedb_vamana__##set##_add_##name(s, vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(15))),                  \
                                                 vreinterpretq_s8_u8(vshrq_n_u8(c, 4)), vld1q_s8(q),                   \
                                                 vld1q_s8(q + 32));                                                    \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_step_##name(int32x4_t s, const int8_t *q, const uint8_t *code) {          \
        s = nodedb_vamana__##set##_half_##name(s, q, code);                                                            \
        return nodedb_vamana__##set##_half_##name(s, q + 16, code + 16);                                               \
    }                                                                                                                  \
    NODEDB_VAMANA__NO_REST(inlined, set, name)

/* NEON: every aarch64. */
NODEDB_VAMANA__INLINE uint32x4_t nodedb_vamana__neon_add_u8(uint32x4_t s, uint8x16_t x, uint8x16_t y) {
    s = vpadalq_u16(s, vmull_u8(vget_low_u8(x), vget_low_u8(y)));
    return vpadalq_u16(s, vmull_high_u8(x, y));
}
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_i8(int32x4_t s, int8x16_t x, int8x16_t y) {
    s = vpadalq_s16(s, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    return vpadalq_s16(s, vmull_high_s8(x, y));
}
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_i8_u8(int32x4_t s, int8x16_t x, uint8x16_t y) {
    int16x8_t x0 = vmovl_s8(vget_low_s8(x)), x1 = vmovl_high_s8(x);
    int16x8_t y0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(y))), y1 = vreinterpretq_s16_u16(vmovl_high_u8(y));
    s = vmlal_high_s16(vmlal_s16(s, vget_low_s16(x0), vget_low_s16(y0)), x0, y0);
    return vmlal_high_s16(vmlal_s16(s, vget_low_s16(x1), vget_low_s16(y1)), x1, y1);
}
/* In 16 bits: two terms to a lane, and each is below 2,821. */
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_dot_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                  int8x16_t q_low, int8x16_t q_high) {
    int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(low), vget_low_s8(q_low)), vget_low_s8(high), vget_low_s8(q_high));
    int16x8_t second = vmlal_high_s8(vmull_high_s8(low, q_low), high, q_high);
    return vpadalq_s16(vpadalq_s16(s, first), second);
}
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_l2_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                 int8x16_t q_low, int8x16_t q_high) {
    int8x16_t low4 = vshlq_n_s8(low, 2), high4 = vshlq_n_s8(high, 2);
    int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(low), vget_low_s8(low4)), vget_low_s8(high), vget_low_s8(high4));
    int16x8_t second = vmlal_high_s8(vmull_high_s8(low, low4), high, high4);
    first = vmlsl_s8(vmlsl_s8(first, vget_low_s8(low), vget_low_s8(q_low)), vget_low_s8(high), vget_low_s8(q_high));
    second = vmlsl_high_s8(vmlsl_high_s8(second, low, q_low), high, q_high);
    return vpadalq_s16(vpadalq_s16(s, first), second);
}
NODEDB_VAMANA__NEON_INTEGERS(NODEDB_VAMANA__INLINE, neon)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__ANY, neon, 8)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__ANY, neon, 16, 64)
NODEDB_VAMANA__SET(neon, neon)

/* NEON with the dot product: armv8.2-a with an option, armv8.4-a. By assembler, as not every compiler's arm_neon.h has
 * these instructions unless the whole file is compiled for them. gcc's target says all that there is, not what is
 * added, and what it is made to inline there must not have been compiled for more (-march=armv8-a+crypto): so the
 * helpers that all sets share are merely `inline`. */
#if defined(__ARM_FEATURE_DOTPROD)
#define NODEDB_VAMANA__NEONDOT
#elif defined(__clang__)
#define NODEDB_VAMANA__NEONDOT NODEDB_VAMANA__TARGET("dotprod")
#else
#define NODEDB_VAMANA__NEONDOT NODEDB_VAMANA__TARGET("arch=armv8.2-a+dotprod")
#endif
#define NODEDB_VAMANA__NEONDOT_INLINE NODEDB_VAMANA__NEONDOT NODEDB_VAMANA__INLINE
NODEDB_VAMANA__NEONDOT_INLINE uint32x4_t nodedb_vamana__neondot_add_u8(uint32x4_t s, uint8x16_t x, uint8x16_t y) {
    __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(s) : "w"(x), "w"(y));
    return s;
}
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_i8(int32x4_t s, int8x16_t x, int8x16_t y) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(s) : "w"(x), "w"(y));
    return s;
}
/* x y = x (y - 128) + 64 x + 64 x, in which all are signed bytes. */
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_i8_u8(int32x4_t s, int8x16_t x, uint8x16_t y) {
    int32x4_t offset = nodedb_vamana__neondot_add_i8(vdupq_n_s32(0), x, vdupq_n_s8(64));
    s = nodedb_vamana__neondot_add_i8(s, x, vreinterpretq_s8_u8(veorq_u8(y, vdupq_n_u8(128))));
    return vaddq_s32(s, vaddq_s32(offset, offset));
}
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_dot_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                             int8x16_t q_low, int8x16_t q_high) {
    return nodedb_vamana__neondot_add_i8(nodedb_vamana__neondot_add_i8(s, low, q_low), high, q_high);
}
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_l2_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                            int8x16_t q_low, int8x16_t q_high) {
    s = nodedb_vamana__neondot_add_dot_code4(s, low, high, vshlq_n_s8(low, 2), vshlq_n_s8(high, 2));
    return vsubq_s32(s, nodedb_vamana__neondot_add_dot_code4(vdupq_n_s32(0), low, high, q_low, q_high));
}
NODEDB_VAMANA__NEON_INTEGERS(NODEDB_VAMANA__NEONDOT_INLINE, neondot)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__NEONDOT, neondot, 16, 64)
NODEDB_VAMANA__SET(neondot, neon)
#endif /* NODEDB_VAMANA__NEON */

static const nodedb_vamana__kernel_set *const nodedb_vamana__sets[] = {
    &nodedb_vamana__set_plain,
#if defined(NODEDB_VAMANA__X86)
    &nodedb_vamana__set_sse2, &nodedb_vamana__set_avx2, &nodedb_vamana__set_avx512, &nodedb_vamana__set_avx512vnni,
#endif
#if defined(NODEDB_VAMANA__NEON)
    &nodedb_vamana__set_neon, &nodedb_vamana__set_neondot,
#endif
    NULL};

NODEDB_VAMANA_API const nodedb_vamana_kernels *nodedb_vamana_kernels_at(size_t i) {
    if (i >= sizeof nodedb_vamana__sets / sizeof nodedb_vamana__sets[0] || nodedb_vamana__sets[i] == NULL) return NULL;
    return &nodedb_vamana__sets[i]->one;
}

NODEDB_VAMANA_API bool nodedb_vamana_kernels_usable(const nodedb_vamana_kernels *kernels) {
    if (kernels == NULL) return false;
#if defined(NODEDB_VAMANA__X86)
    if (kernels == &nodedb_vamana__set_avx2.one) return NODEDB_VAMANA__CPU_HAS("avx2") && NODEDB_VAMANA__CPU_HAS("fma");
    if (kernels == &nodedb_vamana__set_avx512.one || kernels == &nodedb_vamana__set_avx512vnni.one) {
        if (!NODEDB_VAMANA__CPU_HAS("avx512f") || !NODEDB_VAMANA__CPU_HAS("avx512bw")) return false;
        return kernels == &nodedb_vamana__set_avx512.one || NODEDB_VAMANA__CPU_HAS("avx512vnni");
    }
#endif
#if defined(NODEDB_VAMANA__NEON)
    if (kernels == &nodedb_vamana__set_neondot.one) {
#if defined(__linux__)
        return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__ARM_FEATURE_DOTPROD)
        return true;
#else
        return false;
#endif
    }
#endif
    return true;
}

/* The set of that name, or the last usable one; NULL and the reason if it cannot be had. */
static const nodedb_vamana__kernel_set *nodedb_vamana__choose_kernels(const char *name, nodedb_error *err) {
    const nodedb_vamana__kernel_set *best = NULL;
    size_t i;
    for (i = 0; nodedb_vamana__sets[i] != NULL; i++) {
        const nodedb_vamana__kernel_set *set = nodedb_vamana__sets[i];
        if (name != NULL && strcmp(name, set->one.name) != 0) continue;
        if (nodedb_vamana_kernels_usable(&set->one)) best = set;
        else if (name != NULL) {
            (void)nodedb__fail(err, NODEDB_ERR_UNSUPPORTED, 0, "this CPU has no instructions for the kernel \"%s\"",
                               name);
            return NULL;
        }
    }
    if (best == NULL && name != NULL) /* without a name, there is always the plain one */
        (void)nodedb__fail(err, NODEDB_ERR_UNSUPPORTED, 0, "this build has no kernel \"%s\"", name);
    return best;
}

/* ===================================================================================================================
 * THE INDEX AND ITS ARRAYS
 * ================================================================================================================ */
#define NODEDB_VAMANA__NONE UINT32_MAX          /* no slot */
#define NODEDB_VAMANA__FIRST_CAPACITY 64u
#define NODEDB_VAMANA__MAX_BEAM_BUILD 4096u
#define NODEDB_VAMANA__COSINE_SAME 1e-6f        /* cosine distance below which two vectors count as equal: rounding */

/* What a slot holds. Removed slots come in two colours that take turns: those of the sweep that is under way, and those
 * removed since it began, which wait for the next one. */
enum { NODEDB_VAMANA__FREE = 0, NODEDB_VAMANA__LIVE = 1, NODEDB_VAMANA__REMOVED = 2 /* and 3 */ };

/* A sweep goes once over all nodes and mends them, then once more over all slots and frees the removed ones. */
enum { NODEDB_VAMANA__IDLE = 0, NODEDB_VAMANA__MENDING, NODEDB_VAMANA__FREEING };

/* Where things stand in a file; all derived from the header's counts (see ON-DISK FORMAT). Offsets and sizes in
 * bytes. */
typedef struct nodedb_vamana__layout {
    uint64_t ids, states, norms, rows, ranges, codes, vectors, checksums, end;
    uint64_t blocks; /* that have a checksum: from `ids` to `checksums` */
    uint32_t vector_bytes, vectors_per_block, blocks_per_vector;
} nodedb_vamana__layout;

/* The index. Fixed after creation: everything up to `io`. Changed by the writer alone: the rest. Between calls: every
 * neighbour in the row of a slot that is not free is a slot that is not free; `table` holds exactly the live slots;
 * `entry` is live if any slot is; a free slot's row starts with the next free slot. */
struct nodedb_vamana {
    uint32_t dim, degree, beam_build;
    nodedb_vamana_type type;
    nodedb_vamana_metric metric;
    float alpha;
    uint64_t seed;
    bool on_disk;                 /* read-only */
    bool coded;                   /* `vectors` holds 8-bit codes; the exact ones are in the file */
    size_t vector_bytes;          /* of one exact vector, without padding */
    size_t stride;                /* bytes from one vector (or code) in memory to the next; the padding is zero */
    size_t components;            /* of a padded vector (or code): what the kernels are told */
    size_t row_words;             /* 1 + degree: a row is the number of neighbours, then the neighbours */
    const nodedb_vamana__kernel_set *kernels;
    nodedb_vamana__many *many_l2, *many_dot;
    nodedb_allocator allocator;
    nodedb_logger logger;
    nodedb_io io;

    uint64_t bytes;               /* taken from the allocator */
    uint32_t capacity;            /* slots that the arrays have room for */
    uint32_t slots;               /* slots that were ever used: the arrays are meaningful below this */
    uint32_t live, removed;
    uint32_t first_free;          /* or NONE; chained through rows */
    uint8_t *vectors;
    uint64_t *ids;
    uint32_t *rows;
    float *norms;                 /* see ON-DISK FORMAT; NULL for L2 */
    uint8_t *states;
    uint32_t *table;              /* live slots by id: open addressing, linear probing, at most two thirds full */
    size_t table_size;            /* a power of two */
    float norm_max;               /* IP: the greatest squared length so far */
    uint32_t entry;
    uint64_t entry_due;           /* number of vectors at which the entry is chosen anew */
    uint8_t colour;               /* state that a slot gets when it is removed now */
    int sweep;
    uint32_t sweep_at;
    nodedb_vamana_searcher *writer; /* the writer's own scratch memory */

    /* only if on_disk */
    char *path;
    size_t path_bytes;
    int fd;                       /* -1: none */
    bool direct, uring;
    nodedb_vamana__layout layout;
    uint32_t *checksums;          /* of the blocks of the file that hold vectors */
    float *code_low, *code_step;  /* by component: value = low + code * step */
    float *code_bias;             /* by slot: sum over components of (code * step)^2 */
};

typedef struct nodedb_vamana__near { /* a slot and how near it is; `expanded` is the walk's */
    float distance;
    uint32_t slot;
    uint32_t expanded;
} nodedb_vamana__near;

/* One thread's scratch memory. `beam_max` entries fit the lists; everything is rewritten by each use. */
struct nodedb_vamana_searcher {
    const nodedb_vamana *index;
    nodedb_allocator allocator;
    uint32_t beam_max;
    uint32_t seen_size;             /* a power of two */
    void *memory;                   /* one block for all that follows */
    size_t memory_bytes;
    uint8_t *query;                 /* the query, padded like the index's vectors (coded: floats) */
    float *code_query;              /* coded: weights, to be multiplied with codes */
    double *mean;                   /* `dim` sums */
    uint32_t *seen;
    nodedb_vamana__near *beam;      /* beam_max + 1 */
    nodedb_vamana__near *spare;     /* beam_max: expanded entries that the beam lost, for the pruning */
    nodedb_vamana__near *candidates; /* candidates_max */
    uint32_t *slots;                /* candidates_max */
    float *distances;               /* candidates_max */
    uint32_t candidates_max, beam_count, spare_count;
    nodedb_vamana_fetcher fetcher;  /* coded: where the rerank gets exact vectors */
    bool own_fetcher;
    uint64_t hops, computed;        /* of the query that is under way */
};

static void *nodedb_vamana__take(nodedb_vamana *index, size_t count, size_t size, size_t align) {
    size_t bytes;
    void *memory;
    if (!nodedb__mul_size(count, size, &bytes)) return NULL;
    memory = nodedb__alloc_zero(&index->allocator, bytes, align);
    if (memory != NULL) index->bytes += bytes;
    return memory;
}

static void nodedb_vamana__give(nodedb_vamana *index, void *memory, size_t count, size_t size) {
    if (memory == NULL) return;
    assert(index->bytes >= (uint64_t)count * size);
    index->bytes -= (uint64_t)count * size;
    nodedb__release(&index->allocator, memory, count * size);
}

NODEDB_VAMANA__INLINE uint8_t *nodedb_vamana__vector(const nodedb_vamana *index, uint32_t slot) {
    assert(slot < index->capacity);
    return index->vectors + (size_t)slot * index->stride;
}

NODEDB_VAMANA__INLINE uint32_t *nodedb_vamana__row(const nodedb_vamana *index, uint32_t slot) {
    assert(slot < index->capacity);
    return index->rows + (size_t)slot * index->row_words;
}

static bool nodedb_vamana__is_finite(float x) { /* by its bits: holds under -ffast-math too */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7F800000u) != 0x7F800000u;
}

/* Long vectors begin on a cache line, short ones do not waste one. */
static size_t nodedb_vamana__padded(size_t bytes) {
    size_t unit = bytes >= 256 ? 64 : bytes > 32 ? 32 : 16;
    return (bytes + unit - 1) / unit * unit;
}

/* Fields that are derived from dim, type and coded. */
static void nodedb_vamana__set_shape(nodedb_vamana *index) {
    size_t size = index->type == NODEDB_VAMANA_F32 ? sizeof(float) : 1;
    index->vector_bytes = index->dim * size;
    if (index->coded) size = 1;
    index->stride = nodedb_vamana__padded(index->dim * size);
    index->components = index->stride / size;
    index->row_words = 1 + (size_t)index->degree;
    index->many_l2 = index->type == NODEDB_VAMANA_F32 ? index->kernels->l2_f32 : index->kernels->l2_u8;
    index->many_dot = index->type == NODEDB_VAMANA_F32 ? index->kernels->dot_f32 : index->kernels->dot_u8;
}

/* ---- ids --------------------------------------------------------------------------------------------------------- */

static size_t nodedb_vamana__table_size_for(uint64_t capacity) { /* 0: not on this machine */
    uint64_t size = 16;
    while (size < capacity + capacity / 2) size *= 2;
    return size > SIZE_MAX / sizeof(uint32_t) ? 0 : (size_t)size;
}

/* Where `id` is in the table, or the empty place where it belongs. */
static size_t nodedb_vamana__table_place(const nodedb_vamana *index, uint64_t id) {
    size_t mask = index->table_size - 1, at = (size_t)nodedb__mix64(id) & mask;
    while (index->table[at] != NODEDB_VAMANA__NONE && index->ids[index->table[at]] != id) at = (at + 1) & mask;
    return at;
}

static uint32_t nodedb_vamana__find(const nodedb_vamana *index, uint64_t id) {
    return index->table_size == 0 ? NODEDB_VAMANA__NONE : index->table[nodedb_vamana__table_place(index, id)];
}

/* False: the id is there already. */
static bool nodedb_vamana__table_add(nodedb_vamana *index, uint32_t slot) {
    size_t at = nodedb_vamana__table_place(index, index->ids[slot]);
    if (index->table[at] != NODEDB_VAMANA__NONE) return false;
    index->table[at] = slot;
    return true;
}

/* Closes the gap, so that no probe ends early: entries behind it move into it unless they are at home or before it. */
static void nodedb_vamana__table_drop(nodedb_vamana *index, uint32_t slot) {
    size_t mask = index->table_size - 1, gap = nodedb_vamana__table_place(index, index->ids[slot]), at = gap;
    assert(index->table[gap] == slot);
    for (;;) {
        size_t home;
        at = (at + 1) & mask;
        if (index->table[at] == NODEDB_VAMANA__NONE) break;
        home = (size_t)nodedb__mix64(index->ids[index->table[at]]) & mask;
        if (((at - home) & mask) >= ((at - gap) & mask)) {
            index->table[gap] = index->table[at];
            gap = at;
        }
    }
    index->table[gap] = NODEDB_VAMANA__NONE;
}

/* ---- room -------------------------------------------------------------------------------------------------------- */

static void nodedb_vamana__give_arrays(nodedb_vamana *index) {
    nodedb_vamana__give(index, index->vectors, index->capacity, index->stride);
    nodedb_vamana__give(index, index->ids, index->capacity, sizeof *index->ids);
    nodedb_vamana__give(index, index->rows, index->capacity, index->row_words * sizeof *index->rows);
    nodedb_vamana__give(index, index->norms, index->capacity, sizeof *index->norms);
    nodedb_vamana__give(index, index->states, index->capacity, 1);
    nodedb_vamana__give(index, index->table, index->table_size, sizeof *index->table);
    index->vectors = NULL, index->ids = NULL, index->rows = NULL, index->norms = NULL, index->states = NULL;
    index->table = NULL, index->table_size = 0, index->capacity = 0;
}

/* Gives `index` empty arrays of that capacity, without freeing those that it has. Changes nothing on failure. */
static nodedb_status nodedb_vamana__take_arrays(nodedb_vamana *index, uint64_t capacity, nodedb_error *err) {
    nodedb_vamana fresh = *index;
    if (capacity > NODEDB_VAMANA_MAX_VECTORS || nodedb_vamana__table_size_for(capacity) == 0)
        return nodedb__fail(err, NODEDB_ERR_LIMIT, 0, "%llu vectors do not fit one index",
                            (unsigned long long)capacity);
    fresh.capacity = (uint32_t)capacity;
    fresh.table_size = nodedb_vamana__table_size_for(capacity);
    fresh.vectors = (uint8_t *)nodedb_vamana__take(&fresh, fresh.capacity, fresh.stride, NODEDB_CACHE_LINE_BYTES);
    fresh.ids = (uint64_t *)nodedb_vamana__take(&fresh, fresh.capacity, sizeof *fresh.ids, NODEDB_CACHE_LINE_BYTES);
    fresh.rows = (uint32_t *)nodedb_vamana__take(&fresh, fresh.capacity, fresh.row_words * sizeof *fresh.rows,
                                                 NODEDB_CACHE_LINE_BYTES);
    fresh.norms = NULL;
    if (index->metric != NODEDB_VAMANA_L2)
        fresh.norms = (float *)nodedb_vamana__take(&fresh, fresh.capacity, sizeof *fresh.norms,
                                                   NODEDB_CACHE_LINE_BYTES);
    fresh.states = (uint8_t *)nodedb_vamana__take(&fresh, fresh.capacity, 1, NODEDB_CACHE_LINE_BYTES);
    fresh.table = (uint32_t *)nodedb_vamana__take(&fresh, fresh.table_size, sizeof *fresh.table,
                                                  NODEDB_CACHE_LINE_BYTES);
    if (fresh.vectors == NULL || fresh.ids == NULL || fresh.rows == NULL || fresh.states == NULL ||
        fresh.table == NULL ||
        (fresh.norms == NULL && index->metric != NODEDB_VAMANA_L2)) {
        nodedb_vamana__give_arrays(&fresh);
        return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for %llu vectors of %u components",
                            (unsigned long long)capacity, (unsigned)index->dim);
    }
    memset(fresh.table, 0xFF, fresh.table_size * sizeof *fresh.table); /* NONE */
    *index = fresh;
    return NODEDB_OK;
}

static nodedb_status nodedb_vamana__grow(nodedb_vamana *index, uint64_t capacity, nodedb_error *err) {
    nodedb_vamana old = *index;
    nodedb_status status;
    uint32_t slot;
    if (capacity <= index->capacity) return NODEDB_OK;
    status = nodedb_vamana__take_arrays(index, capacity, err);
    if (status != NODEDB_OK) return status;
    if (old.capacity > 0) {
        memcpy(index->vectors, old.vectors, old.slots * old.stride);
        memcpy(index->ids, old.ids, old.slots * sizeof *old.ids);
        memcpy(index->rows, old.rows, old.slots * old.row_words * sizeof *old.rows);
        if (old.norms != NULL) memcpy(index->norms, old.norms, old.slots * sizeof *old.norms);
        memcpy(index->states, old.states, old.slots);
        for (slot = 0; slot < old.slots; slot++)
            if (old.states[slot] == NODEDB_VAMANA__LIVE && !nodedb_vamana__table_add(index, slot)) assert(false);
    }
    old.bytes = index->bytes;
    nodedb_vamana__give_arrays(&old);
    index->bytes = old.bytes;
    return NODEDB_OK;
}

/* Room for `more` slots, growing by half at least, so that n inserts copy O(n) vectors in all. */
static nodedb_status nodedb_vamana__make_room(nodedb_vamana *index, uint64_t more, nodedb_error *err) {
    uint64_t free_slots = (uint64_t)index->capacity - index->live - index->removed, wanted, half;
    if (more <= free_slots) return NODEDB_OK;
    wanted = index->capacity + (more - free_slots);
    half = (uint64_t)index->capacity + index->capacity / 2;
    if (half > NODEDB_VAMANA_MAX_VECTORS) half = NODEDB_VAMANA_MAX_VECTORS;
    if (wanted < half) wanted = half;
    if (wanted < NODEDB_VAMANA__FIRST_CAPACITY) wanted = NODEDB_VAMANA__FIRST_CAPACITY;
    return nodedb_vamana__grow(index, wanted, err);
}

static uint32_t nodedb_vamana__take_slot(nodedb_vamana *index) {
    uint32_t slot = index->first_free;
    if (slot != NODEDB_VAMANA__NONE) index->first_free = nodedb_vamana__row(index, slot)[0];
    else slot = index->slots++;
    assert(slot < index->capacity && index->states[slot] == NODEDB_VAMANA__FREE);
    nodedb_vamana__row(index, slot)[0] = 0;
    return slot;
}

static void nodedb_vamana__free_slot(nodedb_vamana *index, uint32_t slot) {
    index->states[slot] = NODEDB_VAMANA__FREE;
    nodedb_vamana__row(index, slot)[0] = index->first_free;
    index->first_free = slot;
}

/* ===================================================================================================================
 * VECTORS AND THE DISTANCES BETWEEN THEM
 * ================================================================================================================ */

/* Copies a vector of the caller's to `to` as the index stores it (zero-padded; COSINE over F32: length 1), and its norm
 * to *norm. `row` is named in the error unless it is negative. */
static nodedb_status nodedb_vamana__prepare(const nodedb_vamana *index, const void *vector, uint8_t *to, float *norm,
                                            int64_t row, nodedb_error *err) {
    size_t padded = index->coded ? nodedb_vamana__padded(index->vector_bytes) : index->stride;
    double squares = 0;
    uint32_t i;
    char where[48] = "";
    memcpy(to, vector, index->vector_bytes);
    memset(to + index->vector_bytes, 0, padded - index->vector_bytes);
    if (row >= 0) (void)snprintf(where, sizeof where, " of vector %lld", (long long)row);
    if (index->type == NODEDB_VAMANA_F32) {
        float *x = (float *)(void *)to;
        for (i = 0; i < index->dim; i++) {
            if (!nodedb_vamana__is_finite(x[i]))
                return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "component %u%s is not a finite number", (unsigned)i,
                                    where);
            squares += (double)x[i] * (double)x[i];
        }
        if (squares > (double)NODEDB_VAMANA_MAX_LENGTH * (double)NODEDB_VAMANA_MAX_LENGTH)
            return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "the length%s is over %g", where,
                                (double)NODEDB_VAMANA_MAX_LENGTH);
        *norm = (float)squares;
        if (index->metric == NODEDB_VAMANA_COSINE) {
            double length = sqrt(squares);
            *norm = (float)length;
            for (i = 0; i < index->dim && length > 0; i++) x[i] = (float)((double)x[i] / length);
        }
    } else {
        for (i = 0; i < index->dim; i++) squares += (double)to[i] * (double)to[i];
        *norm = (float)squares;
        if (index->metric == NODEDB_VAMANA_COSINE) *norm = squares > 0 ? (float)(1 / sqrt(squares)) : 0;
    }
    return NODEDB_OK;
}

/* How to compute a distance. Queries of IP ask for -<q, x>, but a graph needs a measure by which a vector is near
 * itself: for building, IP vectors get one more component, sqrt(norm_max - |x|^2), which makes all of one length, and
 * L2 between those orders like the inner product with a query that has 0 there (Bachrach et al., RecSys 2014; DiskANN
 * does the same). */
typedef enum nodedb_vamana__measure {
    NODEDB_VAMANA__TO_L2,
    NODEDB_VAMANA__TO_IP,
    NODEDB_VAMANA__TO_IP_BUILD,
    NODEDB_VAMANA__TO_COSINE_F32,
    NODEDB_VAMANA__TO_COSINE_U8,
    NODEDB_VAMANA__CODE_L2,
    NODEDB_VAMANA__CODE_IP,
    NODEDB_VAMANA__CODE_COSINE
} nodedb_vamana__measure;

/* From what distances are measured: a prepared query, or a vector of the index. */
typedef struct nodedb_vamana__target {
    nodedb_vamana__measure measure;
    const void *vector;
    float constant; /* IP_BUILD: additional component; COSINE_U8: 1 / length; CODE_*: common to all codes */
} nodedb_vamana__target;

static float nodedb_vamana__from_cosine(float cosine) { /* rounding must not leave the range */
    float distance = 1 - cosine;
    return distance < 0 ? 0 : distance > 2 ? 2 : distance;
}

static float nodedb_vamana__additional(const nodedb_vamana *index, uint32_t slot) {
    float rest = index->norm_max - index->norms[slot];
    return rest > 0 ? sqrtf(rest) : 0;
}

/* Distances from `target` to `count` slots. The one place where the kernels are called in bulk. */
static void nodedb_vamana__measure_many(const nodedb_vamana *index, const nodedb_vamana__target *target,
                                        const uint32_t *slots, size_t count, float *out) {
    float constant = target->constant;
    size_t i;
    switch (target->measure) {
    case NODEDB_VAMANA__TO_L2:
        index->many_l2(target->vector, index->vectors, index->stride, slots, count, index->components, out);
        break;
    case NODEDB_VAMANA__TO_IP:
        index->many_dot(target->vector, index->vectors, index->stride, slots, count, index->components, out);
        for (i = 0; i < count; i++) out[i] = -out[i];
        break;
    case NODEDB_VAMANA__TO_IP_BUILD:
        index->many_l2(target->vector, index->vectors, index->stride, slots, count, index->components, out);
        for (i = 0; i < count; i++) {
            float apart = constant - nodedb_vamana__additional(index, slots[i]);
            out[i] += apart * apart;
        }
        break;
    case NODEDB_VAMANA__TO_COSINE_F32:
        index->many_dot(target->vector, index->vectors, index->stride, slots, count, index->components, out);
        for (i = 0; i < count; i++) out[i] = nodedb_vamana__from_cosine(out[i]);
        break;
    case NODEDB_VAMANA__TO_COSINE_U8:
        index->many_dot(target->vector, index->vectors, index->stride, slots, count, index->components, out);
        for (i = 0; i < count; i++) out[i] = nodedb_vamana__from_cosine(out[i] * constant * index->norms[slots[i]]);
        break;
    case NODEDB_VAMANA__CODE_L2:
    case NODEDB_VAMANA__CODE_IP:
    case NODEDB_VAMANA__CODE_COSINE:
        index->kernels->dot_f32_u8(target->vector, index->vectors, index->stride, slots, count, index->components, out);
        for (i = 0; i < count; i++) {
            float d = target->measure == NODEDB_VAMANA__CODE_L2   ? constant - 2 * out[i] + index->code_bias[slots[i]]
                      : target->measure == NODEDB_VAMANA__CODE_IP ? -(constant + out[i])
                                                                  : 1 - (constant + out[i]);
            out[i] = nodedb_vamana__is_finite(d) ? d : FLT_MAX; /* a crafted file's codes may overflow */
        }
        break;
    }
}

/* The distance by which the graph is built, from a vector in a slot. */
static nodedb_vamana__target nodedb_vamana__slot_target(const nodedb_vamana *index, uint32_t slot) {
    nodedb_vamana__target target;
    bool f32 = index->type == NODEDB_VAMANA_F32;
    assert(!index->coded);
    target.vector = nodedb_vamana__vector(index, slot);
    target.constant = 0;
    target.measure = NODEDB_VAMANA__TO_L2;
    if (index->metric == NODEDB_VAMANA_IP) {
        target.measure = NODEDB_VAMANA__TO_IP_BUILD;
        target.constant = nodedb_vamana__additional(index, slot);
    } else if (index->metric == NODEDB_VAMANA_COSINE) {
        target.measure = f32 ? NODEDB_VAMANA__TO_COSINE_F32 : NODEDB_VAMANA__TO_COSINE_U8;
        target.constant = f32 ? 0 : index->norms[slot];
    }
    return target;
}

/* The distance by which the graph is searched, from a prepared query. For codes x = low + code * step: <q, x> = <q,
 * low> + sum(q step code), and |q - x|^2 = |q - low|^2 - 2 sum((q - low) step code) + sum((step code)^2). */
static nodedb_vamana__target nodedb_vamana__query_target(nodedb_vamana_searcher *searcher, float norm) {
    const nodedb_vamana *index = searcher->index;
    nodedb_vamana__target target;
    bool f32 = index->type == NODEDB_VAMANA_F32, l2 = index->metric == NODEDB_VAMANA_L2;
    target.vector = searcher->query;
    target.constant = 0;
    if (index->coded) {
        const float *q = (const float *)(const void *)searcher->query;
        double common = 0;
        uint32_t i;
        for (i = 0; i < index->dim; i++) {
            double low = index->code_low[i], from = l2 ? (double)q[i] - low : (double)q[i];
            common += l2 ? from * from : from * low;
            searcher->code_query[i] = (float)(from * (double)index->code_step[i]);
        }
        target.vector = searcher->code_query;
        target.constant = (float)common;
        target.measure = l2                                  ? NODEDB_VAMANA__CODE_L2
                         : index->metric == NODEDB_VAMANA_IP ? NODEDB_VAMANA__CODE_IP
                                                             : NODEDB_VAMANA__CODE_COSINE;
    } else if (l2) {
        target.measure = NODEDB_VAMANA__TO_L2;
    } else if (index->metric == NODEDB_VAMANA_IP) {
        target.measure = NODEDB_VAMANA__TO_IP;
    } else {
        target.measure = f32 ? NODEDB_VAMANA__TO_COSINE_F32 : NODEDB_VAMANA__TO_COSINE_U8;
        target.constant = f32 ? 0 : norm;
    }
    return target;
}

/* The true distance from the prepared F32 query to an exact vector that a fetcher brought. */
static float nodedb_vamana__exact(const nodedb_vamana *index, const uint8_t *query, const void *vector) {
    const float *q = (const float *)(const void *)query, *x = (const float *)vector;
    assert(index->type == NODEDB_VAMANA_F32);
    if (index->metric == NODEDB_VAMANA_L2) return index->kernels->one.l2_f32(q, x, index->dim);
    if (index->metric == NODEDB_VAMANA_IP) return -index->kernels->one.dot_f32(q, x, index->dim);
    return nodedb_vamana__from_cosine(index->kernels->one.dot_f32(q, x, index->dim));
}

/* ===================================================================================================================
 * THE SEARCHER AND ITS WALK
 * ================================================================================================================ */
#define NODEDB_VAMANA__SEEN_PER_BEAM 32u   /* entries of the visited table for each entry of the beam */
#define NODEDB_VAMANA__SEEN_MAX 65536u
#define NODEDB_VAMANA__SCAN_CHUNK 64u      /* vectors that a scan measures at a time */

/* One block of memory, cut into the searcher's arrays; with `at` NULL only the size is computed. */
static size_t nodedb_vamana__searcher_cut(nodedb_vamana_searcher *s, uint8_t *at) {
    const nodedb_vamana *index = s->index;
    size_t used = 0;
#define NODEDB_VAMANA__CUT(field, type, count)                                                                         \
    do {                                                                                                               \
        s->field = at == NULL ? NULL : (type *)(void *)(at + used);                                                    \
        used += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63;                                                   \
    } while (0)
    NODEDB_VAMANA__CUT(query, uint8_t, nodedb_vamana__padded(index->vector_bytes));
    NODEDB_VAMANA__CUT(code_query, float, index->coded ? index->components : 0);
    NODEDB_VAMANA__CUT(mean, double, index->dim);
    NODEDB_VAMANA__CUT(seen, uint32_t, s->seen_size);
    NODEDB_VAMANA__CUT(beam, nodedb_vamana__near, (size_t)s->beam_max + 1);
    NODEDB_VAMANA__CUT(spare, nodedb_vamana__near, s->beam_max);
    NODEDB_VAMANA__CUT(candidates, nodedb_vamana__near, s->candidates_max);
    NODEDB_VAMANA__CUT(slots, uint32_t, s->candidates_max);
    NODEDB_VAMANA__CUT(distances, float, s->candidates_max);
#undef NODEDB_VAMANA__CUT
    return used;
}

/* Makes the lists fit a beam (or a number of results). The visited table need not be exact (see walk), so it is kept
 * within the second-level cache. Changes nothing on failure. */
static nodedb_status nodedb_vamana__searcher_fit(nodedb_vamana_searcher *s, uint32_t beam, nodedb_error *err) {
    nodedb_vamana_searcher fit = *s;
    if (s->memory != NULL && beam <= s->beam_max) return NODEDB_OK;
    fit.beam_max = beam;
    fit.candidates_max = 2 * beam + 4 * s->index->degree + 4 * NODEDB_VAMANA__SCAN_CHUNK;
    fit.seen_size = 1024;
    while (fit.seen_size < NODEDB_VAMANA__SEEN_MAX && fit.seen_size / NODEDB_VAMANA__SEEN_PER_BEAM < beam)
        fit.seen_size *= 2;
    fit.memory_bytes = nodedb_vamana__searcher_cut(&fit, NULL);
    fit.memory = nodedb__alloc_zero(&s->allocator, fit.memory_bytes, NODEDB_CACHE_LINE_BYTES);
    if (fit.memory == NULL)
        return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a beam of %u", (unsigned)beam);
    (void)nodedb_vamana__searcher_cut(&fit, (uint8_t *)fit.memory);
    nodedb__release(&s->allocator, s->memory, s->memory_bytes);
    *s = fit;
    return NODEDB_OK;
}

static nodedb_vamana_searcher *nodedb_vamana__searcher_new(const nodedb_vamana *index, uint32_t beam,
                                                           nodedb_error *err) {
    nodedb_vamana_searcher *s =
        (nodedb_vamana_searcher *)nodedb__alloc_zero(&index->allocator, sizeof *s, NODEDB_CACHE_LINE_BYTES);
    if (s == NULL) {
        (void)nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a searcher");
        return NULL;
    }
    s->index = index;
    s->allocator = index->allocator;
    if (nodedb_vamana__searcher_fit(s, beam, err) == NODEDB_OK) return s;
    nodedb_vamana_searcher_destroy(s);
    return NULL;
}

NODEDB_VAMANA_API void nodedb_vamana_searcher_destroy(nodedb_vamana_searcher *searcher) {
    nodedb_allocator allocator;
    if (searcher == NULL) return;
    allocator = searcher->allocator;
    if (searcher->own_fetcher && searcher->fetcher.destroy != NULL) searcher->fetcher.destroy(searcher->fetcher.ctx);
    nodedb__release(&allocator, searcher->memory, searcher->memory_bytes);
    nodedb__release(&allocator, searcher, sizeof *searcher);
}

NODEDB_VAMANA_API uint64_t nodedb_vamana_searcher_memory_bytes(const nodedb_vamana_searcher *searcher) {
    return searcher == NULL ? 0 : searcher->memory_bytes + sizeof *searcher;
}

NODEDB_VAMANA__INLINE bool nodedb_vamana__nearer(const nodedb_vamana__near *a, float distance, uint32_t slot) {
    return a->distance < distance || (a->distance == distance && a->slot < slot);
}

/* Puts a slot into the sorted beam of at most `width` entries and returns its place, or NONE: too far, or there
 * already. The entry that falls off is kept in `spare` if it was expanded (a pruning wants all that the walk has
 * expanded). */
NODEDB_VAMANA__INLINE uint32_t nodedb_vamana__beam_add(nodedb_vamana_searcher *s, uint32_t width, float distance,
                                                       uint32_t slot, bool keep_spare) {
    uint32_t low = 0, left = s->beam_count;
    if (left == width && nodedb_vamana__nearer(&s->beam[width - 1], distance, slot)) return NODEDB_VAMANA__NONE;
    while (left > 0) { /* without a branch that depends on the distance: it would be mispredicted half the time */
        uint32_t half = (left + 1) / 2;
        low += s->beam[low + half - 1].distance < distance ? half : 0;
        left -= half;
    }
    while (low < s->beam_count && nodedb_vamana__nearer(&s->beam[low], distance, slot)) low++; /* equal distances */
    if (low < s->beam_count && s->beam[low].slot == slot && s->beam[low].distance == distance)
        return NODEDB_VAMANA__NONE;
    if (s->beam_count == width) {
        if (keep_spare && s->beam[width - 1].expanded && s->spare_count < s->beam_max)
            s->spare[s->spare_count++] = s->beam[width - 1];
        s->beam_count--;
    }
    memmove(&s->beam[low + 1], &s->beam[low], (s->beam_count - low) * sizeof s->beam[0]);
    s->beam[low].distance = distance;
    s->beam[low].slot = slot;
    s->beam[low].expanded = 0;
    s->beam_count++;
    return low;
}

/* Greedy search (DiskANN algorithm 1) from the entry: leaves the `width` nearest slots that it met in s->beam, removed
 * ones included, as they still lead the way. The visited table forgets: two slots of one place overwrite each other.
 * A forgotten slot is measured again, and the beam refuses it, as it is either in it or was too far, and the
 * threshold only falls; so the result is the same as with an exact set (ParlayANN does this too). */
static void nodedb_vamana__walk(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width,
                                bool keep_spare) {
    const nodedb_vamana *index = s->index;
    uint32_t *seen = s->seen, mask = s->seen_size - 1, next = 0;
    float distance;
    assert(width >= 1 && width <= s->beam_max);
    s->beam_count = 0, s->spare_count = 0;
    if (index->entry == NODEDB_VAMANA__NONE) return;
    memset(seen, 0xFF, (size_t)s->seen_size * sizeof *seen);
    nodedb_vamana__measure_many(index, target, &index->entry, 1, &distance);
    (void)nodedb_vamana__beam_add(s, width, distance, index->entry, false);
    seen[(index->entry * UINT32_C(0x9E3779B1)) >> 8 & mask] = index->entry;
    s->computed++;
    while (next < s->beam_count) {
        const uint32_t *row = nodedb_vamana__row(index, s->beam[next].slot);
        uint32_t i, count = 0, neighbours = row[0];
        assert(neighbours <= index->degree && !s->beam[next].expanded);
        s->beam[next].expanded = 1;
        s->hops++;
        for (i = 1; i <= neighbours; i++) {
            uint32_t slot = row[i], *place = &seen[(slot * UINT32_C(0x9E3779B1)) >> 8 & mask];
            s->slots[count] = slot; /* no branch: which ones are new cannot be predicted */
            count += *place != slot ? 1 : 0;
            *place = slot;
        }
        do next++;
        while (next < s->beam_count && s->beam[next].expanded);
        if (next < s->beam_count) /* the likely next row, while the distances are computed */
            nodedb_vamana__prefetch((const uint8_t *)nodedb_vamana__row(index, s->beam[next].slot), 256);
        nodedb_vamana__measure_many(index, target, s->slots, count, s->distances);
        s->computed += count;
        for (i = 0; i < count; i++) {
            uint32_t at = nodedb_vamana__beam_add(s, width, s->distances[i], s->slots[i], keep_spare);
            if (at < next) next = at;
        }
    }
}

/* ===================================================================================================================
 * NEIGHBOURS
 * ================================================================================================================ */
#define NODEDB_VAMANA__SLACK 8u        /* a row that overflows is cut to 7/8, so that not every insert cuts it again */
#define NODEDB_VAMANA__SAME_MAX 3u     /* edges to vectors equal to the node's own that a pruning keeps */

/* Sorts candidates for a node by distance (Shell's sort: the lists are short and mostly in order). Equal distances, as
 * in a crowd of equal vectors, are ordered at random: by slot, all of the crowd would point to the same few. */
static bool nodedb_vamana__candidate_before(const nodedb_vamana__near *a, const nodedb_vamana__near *b, uint64_t salt) {
    uint64_t x, y;
    if (a->distance != b->distance) return a->distance < b->distance;
    x = nodedb__mix64(salt ^ a->slot), y = nodedb__mix64(salt ^ b->slot);
    return x != y ? x < y : a->slot < b->slot;
}

static void nodedb_vamana__sort_candidates(nodedb_vamana__near *c, size_t n, uint64_t salt) {
    static const size_t gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};
    size_t g, i, j;
    for (g = 0; g < sizeof gaps / sizeof gaps[0]; g++)
        for (i = gaps[g]; i < n; i++) {
            nodedb_vamana__near one = c[i];
            for (j = i; j >= gaps[g] && nodedb_vamana__candidate_before(&one, &c[j - gaps[g]], salt); j -= gaps[g])
                c[j] = c[j - gaps[g]];
            c[j] = one;
        }
}

/* Robust prune (DiskANN algorithm 2): writes at most `keep` of s->candidates[0..n) to the row of `slot`: the nearest,
 * then each one that no chosen one is nearer to by the factor alpha. A few equal to the vector itself are kept and shut
 * out nobody, so that a crowd of equal vectors stays connected both within and to the rest. Candidates may repeat, and
 * may hold `slot`. */
static void nodedb_vamana__prune(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot, size_t n,
                                 uint32_t keep) {
    uint32_t *row = nodedb_vamana__row(index, slot), same = 0,
        first = 1;
    float same_below = index->metric == NODEDB_VAMANA_COSINE ? NODEDB_VAMANA__COSINE_SAME : 0;
    float alpha = index->alpha;
    size_t i, j;
    assert(keep >= 1 && keep <= index->degree && n <= s->candidates_max);
    nodedb_vamana__sort_candidates(s->candidates, n, nodedb__mix64(index->seed ^ slot));
    row[0] = 0;
    for (i = 0; i < n && row[0] < keep; i++) {
        const nodedb_vamana__near *c = &s->candidates[i];
        bool shut_out = false;
        if (c->slot == slot || (i > 0 && c->slot == s->candidates[i - 1].slot)) continue;
        if (c->distance <= same_below) {
            if (same == NODEDB_VAMANA__SAME_MAX) continue;
            same++, first++;
        } else {
            nodedb_vamana__target target = nodedb_vamana__slot_target(index, c->slot);
            for (j = first; j <= row[0] && !shut_out;) { /* a few at a time: most are shut out early */
                float distances[4];
                size_t k, count = row[0] + 1 - j < 4 ? row[0] + 1 - j : 4;
                nodedb_vamana__measure_many(index, &target, row + j, count, distances);
                for (k = 0; k < count; k++) shut_out = shut_out || alpha * distances[k] <= c->distance;
                j += count;
            }
        }
        if (!shut_out) row[++row[0]] = c->slot;
    }
}

/* Appends all neighbours in the row of `slot` to the candidates; returns the new number of candidates. */
static size_t nodedb_vamana__row_as_candidates(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                               size_t n) {
    const uint32_t *row = nodedb_vamana__row(index, slot);
    uint32_t i;
    for (i = 1; i <= row[0]; i++) s->candidates[n++].slot = row[i];
    return n;
}

static void nodedb_vamana__measure_candidates(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                              size_t n) {
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, slot);
    size_t i;
    assert(n <= s->candidates_max);
    for (i = 0; i < n; i++) s->slots[i] = s->candidates[i].slot;
    nodedb_vamana__measure_many(index, &target, s->slots, n, s->distances);
    for (i = 0; i < n; i++) s->candidates[i].distance = s->distances[i];
}

/* Adds edges from `from` to `count` others; a row that becomes too long is pruned. */
static void nodedb_vamana__add_edges(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t from, const uint64_t *to,
                                     size_t count, uint32_t keep) {
    uint32_t *row = nodedb_vamana__row(index, from);
    while (count > 0) { /* the low halves of `to` are the slots */
        size_t i, n, part = count < index->degree ? count : index->degree;
        if (row[0] + part <= index->degree) {
            for (i = 0; i < part; i++) row[++row[0]] = (uint32_t)to[i];
        } else {
            n = nodedb_vamana__row_as_candidates(index, s, from, 0);
            for (i = 0; i < part; i++) s->candidates[n++].slot = (uint32_t)to[i];
            nodedb_vamana__measure_candidates(index, s, from, n);
            nodedb_vamana__prune(index, s, from, n, keep);
        }
        to += part, count -= part;
    }
}

/* Chooses the neighbours of a new node, whose vector is in its slot, and writes its row. Other rows are only read. */
static void nodedb_vamana__choose_neighbours(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot) {
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, slot);
    size_t n = 0;
    uint32_t i;
    nodedb_vamana__walk(s, &target, index->beam_build, true);
    for (i = 0; i < s->beam_count; i++)
        if (index->states[s->beam[i].slot] == NODEDB_VAMANA__LIVE) s->candidates[n++] = s->beam[i];
    for (i = s->spare_count; i-- > 0;) /* the last to leave the beam are the nearest */
        if (index->states[s->spare[i].slot] == NODEDB_VAMANA__LIVE) s->candidates[n++] = s->spare[i];
    if (n == 0 && index->entry != NODEDB_VAMANA__NONE) { /* all that it met is removed */
        s->candidates[n++].slot = index->entry;
        nodedb_vamana__measure_candidates(index, s, slot, n);
    }
    nodedb_vamana__prune(index, s, slot, n, index->degree);
}

#define NODEDB_VAMANA__ENTRY_SAMPLE 1024u /* vectors among which the entry is chosen */

/* Makes the entry the vector nearest to the mean of a sample that is spread over the slots (a medoid, approximately).
 * It is due again when the index has doubled: the first vectors need not lie in the middle. */
static void nodedb_vamana__choose_entry(nodedb_vamana *index) {
    nodedb_vamana_searcher *s = index->writer;
    nodedb_vamana__target target;
    uint64_t i, n = index->slots < NODEDB_VAMANA__ENTRY_SAMPLE ? index->slots : NODEDB_VAMANA__ENTRY_SAMPLE;
    uint32_t j, sampled = 0;
    float best = 0;
    double squares = 0;
    index->entry_due = 2 * (uint64_t)index->live;
    if (index->live == 0) {
        index->entry = NODEDB_VAMANA__NONE;
        return;
    }
    memset(s->mean, 0, index->dim * sizeof *s->mean);
    for (i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)(i * index->slots / n);
        const uint8_t *vector = nodedb_vamana__vector(index, slot);
        if (index->states[slot] != NODEDB_VAMANA__LIVE) continue;
        for (j = 0; j < index->dim; j++)
            s->mean[j] += index->type == NODEDB_VAMANA_F32 ? ((const float *)(const void *)vector)[j] : vector[j];
        sampled++;
    }
    memset(s->query, 0, index->stride);
    for (j = 0; j < index->dim && sampled > 0; j++) {
        double mean = s->mean[j] / sampled;
        if (index->type == NODEDB_VAMANA_F32) ((float *)(void *)s->query)[j] = (float)mean;
        else s->query[j] = (uint8_t)(mean + 0.5);
        squares += mean * mean;
    }
    target.vector = s->query;
    target.constant = squares > 0 ? (float)(1 / sqrt(squares)) : 0;
    target.measure = index->metric != NODEDB_VAMANA_COSINE       ? NODEDB_VAMANA__TO_L2
                     : index->type == NODEDB_VAMANA_F32          ? NODEDB_VAMANA__TO_COSINE_F32
                                                                 : NODEDB_VAMANA__TO_COSINE_U8;
    index->entry = NODEDB_VAMANA__NONE;
    for (i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)(i * index->slots / n);
        float distance;
        if (index->states[slot] != NODEDB_VAMANA__LIVE) continue;
        nodedb_vamana__measure_many(index, &target, &slot, 1, &distance);
        if (index->entry == NODEDB_VAMANA__NONE || distance < best) index->entry = slot, best = distance;
    }
    for (j = 0; index->entry == NODEDB_VAMANA__NONE; j++) /* the sample met only holes */
        if (index->states[j] == NODEDB_VAMANA__LIVE) index->entry = j;
}

/* ===================================================================================================================
 * INSERTING, REMOVING, AND THE SWEEP
 * A removed node goes on leading searches until all who point to it have been mended. The sweep visits every node; one
 * that points to removed ones gets, for each, the few nearest of that one's own neighbours instead (Xu et al.,
 * IP-DiskANN, 2025, repair likewise, but only the in-neighbours that a search happens to meet; the sweep meets all).
 * Then the removed slots, to which nobody points any more, are free.
 * ================================================================================================================ */
#define NODEDB_VAMANA__REPLACEMENTS 3u        /* edges that take the place of one to a removed node; IP-DiskANN's c */
#define NODEDB_VAMANA__REMOVED_SHARE 16u      /* a sweep begins when 1/16 of the slots are removed ... */
#define NODEDB_VAMANA__REMOVED_MIN 32u        /* ... and at least so many */
#define NODEDB_VAMANA__SWEEP_PER_REMOVE 24u   /* nodes that a remove sweeps: the sweep ends within another 1/24 */
#define NODEDB_VAMANA__FREE_PER_NODE 64u      /* slots looked at in the second pass, for one node's worth of budget */

static bool nodedb_vamana__is_victim(const nodedb_vamana *index, uint32_t slot) {
    return index->states[slot] >= NODEDB_VAMANA__REMOVED && index->states[slot] != index->colour;
}

/* Adds the nearest few of a removed node's neighbours to the `n` candidates of `slot`; returns their new number. */
static size_t nodedb_vamana__add_replacements(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                              uint32_t removed, size_t n) {
    const uint32_t *row = nodedb_vamana__row(index, removed);
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, slot);
    nodedb_vamana__near best[NODEDB_VAMANA__REPLACEMENTS];
    uint32_t i, count = 0, found = 0;
    size_t j;
    for (i = 1; i <= row[0]; i++) {
        bool known = row[i] == slot || index->states[row[i]] != NODEDB_VAMANA__LIVE;
        for (j = 0; j < n && !known; j++) known = s->candidates[j].slot == row[i];
        if (!known) s->slots[count++] = row[i];
    }
    nodedb_vamana__measure_many(index, &target, s->slots, count, s->distances);
    for (i = 0; i < count; i++) {
        uint32_t at = found;
        while (at > 0 && best[at - 1].distance > s->distances[i]) at--;
        if (at == NODEDB_VAMANA__REPLACEMENTS) continue;
        if (found < NODEDB_VAMANA__REPLACEMENTS) found++;
        memmove(&best[at + 1], &best[at], (found - 1 - at) * sizeof best[0]);
        best[at].distance = s->distances[i], best[at].slot = s->slots[i], best[at].expanded = 0;
    }
    for (i = 0; i < found; i++) s->candidates[n++] = best[i];
    return n;
}

static void nodedb_vamana__mend(nodedb_vamana *index, uint32_t slot) {
    nodedb_vamana_searcher *s = index->writer;
    uint32_t *row = nodedb_vamana__row(index, slot), i, victims = 0;
    size_t n = 0;
    for (i = 1; i <= row[0]; i++) {
        if (nodedb_vamana__is_victim(index, row[i])) victims++;
        else s->candidates[n++].slot = row[i];
    }
    if (victims == 0) return;
    for (i = 1; i <= row[0]; i++)
        if (nodedb_vamana__is_victim(index, row[i])) n = nodedb_vamana__add_replacements(index, s, slot, row[i], n);
    if (n == 0 && index->entry != NODEDB_VAMANA__NONE && index->entry != slot) s->candidates[n++].slot = index->entry;
    if (n <= index->degree) {
        row[0] = (uint32_t)n;
        for (i = 0; i < n; i++) row[1 + i] = s->candidates[i].slot;
    } else {
        nodedb_vamana__measure_candidates(index, s, slot, n);
        nodedb_vamana__prune(index, s, slot, n, index->degree);
    }
}

/* One step of the sweep. */
static void nodedb_vamana__sweep_step(nodedb_vamana *index) {
    uint32_t i;
    if (index->sweep == NODEDB_VAMANA__MENDING) {
        uint8_t state = index->sweep_at < index->slots ? index->states[index->sweep_at] : 0;
        if (state == NODEDB_VAMANA__LIVE || state == index->colour) nodedb_vamana__mend(index, index->sweep_at);
        if (++index->sweep_at >= index->slots) index->sweep = NODEDB_VAMANA__FREEING, index->sweep_at = 0;
        return;
    }
    assert(index->sweep == NODEDB_VAMANA__FREEING);
    for (i = 0; i < NODEDB_VAMANA__FREE_PER_NODE && index->sweep_at < index->slots; i++, index->sweep_at++) {
        if (!nodedb_vamana__is_victim(index, index->sweep_at)) continue;
        nodedb_vamana__free_slot(index, index->sweep_at);
        assert(index->removed > 0);
        index->removed--;
    }
    if (index->sweep_at >= index->slots) index->sweep = NODEDB_VAMANA__IDLE;
}

static void nodedb_vamana__sweep_begin(nodedb_vamana *index) {
    assert(index->sweep == NODEDB_VAMANA__IDLE);
    index->colour = index->colour == NODEDB_VAMANA__REMOVED ? NODEDB_VAMANA__REMOVED + 1 : NODEDB_VAMANA__REMOVED;
    index->sweep = NODEDB_VAMANA__MENDING;
    index->sweep_at = 0;
}

NODEDB_VAMANA_API bool nodedb_vamana_maintain(nodedb_vamana *index, uint64_t budget) {
    if (index == NULL || index->on_disk) return false;
    for (; budget > 0; budget--) {
        if (index->sweep == NODEDB_VAMANA__IDLE) {
            if (index->removed == 0) return false;
            nodedb_vamana__sweep_begin(index);
        }
        nodedb_vamana__sweep_step(index);
    }
    return index->sweep != NODEDB_VAMANA__IDLE || index->removed > 0;
}

/* The last vector is gone: so are all traces of the others. */
static void nodedb_vamana__forget_all(nodedb_vamana *index) {
    uint32_t slot;
    assert(index->live == 0);
    for (slot = 0; slot < index->slots; slot++) index->states[slot] = NODEDB_VAMANA__FREE;
    index->slots = 0, index->removed = 0, index->first_free = NODEDB_VAMANA__NONE, index->entry = NODEDB_VAMANA__NONE;
    index->sweep = NODEDB_VAMANA__IDLE, index->norm_max = 0, index->entry_due = 0;
}

static void nodedb_vamana__remove_slot(nodedb_vamana *index, uint32_t slot) {
    uint32_t removed_max = index->slots / NODEDB_VAMANA__REMOVED_SHARE, i;
    nodedb_vamana__table_drop(index, slot);
    index->states[slot] = index->colour;
    index->live--, index->removed++;
    if (index->live == 0) {
        nodedb_vamana__forget_all(index);
        return;
    }
    if (slot == index->entry) nodedb_vamana__choose_entry(index);
    if (removed_max < NODEDB_VAMANA__REMOVED_MIN) removed_max = NODEDB_VAMANA__REMOVED_MIN;
    if (index->sweep == NODEDB_VAMANA__IDLE && index->removed >= removed_max) nodedb_vamana__sweep_begin(index);
    for (i = 0; i < NODEDB_VAMANA__SWEEP_PER_REMOVE && index->sweep != NODEDB_VAMANA__IDLE; i++)
        nodedb_vamana__sweep_step(index);
}

static nodedb_status nodedb_vamana__check_writable(const nodedb_vamana *index, nodedb_error *err) {
    if (index == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "index is NULL");
    if (index->on_disk) return nodedb__fail(err, NODEDB_ERR_STATE, 0, "%s was opened on disk, read-only", index->path);
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_remove(nodedb_vamana *index, uint64_t id, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    uint32_t slot;
    if (status != NODEDB_OK) return status;
    slot = nodedb_vamana__find(index, id);
    if (slot == NODEDB_VAMANA__NONE)
        return nodedb__fail(err, NODEDB_ERR_NOT_FOUND, 0, "there is no vector with id %llu", (unsigned long long)id);
    nodedb_vamana__remove_slot(index, slot);
    return NODEDB_OK;
}

static void nodedb_vamana__note_norm(nodedb_vamana *index, uint32_t slot, float norm) {
    if (index->norms == NULL) return;
    index->norms[slot] = norm;
    if (index->metric == NODEDB_VAMANA_IP && norm > index->norm_max) index->norm_max = norm;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_insert(nodedb_vamana *index, uint64_t id, const void *vector,
                                                     nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    nodedb_vamana_searcher *s;
    uint32_t slot, old, i, keep;
    const uint32_t *row;
    float norm;
    uint64_t back;
    if (status != NODEDB_OK) return status;
    if (vector == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "vector is NULL");
    s = index->writer;
    status = nodedb_vamana__prepare(index, vector, s->query, &norm, -1, err);
    if (status == NODEDB_OK) status = nodedb_vamana__make_room(index, 1, err);
    if (status != NODEDB_OK) return status;

    slot = nodedb_vamana__take_slot(index);
    memcpy(nodedb_vamana__vector(index, slot), s->query, index->stride);
    nodedb_vamana__note_norm(index, slot, norm);
    old = nodedb_vamana__find(index, id);
    if (old != NODEDB_VAMANA__NONE) {
        nodedb_vamana__remove_slot(index, old);
        if (index->live == 0) return nodedb_vamana_insert(index, id, vector, err); /* its slot went with all others */
    }
    nodedb_vamana__choose_neighbours(index, s, slot);
    index->ids[slot] = id;
    index->states[slot] = NODEDB_VAMANA__LIVE;
    index->live++;
    if (!nodedb_vamana__table_add(index, slot)) assert(false);
    row = nodedb_vamana__row(index, slot);
    back = slot;
    keep = index->degree - index->degree / NODEDB_VAMANA__SLACK;
    for (i = 1; i <= row[0]; i++) nodedb_vamana__add_edges(index, s, row[i], &back, 1, keep);
    if (index->live >= index->entry_due) nodedb_vamana__choose_entry(index);
    return NODEDB_OK;
}

/* ===================================================================================================================
 * BATCH BUILD
 * ParlayANN's prefix doubling: batches as large as the graph so far, at most 2% of all. All of a batch search the same
 * graph, which does not change meanwhile, and write only their own rows; then the reverse edges, sorted by the node
 * that they leave, are added, each node by one thread. Who does what decides nothing, so neither does the number of
 * threads.
 * ================================================================================================================ */
#define NODEDB_VAMANA__BATCH_SHARE 50u      /* the largest batch is 1/50 of all */
#define NODEDB_VAMANA__ALONE_BELOW 64u      /* smaller batches are not worth starting threads */
#define NODEDB_VAMANA__PROGRESS_CHUNK 8u    /* items that a thread takes at a time */
#define NODEDB_VAMANA__RADIX_BITS 11u

typedef struct nodedb_vamana__build { /* all that a build's threads share; they write rows, `next`, and nothing else */
    nodedb_vamana *index;
    const uint8_t *input;         /* n vectors */
    const uint32_t *order;        /* a permutation of 0 .. n-1: the order of insertion */
    const uint32_t *slot_of;      /* by input position */
    uint64_t *pairs, *pairs_other; /* reverse edges: node that they leave << 32 | new node */
    size_t *groups;               /* where each node's pairs begin, and the end */
    size_t pair_count, group_count, pairs_max;
    uint64_t from;                /* the batch begins at order[from] */
    size_t items;                 /* of the running phase */
    size_t next;                  /* first item that no thread has taken */
    void (*run)(struct nodedb_vamana__build *build, nodedb_vamana_searcher *s, size_t item);
    nodedb_vamana_searcher *searchers[NODEDB_VAMANA_MAX_THREADS];
    uint32_t threads;
} nodedb_vamana__build;

typedef struct nodedb_vamana__worker {
    nodedb_vamana__build *build;
    nodedb_vamana_searcher *searcher;
    pthread_t thread;
    bool started;
} nodedb_vamana__worker;

static void *nodedb_vamana__work(void *argument) {
    nodedb_vamana__worker *worker = (nodedb_vamana__worker *)argument;
    nodedb_vamana__build *build = worker->build;
    for (;;) {
        size_t item = nodedb__add_relaxed(&build->next, (size_t)NODEDB_VAMANA__PROGRESS_CHUNK), i;
        if (item >= build->items) return NULL;
        for (i = item; i < build->items && i < item + NODEDB_VAMANA__PROGRESS_CHUNK; i++)
            build->run(build, worker->searcher, i);
    }
}

/* Runs one phase on all threads. A thread that the system refuses is not missed: the others take its items. */
static void nodedb_vamana__run_phase(nodedb_vamana__build *build, size_t items,
                                     void (*run)(nodedb_vamana__build *, nodedb_vamana_searcher *, size_t)) {
    nodedb_vamana__worker workers[NODEDB_VAMANA_MAX_THREADS];
    uint32_t i, threads = items < NODEDB_VAMANA__ALONE_BELOW ? 1 : build->threads;
    build->items = items, build->next = 0, build->run = run;
    for (i = 0; i < threads; i++) workers[i].build = build, workers[i].searcher = build->searchers[i];
    for (i = 1; i < threads; i++)
        workers[i].started = pthread_create(&workers[i].thread, NULL, nodedb_vamana__work, &workers[i]) == 0;
    (void)nodedb_vamana__work(&workers[0]);
    for (i = 1; i < threads; i++)
        if (workers[i].started) (void)pthread_join(workers[i].thread, NULL);
}

static void nodedb_vamana__build_choose(nodedb_vamana__build *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana__choose_neighbours(build->index, s, build->slot_of[build->order[build->from + item]]);
}

static void nodedb_vamana__build_reverse(nodedb_vamana__build *build, nodedb_vamana_searcher *s, size_t item) {
    size_t from = build->groups[item], to = build->groups[item + 1];
    nodedb_vamana__add_edges(build->index, s, (uint32_t)(build->pairs[from] >> 32), build->pairs + from, to - from,
                             build->index->degree);
}

/* Puts a batch's vectors into their slots. Not yet live: nobody points to them, and nobody may choose them. */
static void nodedb_vamana__build_store(nodedb_vamana__build *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana *index = build->index;
    uint32_t at = build->order[build->from + item], slot = build->slot_of[at];
    float norm = 0;
    (void)s;
    (void)nodedb_vamana__prepare(index, build->input + (size_t)at * index->vector_bytes,
                                 nodedb_vamana__vector(index, slot), &norm, -1, NULL); /* has passed once already */
    if (index->norms != NULL) index->norms[slot] = norm;
}

/* Collects the reverse edges of a batch and sorts them, stably, by the node that they leave: least digit first. */
static void nodedb_vamana__build_collect(nodedb_vamana__build *build, size_t batch) {
    nodedb_vamana *index = build->index;
    size_t i, counts[1u << NODEDB_VAMANA__RADIX_BITS];
    unsigned shift;
    build->pair_count = 0;
    for (i = 0; i < batch; i++) {
        uint32_t slot = build->slot_of[build->order[build->from + i]], j;
        const uint32_t *row = nodedb_vamana__row(index, slot);
        for (j = 1; j <= row[0]; j++) build->pairs[build->pair_count++] = (uint64_t)row[j] << 32 | slot;
    }
    assert(build->pair_count <= build->pairs_max);
    for (shift = 32; shift < 64 && (uint64_t)index->slots >> (shift - 32) != 0; shift += NODEDB_VAMANA__RADIX_BITS) {
        size_t sum = 0, mask = (1u << NODEDB_VAMANA__RADIX_BITS) - 1;
        uint64_t *swap = build->pairs;
        memset(counts, 0, sizeof counts);
        for (i = 0; i < build->pair_count; i++) counts[build->pairs[i] >> shift & mask]++;
        for (i = 0; i <= mask; i++) {
            size_t count = counts[i];
            counts[i] = sum, sum += count;
        }
        for (i = 0; i < build->pair_count; i++)
            build->pairs_other[counts[build->pairs[i] >> shift & mask]++] = build->pairs[i];
        build->pairs = build->pairs_other, build->pairs_other = swap;
    }
    build->group_count = 0;
    for (i = 0; i < build->pair_count; i++)
        if (i == 0 || build->pairs[i] >> 32 != build->pairs[i - 1] >> 32) build->groups[build->group_count++] = i;
    build->groups[build->group_count] = build->pair_count;
}

static void nodedb_vamana__build_batch(nodedb_vamana__build *build, size_t batch) {
    nodedb_vamana *index = build->index;
    size_t i;
    nodedb_vamana__run_phase(build, batch, nodedb_vamana__build_store);
    for (i = 0; i < batch; i++) {
        uint32_t slot = build->slot_of[build->order[build->from + i]];
        if (index->norms != NULL) nodedb_vamana__note_norm(index, slot, index->norms[slot]);
    }
    if (index->entry != NODEDB_VAMANA__NONE) {
        nodedb_vamana__run_phase(build, batch, nodedb_vamana__build_choose);
        nodedb_vamana__build_collect(build, batch);
        nodedb_vamana__run_phase(build, build->group_count, nodedb_vamana__build_reverse);
    }
    for (i = 0; i < batch; i++) index->states[build->slot_of[build->order[build->from + i]]] = NODEDB_VAMANA__LIVE;
    index->live += (uint32_t)batch;
}

/* Inserts everything, batch by batch; returns how many before it was cancelled. */
static uint64_t nodedb_vamana__build_all(nodedb_vamana__build *build, uint64_t n, nodedb_vamana_progress progress,
                                         void *ctx) {
    nodedb_vamana *index = build->index;
    uint64_t done = 0, batch_max = build->pairs_max / index->degree;
    while (done < n) {
        uint64_t batch = index->live < 1 ? 1 : index->live < batch_max ? index->live : batch_max;
        if (batch > n - done) batch = n - done;
        build->from = done;
        nodedb_vamana__build_batch(build, (size_t)batch);
        done += batch;
        if (index->live >= index->entry_due || done == n) nodedb_vamana__choose_entry(index);
        if (progress != NULL && !progress(ctx, done, n) && done < n) break;
    }
    return done;
}

/* Checks all input, so that nothing is done if any of it is wrong. The ids go to their slots and into the table. */
static nodedb_status nodedb_vamana__build_admit(nodedb_vamana *index, const uint64_t *ids, const uint8_t *input,
                                                uint64_t n,
                                                uint32_t *slot_of, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    uint64_t i;
    float norm;
    for (i = 0; i < n && status == NODEDB_OK; i++)
        status = nodedb_vamana__prepare(index, input + (size_t)i * index->vector_bytes, index->writer->query, &norm,
                                        (int64_t)i, err);
    if (status != NODEDB_OK) return status;
    for (i = 0; i < n; i++) {
        uint64_t id = ids != NULL ? ids[i] : i;
        if (nodedb_vamana__find(index, id) != NODEDB_VAMANA__NONE) {
            status = nodedb__fail(err, NODEDB_ERR_EXISTS, 0, "vector %llu: the id %llu is there already",
                                  (unsigned long long)i, (unsigned long long)id);
            break;
        }
        slot_of[i] = nodedb_vamana__take_slot(index);
        index->ids[slot_of[i]] = id;
        if (!nodedb_vamana__table_add(index, slot_of[i])) assert(false);
    }
    while (status != NODEDB_OK && i-- > 0) {
        nodedb_vamana__table_drop(index, slot_of[i]);
        nodedb_vamana__free_slot(index, slot_of[i]);
    }
    return status;
}

/* What a build needs beside the index: numbers of 32-bit words of slot_of and order, 64-bit words of pairs, groups. */
static nodedb_status nodedb_vamana__build_run(nodedb_vamana *index, nodedb_vamana__build *build, uint32_t *slot_of,
                                              uint32_t *order, const uint64_t *ids, uint64_t n,
                                              nodedb_vamana_progress progress, void *ctx, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__make_room(index, n, err);
    uint64_t random = index->seed, i, done;
    if (status == NODEDB_OK) status = nodedb_vamana__build_admit(index, ids, build->input, n, slot_of, err);
    if (status != NODEDB_OK) return status;
    for (i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (i = n; i > 1; i--) { /* Fisher-Yates */
        uint64_t other = nodedb__mix64(random++) % i;
        uint32_t swap = order[i - 1];
        order[i - 1] = order[other], order[other] = swap;
    }
    build->slot_of = slot_of, build->order = order;
    done = nodedb_vamana__build_all(build, n, progress, ctx);
    for (i = done; i < n; i++) {
        nodedb_vamana__table_drop(index, slot_of[order[i]]);
        nodedb_vamana__free_slot(index, slot_of[order[i]]);
    }
    if (done == n) return NODEDB_OK;
    return nodedb__fail(err, NODEDB_ERR_CANCELLED, 0, "cancelled after %llu of %llu vectors", (unsigned long long)done,
                        (unsigned long long)n);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_build(nodedb_vamana *index, const uint64_t *ids, const void *vectors,
                                                    uint64_t n, uint32_t threads, nodedb_vamana_progress progress,
                                                    void *progress_ctx, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    nodedb_vamana__build build;
    uint64_t batch_max = n / NODEDB_VAMANA__BATCH_SHARE + 1;
    uint64_t *pairs = NULL, *pairs_other = NULL;
    size_t *groups = NULL;
    uint32_t *positions = NULL, i;
    size_t pairs_max, bytes;
    if (status != NODEDB_OK) return status;
    if (n == 0) return NODEDB_OK;
    if (vectors == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "vectors is NULL");
    if (threads > NODEDB_VAMANA_MAX_THREADS)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "%u threads are over %u", (unsigned)threads,
                            NODEDB_VAMANA_MAX_THREADS);
    if (n > NODEDB_VAMANA_MAX_VECTORS - index->live || n > SIZE_MAX / 16 ||
        !nodedb__mul_size((size_t)batch_max, index->degree, &pairs_max) || pairs_max > SIZE_MAX / 16 ||
        !nodedb__mul_size((size_t)n, index->vector_bytes, &bytes))
        return nodedb__fail(err, NODEDB_ERR_LIMIT, 0, "%llu vectors do not fit one index", (unsigned long long)n);

    memset(&build, 0, sizeof build);
    build.index = index, build.input = (const uint8_t *)vectors, build.pairs_max = pairs_max;
    build.threads = threads == 0 ? 1 : threads;
    pairs = (uint64_t *)nodedb__alloc(&index->allocator, pairs_max * sizeof *pairs, NODEDB_CACHE_LINE_BYTES);
    pairs_other = (uint64_t *)nodedb__alloc(&index->allocator, pairs_max * sizeof *pairs, NODEDB_CACHE_LINE_BYTES);
    groups = (size_t *)nodedb__alloc(&index->allocator, (pairs_max + 1) * sizeof *groups, NODEDB_CACHE_LINE_BYTES);
    positions = (uint32_t *)nodedb__alloc(&index->allocator, 2 * (size_t)n * sizeof *positions,
                                          NODEDB_CACHE_LINE_BYTES);
    if (pairs == NULL || pairs_other == NULL || groups == NULL || positions == NULL)
        status = nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the build's lists");
    build.pairs = pairs, build.pairs_other = pairs_other, build.groups = groups;
    for (i = 0; i < build.threads && status == NODEDB_OK; i++) {
        build.searchers[i] = nodedb_vamana__searcher_new(index, index->beam_build, err);
        if (build.searchers[i] == NULL) status = NODEDB_ERR_NO_MEMORY;
    }
    if (status == NODEDB_OK)
        status = nodedb_vamana__build_run(index, &build, positions, positions + n, ids, n, progress, progress_ctx, err);
    for (i = 0; i < build.threads; i++) nodedb_vamana_searcher_destroy(build.searchers[i]);
    nodedb__release(&index->allocator, positions, 2 * (size_t)n * sizeof *positions);
    nodedb__release(&index->allocator, groups, (pairs_max + 1) * sizeof *groups);
    nodedb__release(&index->allocator, pairs_other, pairs_max * sizeof *pairs);
    nodedb__release(&index->allocator, pairs, pairs_max * sizeof *pairs);
    return status;
}

/* ===================================================================================================================
 * SEARCH
 * ================================================================================================================ */
#define NODEDB_VAMANA__DEFAULT_K 10u
#define NODEDB_VAMANA__DEFAULT_BEAM 64u
#define NODEDB_VAMANA__FILTER_SAMPLE 256u     /* vectors that are shown to a filter to learn what share it lets pass */
#define NODEDB_VAMANA__RERANK_PER_RESULT 3u   /* default of nodedb_vamana_query.rerank: 3 k ... */
#define NODEDB_VAMANA__RERANK_MORE 16u        /* ... + 16 */

/* Is `a` a worse result than `b`? Ties are settled by the id. */
static bool nodedb_vamana__worse(const nodedb_vamana *index, const nodedb_vamana__near *a,
                                 const nodedb_vamana__near *b) {
    if (a->distance != b->distance) return a->distance > b->distance;
    return index->ids[a->slot] > index->ids[b->slot];
}

/* A heap with the worst result at its head. */
static void nodedb_vamana__sift_down(const nodedb_vamana *index, nodedb_vamana__near *heap, size_t n,
                                     nodedb_vamana__near one) {
    size_t at = 0, child;
    while ((child = 2 * at + 1) < n) {
        if (child + 1 < n && nodedb_vamana__worse(index, &heap[child + 1], &heap[child])) child++;
        if (!nodedb_vamana__worse(index, &heap[child], &one)) break;
        heap[at] = heap[child], at = child;
    }
    heap[at] = one;
}

/* Keeps the best `most` of all that are offered; returns their new number. */
static size_t nodedb_vamana__offer(const nodedb_vamana *index, nodedb_vamana__near *heap, size_t n, size_t most,
                                   float distance, uint32_t slot) {
    nodedb_vamana__near one;
    size_t at, parent;
    one.distance = distance, one.slot = slot, one.expanded = 0;
    if (n == most) {
        if (nodedb_vamana__worse(index, &heap[0], &one)) nodedb_vamana__sift_down(index, heap, n, one);
        return n;
    }
    for (at = n; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!nodedb_vamana__worse(index, &one, &heap[parent])) break;
        heap[at] = heap[parent];
    }
    heap[at] = one;
    return n + 1;
}

/* Turns the heap into a list with the best first. */
static void nodedb_vamana__sort_heap(const nodedb_vamana *index, nodedb_vamana__near *heap, size_t n) {
    while (n > 1) {
        nodedb_vamana__near last = heap[--n];
        heap[n] = heap[0];
        nodedb_vamana__sift_down(index, heap, n, last);
    }
}

static bool nodedb_vamana__passes(const nodedb_vamana *index, const nodedb_vamana_query *query, uint32_t slot) {
    if (index->states[slot] != NODEDB_VAMANA__LIVE) return false;
    return query->filter == NULL || query->filter(query->filter_ctx, index->ids[slot]);
}

/* Replaces the distances of the results from codes by exact ones, and puts the results into order by them. */
static nodedb_status nodedb_vamana__rerank(nodedb_vamana_searcher *s, nodedb_vamana__near *results, size_t n,
                                           nodedb_error *err) {
    const nodedb_vamana *index = s->index;
    size_t from, i, batch, heap = 0;
    for (from = 0; from < n; from += batch) {
        nodedb_status status;
        batch = n - from < s->fetcher.batch_max ? n - from : s->fetcher.batch_max;
        if (batch > s->candidates_max) batch = s->candidates_max;
        for (i = 0; i < batch; i++) s->slots[i] = results[from + i].slot;
        status = s->fetcher.prefetch_batch(s->fetcher.ctx, s->slots, batch, err);
        if (status != NODEDB_OK) return status;
        for (i = 0; i < batch; i++) {
            nodedb_error reason;
            const void *vector = s->fetcher.fetch(s->fetcher.ctx, s->slots[i], &reason);
            float distance;
            if (vector == NULL) {
                if (err != NULL) *err = reason;
                return reason.status;
            }
            distance = nodedb_vamana__exact(index, s->query, vector);
            if (!nodedb_vamana__is_finite(distance))
                return nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s: the vector of id %llu is no vector", index->path,
                                    (unsigned long long)index->ids[s->slots[i]]);
            heap = nodedb_vamana__offer(index, results, heap, n, distance, s->slots[i]);
        }
    }
    s->computed += n;
    nodedb_vamana__sort_heap(index, results, n);
    return NODEDB_OK;
}

/* Leaves the best `most` of all that pass, by the target's measure, as a heap in s->spare; returns their number. */
static size_t nodedb_vamana__look_at_all(nodedb_vamana_searcher *s, const nodedb_vamana__target *target,
                                         const nodedb_vamana_query *query, size_t most) {
    const nodedb_vamana *index = s->index;
    uint32_t slot, i, count = 0;
    size_t n = 0;
    for (slot = 0; slot < index->slots; slot++) {
        if (nodedb_vamana__passes(index, query, slot)) s->slots[count++] = slot;
        if (count < NODEDB_VAMANA__SCAN_CHUNK && slot + 1 < index->slots) continue;
        nodedb_vamana__measure_many(index, target, s->slots, count, s->distances);
        for (i = 0; i < count; i++) n = nodedb_vamana__offer(index, s->spare, n, most, s->distances[i], s->slots[i]);
        s->computed += count;
        count = 0;
    }
    return n;
}

/* The same by exact distances from the file. */
static nodedb_status nodedb_vamana__read_all_exact(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                   size_t most,
                                                   size_t *found, nodedb_error *err) {
    const nodedb_vamana *index = s->index;
    nodedb_vamana__near *chunk = s->candidates;
    nodedb_status status = NODEDB_OK;
    uint32_t slot;
    size_t i, count = 0, n = 0;
    for (slot = 0; slot < index->slots && status == NODEDB_OK; slot++) {
        if (nodedb_vamana__passes(index, query, slot)) chunk[count++].slot = slot;
        if (count < NODEDB_VAMANA__SCAN_CHUNK && slot + 1 < index->slots) continue;
        status = nodedb_vamana__rerank(s, chunk, count, err);
        for (i = 0; i < count && status == NODEDB_OK; i++)
            n = nodedb_vamana__offer(index, s->spare, n, most, chunk[i].distance, chunk[i].slot);
        count = 0;
    }
    *found = n;
    return status;
}

/* How wide a beam must be so that about `beam` of its entries pass the filter; 0: looking at every vector is cheaper. A
 * walk costs about half a row of distances for each entry of its beam, a scan one distance for each vector that passes
 * and about a quarter of one for asking the filter. */
static uint32_t nodedb_vamana__beam_behind_filter(const nodedb_vamana *index, const nodedb_vamana_query *query,
                                                  uint32_t beam) {
    uint64_t i, n = index->slots < NODEDB_VAMANA__FILTER_SAMPLE ? index->slots : NODEDB_VAMANA__FILTER_SAMPLE;
    uint64_t live = 0, pass = 0, wide;
    for (i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)(i * index->slots / n);
        if (index->states[slot] != NODEDB_VAMANA__LIVE) continue;
        live++;
        pass += query->filter(query->filter_ctx, index->ids[slot]) ? 1 : 0;
    }
    if (pass == 0) return 0;
    wide = ((uint64_t)beam * live + pass - 1) / pass;
    if (wide > NODEDB_VAMANA_MAX_BEAM || wide * index->degree / 2 > index->live * pass / live + index->live / 4)
        return 0;
    return (uint32_t)wide;
}

/* Entries that a list of `wanted` results needs, however large a k was asked for. */
static uint32_t nodedb_vamana__at_most_live(const nodedb_vamana *index, uint32_t wanted) {
    return wanted < index->live ? wanted : index->live > 0 ? index->live : 1;
}

typedef struct nodedb_vamana__plan { /* a query with its defaults filled in */
    uint32_t k, beam, keep; /* keep: results before the rerank */
    bool scan;
} nodedb_vamana__plan;

static nodedb_status nodedb_vamana__plan_query(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                               nodedb_vamana__plan *plan, nodedb_error *err) {
    const nodedb_vamana *index = s->index;
    uint64_t keep;
    memset(plan, 0, sizeof *plan);
    if (query->k > NODEDB_VAMANA_MAX_BEAM || query->beam > NODEDB_VAMANA_MAX_BEAM)
        return nodedb__fail(err, NODEDB_ERR_LIMIT, 0, "k %u or beam %u is over %u", (unsigned)query->k,
                            (unsigned)query->beam,
                            NODEDB_VAMANA_MAX_BEAM);
    plan->k = query->k == 0 ? NODEDB_VAMANA__DEFAULT_K : query->k;
    plan->beam = query->beam == 0 ? NODEDB_VAMANA__DEFAULT_BEAM : query->beam;
    if (plan->beam < plan->k) plan->beam = plan->k;
    keep = plan->k;
    if (index->coded) {
        keep = query->rerank != 0 ? query->rerank
                                  : (uint64_t)plan->k * NODEDB_VAMANA__RERANK_PER_RESULT + NODEDB_VAMANA__RERANK_MORE;
        if (keep < plan->k) keep = plan->k;
        if (keep > plan->beam) keep = plan->beam;
    }
    plan->keep = (uint32_t)keep;
    plan->scan = plan->beam >= index->live; /* looking at all of them costs less than a walk, and is exact */
    if (!plan->scan && query->filter != NULL) {
        uint32_t wide = nodedb_vamana__beam_behind_filter(index, query, plan->beam);
        if (wide == 0 || wide >= index->live) plan->scan = true;
        else plan->beam = wide;
    }
    return nodedb_vamana__searcher_fit(s, plan->scan ? nodedb_vamana__at_most_live(index, plan->keep) : plan->beam,
                                       err);
}

/* The walk, and from its beam the results that pass, as a heap in s->spare. Looks at all if the walk has met too
 * few. */
static size_t nodedb_vamana__walk_and_collect(nodedb_vamana_searcher *s, const nodedb_vamana__target *target,
                                              const nodedb_vamana_query *query, nodedb_vamana__plan *plan) {
    const nodedb_vamana *index = s->index;
    size_t n = 0;
    uint32_t i;
    if (!plan->scan) {
        nodedb_vamana__walk(s, target, plan->beam, false);
        for (i = 0; i < s->beam_count; i++) {
            if (n == plan->keep && s->beam[i].distance > s->spare[0].distance) break;
            if (nodedb_vamana__passes(index, query, s->beam[i].slot))
                n = nodedb_vamana__offer(index, s->spare, n, plan->keep, s->beam[i].distance, s->beam[i].slot);
        }
        if (n >= plan->k) return n;
        plan->scan = true;
    }
    return nodedb_vamana__look_at_all(s, target, query, plan->keep);
}

static nodedb_status nodedb_vamana__check_question(const nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                   const nodedb_vamana_result *results, uint32_t *found,
                                                       nodedb_error *err) {
    if (found != NULL) *found = 0;
    if (s == NULL || query == NULL || query->vector == NULL || results == NULL || found == NULL)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "searcher, query, its vector, results or found is NULL");
    return NODEDB_OK;
}

static void nodedb_vamana__reads_so_far(const nodedb_vamana_searcher *s, uint64_t *reads, uint64_t *retries) {
    *reads = 0, *retries = 0;
    if (s->fetcher.counters != NULL) s->fetcher.counters(s->fetcher.ctx, reads, retries);
}

static void nodedb_vamana__finish(nodedb_vamana_searcher *s, size_t n, bool scanned, uint64_t reads, uint64_t retries,
                                  nodedb_vamana_result *results, uint32_t *found, nodedb_vamana_stats *stats) {
    uint32_t i;
    for (i = 0; i < n; i++) {
        results[i].id = s->index->ids[s->spare[i].slot];
        results[i].distance = s->spare[i].distance;
    }
    *found = (uint32_t)n;
    if (stats == NULL) return;
    nodedb_vamana__reads_so_far(s, &stats->reads, &stats->retries);
    stats->reads -= reads, stats->retries -= retries;
    stats->hops = s->hops, stats->distances = s->computed, stats->scanned = scanned;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_search(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                     nodedb_vamana_result *results, uint32_t *found,
                                                     nodedb_vamana_stats *stats, nodedb_error *err) {
    nodedb_vamana__target target;
    nodedb_vamana__plan plan;
    nodedb_status status = nodedb_vamana__check_question(searcher, query, results, found, err);
    uint64_t reads, retries;
    size_t n;
    float norm;
    if (status != NODEDB_OK) return status;
    status = nodedb_vamana__plan_query(searcher, query, &plan, err); /* first, as it may move the searcher's memory */
    if (status == NODEDB_OK)
        status = nodedb_vamana__prepare(searcher->index, query->vector, searcher->query, &norm, -1, err);
    if (status != NODEDB_OK) return status;
    searcher->hops = 0, searcher->computed = 0;
    nodedb_vamana__reads_so_far(searcher, &reads, &retries);
    target = nodedb_vamana__query_target(searcher, norm);
    n = nodedb_vamana__walk_and_collect(searcher, &target, query, &plan);
    nodedb_vamana__sort_heap(searcher->index, searcher->spare, n);
    if (searcher->index->coded) {
        status = nodedb_vamana__rerank(searcher, searcher->spare, n, err);
        if (status != NODEDB_OK) return status;
    }
    nodedb_vamana__finish(searcher, n < plan.k ? n : plan.k, plan.scan, reads, retries, results, found, stats);
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_scan(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                   nodedb_vamana_result *results, uint32_t *found,
                                                   nodedb_vamana_stats *stats, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_question(searcher, query, results, found, err);
    nodedb_vamana__target target;
    uint64_t reads, retries;
    uint32_t k;
    size_t n = 0;
    float norm;
    if (status != NODEDB_OK) return status;
    k = query->k == 0 ? NODEDB_VAMANA__DEFAULT_K : query->k;
    if (k > NODEDB_VAMANA_MAX_BEAM)
        return nodedb__fail(err, NODEDB_ERR_LIMIT, 0, "k %u is over %u", (unsigned)k, NODEDB_VAMANA_MAX_BEAM);
    status = nodedb_vamana__searcher_fit(searcher, nodedb_vamana__at_most_live(searcher->index, k), err);
    if (status == NODEDB_OK)
        status = nodedb_vamana__prepare(searcher->index, query->vector, searcher->query, &norm, -1, err);
    if (status != NODEDB_OK) return status;
    searcher->hops = 0, searcher->computed = 0;
    nodedb_vamana__reads_so_far(searcher, &reads, &retries);
    if (searcher->index->coded) {
        status = nodedb_vamana__read_all_exact(searcher, query, k, &n, err);
        if (status != NODEDB_OK) return status;
    } else {
        target = nodedb_vamana__query_target(searcher, norm);
        n = nodedb_vamana__look_at_all(searcher, &target, query, k);
    }
    nodedb_vamana__sort_heap(searcher->index, searcher->spare, n);
    nodedb_vamana__finish(searcher, n, true, reads, retries, results, found, stats);
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_vamana_searcher *nodedb_vamana_searcher_create(const nodedb_vamana *index,
                                                                        const nodedb_vamana_searcher_config *config,
                                                                        nodedb_error *err) {
    uint32_t beam = config != NULL && config->beam_max != 0 ? config->beam_max : 2 * NODEDB_VAMANA__DEFAULT_BEAM;
    nodedb_vamana_searcher *s;
    if (index == NULL || beam > NODEDB_VAMANA_MAX_BEAM) {
        (void)nodedb__fail(err, index == NULL ? NODEDB_ERR_INVALID : NODEDB_ERR_LIMIT, 0,
                           index == NULL ? "index is NULL" : "beam_max is over 1048576");
        return NULL;
    }
    s = nodedb_vamana__searcher_new(index, beam, err);
    if (s == NULL || !index->coded) return s;
    if (config != NULL && config->fetcher != NULL) {
        s->fetcher = *config->fetcher;
        if (s->fetcher.dim == index->dim && s->fetcher.batch_max > 0 && s->fetcher.prefetch_batch != NULL &&
            s->fetcher.fetch != NULL) return s;
        (void)nodedb__fail(err, NODEDB_ERR_INVALID, 0, "the fetcher has no functions, or not %u components",
                           (unsigned)index->dim);
    } else if (nodedb_vamana_fetcher_disk(index, 0, &s->fetcher, err) == NODEDB_OK) {
        s->own_fetcher = true;
        return s;
    }
    nodedb_vamana_searcher_destroy(s);
    return NULL;
}

/* ===================================================================================================================
 * CREATING AND ASKING
 * ================================================================================================================ */
#define NODEDB_VAMANA__DEFAULT_DEGREE 64u
#define NODEDB_VAMANA__DEFAULT_BEAM_BUILD 128u
#define NODEDB_VAMANA__DEFAULT_ALPHA 1.2f

static nodedb_status nodedb_vamana__check_config(const nodedb_vamana_config *c, nodedb_error *err) {
    if (c == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "config is NULL");
    if (c->dim < 1 || c->dim > NODEDB_VAMANA_MAX_DIM)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "dim %u is not in 1 .. %u", (unsigned)c->dim,
                            NODEDB_VAMANA_MAX_DIM);
    if (c->type != NODEDB_VAMANA_F32 && c->type != NODEDB_VAMANA_U8)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "type %d is neither F32 nor U8", (int)c->type);
    if (c->metric != NODEDB_VAMANA_L2 && c->metric != NODEDB_VAMANA_IP && c->metric != NODEDB_VAMANA_COSINE)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "metric %d is none of L2, IP, COSINE", (int)c->metric);
    if (c->degree != 0 && (c->degree < NODEDB_VAMANA_MIN_DEGREE || c->degree > NODEDB_VAMANA_MAX_DEGREE))
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "degree %u is not in %u .. %u", (unsigned)c->degree,
                            NODEDB_VAMANA_MIN_DEGREE, NODEDB_VAMANA_MAX_DEGREE);
    if (c->beam_build > NODEDB_VAMANA__MAX_BEAM_BUILD)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "beam_build %u is over %u", (unsigned)c->beam_build,
                            NODEDB_VAMANA__MAX_BEAM_BUILD);
    if (c->alpha != 0 && !(c->alpha >= 1 && c->alpha <= 2))
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "alpha %g is not in 1 .. 2", (double)c->alpha);
    return NODEDB_OK;
}

/* An index without arrays. */
static nodedb_vamana *nodedb_vamana__new(const nodedb_vamana_config *c, nodedb_error *err) {
    const nodedb_vamana__kernel_set *kernels;
    nodedb_vamana *index;
    if (nodedb_vamana__check_config(c, err) != NODEDB_OK) return NULL;
    kernels = nodedb_vamana__choose_kernels(c->kernel, err);
    if (kernels == NULL) return NULL;
    index = (nodedb_vamana *)nodedb__alloc_zero(&c->allocator, sizeof *index, NODEDB_CACHE_LINE_BYTES);
    if (index == NULL) {
        (void)nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for an index");
        return NULL;
    }
    index->dim = c->dim, index->type = c->type, index->metric = c->metric, index->seed = c->seed;
    index->degree = c->degree == 0 ? NODEDB_VAMANA__DEFAULT_DEGREE : c->degree;
    index->beam_build = c->beam_build == 0 ? NODEDB_VAMANA__DEFAULT_BEAM_BUILD : c->beam_build;
    index->alpha = c->alpha == 0 ? NODEDB_VAMANA__DEFAULT_ALPHA : c->alpha;
    index->kernels = kernels;
    index->allocator = c->allocator, index->logger = c->logger;
    index->io = nodedb__io_or_posix(&c->io);
    index->bytes = sizeof *index;
    index->first_free = NODEDB_VAMANA__NONE, index->entry = NODEDB_VAMANA__NONE;
    index->colour = NODEDB_VAMANA__REMOVED;
    index->fd = -1;
    nodedb_vamana__set_shape(index);
    return index;
}

NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_create(const nodedb_vamana_config *config, nodedb_error *err) {
    nodedb_vamana *index = nodedb_vamana__new(config, err);
    uint64_t capacity;
    if (index == NULL) return NULL;
    capacity = config->capacity == 0 ? NODEDB_VAMANA__FIRST_CAPACITY : config->capacity;
    if (nodedb_vamana__take_arrays(index, capacity, err) == NODEDB_OK) {
        index->writer = nodedb_vamana__searcher_new(index, index->beam_build, err);
        if (index->writer != NULL) return index;
    }
    nodedb_vamana_destroy(index);
    return NULL;
}

NODEDB_VAMANA_API void nodedb_vamana_destroy(nodedb_vamana *index) {
    nodedb_allocator allocator;
    if (index == NULL) return;
    allocator = index->allocator;
    nodedb_vamana_searcher_destroy(index->writer);
    nodedb_vamana__give(index, index->code_bias, index->capacity, sizeof(float));
    nodedb_vamana__give(index, index->code_low, index->components, sizeof(float));
    nodedb_vamana__give(index, index->code_step, index->components, sizeof(float));
    nodedb_vamana__give(index, index->checksums, index->layout.blocks + 1, sizeof(uint32_t));
    nodedb_vamana__give(index, index->path, index->path_bytes, 1);
    nodedb_vamana__give_arrays(index);
    if (index->fd >= 0) (void)index->io.close(index->io.ctx, index->fd);
    assert(index->bytes == sizeof *index);
    nodedb__release(&allocator, index, sizeof *index);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_reserve(nodedb_vamana *index, uint64_t capacity, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    return status != NODEDB_OK ? status : nodedb_vamana__grow(index, capacity, err);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_compact(nodedb_vamana *index, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    nodedb_vamana old;
    uint32_t *moved_to = NULL, slot, i;
    if (status != NODEDB_OK) return status;
    while (nodedb_vamana_maintain(index, UINT32_MAX)) { /* until nobody points to a removed node */
    }
    old = *index;
    moved_to = (uint32_t *)nodedb__alloc(&index->allocator, ((size_t)old.slots + 1) * sizeof *moved_to,
                                         NODEDB_CACHE_LINE_BYTES);
    if (moved_to == NULL)
        return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to compact %u slots", (unsigned)old.slots);
    status = nodedb_vamana__take_arrays(
        index, old.live < NODEDB_VAMANA__FIRST_CAPACITY ? NODEDB_VAMANA__FIRST_CAPACITY : old.live, err);
    if (status == NODEDB_OK) {
        index->slots = 0, index->first_free = NODEDB_VAMANA__NONE;
        for (slot = 0; slot < old.slots; slot++)
            moved_to[slot] = old.states[slot] == NODEDB_VAMANA__LIVE ? index->slots++ : NODEDB_VAMANA__NONE;
        for (slot = 0; slot < old.slots; slot++) {
            uint32_t to = moved_to[slot], *row;
            if (to == NODEDB_VAMANA__NONE) continue;
            memcpy(nodedb_vamana__vector(index, to), nodedb_vamana__vector(&old, slot), index->stride);
            row = nodedb_vamana__row(index, to);
            memcpy(row, nodedb_vamana__row(&old, slot), index->row_words * sizeof *row);
            for (i = 1; i <= row[0]; i++) row[i] = moved_to[row[i]];
            index->ids[to] = old.ids[slot];
            if (index->norms != NULL) index->norms[to] = old.norms[slot];
            index->states[to] = NODEDB_VAMANA__LIVE;
            if (!nodedb_vamana__table_add(index, to)) assert(false);
        }
        if (old.entry != NODEDB_VAMANA__NONE) index->entry = moved_to[old.entry];
        i = old.slots;
        old.bytes = index->bytes;
        nodedb_vamana__give_arrays(&old);
        index->bytes = old.bytes;
        old.slots = i;
    }
    nodedb__release(&index->allocator, moved_to, ((size_t)old.slots + 1) * sizeof *moved_to);
    return status;
}

NODEDB_VAMANA_API uint64_t nodedb_vamana_count(const nodedb_vamana *index) { return index == NULL ? 0 : index->live; }
NODEDB_VAMANA_API uint32_t nodedb_vamana_dim(const nodedb_vamana *index) { return index == NULL ? 0 : index->dim; }
NODEDB_VAMANA_API uint32_t nodedb_vamana_degree(const nodedb_vamana *index) {
    return index == NULL ? 0 : index->degree;
}
NODEDB_VAMANA_API nodedb_vamana_metric nodedb_vamana_metric_of(const nodedb_vamana *index) {
    return index == NULL ? NODEDB_VAMANA_L2 : index->metric;
}
NODEDB_VAMANA_API nodedb_vamana_type nodedb_vamana_type_of(const nodedb_vamana *index) {
    return index == NULL ? NODEDB_VAMANA_F32 : index->type;
}
NODEDB_VAMANA_API const char *nodedb_vamana_kernel(const nodedb_vamana *index) {
    return index == NULL ? "" : index->kernels->one.name;
}
NODEDB_VAMANA_API uint64_t nodedb_vamana_memory_bytes(const nodedb_vamana *index) {
    return index == NULL ? 0 : index->bytes + nodedb_vamana_searcher_memory_bytes(index->writer);
}

NODEDB_VAMANA_API void nodedb_vamana_inspect(const nodedb_vamana *index, nodedb_vamana_info *info) {
    uint32_t slot;
    if (info == NULL) return;
    memset(info, 0, sizeof *info);
    if (index == NULL) return;
    info->live = index->live, info->removed = index->removed, info->capacity = index->capacity;
    info->free = index->slots - index->live - index->removed;
    for (slot = 0; slot < index->slots; slot++)
        if (index->states[slot] == NODEDB_VAMANA__LIVE) info->mean_degree += nodedb_vamana__row(index, slot)[0];
    if (index->live > 0) info->mean_degree /= index->live;
    if (index->entry != NODEDB_VAMANA__NONE) info->entry_id = index->ids[index->entry];
}

NODEDB_VAMANA_API bool nodedb_vamana_contains(const nodedb_vamana *index, uint64_t id) {
    return index != NULL && nodedb_vamana__find(index, id) != NODEDB_VAMANA__NONE;
}

NODEDB_VAMANA_API bool nodedb_vamana_next(const nodedb_vamana *index, uint64_t *cursor, uint64_t *id) {
    if (index == NULL || cursor == NULL || id == NULL) return false;
    for (; *cursor < index->slots; ++*cursor)
        if (index->states[*cursor] == NODEDB_VAMANA__LIVE) {
            *id = index->ids[(*cursor)++];
            return true;
        }
    return false;
}

/* ===================================================================================================================
 * FILES
 * The byte tables stand in the manual. Everything has one place that follows from the header's counts, so that a reader
 * can compute all offsets and compare.
 * ================================================================================================================ */
#define NODEDB_VAMANA__MAGIC "NDBVAMAN"
#define NODEDB_VAMANA__STREAM_BLOCKS 64u  /* blocks that are written or read at a time */
#define NODEDB_VAMANA__BLOCK ((size_t)NODEDB_VAMANA_BLOCK_BYTES)

enum { /* offsets in the header block */
    NODEDB_VAMANA__AT_VERSION = 8,
    NODEDB_VAMANA__AT_DIM = 12,
    NODEDB_VAMANA__AT_TYPE = 16,
    NODEDB_VAMANA__AT_METRIC = 20,
    NODEDB_VAMANA__AT_DEGREE = 24,
    NODEDB_VAMANA__AT_BEAM_BUILD = 28,
    NODEDB_VAMANA__AT_ALPHA = 32,
    NODEDB_VAMANA__AT_ENTRY = 36,
    NODEDB_VAMANA__AT_SEED = 40,
    NODEDB_VAMANA__AT_SLOTS = 48,
    NODEDB_VAMANA__AT_LIVE = 52,
    NODEDB_VAMANA__AT_REMOVED = 56,
    NODEDB_VAMANA__AT_NORM_MAX = 60,
    NODEDB_VAMANA__AT_OFFSETS = 64, /* ids, states, norms, rows, ranges, codes, vectors, checksums, end: 8 bytes each */
    NODEDB_VAMANA__AT_TABLE_SUM = 136,
    NODEDB_VAMANA__AT_HEADER_SUM = 4092
};

static uint64_t nodedb_vamana__blocks(uint64_t bytes) {
    return (bytes + NODEDB_VAMANA_BLOCK_BYTES - 1) / NODEDB_VAMANA_BLOCK_BYTES;
}

/* Where everything is in a file of `slots` slots. No product here passes 2^32 * 2^18 = 2^50. */
static nodedb_vamana__layout nodedb_vamana__lay_out(uint32_t dim, nodedb_vamana_type type, nodedb_vamana_metric metric,
                                                    uint32_t degree, uint32_t slots) {
    nodedb_vamana__layout l;
    uint64_t at = 1, vector_blocks;
    bool f32 = type == NODEDB_VAMANA_F32;
    memset(&l, 0, sizeof l);
    l.vector_bytes = f32 ? dim * 4 : dim;
    l.vectors_per_block = l.vector_bytes <= NODEDB_VAMANA_BLOCK_BYTES ? NODEDB_VAMANA_BLOCK_BYTES / l.vector_bytes : 0;
    l.blocks_per_vector = (uint32_t)nodedb_vamana__blocks(l.vector_bytes);
    vector_blocks = l.vectors_per_block > 0 ? ((uint64_t)slots + l.vectors_per_block - 1) / l.vectors_per_block
                                            : (uint64_t)slots * l.blocks_per_vector;
    l.ids = at, at += nodedb_vamana__blocks((uint64_t)slots * 8);
    l.states = at, at += nodedb_vamana__blocks(slots);
    l.norms = at, at += metric == NODEDB_VAMANA_L2 ? 0 : nodedb_vamana__blocks((uint64_t)slots * 4);
    l.rows = at, at += nodedb_vamana__blocks((uint64_t)slots * (1 + degree) * 4);
    l.ranges = at, at += f32 ? nodedb_vamana__blocks((uint64_t)dim * 8) : 0;
    l.codes = at, at += f32 ? nodedb_vamana__blocks((uint64_t)slots * dim) : 0;
    l.vectors = at, at += vector_blocks;
    l.checksums = at;
    l.blocks = at - 1;
    l.end = at + nodedb_vamana__blocks(l.blocks * 4);
    l.ids *= NODEDB_VAMANA_BLOCK_BYTES, l.states *= NODEDB_VAMANA_BLOCK_BYTES, l.norms *= NODEDB_VAMANA_BLOCK_BYTES;
    l.rows *= NODEDB_VAMANA_BLOCK_BYTES, l.ranges *= NODEDB_VAMANA_BLOCK_BYTES, l.codes *= NODEDB_VAMANA_BLOCK_BYTES;
    l.vectors *= NODEDB_VAMANA_BLOCK_BYTES, l.checksums *= NODEDB_VAMANA_BLOCK_BYTES,
        l.end *= NODEDB_VAMANA_BLOCK_BYTES;
    return l;
}

/* Where the exact vector of a slot begins in the file. */
static uint64_t nodedb_vamana__vector_at(const nodedb_vamana__layout *l, uint32_t slot) {
    if (l->vectors_per_block == 0)
        return l->vectors + (uint64_t)slot * l->blocks_per_vector * NODEDB_VAMANA_BLOCK_BYTES;
    return l->vectors + (uint64_t)(slot / l->vectors_per_block) * NODEDB_VAMANA_BLOCK_BYTES +
           (uint64_t)(slot % l->vectors_per_block) * l->vector_bytes;
}

static void nodedb_vamana__put_offsets(uint8_t *header, const nodedb_vamana__layout *l) {
    uint64_t offsets[9], i;
    offsets[0] = l->ids, offsets[1] = l->states, offsets[2] = l->norms, offsets[3] = l->rows, offsets[4] = l->ranges;
    offsets[5] = l->codes, offsets[6] = l->vectors, offsets[7] = l->checksums, offsets[8] = l->end;
    for (i = 0; i < 9; i++) nodedb__put_u64(header + NODEDB_VAMANA__AT_OFFSETS + 8 * i, offsets[i]);
}

static void nodedb_vamana__put_f32(uint8_t *at, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    nodedb__put_u32(at, bits);
}

static float nodedb_vamana__get_f32(const uint8_t *at) {
    uint32_t bits = nodedb__get_u32(at);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Components in file order from memory order, or back: the same bytes on a little-endian machine. Moved as integers,
 * for a float on its way through a register may change the bits of a NaN. */
static void nodedb_vamana__swap_components(const nodedb_vamana *index, uint8_t *components, size_t bytes) {
    size_t at;
    if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ || index->type != NODEDB_VAMANA_F32) return;
    assert(bytes % 4 == 0);
    for (at = 0; at < bytes; at += 4) {
        uint32_t bits;
        memcpy(&bits, components + at, 4);
        nodedb__put_u32(components + at, bits);
    }
}

static nodedb_status nodedb_vamana__file_error(nodedb_error *err, nodedb_status status, int error, uint64_t offset,
                                               const char *path, const char *what) {
    (void)nodedb__fail(err, status, error, "%s: %s at offset %llu", nodedb__path_end(path), what, (unsigned long long)offset);
    if (err != NULL) err->offset = offset;
    return status;
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */

/* The range of each component over all vectors: value = low + code * step. */
static void nodedb_vamana__measure_ranges(const nodedb_vamana *index, float *low, float *step) {
    bool first = true;
    uint32_t slot, i;
    for (slot = 0; slot < index->slots; slot++) {
        const float *x = (const float *)(const void *)nodedb_vamana__vector(index, slot);
        if (index->states[slot] == NODEDB_VAMANA__FREE) continue;
        for (i = 0; i < index->dim; i++) {
            if (first || x[i] < low[i]) low[i] = x[i];
            if (first || x[i] > step[i]) step[i] = x[i];
        }
        first = false;
    }
    for (i = 0; i < index->dim; i++) step[i] = (step[i] - low[i]) / 255;
}

static uint8_t nodedb_vamana__code(float x, float low, float step) {
    float code = step > 0 ? (x - low) / step + 0.5f : 0;
    return (uint8_t)(code < 0 ? 0 : code > 255 ? 255 : code);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

typedef struct nodedb_vamana__writer { /* writes a file front to back, a stream of blocks; the first error sticks */
    const nodedb_io *io;
    const char *path;
    int fd, error;
    uint8_t *buffer;
    size_t used;
    uint64_t offset;      /* of the buffer's first byte */
    uint32_t *checksums;  /* NULL: none are wanted (any more) */
} nodedb_vamana__writer;

static void nodedb_vamana__flush(nodedb_vamana__writer *w) {
    size_t at;
    assert(w->used % NODEDB_VAMANA__BLOCK == 0);
    for (at = 0; at < w->used && w->checksums != NULL; at += NODEDB_VAMANA__BLOCK)
        w->checksums[(w->offset + at) / NODEDB_VAMANA_BLOCK_BYTES - 1] =
            nodedb__crc32c(0, w->buffer + at, NODEDB_VAMANA__BLOCK);
    if (w->error == 0) w->error = nodedb__write_all(w->io, w->fd, w->buffer, w->used, w->offset);
    w->offset += w->used, w->used = 0;
}

static void nodedb_vamana__write(nodedb_vamana__writer *w, const void *data, size_t bytes) {
    const uint8_t *p = (const uint8_t *)data;
    while (bytes > 0) {
        size_t part = NODEDB_VAMANA__STREAM_BLOCKS * NODEDB_VAMANA__BLOCK - w->used;
        if (part > bytes) part = bytes;
        memcpy(w->buffer + w->used, p, part);
        w->used += part, p += part, bytes -= part;
        if (w->used == NODEDB_VAMANA__STREAM_BLOCKS * NODEDB_VAMANA__BLOCK) nodedb_vamana__flush(w);
    }
}

/* Fills up to the next multiple of a block. */
static void nodedb_vamana__write_pad(nodedb_vamana__writer *w) {
    size_t rest = w->used % NODEDB_VAMANA__BLOCK;
    if (rest == 0) return;
    memset(w->buffer + w->used, 0, NODEDB_VAMANA__BLOCK - rest);
    w->used += NODEDB_VAMANA__BLOCK - rest;
    if (w->used == NODEDB_VAMANA__STREAM_BLOCKS * NODEDB_VAMANA__BLOCK) nodedb_vamana__flush(w);
}

static void nodedb_vamana__write_u32(nodedb_vamana__writer *w, uint32_t v) {
    uint8_t bytes[4];
    nodedb__put_u32(bytes, v);
    nodedb_vamana__write(w, bytes, 4);
}

static void nodedb_vamana__write_f32(nodedb_vamana__writer *w, float x) {
    uint8_t bytes[4];
    nodedb_vamana__put_f32(bytes, x);
    nodedb_vamana__write(w, bytes, 4);
}

/* The graph: ids, states, norms, rows. Free slots are written as zeros, removed ones all in one colour. */
static void nodedb_vamana__write_graph(const nodedb_vamana *index, nodedb_vamana__writer *w) {
    uint32_t slot, i;
    for (slot = 0; slot < index->slots; slot++) {
        uint8_t bytes[8];
        nodedb__put_u64(bytes, index->states[slot] == NODEDB_VAMANA__FREE ? 0 : index->ids[slot]);
        nodedb_vamana__write(w, bytes, 8);
    }
    nodedb_vamana__write_pad(w);
    for (slot = 0; slot < index->slots; slot++) {
        uint8_t state = index->states[slot];
        if (state > NODEDB_VAMANA__REMOVED) state = NODEDB_VAMANA__REMOVED;
        nodedb_vamana__write(w, &state, 1);
    }
    nodedb_vamana__write_pad(w);
    for (slot = 0; slot < index->slots && index->norms != NULL; slot++)
        nodedb_vamana__write_f32(w, index->states[slot] == NODEDB_VAMANA__FREE ? 0 : index->norms[slot]);
    nodedb_vamana__write_pad(w);
    for (slot = 0; slot < index->slots; slot++) {
        const uint32_t *row = nodedb_vamana__row(index, slot);
        uint32_t count = index->states[slot] == NODEDB_VAMANA__FREE ? 0 : row[0];
        nodedb_vamana__write_u32(w, count);
        for (i = 1; i <= index->degree; i++) nodedb_vamana__write_u32(w, i <= count ? row[i] : 0);
    }
    nodedb_vamana__write_pad(w);
}

/* Ranges, codes and exact vectors. `vector` has room for one. */
static void nodedb_vamana__write_vectors(const nodedb_vamana *index, nodedb_vamana__writer *w,
                                         const nodedb_vamana__layout *l,
                                         const float *low, const float *step, uint8_t *vector) {
    bool f32 = index->type == NODEDB_VAMANA_F32;
    uint32_t slot, i;
    for (i = 0; i < index->dim && f32; i++) {
        nodedb_vamana__write_f32(w, low[i]);
        nodedb_vamana__write_f32(w, step[i]);
    }
    nodedb_vamana__write_pad(w);
    for (slot = 0; slot < index->slots && f32; slot++) {
        const float *x = (const float *)(const void *)nodedb_vamana__vector(index, slot);
        bool is_free = index->states[slot] == NODEDB_VAMANA__FREE;
        for (i = 0; i < index->dim; i++) vector[i] = is_free ? 0 : nodedb_vamana__code(x[i], low[i], step[i]);
        nodedb_vamana__write(w, vector, index->dim);
    }
    nodedb_vamana__write_pad(w);
    for (slot = 0; slot < index->slots; slot++) {
        if (index->states[slot] == NODEDB_VAMANA__FREE) memset(vector, 0, index->vector_bytes);
        else memcpy(vector, nodedb_vamana__vector(index, slot), index->vector_bytes);
        nodedb_vamana__swap_components(index, vector, index->vector_bytes);
        nodedb_vamana__write(w, vector, index->vector_bytes);
        if (l->vectors_per_block == 0 || (slot + 1) % l->vectors_per_block == 0) nodedb_vamana__write_pad(w);
    }
    nodedb_vamana__write_pad(w);
}

static void nodedb_vamana__fill_header(const nodedb_vamana *index, const nodedb_vamana__layout *l, uint32_t table_sum,
                                       uint8_t *header) {
    memset(header, 0, NODEDB_VAMANA__BLOCK);
    memcpy(header, NODEDB_VAMANA__MAGIC, 8);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_VERSION, NODEDB_VAMANA_FORMAT_VERSION);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_DIM, index->dim);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_TYPE, (uint32_t)index->type);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_METRIC, (uint32_t)index->metric);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_DEGREE, index->degree);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_BEAM_BUILD, index->beam_build);
    nodedb_vamana__put_f32(header + NODEDB_VAMANA__AT_ALPHA, index->alpha);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_ENTRY, index->entry);
    nodedb__put_u64(header + NODEDB_VAMANA__AT_SEED, index->seed);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_SLOTS, index->slots);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_LIVE, index->live);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_REMOVED, index->removed);
    nodedb_vamana__put_f32(header + NODEDB_VAMANA__AT_NORM_MAX, index->norm_max);
    nodedb_vamana__put_offsets(header, l);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_TABLE_SUM, table_sum);
    nodedb__put_u32(header + NODEDB_VAMANA__AT_HEADER_SUM, nodedb__crc32c(0, header, NODEDB_VAMANA__AT_HEADER_SUM));
}

/* The whole file but for its sync. `scratch` holds two ranges and a vector. */
static void nodedb_vamana__write_file(const nodedb_vamana *index, nodedb_vamana__writer *w, float *scratch) {
    nodedb_vamana__layout l = nodedb_vamana__lay_out(index->dim, index->type, index->metric, index->degree,
                                                     index->slots);
    float *low = scratch, *step = scratch + index->dim;
    uint8_t *vector = (uint8_t *)(void *)(step + index->dim), *header = w->buffer;
    uint32_t *checksums = w->checksums, table_sum = 0;
    uint64_t i;
    w->offset = l.ids; /* the header comes last */
    if (index->type == NODEDB_VAMANA_F32) nodedb_vamana__measure_ranges(index, low, step);
    nodedb_vamana__write_graph(index, w);
    nodedb_vamana__write_vectors(index, w, &l, low, step, vector);
    if (w->used > 0) nodedb_vamana__flush(w);
    assert(w->offset == l.checksums);
    w->checksums = NULL;
    for (i = 0; i < (l.end - l.checksums) / 4; i++) {
        uint8_t bytes[4];
        nodedb__put_u32(bytes, i < l.blocks ? checksums[i] : 0);
        table_sum = nodedb__crc32c(table_sum, bytes, 4);
        nodedb_vamana__write(w, bytes, 4);
    }
    if (w->used > 0) nodedb_vamana__flush(w);
    assert(w->offset == l.end);
    nodedb_vamana__fill_header(index, &l, table_sum, header);
    w->offset = 0, w->used = NODEDB_VAMANA__BLOCK;
    nodedb_vamana__flush(w);
}

/* Makes the entry `path` of its directory durable. */
static int nodedb_vamana__sync_directory(const nodedb_io *io, const char *path, char *scratch) {
    char *slash;
    int fd, error;
    memcpy(scratch, path, strlen(path) + 1);
    slash = strrchr(scratch, '/');
    if (slash == NULL) memcpy(scratch, ".", 2);
    else slash[slash == scratch ? 1 : 0] = 0;
    fd = io->open(io->ctx, scratch, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return fd;
    error = io->sync(io->ctx, fd);
    (void)io->close(io->ctx, fd);
    return error;
}

/* `temporary` is path + ".tmp", in a buffer that may be overwritten at the end. */
static nodedb_status nodedb_vamana__save_through(const nodedb_vamana *index, nodedb_vamana__writer *w, float *scratch,
                                                 const char *path, char *temporary, nodedb_error *err) {
    const nodedb_io *io = &index->io;
    int error, closed;
    w->fd = io->open(io->ctx, temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (w->fd < 0)
        return nodedb_vamana__file_error(err, nodedb__io_status(-w->fd), -w->fd, 0, temporary, "cannot be made");
    nodedb_vamana__write_file(index, w, scratch);
    error = w->error;
    if (error == 0) error = io->sync(io->ctx, w->fd);
    closed = io->close(io->ctx, w->fd);
    if (error == 0) error = closed;
    if (error == 0) error = io->rename(io->ctx, temporary, path);
    if (error < 0) {
        (void)io->unlink(io->ctx, temporary);
        return nodedb_vamana__file_error(err, nodedb__io_status(-error), -error, w->offset, temporary,
                                         "cannot be written, synced or renamed");
    }
    error = nodedb_vamana__sync_directory(io, path, temporary);
    if (error < 0)
        return nodedb_vamana__file_error(err, nodedb__io_status(-error), -error, 0, path,
                                         "its directory cannot be synced");
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_save(const nodedb_vamana *index, const char *path, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    size_t path_bytes, checksums_bytes, scratch_bytes,
        buffer_bytes = NODEDB_VAMANA__STREAM_BLOCKS * NODEDB_VAMANA__BLOCK;
    nodedb_vamana__layout l;
    nodedb_vamana__writer w;
    float *scratch;
    char *temporary;
    if (status != NODEDB_OK) return status;
    if (path == NULL || path[0] == 0) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "path is NULL or empty");
    l = nodedb_vamana__lay_out(index->dim, index->type, index->metric, index->degree, index->slots);
    path_bytes = strlen(path) + 5;
    scratch_bytes = 3 * (size_t)index->dim * sizeof(float);
    memset(&w, 0, sizeof w);
    w.io = &index->io, w.path = path;
    if (l.blocks > SIZE_MAX / 8)
        return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the file's checksums");
    checksums_bytes = (size_t)(l.blocks + 1) * sizeof(uint32_t);
    temporary = (char *)nodedb__alloc(&index->allocator, path_bytes, 1);
    scratch = (float *)nodedb__alloc_zero(&index->allocator, scratch_bytes, NODEDB_CACHE_LINE_BYTES);
    w.buffer = (uint8_t *)nodedb__alloc(&index->allocator, buffer_bytes, NODEDB_VAMANA__BLOCK);
    w.checksums = (uint32_t *)nodedb__alloc(&index->allocator, checksums_bytes, NODEDB_CACHE_LINE_BYTES);
    if (temporary == NULL || scratch == NULL || w.buffer == NULL || w.checksums == NULL) {
        status = nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to save %s", nodedb__path_end(path));
    } else {
        uint32_t *checksums = w.checksums; /* the writer drops its pointer when it writes the table itself */
        memcpy(temporary, path, path_bytes - 5);
        memcpy(temporary + path_bytes - 5, ".tmp", 5);
        status = nodedb_vamana__save_through(index, &w, scratch, path, temporary, err);
        w.checksums = checksums;
    }
    nodedb__release(&index->allocator, w.checksums, checksums_bytes);
    nodedb__release(&index->allocator, w.buffer, buffer_bytes);
    nodedb__release(&index->allocator, scratch, scratch_bytes);
    nodedb__release(&index->allocator, temporary, path_bytes);
    return status;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

typedef struct nodedb_vamana__reader { /* reads sections of a file, block by block, each block checked as it comes in */
    const nodedb_io *io;
    const char *path;
    int fd;
    uint8_t *buffer;            /* STREAM_BLOCKS blocks */
    uint64_t offset;            /* of the next block to read */
    size_t at, filled;          /* bytes of the buffer that are used, and that are there */
    const uint32_t *checksums;  /* of the blocks from the second on; NULL: not yet read */
    uint64_t end;               /* of the blocks that have checksums */
    nodedb_error *err;
} nodedb_vamana__reader;

static nodedb_status nodedb_vamana__read_blocks(nodedb_vamana__reader *r, void *to, size_t bytes, uint64_t offset) {
    int error = nodedb__read_all(r->io, r->fd, to, bytes, offset);
    size_t at;
    if (error == -ENODATA)
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, offset, r->path, "the file ends early");
    if (error < 0)
        return nodedb_vamana__file_error(r->err, nodedb__io_status(-error), -error, offset, r->path, "cannot be read");
    for (at = 0; at < bytes && r->checksums != NULL; at += NODEDB_VAMANA__BLOCK)
        if (nodedb__crc32c(0, (uint8_t *)to + at, NODEDB_VAMANA__BLOCK) !=
            r->checksums[(offset + at) / NODEDB_VAMANA_BLOCK_BYTES - 1])
            return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, offset + at, r->path,
                                             "the block does not match its checksum");
    return NODEDB_OK;
}

static void nodedb_vamana__read_from(nodedb_vamana__reader *r, uint64_t offset) {
    assert(offset % NODEDB_VAMANA_BLOCK_BYTES == 0);
    r->offset = offset, r->at = 0, r->filled = 0;
}

static nodedb_status nodedb_vamana__read(nodedb_vamana__reader *r, void *to, size_t bytes) {
    uint8_t *p = (uint8_t *)to;
    while (bytes > 0) {
        size_t part;
        if (r->at == r->filled) {
            uint64_t left = r->end - r->offset;
            nodedb_status status;
            assert(r->offset < r->end);
            r->filled = NODEDB_VAMANA__STREAM_BLOCKS * NODEDB_VAMANA__BLOCK;
            if (r->filled > left) r->filled = (size_t)left;
            status = nodedb_vamana__read_blocks(r, r->buffer, r->filled, r->offset);
            if (status != NODEDB_OK) return status;
            r->offset += r->filled, r->at = 0;
        }
        part = r->filled - r->at < bytes ? r->filled - r->at : bytes;
        memcpy(p, r->buffer + r->at, part);
        p += part, r->at += part, bytes -= part;
    }
    return NODEDB_OK;
}

/* After the vectors of a full block. */
static void nodedb_vamana__read_skip_pad(nodedb_vamana__reader *r) {
    r->at = (r->at + NODEDB_VAMANA__BLOCK - 1) / NODEDB_VAMANA__BLOCK * NODEDB_VAMANA__BLOCK;
}

/* What the last bytes that were read say is impossible. */
static nodedb_status nodedb_vamana__nonsense(nodedb_vamana__reader *r, const char *what) {
    return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, r->offset - (r->filled - r->at), r->path, what);
}

static nodedb_status nodedb_vamana__read_header(nodedb_vamana__reader *r, nodedb_vamana_config *config,
                                                nodedb_vamana *shape,
                                                nodedb_vamana__layout *l) {
    uint8_t *h = r->buffer, expected[NODEDB_VAMANA__AT_TABLE_SUM];
    nodedb_status status = nodedb_vamana__read_blocks(r, h, NODEDB_VAMANA__BLOCK, 0);
    int64_t size = r->io->size(r->io->ctx, r->fd);
    nodedb_error reason;
    if (status != NODEDB_OK) return status;
    if (size < 0) return nodedb_vamana__file_error(r->err, NODEDB_ERR_IO, (int)-size, 0, r->path, "has no size");
    if (memcmp(h, NODEDB_VAMANA__MAGIC, 8) != 0)
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, 0, r->path,
                                         "is not a vector index: no NDBVAMAN");
    if (nodedb__crc32c(0, h, NODEDB_VAMANA__AT_HEADER_SUM) != nodedb__get_u32(h + NODEDB_VAMANA__AT_HEADER_SUM))
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, 0, r->path,
                                         "the header does not match its checksum");
    if (nodedb__get_u32(h + NODEDB_VAMANA__AT_VERSION) != NODEDB_VAMANA_FORMAT_VERSION)
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_UNSUPPORTED, 0, NODEDB_VAMANA__AT_VERSION, r->path,
                                         "is of another version of the format");
    config->dim = nodedb__get_u32(h + NODEDB_VAMANA__AT_DIM);
    config->type = nodedb__get_u32(h + NODEDB_VAMANA__AT_TYPE) == 0 ? NODEDB_VAMANA_F32 : NODEDB_VAMANA_U8;
    config->metric = nodedb__get_u32(h + NODEDB_VAMANA__AT_METRIC) == 0   ? NODEDB_VAMANA_L2
                     : nodedb__get_u32(h + NODEDB_VAMANA__AT_METRIC) == 1 ? NODEDB_VAMANA_IP
                                                                          : NODEDB_VAMANA_COSINE;
    config->degree = nodedb__get_u32(h + NODEDB_VAMANA__AT_DEGREE);
    config->beam_build = nodedb__get_u32(h + NODEDB_VAMANA__AT_BEAM_BUILD);
    config->alpha = nodedb_vamana__get_f32(h + NODEDB_VAMANA__AT_ALPHA);
    config->seed = nodedb__get_u64(h + NODEDB_VAMANA__AT_SEED);
    if (nodedb__get_u32(h + NODEDB_VAMANA__AT_TYPE) > 1 || nodedb__get_u32(h + NODEDB_VAMANA__AT_METRIC) > 2 ||
        config->degree == 0 || config->beam_build == 0 || nodedb_vamana__check_config(config, &reason) != NODEDB_OK)
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, NODEDB_VAMANA__AT_DIM, r->path,
                                         "a parameter is out of its range");
    shape->slots = nodedb__get_u32(h + NODEDB_VAMANA__AT_SLOTS);
    shape->live = nodedb__get_u32(h + NODEDB_VAMANA__AT_LIVE);
    shape->removed = nodedb__get_u32(h + NODEDB_VAMANA__AT_REMOVED);
    shape->entry = nodedb__get_u32(h + NODEDB_VAMANA__AT_ENTRY);
    shape->norm_max = nodedb_vamana__get_f32(h + NODEDB_VAMANA__AT_NORM_MAX);
    if (shape->slots > NODEDB_VAMANA_MAX_VECTORS || (uint64_t)shape->live + shape->removed > shape->slots ||
        (shape->live == 0) != (shape->entry == NODEDB_VAMANA__NONE) || !(shape->norm_max >= 0) ||
        !nodedb_vamana__is_finite(shape->norm_max) || (shape->live > 0 && shape->entry >= shape->slots))
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, NODEDB_VAMANA__AT_SLOTS, r->path,
                                         "the counts do not fit each other");
    *l = nodedb_vamana__lay_out(config->dim, config->type, config->metric, config->degree, shape->slots);
    nodedb_vamana__put_offsets(expected, l);
    if (memcmp(expected + NODEDB_VAMANA__AT_OFFSETS, h + NODEDB_VAMANA__AT_OFFSETS, 72) != 0)
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, NODEDB_VAMANA__AT_OFFSETS, r->path,
                                         "the offsets are not those of the counts");
    if ((uint64_t)size != l->end)
        return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, (uint64_t)size, r->path,
                                         "the file has another size");
    shape->layout = *l;
    return NODEDB_OK;
}

/* The table of checksums, itself checked against the header's, which is still in the buffer. */
static nodedb_status nodedb_vamana__read_table(nodedb_vamana__reader *r, const nodedb_vamana__layout *l,
                                               uint32_t *checksums) {
    uint32_t wanted = nodedb__get_u32(r->buffer + NODEDB_VAMANA__AT_TABLE_SUM), sum = 0;
    uint64_t offset, at = 0;
    for (offset = l->checksums; offset < l->end; offset += NODEDB_VAMANA__BLOCK) {
        nodedb_status status = nodedb_vamana__read_blocks(r, r->buffer, NODEDB_VAMANA__BLOCK, offset);
        size_t i;
        if (status != NODEDB_OK) return status;
        sum = nodedb__crc32c(sum, r->buffer, NODEDB_VAMANA__BLOCK);
        for (i = 0; i < NODEDB_VAMANA__BLOCK && at < l->blocks; i += 4)
            checksums[at++] = nodedb__get_u32(r->buffer + i);
    }
    if (sum == wanted) return NODEDB_OK;
    return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, l->checksums, r->path,
                                     "the table of checksums does not match the header");
}

/* Ids, states and norms, into arrays of the index that have room. */
static nodedb_status nodedb_vamana__load_slots(nodedb_vamana *index, nodedb_vamana__reader *r) {
    const nodedb_vamana__layout *l = &index->layout;
    uint32_t slot, live = 0, removed = 0;
    nodedb_status status = NODEDB_OK;
    uint8_t bytes[8];
    nodedb_vamana__read_from(r, l->ids);
    for (slot = 0; slot < index->slots; slot++) {
        status = nodedb_vamana__read(r, bytes, 8);
        if (status != NODEDB_OK) return status;
        index->ids[slot] = nodedb__get_u64(bytes);
    }
    nodedb_vamana__read_from(r, l->states);
    for (slot = 0; slot < index->slots; slot++) {
        status = nodedb_vamana__read(r, &index->states[slot], 1);
        if (status != NODEDB_OK) return status;
        if (index->states[slot] > NODEDB_VAMANA__REMOVED)
            return nodedb_vamana__nonsense(r, "a slot has no known state");
        if (index->states[slot] == NODEDB_VAMANA__REMOVED) removed++;
        if (index->states[slot] != NODEDB_VAMANA__LIVE) continue;
        live++;
        if (!nodedb_vamana__table_add(index, slot)) return nodedb_vamana__nonsense(r, "two vectors have one id");
    }
    if (live != index->live || removed != index->removed)
        return nodedb_vamana__nonsense(r, "the states are not as many as the header says");
    if (live > 0 && index->states[index->entry] != NODEDB_VAMANA__LIVE)
        return nodedb_vamana__nonsense(r, "the entry is not a vector");
    nodedb_vamana__read_from(r, l->norms);
    for (slot = 0; slot < index->slots && index->norms != NULL; slot++) {
        status = nodedb_vamana__read(r, bytes, 4);
        if (status != NODEDB_OK) return status;
        index->norms[slot] = nodedb_vamana__get_f32(bytes);
        if (!(index->norms[slot] >= 0) || !nodedb_vamana__is_finite(index->norms[slot]))
            return nodedb_vamana__nonsense(r, "a norm is not a length");
    }
    return NODEDB_OK;
}

static nodedb_status nodedb_vamana__load_rows(nodedb_vamana *index, nodedb_vamana__reader *r) {
    uint32_t slot, i;
    nodedb_vamana__read_from(r, index->layout.rows);
    for (slot = 0; slot < index->slots; slot++) {
        uint32_t *row = nodedb_vamana__row(index, slot);
        nodedb_status status = nodedb_vamana__read(r, row, index->row_words * 4);
        if (status != NODEDB_OK) return status;
        for (i = 0; i < index->row_words; i++) row[i] = nodedb__get_u32(&row[i]);
        if (row[0] > index->degree) return nodedb_vamana__nonsense(r, "a node has too many neighbours");
        if (row[0] > 0 && index->states[slot] == NODEDB_VAMANA__FREE)
            return nodedb_vamana__nonsense(r, "a free slot has neighbours");
        for (i = 1; i <= row[0]; i++)
            if (row[i] >= index->slots || row[i] == slot || index->states[row[i]] == NODEDB_VAMANA__FREE)
                return nodedb_vamana__nonsense(r, "a neighbour is not a vector");
    }
    for (slot = index->slots; slot-- > 0;)
        if (index->states[slot] == NODEDB_VAMANA__FREE) nodedb_vamana__free_slot(index, slot);
    return NODEDB_OK;
}

/* Exact vectors into the index, or only through `vector` if it is not to hold them. */
static nodedb_status nodedb_vamana__load_vectors(nodedb_vamana *index, nodedb_vamana__reader *r, uint8_t *vector,
                                                 bool keep) {
    const nodedb_vamana__layout *l = &index->layout;
    uint32_t slot, i;
    nodedb_vamana__read_from(r, l->vectors);
    for (slot = 0; slot < index->slots; slot++) {
        double squares = 0;
        nodedb_status status = nodedb_vamana__read(r, vector, index->vector_bytes);
        if (status != NODEDB_OK) return status;
        nodedb_vamana__swap_components(index, vector, index->vector_bytes);
        for (i = 0; i < index->dim && index->type == NODEDB_VAMANA_F32; i++) {
            float x;
            memcpy(&x, vector + 4 * (size_t)i, 4);
            if (!nodedb_vamana__is_finite(x)) return nodedb_vamana__nonsense(r, "a component is not a finite number");
            squares += (double)x * (double)x;
        }
        if (squares > 1.001 * (double)NODEDB_VAMANA_MAX_LENGTH * (double)NODEDB_VAMANA_MAX_LENGTH)
            return nodedb_vamana__nonsense(r, "a vector is too long");
        if (keep) memcpy(nodedb_vamana__vector(index, slot), vector, index->vector_bytes);
        if (l->vectors_per_block == 0 || (slot + 1) % l->vectors_per_block == 0) nodedb_vamana__read_skip_pad(r);
    }
    return NODEDB_OK;
}

static nodedb_status nodedb_vamana__load_codes(nodedb_vamana *index, nodedb_vamana__reader *r) {
    const nodedb_vamana__layout *l = &index->layout;
    nodedb_status status = NODEDB_OK;
    uint8_t bytes[8];
    uint32_t slot, i;
    nodedb_vamana__read_from(r, l->ranges);
    for (i = 0; i < index->dim; i++) {
        status = nodedb_vamana__read(r, bytes, 8);
        if (status != NODEDB_OK) return status;
        index->code_low[i] = nodedb_vamana__get_f32(bytes);
        index->code_step[i] = nodedb_vamana__get_f32(bytes + 4);
        if (!nodedb_vamana__is_finite(index->code_low[i]) || !nodedb_vamana__is_finite(index->code_step[i]) ||
            index->code_step[i] < 0)
            return nodedb_vamana__nonsense(r, "the range of a component is not a range");
    }
    nodedb_vamana__read_from(r, l->codes);
    for (slot = 0; slot < index->slots; slot++) {
        uint8_t *code = nodedb_vamana__vector(index, slot);
        double bias = 0;
        status = nodedb_vamana__read(r, code, index->dim);
        if (status != NODEDB_OK) return status;
        for (i = 0; i < index->dim; i++) {
            double part = (double)code[i] * (double)index->code_step[i];
            bias += part * part;
        }
        index->code_bias[slot] = (float)bias;
    }
    return NODEDB_OK;
}

/* Everything behind the header and the table of checksums. */
static nodedb_status nodedb_vamana__load(nodedb_vamana *index, nodedb_vamana__reader *r, uint64_t capacity) {
    uint32_t slots = index->slots;
    size_t vector_bytes = index->vector_bytes + 8;
    nodedb_status status;
    uint8_t *vector;
    if (capacity < slots || index->on_disk) capacity = slots;
    if (capacity < NODEDB_VAMANA__FIRST_CAPACITY) capacity = NODEDB_VAMANA__FIRST_CAPACITY;
    status = nodedb_vamana__take_arrays(index, capacity, r->err);
    if (status != NODEDB_OK) return status;
    status = nodedb_vamana__load_slots(index, r);
    if (status == NODEDB_OK) status = nodedb_vamana__load_rows(index, r);
    if (status != NODEDB_OK) return status;
    index->entry_due = 2 * (uint64_t)index->live;
    if (index->coded) {
        index->code_low = (float *)nodedb_vamana__take(index, index->components, sizeof(float),
                                                       NODEDB_CACHE_LINE_BYTES);
        index->code_step = (float *)nodedb_vamana__take(index, index->components, sizeof(float),
                                                        NODEDB_CACHE_LINE_BYTES);
        index->code_bias = (float *)nodedb_vamana__take(index, index->capacity, sizeof(float), NODEDB_CACHE_LINE_BYTES);
        if (index->code_low != NULL && index->code_step != NULL && index->code_bias != NULL)
            return nodedb_vamana__load_codes(index, r);
        return nodedb__fail(r->err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the codes of %u vectors", (unsigned)slots);
    }
    vector = (uint8_t *)nodedb__alloc(&index->allocator, vector_bytes, NODEDB_CACHE_LINE_BYTES);
    if (vector == NULL) return nodedb__fail(r->err, NODEDB_ERR_NO_MEMORY, 0, "no memory to read %s", nodedb__path_end(r->path));
    status = nodedb_vamana__load_vectors(index, r, vector, true);
    nodedb__release(&index->allocator, vector, vector_bytes);
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static bool nodedb_vamana__uring_works(const nodedb_vamana_open_config *config, const char *path) {
#if defined(NODEDB_VAMANA__URING)
    struct io_uring ring;
    int error;
#endif
    if (config->no_uring || config->io.pread != NULL) return false; /* as the caller wants */
#if defined(NODEDB_VAMANA__URING)
    error = io_uring_queue_init(1, &ring, 0);
    if (error == 0) {
        io_uring_queue_exit(&ring);
        return true;
    }
    nodedb__say(&config->logger, NODEDB_LOG_WARNING,
                "%s: io_uring is refused (%s), so exact vectors are read one by one with pread, several times slower; "
                "allow io_uring_setup in the container's seccomp profile and in kernel.io_uring_disabled",
                path, strerror(-error));
#else
    nodedb__say(&config->logger, NODEDB_LOG_WARNING,
                "%s: built without liburing, so exact vectors are read one by one with pread, several times slower; "
                "install liburing-dev and build without NODEDB_NO_LIBURING",
                path);
#endif
    return false;
}

/* Opens the file past the page cache where it may; some file systems refuse at open, others at the first read. */
static int nodedb_vamana__open_file(const nodedb_io *io, const char *path, const nodedb_vamana_open_config *config,
                                    uint8_t *block, bool *direct) {
    int fd = -EINVAL;
    *direct = false;
#if defined(O_DIRECT)
    if (config->mode == NODEDB_VAMANA_ON_DISK && !config->no_direct) {
        fd = io->open(io->ctx, path, O_RDONLY | O_DIRECT, 0);
        if (fd >= 0 && io->pread(io->ctx, fd, block, NODEDB_VAMANA__BLOCK, 0) == -EINVAL) {
            (void)io->close(io->ctx, fd);
            fd = -EINVAL;
        }
        *direct = fd >= 0;
        if (fd != -EINVAL) return fd;
        nodedb__say(&config->logger, NODEDB_LOG_WARNING,
                    "%s: this file system has no O_DIRECT, so exact vectors also fill the page cache; use ext4 or xfs",
                        path);
    }
#endif
    (void)block;
    return io->open(io->ctx, path, O_RDONLY, 0);
}

/* Opens and reads the header and the table; on success *opened is an index without arrays that owns the file. */
static nodedb_status nodedb_vamana__open_header(const char *path, const nodedb_vamana_open_config *config,
                                                nodedb_vamana__reader *r, nodedb_vamana **opened, nodedb_error *err) {
    nodedb_vamana_config parameters;
    nodedb_vamana__layout layout;
    nodedb_vamana shape, *index;
    nodedb_status status;
    bool direct;
    memset(&parameters, 0, sizeof parameters);
    memset(&shape, 0, sizeof shape);
    r->fd = nodedb_vamana__open_file(r->io, path, config, r->buffer, &direct);
    if (r->fd < 0)
        return nodedb_vamana__file_error(err, r->fd == -ENOENT ? NODEDB_ERR_NOT_FOUND : nodedb__io_status(-r->fd),
                                         -r->fd, 0,
                                         path, "cannot be opened");
    status = nodedb_vamana__read_header(r, &parameters, &shape, &layout);
    if (status != NODEDB_OK) return status;
    parameters.kernel = config->kernel;
    parameters.allocator = config->allocator, parameters.logger = config->logger, parameters.io = config->io;
    index = nodedb_vamana__new(&parameters, err);
    if (index == NULL) return err != NULL ? err->status : NODEDB_ERR_NO_MEMORY;
    index->slots = shape.slots, index->live = shape.live, index->removed = shape.removed, index->entry = shape.entry;
    index->norm_max = shape.norm_max;
    index->layout = layout;
    index->on_disk = config->mode == NODEDB_VAMANA_ON_DISK;
    index->coded = index->on_disk && index->type == NODEDB_VAMANA_F32;
    index->direct = direct;
    nodedb_vamana__set_shape(index);
    *opened = index;
    if (layout.blocks < SIZE_MAX / 8)
        index->checksums = (uint32_t *)nodedb_vamana__take(index, (size_t)layout.blocks + 1, sizeof(uint32_t),
                                                           sizeof(void *));
    if (index->checksums == NULL)
        return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the checksums of %s", nodedb__path_end(path));
    status = nodedb_vamana__read_table(r, &layout, index->checksums);
    r->checksums = index->checksums, r->end = layout.checksums;
    return status;
}

/* Gives the opened index what it needs for its mode, beside the data. */
static nodedb_status nodedb_vamana__open_mode(nodedb_vamana *index, const nodedb_vamana_open_config *config,
                                              const char *path,
                                              nodedb_vamana__reader *r, nodedb_error *err) {
    if (!index->on_disk) {
        nodedb_vamana__give(index, index->checksums, (size_t)index->layout.blocks + 1, sizeof(uint32_t));
        index->checksums = NULL;
        index->writer = nodedb_vamana__searcher_new(index, index->beam_build, err);
        return index->writer != NULL ? NODEDB_OK : NODEDB_ERR_NO_MEMORY;
    }
    index->path_bytes = strlen(path) + 1;
    index->path = (char *)nodedb_vamana__take(index, index->path_bytes, 1, 1);
    if (index->path == NULL) return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to open %s", nodedb__path_end(path));
    memcpy(index->path, path, index->path_bytes);
    index->fd = r->fd, r->fd = -1;
    index->uring = nodedb_vamana__uring_works(config, path);
    return NODEDB_OK;
}

static nodedb_vamana *nodedb_vamana__open(const char *path, const nodedb_vamana_open_config *config, bool verify,
                                          nodedb_error *err) {
    nodedb_vamana_open_config defaults;
    nodedb_vamana *index = NULL;
    nodedb_vamana__reader r;
    nodedb_status status;
    nodedb_error reason;
    nodedb_io io;
    size_t buffer_bytes = NODEDB_VAMANA__STREAM_BLOCKS * NODEDB_VAMANA__BLOCK;
    memset(&defaults, 0, sizeof defaults);
    memset(&reason, 0, sizeof reason);
    if (config == NULL) config = &defaults;
    if (path == NULL || path[0] == 0 ||
        (config->mode != NODEDB_VAMANA_IN_MEMORY && config->mode != NODEDB_VAMANA_ON_DISK)) {
        (void)nodedb__fail(err, NODEDB_ERR_INVALID, 0, "path is NULL or empty, or the mode is unknown");
        return NULL;
    }
    io = nodedb__io_or_posix(&config->io);
    memset(&r, 0, sizeof r);
    r.io = &io, r.path = path, r.fd = -1, r.err = &reason;
    r.buffer = (uint8_t *)nodedb__alloc(&config->allocator, buffer_bytes, NODEDB_VAMANA__BLOCK);
    if (r.buffer == NULL) status = nodedb__fail(&reason, NODEDB_ERR_NO_MEMORY, 0, "no memory to open %s", nodedb__path_end(path));
    else status = nodedb_vamana__open_header(path, config, &r, &index, &reason);
    if (status == NODEDB_OK) status = nodedb_vamana__load(index, &r, config->capacity);
    if (status == NODEDB_OK && verify && index->coded) { /* those that opening on disk does not read */
        uint8_t *vector = (uint8_t *)nodedb__alloc(&config->allocator, index->vector_bytes, NODEDB_CACHE_LINE_BYTES);
        status = vector != NULL ? nodedb_vamana__load_vectors(index, &r, vector, false)
                                : nodedb__fail(&reason, NODEDB_ERR_NO_MEMORY, 0, "no memory to verify %s", nodedb__path_end(path));
        nodedb__release(&config->allocator, vector, index->vector_bytes);
    }
    if (status == NODEDB_OK) status = nodedb_vamana__open_mode(index, config, path, &r, &reason);
    if (r.fd >= 0) (void)io.close(io.ctx, r.fd);
    nodedb__release(&config->allocator, r.buffer, buffer_bytes);
    if (status == NODEDB_OK) return index;
    nodedb_vamana_destroy(index);
    if (err != NULL) *err = reason;
    return NULL;
}

NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_open(const char *path, const nodedb_vamana_open_config *config,
                                                    nodedb_error *err) {
    return nodedb_vamana__open(path, config, false, err);
}

/* Opened on disk, so that ranges and codes are read and checked too; then the exact vectors. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_verify(const char *path, const nodedb_vamana_open_config *config,
                                                     nodedb_error *err) {
    nodedb_vamana_open_config reading;
    nodedb_vamana *index;
    nodedb_error reason;
    memset(&reading, 0, sizeof reading);
    if (config != NULL) reading = *config;
    reading.mode = NODEDB_VAMANA_ON_DISK;
    reading.no_uring = true, reading.no_direct = true;
    index = nodedb_vamana__open(path, &reading, true, &reason);
    if (index != NULL) {
        nodedb_vamana_destroy(index);
        return NODEDB_OK;
    }
    if (err != NULL) *err = reason;
    return reason.status;
}

/* ===================================================================================================================
 * FETCHERS
 * ================================================================================================================ */

static nodedb_status nodedb_vamana__memory_prefetch(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err) {
    const nodedb_vamana *index = (const nodedb_vamana *)ctx;
    size_t i;
    if (slots == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "slots is NULL");
    for (i = 0; i < n; i++) {
        if (slots[i] >= index->slots)
            return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "slot %u is not below %u", (unsigned)slots[i],
                                (unsigned)index->slots);
        nodedb_vamana__prefetch(nodedb_vamana__vector(index, slots[i]), index->stride);
    }
    return NODEDB_OK;
}

static const void *nodedb_vamana__memory_fetch(void *ctx, uint32_t slot, nodedb_error *err) {
    const nodedb_vamana *index = (const nodedb_vamana *)ctx;
    if (slot < index->slots) return nodedb_vamana__vector(index, slot);
    (void)nodedb__fail(err, NODEDB_ERR_INVALID, 0, "slot %u is not below %u", (unsigned)slot, (unsigned)index->slots);
    return NULL;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_fetcher_memory(const nodedb_vamana *index, nodedb_vamana_fetcher *fetcher,
                                                             nodedb_error *err) {
    if (index == NULL || fetcher == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "index or fetcher is NULL");
    if (index->coded) return nodedb__fail(err, NODEDB_ERR_STATE, 0, "%s: the exact vectors are on disk", index->path);
    memset(fetcher, 0, sizeof *fetcher);
    fetcher->ctx = (void *)(uintptr_t)index; /* only read */
    fetcher->dim = index->dim, fetcher->batch_max = UINT32_MAX;
    fetcher->prefetch_batch = nodedb_vamana__memory_prefetch, fetcher->fetch = nodedb_vamana__memory_fetch;
    return NODEDB_OK;
}

/* ---- from the disk ------------------------------------------------------------------------------------------------ A
 * pool of buffers, each for the block (or blocks) of one vector. A batch names the blocks that it needs, each once;
 * every read carries the number of its buffer as user_data, so that a completion, whichever it is, goes where it
 * belongs. */
enum { /* states of a buffer */
    NODEDB_VAMANA__BUFFER_WANTED, /* not yet submitted */
    NODEDB_VAMANA__BUFFER_READING,
    NODEDB_VAMANA__BUFFER_READY,
    NODEDB_VAMANA__BUFFER_FAILED
};
#define NODEDB_VAMANA__DEFAULT_BATCH 128u /* twice the default beam */
#define NODEDB_VAMANA__MAX_BATCH 4096u
#define NODEDB_VAMANA__READ_TRIES 2u

typedef struct nodedb_vamana__buffer {
    uint64_t offset;  /* in the file */
    uint32_t state, tries;
    int error;        /* of the last try: errno, or 0: the bytes do not match their checksum */
} nodedb_vamana__buffer;

typedef struct nodedb_vamana__disk { /* a fetcher's own; no memory is taken after its creation */
    const nodedb_vamana *index;
    nodedb_allocator allocator;
    size_t buffer_bytes;
    uint8_t *bytes;                  /* batch_max buffers, aligned to a block */
    nodedb_vamana__buffer *buffers;
    uint32_t *places;                /* buffers by offset: open addressing, at most half full */
    uint32_t places_size, batch_max;
    uint32_t used;                   /* buffers of the running batch */
    uint32_t next;                   /* first of them that was never submitted */
    uint32_t reading;                /* submitted and not completed */
    uint64_t reads, retries;
    bool uring, registered;
#if defined(NODEDB_VAMANA__URING)
    struct io_uring ring;
#endif
} nodedb_vamana__disk;

static uint8_t *nodedb_vamana__buffer_bytes(const nodedb_vamana__disk *d,
                                            uint32_t i) { return d->bytes + i * d->buffer_bytes; }

/* Books the result of a read (bytes, or -errno): ready, wanted once more, or failed. What is ready is in this machine's
 * byte order: the whole buffer, here and once, since a slot may be fetched twice (the zeros of a pad stay zeros). */
static void nodedb_vamana__book(nodedb_vamana__disk *d, uint32_t i, int64_t result) {
    nodedb_vamana__buffer *b = &d->buffers[i];
    uint8_t *bytes = nodedb_vamana__buffer_bytes(d, i);
    size_t at;
    bool good = result == (int64_t)d->buffer_bytes;
    for (at = 0; at < d->buffer_bytes && good; at += NODEDB_VAMANA__BLOCK)
        good = nodedb__crc32c(0, bytes + at, NODEDB_VAMANA__BLOCK) ==
               d->index->checksums[(b->offset + at) / NODEDB_VAMANA_BLOCK_BYTES - 1];
    if (good) nodedb_vamana__swap_components(d->index, bytes, d->buffer_bytes);
    b->error = result < 0 ? (int)-result : result < (int64_t)d->buffer_bytes ? ENODATA : 0;
    b->tries++;
    b->state = good                                    ? NODEDB_VAMANA__BUFFER_READY
               : b->tries < NODEDB_VAMANA__READ_TRIES ? NODEDB_VAMANA__BUFFER_WANTED
                                                       : NODEDB_VAMANA__BUFFER_FAILED;
    if (b->state == NODEDB_VAMANA__BUFFER_WANTED) d->retries++;
}

static void nodedb_vamana__read_now(nodedb_vamana__disk *d, uint32_t i) {
    const nodedb_io *io = &d->index->io;
    uint8_t *to = nodedb_vamana__buffer_bytes(d, i);
    while (d->buffers[i].state == NODEDB_VAMANA__BUFFER_WANTED) {
        int error = nodedb__read_all(io, d->index->fd, to, d->buffer_bytes, d->buffers[i].offset);
        d->reads++;
        nodedb_vamana__book(d, i, error < 0 ? error : (int64_t)d->buffer_bytes);
    }
}

#if defined(NODEDB_VAMANA__URING)
/* Prepares a read; false: the queue is full. */
static bool nodedb_vamana__prepare_read(nodedb_vamana__disk *d, uint32_t i) {
    struct io_uring_sqe *sqe = d->reading < NODEDB_VAMANA_QUEUE_DEPTH ? io_uring_get_sqe(&d->ring) : NULL;
    nodedb_vamana__buffer *b = &d->buffers[i];
    uint8_t *to = nodedb_vamana__buffer_bytes(d, i);
    if (sqe == NULL) return false;
    assert(b->state == NODEDB_VAMANA__BUFFER_WANTED && b->offset % NODEDB_VAMANA_BLOCK_BYTES == 0);
    if (d->registered) io_uring_prep_read_fixed(sqe, d->index->fd, to, (unsigned)d->buffer_bytes, b->offset, 0);
    else io_uring_prep_read(sqe, d->index->fd, to, (unsigned)d->buffer_bytes, b->offset);
    io_uring_sqe_set_data(sqe, (void *)(uintptr_t)i);
    b->state = NODEDB_VAMANA__BUFFER_READING;
    d->reading++, d->reads++;
    return true;
}

/* Books all completions that are there. */
static void nodedb_vamana__reap(nodedb_vamana__disk *d) {
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&d->ring, &cqe) == 0 && cqe != NULL) {
        uint32_t i = (uint32_t)(uintptr_t)io_uring_cqe_get_data(cqe);
        int64_t result = cqe->res;
        io_uring_cqe_seen(&d->ring, cqe);
        assert(i < d->used && d->buffers[i].state == NODEDB_VAMANA__BUFFER_READING && d->reading > 0);
        d->reading--;
        nodedb_vamana__book(d, i, result);
    }
}

/* Submits what is prepared and waits for `wait` completions. Interrupted and busy calls are repeated; with anything
 * else the kernel has taken nothing, and what is under way there still completes. */
static int nodedb_vamana__enter(nodedb_vamana__disk *d, unsigned wait) {
    int result;
    do {
        result = io_uring_submit_and_wait(&d->ring, wait);
        nodedb_vamana__reap(d);
    } while (result == -EINTR || ((result == -EAGAIN || result == -EBUSY) && d->reading > 0));
    return result < 0 ? result : 0;
}
#endif

/* Submits as much of the batch as the queue takes. */
static void nodedb_vamana__start_reads(nodedb_vamana__disk *d) {
#if defined(NODEDB_VAMANA__URING)
    if (!d->uring) return;
    while (d->next < d->used && nodedb_vamana__prepare_read(d, d->next)) d->next++;
    (void)nodedb_vamana__enter(d, 0); /* whoever waits for a buffer meets the error */
#else
    (void)d;
#endif
}

/* Waits until a buffer is ready or has failed. 0, or -errno if the ring is broken. */
static int nodedb_vamana__wait_for(nodedb_vamana__disk *d, uint32_t i) {
#if defined(NODEDB_VAMANA__URING)
    while (d->uring && d->buffers[i].state < NODEDB_VAMANA__BUFFER_READY) {
        int error;
        if (d->buffers[i].state == NODEDB_VAMANA__BUFFER_WANTED && d->next > i) (void)nodedb_vamana__prepare_read(d, i);
        while (d->next < d->used && nodedb_vamana__prepare_read(d, d->next)) d->next++;
        error = nodedb_vamana__enter(d, 1);
        if (error < 0) return error;
    }
#endif
    nodedb_vamana__read_now(d, i);
    return 0;
}

/* Waits until no read is under way, so that the buffers may be used for others. */
static void nodedb_vamana__drain(nodedb_vamana__disk *d) {
#if defined(NODEDB_VAMANA__URING)
    while (d->uring && d->reading > 0) (void)nodedb_vamana__enter(d, 1);
#endif
    (void)d;
    assert(d->reading == 0);
}

/* Where the buffer of an offset is in `places`, or the empty place (NONE) for it. */
static uint32_t *nodedb_vamana__buffer_place(const nodedb_vamana__disk *d, uint64_t offset) {
    uint32_t mask = d->places_size - 1, at = (uint32_t)nodedb__mix64(offset) & mask;
    while (d->places[at] != NODEDB_VAMANA__NONE && d->buffers[d->places[at]].offset != offset) at = (at + 1) & mask;
    return &d->places[at];
}

static uint64_t nodedb_vamana__block_at(const nodedb_vamana__disk *d, uint32_t slot) {
    return nodedb_vamana__vector_at(&d->index->layout, slot) / NODEDB_VAMANA_BLOCK_BYTES * NODEDB_VAMANA_BLOCK_BYTES;
}

static nodedb_status nodedb_vamana__disk_prefetch(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err) {
    nodedb_vamana__disk *d = (nodedb_vamana__disk *)ctx;
    size_t i;
    if (slots == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "slots is NULL");
    if (n > d->batch_max)
        return nodedb__fail(err, NODEDB_ERR_LIMIT, 0, "%llu slots are over the fetcher's %u", (unsigned long long)n,
                            (unsigned)d->batch_max);
    for (i = 0; i < n; i++)
        if (slots[i] >= d->index->slots)
            return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "slot %u is not below %u", (unsigned)slots[i],
                                (unsigned)d->index->slots);
    nodedb_vamana__drain(d);
    memset(d->places, 0xFF, d->places_size * sizeof *d->places);
    d->used = 0, d->next = 0;
    for (i = 0; i < n; i++) {
        uint64_t offset = nodedb_vamana__block_at(d, slots[i]);
        uint32_t *place = nodedb_vamana__buffer_place(d, offset);
        nodedb_vamana__buffer *b;
        if (*place != NODEDB_VAMANA__NONE) continue;
        *place = d->used;
        b = &d->buffers[d->used++];
        b->offset = offset, b->state = NODEDB_VAMANA__BUFFER_WANTED, b->tries = 0, b->error = 0;
    }
    nodedb_vamana__start_reads(d);
    return NODEDB_OK;
}

static const void *nodedb_vamana__disk_fetch(void *ctx, uint32_t slot, nodedb_error *err) {
    nodedb_vamana__disk *d = (nodedb_vamana__disk *)ctx;
    const char *path = d->index->path;
    const nodedb_vamana__buffer *b;
    uint32_t i;
    int error;
    if (slot >= d->index->slots) {
        (void)nodedb__fail(err, NODEDB_ERR_INVALID, 0, "slot %u is not below %u", (unsigned)slot,
                           (unsigned)d->index->slots);
        return NULL;
    }
    i = *nodedb_vamana__buffer_place(d, nodedb_vamana__block_at(d, slot));
    if (i == NODEDB_VAMANA__NONE) {
        (void)nodedb__fail(err, NODEDB_ERR_STATE, 0, "slot %u was not announced by prefetch_batch", (unsigned)slot);
        return NULL;
    }
    error = nodedb_vamana__wait_for(d, i);
    b = &d->buffers[i];
    if (error == 0 && b->state == NODEDB_VAMANA__BUFFER_READY) {
        size_t within = (size_t)(nodedb_vamana__vector_at(&d->index->layout, slot) - b->offset);
        return nodedb_vamana__buffer_bytes(d, i) + within;
    }
    if (error == 0) error = -b->error;
    if (error == 0)
        (void)nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, b->offset, path,
                                        "read twice, does not match its checksum");
    else if (error == -ENODATA)
        (void)nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, b->offset, path, "the file ends early");
    else
        (void)nodedb_vamana__file_error(err, nodedb__io_status(-error), -error, b->offset, path,
                                        "cannot be read, tried twice");
    return NULL;
}

static void nodedb_vamana__disk_counters(void *ctx, uint64_t *reads, uint64_t *retries) {
    const nodedb_vamana__disk *d = (const nodedb_vamana__disk *)ctx;
    *reads = d->reads, *retries = d->retries;
}

static void nodedb_vamana__disk_destroy(void *ctx) {
    nodedb_vamana__disk *d = (nodedb_vamana__disk *)ctx;
    nodedb_allocator allocator = d->allocator;
    nodedb_vamana__drain(d);
#if defined(NODEDB_VAMANA__URING)
    if (d->uring) io_uring_queue_exit(&d->ring);
#endif
    nodedb__release(&allocator, d->places, d->places_size * sizeof *d->places);
    nodedb__release(&allocator, d->buffers, d->batch_max * sizeof *d->buffers);
    nodedb__release(&allocator, d->bytes, d->batch_max * d->buffer_bytes);
    nodedb__release(&allocator, d, sizeof *d);
}

/* A ring of its own, and the pool registered with it. Whatever is refused is done without, and said. */
static void nodedb_vamana__disk_ring(nodedb_vamana__disk *d) {
#if defined(NODEDB_VAMANA__URING)
    struct iovec pool;
    int error;
    if (!d->index->uring || d->batch_max == 1) return; /* one read at a time gains nothing */
    error = io_uring_queue_init(NODEDB_VAMANA_QUEUE_DEPTH, &d->ring, 0);
    if (error < 0) {
        nodedb__say(&d->index->logger, NODEDB_LOG_WARNING,
                    "%s: no io_uring for this searcher (%s), it reads with pread; raise the limit of locked memory",
                    d->index->path, strerror(-error));
        return;
    }
    d->uring = true;
    pool.iov_base = d->bytes, pool.iov_len = d->batch_max * d->buffer_bytes;
    error = io_uring_register_buffers(&d->ring, &pool, 1);
    d->registered = error == 0;
    if (error < 0)
        nodedb__say(&d->index->logger, NODEDB_LOG_INFO,
                    "%s: read buffers are not registered (%s), so each read maps its own; raise RLIMIT_MEMLOCK",
                    d->index->path, strerror(-error));
#else
    (void)d;
#endif
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_fetcher_disk(const nodedb_vamana *index, uint32_t batch_max,
                                                           nodedb_vamana_fetcher *fetcher, nodedb_error *err) {
    nodedb_vamana__disk *d;
    if (index == NULL || fetcher == NULL || batch_max > NODEDB_VAMANA__MAX_BATCH)
        return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "index or fetcher is NULL, or batch_max is over %u",
                            NODEDB_VAMANA__MAX_BATCH);
    if (index->fd < 0) return nodedb__fail(err, NODEDB_ERR_STATE, 0, "the index was not opened on disk");
    memset(fetcher, 0, sizeof *fetcher);
    d = (nodedb_vamana__disk *)nodedb__alloc_zero(&index->allocator, sizeof *d, NODEDB_CACHE_LINE_BYTES);
    if (d == NULL) return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a fetcher");
    d->index = index, d->allocator = index->allocator;
    d->batch_max = batch_max == 0 ? NODEDB_VAMANA__DEFAULT_BATCH : batch_max;
    d->buffer_bytes = (size_t)index->layout.blocks_per_vector * NODEDB_VAMANA__BLOCK;
    for (d->places_size = 16; d->places_size < 2 * d->batch_max;) d->places_size *= 2;
    d->bytes = (uint8_t *)nodedb__alloc(&d->allocator, d->batch_max * d->buffer_bytes, NODEDB_VAMANA__BLOCK);
    d->buffers = (nodedb_vamana__buffer *)nodedb__alloc_zero(&d->allocator, d->batch_max * sizeof *d->buffers,
                                                             sizeof(void *));
    d->places = (uint32_t *)nodedb__alloc(&d->allocator, d->places_size * sizeof *d->places, sizeof(void *));
    if (d->bytes == NULL || d->buffers == NULL || d->places == NULL) {
        nodedb_vamana__disk_destroy(d);
        return nodedb__fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a fetcher's buffers");
    }
    memset(d->places, 0xFF, d->places_size * sizeof *d->places);
    nodedb_vamana__disk_ring(d);
    fetcher->ctx = d, fetcher->dim = index->dim, fetcher->batch_max = d->batch_max;
    fetcher->prefetch_batch = nodedb_vamana__disk_prefetch, fetcher->fetch = nodedb_vamana__disk_fetch;
    fetcher->counters = nodedb_vamana__disk_counters, fetcher->destroy = nodedb_vamana__disk_destroy;
    return NODEDB_OK;
}

/* ---- one vector back --------------------------------------------------------------------------------------------- */

static void nodedb_vamana__to_floats(const nodedb_vamana *index, uint32_t slot, const uint8_t *vector, float *out) {
    float factor = index->type == NODEDB_VAMANA_F32 && index->metric == NODEDB_VAMANA_COSINE ? index->norms[slot] : 1;
    uint32_t i;
    for (i = 0; i < index->dim; i++)
        out[i] = factor * (index->type == NODEDB_VAMANA_F32 ? ((const float *)(const void *)vector)[i] : vector[i]);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_get(const nodedb_vamana *index, uint64_t id, float *out,
                                                  nodedb_error *err) {
    nodedb_vamana_fetcher fetcher;
    nodedb_status status;
    nodedb_error reason;
    const void *vector;
    uint32_t slot;
    if (index == NULL || out == NULL) return nodedb__fail(err, NODEDB_ERR_INVALID, 0, "index or out is NULL");
    slot = nodedb_vamana__find(index, id);
    if (slot == NODEDB_VAMANA__NONE)
        return nodedb__fail(err, NODEDB_ERR_NOT_FOUND, 0, "there is no vector with id %llu", (unsigned long long)id);
    if (!index->coded) {
        nodedb_vamana__to_floats(index, slot, nodedb_vamana__vector(index, slot), out);
        return NODEDB_OK;
    }
    status = nodedb_vamana_fetcher_disk(index, 1, &fetcher, err);
    if (status != NODEDB_OK) return status;
    status = fetcher.prefetch_batch(fetcher.ctx, &slot, 1, &reason);
    vector = status == NODEDB_OK ? fetcher.fetch(fetcher.ctx, slot, &reason) : NULL;
    if (vector != NULL) nodedb_vamana__to_floats(index, slot, (const uint8_t *)vector, out);
    else if (err != NULL) *err = reason;
    fetcher.destroy(fetcher.ctx);
    return vector != NULL ? NODEDB_OK : reason.status;
}

#endif /* NODEDB_VAMANA_IMPLEMENTATION */

/* This software is available under two licences; choose whichever you prefer. ALTERNATIVE A: the MIT License, Copyright
 * (c) 2026 the NodeDB authors. ALTERNATIVE B: public domain (www.unlicense.org). The full text of both stands in
 * LICENSE; it comes as is, without warranty of any kind. */
