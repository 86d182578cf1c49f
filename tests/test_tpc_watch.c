/* Tests of nodedb_tpc.h: heartbeats, the watchdog, checkpoints, maintenance, pressure, gates, quarantine, latencies,
 * reports. */
#include "tpc_world.h"

/* ---- time: heartbeats and the watchdog --------------------------------------------------------------------------- */

static void beat_for(world *w, uint64_t ns, uint64_t step, uint32_t cores) {
    uint64_t end = w->clock.now + ns;
    uint32_t i;
    for (; w->clock.now < end; w->clock.now += step)
        for (i = 0; i < cores; i++) (void)nodedb_tpc_turn(nodedb_tpc_core_at(w->runtime, i), 0);
}

TEST(heartbeats_are_a_second_apart_give_or_take_100_ms_and_no_two_cores_ever_beat_together) {
    static world w, again;
    nodedb_tpc_config config = world_config(&w, 16);
    const uint64_t step = 10000; /* looks every 10 us, so an interval is known to 10 us */
    int i, j, k, l;
    config.heartbeat_ns = SECOND_NS;
    config.on_heartbeat = world_heartbeat;
    REQUIRE(world_create(&w, &config) != NULL);
    for (k = 0; k < 6; k++) { /* jump over the quiet part of each second */
        beat_for(&w, 120 * MILLISECOND_NS, step * 5, 16);
        w.clock.now = 1000 * SECOND_NS + (uint64_t)(k + 1) * SECOND_NS - 60 * MILLISECOND_NS;
    }
    for (i = 0; i < 16; i++) {
        CHECK_EQ(w.beat_count[i], 5);
        for (k = 1; k < w.beat_count[i]; k++) {
            uint64_t interval = w.beats[i][k] - w.beats[i][k - 1];
            CHECK(interval >= 900 * MILLISECOND_NS - 5 * step && interval <= 1100 * MILLISECOND_NS + 5 * step);
        }
    }
    nodedb_tpc_destroy(w.runtime);
    /* The due times themselves, to the nanosecond: the timeout that a core asks for. */
    config = world_config(&again, 16);
    config.on_heartbeat = world_heartbeat;
    REQUIRE(world_create(&again, &config) != NULL);
    for (k = 0; k < 40; k++)
        for (i = 0; i < 16; i++) {
            nodedb_tpc_core *core = nodedb_tpc_core_at(again.runtime, (uint32_t)i);
            again.clock.now = core->beat_due_ns;
            (void)nodedb_tpc_turn(core, 0);
            if (k == 39) CHECK_EQ(again.beat_count[i], 40);
        }
    for (i = 0; i < 16; i++)
        for (j = i + 1; j < 16; j++)
            for (k = 0; k < 40; k++)
                for (l = 0; l < 40; l++)
                    if (again.beats[i][k] == again.beats[j][l]) CHECK(again.beats[i][k] != again.beats[j][l]);
    /* it is jitter, not a phase */
    CHECK(again.beats[0][0] - again.beats[1][0] != again.beats[0][1] - again.beats[1][1]);
    nodedb_tpc_destroy(again.runtime);
}

