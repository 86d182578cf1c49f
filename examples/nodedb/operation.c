/* operation.c - one step on one shard: admit it, log it, wait until it is durable, apply it, answer.
 *
 *   operation_run     it has arrived. A question is answered at once. A change goes on:
 *   operation_log     memory is reserved, the record is appended to the open group of the log
 *   pump_log          submits groups, and learns which are durable
 *   operation_commit  its record is durable: apply()
 *   operation_finish  back to the request that made it
 *
 * The list `committing` has the order of the log. What has no record but must keep its place among the changes (an
 * operation at the home of a vector set, SAVE) stands in it as well, with the LSN of the one before it. */
#include "db.h"

#include <sys/statvfs.h>

#define MIN_COST_BYTES 256u /* reserved for a change that takes memory at all */

/* ---- lists and rings --------------------------------------------------------------------------------------------- */

static void list_push(operation_list *l, operation *op) {
    op->next = NULL;
    if (l->head == NULL) l->head = op;
    else l->tail->next = op;
    l->tail = op;
}

static void list_push_front(operation_list *l, operation *op) {
    op->next = l->head;
    if (l->head == NULL) l->tail = op;
    l->head = op;
}

static operation *list_pop(operation_list *l) {
    operation *op = l->head;
    if (op != NULL) l->head = op->next;
    return op;
}

/* Never wait for a full ring: the other core may be waiting for us. */
void outbox_send(core *c, uint32_t to, int kind, uint32_t number, void *pointer) {
    message m = {(uint32_t)kind, number, pointer};
    if (arrlen(c->outbox[to]) == 0 && nodedb_tpc_send(c->tpc, to, &m) == NODEDB_OK) return;
    arrput(c->outbox[to], m);
}

size_t outbox_flush(core *c) {
    size_t sent = 0;
    uint32_t to;
    for (to = 0; to < c->server->cores; to++) {
        ptrdiff_t n = 0;
        while (n < arrlen(c->outbox[to]) && nodedb_tpc_send(c->tpc, to, &c->outbox[to][n]) == NODEDB_OK) n++;
        if (n > 0) arrdeln(c->outbox[to], 0, n);
        sent += (size_t)n;
    }
    return sent;
}

void turn_begin(core *c) { c->turn_ends_ns = nodedb_now_ns(NULL) + TURN_NS; }
bool turn_over(const core *c) { return nodedb_now_ns(NULL) >= c->turn_ends_ns; }

/* ---- life -------------------------------------------------------------------------------------------------------- */

operation *operation_new(core *c, request *req, operation_kind kind) {
    operation *op = must(calloc(1, sizeof *op));
    op->req = req;
    op->origin = (uint16_t)c->index;
    op->kind = (uint8_t)kind;
    op->result.bytes.counter = &c->client_bytes;
    c->client_bytes += sizeof *op;
    return op;
}

void operation_leave(core *c, operation *op) {
    c->client_bytes -= sizeof *op;
    buffer_count_at(&op->result.bytes, NULL);
}

void operation_arrive(core *c, operation *op) {
    c->client_bytes += sizeof *op;
    buffer_count_at(&op->result.bytes, &c->client_bytes);
}

void operation_free(operation *op) {
    if (op->result.bytes.counter != NULL) *op->result.bytes.counter -= sizeof *op;
    buffer_free(&op->result.bytes);
    free(op->owned_key);
    free(op);
}

void operation_send(core *c, operation *op, uint32_t to) {
    if (to == c->index) operation_run(c, op);
    else {
        operation_leave(c, op);
        outbox_send(c, to, MESSAGE_RUN, 0, op);
    }
}

static uint32_t bucket_of(slice key) { return nodedb_crc32c(0, key.p, key.bytes) % HOME_BUCKETS; }

/* What may change whether the key has a set: not what merely waits for its turn at the home. */
static bool has_record(const operation *op) {
    return op->creating || (op->kind == OP_CHANGE && op->stage != STAGE_HOME);
}

