/* A thread-per-core database in one sitting. Two pinned cores each have a log, a table and a vector index of their own.
 * They share nothing but rings. A client sends lines (set KEY VALUE, get KEY, add ID X Y Z, near X Y Z), and every line
 * is answered by one line. The path of a `set` that arrives at core A, and whose key belongs to core B:
 *     on_poll, client_turn, take_line   A reads the line and parses it
 *     deliver, on_message               it crosses the ring from A to B (or stays, if A is B)
 *     begin_write                       B reserves memory or refuses, then appends a record to its log
 *     pump_log                          B learns that the record is durable; until then it has served others
 *     apply, put                        B changes its table. A restart replays the log through the same apply()
 *     reply, take_answer, flush         the answer crosses back from B to A, and A sends it to the client
 * The path of a `near`: take_line sends it to every core, near() searches that core's index, take_answer merges what
 * they find. A `get` whose value is not in memory is parked by get() until its page has been read; see unpark().
 * A client has one line under way at a time. So its answers keep their order, it sees its own writes, and no queue in
 * this file can grow beyond its array. Writes of different clients become durable together (group commit).
 * Left out: checkpoints (the log only grows), deletion, moving cold values back, another number of cores for a DIR.
 *     cc -std=c99 -O2 -I. -I/usr/include/stb -o tiny examples/tiny.c -luring -ljemalloc -lpthread -lm
 *     ./tiny DIR PORT [BYTES_OF_MEMORY] */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"
#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
#define STB_DS_IMPLEMENTATION
#include "stb_ds.h"
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>

enum {
    CORES = 2, CLIENTS = 64,     /* clients of each core; more of them wait to be accepted */
    UNDER_WAY = CORES * CLIENTS, /* lines that can wait at one core: one from each client of each core */
    LINE_BYTES = 900,            /* of a line or an answer, its end included */
    NEAREST = 4,                 /* results of a search */
    ENTRY_BYTES = 128,           /* what a key costs besides its own bytes and those of its value */
    POINT_BYTES = 512,           /* what a vector costs: edges, tables, room to grow */
    COLD_MIN_BYTES = 128,        /* shorter values always stay in memory */
    LISTENER = CLIENTS, RING, LOG, TICKETS, POLLED /* what a core polls besides its clients */
};

typedef struct message { /* what crosses a ring. No pointers: a core never looks into another core's memory */
    enum { GET, SET, ADD, NEAR, ANSWER } kind;
    uint32_t home, client; /* who asks: the core of the connection, and the client's place there */
    uint32_t found;        /* entries of `nearest`: one core's part of a search */
    nodedb_vamana_result nearest[NEAREST];
    struct point { uint64_t id; float at[3]; } point; /* ADD, NEAR */
    char text[LINE_BYTES]; /* GET: key. SET: key, zero, value. ANSWER: what the client reads, "" after a search */
} message;

typedef struct client {
    struct pollfd *socket; /* its fd is -1 if this place is free */
    uint32_t awaited;      /* answers that its line still needs; nothing more is read from it until then */
    bool too_long;         /* the current line is, and the rest of it will be skipped */
    size_t in, out;        /* bytes in `input`; bytes in `output` that are not sent yet */
    uint32_t found;        /* entries of `nearest`: what the cores have found so far */
    nodedb_vamana_result nearest[CORES * NEAREST];
    char input[LINE_BYTES], output[LINE_BYTES + 1];
} client;

