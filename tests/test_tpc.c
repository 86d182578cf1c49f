/* Tests of nodedb_tpc.h: the ring, the notifier, and the life of cores. Faults are in test_tpc_faults.c; calls, timers
 * and messages that are kept in test_tpc_calls.c; time, gates, quarantine and reports in test_tpc_watch.c.
 *
 *   ring                                    order and content, limits, pressure, statistics, two threads
 *   notifier: the model checker             every interleaving of push and park, and of protocols that are wrong
 *   messages between cores                  order, wake-ups, posts from outside
 *   manual cores: turn by turn              fairness, wakes, waits, maintenance, an epoll set of the user's own
 *   start and stop                          what can fail, what a stop waits for, wrong threads */
#include "tpc_world.h"
#include <sys/epoll.h>
#include <sys/resource.h>

/* ---- ring -------------------------------------------------------------------------------------------------------- */

/* Every operation in random order, beside a model that is just two counters: message k is filled with k's bytes. */
static void fill(unsigned char *message, size_t bytes, uint64_t k) {
    size_t i;
    for (i = 0; i < bytes; i++) message[i] = (unsigned char)(k * 31 + i * 7 + (k >> 8));
}

static bool filled(const unsigned char *message, size_t bytes, uint64_t k) {
    unsigned char want[256];
    fill(want, bytes, k);
    return memcmp(message, want, bytes) == 0;
}

static void random_ring_operations(size_t capacity, size_t bytes, uint64_t seed) {
    unsigned char messages[16 * 256], *slot;
    uint64_t pushed = 0, popped = 0, random = seed;
    nodedb_tpc_ring *ring = nodedb_tpc_ring_create(capacity, bytes, NULL, NULL);
    int step;
    REQUIRE(ring != NULL);
    /* the cursors wrap around on the way */
    ring->head = ring->tail = ring->head_seen = ring->tail_seen = SIZE_MAX - 40;
    for (step = 0; step < 4000; step++) {
        size_t n = test_random(&random) % 16 + 1, got, i, room = capacity - (size_t)(pushed - popped);
        for (i = 0; i < n; i++) fill(messages + i * bytes, bytes, pushed + i);
        switch (test_random(&random) % 8) {
        case 0: CHECK_EQ(nodedb_tpc_ring_push(ring, messages), room > 0); pushed += room > 0; break;
        case 1:
            got = nodedb_tpc_ring_push_n(ring, messages, n);
            CHECK_EQ(got, n < room ? n : room);
            pushed += got;
            break;
        case 2:
            slot = nodedb_tpc_ring_reserve(ring);
            CHECK_EQ(slot != NULL, room > 0);
            if (slot != NULL) { memcpy(slot, messages, bytes); nodedb_tpc_ring_commit(ring); pushed++; }
            break;
        case 3:
            got = n;
            slot = nodedb_tpc_ring_reserve_n(ring, &got);
            CHECK_EQ(slot != NULL, room > 0);
            CHECK(got <= n && got <= room);
            if (slot == NULL) break;
            memcpy(slot, messages, got * bytes);
            nodedb_tpc_ring_commit_n(ring, got);
            pushed += got;
            break;
        case 4:
            CHECK_EQ(nodedb_tpc_ring_pop(ring, messages), pushed > popped);
            if (pushed > popped) { CHECK(filled(messages, bytes, popped)); popped++; }
            break;
        case 5:
            got = nodedb_tpc_ring_pop_n(ring, messages, n);
            CHECK_EQ(got, n < pushed - popped ? n : (size_t)(pushed - popped));
            for (i = 0; i < got; i++) CHECK(filled(messages + i * bytes, bytes, popped + i));
            popped += got;
            break;
        case 6:
            slot = nodedb_tpc_ring_peek(ring);
            CHECK_EQ(slot != NULL, pushed > popped);
            if (slot != NULL) { CHECK(filled(slot, bytes, popped)); nodedb_tpc_ring_release(ring); popped++; }
            break;
        default:
            got = n;
            slot = nodedb_tpc_ring_peek_n(ring, &got);
            CHECK_EQ(slot != NULL, pushed > popped);
            for (i = 0; i < got; i++) CHECK(filled(slot + i * bytes, bytes, popped + i));
            if (slot != NULL) { nodedb_tpc_ring_release_n(ring, got); popped += got; }
        }
        CHECK_EQ(nodedb_tpc_ring_length(ring), pushed - popped);
    }
    CHECK(pushed > 100);
    nodedb_tpc_ring_destroy(ring);
}

TEST(ring_keeps_order_and_content_for_any_message_size_and_any_operation) {
    static const size_t bytes[] = {1, 3, 8, 16, 24, 64, 100, 256};
    size_t i;
    for (i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        random_ring_operations(2, bytes[i], test_seed + i);
        random_ring_operations(64, bytes[i], test_seed + 100 + i);
    }
}

TEST(ring_refuses_wrong_sizes_and_says_why) {
    nodedb_error err;
    CHECK(nodedb_tpc_ring_create(3, 8, NULL, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "power of two");
    CHECK(nodedb_tpc_ring_create(1, 8, NULL, &err) == NULL);
    CHECK(nodedb_tpc_ring_create((size_t)NODEDB_TPC_MAX_RING_MESSAGES * 2, 8, NULL, &err) == NULL);
    CHECK(nodedb_tpc_ring_create(2, 0, NULL, &err) == NULL);
    CHECK(nodedb_tpc_ring_create(2, NODEDB_TPC_MAX_MESSAGE_BYTES + 1, NULL, &err) == NULL);
    CHECK_HAS(err.message, "bytes");
    CHECK(!nodedb_tpc_ring_push(NULL, &err));
    CHECK(!nodedb_tpc_ring_pop(NULL, &err));
    CHECK_EQ(nodedb_tpc_ring_push_n(NULL, &err, 1), 0);
    CHECK(nodedb_tpc_ring_reserve(NULL) == NULL);
}

TEST(ring_cursors_live_on_cache_lines_of_their_own_two_lines_apart) {
    nodedb_tpc_ring *ring = nodedb_tpc_ring_create(2, 8, NULL, NULL);
    REQUIRE(ring != NULL);
    CHECK(offsetof(nodedb_tpc_ring, tail) >= 2 * NODEDB_CACHE_LINE_BYTES);
    CHECK(offsetof(nodedb_tpc_ring, head) - offsetof(nodedb_tpc_ring, tail) >= 2 * NODEDB_CACHE_LINE_BYTES);
    CHECK((size_t)(ring->slots - (unsigned char *)&ring->head) >= 2 * NODEDB_CACHE_LINE_BYTES);
    CHECK_EQ((uintptr_t)ring % (2 * NODEDB_CACHE_LINE_BYTES), 0);
    nodedb_tpc_ring_destroy(ring);
}

TEST(ring_pressure_rises_at_85_and_95_and_falls_at_85_and_75_per_cent) {
    nodedb_tpc_ring *ring = nodedb_tpc_ring_create(1024, 8, NULL, NULL);
    uint64_t message = 0;
    int i;
    REQUIRE(ring != NULL);
    for (i = 0; i < 870; i++) nodedb_tpc_ring_push(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_NONE);
    nodedb_tpc_ring_push(ring, &message); /* 871 of 1024 are more than 85% */
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_THROTTLED);
    while (nodedb_tpc_ring_length(ring) < 973) nodedb_tpc_ring_push(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_SUSPENDED);
    while (nodedb_tpc_ring_length(ring) > 871) nodedb_tpc_ring_pop(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_SUSPENDED);
    nodedb_tpc_ring_pop(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_THROTTLED);
    while (nodedb_tpc_ring_length(ring) > 768) nodedb_tpc_ring_pop(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_THROTTLED);
    nodedb_tpc_ring_pop(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_pressure(ring), NODEDB_TPC_PRESSURE_NONE);
    nodedb_tpc_ring_destroy(ring);
}

