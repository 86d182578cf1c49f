/* Benchmark of nodedb_tpc.h: the ring and the wake-up beside their limits, on two pinned threads.
 *
 *   ring/single, ring/batch    messages of 8 bytes per second, pushed one by one, or 256 at a time
 *   ring/roundtrip             a message there and back; its limit: limit/cacheline-roundtrip
 *   park/roundtrip             the same between two threads that park; its limit: limit/eventfd-roundtrip
 *   wake-awake                 the price of waking a core that is awake
 *   idle                       CPU time of a runtime with nothing to do, as a share of one CPU
 *   core/roundtrip             a message there and back between two cores of a runtime, on_message to on_message
 *   core/call                  a call from one core to another, and its answer
 *   guard                      the price of nodedb_tpc_guard with a fixed function
 *   boost/..., rigtorp/...     single and roundtrip of their queues, in the same rounds, if installed */
#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#include "bench.h"
#include "peer_spsc.h"

#define ROUNDS_MAX 9
#define BATCH 256

static int cpus[2];   /* where the two threads are pinned; twice the same if there is only one */
static bool two_cpus;
static int rounds = 7;
static double scale = 1;

/* A spin that also works where both threads share a CPU. */
static void spin(void) {
    if (two_cpus) nodedb_tpc__pause();
    else (void)sched_yield();
}

/* ---- throughput -------------------------------------------------------------------------------------------------- */

typedef struct flow {
    nodedb_tpc_ring *ring;
    uint64_t count;
    bool batch;
    uint64_t sum;
} flow;

static void *flow_consumer(void *arg) {
    flow *f = (flow *)arg;
    uint64_t got = 0, sum = 0, messages[BATCH];
    bench_pin(cpus[1]);
    if (f->batch)
        while (got < f->count) {
            size_t n = nodedb_tpc_ring_pop_n(f->ring, messages, BATCH), i;
            for (i = 0; i < n; i++) sum += messages[i];
            got += n;
            if (n == 0) spin();
        }
    else
        for (; got < f->count; got++) {
            while (!nodedb_tpc_ring_pop(f->ring, messages)) spin();
            sum += messages[0];
        }
    f->sum = sum;
    return NULL;
}

static double flow_once(bool batch) {
    flow f;
    pthread_t thread;
    uint64_t begin, sent = 0, i, messages[BATCH];
    double seconds;
    memset(&f, 0, sizeof f);
    f.ring = nodedb_tpc_ring_create(4096, 8, NULL, NULL);
    f.count = (uint64_t)((batch ? 60e6 : 30e6) * scale) / BATCH * BATCH;
    f.batch = batch;
    bench_pin(cpus[0]);
    if (f.ring == NULL || pthread_create(&thread, NULL, flow_consumer, &f) != 0) exit(1);
    begin = bench_now_ns();
    if (batch)
        while (sent < f.count) {
            size_t n = 0;
            for (i = 0; i < BATCH; i++) messages[i] = sent + i;
            while ((n += nodedb_tpc_ring_push_n(f.ring, messages + n, BATCH - n)) < BATCH) spin();
            sent += BATCH;
        }
    else
        for (; sent < f.count; sent++)
            while (!nodedb_tpc_ring_push(f.ring, &sent)) spin();
    (void)pthread_join(thread, NULL);
    seconds = (double)(bench_now_ns() - begin) / 1e9;
    if (f.sum != f.count * (f.count - 1) / 2) {
        fprintf(stderr, "bench_tpc: messages were lost or altered\n");
        exit(1);
    }
    nodedb_tpc_ring_destroy(f.ring);
    return (double)f.count / seconds;
}

/* ---- there and back ---------------------------------------------------------------------------------------------- */

typedef struct pair {
    nodedb_tpc_ring *there, *back;
    nodedb_tpc_notifier wake_there, wake_back;
    int fd_there, fd_back;
    uint64_t count;
    uint64_t line_there __attribute__((aligned(256)));
    uint64_t line_back __attribute__((aligned(256)));
} pair;

typedef struct side { /* how one side sends and receives */
    void (*send)(pair *p, bool forth);
    void (*receive)(pair *p, bool forth);
} side;

