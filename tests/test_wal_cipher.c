/* Tests of encryption at rest in nodedb_wal.h, section 9 of its manual. With OpenSSL (-DHAVE_OPENSSL, -lcrypto) the
 * cipher is its AES-256-GCM. Without, a stand-in of the test's own takes its place: it does what the log needs to be
 * tested, and keeps nothing secret. Do not copy it.
 *
 *   the cipher
 *   reading and writing
 *   keys
 *   damage, by nature and by hand
 */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "test.h"
#include "simdisk.h"
#include "wal_helpers.h"
#include <pthread.h>
#if defined(HAVE_OPENSSL)
#include <openssl/evp.h>
#endif

/* ---- the cipher ------------------------------------------------------------------------------------------------- */

enum { KEY_BYTES = 32, KEYS = 8, NOTES = 1 << 14 };

#if defined(HAVE_OPENSSL)
static bool aes_gcm(bool seal, const unsigned char *key, const nodedb_wal_sealing *s, const unsigned char *in,
                    size_t bytes, unsigned char *out, unsigned char *tag) {
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    unsigned char rest[16];
    int n = 0;
    bool good = c != NULL && EVP_CipherInit_ex(c, EVP_aes_256_gcm(), NULL, key, s->nonce, seal) == 1 &&
                EVP_CipherUpdate(c, NULL, &n, s->header, (int)s->header_bytes) == 1 &&
                (bytes == 0 || EVP_CipherUpdate(c, out, &n, in, (int)bytes) == 1) &&
                (seal || EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, NODEDB_WAL_TAG_BYTES, tag) == 1) &&
                EVP_CipherFinal_ex(c, rest, &n) == 1 &&
                (!seal || EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, NODEDB_WAL_TAG_BYTES, tag) == 1);
    EVP_CIPHER_CTX_free(c);
    return good;
}
#else
/* The stand-in: a stream of numbers added to the text, and two sums over all that a tag must cover. */
static void stand_in_tag(const unsigned char *key, const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes,
                         unsigned char *tag) {
    uint64_t sum[2];
    size_t i;
    int lane;
    for (lane = 0; lane < 2; lane++) {
        uint64_t h = nodedb_mix64(nodedb_get_u64(key + 8 * lane) ^ s->header_bytes) ^ bytes;
        for (i = 0; i < NODEDB_WAL_NONCE_BYTES; i++) h = nodedb_mix64(h ^ s->nonce[i]);
        for (i = 0; i < s->header_bytes; i++) h = nodedb_mix64(h ^ s->header[i]);
        for (i = 0; i < bytes; i++) h = (h ^ text[i]) * UINT64_C(0x100000001B3);
        sum[lane] = nodedb_mix64(h);
    }
    nodedb_put_u64(tag, sum[0]);
    nodedb_put_u64(tag + 8, sum[1]);
}
static void stand_in_stream(const unsigned char *key, const nodedb_wal_sealing *s, const unsigned char *in,
                            size_t bytes, unsigned char *out) {
    uint64_t state = nodedb_get_u64(key) ^ nodedb_mix64(nodedb_get_u64(s->nonce + 4)) ^ nodedb_get_u32(s->nonce);
    size_t i;
    for (i = 0; i < bytes; i++) out[i] = (unsigned char)(in[i] ^ test_random(&state));
}
static bool aes_gcm(bool seal, const unsigned char *key, const nodedb_wal_sealing *s, const unsigned char *in,
                    size_t bytes, unsigned char *out, unsigned char *tag) {
    unsigned char want[NODEDB_WAL_TAG_BYTES];
    if (seal) {
        stand_in_stream(key, s, in, bytes, out);
        stand_in_tag(key, s, out, bytes, tag);
        return true;
    }
    stand_in_tag(key, s, in, bytes, want);
    if (memcmp(want, tag, sizeof want) != 0) return false;
    stand_in_stream(key, s, in, bytes, out);
    return true;
}
#endif

/* One use of a nonce: what it is, and a sum over text and header. */
typedef struct note {
    uint32_t key_id;
    unsigned char nonce[NODEDB_WAL_NONCE_BYTES];
    uint64_t sum;
    bool used;
} note;

/* What a cipher's ctx is here. */
typedef struct keys {
    uint64_t salt;  /* another salt, other keys under the same numbers */
    uint32_t now;   /* the key for new segments */
    uint32_t known; /* bit n: key n is there */
    uint32_t fail_seals;
    nodedb_status fail_with;
    uint64_t seals, opens, repeats;
    int inside, overlaps; /* calls that came while another was running */
    note *notes;          /* NOTES of them, where nonces are watched */
} keys;

static void key_of(const keys *k, uint32_t id, unsigned char *key) {
    uint64_t state = k->salt * 1000 + id;
    int i;
    for (i = 0; i < KEY_BYTES; i += 8) nodedb_put_u64(key + i, test_random(&state));
}

static void enter_call(keys *k) {
    if (__atomic_fetch_add(&k->inside, 1, __ATOMIC_ACQ_REL) != 0) __atomic_fetch_add(&k->overlaps, 1, __ATOMIC_ACQ_REL);
}
static void leave_call(keys *k) { __atomic_fetch_sub(&k->inside, 1, __ATOMIC_ACQ_REL); }

/* Has this nonce sealed something else under this key? */
static void watch_nonce(keys *k, const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes) {
    uint64_t sum = nodedb_crc32c(0, s->header, s->header_bytes) * UINT64_C(0x9E3779B97F4A7C15) ^ bytes, at;
    size_t i;
    for (i = 0; i < bytes; i++) sum = (sum ^ text[i]) * UINT64_C(0x100000001B3);
    at = nodedb_mix64(nodedb_get_u64(s->nonce + 4) ^ (uint64_t)nodedb_get_u32(s->nonce) << 40 ^ s->key_id);
    for (i = 0; i < NOTES; i++) {
        note *n = &k->notes[(at + i) % NOTES];
        if (!n->used) {
            n->used = true, n->key_id = s->key_id, n->sum = sum;
            memcpy(n->nonce, s->nonce, sizeof n->nonce);
            return;
        }
        if (n->key_id != s->key_id || memcmp(n->nonce, s->nonce, sizeof n->nonce) != 0) continue;
        k->repeats += n->sum != sum;
        return;
    }
    test_fail(__FILE__, __LINE__, "more nonces than the test can note");
}

