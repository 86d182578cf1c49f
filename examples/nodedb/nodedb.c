/* nodedb - a durable key-value and vector database with pinned cores that speaks the Redis protocol.
 *
 * This file is the runtime: it includes the rooms in reading order, gives each core its hooks, starts and stops.
 *
 * The path of a write, SET, through the functions that it passes:
 *   connection_read -> parser_feed -> dispatch -> run_set -> request_change      on the connection's core
 *     -> [ring] -> operation_run -> operation_log -> change_encode -> nodedb_wal_append   on the core of the key
 *     -> pump_log, when the group is durable -> operation_commit -> apply -> operation_finish
 *     -> [ring] -> request_answer -> request_pump -> reply_result -> flush_connection     back on the first core
 *
 * The path of a search, VSIM:
 *   dispatch -> run_vsim -> OP_SET_INFO -> [ring] -> read_set_info                which set is it: at its home
 *     -> [ring] -> vsim_search -> OP_SEARCH to every core -> [rings] -> read_search -> nodedb_vamana_search
 *     -> [rings] -> vsim_merge -> flush_connection
 *
 * Recovery: open_data -> shard_recover -> newest checkpoint, then the log behind it -> apply, the same as live.
 *
 * What the five headers are here: nodedb_tpc the cores, their rings and the fault guard; nodedb_wal a log for each
 * core; nodedb_mem the one account of all memory, and the overflow files; nodedb_vamana the parts of vector sets;
 * nodedb_prefetch announces values that come back from the overflow file, unmaps what has left, and counts faults. */

#define NODEDB_WAL_IMPLEMENTATION
#define NODEDB_WAL_STATIC
#define NODEDB_MEM_IMPLEMENTATION
#define NODEDB_MEM_STATIC
#define NODEDB_TPC_IMPLEMENTATION
#define NODEDB_TPC_STATIC
#define NODEDB_VAMANA_IMPLEMENTATION
#define NODEDB_VAMANA_STATIC
#define NODEDB_PREFETCH_IMPLEMENTATION
#define NODEDB_PREFETCH_STATIC
#define STB_DS_IMPLEMENTATION
#include "db.h"

/* The rooms, in reading order. */
#include "request.c"          /* a command under way */
#include "operation.c"        /* one step on one shard: admit, log, wait, apply, answer */
#include "shard.c"            /* keys, values, apply() */
#include "read.c"             /* questions to a shard */
#include "vectorset.c"        /* homes and parts of vector sets */
#include "record.c"           /* what is logged */
#include "store.c"            /* checkpoints */
#include "recovery.c"         /* and back */
#include "directory.c"        /* the data directory */
#include "cores.c"            /* another number of cores */
#include "spill.c"            /* cold values leave memory */
#include "memory.c"           /* every byte is counted */
#include "dictionary.c"       /* things by name */
#include "glob.c"             /* patterns */
#include "resp.c"             /* the protocol */
#include "net.c"              /* connections */
#include "commands/strings.c" /* what commands mean */
#include "commands/keys.c"
#include "commands/several.c"
#include "commands/vectors.c"
#include "commands/server.c"
#include "commands/table.c"
#include "options.c"

#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>

/* jemalloc reads this: it returns freed memory to the system soon, so that the counted memory is the used memory. */
extern const char *malloc_conf;
const char *malloc_conf = "dirty_decay_ms:200,muzzy_decay_ms:0,oversize_threshold:262144";

char tag_ring, tag_log, tag_listen;

/* ---- a core's hooks ---------------------------------------------------------------------------------------------- */

/* Each turn: read sockets, apply what has become durable, send replies. */
static size_t core_poll(nodedb_tpc_core *tpc, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    size_t n = outbox_flush(c);
    int i;
    (void)ctx;
    c->turn_operations = TURN_OPERATIONS;
    turn_begin(c);
    if (c->ready == 0) c->ready = epoll_wait(c->epoll, c->events, (int)(sizeof c->events / sizeof *c->events), 0);
    for (i = 0; i < c->ready; i++) {
        void *what = c->events[i].data.ptr;
        if (what == &tag_ring || what == &tag_log) continue; /* every turn looks at both */
        if (what == &tag_listen) accept_some(c);
        else connection_event(c, what, c->events[i].events);
        n++;
    }
    c->ready = 0;
    turn_begin(c);
    n += pump_log(c);
    turn_begin(c);
    n += run_slow(c);
    turn_begin(c);
    n += flush_dirty(c);
    net_report_memory(c);
    turn_begin(c); /* of the messages that follow */
    return n + (c->dirty != NULL) + (c->slow.head != NULL);
}