TEST(a_busy_core_beats_only_when_it_is_idle_again) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    config.on_heartbeat = world_heartbeat;
    config.poll = world_poll;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    w.poll_events = 50;
    while (w.poll_events > 0) {
        w.clock.now += 100 * MILLISECOND_NS;
        CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    }
    CHECK_EQ(w.heartbeats, 0);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.heartbeats, 1); /* once, not five times */
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_ERR_AGAIN);
    CHECK_EQ(w.heartbeats, 1);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_core_that_does_not_come_round_is_stalled_and_another_core_says_so_once) {
    world w;
    nodedb_tpc_config config = world_config(&w, 3);
    nodedb_tpc_core *core = world_create(&w, &config);
    int i;
    REQUIRE(core != NULL);
    for (i = 0; i < 48; i++) { /* 4.8 s */
        w.clock.now += 100 * MILLISECOND_NS;
        nodedb_tpc_turn(core, 0);
        nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, 2), 0);
    }
    CHECK(!nodedb_tpc_stalled(w.runtime, 1));
    CHECK_EQ(w.notes.count, 0);
    for (i = 0; i < 50; i++) {
        w.clock.now += 100 * MILLISECOND_NS;
        nodedb_tpc_turn(core, 0);
        nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, 2), 0);
    }
    CHECK(nodedb_tpc_stalled(w.runtime, 1));
    CHECK(!nodedb_tpc_stalled(w.runtime, 0));
    CHECK(!nodedb_tpc_stalled(w.runtime, 3)); /* there is none */
    CHECK_EQ(w.notes.count, 1);
    CHECK_HAS(w.notes.last, "core 1 has not come round");
    nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, 1), 0);
    CHECK(!nodedb_tpc_stalled(w.runtime, 1));
    nodedb_tpc_destroy(w.runtime);
}

/* ---- checkpoints, the share of maintenance, pressure ------------------------------------------------------------- */

static uint32_t checkpoints_by[4];
static uint64_t checkpoint_at[64];
static uint32_t checkpoint_count;
static void take_checkpoint(nodedb_tpc_core *core, void *ctx) {
    checkpoints_by[nodedb_tpc_core_index(core)]++;
    if (checkpoint_count < 64) checkpoint_at[checkpoint_count++] = ((world *)ctx)->clock.now;
}

TEST(checkpoints_come_every_300_seconds_and_the_cores_take_turns) {
    world w;
    nodedb_tpc_config config = world_config(&w, 4);
    uint32_t i, j;
    uint64_t second;
    memset(checkpoints_by, 0, sizeof checkpoints_by), checkpoint_count = 0;
    config.on_checkpoint = take_checkpoint;
    REQUIRE(world_create(&w, &config) != NULL);
    for (second = 0; second < 3000; second++) {
        w.clock.now += SECOND_NS;
        for (i = 0; i < 4; i++) (void)nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, i), 0);
    }
    CHECK_EQ(checkpoints_by[0], 10);
    for (i = 1; i < 4; i++) CHECK_EQ(checkpoints_by[i], 9);
    CHECK_EQ(checkpoint_at[0], (1000 + 300) * SECOND_NS);
    for (i = 1; i < checkpoint_count; i++) CHECK_EQ(checkpoint_at[i] - checkpoint_at[i - 1], 75 * SECOND_NS);
    w.clock.now += 1000 * SECOND_NS; /* missed ones are not repeated */
    for (j = 0; j < 5; j++)
        for (i = 0; i < 4; i++) (void)nodedb_tpc_turn(nodedb_tpc_core_at(w.runtime, i), 0);
    for (i = 0; i < 4; i++) CHECK_EQ(checkpoints_by[i], i == 0 ? 11 : 10);
    nodedb_tpc_destroy(w.runtime);
}

static void maintain_for_a_millisecond(world *w) { w->clock.now += MILLISECOND_NS; }

