/* several.c - what commands have in common: one operation on one key, answers that add up, order, and all or nothing.
 *
 * A command on several keys starts an operation for each, in windows (`more`). On one key they happen in the order of
 * the client's commands, because rings and logs keep order. That holds between commands only if the later one begins
 * after the earlier one has started its last operation: so such a command is alone until then. */
#include "../db.h"

/* ---- one key ----------------------------------------------------------------------------------------------------- */

void read_key(core *c, request *req, operation_kind kind) {
    operation *op;
    if (!key_fits(req, req->argv[1])) return;
    op = request_start(c, req, kind, req->argv[1]);
    request_send(c, req, op, core_of_key(c->server, op->key));
}

void write_key(core *c, request *req, const change *ch) {
    if (key_fits(req, ch->key)) request_change(c, req, ch);
}

/* ---- several operations ------------------------------------------------------------------------------------------ */

/* Checked before anything starts: a command with one key that is too long changes nothing. */
bool keys_fit(request *req, int step) {
    int i;
    for (i = 1; i < req->argc; i += step)
        if (!key_fits(req, req->argv[i])) return false;
    return true;
}

/* Freed and counted with the request. */
void *request_state(core *c, request *req, size_t bytes) {
    request_count(c, req, bytes);
    return req->state = must(calloc(1, bytes));
}

void request_alone(request *req) { req->alone = req->conn->alone = true; }

void request_all_started(core *c, request *req) {
    if (!req->alone) return;
    req->alone = req->conn->alone = false;
    mark_dirty(c, req->conn);
}

bool answer_failed(request *req, const operation *op) {
    if (op->result.kind != RESULT_ERROR) return false;
    if (!req->failed) reply_result(&req->reply, req->resp, &op->result);
    req->failed = true;
    return true;
}

void answer_sum(core *c, request *req, operation *op) {
    (void)c;
    if (!answer_failed(req, op)) req->sum += op->result.number;
}
void end_sum(core *c, request *req) {
    (void)c;
    if (!req->failed) reply_integer(&req->reply, req->sum);
}

void answer_ok(core *c, request *req, operation *op) {
    (void)c;
    (void)answer_failed(req, op);
}
void end_ok(core *c, request *req) {
    (void)c;
    if (!req->failed) reply_ok(&req->reply);
}

/* ---- all or nothing ---------------------------------------------------------------------------------------------- */

/*     asked --all grant--> then(): the changes, which none of these cores refuses now
 *           --one refuses--> the other grants are released; the error is the reply, and nothing has changed */
preparation *preparation_new(core *c, request *req) { return request_state(c, req, sizeof(preparation)); }

static void send_preparation(core *c, request *req, uint32_t to, bool undo) {
    const preparation *p = req->state;
    operation *op = request_start(c, req, OP_PREPARE, (slice){"", 0});
    op->u.prepare.bytes = p->bytes[to];
    op->u.prepare.undo = undo;
    request_send(c, req, op, to);
}

static void answer_preparation(core *c, request *req, operation *op) {
    preparation *p = req->state;
    (void)c;
    while (!p->asked[p->next]) p->next++; /* answers come in the order in which the cores were asked */
    p->granted[p->next++] = !answer_failed(req, op);
}

static void end_preparation(core *c, request *req) {
    const preparation *p = req->state;
    uint32_t i;
    if (!req->failed) {
        p->then(c, req);
        return;
    }
    request_all_started(c, req);
    req->on_answer = answer_ok;
    for (i = 0; i < c->server->cores; i++)
        if (p->granted[i] && p->bytes[i] > 0) send_preparation(c, req, i, true);
}

void preparation_ask(core *c, request *req, void (*then)(core *c, request *req)) {
    preparation *p = req->state;
    uint32_t i;
    p->then = then;
    request_alone(req);
    req->on_answer = answer_preparation;
    req->at_end = end_preparation;
    for (i = 0; i < c->server->cores; i++)
        if (p->asked[i]) send_preparation(c, req, i, false);
}
