/* directory.c - the data directory: what is in it, and which of it counts.
 *
 *   DIR/LOCK                   held by the server that uses it (nodedb.c)
 *   DIR/MANIFEST               which generation counts, and which core has which slots
 *   DIR/gen-<G>/core-<N>/      one shard (recovery.c, store.c)
 *   DIR/lost-*                 what --force-empty has put aside; nothing looks at it
 *
 * MANIFEST is text, replaced as a whole (MANIFEST.tmp, synced, renamed):
 *   nodedb 2 cores 2 generation 1 state ready
 *   0-8191:0 8192-16383:1                       slots from-to:core
 *   check 0123abcd                              CRC-32C of all before this line
 *
 *   state      what is on the disk                                       a start
 *   (no file)  nothing                                                   writes "creating", then makes the shards
 *   creating   some of the shards; nothing was ever acknowledged         removes them, and begins again
 *   ready      the generation, whole                                     uses it, or refuses if some of it is missing
 *
 * The number of cores changes by way of a new generation beside the old one (cores.c). The manifest is replaced last,
 * so a crash leaves the old number or the new one, and a generation that the manifest does not name is removed. */
#include "db.h"

#include <dirent.h>
#include <ftw.h>

#define MANIFEST_MAX_BYTES ((size_t)1 << 20)

/* ---- files ------------------------------------------------------------------------------------------------------- */

int sync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC), error = 0;
    if (fd < 0) return errno;
    if (fsync(fd) != 0) error = errno;
    (void)close(fd);
    return error;
}

static int remove_visited(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    (void)remove(path);
    return 0;
}

void remove_tree(const char *path) { (void)nftw(path, remove_visited, 16, FTW_DEPTH | FTW_PHYS); }

int list_names(const char *dir, void (*visit)(void *ctx, const char *name), void *ctx) {
    DIR *stream = opendir(dir);
    struct dirent *entry_read;
    int error;
    if (stream == NULL) return errno;
    for (errno = 0; (entry_read = readdir(stream)) != NULL; errno = 0)
        if (strcmp(entry_read->d_name, ".") != 0 && strcmp(entry_read->d_name, "..") != 0)
            visit(ctx, entry_read->d_name);
    error = errno;
    (void)closedir(stream);
    return error;
}

static void generation_path(const server *srv, uint64_t generation, char *to) {
    (void)snprintf(to, PATH_MAX, "%s/gen-%" PRIu64, srv->dir, generation);
}

static void core_path(const server *srv, uint64_t generation, uint32_t index, char *to) {
    (void)snprintf(to, PATH_MAX, "%s/gen-%" PRIu64 "/core-%u", srv->dir, generation, index);
}

/* ---- the manifest ------------------------------------------------------------------------------------------------ */

typedef struct manifest {
    bool there, ready;
    uint32_t cores;
    uint64_t generation;
    uint8_t owner[SLOTS];
} manifest;

static void manifest_encode(const manifest *m, buffer *b) {
    uint32_t from, to;
    buffer_printf(b, "nodedb 2 cores %u generation %" PRIu64 " state %s\n", m->cores, m->generation,
                  m->ready ? "ready" : "creating");
    for (from = 0; from < SLOTS; from = to) {
        for (to = from; to < SLOTS && m->owner[to] == m->owner[from]; to++) {}
        buffer_printf(b, "%u-%u:%u%c", from, to - 1, m->owner[from], to == SLOTS ? '\n' : ' ');
    }
    buffer_printf(b, "check %08x\n", nodedb_crc32c(0, b->p, b->len));
}

