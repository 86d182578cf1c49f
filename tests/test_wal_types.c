/* Tests of what the well-known record types of nodedb_wal.h mean: transactions, tombstones, anchors. Each is a sentence
 * of its manual.
 *
 *   small helpers
 *   transactions
 *   tombstones
 *   anchors, and a point in time
 *   crashes
 */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "test.h"
#include "simdisk.h"
#include "wal_helpers.h"
#include <pthread.h>

/* ---- small helpers ---------------------------------------------------------------------------------------------- */

static nodedb_wal_record put_of(uint32_t tenant, uint64_t collection, const char *text) {
    nodedb_wal_record record;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_PUT;
    record.tenant = tenant;
    record.database = collection;
    record.payload = text;
    record.payload_bytes = (uint32_t)strlen(text);
    return record;
}

static uint64_t commit_put(nodedb_wal *wal, uint32_t tenant, uint64_t collection, const char *text) {
    nodedb_wal_record record = put_of(tenant, collection, text);
    uint64_t lsn = 0;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, &lsn, NULL), NODEDB_OK);
    return lsn;
}

static uint64_t commit_tombstone(nodedb_wal *wal, uint32_t tenant, uint64_t collection) {
    uint64_t lsn = 0;
    CHECK_EQ(nodedb_wal_append_tombstone(wal, tenant, collection, &lsn, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_wal_wait(wal, lsn, NULL), NODEDB_OK);
    return lsn;
}

/* Fills the segment, so that the next record begins another one. */
static void fill_segment(nodedb_wal *wal) {
    nodedb_wal_stats stats;
    uint64_t begun;
    nodedb_wal_get_stats(wal, &stats);
    for (begun = stats.segments_begun; stats.segments_begun == begun; nodedb_wal_get_stats(wal, &stats)) {
        static char filler[8000];
        nodedb_wal_record record;
        memset(&record, 0, sizeof record);
        record.payload = filler, record.payload_bytes = sizeof filler;
        if (nodedb_wal_commit(wal, &record, 1, NULL, NULL) != NODEDB_OK) {
            CHECK(!"the log goes on");
            return;
        }
    }
}

/* What a reader hands out but the fillers: "text,text,#12," for puts and tombstones. */
static char story[4000];
static nodedb_status tell(void *ctx, const nodedb_wal_record *record) {
    size_t used = strlen(story);
    (void)ctx;
    if ((record->type & NODEDB_WAL_TYPE_MASK) == NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE)
        snprintf(story + used, sizeof story - used, "#%u,", (unsigned)record->database);
    else if (record->type == NODEDB_WAL_TYPE_TRANSACTION) {
        nodedb_wal_transaction tx;
        nodedb_wal_record sub;
        CHECK_EQ(nodedb_wal_transaction_open(record, &tx, NULL), NODEDB_OK);
        snprintf(story + used, sizeof story - used, "(");
        while (nodedb_wal_transaction_next(&tx, &sub)) {
            CHECK(sub.lsn == record->lsn && sub.watermark == record->watermark);
            CHECK_EQ(tell(NULL, &sub), NODEDB_OK);
        }
        used = strlen(story);
        snprintf(story + used, sizeof story - used, "),");
    } else if (record->type != NODEDB_WAL_TYPE_NOOP)
        snprintf(story + used, sizeof story - used, "%.*s,", (int)record->payload_bytes, (const char *)record->payload);
    return NODEDB_OK;
}

static const char *told_by(const nodedb_wal_reader_config *reading, nodedb_status want) {
    nodedb_error err;
    nodedb_status status;
    memset(&err, 0, sizeof err);
    story[0] = 0;
    status = nodedb_wal_replay(reading, tell, NULL, NULL, &err);
    if (status != want) test_fail(__FILE__, __LINE__, err.message);
    return story;
}

static void check_told(const nodedb_wal_reader_config *reading, const char *want, int line) {
    const char *got = told_by(reading, NODEDB_OK);
    char text[600];
    if (strcmp(got, want) == 0) return;
    snprintf(text, sizeof text, "read \"%.250s\", not \"%.250s\"", got, want);
    test_fail(__FILE__, line, text);
}
#define CHECK_TOLD(reading, want) check_told((reading), (want), __LINE__)

static void shell(const char *format, const char *from, const char *to) {
    char command[2000];
    snprintf(command, sizeof command, format, from, to);
    CHECK(system(command) == 0);
}

/* ---- transactions ----------------------------------------------------------------------------------------------- */

TEST(a_transaction_is_one_record_that_gives_back_what_was_put_into_it) {
    nodedb_wal_config config = config_here("transaction");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_record parts[40], record, sub;
    static unsigned char payload[40][70000];
    nodedb_wal_transaction tx;
    nodedb_wal_reader *r;
    nodedb_error err;
    uint64_t lsn = 0;
    uint32_t i, mapped, max;
    for (max = 7; max <= 70000; max *= 100) { /* the last passes group and segment */
        nodedb_wal *wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        for (i = 0; i < 40; i++) {
            parts[i] = record_of(i + 1, payload[i], max);
            parts[i].type = (uint16_t)(i % 3 == 0 ? NODEDB_WAL_TYPE_DELETE | NODEDB_WAL_REQUIRED : 256 + i);
        }
        parts[5].payload_bytes = 0, parts[5].payload = NULL;
        CHECK_EQ(nodedb_wal_append_transaction(wal, parts, 1, &lsn, &err), NODEDB_OK);
        CHECK_EQ(nodedb_wal__outer_record(parts, 40, &record, &err), NODEDB_OK);
        parts[6].type = 77; /* unknown and optional */
        CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 40, &lsn, &err), NODEDB_ERR_INVALID);
        CHECK_EQ(append_from_the_future(wal, &record, parts, 40, &lsn), NODEDB_OK);
        CHECK_EQ(nodedb_wal_wait(wal, lsn, &err), NODEDB_OK);
        CHECK_EQ(lsn, nodedb_wal_durable_lsn(wal));
        CHECK_EQ(lsn, nodedb_wal_last_lsn(wal));
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        for (mapped = 0; mapped < 2; mapped++) {
            reading.access = mapped ? NODEDB_WAL_ACCESS_MAPPED : NODEDB_WAL_ACCESS_BUFFERED;
            reading.from_lsn = lsn;
            r = nodedb_wal_reader_open(&reading, &err);
            REQUIRE(r != NULL);
            CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_OK);
            CHECK(record.type == NODEDB_WAL_TYPE_TRANSACTION && record.lsn == lsn && record.tenant == 1 &&
                  record.vshard == 7 && record.database == UINT64_C(1) << 32);
            CHECK_EQ(nodedb_wal_transaction_open(&record, &tx, &err), NODEDB_OK);
            CHECK_EQ(tx.count, 40);
            for (i = 0; i < 40; i++) {
                if (i == 6) continue;
                REQUIRE(nodedb_wal_transaction_next(&tx, &sub));
                CHECK(sub.type == parts[i].type && sub.tenant == parts[i].tenant && sub.vshard == parts[i].vshard &&
                      sub.database == parts[i].database && sub.payload_bytes == parts[i].payload_bytes);
                CHECK(sub.lsn == lsn && sub.watermark == record.watermark);
                CHECK(sub.payload_bytes == 0 || memcmp(sub.payload, parts[i].payload, sub.payload_bytes) == 0);
            }
            CHECK(!nodedb_wal_transaction_next(&tx, &sub));
            CHECK(tx.skipped == 1 && tx.dropped == 0);
            CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_ERR_AGAIN);
            nodedb_wal_reader_close(r);
        }
    }
}

