/* What stands in a log, for a person: its segments, tombstones and records, and whether all that was acknowledged can
 * be read.
 *     cc -o wal_dump examples/wal_dump.c -luring -lpthread
 *     ./wal_dump DIR [--payload N] [--from LSN] [--verify]
 * --payload N   show the first N bytes of each payload (default 32; 0: none)
 * --from LSN    list records from this one on; the verdict is about the whole log all the same
 * --verify      no list of records, only segments and the verdict
 * Takes no lock and writes nothing. In a log that is in use the tail looks torn: it is being written. Has no keys:
 * encrypted records are shown as they are stored, and judged by their checksums.
 * Exit status: 0 all acknowledged records can be read (a torn tail is no fault), 1 they cannot, 2 wrong arguments. */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"

#include <ctype.h>

enum { BYTES_PER_LINE = 16, MAX_NAME_BYTES = 300 };

typedef unsigned long long ull;

/* Segments have names of 20 digits and ".wal", so that the order of names is the order of LSNs. */
static int is_segment(const struct dirent *entry) {
    const char *name = entry->d_name;
    return strlen(name) == 24 && strspn(name, "0123456789") == 20 && strcmp(name + 20, ".wal") == 0;
}

static int is_other(const struct dirent *entry) { return entry->d_name[0] != '.' && !is_segment(entry); }

/* The preamble as section 9 of the manual has it. Decoded here, so that a damaged one can be shown too. */
static void show_segment(const char *dir, const char *name) {
    unsigned char p[NODEDB_WAL_PREAMBLE_BYTES];
    char path[NODEDB_WAL_MAX_DIR_BYTES + MAX_NAME_BYTES];
    struct stat st;
    int fd;
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || pread(fd, p, sizeof p, 0) != (ssize_t)sizeof p) {
        printf("segment %s  its preamble cannot be read\n", name);
    } else {
        bool whole = nodedb_crc32c(0, p, 60) == nodedb_get_u32(p + 60);
        char key[40] = "";
        if (nodedb_get_u32(p + 44) != 0)
            (void)snprintf(key, sizeof key, "  encrypted, key %u", (unsigned)nodedb_get_u32(p + 44));
        printf("segment %s  log %016llx  epoch %llu  first LSN %llu  %llu bytes  blocks of %u  watermark %llu"
               "%s%s%s%s\n", name, (ull)nodedb_get_u64(p + 8), (ull)nodedb_get_u64(p + 16),
               (ull)nodedb_get_u64(p + 24), (ull)nodedb_get_u64(p + 32), (unsigned)nodedb_get_u32(p + 40),
               (ull)nodedb_get_u64(p + 48), key,
               memcmp(p, "WALP", 4) == 0 ? "" : "  NO MAGIC", whole ? "" : "  BAD CRC",
               whole && (uint64_t)st.st_size < nodedb_get_u64(p + 32) ? "  FILE TOO SHORT" : "");
    }
    if (fd >= 0) (void)close(fd);
}

/* The file of tombstones: everything of the collection with a lower LSN is dead. */
static void show_tombstones(const char *dir) {
    unsigned char p[32];
    char path[NODEDB_WAL_MAX_DIR_BYTES + MAX_NAME_BYTES];
    uint32_t i, count;
    int fd;
    (void)snprintf(path, sizeof path, "%s/tombstones", dir);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (pread(fd, p, 32, 0) != 32 || memcmp(p, "WALT", 4) != 0) printf("tombstones  their file cannot be read\n");
    else {
        count = nodedb_get_u32(p + 24);
        printf("tombstones  log %016llx  %u, all up to LSN %llu\n", (ull)nodedb_get_u64(p + 8), (unsigned)count,
               (ull)nodedb_get_u64(p + 16));
        for (i = 0; i < count && pread(fd, p, 24, (off_t)32 + (off_t)i * 24) == 24; i++)
            printf("    below LSN %llu  tenant %u  collection %llu\n", (ull)nodedb_get_u64(p),
                   (unsigned)nodedb_get_u32(p + 16), (ull)nodedb_get_u64(p + 8));
    }
    (void)close(fd);
}

