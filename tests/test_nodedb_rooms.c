/* Tests of three rooms of the database that need no server. The rooms are included as they are; the functions of other
 * rooms that they call stand here.
 *
 *   STAND-INS    counted memory in the place of memory.c
 *   DICTIONARY   items with chosen hashes, against a model; bounds, names
 *   PATTERNS     as in Redis, against a naive matcher; none is slow
 *   RECORDS      changes as bytes: round trips, damage, limits */
#include "../examples/nodedb/dictionary.c"
#include "../examples/nodedb/glob.c"
#include "../examples/nodedb/record.c"
#include "test.h"

/* ===================================================================================================================
 * STAND-INS: counted memory in the place of memory.c
 * ================================================================================================================ */

static size_t live_blocks, live_bytes, allocated_bytes; /* allocated: by all calls since a test set it to 0 */

void *must(void *memory) {
    if (memory == NULL) abort();
    return memory;
}

void *data_alloc(shard *s, size_t bytes) {
    size_t *block = (size_t *)must(malloc(16 + bytes));
    (void)s;
    block[0] = bytes;
    live_blocks++;
    live_bytes += bytes;
    allocated_bytes += bytes;
    memset((char *)block + 16, 0xA5, bytes); /* callers must not rely on zeros */
    return (char *)block + 16;
}

void data_free(shard *s, void *memory) {
    size_t *block = (size_t *)(void *)((char *)memory - 16);
    (void)s;
    if (memory == NULL) return;
    live_blocks--;
    live_bytes -= block[0];
    free(block);
}

/* ===================================================================================================================
 * DICTIONARY: items with chosen hashes, against a model; bounds, names
 * ================================================================================================================ */

typedef struct thing {
    uint32_t hash;
    uint32_t number; /* its name */
    uint32_t met;    /* by a scan */
    bool there, stays;
} thing;

static uint64_t hashes_asked; /* items are moved only by asking for their hashes */
static uint32_t thing_hash(const void *item) {
    hashes_asked++;
    return ((const thing *)item)->hash;
}
static bool thing_is(const void *item, const void *name, size_t bytes) {
    return memcmp(&((const thing *)item)->number, name, bytes) == 0;
}
static const dictionary_kind things = {thing_hash, thing_is};

static dictionary dictionary_of_things(void) {
    dictionary d = {&things, NULL, NULL, 0, 0};
    return d;
}

static thing *find_thing(const dictionary *d, const thing *x) {
    return (thing *)dictionary_find(d, x->hash, &x->number, sizeof x->number);
}

/* What holds between calls: false, and one failed check, if it does not. */
static bool dictionary_holds(const dictionary *d) {
    size_t places = d->directory == NULL ? 0 : (size_t)1 << d->depth, at = 0, i, alive = live_blocks;
    uint64_t count = 0;
    bool good = (d->directory == NULL) == (d->count == 0) && d->depth <= DICTIONARY_MAX_DEPTH;
    while (good && at < places) {
        const dictionary_segment *s = d->directory[at];
        size_t span = (size_t)1 << (d->depth - s->depth);
        uint32_t used = 0, tombstones = 0, place;
        good = at % span == 0 && s->used + s->tombstones <= dictionary_limit(s->capacity);
        for (i = 0; good && i < span; i++) good = d->directory[at + i] == s;
        for (place = 0; good && place < s->capacity; place++) {
            tombstones += s->tags[place] == DICTIONARY_TOMBSTONE;
            used += dictionary_taken(s, place);
            if (dictionary_taken(s, place))
                good = d->directory[dictionary_index(d, ((thing *)dictionary_items(s)[place])->hash)] == s;
        }
        good = good && used == s->used && tombstones == s->tombstones;
        count += used;
        at += span;
        alive--;
    }
    if (d->depth > 0) alive--;
    good = good && count == d->count && alive == 0;
    CHECK(good);
    return good;
}

/* Scans all: ascending, no hash by halves, everything there. */
static bool scan_holds(const dictionary *d) {
    void *page[DICTIONARY_SEGMENT];
    uint64_t cursor = 0, met = 0, last = 0;
    bool good = true;
    while (good && cursor < DICTIONARY_END) {
        uint64_t from = cursor;
        size_t n = dictionary_page(d, &cursor, page, DICTIONARY_SEGMENT), i;
        good = cursor > from;
        for (i = 0; good && i < n; i++) {
            const thing *x = (const thing *)page[i];
            good = x->there && x->hash >= from && x->hash < cursor && (met == 0 || x->hash >= last);
            last = x->hash;
            met++;
        }
    }
    good = good && met == d->count && cursor == DICTIONARY_END;
    CHECK(good);
    return good;
}

typedef uint32_t (*hash_maker)(uint64_t random);
static uint32_t hash_random(uint64_t random) { return (uint32_t)(random >> 32); }
static uint32_t hash_low_bits(uint64_t random) { return (uint32_t)(random >> 32) & 0xFFFu; }
static uint32_t hash_high_bits(uint64_t random) { return (uint32_t)(random >> 32) & 0xFFF00000u; }
static uint32_t hash_few(uint64_t random) { return (uint32_t)(random >> 40) % 40 * UINT32_C(0x04040404); }
static uint32_t hash_one_crowd(uint64_t random) { /* half of them in one range of 4096 hashes */
    return (random & 1) != 0 ? UINT32_C(0x12345000) | (uint32_t)(random >> 52) : (uint32_t)(random >> 32);
}