/* A raw record of type 50. */
static nodedb_wal_record raw_transaction(const unsigned char *payload, size_t bytes) {
    nodedb_wal_record record;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_TRANSACTION;
    record.payload = payload;
    record.payload_bytes = (uint32_t)bytes;
    return record;
}

/* Two parts, of 3 and 9 bytes: 8 + (24 + 8) + (24 + 16) bytes. */
static size_t make_payload(unsigned char *to) {
    nodedb_wal_record parts[2];
    parts[0] = put_of(1, 2, "abc"), parts[1] = put_of(3, 4, "123456789");
    nodedb_wal__encode_parts(to, parts, 2);
    return 8 + 32 + 40;
}

TEST(a_transaction_is_laid_out_as_the_manual_says) {
    unsigned char payload[80];
    CHECK_EQ(make_payload(payload), 80);
    CHECK(nodedb_get_u32(payload) == 2 && nodedb_get_u32(payload + 4) == 0);
    CHECK(nodedb_get_u16(payload + 8) == NODEDB_WAL_TYPE_PUT && nodedb_get_u16(payload + 10) == 0);
    CHECK(nodedb_get_u32(payload + 12) == 1 && nodedb_get_u32(payload + 16) == 0);
    CHECK(nodedb_get_u32(payload + 20) == 3);
    CHECK(nodedb_get_u64(payload + 24) == 2 && memcmp(payload + 32, "abc\0\0\0\0\0", 8) == 0);
    CHECK(nodedb_get_u32(payload + 44) == 3 && nodedb_get_u32(payload + 52) == 9);
    CHECK_EQ(nodedb_get_u64(payload + 56), 4);
    CHECK(memcmp(payload + 64, "123456789\0\0\0\0\0\0\0", 16) == 0);
}

TEST(what_cannot_be_a_transaction_is_refused_before_it_has_an_lsn) {
    nodedb_wal_config config = config_here("refused");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    nodedb_wal_record parts[3], raw;
    nodedb_wal_record *many = (nodedb_wal_record *)calloc(NODEDB_WAL_MAX_TRANSACTION_RECORDS + 1, sizeof *many);
    static const uint16_t wrong[] = {NODEDB_WAL_TYPE_TRANSACTION, NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE,
                                     NODEDB_WAL_TYPE_TRANSACTION | NODEDB_WAL_REQUIRED, 300 | NODEDB_WAL_ENCRYPTED};
    unsigned char payload[88];
    size_t i, bytes = make_payload(payload);
    REQUIRE(wal != NULL && many != NULL);
    for (i = 0; i < 3; i++) parts[i] = put_of(1, 2, "three");
    CHECK_EQ(nodedb_wal_append_transaction(NULL, parts, 3, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_commit_transaction(wal, NULL, 3, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_append_transaction(wal, parts, 0, NULL, &err), NODEDB_ERR_INVALID);
    for (i = 0; i < 4; i++) {
        parts[1].type = wrong[i];
        CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 3, NULL, &err), NODEDB_ERR_INVALID);
        CHECK_HAS(err.message, "record 1");
        nodedb_put_u16(payload + 8, wrong[i]);
        raw = raw_transaction(payload, bytes);
        CHECK_EQ(nodedb_wal_commit(wal, &raw, 1, NULL, &err), NODEDB_ERR_INVALID);
    }
    parts[1] = put_of(1, 2, "three"), parts[1].payload = NULL;
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 3, NULL, &err), NODEDB_ERR_INVALID);
    parts[1].payload = payload, parts[1].payload_bytes = UINT32_MAX;
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 3, NULL, &err), NODEDB_ERR_LIMIT);
    parts[1].payload_bytes = NODEDB_WAL_MAX_PAYLOAD_BYTES - 95; /* 8 + 32 + 24 + it + 32: 8 above */
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 3, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_wal_append_transaction(wal, many, NODEDB_WAL_MAX_TRANSACTION_RECORDS + 1, NULL, &err),
             NODEDB_ERR_LIMIT);
    bytes = make_payload(payload);
    memset(payload + bytes, 0, 8);
    raw = raw_transaction(payload, bytes + 8); /* a word too many */
    CHECK_EQ(nodedb_wal_append(wal, &raw, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "byte 80");
    raw = raw_transaction(payload, bytes);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 0);
    CHECK_EQ(nodedb_wal_append(wal, &raw, NULL, &err), NODEDB_OK); /* and what is one is not */
    CHECK_EQ(nodedb_wal_commit_transaction(wal, many, NODEDB_WAL_MAX_TRANSACTION_RECORDS, NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 2);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    free(many);
}

