/* db.h - what the rooms of the database share: its structs, what is true of them between calls, and who may touch them.
 *
 * A CORE is a pinned thread. It owns connections and one SHARD: the keys of its hash slots, their log, their memory.
 * A command becomes a REQUEST on the core of its connection. A request starts OPERATIONS; each runs on the shard that
 * has its key, and comes back with a RESULT. An operation that changes something carries a CHANGE: that is what is
 * logged, and what apply() is given when the record is durable, and again when the log is replayed.
 *
 * Threads. A core's structs are touched by its own thread only. Operations travel between cores as pointers in rings:
 * its holder owns it. What it borrows (key, value, vector) is memory of its request, which stays until all its
 * operations are back, and is only read. Shared by all cores are: the options and the slot map (read only while cores
 * run), the governor, the runtime, the logger with its lock, and the few numbers of struct server that say "atomic". */
#ifndef NODEDB_DB_H
#define NODEDB_DB_H

#define NODEDB_COMMON_TOOLS
#include "nodedb_wal.h"
#include "nodedb_mem.h"
#include "nodedb_tpc.h"
#include "nodedb_vamana.h"
#include "nodedb_prefetch.h"
#if !defined(typeof)
#define typeof __typeof__ /* stb_ds says typeof, which -std=c99 does not know */
#endif
#include "stb_ds.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

/* ---- record.c: what is logged ------------------------------------------------------------------------------------ */

/* Numbers are on disk and keep their meaning. */
typedef enum change_kind {
    CHANGE_SET = 1,       /* key, u.set */
    CHANGE_DELETE = 2,    /* key, u.del */
    CHANGE_EXPIRE = 3,    /* key, u.expire */
    CHANGE_INCREMENT = 4, /* key, u.increment */
    CHANGE_FLUSH = 5,     /* all keys of the shard */
    CHANGE_SWEEP = 6,     /* key: removed if it has expired at the record's time */
    CHANGE_CREATE = 10,   /* key, u.create: a vector set, if there is nothing of that name */
    CHANGE_END = 11,      /* key, u.set_id: the set has lost its last element */
    CHANGE_ADD = 12,      /* element as key, u.add; at a part */
    CHANGE_REMOVE = 13,   /* element as key, u.set_id; at a part */
    CHANGE_DROP = 14,     /* u.set_id: the set is gone; at a part */
    CHANGE_PART = 20,     /* in checkpoints only. u.part: its index is in a file beside, its elements follow */
    CHANGE_ELEMENT = 21   /* in checkpoints only. Element as key, u.element: its id in that index */
} change_kind;

/* One change, decoded. Slices are borrowed: from the client's frame, or from the record that was read. */
typedef struct change {
    change_kind kind;
    uint64_t now_ms; /* wall clock when it was logged; apply() knows no other time */
    slice key;
    union {
        struct { slice value; uint64_t expires_ms; bool nx, xx, get, keep_ttl; } set; /* expires_ms 0: never */
        struct { bool get; } del;               /* answer the old value instead of 1 or 0 */
        struct { uint64_t expires_ms; } expire; /* 0: never */
        struct { int64_t delta; } increment;
        struct { uint64_t set_id; uint32_t dim, metric; } create;
        uint64_t set_id;
        struct { uint64_t set_id; uint32_t dim, metric; slice vector; } add; /* dim floats, little-endian, unaligned */
        struct { uint64_t set_id, next_id; uint32_t dim, metric; } part;
        struct { uint64_t set_id, id; } element;
    } u;
} change;

size_t change_bytes(const change *c);                /* of its record */
void change_encode(const change *c, void *to);
/* False: no record that apply() may be given. What is decoded points into `from`. */
bool change_decode(const void *from, size_t bytes, change *c);
void floats_decode(slice vector, float *to);         /* little-endian bytes to floats ... */
void floats_encode(const float *from, uint32_t dim, char *to); /* ... and back */

/* ---- shard.c: keys and values ------------------------------------------------------------------------------------ */

/* The bytes of a string: in memory behind the struct, or in the overflow file. Replaced as a whole, never changed.
 * A reader that takes it in pieces holds a pin. An orphan is freed with its last pin. */
typedef struct value {
    uint32_t bytes;
    uint32_t pins : 29, spilled : 1, touched : 1, orphan : 1; /* orphan: no key has it any more */
    /* char data[bytes], or a nodedb_mem_handle */
} value;

typedef struct set_home set_home;
typedef enum entry_kind { ENTRY_STRING, ENTRY_SET } entry_kind;
/* A key with what it names. Owned by its shard, and between calls in shard.keys; `kind` tells which of `u` it has. */
typedef struct entry {
    uint32_t hash; /* of its key */
    uint32_t key_bytes : 24, kind : 8;
    uint64_t expires_ms; /* 0: never */
    union { value *string; set_home *home; } u;
    char key[];
} entry;