static void leave_bucket(core *c, operation *op) {
    if (op->bucket == HOME_BUCKETS + 1) c->all_keys--;
    else if (op->bucket != 0) {
        c->buckets[op->bucket - 1].all--;
        c->buckets[op->bucket - 1].records -= op->in_records;
    }
    op->bucket = 0;
}

static void enter_bucket(core *c, operation *op) {
    leave_bucket(c, op);
    if (op->stage == STAGE_PART || op->kind == OP_SAVE) return; /* concerns no key of this shard */
    if (op->kind == OP_CHANGE && op->change.kind == CHANGE_FLUSH) {
        op->bucket = HOME_BUCKETS + 1;
        c->all_keys++;
    } else {
        op->bucket = (uint16_t)(1 + bucket_of(op->key));
        op->in_records = has_record(op);
        c->buckets[op->bucket - 1].all++;
        c->buckets[op->bucket - 1].records += op->in_records;
    }
}

bool home_is_quiet(const core *c, slice key) { return c->all_keys == 0 && c->buckets[bucket_of(key)].all == 0; }

/* The last record in the list that concerns just this key: it creates a set (1), does something else (-1); 0: none. */
static int last_record(const operation_list *l, slice key) {
    const operation *op;
    int last = 0;
    for (op = l->head; op != NULL; op = op->next) {
        bool flush = op->bucket == HOME_BUCKETS + 1;
        if (flush) last = -1;
        else if (op->bucket != 0 && op->in_records && op->key.bytes == key.bytes &&
                 memcmp(op->key.p, key.p, key.bytes) == 0)
            last = op->creating ? 1 : -1;
    }
    return last;
}

static bool waits_at_home(const operation_list *l, slice key) {
    const operation *op;
    for (op = l->head; op != NULL; op = op->next)
        if (op->bucket != 0 && !op->emptied && (op->stage == STAGE_HOME || op->creating) &&
            op->key.bytes == key.bytes && memcmp(op->key.p, key.p, key.bytes) == 0)
            return true;
    return false;
}

bool home_has_waiters(const core *c, slice key) {
    return c->buckets[bucket_of(key)].all > 0 &&
           (waits_at_home(&c->committing, key) || waits_at_home(&c->waiting, key));
}

bool set_will_exist(const core *c, slice key, bool is_there) {
    int last = 0;
    if (c->all_keys > 0 || c->buckets[bucket_of(key)].records > 0) {
        last = last_record(&c->waiting, key);
        if (last == 0) last = last_record(&c->committing, key);
    }
    return last == 0 ? is_there : last > 0;
}

static void give_back_prepared(core *c, size_t bytes) {
    if (bytes > c->prepared_bytes) bytes = c->prepared_bytes;
    c->prepared_bytes -= bytes;
    data_release(c->shard, bytes);
}

void operation_finish(core *c, operation *op) {
    data_release(c->shard, op->reserved);
    op->reserved = 0;
    if (op->prepared) give_back_prepared(c, change_cost(&op->change)); /* it was refused before it was admitted */
    op->prepared = false;
    leave_bucket(c, op);
    if (op->kind == OP_CHANGE && op->change.kind == CHANGE_SWEEP) c->shard->sweeping--;
    if (op->counted && op->stage == STAGE_PART) { /* its home counts elements */
        op->stage = STAGE_ANSWER;
        operation_send(c, op, core_of_key(c->server, op->key));
    } else if (op->req == NULL) operation_free(op);
    else if (op->origin == c->index) request_answer(c, op);
    else {
        operation_leave(c, op);
        outbox_send(c, op->origin, MESSAGE_DONE, 0, op);
    }
}

void operation_fail(core *c, operation *op, const char *format, ...) {
    char text[500];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (op->ending) { /* the element is gone all the same; only the empty set stays for now */
        home_not_ended(c, op);
        op->ending = false;
    } else result_error(&op->result, "%s", text);
    operation_finish(c, op);
}

