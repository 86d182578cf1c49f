/* The promises of nodedb_prefetch.h.
 *
 *   REFUSALS          system calls and completions that fail when a test says so
 *   HELPERS           files, cold mappings, waiting, what a logger was told
 *   RANGES AND RUNS   the plan of a prefetch or a release: rounding, merging, refusals
 *   CREATION          configs, NULL, the allocator, system calls that are refused
 *   BATCHES           cold pages, large ranges and pages, unmapped and anonymous memory
 *   TICKETS           when they come back, how many there are, what they report, cut submissions, a ring that breaks
 *   RELEASE           no neighbour's bytes, private and shared memory, unmapped memory, a lost descriptor
 *   FAULTS            one thread's own, degraded threads, the adaptive depth
 *
 * Tests that need cold pages make a file on disk and evict it. Where the file system does not evict pages (tmpfs), they
 * say so and check only the rest. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64
#endif
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if !defined(NODEDB_NO_LIBURING) && defined(__has_include)
#if __has_include(<liburing.h>)
#include <liburing.h>
#define HAVE_URING 1
#endif
#endif

/* ===================================================================================================================
 * REFUSALS: system calls and completions that fail when a test says so
 *
 * They stand in front of the header, which calls them by the names of the real ones.
 * ================================================================================================================ */

static int madvise_errno; /* of the next madvise; 0: it is the real one */

static int refusing_madvise(void *start, size_t bytes, int advice) {
    if (madvise_errno == 0) return madvise(start, bytes, advice);
    errno = madvise_errno, madvise_errno = 0;
    return -1;
}

#ifdef HAVE_URING
static unsigned cut_at; /* the entry before which the next submission is cut in two; 0: it is not */

/* A kernel that takes only a part of a submission. The part behind the cut goes first and is done before this returns,
 * so the chain of a ticket finishes in the wrong order each time. */
static int cut_submit(struct io_uring *ring) {
    struct io_uring_sqe sqes[2048];
    const unsigned n = io_uring_sq_ready(ring), cut = cut_at, mask = *ring->sq.kring_mask;
    const unsigned head = ring->sq.sqe_tail - n;
    int taken;
    if (cut == 0) return io_uring_submit(ring);
    cut_at = 0;
    for (unsigned i = 0; i < n; i++) sqes[i] = ring->sq.sqes[(head + (i + cut) % n) & mask];
    for (unsigned i = 0; i < n; i++) ring->sq.sqes[(head + i) & mask] = sqes[i];
    ring->sq.sqe_tail = head + n - cut;
    taken = io_uring_submit(ring);
    ring->sq.sqe_tail = head + n;
    for (int tries = 0; tries < 5000 && io_uring_cq_ready(ring) < n - cut; tries++) (void)usleep(1000);
    return taken;
}

static const void *no_memory_at; /* a step that starts here completes with ENOMEM; NULL: none */

static int changing_peek_cqe(struct io_uring *ring, struct io_uring_cqe **cqe) {
    int error = io_uring_peek_cqe(ring, cqe);
    if (error == 0 && no_memory_at != NULL && ((*cqe)->user_data & ~(uint64_t)0xff) == (uintptr_t)no_memory_at)
        (*cqe)->res = -ENOMEM;
    return error;
}
#define io_uring_submit cut_submit
#define io_uring_peek_cqe changing_peek_cqe
#endif
#define madvise refusing_madvise

#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
#include "test.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* ===================================================================================================================
 * HELPERS: files, cold mappings, waiting, what a logger was told
 * ================================================================================================================ */

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static nodedb_prefetch *make(nodedb_prefetch_method method) {
    nodedb_prefetch_config config;
    nodedb_error err;
    nodedb_prefetch *p;
    memset(&config, 0, sizeof config);
    config.method = method;
    p = nodedb_prefetch_create(&config, &err);
    if (p == NULL) test_fail(__FILE__, __LINE__, err.message);
    return p;
}

static nodedb_prefetch_stats stats_of(const nodedb_prefetch *p) {
    nodedb_prefetch_stats s;
    memset(&s, 0xff, sizeof s);
    CHECK_EQ(nodedb_prefetch_get_stats(p, &s, NULL), NODEDB_OK);
    return s;
}

static nodedb_prefetch_range range_of(const void *start, size_t bytes) {
    nodedb_prefetch_range r;
    r.start = start, r.bytes = bytes;
    return r;
}

/* Reads a byte of every `step`th page. Without sanitizers, whose shadow memory would fault as well. */
__attribute__((no_sanitize("address", "thread")))
static int touch(const char *map, size_t from, size_t to, size_t step) {
    const volatile char *bytes = map;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int sum = 0;
    for (; from < to; from += step) sum += bytes[from * page];
    return sum;
}

/* A file of `pages` pages on disk, page i filled with the byte 1 + i % 250. */
static int make_file(const char *name, size_t pages) {
    char path[900], *page = (char *)malloc(page_bytes());
    size_t i;
    int fd;
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (i = 0; i < pages && fd >= 0; i++) {
        memset(page, (int)(1 + i % 250), page_bytes());
        CHECK_EQ(write(fd, page, page_bytes()), page_bytes());
    }
    free(page);
    CHECK(fd >= 0 && fsync(fd) == 0);
    return fd;
}

/* Maps the file, shared and read-only, with none of its pages in memory and no read-around. A page that is still being
 * read, or sits in another CPU's list, is evicted at a later try. False: this file system does not evict. */
static bool map_cold(int fd, size_t pages, char **map) {
    unsigned char *in_memory = (unsigned char *)malloc(pages);
    size_t i, resident = 1;
    int tries;
    for (tries = 0; tries < 20 && resident > 0; tries++) {
        if (tries > 0) munmap(*map, pages * page_bytes()), usleep(10000);
        CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
        *map = (char *)mmap(NULL, pages * page_bytes(), PROT_READ, MAP_SHARED, fd, 0);
        CHECK(*map != (char *)MAP_FAILED);
        CHECK_EQ(madvise(*map, pages * page_bytes(), MADV_RANDOM), 0);
        CHECK_EQ(mincore(*map, pages * page_bytes(), in_memory), 0);
        for (resident = 0, i = 0; i < pages; i++) resident += in_memory[i] & 1;
    }
    free(in_memory);
    if (resident > 0) fprintf(stderr, "%s: skipped in part: this file system does not evict pages\n", test_name);
    return resident == 0;
}

/* Reads are asynchronous: waits (at most 5 s) until all of it is in memory, and says how many pages are. */
static uint64_t wait_resident(const void *start, size_t bytes) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_MADVISE);
    uint64_t resident = 0, total = 1;
    int tries;
    for (tries = 0; tries < 1000 && resident < total; tries++) {
        if (tries > 0) usleep(5000);
        CHECK_EQ(nodedb_prefetch_residency(p, start, bytes, &resident, &total, NULL), NODEDB_OK);
    }
    nodedb_prefetch_destroy(p);
    return resident;
}

static bool is_readable(int fd, int wait_ms) {
    struct pollfd f;
    f.fd = fd, f.events = POLLIN, f.revents = 0;
    return poll(&f, 1, wait_ms) == 1;
}

static nodedb_prefetch_ticket wait_ticket(nodedb_prefetch *p) {
    nodedb_prefetch_ticket t;
    memset(&t, 0, sizeof t);
    while (nodedb_prefetch_reap(p, &t, 1) == 0)
        if (!is_readable(nodedb_prefetch_fd(p), 20000)) {
            test_fail(__FILE__, __LINE__, "no ticket within 20 s");
            break;
        }
    return t;
}

/* No ticket is left, and the descriptor says so. The kernel signals it after it has made a completion visible, so a
 * reap in between leaves the descriptor readable once more. */
static bool nothing_is_left(nodedb_prefetch *p) {
    nodedb_prefetch_ticket t;
    int tries;
    for (tries = 0; tries < 100 && nodedb_prefetch_reap(p, &t, 1) == 0; tries++)
        if (!is_readable(nodedb_prefetch_fd(p), 0)) return true;
    return false;
}

typedef struct sentences {
    int n;
    char all[2000];
} sentences;

static void keep_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    sentences *s = (sentences *)ctx;
    (void)level;
    s->n++;
    strncat(s->all, sentence, sizeof s->all - strlen(s->all) - 1);
}

static const nodedb_prefetch_method methods[] = {NODEDB_PREFETCH_AUTO, NODEDB_PREFETCH_MADVISE,
                                                 NODEDB_PREFETCH_PROCESS_MADVISE, NODEDB_PREFETCH_IO_URING};
enum { METHODS = 4 };

/* ===================================================================================================================
 * RANGES AND RUNS: the plan of a prefetch or a release: rounding, merging, refusals
 * ================================================================================================================ */

