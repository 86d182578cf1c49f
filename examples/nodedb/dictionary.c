/* dictionary.c - things by name: an extendible hash table of pointers (R. Fagin and others, "Extendible Hashing - A
 * Fast Access Method for Dynamic Files", ACM TODS, 1979).
 *
 * The directory is indexed by the top bits of a hash. A segment of less depth has several places in it:
 *
 *     directory, depth 2       segments
 *     00 ---------+
 *     01 ---------+--------->  depth 1: the hashes that begin with 0
 *     10 ------------------->  depth 2: those that begin with 10
 *     11 ------------------->  depth 2: those that begin with 11
 *
 * A segment is one allocation: a header, a byte for each place (its tag), and a pointer for each place. Places form
 * groups of eight. The hash says at which group a search begins; the item is in the first group that had room for it.
 * A search compares the eight tags of a group in one 64-bit word, and ends at a group that has an empty place.
 *
 * The first segment has 8 places. It grows to 224 places, and is split when these are full. With 224 places, header,
 * tags and pointers are exactly 2048 bytes, which allocators serve without waste, and the eight pointers of a group are
 * one cache line. On average over all sizes that is 15 bytes for an item.
 *
 * A call moves the items of one segment once at most, or those of two that are nearly empty. It reads the hashes of one
 * segment two times more before that is split. It copies the directory when that doubles or halves. The directory
 * doubles only if there are 16 items for each of its new places, and halves only if there are fewer than 8 for each.
 * So there are many calls between two copies.
 *
 * Hashes that hardly differ: a directory that grew until it told them apart could be larger than all memory. The rule
 * of 16 items prevents that. A segment that must not be split grows beyond 224 places instead. With random hashes this
 * does not happen. */
#include "db.h"

#define DICTIONARY_GROUP 8             /* places whose tags are compared at once */
#define DICTIONARY_PLACES 224          /* of a segment that is split when it is full */
#define DICTIONARY_FULL (DICTIONARY_PLACES / 8 * 7)
#define DICTIONARY_MERGE (DICTIONARY_PLACES / 4) /* two buddies with fewer items become one */
#define DICTIONARY_MAX_DEPTH 24
#define DICTIONARY_GROW_ITEMS 16       /* the directory doubles if there are at least 16 for each new place ... */
#define DICTIONARY_SHRINK_ITEMS 8      /* ... and halves if there are fewer for each place */
#define DICTIONARY_ONES UINT64_C(0x0101010101010101)
enum { DICTIONARY_EMPTY = 0, DICTIONARY_TOMBSTONE = 1, DICTIONARY_FIRST_TAG = 2 };

/* Between calls: used + tombstones <= 7/8 of the capacity, so each search meets an empty place. */
struct dictionary_segment {
    dictionary_segment *self; /* the directory, while its depth is 0 */
    uint32_t capacity;        /* places; a multiple of DICTIONARY_GROUP */
    uint32_t used, tombstones;
    uint32_t depth;           /* bits with which all its hashes begin */
    uint64_t spare;           /* fills up 32 bytes, so that groups of pointers are cache lines */
    unsigned char tags[];     /* of each place. Behind them: void *items[capacity] */
};

/* ---- a segment --------------------------------------------------------------------------------------------------- */

static void **dictionary_items(const dictionary_segment *s) {
    return (void **)(uintptr_t)(s->tags + s->capacity);
}

static bool dictionary_taken(const dictionary_segment *s, uint32_t place) {
    return s->tags[place] >= DICTIONARY_FIRST_TAG;
}

static unsigned char dictionary_tag(uint32_t hash) {
    unsigned char low = (unsigned char)hash;
    return low < DICTIONARY_FIRST_TAG ? (unsigned char)(low + DICTIONARY_FIRST_TAG) : low;
}

/* The group where the search for a hash begins. The top bits are alike in a segment; the product spreads the others. */
static uint32_t dictionary_home(uint32_t hash, uint32_t groups) {
    return (uint32_t)((uint64_t)(uint32_t)(hash * UINT32_C(0x9E3779B1)) * groups >> 32);
}

static uint32_t dictionary_next(uint32_t group, uint32_t groups) { return group + 1 == groups ? 0 : group + 1; }