/* ---- applying ---------------------------------------------------------------------------------------------------- */

/* The change uses the operation's reservation; the rest is released. */
static void apply_paid(core *c, operation *op, const change *ch, result *r) {
    shard *s = c->shard;
    s->credit_bytes = op->reserved;
    op->reserved = 0;
    apply(s, ch, r);
    data_release(s, s->credit_bytes);
    s->credit_bytes = 0;
}

static void guarded_apply(nodedb_tpc_core *tpc, void *argument) {
    operation *op = argument;
    op->change.now_ms = op->logged_ms;
    apply_paid(nodedb_tpc_core_data(tpc), op, &op->change, op->ending ? NULL : &op->result);
}

/* The same question has the same id, so the fault guard refuses one that faults repeatedly. */
static uint64_t fault_id(const operation *op) {
    slice value = {NULL, 0};
    uint32_t sum = nodedb_crc32c(0, op->key.p, op->key.bytes);
    if (op->fault_id != 0) return op->fault_id;
    if (op->kind == OP_CHANGE && op->change.kind == CHANGE_SET) value = op->change.u.set.value;
    if (value.bytes > 0 && value.bytes <= CHUNK_BYTES / 16) sum = nodedb_crc32c(sum, value.p, value.bytes);
    return nodedb_mix64((uint64_t)op->kind << 56 | (uint64_t)op->change.kind << 48 |
                        (uint64_t)(value.bytes & 0xFFFF) << 32 | sum);
}

/* A durable record is applied, degraded or not; only a fault of its own abandons it. */
static void commit_change(core *c, operation *op) {
    nodedb_status status = nodedb_tpc_guard(c->tpc, guarded_apply, op, fault_id(op));
    if (status == NODEDB_ERR_DEGRADED) guarded_apply(c->tpc, op);
    else if (status != NODEDB_OK) {
        data_release(c->shard, c->shard->credit_bytes);
        c->shard->credit_bytes = 0;
        operation_fail(c, op, "ERR the command was abandoned: %s", nodedb_tpc_fault_text(c->tpc));
        return;
    }
    if (c->shard->reserve_gone) c->shard->save_wanted = true;
    operation_finish(c, op);
}

static void commit_creation(core *c, operation *op) { /* CREATING -> LIVE, or ABSENT: home_step sees */
    change ch = {.kind = CHANGE_CREATE, .now_ms = op->logged_ms, .key = op->key};
    ch.u.create.set_id = op->set_id;
    ch.u.create.dim = op->change.u.add.dim, ch.u.create.metric = op->change.u.add.metric;
    apply_paid(c, op, &ch, NULL);
    op->creating = false;
    home_step(c, op);
}

static void commit_save(core *c, operation *op) {
    nodedb_error err;
    if (shard_save(c->shard, &err) == NODEDB_OK) op->result.kind = RESULT_OK;
    else result_error(&op->result, "ERR %s", err.message);
    operation_finish(c, op);
}

/* Its record is durable; or it has none, and is next in order. */
static void operation_commit(core *c, operation *op) {
    if (op->logged) c->shard->applied_lsn = op->lsn;
    op->logged = false;
    leave_bucket(c, op);
    if (op->creating) commit_creation(c, op);
    else if (op->stage == STAGE_HOME) home_step(c, op);
    else if (op->kind == OP_SAVE) commit_save(c, op);
    else commit_change(c, op);
}

/* ---- logging ----------------------------------------------------------------------------------------------------- */

size_t change_cost(const change *c) {
    size_t bytes = sizeof(entry) + sizeof(value) + 64 + c->key.bytes; /* 64: its slot in a table, and rounding */
    switch (c->kind) {
    case CHANGE_SET: /* a large record is copied on its way into the log, where small ones share a buffer */
        bytes += c->u.set.value.bytes + c->u.set.value.bytes / 4;
        if (c->u.set.value.bytes > LOG_GROUP_BYTES / 4) bytes += 2 * (size_t)c->u.set.value.bytes;
        break;
    case CHANGE_INCREMENT: break;
    case CHANGE_CREATE: bytes += MIN_COST_BYTES + (size_t)c->u.create.dim * 5; break; /* an element follows */
    case CHANGE_ADD: bytes += (size_t)c->u.add.dim * 5 + 320; break; /* vector and code; 320: its edges */
    default: return 0;
    }
    return bytes > MIN_COST_BYTES ? bytes : MIN_COST_BYTES;
}

