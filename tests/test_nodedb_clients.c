/* What clients can do to the database, and must not be able to: replies that nobody reads, requests that never end,
 * commands of a million keys, patterns that never match, connections without end. In each of these tests the server's
 * memory stays within its bound, and other clients are answered meanwhile.
 *
 * The bound: resident memory of 1.1 * (--memory + the base that INFO states as used_memory_base; 24 MiB a core if it
 * states none). It is not checked under sanitizers, whose own memory is several times larger. There, limits of time are
 * multiplied (see `slowness`), and the amount of work is divided (see `less`).
 *
 *   BUILD                  sanitizers, and how much slower they are
 *   SERVER IN THE KERNEL   its memory and processor time, from /proc
 *   WATCH                  a client whose latency every test bounds
 *   READERS                connections that read on demand
 *   REQUESTS               pipelines, values, servers
 *   UNREAD REPLIES         values, pipelines, scans, vectors, searches, errors
 *   MANY KEYS              commands of 10,000 keys in a pipeline
 *   ENDLESS REQUESTS       large commands of which a part never arrives
 *   PIECES                 commands that arrive in small packets
 *   PATTERNS               SCAN with hostile patterns, also when the server ends
 *   CONNECTIONS            descriptors, timeouts, keepalive, clients that come and go
 *   ANSWERS                SELECT, CLUSTER, AUTH, refused options
 *   END                    the shared server stops in order */
#include "server.h"

/* TCP probes a receiver that had no room after up to 12.8 s, at intervals that double (its persist timer). */
#define READER_PATIENCE_MS (4 * PATIENCE_MS)

#define MIB (1 << 20)
#define LATENCY_MAX_MS 100 /* of a small command of another client, whatever goes on */

/* ===================================================================================================================
 * BUILD: sanitizers, and how much slower they are
 * ================================================================================================================ */

/* The server's build shows in the name of its folder only: build/asan, build/tsan. */
static bool built_with(const char *sanitizer) {
    const char *folder = getenv("NODEDB_BUILD_DIR");
    return folder != NULL && strstr(folder, sanitizer) != NULL;
}
static int slowness(void) { return built_with("tsan") ? 20 : built_with("asan") ? 5 : 1; }
static bool sanitized(void) { return slowness() > 1; }
static int less(int n) {
    int m = built_with("tsan") ? n / 10 : built_with("asan") ? n / 3 : n;
    return m > 0 ? m : 1;
}

/* Failed checks of the running test, those of its threads included. */
static int failures(void) { return __atomic_load_n(&test_failures_here, __ATOMIC_RELAXED); }

static uint64_t clock_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ===================================================================================================================
 * SERVER IN THE KERNEL: its memory and processor time, from /proc
 * ================================================================================================================ */

/* A field of /proc/PID/status that is in kB (VmRSS, VmHWM), in bytes. -1: the process has ended. */
static long long status_bytes(pid_t pid, const char *field) {
    char path[64], name[32], text[4096];
    const char *at;
    size_t n;
    FILE *f;
    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    (void)snprintf(name, sizeof name, "\n%s:", field);
    f = fopen(path, "rb");
    if (f == NULL) return -1;
    n = fread(text, 1, sizeof text - 1, f);
    (void)fclose(f);
    text[n] = 0;
    at = strstr(text, name);
    return at == NULL ? -1 : strtoll(at + strlen(name), NULL, 10) * 1024;
}

/* Processor time of all its threads, in user mode and in the kernel. */
static long long cpu_ms(pid_t pid) {
    char path[64], text[2048], *at;
    unsigned long user = 0, kernel = 0;
    size_t n;
    FILE *f;
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    f = fopen(path, "rb");
    if (f == NULL) return -1;
    n = fread(text, 1, sizeof text - 1, f);
    (void)fclose(f);
    text[n] = 0;
    at = strrchr(text, ')'); /* the command's name may hold anything */
    if (at == NULL || sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
        return -1;
    return (long long)(user + kernel) * 1000 / sysconf(_SC_CLK_TCK);
}

/* What the server may take at most when it runs with --memory `memory` on `cores` cores. */
static long long memory_bound(server *s, long long memory, int cores) {
    client *c = client_open(s->port);
    long long base = info(c, "used_memory_base");
    client_hang_up(c);
    if (base < 0) base = (long long)cores * (24 * MIB);
    return (memory + base) / 10 * 11;
}

static void check_memory(int line, server *s, const char *what, long long bound) {
    long long peak = status_bytes(s->pid, "VmHWM");
    if (peak > bound && !sanitized())
        complain(line, "%s: the server took %lld MiB; the bound is %lld MiB", what, peak / MIB, bound / MIB);
}

/* ===================================================================================================================
 * WATCH: a client whose latency every test bounds
 * ================================================================================================================ */

/* A thread that sends small commands, one at a time, and measures how long each takes. It guards the machine, too: a
 * server that takes several times its bound is killed. One watch at a time; see CLIENTS_TEST.
 *
 * The limit holds for what is the server's fault. The longest time for which one of its threads, or the watch itself,
 * was ready to run but had no CPU (/proc/PID/task/N/schedstat, second number) is deducted. That time is due to the
 * machine, and to the test, which keeps a CPU busy by comparing replies. */
#define WATCH_SAMPLES 200000
#define WATCH_TASKS 32
static struct watch {
    server *s;
    const char *what;
    pthread_t thread;
    bool running, writes; /* writes: every third command is a SET */
    int stop;
    long long bound;
    uint64_t most_us; /* the longest time of a command, all included; the samples are what is the server's fault */
    int schedstat[WATCH_TASKS], tasks;
    unsigned long long waited_ns[WATCH_TASKS]; /* of each task, when it was last looked at */
    size_t n;
} watching;
static uint32_t watch_us[WATCH_SAMPLES];

static bool watch_guards_memory(void) {
    long long rss = status_bytes(watching.s->pid, "VmRSS"), most = sanitized() ? 6LL << 30 : watching.bound * 4;
    if (rss <= most) return true;
    complain(__LINE__, "%s: the server takes %lld MiB where %lld MiB are its bound, and is killed", watching.what,
             rss / MIB, watching.bound / MIB);
    (void)kill(watching.s->pid, SIGKILL);
    return false;
}

static void watch_task(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && watching.tasks < WATCH_TASKS) watching.schedstat[watching.tasks++] = fd;
    else if (fd >= 0) (void)close(fd);
}

/* The longest time for which one of these threads has waited for a CPU since the last call. */
static uint64_t waited_us(void) {
    unsigned long long ran, waited;
    uint64_t most = 0;
    char text[100];
    int i;
    for (i = 0; i < watching.tasks; i++) {
        ssize_t n = pread(watching.schedstat[i], text, sizeof text - 1, 0);
        text[n > 0 ? n : 0] = 0;
        if (sscanf(text, "%llu %llu", &ran, &waited) != 2) continue;
        if (waited - watching.waited_ns[i] > most) most = waited - watching.waited_ns[i];
        watching.waited_ns[i] = waited;
    }
    return most / 1000;
}

/* The reply to one command, compared. False: there is none, or the server was killed. */
static bool watch_once(client *c, const char *command, const char *want) {
    uint64_t begin, until = clock_ms() + PATIENCE_MS, took, waited = waited_us();
    size_t length = strlen(want);
    begin = clock_us();
    c->in.len = c->in_at = 0;
    put_line(c, command);
    while (c->in.len < length) {
        client_io(c, 20);
        if (clock_us() - begin > 20000 && !watch_guards_memory()) return false;
        if (c->closed) {
            complain(__LINE__, "%s: the other client's connection is closed", watching.what);
            return false;
        }
        if (clock_ms() > until) {
            complain(__LINE__, "%s: the other client's %s is not answered within %d ms", watching.what, command,
                     PATIENCE_MS);
            return false;
        }
    }
    if (c->in.len != length || memcmp(c->in.p, want, length) != 0) {
        char text[200];
        complain(__LINE__, "%s: the other client's %s was answered \"%s\"", watching.what, command,
                 readable(c->in.p, c->in.len, text, sizeof text));
        return false;
    }
    took = clock_us() - begin;
    waited = waited_us();
    if (took > watching.most_us) watching.most_us = took;
    if (watching.n < WATCH_SAMPLES) watch_us[watching.n++] = (uint32_t)(waited < took ? took - waited : 0);
    return true;
}

static void *watch_run(void *unused) {
    client *c = client_open(watching.s->port);
    int i;
    watch_task("/proc/thread-self/schedstat");
    for (i = 0; __atomic_load_n(&watching.stop, __ATOMIC_RELAXED) == 0; i++) {
        char command[64];
        sleep_ms(1);
        if (i % 16 == 0 && !watch_guards_memory()) break;
        if (i % 3 == 0 && watching.writes) {
            (void)snprintf(command, sizeof command, "SET watch:%d 0123456789", i / 3 % 16);
            if (!watch_once(c, command, "+OK\r\n")) break;
        } else if (i % 3 != 1) {
            (void)snprintf(command, sizeof command, "GET watch:%d", i / 3 % 16);
            if (!watch_once(c, command, "$10\r\n0123456789\r\n")) break;
        } else if (!watch_once(c, "PING", "+PONG\r\n")) break;
    }
    client_hang_up(c);
    return unused;
}

static void watch_begin(server *s, const char *what, long long bound, bool writes) {
    client *c = client_open(s->port);
    char path[100];
    DIR *tasks;
    struct dirent *task;
    int i;
    for (i = 0; i < 16; i++) putf(c, "SET watch:%d 0123456789", i);
    for (i = 0; i < 16; i++) next_is(c, "+OK\r\n");
    client_hang_up(c);
    memset(&watching, 0, sizeof watching);
    (void)snprintf(path, sizeof path, "/proc/%d/task", (int)s->pid);
    tasks = opendir(path);
    while (tasks != NULL && (task = readdir(tasks)) != NULL) {
        (void)snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)s->pid, task->d_name);
        if (task->d_name[0] != '.') watch_task(path);
    }
    if (tasks != NULL) (void)closedir(tasks);
    watching.s = s, watching.what = what, watching.bound = bound, watching.writes = writes;
    if (pthread_create(&watching.thread, NULL, watch_run, NULL) != 0) abort();
    watching.running = true;
}

