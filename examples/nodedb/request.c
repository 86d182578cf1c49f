/* request.c - a command under way: its operations go out in windows, their answers come in order.
 *
 * request_pump() is the whole life of a request. It does what can be done now: hands over the answers that are next in
 * order, fetches the next piece of a large value, starts the next operation, starts the next step. It is called when an
 * answer arrives, and when the connection has sent some of the reply. */
#include "db.h"

#define MIN_LIMIT_BYTES 512u

/* ---- life -------------------------------------------------------------------------------------------------------- */

void request_count(core *c, request *req, size_t bytes) {
    req->counted += bytes;
    req->conn->kept += bytes;
    c->client_bytes += bytes;
}

request *request_new(core *c, connection *conn, const command *cmd, int argc, size_t bytes) {
    size_t all = sizeof(request) + (size_t)argc * sizeof(slice) + bytes;
    request *req = must(malloc(all));
    memset(req, 0, sizeof *req);
    req->conn = conn;
    req->cmd = cmd;
    req->resp = conn->resp;
    req->argv = (slice *)(void *)(req + 1);
    req->argc = argc;
    req->reply.counter = req->frame.counter = &c->client_bytes;
    request_count(c, req, all);
    if (conn->head == NULL) conn->head = req;
    else conn->tail->next = req;
    conn->tail = req;
    conn->requests++;
    return req;
}

void request_free(core *c, request *req) {
    assert(req->early == NULL && req->stream == NULL && req->in_flight == 0);
    request_count(c, req, 0 - req->counted);
    buffer_free(&req->reply);
    buffer_free(&req->frame);
    free(req->state);
    free(req);
}