TEST(of_a_malformed_transaction_nothing_is_handed_out) {
    unsigned char good[80], payload[80];
    nodedb_wal_transaction tx;
    nodedb_wal_record raw, sub;
    nodedb_error err;
    size_t bytes = make_payload(good), i;
    int bit, whole = 0;
    for (i = 0; i < bytes; i++) {
        unsigned char *exact = (unsigned char *)malloc(i + 1); /* so that a sanitizer sees a byte too far */
        memcpy(exact, good, i);
        raw = raw_transaction(exact, i);
        raw.lsn = 9;
        CHECK_EQ(nodedb_wal_transaction_open(&raw, &tx, &err), NODEDB_ERR_CORRUPT);
        CHECK_EQ(err.lsn, 9);
        CHECK(!nodedb_wal_transaction_next(&tx, &sub));
        free(exact);
    }
    for (i = 0; i < bytes; i++)
        for (bit = 0; bit < 8; bit++) {
            nodedb_status status;
            uint32_t n = 0;
            memcpy(payload, good, bytes);
            payload[i] ^= (unsigned char)(1 << bit);
            raw = raw_transaction(payload, bytes);
            status = nodedb_wal_transaction_open(&raw, &tx, &err);
            CHECK(status == NODEDB_OK || status == NODEDB_ERR_CORRUPT || status == NODEDB_ERR_UNSUPPORTED);
            while (nodedb_wal_transaction_next(&tx, &sub)) n++;
            CHECK(status == NODEDB_OK ? n + tx.skipped == 2 : n == 0);
            whole += status == NODEDB_OK;
        }
    CHECK(whole > 0);
    raw = raw_transaction(good, bytes);
    nodedb_put_u16(good + 40, 78 | NODEDB_WAL_REQUIRED);
    CHECK_EQ(nodedb_wal_transaction_open(&raw, &tx, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "type 78");
    raw.type = NODEDB_WAL_TYPE_PUT;
    CHECK_EQ(nodedb_wal_transaction_open(&raw, &tx, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_transaction_open(NULL, &tx, &err), NODEDB_ERR_INVALID);
    CHECK(!nodedb_wal_transaction_next(NULL, &sub));
}

/* ---- tombstones ------------------------------------------------------------------------------------------------- */

TEST(a_dropped_collection_stays_dead_and_what_is_written_after_it_lives) {
    nodedb_wal_config config = config_here("dropped");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_reader_stats stats;
    nodedb_wal_tombstone stone[4];
    nodedb_wal_report report;
    nodedb_wal_reader *r;
    nodedb_wal_record record, parts[4];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t lsn;
    REQUIRE(wal != NULL);
    (void)commit_put(wal, 1, 5, "a"), (void)commit_put(wal, 1, 6, "b"), (void)commit_put(wal, 2, 5, "c");
    parts[0] = put_of(1, 5, "d"), parts[1] = put_of(1, 6, "e"), parts[2] = put_of(1, 5, "f"), parts[3] = parts[2];
    parts[3].type = NODEDB_WAL_TYPE_USER + 9;
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 4, NULL, &err), NODEDB_OK);
    CHECK_TOLD(&reading, "a,b,c,(d,e,f,f,),");
    lsn = commit_tombstone(wal, 1, 5);
    (void)commit_put(wal, 1, 5, "g");
    CHECK_TOLD(&reading, "a,b,c,(d,e,f,f,),#5,g,"); /* not in the file yet, but there in order */
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stone, 4), 1);
    CHECK(stone[0].lsn == lsn && stone[0].collection == 5 && stone[0].tenant == 1);
    fill_segment(wal);
    CHECK_TOLD(&reading, "b,c,(e,),#5,g,");
    reading.keep_dropped = true;
    CHECK_TOLD(&reading, "a,b,c,(d,e,f,f,),#5,g,");
    reading.keep_dropped = false;
    reading.follow = wal; /* a change stream tells what happened */
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    for (story[0] = 0; nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK;) CHECK_EQ(tell(NULL, &record), NODEDB_OK);
    CHECK(strcmp(story, "a,b,c,(d,e,f,f,),#5,g,") == 0);
    nodedb_wal_reader_close(r);
    reading.follow = NULL;
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    for (reading.threads = 1; reading.threads < 3; reading.threads++) {
        CHECK_EQ(nodedb_wal_replay(&reading, tell, NULL, &stats, &err), NODEDB_OK);
        CHECK_EQ(stats.dropped, 1);
    }
    reading.until_lsn = lsn; /* up to the tombstone, with it */
    CHECK_TOLD(&reading, "b,c,(e,),#5,");
    reading.until_lsn = lsn - 1; /* what lies behind the end kills nothing */
    CHECK_TOLD(&reading, "a,b,c,(d,e,f,f,),");
    reading.until_lsn = 0;
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK(report.tombstones == 1 && report.tombstones_lsn >= lsn && report.last_lsn > report.records);
}

/* Puts of the text's first letter as collection. */
static uint64_t by_first_letter(void *ctx, const nodedb_wal_record *record) {
    ++*(int *)ctx;
    if (nodedb_wal__is_tombstone(record->type) && record->payload_bytes == 0) return record->database;
    if (record->payload_bytes == 0) return NODEDB_WAL_NO_COLLECTION;
    return *(const unsigned char *)record->payload;
}

TEST(the_caller_may_say_what_collection_a_record_is_of) {
    nodedb_wal_config config = config_here("collections");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_record record, parts[2];
    nodedb_error err;
    nodedb_wal *wal;
    int asked = 0, asked_reading = 0;
    config.collection_of = by_first_letter, config.collection_ctx = &asked;
    reading.collection_of = by_first_letter, reading.collection_ctx = &asked_reading;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    (void)commit_put(wal, 1, 9, "apple"), (void)commit_put(wal, 1, 9, "bean"), (void)commit_put(wal, 1, 9, "");
    parts[0] = put_of(1, 9, "avocado"), parts[1] = put_of(1, 9, "beet");
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 2, NULL, &err), NODEDB_OK);
    record = put_of(1, 0, "a: all that begins so");
    record.type = NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE | NODEDB_WAL_REQUIRED; /* appended like any record */
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_append_tombstone(wal, 1, 'c', NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_append_tombstone(wal, 1, NODEDB_WAL_NO_COLLECTION, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(asked, 3); /* about tombstones only */
    CHECK_TOLD(&reading, "apple,bean,,(avocado,beet,),#0,");
    CHECK_EQ(asked_reading, 0); /* nothing is asked, or looked up, where there is no tombstone */
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_TOLD(&reading, "bean,,(beet,),#0,#99,");
}

/* No cipher, but it has the shape of one: the text is not what it was, and the tag tells other texts and headers. */
static uint32_t toy_key_id(void *ctx) { return (void)ctx, 1; }
static void toy_tag(const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes, unsigned char *tag) {
    memset(tag, 0, NODEDB_WAL_TAG_BYTES);
    nodedb_put_u32(tag, nodedb_crc32c(nodedb_crc32c(1, s->header, s->header_bytes), text, bytes));
    memcpy(tag + 4, s->nonce, NODEDB_WAL_NONCE_BYTES);
}
static nodedb_status toy_seal(void *ctx, const nodedb_wal_sealing *s, unsigned char *text, size_t bytes,
                              unsigned char *tag) {
    size_t i;
    (void)ctx;
    for (i = 0; i < bytes; i++) text[i] ^= 0x5A;
    toy_tag(s, text, bytes, tag);
    return NODEDB_OK;
}
static nodedb_status toy_open(void *ctx, const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes,
                              const unsigned char *tag, unsigned char *plain) {
    unsigned char want[NODEDB_WAL_TAG_BYTES];
    size_t i;
    (void)ctx;
    toy_tag(s, text, bytes, want);
    for (i = 0; i < bytes; i++) plain[i] = text[i] ^ 0x5A;
    return memcmp(tag, want, sizeof want) == 0 ? NODEDB_OK : NODEDB_ERR_CORRUPT;
}

TEST(in_an_encrypted_log_the_types_mean_the_same) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_transaction tx;
    nodedb_wal_record record, parts[2];
    nodedb_wal_reader *r;
    nodedb_error err;
    nodedb_wal *wal;
    int asked = 0, records = 0;
    reading.io = disk->io;
    reading.collection_of = config.collection_of = by_first_letter;
    reading.collection_ctx = config.collection_ctx = &asked;
    config.cipher.key_id = toy_key_id, config.cipher.seal = toy_seal;
    reading.cipher.open = config.cipher.open = toy_open;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    (void)commit_put(wal, 1, 9, "apple"), (void)commit_put(wal, 1, 9, "bean");
    parts[0] = put_of(1, 9, "avocado"), parts[1] = put_of(1, 9, "beet");
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 2, NULL, &err), NODEDB_OK);
    parts[0].payload_bytes = NODEDB_WAL_MAX_PAYLOAD_BYTES - 32; /* it fits, but with a tag it does not */
    CHECK_EQ(nodedb_wal_commit_transaction(wal, parts, 1, NULL, &err), NODEDB_ERR_LIMIT);
    record = put_of(1, 0, "a: all that begins so");
    record.type = NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK);
    nodedb_wal__free(wal); /* the writer dies, and recovery has to look into the tombstone */
    sim_power_cut(disk);
    CHECK_TOLD(&reading, "apple,bean,(avocado,beet,),#0,");
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, NULL, 0), 1);
    CHECK_EQ(nodedb_wal_append_anchor(wal, 1000, NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_TOLD(&reading, "bean,(beet,),#0,\xE8\x03,");
    CHECK_EQ(nodedb_wal_verify(&reading, NULL, &err), NODEDB_OK);
    reading.keep_encrypted = true; /* nobody can say what is dead, so all is handed out */
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    for (; nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK; records++)
        CHECK_EQ(nodedb_wal_transaction_open(&record, &tx, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(records, 5);
    nodedb_wal_reader_close(r);
    sim_free(disk);
}

TEST(a_tombstone_outlives_its_segment_and_kills_in_segments_that_are_restored) {
    nodedb_wal_config config = config_here("outlives");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_tombstone stone[4];
    char archive[700];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint32_t removed = 0;
    uint64_t lsn;
    REQUIRE(wal != NULL);
    snprintf(archive, sizeof archive, "%s/archive", test_dir());
    (void)commit_put(wal, 1, 5, "dead"), (void)commit_put(wal, 1, 6, "alive");
    fill_segment(wal);
    CHECK(mkdir(archive, 0777) == 0);
    shell("cp '%s/00000000000000000001.wal' '%s'", log_dir, archive);
    (void)commit_tombstone(wal, 1, 5);
    fill_segment(wal);
    lsn = commit_tombstone(wal, 1, 5); /* a later one takes the place of the earlier */
    (void)commit_tombstone(wal, 2, 5);
    fill_segment(wal);
    fill_segment(wal);
    CHECK_EQ(nodedb_wal_truncate_before(wal, nodedb_wal_durable_lsn(wal), &removed, &err), NODEDB_OK);
    CHECK(removed >= 3);
    CHECK_TOLD(&reading, "");
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stone, 1), 2);
    CHECK_EQ(stone[0].lsn, lsn);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stone, 4), 2);
    CHECK(stone[0].lsn == lsn && stone[0].collection == 5 && stone[0].tenant == 1 && stone[1].tenant == 2);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    reading.dir = archive;
    CHECK_TOLD(&reading, "dead,alive,");
    shell("cp '%s/tombstones' '%s'", log_dir, archive);
    CHECK_TOLD(&reading, "alive,");
}