typedef struct shard { /* everything that a core owns. No other thread touches it, so this program has no lock */
    uint32_t index;
    nodedb_tpc_core *core;
    nodedb_mem *mem; /* the governor, the one object that all cores share: it is made for that */
    nodedb_wal *wal;
    struct { message line; uint64_t lsn; } writes[UNDER_WAY]; /* a queue: in the log, but not durable yet */
    uint32_t logged, applied; /* its two ends, counted since the start. A write's place is its number % UNDER_WAY */
    struct entry { char *key; struct value { char *memory; nodedb_mem_handle cold; } value; } *table; /* of stb_ds */
    nodedb_mem_overflow *overflow; /* a mapped file for cold values; `memory` is NULL for those */
    nodedb_prefetch *prefetch;     /* brings their pages into memory before they are touched */
    message parked[UNDER_WAY];     /* gets that wait for their pages, by the number of the client */
    uint32_t parked_count;
    nodedb_vamana *vectors;
    nodedb_vamana_searcher *searcher;
    client clients[CLIENTS];
    struct pollfd polled[POLLED];
} shard;

static void on_message(nodedb_tpc_core *core, uint32_t from, void *slot, void *ctx);

static void die(const char *what) {
    fprintf(stderr, "tiny: %s\n", what);
    exit(1);
}

/* ---- a line ------------------------------------------------------------------------------------------------------ */
static bool read_point(const char *text, float at[3]) { /* three numbers and nothing else */
    int end = 0;
    return sscanf(text, "%f %f %f %n", &at[0], &at[1], &at[2], &end) == 3 && text[end] == 0 &&
           fabsf(at[0]) <= 1e15f && fabsf(at[1]) <= 1e15f && fabsf(at[2]) <= 1e15f; /* false for a NaN */
}
static bool parse(message *m, const char *line) { /* false: this is not a valid line */
    char verb[8] = "", digits[20];
    int end = 0;
    memset(m, 0, sizeof *m);
    (void)sscanf(line, "%7s %n", verb, &end);
    line += end; /* key and value fit into `text`: they are shorter than the line */
    m->kind = verb[0] == 'g' ? GET : verb[0] == 's' ? SET : verb[0] == 'a' ? ADD : NEAR;
    if (strcmp(verb, "near") == 0) return read_point(line, m->point.at);
    if (strcmp(verb, "add") == 0 && sscanf(line, "%19[0-9] %n", digits, &end) == 1) {
        m->point.id = strtoull(digits, NULL, 10);
        return read_point(line + end, m->point.at);
    }
    if (sscanf(line, "%s %n", m->text, &end) != 1) return false;
    strcpy(m->text + strlen(m->text) + 1, line + end);
    return strcmp(verb, line[end] != 0 ? "set" : "get") == 0;
}

/* The core of a key or an id. It must be the same in every run, because the record stands in that core's log. */
static uint32_t owner_of(const message *m) {
    uint32_t hash = (uint32_t)m->point.id;
    for (const char *p = m->text; *p != 0; p++) hash = (hash ^ (unsigned char)*p) * 16777619u; /* FNV */
    return (hash ^ hash >> 16) % CORES;
}

/* ---- changes: one path for live writes and for a restart --------------------------------------------------------- */
static nodedb_wal_record record_of(const message *m) {
    const char *value = m->text + strlen(m->text) + 1;
    bool is_set = m->kind == SET;
    return (nodedb_wal_record){.type = is_set ? NODEDB_WAL_TYPE_PUT : NODEDB_WAL_TYPE_VECTOR_PUT,
        .payload = is_set ? (const void *)m->text : &m->point,
        .payload_bytes = (uint32_t)(is_set ? value + strlen(value) + 1 - m->text : (ptrdiff_t)sizeof m->point)};
}
static size_t cost_of(const nodedb_wal_record *record) { /* bytes of memory */
    return record->type == NODEDB_WAL_TYPE_PUT ? ENTRY_BYTES + record->payload_bytes : POINT_BYTES;
}
static void release(shard *s, size_t bytes) {
    if (nodedb_mem_release(s->mem, s->index, NODEDB_MEM_QUERY, bytes, NULL) != NODEDB_OK) die("the accounts are wrong");
}

