/* shard.c - keys and values of one core, and apply(), the one way in which they change.
 *
 * A key is an entry: a string, or the home of a vector set. A string is a value of its own, which readers may pin: so a
 * large one is read in pieces, and the reader gets the value as it was when the read started. */
#include "db.h"

const char wrong_type[] = "WRONGTYPE Operation against a key holding the wrong kind of value";
const char not_integer[] = "ERR value is not an integer or out of range";

#define CHANGE_REPLY_BYTES 4096u /* of an old value that a change answers at once; the rest is fetched */

/* ---- where a key lives ------------------------------------------------------------------------------------------- */

/* CRC16, polynomial 0x1021, as in Redis Cluster's specification: four bits a step. */
static uint16_t crc16(const char *p, size_t bytes) {
    static const uint16_t step[16] = {0x0000, 0x1021, 0x2042, 0x3063, 0x4084, 0x50A5, 0x60C6, 0x70E7,
                                      0x8108, 0x9129, 0xA14A, 0xB16B, 0xC18C, 0xD1AD, 0xE1CE, 0xF1EF};
    unsigned crc = 0;
    for (; bytes > 0; bytes--, p++) {
        unsigned char byte = (unsigned char)*p;
        crc = (crc << 4 & 0xFFFF) ^ step[crc >> 12 ^ byte >> 4];
        crc = (crc << 4 & 0xFFFF) ^ step[crc >> 12 ^ (byte & 15)];
    }
    return (uint16_t)crc;
}

/* Of the key's {tag}, if it has one that is not empty; else of the whole key. */
uint32_t slot_of_key(slice key) {
    const char *open = memchr(key.p, '{', key.bytes);
    if (open != NULL) {
        size_t left = key.bytes - (size_t)(open + 1 - key.p);
        const char *close = memchr(open + 1, '}', left);
        if (close != NULL && close > open + 1) return crc16(open + 1, (size_t)(close - open - 1)) % SLOTS;
    }
    return crc16(key.p, key.bytes) % SLOTS;
}

uint32_t core_of_key(const server *srv, slice key) { return srv->owner[slot_of_key(key)]; }

