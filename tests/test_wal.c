/* Tests of nodedb_wal.h: each is a sentence of its manual. Readers of each kind are in test_wal_read.c; transactions,
 * tombstones and anchors in test_wal_types.c; encryption in test_wal_cipher.c.
 *
 *   write: from one thread, from many, without waiting
 *   read, replay, follow
 *   limits and wrong arguments
 *   torn tail or corruption
 *   failed writes, and full disks
 *   power cuts, and every call failing in turn
 *   how it is written
 *   optional system calls are refused
 *   killed writers, threads, event loops
 *   the life of a log
 */
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "test.h"
#include "simdisk.h"
#include "wal_helpers.h"
#include <linux/fiemap.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* ---- write: from one thread, from many, without waiting ---------------------------------------------------------- */

TEST(records_come_back_in_order_after_reopen) {
    nodedb_wal_config config = config_here("log");
    nodedb_error err;
    int round;
    for (round = 0; round < 3; round++) {
        nodedb_wal *wal = nodedb_wal_open(&config, &err);
        uint64_t first;
        REQUIRE(wal != NULL);
        first = nodedb_wal_last_lsn(wal) + 1;
        CHECK_EQ(first, (uint64_t)round * 51 + 1); /* 50 records and a seal */
        CHECK(commit_range(wal, first, first + 49, 3000));
        CHECK_EQ(nodedb_wal_durable_lsn(wal), first + 49);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    }
    {
        nodedb_wal_reader_config reading = reading_here();
        nodedb_wal_reader *r = nodedb_wal_reader_open(&reading, &err);
        nodedb_wal_record record;
        uint64_t n = 0;
        REQUIRE(r != NULL);
        while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK)
            n++, CHECK(is_record(&record, record.lsn, 3000) && record.vshard == 7);
        CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
        CHECK_EQ(n, 150);
        nodedb_wal_reader_close(r);
    }
}

typedef struct committer {
    nodedb_wal *wal;
    uint64_t lsns[300];
    int id, failures;
} committer;

static void *commit_some(void *argument) {
    committer *c = (committer *)argument;
    int i;
    for (i = 0; i < 300; i++) {
        unsigned char payload[16];
        nodedb_wal_record record;
        memset(&record, 0, sizeof record);
        record.type = NODEDB_WAL_TYPE_USER;
        nodedb_put_u64(payload, (uint64_t)c->id);
        nodedb_put_u64(payload + 8, (uint64_t)i);
        record.payload = payload, record.payload_bytes = 16;
        if (nodedb_wal_commit(c->wal, &record, 1, &c->lsns[i], NULL) != NODEDB_OK) c->failures++;
        else if (nodedb_wal_durable_lsn(c->wal) < c->lsns[i]) c->failures++;
    }
    return NULL;
}

typedef struct who { int thread[16 * 300 + 400], index[16 * 300 + 400]; uint64_t last; } who;
static nodedb_status note_who(void *ctx, const nodedb_wal_record *record) {
    who *w = (who *)ctx;
    w->thread[record->lsn] = (int)nodedb_get_u64(record->payload);
    w->index[record->lsn] = (int)nodedb_get_u64((const char *)record->payload + 8);
    w->last = record->lsn;
    return NODEDB_OK;
}

static void threads_commit(nodedb_wal_backend backend) {
    enum { THREADS = 16 };
    static committer c[THREADS];
    static who w;
    pthread_t thread[THREADS];
    nodedb_wal_config config = config_here("threads");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_stats stats;
    nodedb_error err;
    nodedb_wal *wal;
    int i, j, wrong = 0;
    config.backend = backend;
    wal = nodedb_wal_open(&config, &err);
    if (wal == NULL && err.status == NODEDB_ERR_UNSUPPORTED) return; /* no io_uring here */
    REQUIRE(wal != NULL);
    for (i = 0; i < THREADS; i++) {
        memset(&c[i], 0, sizeof c[i]);
        c[i].wal = wal, c[i].id = i;
        pthread_create(&thread[i], NULL, commit_some, &c[i]);
    }
    for (i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    nodedb_wal_get_stats(wal, &stats);
    CHECK_EQ(stats.records, THREADS * 300);
    CHECK(stats.groups < stats.records); /* groups were formed */
    CHECK(stats.syncs > 0 && stats.syncs <= stats.groups + 100 && stats.commit_p50_ns > 0 &&
          stats.commit_p99_ns >= stats.commit_p50_ns);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    memset(&w, 255, sizeof w);
    CHECK_EQ(nodedb_wal_replay(&reading, note_who, &w, NULL, &err), NODEDB_OK);
    CHECK_EQ(w.last, THREADS * 300);
    for (i = 0; i < THREADS; i++) {
        CHECK_EQ(c[i].failures, 0);
        for (j = 0; j < 300; j++) wrong += w.thread[c[i].lsns[j]] != i || w.index[c[i].lsns[j]] != j;
    }
    CHECK_EQ(wrong, 0);
}
TEST(threads_that_commit_together_share_groups_and_each_finds_its_record) { threads_commit(NODEDB_WAL_BACKEND_AUTO); }
TEST(the_posix_backend_does_the_same) { threads_commit(NODEDB_WAL_BACKEND_POSIX); }
TEST(io_uring_can_be_demanded) { threads_commit(NODEDB_WAL_BACKEND_IO_URING); }

static void without_blocking(nodedb_wal_backend backend) {
    nodedb_wal_config config = config_here("async");
    nodedb_error err;
    nodedb_wal *wal;
    unsigned char buffer[512];
    uint64_t n, lsn = 0, durable = 0, again = 0;
    config.backend = backend;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_HAS(nodedb_wal_describe(wal), backend == NODEDB_WAL_BACKEND_POSIX ? "POSIX" : "");
    for (n = 1; n <= 5000;) {
        nodedb_wal_record record = record_of(n, buffer, 400);
        nodedb_status status = nodedb_wal_append(wal, &record, &lsn, &err);
        if (status == NODEDB_OK) {
            CHECK_EQ(lsn, n);
            n++;
            if (n % 50 == 0 && nodedb_wal_groups_in_flight(wal) < 4) CHECK(nodedb_wal_submit(wal, &err) == NODEDB_OK);
        } else {
            struct pollfd p = {0, POLLIN, 0};
            REQUIRE(status == NODEDB_ERR_AGAIN);
            again++;
            p.fd = nodedb_wal_fd(wal);
            CHECK_EQ(poll(&p, 1, 10000), 1); /* the descriptor says when there is something to do */
            CHECK_EQ(nodedb_wal_poll(wal, &durable, &err), NODEDB_OK);
        }
        CHECK(nodedb_wal_durable_lsn(wal) < n);
    }
    while (durable < 5000) {
        CHECK(nodedb_wal_submit(wal, &err) != NODEDB_ERR_IO);
        CHECK_EQ(nodedb_wal_poll(wal, &durable, &err), NODEDB_OK);
    }
    CHECK(again > 0);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_all(0, 400, NODEDB_OK).count, 5000);
}
TEST(one_core_appends_submits_and_polls_without_blocking) { without_blocking(NODEDB_WAL_BACKEND_AUTO); }
TEST(one_core_does_so_with_posix_too) { without_blocking(NODEDB_WAL_BACKEND_POSIX); }

TEST(segments_roll_over_are_truncated_and_recycled_and_old_records_stay_dead) {
    nodedb_wal_config config = config_here("roll");
    nodedb_wal_reader_config reading;
    nodedb_wal_report report;
    nodedb_wal_stats stats;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint32_t removed = 0;
    uint64_t n;
    REQUIRE(wal != NULL);
    for (n = 1; n <= 4001; n += 1000) {
        CHECK(append_range(wal, n, n + 999, 2000));
        CHECK_EQ(nodedb_wal_truncate_before(wal, n + 500, &removed, &err), NODEDB_OK);
        CHECK(removed > 0);
    }
    nodedb_wal_get_stats(wal, &stats);
    CHECK(stats.segments_begun > 10 && stats.segments_recycled > 2);
    reading = reading_here();
    reading.from_lsn = 1;
    CHECK(nodedb_wal_reader_open(&reading, &err) == NULL && err.status == NODEDB_ERR_NOT_FOUND);
    CHECK_HAS(err.message, "not there any more");
    CHECK_EQ(replay_all(4501, 2000, NODEDB_OK).count, 500);
    CHECK_EQ(nodedb_wal_truncate_before(wal, UINT64_MAX, &removed, &err), NODEDB_OK); /* never the current segment */
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    reading.from_lsn = 0;
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK(report.sealed && report.last_lsn == 5001 && report.first_lsn > 4000 && report.torn_bytes == 0);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 5001);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

/* ---- read, replay, follow ---------------------------------------------------------------------------------------- */

TEST(a_mapped_reader_hands_out_records_without_copying_and_releases_what_it_has_read) {
    nodedb_wal_config config = config_here("mapped");
    nodedb_wal_reader_config reading;
    nodedb_wal_reader_stats stats;
    nodedb_wal_record record;
    nodedb_wal_reader *r;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t n = 0, mapped = 0;
    REQUIRE(wal != NULL);
    CHECK(append_range(wal, 1, 1000, 2000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    reading = reading_here();
    reading.access = NODEDB_WAL_ACCESS_MAPPED;
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK) {
        CHECK(is_record(&record, ++n, 2000));
        mapped += r->view.map != NULL && (const unsigned char *)record.payload > r->view.map &&
                  (const unsigned char *)record.payload < r->view.map + config.segment_bytes;
    }
    CHECK_EQ(n, 1000);
    CHECK_EQ(mapped, 1000);
    nodedb_wal_reader_get_stats(r, &stats);
    CHECK(stats.segments_opened >= 4);
    CHECK_EQ(stats.hints_sequential, stats.segments_opened);
    CHECK_EQ(stats.hints_dontneed, stats.segments_opened - 1); /* the last is still open */
    CHECK_EQ(stats.records, 1000);
    nodedb_wal_reader_close(r);
    reading.access = NODEDB_WAL_ACCESS_BUFFERED;
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    for (n = 0; nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK;) CHECK(is_record(&record, ++n, 2000));
    CHECK_EQ(n, 1000);
    nodedb_wal_reader_close(r);
}

TEST(replay_begins_at_an_lsn_goes_page_by_page_and_in_parallel) {
    nodedb_wal_config config = config_here("replay");
    nodedb_wal_reader_config reading;
    nodedb_wal_reader_stats stats;
    nodedb_wal_cursor cursor;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    bool has_more = true;
    counting c;
    uint32_t threads;
    int pages;
    REQUIRE(wal != NULL);
    CHECK(append_range(wal, 1, 2000, 2000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_all(1, 2000, NODEDB_OK).count, 2000);
    CHECK_EQ(replay_all(1234, 2000, NODEDB_OK).count, 767);
    CHECK_EQ(replay_all(2001, 2000, NODEDB_OK).count, 0);
    reading = reading_here();
    for (threads = 1; threads <= 3; threads++) {
        memset(&c, 0, sizeof c);
        c.max = 2000;
        reading.threads = threads;
        CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, &stats, &err), NODEDB_OK);
        CHECK(c.count == 2000 && !c.wrong);
        CHECK(stats.segments_opened >= NODEDB_WAL_PARALLEL_FROM_SEGMENTS);
    }
    memset(&c, 0, sizeof c);
    c.max = 2000, c.stop_at = 700;
    CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, NULL, &err), NODEDB_ERR_CANCELLED);
    CHECK_EQ(c.count, 700);
    CHECK_EQ(err.lsn, 700);
    memset(&c, 0, sizeof c);
    memset(&cursor, 0, sizeof cursor);
    c.max = 2000;
    reading.from_lsn = 101;
    for (pages = 0; has_more; pages++) {
        CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 300, count_record, &c, &has_more, &err), NODEDB_OK);
        REQUIRE(pages < 100);
    }
    CHECK(c.count == 1900 && !c.wrong);
    CHECK_EQ(pages, 7);
    CHECK_EQ(cursor.lsn, 2001);
}

