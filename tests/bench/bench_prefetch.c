/* Cold random pages of a mapped file, in batches of 64: asked for, then touched. In the same rounds run the limit
 * (O_DIRECT reads by io_uring, 64 in flight) and faults without prefetching, twice: under MADV_RANDOM, where a fault
 * reads its page alone, and under the kernel's default, where it reads the pages around as well. The default hits the
 * pages that it has read around, so its result depends on the size of the file and of the memory.
 *     bench_prefetch [--quick] [--mib FILE_SIZE] [--file PATH]
 * The file (default build/tmp/bench_prefetch.data) is made, evicted before every case, and removed at the end. Metrics:
 *     pages_per_s      median of the rounds
 *     of_limit         the rate divided by that of the limit in the same round; median
 *     over_random      the rate divided by that of faults/random in the same round; median
 *     over_readaround  the same with faults/readaround
 *     own_cpu          CPU time of the calling thread alone, not of the kernel's workers */
#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
#include "bench.h"
#include <poll.h>
#include <sys/stat.h>

enum { BATCH = 64, AHEAD = 4, ROUNDS_MAX = 9 };
enum { LIMIT, FAULTS_RANDOM, FAULTS_READAROUND, CASES = 8 }; /* the cases that others are compared with come first */

static size_t page, file_pages, round_pages;
static const char *path;
static int fd;
static char *map;
static uint32_t *order; /* a permutation of the file's pages: each is touched once per case, so each is cold */
static unsigned long long checksum;

static void die(const char *what) {
    fprintf(stderr, "bench_prefetch: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void make_file(void) {
    size_t chunk = 1 << 20, at;
    char *bytes = (char *)malloc(chunk);
    (void)mkdir("build", 0777);
    (void)mkdir("build/tmp", 0777);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) die(path);
    for (at = 0; at < file_pages * page; at += chunk) {
        memset(bytes, (int)(at / chunk), chunk);
        if (write(fd, bytes, chunk) != (ssize_t)chunk) die(path);
    }
    free(bytes);
    if (fsync(fd) != 0) die(path);
}

/* Nothing of the file in memory or in the page table, and another order of pages. */
static void make_cold(uint64_t seed) {
    if (map != NULL) munmap(map, file_pages * page);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    map = (char *)mmap(NULL, file_pages * page, PROT_READ, MAP_SHARED, fd, 0);
    if (map == (char *)MAP_FAILED) die("mmap");
    madvise(map, file_pages * page, MADV_RANDOM);
    for (size_t i = 0; i < file_pages; i++) order[i] = (uint32_t)i;
    for (size_t i = 0; i < round_pages; i++) {
        size_t other = i + nodedb_mix64(seed * 1000003 + i) % (file_pages - i);
        uint32_t swap = order[i];
        order[i] = order[other], order[other] = swap;
    }
}

static void fill(nodedb_prefetch_range *r, size_t at) {
    for (size_t i = 0; i < BATCH; i++) r[i].start = map + order[at + i] * page + 100, r[i].bytes = 64;
}

static void touch(size_t at) {
    for (size_t i = 0; i < BATCH; i++) checksum += (unsigned char)map[order[at + i] * page + 100];
}

/* ---- the cases: each reads round_pages pages, and answers false where this system cannot run it ------------------ */

static bool run_direct(nodedb_prefetch_method method) {
    bool done = false;
    (void)method;
#ifdef NODEDB_PREFETCH__URING
    {
        struct io_uring ring;
        char *buffers = NULL;
        size_t next = 0, back = 0;
        int direct = open(path, O_RDONLY | O_DIRECT);
        if (direct < 0) return false;
        if (io_uring_queue_init(BATCH, &ring, 0) == 0 && posix_memalign((void **)&buffers, page, BATCH * page) == 0) {
            while (back < round_pages) {
                struct io_uring_cqe *cqe;
                for (; next < round_pages && next - back < BATCH; next++) {
                    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
                    io_uring_prep_read(sqe, direct, buffers + next % BATCH * page, (unsigned)page,
                                       (uint64_t)order[next] * page);
                }
                io_uring_submit_and_wait(&ring, 1);
                while (io_uring_peek_cqe(&ring, &cqe) == 0) {
                    if (cqe->res != (int)page) die("direct read");
                    io_uring_cqe_seen(&ring, cqe);
                    back++;
                }
            }
            io_uring_queue_exit(&ring);
            done = true;
        }
        free(buffers);
        close(direct);
    }
#endif
    return done;
}

static bool run_faults(nodedb_prefetch_method method) {
    (void)method;
    for (size_t at = 0; at < round_pages; at += BATCH) touch(at);
    return true;
}

static bool run_readaround(nodedb_prefetch_method method) {
    madvise(map, file_pages * page, MADV_NORMAL);
    return run_faults(method);
}

/* One batch after the other: ask, then touch. */
static bool run_batches(nodedb_prefetch_method method) {
    nodedb_prefetch_config config;
    nodedb_prefetch_range r[BATCH];
    nodedb_prefetch *p;
    bool ours;
    memset(&config, 0, sizeof config);
    config.method = method;
    p = nodedb_prefetch_create(&config, NULL);
    ours = p != NULL && nodedb_prefetch_method_in_use(p) == method;
    for (size_t at = 0; ours && at < round_pages; at += BATCH) {
        fill(r, at);
        if (nodedb_prefetch_batch(p, r, BATCH, NULL) != NODEDB_OK) die("batch");
        touch(at);
    }
    nodedb_prefetch_destroy(p);
    return ours;
}

