/* nodedb - a durable key-value and vector database with pinned cores that speaks the Redis protocol.
 *
 * This file ties the five headers together and is meant to be read from top to bottom:
 *
 *   1 buffers and replies      growing byte buffers; RESP2 and RESP3
 *   2 records                  what is logged: one change, 40 bytes of header, a key and a value
 *   3 the shard                keys, values, vector sets; apply(), the one way in which anything changes
 *   4 checkpoint and recovery  newest checkpoint, then the log behind it, through apply()
 *   5 operations               one step of a command on one shard: read now, or log, wait, apply
 *   6 requests                 a command of a client: its operations on several shards, and the reply made of theirs
 *   7 connections              sockets, the protocol's parser
 *   8 the core                 hooks of nodedb_tpc: poll, wait, maintain
 *   9 main                     options, directory, start and stop
 *
 * A core is a pinned thread. It owns connections, and one shard: a part of the keys (by their hash), their log and
 * their memory. A command that comes in on core A for a key of core B travels to B as an operation, through a ring, and comes
 * back with its result. Nothing is shared but the rings.
 *
 * A write is logged as the command that it is, and applied to memory when its record is durable, in the order of the
 * log; so a restart that applies the same records in the same order has the same state, and readers only ever see what
 * cannot be lost any more. A connection that has writes under way does not begin a read before they are done, so a
 * client always sees its own writes.
 *
 * A vector set has a home: the shard of its key, which knows its dimension, metric and id. Its vectors are spread over
 * all shards by the hash of id and element; each shard's share is a Vamana index, called a part. Searches go to all
 * parts, and the connection's core merges the answers. All that concerns a key passes its home first and goes on from
 * there through the same rings, so that a part sees additions and the end of the set in the order of the home.
 *
 * Where it differs from Redis: one database; a set that loses its last element stays, empty, until it is deleted; MSET is
 * durable as a whole when it is answered, but not isolated; values are at most 32 MiB, keys 64 KiB. */

#define NODEDB_WAL_IMPLEMENTATION
#define NODEDB_WAL_STATIC
#include "nodedb_wal.h"
#define NODEDB_MEM_IMPLEMENTATION
#define NODEDB_MEM_STATIC
#include "nodedb_mem.h"
#define NODEDB_TPC_IMPLEMENTATION
#define NODEDB_TPC_STATIC
#include "nodedb_tpc.h"
#define NODEDB_VAMANA_IMPLEMENTATION
#define NODEDB_VAMANA_STATIC
#include "nodedb_vamana.h"
#define NODEDB_PREFETCH_IMPLEMENTATION
#define NODEDB_PREFETCH_STATIC
#include "nodedb_prefetch.h"
#define STB_DS_IMPLEMENTATION
#if !defined(typeof)
#define typeof __typeof__ /* stb_ds says typeof, which -std=c99 does not know */
#endif
#include "stb_ds.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>

#define NODEDB_VERSION "0.1.0"
#define MAX_CORES 64
#define MAX_BULK_BYTES (32u << 20)   /* one argument: a key, a value, a vector */
#define MAX_FRAME_BYTES (48u << 20)  /* one command; its record must fit into the log's 64 MiB */
#define MAX_KEY_BYTES (64u << 10)
#define MAX_ARGS 65536
#define MAX_INLINE_BYTES (64u << 10)
#define MAX_OUTPUT_BYTES (512u << 20) /* replies that a client does not fetch; then it is disconnected */
#define PAUSE_OUTPUT_BYTES (4u << 20) /* with so many unfetched, no more of its commands are read */
#define MAX_IN_FLIGHT 256            /* commands of one connection that are under way */
#define MAX_CLIENTS 10000            /* per core */
#define READ_BYTES (64u << 10)
#define MAX_GROUPS_IN_FLIGHT 2       /* log writes under way; what comes meanwhile forms the next group */
#define INTERVAL_NS UINT64_C(100000000) /* --durability interval: longest time until a write is durable */
#define ENTRY_OVERHEAD_BYTES 112     /* of a key in memory, beside key and value: entry, allocator, hash table */
#define SPILL_MIN_BYTES 256          /* smaller values are not worth a move to the overflow file */
#define SPILL_BATCH 64
#define SPILL_AHEAD_BYTES (64u << 10) /* spilled beyond what a refused write needs */
#define EXPIRE_BATCH 64
#define REMOVER_BUCKETS 256
#define DEFAULT_EF 100               /* beam of a search in each part */
#define MAX_EF 1000000
#define MAX_DIM 32768

typedef struct server server;
typedef struct core core;
typedef struct shard shard;
typedef struct connection connection;
typedef struct request request;
typedef struct operation operation;

/* ---- 1 buffers and replies --------------------------------------------------------------------------------------- */

typedef struct buffer {
    char *p;
    size_t len, cap;
} buffer;

static void *must(void *memory) { /* the governor refuses long before malloc does; if malloc does, nothing can go on */
    if (memory == NULL) {
        fprintf(stderr, "nodedb: out of memory\n");
        abort();
    }
    return memory;
}

static char *buffer_room(buffer *b, size_t bytes) {
    if (b->cap - b->len < bytes) {
        size_t cap = b->cap * 2 + 64;
        while (cap - b->len < bytes) cap *= 2;
        b->p = must(realloc(b->p, cap));
        b->cap = cap;
    }
    return b->p + b->len;
}
static void buffer_put(buffer *b, const void *bytes, size_t n) {
    if (n == 0) return;
    memcpy(buffer_room(b, n), bytes, n);
    b->len += n;
}
static void buffer_text(buffer *b, const char *text) { buffer_put(b, text, strlen(text)); }
static void buffer_free(buffer *b) {
    free(b->p);
    memset(b, 0, sizeof *b);
}
__attribute__((format(printf, 2, 3))) static void buffer_printf(buffer *b, const char *format, ...) {
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(buffer_room(b, 512), 512, format, args);
    va_end(args);
    if (n >= 512) {
        va_start(args, format);
        (void)vsnprintf(buffer_room(b, (size_t)n + 1), (size_t)n + 1, format, args);
        va_end(args);
    }
    if (n > 0) b->len += (size_t)n;
}

static void reply_number(buffer *b, char kind, int64_t n) {
    char text[24];
    int at = sizeof text;
    uint64_t rest = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    text[--at] = '\n', text[--at] = '\r';
    do text[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) != 0);
    if (n < 0) text[--at] = '-';
    text[--at] = kind;
    buffer_put(b, text + at, sizeof text - (size_t)at);
}
static void reply_int(buffer *b, int64_t n) { reply_number(b, ':', n); }
static void reply_array(buffer *b, int64_t n) { reply_number(b, '*', n); }
static void reply_map(buffer *b, int resp, int64_t pairs) {
    resp == 3 ? reply_number(b, '%', pairs) : reply_number(b, '*', pairs * 2);
}
static void reply_bulk(buffer *b, const void *bytes, size_t n) {
    reply_number(b, '$', (int64_t)n);
    buffer_put(b, bytes, n);
    buffer_put(b, "\r\n", 2);
}
static void reply_bulk_text(buffer *b, const char *text) { reply_bulk(b, text, strlen(text)); }
static void reply_null(buffer *b, int resp) { buffer_text(b, resp == 3 ? "_\r\n" : "$-1\r\n"); }
static void reply_ok(buffer *b) { buffer_text(b, "+OK\r\n"); }
static void reply_bool(buffer *b, int resp, bool value) {
    resp == 3 ? buffer_text(b, value ? "#t\r\n" : "#f\r\n") : reply_int(b, value);
}
static void reply_double(buffer *b, int resp, double value) {
    char text[40];
    (void)snprintf(text, sizeof text, "%.9g", value);
    if (resp == 3) buffer_printf(b, ",%s\r\n", text);
    else reply_bulk_text(b, text);
}
/* Errors are one line: whatever came from a client must not break it. */
__attribute__((format(printf, 2, 3))) static void reply_error(buffer *b, const char *format, ...) {
    char text[600];
    va_list args;
    char *p;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (p = text; *p != 0; p++)
        if (*p == '\r' || *p == '\n') *p = ' ';
    buffer_printf(b, "-%s\r\n", text);
}

static const char wrong_type[] = "WRONGTYPE Operation against a key holding the wrong kind of value";
static const char not_integer[] = "ERR value is not an integer or out of range";

/* ---- 2 records --------------------------------------------------------------------------------------------------- */

/* Changes have numbers below OP_FIRST_READ; these are on disk and keep their meaning. */
typedef enum op_code {
    OP_SET = 1, /* key, value, number: expires at ms or 0, flags SET_* */
    OP_DEL = 2, /* key */
    OP_EXPIRE = 3, /* key, number: expires at ms, 0: never */
    OP_INCRBY = 4, /* key, number: two's complement */
    OP_FLUSH = 5, /* all keys of this shard */
    OP_VSET = 10, /* key, number: id of the new set, dim, metric */
    OP_VADD = 11, /* element as key, number: id of the set, dim, metric, value: dim floats, little-endian */
    OP_VREM = 12, /* element as key, number: id of the set */
    OP_PART_DROP = 13, /* number: id of the set */
    /* In checkpoints only. A part, whose index is in a file beside; number: id, dim, metric, value: next element id. */
    OP_PART = 14,
    /* In checkpoints only. Element as key, number: id of the set, value: the element's id in the index. */
    OP_ELEMENT = 15,
    OP_FIRST_READ = 64,
    OP_GET = OP_FIRST_READ, OP_EXISTS, OP_TTL, OP_TYPE, OP_SCAN, OP_COUNT, OP_STATS, OP_VSET_INFO, OP_VEMB,
    OP_VISMEMBER, OP_PART_COUNT, OP_SEARCH, OP_SAVE, OP_PANIC
} op_code;

enum { SET_NX = 1, SET_XX = 2, SET_GET = 4, SET_KEEPTTL = 8, SCAN_MATCH = 1, SEARCH_TRUTH = 1, TTL_MS = 1 };

/* Layout, little-endian: u8 op, u8 flags, u16 0, u32 key bytes, u64 now (ms), u64 number, u32 dim, u32 metric, u64 0,
 * key, value. */
#define RECORD_HEADER_BYTES 40
typedef struct record {
    uint8_t op, flags;
    uint32_t key_bytes, value_bytes, dim, metric;
    uint64_t now_ms, number;
    const char *key, *value;
} record;

static size_t record_bytes(const record *r) { return RECORD_HEADER_BYTES + (size_t)r->key_bytes + r->value_bytes; }

static void record_encode(const record *r, unsigned char *to) {
    memset(to, 0, RECORD_HEADER_BYTES);
    to[0] = r->op, to[1] = r->flags;
    nodedb__put_u32(to + 4, r->key_bytes);
    nodedb__put_u64(to + 8, r->now_ms);
    nodedb__put_u64(to + 16, r->number);
    nodedb__put_u32(to + 24, r->dim);
    nodedb__put_u32(to + 28, r->metric);
    if (r->key_bytes > 0) memcpy(to + RECORD_HEADER_BYTES, r->key, r->key_bytes);
    if (r->value_bytes > 0) memcpy(to + RECORD_HEADER_BYTES + r->key_bytes, r->value, r->value_bytes);
}

static bool record_decode(const void *from, size_t bytes, record *r) {
    const unsigned char *p = from;
    memset(r, 0, sizeof *r);
    if (bytes < RECORD_HEADER_BYTES) return false;
    r->op = p[0], r->flags = p[1];
    r->key_bytes = nodedb__get_u32(p + 4);
    r->now_ms = nodedb__get_u64(p + 8);
    r->number = nodedb__get_u64(p + 16);
    r->dim = nodedb__get_u32(p + 24);
    r->metric = nodedb__get_u32(p + 28);
    if (r->key_bytes > bytes - RECORD_HEADER_BYTES) return false;
    r->key = (const char *)p + RECORD_HEADER_BYTES;
    r->value = r->key + r->key_bytes;
    r->value_bytes = (uint32_t)(bytes - RECORD_HEADER_BYTES - r->key_bytes);
    return true;
}

/* A record from a file: is it one that apply() may be given? */
static bool record_valid(const record *r) {
    switch (r->op) {
    case OP_SET:
    case OP_DEL:
    case OP_EXPIRE:
    case OP_INCRBY:
    case OP_FLUSH:
    case OP_VREM:
    case OP_PART_DROP: return true;
    case OP_VSET:
    case OP_PART:
        return r->dim >= 1 && r->dim <= MAX_DIM && r->metric <= NODEDB_VAMANA_COSINE &&
               (r->op == OP_VSET || r->value_bytes == 8);
    case OP_VADD:
        return r->dim >= 1 && r->dim <= MAX_DIM && r->metric <= NODEDB_VAMANA_COSINE && r->value_bytes == r->dim * 4;
    case OP_ELEMENT: return r->value_bytes == 8;
    default: return false;
    }
}

static void floats_from_record(const record *r, float *to) {
    uint32_t i;
    for (i = 0; i < r->dim; i++) {
        uint32_t bits = nodedb__get_u32(r->value + (size_t)i * 4);
        memcpy(to + i, &bits, 4);
    }
}

static void floats_to_record(const float *from, uint32_t dim, unsigned char *to) {
    uint32_t i;
    for (i = 0; i < dim; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        nodedb__put_u32(to + (size_t)i * 4, bits);
    }
}

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- 3 the shard ------------------------------------------------------------------------------------------------- */

/* Things by name. stb_ds maps a seeded 64-bit hash to a chain of those that share it (nearly always one), so names may
 * hold any bytes. Its array has no holes, and deleting moves the last item into the gap; a scan from the back to the
 * front therefore meets everything that is there from beginning to end. */
typedef struct named {
    struct named *next;
    uint32_t bytes;
    const char *name;
} named;
typedef struct { uint64_t key; named *value; } *dictionary;

static uint64_t dictionary_hash(const shard *s, const char *name, uint32_t bytes);

/* A key. A string's value is in `value`, or in the overflow file where `spilled` names it. A vector set's home entry
 * has only what describes it. */
typedef struct entry {
    named n;
    uint64_t expires_ms; /* 0: never */
    bool is_vset, is_spilled, touched;
    uint32_t value_bytes;
    char *value;
    nodedb_mem_handle spilled;
    uint64_t set_id;
    uint32_t dim, metric;
    char name[];
} entry;

typedef struct element {
    named n;
    uint64_t id; /* in the index */
    char name[];
} element;

/* This shard's share of one vector set. */
typedef struct part {
    uint64_t set_id, next_id;
    uint32_t dim, metric;
    nodedb_vamana *index;
    nodedb_vamana_searcher *searcher;
    dictionary elements;
    struct { uint64_t key; element *value; } *by_id;
} part;

/* One core's data. Only the core's thread touches it; before the cores start, the thread that recovers it. */
struct shard {
    uint32_t index; /* also the core's, for the governor */
    server *server;
    core *core; /* NULL while it is being recovered: then nobody is told of anything */
    char dir[PATH_MAX];
    dictionary keys;
    struct { uint64_t key; part *value; } *parts;
    size_t hash_seed;
    uint64_t now_ms;      /* time of the newest record: what expired before it is gone for good */
    uint64_t applied_lsn;
    uint64_t count;       /* keys */
    uint64_t expiring; /* keys with a time to live */
    size_t credit_bytes; /* reserved by the write that is being applied, and not yet used */
    size_t expire_hand, spill_hand;
    uint64_t spilled_bytes, spilled_count;
    nodedb_mem_spill spill;
    nodedb_mem_overflow *overflow; /* opened when it is first needed */
    nodedb_wal *wal;
    nodedb_logger logger;
    uint64_t records_replayed, checkpoint_lsn, saves;
};

struct server {
    char dir[PATH_MAX - 64];
    char bind[64];
    int port, listen_fd;
    uint32_t cores;
    size_t memory_bytes;
    bool durable_always, debug;
    uint64_t generation, hash_seed, started_ms;
    nodedb_mem *mem;
    nodedb_tpc *runtime;
    nodedb_logger logger;
    pthread_mutex_t said_lock;
    uint64_t said[32]; /* hashes of warnings that were printed: two cores say the same */
    uint32_t said_count;
    shard *shards[MAX_CORES];
    core *core[MAX_CORES];
};

/* stb_ds keeps one seed for all tables of the process, and draws it on when a table gets its first item. Two cores must not
 * do that at once. */
static pthread_mutex_t first_item_lock = PTHREAD_MUTEX_INITIALIZER;
#define TABLE_PUT(table, key, value)                                                                                   \
    do {                                                                                                               \
        bool first_item = hmlen(table) == 0;                                                                           \
        if (first_item) (void)pthread_mutex_lock(&first_item_lock);                                                    \
        hmput(table, key, value);                                                                                      \
        if (first_item) (void)pthread_mutex_unlock(&first_item_lock);                                                  \
    } while (0)

static uint64_t dictionary_hash(const shard *s, const char *name, uint32_t bytes) {
    return stbds_hash_bytes((void *)(uintptr_t)name, bytes, s->hash_seed);
}

static named *dictionary_find(const shard *s, dictionary *d, const char *name, uint32_t bytes) {
    ptrdiff_t i = hmgeti(*d, dictionary_hash(s, name, bytes));
    named *n;
    if (i < 0) return NULL;
    for (n = (*d)[i].value; n != NULL; n = n->next)
        if (n->bytes == bytes && memcmp(n->name, name, bytes) == 0) return n;
    return NULL;
}

static void dictionary_add(const shard *s, dictionary *d, named *n) {
    uint64_t hash = dictionary_hash(s, n->name, n->bytes);
    ptrdiff_t i = hmgeti(*d, hash);
    n->next = i < 0 ? NULL : (*d)[i].value;
    TABLE_PUT(*d, hash, n);
}

static void dictionary_remove(const shard *s, dictionary *d, named *n) {
    uint64_t hash = dictionary_hash(s, n->name, n->bytes);
    ptrdiff_t i = hmgeti(*d, hash);
    named **at;
    assert(i >= 0);
    for (at = &(*d)[i].value; *at != n; at = &(*at)->next) assert(*at != NULL);
    *at = n->next;
    if ((*d)[i].value == NULL) (void)hmdel(*d, hash);
}

/* Where a key lives, and an element of a set. Stable: it is the layout on disk. */
static uint32_t shard_of_key(const server *srv, const char *key, uint32_t bytes) {
    return (uint32_t)(nodedb__mix64(nodedb__crc32c(0, key, bytes)) % srv->cores);
}
static uint32_t shard_of_element(const server *srv, uint64_t set_id, const char *name, uint32_t bytes) {
    return (uint32_t)(nodedb__mix64(set_id ^ nodedb__crc32c(0, name, bytes)) % srv->cores);
}

/* Keys and values as they grow and shrink. What a write had reserved before it was logged is used up first, so that the ceiling
 * holds; beyond that nothing that is already durable can be refused. */
static void account(shard *s, int64_t delta) {
    if (delta > 0) {
        size_t bytes = (size_t)delta, paid = bytes < s->credit_bytes ? bytes : s->credit_bytes;
        s->credit_bytes -= paid;
        if (bytes > paid)
            (void)nodedb_mem_reserve_forced(s->server->mem, s->index, NODEDB_MEM_QUERY, bytes - paid, NULL);
    } else if (delta < 0) (void)nodedb_mem_release(s->server->mem, s->index, NODEDB_MEM_QUERY, (size_t)-delta, NULL);
}

static void *vector_alloc(void *ctx, size_t bytes, size_t align) {
    shard *s = ctx;
    void *memory = NULL;
    if (posix_memalign(&memory, align, bytes) != 0) return NULL;
    (void)nodedb_mem_reserve_forced(s->server->mem, s->index, NODEDB_MEM_VECTOR, bytes, NULL);
    return memory;
}
static void vector_release(void *ctx, void *memory, size_t bytes) {
    shard *s = ctx;
    (void)nodedb_mem_release(s->server->mem, s->index, NODEDB_MEM_VECTOR, bytes, NULL);
    free(memory);
}

static void tell_all_to_drop(shard *s, uint64_t set_id); /* room 5 */

static void entry_value_free(shard *s, entry *e) {
    if (e->is_spilled) {
        (void)nodedb_mem_overflow_free(s->overflow, e->spilled, NULL);
        s->spilled_bytes -= e->value_bytes, s->spilled_count--;
    } else {
        free(e->value);
        account(s, -(int64_t)e->value_bytes);
    }
    e->value = NULL;
    e->value_bytes = 0;
    e->is_spilled = false;
}

static void entry_set_value(shard *s, entry *e, const char *value, uint32_t bytes) {
    entry_value_free(s, e);
    e->value = must(malloc(bytes > 0 ? bytes : 1));
    if (bytes > 0) memcpy(e->value, value, bytes);
    e->value_bytes = bytes;
    e->touched = true;
    account(s, (int64_t)bytes);
}

