/* Tests of the governor, the arenas and NUMA of nodedb_mem.h, through its public API but for one room. In this order:
 *   reserve and release on one thread; on many threads; stopped in the middle of a call (looks inside)
 *   forced reservations
 *   limits and lending; engines by name, faults of the caller
 *   pressure; spill, one controller; spill, many cores beside a model
 *   what the system says, through files of the test's; life cycle
 *   arenas
 * The overflow regions have test_mem_overflow.c. */
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

#include "refusing_allocator.h"
#include "test.h"

#define KIB ((size_t)1024)
#define MIB ((size_t)1024 * 1024)

static nodedb_mem *governor(size_t ceiling, uint32_t cores) {
    nodedb_mem_config config;
    memset(&config, 0, sizeof config);
    config.ceiling_bytes = ceiling;
    config.max_cores = cores;
    return nodedb_mem_create(&config, NULL);
}

static nodedb_mem_usage usage_of(nodedb_mem *mem, uint32_t engine) {
    nodedb_mem_usage usage;
    CHECK_EQ(nodedb_mem_get_usage(mem, engine, &usage, NULL), NODEDB_OK);
    return usage;
}

/* What the spill controller says, to a question that it understands. */
static nodedb_mem_spill_action decide(nodedb_mem *mem, nodedb_mem_spill *spill, uint32_t core, uint32_t engine,
                                      size_t spilled_bytes, size_t *bytes) {
    nodedb_mem_spill_action action = NODEDB_MEM_SPILL_NONE;
    nodedb_error err;
    CHECK_EQ(nodedb_mem_spill_decide(mem, spill, core, engine, spilled_bytes, &action, bytes, &err), NODEDB_OK);
    return action;
}

/* ---- reserve and release on one thread --------------------------------------------------------------------------- */

TEST(reservation_up_to_the_ceiling_is_granted_and_one_byte_more_is_refused) {
    nodedb_error err;
    nodedb_mem *mem = governor(1000, 2);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 600, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 400, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 1, &err), NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "ceiling");
    CHECK_HAS(err.message, "1 bytes asked");
    CHECK_HAS(err.message, "0 left of 1000");
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).reserved_bytes, 1000);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).available_bytes, 0);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).rejections, 1);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).rejections, 1);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).rejections, 0);
    nodedb_mem_destroy(mem);
}

TEST(engine_limit_holds_exactly_and_the_refusal_names_the_engine) {
    nodedb_error err;
    nodedb_mem *mem = governor(MIB, 2);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, 1000, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 700, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_QUERY, 301, &err), NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "engine query: 301 bytes asked, 300 left of its limit of 1000");
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_QUERY, 300, &err), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).available_bytes, 0);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).rejections, 0);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, MIB - 1000, &err), NODEDB_OK);
    nodedb_mem_destroy(mem);
}

TEST(releasing_more_than_was_reserved_is_an_error_and_changes_nothing) {
    nodedb_error err;
    uint32_t cores[3] = {0, 1, NODEDB_MEM_ANY_THREAD};
    int i;
    nodedb_mem *mem = governor(MIB, 2);
    REQUIRE(mem != NULL);
    for (i = 0; i < 3; i++) {
        CHECK_EQ(nodedb_mem_reserve(mem, cores[i], NODEDB_MEM_QUERY, 100, &err), NODEDB_OK);
        CHECK_EQ(nodedb_mem_release(mem, cores[i], NODEDB_MEM_QUERY, 101, &err), NODEDB_ERR_INVALID);
        CHECK_HAS(err.message, "release of 101 bytes");
        CHECK_HAS(err.message, "holds only 100");
        CHECK_EQ(nodedb_mem_release(mem, cores[i], NODEDB_MEM_VECTOR, 1, &err), NODEDB_ERR_INVALID);
        CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).reserved_bytes, 100);
        CHECK_EQ(nodedb_mem_release(mem, cores[i], NODEDB_MEM_QUERY, 100, &err), NODEDB_OK);
        CHECK_EQ(nodedb_mem_release(mem, cores[i], NODEDB_MEM_QUERY, 1, &err), NODEDB_ERR_INVALID);
    }
    nodedb_mem_destroy(mem);
}

TEST(credit_idle_at_one_core_is_reclaimed_for_another) {
    nodedb_mem *mem = governor(16 * MIB, 4);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 16 * MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 16 * MIB, NULL), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).credit_bytes, 16 * MIB); /* all of it lies at core 0 */
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).available_bytes, 16 * MIB);
    CHECK_EQ(nodedb_mem_reserve(mem, 3, NODEDB_MEM_VECTOR, 16 * MIB, NULL), NODEDB_OK); /* another engine, too */
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_release(mem, 3, NODEDB_MEM_VECTOR, 16 * MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_WAL, 16 * MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_WAL, 16 * MIB, NULL), NODEDB_OK);
    nodedb_mem_destroy(mem);
}

TEST(engine_credit_idle_at_one_core_is_reclaimed_for_another) {
    nodedb_mem *mem = governor(64 * MIB, 4);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 2, NODEDB_MEM_QUERY, MIB, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1, NULL), NODEDB_ERR_LIMIT);
    nodedb_mem_destroy(mem);
}

TEST(random_reservations_of_one_thread_agree_with_a_plain_model) {
    size_t held[3][2] = {{0}}, limit[2] = {40000, 70000}, total = 0, engine_total[2] = {0, 0}, peak = 0;
    uint64_t random = test_seed;
    int i;
    nodedb_mem *mem = governor(100000, 3);
    REQUIRE(mem != NULL);
    for (i = 0; i < 2; i++) CHECK_EQ(nodedb_mem_set_limit(mem, (uint32_t)i, limit[i], NULL), NODEDB_OK);
    for (i = 0; i < 200000; i++) {
        uint32_t core = (uint32_t)(test_random(&random) % 3), engine = (uint32_t)(test_random(&random) % 2);
        size_t bytes = (size_t)(test_random(&random) % (test_random(&random) % 50 == 0 ? 30000 : 300)) + 1;
        bool release = test_random(&random) % 2 == 0;
        if (release) {
            bool fits = bytes <= held[core][engine];
            nodedb_status status = nodedb_mem_release(mem, core, engine, bytes, NULL);
            CHECK_EQ(status, fits ? NODEDB_OK : NODEDB_ERR_INVALID);
            if (fits) held[core][engine] -= bytes, engine_total[engine] -= bytes, total -= bytes;
        } else {
            bool fits = bytes <= 100000 - total && bytes <= limit[engine] - engine_total[engine];
            nodedb_status status = nodedb_mem_reserve(mem, core, engine, bytes, NULL);
            CHECK_EQ(status, fits ? NODEDB_OK : NODEDB_ERR_LIMIT);
            if (fits) held[core][engine] += bytes, engine_total[engine] += bytes, total += bytes;
            if (total > peak) peak = total;
        }
        if (i % 1000 == 0) {
            CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).reserved_bytes, total);
            CHECK_EQ(usage_of(mem, 0).reserved_bytes, engine_total[0]);
            CHECK_EQ(usage_of(mem, 1).reserved_bytes, engine_total[1]);
        }
    }
    CHECK(usage_of(mem, NODEDB_MEM_GLOBAL).peak_bytes >= peak);
    CHECK(usage_of(mem, NODEDB_MEM_GLOBAL).peak_bytes <= 100000);
    nodedb_mem_destroy(mem);
}

TEST(peak_of_an_engine_is_exact_on_one_core) {
    nodedb_mem *mem = governor(MIB, 1);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 100, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 50, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 150, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 10, NULL), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).peak_bytes, 150);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).peak_bytes, 150);
    nodedb_mem_destroy(mem);
}

/* ---- reserve and release on many threads ------------------------------------------------------------------------- */

/* The independent check: each thread adds what it was granted to one counter after the grant, and takes it off before
 * the release. So the counter is never above what is granted, and must never pass the ceiling; nor the engine's. */
typedef struct stress {
    nodedb_mem *mem;
    size_t ceiling, engine_limit;
    size_t *granted, *engine_granted; /* shared by all threads */
    uint64_t seed;
    uint32_t core;
    int rounds;
    int grants, refusals;
} stress;

/* Gives back the newest of what the thread holds of engine `e`. */
static nodedb_status stress_release(const stress *s, uint32_t e, size_t bytes) {
    __atomic_sub_fetch(s->granted, bytes, __ATOMIC_SEQ_CST);
    if (e == 0) __atomic_sub_fetch(s->engine_granted, bytes, __ATOMIC_SEQ_CST);
    return nodedb_mem_release(s->mem, s->core, e, bytes, NULL);
}

static void *stress_thread(void *argument) {
    stress *s = (stress *)argument;
    size_t held[2][64], bytes;
    int counts[2] = {0, 0}, i, failures = 0;
    uint64_t random = s->seed;
    uint32_t e;
    for (i = 0; i < s->rounds; i++) {
        e = (uint32_t)(test_random(&random) % 2);
        if (test_random(&random) % 2 == 0 && counts[e] < 64) {
            bytes = (size_t)(test_random(&random) % 3000) + 1;
            if (nodedb_mem_reserve(s->mem, s->core, e, bytes, NULL) == NODEDB_OK) {
                failures += __atomic_add_fetch(s->granted, bytes, __ATOMIC_SEQ_CST) > s->ceiling;
                failures += e == 0 && __atomic_add_fetch(s->engine_granted, bytes, __ATOMIC_SEQ_CST) > s->engine_limit;
                held[e][counts[e]++] = bytes;
                s->grants++;
            } else s->refusals++;
        } else if (counts[e] > 0) failures += stress_release(s, e, held[e][--counts[e]]) != NODEDB_OK;
    }
    for (e = 0; e < 2; e++)
        while (counts[e] > 0) failures += stress_release(s, e, held[e][--counts[e]]) != NODEDB_OK;
    CHECK_EQ(failures, 0);
    return NULL;
}