/* Adds, removes and looks for random things, in phases that grow and phases that shrink. */
static void run_model(hash_maker make, uint32_t n, uint32_t operations) {
    uint64_t random = test_seed, before = live_blocks;
    thing *all = (thing *)must(calloc(n, sizeof *all));
    dictionary d = dictionary_of_things();
    uint32_t i, there = 0, most = 0;
    bool good = true;
    for (i = 0; i < n; i++) {
        all[i].number = i;
        all[i].hash = make(test_random(&random));
    }
    for (i = 0; good && i < operations; i++) {
        thing *x = &all[test_random(&random) % n];
        bool growing = i / (operations / 6) % 2 == 0, add = test_random(&random) % 16 < (growing ? 12u : 3u);
        CHECK(good = (find_thing(&d, x) == (x->there ? x : NULL)));
        if (add && !x->there) dictionary_add(&d, x);
        else if (!add && x->there) dictionary_remove(&d, x);
        else continue;
        there += x->there ? UINT32_MAX : 1u; /* minus one, or plus one */
        x->there = add;
        if (there > most) most = there;
        CHECK(good = good && d.count == there);
        /* whatever the hashes are, the directory is small beside the items */
        CHECK(good = good && (d.depth == 0 || (uint32_t)DICTIONARY_GROW_ITEMS << d.depth <= most));
        if (i % (operations / 40) == 0) good = good && dictionary_holds(&d) && scan_holds(&d);
    }
    good = good && dictionary_holds(&d) && scan_holds(&d);
    for (i = 0; good && i < n; i++) {
        if (!all[i].there) continue;
        dictionary_remove(&d, &all[i]);
        all[i].there = false;
        if (i % (n / 8) == 0) good = dictionary_holds(&d) && scan_holds(&d);
    }
    CHECK_EQ(live_blocks, before);
    CHECK(!good || d.directory == NULL);
    free(all);
}

TEST(dictionary_agrees_with_a_model) {
    run_model(hash_random, 6000, 100000);
    run_model(hash_random, 60, 20000);
    run_model(hash_low_bits, 3000, 60000);
    run_model(hash_high_bits, 3000, 60000);
    run_model(hash_one_crowd, 6000, 60000);
    run_model(hash_few, 300, 20000);
}

TEST(dictionary_holds_ten_thousand_items_of_one_hash) {
    enum { N = 10000 };
    thing *all = (thing *)must(calloc(N, sizeof *all)), neighbour = {UINT32_C(0xABCDEF02), N, 0, true, true};
    void *page[DICTIONARY_SEGMENT];
    dictionary d = dictionary_of_things();
    uint64_t cursor = 0;
    uint32_t i;
    size_t met = 0;
    dictionary_add(&d, &neighbour);
    for (i = 0; i < N; i++) {
        all[i].number = i, all[i].hash = UINT32_C(0xABCDEF01), all[i].there = true;
        dictionary_add(&d, &all[i]);
    }
    CHECK(dictionary_holds(&d));
    CHECK(live_bytes < N * 40);
    for (i = 0; i < N; i += 97) CHECK(find_thing(&d, &all[i]) == &all[i]);
    while (cursor < DICTIONARY_END) met += dictionary_page(&d, &cursor, page, DICTIONARY_SEGMENT);
    CHECK_EQ(met, DICTIONARY_SEGMENT + 1); /* documented: the others of this hash are passed over; only these */
    CHECK(page[0] == &neighbour);
    dictionary_remove(&d, &neighbour);
    for (i = 0; i < N; i++) {
        dictionary_remove(&d, &all[(i * 7919u) % N]);
        if (i % 1000 == 0) CHECK(dictionary_holds(&d));
    }
    CHECK_EQ(live_blocks, 0);
    free(all);
}

/* A segment may be too large for a page, while each hash fits. */
TEST(page_of_a_segment_that_could_not_be_split_has_whole_hashes) {
    enum { N = 2000 };
    thing *all = (thing *)must(calloc(N, sizeof *all));
    dictionary d = dictionary_of_things();
    uint32_t i;
    for (i = 0; i < N; i++) {
        all[i].number = i, all[i].hash = UINT32_C(0x77000000) + i % 10, all[i].there = true;
        dictionary_add(&d, &all[i]);
    }
    CHECK(dictionary_holds(&d));
    CHECK(scan_holds(&d));
    CHECK((DICTIONARY_GROW_ITEMS << d.depth) <= N); /* and not 2^24, which would tell some of these hashes apart */
    dictionary_free(&d);
    CHECK_EQ(live_blocks, 0);
    CHECK_EQ(d.count, 0);
    free(all);
}

/* The segment is split until the items are told apart. Only then some move; and they find back together. */
TEST(segment_whose_items_share_bits_is_split_until_they_separate) {
    enum { N = 300 };
    thing *all = (thing *)must(calloc(N, sizeof *all));
    dictionary d = dictionary_of_things();
    uint64_t random = test_seed;
    uint32_t i;
    for (i = 0; i < N; i++) {
        uint32_t depth = d.depth;
        all[i].number = i, all[i].there = true;
        all[i].hash = UINT32_C(0x80000000) | (uint32_t)(test_random(&random) >> 34); /* 1, 0, and 30 random bits */
        allocated_bytes = 0;
        dictionary_add(&d, &all[i]);
        CHECK(dictionary_holds(&d));
        CHECK(d.depth == depth || (depth == 0 && d.depth == 3));
        CHECK(allocated_bytes <= 2 * 2048 + 2 * 104 + (2 + 4 + 8) * sizeof(void *));
    }
    CHECK_EQ(d.depth, 3);
    while (d.count >= DICTIONARY_MERGE) dictionary_remove(&d, &all[d.count - 1]);
    CHECK(live_blocks <= 2); /* one segment, and a directory for which the items are not few enough */
    while (d.count > 0) dictionary_remove(&d, &all[d.count - 1]);
    CHECK_EQ(live_blocks, 0);
    free(all);
}

