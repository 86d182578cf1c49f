/* Durable commits, sequential writing and replay, each beside what the device can do, in alternating rounds.
 *     bench_wal [--quick] [--no-peers] [--only NAME] [--dir DIR]
 * --only: cases whose name begins so, and what they are compared with, in many rounds.
 * Files go to DIR (default build/tmp/bench_wal) and are removed at the end.
 * limit/write=4096        one 4 KiB write made durable at a time, in a zero-filled segment: io_uring, registered buffer
 *                         and file, RWF_DSYNC; without io_uring O_DIRECT pwrite and fdatasync
 * ours/threads=N          N threads that each commit one 128-byte record after the other (nodedb_wal_commit)
 * rocksdb/, sqlite/, lmdb/threads=N    the same with the engines of peers_wal.h, 16 bytes key and 112 value, where
 *                         `build.sh bench wal` found them; --no-peers leaves them out
 * ours/async              one thread: append, submit, poll, 128-byte records
 * limit/seq-write         1 MiB O_DIRECT writes into a zero-filled file, 8 in flight, and one fdatasync
 * ours/async/bytes=65536  as ours/async, records of 64 KiB, payload counted
 * limit/seq-read          1 MiB O_DIRECT reads of the replayed log's segments, 8 in flight
 * ours/replay-cold, -warm nodedb_wal_replay of 1 KiB records, from the device and from the page cache; bytes of records
 * The log is truncated as it goes, as after a checkpoint, so that segments are recycled. `of_limit` is the median of
 * the rounds' ratios: threads=1 to limit/write, bytes=65536 to limit/seq-write, replay to limit/seq-read;
 * `p99_of_limit` is that of the p99, `of_rocksdb` that to RocksDB with as many threads. SQLite and LMDB commit one
 * after the other, however many threads there are, so they run in every third round only. */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "bench.h"
#include <poll.h>

enum {
    BLOCK_BYTES = 4096, HUGE_PAGE_BYTES = 2 << 20, CHUNK_BYTES = 1 << 20, DEPTH = 8,
    RECORD_BYTES = 128, BIG_BYTES = 65536, REPLAY_BYTES = 1024,
    THREADS_MAX = 64, ROUNDS_MAX = 21, SAMPLES_MAX = 1 << 20, PATH_MAX_BYTES = 1024, APPENDS_PER_TURN = 512,
    GROUPS_AT_DEVICE = 4, SLOW_EVERY = 3
};

typedef struct result {
    double rate, p50_us, p99_us; /* rate: per second; p50 is 0 where there is no latency */
} result;

static const char *dir;
static char limit_path[PATH_MAX_BYTES], log_dir[PATH_MAX_BYTES], replay_dir[PATH_MAX_BYTES];
static uint64_t round_ns, limit_bytes, replay_bytes;
static unsigned char *buffers; /* DEPTH chunks */
static nodedb_wal *wal;
static double samples[SAMPLES_MAX];

static void remove_dir(const char *path) {
    char name[PATH_MAX_BYTES + 300];
    struct dirent *entry;
    DIR *d = opendir(path);
    while (d != NULL && (entry = readdir(d)) != NULL) {
        (void)snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        (void)unlink(name);
    }
    if (d != NULL) (void)closedir(d);
    (void)rmdir(path);
}

/* Whatever a run leaves below dir, this one or one that was killed, with other peers built in perhaps. */
static void remove_files(void) {
    static const char *const dirs[] = {"log", "replay", "rocksdb", "rocksdb-log", "sqlite", "lmdb"};
    char path[PATH_MAX_BYTES];
    size_t i;
    (void)unlink(limit_path);
    for (i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", dir, dirs[i]);
        remove_dir(path);
    }
}

static void clean_up(void) {
    remove_files();
    (void)rmdir(dir);
}

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench_wal: %s: %s\n", what, why);
    exit(1);
}

#include "peers_wal.h"

static void check(nodedb_status status, const nodedb_error *err) {
    if (status != NODEDB_OK) die(nodedb_status_text(status), err->message);
}