TEST(ring_statistics_know_length_utilisation_and_high_water) {
    nodedb_tpc_ring *ring = nodedb_tpc_ring_create(8, 8, NULL, NULL);
    nodedb_tpc_ring_stats stats;
    uint64_t message = 0;
    int i;
    REQUIRE(ring != NULL);
    for (i = 0; i < 6; i++) nodedb_tpc_ring_push(ring, &message);
    CHECK_EQ(nodedb_tpc_ring_length(ring), 6);
    while (nodedb_tpc_ring_pop(ring, &message)) {}
    nodedb_tpc_ring_push(ring, &message);
    nodedb_tpc_ring_get_stats(ring, &stats);
    CHECK_EQ(stats.capacity, 8);
    CHECK_EQ(stats.length, 1);
    CHECK_EQ(stats.high_water, 6);
    CHECK_EQ(stats.pushed, 7);
    nodedb_tpc_ring_destroy(ring);
}

TEST(ring_disconnect_refuses_pushes_and_lets_the_rest_be_read) {
    nodedb_tpc_ring *ring = nodedb_tpc_ring_create(8, 8, NULL, NULL);
    uint64_t message = 7;
    size_t n = 4;
    REQUIRE(ring != NULL);
    CHECK(nodedb_tpc_ring_push(ring, &message));
    CHECK(!nodedb_tpc_ring_disconnected(ring));
    nodedb_tpc_ring_disconnect(ring);
    CHECK(nodedb_tpc_ring_disconnected(ring));
    CHECK(!nodedb_tpc_ring_push(ring, &message));
    CHECK_EQ(nodedb_tpc_ring_push_n(ring, &message, 1), 0);
    CHECK(nodedb_tpc_ring_reserve(ring) == NULL);
    CHECK(nodedb_tpc_ring_reserve_n(ring, &n) == NULL);
    CHECK(!nodedb_tpc_ring_ended(ring));
    CHECK(nodedb_tpc_ring_pop(ring, &message));
    CHECK(nodedb_tpc_ring_ended(ring));
    nodedb_tpc_ring_destroy(ring);
}

typedef struct stream { nodedb_tpc_ring *ring; uint64_t count, seed; } stream;

static void *stream_producer(void *arg) {
    stream *s = arg;
    uint64_t next = 0, random = s->seed, batch[2 * 32];
    while (next < s->count) {
        size_t want = test_random(&random) % 32 + 1, n, i;
        if (want > s->count - next) want = (size_t)(s->count - next);
        for (i = 0; i < want; i++) batch[2 * i] = next + i, batch[2 * i + 1] = ~(next + i);
        if (test_random(&random) % 2 == 0) n = nodedb_tpc_ring_push_n(s->ring, batch, want);
        else n = nodedb_tpc_ring_push(s->ring, batch);
        next += n;
        if (n == 0) sched_yield();
    }
    nodedb_tpc_ring_disconnect(s->ring);
    return NULL;
}

TEST(ring_between_two_threads_loses_alters_and_reorders_nothing) {
    stream s;
    pthread_t thread;
    uint64_t next = 0, random = test_seed + 1, batch[2 * 32];
    s.ring = nodedb_tpc_ring_create(64, 16, NULL, NULL);
    s.count = SANITIZED ? 100000 : 1000000;
    s.seed = test_seed;
    REQUIRE(s.ring != NULL);
    REQUIRE(pthread_create(&thread, NULL, stream_producer, &s) == 0);
    while (!nodedb_tpc_ring_ended(s.ring)) {
        size_t n, i;
        if (test_random(&random) % 2 == 0) n = nodedb_tpc_ring_pop_n(s.ring, batch, test_random(&random) % 32 + 1);
        else n = nodedb_tpc_ring_pop(s.ring, batch);
        for (i = 0; i < n; i++, next++)
            if (batch[2 * i] != next || batch[2 * i + 1] != ~next) CHECK_EQ(batch[2 * i], next);
        if (n == 0) sched_yield();
    }
    pthread_join(thread, NULL);
    CHECK_EQ(next, s.count);
    nodedb_tpc_ring_destroy(s.ring);
}

/* ---- notifier: the model checker ----------------------------------------------------------------------------------
 * Two producers, which push two messages each and wake, and one consumer, as the steps P1 to P5 and C1 to C7 of the
 * argument in the header, under sequential consistency (which the fences give to exactly these loads and stores). A
 * search visits every interleaving. Lost is a state in which a message waits and nobody can move. */

enum {
    MODEL_RIGHT,
    MODEL_LOOKS_BEFORE_FLAG,
    MODEL_NO_LOOK,
    MODEL_WAKES_BEFORE_PUSH,
    MODEL_READS_LATE, /* empties the eventfd between the look and the block */
    MODEL_KINDS
};

typedef struct model {
    uint8_t producer_at[2], left[2]; /* 0 push, 1 look, 2 take, 3 write; 4 push, in the protocol that wakes first */
    uint8_t consumer_at;             /* 0 flag, 1 look, 2 block, 3 unflag, 4 read eventfd, 5 drain */
    uint8_t ring, parked, eventfd;
    uint8_t decided;                 /* what the look said, for the wrong protocols */
} model;

typedef struct model_run { int kind; bool lost; unsigned states; unsigned char seen[1 << 22]; } model_run;

