/* vectorset.c - vector sets: a home that knows what the set is, and parts that have its elements.
 *
 * The HOME of a set is the shard of its key. Every operation on an element passes it, and goes on from there to the
 * element's PART, through the rings, so parts receive additions, removals and the end of the set in the order of
 * the home. The answers of changes return through the home, which so knows how many elements there are.
 *
 * A set is in one of four states at its home:
 *
 *   state     what is there                         event                              next      what is done
 *   ABSENT    no entry, or one that is no set       VADD                               CREATING  log CREATE; it waits
 *                                                   VREM, a read                       ABSENT    answered at once
 *   CREATING  a CREATE is in the log, the VADD      CREATE durable, the key is free    LIVE      entry; VADD to part
 *             behind it (operation.creating)        CREATE durable, the key is taken   ABSENT    WRONGTYPE, or as LIVE
 *   LIVE      an entry with a set_home              VADD, VREM, a read                 LIVE      to the part
 *                                                   a part answers, elements are left  LIVE      count
 *                                                   a part answers, none is left       ENDING    log END; VREM waits
 *                                                   DEL, SET, EXPIRE, FLUSHALL durable ABSENT    notify the parts
 *   ENDING    an END is in the log                  END durable                        ABSENT    notify the parts
 *                                                   DEL, SET, ... durable before it    ABSENT    END finds nothing
 *                                                   END refused (the log has failed)   LIVE      tried again later
 *
 * Why there are no more: an operation on an element that arrives while a record of its key is in the log, whatever it
 * says, is queued behind it, and runs when that record has been applied (home_is_quiet, home_step). So
 * it always meets ABSENT or LIVE, and what it finds is what a replay of the home's log would find there.
 * An END, in turn, is logged only when no operation on an element of the set is queued (end_if_empty).
 *
 * After a crash the home's log is always right: a part whose set has no home is dropped, a set none of whose elements
 * are left is ended (recover_shards). */
#include "db.h"

#include <sys/random.h>

/* ---- parts ------------------------------------------------------------------------------------------------------- */

static uint32_t hash_of_number(uint64_t n) { return (uint32_t)(nodedb_mix64(n) >> 32); }

static uint32_t part_hash(const void *item) { return hash_of_number(((const part *)item)->set_id); }
static bool part_is(const void *item, const void *id, size_t bytes) {
    return memcmp(&((const part *)item)->set_id, id, bytes) == 0;
}
const dictionary_kind parts_by_set = {part_hash, part_is};

static uint32_t element_hash(const void *item) { return ((const element *)item)->hash; }
static bool element_is(const void *item, const void *name, size_t bytes) {
    const element *x = item;
    return x->name_bytes == bytes && memcmp(x->name, name, bytes) == 0;
}
static const dictionary_kind elements_by_name = {element_hash, element_is};

static uint32_t element_id_hash(const void *item) { return hash_of_number(((const element *)item)->id); }
static bool element_id_is(const void *item, const void *id, size_t bytes) {
    return memcmp(&((const element *)item)->id, id, bytes) == 0;
}
static const dictionary_kind elements_by_id = {element_id_hash, element_id_is};

part *part_find(shard *s, uint64_t set_id) {
    return dictionary_find(&s->parts, hash_of_number(set_id), &set_id, sizeof set_id);
}

part *part_new(shard *s, uint64_t set_id, uint32_t dim, uint32_t metric) {
    part *p = data_alloc(s, sizeof *p);
    *p = (part){.set_id = set_id, .dim = dim, .metric = metric};
    p->elements = (dictionary){.kind = &elements_by_name, .owner = s};
    p->by_id = (dictionary){.kind = &elements_by_id, .owner = s};
    dictionary_add(&s->parts, p);
    return p;
}

element *part_element(part *p, const shard *s, slice name) {
    return dictionary_find(&p->elements, name_hash(s, name.p, name.bytes), name.p, name.bytes);
}

element *element_add(shard *s, part *p, slice name, uint64_t id) {
    element *x = data_alloc(s, sizeof *x + name.bytes);
    *x = (element){.hash = name_hash(s, name.p, name.bytes), .name_bytes = name.bytes, .id = id};
    memcpy(x->name, name.p, name.bytes);
    dictionary_add(&p->elements, x);
    if (p->index != NULL) dictionary_add(&p->by_id, x);
    if (id >= p->next_id) p->next_id = id + 1;
    return x;
}