static double per_second(double count, uint64_t start) { return count * 1e9 / (double)(bench_now_ns() - start); }

static result of_samples(double rate, size_t n) {
    result r;
    r.rate = rate;
    r.p50_us = bench_median(samples, n);
    r.p99_us = bench_percentile(samples, n, 0.99);
    return r;
}

static result of_rate(double rate) {
    result r = {0, 0, 0};
    r.rate = rate;
    return r;
}

/* ---- the limits -------------------------------------------------------------------------------------------------- */

static int open_direct(const char *path, int flags) {
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0644);
    if (fd < 0 && errno == EINVAL) fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0) die(path, strerror(errno));
    return fd;
}

static void make_limit_file(void) {
    int fd = open_direct(limit_path, O_RDWR | O_CREAT | O_TRUNC);
    uint64_t at;
    memset(buffers, 0, CHUNK_BYTES);
    for (at = 0; at < limit_bytes; at += CHUNK_BYTES)
        if (pwrite(fd, buffers, CHUNK_BYTES, (off_t)at) != CHUNK_BYTES) die(limit_path, strerror(errno));
    if (fsync(fd) != 0) die(limit_path, strerror(errno));
    (void)close(fd);
    memset(buffers, 0x5A, (size_t)DEPTH * CHUNK_BYTES);
}

#if !defined(NODEDB_NO_LIBURING)
/* A ring for the limits, if the system allows one. */
static bool ring_open(struct io_uring *ring) {
#if defined(IORING_SETUP_SINGLE_ISSUER)
    if (io_uring_queue_init(DEPTH, ring, IORING_SETUP_SINGLE_ISSUER) == 0) return true;
#endif
    return io_uring_queue_init(DEPTH, ring, 0) == 0;
}

static int ring_result(struct io_uring *ring) {
    struct io_uring_cqe *cqe = NULL;
    int result;
    if (io_uring_submit_and_wait(ring, 1) < 0 || io_uring_wait_cqe(ring, &cqe) != 0) die("io_uring", "waiting failed");
    result = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    return result;
}
#endif

/* One block at `offset`, durable when it returns. With a ring: registered buffer 0 and file 0. */
static void write_durably(void *ring, int fd, uint64_t offset) {
#if !defined(NODEDB_NO_LIBURING)
    if (ring != NULL) {
        struct io_uring_sqe *sqe = io_uring_get_sqe((struct io_uring *)ring);
        io_uring_prep_write_fixed(sqe, 0, buffers, BLOCK_BYTES, offset, 0);
        sqe->flags |= IOSQE_FIXED_FILE;
        sqe->rw_flags = RWF_DSYNC;
        if (ring_result((struct io_uring *)ring) != BLOCK_BYTES) die(limit_path, "the write failed");
        return;
    }
#endif
    (void)ring;
    if (pwrite(fd, buffers, BLOCK_BYTES, (off_t)offset) != BLOCK_BYTES || fdatasync(fd) != 0)
        die(limit_path, strerror(errno));
}

static result limit_write(int argument) {
    int fd = open_direct(limit_path, O_RDWR);
    void *ring = NULL;
    uint64_t start, now, before, at = 0;
    size_t n = 0;
    result r;
#if !defined(NODEDB_NO_LIBURING)
    struct io_uring own;
    struct iovec buffer;
    buffer.iov_base = buffers, buffer.iov_len = BLOCK_BYTES;
    if (ring_open(&own)) {
        ring = &own;
        if (io_uring_register_buffers(&own, &buffer, 1) != 0 || io_uring_register_files(&own, &fd, 1) != 0)
            die("io_uring", "cannot register the buffer and the file");
    }
#endif
    (void)argument;
    for (start = now = bench_now_ns(); now - start < round_ns && n < SAMPLES_MAX;) {
        before = now;
        write_durably(ring, fd, at);
        at = (at + BLOCK_BYTES) % limit_bytes;
        now = bench_now_ns();
        samples[n++] = (double)(now - before) / 1e3;
    }
    r = of_samples((double)n * 1e9 / (double)(now - start), n);
#if !defined(NODEDB_NO_LIBURING)
    if (ring != NULL) io_uring_queue_exit(&own);
#endif
    (void)close(fd);
    return r;
}

