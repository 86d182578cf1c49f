/* store.c - checkpoints: the state of one shard, written to disk and read back.
 *
 *   core-N/log/                                the log, nodedb_wal.h
 *   core-N/checkpoint-<LSN, 20 digits>/        the effects of all records up to that LSN. It is written under the name
 *                                              with ".tmp", synced, and renamed; then the older one and the log go
 *       state                                  frames: keys, values, elements
 *       set-<id, 16 hex digits>.vamana         the index of a part that has one
 *   core-N/progress, core-N/reserve            recovery.c
 *
 * File "state", and any other file of frames; numbers are little-endian:
 *   offset bytes                               then frames, one behind the other:
 *        0     8  magic "NDBSTATE"                  0  4  bytes of the record, n
 *        8     4  version, 2                        4  4  CRC-32C of the record
 *       12     4  0                                 8  n  the record (record.c)
 *       16     8  LSN                            then the end frame:
 *       24     4  0                                 0  4  0xFFFFFFFF
 *       28     4  CRC-32C of bytes 0 to 27          4  4  CRC-32C of the count
 *                                                   8  8  count of the frames before
 * A string is a SET, a vector set a CREATE (and an EXPIRE), an element of a part without an index an ADD. A part with
 * an index is a PART and then one ELEMENT for each element. */
#include "db.h"

#define FRAMES_HEADER_BYTES 32
#define FRAMES_VERSION 2
#define FRAMES_END UINT32_MAX
#define SCRATCH_KEPT_BYTES ((size_t)256 << 10) /* a larger buffer is freed at once: one value may be 32 MiB */
#define ROOM_EVERY_BYTES ((size_t)256 << 10)   /* of records loaded: then memory is looked at ... */
#define ROOM_AT_ONCE_BYTES ((size_t)64 << 10)  /* ... and after each record of this size */
#define SAY_EVERY_MS 5000

/* The end of a long path: an error message has 256 bytes, and its other words matter more. */
const char *path_tail(const char *path) {
    size_t bytes = strlen(path);
    return bytes > 90 ? path + bytes - 90 : path;
}

/* ---- frames ------------------------------------------------------------------------------------------------------ */

static void frames_write(frame_file *w, const void *bytes, size_t n) {
    if (w->error == 0 && fwrite(bytes, 1, n, w->f) != n) w->error = errno != 0 ? errno : EIO;
    w->bytes += n;
}

nodedb_status frames_begin(frame_file *w, const char *path, uint64_t lsn, nodedb_error *err) {
    unsigned char head[FRAMES_HEADER_BYTES] = "NDBSTATE";
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    memset(w, 0, sizeof *w);
    (void)snprintf(w->path, sizeof w->path, "%s", path);
    w->f = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (w->f == NULL) {
        int error = errno;
        if (fd >= 0) (void)close(fd);
        return nodedb_fail(err, nodedb_io_status(error), error, "cannot write %s", path_tail(path));
    }
    nodedb_put_u32(head + 8, FRAMES_VERSION);
    nodedb_put_u64(head + 16, lsn);
    nodedb_put_u32(head + 28, nodedb_crc32c(0, head, 28));
    frames_write(w, head, sizeof head);
    return NODEDB_OK;
}

bool frames_put(frame_file *w, const change *c) {
    unsigned char frame[8];
    size_t bytes = change_bytes(c);
    change_encode(c, buffer_room(&w->scratch, bytes));
    nodedb_put_u32(frame, (uint32_t)bytes);
    nodedb_put_u32(frame + 4, nodedb_crc32c(0, w->scratch.p, bytes));
    frames_write(w, frame, sizeof frame);
    frames_write(w, w->scratch.p, bytes);
    w->count++;
    if (w->scratch.cap > SCRATCH_KEPT_BYTES) buffer_free(&w->scratch);
    return w->error == 0;
}