/* Where this state has its place among all: every field is small. */
static unsigned model_key(const model *m) {
    unsigned key = m->producer_at[0];
    key = key * 5 + m->producer_at[1];
    key = key * 3 + m->left[0];
    key = key * 3 + m->left[1];
    key = key * 6 + m->consumer_at;
    key = key * 5 + m->ring;
    key = key * 2 + m->parked;
    key = key * 5 + (m->eventfd > 4 ? 4 : m->eventfd);
    return key * 2 + m->decided;
}

static bool model_step_producer(const model_run *run, model *m, int who) {
    bool wakes_first = run->kind == MODEL_WAKES_BEFORE_PUSH;
    uint8_t after_wake = wakes_first ? 4 : 5;
    if (m->left[who] == 0) return false;
    switch (m->producer_at[who]) {
    case 0:
        if (!wakes_first) m->ring++;
        m->producer_at[who] = 1;
        break;
    case 1: m->producer_at[who] = m->parked ? 2 : after_wake; break;
    case 2:
        m->producer_at[who] = m->parked ? 3 : after_wake;
        m->parked = 0;
        break;
    case 3:
        m->eventfd++;
        m->producer_at[who] = after_wake;
        break;
    default:
        m->ring++;
        m->producer_at[who] = 5;
    }
    if (m->producer_at[who] == 5) {
        m->producer_at[who] = 0;
        m->left[who]--;
    }
    return true;
}

static bool model_step_consumer(const model_run *run, model *m) {
    switch (m->consumer_at) {
    case 0:
        if (run->kind == MODEL_LOOKS_BEFORE_FLAG) m->decided = m->ring != 0;
        else m->parked = 1;
        m->consumer_at = 1;
        return true;
    case 1:
        if (run->kind == MODEL_LOOKS_BEFORE_FLAG) m->parked = 1;
        else m->decided = run->kind == MODEL_NO_LOOK ? 0 : m->ring != 0;
        m->consumer_at = m->decided ? 3 : run->kind == MODEL_READS_LATE ? 4 : 2;
        m->decided = 0;
        return true;
    case 2:
        if (m->eventfd == 0) return false; /* blocked, with no timeout to save it */
        m->consumer_at = 3;
        return true;
    case 3: m->parked = 0; m->consumer_at = run->kind == MODEL_READS_LATE ? 5 : 4; return true;
    case 4: m->eventfd = 0; m->consumer_at = run->kind == MODEL_READS_LATE ? 2 : 5; return true;
    default:
        m->ring = 0;
        m->consumer_at = 0;
        return true;
    }
}

static void model_visit(model_run *run, const model *m) {
    unsigned key = model_key(m);
    bool moved = false;
    int who;
    if (key >= sizeof run->seen) { CHECK(key < sizeof run->seen); return; }
    if (run->seen[key]) return;
    run->seen[key] = 1;
    run->states++;
    for (who = 0; who < 3; who++) {
        model next = *m;
        if (who < 2 ? !model_step_producer(run, &next, who) : !model_step_consumer(run, &next)) continue;
        moved = true;
        model_visit(run, &next);
    }
    if (!moved && m->ring != 0) run->lost = true;
}

TEST(no_interleaving_of_push_and_park_loses_a_wake_up) {
    model_run *run = malloc(sizeof *run);
    int kind;
    for (kind = 0; kind < MODEL_KINDS; kind++) {
        model begin;
        memset(&begin, 0, sizeof begin);
        memset(run, 0, sizeof *run);
        begin.left[0] = begin.left[1] = 2;
        run->kind = kind;
        model_visit(run, &begin);
        CHECK(run->states > 100);
        /* The checker has teeth: it finds the loss in each of the wrong protocols. */
        CHECK_EQ(run->lost, kind != MODEL_RIGHT);
    }
    free(run);
}

/* The same with the header's own calls as steps: a producer (push, wake) and the sleeper (prepare, look, block). */
typedef struct real_run { nodedb_tpc_notifier notifier; nodedb_tpc_ring *ring; int order[8], schedules; } real_run;

static void real_schedule(real_run *run, const int *order, int steps) {
    uint64_t message = 1;
    int produced = 0, slept = 0, i;
    bool blocks = false;
    for (i = 0; i < steps; i++) {
        if (order[i] == 0) {
            if (produced++ % 2 == 0) nodedb_tpc_ring_push(run->ring, &message);
            else nodedb_tpc_notifier_wake(&run->notifier);
        } else if (slept++ == 0) nodedb_tpc_notifier_prepare(&run->notifier);
        else blocks = nodedb_tpc_ring_length(run->ring) == 0;
    }
    if (blocks) CHECK(readable(run->notifier.fd)); /* all pushes were followed by wakes */
    nodedb_tpc_notifier_cancel(&run->notifier);
    CHECK(!readable(run->notifier.fd));
    while (nodedb_tpc_ring_pop(run->ring, &message)) {}
    run->schedules++;
}

static void real_schedules(real_run *run, int at, int producer_left, int sleeper_left) {
    if (producer_left + sleeper_left == 0) { real_schedule(run, run->order, at); return; }
    if (producer_left > 0) { run->order[at] = 0; real_schedules(run, at + 1, producer_left - 1, sleeper_left); }
    if (sleeper_left > 0) { run->order[at] = 1; real_schedules(run, at + 1, producer_left, sleeper_left - 1); }
}

TEST(every_order_of_the_notifiers_calls_ends_with_work_seen_or_a_readable_eventfd) {
    real_run run;
    memset(&run, 0, sizeof run);
    REQUIRE(nodedb_tpc_notifier_open(&run.notifier, NULL) == NODEDB_OK);
    run.ring = nodedb_tpc_ring_create(8, 8, NULL, NULL);
    REQUIRE(run.ring != NULL);
    real_schedules(&run, 0, 4, 2);
    CHECK_EQ(run.schedules, 15);
    nodedb_tpc_ring_destroy(run.ring);
    nodedb_tpc_notifier_close(&run.notifier);
}

TEST(waking_a_sleeper_that_is_awake_makes_no_system_call_and_a_parked_one_gets_one) {
    nodedb_tpc_notifier notifier;
    REQUIRE(nodedb_tpc_notifier_open(&notifier, NULL) == NODEDB_OK);
    CHECK(!nodedb_tpc_notifier_wake(&notifier));
    CHECK(!readable(notifier.fd));
    nodedb_tpc_notifier_prepare(&notifier);
    CHECK(nodedb_tpc_notifier_wake(&notifier));
    CHECK(!nodedb_tpc_notifier_wake(&notifier)); /* it is being woken: one is enough */
    CHECK(readable(notifier.fd));
    nodedb_tpc_notifier_wait(&notifier, 10 * SECOND_NS);
    CHECK(!readable(notifier.fd));
    CHECK(!nodedb_tpc_notifier_wake(&notifier));
    nodedb_tpc_notifier_close(&notifier);
    CHECK_EQ(nodedb_tpc_notifier_open(NULL, NULL), NODEDB_ERR_INVALID);
}

