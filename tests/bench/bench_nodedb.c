/* The database over its socket: durable writes, reads, vectors and recovery, beside the device's limit and Redis.
 *     bench_nodedb [--quick] [--only keys|memory|sets] [--keys N] [--server PATH] [--data DIR] [--dir DIR]
 *         server build/nodedb, data tests/data, files in DIR/bench_nodedb (default build/tmp), removed at the end
 * limit/commit                 one durable 4 KiB write at a time: O_DIRECT pwrite and fdatasync in a zero-filled file
 * set/clients=N[/pipeline=P]   SET of 128-byte values, random keys; N connections, P commands in flight on each
 * get/...                      GET of keys that exist
 * redis/set/..., redis/get/... the same against redis-server --appendonly yes --appendfsync always --save ""
 * redis-noaof/get/...          against redis-server --appendonly no --save ""
 * vadd                         10,000 vectors of 128 dimensions, 4 connections, 32 in flight on each, every one durable
 * vsim/clients=N               their queries, 10 neighbours, default EF, one in flight on each connection
 * recovery                     from the start of the server's process until it is ready, after SIGKILL
 * Rounds alternate between limit, server and Redis; a row is the median of its rounds. `of_limit` is the median of the
 * rounds' ratios of set/clients=1 to limit/commit. The clients are one thread with epoll, as in redis-benchmark: beside
 * a server whose cores take all CPUs it is a neighbour that they must share a CPU with.
 *
 * These run alone, with --only, once and not in rounds; --quick has what is short of them, and 200,000 keys:
 * keys/n=N                     N keys (--keys, 10,000,000) of 16 bytes with values of 32 go into an empty server, over
 *                              one connection with 256 in flight, --durability interval. A gap is the time between two
 *                              reads of the client that bring replies: a stall of the server, or of the client if it
 *                              has no CPU. bytes_per_key: VmRSS after and before, 0.3 s after the last reply
 * redis/keys/n=N               the same against redis-server --appendonly yes --appendfsync everysec --save ""
 * memory/KIND                  --memory 64M --cores 2 --durability interval, a new server for each KIND:
 *     value=B                  keys of 16 bytes, values of B, until these are 5 x 64 MiB (--quick: 2) or one is refused
 *     restart                  the server of value=256B, killed and started again
 *     vectors                  elements of 128 floats in one set, until one is refused
 *     sets                     10,000 sets of one element of 16 floats
 *     unread                   40 connections ask for 256 x 1 MiB each, and read nothing
 *     unfinished               30 connections send a SET of 8 MiB without its last byte
 *                              rss_peak_mib is VmHWM; bound_mib 1.1 x (64 + used_memory_base), of_bound their ratio;
 *                              stored: keys, elements, sets, or connections that the server has kept
 * sets/n=N                     sets of 3 elements of 16 floats, --cores 2: used_memory and VmRSS, after and before */
#define _GNU_SOURCE
#include "bench.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    VALUE_BYTES = 128, BLOCK_BYTES = 4096, LIMIT_BYTES = 16 << 20, CLIENTS_MAX = 50, PIPELINE_MAX = 32,
    OUT_BYTES = 65536, IN_BYTES = 65536, DIM_MAX = 384, /* PIPELINE_MAX vectors fit into OUT_BYTES */
    SAMPLES_MAX = 1 << 21, ROUNDS_MAX = 9, NEIGHBOURS = 10, PATH_BYTES = 1024, TIMEOUT_MS = 60000,
    SMALL_SETS = 5000, FLOW_BYTES = 65536, FLOW_PIPELINE = 256, SETTLE_US = 300000, MIB = 1 << 20
};

typedef struct result {
    double rate, p50_us, p99_us;
} result;

static double samples[SAMPLES_MAX];
static size_t sample_count;
static const char *server_path, *data_dir, *top;
static char dir[PATH_BYTES], limit_path[PATH_BYTES];
static uint64_t round_ns;
static uint32_t key_count;

/* ---- processes --------------------------------------------------------------------------------------------------- */

/* A server that was started: killed at exit, and by the kernel if this process dies otherwise. */
typedef struct process {
    pid_t pid;
    int port, out;
} process;

static process nodedb, redis, redis_noaof;

static int remove_visited(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static void process_kill(process *p) {
    if (p->pid == 0) return;
    (void)kill(p->pid, SIGKILL);
    (void)waitpid(p->pid, NULL, 0);
    (void)close(p->out);
    p->pid = 0;
}

static void clean_up(void) {
    process_kill(&nodedb);
    process_kill(&redis);
    process_kill(&redis_noaof);
    (void)nftw(dir, remove_visited, 16, FTW_DEPTH | FTW_PHYS);
}

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("bench_nodedb: ", stderr);
    (void)vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void process_start(process *p, char *const argv[]) {
    pid_t parent = getpid();
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0) die("cannot make a pipe: %s", strerror(errno));
    p->pid = fork();
    if (p->pid < 0) die("cannot start a process: %s", strerror(errno));
    if (p->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        (void)dup2(out[1], STDOUT_FILENO);
        execvp(argv[0], argv);
        _exit(127);
    }
    (void)close(out[1]);
    p->out = out[0];
}