/* `text` ends with a zero. */
static bool manifest_decode(const char *text, manifest *m) {
    const char *p = text, *check = strstr(text, "\ncheck ");
    char state[16];
    unsigned stored, from, to, core;
    int used = 0;
    uint32_t slot = 0;
    if (check == NULL || sscanf(check, "\ncheck %8x", &stored) != 1 ||
        stored != nodedb_crc32c(0, text, (size_t)(check + 1 - text)))
        return false;
    if (sscanf(p, "nodedb 2 cores %u generation %" SCNu64 " state %15s%n", &m->cores, &m->generation, state, &used) !=
            3 || m->cores < 1 || m->cores > MAX_CORES)
        return false;
    m->ready = strcmp(state, "ready") == 0;
    if (!m->ready && strcmp(state, "creating") != 0) return false;
    while (slot < SLOTS) {
        p += used;
        if (sscanf(p, "%u-%u:%u%n", &from, &to, &core, &used) != 3 || from != slot || to < from || to >= SLOTS ||
            core >= m->cores)
            return false;
        while (slot <= to) m->owner[slot++] = (uint8_t)core;
    }
    return true;
}

static nodedb_status manifest_write(const server *srv, const manifest *m, nodedb_error *err) {
    char path[PATH_ROOM], tmp[PATH_ROOM];
    buffer b = {0};
    int fd, error = 0;
    (void)snprintf(path, sizeof path, "%s/MANIFEST", srv->dir);
    (void)snprintf(tmp, sizeof tmp, "%s/MANIFEST.tmp", srv->dir);
    manifest_encode(m, &b);
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    errno = fd < 0 ? errno : ENOSPC; /* what a short write means */
    if (fd < 0 || write(fd, b.p, b.len) != (ssize_t)b.len || fsync(fd) != 0) error = errno;
    if (fd >= 0 && close(fd) != 0 && error == 0) error = errno;
    if (error == 0 && rename(tmp, path) != 0) error = errno;
    if (error == 0) error = sync_path(srv->dir);
    buffer_free(&b);
    return error == 0 ? NODEDB_OK
                      : nodedb_fail(err, nodedb_io_status(error), error, "cannot write %s", path_tail(path));
}

static nodedb_status manifest_read(const server *srv, manifest *m, nodedb_error *err) {
    char path[PATH_ROOM];
    buffer b = {0};
    nodedb_status status = NODEDB_OK;
    ssize_t n = 0;
    int fd;
    (void)snprintf(path, sizeof path, "%s/MANIFEST.tmp", srv->dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/MANIFEST", srv->dir);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return NODEDB_OK;
    if (fd < 0) return nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot open %s", path_tail(path));
    while (b.len < MANIFEST_MAX_BYTES && (n = read(fd, buffer_room(&b, 4096), 4096)) > 0) b.len += (size_t)n;
    if (n < 0) status = nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot read %s", path_tail(path));
    buffer_put(&b, "", 1);
    m->there = true;
    if (status == NODEDB_OK && strncmp(b.p, "nodedb 1 ", 9) == 0)
        status = nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0,
                             "%s was written by version 0.1, which was never released: this version does not read its "
                             "files; choose another --dir", path_tail(path));
    else if (status == NODEDB_OK && !manifest_decode(b.p, m))
        status = nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                             "%s is damaged at offset 0, or of a newer version (--force-empty begins an empty database "
                             "and keeps what is beside it)", path_tail(path));
    (void)close(fd);
    buffer_free(&b);
    return status;
}

/* ---- what is there, and what is missing -------------------------------------------------------------------------- */

typedef struct generations {
    const server *srv;
    uint64_t named; /* by the manifest; 0: none */
    char found[NAME_MAX + 1]; /* one that is not */
} generations;

/* Is `name` a generation that the manifest does not name? */
static bool is_other_generation(const generations *g, const char *name) {
    char *end;
    if (strncmp(name, "gen-", 4) != 0 || !isdigit((unsigned char)name[4])) return false;
    return strtoull(name + 4, &end, 10) != g->named || *end != 0;
}

static void find_other(void *ctx, const char *name) {
    generations *g = ctx;
    if (is_other_generation(g, name)) (void)snprintf(g->found, sizeof g->found, "%s", name);
}

static void remove_other(void *ctx, const char *name) {
    const generations *g = ctx;
    char path[PATH_ROOM * 2];
    if (!is_other_generation(g, name)) return;
    (void)snprintf(path, sizeof path, "%s/%s", g->srv->dir, name);
    remove_tree(path);
}

