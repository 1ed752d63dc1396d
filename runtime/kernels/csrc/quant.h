/* How weights of 4 or 8 bits lie in memory, w = (code - zero) * scale or code * scale + minimum: in panels of PANEL
 * outputs, each K / group groups one after another. A group of `group` columns is
 *   4 bits: codes [group / 8][PANEL] of 8 nibbles, less 8: even columns in the low half of a word, odd ones in the
 *           high half; scales [PANEL] of 2 or 4 bytes; zero points [PANEL] int8, less 8, or minimums [PANEL] float16;
 *   8 bits: codes [group][PANEL] int8; scales [PANEL] float32. */
#ifndef PLIMSOLL_QUANT_H
#define PLIMSOLL_QUANT_H

#include "half.h"

enum scale { SCALE_F16, SCALE_BF16, SCALE_F32, SCALE_F16_MINIMUM };

typedef struct {
    long K, group, panel; /* columns, columns of a group, bytes of a panel */
    int scale;
} shape;

INLINE long code_bytes(int bits, long columns) { return columns * PANEL * bits / 8; }
INLINE long scale_bytes(int scale) { return scale == SCALE_F32 ? 4 : 2; }
INLINE long zero_bytes(int scale) { return scale == SCALE_F16_MINIMUM ? 2 : 1; }
INLINE long group_bytes(int bits, shape s)
{
    return code_bytes(bits, s.group) + PANEL * (bits == 4 ? scale_bytes(s.scale) + zero_bytes(s.scale) : 4);
}

INLINE float one_scale(int kind, const char *p, long i)
{
    float whole;
    uint16_t half;
    if (kind == SCALE_F32) {
        memcpy(&whole, p + 4 * i, 4);
        return whole;
    }
    memcpy(&half, p + 2 * i, 2);
    return kind == SCALE_BF16 ? from_bf16(half) : from_f16(half);
}

INLINE vf load_scale(int kind, const char *p, int v)
{
    if (kind == SCALE_F32) return load((const float *)p + v * LANES);
#if defined(__AVX512F__)
    __m256i narrow = _mm256_loadu_si256((const __m256i *)(p + 2 * v * LANES));
    if (kind != SCALE_BF16) return (vf)_mm512_cvtph_ps(narrow);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
#elif defined(__F16C__)
    __m128i narrow = _mm_loadu_si128((const __m128i *)(p + 2 * v * LANES));
    if (kind != SCALE_BF16) return (vf)_mm256_cvtph_ps(narrow);
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
#else
    vf wide;
    for (int i = 0; i < LANES; i++) wide[i] = one_scale(kind, p, v * LANES + i);
    return wide;
#endif
}

#endif
