/* keys.c - commands on keys of any kind: DEL, EXISTS, TTL and EXPIRE, TYPE, SCAN, and on all of them at once. */
#include "../db.h"

#define SCAN_STEP_KEYS 256u      /* in one operation of a SCAN; other work runs between two */
#define SCAN_REPLY_BYTES (64u << 10) /* a SCAN ends with this many bytes of keys, whatever its COUNT */
#define SCAN_MAX_COUNT 100000

/* ---- DEL, UNLINK, EXISTS ----------------------------------------------------------------------------------------- */

static bool more_del(core *c, request *req) {
    operation *op;
    if (req->at >= req->argc) return false;
    op = request_start(c, req, OP_CHANGE, req->argv[req->at++]);
    op->change = (change){.kind = CHANGE_DELETE, .key = op->key};
    op->prepared = true;
    request_send(c, req, op, core_of_key(c->server, op->key));
    if (req->at == req->argc) request_all_started(c, req);
    return true;
}

static void begin_del(core *c, request *req) {
    (void)c;
    req->at = 1;
    req->on_answer = answer_sum;
    req->more = more_del;
    req->at_end = end_sum;
}

/* Keys of several cores: all of these cores must be able to delete, or nothing is deleted. */
void run_del(core *c, request *req) {
    preparation *p;
    int i;
    if (!keys_fit(req, 1)) return;
    if (req->argc == 2) {
        request_change(c, req, &(change){.kind = CHANGE_DELETE, .key = req->argv[1]});
        return;
    }
    p = preparation_new(c, req);
    for (i = 1; i < req->argc; i++) p->asked[core_of_key(c->server, req->argv[i])] = true;
    preparation_ask(c, req, begin_del);
}

static bool more_exists(core *c, request *req) {
    operation *op;
    if (req->at >= req->argc) return false;
    op = request_start(c, req, OP_EXISTS, req->argv[req->at++]);
    request_send(c, req, op, core_of_key(c->server, op->key));
    if (req->at == req->argc) request_all_started(c, req);
    return true;
}

void run_exists(core *c, request *req) {
    (void)c;
    if (!keys_fit(req, 1)) return;
    request_alone(req);
    req->at = 1;
    req->on_answer = answer_sum;
    req->more = more_exists;
    req->at_end = end_sum;
}

void run_type(core *c, request *req) { read_key(c, req, OP_TYPE); }

/* ---- time to live ------------------------------------------------------------------------------------------------ */

bool parse_expiry(request *req, slice number, bool seconds, bool absolute, uint64_t *at_ms) {
    int64_t n, now = (int64_t)wall_ms();
    if (!parse_int64(number, &n)) return request_fail(req, not_integer);
    if ((seconds && __builtin_mul_overflow(n, 1000, &n)) || (!absolute && __builtin_add_overflow(n, now, &n)) ||
        n > INT64_MAX / 2) {
        reply_error(&req->reply, "ERR invalid expire time in '%s' command", req->cmd->name);
        return false;
    }
    *at_ms = n <= 0 ? 1 : (uint64_t)n; /* 0 means never */
    return true;
}

static void expire(core *c, request *req, bool seconds) {
    change ch = {.kind = CHANGE_EXPIRE, .key = req->argv[1]};
    if (parse_expiry(req, req->argv[2], seconds, false, &ch.u.expire.expires_ms)) write_key(c, req, &ch);
}
void run_expire(core *c, request *req) { expire(c, req, true); }
void run_pexpire(core *c, request *req) { expire(c, req, false); }
void run_persist(core *c, request *req) {
    write_key(c, req, &(change){.kind = CHANGE_EXPIRE, .key = req->argv[1]}); /* to expire at 0: never */
}

static void answer_ttl(core *c, request *req, operation *op) {
    int64_t ms = op->result.number;
    (void)c;
    if (!answer_failed(req, op)) reply_integer(&req->reply, ms < 0 ? ms : (ms + 500) / 1000);
}
void run_ttl(core *c, request *req) {
    req->on_answer = answer_ttl;
    read_key(c, req, OP_TTL);
}
void run_pttl(core *c, request *req) { read_key(c, req, OP_TTL); }

/* ---- SCAN -------------------------------------------------------------------------------------------------------- */

/* A client's cursor is core << 33 | cursor of its shard: below 2^53, so that a client may keep it in a double. A SCAN
 * looks at one shard, in steps, until it has looked at COUNT keys, has enough for one reply, or is at the end. */
typedef struct scan {
    uint32_t core, left; /* left: of COUNT */
    uint64_t cursor;
    slice match;
    bool has_match;
    int type;
    int64_t found;
    buffer names; /* as bulk strings */
} scan;