TEST(sum_of_grants_never_passes_the_ceiling_under_threads) {
    enum { THREADS = 5 };
    pthread_t threads[THREADS];
    stress work[THREADS];
    size_t granted = 0, engine_granted = 0;
    int i, grants = 0, refusals = 0;
    nodedb_mem *mem = governor(100000, THREADS - 1);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_set_limit(mem, 0, 60000, NULL), NODEDB_OK);
    for (i = 0; i < THREADS; i++) {
        memset(&work[i], 0, sizeof work[i]);
        work[i].mem = mem, work[i].ceiling = 100000, work[i].engine_limit = 60000;
        work[i].granted = &granted, work[i].engine_granted = &engine_granted;
        work[i].seed = test_seed * 1000 + (uint64_t)i, work[i].rounds = test_long ? 2000000 : 400000;
        work[i].core = i == THREADS - 1 ? NODEDB_MEM_ANY_THREAD : (uint32_t)i;
        CHECK_EQ(pthread_create(&threads[i], NULL, stress_thread, &work[i]), 0);
    }
    for (i = 0; i < 2000; i++) { /* statistics from another thread, meanwhile */
        nodedb_mem_usage usage = usage_of(mem, NODEDB_MEM_GLOBAL);
        CHECK(usage.reserved_bytes + usage.credit_bytes <= 100000);
        CHECK(usage_of(mem, 0).reserved_bytes <= 60000);
        (void)nodedb_mem_poll(mem);
    }
    for (i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        grants += work[i].grants, refusals += work[i].refusals;
    }
    CHECK(grants > 0 && refusals > 0);
    CHECK_EQ(usage_of(mem, 0).rejections + usage_of(mem, 1).rejections, refusals);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).reserved_bytes, 0);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).available_bytes, 100000);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, 1, 100000, NULL), NODEDB_OK); /* everything is there again, for anyone */
    CHECK_EQ(nodedb_mem_reserve(mem, 0, 1, 1, NULL), NODEDB_ERR_LIMIT);
    nodedb_mem_destroy(mem);
}

/* Four threads, and a ceiling that all together never pass: so nothing may be refused, wherever the credit lies. */
typedef struct fitting {
    nodedb_mem *mem;
    uint32_t core;
    uint64_t seed;
    int rounds, refusals;
} fitting;

static void *fitting_thread(void *argument) {
    fitting *f = (fitting *)argument;
    uint64_t random = f->seed;
    int i;
    for (i = 0; i < f->rounds; i++) {
        size_t bytes = (size_t)(test_random(&random) % 2500) + 1;
        if (nodedb_mem_reserve(f->mem, f->core, f->core % 2, bytes, NULL) != NODEDB_OK) f->refusals++;
        else CHECK_EQ(nodedb_mem_release(f->mem, f->core, f->core % 2, bytes, NULL), NODEDB_OK);
    }
    return NULL;
}

TEST(nothing_is_refused_that_would_have_fitted) {
    nodedb_mem *mem = governor(10000, 4);
    pthread_t threads[4];
    fitting work[4];
    int i;
    REQUIRE(mem != NULL);
    for (i = 0; i < 4; i++) {
        work[i].mem = mem, work[i].core = (uint32_t)i, work[i].seed = test_seed + (uint64_t)i;
        work[i].rounds = test_long ? 2000000 : 400000, work[i].refusals = 0;
        CHECK_EQ(pthread_create(&threads[i], NULL, fitting_thread, &work[i]), 0);
    }
    for (i = 0; i < 4; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        CHECK_EQ(work[i].refusals, 0);
    }
    nodedb_mem_destroy(mem);
}

/* ---- stopped in the middle of a call ----------------------------------------------------------------------------- */

/* The steps of nodedb_mem_reserve without the lock, one at a time, so that a test can do anything in between. */
static nodedb_status answer_of_raise(nodedb_mem *mem, uint32_t core, uint32_t engine, size_t bytes, nodedb_error *err) {
    nodedb_mem__cell *cell = nodedb_mem__cell_of(mem, core, engine);
    if (cell->used <= __atomic_load_n(&cell->granted, __ATOMIC_SEQ_CST)) return NODEDB_OK;
    return nodedb_mem__reserve_locked(mem, core, engine, bytes, NODEDB_MEM__PENDING, err);
}

TEST(raise_that_others_were_refused_for_is_granted_even_after_a_forced_reservation) {
    nodedb_mem *mem = governor(1000, 2);
    nodedb_mem__cell *cell;
    nodedb_error err;
    REQUIRE(mem != NULL);
    cell = nodedb_mem__cell_of(mem, 0, NODEDB_MEM_VECTOR);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_VECTOR, 900, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_VECTOR, 900, NULL), NODEDB_OK);
    __atomic_store_n(&cell->used, 900, __ATOMIC_SEQ_CST); /* core 0 is stopped here, with its credit */
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 500, &err), NODEDB_ERR_LIMIT);
    CHECK_HAS(err.message, "100 left of 1000");
    CHECK_EQ(nodedb_mem_reserve_forced(mem, 1, NODEDB_MEM_SPARSE, 600, NULL), NODEDB_OK);
    CHECK_EQ(answer_of_raise(mem, 0, NODEDB_MEM_VECTOR, 900, &err), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).reserved_bytes, 1500);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).peak_bytes, 900);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_VECTOR, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_VECTOR, 900, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_SPARSE, 600, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_SPARSE, 1000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_SPARSE, 1000, NULL), NODEDB_OK);
    nodedb_mem_destroy(mem);
}

/* What a reservation was answered, and what was held by all but the stopped core's raise: [0] of the engine, [1] of
 * all engines. */
typedef struct answer {
    uint32_t engine;
    size_t bytes, held[2], limit[2];
    bool granted;
} answer;

typedef struct steps {
    nodedb_mem *mem;
    uint64_t random;
    size_t held[3][2]; /* by core and engine */
    answer answers[64];
    int count;
} steps;

static answer ask_at_this_moment(const steps *s, uint32_t engine, size_t bytes) {
    answer a;
    memset(&a, 0, sizeof a);
    a.engine = engine, a.bytes = bytes;
    for (int core = 0; core < 3; core++)
        a.held[0] += s->held[core][engine], a.held[1] += s->held[core][0] + s->held[core][1];
    a.limit[0] = s->mem->budgets[engine].limit, a.limit[1] = s->mem->budgets[NODEDB_MEM__ALL].limit;
    return a;
}

/* True if the answer is what a plain counter would say, with `raised` bytes of engine 0 counted. */
static bool is_exact(const answer *a, size_t raised) {
    bool fits = a->held[1] + raised + a->bytes <= a->limit[1] &&
                a->held[0] + (a->engine == 0 ? raised : 0) + a->bytes <= a->limit[0];
    return fits == a->granted;
}

/* Some calls of the cores first .. 2. */
static void some_calls(steps *s, uint32_t first) {
    for (uint64_t i = test_random(&s->random) % 4; i > 0; i--) {
        uint32_t core = first + (uint32_t)(test_random(&s->random) % (3 - first));
        uint32_t engine = (uint32_t)(test_random(&s->random) % 2);
        size_t bytes = 1 + (size_t)(test_random(&s->random) % 700), *held = &s->held[core][engine];
        uint64_t what = test_random(&s->random) % 16;
        if (what < 7 && s->count < 64) {
            answer *a = &s->answers[s->count++];
            *a = ask_at_this_moment(s, engine, bytes);
            a->granted = nodedb_mem_reserve(s->mem, core, engine, bytes, NULL) == NODEDB_OK;
            *held += a->granted ? bytes : 0;
        } else if (what < 12 && *held > 0) {
            bytes = what < 10 ? *held : 1 + bytes % *held;
            CHECK_EQ(nodedb_mem_release(s->mem, core, engine, bytes, NULL), NODEDB_OK);
            *held -= bytes;
        } else if (what == 12) {
            CHECK_EQ(nodedb_mem_reserve_forced(s->mem, core, engine, bytes, NULL), NODEDB_OK);
            *held += bytes;
        } else if (what == 13) CHECK_EQ(nodedb_mem_set_limit(s->mem, engine, 200 + bytes, NULL), NODEDB_OK);
        else if (what == 14) CHECK_EQ(nodedb_mem_set_limit(s->mem, NODEDB_MEM_GLOBAL, 500 + bytes, NULL), NODEDB_OK);
        else if (what == 15) CHECK_EQ(nodedb_mem_rebalance(s->mem, NULL, NULL), NODEDB_OK);
    }
}

static int answers_not_exact(const steps *s, size_t raised) {
    int wrong = 0;
    for (int i = 0; i < s->count; i++) wrong += !is_exact(&s->answers[i], raised);
    return wrong;
}

