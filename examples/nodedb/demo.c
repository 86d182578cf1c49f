/* nodedb_demo - what NodeDB promises, shown in a minute: durable writes, good answers, nothing lost when it is killed.
 *
 *     nodedb_demo [--server PATH] [--data DIR] [--dir DIR] [--seed N] [--kills N] [--stay | --no-stay]
 *
 * It starts the server in a new directory and stores 10,000 vectors over the Redis protocol; asks 200 queries and
 * compares the answers with the true neighbours; then writes again, kills the server (SIGKILL) at a random moment,
 * starts it again and looks for every single write that was acknowledged. Exit status 0 only if all of it held.
 *
 * The file is also an example of a client that pipelines: section 2 is the client, section 3 drives it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 4
#define IN_FLIGHT 32       /* commands of one connection that wait for their reply; all of them fit into OUT_BYTES */
#define TIMEOUT_S 30       /* for one reply */
#define START_TIMEOUT_S 60 /* for a server that replays its log */
#define OUT_BYTES 65536
#define IN_BYTES 65536
#define MAX_KILLS 1000
#define KILL_MIN_MS 200    /* the second ingest is killed between these */
#define KILL_MAX_MS 1500
#define NEIGHBOURS 10
#define MIN_RECALL 0.98
#define SEARCH_LAPS 5      /* how often the queries are asked to measure the speed on several connections */
#define VADD_EVERY 16      /* one in 16 writes of the second ingest is a vector, the others are keys */
#define MAX_VALUE_BYTES 512
#define MAX_DIM 384        /* such that IN_FLIGHT vectors fit into OUT_BYTES */
#define BAR_WIDTH 30
#define TICK_MS 50

static struct {
    const char *server, *data, *dir;
    uint64_t seed;
    uint32_t kills;
    bool stay, terminal;
} options = {"build/nodedb", "tests/data", "build/demo-data", 0, 1, false, false};

/* ---- 1 the server's process -------------------------------------------------------------------------------------- */

static struct {
    volatile sig_atomic_t pid; /* 0: none runs */
    int out;                   /* its stdout */
    int port;
} server = {0, -1, 0};

static pthread_mutex_t last_words = PTHREAD_MUTEX_INITIALIZER;

static uint64_t now_ms(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void server_kill(void) {
    pid_t pid = (pid_t)server.pid;
    if (pid == 0) return;
    (void)kill(pid, SIGKILL);
    server.pid = 0;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
}

/* Ends a demonstration that failed, from any thread. exit() kills the server. */
__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
    va_list args;
    (void)pthread_mutex_lock(&last_words); /* never unlocked: only the first failure is printed */
    if (options.terminal) fputs("\r\033[K", stdout);
    (void)fflush(stdout);
    fputs("nodedb_demo: ", stderr);
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    if (server.out >= 0) fprintf(stderr, " (this was --seed %" PRIu64 ")", options.seed);
    fputc('\n', stderr);
    exit(1);
}

/* The server has closed a connection that it should serve: why? */
__attribute__((noreturn)) static void die_of_lost_connection(void) {
    pid_t pid = (pid_t)server.pid;
    int status, tries;
    for (tries = 0; tries < 20 && pid != 0; tries++) { /* a process that crashes closes its sockets before it is gone */
        if (waitpid(pid, &status, WNOHANG) == pid) {
            server.pid = 0;
            if (WIFSIGNALED(status)) die("the server died unasked, of signal %d", WTERMSIG(status));
            die("the server ended unasked, with status %d", WEXITSTATUS(status));
        }
        (void)usleep(50000);
    }
    die("the server closed a connection, though it is still running");
}

static void on_signal(int number) {
    server_kill(); /* nothing in it is forbidden in a handler */
    _exit(128 + number);
}

