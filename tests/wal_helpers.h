/* What several test programs of nodedb_wal.h need: records whose number determines them, logs in the test's directory
 * and on a simulated disk. Include it behind the implementation and test.h. */
#ifndef NODEDB_WAL_HELPERS_H
#define NODEDB_WAL_HELPERS_H
#include "simdisk.h"
#include "simring.h"
#include <sys/wait.h>

static bool simring_wanted; /* lives on the simulated disk are written asynchronously */

/* Record n has a content that n determines: 1 to ~max bytes. */
static inline uint32_t content_of(uint64_t n, unsigned char *to, uint32_t max) {
    uint64_t state = n * 77 + 5;
    uint32_t bytes = (uint32_t)(test_random(&state) % max) + 1, i;
    for (i = 0; i < bytes; i++) to[i] = (unsigned char)(n * 31 + i * 7 + (i >> 8));
    return bytes;
}

static inline nodedb_wal_record record_of(uint64_t n, unsigned char *buffer, uint32_t max) {
    nodedb_wal_record record;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER;
    record.tenant = (uint32_t)n;
    record.vshard = 7;
    record.database = n << 32;
    record.payload_bytes = content_of(n, buffer, max);
    record.payload = buffer;
    return record;
}

static inline bool is_record(const nodedb_wal_record *record, uint64_t n, uint32_t max) {
    static __thread unsigned char buffer[1 << 17];
    uint32_t bytes = content_of(n, buffer, max);
    return record->payload_bytes == bytes && memcmp(record->payload, buffer, bytes) == 0 &&
           record->tenant == (uint32_t)n && record->database == n << 32;
}

typedef struct counting {
    uint64_t next, count, stop_at;
    uint32_t max;
    bool wrong;
} counting;

static inline nodedb_status count_record(void *ctx, const nodedb_wal_record *record) {
    counting *c = (counting *)ctx;
    if (c->next == 0) c->next = record->lsn;
    if (record->lsn != c->next || !is_record(record, record->lsn, c->max)) c->wrong = true;
    c->next++, c->count++;
    return c->stop_at != 0 && record->lsn == c->stop_at ? NODEDB_ERR_CANCELLED : NODEDB_OK;
}

static char log_dir[600];
static inline nodedb_wal_config config_here(const char *name) {
    nodedb_wal_config config;
    memset(&config, 0, sizeof config);
    snprintf(log_dir, sizeof log_dir, "%s/%s", test_dir(), name);
    config.dir = log_dir;
    config.segment_bytes = 256 << 10;
    config.group_bytes = 32 << 10;
    return config;
}

static inline nodedb_wal_reader_config reading_here(void) {
    nodedb_wal_reader_config reading;
    memset(&reading, 0, sizeof reading);
    reading.dir = log_dir;
    return reading;
}

/* Commits records from..to (their number is their LSN). */
static inline bool commit_range(nodedb_wal *wal, uint64_t from, uint64_t to, uint32_t max) {
    static unsigned char buffer[1 << 17];
    nodedb_error err;
    uint64_t n, lsn;
    for (n = from; n <= to; n++) {
        nodedb_wal_record record = record_of(n, buffer, max);
        if (nodedb_wal_commit(wal, &record, 1, &lsn, &err) != NODEDB_OK || lsn != n) {
            fprintf(stderr, "commit %llu: %s\n", (unsigned long long)n, err.message);
            return false;
        }
    }
    return true;
}

/* The same with few waits: for tests that need many records. */
static inline bool append_range(nodedb_wal *wal, uint64_t from, uint64_t to, uint32_t max) {
    static unsigned char buffer[1 << 17];
    nodedb_error err;
    uint64_t n, lsn;
    for (n = from; n <= to; n++) {
        nodedb_wal_record record = record_of(n, buffer, max);
        nodedb_status status;
        while ((status = nodedb_wal_append(wal, &record, &lsn, &err)) == NODEDB_ERR_AGAIN)
            if (nodedb_wal_wait(wal, nodedb_wal_durable_lsn(wal) + 1, &err) != NODEDB_OK) return false;
        if (status != NODEDB_OK || lsn != n) return false;
    }
    return nodedb_wal_wait(wal, to, &err) == NODEDB_OK;
}

static inline counting replay_all(uint64_t from, uint32_t max, nodedb_status want) {
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    counting c;
    nodedb_status status;
    memset(&c, 0, sizeof c);
    memset(&err, 0, sizeof err);
    c.max = max;
    reading.from_lsn = from;
    status = nodedb_wal_replay(&reading, count_record, &c, NULL, &err);
    if (status != want) test_fail(__FILE__, __LINE__, err.message);
    CHECK(!c.wrong);
    return c;
}

