/* Tests of nodedb_tpc.h: tasks, the fault guard, signals, and what is refused after faults. */
#include "tpc_world.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- tasks and faults -------------------------------------------------------------------------------------------- */

static void undo_1(nodedb_tpc_core *core, void *arg) { world *w = arg; (void)core; w->undone[w->undone_count++] = 1; }
static void undo_2(nodedb_tpc_core *core, void *arg) { world *w = arg; (void)core; w->undone[w->undone_count++] = 2; }
static void undo_panics(nodedb_tpc_core *core, void *arg) {
    world *w = arg;
    w->undone[w->undone_count++] = 3;
    nodedb_tpc_panic(core, "even the undo");
}
static void task_panics(nodedb_tpc_core *core, void *arg) {
    CHECK_EQ(nodedb_tpc_defer(core, undo_1, arg), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_defer(core, undo_panics, arg), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_defer(core, undo_2, arg), NODEDB_OK);
    nodedb_tpc_panic(core, "key %d is poisonous", 42);
}
static void task_defers_and_ends_well(nodedb_tpc_core *core, void *arg) {
    CHECK_EQ(nodedb_tpc_defer(core, undo_1, arg), NODEDB_OK);
}
TEST(a_turn_runs_at_most_256_tasks_and_the_run_queue_is_bounded) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    nodedb_tpc_stats stats;
    int i;
    config.queue_tasks = 512;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    for (i = 0; i < 512; i++) CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(w.ran, NODEDB_TPC_TASKS_PER_TURN);
    while (nodedb_tpc_turn(core, 0) == NODEDB_OK) {}
    CHECK_EQ(w.ran, 512);
    CHECK_EQ(w.ends, 512);
    CHECK_EQ(w.last_status, NODEDB_OK);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK_EQ(stats.tasks, 512);
    CHECK_EQ(stats.tasks_high_water, 512);
    CHECK_EQ(nodedb_tpc_spawn(core, NULL, &w, 0, 0), NODEDB_ERR_INVALID);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_task_whose_deadline_passed_is_answered_timeout_and_not_begun) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, w.clock.now + 5, 0), NODEDB_OK);
    w.clock.now += 5;
    nodedb_tpc_turn(core, 0);
    CHECK_EQ(w.ran, 1);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, w.clock.now + 5, 0), NODEDB_OK);
    w.clock.now += 6;
    nodedb_tpc_turn(core, 0);
    CHECK_EQ(w.ran, 1);
    CHECK_EQ(w.last_status, NODEDB_ERR_TIMEOUT);
    CHECK_HAS(w.last_sentence, "deadline");
    CHECK(w.last_arg == &w);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_panic_abandons_the_task_undoes_it_in_reverse_and_answers_at_once) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_spawn(core, task_panics, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(w.ends, 2);
    CHECK_EQ(w.ran, 1); /* the next task runs as usual */
    CHECK_EQ(w.undone_count, 3);
    CHECK_EQ(w.undone[0], 2);
    CHECK_EQ(w.undone[1], 3); /* it panics itself, and the next one still runs */
    CHECK_EQ(w.undone[2], 1);
    CHECK_EQ(nodedb_tpc_guard(core, task_panics, &w, 0), NODEDB_ERR_FAULT);
    CHECK_HAS(nodedb_tpc_fault_text(core), "key 42 is poisonous");
    CHECK_HAS(w.notes.last, "key 42 is poisonous");
    nodedb_tpc_destroy(w.runtime);
}

TEST(what_a_task_that_ended_well_deferred_is_never_undone) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_guard(core, task_defers_and_ends_well, &w, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(w.undone_count, 0);
    CHECK_EQ(nodedb_tpc_defer(core, undo_1, &w), NODEDB_ERR_STATE); /* no guard */
    nodedb_tpc_destroy(w.runtime);
}