/* Waits for the line "nodedb ... is ready on ADDRESS:PORT, ...", which the server writes in one piece. */
static void server_wait_until_ready(bool show) {
    char line[1024], *end, *port;
    struct pollfd p;
    int ready;
    ssize_t n;
    p.fd = server.out, p.events = POLLIN;
    do ready = poll(&p, 1, START_TIMEOUT_S * 1000);
    while (ready < 0 && errno == EINTR);
    if (ready <= 0) die("the server was not ready after %d s", START_TIMEOUT_S);
    n = read(server.out, line, sizeof line - 1);
    if (n <= 0) die_of_lost_connection();
    line[n] = 0;
    if ((end = strchr(line, '\n')) != NULL) *end = 0;
    port = strstr(line, " is ready on ");
    port = port != NULL ? strchr(port, ':') : NULL;
    server.port = port != NULL ? atoi(port + 1) : 0;
    if (server.port <= 0) die("the server says \"%s\", and not on which port it is ready", line);
    if (show) printf("%s\n", line);
}

static void server_start(bool show) {
    pid_t parent = getpid(), pid;
    int out[2];
    if (server.out >= 0) (void)close(server.out);
    if (pipe2(out, O_CLOEXEC) != 0) die("cannot make a pipe: %s", strerror(errno));
    (void)fflush(stdout);
    pid = fork();
    if (pid < 0) die("cannot start a process: %s", strerror(errno));
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever happens to the demonstration, no server is left behind */
        if (getppid() != parent) _exit(1);
        (void)setpgid(0, 0); /* Ctrl-C is for the demonstration, which then stops the server */
        (void)dup2(out[1], STDOUT_FILENO);
        execl(options.server, options.server, "--port", "0", "--dir", options.dir, (char *)NULL);
        fprintf(stderr, "nodedb_demo: cannot run %s: %s\n", options.server, strerror(errno));
        _exit(127);
    }
    (void)close(out[1]);
    server.out = out[0];
    server.pid = pid;
    server_wait_until_ready(show);
}

/* An orderly end. */
static void server_stop(void) {
    pid_t pid = (pid_t)server.pid;
    uint64_t deadline = now_ms() + TIMEOUT_S * 1000;
    int status = 0;
    (void)kill(pid, SIGTERM);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() > deadline) die("the server did not stop within %d s of SIGTERM", TIMEOUT_S);
        (void)usleep(10000);
    }
    server.pid = 0;
    if (status != 0) die("the server did not stop in order (wait status %d)", status);
}

static int remove_visited(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

/* Removes the data of an earlier run; never anything else, and never under a server that runs. */
static void empty_directory(void) {
    char path[4096];
    int lock;
    if (rmdir(options.dir) == 0 || errno == ENOENT) return;
    (void)snprintf(path, sizeof path, "%s/LOCK", options.dir);
    lock = open(path, O_RDONLY | O_CLOEXEC);
    if (lock < 0) die("%s exists and is not a directory of nodedb's: choose another --dir", options.dir);
    if (flock(lock, LOCK_EX | LOCK_NB) != 0) die("%s is in use by a server: choose another --dir", options.dir);
    if (nftw(options.dir, remove_visited, 16, FTW_DEPTH | FTW_PHYS) != 0)
        die("cannot empty %s: %s", options.dir, strerror(errno));
    (void)close(lock);
}

/* ---- 2 the client ------------------------------------------------------------------------------------------------ */

/* One connection. Commands are collected in `out` and sent together; replies come in the order of the commands, and are
 * read from `in`. The socket blocks: what is under way always fits into the buffers of both sides, so neither side
 * waits for the other in a circle. */
typedef struct client {
    int fd;
    size_t out_bytes;       /* in `out`, not sent yet */
    size_t in_at, in_bytes; /* in[in_at, in_bytes) was received and is not parsed yet */
    char out[OUT_BYTES], in[IN_BYTES];
} client;

/* '+' or '-': text. ':': number. '$': text, or number -1 for none. '*': number of members, the next replies. */
typedef struct reply {
    char type;
    long long number;
    const char *text; /* until the next reply is read */
    size_t bytes;
} reply;

static client *client_open(void) {
    client *c = (client *)calloc(1, sizeof *c);
    struct sockaddr_in to;
    struct timeval patience = {TIMEOUT_S, 0};
    int one = 1;
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET, to.sin_port = htons((uint16_t)server.port), to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (c == NULL) die("out of memory");
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) != 0)
        die("cannot connect to port %d: %s", server.port, strerror(errno));
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return c;
}

