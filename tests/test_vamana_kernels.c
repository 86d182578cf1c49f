/* Tests of the distance kernels of nodedb_vamana.h: every set that this CPU can run, against sums in double and in 64
 * bits that are written down here once more. test_vamana_emulated.c includes this file to run, in an emulation, the
 * sets that the CPU has not got. */
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#include "test.h"
#include <sys/mman.h>

#define MANY_FUNCTIONS 10
#define LONGEST NODEDB_VAMANA_MAX_DIM
#define SHORT 300 /* every dimension up to here is tried */
static const size_t long_sizes[] = {384, 768, 1000, 1536, LONGEST};

/* ---- the functions, all as one kind ------------------------------------------------------------------------------ */

typedef nodedb_vamana__kernel_set kernel_set;

/* What a function takes: the type of the query's and of the vectors' components, and if it is the distance. */
typedef enum component { FLOAT, BYTE, SIGNED, NIBBLE } component;
typedef struct function {
    const char *name;
    component query, vector;
    bool l2;
} function;
static const function functions[MANY_FUNCTIONS] = {
    {"l2_f32", FLOAT, FLOAT, true},    {"dot_f32", FLOAT, FLOAT, false},   {"dot_f32_u8", FLOAT, BYTE, false},
    {"l2_u8", BYTE, BYTE, true},       {"dot_u8", BYTE, BYTE, false},      {"l2_i8", SIGNED, SIGNED, true},
    {"dot_i8", SIGNED, SIGNED, false}, {"dot_i8_u8", SIGNED, BYTE, false}, {"l2_code4", SIGNED, NIBBLE, true},
    {"dot_code4", SIGNED, NIBBLE, false}};

static float one(const kernel_set *set, int f, const void *q, const void *v, size_t n) {
    const nodedb_vamana_kernels *k = &set->one;
    switch (f) {
    case 0: return k->l2_f32((const float *)q, (const float *)v, n);
    case 1: return k->dot_f32((const float *)q, (const float *)v, n);
    case 2: return k->dot_f32_u8((const float *)q, (const uint8_t *)v, n);
    case 3: return k->l2_u8((const uint8_t *)q, (const uint8_t *)v, n);
    case 4: return k->dot_u8((const uint8_t *)q, (const uint8_t *)v, n);
    case 5: return k->l2_i8((const int8_t *)q, (const int8_t *)v, n);
    case 6: return k->dot_i8((const int8_t *)q, (const int8_t *)v, n);
    case 7: return k->dot_i8_u8((const int8_t *)q, (const uint8_t *)v, n);
    case 8: return k->l2_code4((const int8_t *)q, (const uint8_t *)v, n);
    default: return k->dot_code4((const int8_t *)q, (const uint8_t *)v, n);
    }
}

static nodedb_vamana__many *many(const kernel_set *set, int f) {
    nodedb_vamana__many *all[MANY_FUNCTIONS];
    all[0] = set->l2_f32, all[1] = set->dot_f32, all[2] = set->dot_f32_u8, all[3] = set->l2_u8, all[4] = set->dot_u8;
    all[5] = set->l2_i8, all[6] = set->dot_i8, all[7] = set->dot_i8_u8, all[8] = set->l2_code4;
    all[9] = set->dot_code4;
    return all[f];
}

static bool usable(size_t i) { return nodedb_vamana_kernels_usable(nodedb_vamana_kernels_at(i)); }
/* For every usable set and every function that takes n components. */
#define FOR_ALL(set, f, n)                                                                                             \
    for (size_t s_ = 0; nodedb_vamana__sets[s_] != NULL; s_++)                                                         \
        for (int f = 0; f < MANY_FUNCTIONS && usable(s_); f++)                                                         \
            for (const kernel_set *set = nodedb_vamana__sets[s_];                                                      \
                 set != NULL && (functions[f].vector != NIBBLE || (n) % 64 == 0); set = NULL)

static size_t bytes_of(component c, size_t n) { return c == FLOAT ? 4 * n : c == NIBBLE ? n / 2 : n; }

static double component_at(component c, const void *v, size_t i) {
    uint8_t byte;
    float number;
    switch (c) {
    case FLOAT: memcpy(&number, (const char *)v + 4 * i, 4); return (double)number;
    case BYTE: return ((const uint8_t *)v)[i];
    case SIGNED: return ((const int8_t *)v)[i];
    default: /* blocks of 32 bytes for 64 components, whose second half is in the high nibbles */
        byte = ((const uint8_t *)v)[i / 64 * 32 + i % 32];
        return i % 64 < 32 ? byte & 15 : byte >> 4;
    }
}