/* The vector of an element whose part has no index: counted where an index counts. */
static float *flat_alloc(shard *s, uint32_t dim) {
    nodedb_allocator a = vector_allocator(s);
    return must(a.alloc(a.ctx, dim * sizeof(float), sizeof(void *)));
}
void flat_free(shard *s, float *vector) {
    nodedb_allocator a = vector_allocator(s);
    if (vector != NULL) a.release(a.ctx, vector, 0);
}

static void element_remove(shard *s, part *p, element *x) {
    dictionary_remove(&p->elements, x);
    if (p->index != NULL) dictionary_remove(&p->by_id, x);
    flat_free(s, x->vector);
    data_free(s, x);
}

bool part_vector(const part *p, const element *x, float *to) {
    if (p->index != NULL) return nodedb_vamana_get(p->index, x->id, to, NULL) == NODEDB_OK;
    memcpy(to, x->vector, p->dim * sizeof *to);
    return true;
}

/* Builds the index of a part that has become too large for a linear search. On failure the part stays as it is. */
static nodedb_status part_make_index(shard *s, part *p, nodedb_error *err) {
    nodedb_vamana_config config = {.dim = p->dim, .metric = (nodedb_vamana_metric)p->metric, .seed = p->set_id,
                                   .allocator = vector_allocator(s), .logger = s->logger};
    nodedb_vamana *index = nodedb_vamana_create(&config, err);
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    nodedb_status status = index != NULL ? NODEDB_OK : err->status;
    while (status == NODEDB_OK && cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n && status == NODEDB_OK; i++) {
            const element *x = items[i];
            status = nodedb_vamana_insert(index, x->id, x->vector, err);
        }
    }
    if (status != NODEDB_OK) {
        nodedb_vamana_destroy(index);
        return status;
    }
    p->index = index;
    for (cursor = 0; cursor < DICTIONARY_END;) {
        size_t n = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++) {
            element *x = items[i];
            dictionary_add(&p->by_id, x);
            flat_free(s, x->vector);
            x->vector = NULL;
        }
    }
    return NODEDB_OK;
}

nodedb_status part_add(shard *s, part *p, slice name, const float *vector, bool *is_new, nodedb_error *err) {
    element *x = part_element(p, s, name);
    nodedb_status status = NODEDB_OK;
    *is_new = x == NULL;
    if (p->index == NULL && x == NULL && p->elements.count >= FLAT_ELEMENTS) status = part_make_index(s, p, err);
    if (status == NODEDB_OK && p->index != NULL)
        status = nodedb_vamana_insert(p->index, x != NULL ? x->id : p->next_id, vector, err);
    if (status != NODEDB_OK) return status;
    if (x == NULL) x = element_add(s, p, name, p->next_id);
    if (p->index != NULL) return NODEDB_OK;
    if (x->vector == NULL) x->vector = flat_alloc(s, p->dim);
    memcpy(x->vector, vector, p->dim * sizeof *vector);
    return NODEDB_OK;
}

bool part_remove(shard *s, part *p, slice name) {
    element *x = part_element(p, s, name);
    if (x == NULL) return false;
    if (p->index != NULL) (void)nodedb_vamana_remove(p->index, x->id, NULL);
    element_remove(s, p, x);
    return true;
}

static void forget_searcher(shard *s, const part *p) {
    size_t i;
    for (i = 0; i < SEARCHERS; i++) {
        if (s->searchers[i].of != p) continue;
        nodedb_vamana_searcher_destroy(s->searchers[i].searcher);
        s->searchers[i] = (searcher_place){0};
    }
}

void part_drop(shard *s, part *p) {
    dictionary_remove(&s->parts, p);
    forget_searcher(s, p);
    dictionary_free(&p->by_id);
    retire_part(s, &p->elements, p->index);
    data_free(s, p);
}

void part_free_now(shard *s, part *p) {
    part_drop(s, p);
    while (retire_some(s, RETIRE_BATCH)) {}
}

