/* nodedb_prefetch.h - v0.2 - prefetch, release and fault counts for mapped pages - public domain or MIT, as you prefer

1. WHAT IT IS FOR, AND NOT FOR
   For a program that maps its data (mmap) and knows which bytes it will touch next. Without help it waits for the disk
   at every page that is not in memory: one fault, one read, one wait. With this header it names the bytes, all their
   pages are read at the same time, and the program touches them when they are there. The header also gives memory
   back, tells what is resident, and counts the major faults of one thread, so that a thread notices when its memory
   is too small.

   Not for data that is not mapped: read it with O_DIRECT instead. Not for reading in file order: the kernel's own
   read-ahead does that well. It hides no errors of a disk: touching a page that cannot be read raises SIGBUS,
   prefetched or not.

2. QUICK START
   A table of records in a mapped file, three of which are needed now. `cc -I. prog.c -luring` builds it,
   and `cc -I. -DNODEDB_NO_LIBURING prog.c` where there is no liburing. -I names the header's folder.

        #define NODEDB_PREFETCH_IMPLEMENTATION // in one file of the program
        #include <nodedb_prefetch.h>           // before the headers of the system
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/mman.h>
        #include <unistd.h>

        enum { RECORDS = 10000, RECORD_BYTES = 400, TABLE_BYTES = RECORDS * RECORD_BYTES, WANTED = 3 };

        int main(void) {
            const size_t ids[WANTED] = {17, 4210, 9770};
            nodedb_prefetch_range wanted[WANTED];
            nodedb_prefetch *prefetch;
            nodedb_error err;
            char *table;
            int fd = open("table.data", O_RDWR | O_CREAT, 0600);
            if (fd < 0 || ftruncate(fd, TABLE_BYTES) != 0) return 1;
            table = (char *)mmap(NULL, TABLE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
            if (table == (char *)MAP_FAILED) return 1;
            (void)madvise(table, TABLE_BYTES, MADV_RANDOM); // a fault of a page that was not asked for reads it alone

            prefetch = nodedb_prefetch_create(NULL, &err); // one for each thread, kept as long as the thread
            if (prefetch == NULL) return fprintf(stderr, "%s\n", err.message), 1;
            for (int i = 0; i < WANTED; i++) {
                wanted[i].start = table + ids[i] * RECORD_BYTES; // bytes: no alignment is needed
                wanted[i].bytes = RECORD_BYTES;
            }
            if (nodedb_prefetch_batch(prefetch, wanted, WANTED, &err) != NODEDB_OK)
                return fprintf(stderr, "%s\n", err.message), 1;
            // All reads are under way. Touching a record waits at most for the pages it lies on.
            for (int i = 0; i < WANTED; i++)
                printf("record %d starts with %d\n", (int)ids[i], table[ids[i] * RECORD_BYTES]);

            nodedb_prefetch_destroy(prefetch);
            (void)munmap(table, TABLE_BYTES);
            return close(fd);
        }

3. CONCEPTS
   Range    What the caller means, in bytes: any address, any length. Nothing has to be aligned.
   Run      What the kernel is asked for: whole pages. Ranges that touch, overlap or repeat become one run, if they
            stand in the same 1024 ranges of the array (section 8). A prefetch rounds outward, to every page that a
            range touches. A release rounds inward, to the pages that the ranges cover whole, so that it never takes a
            page that also holds somebody else's bytes.
   Step     A part of a run that the kernel is asked for at once. The kernel cuts a long MADV_WILLNEED short without
            saying so, at the larger of the device's read_ahead_kb and max_sectors_kb (force_page_cache_ra of
            mm/readahead.c). So a run is cut into *advice steps* of NODEDB_PREFETCH_STEP_BYTES, 128 KiB. A ticket waits
            by *populate steps* (MADV_POPULATE_READ), and a release asks in *release steps*, both of up to 1 GiB.
   Batch    nodedb_prefetch_batch starts the reads of many ranges and returns. Touching a page that is not there yet
            waits for the read of that page.
   Ticket   nodedb_prefetch_begin also starts the reads of many ranges, and tells when all their pages are in memory
            and in the page table, so that touching them costs not even a minor fault. A descriptor becomes readable;
            nodedb_prefetch_reap hands the ticket back with the caller's tag. A server puts the request aside and
            serves others meanwhile; a program that walks an index touches one batch while the next ones are being
            read.
   Method   How the kernel is asked. Creation tries each method; versions of kernels and headers are not compared.
               madvise          One call for each step. Works everywhere.
               process_madvise  One call for up to 1024 steps. Linux 5.10 with CAP_SYS_NICE; without it since 6.13.
               io_uring         The kernel's worker threads make the calls. Linux 5.6. The calling thread is free
                                sooner and spends less CPU time, but the reads start a little later. Tickets need it,
                                and MADV_POPULATE_READ of Linux 5.14.
   Ahead    How many tickets a thread keeps under way. One at a time leaves the disk idle while its pages are touched.
            Of 64 scattered pages each, four is a good start; seven fit into the default queue.
   Depth    How many ranges a thread asks for ahead of the one that it touches. The fault counters adapt this number
            (`depth`). `queue_depth` counts neither tickets nor ranges but entries of the ring (section 8).

4. API BY TASK
   make, look at it    nodedb_prefetch_create  _destroy  _method_in_use  _method_name  _can_wait  _get_stats
   bring in            nodedb_prefetch_one  nodedb_prefetch_batch
   bring in and wait   nodedb_prefetch_begin  nodedb_prefetch_fd  nodedb_prefetch_reap
   give back           nodedb_prefetch_release  nodedb_prefetch_release_batch
   find out            nodedb_prefetch_residency  nodedb_prefetch_plan
   count faults        nodedb_prefetch_faults_start  nodedb_prefetch_faults_tick

   To walk an index ahead of the faults, keep several tickets under way, and touch each batch when its ticket is back:

        #define NODEDB_PREFETCH_IMPLEMENTATION
        #include <nodedb_prefetch.h>
        #include <fcntl.h>
        #include <poll.h>
        #include <stdio.h>
        #include <sys/mman.h>
        #include <unistd.h>

        enum { BATCH = 64, BATCHES = 16, AHEAD = 4, STRIDE = 16384, TABLE_BYTES = BATCHES * BATCH * STRIDE };

        // Yours would look it up in an index.
        static size_t offset_of(size_t batch, size_t i) { return (batch * BATCH + i) * STRIDE; }

        int main(void) {
            nodedb_prefetch *prefetch = nodedb_prefetch_create(NULL, NULL);
            nodedb_prefetch_range wanted[BATCH];
            nodedb_prefetch_ticket ticket;
            struct pollfd ready;
            size_t begun = 0, done = 0, sum = 0;
            char *table;
            int fd = open("scan.data", O_RDWR | O_CREAT, 0600);
            if (prefetch == NULL || fd < 0 || ftruncate(fd, TABLE_BYTES) != 0) return 1;
            table = (char *)mmap(NULL, TABLE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
            if (table == (char *)MAP_FAILED) return 1;
            (void)madvise(table, TABLE_BYTES, MADV_RANDOM);
            ready.fd = nodedb_prefetch_fd(prefetch), ready.events = POLLIN;

            while (done < BATCHES) {
                for (; begun < BATCHES && begun - done < AHEAD; begun++) {
                    for (size_t i = 0; i < BATCH; i++)
                        wanted[i].start = table + offset_of(begun, i), wanted[i].bytes = 100;
                    nodedb_status status = nodedb_prefetch_begin(prefetch, wanted, BATCH, begun, NULL);
                    if (status == NODEDB_ERR_AGAIN) break; // the queue is full: reap first
                    if (status != NODEDB_OK) return 1;
                }
                if (nodedb_prefetch_reap(prefetch, &ticket, 1) == 0) { // never waits: poll does
                    (void)poll(&ready, 1, -1);
                    continue;
                }
                if (ticket.status != NODEDB_OK) return 1; // a page that cannot be read must not be touched
                for (size_t i = 0; i < BATCH; i++) sum += (unsigned char)table[offset_of((size_t)ticket.tag, i)];
                done++;
            }
            printf("%d records add up to %d\n", BATCH * BATCHES, (int)sum); // to 0: a new file holds zeros
            nodedb_prefetch_destroy(prefetch);
            return sum == 0 ? 0 : 1;
        }

   Tickets come back in the order in which they are done, which is not always the order in which they were begun.
   The loop needs no second path for kernels without io_uring. There a ticket is back at once, with `resident` false.
   Its data may be touched as well; each page then waits for its own read. Such a ticket cannot know whether a page is
   readable: of a page beyond the end of its file it says OK, and touching it raises SIGBUS.
   Batches and tickets read the pages that were asked for and no others, with MADV_RANDOM or without. It is for the
   faults that remain: without it, each of them reads the pages around as well.

   To let the faults decide how far ahead to ask, start counters and call tick in the thread's loop:

        #define NODEDB_PREFETCH_IMPLEMENTATION
        #include <nodedb_prefetch.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/mman.h>
        #include <unistd.h>

        enum { RECORDS = 2000, STRIDE = 8192, TABLE_BYTES = RECORDS * STRIDE };

        static bool memory_is_short(void) { return false; } // yours would ask its governor, or memory.pressure

        int main(void) {
            nodedb_prefetch *prefetch = nodedb_prefetch_create(NULL, NULL);
            nodedb_prefetch_range wanted[NODEDB_PREFETCH_DEFAULT_DEPTH_MAX];
            nodedb_prefetch_faults faults;
            size_t asked = 0, sum = 0;
            char *table;
            int fd = open("depth.data", O_RDWR | O_CREAT, 0600);
            if (prefetch == NULL || fd < 0 || ftruncate(fd, TABLE_BYTES) != 0) return 1;
            table = (char *)mmap(NULL, TABLE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
            if (table == (char *)MAP_FAILED) return 1;
            (void)madvise(table, TABLE_BYTES, MADV_RANDOM);
            if (nodedb_prefetch_faults_start(&faults, NULL, NULL) != NODEDB_OK) return 1; // this thread's

            for (size_t i = 0; i < RECORDS; i++) {
                if (asked < RECORDS && asked - i <= faults.depth / 2) { // ask early: the reads need their time
                    size_t n = 0;
                    for (; asked < RECORDS && n < faults.depth; asked++, n++)
                        wanted[n].start = table + asked * STRIDE, wanted[n].bytes = 100;
                    if (nodedb_prefetch_batch(prefetch, wanted, n, NULL) != NODEDB_OK) return 1;
                }
                sum += (unsigned char)table[i * STRIDE];
                if (nodedb_prefetch_faults_tick(&faults, memory_is_short(), NULL) != NODEDB_OK) return 1;
            }
            printf("depth %u, %s\n", faults.depth, faults.degraded ? "degraded: too many major faults" : "healthy");
            nodedb_prefetch_destroy(prefetch);
            return sum == 0 ? 0 : 1;
        }

   A release after the work tells the kernel which pages the program will not need again:
      NODEDB_PREFETCH_COLD          evict these pages before others
      NODEDB_PREFETCH_PAGE_OUT      free the memory now. The kernel may skip pages that are dirty, mapped elsewhere, or
                                    have no swap, and still answers OK: msync first, and ask nodedb_prefetch_residency
                                    afterwards
      NODEDB_PREFETCH_DROP          take shared memory out of the page table; the contents stay
      NODEDB_PREFETCH_DROP_PRIVATE  the same for private memory, whose changes are lost

5. THREADS
   An object belongs to one thread at a time; two threads use two objects. It may be handed over to another thread with
   the usual synchronisation, and its tickets with it. If the thread that began them then ends, reap once after it is
   joined, before the first poll: its end waits for its reads, but may cancel the write that makes the descriptor
   readable. A nodedb_prefetch_faults belongs to the thread that started it and cannot be handed over; a tick from
   another thread is an error. nodedb_prefetch_plan and nodedb_prefetch_method_name keep no state and may be called from
   any thread. After fork the child creates its own objects and neither uses nor destroys the parent's. The logger and
   the allocator are called from the thread that made the call.
   Section 12 measures one thread on one disk. Threads that share a disk share its rate: divide the tickets among them.

6. MEMORY
   Each object is one allocation of about 40 KiB, made at creation by the config's allocator. Nothing is allocated after
   that. liburing maps its ring itself: 64 bytes for each of `queue_depth` entries and 32 for their completions, 96 KiB
   at the default; it uses malloc while creation asks what the kernel can do. An object holds one descriptor, one more
   with io_uring, and one more with process_madvise before Linux 6.14. A nodedb_prefetch_faults is the caller's struct.

7. ERRORS
   INVALID      All: NULL; a range that starts at NULL or wraps around the end of the address space.
                create: an unknown method; a queue_depth outside 3 to 4096; page_bytes that are no power of two, below
                the system's page or above 1 GiB. plan: page_bytes that are no power of two. release: an unknown `how`;
                DROP of a private mapping. faults_start: depth_min above depth_max. faults_tick: not started.
                In all these cases nothing was done. The exception is memory that is not mapped (sys_errno ENOMEM; the
                message names the first unmapped address): the mapped parts and all other ranges were advised.
   NO_MEMORY    The allocator or the kernel has none.
   AGAIN        begin: 64 tickets are begun and not reaped, or the ring is full. Reap; if that gives none, poll the
                descriptor. Without a ring only the first can happen.
   LIMIT        begin: more than 1024 ranges: split. Or more entries than queue_depth (section 8): split, or raise it.
                The same without a ring.
   STATE        A tick from another thread than the owner's.
   UNSUPPORTED  The kernel does not know this advice, or refuses it for this memory (locked, huge, of a device, not
                readable); or DROP cannot read /proc/self/maps. A method that the kernel refuses is no error: a simpler
                one takes its place.
   IO           The kernel refused for another reason; see sys_errno. EFAULT, of a ticket: touching the memory would
                raise SIGBUS.
   A ticket has no message. Its `status` follows the same rules, and `failed_at` tells which step was refused.
   A range of 0 bytes is ignored, whatever its address.

8. LIMITS
   NODEDB_PREFETCH_GROUP_RANGES (1024)       Ranges that are merged together, and the most in one ticket. A batch may
                                             be larger; it is processed in groups.
   NODEDB_PREFETCH_MAX_TICKETS (64)          Tickets of one object that are begun and not reaped, so done ones count.
   NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH (1024) Ring entries that all tickets under way share; `queue_depth` may be 3 to
                                             4096. A ticket takes one entry for each advice step (128 KiB), one for
                                             each populate step (a run, or each GiB of a longer one), and one more.
      By default: 64 scattered pages take 129 entries, so seven such tickets fit, and the eighth is answered with AGAIN.
      511 scattered pages or a range of 127 MiB fit into one ticket; 512 pages or 128 MiB are answered with LIMIT.
   Only `queue_depth` can be set. The other limits and NODEDB_PREFETCH_STEP_BYTES are fixed.
   If memory is short, the kernel may evict a page again before it is touched. mincore(2) tells the truth only about
   files that the process owns or may write to (since Linux 5.2); of others nodedb_prefetch_residency says "resident".

9. ON DISK
   Nothing is stored.

10. BUILDING
   In one file: #define NODEDB_PREFETCH_IMPLEMENTATION before the #include. Include this header before any header of the
   system, or compile with -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64. C99 and C++11. Link with -luring; with
   NODEDB_NO_LIBURING nothing needs to be linked. Linux alone; creation finds out what the kernel can do.
      NODEDB_PREFETCH_IMPLEMENTATION  compile the code in this file
      NODEDB_PREFETCH_STATIC          make all functions private to this file; needs the macro above
      NODEDB_PREFETCH_API             what stands before each function; default: extern
      NODEDB_NO_LIBURING              build without io_uring; chosen automatically where <liburing.h> is missing.
                                      Tickets then come back at once

11. DEPARTURES
   From the usual loop of posix_madvise or MADV_WILLNEED:
   - Advice comes in steps of 128 KiB. One call for a large range reads only its beginning, and reports success.
   - A ticket advises first and populates afterwards. MADV_POPULATE_READ alone reads one run after the other; the advice
     before it starts all reads at once, and populating waits for reads that are under way.
   - Several tickets may be under way: four make 1.06 of the rate of O_DIRECT reads with 64 in flight, one at a time
     0.77 (section 12).
   - The last entry of a ticket writes to an eventfd. A descriptor that is registered with the ring would wake the
     owner at every step.
   - Releases round inward after the ranges are merged as bytes. The kernel rounds the length up, which takes the rest
     of the last page from its owner; see the room RELEASE.
   - DROP reads /proc/self/maps first. MADV_DONTNEED of private memory loses what was written there.
   - Faults are counted by getrusage(RUSAGE_THREAD): a thread's own, where /proc/self/stat counts the process's and
     places the name of the command, which may hold spaces, before the numbers.
   - Ranges are sorted by Shell sort: qsort may allocate.

12. MEASURED
   Cold random pages of a mapped file, 64 at a time: asked for, then touched. Two cores, virtual disk, busy machine;
   medians of five runs of the benchmark, which prints all of these columns. Where there are two columns, they are
      1/16   `./build.sh bench prefetch`          a file of 1 GiB, of which 1 page in 16 is touched
      1/8    `./build.sh bench prefetch --quick`  a file of 256 MiB, of which 1 page in 8 is touched
   What prefetching is compared with decides the factor. Under MADV_RANDOM a fault reads its page alone (`over_random`).
   By the kernel's default it reads the pages around as well (`over_readaround`): a slower fault, but a later touch
   may find its page, more often where the touched pages lie closer together. `of_limit` compares with O_DIRECT reads by
   io_uring, 64 in flight: all that one batch can have. Four tickets have 256 in flight, so they can be above 1. own CPU
   is that of the calling thread, without the kernel's workers.
                              of_limit        over_random     over_readaround   own CPU, us/page
                              1/16    1/8     1/16    1/8     1/16    1/8       1/16
      faults, MADV_RANDOM     0.19    0.19                                      37
      faults, the default     0.21    0.41                                      17
      batch, madvise          0.83    0.86    4.5     4.7     4.3     2.1       8.9
      batch, process_madvise  0.88    0.93    4.6     4.7     4.3     2.2       7.2
      batch, io_uring         0.88    0.94    4.4     4.2     4.3     2.1       4.0
      one ticket at a time    0.77    0.75    4.1     4.3     3.8     1.9       4.2
      four tickets            1.06    1.10    5.7     7.0     5.1     2.7       2.8

13. LICENCE
   Public domain (Unlicense) or MIT, as you prefer. Both texts stand at the end of this file.
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

/* ---- limits and defaults ---------------------------------------------------------------------------------------- */