typedef struct sleeper { nodedb_tpc_notifier notifier; nodedb_tpc_ring *ring; uint64_t count, seen; int lost; } sleeper;

static void *sleeper_thread(void *arg) {
    sleeper *s = arg;
    uint64_t message;
    while (s->seen < s->count) {
        bool more = nodedb_tpc_ring_pop(s->ring, &message);
        if (more) { s->seen++; continue; }
        nodedb_tpc_notifier_prepare(&s->notifier);
        if (nodedb_tpc_ring_length(s->ring) != 0) nodedb_tpc_notifier_cancel(&s->notifier);
        else {
            uint64_t begin = nodedb_now_ns(NULL);
            nodedb_tpc_notifier_wait(&s->notifier, 8 * SECOND_NS);
            /* the producer never pauses so long */
            if (nodedb_now_ns(NULL) - begin >= 8 * SECOND_NS) { s->lost = 1; break; }
        }
    }
    return NULL;
}

TEST(no_wake_up_is_lost_under_stress) {
    sleeper s;
    pthread_t thread;
    uint64_t i, random = test_seed;
    memset(&s, 0, sizeof s);
    s.count = SANITIZED ? 20000 : 100000;
    s.ring = nodedb_tpc_ring_create(16, 8, NULL, NULL);
    REQUIRE(s.ring != NULL && nodedb_tpc_notifier_open(&s.notifier, NULL) == NODEDB_OK);
    REQUIRE(pthread_create(&thread, NULL, sleeper_thread, &s) == 0);
    for (i = 0; i < s.count; i++) {
        uint64_t pause = test_random(&random) % 64;
        while (!nodedb_tpc_ring_push(s.ring, &i) && atomic_read(&s.lost) == 0) sched_yield();
        nodedb_tpc_notifier_wake(&s.notifier);
        if (pause == 0) sched_yield();
        else if (pause < 32) for (pause *= 8; pause > 0; pause--) nodedb_tpc__pause();
    }
    pthread_join(thread, NULL);
    CHECK_EQ(s.lost, 0);
    CHECK_EQ(s.seen, s.count);
    nodedb_tpc_ring_destroy(s.ring);
    nodedb_tpc_notifier_close(&s.notifier);
}

/* ---- messages between cores -------------------------------------------------------------------------------------- */

#define MESH_CORES 4
typedef struct mesh {
    uint64_t target;                                /* letters from each core to each */
    uint64_t sent[MESH_CORES][MESH_CORES];          /* row: by that core's thread only */
    uint64_t seen[MESH_CORES][MESH_CORES];
    int wrong;
} mesh;

static void mesh_task(nodedb_tpc_core *core, void *arg) {
    mesh *m = arg;
    uint32_t me = nodedb_tpc_core_index(core), to, n;
    bool more = false;
    for (to = 0; to < MESH_CORES; to++) {
        for (n = 0; n < 40 && m->sent[me][to] < m->target; n++) {
            letter l = {1, m->sent[me][to], 0, {0}};
            if (nodedb_tpc_send(core, to, &l) != NODEDB_OK) break;
            m->sent[me][to]++;
        }
        more = more || m->sent[me][to] < m->target;
    }
    if (more && nodedb_tpc_spawn(core, mesh_task, m, 0, 0) != NODEDB_OK) atomic_bump(&m->wrong);
}

static void mesh_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    mesh *m = ctx;
    letter *l = message;
    uint32_t me = nodedb_tpc_core_index(core);
    if (from == NODEDB_TPC_OUTSIDE) {
        if (nodedb_tpc_spawn(core, mesh_task, m, 0, 0) != NODEDB_OK) atomic_bump(&m->wrong);
    } else if (l->number != m->seen[me][from]++) atomic_bump(&m->wrong);
}

static void run_mesh(uint64_t target, uint32_t ring_messages, bool spins_allowed) {
    static mesh m;
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    nodedb_error err;
    letter l = {0, 0, 0, {0}};
    uint32_t i, j;
    memset(&m, 0, sizeof m);
    memset(&config, 0, sizeof config);
    m.target = target;
    config.cores = MESH_CORES;
    config.ctx = &m;
    config.on_message = mesh_message;
    config.ring_messages = ring_messages;
    runtime = nodedb_tpc_start(&config, &err);
    REQUIRE(runtime != NULL);
    for (i = 0; i < MESH_CORES; i++) CHECK_EQ(nodedb_tpc_post(runtime, i, &l, &err), NODEDB_OK);
    nodedb_tpc_stop(runtime); /* drains: the posts, the tasks that they spawn, and the letters that those send */
    CHECK_EQ(nodedb_tpc_join(runtime, &err), NODEDB_OK);
    CHECK_EQ(m.wrong, 0);
    for (i = 0; i < MESH_CORES; i++) {
        nodedb_tpc_stats stats;
        for (j = 0; j < MESH_CORES; j++) CHECK_EQ(m.seen[i][j], target);
        CHECK_EQ(nodedb_tpc_get_stats(runtime, i, &stats), NODEDB_OK);
        CHECK_EQ(stats.messages, MESH_CORES * target + 1);
        CHECK_EQ(stats.sent, MESH_CORES * target);
        CHECK_EQ(stats.posted, 1);
        CHECK_EQ(stats.dropped, 0);
        CHECK(stats.wakes + stats.wakes_avoided > 0);
        CHECK(stats.spins == 0 || spins_allowed);
        CHECK(stats.ring_high_water > 0 && stats.ring_high_water <= (ring_messages > 1024 ? ring_messages : 1024));
    }
    nodedb_tpc_destroy(runtime);
}

TEST(letters_between_all_cores_arrive_once_and_in_order_and_a_stop_drains_them) {
    run_mesh(SANITIZED ? 3000 : 20000, 64, true);
    run_mesh(SANITIZED ? 500 : 5000, 2, true);
}

TEST(the_same_holds_on_a_single_cpu_where_no_core_spins) {
    cpu_set_t before, one;
    int cpu = 0;
    REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    while (!CPU_ISSET(cpu, &before)) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    run_mesh(SANITIZED ? 1000 : 5000, 64, false);
    CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
}

/* One letter that goes round the cores, so that each hop may have to wake a parked core. */
static void hop(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    letter *l = message;
    uint32_t next = (nodedb_tpc_core_index(core) + 1) % nodedb_tpc_core_count(nodedb_tpc_core_runtime(core));
    (void)from;
    if (l->hops-- == 0) { atomic_bump((int *)ctx); return; }
    CHECK_EQ(nodedb_tpc_send(core, next, message), NODEDB_OK);
    if (l->hops % 2 == 0) nodedb_tpc_flush(core);
}