TEST(every_answer_is_a_plain_counters_wherever_another_core_stops_in_the_middle_of_its_reservation) {
    int raises = 0, locked = 0, refused = 0;
    for (int round = 0; round < (test_long ? 2000000 : 200000); round++) {
        steps s;
        nodedb_mem__cell *cell;
        answer at_store, at_answer;
        size_t bytes;
        memset(&s, 0, sizeof s);
        s.random = test_seed + (uint64_t)round;
        s.mem = governor(1000, 3);
        REQUIRE(s.mem != NULL);
        cell = nodedb_mem__cell_of(s.mem, 0, 0);
        for (int i = 0; i < 4; i++) some_calls(&s, 0);
        CHECK_EQ(answers_not_exact(&s, 0), 0);
        s.count = 0;
        if (cell->granted > cell->used) { /* core 0 reserves from its credit, as nodedb_mem_reserve does */
            bytes = 1 + (size_t)(test_random(&s.random) % (cell->granted - cell->used));
            some_calls(&s, 1);
            CHECK_EQ(answers_not_exact(&s, 0), 0);
            s.count = 0;
            at_store = ask_at_this_moment(&s, 0, bytes);
            __atomic_store_n(&cell->used, cell->used + bytes, __ATOMIC_SEQ_CST);
            some_calls(&s, 1);
            locked += cell->used > cell->granted;
            at_answer = ask_at_this_moment(&s, 0, bytes);
            at_store.granted = at_answer.granted = answer_of_raise(s.mem, 0, 0, bytes, NULL) == NODEDB_OK;
            raises++, refused += !at_answer.granted;
            /* The reservation took effect at its store or at its end, and each other answer agrees with that. */
            CHECK((at_store.granted && is_exact(&at_store, 0) && answers_not_exact(&s, bytes) == 0) ||
                  (is_exact(&at_answer, 0) && answers_not_exact(&s, 0) == 0));
            s.held[0][0] += at_answer.granted ? bytes : 0;
        }
        s.count = 0;
        for (int i = 0; i < 4; i++) some_calls(&s, 0); /* and what it left behind is in order */
        CHECK_EQ(answers_not_exact(&s, 0), 0);
        nodedb_mem_destroy(s.mem);
    }
    CHECK(raises > 1000 && locked > 100 && refused > 10);
}

/* ---- forced reservations ----------------------------------------------------------------------------------------- */

TEST(forced_reservation_passes_the_limits_and_nothing_else_does_until_it_is_released) {
    nodedb_mem *mem = governor(1000, 2);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 500, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve_forced(mem, 1, NODEDB_MEM_VECTOR, 1500, NULL), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).reserved_bytes, 2000);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).forced, 1);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).forced_bytes, 1000);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).forced, 1);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).available_bytes, 0);
    /* what is released while the ceiling is passed must not be granted again, at neither core */
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 400, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_VECTOR, 100, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_VECTOR, 1400, NULL), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).available_bytes, 900);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 900, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1, NULL), NODEDB_ERR_LIMIT);
    nodedb_mem_destroy(mem);
}

TEST(forced_reservation_takes_idle_credit_away_before_it_passes_the_ceiling) {
    nodedb_mem *mem = governor(1000, 2);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 600, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 600, NULL), NODEDB_OK); /* idle at core 0 */
    CHECK_EQ(nodedb_mem_reserve_forced(mem, 1, NODEDB_MEM_QUERY, 900, NULL), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_GLOBAL).forced_bytes, 0); /* it fitted */
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 101, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 100, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve_forced(mem, 0, NODEDB_MEM_QUERY, SIZE_MAX, NULL), NODEDB_ERR_INVALID);
    nodedb_mem_destroy(mem);
}

/* ---- limits and lending ------------------------------------------------------------------------------------------ */

TEST(limit_set_below_what_is_reserved_takes_nothing_away_and_grants_nothing) {
    nodedb_mem *mem = governor(10000, 2);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 5000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, 3000, NULL), NODEDB_OK);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).reserved_bytes, 5000);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 5000, NULL), NODEDB_OK); /* others are not touched */
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 2500, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 501, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 500, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_GLOBAL, 100, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_WAL, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_GLOBAL, 8001, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_WAL, 1, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_WAL, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_GLOBAL, 0, NULL), NODEDB_ERR_INVALID);
    nodedb_mem_destroy(mem);
}

TEST(idle_budget_is_lent_to_who_needs_it_and_comes_back) {
    nodedb_mem *mem = governor(10000, 2);
    nodedb_error err;
    size_t moved = 7;
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, 4000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_VECTOR, 2000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK); /* nobody is in need */
    CHECK(moved == 0 && usage_of(mem, NODEDB_MEM_QUERY).limit_bytes == 4000);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 800, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 2000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 500, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK_EQ(moved, 1000); /* half as much again as it holds */
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).limit_bytes, 3000);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).limit_bytes, 3000);
    CHECK(usage_of(mem, NODEDB_MEM_QUERY).base_bytes == 4000 && usage_of(mem, NODEDB_MEM_VECTOR).base_bytes == 2000);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 1000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK_EQ(moved, 2500);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 1500, NULL), NODEDB_OK); /* 4,500 of 4,500 */
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 700, NULL), NODEDB_OK);   /* 1,500 of 1,500: all it kept */
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1000, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK); /* its owner is in need, so it comes back */
    CHECK_EQ(moved, 0);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).limit_bytes, 4000); /* and no more than that, as it had lent */
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).limit_bytes, 2000);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).reserved_bytes, 4500);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 2500, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, 1, NULL), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 4000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_VECTOR, 2700, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK(moved > 0 && usage_of(mem, NODEDB_MEM_QUERY).limit_bytes < 4000);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, 3000, NULL), NODEDB_OK); /* ends all loans */
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).limit_bytes, 3000);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_VECTOR).limit_bytes, 2000);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_GLOBAL, 1900, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 500, NULL), NODEDB_ERR_LIMIT); /* by the ceiling: */
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_VECTOR, 1800, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK_EQ(moved, 0); /* no need of its own */
    CHECK_EQ(nodedb_mem_rebalance(NULL, NULL, &err), NODEDB_ERR_INVALID);
    nodedb_mem_destroy(mem);
}

TEST(loan_for_one_large_request_outlives_a_rebalance_by_each_core) {
    nodedb_mem *mem = governor(1000, 4);
    size_t moved;
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, 100, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_VECTOR, 100, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 150, NULL), NODEDB_ERR_LIMIT);
    for (int core = 0; core < 4; core++) CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 150, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, 150, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK_EQ(moved, 50); /* the fifth */
    CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
    CHECK_EQ(moved, 0);
    CHECK_EQ(usage_of(mem, NODEDB_MEM_QUERY).limit_bytes, 100);
    nodedb_mem_destroy(mem);
}

TEST(limits_after_any_rebalance_add_up_to_no_more_than_was_set) {
    uint64_t state = test_seed;
    int round, i;
    for (round = 0; round < 300; round++) {
        nodedb_mem *mem = governor(SIZE_MAX / 4, 3);
        size_t scale = (size_t)1 << test_random(&state) % (sizeof(size_t) > 4 ? 40 : 15);
        size_t sum = 0, set = 0, held[7], moved, lent = 0;
        int turn;
        REQUIRE(mem != NULL);
        for (i = 0; i < 7; i++) {
            size_t limit = 1 + (size_t)test_random(&state) % (1000 * scale);
            held[i] = 0, set += limit;
            CHECK_EQ(nodedb_mem_set_limit(mem, (uint32_t)i, limit, NULL), NODEDB_OK);
        }
        for (turn = 0; turn < 6; turn++) {
            for (i = 0; i < 7; i++) {
                size_t more = (size_t)test_random(&state) % (600 * scale);
                if (nodedb_mem_reserve(mem, 1, (uint32_t)i, more, NULL) == NODEDB_OK) held[i] += more;
                if (test_random(&state) % 3 != 0 || held[i] == 0) continue;
                more = (size_t)test_random(&state) % held[i];
                CHECK_EQ(nodedb_mem_release(mem, 1, (uint32_t)i, more, NULL), NODEDB_OK);
                held[i] -= more;
            }
            CHECK_EQ(nodedb_mem_rebalance(mem, &moved, NULL), NODEDB_OK);
            for (i = 0, sum = 0, lent = 0; i < 7; i++) {
                nodedb_mem_usage u = usage_of(mem, (uint32_t)i);
                sum += u.limit_bytes;
                if (u.limit_bytes < u.base_bytes) {
                    lent += u.base_bytes - u.limit_bytes;
                    CHECK(u.limit_bytes >= u.reserved_bytes && u.limit_bytes >= u.base_bytes / 4);
                }
                CHECK_EQ(u.reserved_bytes, held[i]);
            }
            CHECK(sum <= set && set - sum <= 7 && lent >= moved && lent - moved <= 7);
        }
        for (i = 0; i < 7; i++)
            if (held[i] > 0) CHECK_EQ(nodedb_mem_release(mem, 1, (uint32_t)i, held[i], NULL), NODEDB_OK);
        nodedb_mem_destroy(mem);
    }
}

/* ---- engines by name, faults of the caller ----------------------------------------------------------------------- */