static void defers_too_much(nodedb_tpc_core *core, void *arg) {
    int i;
    for (i = 0; i < NODEDB_TPC_MAX_DEFERS; i++) CHECK_EQ(nodedb_tpc_defer(core, task_run, arg), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_defer(core, task_run, arg), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_tpc_defer(core, NULL, arg), NODEDB_ERR_INVALID);
    nodedb_tpc_panic(core, "now undo");
}

TEST(defers_are_bounded_and_all_of_them_are_undone) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_guard(core, defers_too_much, &w, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(w.ran, NODEDB_TPC_MAX_DEFERS);
    nodedb_tpc_destroy(w.runtime);
}

static void outer_task(nodedb_tpc_core *core, void *arg) {
    CHECK_EQ(nodedb_tpc_defer(core, undo_1, arg), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, task_panics, arg, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(((world *)arg)->undone_count, 3); /* the inner one's, and not ours */
    ((world *)arg)->ran++;
}

TEST(guards_nest_and_a_fault_ends_only_the_innermost) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_guard(core, outer_task, &w, 0), NODEDB_OK);
    CHECK_EQ(w.ran, 1);
    CHECK_EQ(w.undone_count, 3);
    nodedb_tpc_destroy(w.runtime);
}

TEST(three_faults_within_a_minute_degrade_a_core_and_half_a_minute_later_it_recovers) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config);
    nodedb_tpc_stats stats;
    int i;
    REQUIRE(core != NULL);
    for (i = 0; i < 4; i++) { /* three in more than 60 s do not count */
        CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
        w.clock.now += 31 * SECOND_NS;
    }
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    w.clock.now += 100 * SECOND_NS;
    CHECK_EQ(nodedb_tpc_spawn(core, just_panics, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_spawn(core, just_panics, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_spawn(core, just_panics, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(w.ran, 1); /* the fourth task was answered, not run */
    CHECK_EQ(w.ends, 4);
    CHECK_EQ(w.last_status, NODEDB_ERR_DEGRADED);
    CHECK_HAS(w.last_sentence, "degraded");
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_ERR_DEGRADED);
    CHECK_EQ(nodedb_tpc_spawn(core, task_run, &w, 0, 0), NODEDB_ERR_DEGRADED);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK(stats.degraded);
    CHECK_EQ(stats.degradations, 1);
    CHECK_EQ(stats.refused, 3);
    CHECK_EQ(stats.faults, 7);
    /* the other core is well */
    CHECK_EQ(nodedb_tpc_guard(nodedb_tpc_core_at(w.runtime, 1), task_run, &w, 0), NODEDB_OK);
    w.clock.now += 30 * SECOND_NS - 1;
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_ERR_DEGRADED);
    w.clock.now += 1;
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT); /* the count starts from zero */
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_request_that_faulted_twice_is_refused_for_good_on_every_core) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config), *other;
    uint64_t id;
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 4711), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_OK); /* once is not enough */
    CHECK_EQ(nodedb_tpc_spawn(other, just_panics, &w, 0, 4711), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_ERR_DEGRADED);
    CHECK_HAS(nodedb_tpc_fault_text(core), "is refused");
    CHECK_EQ(nodedb_tpc_guard(other, task_run, &w, 4711), NODEDB_ERR_DEGRADED);
    CHECK_EQ(nodedb_tpc_spawn(other, task_run, &w, 0, 4711), NODEDB_ERR_DEGRADED);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4712), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK); /* 0 is no id */
    for (id = 1; id <= 3000; id++) { /* ids that fault once never push out one that is refused */
        w.clock.now += 100 * SECOND_NS;
        CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, id * 1000003), NODEDB_ERR_FAULT);
    }
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_ERR_DEGRADED);
    nodedb_tpc_destroy(w.runtime);
}

/* ---- whom faults shut out ---------------------------------------------------------------------------------------- */