/* Sets a key. If memory is short, a long value goes to the overflow file, and its bytes are given back. */
static void put(shard *s, const char *key, const char *text) {
    struct entry *old = shgetp_null(s->table, key);
    struct value v = {NULL, {0}};
    size_t bytes = strlen(text) + 1;
    if (old != NULL) {
        release(s, ENTRY_BYTES + strlen(key) + 1 + (old->value.memory != NULL ? strlen(old->value.memory) + 1 : 0));
        if (old->value.memory == NULL) (void)nodedb_mem_overflow_free(s->overflow, old->value.cold, NULL);
        free(old->value.memory);
    }
    if (bytes >= COLD_MIN_BYTES && nodedb_mem_pressure(s->mem, NODEDB_MEM_GLOBAL) >= NODEDB_MEM_WARNING &&
        nodedb_mem_overflow_write(s->overflow, text, bytes, &v.cold, NULL) == NODEDB_OK) release(s, bytes);
    else if ((v.memory = strdup(text)) == NULL) die("malloc has less than the governor was told");
    shput(s->table, key, v);
}

/* Applies a record. Its memory is reserved already, because a durable record can no longer be refused. */
static nodedb_status apply(void *ctx, const nodedb_wal_record *record) {
    shard *s = (shard *)ctx;
    const char *key = (const char *)record->payload, *end = key + record->payload_bytes;
    struct point p;
    if (record->type == NODEDB_WAL_TYPE_PUT && end > key && end[-1] == 0 && key + strlen(key) + 1 < end)
        return put(s, key, key + strlen(key) + 1), NODEDB_OK;
    if (record->type != NODEDB_WAL_TYPE_VECTOR_PUT || record->payload_bytes != sizeof p) return NODEDB_ERR_CORRUPT;
    memcpy(&p, record->payload, sizeof p);
    if (nodedb_vamana_contains(s->vectors, p.id)) release(s, POINT_BYTES); /* the new one takes the old one's place */
    return nodedb_vamana_insert(s->vectors, p.id, p.at, NULL);
}
static nodedb_status replay(void *ctx, const nodedb_wal_record *record) { /* never refuses what was granted before */
    shard *s = (shard *)ctx;
    (void)nodedb_mem_reserve_forced(s->mem, s->index, NODEDB_MEM_QUERY, cost_of(record), NULL);
    return apply(s, record);
}

/* ---- a line, at the core that owns its key ----------------------------------------------------------------------- */
static void deliver(shard *s, uint32_t to, message *m) { /* to this core or to another */
    if (to == s->index) on_message(s->core, to, m, s - to);
    else if (nodedb_tpc_send(s->core, to, m) != NODEDB_OK) die("a ring is full, although it has room for all");
}
static void reply(shard *s, const message *line, const char *text) {
    message answer = {.kind = ANSWER, .home = line->home, .client = line->client};
    (void)snprintf(answer.text, sizeof answer.text, "%s", text);
    deliver(s, line->home, &answer);
}

static void begin_write(shard *s, const message *line) {
    nodedb_wal_record record = record_of(line);
    uint32_t place = s->logged % UNDER_WAY;
    if (nodedb_mem_reserve(s->mem, s->index, NODEDB_MEM_QUERY, cost_of(&record), NULL) != NODEDB_OK) {
        reply(s, line, "ERR out of memory");
    } else if (nodedb_wal_append(s->wal, &record, &s->writes[place].lsn, NULL) != NODEDB_OK) {
        release(s, cost_of(&record));
        reply(s, line, "ERR the log takes nothing: the disk is full, or it has failed");
    } else s->writes[place].line = *line, s->logged++;
}

/* Completes and starts writes. With io_uring it never waits. While one group is written, the next one gathers. */
static size_t pump_log(shard *s) {
    uint32_t before = s->applied;
    uint64_t durable;
    nodedb_error err;
    if (nodedb_wal_poll(s->wal, &durable, &err) != NODEDB_OK) die(err.message); /* a restart can tell what is there */
    for (; s->applied != s->logged && s->writes[s->applied % UNDER_WAY].lsn <= durable; s->applied++) {
        const message *line = &s->writes[s->applied % UNDER_WAY].line;
        nodedb_wal_record record = record_of(line);
        if (apply(s, &record) != NODEDB_OK) die("a durable record cannot be applied");
        reply(s, line, "OK");
    }
    if (nodedb_wal_groups_in_flight(s->wal) == 0) (void)nodedb_wal_submit(s->wal, NULL);
    return s->applied - before;
}

