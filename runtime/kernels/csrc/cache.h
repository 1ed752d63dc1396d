/* How keys and values lie in a cache block of one head, and how a token's are written.
 *
 * Keys are [D][S], so that scores of neighbouring keys are one vector; values are [S][D]. Codes are followed by the
 * block's scales [S] and its minimums [S] in float16: a number is minimum + code * scale of its token. A byte of two
 * codes of 4 bits holds dimensions d (low) and d + D / 2 (high) of one token: no two tokens share a byte. Vectors of 4
 * bits are spread first.
 * The shapes that torch sees tell sizes only. */
#ifndef PLIMSOLL_CACHE_H
#define PLIMSOLL_CACHE_H

#include "half.h"

/* As `native_checks.CACHE_KINDS` counts them. */
enum cache { CACHE_F32, CACHE_BF16, CACHE_INT8, CACHE_INT4 };

/* The least scale, so that a range of zero divides nothing by zero: the smallest float16 above 0. */
#define LEAST_SCALE 5.9604644775390625e-8f

INLINE int has_codes(const int kind) { return kind >= CACHE_INT8; }
/* Bytes of `count` numbers of a token, without its scale and minimum. */
INLINE long vector_bytes(const int kind, long count)
{
    return kind == CACHE_F32 ? 4 * count : kind == CACHE_BF16 ? 2 * count : kind == CACHE_INT8 ? count : count / 2;
}
/* Bytes of a block of one head. */
INLINE long head_bytes(const int kind, long S, long D) { return S * (vector_bytes(kind, D) + (has_codes(kind) ? 4 : 0)); }

/* x [D] turned by the normed Hadamard matrix, in runs of the largest power of 2 that divides D: an outlier's weight is
 * spread over its run, so that 4 bits lose less. The matrix is its own inverse. */
static inline void spread(float *x, long D)
{
    long run = D & -D;
    for (long h = 1; h < run; h *= 2)
        for (long at = 0; at < D; at += 2 * h)
            for (long i = at; i < at + h; i++) {
                float a = x[i], b = x[i + h];
                x[i] = a + b;
                x[i + h] = a - b;
            }
    float norm = 1.0f / __builtin_sqrtf((float)run);
    for (long d = 0; d < D; d++) x[d] *= norm;
}

/* x [D] as codes `step` bytes apart. The scale and the minimum are rounded first: codes fit what is read back.
 * A number that is not finite makes a scale that is not: no code hides it. */
INLINE void write_codes(const int kind, const float *x, long D, uint8_t *codes, long step, uint16_t *scale,
                        uint16_t *minimum)
{
    const float most = kind == CACHE_INT8 ? 255.0f : 15.0f;
    float lows[8], highs[8], wrong = 0;
    for (int i = 0; i < 8; i++) lows[i] = highs[i] = x[0];
    long d = 0;
    for (; d + 8 <= D; d += 8)
        for (int i = 0; i < 8; i++) {
            lows[i] = x[d + i] < lows[i] ? x[d + i] : lows[i];
            highs[i] = x[d + i] > highs[i] ? x[d + i] : highs[i];
        }
    for (; d < D; d++) {
        lows[0] = x[d] < lows[0] ? x[d] : lows[0];
        highs[0] = x[d] > highs[0] ? x[d] : highs[0];
    }
    float low = lows[0], high = highs[0];
    for (int i = 1; i < 8; i++) low = lows[i] < low ? lows[i] : low, high = highs[i] > high ? highs[i] : high;
    for (d = 0; d < D; d++) wrong += x[d] * 0.0f;
    *minimum = to_f16(low);
    low = from_f16(*minimum);
    float width = (high - low) / most + wrong;
    *scale = to_f16(width < LEAST_SCALE ? LEAST_SCALE : width);
    width = from_f16(*scale);
    long half = kind == CACHE_INT8 ? D : D / 2;
    for (d = 0; d < half; d++) {
        uint8_t pair[2] = {0, 0};
        for (int i = 0; i < (kind == CACHE_INT8 ? 1 : 2); i++) {
            float code = (x[d + i * half] - low) / width;
            code = code > 0 ? code : 0;
            code = code < most ? code : most;
            /* To nearest even: the last place of this sum is 1. */
            pair[i] = (uint8_t)(int)((code + 12582912.0f) - 12582912.0f);
        }
        codes[d * step] = (uint8_t)(pair[0] | pair[1] << 4);
    }
}

/* A token's key and value of head g, at `slot`. */
INLINE void write_row_of(const int kind, const float *key, const float *value, char *k_cache, char *v_cache,
                         int64_t slot, long g, long G, long S, long D)
{
    long block = slot / S, offset = slot % S, bytes = head_bytes(kind, S, D), place = (block * G + g) * bytes;
    char *keys = k_cache + place, *values = v_cache + place;
    if (has_codes(kind)) {
        long codes = S * vector_bytes(kind, D);
        float turned[2 * D];
        if (kind == CACHE_INT4) {
            memcpy(turned, key, D * sizeof(float)), memcpy(turned + D, value, D * sizeof(float));
            spread(turned, D), spread(turned + D, D);
            key = turned, value = turned + D;
        }
        uint16_t *k_pairs = (uint16_t *)(keys + codes), *v_pairs = (uint16_t *)(values + codes);
        write_codes(kind, key, D, (uint8_t *)keys + offset, S, k_pairs + offset, k_pairs + S + offset);
        write_codes(kind, value, D, (uint8_t *)values + offset * vector_bytes(kind, D), 1, v_pairs + offset,
                    v_pairs + S + offset);
        return;
    }
    for (long d = 0; d < D; d++) {
        if (kind == CACHE_BF16) ((uint16_t *)keys)[d * S + offset] = to_bf16(key[d]);
        else ((float *)keys)[d * S + offset] = key[d];
    }
    for (long d = 0; d < D; d++) {
        if (kind == CACHE_BF16) ((uint16_t *)values)[offset * D + d] = to_bf16(value[d]);
        else ((float *)values)[offset * D + d] = value[d];
    }
}

static inline void write_row(int kind, const float *key, const float *value, char *k_cache, char *v_cache, int64_t slot,
                             long g, long G, long S, long D)
{
    switch (kind) {
    case CACHE_F32: write_row_of(CACHE_F32, key, value, k_cache, v_cache, slot, g, G, S, D); break;
    case CACHE_BF16: write_row_of(CACHE_BF16, key, value, k_cache, v_cache, slot, g, G, S, D); break;
    case CACHE_INT8: write_row_of(CACHE_INT8, key, value, k_cache, v_cache, slot, g, G, S, D); break;
    default: write_row_of(CACHE_INT4, key, value, k_cache, v_cache, slot, g, G, S, D);
    }
}

#endif