static void client_close(client *c) {
    (void)close(c->fd);
    free(c);
}

/* A command is an array of bulk strings: "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n". First its head, then each argument. */
static void command(client *c, int arguments) {
    c->out_bytes += (size_t)snprintf(c->out + c->out_bytes, OUT_BYTES - c->out_bytes, "*%d\r\n", arguments);
}
static void argument(client *c, const void *p, size_t bytes) {
    assert(OUT_BYTES - c->out_bytes > bytes + 32);
    c->out_bytes += (size_t)snprintf(c->out + c->out_bytes, OUT_BYTES - c->out_bytes, "$%zu\r\n", bytes);
    memcpy(c->out + c->out_bytes, p, bytes);
    memcpy(c->out + c->out_bytes + bytes, "\r\n", 2);
    c->out_bytes += bytes + 2;
}
static void word(client *c, const char *text) { argument(c, text, strlen(text)); }

/* False when the server has closed the connection; replies that came before may still be there to be read. */
static bool client_send(client *c) {
    size_t sent = 0;
    while (sent < c->out_bytes) {
        ssize_t n = send(c->fd, c->out + sent, c->out_bytes - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) return false;
        if (n < 0) die("the server took no command for %d s: %s", TIMEOUT_S, strerror(errno));
        sent += (size_t)n;
    }
    c->out_bytes = 0;
    return true;
}

/* Gets more bytes of replies; false when the server has closed the connection. */
static bool client_receive(client *c) {
    ssize_t n;
    if (c->in_at > 0) memmove(c->in, c->in + c->in_at, c->in_bytes - c->in_at);
    c->in_bytes -= c->in_at;
    c->in_at = 0;
    if (c->in_bytes == IN_BYTES) die("wrong reply: longer than %d bytes", IN_BYTES);
    do n = recv(c->fd, c->in + c->in_bytes, IN_BYTES - c->in_bytes, 0);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return false;
    if (n < 0) die("no reply from the server for %d s: %s", TIMEOUT_S, strerror(errno));
    c->in_bytes += (size_t)n;
    return true;
}

static bool client_reply(client *c, reply *r) {
    char *end, *line;
    size_t line_bytes;
    while ((end = (char *)memchr(c->in + c->in_at, '\n', c->in_bytes - c->in_at)) == NULL)
        if (!client_receive(c)) return false;
    line = c->in + c->in_at;
    line_bytes = (size_t)(end - line) + 1;
    if (line_bytes < 3 || end[-1] != '\r' || strchr("+-:$*", line[0]) == NULL)
        die("wrong reply: %.*s", (int)line_bytes, line);
    r->type = line[0];
    r->number = r->type == '+' || r->type == '-' ? 0 : strtoll(line + 1, NULL, 10);
    r->text = line + 1;
    r->bytes = line_bytes - 3;
    if (r->type == '$' && r->number >= 0) { /* `number` bytes and the end of a line follow */
        r->bytes = (size_t)r->number;
        while (c->in_bytes - c->in_at < line_bytes + r->bytes + 2)
            if (!client_receive(c)) return false;
        r->text = c->in + c->in_at + line_bytes; /* receiving may have moved it */
        line_bytes += r->bytes + 2;
    }
    c->in_at += line_bytes;
    if (r->type == '-') die("the server answers with an error: %.*s", (int)r->bytes, r->text);
    return true;
}

static void wrong_reply(const char *to, const reply *r) {
    die("wrong reply to %s: %c%.*s", to, r->type, (int)r->bytes, r->text);
}

/* ---- 3 jobs: many commands on several connections ---------------------------------------------------------------- */

typedef struct job job;
typedef struct stream stream;
typedef void ask_function(client *c, const stream *s, uint64_t n); /* puts command n */
typedef bool reply_function(client *c, stream *s, uint64_t n);      /* reads its reply; false: no connection any more */

/* One connection's commands, number 0 to `total` - 1. Since replies come in order, the commands that were answered are
 * the first `answered` ones. */
struct stream {
    job *job;
    client *client;
    uint32_t index;
    uint64_t total, sent, answered;
    uint64_t hits;     /* neighbours found, by queries */
    uint64_t survived; /* writes found that were sent but not acknowledged, by checks */
    pthread_t thread;
};