static void line_send(pair *p, bool forth) {
    uint64_t *line = forth ? &p->line_there : &p->line_back;
    __atomic_store_n(line, *line + 1, __ATOMIC_RELEASE);
}
static uint64_t line_seen[2] = {0, 0}; /* each by one thread; on lines that nobody else writes at the same time */
static void line_receive(pair *p, bool forth) {
    uint64_t *line = forth ? &p->line_there : &p->line_back;
    while (__atomic_load_n(line, __ATOMIC_ACQUIRE) == line_seen[forth]) spin();
    line_seen[forth] = __atomic_load_n(line, __ATOMIC_ACQUIRE);
}
static void ring_send(pair *p, bool forth) {
    uint64_t message = 1;
    while (!nodedb_tpc_ring_push(forth ? p->there : p->back, &message)) spin();
}
static void ring_receive(pair *p, bool forth) {
    uint64_t message;
    while (!nodedb_tpc_ring_pop(forth ? p->there : p->back, &message)) spin();
}
static void park_send(pair *p, bool forth) {
    ring_send(p, forth);
    (void)nodedb_tpc_notifier_wake(forth ? &p->wake_there : &p->wake_back);
}
static void park_receive(pair *p, bool forth) {
    nodedb_tpc_ring *ring = forth ? p->there : p->back;
    nodedb_tpc_notifier *notifier = forth ? &p->wake_there : &p->wake_back;
    uint64_t message;
    while (!nodedb_tpc_ring_pop(ring, &message)) {
        nodedb_tpc_notifier_prepare(notifier);
        if (nodedb_tpc_ring_length(ring) != 0) nodedb_tpc_notifier_cancel(notifier);
        else nodedb_tpc_notifier_wait(notifier, UINT64_C(1000000000));
    }
}
static void eventfd_send(pair *p, bool forth) {
    uint64_t one = 1;
    if (write(forth ? p->fd_there : p->fd_back, &one, sizeof one) < 0) exit(1);
}
static void eventfd_receive(pair *p, bool forth) {
    uint64_t value;
    if (read(forth ? p->fd_there : p->fd_back, &value, sizeof value) < 0) exit(1);
}

static const side line_side = {line_send, line_receive}, ring_side = {ring_send, ring_receive},
                  park_side = {park_send, park_receive}, eventfd_side = {eventfd_send, eventfd_receive};

typedef struct echo { pair *p; const side *how; } echo;

static void *echo_thread(void *arg) {
    echo *e = (echo *)arg;
    uint64_t i;
    bench_pin(cpus[1]);
    for (i = 0; i < e->p->count; i++) {
        e->how->receive(e->p, true);
        e->how->send(e->p, false);
    }
    return NULL;
}

static double roundtrip_once(const side *how, uint64_t count) {
    static pair p;
    echo e;
    pthread_t thread;
    uint64_t i, begin;
    memset(&p, 0, sizeof p);
    line_seen[0] = line_seen[1] = 0;
    p.there = nodedb_tpc_ring_create(64, 8, NULL, NULL);
    p.back = nodedb_tpc_ring_create(64, 8, NULL, NULL);
    p.fd_there = eventfd(0, 0);
    p.fd_back = eventfd(0, 0);
    p.count = (uint64_t)((double)count * scale);
    if (nodedb_tpc_notifier_open(&p.wake_there, NULL) != NODEDB_OK ||
        nodedb_tpc_notifier_open(&p.wake_back, NULL) != NODEDB_OK) exit(1);
    e.p = &p;
    e.how = how;
    bench_pin(cpus[0]);
    if (pthread_create(&thread, NULL, echo_thread, &e) != 0) exit(1);
    begin = bench_now_ns();
    for (i = 0; i < p.count; i++) {
        how->send(&p, true);
        how->receive(&p, false);
    }
    begin = bench_now_ns() - begin;
    (void)pthread_join(thread, NULL);
    nodedb_tpc_ring_destroy(p.there);
    nodedb_tpc_ring_destroy(p.back);
    nodedb_tpc_notifier_close(&p.wake_there);
    nodedb_tpc_notifier_close(&p.wake_back);
    close(p.fd_there);
    close(p.fd_back);
    return (double)begin / (double)p.count;
}

static double ring_roundtrip(void) { return roundtrip_once(&ring_side, 400000); }
static double line_roundtrip(void) { return roundtrip_once(&line_side, 400000); }
static double park_roundtrip(void) { return roundtrip_once(&park_side, 6000); }
static double eventfd_roundtrip(void) { return roundtrip_once(&eventfd_side, 6000); }
static double ring_single(void) { return flow_once(false); }
static double ring_batch(void) { return flow_once(true); }