static uint32_t cipher_key_id(void *ctx) {
    keys *k = (keys *)ctx;
    uint32_t id;
    enter_call(k);
    id = k->now;
    leave_call(k);
    return id;
}

static nodedb_status cipher_seal(void *ctx, const nodedb_wal_sealing *s, unsigned char *text, size_t bytes,
                                 unsigned char *tag) {
    keys *k = (keys *)ctx;
    unsigned char key[KEY_BYTES];
    nodedb_status status = NODEDB_OK;
    enter_call(k);
    if (k->fail_seals > 0) {
        k->fail_seals--;
        memset(text, 0xEE, bytes); /* half of its work is done */
        status = k->fail_with;
    } else {
        if (k->notes != NULL) watch_nonce(k, s, text, bytes);
        key_of(k, s->key_id, key);
        if (!aes_gcm(true, key, s, text, bytes, text, tag)) status = NODEDB_ERR_FAULT;
        k->seals++;
    }
    leave_call(k);
    return status;
}

static nodedb_status cipher_open(void *ctx, const nodedb_wal_sealing *s, const unsigned char *text, size_t bytes,
                                 const unsigned char *tag, unsigned char *plain) {
    keys *k = (keys *)ctx;
    unsigned char key[KEY_BYTES], own_tag[NODEDB_WAL_TAG_BYTES];
    nodedb_status status = NODEDB_ERR_KEY;
    enter_call(k);
    if (s->key_id < KEYS && (k->known >> s->key_id & 1) != 0) {
        key_of(k, s->key_id, key);
        memcpy(own_tag, tag, sizeof own_tag);
        status = aes_gcm(false, key, s, text, bytes, plain, own_tag) ? NODEDB_OK : NODEDB_ERR_CORRUPT;
        k->opens++;
    }
    leave_call(k);
    return status;
}

static nodedb_wal_cipher cipher_of(keys *k) {
    nodedb_wal_cipher cipher;
    cipher.key_id = cipher_key_id, cipher.seal = cipher_seal, cipher.open = cipher_open;
    cipher.ctx = k;
    return cipher;
}

static keys keys_from(uint64_t salt) {
    keys k;
    memset(&k, 0, sizeof k);
    k.salt = salt, k.now = 1, k.known = 0xFE;
    return k;
}

static nodedb_wal_config encrypted_config(const char *name, keys *k) {
    nodedb_wal_config config = config_here(name);
    config.cipher = cipher_of(k);
    return config;
}

static nodedb_wal_reader_config reading_with(keys *k) {
    nodedb_wal_reader_config reading = reading_here();
    if (k != NULL) reading.cipher = cipher_of(k);
    return reading;
}

/* Like count_record, but a seal may lie between two records. */
static nodedb_status count_with_gaps(void *ctx, const nodedb_wal_record *record) {
    counting *c = (counting *)ctx;
    if (record->lsn == c->next + 1) c->next++;
    return count_record(ctx, record);
}

/* Replays with these keys (NULL: none); says how many records were right, and fails where the status is another. */
static uint64_t replay_with(keys *k, uint32_t max, nodedb_status want, nodedb_error *err) {
    nodedb_wal_reader_config reading = reading_with(k);
    counting c;
    nodedb_status status;
    memset(&c, 0, sizeof c);
    memset(err, 0, sizeof *err);
    c.max = max;
    status = nodedb_wal_replay(&reading, count_with_gaps, &c, NULL, err);
    if (status != want) fprintf(stderr, "replay: %s\n", err->message);
    CHECK_EQ(status, want);
    CHECK(!c.wrong);
    return c.count;
}

static bool log_of(const nodedb_wal_config *config, uint64_t records, uint32_t max) {
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    bool good = wal != NULL && append_range(wal, nodedb_wal_last_lsn(wal) + 1, nodedb_wal_last_lsn(wal) + records, max);
    if (wal == NULL) fprintf(stderr, "open: %s\n", err.message);
    return nodedb_wal_close(wal, &err) == NODEDB_OK && good;
}

/* ---- reading and writing ---------------------------------------------------------------------------------------- */

TEST(an_encrypted_log_reads_as_a_clear_one_by_every_reader) {
    keys k = keys_from(1), other;
    nodedb_wal_config config = encrypted_config("all", &k);
    nodedb_wal_reader_config reading;
    nodedb_wal_reader_stats stats;
    nodedb_wal_cursor cursor;
    nodedb_wal_report report;
    nodedb_error err;
    counting c;
    uint32_t threads;
    bool more = true;
    int pages = 0;
    REQUIRE(log_of(&config, 2000, 2000));
    CHECK(k.seals > 2000 && k.repeats == 0 && k.overlaps == 0);
    for (threads = 0; threads <= 3; threads++) { /* 0: buffered; from 2 on segments are checked ahead */
        reading = reading_with(&k);
        reading.threads = threads == 0 ? 1 : threads;
        reading.access = threads == 0 ? NODEDB_WAL_ACCESS_BUFFERED : NODEDB_WAL_ACCESS_MAPPED;
        memset(&c, 0, sizeof c);
        c.max = 2000;
        CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, &stats, &err), NODEDB_OK);
        CHECK(c.count == 2000 && !c.wrong && stats.records == 2000);
        CHECK(stats.segments_opened >= NODEDB_WAL_PARALLEL_FROM_SEGMENTS);
    }
    memset(&c, 0, sizeof c);
    memset(&cursor, 0, sizeof cursor);
    c.max = 2000;
    reading = reading_with(&k);
    reading.from_lsn = 101;
    for (; more && pages < 100; pages++)
        CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 300, count_record, &c, &more, &err), NODEDB_OK);
    CHECK(c.count == 1900 && !c.wrong && pages == 7);
    other = keys_from(99);
    CHECK_EQ(replay_with(&other, 2000, NODEDB_ERR_KEY, &err), 0); /* also where threads read ahead */
    other = keys_from(1); /* the keys are all that a reader needs: no state of the writer's */
    CHECK_EQ(replay_with(&other, 2000, NODEDB_OK, &err), 2000);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK(report.sealed && report.torn_bytes == 0);
}

