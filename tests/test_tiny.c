/* examples/tiny.c from outside: a real process, real sockets, real kills. Every server that a test starts dies with the
 * test. The program is example_tiny in the directory that NODEDB_BUILD_DIR names (default "build"). */
#include "test.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define PATIENCE_S 10 /* every wait ends then, and fails the test */
#define WRITERS 32    /* clients that write at the same time, so that they share turns of the disk */
#define NEAREST 4     /* what a search answers at most, and */
#define PLACES 128    /* clients that are served at once: both are the program's */

/* ---- the server -------------------------------------------------------------------------------------------------- */

static pid_t server_pid;
static int server_port, server_out = -1;

static const char *in_test_dir(const char *name) {
    static char path[700];
    (void)snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    return path;
}

/* Its stderr, of all runs in this test. */
static const char *server_errors(void) {
    static char text[4000];
    FILE *file = fopen(in_test_dir("stderr"), "r");
    text[0] = 0;
    if (file == NULL) return text;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    (void)fclose(file);
    return text;
}

/* Waits for its end; its wait status, or -1 if it had to be killed. What a sanitizer says is a failure. */
static int server_wait(void) {
    int status = -1, ms;
    for (ms = 0; waitpid(server_pid, &status, WNOHANG) == 0; ms++) {
        if (ms == PATIENCE_S * 1000) {
            test_fail(__FILE__, __LINE__, "the server does not end");
            (void)kill(server_pid, SIGKILL);
            (void)waitpid(server_pid, NULL, 0);
            status = -1;
            break;
        }
        (void)usleep(1000);
    }
    server_pid = 0;
    (void)close(server_out);
    if (strstr(server_errors(), "Sanitizer") != NULL || strstr(server_errors(), "runtime error") != NULL)
        test_fail(__FILE__, __LINE__, server_errors());
    return status;
}

static int server_signal(int signal_number) {
    (void)kill(server_pid, signal_number);
    return server_wait();
}

/* Starts it, on the directory of this test. `memory` NULL: its default. */
static bool server_start(const char *memory) {
    char program[700], said[100] = "", dir[700];
    const char *build = getenv("NODEDB_BUILD_DIR");
    size_t bytes = 0;
    int out[2];
    pid_t parent = getpid();
    if (server_pid != 0) (void)server_signal(SIGKILL); /* a test that failed has left it */
    (void)snprintf(program, sizeof program, "%s/example_tiny", build != NULL && build[0] != 0 ? build : "build");
    (void)snprintf(dir, sizeof dir, "%s", in_test_dir("data"));
    if (pipe2(out, O_CLOEXEC) != 0) abort();
    server_pid = fork();
    if (server_pid < 0) abort();
    if (server_pid == 0) {
        int err = open(in_test_dir("stderr"), O_WRONLY | O_CREAT | O_APPEND, 0644);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || err < 0 || dup2(out[1], 1) < 0 || dup2(err, 2) < 0) _exit(126);
        (void)execl(program, program, dir, "0", memory, (char *)NULL);
        _exit(127);
    }
    (void)close(out[1]);
    server_out = out[0];
    while (strchr(said, '\n') == NULL && bytes + 1 < sizeof said) {
        struct pollfd p = {.fd = server_out, .events = POLLIN};
        ssize_t n = poll(&p, 1, PATIENCE_S * 1000) > 0 ? read(server_out, said + bytes, sizeof said - 1 - bytes) : 0;
        if (n <= 0) break;
        bytes += (size_t)n;
        said[bytes] = 0;
    }
    if (sscanf(said, "ready on port %d\n", &server_port) == 1) return true;
    test_fail(__FILE__, __LINE__, "the server does not become ready; ./build.sh build makes it");
    fprintf(stderr, "%s: \"%s\" %s\n", program, said, server_errors());
    (void)server_signal(SIGKILL);
    return false;
}

/* ---- clients ----------------------------------------------------------------------------------------------------- */

typedef struct client {
    int fd;
    size_t from, to; /* of `input`, what has not been looked at */
    char input[4096];
} client;

