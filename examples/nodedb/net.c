/* net.c - connections: reads bytes, starts commands, sends replies; all of it bounded, and counted.
 *
 * Input is read into a buffer of the core and parsed there; only what is left of an unfinished command moves to the
 * connection. Replies stay with their requests until the client fetches them: a connection whose output is not sent
 * takes no more replies, a request whose reply may not grow starts no operation, and a command behind that many unsent
 * replies is not started. So a client that does not read holds about 200 KiB, whatever it has requested. */
#include "db.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#define KEEPALIVE_S 300      /* of silence, after which the system probes whether the client still exists */
#define SEND_BUFFER (256 << 10) /* of the kernel, for a client that does not read */
#define LINGER_MS 2000       /* how long the input of a closed connection is discarded */
#define FLUSH_ROUNDS 8        /* of one connection in a turn, each up to OUTPUT_PAUSE_BYTES */
#define LONG_FRAME 1024u         /* a longer command's bytes are freed when it is done, and not when it is sent */
#define MAX_FRAMES_BYTES (1u << 20) /* of long commands of one connection that are under way */
#define SMALL_BUFFER (16u << 10) /* a larger buffer is freed when it is empty */

static const command no_command = {"", 0, 0, NULL};

void mark_dirty(core *c, connection *conn) {
    if (conn->dirty) return;
    conn->dirty = true;
    conn->next_dirty = NULL;
    if (c->dirty == NULL) c->dirty = conn;
    else c->dirty_last->next_dirty = conn;
    c->dirty_last = conn;
}

static size_t unsent(const connection *conn) { return conn->out.len - conn->out_at; }

bool reply_may_grow(const request *req) {
    const connection *conn = req->conn;
    size_t pause = conn->core->under_pressure ? PRESSURE_PAUSE_BYTES : REPLY_PAUSE_BYTES;
    if (conn->fd < 0) return true;
    return (req == conn->head ? req->reply.len : conn->held) + unsent(conn) < pause;
}

/* ---- begin and end ----------------------------------------------------------------------------------------------- */

static void connection_free(core *c, connection *conn) {
    assert(conn->fd < 0 && conn->head == NULL && !conn->dirty);
    if (conn->previous != NULL) conn->previous->next = conn->next;
    else c->first = conn->next;
    if (conn->next != NULL) conn->next->previous = conn->previous;
    parser_free(&conn->parser);
    c->client_bytes -= sizeof *conn;
    free(conn);
}

/* The client has disconnected. Its commands continue; flush_dirty() frees the connection when they are done. */
void connection_close(core *c, connection *conn) {
    if (conn->fd < 0) return;
    (void)close(conn->fd); /* which also removes it from epoll */
    conn->fd = -1;
    c->clients--;
    (void)__atomic_sub_fetch(&c->server->clients, 1, __ATOMIC_RELAXED);
    buffer_free(&conn->in);
    buffer_free(&conn->out);
    conn->in_at = conn->out_at = 0;
    parser_reset(&conn->parser);
    mark_dirty(c, conn);
}

static void set_socket_options(int fd) {
    int one = 1, idle = KEEPALIVE_S, interval = KEEPALIVE_S / 3, probes = 3, room = SEND_BUFFER;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

void connection_adopt(core *c, int fd) {
    connection *conn = must(calloc(1, sizeof *conn));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    conn->core = c;
    conn->fd = fd;
    conn->resp = 2;
    conn->id = ++c->next_client_id * c->server->cores + c->index;
    conn->events = EPOLLIN;
    conn->authenticated = c->server->password[0] == 0;
    conn->active_ms = steady_ms();
    conn->in.counter = conn->out.counter = conn->parser.counter = &c->client_bytes;
    c->client_bytes += sizeof *conn;
    conn->next = c->first;
    if (c->first != NULL) c->first->previous = conn;
    c->first = conn;
    c->clients++;
    c->accepted++;
    set_socket_options(fd);
    if (c->ending || epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event) != 0) connection_close(c, conn);
}

static void refuse_client(core *c, int fd) {
    static const char text[] = "-ERR max number of clients reached\r\n";
    (void)!send(fd, text, sizeof text - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)close(fd);
    (void)__atomic_sub_fetch(&c->server->clients, 1, __ATOMIC_RELAXED);
    c->clients_refused++;
}