static thing *random_things(uint32_t n) {
    thing *all = (thing *)must(calloc(n, sizeof *all));
    uint64_t random = test_seed;
    uint32_t i;
    for (i = 0; i < n; i++) all[i].number = i, all[i].hash = (uint32_t)(test_random(&random) >> 32);
    return all;
}

static uint32_t largest_segment(const dictionary *d) {
    uint32_t most = 0;
    size_t i;
    for (i = 0; i < (size_t)1 << d->depth; i++)
        if (d->directory[i]->capacity > most) most = d->directory[i]->capacity;
    return most;
}

/* Each item of a segment is read three times before a split, plus two half-full segments at a merge, and the item. */
#define HASHES_OF_A_CALL (3 * DICTIONARY_PLACES + 1)

TEST(no_call_moves_more_than_a_segment) {
    uint32_t n = SLOW ? 20000 : 200000, i;
    thing *all = random_things(n);
    dictionary d = dictionary_of_things();
    uint64_t most = 0;
    double sum = 0;
    uint32_t samples = 0, next = 1000;
    for (i = 0; i < n; i++) {
        hashes_asked = 0;
        dictionary_add(&d, &all[i]);
        if (hashes_asked > most) most = hashes_asked;
        if (i < next) continue;
        sum += (double)live_bytes / (double)d.count; /* on average over sizes whose logarithms are equally likely */
        samples++;
        next += next / 50;
    }
    CHECK(most <= HASHES_OF_A_CALL);
    CHECK(sum / samples <= 16);
    CHECK_EQ(largest_segment(&d), DICTIONARY_PLACES);
    CHECK(sizeof(void *) != 8 || sizeof(dictionary_segment) + DICTIONARY_PLACES * 9 == 2048);
    for (i = 0; i < n; i++) {
        uint32_t depth = d.depth;
        hashes_asked = 0;
        dictionary_remove(&d, &all[(uint32_t)((uint64_t)i * 7919 % n)]);
        if (hashes_asked > most) most = hashes_asked;
        CHECK(d.depth == depth || d.count == 0 ||
              (d.depth == depth - 1 && d.count < (uint64_t)DICTIONARY_SHRINK_ITEMS << depth));
        if (d.count >= 1000 && i % 64 == 0) CHECK(live_bytes / d.count <= 80);
        if (d.count % 1000 == 999) CHECK(largest_segment(&d) <= DICTIONARY_PLACES);
        if (d.count == 100) CHECK(d.depth <= 4);
        if (d.count == 4) CHECK(live_bytes <= 200);
    }
    CHECK(most <= HASHES_OF_A_CALL);
    CHECK_EQ(live_blocks, 0);
    free(all);
}

/* Items that come and go must not make segments, or the directory, grow and shrink each time. */
TEST(dictionary_does_not_thrash) {
    uint32_t sizes[] = {7, 8, 14, 15, 28, 29, 55, 56, 57, 112, 113, 196, 197, 392, 3000, 20000}, i, j;
    thing *all = random_things(30000);
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        dictionary d = dictionary_of_things();
        uint32_t n = sizes[i], rounds = 4000;
        for (j = 0; j < n; j++) dictionary_add(&d, &all[j]);
        hashes_asked = 0;
        for (j = 0; j < rounds; j++) { /* always new ones, so that tombstones form */
            dictionary_remove(&d, &all[j]);
            dictionary_add(&d, &all[j + n]);
        }
        CHECK(hashes_asked / rounds <= 8);
        for (j = 0; j < 20; j++) { /* to and fro at one size */
            dictionary_remove(&d, &all[rounds]);
            dictionary_add(&d, &all[rounds]);
        }
        hashes_asked = 0;
        for (j = 0; j < 1000; j++) {
            dictionary_remove(&d, &all[rounds]);
            dictionary_add(&d, &all[rounds]);
        }
        CHECK(hashes_asked / 1000 <= 8);
        dictionary_free(&d);
    }
    CHECK_EQ(live_blocks, 0);
    free(all);
}

TEST(scan_meets_once_all_that_stays) {
    uint32_t n = 60000, i, low = 0, high = 0, round;
    thing *all = random_things(n);
    for (round = 0; round < 2; round++) { /* while it grows from 300 to 50,000; while it shrinks back */
        dictionary d = dictionary_of_things();
        void *page[DICTIONARY_SEGMENT];
        uint64_t cursor = 0;
        uint32_t missed = 0, twice = 0;
        for (i = 0; i < n; i++) all[i].met = 0, all[i].stays = i < 300;
        for (i = 0; i < (round == 0 ? 300 : n); i++) dictionary_add(&d, &all[i]);
        low = 300, high = round == 0 ? 300 : n;
        while (cursor < DICTIONARY_END) {
            size_t count = dictionary_page(&d, &cursor, page, DICTIONARY_SEGMENT), k;
            for (k = 0; k < count; k++) ((thing *)page[k])->met++;
            for (k = 0; k < 3000 && round == 0 && high < n; k++) dictionary_add(&d, &all[high++]);
            for (k = 0; k < 400 && round == 1 && low < high; k++) dictionary_remove(&d, &all[low++]);
        }
        for (i = 0; i < 300; i++) missed += all[i].met == 0, twice += all[i].met > 1;
        CHECK_EQ(missed, 0);
        CHECK_EQ(twice, 0);
        CHECK(round == 0 ? high > 20000 : low > 20000);
        CHECK(dictionary_holds(&d));
        dictionary_free(&d);
    }
    CHECK_EQ(live_blocks, 0);
    free(all);
}