static int compare_us(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Ends the watch, if there is one; checks what it saw. */
static void watch_end_at(int line) {
    double most_ms;
    if (!watching.running) return;
    __atomic_store_n(&watching.stop, 1, __ATOMIC_RELAXED);
    (void)pthread_join(watching.thread, NULL);
    watching.running = false;
    while (watching.tasks > 0) (void)close(watching.schedstat[--watching.tasks]);
    if (watching.n == 0) return;
    qsort(watch_us, watching.n, sizeof *watch_us, compare_us);
    most_ms = watch_us[watching.n - 1] / 1e3;
    fprintf(stderr, "note: %s: %zu commands of another client: p99 %.2f ms, at most %.2f ms (%.2f with waiting for a "
                    "CPU); memory %lld MiB\n",
            watching.what, watching.n, watch_us[watching.n - 1 - watching.n / 100] / 1e3, most_ms,
            (double)watching.most_us / 1e3, status_bytes(watching.s->pid, "VmHWM") / MIB);
    if (most_ms > LATENCY_MAX_MS * slowness())
        complain(line, "%s: another client waited %.0f ms; the limit is %d ms", watching.what, most_ms,
                 LATENCY_MAX_MS * slowness());
    check_memory(line, watching.s, watching.what, watching.bound);
}
#define watch_end() watch_end_at(__LINE__)

/* A DB_TEST that also ends a watch that it left. */
#define CLIENTS_TEST(name)                                                                                             \
    static void checks_##name(void);                                                                                   \
    DB_TEST(name) {                                                                                                    \
        checks_##name();                                                                                               \
        watch_end();                                                                                                   \
    }                                                                                                                  \
    static void checks_##name(void)

/* ===================================================================================================================
 * READERS: connections that read on demand
 * ================================================================================================================ */

/* A connected, blocking socket; -1 (and a failure) if there is none. receive_bytes: the kernel's buffer, 0 as usual. */
static int raw_connect_with(int port, int receive_bytes) {
    struct sockaddr_in a;
    struct timeval patience = {PATIENCE_MS / 1000, 0};
    int one = 1, window = 16384, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (receive_bytes > 0) (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        complain(__LINE__, "cannot connect to port %d: %s", port, strerror(errno));
        if (fd >= 0) (void)close(fd);
        return -1;
    }
    /* Small segments take more of the kernel's buffer than the window says, so one that nobody reads overflows. What is
     * dropped then is sent again after a time that doubles from 0.2 s to two minutes, however soon the client reads.
     * A smaller window is never overrun; that it opens again is told at once. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &window, sizeof window);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

static int raw_connect(int port) { return raw_connect_with(port, 0); }

static void raw_reset(int fd) {
    struct linger l = {1, 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    (void)close(fd);
}

/* A connection that sends a request and compares the reply as it comes, without keeping it. It reads only when a
 * caller asks for the next bytes. */
typedef struct reader {
    int fd;
    bool broken; /* it was closed, late or wrong, and a check has failed */
    const bytes *request;
    size_t sent, at, len, piece; /* piece: bytes read at once */
    unsigned pause_us;           /* between two reads */
    uint64_t got;
} reader;
static char reader_room[256 << 10]; /* what has been read and not compared yet, of the one reader that reads */

static void reader_open_with(reader *r, int port, const bytes *request, int receive_bytes) {
    memset(r, 0, sizeof *r);
    r->fd = raw_connect_with(port, receive_bytes);
    r->broken = r->fd < 0;
    r->request = request;
    r->piece = sizeof reader_room;
    if (r->fd >= 0) (void)fcntl(r->fd, F_SETFL, O_NONBLOCK);
}

static void reader_open(reader *r, int port, const bytes *request) { reader_open_with(r, port, request, 0); }

static void reader_close(reader *r, bool reset) {
    if (r->fd >= 0 && reset) raw_reset(r->fd);
    else if (r->fd >= 0) (void)close(r->fd);
    r->fd = -1;
    r->broken = true;
}

/* Sends what the socket takes. */
static bool reader_send(reader *r) {
    size_t before = r->sent;
    while (!r->broken && r->sent < r->request->len) {
        ssize_t n = send(r->fd, r->request->p + r->sent, r->request->len - r->sent, MSG_NOSIGNAL);
        if (n < 0) break;
        r->sent += (size_t)n;
    }
    return r->sent != before;
}

static bool reader_more(int line, reader *r, const char *what) {
    uint64_t until = clock_ms() + READER_PATIENCE_MS;
    r->at = r->len = 0;
    while (!r->broken) {
        struct pollfd p = {r->fd, POLLIN, 0};
        ssize_t n;
        if (r->sent < r->request->len) p.events |= POLLOUT;
        (void)poll(&p, 1, 100);
        if (reader_send(r)) until = clock_ms() + READER_PATIENCE_MS;
        n = recv(r->fd, reader_room, r->piece, 0);
        if (n > 0) {
            r->len = (size_t)n;
            r->got += (size_t)n;
            if (r->pause_us > 0) (void)usleep(r->pause_us);
            return true;
        }
        r->broken = n == 0 || (errno != EAGAIN && errno != EINTR);
        if (r->broken) complain(line, "%s: the connection is closed after %" PRIu64 " bytes", what, r->got);
        else if (clock_ms() > until) {
            complain(line, "%s: nothing comes any more, after %" PRIu64 " bytes", what, r->got);
            r->broken = true;
        }
    }
    return false;
}

/* The next `n` bytes are these. */
static bool reader_is(int line, reader *r, const char *what, const void *want, size_t n) {
    const char *p = want;
    while (n > 0 && !r->broken) {
        size_t m;
        if (r->at == r->len && !reader_more(line, r, what)) return false;
        m = r->len - r->at < n ? r->len - r->at : n;
        if (memcmp(reader_room + r->at, p, m) != 0) {
            char a[200], b[200];
            complain(line, "%s: before byte %" PRIu64 " \"%s\" came, not \"%s\"", what, r->got - r->len + r->at + m,
                     readable(reader_room + r->at, m, a, sizeof a), readable(p, m, b, sizeof b));
            r->broken = true;
        }
        r->at += m, p += m, n -= m;
    }
    return !r->broken;
}

/* The next line, without its end; "" if it does not come. */
static const char *reader_line(int line, reader *r, const char *what, char *to, size_t room) {
    size_t n = 0;
    while (!r->broken && n + 1 < room) {
        if (r->at == r->len && !reader_more(line, r, what)) break;
        to[n] = reader_room[r->at++];
        if (to[n] == '\n') break;
        n++;
    }
    if (r->broken) n = 0;
    to[n > 0 && to[n - 1] == '\r' ? n - 1 : n] = 0;
    return to;
}

/* ===================================================================================================================
 * REQUESTS: pipelines, values, servers
 * ================================================================================================================ */

/* Bytes that the seed determines. The caller frees. */
static char *pattern(size_t n, uint64_t seed) {
    char *p = malloc(n + 8);
    size_t i;
    if (p == NULL) abort();
    for (i = 0; i < n; i += 8) {
        uint64_t x = test_random(&seed);
        memcpy(p + i, &x, 8);
    }
    return p;
}

/* A client without a connection: a pipeline is built in its `out`. */
static void request_of(bytes *request, const client *c, size_t times) {
    for (; times > 0; times--) bytes_put(request, c->out.p, c->out.len);
}

/* A server on 64 MiB and two cores. */
static server *small_server(const char *more, long long *bound) {
    char options[200];
    server *s;
    (void)snprintf(options, sizeof options, "--cores 2 --memory 64M %s", more);
    s = server_start(data_dir(), options);
    *bound = s != NULL ? memory_bound(s, 64 * MIB, 2) : 0;
    return s;
}

/* ===================================================================================================================
 * UNREAD REPLIES: values, pipelines, scans, vectors, searches, errors
 * ================================================================================================================ */

CLIENTS_TEST(a_reply_of_two_gigabytes_takes_bounded_memory_and_comes_whole) {
    const size_t size = 8 * MIB;
    const char what[] = "MGET of many times 8 MiB";
    int times = test_long ? 1000 : less(250), i;
    char *value = pattern(size, test_seed), head[32];
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    bytes request = {0};
    reader r;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "k"), put_arg(c, value, size);
    next_is(c, "+OK\r\n");
    put_array(&empty, (size_t)times + 1), put_text(&empty, "MGET");
    for (i = 0; i < times; i++) put_text(&empty, "k");
    put_line(&empty, "PING");
    request_of(&request, &empty, 1);
    watch_begin(s, what, bound, false);
    reader_open(&r, s->port, &request);
    (void)reader_send(&r);
    sleep_ms(300); /* nobody reads yet */
    (void)reader_is(__LINE__, &r, what, head, (size_t)sprintf(head, "*%d\r\n", times));
    (void)sprintf(head, "$%zu\r\n", size);
    for (i = 0; i < times && !r.broken; i++) {
        (void)reader_is(__LINE__, &r, what, head, strlen(head));
        (void)reader_is(__LINE__, &r, what, value, size);
        (void)reader_is(__LINE__, &r, what, "\r\n", 2);
    }
    (void)reader_is(__LINE__, &r, what, "+PONG\r\n", 7);
    watch_end();
    reader_close(&r, false);
    bytes_free(&request), bytes_free(&empty.out);
    free(value);
}

#define MAX_READERS 64

/* Sends what the sockets take, until the server is idle: it takes no more, and its memory does not grow. */
static void until_still(server *s, reader *all, int n) {
    uint64_t begin = clock_ms(), since = begin;
    long long last = 0;
    while (clock_ms() - since < 250 && clock_ms() - begin < (uint64_t)(3000 + 500 * slowness())) {
        long long rss = status_bytes(s->pid, "VmRSS");
        bool moves = rss > last + MIB;
        int i;
        if (rss > last) last = rss;
        for (i = 0; i < n; i++) moves = reader_send(&all[i]) || moves;
        if (moves) since = clock_ms();
        sleep_ms(10);
    }
}

/* A reply that is checked as it comes. */
typedef bool reply_check(reader *r, const char *what);

/* Sends the command that `c->out` holds `times` times on each of `connections`, and a PING. Reads nothing until the
 * server rests; then all of every eighth connection, and a part of the others, which are reset. The replies are checked
 * by `check`, or (NULL) are all equal to the one that a client got before. */
static void nobody_reads(server *s, const char *what, long long bound, client *empty, int connections, int times,
                         reply_check *check) {
    static reader all[MAX_READERS];
    bytes request = {0}, want = {0};
    client *c;
    int i, k, before = failures();
    connections = less(connections);
    if (check == NULL) {
        c = client_open(s->port);
        bytes_put(&c->out, empty->out.p, empty->out.len);
        (void)reply(c);
        bytes_put(&want, c->reply.p, c->reply.len);
        client_hang_up(c);
    }
    request_of(&request, empty, (size_t)times);
    empty->out.len = 0;
    put_line(empty, "PING");
    request_of(&request, empty, 1);
    empty->out.len = 0;
    watch_begin(s, what, bound, false);
    for (i = 0; i < connections; i++) { /* with little room in the kernel, so that the server has to keep the rest */
        reader_open_with(&all[i], s->port, &request, 64 << 10);
        (void)reader_send(&all[i]);
    }
    until_still(s, all, connections);
    for (i = 0; i < connections && failures() == before; i++) {
        int whole = i % 8 == 0, n = whole ? times : (times + 15) / 16;
        for (k = 0; k < n && !all[i].broken; k++) {
            if (check != NULL) (void)check(&all[i], what);
            else (void)reader_is(__LINE__, &all[i], what, want.p, want.len);
        }
        if (whole) (void)reader_is(__LINE__, &all[i], what, "+PONG\r\n", 7);
        reader_close(&all[i], !whole);
    }
    for (i = 0; i < connections; i++) reader_close(&all[i], true);
    watch_end();
    bytes_free(&request), bytes_free(&want);
}

CLIENTS_TEST(ten_thousand_gets_of_a_mebibyte_that_nobody_reads_take_bounded_memory) {
    char *value = pattern(MIB, test_seed);
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "k"), put_arg(c, value, MIB);
    next_is(c, "+OK\r\n");
    put_line(&empty, "GET k");
    nobody_reads(s, "256 GETs of 1 MiB on 40 connections", bound, &empty, 40, 256, NULL);
    bytes_free(&empty.out);
    free(value);
}

/* 256 keys of 1 KiB. */
static void put_small_values(server *s) {
    char *value = pattern(1024, test_seed), key[32];
    client *c = client_open(s->port);
    int i;
    for (i = 0; i < 256; i++)
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "k%d", i)), put_arg(c, value, 1024);
    for (i = 0; i < 256; i++) next_is(c, "+OK\r\n");
    client_hang_up(c);
    free(value);
}

CLIENTS_TEST(mgets_of_small_values_that_nobody_reads_take_bounded_memory) {
    char key[32];
    long long bound;
    server *s = small_server("", &bound);
    client empty = {0};
    int i;
    REQUIRE(s != NULL);
    put_small_values(s);
    put_array(&empty, 257), put_text(&empty, "MGET");
    for (i = 0; i < 256; i++) put_arg(&empty, key, (size_t)sprintf(key, "k%d", i));
    nobody_reads(s, "MGETs of 256 values of 1 KiB", bound, &empty, 40, 40, NULL);
    bytes_free(&empty.out);
}