TEST(a_change_stream_follows_an_encrypted_log_across_rollovers_and_keys) {
    keys writing = keys_from(1), following = keys_from(1);
    nodedb_wal_config config = encrypted_config("follow", &writing);
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t n = 0, round;
    REQUIRE(wal != NULL);
    reading = reading_with(&following);
    reading.follow = wal;
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    for (round = 0; round < 60; round++) {
        if (round % 7 == 3) {
            writing.now = writing.now % 3 + 1;
            CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
        }
        CHECK(append_range(wal, n + 1, n + 17, 2000));
        while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK) CHECK(is_record(&record, ++n, 2000));
        CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
        CHECK_EQ(n, nodedb_wal_durable_lsn(wal));
    }
    nodedb_wal_reader_close(r);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_with(&following, 2000, NODEDB_OK, &err), n);
}

static void *commit_many(void *argument) {
    nodedb_wal_record record;
    int i, failures = 0;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = "shared", record.payload_bytes = 6;
    for (i = 0; i < 200; i++)
        failures += nodedb_wal_commit((nodedb_wal *)argument, &record, 1, NULL, NULL) != NODEDB_OK;
    return failures == 0 ? NULL : argument;
}

TEST(the_calls_of_one_log_never_overlap) {
    keys k = keys_from(2);
    nodedb_wal_config config = encrypted_config("threads", &k);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    pthread_t thread[8];
    void *failed;
    int i;
    REQUIRE(wal != NULL);
    for (i = 0; i < 8; i++) pthread_create(&thread[i], NULL, commit_many, wal);
    for (i = 0; i < 50; i++) {
        CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
        usleep(200);
    }
    for (i = 0; i < 8; i++) {
        pthread_join(thread[i], &failed);
        CHECK(failed == NULL);
    }
    CHECK_EQ(k.overlaps, 0);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

TEST(a_record_is_on_disk_as_the_manual_says) {
    keys k = keys_from(3);
    nodedb_wal_config config = encrypted_config("bytes", &k);
    unsigned char at[8192], header[120], key[KEY_BYTES], plain[64];
    nodedb_wal_sealing s;
    nodedb_wal_record record;
    nodedb_error err;
    char path[700];
    nodedb_wal *wal;
    int fd;
    config.log_id = 77;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_PUT, record.tenant = 5, record.payload = "secret", record.payload_bytes = 6;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    snprintf(path, sizeof path, "%s/00000000000000000001.wal", log_dir);
    fd = open(path, O_RDONLY);
    REQUIRE(fd >= 0 && read(fd, at, sizeof at) == (ssize_t)sizeof at);
    close(fd);
    CHECK_EQ(nodedb_get_u32(at + 44), 1);
    CHECK_EQ(nodedb_get_u16(at + 4096 + 6), NODEDB_WAL_TYPE_PUT | NODEDB_WAL_ENCRYPTED);
    CHECK_EQ(nodedb_get_u32(at + 4096 + 32), 6 + 16);
    memcpy(header, at, 60);
    memcpy(header + 60, at + 4096, 60);
    memset(header + 60 + 36, 0, 4); /* no seal */
    memset(header + 60 + 56, 0, 4);
    memset(&s, 0, sizeof s);
    memcpy(s.nonce, at + 16, 4);              /* the epoch's low half */
    memcpy(s.nonce + 4, at + 4096 + 8, 8);    /* the LSN */
    s.header = header, s.header_bytes = 120;
    key_of(&k, 1, key);
    CHECK(aes_gcm(false, key, &s, at + 4096 + 64, 6, plain, at + 4096 + 64 + 6));
    CHECK(memcmp(plain, "secret", 6) == 0);
    CHECK(nodedb_get_u64(at + 64) != 0); /* the key check */
    CHECK_EQ(nodedb_get_u64(at + 80), 0);
}

TEST(records_of_every_size_come_back_and_the_largest_leaves_room_for_the_tag) {
    keys k = keys_from(4);
    nodedb_wal_config config = encrypted_config("large", &k);
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    nodedb_wal_record record, got;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
#if SLOW
    uint32_t largest = 3 << 20;
#else
    uint32_t largest = NODEDB_WAL_MAX_PAYLOAD_BYTES - NODEDB_WAL_TAG_BYTES;
#endif
    uint32_t sizes[] = {10, 40 << 10, 0, 1 << 20, 5, 33 << 10, 32752, 32688, 32689, 0}, i, mapped;
    uint32_t count = sizeof sizes / sizeof *sizes;
    unsigned char *payload = (unsigned char *)malloc(NODEDB_WAL_MAX_PAYLOAD_BYTES);
    REQUIRE(wal != NULL && payload != NULL);
    sizes[count - 1] = largest;
    for (i = 0; i < NODEDB_WAL_MAX_PAYLOAD_BYTES; i++) payload[i] = (unsigned char)(i * 13 + (i >> 12));
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_PUT | NODEDB_WAL_REQUIRED;
    record.payload = payload;
    for (i = 0; i < count; i++) {
        record.payload_bytes = sizes[i];
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK);
    }
    record.payload_bytes = NODEDB_WAL_MAX_PAYLOAD_BYTES - NODEDB_WAL_TAG_BYTES + 1;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_wal_last_lsn(wal), count);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    for (mapped = 0; mapped < 2; mapped++) {
        reading = reading_with(&k);
        reading.access = mapped ? NODEDB_WAL_ACCESS_MAPPED : NODEDB_WAL_ACCESS_BUFFERED;
        r = nodedb_wal_reader_open(&reading, &err);
        REQUIRE(r != NULL);
        for (i = 0; i < count; i++) {
            CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_OK);
            CHECK(got.payload_bytes == sizes[i] && memcmp(got.payload, payload, sizes[i]) == 0);
            CHECK_EQ(got.type, NODEDB_WAL_TYPE_PUT | NODEDB_WAL_REQUIRED);
        }
        CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_ERR_AGAIN);
        nodedb_wal_reader_close(r);
    }
    free(payload);
}

TEST(statistics_count_what_was_appended_and_not_what_is_stored) {
    keys k = keys_from(5);
    nodedb_wal_config config = encrypted_config("stats", &k);
    nodedb_wal_reader_config reading = reading_with(&k);
    nodedb_wal_reader_stats read_stats;
    nodedb_wal_report report;
    nodedb_wal_stats stats;
    nodedb_error err;
    unsigned char buffer[1000];
    counting c;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t n, bytes = 0;
    REQUIRE(wal != NULL);
    CHECK(append_range(wal, 1, 100, 900));
    for (n = 1; n <= 100; n++) bytes += content_of(n, buffer, 900);
    nodedb_wal_get_stats(wal, &stats);
    CHECK(stats.records == 100 && stats.payload_bytes == bytes);
    CHECK(stats.written_bytes >= bytes + 100 * (64 + 16) && stats.padding_bytes < stats.written_bytes);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    memset(&c, 0, sizeof c);
    c.max = 900;
    CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, &read_stats, &err), NODEDB_OK);
    CHECK(read_stats.records == 100 && read_stats.payload_bytes == bytes);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK_EQ(report.payload_bytes, bytes);
    reading = reading_with(NULL);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK); /* checksums need no key */
    CHECK(report.payload_bytes == bytes && report.records == 100 && report.sealed);
}