TEST(a_change_stream_follows_the_log_up_to_the_durable_lsn_across_rollovers) {
    nodedb_wal_config config = config_here("follow");
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    nodedb_wal_record record;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    unsigned char buffer[2000];
    uint64_t n = 0, round;
    REQUIRE(wal != NULL);
    reading = reading_here();
    reading.follow = wal;
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_ERR_AGAIN);
    for (round = 0; round < 100; round++) {
        CHECK(append_range(wal, n + 1, n + 17, 2000));
        record = record_of(n + 18, buffer, 2000);
        CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_OK); /* appended, not durable: not to be seen */
        while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK) CHECK(is_record(&record, ++n, 2000));
        CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
        CHECK_EQ(n, nodedb_wal_durable_lsn(wal));
        CHECK_EQ(nodedb_wal_wait(wal, n + 1, &err), NODEDB_OK);
        CHECK_EQ(nodedb_wal_reader_next(r, &record, &err), NODEDB_OK);
        n++;
    }
    nodedb_wal_reader_close(r);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

typedef struct following { nodedb_wal *wal; uint64_t read; bool wrong; } following;
static void *follow_until_2000(void *argument) {
    following *f = (following *)argument;
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_record record;
    nodedb_wal_reader *r;
    reading.follow = f->wal;
    r = nodedb_wal_reader_open(&reading, NULL);
    while (r != NULL && f->read < 2000 && !f->wrong) {
        while (nodedb_wal_reader_next(r, &record, NULL) == NODEDB_OK) f->wrong |= !is_record(&record, ++f->read, 300);
        if (f->read < 2000) f->wrong |= nodedb_wal_await(f->wal, f->read + 1, UINT64_C(20000000000), NULL) != NODEDB_OK;
    }
    nodedb_wal_reader_close(r);
    return NULL;
}

TEST(a_thread_that_follows_sleeps_until_there_is_more) {
    nodedb_wal_config config = config_here("await");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    following f = {NULL, 0, false};
    pthread_t thread;
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_await(wal, 1, 1000, &err), NODEDB_ERR_TIMEOUT);
    f.wal = wal;
    pthread_create(&thread, NULL, follow_until_2000, &f);
    CHECK(append_range(wal, 1, 1000, 300) && commit_range(wal, 1001, 1200, 300) && append_range(wal, 1201, 2000, 300));
    pthread_join(thread, NULL);
    CHECK(f.read == 2000 && !f.wrong);
    CHECK_EQ(nodedb_wal_await(wal, 2000, 0, &err), NODEDB_OK);
    simring_install_fault(wal, 1, -EIO);
    {
        unsigned char buffer[300];
        nodedb_wal_record record = record_of(2001, buffer, 300);
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_IO);
    }
    CHECK_EQ(nodedb_wal_await(wal, 2001, UINT64_C(20000000000), &err), NODEDB_ERR_IO);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_ERR_IO);
}

typedef struct sleeper {
    nodedb_wal *wal;
    nodedb_status status;
} sleeper;

static void *sleep_until_100(void *ctx) {
    sleeper *s = (sleeper *)ctx;
    s->status = nodedb_wal_await(s->wal, 100, UINT64_C(3600000000000), NULL);
    return NULL;
}

TEST(a_follower_that_sleeps_wakes_when_awaiting_is_cancelled) {
    nodedb_wal_config config = config_here("cancel");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    sleeper s = {NULL, NODEDB_OK};
    pthread_t thread;
    bool asleep = false;
    REQUIRE(wal != NULL);
    s.wal = wal;
    pthread_create(&thread, NULL, sleep_until_100, &s);
    while (!asleep) { /* it counts itself with the lock, and lets that go only in its sleep */
        (void)pthread_mutex_lock(&wal->lock);
        asleep = wal->lsns.watchers == 1;
        (void)pthread_mutex_unlock(&wal->lock);
        (void)sched_yield();
    }
    nodedb_wal_cancel_await(wal, true);
    pthread_join(thread, NULL);
    CHECK_EQ(s.status, NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_wal_await(wal, 1, UINT64_MAX, &err), NODEDB_ERR_CANCELLED); /* who comes later does not sleep */
    CHECK(commit_range(wal, 1, 1, 100));
    CHECK_EQ(nodedb_wal_await(wal, 1, UINT64_MAX, &err), NODEDB_OK); /* and is told what is durable */
    nodedb_wal_cancel_await(wal, false);
    CHECK_EQ(nodedb_wal_await(wal, 2, 1000, &err), NODEDB_ERR_TIMEOUT);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

/* What the writer says, what a new reader stands at, and what an opening too early is told, are the same LSN. */
static void check_first_lsn(nodedb_wal *wal, uint64_t want) {
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_cursor at;
    nodedb_error err;
    nodedb_wal_reader *r = nodedb_wal_reader_open(&reading, &err);
    CHECK_EQ(nodedb_wal_first_lsn(wal), want);
    REQUIRE(r != NULL);
    nodedb_wal_reader_tell(r, &at);
    CHECK_EQ(at.lsn, want);
    nodedb_wal_reader_close(r);
    reading.from_lsn = want - 1;
    if (want == 1) return;
    CHECK(nodedb_wal_reader_open(&reading, &err) == NULL && err.status == NODEDB_ERR_NOT_FOUND && err.lsn == want);
}

TEST(the_first_lsn_is_known_without_an_opening_that_fails) {
    nodedb_wal_config config = config_here("first");
    nodedb_error err;
    nodedb_wal *wal;
    uint64_t first;
    config.first_lsn = 5;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    check_first_lsn(wal, 5);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 4);
    CHECK(append_range(wal, 5, 1000, 3000));
    check_first_lsn(wal, 5);
    CHECK_EQ(nodedb_wal_truncate_before(wal, 600, NULL, &err), NODEDB_OK);
    first = nodedb_wal_first_lsn(wal);
    CHECK(first > 5 && first <= 600);
    check_first_lsn(wal, first);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    check_first_lsn(wal, first);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

/* ---- limits and wrong arguments ---------------------------------------------------------------------------------- */

TEST(a_commit_of_which_one_record_is_wrong_leaves_no_record) {
    nodedb_wal_config config = config_here("whole");
    nodedb_wal *wal = nodedb_wal_open(&config, NULL);
    nodedb_wal_record records[3];
    nodedb_error err;
    unsigned char buffer[100];
    REQUIRE(wal != NULL);
    records[0] = record_of(1, buffer, 100);
    memset(&records[1], 0, sizeof records[1]);
    records[1].type = NODEDB_WAL_TYPE_COLLECTION_TOMBSTONE;
    records[2] = records[1];
    records[2].database = NODEDB_WAL_NO_COLLECTION;
    CHECK_EQ(nodedb_wal_commit(wal, records, 3, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 0);
    wal->tombstones.reserved = NODEDB_WAL_MAX_TOMBSTONES - 1; /* as if there were so many: one fits, two do not */
    records[2].database = 5;
    CHECK_EQ(nodedb_wal_commit(wal, records, 3, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 0);
    CHECK_EQ(wal->tombstones.reserved, NODEDB_WAL_MAX_TOMBSTONES - 1);
    wal->tombstones.reserved = 0;
    CHECK_EQ(nodedb_wal_commit(wal, records, 3, NULL, &err), NODEDB_OK);
    CHECK_EQ(wal->tombstones.reserved, 0);
    CHECK_EQ(nodedb_wal_list_tombstones(wal, NULL, 0), 2);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 3);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

TEST(the_highest_first_lsn_leaves_room_and_the_last_lsn_is_a_limit) {
    nodedb_wal_config config = config_here("high");
    nodedb_wal_record record;
    nodedb_error err;
    nodedb_wal *wal;
    config.first_lsn = NODEDB_WAL_MAX_FIRST_LSN + 1;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "above 2^62");
    config.first_lsn = NODEDB_WAL_MAX_FIRST_LSN;
    for (uint64_t i = 0; i < 3; i++) { /* each opening reads what the one before has begun */
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        CHECK(commit_range(wal, config.first_lsn + 2 * i, config.first_lsn + 2 * i, 100));
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    }
    memset(&record, 0, sizeof record);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    wal->lsns.next = (uint64_t)INT64_MAX;
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "last LSN");
    nodedb_wal__free(wal);
    config.segment_bytes = UINT64_MAX;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
}

TEST(a_record_larger_than_a_group_or_a_segment_is_written_all_the_same) {
    nodedb_wal_config config = config_here("large");
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    nodedb_wal_record record, got;
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint32_t sizes[] = {10, 40 << 10, 100, 1 << 20, 5, 0, 3 << 20, 33 << 10}, i, mapped;
    unsigned char *payload = (unsigned char *)malloc(4 << 20);
    REQUIRE(wal != NULL);
    for (i = 0; i < 4 << 20; i++) payload[i] = (unsigned char)(i * 13 + (i >> 12));
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_PUT;
    record.payload = payload;
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        record.payload_bytes = sizes[i];
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK);
    }
    record.payload_bytes = NODEDB_WAL_MAX_PAYLOAD_BYTES + 1;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    for (mapped = 0; mapped < 2; mapped++) {
        reading = reading_here();
        reading.access = mapped ? NODEDB_WAL_ACCESS_MAPPED : NODEDB_WAL_ACCESS_BUFFERED;
        r = nodedb_wal_reader_open(&reading, &err);
        REQUIRE(r != NULL);
        for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_OK);
            CHECK(got.payload_bytes == sizes[i] && memcmp(got.payload, payload, sizes[i]) == 0);
        }
        CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_ERR_AGAIN);
        nodedb_wal_reader_close(r);
    }
    free(payload);
}

/* ---- wrong arguments and unknown types -------------------------------------------------------------------------- */

TEST(a_second_writer_is_refused_by_name) {
    nodedb_wal_config config = config_here("locked");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err), *second;
    REQUIRE(wal != NULL);
    second = nodedb_wal_open(&config, &err);
    CHECK(second == NULL && err.status == NODEDB_ERR_LOCKED);
    CHECK_HAS(err.message, "LOCK");
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    wal = nodedb_wal_open(&config, &err);
    CHECK(wal != NULL);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

