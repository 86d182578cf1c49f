/* The engines that bench_wal commits with, ours apart: RocksDB, SQLite and LMDB, each only where build.sh found it
 * (BENCH_ROCKSDB, BENCH_SQLITE, BENCH_LMDB); without it the engine is there and cannot commit. Included once, by
 * bench_wal.c, behind its `die`. A commit puts 128 bytes under a new key, durable when it returns; the keys are a
 * counter's, the kindest order for all three. What is not said here is the library's default:
 * RocksDB  Put with sync=true, the log in a directory of its own
 * SQLite   WAL mode, synchronous=FULL, a connection and a prepared INSERT for each thread, one INSERT per transaction
 * LMDB     synchronous, one put per transaction */
#include <sys/stat.h>
#if defined(BENCH_ROCKSDB)
#include <rocksdb/c.h>
#endif
#if defined(BENCH_SQLITE)
#include <sqlite3.h>
#include <unistd.h>
#endif
#if defined(BENCH_LMDB)
#include <lmdb.h>
#endif

enum { PEER_KEY_BYTES = 16, PEER_VALUE_BYTES = 112 };

/* How threads commit: `open` before the first commit, in `dir`, which is there and empty; a `session` for each thread,
 * kept for all rounds (NULL: none is needed); `clean_up` after each round, outside of its time. */
typedef struct engine {
    const char *name;
    void (*open)(const char *dir);
    void *(*session)(void);
    void (*commit)(void *session); /* NULL: this engine is not built in */
    void (*clean_up)(void);
    void (*end_session)(void *session);
    void (*close)(void);
    bool slow; /* one commit at a time, whatever the threads: measured in some rounds only */
} engine;

#if defined(BENCH_ROCKSDB) || defined(BENCH_SQLITE) || defined(BENCH_LMDB)
static const unsigned char peer_value[PEER_VALUE_BYTES] = "a value";

/* The next key, in the order of its bytes. */
static void peer_next_key(unsigned char key[PEER_KEY_BYTES]) {
    static uint64_t last;
    uint64_t next = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    int i;
    memset(key, 0, PEER_KEY_BYTES);
    for (i = 0; i < 8; i++) key[i] = (unsigned char)(next >> (56 - 8 * i));
}
#endif

/* ---- RocksDB ----------------------------------------------------------------------------------------------------- */

#if defined(BENCH_ROCKSDB)
static rocksdb_t *rocks;
static rocksdb_options_t *rocks_options;
static rocksdb_writeoptions_t *rocks_writing;

static void rocks_open(const char *path) {
    char log[PATH_MAX_BYTES + 8], *error = NULL;
    (void)snprintf(log, sizeof log, "%s-log", path);
    rocks_options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(rocks_options, 1);
    rocksdb_options_set_wal_dir(rocks_options, log);
    rocks_writing = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(rocks_writing, 1);
    rocks = rocksdb_open(rocks_options, path, &error);
    if (error != NULL) die("rocksdb_open", error);
}

static void rocks_commit(void *session) {
    unsigned char key[PEER_KEY_BYTES];
    char *error = NULL;
    (void)session;
    peer_next_key(key);
    rocksdb_put(rocks, rocks_writing, (const char *)key, sizeof key, (const char *)peer_value, sizeof peer_value,
                &error);
    if (error != NULL) die("rocksdb_put", error);
}

static void rocks_close(void) {
    rocksdb_close(rocks);
    rocksdb_writeoptions_destroy(rocks_writing);
    rocksdb_options_destroy(rocks_options);
}

static const engine rocksdb = {"rocksdb", rocks_open, NULL, rocks_commit, NULL, NULL, rocks_close, false};
#else
static const engine rocksdb = {"rocksdb", NULL, NULL, NULL, NULL, NULL, NULL, false};
#endif

/* ---- SQLite ------------------------------------------------------------------------------------------------------ */

#if defined(BENCH_SQLITE)
typedef struct sqlite_session {
    sqlite3 *db;
    sqlite3_stmt *insert;
} sqlite_session;

enum { SQLITE_SLEEP_US = 5000 };

static char sqlite_path[PATH_MAX_BYTES + 8];

static void sqlite_check(sqlite3 *db, int code, const char *what) {
    if (code != SQLITE_OK && code != SQLITE_DONE) die(what, db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(code));
}

/* Sleeps for some commits' time, what served SQLite best here: with 100 us the waiters take the cores from the one that
 * commits (0.4 of the rate at 8 threads, 0.25 at 64), and sqlite3_busy_timeout sleeps 100 ms at a time, beyond
 * the end of a round of --quick. */
static int sqlite_busy(void *context, int times) {
    (void)context, (void)times;
    (void)usleep(SQLITE_SLEEP_US);
    return 1;
}

