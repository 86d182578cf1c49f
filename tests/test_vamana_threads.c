/* Tests of nodedb_vamana.h: many threads read while one changes the index. Every vector tells which id it belongs to:
 * its components follow from the id and from how often the id was changed. So every result of a reader can be checked
 * against what the id was during the query.
 *
 * Contents:
 *   released memory            an allocator that overwrites what is released
 *   vectors that tell their id
 *   the world                  an index, and the history of each id
 *   readers                    searches, scans and lookups, with their checks
 *   the writer                 random changes of all kinds
 *   one reader that stays      what waits for a reader, and what does not
 *   the model checker          every interleaving of enter, leave and the waits */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "test.h"

#define DIM 32u
#define READERS 3u
#define MOST_RESULTS 1500u

/* ---- released memory --------------------------------------------------------------------------------------------- */

static int64_t taken_bytes; /* atomic: searchers come and go in all threads */

static void *spoiling_alloc(void *ctx, size_t bytes, size_t align) {
    void *memory = NULL;
    (void)ctx;
    if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, bytes) != 0) return NULL;
    (void)__atomic_fetch_add(&taken_bytes, (int64_t)bytes, __ATOMIC_RELAXED);
    return memory;
}

/* A later read returns garbage, even if the system keeps the page. */
static void spoiling_release(void *ctx, void *memory, size_t bytes) {
    (void)ctx;
    memset(memory, 0xEE, bytes);
    (void)__atomic_fetch_sub(&taken_bytes, (int64_t)bytes, __ATOMIC_RELAXED);
    free(memory);
}

static nodedb_vamana_config config_of(nodedb_vamana_type type, nodedb_vamana_metric metric, uint64_t capacity) {
    nodedb_vamana_config c;
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.type = type, c.metric = metric, c.capacity = capacity;
    c.degree = 16, c.beam_build = 32, c.seed = test_seed;
    c.allocator.alloc = spoiling_alloc, c.allocator.release = spoiling_release;
    return c;
}

/* ---- vectors that tell their id ---------------------------------------------------------------------------------- */

/* The vector of an id after its change number `change`: 4 random bits a component, so that all sums are exact. */
static void components_of(uint64_t id, uint32_t change, int *to) {
    uint64_t bits = 0;
    uint32_t i;
    for (i = 0; i < DIM; i++) {
        if (i % 16 == 0) bits = nodedb_mix64(nodedb_mix64(id * 64 + i / 16) ^ nodedb_mix64(change));
        to[i] = (int)(bits >> i % 16 * 4 & 15) - 8;
    }
}

static void vector_of(nodedb_vamana_type type, uint64_t id, uint32_t change, void *to) {
    int c[DIM];
    uint32_t i;
    components_of(id, change, c);
    for (i = 0; i < DIM; i++) {
        if (type == NODEDB_VAMANA_F32) ((float *)to)[i] = (float)c[i];
        else if (type == NODEDB_VAMANA_U8) ((uint8_t *)to)[i] = (uint8_t)(c[i] + 8);
        else ((int8_t *)to)[i] = (int8_t)c[i];
    }
}

static float distance_of(nodedb_vamana_type type, nodedb_vamana_metric metric, const int *a, const int *b) {
    int shift = type == NODEDB_VAMANA_U8 ? 8 : 0, l2 = 0, dot = 0, aa = 0, bb = 0;
    uint32_t i;
    for (i = 0; i < DIM; i++) {
        int x = a[i] + shift, y = b[i] + shift;
        l2 += (x - y) * (x - y), dot += x * y, aa += x * x, bb += y * y;
    }
    if (metric == NODEDB_VAMANA_L2) return (float)l2;
    if (metric == NODEDB_VAMANA_IP) return (float)-dot;
    return aa == 0 || bb == 0 ? 1 : (float)(1 - dot / sqrt((double)aa * bb));
}

/* ---- the world: an index, and the history of each id ------------------------------------------------------------- */

/* Each change of an id has a number, from 1. `begun` has it before the change begins; `ended` after it has ended, times
 * two, plus one if the id is then there. So a reader that loads `ended` first and `begun` last has all changes whose
 * vectors it may have seen, and if the id did not change between, the one that it must have seen. */
typedef struct world {
    nodedb_vamana *index;
    nodedb_vamana_type type;
    nodedb_vamana_metric metric;
    uint32_t ids, present; /* `present`: the writer's */
    uint32_t *begun, *ended;
    uint32_t compactions; /* begun and ended, so odd during one: cursors of `next` then start over */
    uint32_t stop;
    uint64_t questions, sought, met; /* sums of all readers */
} world;

static uint32_t begin_change(world *w, uint32_t id) {
    uint32_t change = w->begun[id] + 1;
    __atomic_store_n(&w->begun[id], change, __ATOMIC_RELEASE);
    return change;
}

static void end_change(world *w, uint32_t id, bool is_there) {
    w->present -= w->ended[id] & 1;
    w->present += is_there ? 1 : 0;
    __atomic_store_n(&w->ended[id], w->begun[id] << 1 | (is_there ? 1u : 0u), __ATOMIC_RELEASE);
}

static bool open_world(world *w, const nodedb_vamana_config *config, uint32_t ids) {
    nodedb_error err;
    memset(w, 0, sizeof *w);
    w->type = config->type, w->metric = config->metric, w->ids = ids;
    w->begun = (uint32_t *)calloc(ids, sizeof *w->begun), w->ended = (uint32_t *)calloc(ids, sizeof *w->ended);
    w->index = nodedb_vamana_create(config, &err);
    return w->index != NULL && w->begun != NULL && w->ended != NULL;
}