TEST(engines_are_registered_by_name_up_to_sixty_four) {
    nodedb_error err;
    uint32_t engine = 0, again = 0;
    char name[40];
    int i;
    nodedb_mem *mem = governor(MIB, 1);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_register_engine(mem, "query", 1, &engine, NULL), NODEDB_ERR_EXISTS);
    CHECK_EQ(engine, NODEDB_MEM_QUERY);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, 7, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_release(mem, 0, 7, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_register_engine(mem, "graph", 100, &engine, &err), NODEDB_OK);
    CHECK_EQ(engine, 7);
    CHECK_EQ(nodedb_mem_register_engine(mem, "graph", 100, &again, &err), NODEDB_ERR_EXISTS);
    CHECK_EQ(again, 7);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, engine, 100, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, engine, 1, &err), NODEDB_ERR_LIMIT);
    for (i = 8; i < NODEDB_MEM_MAX_ENGINES; i++) {
        snprintf(name, sizeof name, "engine%d", i);
        CHECK_EQ(nodedb_mem_register_engine(mem, name, NODEDB_MEM_NO_LIMIT_BYTES, &engine, &err), NODEDB_OK);
    }
    CHECK_EQ(nodedb_mem_register_engine(mem, "one too many", 1, &engine, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_MAX_ENGINES - 1, MIB - 100, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_MAX_ENGINES, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_register_engine(mem, "", 1, &engine, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_register_engine(mem, "a name of far more than thirty-one bytes", 1, &engine, &err),
                 NODEDB_ERR_INVALID);
    nodedb_mem_destroy(mem);
}

TEST(faults_of_the_caller_are_errors) {
    nodedb_error err;
    nodedb_mem_config config;
    nodedb_mem_usage usage;
    nodedb_mem_reality reality;
    uint32_t engine;
    size_t moved = 7;
    nodedb_mem *mem = governor(MIB, 2);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(NULL, 0, 0, 1, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_release(NULL, 0, 0, 1, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_reserve_forced(NULL, 0, 0, 1, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_reserve(mem, 2, 0, 1, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "core 2 of 2");
    CHECK_EQ(nodedb_mem_reserve(mem, 0, 0, 0, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(mem, 0, 0, 0, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, 0, SIZE_MAX, &err), NODEDB_ERR_LIMIT);
    CHECK_EQ(nodedb_mem_get_usage(mem, 0, NULL, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_get_usage(NULL, 0, &usage, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_get_usage(mem, 60, &usage, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_set_limit(mem, 60, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_register_engine(mem, NULL, 1, &engine, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_get_reality(NULL, &reality, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_rebalance(NULL, &moved, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(moved, 7); /* untouched */
    nodedb_mem_destroy(mem);
    nodedb_mem_destroy(NULL);
    memset(&config, 0, sizeof config);
    config.warning_percent = 90;
    CHECK(nodedb_mem_create(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
    memset(&config, 0, sizeof config);
    config.max_cores = NODEDB_MEM_MAX_CORES + 1;
    CHECK(nodedb_mem_create(&config, &err) == NULL && err.status == NODEDB_ERR_INVALID);
}

/* ---- pressure ---------------------------------------------------------------------------------------------------- */

typedef struct levels {
    nodedb_mem *mem;
    char text[2000];
    uint64_t now_ns;
} levels;

static void note_level(void *ctx, uint32_t engine, nodedb_mem_level from, nodedb_mem_level to) {
    levels *l = (levels *)ctx;
    size_t used = strlen(l->text);
    snprintf(l->text + used, sizeof l->text - used, "%d:%d>%d ", engine == NODEDB_MEM_GLOBAL ? -1 : (int)engine,
                 (int)from, (int)to);
    (void)nodedb_mem_poll(l->mem); /* from the callback, too: it must neither wait nor recurse */
    CHECK_EQ(nodedb_mem_reserve(l->mem, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_WAL, 1, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(l->mem, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_WAL, 1, NULL), NODEDB_OK);
}

static uint64_t levels_clock(void *ctx) { return ((levels *)ctx)->now_ns; }

/* Brings what the query engine has reserved to `bytes`. */
static void set_reserved(nodedb_mem *mem, size_t bytes) {
    size_t now = usage_of(mem, NODEDB_MEM_QUERY).reserved_bytes;
    if (bytes > now) CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, bytes - now, NULL), NODEDB_OK);
    else CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_QUERY, now - bytes, NULL), NODEDB_OK);
}

TEST(pressure_rises_at_its_marks_falls_with_hysteresis_and_reports_each_change) {
    nodedb_mem_config config;
    static levels l;
    memset(&l, 0, sizeof l);
    memset(&config, 0, sizeof config);
    config.ceiling_bytes = 100000;
    config.max_cores = 1;
    config.on_pressure = note_level;
    config.on_pressure_ctx = &l;
    config.clock.now_ns = levels_clock;
    config.clock.ctx = &l;
    l.mem = nodedb_mem_create(&config, NULL);
    REQUIRE(l.mem != NULL);
    CHECK_EQ(nodedb_mem_set_limit(l.mem, NODEDB_MEM_QUERY, 1000, NULL), NODEDB_OK);
    set_reserved(l.mem, 699);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_QUERY), NODEDB_MEM_NORMAL);
    set_reserved(l.mem, 700);
    l.now_ns = 77;
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_QUERY), NODEDB_MEM_WARNING);
    CHECK_EQ(usage_of(l.mem, NODEDB_MEM_QUERY).level_since_ns, 77);
    set_reserved(l.mem, 651);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_QUERY), NODEDB_MEM_WARNING);
    set_reserved(l.mem, 649);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_QUERY), NODEDB_MEM_NORMAL);
    set_reserved(l.mem, 960);
    CHECK_EQ(nodedb_mem_poll(l.mem), NODEDB_MEM_EMERGENCY);
    set_reserved(l.mem, 900);
    CHECK_EQ(nodedb_mem_poll(l.mem), NODEDB_MEM_EMERGENCY);
    set_reserved(l.mem, 860);
    CHECK_EQ(nodedb_mem_poll(l.mem), NODEDB_MEM_CRITICAL);
    set_reserved(l.mem, 820);
    CHECK_EQ(nodedb_mem_poll(l.mem), NODEDB_MEM_CRITICAL);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_GLOBAL), NODEDB_MEM_NORMAL);
    set_reserved(l.mem, 100);
    CHECK_EQ(nodedb_mem_reserve(l.mem, 0, NODEDB_MEM_VECTOR, 88000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_GLOBAL), NODEDB_MEM_CRITICAL);
    CHECK_EQ(nodedb_mem_poll(l.mem), NODEDB_MEM_CRITICAL);
    CHECK_EQ(strcmp(l.text, "4:0>1 4:1>0 4:0>3 4:3>2 -1:0>2 0:0>2 4:2>0 "), 0);
    nodedb_mem_destroy(l.mem);
}

/* Asks for the ceiling's level while that of an engine is reported. */
static void ask_for_ceiling(void *ctx, uint32_t engine, nodedb_mem_level from, nodedb_mem_level to) {
    levels *l = (levels *)ctx;
    size_t used = strlen(l->text);
    snprintf(l->text + used, sizeof l->text - used, "%d:%d>%d ", engine == NODEDB_MEM_GLOBAL ? -1 : (int)engine,
             (int)from, (int)to);
    CHECK_EQ(nodedb_mem_pressure(l->mem, NODEDB_MEM_GLOBAL), NODEDB_MEM_EMERGENCY);
}

TEST(level_asked_for_within_the_callback_is_that_of_now_and_its_change_is_reported_later) {
    nodedb_mem_config config;
    levels l;
    memset(&l, 0, sizeof l);
    memset(&config, 0, sizeof config);
    config.ceiling_bytes = 1000;
    config.max_cores = 1;
    config.on_pressure = ask_for_ceiling;
    config.on_pressure_ctx = &l;
    l.mem = nodedb_mem_create(&config, NULL);
    REQUIRE(l.mem != NULL);
    set_reserved(l.mem, 960);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_QUERY), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(strcmp(l.text, "4:0>3 "), 0);
    CHECK_EQ(usage_of(l.mem, NODEDB_MEM_GLOBAL).level, NODEDB_MEM_NORMAL);
    CHECK_EQ(nodedb_mem_pressure(l.mem, NODEDB_MEM_GLOBAL), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(strcmp(l.text, "4:0>3 -1:0>3 "), 0);
    CHECK_EQ(usage_of(l.mem, NODEDB_MEM_GLOBAL).level, NODEDB_MEM_EMERGENCY);
    nodedb_mem_destroy(l.mem);
}

/* ---- spill, one controller --------------------------------------------------------------------------------------- */

TEST(spill_begins_at_ninety_goes_on_to_seventy_five_and_restores_below) {
    nodedb_mem_spill spill, other;
    size_t bytes = 0;
    nodedb_mem *mem = governor(MIB, 2);
    REQUIRE(mem != NULL);
    memset(&spill, 0, sizeof spill);
    memset(&other, 0, sizeof other);
    CHECK_EQ(nodedb_mem_set_limit(mem, NODEDB_MEM_QUERY, 1000, NULL), NODEDB_OK);
    set_reserved(mem, 899);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 0, &bytes), NODEDB_MEM_SPILL_NONE);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 500, &bytes), NODEDB_MEM_SPILL_NONE);
    set_reserved(mem, 900);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK_EQ(bytes, 151); /* down to 749, which is under 75 % */
    CHECK_EQ(decide(mem, &other, 1, NODEDB_MEM_QUERY, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK_EQ(bytes, 0); /* that core has nothing to move */
    set_reserved(mem, 760);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 140, &bytes), NODEDB_MEM_SPILL_CONTINUE);
    CHECK_EQ(bytes, 11);
    set_reserved(mem, 750);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 150, &bytes), NODEDB_MEM_SPILL_CONTINUE);
    CHECK_EQ(bytes, 1); /* at the mark is not under it */
    set_reserved(mem, 700);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 200, &bytes), NODEDB_MEM_SPILL_RESTORE);
    CHECK_EQ(bytes, 24); /* its half, of two cores, of the 49 that are free under 750 */
    CHECK_EQ(decide(mem, &spill, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_QUERY, 20, &bytes), NODEDB_MEM_SPILL_RESTORE);
    CHECK_EQ(bytes, 20);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 0, &bytes), NODEDB_MEM_SPILL_NONE);
    set_reserved(mem, 800);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 200, &bytes), NODEDB_MEM_SPILL_NONE);
    CHECK_EQ(spill.begins, 1);
    CHECK_EQ(spill.continues, 2);
    CHECK_EQ(spill.restores, 2);
    /* a full ceiling makes an engine spill that is within its own limit */
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_VECTOR, MIB * 95 / 100, NULL), NODEDB_OK);
    CHECK_EQ(decide(mem, &spill, 0, NODEDB_MEM_QUERY, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK(bytes > 0 && bytes <= 800);
    nodedb_mem_destroy(mem);
}

TEST(ceiling_spills_as_an_engine_does_and_a_core_counts_all_its_engines) {
    nodedb_mem_spill spill[2], whole;
    size_t bytes = 7;
    nodedb_mem *mem = governor(1000, 2);
    REQUIRE(mem != NULL);
    memset(spill, 0, sizeof spill);
    memset(&whole, 0, sizeof whole);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 300, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_VECTOR, 300, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_CRDT, 299, NULL), NODEDB_OK);
    CHECK_EQ(decide(mem, &spill[0], 0, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_NONE);
    CHECK_EQ(bytes, 0);
    CHECK_EQ(nodedb_mem_reserve(mem, 1, NODEDB_MEM_CRDT, 1, NULL), NODEDB_OK);
    CHECK_EQ(decide(mem, &spill[0], 0, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK_EQ(bytes, 101); /* two thirds of 151 */
    CHECK_EQ(decide(mem, &whole, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK_EQ(bytes, 151);
    CHECK_EQ(decide(mem, &whole, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_GLOBAL, 0, NULL), NODEDB_MEM_SPILL_CONTINUE);
    /* core 0 is quick; core 1 has its share to move all the same, though the ceiling is no longer 90 % full */
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_VECTOR, 101, NULL), NODEDB_OK);
    CHECK_EQ(decide(mem, &spill[1], 1, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK_EQ(bytes, 19); /* 300 of 799 parts of 50, rounded up */
    CHECK_EQ(decide(mem, &spill[0], 0, NODEDB_MEM_GLOBAL, 101, &bytes), NODEDB_MEM_SPILL_CONTINUE);
    CHECK_EQ(nodedb_mem_release(mem, 1, NODEDB_MEM_CRDT, 60, NULL), NODEDB_OK); /* 739 */
    CHECK_EQ(decide(mem, &spill[0], 0, NODEDB_MEM_GLOBAL, 101, &bytes), NODEDB_MEM_SPILL_RESTORE);
    CHECK_EQ(bytes, 5); /* half of the 10 that are free under 750 */
    CHECK_EQ(decide(mem, &spill[1], 1, NODEDB_MEM_GLOBAL, 3, &bytes), NODEDB_MEM_SPILL_RESTORE);
    CHECK_EQ(bytes, 3);
    CHECK_EQ(decide(mem, &spill[1], 1, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_NONE);
    /* what any thread holds is nobody's to move: the cores make up for it, as far as they hold something */
    CHECK_EQ(nodedb_mem_reserve_forced(mem, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_WAL, 261, NULL), NODEDB_OK);
    CHECK_EQ(decide(mem, &spill[0], 0, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_BEGIN);
    CHECK_EQ(bytes, 170); /* 499 of 739 parts of 251 */
    CHECK_EQ(nodedb_mem_reserve_forced(mem, NODEDB_MEM_ANY_THREAD, NODEDB_MEM_WAL, 1000, NULL), NODEDB_OK);
    CHECK_EQ(decide(mem, &spill[0], 0, NODEDB_MEM_GLOBAL, 0, &bytes), NODEDB_MEM_SPILL_CONTINUE);
    CHECK_EQ(bytes, 499);
    nodedb_mem_destroy(mem);
}

TEST(question_that_is_not_understood_is_never_answered_as_if_all_were_well) {
    nodedb_mem_spill spill, zero;
    nodedb_mem_spill_action action = NODEDB_MEM_SPILL_CONTINUE;
    nodedb_mem_usage usage;
    uint32_t engine = 77;
    size_t bytes = 7;
    nodedb_error err;
    nodedb_mem *mem = governor(1000, 2);
    REQUIRE(mem != NULL);
    memset(&spill, 0, sizeof spill);
    memset(&zero, 0, sizeof zero);
    CHECK(NODEDB_MEM_SPILL_INVALID == 0); /* an action that nobody filled in */
    CHECK_EQ(nodedb_mem_spill_decide(NULL, &spill, 0, 0, 5, &action, &bytes, &err), NODEDB_ERR_INVALID);
    CHECK(action == NODEDB_MEM_SPILL_INVALID && bytes == 0);
    action = NODEDB_MEM_SPILL_NONE, bytes = 7;
    CHECK_EQ(nodedb_mem_spill_decide(mem, NULL, 0, 0, 5, &action, &bytes, &err), NODEDB_ERR_INVALID);
    CHECK(action == NODEDB_MEM_SPILL_INVALID && bytes == 0);
    action = NODEDB_MEM_SPILL_NONE;
    CHECK_EQ(nodedb_mem_spill_decide(mem, &spill, 0, 0, 5, NULL, &bytes, &err), NODEDB_ERR_INVALID);
    CHECK_EQ(nodedb_mem_spill_decide(mem, &spill, 2, 0, 5, &action, &bytes, &err), NODEDB_ERR_INVALID);
    CHECK_HAS(err.message, "core 2 of 2");
    CHECK_EQ(action, NODEDB_MEM_SPILL_INVALID);
    action = NODEDB_MEM_SPILL_NONE;
    CHECK_EQ(nodedb_mem_spill_decide(mem, &spill, 0, 7, 5, &action, &bytes, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_HAS(err.message, "no engine 7");
    CHECK_EQ(action, NODEDB_MEM_SPILL_INVALID);
    CHECK_EQ(nodedb_mem_spill_decide(mem, &spill, 0, NODEDB_MEM_MAX_ENGINES, 5, &action, &bytes, NULL),
             NODEDB_ERR_NOT_FOUND);
    CHECK(memcmp(&spill, &zero, sizeof spill) == 0);
    CHECK_EQ(nodedb_mem_pressure(NULL, 0), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(nodedb_mem_pressure(NULL, NODEDB_MEM_GLOBAL), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(nodedb_mem_pressure(mem, 7), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(nodedb_mem_pressure(mem, NODEDB_MEM_MAX_ENGINES), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(nodedb_mem_pressure(mem, NODEDB_MEM_GLOBAL - 1), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(nodedb_mem_pressure(mem, 6), NODEDB_MEM_NORMAL);
    CHECK_EQ(nodedb_mem_pressure(mem, NODEDB_MEM_GLOBAL), NODEDB_MEM_NORMAL);
    CHECK_EQ(nodedb_mem_poll(NULL), NODEDB_MEM_EMERGENCY);
    CHECK_EQ(nodedb_mem_poll(mem), NODEDB_MEM_NORMAL);
    /* the ceiling holds no bytes of its own, and its name is taken */
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_GLOBAL, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_HAS(err.message, "NODEDB_MEM_GLOBAL");
    CHECK_EQ(nodedb_mem_reserve_forced(mem, 0, NODEDB_MEM_GLOBAL, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_release(mem, 0, NODEDB_MEM_GLOBAL, 1, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_get_usage(mem, NODEDB_MEM_GLOBAL, &usage, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_register_engine(mem, usage.name, 1, &engine, &err), NODEDB_ERR_EXISTS);
    CHECK(engine == NODEDB_MEM_GLOBAL);
    nodedb_mem_destroy(mem);
}

/* ---- spill, many cores beside a model ---------------------------------------------------------------------------- */

/* The spill controllers as a database uses them: each core asks about the ceiling and moves what it is told, or a part
 * of it. A plain model beside it says what they must answer. */
enum { SPILL_CORES = 8, SPILL_ENGINES = 7 };

typedef struct spill_core {
    nodedb_mem_spill spill;
    size_t held[SPILL_ENGINES], out; /* reserved; moved out */
    nodedb_mem_spill_action told;
    size_t told_bytes;
} spill_core;

typedef struct spill_model {
    nodedb_mem *mem;
    uint32_t cores;
    size_t ceiling, begin, restore; /* bytes */
    size_t held_by_any_thread;
    bool spilling;
    uint64_t random;
    spill_core core[SPILL_CORES];
} spill_model;

static size_t below(spill_model *m, size_t end) { return (size_t)(test_random(&m->random) % end); }

static size_t held_by(const spill_core *c) {
    size_t sum = 0;
    int e;
    for (e = 0; e < SPILL_ENGINES; e++) sum += c->held[e];
    return sum;
}

static size_t held_by_cores(const spill_model *m) {
    size_t sum = 0;
    uint32_t i;
    for (i = 0; i < m->cores; i++) sum += held_by(&m->core[i]);
    return sum;
}

static size_t used_of(const spill_model *m) { return held_by_cores(m) + m->held_by_any_thread; }

/* What must go, from all together. */
static size_t needed(const spill_model *m) {
    return m->restore > 0 ? used_of(m) - m->restore + 1 : used_of(m);
}

static void ask(spill_model *m, uint32_t i) {
    spill_core *c = &m->core[i];
    size_t used = used_of(m), room = used < m->restore ? (m->restore - 1 - used) / m->cores : 0;
    bool was = c->told == NODEDB_MEM_SPILL_BEGIN || c->told == NODEDB_MEM_SPILL_CONTINUE;
    if (used == 0 || used < m->restore) m->spilling = false;
    else if (used >= m->begin) m->spilling = true;
    c->told = decide(m->mem, &c->spill, i, NODEDB_MEM_GLOBAL, c->out, &c->told_bytes);
    if (m->spilling) {
        CHECK_EQ(c->told, was ? NODEDB_MEM_SPILL_CONTINUE : NODEDB_MEM_SPILL_BEGIN);
        CHECK(c->told_bytes <= held_by(c) && (c->told_bytes > 0 || held_by(c) == 0));
    } else {
        if (room > c->out) room = c->out;
        CHECK_EQ(c->told, room > 0 ? NODEDB_MEM_SPILL_RESTORE : NODEDB_MEM_SPILL_NONE);
        CHECK_EQ(c->told_bytes, room);
    }
}

/* Does what the core was told, but moves at most `most` bytes. */
static void carry_out(spill_model *m, uint32_t i, size_t most) {
    spill_core *c = &m->core[i];
    size_t left = c->told_bytes < most ? c->told_bytes : most, part;
    int e = (int)below(m, SPILL_ENGINES);
    if (c->told == NODEDB_MEM_SPILL_RESTORE) {
        CHECK_EQ(nodedb_mem_reserve(m->mem, i, (uint32_t)e, left, NULL), NODEDB_OK);
        c->held[e] += left, c->out -= left;
        return;
    }
    for (; left > 0; left -= part, e = (e + 1) % SPILL_ENGINES) {
        part = left < c->held[e] ? left : c->held[e];
        CHECK_EQ(nodedb_mem_release(m->mem, i, (uint32_t)e, part, NULL), NODEDB_OK);
        c->held[e] -= part, c->out += part;
    }
}

/* All cores ask before one of them has moved anything. */
static void all_at_once(spill_model *m) {
    size_t sum = 0, used = used_of(m), held = held_by_cores(m), need;
    bool spilling, full = used > 0 && used >= m->begin;
    uint32_t i, k;
    for (i = 0; i < m->cores; i++) {
        ask(m, i);
        sum += m->core[i].told_bytes;
    }
    spilling = m->spilling;
    CHECK(spilling || !full);
    if (spilling) {
        need = needed(m);
        CHECK(sum >= (need < held ? need : held));
        CHECK(sum <= need + m->cores); /* and no more than rounding adds */
        for (i = 0; i < m->cores; i++)
            for (k = 0; k < m->cores; k++)
                if (held_by(&m->core[i]) <= held_by(&m->core[k]))
                    CHECK(m->core[i].told_bytes <= m->core[k].told_bytes);
    } else CHECK(sum == 0 || (used < m->restore && sum <= m->restore - 1 - used));
    for (i = 0; i < m->cores; i++) carry_out(m, i, SIZE_MAX);
    if (spilling) CHECK(used_of(m) == 0 || used_of(m) < m->restore || held_by_cores(m) == 0);
    if (sum > 0 && !spilling) CHECK(used_of(m) < m->restore);
}

/* Each core asks and moves in turn, in any order. */
static void one_by_one(spill_model *m, bool in_batches) {
    uint32_t i, first = (uint32_t)below(m, m->cores);
    for (i = 0; i < m->cores; i++) {
        uint32_t core = (first + i) % m->cores;
        ask(m, core);
        carry_out(m, core, in_batches ? 1 + below(m, m->ceiling) / 16 : SIZE_MAX);
    }
}

/* Without new reservations all comes to rest, and what has ended to spill does not begin again. */
static void restore_all(spill_model *m) {
    bool moved = true, ended = false;
    uint32_t i;
    int turn;
    for (turn = 0; moved && turn < 600; turn++) {
        if (below(m, 4) == 0) all_at_once(m);
        else one_by_one(m, false);
        CHECK(!(ended && m->spilling));
        ended = !m->spilling;
        for (i = 0, moved = false; i < m->cores; i++) moved = moved || m->core[i].told_bytes > 0;
    }
    CHECK(!moved);
    CHECK(!m->spilling || held_by_cores(m) == 0);
}

/* A reservation that is granted, refused or, as in a recovery, forced; or a release. */
static void change_something(spill_model *m) {
    uint32_t i = (uint32_t)below(m, m->cores), e = (uint32_t)below(m, SPILL_ENGINES);
    size_t bytes = 1 + below(m, below(m, 3) == 0 ? m->ceiling : m->ceiling / 8 + 1);
    size_t *held = &m->core[i].held[e];
    nodedb_status status;
    if (below(m, 3) == 0) {
        if (bytes > *held) bytes = *held;
        CHECK_EQ(nodedb_mem_release(m->mem, i, e, bytes, NULL), NODEDB_OK);
        *held -= bytes;
    } else if (below(m, 10) == 0 && used_of(m) / 3 < m->ceiling) {
        CHECK_EQ(nodedb_mem_reserve_forced(m->mem, i, e, bytes, NULL), NODEDB_OK);
        *held += bytes;
    } else {
        bool fits = used_of(m) <= m->ceiling && bytes <= m->ceiling - used_of(m);
        status = nodedb_mem_reserve(m->mem, i, e, bytes, NULL);
        CHECK_EQ(status, fits ? NODEDB_OK : NODEDB_ERR_LIMIT);
        if (status == NODEDB_OK) *held += bytes;
    }
}

static void spill_campaign(uint64_t seed) {
    static spill_model model;
    spill_model *m = &model;
    nodedb_mem_config config;
    uint32_t begin, restore, i;
    int step, e;
    memset(m, 0, sizeof *m);
    memset(&config, 0, sizeof config);
    m->random = seed;
    m->cores = 1 + (uint32_t)below(m, SPILL_CORES);
    m->ceiling = 1 + below(m, (size_t)1 << below(m, sizeof(size_t) > 4 ? 40 : 28));
    begin = 90, restore = 75;
    if (below(m, 3) == 0) {
        begin = 2 + (uint32_t)below(m, 99), restore = 1 + (uint32_t)below(m, begin - 1);
        config.spill_begin_percent = begin, config.spill_restore_percent = restore;
    }
    m->begin = m->ceiling / 100 * begin + m->ceiling % 100 * begin / 100;
    m->restore = m->ceiling / 100 * restore + m->ceiling % 100 * restore / 100;
    config.ceiling_bytes = m->ceiling, config.max_cores = m->cores;
    m->mem = nodedb_mem_create(&config, NULL);
    REQUIRE(m->mem != NULL);
    if (below(m, 4) == 0) {
        m->held_by_any_thread = below(m, m->ceiling);
        CHECK_EQ(nodedb_mem_reserve(m->mem, NODEDB_MEM_ANY_THREAD, 1, m->held_by_any_thread, NULL), NODEDB_OK);
    }
    for (step = 0; step < 100; step++) {
        switch (below(m, 6)) {
        case 0: all_at_once(m); break;
        case 1: one_by_one(m, true); break;
        case 2: if (below(m, 4) == 0) restore_all(m); break;
        default: change_something(m); break;
        }
    }
    restore_all(m);
    CHECK_EQ(usage_of(m->mem, NODEDB_MEM_GLOBAL).reserved_bytes, used_of(m));
    for (i = 0; i < m->cores; i++)
        for (e = 0; e < SPILL_ENGINES; e++)
            CHECK_EQ(nodedb_mem_release(m->mem, i, (uint32_t)e, m->core[i].held[e], NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_release(m->mem, NODEDB_MEM_ANY_THREAD, 1, m->held_by_any_thread, NULL), NODEDB_OK);
    nodedb_mem_destroy(m->mem);
}

TEST(spill_controllers_of_many_cores_get_under_the_mark_and_stay_there_whatever_is_reserved) {
    int round, rounds = test_long ? 20000 : SLOW ? 60 : 400;
    for (round = 0; round < rounds && test_failures_here == 0; round++) {
        spill_campaign(test_seed * 1000003 + (uint64_t)round);
        if (test_failures_here != 0) fprintf(stderr, "in round %d\n", round);
    }
}

/* A recovery has forced three times the ceiling. Four threads move it out, then back what fits, in batches. */
typedef struct recovered {
    nodedb_mem *mem;
    uint32_t core;
    size_t held, out;
    nodedb_mem_spill spill;
} recovered;

enum { RECOVERED_CORES = 4, RECOVERED_CEILING = 1000000, RECOVERED_BATCH = 1000 };

static void *recovered_thread(void *argument) {
    recovered *r = (recovered *)argument;
    int idle = 0;
    while (idle < 3) { /* asks a little longer, as others still move */
        size_t bytes = 0;
        nodedb_mem_spill_action action = decide(r->mem, &r->spill, r->core, NODEDB_MEM_GLOBAL, r->out, &bytes);
        if (bytes > RECOVERED_BATCH) bytes = RECOVERED_BATCH;
        idle = action == NODEDB_MEM_SPILL_NONE ? idle + 1 : 0;
        if (action == NODEDB_MEM_SPILL_RESTORE) {
            CHECK_EQ(nodedb_mem_reserve(r->mem, r->core, NODEDB_MEM_QUERY, bytes, NULL), NODEDB_OK);
            r->held += bytes, r->out -= bytes;
        } else {
            CHECK_EQ(nodedb_mem_release(r->mem, r->core, NODEDB_MEM_QUERY, bytes, NULL), NODEDB_OK);
            r->held -= bytes, r->out += bytes;
        }
        if (bytes == 0) sched_yield();
    }
    return NULL;
}

TEST(recovery_far_over_the_ceiling_is_spilled_by_all_threads_once_and_for_all) {
    static const size_t recovered_bytes[RECOVERED_CORES] = {0, 100000, 900000, 2000000};
    pthread_t threads[RECOVERED_CORES];
    recovered work[RECOVERED_CORES];
    size_t held = 0, used;
    int i;
    nodedb_mem *mem = governor(RECOVERED_CEILING, RECOVERED_CORES);
    REQUIRE(mem != NULL);
    for (i = 0; i < RECOVERED_CORES; i++) {
        memset(&work[i], 0, sizeof work[i]);
        work[i].mem = mem, work[i].core = (uint32_t)i, work[i].held = recovered_bytes[i];
        CHECK_EQ(nodedb_mem_reserve_forced(mem, (uint32_t)i, NODEDB_MEM_QUERY, recovered_bytes[i], NULL), NODEDB_OK);
    }
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_WAL, 1, NULL), NODEDB_ERR_LIMIT);
    for (i = 0; i < RECOVERED_CORES; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, recovered_thread, &work[i]), 0);
    for (i = 0; i < RECOVERED_CORES; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        CHECK(work[i].spill.begins <= 1);
        held += work[i].held;
        CHECK_EQ(work[i].held + work[i].out, recovered_bytes[i]);
    }
    used = usage_of(mem, NODEDB_MEM_GLOBAL).reserved_bytes;
    CHECK_EQ(used, held);
    /* each thread may have one batch under way beside the others' */
    CHECK(used < RECOVERED_CEILING * 3 / 4 + RECOVERED_CORES * RECOVERED_BATCH);
    CHECK(used + RECOVERED_CORES * RECOVERED_BATCH >= RECOVERED_CEILING * 3 / 4);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_WAL, 1, NULL), NODEDB_OK);
    nodedb_mem_destroy(mem);
}

/* ---- what the system says, through files of the test's ----------------------------------------------------------- */

typedef struct fake_files {
    const char *path[4], *text[4];
    int opened;
} fake_files;

static int fake_open(void *ctx, const char *path, int flags, int mode) {
    fake_files *f = (fake_files *)ctx;
    int i;
    (void)flags, (void)mode;
    for (i = 0; i < 4; i++)
        if (f->path[i] != NULL && strcmp(f->path[i], path) == 0) return 1000 + i;
    return -ENOENT;
}
static int fake_close(void *ctx, int fd) {
    (void)ctx, (void)fd;
    return 0;
}
static int64_t fake_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    const char *text = ((fake_files *)ctx)->text[fd - 1000];
    size_t length = strlen(text);
    if (offset >= length) return 0;
    if (bytes > length - offset) bytes = length - (size_t)offset;
    if (bytes > 7) bytes = 7; /* short reads */
    memcpy(buffer, text + offset, bytes);
    return (int64_t)bytes;
}

static nodedb_mem *governor_with_files(fake_files *files, uint32_t percent) {
    nodedb_mem_config config;
    memset(&config, 0, sizeof config);
    config.max_cores = 1;
    config.system_percent = percent;
    config.io.open = fake_open, config.io.close = fake_close, config.io.pread = fake_pread, config.io.ctx = files;
    return nodedb_mem_create(&config, NULL);
}

static size_t ceiling_with_files(fake_files *files) {
    nodedb_mem *mem = governor_with_files(files, 50);
    size_t ceiling = mem != NULL ? usage_of(mem, NODEDB_MEM_GLOBAL).limit_bytes : 0;
    nodedb_mem_destroy(mem);
    return ceiling;
}

TEST(ceiling_of_zero_asks_the_cgroup_and_else_takes_a_part_of_the_ram) {
    fake_files two = {{"/proc/self/cgroup", "/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", NULL},
                      {"0::/a/b\n", "max\n", "100000000\n", NULL}, 0};
    fake_files one = {{"/proc/self/cgroup", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                       "/sys/fs/cgroup/memory/memory.limit_in_bytes", NULL},
                      {"5:cpu,cpuacct:/y\n4:memory:/x\n0::/\n", "50000000\n", "9223372036854771712\n", NULL}, 0};
    fake_files container = {{"/proc/self/cgroup", "/sys/fs/cgroup/memory.max", NULL, NULL},
                            {"0::/not/visible/here\n", "80000000\n", NULL, NULL}, 0};
    fake_files none = {{NULL, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL}, 0};
    fake_files broken = {{"/proc/self/cgroup", NULL, NULL, NULL}, {"no colon\n:\n::\n0:", NULL, NULL, NULL}, 0};
    size_t ram = (size_t)sysconf(_SC_PHYS_PAGES) / 100 * (size_t)sysconf(_SC_PAGESIZE);
    CHECK_EQ(ceiling_with_files(&two), 50000000);
    CHECK_EQ(ceiling_with_files(&one), 25000000);
    CHECK_EQ(ceiling_with_files(&container), 40000000);
    CHECK(ceiling_with_files(&none) > 0);
    CHECK_EQ(ceiling_with_files(&broken), ceiling_with_files(&none));
    if (sizeof(size_t) > 4) CHECK(ceiling_with_files(&none) / 51 < ram && ceiling_with_files(&none) / 49 > ram);
}

/* In a thread of its own, as the policy is the thread's. */
static void *bind_to_node(void *arg) {
    fake_files *files = (fake_files *)arg;
    nodedb_mem_numa numa;
    nodedb_error err;
    nodedb_io io;
    nodedb_status status;
    memset(&io, 0, sizeof io);
    io.open = fake_open, io.close = fake_close, io.pread = fake_pread, io.ctx = files;
    err.message[0] = 0;
    status = nodedb_mem_numa_bind_thread(&io, NULL, &numa, &err);
    CHECK_EQ(numa.nodes, 5);
    if (status == NODEDB_ERR_UNSUPPORTED) { /* a kernel without NUMA, or a sandbox */
        CHECK_HAS(err.message, "NUMA");
        CHECK(!numa.bound);
        return NULL;
    }
    CHECK(status == NODEDB_OK && numa.bound);
#if defined(SYS_get_mempolicy)
    {
        unsigned long mask[16] = {0};
        int mode = -1;
        if (syscall(SYS_get_mempolicy, &mode, mask, 1024ul, NULL, 0ul) == 0)
            CHECK(mode == 1 && (mask[numa.node / (8 * sizeof mask[0])] >> numa.node % (8 * sizeof mask[0]) & 1) == 1);
    }
#endif
    return NULL;
}

static void keep_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    (void)level;
    snprintf((char *)ctx, 200, "%s", sentence);
}

TEST(a_thread_is_bound_to_its_node_and_on_one_node_that_is_said) {
    fake_files many = {{"/sys/devices/system/node/online", NULL, NULL, NULL}, {"0-3,7\n", NULL, NULL, NULL}, 0};
    fake_files one = {{"/sys/devices/system/node/online", NULL, NULL, NULL}, {"0\n", NULL, NULL, NULL}, 0};
    fake_files none = {{NULL, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL}, 0};
    fake_files *single[2];
    char said[200] = "";
    nodedb_logger logger = {keep_sentence, said};
    nodedb_mem_numa numa;
    nodedb_io io;
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, bind_to_node, &many), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    memset(&io, 0, sizeof io);
    io.open = fake_open, io.close = fake_close, io.pread = fake_pread;
    single[0] = &one, single[1] = &none;
    for (int i = 0; i < 2; i++) {
        io.ctx = single[i], said[0] = 0;
        CHECK_EQ(nodedb_mem_numa_bind_thread(&io, &logger, &numa, NULL), NODEDB_OK);
        CHECK(numa.nodes == 1 && !numa.bound);
        CHECK_HAS(said, "one node");
    }
    CHECK_EQ(nodedb_mem_numa_bind_thread(NULL, NULL, NULL, NULL), NODEDB_ERR_INVALID);
}

TEST(list_of_nodes_that_makes_no_sense_is_an_error_and_not_one_node) {
    const char *wrong[5] = {"3-1,\n", "", "0-", "0 nodes\n", "0-99999\n"};
    fake_files files = {{"/sys/devices/system/node/online", NULL, NULL, NULL}, {NULL, NULL, NULL, NULL}, 0};
    char said[200] = "";
    nodedb_logger logger = {keep_sentence, said};
    nodedb_mem_numa numa;
    nodedb_error err;
    nodedb_io io;
    memset(&io, 0, sizeof io);
    io.open = fake_open, io.close = fake_close, io.pread = fake_pread, io.ctx = &files;
    for (int i = 0; i < 5; i++) {
        files.text[0] = wrong[i];
        CHECK_EQ(nodedb_mem_numa_bind_thread(&io, &logger, &numa, &err), NODEDB_ERR_CORRUPT);
        CHECK(!numa.bound && said[0] == 0);
    }
}

TEST(reality_is_parsed_robustly_and_nonsense_is_an_error) {
    fake_files files = {{"/proc/self/statm", NULL, NULL, NULL}, {"1000 100 10 1 0 1 0\n", NULL, NULL, NULL}, 0};
    const char *bad[5] = {"", "1000", "1000 \n", "x 100 10", "1000 99999999999999999999999 1"};
    nodedb_mem_reality reality;
    nodedb_error err;
    int i;
    nodedb_mem *mem = governor_with_files(&files, 50);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_QUERY, 1000, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_get_reality(mem, &reality, &err), NODEDB_OK);
    CHECK_EQ(reality.rss_bytes, 100 * sysconf(_SC_PAGESIZE));
    CHECK_EQ(reality.accounted_bytes, 1000);
    CHECK_EQ(reality.drift_bytes, 100 * sysconf(_SC_PAGESIZE) - 1000);
    for (i = 0; i < 5; i++) {
        files.text[0] = bad[i];
        CHECK_EQ(nodedb_mem_get_reality(mem, &reality, &err), NODEDB_ERR_CORRUPT);
    }
    files.path[0] = NULL;
    CHECK_EQ(nodedb_mem_get_reality(mem, &reality, &err), NODEDB_ERR_IO);
    nodedb_mem_destroy(mem);
}

TEST(reality_of_this_process_is_plausible) {
    nodedb_mem_reality reality;
    nodedb_error err;
    nodedb_mem *mem = nodedb_mem_create(NULL, &err);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_get_reality(mem, &reality, &err), NODEDB_OK);
    CHECK(reality.rss_bytes > 100 * KIB);
    CHECK_EQ(reality.jemalloc, nodedb_mem_arena_available(NULL) == NODEDB_OK);
    if (reality.jemalloc) CHECK(reality.allocator_resident_bytes >= reality.allocator_allocated_bytes);
    CHECK(usage_of(mem, NODEDB_MEM_GLOBAL).limit_bytes > 0);
    nodedb_mem_destroy(mem);
}

/* ---- life cycle -------------------------------------------------------------------------------------------------- */

static void note_sentence(void *ctx, nodedb_log_level level, const char *sentence) {
    (void)level;
    snprintf((char *)ctx, 600, "%s", sentence);
}

TEST(what_is_still_reserved_at_the_end_is_logged) {
    nodedb_mem_config config;
    char sentence[600] = "";
    nodedb_mem *mem;
    memset(&config, 0, sizeof config);
    config.logger.write = note_sentence, config.logger.ctx = sentence;
    mem = nodedb_mem_create(&config, NULL);
    REQUIRE(mem != NULL);
    CHECK_EQ(nodedb_mem_reserve(mem, 0, NODEDB_MEM_CRDT, 12345, NULL), NODEDB_OK);
    nodedb_mem_destroy(mem);
    CHECK_HAS(sentence, "crdt ends with 12345 bytes");
}

TEST(every_refusal_of_the_allocator_is_survived_and_nothing_leaks) {
    long refuse;
    for (refuse = 0; refuse < 7; refuse++) {
        refusing c;
        nodedb_error err;
        nodedb_mem_config config;
        nodedb_mem_overflow_config overflow;
        nodedb_mem *mem;
        nodedb_mem_overflow *region;
        memset(&config, 0, sizeof config);
        memset(&overflow, 0, sizeof overflow);
        config.allocator = refusing_allocator(&c, refuse);
        overflow.allocator = config.allocator;
        overflow.dir = test_dir();
        mem = nodedb_mem_create(&config, &err);
        if (refuse < 2) CHECK(mem == NULL && err.status == NODEDB_ERR_NO_MEMORY);
        nodedb_mem_destroy(mem);
        CHECK_EQ(c.live, 0);
        region = nodedb_mem_overflow_open(&overflow, &err);
        if (refuse >= 2 && refuse < 6) CHECK(region == NULL && err.status == NODEDB_ERR_NO_MEMORY);
        else CHECK(region != NULL);
        nodedb_mem_overflow_close(region);
        CHECK_EQ(c.live, 0);
    }
}

/* ---- arenas ------------------------------------------------------------------------------------------------------ */

TEST(arena_calls_either_all_work_or_all_say_why_not) {
    nodedb_error err;
    nodedb_mem_arena_stats stats;
    nodedb_allocator allocator;
    uint32_t arena = 0;
    if (nodedb_mem_arena_available(&err) == NODEDB_OK) return;
    CHECK_EQ(err.status, NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "jemalloc");
    CHECK_EQ(nodedb_mem_arena_create(&arena, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_EQ(nodedb_mem_arena_bind_thread(0, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_EQ(nodedb_mem_arena_get_stats(0, &stats, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_EQ(nodedb_mem_arena_reset(0, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_EQ(nodedb_mem_arena_destroy(0, &err), NODEDB_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "jemalloc");
    allocator = nodedb_mem_arena_allocator(0);
    CHECK(allocator.alloc(allocator.ctx, 100, 16) == NULL);
}

static void *arena_thread(void *argument) {
    void *volatile blocks[100];
    nodedb_mem_arena_stats before = {0, 0}, after = {0, 0}, again = {0, 0};
    nodedb_error err;
    uint32_t arena = 0;
    int i;
    (void)argument;
    CHECK_EQ(nodedb_mem_arena_create(&arena, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_bind_thread(arena, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_get_stats(arena, &before, &err), NODEDB_OK);
    for (i = 0; i < 100; i++) blocks[i] = malloc(100000);
    CHECK_EQ(nodedb_mem_arena_get_stats(arena, &after, &err), NODEDB_OK);
    CHECK(after.allocated_bytes >= before.allocated_bytes + 100 * 100000);
    for (i = 0; i < 50; i++) free(blocks[i]);
    CHECK_EQ(nodedb_mem_arena_destroy(arena, &err), NODEDB_ERR_STATE); /* this thread is bound to it */
    CHECK_EQ(nodedb_mem_arena_bind_thread(0, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_reset(arena, &err), NODEDB_OK); /* frees the other fifty */
    CHECK_EQ(nodedb_mem_arena_get_stats(arena, &again, &err), NODEDB_OK);
    CHECK_EQ(again.allocated_bytes, 0);
    CHECK_EQ(nodedb_mem_arena_destroy(arena, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_bind_thread(1000000, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_arena_reset(1000000, &err), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_arena_reset(0, &err), NODEDB_ERR_NOT_FOUND); /* jemalloc's own */
    CHECK_EQ(nodedb_mem_arena_create(NULL, &err), NODEDB_ERR_INVALID);
    return NULL;
}

TEST(thread_allocates_from_its_own_arena) {
    pthread_t thread;
    if (nodedb_mem_arena_available(NULL) != NODEDB_OK) return;
    CHECK_EQ(pthread_create(&thread, NULL, arena_thread, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

TEST(arena_of_a_set_of_data_has_its_memory_for_itself_and_gives_it_back_at_once) {
    nodedb_mem_arena_stats stats = {0, 0}, other = {0, 0};
    nodedb_allocator allocator;
    nodedb_error err;
    char *blocks[100];
    uint32_t orders = 0, users = 0;
    if (nodedb_mem_arena_available(NULL) != NODEDB_OK) return;
    CHECK_EQ(nodedb_mem_arena_create(&orders, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_create(&users, &err), NODEDB_OK);
    CHECK(orders != users);
    allocator = nodedb_mem_arena_allocator(orders);
    for (int i = 0; i < 100; i++) {
        blocks[i] = (char *)allocator.alloc(allocator.ctx, 10000, (size_t)64 << i % 4);
        REQUIRE(blocks[i] != NULL);
        CHECK_EQ((uintptr_t)blocks[i] % ((size_t)64 << i % 4), 0);
        memset(blocks[i], i, 10000);
    }
    CHECK_EQ(nodedb_mem_arena_get_stats(orders, &stats, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_get_stats(users, &other, &err), NODEDB_OK);
    CHECK(stats.allocated_bytes >= 1000000 && stats.resident_bytes >= 1000000 && other.allocated_bytes == 0);
    for (int i = 0; i < 50; i++) allocator.release(allocator.ctx, blocks[i], 10000);
    CHECK_EQ(nodedb_mem_arena_get_stats(orders, &stats, &err), NODEDB_OK);
    CHECK(stats.allocated_bytes >= 500000 && stats.allocated_bytes < 1000000);
    CHECK_EQ(nodedb_mem_arena_reset(orders, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_get_stats(orders, &stats, &err), NODEDB_OK);
    CHECK_EQ(stats.allocated_bytes, 0);
    CHECK(allocator.alloc(allocator.ctx, 100, 16) != NULL); /* and it goes on */
    CHECK(allocator.alloc(allocator.ctx, 0, 16) == NULL && allocator.alloc(allocator.ctx, 1, 0) == NULL);
    CHECK_EQ(nodedb_mem_arena_destroy(users, &err), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_destroy(orders, &err), NODEDB_OK);
}

TEST(arena_that_is_gone_or_was_never_there_is_not_found) {
    nodedb_mem_arena_stats stats;
    nodedb_allocator gone;
    uint32_t arena = 0, behind_all = 4096; /* MALLCTL_ARENAS_ALL: the sum of all arenas, to jemalloc */
    void *volatile huge;
    if (nodedb_mem_arena_available(NULL) != NODEDB_OK) return;
    huge = malloc(64 * MIB); /* jemalloc makes an arena for such ones */
    free(huge);
    CHECK_EQ(nodedb_mem_arena_create(&arena, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_destroy(arena, NULL), NODEDB_OK);
    CHECK_EQ(nodedb_mem_arena_bind_thread(arena, NULL), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_arena_get_stats(arena, &stats, NULL), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_arena_reset(arena, NULL), NODEDB_ERR_NOT_FOUND);
    CHECK_EQ(nodedb_mem_arena_destroy(arena, NULL), NODEDB_ERR_NOT_FOUND);
    gone = nodedb_mem_arena_allocator(arena);
    CHECK(gone.alloc(gone.ctx, 100, 16) == NULL);
    for (uint32_t i = behind_all - 1; i < behind_all + 3; i++) {
        CHECK_EQ(nodedb_mem_arena_bind_thread(i, NULL), NODEDB_ERR_NOT_FOUND);
        CHECK_EQ(nodedb_mem_arena_get_stats(i, &stats, NULL), NODEDB_ERR_NOT_FOUND);
        CHECK_EQ(nodedb_mem_arena_reset(i, NULL), NODEDB_ERR_NOT_FOUND);
    }
    for (uint32_t i = 0; i < arena; i++) { /* none of these is the caller's, that for huge allocations neither */
        CHECK_EQ(nodedb_mem_arena_reset(i, NULL), NODEDB_ERR_NOT_FOUND);
        CHECK_EQ(nodedb_mem_arena_destroy(i, NULL), NODEDB_ERR_NOT_FOUND);
    }
}

TEST_MAIN("mem")
