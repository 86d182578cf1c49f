/* The tests of the distance kernels once more, with all of x86's sets in an emulation (SIMDe, Debian's libsimde-dev),
 * as few machines have AVX-512 and its VNNI. Skipped where SIMDe is missing, and on other architectures. */
#if defined(__x86_64__) && defined(__GNUC__) && defined(__has_include)
#if __has_include(<simde/x86/avx512.h>)
#define EMULATED 1
#endif
#endif

#if defined(EMULATED)
#define _GNU_SOURCE
#include <immintrin.h> /* before SIMDe takes its names */
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_INLINE /* or the compiler takes minutes */
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#include <stdint.h>
#include <string.h>

/* What SIMDe 0.7.4 lacks of what we use, or reads beyond the mask. */
static inline simde__m512i masked_load_bytes(uint64_t mask, const void *from) {
    uint8_t bytes[64];
    simde__m512i v;
    int i;
    for (i = 0; i < 64; i++) bytes[i] = mask >> i & 1 ? ((const uint8_t *)from)[i] : 0;
    memcpy(&v, bytes, sizeof v);
    return v;
}
static inline simde__m512 masked_load_floats(uint16_t mask, const float *from) {
    float numbers[16];
    simde__m512 v;
    int i;
    for (i = 0; i < 16; i++) numbers[i] = mask >> i & 1 ? from[i] : 0;
    memcpy(&v, numbers, sizeof v);
    return v;
}
static inline simde__m256i masked_load_eight(const void *from, simde__m256i mask) {
    int32_t numbers[8], masks[8];
    simde__m256i v;
    int i;
    memcpy(masks, &mask, sizeof masks);
    memset(numbers, 0, sizeof numbers);
    for (i = 0; i < 8; i++)
        if (masks[i] < 0) memcpy(&numbers[i], (const char *)from + 4 * i, 4);
    memcpy(&v, numbers, sizeof v);
    return v;
}
static inline simde__m512i shuffle_quarters(simde__m512i a, simde__m512i b, int imm) {
    uint8_t in[2][64], out[64];
    int i;
    memcpy(in[0], &a, 64);
    memcpy(in[1], &b, 64);
    for (i = 0; i < 4; i++) memcpy(out + 16 * i, in[i / 2] + 16 * (imm >> 2 * i & 3), 16);
    memcpy(&a, out, 64);
    return a;
}
static inline simde__m512i widen_bytes(__m128i bytes) {
    uint8_t in[16];
    int32_t out[16];
    simde__m512i v;
    int i;
    memcpy(in, &bytes, sizeof in);
    for (i = 0; i < 16; i++) out[i] = in[i];
    memcpy(&v, out, sizeof v);
    return v;
}
static inline simde__m512 numbers_to_floats(simde__m512i numbers) {
    int32_t in[16];
    float out[16];
    simde__m512 v;
    int i;
    memcpy(in, &numbers, sizeof in);
    for (i = 0; i < 16; i++) out[i] = (float)in[i];
    memcpy(&v, out, sizeof v);
    return v;
}
#undef _mm512_madd_epi16 /* there, but as that of another function */
#undef _mm256_maskload_ps
#undef _mm256_maskload_epi32
#undef _mm512_maskz_loadu_epi8
#undef _mm512_maskz_loadu_ps
#undef _mm512_maskz_shuffle_i64x2
#undef _mm512_maskz_cvtepu8_epi32
#undef _mm512_maskz_cvtepi32_ps
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm256_maskload_ps(from, mask) _mm256_castsi256_ps(masked_load_eight(from, mask))
#define _mm256_maskload_epi32(from, mask) masked_load_eight(from, mask)
#define _mm512_maskz_loadu_epi8(mask, from) masked_load_bytes(mask, from)
#define _mm512_maskz_loadu_ps(mask, from) masked_load_floats(mask, from)
#define _mm512_maskz_shuffle_i64x2(mask, a, b, imm) shuffle_quarters(a, b, imm) /* all our masks are full */
#define _mm512_maskz_cvtepu8_epi32(mask, bytes) widen_bytes(bytes)
#define _mm512_maskz_cvtepi32_ps(mask, numbers) numbers_to_floats(numbers)

#define NODEDB_VAMANA__TARGET(names) /* no instruction but those of every x86-64 */
#define NODEDB_VAMANA__CPU_HAS(name) 1
#define SUITE "vamana_emulated"
#include "test_vamana_kernels.c"

#else
#include "test.h"
TEST(skipped_for_want_of_simde) { fprintf(stderr, "no SIMDe (libsimde-dev), or not x86-64: nothing is emulated\n"); }
TEST_MAIN("vamana_emulated")
#endif