TEST(wrong_arguments_are_errors) {
    nodedb_wal_config config = config_here("wrong");
    nodedb_wal_record record;
    nodedb_error err;
    nodedb_wal *wal;
    memset(&record, 0, sizeof record);
    CHECK(nodedb_wal_open(NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.groups = 1;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.groups = 0, config.segment_bytes = 1000;
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config = config_here("no/such/parent");
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_IO && err.sys_errno == ENOENT);
    config = config_here("wrong");
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_append(NULL, &record, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_append(wal, NULL, NULL, &err), NODEDB_ERR_INVALID);
    record.payload_bytes = 3;
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_INVALID); /* a payload without bytes */
    CHECK_EQ(nodedb_wal_commit(wal, &record, 0, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_wait(wal, 5, &err), NODEDB_ERR_INVALID); /* not given out */
    record.payload_bytes = 0, record.type = NODEDB_WAL_ENCRYPTED;
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_wal_close(NULL, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK(nodedb_wal_reader_open(NULL, &err) == NULL && err.status == NODEDB_ERR_INVALID);
}

TEST(unknown_optional_records_are_skipped_and_required_ones_stop_the_reader_by_name) {
    nodedb_wal_config config = config_here("types");
    nodedb_wal_reader_config reading;
    nodedb_wal_record records[3], got;
    nodedb_wal_reader *r;
    nodedb_error err;
    uint64_t lsn;
    int i;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    memset(records, 0, sizeof records);
    records[0].type = 77, records[1].type = NODEDB_WAL_TYPE_PUT | NODEDB_WAL_REQUIRED,
    records[2].type = 78 | NODEDB_WAL_REQUIRED;
    CHECK_EQ(nodedb_wal_commit(wal, records, 3, NULL, &err), NODEDB_ERR_INVALID); /* not to be written by mistake */
    CHECK_HAS(err.message, "type 77");
    for (i = 0; i < 3; i++) CHECK_EQ(append_from_the_future(wal, &records[i], NULL, 0, &lsn), NODEDB_OK);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    reading = reading_here();
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL);
    CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_OK);
    CHECK_EQ(got.lsn, 2);
    CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "type 78");
    CHECK_EQ(nodedb_wal_reader_next(r, &got, &err), NODEDB_ERR_UNSUPPORTED); /* and it stays stopped */
    nodedb_wal_reader_close(r);
}

/* ---- torn tail or corruption ------------------------------------------------------------------------------------- */

TEST(a_torn_tail_is_dropped_and_the_log_goes_on) {
    nodedb_wal_config config = config_here("torn");
    nodedb_wal_stats stats;
    nodedb_error err;
    nodedb_wal *wal;
    char name[] = "00000000000000000001.wal";
    unsigned char zeros[512], content[3000];
    REQUIRE(content_of(21, content, 3000) > 1000); /* so it has a second sector, which the disk had not come to */
    memset(zeros, 0, sizeof zeros);
    crashed_log(&config, 21, 3000); /* 21 groups of one block each, behind the preamble */
    poke(name, 21 * 4096 + 512, zeros, sizeof zeros);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_last_lsn(wal), 20);
    nodedb_wal_get_stats(wal, &stats);
    CHECK(stats.dropped_bytes >= 512 && stats.dropped_bytes <= 4096);
    CHECK(commit_range(wal, 21, 30, 3000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_all(1, 3000, NODEDB_OK).count, 30);
}

TEST(damage_to_an_acknowledged_record_is_reported_with_file_offset_and_lsn) {
    nodedb_wal_config config = config_here("damage");
    nodedb_error err;
    nodedb_wal *wal;
    unsigned char byte = 0xEE;
    crashed_log(&config, 20, 100);
    poke("00000000000000000001.wal", 12 * 4096 + 70, &byte, 1); /* record 12 */
    wal = nodedb_wal_open(&config, &err);
    CHECK(wal == NULL && err.status == NODEDB_ERR_CORRUPT);
    CHECK_EQ(err.lsn, 12);
    CHECK_EQ(err.offset, 12 * 4096);
    CHECK_HAS(err.message, "00000000000000000001.wal");
    CHECK_HAS(err.message, "records 12 to 12");
    CHECK_EQ(replay_all(1, 100, NODEDB_ERR_CORRUPT).count, 11);
}

TEST(a_missing_doubled_or_foreign_segment_is_corruption) {
    nodedb_wal_config config = config_here("segments");
    nodedb_wal_reader_config reading;
    nodedb_wal_reader *r;
    nodedb_wal_report report;
    nodedb_error err;
    char from[700], to[700], first[700], aside[700], foreign[700], command[2200];
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t second;
    REQUIRE(wal != NULL);
    CHECK(append_range(wal, 1, 1000, 2000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    reading = reading_here();
    r = nodedb_wal_reader_open(&reading, &err);
    REQUIRE(r != NULL && r->list.count >= 4);
    second = r->list.at[1].first_lsn;
    nodedb_wal_reader_close(r);
    snprintf(from, sizeof from, "%s/%020llu.wal", log_dir, (unsigned long long)second);
    snprintf(to, sizeof to, "%s/away", log_dir);
    CHECK(rename(from, to) == 0);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT);
    CHECK_EQ(err.lsn, second);
    CHECK_EQ(report.last_lsn, second - 1);
    snprintf(command, sizeof command, "cp '%s/00000000000000000001.wal' '%s'", log_dir,
             from); /* the first one again, as the second */
    CHECK(system(command) == 0);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "the name another");
    snprintf(first, sizeof first, "%s/00000000000000000001.wal", log_dir);
    snprintf(aside, sizeof aside, "%s/aside", log_dir);
    CHECK(rename(first, aside) == 0 && rename(to, first) == 0); /* the two swapped */
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "the name another");
    CHECK(rename(first, from) == 0 && rename(aside, first) == 0);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK_EQ(report.records, 1000);
    snprintf(foreign, sizeof foreign, "%s", log_dir);
    config = config_here("other");
    config.first_lsn = second;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    snprintf(command, sizeof command, "cp '%s/%020llu.wal' '%s/'", log_dir, (unsigned long long)second, foreign);
    CHECK(system(command) == 0);
    reading.dir = foreign;
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "another log");
}

/* Every bit and every length. Every seventh with an emulator, and under the thread sanitizer, as these tests have no
 * threads. */
#if SLOW
enum { STRIDE = 7 };
#else
enum { STRIDE = 1 };
#endif

TEST(a_flipped_bit_is_an_error_or_does_no_harm_never_wrong_data) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    size_t used = 0, at, i;
    int f, bit, silent = 0;
    counting c;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 4, 300));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(sim_replay(disk, &c, 1, 300, &err), NODEDB_OK);
    CHECK_EQ(c.count, 4);
    f = disk->now.name[sim_find(&disk->now, "d/00000000000000000001.wal")].file;
    for (i = 0; i < disk->file[f].bytes; i++)
        if (disk->file[f].now[i] != 0) used = i + 1;
    for (at = 0; at < used; at++) {
        for (bit = (int)(at % STRIDE); bit < 8; bit += STRIDE) {
            disk->file[f].now[at] ^= (unsigned char)(1 << bit);
            if (sim_replay(disk, &c, 1, 300, &err) == NODEDB_OK && c.count != 4) silent++;
            CHECK(!c.wrong);
            disk->file[f].now[at] ^= (unsigned char)(1 << bit);
        }
    }
    CHECK_EQ(silent, 0); /* no acknowledged record was ever lost without a word */
    sim_free(disk);
}

TEST(a_shortened_segment_is_corruption) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    size_t full, bytes;
    counting c;
    int f;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 5, 300));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    f = disk->now.name[sim_find(&disk->now, "d/00000000000000000001.wal")].file;
    full = disk->file[f].bytes;
    for (bytes = 0; bytes < full; bytes += STRIDE) {
        disk->file[f].bytes = bytes;
        CHECK_EQ(sim_replay(disk, &c, 1, 300, &err), NODEDB_ERR_CORRUPT);
    }
    disk->file[f].bytes = full;
    CHECK_EQ(sim_replay(disk, &c, 1, 300, &err), NODEDB_OK);
    sim_free(disk);
}

/* A log whose writer was killed after its last record, which has 1000 bytes or more. Its group begins at *at of file
 * *f; with `recycled`, in a file that was full of other records before. */
static void killed_log(sim_disk *disk, bool recycled, int *f, size_t *at) {
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    char path[64];
    unsigned char content[2000];
    uint64_t n = 1;
    REQUIRE(wal != NULL);
    if (recycled) {
        CHECK(append_range(wal, 1, 400, 2000));
        CHECK_EQ(nodedb_wal_truncate_before(wal, UINT64_MAX, NULL, &err), NODEDB_OK);
        n = 401;
    }
    while (n < 3 || nodedb_wal__current_file(wal)->segment.recycled != recycled || content_of(n, content, 2000) < 1000)
        CHECK(commit_range(wal, n, n, 2000)), n++; /* until the right segment and a record with some sectors */
    CHECK(commit_range(wal, n, n, 2000));
    snprintf(path, sizeof path, "d/%020llu.wal",
             (unsigned long long)nodedb_wal__current_file(wal)->segment.first_lsn);
    *f = disk->now.name[sim_find(&disk->now, path)].file;
    *at = (size_t)wal->segments.write_offset - 4096;
    nodedb_wal__free(wal);
    CHECK_EQ(nodedb_get_u64(disk->file[*f].now + *at + 8), n);
}

static void flip_each_bit_of_the_last_group(bool recycled) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_error err;
    size_t at, bytes, i;
    uint64_t last;
    int f, bit, wrong = 0;
    counting c;
    killed_log(disk, recycled, &f, &at);
    CHECK_EQ(sim_replay(disk, &c, 0, 2000, &err), NODEDB_OK);
    last = c.next;
    bytes = NODEDB_WAL_RECORD_HEADER_BYTES + nodedb_get_u32(disk->file[f].now + at + 32);
    for (i = 0; i < bytes; i += STRIDE)
        for (bit = 0; bit < 8; bit++) {
            disk->file[f].now[at + i] ^= (unsigned char)(1 << bit);
            /* in a recycled file a sector without a header may as well be one that was not written */
            nodedb_status status = sim_replay(disk, &c, 0, 2000, &err);
            wrong += c.wrong || (status == NODEDB_OK && (!recycled || i < 512)) ||
                     (status != NODEDB_OK && (status != NODEDB_ERR_CORRUPT || err.lsn != last - 1));
            disk->file[f].now[at + i] ^= (unsigned char)(1 << bit);
        }
    CHECK_EQ(wrong, 0);
    sim_free(disk);
}
TEST(a_changed_bit_in_the_last_group_of_a_log_that_was_not_closed_is_damage) { flip_each_bit_of_the_last_group(false); }
TEST(a_changed_bit_is_damage_in_a_recycled_segment_too) { flip_each_bit_of_the_last_group(true); }

/* near: what was there before is one bit off in each sector, but for the header's, which has another epoch. */
static void tear_the_last_group_in_every_way(bool recycled, bool near) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_error err;
    unsigned char group[4096], old[4096];
    size_t at;
    uint64_t last;
    int f, sectors, s, wrong = 0;
    counting c;
    killed_log(disk, recycled, &f, &at);
    CHECK_EQ(sim_replay(disk, &c, 0, 2000, &err), NODEDB_OK);
    last = c.next;
    memcpy(group, disk->file[f].now + at, sizeof group);
    for (s = 0; s < 4096; s++)
        old[s] = near ? (unsigned char)(group[s] ^ (s % 512 == 77)) : recycled ? (unsigned char)(s * 7 + s / 256) : 0;
    for (sectors = near; sectors < 256; sectors += 1 + near) {
        for (s = 0; s < 8; s++)
            memcpy(disk->file[f].now + at + s * 512, (sectors >> s & 1 ? group : old) + s * 512, 512);
        wrong += sim_replay(disk, &c, 0, 2000, &err) != NODEDB_OK || c.wrong || c.next < last - 1;
    }
    CHECK_EQ(wrong, 0);
    sim_free(disk);
}
TEST(a_group_with_any_of_its_sectors_missing_is_torn_not_damaged) { tear_the_last_group_in_every_way(false, false); }
TEST(a_group_with_stale_sectors_in_a_recycled_segment_is_torn_not_damaged) {
    tear_the_last_group_in_every_way(true, false);
}
TEST(a_stale_sector_that_is_one_bit_off_is_torn_not_damaged) { tear_the_last_group_in_every_way(true, true); }