static bool client_open(client *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    int one = 1;
    memset(c, 0, sizeof *c);
    address.sin_port = htons((uint16_t)server_port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) == 0) return true;
    test_fail(__FILE__, __LINE__, "cannot connect");
    return false;
}

static bool send_bytes(client *c, const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t n = send(c->fd, bytes, count, MSG_NOSIGNAL);
        if (n <= 0) return false;
        bytes += n, count -= (size_t)n;
    }
    return true;
}

static bool send_text(client *c, const char *text) { return send_bytes(c, text, strlen(text)); }

/* The next line, its end cut off. Reads once, if no whole line is there. NULL: there is none, and *more says if
 * there may be one later. */
static const char *line_here(client *c, bool *more) {
    for (int reads = 0;; reads++) {
        char *line = c->input + c->from, *end = memchr(line, '\n', c->to - c->from);
        ssize_t n;
        if (end != NULL) {
            *end = 0;
            c->from = (size_t)(end + 1 - c->input);
            return line;
        }
        if (reads == 1) return NULL;
        memmove(c->input, line, c->to - c->from);
        c->to -= c->from, c->from = 0;
        n = recv(c->fd, c->input + c->to, sizeof c->input - c->to, 0);
        *more = n > 0;
        if (n <= 0) return NULL;
        c->to += (size_t)n;
    }
}

/* Waits for a line. "": there is none, and this client waits for no more. */
static const char *next_line(client *c) {
    bool more = true;
    const char *line = NULL;
    while (line == NULL && more) line = line_here(c, &more);
    if (line == NULL) (void)shutdown(c->fd, SHUT_RD);
    return line != NULL ? line : "";
}

static const char *ask(client *c, const char *line) {
    char text[1200];
    (void)send_bytes(c, text, (size_t)snprintf(text, sizeof text, "%s\n", line));
    return next_line(c);
}

/* Is the answer to `line` this? */
static void says_at(int at, client *c, const char *line, const char *want) {
    const char *got = ask(c, line);
    char text[400];
    if (strcmp(got, want) == 0) return;
    (void)snprintf(text, sizeof text, "\"%.100s\" is answered \"%.100s\", not \"%.100s\"", line, got, want);
    test_fail(__FILE__, at, text);
}
#define says(c, line, want) says_at(__LINE__, c, line, want)
#define is_error(answer) (strncmp(answer, "ERR ", 4) == 0)

/* ---- many writes at once ----------------------------------------------------------------------------------------- */

/* Items by number: keys whose value tells its version; and, where there are vectors, every second one is a vector. The
 * version that the server must have lies between the last that it acknowledged and the last that it was sent. */
enum { ITEMS = 1200, LONG_VALUE_BYTES = 400 };
static struct item { int sent, kept; float at[3]; } items[ITEMS];
static bool with_vectors, with_long_values;

static bool is_vector(int i) { return with_vectors && i % 2 == 0; }

static void items_reset(bool vectors, bool long_values) {
    uint64_t state = test_seed;
    memset(items, 0, sizeof items);
    with_vectors = vectors, with_long_values = long_values;
    for (int i = 0; i < ITEMS; i++)
        for (int k = 0; k < 3; k++) items[i].at[k] = (float)(test_random(&state) % 2000001) / 1000.0f - 1000.0f;
}

static const char *value_of(int i, int version) {
    static char text[LONG_VALUE_BYTES + 40];
    size_t bytes = (size_t)snprintf(text, sizeof text, "v%d-of-%d ", version, i);
    for (; with_long_values && bytes < LONG_VALUE_BYTES; bytes++) text[bytes] = (char)('a' + (i + version) % 26);
    text[bytes] = 0;
    return text;
}

static void send_write(client *c, int i) {
    char line[1000];
    int version = ++items[i].sent;
    if (is_vector(i)) (void)snprintf(line, sizeof line, "add %d %.9g %.9g %.9g\n", i, items[i].at[0], items[i].at[1],
                                     items[i].at[2]);
    else (void)snprintf(line, sizeof line, "set key%d %s\n", i, value_of(i, version));
    (void)send_text(c, line);
}