/* How a set that was dropped is freed: page by page from the beginning. */
TEST(removing_in_the_order_of_hashes_meets_few_empty_pages) {
    uint32_t n = SLOW ? 10000 : 100000, i;
    thing *all = random_things(n);
    dictionary d = dictionary_of_things();
    size_t pages = 0;
    for (i = 0; i < n; i++) dictionary_add(&d, &all[i]);
    while (d.count > 0) {
        void *page[DICTIONARY_SEGMENT];
        uint64_t cursor = 0;
        size_t count = 0, k;
        while (count == 0) {
            count = dictionary_page(&d, &cursor, page, DICTIONARY_SEGMENT);
            pages++;
        }
        for (k = 0; k < count; k++) dictionary_remove(&d, page[k]);
    }
    CHECK(pages < n / 10);
    CHECK_EQ(live_blocks, 0);
    free(all);
}

TEST(small_dictionary_is_one_small_block) {
    thing *all = random_things(8);
    dictionary d = dictionary_of_things();
    void *page[DICTIONARY_SEGMENT];
    uint64_t cursor = 0;
    uint32_t i;
    CHECK(find_thing(&d, &all[0]) == NULL);
    CHECK_EQ(dictionary_page(&d, &cursor, page, DICTIONARY_SEGMENT), 0);
    CHECK_EQ(cursor, DICTIONARY_END);
    dictionary_free(&d);
    for (i = 0; i < 7; i++) dictionary_add(&d, &all[i]);
    CHECK_EQ(live_blocks, 1);
    CHECK(live_bytes <= 104);
    while (d.count > 0) dictionary_remove(&d, &all[d.count - 1]);
    CHECK_EQ(live_blocks, 0);
    CHECK(d.directory == NULL);
    free(all);
}

TEST(names_are_hashed_by_siphash_1_3_with_the_seed) {
    /* Of the bytes 0, 1, 2, ... with a key of zeros, by Python 3.11: PYTHONHASHSEED=0, hash(bytes(range(n))). */
    static const struct { size_t bytes; uint64_t hash; } known[] = {
        {1, UINT64_C(0x68A914128E01E473)},  {4, UINT64_C(0x7CC43F98813E4DBD)},  {7, UINT64_C(0x2F098AB0C751325A)},
        {8, UINT64_C(0xEAD411E67EBE2EEA)},  {15, UINT64_C(0xF30EB725BB91C9EA)}, {16, UINT64_C(0x8972188433A5C5B7)},
        {63, UINT64_C(0x385D3E39E5F37359)}};
    static shard a, b; /* large */
    unsigned char bytes[64];
    size_t i;
    for (i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)i;
    for (i = 0; i < sizeof known / sizeof known[0]; i++)
        CHECK(dictionary_siphash(0, 0, bytes, known[i].bytes) == known[i].hash);
    b.seed = 1;
    CHECK(name_hash(&a, "name", 4) == name_hash(&a, "name", 4));
    CHECK(name_hash(&a, "name", 4) != name_hash(&b, "name", 4));
    CHECK(name_hash(&a, "", 0) != name_hash(&b, "", 0));
}

/* ===================================================================================================================
 * PATTERNS: as in Redis, against a naive matcher; none is slow
 * ================================================================================================================ */

static slice slice_of(const char *text) {
    slice s = {text, (uint32_t)strlen(text)};
    return s;
}

static bool matches(const char *pattern, const char *text) {
    glob_pattern *g = glob_compile(slice_of(pattern));
    bool match = g != NULL && glob_match(g, slice_of(text));
    CHECK(g != NULL);
    glob_free(g);
    return match;
}

