/* Tests of nodedb_tpc.h: calls and their answers, timers, messages that their handler leaves in the ring, and the wait
 * of cores without sockets. */
#include "tpc_world.h"

/* ---- calls, turn by turn ----------------------------------------------------------------------------------------- */

/* What a call does and who saw it. */
typedef struct errand {
    nodedb_tpc_call call; /* first */
    int number, ran_on, answered_on, ran, answered;
    nodedb_tpc_call *held;
} errand;

static int errand_order[200], errands_run;

static void run_errand(nodedb_tpc_core *core, void *arg) {
    errand *e = arg;
    e->ran++;
    e->ran_on = (int)nodedb_tpc_core_index(core);
    if (errands_run < 200) errand_order[errands_run++] = e->number;
}
static void hold_errand(nodedb_tpc_core *core, void *arg) {
    run_errand(core, arg);
    ((errand *)arg)->held = nodedb_tpc_call_hold(core);
}
static void panic_errand(nodedb_tpc_core *core, void *arg) {
    run_errand(core, arg);
    nodedb_tpc_panic(core, "errand %d", ((errand *)arg)->number);
}
static void hold_and_panic_errand(nodedb_tpc_core *core, void *arg) {
    hold_errand(core, arg);
    nodedb_tpc_panic(core, "held in vain");
}
static void answer_at_once_errand(nodedb_tpc_core *core, void *arg) {
    hold_errand(core, arg);
    CHECK_EQ(nodedb_tpc_call_answer(core, ((errand *)arg)->held, NODEDB_ERR_EXISTS), NODEDB_OK);
    CHECK(nodedb_tpc_call_hold(core) == NULL);
}
static void errand_answered(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    errand *e = (errand *)(void *)call;
    e->answered++;
    e->answered_on = (int)nodedb_tpc_core_index(core);
}

static errand new_errand(nodedb_tpc_fn fn) {
    errand e;
    memset(&e, 0, sizeof e);
    e.call.fn = fn;
    e.call.answered = errand_answered;
    return e;
}

/* Starts it on core 0 for core 1, and takes as many turns as a call and its answer need. */
static void run_call(world *w, errand *e) {
    e->call.arg = e;
    CHECK_EQ(nodedb_tpc_call_start(nodedb_tpc_core_at(w->runtime, 0), 1, &e->call), NODEDB_OK);
    (void)nodedb_tpc_turn(nodedb_tpc_core_at(w->runtime, 1), 0);
    (void)nodedb_tpc_turn(nodedb_tpc_core_at(w->runtime, 0), 0);
}

