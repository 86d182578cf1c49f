/* A simulated disk behind nodedb_io: files in memory, where what has not been synced may be lost, torn, or kept, sector
 * by sector and in any order, when the power fails; and any call may be made to fail.
 *
 * Model. A write changes the file's present content and marks its sectors dirty. `sync` of a file makes its sectors
 * durable. Creating, renaming and unlinking change the present directory; `sync` of the directory makes it durable; at
 * a power cut the directory is in some state between its last sync and now (metadata is journalled in order, as in ext4
 * and xfs). After sim_power_cut the disk holds one of the possible states, chosen by the seed. */
#ifndef NODEDB_SIMDISK_H
#define NODEDB_SIMDISK_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SIM_SECTOR_BYTES 512
#define SIM_MAX_FILES 256
#define SIM_MAX_NAMES 64
#define SIM_MAX_HISTORY 256

typedef struct sim_file {
    unsigned char *now, *durable, *dirty; /* content, content at the last sync, one flag for each sector */
    size_t bytes, durable_bytes, capacity;
    bool used;
} sim_file;

typedef struct sim_name {
    char path[120];
    int file; /* -1: no such name */
} sim_name;

typedef struct sim_directory {
    sim_name name[SIM_MAX_NAMES];
    int count;
} sim_directory;

typedef struct sim_disk {
    nodedb_io io;
    sim_file file[SIM_MAX_FILES];
    int fd_file[SIM_MAX_FILES]; /* descriptor -> file, -2: the directory, -1: closed */
    sim_directory now;
    sim_directory *history; /* directory states since the last sync of the directory, oldest (durable) first */
    int history_count;
    uint64_t seed, calls;
    uint64_t fail_at;   /* this call fails (counting from 1), 0: none */
    int fail_error;     /* with this -errno; 0: it is short */
    bool fail_on;       /* and all after it, as if the power had gone */
    uint64_t room_bytes; /* what may still be allocated; UINT64_MAX: no end */
    bool locked;
} sim_disk;