/* Writes the first `count` items from WRITERS clients, each its share in order. When `enough` are acknowledged it sends
 * `signal_number` (0: none) and goes on until the connections end. Returns how many were refused for want of memory. */
static int write_items(int count, int enough, int signal_number) {
    static client clients[WRITERS];
    struct pollfd polled[WRITERS];
    int at[WRITERS], refused = 0, kept = 0, busy = 0;
    for (int w = 0; w < WRITERS; w++, busy++) {
        if (!client_open(&clients[w])) return -1;
        polled[w] = (struct pollfd){.fd = clients[w].fd, .events = POLLIN};
        send_write(&clients[w], at[w] = w);
    }
    while (busy > 0 && poll(polled, WRITERS, PATIENCE_S * 1000) > 0) {
        for (int w = 0; w < WRITERS; w++) {
            bool more = true;
            const char *line = polled[w].fd < 0 || polled[w].revents == 0 ? NULL : line_here(&clients[w], &more);
            if (line != NULL && strcmp(line, "OK") == 0) items[at[w]].kept = items[at[w]].sent, kept++;
            else if (line != NULL && strcmp(line, "ERR out of memory") == 0) items[at[w]].sent--, refused++;
            else if (line != NULL) test_fail(__FILE__, __LINE__, line);
            if (line != NULL && (at[w] += WRITERS) < count) send_write(&clients[w], at[w]);
            else if (line != NULL || !more) polled[w].fd = -1, busy--;
            if (kept == enough && signal_number != 0) (void)kill(server_pid, signal_number), signal_number = 0;
        }
    }
    CHECK_EQ(busy, 0);
    for (int w = 0; w < WRITERS; w++) (void)close(clients[w].fd);
    return refused;
}

/* Asks for all items, many lines ahead of the answers, and finds out which version is there. */
static void check_items(void) {
    client c;
    int wrong = 0, version, i;
    if (!client_open(&c)) return;
    for (int first = 0; first < ITEMS; first += 50) {
        for (i = first; i < first + 50; i++) {
            char line[200];
            if (is_vector(i)) (void)snprintf(line, sizeof line, "near %.9g %.9g %.9g\n", items[i].at[0],
                                             items[i].at[1], items[i].at[2]);
            else (void)snprintf(line, sizeof line, "get key%d\n", i);
            (void)send_text(&c, line);
        }
        for (i = first; i < first + 50; i++) {
            const char *line = next_line(&c);
            char itself[40];
            (void)snprintf(itself, sizeof itself, "%d:0", i);
            if (is_vector(i)) version = strncmp(line, itself, strlen(itself)) == 0 ? items[i].sent : 0;
            else if (sscanf(line, "v%d", &version) != 1) version = 0;
            if (version < items[i].kept || version > items[i].sent ||
                (version > 0 && !is_vector(i) && strcmp(line, value_of(i, version)) != 0)) {
                if (wrong++ == 0) fprintf(stderr, "item %d: kept %d, sent %d, but the answer is \"%.60s\"\n", i,
                                          items[i].kept, items[i].sent, line);
            }
            items[i].kept = items[i].sent = version;
        }
    }
    CHECK_EQ(wrong, 0);
    (void)close(c.fd);
}

static int items_kept(void) {
    int kept = 0;
    for (int i = 0; i < ITEMS; i++) kept += items[i].kept > 0;
    return kept;
}

static double distance_to(int i, const float at[3]) {
    double sum = 0;
    for (int k = 0; k < 3; k++) sum += ((double)items[i].at[k] - at[k]) * ((double)items[i].at[k] - at[k]);
    return sqrt(sum);
}

