/* recovery.c - a shard comes back from its directory: the newest checkpoint, then the log behind it.
 *
 *   core-N/log/        the log, nodedb_wal.h
 *   core-N/progress    the highest LSN and checkpoint that are known to be durable
 *   core-N/reserve     RESERVE_BYTES, deleted when the disk is full, so that changes which free space find some
 *
 * A log cannot tell by itself that its newest segment has been deleted, nor a directory that its checkpoint has. The
 * file "progress" can: it records what was durable, and recovery refuses to continue with less. Nothing is recorded
 * before it is durable. Little-endian, two slots of 64 bytes at offsets 0 and 4096, written in turn;
 * of the valid ones that with the higher sequence counts:
 *   offset bytes
 *        0     8  magic "NDBNOTED"
 *        8     4  version, 1
 *       12     4  0
 *       16     8  sequence
 *       24     8  LSN of the newest checkpoint, 0: none
 *       32     8  an LSN that is durable in the log
 *       40    20  0
 *       60     4  CRC-32C of bytes 0 to 59 */
#include "db.h"

#include <sys/statvfs.h>

#define PROGRESS_SLOT_BYTES 64
#define PROGRESS_SLOT_STRIDE 4096 /* a torn write of one slot's block does not reach the other */

/* ---- the note of how far it went --------------------------------------------------------------------------------- */

typedef struct progress_note {
    uint64_t sequence, checkpoint_lsn, durable_lsn;
} progress_note;

static void note_encode(const progress_note *n, unsigned char *to) {
    memset(to, 0, PROGRESS_SLOT_BYTES);
    memcpy(to, "NDBNOTED", 8);
    nodedb_put_u32(to + 8, 1);
    nodedb_put_u64(to + 16, n->sequence);
    nodedb_put_u64(to + 24, n->checkpoint_lsn);
    nodedb_put_u64(to + 32, n->durable_lsn);
    nodedb_put_u32(to + 60, nodedb_crc32c(0, to, 60));
}

static bool note_decode(const unsigned char *from, progress_note *n) {
    if (memcmp(from, "NDBNOTED", 8) != 0 || nodedb_get_u32(from + 8) != 1 ||
        nodedb_get_u32(from + 60) != nodedb_crc32c(0, from, 60))
        return false;
    n->sequence = nodedb_get_u64(from + 16);
    n->checkpoint_lsn = nodedb_get_u64(from + 24);
    n->durable_lsn = nodedb_get_u64(from + 32);
    return true;
}

/* False: there is no valid note. */
static bool read_note(const shard *s, progress_note *newest) {
    unsigned char slot[PROGRESS_SLOT_BYTES];
    char path[PATH_ROOM];
    progress_note n;
    bool any = false;
    int i, fd;
    (void)snprintf(path, sizeof path, "%s/progress", s->dir);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    for (i = 0; i < 2; i++) {
        if (pread(fd, slot, sizeof slot, (off_t)i * PROGRESS_SLOT_STRIDE) != (ssize_t)sizeof slot) continue;
        if (!note_decode(slot, &n) || (any && n.sequence <= newest->sequence)) continue;
        *newest = n;
        any = true;
    }
    (void)close(fd);
    return any;
}

