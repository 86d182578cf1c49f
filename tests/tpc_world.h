/* What the tests of nodedb_tpc.h share: a virtual clock, a logger that counts, and a world: the callbacks of a manual
 * runtime with what they have seen. */
#ifndef NODEDB_TPC_WORLD_H
#define NODEDB_TPC_WORLD_H

#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#include "test.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#define SECOND_NS UINT64_C(1000000000)
#define MILLISECOND_NS UINT64_C(1000000)

#define atomic_read(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define atomic_bump(p) __atomic_add_fetch((p), 1, __ATOMIC_ACQ_REL)

/* A clock that the test moves. */
typedef struct virtual_clock { uint64_t now; } virtual_clock;
static inline uint64_t virtual_now(void *ctx) { return ((virtual_clock *)ctx)->now; }

/* A logger that counts and keeps the last sentence. */
typedef struct notes { int count; char last[512]; } notes;
static inline void note(void *ctx, nodedb_log_level level, const char *sentence) {
    notes *n = ctx;
    (void)level;
    n->count++;
    snprintf(n->last, sizeof n->last, "%s", sentence);
}

static inline bool readable(int fd) {
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, 0) == 1;
}

typedef struct letter { uint64_t kind, number, hops, rest[5]; } letter;

/* What the callbacks of a manual runtime see and are told. */
typedef struct world {
    virtual_clock clock;
    notes notes;
    nodedb_tpc *runtime;
    uint64_t messages_from[16], last_from;
    uint64_t outside;
    int ends, last_status;
    void *last_arg;
    char last_sentence[256];
    int ran, undone[8], undone_count, started, stopped, fail_core;
    int poll_events, waits, heartbeats, maintained;
    uint64_t last_timeout, last_budget;
    bool maintain_more, pending;
    void (*in_wait)(struct world *w);
    void (*in_maintain)(struct world *w);
    uint64_t beats[16][64];
    int beat_count[16];
} world;

static inline void world_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    world *w = ctx;
    (void)core, (void)message;
    if (from == NODEDB_TPC_OUTSIDE) w->outside++;
    else w->messages_from[from]++;
    w->last_from = from;
}
static inline void world_task_end(nodedb_tpc_core *core, void *arg, nodedb_status status, const char *sentence,
                                  void *ctx) {
    world *w = ctx;
    (void)core;
    w->ends++;
    w->last_status = status;
    w->last_arg = arg;
    snprintf(w->last_sentence, sizeof w->last_sentence, "%s", sentence);
}
static inline nodedb_status world_start(nodedb_tpc_core *core, void *ctx, nodedb_error *err) {
    world *w = ctx;
    if ((int)nodedb_tpc_core_index(core) + 1 == w->fail_core)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "no room for my arena");
    atomic_bump(&w->started);
    nodedb_tpc_core_set_data(core, w);
    return NODEDB_OK;
}
static inline void world_stop(nodedb_tpc_core *core, void *ctx) { (void)core; atomic_bump(&((world *)ctx)->stopped); }
static inline void world_wait(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns) {
    world *w = ctx;
    (void)core;
    w->waits++;
    w->last_timeout = timeout_ns;
    if (w->in_wait != NULL) w->in_wait(w);
}
static inline size_t world_poll(nodedb_tpc_core *core, void *ctx) {
    world *w = ctx;
    (void)core;
    return w->poll_events > 0 ? (size_t)w->poll_events-- : 0;
}
static inline bool world_maintain(nodedb_tpc_core *core, void *ctx, uint64_t budget_ns) {
    world *w = ctx;
    (void)core;
    w->maintained++;
    w->last_budget = budget_ns;
    if (w->in_maintain != NULL) w->in_maintain(w);
    return w->maintain_more;
}
static inline void world_heartbeat(nodedb_tpc_core *core, void *ctx) {
    world *w = ctx;
    uint32_t i = nodedb_tpc_core_index(core);
    w->heartbeats++;
    if (w->beat_count[i] < 64) w->beats[i][w->beat_count[i]++] = w->clock.now;
}
static inline bool world_pending(nodedb_tpc_core *core, void *ctx) { (void)core; return ((world *)ctx)->pending; }

static inline nodedb_tpc_config world_config(world *w, uint32_t cores) {
    nodedb_tpc_config config;
    memset(w, 0, sizeof *w);
    memset(&config, 0, sizeof config);
    w->clock.now = 1000 * SECOND_NS;
    config.cores = cores;
    config.ctx = w;
    config.seed = test_seed;
    config.clock.now_ns = virtual_now;
    config.clock.ctx = &w->clock;
    config.logger.write = note;
    config.logger.ctx = &w->notes;
    config.on_message = world_message;
    config.on_task_end = world_task_end;
    config.on_start = world_start;
    config.on_stop = world_stop;
    return config;
}

static inline nodedb_tpc_core *world_create(world *w, const nodedb_tpc_config *config) {
    nodedb_error err;
    memset(&err, 0, sizeof err);
    w->runtime = nodedb_tpc_create_manual(config, &err);
    if (w->runtime == NULL) test_fail(__FILE__, __LINE__, err.message);
    return nodedb_tpc_core_at(w->runtime, 0);
}

static inline void task_run(nodedb_tpc_core *core, void *arg) { (void)core; ((world *)arg)->ran++; }
static inline void just_panics(nodedb_tpc_core *core, void *arg) { (void)arg; nodedb_tpc_panic(core, "as asked"); }

#endif