TEST(without_recycling_no_segment_is_one_that_was_used_before) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal_stats stats;
    nodedb_error err;
    nodedb_wal *wal;
    uint64_t n;
    config.no_recycling = true;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    for (n = 1; n < 400; n += 50) {
        CHECK(append_range(wal, n, n + 49, 2000));
        CHECK_EQ(nodedb_wal_truncate_before(wal, n + 49, NULL, &err), NODEDB_OK);
        CHECK(!nodedb_wal__current_file(wal)->segment.recycled);
    }
    nodedb_wal_get_stats(wal, &stats);
    CHECK(stats.segments_begun > 4 && stats.segments_recycled == 0);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    sim_free(disk);
}

static void remove_log(const char *name) {
    char command[700];
    snprintf(command, sizeof command, "rm -rf '%s/%s'", test_dir(), name);
    CHECK_EQ(system(command), 0);
}

/* Runs in a process of its own, which ends as if it were killed. */
static void in_a_child(const nodedb_wal_config *config, int (*life)(const nodedb_wal_config *config)) {
    pid_t child = fork();
    int status = 1;
    if (child == 0) _exit(life(config));
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static int acknowledge_seven_and_begin_eight(const nodedb_wal_config *config) {
    static unsigned char buffer[1000];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    nodedb_wal_record record = record_of(7, buffer, 700);
    uint64_t lsn = 0;
    if (wal == NULL || nodedb_wal_append(wal, &record, &lsn, &err) != NODEDB_OK || lsn != 7) return 1;
    if (nodedb_wal_rollover(wal, &err) != NODEDB_OK) return 2;
    record = record_of(8, buffer, 700);
    if (nodedb_wal_append(wal, &record, &lsn, &err) != NODEDB_OK || lsn != 8) return 3;
    do
        if (nodedb_wal_poll(wal, &lsn, &err) != NODEDB_OK) return 4;
    while (lsn < 7);
    return 0;
}

TEST(a_segment_that_is_missing_behind_a_sealed_one_is_corruption) {
    nodedb_wal_config config = config_here("gap");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    char path[700];
    nodedb_wal *wal;
    config.backend = NODEDB_WAL_BACKEND_POSIX; /* a ring is not for a process that forks */
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 5, 700));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK); /* the seal is record 6 */
    in_a_child(&config, acknowledge_seven_and_begin_eight);
    snprintf(path, sizeof path, "%s/%020d.wal", log_dir, 7);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(nodedb_wal_verify(&reading, NULL, &err), NODEDB_ERR_CORRUPT);
    CHECK_EQ(err.lsn, 7);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
}

static int commit_three_in_one_block(const nodedb_wal_config *config) {
    static unsigned char buffer[4][400];
    nodedb_wal_record records[3];
    nodedb_wal *wal = nodedb_wal_open(config, NULL);
    uint64_t n;
    for (n = 1; n <= 3; n++) records[n - 1] = record_of(n, buffer[n], 8);
    return wal != NULL && nodedb_wal_commit(wal, records, 3, NULL, NULL) == NODEDB_OK ? 0 : 1;
}

TEST(a_header_that_became_zero_is_damage_and_no_padding) {
    nodedb_wal_config config = config_here("zeroed");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_report report;
    nodedb_error err;
    unsigned char zeros[64];
    memset(zeros, 0, sizeof zeros);
    config.backend = NODEDB_WAL_BACKEND_POSIX;
    in_a_child(&config, commit_three_in_one_block);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
    CHECK_EQ(report.last_lsn, 3);
    poke("00000000000000000001.wal", 4096 + 72, zeros, sizeof zeros);
    CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_ERR_CORRUPT);
    CHECK_EQ(err.lsn, 2);
}

/* ---- padding that has changed ---- */

/* Flips one bit of a log of three groups of one record each, whose writer was killed, and reads it. The byte is `at`
 * bytes behind the record of group `group`; group 3 is the block behind the last group. */
static void flip_behind(sim_disk *disk, int f, int group, size_t at, int bit, size_t *checked) {
    nodedb_error err;
    counting c;
    size_t begin = 4096 * ((size_t)group + 1), bytes = 0;
    unsigned char *byte;
    if (group < 3)
        bytes = ((size_t)NODEDB_WAL_RECORD_HEADER_BYTES + nodedb_get_u32(disk->file[f].now + begin + 32) + 7) / 8 * 8;
    if (bytes + at >= 4096) return;
    byte = disk->file[f].now + begin + bytes + at;
    CHECK_EQ(*byte, 0);
    *byte = (unsigned char)(1 << bit);
    CHECK_EQ(sim_replay(disk, &c, 0, 300, &err), NODEDB_OK);
    CHECK(!c.wrong && c.count == 3);
    *byte = 0;
    ++*checked;
}

TEST(a_changed_bit_where_no_record_is_does_not_stop_a_reader) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_wal *wal = nodedb_wal_open(&config, NULL);
    size_t at, checked = 0;
    int group, f;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 3, 300));
    nodedb_wal__free(wal);
    f = disk->now.name[sim_find(&disk->now, "d/00000000000000000001.wal")].file;
    for (group = 0; group < 4; group++)
        for (at = 0; at < 4096; at += at < 600 ? 1 : 97) flip_behind(disk, f, group, at, (int)(at % 8), &checked);
    CHECK(checked > 2000);
    sim_free(disk);
}

static int commit_three(const nodedb_wal_config *config) {
    nodedb_wal *wal = nodedb_wal_open(config, NULL);
    return wal != NULL && commit_range(wal, 1, 3, 300) ? 0 : 1;
}

typedef struct heard { int damaged, ended; char last[400]; } heard; /* last: of those about the end */
static void hear(void *ctx, nodedb_log_level level, const char *sentence) {
    heard *h = (heard *)ctx;
    (void)level;
    h->damaged += strstr(sentence, "padding has changed") != NULL;
    if (strstr(sentence, "was not closed") == NULL) return;
    h->ended++;
    snprintf(h->last, sizeof h->last, "%s", sentence);
}

TEST(changed_padding_is_told_and_the_log_opens_with_every_record) {
    static const size_t where[] = {4096 + 1000, 3 * 4096 + 1000, 4 * 4096 + 9};
    for (int i = 0; i < 3; i++) {
        nodedb_wal_config config = config_here("padding");
        nodedb_wal *wal;
        heard h;
        unsigned char one = 1;
        memset(&h, 0, sizeof h);
        remove_log("padding");
        in_a_child(&config, commit_three);
        poke("00000000000000000001.wal", where[i], &one, 1);
        config.logger.write = hear, config.logger.ctx = &h;
        wal = nodedb_wal_open(&config, NULL);
        REQUIRE(wal != NULL);
        CHECK_EQ(nodedb_wal_last_lsn(wal), 3);
        CHECK_EQ(h.damaged, i < 2);
        CHECK_EQ(h.ended, 1);
        CHECK(commit_range(wal, 4, 6, 300));
        CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
        CHECK_EQ(replay_all(1, 300, NODEDB_OK).count, 6);
    }
}

/* Whole sectors of padding, too: they were zero when the group was written, so no record was there. */
TEST(a_changed_sector_of_padding_is_no_damage_but_one_that_may_hold_a_header_is) {
    nodedb_wal_config config = config_here("padding");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    unsigned char garbage[512];
    memset(garbage, 0xA5, sizeof garbage);
    in_a_child(&config, commit_three);
    poke("00000000000000000001.wal", 3 * 4096 + 1024, garbage, sizeof garbage);
    CHECK_EQ(replay_all(1, 300, NODEDB_OK).count, 3);
    poke("00000000000000000001.wal", 3 * 4096 + 440, garbage, 72); /* a record of 8 bytes could have been there */
    CHECK_EQ(nodedb_wal_verify(&reading, NULL, &err), NODEDB_ERR_CORRUPT);
    CHECK_HAS(err.message, "record 4 would begin");
    CHECK_EQ(err.lsn, 4);
}

/* ---- what is said, and what can be done ---- */

/* The disk loses the last acknowledged group. Nothing tells that from a torn tail: so the log says where it ends. */
TEST(a_log_that_was_not_closed_says_where_it_ends_even_if_nothing_was_dropped) {
    nodedb_wal_config config = config_here("unsealed");
    nodedb_wal *wal;
    unsigned char zeros[4096];
    heard h;
    memset(&h, 0, sizeof h);
    memset(zeros, 0, sizeof zeros);
    in_a_child(&config, commit_three);
    poke("00000000000000000001.wal", 3 * 4096, zeros, sizeof zeros);
    config.logger.write = hear, config.logger.ctx = &h;
    wal = nodedb_wal_open(&config, NULL);
    REQUIRE(wal != NULL);
    CHECK_EQ(h.ended, 1);
    CHECK_HAS(h.last, "ends with record 2");
    CHECK_EQ(nodedb_wal_last_lsn(wal), 2);
    CHECK(commit_range(wal, 3, 3, 300));
    CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
    wal = nodedb_wal_open(&config, NULL);
    REQUIRE(wal != NULL);
    CHECK_EQ(h.ended, 1); /* with a seal there is nothing to say */
    CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
}

TEST(what_stands_before_and_behind_a_damaged_record_can_be_read) {
    nodedb_wal_config config = config_here("salvage");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    unsigned char garbage[600];
    counting c;
    memset(garbage, 0x5A, sizeof garbage);
    for (uint64_t n = 1; n <= 3; n++) { /* records 1 to 3, 5 to 7 and 9 to 11; seals 4, 8 and 12 */
        nodedb_wal *wal = nodedb_wal_open(&config, NULL);
        REQUIRE(wal != NULL);
        CHECK(commit_range(wal, 4 * n - 3, 4 * n - 1, 300));
        CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
    }
    poke("00000000000000000005.wal", 2 * 4096, garbage, sizeof garbage);
    CHECK_EQ(nodedb_wal_verify(&reading, NULL, &err), NODEDB_ERR_CORRUPT);
    CHECK(err.lsn == 6 && err.offset == 2 * 4096);
    CHECK(nodedb_wal_open(&config, &err) == NULL && err.status == NODEDB_ERR_CORRUPT);
    memset(&c, 0, sizeof c);
    c.max = 300;
    reading.until_lsn = err.lsn - 1;
    CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, NULL, &err), NODEDB_OK);
    CHECK_EQ(c.count, 4);
    memset(&c, 0, sizeof c);
    c.max = 300;
    reading.until_lsn = 0, reading.from_lsn = 9; /* the first LSN of the next segment, which its name tells */
    CHECK_EQ(nodedb_wal_replay(&reading, count_record, &c, NULL, &err), NODEDB_OK);
    CHECK(!c.wrong && c.count == 3);
}

static int lose_six_and_begin_seven(const nodedb_wal_config *config) {
    static unsigned char buffer[1000];
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(config, &err);
    nodedb_wal_record record = record_of(6, buffer, 700);
    if (wal == NULL || !commit_range(wal, 1, 5, 700)) return 1;
    if (nodedb_wal_append(wal, &record, NULL, &err) != NODEDB_OK) return 2;
    if (nodedb_wal_rollover(wal, &err) != NODEDB_OK) return 3;
    return nodedb_wal_append(wal, &record, NULL, &err) == NODEDB_OK ? 0 : 4;
}