/* One part after the other, in the order of their hashes. */
void maintain_parts(shard *s) {
    void *items[DICTIONARY_SEGMENT];
    size_t n;
    if (s->parts.count == 0) return;
    if (s->part_cursor >= DICTIONARY_END) s->part_cursor = 0;
    n = dictionary_page(&s->parts, &s->part_cursor, items, DICTIONARY_SEGMENT);
    if (n > 1) s->part_cursor = (uint64_t)part_hash(items[0]) + 1;
    if (n > 0 && ((part *)items[0])->index != NULL) (void)nodedb_vamana_maintain(((part *)items[0])->index, 16);
}

void apply_add(shard *s, const change *c, result *r) {
    part *p = part_find(s, c->u.add.set_id);
    float *vector = must(malloc(c->u.add.dim * sizeof *vector));
    bool is_new = false;
    nodedb_error err;
    floats_decode(c->u.add.vector, vector);
    if (p == NULL) p = part_new(s, c->u.add.set_id, c->u.add.dim, c->u.add.metric);
    if (part_add(s, p, c->key, vector, &is_new, &err) != NODEDB_OK) {
        if (r != NULL) result_error(r, "ERR %s", err.message);
    } else if (r != NULL) r->kind = RESULT_BOOL, r->number = is_new;
    free(vector);
}

void apply_remove(shard *s, const change *c, result *r) {
    part *p = part_find(s, c->u.set_id);
    bool was_there = p != NULL && part_remove(s, p, c->key);
    if (r != NULL) r->kind = RESULT_BOOL, r->number = was_there;
}

/* ---- questions to a part ----------------------------------------------------------------------------------------- */

void read_vector(shard *s, const operation *op, result *r) {
    part *p = part_find(s, op->u.vector.set_id);
    const element *x = p == NULL ? NULL : part_element(p, s, op->element);
    size_t bytes = p == NULL ? 0 : p->dim * sizeof(float);
    r->kind = op->kind == OP_ISMEMBER ? RESULT_BOOL : x == NULL ? RESULT_NULL : RESULT_DATA;
    r->number = x != NULL;
    if (r->kind != RESULT_DATA) return;
    if (part_vector(p, x, (float *)(void *)buffer_room(&r->bytes, bytes))) r->bytes.len += bytes;
    else result_error(r, "ERR the vector cannot be read");
}

/* As the index measures: see nodedb_vamana_metric. */
static float flat_distance(uint32_t metric, const float *a, const float *b, uint32_t dim) {
    double product = 0, square = 0, aa = 0, bb = 0;
    uint32_t i;
    for (i = 0; i < dim; i++) {
        double x = a[i], y = b[i];
        product += x * y, square += (x - y) * (x - y), aa += x * x, bb += y * y;
    }
    if (metric == NODEDB_VAMANA_L2) return (float)square;
    if (metric == NODEDB_VAMANA_IP) return (float)-product;
    return (float)(aa == 0 || bb == 0 ? 1 : 1 - product / sqrt(aa * bb));
}

typedef struct candidate {
    float distance;
    const element *element;
} candidate;

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return (x->distance > y->distance) - (x->distance < y->distance);
}

static void put_element(result *r, float distance, const element *x) {
    bool named = r->bytes.len + x->name_bytes <= INLINE_BYTES;
    search_hit hit = {distance, named ? x->name_bytes : NO_NAME, x->id};
    buffer_put(&r->bytes, &hit, sizeof hit);
    if (named) buffer_put(&r->bytes, x->name, x->name_bytes);
}

void read_name(shard *s, const operation *op, result *r) {
    part *p = part_find(s, op->u.name.set_id);
    uint64_t id = op->u.name.id, cursor = 0;
    const element *x = NULL;
    void *items[DICTIONARY_SEGMENT];
    if (p != NULL && p->index != NULL) x = dictionary_find(&p->by_id, hash_of_number(id), &id, sizeof id);
    while (p != NULL && p->index == NULL && x == NULL && cursor < DICTIONARY_END) {
        size_t n = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT), i;
        for (i = 0; i < n; i++)
            if (((const element *)items[i])->id == id) x = items[i];
    }
    r->kind = x != NULL ? RESULT_BULK : RESULT_NULL;
    if (x == NULL) return;
    r->number = x->name_bytes;
    buffer_put(&r->bytes, x->name, x->name_bytes);
}