CLIENTS_TEST(pipelines_of_small_gets_that_nobody_reads_take_bounded_memory) {
    long long bound;
    server *s = small_server("", &bound);
    client empty = {0};
    REQUIRE(s != NULL);
    put_small_values(s);
    put_line(&empty, "GET k7");
    nobody_reads(s, "10,000 GETs of 1 KiB on 60 connections", bound, &empty, 60, 10000, NULL);
    bytes_free(&empty.out);
}

/* Key i of those that SCAN finds: 64 KiB or 1 KiB long, beginning with its number. */
#define LONG_KEYS 120
#define SHORT_KEYS 1000
static size_t long_key(int i, char *to) {
    size_t n = i < LONG_KEYS ? (64 << 10) - (size_t)(i % 64) : 1024;
    memset(to, 'a' + i % 26, n);
    to[sprintf(to, "key:%06d", i)] = ':';
    return n;
}
static bool is_long_key(const char *p, size_t n, int *index) {
    static char want[64 << 10];
    *index = n > 10 ? atoi(p + 4) : -1;
    return *index >= 0 && *index < LONG_KEYS + SHORT_KEYS && long_key(*index, want) == n && memcmp(p, want, n) == 0;
}

/* One reply of SCAN: a cursor, and whole keys that there are. */
static bool scan_reply(reader *r, const char *what) {
    char line[64];
    static char key[64 << 10];
    long keys, i;
    (void)reader_is(__LINE__, r, what, "*2\r\n", 4);
    if (*reader_line(__LINE__, r, what, line, sizeof line) != '$') r->broken = true;
    (void)reader_line(__LINE__, r, what, line, sizeof line); /* the cursor */
    if (*reader_line(__LINE__, r, what, line, sizeof line) != '*') r->broken = true;
    keys = atol(line + 1);
    for (i = 0; i < keys && !r->broken; i++) {
        long n = -1;
        if (*reader_line(__LINE__, r, what, line, sizeof line) == '$') n = atol(line + 1);
        if (n == 10 || n == 7 || n == 8) { /* a key of the watch, "watch:12" */
            (void)reader_line(__LINE__, r, what, line, sizeof line);
            continue;
        }
        if (n < 1024 || n > (long)sizeof key) {
            complain(__LINE__, "%s: a key of %ld bytes that is none of ours", what, n);
            r->broken = true;
        } else {
            char number[16] = "";
            size_t k;
            for (k = 0; k < 10 && !r->broken; k++) {
                if (r->at == r->len && !reader_more(__LINE__, r, what)) break;
                number[k] = reader_room[r->at++];
            }
            if (r->broken) break;
            if (memcmp(number, "key:", 4) != 0 || long_key(atoi(number + 4), key) != (size_t)n ||
                memcmp(number, key, 10) != 0) {
                complain(__LINE__, "%s: a key of %ld bytes begins with \"%.10s\"", what, n, number);
                r->broken = true;
            }
            (void)reader_is(__LINE__, r, what, key + 10, (size_t)n - 10);
            (void)reader_is(__LINE__, r, what, "\r\n", 2);
        }
    }
    return !r->broken;
}

CLIENTS_TEST(scans_of_long_keys_that_nobody_reads_take_bounded_memory) {
    static char key[64 << 10];
    static leaf l[LONG_KEYS + SHORT_KEYS + 100];
    static unsigned char seen[LONG_KEYS + SHORT_KEYS];
    char cursor[32] = "0";
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    int i, rounds = 0, found = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < LONG_KEYS + SHORT_KEYS; i++)
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, long_key(i, key)), put_text(c, "v");
    for (i = 0; i < LONG_KEYS + SHORT_KEYS; i++) next_is(c, "+OK\r\n");
    put_line(&empty, "SCAN 0 COUNT 100000");
    nobody_reads(s, "SCANs of keys of 1 to 64 KiB", bound, &empty, 40, 12, scan_reply);
    bytes_free(&empty.out);
    if (failures() > 0) return;
    memset(seen, 0, sizeof seen);
    do { /* a client that reads finds every key */
        size_t n, k;
        int index;
        putf(c, "SCAN %s COUNT 100000", cursor);
        n = reply_leaves(c, l, sizeof l / sizeof *l);
        for (k = 1; k < n; k++)
            if (is_long_key(l[k].p, l[k].n, &index)) found += !seen[index], seen[index] = 1;
        (void)snprintf(cursor, sizeof cursor, "%.*s", n > 0 ? (int)l[0].n : 1, n > 0 ? l[0].p : "0");
    } while (strcmp(cursor, "0") != 0 && ++rounds < 10000);
    CHECK_EQ(found, LONG_KEYS + SHORT_KEYS);
}

CLIENTS_TEST(vectors_that_nobody_reads_take_bounded_memory) {
    enum { DIM = 32768 };
    static float large[DIM];
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    uint64_t random = test_seed;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < DIM; i++) large[i] = (float)(test_random(&random) % 100000) / 7.0f;
    put_array(c, 5), put_text(c, "VADD"), put_text(c, "large"), put_text(c, "FP32"), put_arg(c, large, sizeof large),
        put_text(c, "e");
    next_is(c, ":1\r\n");
    put_line(&empty, "VEMB large e");
    nobody_reads(s, "VEMBs of 32,768 dimensions", bound, &empty, 16, 14, NULL);
    bytes_free(&empty.out);
}

CLIENTS_TEST(searches_that_nobody_reads_take_bounded_memory) {
    enum { ELEMENTS = 1000, NAME_BYTES = 500 };
    char name[NAME_BYTES], x[32];
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    memset(name, 'n', sizeof name);
    for (i = 0; i < ELEMENTS; i++) {
        name[sprintf(name, "%d", i)] = ':';
        put_array(c, 7), put_text(c, "VADD"), put_text(c, "v"), put_text(c, "VALUES"), put_text(c, "2");
        put_text(c, "1"), put_arg(c, x, (size_t)sprintf(x, "%.3f", i / 1000.0)), put_arg(c, name, sizeof name);
    }
    for (i = 0; i < ELEMENTS; i++) next_is(c, ":1\r\n");
    put_line(&empty, "VSIM v VALUES 2 1 0 COUNT 1000 WITHSCORES TRUTH");
    nobody_reads(s, "VSIMs of 1,000 elements", bound, &empty, 40, 20, NULL);
    bytes_free(&empty.out);
}

CLIENTS_TEST(errors_that_nobody_reads_take_bounded_memory) {
    long long bound;
    server *s = small_server("", &bound);
    client empty = {0};
    char word[65];
    int i;
    REQUIRE(s != NULL);
    memset(word, 'w', 64), word[64] = 0;
    put_array(&empty, 4);
    for (i = 0; i < 4; i++) put_text(&empty, word);
    nobody_reads(s, "unknown commands with long arguments", bound, &empty, 40, 30000, NULL);
    bytes_free(&empty.out);
}

CLIENTS_TEST(lists_of_commands_and_echoes_that_nobody_reads_take_bounded_memory) {
    char *text = malloc(64 << 10);
    long long bound;
    server *s = small_server("", &bound);
    client empty = {0};
    REQUIRE(s != NULL && text != NULL);
    memset(text, 't', 64 << 10);
    put_array(&empty, 2), put_text(&empty, "ECHO"), put_arg(&empty, text, 64 << 10);
    nobody_reads(s, "ECHOs of 64 KiB", bound, &empty, 60, 120, NULL);
    put_line(&empty, "COMMAND");
    if (failures() == 0) nobody_reads(s, "COMMANDs", bound, &empty, 60, 4000, NULL);
    bytes_free(&empty.out);
    free(text);
}

CLIENTS_TEST(a_slow_reader_of_half_a_gigabyte_takes_bounded_memory) {
    const size_t size = 16 << 10;
    const char what[] = "a slow reader of 500 MB";
    int times = less(32000), i;
    char *value = pattern(size, test_seed), head[32];
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    bytes request = {0};
    reader r;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "k"), put_arg(c, value, size);
    next_is(c, "+OK\r\n");
    put_line(&empty, "GET k");
    request_of(&request, &empty, (size_t)times);
    watch_begin(s, what, bound, false);
    reader_open_with(&r, s->port, &request, 128 << 10); /* so that the kernel does not hold it all for a while */
    r.piece = 64 << 10, r.pause_us = 250;
    (void)reader_send(&r);
    (void)sprintf(head, "$%zu\r\n", size);
    for (i = 0; i < times && !r.broken; i++) {
        (void)reader_is(__LINE__, &r, what, head, strlen(head));
        (void)reader_is(__LINE__, &r, what, value, size);
        (void)reader_is(__LINE__, &r, what, "\r\n", 2);
    }
    watch_end();
    reader_close(&r, false);
    bytes_free(&request), bytes_free(&empty.out);
    free(value);
}

CLIENTS_TEST(a_client_that_reads_nothing_does_no_harm_to_the_pipelines_of_twenty_others) {
    enum { CLIENTS = 20, BURST = 10 };
    const char what[] = "1,000 unread GETs of 512 KiB beside twenty pipelines";
    const size_t size = 512 << 10;
    int rounds = less(250), i, k, r, open = CLIENTS, wrong = 0;
    char *value = pattern(size, test_seed), head[32];
    static client *all[CLIENTS];
    static bytes want[CLIENTS];
    uint64_t until = clock_ms() + PATIENCE_MS;
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    bytes request = {0};
    reader mute;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "k"), put_arg(c, value, size);
    next_is(c, "+OK\r\n");
    put_line(&empty, "GET k");
    request_of(&request, &empty, 1000);
    watch_begin(s, what, bound, false);
    reader_open(&mute, s->port, &request);
    (void)reader_send(&mute);
    for (i = 0; i < CLIENTS; i++) { /* 5,000 commands each */
        all[i] = client_open(s->port);
        for (r = 0; r < rounds; r++)
            for (k = 0; k < 2 * BURST; k++) {
                int n = r * BURST + k % BURST;
                char digits[16];
                if (k < BURST) putf(all[i], "SET p%d:%d %d", i, n % 500, n), bytes_put(&want[i], "+OK\r\n", 5);
                else {
                    int length = sprintf(digits, "%d", n);
                    putf(all[i], "GET p%d:%d", i, n % 500);
                    bytes_put(&want[i], head, (size_t)sprintf(head, "$%d\r\n%s\r\n", length, digits));
                }
            }
    }
    while (open > 0 && clock_ms() < until) {
        struct pollfd p[CLIENTS];
        for (i = 0; i < CLIENTS; i++) {
            p[i].fd = all[i]->in.len < want[i].len && !all[i]->closed ? all[i]->fd : -1;
            p[i].events = (short)(POLLIN | (all[i]->out_at < all[i]->out.len ? POLLOUT : 0)), p[i].revents = 0;
        }
        if (poll(p, CLIENTS, 100) > 0) until = clock_ms() + PATIENCE_MS;
        for (open = 0, i = 0; i < CLIENTS; i++)
            if (p[i].fd >= 0) open++, client_io(all[i], 0);
    }
    for (i = 0; i < CLIENTS; i++) {
        if (wrong == 0 && (all[i]->in.len != want[i].len || memcmp(all[i]->in.p, want[i].p, want[i].len) != 0))
            wrong++, complain(__LINE__, "pipeline %d got %zu bytes of replies that should be %zu, or others", i,
                              all[i]->in.len, want[i].len);
        bytes_free(&want[i]);
    }
    (void)sprintf(head, "$%zu\r\n", size);
    for (i = 0; i < 1000 && !mute.broken; i++) { /* and now it reads */
        (void)reader_is(__LINE__, &mute, what, head, strlen(head));
        (void)reader_is(__LINE__, &mute, what, value, size);
        (void)reader_is(__LINE__, &mute, what, "\r\n", 2);
    }
    watch_end();
    reader_close(&mute, false);
    bytes_free(&request), bytes_free(&empty.out);
    free(value);
}

/* A client that reads nothing has sent a GET of a large value, and a DEL of many keys: those go, as a write's reply is
 * short, and others may wait for what it has under way. */