static void put_aside(void *ctx, const char *name) {
    const generations *g = ctx;
    char from[PATH_ROOM * 2], to[PATH_ROOM * 2];
    unsigned n;
    if (!is_other_generation(g, name)) return;
    (void)snprintf(from, sizeof from, "%s/%s", g->srv->dir, name);
    for (n = 1; n < 10000; n++) {
        (void)snprintf(to, sizeof to, "%s/lost-%s-%u", g->srv->dir, name, n);
        if (access(to, F_OK) == 0) continue;
        if (rename(from, to) == 0)
            nodedb_say(&g->srv->logger, NODEDB_LOG_WARNING, "%s is kept as %s", path_tail(from), path_tail(to));
        return;
    }
}

/* There is no manifest: is there data all the same? */
static nodedb_status check_new(const server *srv, nodedb_error *err) {
    generations g = {.srv = srv};
    int error = list_names(srv->dir, find_other, &g);
    if (error != 0) return nodedb_fail(err, NODEDB_ERR_IO, error, "cannot list %s", path_tail(srv->dir));
    if (g.found[0] == 0) return NODEDB_OK;
    if (!srv->force_empty)
        return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                           "%s/MANIFEST is missing, and there is %s beside it (--force-empty begins an empty database "
                           "and keeps that under another name)", path_tail(srv->dir), g.found);
    (void)list_names(srv->dir, put_aside, &g);
    return NODEDB_OK;
}

/* All shards that the manifest names must be there. With --force-empty a missing one is made, empty. */
static nodedb_status check_shards(server *srv, const manifest *m, nodedb_error *err) {
    generations g = {.srv = srv, .named = m->generation};
    char dir[PATH_MAX];
    nodedb_status status = NODEDB_OK;
    uint32_t i;
    for (i = 0; i < m->cores && status == NODEDB_OK; i++) {
        shard *missing = NULL;
        core_path(srv, m->generation, i, dir);
        if (access(dir, F_OK) == 0) continue;
        generation_path(srv, m->generation, dir);
        if (access(dir, F_OK) != 0 && !srv->force_empty)
            return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                               "%s is missing: all the data was in it (--force-empty begins an empty database)",
                               path_tail(dir));
        core_path(srv, m->generation, i, dir);
        if (!srv->force_empty)
            return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0,
                               "%s is missing: the data of this core was in it (--force-empty goes on without it)",
                               path_tail(dir));
        nodedb_say(&srv->logger, NODEDB_LOG_WARNING, "%s is missing: it begins empty", path_tail(dir));
        (void)list_names(srv->dir, put_aside, &g); /* whatever else there is may be what is wanted */
        missing = shard_new(srv, i, dir);
        generation_path(srv, m->generation, dir);
        if (mkdir(dir, 0700) != 0 && errno != EEXIST)
            status = nodedb_fail(err, nodedb_io_status(errno), errno, "cannot make %s", path_tail(dir));
        if (status == NODEDB_OK) status = shard_make(missing, err);
        if (status == NODEDB_OK && (sync_path(dir) != 0 || sync_path(srv->dir) != 0))
            status = nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot sync %s", path_tail(dir));
        shard_free(missing);
    }
    return status;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

nodedb_status make_shards(server *srv, shard **shards, uint32_t count, uint64_t generation, nodedb_error *err) {
    char dir[PATH_MAX];
    nodedb_status status;
    uint32_t i;
    generation_path(srv, generation, dir);
    remove_tree(dir);
    if (mkdir(dir, 0700) != 0)
        return nodedb_fail(err, nodedb_io_status(errno), errno, "cannot make %s", path_tail(dir));
    for (i = 0; i < count; i++) {
        core_path(srv, generation, i, dir);
        if (shards[i] == NULL) shards[i] = shard_new(srv, i, dir);
        else (void)snprintf(shards[i]->dir, sizeof shards[i]->dir, "%s", dir);
    }
    status = on_shards(shards, count, shard_make, err);
    if (status != NODEDB_OK) return status;
    generation_path(srv, generation, dir);
    if (sync_path(dir) != 0 || sync_path(srv->dir) != 0)
        return nodedb_fail(err, NODEDB_ERR_IO, errno, "cannot sync %s", path_tail(dir));
    return NODEDB_OK;
}