static bool parse_cursor(core *c, request *req, scan *q) {
    slice a = req->argv[1];
    int64_t n = 0;
    bool ok = parse_int64(a, &n) && n >= 0 && (uint64_t)n >> 33 < c->server->cores;
    q->core = (uint32_t)((uint64_t)n >> 33);
    q->cursor = (uint64_t)n & ((UINT64_C(1) << 33) - 1);
    return (ok && q->cursor < DICTIONARY_END) || request_fail(req, "ERR invalid cursor");
}

static bool parse_scan_options(request *req, scan *q) {
    int i;
    if (req->argc % 2 != 0) return request_fail(req, syntax_error);
    for (i = 2; i < req->argc; i += 2) {
        slice name = req->argv[i], with = req->argv[i + 1];
        int64_t n;
        if (is_word(name, "MATCH")) q->match = with, q->has_match = true;
        else if (is_word(name, "TYPE"))
            q->type = is_word(with, "string") ? ENTRY_STRING : is_word(with, "vectorset") ? ENTRY_SET : -2;
        else if (is_word(name, "COUNT")) {
            if (!parse_int64(with, &n)) return request_fail(req, not_integer);
            if (n < 1) return request_fail(req, syntax_error);
            q->left = n > SCAN_MAX_COUNT ? SCAN_MAX_COUNT : (uint32_t)n;
        } else return request_fail(req, syntax_error);
    }
    return true;
}

static void answer_scan(core *c, request *req, operation *op) {
    scan *q = req->state;
    const buffer *from = &op->result.bytes;
    size_t at = 0;
    (void)c;
    if (answer_failed(req, op)) return;
    while (at < from->len) {
        uint32_t bytes;
        memcpy(&bytes, from->p + at, sizeof bytes);
        reply_bulk(&q->names, from->p + at + sizeof bytes, bytes);
        at += sizeof bytes + bytes;
        q->found++;
    }
    q->cursor = (uint64_t)op->result.number;
}

static void end_scan_step(core *c, request *req);
static void scan_step(core *c, request *req) {
    scan *q = req->state;
    operation *op = request_start(c, req, OP_SCAN, (slice){"", 0});
    op->u.scan.cursor = q->cursor;
    op->u.scan.count = q->left < SCAN_STEP_KEYS ? q->left : SCAN_STEP_KEYS;
    op->u.scan.match = q->match;
    op->u.scan.has_match = q->has_match;
    op->u.scan.type = q->type;
    q->left -= op->u.scan.count;
    req->at_end = end_scan_step;
    request_send(c, req, op, q->core);
}

static void end_scan_step(core *c, request *req) {
    scan *q = req->state;
    if (!req->failed && q->cursor < DICTIONARY_END && q->left > 0 && q->names.len < SCAN_REPLY_BYTES) {
        scan_step(c, req);
        return;
    }
    if (!req->failed) {
        uint64_t next = (uint64_t)q->core << 33 | q->cursor;
        char text[24];
        if (q->cursor >= DICTIONARY_END) next = q->core + 1 < c->server->cores ? (uint64_t)(q->core + 1) << 33 : 0;
        (void)snprintf(text, sizeof text, "%" PRIu64, next);
        reply_array(&req->reply, 2);
        reply_bulk_text(&req->reply, text);
        reply_array(&req->reply, q->found);
        buffer_put(&req->reply, q->names.p, q->names.len);
    }
    buffer_free(&q->names);
}

void run_scan(core *c, request *req) {
    scan *q = request_state(c, req, sizeof *q);
    q->left = 10;
    q->type = -1;
    if (!parse_cursor(c, req, q) || !parse_scan_options(req, q)) return;
    buffer_count_at(&q->names, &c->client_bytes);
    req->on_answer = answer_scan;
    scan_step(c, req);
}

/* ---- all keys ---------------------------------------------------------------------------------------------------- */

void run_dbsize(core *c, request *req) {
    req->on_answer = answer_sum;
    req->at_end = end_sum;
    request_everywhere(c, req, OP_COUNT);
}

static void begin_flush(core *c, request *req) {
    uint32_t i;
    req->on_answer = answer_ok;
    req->at_end = end_ok;
    for (i = 0; i < c->server->cores; i++) {
        operation *op = request_start(c, req, OP_CHANGE, (slice){"", 0});
        op->change.kind = CHANGE_FLUSH;
        op->prepared = true;
        request_send(c, req, op, i);
    }
    request_all_started(c, req);
}

/* All cores are empty, or none. */
void run_flushall(core *c, request *req) {
    preparation *p;
    uint32_t i;
    if (req->argc > 2 || (req->argc == 2 && !is_word(req->argv[1], "SYNC") && !is_word(req->argv[1], "ASYNC"))) {
        (void)request_fail(req, syntax_error);
        return;
    }
    p = preparation_new(c, req);
    for (i = 0; i < c->server->cores; i++) p->asked[i] = true;
    preparation_ask(c, req, begin_flush);
}