static void close_world(world *w) {
    nodedb_vamana_destroy(w->index);
    free(w->begun), free(w->ended);
    CHECK_EQ(__atomic_load_n(&taken_bytes, __ATOMIC_RELAXED), 0);
}

/* ---- readers ----------------------------------------------------------------------------------------------------- */

typedef struct reader {
    world *w;
    nodedb_vamana_searcher *searcher;
    uint64_t random;
    uint32_t *before; /* `ended` of all ids, as it was before the question */
    uint8_t *seen;
    nodedb_vamana_result *results;
    uint64_t questions, sought, met;
    pthread_t thread;
} reader;

static void look_before(reader *r) {
    uint32_t i;
    for (i = 0; i < r->w->ids; i++) r->before[i] = __atomic_load_n(&r->w->ended[i], __ATOMIC_ACQUIRE);
}

static uint32_t begun_now(const reader *r, uint32_t id) { return __atomic_load_n(&r->w->begun[id], __ATOMIC_ACQUIRE); }

/* True if the id has not changed since look_before. */
static bool has_rested(const reader *r, uint32_t id) { return begun_now(r, id) == r->before[id] >> 1; }
static bool was_there(const reader *r, uint32_t id) { return (r->before[id] & 1) != 0 && has_rested(r, id); }

/* The changes of an id whose vectors may have been seen: from *first to what is returned. */
static uint32_t changes_seen(const reader *r, uint32_t id, uint32_t *first) {
    *first = (r->before[id] >> 1) + ((r->before[id] & 1) != 0 ? 0 : 1);
    return begun_now(r, id);
}

static bool odd_ids(void *ctx, uint64_t id) {
    (void)ctx;
    return id % 2 != 0;
}

/* Each result must be a vector that its id has had meanwhile, no id may come twice unless it was replaced, and there
 * must be as many as were there all the time. */
static void check_results(reader *r, const int *query, const nodedb_vamana_result *results, uint32_t found, uint32_t k,
                          bool only_odd, bool counts) {
    const world *w = r->w;
    uint32_t i, rested = 0;
    memset(r->seen, 0, w->ids);
    for (i = 0; i < found; i++) {
        uint32_t id = (uint32_t)results[i].id, first, last;
        bool good = false;
        if (results[i].id >= w->ids) {
            CHECK(results[i].id < w->ids);
            continue;
        }
        CHECK(!only_odd || id % 2 != 0);
        CHECK(i == 0 || results[i - 1].distance <= results[i].distance);
        for (last = changes_seen(r, id, &first); first <= last && !good; last--) {
            int c[DIM];
            components_of(id, last, c);
            good = fabsf(distance_of(w->type, w->metric, query, c) - results[i].distance) < 1e-5f;
        }
        CHECK(good); /* neither gone before the question, nor another one's vector */
        CHECK(r->seen[id] == 0 || !has_rested(r, id));
        r->seen[id] = 1;
    }
    for (i = 0; i < w->ids && counts; i++) rested += was_there(r, i) && !(only_odd && i % 2 == 0) ? 1 : 0;
    CHECK(!counts || found >= (rested < k ? rested : k));
}

/* Was it found, if it was there all the time? */
static bool has_found(const nodedb_vamana_result *results, uint32_t found, uint32_t id) {
    uint32_t i;
    for (i = 0; i < found; i++)
        if (results[i].id == id) return true;
    return false;
}

enum { ASK_CODES, ASK_EXACT, ASK_SCAN, ASK_LONG_SCAN, ASK_RANGE, ASK_MANY, ASK_FILTER, ASK_BITMAP, ASK_KINDS };