TEST(a_call_runs_on_the_other_core_and_is_answered_on_its_own) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config), *other;
    errand e = new_errand(run_errand);
    nodedb_tpc_stats stats;
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    e.call.arg = &e;
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &e.call), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &e.call), NODEDB_ERR_STATE); /* it is under way */
    CHECK_EQ(e.ran, 0);
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_OK);
    CHECK(e.ran == 1 && e.ran_on == 1 && e.answered == 0);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK(e.answered == 1 && e.answered_on == 0 && e.call.status == NODEDB_OK);
    run_call(&w, &e); /* the struct is free again */
    CHECK(e.ran == 2 && e.answered == 2);
    CHECK_EQ(nodedb_tpc_call_start(core, 0, &e.call), NODEDB_OK); /* to itself */
    while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
    CHECK(e.ran == 3 && e.ran_on == 0 && e.answered == 3);
    CHECK_EQ(nodedb_tpc_get_stats(w.runtime, 1, &stats), NODEDB_OK);
    CHECK_EQ(stats.calls, 2);
    CHECK_EQ(nodedb_tpc_call_start(core, 2, &e.call), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_call_start(core, 1, NULL), NODEDB_ERR_INVALID);
    e.call.fn = NULL;
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &e.call), NODEDB_ERR_INVALID);
    CHECK(nodedb_tpc_call_hold(core) == NULL); /* no call runs */
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_call_that_faults_is_answered_so_and_one_that_is_refused_does_not_run) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    errand e = new_errand(panic_errand);
    REQUIRE(world_create(&w, &config) != NULL);
    e.number = 7, e.call.request_id = 4711;
    run_call(&w, &e);
    CHECK(e.answered == 1 && e.call.status == NODEDB_ERR_FAULT);
    CHECK_HAS(w.notes.last, "errand 7");
    run_call(&w, &e);
    run_call(&w, &e);
    CHECK(e.answered == 3 && e.ran == 2 && e.call.status == NODEDB_ERR_DEGRADED);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_held_call_is_answered_when_its_core_says_so) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config), *other;
    errand held = new_errand(hold_errand), second = new_errand(hold_errand);
    errand at_once = new_errand(answer_at_once_errand), fault = new_errand(hold_and_panic_errand);
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    run_call(&w, &held);
    run_call(&w, &second);
    CHECK(held.ran == 1 && held.answered == 0 && held.held == &held.call);
    CHECK_EQ(nodedb_tpc_call_answer(core, held.held, NODEDB_OK), NODEDB_ERR_STATE); /* another core holds it */
    CHECK_EQ(nodedb_tpc_call_answer(other, held.held, NODEDB_OK), NODEDB_OK);
    while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
    CHECK(held.answered == 1 && held.call.status == NODEDB_OK && second.answered == 0);
    CHECK_EQ(nodedb_tpc_call_answer(other, held.held, NODEDB_OK), NODEDB_ERR_STATE); /* it is answered */
    CHECK_EQ(nodedb_tpc_call_answer(other, second.held, NODEDB_ERR_NOT_FOUND), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_call_answer(other, NULL, NODEDB_OK), NODEDB_ERR_INVALID);
    while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
    CHECK(second.answered == 1 && second.call.status == NODEDB_ERR_NOT_FOUND);
    run_call(&w, &at_once);
    CHECK(at_once.answered == 1 && at_once.call.status == NODEDB_ERR_EXISTS);
    run_call(&w, &fault);
    CHECK(fault.answered == 1 && fault.call.status == NODEDB_ERR_FAULT);
    CHECK(other->held_calls == NULL);
    nodedb_tpc_destroy(w.runtime);
}

TEST(calls_run_in_the_order_in_which_they_were_started_and_a_turn_runs_at_most_64) {
    static errand errands[150];
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config), *other;
    int i;
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    errands_run = 0;
    for (i = 0; i < 150; i++) {
        errands[i] = new_errand(run_errand);
        errands[i].call.arg = &errands[i], errands[i].number = i;
        if (i < 100) CHECK_EQ(nodedb_tpc_call_start(core, 1, &errands[i].call), NODEDB_OK);
    }
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_OK);
    CHECK_EQ(errands_run, NODEDB_TPC_CALLS_PER_TURN);
    for (i = 100; i < 150; i++) CHECK_EQ(nodedb_tpc_call_start(core, 1, &errands[i].call), NODEDB_OK);
    while (nodedb_tpc_turn(other, 0) == NODEDB_OK) {}
    CHECK_EQ(errands_run, 150);
    for (i = 0; i < 150; i++) CHECK_EQ(errand_order[i], i);
    while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
    for (i = 0; i < 150; i++) CHECK_EQ(errands[i].answered, 1);
    nodedb_tpc_destroy(w.runtime);
}

static errand sent_by_hook;
static void start_call_while_parked(world *w) {
    nodedb_tpc_core *core = nodedb_tpc_core_at(w->runtime, 0);
    int fd = nodedb_tpc_core_fd(nodedb_tpc_core_at(w->runtime, 1));
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &sent_by_hook.call), NODEDB_OK);
    nodedb_tpc_flush(core);
    CHECK(readable(fd));
}
static void start_call_before_park(world *w) {
    nodedb_tpc_core *core = nodedb_tpc_core_at(w->runtime, 0);
    w->in_maintain = NULL;
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &sent_by_hook.call), NODEDB_OK);
}