/* The top bit of each byte that is zero. A byte of 1 above a zero byte may be reported as well. For a search this is
 * one item more to look at: tags that differ in the lowest bit only are both tags of items. */
static uint64_t dictionary_zero_bytes(uint64_t word) { return (word - DICTIONARY_ONES) & ~word & DICTIONARY_ONES << 7; }

static uint64_t dictionary_word(const dictionary_segment *s, uint32_t group) {
    return nodedb_get_u64(s->tags + (size_t)group * DICTIONARY_GROUP);
}

static uint32_t dictionary_first(uint32_t group, uint64_t bytes) {
    return group * DICTIONARY_GROUP + (uint32_t)__builtin_ctzll(bytes) / 8;
}

/* How many items and tombstones a segment of this capacity may hold. */
static uint32_t dictionary_limit(uint32_t capacity) { return capacity / 8 * 7; }

static uint32_t dictionary_larger(uint32_t capacity) { return capacity == 128 ? DICTIONARY_PLACES : capacity * 2; }

/* The capacity for this many items and half as many more. */
static uint32_t dictionary_capacity(uint32_t items) {
    uint32_t wanted = items + items / 2, capacity = DICTIONARY_GROUP;
    if (wanted > DICTIONARY_FULL) wanted = items < DICTIONARY_FULL ? DICTIONARY_FULL : items + 1;
    while (dictionary_limit(capacity) < wanted) capacity = dictionary_larger(capacity);
    return capacity;
}

static dictionary_segment *dictionary_segment_new(const dictionary *d, uint32_t capacity, uint32_t depth) {
    size_t bytes = sizeof(dictionary_segment) + capacity * (1 + sizeof(void *));
    dictionary_segment *s = (dictionary_segment *)data_alloc(d->owner, bytes);
    memset(s, 0, sizeof *s + capacity);
    s->capacity = capacity;
    s->depth = depth;
    return s;
}

static void dictionary_put(dictionary_segment *s, uint32_t hash, void *item) {
    uint32_t groups = s->capacity / DICTIONARY_GROUP, group = dictionary_home(hash, groups), place;
    uint64_t vacant;
    assert(s->used + s->tombstones < s->capacity);
    /* without their lowest bits, the tags of empty places and of tombstones are zero */
    while ((vacant = dictionary_zero_bytes(dictionary_word(s, group) & ~DICTIONARY_ONES)) == 0)
        group = dictionary_next(group, groups);
    place = dictionary_first(group, vacant);
    if (s->tags[place] == DICTIONARY_TOMBSTONE) s->tombstones--;
    s->tags[place] = dictionary_tag(hash);
    dictionary_items(s)[place] = item;
    s->used++;
}

static uint32_t dictionary_place(const dictionary_segment *s, uint32_t hash, const void *item) {
    uint32_t groups = s->capacity / DICTIONARY_GROUP, group;
    uint64_t pattern = dictionary_tag(hash) * DICTIONARY_ONES, match;
    for (group = dictionary_home(hash, groups);; group = dictionary_next(group, groups)) {
        uint64_t word = dictionary_word(s, group);
        for (match = dictionary_zero_bytes(word ^ pattern); match != 0; match &= match - 1)
            if (dictionary_items(s)[dictionary_first(group, match)] == item) return dictionary_first(group, match);
        assert(dictionary_zero_bytes(word) == 0 && "what is removed is there");
    }
}

/* Removes the item. A group that already ends a search needs no tombstone. */
static void dictionary_vacate(dictionary_segment *s, uint32_t place) {
    bool ends_here = dictionary_zero_bytes(dictionary_word(s, place / DICTIONARY_GROUP)) != 0;
    s->tags[place] = ends_here ? DICTIONARY_EMPTY : DICTIONARY_TOMBSTONE;
    if (!ends_here) s->tombstones++;
    s->used--;
}

/* All items will be asked for their hashes: their cache misses happen side by side. Inlined by force, because gcc drops
 * the call of a function that does nothing but prefetch. */
__attribute__((always_inline)) static inline void dictionary_prefetch_items(const dictionary_segment *s) {
    uint32_t place;
    for (place = 0; place < s->capacity; place++)
        if (dictionary_taken(s, place)) __builtin_prefetch(dictionary_items(s)[place]);
}