/* The bytes of a string, wherever they are. Valid until the next change. */
static const char *entry_value(shard *s, entry *e) {
    e->touched = true;
    return e->is_spilled ? nodedb_mem_overflow_read(s->overflow, e->spilled, NULL, NULL) : e->value;
}

static void entry_set_expiry(shard *s, entry *e, uint64_t at_ms) {
    if (e->expires_ms != 0) s->expiring--;
    e->expires_ms = at_ms;
    if (at_ms != 0) s->expiring++;
}

static entry *entry_new(shard *s, const char *key, uint32_t bytes) {
    entry *e = must(calloc(1, sizeof *e + bytes));
    memcpy(e->name, key, bytes);
    e->n.name = e->name, e->n.bytes = bytes;
    dictionary_add(s, &s->keys, &e->n);
    s->count++;
    account(s, (int64_t)bytes + ENTRY_OVERHEAD_BYTES);
    return e;
}

static void entry_remove(shard *s, entry *e) {
    if (e->is_vset) tell_all_to_drop(s, e->set_id);
    entry_value_free(s, e);
    entry_set_expiry(s, e, 0);
    dictionary_remove(s, &s->keys, &e->n);
    account(s, -((int64_t)e->n.bytes + ENTRY_OVERHEAD_BYTES));
    s->count--;
    free(e);
}

static entry *entry_find(shard *s, const char *key, uint32_t bytes) {
    return (entry *)dictionary_find(s, &s->keys, key, bytes);
}

/* For readers: what has expired by the clock is not there. */
static entry *entry_live(shard *s, const char *key, uint32_t bytes) {
    entry *e = entry_find(s, key, bytes);
    return e != NULL && e->expires_ms != 0 && e->expires_ms <= now_ms() ? NULL : e;
}

static void part_free(shard *s, part *p) {
    ptrdiff_t i;
    int64_t bytes = 0;
    for (i = 0; i < hmlen(p->by_id); i++) {
        bytes += (int64_t)p->by_id[i].value->n.bytes + ENTRY_OVERHEAD_BYTES;
        free(p->by_id[i].value);
    }
    account(s, -bytes);
    hmfree(p->by_id);
    hmfree(p->elements);
    nodedb_vamana_searcher_destroy(p->searcher);
    nodedb_vamana_destroy(p->index);
    free(p);
}

static part *part_find(shard *s, uint64_t set_id) {
    ptrdiff_t i = hmgeti(s->parts, set_id);
    return i < 0 ? NULL : s->parts[i].value;
}

/* With `index`, adopts it (and frees it on failure); without, begins with an empty one. */
static part *part_new(shard *s, uint64_t set_id, uint32_t dim, uint32_t metric, nodedb_vamana *index,
                      nodedb_error *err) {
    part *p = must(calloc(1, sizeof *p));
    nodedb_vamana_config config = {.dim = dim, .metric = (nodedb_vamana_metric)metric, .seed = set_id,
                                   .allocator = {vector_alloc, vector_release, s}, .logger = s->logger};
    p->set_id = set_id, p->dim = dim, p->metric = metric;
    p->index = index != NULL ? index : nodedb_vamana_create(&config, err);
    if (p->index != NULL) p->searcher = nodedb_vamana_searcher_create(p->index, NULL, err);
    if (p->searcher == NULL) {
        nodedb_vamana_destroy(p->index);
        free(p);
        return NULL;
    }
    TABLE_PUT(s->parts, set_id, p);
    return p;
}

static void part_drop(shard *s, uint64_t set_id) {
    part *p = part_find(s, set_id);
    if (p == NULL) return;
    (void)hmdel(s->parts, set_id);
    part_free(s, p);
}

static element *element_add(shard *s, part *p, const char *name, uint32_t bytes, uint64_t id) {
    element *x = must(calloc(1, sizeof *x + bytes));
    memcpy(x->name, name, bytes);
    x->n.name = x->name, x->n.bytes = bytes;
    x->id = id;
    dictionary_add(s, &p->elements, &x->n);
    TABLE_PUT(p->by_id, id, x);
    if (id >= p->next_id) p->next_id = id + 1;
    account(s, (int64_t)bytes + ENTRY_OVERHEAD_BYTES);
    return x;
}

static void element_remove(shard *s, part *p, element *x) {
    dictionary_remove(s, &p->elements, &x->n);
    (void)hmdel(p->by_id, x->id);
    account(s, -((int64_t)x->n.bytes + ENTRY_OVERHEAD_BYTES));
    free(x);
}

/* What apply answers: `number` for commands that add up answers of several shards, `reply` where the answer is the
 * reply. */
typedef struct answer {
    int64_t number;
    int resp;
    buffer *reply; /* NULL while recovering: nobody asks */
} answer;
#define ANSWER(call) do { if (a->reply != NULL) { call; } } while (0)

static bool parse_int64(const char *text, size_t bytes, int64_t *value) {
    char copy[24], *end;
    if (bytes == 0 || bytes > 20 || isspace((unsigned char)text[0]) || text[0] == '+') return false;
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    errno = 0;
    *value = strtoll(copy, &end, 10);
    return errno == 0 && *end == 0 && end == copy + bytes &&
           (bytes == 1 || (text[0] != '0' && !(text[0] == '-' && text[1] == '0')));
}

static void apply_set(shard *s, const record *r, entry *e, answer *a) {
    bool had = e != NULL;
    if ((r->flags & SET_GET) != 0) {
        if (had && e->is_vset) {
            ANSWER(reply_error(a->reply, "%s", wrong_type));
            return;
        }
        ANSWER(had ? reply_bulk(a->reply, entry_value(s, e), e->value_bytes) : reply_null(a->reply, a->resp));
    }
    if (((r->flags & SET_NX) != 0 && had) || ((r->flags & SET_XX) != 0 && !had)) {
        if ((r->flags & SET_GET) == 0) ANSWER(reply_null(a->reply, a->resp));
        return;
    }
    if (had && e->is_vset) {
        entry_remove(s, e);
        e = NULL;
    }
    if (e == NULL) e = entry_new(s, r->key, r->key_bytes);
    entry_set_value(s, e, r->value, r->value_bytes);
    if ((r->flags & SET_KEEPTTL) == 0) entry_set_expiry(s, e, r->number);
    if ((r->flags & SET_GET) == 0) ANSWER(reply_ok(a->reply));
}

static void apply_incrby(shard *s, const record *r, entry *e, answer *a) {
    int64_t value = 0, delta = (int64_t)r->number;
    char text[24];
    if (e != NULL && e->is_vset) {
        ANSWER(reply_error(a->reply, "%s", wrong_type));
        return;
    }
    if (e != NULL && !parse_int64(entry_value(s, e), e->value_bytes, &value)) {
        ANSWER(reply_error(a->reply, "%s", not_integer));
        return;
    }
    if (__builtin_add_overflow(value, delta, &value)) {
        ANSWER(reply_error(a->reply, "ERR increment or decrement would overflow"));
        return;
    }
    if (e == NULL) e = entry_new(s, r->key, r->key_bytes);
    entry_set_value(s, e, text, (uint32_t)snprintf(text, sizeof text, "%" PRId64, value));
    ANSWER(reply_int(a->reply, value));
}

static void apply_vadd(shard *s, const record *r, answer *a) {
    nodedb_error err;
    part *p = part_find(s, r->number);
    float *vector = must(malloc((size_t)r->dim * sizeof *vector));
    element *x = NULL;
    nodedb_status status = NODEDB_OK;
    memset(&err, 0, sizeof err);
    floats_from_record(r, vector);
    if (p == NULL) p = part_new(s, r->number, r->dim, r->metric, NULL, &err);
    if (p == NULL) status = err.status;
    else {
        uint64_t id = p->next_id;
        x = (element *)dictionary_find(s, &p->elements, r->key, r->key_bytes);
        if (x != NULL) id = x->id;
        status = nodedb_vamana_insert(p->index, id, vector, &err);
        if (status == NODEDB_OK && x == NULL) {
            (void)element_add(s, p, r->key, r->key_bytes, id);
            a->number = 1;
        }
    }
    free(vector);
    if (status != NODEDB_OK) ANSWER(reply_error(a->reply, "ERR %s", err.message));
    else ANSWER(reply_bool(a->reply, a->resp, a->number == 1));
}

static void apply_vrem(shard *s, const record *r, answer *a) {
    part *p = part_find(s, r->number);
    element *x = p == NULL ? NULL : (element *)dictionary_find(s, &p->elements, r->key, r->key_bytes);
    if (x != NULL) {
        (void)nodedb_vamana_remove(p->index, x->id, NULL);
        element_remove(s, p, x);
        a->number = 1;
    }
    ANSWER(reply_bool(a->reply, a->resp, x != NULL));
}

static void apply_flush(shard *s) {
    while (hmlen(s->keys) > 0) entry_remove(s, (entry *)s->keys[hmlen(s->keys) - 1].value);
}

/* The one way in which the shard changes: live, when a record has become durable, and in recovery, for the same record.
 * Depends on nothing but the shard and the record. */
static void apply(shard *s, const record *r, answer *a) {
    entry *e = NULL;
    if (r->now_ms > s->now_ms) s->now_ms = r->now_ms;
    if (r->op <= OP_INCRBY || r->op == OP_VSET) {
        e = entry_find(s, r->key, r->key_bytes);
        if (e != NULL && e->expires_ms != 0 && e->expires_ms <= s->now_ms) {
            entry_remove(s, e);
            e = NULL;
        }
    }
    switch (r->op) {
    case OP_SET: apply_set(s, r, e, a); break;
    case OP_DEL:
        a->number = e != NULL;
        if (e != NULL) entry_remove(s, e);
        break;
    case OP_EXPIRE:
        a->number = e != NULL && !(r->number == 0 && e->expires_ms == 0);
        if (e != NULL && r->number != 0 && r->number <= s->now_ms) entry_remove(s, e);
        else if (e != NULL) entry_set_expiry(s, e, r->number);
        ANSWER(reply_int(a->reply, a->number));
        break;
    case OP_INCRBY: apply_incrby(s, r, e, a); break;
    case OP_FLUSH: apply_flush(s); break;
    case OP_VSET:
        if (e == NULL) { /* else somebody was faster, or it is another type: the caller looks again */
            e = entry_new(s, r->key, r->key_bytes);
            e->is_vset = true, e->set_id = r->number, e->dim = r->dim, e->metric = r->metric;
        }
        break;
    case OP_VADD: apply_vadd(s, r, a); break;
    case OP_VREM: apply_vrem(s, r, a); break;
    case OP_PART_DROP: part_drop(s, r->number); break;
    case OP_ELEMENT: {
        part *p = part_find(s, r->number);
        if (p != NULL) (void)element_add(s, p, r->key, r->key_bytes, nodedb__get_u64(r->value));
        break;
    }
    default: assert(0);
    }
}

static nodedb_mem_overflow *overflow_of(shard *s) {
    nodedb_mem_overflow_config config = {.dir = s->dir, .logger = s->logger};
    nodedb_error err;
    if (s->overflow == NULL && (s->overflow = nodedb_mem_overflow_open(&config, &err)) == NULL)
        nodedb__say(&s->logger, NODEDB_LOG_WARNING, "core %u cannot move cold values out of memory: %s", s->index,
                    err.message);
    return s->overflow;
}

/* Second chance: a value that was used since the hand last passed stays for another round. */
static void spill_some(shard *s, size_t bytes) {
    size_t looked, limit = (size_t)hmlen(s->keys) * 2;
    int moved = 0;
    if (overflow_of(s) == NULL) return;
    for (looked = 0; looked < limit && looked < 4096 && moved < SPILL_BATCH && bytes > 0; looked++) {
        named *n;
        if (s->spill_hand >= (size_t)hmlen(s->keys)) s->spill_hand = 0;
        for (n = s->keys[s->spill_hand++].value; n != NULL; n = n->next) {
            entry *e = (entry *)n;
            nodedb_mem_handle handle;
            if (e->is_vset || e->is_spilled || e->value_bytes < SPILL_MIN_BYTES) continue;
            if (e->touched) {
                e->touched = false;
                continue;
            }
            if (nodedb_mem_overflow_write(s->overflow, e->value, e->value_bytes, &handle, NULL) != NODEDB_OK)
                return; /* full: the budget refuses writes */
            free(e->value);
            e->value = NULL;
            e->spilled = handle;
            e->is_spilled = true;
            account(s, -(int64_t)e->value_bytes);
            s->spilled_bytes += e->value_bytes, s->spilled_count++;
            bytes -= bytes < e->value_bytes ? bytes : e->value_bytes;
            moved++;
        }
    }
}

static shard *shard_new(server *srv, uint32_t index, const char *dir) {
    shard *s = must(calloc(1, sizeof *s));
    s->index = index;
    s->server = srv;
    s->logger = srv->logger;
    s->hash_seed = (size_t)nodedb__mix64(srv->hash_seed + index);
    (void)snprintf(s->dir, sizeof s->dir, "%s", dir);
    return s;
}

static void shard_free(shard *s) {
    if (s == NULL) return;
    s->core = NULL; /* nobody is told any more */
    while (hmlen(s->keys) > 0) entry_remove(s, (entry *)s->keys[hmlen(s->keys) - 1].value);
    while (hmlen(s->parts) > 0) part_drop(s, s->parts[hmlen(s->parts) - 1].key);
    hmfree(s->keys);
    hmfree(s->parts);
    nodedb_mem_overflow_close(s->overflow);
    (void)nodedb_wal_close(s->wal, NULL);
    free(s);
}

/* ---- 4 checkpoint and recovery ----------------------------------------------------------------------------------- */

/* A checkpoint is a directory "checkpoint-<LSN>" in the shard's: all effects of records up to that LSN. It is written
 * as "checkpoint-<LSN>.tmp", synced, and renamed. The file "keys": "NDBCHKPT", u32 version 1, u32 0, u64 LSN, u64 now
 * (ms), u32 0, u32 CRC of the 36 bytes before; then frames: u32 bytes, u32 CRC-32C, a record; then a frame of 8 bytes,
 * 0xFFFFFFFF and the CRC of the u64 count of frames, followed by that count. Indexes of parts are files
 * "set-<id>.vamana". */
#define CHECKPOINT_HEADER_BYTES 40
#define CHECKPOINT_END UINT32_MAX

static int sync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC), error = 0;
    if (fd < 0) return errno;
    if (fsync(fd) != 0) error = errno;
    (void)close(fd);
    return error;
}

static int remove_name(void *dir, const char *name) {
    char path[PATH_MAX * 2];
    if (snprintf(path, sizeof path, "%s/%s", (const char *)dir, name) < (int)sizeof path) (void)unlink(path);
    return 0;
}

static void remove_flat_dir(char *dir) { /* a directory of files */
    (void)nodedb__posix_list(NULL, dir, remove_name, dir);
    (void)rmdir(dir);
}

typedef struct checkpoint_names {
    uint64_t newest;
    bool any;
    shard *s;
    bool remove_old; /* all but `newest`, and what was not finished */
} checkpoint_names;

static int visit_checkpoint(void *visitor, const char *name) {
    checkpoint_names *c = visitor;
    char *end, path[PATH_MAX * 2];
    uint64_t lsn;
    if (strncmp(name, "checkpoint-", 11) != 0) return 0;
    lsn = strtoull(name + 11, &end, 10);
    if (c->remove_old) {
        (void)snprintf(path, sizeof path, "%s/%s", c->s->dir, name);
        if (*end != 0 || lsn != c->newest) remove_flat_dir(path);
    } else if (*end == 0 && (!c->any || lsn > c->newest)) c->newest = lsn, c->any = true;
    return 0;
}

typedef struct checkpoint_file {
    FILE *f;
    buffer scratch; /* one record, encoded */
    uint64_t frames;
    bool failed;
} checkpoint_file;

static void checkpoint_write(checkpoint_file *c, const void *bytes, size_t n) {
    if (!c->failed && fwrite(bytes, 1, n, c->f) != n) c->failed = true;
}

static void checkpoint_put(checkpoint_file *c, const record *r) {
    unsigned char frame[8];
    size_t bytes = record_bytes(r);
    record_encode(r, (unsigned char *)buffer_room(&c->scratch, bytes));
    nodedb__put_u32(frame, (uint32_t)bytes);
    nodedb__put_u32(frame + 4, nodedb__crc32c(0, c->scratch.p, bytes));
    checkpoint_write(c, frame, 8);
    checkpoint_write(c, c->scratch.p, bytes);
    c->frames++;
}

static void checkpoint_put_entry(checkpoint_file *c, shard *s, entry *e) {
    record r = {.key = e->name, .key_bytes = e->n.bytes, .now_ms = s->now_ms};
    if (e->expires_ms != 0 && e->expires_ms <= s->now_ms) return; /* gone, only not yet swept */
    if (e->is_vset) {
        r.op = OP_VSET, r.number = e->set_id, r.dim = e->dim, r.metric = e->metric;
        checkpoint_put(c, &r);
        if (e->expires_ms == 0) return;
        r.op = OP_EXPIRE, r.number = e->expires_ms;
    } else {
        bool touched = e->touched;
        r.op = OP_SET, r.number = e->expires_ms, r.value = entry_value(s, e), r.value_bytes = e->value_bytes;
        e->touched = touched; /* saving is no use of it */
    }
    checkpoint_put(c, &r);
}

static nodedb_status checkpoint_put_part(checkpoint_file *c, part *p, const char *dir, nodedb_error *err) {
    char path[PATH_MAX * 2];
    unsigned char number[8];
    record r = {.op = OP_PART,
                .number = p->set_id,
                .dim = p->dim,
                .metric = p->metric,
                .value = (char *)number,
                .value_bytes = 8};
    ptrdiff_t i;
    nodedb__put_u64(number, p->next_id);
    checkpoint_put(c, &r);
    r.op = OP_ELEMENT;
    for (i = 0; i < hmlen(p->by_id); i++) {
        nodedb__put_u64(number, p->by_id[i].key);
        r.key = p->by_id[i].value->name, r.key_bytes = p->by_id[i].value->n.bytes;
        checkpoint_put(c, &r);
    }
    (void)snprintf(path, sizeof path, "%s/set-%016" PRIx64 ".vamana", dir, p->set_id);
    return nodedb_vamana_save(p->index, path, err);
}

static nodedb_status checkpoint_keys(shard *s, const char *dir, nodedb_error *err) {
    char path[PATH_MAX * 2];
    unsigned char head[CHECKPOINT_HEADER_BYTES] = "NDBCHKPT", tail[16];
    checkpoint_file c = {0};
    nodedb_status status = NODEDB_OK;
    ptrdiff_t i;
    (void)snprintf(path, sizeof path, "%s/keys", dir);
    c.f = fopen(path, "wbe");
    if (c.f == NULL) return nodedb__fail(err, nodedb__io_status(errno), errno, "cannot write %s", path);
    nodedb__put_u32(head + 8, 1);
    nodedb__put_u64(head + 16, s->applied_lsn);
    nodedb__put_u64(head + 24, s->now_ms);
    nodedb__put_u32(head + 36, nodedb__crc32c(0, head, 36));
    checkpoint_write(&c, head, sizeof head);
    for (i = 0; i < hmlen(s->keys) && !c.failed; i++) {
        named *n;
        for (n = s->keys[i].value; n != NULL; n = n->next) checkpoint_put_entry(&c, s, (entry *)n);
    }
    for (i = 0; i < hmlen(s->parts) && !c.failed && status == NODEDB_OK; i++)
        status = checkpoint_put_part(&c, s->parts[i].value, dir, err);
    nodedb__put_u64(tail + 8, c.frames);
    nodedb__put_u32(tail, CHECKPOINT_END);
    nodedb__put_u32(tail + 4, nodedb__crc32c(0, tail + 8, 8));
    checkpoint_write(&c, tail, sizeof tail);
    if (fflush(c.f) != 0 || fsync(fileno(c.f)) != 0) c.failed = true;
    if (c.failed && status == NODEDB_OK)
        status = nodedb__fail(err, nodedb__io_status(errno), errno, "cannot write %s", path);
    buffer_free(&c.scratch);
    if (fclose(c.f) != 0 && status == NODEDB_OK)
        status = nodedb__fail(err, nodedb__io_status(errno), errno, "cannot close %s", path);
    return status;
}

/* Writes a checkpoint of all that is applied, then lets the log behind it go. Blocks the core, as SAVE does in Redis.
 */