static void ask(reader *r, unsigned kind) {
    static const uint8_t odd_bits[2048] = {0xAA, 0xAA}; /* so few ids pass that the search looks at all */
    world *w = r->w;
    nodedb_vamana_query query;
    nodedb_status status = NODEDB_OK;
    nodedb_error err;
    uint32_t found[2] = {0, 0}, own = 0, i;
    float vectors[2 * DIM];
    int components[2][DIM];
    bool filtered = kind == ASK_FILTER || kind == ASK_BITMAP, whole = kind == ASK_SCAN || kind == ASK_LONG_SCAN;
    memset(&query, 0, sizeof query);
    memset(&err, 0, sizeof err);
    look_before(r);
    for (i = 0; i < 16; i++) {
        own = (uint32_t)(test_random(&r->random) % w->ids);
        if (kind == ASK_BITMAP) own %= 16;
        if (filtered) own |= 1;
        if (own < w->ids && (r->before[own] & 1) != 0) break;
    }
    if (own >= w->ids) return;
    for (i = 0; i < 2; i++) {
        size_t size = w->type == NODEDB_VAMANA_F32 ? sizeof(float) : 1;
        uint32_t id = i == 0 ? own : own / 2, change = r->before[id] >> 1;
        components_of(id, change, components[i]);
        vector_of(w->type, id, change, (uint8_t *)(void *)vectors + i * DIM * size);
    }
    query.vector = vectors, query.k = 1 + (uint32_t)(test_random(&r->random) % 8), query.beam = 96;
    query.exact_walk = kind == ASK_EXACT;
    if (kind == ASK_FILTER) query.filter = odd_ids;
    if (kind == ASK_BITMAP) query.bitmap = odd_bits, query.bitmap_bits = 16;
    if (kind == ASK_LONG_SCAN) query.k = MOST_RESULTS;
    if (kind == ASK_RANGE) {
        query.k = 200;
        status = nodedb_vamana_search_range(r->searcher, &query, w->metric == NODEDB_VAMANA_L2 ? 900.0f : 0.5f,
                                            r->results, query.k, found, NULL, &err);
        for (i = 0; i < found[0]; i++)
            CHECK(r->results[i].distance <= (w->metric == NODEDB_VAMANA_L2 ? 900.0f : 0.5f));
    } else if (kind == ASK_MANY) {
        status = nodedb_vamana_search_many(r->searcher, &query, vectors, 2, r->results, found, NULL, &err);
        check_results(r, components[1], r->results + query.k, found[1], query.k, false, true);
    } else if (whole) {
        status = nodedb_vamana_scan(r->searcher, &query, r->results, found, NULL, &err);
    } else {
        status = nodedb_vamana_search(r->searcher, &query, r->results, found, NULL, &err);
    }
    CHECK_EQ(status, NODEDB_OK);
    if (kind == ASK_BITMAP)
        for (i = 0; i < found[0]; i++) CHECK(r->results[i].id < 16);
    check_results(r, components[0], r->results, found[0], query.k, filtered, kind != ASK_RANGE && kind != ASK_BITMAP);
    if (w->metric == NODEDB_VAMANA_IP || !was_there(r, own)) return; /* IP: another may be nearer than itself */
    if (whole || kind == ASK_BITMAP) CHECK(has_found(r->results, found[0], own));
    else r->sought++, r->met += has_found(r->results, found[0], own) ? 1 : 0;
}

static void ask_for_ids(reader *r) {
    world *w = r->w;
    uint32_t i;
    look_before(r);
    for (i = 0; i < 32; i++) {
        uint32_t id = (uint32_t)(test_random(&r->random) % w->ids), first, last, j;
        float got[DIM];
        int c[DIM];
        bool is_there = nodedb_vamana_contains(w->index, id), good = false;
        nodedb_status status;
        if (has_rested(r, id)) CHECK_EQ(is_there, r->before[id] & 1);
        status = nodedb_vamana_get(w->index, id, got, NULL);
        if (has_rested(r, id)) CHECK_EQ(status == NODEDB_OK, r->before[id] & 1);
        CHECK(status == NODEDB_OK || status == NODEDB_ERR_NOT_FOUND);
        for (last = changes_seen(r, id, &first); status == NODEDB_OK && first <= last && !good; last--) {
            components_of(id, last, c);
            for (j = 0, good = true; j < DIM; j++)
                good = good && fabsf(got[j] - (float)c[j] - (w->type == NODEDB_VAMANA_U8 ? 8 : 0)) < 1e-4f;
        }
        CHECK(status != NODEDB_OK || good);
        CHECK(!nodedb_vamana_contains(w->index, w->ids + id)); /* those that no build has ever brought to an end */
    }
}

static void ask_for_all_ids(reader *r) {
    world *w = r->w;
    uint32_t compactions = __atomic_load_n(&w->compactions, __ATOMIC_ACQUIRE), i;
    uint64_t cursor = 0, id;
    look_before(r);
    memset(r->seen, 0, w->ids);
    while (nodedb_vamana_next(w->index, &cursor, &id)) {
        uint32_t first;
        CHECK(id < w->ids);
        if (id >= w->ids) return;
        CHECK(changes_seen(r, (uint32_t)id, &first) >= first);
        r->seen[id]++;
    }
    if (compactions % 2 != 0 || __atomic_load_n(&w->compactions, __ATOMIC_ACQUIRE) != compactions) return;
    for (i = 0; i < w->ids; i++)
        if (was_there(r, i)) CHECK_EQ(r->seen[i], 1);
}

static void ask_how_it_is(reader *r) {
    nodedb_vamana_info info;
    nodedb_vamana_inspect(r->w->index, &info);
    CHECK(nodedb_vamana_count(r->w->index) <= r->w->ids);
    CHECK(info.live <= r->w->ids && info.capacity >= 1 && info.entry_id < r->w->ids);
    CHECK(info.code_bits == 0 || info.code_bits == 4 || info.code_bits == 8);
    CHECK(nodedb_vamana_memory_bytes(r->w->index) > 0);
}

static void *read_on(void *argument) {
    reader *r = (reader *)argument;
    nodedb_vamana_searcher_config narrow;
    memset(&narrow, 0, sizeof narrow);
    narrow.beam_max = 8;
    while (__atomic_load_n(&r->w->stop, __ATOMIC_ACQUIRE) == 0 || r->questions < 64) {
        unsigned kind = (unsigned)(test_random(&r->random) % (ASK_KINDS + 5));
        if (r->questions++ % 128 == 0) { /* makes new searchers too, which must grow their lists */
            nodedb_vamana_searcher_destroy(r->searcher);
            r->searcher = nodedb_vamana_searcher_create(r->w->index, &narrow, NULL);
            if (r->searcher == NULL) return NULL;
        }
        if (kind < ASK_KINDS) ask(r, kind);
        else if (kind < ASK_KINDS + 2) ask_for_ids(r);
        else if (kind == ASK_KINDS + 2) ask_for_all_ids(r);
        else if (kind == ASK_KINDS + 3) ask_how_it_is(r);
        else ask(r, ASK_CODES);
    }
    nodedb_vamana_searcher_destroy(r->searcher);
    return NULL;
}

