/* bench_vamana --hard: hard kinds of vectors (tests/hard_kinds.h), and indexes that got them in different ways. This is
 * a part of bench_vamana.c, which includes it and describes the options and the rows. */
#ifndef NODEDB_BENCH_VAMANA_HARD_H
#define NODEDB_BENCH_VAMANA_HARD_H

/* How an index came to hold its vectors. */
typedef enum how {
    HOW_INSERT,   /* one by one */
    HOW_BUILD,    /* by a batch build of --threads */
    HOW_REPLACED, /* one by one; then each id got another vector of the same kind, the oldest first */
    HOW_HALVED,   /* one by one; then the older half was removed */
    HOW_COUNT
} how;
static const char *const how_names[HOW_COUNT] = {"insert", "build", "replaced", "halved"};

/* What a run with --hard measures. */
typedef struct hard_run {
    int argc;
    char **argv;
    uint32_t n, dim, query_count;
    uint64_t seed;
    const char *kinds, *hows;       /* lists, with commas */
    uint32_t beams[WIDTHS_MAX + 1]; /* ends with 0 */
} hard_run;

/* ---- the data ---------------------------------------------------------------------------------------------------- */

/* True if `word` is in a list with commas. */
static bool listed(const char *list, const char *word) {
    size_t length = strlen(word);
    for (; list != NULL; list = strchr(list, ',') != NULL ? strchr(list, ',') + 1 : NULL)
        if (strncmp(list, word, length) == 0 && (list[length] == ',' || list[length] == '\0')) return true;
    return false;
}

static hard_set make_set(const hard_run *r, const hard_kind *kind, uint32_t generation) {
    hard_set set = hard_make(kind, r->n, r->dim, r->query_count, r->seed, generation);
    if (set.base == NULL) die("cannot make", kind->name);
    return set;
}

static hard_truth truth_of(const hard_set *set, uint32_t first) {
    hard_truth truth = hard_truth_of(set, first);
    if (truth.ids == NULL) die("no memory for the truth of", set->kind->name);
    return truth;
}

/* The set as the rest of this benchmark takes it; it borrows set and truth. */
static data_set data_of(const hard_set *set, const hard_truth *truth) {
    data_set d;
    memset(&d, 0, sizeof d);
    d.n = set->n, d.dim = set->dim, d.query_count = set->query_count, d.truth_k = K;
    d.base[NODEDB_VAMANA_F32] = (uint8_t *)set->base, d.queries[NODEDB_VAMANA_F32] = (uint8_t *)set->queries;
    d.hard = truth;
    return d;
}

/* A copy of `n` rows, each divided by its length. Rows of zeros stay as they are. */
static uint8_t *normalized(const float *rows, const double *lengths, size_t n, uint32_t dim) {
    float *copy = (float *)malloc(n * dim * sizeof *copy);
    size_t i;
    if (copy == NULL) die("no memory for", "vectors of length 1");
    for (i = 0; i < n * dim; i++) copy[i] = lengths[i / dim] > 0 ? (float)(rows[i] / lengths[i / dim]) : 0;
    return (uint8_t *)copy;
}

/* ---- the indexes ------------------------------------------------------------------------------------------------- */

static void insert_rows(nodedb_vamana *index, const data_set *d) {
    nodedb_error err;
    uint32_t i;
    for (i = 0; i < d->n; i++)
        if (nodedb_vamana_insert(index, i, base_row(d, NODEDB_VAMANA_F32, i), &err) != NODEDB_OK)
            die("insert:", err.message);
}

static void remove_rows(nodedb_vamana *index, uint32_t n) {
    nodedb_error err;
    uint32_t i;
    for (i = 0; i < n; i++)
        if (nodedb_vamana_remove(index, i, &err) != NODEDB_OK) die("remove:", err.message);
}

/* An index that holds `d`. What is replaced or removed on the way comes from `first`. `seconds` is what the last step
 * took: the one that gives the way its name. */
static nodedb_vamana *make_index(const hard_run *r, how way, const data_set *first, const data_set *d,
                                 double *seconds) {
    nodedb_vamana_config c = config_for(d, NODEDB_VAMANA_F32, r->argc, r->argv);
    nodedb_vamana *index;
    nodedb_error err;
    uint64_t begin;
    c.metric = (nodedb_vamana_metric)d->hard->set->metric;
    index = nodedb_vamana_create(&c, &err);
    if (index == NULL) die("create:", err.message);
    if (way == HOW_REPLACED || way == HOW_HALVED) insert_rows(index, first);
    begin = bench_now_ns();
    if (way == HOW_INSERT || way == HOW_REPLACED) insert_rows(index, d);
    else if (way == HOW_HALVED) remove_rows(index, d->hard->first);
    else if (nodedb_vamana_build(index, NULL, d->base[NODEDB_VAMANA_F32], d->n, threads_of(r->argc, r->argv), NULL,
                                 NULL, &err) != NODEDB_OK)
        die("build:", err.message);
    *seconds = seconds_since(begin);
    return index;
}