static nodedb_status shard_save(shard *s, nodedb_error *err) {
    char tmp[PATH_MAX + 80], final[PATH_MAX + 64];
    checkpoint_names old = {.newest = s->applied_lsn, .s = s, .remove_old = true};
    nodedb_status status;
    int error;
    (void)snprintf(final, sizeof final, "%s/checkpoint-%020" PRIu64, s->dir, s->applied_lsn);
    (void)snprintf(tmp, sizeof tmp, "%s.tmp", final);
    if (s->wal != NULL && (status = nodedb_wal_wait(s->wal, s->applied_lsn, err)) != NODEDB_OK) return status;
    if (access(final, F_OK) == 0) return NODEDB_OK; /* nothing has changed since */
    remove_flat_dir(tmp);
    if (mkdir(tmp, 0755) != 0) return nodedb__fail(err, nodedb__io_status(errno), errno, "cannot make %s", tmp);
    status = checkpoint_keys(s, tmp, err);
    if (status != NODEDB_OK) {
        remove_flat_dir(tmp);
        return status;
    }
    error = sync_path(tmp);
    if (error == 0 && rename(tmp, final) != 0) error = errno;
    if (error == 0) error = sync_path(s->dir);
    if (error != 0) return nodedb__fail(err, nodedb__io_status(error), error, "cannot finish the checkpoint %s", final);
    s->checkpoint_lsn = s->applied_lsn;
    s->saves++;
    (void)nodedb__posix_list(NULL, s->dir, visit_checkpoint, &old);
    return s->wal != NULL ? nodedb_wal_truncate_before(s->wal, s->applied_lsn + 1, NULL, err) : NODEDB_OK;
}

static nodedb_status load_part(shard *s, const record *r, const char *dir, nodedb_error *err) {
    char path[PATH_MAX * 2];
    nodedb_vamana_open_config config = {.allocator = {vector_alloc, vector_release, s}, .logger = s->logger};
    nodedb_vamana *index;
    part *p;
    (void)snprintf(path, sizeof path, "%s/set-%016" PRIx64 ".vamana", dir, r->number);
    index = nodedb_vamana_open(path, &config, err);
    if (index == NULL) return err->status;
    if (nodedb_vamana_dim(index) != r->dim || nodedb_vamana_metric_of(index) != (nodedb_vamana_metric)r->metric) {
        nodedb_vamana_destroy(index);
        return nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s: dimension or metric is not what the checkpoint says",
                            path);
    }
    p = part_new(s, r->number, r->dim, r->metric, index, err);
    if (p == NULL) return err->status;
    p->next_id = nodedb__get_u64(r->value);
    return NODEDB_OK;
}

static nodedb_status checkpoint_broken(const char *path, uint64_t offset, const char *what, nodedb_error *err) {
    (void)nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s: damaged at offset %" PRIu64 ": %s", path, offset, what);
    err->offset = offset;
    return NODEDB_ERR_CORRUPT;
}

static nodedb_status load_frames(shard *s, FILE *f, const char *path, const char *dir, buffer *b, nodedb_error *err) {
    unsigned char head[CHECKPOINT_HEADER_BYTES], frame[8];
    uint64_t offset = sizeof head, frames = 0;
    answer nobody = {0};
    if (fread(head, 1, sizeof head, f) != sizeof head || memcmp(head, "NDBCHKPT", 8) != 0 ||
        nodedb__get_u32(head + 8) != 1 || nodedb__get_u32(head + 36) != nodedb__crc32c(0, head, 36))
        return checkpoint_broken(path, 0, "its header", err);
    s->applied_lsn = nodedb__get_u64(head + 16);
    s->now_ms = nodedb__get_u64(head + 24);
    for (;; frames++) {
        uint32_t bytes;
        record r;
        nodedb_status status = NODEDB_OK;
        if (fread(frame, 1, 8, f) != 8) return checkpoint_broken(path, offset, "it ends too soon", err);
        bytes = nodedb__get_u32(frame);
        if (bytes == CHECKPOINT_END) break;
        if (bytes > NODEDB_WAL_MAX_PAYLOAD_BYTES) return checkpoint_broken(path, offset, "the length of a record", err);
        b->len = 0;
        (void)buffer_room(b, bytes);
        if (fread(b->p, 1, bytes, f) != bytes) return checkpoint_broken(path, offset, "it ends too soon", err);
        if (nodedb__crc32c(0, b->p, bytes) != nodedb__get_u32(frame + 4))
            return checkpoint_broken(path, offset, "a record's checksum", err);
        if (!record_decode(b->p, bytes, &r) || !record_valid(&r))
            return checkpoint_broken(path, offset, "a record that makes no sense", err);
        if (r.op == OP_PART) status = load_part(s, &r, dir, err);
        else apply(s, &r, &nobody);
        if (status != NODEDB_OK) return status;
        offset += 8 + (uint64_t)bytes;
    }
    if (fread(head, 1, 8, f) != 8 || nodedb__crc32c(0, head, 8) != nodedb__get_u32(frame + 4) ||
        nodedb__get_u64(head) != frames)
        return checkpoint_broken(path, offset, "the count of its records", err);
    return NODEDB_OK;
}

static nodedb_status shard_load_checkpoint(shard *s, nodedb_error *err) {
    char dir[PATH_MAX + 64], path[PATH_MAX + 128];
    checkpoint_names names = {.s = s};
    nodedb_status status;
    buffer b = {0};
    FILE *f;
    ptrdiff_t i;
    int error = nodedb__posix_list(NULL, s->dir, visit_checkpoint, &names);
    if (error != 0) return nodedb__fail(err, NODEDB_ERR_IO, -error, "cannot list %s", s->dir);
    if (!names.any) return NODEDB_OK;
    (void)snprintf(dir, sizeof dir, "%s/checkpoint-%020" PRIu64, s->dir, names.newest);
    (void)snprintf(path, sizeof path, "%s/keys", dir);
    f = fopen(path, "rbe");
    if (f == NULL) return nodedb__fail(err, NODEDB_ERR_IO, errno, "cannot read the checkpoint %s", path);
    status = load_frames(s, f, path, dir, &b, err);
    (void)fclose(f);
    buffer_free(&b);
    for (i = 0; i < hmlen(s->parts) && status == NODEDB_OK; i++)
        if ((uint64_t)hmlen(s->parts[i].value->by_id) != nodedb_vamana_count(s->parts[i].value->index))
            status = nodedb__fail(err, NODEDB_ERR_CORRUPT, 0,
                                  "%s: the index of set %016" PRIx64 " has another number of elements", path,
                                  s->parts[i].key);
    s->checkpoint_lsn = s->applied_lsn;
    return status;
}

static nodedb_status replay_one(void *ctx, const nodedb_wal_record *logged) {
    shard *s = ctx;
    record r;
    answer nobody = {0};
    if (logged->type != NODEDB_WAL_TYPE_USER) return NODEDB_OK;
    if (!record_decode(logged->payload, logged->payload_bytes, &r) || !record_valid(&r) || r.op == OP_PART ||
        r.op == OP_ELEMENT)
        return NODEDB_ERR_CORRUPT;
    apply(s, &r, &nobody);
    s->applied_lsn = logged->lsn;
    s->records_replayed++;
    return NODEDB_OK;
}

/* Brings a shard back from its directory and opens its log for writing. */
static nodedb_status shard_recover(shard *s, nodedb_error *err) {
    char dir[PATH_MAX + 8];
    nodedb_wal_config config = {.dir = dir, .logger = s->logger};
    /* streamed: a disk that cannot read is then an error, and not a signal. What this system refuses, the writer says. */
    nodedb_wal_reader_config reading = {.dir = dir, .access = NODEDB_WAL_ACCESS_STREAMED};
    nodedb_status status;
    (void)snprintf(dir, sizeof dir, "%s/log", s->dir);
    if (mkdir(s->dir, 0755) != 0 && errno != EEXIST)
        return nodedb__fail(err, nodedb__io_status(errno), errno, "cannot make %s", s->dir);
    status = shard_load_checkpoint(s, err);
    if (status != NODEDB_OK) return status;
    if (s->applied_lsn > 0 && access(dir, F_OK) != 0)
        return nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s is missing: what was written after the checkpoint is gone",
                            dir);
    config.first_lsn = s->applied_lsn + 1;
    s->wal = nodedb_wal_open(&config, err);
    if (s->wal == NULL) return err->status;
    if (nodedb_wal_last_lsn(s->wal) < s->applied_lsn)
        return nodedb__fail(err, NODEDB_ERR_CORRUPT, 0,
                            "%s ends at record %" PRIu64 ", before the checkpoint at %" PRIu64, dir,
                            nodedb_wal_last_lsn(s->wal), s->applied_lsn);
    reading.from_lsn = s->applied_lsn + 1;
    status = nodedb_wal_replay(&reading, replay_one, s, NULL, err);
    if (status == NODEDB_ERR_NOT_FOUND && nodedb_wal_last_lsn(s->wal) == s->applied_lsn) status = NODEDB_OK;
    s->applied_lsn = nodedb_wal_last_lsn(s->wal);
    return status;
}

static void *recover_thread(void *argument) {
    shard *s = argument;
    nodedb_error *err = must(calloc(1, sizeof *err));
    if (shard_recover(s, err) == NODEDB_OK) {
        free(err);
        return NULL;
    }
    return err;
}

/* All shards at once, one thread each; then parts whose set is gone at its home are dropped: a home's change is durable
 * before its parts hear of it, so the home is always right. */
static nodedb_status recover_shards(shard **shards, uint32_t count, nodedb_error *err) {
    pthread_t thread[MAX_CORES];
    nodedb_status status = NODEDB_OK;
    struct { uint64_t key; uint64_t value; } *live = NULL;
    uint32_t i;
    ptrdiff_t k;
    for (i = 0; i < count; i++)
        if (pthread_create(&thread[i], NULL, recover_thread, shards[i]) != 0) abort();
    for (i = 0; i < count; i++) {
        void *failure = NULL;
        (void)pthread_join(thread[i], &failure);
        if (failure != NULL && status == NODEDB_OK) {
            *err = *(nodedb_error *)failure;
            status = err->status;
        }
        free(failure);
    }
    if (status != NODEDB_OK) return status;
    for (i = 0; i < count; i++)
        for (k = 0; k < hmlen(shards[i]->keys); k++) {
            named *n;
            for (n = shards[i]->keys[k].value; n != NULL; n = n->next)
                if (((entry *)n)->is_vset) hmput(live, ((entry *)n)->set_id, 1);
        }
    for (i = 0; i < count; i++)
        for (k = hmlen(shards[i]->parts) - 1; k >= 0; k--)
            if (hmgeti(live, shards[i]->parts[k].key) < 0) part_drop(shards[i], shards[i]->parts[k].key);
    hmfree(live);
    return NODEDB_OK;
}

/* ---- 5 operations ------------------------------------------------------------------------------------------------ */

/* One step of a command on one shard. Made by the core of the connection (the origin), handed from core to core, always
 * owned by exactly one; it comes back to its request, or is freed where it ends if it has none. */
struct operation {
    operation *next;
    request *req;
    uint32_t origin, slot; /* slot: which of its request's operations it is */
    uint8_t code, resp;
    bool creating;    /* a VADD whose set is being created at its home */
    bool is_creator;  /* it is in core.creators, under its home_key */
    named creator;
    uint16_t waits;   /* 1 + the bucket of core.element_waits that it is counted in; 0: it does not wait at its home */
    uint16_t removes; /* 1 + the bucket of core.removers that it is counted in; 0: it can end no vector set */
    uint64_t lsn;          /* its record's; it is applied when that is durable. Without a record: the one before it */
    bool logged;
    size_t reserved;       /* bytes granted by the governor before the record was logged */
    uint64_t id;           /* of the request, for the fault guard: the same bytes, the same id */
    uint64_t new_set_id;
    int64_t number;
    buffer reply;
    char *home_key;        /* of an operation on an element, until its home has seen it */
    uint32_t home_key_bytes;
    uint32_t bytes;
    unsigned char payload[]; /* a record */
};

typedef struct message {
    uint32_t kind, value;
    void *pointer;
} message;
enum { MESSAGE_RUN, MESSAGE_DONE, MESSAGE_CONNECTION };

typedef struct operation_list {
    operation *head, *tail;
} operation_list;

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

typedef struct argument {
    char *p;
    uint32_t bytes;
} argument;

/* One pinned thread's world. */
struct core {
    uint32_t index;
    server *server;
    shard *shard;
    nodedb_tpc_core *tpc;
    int epoll;
    struct epoll_event events[256];
    int ready;                     /* events that the wait hook found and poll has not handled */
    message *outbox[MAX_CORES];    /* what did not fit into a ring; in order */
    operation_list waiting;        /* writes that the log has not taken yet: all its groups are in flight */
    operation_list committing;     /* in the log or behind something that is; applied in this order */
    uint64_t submitted_ns;         /* --durability interval: when the log was last sent on its way */
    connection *first, *dirty;
    uint32_t clients, next_core;
    uint64_t next_client_id, commands, accepted, oom_refused;
    argument *args;
    dictionary creators; /* keys of vector sets whose creation is under way: the first operation that creates each */
    uint32_t element_waits[REMOVER_BUCKETS]; /* operations on elements that wait at their home, by hash of key */
    uint32_t
        removers[REMOVER_BUCKETS + 1]; /* writes under way that may end a vector set, by hash of key; the last: any */
    nodedb_prefetch *prefetch;
    nodedb_prefetch_faults faults;
    bool prefetch_usable;
};

static void operation_run(core *c, operation *op);
static void request_step(core *c, operation *op);

static void core_send(core *c, uint32_t to, message m) {
    if (arrlen(c->outbox[to]) == 0 && nodedb_tpc_send(c->tpc, to, &m) == NODEDB_OK) return;
    arrput(c->outbox[to], m);
}

static size_t flush_outboxes(core *c) {
    uint32_t to;
    size_t sent = 0;
    for (to = 0; to < c->server->cores; to++) {
        ptrdiff_t n = 0;
        while (n < arrlen(c->outbox[to]) && nodedb_tpc_send(c->tpc, to, &c->outbox[to][n]) == NODEDB_OK) n++;
        if (n > 0) arrdeln(c->outbox[to], 0, n);
        sent += (size_t)n;
    }
    return sent;
}

static operation *operation_new(core *c, request *req, const record *r) {
    size_t bytes = record_bytes(r);
    operation *op = must(malloc(sizeof *op + bytes));
    memset(op, 0, sizeof *op);
    op->req = req;
    op->origin = c->index;
    op->code = r->op;
    op->bytes = (uint32_t)bytes;
    record_encode(r, op->payload);
    op->id = bytes <= 4096 ? nodedb__mix64(nodedb__crc32c(0, op->payload, bytes) | (uint64_t)bytes << 32) : 0;
    return op;
}

static void operation_free(operation *op) {
    buffer_free(&op->reply);
    free(op->home_key);
    free(op);
}

static void operation_start(core *c, operation *op, uint32_t shard_index) {
    if (shard_index == c->index) operation_run(c, op);
    else core_send(c, shard_index, (message){MESSAGE_RUN, 0, op});
}

static void release_reserved(shard *s, operation *op) {
    if (op->reserved > 0) (void)nodedb_mem_release(s->server->mem, s->index, NODEDB_MEM_QUERY, op->reserved, NULL);
    op->reserved = 0;
}

static void operation_finish(core *c, operation *op) {
    release_reserved(c->shard, op);
    if (op->removes != 0) c->removers[op->removes - 1]--;
    if (op->waits != 0) c->element_waits[op->waits - 1]--;
    op->waits = 0;
    if (op->is_creator) dictionary_remove(c->shard, &c->creators, &op->creator); /* it failed */
    op->removes = 0, op->is_creator = false;
    if (op->req == NULL) operation_free(op);
    else if (op->origin == c->index) request_step(c, op);
    else core_send(c, op->origin, (message){MESSAGE_DONE, 0, op});
}

__attribute__((format(printf, 3, 4))) static void operation_fail(core *c, operation *op, const char *format, ...) {
    char text[500];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    op->reply.len = 0;
    op->number = -1;
    reply_error(&op->reply, "%s", text);
    operation_finish(c, op);
}

/* The home of a set has lost it: all parts of it go, in the order in which they heard of it. */
static void tell_all_to_drop(shard *s, uint64_t set_id) {
    record r = {.op = OP_PART_DROP, .number = set_id};
    uint32_t i;
    if (s->core == NULL) return;
    for (i = 0; i < s->server->cores; i++) operation_start(s->core, operation_new(s->core, NULL, &r), i);
}

/* -- reads -- */

typedef struct set_info { uint64_t id; uint32_t dim, metric; bool found, wrong_type; } set_info;
typedef struct shard_stats {
    uint64_t keys, expiring, spilled_count, spilled_bytes, clients, commands, accepted, replayed, checkpoint_lsn,
        applied_lsn, saves, oom_refused, vectors, parts;
    nodedb_wal_stats wal;
    nodedb_mem_overflow_stats overflow;
    uint64_t major_faults;
    bool degraded_by_faults;
    char log[160], prefetch[32];
} shard_stats;

static bool glob(const char *pattern, size_t pattern_bytes, const char *text, size_t bytes) {
    size_t p = 0, t = 0, star = SIZE_MAX, star_text = 0;
    while (t < bytes || p < pattern_bytes) {
        if (p < pattern_bytes && pattern[p] == '*') {
            star = p++, star_text = t;
            continue;
        }
        if (t < bytes && p < pattern_bytes) {
            bool match = false;
            size_t next = p + 1;
            if (pattern[p] == '?') match = true;
            else if (pattern[p] == '[') {
                bool negate = next < pattern_bytes && pattern[next] == '^';
                size_t from = next + negate;
                for (next = from; next < pattern_bytes && (pattern[next] != ']' || next == from); next++) {
                    if (next + 2 < pattern_bytes && pattern[next + 1] == '-' && pattern[next + 2] != ']') {
                        match = match || (text[t] >= pattern[next] && text[t] <= pattern[next + 2]);
                        next += 2;
                    } else {
                        if (pattern[next] == '\\' && next + 1 < pattern_bytes) next++;
                        match = match || text[t] == pattern[next];
                    }
                }
                match = match != negate;
                next++;
            } else {
                if (pattern[p] == '\\' && next < pattern_bytes) p = next++;
                match = pattern[p] == text[t];
            }
            if (match) {
                p = next, t++;
                continue;
            }
        }
        if (star == SIZE_MAX || star_text >= bytes) return false;
        p = star + 1, t = ++star_text; /* the star takes one more */
    }
    return true;
}

static void read_scan(shard *s, const record *r, operation *op) {
    uint64_t at = r->number & ((UINT64_C(1) << 48) - 1), budget = r->dim, seen = 0, next, ms = now_ms();
    buffer keys = {0};
    char cursor[24];
    if (at == 0 || at > (uint64_t)hmlen(s->keys)) at = (uint64_t)hmlen(s->keys);
    while (at > 0 && budget-- > 0) {
        named *n;
        for (n = s->keys[--at].value; n != NULL; n = n->next) {
            entry *e = (entry *)n;
            if (e->expires_ms != 0 && e->expires_ms <= ms) continue;
            if ((r->flags & SCAN_MATCH) != 0 && !glob(r->value, r->value_bytes, n->name, n->bytes)) continue;
            if (r->metric != 0 && (r->metric == 2) != e->is_vset) continue; /* TYPE string or vectorset */
            reply_bulk(&keys, n->name, n->bytes);
            seen++;
        }
    }
    next = at > 0                            ? (uint64_t)s->index << 48 | at
           : s->index + 1 < s->server->cores ? (uint64_t)(s->index + 1) << 48
                                             : 0;
    reply_array(&op->reply, 2);
    (void)snprintf(cursor, sizeof cursor, "%" PRIu64, next);
    reply_bulk_text(&op->reply, cursor);
    reply_array(&op->reply, (int64_t)seen);
    buffer_put(&op->reply, keys.p, keys.len);
    buffer_free(&keys);
}

static void read_stats(core *c, operation *op) {
    shard *s = c->shard;
    shard_stats st = {0};
    ptrdiff_t i;
    st.keys = s->count, st.expiring = s->expiring, st.spilled_count = s->spilled_count,
    st.spilled_bytes = s->spilled_bytes;
    st.clients = c->clients, st.commands = c->commands, st.accepted = c->accepted, st.replayed = s->records_replayed,
    st.oom_refused = c->oom_refused;
    st.checkpoint_lsn = s->checkpoint_lsn, st.applied_lsn = s->applied_lsn, st.saves = s->saves;
    for (i = 0; i < hmlen(s->parts); i++) st.vectors += nodedb_vamana_count(s->parts[i].value->index), st.parts++;
    nodedb_wal_get_stats(s->wal, &st.wal);
    if (s->overflow != NULL) (void)nodedb_mem_overflow_get_stats(s->overflow, &st.overflow, NULL);
    st.major_faults = c->faults.total_major, st.degraded_by_faults = c->faults.degraded;
    (void)snprintf(st.log, sizeof st.log, "%s", nodedb_wal_describe(s->wal));
    (void)snprintf(st.prefetch, sizeof st.prefetch, "%s",
                   c->prefetch != NULL ? nodedb_prefetch_method_name(nodedb_prefetch_method_in_use(c->prefetch))
                                       : "none");
    buffer_put(&op->reply, &st, sizeof st);
}

