/* cores.c - the server starts with another number of cores than the last time.
 *
 * The slot map changes in as few slots as it can, and what is in those slots moves:
 *
 *   strings, homes of sets     the entry goes from one table to the other, as a pointer
 *   elements of sets           through a file of each core, "arrivals": a part writes what leaves it, as ADD records,
 *                              and removes it; when all have done so, each core reads its file
 *
 * So nothing is in memory twice. A part that loses more than a quarter of its elements leaves with all of them, and
 * those that stay come back like the others: to repair the graph around so many removed vectors takes longer than to
 * insert the rest again, and its arrays would not become smaller.
 *
 * Then each shard writes a checkpoint, in the new generation's directory. The caller makes it the current one. */
#include "db.h"

#define WHOLE_PART_FROM 4 /* if more than 1 in 4 elements leaves, all do */

/* ---- slots ------------------------------------------------------------------------------------------------------- */

/* How many slots each of `cores` is to have: equal shares, and the odd ones where most are already. */
static void slot_shares(const uint32_t *have, uint32_t cores, uint32_t *share) {
    uint32_t odd = SLOTS % cores, i;
    for (i = 0; i < cores; i++) share[i] = SLOTS / cores;
    while (odd-- > 0) {
        uint32_t most = cores;
        for (i = 0; i < cores; i++)
            if (share[i] == SLOTS / cores && (most == cores || have[i] > have[most])) most = i;
        share[most]++;
    }
}

void assign_slots(uint8_t *owner, uint32_t cores) {
    uint32_t have[MAX_CORES] = {0}, share[MAX_CORES] = {0}, slot, to = 0;
    for (slot = 0; slot < SLOTS; slot++) have[owner[slot]]++;
    slot_shares(have, cores, share); /* 0 for cores that no longer exist */
    for (slot = SLOTS; slot-- > 0;) {
        uint32_t from = owner[slot];
        if (have[from] <= share[from]) continue;
        while (have[to] >= share[to]) to++;
        owner[slot] = (uint8_t)to;
        have[from]--;
        have[to]++;
    }
}

/* ---- what moves -------------------------------------------------------------------------------------------------- */

typedef struct move {
    server *srv;
    frame_file *arrivals[MAX_CORES]; /* NULL: no element has moved to this core yet */
    uint64_t keys, elements;         /* that have moved */
    uint64_t began_ms, said_ms;
} move;

static void say_moved(move *m, bool always) {
    char keys[GROUPED_BYTES], elements[GROUPED_BYTES];
    uint64_t now = steady_ms();
    if (!always && now - m->said_ms < 5000) return;
    m->said_ms = now;
    nodedb_say(&m->srv->logger, NODEDB_LOG_INFO, "%s keys and %s vectors have moved, after %.1f s",
               grouped(m->keys, keys), grouped(m->elements, elements), (double)(now - m->began_ms) / 1000);
}

/* A spilled string comes into memory on its way, so the receiver spills in turn. */
static void move_keys(move *m, shard *from) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    size_t since[MAX_CORES] = {0};
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&from->keys, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) {
            entry *e = items[i];
            uint32_t to = core_of_key(m->srv, (slice){e->key, e->key_bytes});
            size_t bytes = sizeof *e + e->key_bytes;
            if (to == from->index) continue;
            if (e->kind == ENTRY_STRING) bytes += e->u.string->bytes;
            entry_detach(from, e);
            entry_add(m->srv->shards[to], e);
            make_room(m->srv->shards[to], &since[to], bytes);
            m->keys++;
        }
        say_moved(m, false);
    }
}

static uint32_t core_of(const move *m, const part *p, const element *x) {
    return core_of_element(m->srv, p->set_id, (slice){x->name, x->name_bytes});
}

static uint64_t count_leaving(const move *m, const shard *from, const part *p) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0, leaving = 0;
    while (cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) leaving += core_of(m, p, items[i]) != from->index;
    }
    return leaving;
}

/* Writes one element to the file of its new core. `vector` and `floats`: room for it. */
static nodedb_status send_element(move *m, const part *p, const element *x, float *vector, char *floats,
                                  nodedb_error *err) {
    uint32_t to = core_of(m, p, x);
    change c = {.kind = CHANGE_ADD, .key = {x->name, x->name_bytes}};
    frame_file *w = m->arrivals[to];
    char path[PATH_ROOM];
    if (w == NULL) {
        nodedb_status status;
        w = m->arrivals[to] = must(calloc(1, sizeof *w));
        (void)snprintf(path, sizeof path, "%s/arrivals", m->srv->shards[to]->dir);
        status = frames_begin(w, path, 0, err);
        if (status != NODEDB_OK) return status;
    }
    if (!part_vector(p, x, vector))
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "a vector of set %016" PRIx64 " is not in its index", p->set_id);
    floats_encode(vector, p->dim, floats);
    c.u.add.set_id = p->set_id, c.u.add.dim = p->dim, c.u.add.metric = p->metric;
    c.u.add.vector = (slice){floats, p->dim * 4};
    if (frames_put(w, &c)) return NODEDB_OK;
    return nodedb_fail(err, nodedb_io_status(w->error), w->error, "cannot write %s", path_tail(w->path));
}