nodedb_status frames_end(frame_file *w, bool sync, nodedb_error *err) {
    unsigned char end[16];
    nodedb_put_u32(end, FRAMES_END);
    nodedb_put_u64(end + 8, w->count);
    nodedb_put_u32(end + 4, nodedb_crc32c(0, end + 8, 8));
    frames_write(w, end, sizeof end);
    if (w->error == 0 && fflush(w->f) != 0) w->error = errno;
    if (w->error == 0 && sync && fsync(fileno(w->f)) != 0) w->error = errno;
    if (fclose(w->f) != 0 && w->error == 0) w->error = errno;
    w->f = NULL;
    buffer_free(&w->scratch);
    if (w->error == 0) return NODEDB_OK;
    return nodedb_fail(err, nodedb_io_status(w->error), w->error, "cannot write %s", path_tail(w->path));
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

typedef struct saving {
    shard *s;
    const char *dir;
    frame_file file;
    uint64_t index_bytes; /* of the files beside */
} saving;

static nodedb_status save_string(saving *w, const entry *e, nodedb_error *err) {
    value *v = e->u.string;
    const char *bytes = value_bytes(w->s, v);
    change c = {.kind = CHANGE_SET, .key = {e->key, e->key_bytes}};
    if (bytes == NULL)
        return nodedb_fail(err, NODEDB_ERR_IO, 0, "core %u: a value cannot be read back from the overflow file",
                           w->s->index);
    c.u.set.value = (slice){bytes, v->bytes};
    c.u.set.expires_ms = e->expires_ms;
    (void)frames_put(&w->file, &c);
    return NODEDB_OK;
}

static void save_home(saving *w, const entry *e) {
    const set_home *h = e->u.home;
    change c = {.kind = CHANGE_CREATE, .key = {e->key, e->key_bytes}};
    c.u.create.set_id = h->set_id, c.u.create.dim = h->dim, c.u.create.metric = h->metric;
    (void)frames_put(&w->file, &c);
    if (e->expires_ms == 0) return;
    c = (change){.kind = CHANGE_EXPIRE, .key = {e->key, e->key_bytes}};
    c.u.expire.expires_ms = e->expires_ms;
    (void)frames_put(&w->file, &c);
}

static nodedb_status save_keys(saving *w, nodedb_error *err) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    nodedb_status status = NODEDB_OK;
    while (cursor < DICTIONARY_END && status == NODEDB_OK && w->file.error == 0) {
        size_t n = dictionary_page(&w->s->keys, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n && status == NODEDB_OK; i++) {
            const entry *e = items[i];
            if (e->kind == ENTRY_STRING) status = save_string(w, e, err);
            else save_home(w, e);
        }
    }
    return status;
}

/* One record for an element of `p`: its vector where the part has no index, else its id in that. */
static void save_element(saving *w, const part *p, const element *x, char *floats) {
    change c = {.kind = p->index == NULL ? CHANGE_ADD : CHANGE_ELEMENT, .key = {x->name, x->name_bytes}};
    if (p->index != NULL) c.u.element.set_id = p->set_id, c.u.element.id = x->id;
    else {
        floats_encode(x->vector, p->dim, floats);
        c.u.add.set_id = p->set_id, c.u.add.dim = p->dim, c.u.add.metric = p->metric;
        c.u.add.vector = (slice){floats, p->dim * 4};
    }
    (void)frames_put(&w->file, &c);
}

static nodedb_status save_part(saving *w, part *p, nodedb_error *err) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    char path[PATH_ROOM + 64], *floats = NULL;
    struct stat st;
    nodedb_status status = NODEDB_OK;
    if (p->elements.count == 0) return NODEDB_OK;
    if (p->index == NULL) floats = must(malloc(p->dim * (size_t)4));
    else {
        change c = {.kind = CHANGE_PART};
        c.u.part.set_id = p->set_id, c.u.part.next_id = p->next_id;
        c.u.part.dim = p->dim, c.u.part.metric = p->metric;
        (void)frames_put(&w->file, &c);
        (void)snprintf(path, sizeof path, "%s/set-%016" PRIx64 ".vamana", w->dir, p->set_id);
        status = nodedb_vamana_save(p->index, path, NODEDB_VAMANA_RESIDENT, err);
        if (status == NODEDB_OK && stat(path, &st) == 0) w->index_bytes += (uint64_t)st.st_size;
    }
    while (cursor < DICTIONARY_END && status == NODEDB_OK && w->file.error == 0) {
        size_t n = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) save_element(w, p, items[i], floats);
    }
    free(floats);
    return status;
}

static nodedb_status save_state(shard *s, const char *dir, uint64_t *bytes, nodedb_error *err) {
    saving w = {.s = s, .dir = dir};
    char path[PATH_ROOM + 64];
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    nodedb_status status, ended;
    (void)snprintf(path, sizeof path, "%s/state", dir);
    status = frames_begin(&w.file, path, s->applied_lsn, err);
    if (status != NODEDB_OK) return status;
    status = save_keys(&w, err);
    spill_unmap(s);
    while (cursor < DICTIONARY_END && status == NODEDB_OK && w.file.error == 0) {
        size_t n = dictionary_page(&s->parts, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n && status == NODEDB_OK; i++) status = save_part(&w, items[i], err);
    }
    ended = frames_end(&w.file, status == NODEDB_OK, status == NODEDB_OK ? err : NULL);
    *bytes = w.file.bytes + w.index_bytes;
    return status != NODEDB_OK ? status : ended;
}