TEST(a_letter_goes_round_parked_cores_without_waiting_for_a_park_to_time_out) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, SANITIZED ? 2000 : 20000, {0}};
    int arrived = 0;
    uint64_t begin = nodedb_now_ns(NULL);
    memset(&config, 0, sizeof config);
    config.cores = 3;
    config.ctx = &arrived;
    config.on_message = hop;
    config.spin_ns = NODEDB_TPC_OFF;
    config.drain_ns = 100 * SECOND_NS;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, &l, NULL), NODEDB_OK);
    while (atomic_read(&arrived) == 0) usleep(1000);
    /* were one wake in a hundred lost, its park of 100 ms would make this 20 s and more */
    CHECK(nodedb_now_ns(NULL) - begin < 15 * SECOND_NS);
    nodedb_tpc_destroy(runtime);
}

typedef struct poster { nodedb_tpc *runtime; uint64_t count; uint32_t id; } poster;
typedef struct posted { uint64_t seen[4][3]; int wrong; } posted;

static void *poster_thread(void *arg) {
    poster *p = arg;
    uint64_t i;
    for (i = 0; i < p->count; i++) {
        letter l = {p->id, i, 0, {0}};
        while (nodedb_tpc_post(p->runtime, (uint32_t)(i % 2), &l, NULL) == NODEDB_ERR_AGAIN) sched_yield();
    }
    return NULL;
}

static void posted_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    posted *p = ctx;
    letter *l = message;
    uint64_t *next = &p->seen[l->kind][nodedb_tpc_core_index(core)];
    if (from != NODEDB_TPC_OUTSIDE || l->number / 2 != *next) atomic_bump(&p->wrong);
    ++*next;
}

TEST(threads_outside_post_side_by_side_and_each_ones_letters_stay_in_order) {
    posted p;
    poster posters[4];
    pthread_t threads[4];
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    nodedb_error err;
    letter l = {0, 0, 0, {0}};
    uint32_t i;
    memset(&p, 0, sizeof p);
    memset(&config, 0, sizeof config);
    config.cores = 2;
    config.ctx = &p;
    config.inbox_messages = 32;
    config.on_message = posted_message;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    for (i = 0; i < 4; i++) {
        posters[i].runtime = runtime;
        posters[i].count = SANITIZED ? 2000 : 10000;
        posters[i].id = i;
        REQUIRE(pthread_create(&threads[i], NULL, poster_thread, &posters[i]) == 0);
    }
    for (i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 2, &l, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, NULL, &err), NODEDB_ERR_INVALID);
    nodedb_tpc_stop(runtime);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, &l, &err), NODEDB_ERR_CANCELLED);
    CHECK_HAS(err.message, "stopping");
    nodedb_tpc_join(runtime, NULL);
    CHECK_EQ(p.wrong, 0);
    for (i = 0; i < 4; i++) CHECK_EQ(p.seen[i][0] + p.seen[i][1], posters[i].count);
    nodedb_tpc_destroy(runtime);
}

/* ---- manual cores: turn by turn ---------------------------------------------------------------------------------- */

TEST(a_turn_takes_at_most_a_batch_from_each_ring_so_that_no_sender_starves) {
    world w;
    nodedb_tpc_config config = world_config(&w, 3);
    nodedb_tpc_core *core = world_create(&w, &config), *busy, *rare;
    letter l = {0, 0, 0, {0}};
    bool last[3] = {false, false, false};
    int i;
    REQUIRE(core != NULL);
    busy = nodedb_tpc_core_at(w.runtime, 1);
    rare = nodedb_tpc_core_at(w.runtime, 2);
    for (i = 0; i < 500; i++) CHECK_EQ(nodedb_tpc_send(busy, 0, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_send(rare, 0, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_post(w.runtime, 0, &l, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(w.messages_from[1], NODEDB_TPC_BATCH_MESSAGES);
    CHECK_EQ(w.messages_from[2], 1);
    CHECK_EQ(w.outside, 1);
    while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
    CHECK_EQ(w.messages_from[1], 500);
    for (i = 0; i < 4; i++) { /* and no sender is always the first one, or the last */
        CHECK_EQ(nodedb_tpc_send(busy, 0, &l), NODEDB_OK);
        CHECK_EQ(nodedb_tpc_send(rare, 0, &l), NODEDB_OK);
        CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
        last[w.last_from] = true;
    }
    CHECK(last[1] && last[2]);
    nodedb_tpc_destroy(w.runtime);
    CHECK_EQ(w.started, 3);
    CHECK_EQ(w.stopped, 3);
}

TEST(sending_to_a_full_ring_says_again_and_pressure_warns_before) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core;
    nodedb_tpc_stats stats;
    letter l = {0, 0, 0, {0}};
    int i;
    config.ring_messages = 128;
    config.inbox_messages = 2;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_pressure(core, 1), NODEDB_TPC_PRESSURE_NONE);
    for (i = 0; i < 128; i++) CHECK_EQ(nodedb_tpc_send(core, 1, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_pressure(core, 1), NODEDB_TPC_PRESSURE_SUSPENDED);
    CHECK_EQ(nodedb_tpc_send(core, 1, &l), NODEDB_ERR_AGAIN);
    CHECK_EQ(nodedb_tpc_send(core, 2, &l), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_send(core, 1, NULL), NODEDB_ERR_INVALID);
    for (i = 0; i < 2; i++) CHECK_EQ(nodedb_tpc_post(w.runtime, 1, &l, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_post(w.runtime, 1, &l, NULL), NODEDB_ERR_AGAIN);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK_EQ(stats.sent, 128);
    CHECK_EQ(stats.send_refused, 1);
    nodedb_tpc_get_stats(w.runtime, 1, &stats);
    CHECK_EQ(stats.ring_high_water, 128);
    nodedb_tpc_destroy(w.runtime);
    CHECK_EQ(w.messages_from[0], 128);
}

TEST(a_core_sends_to_itself_through_its_local_queue) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    letter l = {0, 0, 0, {0}};
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_send(core, 0, &l), NODEDB_OK);
    CHECK_EQ(w.messages_from[0], 0);
    CHECK_EQ(nodedb_tpc_turn(core, 10 * SECOND_NS), NODEDB_OK);
    CHECK_EQ(w.messages_from[0], 1);
    nodedb_tpc_destroy(w.runtime);
}

/* Runs after the turn's look at the rings, and before its park. */
static void post_one(world *w) {
    letter l = {0, 0, 0, {0}};
    CHECK_EQ(nodedb_tpc_post(w->runtime, 0, &l, NULL), NODEDB_OK);
}

TEST(a_letter_that_arrives_between_the_look_at_the_rings_and_the_park_keeps_the_core_awake) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    config.wait = world_wait;
    config.spin_ns = NODEDB_TPC_OFF;
    config.maintain = world_maintain;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    w.in_maintain = post_one;
    w.clock.now += MILLISECOND_NS;
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.maintained, 1);
    CHECK_EQ(w.waits, 0);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(w.outside, 1);
    nodedb_tpc_destroy(w.runtime);
}

