/* Any bytes as the segments of a log: no reader crashes, loops, leaks or contradicts another, and a log that can be
 * read can be opened and goes on.
 *
 * Input: byte 0 options (below), byte 1 a number (first LSN to read, records in a page), byte 2 the file call that
 * fails (0: none), bytes 3 and 4 the length of the first segment, then the first segment, then the second, then the
 * file of tombstones. Checksums stop a fuzzer, so options have them repaired. Segments end in zeros up to the size that
 * their preamble says. */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "simdisk.h"

enum {
    REPAIR_PREAMBLES = 1, REPAIR_CHECKSUMS = 2, REPAIR_EPOCHS = 4, TWO_SEGMENTS = 8, FILE_TOO_SHORT = 16,
    WITH_CIPHER = 32, LOST_KEY = 7, WRONG_TAG = 0xC0, TOMBSTONES = 64,
    HEADER_BYTES = 5, LARGE_BYTES = 128 << 10, MAX_SEGMENT_BYTES = 16 << 10, MAX_BLOCK_BYTES = 4096,
    MAX_RECORDS = 2 * MAX_SEGMENT_BYTES / NODEDB_WAL_RECORD_HEADER_BYTES
};

static const char dir[] = "/log";
static sim_disk *disk;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Large buffers are kept for the next reader: to the sanitizer each is a new mapping, and most of the time would go
 * there. The rest comes from malloc, so that an access outside it is seen. */
static struct {
    void *memory;
    size_t bytes;
} kept[8];