TEST(a_reader_does_not_mind_that_a_writer_recovers_meanwhile) {
    nodedb_wal_access access;
    for (access = NODEDB_WAL_ACCESS_MAPPED; access <= NODEDB_WAL_ACCESS_BUFFERED;
         access = (nodedb_wal_access)(access + 1)) {
        nodedb_wal_config config = config_here(access == NODEDB_WAL_ACCESS_MAPPED ? "minds" : "minds-buffered");
        nodedb_wal_reader_config reading = reading_here();
        nodedb_wal_record record;
        nodedb_wal_reader *r;
        nodedb_wal *wal;
        nodedb_error err;
        uint64_t n = 0;
        config.backend = NODEDB_WAL_BACKEND_POSIX;
        in_a_child(&config, lose_six_and_begin_seven);
        reading.access = access;
        r = nodedb_wal_reader_open(&reading, &err);
        wal = nodedb_wal_open(&config, &err); /* retires segment 7, which the reader has in its list */
        REQUIRE(r != NULL && wal != NULL);
        while (nodedb_wal_reader_next(r, &record, &err) == NODEDB_OK) CHECK(is_record(&record, ++n, 700));
        CHECK_EQ(err.status, NODEDB_ERR_AGAIN);
        CHECK_EQ(n, 5);
        nodedb_wal_reader_close(r);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    }
}

TEST(a_log_that_is_opened_and_closed_without_a_record_stays_sealed) {
    nodedb_wal_config config = config_here("idle");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_wal_report report;
    nodedb_error err;
    int round;
    for (round = 0; round < 3; round++) {
        nodedb_wal *wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        if (round == 0) CHECK(append_range(wal, 1, 1000, 2000));
        if (round == 0) /* spares full of records */
            CHECK_EQ(nodedb_wal_truncate_before(wal, 990, NULL, &err), NODEDB_OK);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        CHECK_EQ(nodedb_wal_verify(&reading, &report, &err), NODEDB_OK);
        CHECK(report.sealed && report.torn_bytes == 0);
    }
}

/* ---- failed writes, and full disks ------------------------------------------------------------------------------- */

TEST(after_a_failed_write_or_sync_nothing_is_acknowledged_until_the_log_is_reopened) {
    int kind;
    for (kind = 0; kind < 2; kind++) {
        sim_disk *disk = sim_new(test_seed);
        nodedb_wal_config config = sim_config(disk);
        nodedb_error err;
        nodedb_wal *wal = nodedb_wal_open(&config, &err);
        unsigned char buffer[400];
        nodedb_wal_record record = record_of(11, buffer, 300);
        uint64_t durable;
        counting c;
        REQUIRE(wal != NULL);
        CHECK(commit_range(wal, 1, 10, 300));
        disk->fail_at = disk->calls + 1 + (uint64_t)kind; /* the group's write, or its sync; only that one call */
        disk->fail_error = EIO;
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_IO);
        CHECK_HAS(err.message, "must be reopened");
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_IO); /* though the disk works again */
        CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_IO);
        CHECK_EQ(nodedb_wal_poll(wal, &durable, &err), NODEDB_ERR_IO);
        CHECK_EQ(durable, 10);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_ERR_IO);
        CHECK_EQ(sim_open_files(disk), 0);
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        CHECK(nodedb_wal_last_lsn(wal) == 10 || nodedb_wal_last_lsn(wal) == 11);
        CHECK(commit_range(wal, nodedb_wal_last_lsn(wal) + 1, 20, 300));
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        CHECK_EQ(sim_replay(disk, &c, 1, 300, &err), NODEDB_OK);
        CHECK(c.count == 20 && !c.wrong);
        sim_free(disk);
    }
}

/* ---- full disks ------------------------------------------------------------------------------------------------- */

TEST(on_a_full_disk_an_append_fails_without_an_lsn_and_goes_on_once_there_is_room) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    unsigned char buffer[1000];
    nodedb_wal_record record;
    uint64_t n = 0, lsn = 0;
    nodedb_status status = NODEDB_OK;
    counting c;
    REQUIRE(wal != NULL);
    disk->room_bytes = 64 << 10; /* one more segment */
    while (status == NODEDB_OK) {
        record = record_of(n + 1, buffer, 900);
        status = nodedb_wal_commit(wal, &record, 1, &lsn, &err);
        if (status == NODEDB_OK) CHECK_EQ(lsn, ++n);
        REQUIRE(n < 1000);
    }
    CHECK_EQ(status, NODEDB_ERR_DISK_FULL);
    CHECK_HAS(err.message, "No space left");
    CHECK_EQ(nodedb_wal_last_lsn(wal), n);
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, &lsn, &err), NODEDB_ERR_DISK_FULL);
    disk->room_bytes = UINT64_MAX;
    CHECK(commit_range(wal, n + 1, n + 50, 900));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(sim_replay(disk, &c, 1, 900, &err), NODEDB_OK);
    CHECK(c.count == n + 50 && !c.wrong);
    sim_free(disk);
}

/* The size of each file of the log whose name begins and ends so, oldest name first; how many there are. */
static int files_of(const sim_disk *disk, const char *begin, const char *end, size_t *bytes, int most) {
    const char *path[SIM_MAX_NAMES];
    size_t size[SIM_MAX_NAMES];
    int i, j, n = 0;
    for (i = 0; i < disk->now.count; i++) {
        const char *name = disk->now.name[i].path;
        if (disk->now.name[i].file < 0 || strncmp(name, begin, strlen(begin)) != 0 || strlen(name) < strlen(end) ||
            strcmp(name + strlen(name) - strlen(end), end) != 0)
            continue;
        for (j = n++; j > 0 && strcmp(path[j - 1], name) > 0; j--) path[j] = path[j - 1], size[j] = size[j - 1];
        path[j] = name;
        size[j] = disk->file[disk->now.name[i].file].bytes;
    }
    for (i = 0; i < n && i < most; i++) bytes[i] = size[i];
    return n;
}

TEST(on_a_nearly_full_disk_segments_are_small_and_whole_ones_come_back_when_there_is_room) {
    enum { WHOLE = 1 << 20, SMALL = 256 << 10 };
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal;
    unsigned char buffer[9000];
    size_t bytes[SIM_MAX_NAMES] = {0};
    uint64_t n = 0;
    nodedb_status status = NODEDB_OK;
    counting c;
    int segments, i, small;
    config.segment_bytes = WHOLE;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    disk->room_bytes = 2 * SMALL + SMALL / 2;
    while (status == NODEDB_OK) {
        nodedb_wal_record record = record_of(n + 1, buffer, 9000);
        status = nodedb_wal_commit(wal, &record, 1, NULL, &err);
        if (status == NODEDB_OK) n++;
        REQUIRE(n < 1000);
    }
    CHECK_EQ(status, NODEDB_ERR_DISK_FULL);
    CHECK_HAS(err.message, "No space left");
    CHECK_EQ(nodedb_wal_last_lsn(wal), n);
    segments = files_of(disk, "d/0", ".wal", bytes, SIM_MAX_NAMES);
    CHECK(segments == 3 && bytes[0] == WHOLE && bytes[1] == SMALL && bytes[2] == SMALL);
    disk->room_bytes = SMALL; /* a reserve is given up: it suffices for some more */
    CHECK(commit_range(wal, n + 1, n + 20, 9000));
    n += 20;
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);

    disk->room_bytes = SMALL; /* a start finds the same */
    CHECK_EQ(sim_replay(disk, &c, 1, 9000, &err), NODEDB_OK);
    CHECK(c.count == n && !c.wrong);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    n = nodedb_wal_last_lsn(wal); /* the seal has a number too */
    CHECK(commit_range(wal, n + 1, n + 20, 9000));
    n += 20;
    segments = files_of(disk, "d/0", ".wal", bytes, SIM_MAX_NAMES);
    CHECK(segments == 5 && bytes[3] == SMALL && bytes[4] == SMALL);

    disk->room_bytes = UINT64_MAX;
    CHECK(commit_range(wal, n + 1, n + 1500, 9000));
    n += 1500;
    segments = files_of(disk, "d/0", ".wal", bytes, SIM_MAX_NAMES);
    for (i = small = 0; i < segments; i++) small += bytes[i] < WHOLE;
    CHECK(small >= 4 && small <= 20);
    CHECK(bytes[segments - 1] == WHOLE && bytes[segments - 2] == WHOLE);

    CHECK_EQ(nodedb_wal_truncate_before(wal, n, NULL, &err), NODEDB_OK); /* small files are of no use as spares */
    segments = files_of(disk, "d/spare-", ".wal", bytes, SIM_MAX_NAMES);
    CHECK(segments >= 1);
    for (i = 0; i < segments; i++) CHECK_EQ(bytes[i], WHOLE);
    CHECK(nodedb_wal_drop_spares(wal) >= 1); /* the disk has their space again, but for the one in preparation */
    CHECK(files_of(disk, "d/spare-", ".wal", bytes, SIM_MAX_NAMES) <= 1);
    CHECK_EQ(nodedb_wal_drop_spares(wal) + nodedb_wal_drop_spares(NULL), 0);
    CHECK(commit_range(wal, n + 1, n + 300, 9000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(sim_open_files(disk), 0);
    sim_power_cut(disk);
    CHECK_EQ(sim_replay(disk, &c, n, 9000, &err), NODEDB_OK);
    CHECK(c.count == 301 && !c.wrong);
    sim_free(disk);
}

TEST(a_truncated_log_begins_whole_segments_again_at_once) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal;
    size_t bytes[SIM_MAX_NAMES] = {0};
    uint64_t n = 0;
    int segments;
    config.segment_bytes = 1 << 20;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    disk->room_bytes = 512 << 10;
    for (segments = 0; segments < 2 && n < 1000; segments = files_of(disk, "d/0", ".wal", bytes, SIM_MAX_NAMES), n++)
        CHECK(commit_range(wal, n + 1, n + 1, 9000));
    CHECK_EQ(bytes[1], 256 << 10);
    disk->room_bytes = UINT64_MAX;
    CHECK_EQ(nodedb_wal_truncate_before(wal, n, NULL, &err), NODEDB_OK);
    for (; segments < 3 && n < 1000; segments = files_of(disk, "d/", ".wal", bytes, SIM_MAX_NAMES), n++)
        CHECK(commit_range(wal, n + 1, n + 1, 9000));
    CHECK(commit_range(wal, n + 1, n + 100, 9000));
    segments = files_of(disk, "d/0", ".wal", bytes, SIM_MAX_NAMES);
    CHECK_EQ(bytes[segments - 1], 1 << 20);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    sim_free(disk);
}

TEST(a_small_segment_is_as_large_as_its_record_needs) {
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal;
    nodedb_wal_record record;
    size_t bytes[SIM_MAX_NAMES] = {0};
    unsigned char *payload = (unsigned char *)calloc(1, 300 << 10);
    uint64_t lsn = 0;
    int segments;
    config.segment_bytes = 1 << 20;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL && payload != NULL);
    disk->room_bytes = 0;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = payload, record.payload_bytes = 300 << 10;
    while (lsn < 3) CHECK_EQ(nodedb_wal_commit(wal, &record, 1, &lsn, &err), NODEDB_OK);
    disk->room_bytes = 300 << 10;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, &lsn, &err), NODEDB_ERR_DISK_FULL);
    disk->room_bytes = 320 << 10;
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, &lsn, &err), NODEDB_OK);
    CHECK_EQ(lsn, 4);
    segments = files_of(disk, "d/0", ".wal", bytes, SIM_MAX_NAMES);
    CHECK(segments == 2 && bytes[1] == 308 << 10); /* preamble, header and payload in blocks of 4 KiB */
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    sim_free(disk);
    free(payload);
}

