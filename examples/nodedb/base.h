/* base.h - limits, counted memory, tables and patterns: what the structs of db.h are made of. Included by db.h. */
#ifndef NODEDB_BASE_H
#define NODEDB_BASE_H

/* ---- limits ------------------------------------------------------------------------------------------------------ */

#define MAX_CORES 64
#define SLOTS 16384                    /* hash slots, as in Redis Cluster */
#define MAX_BULK_BYTES (32u << 20)     /* one argument: a key, a value, a vector */
#define MAX_FRAME_BYTES (48u << 20)    /* one command; its record must fit into the log's 64 MiB */
#define MAX_KEY_BYTES (64u << 10)
#define MAX_ARGS 65536
#define MAX_INLINE_BYTES (64u << 10)
#define MIN_CLIENT_BYTES ((size_t)1 << 20) /* clients may hold a quarter of --memory together, and at least this */
#define MAX_CLIENTS 10000              /* per core; fewer where there are fewer descriptors */
#define MAX_REQUESTS 128               /* commands of one connection that are under way */
#define MAX_OPERATIONS 256             /* operations of one connection that are under way */
#define WINDOW 64                      /* operations of one request that are under way */
#define TURN_OPERATIONS 512            /* operations that the connections of a core start in one turn */
#define TURN_COMMANDS 64               /* commands of one connection that start in one turn */
#define READ_BYTES (64u << 10)         /* one read from a socket */
#define TURN_NS UINT64_C(1000000)      /* of each kind of work in one turn; then the next kind runs */
#define INLINE_BYTES (16u << 10)       /* of values that are answered at once, all of a connection's together */
#define CHUNK_BYTES (64u << 10)        /* a larger value is fetched from its shard in pieces of this size */
#define REPLY_PAUSE_BYTES (32u << 10)  /* a request whose reply is longer starts no operation ... */
#define PRESSURE_PAUSE_BYTES (2u << 10) /* ... and longer than this, while the core is under pressure */
#define OUTPUT_PAUSE_BYTES (32u << 10) /* a connection with more unsent bytes takes no reply */
#define MAX_GROUPS_IN_FLIGHT 2         /* log writes under way; later records form the next group */
#define LOG_GROUP_BYTES (256u << 10)
#define LOG_SEGMENT_BYTES (16u << 20)
#define LOG_LIMIT_BYTES (UINT64_C(1) << 30) /* default of --log-limit */
#define INTERVAL_NS UINT64_C(50000000) /* --durability interval: a group is sent so often, and durable in 100 ms */
#define RETRY_SAVE_MS 2000             /* from a failed automatic checkpoint to the next one */
#define FLUSH_RESERVE_BYTES (1u << 20) /* the last of it is for FLUSHALL alone */
#define RESERVE_BYTES (6u << 20)       /* a file of each core, deleted on a full disk: pays for 1,200 lone DELs */
#define SPILL_MIN_BYTES 256            /* smaller values are not worth a move to the overflow file */
#define SPILL_BATCH 64                 /* values that one step spills or restores */
#define SPILL_AHEAD_BYTES (64u << 10)  /* spilled beyond what a refused write needs */
#define RETIRE_BATCH 512               /* items of dropped tables that one step frees */
#define EXPIRE_BATCH 64                /* keys that one step of the sweep looks at */
#define FLAT_ELEMENTS 16               /* a part with more of them has an index */
#define SEARCHERS 8                    /* per shard, shared by all its parts */
#define HOME_BUCKETS 1024
#define DEFAULT_EF 100                 /* beam of a search in each part */
#define MAX_EF 1000000                 /* that a client may name; a part has fewer elements mostly, and ... */
#define MAX_BEAM 10000u                /* ... no search is wider: it holds its core for some ms */
#define MAX_DIM 32768
#define PATH_ROOM (PATH_MAX + 128)     /* a shard's directory, and a name in it */
#define BASE_PROCESS_BYTES ((size_t)8 << 20) /* what the process takes beside --memory ... */
#define BASE_CORE_BYTES ((size_t)8 << 20)    /* ... and each of its cores */

typedef struct server server;
typedef struct core core;
typedef struct shard shard;
typedef struct connection connection;
typedef struct request request;
typedef struct operation operation;

/* Borrowed bytes; never changed through it. */
typedef struct slice {
    const char *p;
    uint32_t bytes;
} slice;

/* ---- memory.c: every byte is counted ----------------------------------------------------------------------------- */

/* What the governor counts apart. Data: keys, values, elements, their tables. */
enum { MEM_DATA = NODEDB_MEM_QUERY, MEM_VECTORS = NODEDB_MEM_VECTOR, MEM_CLIENTS = NODEDB_MEM_BRIDGE };

