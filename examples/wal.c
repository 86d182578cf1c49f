/* A ledger that survives: two threads commit postings to a log, the log is closed, opened again and replayed. Then
 * a checkpoint record makes the old segments superfluous and they are truncated.
 *     cc -o example_wal examples/wal.c -luring -lpthread && ./example_wal [EMPTY_DIRECTORY] */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"

enum { THREADS = 2, POSTINGS = 3, TEXT_BYTES = 32 };

static nodedb_wal *wal;
static nodedb_wal_config config;
static nodedb_error err;

static void die(const nodedb_error *why) {
    fprintf(stderr, "%s\n", why->message);
    exit(1);
}

/* One thread: what nodedb_wal_commit has returned for is on the disk. Two that commit at once share one write. */
static void *post(void *tenant) {
    int i;
    for (i = 1; i <= POSTINGS; i++) {
        nodedb_wal_record record;
        nodedb_error why;
        char text[TEXT_BYTES];
        memset(&record, 0, sizeof record);
        record.type = NODEDB_WAL_TYPE_USER;
        record.tenant = *(uint32_t *)tenant;
        record.payload = text;
        record.payload_bytes = (uint32_t)snprintf(text, sizeof text, "posting %d of tenant %u", i,
                                                  (unsigned)record.tenant);
        if (nodedb_wal_commit(wal, &record, 1, NULL, &why) != NODEDB_OK) die(&why);
    }
    return NULL;
}

/* The state that the log is about. A tenant's records come back in his order; which tenant was faster is chance. */
typedef struct ledger {
    char text[THREADS][POSTINGS][TEXT_BYTES];
    int postings[THREADS], records;
} ledger;

static nodedb_status apply(void *ctx, const nodedb_wal_record *record) {
    ledger *l = (ledger *)ctx;
    l->records++;
    if (record->type == NODEDB_WAL_TYPE_USER && record->tenant < THREADS && l->postings[record->tenant] < POSTINGS &&
        record->payload_bytes < TEXT_BYTES) /* whoever reads a file checks what it says */
        memcpy(l->text[record->tenant][l->postings[record->tenant]++], record->payload, record->payload_bytes);
    return NODEDB_OK;
}

static ledger replay(void) {
    nodedb_wal_reader_config reading;
    ledger l;
    memset(&l, 0, sizeof l);
    memset(&reading, 0, sizeof reading);
    reading.dir = config.dir;
    if (nodedb_wal_replay(&reading, apply, &l, NULL, &err) != NODEDB_OK) die(&err);
    return l;
}

static void reopen(void) {
    if (nodedb_wal_close(wal, &err) != NODEDB_OK) die(&err);
    wal = nodedb_wal_open(&config, &err);
    if (wal == NULL) die(&err);
}

int main(int argc, char **argv) {
    char fresh[] = "/tmp/example_wal.XXXXXX";
    uint32_t tenants[THREADS], t, removed = 0;
    pthread_t threads[THREADS];
    nodedb_wal_record checkpoint;
    nodedb_wal_stats stats;
    uint64_t lsn;
    ledger l;
    int i;
    config.dir = argc > 1 ? argv[1] : mkdtemp(fresh);
    fprintf(stderr, "the log is in %s; wal_dump shows it\n", config.dir != NULL ? config.dir : "no place");
    config.segment_bytes = 1 << 20; /* small, because this is an example */
    reopen();
    for (t = 0; t < THREADS; t++) tenants[t] = t, pthread_create(&threads[t], NULL, post, &tenants[t]);
    for (t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
    nodedb_wal_get_stats(wal, &stats);
    printf("committed %llu records of %llu bytes with %s one write for each\n", (unsigned long long)stats.records,
           (unsigned long long)stats.payload_bytes, stats.groups <= stats.records ? "at most" : "more than");
    reopen();
    l = replay();
    for (t = 0; t < THREADS; t++)
        for (i = 0; i < l.postings[t]; i++) printf("replayed %s\n", l.text[t][i]);
    printf("replayed %d records\n", l.records);

    memset(&checkpoint, 0, sizeof checkpoint);
    checkpoint.type = NODEDB_WAL_TYPE_CHECKPOINT; /* a real one holds, or points to, the state up to here */
    if (nodedb_wal_commit(wal, &checkpoint, 1, &lsn, &err) != NODEDB_OK ||
        nodedb_wal_truncate_before(wal, lsn, &removed, &err) != NODEDB_OK) die(&err);
    printf("checkpoint is record %llu, truncated %u segment\n", (unsigned long long)lsn, (unsigned)removed);
    printf("replayed %d record\n", replay().records);
    return nodedb_wal_close(wal, &err) == NODEDB_OK ? 0 : 1;
}
