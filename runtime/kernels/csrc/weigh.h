/* A row's scores of a block of 64 keys become weights without going to memory between the steps of soften.h, to the
 * same bit. */
#ifndef PLIMSOLL_WEIGH_H
#define PLIMSOLL_WEIGH_H

#include "soften.h"

/* Keys of a block that `weigh` takes. */
#define WEIGHED 64

/* Scales and minimums of a block's keys, then of its values, as floats. A value's minimum has `middle` codes more. */
typedef struct {
    float scales[WEIGHED], minimums[WEIGHED], v_scales[WEIGHED], v_minimums[WEIGHED];
} block_ends;

INLINE void read_ends(const uint16_t *keys, const uint16_t *values, float middle, block_ends *ends)
{
    for (long i = 0; i < WEIGHED; i += 16) {
        const vf scale = widened_f16(values + i);
        store(ends->scales + i, widened_f16(keys + i)), store(ends->minimums + i, widened_f16(keys + WEIGHED + i));
        store(ends->v_scales + i, scale);
        store(ends->v_minimums + i, madd(scale, fill(middle), widened_f16(values + WEIGHED + i)));
    }
}

/* scale_scores if there are `ends`, hide, rise and soften, or soften_codes, of WEIGHED scores. The row sees keys
 * [low, high). */
INLINE void weigh(const int codes, const float *scores, const block_ends *ends, float sum_of_q, long low, long high,
                  float factor, float middle, uint32_t *weights, long step, sums *row)
{
    vf score[WEIGHED / 16], weight[WEIGHED / 16], most;
    UNROLL for (int i = 0; i < WEIGHED / 16; i++) {
        score[i] = load(scores + 16 * i);
        if (codes)
            score[i] = madd(score[i], load(ends->scales + 16 * i), load(ends->minimums + 16 * i) * sum_of_q);
    }
    if (low > 0 || high < WEIGHED) {
        const uint64_t until = high <= 0 ? 0 : high >= WEIGHED ? ~0ull : (1ull << high) - 1;
        const uint64_t before = low <= 0 ? 0 : low >= WEIGHED ? ~0ull : (1ull << low) - 1;
        UNROLL for (int i = 0; i < WEIGHED / 16; i++) {
            const __mmask16 seen = (__mmask16)((until & ~before) >> (16 * i));
            score[i] = (vf)_mm512_mask_blend_ps(seen, (__m512)fill(-__builtin_inff()), (__m512)score[i]);
        }
    }
    most = score[0];
    UNROLL for (int i = 1; i < WEIGHED / 16; i++) most = larger(score[i], most);
    most = most * factor;
    if (_mm512_cmp_ps_mask((__m512)most, (__m512)fill(*row->top), _CMP_GT_OQ)) shrink_to(most, row);
    const vf base = fill(-*row->top);
    vf sum = load(row->mass);
    UNROLL for (int i = 0; i < WEIGHED / 16; i++) weight[i] = power_of_2(madd(score[i], fill(factor), base));
    if (codes) {
        const vu back = narrowed(fill(-middle), fill(-middle));
        vf offset = load(row->mixed + row->end - 16);
        UNROLL for (int i = 0; i < WEIGHED / 16; i++) {
            sum = sum + weight[i];
            offset = madd(weight[i], load(ends->v_minimums + 16 * i), offset);
            weight[i] = weight[i] * load(ends->v_scales + 16 * i);
            if (i % 2 == 0) continue;
            const vu both = narrowed(weight[i - 1], weight[i]);
            memcpy(weights + i / 2 * step, &both, sizeof both);
            offset = add_pair(offset, both, back);
        }
        store(row->mixed + row->end - 16, offset);
    } else {
        UNROLL for (int i = 0; i < WEIGHED / 16; i += 2) {
            const vu both = narrowed(weight[i], weight[i + 1]);
            memcpy(weights + i / 2 * step, &both, sizeof both);
            sum = add_pair(sum, both, 0x3f803f80u - (vu){0});
        }
    }
    store(row->mass, sum);
}

#endif