/* Is `text` in any file of the log? */
static bool in_the_files(const char *text) {
    char command[900];
    snprintf(command, sizeof command, "grep -rqaF '%s' '%s'", text, log_dir);
    return system(command) == 0;
}

TEST(the_plain_text_is_nowhere_in_the_files) {
    static char payload[50000];
    int encrypted;
    for (encrypted = 0; encrypted < 2; encrypted++) { /* in a clear log the search does find it */
        keys k = keys_from(6);
        nodedb_wal_config config = encrypted_config(encrypted ? "secret" : "clear", &k);
        nodedb_wal_record record;
        nodedb_error err;
        nodedb_wal *wal;
        size_t i;
        if (!encrypted) memset(&config.cipher, 0, sizeof config.cipher);
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        for (i = 0; i + 20 < sizeof payload; i += 20) memcpy(payload + i, "the crown jewels are", 20);
        memset(&record, 0, sizeof record);
        record.type = NODEDB_WAL_TYPE_USER, record.payload = payload;
        for (i = 0; i < 300; i++) {
            record.payload_bytes = (uint32_t)(i % 10 == 0 ? sizeof payload : 20 + i);
            if (encrypted && i % 17 == 3) { /* a record that could not be sealed leaves nothing behind */
                k.fail_seals = 1, k.fail_with = NODEDB_ERR_KEY;
                CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_KEY);
            }
            CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK);
            if (i % 50 == 0) CHECK_EQ(nodedb_wal_truncate_before(wal, i, NULL, &err), NODEDB_OK);
        }
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        CHECK_EQ(in_the_files("crown jewels"), !encrypted);
    }
}

TEST(records_are_handed_out_as_stored_on_demand_and_that_needs_no_key) {
    keys k = keys_from(7);
    nodedb_wal_config config = encrypted_config("kept", &k);
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error err;
    unsigned char buffer[400];
    uint64_t n = 0;
    REQUIRE(log_of(&config, 50, 300));
    k.opens = 0;
    reading = reading_with(&k);
    reading.keep_encrypted = true;
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK) {
        uint32_t bytes = content_of(++n, buffer, 300);
        CHECK_EQ(record.type, NODEDB_WAL_TYPE_USER | NODEDB_WAL_ENCRYPTED);
        CHECK_EQ(record.payload_bytes, bytes + NODEDB_WAL_TAG_BYTES);
        CHECK(bytes < 8 || memcmp(record.payload, buffer, bytes) != 0);
    }
    CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
    CHECK_EQ(n, 50);
    CHECK_EQ(k.opens, 0);
    nodedb_wal_reader_close(r);
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

TEST(a_wrong_key_is_an_error_that_says_so_and_so_are_an_unknown_and_a_missing_one) {
    keys k = keys_from(8), wrong = keys_from(9), unknown = keys_from(8);
    nodedb_wal_config config = encrypted_config("keys", &k);
    nodedb_wal_reader_config reading;
    nodedb_wal_report report;
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error err;
    unknown.known = 0;
    REQUIRE(log_of(&config, 20, 300));
    reading = reading_with(&wrong); /* found when the segment is opened, before any record */
    CHECK(nodedb_wal_reader_open(&reading, &err) == NULL && err.status == NODEDB_ERR_KEY);
    CHECK_HAS(err.message, "00000000000000000001.wal is encrypted with key 1");
    CHECK_HAS(err.message, "is another");
    CHECK_EQ(replay_with(&wrong, 300, NODEDB_ERR_KEY, &err), 0);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_KEY);
    CHECK_EQ(replay_with(&unknown, 300, NODEDB_ERR_KEY, &err), 0);
    CHECK_HAS(err.message, "no such key");
    CHECK_EQ(replay_with(NULL, 300, NODEDB_ERR_KEY, &err), 0);
    CHECK_HAS(err.message, "there is no cipher");
    CHECK_EQ(err.lsn, 1);
    reading = reading_with(NULL);
    reading.from_lsn = 7;
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_ERR_KEY);
    CHECK_EQ(err.lsn, 7); /* the first that would have been delivered */
    CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_ERR_KEY);
    nodedb_wal_reader_close(r);

    config.cipher = cipher_of(&wrong);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_KEY);
    CHECK_HAS(err.message, ".wal is encrypted with key 1");
    config.cipher = cipher_of(&unknown);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_KEY);
    memset(&config.cipher, 0, sizeof config.cipher);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_KEY);
    CHECK_HAS(err.message, "there is no cipher");
    CHECK_EQ(replay_with(&k, 300, NODEDB_OK, &err), 20); /* and nothing has been changed by all that */
    config.cipher = cipher_of(&k);
    CHECK(log_of(&config, 0, 300));
}

TEST(keys_change_from_one_segment_to_the_next_and_old_ones_are_needed_until_truncation) {
    keys k = keys_from(10), only_new = keys_from(10);
    nodedb_wal_config config = encrypted_config("rotation", &k);
    nodedb_wal_stats stats;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint32_t removed;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 10, 300));
    k.now = 2;
    CHECK(commit_range(wal, 11, 20, 300)); /* still the old key: the segment has it */
    only_new.known = 1 << 2;
    CHECK_EQ(replay_with(&only_new, 300, NODEDB_ERR_KEY, &err), 0);
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK); /* twice is once */
    CHECK(commit_range(wal, 21, 30, 300));
    nodedb_wal_get_stats(wal, &stats);
    CHECK_EQ(stats.segments_begun, 2);
    k.known = 1 << 1;
    CHECK_EQ(replay_with(&k, 300, NODEDB_ERR_KEY, &err), 20); /* all under key 1, then key 2 is missing */
    CHECK_HAS(err.message, "00000000000000000021.wal is encrypted with key 2");
    k.known = 0xFE;
    CHECK_EQ(replay_with(&k, 300, NODEDB_OK, &err), 30);
    CHECK_EQ(nodedb_wal_truncate_before(wal, 21, &removed, &err), NODEDB_OK);
    CHECK_EQ(removed, 1);
    CHECK_EQ(replay_with(&only_new, 300, NODEDB_OK, &err), 10);
    /* a segment without records and an old key: a noop fills it */
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    CHECK(commit_range(wal, 31, 31, 300));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK); /* no record in it, and the key is the same: nothing to do */
    CHECK_EQ(nodedb_wal_last_lsn(wal), 32);
    k.now = 3;
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 33);
    CHECK(commit_range(wal, 34, 40, 300));
    CHECK_EQ(nodedb_wal__current_file(wal)->segment.key_id, 3);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_truncate_before(wal, 34, &removed, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    only_new.known = 1 << 3;
    CHECK_EQ(replay_with(&only_new, 300, NODEDB_OK, &err), 7);
    CHECK_EQ(nodedb_wal_rollover(NULL, &err), NODEDB_ERR_INVALID);
}