#define NODEDB_PREFETCH_GROUP_RANGES 1024                /* ranges merged together; UIO_MAXIOV of one call */
#define NODEDB_PREFETCH_STEP_BYTES (128 * 1024)          /* one MADV_WILLNEED; Linux' default read_ahead_kb */
#define NODEDB_PREFETCH_MAX_TICKETS 64                   /* of one object: begun and not reaped */
#define NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH 1024         /* ring entries; 64 scattered pages take 129 (section 8) */
#define NODEDB_PREFETCH_MIN_QUEUE_DEPTH 3                /* a ticket of one page: two steps, and one more */
#define NODEDB_PREFETCH_MAX_QUEUE_DEPTH 4096
#define NODEDB_PREFETCH_MAX_PAGE_BYTES ((size_t)1 << 30) /* also the most that one system call is asked for */
#define NODEDB_PREFETCH_DEFAULT_INTERVAL_NS UINT64_C(1000000000)
#define NODEDB_PREFETCH_DEFAULT_MAJOR_FAULTS_MAX 100     /* per interval; a thread with more is degraded */
#define NODEDB_PREFETCH_DEFAULT_DEPTH_MIN 4              /* ranges to ask for ahead: bounds of the adaptive depth */
#define NODEDB_PREFETCH_DEFAULT_DEPTH_MAX 256

/* ---- make, look at it ------------------------------------------------------------------------------------------- */

/* How the kernel is asked (section 3). AUTO: batches by process_madvise, or by madvise where that is refused; tickets
 * by io_uring. MADVISE and PROCESS_MADVISE: this method for batches, and no ring. IO_URING: batches go through the ring
 * as well. A wrong address is then no error of the call, because a worker finds it later: it is counted as a failure
 * and reported to the logger. Such a batch blocks while queue_depth advice steps are under way, and tries
 * again like nodedb_prefetch_begin while the kernel is short of memory. */
typedef enum nodedb_prefetch_method {
    NODEDB_PREFETCH_AUTO = 0,
    NODEDB_PREFETCH_MADVISE,
    NODEDB_PREFETCH_PROCESS_MADVISE,
    NODEDB_PREFETCH_IO_URING
} nodedb_prefetch_method;

/* Works zeroed. If the kernel refuses `method`, the next simpler one takes its place, and the logger is told once, with
 * the reason and the remedy. nodedb_prefetch_method_in_use names the method that is used. */
typedef struct nodedb_prefetch_config {
    nodedb_prefetch_method method;
    size_t page_bytes;    /* what ranges are rounded to. 0: the system's page. Else a power of two from that page to
                             1 GiB, to which both ends of all mappings are aligned (huge pages) */
    unsigned queue_depth; /* 3 to 4096 entries of the ring, for all tickets under way together (section 8). 0:
                             NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH */
    nodedb_allocator allocator;
    nodedb_logger logger;
} nodedb_prefetch_config;

/* A prefetcher: opaque, used by one thread at a time (section 5). */
typedef struct nodedb_prefetch nodedb_prefetch;

/* What one object has done since its creation. */
typedef struct nodedb_prefetch_stats {
    uint64_t ranges_asked;     /* ranges of more than 0 bytes, of prefetches and releases */
    uint64_t ranges_merged;    /* ranges that got no run of their own: part of another's run, or a release that covers
                                  no whole page */
    uint64_t pages_advised;    /* asked for by prefetches, in page_bytes, whatever the kernel answered */
    uint64_t pages_released;   /* of releases, in page_bytes: those of the steps that the kernel took */
    uint64_t system_calls;     /* madvise, process_madvise and io_uring_enter */
    uint64_t failures;         /* steps that the kernel refused. Of a ticket with a ring: populate steps alone, as they
                                  meet again whatever refused their advice */
    uint64_t tickets_begun;
    uint64_t tickets_done;     /* reaped or not */
    uint64_t residency_hits;   /* pages that nodedb_prefetch_residency found in memory */
    uint64_t residency_misses; /* pages that it did not find there */
} nodedb_prefetch_stats;

/* A new prefetcher. NULL and `err` on failure: INVALID (page_bytes, queue_depth, method), NO_MEMORY, IO (no descriptor
 * is left). `config` NULL: all defaults. It makes some ten system calls, so keep the object. */
NODEDB_PREFETCH_API nodedb_prefetch *nodedb_prefetch_create(const nodedb_prefetch_config *config, nodedb_error *err);

/* Frees the object and closes its descriptor; take that out of an epoll set first. Reads under way continue, and their
 * tickets are lost. The memory that they name may be unmapped at once, and its addresses mapped again: the reads
 * harm neither. NULL is ignored. */
NODEDB_PREFETCH_API void nodedb_prefetch_destroy(nodedb_prefetch *p);

/* The method of batches. Never AUTO, except for NULL. */
NODEDB_PREFETCH_API nodedb_prefetch_method nodedb_prefetch_method_in_use(const nodedb_prefetch *p);

/* "madvise", "process_madvise", "io_uring", "auto"; "unknown" for any other value. Any thread. */
NODEDB_PREFETCH_API const char *nodedb_prefetch_method_name(nodedb_prefetch_method method);

/* True if tickets come back when their pages are in memory; false if they come back as soon as these were asked for, or
 * for NULL. */
NODEDB_PREFETCH_API bool nodedb_prefetch_can_wait(const nodedb_prefetch *p);

/* Copies the counters to `stats`. Error: INVALID (NULL). */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_get_stats(const nodedb_prefetch *p, nodedb_prefetch_stats *stats,
                                                            nodedb_error *err);

/* ---- bring in --------------------------------------------------------------------------------------------------- */

/* Bytes that the caller means. Nothing has to be aligned; a range of 0 bytes is ignored. */
typedef struct nodedb_prefetch_range {
    const void *start;
    size_t bytes;
} nodedb_prefetch_range;