/* Items whose hash has `bit` go to `one`, the others to `zero`. Frees `from`. */
static void dictionary_pour(const dictionary *d, dictionary_segment *from, dictionary_segment *zero,
                            dictionary_segment *one, uint32_t bit) {
    uint32_t place;
    dictionary_prefetch_items(from);
    for (place = 0; place < from->capacity; place++)
        if (dictionary_taken(from, place)) {
            void *item = dictionary_items(from)[place];
            uint32_t hash = d->kind->hash_of(item);
            dictionary_put((hash & bit) != 0 ? one : zero, hash, item);
        }
    data_free(d->owner, from);
}

/* ---- the directory ----------------------------------------------------------------------------------------------- */

static size_t dictionary_index(const dictionary *d, uint32_t hash) {
    return (size_t)((uint64_t)hash << d->depth >> 32);
}

/* Takes a new directory. With depth 0 it is within the only segment. */
static void dictionary_set_directory(dictionary *d, dictionary_segment **directory, uint32_t depth) {
    if (d->depth > 0) data_free(d->owner, d->directory);
    d->directory = directory;
    d->depth = depth;
}

/* The segment of this hash is now `s`, in all of its places. */
static void dictionary_enter(dictionary *d, dictionary_segment *s, uint32_t hash) {
    size_t places = (size_t)1 << (d->depth - s->depth), first = dictionary_index(d, hash) & ~(places - 1), i;
    if (d->depth == 0) {
        s->self = s;
        d->directory = &s->self;
        return;
    }
    for (i = 0; i < places; i++) d->directory[first + i] = s;
}

static void dictionary_double(dictionary *d) {
    size_t places = (size_t)2 << d->depth, i;
    dictionary_segment **directory = (dictionary_segment **)data_alloc(d->owner, places * sizeof *directory);
    for (i = 0; i < places; i++) directory[i] = d->directory[i / 2];
    dictionary_set_directory(d, directory, d->depth + 1);
}

/* Halves the directory if there are few items and no segment needs the last bit. */
static void dictionary_halve(dictionary *d) {
    size_t places = ((size_t)1 << d->depth) / 2, i;
    dictionary_segment **directory;
    if (places == 0 || d->count >= (uint64_t)DICTIONARY_SHRINK_ITEMS << d->depth) return;
    for (i = 0; i < places; i++)
        if (d->directory[2 * i] != d->directory[2 * i + 1]) return;
    if (places == 1) {
        dictionary_segment *only = d->directory[0];
        only->self = only;
        dictionary_set_directory(d, &only->self, 0);
        return;
    }
    directory = (dictionary_segment **)data_alloc(d->owner, places * sizeof *directory);
    for (i = 0; i < places; i++) directory[i] = d->directory[2 * i];
    dictionary_set_directory(d, directory, d->depth - 1);
}

/* ---- growing ----------------------------------------------------------------------------------------------------- */

/* The same items in a new segment of another capacity, without tombstones. */
static dictionary_segment *dictionary_rebuild(dictionary *d, dictionary_segment *s, uint32_t capacity, uint32_t hash) {
    dictionary_segment *next = dictionary_segment_new(d, capacity, s->depth);
    dictionary_pour(d, s, next, next, 0);
    dictionary_enter(d, next, hash);
    return next;
}

/* How many top bits all hashes of a segment have in common with this one. */
static uint32_t dictionary_shared_bits(const dictionary *d, const dictionary_segment *s, uint32_t hash) {
    uint32_t different = 0, place;
    dictionary_prefetch_items(s);
    for (place = 0; place < s->capacity; place++)
        if (dictionary_taken(s, place)) different |= d->kind->hash_of(dictionary_items(s)[place]) ^ hash;
    return different == 0 ? 32 : (uint32_t)__builtin_clz(different);
}

/* How deep a segment may become. */
static uint32_t dictionary_deepest(const dictionary *d) {
    uint32_t depth = d->depth;
    while (depth < DICTIONARY_MAX_DEPTH && (uint64_t)DICTIONARY_GROW_ITEMS << (depth + 1) <= d->count) depth++;
    return depth;
}

/* Splits the segment of this hash by one bit more, and returns the half that the hash belongs to. If all items belong
 * to one half, they stay where they are, and the other half is a new small segment. */