TEST(maintenance_gets_at_most_its_share_of_a_busy_core_and_all_of_an_idle_one) {
    uint32_t percent;
    for (percent = 0; percent <= 100; percent += 50) {
        world w;
        nodedb_tpc_config config = world_config(&w, 1);
        nodedb_tpc_core *core;
        nodedb_tpc_stats stats;
        uint64_t began, share;
        uint32_t turn;
        config.maintain = world_maintain, config.poll = world_poll, config.maintenance_percent = percent;
        core = world_create(&w, &config);
        REQUIRE(core != NULL);
        w.maintain_more = true, w.in_maintain = maintain_for_a_millisecond;
        began = w.clock.now += SECOND_NS;
        for (turn = 0; turn < 20000; turn++) {
            w.poll_events = 1; /* always busy: a tenth of a millisecond of work to a turn */
            w.clock.now += MILLISECOND_NS / 10;
            CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
        }
        CHECK_EQ(nodedb_tpc_get_stats(w.runtime, 0, &stats), NODEDB_OK);
        share = stats.maintenance_ns * 100 / (w.clock.now - began);
        if (percent == 100) CHECK(share >= 90);
        else CHECK(share <= (percent == 0 ? 20 : percent) && share >= (percent == 0 ? 19 : percent - 2));
        w.maintained = 0, w.poll_events = 0;
        for (turn = 0; turn < 10; turn++) CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
        CHECK_EQ(w.maintained, 10);
        nodedb_tpc_destroy(w.runtime);
    }
    {
        world w;
        nodedb_tpc_config config = world_config(&w, 1);
        nodedb_error err;
        config.maintenance_percent = 101;
        CHECK(nodedb_tpc_create_manual(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    }
}

static nodedb_tpc_pressure_level pressures[16];
static uint32_t pressure_count;
static void note_pressure(nodedb_tpc_core *core, uint32_t to, nodedb_tpc_pressure_level level, void *ctx) {
    (void)ctx;
    CHECK(nodedb_tpc_core_index(core) == 0 && to == 1);
    if (pressure_count < 16) pressures[pressure_count++] = level;
}

TEST(a_change_of_pressure_is_told_once_as_it_rises_and_as_it_falls) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core, *other;
    nodedb_tpc_stats stats;
    uint64_t message[8] = {0};
    uint32_t i;
    pressure_count = 0;
    config.ring_messages = 128, config.on_pressure = note_pressure, config.on_message = NULL;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    other = nodedb_tpc_core_at(w.runtime, 1);
    for (i = 0; i < 108; i++) CHECK_EQ(nodedb_tpc_send(core, 1, message), NODEDB_OK); /* 84.4% */
    CHECK_EQ(pressure_count, 0);
    CHECK_EQ(nodedb_tpc_send(core, 1, message), NODEDB_OK);
    CHECK(pressure_count == 1 && pressures[0] == NODEDB_TPC_PRESSURE_THROTTLED);
    for (i = 109; i < 128; i++) CHECK_EQ(nodedb_tpc_send(core, 1, message), NODEDB_OK);
    CHECK(pressure_count == 2 && pressures[1] == NODEDB_TPC_PRESSURE_SUSPENDED);
    CHECK_EQ(nodedb_tpc_send(core, 1, message), NODEDB_ERR_AGAIN);
    CHECK_EQ(pressure_count, 2);
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_OK); /* takes 64: half is left */
    CHECK_EQ(pressure_count, 2);
    (void)nodedb_tpc_turn(core, 0); /* where its sender finds it, though it sends nothing */
    CHECK(pressure_count == 3 && pressures[2] == NODEDB_TPC_PRESSURE_NONE);
    for (i = 0; i < 60; i++) CHECK_EQ(nodedb_tpc_send(core, 1, message), NODEDB_OK);
    CHECK(pressure_count == 5 && pressures[4] == NODEDB_TPC_PRESSURE_SUSPENDED);
    CHECK_EQ(nodedb_tpc_turn(other, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_pressure(core, 1), NODEDB_TPC_PRESSURE_NONE); /* asking finds the change, and reports it */
    CHECK(pressure_count == 6 && pressures[5] == NODEDB_TPC_PRESSURE_NONE && core->pressed_rings == 0);
    CHECK_EQ(nodedb_tpc_get_stats(w.runtime, 0, &stats), NODEDB_OK);
    CHECK_EQ(stats.pressure_changes, 6);
    nodedb_tpc_destroy(w.runtime);
}

/* ---- quiescence, quarantine, latencies, reports ------------------------------------------------------------------ */

static void count_up(void *ctx) { __atomic_fetch_add((uint32_t *)ctx, 1, __ATOMIC_SEQ_CST); }

static void scan_and_panic(nodedb_tpc_core *core, void *arg) {
    nodedb_tpc_gate *gate = arg;
    if (!nodedb_tpc_gate_enter(gate)) return;
    CHECK_EQ(nodedb_tpc_defer(core, nodedb_tpc_gate_undo, gate), NODEDB_OK);
    nodedb_tpc_panic(core, "in the middle of a scan");
}

TEST(a_shut_gate_takes_no_scan_and_says_once_when_the_last_has_left) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core = world_create(&w, &config);
    nodedb_tpc_gate gate;
    uint32_t drained = 0;
    memset(&gate, 0, sizeof gate);
    REQUIRE(core != NULL);
    CHECK(nodedb_tpc_gate_enter(&gate) && nodedb_tpc_gate_enter(&gate) && !nodedb_tpc_gate_drained(&gate));
    CHECK_EQ(nodedb_tpc_gate_shut(&gate, count_up, &drained), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_gate_shut(&gate, count_up, &drained), NODEDB_ERR_STATE);
    CHECK(!nodedb_tpc_gate_enter(&gate) && drained == 0 && !nodedb_tpc_gate_drained(&gate));
    nodedb_tpc_gate_leave(&gate);
    CHECK_EQ(drained, 0);
    nodedb_tpc_gate_leave(&gate);
    CHECK(drained == 1 && nodedb_tpc_gate_drained(&gate));
    CHECK_EQ(nodedb_tpc_gate_shut(&gate, NULL, NULL), NODEDB_ERR_STATE);
    memset(&gate, 0, sizeof gate); /* nobody inside: at once */
    CHECK_EQ(nodedb_tpc_gate_shut(&gate, count_up, &drained), NODEDB_OK);
    CHECK(drained == 2 && nodedb_tpc_gate_drained(&gate));
    memset(&gate, 0, sizeof gate); /* a scan that is abandoned leaves too */
    CHECK_EQ(nodedb_tpc_guard(core, scan_and_panic, &gate, 0), NODEDB_ERR_FAULT);
    CHECK_EQ(nodedb_tpc_gate_shut(&gate, count_up, &drained), NODEDB_OK);
    CHECK_EQ(drained, 3);
    CHECK(!nodedb_tpc_gate_enter(NULL) && !nodedb_tpc_gate_drained(NULL));
    CHECK_EQ(nodedb_tpc_gate_shut(NULL, NULL, NULL), NODEDB_ERR_INVALID);
    nodedb_tpc_gate_leave(NULL);
    nodedb_tpc_destroy(w.runtime);
}