/* Starts the reads of all pages of [start, start + bytes) that are not in memory, and does not wait for them. Errors:
 * INVALID (NULL, wraps, not mapped), NO_MEMORY, UNSUPPORTED, IO. Source: madvise(2), MADV_WILLNEED. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_one(nodedb_prefetch *p, const void *start, size_t bytes,
                                                      nodedb_error *err);

/* The same for `n` ranges, in any order; `ranges` is only read, and only during the call. A range that wraps or starts
 * at NULL refuses the whole batch. A range that is not mapped is reported after all others were asked for. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, nodedb_error *err);

/* ---- bring in and wait ------------------------------------------------------------------------------------------ */

/* A batch that nodedb_prefetch_begin took and that is done. */
typedef struct nodedb_prefetch_ticket {
    uint64_t tag;          /* the caller's */
    nodedb_status status;  /* OK. INVALID: not all of it is mapped. NO_MEMORY: there was none for its pages.
                              UNSUPPORTED: the kernel refuses to bring in this memory (not readable, or of a device).
                              IO: the kernel refused, or the ring was given up; see sys_errno. EFAULT: a page lies
                              beyond the end of its file, or the disk could not read it; touching it would raise
                              SIGBUS */
    int sys_errno;         /* the kernel's first refusal, or 0 */
    const void *failed_at; /* the start of the step that was refused first, or NULL. With a ring it is a populate step:
                              up to 1 GiB, so the bad page may lie behind it */
    bool resident;         /* true: all of it is in memory and in the page table. False: a step was refused, or there is
                              no ring, so it was only asked for; then OK tells nothing about pages beyond the end of a
                              file, and touching them raises SIGBUS */
} nodedb_prefetch_ticket;

/* Starts the reads of at most NODEDB_PREFETCH_GROUP_RANGES ranges. nodedb_prefetch_reap hands back a ticket with `tag`
 * when they are done; also for a batch with nothing to do. `ranges` is only read during the call; the memory that it
 * names stays mapped until the ticket is back. Does not wait for the disk; while the kernel is short of memory it tries
 * again for about two seconds at most, and sleeps in between. Errors, after which there is no ticket: INVALID (NULL,
 * wraps), AGAIN (reap; if that gives none, poll), LIMIT (split). What the kernel refuses is an error of the ticket. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_begin(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, uint64_t tag, nodedb_error *err);

/* A descriptor that is readable while tickets may be ready, for poll, epoll or the caller's own ring: a non-blocking
 * eventfd that the object owns. nodedb_prefetch_reap resets it; nobody else reads it. -1 for NULL. */
NODEDB_PREFETCH_API int nodedb_prefetch_fd(const nodedb_prefetch *p);

/* Copies up to `max` tickets that are done to `tickets`, in the order in which they were done, and returns how many; 0
 * for NULL. Never blocks. The descriptor stays readable while more tickets are ready. It may become readable without
 * one: poll in a loop. */
NODEDB_PREFETCH_API size_t nodedb_prefetch_reap(nodedb_prefetch *p, nodedb_prefetch_ticket *tickets, size_t max);

/* ---- give back -------------------------------------------------------------------------------------------------- */

typedef enum nodedb_prefetch_release_how {
    NODEDB_PREFETCH_COLD = 0,    /* keep the pages, but evict them before others: MADV_COLD, Linux 5.4 */
    NODEDB_PREFETCH_PAGE_OUT,    /* ask the kernel to free the memory: MADV_PAGEOUT, Linux 5.4. It may skip pages that
                                    are dirty, mapped elsewhere, or have no swap, and still answers OK: msync first, ask
                                    nodedb_prefetch_residency afterwards */
    NODEDB_PREFETCH_DROP,        /* take the pages out of the page table; the page cache may keep them: MADV_DONTNEED.
                                    Shared mappings only. On a private mapping it would lose what was written there, and
                                    zero anonymous memory, so it is INVALID there and nothing is done. Reads
                                    /proc/self/maps; UNSUPPORTED where that is unavailable. No other thread may
                                    map or unmap these addresses during the call: the check would not see it */
    NODEDB_PREFETCH_DROP_PRIVATE /* DROP without that check: the caller accepts that private changes are lost */
} nodedb_prefetch_release_how;

/* Gives back the pages that [start, start + bytes) covers whole. A page that it covers in part is left alone. Only
 * DROP_PRIVATE loses contents. Errors: INVALID (NULL, wraps, not mapped, unknown `how`, DROP of private memory),
 * NO_MEMORY, UNSUPPORTED, IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release(nodedb_prefetch *p, const void *start, size_t bytes,
                                                          nodedb_prefetch_release_how how, nodedb_error *err);

/* The same for `n` ranges. Ranges that touch count as one, so a page that several of them cover together is given
 * back, if they stand in the same NODEDB_PREFETCH_GROUP_RANGES of the array, counted from its start. Otherwise it
 * stays. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                                size_t n, nodedb_prefetch_release_how how,
                                                                nodedb_error *err);

/* ---- find out --------------------------------------------------------------------------------------------------- */

/* How many pages that [start, start + bytes) touches are in memory now, and how many it touches, in pages of the
 * *system*. Adds the pages that are in memory to residency_hits, and the others to residency_misses. One mincore(2) for
 * each 4096 pages. Errors: INVALID (NULL, wraps, not mapped), NO_MEMORY, IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_residency(nodedb_prefetch *p, const void *start, size_t bytes,
                                                            uint64_t *resident_pages, uint64_t *total_pages,
                                                            nodedb_error *err);

typedef enum nodedb_prefetch_rounding {
    NODEDB_PREFETCH_OUTWARD = 0, /* every page that a range touches: a prefetch */
    NODEDB_PREFETCH_INWARD       /* the pages that the ranges cover whole: a release */
} nodedb_prefetch_rounding;

/* The runs of whole pages that a prefetch or a release of `ranges` asks for. Sorted, disjoint, with at least a page
 * between two of them, and aligned to `page_bytes` at both ends. `runs` has room for `n` and may be `ranges` itself;
 * `*runs_n` tells how many there are. Pure: it reads and writes the arrays alone and makes no system call. Any thread.
 * `page_bytes` may be any power of two. Errors: INVALID (NULL, wraps, `page_bytes` no power of two). */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_plan(const nodedb_prefetch_range *ranges, size_t n, size_t page_bytes,
                                                       nodedb_prefetch_rounding rounding, nodedb_prefetch_range *runs,
                                                       size_t *runs_n, nodedb_error *err);

/* ---- count faults ----------------------------------------------------------------------------------------------- */

/* Works zeroed. */
typedef struct nodedb_prefetch_faults_config {
    uint64_t interval_ns;      /* 0: NODEDB_PREFETCH_DEFAULT_INTERVAL_NS */
    uint64_t major_faults_max; /* per interval; more is degraded. 0: NODEDB_PREFETCH_DEFAULT_MAJOR_FAULTS_MAX */
    unsigned depth_min;        /* in ranges. 0: NODEDB_PREFETCH_DEFAULT_DEPTH_MIN, or depth_max if that is less */
    unsigned depth_max;        /* 0: NODEDB_PREFETCH_DEFAULT_DEPTH_MAX, or depth_min if that is more */
    nodedb_clock clock;
    nodedb_logger logger;      /* told when the thread becomes degraded, and when it recovers */
} nodedb_prefetch_faults_config;

/* The page faults of one thread, from getrusage(RUSAGE_THREAD). A major fault waited for the disk: a miss. A minor
 * fault found its page in memory, or was the first touch of fresh memory: a hit. The caller owns the struct. Its thread
 * may read all of it; only the two functions below write it. The results are those of the last closed interval. */
typedef struct nodedb_prefetch_faults {
    nodedb_prefetch_faults_config config; /* with the defaults filled in */
    bool degraded;                /* more major faults than major_faults_max, scaled to the length of one interval */
    unsigned depth;               /* ranges to prefetch ahead. At the end of an interval: halved if memory was short in
                                     it, else doubled if more than 1 fault in 8 was a miss */
    uint64_t intervals;           /* closed ones */
    uint64_t interval_elapsed_ns; /* the real length of the last one; a late tick makes it longer */
    uint64_t interval_major;
    uint64_t interval_minor;
    double major_per_second;
    double miss_rate;             /* major / (major + minor); 0 if there were none */
    uint64_t total_major;         /* since the start */
    uint64_t total_minor;
    uint64_t begun_ns;            /* of the running interval: the clock, and the thread's counters, at its start */
    uint64_t begun_major, begun_minor;
    bool memory_was_short;        /* a tick of the running interval said so */
    uintptr_t owner_thread;       /* pthread_self of the owner */
    long owner_tid;
} nodedb_prefetch_faults;

/* Starts to count the faults of the calling thread. `config` NULL: all defaults. Errors: INVALID (NULL, depth_min above
 * depth_max), IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_start(nodedb_prefetch_faults *f,
                                                               const nodedb_prefetch_faults_config *config,
                                                               nodedb_error *err);

/* Closes the interval if it is over: then `intervals` grows and the results change. Call it once for each turn of the
 * thread's loop; while the interval runs it only reads the clock. `memory_is_short` is what the caller knows about its
 * memory (the pressure of a governor, the limit of a cgroup). If any tick of an interval says so, the depth is lowered
 * at its end. Errors: INVALID (NULL, not started), STATE (another thread's), IO. */
NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_tick(nodedb_prefetch_faults *f, bool memory_is_short,
                                                              nodedb_error *err);

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_PREFETCH_H */

#ifdef NODEDB_PREFETCH_IMPLEMENTATION
#ifndef NODEDB_PREFETCH_IMPLEMENTED
#define NODEDB_PREFETCH_IMPLEMENTED

/* ===================================================================================================================
 * IMPLEMENTATION
 *
 *   RANGES AND RUNS   from the caller's bytes to whole pages: outward for a prefetch, inward for a release
 *   PREFETCHER        the object, and the states of a ticket
 *   ADVICE            from runs to system calls; what the kernel refuses; batches
 *   RELEASE           gives back whole pages, and never a byte that the caller did not name
 *   TICKETS           batches that tell when they are done
 *   RING              advice and waiting by the kernel's worker threads
 *   CREATION          tries what this kernel can do
 *   RESIDENCY         counts the pages that are in memory
 *   FAULTS            counts the page faults of one thread
 * ================================================================================================================ */

#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
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

/* Numbers that the headers of an older system lack. The headers' own come first, because some architectures count
 * system calls differently (alpha, MIPS, x32). A number that is wrong there is refused when creation tries it. */
#if defined(MADV_COLD)
#define NODEDB_PREFETCH__COLD MADV_COLD
#else
#define NODEDB_PREFETCH__COLD 20
#endif
#if defined(MADV_PAGEOUT)
#define NODEDB_PREFETCH__PAGE_OUT MADV_PAGEOUT
#else
#define NODEDB_PREFETCH__PAGE_OUT 21
#endif
#if defined(MADV_POPULATE_READ)
#define NODEDB_PREFETCH__POPULATE_READ MADV_POPULATE_READ
#else
#define NODEDB_PREFETCH__POPULATE_READ 22
#endif
#if defined(__NR_pidfd_open)
#define NODEDB_PREFETCH__SYS_PIDFD_OPEN __NR_pidfd_open
#else
#define NODEDB_PREFETCH__SYS_PIDFD_OPEN 434
#endif
#if defined(__NR_process_madvise)
#define NODEDB_PREFETCH__SYS_PROCESS_MADVISE __NR_process_madvise
#else
#define NODEDB_PREFETCH__SYS_PROCESS_MADVISE 440
#endif
#define NODEDB_PREFETCH__PIDFD_SELF (-10001) /* PIDFD_SELF_THREAD_GROUP, Linux 6.14: this process, no descriptor */

/* ===================================================================================================================
 * RANGES AND RUNS: from the caller's bytes to whole pages
 *
 * A range is any bytes, a run is whole pages. Both directions go through the same steps: drop what is empty, sort by
 * start, merge what touches. They differ in when they round:
 *
 *     pages       |---0---|---1---|---2---|---3---|---4---|
 *     ranges          [== a ==][== b ==]            [ c ]
 *
 *     OUTWARD     [======= a and b =======]       [== c ==]     round, then merge: pages 0 to 2, and page 4
 *     INWARD              [== a+b =]                            merge, then round: page 1, which a and b cover together
 *
 * Pure arithmetic: no state, no system call.
 * ================================================================================================================ */

