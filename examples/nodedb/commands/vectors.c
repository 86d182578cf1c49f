/* vectors.c - commands on vector sets.
 *
 * What changes or reads one element goes to the home of its set, the core of its key, and from there to the part that
 * has the element. VSIM asks the home what the set is, then all parts at once, and merges what they found:
 *
 *     OP_SET_INFO at the home -> (ELE: OP_VECTOR at the element's part) -> OP_SEARCH on every core -> merge */
#include "../db.h"

#define PIECE_FLOATS 256   /* of a long reply in one piece; other work runs between two */
#define NAMES_UNDER_WAY 8 /* names may be long */
#define PIECE_HITS 128
#define PIECE_BYTES (16u << 10)

static const char invalid_vector[] = "ERR invalid vector specification";

/* ---- vectors as arguments ---------------------------------------------------------------------------------------- */

static bool parse_float(slice a, float *value) {
    char copy[64], *end;
    if (a.bytes == 0 || a.bytes >= sizeof copy || isspace((unsigned char)a.p[0])) return false;
    memcpy(copy, a.p, a.bytes);
    copy[a.bytes] = 0;
    *value = strtof(copy, &end);
    return end == copy + a.bytes;
}

/* "FP32 blob" from argv[*i] on. NULL: it is none. */
static float *parse_blob(request *req, int *i, uint32_t *dim) {
    slice blob = req->argv[*i + 1];
    float *vector;
    if (blob.bytes == 0 || blob.bytes % 4 != 0 || blob.bytes / 4 > MAX_DIM) return NULL;
    *dim = blob.bytes / 4;
    vector = must(malloc(*dim * sizeof *vector));
    floats_decode(blob, vector);
    *i += 2;
    return vector;
}

/* "VALUES n v1 ... vn" from argv[*i] on. NULL: it is none. */
static float *parse_values(request *req, int *i, uint32_t *dim) {
    float *vector;
    int64_t n, j;
    if (!parse_int64(req->argv[*i + 1], &n) || n < 1 || n > MAX_DIM || n > req->argc - *i - 2) return NULL;
    vector = must(malloc((size_t)n * sizeof *vector));
    for (j = 0; j < n; j++)
        if (!parse_float(req->argv[*i + 2 + j], &vector[j])) {
            free(vector);
            return NULL;
        }
    *dim = (uint32_t)n;
    *i += 2 + (int)n;
    return vector;
}

/* False: NaN, infinite, or so long that squares of it pass what a float holds. */
static bool vector_is_usable(const float *vector, uint32_t dim) {
    double square = 0;
    uint32_t j;
    for (j = 0; j < dim; j++) square += (double)vector[j] * vector[j];
    return square <= 1e36;
}

/* Either form. The vector is the caller's to free; NULL: the reply says what is wrong. Moves *i behind it. */
static float *parse_vector(request *req, int *i, uint32_t *dim) {
    float *vector = NULL;
    if (*i + 1 < req->argc && is_word(req->argv[*i], "FP32")) vector = parse_blob(req, i, dim);
    else if (*i + 1 < req->argc && is_word(req->argv[*i], "VALUES")) vector = parse_values(req, i, dim);
    if (vector == NULL) {
        (void)request_fail(req, invalid_vector);
        return NULL;
    }
    if (vector_is_usable(vector, *dim)) return vector;
    free(vector);
    reply_error(&req->reply, "%s: a component is not finite or the vector is too long", invalid_vector);
    return NULL;
}

static bool parse_metric(slice a, uint32_t *metric) {
    if (is_word(a, "L2")) *metric = NODEDB_VAMANA_L2;
    else if (is_word(a, "IP")) *metric = NODEDB_VAMANA_IP;
    else if (is_word(a, "COSINE")) *metric = NODEDB_VAMANA_COSINE;
    else return false;
    return true;
}

static bool element_fits(request *req, slice element) {
    return element.bytes <= MAX_KEY_BYTES || request_fail(req, "ERR the element is longer than 65536 bytes");
}

/* ---- one element: VADD, VREM, VEMB, VISMEMBER -------------------------------------------------------------------- */