TEST(one_seal_ends_a_segment_also_if_the_rollover_has_written_it) {
    keys k = keys_from(12);
    nodedb_wal_config config = encrypted_config("sealed", &k);
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_report report;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    k.now = 2;
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 1);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK(report.last_lsn == 1 && report.sealed);
}

TEST(a_clear_log_rolls_over_too) {
    nodedb_wal_config config = config_here("roll");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    nodedb_wal_stats stats;
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK); /* nothing in it yet */
    CHECK(commit_range(wal, 1, 5, 100));
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    CHECK(commit_range(wal, 6, 9, 100));
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK); /* and nothing more is written */
    nodedb_wal_get_stats(wal, &stats);
    CHECK_EQ(stats.segments_begun, 2);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_all(1, 100, NODEDB_OK).count, 9);
}

TEST(a_clear_log_goes_on_encrypted_and_an_encrypted_one_never_in_clear) {
    keys k = keys_from(11);
    nodedb_wal_config config = config_here("mixed");
    nodedb_wal__segment segment;
    nodedb_wal_reader_config reading;
    nodedb_error err;
    unsigned char *block = (unsigned char *)calloc(1, 65536);
    char path[700];
    FILE *file;
    nodedb_wal *wal;
    REQUIRE(log_of(&config, 10, 300)); /* and a seal: 11 */
    config.cipher = cipher_of(&k);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 12, 20, 300));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_with(&k, 300, NODEDB_OK, &err), 19);
    CHECK_EQ(replay_with(NULL, 300, NODEDB_ERR_KEY, &err), 10);
    CHECK_EQ(err.lsn, 12);
    memset(&config.cipher, 0, sizeof config.cipher);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_KEY);
    /* somebody who can write files puts a clear segment behind it, with everything as it must be but the encryption */
    memset(&segment, 0, sizeof segment);
    reading = reading_with(&k);
    {
        nodedb_wal_reader *r = nodedb_wal_reader_open(&reading, &err);
        REQUIRE(r != NULL);
        segment = r->list.at[r->list.count - 1];
        nodedb_wal_reader_close(r);
    }
    segment.epoch += 5, segment.first_lsn = 22, segment.bytes = 65536, segment.key_id = 0;
    nodedb_wal__encode_preamble(block, &segment);
    snprintf(path, sizeof path, "%s/00000000000000000022.wal", log_dir);
    file = fopen(path, "wb");
    REQUIRE(file != NULL && fwrite(block, 65536, 1, file) == 1 && fclose(file) == 0);
    free(block);
    CHECK_EQ(replay_with(&k, 300, NODEDB_ERR_CORRUPT, &err), 0);
    CHECK_HAS(err.message, "is not encrypted, but the segment before it is");
    CHECK_EQ(replay_with(NULL, 300, NODEDB_ERR_CORRUPT, &err), 0);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    config.cipher = cipher_of(&k);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
}

TEST(half_a_cipher_key_zero_and_more_segments_than_nonces_are_errors) {
    keys k = keys_from(12);
    nodedb_wal_config config = encrypted_config("wrong", &k);
    nodedb_error err;
    char path[700];
    FILE *file;
    nodedb_wal *wal;
    config.cipher.open = NULL;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "cipher");
    config.cipher = cipher_of(&k);
    k.now = 0;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "key 0");
    k.now = 1;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 3, 300));
    k.now = 0;
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    {
        unsigned char buffer[400];
        nodedb_wal_record record = record_of(4, buffer, 300);
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_INVALID);
        k.now = 2;
        CHECK(commit_range(wal, 4, 6, 300));
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_with(&k, 300, NODEDB_OK, &err), 6);
    snprintf(path, sizeof path, "%s/dead-4294967295.wal", log_dir); /* the last epoch was used */
    file = fopen(path, "wb");
    REQUIRE(file != NULL && fclose(file) == 0);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "begin a new log");
    CHECK_EQ(replay_with(&k, 300, NODEDB_OK, &err), 6);
}

TEST(a_record_that_cannot_be_sealed_is_not_appended_and_the_log_goes_on) {
    keys k = keys_from(13);
    nodedb_wal_config config = encrypted_config("failing", &k);
    static unsigned char buffer[1 << 17];
    nodedb_wal_record record, large;
    nodedb_error err;
    nodedb_wal *wal;
    uint64_t lsn = 99;
    int i;
    k.fail_seals = 1, k.fail_with = NODEDB_ERR_KEY; /* the key check of the first segment */
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_KEY);
    CHECK_HAS(err.message, "could not seal the preamble");
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 3, 3000));
    memset(&large, 0, sizeof large);
    large.payload = buffer, large.payload_bytes = 100000; /* larger than a group: it has a buffer of its own */
    for (i = 0; i < 6; i++) {
        k.fail_seals = 1;
        k.fail_with = i % 3 == 0 ? NODEDB_ERR_KEY : i % 3 == 1 ? NODEDB_ERR_AGAIN : NODEDB_ERR_DISK_FULL;
        record = record_of(4, buffer, 3000);
        CHECK_EQ(nodedb_wal_commit(wal, i % 2 == 0 ? &record : &large, 1, &lsn, &err), NODEDB_ERR_KEY);
        CHECK_HAS(err.message, "could not seal record 4 with key 1");
        CHECK_EQ(nodedb_wal_last_lsn(wal), 3);
        CHECK_EQ(lsn, 99);
    }
    CHECK(append_range(wal, 4, 100, 3000));
    CHECK_EQ(nodedb_wal_rollover(wal, &err), NODEDB_OK);
    k.fail_seals = 1; /* the next segment's key check: the old segment is still there, once */
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_KEY);
    CHECK(append_range(wal, 101, 200, 3000));
    k.fail_seals = 1; /* the seal of the end */
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_ERR_KEY);
    CHECK_EQ(replay_with(&k, 3000, NODEDB_OK, &err), 200);
}