static void read_vector(shard *s, const record *r, operation *op) {
    part *p = part_find(s, r->number);
    element *x = p == NULL ? NULL : (element *)dictionary_find(s, &p->elements, r->key, r->key_bytes);
    float *vector;
    uint32_t i;
    op->number = x != NULL;
    if (x == NULL) {
        if (r->flags == 0) reply_null(&op->reply, op->resp);
        return;
    }
    vector = must(malloc((size_t)p->dim * sizeof *vector));
    (void)nodedb_vamana_get(p->index, x->id, vector, NULL);
    if (r->flags != 0) buffer_put(&op->reply, vector, (size_t)p->dim * sizeof *vector); /* for VSIM ELE: as it is */
    else {
        reply_array(&op->reply, p->dim);
        for (i = 0; i < p->dim; i++) reply_double(&op->reply, op->resp, vector[i]);
    }
    free(vector);
}

/* Answer: for each result float distance, u32 bytes, name; all in the machine's order, it does not leave the process.
 */
static void read_search(shard *s, const record *r, operation *op) {
    part *p = part_find(s, r->number);
    uint32_t k = r->dim, found = 0, i;
    nodedb_vamana_result *results;
    nodedb_vamana_query query = {.k = k, .beam = r->metric};
    nodedb_error err;
    nodedb_status status;
    if (p == NULL || nodedb_vamana_count(p->index) == 0) return;
    if (k > nodedb_vamana_count(p->index)) query.k = k = (uint32_t)nodedb_vamana_count(p->index);
    results = must(malloc((size_t)k * sizeof *results));
    query.vector = r->value; /* floats of this machine, behind 40 bytes of header; the payload is aligned to 4 */
    status = (r->flags & SEARCH_TRUTH) != 0 ? nodedb_vamana_scan(p->searcher, &query, results, &found, NULL, &err)
                                            : nodedb_vamana_search(p->searcher, &query, results, &found, NULL, &err);
    if (status != NODEDB_OK) {
        op->number = -1;
        reply_error(&op->reply, "ERR %s", err.message);
    }
    for (i = 0; status == NODEDB_OK && i < found; i++) {
        ptrdiff_t at = hmgeti(p->by_id, results[i].id);
        if (at < 0) continue;
        buffer_put(&op->reply, &results[i].distance, sizeof results[i].distance);
        buffer_put(&op->reply, &p->by_id[at].value->n.bytes, sizeof(uint32_t));
        buffer_put(&op->reply, p->by_id[at].value->n.name, p->by_id[at].value->n.bytes);
    }
    free(results);
}

static void read_now(core *c, operation *op) {
    shard *s = c->shard;
    record r;
    entry *e;
    (void)record_decode(op->payload, op->bytes, &r);
    e = op->code <= OP_TYPE || op->code == OP_VSET_INFO ? entry_live(s, r.key, r.key_bytes)
                                                        : NULL; /* else the key is an element, or nothing */
    switch (op->code) {
    case OP_GET:
        op->number = e != NULL && e->is_vset ? -1 : 0;
        if (e == NULL) reply_null(&op->reply, op->resp);
        else if (!e->is_vset) reply_bulk(&op->reply, entry_value(s, e), e->value_bytes);
        else if (r.flags != 0) reply_null(&op->reply, op->resp); /* MGET */
        else reply_error(&op->reply, "%s", wrong_type);
        break;
    case OP_EXISTS: op->number = e != NULL; break;
    case OP_TTL: {
        uint64_t ms = now_ms(), left = e != NULL && e->expires_ms > ms ? e->expires_ms - ms : 0;
        reply_int(&op->reply, e == NULL            ? -2
                              : e->expires_ms == 0 ? -1
                                                   : (int64_t)(r.flags == TTL_MS ? left : (left + 500) / 1000));
        break;
    }
    case OP_TYPE:
        buffer_text(&op->reply, e == NULL ? "+none\r\n" : e->is_vset ? "+vectorset\r\n" : "+string\r\n");
        break;
    case OP_SCAN: read_scan(s, &r, op); break;
    case OP_COUNT: op->number = (int64_t)s->count; break;
    case OP_STATS: read_stats(c, op); break;
    case OP_VSET_INFO: {
        set_info info = {0};
        if (e != NULL)
            info.found = e->is_vset, info.wrong_type = !e->is_vset, info.id = e->set_id, info.dim = e->dim,
            info.metric = e->metric;
        buffer_put(&op->reply, &info, sizeof info);
        break;
    }
    case OP_VEMB: read_vector(s, &r, op); break;
    case OP_VISMEMBER: {
        part *p = part_find(s, r.number);
        reply_bool(&op->reply, op->resp, p != NULL && dictionary_find(s, &p->elements, r.key, r.key_bytes) != NULL);
        break;
    }
    case OP_PART_COUNT: {
        part *p = part_find(s, r.number);
        op->number = p == NULL ? 0 : (int64_t)nodedb_vamana_count(p->index);
        break;
    }
    case OP_SEARCH: read_search(s, &r, op); break;
    case OP_PANIC: nodedb_tpc_panic(c->tpc, "DEBUG PANIC was asked for");
    default: assert(0);
    }
}

/* -- writes: admit, log, and when durable apply -- */

/* The reservation of the operation pays for what the change takes; the rest goes back. */
static void take_back_credit(shard *s, operation *op) {
    op->reserved += s->credit_bytes;
    s->credit_bytes = 0;
    release_reserved(s, op);
}

static void apply_operation(core *c, operation *op, const record *r, answer *a) {
    shard *s = c->shard;
    size_t outer = s->credit_bytes; /* dropping a set may apply another operation within this one */
    s->credit_bytes = op->reserved;
    op->reserved = 0;
    apply(s, r, a);
    take_back_credit(s, op);
    s->credit_bytes = outer;
    op->number = a->number;
}

static void home_step(core *c, operation *op);

static void guarded_apply(nodedb_tpc_core *tpc, void *argument) {
    operation *op = argument;
    record r;
    answer a = {.resp = op->resp, .reply = &op->reply};
    (void)record_decode(op->payload, op->bytes, &r);
    apply_operation(nodedb_tpc_core_data(tpc), op, &r, &a);
}

/* What was logged is now durable (or needs no record and has waited for its turn): it happens. */
static void operation_commit(core *c, operation *op) {
    shard *s = c->shard;
    if (op->logged) s->applied_lsn = op->lsn;
    if (op->waits != 0) c->element_waits[op->waits - 1]--;
    op->waits = 0;
    if (op->creating) {
        record r = {.op = OP_VSET, .key = op->home_key, .key_bytes = op->home_key_bytes, .number = op->new_set_id};
        answer nobody = {0};
        r.dim = nodedb__get_u32(op->payload + 24), r.metric = nodedb__get_u32(op->payload + 28),
        r.now_ms = nodedb__get_u64(op->payload + 8);
        apply_operation(c, op, &r, &nobody);
        op->creating = op->logged = false;
        if (op->is_creator) dictionary_remove(s, &c->creators, &op->creator);
        op->is_creator = false;
        home_step(c, op);
        return;
    }
    if (op->home_key != NULL) {
        home_step(c, op);
        return;
    }
    if (op->code == OP_SAVE) {
        nodedb_error err;
        if (shard_save(s, &err) == NODEDB_OK) reply_ok(&op->reply);
        else {
            operation_fail(c, op, "ERR %s", err.message);
            return;
        }
    } else {
        /* A durable record is applied, degraded or not; only a fault of its own abandons it. */
        nodedb_status status = nodedb_tpc_guard(c->tpc, guarded_apply, op, op->id);
        if (status == NODEDB_ERR_DEGRADED) guarded_apply(c->tpc, op);
        else if (status != NODEDB_OK) {
            take_back_credit(s, op);
            operation_fail(c, op, "ERR the command was abandoned: %s", nodedb_tpc_fault_text(c->tpc));
            return;
        }
    }
    operation_finish(c, op);
}

/* Sends one record to the log. False: not now. Otherwise the operation is on its way, or over. */
static bool operation_log(core *c, operation *op) {
    shard *s = c->shard;
    nodedb_wal_record logged = {.type = NODEDB_WAL_TYPE_USER,
                                .vshard = c->index,
                                .payload = op->payload,
                                .payload_bytes = op->bytes};
    nodedb_error err;
    nodedb_status status;
    uint64_t now = now_ms();
    buffer create = {0};
    bool needs_memory = op->code == OP_SET || op->code == OP_INCRBY || op->code == OP_VADD;
    size_t need = op->bytes + ENTRY_OVERHEAD_BYTES + (op->code == OP_VADD ? 320 : 0); /* 320: a node's edges, R = 64 */
    if (needs_memory && op->reserved == 0) {
        nodedb_status granted = nodedb_mem_reserve(s->server->mem, s->index, NODEDB_MEM_QUERY, need, NULL);
        if (granted == NODEDB_ERR_LIMIT) { /* make room at once; maintenance may not have come round yet */
            spill_some(s, need + SPILL_AHEAD_BYTES);
            granted = nodedb_mem_reserve(s->server->mem, s->index, NODEDB_MEM_QUERY, need, NULL);
        }
        if (granted != NODEDB_OK) {
            c->oom_refused++;
            operation_fail(c, op, "OOM command not allowed when used memory > 'maxmemory'.");
            return true;
        }
        op->reserved = need;
    }
    nodedb__put_u64(op->payload + 8, now > s->now_ms ? now : s->now_ms);
    if (op->creating) {
        record r = {.op = OP_VSET, .key = op->home_key, .key_bytes = op->home_key_bytes, .number = op->new_set_id};
        r.dim = nodedb__get_u32(op->payload + 24), r.metric = nodedb__get_u32(op->payload + 28),
        r.now_ms = nodedb__get_u64(op->payload + 8);
        logged.payload_bytes = (uint32_t)record_bytes(&r);
        record_encode(&r, (unsigned char *)buffer_room(&create, logged.payload_bytes));
        logged.payload = create.p;
    }
    status = nodedb_wal_append(s->wal, &logged, &op->lsn, &err);
    buffer_free(&create);
    if (status == NODEDB_ERR_AGAIN) return false;
    if (status != NODEDB_OK) {
        release_reserved(s, op);
        operation_fail(c, op, "%s %s", status == NODEDB_ERR_DISK_FULL ? "ERR" : "MISCONF", err.message);
        return true;
    }
    op->logged = true;
    if (s->server->durable_always) list_push(&c->committing, op);
    else operation_commit(c, op); /* --durability interval: what is lost in a crash is the last interval */
    return true;
}

/* A write, or what must keep its place among the writes (`op->home_key`, SAVE): in order of arrival. */
static bool operation_enqueue(core *c, operation *op) {
    bool needs_record = op->creating || (op->home_key == NULL && op->code != OP_SAVE);
    if (needs_record) return operation_log(c, op);
    if (c->committing.head == NULL) operation_commit(c, op);
    else {
        op->lsn = c->committing.tail->lsn;
        op->logged = false;
        list_push(&c->committing, op);
    }
    return true;
}

static uint32_t remover_bucket(const char *key, uint32_t bytes) {
    return nodedb__crc32c(0, key, bytes) % REMOVER_BUCKETS;
}

static void operation_write(core *c, operation *op) {
    if (op->code == OP_FLUSH) op->removes = REMOVER_BUCKETS + 1;
    else if (op->code == OP_SET || op->code == OP_DEL || op->code == OP_EXPIRE) {
        record r;
        (void)record_decode(op->payload, op->bytes, &r);
        op->removes = (uint16_t)(1 + remover_bucket(r.key, r.key_bytes));
    }
    if (op->removes != 0) c->removers[op->removes - 1]++;
    if (op->home_key != NULL && op->waits == 0) {
        op->waits = (uint16_t)(1 + remover_bucket(op->home_key, op->home_key_bytes));
        c->element_waits[op->waits - 1]++;
    }
    if (c->waiting.head != NULL || !operation_enqueue(c, op)) list_push(&c->waiting, op);
}

/* Is a write under way that may end the vector set of this key? */
static bool may_be_ended(const core *c, const char *key, uint32_t bytes) {
    uint32_t bucket = remover_bucket(key, bytes);
    const operation *op;
    record r;
    if (c->removers[REMOVER_BUCKETS] > 0) return true;
    if (c->removers[bucket] == 0) return false;
    for (op = c->committing.head; op != NULL; op = op->next)
        if (op->removes == bucket + 1 && record_decode(op->payload, op->bytes, &r) && r.key_bytes == bytes &&
            memcmp(r.key, key, bytes) == 0)
            return true;
    return false;
}

/* An operation on an element arrives at the set's home. A VADD must come after the writes to its key that arrived before it,
 * and before those that come later. Where the set is there, nothing under way can end it, and no operation on an element
 * waits, it goes on to its part at once; where others wait, or its creation is under way, it waits its turn; else the creation of the set is logged in its
 * place, which does nothing if there is one then. */
static void home_arrival(core *c, operation *op) {
    shard *s = c->shard;
    bool safe = c->waiting.head == NULL && !may_be_ended(c, op->home_key, op->home_key_bytes);
    bool is_there = entry_live(s, op->home_key, op->home_key_bytes) != NULL;
    bool is_coming = dictionary_find(s, &c->creators, op->home_key, op->home_key_bytes) != NULL;
    bool none_waits = c->element_waits[remover_bucket(op->home_key, op->home_key_bytes)] == 0;
    if (op->code == OP_VADD && safe && is_there && none_waits) {
        home_step(c, op);
        return;
    }
    if (op->code == OP_VADD && !(safe && (is_there || is_coming))) {
        if (getrandom(&op->new_set_id, sizeof op->new_set_id, 0) != (ssize_t)sizeof op->new_set_id)
            op->new_set_id = nodedb__mix64(nodedb__now_ns(NULL) ^ (uintptr_t)op);
        op->creating = true;
        op->is_creator = !is_coming;
        op->creator.name = op->home_key, op->creator.bytes = op->home_key_bytes;
        if (op->is_creator) dictionary_add(s, &c->creators, &op->creator);
    }
    operation_write(c, op);
}

/* At the home of a vector set: which set is it, and on to the part that has the element. */
static void home_step(core *c, operation *op) {
    shard *s = c->shard;
    entry *e = entry_live(s, op->home_key, op->home_key_bytes);
    record r;
    (void)record_decode(op->payload, op->bytes, &r);
    if (e != NULL && !e->is_vset) {
        operation_fail(c, op, "%s", wrong_type);
        return;
    }
    if (e == NULL && op->code == OP_VADD) { /* it expired just now */
        home_arrival(c, op);
        return;
    }
    if (e == NULL) {
        if (op->code == OP_VEMB) reply_null(&op->reply, op->resp);
        else reply_bool(&op->reply, op->resp, false);
        operation_finish(c, op);
        return;
    }
    if (op->code == OP_VADD && r.dim != e->dim) {
        operation_fail(c, op, "ERR Vector dimension mismatch - got %u but set has %u", r.dim, e->dim);
        return;
    }
    if (op->code == OP_VADD && r.flags != 0 && r.metric != e->metric) {
        operation_fail(c, op, "ERR the set has another XDISTANCE_METRIC");
        return;
    }
    nodedb__put_u64(op->payload + 16, e->set_id);
    nodedb__put_u32(op->payload + 24, e->dim);
    nodedb__put_u32(op->payload + 28, e->metric);
    free(op->home_key);
    op->home_key = NULL;
    operation_start(c, op, shard_of_element(s->server, e->set_id, r.key, r.key_bytes));
}

static void guarded_run(nodedb_tpc_core *tpc, void *argument) {
    core *c = nodedb_tpc_core_data(tpc);
    operation *op = argument;
    if (op->code >= OP_FIRST_READ && op->home_key == NULL && op->code != OP_SAVE) read_now(c, op);
}

/* An operation arrives at its shard. */
static void operation_run(core *c, operation *op) {
    nodedb_status status = op->req == NULL ? NODEDB_OK : nodedb_tpc_guard(c->tpc, guarded_run, op, op->id);
    if (status == NODEDB_ERR_DEGRADED) operation_fail(c, op, "ERR degraded: %s", nodedb_tpc_fault_text(c->tpc));
    else if (status != NODEDB_OK)
        operation_fail(c, op, "ERR the command was abandoned: %s", nodedb_tpc_fault_text(c->tpc));
    else if (op->code >= OP_FIRST_READ && op->code != OP_SAVE) {
        if (op->home_key != NULL) home_step(c, op);
        else operation_finish(c, op);
    } else if (op->home_key != NULL) home_arrival(c, op);
    else operation_write(c, op);
}

/* Moves the log on: takes what waits, applies what has become durable, sends the next group. Returns how much happened.
 */
static size_t pump_log(core *c) {
    shard *s = c->shard;
    uint64_t durable = 0, now;
    nodedb_error err;
    size_t n = 0;
    if (nodedb_wal_poll(s->wal, &durable, &err) != NODEDB_OK) {
        operation *op;
        while ((op = list_pop(&c->committing)) != NULL) {
            if (op->lsn <= durable) operation_commit(c, op);
            else {
                release_reserved(s, op);
                operation_fail(c, op, "MISCONF %s", err.message);
            }
            n++;
        }
    }
    while (c->committing.head != NULL && c->committing.head->lsn <= durable)
        operation_commit(c, list_pop(&c->committing)), n++;
    while (c->waiting.head != NULL) {
        operation *op = list_pop(&c->waiting);
        if (!operation_enqueue(c, op)) {
            list_push_front(&c->waiting, op);
            break;
        }
        n++;
    }
    if (s->server->durable_always) {
        if (nodedb_wal_groups_in_flight(s->wal) < MAX_GROUPS_IN_FLIGHT) (void)nodedb_wal_submit(s->wal, NULL);
    } else if ((now = nodedb__now_ns(NULL)) - c->submitted_ns >= INTERVAL_NS) {
        (void)nodedb_wal_submit(s->wal, NULL);
        c->submitted_ns = now;
    }
    return n;
}

/* ---- 6 requests -------------------------------------------------------------------------------------------------- */

typedef struct command command;

typedef struct hit {
    float distance;
    uint32_t bytes;
    const char *name; /* in the reply of the operation that found it */
} hit;

typedef struct search {
    char *key, *element;
    uint32_t key_bytes, element_bytes, k, ef;
    bool truth, with_scores;
    float *vector; /* NULL while it is to be fetched (ELE) */
    uint32_t dim;
    set_info info;
} search;

/* A command under way. Belongs to its connection's core; `conn` is NULL once the client has gone. */
struct request {
    request *next;
    connection *conn;
    const command *cmd;
    void (*on_operation)(core *c, request *req, operation *op); /* NULL: its reply is the request's */
    uint32_t pending, slots, depth;
    operation **parts; /* by slot, for those who keep them until the last has come */
    int64_t sum;
    int resp;
    bool done;
    buffer reply;
    search *search;
};

enum {
    COMMAND_READ = 1,
    COMMAND_WRITE = 2,
    COMMAND_ALONE = 4 /* several steps: nothing else of its connection meanwhile */
};
struct command {
    const char *name;
    int arity; /* as in Redis: with the name; negative: at least */
    int flags;
    void (*run)(core *c, request *req, argument *argv, int argc);
};

struct connection {
    connection *next, *previous, *next_dirty;
    core *core;
    int fd;
    uint64_t id;
    uint32_t events; /* that epoll waits for */
    int resp;
    buffer in, out;
    size_t in_at, out_at;
    request *head, *tail;
    uint32_t in_flight, writes;
    size_t ready_bytes; /* of replies that are done and not yet in `out` */
    bool alone, dirty, closing, stalled;
    bool eof; /* the client sends nothing more; it may still want its replies */
    char name[64];
};

static void mark_dirty(core *c, connection *conn) {
    if (conn->dirty) return;
    conn->dirty = true;
    conn->next_dirty = c->dirty;
    c->dirty = conn;
}

static void request_free(request *req) {
    buffer_free(&req->reply);
    free(req->parts);
    if (req->search != NULL) {
        free(req->search->key);
        free(req->search->element);
        free(req->search->vector);
        free(req->search);
    }
    free(req);
}

static void request_done(core *c, request *req) {
    connection *conn = req->conn;
    req->done = true;
    if (conn == NULL) {
        request_free(req);
        return;
    }
    if ((req->cmd->flags & COMMAND_WRITE) != 0) conn->writes--;
    if ((req->cmd->flags & COMMAND_ALONE) != 0) conn->alone = false;
    conn->ready_bytes += req->reply.len;
    mark_dirty(c, conn);
}

/* One of a request's operations is back. */
static void request_step(core *c, operation *op) {
    request *req = op->req;
    assert(req->pending > 0);
    req->pending--;
    req->depth++; /* what on_operation starts may come back at once: only the outermost ends the request */
    if (req->on_operation != NULL) req->on_operation(c, req, op);
    else {
        buffer reply = req->reply;
        req->reply = op->reply;
        op->reply = reply;
        operation_free(op);
    }
    if (--req->depth == 0 && req->pending == 0) request_done(c, req);
}