static void send_from_maintenance(world *w) {
    letter l = {0, 0, 0, {0}};
    CHECK_EQ(nodedb_tpc_send(nodedb_tpc_core_at(w->runtime, 0), 1, &l), NODEDB_OK);
}
static void turn_the_other(world *w) {
    w->clock.now += MILLISECOND_NS;
    w->in_maintain = send_from_maintenance;
    CHECK_EQ(nodedb_tpc_turn(nodedb_tpc_core_at(w->runtime, 0), 0), NODEDB_ERR_AGAIN);
    w->in_maintain = NULL;
    CHECK(readable(nodedb_tpc_core_fd(nodedb_tpc_core_at(w->runtime, 1))));
}

TEST(what_maintenance_and_heartbeats_send_wakes_its_reader_in_the_same_turn) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    config.wait = world_wait;
    config.spin_ns = NODEDB_TPC_OFF;
    config.maintain = world_maintain;
    REQUIRE(world_create(&w, &config) != NULL);
    w.in_wait = turn_the_other;
    CHECK_EQ(nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, 1), SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.waits, 1);
    w.in_wait = NULL;
    nodedb_tpc_destroy(w.runtime);
}

/* Runs in core 1's wait hook, while core 1 is parked. */
static void send_three_while_parked(world *w) {
    nodedb_tpc_core *core = nodedb_tpc_core_at(w->runtime, 0);
    letter l = {0, 0, 0, {0}};
    int i, fd = nodedb_tpc_core_fd(nodedb_tpc_core_at(w->runtime, 1));
    for (i = 0; i < 3; i++) CHECK_EQ(nodedb_tpc_send(core, 1, &l), NODEDB_OK);
    CHECK(!readable(fd)); /* collected, not issued */
    if (w->waits == 1) CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    else nodedb_tpc_flush(core);
    CHECK(readable(fd));
}

TEST(wakes_are_collected_and_issued_once_in_a_turn_or_at_once_by_flush) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *parked;
    nodedb_tpc_stats stats;
    letter l = {0, 0, 0, {0}};
    config.wait = world_wait;
    config.spin_ns = NODEDB_TPC_OFF;
    REQUIRE(world_create(&w, &config) != NULL);
    w.in_wait = send_three_while_parked;
    parked = nodedb_tpc_core_at(w.runtime, 1);
    CHECK_EQ(nodedb_tpc_turn(parked, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK(!readable(nodedb_tpc_core_fd(parked))); /* emptied after the hook */
    CHECK_EQ(w.waits, 1);
    CHECK_EQ(w.last_timeout, NODEDB_TPC_PARK_NS_MAX);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK_EQ(stats.wakes, 1);
    CHECK_EQ(nodedb_tpc_turn(parked, SECOND_NS), NODEDB_OK);
    CHECK_EQ(w.messages_from[0], 3);
    CHECK_EQ(nodedb_tpc_turn(parked, SECOND_NS), NODEDB_ERR_AGAIN);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK_EQ(stats.wakes, 2);
    w.in_wait = NULL;
    CHECK_EQ(nodedb_tpc_send(nodedb_tpc_core_at(w.runtime, 0), 1, &l), NODEDB_OK); /* it is awake now */
    nodedb_tpc_flush(nodedb_tpc_core_at(w.runtime, 0));
    CHECK(!readable(nodedb_tpc_core_fd(parked)));
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK_EQ(stats.wakes, 2);
    CHECK_EQ(stats.wakes_avoided, 1);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_core_with_work_does_not_wait_and_an_idle_one_waits_until_its_next_heartbeat_at_most) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    letter l = {0, 0, 0, {0}};
    config.wait = world_wait;
    config.poll = world_poll;
    config.spin_ns = NODEDB_TPC_OFF;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    w.poll_events = 2; /* the hook's events count as work */
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(w.waits, 0);
    CHECK_EQ(nodedb_tpc_post(w.runtime, 0, &l, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(w.waits, 0);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN); /* 0: does not wait at all */
    CHECK_EQ(w.waits, 0);
    CHECK_EQ(nodedb_tpc_turn(core, MILLISECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.waits, 1);
    CHECK_EQ(w.last_timeout, MILLISECOND_NS);
    while (w.heartbeats == 0 && w.clock.now < 1002 * SECOND_NS) {
        nodedb_tpc_stats stats;
        CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_ERR_AGAIN);
        CHECK(w.last_timeout > 0 && w.last_timeout <= NODEDB_TPC_PARK_NS_MAX);
        w.clock.now += w.last_timeout;
        nodedb_tpc_get_stats(w.runtime, 0, &stats);
        if (stats.heartbeats > 0) break;
    }
    CHECK(w.clock.now >= 1000 * SECOND_NS + 950 * MILLISECOND_NS &&
          w.clock.now <= 1001 * SECOND_NS + 150 * MILLISECOND_NS);
    nodedb_tpc_destroy(w.runtime);
}

TEST(maintenance_comes_at_its_interval_with_its_budget_and_at_once_if_there_is_more) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    config.maintain = world_maintain;
    config.maintenance_interval_ns = 10 * MILLISECOND_NS;
    config.maintenance_budget_ns = 777;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    nodedb_tpc_turn(core, 0);
    CHECK_EQ(w.maintained, 0);
    w.clock.now += 10 * MILLISECOND_NS;
    w.maintain_more = true;
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK); /* more to do counts as work */
    CHECK_EQ(w.maintained, 1);
    CHECK_EQ(w.last_budget, 777);
    w.maintain_more = false;
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.maintained, 2);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.maintained, 2);
    nodedb_tpc_destroy(w.runtime);
}

/* A core's own epoll set, with a pipe and the core's eventfd in it: what a server does. */
typedef struct server { int epoll, pipe[2], letters, bytes; } server;