static void core_wait(nodedb_tpc_core *tpc, void *ctx, uint64_t timeout_ns) {
    core *c = nodedb_tpc_core_data(tpc);
    int ms = (int)((timeout_ns + 999999) / 1000000);
    ptrdiff_t unsent_messages = 0;
    uint32_t i;
    (void)ctx;
    for (i = 0; i < c->server->cores; i++) unsent_messages += arrlen(c->outbox[i]);
    if (unsent_messages > 0 && ms > 1) ms = 1; /* a full ring does not wake its producer */
    if (c->waiting.head != NULL && ms > 1) ms = 1; /* room in the log causes no wake-up */
    if (c->dirty != NULL || c->slow.head != NULL) ms = 0;
    c->ready = epoll_wait(c->epoll, c->events, (int)(sizeof c->events / sizeof *c->events), ms);
    if (c->ready < 0) c->ready = 0;
}

static void core_message(nodedb_tpc_core *tpc, uint32_t from, void *memory, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    message m;
    (void)from, (void)ctx;
    memcpy(&m, memory, sizeof m);
    if (m.kind == MESSAGE_CONNECTION) {
        connection_adopt(c, (int)m.number);
        return;
    }
    operation_arrive(c, m.pointer);
    if (m.kind == MESSAGE_RUN) operation_run(c, m.pointer);
    else request_answer(c, m.pointer);
}

static void every_second(core *c) {
    shard *s = c->shard;
    nodedb_error err;
    note_progress(s, false);
    spill_trim(s);
    if (c->second_ms >= c->next_save_ms && (checkpoint_due(s) || s->save_wanted)) {
        s->save_wanted = false;
        c->next_save_ms = 0;
        if (shard_save(s, &err) == NODEDB_OK) return;
        c->next_save_ms = c->second_ms + RETRY_SAVE_MS;
        nodedb_say(&s->logger, NODEDB_LOG_WARNING, "no checkpoint of core %u: %s", s->index, err.message);
    }
    if (s->reserve_gone) reserve_take(s);
}

/* Housekeeping: each of these does a bounded piece. */
static bool core_maintain(nodedb_tpc_core *tpc, void *ctx, uint64_t budget_ns) {
    core *c = nodedb_tpc_core_data(tpc);
    uint64_t now = steady_ms();
    bool more = retire_some(c->shard, RETIRE_BATCH);
    (void)ctx, (void)budget_ns;
    more = notify_parts_some(c) || more;
    more = sweep_some(c) || more;
    spill_maintain(c->shard);
    maintain_parts(c->shard);
    net_maintain(c);
    if (c->faults_counted)
        (void)nodedb_prefetch_faults_tick(
            &c->faults, nodedb_mem_pressure(c->server->mem, NODEDB_MEM_GLOBAL) >= NODEDB_MEM_CRITICAL, NULL);
    if (now - c->quarter_ms >= 250) {
        c->wall_seen[c->quarters++ % (sizeof c->wall_seen / sizeof *c->wall_seen)] = wall_ms();
        c->quarter_ms = now;
    }
    if (now - c->second_ms >= 1000) {
        c->second_ms = now;
        every_second(c);
    }
    return more;
}

static bool core_pending(nodedb_tpc_core *tpc, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    uint32_t i;
    (void)ctx;
    for (i = 0; i < c->server->cores; i++)
        if (arrlen(c->outbox[i]) > 0) return true;
    if (c->waiting.head != NULL || c->committing.head != NULL || c->slow.head != NULL || c->dirty != NULL ||
        c->in_flight > 0) return true;
    if (!c->ending) net_close_all(c); /* all that was under way is answered */
    return c->first != NULL;
}

