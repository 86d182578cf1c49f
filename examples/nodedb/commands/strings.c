/* strings.c - commands on strings: GET, SET, MGET, MSET, INCR and its kind. */
#include "../db.h"

void run_get(core *c, request *req) { read_key(c, req, OP_GET); }

/* ---- SET --------------------------------------------------------------------------------------------------------- */

/* EX, PX, EXAT, PXAT with their number. */
static bool parse_set_expiry(request *req, slice option, slice number, uint64_t *at_ms) {
    bool seconds = is_word(option, "EX") || is_word(option, "EXAT"), absolute = option.bytes == 4;
    int64_t n;
    if (parse_int64(number, &n) && n <= 0) return request_fail(req, "ERR invalid expire time in 'set' command");
    return parse_expiry(req, number, seconds, absolute, at_ms);
}

static bool is_expiry(slice a) {
    return is_word(a, "EX") || is_word(a, "PX") || is_word(a, "EXAT") || is_word(a, "PXAT");
}

void run_set(core *c, request *req) {
    change ch = {.kind = CHANGE_SET, .key = req->argv[1], .u.set.value = req->argv[2]};
    int i;
    for (i = 3; i < req->argc; i++) {
        slice a = req->argv[i];
        bool time_is_free = ch.u.set.expires_ms == 0 && !ch.u.set.keep_ttl;
        if (is_word(a, "NX") && !ch.u.set.xx) ch.u.set.nx = true;
        else if (is_word(a, "XX") && !ch.u.set.nx) ch.u.set.xx = true;
        else if (is_word(a, "GET")) ch.u.set.get = true;
        else if (is_word(a, "KEEPTTL") && ch.u.set.expires_ms == 0) ch.u.set.keep_ttl = true;
        else if (is_expiry(a) && time_is_free && i + 1 < req->argc) {
            if (!parse_set_expiry(req, a, req->argv[++i], &ch.u.set.expires_ms)) return;
        } else {
            (void)request_fail(req, syntax_error);
            return;
        }
    }
    write_key(c, req, &ch);
}

/* ---- INCR, INCRBY, DECR, DECRBY ---------------------------------------------------------------------------------- */

static bool parse_amount(request *req, int64_t *amount) {
    *amount = 1;
    return req->argc < 3 || parse_int64(req->argv[2], amount) || request_fail(req, not_integer);
}

void run_incr(core *c, request *req) {
    change ch = {.kind = CHANGE_INCREMENT, .key = req->argv[1]};
    if (parse_amount(req, &ch.u.increment.delta)) write_key(c, req, &ch);
}

void run_decr(core *c, request *req) {
    change ch = {.kind = CHANGE_INCREMENT, .key = req->argv[1]};
    if (!parse_amount(req, &ch.u.increment.delta)) return;
    if (ch.u.increment.delta == INT64_MIN) {
        (void)request_fail(req, "ERR decrement would overflow");
        return;
    }
    ch.u.increment.delta = -ch.u.increment.delta;
    write_key(c, req, &ch);
}

/* ---- MGET -------------------------------------------------------------------------------------------------------- */

/* A key that is no string reads as null. Any other error takes the value's place: earlier ones may be sent already. */
static void answer_mget(core *c, request *req, operation *op) {
    const buffer *text = &op->result.bytes;
    bool other_type = op->result.kind == RESULT_ERROR && text->len == strlen(wrong_type) &&
                      memcmp(text->p, wrong_type, text->len) == 0;
    if (other_type) reply_null(&req->reply, req->resp);
    else request_put_value(c, req, op);
}

static bool more_mget(core *c, request *req) {
    operation *op;
    if (req->at >= req->argc) return false;
    op = request_start(c, req, OP_GET, req->argv[req->at++]);
    request_send(c, req, op, core_of_key(c->server, op->key));
    if (req->at == req->argc) request_all_started(c, req);
    return true;
}

void run_mget(core *c, request *req) {
    (void)c;
    if (!keys_fit(req, 1)) return;
    reply_array(&req->reply, req->argc - 1);
    request_alone(req);
    req->at = 1;
    req->on_answer = answer_mget;
    req->more = more_mget;
}

/* ---- MSET -------------------------------------------------------------------------------------------------------- */

static change pair_at(const request *req, int i) {
    return (change){.kind = CHANGE_SET, .key = req->argv[i], .u.set.value = req->argv[i + 1]};
}

/* Continues after a failure: each change uses up the grant of its pair. */
static bool more_mset(core *c, request *req) {
    operation *op;
    if (req->at >= req->argc) return false;
    op = request_start(c, req, OP_CHANGE, req->argv[req->at]);
    op->change = pair_at(req, req->at);
    op->prepared = true;
    req->at += 2;
    request_send(c, req, op, core_of_key(c->server, op->key));
    if (req->at >= req->argc) request_all_started(c, req);
    return true;
}

static void begin_mset(core *c, request *req) {
    (void)c;
    req->at = 1;
    req->on_answer = answer_ok;
    req->more = more_mset;
    req->at_end = end_ok;
}

/* Every pair is set, or none, and all are durable when it is answered. Another client may see some of them before the
 * others, as they may live on several cores. */
void run_mset(core *c, request *req) {
    preparation *p;
    int i;
    if (req->argc % 2 == 0) {
        reply_wrong_count(req);
        return;
    }
    if (!keys_fit(req, 2)) return;
    if (req->argc == 3) {
        change ch = pair_at(req, 1);
        request_change(c, req, &ch);
        return;
    }
    p = preparation_new(c, req);
    for (i = 1; i < req->argc; i += 2) {
        change ch = pair_at(req, i);
        uint32_t to = core_of_key(c->server, ch.key);
        p->asked[to] = true;
        p->bytes[to] += change_cost(&ch);
    }
    preparation_ask(c, req, begin_mset);
}