TEST(a_tombstone_that_is_not_durable_kills_nothing_and_a_crash_may_lose_it) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_tombstone stone[2];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t first, second;
    REQUIRE(wal != NULL);
    reading.io = disk->io;
    (void)commit_put(wal, 1, 5, "a");
    first = commit_tombstone(wal, 1, 5);
    (void)commit_put(wal, 1, 5, "b");
    CHECK_EQ(nodedb_wal_append_tombstone(wal, 1, 5, &second, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stone, 2), 1); /* and it has not replaced the one before */
    CHECK_EQ(stone[0].lsn, first);
    CHECK_EQ(nodedb_wal_forget_tombstones(wal, 1, NULL, &err), NODEDB_OK);
    nodedb_wal__free(wal); /* the writer dies */
    sim_power_cut(disk);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stone, 2), 1);
    CHECK_EQ(stone[0].lsn, first);
    CHECK_TOLD(&reading, "#5,b,");
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    sim_free(disk);
}

TEST(a_segment_is_not_truncated_before_its_tombstones_are_in_the_file) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal_tombstone stone[2];
    nodedb_wal_stats stats;
    nodedb_wal_record filler;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t lsn = 0;
    uint32_t removed = 0;
    static char bytes[15000];
    REQUIRE(wal != NULL);
    memset(&filler, 0, sizeof filler);
    filler.payload = bytes, filler.payload_bytes = sizeof bytes;
    CHECK(nodedb_wal_append(wal, &filler, NULL, &err) == NODEDB_OK && nodedb_wal_wait(wal, 1, &err) == NODEDB_OK);
    CHECK_EQ(nodedb_wal_append_tombstone(wal, 1, 5, &lsn, &err), NODEDB_OK);
    do CHECK_EQ(nodedb_wal_append(wal, &filler, NULL, &err), NODEDB_OK);
    while (nodedb_wal_get_stats(wal, &stats), stats.segments_begun == 1 && nodedb_wal_last_lsn(wal) < 9);
    CHECK(nodedb_wal_durable_lsn(wal) < lsn && stats.segments_begun == 2); /* begun before the tombstone was durable */
    CHECK_EQ(nodedb_wal_wait(wal, nodedb_wal_last_lsn(wal), &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_truncate_before(wal, nodedb_wal_last_lsn(wal), &removed, &err), NODEDB_OK);
    CHECK_EQ(removed, 1);
    nodedb_wal__free(wal);
    sim_power_cut(disk);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stone, 2), 1);
    CHECK_EQ(stone[0].lsn, lsn);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    sim_free(disk);
}

/* A log with tombstones in the file and one segment in which that is noted. Its file's number on the simulated disk. */
static int log_with_tombstones(sim_disk *disk, const nodedb_wal_config *config) {
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    int i;
    if (wal == NULL) return -1;
    (void)commit_put(wal, 1, 5, "a"), (void)commit_put(wal, 1, 6, "b"), (void)commit_put(wal, 1, 7, "c");
    (void)commit_tombstone(wal, 1, 5), (void)commit_tombstone(wal, 1, 6);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(config, &err);
    if (wal == NULL) return -1;
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    i = sim_find(&disk->now, "d/tombstones");
    return i < 0 ? -1 : disk->now.name[i].file;
}

