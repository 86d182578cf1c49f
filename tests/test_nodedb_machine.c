/* The database on a hostile machine: clocks that jump, little memory, full disks, kills between any two steps of a
 * start, data that were removed, limits of the system. Helpers that other files share are in server.h.
 *
 *   HELPERS               memory, directories, values, vectors, the preloaded shim, a disk of the test's own
 *   CLOCKS                a wall clock that jumps, stands still and goes back
 *   MEMORY                five times --memory of data, replays, the overflow file
 *   FULL DISKS            refusals, the reserve, FLUSHALL, several commands at once
 *   KILLED STARTS         first starts, second starts, changes of the number of cores
 *   REMOVED DATA          logs, checkpoints, segments, the manifest
 *   DURABILITY            --durability interval, SIGHUP, the length of the log
 *   CORES AND PROCESSES   degraded cores, limits of threads, modes of files
 *   VECTOR SETS           many small ones
 *   NUMBER OF CORES       memory while data move; slots */
#include "server.h"
#include "preload_shim.h"

#include <ftw.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/ptrace.h>

#define MIB (1LL << 20)
#define BASE_OF_A_CORE (24 * MIB) /* what a core takes beside --memory, where INFO does not say */

/* ===================================================================================================================
 * HELPERS: memory, directories, values, vectors, the preloaded shim, a disk of the test's own
 * ================================================================================================================ */

/* Under a sanitizer, resident memory says little and everything takes longer. */
static bool sanitized(void) {
    const char *folder = getenv("NODEDB_BUILD_DIR");
    return folder != NULL && (strstr(folder, "asan") != NULL || strstr(folder, "tsan") != NULL);
}

__attribute__((format(printf, 2, 3))) static const char *format(char *to, const char *text, ...) {
    va_list args;
    va_start(args, text);
    (void)vsnprintf(to, PATH_BYTES, text, args);
    va_end(args);
    return to;
}

/* A line of /proc/PID/status, in bytes. */
static long long process_bytes(pid_t pid, const char *field) {
    char path[PATH_BYTES], *text = file_text(format(path, "/proc/%d/status", (int)pid), NULL), *at;
    long long kib = -1;
    if (text != NULL && (at = strstr(text, field)) != NULL) kib = atoll(at + strlen(field) + 1);
    free(text);
    return kib < 0 ? -1 : kib * 1024;
}

/* The most that the server has had resident since its start is within the promise: 1.1 * (--memory + base). */
static void check_peak(int line, const server *s, client *c, long long memory, int cores) {
    long long base = info(c, "used_memory_base"), bound, peak = process_bytes(s->pid, "VmHWM:");
    if (base < 0) base = cores * BASE_OF_A_CORE;
    bound = (memory + base) / 10 * 11;
    if (sanitized() || (peak > 0 && peak <= bound)) return;
    complain(line, "%lld MiB were resident, not at most %lld (now anonymous %lld, mapped files %lld)", peak / MIB,
             bound / MIB, process_bytes(s->pid, "RssAnon:") / MIB, process_bytes(s->pid, "RssFile:") / MIB);
}

/* The bytes that a directory takes on its disk, and how many files and directories are in it. */
static struct { long long bytes, files, dirs; } tree;
static int visit_tree(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)path, (void)at;
    tree.bytes += (long long)st->st_blocks * 512;
    tree.files += kind == FTW_F, tree.dirs += kind == FTW_D;
    return 0;
}
static long long tree_bytes(const char *dir) {
    memset(&tree, 0, sizeof tree);
    (void)nftw(dir, visit_tree, 16, FTW_PHYS);
    return tree.bytes;
}

/* The last path below `dir`, in the order of names, whose last part begins with `name`; and, with `holds`, which is a
 * file with these bytes in it. */
static bool find_last(const char *dir, const char *name, const char *holds, char *found) {
    struct dirent **all = NULL;
    int n = scandir(dir, &all, NULL, versionsort), i;
    bool any = false;
    for (i = 0; i < n; i++) {
        char path[PATH_BYTES];
        struct stat st;
        if (strcmp(all[i]->d_name, ".") != 0 && strcmp(all[i]->d_name, "..") != 0 &&
            stat(format(path, "%s/%s", dir, all[i]->d_name), &st) == 0) {
            if (strncmp(all[i]->d_name, name, strlen(name)) == 0 && (holds == NULL || S_ISREG(st.st_mode))) {
                size_t size = 0;
                char *text = holds != NULL ? file_text(path, &size) : NULL;
                if (holds == NULL || (text != NULL && memmem(text, size, holds, strlen(holds)) != NULL))
                    any = true, (void)memcpy(found, path, sizeof path);
                free(text);
            }
            if (S_ISDIR(st.st_mode)) any = find_last(path, name, holds, found) || any;
        }
        free(all[i]);
    }
    free(all);
    return any;
}

static bool shell(const char *text, ...) __attribute__((format(printf, 1, 2)));
static bool shell(const char *text, ...) {
    char command[4 * PATH_BYTES];
    va_list args;
    va_start(args, text);
    (void)vsnprintf(command, sizeof command, text, args);
    va_end(args);
    return system(command) == 0;
}

/* A directory in memory, where a start takes half the time, for tests that look at the order of events only. The test's
 * own where there is none. */
static char ram_base[PATH_BYTES], ram_test[256];
static const char *ram_dir(void) {
    struct statfs fs;
    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != 0x01021994 || access("/dev/shm", W_OK) != 0 ||
        fs.f_bavail * (uint64_t)fs.f_bsize < UINT64_C(2) << 30)
        return test_dir();
    if (strcmp(ram_test, test_name) != 0) {
        (void)snprintf(ram_test, sizeof ram_test, "%s", test_name);
        (void)shell("rm -rf '%s' && mkdir -m 0777 '%s'", format(ram_base, "/dev/shm/nodedb-test-%d", (int)getpid()),
                    ram_base);
    }
    return ram_base;
}
static const char *ram_data(void) {
    static char path[PATH_BYTES + 8];
    (void)snprintf(path, sizeof path, "%s/data", ram_dir());
    return path;
}
static void remove_ram_dir(void) {
    if (ram_base[0] != 0) (void)shell("rm -rf '%s'", ram_base);
}

static void remove_dir(const char *dir) { CHECK(shell("rm -rf '%s'", dir)); }

/* ---- values: the content follows from the number and the version, and is cheap to make --------------------------- */

enum { VALUE_BYTES_MAX = 1 << 20 };

static const char *value_of(int i, int version, size_t n) {
    static char *pool, *value, head[40];
    size_t h = (size_t)sprintf(head, "%d.%d.", i, version);
    if (pool == NULL) {
        uint64_t seed = 7, x = 0;
        size_t at;
        pool = malloc(2 * VALUE_BYTES_MAX), value = malloc(VALUE_BYTES_MAX);
        if (pool == NULL || value == NULL) abort();
        for (at = 0; at < 2 * VALUE_BYTES_MAX; at++, x >>= 8) {
            if (at % 8 == 0) x = test_random(&seed);
            pool[at] = (char)x;
        }
    }
    memcpy(value, pool + ((size_t)i * 4099 + (size_t)version * 65537) % VALUE_BYTES_MAX, n);
    memcpy(value, head, h < n ? h : n);
    return value;
}

static void put_set(client *c, const char *prefix, int i, int version, size_t n) {
    char key[64];
    put_array(c, 3), put_text(c, "SET"), put_arg(c, key, (size_t)sprintf(key, "%s%d", prefix, i)),
        put_arg(c, value_of(i, version, n), n);
}

static bool reply_is_value(client *c, int i, int version, size_t n) {
    char head[32];
    size_t h = (size_t)sprintf(head, "$%zu\r\n", n);
    (void)reply(c);
    return c->reply.len == h + n + 2 && memcmp(c->reply.p, head, h) == 0 &&
           memcmp(c->reply.p + h, value_of(i, version, n), n) == 0;
}

static int batch_of(size_t n) { return n > MIB ? 1 : n < 2048 ? 512 : (int)(MIB / (long long)n); }

/* SETs prefix0 to prefix<count - 1>. A SET that is refused for want of memory is tried again; other refusals, and those
 * that last, end it. How many went in. */
static int store(client *c, const char *prefix, int count, int version, size_t n) {
    uint64_t until = clock_ms() + PATIENCE_MS;
    int at, i, stored = 0, batch = batch_of(n);
    for (at = 0; at < count; at += batch) {
        int todo[512], todos = 0;
        for (i = at; i < at + batch && i < count; i++) todo[todos++] = i;
        while (todos > 0 && clock_ms() < until) {
            int left = 0;
            for (i = 0; i < todos; i++) put_set(c, prefix, todo[i], version, n);
            for (i = 0; i < todos; i++) {
                const char *r = reply(c);
                if (*r == '+') stored++, until = clock_ms() + PATIENCE_MS;
                else if (strncmp(r, "-OOM", 4) == 0) todo[left++] = todo[i];
                else {
                    complain(__LINE__, "SET %s%d answered \"%.100s\"", prefix, todo[i], r);
                    return stored;
                }
            }
            if (left > 0) sleep_ms(2);
            todos = left;
        }
    }
    return stored;
}

/* GETs every `step`th from `from` on; how many are not what was stored. */
static int count_wrong(client *c, const char *prefix, int from, int count, int step, int version, size_t n) {
    int at, i, wrong = 0, batch = batch_of(n) * step;
    for (at = from; at < count; at += batch) {
        for (i = at; i < at + batch && i < count; i += step) putf(c, "GET %s%d", prefix, i);
        for (i = at; i < at + batch && i < count; i += step) wrong += !reply_is_value(c, i, version, n);
    }
    return wrong;
}

static int count_existing(client *c, const char *prefix, int count) {
    int at, i, there = 0;
    for (at = 0; at < count; at += 1000) {
        for (i = at; i < at + 1000 && i < count; i++) putf(c, "EXISTS %s%d", prefix, i);
        for (i = at; i < at + 1000 && i < count; i++) there += strcmp(reply(c), ":1\r\n") == 0;
    }
    return there;
}

/* DELs prefix<from>, prefix<from + step>, ...; how many were there. */
static long long delete_keys(client *c, const char *prefix, int from, int count, int step) {
    long long gone = 0;
    int i = from;
    while (i < count) {
        int n, in_it = 0, first = i;
        for (; i < count && in_it < 100; i += step) in_it++;
        put_array(c, (size_t)in_it + 1), put_text(c, "DEL");
        for (n = first; n < i; n += step) {
            char key[64];
            put_arg(c, key, (size_t)sprintf(key, "%s%d", prefix, n));
        }
        if (*reply(c) == ':') gone += atoll(c->reply.p + 1);
        else complain(__LINE__, "DEL of %d keys answered \"%.200s\"", in_it, c->reply.p);
    }
    return gone;
}

static bool answers(client *c, const char *command, const char *want) { return strcmp(ask(c, command), want) == 0; }

/* The same, tried again for `ms`: for what the server does in the background. */
static bool soon_answers(client *c, const char *command, const char *want, unsigned ms) {
    uint64_t until = clock_ms() + ms;
    while (!answers(c, command, want)) {
        if (clock_ms() > until || c->closed) return false;
        sleep_ms(20);
    }
    return true;
}