/* `options`: beside the port and the directory, with a NULL at the end. */
static void nodedb_start_with(const char *const *options) {
    char data[PATH_BYTES + 16], line[1024], *port;
    char *argv[16] = {NULL, (char *)"--port", (char *)"0", (char *)"--dir", NULL, NULL};
    struct pollfd wait;
    ssize_t n;
    int i;
    (void)snprintf(data, sizeof data, "%s/data", dir);
    argv[0] = (char *)(uintptr_t)server_path, argv[4] = data;
    for (i = 0; options[i] != NULL; i++) argv[5 + i] = (char *)(uintptr_t)options[i];
    process_start(&nodedb, argv);
    wait.fd = nodedb.out, wait.events = POLLIN;
    if (poll(&wait, 1, TIMEOUT_MS) != 1 || (n = read(nodedb.out, line, sizeof line - 1)) <= 0)
        die("%s does not start", server_path);
    line[n] = 0;
    port = strstr(line, " is ready on ");
    port = port != NULL ? strchr(port, ':') : NULL;
    if (port == NULL) die("%s does not say on which port it is ready: %s", server_path, line);
    nodedb.port = atoi(port + 1);
}

static void nodedb_start(void) {
    static const char *const none[] = {NULL};
    nodedb_start_with(none);
}

/* With an empty data directory. */
static void nodedb_start_anew(const char *const *options) {
    char data[PATH_BYTES + 16];
    process_kill(&nodedb);
    (void)snprintf(data, sizeof data, "%s/data", dir);
    (void)nftw(data, remove_visited, 16, FTW_DEPTH | FTW_PHYS);
    nodedb_start_with(options);
}

/* A field of /proc/PID/status in bytes: VmRSS, VmHWM. */
static double process_bytes(const process *p, const char *field) {
    char path[64], line[256];
    double kib = 0;
    FILE *f;
    (void)snprintf(path, sizeof path, "/proc/%ld/status", (long)p->pid);
    f = fopen(path, "re");
    if (f == NULL) die("cannot open %s: the server is gone", path);
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':')
            kib = strtod(line + strlen(field) + 1, NULL);
    (void)fclose(f);
    if (kib == 0) die("no %s in %s: the server is gone", field, path);
    return kib * 1024;
}

static int connect_to(int port) {
    struct sockaddr_in to;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET, to.sin_port = htons((uint16_t)port), to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        (void)close(fd);
        return -1;
    }
    if (fd >= 0) (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* A port that was free a moment ago. */
static int free_port(void) {
    struct sockaddr_in a;
    socklen_t length = sizeof a;
    int port = 0, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET, a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&a, length) == 0 && getsockname(fd, (struct sockaddr *)&a, &length) == 0)
        port = ntohs(a.sin_port);
    if (fd >= 0) (void)close(fd);
    return port;
}

/* False if there is no redis-server. `fsync`: always, everysec, or NULL for no append-only file. */
static bool redis_start(process *p, const char *name, const char *fsync) {
    char where[PATH_BYTES + 32], port[16];
    char *argv[] = {(char *)"redis-server", (char *)"--port", NULL, (char *)"--bind", (char *)"127.0.0.1",
                    (char *)"--dir", NULL, (char *)"--save", (char *)"", (char *)"--appendonly", NULL,
                    (char *)"--appendfsync", NULL, NULL};
    int tries;
    (void)snprintf(where, sizeof where, "%s/%s", dir, name);
    if (mkdir(where, 0755) != 0) die("cannot make %s: %s", where, strerror(errno));
    p->port = free_port();
    (void)snprintf(port, sizeof port, "%d", p->port);
    argv[2] = port, argv[6] = where, argv[10] = (char *)(uintptr_t)(fsync != NULL ? "yes" : "no");
    argv[12] = (char *)(uintptr_t)(fsync != NULL ? fsync : "always");
    process_start(p, argv);
    for (tries = 0; tries < 500; tries++) {
        int fd = connect_to(p->port);
        if (fd >= 0) {
            (void)close(fd);
            return true;
        }
        if (waitpid(p->pid, NULL, WNOHANG) == p->pid) break;
        (void)usleep(10000);
    }
    p->pid = 0;
    (void)close(p->out);
    return false;
}

/* ---- load: connections that keep so many commands in flight ------------------------------------------------------ */

typedef struct load load;

typedef struct connection {
    int fd;
    uint32_t in_flight, first; /* asked[first ...]: when the commands in flight were sent, and their numbers */
    size_t out_bytes, in_at, in_bytes;
    uint64_t asked_ns[PIPELINE_MAX], number[PIPELINE_MAX];
    char out[OUT_BYTES], in[IN_BYTES];
} connection;

struct load {
    size_t (*command)(uint64_t number, char *out); /* writes the command; returns its bytes */
    void (*reply)(uint64_t number, const char *reply, size_t bytes);
    uint32_t clients, pipeline;
    uint64_t total; /* commands; 0: until round_ns is over */
};

static size_t put_argument(char *out, const void *p, size_t bytes) {
    size_t n = (size_t)sprintf(out, "$%zu\r\n", bytes);
    memcpy(out + n, p, bytes);
    memcpy(out + n + bytes, "\r\n", 2);
    return n + bytes + 2;
}

/* Bytes of the reply at p, 0 if it is not all there. */
static size_t reply_bytes(const char *p, size_t bytes) {
    const char *end = (const char *)memchr(p, '\n', bytes);
    size_t n;
    long number;
    if (end == NULL) return 0;
    n = (size_t)(end - p) + 1;
    if (*p == '-') die("the server answers with an error: %.*s", (int)n - 2, p);
    number = *p == '$' || *p == '*' ? strtol(p + 1, NULL, 10) : 0;
    if (*p == '$' && number >= 0) return n + (size_t)number + 2 <= bytes ? n + (size_t)number + 2 : 0;
    for (; *p == '*' && number > 0; number--) {
        size_t member = reply_bytes(p + n, bytes - n);
        if (member == 0) return 0;
        n += member;
    }
    return n;
}

