/* record.c - what is logged, and what a checkpoint holds: one change as bytes, little-endian.
 *
 *     offset  bytes
 *          0      1  kind (change_kind)
 *          1      1  flags. SET: 1 NX, 2 XX, 4 GET, 8 KEEPTTL. DELETE: 4 GET. Otherwise 0
 *          2      2  0
 *          4      4  bytes of the key
 *          8      8  wall clock when it was logged, in ms
 *         16         the fixed part of its kind (see below)
 *                    the key
 *                    SET: the value. ADD: the vector, dim floats. Up to the record's end
 *
 *     kind       fixed part                                                       key
 *     SET        u64 when it expires in ms, 0: never                              a key
 *     DELETE     -                                                                a key
 *     EXPIRE     u64 when it expires in ms, 0: never                              a key
 *     INCREMENT  i64 by how much                                                  a key
 *     FLUSH      -                                                                none
 *     SWEEP      -                                                                a key
 *     CREATE     u64 id of the set, u32 dimension, u32 metric                     a key
 *     END        u64 id of the set                                                a key
 *     ADD        u64 id of the set, u32 dimension, u32 metric                     an element
 *     REMOVE     u64 id of the set                                                an element
 *     DROP       u64 id of the set                                                none
 *     PART       u64 id of the set, u64 next element's id, u32 dim., u32 metric   none
 *     ELEMENT    u64 id of the set, u64 element's id                              an element
 *
 * Each change has one encoding: what was decoded encodes to the same bytes. Checksums of the log and the checkpoint
 * protect a record. It is checked here as well, because it may come from another version or another program. */
#include "db.h"

#define RECORD_HEADER_BYTES 16
#define RECORD_MAX_EXPIRY ((uint64_t)INT64_MAX / 2) /* so that times may be added without overflow */
#define RECORD_MAX_SQUARE 1e36 /* of a vector's length; a float holds the distance between two of them */
enum { RECORD_NX = 1, RECORD_XX = 2, RECORD_GET = 4, RECORD_KEEP_TTL = 8 };

/* What each kind looks like. */
typedef struct record_shape {
    bool known, has_key, has_tail; /* tail: the value or the vector */
    uint8_t fixed_bytes, flags;    /* flags: which may be set */
} record_shape;

static const record_shape record_shapes[] = {
    [CHANGE_SET] = {true, true, true, 8, RECORD_NX | RECORD_XX | RECORD_GET | RECORD_KEEP_TTL},
    [CHANGE_DELETE] = {true, true, false, 0, RECORD_GET},
    [CHANGE_EXPIRE] = {true, true, false, 8, 0},
    [CHANGE_INCREMENT] = {true, true, false, 8, 0},
    [CHANGE_FLUSH] = {true, false, false, 0, 0},
    [CHANGE_SWEEP] = {true, true, false, 0, 0},
    [CHANGE_CREATE] = {true, true, false, 16, 0},
    [CHANGE_END] = {true, true, false, 8, 0},
    [CHANGE_ADD] = {true, true, true, 16, 0},
    [CHANGE_REMOVE] = {true, true, false, 8, 0},
    [CHANGE_DROP] = {true, false, false, 8, 0},
    [CHANGE_PART] = {true, false, false, 24, 0},
    [CHANGE_ELEMENT] = {true, true, false, 16, 0},
};

/* NULL: there is no such kind. */
static const record_shape *record_shape_of(unsigned kind) {
    if (kind >= sizeof record_shapes / sizeof record_shapes[0] || !record_shapes[kind].known) return NULL;
    return &record_shapes[kind];
}