static nodedb_status empty_part(move *m, shard *from, part *p, nodedb_error *err) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0, leaving = count_leaving(m, from, p);
    bool whole = leaving >= p->elements.count / WHOLE_PART_FROM;
    float *vector = must(malloc(p->dim * sizeof *vector));
    char *floats = must(malloc(p->dim * sizeof *vector));
    nodedb_status status = NODEDB_OK;
    while (leaving > 0 && cursor < DICTIONARY_END && status == NODEDB_OK) {
        size_t n = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n && status == NODEDB_OK; i++) {
            const element *x = items[i];
            if (!whole && core_of(m, p, x) == from->index) continue;
            status = send_element(m, p, x, vector, floats, err);
            if (status == NODEDB_OK && !whole) (void)part_remove(from, p, (slice){x->name, x->name_bytes});
        }
        say_moved(m, false);
    }
    m->elements += leaving;
    free(vector);
    free(floats);
    if (leaving > 0 && whole && status == NODEDB_OK) part_free_now(from, p);
    return status;
}

static nodedb_status move_elements(move *m, shard *from, nodedb_error *err) {
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    nodedb_status status = NODEDB_OK;
    while (cursor < DICTIONARY_END && status == NODEDB_OK) {
        size_t n = dictionary_page(&from->parts, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n && status == NODEDB_OK; i++) status = empty_part(m, from, items[i], err);
    }
    return status;
}

/* Adds the elements that moved to a core, if there are any. */
static nodedb_status take_in(shard *s, nodedb_error *err) {
    char path[PATH_ROOM];
    uint64_t lsn;
    nodedb_status status;
    (void)snprintf(path, sizeof path, "%s/arrivals", s->dir);
    if (access(path, F_OK) != 0) return NODEDB_OK;
    status = frames_load(s, s->dir, "arrivals", "the vectors that move here", &lsn, err);
    if (status == NODEDB_OK && unlink(path) != 0)
        status = nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot remove %s", path_tail(path));
    return status;
}

static nodedb_status move_everything(move *m, uint32_t old, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    uint32_t i;
    for (i = 0; i < old; i++) move_keys(m, m->srv->shards[i]);
    for (i = 0; i < old && status == NODEDB_OK; i++) status = move_elements(m, m->srv->shards[i], err);
    for (i = 0; i < MAX_CORES; i++) {
        nodedb_status ended = NODEDB_OK;
        if (m->arrivals[i] == NULL) continue;
        if (m->arrivals[i]->f != NULL) ended = frames_end(m->arrivals[i], false, status == NODEDB_OK ? err : NULL);
        if (status == NODEDB_OK) status = ended;
        free(m->arrivals[i]);
    }
    return status;
}

/* It is on its way from the old generation's directory: a checkpoint and a log are to begin in the new one. */
static nodedb_status leave_directory(shard *s, nodedb_error *err) {
    nodedb_status status = shard_close_log(s, err);
    s->applied_lsn = s->checkpoint_lsn = s->noted_lsn = s->noted_checkpoint = s->noted_sequence = 0;
    s->log_bytes_at_checkpoint = s->checkpoint_bytes = s->records_replayed = 0;
    return status;
}

nodedb_status change_cores(server *srv, uint32_t old, uint64_t generation, nodedb_error *err) {
    move m = {.srv = srv, .began_ms = steady_ms(), .said_ms = steady_ms()};
    nodedb_status status;
    uint32_t i;
    nodedb_say(&srv->logger, NODEDB_LOG_INFO, "the data of %u cores is dealt out to %u", old, srv->cores);
    status = on_shards(srv->shards, old, leave_directory, err);
    if (status == NODEDB_OK) status = make_shards(srv, srv->shards, srv->cores, generation, err);
    if (status == NODEDB_OK) status = move_everything(&m, old, err);
    for (i = srv->cores; i < old && status == NODEDB_OK; i++) {
        shard_free(srv->shards[i]);
        srv->shards[i] = NULL;
    }
    if (status == NODEDB_OK) status = on_shards(srv->shards, srv->cores, take_in, err);
    if (status == NODEDB_OK) status = on_shards(srv->shards, srv->cores, shard_save, err);
    if (status == NODEDB_OK) say_moved(&m, true);
    return status;
}