/* Whoever starts several operations first adds their number to req->pending: the first may be answered before the next
 * is begun. */
static void start(core *c, request *req, const record *r, uint32_t shard_index) {
    operation *op = operation_new(c, req, r);
    op->resp = (uint8_t)req->resp;
    op->slot = req->slots++;
    operation_start(c, op, shard_index);
}

static void start_for_key(core *c, request *req, const record *r) {
    start(c, req, r, shard_of_key(c->server, r->key, r->key_bytes));
}

static void start_one(core *c, request *req, const record *r) {
    req->pending++;
    start_for_key(c, req, r);
}

/* An operation on an element: by way of the set's home. */
static void start_at_home(core *c, request *req, const argument *key, const record *r) {
    operation *op = operation_new(c, req, r);
    op->resp = (uint8_t)req->resp;
    op->home_key = must(malloc(key->bytes + 1));
    memcpy(op->home_key, key->p, key->bytes);
    op->home_key_bytes = key->bytes;
    req->pending++;
    operation_start(c, op, shard_of_key(c->server, key->p, key->bytes));
}

static void start_everywhere(core *c, request *req, const record *r) {
    uint32_t i;
    req->pending += c->server->cores;
    for (i = 0; i < c->server->cores; i++) start(c, req, r, i);
}

static bool is(const argument *a, const char *word) {
    return a->bytes == strlen(word) && strncasecmp(a->p, word, a->bytes) == 0;
}
static bool fail(request *req, const char *text) {
    reply_error(&req->reply, "%s", text);
    return false;
}
static bool key_ok(request *req, const argument *key) {
    return key->bytes <= MAX_KEY_BYTES ? true : fail(req, "ERR the key is longer than 65536 bytes");
}

/* -- simple ones -- */
static void run_ping(core *c, request *req, argument *argv, int argc) {
    (void)c;
    if (argc > 2) reply_error(&req->reply, "ERR wrong number of arguments for 'ping' command");
    else if (argc == 2) reply_bulk(&req->reply, argv[1].p, argv[1].bytes);
    else buffer_text(&req->reply, "+PONG\r\n");
}
static void run_echo(core *c, request *req, argument *argv, int argc) {
    (void)c, (void)argc;
    reply_bulk(&req->reply, argv[1].p, argv[1].bytes);
}
static void run_quit(core *c, request *req, argument *argv, int argc) {
    (void)c, (void)argv, (void)argc;
    reply_ok(&req->reply);
    req->conn->closing = true;
}
static void run_select(core *c, request *req, argument *argv, int argc) {
    int64_t n;
    (void)c, (void)argc;
    if (!parse_int64(argv[1].p, argv[1].bytes, &n)) fail(req, not_integer);
    else if (n != 0) fail(req, "ERR DB index is out of range");
    else reply_ok(&req->reply);
}
static void run_hello(core *c, request *req, argument *argv, int argc) {
    connection *conn = req->conn;
    int i = 1;
    int64_t version = conn->resp;
    (void)c;
    if (argc > 1) {
        if (!parse_int64(argv[1].p, argv[1].bytes, &version)) {
            fail(req, "ERR Protocol version is not an integer or out of range");
            return;
        }
        if (version != 2 && version != 3) {
            fail(req, "NOPROTO unsupported protocol version");
            return;
        }
        i = 2;
    }
    for (; i < argc; i++) {
        if (is(&argv[i], "SETNAME") && i + 1 < argc)
            (void)snprintf(conn->name, sizeof conn->name, "%.*s", (int)argv[i + 1].bytes, argv[i + 1].p), i++;
        else {
            reply_error(&req->reply, "ERR Syntax error in HELLO option '%.*s'", (int)argv[i].bytes, argv[i].p);
            return;
        }
    }
    conn->resp = req->resp = (int)version;
    reply_map(&req->reply, req->resp, 7);
    reply_bulk_text(&req->reply, "server"), reply_bulk_text(&req->reply, "nodedb");
    reply_bulk_text(&req->reply, "version"), reply_bulk_text(&req->reply, NODEDB_VERSION);
    reply_bulk_text(&req->reply, "proto"), reply_int(&req->reply, version);
    reply_bulk_text(&req->reply, "id"), reply_int(&req->reply, (int64_t)conn->id);
    reply_bulk_text(&req->reply, "mode"), reply_bulk_text(&req->reply, "standalone");
    reply_bulk_text(&req->reply, "role"), reply_bulk_text(&req->reply, "master");
    reply_bulk_text(&req->reply, "modules"), reply_array(&req->reply, 0);
}
static void run_client(core *c, request *req, argument *argv, int argc) {
    (void)c;
    if (is(&argv[1], "SETNAME") && argc == 3) {
        (void)snprintf(req->conn->name, sizeof req->conn->name, "%.*s", (int)argv[2].bytes, argv[2].p);
        reply_ok(&req->reply);
    } else if (is(&argv[1], "GETNAME") && argc == 2) {
        if (req->conn->name[0] == 0) reply_null(&req->reply, req->resp);
        else reply_bulk_text(&req->reply, req->conn->name);
    } else if (is(&argv[1], "ID") && argc == 2) reply_int(&req->reply, (int64_t)req->conn->id);
    else if ((is(&argv[1], "SETINFO") && argc == 4) ||
             ((is(&argv[1], "NO-EVICT") || is(&argv[1], "NO-TOUCH")) && argc == 3))
        reply_ok(&req->reply);
    else
        reply_error(
            &req->reply,
            "ERR unknown subcommand or wrong number of arguments for '%.*s'. Try CLIENT SETNAME, GETNAME, ID, SETINFO.",
            (int)(argv[1].bytes < 64 ? argv[1].bytes : 64), argv[1].p);
}
static void run_config(core *c, request *req, argument *argv, int argc) {
    (void)c;
    if (!is(&argv[1], "GET") || argc < 3) {
        fail(req, "ERR only CONFIG GET is there; settings are options of the command line");
        return;
    }
    if (is(&argv[2], "save") || is(&argv[2], "appendonly") ||
        is(&argv[2], "maxmemory")) { /* what redis-benchmark and clients ask for */
        char text[32] = "";
        if (is(&argv[2], "appendonly")) (void)snprintf(text, sizeof text, "yes");
        if (is(&argv[2], "maxmemory")) (void)snprintf(text, sizeof text, "%zu", c->server->memory_bytes);
        reply_map(&req->reply, req->resp, 1);
        reply_bulk(&req->reply, argv[2].p, argv[2].bytes);
        reply_bulk_text(&req->reply, text);
    } else reply_map(&req->reply, req->resp, 0);
}
static void run_shutdown(core *c, request *req, argument *argv, int argc);
static void run_command(core *c, request *req, argument *argv, int argc);

/* -- keys -- */
static void run_get(core *c, request *req, argument *argv, int argc) {
    (void)argc;
    if (key_ok(req, &argv[1])) start_one(c, req, &(record){.op = OP_GET, .key = argv[1].p, .key_bytes = argv[1].bytes});
}
static void run_type(core *c, request *req, argument *argv, int argc) {
    (void)argc;
    if (key_ok(req, &argv[1]))
        start_one(c, req, &(record){.op = OP_TYPE, .key = argv[1].p, .key_bytes = argv[1].bytes});
}
static void run_ttl(core *c, request *req, argument *argv, int argc) {
    (void)argc;
    if (key_ok(req, &argv[1]))
        start_one(c, req,
                  &(record){.op = OP_TTL,
                            .key = argv[1].p,
                            .key_bytes = argv[1].bytes,
                            .flags = is(&argv[0], "PTTL") ? TTL_MS : 0});
}

/* EX, PX, EXAT, PXAT: to a time in ms. */
static bool parse_expiry(request *req, const argument *value, bool seconds, bool absolute, const char *name,
                         uint64_t *at_ms) {
    int64_t n, now = (int64_t)now_ms();
    char text[80];
    if (!parse_int64(value->p, value->bytes, &n)) return fail(req, not_integer);
    (void)snprintf(text, sizeof text, "ERR invalid expire time in '%s' command", name);
    if (seconds && __builtin_mul_overflow(n, 1000, &n)) return fail(req, text);
    if (!absolute && __builtin_add_overflow(n, now, &n)) return fail(req, text);
    if (n > INT64_MAX / 2) return fail(req, text);
    *at_ms = n <= 0 ? 1 : (uint64_t)n; /* 0 means never */
    return true;
}

static void run_set(core *c, request *req, argument *argv, int argc) {
    record r = {
        .op = OP_SET, .key = argv[1].p, .key_bytes = argv[1].bytes, .value = argv[2].p, .value_bytes = argv[2].bytes};
    bool expiry = false;
    int i;
    if (!key_ok(req, &argv[1])) return;
    for (i = 3; i < argc; i++) {
        bool seconds = is(&argv[i], "EX") || is(&argv[i], "EXAT"), ms = is(&argv[i], "PX") || is(&argv[i], "PXAT");
        if (is(&argv[i], "NX") && (r.flags & SET_XX) == 0) r.flags |= SET_NX;
        else if (is(&argv[i], "XX") && (r.flags & SET_NX) == 0) r.flags |= SET_XX;
        else if (is(&argv[i], "GET")) r.flags |= SET_GET;
        else if (is(&argv[i], "KEEPTTL") && !expiry) r.flags |= SET_KEEPTTL;
        else if ((seconds || ms) && !expiry && (r.flags & SET_KEEPTTL) == 0 && i + 1 < argc) {
            int64_t n;
            expiry = true;
            if (parse_int64(argv[i + 1].p, argv[i + 1].bytes, &n) && n <= 0) {
                fail(req, "ERR invalid expire time in 'set' command");
                return;
            }
            if (!parse_expiry(req, &argv[i + 1], seconds, argv[i].bytes == 4, "set", &r.number)) return;
            i++;
        } else {
            fail(req, "ERR syntax error");
            return;
        }
    }
    start_one(c, req, &r);
}

static void run_expire(core *c, request *req, argument *argv, int argc) {
    record r = {.op = OP_EXPIRE, .key = argv[1].p, .key_bytes = argv[1].bytes};
    bool persist = is(&argv[0], "PERSIST");
    (void)argc;
    if (!key_ok(req, &argv[1])) return;
    if (!persist && !parse_expiry(req, &argv[2], is(&argv[0], "EXPIRE"), false,
                                  is(&argv[0], "EXPIRE") ? "expire" : "pexpire", &r.number))
        return;
    start_one(c, req, &r);
}

static void run_incrby(core *c, request *req, argument *argv, int argc) {
    record r = {.op = OP_INCRBY, .key = argv[1].p, .key_bytes = argv[1].bytes};
    int64_t delta = 1;
    if (!key_ok(req, &argv[1])) return;
    if (argc == 3 && !parse_int64(argv[2].p, argv[2].bytes, &delta)) {
        fail(req, not_integer);
        return;
    }
    if (tolower((unsigned char)argv[0].p[0]) == 'd') {
        if (delta == INT64_MIN) {
            fail(req, "ERR decrement would overflow");
            return;
        }
        delta = -delta;
    }
    r.number = (uint64_t)delta;
    start_one(c, req, &r);
}

static void add_up(core *c, request *req, operation *op) {
    (void)c;
    if (op->number < 0 && req->reply.len == 0)
        buffer_put(&req->reply, op->reply.p, op->reply.len); /* the first error */
    req->sum += op->number < 0 ? 0 : op->number;
    operation_free(op);
    if (req->pending == 0 && req->reply.len == 0) reply_int(&req->reply, req->sum);
}

/* DEL, UNLINK, EXISTS: one operation for each key, the answers added up. */
static void run_each_key(core *c, request *req, argument *argv, int argc) {
    uint8_t op = is(&argv[0], "EXISTS") ? OP_EXISTS : OP_DEL;
    int i;
    for (i = 1; i < argc; i++)
        if (!key_ok(req, &argv[i])) return;
    req->on_operation = add_up;
    req->pending += (uint32_t)argc - 1;
    for (i = 1; i < argc; i++) start_for_key(c, req, &(record){.op = op, .key = argv[i].p, .key_bytes = argv[i].bytes});
}

static void keep_by_slot(core *c, request *req, operation *op) {
    uint32_t i;
    (void)c;
    req->parts[op->slot] = op;
    if (req->pending > 0) return;
    for (i = 0; i < req->slots; i++) {
        buffer_put(&req->reply, req->parts[i]->reply.p, req->parts[i]->reply.len);
        operation_free(req->parts[i]);
    }
}

static void run_mget(core *c, request *req, argument *argv, int argc) {
    int i;
    for (i = 1; i < argc; i++)
        if (!key_ok(req, &argv[i])) return;
    req->on_operation = keep_by_slot;
    req->parts = must(calloc((size_t)argc, sizeof *req->parts));
    reply_array(&req->reply, argc - 1);
    req->pending += (uint32_t)argc - 1;
    for (i = 1; i < argc; i++)
        start_for_key(c, req, &(record){.op = OP_GET, .flags = 1, .key = argv[i].p, .key_bytes = argv[i].bytes});
}

static void all_ok(core *c, request *req, operation *op) {
    (void)c;
    if (op->reply.len > 0 && op->reply.p[0] == '-' && req->reply.len == 0)
        buffer_put(&req->reply, op->reply.p, op->reply.len);
    operation_free(op);
    if (req->pending == 0 && req->reply.len == 0) reply_ok(&req->reply);
}

/* Each key is set durably; another client may see some of them before the others, as they may live on several cores. */
static void run_mset(core *c, request *req, argument *argv, int argc) {
    int i;
    if (argc % 2 == 0) {
        fail(req, "ERR wrong number of arguments for 'mset' command");
        return;
    }
    for (i = 1; i < argc; i += 2)
        if (!key_ok(req, &argv[i])) return;
    req->on_operation = all_ok;
    req->pending += (uint32_t)argc / 2;
    for (i = 1; i < argc; i += 2)
        start_for_key(c, req,
                      &(record){.op = OP_SET,
                                .key = argv[i].p,
                                .key_bytes = argv[i].bytes,
                                .value = argv[i + 1].p,
                                .value_bytes = argv[i + 1].bytes});
}

static void run_dbsize(core *c, request *req, argument *argv, int argc) {
    (void)argv, (void)argc;
    req->on_operation = add_up;
    start_everywhere(c, req, &(record){.op = OP_COUNT});
}
static void run_flushall(core *c, request *req, argument *argv, int argc) {
    if (argc > 2 || (argc == 2 && !is(&argv[1], "SYNC") && !is(&argv[1], "ASYNC"))) {
        fail(req, "ERR syntax error");
        return;
    }
    req->on_operation = all_ok;
    start_everywhere(c, req, &(record){.op = OP_FLUSH});
}
static void run_save(core *c, request *req, argument *argv, int argc) {
    (void)argv, (void)argc;
    req->on_operation = all_ok;
    start_everywhere(c, req, &(record){.op = OP_SAVE});
}

static void run_scan(core *c, request *req, argument *argv, int argc) {
    record r = {.op = OP_SCAN, .dim = 10};
    int64_t n;
    int i;
    char copy[24];
    char *end;
    if (argv[1].bytes == 0 || argv[1].bytes > 20 || !isdigit((unsigned char)argv[1].p[0])) {
        fail(req, "ERR invalid cursor");
        return;
    }
    memcpy(copy, argv[1].p, argv[1].bytes);
    copy[argv[1].bytes] = 0;
    r.number = strtoull(copy, &end, 10);
    if (*end != 0 || r.number >> 48 >= c->server->cores) {
        fail(req, "ERR invalid cursor");
        return;
    }
    for (i = 2; i < argc; i += 2) {
        if (i + 1 >= argc) {
            fail(req, "ERR syntax error");
            return;
        }
        if (is(&argv[i], "MATCH")) r.flags |= SCAN_MATCH, r.value = argv[i + 1].p, r.value_bytes = argv[i + 1].bytes;
        else if (is(&argv[i], "TYPE"))
            r.metric = is(&argv[i + 1], "string") ? 1 : is(&argv[i + 1], "vectorset") ? 2 : 3;
        else if (is(&argv[i], "COUNT")) {
            if (!parse_int64(argv[i + 1].p, argv[i + 1].bytes, &n)) {
                fail(req, not_integer);
                return;
            }
            if (n < 1) {
                fail(req, "ERR syntax error");
                return;
            }
            r.dim = n > 100000 ? 100000 : (uint32_t)n; /* bounded work on a core's time */
        } else {
            fail(req, "ERR syntax error");
            return;
        }
    }
    if (r.metric == 3)
        r.metric = 1, r.flags |= SCAN_MATCH, r.value = "", r.value_bytes = 0; /* another type: nothing has it */
    req->pending++;
    start(c, req, &r, (uint32_t)(r.number >> 48));
}

static void run_debug(core *c, request *req, argument *argv, int argc) {
    if (!c->server->debug) fail(req, "ERR DEBUG command not allowed. Start the server with --enable-debug-command.");
    else if (argc == 2 && is(&argv[1], "PANIC") && ++req->pending > 0)
        start(c, req, &(record){.op = OP_PANIC, .number = req->conn->id << 32 | c->commands}, c->index);
    else fail(req, "ERR only DEBUG PANIC is there");
}

/* -- vector sets -- */

/* "FP32 blob" or "VALUES n v1 ... vn" from argv[*i] on; *vector is the caller's. Moves *i behind it. */
static bool parse_vector(request *req, argument *argv, int argc, int *i, float **vector, uint32_t *dim) {
    int64_t n;
    uint32_t j;
    if (*i + 1 < argc && is(&argv[*i], "FP32")) {
        const argument *blob = &argv[*i + 1];
        if (blob->bytes == 0 || blob->bytes % 4 != 0 || blob->bytes / 4 > MAX_DIM)
            return fail(req, "ERR invalid vector specification");
        *dim = blob->bytes / 4;
        *vector = must(malloc(blob->bytes));
        for (j = 0; j < *dim; j++) {
            uint32_t bits = nodedb__get_u32(blob->p + (size_t)j * 4);
            memcpy(*vector + j, &bits, 4);
        }
        *i += 2;
    } else if (*i + 1 < argc && is(&argv[*i], "VALUES")) {
        if (!parse_int64(argv[*i + 1].p, argv[*i + 1].bytes, &n) || n < 1 || n > MAX_DIM || n > argc - *i - 2)
            return fail(req, "ERR invalid vector specification");
        *dim = (uint32_t)n;
        *vector = must(malloc((size_t)n * sizeof **vector));
        for (j = 0; j < *dim; j++) {
            const argument *a = &argv[*i + 2 + (int)j];
            char copy[64], *end;
            if (a->bytes == 0 || a->bytes >= sizeof copy) break;
            memcpy(copy, a->p, a->bytes);
            copy[a->bytes] = 0;
            (*vector)[j] = strtof(copy, &end);
            if (end != copy + a->bytes || isspace((unsigned char)copy[0])) break;
        }
        if (j < *dim) {
            free(*vector);
            *vector = NULL;
            return fail(req, "ERR invalid vector specification");
        }
        *i += 2 + (int)n;
    } else return fail(req, "ERR invalid vector specification");
    {
        double square = 0;
        for (j = 0; j < *dim; j++) square += (double)(*vector)[j] * (*vector)[j];
        if (!(square <= 1e36)) { /* NaN, infinite, or so long that squares of it pass what a float holds */
            free(*vector);
            *vector = NULL;
            return fail(req, "ERR invalid vector specification: a component is not finite or the vector is too long");
        }
    }
    return true;
}

static bool parse_metric(const argument *a, uint32_t *metric) {
    if (is(a, "L2")) *metric = NODEDB_VAMANA_L2;
    else if (is(a, "IP")) *metric = NODEDB_VAMANA_IP;
    else if (is(a, "COSINE")) *metric = NODEDB_VAMANA_COSINE;
    else return false;
    return true;
}