static bool watch(core *c, int fd, void *tag) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = tag};
    return epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static nodedb_status core_start(nodedb_tpc_core *tpc, void *ctx, nodedb_error *err) {
    server *srv = ctx;
    core *c = must(calloc(1, sizeof *c));
    nodedb_prefetch_faults_config faults = {.logger = srv->logger};
    uint32_t arena = 0;
    size_t i;
    c->index = nodedb_tpc_core_index(tpc);
    c->server = srv;
    c->tpc = tpc;
    c->shard = srv->shards[c->index];
    if (nodedb_mem_arena_create(&arena, NULL) == NODEDB_OK)
        (void)nodedb_mem_arena_bind_thread(arena, NULL); /* else malloc's own arenas do */
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (c->epoll < 0 || !watch(c, nodedb_tpc_core_fd(tpc), &tag_ring) ||
        !watch(c, nodedb_wal_fd(c->shard->wal), &tag_log) ||
        (c->index == 0 && !watch(c, srv->listen_fd, &tag_listen))) {
        int error = errno;
        if (c->epoll >= 0) (void)close(c->epoll);
        free(c);
        return nodedb_fail(err, NODEDB_ERR_IO, error, "core %u cannot set up epoll", nodedb_tpc_core_index(tpc));
    }
    for (i = 0; i < sizeof c->wall_seen / sizeof *c->wall_seen; i++) c->wall_seen[i] = wall_ms();
    c->scratch = must(malloc(READ_BYTES));
    c->faults_counted = nodedb_prefetch_faults_start(&c->faults, &faults, NULL) == NODEDB_OK;
    c->shard->core = c;
    nodedb_tpc_core_set_data(tpc, c);
    srv->core[c->index] = c;
    return NODEDB_OK;
}

static void core_stop(nodedb_tpc_core *tpc, void *ctx) {
    core *c = nodedb_tpc_core_data(tpc);
    uint32_t i;
    (void)ctx;
    net_close_all(c);
    net_report_memory(c);
    for (i = 0; i < MAX_CORES; i++) arrfree(c->outbox[i]);
    buffer_free(&c->encoded);
    (void)close(c->epoll);
    c->shard->core = NULL;
    free(c->scratch);
    free(c);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

/* --durability interval: submits the logs' open groups and reaps their completions, in a thread of its own, which no
 * work of a core can starve. */
static void *interval_thread(void *argument) {
    server *srv = argument;
    struct timespec pause = {0, (long)INTERVAL_NS};
    while (!__atomic_load_n(&srv->timer_stop, __ATOMIC_ACQUIRE)) {
        uint32_t i;
        (void)nanosleep(&pause, NULL);
        for (i = 0; i < srv->cores; i++) {
            (void)nodedb_wal_submit(srv->shards[i]->wal, NULL);
            (void)nodedb_wal_poll(srv->shards[i]->wal, NULL, NULL);
        }
    }
    return NULL;
}

static int lock_directory(const server *srv) {
    char path[PATH_MAX], pid[24] = "";
    int fd, n;
    if (mkdir(srv->dir, 0700) != 0 && errno != EEXIST) {
        fprintf(stderr, "nodedb: cannot make %s: %s\n", srv->dir, strerror(errno));
        return -1;
    }
    (void)snprintf(path, sizeof path, "%s/LOCK", srv->dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) fprintf(stderr, "nodedb: cannot open %s: %s\n", path, strerror(errno));
    else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (read(fd, pid, sizeof pid - 1) < 0) pid[0] = 0;
        fprintf(stderr, "nodedb: %s is in use by another server (process %s): %s\n", srv->dir, pid, strerror(errno));
        (void)close(fd);
        fd = -1;
    } else if (ftruncate(fd, 0) == 0) {
        n = snprintf(pid, sizeof pid, "%d", (int)getpid());
        (void)!pwrite(fd, pid, (size_t)n, 0);
    }
    return fd;
}

/* Limits the clients, so that logs and checkpoints always find a descriptor. */
static void limit_clients(server *srv) {
    struct rlimit limit;
    uint64_t kept = 16 + UINT64_C(16) * srv->cores, most = UINT64_C(2) * MAX_CLIENTS * srv->cores;
    srv->clients_max = (uint32_t)most;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    if (limit.rlim_cur > most + kept) limit.rlim_cur = most + kept;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= most + kept) return;
    srv->clients_max = limit.rlim_cur > kept + 8 ? (uint32_t)(limit.rlim_cur - kept) : 8;
}