static sqlite3 *sqlite_connect(void) {
    sqlite3 *db = NULL;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    sqlite_check(db, sqlite3_open_v2(sqlite_path, &db, flags, NULL), sqlite_path);
    sqlite_check(db, sqlite3_busy_handler(db, sqlite_busy, NULL), "busy handler");
    sqlite_check(db, sqlite3_exec(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", NULL, NULL, NULL), "PRAGMA");
    return db;
}

static void sqlite_open(const char *path) {
    sqlite3 *db;
    (void)snprintf(sqlite_path, sizeof sqlite_path, "%s/db", path);
    db = sqlite_connect();
    sqlite_check(db, sqlite3_exec(db, "CREATE TABLE t(k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID", NULL, NULL, NULL),
                 "CREATE TABLE");
    sqlite_check(db, sqlite3_close(db), "sqlite3_close");
}

static void *sqlite_session_open(void) {
    sqlite_session *s = (sqlite_session *)malloc(sizeof *s);
    if (s == NULL) die("memory", "none");
    s->db = sqlite_connect();
    sqlite_check(s->db, sqlite3_prepare_v2(s->db, "INSERT INTO t VALUES(?, ?)", -1, &s->insert, NULL), "INSERT");
    return s;
}

static void sqlite_commit(void *session) {
    sqlite_session *s = (sqlite_session *)session;
    unsigned char key[PEER_KEY_BYTES];
    int code;
    peer_next_key(key);
    sqlite_check(s->db, sqlite3_bind_blob(s->insert, 1, key, sizeof key, SQLITE_STATIC), "bind");
    sqlite_check(s->db, sqlite3_bind_blob(s->insert, 2, peer_value, sizeof peer_value, SQLITE_STATIC), "bind");
    do { /* it gives up at once, handler or not, where waiting could be a deadlock */
        code = sqlite3_step(s->insert);
        (void)sqlite3_reset(s->insert);
    } while ((code & 0xFF) == SQLITE_BUSY);
    sqlite_check(s->db, code, "INSERT");
}

static void sqlite_session_close(void *session) {
    sqlite_session *s = (sqlite_session *)session;
    (void)sqlite3_finalize(s->insert);
    (void)sqlite3_close(s->db);
    free(s);
}

static const engine sqlite = {"sqlite", sqlite_open, sqlite_session_open, sqlite_commit, NULL, sqlite_session_close,
                              NULL, true};
#else
static const engine sqlite = {"sqlite", NULL, NULL, NULL, NULL, NULL, NULL, true};
#endif

/* ---- LMDB -------------------------------------------------------------------------------------------------------- */

#if defined(BENCH_LMDB)
enum { LMDB_MAP_SHIFT = sizeof(void *) == 8 ? 32 : 28 }; /* address space, more than the longest run fills */

static MDB_env *lmdb_env;
static MDB_dbi lmdb_dbi;

static void lmdb_check(int code, const char *what) {
    if (code != 0) die(what, mdb_strerror(code));
}

static void lmdb_open(const char *path) {
    MDB_txn *txn;
    lmdb_check(mdb_env_create(&lmdb_env), "mdb_env_create");
    lmdb_check(mdb_env_set_mapsize(lmdb_env, (size_t)1 << LMDB_MAP_SHIFT), "mdb_env_set_mapsize");
    lmdb_check(mdb_env_open(lmdb_env, path, 0, 0644), "mdb_env_open");
    lmdb_check(mdb_txn_begin(lmdb_env, NULL, 0, &txn), "mdb_txn_begin");
    lmdb_check(mdb_dbi_open(txn, NULL, 0, &lmdb_dbi), "mdb_dbi_open");
    lmdb_check(mdb_txn_commit(txn), "mdb_txn_commit");
}

static void lmdb_commit(void *session) {
    unsigned char bytes[PEER_KEY_BYTES];
    MDB_val key, value;
    MDB_txn *txn;
    (void)session;
    peer_next_key(bytes);
    key.mv_data = bytes, key.mv_size = sizeof bytes;
    value.mv_data = (void *)(uintptr_t)peer_value, value.mv_size = sizeof peer_value;
    lmdb_check(mdb_txn_begin(lmdb_env, NULL, 0, &txn), "mdb_txn_begin");
    lmdb_check(mdb_put(txn, lmdb_dbi, &key, &value, 0), "mdb_put");
    lmdb_check(mdb_txn_commit(txn), "mdb_txn_commit");
}

static void lmdb_close(void) { mdb_env_close(lmdb_env); }

static const engine lmdb = {"lmdb", lmdb_open, NULL, lmdb_commit, NULL, NULL, lmdb_close, true};
#else
static const engine lmdb = {"lmdb", NULL, NULL, NULL, NULL, NULL, NULL, true};
#endif
