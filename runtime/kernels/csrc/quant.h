/* How weights of 4 or 8 bits lie in memory, w = (code - zero) * scale or code * scale + minimum: in panels of PANEL
 * outputs, each K / group groups one after another. A group of `group` columns is
 *   4 bits: codes [group / 8][PANEL] of 8 nibbles, less 8: even columns in the low half of a word, odd ones in the
 *           high half;
 *   8 bits: codes [group][PANEL] int8;
 * and its ends: scales [PANEL], then zero points [PANEL] int8, less 8, of 4 bits, or minimums [PANEL], as the kind of
 * scale says. Of 8 bits, codes without minimums are symmetric.
 *
 * Where scales are bytes (GGUF's super-blocks), each SUPER columns begin with what the bytes of their groups are
 * multiplied by: float16 [PANEL] for the scales and, where there are minimums, float16 [PANEL] for these. Both products
 * are exact in float32. */
#ifndef PLIMSOLL_QUANT_H
#define PLIMSOLL_QUANT_H

#include "half.h"

/* Columns of a super-block. */
#define SUPER 256

enum scale { SCALE_F16, SCALE_BF16, SCALE_F32, SCALE_F16_MINIMUM, SCALE_BYTE, SCALE_BYTE_MINIMUM };

typedef struct {
    long K, group, panel; /* columns, columns of a group, bytes of a panel */
    int scale;
} shape;

INLINE int in_supers(int scale) { return scale >= SCALE_BYTE; }
INLINE int has_minimum(int scale) { return scale == SCALE_F16_MINIMUM || scale == SCALE_BYTE_MINIMUM; }
/* Whether a code of 0, as it lies, may stand for another number than 0: outputs need the sum of x. */
INLINE int has_offset(int bits, int scale) { return bits == 4 || has_minimum(scale); }

INLINE long code_bytes(int bits, long columns) { return columns * PANEL * bits / 8; }
INLINE long scale_bytes(int scale) { return in_supers(scale) ? 1 : scale == SCALE_F32 ? 4 : 2; }
/* Of a zero point or a minimum. */
INLINE long zero_bytes(int bits, int scale)
{
    if (has_minimum(scale)) return scale == SCALE_F16_MINIMUM ? 2 : 1;
    return bits == 4 && !in_supers(scale);
}
INLINE long group_bytes(int bits, shape s)
{
    return code_bytes(bits, s.group) + PANEL * (scale_bytes(s.scale) + zero_bytes(bits, s.scale));
}
/* What begins SUPER columns of a panel. */
INLINE long super_bytes(int scale) { return in_supers(scale) ? 2 * PANEL * (1 + has_minimum(scale)) : 0; }
INLINE long panel_bytes(int bits, shape s)
{
    return s.K / s.group * group_bytes(bits, s) + s.K / SUPER * super_bytes(s.scale);
}

/* The codes of the group at column k of a panel, which lie at `w` or after a super-block's beginning there: `super`. */
INLINE const char *group_at(shape s, long k, const char *w, const char **super)
{
    if (!in_supers(s.scale) || k % SUPER) return w;
    *super = w;
    return w + super_bytes(s.scale);
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

/* Scale and minimum of output i of a group, its ends at `p`: the minimum where has_minimum says so. */
INLINE void one_end(int kind, const char *p, const char *super, long i, float *scale, float *minimum)
{
    if (in_supers(kind)) {
        *scale = one_scale(SCALE_F16, super, i) * (float)((const int8_t *)p)[i];
        if (has_minimum(kind))
            *minimum = one_scale(SCALE_F16, super + 2 * PANEL, i) * (float)((const int8_t *)p)[PANEL + i];
        return;
    }
    *scale = one_scale(kind, p, i);
    if (has_minimum(kind)) *minimum = one_scale(SCALE_F16, p + PANEL * scale_bytes(kind), i);
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
#elif defined(__aarch64__)
    const uint16x4_t narrow = vld1_u16((const uint16_t *)(p + 2 * v * LANES));
    return kind == SCALE_BF16 ? (vf)vshll_n_u16(narrow, 16) : (vf)vcvt_f32_f16((float16x4_t)narrow);
#else
    vf wide;
    for (int i = 0; i < LANES; i++) wide[i] = one_scale(kind, p, v * LANES + i);
    return wide;
#endif
}

#endif
