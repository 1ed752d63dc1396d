/* A piece of six rows quantized at once, where vectors have 16 lanes: what int8.c does row by row, to the bit. */
#ifndef PLIMSOLL_SIX_ROWS_H
#define PLIMSOLL_SIX_ROWS_H

#include "int8.h"

#if defined(__AVX512BW__)
#define SIX 6

/* Lane r of the result: what is left of v[r] when all its lanes have met. */
#define FOLD_SIX(NAME, MEET)                                                                                           \
    INLINE __m512i NAME(const __m512i *v)                                                                              \
    {                                                                                                                  \
        __m512i pair[3];                                                                                               \
        UNROLL for (int i = 0; i < 3; i++)                                                                             \
            pair[i] = MEET(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),                                              \
                           _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));                                             \
        /* Lanes of 128 bits: rows 0 to 3, and rows 4, 5, 4, 5. */                                                     \
        const __m512i four = MEET(_mm512_unpacklo_epi64(pair[0], pair[1]), _mm512_unpackhi_epi64(pair[0], pair[1]));   \
        const __m512i two = MEET(_mm512_unpacklo_epi64(pair[2], pair[2]), _mm512_unpackhi_epi64(pair[2], pair[2]));    \
        const __m512i half = MEET(_mm512_shuffle_i64x2(four, two, 0x44), _mm512_shuffle_i64x2(four, two, 0xee));       \
        /* Now four, four, two, two: lanes 0 to 3 are rows 0 to 3, lanes 4 and 5 the others. */                        \
        return MEET(_mm512_shuffle_i64x2(half, half, 0x08), _mm512_shuffle_i64x2(half, half, 0x0d));                   \
    }
FOLD_SIX(most_of_six, _mm512_max_epi32)
FOLD_SIX(sum_of_six, _mm512_add_epi32)

/* The piece of six rows `ldx` numbers apart, into a tile six rows high. parts [6]: what each adds to the sum of its
 * run. Returns 0, with nothing done, where a row has a number that is not finite or none that counts. */
INLINE int quantize_six(const int bits, const float *x, long ldx, int32_t excess, uint32_t *quads, uint32_t *ends,
                        float *parts)
{
    __m512i most[SIX], sums[SIX], halves[SIX], bytes[SIX / 2];
    UNROLL for (int r = 0; r < SIX; r++) {
        const __m512i low = _mm512_loadu_si512(x + r * ldx), high = _mm512_loadu_si512(x + r * ldx + LANES);
        const __m512i all = _mm512_set1_epi32(0x7fffffff);
        most[r] = _mm512_max_epi32(_mm512_and_si512(low, all), _mm512_and_si512(high, all));
    }
    const __m512i power = most_of_six(most);
    const __m512 largest = _mm512_castsi512_ps(power);
    if (_mm512_mask_cmp_epi32_mask(0x3f, power, _mm512_set1_epi32(0x7f800000), _MM_CMPINT_NLT) |
        _mm512_mask_cmp_ps_mask(0x3f, largest, _mm512_set1_ps(LEAST), _CMP_LT_OQ))
        return 0;
    const __m512 scales = _mm512_div_ps(largest, _mm512_set1_ps(127));
    float factors[LANES] __attribute__((aligned(64)));
    _mm512_store_ps(factors, _mm512_div_ps(_mm512_set1_ps(127), largest));
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    UNROLL for (int r = 0; r < SIX; r++) {
        const __m512 factor = _mm512_set1_ps(factors[r]);
        __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + r * ldx), factor));
        __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + r * ldx + LANES), factor));
        sums[r] = _mm512_add_epi32(low, high);
        if (bits == 4) low = _mm512_permutexvar_epi32(order, low), high = _mm512_permutexvar_epi32(order, high);
        halves[r] = _mm512_packs_epi32(low, high);
    }
    /* Words of two rows: of the first row quads 0 and 4, of the second 0 and 4, then 1 and 5, and so on. */
    UNROLL for (int i = 0; i < SIX / 2; i++) bytes[i] = _mm512_packs_epi16(halves[2 * i], halves[2 * i + 1]);
    /* Where word i of all 48, quad i / 6 of row i % 6, lies: 16 more in bytes[1]; rows 4 and 5 lie in bytes[2]. */
#define AT(i) ((i) / 6 % 4 * 4 + (i) / 24 + (i) % 6 % 2 * 2 + ((i) % 6 / 2 == 1 ? 16 : 0))
#define ALL_AT(i)                                                                                                      \
    AT(i), AT(i + 1), AT(i + 2), AT(i + 3), AT(i + 4), AT(i + 5), AT(i + 6), AT(i + 7), AT(i + 8), AT(i + 9),          \
        AT(i + 10), AT(i + 11), AT(i + 12), AT(i + 13), AT(i + 14), AT(i + 15)
    static const int32_t at[48] __attribute__((aligned(64))) = {ALL_AT(0), ALL_AT(16), ALL_AT(32)};
    UNROLL for (int i = 0; i < 3; i++) {
        const __m512i from = _mm512_load_si512(at + 16 * i);
        __m512i made = _mm512_permutex2var_epi32(bytes[0], from, bytes[1]);
        __mmask16 others = 0;
        for (int j = 0; j < 16; j++) others |= (__mmask16)(((16 * i + j) % 6 >= 4) << j);
        made = _mm512_mask_permutexvar_epi32(made, others, from, bytes[2]);
        _mm512_storeu_si512(quads + 16 * i, made);
    }
#undef ALL_AT
#undef AT
    const __m512i codes = sum_of_six(sums);
    const __m512i start = _mm512_mullo_epi32(codes, _mm512_set1_epi32(-excess));
    /* Each row's start and scale. */
    const __m512i both = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    _mm512_mask_storeu_epi32(ends, 0xfff, _mm512_permutex2var_epi32(start, both, _mm512_castps_si512(scales)));
    _mm512_storeu_ps(parts, _mm512_mul_ps(scales, _mm512_cvtepi32_ps(codes)));
    return 1;
}
#endif

#endif