/* What is behind the key. */
static slice record_tail(const change *c) {
    slice none = {NULL, 0};
    return c->kind == CHANGE_SET ? c->u.set.value : c->kind == CHANGE_ADD ? c->u.add.vector : none;
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

size_t change_bytes(const change *c) {
    const record_shape *shape = record_shape_of(c->kind);
    assert(shape != NULL);
    return RECORD_HEADER_BYTES + (size_t)shape->fixed_bytes + c->key.bytes + record_tail(c).bytes;
}

static uint8_t record_flags(const change *c) {
    if (c->kind == CHANGE_DELETE) return c->u.del.get ? RECORD_GET : 0;
    if (c->kind != CHANGE_SET) return 0;
    return (uint8_t)((c->u.set.nx ? RECORD_NX : 0) | (c->u.set.xx ? RECORD_XX : 0) | (c->u.set.get ? RECORD_GET : 0) |
                     (c->u.set.keep_ttl ? RECORD_KEEP_TTL : 0));
}

static void record_put_set(unsigned char *to, uint64_t set_id, uint32_t dim, uint32_t metric) {
    nodedb_put_u64(to, set_id);
    nodedb_put_u32(to + 8, dim);
    nodedb_put_u32(to + 12, metric);
}

static void record_put_fixed(const change *c, unsigned char *to) {
    switch (c->kind) {
    case CHANGE_SET: nodedb_put_u64(to, c->u.set.expires_ms); break;
    case CHANGE_EXPIRE: nodedb_put_u64(to, c->u.expire.expires_ms); break;
    case CHANGE_INCREMENT: nodedb_put_u64(to, (uint64_t)c->u.increment.delta); break;
    case CHANGE_CREATE: record_put_set(to, c->u.create.set_id, c->u.create.dim, c->u.create.metric); break;
    case CHANGE_ADD: record_put_set(to, c->u.add.set_id, c->u.add.dim, c->u.add.metric); break;
    case CHANGE_END:
    case CHANGE_REMOVE:
    case CHANGE_DROP: nodedb_put_u64(to, c->u.set_id); break;
    case CHANGE_PART:
        nodedb_put_u64(to, c->u.part.set_id);
        nodedb_put_u64(to + 8, c->u.part.next_id);
        nodedb_put_u32(to + 16, c->u.part.dim);
        nodedb_put_u32(to + 20, c->u.part.metric);
        break;
    case CHANGE_ELEMENT:
        nodedb_put_u64(to, c->u.element.set_id);
        nodedb_put_u64(to + 8, c->u.element.id);
        break;
    case CHANGE_DELETE:
    case CHANGE_FLUSH:
    case CHANGE_SWEEP: break;
    }
}

void change_encode(const change *c, void *to) {
    unsigned char *p = (unsigned char *)to;
    const record_shape *shape = record_shape_of(c->kind);
    slice tail = record_tail(c);
    assert(shape != NULL && (shape->has_key || c->key.bytes == 0));
    assert(c->kind != CHANGE_ADD || tail.bytes == c->u.add.dim * 4);
    p[0] = (unsigned char)c->kind;
    p[1] = record_flags(c);
    nodedb_put_u16(p + 2, 0);
    nodedb_put_u32(p + 4, c->key.bytes);
    nodedb_put_u64(p + 8, c->now_ms);
    record_put_fixed(c, p + RECORD_HEADER_BYTES);
    p += RECORD_HEADER_BYTES + shape->fixed_bytes;
    if (c->key.bytes > 0) memcpy(p, c->key.p, c->key.bytes);
    if (tail.bytes > 0) memcpy(p + c->key.bytes, tail.p, tail.bytes);
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

static bool record_is_set(uint32_t dim, uint32_t metric) {
    return dim >= 1 && dim <= MAX_DIM && metric <= NODEDB_VAMANA_COSINE;
}

static float record_float(const char *at) {
    uint32_t bits = nodedb_get_u32(at);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* The limits of VADD's arguments. A component that is not finite fails the comparison as well. */
static bool record_is_vector(slice vector, uint32_t dim) {
    double square = 0;
    uint32_t i;
    if (vector.bytes != dim * 4) return false;
    for (i = 0; i < dim; i++) {
        double x = record_float(vector.p + (size_t)i * 4);
        square += x * x;
    }
    return square <= RECORD_MAX_SQUARE;
}

/* Are its numbers within their limits? Flags and lengths have been checked before. */
static bool record_is_valid(const change *c) {
    switch (c->kind) {
    case CHANGE_SET: return c->u.set.expires_ms <= RECORD_MAX_EXPIRY;
    case CHANGE_EXPIRE: return c->u.expire.expires_ms <= RECORD_MAX_EXPIRY;
    case CHANGE_CREATE: return record_is_set(c->u.create.dim, c->u.create.metric);
    case CHANGE_ADD:
        return record_is_set(c->u.add.dim, c->u.add.metric) && record_is_vector(c->u.add.vector, c->u.add.dim);
    case CHANGE_PART: return record_is_set(c->u.part.dim, c->u.part.metric);
    case CHANGE_DELETE:
    case CHANGE_INCREMENT:
    case CHANGE_FLUSH:
    case CHANGE_SWEEP:
    case CHANGE_END:
    case CHANGE_REMOVE:
    case CHANGE_DROP:
    case CHANGE_ELEMENT: return true;
    }
    return false;
}

static void record_get_fixed(change *c, uint8_t flags, const unsigned char *from, slice tail) {
    switch (c->kind) {
    case CHANGE_SET:
        c->u.set.value = tail;
        c->u.set.expires_ms = nodedb_get_u64(from);
        c->u.set.nx = (flags & RECORD_NX) != 0;
        c->u.set.xx = (flags & RECORD_XX) != 0;
        c->u.set.get = (flags & RECORD_GET) != 0;
        c->u.set.keep_ttl = (flags & RECORD_KEEP_TTL) != 0;
        break;
    case CHANGE_DELETE: c->u.del.get = (flags & RECORD_GET) != 0; break;
    case CHANGE_EXPIRE: c->u.expire.expires_ms = nodedb_get_u64(from); break;
    case CHANGE_INCREMENT: c->u.increment.delta = (int64_t)nodedb_get_u64(from); break;
    case CHANGE_CREATE:
        c->u.create.set_id = nodedb_get_u64(from);
        c->u.create.dim = nodedb_get_u32(from + 8);
        c->u.create.metric = nodedb_get_u32(from + 12);
        break;
    case CHANGE_ADD:
        c->u.add.set_id = nodedb_get_u64(from);
        c->u.add.dim = nodedb_get_u32(from + 8);
        c->u.add.metric = nodedb_get_u32(from + 12);
        c->u.add.vector = tail;
        break;
    case CHANGE_END:
    case CHANGE_REMOVE:
    case CHANGE_DROP: c->u.set_id = nodedb_get_u64(from); break;
    case CHANGE_PART:
        c->u.part.set_id = nodedb_get_u64(from);
        c->u.part.next_id = nodedb_get_u64(from + 8);
        c->u.part.dim = nodedb_get_u32(from + 16);
        c->u.part.metric = nodedb_get_u32(from + 20);
        break;
    case CHANGE_ELEMENT:
        c->u.element.set_id = nodedb_get_u64(from);
        c->u.element.id = nodedb_get_u64(from + 8);
        break;
    case CHANGE_FLUSH:
    case CHANGE_SWEEP: break;
    }
}

bool change_decode(const void *from, size_t bytes, change *c) {
    const unsigned char *p = (const unsigned char *)from;
    const record_shape *shape = bytes < RECORD_HEADER_BYTES ? NULL : record_shape_of(p[0]);
    size_t key_at, tail_at;
    uint32_t key_bytes;
    slice tail;
    if (shape == NULL || (p[1] & ~shape->flags) != 0 || nodedb_get_u16(p + 2) != 0) return false;
    key_at = RECORD_HEADER_BYTES + (size_t)shape->fixed_bytes;
    key_bytes = nodedb_get_u32(p + 4);
    tail_at = key_at + key_bytes;
    if (key_bytes > (shape->has_key ? MAX_KEY_BYTES : 0) || bytes < tail_at) return false;
    if (bytes - tail_at > (shape->has_tail ? MAX_BULK_BYTES : 0)) return false;
    memset(c, 0, sizeof *c);
    c->kind = (change_kind)p[0];
    c->now_ms = nodedb_get_u64(p + 8);
    c->key.p = (const char *)p + key_at;
    c->key.bytes = key_bytes;
    tail.p = (const char *)p + tail_at;
    tail.bytes = (uint32_t)(bytes - tail_at);
    record_get_fixed(c, p[1], p + RECORD_HEADER_BYTES, tail);
    return record_is_valid(c);
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

void floats_decode(slice vector, float *to) {
    uint32_t i;
    for (i = 0; i < vector.bytes / 4; i++) to[i] = record_float(vector.p + (size_t)i * 4);
}

void floats_encode(const float *from, uint32_t dim, char *to) {
    uint32_t i, bits;
    for (i = 0; i < dim; i++) {
        memcpy(&bits, from + i, 4);
        nodedb_put_u32(to + (size_t)i * 4, bits);
    }
}