TEST(a_damaged_missing_or_foreign_file_of_tombstones_is_corruption_for_writer_and_readers) {
    sim_disk *disk = sim_new(test_seed), *other;
    nodedb_wal_config config = sim_config(disk), foreign;
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    size_t bytes, at;
    int f = log_with_tombstones(disk, &config), g, name, bit;
    REQUIRE(f >= 0);
    reading.io = disk->io;
    CHECK_TOLD(&reading, "c,#5,#6,");
    bytes = disk->file[f].bytes;
    CHECK_EQ(bytes, 32 + 2 * 24 + 4);
    CHECK(memcmp(disk->file[f].now, "WALT\1\0\0\0", 8) == 0 && nodedb_get_u64(disk->file[f].now + 8) == 99 &&
          nodedb_get_u64(disk->file[f].now + 16) >= 5 && nodedb_get_u32(disk->file[f].now + 24) == 2 &&
          nodedb_get_u64(disk->file[f].now + 32) == 4 && nodedb_get_u64(disk->file[f].now + 40) == 5 &&
          nodedb_get_u32(disk->file[f].now + 48) == 1);
    for (at = 0; at < bytes; at++)
        for (bit = 0; bit < 8; bit++) {
            disk->file[f].now[at] ^= (unsigned char)(1 << bit);
            (void)told_by(&reading, NODEDB_ERR_CORRUPT);
            CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
            CHECK_EQ(nodedb_wal_verify(&reading, NULL, &err), NODEDB_ERR_CORRUPT);
            CHECK_HAS(err.message, "d/tombstones");
            disk->file[f].now[at] ^= (unsigned char)(1 << bit);
        }
    for (at = 0; at < bytes; at++) {
        disk->file[f].bytes = at;
        (void)told_by(&reading, NODEDB_ERR_CORRUPT);
    }
    disk->file[f].bytes = bytes;
    name = sim_find(&disk->now, "d/tombstones");
    disk->now.name[name].file = -1;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "is missing");
    (void)told_by(&reading, NODEDB_ERR_CORRUPT);
    CHECK_EQ(nodedb_wal_verify(&reading, NULL, &err), NODEDB_ERR_CORRUPT);
    reading.keep_dropped = true; /* a reader that drops nothing does not need it */
    CHECK_TOLD(&reading, "a,b,c,#5,#6,");
    reading.keep_dropped = false;
    disk->now.name[name].file = f;
    other = sim_new(test_seed);
    foreign = config, foreign.io = other->io, foreign.log_id = 98;
    g = log_with_tombstones(other, &foreign);
    REQUIRE(g >= 0 && other->file[g].bytes == bytes);
    memcpy(disk->file[f].now, other->file[g].now, bytes);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "another log");
    CHECK_EQ(sim_open_files(disk), 0);
    sim_free(other);
    sim_free(disk);
}

TEST(a_log_that_ends_before_its_tombstones_were_written_is_corruption) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal;
    int i, last = -1;
    REQUIRE(log_with_tombstones(disk, &config) >= 0);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    (void)commit_tombstone(wal, 1, 8);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    for (i = 0; i < disk->now.count; i++) /* the newest segment goes */
        if (disk->now.name[i].file >= 0 && strncmp(disk->now.name[i].path, "d/0", 3) == 0 &&
            (last < 0 || strcmp(disk->now.name[i].path, disk->now.name[last].path) > 0))
            last = i;
    REQUIRE(last >= 0);
    disk->now.name[last].file = -1;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "records are missing");
    for (i = 0; i < disk->now.count; i++) /* and then all of them */
        if (strncmp(disk->now.name[i].path, "d/0", 3) == 0) disk->now.name[i].file = -1;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    sim_free(disk);
}

TEST(tombstones_have_a_limit_and_are_forgotten_when_no_old_segment_needs_them) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal_tombstone *stones = (nodedb_wal_tombstone *)calloc(NODEDB_WAL_MAX_TOMBSTONES, sizeof *stones);
    nodedb_error err;
    nodedb_wal *wal;
    uint64_t i, lsn = 0;
    size_t forgotten = 0, most = NODEDB_WAL_MAX_TOMBSTONES;
    config.segment_bytes = 16 << 20, config.group_bytes = 256 << 10;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL && stones != NULL);
    for (i = 1; i <= NODEDB_WAL_MAX_TOMBSTONES + 100; i++) { /* each of the first 100 twice */
        nodedb_status status;
        while ((status = nodedb_wal_append_tombstone(wal, 3, (i * 7919) % NODEDB_WAL_MAX_TOMBSTONES, &lsn, &err)) ==
               NODEDB_ERR_AGAIN)
            CHECK_EQ(nodedb_wal_wait(wal, nodedb_wal_durable_lsn(wal) + 1, NULL), NODEDB_OK);
        if (i > NODEDB_WAL_MAX_TOMBSTONES) CHECK_EQ(status, NODEDB_ERR_LIMIT);
        else CHECK_EQ(status, NODEDB_OK);
    }
    CHECK_HAS(err.message, "nodedb_wal_forget_tombstones");
    CHECK_EQ(nodedb_wal_last_lsn(wal), NODEDB_WAL_MAX_TOMBSTONES);
    (void)commit_put(wal, 3, 1, "other records go on");
    CHECK_EQ(nodedb_wal_forget_tombstones(wal, 1001, &forgotten, &err), NODEDB_OK);
    CHECK_EQ(forgotten, 1000);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stones, most), most - 1000);
    CHECK_EQ(stones[0].lsn, 1001);
    for (i = 0; i < 2500; i++) { /* three of one collection count as one */
        CHECK_EQ(nodedb_wal_append_tombstone(wal, 3, (i / 3 + 1) * 7919 % NODEDB_WAL_MAX_TOMBSTONES, &lsn, &err),
                 NODEDB_OK);
        if (i % 100 == 0) CHECK_EQ(nodedb_wal_wait(wal, lsn, NULL), NODEDB_OK);
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, stones, most), most - 1000 + 834);
    CHECK_EQ(nodedb_wal_forget_tombstones(wal, UINT64_MAX, &forgotten, &err), NODEDB_OK);
    CHECK_EQ(forgotten, NODEDB_WAL_MAX_TOMBSTONES - 166);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err); /* those that stand in the last segments do not come back */
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, NULL, 0), 0);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    sim_free(disk);
    free(stones);
}

/* A disk without room for tombstones.tmp, for a while. */
static int refusals, refused_fd;
static int open_and_note(void *ctx, const char *path, int flags, int mode) {
    int fd = sim_open(ctx, path, flags, mode);
    if (strstr(path, "tombstones.tmp") != NULL) refused_fd = fd;
    else if (fd == refused_fd) refused_fd = -1;
    return fd;
}
static int64_t write_without_room(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    if (refusals > 0 && fd == refused_fd) return refusals--, -ENOSPC;
    return sim_pwrite(ctx, fd, buffer, bytes, offset);
}