/* Tasks that are abandoned at each place where a scan can be, and a guard for each. */
typedef struct scan { nodedb_tpc_gate *gate; uint32_t drained; nodedb_tpc_core *core; } scan;
static void drained_panics(void *ctx) {
    scan *s = ctx;
    s->drained++;
    nodedb_tpc_panic(s->core, "while the collection was freed");
}
static void scans(nodedb_tpc_core *core, void *arg) {
    scan *s = arg;
    CHECK(nodedb_tpc_gate_enter(s->gate));
    CHECK_EQ(nodedb_tpc_defer(core, nodedb_tpc_gate_undo, s->gate), NODEDB_OK);
    if (s->drained == 0) CHECK_EQ(nodedb_tpc_gate_shut(s->gate, drained_panics, s), NODEDB_OK);
    nodedb_tpc_gate_leave(s->gate);
}
static void scans_and_panics_later(nodedb_tpc_core *core, void *arg) {
    scan *s = arg;
    s->drained = 1; /* so that nobody shuts the gate */
    scans(core, arg);
    nodedb_tpc_panic(core, "after the scan");
}
static void scans_twice_and_panics(nodedb_tpc_core *core, void *arg) {
    scan *s = arg;
    for (int i = 0; i < 2; i++) {
        CHECK(nodedb_tpc_gate_enter(s->gate));
        CHECK_EQ(nodedb_tpc_defer(core, nodedb_tpc_gate_undo, s->gate), NODEDB_OK);
    }
    nodedb_tpc_panic(core, "with two scans inside");
}
static void leaves_for_its_caller_and_panics(nodedb_tpc_core *core, void *arg) {
    nodedb_tpc_gate_leave(((scan *)arg)->gate);
    nodedb_tpc_panic(core, "after the caller's scan");
}
static void nests_and_panics(nodedb_tpc_core *core, void *arg) {
    scan *s = arg;
    CHECK(nodedb_tpc_gate_enter(s->gate));
    CHECK_EQ(nodedb_tpc_defer(core, nodedb_tpc_gate_undo, s->gate), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_guard(core, leaves_for_its_caller_and_panics, arg, 0), NODEDB_ERR_FAULT);
    nodedb_tpc_panic(core, "and then its caller");
}
static void scans_often(nodedb_tpc_core *core, void *arg) {
    for (int i = 0; i < 3 * NODEDB_TPC_MAX_DEFERS; i++) scans(core, arg);
}

