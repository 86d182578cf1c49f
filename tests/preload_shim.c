/* A shared object that a test puts before the C library of a server (LD_PRELOAD). It does four things:
 *
 *   the wall clock   stands or jumps as the test says; the monotonic clock is not touched
 *   sudden death     the process dies by SIGKILL just before the Nth call that changes a file, so that a test can
 *                    interrupt a start between any two steps. What the process writes through io_uring is not counted.
 *   a full disk      files and directories whose path has a word in it cannot be made, and take no more blocks
 *   memory           it is counted how often the process drops pages of a large shared mapping, and whether it drops
 *                    what lies beside the mapping as well (madvise)
 *
 * The test maps the file that NODEDB_TEST_SHIM names, and changes the state in it (preload_shim.h) at any time. Clocks
 * are read by system calls: sanitizers do so before the dynamic linker can find the C library's functions. */
#define _GNU_SOURCE
#include "preload_shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static shim_state nobody, *state; /* `nobody` until the file is mapped, or if there is none */

static shim_state *shim(void) {
    shim_state *s = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
    const char *path;
    long fd;
    if (s != NULL) return s;
    s = &nobody;
    path = getenv(SHIM_FILE_VARIABLE);
    fd = path == NULL ? -1 : syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd >= 0) {
#if defined(__LP64__) && defined(SYS_mmap)
        void *page = (void *)syscall(SYS_mmap, NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, (off_t)0);
#else
        void *page = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0);
#endif
        if (page != MAP_FAILED) s = page;
        (void)syscall(SYS_close, fd);
    }
    __atomic_store_n(&state, s, __ATOMIC_RELEASE);
    return s;
}

/* ---- the wall clock -------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t which, struct timespec *t) {
    int result = (int)syscall(SYS_clock_gettime, which, t);
    if (result == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        shim_state *s = shim();
        int64_t frozen = __atomic_load_n(&s->frozen_ns, __ATOMIC_RELAXED),
                ns = frozen != 0 ? frozen
                                 : (int64_t)t->tv_sec * 1000000000 + t->tv_nsec +
                                       __atomic_load_n(&s->offset_ns, __ATOMIC_RELAXED);
        (void)__atomic_add_fetch(&s->reads, 1, __ATOMIC_RELAXED);
        t->tv_sec = (time_t)(ns / 1000000000), t->tv_nsec = (long)(ns % 1000000000);
    }
    return result;
}

time_t time(time_t *to) {
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    if (to != NULL) *to = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec t;
    (void)zone;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    to->tv_sec = t.tv_sec, to->tv_usec = t.tv_nsec / 1000;
    return 0;
}

/* ---- sudden death ---------------------------------------------------------------------------------------------- */

static void a_change(void) {
    int64_t n = __atomic_add_fetch(&shim()->calls, 1, __ATOMIC_RELAXED);
    if (n != __atomic_load_n(&shim()->die_at, __ATOMIC_RELAXED)) return;
    (void)syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) (void)syscall(SYS_sched_yield);
}

static void a_sync(void) {
    a_change();
    (void)__atomic_add_fetch(&shim()->syncs, 1, __ATOMIC_RELAXED);
}

/* ---- a full disk ----------------------------------------------------------------------------------------------- */

static int full_path(const char *path) {
    shim_state *s = shim();
    if (path == NULL || __atomic_load_n(&s->full[0], __ATOMIC_ACQUIRE) == 0 || strstr(path, s->full) == NULL) return 0;
    errno = ENOSPC;
    return 1;
}

static int path_of(int fd, char *path, size_t room) {
    char name[40];
    long n;
    (void)snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    n = syscall(SYS_readlinkat, AT_FDCWD, name, path, room - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return 1;
}

static int full_fd(int fd) {
    char path[512];
    return __atomic_load_n(&shim()->full[0], __ATOMIC_ACQUIRE) != 0 && path_of(fd, path, sizeof path) &&
           full_path(path);
}

/* The C library's function of the same name, called with the same arguments, after `before`. */
#define FORWARD(type, name, parameters, arguments, before)                                                             \
    type name parameters {                                                                                             \
        static type(*real) parameters;                                                                                 \
        if (real == NULL) *(void **)(&real) = dlsym(RTLD_NEXT, #name);                                                 \
        (before)();                                                                                                    \
        return real arguments;                                                                                         \
    }

FORWARD(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), a_change)
FORWARD(int, rmdir, (const char *path), (path), a_change)
FORWARD(int, unlink, (const char *path), (path), a_change)
FORWARD(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), a_change)
FORWARD(int, remove, (const char *path), (path), a_change)
FORWARD(int, rename, (const char *from, const char *to), (from, to), a_change)
FORWARD(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), a_change)
FORWARD(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags),
        a_change)
FORWARD(int, link, (const char *from, const char *to), (from, to), a_change)
FORWARD(int, fsync, (int fd), (fd), a_sync)
FORWARD(int, fdatasync, (int fd), (fd), a_sync)
FORWARD(int, ftruncate, (int fd, off_t bytes), (fd, bytes), a_change)
FORWARD(int, ftruncate64, (int fd, off64_t bytes), (fd, bytes), a_change)