TEST(on_a_full_disk_tombstones_wait_and_nothing_is_lost) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal_record filler;
    nodedb_status status;
    nodedb_error err;
    nodedb_wal *wal;
    uint64_t last;
    uint32_t removed = 9;
    static char bytes[6000];
    disk->io.open = open_and_note, disk->io.pwrite = write_without_room;
    config.io = disk->io;
    refusals = 0, refused_fd = -1;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    memset(&filler, 0, sizeof filler);
    filler.payload = bytes, filler.payload_bytes = sizeof bytes;
    (void)commit_put(wal, 1, 5, "a");
    (void)commit_tombstone(wal, 1, 5);
    refusals = 3;
    while ((status = nodedb_wal_commit(wal, &filler, 1, NULL, &err)) == NODEDB_OK) {}
    CHECK_EQ(status, NODEDB_ERR_DISK_FULL); /* where a segment ends */
    CHECK_HAS(err.message, "tombstones");
    last = nodedb_wal_last_lsn(wal);
    CHECK_EQ(nodedb_wal_commit(wal, &filler, 1, NULL, &err), NODEDB_ERR_DISK_FULL);
    CHECK_EQ(nodedb_wal_last_lsn(wal), last);
    refusals = 0; /* room again */
    fill_segment(wal);
    fill_segment(wal);
    (void)commit_tombstone(wal, 1, 6);
    refusals = 1; /* a truncation needs the file too: no spare segment can give its room yet */
    CHECK_EQ(nodedb_wal_truncate_before(wal, nodedb_wal_durable_lsn(wal), &removed, &err), NODEDB_ERR_DISK_FULL);
    CHECK_EQ(removed, 0);
    CHECK_EQ(nodedb_wal_truncate_before(wal, nodedb_wal_durable_lsn(wal), &removed, &err), NODEDB_OK);
    CHECK(removed > 0);
    (void)commit_tombstone(wal, 1, 7);
    fill_segment(wal);
    (void)commit_tombstone(wal, 1, 8);
    refusals = 1; /* now one can */
    CHECK(wal->spares.pool_count > 0);
    CHECK_EQ(nodedb_wal_truncate_before(wal, nodedb_wal_durable_lsn(wal), &removed, &err), NODEDB_OK);
    CHECK(removed > 0 && refusals == 0);
    (void)commit_tombstone(wal, 1, 9);
    refusals = 100;
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    refusals = 0;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, NULL, 0), 5);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(sim_open_files(disk), 0);
    sim_free(disk);
}

/* Each thread drops its own collection again and again; the last tombstone must be in force in the end. */
typedef struct dropper {
    nodedb_wal *wal;
    uint32_t id;
    uint64_t last;
    int failures;
} dropper;

static void *drop_some(void *argument) {
    dropper *d = (dropper *)argument;
    int i;
    for (i = 0; i < 60; i++) {
        nodedb_wal_record parts[3];
        parts[0] = parts[1] = parts[2] = put_of(1, d->id, "together");
        d->failures += nodedb_wal_commit_transaction(d->wal, parts, 3, NULL, NULL) != NODEDB_OK;
        while (nodedb_wal_append_tombstone(d->wal, 1, d->id, &d->last, NULL) == NODEDB_ERR_AGAIN)
            (void)nodedb_wal_wait(d->wal, nodedb_wal_durable_lsn(d->wal) + 1, NULL);
        if (i % 4 == 0) d->failures += nodedb_wal_wait(d->wal, d->last, NULL) != NODEDB_OK;
        if (i % 8 == 0)
            d->failures += nodedb_wal_truncate_before(d->wal, nodedb_wal_durable_lsn(d->wal), NULL, NULL) != NODEDB_OK;
        (void)nodedb_wal_list_tombstones(d->wal, NULL, 0);
    }
    return NULL;
}

static void drop_in_threads(nodedb_wal_backend backend) {
    enum { THREADS = 4 };
    nodedb_wal_config config = config_here("droppers");
    nodedb_wal_tombstone stones[THREADS + 1];
    dropper d[THREADS];
    pthread_t thread[THREADS];
    nodedb_error err;
    nodedb_wal *wal;
    uint32_t i, j;
    config.backend = backend;
    config.segment_bytes = 64 << 10;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    for (i = 0; i < THREADS; i++) {
        memset(&d[i], 0, sizeof d[i]);
        d[i].wal = wal, d[i].id = i;
        pthread_create(&thread[i], NULL, drop_some, &d[i]);
    }
    for (i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    REQUIRE(nodedb_wal_list_tombstones(wal, stones, THREADS + 1) == THREADS);
    for (i = 0; i < THREADS; i++) {
        CHECK_EQ(d[i].failures, 0);
        for (j = 0; j < THREADS && stones[j].collection != d[i].id; j++) {}
        CHECK(j < THREADS && stones[j].lsn == d[i].last);
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}
TEST(threads_may_drop_truncate_and_commit_transactions_together) { drop_in_threads(NODEDB_WAL_BACKEND_AUTO); }
TEST(threads_may_do_so_with_posix_too) { drop_in_threads(NODEDB_WAL_BACKEND_POSIX); }

/* ---- anchors, and a point in time ------------------------------------------------------------------------------- */

TEST(an_anchor_leads_from_a_time_to_an_lsn_and_a_reader_stops_there) {
    nodedb_wal_config config = config_here("anchors");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_record record;
    nodedb_wal_reader_stats stats;
    nodedb_wal_cursor cursor;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t anchor[3], lsn = 0, i, now = (uint64_t)time(NULL) * UINT64_C(1000000000);
    bool more = true;
    REQUIRE(wal != NULL);
    for (i = 0; i < 3; i++) {
        (void)commit_put(wal, 1, 1, i == 0 ? "a" : i == 1 ? "b" : "c");
        CHECK_EQ(nodedb_wal_append_anchor(wal, (i + 1) * 1000, &anchor[i], &err), NODEDB_OK);
        fill_segment(wal);
    }
    CHECK_EQ(nodedb_wal_append_anchor(wal, 0, &lsn, &err), NODEDB_OK);
    record = put_of(0, 0, "seven b");
    record.type = NODEDB_WAL_TYPE_LSN_ANCHOR;
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_INVALID);
    record.type = 78 | NODEDB_WAL_REQUIRED; /* what is of no interest is no obstacle */
    CHECK_EQ(append_from_the_future(wal, &record, NULL, 0, &lsn), NODEDB_OK);
    CHECK_EQ(nodedb_wal_append_anchor(wal, 1500, NULL, &err), NODEDB_OK); /* the clock was set back */
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 999, &lsn, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 1000, &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, anchor[0]);
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 1499, &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, anchor[0]);
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 2999, &lsn, &err), NODEDB_OK);
    CHECK(lsn > anchor[2]);
    reading.until_lsn = anchor[2];
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 2999, &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, anchor[1]);
    reading.until_lsn = 0, reading.from_lsn = anchor[2] + 1;
    CHECK_EQ(nodedb_wal_lsn_at(&reading, now - UINT64_C(1000000000), &lsn, &err), NODEDB_OK);
    reading.from_lsn = 0, reading.until_lsn = lsn - 2; /* the anchor that asked the clock */
    CHECK_EQ(nodedb_wal_lsn_at(&reading, now - UINT64_C(1000000000), &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, anchor[2]);
    reading.until_lsn++;
    CHECK_EQ(nodedb_wal_lsn_at(&reading, now + UINT64_C(100000000000), &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, reading.until_lsn - 1);
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 1, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_lsn_at(NULL, 1, &lsn, &err), NODEDB_ERR_INVALID);
    reading.until_lsn = anchor[1];
    CHECK_EQ(nodedb_wal_replay(&reading, tell, NULL, &stats, &err), NODEDB_OK);
    CHECK_EQ(stats.records, anchor[1]);
    CHECK(stats.segments_opened < 4); /* the segments behind are not opened */
    memset(&cursor, 0, sizeof cursor);
    for (i = 0; more && i < 200; i++)
        CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 7, tell, NULL, &more, &err), NODEDB_OK);
    CHECK(i < 200 && cursor.lsn == anchor[1] + 1);
    reading.from_lsn = anchor[1] + 1; /* from behind it on there is nothing, and that is no error */
    CHECK_EQ(nodedb_wal_replay(&reading, tell, NULL, &stats, &err), NODEDB_OK);
    CHECK_EQ(stats.records, 0);
}