/* `chunks` chunks of fd from its start on, DEPTH in flight where there is a ring. Goes round in the limit file. */
static void transfer(int fd, bool writing, uint64_t chunks, uint64_t file_chunks) {
    uint64_t next = 0;
#if !defined(NODEDB_NO_LIBURING)
    struct io_uring ring;
    if (ring_open(&ring)) {
        struct io_uring_cqe *cqe;
        uint64_t back = 0, free_slots = (1u << DEPTH) - 1;
        while (back < chunks) {
            for (; next < chunks && free_slots != 0; next++) {
                int slot = __builtin_ctzll(free_slots);
                struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
                unsigned char *at = buffers + (size_t)slot * CHUNK_BYTES;
                uint64_t offset = next % file_chunks * CHUNK_BYTES;
                if (writing) io_uring_prep_write(sqe, fd, at, CHUNK_BYTES, offset);
                else io_uring_prep_read(sqe, fd, at, CHUNK_BYTES, offset);
                sqe->user_data = (uint64_t)slot;
                free_slots &= ~(UINT64_C(1) << slot);
            }
            if (io_uring_submit_and_wait(&ring, 1) < 0) die("io_uring", "waiting failed");
            while (io_uring_peek_cqe(&ring, &cqe) == 0) {
                if (cqe->res != CHUNK_BYTES) die("the limit's transfer", cqe->res < 0 ? strerror(-cqe->res) : "short");
                free_slots |= UINT64_C(1) << cqe->user_data;
                io_uring_cqe_seen(&ring, cqe);
                back++;
            }
        }
        io_uring_queue_exit(&ring);
        return;
    }
#endif
    for (; next < chunks; next++) {
        off_t offset = (off_t)(next % file_chunks * CHUNK_BYTES);
        ssize_t n = writing ? pwrite(fd, buffers, CHUNK_BYTES, offset) : pread(fd, buffers, CHUNK_BYTES, offset);
        if (n != CHUNK_BYTES) die("the limit's transfer", strerror(errno));
    }
}

static result limit_seq_write(int argument) {
    uint64_t start = bench_now_ns(), chunks = limit_bytes / CHUNK_BYTES, done = 0;
    int fd = open_direct(limit_path, O_RDWR);
    (void)argument;
    while (bench_now_ns() - start < round_ns) {
        transfer(fd, true, chunks, chunks);
        done += limit_bytes;
    }
    if (fdatasync(fd) != 0) die(limit_path, strerror(errno));
    (void)close(fd);
    return of_rate(per_second((double)done, start));
}

/* ---- our commits ------------------------------------------------------------------------------------------------- */

static void start_log(void) {
    nodedb_wal_config config;
    nodedb_error err;
    memset(&config, 0, sizeof config);
    config.dir = log_dir;
    wal = nodedb_wal_open(&config, &err);
    if (wal == NULL) die("nodedb_wal_open", err.message);
    fprintf(stderr, "bench_wal: %s\n", nodedb_wal_describe(wal));
}

static void truncate_log(uint64_t before) {
    nodedb_error err;
    check(nodedb_wal_truncate_before(wal, before, NULL, &err), &err);
}

static nodedb_wal_record record_of(uint32_t bytes) {
    nodedb_wal_record record;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER;
    record.payload = buffers;
    record.payload_bytes = bytes;
    return record;
}

static void ours_commit(void *session) {
    nodedb_wal_record record = record_of(RECORD_BYTES);
    nodedb_error err;
    (void)session;
    check(nodedb_wal_commit(wal, &record, 1, NULL, &err), &err);
}

static void ours_truncate(void) { truncate_log(nodedb_wal_durable_lsn(wal)); }

static const engine ours = {"ours", NULL, NULL, ours_commit, ours_truncate, NULL, NULL, false};