static void run_vadd(core *c, request *req, argument *argv, int argc) {
    record r = {.op = OP_VADD, .metric = NODEDB_VAMANA_COSINE};
    float *vector = NULL;
    unsigned char *stored = NULL;
    int64_t n;
    int i = 2;
    if (!key_ok(req, &argv[1])) return;
    if (is(&argv[2], "REDUCE")) {
        fail(req, "ERR REDUCE is not supported");
        return;
    }
    if (!parse_vector(req, argv, argc, &i, &vector, &r.dim)) return;
    if (i >= argc) {
        fail(req, "ERR wrong number of arguments for 'vadd' command");
        goto out;
    }
    r.key = argv[i].p, r.key_bytes = argv[i].bytes;
    if (r.key_bytes > MAX_KEY_BYTES) {
        fail(req, "ERR the element is longer than 65536 bytes");
        goto out;
    }
    for (i++; i < argc; i++) {
        if (is(&argv[i], "CAS") || is(&argv[i], "NOQUANT")) continue; /* both are how it works here anyway */
        if ((is(&argv[i], "EF") || is(&argv[i], "M")) && i + 1 < argc &&
            parse_int64(argv[i + 1].p, argv[i + 1].bytes, &n) && n > 0 && n <= MAX_EF)
            i++;
        else if (is(&argv[i], "XDISTANCE_METRIC") && i + 1 < argc && parse_metric(&argv[i + 1], &r.metric))
            r.flags = 1, i++;
        else if (is(&argv[i], "Q8") || is(&argv[i], "BIN") || is(&argv[i], "SETATTR")) {
            reply_error(&req->reply, "ERR %.*s is not supported", (int)argv[i].bytes, argv[i].p);
            goto out;
        } else {
            fail(req, "ERR syntax error");
            goto out;
        }
    }
    stored = must(malloc((size_t)r.dim * 4));
    floats_to_record(vector, r.dim, stored);
    r.value = (char *)stored, r.value_bytes = r.dim * 4;
    start_at_home(c, req, &argv[1], &r);
out:
    free(stored);
    free(vector);
}

/* VREM, VEMB, VISMEMBER: key, element. */
static void run_element(core *c, request *req, argument *argv, int argc) {
    uint8_t op = is(&argv[0], "VREM") ? OP_VREM : is(&argv[0], "VEMB") ? OP_VEMB : OP_VISMEMBER;
    (void)argc;
    if (key_ok(req, &argv[1]))
        start_at_home(c, req, &argv[1], &(record){.op = op, .key = argv[2].p, .key_bytes = argv[2].bytes});
}

static void on_vdim(core *c, request *req, operation *op) {
    set_info info;
    (void)c;
    if (op->reply.len == sizeof info) memcpy(&info, op->reply.p, sizeof info);
    else { /* degraded, or abandoned */
        buffer_put(&req->reply, op->reply.p, op->reply.len);
        operation_free(op);
        return;
    }
    operation_free(op);
    if (info.wrong_type) reply_error(&req->reply, "%s", wrong_type);
    else if (!info.found) reply_error(&req->reply, "ERR key does not exist");
    else reply_int(&req->reply, info.dim);
}
static void run_vdim(core *c, request *req, argument *argv, int argc) {
    (void)argc;
    if (!key_ok(req, &argv[1])) return;
    req->on_operation = on_vdim;
    start_one(c, req, &(record){.op = OP_VSET_INFO, .key = argv[1].p, .key_bytes = argv[1].bytes});
}

static void on_vcard(core *c, request *req, operation *op) {
    set_info info;
    if (op->code != OP_VSET_INFO || op->reply.len != sizeof info) {
        if (op->code == OP_VSET_INFO) op->number = -1;
        add_up(c, req, op);
        return;
    }
    memcpy(&info, op->reply.p, sizeof info);
    operation_free(op);
    if (info.wrong_type) reply_error(&req->reply, "%s", wrong_type);
    else if (!info.found) reply_int(&req->reply, 0);
    else start_everywhere(c, req, &(record){.op = OP_PART_COUNT, .number = info.id});
}
static void run_vcard(core *c, request *req, argument *argv, int argc) {
    (void)argc;
    if (!key_ok(req, &argv[1])) return;
    req->on_operation = on_vcard;
    start_one(c, req, &(record){.op = OP_VSET_INFO, .key = argv[1].p, .key_bytes = argv[1].bytes});
}

static int compare_hits(const void *a, const void *b) {
    const hit *x = a, *y = b;
    uint32_t bytes = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    order = memcmp(x->name, y->name, bytes);
    return order != 0 ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Larger is nearer. COSINE as in Redis: 1 the same direction, 0 the opposite. L2: 1 / (1 + squared distance). IP: the
 * product. */
static double score_of(uint32_t metric, float distance) {
    if (metric == NODEDB_VAMANA_COSINE) return 1.0 - (double)distance / 2;
    if (metric == NODEDB_VAMANA_L2) return 1.0 / (1.0 + (double)distance);
    return -(double)distance;
}

static void vsim_merge(request *req) {
    search *q = req->search;
    hit *hits = NULL;
    size_t n, at;
    uint32_t i;
    const operation *broken = NULL;
    for (i = 0; i < req->slots; i++) {
        const buffer *b = &req->parts[i]->reply;
        if (req->parts[i]->number < 0) broken = req->parts[i];
        for (at = 0; broken == NULL && at + 8 <= b->len;) {
            hit h;
            memcpy(&h.distance, b->p + at, 4);
            memcpy(&h.bytes, b->p + at + 4, 4);
            h.name = b->p + at + 8;
            at += 8 + (size_t)h.bytes;
            arrput(hits, h);
        }
    }
    n = (size_t)arrlen(hits);
    if (broken != NULL)
        buffer_put(&req->reply, broken->reply.p, broken->reply.len); /* a part of an answer is no answer */
    else {
        if (n > 1) qsort(hits, n, sizeof *hits, compare_hits);
        if (n > q->k) n = q->k;
        if (q->with_scores) reply_map(&req->reply, req->resp, (int64_t)n);
        else reply_array(&req->reply, (int64_t)n);
        for (i = 0; i < n; i++) {
            reply_bulk(&req->reply, hits[i].name, hits[i].bytes);
            if (q->with_scores) reply_double(&req->reply, req->resp, score_of(q->info.metric, hits[i].distance));
        }
    }
    arrfree(hits);
    for (i = 0; i < req->slots; i++) operation_free(req->parts[i]);
}

static void vsim_search(core *c, request *req) {
    search *q = req->search;
    record r = {.op = OP_SEARCH,
                .flags = q->truth ? SEARCH_TRUTH : 0,
                .number = q->info.id,
                .dim = q->k,
                .metric = q->ef > q->k ? q->ef : q->k};
    if (q->dim != q->info.dim) {
        reply_error(&req->reply, "ERR Vector dimension mismatch - got %u but set has %u", q->dim, q->info.dim);
        return;
    }
    r.value = (char *)q->vector, r.value_bytes = q->dim * 4;
    req->slots = 0;
    req->parts = must(calloc(c->server->cores, sizeof *req->parts));
    start_everywhere(c, req, &r);
}

static void on_vsim(core *c, request *req, operation *op) {
    search *q = req->search;
    if (op->code == OP_SEARCH) {
        req->parts[op->slot] = op;
        if (req->pending == 0) vsim_merge(req);
        return;
    }
    if (op->code == OP_VSET_INFO && op->reply.len == sizeof q->info) {
        memcpy(&q->info, op->reply.p, sizeof q->info);
        if (q->info.wrong_type) reply_error(&req->reply, "%s", wrong_type);
        else if (!q->info.found) q->with_scores ? reply_map(&req->reply, req->resp, 0) : reply_array(&req->reply, 0);
        else if (q->vector != NULL) vsim_search(c, req);
        else {
            req->pending++;
            start(c, req,
                  &(record){.op = OP_VEMB,
                            .flags = 1,
                            .number = q->info.id,
                            .key = q->element,
                            .key_bytes = q->element_bytes},
                  shard_of_element(c->server, q->info.id, q->element, q->element_bytes));
        }
    } else if (op->code == OP_VEMB && op->number == 1) {
        q->dim = q->info.dim;
        q->vector = must(malloc(op->reply.len));
        memcpy(q->vector, op->reply.p, op->reply.len);
        vsim_search(c, req);
    } else if (op->code == OP_VEMB && op->number == 0) reply_error(&req->reply, "ERR element not found in set");
    else buffer_put(&req->reply, op->reply.p, op->reply.len); /* degraded, or abandoned */
    operation_free(op);
}

static bool parse_count(request *req, const argument *a, int64_t max, uint32_t *value) {
    int64_t n;
    if (!parse_int64(a->p, a->bytes, &n) || n < 1 || n > max)
        return fail(req, "ERR COUNT and EF must be integers from 1 to 1000000");
    *value = (uint32_t)n;
    return true;
}

static void run_vsim(core *c, request *req, argument *argv, int argc) {
    search *q;
    int i = 2;
    if (!key_ok(req, &argv[1])) return;
    q = req->search = must(calloc(1, sizeof *q));
    q->k = 10, q->ef = DEFAULT_EF;
    if (is(&argv[2], "ELE")) {
        if (argc < 4) {
            fail(req, "ERR wrong number of arguments for 'vsim' command");
            return;
        }
        q->element = must(malloc(argv[3].bytes + 1));
        memcpy(q->element, argv[3].p, argv[3].bytes);
        q->element_bytes = argv[3].bytes;
        i = 4;
    } else if (!parse_vector(req, argv, argc, &i, &q->vector, &q->dim)) return;
    for (; i < argc; i++) {
        if (is(&argv[i], "WITHSCORES")) q->with_scores = true;
        else if (is(&argv[i], "TRUTH")) q->truth = true;
        else if (is(&argv[i], "NOTHREAD")) continue; /* searches run on their shards' cores always */
        else if (is(&argv[i], "COUNT") && i + 1 < argc) {
            if (!parse_count(req, &argv[++i], MAX_EF, &q->k)) return;
        } else if (is(&argv[i], "EF") && i + 1 < argc) {
            if (!parse_count(req, &argv[++i], MAX_EF, &q->ef)) return;
        } else {
            fail(req, "ERR syntax error");
            return;
        }
    }
    req->on_operation = on_vsim;
    start_one(c, req, &(record){.op = OP_VSET_INFO, .key = argv[1].p, .key_bytes = argv[1].bytes});
}

/* -- INFO -- */

static void info_memory(core *c, buffer *b, const shard_stats *sum) {
    nodedb_mem_usage all, vector;
    nodedb_mem_reality real = {0};
    static const char *const level[] = {"normal", "warning", "critical", "emergency"};
    (void)nodedb_mem_poll(c->server->mem);
    (void)nodedb_mem_get_usage(c->server->mem, NODEDB_MEM_GLOBAL, &all, NULL);
    (void)nodedb_mem_get_usage(c->server->mem, NODEDB_MEM_VECTOR, &vector, NULL);
    (void)nodedb_mem_get_reality(c->server->mem, &real, NULL);
    buffer_printf(b,
                  "# Memory\r\nused_memory:%zu\r\nused_memory_rss:%" PRIu64
                  "\r\nused_memory_peak:%zu\r\nused_memory_vectors:%zu\r\nmaxmemory:%zu\r\n",
                  all.reserved_bytes, real.rss_bytes, all.peak_bytes, vector.reserved_bytes, all.limit_bytes);
    buffer_printf(b,
                  "memory_pressure:%s\r\nspilled_keys:%" PRIu64 "\r\nspilled_bytes:%" PRIu64
                  "\r\noverflow_capacity:%" PRIu64 "\r\noom_refused:%" PRIu64 "\r\n\r\n",
                  level[all.level], sum->spilled_count, sum->spilled_bytes, sum->overflow.capacity_bytes,
                  sum->oom_refused);
}

static void info_text(core *c, buffer *b, const shard_stats *st, uint32_t n) {
    shard_stats sum = {0};
    server *srv = c->server;
    uint32_t i;
    for (i = 0; i < n; i++) {
        sum.keys += st[i].keys, sum.expiring += st[i].expiring, sum.spilled_count += st[i].spilled_count,
            sum.spilled_bytes += st[i].spilled_bytes;
        sum.clients += st[i].clients, sum.commands += st[i].commands, sum.accepted += st[i].accepted,
            sum.replayed += st[i].replayed;
        sum.saves += st[i].saves, sum.oom_refused += st[i].oom_refused, sum.vectors += st[i].vectors,
            sum.overflow.capacity_bytes += st[i].overflow.capacity_bytes;
        sum.wal.records += st[i].wal.records, sum.wal.groups += st[i].wal.groups, sum.wal.syncs += st[i].wal.syncs,
            sum.major_faults += st[i].major_faults;
    }
    /* redis_version: clients choose what they may send by it */
    buffer_printf(b,
                  "# Server\r\nredis_version:8.0.0\r\nnodedb_version:" NODEDB_VERSION
                  "\r\nprocess_id:%d\r\ntcp_port:%d\r\nuptime_in_seconds:%" PRIu64 "\r\ncores:%u\r\n\r\n",
                  (int)getpid(), srv->port, (now_ms() - srv->started_ms) / 1000, srv->cores);
    buffer_printf(b, "# Clients\r\nconnected_clients:%" PRIu64 "\r\n\r\n", sum.clients);
    info_memory(c, b, &sum);
    buffer_printf(b,
                  "# Persistence\r\ndurability:%s\r\nlog:%s\r\nlog_records:%" PRIu64 "\r\nlog_groups:%" PRIu64
                  "\r\nlog_syncs:%" PRIu64 "\r\nlog_commit_p50_us:%.1f\r\nlog_commit_p99_us:%.1f\r\n",
                  srv->durable_always ? "always" : "interval", st[0].log, sum.wal.records, sum.wal.groups,
                  sum.wal.syncs, (double)st[0].wal.commit_p50_ns / 1e3, (double)st[0].wal.commit_p99_ns / 1e3);
    buffer_printf(b, "records_replayed_at_start:%" PRIu64 "\r\ncheckpoints:%" PRIu64 "\r\n\r\n", sum.replayed,
                  sum.saves);
    buffer_printf(b,
                  "# Stats\r\ntotal_connections_received:%" PRIu64 "\r\ntotal_commands_processed:%" PRIu64
                  "\r\nmajor_faults:%" PRIu64 "\r\nprefetch:%s\r\n\r\n",
                  sum.accepted, sum.commands, sum.major_faults, st[0].prefetch);
    buffer_printf(b, "# Keyspace\r\ndb0:keys=%" PRIu64 ",expires=%" PRIu64 ",vectors=%" PRIu64 "\r\n\r\n# Cores\r\n",
                  sum.keys, sum.expiring, sum.vectors);
    for (i = 0; i < n; i++) {
        nodedb_tpc_stats t;
        (void)nodedb_tpc_get_stats(nodedb_tpc_core_runtime(c->tpc), i, &t);
        buffer_printf(b,
                      "core%u:keys=%" PRIu64 ",clients=%" PRIu64 ",turns=%" PRIu64 ",messages=%" PRIu64
                      ",parks=%" PRIu64 ",wakes=%" PRIu64 ",wakes_avoided=%" PRIu64 ",faults=%" PRIu64
                      ",degraded=%d,applied_lsn=%" PRIu64 ",checkpoint_lsn=%" PRIu64 "\r\n",
                      i, st[i].keys, st[i].clients, t.turns, t.messages, t.parks, t.wakes, t.wakes_avoided, t.faults,
                      (int)t.degraded, st[i].applied_lsn, st[i].checkpoint_lsn);
    }
}

static void on_info(core *c, request *req, operation *op) {
    uint32_t i;
    req->parts[op->slot] = op;
    if (req->pending > 0) return;
    {
        shard_stats *st = must(calloc(req->slots, sizeof *st));
        buffer text = {0};
        for (i = 0; i < req->slots; i++)
            if (req->parts[i]->reply.len == sizeof *st) memcpy(&st[i], req->parts[i]->reply.p, sizeof *st);
        info_text(c, &text, st, req->slots);
        reply_bulk(&req->reply, text.p, text.len);
        buffer_free(&text);
        free(st);
    }
    for (i = 0; i < req->slots; i++) operation_free(req->parts[i]);
}

static void run_info(core *c, request *req, argument *argv, int argc) {
    (void)argv, (void)argc; /* all sections always: clients pick the lines that they know */
    req->on_operation = on_info;
    req->parts = must(calloc(c->server->cores, sizeof *req->parts));
    start_everywhere(c, req, &(record){.op = OP_STATS});
}

static const command commands[] = {{"get", 2, COMMAND_READ, run_get},
                                   {"set", -3, COMMAND_WRITE, run_set},
                                   {"ping", -1, 0, run_ping},
                                   {"echo", 2, 0, run_echo},
                                   {"hello", -1, COMMAND_ALONE, run_hello},
                                   {"quit", -1, 0, run_quit},
                                   {"select", 2, 0, run_select},
                                   {"command", -1, 0, run_command},
                                   {"client", -2, 0, run_client},
                                   {"config", -2, 0, run_config},
                                   {"info", -1, COMMAND_READ | COMMAND_ALONE, run_info},
                                   {"dbsize", 1, COMMAND_READ, run_dbsize},
                                   {"flushall", -1, COMMAND_WRITE, run_flushall},
                                   {"flushdb", -1, COMMAND_WRITE, run_flushall},
                                   {"mget", -2, COMMAND_READ, run_mget},
                                   {"mset", -3, COMMAND_WRITE, run_mset},
                                   {"del", -2, COMMAND_WRITE, run_each_key},
                                   {"unlink", -2, COMMAND_WRITE, run_each_key},
                                   {"exists", -2, COMMAND_READ, run_each_key},
                                   {"expire", 3, COMMAND_WRITE, run_expire},
                                   {"pexpire", 3, COMMAND_WRITE, run_expire},
                                   {"persist", 2, COMMAND_WRITE, run_expire},
                                   {"ttl", 2, COMMAND_READ, run_ttl},
                                   {"pttl", 2, COMMAND_READ, run_ttl},
                                   {"incr", 2, COMMAND_WRITE, run_incrby},
                                   {"incrby", 3, COMMAND_WRITE, run_incrby},
                                   {"decr", 2, COMMAND_WRITE, run_incrby},
                                   {"decrby", 3, COMMAND_WRITE, run_incrby},
                                   {"type", 2, COMMAND_READ, run_type},
                                   {"scan", -2, COMMAND_READ, run_scan},
                                   {"save", 1, COMMAND_READ | COMMAND_ALONE, run_save},
                                   {"shutdown", -1, COMMAND_READ | COMMAND_ALONE, run_shutdown},
                                   {"debug", -2, COMMAND_READ, run_debug},
                                   {"vadd", -5, COMMAND_WRITE, run_vadd},
                                   {"vsim", -4, COMMAND_READ | COMMAND_ALONE, run_vsim},
                                   {"vrem", 3, COMMAND_WRITE, run_element},
                                   {"vcard", 2, COMMAND_READ | COMMAND_ALONE, run_vcard},
                                   {"vdim", 2, COMMAND_READ, run_vdim},
                                   {"vemb", 3, COMMAND_READ, run_element},
                                   {"vismember", 3, COMMAND_READ, run_element}};
#define COMMANDS (sizeof commands / sizeof *commands)

static void run_command(core *c, request *req, argument *argv, int argc) {
    size_t i;
    (void)c;
    if (argc == 2 && is(&argv[1], "COUNT")) reply_int(&req->reply, (int64_t)COMMANDS);
    else if (argc >= 2 && is(&argv[1], "DOCS"))
        reply_map(&req->reply, req->resp, 0); /* redis-cli falls back to its own help */
    else if (argc == 1) {
        reply_array(&req->reply, (int64_t)COMMANDS);
        for (i = 0; i < COMMANDS; i++) {
            reply_array(&req->reply, 3);
            reply_bulk_text(&req->reply, commands[i].name);
            reply_int(&req->reply, commands[i].arity);
            reply_array(&req->reply, 1);
            buffer_text(&req->reply, (commands[i].flags & COMMAND_WRITE) != 0 ? "+write\r\n" : "+readonly\r\n");
        }
    } else
        reply_error(&req->reply, "ERR unknown subcommand '%.*s'. Try COMMAND HELP.",
                    (int)(argv[1].bytes < 64 ? argv[1].bytes : 64), argv[1].p);
}

static void stop_after_save(core *c, request *req, operation *op) {
    all_ok(c, req, op);
    if (req->pending == 0 && req->reply.p[0] == '+') {
        req->reply.len = 0;
        nodedb_tpc_stop(nodedb_tpc_core_runtime(c->tpc));
    }
}

/* The log has everything, so a checkpoint is made only on demand. */
static void run_shutdown(core *c, request *req, argument *argv, int argc) {
    if (argc == 1 || (argc == 2 && is(&argv[1], "NOSAVE"))) {
        req->conn->closing = true;
        nodedb_tpc_stop(nodedb_tpc_core_runtime(c->tpc));
    } else if (argc == 2 && is(&argv[1], "SAVE")) {
        req->on_operation = stop_after_save;
        start_everywhere(c, req, &(record){.op = OP_SAVE});
    } else fail(req, "ERR syntax error");
}

/* ---- 7 connections ----------------------------------------------------------------------------------------------- */

static void connection_free(core *c, connection *conn) {
    request *req, *next;
    connection **at;
    for (req = conn->head; req != NULL; req = next) {
        next = req->next;
        req->conn = NULL; /* what is under way goes on; its reply is for nobody */
        if (req->done) request_free(req);
    }
    for (at = &c->dirty; *at != NULL && *at != conn; at = &(*at)->next_dirty) {}
    if (*at != NULL) *at = conn->next_dirty;
    if (conn->previous != NULL) conn->previous->next = conn->next;
    else c->first = conn->next;
    if (conn->next != NULL) conn->next->previous = conn->previous;
    (void)close(conn->fd);
    buffer_free(&conn->in);
    buffer_free(&conn->out);
    free(conn);
    c->clients--;
}

static void connection_adopt(core *c, int fd) {
    connection *conn;
    struct epoll_event event;
    int one = 1;
    if (c->clients >= MAX_CLIENTS) {
        static const char text[] = "-ERR max number of clients reached\r\n";
        (void)!write(fd, text, sizeof text - 1);
        (void)close(fd);
        return;
    }
    conn = must(calloc(1, sizeof *conn));
    conn->core = c;
    conn->fd = fd;
    conn->resp = 2;
    conn->id = ++c->next_client_id * c->server->cores + c->index;
    conn->events = EPOLLIN;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    event.events = EPOLLIN;
    event.data.ptr = conn;
    conn->next = c->first;
    if (c->first != NULL) c->first->previous = conn;
    c->first = conn;
    c->clients++;
    c->accepted++;
    if (epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event) != 0) connection_free(c, conn);
}