TEST(patterns_mean_what_they_mean_in_redis) {
    static const struct { const char *pattern, *yes, *no; } cases[] = {
        {"", "", "a"}, {"*", "", NULL}, {"**", "", NULL}, {"*", "anything", NULL}, {"abc", "abc", "abcd"},
        {"abc", "abc", "ab"}, {"a?c", "a*c", "ac"}, {"a*", "a", "ba"}, {"*a", "ba", "ab"}, {"a*b*c", "a-b-c", "a-c-b"},
        {"a***b", "ab", "a"}, {"*ab*ab*", "abab", "aba"}, {"a*a", "aa", "a"}, {"??*??", "abcd", "abc"},
        {"[abc]x", "bx", "dx"}, {"[a-c]x", "bx", "dx"}, {"[c-a]x", "bx", "dx"}, {"[^a-c]x", "dx", "bx"},
        {"[^]", "a", ""}, {"[]", NULL, "a"}, {"[]a]", NULL, "a"}, {"[", NULL, "["}, {"[a", "a", "b"}, {"[^a", "b", "a"},
        {"[a-", "-", "b"}, {"[a-]", "^", "-"}, {"[a-]x", "a", "ax"}, {"[\\]]", "]", "\\"}, {"[\\a-c]", "-", "b"},
        {"[a-\\]", "^", "b"}, {"[\\", "\\", "a"}, {"\\", "\\", ""}, {"\\*", "*", "a"}, {"a\\", "a\\", "a"},
        {"\\\\", "\\", "\\\\"}, {"\\a", "a", "\\a"}, {"]", "]", "["}, {"A", "A", "a"}, {"[*]", "*", "a"},
        {"*[0-9]:??*:x", "user:7:ab:x", "user:7:a:x"}, {"[\x80-\xFF]", "\xC3", "a"}, {"[^-a]", "b", "-"}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool good = (cases[i].yes == NULL || matches(cases[i].pattern, cases[i].yes)) &&
                    (cases[i].no == NULL || !matches(cases[i].pattern, cases[i].no));
        if (!good) fprintf(stderr, "pattern %s\n", cases[i].pattern);
        CHECK(good);
    }
}

/* Is byte c one of the class at p, behind its bracket? *after: behind the class. Reads the class again
 * for each byte. */
static bool naive_class(const unsigned char *p, const unsigned char *end, unsigned char c,
                        const unsigned char **after) {
    bool negated = p < end && *p == '^', match = false;
    if (negated) p++;
    for (; p < end && *p != ']'; p++) {
        unsigned char from = *p, to = *p;
        if (end - p >= 2 && from == '\\') from = to = *++p;
        else if (end - p >= 3 && p[1] == '-') to = p[2], p += 2;
        match = match || (from <= to ? c >= from && c <= to : c >= to && c <= from);
    }
    *after = p < end ? p + 1 : p;
    return match != negated;
}

static bool naive_match(const unsigned char *p, const unsigned char *end, const unsigned char *t,
                        const unsigned char *text_end) {
    const unsigned char *after = p + 1;
    if (p == end) return t == text_end;
    if (*p == '*')
        return naive_match(after, end, t, text_end) || (t < text_end && naive_match(p, end, t + 1, text_end));
    if (t == text_end) return false;
    if (*p == '[') return naive_class(p + 1, end, *t, &after) && naive_match(after, end, t + 1, text_end);
    if (*p == '\\' && after < end) p = after++;
    else if (*p == '?') return naive_match(after, end, t + 1, text_end);
    return *p == *t && naive_match(after, end, t + 1, text_end);
}

static uint32_t random_text(uint64_t *random, const char *alphabet, char *to, uint32_t most) {
    uint32_t bytes = (uint32_t)(test_random(random) % (most + 1)), letters = (uint32_t)strlen(alphabet), i;
    for (i = 0; i < bytes; i++) to[i] = alphabet[test_random(random) % letters];
    return bytes;
}

TEST(patterns_agree_with_a_naive_matcher) {
    static const char *const alphabets[][2] = {
        {"ab*?", "ab"}, {"ab*?[]^-\\", "ab-]\\^"}, {"abc[[]]^--*", "abc]"}, {"aab**", "aaab"}, {"\\\\a*[", "a\\[*"},
        {"\x7F\x80\xFF[-]^*", "\x7F\x80\xFF"}};
    uint64_t random = test_seed;
    uint32_t i, rounds = SLOW ? 20000 : 200000, yes = 0;
    bool good = true;
    for (i = 0; good && i < rounds; i++) {
        const char *const *alphabet = alphabets[i % 6];
        char pattern[16], text[16];
        slice p = {pattern, random_text(&random, alphabet[0], pattern, i % 2 == 0 ? 8 : 16)};
        slice t = {text, random_text(&random, alphabet[1], text, i % 2 == 0 ? 4 : 16)};
        glob_pattern *g = glob_compile(p);
        bool want = naive_match((const unsigned char *)p.p, (const unsigned char *)p.p + p.bytes,
                                (const unsigned char *)t.p, (const unsigned char *)t.p + t.bytes);
        good = g != NULL && glob_match(g, t) == want;
        glob_free(g);
        yes += want;
        if (!good) fprintf(stderr, "pattern %.*s, text %.*s\n", (int)p.bytes, pattern, (int)t.bytes, text);
        CHECK(good);
    }
    CHECK(yes > rounds / 50 && yes < rounds / 2); /* else the alphabets are bad */
}

/* Pieces of several words: as many characters as a word has bits, one less, one more. */
TEST(long_pieces_with_classes_are_found_where_they_are) {
    static const uint32_t lengths[] = {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1023, 1024};
    char pattern[1100], text[3000];
    uint32_t i, at;
    for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        uint32_t n = lengths[i];
        slice p = {pattern, 0}, t = {text, sizeof text};
        glob_pattern *g;
        pattern[p.bytes++] = '*';
        memcpy(pattern + p.bytes, "[xy]", 4);
        memset(pattern + p.bytes + 4, '?', n);
        if (n > 1) pattern[p.bytes + 4 + n - 2] = 'z'; /* its last character */
        p.bytes += 4 + n - 1;
        pattern[p.bytes++] = '*';
        g = glob_compile(p);
        REQUIRE(g != NULL);
        for (at = 0; at < sizeof text - n; at += 1 + at / 3) {
            memset(text, 'a', sizeof text);
            text[at] = 'y';
            CHECK(glob_match(g, t) == (n == 1));
            text[at + n - 1] = n > 1 ? 'z' : 'y';
            CHECK(glob_match(g, t));
        }
        glob_free(g);
    }
}