/* The result by definition. All sums of integers are exact in a double. `magnitude`: of the terms. */
static double by_definition(int f, const void *q, const void *v, size_t n, double *magnitude) {
    double sum = 0;
    size_t i;
    *magnitude = 0;
    for (i = 0; i < n; i++) {
        double x = component_at(functions[f].query, q, i), y = component_at(functions[f].vector, v, i);
        double term = !functions[f].l2 ? x * y : functions[f].vector == NIBBLE ? y * (4 * y - x) : (x - y) * (x - y);
        sum += term;
        *magnitude += fabs(term);
    }
    return sum;
}

/* Is it what the header promises? Says what is not. */
static bool right(const kernel_set *set, int f, const void *q, const void *v, size_t n, const char *what) {
    double magnitude, want = by_definition(f, q, v, n, &magnitude);
    float got = one(set, f, q, v, n);
    double bound = functions[f].query == FLOAT ? ((double)n / 4 + 8) / 16777216 * magnitude : 0;
    if (functions[f].query == FLOAT ? fabs((double)got - want) <= bound : got == (float)want) return true;
    fprintf(stderr, "%s %s, n = %zu, %s: %.9g, not %.17g\n", set->one.name, functions[f].name, n, what, (double)got,
            want);
    return false;
}

static void fill(uint8_t *at, component c, size_t n, uint64_t *state) {
    size_t i, bytes = bytes_of(c, n);
    if (c != FLOAT)
        for (i = 0; i < bytes; i++) at[i] = (uint8_t)test_random(state);
    else
        for (i = 0; i < n; i++) {
            float number = (float)((double)(test_random(state) >> 11) / 4503599627370496.0 - 1);
            memcpy(at + 4 * i, &number, 4);
        }
}