TEST(a_call_wakes_a_parked_core_and_keeps_awake_one_that_is_about_to_park) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *other;
    config.wait = world_wait, config.maintain = world_maintain, config.spin_ns = NODEDB_TPC_OFF;
    REQUIRE(world_create(&w, &config) != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    sent_by_hook = new_errand(run_errand), sent_by_hook.call.arg = &sent_by_hook;
    w.in_wait = start_call_while_parked;
    CHECK_EQ(nodedb_tpc_turn(other, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.waits, 1);
    w.in_wait = NULL;
    CHECK_EQ(nodedb_tpc_turn(other, SECOND_NS), NODEDB_OK);
    (void)nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, 0), 0);
    CHECK_EQ(sent_by_hook.answered, 1);
    w.clock.now += MILLISECOND_NS;
    w.in_maintain = start_call_before_park; /* after the turn's look at the calls */
    CHECK_EQ(nodedb_tpc_turn(other, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.waits, 1);
    CHECK_EQ(nodedb_tpc_turn(other, SECOND_NS), NODEDB_OK);
    CHECK_EQ(sent_by_hook.ran, 2);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_stop_waits_for_calls_and_cancels_those_that_are_held_too_long) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config), *other;
    errand sent = new_errand(run_errand), held = new_errand(hold_errand), self = new_errand(hold_errand);
    int i;
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    run_call(&w, &held);
    sent.call.arg = &sent, self.call.arg = &self;
    CHECK_EQ(nodedb_tpc_call_start(other, 1, &self.call), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &sent.call), NODEDB_OK);
    nodedb_tpc_stop(w.runtime);
    for (i = 0; i < 10; i++) {
        CHECK(nodedb_tpc_turn(core, 0) != NODEDB_ERR_CANCELLED);
        CHECK(nodedb_tpc_turn(other, 0) != NODEDB_ERR_CANCELLED);
    }
    CHECK(sent.answered == 1 && sent.call.status == NODEDB_OK && held.answered == 0 && self.ran == 1);
    w.clock.now += 11 * SECOND_NS;
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_ERR_CANCELLED);
    CHECK(self.answered == 1 && self.call.status == NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_tpc_call_start(core, 1, &sent.call), NODEDB_ERR_CANCELLED);
    CHECK_EQ(nodedb_tpc_join(w.runtime, NULL), NODEDB_OK);
    CHECK(held.answered == 1 && held.call.status == NODEDB_ERR_CANCELLED);
    nodedb_tpc_destroy(w.runtime);
}

/* ---- calls between threads --------------------------------------------------------------------------------------- */

enum { CALLER_CORES = 3 };
typedef struct exchange {
    uint64_t calls; /* each core makes so many to each other one */
    errand errands[CALLER_CORES][CALLER_CORES];
    uint64_t run_on[CALLER_CORES], answered_by[CALLER_CORES]; /* each by its own core */
} exchange;
static exchange exchanged;

static void count_exchange(nodedb_tpc_core *core, void *arg) {
    (void)arg;
    exchanged.run_on[nodedb_tpc_core_index(core)]++;
}
static void exchange_again(nodedb_tpc_core *core, nodedb_tpc_call *call) {
    uint32_t me = nodedb_tpc_core_index(core), to = (uint32_t)((errand *)(void *)call)->number;
    CHECK_EQ(call->status, NODEDB_OK);
    exchanged.answered_by[me]++;
    if ((uint64_t)++((errand *)(void *)call)->answered < exchanged.calls)
        CHECK_EQ(nodedb_tpc_call_start(core, to, call), NODEDB_OK);
}
static void begin_exchange(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    uint32_t me = nodedb_tpc_core_index(core), to;
    (void)from, (void)message, (void)ctx;
    for (to = 0; to < CALLER_CORES; to++) {
        errand *e = &exchanged.errands[me][to];
        e->call.fn = count_exchange, e->call.answered = exchange_again, e->number = (int)to;
        CHECK_EQ(nodedb_tpc_call_start(core, to, &e->call), NODEDB_OK);
    }
}