/* Each of these would take hours with backtracking or a quadratic search. */
TEST(no_pattern_is_slow) {
    enum { N = 64 << 10 };
    char *pattern = (char *)must(malloc(2 * N)), *text = (char *)must(malloc(N));
    slice t = {text, N}, p = {pattern, 2 * N};
    glob_pattern *g;
    uint32_t i;
    memset(text, 'a', N);
    for (i = 0; i < N; i++) memcpy(pattern + 2 * i, "*a", 2); /* *a*a*a ... */
    g = glob_compile(p);
    CHECK(g != NULL && glob_match(g, t));
    text[N / 2] = 'b';
    CHECK(g != NULL && !glob_match(g, t));
    glob_free(g);
    memset(text, 'a', N);
    for (i = 0; i < 2; i++) { /* *aaa ... ab*, and *baaa ... a*, half as long as the text */
        memset(pattern, 'a', N / 2);
        pattern[0] = pattern[N / 2 - 1] = '*';
        pattern[i == 0 ? N / 2 - 2 : 1] = 'b';
        p.bytes = N / 2;
        g = glob_compile(p);
        CHECK(g != NULL && !glob_match(g, t));
        glob_free(g);
    }
    p.bytes = (SLOW ? 16 : GLOB_WORDS / 2) * 64 + 2; /* *?aa ... ab*: half as long as the longest; less than a second */
    memset(pattern, 'a', p.bytes);
    memcpy(pattern, "*?", 2);
    memcpy(pattern + p.bytes - 2, "b*", 2);
    g = glob_compile(p);
    CHECK(g != NULL && !glob_match(g, t));
    glob_free(g);
    for (i = 0; i < N; i++) memcpy(pattern + 2 * i, "?*", 2);
    p.bytes = 2 * N;
    g = glob_compile(p);
    CHECK(g != NULL && glob_match(g, t));
    t.bytes--;
    CHECK(g != NULL && !glob_match(g, t));
    glob_free(g);
    free(pattern);
    free(text);
}

TEST(patterns_that_would_need_too_much_are_refused) {
    char *pattern = (char *)must(malloc(4 * MAX_KEY_BYTES));
    slice p = {pattern, 64 * GLOB_WORDS + 2};
    glob_pattern *g;
    uint32_t i;
    memset(pattern, 'a', 4 * MAX_KEY_BYTES);
    pattern[0] = '*', pattern[1] = '?';
    CHECK(glob_compile(p) == NULL); /* one character too many */
    p.bytes--;
    g = glob_compile(p);
    CHECK(g != NULL);
    glob_free(g);
    pattern[1] = 'a';
    p.bytes = 2 * MAX_KEY_BYTES + 1;
    CHECK(glob_compile(p) == NULL);
    for (i = 0; i < 300; i++) memcpy(pattern + 20 * i, "*?aaaaaaaaaaaaaaaaaa", 20); /* all of them together */
    p.bytes = 300 * 20;
    CHECK(glob_compile(p) == NULL);
    p.bytes = 60 * 20;
    g = glob_compile(p);
    CHECK(g != NULL);
    glob_free(g);
    p.p = NULL, p.bytes = 0;
    g = glob_compile(p);
    CHECK(g != NULL && glob_match(g, p));
    glob_free(g);
    free(pattern);
}

/* ===================================================================================================================
 * RECORDS: changes as bytes: round trips, damage, limits
 * ================================================================================================================ */

static char vector_bytes[3 * 4];

/* One change of each kind, and some of their variants. */
static size_t make_changes(change *to) {
    static const float vector[3] = {1.5f, -2.0f, 1e17f};
    static const change_kind kinds[] = {CHANGE_SET, CHANGE_SET, CHANGE_SET, CHANGE_DELETE, CHANGE_DELETE, CHANGE_EXPIRE,
        CHANGE_INCREMENT, CHANGE_FLUSH, CHANGE_SWEEP, CHANGE_CREATE, CHANGE_END, CHANGE_ADD, CHANGE_REMOVE, CHANGE_DROP,
        CHANGE_PART, CHANGE_ELEMENT};
    size_t n = sizeof kinds / sizeof kinds[0], i;
    memset(to, 0, n * sizeof *to);
    floats_encode(vector, 3, vector_bytes);
    for (i = 0; i < n; i++) {
        to[i].kind = kinds[i];
        to[i].now_ms = UINT64_C(0x0123456789ABCDEF) + i;
        to[i].key = slice_of("key");
        switch (kinds[i]) {
        case CHANGE_SET:
            to[i].u.set.value = slice_of(i == 0 ? "" : "value");
            to[i].u.set.expires_ms = i == 1 ? (uint64_t)INT64_MAX / 2 : 0;
            to[i].u.set.nx = i == 1, to[i].u.set.get = i > 0, to[i].u.set.xx = to[i].u.set.keep_ttl = i == 2;
            break;
        case CHANGE_DELETE: to[i].u.del.get = i == 4; break;
        case CHANGE_EXPIRE: to[i].u.expire.expires_ms = 12345; break;
        case CHANGE_INCREMENT: to[i].u.increment.delta = INT64_MIN; break;
        case CHANGE_CREATE:
            to[i].u.create.set_id = UINT64_MAX, to[i].u.create.dim = MAX_DIM;
            to[i].u.create.metric = NODEDB_VAMANA_COSINE;
            break;
        case CHANGE_ADD:
            to[i].u.add.set_id = 7, to[i].u.add.dim = 3, to[i].u.add.metric = NODEDB_VAMANA_IP;
            to[i].u.add.vector.p = vector_bytes, to[i].u.add.vector.bytes = sizeof vector_bytes;
            break;
        case CHANGE_PART:
            to[i].u.part.set_id = 8, to[i].u.part.next_id = 9, to[i].u.part.dim = 1;
            break;
        case CHANGE_ELEMENT: to[i].u.element.set_id = 10, to[i].u.element.id = 11; break;
        default: to[i].u.set_id = 12; break;
        }
        if (kinds[i] == CHANGE_FLUSH || kinds[i] == CHANGE_DROP || kinds[i] == CHANGE_PART) to[i].key.bytes = 0;
        if (kinds[i] == CHANGE_FLUSH || kinds[i] == CHANGE_SWEEP) to[i].u.set_id = 0;
    }
    return n;
}