static bool show_files(const char *dir) {
    struct dirent **names;
    int i, n = scandir(dir, &names, is_segment, alphasort);
    if (n < 0) {
        fprintf(stderr, "wal_dump: %s: %s\n", dir, strerror(errno));
        return false;
    }
    for (i = 0; i < n; i++) show_segment(dir, names[i]->d_name), free(names[i]);
    free(names);
    n = scandir(dir, &names, is_other, alphasort);
    for (i = 0; i < n; i++) printf("file    %s\n", names[i]->d_name), free(names[i]);
    if (n >= 0) free(names);
    show_tombstones(dir);
    return true;
}

static const char *type_name(uint16_t type, char *buffer, size_t bytes) {
    static const struct {
        uint16_t type;
        const char *name;
    } names[] = {
        {NODEDB_WAL_TYPE_NOOP, "NOOP"}, {NODEDB_WAL_TYPE_PUT, "PUT"}, {NODEDB_WAL_TYPE_DELETE, "DELETE"},
        {NODEDB_WAL_TYPE_VECTOR_PUT, "VECTOR_PUT"}, {NODEDB_WAL_TYPE_VECTOR_DELETE, "VECTOR_DELETE"},
        {NODEDB_WAL_TYPE_VECTOR_PARAMS, "VECTOR_PARAMS"}, {NODEDB_WAL_TYPE_TRANSACTION, "TRANSACTION"},
        {NODEDB_WAL_TYPE_CHECKPOINT, "CHECKPOINT"}, {NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE, "COLLECTION_TOMBSTONE"},
        {NODEDB_WAL_TYPE_LSN_ANCHOR, "LSN_ANCHOR"},
    };
    const char *required = (type & NODEDB_WAL_REQUIRED) != 0 ? ",REQUIRED" : "";
    unsigned number = type & NODEDB_WAL_TYPE_MASK;
    size_t i;
    (void)snprintf(buffer, bytes, "%s+%u%s", number >= NODEDB_WAL_TYPE_USER ? "USER" : "UNKNOWN",
                   number >= NODEDB_WAL_TYPE_USER ? number - NODEDB_WAL_TYPE_USER : number, required);
    for (i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].type == number) (void)snprintf(buffer, bytes, "%s%s", names[i].name, required);
    return buffer;
}

static void show_parts(const nodedb_wal_record *record) {
    nodedb_wal_transaction tx;
    nodedb_wal_record sub;
    nodedb_error err;
    char type[48];
    if ((record->type & NODEDB_WAL_ENCRYPTED) != 0) return;
    if (nodedb_wal_transaction_open(record, &tx, &err) != NODEDB_OK) printf("    %s\n", err.message);
    while (nodedb_wal_transaction_next(&tx, &sub))
        printf("    %s  tenant %u  vshard %u  database %llu  %u bytes\n", type_name(sub.type, type, sizeof type),
               (unsigned)sub.tenant, (unsigned)sub.vshard, (ull)sub.database, (unsigned)sub.payload_bytes);
}

static void show_payload(const nodedb_wal_record *record, uint64_t most) {
    const unsigned char *p = (const unsigned char *)record->payload;
    uint32_t bytes = record->payload_bytes < most ? record->payload_bytes : (uint32_t)most, at, i;
    for (at = 0; at < bytes; at += BYTES_PER_LINE) {
        printf("    %8u ", (unsigned)at);
        for (i = at; i < at + BYTES_PER_LINE; i++) {
            if (i < bytes) printf(" %02x", p[i]);
            else printf("   ");
        }
        printf("  ");
        for (i = at; i < at + BYTES_PER_LINE && i < bytes; i++) putchar(isprint(p[i]) ? p[i] : '.');
        putchar('\n');
    }
    if (bytes > 0 && bytes < record->payload_bytes)
        printf("    ... %u more\n", (unsigned)(record->payload_bytes - bytes));
}