static bool nodedb_prefetch__is_power_of_two(size_t x) { return x != 0 && (x & (x - 1)) == 0; }

/* Refuses a NULL start, and a range whose end, rounded up to a page, is beyond the end of the address space. */
static nodedb_status nodedb_prefetch__check_ranges(const nodedb_prefetch_range *ranges, size_t n, size_t page_bytes,
                                                   nodedb_error *err) {
    const uintptr_t end_max = UINTPTR_MAX - (page_bytes - 1);
    if (ranges == NULL && n > 0) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: the ranges are NULL");
    for (size_t i = 0; i < n; i++) {
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

/* Sorts by start: Shell sort with Ciura's gaps, in place and without recursion. qsort may allocate. */
static void nodedb_prefetch__sort(nodedb_prefetch_range *ranges, size_t n) {
    static const size_t gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof gaps[0]; g++)
        for (size_t i = gaps[g]; i < n; i++) {
            nodedb_prefetch_range moving = ranges[i];
            size_t j = i;
            for (; j >= gaps[g] && (uintptr_t)ranges[j - gaps[g]].start > (uintptr_t)moving.start; j -= gaps[g])
                ranges[j] = ranges[j - gaps[g]];
            ranges[j] = moving;
        }
}

/* Rounds `range` outward to whole pages, or inward; inward may leave nothing (false). */
static bool nodedb_prefetch__round(nodedb_prefetch_range *range, size_t page_bytes, nodedb_prefetch_rounding rounding) {
    const uintptr_t in_page = (uintptr_t)page_bytes - 1;
    uintptr_t start = (uintptr_t)range->start, end = start + range->bytes;
    if (rounding == NODEDB_PREFETCH_OUTWARD) start &= ~in_page, end = (end + in_page) & ~in_page;
    else start = (start + in_page) & ~in_page, end &= ~in_page;
    if (start >= end) return false;
    range->start = (const void *)start;
    range->bytes = (size_t)(end - start);
    return true;
}

/* Merges sorted ranges that overlap or touch, in place; returns how many are left. */
static size_t nodedb_prefetch__merge(nodedb_prefetch_range *ranges, size_t n) {
    size_t merged = 0;
    for (size_t i = 0; i < n; i++) {
        uintptr_t start = (uintptr_t)ranges[i].start, end = start + ranges[i].bytes;
        if (merged > 0) {
            nodedb_prefetch_range *last = &ranges[merged - 1];
            uintptr_t last_start = (uintptr_t)last->start;
            if (start <= last_start + last->bytes) {
                if (end > last_start + last->bytes) last->bytes = (size_t)(end - last_start);
                continue;
            }
        }
        ranges[merged++] = ranges[i];
    }
    return merged;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_plan(const nodedb_prefetch_range *ranges, size_t n, size_t page_bytes,
                                                       nodedb_prefetch_rounding rounding, nodedb_prefetch_range *runs,
                                                       size_t *runs_n, nodedb_error *err) {
    size_t kept = 0, merged;
    nodedb_status status;
    if (runs_n == NULL || (runs == NULL && n > 0) || !nodedb_prefetch__is_power_of_two(page_bytes))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                           "prefetch: plan needs room for its runs, and pages of a power of two bytes, not %llu",
                           (unsigned long long)page_bytes);
    *runs_n = 0;
    status = nodedb_prefetch__check_ranges(ranges, n, page_bytes, err);
    if (status != NODEDB_OK) return status;

    for (size_t i = 0; i < n; i++) {
        if (ranges[i].bytes == 0) continue;
        runs[kept] = ranges[i];
        if (rounding == NODEDB_PREFETCH_OUTWARD) (void)nodedb_prefetch__round(&runs[kept], page_bytes, rounding);
        kept++;
    }
    nodedb_prefetch__sort(runs, kept);
    merged = nodedb_prefetch__merge(runs, kept);
    if (rounding == NODEDB_PREFETCH_OUTWARD) {
        *runs_n = merged;
        return NODEDB_OK;
    }
    kept = 0;
    for (size_t i = 0; i < merged; i++)
        if (nodedb_prefetch__round(&runs[i], page_bytes, NODEDB_PREFETCH_INWARD)) runs[kept++] = runs[i];
    *runs_n = kept;
    return NODEDB_OK;
}

/* ===================================================================================================================
 * PREFETCHER: the object, and the states of a ticket
 *
 *              begin              its runs are all done            reap
 *     FREE ------------> PENDING ----------------------> READY ------------> FREE
 *     on the stack       its steps are in                in the queue        the caller has
 *     free_slots         the ring                        `ready`             a copy
 *
 * Without a ring, or with nothing to do, a ticket is READY before nodedb_prefetch_begin returns.
 * ================================================================================================================ */

typedef enum nodedb_prefetch__slot_state {
    NODEDB_PREFETCH__FREE = 0,
    NODEDB_PREFETCH__PENDING,
    NODEDB_PREFETCH__READY
} nodedb_prefetch__slot_state;

/* One ticket. Touched by the owner's thread alone; its index in `slots` travels through the ring. True between calls:
 * a PENDING ticket holds `entries` of the ring and waits for `steps_left` completions, at least one. Of a READY one
 * `ticket` is complete, and no completion in the ring names the slot. */
typedef struct nodedb_prefetch__slot {
    nodedb_prefetch_ticket ticket; /* as it will be handed back */
    unsigned entries;
    unsigned steps_left;           /* populate steps that are not done */
    nodedb_prefetch__slot_state state;
} nodedb_prefetch__slot;

/* A prefetcher. Touched by its owner's thread alone; the kernel's workers reach only the ring and write `event_fd`.
 * Never changes after creation: everything up to `event_fd`, except that a ring that breaks clears `has_ring`, a lost
 * pidfd clears `vector_advice`, and both lower `method`. True between calls: the submission queue is empty; each slot
 * is FREE and in `free_slots`, READY and in `ready`, or PENDING; `entries_in_use` is the sum of `entries` of the
 * PENDING ones. */
struct nodedb_prefetch {
    nodedb_prefetch_config config; /* with the defaults filled in */
    size_t system_page_bytes;
    nodedb_prefetch_method method; /* of batches; never AUTO */
    unsigned vector_advice;        /* bit set of the advices that process_madvise takes */
    int pidfd;                     /* this process, for process_madvise. Negative: no descriptor to close */
    bool has_ring;
    int event_fd;                  /* readable while tickets may be READY */
#ifdef NODEDB_PREFETCH__URING
    struct io_uring ring;
    unsigned advice_under_way;     /* ring entries of batches (IO_URING only); at most config.queue_depth */
#endif
    unsigned entries_in_use;       /* ring entries of PENDING tickets; at most config.queue_depth */
    nodedb_prefetch_stats stats;
    nodedb_prefetch__slot slots[NODEDB_PREFETCH_MAX_TICKETS];
    unsigned free_slots[NODEDB_PREFETCH_MAX_TICKETS]; /* a stack of free_n */
    unsigned free_n;
    unsigned ready[NODEDB_PREFETCH_MAX_TICKETS];      /* a circular queue of ready_n, oldest at ready_first */
    unsigned ready_first, ready_n;
    nodedb_prefetch_range runs[NODEDB_PREFETCH_GROUP_RANGES]; /* scratch of one call: the runs of a group ... */
    struct iovec steps[NODEDB_PREFETCH_GROUP_RANGES];         /* ... and the steps of one process_madvise */
};

static nodedb_status nodedb_prefetch__check_not_null(const void *object, nodedb_error *err) {
    if (object != NULL) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: a NULL object or result was passed");
}

/* Adds a group of `n` ranges, which became `runs_n` runs, to the statistics. */
static void nodedb_prefetch__count_ranges(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n,
                                          size_t runs_n) {
    size_t asked = 0;
    for (size_t i = 0; i < n; i++) asked += ranges[i].bytes > 0;
    p->stats.ranges_asked += asked;
    p->stats.ranges_merged += asked - runs_n;
}

static uint64_t nodedb_prefetch__pages_of_runs(const nodedb_prefetch *p, size_t runs_n) {
    uint64_t pages = 0;
    for (size_t i = 0; i < runs_n; i++) pages += p->runs[i].bytes / p->config.page_bytes;
    return pages;
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

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_get_stats(const nodedb_prefetch *p, nodedb_prefetch_stats *stats,
                                                            nodedb_error *err) {
    nodedb_status status = nodedb_prefetch__check_not_null(p != NULL ? stats : NULL, err);
    if (status == NODEDB_OK) *stats = p->stats;
    return status;
}

/* ===================================================================================================================
 * ADVICE: from runs to system calls; what the kernel refuses; batches
 *
 *     ranges  --plan-->  runs  --cursor-->  steps  -->  madvise (one step each), process_madvise (up to 1024 steps)
 *
 * A step that the kernel refuses is noted and passed over, so that one bad range keeps no other from being advised.
 * ================================================================================================================ */

#define NODEDB_PREFETCH__MINCORE_PAGES 4096 /* of one mincore: a byte for each, on the stack */

/* ---- what the kernel refuses ------------------------------------------------------------------------------------ */

/* The first step that the kernel refused during one call. Lives on the caller's stack. */
typedef struct nodedb_prefetch__refusal {
    int sys_errno; /* 0: none */
    const void *start;
    size_t bytes;
} nodedb_prefetch__refusal;

/* MS_ASYNC has started no writes since Linux 2.6.19, and answers ENOMEM if a page of the range is not mapped. */
static bool nodedb_prefetch__is_mapped(uintptr_t start, size_t bytes) {
    return msync((void *)start, bytes, MS_ASYNC) == 0 || errno != ENOMEM;
}

/* Finds the first unmapped page of [start, start + bytes) by bisection; false if all of it is mapped. */
static bool nodedb_prefetch__find_unmapped(const void *start, size_t bytes, size_t page_bytes, uintptr_t *unmapped) {
    uintptr_t low = (uintptr_t)start & ~((uintptr_t)page_bytes - 1);
    size_t pages = ((uintptr_t)start + bytes - low + page_bytes - 1) / page_bytes;
    if (nodedb_prefetch__is_mapped(low, pages * page_bytes)) return false;
    while (pages > 1) { /* the first unmapped page is one of the `pages` pages from `low` */
        size_t half = pages / 2;
        if (!nodedb_prefetch__is_mapped(low, half * page_bytes)) pages = half;
        else low += half * page_bytes, pages -= half;
    }
    *unmapped = low;
    return true;
}

static void nodedb_prefetch__note_refusal(nodedb_prefetch *p, nodedb_prefetch__refusal *refusal, int sys_errno,
                                          const void *start, size_t bytes) {
    p->stats.failures++;
    if (refusal->sys_errno != 0) return;
    refusal->sys_errno = sys_errno;
    refusal->start = start;
    refusal->bytes = bytes;
}

static const char *nodedb_prefetch__advice_name(int advice) {
    switch (advice) {
    case MADV_WILLNEED: return "MADV_WILLNEED";
    case MADV_DONTNEED: return "MADV_DONTNEED";
    case NODEDB_PREFETCH__COLD: return "MADV_COLD";
    case NODEDB_PREFETCH__PAGE_OUT: return "MADV_PAGEOUT";
    }
    return "an unknown advice";
}

/* What a refusal means. ENOMEM has two meanings: not mapped, or no memory; `*unmapped` is set only for the first. */
static nodedb_status nodedb_prefetch__refusal_status(const nodedb_prefetch *p, const nodedb_prefetch__refusal *refusal,
                                                     uintptr_t *unmapped) {
    if (refusal->sys_errno == 0) return NODEDB_OK;
    if (refusal->sys_errno == EINVAL) return NODEDB_ERR_UNSUPPORTED; /* the advice, or locked or special memory */
    if (refusal->sys_errno != ENOMEM) return NODEDB_ERR_IO;
    return nodedb_prefetch__find_unmapped(refusal->start, refusal->bytes, p->system_page_bytes, unmapped)
               ? NODEDB_ERR_INVALID : NODEDB_ERR_NO_MEMORY;
}

/* The error of a call whose first refusal was `refusal`; OK if there was none. `what` names the system call. */
static nodedb_status nodedb_prefetch__refusal_error(const nodedb_prefetch *p, const nodedb_prefetch__refusal *refusal,
                                                    const char *what, nodedb_error *err) {
    uintptr_t unmapped = 0;
    nodedb_status status = nodedb_prefetch__refusal_status(p, refusal, &unmapped);
    if (status == NODEDB_OK) return status;
    if (status == NODEDB_ERR_INVALID)
        return nodedb_fail(err, status, ENOMEM, "prefetch: %s: address 0x%llx is not mapped", what,
                           (unsigned long long)unmapped);
    return nodedb_fail(err, status, refusal->sys_errno, "prefetch: the kernel refused %s of %llu bytes at %p", what,
                       (unsigned long long)refusal->bytes, refusal->start);
}

/* ---- from runs to system calls ---------------------------------------------------------------------------------- */

/* A position in a list of runs, which are taken in steps of at most `step_bytes_max`. */
typedef struct nodedb_prefetch__cursor {
    const nodedb_prefetch_range *runs;
    size_t runs_n, at;
    size_t offset; /* bytes of runs[at] that are done */
    size_t step_bytes_max;
} nodedb_prefetch__cursor;

/* The start of p->runs. MADV_WILLNEED alone is capped by the kernel; other advice takes what one call may cover. */
static nodedb_prefetch__cursor nodedb_prefetch__cursor_at_start(const nodedb_prefetch *p, size_t runs_n, int advice) {
    nodedb_prefetch__cursor c;
    c.runs = p->runs, c.runs_n = runs_n, c.at = 0, c.offset = 0;
    c.step_bytes_max = advice == MADV_WILLNEED ? NODEDB_PREFETCH_STEP_BYTES : NODEDB_PREFETCH_MAX_PAGE_BYTES;
    if (c.step_bytes_max < p->system_page_bytes) c.step_bytes_max = p->system_page_bytes;
    return c;
}

static struct iovec nodedb_prefetch__step_at(const nodedb_prefetch__cursor *c) {
    struct iovec step;
    size_t rest = c->runs[c->at].bytes - c->offset;
    step.iov_base = (void *)((uintptr_t)c->runs[c->at].start + c->offset);
    step.iov_len = rest < c->step_bytes_max ? rest : c->step_bytes_max;
    return step;
}

static void nodedb_prefetch__advance(nodedb_prefetch__cursor *c, size_t bytes) {
    while (bytes > 0) {
        size_t rest, moved;
        assert(c->at < c->runs_n);
        rest = c->runs[c->at].bytes - c->offset;
        moved = bytes < rest ? bytes : rest;
        c->offset += moved;
        bytes -= moved;
        if (c->offset == c->runs[c->at].bytes) c->at++, c->offset = 0;
    }
}

static size_t nodedb_prefetch__count_steps(nodedb_prefetch__cursor c) {
    size_t n = 0;
    for (; c.at < c.runs_n; n++) nodedb_prefetch__advance(&c, nodedb_prefetch__step_at(&c).iov_len);
    return n;
}

/* madvise rounds a length up to a page, so only whole pages may reach it. */
static void nodedb_prefetch__assert_whole_pages(const nodedb_prefetch *p, struct iovec step) {
    assert((((uintptr_t)step.iov_base | step.iov_len) & (p->system_page_bytes - 1)) == 0);
    (void)p, (void)step;
}

/* Fills p->steps with the next steps, for one process_madvise, and returns how many. */
static size_t nodedb_prefetch__gather_steps(nodedb_prefetch *p, nodedb_prefetch__cursor c) {
    size_t n = 0, bytes = 0;
    while (c.at < c.runs_n && n < NODEDB_PREFETCH_GROUP_RANGES) {
        struct iovec step = nodedb_prefetch__step_at(&c);
        /* One call covers less than 2 GiB: the kernel cuts off what is beyond MAX_RW_COUNT. */
        if (n > 0 && step.iov_len > NODEDB_PREFETCH_MAX_PAGE_BYTES - bytes) break;
        nodedb_prefetch__assert_whole_pages(p, step);
        bytes += step.iov_len;
        p->steps[n++] = step;
        nodedb_prefetch__advance(&c, step.iov_len);
    }
    return n;
}

static long nodedb_prefetch__process_madvise(int pidfd, const struct iovec *steps, size_t n, int advice) {
    return syscall(NODEDB_PREFETCH__SYS_PROCESS_MADVISE, pidfd, steps, n, advice, 0UL);
}

/* Somebody closed our pidfd. Its number may be somebody else's by now, so it is not closed again. */
static void nodedb_prefetch__lose_pidfd(nodedb_prefetch *p) {
    p->pidfd = NODEDB_PREFETCH__PIDFD_SELF;
    p->vector_advice = 0;
    if (p->method == NODEDB_PREFETCH_PROCESS_MADVISE) p->method = NODEDB_PREFETCH_MADVISE;
    nodedb_say(&p->config.logger, NODEDB_LOG_WARNING,
               "prefetch: the descriptor of this process was closed by another part of the program, so a batch takes "
               "one madvise for each step from now on");
}

/* Asks for the steps at `c`: as many as process_madvise takes, or one. Returns the bytes that the kernel took; 0: it
 * refused the first step, and `errno` tells why. */
static size_t nodedb_prefetch__advise_steps(nodedb_prefetch *p, nodedb_prefetch__cursor c, int advice) {
    struct iovec step = nodedb_prefetch__step_at(&c);
    bool vector = (p->vector_advice >> advice & 1) != 0;
    nodedb_prefetch__assert_whole_pages(p, step);
    p->stats.system_calls++;
    if (vector) {
        size_t n = nodedb_prefetch__gather_steps(p, c);
        long done;
        nodedb__retry(done, nodedb_prefetch__process_madvise(p->pidfd, p->steps, n, advice));
        if (done > 0) return (size_t)done;
        if (done == 0) errno = EIO;
        if (errno != EBADF) return 0;
        p->stats.system_calls++; /* EBADF has two meanings: madvise tells them apart */
    }
    int refused;
    nodedb__retry(refused, madvise(step.iov_base, step.iov_len, advice));
    /* The one EBADF of madvise: MADV_WILLNEED of anonymous memory where the kernel has no swap. Nothing to read. */
    if (refused != 0 && errno == EBADF && advice == MADV_WILLNEED) return step.iov_len;
    if (vector) {
        int why = errno;
        nodedb_prefetch__lose_pidfd(p);
        errno = why;
    }
    return refused == 0 ? step.iov_len : 0;
}

/* Gives `advice` for the first `runs_n` of p->runs, and returns the bytes that the kernel took. process_madvise stops
 * before the first step that it refuses. The next turn starts with that step, is refused, and learns why. */
static uint64_t nodedb_prefetch__advise(nodedb_prefetch *p, size_t runs_n, int advice,
                                        nodedb_prefetch__refusal *refusal) {
    nodedb_prefetch__cursor c = nodedb_prefetch__cursor_at_start(p, runs_n, advice);
    uint64_t bytes = 0;
    while (c.at < runs_n) {
        struct iovec step = nodedb_prefetch__step_at(&c);
        size_t taken = nodedb_prefetch__advise_steps(p, c, advice);
        if (taken == 0) nodedb_prefetch__note_refusal(p, refusal, errno, step.iov_base, step.iov_len);
        nodedb_prefetch__advance(&c, taken > 0 ? taken : step.iov_len);
        bytes += taken;
    }
    return bytes;
}

/* ---- batches ---------------------------------------------------------------------------------------------------- */

static void nodedb_prefetch__advise_by_ring(nodedb_prefetch *p, size_t runs_n, nodedb_prefetch__refusal *refusal);

/* One group of at most NODEDB_PREFETCH_GROUP_RANGES checked ranges: plan, count, advise. Only MADV_WILLNEED brings in
 * and rounds outward; all other advice gives back and rounds inward. */
static void nodedb_prefetch__advise_group(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n, int advice,
                                          nodedb_prefetch__refusal *refusal) {
    const bool brings_in = advice == MADV_WILLNEED;
    size_t runs_n = 0; /* for compilers that do not see that every path to its use sets it */
    nodedb_status status = nodedb_prefetch_plan(ranges, n, p->config.page_bytes,
                                                brings_in ? NODEDB_PREFETCH_OUTWARD : NODEDB_PREFETCH_INWARD, p->runs,
                                                &runs_n, NULL);
    assert(status == NODEDB_OK);
    (void)status;
    nodedb_prefetch__count_ranges(p, ranges, n, runs_n);
    if (!brings_in) {
        p->stats.pages_released += nodedb_prefetch__advise(p, runs_n, advice, refusal) / p->config.page_bytes;
        return;
    }
    p->stats.pages_advised += nodedb_prefetch__pages_of_runs(p, runs_n);
    if (p->method == NODEDB_PREFETCH_IO_URING) nodedb_prefetch__advise_by_ring(p, runs_n, refusal);
    else (void)nodedb_prefetch__advise(p, runs_n, advice, refusal);
}

static size_t nodedb_prefetch__group_size(size_t ranges_left) {
    return ranges_left < NODEDB_PREFETCH_GROUP_RANGES ? ranges_left : NODEDB_PREFETCH_GROUP_RANGES;
}

static nodedb_status nodedb_prefetch__advise_all(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n,
                                                 int advice, nodedb_error *err) {
    nodedb_prefetch__refusal refusal = {0, NULL, 0};
    for (size_t at = 0, group; at < n; at += group) {
        group = nodedb_prefetch__group_size(n - at);
        nodedb_prefetch__advise_group(p, ranges + at, group, advice, &refusal);
    }
    return nodedb_prefetch__refusal_error(p, &refusal, nodedb_prefetch__advice_name(advice), err);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, nodedb_error *err) {
    nodedb_status status = nodedb_prefetch__check_not_null(p, err);
    if (status == NODEDB_OK) status = nodedb_prefetch__check_ranges(ranges, n, p->config.page_bytes, err);
    return status != NODEDB_OK ? status : nodedb_prefetch__advise_all(p, ranges, n, MADV_WILLNEED, err);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_one(nodedb_prefetch *p, const void *start, size_t bytes,
                                                      nodedb_error *err) {
    nodedb_prefetch_range range;
    range.start = start, range.bytes = bytes;
    return nodedb_prefetch_batch(p, &range, 1, err);
}

/* ===================================================================================================================
 * RELEASE: gives back whole pages, and never a byte that the caller did not name
 *
 * The caller names bytes, but the kernel releases pages, and rounds the length of madvise up to a page. So:
 *
 *     pages       |---0---|---1---|---2---|---3---|---4---|
 *     ranges          [== a ==][== b ==]            [ c ]
 *     merged          [==== a and b ===]            [ c ]
 *     released            |---1---|                             all other pages are left alone
 *     kept            ^^^^        ^^^^^^            ^^^^^       named, but the rest of the page is a neighbour's
 *
 *   1. Ranges are merged as bytes first: a page that two of them cover together belongs to the caller alone.
 *   2. Each merged range is rounded inward: its start up, its end down, to `page_bytes`. What is left, if anything, is
 *      whole pages all of whose bytes the caller named.
 *   3. `page_bytes` is the system's page or a multiple of it (checked at creation), so the kernel has nothing to round.
 *      nodedb_prefetch__advise_steps and nodedb_prefetch__gather_steps assert it of each step.
 *   Ranges in different groups of 1024 are not merged; a page that they share stays, which is safe.
 *
 * DROP has one more danger: on a private mapping MADV_DONTNEED loses the bytes that the caller did name. So all of the
 * batch is looked up in /proc/self/maps before anything is released.
 * ================================================================================================================ */

#define NODEDB_PREFETCH__MAPS_READ_BYTES 4096 /* of /proc/self/maps at a time, on the stack */

typedef enum nodedb_prefetch__maps_field {
    NODEDB_PREFETCH__MAPS_START = 0,
    NODEDB_PREFETCH__MAPS_END,
    NODEDB_PREFETCH__MAPS_PERMISSIONS,
    NODEDB_PREFETCH__MAPS_REST
} nodedb_prefetch__maps_field;

/* One line of /proc/self/maps (proc(5)): "start-end perms offset dev inode path". It is read letter by letter, up to
 * the second space: a path may hold anything. */
typedef struct nodedb_prefetch__mapping {
    nodedb_prefetch__maps_field field; /* that the next letter belongs to */
    uintptr_t start, end;
    char sharing; /* the last letter of the permissions: 's' shared, 'p' private */
} nodedb_prefetch__mapping;

static void nodedb_prefetch__mapping_letter(nodedb_prefetch__mapping *m, char c) {
    uintptr_t digit = (uintptr_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    switch (m->field) {
    case NODEDB_PREFETCH__MAPS_START:
        if (c == '-') m->field = NODEDB_PREFETCH__MAPS_END;
        else m->start = m->start << 4 | digit;
        break;
    case NODEDB_PREFETCH__MAPS_END:
        if (c == ' ') m->field = NODEDB_PREFETCH__MAPS_PERMISSIONS;
        else m->end = m->end << 4 | digit;
        break;
    case NODEDB_PREFETCH__MAPS_PERMISSIONS:
        if (c == ' ') m->field = NODEDB_PREFETCH__MAPS_REST;
        else m->sharing = c;
        break;
    case NODEDB_PREFETCH__MAPS_REST: break;
    }
}

/* Looks for a part of `runs` that is mapped and not shared. 1: `*where` is the first such address. 0: there is none.
 * -errno: /proc/self/maps cannot be read. Both lists are sorted, so one pass does. */
static int nodedb_prefetch__find_private(const nodedb_prefetch_range *runs, size_t runs_n, uintptr_t *where) {
    nodedb_prefetch__mapping m;
    int fd, result = 0;
    size_t at = 0;
    memset(&m, 0, sizeof m);
    nodedb__retry(fd, open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
    if (fd < 0) return -errno;
    while (result == 0 && at < runs_n) {
        char text[NODEDB_PREFETCH__MAPS_READ_BYTES];
        ssize_t got;
        nodedb__retry(got, read(fd, text, sizeof text));
        if (got <= 0) {
            result = got < 0 ? -errno : 0;
            break;
        }
        for (ssize_t i = 0; i < got && result == 0; i++) {
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

/* Refuses a DROP that would lose a byte. Checks the whole batch before anything is released. */
static nodedb_status nodedb_prefetch__check_drop(nodedb_prefetch *p, const nodedb_prefetch_range *ranges, size_t n,
                                                 nodedb_error *err) {
    for (size_t at = 0, group; at < n; at += group) {
        uintptr_t where = 0;
        size_t runs_n;
        int found;
        group = nodedb_prefetch__group_size(n - at);
        (void)nodedb_prefetch_plan(ranges + at, group, p->config.page_bytes, NODEDB_PREFETCH_INWARD, p->runs, &runs_n,
                                   NULL);
        found = runs_n > 0 ? nodedb_prefetch__find_private(p->runs, runs_n, &where) : 0;
        if (found < 0)
            return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, -found,
                               "prefetch: DROP needs /proc/self/maps to see that the memory is shared; use "
                               "DROP_PRIVATE if nothing can be lost");
        if (found > 0)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                               "prefetch: DROP of the private memory at 0x%llx would lose what was written there; "
                               "nothing was dropped (DROP_PRIVATE does it)", (unsigned long long)where);
    }
    return NODEDB_OK;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release_batch(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                                size_t n, nodedb_prefetch_release_how how,
                                                                nodedb_error *err) {
    static const int advices[] = {NODEDB_PREFETCH__COLD, NODEDB_PREFETCH__PAGE_OUT, MADV_DONTNEED, MADV_DONTNEED};
    nodedb_status status = nodedb_prefetch__check_not_null(p, err);
    if (status != NODEDB_OK) return status;
    if ((unsigned)how > NODEDB_PREFETCH_DROP_PRIVATE)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: there is no way %d to release memory", (int)how);
    status = nodedb_prefetch__check_ranges(ranges, n, p->config.page_bytes, err);
    if (status == NODEDB_OK && how == NODEDB_PREFETCH_DROP) status = nodedb_prefetch__check_drop(p, ranges, n, err);
    return status != NODEDB_OK ? status : nodedb_prefetch__advise_all(p, ranges, n, advices[how], err);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_release(nodedb_prefetch *p, const void *start, size_t bytes,
                                                          nodedb_prefetch_release_how how, nodedb_error *err) {
    nodedb_prefetch_range range;
    range.start = start, range.bytes = bytes;
    return nodedb_prefetch_release_batch(p, &range, 1, how, err);
}

/* ===================================================================================================================
 * TICKETS: batches that tell when they are done
 *
 * Only the owner's thread changes a slot. What the kernel's workers did arrives in the ring, and is taken out by drain,
 * which begin, reap and batches through the ring call. The event descriptor only says that it is worth looking.
 * ================================================================================================================ */

static void nodedb_prefetch__drain(nodedb_prefetch *p);
static void nodedb_prefetch__begin_by_ring(nodedb_prefetch *p, size_t runs_n, unsigned slot);

static void nodedb_prefetch__signal(nodedb_prefetch *p) {
    uint64_t one = 1; /* fails only if 2^64 - 2 signals are unread; then the descriptor is readable already */
    ssize_t ignored = write(p->event_fd, &one, sizeof one);
    (void)ignored;
}

/* Notes the first failure of a ticket; later ones change nothing. */
static void nodedb_prefetch__ticket_failed(nodedb_prefetch_ticket *t, nodedb_status status, int sys_errno,
                                           const void *at) {
    if (t->status != NODEDB_OK) return;
    t->status = status;
    t->sys_errno = sys_errno;
    t->failed_at = at;
    t->resident = false;
}

/* PENDING -> READY */
static void nodedb_prefetch__slot_done(nodedb_prefetch *p, unsigned slot) {
    nodedb_prefetch__slot *s = &p->slots[slot];
    assert(s->state == NODEDB_PREFETCH__PENDING && p->entries_in_use >= s->entries);
    assert(p->ready_n < NODEDB_PREFETCH_MAX_TICKETS);
    p->entries_in_use -= s->entries;
    s->state = NODEDB_PREFETCH__READY;
    p->ready[(p->ready_first + p->ready_n++) % NODEDB_PREFETCH_MAX_TICKETS] = slot;
    p->stats.tickets_done++;
}

/* FREE -> PENDING */
static unsigned nodedb_prefetch__slot_begin(nodedb_prefetch *p, uint64_t tag, unsigned entries, bool resident) {
    unsigned slot = p->free_slots[--p->free_n];
    nodedb_prefetch__slot *s = &p->slots[slot];
    assert(s->state == NODEDB_PREFETCH__FREE);
    memset(s, 0, sizeof *s);
    s->state = NODEDB_PREFETCH__PENDING;
    s->entries = entries;
    s->ticket.tag = tag;
    s->ticket.resident = resident; /* until a step fails */
    p->entries_in_use += entries;
    p->stats.tickets_begun++;
    return slot;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_begin(nodedb_prefetch *p, const nodedb_prefetch_range *ranges,
                                                        size_t n, uint64_t tag, nodedb_error *err) {
    nodedb_prefetch__refusal refusal = {0, NULL, 0};
    size_t runs_n = 0, entries;
    uintptr_t unmapped;
    unsigned slot;
    nodedb_status status = nodedb_prefetch__check_not_null(p, err);
    if (status != NODEDB_OK) return status;
    if (n > NODEDB_PREFETCH_GROUP_RANGES)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "prefetch: a ticket takes up to %d ranges, not %llu",
                           NODEDB_PREFETCH_GROUP_RANGES, (unsigned long long)n);
    status = nodedb_prefetch_plan(ranges, n, p->config.page_bytes, NODEDB_PREFETCH_OUTWARD, p->runs, &runs_n, err);
    if (status != NODEDB_OK) return status;
    /* What begin_by_ring submits: the advice steps, the populate steps, and the write to the descriptor. LIMIT is the
     * same without a ring, so that a batch that one kernel takes is taken by all. Without a ring a ticket is done at
     * once and holds no entries, so AGAIN comes only when no slot is free. */
    entries = 1 + nodedb_prefetch__count_steps(nodedb_prefetch__cursor_at_start(p, runs_n, MADV_WILLNEED)) +
              nodedb_prefetch__count_steps(nodedb_prefetch__cursor_at_start(p, runs_n, NODEDB_PREFETCH__POPULATE_READ));
    if (entries > p->config.queue_depth)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0,
                           "prefetch: this batch needs %llu entries of the ring, which has %u: split it, or raise "
                           "queue_depth", (unsigned long long)entries, p->config.queue_depth);
    if (p->has_ring) nodedb_prefetch__drain(p);
    if (p->free_n == 0 || entries > p->config.queue_depth - p->entries_in_use)
        return nodedb_fail(err, NODEDB_ERR_AGAIN, 0,
                           "prefetch: %u of %d tickets are not reaped, and %u of %u ring entries are in use: reap; if "
                           "that gives none, wait for the descriptor", NODEDB_PREFETCH_MAX_TICKETS - p->free_n,
                           NODEDB_PREFETCH_MAX_TICKETS, p->entries_in_use, p->config.queue_depth);

    slot = nodedb_prefetch__slot_begin(p, tag, p->has_ring ? (unsigned)entries : 0, p->has_ring || runs_n == 0);
    nodedb_prefetch__count_ranges(p, ranges, n, runs_n);
    p->stats.pages_advised += nodedb_prefetch__pages_of_runs(p, runs_n);
    if (p->has_ring && runs_n > 0) {
        nodedb_prefetch__begin_by_ring(p, runs_n, slot);
        return NODEDB_OK;
    }
    (void)nodedb_prefetch__advise(p, runs_n, MADV_WILLNEED, &refusal);
    status = nodedb_prefetch__refusal_status(p, &refusal, &unmapped);
    if (status != NODEDB_OK)
        nodedb_prefetch__ticket_failed(&p->slots[slot].ticket, status, refusal.sys_errno, refusal.start);
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
    /* Reset the descriptor before looking at the ring: what completes in between signals again, and is not missed. */
    ignored = read(p->event_fd, &signals, sizeof signals);
    (void)ignored;
    if (p->has_ring) nodedb_prefetch__drain(p);
    for (; n < max && p->ready_n > 0; n++) {
        unsigned slot = p->ready[p->ready_first];
        assert(p->slots[slot].state == NODEDB_PREFETCH__READY);
        p->ready_first = (p->ready_first + 1) % NODEDB_PREFETCH_MAX_TICKETS;
        p->ready_n--;
        tickets[n] = p->slots[slot].ticket;
        p->slots[slot].state = NODEDB_PREFETCH__FREE;
        p->free_slots[p->free_n++] = slot;
    }
    if (p->ready_n > 0) nodedb_prefetch__signal(p);
    return n;
}

/* ===================================================================================================================
 * RING: advice and waiting by the kernel's worker threads
 *
 * A ticket is one submission. Its advice starts all reads; the chain behind it waits for them:
 *
 *     WILLNEED step | WILLNEED step | ...     workers take these side by side: all reads are under way
 *     POPULATE_READ step -> POPULATE_READ step -> ... -> write(event_fd)
 *                                             hard links: one worker takes these one after the other, and goes on after
 *                                             a failure. Each waits until its pages are in memory and in the page table
 *
 * A ticket is READY when the completions of all its populate steps have come out of the ring: steps_left counts them.
 * The write is the last link, so the owner wakes up once for each ticket, and not before that.
 *
 * A kernel that is short of memory may take only a part of a submission. That cuts the chain in two. The second part
 * may then be done first, and the write with it, so the owner would wake up too early and never again. A cut submission
 * is therefore followed by one more write, which waits for everything before it (IOSQE_IO_DRAIN).
 *
 * (A descriptor registered with the ring would be signalled at every completion. IOSQE_CQE_SKIP_SUCCESS would swallow
 * refusals as well, because the kernel does not mark a refused madvise as failed.)
 *
 * A completion tells by its user_data what it belongs to. A step starts at a page boundary, so the low 8 bits of its
 * address are 0:
 *
 *     63                                   8 7           0
 *     | address of the step                 | mark        |
 *       mark  slot (0 to 63)      a populate step of that ticket
 *             MARK_NONE           nobody waits for it: an advice step of a ticket, a write
 *             MARK_ADVICE         an advice step of a batch
 * ================================================================================================================ */

#ifdef NODEDB_PREFETCH__URING
enum {
    NODEDB_PREFETCH__MARK_BITS = 0xff,
    NODEDB_PREFETCH__MARK_NONE = 0x80,
    NODEDB_PREFETCH__MARK_ADVICE = 0x81
};
#define NODEDB_PREFETCH__SUBMIT_TRIES 1000 /* of a kernel that is short of memory, or has no room for completions */
#define NODEDB_PREFETCH__SUBMIT_PAUSE_US 1000

static void nodedb_prefetch__prepare(nodedb_prefetch *p, struct iovec step, int advice, unsigned mark, unsigned flags) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
    assert(sqe != NULL && ((uintptr_t)step.iov_base & NODEDB_PREFETCH__MARK_BITS) == 0);
    io_uring_prep_madvise(sqe, step.iov_base, (off_t)step.iov_len, advice);
    sqe->flags = (unsigned char)flags;
    sqe->user_data = (uint64_t)(uintptr_t)step.iov_base | mark;
}

/* The bytes in front of the first hole at or after `at`, at most those of the longest populate step. */
static size_t nodedb_prefetch__mapped_bytes(const nodedb_prefetch *p, uintptr_t at) {
    size_t bytes = NODEDB_PREFETCH_MAX_PAGE_BYTES;
    uintptr_t hole;
    if (bytes > UINTPTR_MAX - at) bytes = (UINTPTR_MAX - at) & ~(p->system_page_bytes - 1);
    return nodedb_prefetch__find_unmapped((const void *)at, bytes, p->system_page_bytes, &hole) ? hole - at : bytes;
}

/* Tells the two meanings of ENOMEM of a populate step apart, whose length did not travel through the ring. The kernel
 * populates in order and stops at the first page that it cannot bring in. If that page is mapped, memory was short. */
static nodedb_status nodedb_prefetch__populate_status(const nodedb_prefetch *p, int sys_errno, uintptr_t at) {
    unsigned char in_memory[NODEDB_PREFETCH__MINCORE_PAGES];
    size_t pages;
    if (sys_errno == EINVAL) return NODEDB_ERR_UNSUPPORTED;
    if (sys_errno != ENOMEM) return NODEDB_ERR_IO;
    pages = nodedb_prefetch__mapped_bytes(p, at) / p->system_page_bytes;
    for (size_t done = 0, chunk; done < pages; done += chunk) {
        chunk = pages - done < sizeof in_memory ? pages - done : sizeof in_memory;
        if (mincore((void *)(at + done * p->system_page_bytes), chunk * p->system_page_bytes, in_memory) != 0) break;
        for (size_t i = 0; i < chunk; i++)
            if ((in_memory[i] & 1) == 0) return NODEDB_ERR_NO_MEMORY;
    }
    return NODEDB_ERR_INVALID;
}

/* One completion of a populate step: the last one makes the ticket READY. */
static void nodedb_prefetch__populate_done(nodedb_prefetch *p, unsigned slot, int sys_errno, uintptr_t at) {
    nodedb_prefetch__slot *s = &p->slots[slot];
    assert(s->state == NODEDB_PREFETCH__PENDING && s->steps_left > 0);
    if (sys_errno != 0) {
        p->stats.failures++;
        nodedb_prefetch__ticket_failed(&s->ticket, nodedb_prefetch__populate_status(p, sys_errno, at), sys_errno,
                                       (const void *)at);
    }
    if (--s->steps_left == 0) nodedb_prefetch__slot_done(p, slot);
}

/* One completion of an advice step of a batch, whose call has returned: the logger alone can hear of a refusal. */
static void nodedb_prefetch__advice_done(nodedb_prefetch *p, int sys_errno, uintptr_t at) {
    p->advice_under_way--;
    if (sys_errno == 0 || sys_errno == EBADF) return; /* EBADF: nothing to read, as in advise_steps */
    p->stats.failures++;
    nodedb_say(&p->config.logger, NODEDB_LOG_WARNING,
               "prefetch: the kernel refused MADV_WILLNEED at %p with errno %d", (void *)at, sys_errno);
}

/* Takes all completions out of the ring. Never blocks. */
static void nodedb_prefetch__drain(nodedb_prefetch *p) {
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&p->ring, &cqe) == 0) {
        unsigned mark = (unsigned)(cqe->user_data & NODEDB_PREFETCH__MARK_BITS);
        uintptr_t at = (uintptr_t)(cqe->user_data & ~(uint64_t)NODEDB_PREFETCH__MARK_BITS);
        int sys_errno = cqe->res < 0 ? -cqe->res : 0;
        io_uring_cqe_seen(&p->ring, cqe);
        if (mark < NODEDB_PREFETCH_MAX_TICKETS) nodedb_prefetch__populate_done(p, mark, sys_errno, at);
        else if (mark == NODEDB_PREFETCH__MARK_ADVICE) nodedb_prefetch__advice_done(p, sys_errno, at);
    }
}

/* Hands all prepared entries to the kernel. Returns how many io_uring_submit took at its first success; less than all
 * means that a chain may have been cut in two. -errno: the kernel takes none, and the ring has to be given up. */
static int nodedb_prefetch__submit(nodedb_prefetch *p) {
    int first = -1;
    for (int tries = 0; tries < NODEDB_PREFETCH__SUBMIT_TRIES; tries++) {
        int taken = io_uring_submit(&p->ring);
        p->stats.system_calls++;
        if (taken > 0 && first < 0) first = taken;
        if (taken >= 0 && io_uring_sq_ready(&p->ring) == 0) return first < 0 ? 0 : first;
        if (taken < 0 && taken != -EINTR && taken != -EAGAIN && taken != -EBUSY) return taken;
        nodedb_prefetch__drain(p);
        if (taken <= 0) (void)usleep(NODEDB_PREFETCH__SUBMIT_PAUSE_US);
    }
    return -EAGAIN;
}

/* Leaves a ring that takes nothing. PENDING tickets become READY as failed, and later calls use the simpler methods. */
static void nodedb_prefetch__give_up_ring(nodedb_prefetch *p, int error) {
    nodedb_say(&p->config.logger, NODEDB_LOG_ERROR,
               "prefetch: io_uring failed with errno %d and is given up; tickets come back at once from now on", error);
    nodedb_prefetch__drain(p);
    for (unsigned slot = 0; slot < NODEDB_PREFETCH_MAX_TICKETS; slot++) {
        if (p->slots[slot].state != NODEDB_PREFETCH__PENDING) continue;
        nodedb_prefetch__ticket_failed(&p->slots[slot].ticket, NODEDB_ERR_IO, error, NULL);
        nodedb_prefetch__slot_done(p, slot);
    }
    io_uring_queue_exit(&p->ring);
    p->has_ring = false;
    if (p->method == NODEDB_PREFETCH_IO_URING)
        p->method = p->vector_advice != 0 ? NODEDB_PREFETCH_PROCESS_MADVISE : NODEDB_PREFETCH_MADVISE;
    nodedb_prefetch__signal(p);
}

/* MADV_WILLNEED of a batch by the workers. Blocks only while config.queue_depth steps are under way. */
static void nodedb_prefetch__advise_by_ring(nodedb_prefetch *p, size_t runs_n, nodedb_prefetch__refusal *refusal) {
    nodedb_prefetch__cursor c = nodedb_prefetch__cursor_at_start(p, runs_n, MADV_WILLNEED);
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
            struct iovec step = nodedb_prefetch__step_at(&c);
            nodedb_prefetch__prepare(p, step, MADV_WILLNEED, NODEDB_PREFETCH__MARK_ADVICE, 0);
            nodedb_prefetch__advance(&c, step.iov_len);
        }
        taken = nodedb_prefetch__submit(p);
    }
    if (taken >= 0) return;
    nodedb_prefetch__give_up_ring(p, -taken);
    (void)nodedb_prefetch__advise(p, runs_n, MADV_WILLNEED, refusal);
}

/* A write that makes event_fd readable: file 0 of the ring. It and what is written outlive `p`. */
static void nodedb_prefetch__prepare_signal(nodedb_prefetch *p, unsigned flags) {
    static const uint64_t one = 1;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
    assert(sqe != NULL);
    io_uring_prep_write(sqe, 0, &one, sizeof one, 0);
    sqe->flags = (unsigned char)(IOSQE_FIXED_FILE | flags);
    sqe->user_data = NODEDB_PREFETCH__MARK_NONE;
}

/* Submits the ticket in `slot`, as the picture above shows. */
static void nodedb_prefetch__begin_by_ring(nodedb_prefetch *p, size_t runs_n, unsigned slot) {
    nodedb_prefetch__cursor c = nodedb_prefetch__cursor_at_start(p, runs_n, MADV_WILLNEED);
    const unsigned entries = p->slots[slot].entries;
    int taken;
    while (c.at < runs_n) {
        struct iovec step = nodedb_prefetch__step_at(&c);
        nodedb_prefetch__prepare(p, step, MADV_WILLNEED, NODEDB_PREFETCH__MARK_NONE, 0);
        nodedb_prefetch__advance(&c, step.iov_len);
    }
    c = nodedb_prefetch__cursor_at_start(p, runs_n, NODEDB_PREFETCH__POPULATE_READ);
    while (c.at < runs_n) {
        struct iovec step = nodedb_prefetch__step_at(&c);
        nodedb_prefetch__prepare(p, step, NODEDB_PREFETCH__POPULATE_READ, slot, IOSQE_IO_HARDLINK);
        nodedb_prefetch__advance(&c, step.iov_len);
        p->slots[slot].steps_left++;
    }
    nodedb_prefetch__prepare_signal(p, 0);
    taken = nodedb_prefetch__submit(p);
    if (taken >= 0 && (unsigned)taken < entries) { /* the chain may be cut: see the top of this room */
        nodedb_prefetch__prepare_signal(p, IOSQE_IO_DRAIN);
        taken = nodedb_prefetch__submit(p);
    }
    if (taken < 0) nodedb_prefetch__give_up_ring(p, -taken);
}

/* A ring that can do MADV_WILLNEED and MADV_POPULATE_READ, with event_fd as its file 0. Returns 0 or an errno. */
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
    if (error != 0) io_uring_queue_exit(&p->ring);
    return error;
}

static void nodedb_prefetch__close_ring(nodedb_prefetch *p) { io_uring_queue_exit(&p->ring); }
#else
/* Without liburing `has_ring` is never true and no method is IO_URING, so none of these is reached but open_ring. */
static int nodedb_prefetch__open_ring(nodedb_prefetch *p, void *page) { return (void)p, (void)page, ENOSYS; }
static void nodedb_prefetch__close_ring(nodedb_prefetch *p) { (void)p; }
static void nodedb_prefetch__drain(nodedb_prefetch *p) { (void)p; }
static void nodedb_prefetch__begin_by_ring(nodedb_prefetch *p, size_t runs_n, unsigned slot) {
    (void)p, (void)runs_n, (void)slot;
}
static void nodedb_prefetch__advise_by_ring(nodedb_prefetch *p, size_t runs_n, nodedb_prefetch__refusal *refusal) {
    (void)nodedb_prefetch__advise(p, runs_n, MADV_WILLNEED, refusal);
}
#endif

/* ===================================================================================================================
 * CREATION: tries what this kernel can do
 *
 * Each method is tried on a page of our own. The version of the kernel does not decide: a container may refuse what the
 * kernel has.
 * ================================================================================================================ */

#define NODEDB_PREFETCH__MIN_PAGE_BYTES 256 /* below any real page; keeps the mark bits of an address free */

/* Tries process_madvise with each advice, and notes in vector_advice which work. Returns 0 or an errno. */
static int nodedb_prefetch__try_process_madvise(nodedb_prefetch *p, void *page) {
    static const int advices[] = {MADV_WILLNEED, NODEDB_PREFETCH__COLD, NODEDB_PREFETCH__PAGE_OUT, MADV_DONTNEED};
    struct iovec step;
    step.iov_base = page, step.iov_len = p->system_page_bytes;
    if (nodedb_prefetch__process_madvise(p->pidfd, &step, 1, MADV_WILLNEED) < 0 && errno == EBADF) {
        long fd = syscall(NODEDB_PREFETCH__SYS_PIDFD_OPEN, getpid(), 0U); /* before Linux 6.14 */
        if (fd < 0) return errno;
        p->pidfd = (int)fd;
    }
    for (size_t i = 0; i < sizeof advices / sizeof advices[0]; i++)
        if (nodedb_prefetch__process_madvise(p->pidfd, &step, 1, advices[i]) == (long)step.iov_len)
            p->vector_advice |= 1u << advices[i];
        else if (advices[i] == MADV_WILLNEED)
            return errno; /* releases alone are not worth it */
    return 0;
}

/* Chooses the methods, and tells the logger what the kernel refused. */
static void nodedb_prefetch__choose_methods(nodedb_prefetch *p, void *page) {
    const nodedb_logger *logger = &p->config.logger;
    nodedb_prefetch_method wanted = p->config.method;
    int error;
    p->method = NODEDB_PREFETCH_MADVISE;
    if (wanted == NODEDB_PREFETCH_MADVISE) return;
    error = nodedb_prefetch__try_process_madvise(p, page);
    if (error == 0) p->method = NODEDB_PREFETCH_PROCESS_MADVISE;
    else nodedb_say(logger, NODEDB_LOG_INFO,
                    "prefetch: process_madvise on ourselves is refused (errno %d), so a batch takes one madvise for "
                    "each step; remedy: Linux 6.13, CAP_SYS_NICE since Linux 5.10, or a seccomp profile that allows it",
                    error);
    if (wanted == NODEDB_PREFETCH_PROCESS_MADVISE) return;
    error = nodedb_prefetch__open_ring(p, page);
    p->has_ring = error == 0;
    if (p->has_ring && wanted == NODEDB_PREFETCH_IO_URING) p->method = NODEDB_PREFETCH_IO_URING;
    if (p->has_ring) return;
#ifdef NODEDB_PREFETCH__URING
    nodedb_say(logger, NODEDB_LOG_WARNING,
               "prefetch: io_uring with MADV_POPULATE_READ is refused (errno %d), so tickets come back before their "
               "pages are in memory; remedy: Linux 5.14, kernel.io_uring_disabled=0, a seccomp profile that allows "
               "io_uring", error);
#else
    nodedb_say(logger, NODEDB_LOG_WARNING,
               "prefetch: built without liburing, so tickets come back before their pages are in memory; remedy: "
               "liburing-dev, and no NODEDB_NO_LIBURING");
#endif
}

/* Fills in the defaults and checks the rest. */
static nodedb_status nodedb_prefetch__complete_config(nodedb_prefetch_config *c, size_t system_page_bytes,
                                                      nodedb_error *err) {
    if (c->page_bytes == 0) c->page_bytes = system_page_bytes;
    if (c->queue_depth == 0) c->queue_depth = NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH;
    if ((unsigned)c->method > NODEDB_PREFETCH_IO_URING)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: there is no method %d", (int)c->method);
    if (!nodedb_prefetch__is_power_of_two(c->page_bytes) || c->page_bytes < system_page_bytes ||
        c->page_bytes > NODEDB_PREFETCH_MAX_PAGE_BYTES)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0,
                           "prefetch: page_bytes is %llu: a power of two from the system's %llu to %llu is needed",
                           (unsigned long long)c->page_bytes, (unsigned long long)system_page_bytes,
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
    memset(&c, 0, sizeof c);
    if (config != NULL) c = *config;
    assert(page_bytes > NODEDB_PREFETCH__MIN_PAGE_BYTES && nodedb_prefetch__is_power_of_two((size_t)page_bytes));
    if (nodedb_prefetch__complete_config(&c, (size_t)page_bytes, err) != NODEDB_OK) return NULL;
    p = (nodedb_prefetch *)nodedb__alloc_zero(&c.allocator, sizeof *p, NODEDB_CACHE_LINE_BYTES);
    if (p == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "prefetch: no memory for %llu bytes",
                          (unsigned long long)sizeof *p);
        return NULL;
    }
    p->config = c;
    p->system_page_bytes = (size_t)page_bytes;
    p->pidfd = NODEDB_PREFETCH__PIDFD_SELF;
    for (unsigned i = 0; i < NODEDB_PREFETCH_MAX_TICKETS; i++) p->free_slots[i] = NODEDB_PREFETCH_MAX_TICKETS - 1 - i;
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
    nodedb_prefetch__choose_methods(p, page);
    (void)munmap(page, p->system_page_bytes);
    return p;
}