/* How many of the nearest, as looking at every vector tells, a search does not find. */
static int count_misses(client *c, const float at[3]) {
    double found[NEAREST], nearest[NEAREST + 1] = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY};
    unsigned id[NEAREST];
    char line[200];
    int misses = 0;
    (void)snprintf(line, sizeof line, "near %.9g %.9g %.9g", at[0], at[1], at[2]);
    if (sscanf(ask(c, line), "%u:%lf %u:%lf %u:%lf %u:%lf", &id[0], &found[0], &id[1], &found[1], &id[2], &found[2],
               &id[3], &found[3]) != 2 * NEAREST) return NEAREST;
    for (int i = 0, k; i < ITEMS; i++) { /* sorted in, the last falls off */
        double distance = distance_to(i, at);
        if (!is_vector(i) || items[i].kept == 0) continue;
        for (k = NEAREST; k > 0 && nearest[k - 1] > distance; k--) nearest[k] = nearest[k - 1];
        nearest[k] = distance;
    }
    for (int k = 0; k < NEAREST; k++) {
        bool is_true = id[k] < ITEMS && items[id[k]].kept > 0 && fabs(distance_to((int)id[k], at) - found[k]) <= 1e-3;
        CHECK(is_true && (k == 0 || id[k] != id[k - 1])); /* it is there, once, and as far as it says */
        if (!is_true) return 1000;
        misses += found[k] > nearest[k] + 1e-3;
    }
    return misses;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

TEST(every_line_gets_its_answer) {
    client c, other;
    REQUIRE(server_start(NULL) && client_open(&c) && client_open(&other));
    says(&c, "get colour", "(nil)");
    says(&c, "near 0 0 0", "(nil)");
    says(&c, "set colour red", "OK");
    says(&other, "get colour", "red"); /* whichever core it is on */
    says(&other, "set colour  dark green ", "OK");
    says(&c, "get colour", "dark green ");
    says(&c, "add 7 3 4 0", "OK");
    says(&c, "add 8 0 0 1.5", "OK");
    says(&other, "near 0 0 0", "8:1.5 7:5");
    says(&other, "add 8 0 0 6", "OK"); /* replaced, not doubled */
    says(&c, "near 0 0 0", "7:5 8:6");
    says(&c, "get colour\r", "dark green ");
    (void)close(c.fd), (void)close(other.fd);
    CHECK_EQ(server_signal(SIGTERM), 0);
}

TEST(garbage_gets_an_error_and_everything_goes_on) {
    static const char *const bad[] = {"", " ", "get", "get a b", "set", "set a", "set a ", "add", "add 1", "add 1 2 3",
        "add 1 2 3 4 5", "add -1 2 3 4", "add x 2 3 4", "add 1 nan 3 4", "add 1 inf 3 4", "add 1 1e999 3 4",
        "add 1 1e16 3 4", "add 123456789012345678901 2 3 4", "near", "near 1 2", "near 1 2 3 4", "near 1 2 nan",
        "GET a", "gets a", "settle a b", "nearer 1 2 3", "quit", "\1\2\3"};
    char noise[3000];
    uint64_t state = test_seed;
    client c, other;
    REQUIRE(server_start(NULL) && client_open(&c) && client_open(&other));
    says(&other, "set a 1", "OK");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!is_error(ask(&c, bad[i]))) says(&c, bad[i], "ERR ..."), test_fail(__FILE__, __LINE__, bad[i]);
    CHECK(send_bytes(&c, "set a 2\0 3\n", 11) && is_error(next_line(&c))); /* and not "2" */
    memset(noise, 'x', sizeof noise);
    for (size_t bytes = 890; bytes < sizeof noise; bytes += bytes < 910 ? 1 : 517) { /* around the limit, and beyond */
        memcpy(noise + bytes - 8, " set a 2\n", 9); /* the end of a line that is too long is no line of its own */
        CHECK(send_bytes(&c, noise, bytes + 1) && is_error(next_line(&c)));
        memset(noise, 'x', sizeof noise);
    }
    for (int round = 0; round < 50; round++) {
        int lines = 1;
        for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)test_random(&state);
        noise[sizeof noise - 1] = '\n';
        for (size_t i = 0; i + 1 < sizeof noise; i++) lines += noise[i] == '\n';
        CHECK(send_bytes(&c, noise, sizeof noise));
        while (lines > 0 && is_error(next_line(&c))) lines--;
        CHECK_EQ(lines, 0);
    }
    says(&c, "get a", "1");
    says(&other, "near 0 0 0", "(nil)");
    (void)close(c.fd);
    says(&other, "get a", "1");
    CHECK_EQ(server_signal(SIGTERM), 0);
    (void)close(other.fd);
}