/* A growing byte buffer. `counter`, if not NULL, holds the sum of the capacities of all buffers that point to it. */
typedef struct buffer {
    char *p;
    size_t len, cap;
    size_t *counter;
} buffer;

void *must(void *memory);                            /* aborts with a sentence if it is NULL */
char *buffer_room(buffer *b, size_t bytes);          /* room for `bytes` more, at p + len */
char *buffer_exact_room(buffer *b, size_t cap);       /* the capacity becomes `cap`, if it is less */
void buffer_put(buffer *b, const void *bytes, size_t n);
void buffer_text(buffer *b, const char *text);
void buffer_printf(buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buffer_free(buffer *b);                         /* empty again; `counter` stays */
void buffer_count_at(buffer *b, size_t *counter);    /* moves its count to `counter`; NULL: not counted */

/* Memory of a shard's data, counted by its real size. Never NULL: admission is before, when a write is logged. */
void *data_alloc(shard *s, size_t bytes);
void data_free(shard *s, void *memory);
void data_disown(shard *s, void *memory);            /* stops counting it here; another shard counts it ... */
void data_adopt(shard *s, void *memory);
void data_count(shard *s, int64_t bytes);            /* counts what is not from data_alloc; uses credit first */
nodedb_allocator data_allocator(shard *s);           /* for what the headers allocate on behalf of the data ... */
nodedb_allocator vector_allocator(shard *s);         /* ... and of vectors */
void free_large_some(shard *s);                      /* of shard.large, which is not empty */
bool data_reserve(shard *s, size_t bytes);           /* false: the ceiling refuses, even after making room */
void data_release(shard *s, size_t bytes);           /* of what was reserved and not used */
uint64_t wall_ms(void);                              /* CLOCK_REALTIME; it may step back */
uint64_t steady_ms(void);                            /* CLOCK_MONOTONIC */

/* ---- dictionary.c: things by name -------------------------------------------------------------------------------- */

/* An extendible hash table of pointers. A segment has at most DICTIONARY_SEGMENT places and holds all items whose hash
 * begins with the same `depth` bits; a full one is split in two. So no call moves more than one segment's items, but
 * for the directory, 8 bytes a segment, which is copied when it doubles. Items are met in the order of their hashes,
 * which growing does not change: so a scan meets everything that is there from beginning to end. */
#define DICTIONARY_SEGMENT 256
#define DICTIONARY_END (UINT64_C(1) << 32) /* a cursor behind all items */
typedef struct dictionary_segment dictionary_segment;
typedef struct dictionary_kind {
    uint32_t (*hash_of)(const void *item);
    bool (*is)(const void *item, const void *name, size_t bytes);
} dictionary_kind;
typedef struct dictionary {
    const dictionary_kind *kind;
    shard *owner; /* its memory is counted there */
    dictionary_segment **directory; /* 1 << depth entries; NULL until the first item is added */
    uint32_t depth;
    uint64_t count;
} dictionary;
void *dictionary_find(const dictionary *d, uint32_t hash, const void *name, size_t bytes); /* or NULL */
void dictionary_add(dictionary *d, void *item);      /* no item of this name is there */
void dictionary_remove(dictionary *d, void *item);   /* it is there. The last one frees the table */
/* Up to `room` items (at least DICTIONARY_SEGMENT) with hashes from *cursor on, in the order of their hashes, no hash
 * by halves; moves *cursor behind them, to DICTIONARY_END at the end. Stays within one segment, so it may find none
 * before the end. */
size_t dictionary_page(const dictionary *d, uint64_t *cursor, void **items, size_t room);
void dictionary_free(dictionary *d);                 /* the table, not the items */
uint32_t name_hash(const shard *s, const void *name, size_t bytes); /* seeded: nobody can choose what collides */

/* ---- glob.c: patterns -------------------------------------------------------------------------------------------- */

/* A pattern as in Redis: * ? [a-z] [^a] and \ for the next character. Matching takes time in proportion to the text
 * (times the words of a bit set, GLOB_WORDS, where a piece has ? or classes): no pattern makes it quadratic. */
#define GLOB_WORDS 1024 /* a piece between two stars with ? or classes has at most 64 times as many characters */
typedef struct glob_pattern glob_pattern;
glob_pattern *glob_compile(slice pattern); /* NULL: a piece is too long. The pattern's bytes must stay */
uint32_t glob_words(const glob_pattern *g); /* of the longest bit set: the work for each byte of a text */
bool glob_match(const glob_pattern *g, slice text);
void glob_free(glob_pattern *g);

#endif