TEST(a_client_whose_requests_carry_its_id_shuts_out_itself_and_not_the_others) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    nodedb_tpc_stats stats;
    int i;
    REQUIRE(core != NULL);
    for (i = 0; i < 20; i++)
        CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 5), i < 2 ? NODEDB_ERR_FAULT : NODEDB_ERR_DEGRADED);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 6), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 6), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK(!stats.degraded && stats.faults == 3);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 7), NODEDB_ERR_FAULT); /* three clients are the core's fault */
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 8), NODEDB_ERR_DEGRADED);
    CHECK_HAS(nodedb_tpc_fault_text(core), "degraded");
    nodedb_tpc_destroy(w.runtime);
}

TEST(an_id_that_is_never_refused_still_counts_once_and_for_its_latest_fault) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    int i;
    config.faults_to_refuse = NODEDB_TPC_NEVER;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    for (i = 0; i < 50; i++) {
        CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 5), NODEDB_ERR_FAULT);
        w.clock.now += SECOND_NS;
    }
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 6), NODEDB_ERR_FAULT);
    w.clock.now += 59 * SECOND_NS; /* 5 was last seen 60 s ago, and counts */
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 7), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 8), NODEDB_ERR_DEGRADED);
    nodedb_tpc_destroy(w.runtime);
}

TEST(limits_of_faults_are_those_of_the_config) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    nodedb_error err;
    uint64_t id;
    config.faults_to_refuse = 1, config.faults_to_degrade = 5;
    config.fault_window_ns = 10 * SECOND_NS, config.degraded_ns = SECOND_NS;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 1), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 1), NODEDB_ERR_DEGRADED); /* once is enough here */
    w.clock.now += 11 * SECOND_NS;
    for (id = 2; id < 6; id++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, id), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK); /* the first one is too long ago */
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 6), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_ERR_DEGRADED);
    w.clock.now += SECOND_NS;
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    nodedb_tpc_destroy(w.runtime);

    config = world_config(&w, 1);
    config.faults_to_degrade = NODEDB_TPC_NEVER;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    for (id = 0; id < 100; id++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    nodedb_tpc_destroy(w.runtime);

    config.faults_to_degrade = NODEDB_TPC_MAX_FAULTS_TO_DEGRADE + 1;
    CHECK(nodedb_tpc_create_manual(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "faults_to_degrade is 65");
}

TEST(a_degraded_core_and_a_refused_id_are_admitted_again_by_a_reset) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core;
    nodedb_tpc_stats stats;
    int i;
    config.degraded_ns = NODEDB_TPC_OFF; /* time alone ends nothing */
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    for (i = 0; i < 3; i++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    w.clock.now += 1000000 * SECOND_NS;
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_ERR_DEGRADED);
    CHECK_EQ(nodedb_tpc_reset_core(w.runtime, 0), NODEDB_OK);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK(!stats.degraded && stats.degradations == 1);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    CHECK_HAS(w.notes.last, "core 0 accepts tasks again");
    for (i = 0; i < 2; i++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_reset_core(w.runtime, 0), NODEDB_OK); /* forgets these two as well */
    for (i = 0; i < 2; i++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    nodedb_tpc_get_stats(w.runtime, 0, &stats);
    CHECK_EQ(stats.degradations, 1);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_reset_core(w.runtime, 2), NODEDB_ERR_INVALID);

    CHECK_EQ(nodedb_tpc_reset_request(w.runtime, 4711), NODEDB_ERR_NOT_FOUND);
    for (i = 0; i < 2; i++) {
        CHECK_EQ(nodedb_tpc_reset_core(w.runtime, 0), NODEDB_OK);
        CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 4711), NODEDB_ERR_FAULT);
    }
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_ERR_DEGRADED);
    CHECK_EQ(nodedb_tpc_reset_request(w.runtime, 4711), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_reset_request(w.runtime, 4711), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 4711), NODEDB_ERR_FAULT); /* one more is the first again */
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_reset_request(w.runtime, 0), NODEDB_ERR_INVALID);
    nodedb_tpc_destroy(w.runtime);
}