struct job {
    const char *title;
    ask_function *ask;
    reply_function *read_reply;
    uint32_t streams, in_flight, round;
    bool killed_on_purpose;
    pthread_mutex_t lock; /* of what follows, and killed_on_purpose */
    pthread_cond_t progress;
    uint64_t done, total;
    uint32_t running;
    stream stream[CONNECTIONS];
};

static void *run_stream(void *context) {
    stream *s = (stream *)context;
    job *j = s->job;
    client *c = s->client;
    bool open = true;
    while (open && s->answered < s->total) {
        uint64_t before = s->answered;
        bool taken;
        for (; s->sent < s->total && s->sent - s->answered < j->in_flight; s->sent++) j->ask(c, s, s->sent);
        taken = client_send(c);
        do { /* wait for one reply, take those that arrived with it, then send as many commands again */
            open = j->read_reply(c, s, s->answered);
            s->answered += open;
        } while (open && s->answered < s->sent && (!taken || c->in_at < c->in_bytes));
        (void)pthread_mutex_lock(&j->lock);
        j->done += s->answered - before;
        if (!open && !j->killed_on_purpose) die_of_lost_connection();
        (void)pthread_mutex_unlock(&j->lock);
    }
    (void)pthread_mutex_lock(&j->lock);
    j->running--;
    (void)pthread_cond_signal(&j->progress);
    (void)pthread_mutex_unlock(&j->lock);
    return NULL;
}

static void draw(const job *j) {
    static const char full[] = "##############################", empty[] = "..............................";
    int filled = j->total > 0 ? (int)(j->done * BAR_WIDTH / j->total) : 0;
    if (!options.terminal) return;
    printf("\r%-8s ", j->title);
    if (j->total > 0) printf("[%.*s%.*s] ", filled, full, BAR_WIDTH - filled, empty);
    printf("%" PRIu64, j->done);
    if (j->total > 0) printf(" of %" PRIu64, j->total);
    else printf(" writes acknowledged");
    fputs("\033[K", stdout);
    (void)fflush(stdout);
}

static job *job_new(const char *title, ask_function *ask, reply_function *read_reply, uint32_t streams,
                    uint32_t in_flight) {
    job *j = (job *)calloc(1, sizeof *j);
    uint32_t i;
    if (j == NULL) die("out of memory");
    assert(streams <= CONNECTIONS && in_flight <= IN_FLIGHT);
    j->title = title, j->ask = ask, j->read_reply = read_reply, j->streams = streams, j->in_flight = in_flight;
    (void)pthread_mutex_init(&j->lock, NULL);
    (void)pthread_cond_init(&j->progress, NULL);
    for (i = 0; i < streams; i++) j->stream[i].job = j, j->stream[i].index = i;
    return j;
}

/* Deals out commands 0 to count - 1: stream i of s gets i, i + s, i + 2s, ... */
static void job_deal(job *j, uint64_t count) {
    uint32_t i;
    for (i = 0; i < j->streams; i++) j->stream[i].total = (count + j->streams - 1 - i) / j->streams;
    j->total = count;
}
static uint64_t dealt(const stream *s, uint64_t n) { return n * s->job->streams + s->index; }

/* Runs it to its end, or kills the server after kill_after_ms (0: never) and at least one reply. Returns seconds. */
static double job_run(job *j, uint64_t kill_after_ms) {
    uint64_t start;
    uint32_t i;
    for (i = 0; i < j->streams; i++) j->stream[i].client = client_open();
    j->running = j->streams;
    start = now_ms();
    for (i = 0; i < j->streams; i++)
        if (pthread_create(&j->stream[i].thread, NULL, run_stream, &j->stream[i]) != 0) die("cannot start a thread");
    (void)pthread_mutex_lock(&j->lock);
    while (j->running > 0) {
        uint64_t wait_ms = TICK_MS, passed = now_ms() - start;
        struct timespec until;
        if (kill_after_ms > passed && kill_after_ms - passed < wait_ms) wait_ms = kill_after_ms - passed;
        if (kill_after_ms > 0 && passed >= kill_after_ms && j->done > 0) {
            j->killed_on_purpose = true;
            server_kill();
            kill_after_ms = 0;
        }
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += (long)wait_ms * 1000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        (void)pthread_cond_timedwait(&j->progress, &j->lock, &until);
        draw(j);
    }
    (void)pthread_mutex_unlock(&j->lock);
    for (i = 0; i < j->streams; i++) {
        (void)pthread_join(j->stream[i].thread, NULL);
        client_close(j->stream[i].client);
    }
    if (options.terminal) fputs("\r\033[K", stdout);
    return (double)(now_ms() - start + 1) / 1000;
}