TEST(transactions_tombstones_and_anchors_are_encrypted_and_mean_the_same) {
    keys k = keys_from(17);
    nodedb_wal_config config = encrypted_config("meaning", &k);
    nodedb_wal_reader_config reading;
    nodedb_wal_transaction tx;
    nodedb_wal_record records[2], got;
    nodedb_wal_report report;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    nodedb_wal_reader *r;
    uint64_t lsn = 0, at = 0;
    int n = 0, life;
    REQUIRE(wal != NULL);
    memset(records, 0, sizeof records);
    records[0].type = NODEDB_WAL_TYPE_PUT, records[0].database = 3, records[0].payload = "crown";
    records[0].payload_bytes = 5;
    records[1] = records[0], records[1].database = 4, records[1].payload = "jewels", records[1].payload_bytes = 6;
    CHECK_EQ(nodedb_wal_commit(wal, &records[0], 1, NULL, &err), NODEDB_OK);       /* 1, to be dropped */
    CHECK_EQ(nodedb_wal_append_anchor(wal, 1000, &at, &err), NODEDB_OK);           /* 2 */
    CHECK_EQ(nodedb_wal_append_tombstone(wal, 0, 3, NULL, &err), NODEDB_OK);       /* 3 */
    CHECK_EQ(nodedb_wal_commit_transaction(wal, records, 2, &lsn, &err), NODEDB_OK); /* 4 */
    CHECK_EQ(lsn, 4);
    for (life = 0; life < 2; life++) {
        nodedb_wal_tombstone stone;
        CHECK_EQ(nodedb_wal_list_tombstones(wal, &stone, 1), 1);
        CHECK(stone.lsn == 3 && stone.collection == 3);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        wal = nodedb_wal_open(&config, &err); /* recovery finds the tombstone with the key */
        REQUIRE(wal != NULL);
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    reading = reading_with(&k);
    CHECK_EQ(nodedb_wal_lsn_at(&reading, 2000, &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, at);
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    while (nodedb_wal_reader_next(r, &got, &err) == NODEDB_OK) {
        if (got.type != NODEDB_WAL_TYPE_TRANSACTION) continue;
        CHECK_EQ(nodedb_wal_transaction_open(&got, &tx, &err), NODEDB_OK);
        while (nodedb_wal_transaction_next(&tx, &got)) {
            CHECK(got.payload_bytes == records[n].payload_bytes && got.database == records[n].database);
            CHECK(memcmp(got.payload, records[n].payload, got.payload_bytes) == 0);
            n++;
        }
    }
    CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
    CHECK_EQ(n, 2);
    nodedb_wal_reader_close(r);
    CHECK(!in_the_files("crown") && !in_the_files("jewels"));
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    reading = reading_with(NULL);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK_EQ(report.records, 4);
}

TEST(a_transaction_too_large_for_its_tag_is_refused) {
    keys k = keys_from(18);
    nodedb_wal_config config = encrypted_config("size", &k);
    nodedb_wal_record records[1];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    unsigned char *payload = (unsigned char *)calloc(1, NODEDB_WAL_MAX_PAYLOAD_BYTES);
    nodedb_wal_record outer;
    uint32_t bytes, refused = 0;
    REQUIRE(wal != NULL && payload != NULL);
    memset(records, 0, sizeof records);
    records[0].type = NODEDB_WAL_TYPE_PUT, records[0].payload = payload;
    for (bytes = NODEDB_WAL_MAX_PAYLOAD_BYTES - 128; bytes < NODEDB_WAL_MAX_PAYLOAD_BYTES; bytes += 8) {
        records[0].payload_bytes = bytes; /* with its head it fits a record, and the tag does not */
        if (nodedb_wal__outer_record(records, 1, &outer, &err) != NODEDB_OK) break;
        if (outer.payload_bytes <= NODEDB_WAL_MAX_PAYLOAD_BYTES - NODEDB_WAL_TAG_BYTES) continue;
        CHECK_EQ(nodedb_wal_append_transaction(wal, records, 1, NULL, &err), NODEDB_ERR_LIMIT);
        CHECK_EQ(nodedb_wal_last_lsn(wal), 0);
        refused++;
    }
    CHECK(refused > 0);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    free(payload);
}

/* ---- damage, by nature and by hand ------------------------------------------------------------------------------ */

static nodedb_wal_config encrypted_sim(sim_disk *disk, keys *k) {
    nodedb_wal_config config = sim_config(disk);
    config.cipher = cipher_of(k);
    return config;
}

static nodedb_status sim_replay_with(sim_disk *disk, keys *k, uint32_t max, counting *c, nodedb_error *err) {
    nodedb_wal_reader_config reading = reading_with(k);
    memset(c, 0, sizeof *c);
    reading.io = disk->io;
    c->max = max;
    return nodedb_wal_replay(&reading, count_record, c, NULL, err);
}

/* What somebody does who alters files and knows the format: all checksums fit again. */
static void fix_record(unsigned char *record, uint32_t seed) {
    uint32_t crc;
    nodedb_put_u32(record + 56, nodedb_crc32c(seed, record, 56));
    crc = nodedb_crc32c(seed, record + 64, nodedb_get_u32(record + 32));
    nodedb_put_u32(record + 60, nodedb_crc32c(crc, record + 56, 4));
}

static void fix_checksums(unsigned char *file, size_t used) {
    uint32_t seed = nodedb_crc32c(0, file + 8, 24);
    size_t at;
    nodedb_put_u32(file + 60, nodedb_crc32c(0, file, 60));
    for (at = 4096; at < used; at += 4096) { /* one record in each block */
        if (nodedb_get_u32(file + at + 32) <= 4096 - 64) fix_record(file + at, seed);
    }
}

TEST(any_altered_bit_is_noticed_though_every_checksum_fits) {
    sim_disk *disk = sim_new(test_seed);
    keys k = keys_from(14);
    nodedb_wal_config config = encrypted_sim(disk, &k);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    unsigned char *file, *good;
    size_t at, used = 6 * 4096;
    int f, bit, wrong = 0, silent = 0, in_payload = 0;
    counting c;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 4, 60));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(sim_replay_with(disk, &k, 60, &c, &err), NODEDB_OK);
    CHECK_EQ(c.count, 4);
    f = disk->now.name[sim_find(&disk->now, "d/00000000000000000001.wal")].file;
    file = disk->file[f].now;
    good = (unsigned char *)malloc(used);
    memcpy(good, file, used);
    for (at = 0; at < used; at++) {
        size_t in_block = at % 4096, end = at < 4096 ? 80 : 64 + nodedb_get_u32(good + at / 4096 * 4096 + 32);
        bool group = at >= 4096 && in_block >= 36 && in_block < 40; /* what its group is like: no tag covers it */
        if (in_block >= (at < 4096 ? 60 : 56) && in_block < 64) continue; /* the checksums themselves are made to fit */
        if (in_block >= end) continue;
        for (bit = 0; bit < 8; bit++) {
            nodedb_status status;
            file[at] ^= (unsigned char)(1 << bit);
            fix_checksums(file, used);
            status = sim_replay_with(disk, &k, 60, &c, &err);
            wrong += c.wrong;
            if (status == NODEDB_OK && c.count != 4) silent++;
            /* behind it is only the seal, which nobody reads */
            if (at < 5 * 4096 && status == NODEDB_OK && (!group || (in_block == 36 && bit == 0))) silent++;
            if (in_block >= 64 && at >= 4096) {
                in_payload++;
                CHECK_EQ(status, NODEDB_ERR_CORRUPT);
                CHECK_HAS(err.message, "was altered: its tag does not fit");
                CHECK_EQ(err.lsn, at / 4096);
                CHECK_EQ(err.offset, at / 4096 * 4096);
            }
            memcpy(file, good, used);
        }
    }
    CHECK(in_payload > 1000);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(silent, 0);
    CHECK_EQ(sim_replay_with(disk, &k, 60, &c, &err), NODEDB_OK);
    /* records that change places, or lose their tags */
    memcpy(file + 4096, good + 2 * 4096, 4096);
    nodedb_put_u64(file + 4096 + 8, 1);
    fix_checksums(file, used);
    CHECK_EQ(sim_replay_with(disk, &k, 60, &c, &err), NODEDB_ERR_CORRUPT);
    memcpy(file, good, used);
    nodedb_put_u32(file + 4096 + 32, 15);
    fix_checksums(file, used);
    CHECK_EQ(sim_replay_with(disk, &k, 60, &c, &err), NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "too short for a tag");
    free(good);
    sim_free(disk);
}