/* ---- the rows ---------------------------------------------------------------------------------------------------- */

static void index_rows(const nodedb_vamana *index, const char *name, double seconds) {
    nodedb_vamana_info info;
    nodedb_vamana_inspect(index, &info);
    put_row(name, "seconds", seconds, "s");
    put_row(name, "code_bits", info.code_bits, "bits");
#if NODEDB_VAMANA_FORMAT_VERSION >= 4
    put_row(name, "unreachable", (double)info.unreachable, "vectors");
#endif
}

/* The index on its codes, and the graph alone: nobody times that. */
static void way_rows(const hard_run *r, how way, const data_set *first, const data_set *d) {
    subject codes, exact;
    nodedb_vamana *index;
    double seconds;
    char name[48];
    uint32_t i;
    (void)snprintf(name, sizeof name, "hard/%s/how=%s", d->hard->set->kind->name, how_names[way]);
    if (!wanted(name)) return;
    index = make_index(r, way, first, d, &seconds);
    index_rows(index, name, seconds);
    codes = make_subject(d, NODEDB_VAMANA_F32, name);
    (void)snprintf(name + strlen(name), sizeof name - strlen(name), "/exact-walk");
    exact = make_subject(d, NODEDB_VAMANA_F32, name);
    exact.exact_walk = true;
    give_searchers(&codes, index), give_searchers(&exact, index);
    count(&codes, r->beams, false), count(&exact, r->beams, false);
    measure(&codes, 1);
    for (i = 0; i < exact.point_count; i++) counted_rows(&exact, &exact.points[i]);
    take_searchers(&codes), take_searchers(&exact);
    nodedb_vamana_destroy(index);
}

/* hnswlib, into which they were inserted one by one. */
static void peer_rows(const hard_run *r, const data_set *d) {
    const hard_set *set = d->hard->set;
    bool cosine = set->metric == HARD_COSINE;
    data_set given = *d; /* to hnswlib */
    subject s;
    peer_hnswlib *peer;
    uint64_t begin;
    char name[48];
    (void)snprintf(name, sizeof name, "hnswlib/hard/%s/how=insert", set->kind->name);
    if (!wanted(name)) return;
    peer = peer_hnswlib_create(d->dim, d->n, (peer_metric)set->metric);
    if (peer == NULL) return;
    if (cosine) {
        given.base[NODEDB_VAMANA_F32] = normalized(set->base, set->base_lengths, set->n, set->dim);
        given.queries[NODEDB_VAMANA_F32] = normalized(set->queries, set->query_lengths, set->query_count, set->dim);
    }
    begin = bench_now_ns();
    if (!peer_hnswlib_add(peer, (const float *)(const void *)given.base[NODEDB_VAMANA_F32], d->n, 1))
        die("hnswlib failed to", "insert");
    put_row(name, "seconds", seconds_since(begin), "s");
    s = make_subject(&given, NODEDB_VAMANA_F32, name);
    s.width_name = "ef", s.peer = peer;
    count(&s, r->beams, false);
    measure(&s, 1);
    peer_hnswlib_destroy(peer);
    if (cosine) free(given.base[NODEDB_VAMANA_F32]), free(given.queries[NODEDB_VAMANA_F32]);
}

static void kind_rows(const hard_run *r, const hard_kind *kind) {
    hard_set set = make_set(r, kind, 0);
    hard_truth truth = truth_of(&set, 0);
    data_set d = data_of(&set, &truth);
    if (listed(r->hows, how_names[HOW_INSERT])) way_rows(r, HOW_INSERT, NULL, &d), peer_rows(r, &d);
    if (listed(r->hows, how_names[HOW_BUILD])) way_rows(r, HOW_BUILD, NULL, &d);
    if (listed(r->hows, how_names[HOW_REPLACED])) {
        hard_set other_set = make_set(r, kind, 1);
        hard_truth other_truth = truth_of(&other_set, 0);
        data_set other = data_of(&other_set, &other_truth);
        way_rows(r, HOW_REPLACED, &d, &other);
        hard_truth_free(&other_truth), hard_free(&other_set);
    }
    if (listed(r->hows, how_names[HOW_HALVED])) {
        hard_truth younger_truth = truth_of(&set, set.n / 2);
        data_set younger = data_of(&set, &younger_truth);
        way_rows(r, HOW_HALVED, &d, &younger);
        hard_truth_free(&younger_truth);
    }
    hard_truth_free(&truth), hard_free(&set);
}

/* ---- a set in files ---------------------------------------------------------------------------------------------- */

/* Writes PREFIX SUFFIX in the format that load() reads: a header, then one or two tables, n rows of `width` numbers
 * of 4 bytes. `second` may be NULL. */