/* Changes that free space, which the reserve lets through on a full disk. */
static bool frees_space(const operation *op) {
    switch (op->change.kind) {
    case CHANGE_DELETE: case CHANGE_EXPIRE: case CHANGE_FLUSH: case CHANGE_SWEEP: case CHANGE_END: case CHANGE_REMOVE:
    case CHANGE_DROP: return true;
    default: return op->prepared || op->promised; /* its core has granted it */
    }
}

/* A value that is unreadable now may be readable in a replay, which would then have another outcome. */
static bool old_value_is_lost(shard *s, const change *ch) {
    const entry *e = ch->kind == CHANGE_INCREMENT ? entry_find(s, ch->key) : NULL;
    return e != NULL && e->kind == ENTRY_STRING && e->u.string->spilled && value_bytes(s, e->u.string) == NULL;
}

static bool admit(core *c, operation *op, const change *ch) {
    size_t cost = change_cost(ch);
    if (old_value_is_lost(c->shard, ch)) {
        operation_fail(c, op, "ERR the value cannot be read back from the overflow file");
        return false;
    }
    if (op->reserved > 0 || cost == 0) return true;
    if (op->prepared && c->prepared_bytes >= cost) {
        c->prepared_bytes -= cost;
        op->prepared = false;
        op->promised = true;
    } else if (!data_reserve(c->shard, cost)) {
        c->oom_refused++;
        operation_fail(c, op, "OOM command not allowed when used memory > 'maxmemory'.");
        return false;
    }
    op->reserved = cost;
    return true;
}

/* Space on a full disk for changes that free space: the reserve, or a checkpoint, which lets the log be truncated. */
static bool make_log_room(core *c, bool flush) {
    shard *s = c->shard;
    if (reserve_give_up(s, flush)) return true;
    if (steady_ms() < c->next_save_ms) return false;
    c->next_save_ms = steady_ms() + RETRY_SAVE_MS;
    return shard_save(s, NULL) == NODEDB_OK;
}

/* Every core could take the space of our reserve, so the others are asked to append nothing meanwhile. A core that has
 * taken some gives it back if it is not enough. */
static nodedb_status append_in_need(core *c, const nodedb_wal_record *record, uint64_t *lsn, bool flush,
                                    nodedb_error *err) {
    struct timespec pause = {0, 2000000};
    nodedb_status status = NODEDB_ERR_DISK_FULL;
    int tries;
    (void)__atomic_add_fetch(&c->server->making_room, 1, __ATOMIC_ACQ_REL);
    if (make_log_room(c, flush))
        for (tries = 0; tries < 8 && status == NODEDB_ERR_DISK_FULL; tries++) {
            if (tries > 0) (void)nanosleep(&pause, NULL);
            status = nodedb_wal_append(c->shard->wal, record, lsn, err);
        }
    (void)__atomic_sub_fetch(&c->server->making_room, 1, __ATOMIC_ACQ_REL);
    return status;
}

static nodedb_status append(core *c, operation *op, const change *ch, nodedb_error *err) {
    shard *s = c->shard;
    nodedb_wal_record record = {.type = NODEDB_WAL_TYPE_USER, .vshard = c->index};
    nodedb_status status;
    c->encoded.len = 0;
    record.payload_bytes = (uint32_t)change_bytes(ch);
    change_encode(ch, buffer_room(&c->encoded, record.payload_bytes));
    record.payload = c->encoded.p;
    status = nodedb_wal_append(s->wal, &record, &op->lsn, err);
    if (status == NODEDB_ERR_DISK_FULL && frees_space(op))
        status = append_in_need(c, &record, &op->lsn, ch->kind == CHANGE_FLUSH, err);
    if (status != NODEDB_ERR_AGAIN) s->log_full = status == NODEDB_ERR_DISK_FULL;
    if (c->encoded.cap > CHUNK_BYTES) buffer_free(&c->encoded);
    return status;
}