NODEDB_PREFETCH_API void nodedb_prefetch_destroy(nodedb_prefetch *p) {
    nodedb_allocator allocator;
    if (p == NULL) return;
    if (p->has_ring) nodedb_prefetch__close_ring(p);
    if (p->pidfd >= 0) (void)close(p->pidfd);
    if (p->event_fd >= 0) (void)close(p->event_fd);
    allocator = p->config.allocator;
    nodedb__release(&allocator, p, sizeof *p);
}

/* ===================================================================================================================
 * RESIDENCY: counts the pages that are in memory
 * ================================================================================================================ */

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_residency(nodedb_prefetch *p, const void *start, size_t bytes,
                                                            uint64_t *resident_pages, uint64_t *total_pages,
                                                            nodedb_error *err) {
    unsigned char in_memory[NODEDB_PREFETCH__MINCORE_PAGES];
    nodedb_prefetch_range run;
    size_t runs_n = 0, pages;
    uint64_t resident = 0;
    nodedb_status status = nodedb_prefetch__check_not_null(p != NULL && total_pages != NULL ? resident_pages : NULL,
                                                           err);
    if (status != NODEDB_OK) return status;
    *resident_pages = *total_pages = 0;
    run.start = start, run.bytes = bytes;
    status = nodedb_prefetch_plan(&run, 1, p->system_page_bytes, NODEDB_PREFETCH_OUTWARD, &run, &runs_n, err);
    if (status != NODEDB_OK || runs_n == 0) return status;

    for (size_t at = 0; at < run.bytes; at += pages * p->system_page_bytes) {
        nodedb_prefetch__refusal refusal = {0, NULL, 0};
        pages = (run.bytes - at) / p->system_page_bytes;
        if (pages > sizeof in_memory) pages = sizeof in_memory;
        refusal.start = (const void *)((uintptr_t)run.start + at);
        refusal.bytes = pages * p->system_page_bytes;
        if (mincore((void *)(uintptr_t)refusal.start, refusal.bytes, in_memory) != 0) {
            refusal.sys_errno = errno;
            return nodedb_prefetch__refusal_error(p, &refusal, "mincore", err);
        }
        for (size_t i = 0; i < pages; i++) resident += in_memory[i] & 1;
    }
    *resident_pages = resident;
    *total_pages = run.bytes / p->system_page_bytes;
    p->stats.residency_hits += resident;
    p->stats.residency_misses += *total_pages - resident;
    return NODEDB_OK;
}