/* ---- the runtime ------------------------------------------------------------------------------------------------- */

static double wake_awake(void) {
    nodedb_tpc_notifier notifier;
    uint64_t i, count = (uint64_t)(20e6 * scale), begin, calls = 0;
    if (nodedb_tpc_notifier_open(&notifier, NULL) != NODEDB_OK) exit(1);
    begin = bench_now_ns();
    for (i = 0; i < count; i++) calls += nodedb_tpc_notifier_wake(&notifier);
    begin = bench_now_ns() - begin;
    nodedb_tpc_notifier_close(&notifier);
    if (calls != 0) exit(1);
    return (double)begin / (double)count;
}

static void nothing(nodedb_tpc_core *core, void *arg) { (void)core, ++*(uint64_t *)arg; }

static double guard(void) {
    uint64_t i, count = (uint64_t)(10e6 * scale), begin, ran = 0;
    nodedb_tpc *runtime = nodedb_tpc_create_manual(NULL, NULL);
    if (runtime == NULL) exit(1);
    begin = bench_now_ns();
    for (i = 0; i < count; i++) (void)nodedb_tpc_guard(nodedb_tpc_core_at(runtime, 0), nothing, &ran, i + 1);
    begin = bench_now_ns() - begin;
    nodedb_tpc_destroy(runtime);
    if (ran != count) exit(1);
    return (double)begin / (double)count;
}

typedef struct game { uint64_t left, done; } game;

static void ball(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    game *g = (game *)ctx;
    (void)from;
    if (nodedb_tpc_core_index(core) == 0 && g->left-- == 0) {
        __atomic_store_n(&g->done, 1, __ATOMIC_RELEASE);
        return;
    }
    (void)nodedb_tpc_send(core, 1 - nodedb_tpc_core_index(core), message);
}

static double core_roundtrip(void) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    char message[64] = {0};
    game g;
    uint64_t count = (uint64_t)(100000 * scale), begin;
    memset(&config, 0, sizeof config);
    g.left = count;
    g.done = 0;
    config.cores = 2;
    config.ctx = &g;
    config.on_message = ball;
    runtime = nodedb_tpc_start(&config, NULL);
    if (runtime == NULL) exit(1);
    begin = bench_now_ns();
    (void)nodedb_tpc_post(runtime, 0, message, NULL);
    while (__atomic_load_n(&g.done, __ATOMIC_ACQUIRE) == 0) (void)usleep(200);
    begin = bench_now_ns() - begin;
    nodedb_tpc_destroy(runtime);
    return (double)begin / (double)count;
}

typedef struct calls { nodedb_tpc_call call; uint64_t left, ran, done; } calls;

static void called_again(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    calls *c = (calls *)(void *)call;
    if (c->left-- == 0) __atomic_store_n(&c->done, 1, __ATOMIC_RELEASE);
    else (void)nodedb_tpc_call_start(core, 1, call);
}

static void first_call(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    (void)from, (void)message;
    (void)nodedb_tpc_call_start(core, 1, &((calls *)ctx)->call);
}

static double core_call(void) {
    static calls c;
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    char message[64] = {0};
    uint64_t count = (uint64_t)(100000 * scale), begin;
    memset(&config, 0, sizeof config);
    memset(&c, 0, sizeof c);
    c.call.fn = nothing, c.call.arg = &c.ran, c.call.answered = called_again, c.left = count;
    config.cores = 2;
    config.ctx = &c;
    config.on_message = first_call;
    runtime = nodedb_tpc_start(&config, NULL);
    if (runtime == NULL) exit(1);
    begin = bench_now_ns();
    (void)nodedb_tpc_post(runtime, 0, message, NULL);
    while (__atomic_load_n(&c.done, __ATOMIC_ACQUIRE) == 0) (void)usleep(200);
    begin = bench_now_ns() - begin;
    nodedb_tpc_destroy(runtime);
    return (double)begin / (double)count;
}