/* Appends one record. False: the log takes none now. Else the operation is in the log, or has failed. */
static bool log_record(core *c, operation *op) {
    change create = {.kind = CHANGE_CREATE, .key = op->key}, *ch = &op->change;
    nodedb_status status;
    nodedb_error err;
    if (op->creating) {
        create.u.create.set_id = op->set_id;
        create.u.create.dim = op->change.u.add.dim, create.u.create.metric = op->change.u.add.metric;
        ch = &create;
    }
    if (!frees_space(op) && __atomic_load_n(&c->server->making_room, __ATOMIC_ACQUIRE) > 0) return false;
    if (!admit(c, op, ch)) return true;
    ch->now_ms = op->logged_ms = wall_ms();
    status = append(c, op, ch, &err);
    if (status == NODEDB_ERR_AGAIN) return false;
    if (status == NODEDB_ERR_DISK_FULL && ch->kind == CHANGE_DROP) { /* recovery drops the part as well: no record */
        op->lsn = c->committing.head != NULL ? c->committing.tail->lsn : 0;
        if (c->committing.head == NULL) operation_commit(c, op);
        else list_push(&c->committing, op);
        return true;
    }
    if (status != NODEDB_OK) {
        operation_fail(c, op, "%s %s", status == NODEDB_ERR_DISK_FULL ? "ERR" : "MISCONF", err.message);
        return true;
    }
    op->logged = true;
    if (c->server->durable_always) list_push(&c->committing, op);
    else operation_commit(c, op); /* --durability interval: what is lost in a crash is the last interval */
    return true;
}

/* In order of arrival. False: it must wait for the log. */
static bool enter_line(core *c, operation *op) {
    if (op->creating || (op->kind == OP_CHANGE && op->stage != STAGE_HOME)) return log_record(c, op);
    if (c->committing.head == NULL) operation_commit(c, op);
    else {
        op->lsn = c->committing.tail->lsn;
        list_push(&c->committing, op);
    }
    return true;
}

void operation_log(core *c, operation *op) {
    enter_bucket(c, op);
    if (c->waiting.head != NULL || !enter_line(c, op)) list_push(&c->waiting, op);
}

/* The log has failed: nothing more is acknowledged. */
static size_t fail_all(core *c, uint64_t durable, const nodedb_error *why) {
    operation *op;
    size_t n = 0;
    while ((op = list_pop(&c->committing)) != NULL) {
        if (op->lsn <= durable) operation_commit(c, op);
        else operation_fail(c, op, "MISCONF %s", why->message);
        n++;
    }
    return n;
}

size_t pump_log(core *c) {
    uint64_t durable = 0;
    nodedb_error err;
    uint32_t most;
    size_t n = 0;
    if (nodedb_wal_poll(c->shard->wal, &durable, &err) != NODEDB_OK) n += fail_all(c, durable, &err);
    while (c->committing.head != NULL && c->committing.head->lsn <= durable && !(n > 0 && turn_over(c))) {
        operation_commit(c, list_pop(&c->committing));
        n++;
    }
    while (c->waiting.head != NULL && !turn_over(c)) {
        operation *op = list_pop(&c->waiting);
        if (!enter_line(c, op)) {
            list_push_front(&c->waiting, op);
            break;
        }
        n++;
    }
    /* A group takes a whole block. While the reserve pays for it, all that comes during one write shares the next. */
    most = c->shard->reserve_gone ? 1 : MAX_GROUPS_IN_FLIGHT;
    /* in interval mode a thread of its own sends groups, which work cannot starve: nodedb.c */
    if (c->server->durable_always && nodedb_wal_groups_in_flight(c->shard->wal) < most)
        (void)nodedb_wal_submit(c->shard->wal, NULL);
    return n;
}