/* What get_stats and both reports say of core 0: 1 degraded, 0 not, -1 if they differ. */
static int degraded_in_all_reports(nodedb_tpc *runtime) {
    static char text[65536];
    nodedb_tpc_stats stats;
    int degraded;
    nodedb_tpc_get_stats(runtime, 0, &stats);
    degraded = stats.degraded;
    (void)nodedb_tpc_report(runtime, NODEDB_TPC_TEXT, text, sizeof text);
    if ((strstr(text, ", degraded") != NULL) != degraded) return -1;
    (void)nodedb_tpc_report(runtime, NODEDB_TPC_PROMETHEUS, text, sizeof text);
    if (strstr(text, degraded ? "tpc_degraded{runtime=\"tpc\",core=\"0\"} 1\n"
                              : "tpc_degraded{runtime=\"tpc\",core=\"0\"} 0\n") == NULL) return -1;
    return degraded;
}

TEST(every_report_says_when_a_core_accepts_work_again_though_nobody_gives_it_any) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    int i;
    REQUIRE(core != NULL);
    CHECK_EQ(degraded_in_all_reports(w.runtime), 0);
    for (i = 0; i < 3; i++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(degraded_in_all_reports(w.runtime), 1);
    w.clock.now += 30 * SECOND_NS - 1;
    (void)nodedb_tpc_turn(core, 0);
    CHECK_EQ(degraded_in_all_reports(w.runtime), 1);
    w.clock.now += 1; /* idle turns do not look at it */
    CHECK_EQ(degraded_in_all_reports(w.runtime), 0);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 0), NODEDB_OK);
    for (i = 0; i < 3; i++) CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(degraded_in_all_reports(w.runtime), 1);
    CHECK_EQ(nodedb_tpc_reset_core(w.runtime, 0), NODEDB_OK);
    CHECK_EQ(degraded_in_all_reports(w.runtime), 0);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_refusal_tells_whether_the_core_or_the_id_is_meant) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config);
    int i;
    REQUIRE(core != NULL);
    for (i = 0; i < 2; i++) {
        CHECK(!nodedb_tpc_is_refused(w.runtime, 4711));
        CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, 4711), NODEDB_ERR_FAULT);
    }
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4711), NODEDB_ERR_DEGRADED);
    CHECK(nodedb_tpc_is_refused(w.runtime, 4711) && !nodedb_tpc_is_refused(w.runtime, 4712));
    CHECK(!nodedb_tpc_is_degraded(w.runtime, 0) && !nodedb_tpc_is_degraded(w.runtime, 1));
    for (i = 0; i < 3; i++) (void)nodedb_tpc_guard(core, just_panics, &w, 0);
    CHECK_EQ(nodedb_tpc_guard(core, task_run, &w, 4712), NODEDB_ERR_DEGRADED);
    CHECK(nodedb_tpc_is_degraded(w.runtime, 0) && !nodedb_tpc_is_degraded(w.runtime, 1));
    CHECK(!nodedb_tpc_is_refused(w.runtime, 4712));
    w.clock.now += 30 * SECOND_NS;
    CHECK(!nodedb_tpc_is_degraded(w.runtime, 0) && nodedb_tpc_is_refused(w.runtime, 4711));
    CHECK_EQ(nodedb_tpc_reset_request(w.runtime, 4711), NODEDB_OK);
    CHECK(!nodedb_tpc_is_refused(w.runtime, 4711));
    CHECK(!nodedb_tpc_is_refused(w.runtime, 0) && !nodedb_tpc_is_refused(NULL, 1));
    CHECK(!nodedb_tpc_is_degraded(w.runtime, 2) && !nodedb_tpc_is_degraded(NULL, 0));
    nodedb_tpc_destroy(w.runtime);
}

/* The next id after `id` whose faults are counted in the bucket of id 1. */
static uint64_t next_in_bucket(uint64_t id) {
    do id++;
    while (nodedb_mix64(id) % NODEDB_TPC__SUSPECT_BUCKETS != nodedb_mix64(1) % NODEDB_TPC__SUSPECT_BUCKETS);
    return id;
}