static dictionary_segment *dictionary_split(dictionary *d, dictionary_segment *s, uint32_t hash) {
    uint32_t depth = s->depth + 1, bit = UINT32_C(1) << (32 - depth), ones = 0, place;
    dictionary_segment *zero, *one;
    if (s->depth == d->depth) dictionary_double(d);
    for (place = 0; place < s->capacity; place++)
        if (dictionary_taken(s, place) && (d->kind->hash_of(dictionary_items(s)[place]) & bit) != 0) ones++;
    if (ones == 0 || ones == s->used) {
        zero = ones == 0 ? s : dictionary_segment_new(d, DICTIONARY_GROUP, depth);
        one = ones == 0 ? dictionary_segment_new(d, DICTIONARY_GROUP, depth) : s;
        s->depth = depth;
    } else {
        zero = dictionary_segment_new(d, dictionary_capacity(s->used - ones), depth);
        one = dictionary_segment_new(d, dictionary_capacity(ones), depth);
        dictionary_pour(d, s, zero, one, bit);
    }
    dictionary_enter(d, zero, hash & ~bit);
    dictionary_enter(d, one, hash | bit);
    return (hash & bit) != 0 ? one : zero;
}

/* A full segment gets room for one item more. Returns the segment where that item goes. */
static dictionary_segment *dictionary_make_room(dictionary *d, dictionary_segment *s, uint32_t hash) {
    uint32_t shared;
    /* Many tombstones: rebuild without them. Then a quarter of the places is free, so the next rebuild is far off. */
    if (s->used <= dictionary_limit(s->capacity) / 4 * 3) return dictionary_rebuild(d, s, s->capacity, hash);
    if (s->capacity < DICTIONARY_PLACES) return dictionary_rebuild(d, s, dictionary_larger(s->capacity), hash);
    shared = dictionary_shared_bits(d, s, hash);
    if (shared >= dictionary_deepest(d)) return dictionary_rebuild(d, s, dictionary_larger(s->capacity), hash);
    do s = dictionary_split(d, s, hash); /* the last one separates; only that one moves items */
    while (s->depth <= shared);
    return s;
}

/* ---- shrinking --------------------------------------------------------------------------------------------------- */

/* Joins the segment of this hash with its buddy, if few items are left in both. It is split again only when it has
 * three times as many. */
static bool dictionary_merge(dictionary *d, uint32_t hash) {
    size_t at = dictionary_index(d, hash);
    dictionary_segment *s = d->directory[at], *buddy, *joined;
    if (s->depth == 0 || s->used >= DICTIONARY_MERGE) return false;
    buddy = d->directory[at ^ (size_t)1 << (d->depth - s->depth)];
    if (buddy->depth != s->depth || s->used + buddy->used >= DICTIONARY_MERGE) return false;
    if (s->used == 0 || buddy->used == 0) {
        joined = s->used == 0 ? buddy : s;
        joined->depth--;
        data_free(d->owner, joined == s ? buddy : s);
    } else {
        joined = dictionary_segment_new(d, dictionary_capacity(s->used + buddy->used), s->depth - 1);
        dictionary_pour(d, s, joined, joined, 0);
        dictionary_pour(d, buddy, joined, joined, 0);
    }
    dictionary_enter(d, joined, hash);
    return true;
}

/* After a removal. Ranges that contain each other can fall below DICTIONARY_MERGE at the same removal only if the inner
 * one has all the items. So only one of these joins moves items; the others join with what is empty. */
static void dictionary_tidy(dictionary *d, dictionary_segment *s, uint32_t hash) {
    bool merged = false;
    while (dictionary_merge(d, hash)) merged = true;
    if (merged) dictionary_halve(d);
    else if (s->capacity > DICTIONARY_GROUP && s->used <= s->capacity / 8)
        (void)dictionary_rebuild(d, s, dictionary_capacity(s->used), hash);
}

/* ---- what db.h promises ------------------------------------------------------------------------------------------ */

/* A search needs the header, then a tag, then a pointer. Without this, each is a cache miss of its own. A full-size
 * segment has tag and pointer where this says, so all three misses happen at once. In a smaller segment it is a wasted
 * load; a prefetch never faults. */