static nodedb_status first_start(server *srv, manifest *m, nodedb_error *err) {
    shard *made[MAX_CORES] = {NULL};
    char parent[PATH_ROOM];
    nodedb_status status;
    uint32_t i;
    *m = (manifest){.there = true, .cores = srv->cores, .generation = 1};
    for (i = 0; i < SLOTS; i++) m->owner[i] = (uint8_t)((uint64_t)i * srv->cores / SLOTS);
    status = manifest_write(srv, m, err);
    if (status != NODEDB_OK) return status;
    (void)snprintf(parent, sizeof parent, "%s/..", srv->dir);
    (void)sync_path(parent); /* the directory's own name. Not everybody may read its parent */
    status = make_shards(srv, made, m->cores, m->generation, err);
    for (i = 0; i < m->cores; i++) shard_free(made[i]);
    if (status != NODEDB_OK) return status;
    m->ready = true;
    return manifest_write(srv, m, err);
}

/* The shards have been recovered; now they become as many as there are cores. */
static nodedb_status change_generation(server *srv, manifest *m, nodedb_error *err) {
    uint32_t old = m->cores, i;
    uint64_t generation = m->generation;
    char dir[PATH_MAX];
    nodedb_status status;
    assign_slots(m->owner, srv->cores);
    memcpy(srv->owner, m->owner, sizeof srv->owner);
    m->cores = srv->cores;
    m->generation++;
    status = change_cores(srv, old, m->generation, err);
    if (status != NODEDB_OK) {
        generation_path(srv, m->generation, dir);
        remove_tree(dir);
        return status;
    }
    status = manifest_write(srv, m, err);
    if (status != NODEDB_OK) return status; /* which of the two the disk has, the next start will find */
    generation_path(srv, generation, dir);
    remove_tree(dir);
    for (i = 0; i < srv->cores && status == NODEDB_OK; i++) {
        shard *s = srv->shards[i];
        status = shard_open_log(s, 1, err);
        if (status == NODEDB_OK) s->applied_lsn = nodedb_wal_last_lsn(s->wal);
        note_progress(s, true);
        reserve_take(s);
    }
    return status;
}

nodedb_status open_data(server *srv, nodedb_error *err) {
    manifest *m = must(calloc(1, sizeof *m));
    char dir[PATH_MAX];
    uint32_t i;
    nodedb_status status = manifest_read(srv, m, err);
    if (status == NODEDB_ERR_CORRUPT && srv->force_empty) {
        nodedb_say(&srv->logger, NODEDB_LOG_WARNING, "%s/MANIFEST is damaged", path_tail(srv->dir));
        memset(m, 0, sizeof *m);
        status = NODEDB_OK;
    }
    if (status == NODEDB_OK && !m->there) status = check_new(srv, err);
    if (status == NODEDB_OK && !m->ready) status = first_start(srv, m, err);
    if (status == NODEDB_OK) status = check_shards(srv, m, err);
    if (status == NODEDB_OK) {
        generations g = {.srv = srv, .named = m->generation};
        (void)list_names(srv->dir, remove_other, &g);
        memcpy(srv->owner, m->owner, sizeof srv->owner);
        for (i = 0; i < m->cores; i++) {
            core_path(srv, m->generation, i, dir);
            srv->shards[i] = shard_new(srv, i, dir);
        }
        status = recover_shards(srv, srv->shards, m->cores, err);
    }
    if (status == NODEDB_OK && m->cores != srv->cores) status = change_generation(srv, m, err);
    srv->generation = m->generation;
    free(m);
    return status;
}