/* SIGKILL, and a start on the same directory; a new connection in *c. */
static server *restarted(server *s, const char *options, client **c, int line) {
    char dir[PATH_BYTES];
    (void)memcpy(dir, s->dir, sizeof dir);
    (void)server_signal(s, SIGKILL);
    s = server_start_at(dir, options, line);
    if (s != NULL) *c = client_open(s->port);
    return s;
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

static void make_vector(uint64_t seed, float *v, int dim) {
    uint64_t random = seed * 1000003 + 17;
    int i;
    for (i = 0; i < dim; i++) v[i] = (float)((double)(test_random(&random) >> 40) / 8388608.0 - 1.0);
}

static void put_vadd(client *c, const char *key, const char *element, const float *v, int dim) {
    put_array(c, 5);
    put_text(c, "VADD"), put_text(c, key), put_text(c, "FP32"), put_arg(c, v, (size_t)dim * 4), put_text(c, element);
}

static void put_vsim(client *c, const char *key, const float *v, int dim, const char *options) {
    char room[256], *words[8];
    size_t sizes[8], n = split_words(options, room, words, sizes, 8), i;
    put_array(c, 4 + n), put_text(c, "VSIM"), put_text(c, key), put_text(c, "FP32"), put_arg(c, v, (size_t)dim * 4);
    for (i = 0; i < n; i++) put_arg(c, words[i], sizes[i]);
}

/* Two answers of VSIM WITHSCORES: the same elements in the same order, with scores that floats cannot tell apart. */
static bool same_answers(const char *a, const char *b) {
    leaf x[64], y[64];
    leaves m = {x, 0, 64}, n = {y, 0, 64};
    size_t i;
    (void)reply_end(a, a + strlen(a), &m), (void)reply_end(b, b + strlen(b), &n);
    if (m.n != n.n || m.n < 2 || *a == '-') return false;
    for (i = 0; i < m.n; i += 2)
        if (x[i].n != y[i].n || memcmp(x[i].p, y[i].p, x[i].n) != 0 || fabs(atof(x[i + 1].p) - atof(y[i + 1].p)) > 1e-5)
            return false;
    return true;
}

/* ---- the shim in the server (preload_shim.c) --------------------------------------------------------------------- */

static shim_state *shim; /* of the newest test that has one */
static char shim_library[PATH_BYTES], shim_file[PATH_BYTES];

static void use_shim(void) { /* in the child */
    const char *options = getenv("ASAN_OPTIONS");
    char longer[2048];
    (void)snprintf(longer, sizeof longer, "%s:verify_asan_link_order=0", options != NULL ? options : "");
    (void)setenv("ASAN_OPTIONS", longer, 1);
    (void)setenv(SHIM_FILE_VARIABLE, shim_file, 1);
    (void)setenv("LD_PRELOAD", shim_library, 1);
}

/* False, with a printed reason, where it is unavailable. */
static bool with_shim(void) {
    char folder[PATH_BYTES], here[PATH_BYTES / 2];
    int fd;
    (void)snprintf(folder, sizeof folder, "%s", __FILE__);
    if (strrchr(folder, '/') != NULL) *strrchr(folder, '/') = 0;
    else (void)snprintf(folder, sizeof folder, ".");
    if (getcwd(here, sizeof here) == NULL) abort();
    (void)snprintf(shim_library, sizeof shim_library, "%s/%s/shim.so", here, test_dir());
    (void)snprintf(shim_file, sizeof shim_file, "%s/%s/shim", here, test_dir());
    if (!shell("cc -std=c99 -O2 -shared -fPIC -I'%s' -o '%s' '%s/preload_shim.c' -ldl 2>'%s.log'", folder, shim_library,
               folder, shim_file)) {
        fprintf(stderr, "skipped: %s needs a C compiler named cc and tests/preload_shim.c\n", test_name);
        return false;
    }
    fd = open(shim_file, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0 || ftruncate(fd, 4096) != 0) abort();
    shim = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (shim == MAP_FAILED) abort();
    before_exec = use_shim;
    return true;
}

static bool shim_works(void) {
    if (__atomic_load_n(&shim->reads, __ATOMIC_RELAXED) > 0) return true;
    fprintf(stderr, "skipped: %s: the program does not read the clock through the C library\n", test_name);
    return false;
}

/* This test runs without the shim, even if an earlier one had it. */
static void without_shim(void) {
    if (shim != NULL) (void)munmap(shim, 4096);
    shim = NULL, before_exec = NULL;
}

static void clock_ahead_by(long long seconds) {
    __atomic_store_n(&shim->offset_ns, seconds * 1000000000, __ATOMIC_RELAXED);
}

/* ---- a disk of the test's own ------------------------------------------------------------------------------------ */

static bool own_mounts; /* this process sees mounts that nobody else sees; they end with it */

/* Runs `body` on an empty file system of `mib` MiB. Skips, with a printed reason, where it may not be made. */
static void on_small_disk(int mib, void (*body)(const char *dir)) {
    char image[PATH_BYTES], dir[PATH_BYTES];
    bool mounted;
    if (!own_mounts && (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)) {
        fprintf(stderr, "skipped: %s needs the right to mount: %s\n", test_name, strerror(errno));
        return;
    }
    own_mounts = true;
    format(image, "%s/disk", test_dir()), format(dir, "%s/mounted", test_dir());
    (void)mkdir(dir, 0777);
    mounted = shell("truncate -s %dM '%s' && mkfs.ext4 -q -F -m 0 '%s' && mount -o loop '%s' '%s'", mib, image, image,
                    image, dir);
    if (!mounted && mount("none", dir, "tmpfs", 0, format(image, "size=%dm", mib)) != 0) {
        fprintf(stderr, "skipped: %s cannot mount a disk: %s\n", test_name, strerror(errno));
        return;
    }
    body(dir);
    stop_all();
    if (umount(dir) != 0) (void)umount2(dir, MNT_DETACH);
}

/* Takes all that is free on the disk of `dir`. */
static void fill_disk(const char *dir) {
    char path[PATH_BYTES];
    int fd = open(format(path, "%s/foreign", dir), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    off_t at = 0, step;
    if (fd < 0) complain(__LINE__, "cannot make %s: %s", path, strerror(errno));
    for (step = 64 * MIB; fd >= 0 && step >= 4096;) {
        if (posix_fallocate(fd, at, step) == 0) at += step;
        else step /= 2;
    }
    if (fd >= 0) (void)close(fd);
}

/* ===================================================================================================================
 * CLOCKS: a wall clock that jumps, stands still and goes back
 * ================================================================================================================ */

enum { CLOCK_KEYS = 16 }; /* of each kind: enough that every core has some */

/* What must hold whatever the clock did before; `round` makes new names. */
static void times_to_live_are_right(int line, client *c, int round) {
    static const char *const names[] = {"SET EX 60", "TTL", "SET", "EXPIRE 60", "first SET NX EX 60",
                                        "second SET NX EX 60", "first SET NX", "second SET NX"};
    int i, k, wrong[8] = {0};
    char text[200];
    for (i = 0; i < CLOCK_KEYS; i++) {
        putf(c, "SET ex:%d:%d v EX 60", round, i), putf(c, "TTL ex:%d:%d", round, i);
        putf(c, "SET plain:%d:%d v", round, i), putf(c, "EXPIRE plain:%d:%d 60", round, i);
        putf(c, "SET lock:%d:%d 1 NX EX 60", round, i), putf(c, "SET lock:%d:%d 1 NX EX 60", round, i);
        putf(c, "SET once:%d:%d 1 NX", round, i), putf(c, "SET once:%d:%d 1 NX", round, i);
    }
    for (i = 0; i < CLOCK_KEYS; i++) {
        static const char *const want[] = {"+OK\r\n", NULL,      "+OK\r\n", ":1\r\n",
                                           "+OK\r\n", "$-1\r\n", "+OK\r\n", "$-1\r\n"};
        for (k = 0; k < 8; k++) {
            const char *r = reply(c);
            bool good = want[k] != NULL ? strcmp(r, want[k]) == 0 : atoll(r + 1) >= 59 && atoll(r + 1) <= 60;
            if (!good && ++wrong[k] == 1)
                complain(line, "a %s answered \"%.60s\"", names[k], readable(r, c->reply.len, text, sizeof text));
        }
    }
    sleep_ms(300); /* for the sweep */
}

/* All that times_to_live_are_right made in this round is there, `age` seconds later at most. */
static void times_to_live_stayed_right(int line, client *c, int round, int age) {
    static const char *const kinds[] = {"ex", "plain", "lock", "once"};
    int kind, i, missing = 0, strange = 0;
    for (kind = 0; kind < 4; kind++) {
        for (i = 0; i < CLOCK_KEYS; i++) putf(c, "TTL %s:%d:%d", kinds[kind], round, i);
        for (i = 0; i < CLOCK_KEYS; i++) {
            long long ttl = atoll(reply(c) + 1);
            missing += ttl == -2;
            strange += ttl != -2 && (kind == 3 ? ttl != -1 : ttl < 60 - age || ttl > 60);
        }
    }
    for (i = 0; i < CLOCK_KEYS; i++) putf(c, "SET lock:%d:%d 1 NX EX 60", round, i);
    for (i = 0; i < CLOCK_KEYS; i++) missing += strcmp(reply(c), "$-1\r\n") != 0;
    if (missing + strange > 0)
        complain(line, "of the keys of round %d, %d are missing and %d have a strange time to live", round, missing,
                 strange);
}

static void long_lived_keys_are_there(int line, client *c) {
    int there = count_existing(c, "forever:", CLOCK_KEYS) + count_existing(c, "hours:", CLOCK_KEYS);
    if (there != 2 * CLOCK_KEYS) complain(line, "%d of %d keys are there", there, 2 * CLOCK_KEYS);
    if (!answers(c, "VCARD vectors", ":20\r\n")) complain(line, "VCARD of a set without TTL is %.40s", c->reply.p);
    if (!answers(c, "VCARD vectors:hours", ":20\r\n")) complain(line, "VCARD of a set with TTL is %.40s", c->reply.p);
    says_at(line, c, "VSIM vectors VALUES 2 3 1 COUNT 1", "*1\r\n$2\r\ne3\r\n");
    says_at(line, c, "VSIM vectors:hours VALUES 2 3 1 COUNT 1", "*1\r\n$2\r\ne3\r\n");
}

static void make_long_lived_keys(client *c) {
    int i;
    for (i = 0; i < CLOCK_KEYS; i++) putf(c, "SET forever:%d v", i), putf(c, "SET hours:%d v EX 7200", i);
    for (i = 0; i < 20; i++)
        putf(c, "VADD vectors VALUES 2 %d 1 e%d", i, i), putf(c, "VADD vectors:hours VALUES 2 %d 1 e%d", i, i);
    for (i = 0; i < 2 * CLOCK_KEYS + 40; i++) CHECK(*reply(c) != '-');
    says(c, "EXPIRE vectors:hours 7200", ":1\r\n");
}

DB_TEST(a_clock_that_was_an_hour_ahead_for_a_moment_takes_no_key_and_no_time_to_live_with_it) {
    server *s;
    client *c;
    int i;
    if (!with_shim()) return;
    s = server_start(ram_data(), "--cores 2");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    if (!shim_works()) return;
    make_long_lived_keys(c);
    clock_ahead_by(3600);
    for (i = 0; i < 50; i++) putf(c, "SET jump:%d v EX 60", i), putf(c, "INCR counter:%d", i);
    for (i = 0; i < 100; i++) CHECK(*reply(c) != '-');
    sleep_ms(200);
    clock_ahead_by(0);
    times_to_live_are_right(__LINE__, c, 0);
    times_to_live_stayed_right(__LINE__, c, 0, 3);
    long_lived_keys_are_there(__LINE__, c);
    CHECK_EQ(count_existing(c, "counter:", 50), 50);
    s = restarted(s, "--cores 2", &c, __LINE__);
    REQUIRE(s != NULL);
    times_to_live_stayed_right(__LINE__, c, 0, 10);
    long_lived_keys_are_there(__LINE__, c);
    times_to_live_are_right(__LINE__, c, 1);
    says(c, "SAVE", "+OK\r\n");
    s = restarted(s, "--cores 2", &c, __LINE__);
    REQUIRE(s != NULL);
    times_to_live_stayed_right(__LINE__, c, 1, 10);
    long_lived_keys_are_there(__LINE__, c);
    CHECK_EQ(count_existing(c, "counter:", 50), 50);
    times_to_live_are_right(__LINE__, c, 2);
}

DB_TEST(a_clock_that_goes_back_an_hour_takes_nothing_and_the_uptime_does_not_notice) {
    server *s;
    client *c;
    long long uptime[4];
    int i;
    if (!with_shim()) return;
    s = server_start(ram_data(), "--cores 2");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    if (!shim_works()) return;
    make_long_lived_keys(c);
    uptime[0] = info(c, "uptime_in_seconds");
    for (i = 0; i < CLOCK_KEYS; i++) putf(c, "SET before:%d v EX 60", i);
    for (i = 0; i < CLOCK_KEYS; i++) next_is(c, "+OK\r\n");
    clock_ahead_by(-3600);
    uptime[1] = info(c, "uptime_in_seconds");
    times_to_live_are_right(__LINE__, c, 0);
    times_to_live_stayed_right(__LINE__, c, 0, 3);
    CHECK_EQ(count_existing(c, "before:", CLOCK_KEYS), CLOCK_KEYS);
    long_lived_keys_are_there(__LINE__, c);
    s = restarted(s, "--cores 2", &c, __LINE__);
    REQUIRE(s != NULL);
    CHECK_EQ(count_existing(c, "before:", CLOCK_KEYS), CLOCK_KEYS);
    times_to_live_stayed_right(__LINE__, c, 0, 10);
    long_lived_keys_are_there(__LINE__, c);
    uptime[2] = info(c, "uptime_in_seconds");
    clock_ahead_by(0);
    uptime[3] = info(c, "uptime_in_seconds");
    for (i = 0; i < 4; i++)
        if (uptime[i] < 0 || uptime[i] > 20) complain(__LINE__, "uptime number %d is %lld seconds", i, uptime[i]);
    CHECK_EQ(count_existing(c, "before:", CLOCK_KEYS), CLOCK_KEYS);
    long_lived_keys_are_there(__LINE__, c);
}

/* The model of a key. A time to live that passed on a clock that went back later may have taken the key or
 * not; the next reply that tells decides it. */
typedef struct modelled {
    bool exists, doubtful;
    long long value, deadline_ms; /* 0: it never expires */
} modelled;

enum { WALK_KEYS = 40, WALK_STEPS = 300, WALK_KILLS = 4 };
static modelled walk[WALK_KEYS];
static long long walk_ms; /* the wall clock, which stands still between steps */

static void walk_to(long long ms) {
    int i;
    walk_ms = ms;
    __atomic_store_n(&shim->frozen_ns, ms * 1000000, __ATOMIC_RELAXED);
    for (i = 0; i < WALK_KEYS; i++)
        if (walk[i].exists && walk[i].deadline_ms != 0 && walk[i].deadline_ms <= ms) walk[i].doubtful = true;
}

enum { NO, YES, UNKNOWN };
static int walk_sees(const modelled *m) {
    if (!m->exists || (m->deadline_ms != 0 && m->deadline_ms <= walk_ms)) return NO;
    return m->doubtful ? UNKNOWN : YES;
}

/* A reply has said whether the key was there. One that the clock hides may come back with the clock. */
static void walk_learns(int line, int key, int seen, bool was_there, const char *command) {
    modelled *m = &walk[key];
    if (seen != UNKNOWN && was_there != (seen == YES))
        complain(line, "at %lld ms, %s: the key was %s (deadline %lld): \"%.60s\"", walk_ms, command,
                 was_there ? "there" : "not there", m->deadline_ms, clients->reply.p);
    if (seen == UNKNOWN) m->doubtful = false;
    if (seen == UNKNOWN && !was_there) memset(m, 0, sizeof *m);
}

static void walk_step(client *c, uint64_t *random) {
    int key = (int)(test_random(random) % WALK_KEYS), what = (int)(test_random(random) % 8);
    int seen = walk_sees(&walk[key]);
    long long n = 10 + (long long)(test_random(random) % 1000), ttl = 1 + (long long)(test_random(random) % 7200);
    modelled *m = &walk[key], fresh = {true, false, n, 0};
    char command[64];
    if (what < 2) {
        int length = sprintf(command, "SET k%d %lld", key, n);
        if (what == 1) fresh.deadline_ms = walk_ms + ttl * 1000, (void)sprintf(command + length, " EX %lld", ttl);
        says(c, command, "+OK\r\n");
        *m = fresh;
    } else if (what == 2) {
        (void)sprintf(command, "SET k%d %lld NX EX %lld", key, n, ttl);
        fresh.deadline_ms = walk_ms + ttl * 1000;
        walk_learns(__LINE__, key, seen, *ask(c, command) == '$', command);
        if (*c->reply.p == '+') *m = fresh;
    } else if (what == 3) {
        (void)sprintf(command, "INCR k%d", key);
        n = atoll(ask(c, command) + 1);
        walk_learns(__LINE__, key, seen, n != 1, command);
        if (n == 1) { /* a new key; let it be 10, which no INCR of it can answer as 1 */
            (void)sprintf(command, "SET k%d 10 KEEPTTL", key), says(c, command, "+OK\r\n");
            *m = fresh, m->value = 10;
        } else if (n != ++m->value) complain(__LINE__, "INCR k%d answered %lld and not %lld", key, n, m->value);
    } else if (what == 4) {
        (void)sprintf(command, "EXPIRE k%d %lld", key, ttl);
        walk_learns(__LINE__, key, seen, strcmp(ask(c, command), ":1\r\n") == 0, command);
        if (c->reply.p[1] == '1') m->deadline_ms = walk_ms + ttl * 1000;
    } else if (what == 5 && (seen != YES || m->deadline_ms != 0)) {
        (void)sprintf(command, "PERSIST k%d", key);
        walk_learns(__LINE__, key, seen, strcmp(ask(c, command), ":1\r\n") == 0, command);
        if (c->reply.p[1] == '1') m->deadline_ms = 0;
    } else if (what == 6) {
        (void)sprintf(command, "PTTL k%d", key);
        n = atoll(ask(c, command) + 1);
        walk_learns(__LINE__, key, seen, n != -2, command);
        if (n != -2 && n != (m->deadline_ms == 0 ? -1 : m->deadline_ms - walk_ms))
            complain(__LINE__, "PTTL k%d is %lld at %lld with the deadline %lld", key, n, walk_ms, m->deadline_ms);
    } else {
        (void)sprintf(command, "GET k%d", key);
        walk_learns(__LINE__, key, seen, ask(c, command)[1] != '-', command);
        if (c->reply.p[1] != '-' && atoll(strchr(c->reply.p, '\n') + 1) != m->value)
            complain(__LINE__, "GET k%d answered \"%.30s\" and not %lld", key, c->reply.p, m->value);
    }
}

/* Values and times to live of all keys, as text; and what the model knows must agree. */
static char *walk_snapshot(client *c) {
    bytes all = {0};
    int i;
    for (i = 0; i < WALK_KEYS; i++) putf(c, "GET k%d", i), putf(c, "PTTL k%d", i);
    for (i = 0; i < WALK_KEYS; i++) {
        int seen = walk_sees(&walk[i]);
        (void)reply(c);
        bytes_put(&all, c->reply.p, c->reply.len);
        walk_learns(__LINE__, i, seen, c->reply.p[1] != '-', "a look at all");
        (void)reply(c);
        bytes_put(&all, c->reply.p, c->reply.len);
    }
    return all.p;
}

static int first_difference(const char *a, const char *b) {
    int i;
    for (i = 0; a[i] != 0 && a[i] == b[i]; i++) {}
    return i;
}

DB_TEST(after_any_walk_of_the_clock_a_restart_gives_the_state_that_was_seen_before_the_kill) {
    uint64_t random = test_seed * 77 + 1;
    struct timespec now;
    server *s;
    client *c;
    int round, i;
    if (!with_shim()) return;
    memset(walk, 0, sizeof walk);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    walk_to((long long)now.tv_sec * 1000);
    s = server_start(ram_data(), "--cores 2");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    if (!shim_works()) return;
    for (round = 0; round < WALK_KILLS && test_failures_here < 5; round++) {
        char *before, *after;
        for (i = 0; i < WALK_STEPS && test_failures_here < 5; i++) {
            uint64_t dice = test_random(&random) % 16;
            walk_step(c, &random);
            if (dice == 0) walk_to(walk_ms + (long long)(test_random(&random) % 14400000) - 7200000);
            if (dice == 1) sleep_ms(10); /* the server looks for what has expired */
            if (dice > 12) walk_to(walk_ms + (long long)(test_random(&random) % 3000));
        }
        before = walk_snapshot(c);
        if (round == 2) says(c, "SAVE", "+OK\r\n");
        s = restarted(s, "--cores 2", &c, __LINE__);
        if (s == NULL) {
            free(before);
            return;
        }
        after = walk_snapshot(c);
        if (strcmp(before, after) != 0) {
            char a[200], b[200];
            int at = first_difference(before, after);
            complain(__LINE__, "kill %d: \"...%s\" became \"...%s\" (in the order k0, k1, ... value and PTTL)", round,
                     readable(before + at, strnlen(before + at, 60), a, sizeof a),
                     readable(after + at, strnlen(after + at, 60), b, sizeof b));
        }
        free(before), free(after);
    }
}

/* ===================================================================================================================
 * MEMORY: five times --memory of data, replays, the overflow file
 * ================================================================================================================ */

/* Five times --memory is stored; after a kill, and after a checkpoint and a kill, it is all there again within the same
 * memory, and can be written. The long form has twice as much of both. */
static void comes_up_within_its_memory(int keys, size_t n) {
    long long memory = (test_long ? 64 : 32) * MIB;
    const char *options = test_long ? "--cores 2 --memory 64M" : "--cores 2 --memory 32M";
    server *s = server_start(data_dir(), options);
    client *c;
    int round, step = keys / 2000 + 1, some = keys < 200 ? keys / 2 : 200;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    CHECK_EQ(store(c, "k", keys, 0, n), keys);
    CHECK(info(c, "spilled_keys") > 0);
    check_peak(__LINE__, s, c, memory, 2);
    for (round = 0; round < 2 && test_failures_here < 4; round++) {
        s = restarted(s, options, &c, __LINE__);
        REQUIRE(s != NULL);
        check_peak(__LINE__, s, c, memory, 2);
        CHECK_EQ(number(c, "DBSIZE"), keys);
        CHECK_EQ(count_wrong(c, "k", 0, some, 1, round, n), 0);
        CHECK_EQ(count_wrong(c, "k", some, keys, step, 0, n), 0);
        CHECK_EQ(store(c, "k", some, round + 1, n), some); /* most of these were spilled */
        CHECK_EQ(count_wrong(c, "k", 0, some, 1, round + 1, n), 0);
        CHECK_EQ(store(c, "new", 10, round, n), 10);
        CHECK_EQ(delete_keys(c, "new", 0, 10, 1), 10);
        if (round == 0) says(c, "SAVE", "+OK\r\n");
        check_peak(__LINE__, s, c, memory, 2);
    }
}

DB_TEST(a_restart_with_five_times_its_memory_in_pages_comes_up_within_its_memory) {
    comes_up_within_its_memory(test_long ? 75000 : 37500, 4096);
}
DB_TEST(a_restart_with_large_values_comes_up_within_its_memory) {
    comes_up_within_its_memory(test_long ? 300 : 120, 1 << 20);
}
DB_TEST(a_restart_with_many_small_values_comes_up_within_its_memory) {
    comes_up_within_its_memory(test_long ? 240000 : 120000, 300);
}

DB_TEST(full_memory_spills_without_being_asked_and_what_was_spilled_comes_back_when_there_is_room) {
    enum { BYTES = 4096, CHUNK = 64, MAX = 40000 };
    server *s = server_start(data_dir(), "--cores 2 --memory 64M");
    client *c;
    long long limit = 64 * MIB;
    char prefix[32];
    int chunks = 0, i, wrong = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    while (chunks < MAX / CHUNK && info(c, "used_memory") < limit / 100 * 92 && info(c, "spilled_keys") == 0) {
        (void)sprintf(prefix, "k%d:", chunks++);
        REQUIRE(store(c, prefix, CHUNK, 0, BYTES) == CHUNK);
    }
    CHECK_EQ(info(c, "oom_refused"), 0); /* no write was refused, so only maintenance had reason to spill */
    CHECK(info_reaches(c, "spilled_bytes", true, MIB));
    CHECK(info_reaches(c, "used_memory", false, limit / 100 * 90));
    for (i = 0; i < chunks; i += 7) {
        (void)sprintf(prefix, "k%d:", i);
        wrong += count_wrong(c, prefix, 0, CHUNK, 1, 0, BYTES);
    }
    CHECK_EQ(wrong, 0);
    CHECK(info(c, "spilled_keys") > 0);
    for (i = 0; i < chunks; i++) { /* one in eight stays, so one in eight of the spilled */
        (void)sprintf(prefix, "k%d:", i);
        if (i % 8 != 0) CHECK_EQ(delete_keys(c, prefix, 0, CHUNK, 1), CHUNK);
    }
    CHECK(info_reaches(c, "spilled_keys", false, 0));
    CHECK_EQ(info(c, "spilled_bytes"), 0);
    CHECK(info(c, "used_memory") >= (long long)BYTES * CHUNK * (chunks / 8)); /* they are in memory */
    for (i = 0; i < chunks; i += 8) {
        (void)sprintf(prefix, "k%d:", i);
        wrong += count_wrong(c, prefix, 0, CHUNK, 1, 0, BYTES);
    }
    CHECK_EQ(wrong, 0);
}

/* What open files take on the disk that no name leads to, or that are named after the overflow. */
static long long hidden_bytes(pid_t pid) {
    char dir[PATH_BYTES], path[PATH_BYTES], target[PATH_BYTES];
    DIR *d = opendir(format(dir, "/proc/%d/fd", (int)pid));
    struct dirent *e;
    long long sum = 0;
    while (d != NULL && (e = readdir(d)) != NULL) {
        struct stat st;
        ssize_t n = readlink(format(path, "%s/%s", dir, e->d_name), target, sizeof target - 1);
        if (n <= 0 || stat(path, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        target[n] = 0;
        if (st.st_nlink == 0 || strstr(target, "overflow") != NULL) sum += (long long)st.st_blocks * 512;
    }
    if (d != NULL) (void)closedir(d);
    return sum;
}

static bool hidden_falls_to(pid_t pid, long long limit, unsigned ms) {
    uint64_t until = clock_ms() + ms;
    while (hidden_bytes(pid) > limit) {
        if (clock_ms() > until) return false;
        sleep_ms(20);
    }
    return true;
}

DB_TEST(disk_space_of_spilled_values_goes_back_after_flushall_and_after_deleting_all) {
    enum { BYTES = 65536, KEYS = 3600 };
    server *s = server_start(data_dir(), "--cores 2 --memory 16M");
    client *c;
    int round;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    for (round = 0; round < 2; round++) {
        int keys = round == 0 ? KEYS : KEYS / 4;
        long long hidden, said;
        CHECK_EQ(store(c, "k", keys, 0, BYTES), keys);
        hidden = hidden_bytes(s->pid), said = info(c, "overflow_disk");
        CHECK(hidden > keys * (long long)BYTES - 24 * MIB);
        if (said < hidden / 10 * 9 - 8 * MIB || said > hidden / 10 * 11 + 8 * MIB)
            complain(__LINE__, "overflow_disk is %lld MiB of %lld", said / MIB, hidden / MIB);
        if (round == 0) says(c, "FLUSHALL", "+OK\r\n");
        else CHECK_EQ(delete_keys(c, "k", 0, keys, 1), keys);
        if (!hidden_falls_to(s->pid, 8 * MIB, 3000))
            complain(__LINE__, "%lld MiB of the disk are still taken after %s", hidden_bytes(s->pid) / MIB,
                     round == 0 ? "FLUSHALL" : "DEL of all");
        said = info(c, "overflow_disk");
        CHECK(said >= 0 && said <= 8 * MIB);
        CHECK_EQ(info(c, "spilled_bytes"), 0);
    }
    says(c, "SET k v", "+OK\r\n");
}

/* With the shim, and without process_madvise, which is no function of the C library. */
static void use_shim_and_madvise(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 440, 0, 1), /* process_madvise, on all machines */
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program_of_it;
    program_of_it.len = 4, program_of_it.filter = filter;
    use_shim();
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    (void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program_of_it);
}

/* The mapping of the overflow file stands between other memory of the process. Pages of it are given back 64 KiB at a
 * time, which at its beginning would reach what lies below it. */
DB_TEST(memory_beside_the_overflow_file_is_never_given_back_with_it) {
    enum { BYTES = 16384, KEYS = 3000 }; /* on four cores: 47 MiB, several times what is unmapped at once */
    server *s;
    client *c;
    uint64_t drops, strays;
    without_shim();
    if (!with_shim()) return;
    before_exec = use_shim_and_madvise;
    s = server_start(ram_data(), "--cores 4 --memory 16M");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    __atomic_store_n(&shim->watches, 1, __ATOMIC_RELAXED);
    CHECK_EQ(store(c, "k", KEYS, 0, BYTES), KEYS);
    CHECK(info(c, "spilled_keys") > 0);
    CHECK_EQ(count_wrong(c, "k", 0, KEYS, 1, 0, BYTES), 0);
    CHECK_EQ(delete_keys(c, "k", 0, KEYS / 2, 1), KEYS / 2);
    CHECK_EQ(count_wrong(c, "k", KEYS / 2, KEYS, 1, 0, BYTES), 0);
    says(c, "FLUSHALL", "+OK\r\n");
    CHECK(info_reaches(c, "spilled_bytes", false, 0));
    drops = __atomic_load_n(&shim->drops, __ATOMIC_RELAXED), strays = __atomic_load_n(&shim->strays, __ATOMIC_RELAXED);
    if (drops == 0) fprintf(stderr, "note: %s: the program does not call madvise of the C library\n", test_name);
    if (strays > 0)
        complain(__LINE__, "%d of %d drops of the overflow file's pages took in what lies beside it", (int)strays,
                 (int)drops);
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    without_shim();
}

/* ===================================================================================================================
 * FULL DISKS: refusals, the reserve, FLUSHALL, several commands at once
 * ================================================================================================================ */

enum { DISK_BYTES = 65536, DISK_KEYS = 12000 };
static bool disk_stored[DISK_KEYS];

/* SETs d<from>, d<from + 1>, ... until `refusals` of them were refused; up to where it went. */
static int set_until_refused(client *c, int from, int refusals) {
    int i = from, k, refused = 0;
    while (i + 8 <= DISK_KEYS && refused < refusals && !c->closed) {
        for (k = i; k < i + 8; k++) put_set(c, "d", k, 0, DISK_BYTES);
        for (k = i; k < i + 8; k++) {
            disk_stored[k] = *reply(c) == '+';
            refused += !disk_stored[k];
            if (!disk_stored[k] && *c->reply.p != '-') complain(__LINE__, "SET answered \"%.60s\"", c->reply.p);
        }
        i += 8;
    }
    if (refused == 0) complain(__LINE__, "the disk does not become full");
    return i;
}

/* Exactly those are there whose SET was acknowledged; a sample has the right content. */
static void check_stored(int line, client *c, int tried) {
    int i, wrong = 0, count = 0;
    for (i = 0; i < tried; i++) putf(c, "EXISTS d%d", i);
    for (i = 0; i < tried; i++) {
        wrong += strcmp(reply(c), disk_stored[i] ? ":1\r\n" : ":0\r\n") != 0;
        count += disk_stored[i];
    }
    if (wrong > 0) complain(line, "%d of %d keys are not as was answered", wrong, tried);
    if (number(c, "DBSIZE") != count) complain(line, "DBSIZE is not %d but %.20s", count, c->reply.p);
    for (i = 0; i < tried; i += 1 + tried / 100)
        if (disk_stored[i]) {
            putf(c, "GET d%d", i);
            if (!reply_is_value(c, i, 0, DISK_BYTES)) wrong++;
        }
    if (wrong > 0) complain(line, "%d values are wrong or missing", wrong);
}

/* MSETs of keys on all cores, while one core after the other runs out of space: each is done or refused as a whole. */
static void msets_are_all_or_nothing(client *c) {
    int round, i, refused = 0, partly = 0;
    for (round = 0; round < 60 && refused < 10; round++) {
        char key[32];
        int there;
        bool done;
        put_array(c, 17), put_text(c, "MSET");
        for (i = 0; i < 8; i++)
            put_arg(c, key, (size_t)sprintf(key, "m%d:%d", round, i)),
                put_arg(c, value_of(i, 9, DISK_BYTES), DISK_BYTES);
        done = *reply(c) == '+';
        refused += !done;
        (void)sprintf(key, "m%d:", round);
        there = count_existing(c, key, 8);
        partly += there != (done ? 8 : 0);
        if (there > 0) (void)delete_keys(c, key, 0, 8, 1);
    }
    if (partly > 0) complain(__LINE__, "%d of %d refused MSETs did some of what they were to do", partly, refused);
    CHECK(refused > 0);
}

static void writes_go_on(int line, client *c) {
    int i, stored = 0;
    for (i = 0; i < 100; i++) {
        uint64_t until = clock_ms() + 3000;
        do { /* space may come back in the background */
            put_set(c, "again", i, 0, DISK_BYTES);
            if (*reply(c) == '+') break;
            sleep_ms(10);
        } while (clock_ms() < until && !c->closed);
        stored += *c->reply.p == '+';
        if (stored <= i) break;
    }
    if (stored != 100) complain(line, "SET number %d is refused: \"%.200s\"", stored, c->reply.p);
    i = count_wrong(c, "again", 0, stored, 1, 0, DISK_BYTES);
    if (i > 0) complain(line, "%d values are wrong", i);
}

static void full_of_live_data(const char *disk) {
    char dir[PATH_BYTES], line[64];
    server *s = server_start(format(dir, "%s/data", disk), "--cores 2 --memory 1G");
    client *c;
    int tried, i, n = 0, refused = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    memset(disk_stored, 0, sizeof disk_stored);
    tried = set_until_refused(c, 0, 1);
    msets_are_all_or_nothing(c);
    tried = set_until_refused(c, tried, 48);
    check_stored(__LINE__, c, tried);
    for (i = 0; i < tried && n < 20; i += 5)
        if (disk_stored[i]) putf(c, "EXPIRE d%d 1000", i), n++;
    for (i = 0; i < n; i++)
        if (strcmp(reply(c), ":1\r\n") != 0 && ++refused == 1)
            complain(__LINE__, "EXPIRE answered \"%.200s\"", c->reply.p);
    refused = 0;
    for (i = n = 0; i < tried; i += 2) /* DEL of one in two */
        if (disk_stored[i]) putf(c, "DEL d%d", i), disk_stored[i] = false, n++;
    for (i = 0; i < n; i++)
        if (strcmp(reply(c), ":1\r\n") != 0 && ++refused == 1)
            complain(__LINE__, "DEL number %d of %d answered \"%.400s\"", i, n, c->reply.p);
    if (refused > 0) complain(__LINE__, "refused in all: %d DELs", refused);
    if (refused > 0) return;
    check_stored(__LINE__, c, tried);
    s = restarted(s, "--cores 2 --memory 1G", &c, __LINE__);
    REQUIRE(s != NULL);
    check_stored(__LINE__, c, tried);
    for (i = 0; i + 1 < tried && !disk_stored[i]; i++) {}
    (void)sprintf(line, "DEL d%d", i), says(c, line, ":1\r\n");
    says(c, "FLUSHALL", "+OK\r\n");
    says(c, "DBSIZE", ":0\r\n");
    says(c, "SAVE", "+OK\r\n");
    writes_go_on(__LINE__, c);
    s = restarted(s, "--cores 2 --memory 1G", &c, __LINE__);
    REQUIRE(s != NULL);
    says(c, "DBSIZE", ":100\r\n");
    CHECK_EQ(count_wrong(c, "again", 0, 100, 1, 0, DISK_BYTES), 0);
}
DB_TEST(on_a_disk_full_of_live_data_all_that_frees_space_succeeds_and_then_writes_go_on) {
    on_small_disk(200, full_of_live_data);
}

/* The live data are few: it is the log that takes the space, and somebody else's file. */
static void full_of_foreign_data(const char *disk) {
    enum { KEYS = 40, BYTES = 16384 };
    char dir[PATH_BYTES];
    server *s = server_start(format(dir, "%s/data", disk), "--cores 2 --memory 1G");
    client *c;
    int round, i, version[KEYS] = {0}, next = 0, wrong;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    CHECK_EQ(store(c, "k", KEYS, 0, BYTES), KEYS);
    says(c, "VADD v VALUES 2 1 0 e", ":1\r\n");
    fill_disk(disk);
    for (round = 0; round < 2; round++) { /* the second time with a server that was started on the full disk */
        int refused = 0;
        while (refused < 20 && next < 100000 && !c->closed) {
            next++;
            for (i = 0; i < KEYS; i++) put_set(c, "k", i, next, BYTES);
            for (i = 0; i < KEYS; i++) *reply(c) == '+' ? (void)(version[i] = next) : (void)refused++;
        }
        if (round == 0) {
            s = restarted(s, "--cores 2 --memory 1G", &c, __LINE__);
            REQUIRE(s != NULL);
        }
        for (i = wrong = 0; i < KEYS; i++) putf(c, "GET k%d", i), wrong += !reply_is_value(c, i, version[i], BYTES);
        CHECK_EQ(wrong, 0);
        says(c, "DBSIZE", ":41\r\n");
        says(c, "EXPIRE k1 1000", ":1\r\n");
        says(c, "PERSIST k1", ":1\r\n");
        says(c, "VREM v nothing", ":0\r\n");
        says(c, "DEL k0", ":1\r\n");
        says(c, "SAVE", "+OK\r\n");
        if (!soon_answers(c, "SET k0 v", "+OK\r\n", 3000)) complain(__LINE__, "SET answers \"%.200s\"", c->reply.p);
        for (i = 0; i < KEYS; i++) { /* and continues as before */
            put_set(c, "k", i, ++next, BYTES);
            if (*reply(c) != '+') break;
            version[i] = next;
        }
        CHECK_EQ(i, KEYS);
        if (test_failures_here > 0) return;
    }
    says(c, "FLUSHALL", "+OK\r\n");
    says(c, "SAVE", "+OK\r\n");
    writes_go_on(__LINE__, c);
    s = restarted(s, "--cores 2 --memory 1G", &c, __LINE__);
    REQUIRE(s != NULL);
    says(c, "DBSIZE", ":100\r\n");
}
DB_TEST(on_a_disk_that_somebody_else_fills_all_that_frees_space_succeeds_and_then_writes_go_on) {
    on_small_disk(150, full_of_foreign_data);
}

/* The core of a vector set's key has room on its disk, and a core with a part of it has none. The part is dropped all
 * the same: a restart finds the set gone, and drops the part without a record. */
DB_TEST(a_vector_set_that_is_deleted_leaves_the_memory_of_a_core_whose_log_has_no_room) {
    enum { ELEMENTS = 400, DIM = 256, BYTES = 65536, FILL = 600 };
    static const char options[] = "--cores 2 --memory 1G";
    server *s;
    client *c;
    float v[DIM];
    char line[64], there[32] = "", *key[] = {"v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7"};
    long long before, with;
    int i, k, sets = 0, refused = 0, last = 0;
    without_shim();
    if (!with_shim()) return;
    s = server_start(ram_data(), options);
    REQUIRE(s != NULL);
    if (!shim_works()) return;
    c = client_open(s->port);
    before = info(c, "used_memory_vectors");
    for (k = 0; k < 8; k++) /* eight sets of 50 elements, with homes on both cores */
        for (i = 0; i < ELEMENTS / 8; i++) {
            char name[16];
            make_vector((uint64_t)(k * 1000 + i), v, DIM);
            (void)sprintf(name, "e%d", i);
            put_vadd(c, key[k], name, v, DIM);
        }
    for (i = 0; i < ELEMENTS; i++) next_is(c, ":1\r\n");
    with = info(c, "used_memory_vectors");
    CHECK(with - before > ELEMENTS * DIM);
    (void)sprintf(shim->full, "/core-1");
    for (i = 0; i < FILL; i++) put_set(c, "fill", i, 0, BYTES);
    for (i = 0; i < FILL; i++)
        if (*reply(c) != '+') refused++, last = i;
    CHECK(refused > 0 && refused < FILL); /* core 1 has no room for a segment of its log, and core 0 has */
    (void)sprintf(line, "SET fill%d v", last);
    for (i = 0; i < 200 && answers(c, line, "+OK\r\n"); i++) {} /* the end of its segment, too */
    CHECK(i < 200 && *c->reply.p == '-');
    for (k = 0; k < 8; k++) {
        (void)sprintf(line, "DEL %s", key[k]);
        if (answers(c, line, ":1\r\n")) continue;
        CHECK(*c->reply.p == '-'); /* its home is core 1, where even the reserve does not help */
        sets++, (void)strcat(there, key[k]);
    }
    CHECK(sets > 0 && sets < 8);
    if (!info_reaches(c, "used_memory_vectors", false, before + (with - before) * (2 * sets + 1) / 16))
        complain(__LINE__, "%d of 8 sets are there, and %lld of %lld bytes of vectors", sets,
                 info(c, "used_memory_vectors") - before, with - before);
    shim->full[0] = 0;
    s = restarted(s, options, &c, __LINE__);
    REQUIRE(s != NULL);
    for (k = 0; k < 8; k++) {
        (void)sprintf(line, "VCARD %s", key[k]);
        says(c, line, strstr(there, key[k]) != NULL ? ":50\r\n" : ":0\r\n");
    }
    CHECK(info_reaches(c, "used_memory_vectors", false, before + (with - before) * (2 * sets + 1) / 16));
    without_shim();
}

/* ===================================================================================================================
 * KILLED STARTS: first starts, second starts, changes of the number of cores
 * ================================================================================================================ */

static void sleep_us(long us) {
    struct timespec t;
    t.tv_sec = us / 1000000, t.tv_nsec = us % 1000000 * 1000;
    while (nanosleep(&t, &t) != 0) {}
}

/* A start on `dir` that is killed after so many microseconds. True: it was ready by then. */
static bool killed_after(const char *dir, const char *options, long us) {
    server s;
    struct pollfd p;
    bool ready;
    server_launch(&s, test_dir(), dir, options);
    sleep_us(us);
    p.fd = s.out, p.events = POLLIN;
    ready = poll(&p, 1, 0) > 0 && (p.revents & POLLIN) != 0;
    (void)server_signal(&s, SIGKILL);
    return ready;
}

/* A start that dies just before its Nth call that changes files. True: it became ready before that. */
static bool killed_at_call(const char *dir, const char *options, int n) {
    server s;
    struct pollfd p;
    bool ready;
    __atomic_store_n(&shim->calls, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&shim->die_at, n, __ATOMIC_RELAXED);
    before_exec = use_shim;
    server_launch(&s, test_dir(), dir, options);
    p.fd = s.out, p.events = POLLIN;
    ready = poll(&p, 1, PATIENCE_MS) > 0 && (p.revents & POLLIN) != 0; /* else its end was seen */
    (void)server_signal(&s, SIGKILL);
    before_exec = NULL;
    return ready;
}

/* A directory whose first start was killed: it starts, and what is written then is there after another kill. */
static bool works_now(const char *dir, const char *options, int moment) {
    server *s = server_start(dir, options);
    client *c;
    bool good;
    if (s == NULL) {
        complain(__LINE__, "it had been killed at moment %d", moment);
        return false;
    }
    c = client_open(s->port);
    good = answers(c, "DBSIZE", ":0\r\n") && answers(c, "SET k v", "+OK\r\n") &&
           answers(c, "VADD s VALUES 2 1 0 e", ":1\r\n") && answers(c, "GET k", "$1\r\nv\r\n");
    if (!good) complain(__LINE__, "moment %d: it answers \"%.100s\"", moment, c->reply.p);
    client_hang_up(c);
    (void)server_signal(s, SIGKILL);
    return good;
}

/* Microseconds from the launch to readiness, of a directory that is new. */
static long start_takes(const char *dir, const char *options) {
    uint64_t begin = clock_ms();
    server *s = server_start(dir, options);
    if (s == NULL) return -1;
    begin = clock_ms() - begin;
    (void)server_signal(s, SIGKILL);
    return (long)(begin + 1) * 1000;
}

/* Half of the moments are 0.4 ms apart, where directories and the manifest are made; the rest spread over the start. */
static long moment_us(int i, int moments, long whole_us) {
    long early = 400L * (i < moments / 2 ? i : moments / 2);
    return i < moments / 2 ? early : early + (whole_us * 11 / 10 - early) * (i - moments / 2) / (moments - moments / 2);
}

DB_TEST(a_first_start_that_is_killed_at_any_moment_leaves_a_directory_that_starts) {
    enum { RUNS = 40 };
    char dir[PATH_BYTES];
    long whole = start_takes(format(dir, "%s/clean", ram_dir()), "--cores 2");
    int i, ready = 0, broken = 0;
    REQUIRE(whole > 0);
    remove_dir(dir);
    for (i = 0; i < RUNS && broken < 4; i++) {
        format(dir, "%s/killed-%d", ram_dir(), i);
        ready += killed_after(dir, "--cores 2", moment_us(i, RUNS, whole));
        if (i % 4 == 0) (void)killed_after(dir, "--cores 2", moment_us(i / 2, RUNS, whole)); /* the second start, too */
        broken += !works_now(dir, "--cores 2", i);
        remove_dir(dir);
    }
    fprintf(stderr, "note: %d first starts were killed after 0 to %.1f ms, half in steps of 0.4 ms; %d were ready\n", i,
            (double)moment_us(i - 1, RUNS, whole) / 1000, ready);
}

DB_TEST(a_first_start_that_dies_between_any_two_changes_of_files_leaves_a_directory_that_starts) {
    enum { RUNS = 28 };
    char dir[PATH_BYTES];
    int i, broken = 0, calls, last = 0, runs = 0;
    if (!with_shim()) return;
    CHECK(killed_at_call(format(dir, "%s/clean", ram_dir()), "--cores 2", 1 << 30));
    calls = (int)shim->calls; /* of a whole start */
    remove_dir(dir);
    if (calls == 0) {
        fprintf(stderr, "skipped: %s: the program does not change files through the C library\n", test_name);
        return;
    }
    for (i = 0; i < (test_long ? calls : RUNS) && broken < 4; i++) {
        int n = test_long ? i + 1 : i < 8 ? i + 1 : 9 + (i - 8) * (calls - 8) / (RUNS - 8);
        if (n == last || n > calls) continue;
        last = n, runs++;
        format(dir, "%s/killed-%d", ram_dir(), n);
        (void)killed_at_call(dir, "--cores 2", n);
        broken += !works_now(dir, "--cores 2", n);
        remove_dir(dir);
    }
    fprintf(stderr, "note: a first start makes about %d changes; %d of them were its last\n", calls, runs);
}

/* Data for changes of the number of cores: keys, times to live, vector sets. */
enum { CHANGE_KEYS = 300, CHANGE_DIM = 8, CHANGE_ELEMENTS = 40 };
static char *change_truth[3];

static void change_fill(client *c) {
    float v[CHANGE_DIM];
    char name[32], key[32];
    int i, set;
    for (i = 0; i < CHANGE_KEYS; i++) putf(c, i % 3 == 0 ? "SET k%d %d EX 5000" : "SET k%d %d", i, i);
    for (set = 0; set < 3; set++)
        for (i = 0; i < CHANGE_ELEMENTS; i++) {
            make_vector((uint64_t)(set * 1000 + i), v, CHANGE_DIM);
            (void)sprintf(name, "e%d", i), (void)sprintf(key, "s%d", set);
            put_vadd(c, key, name, v, CHANGE_DIM);
        }
    for (i = 0; i < CHANGE_KEYS + 3 * CHANGE_ELEMENTS; i++) CHECK(*reply(c) != '-');
    for (set = 0; set < 3; set++) {
        make_vector((uint64_t)(set + 77), v, CHANGE_DIM);
        (void)sprintf(key, "s%d", set);
        put_vsim(c, key, v, CHANGE_DIM, "WITHSCORES COUNT 15 TRUTH");
        free(change_truth[set]);
        change_truth[set] = strdup(reply(c));
    }
}

static bool change_is_complete(client *c, const char *when) {
    float v[CHANGE_DIM];
    int i, set, wrong = 0, ttls = 0, sets = 0;
    for (i = 0; i < CHANGE_KEYS; i++) putf(c, "GET k%d", i), putf(c, "TTL k%d", i);
    for (i = 0; i < CHANGE_KEYS; i++) {
        char want[32], digits[12];
        long long ttl;
        int n = sprintf(digits, "%d", i);
        (void)sprintf(want, "$%d\r\n%s\r\n", n, digits);
        wrong += strcmp(reply(c), want) != 0;
        ttl = atoll(reply(c) + 1);
        ttls += i % 3 == 0 ? ttl < 4900 || ttl > 5000 : ttl != -1;
    }
    for (set = 0; set < 3; set++) {
        char key[16];
        make_vector((uint64_t)(set + 77), v, CHANGE_DIM);
        (void)sprintf(key, "s%d", set);
        put_vsim(c, key, v, CHANGE_DIM, "WITHSCORES COUNT 15 TRUTH");
        sets += !same_answers(reply(c), change_truth[set]);
    }
    i = answers(c, "DBSIZE", ":303\r\n");
    if (wrong + ttls + sets > 0 || !i)
        complain(__LINE__, "%s: %d values, %d times to live and %d sets are wrong; DBSIZE%s", when, wrong, ttls, sets,
                 i ? "" : ", too");
    return wrong + ttls + sets == 0 && i;
}

/* Starts with `cores`, checks that all is there, ends in order or not. */
static bool change_checked(const char *dir, int cores, bool in_order, const char *when) {
    char options[32];
    server *s;
    client *c;
    bool good;
    (void)sprintf(options, "--cores %d", cores);
    s = server_start(dir, options);
    if (s == NULL) {
        complain(__LINE__, "%s", when);
        return false;
    }
    c = client_open(s->port);
    good = change_is_complete(c, when);
    client_hang_up(c);
    if (in_order) CHECK_EQ(server_signal(s, SIGTERM), 0);
    else (void)server_signal(s, SIGKILL);
    return good;
}

/* What a directory with the same data takes that was never interrupted, by its number of cores. */
static struct { long long bytes, files, dirs; } change_reference[3];
static long change_takes_us, change_calls; /* the latter if there is a shim */

static bool make_references(void) {
    char dir[PATH_BYTES];
    uint64_t begin;
    int cores;
    server *s = server_start(format(dir, "%s/reference", ram_dir()), "--cores 1");
    if (s == NULL) return false;
    change_fill(client_open(s->port));
    (void)server_signal(s, SIGKILL);
    if (shim != NULL) before_exec = use_shim, shim->calls = shim->die_at = 0;
    begin = clock_ms();
    s = server_start(dir, "--cores 2");
    before_exec = NULL;
    if (shim != NULL) change_calls = (long)__atomic_load_n(&shim->calls, __ATOMIC_RELAXED);
    change_takes_us = (long)(clock_ms() - begin + 1) * 1000;
    if (s == NULL) return false;
    (void)server_signal(s, SIGKILL);
    for (cores = 1; cores < 3; cores++) {
        if (!change_checked(dir, cores, false, "the reference") || !change_checked(dir, cores, true, "the reference"))
            return false;
        change_reference[cores].bytes = tree_bytes(dir), change_reference[cores].dirs = tree.dirs;
        change_reference[cores].files = tree.files;
    }
    remove_dir(dir);
    return true;
}

static void check_leftovers(const char *dir, int cores, const char *when) {
    long long bytes = tree_bytes(dir);
    if (bytes > 2 * change_reference[cores].bytes + 4 * MIB || tree.dirs > change_reference[cores].dirs ||
        tree.files > change_reference[cores].files + 12)
        complain(__LINE__, "%s: %lld KiB in %lld files and %lld directories are left, not about %lld, %lld and %lld",
                 when, bytes >> 10, tree.files, tree.dirs, change_reference[cores].bytes >> 10,
                 change_reference[cores].files, change_reference[cores].dirs);
}

/* `kill_it` interrupts a start with another number of cores at its moment; then the directory starts with either
 * number, complete, and without anything of the attempt. */
static void changes_survive(int moments, bool (*kill_it)(const char *dir, const char *options, int moment)) {
    char when[PATH_BYTES], options[32], dir[PATH_BYTES];
    int cores = 1, moment, ready = 0;
    server *s;
    REQUIRE(make_references());
    s = server_start(ram_data(), "--cores 1");
    REQUIRE(s != NULL);
    (void)memcpy(dir, s->dir, sizeof dir);
    change_fill(client_open(s->port));
    (void)server_signal(s, SIGKILL);
    for (moment = 0; moment < moments && test_failures_here < 6; moment++) {
        int other = 3 - cores, next = moment % 2 == 0 ? cores : other;
        (void)sprintf(options, "--cores %d", other);
        ready += kill_it(dir, options, moment);
        format(when, "from %d to %d cores, killed at moment %d, started with %d", cores, other, moment, next);
        if (!change_checked(dir, next, moment % 3 == 0, when)) break;
        cores = next;
        check_leftovers(dir, cores, when);
    }
    fprintf(stderr, "note: %d changes were interrupted, of which %d were over\n", moment, ready);
}

enum { CHANGE_MOMENTS = 14 };
static bool kill_change_by_time(const char *dir, const char *options, int moment) {
    return killed_after(dir, options, moment_us(moment, CHANGE_MOMENTS, change_takes_us));
}
DB_TEST(a_change_of_cores_that_is_killed_at_any_moment_loses_nothing_and_leaves_nothing_behind) {
    without_shim();
    changes_survive(CHANGE_MOMENTS, kill_change_by_time);
}

static bool kill_change_by_call(const char *dir, const char *options, int moment) {
    return killed_at_call(dir, options, 1 + (int)(change_calls * moment / CHANGE_MOMENTS));
}
DB_TEST(a_change_of_cores_that_dies_between_two_changes_of_files_loses_nothing_and_leaves_nothing_behind) {
    if (!with_shim()) return;
    changes_survive(CHANGE_MOMENTS, kill_change_by_call);
    fprintf(stderr, "note: such a change makes about %ld changes of files\n", change_calls);
}

/* ===================================================================================================================
 * REMOVED DATA: logs, checkpoints, segments, the manifest
 * ================================================================================================================ */

enum { OLD_KEYS = 60 }; /* of each kind: a: in the checkpoint, b: in the log behind it, c: in its newest segment */

static void fill_removed(client *c, const char *prefix) {
    int i;
    for (i = 0; i < OLD_KEYS; i++) putf(c, "SET %s%d marker-%s%d-", prefix, i, prefix, i);
    for (i = 0; i < OLD_KEYS; i++) next_is(c, "+OK\r\n");
}

/* A directory with a checkpoint and a log of several segments. */
static bool make_removable(const char *dir) {
    static const char *const kinds[] = {"a", "b", "c"};
    int kind;
    for (kind = 0; kind < 3; kind++) {
        server *s = server_start(dir, "--cores 2");
        client *c;
        if (s == NULL) return false;
        c = client_open(s->port);
        fill_removed(c, kinds[kind]);
        if (kind == 0) says(c, "SAVE", "+OK\r\n");
        if (kind == 2) sleep_ms(1200); /* how far a shard has come may be noted once in a second */
        if (kind < 2) CHECK_EQ(server_signal(s, SIGTERM), 0);
        else (void)server_signal(s, SIGKILL);
    }
    return true;
}

/* A start that must be refused, with all parts (up to NULL) in stderr. If it becomes ready, that ends the wait. */
static void must_refuse(int line, const char *dir, const char *options, ...) {
    server s;
    struct pollfd p;
    const char *part;
    va_list parts;
    char *text;
    server_launch(&s, test_dir(), dir, options);
    p.fd = s.out, p.events = POLLIN;
    if (poll(&p, 1, PATIENCE_MS) <= 0 || (p.revents & POLLIN) != 0) {
        complain(line, "%s starts on %s", options, strrchr(dir, '/'));
        (void)server_signal(&s, SIGKILL);
        return;
    }
    (void)server_wait(&s);
    text = server_errors(&s);
    if (!WIFEXITED(s.status) || WEXITSTATUS(s.status) != 1)
        complain(line, "the wait status is %#x: %.400s", (unsigned)s.status, text);
    va_start(parts, options);
    while ((part = va_arg(parts, const char *)) != NULL)
        if (strstr(text, part) == NULL) complain(line, "stderr \"%.400s\" does not contain \"%s\"", text, part);
    va_end(parts);
    free(text);
}

/* `victim` is removed from a copy of `dir`. The start is refused, says what is missing, and changes nothing. With
 * --force-empty it starts, keeps what is left of `keeps` (or NULL), and from then on starts as any other. */
static void missing_is_said(int line, const char *dir, const char *victim, const char *part, const char *keeps,
                            int keys) {
    char copy[PATH_BYTES], forced[PATH_BYTES], gone[PATH_BYTES], aside[PATH_BYTES], want[32];
    const char *name = victim + strlen(dir) + 1;
    int failures = test_failures_here;
    server *s;
    client *c;
    format(copy, "%s/copy", ram_dir()), format(forced, "%s/forced", ram_dir());
    format(gone, "%s/%s", copy, name), format(aside, "%s/aside", ram_dir());
    REQUIRE(shell("rm -rf '%s' '%s' '%s' && cp -a --sparse=always '%s' '%s' && mv '%s' '%s'", copy, forced, aside, dir,
                  copy, gone, aside));
    must_refuse(line, copy, "--cores 2", part, "missing", "--force-empty", NULL);
    if (test_failures_here == failures) must_refuse(line, copy, "--cores 1", part, "missing", "--force-empty", NULL);
    if (test_failures_here > failures) {
        complain(line, "this was without %s", name);
        return;
    }
    REQUIRE(shell("cp -a --sparse=always '%s' '%s' && mv '%s' '%s'", copy, forced, aside, gone));
    s = server_start(copy, "--cores 2"); /* the refused start has changed nothing */
    REQUIRE(s != NULL);
    (void)sprintf(want, ":%d\r\n", keys);
    says_at(line, client_open(s->port), "DBSIZE", want);
    (void)server_signal(s, SIGKILL);
    s = server_start(forced, "--cores 2 --force-empty");
    REQUIRE(s != NULL);
    c = client_open(s->port);
    if (keeps != NULL && count_existing(c, keeps, OLD_KEYS) == 0)
        complain(line, "without %s, --force-empty forgets %s0 to %s%d as well", name, keeps, keeps, OLD_KEYS - 1);
    says_at(line, c, "SET new v", "+OK\r\n");
    (void)server_signal(s, SIGKILL);
    s = server_start(forced, "--cores 2");
    REQUIRE(s != NULL);
    says_at(line, client_open(s->port), "GET new", "$1\r\nv\r\n");
    (void)server_signal(s, SIGKILL);
}

DB_TEST(data_that_somebody_removed_are_missed_by_name_and_only_force_empty_goes_on) {
    char path[PATH_BYTES], core[PATH_BYTES], dir[PATH_BYTES], mark[32];
    int i;
    (void)memcpy(dir, ram_data(), sizeof dir);
    REQUIRE(make_removable(dir));
    REQUIRE(find_last(dir, "core-", NULL, core));
    (void)memcpy(path, core, sizeof path);
    *strrchr(path, '/') = 0;
    if (strcmp(path, dir) != 0) missing_is_said(__LINE__, dir, path, strrchr(path, '/') + 1, NULL, 180);
    missing_is_said(__LINE__, dir, core, strrchr(core, '/') + 1, "a", 180);
    REQUIRE(find_last(core, "checkpoint", NULL, path));
    missing_is_said(__LINE__, dir, path, "checkpoint", NULL, 180);
    REQUIRE(find_last(dir, "MANIFEST", NULL, path));
    missing_is_said(__LINE__, dir, path, "MANIFEST", NULL, 180);
    for (i = 0; i < OLD_KEYS; i++) { /* the newest segment of this core that has something */
        (void)sprintf(mark, "marker-c%d-", i);
        if (find_last(core, "", mark, path)) break;
    }
    REQUIRE(i < OLD_KEYS);
    missing_is_said(__LINE__, dir, path, strrchr(core, '/') + 1, "a", 180);
}

DB_TEST(a_newest_segment_of_the_log_that_somebody_removed_is_missed_after_an_orderly_end_as_well) {
    char dir[PATH_BYTES], segment[PATH_BYTES];
    server *s;
    (void)memcpy(dir, ram_data(), sizeof dir);
    s = server_start(dir, "--cores 1");
    REQUIRE(s != NULL);
    fill_removed(client_open(s->port), "a");
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    REQUIRE(find_last(dir, "", "marker-a0-", segment));
    missing_is_said(__LINE__, dir, segment, "core-0", NULL, OLD_KEYS); /* there is no other */
    s = server_start(dir, "--cores 1");
    REQUIRE(s != NULL);
    fill_removed(client_open(s->port), "c");
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    REQUIRE(find_last(dir, "", "marker-c0-", segment));
    missing_is_said(__LINE__, dir, segment, "core-0", NULL, 2 * OLD_KEYS);
}

static uint32_t crc32c_of(const char *text) {
    uint32_t crc = 0xFFFFFFFFu;
    int bit;
    for (; *text != 0; text++)
        for (crc ^= (unsigned char)*text, bit = 0; bit < 8; bit++)
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    return ~crc;
}

static void write_text(const char *path, const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(text, 1, n, f) != n) complain(__LINE__, "cannot write %s", path);
    if (f != NULL) (void)fclose(f);
}

DB_TEST(a_manifest_that_is_cut_or_damaged_is_refused_by_name_and_a_directory_of_version_0_1_as_well) {
    server *s = server_start(ram_data(), "--cores 2");
    char path[PATH_BYTES], old[PATH_BYTES], text[128], *whole, *copy;
    size_t n = 0, i;
    REQUIRE(s != NULL);
    says(client_open(s->port), "SET k v", "+OK\r\n");
    (void)server_signal(s, SIGKILL);
    REQUIRE(find_last(ram_data(), "MANIFEST", NULL, path));
    whole = file_text(path, &n);
    copy = malloc(n + 1);
    REQUIRE(whole != NULL && copy != NULL && n > 0);
    for (i = 0; i + 1 < n; i += 1 + n / 8) { /* cut; not only its last newline, which is no loss */
        write_text(path, whole, i);
        must_refuse(__LINE__, ram_data(), "--cores 2", "MANIFEST", NULL);
    }
    for (i = 0; i + 1 < n; i += 1 + n / 12) { /* a bit that does not only make a capital letter */
        memcpy(copy, whole, n);
        copy[i] = (char)(copy[i] ^ 1 << i % 4);
        write_text(path, copy, n);
        must_refuse(__LINE__, ram_data(), "--cores 2", "MANIFEST", NULL);
    }
    write_text(path, whole, n);
    free(whole), free(copy);
    s = server_start(ram_data(), "--cores 2");
    REQUIRE(s != NULL);
    says(client_open(s->port), "GET k", "$1\r\nv\r\n");
    format(old, "%s/old", ram_dir());
    REQUIRE(shell("mkdir -p '%s/gen-1/core-0' '%s/gen-1/core-1'", old, old));
    format(path, "%s/MANIFEST", old);
    (void)sprintf(text, "nodedb 1 cores 2 generation 1");
    (void)sprintf(text + strlen(text), " check %08x\n", (unsigned)crc32c_of(text));
    write_text(path, text, strlen(text));
    must_refuse(__LINE__, old, "--cores 2", "MANIFEST", "0.1", NULL);
    must_refuse(__LINE__, old, "--cores 1", "MANIFEST", "0.1", NULL);
    whole = file_text(path, NULL);
    CHECK(whole != NULL && strcmp(whole, text) == 0); /* and it is as it was */
    free(whole);
}

/* ===================================================================================================================
 * DURABILITY: --durability interval, SIGHUP, the length of the log
 * ================================================================================================================ */

enum { HAMMER_CLIENTS = 32, HAMMER_DIM = 256, PROBES = 4000, LONG_BYTES = 60000 };

/* Keys that a pattern fits nearly, and a SCAN for it: a matcher that goes back and forth is busy for seconds. */
static void put_long_keys(client *c) {
    static char key[LONG_BYTES];
    int i;
    memset(key, 'a', sizeof key);
    for (i = 0; i < 8; i++) {
        key[0] = (char)('a' + i);
        put_array(c, 3), put_text(c, "SET"), put_arg(c, key, sizeof key), put_text(c, "v");
    }
    for (i = 0; i < 8; i++) next_is(c, "+OK\r\n");
}
static void put_long_scan(client *c) {
    static char pattern[LONG_BYTES / 3];
    memset(pattern, 'a', sizeof pattern);
    pattern[0] = '*', pattern[sizeof pattern - 1] = 'b';
    put_array(c, 6), put_text(c, "SCAN"), put_text(c, "0"), put_text(c, "MATCH"), put_arg(c, pattern, sizeof pattern);
    put_text(c, "COUNT"), put_text(c, "100000");
}

/* Commands that together keep the cores busy for a second or more; the replies are never looked at. */
static void hammer(client *c, int seed) {
    float v[HAMMER_DIM];
    int i, k;
    char key[32], name[32];
    for (i = 0; i < 50; i++) {
        make_vector((uint64_t)(seed * 100 + i), v, HAMMER_DIM);
        (void)sprintf(name, "e%d:%d", seed, i), put_vadd(c, "v", name, v, HAMMER_DIM);
    }
    put_array(c, 9), put_text(c, "MSET");
    for (k = 0; k < 4; k++)
        put_arg(c, key, (size_t)sprintf(key, "h%d:%d", seed, k)), put_arg(c, value_of(k, seed, 512), 512);
    for (i = 0; i < 5; i++) put_vsim(c, "v", v, HAMMER_DIM, "COUNT 1000 EF 5000");
    if (seed == 0) c->out.len = 0, put_long_scan(c);
    (void)!send(c->fd, c->out.p, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    c->out.len = c->out_at = 0;
}

/* SETs in quick succession, from a connection of each core, before and during a burst of expensive commands. Whatever
 * was acknowledged 250 ms before the kill is there. */
static void interval_holds(server *s, int round, int *lost, int *old_enough, long long *longest_ms) {
    static uint64_t acked_ms[2][PROBES];
    client *probe[2], *hammers[HAMMER_CLIENTS], *c;
    int sent[2] = {0, 0}, got[2] = {0, 0}, i, k;
    uint64_t begin, burst, end, now, last;
    bool bursting = false;
    for (i = 0; i < HAMMER_CLIENTS; i++) hammers[i] = client_open(s->port);
    for (k = 0; k < 2; k++) probe[k] = client_open(s->port);
    put_long_keys(hammers[0]);
    begin = last = clock_ms(), burst = begin + 150 + (uint64_t)round * 23, end = burst + 400;
    while ((now = clock_ms()) < end) {
        for (k = 0; k < 2; k++) {
            if (sent[k] == got[k] && sent[k] < PROBES) putf(probe[k], "SET p%d:%d:%d v", round, k, sent[k]), sent[k]++;
            client_io(probe[k], 1);
            while (probe[k]->in.len - probe[k]->in_at >= 5) {
                probe[k]->in_at += 5;
                acked_ms[k][got[k]++] = last = clock_ms();
            }
        }
        if ((long long)(now - last) > *longest_ms) *longest_ms = (long long)(now - last);
        if (!bursting && now >= burst) {
            for (i = 0; i < HAMMER_CLIENTS; i++) hammer(hammers[i], i);
            bursting = true;
        }
    }
    now = clock_ms();
    s = restarted(s, "--cores 2 --durability interval", &c, __LINE__);
    if (s == NULL) return;
    for (k = 0; k < 2; k++) {
        int n = 0;
        while (n < got[k] && acked_ms[k][n] + 250 < now) n++;
        for (i = 0; i < n; i++) putf(c, "EXISTS p%d:%d:%d", round, k, i);
        for (i = 0; i < n; i++) *lost += strcmp(reply(c), ":1\r\n") != 0;
        *old_enough += n;
    }
    says(c, "FLUSHALL", "+OK\r\n");
}

DB_TEST(with_durability_interval_what_was_acknowledged_a_quarter_of_a_second_ago_is_there_however_busy_the_cores_are) {
    server *s = server_start(ram_data(), "--cores 2 --durability interval");
    int round, lost = 0, old_enough = 0, i;
    long long longest_ms = 0;
    REQUIRE(s != NULL);
    for (round = 0; round < 5; round++) {
        for (i = 0; i < MAX_SERVERS && servers[i].pid == 0; i++) {}
        REQUIRE(i < MAX_SERVERS);
        interval_holds(&servers[i], round, &lost, &old_enough, &longest_ms);
    }
    if (lost > 0)
        complain(__LINE__, "%d of %d writes that were acknowledged 250 ms before the kill are lost", lost, old_enough);
    CHECK(old_enough > 50);
    fprintf(stderr, "note: %d writes were old enough; the longest time without a reply was %lld ms\n", old_enough,
            longest_ms);
}

DB_TEST(when_its_terminal_closes_the_server_ends_in_order_and_keeps_all_that_was_acknowledged) {
    static const char *const modes[] = {"--cores 2 --durability always", "--cores 2 --durability interval"};
    int mode, i;
    for (mode = 0; mode < 2; mode++) {
        server *s = server_start(ram_data(), modes[mode]);
        client *c;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        for (i = 0; i < 2000; i++) putf(c, "SET k%d:%d v", mode, i);
        for (i = 0; i < 2000; i++) next_is(c, "+OK\r\n");
        CHECK_EQ(server_signal(s, SIGHUP), 0);
        s = server_start(ram_data(), modes[mode]);
        REQUIRE(s != NULL);
        c = client_open(s->port);
        CHECK_EQ(number(c, "DBSIZE"), 2000 * (mode + 1));
        CHECK_EQ(server_signal(s, SIGTERM), 0);
    }
}

DB_TEST(a_lone_counter_does_not_fill_the_disk_as_checkpoints_come_by_themselves) {
    enum { COUNTS = 4400, OVERWRITES = 1600, BYTES = 65536 };
    server *s = server_start(ram_data(), "--cores 1 --log-limit 16M");
    client *c;
    long long count = 0, most = 0, limit = (5 * 16 + 8) * MIB, before, checkpoints;
    uint64_t until;
    int i, k;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    before = info(c, "checkpoints");
    for (i = 0; i < COUNTS && !c->closed; i++) { /* one at a time: each takes a block of the log */
        count = number(c, "INCR n");
        if (i % 1000 == 0 && tree_bytes(ram_data()) > most) most = tree.bytes;
    }
    CHECK_EQ(count, COUNTS);
    CHECK(info_reaches(c, "checkpoints", true, before + 1)); /* it has written 17 MiB */
    checkpoints = info(c, "checkpoints") - before;
    if (tree_bytes(ram_data()) > most) most = tree.bytes;
    if (most > limit) complain(__LINE__, "the directory took %lld MiB", most / MIB);
    for (i = 0; i < OVERWRITES; i += 8) { /* 100 MiB more, of which 64 KiB are data */
        for (k = i; k < i + 8; k++) put_set(c, "big", 0, k, BYTES);
        for (k = i; k < i + 8 && *reply(c) == '+'; k++) {}
        if (k < i + 8) break;
    }
    CHECK_EQ(i, OVERWRITES);
    until = clock_ms() + PATIENCE_MS; /* a log may grow faster than checkpoints are made, but not for long */
    while (tree_bytes(ram_data()) > limit && clock_ms() < until) sleep_ms(50);
    if (tree.bytes > limit) complain(__LINE__, "the directory takes %lld MiB", tree.bytes / MIB);
    CHECK(info(c, "checkpoints") > before + checkpoints);
    s = restarted(s, "--cores 1 --log-limit 16M", &c, __LINE__);
    REQUIRE(s != NULL);
    CHECK_EQ(number(c, "INCR n"), COUNTS + 1);
    putf(c, "GET big0");
    CHECK(reply_is_value(c, 0, OVERWRITES - 1, BYTES));
    says(c, "DBSIZE", ":2\r\n");
}

/* ===================================================================================================================
 * CORES AND PROCESSES: degraded cores, limits of threads, modes of files
 * ================================================================================================================ */

static int degraded_core(client *c) {
    const char *text = ask(c, "INFO"), *at = text;
    while ((at = strstr(at, "\ncore")) != NULL) {
        int core = atoi(at += 5);
        const char *end = strchr(at, '\n'), *flag = strstr(at, "degraded=1");
        if (flag != NULL && end != NULL && flag < end) return core;
    }
    return -1;
}

DB_TEST(with_one_core_degraded_what_needs_all_cores_names_it_and_does_all_or_nothing) {
    enum { KEYS = 200 };
    server *s = server_start(ram_data(), "--cores 2 --enable-debug-command");
    client *a, *b;
    char core[16], line[128], keys[64];
    const char *r;
    int i, flushed = 0, msets = 0, core_number, partly = 0;
    REQUIRE(s != NULL);
    a = client_open(s->port), b = client_open(s->port); /* one on each core */
    for (i = 0; i < KEYS; i++) putf(b, "SET k%d v", i);
    for (i = 0; i < KEYS; i++) next_is(b, "+OK\r\n");
    for (i = 0; i < 3; i++) begins(a, "DEBUG PANIC", "-ERR ");
    core_number = degraded_core(b);
    REQUIRE(core_number >= 0);
    (void)sprintf(core, "core %d", core_number);
    r = strstr(ask(b, "INFO"), "db0:keys=");
    CHECK_EQ(r != NULL ? atoi(r + 9) : -1, KEYS);
    if (!answers(b, "DBSIZE", ":200\r\n")) CHECK_HAS(b->reply.p, core);
    for (i = 0; i < 8; i++) { /* MSET over both cores */
        int k, there = 0, hidden = 0;
        (void)sprintf(line, "MSET m%d:0 x m%d:1 x m%d:2 x m%d:3 x m%d:4 x m%d:5 x", i, i, i, i, i, i);
        r = ask(b, line);
        msets += *r == '+';
        if (*r != '+') CHECK_HAS(r, core);
        for (k = 0; k < 6; k++) {
            (void)sprintf(line, "EXISTS m%d:%d", i, k);
            r = ask(b, line);
            there += *r == ':' && r[1] == '1', hidden += *r == '-';
        }
        partly += there > 0 && there + hidden < 6;
        partly += there > 0 && *r == '-';
    }
    r = ask(b, "FLUSHALL");
    flushed = *r == '+';
    if (!flushed) CHECK_HAS(r, core);
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    s = server_start(ram_data(), "--cores 2");
    REQUIRE(s != NULL);
    a = client_open(s->port);
    i = count_existing(a, "k", KEYS);
    if (i != (flushed ? 0 : KEYS))
        complain(__LINE__, "FLUSHALL %s, and %d of %d keys are there", flushed ? "was done" : "failed", i, KEYS);
    for (i = 0; i < 8; i++) {
        (void)sprintf(keys, "m%d:", i);
        core_number = count_existing(a, keys, 6);
        if (core_number != 0 && core_number != 6) partly++;
    }
    if (partly > 0) complain(__LINE__, "MSETs were done in part (%d of 8 answered OK)", msets);
}

/* ---- one core stands still, because its thread is stopped ------------------------------------------------------- */

static pid_t core_thread(const server *s, int core) {
    char path[PATH_BYTES], want[32], *name;
    DIR *d = opendir(format(path, "/proc/%d/task", (int)s->pid));
    struct dirent *e;
    pid_t found = 0;
    (void)sprintf(want, "nodedb-%d\n", core);
    while (d != NULL && (e = readdir(d)) != NULL) {
        name = file_text(format(path, "/proc/%d/task/%s/comm", (int)s->pid, e->d_name), NULL);
        if (name != NULL && strcmp(name, want) == 0) found = (pid_t)atoi(e->d_name);
        free(name);
    }
    if (d != NULL) (void)closedir(d);
    return found;
}

/* 0, with a printed reason: it cannot be done here. */
static pid_t core_stopped(const server *s, int core) {
    pid_t thread = core_thread(s, core);
    int status;
    if (thread != 0 && ptrace(PTRACE_SEIZE, thread, NULL, NULL) == 0 &&
        ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) == 0 && waitpid(thread, &status, __WALL) == thread)
        return thread;
    fprintf(stderr, "skipped: %s needs to stop a thread: %s\n", test_name, strerror(errno));
    return 0;
}

/* Core 1 degrades when it has granted what `command` needs of all cores, and before it is told to do it: core 2, which
 * has not granted it yet, stands still meanwhile. */
static void degrades_before(const char *command, const char *name) {
    enum { KEYS = 60 };
    char dir[PATH_BYTES];
    server *s = server_start(format(dir, "%s/%s", ram_dir(), name), "--cores 3 --enable-debug-command");
    client *a, *b, *second;
    pid_t thread;
    bool done, set = strcmp(name, "MSET") == 0;
    int i, there;
    REQUIRE(s != NULL);
    a = client_open(s->port), b = client_open(s->port); /* on core 0 and core 1 */
    (void)client_open(s->port), second = client_open(s->port); /* core 2, and core 0 again */
    for (i = 0; i < KEYS && !set; i++) putf(a, "SET k%d v", i);
    for (i = 0; i < KEYS && !set; i++) next_is(a, "+OK\r\n");
    says(second, "PING", "+PONG\r\n"); /* all connections have come to their cores */
    if ((thread = core_stopped(s, 2)) == 0) return;
    put_line(a, command);
    client_io(a, 1000);
    for (i = 0; i < 3; i++) says(second, "PING", "+PONG\r\n"); /* behind the command on core 0 */
    for (i = 0; i < 3; i++) begins(b, "DEBUG PANIC", "-ERR ");
    sleep_ms(20);
    CHECK(a->in.len == 0); /* it waits for core 2 */
    CHECK(ptrace(PTRACE_DETACH, thread, NULL, NULL) == 0);
    done = *reply(a) != '-';
    CHECK_EQ(degraded_core(second), 1);
    if (a->late || a->closed) complain(__LINE__, "%s is not answered", name);
    CHECK_EQ(server_signal(s, SIGTERM), 0);
    s = server_start(dir, "--cores 3");
    REQUIRE(s != NULL);
    there = count_existing(client_open(s->port), "k", KEYS);
    if (there != (done == set ? KEYS : 0))
        complain(__LINE__, "%s %s, and %d of %d keys are there", name, done ? "was done" : "was refused", there, KEYS);
    (void)server_signal(s, SIGKILL);
}

static const char *sixty_keys(const char *command, const char *with) {
    static char line[2048];
    size_t at = (size_t)sprintf(line, "%s", command);
    int i;
    for (i = 0; i < 60; i++) at += (size_t)sprintf(line + at, " k%d%s", i, with);
    return line;
}

DB_TEST(a_core_that_degrades_after_it_has_granted_a_command_for_all_cores_still_does_its_part_of_it) {
    without_shim();
    degrades_before("FLUSHALL", "FLUSHALL");
    degrades_before(sixty_keys("DEL", ""), "DEL");
    degrades_before(sixty_keys("MSET", " v"), "MSET");
}

static int process_limit;
static void few_processes(void) {
    struct rlimit l;
    l.rlim_cur = l.rlim_max = (rlim_t)process_limit;
    if (setgid(54321) != 0 || setuid(54321) != 0 || setrlimit(RLIMIT_NPROC, &l) != 0) _exit(125);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* it went with the change of the user */
}

DB_TEST(more_cores_than_the_system_allows_threads_are_refused_in_a_sentence_and_nothing_is_half_made) {
    static const int limits[] = {3, 9, 15, 16};
    char dir[PATH_BYTES], fresh[PATH_BYTES];
    size_t i;
    server s, *t;
    if (geteuid() != 0) {
        fprintf(stderr, "skipped: %s must be root to become another user\n", test_name);
        return;
    }
    (void)memcpy(dir, ram_data(), sizeof dir);
    REQUIRE(shell("chmod 0777 '%s' '%s' && mkdir -p '%s' && chown 54321:54321 '%s'", test_dir(), ram_dir(), dir, dir));
    process_limit = 1000;
    before_exec = few_processes;
    t = server_start(dir, "--cores 2");
    if (t == NULL) {
        fprintf(stderr, "note: may another user run %s and reach %s?\n", program(), dir);
        return;
    }
    fill_removed(client_open(t->port), "a");
    (void)server_signal(t, SIGKILL);
    for (i = 0; i < sizeof limits / sizeof *limits && test_failures_here < 5; i++) {
        const char *where = i % 2 == 0 ? dir : format(fresh, "%s/fresh-%d", ram_dir(), (int)i);
        struct pollfd p;
        char *text;
        int status;
        process_limit = limits[i];
        server_launch(&s, test_dir(), where, "--cores 16");
        p.fd = s.out, p.events = POLLIN;
        if (poll(&p, 1, PATIENCE_MS) > 0 && (p.revents & POLLIN) != 0) { /* it started */
            CHECK_EQ(server_signal(&s, SIGTERM), 0);
        } else {
            status = server_wait(&s);
            text = server_errors(&s);
            if (!WIFEXITED(status) || WEXITSTATUS(status) == 0 || strstr(text, "thread") == NULL)
                complain(__LINE__, "with %d threads the wait status is %#x and stderr \"%.300s\"", process_limit,
                         (unsigned)status, text);
            free(text);
        }
        process_limit = 1000;
        t = server_start(where, "--cores 2");
        if (t == NULL) {
            complain(__LINE__, "that was after a start with %d threads", limits[i]);
            break;
        }
        if (i % 2 == 0) CHECK_EQ(count_existing(client_open(t->port), "a", OLD_KEYS), OLD_KEYS);
        else says(client_open(t->port), "SET k v", "+OK\r\n");
        (void)server_signal(t, SIGKILL);
    }
}

static char too_open[PATH_BYTES];
static int visit_mode(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)at, (void)kind;
    if ((st->st_mode & 07777) != (S_ISDIR(st->st_mode) ? 0700 : 0600))
        format(too_open, "%s has mode %04o", path, (unsigned)(st->st_mode & 07777));
    return 0;
}
static void no_umask(void) { (void)umask(0); }

DB_TEST(files_are_readable_by_their_owner_only_whatever_the_umask) {
    static const char *const options[] = {"--cores 2 --memory 16M", "--cores 1", "--cores 2"};
    int round, i;
    before_exec = no_umask;
    for (round = 0; round < 3; round++) {
        server *s = server_start(data_dir(), options[round]);
        client *c;
        REQUIRE(s != NULL);
        c = client_open(s->port);
        if (round == 0) CHECK_EQ(store(c, "k", 1500, 0, 16384), 1500); /* some of it spills */
        for (i = 0; i < 10; i++) putf(c, "VADD v%d VALUES 2 1 %d e", round, i);
        for (i = 0; i < 10; i++) CHECK(*reply(c) == ':');
        if (round < 2) says(c, "SAVE", "+OK\r\n");
        too_open[0] = 0;
        (void)nftw(data_dir(), visit_mode, 16, FTW_PHYS);
        if (too_open[0] != 0) complain(__LINE__, "%s", too_open);
        CHECK_EQ(server_signal(s, SIGTERM), 0);
    }
}

/* ===================================================================================================================
 * VECTOR SETS: many small ones
 * ================================================================================================================ */

enum { SMALL_DIM = 16, SMALL_ELEMENTS = 3 };

static void add_small_sets(client *c, int from, int to) {
    float v[SMALL_DIM];
    char key[32], name[16];
    int i, e, bad = 0;
    for (i = from; i < to; i++)
        for (e = 0; e < SMALL_ELEMENTS; e++) {
            make_vector((uint64_t)(i * SMALL_ELEMENTS + e), v, SMALL_DIM);
            (void)sprintf(key, "s%d", i), (void)sprintf(name, "e%d", e);
            put_vadd(c, key, name, v, SMALL_DIM);
        }
    for (i = from; i < to; i++)
        for (e = 0; e < SMALL_ELEMENTS; e++) bad += strcmp(reply(c), ":1\r\n") != 0;
    CHECK_EQ(bad, 0);
}

/* In each set, an element's own vector finds it first, and all three are found. */
static void small_sets_answer(int line, client *c, int sets) {
    float v[SMALL_DIM];
    char key[32], first[16];
    int i, bad = 0;
    for (i = 0; i < sets; i++) {
        make_vector((uint64_t)(i * SMALL_ELEMENTS + i % SMALL_ELEMENTS), v, SMALL_DIM);
        (void)sprintf(key, "s%d", i);
        put_vsim(c, key, v, SMALL_DIM, "COUNT 5");
    }
    for (i = 0; i < sets; i++) {
        leaf l[8];
        size_t n = reply_leaves(c, l, 8);
        (void)sprintf(first, "e%d", i % SMALL_ELEMENTS);
        bad += n != SMALL_ELEMENTS || l[0].n != 2 || memcmp(l[0].p, first, 2) != 0;
    }
    if (bad > 0) complain(line, "%d of %d sets answer wrong", bad, sets);
}

DB_TEST(a_small_vector_set_takes_little_memory_and_no_file_of_its_own) {
    enum { MEASURED = 200, SETS = 500 };
    bool counted = with_shim(); /* of syncs; the rest goes without */
    server *s = server_start(data_dir(), "--cores 2");
    client *c;
    long long used, resident;
    char path[PATH_BYTES];
    uint64_t syncs = 0;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    add_small_sets(c, 0, 100); /* what is taken once, is taken now */
    says(c, "FLUSHALL", "+OK\r\n");
    CHECK(info_reaches(c, "used_memory_vectors", false, 0));
    used = info(c, "used_memory"), resident = process_bytes(s->pid, "VmRSS:");
    add_small_sets(c, 0, MEASURED);
    used = info(c, "used_memory") - used, resident = process_bytes(s->pid, "VmRSS:") - resident;
    if (used > MEASURED * 8192) complain(__LINE__, "used_memory grew by %lld bytes for each set", used / MEASURED);
    if (!sanitized() && resident > MEASURED * 8192 + MIB)
        complain(__LINE__, "%lld bytes became resident for each set", resident / MEASURED);
    add_small_sets(c, MEASURED, SETS);
    small_sets_answer(__LINE__, c, SETS);
    if (counted) syncs = __atomic_load_n(&shim->syncs, __ATOMIC_RELAXED);
    says(c, "SAVE", "+OK\r\n");
    if (counted) syncs = __atomic_load_n(&shim->syncs, __ATOMIC_RELAXED) - syncs;
    if (syncs > 40) complain(__LINE__, "SAVE synced %d times", (int)syncs);
    if (find_last(data_dir(), "checkpoint", NULL, path)) { /* of one core */
        (void)tree_bytes(path);
        if (tree.files > 8) complain(__LINE__, "a checkpoint has %lld files", tree.files);
    }
    s = restarted(s, "--cores 2", &c, __LINE__);
    REQUIRE(s != NULL);
    small_sets_answer(__LINE__, c, SETS);
    says(c, "DBSIZE", ":500\r\n");
}

/* ===================================================================================================================
 * NUMBER OF CORES: memory while data move; slots
 * ================================================================================================================ */

enum { MOVED_KEYS = 3000, MOVED_BYTES = 20480, MOVED_SETS = 20, MOVED_ELEMENTS = 300, MOVED_DIM = 16 };
static char *moved_truth[MOVED_SETS];

static void put_truth(client *c, int set) {
    float v[MOVED_DIM];
    char key[16];
    make_vector((uint64_t)set + 999, v, MOVED_DIM);
    (void)sprintf(key, "s%d", set);
    put_vsim(c, key, v, MOVED_DIM, "WITHSCORES COUNT 25 TRUTH");
}

static void make_moved(client *c) {
    float v[MOVED_DIM];
    char key[16], name[16];
    int set, i;
    CHECK_EQ(store(c, "k", MOVED_KEYS, 0, MOVED_BYTES), MOVED_KEYS);
    for (i = 0; i < MOVED_KEYS; i += 7) putf(c, "EXPIRE k%d 5000", i);
    for (i = 0; i < MOVED_KEYS; i += 7) next_is(c, ":1\r\n");
    for (set = 0; set < MOVED_SETS; set++) {
        (void)sprintf(key, "s%d", set);
        for (i = 0; i < MOVED_ELEMENTS; i++) {
            make_vector((uint64_t)(set * 5000 + i), v, MOVED_DIM);
            (void)sprintf(name, "e%d", i);
            put_vadd(c, key, name, v, MOVED_DIM);
        }
        for (i = 0; i < MOVED_ELEMENTS; i++) CHECK(*reply(c) == ':');
    }
    for (set = 0; set < MOVED_SETS; set++) {
        put_truth(c, set);
        free(moved_truth[set]);
        moved_truth[set] = strdup(reply(c));
    }
}

static void check_moved(int line, client *c) {
    int i, wrong = count_wrong(c, "k", 0, MOVED_KEYS, 1, 0, MOVED_BYTES), ttls = 0, sets = 0;
    for (i = 0; i < MOVED_KEYS; i++) putf(c, "TTL k%d", i);
    for (i = 0; i < MOVED_KEYS; i++) {
        long long ttl = atoll(reply(c) + 1);
        ttls += i % 7 == 0 ? ttl < 4900 || ttl > 5000 : ttl != -1;
    }
    for (i = 0; i < MOVED_SETS; i++) {
        put_truth(c, i), sets += !same_answers(reply(c), moved_truth[i]);
        put_line(c, "VCARD s0"), sets += strcmp(reply(c), ":300\r\n") != 0;
    }
    if (wrong + ttls + sets > 0 || !answers(c, "DBSIZE", ":3020\r\n"))
        complain(line, "%d values, %d times to live, %d answers of sets are wrong; DBSIZE is %.20s", wrong, ttls, sets,
                 ask(c, "DBSIZE"));
}

DB_TEST(changes_of_the_number_of_cores_keep_all_within_the_memory_of_a_plain_start_and_say_how_far_they_are) {
    static const char *const cores[] = {"--cores 1", "--cores 2", "--cores 3", "--cores 2"};
    server *s = server_start(data_dir(), cores[0]);
    client *c;
    int step;
    REQUIRE(s != NULL);
    c = client_open(s->port);
    make_moved(c);
    s = restarted(s, cores[0], &c, __LINE__);
    REQUIRE(s != NULL);
    for (step = 1; step < 4 && test_failures_here < 5; step++) {
        long long plain, changing;
        char *text;
        plain = process_bytes(s->pid, "VmHWM:"); /* up to here it has only started */
        CHECK_EQ(server_signal(s, SIGTERM), 0);
        s = server_start(data_dir(), cores[step]);
        REQUIRE(s != NULL);
        changing = process_bytes(s->pid, "VmHWM:");
        if (!sanitized() && changing > plain / 10 * 13 + 8 * MIB)
            complain(__LINE__, "%s: %lld MiB were resident during the change, %lld in a plain start", cores[step],
                     changing / MIB, plain / MIB);
        text = server_errors(s);
        if ((strstr(text, "%") == NULL && strstr(text, "moved") == NULL) || strstr(text, "core") == NULL)
            complain(__LINE__, "no progress is said: \"%.300s\"", text);
        free(text);
        check_moved(__LINE__, client_open(s->port));
        if (step % 2 == 0) CHECK_EQ(server_signal(s, SIGTERM), 0);
        else (void)server_signal(s, SIGKILL);
        s = server_start(data_dir(), cores[step]); /* plain; measured in the next round */
        REQUIRE(s != NULL);
        says(client_open(s->port), "DBSIZE", ":3020\r\n");
    }
}

DB_TEST(the_slot_of_a_key_is_that_of_redis_cluster) {
    client *c = shared_client();
    says(c, "CLUSTER KEYSLOT foo", ":12182\r\n");
    says(c, "CLUSTER KEYSLOT 123456789", ":12739\r\n");
    says(c, "CLUSTER KEYSLOT \"\"", ":0\r\n");
    says(c, "CLUSTER KEYSLOT {foo}bar", ":12182\r\n");
    says(c, "CLUSTER KEYSLOT a{foo}{bar}", ":12182\r\n");
    says(c, "CLUSTER KEYSLOT {}foo", ":9500\r\n"); /* an empty tag is none */
    says(c, "CLUSTER KEYSLOT foo{}{bar}", ":8363\r\n");
    says(c, "CLUSTER KEYSLOT foo{{bar}}zap", ":4015\r\n");
}

int main(int argc, char **argv) {
    (void)signal(SIGPIPE, SIG_IGN);
    (void)atexit(end_shared);
    (void)atexit(remove_ram_dir);
    return test_main("nodedb_machine", argc, argv);
}