/* One turn of an event loop: append what there is, send it unless enough is on its way, see what has arrived. */
static result ours_async(int bytes) {
    nodedb_wal_record record = record_of((uint32_t)bytes);
    uint64_t start = bench_now_ns(), first = nodedb_wal_durable_lsn(wal), durable = first, truncated = first, last;
    uint64_t truncate_every = NODEDB_WAL_DEFAULT_SEGMENT_BYTES / (uint64_t)(bytes + NODEDB_WAL_RECORD_HEADER_BYTES);
    nodedb_error err;
    double rate;
    while (bench_now_ns() - start < round_ns) {
        nodedb_status status = NODEDB_OK;
        int i;
        for (i = 0; i < APPENDS_PER_TURN && status == NODEDB_OK; i++)
            status = nodedb_wal_append(wal, &record, NULL, &err);
        if (status == NODEDB_ERR_AGAIN) { /* every group is on its way: an event loop would see to its sockets now */
            struct pollfd ready;
            ready.fd = nodedb_wal_fd(wal), ready.events = POLLIN;
            (void)poll(&ready, 1, 1000);
        } else check(status, &err);
        if (nodedb_wal_groups_in_flight(wal) < GROUPS_AT_DEVICE) {
            status = nodedb_wal_submit(wal, &err);
            if (status != NODEDB_ERR_AGAIN) check(status, &err);
        }
        check(nodedb_wal_poll(wal, &durable, &err), &err);
        if (durable - truncated > truncate_every) truncate_log(truncated = durable);
    }
    last = nodedb_wal_last_lsn(wal);
    check(nodedb_wal_wait(wal, last, &err), &err);
    rate = per_second((double)(last - first), start);
    truncate_log(last);
    return of_rate(bytes == BIG_BYTES ? rate * bytes : rate);
}

/* ---- threads that commit with an engine -------------------------------------------------------------------------- */

static const engine *const engines[] = {&ours, &rocksdb, &sqlite, &lmdb};
enum { NO_ENGINE = -1, OURS, ROCKSDB, SQLITE, LMDB, ENGINES };
static bool engine_runs[ENGINES];
static void *sessions[ENGINES][THREADS_MAX]; /* opened once: 64 connections would take their time in every round */

typedef struct committer {
    pthread_t thread;
    const engine *e;
    void *session;
    uint64_t deadline;
    double *samples;
    size_t count, most;
} committer;

static void *commit_until(void *argument) {
    committer *c = (committer *)argument;
    uint64_t before, now = bench_now_ns();
    while (now < c->deadline && c->count < c->most) {
        before = now;
        c->e->commit(c->session);
        now = bench_now_ns();
        c->samples[c->count++] = (double)(now - before) / 1e3;
    }
    return NULL;
}

static result commit_threads(int which, int threads) {
    static committer c[THREADS_MAX];
    uint64_t start = bench_now_ns();
    size_t n = 0;
    double rate;
    int i;
    for (i = 0; i < threads; i++) {
        c[i].e = engines[which];
        c[i].session = sessions[which][i];
        c[i].deadline = start + round_ns;
        c[i].most = SAMPLES_MAX / (size_t)threads;
        c[i].samples = samples + (size_t)i * c[i].most;
        c[i].count = 0;
        if (pthread_create(&c[i].thread, NULL, commit_until, &c[i]) != 0) die("pthread_create", "failed");
    }
    for (i = 0; i < threads; i++) {
        pthread_join(c[i].thread, NULL);
        memmove(samples + n, c[i].samples, c[i].count * sizeof *samples); /* the parts one behind the other */
        n += c[i].count;
    }
    rate = per_second((double)n, start);
    if (engines[which]->clean_up != NULL) engines[which]->clean_up();
    return of_samples(rate, n);
}

static void start_engines(bool peers) {
    int i, k;
    for (k = 0; k < ENGINES; k++) {
        const engine *e = engines[k];
        char path[PATH_MAX_BYTES];
        engine_runs[k] = e->commit != NULL && (k == OURS || peers);
        if (!engine_runs[k] || e->open == NULL) continue;
        (void)snprintf(path, sizeof path, "%s/%s", dir, e->name);
        if (mkdir(path, 0777) != 0) die(path, strerror(errno));
        e->open(path);
        for (i = 0; i < THREADS_MAX && e->session != NULL; i++) sessions[k][i] = e->session();
        fprintf(stderr, "bench_wal: beside %s\n", e->name);
    }
}