/* ===================================================================================================================
 * FAULTS: counts the page faults of one thread
 *
 * The kernel counts for each thread. A tick after the end of an interval takes the difference, and derives two results
 * from it: whether the thread is degraded, and how many ranges it should prefetch ahead.
 * ================================================================================================================ */

#define NODEDB_PREFETCH__MISS_RATE_HIGH 0.125 /* share of major faults above which the depth grows: 1 in 8 */

/* The counters of the calling thread; RUSAGE_SELF would be those of the whole process. */
static nodedb_status nodedb_prefetch__thread_faults(uint64_t *major, uint64_t *minor, nodedb_error *err) {
    struct rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0)
        return nodedb_fail(err, NODEDB_ERR_IO, errno, "prefetch: getrusage(RUSAGE_THREAD) failed");
    *major = (uint64_t)usage.ru_majflt;
    *minor = (uint64_t)usage.ru_minflt;
    return NODEDB_OK;
}

/* Fills in the bounds that are 0. A bound that is given moves the default of the other. */
static void nodedb_prefetch__complete_depths(nodedb_prefetch_faults_config *c) {
    if (c->depth_max == 0)
        c->depth_max = c->depth_min > NODEDB_PREFETCH_DEFAULT_DEPTH_MAX ? c->depth_min
                                                                        : NODEDB_PREFETCH_DEFAULT_DEPTH_MAX;
    if (c->depth_min == 0)
        c->depth_min = c->depth_max < NODEDB_PREFETCH_DEFAULT_DEPTH_MIN ? c->depth_max
                                                                        : NODEDB_PREFETCH_DEFAULT_DEPTH_MIN;
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_start(nodedb_prefetch_faults *f,
                                                               const nodedb_prefetch_faults_config *config,
                                                               nodedb_error *err) {
    nodedb_prefetch_faults fresh;
    nodedb_prefetch_faults_config *c = &fresh.config;
    nodedb_status status = nodedb_prefetch__check_not_null(f, err);
    if (status != NODEDB_OK) return status;
    memset(&fresh, 0, sizeof fresh);
    if (config != NULL) *c = *config;
    if (c->interval_ns == 0) c->interval_ns = NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
    if (c->major_faults_max == 0) c->major_faults_max = NODEDB_PREFETCH_DEFAULT_MAJOR_FAULTS_MAX;
    nodedb_prefetch__complete_depths(c);
    if (c->depth_min > c->depth_max)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: depth_min %u is above depth_max %u", c->depth_min,
                           c->depth_max);
    status = nodedb_prefetch__thread_faults(&fresh.begun_major, &fresh.begun_minor, err);
    if (status != NODEDB_OK) return status;
    fresh.begun_ns = nodedb_now_ns(&c->clock);
    fresh.depth = c->depth_min;
    fresh.owner_thread = (uintptr_t)pthread_self();
    fresh.owner_tid = (long)syscall(SYS_gettid);
    *f = fresh;
    return NODEDB_OK;
}