TEST(an_id_that_faulted_once_displaces_no_refused_id_even_in_a_full_bucket) {
    for (uint32_t round = 0; round < 2 * NODEDB_TPC__SUSPECT_WAYS; round++) {
        uint32_t limit = 1 + round % 2;
        world w;
        nodedb_tpc_config config = world_config(&w, 1);
        nodedb_tpc_core *core;
        uint64_t ids[2 * NODEDB_TPC__SUSPECT_WAYS], id = 1;
        bool refused[2 * NODEDB_TPC__SUSPECT_WAYS];
        uint32_t i, fault, count = 0;
        config.faults_to_refuse = limit, config.faults_to_degrade = NODEDB_TPC_NEVER;
        core = world_create(&w, &config);
        REQUIRE(core != NULL);
        w.runtime->suspect_hand = round / 2; /* where the turn to be forgotten begins: also at the new id's own place */
        for (i = 0; i < 2 * NODEDB_TPC__SUSPECT_WAYS; i++, id = next_in_bucket(id)) {
            ids[i] = id;
            for (fault = 0; fault < limit; fault++)
                CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, id), NODEDB_ERR_FAULT);
            CHECK(nodedb_tpc_is_refused(w.runtime, id)); /* the latest always is */
        }
        for (i = 0; i < 2 * NODEDB_TPC__SUSPECT_WAYS; i++)
            count += refused[i] = nodedb_tpc_is_refused(w.runtime, ids[i]);
        CHECK_EQ(count, NODEDB_TPC__SUSPECT_WAYS - 1);
        for (fault = 0; limit > 1 && fault < 100; fault++, id = next_in_bucket(id))
            CHECK_EQ(nodedb_tpc_guard(core, just_panics, &w, id), NODEDB_ERR_FAULT);
        for (i = 0; i < 2 * NODEDB_TPC__SUSPECT_WAYS; i++)
            CHECK_EQ(nodedb_tpc_is_refused(w.runtime, ids[i]), refused[i]);
        nodedb_tpc_destroy(w.runtime);
    }
}

static void panics_for_its_sender(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    letter *l = message;
    nodedb_status status = nodedb_tpc_guard(core, just_panics, NULL, l->number);
    (void)from;
    if (status == NODEDB_ERR_FAULT) atomic_bump((int *)ctx);
    else CHECK_EQ(status, NODEDB_ERR_DEGRADED);
}

TEST(resets_from_another_thread_let_cores_go_on_while_they_fault) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    int faults = 0, i;
    memset(&config, 0, sizeof config);
    config.cores = 2;
    config.ctx = &faults;
    config.on_message = panics_for_its_sender;
    config.degraded_ns = NODEDB_TPC_OFF;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    for (i = 0; i < 2000; i++) {
        l.number = (uint64_t)(i % 4) + 1;
        while (nodedb_tpc_post(runtime, (uint32_t)(i % 2), &l, NULL) == NODEDB_ERR_AGAIN) sched_yield();
        if (i % 8 != 0) continue;
        CHECK_EQ(nodedb_tpc_reset_core(runtime, (uint32_t)(i / 8 % 2)), NODEDB_OK);
        (void)nodedb_tpc_reset_request(runtime, (uint64_t)(i / 8 % 4) + 1);
        if (i % 100 == 0) usleep(100);
    }
    nodedb_tpc_destroy(runtime);
    CHECK(faults > 8); /* without resets each of the four ids faults twice */
}

/* ---- signals ----------------------------------------------------------------------------------------------------- */

static void *forbidden_page; /* mapped without any permission; never changes while the tests run */
static void *beyond_the_end; /* mapped file page that a truncation took away */