static void stop_engines(void) {
    int i, k;
    for (k = 0; k < ENGINES; k++) {
        const engine *e = engines[k];
        for (i = 0; i < THREADS_MAX && sessions[k][i] != NULL; i++) e->end_session(sessions[k][i]);
        if (engine_runs[k] && e->close != NULL) e->close();
    }
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static void make_replay_log(uint64_t bytes) {
    nodedb_wal_record record = record_of(REPLAY_BYTES);
    nodedb_wal_config config;
    nodedb_error err;
    nodedb_wal *w;
    uint64_t count = bytes / (REPLAY_BYTES + NODEDB_WAL_RECORD_HEADER_BYTES), lsn = 0;
    memset(&config, 0, sizeof config);
    config.dir = replay_dir;
    w = nodedb_wal_open(&config, &err);
    if (w == NULL) die("nodedb_wal_open", err.message);
    while (lsn < count) {
        nodedb_status status = nodedb_wal_append(w, &record, &lsn, &err);
        if (status == NODEDB_ERR_AGAIN) status = nodedb_wal_wait(w, nodedb_wal_durable_lsn(w) + 1, &err);
        check(status, &err);
    }
    check(nodedb_wal_close(w, &err), &err);
}

/* Calls visit for each segment of the replay log, which the log itself leaves alone now. */
static void each_segment(uint64_t (*visit)(const char *path), uint64_t *sum) {
    char path[PATH_MAX_BYTES + 300];
    struct dirent *entry;
    DIR *d = opendir(replay_dir);
    if (d == NULL) die(replay_dir, strerror(errno));
    while ((entry = readdir(d)) != NULL) {
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
        (void)snprintf(path, sizeof path, "%s/%s", replay_dir, entry->d_name);
        *sum += visit(path);
    }
    (void)closedir(d);
}

static uint64_t evict(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    (void)close(fd);
    return 0;
}

static uint64_t warm(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;
    while ((n = read(fd, buffers, CHUNK_BYTES)) > 0) {}
    (void)close(fd);
    return n == 0 ? 0 : 1;
}

static uint64_t read_direct(const char *path) {
    int fd = open_direct(path, O_RDONLY);
    uint64_t chunks = (uint64_t)lseek(fd, 0, SEEK_END) / CHUNK_BYTES;
    transfer(fd, false, chunks, chunks);
    (void)close(fd);
    return chunks * CHUNK_BYTES;
}

static result limit_seq_read(int argument) {
    uint64_t start, sum = 0;
    (void)argument;
    each_segment(evict, &sum);
    start = bench_now_ns();
    each_segment(read_direct, &sum);
    return of_rate(per_second((double)sum, start));
}

/* Looks at the first and the last byte of each payload; the checksum has looked at all. */
static nodedb_status apply(void *ctx, const nodedb_wal_record *record) {
    const unsigned char *p = (const unsigned char *)record->payload;
    (void)__atomic_load_n(p, __ATOMIC_RELAXED);
    (void)__atomic_load_n(p + record->payload_bytes - 1, __ATOMIC_RELAXED);
    *(uint64_t *)ctx += NODEDB_WAL_RECORD_HEADER_BYTES + (uint64_t)record->payload_bytes;
    return NODEDB_OK;
}

static result ours_replay(int is_warm) {
    nodedb_wal_reader_config reading;
    nodedb_error err;
    uint64_t start, ignored = 0, bytes = 0;
    memset(&reading, 0, sizeof reading);
    reading.dir = replay_dir;
    each_segment(is_warm ? warm : evict, &ignored);
    start = bench_now_ns();
    check(nodedb_wal_replay(&reading, apply, &bytes, NULL, &err), &err);
    return of_rate(per_second((double)bytes, start));
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

typedef struct bench_case {
    const char *name, *metric, *unit;
    result (*run)(int argument); /* NULL: `argument` threads that commit with `engine` */
    int argument, engine;
} bench_case;

static const bench_case cases[] = {
    {"limit/write=4096", "commits_per_s", "1/s", limit_write, 0, NO_ENGINE},
    {"ours/threads=1", "commits_per_s", "1/s", NULL, 1, OURS},
    {"rocksdb/threads=1", "commits_per_s", "1/s", NULL, 1, ROCKSDB},
    {"sqlite/threads=1", "commits_per_s", "1/s", NULL, 1, SQLITE},
    {"lmdb/threads=1", "commits_per_s", "1/s", NULL, 1, LMDB},
    {"ours/threads=8", "commits_per_s", "1/s", NULL, 8, OURS},
    {"rocksdb/threads=8", "commits_per_s", "1/s", NULL, 8, ROCKSDB},
    {"sqlite/threads=8", "commits_per_s", "1/s", NULL, 8, SQLITE},
    {"lmdb/threads=8", "commits_per_s", "1/s", NULL, 8, LMDB},
    {"ours/threads=64", "commits_per_s", "1/s", NULL, 64, OURS},
    {"rocksdb/threads=64", "commits_per_s", "1/s", NULL, 64, ROCKSDB},
    {"sqlite/threads=64", "commits_per_s", "1/s", NULL, 64, SQLITE},
    {"lmdb/threads=64", "commits_per_s", "1/s", NULL, 64, LMDB},
    {"ours/async", "commits_per_s", "1/s", ours_async, RECORD_BYTES, NO_ENGINE},
    {"limit/seq-write", "bytes_per_s", "B/s", limit_seq_write, 0, NO_ENGINE},
    {"ours/async/bytes=65536", "bytes_per_s", "B/s", ours_async, BIG_BYTES, NO_ENGINE},
    {"limit/seq-read", "bytes_per_s", "B/s", limit_seq_read, 0, NO_ENGINE},
    {"ours/replay-cold", "bytes_per_s", "B/s", ours_replay, 0, NO_ENGINE},
    {"ours/replay-warm", "bytes_per_s", "B/s", ours_replay, 1, NO_ENGINE},
};
enum { CASES = sizeof cases / sizeof *cases };

/* Rows that are the median of the rounds' ratios of one case to another; both run in every round. */
typedef struct comparison {
    const char *name, *metric, *to;
    bool of_p99;
} comparison;

static const comparison comparisons[] = {
    {"ours/threads=1", "of_limit", "limit/write=4096", false},
    {"ours/threads=1", "p99_of_limit", "limit/write=4096", true},
    {"ours/threads=8", "of_rocksdb", "rocksdb/threads=8", false},
    {"ours/threads=64", "of_rocksdb", "rocksdb/threads=64", false},
    {"ours/async/bytes=65536", "of_limit", "limit/seq-write", false},
    {"ours/replay-cold", "of_limit", "limit/seq-read", false},
    {"ours/replay-warm", "of_limit", "limit/seq-read", false},
};
enum { COMPARISONS = sizeof comparisons / sizeof *comparisons };

typedef struct measured {
    double rate[ROUNDS_MAX], p50[ROUNDS_MAX], p99[ROUNDS_MAX];
    size_t rounds; /* 0: the case did not run */
} measured;

static measured table[CASES];

static const char *only = "";

static bool is_wanted(const char *name) {
    size_t i;
    bool wanted = strncmp(name, only, strlen(only)) == 0;
    for (i = 0; i < COMPARISONS; i++)
        wanted = wanted ||
                 (strcmp(comparisons[i].to, name) == 0 && strncmp(comparisons[i].name, only, strlen(only)) == 0);
    return wanted;
}

static bool runs_in_round(const bench_case *c, size_t round) {
    if (!is_wanted(c->name)) return false;
    if (c->engine == NO_ENGINE) return true;
    return engine_runs[c->engine] && (!engines[c->engine]->slow || round % SLOW_EVERY == 0);
}

static void run_rounds(size_t rounds) {
    size_t i, k;
    for (i = 0; i < rounds; i++)
        for (k = 0; k < CASES; k++) {
            const bench_case *c = &cases[k];
            measured *m = &table[k];
            result r;
            if (!runs_in_round(c, i)) continue;
            r = c->run != NULL ? c->run(c->argument) : commit_threads(c->engine, c->argument);
            m->rate[m->rounds] = r.rate, m->p50[m->rounds] = r.p50_us, m->p99[m->rounds] = r.p99_us;
            m->rounds++;
        }
}

static const measured *measured_of(const char *name) {
    size_t k;
    for (k = 0; k < CASES; k++)
        if (strcmp(cases[k].name, name) == 0) return &table[k];
    die(name, "no such case");
    return NULL;
}

static void print_comparison(const comparison *c) {
    const measured *one = measured_of(c->name), *other = measured_of(c->to);
    double ratio[ROUNDS_MAX];
    size_t i;
    if (other->rounds < one->rounds) return;
    for (i = 0; i < one->rounds; i++)
        ratio[i] = c->of_p99 ? one->p99[i] / other->p99[i] : one->rate[i] / other->rate[i];
    bench_row(c->name, c->metric, bench_median(ratio, one->rounds), "ratio");
}

/* The median of values that stay in the order of their rounds. */
static double median_of(const double *values, size_t n) {
    double copy[ROUNDS_MAX];
    memcpy(copy, values, n * sizeof *values);
    return bench_median(copy, n);
}

static void print_rows(void) {
    size_t i, k;
    for (k = 0; k < CASES; k++) {
        const measured *m = &table[k];
        if (m->rounds == 0) continue;
        bench_row(cases[k].name, cases[k].metric, median_of(m->rate, m->rounds), cases[k].unit);
        if (m->p50[0] > 0) {
            bench_row(cases[k].name, "p50_us", median_of(m->p50, m->rounds), "us");
            bench_row(cases[k].name, "p99_us", median_of(m->p99, m->rounds), "us");
        }
        for (i = 0; i < COMPARISONS; i++)
            if (strcmp(comparisons[i].name, cases[k].name) == 0) print_comparison(&comparisons[i]);
    }
}

int main(int argc, char **argv) {
    bool quick = bench_flag(argc, argv, "--quick");
    void *memory = NULL;
    nodedb_error err;
    bench_name = "wal";
    round_ns = quick ? UINT64_C(300000000) : UINT64_C(1000000000);
    limit_bytes = UINT64_C(64) << 20;
    replay_bytes = (quick ? UINT64_C(256) : UINT64_C(1024)) << 20;
    dir = bench_option(argc, argv, "--dir", "build/tmp/bench_wal");
    only = bench_option(argc, argv, "--only", "");
    if (strlen(dir) > PATH_MAX_BYTES - 16) die(dir, "too long");
    (void)snprintf(limit_path, sizeof limit_path, "%s/limit.data", dir);
    (void)snprintf(log_dir, sizeof log_dir, "%s/log", dir);
    (void)snprintf(replay_dir, sizeof replay_dir, "%s/replay", dir);
    if (strncmp(dir, "build/tmp/", 10) == 0) (void)mkdir("build", 0777), (void)mkdir("build/tmp", 0777);
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) die(dir, strerror(errno));
    if (posix_memalign(&memory, HUGE_PAGE_BYTES, (size_t)DEPTH * CHUNK_BYTES) != 0) die("memory", "none");
#if defined(MADV_HUGEPAGE)
    /* 4 KiB pages, scattered, cost a virtual disk two thirds of its rate */
    (void)madvise(memory, (size_t)DEPTH * CHUNK_BYTES, MADV_HUGEPAGE);
#endif
    buffers = (unsigned char *)memory;
    remove_files();
    (void)atexit(clean_up);
    make_limit_file();
    make_replay_log(replay_bytes);
    start_log();
    start_engines(!bench_flag(argc, argv, "--no-peers"));
    run_rounds(only[0] != 0 ? ROUNDS_MAX : quick ? 3 : 7);
    stop_engines();
    check(nodedb_wal_close(wal, &err), &err);
    print_rows();
    free(memory);
    return 0;
}