TEST(every_call_may_fail_where_a_small_segment_is_begun_and_what_was_acknowledged_stays) {
    uint64_t at;
    bool failed = true;
    for (at = 1; failed; at++) {
        sim_disk *disk = sim_new(test_seed + at);
        nodedb_wal_config config = sim_config(disk);
        nodedb_error err;
        nodedb_wal *wal;
        unsigned char buffer[9000];
        uint64_t n, good = 0, begun;
        counting c;
        config.segment_bytes = 1 << 20;
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        CHECK(commit_range(wal, 1, 180, 9000)); /* most of the whole segment */
        disk->room_bytes = 512 << 10;
        begun = disk->calls;
        disk->fail_at = begun + at, disk->fail_error = at % 3 == 0 ? EIO : ENOSPC;
        for (n = 181; n <= 260; n++) {
            nodedb_wal_record record = record_of(n, buffer, 9000);
            if (nodedb_wal_commit(wal, &record, 1, NULL, &err) != NODEDB_OK) break;
            good = n;
        }
        failed = disk->calls >= begun + at;
        disk->fail_at = 0;
        (void)nodedb_wal_close(wal, NULL);
        sim_power_cut(disk);
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        CHECK(nodedb_wal_last_lsn(wal) >= good);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        CHECK_EQ(sim_replay(disk, &c, 1, 9000, &err), NODEDB_OK);
        CHECK(c.count >= good && !c.wrong);
        CHECK_EQ(sim_open_files(disk), 0);
        sim_free(disk);
        REQUIRE(at < 1000);
    }
}

/* ---- power cuts, and every call failing in turn ------------------------------------------------------------------ */

TEST(whatever_a_power_cut_leaves_recovery_returns_a_prefix_with_everything_acknowledged) {
    uint64_t history, histories = test_long ? 100000 : 400;
    int failures = 0;
    for (history = 0; history < histories && failures < 3; history++) {
        uint64_t state = test_seed * 1000003 + history, acknowledged = 0;
        sim_disk *disk = sim_new(state);
        nodedb_wal_config config = sim_config(disk);
        nodedb_wal_reader_config reading;
        bool refused = false;
        int life, lives = (int)(test_random(&state) % 4) + 1;
        for (life = 0; life < lives && !refused; life++) {
            disk->calls = 0;
            disk->fail_at = test_random(&state) % 160 + 1; /* the power goes at this call, in the middle of it */
            disk->fail_error = EIO;
            disk->fail_on = true;
            simring_wanted = test_random(&state) % 2 == 0;
            acknowledged = live_a_while(disk, &config, acknowledged, &state, &refused);
            if (test_random(&state) % 2 == 0) sim_power_cut(disk);
            else disk->fail_at = 0; /* only the process died: nothing is lost, and nothing more is durable */
        }
        sim_power_cut(disk);
        if (!refused) {
            nodedb_error err;
            sim_check c;
            nodedb_wal *wal = nodedb_wal_open(&config, &err);
            uint64_t last = wal != NULL ? nodedb_wal_last_lsn(wal) : 0;
            memset(&c, 0, sizeof c);
            memset(&reading, 0, sizeof reading);
            reading.dir = "d", reading.io = disk->io;
            if (wal == NULL || last < acknowledged) refused = true;
            else if (nodedb_wal_replay(&reading, check_prefix, &c, NULL, &err) != NODEDB_OK || c.wrong || c.last > last)
                refused = true;
            if (wal == NULL) fprintf(stderr, "%s\n", err.message);
            if (wal != NULL && nodedb_wal_close(wal, &err) != NODEDB_OK) refused = true;
        }
        if (refused) {
            char what[200];
            snprintf(what, sizeof what, "history %llu: an acknowledged record was lost or altered (acknowledged %llu)",
                     (unsigned long long)history, (unsigned long long)acknowledged);
            test_fail(__FILE__, __LINE__, what);
            failures++;
        }
        sim_free(disk);
    }
}

TEST(every_io_call_fails_in_turn_and_nothing_acknowledged_is_lost) {
    static const int errors[] = {EIO, ENOSPC, EINTR, 0};
    int kind;
    uint64_t call;
    for (kind = 0; kind < 8; kind++) {
        simring_wanted = kind >= 4;
        for (call = 1; call < 200; call++) {
            sim_disk *disk = sim_new(test_seed);
            nodedb_wal_config config = sim_config(disk);
            nodedb_error err;
            uint64_t state = 5, acknowledged;
            bool refused = false;
            counting c;
            sim_check check;
            nodedb_wal_reader_config reading;
            nodedb_wal *wal;
            (void)c;
            disk->fail_at = call, disk->fail_error = errors[kind % 4];
            acknowledged = live_a_while(disk, &config, 0, &state, &refused);
            acknowledged = live_a_while(disk, &config, acknowledged, &state, &refused);
            CHECK(!refused);
            disk->fail_at = 0;
            CHECK_EQ(sim_open_files(disk), 0);
            wal = nodedb_wal_open(&config, &err);
            REQUIRE(wal != NULL);
            CHECK(nodedb_wal_last_lsn(wal) >= acknowledged);
            memset(&check, 0, sizeof check);
            memset(&reading, 0, sizeof reading);
            reading.dir = "d", reading.io = disk->io;
            CHECK_EQ(nodedb_wal_replay(&reading, check_prefix, &check, NULL, &err), NODEDB_OK);
            CHECK(!check.wrong);
            CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
            sim_free(disk);
        }
    }
}

/* One log, on a real disk: one operation of its backend fails so; everything acknowledged is there afterwards. */
static void one_operation_fails(uint64_t operation, int fault, bool *fatal) {
    char name[64];
    nodedb_wal_config config;
    nodedb_error err;
    nodedb_wal *wal;
    unsigned char buffer[3000];
    uint64_t n, acknowledged, after;
    snprintf(name, sizeof name, "faults%d-%d", -fault, (int)operation);
    config = config_here(name);
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    simring_install_fault(wal, operation, fault);
    for (n = 1; n <= 60; n++) {
        nodedb_wal_record record = record_of(nodedb_wal_last_lsn(wal) + 1, buffer, 3000);
        if (n % 5 == 0) (void)nodedb_wal_commit(wal, &record, 1, NULL, &err);
        else (void)nodedb_wal_append(wal, &record, NULL, &err);
        if (n % 3 == 0) (void)nodedb_wal_submit(wal, &err);
        if (n % 4 == 0) (void)nodedb_wal_poll(wal, NULL, &err);
    }
    acknowledged = nodedb_wal_durable_lsn(wal);
    *fatal = wal->failed;
    if (*fatal) {
        nodedb_wal_record record = record_of(1, buffer, 100);
        CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_IO);
        CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_ERR_IO);
        CHECK_EQ(nodedb_wal_wait(wal, nodedb_wal_last_lsn(wal), &err), NODEDB_ERR_IO);
        CHECK_EQ(nodedb_wal_poll(wal, &after, &err), NODEDB_ERR_IO);
        CHECK_EQ(after, acknowledged);
        CHECK_HAS(err.message, "must be reopened");
    }
    after = nodedb_wal_last_lsn(wal);
    if (nodedb_wal_close(wal, &err) == NODEDB_OK) CHECK(!*fatal), acknowledged = after;
    else *fatal = err.status == NODEDB_ERR_IO; /* it may fail as late as then */
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK(nodedb_wal_last_lsn(wal) >= acknowledged);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK(acknowledged == 0 || replay_all(0, 3000, NODEDB_OK).next > acknowledged);
}

TEST(every_operation_of_the_backend_fails_in_turn_and_nothing_acknowledged_is_lost) {
    static const int faults[] = {-EIO, -ENOSPC, 0, -EINTR, -EAGAIN, -ECANCELED};
    uint64_t operation;
    int kind;
    for (kind = 0; kind < 6; kind++)
        for (operation = 1; operation < 34; operation += test_long ? 1 : 3) {
            int fault = faults[kind];
            bool fatal = false;
            one_operation_fails(operation, fault, &fatal);
            if (fault == 0 || fault == -EINTR) CHECK(!fatal); /* the rest is written, or all again */
        }
}

/* ---- how it is written ------------------------------------------------------------------------------------------- */

TEST(no_block_that_holds_an_acknowledged_record_is_written_again_and_the_page_cache_does_not_grow) {
    nodedb_wal_config config = config_here("cache");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    char path[700];
    int fd;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 30, 200));
    if (strstr(nodedb_wal_describe(wal), "O_DIRECT") != NULL) {
        size_t pages = (size_t)(config.segment_bytes / 4096), i, resident = 0;
        unsigned char *map, *state = (unsigned char *)malloc(pages);
        snprintf(path, sizeof path, "%s/00000000000000000001.wal", log_dir);
        fd = open(path, O_RDONLY);
        map = (unsigned char *)mmap(NULL, (size_t)config.segment_bytes, PROT_READ, MAP_SHARED, fd, 0);
        REQUIRE(map != (unsigned char *)MAP_FAILED);
        CHECK(mincore(map, (size_t)config.segment_bytes, state) == 0);
        for (i = 0; i < pages; i++) resident += state[i] & 1;
        CHECK_EQ(resident, 0);
        for (i = 1; i <= 30; i++)
            CHECK(nodedb_get_u64(map + i * 4096 + 8) == i); /* each commit in a block of its own */
        munmap(map, (size_t)config.segment_bytes);
        close(fd);
        free(state);
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

/* A commit into blocks that are allocated and were written before changes nothing but their content: no extent of a
 * segment may be one that the file system has only set aside, as fallocate leaves it. */
TEST(a_segment_is_written_through_before_the_first_commit) {
    enum { EXTENTS = 64 };
    nodedb_wal_config config = config_here("extents");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    uint64_t room[(sizeof(struct fiemap) + EXTENTS * sizeof(struct fiemap_extent)) / sizeof(uint64_t) + 1];
    struct fiemap *map = (struct fiemap *)room;
    char path[700];
    struct stat before, after;
    uint64_t covered = 0, inodes_changed = 0;
    uint32_t i;
    int fd;
    REQUIRE(wal != NULL);
    snprintf(path, sizeof path, "%s/00000000000000000001.wal", log_dir);
    fd = open(path, O_RDONLY);
    REQUIRE(fd >= 0 && fstat(fd, &before) == 0);
    CHECK_EQ(before.st_size, (long long)config.segment_bytes);
    memset(room, 0, sizeof room);
    map->fm_length = config.segment_bytes, map->fm_extent_count = EXTENTS;
    if (ioctl(fd, FS_IOC_FIEMAP, map) == 0) { /* not every file system tells */
        for (i = 0; i < map->fm_mapped_extents; i++) {
            CHECK((map->fm_extents[i].fe_flags & (FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_DELALLOC)) == 0);
            covered += map->fm_extents[i].fe_length;
        }
        CHECK(covered >= config.segment_bytes);
    }
    CHECK(commit_range(wal, 1, 20, 100));
    REQUIRE(fstat(fd, &after) == 0);
    inodes_changed = before.st_size != after.st_size || before.st_blocks != after.st_blocks;
    CHECK_EQ(inodes_changed, 0);
    close(fd);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

static int open_cached_only(void *ctx, const char *path, int flags, int mode) {
    (void)ctx;
    return (flags & O_DIRECT) != 0 ? -EINVAL : nodedb__posix_open(NULL, path, flags, mode);
}

static void note_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    (void)level;
    if (strstr(sentence, "refuses O_DIRECT") != NULL) ++*(int *)ctx;
}

TEST(where_direct_writes_are_refused_the_log_goes_through_the_page_cache_and_says_so_once) {
    nodedb_wal_config config = config_here("cached");
    nodedb_error err;
    nodedb_wal *wal;
    int sentences = 0;
    config.io.open = open_cached_only;
    config.logger.write = note_sentence, config.logger.ctx = &sentences;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_HAS(nodedb_wal_describe(wal), "buffered");
    CHECK(append_range(wal, 1, 1000, 2000)); /* over several segments */
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(sentences, 1);
    CHECK_EQ(replay_all(1, 2000, NODEDB_OK).count, 1000);
}

/* ---- optional system calls are refused --------------------------------------------------------------------------- */

static void count_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    (void)level, (void)sentence;
    ++*(int *)ctx;
}