/* Opens the file. A new one is written through with zeros: later notes change no metadata and need no space. */
static int open_progress(const shard *s) {
    static const unsigned char zeros[2 * PROGRESS_SLOT_STRIDE];
    char path[PATH_ROOM];
    struct stat st;
    int fd;
    (void)snprintf(path, sizeof path, "%s/progress", s->dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    if (fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof zeros) return fd;
    if (pwrite(fd, zeros, sizeof zeros, 0) == (ssize_t)sizeof zeros && fsync(fd) == 0 && sync_path(s->dir) == 0)
        return fd;
    (void)close(fd);
    return -1;
}

void note_progress(shard *s, bool sync) {
    progress_note n = {.sequence = s->noted_sequence + 1, .checkpoint_lsn = s->checkpoint_lsn};
    unsigned char slot[PROGRESS_SLOT_BYTES];
    off_t at = (off_t)(n.sequence % 2) * PROGRESS_SLOT_STRIDE;
    if (s->wal == NULL) return;
    n.durable_lsn = nodedb_wal_durable_lsn(s->wal);
    if (!sync && n.durable_lsn == s->noted_lsn && n.checkpoint_lsn == s->noted_checkpoint) return;
    if (s->progress_fd < 0) s->progress_fd = open_progress(s);
    note_encode(&n, slot);
    if (s->progress_fd < 0 || pwrite(s->progress_fd, slot, sizeof slot, at) != (ssize_t)sizeof slot ||
        (sync && fdatasync(s->progress_fd) != 0)) {
        nodedb_say(&s->logger, NODEDB_LOG_WARNING, "core %u cannot write %s/progress: %s", s->index,
                   path_tail(s->dir), strerror(errno));
        return;
    }
    s->noted_sequence = n.sequence;
    s->noted_lsn = n.durable_lsn;
    s->noted_checkpoint = n.checkpoint_lsn;
}

/* ---- the reserve ------------------------------------------------------------------------------------------------- */

static uint64_t reserve_bytes(const shard *s, char path[PATH_ROOM]) {
    struct stat st;
    (void)snprintf(path, PATH_ROOM, "%s/reserve", s->dir);
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

bool reserve_give_up(shard *s, bool all) {
    char path[PATH_ROOM];
    uint64_t bytes = reserve_bytes(s, path);
    if (bytes <= (all ? 0 : FLUSH_RESERVE_BYTES)) return false;
    if ((all ? unlink(path) : truncate(path, FLUSH_RESERVE_BYTES)) != 0) return false;
    s->reserve_gone = true;
    (void)sync_path(all ? s->dir : path); /* a file system with a journal gives blocks back when it commits */
    return true;
}

void reserve_put_back(shard *s) {
    char path[PATH_ROOM];
    int fd;
    if (reserve_bytes(s, path) < RESERVE_BYTES && (fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) >= 0) {
        if (posix_fallocate(fd, 0, RESERVE_BYTES) != 0 && reserve_bytes(s, path) == 0) (void)unlink(path);
        (void)close(fd);
    }
    s->reserve_gone = reserve_bytes(s, path) < RESERVE_BYTES;
}

void reserve_take(shard *s) {
    char path[PATH_ROOM];
    int tries;
    s->reserve_gone = reserve_bytes(s, path) < RESERVE_BYTES;
    for (tries = 0; s->reserve_gone && tries < 2; tries++) {
        struct statvfs disk;
        if (tries > 0 && nodedb_wal_drop_spares(s->wal) == 0) return;
        if (statvfs(s->dir, &disk) == 0 &&
            (uint64_t)disk.f_bavail * disk.f_frsize > RESERVE_BYTES + (UINT64_C(1) << 20))
            reserve_put_back(s);
    }
}

/* ---- the log ----------------------------------------------------------------------------------------------------- */

nodedb_status shard_open_log(shard *s, uint64_t first_lsn, nodedb_error *err) {
    char dir[PATH_ROOM];
    nodedb_wal_config config = {.dir = dir, .first_lsn = first_lsn, .logger = s->logger,
                                .segment_bytes = LOG_SEGMENT_BYTES, .group_bytes = LOG_GROUP_BYTES};
    (void)snprintf(dir, sizeof dir, "%s/log", s->dir);
    s->wal = nodedb_wal_open(&config, err);
    return s->wal != NULL ? NODEDB_OK : err->status;
}

nodedb_status shard_close_log(shard *s, nodedb_error *err) {
    nodedb_wal *wal = s->wal;
    note_progress(s, true);
    s->wal = NULL;
    if (s->progress_fd >= 0) (void)close(s->progress_fd);
    s->progress_fd = -1;
    return nodedb_wal_close(wal, err);
}

nodedb_status shard_make(shard *s, nodedb_error *err) {
    nodedb_status status;
    int error;
    if (mkdir(s->dir, 0700) != 0 && errno != EEXIST)
        return nodedb_fail(err, nodedb_io_status(errno), errno, "cannot make %s", path_tail(s->dir));
    status = shard_open_log(s, 1, err);
    if (status != NODEDB_OK) return status;
    note_progress(s, true);
    if (s->progress_fd < 0) {
        (void)nodedb_wal_close(s->wal, NULL);
        s->wal = NULL;
        return nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot make %s/progress", path_tail(s->dir));
    }
    status = shard_close_log(s, err);
    reserve_take(s);
    error = status == NODEDB_OK ? sync_path(s->dir) : 0;
    return error == 0 ? status
                      : nodedb_fail(err, nodedb_io_status(error), error, "cannot sync %s", path_tail(s->dir));
}

/* ---- what is missing --------------------------------------------------------------------------------------------- */

/* Something durable is missing: an error, or with --force-empty only a warning. */
__attribute__((format(printf, 3, 4))) static nodedb_status refuse(const shard *s, nodedb_error *err,
                                                                  const char *format, ...) {
    char what[200];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (!s->server->force_empty)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s (--force-empty goes on without)", what);
    nodedb_say(&s->logger, NODEDB_LOG_WARNING, "%s", what);
    return NODEDB_OK;
}

/* The LSNs of the oldest and the newest record of the log as it is; nothing is changed. Reads from `from` on. Both 0:
 * there is no segment. */
static nodedb_status look_at_log(const char *dir, uint64_t from, uint64_t *oldest, uint64_t *newest,
                                 nodedb_error *err) {
    nodedb_wal_reader_config reading = {.dir = dir, .access = NODEDB_WAL_ACCESS_BUFFERED};
    nodedb_wal_reader *r = nodedb_wal_reader_open(&reading, err);
    nodedb_wal_record record;
    nodedb_wal_cursor at;
    nodedb_status status;
    *oldest = *newest = 0;
    if (r == NULL) return err->status == NODEDB_ERR_NOT_FOUND ? NODEDB_OK : err->status;
    nodedb_wal_reader_tell(r, &at);
    nodedb_wal_reader_close(r);
    *oldest = at.lsn;
    reading.from_lsn = from > at.lsn ? from : at.lsn;
    r = nodedb_wal_reader_open(&reading, err);
    if (r == NULL) return err->status;
    while ((status = nodedb_wal_reader_next(r, &record, err)) == NODEDB_OK) {}
    nodedb_wal_reader_tell(r, &at);
    *newest = at.lsn - 1;
    nodedb_wal_reader_close(r);
    return status == NODEDB_ERR_AGAIN ? NODEDB_OK : status;
}

/* A log that ends below a durable LSN would assign LSNs a second time. It is renamed and kept. */
static nodedb_status put_log_aside(const shard *s, nodedb_error *err) {
    char from[PATH_ROOM], to[PATH_ROOM];
    unsigned n;
    (void)snprintf(from, sizeof from, "%s/log", s->dir);
    for (n = 1; n < 10000; n++) {
        (void)snprintf(to, sizeof to, "%s/lost-log-%u", s->dir, n);
        if (access(to, F_OK) == 0) continue;
        if (rename(from, to) == 0) return NODEDB_OK;
        break;
    }
    return nodedb_fail(err, nodedb_io_status(errno), errno, "cannot rename %s", path_tail(from));
}

/* Checks, before the log is opened for writing, that it has every record up to `need`, which is what the file
 * "progress" and the checkpoint require. *from: the record at which the replay starts. */
static nodedb_status check_log(shard *s, uint64_t need, uint64_t *from, nodedb_error *err) {
    char log[PATH_ROOM];
    uint64_t oldest, newest, have;
    nodedb_status status;
    (void)snprintf(log, sizeof log, "%s/log", s->dir);
    *from = need + 1; /* nothing, where there is no log */
    if (access(log, F_OK) != 0)
        return refuse(s, err, "%s is missing: %" PRIu64 " records behind the checkpoint are gone", path_tail(log),
                      need - s->applied_lsn);
    status = look_at_log(log, need, &oldest, &newest, err);
    if (status != NODEDB_OK) return status;
    have = newest > s->applied_lsn ? newest : s->applied_lsn;
    if (newest < need)
        status = refuse(s, err, "%s ends at record %" PRIu64 ", and %" PRIu64 " was durable: a segment is missing, "
                                "with up to %" PRIu64 " records", path_tail(log), newest, need, need - have);
    if (status != NODEDB_OK || oldest == 0) return status;
    if (newest < s->applied_lsn) return put_log_aside(s, err);
    *from = oldest > s->applied_lsn + 1 ? oldest : s->applied_lsn + 1;
    if (oldest > s->applied_lsn + 1)
        status = refuse(s, err, "%s begins at record %" PRIu64 ", and the checkpoint ends at %" PRIu64 ": %" PRIu64
                                " records between them are missing", path_tail(log), oldest, s->applied_lsn,
                        oldest - s->applied_lsn - 1);
    return status;
}

/* ---- replay ------------------------------------------------------------------------------------------------------ */

static nodedb_status replay_record(shard *s, const nodedb_wal_record *record, nodedb_error *err) {
    change c;
    if (record->type != NODEDB_WAL_TYPE_USER) return NODEDB_OK;
    if (!change_decode(record->payload, record->payload_bytes, &c) || c.kind == CHANGE_PART ||
        c.kind == CHANGE_ELEMENT) {
        (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s/log: record %" PRIu64 " is none that this database writes",
                          path_tail(s->dir), record->lsn);
        err->lsn = record->lsn;
        return NODEDB_ERR_CORRUPT;
    }
    apply(s, &c, NULL);
    s->applied_lsn = record->lsn;
    s->records_replayed++;
    return NODEDB_OK;
}

/* Applies the log from record `from` on. What it takes on the disk, padding and all, counts as written since the
 * checkpoint: a server that is often restarted still comes to its next one. */
static nodedb_status replay_log(shard *s, uint64_t from, nodedb_error *err) {
    char dir[PATH_ROOM];
    /* streamed: a disk that cannot read is then an error, and not a signal. What the system refuses, the writer says */
    nodedb_wal_reader_config reading = {.dir = dir, .from_lsn = from, .access = NODEDB_WAL_ACCESS_STREAMED,
                                        .allocator = data_allocator(s)}; /* so that values leave for its buffers */
    loading l = {.s = s, .what = "the log"};
    nodedb_wal_record record;
    nodedb_wal_cursor at = {0}, before;
    uint64_t bytes = 0, last = nodedb_wal_last_lsn(s->wal);
    nodedb_status status;
    nodedb_wal_reader *r;
    if (last < from) return NODEDB_OK;
    (void)snprintf(dir, sizeof dir, "%s/log", s->dir);
    r = nodedb_wal_reader_open(&reading, err);
    if (r == NULL) return err->status;
    while ((status = nodedb_wal_reader_next(r, &record, err)) == NODEDB_OK) {
        status = replay_record(s, &record, err);
        if (status != NODEDB_OK) break;
        before = at;
        nodedb_wal_reader_tell(r, &at);
        bytes += at.segment_first_lsn == before.segment_first_lsn ? at.offset - before.offset
                 : before.lsn == 0                                ? record.payload_bytes
                                                                  : at.offset;
        loaded(&l, record.payload_bytes, record.lsn - from, last - from);
    }
    nodedb_wal_reader_close(r);
    s->log_bytes_at_checkpoint = 0 - bytes;
    if (status != NODEDB_ERR_AGAIN) return status;
    s->applied_lsn = last;
    return NODEDB_OK;
}

nodedb_status shard_recover(shard *s, nodedb_error *err) {
    progress_note noted = {0};
    uint64_t from = 1, need;
    nodedb_status status = NODEDB_OK;
    if (!read_note(s, &noted))
        status = refuse(s, err, "%s/progress is missing or damaged: nobody knows how many records there were",
                        path_tail(s->dir));
    if (status == NODEDB_OK) status = load_checkpoint(s, err);
    if (status == NODEDB_OK && s->checkpoint_lsn < noted.checkpoint_lsn)
        status = refuse(s, err, "%s/checkpoint-%020" PRIu64 " is missing: what %" PRIu64 " records have done is gone",
                        path_tail(s->dir), noted.checkpoint_lsn, noted.checkpoint_lsn - s->checkpoint_lsn);
    need = noted.durable_lsn > s->applied_lsn ? noted.durable_lsn : s->applied_lsn;
    if (status == NODEDB_OK) status = check_log(s, need, &from, err);
    if (status == NODEDB_OK) status = shard_open_log(s, need + 1, err); /* the LSN is used only if there is no log */
    if (status == NODEDB_OK) status = replay_log(s, from, err);
    if (status != NODEDB_OK) return status;
    s->applied_lsn = nodedb_wal_last_lsn(s->wal);
    s->noted_sequence = noted.sequence;
    note_progress(s, true);
    reserve_take(s);
    /* a new checkpoint makes what is there complete, so the loss is reported once */
    return s->server->force_empty ? shard_save(s, err) : NODEDB_OK;
}

/* ---- all shards -------------------------------------------------------------------------------------------------- */

typedef struct shard_job {
    pthread_t thread;
    bool has_thread;
    shard *s;
    shard_task task;
    nodedb_status status;
    nodedb_error err;
} shard_job;

static void *run_job(void *argument) {
    shard_job *job = argument;
    job->status = job->task(job->s, &job->err);
    return NULL;
}

nodedb_status on_shards(shard **shards, uint32_t count, shard_task task, nodedb_error *err) {
    shard_job *jobs = must(calloc(count, sizeof *jobs));
    nodedb_status status = NODEDB_OK;
    uint32_t i;
    for (i = 0; i < count; i++) {
        jobs[i].s = shards[i], jobs[i].task = task;
        jobs[i].has_thread = i + 1 < count && pthread_create(&jobs[i].thread, NULL, run_job, &jobs[i]) == 0;
    }
    for (i = 0; i < count; i++)
        if (!jobs[i].has_thread) (void)run_job(&jobs[i]); /* the last one, and those that got no thread */
    for (i = 0; i < count; i++) {
        if (jobs[i].has_thread) (void)pthread_join(jobs[i].thread, NULL);
        if (jobs[i].status == NODEDB_OK || status != NODEDB_OK) continue;
        status = jobs[i].status;
        *err = jobs[i].err;
    }
    free(jobs);
    return status;
}

typedef struct { uint64_t key, value; } *set_counts; /* elements of each set that has a home */

static void count_home(shard *s, entry *e, set_counts *counts) {
    (void)s;
    hmput(*counts, e->u.home->set_id, 0);
}

/* A set without elements is ended as a live one would have been: its last element went, or its first one never came,
 * when the server was killed. Where the disk has no room for the record, it stays empty, and VADD finds it. */
static void match_home(shard *s, entry *e, set_counts *counts) {
    change c = {.kind = CHANGE_END, .now_ms = wall_ms()};
    nodedb_wal_record record = {.type = NODEDB_WAL_TYPE_USER};
    uint64_t lsn = 0;
    buffer b = {0};
    e->u.home->count = hmget(*counts, e->u.home->set_id);
    if (e->u.home->count > 0) return;
    c.key = (slice){e->key, e->key_bytes};
    c.u.set_id = e->u.home->set_id;
    record.payload_bytes = (uint32_t)change_bytes(&c);
    change_encode(&c, buffer_room(&b, record.payload_bytes));
    record.payload = b.p;
    if (nodedb_wal_commit(s->wal, &record, 1, &lsn, NULL) == NODEDB_OK &&
        change_decode(b.p, record.payload_bytes, &c)) { /* its key is in the buffer, not in the entry that is freed */
        apply(s, &c, NULL);
        s->applied_lsn = lsn;
    }
    buffer_free(&b);
}

static void each_home(shard *s, void (*visit)(shard *s, entry *e, set_counts *counts), set_counts *counts) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&s->keys, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++)
            if (((entry *)items[i])->kind == ENTRY_SET) visit(s, items[i], counts);
    }
}