/* The same for what takes room on the disk: `refused` instead, where it is full. */
#define FORWARD_WITH_ROOM(type, name, parameters, arguments, before, is_full, refused)                                 \
    type name parameters {                                                                                             \
        static type(*real) parameters;                                                                                 \
        if (real == NULL) *(void **)(&real) = dlsym(RTLD_NEXT, #name);                                                 \
        before;                                                                                                        \
        return is_full ? refused : real arguments;                                                                     \
    }
FORWARD_WITH_ROOM(int, mkdir, (const char *path, mode_t mode), (path, mode), a_change(), full_path(path), -1)
FORWARD_WITH_ROOM(int, fallocate, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes), a_change(),
                  full_fd(fd), -1)
FORWARD_WITH_ROOM(int, fallocate64, (int fd, int mode, off64_t at, off64_t bytes), (fd, mode, at, bytes), a_change(),
                  full_fd(fd), -1)
FORWARD_WITH_ROOM(int, posix_fallocate, (int fd, off_t at, off_t bytes), (fd, at, bytes), (void)0, full_fd(fd), ENOSPC)
FORWARD_WITH_ROOM(int, posix_fallocate64, (int fd, off64_t at, off64_t bytes), (fd, at, bytes), (void)0, full_fd(fd),
                  ENOSPC)

/* Pieces of a segment that is filled ahead are no steps. */
#define BULK_BYTES 65536
#define PWRITE(name, offset)                                                                                           \
    ssize_t name(int fd, const void *p, size_t n, offset at) {                                                         \
        static ssize_t (*real)(int, const void *, size_t, offset);                                                     \
        if (real == NULL) *(void **)(&real) = dlsym(RTLD_NEXT, #name);                                                 \
        if (n < BULK_BYTES) a_change();                                                                                \
        return real(fd, p, n, at);                                                                                     \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static int open_file(int at, const char *path, int flags, mode_t mode) {
    if ((flags & O_CREAT) != 0) a_change();
    if ((flags & O_CREAT) != 0 && full_path(path)) return -1;
    return openat(at, path, flags, mode);
}
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        mode_t mode;                                                                                                   \
        va_start(rest, flags);                                                                                         \
        mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;                                                      \
        va_end(rest);                                                                                                  \
        return open_file(AT_FDCWD, path, flags, mode);                                                                 \
    }
OPEN(open)
OPEN(open64)

/* ---- memory that is dropped ------------------------------------------------------------------------------------ */

/* The caller may be an allocator that holds its locks: nothing here allocates. */
static void note_drop(shim_state *s, uintptr_t from, uintptr_t to) {
    char text[4096], *line, *end;
    size_t have = 0;
    long n, fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    while (fd >= 0 && (n = syscall(SYS_read, (int)fd, text + have, sizeof text - 1 - have)) > 0) {
        text[have += (size_t)n] = 0;
        for (line = text; (end = strchr(line, '\n')) != NULL; line = end + 1) {
            char *at;
            uintptr_t low = (uintptr_t)strtoull(line, &at, 16), high = (uintptr_t)strtoull(at + 1, &at, 16);
            if (at[4] != 's' || high - low < (uintptr_t)1 << 30 || to <= low || from >= high) continue;
            (void)__atomic_add_fetch(&s->drops, 1, __ATOMIC_RELAXED);
            if (from < low || to > high) (void)__atomic_add_fetch(&s->strays, 1, __ATOMIC_RELAXED);
        }
        have -= (size_t)(line - text);
        memmove(text, line, have);
        if (have == sizeof text - 1) have = 0;
    }
    if (fd >= 0) (void)syscall(SYS_close, (int)fd);
}

int madvise(void *p, size_t bytes, int advice) {
    shim_state *s = shim();
    if (advice == MADV_DONTNEED && __atomic_load_n(&s->watches, __ATOMIC_RELAXED) != 0)
        note_drop(s, (uintptr_t)p, (uintptr_t)p + bytes);
    return (int)syscall(SYS_madvise, p, bytes, advice);
}

#if defined(__LP64__) && defined(SYS_mmap)
/* Between pages of a reservation, as the kernel likes to align what is large. */
static void *map(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    const size_t beside = 65536, page = 4096;
    if (__atomic_load_n(&shim()->watches, __ATOMIC_RELAXED) != 0 && at == NULL && fd >= 0 &&
        (flags & MAP_SHARED) != 0 && bytes >= (size_t)1 << 30 && sysconf(_SC_PAGESIZE) == (long)page) {
        uintptr_t free_at = (uintptr_t)syscall(SYS_mmap, NULL, bytes + 4 * beside, PROT_NONE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, (off_t)0);
        if (free_at != (uintptr_t)MAP_FAILED) {
            at = (void *)((free_at + 2 * beside) / beside * beside + 3 * page);
            flags |= MAP_FIXED;
        }
    }
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}
void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return map(at, bytes, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    return map(at, bytes, protection, flags, fd, (off_t)offset);
}
#endif
