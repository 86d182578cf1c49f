/* A database server under test: a real process, real sockets, real kills. Test programs of the database include this
 * file. Every server that a test starts dies with it.
 *
 * `says(c, "SET k v", "+OK\r\n")` sends one command and compares the reply byte by byte. Words of a command are split
 * at spaces; "quoted words" may hold spaces and \r \n \t \" \\ \xHH. The program under test is nodedb in the folder
 * that NODEDB_BUILD_DIR names (build). A DB_TEST ends all servers and closes all connections that it made, but not the
 * shared server: `int main` is to register end_shared with atexit, and to ignore SIGPIPE. */
#ifndef NODEDB_SERVER_H
#define NODEDB_SERVER_H
#include "test.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <time.h>

#define PATIENCE_MS 10000 /* every wait ends then, and fails the test */
#define MAX_SERVERS 8
#define PATH_BYTES 1024

static inline uint64_t clock_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static inline void sleep_ms(unsigned ms) {
    struct timespec t;
    t.tv_sec = ms / 1000, t.tv_nsec = (long)(ms % 1000) * 1000000;
    while (nanosleep(&t, &t) != 0) {}
}

__attribute__((format(printf, 3, 4))) static inline void complain_in(const char *file, int line, const char *format,
                                                                     ...) {
    char text[900];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    test_fail(file, line, text);
}
/* A failed check of the test program at `line` of its file; one that a helper of this file noticed itself. */
#define complain(line, ...) complain_in(__BASE_FILE__, line, __VA_ARGS__)
#define complain_here(...) complain_in(__FILE__, __LINE__, __VA_ARGS__)

/* ---- buffers --------------------------------------------------------------------------------------------------- */

typedef struct bytes {
    char *p;
    size_t len, cap;
} bytes;

static inline char *bytes_room(bytes *b, size_t n) {
    if (b->cap - b->len < n) {
        b->cap = (b->cap + n) * 2;
        b->p = realloc(b->p, b->cap);
        if (b->p == NULL) abort();
    }
    return b->p + b->len;
}
static inline void bytes_put(bytes *b, const void *p, size_t n) {
    char *to = bytes_room(b, n + 1);
    if (n > 0) memcpy(to, p, n);
    b->len += n;
    b->p[b->len] = 0;
}
static inline void bytes_free(bytes *b) {
    free(b->p);
    memset(b, 0, sizeof *b);
}

/* A whole file, or as much of it as there is; NULL if it cannot be opened. The caller frees. */
static inline char *file_text(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    bytes b = {0};
    size_t n;
    if (f == NULL) return NULL;
    while ((n = fread(bytes_room(&b, 65536), 1, 65536, f)) > 0) b.len += n;
    (void)fclose(f);
    bytes_put(&b, "", 0);
    if (size != NULL) *size = b.len;
    return b.p;
}

/* For messages: binary made readable. */
static inline const char *readable(const char *p, size_t n, char *to, size_t room) {
    size_t at = 0, i;
    for (i = 0; i < n && at + 8 < room; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c == '\r') at += (size_t)sprintf(to + at, "\\r");
        else if (c == '\n') at += (size_t)sprintf(to + at, "\\n");
        else if (c < 32 || c > 126) at += (size_t)sprintf(to + at, "\\x%02x", c);
        else to[at++] = (char)c;
    }
    if (i < n) at += (size_t)sprintf(to + at, "...");
    to[at] = 0;
    return to;
}

/* ---- servers --------------------------------------------------------------------------------------------------- */

typedef struct server {
    pid_t pid; /* 0: not running */
    int out;   /* its stdout */
    int port, status;
    char dir[PATH_BYTES], err_path[PATH_BYTES], ready[512];
} server;

static server servers[MAX_SERVERS]; /* those that stop_all ends */
static server shared;               /* one for all tests that need nothing special; lives on */
static char shared_base[256];
static int started;                 /* names the files of stderr */
static void (*before_exec)(void);   /* in the child: filters, limits */

static inline const char *program(void) {
    static char path[PATH_BYTES];
    const char *folder = getenv("NODEDB_BUILD_DIR");
    (void)snprintf(path, sizeof path, "%s/nodedb", folder != NULL ? folder : "build");
    return path;
}

static inline char *server_errors(const server *s) { /* the caller frees */
    char *text = file_text(s->err_path, NULL);
    return text != NULL ? text : calloc(1, 1);
}