TEST(start_is_rounded_down_and_that_rounding_is_added_to_the_length) {
    static const size_t sizes[] = {4096, 16384, 65536};
    size_t s, n;
    for (s = 0; s < 3; s++) {
        uintptr_t base = 64 * sizes[s];
        nodedb_prefetch_range r = range_of((void *)(base + sizes[s] - 1), 2), run;
        CHECK_EQ(nodedb_prefetch_plan(&r, 1, sizes[s], NODEDB_PREFETCH_OUTWARD, &run, &n, NULL), NODEDB_OK);
        CHECK_EQ(n, 1);
        CHECK_EQ((uintptr_t)run.start, base);
        CHECK_EQ(run.bytes, 2 * sizes[s]);
        r = range_of((void *)(base + 1), sizes[s]); /* one page long, on two pages */
        CHECK_EQ(nodedb_prefetch_plan(&r, 1, sizes[s], NODEDB_PREFETCH_OUTWARD, &run, &n, NULL), NODEDB_OK);
        CHECK_EQ(run.bytes, 2 * sizes[s]);
        CHECK_EQ(nodedb_prefetch_plan(&r, 1, sizes[s], NODEDB_PREFETCH_INWARD, &run, &n, NULL), NODEDB_OK);
        CHECK_EQ(n, 0); /* and covers neither */
    }
}

TEST(neighbours_overlaps_and_duplicates_become_one_run) {
    nodedb_prefetch_range r[6], runs[6];
    size_t n;
    r[0] = range_of((void *)0x30000, 1);     /* page 0x30 */
    r[1] = range_of((void *)0x10000, 0x1000);
    r[2] = range_of((void *)0x11000, 1);     /* its neighbour */
    r[3] = range_of((void *)0x10000, 0x1000); /* again */
    r[4] = range_of((void *)0x10800, 0x1800); /* overlaps both */
    r[5] = range_of(NULL, 0);
    CHECK_EQ(nodedb_prefetch_plan(r, 6, 4096, NODEDB_PREFETCH_OUTWARD, runs, &n, NULL), NODEDB_OK);
    CHECK_EQ(n, 2);
    CHECK_EQ((uintptr_t)runs[0].start, 0x10000);
    CHECK_EQ(runs[0].bytes, 0x2000);
    CHECK_EQ((uintptr_t)runs[1].start, 0x30000);
    CHECK_EQ(runs[1].bytes, 0x1000);
    CHECK_EQ(nodedb_prefetch_plan(r, 6, 4096, NODEDB_PREFETCH_OUTWARD, r, &n, NULL), NODEDB_OK); /* in place */
    CHECK_EQ(n, 2);
    r[0] = range_of((void *)0x20000, 0x800), r[1] = range_of((void *)0x20800, 0x800); /* two halves are a whole page */
    CHECK_EQ(nodedb_prefetch_plan(r, 2, 4096, NODEDB_PREFETCH_INWARD, runs, &n, NULL), NODEDB_OK);
    CHECK_EQ(n, 1);
    CHECK_EQ(runs[0].bytes, 0x1000);
}

/* Against the plainest model: one flag per 256 bytes. */
TEST(plan_covers_exactly_the_pages_that_it_promises_for_any_ranges_and_page_size) {
    enum { CELL = 256, CELLS = 4096, MOST = 40 };
    static unsigned char byte_map[CELLS];
    const uintptr_t base = 0x4000000;
    uint64_t random = test_seed;
    int round;
    for (round = 0; round < 3000; round++) {
        size_t page = (size_t)4096 << 2 * (test_random(&random) % 3), cells = page / CELL;
        size_t n = test_random(&random) % MOST, i, c;
        bool inward = test_random(&random) % 2 != 0;
        nodedb_prefetch_range r[MOST], runs[MOST];
        size_t runs_n = 99, covered = 0, wanted = 0;
        memset(byte_map, 0, sizeof byte_map);
        for (i = 0; i < n; i++) {
            size_t from = test_random(&random) % CELLS, length = test_random(&random) % (round % 2 ? 24 : 200);
            if (length > CELLS - from) length = CELLS - from;
            r[i] = range_of((void *)(base + from * CELL), length * CELL);
            memset(byte_map + from, 1, length);
        }
        CHECK_EQ(nodedb_prefetch_plan(r, n, page, inward ? NODEDB_PREFETCH_INWARD : NODEDB_PREFETCH_OUTWARD, runs,
                                      &runs_n, NULL),
                 NODEDB_OK);
        for (i = 0; i < runs_n; i++) {
            uintptr_t start = (uintptr_t)runs[i].start, end = start + runs[i].bytes;
            CHECK(runs[i].bytes > 0 && start % page == 0 && end % page == 0 && start >= base &&
                  end <= base + CELLS * CELL);
            CHECK(i == 0 || (uintptr_t)runs[i - 1].start + runs[i - 1].bytes < start);
            covered += runs[i].bytes / page;
        }
        for (c = 0; c < CELLS; c += cells) {
            size_t set = 0, k;
            bool want, got = false;
            for (k = 0; k < cells; k++) set += byte_map[c + k];
            want = inward ? set == cells : set > 0;
            wanted += want;
            for (i = 0; i < runs_n; i++)
                got = got || (base + c * CELL >= (uintptr_t)runs[i].start &&
                              base + c * CELL < (uintptr_t)runs[i].start + runs[i].bytes);
            CHECK_EQ(got, want);
        }
        CHECK_EQ(covered, wanted);
    }
}