/* A system call that a sandbox refuses with `error`: always, or where argument `argument` has a bit of `bits`. */
typedef struct refusal {
    const char *name;
    int number, argument;
    uint32_t bits;
    int writing, reading; /* sentences to the logger that are expected then */
} refusal;

/* From now on this process gets `error` for that call. False: no filters here (an emulator, a kernel without them). */
static bool refuse_call(const refusal *what, int error) {
    const uint32_t low = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)what->number, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 (uint32_t)offsetof(struct seccomp_data, args) + 8 * (uint32_t)what->argument + low),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, what->bits, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program;
    program.len = sizeof code / sizeof *code, program.filter = code;
    if (what->bits == 0) code[3] = code[4]; /* whatever the arguments are */
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* In a child: writes a log in both ways, over two segments, and reads it. 0: all went well; 77: nothing can be
 * refused here. */
static int live_with(const refusal *what, int error, bool refused_later) {
    nodedb_wal_config config = config_here("refused");
    nodedb_wal_reader_config reading = reading_here();
    nodedb_error err;
    nodedb_wal *wal;
    counting c;
    int writing = 0, read = 0;
    config.logger.write = reading.logger.write = count_sentence;
    config.logger.ctx = &writing, reading.logger.ctx = &read;
    if (!refused_later && !refuse_call(what, error)) return 77;
    wal = nodedb_wal_open(&config, &err);
    if (refused_later && !refuse_call(what, error)) return 77;
    if (wal == NULL || !commit_range(wal, 1, 10, 3000) || !append_range(wal, 11, 200, 3000)) return 1;
    if (!commit_range(wal, 201, 210, 3000) || nodedb_wal_close(wal, &err) != NODEDB_OK) return 2;
    memset(&c, 0, sizeof c);
    c.max = 3000;
    reading.threads = 1;
    if (nodedb_wal_replay(&reading, count_record, &c, NULL, &err) != NODEDB_OK || c.count != 210 || c.wrong) return 3;
    return writing != (refused_later ? 1 : what->writing) ? 4 : read != what->reading ? 5 : 0;
}

static void refuse(const refusal *what, int error, bool refused_later) {
    int status = -1;
    pid_t child = fork();
    if (child == 0) _exit(live_with(what, error, refused_later));
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) fprintf(stderr, "system calls cannot be refused here: not tested\n");
    else if (WEXITSTATUS(status) != 0) {
        char text[200];
        snprintf(text, sizeof text, "%s refused with errno %d: step %d failed", what->name, error, WEXITSTATUS(status));
        test_fail(__FILE__, __LINE__, text);
    }
    remove_log("refused");
}

static const int refusals[] = {EPERM, EACCES, ENOSYS, EOPNOTSUPP, EINVAL};

TEST(an_optional_system_call_may_be_refused_and_the_log_goes_on_and_says_so_once) {
#if defined(SYS_mmap2)
    const int map = SYS_mmap2;
#else
    const int map = SYS_mmap;
#endif
#if defined(SYS_fadvise64)
    const int advise = SYS_fadvise64;
#elif defined(SYS_arm_fadvise64_64)
    const int advise = SYS_arm_fadvise64_64;
#else
    const int advise = SYS_fadvise64_64;
#endif
    const refusal calls[] = {{"pwritev2", SYS_pwritev2, 0, 0, 1, 0},
                             {"openat, O_DIRECT", SYS_openat, 2, O_DIRECT, 1, 0},
                             {"io_uring_setup", SYS_io_uring_setup, 0, 0, 1, 0},
                             {"mmap, MAP_SHARED", map, 3, MAP_SHARED, -1, 1},
                             {"fallocate", SYS_fallocate, 0, 0, 0, 0},
                             {"statx", SYS_statx, 0, 0, 0, 0},
                             {"getrandom", SYS_getrandom, 0, 0, 0, 0},
                             {"fadvise64", advise, 0, 0, 0, 0},
                             {"madvise", SYS_madvise, 0, 0, 0, 0}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        for (size_t k = 0; k < sizeof refusals / sizeof *refusals; k++) {
            refusal what = calls[i];
#if defined(NODEDB_NO_LIBURING)
            if (strcmp(what.name, "openat, O_DIRECT") != 0 && strcmp(what.name, "pwritev2") != 0) what.writing = 1;
            else what.writing = 2; /* and that it was built without liburing */
#else
            if (what.writing < 0) what.writing = 1; /* a ring is a shared mapping too */
#endif
            refuse(&what, refusals[k], false);
        }
}

TEST(pwritev2_may_be_refused_by_a_sandbox_that_begins_later) {
    const refusal what = {"pwritev2", SYS_pwritev2, 0, 0, 1, 0};
    nodedb_wal_config config = config_here("probe");
    nodedb_wal *wal = nodedb_wal_open(&config, NULL);
    REQUIRE(wal != NULL);
    if (strstr(nodedb_wal_describe(wal), "io_uring") != NULL) refuse(&what, EPERM, true);
    CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
}

/* A kernel whose io_uring lacks an operation ends it with an errno like these. The log goes on without the ring. */
TEST(an_operation_that_io_uring_refuses_is_done_without_it) {
    for (size_t k = 0; k < sizeof refusals / sizeof *refusals; k++)
        for (uint64_t operation = 1; operation < 34; operation += 3) {
            bool fatal = false, has_ring;
            nodedb_wal_config config = config_here("probe");
            nodedb_wal *wal = nodedb_wal_open(&config, NULL);
            REQUIRE(wal != NULL);
            has_ring = strstr(nodedb_wal_describe(wal), "io_uring") != NULL;
            CHECK_EQ(nodedb_wal_close(wal, NULL), NODEDB_OK);
            if (!has_ring) return; /* nothing to do without, then */
            one_operation_fails(operation, -refusals[k], &fatal);
            CHECK(!fatal);
        }
}

#if !defined(NODEDB_NO_LIBURING)
static nodedb_wal__engine kernel;

/* As from a kernel that does not know the operations of a ring: each of them ends with a refusal. */
static uint32_t refuse_all(nodedb_wal *w, bool wait, nodedb_wal__completion *done) {
    uint32_t n = kernel.reap(w, wait, done);
    for (uint32_t i = 0; i < n; i++)
        if (done[i].from_ring) done[i].result = -EOPNOTSUPP;
    return n;
}

TEST(a_ring_may_refuse_all_the_groups_that_are_in_flight) {
    for (uint64_t groups = 1; groups < 8; groups++) {
        nodedb_wal_config config = config_here("refused");
        nodedb_error err;
        nodedb_wal *wal;
        int said = 0;
        config.logger.write = count_sentence, config.logger.ctx = &said;
        remove_log("refused");
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        if (!nodedb_wal__has_ring(wal)) {
            CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
            return; /* nothing to do without */
        }
        kernel = wal->device.engine;
        wal->device.engine.reap = refuse_all;
        for (uint64_t n = 1; n <= groups; n++) {
            unsigned char buffer[3000];
            nodedb_wal_record record = record_of(n, buffer, 3000);
            CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_OK);
            CHECK_EQ(nodedb_wal_submit(wal, &err), NODEDB_OK);
        }
        CHECK_EQ(nodedb_wal_wait(wal, groups, &err), NODEDB_OK);
        CHECK(append_range(wal, groups + 1, 200, 3000)); /* into the next segments */
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        CHECK_EQ(said, 1);
        CHECK_EQ(replay_all(1, 3000, NODEDB_OK).count, 200);
    }
}
#endif

/* ---- a directory and a file system that change their mind while groups are in flight ---- */

static int refused_flags, refused_opens; /* an open of prepare.tmp with these flags is EACCES; how many were */

static int open_or_refuse(void *ctx, const char *path, int flags, int mode) {
    if (strstr(path, "prepare.tmp") == NULL || (flags & refused_flags) == 0)
        return nodedb__posix_open(ctx, path, flags, mode);
    refused_opens++;
    return -EACCES;
}

/* Sends groups of 20 KB without waiting, until the refusal has been met and there is no other way. Answers how many
 * records have an LSN. */
static uint64_t send_until_full(nodedb_wal *wal, uint64_t most, nodedb_status *status) {
    static unsigned char buffer[1 << 17];
    nodedb_error err;
    uint64_t n = 0;
    *status = NODEDB_OK;
    for (int again = 0; n < most && again < 100000;) {
        nodedb_wal_record record = record_of(n + 1, buffer, 40000);
        *status = nodedb_wal_append(wal, &record, NULL, &err);
        if (*status == NODEDB_OK) n++;
        else if (*status != NODEDB_ERR_AGAIN) break;
        else again++;
        (void)nodedb_wal_submit(wal, &err);
        if (n % 3 == 0 || *status != NODEDB_OK) CHECK_EQ(nodedb_wal_poll(wal, NULL, &err), NODEDB_OK);
    }
    return n;
}

TEST(a_directory_that_becomes_read_only_is_no_refusal_of_direct_writes) {
    nodedb_wal_config config = config_here("readonly");
    nodedb_wal *wal = nodedb_wal_open(&config, NULL);
    nodedb_status status;
    nodedb_error err;
    uint64_t n;
    bool had_ring;
    int had_flags;
    REQUIRE(wal != NULL);
    had_ring = nodedb_wal__has_ring(wal), had_flags = wal->open_flags;
    wal->io.open = open_or_refuse;
    refused_flags = O_CREAT, refused_opens = 0;
    n = send_until_full(wal, 1000, &status);
    CHECK(refused_opens > 0 && n > 3 && n < 1000);
    CHECK(status != NODEDB_OK && status != NODEDB_ERR_AGAIN && !wal->failed);
    CHECK(nodedb_wal__has_ring(wal) == had_ring && wal->open_flags == had_flags);
    CHECK_EQ(nodedb_wal_wait(wal, n, &err), NODEDB_OK);
    wal->io.open = nodedb__posix_open; /* it can be written again */
    CHECK(commit_range(wal, n + 1, n + 50, 40000));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_all(1, 40000, NODEDB_OK).count, n + 50);
}

TEST(direct_writes_may_be_refused_while_groups_are_in_flight) {
    nodedb_wal_config config = config_here("refused");
    nodedb_wal *wal;
    nodedb_status status;
    nodedb_error err;
    uint64_t n;
    int said = 0;
    bool wrote = false;
    config.logger.write = note_sentence, config.logger.ctx = &said;
    wal = nodedb_wal_open(&config, NULL);
    REQUIRE(wal != NULL);
    if (wal->open_flags != 0) {
        wal->io.open = open_or_refuse;
        refused_flags = O_DIRECT, refused_opens = 0;
        n = send_until_full(wal, 200, &status);
        CHECK(n == 200 && refused_opens == 1 && said == 1);
        CHECK(wal->open_flags == 0 && !nodedb_wal__has_ring(wal));
        CHECK(commit_range(wal, 201, 250, 40000));
        wrote = true;
    }
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    if (wrote) CHECK_EQ(replay_all(1, 40000, NODEDB_OK).count, 250);
    else fprintf(stderr, "note: direct writes are refused here anyway\n");
}

/* ---- killed writers, threads, event loops ------------------------------------------------------------------------ */

/* Threads commit in a child and tell the parent through a pipe what was acknowledged; the child is killed; nothing may
 * miss. */