TEST(a_scan_leaves_its_gate_once_wherever_its_task_is_abandoned) {
    static const struct { nodedb_tpc_fn fn; nodedb_status status; } tasks[] = {
        {scans_and_panics_later, NODEDB_ERR_FAULT}, {scans_twice_and_panics, NODEDB_ERR_FAULT},
        {nests_and_panics, NODEDB_ERR_FAULT},       {scans_often, NODEDB_OK},
        {scans, NODEDB_ERR_FAULT}, /* last: it shuts the gate, and `drained` panics inside leave */
    };
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_gate gate;
    scan s = {&gate, 0, NULL};
    config.faults_to_degrade = NODEDB_TPC_NEVER;
    s.core = world_create(&w, &config);
    memset(&gate, 0, sizeof gate);
    REQUIRE(s.core != NULL);
    for (size_t i = 0; i < sizeof tasks / sizeof tasks[0]; i++) {
        bool shuts = tasks[i].fn == scans;
        s.drained = !shuts;
        CHECK_EQ(nodedb_tpc_guard(s.core, tasks[i].fn, &s, 0), tasks[i].status);
        CHECK_EQ(gate.state, shuts ? 1 : 0);
        CHECK_EQ(s.drained, 1);
    }
    CHECK(nodedb_tpc_gate_drained(&gate));
    nodedb_tpc_destroy(w.runtime);
}