static void write_tables(const char *prefix, const char *suffix, uint32_t n, uint32_t width, const void *first,
                         const void *second) {
    size_t count = (size_t)n * width;
    char path[PATH_BYTES];
    uint8_t header[8];
    FILE *file;
    if ((size_t)snprintf(path, sizeof path, "%s%s", prefix, suffix) >= sizeof path) die("this is too long:", prefix);
    nodedb_put_u32(header, n), nodedb_put_u32(header + 4, width);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(header, 1, sizeof header, file) != sizeof header ||
        fwrite(first, 4, count, file) != count || (second != NULL && fwrite(second, 4, count, file) != count))
        die("cannot write", path);
    if (fclose(file) != 0) die("cannot write", path);
}

/* Writes a kind's vectors, queries and truth to files, so that other programs measure the same, and prints its metric,
 * which the files do not tell. */
static void write_kind(const hard_run *r, const hard_kind *kind, const char *prefix) {
    static const char *const metric_names[] = {"l2", "ip", "cosine"}; /* by hard_metric */
    hard_set set = make_set(r, kind, 0);
    hard_truth truth = truth_of(&set, 0);
    size_t count = (size_t)set.query_count * truth.k, i;
    float *distances = (float *)malloc(count * sizeof *distances);
    if (distances == NULL) die("no memory for the truth of", kind->name);
    for (i = 0; i < count; i++) distances[i] = (float)truth.distances[i];
    write_tables(prefix, ".base.fbin", set.n, set.dim, set.base, NULL);
    write_tables(prefix, ".query.fbin", set.query_count, set.dim, set.queries, NULL);
    write_tables(prefix, ".gt", set.query_count, truth.k, truth.ids, distances);
    printf("%s\n", metric_names[set.metric]);
    free(distances), hard_truth_free(&truth), hard_free(&set);
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static uint32_t number_option(const hard_run *r, const char *option, const char *otherwise) {
    return (uint32_t)strtoul(bench_option(r->argc, r->argv, option, otherwise), NULL, 10);
}

/* Refuses words that mean nothing, and reads the beams. */
static void check_lists(hard_run *r) {
    const char *at = bench_option(r->argc, r->argv, "--beams", "10,64,256");
    char word[32];
    uint32_t count = 0;
    int length, i;
    for (; *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        unsigned long beam = strtoul(at, NULL, 10);
        if (beam < 1 || beam > NODEDB_VAMANA_MAX_BEAM || count == WIDTHS_MAX) die("--beams: up to 10 widths, not", at);
        r->beams[count++] = (uint32_t)beam;
    }
    for (at = r->hows; *at != '\0'; at += length, at += *at == ',') {
        bool known = false;
        length = (int)strcspn(at, ",");
        (void)snprintf(word, sizeof word, "%.*s", length, at);
        for (i = 0; i < HOW_COUNT; i++) known = known || strcmp(word, how_names[i]) == 0;
        if (!known) die("--how is a list of insert, build, replaced and halved, not", word);
    }
    for (at = r->kinds; *at != '\0'; at += length, at += *at == ',') {
        length = (int)strcspn(at, ",");
        (void)snprintf(word, sizeof word, "%.*s", length, at);
        if (strcmp(word, "all") != 0 && strcmp(word, "all+") != 0 && hard_kind_named(word) == NULL)
            die("--kind is all, all+ or a list of kinds, which are in tests/hard_kinds.h, not", word);
    }
}

static void hard_rows(int argc, char **argv) {
    const char *write_to = bench_option(argc, argv, "--write", NULL);
    hard_run r;
    int i;
    memset(&r, 0, sizeof r);
    r.argc = argc, r.argv = argv;
    r.n = number_option(&r, "--n", quick ? "2000" : "20000");
    r.dim = number_option(&r, "--dim", "128");
    r.query_count = number_option(&r, "--queries", quick ? "100" : "500");
    r.seed = strtoull(bench_option(argc, argv, "--seed", "1"), NULL, 10);
    r.kinds = bench_option(argc, argv, "--kind", "all");
    r.hows = bench_option(argc, argv, "--how", "insert,build,replaced,halved");
    check_lists(&r);
    if (r.n < HARD_N_MIN || r.dim < HARD_DIM_MIN || r.query_count < 1)
        die("--n, --dim and --queries are at least", "20, 4 and 1");
    if (write_to != NULL) {
        if (hard_kind_named(r.kinds) == NULL) die("--write takes one --kind, not", r.kinds);
        write_kind(&r, hard_kind_named(r.kinds), write_to);
        return;
    }
    for (i = 0; i < HARD_KIND_COUNT; i++) {
        const hard_kind *kind = &hard_kinds[i];
        if (listed(r.kinds, "all+") || (listed(r.kinds, "all") && !kind->extra) || listed(r.kinds, kind->name))
            kind_rows(&r, kind);
    }
}

#endif