/* Reading a cold value could block this core, and all its clients, until the disk has answered. So its pages are asked
 * for, and the line is parked until they are in memory. The value may have changed by then: it is looked up again. */
static void get(shard *s, const message *line, bool is_back) {
    const struct entry *e = shgetp_null(s->table, line->text);
    uint32_t place = line->home * CLIENTS + line->client;
    nodedb_prefetch_range range = {NULL, 0};
    if (e != NULL && e->value.memory == NULL)
        range.start = nodedb_mem_overflow_read(s->overflow, e->value.cold, &range.bytes, NULL);
    if (e == NULL) reply(s, line, "(nil)");
    else if (e->value.memory != NULL) reply(s, line, e->value.memory);
    else if (range.start == NULL) reply(s, line, "ERR the value cannot be read");
    else if (is_back || nodedb_prefetch_begin(s->prefetch, &range, 1, place, NULL) != NODEDB_OK)
        reply(s, line, (const char *)range.start);
    else s->parked[place] = *line, s->parked_count++;
}

static size_t unpark(shard *s) {
    nodedb_prefetch_ticket ticket;
    size_t done = 0;
    for (; nodedb_prefetch_reap(s->prefetch, &ticket, 1) > 0; s->parked_count--, done++) {
        if (ticket.status == NODEDB_OK) get(s, &s->parked[ticket.tag], true);
        else reply(s, &s->parked[ticket.tag], "ERR the disk cannot read it"); /* touching it would raise SIGBUS */
    }
    return done;
}

static void near(shard *s, const message *line) { /* this core's part of a search */
    nodedb_vamana_query query = {.vector = line->point.at, .k = NEAREST};
    message answer = {.kind = ANSWER, .home = line->home, .client = line->client};
    if (nodedb_vamana_search(s->searcher, &query, answer.nearest, &answer.found, NULL, NULL) != NODEDB_OK)
        die("a search has failed"); /* there is no memory */
    deliver(s, line->home, &answer);
}

/* ---- clients ----------------------------------------------------------------------------------------------------- */
/* An answer arrives at the core of its client. The last one that the line needs completes it. */
static void take_answer(client *c, const message *answer) {
    for (uint32_t at, i = 0; i < answer->found; i++) { /* merges a part of a search, nearest first */
        for (at = c->found++; at > 0 && c->nearest[at - 1].distance > answer->nearest[i].distance; at--)
            c->nearest[at] = c->nearest[at - 1];
        c->nearest[at] = answer->nearest[i];
    }
    if (--c->awaited > 0) return;
    if (c->found == 0) c->out = (size_t)sprintf(c->output, "%s ", answer->text[0] != 0 ? answer->text : "(nil)");
    for (uint32_t i = 0; i < c->found && i < NEAREST; i++)
        c->out += (size_t)sprintf(c->output + c->out, "%llu:%.7g ", (unsigned long long)c->nearest[i].id,
                                  sqrt(c->nearest[i].distance));
    c->output[c->out - 1] = '\n';
    c->socket->events = POLLOUT;
}

static void hang_up(client *c) {
    (void)close(c->socket->fd);
    c->socket->fd = -1;
    c->in = c->out = 0, c->too_long = false;
}

/* False if output is left. A client that does not read its answers is not read from either. */
static bool flush(client *c) {
    ssize_t n = c->out > 0 ? send(c->socket->fd, c->output, c->out, MSG_NOSIGNAL) : 0;
    if (n < 0 && errno != EAGAIN) hang_up(c);
    if (n > 0) memmove(c->output, c->output + n, c->out -= (size_t)n);
    return c->out == 0;
}