/* ---- arriving ---------------------------------------------------------------------------------------------------- */

static bool disk_has_room(const shard *s, size_t bytes) {
    struct statvfs st;
    return statvfs(s->dir, &st) == 0 && (uint64_t)st.f_bavail * st.f_frsize > (uint64_t)bytes * 2 + (1u << 20);
}

/* 0 bytes: changes that free space may use the reserve. Others may once they are granted. */
static bool log_will_take(core *c, size_t bytes) {
    const shard *s = c->shard;
    if (!s->reserve_gone && bytes < RESERVE_BYTES / 4 && !(s->log_full && bytes > 0)) return true;
    if (disk_has_room(s, bytes)) return true;
    return bytes == 0 && (!s->log_full || make_log_room(c, true));
}

/* Grants memory to the changes that follow, or refuses, before any core has changed anything. */
static void prepare(core *c, operation *op) {
    shard *s = c->shard;
    size_t bytes = op->u.prepare.bytes;
    op->result.kind = RESULT_OK;
    if (op->u.prepare.undo) give_back_prepared(c, bytes);
    else if (!log_will_take(c, bytes))
        result_error(&op->result, "ERR no room on the disk for the log of core %u", c->index);
    else if (!data_reserve(s, bytes)) {
        c->oom_refused++;
        result_error(&op->result, "OOM command not allowed when used memory > 'maxmemory'.");
    } else c->prepared_bytes += bytes;
}

static void guarded_question(nodedb_tpc_core *tpc, void *argument) {
    core *c = nodedb_tpc_core_data(tpc);
    operation *op = argument;
    if (op->kind == OP_PREPARE) prepare(c, op);
    else if (op->kind == OP_PANIC) nodedb_tpc_panic(tpc, "DEBUG PANIC was asked for");
    else if (op->kind != OP_CHANGE && op->kind != OP_SAVE && op->stage != STAGE_HOME) read_now(c, op);
}

/* What a degraded core still does: counting, finishing what it has started, its own housekeeping. */
static bool needs_no_guard(const operation *op) {
    return op->req == NULL || op->prepared || op->kind == OP_STATS || op->kind == OP_COUNT || op->kind == OP_MORE ||
           op->stage == STAGE_ANSWER || (op->kind == OP_PREPARE && op->u.prepare.undo);
}

static void run_now(core *c, operation *op) {
    nodedb_status status = NODEDB_OK;
    if (needs_no_guard(op)) {
        if (op->kind != OP_CHANGE && op->kind != OP_SAVE) guarded_question(c->tpc, op);
    } else status = nodedb_tpc_guard(c->tpc, guarded_question, op, fault_id(op));
    if (status == NODEDB_ERR_DEGRADED)
        operation_fail(c, op, "ERR degraded: core %u: %s", c->index, nodedb_tpc_fault_text(c->tpc));
    else if (status != NODEDB_OK)
        operation_fail(c, op, "ERR the command was abandoned: %s", nodedb_tpc_fault_text(c->tpc));
    else if (op->stage == STAGE_ANSWER) home_answer(c, op);
    else if (op->stage == STAGE_HOME) home_arrival(c, op);
    else if (op->kind == OP_CHANGE || op->kind == OP_SAVE) operation_log(c, op);
    else operation_finish(c, op);
}

/* A search takes long, so it is queued: many of them must not delay the short operations that arrive meanwhile. */
void operation_run(core *c, operation *op) {
    if (op->kind == OP_SEARCH || op->kind == OP_SCAN) list_push(&c->slow, op);
    else run_now(c, op);
}

size_t run_slow(core *c) {
    size_t n = 0;
    while (c->slow.head != NULL && !(n > 0 && turn_over(c))) {
        run_now(c, list_pop(&c->slow));
        n++;
    }
    return n;
}