typedef struct crowd { nodedb_tpc_gate gate; uint32_t inside, drained, late, refused; } crowd;
static void crowd_gone(void *ctx) {
    crowd *c = ctx;
    CHECK_EQ(__atomic_load_n(&c->inside, __ATOMIC_SEQ_CST), 0);
    __atomic_fetch_add(&c->drained, 1, __ATOMIC_SEQ_CST);
}
static void *crowd_scans(void *arg) {
    crowd *c = arg;
    while (nodedb_tpc_gate_enter(&c->gate)) {
        __atomic_fetch_add(&c->inside, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&c->drained, __ATOMIC_SEQ_CST) != 0) __atomic_fetch_add(&c->late, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_sub(&c->inside, 1, __ATOMIC_SEQ_CST);
        nodedb_tpc_gate_leave(&c->gate);
    }
    __atomic_fetch_add(&c->refused, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

TEST(a_gate_under_a_crowd_drains_exactly_once_and_nobody_is_inside_then) {
    int round, i;
    for (round = 0; round < (SLOW ? 20 : 200); round++) {
        crowd c;
        pthread_t threads[3];
        memset(&c, 0, sizeof c);
        for (i = 0; i < 3; i++) CHECK_EQ(pthread_create(&threads[i], NULL, crowd_scans, &c), 0);
        if (round % 2 == 0) (void)usleep(100);
        CHECK_EQ(nodedb_tpc_gate_shut(&c.gate, crowd_gone, &c), NODEDB_OK);
        for (i = 0; i < 3; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
        CHECK(c.drained == 1 && c.late == 0 && c.refused == 3 && nodedb_tpc_gate_drained(&c.gate));
    }
}

TEST(damaged_parts_are_kept_by_name_with_their_first_reason_and_time) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_quarantined q, list[4];
    char name[80], text[8192];
    uint32_t i;
    REQUIRE(world_create(&w, &config) != NULL);
    CHECK(!nodedb_tpc_is_quarantined(w.runtime, "segment 7", NULL));
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, "segment 7", "checksum of block 12"), NODEDB_OK);
    CHECK_HAS(w.notes.last, "segment 7 is in quarantine: checksum of block 12");
    w.clock.now += SECOND_NS;
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, "segment 7", "another"), NODEDB_ERR_EXISTS);
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, "set \"a\"", NULL), NODEDB_OK);
    CHECK(nodedb_tpc_is_quarantined(w.runtime, "segment 7", &q));
    CHECK(strcmp(q.reason, "checksum of block 12") == 0 && q.since_ns == 1000 * SECOND_NS);
    CHECK_EQ(nodedb_tpc_quarantine_list(w.runtime, list, 4), 2);
    CHECK(strcmp(list[0].part, "segment 7") == 0 && strcmp(list[1].part, "set \"a\"") == 0);
    CHECK_EQ(nodedb_tpc_quarantine_list(w.runtime, NULL, 0), 2);
    (void)nodedb_tpc_report(w.runtime, NODEDB_TPC_TEXT, text, sizeof text);
    CHECK_HAS(text, "quarantined: segment 7, since 1000000000000 ns: checksum of block 12");
    (void)nodedb_tpc_report(w.runtime, NODEDB_TPC_PROMETHEUS, text, sizeof text);
    CHECK_HAS(text, "part=\"set \\\"a\\\"\"} 1");
    CHECK_EQ(nodedb_tpc_release_part(w.runtime, "segment 7"), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_release_part(w.runtime, "segment 7"), NODEDB_ERR_NOT_FOUND);
    CHECK(!nodedb_tpc_is_quarantined(w.runtime, "segment 7", NULL));
    CHECK(nodedb_tpc_is_quarantined(w.runtime, "set \"a\"", NULL));
    memset(name, 'n', sizeof name);
    name[NODEDB_TPC_MAX_PART_BYTES] = 0;
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, name, ""), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, "", ""), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_tpc_quarantine(NULL, "x", ""), NODEDB_ERR_INVALID);
    memset(text, 'r', 1000), text[1000] = 0;
    for (i = 1; i < NODEDB_TPC_MAX_QUARANTINED; i++) {
        snprintf(name, sizeof name, "part %u", (unsigned)i);
        CHECK_EQ(nodedb_tpc_quarantine(w.runtime, name, text), NODEDB_OK);
    }
    CHECK(nodedb_tpc_is_quarantined(w.runtime, "part 5", &q) && strlen(q.reason) == NODEDB_TPC_MAX_REASON_BYTES - 1);
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, "one more", ""), NODEDB_ERR_LIMIT);
    nodedb_tpc_destroy(w.runtime);
}

static void takes_a_while(nodedb_tpc_core *core, void *arg) {
    (void)core;
    ((world *)nodedb_tpc_core_runtime(core)->config.ctx)->clock.now += *(uint64_t *)arg;
}