static bool is_beam(request *req, int i) {
    int64_t n;
    return (is_word(req->argv[i], "EF") || is_word(req->argv[i], "M")) && i + 1 < req->argc &&
           parse_int64(req->argv[i + 1], &n) && n > 0 && n <= MAX_EF;
}

/* The options behind the element. */
static bool parse_vadd_options(request *req, int i, uint32_t *metric, bool *same_metric) {
    for (; i < req->argc; i++) {
        slice a = req->argv[i];
        if (is_word(a, "CAS") || is_word(a, "NOQUANT")) continue; /* both are how it works here anyway */
        if (is_beam(req, i)) i++;
        else if (is_word(a, "XDISTANCE_METRIC") && i + 1 < req->argc && parse_metric(req->argv[i + 1], metric))
            *same_metric = true, i++;
        else if (is_word(a, "Q8") || is_word(a, "BIN") || is_word(a, "SETATTR")) {
            reply_error(&req->reply, "ERR %.*s is not supported", (int)a.bytes, a.p);
            return false;
        } else return request_fail(req, syntax_error);
    }
    return true;
}

/* The change keeps the vector as it is logged; the request holds its bytes. */
static void send_add(core *c, request *req, slice element, const float *vector, change *add, bool same_metric) {
    slice key = req->argv[1];
    operation *op = request_at_home(c, req, OP_CHANGE, key, element);
    uint32_t dim = add->u.add.dim;
    floats_encode(vector, dim, request_state(c, req, (size_t)dim * 4));
    add->u.add.vector = (slice){req->state, dim * 4};
    op->change = *add;
    op->same_metric = same_metric;
    request_send(c, req, op, core_of_key(c->server, key));
}

void run_vadd(core *c, request *req) {
    change add = {.kind = CHANGE_ADD, .u.add.metric = NODEDB_VAMANA_COSINE};
    bool same_metric = false;
    float *vector;
    int i = 2;
    if (!key_fits(req, req->argv[1])) return;
    if (is_word(req->argv[2], "REDUCE")) {
        (void)request_fail(req, "ERR REDUCE is not supported");
        return;
    }
    vector = parse_vector(req, &i, &add.u.add.dim);
    if (vector == NULL) return;
    if (i >= req->argc) reply_wrong_count(req);
    else if (element_fits(req, req->argv[i]) && parse_vadd_options(req, i + 1, &add.u.add.metric, &same_metric)) {
        add.key = req->argv[i];
        send_add(c, req, req->argv[i], vector, &add, same_metric);
    }
    free(vector);
}

/* An operation on the element argv[2] of the set argv[1], made; NULL: the reply says why not. */
static operation *on_element(core *c, request *req, operation_kind kind) {
    slice key = req->argv[1], element = req->argv[2];
    if (!key_fits(req, key) || !element_fits(req, element)) return NULL;
    return request_at_home(c, req, kind, key, element);
}

static void send_home(core *c, request *req, operation *op) {
    if (op != NULL) request_send(c, req, op, core_of_key(c->server, op->key));
}

void run_vrem(core *c, request *req) {
    operation *op = on_element(c, req, OP_CHANGE);
    if (op != NULL) op->change = (change){.kind = CHANGE_REMOVE, .key = op->element};
    send_home(c, req, op);
}

void run_vismember(core *c, request *req) { send_home(c, req, on_element(c, req, OP_ISMEMBER)); }

/* A vector of 32,768 floats takes long to print: piece by piece, as the client fetches it. */
static bool more_vemb(core *c, request *req) {
    const float *vector = req->state;
    int64_t end = req->at + PIECE_FLOATS < req->sum ? req->at + PIECE_FLOATS : req->sum;
    (void)c;
    for (; req->at < end; req->at++) reply_double(&req->reply, req->resp, vector[req->at]);
    return req->at < req->sum;
}