static void start_reader(reader *r, world *w, uint64_t seed) {
    memset(r, 0, sizeof *r);
    r->w = w, r->random = seed;
    r->before = (uint32_t *)calloc(w->ids, sizeof *r->before), r->seen = (uint8_t *)calloc(w->ids, 1);
    r->results = (nodedb_vamana_result *)calloc(MOST_RESULTS, sizeof *r->results);
    CHECK_EQ(pthread_create(&r->thread, NULL, read_on, r), 0);
}

static void join_reader(reader *r) {
    CHECK_EQ(pthread_join(r->thread, NULL), 0);
    r->w->questions += r->questions, r->w->sought += r->sought, r->w->met += r->met;
    free(r->before), free(r->seen), free(r->results);
}

/* ---- the writer -------------------------------------------------------------------------------------------------- */

static void put(world *w, uint32_t id) {
    float vector[DIM];
    vector_of(w->type, id, begin_change(w, id), vector);
    CHECK_EQ(nodedb_vamana_insert(w->index, id, vector, NULL), NODEDB_OK);
    end_change(w, id, true);
}

static void drop(world *w, uint32_t id) {
    if ((w->ended[id] & 1) == 0) return;
    (void)begin_change(w, id);
    CHECK_EQ(nodedb_vamana_remove(w->index, id, NULL), NODEDB_OK);
    end_change(w, id, false);
}

static bool at_once_enough(void *ctx, uint64_t done, uint64_t total) {
    (void)ctx, (void)total;
    return done == 0;
}

enum build_end { BUILD_ENDS, BUILD_IS_CANCELLED, BUILD_FAILS };

/* A batch of up to n ids that are not there. One that fails has ids of no world, and at its end one twice. */
static void put_batch(world *w, uint32_t n, enum build_end end, uint32_t threads) {
    size_t size = w->type == NODEDB_VAMANA_F32 ? sizeof(float) : 1;
    uint64_t *ids = (uint64_t *)malloc(n * sizeof *ids);
    uint8_t *vectors = (uint8_t *)malloc(n * DIM * sizeof(float));
    uint32_t i, count = 0;
    nodedb_status status;
    for (i = 0; i < w->ids && count < n; i++) {
        uint32_t change = 0;
        if (end == BUILD_FAILS) ids[count] = w->ids + i;
        else if ((w->ended[i] & 1) != 0) continue;
        else change = begin_change(w, i), ids[count] = i;
        vector_of(w->type, ids[count], change, vectors + count * DIM * size);
        count++;
    }
    if (end == BUILD_FAILS) ids[count - 1] = ids[0];
    status = nodedb_vamana_build(w->index, ids, vectors, count, threads,
                                 end == BUILD_IS_CANCELLED ? at_once_enough : NULL, NULL, NULL);
    if (count > 1)
        CHECK_EQ(status, end == BUILD_FAILS ? NODEDB_ERR_EXISTS : end == BUILD_ENDS ? NODEDB_OK : NODEDB_ERR_CANCELLED);
    for (i = 0; i < count && end != BUILD_FAILS; i++)
        end_change(w, (uint32_t)ids[i], nodedb_vamana_contains(w->index, ids[i]));
    free(ids), free(vectors);
}

static void remake_codes(world *w) { w->index->code_due = 0; } /* as if the index had grown eightfold */

typedef struct work { /* shares of all steps, in 1/10000 */
    uint32_t steps, put, replace, rare;
    uint32_t most, batch; /* vectors at a time */
    bool empties;         /* removes all now and then */
} work;

static void write_on(world *w, const work *how, uint64_t seed) {
    uint64_t random = seed;
    uint32_t step, i;
    for (step = 0; step < how->steps; step++) {
        uint32_t at = (uint32_t)(test_random(&random) % 10000), id = (uint32_t)(test_random(&random) % w->ids);
        if (at < how->rare) {
            switch (test_random(&random) % 10) {
            case 0: (void)nodedb_vamana_maintain(w->index, 100); break;
            case 1: while (nodedb_vamana_maintain(w->index, 10)) {}
                break;
            case 2:
                (void)__atomic_fetch_add(&w->compactions, 1, __ATOMIC_ACQ_REL);
                CHECK_EQ(nodedb_vamana_compact(w->index, NULL), NODEDB_OK);
                (void)__atomic_fetch_add(&w->compactions, 1, __ATOMIC_ACQ_REL);
                break;
            case 3: put_batch(w, how->batch, BUILD_ENDS, 1 + step % 3); break;
            case 4: put_batch(w, how->batch, BUILD_IS_CANCELLED, 2); break;
            case 5: put_batch(w, how->batch, BUILD_FAILS, 1); break;
            case 6:
                CHECK_EQ(nodedb_vamana_reserve(w->index, w->index->arrays->capacity + 1, NULL), NODEDB_OK);
                break;
            case 7:
            case 8: remake_codes(w); break;
            default:
                for (i = 0; i < w->ids; i++)
                    if (how->empties || i % 16 == 0) drop(w, i);
                if (how->empties && w->index->live != 0) CHECK(false);
                break;
            }
        } else if (at < how->rare + how->put && w->present < how->most) {
            for (i = 0; i < w->ids && (w->ended[id] & 1) != 0; i++) id = (id + 1) % w->ids;
            put(w, id);
        } else if (at < how->rare + how->put + how->replace) {
            for (i = 0; i < w->ids && (w->ended[id] & 1) == 0; i++) id = (id + 1) % w->ids;
            put(w, id);
        } else {
            for (i = 0; i < w->ids && (w->ended[id] & 1) == 0; i++) id = (id + 1) % w->ids;
            drop(w, id);
        }
    }
}