static int told;
static void *commit_and_tell(void *argument) {
    nodedb_wal *wal = (nodedb_wal *)argument;
    unsigned char payload[100];
    nodedb_wal_record record;
    uint64_t lsn;
    memset(payload, 7, sizeof payload);
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = payload, record.payload_bytes = sizeof payload;
    while (nodedb_wal_commit(wal, &record, 1, &lsn, NULL) == NODEDB_OK)
        if (write(told, &lsn, sizeof lsn) != (ssize_t)sizeof lsn) break;
    return NULL;
}

static nodedb_status remember_last(void *ctx, const nodedb_wal_record *record) {
    uint64_t *last = (uint64_t *)ctx;
    if (*last != 0 && record->lsn != *last + 1 && record->lsn != *last + 2)
        return NODEDB_ERR_CORRUPT; /* a seal may lie between */
    *last = record->lsn;
    return NODEDB_OK;
}

TEST(a_killed_writer_loses_nothing_that_it_acknowledged) {
    int kills = test_long ? 1000 : 5, i;
    nodedb_wal_config config = config_here("killed");
    for (i = 0; i < kills; i++) {
        int pipes[2];
        pid_t child;
        uint64_t lsn, highest = 0, last = 0, state = test_seed + (uint64_t)i;
        nodedb_wal_reader_config reading = reading_here();
        nodedb_error err;
        REQUIRE(pipe(pipes) == 0);
        child = fork();
        if (child == 0) {
            pthread_t thread[4];
            int t;
            nodedb_wal *wal = nodedb_wal_open(&config, NULL);
            told = pipes[1];
            if (wal == NULL) _exit(1);
            (void)nodedb_wal_truncate_before(wal, nodedb_wal_last_lsn(wal) > 5000 ? nodedb_wal_last_lsn(wal) - 5000 : 0,
                                             NULL, NULL);
            for (t = 0; t < 4; t++) pthread_create(&thread[t], NULL, commit_and_tell, wal);
            for (;;) pause();
        }
        close(pipes[1]);
        usleep((useconds_t)(test_random(&state) % 60000) + 10000);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (read(pipes[0], &lsn, sizeof lsn) == (ssize_t)sizeof lsn)
            if (lsn > highest) highest = lsn;
        close(pipes[0]);
        if (highest == 0) continue; /* killed before its first commit */
        CHECK_EQ(nodedb_wal_replay(&reading, remember_last, &last, NULL, &err), NODEDB_OK);
        CHECK(last >= highest);
    }
}

/* A thread polls, one appends without waiting, one commits. Who reaps hands the duty on, so nobody sleeps for ever.
 */
typedef struct mixed { nodedb_wal *wal; int done; } mixed;
static void *mixed_poll(void *argument) {
    mixed *m = (mixed *)argument;
    while (!nodedb__load_acquire(&m->done)) (void)nodedb_wal_poll(m->wal, NULL, NULL);
    return NULL;
}
static void *mixed_append(void *argument) {
    mixed *m = (mixed *)argument;
    unsigned char payload[3000];
    nodedb_wal_record record;
    memset(payload, 1, sizeof payload);
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = payload, record.payload_bytes = sizeof payload;
    while (!nodedb__load_acquire(&m->done)) {
        (void)nodedb_wal_append(m->wal, &record, NULL, NULL);
        (void)nodedb_wal_submit(m->wal, NULL);
    }
    return NULL;
}
static void mixed_use(nodedb_wal_backend backend) {
    nodedb_wal_config config = config_here("mixed");
    pthread_t poller, appender;
    mixed m = {NULL, 0};
    nodedb_error err;
    config.backend = backend;
    m.wal = nodedb_wal_open(&config, &err);
    REQUIRE(m.wal != NULL);
    pthread_create(&poller, NULL, mixed_poll, &m);
    pthread_create(&appender, NULL, mixed_append, &m);
    {
        nodedb_wal_record record;
        int i;
        memset(&record, 0, sizeof record);
        record.type = NODEDB_WAL_TYPE_USER;
        for (i = 0; i < 150; i++) {
            CHECK_EQ(nodedb_wal_commit(m.wal, &record, 1, NULL, &err), NODEDB_OK);
            if (i % 16 == 0)
                CHECK_EQ(nodedb_wal_truncate_before(m.wal, nodedb_wal_durable_lsn(m.wal), NULL, &err), NODEDB_OK);
        }
    }
    nodedb__store_release(&m.done, 1);
    pthread_join(poller, NULL);
    pthread_join(appender, NULL);
    CHECK_EQ(nodedb_wal_close(m.wal, &err), NODEDB_OK);
}
TEST(committers_appenders_and_pollers_may_share_a_log) { mixed_use(NODEDB_WAL_BACKEND_AUTO); }
TEST(committers_appenders_and_pollers_may_share_a_log_with_posix) { mixed_use(NODEDB_WAL_BACKEND_POSIX); }

static bool is_readable(int fd) {
    struct pollfd p = {0, POLLIN, 0};
    p.fd = fd;
    return poll(&p, 1, 0) == 1;
}

static void an_event_loop_is_woken(nodedb_wal_backend backend) {
    nodedb_wal_config config = config_here(backend == NODEDB_WAL_BACKEND_POSIX ? "hears-posix" : "hears");
    nodedb_error err;
    nodedb_wal *wal;
    nodedb_wal_record record;
    uint64_t durable = 0;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER;
    config.backend = backend;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_OK); /* the loop's own record, which */
    CHECK_EQ(nodedb_wal_poll(wal, &durable, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_OK); /* a committer takes along */
    CHECK(is_readable(nodedb_wal_fd(wal)));
    CHECK_EQ(nodedb_wal_poll(wal, &durable, &err), NODEDB_OK);
    CHECK_EQ(durable, 2);
    CHECK_EQ(nodedb_wal_append(wal, &record, NULL, &err), NODEDB_OK);
    simring_install_fault(wal, 1, -EIO);
    CHECK_EQ(nodedb_wal_commit(wal, &record, 1, NULL, &err), NODEDB_ERR_IO);
    CHECK(is_readable(nodedb_wal_fd(wal)));
    CHECK_EQ(nodedb_wal_poll(wal, &durable, &err), NODEDB_ERR_IO);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_ERR_IO);
}
TEST(an_event_loop_is_woken_by_committers_writes_and_by_failure) { an_event_loop_is_woken(NODEDB_WAL_BACKEND_AUTO); }
TEST(an_event_loop_is_woken_so_with_posix) { an_event_loop_is_woken(NODEDB_WAL_BACKEND_POSIX); }

TEST(a_sync_that_failed_for_one_group_has_failed_for_all) { /* Linux tells of it once for each descriptor */
    sim_disk *disk = sim_new(test_seed);
    nodedb_wal_config config = sim_config(disk);
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    disk->fail_at = disk->calls + 1, disk->fail_error = EIO;
    CHECK_EQ(nodedb_wal__sync_file(wal, nodedb_wal__current_file(wal)->fd), -EIO);
    CHECK_EQ(nodedb_wal__sync_file(wal, nodedb_wal__current_file(wal)->fd), -EIO); /* another leader's */
    CHECK(nodedb_wal_close(wal, &err) == NODEDB_OK); /* nothing was written */
    sim_free(disk);
}

/* Threads that come, commit once, and end: what the kernel drops with a thread is written again. */
static void *commit_once(void *argument) {
    nodedb_wal_record record;
    memset(&record, 0, sizeof record);
    record.type = NODEDB_WAL_TYPE_USER;
    return nodedb_wal_commit((nodedb_wal *)argument, &record, 1, NULL, NULL) == NODEDB_OK ? NULL : argument;
}
TEST(threads_that_end_do_not_break_the_log) {
    nodedb_wal_config config = config_here("ending");
    nodedb_error err;
    nodedb_wal *wal;
    int round, i, failures = 0;
    config.buffered = true;
    wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    for (round = 0; round < 40; round++) {
        pthread_t thread[8];
        void *failure;
        for (i = 0; i < 8; i++) pthread_create(&thread[i], NULL, commit_once, wal);
        for (i = 0; i < 8; i++) {
            pthread_join(thread[i], &failure);
            failures += failure != NULL;
        }
    }
    CHECK_EQ(failures, 0);
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
}

/* ---- the life of a log ------------------------------------------------------------------------------------------- */

TEST(the_lsn_survives_truncation_of_everything) {
    nodedb_wal_config config = config_here("all");
    nodedb_error err;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    int round;
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 5, 100));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    for (round = 0; round < 4; round++) {
        int files = 0;
        wal = nodedb_wal_open(&config, &err);
        REQUIRE(wal != NULL);
        CHECK_EQ(nodedb_wal_last_lsn(wal), 6);
        CHECK_EQ(nodedb_wal_truncate_before(wal, 7, NULL, &err), NODEDB_OK);
        CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
        {
            nodedb_wal__list list;
            nodedb_allocator none;
            nodedb_io io = nodedb__io_or_posix(NULL);
            memset(&none, 0, sizeof none);
            CHECK_EQ(nodedb_wal__list_segments(&io, &none, log_dir, &list, &err), NODEDB_OK);
            files = (int)(list.count + list.spare_count);
            nodedb_wal__list_free(&list);
        }
        CHECK(files >= 1 && files <= 2 + NODEDB_WAL__MAX_SPARES); /* and space does not grow from life to life */
    }
}

TEST(replay_from_beyond_the_end_is_an_error_and_so_is_a_refusal_of_the_callback) {
    nodedb_wal_config config = config_here("beyond");
    nodedb_wal_reader_config reading;
    nodedb_wal_cursor cursor;
    nodedb_error err;
    counting c;
    bool more;
    nodedb_wal *wal = nodedb_wal_open(&config, &err);
    REQUIRE(wal != NULL);
    CHECK(commit_range(wal, 1, 5, 100));
    CHECK_EQ(nodedb_wal_close(wal, &err), NODEDB_OK);
    CHECK_EQ(replay_all(20, 100, NODEDB_ERR_NOT_FOUND).count, 0);
    memset(&c, 0, sizeof c);
    memset(&cursor, 0, sizeof cursor);
    c.max = 100, c.stop_at = 2;
    reading = reading_here();
    CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 10, count_record, &c, &more, &err), NODEDB_ERR_CANCELLED);
    CHECK_EQ(c.count, 2);
    cursor.lsn = 500, cursor.segment_first_lsn = 0; /* a stored cursor of a log that was lost */
    CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 10, count_record, &c, &more, &err), NODEDB_ERR_NOT_FOUND);
    cursor.lsn = 7; /* behind the seal: there is nothing yet, and nothing is missing */
    CHECK_EQ(nodedb_wal_replay_page(&reading, &cursor, 10, count_record, &c, &more, &err), NODEDB_OK);
    CHECK(!more);
}

TEST(two_logs_in_one_process_are_independent) {
    nodedb_wal_config config = config_here("one");
    nodedb_error err;
    nodedb_wal *one = nodedb_wal_open(&config, &err), *two;
    config = config_here("two");
    two = nodedb_wal_open(&config, &err);
    REQUIRE(one != NULL && two != NULL);
    CHECK(commit_range(one, 1, 5, 100) && commit_range(two, 1, 9, 100) && commit_range(one, 6, 7, 100));
    CHECK_EQ(nodedb_wal_close(one, &err), NODEDB_OK);
    CHECK_EQ(nodedb_wal_close(two, &err), NODEDB_OK);
    CHECK_EQ(replay_all(1, 100, NODEDB_OK).count, 9);
}

TEST_MAIN("wal")