static void pause_accepting(core *c, bool pause) {
    struct epoll_event event = {.events = pause ? 0 : EPOLLIN, .data.ptr = &tag_listen};
    if (c->accepting_paused == pause) return;
    c->accepting_paused = pause;
    (void)epoll_ctl(c->epoll, EPOLL_CTL_MOD, c->server->listen_fd, &event);
    if (pause)
        nodedb_say(&c->server->logger, NODEDB_LOG_WARNING,
                   "no more clients are accepted: %u are there, and other descriptors are kept for the data; raise the "
                   "limit of open files", __atomic_load_n(&c->server->clients, __ATOMIC_RELAXED));
}

/* Core 0 accepts, and deals the connections out in turn. */
void accept_some(core *c) {
    server *srv = c->server;
    int i;
    for (i = 0; i < 64; i++) {
        uint32_t to, all = __atomic_load_n(&srv->clients, __ATOMIC_RELAXED);
        int fd = all < srv->clients_max ? accept4(srv->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;
        if (all >= srv->clients_max || (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))) {
            pause_accepting(c, true);
            return;
        }
        if (fd < 0) return;
        (void)__atomic_add_fetch(&srv->clients, 1, __ATOMIC_RELAXED);
        to = c->next_core++ % srv->cores;
        if (all >= MAX_CLIENTS * srv->cores) refuse_client(c, fd);
        else if (to == c->index) connection_adopt(c, fd);
        else outbox_send(c, to, MESSAGE_CONNECTION, (uint32_t)fd, NULL);
    }
}

/* ---- commands begin ---------------------------------------------------------------------------------------------- */

/* A read waits until this connection's writes are done, and the other way round for what takes several steps: a client
 * sees its own writes, and its commands take effect in their order. */
static bool must_wait(const connection *conn, const command *cmd) {
    const core *c = conn->core;
    int flags = cmd != NULL ? cmd->flags : 0;
    size_t waiting = conn->held + unsent(conn);
    if (conn->alone || conn->requests >= MAX_REQUESTS || conn->operations >= MAX_OPERATIONS) return true;
    if (waiting >= REPLY_PAUSE_BYTES) return true; /* until the client fetches some */
    if (conn->long_frames >= (c->under_pressure ? 1 : MAX_FRAMES_BYTES)) return true; /* until they are done */
    if (waiting > 0 && c->under_pressure) return true;
    if ((flags & COMMAND_ALONE) != 0) return conn->requests > 0;
    if ((flags & COMMAND_REMOVES) == 0 && (flags & COMMAND_WRITE) != 0 && conn->removals > 0) return true;
    return (flags & COMMAND_READ) != 0 && conn->writes > 0;
}

static const char *refusal(core *c, const connection *conn, const command *cmd, int argc) {
    if (!conn->authenticated && (cmd->flags & COMMAND_NO_AUTH) == 0) return "NOAUTH Authentication required.";
    if ((cmd->arity > 0 && argc != cmd->arity) || argc < -cmd->arity) return "";
    if (conn->other_database && (cmd->flags & COMMAND_DATA) != 0)
        return "ERR DB index is out of range: there is one database, SELECT 0 goes back to it";
    if (nodedb_tpc_stopping(nodedb_tpc_core_runtime(c->tpc))) return "ERR the server is shutting down";
    return NULL;
}

static void reply_unknown(request *req) {
    buffer b = {0};
    int i;
    buffer_printf(&b, "ERR unknown command '%.*s', with args beginning with: ",
                  (int)(req->argv[0].bytes < 128 ? req->argv[0].bytes : 128), req->argv[0].p);
    for (i = 1; i < req->argc && b.len < 256; i++)
        buffer_printf(&b, "'%.*s' ", (int)(req->argv[i].bytes < 64 ? req->argv[i].bytes : 64), req->argv[i].p);
    buffer_put(&b, "", 1);
    reply_error(&req->reply, "%s", b.p);
    buffer_free(&b);
}

static void run_or_refuse(core *c, request *req) {
    const connection *conn = req->conn;
    const char *why = req->cmd->run != NULL ? refusal(c, conn, req->cmd, req->argc) : NULL;
    if (req->cmd->run != NULL && why == NULL) {
        request_run(c, req);
        return;
    }
    if (req->cmd->run == NULL && !conn->authenticated) reply_error(&req->reply, "NOAUTH Authentication required.");
    else if (req->cmd->run == NULL) reply_unknown(req);
    else if (why[0] == 0)
        reply_error(&req->reply, "ERR wrong number of arguments for '%s' command", req->cmd->name);
    else reply_error(&req->reply, "%s", why);
    request_note(req);
    request_pump(c, req);
}