TEST(cores_that_call_each_other_get_every_answer_once_and_a_stop_waits_for_them) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    uint32_t i;
    memset(&config, 0, sizeof config);
    memset(&exchanged, 0, sizeof exchanged);
    exchanged.calls = SLOW ? 300 : 3000;
    config.cores = CALLER_CORES;
    config.on_message = begin_exchange;
    config.drain_ns = 100 * SECOND_NS;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    for (i = 0; i < CALLER_CORES; i++) CHECK_EQ(nodedb_tpc_post(runtime, i, &l, NULL), NODEDB_OK);
    nodedb_tpc_stop(runtime);
    CHECK_EQ(nodedb_tpc_join(runtime, NULL), NODEDB_OK);
    for (i = 0; i < CALLER_CORES; i++) {
        CHECK_EQ(exchanged.run_on[i], CALLER_CORES * exchanged.calls);
        CHECK_EQ(exchanged.answered_by[i], CALLER_CORES * exchanged.calls);
    }
    nodedb_tpc_destroy(runtime);
}

/* A question of a thread outside, and its answer: not atomic, as only one side has it at a time. */
typedef struct question { int a, b, sum; } question;
static void add_up(nodedb_tpc_core *core, void *arg) {
    question *q = arg;
    (void)core;
    q->sum = q->a + q->b;
}
static void never_adds_up(nodedb_tpc_core *core, void *arg) {
    question *q = arg;
    nodedb_tpc_panic(core, "%d and %d do not add up", q->a, q->b);
}
static nodedb_tpc_call *held_from_outside[2];
static void hold_question(nodedb_tpc_core *core, void *arg) {
    add_up(core, arg);
    held_from_outside[nodedb_tpc_core_index(core) % 2] = nodedb_tpc_call_hold(core);
}
static size_t answer_held(nodedb_tpc_core *core, void *ctx) {
    nodedb_tpc_call **held = &held_from_outside[nodedb_tpc_core_index(core) % 2], *call = *held;
    (void)ctx;
    *held = NULL;
    if (call != NULL) CHECK_EQ(nodedb_tpc_call_answer(core, call, NODEDB_OK), NODEDB_OK);
    return call != NULL;
}

typedef struct asker {
    nodedb_tpc *runtime;
    uint32_t to;
    int count, right;
    bool until_stopped;
    nodedb_status last;
} asker;
static void *ask(void *arg) {
    asker *a = arg;
    int i;
    a->last = NODEDB_OK;
    for (i = 0; (a->until_stopped || i < a->count) && a->last == NODEDB_OK; i++) {
        question q = {i, 7, 0};
        nodedb_tpc_fn fn = i % 2 == 0 || a->to != 0 ? add_up : hold_question;
        a->last = nodedb_tpc_call_wait(a->runtime, a->to, fn, &q, 0, NULL);
        if (a->last == NODEDB_OK && q.sum == i + 7) a->right++;
    }
    return NULL;
}

TEST(threads_outside_ask_and_get_their_answers_also_such_as_come_later) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    asker askers[3];
    pthread_t threads[3];
    nodedb_error err;
    question q = {1, 2, 0};
    int i;
    memset(&config, 0, sizeof config);
    memset(askers, 0, sizeof askers);
    config.cores = 2;
    config.poll = answer_held;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    for (i = 0; i < 3; i++) { /* one asks core 0, which holds every second question; two ask core 1 */
        askers[i].runtime = runtime, askers[i].to = i > 0, askers[i].count = SLOW ? 200 : 2000;
        REQUIRE(pthread_create(&threads[i], NULL, ask, &askers[i]) == 0);
    }
    for (i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK(askers[i].last == NODEDB_OK && askers[i].right == askers[i].count);
    }
    CHECK_EQ(nodedb_tpc_call_wait(runtime, 1, never_adds_up, &q, 0, &err), NODEDB_ERR_FAULT);
    CHECK_HAS(err.message, "core 1: 1 and 2 do not add up");
    CHECK_EQ(nodedb_tpc_call_wait(runtime, 2, add_up, &q, 0, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_call_wait(runtime, 0, NULL, &q, 0, &err), NODEDB_ERR_INVALID);
    nodedb_tpc_stop(runtime);
    CHECK_EQ(nodedb_tpc_call_wait(runtime, 0, add_up, &q, 0, &err), NODEDB_ERR_CANCELLED);
    nodedb_tpc_destroy(runtime);
}