static void answer_vemb(core *c, request *req, operation *op) {
    const buffer *b = &op->result.bytes;
    if (op->result.kind != RESULT_DATA) {
        reply_result(&req->reply, req->resp, &op->result);
        return;
    }
    memcpy(request_state(c, req, b->len), b->p, b->len);
    req->sum = (int64_t)(b->len / sizeof(float)); /* how many there are; req->at of them are in the reply */
    reply_array(&req->reply, req->sum);
    req->more = more_vemb;
}
void run_vemb(core *c, request *req) {
    req->on_answer = answer_vemb;
    send_home(c, req, on_element(c, req, OP_VECTOR));
}

/* ---- the set: VCARD, VDIM ---------------------------------------------------------------------------------------- */

/* What the home knows about the set. False: there is no set, or the reply is an error; then req->failed. */
static bool take_set_info(request *req, const operation *op, set_info *info) {
    if (answer_failed(req, op) || op->result.kind != RESULT_DATA) return false;
    assert(op->result.bytes.len == sizeof *info);
    memcpy(info, op->result.bytes.p, sizeof *info);
    return true;
}

static void answer_vcard(core *c, request *req, operation *op) {
    set_info info;
    (void)c;
    if (take_set_info(req, op, &info)) reply_integer(&req->reply, (int64_t)info.count);
    else if (!req->failed) reply_integer(&req->reply, 0);
}
void run_vcard(core *c, request *req) {
    req->on_answer = answer_vcard;
    read_key(c, req, OP_SET_INFO);
}

static void answer_vdim(core *c, request *req, operation *op) {
    set_info info;
    (void)c;
    if (take_set_info(req, op, &info)) reply_integer(&req->reply, info.dim);
    else if (!req->failed) reply_error(&req->reply, "ERR key does not exist");
}
void run_vdim(core *c, request *req) {
    req->on_answer = answer_vdim;
    read_key(c, req, OP_SET_INFO);
}

/* ---- VSIM -------------------------------------------------------------------------------------------------------- */

typedef struct hit {
    float distance;
    uint32_t bytes;
    uint64_t id;
    const char *name; /* in found.names; NULL: its part is asked for it */
} hit;

/* What one part has found: hits, nearest first, of which those before `at` are in the reply. */
typedef struct found {
    buffer names; /* as the part answered: search_hit and name, one behind the other */
    buffer hits;
    size_t count, at;
} found;

typedef struct search {
    uint32_t k, ef;
    bool by_element, truth, with_scores;
    slice element;
    set_info set;
    found parts[MAX_CORES];
    uint32_t answers; /* parts that have answered */
    uint32_t left;    /* hits that are not in the reply yet */
    bool asking;      /* for names: the reply is made from answers */
    uint32_t dim;
    float vector[];   /* of `dim`; read by the searches */
} search;