/* The frame that is parsed becomes a request. Its bytes are copied, but for a large one that is alone in the
 * connection's buffer: then the buffer itself goes along. */
static void dispatch(core *c, connection *conn, const command *cmd, const char *frame, size_t bytes) {
    ptrdiff_t argc = arrlen(conn->parser.args), i;
    bool steal = frame == conn->in.p && conn->in.len == bytes && bytes > SMALL_BUFFER;
    request *req = request_new(c, conn, cmd != NULL ? cmd : &no_command, (int)argc, bytes > LONG_FRAME ? 0 : bytes);
    char *copy = (char *)(req->argv + argc);
    if (steal) {
        copy = req->frame.p = conn->in.p;
        req->frame.cap = conn->in.cap; /* and the count of the buffer moves with it */
        conn->in.p = NULL;
        conn->in.len = conn->in.cap = 0;
    } else if (bytes > LONG_FRAME) {
        buffer_put(&req->frame, frame, bytes);
        copy = req->frame.p;
    } else memcpy(copy, frame, bytes);
    conn->long_frames += req->frame.cap;
    for (i = 0; i < argc; i++)
        req->argv[i] = (slice){copy + conn->parser.args[i].at, conn->parser.args[i].bytes};
    if ((req->cmd->flags & COMMAND_WRITE) != 0) conn->writes++;
    if ((req->cmd->flags & COMMAND_REMOVES) != 0) conn->removals++;
    if ((req->cmd->flags & COMMAND_ALONE) != 0) conn->alone = true;
    c->commands++;
    run_or_refuse(c, req);
}

static void protocol_error(core *c, connection *conn, const char *wrong) {
    request *req = request_new(c, conn, &no_command, 0, 0);
    reply_error(&req->reply, "%s", wrong);
    request_note(req);
    conn->closing = true;
    req->running = false;
    request_pump(c, req);
}

/* Starts the complete commands at p; returns how many bytes are consumed. */
static size_t parse_commands(core *c, connection *conn, const char *p, size_t n) {
    size_t at = 0;
    int begun = 0;
    conn->stalled = false;
    while (at < n && !conn->closing && conn->fd >= 0) {
        const char *wrong = NULL;
        char text[160];
        const command *cmd;
        parse_result result = conn->framed ? PARSE_READY : parser_feed(&conn->parser, p + at, n - at, &wrong);
        if (result == PARSE_MORE) break;
        if (result == PARSE_BAD) {
            (void)snprintf(text, sizeof text, "ERR Protocol error: %s", wrong);
            protocol_error(c, conn, text);
            break;
        }
        conn->framed = true;
        if (arrlen(conn->parser.args) > 0) {
            slice name = {p + at + conn->parser.args[0].at, conn->parser.args[0].bytes};
            if (p[at] != '*' && (is_word(name, "POST") || is_word(name, "Host:"))) {
                conn->closing = true; /* HTTP: a browser is being misused to send commands */
                break;
            }
            cmd = command_find(name);
            conn->stalled = true;
            if (must_wait(conn, cmd)) break;
            if (begun == TURN_COMMANDS || turn_over(c)) {
                mark_dirty(c, conn); /* others first */
                break;
            }
            conn->stalled = false;
            begun++;
            dispatch(c, conn, cmd, p + at, conn->parser.at);
        }
        at += conn->parser.at;
        conn->framed = false;
        parser_reset(&conn->parser);
    }
    return at;
}

static void input_to_front(connection *conn) {
    memmove(conn->in.p, conn->in.p + conn->in_at, conn->in.len - conn->in_at);
    conn->in.len -= conn->in_at;
    conn->in_at = 0;
}