static void match_parts(shard *s, set_counts *counts) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&s->parts, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) {
            part *p = items[i];
            ptrdiff_t at = hmgeti(*counts, p->set_id);
            if (at < 0 || p->elements.count == 0) part_free_now(s, p);
            else (*counts)[at].value += p->elements.count;
        }
    }
}

/* Sets whose end was replayed. Their parts need no notice: parts without a home have just been dropped. */
static void forget_dropped(shard *s) {
    while (s->dropping != NULL) {
        set_home *h = s->dropping;
        s->dropping = h->next;
        data_free(s, h);
    }
}

/* Recovers all shards. A home's change is durable before its parts receive it, so the home is always right: parts whose
 * set is gone there are dropped, as are parts without elements, and the elements of each set are counted. */
nodedb_status recover_shards(server *srv, shard **shards, uint32_t count, nodedb_error *err) {
    set_counts counts = NULL;
    nodedb_status status = on_shards(shards, count, shard_recover, err);
    uint32_t i;
    (void)srv;
    if (status != NODEDB_OK) return status;
    for (i = 0; i < count; i++) each_home(shards[i], count_home, &counts);
    for (i = 0; i < count; i++) match_parts(shards[i], &counts);
    for (i = 0; i < count; i++) each_home(shards[i], match_home, &counts);
    for (i = 0; i < count; i++) forget_dropped(shards[i]);
    hmfree(counts);
    return NODEDB_OK;
}