TEST(a_thread_that_waits_for_an_answer_gets_one_when_the_runtime_stops) {
    nodedb_tpc_config config;
    int round, i;
    for (round = 0; round < 10; round++) {
        nodedb_tpc *runtime;
        asker askers[2];
        pthread_t threads[2];
        memset(&config, 0, sizeof config);
        memset(askers, 0, sizeof askers);
        memset(held_from_outside, 0, sizeof held_from_outside);
        config.cores = 2;
        config.drain_ns = 20 * MILLISECOND_NS; /* nobody answers the held ones of core 0: they are cancelled */
        runtime = nodedb_tpc_start(&config, NULL);
        REQUIRE(runtime != NULL);
        for (i = 0; i < 2; i++) {
            askers[i].runtime = runtime, askers[i].to = (uint32_t)i, askers[i].until_stopped = true;
            REQUIRE(pthread_create(&threads[i], NULL, ask, &askers[i]) == 0);
        }
        usleep(2000);
        nodedb_tpc_stop(runtime);
        for (i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        CHECK(askers[0].last == NODEDB_ERR_CANCELLED && askers[1].last == NODEDB_ERR_CANCELLED);
        nodedb_tpc_destroy(runtime);
    }
}

static void asks_from_inside(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    question q = {1, 2, 0};
    (void)from, (void)message;
    CHECK_EQ(nodedb_tpc_call_wait(nodedb_tpc_core_runtime(core), 1, add_up, &q, 0, NULL), NODEDB_ERR_STATE);
    atomic_bump((int *)ctx);
}

TEST(a_core_must_not_wait_for_a_call) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    question q = {1, 2, 0};
    int asked = 0;
    memset(&config, 0, sizeof config);
    config.cores = 2;
    config.ctx = &asked;
    config.on_message = asks_from_inside;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, &l, NULL), NODEDB_OK);
    nodedb_tpc_destroy(runtime);
    CHECK_EQ(asked, 1);
    runtime = nodedb_tpc_create_manual(&config, NULL);
    REQUIRE(runtime != NULL);
    CHECK_EQ(nodedb_tpc_call_wait(runtime, 0, add_up, &q, 0, NULL), NODEDB_ERR_STATE); /* nobody would take its turn */
    nodedb_tpc_destroy(runtime);
}

/* ---- timers ------------------------------------------------------------------------------------------------------ */

enum { TIMERS = 100 };
typedef struct alarms {
    world *w;
    nodedb_tpc_timer timers[TIMERS];
    int fired[8 * TIMERS], count;
} alarms;
static alarms alarm_clock;

static void ring_alarm(nodedb_tpc_core *core, void *arg) {
    nodedb_tpc_timer *timer = arg;
    (void)core;
    CHECK(alarm_clock.w->clock.now >= timer->due_ns);
    if (alarm_clock.count < 8 * TIMERS) alarm_clock.fired[alarm_clock.count++] = (int)(timer - alarm_clock.timers);
}

TEST(timers_fire_once_in_the_order_of_their_times_and_equal_ones_as_they_were_set) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    nodedb_tpc_timer *t = alarm_clock.timers;
    uint64_t now = w.clock.now;
    nodedb_tpc_stats stats;
    REQUIRE(core != NULL);
    memset(&alarm_clock, 0, sizeof alarm_clock), alarm_clock.w = &w;
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[0], now + 30, ring_alarm, &t[0]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[1], now + 20, ring_alarm, &t[1]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[2], now + 20, ring_alarm, &t[2]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[3], now + 40, ring_alarm, &t[3]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[4], now + 25, ring_alarm, &t[4]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[1], now + 20, ring_alarm, &t[1]), NODEDB_OK); /* set later than 2 now */
    CHECK_EQ(nodedb_tpc_timer_cancel(core, &t[4]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_cancel(core, &t[4]), NODEDB_ERR_NOT_FOUND);
    w.clock.now = now + 19;
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(alarm_clock.count, 0);
    w.clock.now = now + 20;
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK); /* a timer is work */
    CHECK(alarm_clock.count == 2 && alarm_clock.fired[0] == 2 && alarm_clock.fired[1] == 1);
    w.clock.now = now + 100;
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK(alarm_clock.count == 4 && alarm_clock.fired[2] == 0 && alarm_clock.fired[3] == 3);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(nodedb_tpc_get_stats(w.runtime, 0, &stats), NODEDB_OK);
    CHECK_EQ(stats.timers, 4);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[0], 0, NULL, NULL), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_timer_set(core, NULL, 0, ring_alarm, NULL), NODEDB_ERR_INVALID);
    nodedb_tpc_destroy(w.runtime);
}