static bool same_slice(slice a, slice b) {
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.p, b.p, a.bytes) == 0);
}

/* Its fields, by their names; slices by their bytes. */
static bool same_change(change a, change b) {
    bool same = a.kind == b.kind && a.now_ms == b.now_ms && same_slice(a.key, b.key);
    slice none = {NULL, 0};
    if (a.kind == CHANGE_SET) {
        same = same && same_slice(a.u.set.value, b.u.set.value) && a.u.set.expires_ms == b.u.set.expires_ms &&
               a.u.set.nx == b.u.set.nx && a.u.set.xx == b.u.set.xx && a.u.set.get == b.u.set.get &&
               a.u.set.keep_ttl == b.u.set.keep_ttl;
        return same;
    }
    if (a.kind == CHANGE_ADD) {
        same = same && same_slice(a.u.add.vector, b.u.add.vector);
        a.u.add.vector = b.u.add.vector = none;
    }
    return same && memcmp(&a.u, &b.u, sizeof a.u) == 0; /* both were zeroed, so padding is the same */
}

/* Decodes a copy of exactly so many bytes, so that a sanitizer sees what is read behind them. True: it is a change.
 * Then *same says whether that encodes to the same bytes. */
static bool decode_exact(const char *bytes, size_t n, bool *same) {
    char *copy = (char *)must(malloc(n == 0 ? 1 : n)), *again;
    change c;
    bool good;
    memcpy(copy, bytes, n);
    good = change_decode(copy, n, &c);
    *same = true;
    if (good) {
        *same = change_bytes(&c) == n;
        again = (char *)must(malloc(n));
        if (*same) change_encode(&c, again);
        *same = *same && memcmp(copy, again, n) == 0;
        free(again);
    }
    free(copy);
    return good;
}

TEST(changes_come_back_from_their_records) {
    change all[32], back;
    size_t n = make_changes(all), i;
    char record[128];
    for (i = 0; i < n; i++) {
        size_t bytes = change_bytes(&all[i]);
        bool same = false;
        memset(&back, 0xA5, sizeof back);
        REQUIRE(bytes <= sizeof record);
        change_encode(&all[i], record);
        CHECK(change_decode(record, bytes, &back));
        CHECK(same_change(all[i], back));
        CHECK(decode_exact(record, bytes, &same));
        CHECK(same);
    }
}

/* The format is on disks, so it must not change. */
TEST(record_of_a_set_has_these_bytes) {
    static const unsigned char want[] = {1, 5, 0, 0, 3, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1,
                                         0x39, 0x30, 0, 0, 0, 0, 0, 0, 'k', 'e', 'y', 'v'};
    change c;
    unsigned char record[sizeof want];
    memset(&c, 0, sizeof c);
    c.kind = CHANGE_SET, c.now_ms = UINT64_C(0x0102030405060708), c.key = slice_of("key");
    c.u.set.value = slice_of("v"), c.u.set.expires_ms = 12345, c.u.set.nx = c.u.set.get = true;
    CHECK_EQ(change_bytes(&c), sizeof want);
    change_encode(&c, record);
    CHECK(memcmp(record, want, sizeof want) == 0);
}

TEST(damaged_records_are_refused_or_are_other_changes) {
    change all[32];
    size_t n = make_changes(all), i, at;
    char record[129];
    for (i = 0; i < n; i++) {
        size_t bytes = change_bytes(&all[i]);
        bool open_end = all[i].kind == CHANGE_SET, same = true;
        change_encode(&all[i], record);
        record[bytes] = 0;
        CHECK(decode_exact(record, bytes + 1, &same) == open_end);
        CHECK(same);
        if (all[i].key.bytes == 0) { /* what has no key must not get one */
            record[4] = 1;
            CHECK(!decode_exact(record, bytes + 1, &same));
            record[4] = 0;
        }
        for (at = 0; at < bytes; at++) {
            bool good = decode_exact(record, at, &same);
            CHECK(same);
            CHECK(good == (open_end && at >= 27)); /* a SET has header, expiry and key; its value may be shorter */
        }
        for (at = 0; at < bytes * 8; at++) {
            record[at / 8] = (char)(record[at / 8] ^ 1 << at % 8);
            (void)decode_exact(record, bytes, &same);
            CHECK(same);
            record[at / 8] = (char)(record[at / 8] ^ 1 << at % 8);
        }
    }
}