static void campaign(nodedb_vamana_type type, nodedb_vamana_metric metric, nodedb_vamana_code code, uint32_t ids,
                     uint32_t first, const work *how) {
    nodedb_vamana_config config = config_of(type, metric, 64);
    reader readers[READERS];
    world w;
    uint32_t i;
    config.code = code;
    REQUIRE(open_world(&w, &config, ids));
    for (i = 0; i < READERS; i++) start_reader(&readers[i], &w, test_seed * 1000 + i);
    if (first > 0) put_batch(&w, first, BUILD_ENDS, 2);
    write_on(&w, how, test_seed);
    __atomic_store_n(&w.stop, 1, __ATOMIC_RELEASE);
    for (i = 0; i < READERS; i++) join_reader(&readers[i]);
    CHECK_EQ(nodedb_vamana_count(w.index), w.present);
    fprintf(stderr, "%s: %" PRIu64 " questions, %" PRIu64 " of %" PRIu64 " vectors met by a search\n", test_name,
            w.questions, w.met, w.sought);
    CHECK((double)w.met >= 0.95 * (double)w.sought); /* random vectors in thin graphs */
    close_world(&w);
}

static uint32_t steps_of(uint32_t quick, uint32_t slow) { return (SLOW ? slow : quick) * (test_long ? 30 : 1); }

TEST(readers_beside_a_writer_see_what_is_or_was_meanwhile) {
    work how = {0, 3500, 2500, 30, 5000, 300, false};
    how.steps = steps_of(6000, 500);
    if (SLOW) how.most = 500, how.batch = 40, how.rare = 150;
    campaign(NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_AUTO, SLOW ? 600 : 6000, SLOW ? 300 : 4000, &how);
}

TEST(readers_beside_a_writer_that_grows_and_empties_a_small_index) {
    work how = {0, 5000, 1500, 100, 250, 60, true};
    how.steps = steps_of(8000, 800);
    campaign(NODEDB_VAMANA_I8, NODEDB_VAMANA_L2, NODEDB_VAMANA_CODE_4BIT, 300, 0, &how);
}

TEST(readers_beside_a_writer_whatever_the_metric) {
    static const nodedb_vamana_type types[] = {NODEDB_VAMANA_F32, NODEDB_VAMANA_U8, NODEDB_VAMANA_F32};
    static const nodedb_vamana_metric metrics[] = {NODEDB_VAMANA_IP, NODEDB_VAMANA_COSINE, NODEDB_VAMANA_COSINE};
    work how = {0, 4000, 2000, 60, 900, 100, true};
    uint32_t i;
    how.steps = steps_of(3000, 150);
    if (SLOW) how.most = 250;
    for (i = 0; i < 3; i++)
        campaign(types[i], metrics[i], NODEDB_VAMANA_CODE_8BIT, SLOW ? 300 : 1000, SLOW ? 100 : 500, &how);
}

/* ---- one reader that stays --------------------------------------------------------------------------------------- */

/* A reader is held within his question, by his filter; what the writer then must not touch, he does not touch. */
typedef struct held {
    world *w;
    uint32_t inside, go_on, asked; /* `inside`, `go_on`: atomic */
    nodedb_vamana_result results[2000];
    uint32_t found, k;
    nodedb_status status;
    pthread_t thread;
} held;

static bool hold(void *ctx, uint64_t id) {
    held *h = (held *)ctx;
    (void)id;
    if (h->asked++ > 0) return true;
    __atomic_store_n(&h->inside, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&h->go_on, __ATOMIC_ACQUIRE) == 0) (void)sched_yield();
    return true;
}

static void *read_held(void *argument) {
    held *h = (held *)argument;
    nodedb_vamana_searcher *s = nodedb_vamana_searcher_create(h->w->index, NULL, NULL);
    nodedb_vamana_query query;
    float vector[DIM];
    memset(&query, 0, sizeof query);
    vector_of(h->w->type, 1, 1, vector);
    query.vector = vector, query.k = h->k, query.filter = hold, query.filter_ctx = h;
    h->status = nodedb_vamana_scan(s, &query, h->results, &h->found, NULL, NULL);
    nodedb_vamana_searcher_destroy(s);
    return NULL;
}

static void hold_reader(held *h, world *w, uint32_t k) {
    memset(h, 0, sizeof *h);
    h->w = w, h->k = k;
    CHECK_EQ(pthread_create(&h->thread, NULL, read_held, h), 0);
    while (__atomic_load_n(&h->inside, __ATOMIC_ACQUIRE) == 0) (void)sched_yield();
}

static void let_go(held *h) {
    __atomic_store_n(&h->go_on, 1, __ATOMIC_RELEASE);
    CHECK_EQ(pthread_join(h->thread, NULL), 0);
    CHECK_EQ(h->status, NODEDB_OK);
}