static nodedb_status write_checkpoint(shard *s, const char *final, nodedb_error *err) {
    char tmp[PATH_ROOM];
    uint64_t bytes = 0;
    nodedb_status status;
    int error;
    (void)snprintf(tmp, sizeof tmp, "%s.tmp", final);
    remove_tree(tmp);
    if (mkdir(tmp, 0700) != 0)
        return nodedb_fail(err, nodedb_io_status(errno), errno, "cannot make %s", path_tail(tmp));
    status = save_state(s, tmp, &bytes, err);
    error = status == NODEDB_OK ? sync_path(tmp) : 0;
    if (status == NODEDB_OK && error == 0 && rename(tmp, final) != 0) error = errno;
    if (error != 0)
        status = nodedb_fail(err, nodedb_io_status(error), error, "cannot finish the checkpoint %s", path_tail(final));
    if (status != NODEDB_OK) remove_tree(tmp);
    else s->checkpoint_bytes = bytes, s->saves++;
    return status;
}

typedef struct checkpoint_names {
    const shard *s;
    uint64_t newest;
    bool any;
} checkpoint_names;

/* "checkpoint-<LSN>" and nothing behind it. */
static bool is_checkpoint(const char *name, uint64_t *lsn) {
    char *end;
    if (strncmp(name, "checkpoint-", 11) != 0 || !isdigit((unsigned char)name[11])) return false;
    *lsn = strtoull(name + 11, &end, 10);
    return *end == 0;
}

static void find_newest(void *ctx, const char *name) {
    checkpoint_names *c = ctx;
    uint64_t lsn;
    if (!is_checkpoint(name, &lsn) || (c->any && lsn <= c->newest)) return;
    c->any = true;
    c->newest = lsn;
}

static void remove_old(void *ctx, const char *name) {
    const checkpoint_names *c = ctx;
    char path[PATH_ROOM * 2];
    uint64_t lsn;
    if (strncmp(name, "checkpoint-", 11) != 0 || (is_checkpoint(name, &lsn) && lsn == c->newest)) return;
    (void)snprintf(path, sizeof path, "%s/%s", c->s->dir, name);
    remove_tree(path);
}

/* Blocks the core, as SAVE does in Redis. A checkpoint that is there already needs only its last steps, which a crash
 * or an error may have cut off. */
nodedb_status shard_save(shard *s, nodedb_error *err) {
    char final[PATH_ROOM];
    checkpoint_names names = {.s = s, .newest = s->applied_lsn};
    nodedb_wal_stats stats;
    nodedb_status status = NODEDB_OK;
    int error;
    (void)snprintf(final, sizeof final, "%s/checkpoint-%020" PRIu64, s->dir, s->applied_lsn);
    if (s->wal != NULL) status = nodedb_wal_wait(s->wal, s->applied_lsn, err);
    if (status != NODEDB_OK) return status;
    if (access(final, F_OK) != 0) {
        status = write_checkpoint(s, final, err);
        if (status == NODEDB_ERR_DISK_FULL && reserve_give_up(s, s->keys.count == 0)) {
            status = write_checkpoint(s, final, err);
            if (status == NODEDB_ERR_DISK_FULL) reserve_put_back(s); /* it is only for changes that free space */
        }
        if (status != NODEDB_OK) return status;
    }
    error = sync_path(s->dir);
    if (error != 0)
        return nodedb_fail(err, nodedb_io_status(error), error, "cannot sync %s", path_tail(s->dir));
    s->checkpoint_lsn = s->applied_lsn;
    if (s->wal == NULL) return NODEDB_OK;
    note_progress(s, true);
    (void)list_names(s->dir, remove_old, &names);
    nodedb_wal_get_stats(s->wal, &stats);
    s->log_bytes_at_checkpoint = stats.written_bytes;
    status = nodedb_wal_truncate_before(s->wal, s->applied_lsn + 1, NULL, err);
    reserve_take(s);
    return status;
}