/* Takes a line from the input and sends it to the core that owns its key. False if there is no complete line. */
static bool take_line(shard *s, client *c) {
    char *end = (char *)memchr(c->input, '\n', c->in);
    message m;
    bool good = end != NULL && !c->too_long && memchr(c->input, 0, (size_t)(end - c->input)) == NULL;
    if (end == NULL && c->in == sizeof c->input) c->too_long = true, c->in = 0;
    if (end == NULL) return false;
    *end = 0;
    if (end > c->input && end[-1] == '\r') end[-1] = 0;
    good = parse(&m, c->input) && good;
    m.home = s->index, m.client = (uint32_t)(c - s->clients);
    c->in -= (size_t)(end + 1 - c->input);
    memmove(c->input, end + 1, c->in);
    c->found = 0, c->too_long = false, c->awaited = good && m.kind == NEAR ? CORES : 1;
    if (!good) reply(s, &m, "ERR set KEY VALUE, get KEY, add ID X Y Z or near X Y Z, of less than 900 bytes");
    else if (m.kind != NEAR) deliver(s, owner_of(&m), &m);
    else for (uint32_t to = 0; to < CORES; to++) deliver(s, to, &m);
    return true;
}

/* Reads at most once, so that no client keeps the core for itself. Then it handles the lines in the buffer. */
static void client_turn(shard *s, client *c) {
    if (c->awaited == 0 && c->out == 0) { /* then the input holds no complete line */
        ssize_t n = recv(c->socket->fd, c->input + c->in, sizeof c->input - c->in, 0);
        if (n > 0) c->in += (size_t)n;
        else if (n == 0 || errno != EAGAIN) hang_up(c);
    }
    while (c->awaited == 0 && flush(c) && take_line(s, c)) {}
    c->socket->events = c->awaited > 0 ? 0 : c->out > 0 ? POLLOUT : POLLIN;
}