/* All results are first vectors of their ids. */
static void check_held(const held *h) {
    int query[DIM], c[DIM];
    uint32_t i;
    components_of(1, 1, query);
    for (i = 0; i < h->found; i++) {
        components_of(h->results[i].id, 1, c);
        CHECK(!has_found(h->results, i, (uint32_t)h->results[i].id));
        CHECK(h->results[i].id < h->w->ids &&
              h->results[i].distance == distance_of(h->w->type, h->w->metric, query, c));
    }
}

TEST(a_slot_is_not_reused_while_a_search_may_hold_it) {
    nodedb_vamana_config config = config_of(NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, 2000);
    nodedb_vamana_info info;
    world w;
    held h;
    uint32_t i;
    REQUIRE(open_world(&w, &config, 1000));
    for (i = 0; i < 500; i++) put(&w, i);
    while (nodedb_vamana_maintain(w.index, 1000)) {}
    hold_reader(&h, &w, 100);
    for (i = 0; i < 300; i += 2) drop(&w, i);
    for (i = 0; i < 20; i++) CHECK(nodedb_vamana_maintain(w.index, 10000)); /* there is more to do, but not now */
    for (i = 500; i < 600; i++) put(&w, i);
    nodedb_vamana_inspect(w.index, &info);
    CHECK_EQ(info.removed, 150);
    CHECK_EQ(info.live + info.removed + info.free, 600);
    let_go(&h);
    check_held(&h);
    while (nodedb_vamana_maintain(w.index, 1000)) {}
    nodedb_vamana_inspect(w.index, &info);
    CHECK_EQ(info.removed, 0);
    for (i = 600; i < 750; i++) put(&w, i); /* and now they are taken */
    nodedb_vamana_inspect(w.index, &info);
    CHECK_EQ(info.free, 0);
    close_world(&w);
}

typedef struct waiting {
    world *w;
    int kind;
    uint32_t returned; /* atomic */
    pthread_t thread;
} waiting;

enum {
    WAIT_RESERVE, WAIT_GROW, WAIT_COMPACT, WAIT_CODES, WAIT_FIRST_CODES, WAIT_EMPTY, WAIT_BUILD_FAILS, WAIT_CANCEL,
    WAITS
};

static void *change_and_wait(void *argument) {
    waiting *job = (waiting *)argument;
    world *w = job->w;
    uint32_t i;
    switch (job->kind) {
    case WAIT_RESERVE: CHECK_EQ(nodedb_vamana_reserve(w->index, 5000, NULL), NODEDB_OK); break;
    case WAIT_GROW: put(w, 300); break;
    case WAIT_COMPACT: CHECK_EQ(nodedb_vamana_compact(w->index, NULL), NODEDB_OK); break;
    case WAIT_FIRST_CODES:
    case WAIT_CODES:
        remake_codes(w);
        while (nodedb_vamana_maintain(w->index, 10)) {}
        break;
    case WAIT_EMPTY:
        for (i = 0; i < 300; i++) drop(w, i);
        for (i = 300; i < 400; i++) put(w, i); /* into the slots of others */
        break;
    case WAIT_BUILD_FAILS: put_batch(w, 10, BUILD_FAILS, 1); break;
    case WAIT_CANCEL: put_batch(w, 10, BUILD_IS_CANCELLED, 1); break;
    default: break;
    }
    __atomic_store_n(&job->returned, 1, __ATOMIC_RELEASE);
    return NULL;
}

TEST(what_frees_or_moves_memory_waits_for_its_readers_and_no_reader_waits_for_the_writer) {
    int kind;
    for (kind = 0; kind < WAITS; kind++) {
        nodedb_vamana_config config = config_of(NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, kind == WAIT_GROW ? 300 : 500);
        nodedb_vamana_searcher *s;
        nodedb_vamana_result results[4];
        nodedb_vamana_query query;
        waiting job;
        world w;
        held h;
        float vector[DIM];
        uint32_t i, found;
        memset(&query, 0, sizeof query);
        memset(&job, 0, sizeof job);
        config.code = NODEDB_VAMANA_CODE_8BIT;
        REQUIRE(open_world(&w, &config, 1000));
        for (i = 0; i < 300; i++) put(&w, i);
        if (kind == WAIT_CODES) {
            remake_codes(&w);
            while (nodedb_vamana_maintain(w.index, 1000)) {}
        }
        hold_reader(&h, &w, 1000);
        job.w = &w, job.kind = kind;
        REQUIRE(pthread_create(&job.thread, NULL, change_and_wait, &job) == 0);
        s = nodedb_vamana_searcher_create(w.index, NULL, NULL);
        vector_of(w.type, 7, 1, vector);
        query.vector = vector, query.k = 4;
        for (i = 0; i < 20; i++) { /* a writer who does not wait has returned by now, most likely; a right one never */
            CHECK_EQ(nodedb_vamana_search(s, &query, results, &found, NULL, NULL), NODEDB_OK);
            if (kind != WAIT_EMPTY) CHECK(found == 4 && results[0].id == 7 && results[0].distance == 0);
            (void)usleep(1000);
        }
        CHECK_EQ(__atomic_load_n(&job.returned, __ATOMIC_ACQUIRE), 0);
        let_go(&h);
        check_held(&h);
        CHECK_EQ(pthread_join(job.thread, NULL), 0);
        nodedb_vamana_searcher_destroy(s);
        close_world(&w);
    }
}