static inline int lines_with(const char *text, const char *part) {
    int n = 0;
    while (*text != 0) {
        size_t length = strcspn(text, "\n");
        if (memmem(text, length, part, strlen(part)) != NULL) n++;
        text += length + (text[length] != 0);
    }
    return n;
}

/* What a sanitizer or an assertion says of a server is a failure of the test that ran it. */
static inline void check_server_errors(const server *s) {
    static const char *const bad[] = {"Sanitizer", "runtime error:", "Assertion", "out of memory"};
    char *text = server_errors(s), *at;
    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++)
        if ((at = strstr(text, bad[i])) != NULL) {
            complain_here("the server complained: %.500s", at);
            break;
        }
    free(text);
}

/* Starts the program; `options` are split at spaces. It may or may not become ready. */
static inline void server_launch(server *s, const char *base, const char *dir, const char *options) {
    char copy[512], *argv[40], *word, *save = NULL;
    int out[2], argc = 0, err;
    pid_t parent = getpid();
    memset(s, 0, sizeof *s);
    (void)snprintf(s->dir, sizeof s->dir, "%s", dir);
    (void)snprintf(s->err_path, sizeof s->err_path, "%s/stderr-%d", base, ++started);
    (void)snprintf(copy, sizeof copy, "%s", options);
    argv[argc++] = (char *)(uintptr_t)program();
    if (strstr(options, "--dir") == NULL && strstr(options, "--help") == NULL)
        argv[argc++] = (char *)(uintptr_t) "--dir", argv[argc++] = s->dir;
    if (strstr(options, "--port") == NULL && strstr(options, "--help") == NULL)
        argv[argc++] = (char *)(uintptr_t) "--port", argv[argc++] = (char *)(uintptr_t) "0";
    for (word = strtok_r(copy, " ", &save); word != NULL && argc < 39; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    argv[argc] = NULL;
    if (pipe2(out, O_CLOEXEC) != 0) abort();
    s->pid = fork();
    if (s->pid < 0) abort();
    if (s->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(126);
        err = open(s->err_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (err < 0 || dup2(out[1], 1) < 0 || dup2(err, 2) < 0) _exit(126);
        if (before_exec != NULL) before_exec();
        execv(argv[0], argv);
        _exit(127);
    }
    (void)close(out[1]);
    s->out = out[0];
}

static inline void server_over(server *s, int status) {
    s->pid = 0;
    s->status = status;
    (void)close(s->out);
    check_server_errors(s);
}

/* Waits for its end. The wait status, or -1: it was killed because it did not end. */
static inline int server_wait(server *s) {
    uint64_t until = clock_ms() + PATIENCE_MS;
    int status = 0;
    if (s->pid == 0) return s->status;
    while (waitpid(s->pid, &status, WNOHANG) == 0) {
        if (clock_ms() > until) {
            complain_here("the server does not end");
            (void)kill(s->pid, SIGKILL);
            (void)waitpid(s->pid, NULL, 0);
            server_over(s, -1);
            return -1;
        }
        sleep_ms(2);
    }
    server_over(s, status);
    return status;
}

static inline bool server_ready(server *s, int line) {
    uint64_t until = clock_ms() + PATIENCE_MS;
    size_t n = 0;
    const char *at;
    while (strchr(s->ready, '\n') == NULL && n + 1 < sizeof s->ready) {
        struct pollfd p;
        ssize_t got;
        p.fd = s->out, p.events = POLLIN;
        if (clock_ms() > until || poll(&p, 1, 100) < 0) break;
        if (p.revents == 0) continue;
        got = read(s->out, s->ready + n, sizeof s->ready - 1 - n);
        if (got <= 0) break;
        n += (size_t)got;
        s->ready[n] = 0;
    }
    at = strstr(s->ready, "ready on ");
    if (at != NULL) at = strchr(at, ':'); /* behind the address, whatever --bind says */
    if (at == NULL) {
        char *text = server_errors(s);
        complain(line, "the server does not become ready: %.600s", text);
        free(text);
        return false;
    }
    s->port = atoi(at + 1);
    return true;
}

/* A running server on `dir`; NULL (and a failure) if it does not start. */
static inline server *server_start_at(const char *dir, const char *options, int line) {
    int i;
    for (i = 0; i < MAX_SERVERS && servers[i].pid != 0; i++) {}
    if (i == MAX_SERVERS) abort();
    server_launch(&servers[i], test_dir(), dir, options);
    if (server_ready(&servers[i], line)) return &servers[i];
    (void)kill(servers[i].pid, SIGKILL);
    (void)server_wait(&servers[i]);
    return NULL;
}
#define server_start(dir, options) server_start_at(dir, options, __LINE__)

static inline int server_signal(server *s, int signal_number) {
    (void)kill(s->pid, signal_number);
    return server_wait(s);
}

static inline const char *data_dir(void) {
    static char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%s/data", test_dir());
    return path;
}

/* Runs a server that must refuse: its exit status must be `status`, its stderr have all of the parts (up to NULL). */
static inline void refuses(int line, const char *dir, const char *options, int status, ...) {
    server s;
    int got;
    char *text;
    const char *part;
    va_list parts;
    server_launch(&s, test_dir(), dir, options);
    got = server_wait(&s);
    text = server_errors(&s);
    if (!WIFEXITED(got) || WEXITSTATUS(got) != status)
        complain(line, "the wait status is %#x, not exit status %d: %.500s", (unsigned)got, status, text);
    va_start(parts, status);
    while ((part = va_arg(parts, const char *)) != NULL)
        if (strstr(text, part) == NULL) complain(line, "stderr \"%.500s\" does not contain \"%.200s\"", text, part);
    va_end(parts);
    free(text);
}

/* ---- clients --------------------------------------------------------------------------------------------------- */

typedef struct client {
    struct client *next; /* in the list of all, which stop_all frees */
    int fd;
    bool closed, late; /* by the server; a wait was too long */
    bytes in, out, reply;
    size_t in_at, out_at;
} client;

static client *clients;
static pthread_mutex_t clients_lock = PTHREAD_MUTEX_INITIALIZER;

static inline client *client_open(int port) {
    client *c = calloc(1, sizeof *c);
    struct sockaddr_in a;
    int one = 1;
    if (c == NULL) abort();
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof a) != 0) {
        complain_here("cannot connect to port %d: %s", port, strerror(errno));
        c->closed = true;
    }
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->fd >= 0) (void)fcntl(c->fd, F_SETFL, O_NONBLOCK);
    (void)pthread_mutex_lock(&clients_lock);
    c->next = clients;
    clients = c;
    (void)pthread_mutex_unlock(&clients_lock);
    return c;
}