/* Two buffers, for a query and a vector of the longest and some more. Never freed. */
static uint8_t *buffers[2];
static void have_buffers(void) {
    int i;
    for (i = 0; i < 2 && buffers[i] == NULL; i++)
        if ((buffers[i] = (uint8_t *)malloc(4 * (LONGEST + 65))) == NULL) exit(2);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

TEST(every_kernel_is_right_for_every_dimension_and_alignment) {
    uint64_t state = test_seed;
    size_t n, i, offset;
    have_buffers();
    for (i = 0; nodedb_vamana__sets[i] != NULL; i++)
        printf("kernel %s: %s\n", nodedb_vamana__sets[i]->one.name, usable(i) ? "tested" : "not on this CPU");
    for (n = 1; n <= SHORT; n++)
        FOR_ALL(set, f, n) {
            for (offset = 0; offset < 16; offset++) {
                size_t to_query = offset, to_vector = (offset * 7 + n) % 16; /* every offset of each, in some pairs */
                uint8_t *q = buffers[0] + to_query * (functions[f].query == FLOAT ? 4 : 1);
                uint8_t *v = buffers[1] + to_vector * (functions[f].vector == FLOAT ? 4 : 1);
                fill(q, functions[f].query, n, &state);
                fill(v, functions[f].vector, n, &state);
                CHECK(right(set, f, q, v, n, "random"));
            }
        }
}

TEST(every_kernel_is_right_for_long_vectors) {
    uint64_t state = test_seed;
    size_t i, n;
    have_buffers();
    for (i = 0; i < 2 * sizeof long_sizes / sizeof long_sizes[0]; i++) {
        n = long_sizes[i / 2];
        if (i % 2 == 1) n = (n + 63) / 64 * 64; /* as an index would pad it, and as 4-bit codes need it */
        FOR_ALL(set, f, n) {
            uint8_t *q = buffers[0] + (functions[f].query == FLOAT ? 4 : 1) * (i % 3);
            uint8_t *v = buffers[1] + (functions[f].vector == FLOAT ? 4 : 1) * (i % 5);
            fill(q, functions[f].query, n, &state);
            fill(v, functions[f].vector, n, &state);
            CHECK(right(set, f, q, v, n, "random"));
        }
    }
}

/* Each lane of 16 or 32 bits is filled as far as bytes can fill it. */
TEST(sums_of_extreme_bytes_do_not_overflow_at_any_dimension) {
    static const uint8_t extremes[] = {0x00, 0xFF, 0x80, 0x7F, 0x01, 0xF0, 0x0F};
    enum { KINDS = sizeof extremes };
    size_t i, j, n, kind, sizes = SHORT + 2 * sizeof long_sizes / sizeof long_sizes[0];
    have_buffers();
    for (i = 1; i <= sizes; i++) {
        if (i <= SHORT && i % 32 > 1 && i % 16 != 15) continue; /* blocks, and one more or less */
        n = i <= SHORT ? i : long_sizes[(i - SHORT - 1) / 2];
        if (i > SHORT && i % 2 == 0) n = (n + 63) / 64 * 64;
        for (kind = 0; kind < KINDS * KINDS * 2; kind++) {
            uint8_t a = extremes[kind % KINDS], b = extremes[kind / KINDS % KINDS];
            if (n > 2000 && kind % KINDS > 3) continue; /* not all of them so long */
            for (j = 0; j < n; j++) { /* all over; or alternating, by turns in phase and out of it */
                buffers[0][j] = kind < KINDS * KINDS || j % 2 == 0 ? a : b;
                buffers[1][j] = kind < KINDS * KINDS || j % 4 < 2 ? b : a;
            }
            FOR_ALL(set, f, n)
                if (functions[f].query != FLOAT) CHECK(right(set, f, buffers[0], buffers[1], n, "extreme"));
        }
    }
}

/* A single component that differs: no place is left out, taken twice, or met by another's partner. */
TEST(every_component_counts_once_and_in_its_own_place) {
    uint64_t state = test_seed;
    size_t n, i;
    have_buffers();
    for (n = 1; n <= SHORT; n += n < 70 ? 1 : 29) {
        size_t rounded = n > 64 && n % 2 == 0 ? n / 64 * 64 : n; /* 4-bit codes among them */
        FOR_ALL(set, f, rounded) {
            const function *fn = &functions[f];
            for (i = 0; i < rounded; i++) {
                uint8_t *q = buffers[0], *v = buffers[1];
                float three = 3, five = 5;
                memset(q, 0, bytes_of(fn->query, rounded));
                memset(v, 0, bytes_of(fn->vector, rounded));
                if (fn->query == FLOAT) memcpy(q + 4 * i, &three, 4);
                else q[i] = (uint8_t)(test_random(&state) | 1);
                if (fn->vector == FLOAT) memcpy(v + 4 * i, &five, 4);
                else if (fn->vector == NIBBLE) v[i / 64 * 32 + i % 32] = i % 64 < 32 ? 0x07 : 0xD0;
                else v[i] = (uint8_t)(test_random(&state) | 1);
                CHECK(right(set, f, q, v, rounded, "one component"));
            }
        }
    }
}

/* A search compares distances that were measured in lists of any length, so they must not depend on it. */
TEST(a_list_gives_to_the_last_bit_what_each_vector_alone_gives) {
    static const size_t sizes[] = {1, 3, 16, 31, 64, 65, 96, 100, 127, 128, 129, 192, 256, 300, 384, 960, 1536};
    enum { VECTORS = 29, COUNTS = 23 };
    uint64_t state = test_seed;
    size_t i, j, count;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t n = sizes[i];
        FOR_ALL(set, f, n) {
            const function *fn = &functions[f];
            size_t stride = bytes_of(fn->vector, n) + 4 * (i % 3); /* with a gap, or without */
            uint8_t *query = (uint8_t *)malloc(bytes_of(fn->query, n)), *base = (uint8_t *)malloc(VECTORS * stride);
            if (query == NULL || base == NULL) exit(2);
            fill(query, fn->query, n, &state);
            for (j = 0; j < VECTORS; j++) fill(base + j * stride, fn->vector, n, &state);
            for (count = 0; count <= COUNTS; count++) {
                uint32_t slots[COUNTS];
                float out[COUNTS + 1], alone;
                memset(out, 0x5A, sizeof out);
                for (j = 0; j < count; j++) slots[j] = (uint32_t)(test_random(&state) % VECTORS); /* some twice */
                many(set, f)(query, base, stride, slots, count, n, out);
                for (j = 0; j <= COUNTS; j++) {
                    if (j < count) alone = one(set, f, query, base + slots[j] * stride, n);
                    else memset(&alone, 0x5A, sizeof alone); /* not written */
                    if (memcmp(&alone, &out[j], sizeof alone) == 0) continue;
                    fprintf(stderr, "%s %s, n = %zu: number %zu of %zu is %.9g, not %.9g\n", set->one.name, fn->name, n,
                            j, count, (double)out[j], (double)alone);
                    CHECK(!"a list gives something else");
                }
            }
            free(query);
            free(base);
        }
    }
}