/* Until the end of the log, or the first thing that is wrong with it: the verdict says what. */
static void show_records(const nodedb_wal_reader_config *reading, uint64_t payload) {
    nodedb_error err;
    nodedb_wal_reader *reader = nodedb_wal_reader_open(reading, &err);
    nodedb_wal_record r;
    nodedb_wal_cursor behind;
    char type[48];
    if (reader == NULL) printf("no records listed: %s\n", err.message);
    while (reader != NULL && nodedb_wal_reader_next(reader, &r, NULL) == NODEDB_OK) {
        uint64_t bytes = NODEDB_WAL_RECORD_HEADER_BYTES + (uint64_t)(r.payload_bytes + 7) / 8 * 8;
        nodedb_wal_reader_tell(reader, &behind);
        printf("lsn %llu  %s  tenant %u  vshard %u  database %llu  %u bytes%s  watermark %llu  at %020llu.wal:%llu\n",
               (ull)r.lsn, type_name(r.type, type, sizeof type), (unsigned)r.tenant, (unsigned)r.vshard,
               (ull)r.database, (unsigned)r.payload_bytes,
               (r.type & NODEDB_WAL_ENCRYPTED) != 0 ? ", encrypted" : "", (ull)r.watermark,
               (ull)behind.segment_first_lsn, (ull)(behind.offset - bytes));
        if ((r.type & NODEDB_WAL_TYPE_MASK) == NODEDB_WAL_TYPE_TRANSACTION) show_parts(&r);
        show_payload(&r, payload);
    }
    nodedb_wal_reader_close(reader);
}

static int show_verdict(nodedb_wal_reader_config reading) {
    nodedb_wal_report report;
    nodedb_error err;
    nodedb_status status;
    reading.from_lsn = 0;
    status = nodedb_wal_verify(&reading, &report, &err);
    printf("read %llu records, %llu payload bytes, LSN %llu to %llu, in %llu segments\n", (ull)report.records,
           (ull)report.payload_bytes, (ull)report.first_lsn, (ull)report.last_lsn, (ull)report.segments);
    if (status == NODEDB_ERR_CORRUPT) printf("verdict: CORRUPT: %s\n", err.message);
    else if (status != NODEDB_OK) printf("verdict: %s: %s\n", nodedb_status_text(status), err.message);
    else if (report.sealed) printf("verdict: sealed, the log was closed in order\n");
    else if (report.torn_bytes > 0)
        printf("verdict: torn tail of at most %llu bytes, not known to be acknowledged\n", (ull)report.torn_bytes);
    else printf("verdict: whole, but not sealed: the writer was not closed, or is still at work\n");
    return status == NODEDB_OK ? 0 : 1;
}

static uint64_t number(const char *text) {
    char *end = NULL;
    uint64_t value = text != NULL ? strtoull(text, &end, 10) : 0;
    if (text != NULL && isdigit((unsigned char)*text) && *end == 0) return value;
    fprintf(stderr, "wal_dump: a number is missing\n");
    exit(2);
}

int main(int argc, char **argv) {
    nodedb_wal_reader_config reading;
    uint64_t payload = 32;
    bool list = true;
    int i;
    memset(&reading, 0, sizeof reading);
    reading.keep_dropped = true; /* the dead are shown too */
    reading.keep_encrypted = true;
    reading.access = NODEDB_WAL_ACCESS_STREAMED; /* a bad sector is then an error that can be shown, and not a signal */
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--payload") == 0) payload = number(argv[++i]);
        else if (strcmp(argv[i], "--from") == 0) reading.from_lsn = number(argv[++i]);
        else if (strcmp(argv[i], "--verify") == 0) list = false;
        else if (argv[i][0] != '-' && reading.dir == NULL) reading.dir = argv[i];
        else break;
    }
    if (reading.dir == NULL || i < argc || strlen(reading.dir) > NODEDB_WAL_MAX_DIR_BYTES) {
        fprintf(stderr, "usage: wal_dump DIR [--payload N] [--from LSN] [--verify]\n");
        return 2;
    }
    if (!show_files(reading.dir)) return 1;
    if (list) show_records(&reading, payload);
    return show_verdict(reading);
}