static double idle_share(void) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    struct timespec cpu;
    uint64_t begin, used, pause_us = 1000000;
    memset(&config, 0, sizeof config);
    config.cores = 2;
    runtime = nodedb_tpc_start(&config, NULL);
    if (runtime == NULL) exit(1);
    (void)usleep(300000); /* until the spin has adapted */
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    used = (uint64_t)cpu.tv_sec * UINT64_C(1000000000) + (uint64_t)cpu.tv_nsec;
    begin = bench_now_ns();
    (void)usleep((useconds_t)pause_us);
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    used = (uint64_t)cpu.tv_sec * UINT64_C(1000000000) + (uint64_t)cpu.tv_nsec - used;
    begin = bench_now_ns() - begin;
    nodedb_tpc_destroy(runtime);
    return (double)used / (double)begin / 2; /* of one core */
}

/* ---- main -------------------------------------------------------------------------------------------------------- */

typedef struct bench_case {
    const char *name, *metric, *unit;
    double (*run)(void);
    int rounds; /* 0: as many as all */
} bench_case;

static const bench_case cases[] = {
    {"ring/single", "msgs_per_s", "1/s", ring_single, 0},
    {"ring/batch", "msgs_per_s", "1/s", ring_batch, 0},
    {"ring/roundtrip", "ns", "ns", ring_roundtrip, 0},
    {"limit/cacheline-roundtrip", "ns", "ns", line_roundtrip, 0},
    {"park/roundtrip", "ns", "ns", park_roundtrip, 0},
    {"limit/eventfd-roundtrip", "ns", "ns", eventfd_roundtrip, 0},
    {"core/roundtrip", "ns", "ns", core_roundtrip, 0},
    {"core/call", "ns", "ns", core_call, 0},
    {"wake-awake", "ns", "ns", wake_awake, 0},
    {"guard", "ns", "ns", guard, 0},
    {"idle", "cpu_share", "1", idle_share, 1},
};
#define CASES (sizeof cases / sizeof cases[0])
#define PEERS_MAX 4

int main(int argc, char **argv) {
    static double samples[CASES][ROUNDS_MAX], singles[PEERS_MAX][ROUNDS_MAX], roundtrips[PEERS_MAX][ROUNDS_MAX];
    const char *only = bench_option(argc, argv, "--only", "");
    cpu_set_t allowed;
    size_t i;
    int round, cpu, found = 0;
    bench_name = "tpc";
    if (bench_flag(argc, argv, "--quick")) rounds = 3, scale = 0.3;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    for (cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
        if (CPU_ISSET(cpu, &allowed)) cpus[found++] = cpu;
    two_cpus = found == 2;
    if (!two_cpus) {
        cpus[1] = cpus[0];
        fprintf(stderr, "bench_tpc: only one CPU, so these are no figures of two\n");
    }
    for (round = 0; round < rounds; round++) { /* case by case in each round, so that noise affects all of them */
        for (i = 0; i < CASES; i++)
            if (strstr(cases[i].name, only) != NULL && (cases[i].rounds == 0 || round < cases[i].rounds)) {
                (void)sched_setaffinity(0, sizeof allowed, &allowed);
                samples[i][round] = cases[i].run();
            }
        for (i = 0; peer_spsc_name(i) != NULL && i < PEERS_MAX && strstr(peer_spsc_name(i), only) != NULL; i++) {
            (void)sched_setaffinity(0, sizeof allowed, &allowed);
            singles[i][round] = peer_spsc_single(i, (uint64_t)(30e6 * scale), cpus);
            (void)sched_setaffinity(0, sizeof allowed, &allowed);
            roundtrips[i][round] = peer_spsc_roundtrip(i, (uint64_t)(400000 * scale), cpus);
        }
    }
    for (i = 0; i < CASES; i++)
        if (strstr(cases[i].name, only) != NULL)
            bench_row(cases[i].name, cases[i].metric,
                      bench_median(samples[i], (size_t)(cases[i].rounds == 0 ? rounds : cases[i].rounds)),
                      cases[i].unit);
    for (i = 0; peer_spsc_name(i) != NULL && i < PEERS_MAX && strstr(peer_spsc_name(i), only) != NULL; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "%s/single", peer_spsc_name(i));
        bench_row(name, "msgs_per_s", bench_median(singles[i], (size_t)rounds), "1/s");
        (void)snprintf(name, sizeof name, "%s/roundtrip", peer_spsc_name(i));
        bench_row(name, "ns", bench_median(roundtrips[i], (size_t)rounds), "ns");
    }
    return 0;
}