/* Fills up what may be in flight, and sends it. That fits into the socket's buffers, so this does not block. */
static void ask(const load *l, connection *c, uint64_t *next) {
    uint64_t now = bench_now_ns();
    while (c->in_flight < l->pipeline && (l->total == 0 || *next < l->total)) {
        uint32_t at = (c->first + c->in_flight++) % PIPELINE_MAX;
        c->asked_ns[at] = now;
        c->number[at] = (*next)++;
        c->out_bytes += l->command(c->number[at], c->out + c->out_bytes);
    }
    if (c->out_bytes > 0 && send(c->fd, c->out, c->out_bytes, MSG_NOSIGNAL) != (ssize_t)c->out_bytes)
        die("cannot send: %s", strerror(errno));
    c->out_bytes = 0;
}

/* Takes the replies that have come; returns how many. */
static uint64_t hear(const load *l, connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_bytes, IN_BYTES - c->in_bytes, MSG_DONTWAIT);
    uint64_t replies = 0, now;
    size_t n;
    if (got == 0 || (got < 0 && errno != EAGAIN)) die("the server closed the connection");
    if (got < 0) return 0;
    c->in_bytes += (size_t)got;
    now = bench_now_ns();
    while (c->in_at < c->in_bytes && (n = reply_bytes(c->in + c->in_at, c->in_bytes - c->in_at)) > 0) {
        if (l->reply != NULL) l->reply(c->number[c->first], c->in + c->in_at, n);
        if (sample_count < SAMPLES_MAX) samples[sample_count++] = (double)(now - c->asked_ns[c->first]) / 1e3;
        c->first = (c->first + 1) % PIPELINE_MAX;
        c->in_flight--;
        c->in_at += n;
        replies++;
    }
    memmove(c->in, c->in + c->in_at, c->in_bytes - c->in_at);
    c->in_bytes -= c->in_at, c->in_at = 0;
    return replies;
}

static result run(const load *l, int port) {
    static connection connections[CLIENTS_MAX];
    struct epoll_event events[CLIENTS_MAX], event;
    int epoll = epoll_create1(EPOLL_CLOEXEC), n, i;
    uint64_t start, end, next = 0, replies = 0, timed = 0, timed_end = 0;
    result r;
    uint32_t k, open = 0;
    for (k = 0; k < l->clients; k++) {
        connection *c = &connections[k];
        memset(c, 0, sizeof *c);
        c->fd = connect_to(port);
        event.events = EPOLLIN, event.data.ptr = c;
        if (c->fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) != 0)
            die("cannot connect to port %d: %s", port, strerror(errno));
    }
    sample_count = 0;
    start = bench_now_ns();
    end = start + round_ns;
    for (k = 0; k < l->clients; k++) {
        ask(l, &connections[k], &next);
        open += connections[k].in_flight > 0;
    }
    while (open > 0) {
        n = epoll_wait(epoll, events, CLIENTS_MAX, TIMEOUT_MS);
        if (n <= 0) die("no reply within %d ms", TIMEOUT_MS);
        for (i = 0; i < n; i++) {
            connection *c = (connection *)events[i].data.ptr;
            uint64_t now;
            replies += hear(l, c);
            now = bench_now_ns();
            if (l->total > 0 || now < end) timed = replies, timed_end = now;
            if (l->total > 0 || now < end) ask(l, c, &next);
            if (c->in_flight == 0) open--;
        }
    }
    for (k = 0; k < l->clients; k++) (void)close(connections[k].fd);
    (void)close(epoll);
    r.rate = timed > 0 ? (double)timed * 1e9 / (double)(timed_end - start) : 0;
    r.p50_us = bench_percentile(samples, sample_count, 0.5);
    r.p99_us = bench_percentile(samples, sample_count, 0.99);
    return r;
}

/* ---- the commands ------------------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static size_t put_key(char *out, uint32_t key) { return (size_t)sprintf(out, "$16\r\nkey:%012u\r\n", (unsigned)key); }

static size_t put_set(char *out, uint32_t key) {
    static char value[VALUE_BYTES];
    size_t n = (size_t)sprintf(out, "*3\r\n$3\r\nSET\r\n");
    if (value[0] == 0) memset(value, 'v', sizeof value);
    n += put_key(out + n, key);
    return n + put_argument(out + n, value, sizeof value);
}
static size_t command_fill(uint64_t number, char *out) { return put_set(out, (uint32_t)number); }
static size_t command_set(uint64_t number, char *out) { return put_set(out, (uint32_t)(mix(number) % key_count)); }
static size_t command_get(uint64_t number, char *out) {
    size_t n = (size_t)sprintf(out, "*2\r\n$3\r\nGET\r\n");
    return n + put_key(out + n, (uint32_t)(mix(number) % key_count));
}
static void reply_get(uint64_t number, const char *reply, size_t bytes) {
    (void)number;
    if (bytes != 6 + VALUE_BYTES + 2) die("a wrong reply to GET: %.*s", (int)bytes, reply);
}

/* Files of the big-ann-benchmarks: u32 rows, u32 columns, rows. */
typedef struct table {
    unsigned char *file;
    uint32_t rows, columns;
} table;

static table base, queries, truth;
static uint64_t hits;
static unsigned vadd_set;