/* What waits in the connection's own buffer. A large frame may leave with it. */
static void parse_waiting(core *c, connection *conn) {
    size_t done = parse_commands(c, conn, conn->in.p + conn->in_at, conn->in.len - conn->in_at);
    if (conn->fd < 0) return;
    if (conn->in.p == NULL || conn->in_at + done >= conn->in.len) {
        buffer_free(&conn->in);
        conn->in_at = 0;
        return;
    }
    conn->in_at += done;
    if (conn->in_at < READ_BYTES) return;
    if (conn->in.cap > READ_BYTES && conn->in.len - conn->in_at < SMALL_BUFFER) { /* a large command has passed */
        buffer rest = {.counter = conn->in.counter};
        buffer_put(&rest, conn->in.p + conn->in_at, conn->in.len - conn->in_at);
        buffer_free(&conn->in);
        conn->in = rest;
        conn->in_at = 0;
    } else input_to_front(conn);
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

static size_t connection_bytes(const connection *conn) {
    return conn->in.cap + conn->out.cap + conn->held + conn->long_frames + conn->kept + parser_bytes(&conn->parser);
}

/* What closed connections still hold will soon be free: no other client is closed because of it. */
static bool clients_may_hold(core *c, size_t more) {
    const connection *conn;
    nodedb_mem_usage usage;
    size_t limit = c->server->client_limit_bytes;
    net_report_memory(c);
    if (nodedb_mem_get_usage(c->server->mem, MEM_CLIENTS, &usage, NULL) != NODEDB_OK) return true;
    for (conn = c->first; conn != NULL && usage.reserved_bytes + more > limit; conn = conn->next)
        if (conn->fd < 0) limit += connection_bytes(conn);
    return usage.reserved_bytes + more <= limit;
}

static connection *greediest(const core *c) {
    connection *conn, *most = NULL;
    for (conn = c->first; conn != NULL; conn = conn->next)
        if (conn->fd >= 0 && (most == NULL || connection_bytes(conn) > connection_bytes(most)))
            most = conn;
    return most;
}

static void input_refused(core *c, connection *conn) {
    c->clients_refused++;
    conn->in_at = conn->in.len = 0;
    buffer_free(&conn->in);
    parser_reset(&conn->parser);
    conn->framed = conn->stalled = false;
    protocol_error(c, conn, "OOM unfinished commands and unread replies of all clients hold too much memory");
}

/* Room for the next read in the connection's own buffer, which grows with the bytes received, not the announced length.
 * Where clients hold too much already, the one that holds most is refused. False: it is this one. */
static bool input_room(core *c, connection *conn) {
    size_t whole, cap = conn->in.cap * 2;
    if (conn->in_at > 0 && conn->in.cap - conn->in.len < SMALL_BUFFER) input_to_front(conn);
    whole = conn->in_at + conn->parser.needs;
    if (conn->in.cap - conn->in.len >= SMALL_BUFFER || (whole > conn->in.len && whole <= conn->in.cap)) return true;
    if (conn->parser.bulk > (int64_t)READ_BYTES && cap > whole) cap = whole; /* many small ones may follow: double */
    if (cap < conn->in.len + SMALL_BUFFER) cap = conn->in.len + SMALL_BUFFER;
    if (cap > 2 * READ_BYTES && !clients_may_hold(c, cap - conn->in.cap)) {
        connection *most = greediest(c);
        if (most != NULL && (most->closing || most->in.cap < most->long_frames + most->kept)) connection_close(c, most);
        else if (most != NULL) input_refused(c, most);
        if (most == conn) return false;
    }
    (void)buffer_exact_room(&conn->in, cap);
    return true;
}

static void end_of_input(core *c, connection *conn, ssize_t n) {
    if (n == 0 && !conn->draining) conn->eof = true;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR)) connection_close(c, conn);
    mark_dirty(c, conn);
}

static void connection_read(core *c, connection *conn) {
    bool own = conn->in.len > 0 && !conn->draining;
    char *to = c->scratch;
    size_t room = READ_BYTES, done;
    ssize_t n;
    if (conn->stalled && conn->in.len - conn->in_at > SMALL_BUFFER) { /* enough bytes wait */
        mark_dirty(c, conn);
        return;
    }
    if (own && !input_room(c, conn)) return;
    if (own) to = conn->in.p + conn->in.len, room = conn->in.cap - conn->in.len;
    n = read(conn->fd, to, room);
    if (n <= 0) {
        end_of_input(c, conn, n);
        return;
    }
    if (conn->draining) return;
    conn->active_ms = steady_ms();
    mark_dirty(c, conn);
    if (own) {
        conn->in.len += (size_t)n;
        if (!conn->stalled) parse_waiting(c, conn);
        return;
    }
    done = parse_commands(c, conn, to, (size_t)n);
    if (conn->fd >= 0 && !conn->closing && done < (size_t)n) buffer_put(&conn->in, to + done, (size_t)n - done);
}