bool checkpoint_due(shard *s) {
    nodedb_wal_stats stats;
    uint64_t written;
    nodedb_wal_get_stats(s->wal, &stats);
    written = stats.written_bytes - s->log_bytes_at_checkpoint;
    return written >= s->server->log_limit_bytes && written / 4 >= s->checkpoint_bytes;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

/* "1,234,567" */
const char *grouped(uint64_t n, char text[GROUPED_BYTES]) {
    char digits[GROUPED_BYTES];
    int count = snprintf(digits, sizeof digits, "%" PRIu64, n), i, at = 0;
    for (i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}

/* Keeps memory within its bound while loading: spills what the governor asks for. A first call may find only values
 * whose `touched` bit is set, and clears it; so a call that spills nothing is no reason to stop. */
void make_room(shard *s, size_t *since, size_t bytes) {
    int calls, idle = 0;
    *since += bytes;
    if (*since < ROOM_EVERY_BYTES && bytes < ROOM_AT_ONCE_BYTES) return;
    *since = 0;
    while (retire_some(s, RETIRE_BATCH)) {} /* no core runs yet that would do it */
    for (calls = 0; calls < 16 && idle < 2; calls++) {
        uint64_t before = s->spilled_bytes;
        spill_maintain(s);
        idle = s->spilled_bytes > before ? 0 : idle + 1;
    }
}

/* After each record: makes room, and logs progress every five seconds. `done` of `all`, in any unit. */
void loaded(loading *l, size_t bytes, uint64_t done, uint64_t all) {
    char text[GROUPED_BYTES];
    uint64_t now;
    make_room(l->s, &l->since, bytes);
    l->records++;
    if (l->records % 256 != 0) return;
    now = steady_ms();
    if (l->said_ms == 0) l->said_ms = now;
    if (now - l->said_ms < SAY_EVERY_MS) return;
    l->said_ms = now;
    nodedb_say(&l->s->logger, NODEDB_LOG_INFO, "core %u: %s records, %u%% of %s", l->s->index,
               grouped(l->records, text), all == 0 ? 100u : (unsigned)((double)done * 100 / (double)all), l->what);
}

static nodedb_status frames_broken(const char *path, uint64_t offset, const char *what, nodedb_error *err) {
    (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s: damaged at offset %" PRIu64 ": %s", path_tail(path), offset,
                      what);
    if (err != NULL) err->offset = offset;
    return NODEDB_ERR_CORRUPT;
}

static nodedb_status load_part(shard *s, const change *c, const char *dir, nodedb_error *err) {
    char path[PATH_ROOM + 64];
    nodedb_vamana_open_config config = {.allocator = vector_allocator(s), .logger = s->logger};
    nodedb_vamana *index;
    struct stat st;
    part *p;
    (void)snprintf(path, sizeof path, "%s/set-%016" PRIx64 ".vamana", dir, c->u.part.set_id);
    index = nodedb_vamana_open(path, &config, err);
    if (index == NULL) return err->status;
    if (nodedb_vamana_dim(index) != c->u.part.dim ||
        nodedb_vamana_metric_of(index) != (nodedb_vamana_metric)c->u.part.metric ||
        part_find(s, c->u.part.set_id) != NULL) {
        nodedb_vamana_destroy(index);
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s is not what the checkpoint says of it", path_tail(path));
    }
    p = part_new(s, c->u.part.set_id, c->u.part.dim, c->u.part.metric);
    p->index = index;
    p->next_id = c->u.part.next_id;
    if (stat(path, &st) == 0) s->checkpoint_bytes += (uint64_t)st.st_size;
    return NODEDB_OK;
}

/* One record of a file of frames. False: it makes no sense there. */
static bool load_change(shard *s, const change *c, const char *dir, nodedb_status *status, nodedb_error *err) {
    result r = {0};
    const part *p;
    *status = NODEDB_OK;
    switch (c->kind) {
    case CHANGE_PART: *status = load_part(s, c, dir, err); return true;
    case CHANGE_ELEMENT:
        p = part_find(s, c->u.element.set_id);
        if (p == NULL || p->index == NULL || !nodedb_vamana_contains(p->index, c->u.element.id)) return false;
        apply(s, c, NULL);
        return true;
    case CHANGE_ADD:
        apply(s, c, &r);
        if (r.kind == RESULT_ERROR)
            *status = nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "core %u: an element cannot be added: %.*s", s->index,
                                  (int)r.bytes.len, r.bytes.p);
        buffer_free(&r.bytes);
        return true;
    case CHANGE_SET:
    case CHANGE_CREATE:
    case CHANGE_EXPIRE: apply(s, c, NULL); return true;
    default: return false;
    }
}

/* The index must have exactly the elements that the file names. */
static nodedb_status check_parts(shard *s, const char *path, nodedb_error *err) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&s->parts, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) {
            const part *p = items[i];
            if (p->index != NULL && p->elements.count != nodedb_vamana_count(p->index))
                return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                                   "%s: the index of set %016" PRIx64 " has another number of elements",
                                   path_tail(path), p->set_id);
        }
    }
    return NODEDB_OK;
}