/* Set, move and cancel at random, beside a model that looks at all of them. */
TEST(timers_do_as_a_list_that_is_searched_from_end_to_end) {
    struct { uint64_t due, order; bool set; } model[TIMERS];
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    uint64_t random = test_seed, order = 0;
    int step, i;
    config.timers = TIMERS;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    memset(&alarm_clock, 0, sizeof alarm_clock), alarm_clock.w = &w;
    memset(model, 0, sizeof model);
    for (step = 0; step < 3000; step++) {
        i = (int)(test_random(&random) % TIMERS);
        if (test_random(&random) % 4 != 0) {
            model[i].due = w.clock.now + test_random(&random) % 300, model[i].order = order++, model[i].set = true;
            CHECK_EQ(nodedb_tpc_timer_set(core, &alarm_clock.timers[i], model[i].due, ring_alarm,
                                          &alarm_clock.timers[i]), NODEDB_OK);
        } else {
            CHECK_EQ(nodedb_tpc_timer_cancel(core, &alarm_clock.timers[i]),
                     model[i].set ? NODEDB_OK : NODEDB_ERR_NOT_FOUND);
            model[i].set = false;
        }
        w.clock.now += test_random(&random) % 5;
        alarm_clock.count = 0;
        while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
        for (i = 0; i < alarm_clock.count; i++) {
            int first = alarm_clock.fired[i], j;
            REQUIRE(model[first].set && model[first].due <= w.clock.now);
            for (j = 0; j < TIMERS; j++)
                if (model[j].set && (model[j].due < model[first].due ||
                                     (model[j].due == model[first].due && model[j].order < model[first].order)))
                    CHECK_EQ(j, first);
            model[first].set = false;
        }
        for (i = 0; i < TIMERS; i++) CHECK(!model[i].set || model[i].due > w.clock.now);
    }
    nodedb_tpc_destroy(w.runtime);
}

static void set_again(nodedb_tpc_core *core, void *arg) {
    CHECK_EQ(nodedb_tpc_timer_set(core, arg, 0, set_again, arg), NODEDB_OK);
}

TEST(timers_are_bounded_in_number_and_in_a_turn_and_belong_to_one_core) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core;
    nodedb_tpc_timer *t = alarm_clock.timers;
    nodedb_tpc_stats stats;
    nodedb_error err;
    config.timers = NODEDB_TPC_MAX_TIMERS + 1;
    CHECK(nodedb_tpc_create_manual(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    config.timers = 2;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    memset(&alarm_clock, 0, sizeof alarm_clock), alarm_clock.w = &w;
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[0], 5, set_again, &t[0]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[1], UINT64_MAX, ring_alarm, &t[1]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[2], 5, ring_alarm, &t[2]), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_tpc_timer_set(core, &t[1], UINT64_MAX, ring_alarm, &t[1]), NODEDB_OK); /* moving needs no room */
    CHECK_EQ(nodedb_tpc_timer_set(nodedb_tpc_core_at(w.runtime, 1), &t[1], 5, ring_alarm, &t[1]), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_timer_cancel(nodedb_tpc_core_at(w.runtime, 1), &t[1]), NODEDB_ERR_STATE);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK); /* one that is always due does not keep the turn for itself */
    CHECK_EQ(nodedb_tpc_get_stats(w.runtime, 0, &stats), NODEDB_OK);
    CHECK_EQ(stats.timers, NODEDB_TPC_TIMERS_PER_TURN);
    CHECK_EQ(nodedb_tpc_timer_cancel(core, &t[0]), NODEDB_OK);
    nodedb_tpc_destroy(w.runtime); /* forgets the other one */
    CHECK_EQ(alarm_clock.count, 0);
}