static void request_done(core *c, request *req) {
    connection *conn = req->conn;
    req->done = true;
    conn->long_frames -= req->frame.cap;
    buffer_free(&req->frame);
    if ((req->cmd->flags & COMMAND_WRITE) != 0) conn->writes--;
    if ((req->cmd->flags & COMMAND_REMOVES) != 0) conn->removals--;
    if (req->alone || (req->cmd->flags & COMMAND_ALONE) != 0) conn->alone = false;
    mark_dirty(c, conn);
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

operation *request_start(core *c, request *req, operation_kind kind, slice key) {
    operation *op = operation_new(c, req, kind);
    op->key = key;
    op->number = req->started++;
    return op;
}

operation *request_at_home(core *c, request *req, operation_kind kind, slice key, slice element) {
    operation *op = request_start(c, req, kind, key);
    op->stage = STAGE_HOME;
    op->element = element;
    return op;
}

void request_send(core *c, request *req, operation *op, uint32_t to) {
    connection *conn = req->conn;
    if (op->kind == OP_GET) { /* more of them under way: a smaller first piece for each */
        uint32_t limit = INLINE_BYTES / (conn->operations + 1);
        op->u.get.limit = limit > MIN_LIMIT_BYTES ? limit : MIN_LIMIT_BYTES;
    }
    req->in_flight++;
    c->in_flight++;
    conn->operations++;
    if (c->turn_operations > 0) c->turn_operations--;
    operation_send(c, op, to);
}

void request_change(core *c, request *req, const change *ch) {
    operation *op = request_start(c, req, OP_CHANGE, ch->key);
    op->change = *ch;
    request_send(c, req, op, core_of_key(c->server, ch->key));
}

void request_everywhere(core *c, request *req, operation_kind kind) {
    uint32_t i;
    for (i = 0; i < c->server->cores; i++)
        request_send(c, req, request_start(c, req, kind, (slice){NULL, 0}), i);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

void request_put_value(core *c, request *req, operation *op) {
    (void)c;
    if (op->result.kind != RESULT_BULK || op->result.pinned == NULL) {
        reply_result(&req->reply, req->resp, &op->result);
        return;
    }
    reply_bulk_head(&req->reply, op->result.number);
    buffer_put(&req->reply, op->result.bytes.p, op->result.bytes.len);
    op->u.get.pinned = op->result.pinned;
    op->u.get.at = (uint32_t)op->result.bytes.len;
    buffer_free(&op->result.bytes);
    op->kind = OP_MORE;
    req->stream = op;
    req->stream_idle = true;
}

/* The client does not want the rest of the value: its shard removes the pin. */
static void let_go(core *c, operation *op) {
    if (op->result.pinned != NULL) {
        operation *last = operation_new(c, NULL, OP_MORE);
        last->u.get.pinned = op->result.pinned;
        last->u.get.at = (uint32_t)op->result.number; /* the value's length */
        operation_send(c, last, core_of_key(c->server, op->key));
    }
    operation_free(op);
}

void request_note(request *req) {
    req->conn->held += req->reply.len - req->noted; /* a shrinking reply wraps around; the sum is right */
    req->noted = req->reply.len;
}

static void hand_over(core *c, request *req) {
    operation *op = req->early;
    req->early = op->next;
    req->answered++;
    req->conn->operations--;
    if (req->on_answer != NULL) req->on_answer(c, req, op);
    else request_put_value(c, req, op);
    request_note(req);
    if (req->stream != op) let_go(c, op);
}

static void fetch_piece(core *c, request *req) {
    operation *op = req->stream;
    op->u.get.limit = req->conn->core->under_pressure ? INLINE_BYTES : CHUNK_BYTES;
    req->stream_idle = false;
    c->in_flight++;
    operation_send(c, op, core_of_key(c->server, op->key));
}

static void take_piece(core *c, request *req) {
    operation *op = req->stream;
    int64_t at = op->u.get.at + (int64_t)op->result.bytes.len;
    buffer_put(&req->reply, op->result.bytes.p, op->result.bytes.len);
    op->u.get.at = (uint32_t)at;
    req->stream_idle = true;
    buffer_free(&op->result.bytes);
    if (op->result.pinned == NULL && at == op->result.number) buffer_text(&req->reply, "\r\n");
    request_note(req);
    if (op->result.pinned != NULL) return;
    req->stream = NULL;
    if (at != op->result.number) connection_close(c, req->conn); /* unreadable: half a value is no reply */
    operation_free(op);
}

static void early_insert(request *req, operation *op) {
    operation **at = &req->early;
    while (*at != NULL && (*at)->number < op->number) at = &(*at)->next;
    op->next = *at;
    *at = op;
}

void request_answer(core *c, operation *op) {
    request *req = op->req;
    c->in_flight--;
    if (op == req->stream) take_piece(c, req);
    else {
        assert(req->in_flight > 0);
        req->in_flight--;
        early_insert(req, op);
    }
    if (!req->running) mark_dirty(c, req->conn);
    request_pump(c, req);
}
/* ---- the pump ---------------------------------------------------------------------------------------------------- */

static bool may_start(core *c, request *req) {
    connection *conn = req->conn;
    if (req->more == NULL || req->stream != NULL ||
        req->started - req->answered >= (req->window != 0 ? req->window : WINDOW)) return false;
    if (conn->fd < 0 && (req->cmd->flags & COMMAND_WRITE) == 0) { /* no client reads it */
        req->more = NULL;
        return false;
    }
    if (req->in_flight > 0 && conn->operations >= MAX_OPERATIONS) return false;
    if ((req->cmd->flags & COMMAND_WRITE) == 0 && !reply_may_grow(req)) return false; /* a write's reply is short */
    if (c->turn_operations == 0 || turn_over(c)) {
        mark_dirty(c, conn); /* other connections first; this one continues in the next turn */
        return false;
    }
    return true;
}

static bool pump_once(core *c, request *req) {
    if (req->stream != NULL && req->stream_idle && req->conn->fd < 0) {
        operation *op = req->stream;
        req->stream = NULL;
        let_go(c, op);
    } else if (req->stream != NULL && req->stream_idle && reply_may_grow(req)) {
        fetch_piece(c, req);
    } else if (req->stream == NULL && req->early != NULL && req->early->number == req->answered) {
        if (turn_over(c)) {
            mark_dirty(c, req->conn); /* other connections first: a reply may take long to make */
            return false;
        }
        hand_over(c, req);
    } else if (may_start(c, req)) {
        if (!req->more(c, req)) req->more = NULL;
        request_note(req);
    } else return false;
    return true;
}

void request_pump(core *c, request *req) {
    if (req->running || req->done) return;
    req->running = true;
    for (;;) {
        while (pump_once(c, req)) {}
        if (req->more != NULL || req->stream != NULL || req->answered < req->started) break;
        if (req->at_end != NULL) {
            void (*at_end)(core *, request *) = req->at_end;
            req->at_end = NULL;
            at_end(c, req);
            request_note(req);
        } else {
            request_done(c, req);
            break;
        }
    }
    req->running = false;
}

void request_run(core *c, request *req) {
    req->running = true; /* answers that arrive before run() returns do not end the request */
    req->cmd->run(c, req);
    request_note(req);
    req->running = false;
    request_pump(c, req);
}

/* ---- what commands look at --------------------------------------------------------------------------------------- */

bool request_fail(request *req, const char *text) {
    reply_error(&req->reply, "%s", text);
    return false;
}

bool is_word(slice a, const char *word) { return a.bytes == strlen(word) && strncasecmp(a.p, word, a.bytes) == 0; }

bool key_fits(request *req, slice key) {
    return key.bytes <= MAX_KEY_BYTES || request_fail(req, "ERR the key is longer than 65536 bytes");
}