static int serve(server *srv, const sigset_t *signals) {
    nodedb_tpc_config config = {.ctx = srv,
                                .cores = srv->cores,
                                .message_bytes = sizeof(message),
                                .ring_messages = 4096,
                                .catch_signals = true,
                                .name = "nodedb",
                                .logger = srv->logger,
                                .on_start = core_start,
                                .on_stop = core_stop,
                                .on_message = core_message,
                                .poll = core_poll,
                                .wait = core_wait,
                                .maintain = core_maintain,
                                .pending = core_pending};
    struct timespec patience = {0, 100000000};
    pthread_t timer;
    bool timed = false;
    nodedb_error err;
    if (listen(srv->listen_fd, 511) != 0) {
        fprintf(stderr, "nodedb: cannot listen: %s\n", strerror(errno));
        return 1;
    }
    if (!srv->durable_always && !(timed = pthread_create(&timer, NULL, interval_thread, srv) == 0)) {
        fprintf(stderr, "nodedb: no thread for --durability interval: raise the limit of processes and threads\n");
        return 1;
    }
    srv->runtime = nodedb_tpc_start(&config, &err);
    if (srv->runtime == NULL) fprintf(stderr, "nodedb: %s\n", err.message);
    else {
        printf("nodedb " NODEDB_VERSION " is ready on %s:%d, %u cores, data in %s (log: %s)\n", srv->bind, srv->port,
               srv->cores, srv->dir, nodedb_wal_describe(srv->shards[0]->wal));
        fflush(stdout);
        while (!nodedb_tpc_stopping(srv->runtime))
            if (sigtimedwait(signals, NULL, &patience) > 0) nodedb_tpc_stop(srv->runtime);
        (void)nodedb_tpc_join(srv->runtime, NULL);
    }
    __atomic_store_n(&srv->timer_stop, true, __ATOMIC_RELEASE);
    if (timed) (void)pthread_join(timer, NULL);
    return srv->runtime == NULL;
}

static int run(server *srv, const sigset_t *signals) {
    nodedb_mem_config memory = {.ceiling_bytes = srv->memory_bytes, .max_cores = MAX_CORES, .logger = srv->logger};
    nodedb_mem_usage usage;
    nodedb_error err;
    int status = 1;
    uint32_t i;
    srv->mem = nodedb_mem_create(&memory, &err);
    if (srv->mem != NULL) {
        (void)nodedb_mem_get_usage(srv->mem, NODEDB_MEM_GLOBAL, &usage, NULL);
        srv->memory_bytes = usage.limit_bytes;
        srv->client_limit_bytes = srv->memory_bytes / 4 > MIN_CLIENT_BYTES ? srv->memory_bytes / 4 : MIN_CLIENT_BYTES;
        (void)nodedb_mem_set_limit(srv->mem, MEM_CLIENTS, srv->client_limit_bytes, NULL);
    }
    if (srv->mem == NULL || open_data(srv, &err) != NODEDB_OK) fprintf(stderr, "nodedb: %s\n", err.message);
    else status = serve(srv, signals);
    for (i = 0; i < MAX_CORES; i++) {
        if (srv->shards[i] != NULL && srv->shards[i]->wal != NULL) {
            (void)nodedb_wal_wait(srv->shards[i]->wal, nodedb_wal_last_lsn(srv->shards[i]->wal), NULL);
            note_progress(srv->shards[i], true);
        }
        shard_free(srv->shards[i]);
    }
    nodedb_tpc_destroy(srv->runtime);
    nodedb_mem_destroy(srv->mem);
    return status;
}

int main(int argc, char **argv) {
    server *srv = must(calloc(1, sizeof *srv));
    sigset_t signals;
    int lock, status = parse_options(srv, argc, argv);
    if (status == 0 && !bind_is_allowed(srv)) status = 2;
    if (status != 0) {
        free(srv);
        return status - 1;
    }
    (void)umask(077);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL); /* also while data are opened: signals are handled after that */
    (void)pthread_mutex_init(&srv->said_lock, NULL);
    srv->logger.write = say, srv->logger.ctx = srv;
    srv->started_ms = steady_ms();
    if (getrandom(&srv->hash_seed, sizeof srv->hash_seed, 0) != (ssize_t)sizeof srv->hash_seed)
        srv->hash_seed = nodedb_mix64(nodedb_now_ns(NULL));
    limit_clients(srv);
    lock = lock_directory(srv);
    srv->listen_fd = lock < 0 ? -1 : listen_on(srv);
    status = srv->listen_fd < 0 ? 1 : run(srv, &signals);
    if (srv->listen_fd >= 0) (void)close(srv->listen_fd);
    if (lock >= 0) (void)close(lock);
    (void)pthread_mutex_destroy(&srv->said_lock);
    free(srv);
    return status;
}