static void job_free(job *j) {
    (void)pthread_cond_destroy(&j->progress);
    (void)pthread_mutex_destroy(&j->lock);
    free(j);
}

/* ---- 4 the data -------------------------------------------------------------------------------------------------- */

/* Files of the big-ann-benchmarks: u32 rows, u32 columns, then the bytes; or the ids of the true neighbours as u32. */
typedef struct table {
    unsigned char *file;
    uint32_t rows, columns;
} table;

static table base, queries, truth;

static uint32_t u32_at(const unsigned char *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static table table_load(const char *name, size_t cell_bytes) {
    char path[4096];
    table t;
    FILE *f;
    long size = -1;
    (void)snprintf(path, sizeof path, "%s/%s", options.data, name);
    f = fopen(path, "rb");
    if (f == NULL) die("cannot open %s: %s", path, strerror(errno));
    if (fseek(f, 0, SEEK_END) == 0) size = ftell(f);
    rewind(f);
    t.file = size > 8 ? (unsigned char *)malloc((size_t)size) : NULL;
    if (t.file == NULL || fread(t.file, 1, (size_t)size, f) != (size_t)size) die("cannot read %s", path);
    (void)fclose(f);
    t.rows = u32_at(t.file), t.columns = u32_at(t.file + 4);
    if (t.rows == 0 || t.columns == 0 || ((uint64_t)size - 8) / cell_bytes / t.columns < t.rows)
        die("%s is damaged: it says %u rows of %u", path, t.rows, t.columns);
    return t;
}

/* A row as the argument that follows FP32: its numbers as little-endian floats. */
static void vector_argument(client *c, const table *t, uint64_t row) {
    unsigned char blob[MAX_DIM * 4];
    const unsigned char *from = t->file + 8 + row * t->columns;
    uint32_t i;
    for (i = 0; i < t->columns; i++) {
        float f = from[i];
        uint32_t bits;
        memcpy(&bits, &f, 4);
        blob[4 * i] = (unsigned char)bits, blob[4 * i + 1] = (unsigned char)(bits >> 8);
        blob[4 * i + 2] = (unsigned char)(bits >> 16), blob[4 * i + 3] = (unsigned char)(bits >> 24);
    }
    argument(c, blob, (size_t)t->columns * 4);
}

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* ---- 5 the vectors and the queries ------------------------------------------------------------------------------- */

static void ask_vadd(client *c, const char *set, uint64_t row, const char *element) {
    command(c, 7);
    word(c, "VADD"), word(c, set), word(c, "FP32"), vector_argument(c, &base, row), word(c, element);
    word(c, "XDISTANCE_METRIC"), word(c, "L2");
}

static void ask_row(client *c, const stream *s, uint64_t n) {
    char name[32];
    (void)snprintf(name, sizeof name, "%" PRIu64, dealt(s, n));
    ask_vadd(c, "photos", dealt(s, n), name);
}

static bool hear_row(client *c, stream *s, uint64_t n) {
    reply r;
    (void)s, (void)n;
    if (!client_reply(c, &r)) return false;
    if (r.type != ':' || r.number != 1) wrong_reply("VADD of a new element (1 is right)", &r);
    return true;
}

static void ask_query(client *c, const stream *s, uint64_t n) {
    char count[16];
    (void)snprintf(count, sizeof count, "%d", NEIGHBOURS);
    command(c, 6);
    word(c, "VSIM"), word(c, "photos"), word(c, "FP32"), vector_argument(c, &queries, dealt(s, n) % queries.rows);
    word(c, "COUNT"), word(c, count);
}

static bool hear_query(client *c, stream *s, uint64_t n) {
    const unsigned char *row = truth.file + 8 + dealt(s, n) % queries.rows * truth.columns * 4;
    reply r;
    long long i;
    int k;
    if (!client_reply(c, &r)) return false;
    if (r.type != '*' || r.number != NEIGHBOURS) wrong_reply("VSIM (10 elements are right)", &r);
    for (i = r.number; i > 0; i--) {
        char name[32];
        if (!client_reply(c, &r)) return false;
        (void)snprintf(name, sizeof name, "%.*s", (int)r.bytes, r.text);
        for (k = 0; k < NEIGHBOURS; k++) s->hits += u32_at(row + 4 * k) == strtoul(name, NULL, 10);
    }
    return true;
}

/* Asks the queries `laps` times; returns queries per second. */
static double run_queries(uint32_t streams, uint32_t laps, double *recall) {
    job *j = job_new("search", ask_query, hear_query, streams, 1);
    uint64_t hits = 0, asked = (uint64_t)queries.rows * laps;
    double seconds;
    uint32_t i;
    job_deal(j, asked);
    seconds = job_run(j, 0);
    for (i = 0; i < streams; i++) hits += j->stream[i].hits;
    job_free(j);
    *recall = (double)hits / (double)(asked * NEIGHBOURS);
    if (*recall < MIN_RECALL) die("recall@%d is %.4f, less than %.2f", NEIGHBOURS, *recall, MIN_RECALL);
    return (double)asked / seconds;
}

static void ingest_and_search(void) {
    job *j = job_new("ingest", ask_row, hear_row, CONNECTIONS, IN_FLIGHT);
    double seconds, recall, alone, together;
    job_deal(j, base.rows);
    seconds = job_run(j, 0);
    job_free(j);
    printf("ingest   %u vectors of %u dimensions, each acknowledged when durable: %.1f s, %.0f vectors/s\n"
           "         on %d connections with %d commands in flight on each\n",
           base.rows, base.columns, seconds, base.rows / seconds, CONNECTIONS, IN_FLIGHT);
    alone = run_queries(1, 1, &recall);
    together = run_queries(CONNECTIONS, SEARCH_LAPS, &recall);
    printf("search   %u queries: recall@%d %.4f, %.0f queries/s on one connection, %.0f on %d\n",
           queries.rows, NEIGHBOURS, recall, alone, together, CONNECTIONS);
}

/* ---- 6 writes, a kill, and the search for what was acknowledged -------------------------------------------------- */

/* What the rounds wrote. Name and value (or vector) of write n of stream i in round r follow from these numbers. */
static struct {
    uint64_t sent[CONNECTIONS], acknowledged[CONNECTIONS];
} rounds[MAX_KILLS];

static bool is_vector(uint64_t n) { return n % VADD_EVERY == VADD_EVERY - 1; }

static void name_of(const stream *s, uint64_t n, char name[64]) {
    (void)snprintf(name, 64, "write:%u:%u:%" PRIu64, s->job->round, s->index, n);
}

static size_t value_of(const stream *s, uint64_t n, unsigned char *value) {
    uint64_t state = mix(options.seed ^ mix((uint64_t)s->job->round << 48 ^ (uint64_t)s->index << 40 ^ n));
    size_t bytes = 1 + state % MAX_VALUE_BYTES, i;
    for (i = 0; i < bytes; i++) {
        if (i % 8 == 0) state = mix(state);
        value[i] = (unsigned char)(state >> i % 8 * 8);
    }
    return bytes;
}

static void ask_write(client *c, const stream *s, uint64_t n) {
    char name[64];
    unsigned char value[MAX_VALUE_BYTES];
    name_of(s, n, name);
    if (is_vector(n)) {
        ask_vadd(c, "second", dealt(s, n) % base.rows, name);
        return;
    }
    command(c, 3);
    word(c, "SET"), word(c, name), argument(c, value, value_of(s, n, value));
}

static bool hear_write(client *c, stream *s, uint64_t n) {
    reply r;
    if (is_vector(n)) return hear_row(c, s, n);
    if (!client_reply(c, &r)) return false;
    if (r.type != '+' || r.bytes != 2 || memcmp(r.text, "OK", 2) != 0) wrong_reply("SET", &r);
    return true;
}

static void ask_check(client *c, const stream *s, uint64_t n) {
    char name[64];
    name_of(s, n, name);
    if (is_vector(n)) command(c, 3), word(c, "VISMEMBER"), word(c, "second");
    else command(c, 2), word(c, "GET");
    word(c, name);
}

/* What was acknowledged must be there; what was sent without an answer may be there or not; nothing may be altered. */
static bool hear_check(client *c, stream *s, uint64_t n) {
    bool acknowledged = n < rounds[s->job->round].acknowledged[s->index], found;
    unsigned char value[MAX_VALUE_BYTES];
    char name[64];
    reply r;
    if (!client_reply(c, &r)) return false;
    name_of(s, n, name);
    if (is_vector(n)) {
        if (r.type != ':' || (r.number != 0 && r.number != 1)) wrong_reply("VISMEMBER", &r);
        found = r.number == 1;
    } else {
        if (r.type != '$') wrong_reply("GET", &r);
        found = r.number >= 0;
        if (found && (r.bytes != value_of(s, n, value) || memcmp(r.text, value, r.bytes) != 0))
            die("the value of %s is not the one that was written", name);
    }
    if (acknowledged && !found) die("%s was acknowledged and is MISSING after the restart", name);
    s->survived += found && !acknowledged;
    return true;
}

/* Looks for all writes of rounds `first` to `last`; returns how many acknowledged ones that were, all of them found. */
static uint64_t check_rounds(uint32_t first, uint32_t last, uint64_t *survived) {
    uint64_t checked = 0;
    uint32_t round, i;
    *survived = 0;
    for (round = first; round <= last; round++) {
        job *j = job_new("check", ask_check, hear_check, CONNECTIONS, IN_FLIGHT);
        j->round = round;
        for (i = 0; i < CONNECTIONS; i++) {
            j->total += j->stream[i].total = rounds[round].sent[i];
            checked += rounds[round].acknowledged[i];
        }
        (void)job_run(j, 0);
        for (i = 0; i < CONNECTIONS; i++) *survived += j->stream[i].survived;
        job_free(j);
    }
    return checked;
}

/* One command without pipelining: the first set still has all its vectors. */
static void check_card(void) {
    client *c = client_open();
    reply r;
    command(c, 2), word(c, "VCARD"), word(c, "photos");
    if (!client_send(c) || !client_reply(c, &r)) die_of_lost_connection();
    if (r.type != ':' || r.number != (long long)base.rows) wrong_reply("VCARD: some vectors are MISSING", &r);
    client_close(c);
}

static void write_kill_and_check(uint32_t round) {
    job *j = job_new("writes", ask_write, hear_write, CONNECTIONS, IN_FLIGHT);
    uint64_t after_ms = KILL_MIN_MS + mix(options.seed + round) % (KILL_MAX_MS - KILL_MIN_MS + 1);
    uint64_t acknowledged = 0, sent = 0, survived, checked, start;
    double recall, recovery;
    uint32_t i;
    j->round = round;
    for (i = 0; i < CONNECTIONS; i++) j->stream[i].total = UINT64_MAX; /* until the kill */
    (void)job_run(j, after_ms);
    for (i = 0; i < CONNECTIONS; i++) {
        sent += rounds[round].sent[i] = j->stream[i].sent;
        acknowledged += rounds[round].acknowledged[i] = j->stream[i].answered;
    }
    job_free(j);
    printf("kill     SIGKILL %" PRIu64 " ms into the next ingest: ", after_ms);
    printf("%" PRIu64 " writes acknowledged, %" PRIu64 " on their way\n", acknowledged, sent - acknowledged);
    start = now_ms();
    server_start(false);
    recovery = (double)(now_ms() - start) / 1000;
    checked = check_rounds(round, round, &survived);
    assert(checked == acknowledged);
    check_card();
    (void)run_queries(CONNECTIONS, 1, &recall);
    printf("recover  ready again after %.2f s: %" PRIu64 " acknowledged writes checked, 0 missing, 0 altered\n"
           "         (of those on their way %" PRIu64 " are there); the first %u vectors as well, recall@%d %.4f\n",
           recovery, checked, survived, base.rows, NEIGHBOURS, recall);
}

/* ---- 7 main ------------------------------------------------------------------------------------------------------ */

static const char usage[] =
    "usage: nodedb_demo [options]\n"
    "  --server PATH   the server's program (build/nodedb)\n"
    "  --data DIR      where sift10k.base.u8bin, .query.u8bin and sift10k.gt are (tests/data)\n"
    "  --dir DIR       the database's directory, emptied first (build/demo-data)\n"
    "  --seed N        of the moments of the kills and of the values (a new one each time)\n"
    "  --kills N       how often it is killed, restarted and checked (1)\n"
    "  --stay          the server stays up until Ctrl-C (default on a terminal); --no-stay: it does not\n";

static uint64_t parse_number(const char *option, const char *text, uint64_t max) {
    char *end;
    unsigned long long n = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != 0 || n > max)
        die("%s takes a number up to %" PRIu64 ", not %s", option, max, text);
    return n;
}