/* ---- crashes ---------------------------------------------------------------------------------------------------- */

enum { MAX_LSN = 4000, COLLECTIONS = 7, MOST_PARTS = 5 };
typedef enum kind { PUT, TOMBSTONE, TRANSACTION, SEAL } kind;

/* What was appended with each LSN, last. After a crash LSNs come again; then the log holds what came last. */
typedef struct history {
    unsigned char kinds[MAX_LSN], collections[MAX_LSN];
    uint64_t acknowledged, forgotten, perhaps_forgotten; /* tombstones below these LSNs */
    bool wrong;
} history;

static uint64_t part_collection(uint64_t lsn, uint64_t i) { return (lsn * 3 + i * 5) % COLLECTIONS; }
static uint32_t part_count(uint64_t lsn) { return (uint32_t)(lsn % MOST_PARTS) + 1; }

static nodedb_wal_record part_of(uint64_t lsn, uint64_t i, unsigned char *buffer) {
    nodedb_wal_record record = record_of(lsn * MOST_PARTS + i, buffer, 900);
    record.type = NODEDB_WAL_TYPE_PUT;
    record.tenant = 1;
    record.database = part_collection(lsn, i);
    return record;
}

static void append_something(nodedb_wal *wal, history *h, uint64_t choice, uint64_t *state) {
    static unsigned char buffer[MOST_PARTS][3000];
    uint64_t n = nodedb_wal_last_lsn(wal) + 1, collection = test_random(state) % COLLECTIONS, lsn = 0, i;
    nodedb_wal_record parts[MOST_PARTS];
    nodedb_status status;
    kind what = choice < 5 ? PUT : choice < 7 ? TOMBSTONE : TRANSACTION;
    if (n + 2 >= MAX_LSN) return;
    if (what == PUT) {
        parts[0] = record_of(n, buffer[0], 3000);
        parts[0].tenant = 1;
        parts[0].database = collection;
        status = nodedb_wal_append(wal, &parts[0], &lsn, NULL);
    } else if (what == TOMBSTONE) status = nodedb_wal_append_tombstone(wal, 1, collection, &lsn, NULL);
    else {
        for (i = 0; i < part_count(n); i++) parts[i] = part_of(n, i, buffer[i]);
        status = nodedb_wal_append_transaction(wal, parts, part_count(n), &lsn, NULL);
    }
    if (status != NODEDB_OK) return;
    if (lsn != n) h->wrong = true;
    h->kinds[n] = (unsigned char)what, h->collections[n] = (unsigned char)collection;
}

static void forget_some(nodedb_wal *wal, history *h) {
    uint64_t before = nodedb_wal_durable_lsn(wal) / 2;
    if (before > h->perhaps_forgotten) h->perhaps_forgotten = before;
    if (nodedb_wal_forget_tombstones(wal, before, NULL, NULL) == NODEDB_OK && before > h->forgotten)
        h->forgotten = before;
}

/* One life of the log: it ends in order, or the writer dies. */
static void live(const nodedb_wal_config *config, history *h, uint64_t *state, int steps) {
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    uint64_t last;
    if (wal == NULL && err.status == NODEDB_ERR_CORRUPT) {
        fprintf(stderr, "%s\n", err.message);
        h->wrong = true;
    }
    if (wal == NULL) return;
    if (nodedb_wal_last_lsn(wal) < h->acknowledged) h->wrong = true;
    while (steps-- > 0) {
        uint64_t choice = test_random(state) % 20;
        last = nodedb_wal_last_lsn(wal);
        if (choice < 9) append_something(wal, h, choice, state);
        else if (choice < 12) (void)nodedb_wal_submit(wal, NULL);
        else if (choice < 15) (void)nodedb_wal_poll(wal, NULL, NULL);
        else if (choice < 18) (void)nodedb_wal_wait(wal, last, NULL);
        else if (choice == 18)
            (void)nodedb_wal_truncate_before(wal, last + 1 - test_random(state) % 2 * 30 % (last + 1), NULL, NULL);
        else if (test_random(state) % 4 == 0) forget_some(wal, h);
        if (nodedb_wal_durable_lsn(wal) > h->acknowledged) h->acknowledged = nodedb_wal_durable_lsn(wal);
    }
    last = nodedb_wal_last_lsn(wal);
    if (test_random(state) % 3 == 0) {
        h->kinds[last + 1] = SEAL;
        if (nodedb_wal_close(wal, NULL) == NODEDB_OK && last > h->acknowledged) h->acknowledged = last;
    } else nodedb_wal__free(wal);
}

/* What a reader hands out, held against the history. */
typedef struct reading_of {
    history *h;
    uint64_t newest[COLLECTIONS]; /* the tombstone in force of each collection */
    bool exactly;                 /* the dead are not handed out */
    uint64_t next;
    bool wrong;
} reading_of;

static bool is_dead(const reading_of *c, uint64_t lsn, uint64_t collection) { return lsn < c->newest[collection]; }

static bool right_parts(const reading_of *c, const nodedb_wal_record *record) {
    unsigned char buffer[3000];
    nodedb_wal_transaction tx;
    nodedb_wal_record sub, want;
    uint64_t i;
    bool is_there;
    if (nodedb_wal_transaction_open(record, &tx, NULL) != NODEDB_OK) return false;
    if (tx.count != part_count(record->lsn)) return false;
    is_there = nodedb_wal_transaction_next(&tx, &sub);
    for (i = 0; i < tx.count; i++) {
        want = part_of(record->lsn, i, buffer);
        if (is_there && sub.database == want.database && sub.payload_bytes == want.payload_bytes &&
            memcmp(sub.payload, want.payload, want.payload_bytes) == 0) {
            if (c->exactly && is_dead(c, record->lsn, want.database)) return false;
            is_there = nodedb_wal_transaction_next(&tx, &sub);
        } else if (!is_dead(c, record->lsn, want.database)) return false;
    }
    return !is_there;
}