__attribute__((always_inline)) static inline void dictionary_prefetch(const dictionary_segment *s, uint32_t hash) {
    uintptr_t tags = (uintptr_t)s + sizeof *s, group = dictionary_home(hash, DICTIONARY_PLACES / DICTIONARY_GROUP);
    __builtin_prefetch((const void *)(tags + group * DICTIONARY_GROUP));
    __builtin_prefetch((const void *)(tags + DICTIONARY_PLACES + group * DICTIONARY_GROUP * sizeof(void *)));
}

void *dictionary_find(const dictionary *d, uint32_t hash, const void *name, size_t bytes) {
    uint64_t pattern = dictionary_tag(hash) * DICTIONARY_ONES, match;
    uint32_t groups, group;
    const dictionary_segment *s;
    if (d->directory == NULL) return NULL;
    s = d->directory[dictionary_index(d, hash)];
    dictionary_prefetch(s, hash);
    groups = s->capacity / DICTIONARY_GROUP;
    for (group = dictionary_home(hash, groups);; group = dictionary_next(group, groups)) {
        uint64_t word = dictionary_word(s, group);
        for (match = dictionary_zero_bytes(word ^ pattern); match != 0; match &= match - 1) {
            void *item = dictionary_items(s)[dictionary_first(group, match)];
            if (d->kind->is(item, name, bytes)) return item;
        }
        if (dictionary_zero_bytes(word) != 0) return NULL;
    }
}

void dictionary_add(dictionary *d, void *item) {
    uint32_t hash = d->kind->hash_of(item);
    dictionary_segment *s;
    if (d->directory == NULL) dictionary_enter(d, dictionary_segment_new(d, DICTIONARY_GROUP, 0), hash);
    s = d->directory[dictionary_index(d, hash)];
    dictionary_prefetch(s, hash);
    if (s->used + s->tombstones >= dictionary_limit(s->capacity)) s = dictionary_make_room(d, s, hash);
    dictionary_put(s, hash, item);
    d->count++;
}

void dictionary_remove(dictionary *d, void *item) {
    uint32_t hash = d->kind->hash_of(item);
    dictionary_segment *s;
    assert(d->count > 0);
    s = d->directory[dictionary_index(d, hash)];
    dictionary_prefetch(s, hash);
    dictionary_vacate(s, dictionary_place(s, hash, item));
    if (--d->count == 0) dictionary_free(d);
    else dictionary_tidy(d, s, hash);
}

/* Frees every segment at once. A caller that must not take that long removes the items one by one. */
void dictionary_free(dictionary *d) {
    size_t places = d->directory == NULL ? 0 : (size_t)1 << d->depth, i = 0;
    dictionary_segment **directory = d->directory;
    uint32_t depth = d->depth;
    while (i < places) {
        dictionary_segment *s = directory[i];
        i += (size_t)1 << (depth - s->depth);
        data_free(d->owner, s);
    }
    if (depth > 0) data_free(d->owner, directory);
    d->directory = NULL;
    d->depth = 0;
    d->count = 0;
}

/* ---- pages ------------------------------------------------------------------------------------------------------- */

/* Lets heap[at] sink to its place; the largest is on top. */
static void dictionary_sift(uint64_t *heap, size_t n, size_t at) {
    uint64_t key = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < n && heap[child + 1] > heap[child]) child++;
        if (child >= n || heap[child] <= key) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

/* The items of a segment with the smallest hashes from `from` on, at most DICTIONARY_SEGMENT. A key is a hash and, in
 * its low half, where the item is in `found`. The keys are sorted. If items are left out, *next becomes the smallest
 * hash of these. */