uint32_t core_of_element(const server *srv, uint64_t set_id, slice name) {
    return srv->owner[nodedb_mix64(set_id ^ nodedb_crc32c(0, name.p, name.bytes)) % SLOTS];
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static value *value_new(shard *s, slice bytes) {
    value *v = data_alloc(s, sizeof *v + bytes.bytes);
    memset(v, 0, sizeof *v);
    v->bytes = bytes.bytes;
    v->touched = 1;
    if (bytes.bytes > 0) memcpy(v + 1, bytes.p, bytes.bytes);
    return v;
}

const char *value_bytes(shard *s, value *v) { return v->spilled ? spill_read(s, v) : (const char *)(v + 1); }

static void value_destroy(shard *s, value *v) {
    if (v->spilled) spill_forget(s, v);
    data_free(s, v);
}

/* Its key gets another value, or is removed. */
static void value_release(shard *s, value *v) {
    if (v->pins > 0) v->orphan = 1;
    else value_destroy(s, v);
}

void value_unpin(shard *s, value *v) {
    assert(v->pins > 0);
    v->pins--;
    if (v->pins == 0 && v->orphan) value_destroy(s, v);
}

/* The value as an answer: all of it, or its beginning and a pin. */
static void answer_value(shard *s, value *v, uint32_t limit, result *r) {
    uint32_t bytes = v->bytes < limit ? v->bytes : limit;
    const char *p = value_bytes(s, v);
    if (p == NULL) {
        result_error(r, "ERR the value cannot be read back from the overflow file"); /* a change is made all the same */
        return;
    }
    v->touched = 1;
    r->kind = RESULT_BULK;
    r->number = v->bytes;
    buffer_put(&r->bytes, p, bytes);
    if (bytes < v->bytes) v->pins++, r->pinned = v;
}

void read_string(shard *s, slice key, uint32_t limit, result *r) {
    entry *e = entry_live(s, key);
    if (e == NULL) r->kind = RESULT_NULL;
    else if (e->kind != ENTRY_STRING) result_error(r, "%s", wrong_type);
    else answer_value(s, e->u.string, limit, r);
}

/* The next piece of a pinned value. The last one removes the pin. */
void read_more(shard *s, value *v, uint32_t at, uint32_t limit, result *r) {
    uint32_t bytes = v->bytes - at < limit ? v->bytes - at : limit;
    const char *p = value_bytes(s, v);
    r->kind = RESULT_DATA;
    r->pinned = v;
    if (p != NULL) buffer_put(&r->bytes, p + at, bytes);
    if (p == NULL || at + bytes == v->bytes) {
        value_unpin(s, v);
        r->pinned = NULL;
    }
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static uint32_t entry_hash(const void *item) { return ((const entry *)item)->hash; }
static bool entry_is(const void *item, const void *name, size_t bytes) {
    const entry *e = item;
    return e->key_bytes == bytes && memcmp(e->key, name, bytes) == 0;
}
static const dictionary_kind entries = {entry_hash, entry_is};

entry *entry_find(shard *s, slice key) {
    return dictionary_find(&s->keys, name_hash(s, key.p, key.bytes), key.p, key.bytes);
}

entry *entry_live(shard *s, slice key) {
    entry *e = entry_find(s, key);
    return e != NULL && e->expires_ms != 0 && e->expires_ms <= wall_ms() ? NULL : e;
}

static void entry_set_expiry(shard *s, entry *e, uint64_t at_ms) {
    s->expiring += (uint64_t)(at_ms != 0) - (uint64_t)(e->expires_ms != 0);
    e->expires_ms = at_ms;
}

static entry *entry_new(shard *s, slice key, entry_kind kind) {
    entry *e = data_alloc(s, sizeof *e + key.bytes);
    memset(e, 0, sizeof *e);
    memcpy(e->key, key.p, key.bytes);
    e->key_bytes = key.bytes & 0xFFFFFF;
    e->kind = (unsigned)kind & 0xFF;
    e->hash = name_hash(s, key.p, key.bytes);
    dictionary_add(&s->keys, e);
    return e;
}

/* Frees the entry and its value. It is in no table any more. */
static void entry_free(shard *s, entry *e) {
    if (e->kind == ENTRY_SET) home_retire(s, e->u.home);
    else if (e->u.string != NULL) value_release(s, e->u.string);
    data_free(s, e);
}

static void entry_remove(shard *s, entry *e) {
    entry_set_expiry(s, e, 0);
    dictionary_remove(&s->keys, e);
    entry_free(s, e);
}

void entry_detach(shard *s, entry *e) {
    if (e->expires_ms != 0) s->expiring--; /* it keeps its time */
    dictionary_remove(&s->keys, e);
    if (e->kind == ENTRY_STRING && e->u.string->spilled) {
        value *old = e->u.string;
        const char *p = spill_read(s, old);
        e->u.string = value_new(s, (slice){p != NULL ? p : "", p != NULL ? old->bytes : 0});
        value_destroy(s, old);
    }
    if (e->kind == ENTRY_STRING) data_disown(s, e->u.string);
    else data_disown(s, e->u.home);
    data_disown(s, e);
}

void entry_add(shard *s, entry *e) {
    e->hash = name_hash(s, e->key, e->key_bytes);
    if (e->expires_ms != 0) s->expiring++;
    data_adopt(s, e);
    if (e->kind == ENTRY_STRING) data_adopt(s, e->u.string);
    else data_adopt(s, e->u.home);
    dictionary_add(&s->keys, e);
}

/* ---- what is dropped as a whole, and freed step by step ---------------------------------------------------------- */

struct retired {
    retired *next;
    dictionary items; /* of entry or element */
    bool elements;
    nodedb_vamana *index;
};

static void retire(shard *s, dictionary *items, bool elements, nodedb_vamana *index) {
    retired *r = data_alloc(s, sizeof *r);
    *r = (retired){.next = s->retired, .items = *items, .elements = elements, .index = index};
    *items = (dictionary){.kind = items->kind, .owner = s};
    s->retired = r;
}

void retire_part(shard *s, dictionary *elements, nodedb_vamana *index) { retire(s, elements, true, index); }

static void retired_free_item(shard *s, const retired *r, void *item) {
    if (!r->elements) entry_free(s, item);
    else {
        flat_free(s, ((element *)item)->vector);
        data_free(s, item);
    }
}

bool has_retired(const shard *s) { return s->retired != NULL || s->large != NULL; }

bool retire_some(shard *s, size_t things) {
    size_t freed = 0;
    while (has_retired(s) && freed < things) {
        retired *r = s->retired;
        void *items[DICTIONARY_SEGMENT];
        uint64_t cursor = 0;
        size_t n = 0, i;
        if (s->large != NULL) {
            free_large_some(s);
            freed += RETIRE_BATCH / 4; /* it takes as long as so many items */
            continue;
        }
        while (cursor < DICTIONARY_END && n == 0)
            n = dictionary_page(&r->items, &cursor, items, DICTIONARY_SEGMENT);
        for (i = 0; i < n; i++) {
            dictionary_remove(&r->items, items[i]);
            retired_free_item(s, r, items[i]);
        }
        freed += n;
        if (n > 0) continue;
        s->retired = r->next;
        dictionary_free(&r->items);
        nodedb_vamana_destroy(r->index);
        data_free(s, r);
        freed += 64;
    }
    return has_retired(s);
}

/* ---- apply ------------------------------------------------------------------------------------------------------- */

bool parse_int64(slice text, int64_t *number) {
    char copy[24], *end;
    if (text.bytes == 0 || text.bytes > 20 || isspace((unsigned char)text.p[0]) || text.p[0] == '+') return false;
    memcpy(copy, text.p, text.bytes);
    copy[text.bytes] = 0;
    errno = 0;
    *number = strtoll(copy, &end, 10);
    return errno == 0 && *end == 0 && end == copy + text.bytes &&
           (text.bytes == 1 || (text.p[0] != '0' && !(text.p[0] == '-' && text.p[1] == '0')));
}

static void answer(result *r, result_kind kind, int64_t number) {
    if (r == NULL || r->kind == RESULT_ERROR) return;
    r->kind = kind;
    r->number = number;
}

static void apply_set(shard *s, const change *c, entry *e, result *r) {
    bool had = e != NULL;
    if (c->u.set.get && had && e->kind == ENTRY_SET) {
        if (r != NULL) result_error(r, "%s", wrong_type);
        return;
    }
    if (!c->u.set.get) answer(r, RESULT_OK, 0);
    else if (!had) answer(r, RESULT_NULL, 0);
    else if (r != NULL) answer_value(s, e->u.string, CHANGE_REPLY_BYTES, r);
    if ((c->u.set.nx && had) || (c->u.set.xx && !had)) {
        if (!c->u.set.get) answer(r, RESULT_NULL, 0);
        return;
    }
    if (had && e->kind == ENTRY_SET) {
        entry_remove(s, e);
        e = NULL;
    }
    if (e == NULL) e = entry_new(s, c->key, ENTRY_STRING);
    else value_release(s, e->u.string);
    e->u.string = value_new(s, c->u.set.value);
    if (!c->u.set.keep_ttl) entry_set_expiry(s, e, c->u.set.expires_ms);
}

static void apply_delete(shard *s, const change *c, entry *e, result *r) {
    if (c->u.del.get && e != NULL && e->kind == ENTRY_SET) {
        if (r != NULL) result_error(r, "%s", wrong_type);
        return;
    }
    if (!c->u.del.get) answer(r, RESULT_INTEGER, e != NULL);
    else if (e == NULL) answer(r, RESULT_NULL, 0);
    else if (r != NULL) answer_value(s, e->u.string, CHANGE_REPLY_BYTES, r);
    if (e != NULL) entry_remove(s, e);
}

static void apply_expire(shard *s, const change *c, entry *e, result *r) {
    uint64_t at = c->u.expire.expires_ms;
    answer(r, RESULT_INTEGER, e != NULL && (at != 0 || e->expires_ms != 0));
    if (e == NULL) return;
    if (at != 0 && at <= c->now_ms) entry_remove(s, e);
    else entry_set_expiry(s, e, at);
}

static void apply_increment(shard *s, const change *c, entry *e, result *r) {
    int64_t number = 0;
    char text[24];
    const char *wrong = NULL, *old;
    if (e != NULL && e->kind == ENTRY_SET) wrong = wrong_type;
    else if (e != NULL && ((old = value_bytes(s, e->u.string)) == NULL ||
                           !parse_int64((slice){old, e->u.string->bytes}, &number)))
        wrong = not_integer;
    else if (__builtin_add_overflow(number, c->u.increment.delta, &number))
        wrong = "ERR increment or decrement would overflow";
    if (wrong != NULL) {
        if (r != NULL) result_error(r, "%s", wrong);
        return;
    }
    if (e == NULL) e = entry_new(s, c->key, ENTRY_STRING);
    else value_release(s, e->u.string);
    e->u.string = value_new(s, (slice){text, (uint32_t)snprintf(text, sizeof text, "%" PRId64, number)});
    answer(r, RESULT_INTEGER, number);
}

/* The whole table of keys is retired at once and freed later, so a flush takes constant time. */
static void apply_flush(shard *s, result *r) {
    answer(r, RESULT_OK, 0);
    s->expiring = 0;
    if (s->keys.count > 0) retire(s, &s->keys, false, NULL);
    if (s->core == NULL) { /* recovery: no later step frees it */
        while (retire_some(s, RETIRE_BATCH)) {}
    }
}

static void apply_element(shard *s, const change *c) { /* of a checkpoint */
    part *p = part_find(s, c->u.element.set_id);
    if (p != NULL) (void)element_add(s, p, c->key, c->u.element.id);
}

void apply(shard *s, const change *c, result *r) {
    bool of_key = c->kind <= CHANGE_INCREMENT || c->kind == CHANGE_SWEEP || c->kind == CHANGE_CREATE ||
                  c->kind == CHANGE_END;
    entry *e = of_key ? entry_find(s, c->key) : NULL;
    part *p;
    if (e != NULL && e->expires_ms != 0 && e->expires_ms <= c->now_ms) {
        entry_remove(s, e);
        e = NULL;
    }
    switch (c->kind) {
    case CHANGE_SET: apply_set(s, c, e, r); break;
    case CHANGE_DELETE: apply_delete(s, c, e, r); break;
    case CHANGE_EXPIRE: apply_expire(s, c, e, r); break;
    case CHANGE_INCREMENT: apply_increment(s, c, e, r); break;
    case CHANGE_FLUSH: apply_flush(s, r); break;
    case CHANGE_SWEEP: break; /* done above */
    case CHANGE_CREATE: /* else the key exists: the operation checks again */
        if (e == NULL)
            entry_new(s, c->key, ENTRY_SET)->u.home =
                home_new(s, c->u.create.set_id, c->u.create.dim, c->u.create.metric);
        break;
    case CHANGE_END:
        if (e != NULL && e->kind == ENTRY_SET && e->u.home->set_id == c->u.set_id) entry_remove(s, e);
        break;
    case CHANGE_ADD: apply_add(s, c, r); break;
    case CHANGE_REMOVE: apply_remove(s, c, r); break;
    case CHANGE_DROP:
        if ((p = part_find(s, c->u.set_id)) != NULL) part_drop(s, p);
        break;
    case CHANGE_ELEMENT: apply_element(s, c); break;
    default: assert(0); /* CHANGE_PART comes with a file: store.c */
    }
}

/* ---- the end of keys --------------------------------------------------------------------------------------------- */

/* The time by which a key may be removed: the lowest that the wall clock has shown in the last second. So a clock that
 * is set ahead and back again within a second removes no key. */
static uint64_t sweep_ms(const core *c) {
    uint64_t least = wall_ms();
    size_t i;
    for (i = 0; i < sizeof c->wall_seen / sizeof *c->wall_seen; i++)
        if (c->wall_seen[i] < least) least = c->wall_seen[i];
    return least;
}

/* An expired key stays until a record removes it. So a replay, which runs at another time, finds the same keys as when
 * the records were written. */
bool sweep_some(core *c) {
    shard *s = c->shard;
    void *items[DICTIONARY_SEGMENT];
    uint64_t now;
    size_t n, i;
    if (s->expiring == 0 || s->sweeping > 0) return false;
    now = sweep_ms(c);
    if (s->expire_cursor >= DICTIONARY_END) s->expire_cursor = 0;
    n = dictionary_page(&s->keys, &s->expire_cursor, items, DICTIONARY_SEGMENT);
    for (i = 0; i < n && s->sweeping < EXPIRE_BATCH; i++) {
        const entry *e = items[i];
        operation *op;
        if (e->expires_ms == 0 || e->expires_ms > now) continue;
        op = operation_new(c, NULL, OP_CHANGE);
        op->owned_key = must(malloc(e->key_bytes + (size_t)1));
        memcpy(op->owned_key, e->key, e->key_bytes);
        op->key = op->change.key = (slice){op->owned_key, e->key_bytes};
        op->change.kind = CHANGE_SWEEP;
        s->sweeping++;
        operation_run(c, op);
    }
    if (i < n) s->expire_cursor = ((const entry *)items[i])->hash;
    return false;
}

/* ---- a shard ----------------------------------------------------------------------------------------------------- */

shard *shard_new(server *srv, uint32_t index, const char *dir) {
    shard *s = must(calloc(1, sizeof *s));
    s->index = index;
    s->server = srv;
    s->logger = srv->logger;
    s->seed = nodedb_mix64(srv->hash_seed + index);
    s->keys = (dictionary){.kind = &entries, .owner = s};
    s->parts = (dictionary){.kind = &parts_by_set, .owner = s};
    s->progress_fd = -1;
    (void)snprintf(s->dir, sizeof s->dir, "%s", dir);
    return s;
}

void shard_free(shard *s) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    if (s == NULL) return;
    s->core = NULL; /* no other core is notified any more */
    apply_flush(s, NULL);
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&s->parts, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) part_free_now(s, items[i]);
    }
    while (s->dropping != NULL) {
        set_home *h = s->dropping;
        s->dropping = h->next;
        data_free(s, h);
    }
    while (retire_some(s, RETIRE_BATCH)) {}
    nodedb_mem_overflow_close(s->overflow);
    nodedb_prefetch_destroy(s->prefetch);
    (void)nodedb_wal_close(s->wal, NULL);
    if (s->progress_fd >= 0) (void)close(s->progress_fd);
    free(s);
}