CLIENTS_TEST(a_write_of_many_keys_goes_on_though_its_client_does_not_read_what_it_asked_for_before) {
    enum { KEYS_OF_DEL = 5000 };
    char *value = pattern(8 * MIB, test_seed), head[32], want[32];
    uint64_t until = clock_ms() + PATIENCE_MS;
    long long bound;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    bytes request = {0};
    reader mute;
    int i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "large"), put_arg(c, value, 8 * MIB);
    next_is(c, "+OK\r\n");
    says(c, "MSET a 1 b 2 c 3 last 4", "+OK\r\n");
    put_line(&empty, "GET large");
    put_array(&empty, KEYS_OF_DEL + 2), put_text(&empty, "DEL");
    for (i = 0; i < KEYS_OF_DEL; i++) put_text(&empty, i % 3 == 0 ? "a" : i % 3 == 1 ? "b" : "c");
    put_text(&empty, "last");
    request_of(&request, &empty, 1);
    reader_open_with(&mute, s->port, &request, 64 << 10);
    (void)reader_send(&mute); /* in one piece: the DEL begins before the reply to the GET fills the sockets */
    while (number(c, "EXISTS last") != 0 && clock_ms() < until) {
        says(c, "SET other value", "+OK\r\n"); /* nor does another client's write wait */
        sleep_ms(5);
    }
    CHECK_EQ(number(c, "EXISTS a b c last"), 0);
    CHECK_EQ(mute.got, 0);
    /* now it reads */
    (void)reader_is(__LINE__, &mute, "GET of 8 MiB", head, (size_t)sprintf(head, "$%d\r\n", 8 * MIB));
    (void)reader_is(__LINE__, &mute, "GET of 8 MiB", value, 8 * MIB);
    (void)reader_is(__LINE__, &mute, "DEL", want, (size_t)sprintf(want, "\r\n:4\r\n"));
    reader_close(&mute, false);
    check_memory(__LINE__, s, "an unread reply before a DEL of 5,000 keys", bound);
    bytes_free(&request), bytes_free(&empty.out);
    free(value);
}

/* ===================================================================================================================
 * MANY KEYS: commands of 10,000 keys in a pipeline
 * ================================================================================================================ */

#define KEYS 10000 /* of one command */
#define SETS 20    /* of keys; command j is about set j % SETS */

static void put_keys(client *c, const char *name, int set, bool values) {
    char key[32];
    int i;
    put_array(c, (size_t)(values ? 2 * KEYS : KEYS) + 1), put_text(c, name);
    for (i = 0; i < KEYS; i++) {
        put_arg(c, key, (size_t)sprintf(key, "k%d", set * KEYS + i));
        if (values) put_arg(c, key, (size_t)sprintf(key, "v%d", set * KEYS + i));
    }
}

CLIENTS_TEST(commands_of_ten_thousand_keys_in_a_pipeline_leave_time_for_other_clients) {
    int times = less(test_long ? 250 : 100), i, k, sets = less(SETS), before;
    long long bound;
    server *s = small_server("", &bound);
    client *c;
    char text[64];
    REQUIRE(s != NULL);
    c = client_open(s->port);
    watch_begin(s, "MSETs of 10,000 keys", bound, true);
    for (i = 0; i < sets; i++) put_keys(c, "MSET", i, true);
    for (i = 0; i < sets; i++) next_is(c, "+OK\r\n");
    watch_end();
    says(c, "DBSIZE", (sprintf(text, ":%d\r\n", sets * KEYS + 16), text)); /* 16 of the watch */
    if (c->late || c->closed) return;
    watch_begin(s, "EXISTSs of 10,000 keys", bound, true);
    for (i = 0; i < times; i++) put_keys(c, "EXISTS", i % (sets + 1), false);
    for (i = 0; i < times; i++) next_is(c, i % (sets + 1) < sets ? ":10000\r\n" : ":0\r\n");
    watch_end();
    if (c->late || c->closed) return;
    watch_begin(s, "MGETs of 10,000 keys", bound, true);
    for (i = 0; i < times; i++) put_keys(c, "MGET", i % sets, false);
    before = failures();
    for (i = 0; i < times && failures() == before; i++) {
        bytes want = {0};
        bytes_put(&want, "*10000\r\n", 8);
        for (k = 0; k < KEYS; k++) {
            char value[32];
            int n = sprintf(value, "v%d", i % sets * KEYS + k);
            bytes_put(&want, text, (size_t)sprintf(text, "$%d\r\n%s\r\n", n, value));
        }
        check_reply(__LINE__, c, "MGET", want.p, want.len);
        bytes_free(&want);
    }
    watch_end();
    if (c->late || c->closed) return;
    watch_begin(s, "DELs of 10,000 keys", bound, true);
    for (i = 0; i < times; i++) put_keys(c, "DEL", i, false); /* of some that are there, and then of none */
    for (i = 0; i < times; i++) next_is(c, i < sets ? ":10000\r\n" : ":0\r\n");
    watch_end();
    says(c, "DBSIZE", ":16\r\n");
}

/* ===================================================================================================================
 * ENDLESS REQUESTS: large commands of which a part never arrives
 * ================================================================================================================ */

/* A client that sends one SET of 32 MiB. */
typedef struct giant {
    int fd; /* -1: it is over */
    size_t sent;
    char head[64], answer[256];
    size_t head_bytes, got;
} giant;

#define GIANTS 30
#define GIANT_BYTES (32u << 20)

static size_t giant_total(const giant *g) { return g->head_bytes + GIANT_BYTES + 2; }

/* Sends up to `limit` and reads what there is. True: something happened. */
static bool giant_step(giant *g, const char *chunk, size_t chunk_bytes, size_t limit) {
    struct pollfd p = {g->fd, POLLIN, 0};
    ssize_t n;
    bool moved = false;
    if (g->fd < 0) return false;
    if (g->sent < limit) p.events |= POLLOUT;
    if (poll(&p, 1, 0) <= 0) return false;
    if ((p.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
        n = recv(g->fd, g->answer + g->got, sizeof g->answer - 1 - g->got, 0);
        if (n > 0) g->got += (size_t)n, moved = true;
        else if (n == 0 || errno != EAGAIN) {
            (void)close(g->fd);
            g->fd = -1;
            return true;
        }
    }
    if ((p.revents & POLLOUT) != 0) {
        size_t in_value = g->sent > g->head_bytes ? g->sent - g->head_bytes : 0;
        const char *from = g->sent < g->head_bytes    ? g->head + g->sent
                           : in_value >= GIANT_BYTES ? &"\r\n"[in_value - GIANT_BYTES]
                                                     : chunk;
        size_t most = g->sent < g->head_bytes    ? g->head_bytes - g->sent
                      : in_value >= GIANT_BYTES ? GIANT_BYTES + 2 - in_value
                                                : GIANT_BYTES - in_value;
        if (most > chunk_bytes) most = chunk_bytes;
        if (most > limit - g->sent) most = limit - g->sent;
        n = send(g->fd, from, most, MSG_NOSIGNAL);
        if (n > 0) g->sent += (size_t)n, moved = true;
    }
    return moved;
}

/* Steps of all giants, until for `patience_ms` nothing happens. Of each, the last `hold` bytes are not sent. */
static void giants_go_on(giant *g, size_t hold, uint64_t patience_ms) {
    static char chunk[256 << 10];
    uint64_t since = clock_ms(), begin = since;
    int i, open = GIANTS;
    memset(chunk, 'x', sizeof chunk);
    while (open > 0 && clock_ms() - since < patience_ms && clock_ms() - begin < 4 * PATIENCE_MS) {
        bool moved = false;
        for (open = 0, i = 0; i < GIANTS; i++) {
            moved = giant_step(&g[i], chunk, sizeof chunk, giant_total(&g[i]) - hold) || moved;
            open += g[i].fd >= 0 && !(g[i].sent == giant_total(&g[i]) && g[i].got > 0); /* answered: it has ended */
        }
        if (moved) since = clock_ms();
        else sleep_ms(1);
    }
}

CLIENTS_TEST(unfinished_requests_take_bounded_memory_and_what_does_not_fit_is_refused) {
    static giant g[GIANTS];
    long long bound;
    server *s = small_server("", &bound);
    client *c;
    int i, refused = 0, stored = 0, strange = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "SET small value", "+OK\r\n");
    watch_begin(s, "30 unfinished SETs of 32 MiB", bound, false);
    memset(g, 0, sizeof g);
    for (i = 0; i < GIANTS; i++) {
        g[i].head_bytes = (size_t)sprintf(g[i].head, "*3\r\n$3\r\nSET\r\n$5\r\ngiant\r\n$%u\r\n", GIANT_BYTES);
        g[i].fd = raw_connect(s->port);
        if (g[i].fd >= 0) (void)fcntl(g[i].fd, F_SETFL, O_NONBLOCK);
    }
    giants_go_on(g, 100, (uint64_t)(500 * slowness()));
    for (i = 0; i < GIANTS; i++) refused += g[i].fd < 0;
    CHECK(refused > 0); /* not all are kept: 960 MiB do not fit into 64 */
    giants_go_on(g, 0, PATIENCE_MS / 2);
    for (i = 0; i < GIANTS; i++) {
        const char *a = g[i].answer;
        if (a[0] == '+') stored++;
        else if ((strncmp(a, "-OOM", 4) != 0 && strncmp(a, "-ERR", 4) != 0) || strchr(a, '\n') == NULL)
            if (strange++ == 0) complain(__LINE__, "client %d sent %zu bytes and was told \"%.100s\"", i, g[i].sent, a);
        if (g[i].fd >= 0) (void)close(g[i].fd);
    }
    fprintf(stderr, "note: of %d SETs of 32 MiB %d were refused unfinished, %d were stored\n", GIANTS, refused, stored);
    watch_end();
    says(c, "GET small", "$5\r\nvalue\r\n");
    says(c, "DEL giant", stored > 0 ? ":1\r\n" : ":0\r\n");
    CHECK(info_reaches(c, "used_memory", false, 4 * MIB)); /* what was unfinished is no longer accounted */
    says(c, "SET small again", "+OK\r\n");
}

/* A client has a command of 6 MiB under way, whose reply it does not read. Others send SETs that do not fit beside it
 * into what clients may hold: this client is closed, and none of the others. */