static void nodedb_prefetch__adapt_depth(nodedb_prefetch_faults *f) {
    const nodedb_prefetch_faults_config *c = &f->config;
    bool many_misses = f->miss_rate > NODEDB_PREFETCH__MISS_RATE_HIGH;
    if (f->memory_was_short) f->depth = f->depth / 2 > c->depth_min ? f->depth / 2 : c->depth_min;
    else if (many_misses) f->depth = f->depth < c->depth_max / 2 ? f->depth * 2 : c->depth_max;
}

/* A late tick closes a long interval, so its faults are scaled to the length that the limit is meant for. */
static void nodedb_prefetch__update_degraded(nodedb_prefetch_faults *f) {
    double scaled = (double)f->interval_major * (double)f->config.interval_ns / (double)f->interval_elapsed_ns;
    bool degraded = scaled > (double)f->config.major_faults_max;
    if (degraded != f->degraded)
        nodedb_say(&f->config.logger, degraded ? NODEDB_LOG_WARNING : NODEDB_LOG_INFO,
                   "prefetch: thread %ld %s: %.0f major faults per interval, the limit is %llu", f->owner_tid,
                   degraded ? "is degraded" : "has recovered", scaled, (unsigned long long)f->config.major_faults_max);
    f->degraded = degraded;
}