TEST(a_line_may_come_in_pieces_and_many_in_one) {
    static const char text[] = "set town Ulm\nget town\r\nadd 5 1 2 3\nnear 1 2 3\n";
    char longest[900];
    client c;
    REQUIRE(server_start(NULL) && client_open(&c));
    for (size_t i = 0; i + 1 < sizeof text; i++) { /* byte by byte */
        CHECK(send_bytes(&c, text + i, 1));
        (void)usleep(200);
    }
    for (int round = 0; round < 2; round++) {
        CHECK(strcmp(next_line(&c), "OK") == 0 && strcmp(next_line(&c), "Ulm") == 0);
        CHECK(strcmp(next_line(&c), "OK") == 0 && strcmp(next_line(&c), "5:0") == 0);
        if (round == 0) CHECK(send_text(&c, text)); /* and at once */
    }
    memset(longest, 'y', sizeof longest);
    memcpy(longest, "set k ", 6);
    longest[899] = 0;
    says(&c, longest, "OK");
    says(&c, "get k", longest + 6);
    CHECK(send_text(&c, "set last 1\nget la")); /* it leaves in the middle of a line */
    (void)shutdown(c.fd, SHUT_WR);
    CHECK(strcmp(next_line(&c), "OK") == 0 && strcmp(next_line(&c), "") == 0);
    (void)close(c.fd);
    CHECK_EQ(server_signal(SIGTERM), 0);
}

TEST(pipelined_lines_are_answered_in_order_and_see_what_came_before) {
    static const char *const wanted[] = {"OK", "%d", "OK", "1:%d", "ERR "};
    char text[8000], want[40];
    size_t bytes = 0;
    client c;
    REQUIRE(server_start(NULL) && client_open(&c));
    for (int i = 1; i <= 60; i++)
        bytes += (size_t)snprintf(text + bytes, sizeof text - bytes,
                                  "set key%d %d\nget key%d\nadd 1 %d 0 0\nnear 0 0 0\nrubbish\n", i % 7, i, i % 7, i);
    CHECK(send_bytes(&c, text, bytes));
    for (int i = 1; i <= 60; i++) {
        for (int k = 0; k < 5; k++) {
            (void)snprintf(want, sizeof want, wanted[k], i);
            const char *got = next_line(&c);
            if (k == 4 ? is_error(got) : strcmp(got, want) == 0) continue;
            fprintf(stderr, "line %d.%d is answered \"%.60s\", not \"%s\"\n", i, k, got, want);
            REQUIRE(false);
        }
    }
    (void)close(c.fd);
    CHECK_EQ(server_signal(SIGTERM), 0);
}

TEST(what_was_acknowledged_is_there_after_a_kill_in_the_middle_of_writes) {
    static const int signals[] = {SIGKILL, SIGKILL, SIGTERM, SIGKILL};
    items_reset(true, false);
    for (int round = 0; round < 4; round++) {
        int status;
        REQUIRE(server_start(NULL));
        check_items();
        (void)write_items(ITEMS, 200 + 100 * round, signals[round]); /* the same ones again: versions grow */
        status = server_wait();
        if (signals[round] == SIGKILL) CHECK(WIFSIGNALED(status));
        else CHECK_EQ(status, 0);
    }
    REQUIRE(server_start(NULL));
    check_items();
    CHECK(items_kept() >= 500);
    CHECK_EQ(server_signal(SIGINT), 0);
}

TEST(near_finds_what_looking_at_every_vector_finds_before_and_after_a_restart) {
    uint64_t state = test_seed + 1;
    client c;
    items_reset(true, false);
    REQUIRE(server_start(NULL));
    CHECK_EQ(write_items(ITEMS, 0, 0), 0);
    for (int restarts = 0; restarts < 2; restarts++) {
        int misses = 0;
        REQUIRE(client_open(&c));
        for (int i = 0; i < 100 && misses < 1000; i++) {
            float at[3];
            for (int k = 0; k < 3; k++) at[k] = (float)(test_random(&state) % 2400001) / 1000.0f - 1200.0f;
            misses += count_misses(&c, at);
        }
        CHECK(misses <= 4); /* of 400 */
        (void)close(c.fd);
        CHECK_EQ(server_signal(SIGTERM), 0);
        if (restarts == 0) REQUIRE(server_start(NULL));
    }
}