CLIENTS_TEST(a_long_command_under_way_counts_when_the_client_that_holds_most_is_sought) {
    enum { OTHERS = 8, LONG_KEYS_OF_IT = 100, KEY_BYTES = 60000, OTHER_BYTES = 3 * MIB / 2 }; /* 6 and 12 of 16 MiB */
    char *value = pattern(8 * MIB, test_seed), key[32];
    uint64_t until;
    long long bound = 0;
    server *s = server_start(data_dir(), "--cores 1 --memory 64M"); /* one core: it seeks among its own connections */
    client *c, *all[OTHERS], empty = {0};
    bytes request = {0};
    reader mute;
    int i, right = 0;
    char gone;
    REQUIRE(s != NULL);
    bound = memory_bound(s, 64 * MIB, 1);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "large"), put_arg(c, value, 8 * MIB);
    next_is(c, "+OK\r\n");
    put_array(&empty, LONG_KEYS_OF_IT + 2), put_text(&empty, "MGET"), put_text(&empty, "large");
    for (i = 0; i < LONG_KEYS_OF_IT; i++) put_arg(&empty, value + i, KEY_BYTES);
    request_of(&request, &empty, 1);
    reader_open_with(&mute, s->port, &request, 64 << 10);
    for (until = clock_ms() + PATIENCE_MS; mute.sent < request.len && clock_ms() < until;)
        if (!reader_send(&mute)) sleep_ms(1);
    CHECK_EQ(mute.sent, request.len);
    CHECK(info_reaches(c, "used_memory_clients", true, 6 * MIB - MIB / 2));
    for (i = 0; i < OTHERS; i++) { /* all but the last 1,000 bytes of each */
        all[i] = client_open(s->port);
        put_array(all[i], 3), put_text(all[i], "SET"), put_arg(all[i], key, (size_t)sprintf(key, "k%d", i)),
            put_arg(all[i], value + i, OTHER_BYTES);
        all[i]->out.len -= 1000;
        client_flush(all[i]);
        sleep_ms(40); /* one after the other: what the one that goes has held is free by then */
    }
    CHECK(info_reaches(c, "connected_clients", false, OTHERS + 1)); /* one was closed */
    for (i = 0; i < OTHERS; i++) {
        all[i]->out.len = 0;
        bytes_put(&all[i]->out, value + i + OTHER_BYTES - 998, 998), bytes_put(&all[i]->out, "\r\n", 2);
        right += strcmp(reply(all[i]), "+OK\r\n") == 0;
    }
    CHECK_EQ(right, OTHERS);
    CHECK(info_reaches(c, "used_memory_clients", false, 2 * MIB)); /* what it held is free */
    for (until = clock_ms() + PATIENCE_MS; (i = (int)recv(mute.fd, reader_room, sizeof reader_room, 0)) != 0;) {
        if (i < 0 && errno != EAGAIN && errno != EINTR) break;
        if (clock_ms() > until) {
            complain(__LINE__, "the client with the long command is not closed");
            break;
        }
        if (i < 0) (void)usleep(1000);
    }
    for (i = gone = 0; i < OTHERS; i++) {
        putf(c, "GET k%d", i);
        (void)reply(c);
        gone = (char)(gone | (c->reply.len < OTHER_BYTES ||
                              memcmp(strchr(c->reply.p, '\n') + 1, value + i, OTHER_BYTES) != 0));
    }
    CHECK(!gone);
    reader_close(&mute, true);
    check_memory(__LINE__, s, "unfinished requests beside a long one under way", bound);
    bytes_free(&request), bytes_free(&empty.out);
    free(value);
}

/* Waits until the server's memory is at most `most`; as long as 2 s. */
static void memory_returns(int line, server *s, const char *what, long long start, long long most) {
    uint64_t until = clock_ms() + 2000;
    long long rss;
    do {
        sleep_ms(20);
        rss = status_bytes(s->pid, "VmRSS");
    } while (rss > most && clock_ms() < until && !sanitized());
    fprintf(stderr, "note: %s: memory %lld MiB, at the start %lld MiB\n", what, rss / MIB, start / MIB);
    if (rss > most && !sanitized())
        complain(line, "%s: after 2 s the server takes %lld MiB; at the start it took %lld MiB", what, rss / MIB,
                 start / MIB);
}

CLIENTS_TEST(idle_clients_that_once_sent_much_take_little_memory) {
    char *value = pattern(MIB, test_seed);
    long long bound, start;
    server *s = small_server("", &bound);
    client *c, *all[25];
    int i, many = less(500);
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < 32; i++) { /* what the log and the allocator take for large values anyway */
        put_array(c, 3), put_text(c, "SET"), put_text(c, "k"), put_arg(c, value, MIB);
        next_is(c, "+OK\r\n");
    }
    sleep_ms(300);
    start = status_bytes(s->pid, "VmRSS");
    watch_begin(s, "clients that send a SET of 1 MiB and idle", bound, false);
    for (i = 0; i < 25; i++) { /* all at once */
        client *d = all[i] = client_open(s->port);
        put_array(d, 3), put_text(d, "SET"), put_text(d, "k"), put_arg(d, value, MIB);
        if (i % 2 == 1) bytes_put(&d->out, "*2\r\n$3\r\nGE", 10); /* a little of the next command is there, too */
    }
    for (i = 0; i < 25; i++) next_is(all[i], "+OK\r\n");
    memory_returns(__LINE__, s, "25 idle clients", start, start + 16 * MIB);
    for (i = 0; i < many; i++) { /* one after the other */
        client *d = client_open(s->port);
        size_t size = i % 4 == 0 ? MIB : 128 << 10;
        put_array(d, 3), put_text(d, "SET"), put_text(d, "k"), put_arg(d, value, size);
        if (i % 2 == 1) bytes_put(&d->out, "*2\r\n$3\r\nGE", 10);
        next_is(d, "+OK\r\n");
        bytes_free(&d->out), bytes_free(&d->in), bytes_free(&d->reply);
        if (d->closed) break;
    }
    memory_returns(__LINE__, s, "500 idle clients", start, start + 24 * MIB);
    watch_end();
    free(value);
}

CLIENTS_TEST(a_client_that_announces_much_and_sends_nothing_costs_nothing) {
    enum { CLIENTS = 500 };
    static int fds[CLIENTS];
    static const char *const announce[] = {"*65536\r\n$33554432\r\n", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$33554432\r\n",
                                           "*65536\r\n$4\r\nMGET\r\n$65536\r\n"};
    long long bound, start;
    server *s = small_server("", &bound);
    int i;
    REQUIRE(s != NULL);
    start = status_bytes(s->pid, "VmRSS");
    watch_begin(s, "clients that announce much", bound, false);
    for (i = 0; i < CLIENTS; i++) {
        const char *text = announce[i % 3];
        fds[i] = raw_connect(s->port);
        if (fds[i] >= 0) CHECK(send(fds[i], text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text));
    }
    sleep_ms(300);
    memory_returns(__LINE__, s, "500 clients that announce much", start, start + CLIENTS * (64LL << 10));
    watch_end();
    for (i = 0; i < CLIENTS; i++)
        if (fds[i] >= 0) (void)close(fds[i]);
}

/* ===================================================================================================================
 * PIECES: commands that arrive in small packets
 * ================================================================================================================ */

/* Sends all of `request` in pieces, each of which becomes a packet. */
static void send_in_pieces(int fd, const bytes *request, size_t piece) {
    size_t at = 0;
    while (at < request->len) {
        size_t n = request->len - at < piece ? request->len - at : piece;
        ssize_t sent = send(fd, request->p + at, n, MSG_NOSIGNAL);
        if (sent <= 0) {
            complain(__LINE__, "the server does not take a request in pieces: %s", strerror(errno));
            return;
        }
        at += (size_t)sent;
    }
}

/* The next bytes of a blocking socket are these. */
static void raw_is(int line, int fd, const char *want, size_t n) {
    bytes got = {0};
    char text[200];
    while (got.len < n) {
        ssize_t m = recv(fd, bytes_room(&got, 64 << 10), 64 << 10, 0);
        if (m <= 0) break;
        got.len += (size_t)m;
    }
    if (got.len != n || memcmp(got.p, want, n) != 0)
        complain(line, "\"%s\" came, not what should", readable(got.p, got.len, text, sizeof text));
    bytes_free(&got);
}

/* A parser that starts from the beginning at every read needs more than 2 s for the second of these. */
CLIENTS_TEST(a_command_that_comes_in_pieces_is_parsed_once) {
    enum { ARGUMENTS = 65536, KEY_BYTES = 690 };
    server *s = server_start(data_dir(), "--cores 2 --memory 512M");
    char *value = pattern(8 * MIB, test_seed), key[KEY_BYTES], head[32];
    client *c, empty = {0};
    bytes request = {0}, answer = {0};
    long long cpu;
    int i, fd;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "SET x 1", "+OK\r\n");
    fd = raw_connect(s->port);
    REQUIRE(fd >= 0);
    put_array(&empty, ARGUMENTS), put_text(&empty, "EXISTS"); /* 460 KB in pieces of 7 bytes: one argument each */
    for (i = 1; i < ARGUMENTS; i++) put_text(&empty, i % 2 == 0 ? "x" : "y");
    request_of(&request, &empty, 1);
    cpu = cpu_ms(s->pid);
    send_in_pieces(fd, &request, 7);
    raw_is(__LINE__, fd, ":32767\r\n", 8);
    fprintf(stderr, "note: 65,536 arguments in pieces of 7 bytes: %lld ms of CPU\n", cpu_ms(s->pid) - cpu);
    if (cpu_ms(s->pid) - cpu > 1500 * slowness()) complain(__LINE__, "pieces of 7 bytes took more than 1.5 s of CPU");
    request.len = empty.out.len = 0;
    put_array(&empty, ARGUMENTS), put_text(&empty, "EXISTS"); /* 46 MB in pieces of 4,000 bytes */
    memset(key, 'k', sizeof key);
    for (i = 1; i < ARGUMENTS; i++) key[sprintf(key, "%d", i)] = ':', put_arg(&empty, key, sizeof key);
    request_of(&request, &empty, 1);
    cpu = cpu_ms(s->pid);
    send_in_pieces(fd, &request, 4000);
    raw_is(__LINE__, fd, ":0\r\n", 4);
    cpu = cpu_ms(s->pid) - cpu;
    fprintf(stderr, "note: 65,536 arguments of 690 bytes in pieces of 4,000 bytes: %lld ms of CPU\n", cpu);
    if (cpu > 1000 * slowness())
        complain(__LINE__, "65,536 arguments in pieces took %lld ms of CPU; the limit is %d", cpu, 1000 * slowness());
    request.len = empty.out.len = 0;
    put_array(&empty, 3), put_text(&empty, "SET"), put_text(&empty, "big"), put_arg(&empty, value, 8 * MIB);
    request_of(&request, &empty, 1);
    send_in_pieces(fd, &request, 1000);
    raw_is(__LINE__, fd, "+OK\r\n", 5);
    put_line(c, "GET big");
    bytes_put(&answer, head, (size_t)sprintf(head, "$%d\r\n", 8 * MIB));
    bytes_put(&answer, value, 8 * MIB), bytes_put(&answer, "\r\n", 2);
    check_reply(__LINE__, c, "GET of what came in pieces", answer.p, answer.len);
    (void)close(fd);
    bytes_free(&request), bytes_free(&answer), bytes_free(&empty.out);
    free(value);
}

/* ===================================================================================================================
 * PATTERNS: SCAN with hostile patterns, also when the server ends
 * ================================================================================================================ */

/* The keys that match, of all that there are: calls on_key for each, goes on until the cursor is 0. The longest time of
 * one call in ms; -1 if one was not answered. */
static long long scan_matching(client *c, const char *pattern_bytes, size_t n, void (*on_key)(void *, const leaf *),
                               void *ctx) {
    static leaf l[4096];
    char cursor[32] = "0";
    long long longest = 0;
    int rounds = 0;
    do {
        uint64_t begin = clock_ms();
        size_t leaves, k;
        put_array(c, 6), put_text(c, "SCAN"), put_text(c, cursor), put_text(c, "MATCH"),
            put_arg(c, pattern_bytes, n), put_text(c, "COUNT"), put_text(c, "100000");
        leaves = reply_leaves(c, l, sizeof l / sizeof *l);
        if (leaves == 0 || l[0].n >= sizeof cursor || l[0].kind != '$') return -1;
        if ((long long)(clock_ms() - begin) > longest) longest = (long long)(clock_ms() - begin);
        for (k = 1; k < leaves; k++) on_key(ctx, &l[k]);
        memcpy(cursor, l[0].p, l[0].n);
        cursor[l[0].n] = 0;
    } while (strcmp(cursor, "0") != 0 && ++rounds < 100000);
    return longest;
}

static void count_key(void *ctx, const leaf *key) { (void)key, ++*(int *)ctx; }

/* 10 keys of about 64 KB of 'a', and one of 40,000 'a' and a 'b'. */
static void put_keys_of_a(client *c) {
    static char key[64 << 10];
    int i;
    memset(key, 'a', sizeof key);
    for (i = 0; i < 10; i++)
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, sizeof key - (size_t)i), put_text(c, "v");
    key[40000] = 'b';
    put_array(c, 3), put_text(c, "SET"), put_arg(c, key, 40001), put_text(c, "v");
    for (i = 0; i < 11; i++) next_is(c, "+OK\r\n");
}