static inline void client_hang_up(client *c) {
    if (c->fd >= 0) (void)close(c->fd);
    c->fd = -1;
    c->closed = true;
}

/* Resets the connection: what the server still writes goes nowhere. */
static inline void client_reset(client *c) {
    struct linger l;
    l.l_onoff = 1, l.l_linger = 0;
    (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    client_hang_up(c);
}

static inline void client_io(client *c, int timeout_ms) {
    struct pollfd p;
    ssize_t n;
    p.fd = c->fd, p.events = (short)(POLLIN | (c->out_at < c->out.len ? POLLOUT : 0)), p.revents = 0;
    if (c->closed || poll(&p, 1, timeout_ms) <= 0) return;
    if ((p.revents & POLLOUT) != 0) {
        n = send(c->fd, c->out.p + c->out_at, c->out.len - c->out_at, MSG_NOSIGNAL);
        if (n > 0) c->out_at += (size_t)n;
        if (c->out_at == c->out.len) c->out_at = c->out.len = 0;
    }
    if ((p.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
        n = recv(c->fd, bytes_room(&c->in, 256 << 10), 256 << 10, 0);
        if (n > 0) c->in.len += (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR)) c->closed = true;
    }
}

/* Sends all that is in `out`; reads meanwhile, so that neither side waits for the other. */
static inline void client_flush(client *c) {
    uint64_t until = clock_ms() + PATIENCE_MS;
    while (c->out_at < c->out.len && !c->closed) {
        size_t before = c->out_at + c->in.len;
        client_io(c, 100);
        if (c->out_at + c->in.len != before) until = clock_ms() + PATIENCE_MS;
        if (clock_ms() > until) {
            complain_here("the server does not read");
            return;
        }
    }
}

/* -- commands out -- */

static inline void put_array(client *c, size_t n) {
    char head[32];
    bytes_put(&c->out, head, (size_t)sprintf(head, "*%zu\r\n", n));
}
static inline void put_arg(client *c, const void *p, size_t n) {
    char head[32];
    bytes_put(&c->out, head, (size_t)sprintf(head, "$%zu\r\n", n));
    bytes_put(&c->out, p, n);
    bytes_put(&c->out, "\r\n", 2);
}
static inline void put_text(client *c, const char *text) { put_arg(c, text, strlen(text)); }

/* Splits a command into words; to[i] ends at ends[i]. The words are made in `room`. */
static inline size_t split_words(const char *p, char *room, char **to, size_t *sizes, size_t max) {
    size_t n = 0;
    for (;;) {
        while (*p == ' ') p++;
        if (*p == 0 || n == max) return n;
        to[n] = room;
        if (*p == '"') {
            for (p++; *p != 0 && *p != '"'; p++) {
                if (*p != '\\') *room++ = *p;
                else if (*++p == 'x') {
                    char hex[3];
                    hex[0] = p[1], hex[1] = p[2], hex[2] = 0;
                    *room++ = (char)strtol(hex, NULL, 16);
                    p += 2;
                } else *room++ = *p == 'r' ? '\r' : *p == 'n' ? '\n' : *p == 't' ? '\t' : *p;
            }
            if (*p == '"') p++;
        } else
            while (*p != 0 && *p != ' ') *room++ = *p++;
        sizes[n] = (size_t)(room - to[n]);
        n++;
        *room++ = 0;
    }
}

static inline void put_line(client *c, const char *line) {
    char room[4096], *words[512];
    size_t sizes[512], n = split_words(line, room, words, sizes, 512), i;
    put_array(c, n);
    for (i = 0; i < n; i++) put_arg(c, words[i], sizes[i]);
}

__attribute__((format(printf, 2, 3))) static inline void putf(client *c, const char *format, ...) {
    char line[2048];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    put_line(c, line);
}

/* -- replies in -- */

typedef struct leaf { /* a scalar of a reply; all of them in a row, however they were nested */
    const char *p;
    size_t n;
    char kind;
} leaf;
typedef struct leaves {
    leaf *at;
    size_t n, max;
} leaves;

/* Behind the reply that begins at p; NULL: it is not complete. */
static inline const char *reply_end(const char *p, const char *end, leaves *out) {
    const char *line = p < end ? memchr(p, '\n', (size_t)(end - p)) : NULL;
    long long n;
    char kind;
    if (line == NULL) return NULL;
    kind = *p++;
    line++;
    n = strtoll(p, NULL, 10);
    if (kind == '*' || kind == '%' || kind == '~') {
        if (kind == '%') n *= 2;
        for (; n > 0 && line != NULL; n--) line = reply_end(line, end, out);
        return line;
    }
    if (kind == '$' && n >= 0) {
        if (end - line < n + 2) return NULL;
        p = line;
        line += n + 2;
    } else n = line - 2 - p;
    if (out != NULL && out->n < out->max)
        out->at[out->n].p = p, out->at[out->n].n = (size_t)(n < 0 ? 0 : n), out->at[out->n].kind = kind, out->n++;
    return line;
}

/* The next reply, raw, with a zero behind it; valid until the next one. "(closed)" or "(late)" if there is none. */
static inline const char *reply(client *c) {
    uint64_t until = clock_ms() + PATIENCE_MS;
    client_flush(c);
    for (;;) {
        const char *begin = c->in.p == NULL ? "" : c->in.p + c->in_at, *end = begin + (c->in.len - c->in_at),
                   *behind = reply_end(begin, end, NULL);
        c->reply.len = 0;
        if (behind != NULL) {
            bytes_put(&c->reply, begin, (size_t)(behind - begin));
            c->in_at += (size_t)(behind - begin);
            if (c->in_at == c->in.len) c->in_at = c->in.len = 0;
            return c->reply.p;
        }
        if (c->in_at > 1 << 20) {
            memmove(c->in.p, c->in.p + c->in_at, c->in.len - c->in_at);
            c->in.len -= c->in_at, c->in_at = 0;
        }
        if (c->closed || c->late) break;
        if (clock_ms() > until) {
            c->late = true;
            complain_here("no reply within %d ms", PATIENCE_MS);
            break;
        }
        {
            size_t before = c->in.len;
            client_io(c, 100);
            if (c->in.len != before) until = clock_ms() + PATIENCE_MS;
        }
    }
    if (c->closed) bytes_put(&c->reply, "(closed)", 8);
    else bytes_put(&c->reply, "(late)", 6);
    return c->reply.p;
}

static inline size_t reply_leaves(client *c, leaf *to, size_t max) {
    leaves l;
    l.at = to, l.n = 0, l.max = max;
    (void)reply(c);
    (void)reply_end(c->reply.p, c->reply.p + c->reply.len, &l);
    return l.n;
}

static inline void check_reply(int line, client *c, const char *what, const char *want, size_t n) {
    char a[400], b[400];
    (void)reply(c);
    if (c->reply.len != n || memcmp(c->reply.p, want, n) != 0)
        complain(line, "%.100s answered \"%s\", not \"%s\"", what, readable(c->reply.p, c->reply.len, a, sizeof a),
                 readable(want, n, b, sizeof b));
}
static inline void says_at(int line, client *c, const char *command, const char *want) {
    put_line(c, command);
    check_reply(line, c, command, want, strlen(want));
}
#define says(c, command, want) says_at(__LINE__, c, command, want)
#define next_is(c, want) check_reply(__LINE__, c, "a command", want, strlen(want))

/* The reply begins with `want`. */
static inline void begins_at(int line, client *c, const char *command, const char *want) {
    char a[400];
    put_line(c, command);
    (void)reply(c);
    if (strncmp(c->reply.p, want, strlen(want)) != 0)
        complain(line, "%.100s answered \"%s\", not \"%s...\"", command,
                 readable(c->reply.p, c->reply.len, a, sizeof a), want);
}
#define begins(c, command, want) begins_at(__LINE__, c, command, want)

static inline const char *ask(client *c, const char *command) {
    put_line(c, command);
    return reply(c);
}

static inline long long number_at(int line, client *c, const char *command) {
    const char *r = ask(c, command);
    if (*r == ':') return atoll(r + 1);
    complain(line, "%.100s answered \"%.100s\", not a number", command, r);
    return -1000000;
}
#define number(c, command) number_at(__LINE__, c, command)

static inline long long info(client *c, const char *field) {
    char name[64];
    const char *at;
    (void)snprintf(name, sizeof name, "\n%s:", field);
    at = strstr(ask(c, "INFO"), name);
    return at == NULL ? -1 : atoll(at + strlen(name));
}

/* Waits until INFO's field is at most (`up`: at least) `limit`. */
static inline bool info_reaches(client *c, const char *field, bool up, long long limit) {
    uint64_t until = clock_ms() + PATIENCE_MS;
    for (;;) {
        long long n = info(c, field);
        if (up ? n >= limit : n >= 0 && n <= limit) return true;
        if (clock_ms() > until || c->closed) return false;
        sleep_ms(10);
    }
}

/* ---- the frame of a test --------------------------------------------------------------------------------------- */

static inline void stop_all(void) {
    int i;
    while (clients != NULL) {
        client *c = clients;
        clients = c->next;
        if (c->fd >= 0) (void)close(c->fd);
        bytes_free(&c->in), bytes_free(&c->out), bytes_free(&c->reply);
        free(c);
    }
    for (i = 0; i < MAX_SERVERS; i++)
        if (servers[i].pid != 0) (void)server_signal(&servers[i], SIGKILL);
    before_exec = NULL;
}

/* A test that leaves no server and no connection behind, whichever way it ends. */
#define DB_TEST(name)                                                                                                  \
    static void body_##name(void);                                                                                     \
    TEST(name) {                                                                                                       \
        body_##name();                                                                                                 \
        stop_all();                                                                                                    \
    }                                                                                                                  \
    static void body_##name(void)

/* A connection to the shared server, which is empty. */
static inline client *shared_client(void) {
    char dir[PATH_BYTES];
    client *c;
    if (shared.pid != 0 && waitpid(shared.pid, &shared.status, WNOHANG) == shared.pid) {
        complain_here("the shared server has died: wait status %#x", (unsigned)shared.status);
        server_over(&shared, shared.status);
    }
    if (shared.pid == 0) {
        (void)snprintf(shared_base, sizeof shared_base, "%s/nodedb-shared-%d",
                       access("build", W_OK) == 0 ? "build/tmp" : "tmp", (int)getpid());
        (void)test_dir(); /* makes what is above it */
        (void)mkdir(shared_base, 0777);
        (void)snprintf(dir, sizeof dir, "%s/data", shared_base);
        server_launch(&shared, shared_base, dir, "--cores 2");
        if (!server_ready(&shared, __LINE__)) {
            fprintf(stderr, "nothing can be tested without a server: is %s built?\n", program());
            exit(1);
        }
    }
    c = client_open(shared.port);
    says(c, "FLUSHALL", "+OK\r\n");
    return c;
}

static inline void end_shared(void) {
    if (shared.pid != 0) {
        (void)kill(shared.pid, SIGKILL);
        (void)waitpid(shared.pid, NULL, 0);
    }
    if (shared_base[0] != 0) test_remove_tree(shared_base);
}

#endif
