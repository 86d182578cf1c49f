/* Cold random pages of a mapped file, in batches of 64: asked for, then touched. Beside it the limit (O_DIRECT reads by
 * io_uring, 64 in flight) and plain faults, in the same rounds.
 *     bench_prefetch [--quick] [--mib FILE_SIZE] [--file PATH]    the file (default build/tmp/bench_prefetch.data) is
 *     made, evicted before every case (posix_fadvise), and removed at the end */
#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
#include "bench.h"
#include <poll.h>
#include <sys/stat.h>

enum { BATCH = 64, AHEAD = 4, ROUNDS_MAX = 9, CASES = 7 };

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
    size_t i;
    if (map != NULL) munmap(map, file_pages * page);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    map = (char *)mmap(NULL, file_pages * page, PROT_READ, MAP_SHARED, fd, 0);
    if (map == (char *)MAP_FAILED) die("mmap");
    madvise(map, file_pages * page, MADV_RANDOM);
    for (i = 0; i < file_pages; i++) order[i] = (uint32_t)i;
    for (i = 0; i < round_pages; i++) {
        size_t other = i + nodedb_mix64(seed * 1000003 + i) % (file_pages - i);
        uint32_t swap = order[i];
        order[i] = order[other], order[other] = swap;
    }
}

static void fill(nodedb_prefetch_range *r, size_t at) {
    size_t i;
    for (i = 0; i < BATCH; i++) r[i].start = map + order[at + i] * page + 100, r[i].bytes = 64;
}

static void touch(size_t at) {
    size_t i;
    for (i = 0; i < BATCH; i++) checksum += (unsigned char)map[order[at + i] * page + 100];
}

/* ---- the cases: each reads round_pages pages --------------------------------------------------------------------- */


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

static bool run_plain(nodedb_prefetch_method method) {
    size_t at;
    (void)method;
    for (at = 0; at < round_pages; at += BATCH) touch(at);
    return true;
}

/* One batch after the other: ask, then touch. */
static bool run_batches(nodedb_prefetch_method method) {
    nodedb_prefetch_config config;
    nodedb_prefetch_range r[BATCH];
    nodedb_prefetch *p;
    size_t at;
    bool ours;
    memset(&config, 0, sizeof config);
    config.method = method;
    p = nodedb_prefetch_create(&config, NULL);
    ours = p != NULL && nodedb_prefetch_method_in_use(p) == method;
    for (at = 0; ours && at < round_pages; at += BATCH) {
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
    size_t begun = 0, touched = 0, n, i;
    struct pollfd f;
    memset(&config, 0, sizeof config);
    config.queue_depth = 1024;
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
        n = nodedb_prefetch_reap(p, t, AHEAD);
        for (i = 0; i < n; i++, touched += BATCH) {
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

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        bool (*run)(nodedb_prefetch_method method);
        nodedb_prefetch_method method;
    } cases[CASES] = {
        {"limit/io_uring-direct", run_direct, NODEDB_PREFETCH_AUTO},
        {"plain-faults", run_plain, NODEDB_PREFETCH_AUTO},
        {"ours/madvise", run_batches, NODEDB_PREFETCH_MADVISE},
        {"ours/process_madvise", run_batches, NODEDB_PREFETCH_PROCESS_MADVISE},
        {"ours/io_uring", run_batches, NODEDB_PREFETCH_IO_URING},
        {"ours/ticket", run_ticket, NODEDB_PREFETCH_AUTO},
        {"ours/best", run_best, NODEDB_PREFETCH_MADVISE}, /* tickets, 4 batches under way */
    };
    static double rate[CASES][ROUNDS_MAX], cpu[CASES][ROUNDS_MAX], ratio[CASES][ROUNDS_MAX];
    bool quick = bench_flag(argc, argv, "--quick"), works[CASES];
    size_t rounds = quick ? 3 : 5, mib = strtoull(bench_option(argc, argv, "--mib", quick ? "256" : "1024"), NULL,
                                                  0), i, k;
    bench_name = "prefetch";
    path = bench_option(argc, argv, "--file", "build/tmp/bench_prefetch.data");
    page = (size_t)sysconf(_SC_PAGESIZE);
    if (mib < 16) mib = 16;
    file_pages = (mib << 20) / page;
    round_pages = file_pages / 8 < 16384 ? file_pages / 8 : 16384;
    round_pages -= round_pages % BATCH;
    order = (uint32_t *)malloc(file_pages * sizeof *order);
    make_file();
    for (i = 0; i < rounds; i++)
        for (k = 0; k < CASES; k++) {
            uint64_t start;
            double cpu_start;
            make_cold(i * CASES + k + 1);
            start = bench_now_ns(), cpu_start = cpu_us();
            works[k] = cases[k].run(cases[k].method);
            rate[k][i] = (double)round_pages * 1e9 / (double)(bench_now_ns() - start);
            cpu[k][i] = (cpu_us() - cpu_start) / (double)round_pages;
            ratio[k][i] = rate[k][i] / rate[0][i];
        }
    for (k = 0; k < CASES; k++) {
        if (!works[k]) {
            fprintf(stderr, "bench_prefetch: %s is unavailable here\n", cases[k].name);
            continue;
        }
        bench_row(cases[k].name, "pages_per_s", bench_median(rate[k], rounds), "pages/s");
        if (works[0]) bench_row(cases[k].name, "of_limit", bench_median(ratio[k], rounds), "ratio");
        bench_row(cases[k].name, "own_cpu", bench_median(cpu[k], rounds), "us/page");
    }
    fprintf(stderr, "bench_prefetch: %zu MiB, %zu rounds of %zu pages of %zu bytes, checksum %llu\n", mib, rounds,
            round_pages,
            page, checksum);
    unlink(path);
    return 0;
}