void connection_event(core *c, connection *conn, uint32_t events) {
    if ((events & (EPOLLERR | EPOLLHUP)) != 0 && (conn->eof || conn->draining)) connection_close(c, conn);
    else if ((events & ~(uint32_t)EPOLLOUT) != 0) connection_read(c, conn);
    else mark_dirty(c, conn);
}

/* ---- output ------------------------------------------------------------------------------------------------------ */

static void connection_write(core *c, connection *conn) {
    while (conn->fd >= 0 && unsent(conn) > 0) {
        ssize_t n = send(conn->fd, conn->out.p + conn->out_at, unsent(conn), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n < 0) {
            connection_close(c, conn);
            return;
        }
        conn->out_at += (size_t)n;
        conn->active_ms = steady_ms();
    }
    if (conn->fd < 0) return;
    if (unsent(conn) == 0) {
        conn->out.len = conn->out_at = 0;
        if (conn->out.cap > SMALL_BUFFER) buffer_free(&conn->out);
    } else if (conn->out_at > REPLY_PAUSE_BYTES) { /* what was fetched is freed at once */
        memmove(conn->out.p, conn->out.p + conn->out_at, unsent(conn));
        conn->out.len -= conn->out_at;
        conn->out_at = 0;
    }
}

static void connection_set_events(core *c, connection *conn) {
    struct epoll_event event = {.data.ptr = conn};
    bool read = !conn->eof && (!conn->closing || conn->draining) &&
                !(conn->stalled && conn->in.len - conn->in_at > SMALL_BUFFER) && unsent(conn) < REPLY_PAUSE_BYTES;
    event.events = (read ? EPOLLIN : 0u) | (unsent(conn) > 0 ? EPOLLOUT : 0u);
    if (event.events == conn->events) return;
    conn->events = event.events;
    (void)epoll_ctl(c->epoll, EPOLL_CTL_MOD, conn->fd, &event);
}

/* Moves replies to the output, in the order of the commands, as far as there is room. False: none was moved. */
static bool take_replies(core *c, connection *conn, size_t *answered) {
    bool moved = false;
    while (conn->head != NULL && (conn->fd < 0 || unsent(conn) < OUTPUT_PAUSE_BYTES)) {
        request *req = conn->head;
        if (req->more != NULL || req->stream != NULL || req->early != NULL) request_pump(c, req);
        moved = moved || req->reply.len > 0 || req->done;
        request_note(req);
        if (conn->fd >= 0) buffer_put(&conn->out, req->reply.p, req->reply.len);
        req->reply.len = 0;
        request_note(req);
        if (!req->done) break;
        conn->head = req->next;
        conn->requests--;
        request_free(c, req);
        ++*answered;
    }
    return moved;
}

/* All is answered and sent, and no command will follow. */
static void connection_end(core *c, connection *conn) {
    if (!conn->closing) {
        connection_close(c, conn);
        return;
    }
    if (conn->draining) return;
    conn->draining = true;
    conn->active_ms = steady_ms();
    (void)shutdown(conn->fd, SHUT_WR);
}

/* Sends replies, then continues what waited for that. Bounded, so that a client that reads fast delays no other. */
static size_t flush_connection(core *c, connection *conn) {
    request *req;
    size_t n = 0;
    int rounds;
    bool moved = true;
    for (rounds = 0; moved && rounds < FLUSH_ROUNDS; rounds++) {
        for (req = conn->head; req != NULL; req = req->next)
            if (req->more != NULL || req->stream != NULL || req->early != NULL) request_pump(c, req);
        moved = take_replies(c, conn, &n) || unsent(conn) > 0;
        connection_write(c, conn);
        if (conn->fd >= 0 && conn->stalled) parse_waiting(c, conn);
        /* all is sent: replies may grow again */
        moved = conn->head != NULL && unsent(conn) == 0 && (moved || conn->head->reply.len > 0 || conn->head->done);
    }
    if (moved) mark_dirty(c, conn);
    if (conn->fd >= 0 && conn->head == NULL && unsent(conn) == 0 && (conn->closing || (conn->eof && !conn->stalled)))
        connection_end(c, conn);
    if (conn->fd >= 0) connection_set_events(c, conn);
    return n;
}