TEST(a_park_ends_when_the_next_timer_is_due) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    config.wait = world_wait, config.spin_ns = NODEDB_TPC_OFF;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    memset(&alarm_clock, 0, sizeof alarm_clock), alarm_clock.w = &w;
    CHECK_EQ(nodedb_tpc_timer_set(core, &alarm_clock.timers[0], w.clock.now + 12345, ring_alarm,
                                  &alarm_clock.timers[0]), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK(w.waits == 1 && w.last_timeout == 12345);
    w.clock.now += 12345;
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(alarm_clock.count, 1);
    nodedb_tpc_destroy(w.runtime);
}

/* ---- messages that are kept -------------------------------------------------------------------------------------- */

typedef struct shelf { world w; int taken[64], count, keep_at; bool outside; } shelf;

/* Takes letters from core 1 until it comes to number keep_at. */
static void shelve(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    shelf *s = (shelf *)ctx;
    letter *l = message;
    if (l->number == (uint64_t)s->keep_at && (from == NODEDB_TPC_OUTSIDE) == s->outside) {
        CHECK_EQ(nodedb_tpc_keep_message(core), NODEDB_OK);
        return;
    }
    if (s->count < 64) s->taken[s->count++] = (int)(from == 2 ? 100 + l->number : l->number);
}

static nodedb_tpc_core *shelf_create(shelf *s, nodedb_tpc_config *config) {
    memset(s, 0, sizeof *s);
    *config = world_config(&s->w, 3);
    config->ctx = s;
    config->on_start = NULL, config->on_stop = NULL, config->on_task_end = NULL;
    config->on_message = shelve;
    config->ring_messages = 8, config->inbox_messages = 8;
    config->spin_ns = NODEDB_TPC_OFF;
    s->keep_at = 3;
    return world_create(&s->w, config);
}