static size_t dictionary_smallest(const dictionary *d, const dictionary_segment *s, uint64_t from, uint64_t *keys,
                                  void **found, uint64_t *next) {
    size_t n = 0, i;
    uint32_t place;
    dictionary_prefetch_items(s);
    for (place = 0; place < s->capacity && n < DICTIONARY_SEGMENT; place++) {
        uint32_t hash = dictionary_taken(s, place) ? d->kind->hash_of(dictionary_items(s)[place]) : 0;
        if (!dictionary_taken(s, place) || hash < from) continue;
        found[n] = dictionary_items(s)[place];
        keys[n] = (uint64_t)hash << 32 | n;
        n++;
    }
    for (i = n / 2; i-- > 0;) dictionary_sift(keys, n, i);
    for (; place < s->capacity; place++) { /* a segment that could not be split: the largest leaves */
        uint32_t hash = dictionary_taken(s, place) ? d->kind->hash_of(dictionary_items(s)[place]) : 0;
        uint64_t left_out = hash;
        if (!dictionary_taken(s, place) || hash < from) continue;
        if (hash < keys[0] >> 32) {
            uint32_t slot = (uint32_t)keys[0];
            left_out = keys[0] >> 32;
            found[slot] = dictionary_items(s)[place];
            keys[0] = (uint64_t)hash << 32 | slot;
            dictionary_sift(keys, n, 0);
        }
        if (left_out < *next) *next = left_out;
    }
    for (i = n; i-- > 1;) {
        uint64_t largest = keys[0];
        keys[0] = keys[i];
        keys[i] = largest;
        dictionary_sift(keys, i, 0);
    }
    return n;
}

/* A page has at most DICTIONARY_SEGMENT items, whatever the room, so that the work of a call has a limit. More items
 * than that with one 32-bit hash do not fit into any page. Then some of them are returned, and the cursor goes on
 * behind all of them, so a scan misses the others. Random hashes do not collide like that. */
size_t dictionary_page(const dictionary *d, uint64_t *cursor, void **items, size_t room) {
    uint64_t keys[DICTIONARY_SEGMENT], next;
    void *found[DICTIONARY_SEGMENT];
    const dictionary_segment *s;
    size_t n, whole, i;
    assert(room >= DICTIONARY_SEGMENT);
    (void)room;
    if (d->directory == NULL || *cursor >= DICTIONARY_END) {
        *cursor = DICTIONARY_END;
        return 0;
    }
    s = d->directory[dictionary_index(d, (uint32_t)*cursor)];
    next = ((*cursor >> (32 - s->depth)) + 1) << (32 - s->depth); /* behind the segment */
    n = whole = dictionary_smallest(d, s, *cursor, keys, found, &next);
    while (whole > 0 && keys[whole - 1] >> 32 == next) whole--; /* not by halves */
    if (whole == 0 && n > 0) {
        whole = n;
        next++;
    }
    for (i = 0; i < whole; i++) items[i] = found[(uint32_t)keys[i]];
    *cursor = next;
    return whole;
}

/* ---- hashes of names --------------------------------------------------------------------------------------------- */

static uint64_t dictionary_turn(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static void dictionary_sip_round(uint64_t v[4]) {
    v[0] += v[1], v[1] = dictionary_turn(v[1], 13) ^ v[0], v[0] = dictionary_turn(v[0], 32);
    v[2] += v[3], v[3] = dictionary_turn(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = dictionary_turn(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = dictionary_turn(v[1], 17) ^ v[2], v[2] = dictionary_turn(v[2], 32);
}

/* SipHash-1-3 (J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast short-input PRF", 2012, with the numbers of rounds
 * that Rust and Python use for their tables). Without the key nobody can choose names that collide. stb_ds' own hash
 * is not used: names of 4 and 8 bytes take a path in it that is no keyed function, and its shifts overflow. */
static uint64_t dictionary_siphash(uint64_t key0, uint64_t key1, const unsigned char *p, size_t bytes) {
    uint64_t v[4] = {key0 ^ UINT64_C(0x736F6D6570736575), key1 ^ UINT64_C(0x646F72616E646F6D),
                     key0 ^ UINT64_C(0x6C7967656E657261), key1 ^ UINT64_C(0x7465646279746573)};
    uint64_t last = (uint64_t)bytes << 56, word;
    for (; bytes >= 8; p += 8, bytes -= 8) {
        word = nodedb_get_u64(p);
        v[3] ^= word;
        dictionary_sip_round(v);
        v[0] ^= word;
    }
    while (bytes-- > 0) last |= (uint64_t)p[bytes] << 8 * bytes;
    v[3] ^= last;
    dictionary_sip_round(v);
    v[0] ^= last;
    v[2] ^= 255;
    dictionary_sip_round(v);
    dictionary_sip_round(v);
    dictionary_sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint32_t name_hash(const shard *s, const void *name, size_t bytes) {
    uint64_t key1 = s->seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    return (uint32_t)dictionary_siphash(s->seed, key1, (const unsigned char *)name, bytes);
}