static nodedb_status load_frames(loading *l, FILE *f, const char *path, const char *dir, uint64_t *lsn, buffer *b,
                                 nodedb_error *err) {
    unsigned char head[FRAMES_HEADER_BYTES], frame[8];
    uint64_t offset = sizeof head, count = 0;
    struct stat st;
    uint64_t all = fstat(fileno(f), &st) == 0 ? (uint64_t)st.st_size : 0;
    if (fread(head, 1, sizeof head, f) != sizeof head || memcmp(head, "NDBSTATE", 8) != 0 ||
        nodedb_get_u32(head + 8) != FRAMES_VERSION || nodedb_get_u32(head + 28) != nodedb_crc32c(0, head, 28))
        return frames_broken(path, 0, "its header", err);
    *lsn = nodedb_get_u64(head + 16);
    for (;; count++) {
        uint32_t bytes;
        change c;
        nodedb_status status;
        if (fread(frame, 1, 8, f) != 8) return frames_broken(path, offset, "it ends too soon", err);
        bytes = nodedb_get_u32(frame);
        if (bytes == FRAMES_END) break;
        if (bytes > NODEDB_WAL_MAX_PAYLOAD_BYTES || bytes > all - offset)
            return frames_broken(path, offset, "the length of a record", err);
        if (fread(buffer_room(b, bytes), 1, bytes, f) != bytes)
            return frames_broken(path, offset, "it ends too soon", err);
        if (nodedb_crc32c(0, b->p, bytes) != nodedb_get_u32(frame + 4))
            return frames_broken(path, offset, "a record's checksum", err);
        if (!change_decode(b->p, bytes, &c) || !load_change(l->s, &c, dir, &status, err))
            return frames_broken(path, offset, "a record that makes no sense", err);
        if (status != NODEDB_OK) return status;
        if (b->cap > SCRATCH_KEPT_BYTES) buffer_free(b);
        offset += 8 + (uint64_t)bytes;
        loaded(l, bytes, offset, all);
    }
    if (fread(head, 1, 8, f) != 8 || nodedb_crc32c(0, head, 8) != nodedb_get_u32(frame + 4) ||
        nodedb_get_u64(head) != count || fgetc(f) != EOF)
        return frames_broken(path, offset, "the count of its records", err);
    return check_parts(l->s, path, err);
}

nodedb_status frames_load(shard *s, const char *dir, const char *name, const char *what, uint64_t *lsn,
                          nodedb_error *err) {
    loading l = {.s = s, .what = what};
    char path[PATH_ROOM + 64];
    buffer b = {0};
    nodedb_status status;
    struct stat st;
    FILE *f;
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "rbe");
    if (f == NULL) return nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot read %s", path_tail(path));
    if (fstat(fileno(f), &st) == 0) s->checkpoint_bytes += (uint64_t)st.st_size;
    status = load_frames(&l, f, path, dir, lsn, &b, err);
    (void)fclose(f);
    buffer_free(&b);
    return status;
}

nodedb_status load_checkpoint(shard *s, nodedb_error *err) {
    char dir[PATH_ROOM];
    checkpoint_names names = {.s = s};
    uint64_t lsn;
    nodedb_status status;
    int error = list_names(s->dir, find_newest, &names);
    if (error != 0) return nodedb_fail(err, NODEDB_ERR_IO, error, "cannot list %s", path_tail(s->dir));
    if (!names.any) return NODEDB_OK;
    (void)snprintf(dir, sizeof dir, "%s/checkpoint-%020" PRIu64, s->dir, names.newest);
    status = frames_load(s, dir, "state", "the checkpoint", &lsn, err);
    if (status != NODEDB_OK) return status;
    if (lsn != names.newest)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s/state is of LSN %" PRIu64, path_tail(dir), lsn);
    s->applied_lsn = s->checkpoint_lsn = lsn;
    return NODEDB_OK;
}