/* `head`, then `part` as often as fits into `bytes`, then `tail`. */
static void repeated(bytes *b, const char *head, const char *part, size_t bytes_wanted, const char *tail) {
    b->len = 0;
    bytes_put(b, head, strlen(head));
    while (b->len + strlen(part) <= bytes_wanted) bytes_put(b, part, strlen(part));
    bytes_put(b, tail, strlen(tail));
}

CLIENTS_TEST(no_pattern_of_scan_holds_up_the_server) {
    static const struct { const char *head, *part; size_t bytes; const char *tail; int matches;
    } cases[] = {
        {"*", "a", 32 << 10, "b", 1},        {"*", "?", 32 << 10, "b", 1},     {"*", "[ab]", 32 << 10, "c", 0},
        {"*", "[ab]", 32 << 10, "b", 1},     {"", "*a", 60 << 10, "*b", 1},    {"", "*a*", 60 << 10, "c", 0},
        {"*", "a?", 32 << 10, "b", 1},       {"*", "[^b]", 32 << 10, "b", 1},  {"", "*a?", 30 << 10, "b", 1},
        {"*", "\\a", 32 << 10, "\\b", 1},    {"*[^", "b", 32 << 10, "", 10},   {"*[", "b", 32 << 10, "]c", 0},
        {"*[", "z-b", 32 << 10, "]*c", 0},   {"*", "a", 32 << 10, "b*", 1},    {"*", "a", 30 << 10, "*b*a", 0},
        {"", "*aaaaaaaa", 40 << 10, "b", 1}, {"*", "*", 60 << 10, "ab", 1},    {"", "*a[^a]?", 32 << 10, "b", 0},
        {"*", "b", 32 << 10, "", 0},         {"*", "aaaaaaaaaaaaaaab", 32 << 10, "", 0}};
    long long bound, longest;
    server *s = small_server("", &bound);
    client *c;
    bytes p = {0};
    size_t i;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_keys_of_a(c);
    watch_begin(s, "SCANs with long patterns", bound, false);
    for (i = 0; i < sizeof cases / sizeof *cases && !c->late && !c->closed; i++) {
        int found = 0, watched = i == 10 ? 16 : 0; /* "[^bbb..." without its end matches the keys of the watch, too */
        repeated(&p, cases[i].head, cases[i].part, cases[i].bytes, cases[i].tail);
        longest = scan_matching(c, p.p, p.len, count_key, &found);
        if (longest < 0 || longest > 2000 * slowness())
            complain(__LINE__, "case %d, %s%s...%s: %lld ms; the limit is %d ms", (int)i, cases[i].head, cases[i].part,
                     cases[i].tail, longest, 2000 * slowness());
        if (longest >= 0 && found != cases[i].matches + watched)
            complain(__LINE__, "case %d, %s%s...%s: %d keys match, not %d", (int)i, cases[i].head, cases[i].part,
                     cases[i].tail, found, cases[i].matches + watched);
    }
    watch_end();
    bytes_free(&p);
}

CLIENTS_TEST(sigterm_ends_a_server_whose_clients_scan_with_long_patterns) {
    long long bound;
    server *s = small_server("", &bound);
    client *c, *d[8];
    bytes p = {0};
    uint64_t begin;
    int i, k;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_keys_of_a(c);
    repeated(&p, "*", "a", 32 << 10, "b");
    for (i = 0; i < 8; i++) {
        d[i] = client_open(s->port);
        for (k = 0; k < 100; k++)
            put_array(d[i], 6), put_text(d[i], "SCAN"), put_text(d[i], "0"), put_text(d[i], "MATCH"),
                put_arg(d[i], p.p, p.len), put_text(d[i], "COUNT"), put_text(d[i], "100000");
        client_io(d[i], 10);
    }
    bytes_free(&p);
    sleep_ms(50);
    begin = clock_ms();
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    if (clock_ms() - begin > (uint64_t)(5000 * slowness()))
        complain(__LINE__, "the server took %d ms to stop", (int)(clock_ms() - begin));
}

/* Each has answers that wait behind the value which it does not read. To hand over all of them takes longer than one
 * turn of the core, which at the end must not put it off to a next turn for ever. */
CLIENTS_TEST(sigterm_ends_a_server_whose_clients_do_not_read_their_mgets) {
    enum { MUTES = 200, VALUES = 128, VALUE_BYTES = 24 << 10 };
    char *value = pattern(VALUE_BYTES, test_seed), key[32];
    static int mutes[MUTES];
    server *s = server_start(data_dir(), "--cores 2 --memory 256M"); /* answers of the other core come later */
    client *c, empty = {0};
    int i, room = 4096;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (i = 0; i < VALUES; i++)
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "k%d", i)),
            put_arg(c, value, VALUE_BYTES);
    for (i = 0; i < VALUES; i++) next_is(c, "+OK\r\n");
    put_array(&empty, 8 * VALUES + 1), put_text(&empty, "MGET");
    for (i = 0; i < 8 * VALUES; i++) put_arg(&empty, key, (size_t)sprintf(key, "k%d", i % VALUES));
    for (i = 0; i < MUTES; i++) { /* 24 MiB each, of which the sockets take less than one */
        mutes[i] = raw_connect_with(s->port, room);
        if (mutes[i] >= 0) CHECK(send(mutes[i], empty.out.p, empty.out.len, MSG_NOSIGNAL) == (ssize_t)empty.out.len);
    }
    for (i = 0; i < 3; i++) says(c, "PING", "+PONG\r\n"), sleep_ms(50); /* all of them have stopped */
    CHECK(info(c, "used_memory_clients") > MUTES * (64LL << 10));
    CHECK_EQ(server_signal(s, SIGTERM), 0); /* it waits PATIENCE_MS at most */
    for (i = 0; i < MUTES; i++)
        if (mutes[i] >= 0) (void)close(mutes[i]);
    bytes_free(&empty.out);
    free(value);
}

/* What Redis' stringmatchlen does (util.c), as plain as can be. A class ends with ']' or the pattern, [3-1] is [1-3],
 * and a backslash at the very end is itself. */
static bool redis_glob(const char *p, const char *p_end, const char *t, const char *t_end) {
    if (p == p_end) return t == t_end;
    if (*p == '*')
        return redis_glob(p + 1, p_end, t, t_end) || (t < t_end && redis_glob(p, p_end, t + 1, t_end));
    if (t == t_end) return false;
    if (*p == '[') {
        bool negated = p + 1 < p_end && p[1] == '^', match = false;
        for (p += negated ? 2 : 1; p < p_end && *p != ']'; p++) {
            if (*p == '\\' && p_end - p >= 2) p++, match = match || *p == *t;
            else if (p_end - p >= 3 && p[1] == '-') {
                char from = p[0] < p[2] ? p[0] : p[2], to = p[0] < p[2] ? p[2] : p[0];
                match = match || (*t >= from && *t <= to);
                p += 2;
            } else match = match || *p == *t;
        }
        return match != negated && redis_glob(p < p_end ? p + 1 : p, p_end, t + 1, t_end);
    }
    if (*p == '\\' && p_end - p >= 2) p++;
    else if (*p == '?') return redis_glob(p + 1, p_end, t + 1, t_end);
    return *p == *t && redis_glob(p + 1, p_end, t + 1, t_end);
}

#define GLOB_KEYS 300
static struct glob_keys {
    char key[GLOB_KEYS][8];
    size_t bytes[GLOB_KEYS];
    int found[GLOB_KEYS], strange;
} globbed;

static void mark_key(void *ctx, const leaf *key) {
    int i;
    (void)ctx;
    for (i = 0; i < GLOB_KEYS; i++)
        if (globbed.bytes[i] == key->n && memcmp(globbed.key[i], key->p, key->n) == 0) {
            globbed.found[i]++;
            return;
        }
    globbed.strange++;
}

static size_t random_word(uint64_t *random, const char *letters, size_t most, char *to) {
    size_t n = test_random(random) % most + 1, i;
    for (i = 0; i < n; i++) to[i] = letters[test_random(random) % strlen(letters)];
    return n;
}

CLIENTS_TEST(scan_matches_patterns_as_redis_does) {
    static const char *const plain[] = {
        "*",     "a*",   "[a-c]", "[c-a]", "[^a]*",    "[]a]",  "[^]",  "[",       "[^",     "\\",
        "a\\",   "[a-",  "[a-]",  "[\\]]*", "[\\",     "[a\\-c]", "**a**", "?*?",  "*[ab",   "\\*",
        "[*]",   "[a-]c]", "*\\", "[^a-c]?", "[--a]*", "[\\a-c]"};
    client *c = shared_client();
    uint64_t random = test_seed * 1000003;
    int i, k, patterns = test_long ? 30000 : 3000, wrong = 0;
    memset(&globbed, 0, sizeof globbed);
    for (i = 0; i < GLOB_KEYS; i++) {
        do {
            globbed.bytes[i] = random_word(&random, i % 3 == 0 ? "abcd[]^-*?\\" : "abcd", i % 2 == 0 ? 4 : 7,
                                           globbed.key[i]);
            for (k = 0; k < i && !(globbed.bytes[k] == globbed.bytes[i] &&
                                   memcmp(globbed.key[k], globbed.key[i], globbed.bytes[i]) == 0);
                 k++) {}
        } while (k < i);
        put_array(c, 3), put_text(c, "SET"), put_arg(c, globbed.key[i], globbed.bytes[i]), put_text(c, "v");
    }
    for (i = 0; i < GLOB_KEYS; i++) next_is(c, "+OK\r\n");
    for (i = 0; i < patterns && wrong < 5; i++) {
        char p[16];
        size_t n = (size_t)i < sizeof plain / sizeof *plain ? strlen(plain[i])
                                                            : random_word(&random, "aabbcd**?[[]^--\\", 8, p);
        if ((size_t)i < sizeof plain / sizeof *plain) memcpy(p, plain[i], n);
        memset(globbed.found, 0, sizeof globbed.found);
        if (scan_matching(c, p, n, mark_key, NULL) < 0) {
            complain(__LINE__, "SCAN is not answered");
            break;
        }
        for (k = 0; k < GLOB_KEYS; k++) {
            bool want = redis_glob(p, p + n, globbed.key[k], globbed.key[k] + globbed.bytes[k]);
            if (want == (globbed.found[k] > 0)) continue;
            complain(__LINE__, "pattern %d, \"%.*s\": it %s \"%.*s\"; in Redis it %s", i, (int)n, p,
                     want ? "does not match" : "matches", (int)globbed.bytes[k], globbed.key[k],
                     want ? "does" : "does not");
            wrong++;
            break;
        }
    }
    CHECK_EQ(globbed.strange, 0);
}

/* ===================================================================================================================
 * CONNECTIONS: descriptors, timeouts, keepalive, clients that come and go
 * ================================================================================================================ */

static void sixty_four_descriptors(void) {
    struct rlimit l;
    l.rlim_cur = l.rlim_max = 64;
    (void)setrlimit(RLIMIT_NOFILE, &l);
}

/* Sends PING on all that have not been answered yet; how many of them are, within `ms`. */
static int served_within(client **all, bool *served, int n, unsigned ms) {
    uint64_t until = clock_ms() + ms;
    int i, newly = 0;
    do {
        for (i = 0; i < n; i++) {
            if (served[i] || all[i]->closed) continue;
            client_io(all[i], 0);
            if (all[i]->in.len >= 7 && memcmp(all[i]->in.p, "+PONG\r\n", 7) == 0) served[i] = true, newly++;
        }
        sleep_ms(5);
    } while (clock_ms() < until);
    return newly;
}