static void parse_options(int argc, char **argv) {
    int i;
    options.terminal = options.stay = isatty(STDOUT_FILENO) == 1;
    options.seed = mix((uint64_t)time(NULL) ^ (uint64_t)getpid() << 32) % 1000000;
    for (i = 1; i < argc; i++) {
        const char *o = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(o, "--help") == 0) {
            fputs(usage, stdout);
            exit(0);
        }
        if (strcmp(o, "--stay") == 0) options.stay = true;
        else if (strcmp(o, "--no-stay") == 0) options.stay = false;
        else if (value == NULL) die("wrong option %s, or it lacks its value (try --help)", o);
        else if (strcmp(o, "--server") == 0) options.server = value, i++;
        else if (strcmp(o, "--data") == 0) options.data = value, i++;
        else if (strcmp(o, "--dir") == 0) options.dir = value, i++;
        else if (strcmp(o, "--seed") == 0) options.seed = parse_number(o, value, UINT64_MAX), i++;
        else if (strcmp(o, "--kills") == 0) options.kills = (uint32_t)parse_number(o, value, MAX_KILLS), i++;
        else die("wrong option %s (try --help)", o);
    }
}

static void stay_up(void) {
    sigset_t signals;
    struct timespec tick = {0, 200000000};
    int status;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    printf("\nThe server stays up until Ctrl-C. Talk to it with\n"
           "    redis-cli -p %d VSIM photos ELE 42 COUNT 5 WITHSCORES\n", server.port);
    (void)fflush(stdout);
    while (sigtimedwait(&signals, NULL, &tick) < 0) {
        if (waitpid((pid_t)server.pid, &status, WNOHANG) == 0) continue;
        server.pid = 0;
        die("the server died unasked (wait status %d)", status);
    }
    printf("\n");
}