static uint32_t u32_at(const unsigned char *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static table table_load(const char *name, size_t cell_bytes) {
    char path[PATH_BYTES + 32];
    table t;
    struct stat st;
    int fd;
    (void)snprintf(path, sizeof path, "%s/%s", data_dir, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size < 8) die("cannot open %s", path);
    t.file = (unsigned char *)malloc((size_t)st.st_size);
    if (t.file == NULL || read(fd, t.file, (size_t)st.st_size) != st.st_size) die("cannot read %s", path);
    (void)close(fd);
    t.rows = u32_at(t.file), t.columns = u32_at(t.file + 4);
    if ((uint64_t)t.rows * t.columns * cell_bytes > (uint64_t)st.st_size - 8) die("%s is damaged", path);
    return t;
}

static size_t put_vector(char *out, const table *t, uint64_t row) {
    unsigned char blob[DIM_MAX * 4];
    uint32_t i;
    for (i = 0; i < t->columns; i++) {
        float f = t->file[8 + row * t->columns + i];
        uint32_t bits;
        memcpy(&bits, &f, 4);
        blob[4 * i] = (unsigned char)bits, blob[4 * i + 1] = (unsigned char)(bits >> 8);
        blob[4 * i + 2] = (unsigned char)(bits >> 16), blob[4 * i + 3] = (unsigned char)(bits >> 24);
    }
    return put_argument(out, blob, (size_t)t->columns * 4);
}

static size_t command_vadd(uint64_t number, char *out) {
    char set[16], element[24];
    size_t n = (size_t)sprintf(out, "*7\r\n$4\r\nVADD\r\n");
    n += put_argument(out + n, set, (size_t)sprintf(set, "set:%u", vadd_set));
    n += (size_t)sprintf(out + n, "$4\r\nFP32\r\n");
    n += put_vector(out + n, &base, number);
    n += put_argument(out + n, element, (size_t)sprintf(element, "%llu", (unsigned long long)number));
    return n + (size_t)sprintf(out + n, "$16\r\nXDISTANCE_METRIC\r\n$2\r\nL2\r\n");
}
static void reply_vadd(uint64_t number, const char *reply, size_t bytes) {
    if (bytes != 4 || memcmp(reply, ":1", 2) != 0)
        die("a wrong reply to VADD of element %llu: %.*s", (unsigned long long)number, (int)bytes, reply);
}

static size_t command_vsim(uint64_t number, char *out) {
    size_t n = (size_t)sprintf(out, "*6\r\n$4\r\nVSIM\r\n$5\r\nset:0\r\n$4\r\nFP32\r\n");
    n += put_vector(out + n, &queries, number % queries.rows);
    return n + (size_t)sprintf(out + n, "$5\r\nCOUNT\r\n$2\r\n%d\r\n", NEIGHBOURS);
}
static void reply_vsim(uint64_t number, const char *reply, size_t bytes) {
    const unsigned char *row = truth.file + 8 + (size_t)(number % queries.rows) * truth.columns * 4;
    const char *p = (const char *)memchr(reply, '\n', bytes) + 1, *end = reply + bytes;
    if (strtol(reply + 1, NULL, 10) != NEIGHBOURS) die("VSIM answers with %.*s", (int)(p - reply), reply);
    while (p < end) {
        const char *name = (const char *)memchr(p, '\n', (size_t)(end - p)) + 1;
        uint32_t id = (uint32_t)strtoul(name, NULL, 10);
        int k;
        for (k = 0; k < NEIGHBOURS; k++) hits += u32_at(row + 4 * k) == id;
        p = (const char *)memchr(name, '\n', (size_t)(end - name)) + 1;
    }
}

/* ---- the cases --------------------------------------------------------------------------------------------------- */

static int limit_open(void) {
    static const char zeros[1 << 20];
    int fd = open(limit_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), at, direct;
    for (at = 0; fd >= 0 && at < LIMIT_BYTES / (int)sizeof zeros; at++)
        if (write(fd, zeros, sizeof zeros) != (ssize_t)sizeof zeros)
            die("cannot write %s: %s", limit_path, strerror(errno));
    if (fd < 0 || fsync(fd) != 0) die("cannot make %s: %s", limit_path, strerror(errno));
    direct = open(limit_path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (direct < 0) {
        fprintf(stderr, "bench_nodedb: no O_DIRECT in %s; limit/commit goes through the page cache\n", dir);
        return fd;
    }
    (void)close(fd);
    return direct;
}

static result limit_commit(int fd) {
    static unsigned char *block;
    static off_t at;
    uint64_t start = bench_now_ns(), now = start;
    result r;
    if (block == NULL && posix_memalign((void **)&block, BLOCK_BYTES, BLOCK_BYTES) != 0) die("out of memory");
    memset(block, 0x5a, BLOCK_BYTES);
    for (sample_count = 0; now < start + round_ns && sample_count < SAMPLES_MAX;) {
        uint64_t before = now;
        if (pwrite(fd, block, BLOCK_BYTES, at) != BLOCK_BYTES || fdatasync(fd) != 0)
            die("cannot write %s: %s", limit_path, strerror(errno));
        now = bench_now_ns();
        at = (at + BLOCK_BYTES) % LIMIT_BYTES;
        samples[sample_count++] = (double)(now - before) / 1e3;
    }
    r.rate = (double)sample_count * 1e9 / (double)(now - start);
    r.p50_us = bench_percentile(samples, sample_count, 0.5);
    r.p99_us = bench_percentile(samples, sample_count, 0.99);
    return r;
}

static const struct {
    const char *name;
    uint32_t clients, pipeline;
} shapes[] = {{"clients=1", 1, 1}, {"clients=50", 50, 1}, {"clients=50/pipeline=16", 50, 16}};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* The cases that are repeated, in the order of a round, and what their rounds gave. */
typedef struct bench_case {
    char name[64];
    process *process; /* NULL: the limit */
    load load;
    result rounds[ROUNDS_MAX];
} bench_case;

static void report(const bench_case *b, int rounds) {
    double value[ROUNDS_MAX];
    int i;
    for (i = 0; i < rounds; i++) value[i] = b->rounds[i].rate;
    bench_row(b->name, "ops_per_s", bench_median(value, (size_t)rounds), "1/s");
    for (i = 0; i < rounds; i++) value[i] = b->rounds[i].p50_us;
    bench_row(b->name, "p50_us", bench_median(value, (size_t)rounds), "us");
    for (i = 0; i < rounds; i++) value[i] = b->rounds[i].p99_us;
    bench_row(b->name, "p99_us", bench_median(value, (size_t)rounds), "us");
}

static size_t add_cases(bench_case *cases, size_t n, const char *prefix, process *p, bool set) {
    size_t i;
    for (i = 0; i < SHAPES; i++, n++) {
        memset(&cases[n], 0, sizeof cases[n]);
        (void)snprintf(cases[n].name, sizeof cases[n].name, "%s%s/%s", prefix, set ? "set" : "get", shapes[i].name);
        cases[n].process = p;
        cases[n].load.command = set ? command_set : command_get;
        cases[n].load.reply = set ? NULL : reply_get;
        cases[n].load.clients = shapes[i].clients, cases[n].load.pipeline = shapes[i].pipeline;
    }
    return n;
}

static void bench_strings(int rounds) {
    static bench_case cases[1 + 5 * SHAPES];
    load fill = {command_fill, NULL, 50, 16, 0};
    double ratio[ROUNDS_MAX];
    size_t n = 1, i;
    int round, fd = limit_open();
    fill.total = key_count;
    (void)snprintf(cases[0].name, sizeof cases[0].name, "limit/commit");
    n = add_cases(cases, n, "", &nodedb, true);
    n = add_cases(cases, n, "", &nodedb, false);
    (void)run(&fill, nodedb.port);
    if (redis_start(&redis, "redis", "always") && redis_start(&redis_noaof, "redis-noaof", NULL)) {
        n = add_cases(cases, n, "redis/", &redis, true);
        n = add_cases(cases, n, "redis/", &redis, false);
        n = add_cases(cases, n, "redis-noaof/", &redis_noaof, false);
        (void)run(&fill, redis.port);
        (void)run(&fill, redis_noaof.port);
    } else fprintf(stderr, "bench_nodedb: no redis-server here, so no rows redis/...\n");
    for (round = 0; round < rounds; round++)
        for (i = 0; i < n; i++) {
            const bench_case *b = &cases[i];
            cases[i].rounds[round] = b->process == NULL ? limit_commit(fd) : run(&b->load, b->process->port);
        }
    for (i = 0; i < n; i++) report(&cases[i], rounds);
    for (round = 0; round < rounds; round++) ratio[round] = cases[1].rounds[round].rate / cases[0].rounds[round].rate;
    bench_row(cases[1].name, "of_limit", bench_median(ratio, (size_t)rounds), "ratio");
    (void)close(fd);
    process_kill(&redis);
    process_kill(&redis_noaof);
}

static void bench_vectors(int rounds) {
    static const uint32_t clients[] = {1, 8};
    load add = {command_vadd, reply_vadd, 4, 32, 0}, search = {command_vsim, reply_vsim, 1, 1, 0};
    double value[ROUNDS_MAX], p50[ROUNDS_MAX], p99[ROUNDS_MAX];
    char name[32];
    int round;
    size_t i;
    add.total = base.rows;
    for (round = 0; round < rounds; round++) vadd_set = (unsigned)round, value[round] = run(&add, nodedb.port).rate;
    bench_row("vadd", "inserts_per_s", bench_median(value, (size_t)rounds), "1/s");
    for (i = 0; i < sizeof clients / sizeof *clients; i++) {
        uint64_t asked = 0;
        (void)snprintf(name, sizeof name, "vsim/clients=%u", (unsigned)clients[i]);
        search.clients = clients[i];
        search.total = queries.rows * 2;
        hits = 0;
        for (round = 0; round < 3; round++, asked += search.total) {
            result r = run(&search, nodedb.port);
            value[round] = r.rate, p50[round] = r.p50_us, p99[round] = r.p99_us;
        }
        bench_row(name, "qps", bench_median(value, 3), "1/s");
        bench_row(name, "p50_us", bench_median(p50, 3), "us");
        bench_row(name, "p99_us", bench_median(p99, 3), "us");
        bench_row(name, "recall_at_10", (double)hits / (double)(asked * NEIGHBOURS), "ratio");
    }
}

static uint64_t info_number;
static const char *info_field;
static size_t command_info(uint64_t number, char *out) {
    (void)number;
    return (size_t)sprintf(out, "*1\r\n$4\r\nINFO\r\n");
}
static void reply_info(uint64_t number, const char *reply, size_t bytes) {
    const char *field = (const char *)memmem(reply, bytes, info_field, strlen(info_field));
    (void)number;
    info_number = field != NULL ? strtoull(field + strlen(info_field), NULL, 10) : 0;
}

static void bench_recovery(int rounds) {
    load info = {command_info, reply_info, 1, 1, 1};
    double value[ROUNDS_MAX];
    int round;
    for (round = 0; round < rounds; round++) {
        uint64_t start;
        process_kill(&nodedb);
        start = bench_now_ns();
        nodedb_start();
        value[round] = (double)(bench_now_ns() - start) / 1e9;
    }
    info_field = "records_replayed_at_start:";
    (void)run(&info, nodedb.port);
    bench_row("recovery", "seconds", bench_median(value, (size_t)rounds), "s");
    bench_row("recovery", "records", (double)info_number, "1");
}

/* ---- what fills a server: one connection, as fast as it can ------------------------------------------------------ */

typedef struct flow {
    size_t (*command)(uint64_t number, char *out); /* writes the command; its reply is one line */
    uint64_t total;                                /* commands, unless one is refused */
    uint32_t pipeline;
    size_t largest; /* bytes of a command, at most */
    uint64_t stored, refused;
    double seconds, longest_ms, p999_ms; /* gaps: see at the top */
} flow;

/* Counts the whole lines of `in`; returns their bytes. Out of memory is an answer; other errors are not. */
static size_t flow_hear(flow *f, const char *in, size_t bytes) {
    const char *p = in, *end;
    while ((end = (const char *)memchr(p, '\n', bytes - (size_t)(p - in))) != NULL) {
        if (*p != '-') f->stored++;
        else if (strncmp(p, "-OOM ", 5) == 0) f->refused++;
        else die("the server answers with an error: %.*s", (int)(end - p) - 1, p);
        p = end + 1;
    }
    return (size_t)(p - in);
}

static void flow_run(flow *f, int port) {
    static char in[IN_BYTES];
    char *out = (char *)malloc(FLOW_BYTES + f->largest);
    double *gaps = (double *)malloc(((size_t)f->total + 1) * sizeof *gaps); /* pages come when they are written to */
    size_t out_at = 0, out_bytes = 0, in_bytes = 0, gap_count = 0, n;
    uint64_t next = 0, start, last, now;
    struct pollfd wait;
    ssize_t moved;
    if (out == NULL || gaps == NULL) die("out of memory");
    wait.fd = connect_to(port);
    if (wait.fd < 0) die("cannot connect to port %d: %s", port, strerror(errno));
    f->stored = f->refused = 0;
    start = last = bench_now_ns();
    for (;;) {
        if (out_at == out_bytes) out_at = out_bytes = 0;
        while (f->refused == 0 && next < f->total && next - f->stored < f->pipeline && out_bytes < FLOW_BYTES)
            out_bytes += f->command(next++, out + out_bytes);
        if (f->stored + f->refused == next) break;
        if (out_at < out_bytes) {
            moved = send(wait.fd, out + out_at, out_bytes - out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (moved < 0 && errno != EAGAIN) die("cannot send: %s", strerror(errno));
            if (moved > 0) out_at += (size_t)moved;
        }
        wait.events = (short)(POLLIN | (out_at < out_bytes ? POLLOUT : 0));
        if (poll(&wait, 1, TIMEOUT_MS) != 1) die("no reply within %d ms", TIMEOUT_MS);
        if ((wait.revents & ~POLLOUT) == 0) continue;
        moved = recv(wait.fd, in + in_bytes, sizeof in - in_bytes, MSG_DONTWAIT);
        if (moved == 0 || (moved < 0 && errno != EAGAIN)) die("the server closed the connection");
        if (moved < 0) continue;
        now = bench_now_ns();
        in_bytes += (size_t)moved;
        n = flow_hear(f, in, in_bytes);
        if (n == 0) continue;
        memmove(in, in + n, in_bytes - n);
        in_bytes -= n;
        gaps[gap_count++] = (double)(now - last) / 1e6;
        last = now;
    }
    (void)close(wait.fd);
    f->seconds = (double)(last - start) / 1e9;
    f->p999_ms = bench_percentile(gaps, gap_count, 0.999);
    f->longest_ms = gap_count > 0 ? gaps[gap_count - 1] : 0; /* they are sorted now */
    free(gaps);
    free(out);
}

static size_t value_size;
static unsigned small_elements;

static size_t command_value(uint64_t number, char *out) {
    static char value[MIB];
    size_t n = (size_t)sprintf(out, "*3\r\n$3\r\nSET\r\n");
    if (value[0] == 0) memset(value, 'v', sizeof value);
    n += put_key(out + n, (uint32_t)number);
    return n + put_argument(out + n, value, value_size);
}

/* An element of set:0 near a row of the base: more than it has rows. */
static size_t command_element(uint64_t number, char *out) {
    uint32_t row[DIM_MAX], i;
    char element[24];
    size_t n = (size_t)sprintf(out, "*5\r\n$4\r\nVADD\r\n$5\r\nset:0\r\n$4\r\nFP32\r\n");
    for (i = 0; i < base.columns; i++) {
        float f = (float)(base.file[8 + number % base.rows * base.columns + i] + mix(number * DIM_MAX + i) % 16);
        memcpy(&row[i], &f, 4);
    }
    n += put_argument(out + n, row, (size_t)base.columns * 4);
    return n + put_argument(out + n, element, (size_t)sprintf(element, "%" PRIu64, number));
}

/* small_elements in a set, each of 16 floats. */
static size_t command_small_set(uint64_t number, char *out) {
    float vector[16];
    char set[24], element[24];
    size_t n = (size_t)sprintf(out, "*5\r\n$4\r\nVADD\r\n"), i;
    for (i = 0; i < 16; i++) vector[i] = (float)(mix(number * 16 + i) % 1000 + 1);
    n += put_argument(out + n, set, (size_t)sprintf(set, "small:%" PRIu64, number / small_elements));
    n += (size_t)sprintf(out + n, "$4\r\nFP32\r\n");
    n += put_argument(out + n, vector, sizeof vector);
    return n + put_argument(out + n, element, (size_t)sprintf(element, "%" PRIu64, number % small_elements));
}

static uint64_t ask_info(const char *field) {
    load info = {command_info, reply_info, 1, 1, 1};
    info_field = field;
    (void)run(&info, nodedb.port);
    return info_number;
}

/* ---- many keys --------------------------------------------------------------------------------------------------- */

static void keys_into(const process *p, const char *prefix, uint64_t keys) {
    flow f = {command_value, keys, FLOW_PIPELINE, 256, 0, 0, 0, 0, 0};
    char name[64];
    double before = process_bytes(p, "VmRSS");
    value_size = 32;
    flow_run(&f, p->port);
    if (f.refused > 0) die("%" PRIu64 " keys do not fit into memory", keys);
    (void)usleep(SETTLE_US);
    (void)snprintf(name, sizeof name, "%skeys/n=%" PRIu64, prefix, keys);
    bench_row(name, "longest_gap_ms", f.longest_ms, "ms");
    bench_row(name, "p999_gap_ms", f.p999_ms, "ms");
    bench_row(name, "keys_per_s", (double)keys / f.seconds, "1/s");
    bench_row(name, "bytes_per_key", (process_bytes(p, "VmRSS") - before) / (double)keys, "B");
}

static void bench_keys(uint64_t keys) {
    static const char *const options[] = {"--durability", "interval", NULL};
    nodedb_start_anew(options);
    keys_into(&nodedb, "", keys);
    process_kill(&nodedb);
    if (redis_start(&redis, "redis-keys", "everysec")) keys_into(&redis, "redis/", keys);
    else fprintf(stderr, "bench_nodedb: no redis-server here, so no rows redis/keys/...\n");
    process_kill(&redis);
}

/* ---- memory under a ceiling -------------------------------------------------------------------------------------- */

enum {
    CEILING = 64 * MIB, UNREAD_CLIENTS = 40, UNREAD_GETS = 256, UNFINISHED_CLIENTS = 30, UNFINISHED_BYTES = 8 * MIB
};

static const char *const memory_options[] = {"--memory", "64M", "--cores", "2", "--durability", "interval", NULL};

static void memory_rows(const char *kind, uint64_t base_bytes, uint64_t stored) {
    double peak = process_bytes(&nodedb, "VmHWM"), bound = 1.1 * ((double)CEILING + (double)base_bytes);
    char name[64];
    (void)snprintf(name, sizeof name, "memory/%s", kind);
    bench_row(name, "rss_peak_mib", peak / MIB, "MiB");
    bench_row(name, "rss_mib", process_bytes(&nodedb, "VmRSS") / MIB, "MiB");
    bench_row(name, "bound_mib", bound / MIB, "MiB");
    bench_row(name, "of_bound", peak / bound, "ratio");
    bench_row(name, "stored", (double)stored, "1");
}

/* Until the peak of the server's memory has not risen for a second. */
static void memory_settle(void) {
    double peak = 0, now;
    int still = 0, tries;
    for (tries = 0; still < 10 && tries < 200; tries++) {
        (void)usleep(100000);
        now = process_bytes(&nodedb, "VmHWM");
        still = now > peak ? 0 : still + 1;
        peak = now;
    }
}

static void memory_flow(const char *kind, size_t (*command)(uint64_t number, char *out), uint64_t total,
                        size_t largest) {
    flow f = {command, total, largest > MIB ? 4 : FLOW_PIPELINE, largest, 0, 0, 0, 0, 0};
    uint64_t base_bytes;
    nodedb_start_anew(memory_options);
    base_bytes = ask_info("used_memory_base:");
    flow_run(&f, nodedb.port);
    memory_rows(kind, base_bytes, f.stored);
}

static void memory_values(const char *kind, size_t bytes, uint64_t times) {
    value_size = bytes;
    memory_flow(kind, command_value, times * CEILING / bytes, bytes + 256);
}

/* After memory_values(). */
static void memory_restart(void) {
    (void)usleep(2 * 100000); /* what was answered is durable 100 ms later */
    process_kill(&nodedb);
    nodedb_start_with(memory_options);
    memory_rows("restart", ask_info("used_memory_base:"), ask_info("db0:keys="));
}

/* Sends what is left of `text` until all have it or nobody has taken any for a second; closes those that the server has
 * closed; returns how many are open. */
static uint64_t memory_send(struct pollfd *clients, int count, const char *text, size_t bytes) {
    static size_t sent[UNREAD_CLIENTS];
    uint64_t open = 0;
    int i;
    memset(sent, 0, sizeof sent);
    for (i = 0; i < count; i++) {
        clients[i].fd = connect_to(nodedb.port);
        clients[i].events = POLLOUT | POLLRDHUP;
        if (clients[i].fd < 0) die("cannot connect to port %d: %s", nodedb.port, strerror(errno));
    }
    while (poll(clients, (nfds_t)count, 1000) > 0)
        for (i = 0; i < count; i++) {
            ssize_t n = 0;
            if (clients[i].fd < 0 || clients[i].revents == 0) continue;
            if ((clients[i].revents & ~POLLOUT) == 0) {
                n = send(clients[i].fd, text + sent[i], bytes - sent[i], MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n > 0) sent[i] += (size_t)n;
                if (sent[i] == bytes) clients[i].events = POLLRDHUP;
            }
            if ((clients[i].revents & ~POLLOUT) == 0 && (n >= 0 || errno == EAGAIN)) continue;
            (void)close(clients[i].fd);
            clients[i].fd = -1;
        }
    memory_settle();
    (void)poll(clients, (nfds_t)count, 0);
    for (i = 0; i < count; i++) open += clients[i].fd >= 0 && (clients[i].revents & ~POLLOUT) == 0;
    return open;
}

static void memory_clients(const char *kind, int count, const char *text, size_t bytes) {
    struct pollfd clients[UNREAD_CLIENTS];
    flow one = {command_value, 1, 1, MIB + 256, 0, 0, 0, 0, 0};
    uint64_t base_bytes, open;
    int i;
    nodedb_start_anew(memory_options);
    base_bytes = ask_info("used_memory_base:");
    value_size = MIB;
    flow_run(&one, nodedb.port);
    open = memory_send(clients, count, text, bytes);
    memory_rows(kind, base_bytes, open);
    for (i = 0; i < count; i++)
        if (clients[i].fd >= 0) (void)close(clients[i].fd);
}

static void memory_unread(void) {
    static char text[UNREAD_GETS * 64];
    size_t n = 0;
    int i;
    for (i = 0; i < UNREAD_GETS; i++) {
        n += (size_t)sprintf(text + n, "*2\r\n$3\r\nGET\r\n");
        n += put_key(text + n, 0);
    }
    memory_clients("unread", UNREAD_CLIENTS, text, n);
}

static void memory_unfinished(void) {
    char *text = (char *)malloc(UNFINISHED_BYTES + 256);
    size_t n;
    if (text == NULL) die("out of memory");
    n = (size_t)sprintf(text, "*3\r\n$3\r\nSET\r\n");
    n += put_key(text + n, 1);
    n += (size_t)sprintf(text + n, "$%d\r\n", UNFINISHED_BYTES);
    memset(text + n, 'v', UNFINISHED_BYTES);
    memory_clients("unfinished", UNFINISHED_CLIENTS, text, n + UNFINISHED_BYTES - 1);
    free(text);
}

static void bench_memory(bool quick) {
    if (!quick) {
        memory_values("value=16B", 16, 5);
        memory_values("value=256B", 256, 5);
        memory_restart();
        memory_values("value=1KiB", 1024, 5);
    }
    memory_values("value=1MiB", MIB, quick ? 2 : 5);
    small_elements = 1;
    memory_flow("sets", command_small_set, 10000, 512);
    if (!quick) {
        memory_flow("vectors", command_element, UINT64_C(5) * CEILING / 512, DIM_MAX * 4 + 256);
        memory_unread();
        memory_unfinished();
    }
    process_kill(&nodedb);
}

static void bench_sets(uint64_t sets) {
    static const char *const options[] = {"--cores", "2", "--durability", "interval", NULL};
    flow f = {command_small_set, 3 * sets, FLOW_PIPELINE, 512, 0, 0, 0, 0, 0};
    double used, rss;
    char name[64];
    nodedb_start_anew(options);
    small_elements = 3;
    used = (double)ask_info("used_memory:"), rss = process_bytes(&nodedb, "VmRSS");
    flow_run(&f, nodedb.port);
    if (f.refused > 0) die("%" PRIu64 " sets do not fit into memory", sets);
    (void)usleep(SETTLE_US);
    used = (double)ask_info("used_memory:") - used, rss = process_bytes(&nodedb, "VmRSS") - rss;
    (void)snprintf(name, sizeof name, "sets/n=%" PRIu64, sets);
    bench_row(name, "used_bytes_per_set", used / (double)sets, "B");
    bench_row(name, "rss_bytes_per_set", rss / (double)sets, "B");
    process_kill(&nodedb);
}

/* The servers go. The files stay, until the next run empties the directory. */
static void on_signal(int number) {
    process_kill(&nodedb);
    process_kill(&redis);
    process_kill(&redis_noaof);
    _exit(128 + number);
}

int main(int argc, char **argv) {
    bool quick = bench_flag(argc, argv, "--quick");
    const char *only = bench_option(argc, argv, "--only", "");
    uint64_t keys = strtoull(bench_option(argc, argv, "--keys", quick ? "200000" : "10000000"), NULL, 10);
    bench_name = "nodedb";
    server_path = bench_option(argc, argv, "--server", "build/nodedb");
    data_dir = bench_option(argc, argv, "--data", "tests/data");
    top = bench_option(argc, argv, "--dir", "build/tmp");
    round_ns = quick ? UINT64_C(150000000) : UINT64_C(500000000);
    key_count = quick ? 10000 : 100000;
    if (*only != 0 && strcmp(only, "keys") != 0 && strcmp(only, "memory") != 0 && strcmp(only, "sets") != 0)
        die("--only is keys, memory or sets");
    if (keys == 0 || keys > UINT32_MAX) die("--keys is a number from 1 to %u", (unsigned)UINT32_MAX);
    (void)mkdir(top, 0755);
    if (snprintf(dir, sizeof dir, "%s/bench_nodedb", top) >= (int)sizeof dir - 32) die("--dir is too long");
    (void)snprintf(limit_path, sizeof limit_path, "%.*s/limit", (int)sizeof limit_path - 32, dir);
    base = table_load("sift10k.base.u8bin", 1);
    queries = table_load("sift10k.query.u8bin", 1);
    truth = table_load("sift10k.gt", 4);
    if (base.columns > DIM_MAX || queries.columns != base.columns || truth.rows != queries.rows ||
        truth.columns < NEIGHBOURS)
        die("the files in %s do not belong together", data_dir);
    (void)nftw(dir, remove_visited, 16, FTW_DEPTH | FTW_PHYS);
    if (mkdir(dir, 0755) != 0) die("cannot make %s: %s", dir, strerror(errno));
    (void)atexit(clean_up);
    (void)signal(SIGINT, on_signal);
    (void)signal(SIGTERM, on_signal);
    if (*only == 0) {
        nodedb_start();
        bench_strings(quick ? 3 : 5);
        bench_vectors(quick ? 1 : 3);
        bench_recovery(quick ? 1 : 3);
    }
    if (strcmp(only, "keys") == 0 || (*only == 0 && quick)) bench_keys(keys);
    if (strcmp(only, "memory") == 0 || (*only == 0 && quick)) bench_memory(quick);
    if (strcmp(only, "sets") == 0 || (*only == 0 && quick)) bench_sets(SMALL_SETS);
    return 0;
}