/* Vectors that end where the memory ends: a byte further is a fault. And begin where it begins. */
TEST(no_kernel_touches_a_byte_beside_its_vectors) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n, i;
    uint64_t state = test_seed;
    uint8_t *pages[2]; /* two readable pages each, between two that are not */
    for (i = 0; i < 2; i++) {
        void *map = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(map != MAP_FAILED);
        pages[i] = (uint8_t *)map + page;
        REQUIRE(mprotect(map, page, PROT_NONE) == 0 && mprotect(pages[i] + 2 * page, page, PROT_NONE) == 0);
    }
    for (n = 1; n <= SHORT; n++)
        FOR_ALL(set, f, n) {
            size_t query_bytes = bytes_of(functions[f].query, n), bytes = bytes_of(functions[f].vector, n);
            uint8_t *q = pages[0] + 2 * page - query_bytes, *v = pages[1] + 2 * page - bytes;
            uint32_t slots[5] = {0, 0, 0, 0, 0};
            float out[5];
            fill(q, functions[f].query, n, &state);
            fill(v, functions[f].vector, n, &state);
            CHECK(right(set, f, q, v, n, "at the end"));
            many(set, f)(q, v, bytes, slots, 5, n, out);
            CHECK(out[0] == out[4]);
            memmove(pages[0], q, query_bytes);
            memmove(pages[1], v, bytes);
            CHECK(right(set, f, pages[0], pages[1], n, "at the beginning"));
        }
    for (i = 0; i < 2; i++) CHECK_EQ(munmap(pages[i] - page, 4 * page), 0);
}

TEST(every_set_turns_components_to_the_last_bit_as_plain_c_does_and_touches_none_beside_them) {
    enum { MOST = 2048, SPARE = 9 };
    static float given[MOST + 2 * SPARE], want[MOST + 2 * SPARE], got[MOST + 2 * SPARE];
    uint64_t state = test_seed;
    uint32_t n, i, at, set;
    for (set = 0; nodedb_vamana_kernels_at(set) != NULL; set++) {
        const nodedb_vamana__kernel_set *k =
            (const nodedb_vamana__kernel_set *)(const void *)nodedb_vamana_kernels_at(set);
        if (!nodedb_vamana_kernels_usable(&k->one)) continue;
        for (n = 1; n <= MOST; n *= 2)
            for (at = 0; at < SPARE; at++) {
                for (i = 0; i < MOST + 2 * SPARE; i++) given[i] = (float)(int32_t)test_random(&state) * 1e-5f;
                if (n > 3) given[at + 1] = 0, given[at + 3] = -0.0f;
                memcpy(want, given, sizeof want), memcpy(got, given, sizeof got);
                nodedb_vamana__plain_turn_part(want + at, n, state);
                k->turn_part(got + at, n, state);
                CHECK(memcmp(want, got, sizeof want) == 0);
            }
    }
}

TEST(the_best_usable_set_is_chosen_unless_another_is_named) {
    const kernel_set *best = NULL;
    nodedb_error err;
    size_t i;
    CHECK(!nodedb_vamana_kernels_usable(NULL));
    for (i = 0; nodedb_vamana_kernels_at(i) != NULL; i++) {
        const nodedb_vamana_kernels *k = nodedb_vamana_kernels_at(i);
        const kernel_set *named = nodedb_vamana__choose_kernels(k->name, &err);
        CHECK((named != NULL) == nodedb_vamana_kernels_usable(k));
        if (named == NULL) CHECK_EQ(err.status, NODEDB_ERR_UNSUPPORTED);
        else CHECK(&named->one == k);
        if (named != NULL) best = named;
    }
    CHECK(i > 0 && strcmp(nodedb_vamana_kernels_at(0)->name, "plain") == 0 && usable(0));
    CHECK(nodedb_vamana_kernels_at(i + 1) == NULL && nodedb_vamana_kernels_at(SIZE_MAX) == NULL);
    CHECK(nodedb_vamana__choose_kernels(NULL, &err) == best);
}

#if !defined(SUITE)
#define SUITE "vamana_kernels"
#endif
TEST_MAIN(SUITE)