/* The lists of a search are as long as the index when it began needs them; it may have grown since. */
TEST(a_scan_for_more_than_there_is_survives_an_index_that_grows_meanwhile) {
    nodedb_vamana_config config = config_of(NODEDB_VAMANA_F32, NODEDB_VAMANA_L2, 2000);
    world w;
    held h;
    uint32_t i;
    REQUIRE(open_world(&w, &config, 4000));
    for (i = 0; i < 2000; i++) put(&w, i);
    for (i = 100; i < 2000; i++) drop(&w, i); /* their slots are behind those that the scan has visited */
    while (nodedb_vamana_maintain(w.index, 1000)) {}
    hold_reader(&h, &w, 2000);
    for (i = 2000; i < 3900; i++) put(&w, i);
    let_go(&h);
    CHECK(h.found >= 100 && h.found <= 2000);
    check_held(&h);
    close_world(&w);
}

/* A look into the table between two steps of the writer finds the id, or none: never the id that took the place that
 * was empty. Nothing enters and withdraws ids faster than a build that fails: here are its steps, without the
 * vectors. */
static void *look_for_absent(void *argument) {
    world *w = (world *)argument;
    uint64_t id = UINT64_C(1) << 40, looks;
    for (looks = 0; __atomic_load_n(&w->stop, __ATOMIC_ACQUIRE) == 0 || looks < 1000; looks++, id++) {
        uint32_t parity, slot, there;
        const nodedb_vamana__arrays *a = nodedb_vamana__enter(w->index, 1, &parity);
        slot = nodedb_vamana__find(a, id);
        CHECK(slot == NODEDB_VAMANA__NONE || a->ids[slot] == id);
        there = __atomic_load_n(&w->begun[0], __ATOMIC_ACQUIRE); /* it stays until this changes, but not at its place */
        slot = nodedb_vamana__find(a, there);
        CHECK(slot == NODEDB_VAMANA__NONE ? __atomic_load_n(&w->begun[0], __ATOMIC_ACQUIRE) != there
                                          : a->ids[slot] == there);
        nodedb_vamana__leave(w->index, 1, parity);
    }
    return NULL;
}

static void enter_id(world *w, uint64_t id, uint32_t *slot) {
    *slot = nodedb_vamana__alloc_slot(w->index);
    w->index->arrays->ids[*slot] = id;
    CHECK(nodedb_vamana__table_add(w->index->arrays, *slot));
}