TEST(range_that_wraps_or_is_null_is_refused_and_length_zero_is_nothing_to_do) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    nodedb_prefetch_range r[2], runs[2];
    nodedb_error err;
    size_t n;
    CHECK_EQ(nodedb_prefetch_one(p, (void *)(UINTPTR_MAX - 5000), 6000, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "wraps");
    /* its last page does */
    CHECK_EQ(nodedb_prefetch_one(p, (void *)(UINTPTR_MAX - 5000), 4999, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_one(p, (void *)&err, SIZE_MAX, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_one(p, NULL, 1, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "NULL");
    CHECK_EQ(nodedb_prefetch_batch(p, NULL, 1, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_one(p, NULL, 0, &err), NODEDB_OK);
    CHECK_EQ(nodedb_prefetch_one(p, (void *)(UINTPTR_MAX - 5), 0, &err), NODEDB_OK);
    CHECK_EQ(nodedb_prefetch_batch(p, NULL, 0, &err), NODEDB_OK);
    CHECK_EQ(nodedb_prefetch_release(p, NULL, 0, NODEDB_PREFETCH_DROP, &err), NODEDB_OK);
    r[0] = range_of(&err, sizeof err), r[1] = range_of((void *)(UINTPTR_MAX - 5), 10);
    CHECK_EQ(nodedb_prefetch_batch(p, r, 2, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_begin(p, r, 2, 1, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_release_batch(p, r, 2, NODEDB_PREFETCH_COLD, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(stats_of(p).system_calls, 0); /* the whole batch was refused */
    CHECK_EQ(stats_of(p).ranges_asked, 0);
    CHECK_EQ(nodedb_prefetch_plan(r, 1, 0, NODEDB_PREFETCH_OUTWARD, runs, &n, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_plan(r, 1, 12288, NODEDB_PREFETCH_OUTWARD, runs, &n, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_plan(r, 1, 4096, NODEDB_PREFETCH_OUTWARD, NULL, &n, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_plan(r, 1, 4096, NODEDB_PREFETCH_OUTWARD, runs, NULL, &err), NODEDB_ERR_INVALID);
    nodedb_prefetch_destroy(p);
}

/* ===================================================================================================================
 * CREATION: configs, NULL, the allocator, system calls that are refused
 * ================================================================================================================ */

TEST(zeroed_config_means_the_systems_page_and_a_method_that_was_tried) {
    nodedb_prefetch *p = nodedb_prefetch_create(NULL, NULL);
    void *memory;
    int m;
    REQUIRE(p != NULL);
    memory = mmap(NULL, 4 * page_bytes(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK_EQ(nodedb_prefetch_one(p, memory, 4 * page_bytes(), NULL), NODEDB_OK);
    CHECK_EQ(stats_of(p).pages_advised, 4); /* in the system's pages */
    munmap(memory, 4 * page_bytes());
    CHECK(nodedb_prefetch_method_in_use(p) != NODEDB_PREFETCH_AUTO);
    CHECK(nodedb_prefetch_fd(p) >= 0);
    nodedb_prefetch_destroy(p);
    nodedb_prefetch_destroy(NULL);
    for (m = 0; m < METHODS; m++) CHECK(strlen(nodedb_prefetch_method_name(methods[m])) > 3);
    CHECK(strcmp(nodedb_prefetch_method_name(NODEDB_PREFETCH_PROCESS_MADVISE), "process_madvise") == 0);
    CHECK(strcmp(nodedb_prefetch_method_name((nodedb_prefetch_method)77), "unknown") == 0);
    p = make(NODEDB_PREFETCH_MADVISE);
    CHECK_EQ(nodedb_prefetch_method_in_use(p), NODEDB_PREFETCH_MADVISE);
    CHECK(!nodedb_prefetch_can_wait(p));
    nodedb_prefetch_destroy(p);
}

TEST(bad_config_is_an_error_that_says_why) {
    nodedb_prefetch_config c;
    nodedb_error err;
    memset(&c, 0, sizeof c);
    c.page_bytes = page_bytes() + 1;
    CHECK(nodedb_prefetch_create(&c, &err) == NULL);
    CHECK_HAS(err.message, "page_bytes");
    c.page_bytes = page_bytes() / 2;
    CHECK(nodedb_prefetch_create(&c, &err) == NULL);
    c.page_bytes = 0, c.queue_depth = NODEDB_PREFETCH_MAX_QUEUE_DEPTH + 1;
    CHECK(nodedb_prefetch_create(&c, &err) == NULL);
    CHECK_HAS(err.message, "queue_depth");
    c.queue_depth = 0, c.method = (nodedb_prefetch_method)9;
    CHECK(nodedb_prefetch_create(&c, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_INVALID);
}

TEST(null_object_or_result_is_an_error_everywhere) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    nodedb_prefetch_faults f;
    nodedb_error err;
    uint64_t a;
    memset(&f, 0, sizeof f);
    CHECK_EQ(nodedb_prefetch_one(NULL, &err, 1, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_begin(NULL, NULL, 0, 0, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_reap(NULL, NULL, 0), 0);
    CHECK_EQ(nodedb_prefetch_reap(p, NULL, 1), 0);
    CHECK_EQ(nodedb_prefetch_fd(NULL), -1);
    CHECK_EQ(nodedb_prefetch_release(NULL, &err, 1, NODEDB_PREFETCH_COLD, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_release(p, &err, 1, (nodedb_prefetch_release_how)4, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_residency(p, &err, 1, NULL, &a, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_residency(p, &err, 1, &a, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_residency(NULL, &err, 1, &a, &a, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_get_stats(p, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_get_stats(NULL, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_faults_start(NULL, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_faults_tick(NULL, false, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, &err), NODEDB_ERR_INVALID); /* not started */
    nodedb_prefetch_destroy(p);
}

typedef struct counted {
    size_t bytes;
    bool refuse;
} counted;
static void *counted_alloc(void *ctx, size_t bytes, size_t align) {
    counted *c = (counted *)ctx;
    void *memory = NULL;
    if (c->refuse || posix_memalign(&memory, align, bytes) != 0) return NULL;
    c->bytes += bytes;
    return memory;
}
static void counted_release(void *ctx, void *memory, size_t bytes) {
    ((counted *)ctx)->bytes -= bytes;
    free(memory);
}

TEST(memory_is_one_block_from_the_allocator_and_goes_back) {
    nodedb_prefetch_config c;
    counted count = {0, true};
    nodedb_prefetch *p;
    nodedb_error err;
    memset(&c, 0, sizeof c);
    c.allocator.alloc = counted_alloc, c.allocator.release = counted_release, c.allocator.ctx = &count;
    CHECK(nodedb_prefetch_create(&c, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY);
    count.refuse = false;
    p = nodedb_prefetch_create(&c, &err);
    REQUIRE(p != NULL);
    CHECK(count.bytes > 0 && count.bytes < 48 * 1024);
    nodedb_prefetch_destroy(p);
    CHECK_EQ(count.bytes, 0);
}

/* In a child, the kernel is made to refuse process_madvise and io_uring, as containers do. */
static bool refuse_system_calls(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), /* seccomp_data.nr */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NODEDB_PREFETCH__SYS_PROCESS_MADVISE, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425 /* io_uring_setup */, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog program;
    program.len = sizeof filter / sizeof filter[0], program.filter = filter;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int child_without_system_calls(char *map, size_t bytes) {
    nodedb_prefetch_config c;
    nodedb_prefetch_range r = range_of(map, bytes);
    nodedb_prefetch_ticket t;
    sentences told;
    nodedb_prefetch *p;
    if (!refuse_system_calls()) return 77;
    memset(&told, 0, sizeof told);
    memset(&c, 0, sizeof c);
    c.method = NODEDB_PREFETCH_IO_URING, c.logger.write = keep_sentence, c.logger.ctx = &told;
    p = nodedb_prefetch_create(&c, NULL);
    if (p == NULL || nodedb_prefetch_method_in_use(p) != NODEDB_PREFETCH_MADVISE ||
        nodedb_prefetch_can_wait(p)) return 1;
    if (told.n != 2 || strstr(told.all, "remedy") == NULL) return 2;
    if (nodedb_prefetch_batch(p, &r, 1, NULL) != NODEDB_OK || nodedb_prefetch_begin(p, &r, 1, 7,
                                                                                    NULL) != NODEDB_OK) return 3;
    if (!is_readable(nodedb_prefetch_fd(p), 0) || nodedb_prefetch_reap(p, &t, 1) != 1) return 4;
    if (t.tag != 7 || t.resident || t.status != NODEDB_OK || told.n != 2) return 5;
    nodedb_prefetch_destroy(p);
    return 0;
}

TEST(refused_system_calls_fall_back_to_madvise_and_each_is_said_once) {
    int fd = make_file("data", 8), status = 0;
    char *map;
    pid_t child;
    (void)map_cold(fd, 8, &map);
    child = fork();
    if (child == 0) _exit(child_without_system_calls(map, 8 * page_bytes()));
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) fprintf(stderr, "%s: skipped: no seccomp here\n", test_name);
    else CHECK_EQ(WEXITSTATUS(status), 0);
    munmap(map, 8 * page_bytes());
    close(fd);
}

/* ===================================================================================================================
 * BATCHES: cold pages, large ranges and pages, unmapped and anonymous memory
 * ================================================================================================================ */

TEST(cold_pages_are_in_memory_after_a_prefetch_and_only_those) {
    enum { PAGES = 256 };
    int fd = make_file("data", PAGES), m;
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        nodedb_prefetch_range r[3];
        uint64_t resident, total;
        char *map;
        bool cold = map_cold(fd, PAGES, &map);
        r[0] = range_of(map + 100 * page_bytes() + 5, 1);
        r[1] = range_of(map + 20 * page_bytes() - 1, 2); /* the last byte of page 19 and the first of page 20 */
        r[2] = range_of(map + 20 * page_bytes(), page_bytes());
        CHECK_EQ(nodedb_prefetch_batch(p, r, 3, NULL), NODEDB_OK);
        CHECK_EQ(wait_resident(map + 100 * page_bytes(), 1), 1);
        CHECK_EQ(wait_resident(map + 19 * page_bytes(), 2 * page_bytes()), 2);
        CHECK_EQ(nodedb_prefetch_residency(p, map, PAGES * page_bytes(), &resident, &total, NULL), NODEDB_OK);
        CHECK_EQ(total, PAGES);
        if (cold) {
            CHECK_EQ(resident, 3);
            CHECK_EQ(stats_of(p).residency_hits, 3);
            CHECK_EQ(stats_of(p).residency_misses, PAGES - 3);
        }
        CHECK_EQ(stats_of(p).pages_advised, 3);
        CHECK_EQ(stats_of(p).ranges_asked, 3);
        CHECK_EQ(stats_of(p).ranges_merged, 1);
        CHECK_EQ(stats_of(p).failures, 0);
        nodedb_prefetch_destroy(p);
        munmap(map, PAGES * page_bytes());
    }
    close(fd);
}

/* Asks for a file of `pages` pages as `n` ranges in a mixed order, until all of it is in memory: at most three times,
 * each from the disk, because others on the machine may empty the page cache meanwhile. */
static void check_brought_in_whole(nodedb_prefetch_method method, int fd, size_t pages, size_t n) {
    nodedb_prefetch_range *r = (nodedb_prefetch_range *)malloc(n * sizeof *r);
    size_t i, bytes = pages * page_bytes();
    uint64_t resident = 0;
    int tries;
    for (tries = 0; tries < 3 && resident < pages; tries++) {
        nodedb_prefetch *p = make(method);
        char *map;
        (void)map_cold(fd, pages, &map);
        for (i = 0; i < n; i++) r[i] = range_of(map + i * 1009 % n * (bytes / n), bytes / n);
        CHECK_EQ(nodedb_prefetch_batch(p, r, n, NULL), NODEDB_OK);
        resident = wait_resident(map, bytes);
        CHECK_EQ(stats_of(p).pages_advised, pages);
        CHECK_EQ(stats_of(p).failures, 0);
        if (resident < pages)
            fprintf(stderr, "%s: %s: only %d of %d pages\n", test_name,
                    nodedb_prefetch_method_name(nodedb_prefetch_method_in_use(p)), (int)resident, (int)pages);
        nodedb_prefetch_destroy(p);
        munmap(map, bytes);
    }
    CHECK_EQ(resident, pages);
    free(r);
}

TEST(large_range_is_brought_in_whole_although_the_kernel_caps_one_advice) {
    size_t pages = ((size_t)24 << 20) / page_bytes();
    int fd = make_file("data", pages), m;
    for (m = 0; m < METHODS; m++) check_brought_in_whole(methods[m], fd, pages, 1);
    close(fd);
}

TEST(batch_is_one_system_call_where_the_kernel_has_it_and_one_per_run_otherwise) {
    enum { PAGES = 128 };
    int fd = make_file("data", PAGES), m, i;
    char *map;
    (void)map_cold(fd, PAGES, &map);
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        nodedb_prefetch_range r[64];
        /* every other page */
        for (i = 0; i < 64; i++) r[i] = range_of(map + (size_t)(i * 37 % 64) * 2 * page_bytes(), 10);
        CHECK_EQ(nodedb_prefetch_batch(p, r, 64, NULL), NODEDB_OK);
        CHECK_EQ(stats_of(p).system_calls, nodedb_prefetch_method_in_use(p) == NODEDB_PREFETCH_MADVISE ? 64 : 1);
        CHECK_EQ(stats_of(p).pages_advised, 64);
        CHECK_EQ(nodedb_prefetch_one(p, map, PAGES * page_bytes(), NULL), NODEDB_OK);
        CHECK_EQ(stats_of(p).pages_advised, 64 + PAGES);
        nodedb_prefetch_destroy(p);
    }
    munmap(map, PAGES * page_bytes());
    close(fd);
}

TEST(batch_larger_than_a_group_is_processed_in_groups) {
    enum { PAGES = 3000 };
    int fd = make_file("data", PAGES), m;
    for (m = 0; m < METHODS; m++) check_brought_in_whole(methods[m], fd, PAGES, PAGES);
    close(fd);
}

TEST(page_size_larger_than_the_systems_brings_in_whole_large_pages) {
    size_t large = page_bytes() * 4, pages = 64;
    int fd = make_file("data", pages);
    nodedb_prefetch_config c;
    nodedb_prefetch *p;
    char *map, *aligned;
    bool cold = map_cold(fd, pages, &map);
    uint64_t resident, total;
    memset(&c, 0, sizeof c);
    c.page_bytes = large;
    p = nodedb_prefetch_create(&c, NULL);
    REQUIRE(p != NULL);
    aligned = (char *)(((uintptr_t)map + 2 * large) & ~(uintptr_t)(large - 1));
    CHECK_EQ(nodedb_prefetch_one(p, aligned + large - 1, 2, NULL), NODEDB_OK);
    CHECK_EQ(stats_of(p).pages_advised, 2);
    CHECK_EQ(wait_resident(aligned, 2 * large), 8);
    CHECK_EQ(nodedb_prefetch_residency(p, map, pages * page_bytes(), &resident, &total, NULL), NODEDB_OK);
    if (cold) CHECK_EQ(resident, 8);
    nodedb_prefetch_destroy(p);
    munmap(map, pages * page_bytes());
    close(fd);
}

TEST(unmapped_memory_is_an_error_that_names_its_address_and_the_rest_is_brought_in) {
    enum { PAGES = 64 };
    int fd = make_file("data", PAGES), m;
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        bool later = nodedb_prefetch_method_in_use(p) == NODEDB_PREFETCH_IO_URING;
        nodedb_prefetch_range r[4];
        char *map, address[40];
        nodedb_error err;
        nodedb_status status;
        uint64_t a, b;
        (void)map_cold(fd, PAGES, &map);
        CHECK_EQ(munmap(map + 37 * page_bytes(), page_bytes()), 0);
        snprintf(address, sizeof address, "0x%llx", (unsigned long long)(uintptr_t)(map + 37 * page_bytes()));
        r[0] = range_of(map + 50 * page_bytes(), 1);
        r[1] = range_of(map + 30 * page_bytes(), 16 * page_bytes()); /* has the hole inside */
        r[2] = range_of(map + 2 * page_bytes(), 1);
        r[3] = range_of(map + 10 * page_bytes(), 1);
        status = nodedb_prefetch_batch(p, r, 4, &err);
        CHECK_EQ(status, later ? NODEDB_OK : NODEDB_ERR_INVALID);
        if (!later) {
            CHECK_HAS(err.message, address);
            CHECK_EQ(err.sys_errno, ENOMEM);
        }
        CHECK_EQ(wait_resident(map + 50 * page_bytes(), 1), 1);
        CHECK_EQ(wait_resident(map + 2 * page_bytes(), 1), 1);
        CHECK_EQ(wait_resident(map + 10 * page_bytes(), 1), 1);
        CHECK_EQ(wait_resident(map + 30 * page_bytes(), 7 * page_bytes()), 7);
        CHECK_EQ(wait_resident(map + 38 * page_bytes(), 8 * page_bytes()), 8);
        if (later) (void)nodedb_prefetch_reap(p, NULL, 0);
        CHECK_EQ(stats_of(p).failures, 1);
        CHECK_EQ(nodedb_prefetch_residency(p, map, PAGES * page_bytes(), &a, &b, &err), NODEDB_ERR_INVALID);
        CHECK_HAS(err.message, address);
        nodedb_prefetch_destroy(p);
        munmap(map, PAGES * page_bytes());
    }
    close(fd);
}

TEST(refusal_for_want_of_memory_is_told_from_memory_that_is_not_mapped) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_MADVISE);
    nodedb_prefetch_range r;
    nodedb_prefetch_ticket t;
    int fd = make_file("data", 8);
    nodedb_error err;
    char *map;
    (void)map_cold(fd, 8, &map);
    r = range_of(map, 8 * page_bytes());
    madvise_errno = ENOMEM;
    CHECK_EQ(nodedb_prefetch_batch(p, &r, 1, &err), NODEDB_ERR_NO_MEMORY);
    madvise_errno = ENOMEM;
    CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 1, &err), NODEDB_OK);
    t = wait_ticket(p);
    CHECK(t.status == NODEDB_ERR_NO_MEMORY && t.sys_errno == ENOMEM && t.failed_at == map && !t.resident);
    madvise_errno = EINVAL;
    CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 2, &err), NODEDB_OK);
    CHECK_EQ(wait_ticket(p).status, NODEDB_ERR_UNSUPPORTED);
    madvise_errno = EAGAIN;
    CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 3, &err), NODEDB_OK);
    CHECK_EQ(wait_ticket(p).status, NODEDB_ERR_IO);
    CHECK_EQ(stats_of(p).failures, 4);
    nodedb_prefetch_destroy(p);
    munmap(map, 8 * page_bytes());
    close(fd);
}

TEST(numbers_of_the_systems_headers_come_before_our_own) {
#if defined(MADV_COLD) && defined(MADV_PAGEOUT) && defined(MADV_POPULATE_READ)
    CHECK_EQ(NODEDB_PREFETCH__COLD, MADV_COLD);
    CHECK_EQ(NODEDB_PREFETCH__PAGE_OUT, MADV_PAGEOUT);
    CHECK_EQ(NODEDB_PREFETCH__POPULATE_READ, MADV_POPULATE_READ);
#endif
#if defined(SYS_pidfd_open) && defined(SYS_process_madvise)
    CHECK_EQ(NODEDB_PREFETCH__SYS_PIDFD_OPEN, SYS_pidfd_open);
    CHECK_EQ(NODEDB_PREFETCH__SYS_PROCESS_MADVISE, SYS_process_madvise);
#endif
}

TEST(prefetch_of_anonymous_memory_is_nothing_to_do) {
    int m;
    char *memory = (char *)mmap(NULL, 8 * page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        CHECK_EQ(nodedb_prefetch_one(p, memory + 1, 7 * page_bytes(), NULL), NODEDB_OK);
        nodedb_prefetch_destroy(p);
    }
    munmap(memory, 8 * page_bytes());
}

/* EBADF is what a kernel without swap answers to MADV_WILLNEED of anonymous memory. */
TEST(ebadf_is_nothing_to_do_for_a_prefetch_and_a_failure_for_a_release) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_MADVISE);
    char *memory = (char *)mmap(NULL, page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise_errno = EBADF;
    CHECK_EQ(nodedb_prefetch_one(p, memory, 1, NULL), NODEDB_OK);
    CHECK_EQ(stats_of(p).failures, 0);
    madvise_errno = EBADF;
    CHECK_EQ(nodedb_prefetch_release(p, memory, page_bytes(), NODEDB_PREFETCH_DROP_PRIVATE, NULL), NODEDB_ERR_IO);
    CHECK_EQ(stats_of(p).failures, 1);
    nodedb_prefetch_destroy(p);
    munmap(memory, page_bytes());
}

/* ===================================================================================================================
 * TICKETS: when they come back, how many there are, what they report, cut submissions, a ring that breaks
 * ================================================================================================================ */

TEST(ticket_comes_back_when_every_page_can_be_touched_without_a_fault) {
    enum { PAGES = 512, BATCH = 64 };
    int fd = make_file("data", PAGES), m, i;
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        nodedb_prefetch_range r[BATCH];
        nodedb_prefetch_ticket t;
        struct rusage before, after;
        char *map;
        (void)map_cold(fd, PAGES, &map);
        CHECK(!is_readable(nodedb_prefetch_fd(p), 0));
        for (i = 0; i < BATCH; i++) r[i] = range_of(map + (size_t)(i * 8 + 3) * page_bytes() + 17, 100);
        CHECK_EQ(nodedb_prefetch_begin(p, r, BATCH, 0xabcdef0123456789, NULL), NODEDB_OK);
        memset(r, 0xff, sizeof r); /* the call keeps nothing of it */
        t = wait_ticket(p);
        CHECK(t.tag == 0xabcdef0123456789 && t.status == NODEDB_OK && t.sys_errno == 0 && t.failed_at == NULL);
        CHECK_EQ(t.resident, nodedb_prefetch_can_wait(p));
        if (t.resident) {
            getrusage(RUSAGE_THREAD, &before);
            (void)touch(map, 3, PAGES, 8);
            getrusage(RUSAGE_THREAD, &after);
            CHECK_EQ(after.ru_majflt - before.ru_majflt, 0);
            CHECK(after.ru_minflt - before.ru_minflt < 8); /* the page table was filled as well */
        }
        CHECK(nothing_is_left(p));
        CHECK_EQ(stats_of(p).tickets_begun, 1);
        CHECK_EQ(stats_of(p).tickets_done, 1);
        nodedb_prefetch_destroy(p);
        munmap(map, PAGES * page_bytes());
    }
    close(fd);
}

TEST(tickets_are_bounded_and_all_come_back_once) {
    enum { PAGES = 4096 };
    int fd = make_file("data", PAGES), m;
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        nodedb_prefetch_ticket t[NODEDB_PREFETCH_MAX_TICKETS];
        unsigned char seen[200];
        uint64_t random = test_seed;
        int begun = 0, done = 0, refused = 0;
        nodedb_error err;
        char *map;
        memset(seen, 0, sizeof seen);
        (void)map_cold(fd, PAGES, &map);
        while (done < 200) {
            nodedb_prefetch_range r[20];
            size_t n = test_random(&random) % 20, i, got;
            for (i = 0; i < n; i++) r[i] = range_of(map + test_random(&random) % (PAGES - 4) * page_bytes(),
                                                    3 * page_bytes());
            if (begun < 200 && nodedb_prefetch_begin(p, r, n, (uint64_t)begun, &err) == NODEDB_OK) {
                begun++;
                continue;
            }
            if (begun < 200) {
                CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
                refused++;
            }
            REQUIRE(is_readable(nodedb_prefetch_fd(p), 20000));
            got = nodedb_prefetch_reap(p, t, 1 + test_random(&random) % NODEDB_PREFETCH_MAX_TICKETS);
            for (i = 0; i < got; i++) {
                CHECK(t[i].tag < 200 && t[i].status == NODEDB_OK);
                seen[t[i].tag % 200]++;
            }
            done += (int)got;
        }
        CHECK(refused > 0);
        for (begun = 0; begun < 200; begun++) CHECK_EQ(seen[begun], 1);
        CHECK_EQ(nodedb_prefetch_reap(p, t, 1), 0);
        nodedb_prefetch_destroy(p);
        munmap(map, PAGES * page_bytes());
    }
    close(fd);
}

TEST(four_tickets_of_64_scattered_pages_fit_into_the_default_queue) {
    enum { TICKETS = 4, BATCH = 64, PAGES = TICKETS * BATCH * 2 };
    int fd = make_file("data", PAGES);
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    nodedb_prefetch_range r[BATCH];
    unsigned seen = 0;
    char *map;
    (void)map_cold(fd, PAGES, &map);
    /* whatever the disk: a fast one could finish the first ticket before the fourth begins */
    CHECK(TICKETS * (2 * BATCH + 1) <= NODEDB_PREFETCH_DEFAULT_QUEUE_DEPTH);
    for (int t = 0; t < TICKETS; t++) {
        for (int i = 0; i < BATCH; i++) r[i] = range_of(map + (size_t)(t * BATCH + i) * 2 * page_bytes(), 100);
        CHECK_EQ(nodedb_prefetch_begin(p, r, BATCH, (uint64_t)t, NULL), NODEDB_OK);
    }
    for (int t = 0; t < TICKETS; t++) seen |= 1u << wait_ticket(p).tag;
    CHECK_EQ(seen, (1u << TICKETS) - 1);
    nodedb_prefetch_destroy(p);
    munmap(map, PAGES * page_bytes());
    close(fd);
}

TEST(ticket_that_is_too_large_is_refused_with_the_remedy) {
    enum { PAGES = 64 };
    int fd = make_file("data", PAGES), i;
    nodedb_prefetch_range r[NODEDB_PREFETCH_GROUP_RANGES + 1];
    nodedb_prefetch_config c;
    nodedb_prefetch *p;
    nodedb_error err;
    char *map;
    (void)map_cold(fd, PAGES, &map);
    memset(&c, 0, sizeof c);
    c.queue_depth = 16;
    p = nodedb_prefetch_create(&c, NULL);
    REQUIRE(p != NULL);
    for (i = 0; i <= NODEDB_PREFETCH_GROUP_RANGES; i++) r[i] = range_of(map + (size_t)(i % 32) * 2 * page_bytes(), 1);
    CHECK_EQ(nodedb_prefetch_begin(p, r, NODEDB_PREFETCH_GROUP_RANGES + 1, 0, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_prefetch_begin(p, r, 8, 0, &err), NODEDB_ERR_LIMIT); /* 8 runs, 8 steps, 1 */
    CHECK_HAS(err.message, "queue_depth");
    CHECK_EQ(nodedb_prefetch_begin(p, r, 7, 5, &err), NODEDB_OK);
    CHECK_EQ(wait_ticket(p).tag, 5);
    CHECK_EQ(stats_of(p).tickets_begun, 1);
    nodedb_prefetch_destroy(p);
    munmap(map, PAGES * page_bytes());
    close(fd);
}

/* The figures of the manual, with a ring and without one: 511 scattered pages, or a range of 127 MiB. */
TEST(default_queue_takes_a_ticket_of_the_size_that_the_manual_says) {
    const size_t bytes = (size_t)128 << 20;
    char *map = (char *)mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(map != (char *)MAP_FAILED);
    for (int m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        nodedb_prefetch_range r[512];
        for (int i = 0; i < 512; i++) r[i] = range_of(map + (size_t)i * 2 * page_bytes(), 1);
        CHECK_EQ(nodedb_prefetch_begin(p, r, 512, 0, NULL), NODEDB_ERR_LIMIT);
        CHECK_EQ(nodedb_prefetch_begin(p, r, 511, 1, NULL), NODEDB_OK);
        CHECK_EQ(wait_ticket(p).tag, 1);
        r[0] = range_of(map, bytes);
        CHECK_EQ(nodedb_prefetch_begin(p, r, 1, 2, NULL), NODEDB_ERR_LIMIT);
        r[0] = range_of(map, bytes / 128 * 127);
        CHECK_EQ(nodedb_prefetch_begin(p, r, 1, 3, NULL), NODEDB_OK);
        CHECK_EQ(wait_ticket(p).tag, 3);
        nodedb_prefetch_destroy(p);
    }
    munmap(map, bytes);
}

TEST(ticket_reports_memory_that_is_not_mapped_or_behind_the_end_of_its_file) {
    enum { PAGES = 32 };
    int fd = make_file("data", PAGES), m;
    for (m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        nodedb_prefetch_range r[3];
        nodedb_prefetch_ticket t;
        char *map;
        (void)map_cold(fd, PAGES, &map);
        munmap(map + 9 * page_bytes(), page_bytes());
        r[0] = range_of(map + 20 * page_bytes(), 1);
        r[1] = range_of(map + 9 * page_bytes(), 1);
        r[2] = range_of(map + 2 * page_bytes(), 1);
        CHECK_EQ(nodedb_prefetch_begin(p, r, 3, 1, NULL), NODEDB_OK);
        t = wait_ticket(p);
        CHECK_EQ(t.status, NODEDB_ERR_INVALID);
        CHECK_EQ(t.sys_errno, ENOMEM);
        CHECK(t.failed_at == map + 9 * page_bytes() && !t.resident);
        CHECK_EQ(wait_resident(map + 20 * page_bytes(), 1), 1); /* the others are there */
        CHECK_EQ(wait_resident(map + 2 * page_bytes(), 1), 1);
        if (nodedb_prefetch_can_wait(p)) {
            CHECK_EQ(ftruncate(fd, (off_t)(30 * page_bytes())), 0);
            r[0] = range_of(map + 31 * page_bytes(), 1); /* touching it would raise SIGBUS */
            CHECK_EQ(nodedb_prefetch_begin(p, r, 1, 2, NULL), NODEDB_OK);
            t = wait_ticket(p);
            CHECK_EQ(t.status, NODEDB_ERR_IO);
            CHECK(t.failed_at == map + 31 * page_bytes() && t.tag == 2);
            CHECK_EQ(ftruncate(fd, (off_t)(PAGES * page_bytes())), 0);
        }
        nodedb_prefetch_destroy(p);
        munmap(map, PAGES * page_bytes());
    }
    close(fd);
}

#ifdef NODEDB_PREFETCH__URING
enum { CUT_RANGES = 16, CUT_PAGES = 16 * CUT_RANGES };

/* Begins a ticket of 16 scattered pages whose submission is cut before entry `cut`: 16 advice steps, 16 populate steps,
 * a write. */
static void begin_cut(nodedb_prefetch *p, const char *map, unsigned cut, uint64_t tag) {
    nodedb_prefetch_range r[CUT_RANGES];
    for (int i = 0; i < CUT_RANGES; i++) r[i] = range_of(map + (size_t)i * 16 * page_bytes(), 1);
    cut_at = cut;
    CHECK_EQ(nodedb_prefetch_begin(p, r, CUT_RANGES, tag, NULL), NODEDB_OK);
    CHECK_EQ(cut_at, 0);
}

TEST(ticket_whose_submission_was_cut_wakes_up_its_owner_when_all_of_it_is_there) {
    static const unsigned cuts[] = {1, 16, 20, 31, 32};
    int fd = make_file("data", CUT_PAGES);
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    for (size_t c = 0; c < sizeof cuts / sizeof cuts[0] && nodedb_prefetch_can_wait(p); c++) {
        nodedb_prefetch_ticket t;
        struct rusage before, after;
        char *map;
        (void)map_cold(fd, CUT_PAGES, &map);
        begin_cut(p, map, cuts[c], c);
        t = wait_ticket(p); /* fails if the descriptor stays silent */
        CHECK(t.tag == c && t.status == NODEDB_OK && t.resident);
        getrusage(RUSAGE_THREAD, &before);
        (void)touch(map, 0, CUT_PAGES, 16);
        getrusage(RUSAGE_THREAD, &after);
        CHECK_EQ(after.ru_majflt - before.ru_majflt, 0);
        CHECK(after.ru_minflt - before.ru_minflt < 8);
        munmap(map, CUT_PAGES * page_bytes());
    }
    CHECK_EQ(stats_of(p).failures, 0);
    CHECK(nothing_is_left(p));
    nodedb_prefetch_destroy(p);
    close(fd);
}

TEST(failure_in_a_submission_that_was_cut_belongs_to_its_own_ticket) {
    int fd = make_file("data", CUT_PAGES);
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    char *map;
    (void)map_cold(fd, CUT_PAGES, &map);
    if (nodedb_prefetch_can_wait(p)) {
        nodedb_prefetch_range r = range_of(map + 5 * page_bytes(), 1);
        nodedb_prefetch_ticket t;
        bool seen[2] = {false, false};
        CHECK_EQ(mprotect(map + 48 * page_bytes(), page_bytes(), PROT_NONE), 0); /* the fourth run: before the cut */
        begin_cut(p, map, 24, 0);
        CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 1, NULL), NODEDB_OK);
        for (int i = 0; i < 2; i++) {
            t = wait_ticket(p);
            REQUIRE(t.tag < 2 && !seen[t.tag]);
            seen[t.tag] = true;
            if (t.tag == 0) CHECK(t.status == NODEDB_ERR_UNSUPPORTED && t.failed_at == map + 48 * page_bytes());
            else CHECK(t.status == NODEDB_OK && t.failed_at == NULL);
        }
        CHECK_EQ(stats_of(p).failures, 1);
    }
    nodedb_prefetch_destroy(p);
    munmap(map, CUT_PAGES * page_bytes());
    close(fd);
}

TEST(ticket_that_waits_tells_want_of_memory_from_memory_that_is_not_mapped) {
    enum { PAGES = 64 };
    int fd = make_file("data", PAGES);
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    char *map;
    if (map_cold(fd, PAGES, &map) && nodedb_prefetch_can_wait(p)) {
        nodedb_prefetch_range r = range_of(map + 3 * page_bytes(), 1);
        nodedb_prefetch_ticket t;
        no_memory_at = r.start; /* the next page is mapped, but not in memory: the kernel seems to stop there */
        CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 1, NULL), NODEDB_OK);
        t = wait_ticket(p);
        no_memory_at = NULL;
        CHECK(t.status == NODEDB_ERR_NO_MEMORY && t.sys_errno == ENOMEM && t.failed_at == r.start);
        CHECK_EQ(munmap(map + 40 * page_bytes(), page_bytes()), 0);
        r = range_of(map + 30 * page_bytes(), 20 * page_bytes()); /* has the hole inside */
        CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 2, NULL), NODEDB_OK);
        t = wait_ticket(p);
        CHECK(t.status == NODEDB_ERR_INVALID && t.sys_errno == ENOMEM && t.failed_at == r.start);
    }
    nodedb_prefetch_destroy(p);
    munmap(map, PAGES * page_bytes());
    close(fd);
}

TEST(ring_that_breaks_is_given_up_and_no_ticket_is_lost) {
    enum { PAGES = 64 };
    int fd = make_file("data", PAGES), null = open("/dev/null", O_RDONLY);
    nodedb_prefetch_config c;
    nodedb_prefetch_range r;
    nodedb_prefetch *p;
    sentences told;
    char *map;
    (void)map_cold(fd, PAGES, &map);
    memset(&told, 0, sizeof told);
    memset(&c, 0, sizeof c);
    c.method = NODEDB_PREFETCH_IO_URING, c.logger.write = keep_sentence, c.logger.ctx = &told;
    p = nodedb_prefetch_create(&c, NULL);
    REQUIRE(p != NULL);
    if (nodedb_prefetch_can_wait(p)) {
        r = range_of(map + 3 * page_bytes(), 1);
        told.n = 0;
        CHECK(dup2(null, p->ring.ring_fd) >= 0); /* io_uring_enter fails from now on */
        CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 1, NULL), NODEDB_OK);
        CHECK_EQ(wait_ticket(p).status, NODEDB_ERR_IO);
        CHECK(!nodedb_prefetch_can_wait(p) && nodedb_prefetch_method_in_use(p) != NODEDB_PREFETCH_IO_URING);
        CHECK_EQ(told.n, 1);
        CHECK_HAS(told.all, "given up");
        CHECK_EQ(nodedb_prefetch_begin(p, &r, 1, 2, NULL), NODEDB_OK);
        CHECK_EQ(wait_ticket(p).status, NODEDB_OK);
        CHECK_EQ(nodedb_prefetch_batch(p, &r, 1, NULL), NODEDB_OK);
        CHECK_EQ(wait_resident(map + 3 * page_bytes(), 1), 1);
    }
    nodedb_prefetch_destroy(p);
    munmap(map, PAGES * page_bytes());
    close(fd), close(null);
}
#endif

typedef struct beginner {
    nodedb_prefetch *p;
    const char *map;
} beginner;

static void *begin_in_thread(void *arg) {
    const beginner *b = (const beginner *)arg;
    for (size_t tag = 0; tag < 4; tag++) {
        nodedb_prefetch_range r[64];
        for (size_t i = 0; i < 64; i++) r[i] = range_of(b->map + (i * 4 + tag) * 4 * page_bytes(), 1);
        CHECK_EQ(nodedb_prefetch_begin(b->p, r, 64, tag, NULL), NODEDB_OK);
    }
    return NULL;
}

/* The end of the thread waits for its reads. The descriptor may stay silent, so the first reap does not wait for it. */
TEST(tickets_outlive_the_thread_that_began_them) {
    enum { PAGES = 1024 };
    int fd = make_file("data", PAGES);
    for (int m = 0; m < METHODS; m++) {
        nodedb_prefetch_ticket t[4];
        pthread_t thread;
        char *map;
        beginner b;
        (void)map_cold(fd, PAGES, &map);
        b.p = make(methods[m]), b.map = map;
        CHECK_EQ(pthread_create(&thread, NULL, begin_in_thread, &b), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK_EQ(nodedb_prefetch_reap(b.p, t, 4), 4);
        for (int i = 0; i < 4; i++) CHECK_EQ(t[i].status, NODEDB_OK);
        nodedb_prefetch_destroy(b.p);
        munmap(map, PAGES * page_bytes());
    }
    close(fd);
}

TEST(object_may_be_destroyed_while_tickets_are_under_way) {
    enum { PAGES = 1024 };
    int fd = make_file("data", PAGES), i;
    nodedb_prefetch *p = make(NODEDB_PREFETCH_IO_URING);
    nodedb_prefetch_range r[64];
    char *map;
    (void)map_cold(fd, PAGES, &map);
    for (i = 0; i < 64; i++) r[i] = range_of(map + (size_t)i * 16 * page_bytes(), 1);
    CHECK_EQ(nodedb_prefetch_begin(p, r, 64, 1, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_prefetch_batch(p, r, 64, NULL), NODEDB_OK);
    nodedb_prefetch_destroy(p);
    munmap(map, PAGES * page_bytes());
    close(fd);
}

/* ===================================================================================================================
 * RELEASE: no neighbour's bytes, private and shared memory, unmapped memory, a lost descriptor
 * ================================================================================================================ */

static char *make_private(size_t pages) {
    char *memory = (char *)mmap(NULL, pages * page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 'x', pages * page_bytes());
    return memory;
}

TEST(release_of_odd_addresses_never_touches_a_neighbours_bytes) {
    enum { PAGES = 16 };
    uint64_t random = test_seed;
    int round;
    for (round = 0; round < 200; round++) {
        nodedb_prefetch *p = make(round % 2 ? NODEDB_PREFETCH_AUTO : NODEDB_PREFETCH_MADVISE);
        char *memory = make_private(PAGES);
        size_t from = test_random(&random) % (PAGES * page_bytes()), i;
        size_t bytes = test_random(&random) % (PAGES * page_bytes() - from);
        size_t first = (from + page_bytes() - 1) / page_bytes() * page_bytes();
        size_t end = (from + bytes) / page_bytes() * page_bytes();
        size_t wrong = 0;
        CHECK_EQ(nodedb_prefetch_release(p, memory + from, bytes, NODEDB_PREFETCH_DROP_PRIVATE, NULL), NODEDB_OK);
        for (i = 0; i < PAGES * page_bytes(); i++) wrong += memory[i] != (i >= first && i < end ? 0 : 'x');
        CHECK_EQ(wrong, 0);
        CHECK_EQ(stats_of(p).pages_released, end > first ? (end - first) / page_bytes() : 0);
        CHECK_EQ(stats_of(p).pages_advised, 0);
        nodedb_prefetch_destroy(p);
        munmap(memory, PAGES * page_bytes());
    }
}

TEST(drop_of_private_memory_is_refused_unless_told) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    int fd = make_file("data", 8);
    char *memory = make_private(8);
    char *file = (char *)mmap(NULL, 8 * page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *shared = (char *)mmap(NULL, 8 * page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    nodedb_prefetch_range r[3];
    nodedb_error err;
    REQUIRE(file != (char *)MAP_FAILED && shared != (char *)MAP_FAILED);
    CHECK_EQ(nodedb_prefetch_release(p, memory, 8 * page_bytes(), NODEDB_PREFETCH_DROP, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "private");
    CHECK_EQ(memory[5 * page_bytes()], 'x');
    file[2 * page_bytes()] = 'y';
    CHECK_EQ(nodedb_prefetch_release(p, file + page_bytes(), 3 * page_bytes(), NODEDB_PREFETCH_DROP, &err),
             NODEDB_ERR_INVALID);
    CHECK_EQ(file[2 * page_bytes()], 'y');
    /* of `memory` no whole page */
    r[0] = range_of(shared, 8 * page_bytes()), r[1] = range_of(memory + 1, page_bytes());
    CHECK_EQ(nodedb_prefetch_release_batch(p, r, 2, NODEDB_PREFETCH_DROP, &err), NODEDB_OK);
    r[1] = range_of(memory, page_bytes());
    CHECK_EQ(nodedb_prefetch_release_batch(p, r, 2, NODEDB_PREFETCH_DROP, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(memory[0], 'x');
    CHECK_EQ(stats_of(p).pages_released, 8);
    CHECK_EQ(nodedb_prefetch_release(p, memory, page_bytes(), NODEDB_PREFETCH_DROP_PRIVATE, &err), NODEDB_OK);
    CHECK_EQ(memory[0], 0);
    CHECK_EQ(memory[page_bytes()], 'x');
    munmap(memory, 8 * page_bytes()), munmap(file, 8 * page_bytes()), munmap(shared, 8 * page_bytes());
    nodedb_prefetch_destroy(p);
    close(fd);
}

TEST(drop_of_shared_memory_keeps_every_byte) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    int fd = make_file("data", 8), i;
    char *file = (char *)mmap(NULL, 8 * page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *anonymous = (char *)mmap(NULL, 8 * page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(file != (char *)MAP_FAILED && anonymous != (char *)MAP_FAILED);
    memset(anonymous, 'a', 8 * page_bytes());
    memset(file, 'f', 8 * page_bytes()); /* dirty */
    CHECK_EQ(nodedb_prefetch_release(p, file, 8 * page_bytes(), NODEDB_PREFETCH_DROP, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_prefetch_release(p, anonymous, 8 * page_bytes(), NODEDB_PREFETCH_DROP, NULL), NODEDB_OK);
    for (i = 0; i < 8; i++) CHECK(file[(size_t)i * page_bytes()] == 'f' &&
                                  anonymous[(size_t)i * page_bytes() + 9] == 'a');
    CHECK_EQ(stats_of(p).failures, 0);
    munmap(file, 8 * page_bytes()), munmap(anonymous, 8 * page_bytes());
    nodedb_prefetch_destroy(p);
    close(fd);
}

TEST(names_in_proc_maps_do_not_confuse_the_check_of_drop) {
    static const char *names[] = {"with spaces r--s ff-fff rw-s 0", "new\nline 0-ffffffffffff rw-s 00 00:00 0",
                                  "7f-7f r--s"};
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    size_t i;
    for (i = 0; i < 3; i++) {
        int fd = make_file(names[i], 4);
        char *secret = (char *)mmap(NULL, 4 * page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        char *shared = (char *)mmap(NULL, 4 * page_bytes(), PROT_READ, MAP_SHARED, fd, 0);
        REQUIRE(secret != (char *)MAP_FAILED && shared != (char *)MAP_FAILED);
        secret[0] = 'y';
        CHECK_EQ(nodedb_prefetch_release(p, secret, 4 * page_bytes(), NODEDB_PREFETCH_DROP, NULL), NODEDB_ERR_INVALID);
        CHECK_EQ(secret[0], 'y');
        CHECK_EQ(nodedb_prefetch_release(p, shared, 4 * page_bytes(), NODEDB_PREFETCH_DROP, NULL), NODEDB_OK);
        munmap(secret, 4 * page_bytes()), munmap(shared, 4 * page_bytes());
        close(fd);
    }
    nodedb_prefetch_destroy(p);
}

TEST(cold_and_page_out_lose_nothing) {
    static const nodedb_prefetch_release_how hows[] = {NODEDB_PREFETCH_COLD, NODEDB_PREFETCH_PAGE_OUT};
    int fd = make_file("data", 8), m, h, i;
    for (m = 0; m < METHODS; m++)
        for (h = 0; h < 2; h++) {
            nodedb_prefetch *p = make(methods[m]);
            char *memory = make_private(8), *map = (char *)mmap(NULL, 8 * page_bytes(), PROT_READ, MAP_SHARED, fd, 0);
            nodedb_prefetch_range r[2];
            nodedb_status status;
            r[0] = range_of(memory, 8 * page_bytes()), r[1] = range_of(map, 8 * page_bytes());
            status = nodedb_prefetch_release_batch(p, r, 2, hows[h], NULL);
            CHECK(status == NODEDB_OK || status == NODEDB_ERR_UNSUPPORTED); /* before Linux 5.4 */
            for (i = 0; i < 8; i++) CHECK(memory[(size_t)i * page_bytes()] == 'x' &&
                                          map[(size_t)i * page_bytes()] == i + 1);
            munmap(memory, 8 * page_bytes()), munmap(map, 8 * page_bytes());
            nodedb_prefetch_destroy(p);
        }
    close(fd);
}

TEST(release_of_unmapped_memory_is_an_error_that_names_its_address) {
    nodedb_prefetch *p = make(NODEDB_PREFETCH_AUTO);
    char *memory = make_private(8), address[40];
    nodedb_error err;
    munmap(memory + 3 * page_bytes(), page_bytes());
    snprintf(address, sizeof address, "0x%llx", (unsigned long long)(uintptr_t)(memory + 3 * page_bytes()));
    CHECK_EQ(nodedb_prefetch_release(p, memory, 8 * page_bytes(), NODEDB_PREFETCH_COLD, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, address);
    munmap(memory, 8 * page_bytes());
    nodedb_prefetch_destroy(p);
}

TEST(pages_that_the_kernel_refused_are_not_counted_as_released) {
    for (int m = 0; m < METHODS; m++) {
        nodedb_prefetch *p = make(methods[m]);
        char *memory = make_private(8);
        nodedb_prefetch_range r[2];
        CHECK_EQ(munmap(memory + 4 * page_bytes(), page_bytes()), 0);
        r[0] = range_of(memory, 3 * page_bytes()), r[1] = range_of(memory + 4 * page_bytes(), page_bytes());
        CHECK_EQ(nodedb_prefetch_release_batch(p, r, 2, NODEDB_PREFETCH_DROP_PRIVATE, NULL), NODEDB_ERR_INVALID);
        CHECK_EQ(stats_of(p).pages_released, 3);
        CHECK_EQ(stats_of(p).failures, 1);
        nodedb_prefetch_destroy(p);
        munmap(memory, 8 * page_bytes());
    }
}

/* Its number now belongs to another file of the program. */
TEST(lost_descriptor_of_process_madvise_changes_no_result_and_is_said_once) {
    nodedb_prefetch_config c;
    nodedb_prefetch *p;
    sentences told;
    char *memory = make_private(8);
    int null = open("/dev/null", O_RDONLY);
    memset(&told, 0, sizeof told);
    memset(&c, 0, sizeof c);
    c.method = NODEDB_PREFETCH_PROCESS_MADVISE, c.logger.write = keep_sentence, c.logger.ctx = &told;
    p = nodedb_prefetch_create(&c, NULL);
    REQUIRE(p != NULL);
    if (nodedb_prefetch_method_in_use(p) == NODEDB_PREFETCH_PROCESS_MADVISE) {
        if (p->pidfd >= 0) close(p->pidfd);
        p->pidfd = null, told.n = 0;
        CHECK_EQ(nodedb_prefetch_release(p, memory, page_bytes(), NODEDB_PREFETCH_DROP_PRIVATE, NULL), NODEDB_OK);
        CHECK_EQ(memory[0], 0);
        CHECK_EQ(nodedb_prefetch_release(p, memory, 8 * page_bytes(), NODEDB_PREFETCH_DROP_PRIVATE, NULL), NODEDB_OK);
        CHECK_EQ(memory[7 * page_bytes()], 0);
        CHECK_EQ(nodedb_prefetch_method_in_use(p), NODEDB_PREFETCH_MADVISE);
        CHECK_EQ(told.n, 1);
        CHECK_EQ(stats_of(p).failures, 0);
        CHECK_EQ(stats_of(p).pages_released, 9);
    }
    nodedb_prefetch_destroy(p);
    CHECK(fcntl(null, F_GETFD) >= 0); /* destroying closed nobody else's file */
    munmap(memory, 8 * page_bytes());
    close(null);
}

/* ===================================================================================================================
 * FAULTS: one thread's own, degraded threads, the adaptive depth
 * ================================================================================================================ */

static uint64_t virtual_ns;
static uint64_t virtual_now(void *ctx) {
    (void)ctx;
    return virtual_ns;
}

typedef struct toucher {
    char *map;
    size_t from, to;
    uint64_t major;
    nodedb_status of_other;           /* what a tick of somebody else's counters answers */
    nodedb_status of_other_early;     /* the same, before the end of their interval */
    nodedb_prefetch_faults *other;
} toucher;

static nodedb_prefetch_faults_config virtual_config(void) {
    nodedb_prefetch_faults_config c;
    memset(&c, 0, sizeof c);
    c.clock.now_ns = virtual_now;
    return c;
}

static void *touch_in_thread(void *arg) {
    toucher *t = (toucher *)arg;
    nodedb_prefetch_faults_config c = virtual_config();
    nodedb_prefetch_faults f;
    c.interval_ns = 1; /* the clock stands still here: only the last tick is late enough */
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    (void)touch(t->map, t->from, t->to, 1);
    f.begun_ns = 0;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    t->major = f.interval_major;
    t->of_other = nodedb_prefetch_faults_tick(t->other, false, NULL);
    virtual_ns -= NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
    t->of_other_early = nodedb_prefetch_faults_tick(t->other, false, NULL);
    virtual_ns += NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
    return NULL;
}

TEST(faults_of_another_thread_are_not_counted_as_ones_own) {
    enum { PAGES = 300 };
    nodedb_prefetch_faults_config c = virtual_config();
    nodedb_prefetch_faults f;
    int fd = make_file("data", PAGES);
    pthread_t thread;
    toucher t;
    bool cold;
    memset(&t, 0, sizeof t);
    cold = map_cold(fd, PAGES, &t.map);
    t.from = 0, t.to = 200, t.other = &f;
    virtual_ns = 5000;
    (void)prctl(PR_SET_NAME, "a b) R 7 (c", 0, 0, 0); /* a name that breaks parsers of /proc/self/stat */
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    virtual_ns += NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
    CHECK_EQ(pthread_create(&thread, NULL, touch_in_thread, &t), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(t.of_other, NODEDB_ERR_STATE);
    CHECK_EQ(t.of_other_early, NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK_EQ(f.intervals, 1);
    CHECK(f.interval_major < 20);
    CHECK(!f.degraded);
    if (cold) CHECK(t.major >= 190);
    if (cold) {
        (void)touch(t.map, 200, 300, 1);
        virtual_ns += NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
        CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
        CHECK(f.interval_major >= 90 && f.interval_major < 150);
    }
    munmap(t.map, PAGES * page_bytes());
    close(fd);
}

static void *start_in_thread(void *arg) {
    nodedb_prefetch_faults_config c = virtual_config();
    CHECK_EQ(nodedb_prefetch_faults_start((nodedb_prefetch_faults *)arg, &c, NULL), NODEDB_OK);
    return NULL;
}

static void *tick_in_thread(void *arg) {
    CHECK_EQ(nodedb_prefetch_faults_tick((nodedb_prefetch_faults *)arg, false, NULL), NODEDB_ERR_STATE);
    return NULL;
}

/* The second thread takes the place of the first one, with its stack and its pthread_self. */
TEST(thread_that_begins_after_the_owner_has_ended_is_not_the_owner) {
    nodedb_prefetch_faults f;
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, start_in_thread, &f), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    virtual_ns += NODEDB_PREFETCH_DEFAULT_INTERVAL_NS;
    CHECK_EQ(pthread_create(&thread, NULL, tick_in_thread, &f), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(f.intervals, 0);
}

TEST(thread_is_degraded_above_the_threshold_and_recovers_below_it) {
    enum { PAGES = 400 };
    nodedb_prefetch_faults_config c = virtual_config();
    nodedb_prefetch_faults f;
    int fd = make_file("data", PAGES);
    sentences told;
    char *map;
    if (!map_cold(fd, PAGES, &map)) return;
    memset(&told, 0, sizeof told);
    c.interval_ns = 1000, c.major_faults_max = 50, c.logger.write = keep_sentence, c.logger.ctx = &told;
    virtual_ns = 77;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    (void)touch(map, 0, 100, 1);
    virtual_ns += 999;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK_EQ(f.intervals, 0); /* not yet */
    virtual_ns += 1;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK_EQ(f.intervals, 1);
    CHECK(f.degraded && f.interval_major >= 100 && f.miss_rate > 0.5 && f.miss_rate <= 1);
    CHECK(f.major_per_second > 90e6);
    CHECK_EQ(told.n, 1);
    CHECK_HAS(told.all, "degraded");
    virtual_ns += 1000;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK(!f.degraded && f.interval_major < 20);
    CHECK_EQ(told.n, 2);
    (void)touch(map, 200, 300, 1); /* twice the limit, but over ten intervals: the tick was late */
    virtual_ns += 10000;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK(!f.degraded && f.interval_major >= 100 && f.interval_elapsed_ns == 10000);
    CHECK(f.total_major >= 200 && f.intervals == 3);
    munmap(map, PAGES * page_bytes());
    close(fd);
}

TEST(depth_grows_while_misses_are_many_and_shrinks_while_memory_is_short) {
    enum { PAGES = 400 };
    nodedb_prefetch_faults_config c = virtual_config();
    nodedb_prefetch_faults f;
    nodedb_error err;
    int fd = make_file("data", PAGES);
    size_t at = 0;
    char *map;
    c.depth_min = 3, c.depth_max = 2;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "depth_min");
    if (!map_cold(fd, PAGES, &map)) return;
    c.depth_max = 10, c.interval_ns = 10;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    CHECK_EQ(f.depth, 3);
    for (; at < 120; at += 40) {
        static const unsigned want[] = {6, 10, 10};
        (void)touch(map, at, at + 40, 1);
        virtual_ns += 10;
        CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
        CHECK_EQ(f.depth, want[at / 40]);
    }
    virtual_ns += 10;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK_EQ(f.depth, 10); /* few misses: as it is */
    (void)touch(map, 200, 240, 1);
    virtual_ns += 10;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, true, NULL), NODEDB_OK);
    CHECK_EQ(f.depth, 5);
    virtual_ns += 10;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, true, NULL), NODEDB_OK);
    CHECK_EQ(f.depth, 3);
    munmap(map, PAGES * page_bytes());
    close(fd);
}

TEST(memory_that_was_short_at_any_tick_of_an_interval_lowers_the_depth_at_its_end) {
    nodedb_prefetch_faults_config c = virtual_config();
    nodedb_prefetch_faults f;
    c.interval_ns = 10;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    f.depth = 64;
    virtual_ns += 5;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, true, NULL), NODEDB_OK);
    CHECK_EQ(f.depth, 64); /* not yet */
    virtual_ns += 5;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK_EQ(f.depth, 32);
    virtual_ns += 10;
    CHECK_EQ(nodedb_prefetch_faults_tick(&f, false, NULL), NODEDB_OK);
    CHECK(f.depth >= 32); /* the next interval begins without it */
}

TEST(one_bound_of_the_depth_alone_moves_the_default_of_the_other) {
    nodedb_prefetch_faults_config c = virtual_config();
    nodedb_prefetch_faults f;
    c.depth_max = 2;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    CHECK(f.config.depth_min == 2 && f.config.depth_max == 2 && f.depth == 2);
    c.depth_max = 0, c.depth_min = 1000;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    CHECK(f.config.depth_min == 1000 && f.config.depth_max == 1000 && f.depth == 1000);
    c.depth_min = 0;
    CHECK_EQ(nodedb_prefetch_faults_start(&f, &c, NULL), NODEDB_OK);
    CHECK(f.config.depth_min == NODEDB_PREFETCH_DEFAULT_DEPTH_MIN &&
          f.config.depth_max == NODEDB_PREFETCH_DEFAULT_DEPTH_MAX);
}

TEST_MAIN("prefetch")