static const char *small_line(int i) {
    static char line[40];
    (void)snprintf(line, sizeof line, "set small%d 1", i);
    return line;
}

TEST(memory_is_bounded_long_values_leave_it_and_writes_are_refused_when_it_is_used_up) {
    client c;
    int refused, small;
    items_reset(false, true);
    REQUIRE(server_start("131072"));
    refused = write_items(ITEMS, 0, 0);
    CHECK(refused > 0);
    CHECK_EQ(items_kept() + refused, ITEMS);
    CHECK(items_kept() * LONG_VALUE_BYTES > 131072); /* more than fits */
    check_items();                                   /* but all of it can be read */
    REQUIRE(client_open(&c));
    for (small = 0; small < 10 && strcmp(ask(&c, small_line(small)), "OK") == 0; small++) {}
    CHECK(small < 10); /* there was no room for a long one any more, and now not even for these */
    says(&c, "add 1 1 1 1", "ERR out of memory");
    says(&c, "near 1 1 1", "(nil)");
    (void)close(c.fd);
    (void)server_signal(SIGKILL);
    REQUIRE(server_start("131072")); /* what was granted is not refused by a restart */
    check_items();
    REQUIRE(client_open(&c));
    says(&c, small_line(small), "ERR out of memory");
    (void)close(c.fd);
    CHECK_EQ(server_signal(SIGTERM), 0);
    REQUIRE(server_start(NULL)); /* with more memory it goes on */
    check_items();
    REQUIRE(client_open(&c));
    says(&c, "add 1 1 1 1", "OK");
    (void)close(c.fd);
    CHECK_EQ(server_signal(SIGTERM), 0);
}

TEST(what_replaces_something_takes_its_memory_over) {
    char line[900];
    client c;
    REQUIRE(server_start("32768") && client_open(&c));
    memset(line, 'w', sizeof line);
    line[899] = 0;
    for (int i = 0; i < 60; i++) says(&c, "add 1 1 2 3", "OK"); /* 60 of them would be too many */
    for (int i = 0; i < 120; i++) { /* one key 60 times; then others until memory is short; one that is cold 40 times */
        int key = i < 60 ? 0 : i < 80 ? i - 60 : 99;
        (void)snprintf(line, sizeof line, "set key%02d %02d", key, i % 100);
        line[strlen(line)] = 'w'; /* it is long again */
        says(&c, line, "OK");
    }
    says(&c, "get key99", line + 10);
    (void)close(c.fd);
    CHECK_EQ(server_signal(SIGTERM), 0);
}

static long server_resident_kib(void) {
    char path[60], line[200];
    long kib = -1;
    FILE *file;
    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)server_pid);
    file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmRSS: %ld", &kib) == 1) break;
    if (file != NULL) (void)fclose(file);
    return kib;
}

TEST(a_client_that_does_not_read_costs_no_memory_and_nobody_else_waits) {
    char line[900], many[8 * 1000];
    client lazy, other;
    long before;
    size_t bytes = 0;
    REQUIRE(server_start(NULL) && client_open(&lazy) && client_open(&other));
    memset(line, 'z', sizeof line);
    memcpy(line, "set big ", 8);
    line[899] = 0;
    says(&other, line, "OK");
    before = server_resident_kib();
    for (size_t i = 0; i < sizeof many / 8; i++) memcpy(many + 8 * i, "get big\n", 8);
    (void)fcntl(lazy.fd, F_SETFL, O_NONBLOCK);
    for (int pause = 0; pause < 30;) { /* until it takes no more */
        ssize_t n = send(lazy.fd, many + bytes % 8, sizeof many - 8, MSG_NOSIGNAL);
        if (n > 0) bytes += (size_t)n, pause = 0;
        else (void)usleep(1000), pause++;
    }
    CHECK(bytes > 8000);
    says(&other, "get big", line + 8);
    CHECK(server_resident_kib() < before + 4096);
    (void)fcntl(lazy.fd, F_SETFL, 0);
    for (bytes = 0; bytes < 8000 && strcmp(next_line(&lazy), line + 8) == 0; bytes += 8) {}
    CHECK_EQ(bytes, 8000); /* nothing was lost meanwhile */
    CHECK_EQ(server_signal(SIGTERM), 0); /* it has answers that it does not fetch; a stop does not wait for it */
    (void)close(lazy.fd), (void)close(other.fd);
}

