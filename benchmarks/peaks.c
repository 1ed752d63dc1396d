/* What two cores can do at most: loops on registers alone for arithmetic, a buffer that no cache holds for memory. */
#include <immintrin.h>
#include <stdint.h>
#include <stddef.h>

/* Reads `bytes` once with all threads; returns a sum, so that nothing is left out. */
int64_t read_all(const char *at, size_t bytes) {
    int64_t total = 0;
    const int64_t *words = (const int64_t *)at;
#pragma omp parallel for simd reduction(+ : total) schedule(static)
    for (size_t i = 0; i < bytes / 8; i++)
        total += words[i];
    return total;
}

/* a = b + 3 c: STREAM's triad. */
void triad(float *a, const float *b, const float *c, size_t count) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < count; i++)
        a[i] = b[i] + 3.0f * c[i];
}

#define CHAINS 20
#define LOOP(name, type, zero, step) \
    int name(long rounds) { \
        int kept = 0; \
        _Pragma("omp parallel reduction(+ : kept)") { \
            type sums[CHAINS], x = zero, y = zero; \
            for (int i = 0; i < CHAINS; i++) \
                sums[i] = zero; \
            for (long round = 0; round < rounds; round++) { \
                __asm__ volatile("" : "+v"(x), "+v"(y)); \
                _Pragma("GCC unroll 20") for (int i = 0; i < CHAINS; i++) sums[i] = step; \
            } \
            for (int i = 0; i < CHAINS; i++) { \
                union { type whole; int words[sizeof(type) / 4]; } last = {sums[i]}; \
                kept += last.words[0]; \
            } \
        } \
        return kept; \
    }

#ifdef __AVX512F__
LOOP(float32, __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(x, y, sums[i]))
#elif defined(__FMA__)
#undef CHAINS
#define CHAINS 12
LOOP(float32, __m256, _mm256_setzero_ps(), _mm256_fmadd_ps(x, y, sums[i]))
#endif
#ifdef __AVX512BF16__
LOOP(bfloat16, __m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)y))
#endif
#ifdef __AVX512VNNI__
LOOP(int8, __m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(sums[i], x, y))
#endif
