/* A scan in the order of an index: 2,048 records that lie scattered over a mapped file. While the program adds up one
 * batch of records, the disk reads the pages of the next ones, so that it hardly ever waits for a fault. Then it gives
 * the memory back.
 *     cc -o example_prefetch examples/prefetch.c -luring && ./example_prefetch [FILE] */
#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>

enum { RECORD_BYTES = 200, RECORDS = 100000, TABLE_BYTES = RECORD_BYTES * RECORDS };
enum { BATCH = 64, BATCHES = 32, AHEAD = 4 }; /* records of a ticket; tickets of the scan; tickets under way */

static int fail(const char *what) { return fprintf(stderr, "%s\n", what), 1; }

/* Maps a file in which record i starts with the number i. None of it is in memory, if the file system can do that. */
static char *make_table(const char *path) {
    uint32_t record[RECORD_BYTES / sizeof(uint32_t)] = {0};
    FILE *file = fopen(path, "w+b");
    char *table;
    if (file == NULL) return NULL;
    for (record[0] = 0; record[0] < RECORDS; record[0]++) fwrite(record, 1, RECORD_BYTES, file);
    if (fflush(file) != 0) return NULL;
    (void)fsync(fileno(file));
    (void)posix_fadvise(fileno(file), 0, 0, POSIX_FADV_DONTNEED);
    table = (char *)mmap(NULL, TABLE_BYTES, PROT_READ, MAP_SHARED, fileno(file), 0);
    fclose(file);
    if (table == (char *)MAP_FAILED) return NULL;
    (void)madvise(table, TABLE_BYTES, MADV_RANDOM); /* a fault reads its page and no more */
    return table;
}

/* The index: where the records of a batch lie. */
static void look_up(const char *table, uint64_t batch, nodedb_prefetch_range *records) {
    for (uint64_t i = 0; i < BATCH; i++) {
        records[i].start = table + (batch * BATCH + i) * 7919 % RECORDS * RECORD_BYTES;
        records[i].bytes = RECORD_BYTES;
    }
}

/* Adds up all records of the scan, AHEAD tickets ahead of itself. */
static int scan(nodedb_prefetch *prefetch, const char *table, unsigned long long *sum, nodedb_error *err) {
    nodedb_prefetch_range records[BATCH];
    nodedb_prefetch_ticket ticket;
    struct pollfd ready = {nodedb_prefetch_fd(prefetch), POLLIN, 0};
    uint64_t begun = 0, done = 0;
    while (done < BATCHES) {
        for (; begun < BATCHES && begun - done < AHEAD; begun++) {
            look_up(table, begun, records);
            nodedb_status status = nodedb_prefetch_begin(prefetch, records, BATCH, begun, err);
            if (status == NODEDB_ERR_AGAIN) break; /* the queue is full: reap first */
            if (status != NODEDB_OK) return fail(err->message);
        }
        if (nodedb_prefetch_reap(prefetch, &ticket, 1) == 0) {
            (void)poll(&ready, 1, -1); /* a server would wait for its sockets as well */
            continue;
        }
        if (ticket.status != NODEDB_OK) return fail(nodedb_status_text(ticket.status));
        look_up(table, ticket.tag, records);
        for (int i = 0; i < BATCH; i++) *sum += *(const uint32_t *)records[i].start;
        done++;
    }
    return 0;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "example_prefetch.tmp";
    char *table = make_table(path);
    nodedb_prefetch_faults_config at_once;
    nodedb_prefetch_faults faults;
    nodedb_prefetch_stats one, all;
    unsigned long long sum = 0;
    nodedb_error err;
    nodedb_prefetch *prefetch = nodedb_prefetch_create(NULL, &err);
    (void)remove(path);
    if (table == NULL) return fail("cannot make the table");
    if (prefetch == NULL) return fail(err.message);

    memset(&at_once, 0, sizeof at_once), at_once.interval_ns = 1; /* each tick closes an interval */
    if (nodedb_prefetch_faults_start(&faults, &at_once, &err) != NODEDB_OK) return fail(err.message);
    if (scan(prefetch, table, &sum, &err) != 0) return 1;
    (void)nodedb_prefetch_faults_tick(&faults, false, NULL);
    printf("%d records add up to %llu\n", BATCH * BATCHES, sum);
    printf("the scan had %llu major page faults\n", (unsigned long long)faults.interval_major);

    /* A record shares its pages with its neighbours, so nothing is released. The table has its pages for itself. */
    if (nodedb_prefetch_release(prefetch, table + RECORD_BYTES, RECORD_BYTES, NODEDB_PREFETCH_DROP, &err) != NODEDB_OK)
        return fail(err.message);
    (void)nodedb_prefetch_get_stats(prefetch, &one, NULL);
    if (nodedb_prefetch_release(prefetch, table, TABLE_BYTES, NODEDB_PREFETCH_DROP, &err) != NODEDB_OK)
        return fail(err.message);
    (void)nodedb_prefetch_get_stats(prefetch, &all, NULL);
    printf("one record covers no whole page: %llu pages released\n", (unsigned long long)one.pages_released);
    printf("the table: %llu pages released\n", (unsigned long long)(all.pages_released - one.pages_released));
    printf("record 7 still holds %u\n", (unsigned)*(const uint32_t *)(table + 7 * RECORD_BYTES));
    nodedb_prefetch_destroy(prefetch);
    return 0;
}