static void faults_segv(nodedb_tpc_core *core, void *arg) {
    /* each core a place of its own: no data race */
    ((volatile char *)forbidden_page)[64 * nodedb_tpc_core_index(core)] = 1;
    ((world *)arg)->ran++;
}
static void faults_bus(nodedb_tpc_core *core, void *arg) {
    (void)core;
    *(volatile char *)beyond_the_end = 1;
    ((world *)arg)->ran++;
}
#if defined(__x86_64__) || defined(__i386__)
static void faults_ill(nodedb_tpc_core *core, void *arg) { (void)core; __asm__ volatile("ud2"); ((world *)arg)->ran++; }
static void faults_fpe(nodedb_tpc_core *core, void *arg) {
    int quotient = 1, rest = 0, zero = 0;
    (void)core;
    __asm__ volatile("idivl %2" : "+a"(quotient), "+d"(rest) : "r"(zero));
    ((world *)arg)->ran++;
}
#endif

static bool map_bad_pages(void) {
    char path[600];
    int fd;
    snprintf(path, sizeof path, "%s/short", test_dir());
    fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 65536) != 0) return false;
    forbidden_page = mmap(NULL, 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    beyond_the_end = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0) != 0) return false;
    close(fd);
    return forbidden_page != MAP_FAILED && beyond_the_end != MAP_FAILED;
}

static void unmap_bad_pages(void) {
    munmap(forbidden_page, 65536);
    munmap(beyond_the_end, 65536);
}

TEST(a_crash_in_a_guarded_task_is_answered_and_can_happen_again) {
    static const struct { nodedb_tpc_fn fn; const char *name; } crashes[] = {
        {faults_segv, "SIGSEGV"}, {faults_bus, "SIGBUS"},
#if defined(__x86_64__) || defined(__i386__)
        {faults_ill, "SIGILL"}, {faults_fpe, "SIGFPE"},
#endif
    };
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    size_t i, round;
    config.catch_signals = true;
    core = world_create(&w, &config);
    REQUIRE(core != NULL && map_bad_pages());
    for (round = 0; round < 3; round++) /* again: the signal must have been unblocked */
        for (i = 0; i < sizeof crashes / sizeof crashes[0]; i++) {
            w.clock.now += 100 * SECOND_NS;
            CHECK_EQ(nodedb_tpc_guard(core, crashes[i].fn, &w, 0), NODEDB_ERR_FAULT);
            CHECK_HAS(nodedb_tpc_fault_text(core), crashes[i].name);
            w.clock.now += 100 * SECOND_NS;
            CHECK_EQ(nodedb_tpc_spawn(core, crashes[i].fn, &w, 0, 0), NODEDB_OK);
            CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
            CHECK_EQ(w.last_status, NODEDB_ERR_FAULT);
            CHECK_HAS(w.last_sentence, crashes[i].name);
        }
    CHECK_EQ(w.ran, 0);
    nodedb_tpc_destroy(w.runtime);
    unmap_bad_pages();
}

typedef struct crash_course { int answers[3], ends; } crash_course;
static void crash_message(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    crash_course *c = ctx;
    world ignored;
    (void)from, (void)message;
    atomic_bump(&c->answers[nodedb_tpc_guard(core, faults_segv, &ignored, 0) == NODEDB_ERR_FAULT ? 0 : 1]);
}

TEST(a_crash_on_one_cores_thread_leaves_the_others_running) {
    crash_course c;
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    uint32_t i;
    memset(&c, 0, sizeof c);
    memset(&config, 0, sizeof config);
    config.cores = 2;
    config.ctx = &c;
    config.catch_signals = true;
    config.on_message = crash_message;
    REQUIRE(map_bad_pages());
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    for (i = 0; i < 8; i++) CHECK_EQ(nodedb_tpc_post(runtime, i % 2, &l, NULL), NODEDB_OK);
    nodedb_tpc_destroy(runtime);
    CHECK_EQ(c.answers[0], 6); /* three on each core, */
    CHECK_EQ(c.answers[1], 2); /* then they are degraded */
    unmap_bad_pages();
}

