/* A shared object that a test puts before the C library of a server (LD_PRELOAD). It does two things:
 *
 *   the wall clock   stands or jumps as the test says; the monotonic clock is not touched
 *   sudden death     the process dies by SIGKILL just before the Nth call that changes a file, so that a test can
 *                    interrupt a start between any two steps. What the process writes through io_uring is not counted.
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
#include <stdlib.h>
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
        void *map = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0);
        if (map != MAP_FAILED) s = map;
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

/* The C library's function of the same name, called with the same arguments, after `before`. */
#define FORWARD(type, name, parameters, arguments, before)                                                             \
    type name parameters {                                                                                             \
        static type(*real) parameters;                                                                                 \
        if (real == NULL) *(void **)(&real) = dlsym(RTLD_NEXT, #name);                                                 \
        (before)();                                                                                                    \
        return real arguments;                                                                                         \
    }

FORWARD(int, mkdir, (const char *path, mode_t mode), (path, mode), a_change)
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
FORWARD(int, fallocate, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes), a_change)
FORWARD(int, ftruncate64, (int fd, off64_t bytes), (fd, bytes), a_change)
FORWARD(int, fallocate64, (int fd, int mode, off64_t at, off64_t bytes), (fd, mode, at, bytes), a_change)

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