/* A tick looks at pthread_self each time. At the end of an interval it asks the kernel as well, which costs ten times
 * as much: a thread that begins after the owner has ended may get the same pthread_self, but not the same tid. */
static nodedb_status nodedb_prefetch__not_owner(const nodedb_prefetch_faults *f, nodedb_error *err) {
    return nodedb_fail(err, NODEDB_ERR_STATE, 0, "prefetch: these fault counters belong to thread %ld", f->owner_tid);
}

NODEDB_PREFETCH_API nodedb_status nodedb_prefetch_faults_tick(nodedb_prefetch_faults *f, bool memory_is_short,
                                                              nodedb_error *err) {
    uint64_t now, major = 0, minor = 0;
    double all;
    nodedb_status status = nodedb_prefetch__check_not_null(f, err);
    if (status != NODEDB_OK) return status;
    if (f->owner_tid == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "prefetch: these fault counters were not started");
    if ((uintptr_t)pthread_self() != f->owner_thread) return nodedb_prefetch__not_owner(f, err);
    if (memory_is_short) f->memory_was_short = true;
    now = nodedb_now_ns(&f->config.clock);
    if (now < f->begun_ns || now - f->begun_ns < f->config.interval_ns) return NODEDB_OK;
    if ((long)syscall(SYS_gettid) != f->owner_tid) return nodedb_prefetch__not_owner(f, err);
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
    nodedb_prefetch__update_degraded(f);
    nodedb_prefetch__adapt_depth(f);
    f->memory_was_short = false;
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