TEST(latencies_run_from_spawn_to_end_and_are_right_to_a_quarter) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    uint64_t took[100], v, state = test_seed;
    nodedb_tpc_stats stats;
    uint32_t i;
    for (i = 0; i < 64; i++) /* every place holds what it says, next to its bounds as well */
        for (v = 0; v < 9; v++) {
            uint64_t x = (UINT64_C(1) << i) + test_random(&state) % (UINT64_C(1) << i) / 8 * v;
            uint64_t most = nodedb_tpc__latency_most(nodedb_tpc__latency_place(x));
            CHECK(most >= x && most - x <= x / 4);
            CHECK_EQ(nodedb_tpc__latency_place(most), nodedb_tpc__latency_place(x));
            if (most != UINT64_MAX) CHECK_EQ(nodedb_tpc__latency_place(most + 1), nodedb_tpc__latency_place(x) + 1);
        }
    CHECK(nodedb_tpc__latency_place(UINT64_MAX) == NODEDB_TPC__LATENCIES - 1 && nodedb_tpc__latency_place(0) == 0);
    config.on_task_end = NULL;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_latency(w.runtime, 0, 500), 0);
    for (i = 0; i < 100; i++) { /* 1,000 ns ... 100,000 ns, one to a turn */
        took[i] = 1000 * (i + 1);
        CHECK_EQ(nodedb_tpc_spawn(core, takes_a_while, &took[i], 0, 0), NODEDB_OK);
        CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    }
    v = nodedb_tpc_latency(w.runtime, 0, 500);
    CHECK(v >= 50000 && v <= 62500);
    v = nodedb_tpc_latency(w.runtime, 0, 990);
    CHECK(v >= 99000 && v <= 125000);
    v = nodedb_tpc_latency(w.runtime, 0, 1000);
    CHECK(v >= 100000 && v <= 125000);
    v = nodedb_tpc_latency(w.runtime, 0, 10);
    CHECK(v >= 1000 && v <= 1250);
    CHECK_EQ(nodedb_tpc_get_stats(w.runtime, 0, &stats), NODEDB_OK);
    CHECK_EQ(stats.latency_ns, 5050000);
    took[0] = 1000000; /* who waits behind others waits for them too */
    CHECK_EQ(nodedb_tpc_spawn(core, takes_a_while, &took[0], 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_spawn(core, takes_a_while, &took[0], 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    v = nodedb_tpc_latency(w.runtime, 0, 1000);
    CHECK(v >= 2000000 && v <= 2500000);
    CHECK(nodedb_tpc_latency(w.runtime, 0, 0) == 0 && nodedb_tpc_latency(w.runtime, 0, 1001) == 0 &&
          nodedb_tpc_latency(w.runtime, 9, 500) == 0 && nodedb_tpc_latency(NULL, 0, 500) == 0);
    nodedb_tpc_destroy(w.runtime);
}

TEST(a_share_of_latencies_is_exact_to_one_task) {
    world w;
    nodedb_tpc_config config = world_config(&w, 1);
    nodedb_tpc_core *core;
    uint64_t quick = 1023, slow = 1000000;
    uint32_t i;
    config.on_task_end = NULL;
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    for (i = 0; i < 10; i++) {
        CHECK_EQ(nodedb_tpc_spawn(core, takes_a_while, i < 3 ? &quick : &slow, 0, 0), NODEDB_OK);
        CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    }
    CHECK_EQ(nodedb_tpc_latency(w.runtime, 0, 1), 1023);
    CHECK_EQ(nodedb_tpc_latency(w.runtime, 0, 300), 1023); /* three of ten */
    CHECK(nodedb_tpc_latency(w.runtime, 0, 301) >= slow);  /* needs a fourth */
    nodedb_tpc_destroy(w.runtime);
}

/* Every line of the Prometheus format is a type or a sample of the type that was named last; histograms only grow. */
TEST(the_prometheus_report_can_be_read_line_by_line) {
    world w;
    nodedb_tpc_config config = world_config(&w, 3);
    nodedb_tpc_core *core;
    uint64_t took = 5000;
    char *text, *line, *end, type[64] = "", kind[32] = "";
    size_t whole, types = 0, samples = 0, buckets = 0;
    double last = 0, value;
    config.on_task_end = NULL, config.name = "a\"b";
    core = world_create(&w, &config);
    REQUIRE(core != NULL);
    CHECK_EQ(nodedb_tpc_spawn(core, takes_a_while, &took, 0, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_turn(core, 0), NODEDB_OK);
    CHECK_EQ(nodedb_tpc_quarantine(w.runtime, "\xC3\xA9\xFFx\xE2\x82\xAC\xED\xA0\x80\xC3", "cut off"), NODEDB_OK);
    whole = nodedb_tpc_report(w.runtime, NODEDB_TPC_PROMETHEUS, NULL, 0);
    text = malloc(whole + 1);
    CHECK_EQ(nodedb_tpc_report(w.runtime, NODEDB_TPC_PROMETHEUS, text, whole + 1), whole);
    CHECK(strlen(text) == whole && text[whole - 1] == '\n');
    CHECK_HAS(text, "tpc_tasks_total{runtime=\"a\\\"b\",core=\"0\"} 1\n");
    CHECK_HAS(text, "tpc_task_seconds_bucket{runtime=\"a\\\"b\",core=\"0\",le=\"0.000004095\"} 0\n");
    CHECK_HAS(text, "tpc_task_seconds_bucket{runtime=\"a\\\"b\",core=\"0\",le=\"0.000016383\"} 1\n");
    CHECK_HAS(text, "part=\"\xC3\xA9?x\xE2\x82\xAC????\"} 1\n"); /* what is not UTF-8 is not printed */
    CHECK_HAS(text, "tpc_task_seconds_sum{runtime=\"a\\\"b\",core=\"0\"} 0.000005000\n");
    for (line = text; *line != 0; line = end + 1) {
        size_t n;
        end = strchr(line, '\n');
        REQUIRE(end != NULL);
        *end = 0;
        if (line[0] == '#') {
            CHECK_EQ(sscanf(line, "# TYPE %63s %31s", type, kind), 2);
            types++;
            continue;
        }
        n = strlen(type);
        CHECK(strncmp(line, type, n) == 0 && strchr(line + n, '{') != NULL && strstr(line, "} ") != NULL);
        CHECK_EQ(sscanf(strstr(line, "} ") + 2, "%lf", &value), 1);
        samples++;
        if (strstr(line, "_bucket{") == NULL) continue;
        if (strstr(line, "le=\"0.000001023\"") != NULL) last = 0;
        CHECK(strcmp(kind, "histogram") == 0 && value >= last);
        last = value, buckets++;
    }
    CHECK(types > 25 && samples > 3 * 25 && buckets == 3 * 14);
    free(text);
    nodedb_tpc_destroy(w.runtime);
}

TEST(the_report_is_text_and_never_overruns_its_buffer) {
    world w;
    nodedb_tpc_config config = world_config(&w, 2);
    nodedb_tpc_core *core = world_create(&w, &config);
    char text[4096], small[64];
    size_t whole;
    REQUIRE(core != NULL);
    nodedb_tpc_guard(core, just_panics, &w, 0);
    nodedb_tpc_turn(core, 0);
    whole = nodedb_tpc_report(w.runtime, NODEDB_TPC_TEXT, text, sizeof text);
    CHECK_EQ(whole, strlen(text));
    CHECK_HAS(text, "core 0 (cpu -1): turns 1,");
    CHECK_HAS(text, "core 1");
    CHECK_HAS(text, "faults 1,");
    memset(small, 'x', sizeof small);
    CHECK_EQ(nodedb_tpc_report(w.runtime, NODEDB_TPC_TEXT, small, 32), whole);
    CHECK_EQ(strlen(small), 31);
    CHECK_EQ(small[32], 'x');
    CHECK_EQ(nodedb_tpc_report(w.runtime, NODEDB_TPC_TEXT, NULL, 0), whole);
    CHECK_EQ(nodedb_tpc_report(NULL, NODEDB_TPC_TEXT, text, sizeof text), 0);
    nodedb_tpc_destroy(w.runtime);
}

TEST_MAIN("tpc_watch")
