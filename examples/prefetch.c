/* A table of fixed-size records in a mapped file, read at random. Instead of faulting in record after record, the
 * program asks for all the pages that it is going to need, and reads when the ticket says that they are there. Then it
 * gives the memory back.
 *     cc -o example_prefetch examples/prefetch.c -luring && ./example_prefetch [FILE] */
#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>

enum { RECORD_BYTES = 200, RECORDS = 100000, WANTED = 48 };

static void say(void *ctx, nodedb_log_level level, const char *sentence) {
    (void)ctx, (void)level;
    fprintf(stderr, "%s\n", sentence);
}

static int fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    return 1;
}

/* Record i is a row of the number i. Afterwards nothing of the file is in memory, if the file system can do that. */
static char *make_table(const char *path) {
    uint32_t record[RECORD_BYTES / sizeof(uint32_t)];
    char *table;
    FILE *file = fopen(path, "w+b");
    uint32_t i, k;
    int fd;
    if (file == NULL) return NULL;
    for (i = 0; i < RECORDS; i++) {
        for (k = 0; k < RECORD_BYTES / sizeof(uint32_t); k++) record[k] = i;
        fwrite(record, 1, RECORD_BYTES, file);
    }
    if (fflush(file) != 0) return NULL;
    fd = fileno(file);
    (void)fsync(fd);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    table = (char *)mmap(NULL, (size_t)RECORDS * RECORD_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    fclose(file);
    if (table == (char *)MAP_FAILED) return NULL;
    (void)madvise(table, (size_t)RECORDS * RECORD_BYTES, MADV_RANDOM); /* a fault reads its page and no more */
    return table;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "example_prefetch.tmp";
    char *table = make_table(path);
    nodedb_prefetch_config config;
    nodedb_prefetch_faults faults;
    nodedb_prefetch_range wanted[WANTED];
    nodedb_prefetch_ticket ticket;
    nodedb_prefetch_stats stats;
    nodedb_prefetch *prefetch;
    nodedb_error err;
    struct pollfd ready;
    unsigned long long sum = 0;
    uint32_t seventh;
    int i;
    (void)unlink(path);
    if (table == NULL) return fail("cannot make the table");
    memset(&config, 0, sizeof config);
    config.logger.write = say;
    prefetch = nodedb_prefetch_create(&config, &err);
    if (prefetch == NULL) return fail(err.message);
    if (nodedb_prefetch_faults_start(&faults, NULL, &err) != NODEDB_OK) return fail(err.message);

    for (i = 0; i < WANTED; i++) {
        wanted[i].start = table + (size_t)(i / 2 * 4001 + i % 2) * RECORD_BYTES; /* pairs of neighbours */
        wanted[i].bytes = RECORD_BYTES;
    }
    if (nodedb_prefetch_begin(prefetch, wanted, WANTED, 42, &err) != NODEDB_OK) return fail(err.message);
    ready.fd = nodedb_prefetch_fd(prefetch), ready.events = POLLIN; /* a server would serve others meanwhile */
    while (nodedb_prefetch_reap(prefetch, &ticket, 1) == 0) (void)poll(&ready, 1, 1000);
    if (ticket.status != NODEDB_OK) return fail(nodedb_status_text(ticket.status));
    printf("ticket %d is back\n", (int)ticket.tag);
    for (i = 0; i < WANTED; i++) sum += *(const uint32_t *)wanted[i].start;
    printf("%d records add up to %llu\n", WANTED, sum);

    (void)nodedb_prefetch_get_stats(prefetch, &stats, NULL);
    printf("%llu ranges were merged into %llu runs\n", (unsigned long long)stats.ranges_asked,
           (unsigned long long)(stats.ranges_asked - stats.ranges_merged));
    (void)nodedb_prefetch_faults_tick(&faults, false, NULL);
    printf("this thread is %s\n", faults.degraded ? "short of memory" : "well");

    /* Record 1 shares its page with neighbours: it holds no whole page, so nothing happens to them. */
    if (nodedb_prefetch_release(prefetch, wanted[1].start, RECORD_BYTES, NODEDB_PREFETCH_DROP, &err) != NODEDB_OK ||
        nodedb_prefetch_release(prefetch, table, (size_t)RECORDS * RECORD_BYTES, NODEDB_PREFETCH_DROP,
                                &err) != NODEDB_OK)
        return fail(err.message);
    memcpy(&seventh, table + 7 * RECORD_BYTES, sizeof seventh);
    printf("released; record 7 still holds %u\n", (unsigned)seventh);
    nodedb_prefetch_destroy(prefetch);
    return 0;
}