static uint64_t sim_random(sim_disk *d) {
    uint64_t x = (d->seed += UINT64_C(0x9E3779B97F4A7C15));
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* 0: go on; < 0: this call fails so; 1: it does half of what was asked. */
static int sim_fault(sim_disk *d) {
    d->calls++;
    if (d->fail_at == 0 || d->calls < d->fail_at || (d->calls > d->fail_at && !d->fail_on)) return 0;
    return d->fail_error == 0 ? 1 : -d->fail_error;
}

static int sim_find(sim_directory *dir, const char *path) {
    int i;
    for (i = 0; i < dir->count; i++)
        if (dir->name[i].file >= 0 && strcmp(dir->name[i].path, path) == 0) return i;
    return -1;
}

static void sim_directory_changed(sim_disk *d) {
    if (d->history_count == SIM_MAX_HISTORY) { /* forget the middle: keep the durable one and the newest */
        memmove(&d->history[1], &d->history[2], sizeof *d->history * (SIM_MAX_HISTORY - 2));
        d->history_count--;
    }
    d->history[d->history_count++] = d->now;
}

static void sim_set_name(sim_disk *d, const char *path, int file) {
    int i = sim_find(&d->now, path);
    if (i < 0)
        for (i = 0; i < d->now.count && d->now.name[i].file >= 0; i++) {}
    if (i >= SIM_MAX_NAMES) abort();
    if (i == d->now.count) d->now.count++;
    strncpy(d->now.name[i].path, path, sizeof d->now.name[i].path - 1);
    d->now.name[i].file = file;
}

static void sim_grow(sim_file *f, size_t bytes) {
    if (bytes > f->capacity) {
        size_t capacity = bytes + 65536, sectors = capacity / SIM_SECTOR_BYTES + 1,
               old = f->capacity / SIM_SECTOR_BYTES + 1;
        f->now = (unsigned char *)realloc(f->now, capacity);
        f->durable = (unsigned char *)realloc(f->durable, capacity);
        f->dirty = (unsigned char *)realloc(f->dirty, sectors);
        memset(f->now + f->capacity, 0, capacity - f->capacity);
        memset(f->durable + f->capacity, 0, capacity - f->capacity);
        memset(f->dirty + (f->capacity == 0 ? 0 : old), 0, sectors - (f->capacity == 0 ? 0 : old));
        f->capacity = capacity;
    }
    if (bytes > f->bytes) f->bytes = bytes;
}

static int sim_open(void *ctx, const char *path, int flags, int mode) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d), i, fd, file;
    (void)mode;
    if (fault < 0) return fault;
    for (fd = 3; fd < SIM_MAX_FILES && d->fd_file[fd] != -1; fd++) {}
    if (fd == SIM_MAX_FILES) return -EMFILE;
    if ((flags & O_DIRECTORY) != 0) {
        d->fd_file[fd] = -2;
        return fd;
    }
    i = sim_find(&d->now, path);
    if (i < 0 && (flags & O_CREAT) == 0) return -ENOENT;
    if (i < 0) {
        for (file = 0; file < SIM_MAX_FILES && d->file[file].used; file++) {}
        if (file == SIM_MAX_FILES) return -ENFILE;
        d->file[file].used = true;
        sim_set_name(d, path, file);
        sim_directory_changed(d);
    } else file = d->now.name[i].file;
    if ((flags & O_TRUNC) != 0) {
        if (d->file[file].bytes > 0) memset(d->file[file].now, 0, d->file[file].bytes);
        if (d->file[file].bytes > 0) memset(d->file[file].dirty, 1, d->file[file].bytes / SIM_SECTOR_BYTES);
        d->file[file].bytes = 0;
    }
    d->fd_file[fd] = file;
    return fd;
}
static int sim_close(void *ctx, int fd) {
    sim_disk *d = (sim_disk *)ctx;
    if (fd < 3 || d->fd_file[fd] == -1) abort(); /* a descriptor closed twice, or never opened */
    d->fd_file[fd] = -1;
    return 0;
}
static int64_t sim_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    sim_disk *d = (sim_disk *)ctx;
    sim_file *f = &d->file[d->fd_file[fd]];
    int fault = sim_fault(d);
    if (fault < 0) return fault;
    if (offset >= f->bytes) return 0;
    if (bytes > f->bytes - offset) bytes = (size_t)(f->bytes - offset);
    if (fault == 1) bytes = (bytes + 1) / 2;
    memcpy(buffer, f->now + offset, bytes);
    return (int64_t)bytes;
}
static int64_t sim_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    sim_disk *d = (sim_disk *)ctx;
    sim_file *f = &d->file[d->fd_file[fd]];
    int fault = sim_fault(d);
    size_t s;
    if (fault == 1) bytes = bytes / 2 / SIM_SECTOR_BYTES * SIM_SECTOR_BYTES;
    if (fault < 0 && !(fault == -EIO && bytes > SIM_SECTOR_BYTES && (sim_random(d) & 1) != 0)) return fault;
    if (fault < 0) bytes = SIM_SECTOR_BYTES; /* a failed write may have done a part of its work */
    sim_grow(f, (size_t)offset + bytes);
    if (bytes > 0) memcpy(f->now + offset, buffer, bytes);
    for (s = (size_t)offset / SIM_SECTOR_BYTES; s * SIM_SECTOR_BYTES < offset + bytes; s++) f->dirty[s] = 1;
    return fault < 0 ? fault : (int64_t)bytes;
}
static int sim_sync(void *ctx, int fd) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d);
    sim_file *f;
    if (fault < 0) return fault;
    if (d->fd_file[fd] == -2) {
        d->history[0] = d->now;
        d->history_count = 1;
        return 0;
    }
    f = &d->file[d->fd_file[fd]];
    if (f->bytes > 0) memcpy(f->durable, f->now, f->bytes);
    f->durable_bytes = f->bytes;
    if (f->dirty != NULL) memset(f->dirty, 0, f->capacity / SIM_SECTOR_BYTES + 1);
    return 0;
}
static int sim_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d);
    if (fault < 0) return fault;
    if (bytes > d->room_bytes) return -ENOSPC;
    if (d->room_bytes != UINT64_MAX) d->room_bytes -= bytes;
    sim_grow(&d->file[d->fd_file[fd]], (size_t)(offset + bytes));
    return 0;
}
static int sim_truncate(void *ctx, int fd, uint64_t bytes) {
    sim_disk *d = (sim_disk *)ctx;
    sim_file *f = &d->file[d->fd_file[fd]];
    int fault = sim_fault(d);
    if (fault < 0) return fault;
    if (bytes < f->bytes) memset(f->now + bytes, 0, f->bytes - (size_t)bytes);
    else sim_grow(f, (size_t)bytes);
    f->bytes = (size_t)bytes;
    return 0;
}
static int64_t sim_size(void *ctx, int fd) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d);
    return fault < 0 ? fault : (int64_t)d->file[d->fd_file[fd]].bytes;
}
static int sim_rename(void *ctx, const char *from, const char *to) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d), i;
    if (fault < 0) return fault;
    i = sim_find(&d->now, from);
    if (i < 0) return -ENOENT;
    sim_set_name(d, to, d->now.name[i].file);
    d->now.name[i].file = -1;
    sim_directory_changed(d);
    return 0;
}
static int sim_unlink(void *ctx, const char *path) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d), i;
    if (fault < 0) return fault;
    i = sim_find(&d->now, path);
    if (i < 0) return -ENOENT;
    d->now.name[i].file = -1;
    sim_directory_changed(d);
    return 0;
}
static int sim_make_dir(void *ctx, const char *path, int mode) {
    int fault = sim_fault((sim_disk *)ctx);
    (void)path;
    (void)mode;
    return fault < 0 ? fault : -EEXIST;
}
static int sim_list(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name), void *visitor) {
    sim_disk *d = (sim_disk *)ctx;
    int fault = sim_fault(d), i;
    size_t length = strlen(dir);
    if (fault < 0) return fault;
    for (i = 0; i < d->now.count; i++)
        if (d->now.name[i].file >= 0 && strncmp(d->now.name[i].path, dir, length) == 0 &&
            d->now.name[i].path[length] == '/')
            if (visit(visitor, d->now.name[i].path + length + 1) != 0) break;
    return 0;
}
static int sim_lock(void *ctx, int fd) {
    (void)fd;
    return sim_fault((sim_disk *)ctx) < 0 ? -EIO : 0;
}