int main(int argc, char **argv) {
    struct sigaction action;
    uint64_t start = now_ms(), survived;
    uint32_t round;
    parse_options(argc, argv);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    (void)sigaction(SIGHUP, &action, NULL);
    (void)atexit(server_kill);
    base = table_load("sift10k.base.u8bin", 1);
    queries = table_load("sift10k.query.u8bin", 1);
    truth = table_load("sift10k.gt", 4);
    if (base.columns > MAX_DIM || queries.columns != base.columns || truth.rows != queries.rows ||
        truth.columns < NEIGHBOURS)
        die("the files in %s do not belong together", options.data);

    empty_directory();
    server_start(true);
    ingest_and_search();
    for (round = 0; round < options.kills; round++) write_kill_and_check(round);
    if (options.kills > 1)
        printf("check    all %" PRIu64 " acknowledged writes of the %u rounds once more: 0 missing, 0 altered\n",
               check_rounds(0, options.kills - 1, &survived), options.kills);
    printf("All of it held, in %.1f s (--seed %" PRIu64 ").\n", (double)(now_ms() - start) / 1000, options.seed);
    if (options.stay) stay_up();
    server_stop();
    printf("The server is stopped; its data is in %s.\n", options.dir);
    free(base.file), free(queries.file), free(truth.file);
    return 0;
}