TEST(a_message_that_its_handler_keeps_comes_again_before_the_later_ones_of_its_sender) {
    shelf s;
    nodedb_tpc_config config;
    nodedb_tpc_core *core = shelf_create(&s, &config), *sender, *other;
    letter l = {0, 0, 0, {0}};
    nodedb_tpc_stats stats;
    int i;
    REQUIRE(core != NULL);
    sender = nodedb_tpc_core_at(s.w.runtime, 1), other = nodedb_tpc_core_at(s.w.runtime, 2);
    for (l.number = 0; l.number < 8; l.number++) CHECK_EQ(nodedb_tpc_send(sender, 0, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(s.count, 3);
    for (i = 0; i < 3; i++) CHECK_EQ(nodedb_tpc_send(sender, 0, &l), NODEDB_OK); /* in the place of the three */
    CHECK_EQ(nodedb_tpc_send(sender, 0, &l), NODEDB_ERR_AGAIN); /* back pressure */
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);       /* keeping is no work */
    l.number = 5;
    CHECK_EQ(nodedb_tpc_send(other, 0, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK); /* other senders go on */
    CHECK(s.count == 4 && s.taken[3] == 105);
    CHECK_EQ(nodedb_tpc_get_stats(s.w.runtime, 0, &stats), NODEDB_OK);
    CHECK(stats.kept == 3 && stats.messages == 4);
    s.keep_at = -1;
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(s.count, 12);
    for (i = 4; i < 9; i++) CHECK_EQ(s.taken[i], i - 1); /* 3 to 7, and then the three that came later */
    CHECK_EQ(nodedb_tpc_keep_message(core), NODEDB_ERR_STATE); /* no handler runs */
    CHECK_EQ(nodedb_tpc_keep_message(NULL), NODEDB_ERR_INVALID);
    nodedb_tpc_destroy(s.w.runtime);
}

static int shelf_waits;
static uint64_t shelf_timeout_ns;
static void shelf_wait(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns) {
    (void)core, (void)ctx;
    shelf_waits++, shelf_timeout_ns = timeout_ns;
}

TEST(a_core_parks_beside_a_message_that_is_kept_and_looks_again_after_a_millisecond) {
    shelf s;
    nodedb_tpc_config config;
    nodedb_tpc_core *core = shelf_create(&s, &config);
    letter l = {0, 3, 0, {0}};
    REQUIRE(core != NULL);
    core->runtime->config.wait = shelf_wait;
    shelf_waits = 0;
    s.outside = true; /* the inbox is a ring like the others */
    CHECK_EQ(nodedb_tpc_post(s.w.runtime, 0, &l, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK(shelf_waits == 1 && shelf_timeout_ns == MILLISECOND_NS);
    l.number = 4;
    CHECK_EQ(nodedb_tpc_send(nodedb_tpc_core_at(s.w.runtime, 1), 0, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(s.count, 1);
    nodedb_tpc_stop(s.w.runtime);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN); /* a stop waits for it, */
    s.keep_at = -1;
    CHECK_EQ(nodedb_tpc_join(s.w.runtime, NULL), NODEDB_OK);
    CHECK_EQ(s.count, 2); /* and it is not lost */
    nodedb_tpc_destroy(s.w.runtime);
}

static void send_from_core_1(world *w) {
    letter l = {0, 9, 0, {0}};
    w->in_maintain = NULL;
    CHECK_EQ(nodedb_tpc_send(nodedb_tpc_core_at(w->runtime, 1), 0, &l), NODEDB_OK);
}

TEST(a_ring_whose_message_was_kept_and_then_taken_keeps_the_core_awake_again) {
    shelf s;
    nodedb_tpc_config config;
    nodedb_tpc_core *core = shelf_create(&s, &config);
    letter l = {0, 3, 0, {0}};
    REQUIRE(core != NULL);
    core->runtime->config.wait = shelf_wait, core->runtime->config.maintain = world_maintain;
    shelf_waits = 0;
    CHECK_EQ(nodedb_tpc_send(nodedb_tpc_core_at(s.w.runtime, 1), 0, &l), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(shelf_waits, 1);
    s.keep_at = -1;
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(s.count, 1);
    s.w.clock.now += 5 * MILLISECOND_NS;
    s.w.in_maintain = send_from_core_1; /* between the turn's look at the rings and its park */
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_ERR_AGAIN);
    CHECK_EQ(shelf_waits, 1);
    CHECK_EQ(nodedb_tpc_turn(core, SECOND_NS), NODEDB_OK);
    CHECK_EQ(s.count, 2);
    nodedb_tpc_destroy(s.w.runtime);
}

/* ---- cores without sockets --------------------------------------------------------------------------------------- */

static int default_waits;
static void wait_without_sockets(nodedb_tpc_core *core, void *ctx, uint64_t timeout_ns) {
    (void)ctx;
    atomic_bump(&default_waits);
    nodedb_tpc_core_wait(core, timeout_ns);
}
static void count_down(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    letter *l = message;
    (void)from;
    if (l->hops-- == 0) atomic_bump((int *)ctx);
    else CHECK_EQ(nodedb_tpc_send(core, 1 - nodedb_tpc_core_index(core), message), NODEDB_OK);
}

TEST(a_wait_hook_may_leave_the_wait_to_the_runtime_and_a_config_without_hooks_runs) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 200, {0}};
    nodedb_tpc_stats stats;
    int arrived = 0;
    uint64_t begin;
    memset(&config, 0, sizeof config);
    default_waits = 0;
    config.cores = 2;
    config.ctx = &arrived;
    config.wait = wait_without_sockets;
    config.on_message = count_down;
    config.spin_ns = NODEDB_TPC_OFF; /* so that each hop wakes a parked core */
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    begin = nodedb_now_ns(NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, &l, NULL), NODEDB_OK);
    while (atomic_read(&arrived) == 0) usleep(1000);
    CHECK(nodedb_now_ns(NULL) - begin < 10 * SECOND_NS); /* 200 parks that timed out would take 20 s */
    nodedb_tpc_destroy(runtime);
    CHECK(default_waits > 0);
    memset(&config, 0, sizeof config);
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    CHECK_EQ(nodedb_tpc_post(runtime, 0, &l, NULL), NODEDB_OK);
    nodedb_tpc_stop(runtime);
    CHECK_EQ(nodedb_tpc_join(runtime, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_get_stats(runtime, 0, &stats), NODEDB_OK);
    CHECK_EQ(stats.dropped, 1);
    nodedb_tpc_destroy(runtime);
}

TEST_MAIN("tpc_calls")