CLIENTS_TEST(without_descriptors_the_server_says_so_once_waits_and_goes_on_writing) {
    enum { CLIENTS = 100 };
    static client *all[CLIENTS];
    static bool served[CLIENTS];
    char *value = pattern(MIB, test_seed), *text;
    server *s;
    size_t said;
    long long cpu;
    int i, in, later, left = 0, first = -1;
    before_exec = sixty_four_descriptors;
    s = server_start(data_dir(), "--cores 2 --memory 64M");
    REQUIRE(s != NULL);
    text = server_errors(s);
    said = strlen(text);
    free(text);
    memset(served, 0, sizeof served);
    for (i = 0; i < CLIENTS; i++) {
        all[i] = client_open(s->port);
        bytes_put(&all[i]->out, "PING\r\n", 6);
    }
    in = served_within(all, served, CLIENTS, (unsigned)(300 * slowness()));
    fprintf(stderr, "note: with 64 descriptors %d of %d clients are served\n", in, CLIENTS);
    CHECK(in >= 5 && in < 64);
    cpu = cpu_ms(s->pid);
    sleep_ms(2000);
    cpu = cpu_ms(s->pid) - cpu;
    if (cpu > (sanitized() ? 1000 : 500)) complain(__LINE__, "waiting for 2 s took %lld ms of CPU", cpu);
    for (i = 0; i < CLIENTS && first < 0; i++)
        if (served[i]) first = i;
    REQUIRE(first >= 0);
    next_is(all[first], "+PONG\r\n");
    for (i = 0; i < 240; i++) { /* the logs go on in new files of 64 MiB, one of them at least twice */
        char key[16];
        put_array(all[first], 3), put_text(all[first], "SET"),
            put_arg(all[first], key, (size_t)sprintf(key, "k%d", i % 16)), put_arg(all[first], value, MIB);
        next_is(all[first], "+OK\r\n");
        if (failures() > 0) break;
    }
    says(all[first], "SAVE", "+OK\r\n");
    text = server_errors(s);
    if (lines_with(text + said, "descriptor") != 1)
        complain(__LINE__, "there should be one line about descriptors on stderr: \"%.600s\"", text + said);
    free(text);
    for (i = 0; i < CLIENTS; i++)
        if (served[i] && i != first) client_hang_up(all[i]), left++;
    later = served_within(all, served, CLIENTS, (unsigned)(500 * slowness()));
    if (later < (CLIENTS - in < left ? CLIENTS - in : left) - 2)
        complain(__LINE__, "%d clients have left, %d were waiting, and %d of them are served now", left, CLIENTS - in,
                 later);
    says(all[first], "SET small value", "+OK\r\n");
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    before_exec = NULL;
    s = server_start(data_dir(), "--cores 2 --memory 64M");
    REQUIRE(s != NULL);
    says(client_open(s->port), "MGET small nothing", "*2\r\n$5\r\nvalue\r\n$-1\r\n");
    free(value);
}

/* The timer of the server's side of a connection, from /proc/net/tcp: 1 it sends again, 2 keepalive, 0 none. -1: not
 * found. `after_s`: in how many seconds. */
static int timer_of(int server_port, int client_port, long *after_s) {
    char line[512];
    int timer = -1;
    FILE *f = fopen("/proc/net/tcp", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        unsigned local, remote, state, kind;
        unsigned long when;
        if (sscanf(line, " %*d: %*8x:%x %*8x:%x %x %*x:%*x %x:%lx", &local, &remote, &state, &kind, &when) == 5 &&
            local == (unsigned)server_port && remote == (unsigned)client_port && state == 1) {
            timer = (int)kind;
            *after_s = (long)when / sysconf(_SC_CLK_TCK);
        }
    }
    if (f != NULL) (void)fclose(f);
    return timer;
}

CLIENTS_TEST(a_client_that_vanishes_is_noticed_by_tcp_keepalive) {
    int i;
    (void)shared_client();
    for (i = 0; i < 2; i++) { /* one for each core */
        client *c = client_open(shared.port);
        struct sockaddr_in a;
        socklen_t length = sizeof a;
        uint64_t until = clock_ms() + 3000;
        long after_s = 0;
        int timer;
        says(c, "PING", "+PONG\r\n");
        REQUIRE(getsockname(c->fd, (struct sockaddr *)&a, &length) == 0);
        do {
            timer = timer_of(shared.port, ntohs(a.sin_port), &after_s);
            if (timer != 2) sleep_ms(20);
        } while (timer != 2 && clock_ms() < until);
        CHECK_EQ(timer, 2);
        CHECK(after_s <= 600); /* not the two hours that are Linux' default */
    }
}

/* Reads until the connection is closed or `ms` have passed. */
static bool closes_within(client *c, unsigned ms) {
    uint64_t until = clock_ms() + ms;
    while (!c->closed && clock_ms() < until) client_io(c, 20);
    return c->closed;
}

CLIENTS_TEST(idle_clients_are_closed_after_the_timeout_and_busy_ones_are_not) {
    const size_t size = 4 * MIB;
    char *value = pattern(size, test_seed), head[32], path[PATH_BYTES];
    client *idle, *half, *busy, *never, *fixed, *other, *waits, empty = {0};
    bytes request = {0};
    server *s, *t;
    reader slow;
    uint64_t begin;
    int i;
    s = server_start(data_dir(), "--cores 2 --timeout 1");
    (void)snprintf(path, sizeof path, "%s/other", test_dir());
    t = server_start(path, "--cores 2");
    REQUIRE(s != NULL && t != NULL);
    never = shared_client(); /* without --timeout nobody is closed */
    fixed = client_open(t->port), other = client_open(t->port);
    says(other, "CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$1\r\n0\r\n");
    says(other, "CONFIG SET timeout 1", "+OK\r\n");
    says(other, "CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$1\r\n1\r\n");
    busy = client_open(s->port);
    says(busy, "CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$1\r\n1\r\n");
    begins(busy, "CONFIG SET timeout abc", "-ERR");
    begins(busy, "CONFIG SET timeout -1", "-ERR");
    put_array(busy, 3), put_text(busy, "SET"), put_text(busy, "k"), put_arg(busy, value, size);
    next_is(busy, "+OK\r\n");
    idle = client_open(s->port);
    says(idle, "PING", "+PONG\r\n");
    half = client_open(s->port);
    bytes_put(&half->out, "*3\r\n$3\r\nSET\r\n$1\r\n", 17);
    client_flush(half);
    put_array(&empty, 5), put_text(&empty, "MGET"), put_text(&empty, "k"), put_text(&empty, "k"),
        put_text(&empty, "k"), put_text(&empty, "k");
    request_of(&request, &empty, 1);
    reader_open_with(&slow, s->port, &request, 128 << 10); /* 16 MiB in pieces of 128 KiB: 2.5 s for one command */
    slow.piece = 128 << 10, slow.pause_us = 20000;
    (void)reader_send(&slow);
    begin = clock_ms();
    (void)reader_is(__LINE__, &slow, "a slow reader", "*4\r\n", 4);
    (void)sprintf(head, "$%zu\r\n", size);
    for (i = 0; i < 4 && !slow.broken; i++) {
        size_t at;
        (void)reader_is(__LINE__, &slow, "a slow reader", head, strlen(head));
        for (at = 0; at < size && !slow.broken; at += 64 << 10) {
            (void)reader_is(__LINE__, &slow, "a slow reader", value + at, 64 << 10);
            if (at % (512 << 10) == 0) says(busy, "PING", "+PONG\r\n");
        }
        (void)reader_is(__LINE__, &slow, "a slow reader", "\r\n", 2);
        if (i == 0 && clock_ms() - begin < 950) CHECK(!closes_within(idle, 1)); /* not before its time */
    }
    CHECK(clock_ms() - begin > 1500);
    if (clock_ms() - begin < 4000) CHECK(closes_within(idle, (unsigned)(4000 - (clock_ms() - begin))));
    CHECK(closes_within(idle, 1));
    CHECK(closes_within(half, 1000));
    CHECK(closes_within(fixed, 1000));
    CHECK(!closes_within(never, 1));
    /* a client whose command waits in the socket has not been idle, however long the server was away */
    waits = client_open(s->port);
    says(waits, "PING", "+PONG\r\n");
    (void)kill(s->pid, SIGSTOP);
    put_line(waits, "GET nothing");
    client_flush(waits);
    sleep_ms(1500);
    (void)kill(s->pid, SIGCONT);
    next_is(waits, "$-1\r\n");
    reader_close(&slow, false);
    bytes_free(&request), bytes_free(&empty.out);
    free(value);
}

/* A client that comes, sends something, and goes in one of several ways a little later. */
typedef struct visitor {
    int fd, way;
} visitor;
static bytes visit_reads, visit_writes, visit_large, visit_answers;

static void visitor_comes(visitor *v, int port, int number) {
    v->way = number % 100 == 0 ? 6 + number % 200 / 100 : number % 6;
    v->fd = raw_connect(port);
    if (v->fd < 0) return;
    if (v->way == 1 || v->way == 5) (void)send(v->fd, visit_writes.p, visit_writes.len, MSG_NOSIGNAL);
    if (v->way == 3 || v->way == 5) (void)send(v->fd, visit_reads.p, visit_reads.len, MSG_NOSIGNAL);
    if (v->way == 2) (void)send(v->fd, visit_reads.p, visit_reads.len - 7, MSG_NOSIGNAL); /* the last is not whole */
    if (v->way == 4) (void)send(v->fd, visit_writes.p, 20, MSG_NOSIGNAL); /* half a command */
    if (v->way >= 6) (void)send(v->fd, visit_large.p, visit_large.len, MSG_NOSIGNAL);
    if (v->way == 3 || v->way == 4 || v->way == 7) (void)shutdown(v->fd, SHUT_WR); /* that was all */
    if (v->way == 0 || (v->way == 1 && number % 4 == 1)) raw_reset(v->fd), v->fd = -1; /* at once */
}

static void visitor_goes(visitor *v) {
    static char room[128 << 10];
    int i;
    if (v->fd < 0) return;
    if (v->way == 3) raw_is(__LINE__, v->fd, visit_answers.p, visit_answers.len);
    if ((v->way == 3 || v->way == 4) && recv(v->fd, room, 1, 0) != 0)
        complain(__LINE__, "a connection that sends nothing more and has been served is not closed");
    for (i = 0; v->way >= 6 && i < 4; i++) /* a little of 64 MiB of replies */
        if (recv(v->fd, room, sizeof room, 0) <= 0) complain(__LINE__, "no reply");
    if (v->way == 2 || v->way == 3 || v->way == 5) (void)close(v->fd);
    else raw_reset(v->fd);
    v->fd = -1;
}

CLIENTS_TEST(clients_that_come_and_go_in_every_way_leave_nothing_behind) {
    enum { AT_ONCE = 32 };
    visitor visitors[AT_ONCE];
    int rounds = less(12000), i;
    char *value = pattern(MIB, test_seed);
    long long bound, before;
    server *s = small_server("", &bound);
    client *c, empty = {0};
    REQUIRE(s != NULL);
    c = client_open(s->port);
    put_array(c, 3), put_text(c, "SET"), put_text(c, "large"), put_arg(c, value, MIB);
    next_is(c, "+OK\r\n");
    for (i = 0; i < 16; i++) { /* whatever is done of these, the data is the same */
        putf(&empty, "SET k%d 0123456789", i);
        putf(&empty, "MSET k%d 0123456789 k%d 0123456789", i, (i + 1) % 16);
        putf(&empty, "DEL nothing%d nothing", i);
        putf(&empty, "VADD v VALUES 2 1 %d e%d", i, i);
    }
    request_of(&visit_writes, &empty, 1);
    empty.out.len = 0;
    for (i = 0; i < 16; i++) {
        putf(&empty, "GET k%d", i);
        bytes_put(&visit_answers, "$10\r\n0123456789\r\n", 17);
    }
    request_of(&visit_reads, &empty, 1);
    empty.out.len = 0;
    put_line(&empty, "GET large");
    request_of(&visit_large, &empty, 64);
    bytes_put(&c->out, visit_writes.p, visit_writes.len);
    for (i = 0; i < 64; i++) CHECK(*reply(c) != '-');
    says(c, "VCARD v", ":16\r\n");
    before = info(c, "used_memory");
    watch_begin(s, "12,000 clients that come and go", bound, false);
    for (i = 0; i < AT_ONCE; i++) visitors[i].fd = -1;
    for (i = 0; i < rounds && failures() == 0; i++) {
        visitor_goes(&visitors[i % AT_ONCE]);
        visitor_comes(&visitors[i % AT_ONCE], s->port, i);
    }
    for (i = 0; i < AT_ONCE; i++) visitor_goes(&visitors[i]);
    watch_end();
    CHECK(info_reaches(c, "connected_clients", false, 1));
    CHECK(info_reaches(c, "used_memory", false, before + MIB));
    CHECK(info(c, "used_memory") >= before - MIB);
    says(c, "GET k7", "$10\r\n0123456789\r\n");
    says(c, "SET k7 9876543210", "+OK\r\n");
    says(c, "VCARD v", ":16\r\n");
    bytes_free(&visit_reads), bytes_free(&visit_writes), bytes_free(&visit_large), bytes_free(&visit_answers);
    bytes_free(&empty.out);
    free(value);
}