static void *allocate(void *ctx, size_t bytes, size_t align) {
    void *memory = NULL;
    int i;
    (void)ctx;
    for (i = 0; i < 8; i++)
        if (kept[i].memory != NULL && kept[i].bytes == bytes) {
            memory = kept[i].memory, kept[i].memory = NULL;
            return memory;
        }
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void release(void *ctx, void *memory, size_t bytes) {
    int i;
    (void)ctx;
    for (i = 0; bytes >= LARGE_BYTES && i < 8; i++)
        if (kept[i].memory == NULL) {
            kept[i].memory = memory, kept[i].bytes = bytes;
            return;
        }
    free(memory);
}

static const nodedb_allocator allocator = {allocate, release, NULL};

/* A cipher that takes nearly everything, so that the fuzzer gets past it. */
static bool with_cipher;
static uint32_t key_id(void *ctx) { return ctx == NULL ? 1 : 0; }
static nodedb_status seal(void *ctx, const nodedb_wal_sealing *s, unsigned char *text, size_t bytes,
                          unsigned char *tag) {
    size_t i;
    (void)ctx, (void)s;
    for (i = 0; i < bytes; i++) text[i] ^= 0x5A;
    memset(tag, 0, NODEDB_WAL_TAG_BYTES);
    return NODEDB_OK;
}
static nodedb_status unseal(void *ctx, const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes,
                            const unsigned char *tag, unsigned char *plain) {
    size_t i;
    (void)ctx;
    if (s->key_id == LOST_KEY) return NODEDB_ERR_KEY;
    if (tag[0] == WRONG_TAG) return NODEDB_ERR_CORRUPT;
    for (i = 0; i < bytes; i++) plain[i] = text[i] ^ 0x5A;
    return NODEDB_OK;
}
static const nodedb_wal_cipher cipher = {key_id, seal, unseal, NULL};

static void require_at(bool holds, const char *what, int line, const nodedb_error *err) {
    if (holds) return;
    fprintf(stderr, "fuzz_wal.c:%d: does not hold: %s (%s)\n", line, what, err != NULL ? err->message : "");
    abort();
}
#define REQUIRE(condition, err) require_at((condition), #condition, __LINE__, (err))

static void free_disk(void) { sim_free(disk); }

/* An empty disk, without making the tables anew. */
static void clear_disk(void) {
    int i;
    if (disk == NULL) {
        disk = sim_new(1);
        (void)atexit(free_disk);
    }
    for (i = 0; i < SIM_MAX_FILES; i++) {
        if (!disk->file[i].used) continue;
        free(disk->file[i].now), free(disk->file[i].durable), free(disk->file[i].dirty);
        memset(&disk->file[i], 0, sizeof disk->file[i]);
    }
    disk->now.count = 0;
    disk->history_count = 1;
    disk->calls = disk->fail_at = 0;
    disk->seed = 1;
}

/* ---- from the input to files ------------------------------------------------------------------------------------- */

/* A preamble that passes: sizes that this file can have, and with `before`, the log's segment before it, the same log
 * and a later epoch. */
static void repair_preamble(unsigned char *p, size_t bytes, const nodedb_wal__segment *before) {
    uint32_t block = nodedb_get_u32(p + 40);
    uint64_t size = nodedb_get_u64(p + 32);
    memcpy(p, "WALP", 4);
    nodedb_put_u16(p + 4, NODEDB_WAL_FORMAT_VERSION);
    if (before != NULL) nodedb_put_u64(p + 8, before->log_id);
    if (before != NULL && nodedb_get_u64(p + 16) <= before->epoch) nodedb_put_u64(p + 16, before->epoch + 1);
    if (block < NODEDB_WAL_PREAMBLE_BYTES || block > MAX_BLOCK_BYTES || (block & (block - 1)) != 0)
        block = NODEDB_WAL_PREAMBLE_BYTES;
    if (size < bytes) size = bytes;
    if (size > MAX_SEGMENT_BYTES) size = MAX_SEGMENT_BYTES;
    if (size <= block) size = (uint64_t)block + 1;
    nodedb_put_u64(p + 32, nodedb_wal__round_up(size, block));
    nodedb_put_u32(p + 40, block);
    nodedb_put_u32(p + 60, nodedb_crc32c(0, p, 60));
}

/* Walks over what looks like records, as a reader does. */
static void repair_records(unsigned char *p, size_t bytes, const nodedb_wal__segment *segment, int options) {
    size_t at = segment->block_bytes;
    while (at + NODEDB_WAL_RECORD_HEADER_BYTES <= bytes) {
        uint32_t payload = nodedb_get_u32(p + at + 32);
        if (nodedb_get_u32(p + at) != NODEDB_WAL_RECORD_MAGIC ||
            payload > bytes - at - NODEDB_WAL_RECORD_HEADER_BYTES) {
            at = (size_t)nodedb_wal__round_up(at + 1, segment->block_bytes);
            continue;
        }
        if ((options & REPAIR_EPOCHS) != 0) nodedb_put_u64(p + at + 48, segment->epoch);
        nodedb_wal__put_sums(p + at, segment->seed, nodedb_wal__sum_payload(p + at, segment->seed));
        at += nodedb_wal__record_bytes(payload);
    }
}

/* Makes one file; *segment is what its preamble says, if it says anything. Answers whether it does. */
static bool make_segment(const uint8_t *data, size_t bytes, int options, const nodedb_wal__segment *before,
                         nodedb_wal__segment *segment) {
    char path[NODEDB_WAL__PATH_BYTES];
    size_t size = bytes < NODEDB_WAL_PREAMBLE_BYTES ? NODEDB_WAL_PREAMBLE_BYTES : bytes;
    unsigned char *p = (unsigned char *)calloc(1, size);
    bool decoded;
    int fd;
    memcpy(p, data, bytes);
    if ((options & REPAIR_PREAMBLES) != 0) repair_preamble(p, size, before);
    memset(segment, 0, sizeof *segment);
    decoded = nodedb_wal__decode_preamble(p, segment);
    if (decoded && (options & REPAIR_CHECKSUMS) != 0) repair_records(p, size, segment, options);
    nodedb_wal__segment_path(path, dir, nodedb_get_u64(p + 24));
    fd = sim_open(disk, path, O_RDWR | O_CREAT | O_TRUNC, 0);
    (void)sim_pwrite(disk, fd, p, size, 0);
    if (decoded && segment->bytes <= MAX_SEGMENT_BYTES && (options & FILE_TOO_SHORT) == 0)
        (void)sim_truncate(disk, fd, segment->bytes);
    (void)sim_sync(disk, fd);
    (void)sim_close(disk, fd);
    free(p);
    return decoded;
}

/* The file of tombstones; repaired, it is one of log `log_id`. */
static void make_tombstones(const uint8_t *data, size_t bytes, int options, uint64_t log_id) {
    size_t n = bytes < 36 ? 36 : bytes, count = (n - 36) / 24, i;
    unsigned char *p = (unsigned char *)calloc(1, n);
    uint64_t lsn = 0;
    int fd = sim_open(disk, "/log/tombstones", O_RDWR | O_CREAT | O_TRUNC, 0);
    memcpy(p, data, bytes);
    if ((options & REPAIR_PREAMBLES) != 0) {
        bytes = 36 + count * 24;
        memcpy(p, "WALT\1\0\0\0", 8);
        nodedb_put_u64(p + 8, log_id);
        nodedb_put_u32(p + 24, (uint32_t)count);
        for (i = 0; i < count; i++) nodedb_put_u64(p + 32 + i * 24, lsn += 1 + nodedb_get_u64(p + 32 + i * 24) % 16);
        if (nodedb_get_u64(p + 16) < lsn) nodedb_put_u64(p + 16, lsn);
        nodedb_put_u32(p + bytes - 4, nodedb_crc32c(0, p, bytes - 4));
    }
    (void)sim_pwrite(disk, fd, p, bytes, 0);
    (void)sim_sync(disk, fd);
    (void)sim_close(disk, fd);
    free(p);
}

static void make_log(const uint8_t *data, size_t bytes, int options) {
    nodedb_wal__segment first, second;
    size_t n = data[3] | (size_t)data[4] << 8, stones = 36 + 24 * (size_t)(data[1] % 4);
    bool decoded;
    data += HEADER_BYTES, bytes -= HEADER_BYTES;
    if ((options & TOMBSTONES) == 0 || stones > bytes) stones = 0;
    bytes -= stones;
    if (n > bytes || (options & TWO_SEGMENTS) == 0) n = bytes;
    if (n > MAX_SEGMENT_BYTES) n = MAX_SEGMENT_BYTES;
    decoded = make_segment(data, n, options, NULL, &first);
    data += n, bytes -= n;
    if (bytes > MAX_SEGMENT_BYTES) bytes = MAX_SEGMENT_BYTES;
    if ((options & TWO_SEGMENTS) != 0) (void)make_segment(data, bytes, options, decoded ? &first : NULL, &second);
    if (stones > 0) make_tombstones(data + bytes, stones, options, first.log_id);
    disk->history[0] = disk->now;
    disk->history_count = 1;
    disk->calls = 0;
}

/* ---- what must hold ---------------------------------------------------------------------------------------------- */

/* What a reader saw: enough to compare two. */
typedef struct seen {
    uint64_t records, last_lsn, payload_bytes, torn_bytes, end_lsn, dropped;
    uint64_t hash; /* of everything that was handed out, in order */
    nodedb_status status;
    nodedb_error err;
} seen;

/* Any payload as a transaction: all of its records, or an error and none. */
static void see_parts(const nodedb_wal_record *record) {
    nodedb_wal_record outer = *record, sub;
    nodedb_wal_transaction tx;
    nodedb_error err;
    nodedb_status status;
    uint32_t n = 0;
    outer.type = NODEDB_WAL_TYPE_TRANSACTION;
    status = nodedb_wal_transaction_open(&outer, &tx, &err);
    while (nodedb_wal_transaction_next(&tx, &sub)) {
        size_t from = (size_t)((const char *)sub.payload - (const char *)outer.payload);
        REQUIRE(from <= outer.payload_bytes && sub.payload_bytes <= outer.payload_bytes - from, NULL);
        n++;
    }
    if (status != NODEDB_OK)
        REQUIRE(n == 0 && (status == NODEDB_ERR_CORRUPT || status == NODEDB_ERR_UNSUPPORTED), &err);
    else REQUIRE(n + tx.skipped + tx.dropped == tx.count, &err);
}

static nodedb_status see(void *ctx, const nodedb_wal_record *record) {
    seen *s = (seen *)ctx;
    see_parts(record);
    REQUIRE(s->records == 0 || record->lsn > s->last_lsn, NULL);
    REQUIRE(record->payload_bytes <= MAX_SEGMENT_BYTES && s->records < MAX_RECORDS, NULL);
    s->records++;
    s->last_lsn = record->lsn;
    s->payload_bytes += record->payload_bytes;
    s->hash = nodedb_mix64(s->hash ^ record->lsn ^ record->database << 1) +
              nodedb_mix64(record->watermark ^ (uint64_t)record->tenant << 32 ^ record->vshard) +
              nodedb_crc32c(record->type, record->payload, record->payload_bytes);
    return NODEDB_OK;
}

static bool keep_dropped;

static nodedb_wal_reader_config reading_from(uint64_t lsn) {
    nodedb_wal_reader_config reading;
    memset(&reading, 0, sizeof reading);
    reading.dir = dir;
    reading.io = disk->io;
    reading.allocator = allocator;
    reading.from_lsn = lsn;
    reading.keep_dropped = keep_dropped;
    if (with_cipher) reading.cipher = cipher;
    return reading;
}

static seen read_all(uint64_t from) {
    nodedb_wal_reader_config reading = reading_from(from);
    nodedb_wal_reader_stats stats;
    nodedb_wal_cursor cursor;
    nodedb_wal_record record;
    nodedb_wal_reader *reader;
    seen s;
    memset(&s, 0, sizeof s);
    reader = nodedb_wal_reader_open(&reading, &s.err);
    s.status = s.err.status;
    if (reader == NULL) return s;
    while ((s.status = nodedb_wal_reader_next(reader, &record, &s.err)) == NODEDB_OK) {
        REQUIRE(record.lsn >= from, NULL);
        (void)see(&s, &record);
    }
    REQUIRE(nodedb_wal_reader_next(reader, &record, &s.err) == s.status, &s.err); /* and says it again */
    nodedb_wal_reader_get_stats(reader, &stats);
    nodedb_wal_reader_tell(reader, &cursor);
    nodedb_wal_reader_close(reader);
    REQUIRE(stats.records == s.records && stats.payload_bytes == s.payload_bytes, &s.err);
    REQUIRE(stats.torn_bytes <= MAX_SEGMENT_BYTES && stats.segments_opened <= 6, &s.err);
    s.torn_bytes = stats.torn_bytes;
    s.dropped = stats.dropped;
    s.end_lsn = cursor.lsn;
    return s;
}

/* By pages of `limit` records: the same records, the same end. */
static void check_pages(const seen *all, size_t limit) {
    nodedb_wal_reader_config reading = reading_from(0);
    nodedb_wal_cursor cursor;
    bool more = true;
    seen s;
    memset(&s, 0, sizeof s);
    memset(&cursor, 0, sizeof cursor);
    while (more && s.status == NODEDB_OK)
        s.status = nodedb_wal_replay_page(&reading, &cursor, limit, see, &s, &more, &s.err);
    REQUIRE(s.status == (all->status == NODEDB_ERR_AGAIN ? NODEDB_OK : all->status), &s.err);
    REQUIRE(s.records == all->records && s.hash == all->hash, &s.err);
}

static nodedb_wal_report check_verify(const seen *all, const seen *living) {
    nodedb_wal_reader_config reading = reading_from(0);
    nodedb_wal_report report;
    nodedb_error err;
    nodedb_status status = nodedb_wal_verify(&reading, &report, &err);
    if (all->status == NODEDB_ERR_KEY && !with_cipher) { /* checksums need no key: it goes further than a reader */
        REQUIRE(status != NODEDB_ERR_KEY && report.records >= all->records, &err);
        return report;
    }
    if (all->end_lsn == 0) { /* no reader was to be had */
        REQUIRE(status != NODEDB_OK, &err);
        return report;
    }
    REQUIRE(status == (living->status == NODEDB_ERR_AGAIN ? NODEDB_OK
                       : all->status == NODEDB_ERR_AGAIN  ? living->status
                                                          : all->status), &err);
    REQUIRE(report.records == all->records && report.payload_bytes == all->payload_bytes, &err);
    REQUIRE(report.torn_bytes == all->torn_bytes, &err);
    REQUIRE(report.segments <= 2 && (report.segments == 0 || report.last_lsn + 1 == all->end_lsn), &err);
    return report;
}

static nodedb_wal *open_log(nodedb_error *err) {
    nodedb_wal_config config;
    memset(&config, 0, sizeof config);
    memset(err, 0, sizeof *err);
    config.dir = dir;
    config.segment_bytes = NODEDB_WAL_MIN_SEGMENT_BYTES;
    config.group_bytes = NODEDB_WAL_MIN_BLOCK_BYTES;
    config.groups = 2;
    config.io = disk->io;
    config.allocator = allocator;
    if (with_cipher) config.cipher = cipher;
    return nodedb_wal_open(&config, err);
}

/* What can be read can be opened, and the other way round (but a writer wants the keys of all segments, and opens no
 * record); and the log goes on behind it, the torn tail forgotten. What is written then outlives a power cut. */
static void check_open(const seen *all, const seen *before) {
    nodedb_wal_record record;
    nodedb_wal_reader_config reading = reading_from(0);
    nodedb_wal_report report;
    nodedb_error err;
    nodedb_wal *wal = open_log(&err);
    uint64_t lsn = 0;
    bool keyless = wal == NULL && (err.status == NODEDB_ERR_KEY || (with_cipher && err.status == NODEDB_ERR_LIMIT));
    if (before->status == NODEDB_ERR_CORRUPT && strstr(before->err.message, "tag does not fit") == NULL)
        REQUIRE(keyless || (wal == NULL && err.status == NODEDB_ERR_CORRUPT), &err);
    if (before->status == NODEDB_ERR_KEY) REQUIRE(keyless, &err);
    if (before->status == NODEDB_ERR_AGAIN && wal == NULL && !keyless) /* tombstones from the log's future */
        REQUIRE(err.status == NODEDB_ERR_CORRUPT && strstr(err.message, "records are missing") != NULL, &err);
    if (before->status == NODEDB_ERR_AGAIN && wal != NULL)
        REQUIRE(nodedb_wal_durable_lsn(wal) + 1 == before->end_lsn, &err);
    REQUIRE(wal != NULL || err.status != NODEDB_OK, &err);
    if (wal == NULL) return;
    memset(&record, 0, sizeof record);
    record.payload = "after", record.payload_bytes = 5;
    REQUIRE(nodedb_wal_commit(wal, &record, 1, &lsn, &err) == NODEDB_OK, &err);
    REQUIRE(before->status != NODEDB_ERR_AGAIN || lsn == before->end_lsn, &err);
    REQUIRE(nodedb_wal_close(wal, &err) == NODEDB_OK, &err);
    REQUIRE(sim_open_files(disk) == 0, NULL);
    sim_power_cut(disk);
    if (before->status != NODEDB_ERR_AGAIN) return;
    REQUIRE(nodedb_wal_verify(&reading, &report, &err) == NODEDB_OK, &err);
    REQUIRE(report.sealed && report.torn_bytes == 0 && report.last_lsn == lsn + 1, &err);
    REQUIRE(report.records == all->records + 1 && report.payload_bytes == all->payload_bytes + 5, &err);
}

/* With one call of the file system failing, something is refused; nothing crashes and no descriptor is left open. */
static void check_failing(uint64_t call) {
    nodedb_wal_reader_config reading = reading_from(0);
    nodedb_error err;
    disk->calls = 0, disk->fail_at = call, disk->fail_error = EIO;
    (void)nodedb_wal_verify(&reading, NULL, &err);
    disk->calls = 0;
    (void)nodedb_wal_close(open_log(&err), &err);
    disk->fail_at = 0;
    REQUIRE(sim_open_files(disk) == 0, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    nodedb_wal_report report;
    seen all, living, part;
    if (bytes < HEADER_BYTES) return 0;
    clear_disk();
    with_cipher = (data[0] & WITH_CIPHER) != 0;
    make_log(data, bytes, data[0]);
    keep_dropped = true;
    all = read_all(0);
    keep_dropped = false;
    living = read_all(0);
    REQUIRE(all.status == NODEDB_ERR_AGAIN || all.status == NODEDB_ERR_CORRUPT ||
            all.status == NODEDB_ERR_UNSUPPORTED || all.status == NODEDB_ERR_KEY, &all.err);
    REQUIRE(living.status == all.status || living.status == NODEDB_ERR_CORRUPT, &living.err);
    REQUIRE(living.status != NODEDB_ERR_AGAIN || living.records + living.dropped == all.records, &living.err);
    report = check_verify(&all, &living);
    check_pages(&living, (size_t)data[1] % 16 + 1);
    if (report.segments > 0) {
        part = read_all(report.first_lsn + data[1]);
        REQUIRE(living.status != NODEDB_ERR_AGAIN ||
                (part.status == NODEDB_ERR_AGAIN && part.records <= all.records), &part.err);
    }
    REQUIRE(sim_open_files(disk) == 0, NULL);
    if (data[2] != 0) check_failing(data[2]);
    else check_open(&all, &living);
    REQUIRE(sim_open_files(disk) == 0, NULL);
    return 0;
}
