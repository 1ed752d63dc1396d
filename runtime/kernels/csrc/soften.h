/* What becomes of a row's scores of a block where attention runs in pairs of bfloat16 or in tiles: weights of bfloat16,
 * and the row's sums, in float32. */
#ifndef PLIMSOLL_SOFTEN_H
#define PLIMSOLL_SOFTEN_H

#include "cache_pairs.h"

INLINE vf widened_f16(const uint16_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* Scores of codes become scores of keys: q (minimum + code * scale) summed is minimum * sum(q) + scale * (q code). */
INLINE void scale_scores(float *scores, long width, const uint16_t *scales, const uint16_t *minimums, float sum_of_q)
{
    for (long i = 0; i < width; i += 16) {
        vf offset = widened_f16(minimums + i) * sum_of_q;
        store(scores + i, madd(load(scores + i), widened_f16(scales + i), offset));
    }
}

/* 2^x within 3e-6 of itself; 2^0 is 1, from -160 down it is 0, and of NaN NaN. */
INLINE vf power_of_2(vf x)
{
    x = larger(fill(-160.0f), x);
    vf whole = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT), part = x - whole;
    vf p = madd(part, fill(9.582836385263582e-3f), fill(5.590641339066969e-2f));
    p = madd(p, part, fill(0.24024098822058854f));
    p = madd(p, part, fill(0.6931241947999938f));
    return (vf)_mm512_scalef_ps((__m512)madd(p, part, fill(1.0f)), (__m512)whole);
}

INLINE void hide(float *scores, long width, long low, long high)
{
    for (long i = 0; i < width; i++)
        if (i < low || i >= high) scores[i] = -__builtin_inff();
}

/* Scores of a row become cap * tanh(score / cap): tanh(x) is 1 - 2 / (e^2x + 1). */
INLINE void cap_scores(float *scores, long width, float scale, float cap)
{
    for (long i = 0; i < width; i += 16)
        store(scores + i, cap - 2.0f * cap / (vexp(load(scores + i) * (2.0f * scale / cap)) + 1.0f));
}

/* What a row has summed so far, and the highest score times log2 e that it has met. `end`: columns of `mixed`. */
typedef struct {
    float *top, *mass, *mixed;
    long end;
} sums;

/* Shrinks a row's sums to a higher score, `most` of 16 of them times log2 e. */
INLINE void shrink_to(vf most, sums *row)
{
    float highest = _mm512_reduce_max_ps((__m512)most);
    vf shrink = power_of_2(fill(*row->top - highest));
    store(row->mass, load(row->mass) * shrink);
    for (long d = 0; d < row->end; d += 16) store(row->mixed + d, load(row->mixed + d) * shrink);
    *row->top = highest;
}

/* Shrinks a row's sums where a block has a higher score. `factor`: of a score, times log2 e. */
INLINE void rise(const float *scores, long width, float factor, sums *row)
{
    vf most = load(scores);
    for (long i = 16; i < width; i += 16) most = larger(load(scores + i), most);
    most = most * factor;
    if (_mm512_cmp_ps_mask((__m512)most, (__m512)fill(*row->top), _CMP_GT_OQ)) shrink_to(most, row);
}

/* A row's scores of a block become weights of bfloat16, and what is summed is the rounded ones. Of each 32 they are 16
 * words of `weights`, `step` words apart; they may lie where the scores were. What fills up the last 32 is 0. */
INLINE void soften(const float *scores, long width, float factor, uint32_t *weights, long step, sums *row)
{
    const vf base = fill(-*row->top);
    vf sum = load(row->mass);
    for (long i = 0; i < width; i += 32) {
        vf low = power_of_2(madd(load(scores + i), fill(factor), base)), high = {0};
        if (i + 16 < width) high = power_of_2(madd(load(scores + i + 16), fill(factor), base));
        vu both = narrowed(low, high);
        memcpy(weights + i / 32 * step, &both, sizeof both);
        sum = add_pair(sum, both, 0x3f803f80u - (vu){0});
    }
    store(row->mass, sum);
}

/* The same of values that are codes: the weights of their codes, times their scales; the sum is of the weights as they
 * are. What every column gets besides, for the minimums, goes into the last 16 columns of the row's sums. So does what
 * rounding took from a code of `middle`, so that only a code's distance from it meets the rounding. */
INLINE void soften_codes(const float *scores, long width, float factor, const uint16_t *scales,
                         const uint16_t *minimums, float middle, uint32_t *weights, long step, sums *row)
{
    const vf base = fill(-*row->top);
    const vu back = narrowed(fill(-middle), fill(-middle));
    vf sum = load(row->mass), offset = load(row->mixed + row->end - 16);
    for (long i = 0; i < width; i += 32) {
        vf weight[2] = {{0}, {0}};
        UNROLL for (int h = 0; h < 2; h++) {
            long at = i + 16 * h;
            if (at >= width) break;
            vf one = power_of_2(madd(load(scores + at), fill(factor), base)), scale = widened_f16(scales + at);
            sum = sum + one;
            offset = madd(one, madd(scale, fill(middle), widened_f16(minimums + at)), offset);
            weight[h] = one * scale;
        }
        vu both = narrowed(weight[0], weight[1]);
        memcpy(weights + i / 32 * step, &both, sizeof both);
        offset = add_pair(offset, both, back);
    }
    store(row->mass, sum), store(row->mixed + row->end - 16, offset);
}

#endif