TEST(what_the_key_would_notice_verify_does_not_see_without_it) {
    keys k = keys_from(15);
    nodedb_wal_config config = encrypted_config("verify", &k);
    nodedb_wal_reader_config reading;
    nodedb_wal_report report;
    nodedb_error err;
    unsigned char block[4096];
    char path[700];
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    int fd;
    nodedb_wal__segment segment;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 10, 300));
    segment = nodedb_wal__current_file(wal)->segment;
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    snprintf(path, sizeof path, "%s/00000000000000000001.wal", log_dir);
    fd = open(path, O_RDWR);
    REQUIRE(fd >= 0 && pread(fd, block, sizeof block, 5 * 4096) == 4096);
    block[64] ^= 1;
    CHECK(pwrite(fd, block, sizeof block, 5 * 4096) == 4096);
    reading = reading_with(NULL);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT); /* rot: the checksum tells */
    fix_record(block, segment.seed);
    CHECK(pwrite(fd, block, sizeof block, 5 * 4096) == 4096);
    close(fd);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    reading = reading_with(&k);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT);
    CHECK_EQ(err.lsn, 5);
    CHECK_HAS(err.message, "was altered");
}

TEST(a_torn_tail_is_dropped_without_a_key_check_of_what_it_holds) {
    keys k = keys_from(16);
    nodedb_wal_config config = encrypted_config("torn", &k);
    nodedb_wal_stats stats;
    nodedb_error err;
    nodedb_wal *wal;
    unsigned char zeros[512], junk = 0x5A, content[3000];
    REQUIRE(content_of(21, content, 3000) > 1000); /* so it has a second sector, which the disk had not come to */
    memset(zeros, 0, sizeof zeros);
    crashed_log(&config, 21, 3000); /* 21 groups of one block each, behind the preamble */
    poke("00000000000000000001.wal", 21 * 4096 + 512, zeros, sizeof zeros);
    CHECK_EQ(replay_with(&k, 3000, NODEDB_OK, &err), 20);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 20);
    nodedb_wal_get_stats(wal, &stats);
    CHECK(stats.dropped_bytes >= 512);
    CHECK(commit_range(wal, 21, 30, 3000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_with(&k, 3000, NODEDB_OK, &err), 30);
    poke("00000000000000000001.wal", 12 * 4096 + 70, &junk, 1); /* an acknowledged one: that is corruption */
    CHECK_EQ(replay_with(&k, 3000, NODEDB_ERR_CORRUPT, &err), 11);
    CHECK_EQ(err.lsn, 12);
}

/* Opens the log after all that has happened to it, and reads everything: nothing acknowledged may miss. */
static bool survives(sim_disk *disk, const nodedb_wal_config *config, keys *k, uint64_t acknowledged) {
    nodedb_wal_reader_config reading = reading_with(k);
    nodedb_error err;
    sim_check c;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    bool good = wal != NULL && nodedb_wal_last_lsn(wal) >= acknowledged;
    if (wal == NULL) fprintf(stderr, "%s\n", err.message);
    memset(&c, 0, sizeof c);
    reading.io = disk->io;
    if (good && nodedb_wal_replay(&reading, check_prefix, &c, NULL, &err) != NODEDB_OK) {
        fprintf(stderr, "%s\n", err.message);
        good = false;
    }
    return nodedb_wal_close(wal, &err) == NODEDB_OK && good && !c.wrong;
}