static nodedb_status hold_against(void *ctx, const nodedb_wal_record *record) {
    reading_of *c = (reading_of *)ctx;
    const history *h = c->h;
    unsigned char buffer[3000];
    kind what = (kind)h->kinds[record->lsn];
    uint64_t collection = h->collections[record->lsn];
    if (c->next == 0) c->next = record->lsn; /* what was truncated, or died at the beginning */
    for (; c->next < record->lsn; c->next++) /* what is not handed out must be dead */
        if (h->kinds[c->next] != SEAL && !(h->kinds[c->next] == PUT && is_dead(c, c->next, h->collections[c->next])))
            c->wrong = true;
    c->next = record->lsn + 1;
    if (what == TRANSACTION) c->wrong = c->wrong || !right_parts(c, record);
    else if (what == TOMBSTONE)
        c->wrong = c->wrong || !nodedb_wal__is_tombstone(record->type) || record->database != collection;
    else if (what == PUT) {
        nodedb_wal_record want = record_of(record->lsn, buffer, 3000);
        if (record->type != want.type || record->database != collection ||
            record->payload_bytes != want.payload_bytes ||
            memcmp(record->payload, want.payload, want.payload_bytes) != 0 ||
            (c->exactly && is_dead(c, record->lsn, collection)))
            c->wrong = true;
    } else c->wrong = true;
    return NODEDB_OK;
}

/* Everything acknowledged is there; the tombstones in force are those that the log holds, or held where it was
 * truncated, but for the forgotten ones; readers hand out what lives. Answers what is wrong, or NULL. */
static const char *check_history(sim_disk *disk, const nodedb_wal_config *config, history *h) {
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_tombstone stones[COLLECTIONS + 1];
    reading_of before, after;
    nodedb_error err;
    nodedb_wal *wal;
    nodedb_status early;
    uint64_t lsn, last;
    size_t i, n;
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    before.h = after.h = h;
    after.exactly = true;
    reading.io = disk->io;
    wal = nodedb_wal_open(config, &err);
    if (wal == NULL) {
        fprintf(stderr, "%s\n", err.message);
        return "it cannot be opened";
    }
    last = nodedb_wal_last_lsn(wal);
    if (last < h->acknowledged) return "an acknowledged record is lost";
    for (lsn = 1; lsn <= last; lsn++)
        if (h->kinds[lsn] == TOMBSTONE) before.newest[h->collections[lsn]] = lsn;
    n = nodedb_wal_list_tombstones(wal, stones, COLLECTIONS + 1);
    if (n > COLLECTIONS) return "there are too many tombstones";
    for (i = 0; i < n; i++) {
        if (stones[i].tenant != 1 || stones[i].collection >= COLLECTIONS) return "a tombstone was altered";
        if (stones[i].lsn != before.newest[stones[i].collection]) return "a tombstone that no log held is in force";
        if (stones[i].lsn < h->forgotten) return "a forgotten tombstone is in force";
        after.newest[stones[i].collection] = stones[i].lsn;
    }
    for (i = 0; i < COLLECTIONS; i++)
        if (after.newest[i] == 0 && before.newest[i] != 0 && before.newest[i] >= h->perhaps_forgotten)
            return "a tombstone is not in force";
    early = nodedb_wal_replay(&reading, hold_against, &before, NULL, &err); /* the file may be older here */
    if (early != NODEDB_OK || before.wrong) return "a reader of the open log has lost what lives";
    if (nodedb_wal_close(wal, &err) != NODEDB_OK) return "it cannot be closed";
    if (nodedb_wal_replay(&reading, hold_against, &after, NULL, &err) != NODEDB_OK || after.wrong)
        return "a reader hands out what is dead, or not what lives";
    if (nodedb_wal_verify(&reading, NULL, &err) != NODEDB_OK) return "it does not verify";
    if (sim_open_files(disk) != 0) return "a file was left open";
    return NULL;
}

TEST(whatever_a_power_cut_leaves_acknowledged_tombstones_are_in_force_no_others_and_transactions_are_whole) {
    uint64_t number, histories = test_long ? 50000 : 300;
    static history h;
    int failures = 0;
    for (number = 0; number < histories && failures < 3; number++) {
        uint64_t state = test_seed * 7000003 + number;
        sim_disk *disk = sim_new(state);
        nodedb_wal_config config = sim_config(disk);
        const char *wrong = NULL;
        int lives = (int)(test_random(&state) % 4) + 1;
        memset(&h, 0, sizeof h);
        while (lives-- > 0 && !h.wrong) {
            disk->calls = 0;
            disk->fail_at = test_random(&state) % 300 + 1;
            disk->fail_error = EIO, disk->fail_on = true;
            live(&config, &h, &state, (int)(test_random(&state) % 150) + 20);
            if (test_random(&state) % 2 == 0) sim_power_cut(disk);
            else disk->fail_at = 0;
        }
        sim_power_cut(disk);
        if (!h.wrong) wrong = check_history(disk, &config, &h);
        if (h.wrong || wrong != NULL) {
            char what[200];
            snprintf(what, sizeof what, "history %llu: %s (acknowledged %llu)", (unsigned long long)number,
                     wrong != NULL ? wrong : "an acknowledged record was lost", (unsigned long long)h.acknowledged);
            test_fail(__FILE__, __LINE__, what);
            failures++;
        }
        sim_free(disk);
    }
}

TEST(every_io_call_of_a_log_with_tombstones_fails_in_turn_and_they_stay_in_force) {
    static const int errors[] = {EIO, ENOSPC, EINTR, 0};
    static history h;
    int kind_of_error, failures = 0;
    for (kind_of_error = 0; kind_of_error < 4; kind_of_error++) {
        uint64_t call, calls = 0; /* 0: none fails, and they are counted */
        for (call = 0; call <= calls && failures < 3; call += test_long ? 1 : 1 + call / 40) {
            sim_disk *disk = sim_new(test_seed);
            nodedb_wal_config config = sim_config(disk);
            const char *wrong;
            uint64_t state = test_seed + 10;
            int lives;
            memset(&h, 0, sizeof h);
            disk->fail_at = call, disk->fail_error = errors[kind_of_error];
            for (lives = 0; lives < 4; lives++) live(&config, &h, &state, 150);
            if (call == 0) calls = disk->calls;
            disk->fail_at = 0;
            wrong = h.wrong ? "an acknowledged record was lost" : check_history(disk, &config, &h);
            if (wrong != NULL) {
                char what[200];
                snprintf(what, sizeof what, "errno %d at call %llu: %s", errors[kind_of_error],
                         (unsigned long long)call, wrong);
                test_fail(__FILE__, __LINE__, what);
                failures++;
            }
            sim_free(disk);
        }
        CHECK(calls > 200);
    }
}

TEST_MAIN("wal_types")
