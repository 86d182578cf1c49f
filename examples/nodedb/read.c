/* read.c - questions to a shard: each is answered at once, from memory, in bounded time. */
#include "db.h"

#define SCAN_BYTES (64u << 10) /* names in one answer, and ... */
#define SCAN_LOOK_BYTES (1u << 20) /* ... bytes of names compared with the pattern for it */

static bool scan_wants(const operation *op, const glob_pattern *pattern, const entry *e, uint64_t now) {
    if (e->expires_ms != 0 && e->expires_ms <= now) return false;
    if (op->u.scan.type != -1 && op->u.scan.type != (int)e->kind) return false;
    return pattern == NULL || glob_match(pattern, (slice){e->key, e->key_bytes});
}

/* Names as u32 length and bytes, in the machine's order. Ends early, between two hashes, when enough has been done. */
static void read_scan(shard *s, const operation *op, result *r) {
    glob_pattern *pattern = op->u.scan.has_match ? glob_compile(op->u.scan.match) : NULL;
    uint64_t cursor = op->u.scan.cursor, now = wall_ms(), next;
    void *items[DICTIONARY_SEGMENT];
    size_t left = op->u.scan.count, looked_bytes = 0, words = pattern != NULL ? glob_words(pattern) : 0, n, i;
    r->kind = RESULT_DATA;
    if (op->u.scan.has_match && pattern == NULL) {
        result_error(r, "ERR a part of the pattern with ? or classes is too long");
        return;
    }
    while (cursor < DICTIONARY_END && left > 0 && looked_bytes < SCAN_LOOK_BYTES && r->bytes.len < SCAN_BYTES) {
        next = cursor;
        n = dictionary_page(&s->keys, &next, items, DICTIONARY_SEGMENT);
        for (i = 0; i < n; i++) {
            const entry *e = items[i];
            uint32_t bytes = e->key_bytes;
            bool same_hash = i > 0 && ((const entry *)items[i - 1])->hash == e->hash;
            if (!same_hash && (left == 0 || looked_bytes >= SCAN_LOOK_BYTES || r->bytes.len >= SCAN_BYTES)) break;
            left -= left > 0;
            looked_bytes += bytes * (words + 7) / 8;
            if (!scan_wants(op, pattern, e, now)) continue;
            buffer_put(&r->bytes, &bytes, sizeof bytes);
            buffer_put(&r->bytes, e->key, bytes);
        }
        cursor = i < n ? ((const entry *)items[i])->hash : next;
        if (n == 0 && left > 0) left--; /* empty parts of the table cost time as well */
    }
    r->number = (int64_t)cursor;
    glob_free(pattern);
}

static void read_stats(core *c, result *r) {
    shard *s = c->shard;
    shard_stats st = {0};
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    st.keys = s->keys.count, st.expiring = s->expiring;
    st.spilled_count = s->spilled_count, st.spilled_bytes = s->spilled_bytes;
    st.clients = c->clients, st.commands = c->commands, st.accepted = c->accepted;
    st.clients_refused = c->clients_refused, st.oom_refused = c->oom_refused, st.client_bytes = c->client_bytes;
    st.replayed = s->records_replayed, st.saves = s->saves;
    st.checkpoint_lsn = s->checkpoint_lsn, st.applied_lsn = s->applied_lsn;
    st.sets = s->parts.count;
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&s->parts, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) st.vectors += ((const part *)items[i])->elements.count;
    }
    nodedb_wal_get_stats(s->wal, &st.wal);
    if (s->overflow != NULL) {
        nodedb_mem_overflow_stats overflow;
        (void)nodedb_mem_overflow_get_stats(s->overflow, &overflow, NULL);
        st.overflow_bytes = overflow.capacity_bytes, st.overflow_disk = overflow.disk_bytes;
    }
    st.major_faults = c->faults.total_major;
    (void)snprintf(st.log, sizeof st.log, "%s", nodedb_wal_describe(s->wal));
    (void)snprintf(st.prefetch, sizeof st.prefetch, "%s",
                   s->prefetch != NULL ? nodedb_prefetch_method_name(nodedb_prefetch_method_in_use(s->prefetch))
                                       : "none yet");
    r->kind = RESULT_DATA;
    buffer_put(&r->bytes, &st, sizeof st);
}

static void read_ttl(const entry *e, result *r) {
    uint64_t now = wall_ms();
    r->kind = RESULT_INTEGER;
    r->number = e == NULL                ? -2
                : e->expires_ms == 0     ? -1
                : e->expires_ms > now    ? (int64_t)(e->expires_ms - now)
                                         : 0;
}

static void read_set_info(const entry *e, result *r) {
    set_info info = {0};
    if (e == NULL) r->kind = RESULT_NULL;
    else if (e->kind != ENTRY_SET) result_error(r, "%s", wrong_type);
    else {
        info = (set_info){e->u.home->set_id, e->u.home->count, e->u.home->dim, e->u.home->metric};
        r->kind = RESULT_DATA;
        buffer_put(&r->bytes, &info, sizeof info);
    }
}

void read_now(core *c, operation *op) {
    shard *s = c->shard;
    result *r = &op->result;
    const entry *e = op->kind == OP_EXISTS || op->kind == OP_TTL || op->kind == OP_TYPE || op->kind == OP_SET_INFO
                         ? entry_live(s, op->key)
                         : NULL;
    switch (op->kind) {
    case OP_GET: read_string(s, op->key, op->u.get.limit, r); break;
    case OP_MORE: read_more(s, op->u.get.pinned, op->u.get.at, op->u.get.limit, r); break;
    case OP_EXISTS: r->kind = RESULT_INTEGER, r->number = e != NULL; break;
    case OP_TTL: read_ttl(e, r); break;
    case OP_TYPE:
        r->kind = RESULT_TYPE;
        buffer_text(&r->bytes, e == NULL ? "none" : e->kind == ENTRY_SET ? "vectorset" : "string");
        break;
    case OP_SCAN: read_scan(s, op, r); break;
    case OP_COUNT: r->kind = RESULT_INTEGER, r->number = (int64_t)s->keys.count; break;
    case OP_STATS: read_stats(c, r); break;
    case OP_SET_INFO: read_set_info(e, r); break;
    case OP_VECTOR:
    case OP_ISMEMBER: read_vector(s, op, r); break;
    case OP_SEARCH: read_search(s, op, r); break;
    case OP_NAME: read_name(s, op, r); break;
    default: assert(0);
    }
}