/* In order, until the turn is over. A connection that becomes dirty meanwhile is served in the next turn. */
size_t flush_dirty(core *c) {
    connection *last = c->dirty_last;
    size_t n = 0;
    bool end = c->dirty == NULL;
    while (!end && !(n > 0 && turn_over(c))) {
        connection *conn = c->dirty;
        end = conn == last;
        c->dirty = conn->next_dirty;
        conn->dirty = false;
        n += 1 + flush_connection(c, conn);
        if (conn->fd < 0 && conn->head == NULL && !conn->dirty) connection_free(c, conn);
    }
    return n;
}

/* ---- now and then ------------------------------------------------------------------------------------------------ */

void net_report_memory(core *c) {
    nodedb_mem *mem = c->server->mem;
    if (c->client_bytes > c->client_bytes_reported)
        (void)nodedb_mem_reserve_forced(mem, c->index, MEM_CLIENTS, c->client_bytes - c->client_bytes_reported, NULL);
    else if (c->client_bytes < c->client_bytes_reported)
        (void)nodedb_mem_release(mem, c->index, MEM_CLIENTS, c->client_bytes_reported - c->client_bytes, NULL);
    c->client_bytes_reported = c->client_bytes;
}

void net_maintain(core *c) {
    uint64_t now = steady_ms(), timeout_ms = __atomic_load_n(&c->server->timeout_s, __ATOMIC_RELAXED) * UINT64_C(1000);
    connection *conn;
    c->under_pressure = nodedb_mem_pressure(c->server->mem, MEM_CLIENTS) > NODEDB_MEM_NORMAL;
    if (c->under_pressure && !clients_may_hold(c, 1) && (conn = greediest(c)) != NULL) {
        nodedb_say(&c->server->logger, NODEDB_LOG_WARNING,
                   "a client was disconnected: clients hold more than they may");
        if (!conn->closing && conn->long_frames == 0 && conn->parser.needs > conn->in.len - conn->in_at)
            input_refused(c, conn);
        else {
            c->clients_refused++;
            connection_close(c, conn);
        }
    }
    if (c->accepting_paused &&
        __atomic_load_n(&c->server->clients, __ATOMIC_RELAXED) < c->server->clients_max) pause_accepting(c, false);
    if (now - c->clients_looked_ms < 250) return;
    c->clients_looked_ms = now;
    for (conn = c->first; conn != NULL; conn = conn->next) {
        if (conn->fd < 0) continue;
        if (conn->draining && now - conn->active_ms > LINGER_MS) connection_close(c, conn);
        else if (timeout_ms > 0 && conn->requests == 0 && unsent(conn) == 0 && now - conn->active_ms > timeout_ms)
            connection_close(c, conn);
    }
}

/* The server stops. Replies that are ready are sent as far as the sockets take them. Requests end without their
 * clients: reads start no operation, and what they hold at other cores is released. */
void net_close_all(core *c) {
    connection *conn;
    c->ending = true;
    turn_begin(c);
    for (conn = c->first; conn != NULL; conn = conn->next) {
        conn->closing = true;
        if (conn->fd >= 0) (void)flush_connection(c, conn);
        connection_close(c, conn);
    }
}

bool bind_is_allowed(const server *srv) {
    struct in_addr address;
    if (srv->unprotected || srv->password[0] != 0 || inet_pton(AF_INET, srv->bind, &address) != 1 ||
        ntohl(address.s_addr) >> 24 == 127) return true;
    fprintf(stderr, "nodedb: --bind %s without a password would let everybody read and delete everything; set one with "
                    "--requirepass, or say --protected-mode no\n", srv->bind);
    return false;
}

int listen_on(server *srv) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)srv->port);
    errno = 0;
    if (fd < 0 || inet_pton(AF_INET, srv->bind, &address.sin_addr) != 1 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
        fprintf(stderr, "nodedb: cannot listen on %s:%d: %s\n", srv->bind, srv->port,
                errno != 0 ? strerror(errno) : "not an IPv4 address");
        if (fd >= 0) (void)close(fd);
        return -1;
    }
    srv->port = ntohs(address.sin_port);
    return fd;
}