/* ===================================================================================================================
 * ANSWERS: SELECT, CLUSTER, AUTH, refused options
 * ================================================================================================================ */

CLIENTS_TEST(after_a_refused_select_everything_is_refused_until_select_0) {
    static const char *const refused[] = {"SET k w",   "GET k",   "DEL k",    "MGET k k", "EXISTS k", "INCR n",
                                          "FLUSHALL",  "DBSIZE",  "SCAN 0",   "TTL k",    "TYPE k",   "EXPIRE k 100",
                                          "MSET k w",  "FLUSHDB", "VCARD v",  "VADD v VALUES 2 1 0 f",
                                          "VEMB v e",  "VSIM v VALUES 2 1 0", "VREM v e"};
    static const char *const wrong[] = {"SELECT 1", "SELECT abc", "SELECT -1", "SELECT 99999999999999999999"};
    client *c = shared_client(), *other = client_open(shared.port);
    size_t i, k;
    says(c, "SET k v", "+OK\r\n");
    says(c, "VADD v VALUES 2 1 0 e", ":1\r\n");
    for (i = 0; i < sizeof wrong / sizeof *wrong && failures() < 5; i++) {
        begins(c, wrong[i], i % 2 == 1 ? "-ERR value is not an integer" : "-ERR DB index is out of range");
        for (k = 0; k < sizeof refused / sizeof *refused; k++) begins(c, refused[k], "-");
        says(c, "PING", "+PONG\r\n");
        says(c, "ECHO here", "$4\r\nhere\r\n");
        says(other, "GET k", "$1\r\nv\r\n"); /* other connections are not affected, and nothing was changed */
        says(other, "DBSIZE", ":2\r\n");
        says(other, "VCARD v", ":1\r\n");
        says(c, "SELECT 0", "+OK\r\n");
        says(c, "GET k", "$1\r\nv\r\n");
    }
    putf(c, "SET a 1"), putf(c, "SELECT 7"), putf(c, "SET a 2"); /* the same in one write */
    putf(c, "INCR a"), putf(c, "SELECT 0"), putf(c, "GET a");
    next_is(c, "+OK\r\n");
    CHECK(*reply(c) == '-');
    CHECK(*reply(c) == '-');
    CHECK(*reply(c) == '-');
    next_is(c, "+OK\r\n");
    next_is(c, "$1\r\n1\r\n");
    begins(c, "SELECT 1", "-");
    says(c, "QUIT", "+OK\r\n");
}

/* CRC16/XMODEM, bit by bit, of the key or of what stands in its first braces. */
static int slot_of(const char *key, size_t n) {
    size_t i, open, close_at;
    unsigned crc = 0;
    for (open = 0; open < n && key[open] != '{'; open++) {}
    for (close_at = open; close_at < n && key[close_at] != '}'; close_at++) {}
    if (open < n && close_at < n && close_at > open + 1) key += open + 1, n = close_at - open - 1;
    for (i = 0; i < n; i++) {
        int bit;
        crc ^= (unsigned)(unsigned char)key[i] << 8;
        for (bit = 0; bit < 8; bit++) crc = ((crc & 0x8000) != 0 ? crc << 1 ^ 0x1021 : crc << 1) & 0xffff;
    }
    return (int)(crc % 16384);
}

CLIENTS_TEST(cluster_keyslot_is_the_slot_of_redis) {
    client *c = shared_client();
    uint64_t random = test_seed;
    char key[40], want[32];
    int i;
    says(c, "CLUSTER KEYSLOT 123456789", ":12739\r\n");
    says(c, "cluster keyslot foo", ":12182\r\n");
    CHECK_EQ(number(c, "CLUSTER KEYSLOT {user1000}.following"), number(c, "CLUSTER KEYSLOT {user1000}.followers"));
    CHECK_EQ(number(c, "CLUSTER KEYSLOT {user1000}.following"), slot_of("user1000", 8));
    CHECK_EQ(number(c, "CLUSTER KEYSLOT foo{}{bar}"), slot_of("foo{}{bar}", 10));
    CHECK(slot_of("foo{}{bar}", 10) != slot_of("bar", 3));
    CHECK_EQ(number(c, "CLUSTER KEYSLOT foo{{bar}}zap"), slot_of("{bar", 4));
    CHECK_EQ(number(c, "CLUSTER KEYSLOT foo{bar}{zap}"), slot_of("bar", 3));
    says(c, "CLUSTER KEYSLOT \"\"", ":0\r\n");
    begins(c, "CLUSTER KEYSLOT", "-ERR");
    begins(c, "CLUSTER KEYSLOT a b", "-ERR");
    begins(c, "CLUSTER NONSENSE", "-ERR");
    begins(c, "CLUSTER", "-ERR wrong number of arguments for 'cluster' command");
    for (i = 0; i < 1000 && failures() < 5; i++) {
        size_t n = random_word(&random, "{{}}abc\x01\xff", sizeof key - 1, key);
        put_array(c, 3), put_text(c, "CLUSTER"), put_text(c, "KEYSLOT"), put_arg(c, key, n);
        check_reply(__LINE__, c, "CLUSTER KEYSLOT", want, (size_t)sprintf(want, ":%d\r\n", slot_of(key, n)));
    }
}

/* A server with these options must not start: it says why on stderr, and ends with an error. */
static void must_not_start(int line, const char *options, const char *why) {
    server s;
    uint64_t until = clock_ms() + PATIENCE_MS;
    int status = 0;
    char *text;
    server_launch(&s, test_dir(), data_dir(), options);
    while (waitpid(s.pid, &status, WNOHANG) == 0) {
        struct pollfd p = {s.out, POLLIN, 0};
        if (poll(&p, 1, 10) > 0 && (p.revents & POLLIN) != 0) {
            complain(line, "the server starts with %s", options);
            (void)server_signal(&s, SIGKILL);
            return;
        }
        if (clock_ms() > until) {
            complain(line, "the server with %s neither starts nor ends", options);
            (void)server_signal(&s, SIGKILL);
            return;
        }
    }
    server_over(&s, status);
    text = server_errors(&s);
    if (!WIFEXITED(status) || WEXITSTATUS(status) == 0)
        complain(line, "%s: wait status %#x", options, (unsigned)status);
    if (strstr(text, why) == NULL) complain(line, "%s: \"%.500s\" does not contain \"%s\"", options, text, why);
    free(text);
}

CLIENTS_TEST(another_address_than_loopback_needs_a_password_or_protected_mode_no) {
    static const char *const open[] = {"--cores 1 --bind 0.0.0.0 --requirepass secret",
                                       "--cores 1 --bind 0.0.0.0 --protected-mode no",
                                       "--cores 1 --bind 127.0.0.1", "--cores 1 --bind 127.0.0.2"};
    size_t i;
    must_not_start(__LINE__, "--cores 1 --bind 0.0.0.0", "--requirepass");
    must_not_start(__LINE__, "--cores 1 --bind 0.0.0.0 --protected-mode yes", "--requirepass");
    must_not_start(__LINE__, "--cores 1 --bind 0.0.0.0 --protected-mode maybe", "--protected-mode");
    must_not_start(__LINE__, "--cores 1 --protected-mode", "--protected-mode");
    CHECK(access(data_dir(), F_OK) != 0); /* nothing has been made */
    for (i = 0; i < sizeof open / sizeof *open; i++) {
        server *s = server_start(data_dir(), open[i]);
        if (s == NULL) continue;
        if (strstr(open[i], "127.0.0.2") == NULL) {
            client *c = client_open(s->port);
            if (i == 0) says(c, "GET k", "-NOAUTH Authentication required.\r\n");
            else says(c, "SET k v", "+OK\r\n");
        }
        CHECK_EQ(server_signal(s, SIGTERM), 0);
    }
}

CLIENTS_TEST(a_password_is_asked_for_as_in_redis) {
    static const char no[] = "-NOAUTH Authentication required.\r\n";
    server *s = server_start(data_dir(), "--cores 2 --requirepass secret");
    client *c, *d;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    says(c, "GET k", no);
    says(c, "SET k v", no);
    says(c, "PING", no);
    says(c, "INFO", no);
    says(c, "SHUTDOWN", no);
    says(c, "CONFIG SET timeout 1", no);
    begins(c, "HELLO 3", "-NOAUTH");
    begins(c, "AUTH wrong", "-WRONGPASS");
    begins(c, "AUTH secre", "-WRONGPASS");
    begins(c, "AUTH secrets", "-WRONGPASS");
    begins(c, "AUTH \"secret\\x00\"", "-WRONGPASS");
    begins(c, "AUTH \"\"", "-WRONGPASS");
    begins(c, "AUTH somebody secret", "-WRONGPASS");
    begins(c, "AUTH default wrong", "-WRONGPASS");
    begins(c, "HELLO 3 AUTH default wrong", "-WRONGPASS");
    begins(c, "AUTH", "-ERR wrong number of arguments for 'auth' command");
    begins(c, "AUTH a b c", "-ERR");
    says(c, "GET k", no); /* no failure authenticates a client */
    says(c, "AUTH secret", "+OK\r\n");
    says(c, "GET k", "$-1\r\n");
    says(c, "SET k v", "+OK\r\n");
    begins(c, "AUTH wrong", "-WRONGPASS"); /* as in Redis, an authenticated client stays so */
    says(c, "GET k", "$1\r\nv\r\n");
    d = client_open(s->port); /* each connection has its own */
    says(d, "GET k", no);
    says(d, "AUTH default secret", "+OK\r\n");
    says(d, "GET k", "$1\r\nv\r\n");
    d = client_open(s->port);
    begins(d, "HELLO 3 AUTH default secret SETNAME me", "%7\r\n");
    says(d, "CLIENT GETNAME", "$2\r\nme\r\n");
    says(d, "GET nothing", "_\r\n");
    d = client_open(s->port); /* in one write */
    putf(d, "SET k w"), putf(d, "AUTH secret"), putf(d, "GET k");
    next_is(d, no), next_is(d, "+OK\r\n"), next_is(d, "$1\r\nv\r\n");
    d = client_open(s->port);
    says(d, "QUIT", "+OK\r\n");
    CHECK(strcmp(reply(d), "(closed)") == 0);
    begins(shared_client(), "AUTH secret", "-ERR"); /* where there is no password */
    {
        char *text = server_errors(s);
        CHECK(strstr(text, "secret") == NULL);
        free(text);
    }
}

/* ===================================================================================================================
 * END: the shared server stops in order
 * ================================================================================================================ */

TEST(the_server_that_all_tests_shared_stops_in_order_at_the_end) {
    if (shared.pid == 0) return;
    CHECK_EQ(server_signal(&shared, SIGTERM), 0);
}

int main(int argc, char **argv) {
    (void)signal(SIGPIPE, SIG_IGN);
    (void)atexit(end_shared);
    return test_main("nodedb_clients", argc, argv);
}