/* Nearest first; the name decides between equals, so that the same question has the same answer. */
static int compare_hits(const void *a, const void *b) {
    const hit *x = a, *y = b;
    uint32_t bytes = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    if (x->name == NULL || y->name == NULL) return (x->id > y->id) - (x->id < y->id);
    order = memcmp(x->name, y->name, bytes);
    return order != 0 ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Larger is nearer. COSINE as in Redis: 1 the same direction, 0 the opposite. L2: 1 / (1 + squared distance). IP: the
 * product. */
static double score_of(uint32_t metric, float distance) {
    if (metric == NODEDB_VAMANA_COSINE) return 1.0 - (double)distance / 2;
    if (metric == NODEDB_VAMANA_L2) return 1.0 / (1.0 + (double)distance);
    return -(double)distance;
}

/* The nearest hit that is not in the reply yet, and the core that found it. There is one. */
static const hit *nearest_hit(search *q, uint32_t *at_core) {
    const hit *best = NULL;
    found *of = NULL;
    uint32_t i;
    for (i = 0; i < q->answers; i++) {
        found *f = &q->parts[i];
        const hit *h;
        if (f->at == f->count) continue;
        h = (const hit *)(const void *)f->hits.p + f->at;
        if (best != NULL && compare_hits(best, h) <= 0) continue;
        best = h;
        of = f;
        *at_core = i;
    }
    of->at++;
    return best;
}

static void reply_hit_count(request *req, const search *q, size_t n) {
    if (q->with_scores) reply_map(&req->reply, req->resp, (int64_t)n);
    else reply_array(&req->reply, (int64_t)n);
}

static void reply_hit(request *req, const char *name, size_t bytes, float distance) {
    const search *q = req->state;
    if (name != NULL) reply_bulk(&req->reply, name, bytes);
    else reply_null(&req->reply, req->resp); /* it was removed a moment ago */
    if (q->with_scores) reply_double(&req->reply, req->resp, score_of(q->set.metric, distance));
}

static void answer_name(core *c, request *req, operation *op) {
    const buffer *b = &op->result.bytes;
    (void)c;
    reply_hit(req, op->result.kind == RESULT_BULK ? b->p : NULL, b->len, op->u.name.distance);
}

static void ask_name(core *c, request *req, const hit *h, uint32_t of) {
    search *q = req->state;
    operation *op = request_start(c, req, OP_NAME, req->argv[1]);
    op->u.name.set_id = q->set.set_id;
    op->u.name.id = h->id;
    op->u.name.distance = h->distance;
    q->asking = true;
    req->on_answer = answer_name;
    req->window = NAMES_UNDER_WAY;
    request_send(c, req, op, of);
}

/* Piece by piece, as the client reads it. From the first missing name on all names are fetched, so that the order of
 * the answers is the order of the reply. */
static bool more_hits(core *c, request *req) {
    search *q = req->state;
    size_t begin = req->reply.len;
    uint32_t n, of = 0;
    for (n = 0; n < PIECE_HITS && q->left > 0 && req->reply.len - begin < PIECE_BYTES; n++) {
        const hit *h = nearest_hit(q, &of);
        q->left--;
        if (q->asking || h->name == NULL) {
            ask_name(c, req, h, of);
            return true;
        }
        reply_hit(req, h->name, h->bytes, h->distance);
    }
    return q->left > 0;
}

static void free_found(core *c, request *req) {
    search *q = req->state;
    uint32_t i;
    for (i = 0; i < q->answers; i++) {
        found *f = &q->parts[i];
        request_count(c, req, 0 - f->names.cap - f->hits.cap);
        buffer_free(&f->names);
        buffer_free(&f->hits);
    }
}

/* All parts have answered. If one of them failed, its error is the reply: an incomplete answer is none. */
static void vsim_merge(core *c, request *req) {
    search *q = req->state;
    size_t n = 0;
    uint32_t i;
    for (i = 0; i < q->answers; i++) n += q->parts[i].count;
    q->left = n < q->k ? (uint32_t)n : q->k;
    if (req->failed) {
        free_found(c, req);
        return;
    }
    reply_hit_count(req, q, q->left);
    if (q->left > 0) req->more = more_hits;
    req->at_end = free_found;
}

/* Takes the answer's bytes, and sorts its hits: each part's by itself, so that no step is long. */
static void answer_search(core *c, request *req, operation *op) {
    search *q = req->state;
    found *f = &q->parts[q->answers++];
    buffer *from = &op->result.bytes;
    size_t at;
    if (answer_failed(req, op)) return;
    f->names = *from;
    from->p = NULL, from->len = from->cap = 0;
    buffer_count_at(&f->names, NULL); /* now counted with the request */
    for (at = 0; at < f->names.len; f->count++) {
        search_hit from_part;
        hit h;
        memcpy(&from_part, f->names.p + at, sizeof from_part);
        at += sizeof from_part;
        h = (hit){from_part.distance, from_part.name_bytes, from_part.id, f->names.p + at};
        if (h.bytes == NO_NAME) h.bytes = 0, h.name = NULL;
        at += h.bytes;
        buffer_put(&f->hits, &h, sizeof h);
    }
    request_count(c, req, f->names.cap + f->hits.cap);
    if (f->count > 1) qsort(f->hits.p, f->count, sizeof(hit), compare_hits);
}

static void vsim_search(core *c, request *req) {
    search *q = req->state;
    uint32_t i;
    if (q->dim != q->set.dim) {
        reply_error(&req->reply, "ERR Vector dimension mismatch - got %u but set has %u", q->dim, q->set.dim);
        return;
    }
    req->on_answer = answer_search;
    req->at_end = vsim_merge;
    for (i = 0; i < c->server->cores; i++) {
        operation *op = request_start(c, req, OP_SEARCH, req->argv[1]);
        op->u.search.set_id = q->set.set_id;
        op->u.search.k = q->k;
        op->u.search.beam = q->ef > q->k ? q->ef : q->k;
        op->u.search.truth = q->truth;
        op->u.search.vector = q->vector;
        op->u.search.dim = q->dim;
        request_send(c, req, op, i);
    }
}

static void answer_element_vector(core *c, request *req, operation *op) {
    search *q = req->state;
    const buffer *b = &op->result.bytes;
    if (answer_failed(req, op)) return;
    if (op->result.kind == RESULT_NULL) {
        reply_error(&req->reply, "ERR element not found in set");
        return;
    }
    req->state = q = must(realloc(q, sizeof *q + b->len));
    request_count(c, req, b->len);
    memcpy(q->vector, b->p, b->len);
    q->dim = (uint32_t)(b->len / sizeof *q->vector);
    req->at_end = vsim_search;
}

/* The vector of an element, asked where it is: the home has said which set it is. */
static void vsim_fetch(core *c, request *req) {
    const search *q = req->state;
    operation *op = request_start(c, req, OP_VECTOR, req->argv[1]);
    op->stage = STAGE_PART;
    op->element = q->element;
    op->u.vector.set_id = op->set_id = q->set.set_id;
    op->u.vector.raw = true;
    req->on_answer = answer_element_vector;
    request_send(c, req, op, core_of_element(c->server, q->set.set_id, q->element));
}

static void answer_vsim_info(core *c, request *req, operation *op) {
    search *q = req->state;
    (void)c;
    if (take_set_info(req, op, &q->set)) req->at_end = q->by_element ? vsim_fetch : vsim_search;
    else if (!req->failed) reply_hit_count(req, q, 0);
}

static bool parse_beam(request *req, slice a, uint32_t *beam) {
    int64_t n;
    if (!parse_int64(a, &n) || n < 1 || n > MAX_EF) {
        reply_error(&req->reply, "ERR COUNT and EF must be integers from 1 to %d", MAX_EF);
        return false;
    }
    *beam = (uint32_t)n;
    return true;
}

static bool parse_vsim_options(request *req, int i, search *q) {
    for (; i < req->argc; i++) {
        slice a = req->argv[i];
        if (is_word(a, "WITHSCORES")) q->with_scores = true;
        else if (is_word(a, "TRUTH")) q->truth = true;
        else if (is_word(a, "NOTHREAD")) continue; /* searches run on their shards' cores always */
        else if (is_word(a, "COUNT") && i + 1 < req->argc) {
            if (!parse_beam(req, req->argv[++i], &q->k)) return false;
        } else if (is_word(a, "EF") && i + 1 < req->argc) {
            if (!parse_beam(req, req->argv[++i], &q->ef)) return false;
        } else return request_fail(req, syntax_error);
    }
    return true;
}

void run_vsim(core *c, request *req) {
    float *vector = NULL;
    uint32_t dim = 0;
    search *q;
    int i = 2;
    bool by_element = is_word(req->argv[2], "ELE");
    if (!key_fits(req, req->argv[1])) return;
    if (by_element) {
        if (!element_fits(req, req->argv[3])) return;
        i = 4;
    } else if ((vector = parse_vector(req, &i, &dim)) == NULL) return;
    q = request_state(c, req, sizeof *q + dim * sizeof *vector);
    if (vector != NULL) memcpy(q->vector, vector, dim * sizeof *vector);
    free(vector);
    q->k = 10, q->ef = DEFAULT_EF, q->dim = dim;
    q->by_element = by_element;
    q->element = req->argv[3];
    if (!parse_vsim_options(req, i, q)) return;
    req->on_answer = answer_vsim_info;
    read_key(c, req, OP_SET_INFO);
}