/* Tickets, `ahead` batches under way; a batch is touched when its ticket is back. */
static bool run_tickets(size_t ahead) {
    nodedb_prefetch_config config;
    nodedb_prefetch_range r[BATCH];
    nodedb_prefetch_ticket t[AHEAD];
    nodedb_prefetch *p;
    size_t begun = 0, touched = 0;
    struct pollfd f;
    memset(&config, 0, sizeof config);
    p = nodedb_prefetch_create(&config, NULL);
    if (p == NULL || !nodedb_prefetch_can_wait(p)) {
        nodedb_prefetch_destroy(p);
        return false;
    }
    f.fd = nodedb_prefetch_fd(p), f.events = POLLIN;
    while (touched < round_pages) {
        for (; begun < round_pages && begun - touched < ahead * BATCH; begun += BATCH) {
            fill(r, begun);
            if (nodedb_prefetch_begin(p, r, BATCH, begun, NULL) != NODEDB_OK) die("begin");
        }
        (void)poll(&f, 1, 10000);
        size_t n = nodedb_prefetch_reap(p, t, AHEAD);
        for (size_t i = 0; i < n; i++, touched += BATCH) {
            if (t[i].status != NODEDB_OK) die("ticket");
            touch((size_t)t[i].tag);
        }
    }
    nodedb_prefetch_destroy(p);
    return true;
}

static bool run_ticket(nodedb_prefetch_method method) {
    (void)method;
    return run_tickets(1);
}

static bool run_best(nodedb_prefetch_method method) {
    return run_tickets(AHEAD) || run_batches(NODEDB_PREFETCH_PROCESS_MADVISE) || run_batches(method);
}

static double cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_THREAD, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* The median of rate / other, round by round; of the rates themselves if `other` is NULL. */
static double median_of(const double *rate, const double *other, size_t rounds) {
    double value[ROUNDS_MAX]; /* a copy, because bench_median sorts */
    for (size_t i = 0; i < rounds; i++) value[i] = other != NULL ? rate[i] / other[i] : rate[i];
    return bench_median(value, rounds);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        bool (*run)(nodedb_prefetch_method method);
        nodedb_prefetch_method method;
    } cases[CASES] = {
        {"limit/io_uring-direct", run_direct, NODEDB_PREFETCH_AUTO},
        {"faults/random", run_faults, NODEDB_PREFETCH_AUTO},
        {"faults/readaround", run_readaround, NODEDB_PREFETCH_AUTO},
        {"ours/madvise", run_batches, NODEDB_PREFETCH_MADVISE},
        {"ours/process_madvise", run_batches, NODEDB_PREFETCH_PROCESS_MADVISE},
        {"ours/io_uring", run_batches, NODEDB_PREFETCH_IO_URING},
        {"ours/ticket", run_ticket, NODEDB_PREFETCH_AUTO}, /* one ticket under way */
        {"ours/best", run_best, NODEDB_PREFETCH_MADVISE},  /* four; without io_uring, batches */
    };
    static double rate[CASES][ROUNDS_MAX], cpu[CASES][ROUNDS_MAX];
    bool quick = bench_flag(argc, argv, "--quick"), works[CASES];
    size_t rounds = quick ? 3 : 5, mib = strtoull(bench_option(argc, argv, "--mib", quick ? "256" : "1024"), NULL, 0);
    bench_name = "prefetch";
    path = bench_option(argc, argv, "--file", "build/tmp/bench_prefetch.data");
    page = (size_t)sysconf(_SC_PAGESIZE);
    if (mib < 16) mib = 16;
    file_pages = (mib << 20) / page;
    round_pages = file_pages / 8 < 16384 ? file_pages / 8 : 16384;
    round_pages -= round_pages % BATCH;
    order = (uint32_t *)malloc(file_pages * sizeof *order);
    make_file();
    for (size_t i = 0; i < rounds; i++)
        for (size_t k = 0; k < CASES; k++) {
            make_cold(i * CASES + k + 1);
            uint64_t start = bench_now_ns();
            double cpu_start = cpu_us();
            works[k] = cases[k].run(cases[k].method);
            rate[k][i] = (double)round_pages * 1e9 / (double)(bench_now_ns() - start);
            cpu[k][i] = (cpu_us() - cpu_start) / (double)round_pages;
        }
    for (size_t k = 0; k < CASES; k++) {
        if (!works[k]) {
            fprintf(stderr, "bench_prefetch: %s is unavailable here\n", cases[k].name);
            continue;
        }
        bench_row(cases[k].name, "pages_per_s", median_of(rate[k], NULL, rounds), "pages/s");
        if (works[LIMIT]) bench_row(cases[k].name, "of_limit", median_of(rate[k], rate[LIMIT], rounds), "ratio");
        if (k > FAULTS_READAROUND) {
            bench_row(cases[k].name, "over_random", median_of(rate[k], rate[FAULTS_RANDOM], rounds), "ratio");
            bench_row(cases[k].name, "over_readaround", median_of(rate[k], rate[FAULTS_READAROUND], rounds), "ratio");
        }
        bench_row(cases[k].name, "own_cpu", median_of(cpu[k], NULL, rounds), "us/page");
    }
    fprintf(stderr, "bench_prefetch: %zu MiB, %zu rounds of %zu pages of %zu bytes, checksum %llu\n", mib, rounds,
            round_pages, page, checksum);
    unlink(path);
    return 0;
}