typedef struct part part;
typedef struct retired retired;
typedef struct large large;
typedef struct element element;

/* A slot of a shard's table of searchers, which all its parts share. Between calls none of them is searching. */
typedef struct searcher_place {
    part *of; /* NULL: free */
    nodedb_vamana_searcher *searcher;
    uint64_t used; /* the shard's count of searches when it last was */
} searcher_place;

/* One core's data. Only the core's thread touches it; before the cores start, the thread that recovers it. */
struct shard {
    uint32_t index; /* also the core's, for the governor */
    server *server;
    core *core; /* NULL during recovery: then no other core is notified */
    nodedb_logger logger;
    char dir[PATH_MAX];
    dictionary keys;       /* of entry */
    dictionary parts;      /* of part */
    set_home *dropping;    /* their keys are gone; their parts are not notified yet */
    retired *retired;      /* dropped as a whole, freed step by step */
    large *large;          /* the same for the memory of indexes */
    uint64_t seed;         /* of name_hash */
    uint64_t expiring;     /* keys with a time to live */
    uint64_t expire_cursor, spill_cursor, part_cursor;
    uint32_t sweeping;     /* CHANGE_SWEEPs under way; the sweep continues when all are done */
    size_t credit_bytes;   /* reserved by the write that is being applied, and not yet used */
    /* spill.c */
    nodedb_mem_spill spill;
    nodedb_mem_overflow *overflow; /* these two are opened when they are first needed */
    nodedb_prefetch *prefetch;
    uint64_t spilled_bytes, spilled_count;
    const char *mapped_low, *mapped_high; /* part of the overflow file touched since the last spill_unmap() */
    size_t mapped_bytes;
    const char *file_low, *file_high; /* the part of the mapping that was ever used */
    /* vectorset.c */
    searcher_place searchers[SEARCHERS];
    uint64_t searches;
    /* store.c */
    nodedb_wal *wal;
    uint64_t applied_lsn, checkpoint_lsn, noted_lsn; /* noted: in the file "progress" */
    uint64_t noted_checkpoint, noted_sequence;
    uint64_t log_bytes_at_checkpoint; /* of the log's written_bytes, modulo 2^64: what was replayed counts as written */
    uint64_t checkpoint_bytes;        /* on disk, of the newest one */
    uint64_t records_replayed, saves;
    int progress_fd;
    bool log_full;     /* the last append found no room on the disk */
    bool reserve_gone; /* the reserve was given up and is not taken again */
    bool save_wanted;  /* space was freed on a full disk: a checkpoint allows truncating the log */
};

/* ---- results ----------------------------------------------------------------------------------------------------- */

