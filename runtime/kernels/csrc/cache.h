/* How keys and values lie in a cache block of one head, and how a token's are written.
 *
 * Keys are [D][S], so that scores of neighbouring keys are one vector; values are [S][D]. Codes are followed by the
 * block's scales [S] and its minimums [S] in float16: a number is minimum + code * scale of its token. A head's values
 * follow its keys where both are codes; floats lie apart.
 *
 * A byte of two values of 4 bits holds dimensions d (low) and d + D / 2 (high). Keys beside them have 6 bits: bytes
 * [D / 2][S] of dimensions 2 k (low) and 2 k + 1, then bytes [D / 4, rounded up][S] of the upper two bits of dimensions
 * 4 i (lowest) to 4 i + 3. No two tokens share a byte. Both are spread first.
 * The shapes that torch sees tell sizes only. */
#ifndef PLIMSOLL_CACHE_H
#define PLIMSOLL_CACHE_H

#include "half.h"

/* As `native_checks.CACHE_KINDS` counts them; int4 is that of values. */
enum cache { CACHE_F32, CACHE_BF16, CACHE_INT8, CACHE_INT4 };

/* The least scale, so that a range of zero divides nothing by zero: the smallest float16 above 0. */
#define LEAST_SCALE 5.9604644775390625e-8f

INLINE int has_codes(const int kind) { return kind >= CACHE_INT8; }
/* Bytes of `count` numbers of a token's value, without its scale and minimum. */
INLINE long vector_bytes(const int kind, long count)
{
    return kind == CACHE_F32 ? 4 * count : kind == CACHE_BF16 ? 2 * count : kind == CACHE_INT8 ? count : count / 2;
}
/* The same of a key. */
INLINE long key_bytes(const int kind, long D) { return vector_bytes(kind, D) + (kind == CACHE_INT4 ? (D + 3) / 4 : 0); }
/* Bytes from the keys, or values, of one block of one head to those of the next. */
INLINE long head_bytes(const int kind, long S, long D)
{
    return S * (has_codes(kind) ? key_bytes(kind, D) + vector_bytes(kind, D) + 8 : vector_bytes(kind, D));
}

#if LANES == 16
/* The first four steps of `spread`, of 16 numbers. */
INLINE vf spread_sixteen(vf x)
{
    __m512 v = (__m512)x, other = _mm512_permute_ps(v, 0xb1);
    v = _mm512_mask_sub_ps(_mm512_add_ps(v, other), 0xaaaa, other, v), other = _mm512_permute_ps(v, 0x4e);
    v = _mm512_mask_sub_ps(_mm512_add_ps(v, other), 0xcccc, other, v), other = _mm512_shuffle_f32x4(v, v, 0xb1);
    v = _mm512_mask_sub_ps(_mm512_add_ps(v, other), 0xf0f0, other, v), other = _mm512_shuffle_f32x4(v, v, 0x4e);
    return (vf)_mm512_mask_sub_ps(_mm512_add_ps(v, other), 0xff00, other, v);
}
#endif

/* x [D] turned by the normed Hadamard matrix, in runs of the largest power of 2 that divides D: an outlier's weight is
 * spread over its run, so that 4 bits lose less. The matrix is its own inverse. */
static inline void spread(float *x, long D)
{
    long run = D & -D, h = 1;
#if LANES == 16
    for (long d = 0; run >= 16 && d < D; d += 16) store(x + d, spread_sixteen(load(x + d)));
    if (run >= 16) h = 16;
#endif
    for (; h < run; h *= 2)
        for (long at = 0; at < D; at += 2 * h)
            for (long i = at; i < at + h; i++) {
                float a = x[i], b = x[i + h];
                x[i] = a + b;
                x[i + h] = a - b;
            }
    float norm = 1.0f / __builtin_sqrtf((float)run);
    for (long d = 0; d < D; d++) x[d] *= norm;
}

/* Of x [D] in codes of 0 to `most`: the least number and what one code is worth, both as they will be read.
 * A number that is not finite makes a scale that is not: no code hides it. */
INLINE void find_range(const float *x, long D, float most, uint16_t *scale, uint16_t *minimum, float *least,
                       float *width)
{
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
    *least = from_f16(*minimum);
    float found = (high - *least) / most + wrong;
    *scale = to_f16(found < LEAST_SCALE ? LEAST_SCALE : found);
    *width = from_f16(*scale);
}

/* The code nearest to x, to even where two are. */
INLINE unsigned code_of(float x, float least, float width, const float most)
{
    float code = (x - least) / width;
    code = code > 0 ? code : 0;
    code = code < most ? code : most;
    /* The last place of this sum is 1. */
    return (unsigned)(int)((code + 12582912.0f) - 12582912.0f);
}

/* x [D] as codes of 8 or 4 bits, `step` bytes apart. */
INLINE void write_codes(const int kind, const float *x, long D, uint8_t *codes, long step, uint16_t *scale,
                        uint16_t *minimum)
{
    const float most = kind == CACHE_INT8 ? 255.0f : 15.0f;
    float least, width;
    find_range(x, D, most, scale, minimum, &least, &width);
    if (kind == CACHE_INT8)
        for (long d = 0; d < D; d++) codes[d * step] = (uint8_t)code_of(x[d], least, width, most);
    else
        for (long d = 0; d < D / 2; d++)
            codes[d * step] =
                (uint8_t)(code_of(x[d], least, width, most) | code_of(x[d + D / 2], least, width, most) << 4);
}

/* A key [D] in 6 bits, its bytes S apart. */
INLINE void write_key_codes(const float *x, long D, uint8_t *codes, long S, uint16_t *scale, uint16_t *minimum)
{
    float least, width;
    find_range(x, D, 63.0f, scale, minimum, &least, &width);
    for (long first = 0; first < D; first += 4) {
        unsigned upper = 0;
        for (long d = first; d < first + 4 && d < D; d += 2) {
            unsigned low = code_of(x[d], least, width, 63.0f), high = code_of(x[d + 1], least, width, 63.0f);
            codes[d / 2 * S] = (uint8_t)((low & 15) | high << 4);
            upper |= (low >> 4 | high >> 4 << 2) << 2 * (d - first);
        }
        codes[(D / 2 + first / 4) * S] = (uint8_t)upper;
    }
}

/* A token's key and value of head g, at `slot`. */
INLINE void write_row_of(const int kind, const float *key, const float *value, char *k_cache, char *v_cache,
                         int64_t slot, long g, long G, long S, long D)
{
    long block = slot / S, offset = slot % S, bytes = head_bytes(kind, S, D), place = (block * G + g) * bytes;
    char *keys = k_cache + place, *values = v_cache + place;
    if (has_codes(kind)) {
        uint16_t *k_pairs = (uint16_t *)(keys + S * key_bytes(kind, D)) + offset;
        uint16_t *v_pairs = (uint16_t *)(values + S * vector_bytes(kind, D)) + offset;
        float turned[2 * D];
        if (kind == CACHE_INT4) {
            memcpy(turned, key, D * sizeof(float)), memcpy(turned + D, value, D * sizeof(float));
            spread(turned, D), spread(turned + D, D);
            key = turned, value = turned + D;
            write_key_codes(key, D, (uint8_t *)keys + offset, S, k_pairs, k_pairs + S);
        } else write_codes(kind, key, D, (uint8_t *)keys + offset, S, k_pairs, k_pairs + S);
        write_codes(kind, value, D, (uint8_t *)values + offset * vector_bytes(kind, D), 1, v_pairs,
                    v_pairs + S);
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