TEST(random_bytes_are_refused_or_are_changes) {
    uint64_t random = test_seed;
    uint32_t i, rounds = SLOW ? 10000 : 100000, good = 0;
    char record[96];
    const record_shape *shape;
    bool same = true;
    for (i = 0; same && i < rounds; i++) {
        size_t bytes = test_random(&random) % sizeof record, j;
        for (j = 0; j < bytes; j++) record[j] = (char)(test_random(&random) >> 32);
        if (i % 4 != 0 && bytes >= 48) { /* mostly what comes close to being one */
            record[0] = (char)(test_random(&random) % 24);
            record[1] = (char)(test_random(&random) % 3 == 0 ? record[1] & 15 : 0);
            memset(record + 2, 0, 6);
            shape = record_shape_of((unsigned char)record[0]);
            if (shape != NULL) record[4] = (char)(shape->has_key ? bytes - 16 - shape->fixed_bytes : 0);
            if (test_random(&random) % 4 == 0) record[4]--;
            memset(record + 22, 0, 16); /* small expiry, dimension and metric */
            record[24] = (char)(test_random(&random) % 8);
            record[28] = (char)(test_random(&random) % 4);
        }
        good += decode_exact(record, bytes, &same);
        CHECK(same);
    }
    CHECK(good > rounds / 20);
}

/* Does the change with this one number in its record decode? */
static bool accepts(const change *c, size_t at, int bytes, uint64_t number) {
    static char record[256];
    change back;
    size_t n = change_bytes(c);
    change_encode(c, record);
    if (bytes == 4) nodedb_put_u32(record + at, (uint32_t)number);
    if (bytes == 8) nodedb_put_u64(record + at, number);
    return change_decode(record, n, &back);
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

TEST(numbers_beyond_their_limits_are_refused) {
    change all[32];
    size_t n = make_changes(all), i;
    for (i = 0; i < n; i++) {
        const change *c = &all[i];
        if (c->kind == CHANGE_SET || c->kind == CHANGE_EXPIRE) {
            CHECK(accepts(c, 16, 8, (uint64_t)INT64_MAX / 2));
            CHECK(!accepts(c, 16, 8, (uint64_t)INT64_MAX / 2 + 1));
        }
        if (c->kind == CHANGE_CREATE || c->kind == CHANGE_PART) {
            size_t dim = c->kind == CHANGE_PART ? 32 : 24;
            CHECK(accepts(c, dim, 4, 1) && accepts(c, dim, 4, MAX_DIM));
            CHECK(!accepts(c, dim, 4, 0) && !accepts(c, dim, 4, MAX_DIM + 1) && !accepts(c, dim, 4, UINT32_MAX));
            CHECK(accepts(c, dim + 4, 4, NODEDB_VAMANA_L2) && accepts(c, dim + 4, 4, NODEDB_VAMANA_COSINE));
            CHECK(!accepts(c, dim + 4, 4, NODEDB_VAMANA_COSINE + 1) && !accepts(c, dim + 4, 4, UINT32_MAX));
        }
        if (c->kind == CHANGE_ADD) {
            size_t vector = 16 + 16 + 3;
            CHECK(!accepts(c, 24, 4, 2) && !accepts(c, 24, 4, 4) && !accepts(c, 24, 4, UINT32_C(0x40000003)));
            CHECK(!accepts(c, 28, 4, 3));
            CHECK(accepts(c, vector, 4, bits_of(0)) && accepts(c, vector, 4, bits_of(-9e17f)));
            CHECK(!accepts(c, vector, 4, bits_of(1e18f)) && !accepts(c, vector, 4, bits_of((float)INFINITY)));
            CHECK(!accepts(c, vector, 4, bits_of((float)NAN)) && !accepts(c, vector, 4, bits_of(-(float)INFINITY)));
        }
        CHECK(!accepts(c, 0, 4, 0) && !accepts(c, 4, 4, UINT32_MAX)); /* no such kind; a key beyond the record */
    }
}

TEST(keys_and_values_have_limits) {
    size_t most = 24 + MAX_KEY_BYTES + (size_t)MAX_BULK_BYTES, i;
    char *bytes = (char *)must(calloc(1, most + 1)), *record = (char *)must(malloc(most + 1));
    static const uint32_t keys[] = {MAX_KEY_BYTES, MAX_KEY_BYTES + 1, 0};
    static const uint32_t values[] = {MAX_BULK_BYTES, 0, MAX_BULK_BYTES + 1};
    for (i = 0; i < 3; i++) {
        change c, back;
        memset(&c, 0, sizeof c);
        c.kind = CHANGE_SET;
        c.key.p = c.u.set.value.p = bytes;
        c.key.bytes = keys[i], c.u.set.value.bytes = values[i];
        change_encode(&c, record);
        CHECK(change_decode(record, change_bytes(&c), &back) == (i == 0));
    }
    free(bytes);
    free(record);
}

TEST(floats_are_little_endian_at_any_address) {
    static const float from[4] = {0.0f, -1.0f, 3.4e38f, 1e-40f};
    float back[4];
    char bytes[17];
    slice s = {bytes + 1, 16};
    floats_encode(from, 4, bytes + 1);
    CHECK_EQ((unsigned char)bytes[8], 0xBF);
    floats_decode(s, back);
    CHECK(memcmp(from, back, sizeof from) == 0);
}

TEST_MAIN("nodedb_rooms")