/* Appends what a later version may write, and this one refuses to: a record, or a transaction, of an unknown type. */
static inline nodedb_status append_from_the_future(nodedb_wal *wal, const nodedb_wal_record *record,
                                                   const nodedb_wal_record *parts, size_t count, uint64_t *lsn) {
    nodedb_error err;
    nodedb_status status;
    (void)pthread_mutex_lock(&wal->lock);
    while ((status = nodedb_wal__append_parts(wal, record, parts, count, 0, lsn, &err)) == NODEDB_ERR_AGAIN)
        nodedb_wal__wait_for_space(wal);
    nodedb_wal__unlock(wal);
    return status;
}

/* Overwrites bytes of a file of the log. */
static inline void poke(const char *file, uint64_t offset, const void *bytes, size_t count) {
    char path[700];
    int fd;
    snprintf(path, sizeof path, "%s/%s", log_dir, file);
    fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, bytes, count, (off_t)offset) == (ssize_t)count);
    close(fd);
}

/* A log whose writer died: its last records are acknowledged, but nothing was closed in order. */
static inline void crashed_log(const nodedb_wal_config *config, uint64_t records, uint32_t max) {
    pid_t child = fork();
    if (child == 0) {
        nodedb_wal *wal = nodedb_wal_open(config, NULL);
        _exit(wal != NULL && commit_range(wal, 1, records, max) ? 0 : 1);
    } else {
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

/* The log in memory on a simulated disk: fast enough to try every bit. */
static inline nodedb_wal_config sim_config(sim_disk *disk) {
    nodedb_wal_config config;
    memset(&config, 0, sizeof config);
    config.dir = "d";
    config.io = disk->io;
    config.segment_bytes = 64 << 10;
    config.group_bytes = 8 << 10;
    config.groups = 4;
    config.log_id = 99;
    snprintf(log_dir, sizeof log_dir, "d");
    return config;
}

static inline nodedb_status sim_replay(sim_disk *disk, counting *c, uint64_t from, uint32_t max, nodedb_error *err) {
    nodedb_wal_reader_config reading;
    memset(&reading, 0, sizeof reading);
    memset(c, 0, sizeof *c);
    reading.dir = "d", reading.io = disk->io, reading.from_lsn = from;
    c->max = max;
    return nodedb_wal_replay(&reading, count_record, c, NULL, err);
}

/* A short life of a log: opens, writes, waits, truncates. Returns the highest LSN that was acknowledged to it. */
static inline uint64_t live_a_while(sim_disk *disk, const nodedb_wal_config *config, uint64_t acknowledged,
                                    uint64_t *state, bool *refused) {
    static unsigned char buffer[20000];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    int steps = (int)(test_random(state) % 60) + 5;
    (void)disk;
    *refused = wal == NULL && err.status == NODEDB_ERR_CORRUPT;
    if (*refused) fprintf(stderr, "seed %llu: %s\n", (unsigned long long)test_seed, err.message);
    if (wal == NULL) return acknowledged;
    if (simring_wanted) simring_install(wal);
    if (nodedb_wal_last_lsn(wal) < acknowledged) *refused = true;
    while (steps-- > 0) {
        uint64_t choice = test_random(state) % 16, n = nodedb_wal_last_lsn(wal) + 1;
        if (choice < 9) {
            nodedb_wal_record record = record_of(n, buffer, n % 13 == 0 ? 12000 : 700);
            (void)nodedb_wal_append(wal, &record, NULL, &err);
        } else if (choice < 11) (void)nodedb_wal_submit(wal, &err);
        else if (choice < 14) (void)nodedb_wal_poll(wal, NULL, &err);
        else if (choice < 15 || n < 3) (void)nodedb_wal_wait(wal, n - 1, &err);
        else if (test_random(state) % 4 == 0) (void)nodedb_wal_truncate_before(wal, n, NULL, &err);
        else (void)nodedb_wal_truncate_before(wal, n - 1 > 40 ? n - 1 - 40 : 0, NULL, &err);
        if (nodedb_wal_durable_lsn(wal) > acknowledged) acknowledged = nodedb_wal_durable_lsn(wal);
    }
    if (test_random(state) % 3 == 0) { /* every close in order is an acknowledgement of everything */
        uint64_t last = nodedb_wal_last_lsn(wal);
        if (nodedb_wal_close(wal, &err) == NODEDB_OK && last > acknowledged) acknowledged = last;
    } else {
        if (nodedb_wal_durable_lsn(wal) > acknowledged) acknowledged = nodedb_wal_durable_lsn(wal);
        nodedb_wal__free(wal); /* dies where it stands */
    }
    return acknowledged;
}

typedef struct sim_check { uint64_t first, last; bool wrong; } sim_check;
static inline nodedb_status check_prefix(void *ctx, const nodedb_wal_record *record) {
    sim_check *c = (sim_check *)ctx;
    if (c->first == 0) c->first = record->lsn;
    if (!is_record(record, record->lsn, record->lsn % 13 == 0 ? 12000 : 700)) c->wrong = true;
    c->last = record->lsn;
    return NODEDB_OK;
}

#endif