/* Core 0 accepts, and deals the connections out in turn. */
static void accept_some(core *c) {
    int i;
    for (i = 0; i < 64; i++) {
        int fd = accept4(c->server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        uint32_t to;
        if (fd < 0) return;
        to = c->next_core++ % c->server->cores;
        if (to == c->index) connection_adopt(c, fd);
        else core_send(c, to, (message){MESSAGE_CONNECTION, (uint32_t)fd, NULL});
    }
}

typedef enum frame_result { FRAME_MORE, FRAME_READY, FRAME_BAD } frame_result;

/* A decimal number up to CR LF. FRAME_BAD: it is none. */
static frame_result parse_length(const char *p, const char *end, int64_t *value, const char **behind) {
    const char *cr = memchr(p, '\r', (size_t)(end - p) < 32 ? (size_t)(end - p) : 32);
    if (cr == NULL) return end - p >= 32 ? FRAME_BAD : FRAME_MORE;
    if (cr + 1 >= end) return FRAME_MORE;
    if (cr[1] != '\n' || !parse_int64(p, (size_t)(cr - p), value)) return FRAME_BAD;
    *behind = cr + 2;
    return FRAME_READY;
}

static frame_result parse_inline(core *c, connection *conn, const char *p, const char *end, size_t *consumed,
                                 const char **wrong) {
    const char *line = memchr(p, '\n', (size_t)(end - p) < MAX_INLINE_BYTES ? (size_t)(end - p) : MAX_INLINE_BYTES),
               *last, *word;
    (void)conn;
    if (line == NULL) {
        if ((size_t)(end - p) < MAX_INLINE_BYTES) return FRAME_MORE;
        *wrong = "too big inline request";
        return FRAME_BAD;
    }
    *consumed = (size_t)(line - p) + 1;
    last = line > p && line[-1] == '\r' ? line - 1 : line;
    while (p < last) {
        while (p < last && (*p == ' ' || *p == '\t')) p++;
        for (word = p; p < last && *p != ' ' && *p != '\t'; p++) {}
        if (p > word) arrput(c->args, ((argument){(char *)(uintptr_t)word, (uint32_t)(p - word)}));
    }
    return FRAME_READY;
}

/* One command from the connection's buffer into c->args. The sizes that it announces are checked before they are
 * buffered. */
static frame_result parse_frame(core *c, connection *conn, size_t *consumed, char *wrong, size_t wrong_bytes) {
    const char *begin = conn->in.p + conn->in_at, *p = begin, *end = conn->in.p + conn->in.len;
    const char *text = NULL;
    int64_t count = 0, bytes = 0, i;
    frame_result result;
    arrsetlen(c->args, 0);
    if (p == end) return FRAME_MORE;
    if (*p != '*') {
        result = parse_inline(c, conn, p, end, consumed, &text);
        if (text != NULL) (void)snprintf(wrong, wrong_bytes, "%s", text);
        return result;
    }
    result = parse_length(p + 1, end, &count, &p);
    if (result == FRAME_BAD || (result == FRAME_READY && count > MAX_ARGS)) {
        (void)snprintf(wrong, wrong_bytes, "invalid multibulk length");
        return FRAME_BAD;
    }
    if (result == FRAME_MORE) return result;
    for (i = 0; i < count; i++) {
        if (p == end) return FRAME_MORE;
        if (*p != '$') {
            (void)snprintf(wrong, wrong_bytes, "expected '$', got '%c'", isprint((unsigned char)*p) ? *p : '?');
            return FRAME_BAD;
        }
        result = parse_length(p + 1, end, &bytes, &p);
        if (result == FRAME_BAD || (result == FRAME_READY && (bytes < 0 || bytes > MAX_BULK_BYTES))) {
            (void)snprintf(wrong, wrong_bytes, "invalid bulk length");
            return FRAME_BAD;
        }
        if (result == FRAME_MORE) return result;
        if ((size_t)(p - begin) + (size_t)bytes + 2 > MAX_FRAME_BYTES) {
            (void)snprintf(wrong, wrong_bytes, "a command of more than %u bytes", MAX_FRAME_BYTES);
            return FRAME_BAD;
        }
        if ((size_t)(end - p) < (size_t)bytes + 2) return FRAME_MORE;
        if (p[bytes] != '\r' || p[bytes + 1] != '\n') {
            (void)snprintf(wrong, wrong_bytes, "a bulk string does not end with CR LF");
            return FRAME_BAD;
        }
        arrput(c->args, ((argument){(char *)(uintptr_t)p, (uint32_t)bytes}));
        p += bytes + 2;
    }
    *consumed = (size_t)(p - begin);
    return FRAME_READY;
}

static const command *command_find(const argument *name) {
    size_t i;
    for (i = 0; i < COMMANDS; i++)
        if (is(name, commands[i].name)) return &commands[i];
    return NULL;
}

static request *request_new(connection *conn, const command *cmd) {
    request *req = must(calloc(1, sizeof *req));
    req->conn = conn;
    req->cmd = cmd;
    req->resp = conn->resp;
    if (conn->head == NULL) conn->head = req;
    else conn->tail->next = req;
    conn->tail = req;
    conn->in_flight++;
    return req;
}

static const command no_command = {"", 0, 0, NULL};

static void reply_unknown(request *req, const argument *argv, int argc) {
    buffer b = {0};
    int i;
    buffer_printf(&b, "ERR unknown command '%.*s', with args beginning with: ",
                  (int)(argv[0].bytes < 128 ? argv[0].bytes : 128), argv[0].p);
    for (i = 1; i < argc && b.len < 256; i++)
        buffer_printf(&b, "'%.*s' ", (int)(argv[i].bytes < 64 ? argv[i].bytes : 64), argv[i].p);
    buffer_put(&b, "", 1);
    reply_error(&req->reply, "%s", b.p);
    buffer_free(&b);
}

static void dispatch(core *c, connection *conn, const command *cmd, argument *argv, int argc) {
    request *req = request_new(conn, cmd != NULL ? cmd : &no_command);
    c->commands++;
    req->depth = 1; /* answers that come before run() returns do not end the request */
    if ((req->cmd->flags & COMMAND_WRITE) != 0) conn->writes++;
    if ((req->cmd->flags & COMMAND_ALONE) != 0) conn->alone = true;
    if (cmd == NULL) reply_unknown(req, argv, argc);
    else if ((cmd->arity > 0 && argc != cmd->arity) || argc < -cmd->arity)
        reply_error(&req->reply, "ERR wrong number of arguments for '%s' command", cmd->name);
    else if (nodedb_tpc_stopping(nodedb_tpc_core_runtime(c->tpc)))
        reply_error(&req->reply, "ERR the server is shutting down");
    else cmd->run(c, req, argv, argc);
    req->depth = 0;
    if (req->pending == 0) request_done(c, req);
}

/* A read waits until this connection's writes are done, and the other way round for what takes several steps: a client
 * sees its own writes, and its commands take effect in their order. */
static bool must_wait(const connection *conn, const command *cmd) {
    int flags = cmd != NULL ? cmd->flags : 0;
    if (conn->alone || conn->in_flight >= MAX_IN_FLIGHT) return true;
    if (conn->ready_bytes + conn->out.len - conn->out_at >= PAUSE_OUTPUT_BYTES) return true; /* until it fetches some */
    if ((flags & COMMAND_ALONE) != 0) return conn->in_flight > 0;
    return (flags & COMMAND_READ) != 0 && conn->writes > 0;
}

static void connection_parse(core *c, connection *conn) {
    conn->stalled = false;
    while (!conn->closing) {
        size_t consumed = 0;
        char wrong[120] = "";
        const command *cmd;
        frame_result result = parse_frame(c, conn, &consumed, wrong, sizeof wrong);
        if (result == FRAME_MORE) break;
        if (result == FRAME_BAD) {
            request *req = request_new(conn, &no_command);
            reply_error(&req->reply, "ERR Protocol error: %s", wrong);
            request_done(c, req);
            conn->closing = true;
            break;
        }
        if (arrlen(c->args) == 0) { /* "*0", or an empty line */
            conn->in_at += consumed;
            continue;
        }
        if (conn->in.p[conn->in_at] != '*' &&
            (is(&c->args[0], "POST") || is(&c->args[0], "Host:"))) { /* a browser was made to talk to us */
            conn->closing = true;
            break;
        }
        cmd = command_find(&c->args[0]);
        if (must_wait(conn, cmd)) {
            conn->stalled = true;
            break;
        }
        conn->in_at += consumed;
        dispatch(c, conn, cmd, c->args, (int)arrlen(c->args));
    }
    if (conn->in_at == conn->in.len) conn->in.len = conn->in_at = 0;
    else if (conn->in_at > READ_BYTES) {
        memmove(conn->in.p, conn->in.p + conn->in_at, conn->in.len - conn->in_at);
        conn->in.len -= conn->in_at, conn->in_at = 0;
    }
    if (conn->in.len == 0 && conn->in.cap > 4 * READ_BYTES) buffer_free(&conn->in); /* a large value has passed */
}

/* False: the connection is gone. */
static bool connection_read(core *c, connection *conn) {
    ssize_t n = read(conn->fd, buffer_room(&conn->in, READ_BYTES), READ_BYTES);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        connection_free(c, conn);
        return false;
    }
    if (n == 0) {
        conn->eof = true;
        mark_dirty(c, conn);
    }
    if (n > 0) {
        conn->in.len += (size_t)n;
        if (!conn->stalled) connection_parse(c, conn);
        mark_dirty(c, conn);
    }
    return true;
}

static bool connection_write(core *c, connection *conn) {
    while (conn->out_at < conn->out.len) {
        ssize_t n = send(conn->fd, conn->out.p + conn->out_at, conn->out.len - conn->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n < 0) {
            connection_free(c, conn);
            return false;
        }
        conn->out_at += (size_t)n;
    }
    if (conn->out_at == conn->out.len) {
        conn->out.len = conn->out_at = 0;
        if (conn->out.cap > 16 * READ_BYTES) buffer_free(&conn->out);
        if (conn->head == NULL && (conn->closing || (conn->eof && !conn->stalled))) {
            connection_free(c, conn);
            return false;
        }
    } else if (conn->out.len - conn->out_at > MAX_OUTPUT_BYTES) {
        nodedb__say(&c->server->logger, NODEDB_LOG_WARNING, "a client was disconnected: it does not fetch its replies");
        connection_free(c, conn);
        return false;
    }
    return true;
}

static void connection_set_events(core *c, connection *conn) {
    struct epoll_event event;
    size_t waiting = conn->in.len - conn->in_at;
    bool read = !conn->closing && !conn->eof && !(conn->stalled && waiting > READ_BYTES) &&
                conn->out.len - conn->out_at < PAUSE_OUTPUT_BYTES;
    event.events = (read ? EPOLLIN : 0u) | (conn->out_at < conn->out.len ? EPOLLOUT : 0u);
    event.data.ptr = conn;
    if (event.events == conn->events) return;
    conn->events = event.events;
    (void)epoll_ctl(c->epoll, EPOLL_CTL_MOD, conn->fd, &event);
}

/* Replies in the order of the commands; then on with what had to wait. */
static size_t flush_connection(core *c, connection *conn) {
    size_t n = 0;
    bool again;
    do {
        while (conn->head != NULL && conn->head->done) {
            request *req = conn->head;
            conn->head = req->next;
            conn->in_flight--;
            conn->ready_bytes -= req->reply.len;
            buffer_put(&conn->out, req->reply.p, req->reply.len);
            request_free(req);
            n++;
        }
        if (!connection_write(c, conn)) return n;
        again = conn->stalled;
        if (again) connection_parse(c, conn);
        again = again && conn->head != NULL && conn->head->done;
    } while (again);
    /* nothing is left to do: this frees it, once all is written */
    if (conn->head == NULL && (conn->eof || conn->closing) && !connection_write(c, conn)) return n;
    connection_set_events(c, conn);
    return n;
}

/* ---- 8 the core -------------------------------------------------------------------------------------------------- */

static char tag_ring, tag_log, tag_listen; /* epoll data of what is not a connection; only their addresses matter */

static size_t core_poll(nodedb_tpc_core *tpc, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    size_t n = flush_outboxes(c);
    int i;
    (void)ctx;
    if (c->ready == 0) c->ready = epoll_wait(c->epoll, c->events, (int)(sizeof c->events / sizeof *c->events), 0);
    for (i = 0; i < c->ready; i++) {
        void *what = c->events[i].data.ptr;
        if (what == &tag_ring || what == &tag_log) continue; /* both are looked at in every turn */
        n++;
        if (what == &tag_listen) accept_some(c);
        else if ((c->events[i].events & ~(uint32_t)EPOLLOUT) == 0) mark_dirty(c, what);
        else if ((c->events[i].events & (EPOLLERR | EPOLLHUP)) != 0 && ((connection *)what)->eof)
            connection_free(c, what);
        else if (!connection_read(c, what)) {
            int j; /* it is gone: forget other events of it (epoll gives one for each descriptor, but be sure) */
            for (j = i + 1; j < c->ready; j++)
                if (c->events[j].data.ptr == what) c->events[j].data.ptr = &tag_ring;
        }
    }
    c->ready = 0;
    n += pump_log(c);
    while (c->dirty != NULL) {
        connection *conn = c->dirty;
        c->dirty = conn->next_dirty;
        conn->dirty = false;
        n += flush_connection(c, conn);
    }
    return n;
}

static void core_wait(nodedb_tpc_core *tpc, void *ctx, uint64_t timeout_ns) {
    core *c = nodedb_tpc_core_data(tpc);
    int ms = (int)((timeout_ns + 999999) / 1000000);
    ptrdiff_t unsent = 0;
    uint32_t i;
    (void)ctx;
    for (i = 0; i < c->server->cores; i++) unsent += arrlen(c->outbox[i]);
    if (unsent > 0 && ms > 1) ms = 1; /* a full ring does not wake its producer */
    c->ready = epoll_wait(c->epoll, c->events, (int)(sizeof c->events / sizeof *c->events), ms);
    if (c->ready < 0) c->ready = 0;
}

static void core_message(nodedb_tpc_core *tpc, uint32_t from, void *memory, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    message m;
    (void)from, (void)ctx;
    memcpy(&m, memory, sizeof m);
    if (m.kind == MESSAGE_RUN) operation_run(c, m.pointer);
    else if (m.kind == MESSAGE_DONE) request_step(c, m.pointer);
    else connection_adopt(c, (int)m.value);
}

/* Keys that expired before the newest record's time: no record can depend on them any more, so they go without one. */
static void expire_some(shard *s) {
    uint64_t ms = s->now_ms, i;
    /* What is logged and not yet applied has an older time, and must find what it will find in a replay: only when there is
     * nothing of the kind may the clock be looked at, as records to come are not older. */
    if (s->core->committing.head == NULL && now_ms() > ms) ms = s->now_ms = now_ms();
    for (i = 0; i < EXPIRE_BATCH && s->expiring > 0 && hmlen(s->keys) > 0; i++) {
        named *n, *next;
        if (s->expire_hand >= (size_t)hmlen(s->keys)) s->expire_hand = 0;
        for (n = s->keys[s->expire_hand].value; n != NULL; n = next) {
            entry *e = (entry *)n;
            next = n->next;
            if (e->expires_ms != 0 && e->expires_ms <= ms) {
                entry_remove(s, e);
                if (next == NULL) break; /* the slot may hold another chain now */
            }
        }
        s->expire_hand++;
    }
}

/* Brings values back, a batch at a time: announced first, so that the pages are read before they are touched. */
static void restore_some(core *c, size_t bytes) {
    shard *s = c->shard;
    nodedb_prefetch_range ranges[SPILL_BATCH];
    entry *back[SPILL_BATCH];
    size_t n = 0, i, looked;
    for (looked = 0;
         looked < 4096 && n < SPILL_BATCH && bytes > 0 && hmlen(s->keys) > 0 && looked < (size_t)hmlen(s->keys);
         looked++) {
        named *x;
        if (s->spill_hand >= (size_t)hmlen(s->keys)) s->spill_hand = 0;
        for (x = s->keys[s->spill_hand++].value; x != NULL && n < SPILL_BATCH; x = x->next) {
            entry *e = (entry *)x;
            if (!e->is_spilled || e->value_bytes > bytes) continue;
            ranges[n].start = nodedb_mem_overflow_read(s->overflow, e->spilled, &ranges[n].bytes, NULL);
            if (ranges[n].start == NULL) continue;
            back[n++] = e;
            bytes -= e->value_bytes;
        }
    }
    if (n > 0 && c->prefetch != NULL) (void)nodedb_prefetch_batch(c->prefetch, ranges, n, NULL);
    for (i = 0; i < n; i++) {
        uint32_t length = (uint32_t)ranges[i].bytes;
        char *value;
        if (nodedb_mem_reserve(s->server->mem, s->index, NODEDB_MEM_QUERY, length, NULL) != NODEDB_OK) return;
        value = must(malloc(length));
        memcpy(value, ranges[i].start, length);
        entry_value_free(s, back[i]);
        back[i]->value = value, back[i]->value_bytes = length;
    }
}

static bool core_maintain(nodedb_tpc_core *tpc, void *ctx, uint64_t budget_ns) {
    core *c = nodedb_tpc_core_data(tpc);
    shard *s = c->shard;
    size_t bytes = 0;
    (void)ctx, (void)budget_ns; /* each of these is bounded by a batch */
    expire_some(s);
    switch (nodedb_mem_spill_decide(s->server->mem, &s->spill, c->index, NODEDB_MEM_GLOBAL, (size_t)s->spilled_bytes,
                                    &bytes)) {
    case NODEDB_MEM_SPILL_BEGIN: case NODEDB_MEM_SPILL_CONTINUE: spill_some(s, bytes); break;
    case NODEDB_MEM_SPILL_RESTORE: restore_some(c, bytes); break;
    default: break;
    }
    if (c->prefetch_usable)
        (void)nodedb_prefetch_faults_tick(&c->faults,
                                          nodedb_mem_pressure(s->server->mem, NODEDB_MEM_GLOBAL) >= NODEDB_MEM_CRITICAL,
                                          NULL);
    if (hmlen(s->parts) > 0)
        (void)nodedb_vamana_maintain(s->parts[s->now_ms % (uint64_t)hmlen(s->parts)].value->index, 16);
    return false;
}

static bool core_pending(nodedb_tpc_core *tpc, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    uint32_t i;
    (void)ctx;
    for (i = 0; i < c->server->cores; i++)
        if (arrlen(c->outbox[i]) > 0) return true;
    return c->waiting.head != NULL || c->committing.head != NULL;
}