#if !SANITIZED
static int deep(volatile char *from, int depth) {
    volatile char frame[4096];
    frame[0] = from[0];
    return depth < 0 ? frame[0] : deep(frame, depth + 1) + frame[0];
}
static void overflows(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx);
static void overflows_stack(nodedb_tpc_core *core, void *arg) {
    char seed = 1;
    (void)core;
    *(int *)arg = deep(&seed, 0);
}
static void overflows(nodedb_tpc_core *core, uint32_t from, void *message, void *ctx) {
    int result;
    (void)from, (void)message;
    if (nodedb_tpc_guard(core, overflows_stack, &result, 0) == NODEDB_ERR_FAULT) atomic_bump((int *)ctx);
}

TEST(a_stack_overflow_is_caught_on_the_alternate_signal_stack) {
    nodedb_tpc_config config;
    nodedb_tpc *runtime;
    letter l = {0, 0, 0, {0}};
    int caught = 0;
    memset(&config, 0, sizeof config);
    config.cores = 1;
    config.ctx = &caught;
    config.catch_signals = true;
    config.on_message = overflows;
    runtime = nodedb_tpc_start(&config, NULL);
    REQUIRE(runtime != NULL);
    nodedb_tpc_post(runtime, 0, &l, NULL);
    nodedb_tpc_post(runtime, 0, &l, NULL);
    nodedb_tpc_destroy(runtime);
    CHECK_EQ(caught, 2);
}
#endif

static void exit_43(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number, (void)info, (void)context;
    _exit(43);
}
static void kills_itself(nodedb_tpc_core *core, void *arg) { (void)core, (void)arg; raise(SIGSEGV); }

/* In a child: a fault outside a guard, or a signal that was sent. Returns the child's exit status, -1 if killed. */
static int status_of_child(bool guarded, bool install) {
    int status = 0;
    pid_t child;
    fflush(NULL);
    child = fork();
    if (child == 0) {
        nodedb_tpc_config config;
        nodedb_tpc *runtime;
        struct sigaction action;
        struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core);
        memset(&config, 0, sizeof config);
        memset(&action, 0, sizeof action);
        action.sa_flags = SA_SIGINFO;
        action.sa_sigaction = exit_43;
        if (!install) { action.sa_flags = 0; action.sa_handler = SIG_DFL; }
        sigaction(SIGSEGV, &action, NULL);
        config.cores = 1;
        config.catch_signals = true;
        runtime = nodedb_tpc_create_manual(&config, NULL);
        if (guarded) (void)nodedb_tpc_guard(nodedb_tpc_core_at(runtime, 0), kills_itself, NULL, 0);
        else *(volatile char *)forbidden_page = 1;
        _exit(0);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) == SIGSEGV ? -1 : -2;
}

TEST(a_fault_outside_a_guard_and_a_signal_that_was_sent_go_to_the_previous_handler) {
    REQUIRE(map_bad_pages());
    CHECK_EQ(status_of_child(false, true), 43);
    CHECK_EQ(status_of_child(true, true), 43);
    CHECK_EQ(status_of_child(false, false), -1);
    CHECK_EQ(status_of_child(true, false), -1);
    unmap_bad_pages();
}

TEST(the_previous_signal_handlers_come_back_with_the_last_runtime) {
    struct sigaction before, after;
    world w1, w2;
    nodedb_tpc_config config = world_config(&w1, 1);
    config.catch_signals = true;
    sigaction(SIGBUS, NULL, &before);
    REQUIRE(world_create(&w1, &config) != NULL);
    config = world_config(&w2, 1);
    config.catch_signals = true;
    REQUIRE(world_create(&w2, &config) != NULL);
    nodedb_tpc_destroy(w2.runtime);
    sigaction(SIGBUS, NULL, &after);
    CHECK(after.sa_sigaction != before.sa_sigaction);
    nodedb_tpc_destroy(w1.runtime);
    sigaction(SIGBUS, NULL, &after);
    CHECK(after.sa_sigaction == before.sa_sigaction);
}

TEST_MAIN("tpc_faults")