static void accept_client(shard *s) { /* the first core to get here owns the client from now on */
    int one = 1, i = 0;
    while (s->polled[i].fd >= 0) i++; /* one is free, or the listener would not be polled */
    s->polled[i].fd = accept4(s->polled[LISTENER].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    s->polled[i].events = POLLIN;
    (void)setsockopt(s->polled[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* ---- the core's hooks -------------------------------------------------------------------------------------------- */
static void on_message(nodedb_tpc_core *core, uint32_t from, void *slot, void *ctx) {
    shard *s = (shard *)ctx + nodedb_tpc_core_index(core);
    message *m = (message *)slot;
    (void)from;
    if (m->kind == ANSWER) take_answer(&s->clients[m->client], m);
    else if (m->kind == GET) get(s, m, false);
    else if (m->kind == NEAR) near(s, m);
    else begin_write(s, m);
}

static void on_wait(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns) {
    (void)poll(((shard *)ctx)[nodedb_tpc_core_index(core)].polled, POLLED, (int)((timeout_ns + 999999) / 1000000));
}

static size_t on_poll(nodedb_tpc_core *core, void *ctx) {
    shard *s = (shard *)ctx + nodedb_tpc_core_index(core);
    bool stopping = nodedb_tpc_stopping(nodedb_tpc_core_runtime(core)); /* then it sends answers and starts nothing */
    size_t done = 0;
    (void)poll(s->polled, POLLED, 0);
    if (s->polled[LISTENER].revents != 0 && !stopping) accept_client(s), done++;
    s->polled[LISTENER].events = 0;
    for (client *c = s->clients; c < s->clients + CLIENTS; c++) {
        if (c->socket->revents != 0 && (!stopping || c->out > 0)) client_turn(s, c), done++;
        if (c->socket->fd < 0) s->polled[LISTENER].events = POLLIN;
    }
    return done + pump_log(s) + unpark(s);
}

static bool on_pending(nodedb_tpc_core *core, void *ctx) { /* a stop waits for what the disk has to do */
    const shard *s = (const shard *)ctx + nodedb_tpc_core_index(core);
    return s->applied != s->logged || s->parked_count > 0;
}
static void on_stop(nodedb_tpc_core *core, void *ctx) { /* the rest ends with the process */
    (void)nodedb_wal_close(((shard *)ctx)[nodedb_tpc_core_index(core)].wal, NULL);
}

/* Makes what the core owns and replays its log. All cores do this at the same time. */
static nodedb_status on_start(nodedb_tpc_core *core, void *ctx, nodedb_error *err) {
    shard *s = (shard *)ctx + nodedb_tpc_core_index(core);
    char dir[20];
    s->core = core, s->index = nodedb_tpc_core_index(core);
    (void)snprintf(dir, sizeof dir, "core-%u", (unsigned)s->index);
    if ((s->overflow = nodedb_mem_overflow_open(&(nodedb_mem_overflow_config){.dir = "."}, err)) == NULL ||
        (s->prefetch = nodedb_prefetch_create(NULL, err)) == NULL ||
        (s->vectors = nodedb_vamana_create(&(nodedb_vamana_config){.dim = 3}, err)) == NULL ||
        (s->searcher = nodedb_vamana_searcher_create(s->vectors, NULL, err)) == NULL ||
        (s->wal = nodedb_wal_open(&(nodedb_wal_config){.dir = dir, .segment_bytes = 4 << 20}, err)) == NULL ||
        nodedb_wal_replay(&(nodedb_wal_reader_config){.dir = dir}, replay, s, NULL, err) != NODEDB_OK)
        return err->status;
    s->polled[RING].fd = nodedb_tpc_core_fd(core), s->polled[LOG].fd = nodedb_wal_fd(s->wal);
    s->polled[TICKETS].fd = nodedb_prefetch_fd(s->prefetch);
    return NODEDB_OK;
}

int main(int argc, char **argv) {
    static shard shards[CORES];
    nodedb_mem_config memory = {.ceiling_bytes = argc > 3 ? strtoul(argv[3], NULL, 10) : 64 << 20, .max_cores = CORES};
    nodedb_tpc_config config = {.ctx = shards, .cores = CORES, .message_bytes = sizeof(message),
        .ring_messages = 4 * CLIENTS, /* our clients' lines, answers to theirs, and a batch that is being handled */
        .on_start = on_start, .on_stop = on_stop, .on_message = on_message, .poll = on_poll, .wait = on_wait,
        .pending = on_pending};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    int number, one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    nodedb_error err;
    sigset_t signals;
    if (argc < 3 || (unsigned)atoi(argv[2]) > 65535 || (mkdir(argv[1], 0755) != 0 && errno != EEXIST) ||
        chdir(argv[1]) != 0) die("usage: tiny DIR PORT [BYTES_OF_MEMORY]; the parent of DIR must exist");
    address.sin_port = htons((uint16_t)atoi(argv[2]));
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, bytes) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &bytes) != 0) die(strerror(errno));
    nodedb_mem *mem = nodedb_mem_create(&memory, &err);
    for (shard *s = shards; s < shards + CORES; s++) {
        s->mem = mem;
        for (int i = 0; i < POLLED; i++) s->polled[i].fd = i == LISTENER ? fd : -1, s->polled[i].events = POLLIN;
        for (int i = 0; i < CLIENTS; i++) s->clients[i].socket = &s->polled[i];
        sh_new_strdup(s->table); /* before there are threads, as it changes a global seed of stb_ds */
    }
    (void)sigemptyset(&signals), (void)sigaddset(&signals, SIGTERM), (void)sigaddset(&signals, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    nodedb_tpc *runtime = mem == NULL ? NULL : nodedb_tpc_start(&config, &err);
    if (runtime == NULL) die(err.message);
    (void)printf("ready on port %u\n", (unsigned)ntohs(address.sin_port)), (void)fflush(stdout);
    (void)sigwait(&signals, &number);
    nodedb_tpc_destroy(runtime);
    return 0;
}