static nodedb_status server_start(nodedb_tpc_core *core, void *ctx, nodedb_error *err) {
    server *s = ctx;
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = EPOLLIN;
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    event.data.fd = nodedb_tpc_core_fd(core);
    if (s->epoll < 0 || epoll_ctl(s->epoll, EPOLL_CTL_ADD, event.data.fd, &event) != 0)
        return nodedb_fail(err, NODEDB_ERR_IO, errno, "epoll");
    event.data.fd = s->pipe[0];
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, event.data.fd, &event) != 0)
        return nodedb_fail(err, NODEDB_ERR_IO, errno, "epoll");
    return NODEDB_OK;
}
static void server_stop(nodedb_tpc_core *core, void *ctx) { (void)core; close(((server *)ctx)->epoll); }
static void server_wait(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns) {
    struct epoll_event events[4];
    (void)core;
    (void)epoll_wait(((server *)ctx)->epoll, events, 4, (int)((timeout_ns + 999999) / 1000000));
}
static size_t server_poll(nodedb_tpc_core *core, void *ctx) {
    server *s = ctx;
    struct epoll_event events[4];
    int n = epoll_wait(s->epoll, events, 4, 0), i;
    size_t handled = 0;
    for (i = 0; i < n; i++) {
        char byte;
        if (events[i].data.fd == nodedb_tpc_core_fd(core) || read(s->pipe[0], &byte, 1) != 1) continue;
        handled++;
        atomic_bump(&s->bytes);
    }
    return handled;
}
static void server_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    (void)core, (void)from, (void)message;
    atomic_bump(&((server *)ctx)->letters);
}

TEST(a_core_waits_in_the_users_epoll_for_sockets_and_letters_alike) {
    server s;
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    int i;
    memset(&s, 0, sizeof s);
    memset(&config, 0, sizeof config);
    REQUIRE(pipe(s.pipe) == 0);
    config.cores = 1;
    config.ctx = &s;
    config.on_start = server_start;
    config.on_stop = server_stop;
    config.on_message = server_message;
    config.wait = server_wait;
    config.poll = server_poll;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    for (i = 1; i <= 200; i++) { /* one after the other, so that the core is parked for many of them */
        CHECK_EQ(nodedb_tpc_post(runtime, 0, &l, NULL), NODEDB_OK);
        while (atomic_read(&s.letters) < i) sched_yield();
        REQUIRE(write(s.pipe[1], "x", 1) == 1);
        while (atomic_read(&s.bytes) < i) sched_yield();
        if (i % 20 == 0) usleep(500);
    }
    nodedb_tpc_destroy(runtime);
    close(s.pipe[0]);
    close(s.pipe[1]);
}

TEST(an_idle_core_parks_and_does_not_spin) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    nodedb_tpc_stats before, after;
    memset(&config, 0, sizeof config);
    config.cores = 1;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    usleep(250000);
    nodedb_tpc_get_stats(runtime, 0, &before);
    usleep(350000);
    nodedb_tpc_get_stats(runtime, 0, &after);
    CHECK(after.parks > before.parks);
    CHECK(after.turns - before.turns < 20000); /* a core that spun would take millions */
    nodedb_tpc_destroy(runtime);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

TEST(a_core_that_cannot_start_is_named_and_everything_is_undone) {
    world w;
    nodedb_error err;
    int manual;
    for (manual = 0; manual < 2; manual++) {
        nodedb_tpc_config config = world_config(&w, 4);
        w.fail_core = 3; /* index 2 */
        CHECK((manual ? nodedb_tpc_create_manual(&config, &err) : nodedb_tpc_start(&config, &err)) == NULL);
        CHECK_EQ(err.status, NODEDB_ERR_LIMIT);
        CHECK_HAS(err.message, "core 2 did not start: no room for my arena");
        CHECK_EQ(w.started, manual ? 2 : 3);
        CHECK_EQ(w.stopped, w.started);
    }
}

/* An allocator that counts, and fails at one call. */
typedef struct ledger { int calls, fail_at; int64_t bytes; } ledger;
static void *ledger_alloc(void *ctx, size_t bytes, size_t align) {
    ledger *l = ctx;
    void *memory = NULL;
    if (++l->calls == l->fail_at || posix_memalign(&memory, align, bytes) != 0) return NULL;
    l->bytes += (int64_t)bytes;
    return memory;
}
static void ledger_release(void *ctx, void *memory, size_t bytes) {
    ((ledger *)ctx)->bytes -= (int64_t)bytes;
    free(memory);
}

TEST(every_refused_allocation_is_an_error_that_leaves_nothing_behind) {
    ledger l;
    nodedb_error err;
    int fail_at = 0;
    nodedb_tpc *runtime = NULL;
    do {
        nodedb_tpc_config config;
        memset(&config, 0, sizeof config);
        memset(&l, 0, sizeof l);
        l.fail_at = ++fail_at;
        config.cores = 2;
        config.catch_signals = true;
        config.allocator.alloc = ledger_alloc;
        config.allocator.release = ledger_release;
        config.allocator.ctx = &l;
        runtime = nodedb_tpc_start(&config, &err);
        if (runtime == NULL) { CHECK_EQ(err.status, NODEDB_ERR_NO_MEMORY); CHECK_EQ(l.bytes, 0); }
    } while (runtime == NULL && fail_at < 100);
    CHECK_EQ(fail_at, 3 + 2 * 5 + 4 + 1); /* the runtime, two tables; five for each core; four rings */
    nodedb_tpc_destroy(runtime);
    CHECK_EQ(l.bytes, 0);
}

TEST(running_out_of_descriptors_is_a_limit_and_not_a_crash) {
    struct rlimit before, none;
    nodedb_error err;
    memset(&err, 0, sizeof err);
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = 3;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(nodedb_tpc_start(NULL, &err) == NULL);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_EQ(err.status, NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "eventfd");
}

TEST(a_wrong_config_is_refused_with_a_sentence) {
    nodedb_tpc_config config;
    nodedb_error err;
    memset(&config, 0, sizeof config);
    config.cores = NODEDB_TPC_MAX_CORES + 1;
    CHECK(nodedb_tpc_start(&config, &err) == NULL);
    CHECK_HAS(err.message, "257 cores");
    config.cores = 1;
    config.ring_messages = 1000;
    CHECK(nodedb_tpc_start(&config, &err) == NULL);
    CHECK_HAS(err.message, "power");
    config.ring_messages = 0;
    config.message_bytes = NODEDB_TPC_MAX_MESSAGE_BYTES + 1;
    CHECK(nodedb_tpc_start(&config, &err) == NULL);
    config.message_bytes = 0;
    config.name = "a name that is too long";
    CHECK(nodedb_tpc_start(&config, &err) == NULL);
    CHECK_HAS(err.message, "longer");
    config.name = NULL;
    config.heartbeat_ns = 1;
    CHECK(nodedb_tpc_start(&config, &err) == NULL);
    CHECK_EQ(err.status, NODEDB_ERR_INVALID);
}