static void search_flat(const part *p, const operation *op, result *r) {
    candidate all[DICTIONARY_SEGMENT];
    void *items[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    size_t n = 0, i;
    while (cursor < DICTIONARY_END) {
        size_t page = dictionary_page(&p->elements, &cursor, items, DICTIONARY_SEGMENT);
        for (i = 0; i < page && n < FLAT_ELEMENTS; i++, n++) {
            const element *x = items[i];
            all[n] = (candidate){flat_distance(p->metric, op->u.search.vector, x->vector, p->dim), x};
        }
    }
    qsort(all, n, sizeof *all, compare_candidates);
    for (i = 0; i < n && i < op->u.search.k; i++) put_element(r, all[i].distance, all[i].element);
}

/* A searcher over the part's index: one of a few, the longest unused makes room. NULL: err says why. */
static nodedb_vamana_searcher *searcher_for(shard *s, part *p, nodedb_error *err) {
    searcher_place *place = &s->searchers[0];
    size_t i;
    for (i = 0; i < SEARCHERS; i++) {
        if (s->searchers[i].of == p) {
            place = &s->searchers[i];
            break;
        }
        if (s->searchers[i].used < place->used) place = &s->searchers[i];
    }
    if (place->of != p) {
        nodedb_vamana_searcher_destroy(place->searcher);
        *place = (searcher_place){0};
        place->searcher = nodedb_vamana_searcher_create(p->index, NULL, err);
        if (place->searcher != NULL) place->of = p;
    }
    place->used = ++s->searches;
    return place->searcher;
}

void read_search(shard *s, const operation *op, result *r) {
    part *p = part_find(s, op->u.search.set_id);
    nodedb_vamana_query query = {.vector = op->u.search.vector, .k = op->u.search.k, .beam = op->u.search.beam};
    nodedb_vamana_searcher *searcher;
    nodedb_vamana_result *results;
    uint32_t n = 0, i;
    nodedb_error err;
    nodedb_status status;
    r->kind = RESULT_DATA;
    if (p == NULL || p->elements.count == 0) return;
    if (p->index == NULL) {
        search_flat(p, op, r);
        return;
    }
    if (query.k > p->elements.count) query.k = (uint32_t)p->elements.count;
    if (query.beam > p->elements.count) query.beam = (uint32_t)p->elements.count;
    if (query.beam > MAX_BEAM) query.beam = MAX_BEAM;
    if (query.k > MAX_BEAM) {
        result_error(r, "ERR one answer has at most %u elements", MAX_BEAM);
        return;
    }
    searcher = searcher_for(s, p, &err);
    results = must(malloc(query.k * sizeof *results));
    if (searcher == NULL) status = err.status;
    else if (op->u.search.truth) status = nodedb_vamana_scan(searcher, &query, results, &n, NULL, &err);
    else status = nodedb_vamana_search(searcher, &query, results, &n, NULL, &err);
    if (status != NODEDB_OK) result_error(r, "ERR %s", err.message);
    for (i = 0; i < n && status == NODEDB_OK; i++) {
        uint64_t id = results[i].id;
        const element *x = dictionary_find(&p->by_id, hash_of_number(id), &id, sizeof id);
        if (x != NULL) put_element(r, results[i].distance, x);
    }
    free(results);
}

/* ---- the home ---------------------------------------------------------------------------------------------------- */

set_home *home_new(shard *s, uint64_t set_id, uint32_t dim, uint32_t metric) {
    set_home *h = data_alloc(s, sizeof *h);
    *h = (set_home){.set_id = set_id, .dim = dim, .metric = metric, .state = SET_LIVE};
    return h;
}

void home_retire(shard *s, set_home *h) {
    h->next = s->dropping;
    s->dropping = h;
}

/* A part may receive the end of its set late. That is safe, because ids of sets are never used again. */
bool notify_parts_some(core *c) {
    shard *s = c->shard;
    int told;
    for (told = 0; told < 16 && s->dropping != NULL; told++) {
        set_home *h = s->dropping;
        uint32_t to;
        s->dropping = h->next;
        for (to = 0; to < c->server->cores; to++) {
            operation *op = operation_new(c, NULL, OP_CHANGE);
            op->stage = STAGE_PART;
            op->change.kind = CHANGE_DROP;
            op->change.u.set_id = h->set_id;
            operation_send(c, op, to);
        }
        data_free(s, h);
    }
    return s->dropping != NULL;
}

static bool is_add(const operation *op) { return op->kind == OP_CHANGE && op->change.kind == CHANGE_ADD; }

static void create_set(core *c, operation *op) { /* ABSENT -> CREATING */
    if (getrandom(&op->set_id, sizeof op->set_id, 0) != (ssize_t)sizeof op->set_id)
        op->set_id = nodedb_mix64(nodedb_now_ns(NULL) ^ (uintptr_t)op);
    op->creating = true;
    operation_log(c, op);
}

void home_arrival(core *c, operation *op) {
    bool is_there = entry_live(c->shard, op->key) != NULL;
    if (home_is_quiet(c, op->key)) home_step(c, op);
    else if (is_add(op) && !set_will_exist(c, op->key, is_there)) create_set(c, op); /* queued in log order */
    else operation_log(c, op); /* queued behind the records under way */
}

static void to_part(core *c, operation *op, set_home *h) { /* LIVE -> LIVE */
    assert(h->state == SET_LIVE);
    op->stage = STAGE_PART;
    op->set_id = h->set_id;
    if (op->kind != OP_CHANGE) op->u.vector.set_id = h->set_id;
    else if (op->change.kind == CHANGE_REMOVE) op->change.u.set_id = h->set_id;
    else op->change.u.add.set_id = h->set_id, op->change.u.add.metric = h->metric;
    if (op->kind == OP_CHANGE) {
        op->counted = true;
        h->pending++;
    }
    operation_send(c, op, core_of_element(c->server, h->set_id, op->element));
}

static set_home *home_of(core *c, const operation *op) {
    entry *e = entry_find(c->shard, op->key);
    return e != NULL && e->kind == ENTRY_SET && e->u.home->set_id == op->set_id ? e->u.home : NULL;
}

/* LIVE -> ENDING, if no element is left and no operation is pending. Operations that are queued before this one run
 * first, so that their records precede the END. */
static void end_if_empty(core *c, operation *op) {
    set_home *h = home_of(c, op);
    op->emptied = false;
    if (h == NULL || h->count > 0 || h->pending > 0) operation_finish(c, op);
    else if (h->state != SET_LIVE || home_has_waiters(c, op->key)) { /* ENDING: behind the END */
        op->emptied = true;
        op->stage = STAGE_HOME;
        operation_log(c, op); /* queued */
    } else {
        h->state = SET_ENDING;
        op->ending = true;
        op->stage = STAGE_SHARD;
        op->change = (change){.kind = CHANGE_END, .key = op->key, .u.set_id = h->set_id};
        operation_log(c, op);
    }
}

void home_step(core *c, operation *op) {
    entry *e = entry_live(c->shard, op->key);
    bool add = is_add(op);
    set_home *h = e != NULL && e->kind == ENTRY_SET ? e->u.home : NULL;
    if (op->emptied) end_if_empty(c, op);
    else if (e != NULL && h == NULL) operation_fail(c, op, "%s", wrong_type);
    else if (h == NULL && add) create_set(c, op);
    else if (h == NULL) {
        op->result.kind = op->kind == OP_VECTOR ? RESULT_NULL : RESULT_BOOL;
        op->result.number = 0;
        operation_finish(c, op);
    } else if (add && op->change.u.add.dim != h->dim)
        operation_fail(c, op, "ERR Vector dimension mismatch - got %u but set has %u", op->change.u.add.dim, h->dim);
    else if (add && op->same_metric && op->change.u.add.metric != h->metric)
        operation_fail(c, op, "ERR the set has another XDISTANCE_METRIC");
    else to_part(c, op, h);
}

void home_answer(core *c, operation *op) {
    set_home *h = home_of(c, op);
    op->counted = false;
    if (h == NULL) { /* the set has ended meanwhile */
        operation_finish(c, op);
        return;
    }
    assert(h->pending > 0);
    h->pending--;
    if (op->result.kind == RESULT_BOOL && op->result.number == 1) {
        if (op->change.kind == CHANGE_ADD) h->count++;
        else h->count--;
    }
    end_if_empty(c, op);
}

void home_not_ended(core *c, const operation *op) {
    set_home *h = home_of(c, op);
    if (h != NULL) h->state = SET_LIVE;
}
