/* A store on the log: a table of counters in memory. Threads commit changes to the log, and one follower applies what
 * is durable to the table, in the order of the log. A restart reads the same records the same way. At the end a
 * checkpoint record holds the table, and the segments before it are truncated.
 *     cc -o example_wal examples/wal.c -luring -lpthread && ./example_wal [DIRECTORY]
 * Start it again with the same directory, and it goes on counting. */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNTERS = 2, CHANGES = 3 };

typedef struct change {
    uint32_t counter;
    int32_t by;
} change;

static nodedb_wal *wal;
static int64_t table[COUNTERS]; /* the follower's while it runs */

static void die(const nodedb_error *why) {
    fprintf(stderr, "%s\n", why->message);
    exit(1);
}

/* Blocks until the record is on the disk. Threads that commit at the same time share one write. */
static uint64_t commit(uint16_t type, const void *payload, uint32_t bytes) {
    nodedb_wal_record record;
    nodedb_error err;
    uint64_t lsn;
    memset(&record, 0, sizeof record);
    record.type = type, record.payload = payload, record.payload_bytes = bytes;
    if (nodedb_wal_commit(wal, &record, 1, &lsn, &err) != NODEDB_OK) die(&err);
    return lsn;
}

static void *clerk(void *counter) {
    for (int i = 1; i <= CHANGES; i++) {
        change c = {*(uint32_t *)counter, i};
        (void)commit(NODEDB_WAL_TYPE_USER, &c, sizeof c);
    }
    return NULL;
}

/* The one path for every change. What comes from a file is checked. */
static void apply(const nodedb_wal_record *record) {
    change c;
    if (record->type == NODEDB_WAL_TYPE_CHECKPOINT && record->payload_bytes == sizeof table)
        memcpy(table, record->payload, sizeof table);
    if (record->type != NODEDB_WAL_TYPE_USER || record->payload_bytes != sizeof c) return;
    memcpy(&c, record->payload, sizeof c);
    if (c.counter < COUNTERS) table[c.counter] += c.by;
}

/* Reads what was there, then what becomes durable. Sleeps where there is nothing, until sleeping is cancelled. */
static void *follow(void *dir) {
    static nodedb_wal_reader_config config; /* zero: the defaults */
    nodedb_wal_reader *reader;
    nodedb_wal_record record;
    nodedb_wal_cursor next;
    nodedb_error err;
    nodedb_status status;
    config.dir = (const char *)dir, config.follow = wal;
    if ((reader = nodedb_wal_reader_open(&config, &err)) == NULL) die(&err);
    do {
        while ((status = nodedb_wal_reader_next(reader, &record, &err)) == NODEDB_OK) apply(&record);
        if (status != NODEDB_ERR_AGAIN) die(&err);
        nodedb_wal_reader_tell(reader, &next);
        status = nodedb_wal_await(wal, next.lsn, UINT64_C(60000000000), &err); /* a minute */
    } while (status == NODEDB_OK || status == NODEDB_ERR_TIMEOUT);
    if (status != NODEDB_ERR_CANCELLED) die(&err);
    nodedb_wal_reader_close(reader);
    return NULL;
}

int main(int argc, char **argv) {
    static nodedb_wal_config config;
    nodedb_error err;
    uint64_t lsn;
    uint32_t i, counter[COUNTERS], removed;
    pthread_t clerks[COUNTERS], follower;
    config.dir = argc > 1 ? argv[1] : "example_wal.log";
    config.segment_bytes = 1 << 20; /* each start begins a segment; 1 MiB is enough for so little */
    config.groups = 2, config.group_bytes = 64 << 10; /* half a MiB of memory instead of 8.6 */
    if ((wal = nodedb_wal_open(&config, &err)) == NULL) die(&err);
    pthread_create(&follower, NULL, follow, (void *)(uintptr_t)config.dir);
    for (i = 0; i < COUNTERS; i++) counter[i] = i, pthread_create(&clerks[i], NULL, clerk, &counter[i]);
    for (i = 0; i < COUNTERS; i++) pthread_join(clerks[i], NULL);
    nodedb_wal_cancel_await(wal, true); /* the follower reads all that is durable, and ends instead of sleeping */
    pthread_join(follower, NULL);
    for (i = 0; i < COUNTERS; i++) printf("counter %u is %lld\n", (unsigned)i, (long long)table[i]);
    lsn = commit(NODEDB_WAL_TYPE_CHECKPOINT, table, sizeof table);
    if (nodedb_wal_truncate_before(wal, lsn, &removed, &err) != NODEDB_OK) die(&err);
    printf("truncated %u segments: the log begins with record %llu\n", (unsigned)removed,
           (unsigned long long)nodedb_wal_first_lsn(wal));
    return nodedb_wal_close(wal, &err) == NODEDB_OK ? 0 : 1;
}