TEST(no_config_gives_one_pinned_and_named_core_for_each_cpu) {
    cpu_set_t allowed;
    uint32_t i;
    nodedb_tpc *runtime = nodedb_tpc_start(NULL, NULL);
    REQUIRE(runtime != NULL && sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    CHECK_EQ(nodedb_tpc_core_count(runtime), CPU_COUNT(&allowed));
    for (i = 0; i < nodedb_tpc_core_count(runtime); i++) {
        nodedb_tpc_core *core = nodedb_tpc_core_at(runtime, i);
        char name[16] = "";
        cpu_set_t set;
        CHECK_EQ(nodedb_tpc_core_index(core), i);
        CHECK(CPU_ISSET(nodedb_tpc_core_cpu(core), &allowed));
        CHECK_EQ(pthread_getaffinity_np(core->thread, sizeof set, &set), 0);
        CHECK(CPU_COUNT(&set) == 1 && CPU_ISSET(nodedb_tpc_core_cpu(core), &set));
        CHECK_EQ(pthread_getname_np(core->thread, name, sizeof name), 0);
        CHECK_HAS(name, "tpc-");
    }
    CHECK(nodedb_tpc_core_at(runtime, i) == NULL);
    nodedb_tpc_destroy(runtime);
}

TEST(a_stop_waits_for_a_pending_core_and_posts_are_refused_meanwhile) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core;
    letter l = {0, 0, 0, {0}};
    config.pending = world_pending;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_join(w.runtime, NULL), NODEDB_ERR_STATE); /* nobody stopped it */
    CHECK(!nodedb_tpc_stopping(w.runtime));
    w.pending = true;
    nodedb_tpc_stop(w.runtime);
    nodedb_tpc_stop(w.runtime);
    CHECK(nodedb_tpc_stopping(w.runtime));
    CHECK_EQ(nodedb_tpc_post(w.runtime, 0, &l, NULL), NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, 1), 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(nodedb_tpc_send(core, 1, &l), NODEDB_OK); /* what is still to be done may send and spawn */
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_OK);
    w.pending = false;
    CHECK_EQ(nodedb_tpc_join(w.runtime, NULL), NODEDB_OK);
    CHECK_EQ(w.messages_from[0], 1);
    CHECK_EQ(w.ran, 1);
    CHECK_EQ(w.stopped, 2);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_tpc_send(core, 1, &l), NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_tpc_join(w.runtime, NULL), NODEDB_OK);
    nodedb_tpc_destroy(w.runtime);
}

static void task_sends_to_0(nodedb_tpc_core *core, void *arg) {
    letter l = {0, 0, 0, {0}};
    (void)arg;
    CHECK_EQ(nodedb_tpc_send(core, 0, &l), NODEDB_OK);
}

TEST(a_stop_waits_for_a_letter_on_its_way_to_a_core_that_is_idle_already) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config), *other;
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    CHECK_EQ(nodedb_tpc_spawn(other, task_sends_to_0, NULL, 0, 0), NODEDB_OK);
    nodedb_tpc_stop(w.runtime);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_ERR_AGAIN); /* all are idle, but the letter is still in its ring */
    CHECK_EQ(nodedb_tpc_join(w.runtime, NULL), NODEDB_OK);
    CHECK_EQ(w.messages_from[1], 1);
    nodedb_tpc_destroy(w.runtime);
}

static void task_for_ever(nodedb_tpc_core *core, void *arg) {
    ((world *)arg)->clock.now += SECOND_NS;
    (void)nodedb_tpc_spawn(core, task_for_ever, arg, 0, 0);
}

TEST(a_stop_that_cannot_drain_in_time_answers_what_is_left_and_ends) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_spawn(core, task_for_ever, &w, 0, 0), NODEDB_OK);
    nodedb_tpc_stop(w.runtime);
    CHECK_EQ(nodedb_tpc_join(w.runtime, NULL), NODEDB_OK);
    CHECK_EQ(w.last_status, NODEDB_ERR_CANCELLED);
    CHECK_HAS(w.last_sentence, "stopped");
    CHECK_HAS(w.notes.last, "not drained in time");
    nodedb_tpc_destroy(w.runtime);
}

static void stops_from_inside(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    nodedb_error err;
    (void)from, (void)message;
    CHECK(nodedb_tpc_self() == core);
    CHECK_EQ(nodedb_tpc_join(nodedb_tpc_core_runtime(core), &err), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_STATE);
    nodedb_tpc_stop(nodedb_tpc_core_runtime(core));
    atomic_bump((int *)ctx);
}

TEST(a_core_may_stop_its_runtime_but_not_join_it) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    int handled = 0;
    memset(&config, 0, sizeof config);
    config.cores = 2;
    config.ctx = &handled;
    config.on_message = stops_from_inside;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    CHECK(nodedb_tpc_self() == NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 1, &l, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_join(runtime, NULL), NODEDB_OK);
    CHECK_EQ(handled, 1);
    nodedb_tpc_destroy(runtime);
}

TEST(calls_from_a_wrong_thread_are_refused) {
    nodedb_tpc *runtime = nodedb_tpc_start(NULL, NULL);
    nodedb_tpc_core *core = nodedb_tpc_core_at(runtime, 0);
    letter l = {0, 0, 0, {0}};
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_send(core, 0, &l), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, NULL, 0, 0), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, NULL, 0), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_defer(core, task_run, NULL), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_send(NULL, 0, &l), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_guard(NULL, task_run, NULL, 0), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_turn(NULL, 0), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_join(NULL, NULL), NODEDB_ERR_INVALID);
    nodedb_tpc_destroy(runtime);
    nodedb_tpc_destroy(NULL);
    nodedb_tpc_stop(NULL);
}

TEST(two_runtimes_live_side_by_side) {
    static int arrived[2];
    nodedb_tpc_config config;
    nodedb_tpc *one, *two;
    /* one uses 64 bytes of it, two all */
    letter wide[4] = {{0, 0, 10, {0}}, {0, 0, 0, {0}}, {0, 0, 0, {0}}, {0, 0, 0, {0}}};
    memset(&config, 0, sizeof config);
    config.on_message = hop;
    config.ctx = &arrived[0];
    one = nodedb_tpc_start(&config, NULL);
    config.ctx = &arrived[1];
    config.message_bytes = 256;
    two = nodedb_tpc_start(&config, NULL);
    REQUIRE(one != NULL && two != NULL);
    CHECK_EQ(nodedb_tpc_post(one, 0, wide, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_post(two, 0, wide, NULL), NODEDB_OK);
    while (atomic_read(&arrived[0]) == 0) usleep(1000);
    nodedb_tpc_destroy(one);
    while (atomic_read(&arrived[1]) == 0) usleep(1000);
    nodedb_tpc_destroy(two);
}

TEST_MAIN("tpc")