TEST(no_nonce_is_used_twice_and_nothing_acknowledged_is_lost_whatever_the_crashes) {
    uint64_t history, histories = test_long ? 100000 : 500;
    int failures = 0;
    note *notes = (note *)malloc(NOTES * sizeof *notes);
#if SLOW
    histories = 60;
#endif
    for (history = 0; history < histories && failures < 3; history++) {
        uint64_t state = test_seed * 1000003 + history, acknowledged = 0;
        sim_disk *disk = sim_new(state);
        keys k = keys_from(history);
        nodedb_wal_config config = encrypted_sim(disk, &k);
        bool refused = false;
        int life, lives = (int)(test_random(&state) % 8) + 1;
        memset(notes, 0, NOTES * sizeof *notes);
        k.notes = notes;
        for (life = 0; life < lives && !refused; life++) {
            disk->calls = 0;
            disk->fail_at = test_random(&state) % (test_random(&state) % 2 == 0 ? 40 : 160) + 1;
            disk->fail_error = EIO;
            disk->fail_on = true;
            if (test_random(&state) % 8 == 0) k.now = k.now % 3 + 1;
            acknowledged = live_a_while(disk, &config, acknowledged, &state, &refused);
            if (test_random(&state) % 2 == 0) sim_power_cut(disk);
            else disk->fail_at = 0; /* only the process died */
        }
        sim_power_cut(disk);
        if (refused || !survives(disk, &config, &k, acknowledged) || k.repeats > 0 || sim_open_files(disk) != 0) {
            char what[160];
            snprintf(what, sizeof what, "history %llu: %llu nonces repeated%s", (unsigned long long)history,
                     (unsigned long long)k.repeats, refused ? ", and an acknowledged record lost" : "");
            test_fail(__FILE__, __LINE__, what);
            failures++;
        }
        sim_free(disk);
    }
    free(notes);
}

/* The power fails so that segment 1 has lost record 4, which nobody was told of, while segment 5, begun behind it, has
 * kept records 5 and 6, sealed with epoch 2. */
static bool leave_an_unfinished_segment(sim_disk *disk, const nodedb_wal_config *config) {
    nodedb_error err;
    unsigned char buffer[800];
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    uint64_t n;
    int f;
    if (wal == NULL || !commit_range(wal, 1, 3, 700)) return false;
    for (n = 4; n <= 6; n++) {
        nodedb_wal_record record = record_of(n, buffer, 700);
        if (n == 5 && nodedb_wal_rollover(wal, &err) != NODEDB_OK) return false;
        if (nodedb_wal_append(wal, &record, NULL, &err) != NODEDB_OK) return false;
        if (nodedb_wal_submit(wal, &err) != NODEDB_OK) return false;
    }
    disk->fail_at = disk->calls + 4, disk->fail_error = EIO, disk->fail_on = true; /* three writes, then no sync */
    if (nodedb_wal_poll(wal, NULL, &err) != NODEDB_ERR_IO || nodedb_wal_durable_lsn(wal) != 3) return false;
    nodedb_wal__free(wal);
    disk->fail_at = 0;
    f = disk->now.name[sim_find(&disk->now, "d/00000000000000000001.wal")].file;
    memcpy(disk->file[f].now, disk->file[f].durable, disk->file[f].bytes);
    f = disk->now.name[sim_find(&disk->now, "d/00000000000000000005.wal")].file;
    memcpy(disk->file[f].durable, disk->file[f].now, disk->file[f].bytes);
    return true;
}

TEST(the_epoch_of_an_unfinished_segment_never_comes_back_through_two_crashes_in_recovery) {
    int first, second, step = 5, dead_seen = 0, ends = 0;
    note *notes = (note *)malloc(NOTES * sizeof *notes);
#if SLOW
    step = 23;
#endif
    for (first = 1; ends < 2; first++) { /* until recovery comes through before the power goes */
        for (second = 1 + first % step; second < 80; second += step) {
            sim_disk *disk = sim_new(test_seed + (uint64_t)(first * 1000 + second));
            keys k = keys_from(1);
            nodedb_wal_config config = encrypted_sim(disk, &k);
            nodedb_error err;
            nodedb_wal *wal;
            int crash;
            config.segment_bytes = 256 << 10; /* so that no spare is begun, which would wait for record 4 */
            memset(notes, 0, NOTES * sizeof *notes);
            k.notes = notes;
            REQUIRE(leave_an_unfinished_segment(disk, &config));
            for (crash = 0; crash < 2; crash++) {
                disk->calls = 0, disk->fail_at = (uint64_t)(crash == 0 ? first : second), disk->fail_on = true;
                wal = nodedb_wal_open(&config, &err);
                if (wal != NULL && crash == 0) ends = ends == 0 ? 1 : ends;
                if (wal != NULL) nodedb_wal__free(wal);
                sim_power_cut(disk);
                dead_seen += sim_find(&disk->now, "d/dead-2.wal") >= 0;
            }
            wal = nodedb_wal_open(&config, &err);
            REQUIRE(wal != NULL);
            CHECK_EQ(nodedb_wal_last_lsn(wal), 3);
            CHECK(commit_range(wal, 4, 9, 700));
            CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
            CHECK_EQ(k.repeats, 0);
            CHECK(sim_find(&disk->now, "d/dead-2.wal") < 0); /* it is not kept for ever */
            CHECK(survives(disk, &config, &k, 9));
            sim_free(disk);
        }
        if (ends == 1) ends = 2;
    }
    CHECK(dead_seen > 10);
    free(notes);
}

TEST(every_io_call_fails_in_turn_and_no_nonce_is_used_twice) {
    static const int errors[] = {EIO, ENOSPC, EINTR, 0};
    note *notes = (note *)malloc(NOTES * sizeof *notes);
    uint64_t call;
    int kind;
    for (kind = 0; kind < 4; kind++) {
        for (call = 1; call < 200; call += kind == 0 ? 1 : 7) {
            sim_disk *disk = sim_new(test_seed);
            keys k = keys_from(call);
            nodedb_wal_config config = encrypted_sim(disk, &k);
            uint64_t state = 5, acknowledged;
            bool refused = false;
            memset(notes, 0, NOTES * sizeof *notes);
            k.notes = notes;
            disk->fail_at = call, disk->fail_error = errors[kind];
            acknowledged = live_a_while(disk, &config, 0, &state, &refused);
            acknowledged = live_a_while(disk, &config, acknowledged, &state, &refused);
            CHECK(!refused);
            disk->fail_at = 0;
            CHECK(survives(disk, &config, &k, acknowledged));
            CHECK_EQ(k.repeats, 0);
            CHECK_EQ(sim_open_files(disk), 0);
            sim_free(disk);
        }
    }
    free(notes);
}

int main(int argc, char **argv) {
#if !defined(HAVE_OPENSSL)
    puts("built without OpenSSL: a stand-in that keeps nothing secret takes the place of AES-256-GCM");
#endif
    return test_main("wal_cipher", argc, argv);
}
