/* Numbers of a cache block as pairs of bfloat16, the first of each pair low: of two rows that are neighbours, 16
 * columns a vector. Codes become the whole numbers that they are, which bfloat16 holds. */
#ifndef PLIMSOLL_CACHE_PAIRS_H
#define PLIMSOLL_CACHE_PAIRS_H

#include "cache.h"
#include "pairs.h"

/* Numbers of both, low first, as bfloat16, to nearest even; subnormal ones become 0 and NaN stays NaN. */
INLINE vu narrowed(vf low, vf high)
{
    vu both;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
    return both;
}

/* Columns of two rows as pairs: 16 in `first`, and 16 more in `second`. */
INLINE void interleave(const uint16_t *even, const uint16_t *odd, uint32_t there, vu *first, vu *second)
{
    static const uint16_t order[64] = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
        11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
        22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63,
    };
    __m512i a = _mm512_maskz_loadu_epi16(there, even), b = _mm512_maskz_loadu_epi16(there, odd);
    *first = (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(order), b);
    *second = (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(order + 32), b);
}

/* What a factor of a product is: numbers of bfloat16, bytes, the lower or upper halves of bytes, keys of 6 bits, or
 * pairs of bfloat16 already. */
enum factor { OF_BF16, OF_BYTES, OF_LOW, OF_HIGH, OF_SIX, OF_PAIRS };

/* The numbers from 0 to 63 as bfloat16. */
static const uint16_t NUMBERS[64] = {
    0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140,
    0x4150, 0x4160, 0x4170, 0x4180, 0x4188, 0x4190, 0x4198, 0x41a0, 0x41a8, 0x41b0, 0x41b8, 0x41c0, 0x41c8,
    0x41d0, 0x41d8, 0x41e0, 0x41e8, 0x41f0, 0x41f8, 0x4200, 0x4204, 0x4208, 0x420c, 0x4210, 0x4214, 0x4218,
    0x421c, 0x4220, 0x4224, 0x4228, 0x422c, 0x4230, 0x4234, 0x4238, 0x423c, 0x4240, 0x4244, 0x4248, 0x424c,
    0x4250, 0x4254, 0x4258, 0x425c, 0x4260, 0x4264, 0x4268, 0x426c, 0x4270, 0x4274, 0x4278, 0x427c,
};

INLINE vu bytes_of(const uint8_t *from, uint32_t there)
{
    if (there == ~0u) return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
    return (vu)_mm512_cvtepu8_epi32(_mm512_castsi512_si128(_mm512_maskz_loadu_epi8(there, from)));
}

/* 16 columns of two rows of bytes as pairs of the numbers that they are. */
INLINE vu byte_pairs(const uint8_t *even, const uint8_t *odd, uint32_t there)
{
    static const uint16_t upper[32] = {
        1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11, 43, 13, 45, 15, 47,
        17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63,
    };
    __m512i a = (__m512i)_mm512_cvtepi32_ps((__m512i)bytes_of(even, there));
    __m512i b = (__m512i)_mm512_cvtepi32_ps((__m512i)bytes_of(odd, there));
    return (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(upper), b);
}

/* The same of halves of bytes. A permutation of 32 looks at 5 bits; of the fifth bit both halves of the numbers are. */
INLINE vu half_pairs(const uint8_t *even, const uint8_t *odd, const int shift, uint32_t there)
{
    vu both = bytes_of(even, there) | bytes_of(odd, there) << 16;
    __m512i numbers = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)NUMBERS));
    return (vu)_mm512_permutexvar_epi16((__m512i)(both >> shift), numbers);
}

/* 16 keys' dimensions 2 k and 2 k + 1, as `cache.h` lays out 6 bits; `place`: where k's upper bits begin. */
INLINE vu six_pairs(const uint8_t *pairs, const uint8_t *uppers, int place)
{
    vu lower = bytes_of(pairs, ~0u), upper = bytes_of(uppers, ~0u);
    vu codes = ((lower | lower << 12) & 0x000f000f) | ((upper << (4 - place) | upper << (18 - place)) & 0x00300030);
    __m512i low = _mm512_loadu_si512(NUMBERS), high = _mm512_loadu_si512(NUMBERS + 32);
    return (vu)_mm512_permutex2var_epi16(low, (__m512i)codes, high);
}

#endif