static bool watch(core *c, int fd, void *tag) {
    struct epoll_event event;
    event.events = EPOLLIN;
    event.data.ptr = tag;
    return epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static nodedb_status core_start(nodedb_tpc_core *tpc, void *ctx, nodedb_error *err) {
    server *srv = ctx;
    core *c = must(calloc(1, sizeof *c));
    uint32_t arena = 0;
    nodedb_prefetch_config prefetch = {.method = NODEDB_PREFETCH_PROCESS_MADVISE,
                                       .logger = srv->logger}; /* batches only */
    nodedb_prefetch_faults_config faults = {.logger = srv->logger};
    c->index = nodedb_tpc_core_index(tpc);
    c->server = srv;
    c->tpc = tpc;
    c->shard = srv->shards[c->index];
    c->shard->core = c;
    if (nodedb_mem_arena_create(&arena, NULL) == NODEDB_OK)
        (void)nodedb_mem_arena_bind_thread(arena, NULL); /* else malloc's own arenas do */
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (c->epoll < 0 || !watch(c, nodedb_tpc_core_fd(tpc), &tag_ring) ||
        !watch(c, nodedb_wal_fd(c->shard->wal), &tag_log) ||
        (c->index == 0 && !watch(c, srv->listen_fd, &tag_listen))) {
        int error = errno;
        if (c->epoll >= 0) (void)close(c->epoll);
        free(c);
        return nodedb__fail(err, NODEDB_ERR_IO, error, "core %u cannot set up epoll", nodedb_tpc_core_index(tpc));
    }
    c->prefetch = nodedb_prefetch_create(&prefetch, NULL); /* without it values come back by page faults */
    c->prefetch_usable = nodedb_prefetch_faults_start(&c->faults, &faults, NULL) == NODEDB_OK;
    nodedb_tpc_core_set_data(tpc, c);
    srv->core[c->index] = c;
    return NODEDB_OK;
}

static void core_stop(nodedb_tpc_core *tpc, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    uint32_t i;
    (void)ctx;
    while (c->first != NULL) {
        connection *conn = c->first;
        conn->closing = true;
        (void)flush_connection(c, conn);
        if (c->first == conn) connection_free(c, conn);
    }
    for (i = 0; i < MAX_CORES; i++) arrfree(c->outbox[i]);
    arrfree(c->args);
    hmfree(c->creators);
    nodedb_prefetch_destroy(c->prefetch);
    (void)close(c->epoll);
    c->shard->core = NULL;
    free(c);
}

/* ---- 9 main ------------------------------------------------------------------------------------------------------ */

/* To stderr. Two cores would say the same about their own logs: each reason is said once. */
static void say(void *ctx, nodedb_log_level level, const char *sentence) {
    server *srv = ctx;
    const char *reason = strstr(sentence, ": ");
    uint64_t hash = nodedb__mix64(
        nodedb__crc32c(0, reason != NULL ? reason : sentence, strlen(reason != NULL ? reason : sentence)));
    uint32_t i;
    (void)pthread_mutex_lock(&srv->said_lock);
    for (i = 0; i < srv->said_count && srv->said[i] != hash; i++) {}
    if (level == NODEDB_LOG_ERROR || i == srv->said_count) {
        fprintf(stderr, "nodedb: %s%s\n",
                level == NODEDB_LOG_INFO      ? ""
                : level == NODEDB_LOG_WARNING ? "warning: "
                                              : "error: ",
                sentence);
        if (i == srv->said_count && i < sizeof srv->said / sizeof *srv->said) srv->said[srv->said_count++] = hash;
    }
    (void)pthread_mutex_unlock(&srv->said_lock);
}

static const char usage[] =
    "usage: nodedb [options]\n"
    "  --dir DIR          data directory, made if missing (nodedb-data)\n"
    "  --port PORT        TCP port, 0 for any free one (6399)\n"
    "  --bind ADDRESS     IPv4 address to listen on (127.0.0.1); there is no authentication\n"
    "  --cores N          pinned cores, each with its shard (all CPUs, at most 64); may differ from the last start\n"
    "  --memory BYTES     ceiling for keys, values and vectors, with K, M or G (three quarters of what the system allows);\n"
    "                     cold values move to an overflow file near it, writes beyond it are refused\n"
    "  --durability MODE  always: a write is answered when it is on the disk (default)\n"
    "                     interval: at once, and it is on the disk 100 ms later at most\n"
    "  --enable-debug-command  allow DEBUG PANIC, for tests of fault isolation\n"
    "  --help             this text\n"
    "Talk to it with redis-cli -p 6399. SIGINT and SIGTERM stop it in order.\n";

static bool parse_size(const char *text, size_t *bytes) {
    char *end;
    unsigned long long n;
    errno = 0;
    n = strtoull(text, &end, 10);
    int shift = *end == 0 ? 0 : (*end | 32) == 'k' ? 10 : (*end | 32) == 'm' ? 20 : (*end | 32) == 'g' ? 30 : -1;
    if (errno != 0 || end == text || text[0] == '-' || shift < 0 || (*end != 0 && end[1] != 0) ||
        n > (SIZE_MAX >> shift))
        return false;
    *bytes = (size_t)n << shift;
    return true;
}

static bool parse_whole(const char *text, long min, long max, long *value) {
    char *end;
    errno = 0;
    *value = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == 0 && *value >= min && *value <= max;
}

/* 0: go on; else the exit status + 1. */
static int parse_options(server *srv, int argc, char **argv) {
    int i;
    long n;
    (void)snprintf(srv->dir, sizeof srv->dir, "nodedb-data");
    (void)snprintf(srv->bind, sizeof srv->bind, "127.0.0.1");
    srv->port = 6399;
    srv->durable_always = true;
    for (i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(option, "--help") == 0) {
            fputs(usage, stdout);
            return 1;
        }
        if (strcmp(option, "--enable-debug-command") == 0) {
            srv->debug = true;
            continue;
        }
        i++;
        if (strcmp(option, "--dir") == 0 && value != NULL && value[0] != 0 && strlen(value) < sizeof srv->dir - 128)
            (void)snprintf(srv->dir, sizeof srv->dir, "%s", value);
        else if (strcmp(option, "--port") == 0 && value != NULL && parse_whole(value, 0, 65535, &n)) srv->port = (int)n;
        else if (strcmp(option, "--bind") == 0 && value != NULL && strlen(value) < sizeof srv->bind)
            (void)snprintf(srv->bind, sizeof srv->bind, "%s", value);
        else if (strcmp(option, "--cores") == 0 && value != NULL && parse_whole(value, 1, MAX_CORES, &n))
            srv->cores = (uint32_t)n;
        else if (strcmp(option, "--memory") == 0 && value != NULL && parse_size(value, &srv->memory_bytes) &&
                 (srv->memory_bytes == 0 || srv->memory_bytes >= 1 << 20))
            continue;
        else if (strcmp(option, "--durability") == 0 && value != NULL && strcmp(value, "always") == 0)
            srv->durable_always = true;
        else if (strcmp(option, "--durability") == 0 && value != NULL && strcmp(value, "interval") == 0)
            srv->durable_always = false;
        else {
            fprintf(stderr, "nodedb: wrong option %s%s%s (try --help)\n", option, value != NULL ? " " : "",
                    value != NULL ? value : "");
            return 3;
        }
    }
    if (srv->cores == 0) {
        cpu_set_t set;
        int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        srv->cores = cpus > MAX_CORES ? MAX_CORES : (uint32_t)cpus;
    }
    return 0;
}

/* DIR/MANIFEST, one line: which generation of shards counts, and how many there are. Replaced as a whole. */
static nodedb_status write_manifest(server *srv, nodedb_error *err) {
    char path[PATH_MAX], tmp[PATH_MAX], text[128];
    int n = snprintf(text, sizeof text, "nodedb 1 cores %u generation %" PRIu64, srv->cores, srv->generation), fd;
    bool ok;
    n += snprintf(text + n, sizeof text - (size_t)n, " check %08x\n", nodedb__crc32c(0, text, (size_t)n));
    (void)snprintf(path, sizeof path, "%s/MANIFEST", srv->dir);
    (void)snprintf(tmp, sizeof tmp, "%s/MANIFEST.tmp", srv->dir);
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ok = fd >= 0 && write(fd, text, (size_t)n) == n && fsync(fd) == 0;
    if (fd >= 0) ok = close(fd) == 0 && ok;
    ok = ok && rename(tmp, path) == 0;
    if (!ok) return nodedb__fail(err, nodedb__io_status(errno), errno, "cannot write %s", path);
    return sync_path(srv->dir) == 0 ? NODEDB_OK : nodedb__fail(err, NODEDB_ERR_IO, errno, "cannot sync %s", srv->dir);
}

static int visit_generation(void *visitor, const char *name) {
    if (strncmp(name, "gen-", 4) == 0) *(bool *)visitor = true;
    return 0;
}

/* *cores gets the number of shards on disk; 0: the directory is new. */
static nodedb_status read_manifest(server *srv, uint32_t *cores, nodedb_error *err) {
    char path[PATH_MAX], text[129] = "", *check;
    unsigned stored, got_cores;
    int fd;
    ssize_t n;
    (void)snprintf(path, sizeof path, "%s/MANIFEST", srv->dir);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        bool data = false;
        (void)nodedb__posix_list(NULL, srv->dir, visit_generation, &data);
        *cores = 0;
        return data ? nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s is missing, but there is data beside it", path)
                    : NODEDB_OK;
    }
    if (fd < 0) return nodedb__fail(err, NODEDB_ERR_IO, errno, "cannot open %s", path);
    n = read(fd, text, sizeof text - 1);
    (void)close(fd);
    check = n > 0 ? strstr(text, " check ") : NULL;
    if (check == NULL || sscanf(check, " check %8x", &stored) != 1 ||
        stored != nodedb__crc32c(0, text, (size_t)(check - text)) ||
        sscanf(text, "nodedb 1 cores %u generation %" SCNu64, &got_cores, &srv->generation) != 2 || got_cores < 1 ||
        got_cores > MAX_CORES)
        return nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s is damaged at offset 0, or of another version", path);
    *cores = got_cores;
    return NODEDB_OK;
}

static int lock_directory(server *srv) {
    char path[PATH_MAX], pid[24] = "";
    int fd;
    if (mkdir(srv->dir, 0755) != 0 && errno != EEXIST) {
        fprintf(stderr, "nodedb: cannot make %s: %s\n", srv->dir, strerror(errno));
        return -1;
    }
    (void)snprintf(path, sizeof path, "%s/LOCK", srv->dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) fprintf(stderr, "nodedb: cannot open %s: %s\n", path, strerror(errno));
    else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (read(fd, pid, sizeof pid - 1) < 0) pid[0] = 0;
        fprintf(stderr, "nodedb: %s is in use by another server (process %s): %s\n", srv->dir, pid, strerror(errno));
        (void)close(fd);
        fd = -1;
    } else if (ftruncate(fd, 0) == 0) {
        int n = snprintf(pid, sizeof pid, "%d", (int)getpid());
        (void)!pwrite(fd, pid, (size_t)n, 0);
    }
    return fd;
}

static void shard_dir(const server *srv, uint64_t generation, uint32_t index, char *dir, size_t bytes) {
    (void)snprintf(dir, bytes, "%s/gen-%" PRIu64 "/core-%u", srv->dir, generation, index);
}

static int remove_visited(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static void remove_generation(const server *srv, uint64_t generation) {
    char command_dir[PATH_MAX];
    (void)snprintf(command_dir, sizeof command_dir, "%s/gen-%" PRIu64, srv->dir, generation);
    (void)nftw(command_dir, remove_visited, 16, FTW_DEPTH | FTW_PHYS);
}

/* The number of cores has changed: all that the old shards hold is dealt out to new ones, which are saved as the next
 * generation. The manifest is replaced last, so a crash leaves the old generation or the new one. */
static void deal_out(server *srv, shard *from, shard **to) {
    answer nobody = {0};
    ptrdiff_t i, j;
    for (i = 0; i < hmlen(from->keys); i++) {
        named *n;
        for (n = from->keys[i].value; n != NULL; n = n->next) {
            entry *e = (entry *)n;
            shard *target = to[shard_of_key(srv, e->name, n->bytes)];
            record r = {.op = e->is_vset ? OP_VSET : OP_SET,
                        .key = e->name,
                        .key_bytes = n->bytes,
                        .number = e->is_vset ? e->set_id : e->expires_ms,
                        .dim = e->dim,
                        .metric = e->metric};
            if (!e->is_vset) r.value = entry_value(from, e), r.value_bytes = e->value_bytes;
            apply(target, &r, &nobody);
            if (e->is_vset && e->expires_ms != 0)
                apply(target,
                      &(record){.op = OP_EXPIRE, .key = e->name, .key_bytes = n->bytes, .number = e->expires_ms},
                      &nobody);
        }
    }
    for (i = 0; i < hmlen(from->parts); i++) {
        part *p = from->parts[i].value;
        unsigned char *stored = must(malloc((size_t)p->dim * 4));
        float *vector = must(malloc((size_t)p->dim * sizeof *vector));
        for (j = 0; j < hmlen(p->by_id); j++) {
            element *x = p->by_id[j].value;
            record r = {.op = OP_VADD,
                        .key = x->name,
                        .key_bytes = x->n.bytes,
                        .number = p->set_id,
                        .dim = p->dim,
                        .metric = p->metric,
                        .value = (char *)stored,
                        .value_bytes = p->dim * 4};
            (void)nodedb_vamana_get(p->index, x->id, vector, NULL);
            floats_to_record(vector, p->dim, stored);
            apply(to[shard_of_element(srv, p->set_id, x->name, x->n.bytes)], &r, &nobody);
        }
        free(stored);
        free(vector);
    }
}

static nodedb_status change_cores(server *srv, uint32_t old_cores, nodedb_error *err) {
    shard *old[MAX_CORES] = {0}, *fresh[MAX_CORES] = {0};
    char dir[PATH_MAX];
    nodedb_status status;
    uint32_t i;
    nodedb__say(&srv->logger, NODEDB_LOG_INFO, "%u shards are dealt out to %u cores", old_cores, srv->cores);
    remove_generation(srv, srv->generation + 1); /* of an attempt that was interrupted */
    for (i = 0; i < old_cores; i++)
        shard_dir(srv, srv->generation, i, dir, sizeof dir), old[i] = shard_new(srv, i, dir);
    status = recover_shards(old, old_cores, err);
    (void)snprintf(dir, sizeof dir, "%s/gen-%" PRIu64, srv->dir, srv->generation + 1);
    if (status == NODEDB_OK && mkdir(dir, 0755) != 0)
        status = nodedb__fail(err, nodedb__io_status(errno), errno, "cannot make %s", dir);
    for (i = 0; i < srv->cores && status == NODEDB_OK; i++) {
        shard_dir(srv, srv->generation + 1, i, dir, sizeof dir);
        fresh[i] = shard_new(srv, i, dir);
        if (mkdir(dir, 0755) != 0) status = nodedb__fail(err, nodedb__io_status(errno), errno, "cannot make %s", dir);
    }
    for (i = 0; i < old_cores && status == NODEDB_OK; i++) deal_out(srv, old[i], fresh);
    for (i = 0; i < srv->cores && status == NODEDB_OK; i++) status = shard_save(fresh[i], err);
    for (i = 0; i < old_cores; i++) shard_free(old[i]);
    for (i = 0; i < srv->cores; i++) shard_free(fresh[i]);
    if (status != NODEDB_OK) return status;
    (void)snprintf(dir, sizeof dir, "%s/gen-%" PRIu64, srv->dir, srv->generation + 1);
    if (sync_path(dir) != 0 || sync_path(srv->dir) != 0)
        return nodedb__fail(err, NODEDB_ERR_IO, errno, "cannot sync %s", dir);
    srv->generation++;
    status = write_manifest(srv, err);
    if (status == NODEDB_OK) remove_generation(srv, srv->generation - 1);
    return status;
}

/* The directories of all shards, durable before any of them has a log. So where one has a log and another is not there, that
 * one has been lost. */
static nodedb_status make_shard_dirs(server *srv, const char *generation_dir, nodedb_error *err) {
    char dir[PATH_MAX], log[PATH_MAX + 8];
    bool any_log = false;
    uint32_t i;
    if (mkdir(generation_dir, 0755) != 0 && errno != EEXIST)
        return nodedb__fail(err, nodedb__io_status(errno), errno, "cannot make %s", generation_dir);
    for (i = 0; i < srv->cores; i++) {
        shard_dir(srv, srv->generation, i, dir, sizeof dir);
        (void)snprintf(log, sizeof log, "%s/log", dir);
        any_log = any_log || access(log, F_OK) == 0;
    }
    for (i = 0; i < srv->cores; i++) {
        shard_dir(srv, srv->generation, i, dir, sizeof dir);
        if (mkdir(dir, 0755) != 0 && errno != EEXIST)
            return nodedb__fail(err, nodedb__io_status(errno), errno, "cannot make %s", dir);
        else if (any_log && access(dir, F_OK) == 0) {
            (void)snprintf(log, sizeof log, "%s/log", dir);
            if (access(log, F_OK) != 0)
                return nodedb__fail(err, NODEDB_ERR_CORRUPT, 0, "%s is missing: the data of this core is gone", log);
        }
    }
    if (sync_path(generation_dir) != 0 || sync_path(srv->dir) != 0)
        return nodedb__fail(err, NODEDB_ERR_IO, errno, "cannot sync %s", generation_dir);
    if (srv->generation > 1)
        remove_generation(srv, srv->generation - 1); /* of a change of cores that a crash cut short */
    return NODEDB_OK;
}

static nodedb_status open_data(server *srv, nodedb_error *err) {
    uint32_t old_cores = 0, i;
    char dir[PATH_MAX];
    nodedb_status status = read_manifest(srv, &old_cores, err);
    if (status == NODEDB_OK && old_cores == 0) {
        srv->generation = 1;
        status = write_manifest(srv, err);
    } else if (status == NODEDB_OK && old_cores != srv->cores) status = change_cores(srv, old_cores, err);
    if (status != NODEDB_OK) return status;
    (void)snprintf(dir, sizeof dir, "%s/gen-%" PRIu64, srv->dir, srv->generation);
    status = make_shard_dirs(srv, dir, err);
    if (status != NODEDB_OK) return status;
    for (i = 0; i < srv->cores; i++) {
        shard_dir(srv, srv->generation, i, dir, sizeof dir);
        srv->shards[i] = shard_new(srv, i, dir);
    }
    return recover_shards(srv->shards, srv->cores, err);
}

static int listen_on(server *srv) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)srv->port);
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

static int serve(server *srv) {
    nodedb_tpc_config config = {.ctx = srv,
                                .cores = srv->cores,
                                .message_bytes = sizeof(message),
                                .ring_messages = 4096,
                                .catch_signals = true,
                                .name = "nodedb",
                                .logger = srv->logger,
                                .on_start = core_start,
                                .on_stop = core_stop,
                                .on_message = core_message,
                                .poll = core_poll,
                                .wait = core_wait,
                                .maintain = core_maintain,
                                .pending = core_pending};
    nodedb_error err;
    sigset_t signals;
    struct timespec patience = {0, 100000000};
    if (listen(srv->listen_fd, 511) != 0) {
        fprintf(stderr, "nodedb: cannot listen: %s\n", strerror(errno));
        return 1;
    }
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    srv->runtime = nodedb_tpc_start(&config, &err);
    if (srv->runtime == NULL) {
        fprintf(stderr, "nodedb: %s\n", err.message);
        return 1;
    }
    printf("nodedb " NODEDB_VERSION " is ready on %s:%d, %u cores, data in %s (log: %s)\n", srv->bind, srv->port,
           srv->cores, srv->dir, nodedb_wal_describe(srv->shards[0]->wal));
    fflush(stdout);
    while (!nodedb_tpc_stopping(srv->runtime))
        if (sigtimedwait(&signals, NULL, &patience) > 0) nodedb_tpc_stop(srv->runtime);
    (void)nodedb_tpc_join(srv->runtime, NULL);
    return 0;
}

int main(int argc, char **argv) {
    server *srv = must(calloc(1, sizeof *srv));
    nodedb_mem_config memory = {0};
    nodedb_mem_usage usage;
    nodedb_error err;
    int lock, status = parse_options(srv, argc, argv);
    uint32_t i;
    if (status != 0) {
        free(srv);
        return status - 1;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    (void)pthread_mutex_init(&srv->said_lock, NULL);
    srv->logger.write = say, srv->logger.ctx = srv;
    srv->started_ms = now_ms();
    if (getrandom(&srv->hash_seed, sizeof srv->hash_seed, 0) != (ssize_t)sizeof srv->hash_seed)
        srv->hash_seed = nodedb__now_ns(NULL);
    lock = lock_directory(srv);
    srv->listen_fd = lock < 0 ? -1 : listen_on(srv);
    if (srv->listen_fd < 0) {
        free(srv);
        return 1; /* the lock goes with the process */
    }
    memory.ceiling_bytes = srv->memory_bytes, memory.max_cores = MAX_CORES, memory.logger = srv->logger;
    srv->mem = nodedb_mem_create(&memory, &err);
    if (srv->mem == NULL || open_data(srv, &err) != NODEDB_OK) {
        fprintf(stderr, "nodedb: %s\n", err.message);
        status = 1;
    } else {
        (void)nodedb_mem_get_usage(srv->mem, NODEDB_MEM_GLOBAL, &usage, NULL);
        srv->memory_bytes = usage.limit_bytes;
        status = serve(srv);
    }
    for (i = 0; i < MAX_CORES; i++) shard_free(srv->shards[i]);
    nodedb_tpc_destroy(srv->runtime);
    nodedb_mem_destroy(srv->mem);
    (void)close(srv->listen_fd);
    (void)close(lock);
    (void)pthread_mutex_destroy(&srv->said_lock);
    free(srv);
    return status;
}