TEST(clients_for_whom_there_is_no_place_wait_for_one) {
    enum { ALL = PLACES + 12 };
    static client clients[ALL];
    struct pollfd polled[ALL];
    int answered = 0, ms;
    REQUIRE(server_start(NULL));
    for (int i = 0; i < ALL; i++) {
        REQUIRE(client_open(&clients[i]) && send_text(&clients[i], "get nothing\n"));
        polled[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
    }
    for (ms = 0; ms < 100 || (answered < PLACES && ms < PATIENCE_S * 1000); ms += 20) {
        (void)usleep(20000);
        answered = poll(polled, ALL, 0);
    }
    CHECK_EQ(answered, PLACES);
    for (int i = 0, left = 0; i < ALL && left < 12; i++)
        if (polled[i].revents != 0) (void)close(clients[i].fd), clients[i].fd = -1, left++;
    for (int i = 0; i < ALL; i++)
        if (clients[i].fd >= 0) CHECK(strcmp(next_line(&clients[i]), "(nil)") == 0);
    CHECK_EQ(server_signal(SIGTERM), 0);
    for (int i = 0; i < ALL; i++)
        if (clients[i].fd >= 0) (void)close(clients[i].fd);
}

TEST(no_queue_runs_full_when_every_client_sends_without_a_pause) {
    enum { ROUNDS = 3, LINES = 50 };
    static client clients[PLACES];
    char text[LINES * 16];
    size_t bytes = 0;
    int wrong = 0;
    REQUIRE(server_start(NULL));
    for (int i = 0; i < PLACES; i++) REQUIRE(client_open(&clients[i]));
    for (int i = 0; i < 20; i++) {
        (void)snprintf(text, sizeof text, "set key%02d %d", i, i);
        says(&clients[0], text, "OK");
    }
    for (int k = 0; k < LINES; k++) bytes += (size_t)snprintf(text + bytes, 16, "get key%02d\n", k % 20);
    for (int round = 0; round < ROUNDS && wrong == 0; round++) {
        for (int i = 0; i < PLACES; i++) REQUIRE(send_bytes(&clients[i], text, bytes));
        for (int i = 0; i < PLACES; i++)
            for (int k = 0; k < LINES; k++) wrong += atoi(next_line(&clients[i])) != k % 20;
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(server_signal(SIGTERM), 0);
    for (int i = 0; i < PLACES; i++) (void)close(clients[i].fd);
}

/* Runs the program with these arguments; its exit status. Its stderr is where server_errors() looks. */
static int run(const char *arguments) {
    char command[1600];
    const char *build = getenv("NODEDB_BUILD_DIR");
    (void)snprintf(command, sizeof command, "timeout %d %s/example_tiny %s 2>>%s/stderr >/dev/null", PATIENCE_S,
                   build != NULL && build[0] != 0 ? build : "build", arguments, test_dir());
    return WEXITSTATUS(system(command));
}

TEST(wrong_arguments_and_a_second_server_on_the_same_directory_are_refused) {
    char arguments[800];
    CHECK_EQ(run(""), 1);
    CHECK_EQ(run("/nowhere/at/all 0"), 1);
    (void)snprintf(arguments, sizeof arguments, "%s 65536", in_test_dir("data"));
    CHECK_EQ(run(arguments), 1);
    CHECK_HAS(server_errors(), "usage: ");
    REQUIRE(server_start(NULL));
    (void)snprintf(arguments, sizeof arguments, "%s 0", in_test_dir("data"));
    CHECK_EQ(run(arguments), 1);
    CHECK_HAS(server_errors(), "LOCK");
    CHECK_EQ(server_signal(SIGTERM), 0);
}

TEST_MAIN("tiny")