static inline sim_disk *sim_new(uint64_t seed) {
    sim_disk *d = (sim_disk *)calloc(1, sizeof *d);
    int i;
    d->history = (sim_directory *)calloc(SIM_MAX_HISTORY, sizeof *d->history);
    d->history_count = 1;
    d->seed = seed;
    d->room_bytes = UINT64_MAX;
    for (i = 0; i < SIM_MAX_FILES; i++) d->fd_file[i] = -1;
    d->io.open = sim_open, d->io.close = sim_close, d->io.pread = sim_pread, d->io.pwrite = sim_pwrite,
    d->io.sync = sim_sync;
    d->io.allocate = sim_allocate, d->io.truncate = sim_truncate, d->io.size = sim_size, d->io.rename = sim_rename;
    d->io.unlink = sim_unlink, d->io.make_dir = sim_make_dir, d->io.list = sim_list, d->io.lock = sim_lock;
    d->io.ctx = d;
    return d;
}

static inline void sim_free(sim_disk *d) {
    int i;
    for (i = 0; i < SIM_MAX_FILES; i++) free(d->file[i].now), free(d->file[i].durable), free(d->file[i].dirty);
    free(d->history);
    free(d);
}

/* How many descriptors are open: a test for leaks. */
static inline int sim_open_files(const sim_disk *d) {
    int i, n = 0;
    for (i = 0; i < SIM_MAX_FILES; i++) n += d->fd_file[i] != -1;
    return n;
}

/* Power comes back: the directory is as it was at some moment since its last sync, each dirty sector is old or new. */
static inline void sim_power_cut(sim_disk *d) {
    int i;
    size_t s;
    d->now = d->history[sim_random(d) % (uint64_t)d->history_count];
    d->history[0] = d->now;
    d->history_count = 1;
    for (i = 0; i < SIM_MAX_FILES; i++) {
        sim_file *f = &d->file[i];
        uint64_t mood = sim_random(d) % 4; /* all new, all old, or a mixture */
        d->fd_file[i] = -1;
        if (!f->used || f->capacity == 0) continue;
        for (s = 0; s * SIM_SECTOR_BYTES < f->capacity; s++) {
            size_t at = s * SIM_SECTOR_BYTES,
                   n = f->capacity - at < SIM_SECTOR_BYTES ? f->capacity - at : SIM_SECTOR_BYTES;
            if (f->dirty[s] != 0 && (mood == 0 || (mood > 1 && (sim_random(d) & 1) != 0)))
                memcpy(f->now + at, f->durable + at, n);
            f->dirty[s] = 0;
        }
        memcpy(f->durable, f->now, f->capacity);
        f->durable_bytes = f->bytes;
    }
    for (i = 0; i < SIM_MAX_FILES; i++) { /* files without a name are gone */
        int n;
        for (n = 0; n < d->now.count && d->now.name[n].file != i; n++) {}
        if (d->file[i].used && n == d->now.count) {
            free(d->file[i].now), free(d->file[i].durable), free(d->file[i].dirty);
            memset(&d->file[i], 0, sizeof d->file[i]);
        }
    }
    d->fail_at = d->calls = 0;
}
#endif