TEST(an_id_is_found_or_not_but_never_mistaken_for_another) {
    nodedb_vamana_config config = config_of(NODEDB_VAMANA_I8, NODEDB_VAMANA_L2, 80); /* of a table of 128 places */
    uint32_t i, build, builds = steps_of(4000, 300), slots[79];
    pthread_t threads[2];
    world w;
    REQUIRE(open_world(&w, &config, 1000));
    enter_id(&w, 1000, &slots[78]);
    w.begun[0] = 1000;
    for (i = 0; i < 2; i++) REQUIRE(pthread_create(&threads[i], NULL, look_for_absent, &w) == 0);
    for (build = 1; build < builds; build++) { /* the last entered comes nearer to its home as the others go */
        uint32_t before = slots[78];
        for (i = 0; i < 78; i++) enter_id(&w, (UINT64_C(1) << 32) + build + i, &slots[i]);
        enter_id(&w, 1000 + build, &slots[78]);
        __atomic_store_n(&w.begun[0], 1000 + build, __ATOMIC_RELEASE);
        nodedb_vamana__build_withdraw(w.index, slots, NULL, 0, 78);
        nodedb_vamana__build_withdraw(w.index, &before, NULL, 0, 1);
    }
    __atomic_store_n(&w.stop, 1, __ATOMIC_RELEASE);
    for (i = 0; i < 2; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
    close_world(&w);
}

/* ---- the model checker: enter, leave and the waits --------------------------------------------------------------- */

/* The writer's script and two readers that enter again and again, each on its own stripe or both on one. Every load,
 * store and addition is a step of its own, in one total order, and the search visits every interleaving. An object that
 * is unlinked after a reader has taken it must exist until the reader leaves.
 *   In one total order two guards do the same: the reader's second load of the epoch, and the writer's check before it
 * advances the epoch. One of them would do if a wait followed each advance. A sweep that waits while the arrays grow
 * needs the writer's check. Machines on which the reader's load of the arrays may pass its count need the second load;
 * a model of this kind cannot show that. */
enum { PUBLISH, MOVE, WAIT, FREE, END }; /* the writer; MOVE is advance_epoch, WAIT is readers_left in a loop */
enum { LOOK, COUNT, AGAIN, BACK, TAKE, USE, LEAVE };

typedef enum model_kind {
    MODEL_RIGHT,
    MODEL_NO_RECHECK,
    MODEL_NO_LOOK_BEFORE_MOVE,
    MODEL_NEITHER, /* of the two */
    MODEL_NO_WAIT,
    MODEL_NO_MOVE,
    MODEL_KINDS
} model_kind;

typedef struct model_state { /* all small numbers; compared and hashed as bytes */
    uint8_t epoch, published, freed; /* things below `freed` are gone */
    uint8_t count[2][2];             /* of stripe, parity */
    uint8_t at, stripe;              /* the writer's: place in the script, next stripe to look at */
    uint8_t step[2], saw[2], holds[2]; /* the readers' */
    uint8_t pad[1];
} model_state;

typedef struct model {
    model_kind kind;
    const uint8_t *script;
    uint32_t stripes;
    model_state *states, *todo;
    size_t size, count, todo_count;
    bool ended, harm;
} model;

static void model_visit(model *m, const model_state *s) {
    static const model_state nothing;
    uint64_t words[2];
    size_t at;
    memcpy(words, s, sizeof words);
    at = (size_t)nodedb_mix64(words[0] ^ nodedb_mix64(words[1]));
    for (;; at++) {
        model_state *place = &m->states[at & (m->size - 1)];
        if (memcmp(place, s, sizeof *s) == 0) return;
        if (memcmp(place, &nothing, sizeof nothing) != 0) continue;
        *place = *s;
        m->todo[m->todo_count++] = *s, m->count++;
        return;
    }
}

/* A step of the writer; MOVE and WAIT take one for each look at a stripe. */
static void model_writer(model *m, const model_state *from) {
    model_state s = *from;
    uint8_t what = m->script[s.at];
    if (what == END) {
        m->ended = true;
        return;
    }
    if (what == PUBLISH) s.published++, s.at++;
    else if (what == FREE) s.freed = s.published, s.at++;
    else if ((what == MOVE && (m->kind == MODEL_NO_LOOK_BEFORE_MOVE || m->kind == MODEL_NEITHER)) ||
             (what == WAIT && m->kind == MODEL_NO_WAIT)) {
        s.stripe = (uint8_t)m->stripes;
    } else if (s.stripe < m->stripes) { /* one look; a reader there: from the start again */
        s.stripe = s.count[s.stripe][(s.epoch & 1) ^ 1] != 0 ? 0 : (uint8_t)(s.stripe + 1);
        model_visit(m, &s);
        return;
    }
    if ((what == MOVE || what == WAIT) && s.stripe == m->stripes) {
        if (what == MOVE && m->kind != MODEL_NO_MOVE) s.epoch++;
        s.stripe = 0, s.at++;
    }
    model_visit(m, &s);
}

static void model_reader(model *m, const model_state *from, int r) {
    model_state s = *from;
    uint32_t stripe = m->stripes == 1 ? 0 : (uint32_t)r, parity = s.saw[r] & 1;
    switch (s.step[r]) {
    case LOOK:
        s.saw[r] = s.epoch, s.step[r] = COUNT;
        break;
    case COUNT:
        s.count[stripe][parity]++;
        s.step[r] = m->kind == MODEL_NO_RECHECK || m->kind == MODEL_NEITHER ? TAKE : AGAIN;
        break;
    case AGAIN: s.step[r] = s.epoch == s.saw[r] ? TAKE : BACK; break;
    case BACK: s.count[stripe][parity]--, s.step[r] = LOOK; break;
    case TAKE:
        s.holds[r] = s.published, s.step[r] = USE;
        break;
    case USE:
        m->harm = m->harm || s.holds[r] < s.freed;
        s.step[r] = LEAVE;
        break;
    default: s.count[stripe][parity]--, s.holds[r] = 0, s.saw[r] = 0, s.step[r] = LOOK; break;
    }
    model_visit(m, &s);
}

/* True: harm is done in some interleaving. */
static bool model_search(model_kind kind, const uint8_t *script, uint32_t stripes, size_t *visited) {
    model m;
    model_state first;
    memset(&m, 0, sizeof m);
    memset(&first, 0, sizeof first);
    m.kind = kind, m.script = script, m.stripes = stripes, m.size = (size_t)1 << 20;
    m.states = (model_state *)calloc(m.size, sizeof *m.states);
    m.todo = (model_state *)calloc(m.size, sizeof *m.todo);
    first.published = 1, first.pad[0] = 1; /* never all zeros */
    model_visit(&m, &first);
    while (m.todo_count > 0 && !m.harm && m.count < m.size / 2) {
        model_state s = m.todo[--m.todo_count];
        model_writer(&m, &s);
        model_reader(&m, &s, 0);
        model_reader(&m, &s, 1);
    }
    CHECK(m.harm || (m.ended && m.todo_count == 0)); /* all were visited, and the writer comes to his end */
    *visited += m.count;
    free(m.states), free(m.todo);
    return m.harm;
}

TEST(in_no_order_of_steps_does_the_writer_free_what_a_reader_holds) {
    /* await_readers three times; a sweep that waits while the arrays grow; a sweep, then another */
    static const uint8_t thrice[] = {PUBLISH, MOVE, WAIT, FREE, PUBLISH, MOVE, WAIT,
                                     FREE,    PUBLISH, MOVE, WAIT, FREE, END};
    static const uint8_t between[] = {PUBLISH, MOVE, MOVE, WAIT, WAIT, FREE, PUBLISH, MOVE, WAIT, FREE, END};
    static const uint8_t no_wait[] = {PUBLISH, MOVE, MOVE, MOVE, FREE, END}; /* of three moves two are a wait */
    const uint8_t *const scripts[] = {thrice, between, no_wait};
    static const bool harm[MODEL_KINDS][3] = {{false, false, false}, {false, false, false}, {false, true, true},
                                              {true, true, true},    {true, true, false},    {true, true, true}};
    size_t visited = 0;
    int kind;
    uint32_t i, stripes;
    for (kind = 0; kind < MODEL_KINDS; kind++)
        for (i = 0; i < 3; i++)
            for (stripes = 1; stripes <= 2; stripes++)
                CHECK_EQ(model_search((model_kind)kind, scripts[i], stripes, &visited), harm[kind][i]);
    fprintf(stderr, "%s: %zu states\n", test_name, visited);
}

TEST_MAIN("vamana_threads")