typedef enum result_kind {
    RESULT_OK,
    RESULT_NULL,
    RESULT_INTEGER, /* number */
    RESULT_BOOL,    /* number */
    RESULT_BULK,    /* bytes: all of it, or the beginning of a value of `number` bytes, the rest behind `pinned` */
    RESULT_TYPE,    /* bytes: a word */
    RESULT_ERROR,   /* bytes: the sentence without "-" */
    RESULT_DATA     /* bytes: private to the two functions that exchange it; never leaves the process */
} result_kind;
/* The answer of an operation. It travels with the operation; its owner frees `bytes`. */
typedef struct result {
    result_kind kind;
    int64_t number;
    buffer bytes;
    value *pinned; /* at the operation's shard: the rest is still to be fetched */
} result;
void result_error(result *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern const char wrong_type[], not_integer[];

/* The one way in which a shard changes: live, when the record has become durable, and in a replay, for the same
 * record. Depends on nothing but the shard and the change. `r` receives the reply; NULL: nobody waits for one. */
void apply(shard *s, const change *c, result *r);

shard *shard_new(server *srv, uint32_t index, const char *dir);
void shard_free(shard *s);
entry *entry_find(shard *s, slice key);
entry *entry_live(shard *s, slice key); /* for readers: also NULL if it has expired by the clock */
void entry_add(shard *s, entry *e);     /* one that entry_detach() took from another shard (a change of cores) */
void entry_detach(shard *s, entry *e); /* leaves the tables and accounts of s; its string is in memory then */
const char *value_bytes(shard *s, value *v); /* in memory or in the file; valid until the shard's next change */
void value_unpin(shard *s, value *v);
void read_string(shard *s, slice key, uint32_t limit, result *r); /* GET: all, or `limit` bytes and a pin */
void read_more(shard *s, value *v, uint32_t at, uint32_t limit, result *r);
bool parse_int64(slice text, int64_t *value); /* as Redis: no spaces, no plus, no leading zeros */
void retire_part(shard *s, dictionary *elements, nodedb_vamana *index); /* takes ownership of both */
bool retire_some(shard *s, size_t things);    /* frees some dropped items; true: more are left */
bool has_retired(const shard *s);
bool sweep_some(core *c);                     /* logs the removal of expired keys; true: more are left */
uint32_t slot_of_key(slice key);
uint32_t core_of_key(const server *srv, slice key);
uint32_t core_of_element(const server *srv, uint64_t set_id, slice name);

/* ---- spill.c: cold values in the overflow file ------------------------------------------------------------------- */

size_t spill_some(shard *s, size_t bytes); /* spills about so many cold bytes; returns how many */
void restore_some(shard *s, size_t bytes);
void spill_maintain(shard *s);           /* asks the governor whether to spill or restore, and does it */
void spill_trim(shard *s);               /* gives space of the file back: once a second */
void spill_forget(shard *s, value *v);   /* a spilled value is freed */
const char *spill_read(shard *s, const value *v);
void spill_unmap(shard *s);              /* unmaps the pages of the file that were touched */

/* ---- vectorset.c: vector sets ------------------------------------------------------------------------------------ */

/* The home of a vector set is the shard of its key. It knows what the set is and how many elements it has; the elements
 * are spread over the parts. States and transitions stand at the top of vectorset.c. */
typedef enum set_state { SET_ABSENT, SET_CREATING, SET_LIVE, SET_ENDING } set_state;
struct set_home {
    set_home *next; /* in shard.dropping */
    uint64_t set_id, count; /* elements, as the parts have answered */
    uint32_t dim, metric;
    uint32_t pending; /* operations at parts that may change `count` */
    set_state state;  /* LIVE or ENDING: the others have no home */
};

/* What OP_SET_INFO answers: RESULT_DATA with this. RESULT_NULL: no such key. */
typedef struct set_info {
    uint64_t set_id, count;
    uint32_t dim, metric;
} set_info;

/* What OP_SEARCH answers for each element, nearest first; its name follows, if it is there. */
#define NO_NAME UINT32_MAX
typedef struct search_hit {
    float distance;
    uint32_t name_bytes; /* NO_NAME: fetch it with OP_NAME, because all names would be too long */
    uint64_t id;
} search_hit;

/* A name of a vector set. Owned by the part that has its vector: in `elements`, and in `by_id` if it has an index. */
struct element {
    uint32_t hash; /* of its name */
    uint32_t name_bytes;
    uint64_t id;   /* in the index */
    float *vector; /* while the part has no index; then NULL */
    char name[];
};

/* The elements of one vector set that a shard has. Between calls it is in shard.parts; `index` and `elements` have the
 * same ids. */
struct part {
    uint64_t set_id, next_id;
    uint32_t dim, metric;
    nodedb_vamana *index; /* NULL: at most FLAT_ELEMENTS elements, each with its own vector */
    dictionary elements, by_id; /* of element; by_id only with an index */
};

set_home *home_new(shard *s, uint64_t set_id, uint32_t dim, uint32_t metric);
void home_retire(shard *s, set_home *h); /* its key is gone: the parts are notified, step by step */
bool notify_parts_some(core *c);           /* true: more parts are left */
extern const dictionary_kind parts_by_set;
part *part_find(shard *s, uint64_t set_id);
void maintain_parts(shard *s);           /* one step of one index' housekeeping */
part *part_new(shard *s, uint64_t set_id, uint32_t dim, uint32_t metric);
void part_drop(shard *s, part *p);       /* freed step by step */
void part_free_now(shard *s, part *p);
element *part_element(part *p, const shard *s, slice name);
element *element_add(shard *s, part *p, slice name, uint64_t id);
void flat_free(shard *s, float *vector);
bool part_vector(const part *p, const element *x, float *to);
nodedb_status part_add(shard *s, part *p, slice name, const float *vector, bool *is_new, nodedb_error *err);
bool part_remove(shard *s, part *p, slice name);
void apply_add(shard *s, const change *c, result *r);
void apply_remove(shard *s, const change *c, result *r);
void read_search(shard *s, const operation *op, result *r);
void read_vector(shard *s, const operation *op, result *r);
void read_name(shard *s, const operation *op, result *r);
void home_arrival(core *c, operation *op); /* an operation on an element arrives at the set's home ... */
void home_answer(core *c, operation *op);  /* ... and returns there from the part */
void home_not_ended(core *c, const operation *op); /* the log refused its CHANGE_END */
void home_step(core *c, operation *op);    /* it is next: sends it to the part, creates the set, or refuses */

/* ---- store.c: checkpoints ---------------------------------------------------------------------------------------- */

/* A file of frames that is being written: the state of a checkpoint, or what moves from core to core. */
typedef struct frame_file {
    FILE *f;
    buffer scratch; /* one record */
    uint64_t count, bytes;
    int error; /* errno of the first failure; later frames are not written */
    char path[PATH_ROOM + 64];
} frame_file;
nodedb_status frames_begin(frame_file *w, const char *path, uint64_t lsn, nodedb_error *err);
bool frames_put(frame_file *w, const change *c);     /* false: it has failed, and frames_end says why */
nodedb_status frames_end(frame_file *w, bool sync, nodedb_error *err);
/* Applies all of dir/name; `what` names it in progress messages. */
nodedb_status frames_load(shard *s, const char *dir, const char *name, const char *what, uint64_t *lsn,
                          nodedb_error *err);

typedef struct loading {
    shard *s;
    const char *what; /* "the checkpoint", "the log" */
    uint64_t records, said_ms;
    size_t since; /* bytes, since memory was looked at */
} loading;
void loaded(loading *l, size_t bytes, uint64_t done, uint64_t all); /* after one record: makes room, logs progress */
void make_room(shard *s, size_t *since, size_t bytes); /* spills what loading or moving has brought into memory */

nodedb_status shard_save(shard *s, nodedb_error *err);    /* writes a checkpoint, then truncates the log before it */
nodedb_status load_checkpoint(shard *s, nodedb_error *err); /* the newest one, if there is one */
bool checkpoint_due(shard *s);
#define GROUPED_BYTES 32
const char *grouped(uint64_t n, char text[GROUPED_BYTES]); /* "1,234,567" */
const char *path_tail(const char *path);                   /* the end of it that fits into an error message */

/* ---- recovery.c: one shard from its directory, and all of them --------------------------------------------------- */

nodedb_status shard_make(shard *s, nodedb_error *err);    /* a new shard's directory with an empty log, durable */
nodedb_status shard_open_log(shard *s, uint64_t first_lsn, nodedb_error *err);
nodedb_status shard_close_log(shard *s, nodedb_error *err);
nodedb_status shard_recover(shard *s, nodedb_error *err); /* from its directory; its log is open then */
nodedb_status recover_shards(server *srv, shard **shards, uint32_t count, nodedb_error *err);
typedef nodedb_status (*shard_task)(shard *s, nodedb_error *err);
/* Runs the task on all of them, in as many threads as the system allows. Returns the first failure. */
nodedb_status on_shards(shard **shards, uint32_t count, shard_task task, nodedb_error *err);
void note_progress(shard *s, bool sync);
bool reserve_give_up(shard *s, bool all); /* all: FLUSHALL's share as well. True: space was freed */
void reserve_take(shard *s);                              /* allocates it again, if there is space */
void reserve_put_back(shard *s);                          /* at once, if giving it up did not help */

/* ---- directory.c: the data directory ----------------------------------------------------------------------------- */

nodedb_status open_data(server *srv, nodedb_error *err);  /* srv->shards, recovered, and srv->owner */
nodedb_status make_shards(server *srv, shard **shards, uint32_t count, uint64_t generation, nodedb_error *err);
int sync_path(const char *path);                          /* 0 or errno */
void remove_tree(const char *path);
int list_names(const char *dir, void (*visit)(void *ctx, const char *name), void *ctx); /* 0 or errno */

/* ---- cores.c: another number of cores ---------------------------------------------------------------------------- */

void assign_slots(uint8_t *owner, uint32_t cores);          /* changes as few owners as it can */
/* srv->shards, `old` of them, recovered, become srv->cores shards in the directories of `generation`, each with a
 * checkpoint and without an open log; srv->owner says the new owners. After a failure they cannot be used. */
nodedb_status change_cores(server *srv, uint32_t old, uint64_t generation, nodedb_error *err);

/* ---- operation.c: one step on one shard -------------------------------------------------------------------------- */

typedef enum operation_kind {
    OP_CHANGE, /* logs `change`, and applies it when it is durable */
    OP_GET, OP_MORE, OP_EXISTS, OP_TTL, OP_TYPE, OP_SCAN, OP_COUNT, OP_STATS, OP_SET_INFO,
    OP_VECTOR, OP_ISMEMBER, OP_SEARCH, OP_NAME, OP_SAVE, OP_PREPARE, OP_PANIC
} operation_kind;

/* Where an operation on an element of a vector set is. */
typedef enum operation_stage { STAGE_SHARD, STAGE_HOME, STAGE_PART, STAGE_ANSWER } operation_stage;

/* Made by the core of the connection (its origin), handed from core to core, owned by one at a time; it comes back to
 * its request, or is freed where it ends if it has none. */
struct operation {
    operation *next;
    request *req;          /* NULL: no request waits for it */
    uint16_t origin;
    uint8_t kind, stage;
    uint32_t number;       /* which of its request's operations it is */
    /* what is asked */
    slice key;             /* of a key; the home's key for what concerns an element */
    slice element;
    change change;         /* OP_CHANGE */
    union {
        struct { uint32_t limit, at; value *pinned; } get;           /* OP_GET, OP_MORE */
        struct { uint64_t cursor; uint32_t count; slice match; bool has_match; int type; } scan; /* type -1: all */
        struct { uint64_t set_id; uint32_t k, beam; bool truth; const float *vector; uint32_t dim; } search;
        struct { uint64_t set_id, id; float distance; } name; /* OP_NAME: of the element that has this id in its part */
        struct { uint64_t set_id; bool raw; } vector;                /* OP_VECTOR, OP_ISMEMBER */
        struct { size_t bytes; bool undo; } prepare;                 /* OP_PREPARE; undo: gives them back */
    } u;
    bool same_metric;      /* VADD with XDISTANCE_METRIC: the set must have it */
    /* the answer */
    result result;
    /* on its way through the log */
    bool logged;           /* has a record */
    bool creating;         /* a VADD that logs the creation of its set first (SET_CREATING) */
    bool counted;          /* in its home's `pending` */
    bool emptied;          /* its set has no element left: in its turn it logs CHANGE_END */
    bool ending;           /* its set has lost its last element: CHANGE_END is its change (SET_ENDING) */
    bool prepared;         /* its memory is in core.prepared_bytes ... */
    bool promised;         /* ... and reserved for it: it cannot be refused any more */
    bool in_records;       /* counted in its bucket's `records` */
    uint16_t bucket;       /* 1 + its bucket in core.buckets, 0: none */
    uint64_t logged_ms;    /* its record's time */
    uint64_t lsn;          /* it is applied when this is durable. Without a record: the one before it */
    size_t reserved;       /* bytes granted by the governor before the record was logged */
    uint64_t fault_id;     /* for the fault guard: the same question, the same id */
    uint64_t set_id;       /* of the set that it concerns, after its home has answered */
    char *owned_key;       /* an operation without a request keeps its own */
};

typedef struct operation_list { operation *head, *tail; } operation_list;

operation *operation_new(core *c, request *req, operation_kind kind);
void operation_free(operation *op);
void operation_send(core *c, operation *op, uint32_t to); /* runs it there; at once if `to` is this core */
void operation_run(core *c, operation *op);               /* it has arrived */
void operation_finish(core *c, operation *op);            /* back to its request */
void operation_fail(core *c, operation *op, const char *format, ...) __attribute__((format(printf, 3, 4)));
void operation_log(core *c, operation *op);  /* appends its record, or queues it behind records under way */
size_t change_cost(const change *c);         /* memory that it may take: reserved before it is logged */
void read_now(core *c, operation *op);       /* read.c: answers a question from the shard */
void operation_leave(core *c, operation *op); /* to another core: what it counted for here ... */
void operation_arrive(core *c, operation *op); /* ... counts there */
bool home_is_quiet(const core *c, slice key); /* no record or operation of this key is under way here */
bool home_has_waiters(const core *c, slice key); /* operations on elements of this very set are queued */
bool set_will_exist(const core *c, slice key, bool is_there); /* after everything under way is applied */
size_t pump_log(core *c);                    /* appends waiting changes, applies durable ones, submits a group */
void outbox_send(core *c, uint32_t to, int kind, uint32_t number, void *pointer);
size_t outbox_flush(core *c);
void turn_begin(core *c);  /* of one kind of work ... */
bool turn_over(const core *c);
size_t run_slow(core *c);  /* searches, until the turn is over */

/* ---- resp.c: the protocol, no sockets ---------------------------------------------------------------------------- */

typedef struct argument_at { uint32_t at, bytes; } argument_at; /* at: from the start of the frame */

/* One command as it comes in. It keeps its position, so each byte is read once. Zeroed: at the beginning. */
typedef struct parser {
    size_t at;         /* bytes of the frame that are parsed */
    size_t needs;      /* least length of the frame that is known so far */
    int64_t wanted;    /* arguments; 0: its first line has not been read, -1: an inline command */
    int64_t bulk;      /* bytes of the argument being received; -1: its length comes first */
    size_t seen;       /* the line being received does not end before this */
    argument_at *args; /* stb_ds array */
    size_t *counter;   /* if not NULL: that array's bytes count there */
    char wrong_text[48];
} parser;
typedef enum parse_result { PARSE_MORE, PARSE_READY, PARSE_BAD } parse_result;
/* `frame`: all of the frame that is there, from its beginning. READY: it is p->at bytes long, and p->args are its
 * arguments (none for an empty line). BAD: *wrong says why. */
parse_result parser_feed(parser *p, const char *frame, size_t bytes, const char **wrong);
void parser_reset(parser *p); /* for the next frame; a large array is freed */
void parser_free(parser *p);  /* no frame follows */
size_t parser_bytes(const parser *p); /* of memory */

void reply_integer(buffer *b, int64_t n);
void reply_array(buffer *b, int64_t n);
void reply_map(buffer *b, int resp, int64_t pairs);
void reply_bulk(buffer *b, const void *bytes, size_t n);
void reply_bulk_head(buffer *b, int64_t n);            /* "$n": the bytes and CR LF follow */
void reply_bulk_text(buffer *b, const char *text);
void reply_null(buffer *b, int resp);
void reply_ok(buffer *b);
void reply_bool(buffer *b, int resp, bool value);
void reply_double(buffer *b, int resp, double value);
/* One line, whatever is in the text; cut where it is too long. */
void reply_error(buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void reply_result(buffer *b, int resp, const result *r); /* the plain form of each kind; BULK: what there is of it */

/* ---- request.c: a command under way ------------------------------------------------------------------------------ */

enum {
    COMMAND_READ = 1,    /* waits until the writes of its connection are answered */
    COMMAND_WRITE = 2,   /* changes something, though it may answer an old value: SET ... GET is only this */
    COMMAND_ALONE = 4,   /* several steps: nothing else of its connection meanwhile */
    COMMAND_DATA = 8,    /* refused while another database than 0 is selected */
    COMMAND_NO_AUTH = 16, /* allowed before AUTH */
    COMMAND_REMOVES = 32  /* may end a vector set when its answer comes: other writes wait for that */
};
typedef struct command {
    const char *name;
    int arity; /* as in Redis: with the name; negative: at least */
    int flags;
    void (*run)(core *c, request *req);
} command;

/* Belongs to its connection's core. Its operations are started in windows, by `more`, and their answers are handed to
 * on_answer in the order in which they were started, whatever the order in which they come back. The reply grows as it
 * is sent: a request with a long unsent reply starts no operation. */
struct request {
    request *next;
    connection *conn; /* lives at least as long */
    const command *cmd;
    buffer frame;     /* the arguments' bytes, if they are not behind this struct; freed when it is done */
    size_t counted;   /* bytes of this struct and what belongs to it */
    slice *argv;
    int argc, resp;
    int at;           /* for `more`: the next argument, or core */
    int64_t sum;
    int step;         /* of a command in several steps */
    bool (*more)(core *c, request *req); /* starts one operation; false: there is none left. NULL: none */
    void (*on_answer)(core *c, request *req, operation *op); /* NULL: its result is the reply. Does not free it */
    void (*at_end)(core *c, request *req); /* all are answered: ends the reply, or starts the next step */
    uint32_t started, answered, in_flight;
    operation *early; /* answers that arrived out of order, sorted by number */
    operation *stream; /* a large value that is fetched into the reply in pieces */
    bool stream_idle;  /* no piece of it is under way */
    bool done, running;
    uint32_t window;  /* operations that may be under way; 0: WINDOW */
    bool alone;       /* request_alone() was called, and not yet request_all_started() */
    bool failed;      /* an answer was an error, which is the reply */
    buffer reply;
    size_t noted;     /* bytes of it that are counted in conn->held */
    void *state;      /* of the command; free() ends it */
};

/* With room for the arguments and `bytes` of them behind it. Last in the connection's list. */
request *request_new(core *c, connection *conn, const command *cmd, int argc, size_t bytes);
void request_free(core *c, request *req);
void request_run(core *c, request *req);    /* from the command table */
void request_pump(core *c, request *req);   /* starts what may be started, ends it when all is answered */
void request_note(request *req);            /* its reply has grown, or was moved to the output */
void request_count(core *c, request *req, size_t bytes); /* adds to its memory, modulo 2^64 */
void request_answer(core *c, operation *op); /* one of its operations is back */
/* One operation on the shard of `key`: what most commands are. */
operation *request_start(core *c, request *req, operation_kind kind, slice key);
void request_send(core *c, request *req, operation *op, uint32_t to);
void request_change(core *c, request *req, const change *ch); /* OP_CHANGE on the shard of its key */
void request_everywhere(core *c, request *req, operation_kind kind); /* one on each core, in their order */
/* An operation on an element, for the home of its set: made, not sent. */
operation *request_at_home(core *c, request *req, operation_kind kind, slice key, slice element);
void request_put_value(core *c, request *req, operation *op); /* BULK, NULL or ERROR; the rest of a large one follows */
bool request_fail(request *req, const char *text);           /* false */
bool is_word(slice a, const char *word);                     /* whatever the case */
bool key_fits(request *req, slice key);                      /* else the reply says that it is too long */

/* ---- commands/: what a command means ----------------------------------------------------------------------------- */

/* several.c: what commands have in common */
void read_key(core *c, request *req, operation_kind kind);    /* of argv[1]; its result is the reply */
void write_key(core *c, request *req, const change *ch);      /* its result is the reply */
bool keys_fit(request *req, int step);                        /* argv[1], and each `step` on */
void *request_state(core *c, request *req, size_t bytes);     /* makes req->state: zeroed, and counted */
void request_alone(request *req);             /* its connection starts no other command before request_all_started() */
void request_all_started(core *c, request *req);
bool answer_failed(request *req, const operation *op);        /* the first error becomes the reply */
void answer_sum(core *c, request *req, operation *op);        /* on_answer: integers add up ... */
void end_sum(core *c, request *req);                          /* ... at_end: and are the reply */
void answer_ok(core *c, request *req, operation *op);         /* on_answer: only errors matter ... */
void end_ok(core *c, request *req);                           /* ... at_end: OK if there was none */
/* All or nothing on several cores: each of those asked must grant the bytes, then `then` begins the changes. If one
 * refuses, its error is the reply, and what the others granted is given back. */
typedef struct preparation {
    size_t bytes[MAX_CORES];
    bool asked[MAX_CORES], granted[MAX_CORES];
    uint32_t next;                            /* the core whose answer is next; cores that were not asked are skipped */
    void (*then)(core *c, request *req);
} preparation;
preparation *preparation_new(core *c, request *req);          /* it is req->state */
void preparation_ask(core *c, request *req, void (*then)(core *c, request *req));

/* keys.c. A time as text becomes milliseconds of the wall clock, at least 1; `seconds`, `absolute`: what it is in. */
bool parse_expiry(request *req, slice number, bool seconds, bool absolute, uint64_t *at_ms);

/* table.c */
extern const char syntax_error[];
void reply_wrong_count(request *req);                         /* of arguments */
extern const command commands[];
extern const size_t command_count;
const command *command_find(slice name);

/* ---- net.c: connections ------------------------------------------------------------------------------------------ */

/* One client's socket. Touched by its core alone. Freed when its socket is closed and no request of it is left. */
struct connection {
    connection *next, *previous, *next_dirty;
    core *core;
    int fd;            /* -1: the client has disconnected; its commands continue, replies are discarded */
    uint64_t id;
    uint32_t events;   /* that epoll waits for */
    int resp;
    buffer in;         /* an incomplete frame and the bytes behind it; else freed */
    size_t in_at;      /* where that frame starts */
    bool framed;       /* it is complete and parsed, and waits for its turn */
    parser parser;
    buffer out;
    size_t out_at;     /* bytes of it that are sent */
    request *head, *tail;
    uint32_t requests, writes, removals; /* under way */
    uint32_t operations; /* of all requests, whose answers are not in a reply yet */
    size_t long_frames; /* bytes of the frames of its requests that are not done */
    size_t held;       /* bytes of replies that are not in `out` yet */
    size_t kept;       /* request.counted of all its requests */
    bool alone;        /* a COMMAND_ALONE is under way */
    bool dirty;        /* in core.dirty */
    bool closing;      /* closes when its replies are sent; no command is read */
    bool draining;     /* they are sent; input is discarded, so that the client can read them */
    bool stalled;      /* a command has arrived and must wait */
    bool eof;          /* the client sends nothing more; it may still want its replies */
    bool authenticated, other_database;
    uint64_t active_ms;
    char name[64];
};

void connection_adopt(core *c, int fd);
void connection_close(core *c, connection *conn);
void connection_event(core *c, connection *conn, uint32_t events);
void mark_dirty(core *c, connection *conn);
size_t flush_dirty(core *c);    /* sends replies, continues waiting commands */
void accept_some(core *c);
void net_report_memory(core *c);  /* reports to the governor what clients hold */
void net_maintain(core *c);     /* timeouts, the greediest client, accepting again */
void net_close_all(core *c);
bool reply_may_grow(const request *req); /* false: the client has to read some of it first */
bool bind_is_allowed(const server *srv); /* false: it prints why not */
int listen_on(server *srv);
extern char tag_ring, tag_log, tag_listen; /* epoll data of what is no connection: only the addresses matter */

/* ---- nodedb.c: the runtime --------------------------------------------------------------------------------------- */

/* What a ring carries from core to core: a pointer, which the receiver owns from then on. */
typedef struct message {
    uint32_t kind, number;
    void *pointer;
} message;
enum { MESSAGE_RUN, MESSAGE_DONE, MESSAGE_CONNECTION };

/* One pinned thread and all that it owns. Only that thread touches it. */
struct core {
    uint32_t index;
    server *server;
    shard *shard;
    nodedb_tpc_core *tpc;
    int epoll;
    struct epoll_event events[256];
    int ready;                  /* events that the wait hook found and poll has not handled */
    message *outbox[MAX_CORES]; /* messages that did not fit into a ring, in order */
    operation_list waiting;     /* writes that are not in the log yet, because all its groups are in flight */
    operation_list committing;  /* in the log, or queued behind a record; applied in this order */
    struct { uint32_t all, records; } buckets[HOME_BUCKETS]; /* operations in the two lists, by hash of key */
    uint32_t all_keys;          /* of these, how many concern all keys (FLUSH) */
    size_t prepared_bytes;      /* granted to changes that have not arrived yet (OP_PREPARE) */
    operation_list slow;        /* searches that wait for their turn */
    connection *first, *dirty, *dirty_last;
    bool under_pressure;        /* its clients hold much of their limit */
    bool ending;                /* its connections have been closed, as the server stops */
    size_t in_flight;           /* operations of its requests, here or at other cores */
    uint64_t turn_ends_ns;      /* of the work that is being done */
    uint32_t clients, next_core;
    uint32_t turn_operations;   /* that may still be started in this turn */
    bool accepting_paused;
    uint64_t next_client_id, commands, accepted, oom_refused, clients_refused;
    size_t client_bytes, client_bytes_reported; /* of connections, requests, operations; as last reported */
    uint64_t clients_looked_ms;
    uint64_t next_save_ms;      /* no automatic checkpoint before this time */
    uint64_t second_ms;         /* when the once-a-second work was last done */
    uint64_t wall_seen[4];      /* the wall clock of the last four quarters of a second */
    uint64_t quarter_ms, quarters;
    char *scratch;              /* READ_BYTES: what sockets are read into */
    buffer encoded;             /* a record on its way to the log */
    nodedb_prefetch_faults faults;
    bool faults_counted;
};

/* What OP_STATS answers: a copy of one core's numbers, for INFO. */
typedef struct shard_stats {
    uint64_t keys, expiring, spilled_count, spilled_bytes, overflow_bytes, overflow_disk, clients, commands, accepted,
        replayed, checkpoint_lsn, applied_lsn, saves, oom_refused, clients_refused, client_bytes, vectors, sets;
    nodedb_wal_stats wal;
    uint64_t major_faults;
    char log[160], prefetch[32];
} shard_stats;

/* The process. Written before the cores start and after they have ended; while they run it is only read, except for the
 * fields that say "atomic" and those behind said_lock. */
struct server {
    char dir[PATH_MAX - 128];
    char bind[64];
    char password[256]; /* "": none */
    int port, listen_fd;
    uint32_t cores;
    size_t memory_bytes, client_limit_bytes; /* the clients' limit is a part of it, for all of them together */
    uint64_t log_limit_bytes;
    uint32_t timeout_s; /* idle clients are closed; 0: never. Set by CONFIG SET while cores run: atomic */
    uint32_t clients, clients_max; /* sockets of all cores (atomic), and their limit by descriptors */
    bool durable_always, debug, unprotected, force_empty;
    uint64_t generation, hash_seed, started_ms; /* started: steady */
    uint8_t owner[SLOTS]; /* which core has a slot */
    nodedb_mem *mem;
    nodedb_tpc *runtime;
    nodedb_logger logger;
    pthread_mutex_t said_lock;
    uint64_t said[32]; /* hashes of printed warnings: two cores may log the same one */
    uint32_t said_count;
    int making_room;   /* cores using the space of their reserve; the others append nothing. Atomic */
    bool timer_stop;   /* stops the thread that submits the logs' groups in interval mode: atomic */
    shard *shards[MAX_CORES];
    core *core[MAX_CORES];
};

int parse_options(server *srv, int argc, char **argv); /* 0: go on; else the exit status + 1 */
void say(void *ctx, nodedb_log_level level, const char *sentence); /* the logger: to stderr */

#endif
