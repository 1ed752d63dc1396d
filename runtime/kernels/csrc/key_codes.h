/* Keys of 6 bits as `cache.h` lays them out: products with queries, and the numbers that they stand for.
 *
 * A row's sum runs over dimensions in ascending order, as over keys that were widened: to the same bits. */
#ifndef PLIMSOLL_KEY_CODES_H
#define PLIMSOLL_KEY_CODES_H

#include "vec.h"

/* Query rows that share a register tile. More of them are worth widening a block beforehand. */
#if defined(__AVX512F__)
#define KEY_ROWS 6
#define KEY_LANES 16
typedef vf keys_f;
typedef vi keys_i;
#define KEYS_OF(NAME) NAME
#else
#define KEY_ROWS 3
#define KEY_LANES 8
typedef v8f keys_f;
typedef v8i keys_i;
#define KEYS_OF(NAME) NAME##8
#endif

INLINE keys_i take_bytes(const uint8_t *p)
{
#if defined(__AVX512F__)
    return (keys_i)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    v8b bytes;
    memcpy(&bytes, p, sizeof bytes);
#if defined(__AVX2__)
    return (keys_i)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
#else
    return __builtin_convertvector(bytes, v8i);
#endif
#endif
}

/* Bits `place` and `place` + 1 of each of `uppers`, worth 16 and 32. */
INLINE keys_i upper_bits(keys_i uppers, const int place)
{
    return (place < 4 ? uppers << (4 - place) : uppers >> (place - 4)) & 48;
}

/* The codes of dimensions 2 k and 2 k + 1, whose upper bits are those from `place` and from `place` + 2 on. */
INLINE void widen_pair(const uint8_t *pairs, keys_i uppers, const int place, keys_f *low, keys_f *high)
{
    keys_i both = take_bytes(pairs);
    *low = __builtin_convertvector((both & 15) | upper_bits(uppers, place), keys_f);
    *high = __builtin_convertvector(both >> 4 | upper_bits(uppers, place + 2), keys_f);
}

INLINE void score_tile(const int rows, const int vectors, long D, const float *x, long ldx, const uint8_t *w, long S,
                       float *y, long ldy)
{
    const uint8_t *plane = w + D / 2 * S;
    keys_f sum[KEY_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (keys_f){0};
    for (long first = 0; first < D / 2; first += 2, plane += S) {
        keys_i uppers[2];
        UNROLL for (int v = 0; v < vectors; v++) uppers[v] = take_bytes(plane + KEY_LANES * v);
        UNROLL for (int i = 0; i < 2; i++) {
            long k = first + i;
            if (k == D / 2) break;
            keys_f low[2], high[2];
            UNROLL for (int v = 0; v < vectors; v++)
                widen_pair(w + k * S + KEY_LANES * v, uppers[v], 4 * i, low + v, high + v);
            UNROLL for (int r = 0; r < rows; r++) {
                keys_f one = KEYS_OF(fill)(x[r * ldx + 2 * k]), next = KEYS_OF(fill)(x[r * ldx + 2 * k + 1]);
                UNROLL for (int v = 0; v < vectors; v++) {
                    sum[r][v] = KEYS_OF(madd)(one, low[v], sum[r][v]);
                    sum[r][v] = KEYS_OF(madd)(next, high[v], sum[r][v]);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) KEYS_OF(store)(y + r * ldy + KEY_LANES * v, sum[r][v]);
}

/* y [rows, width] = x [rows, D] times the codes w of a block's keys; at most KEY_ROWS rows, `width` in sixteens. */
static void score_key_codes(long rows, long width, long D, const float *x, long ldx, const uint8_t *w, long S, float *y,
                            long ldy)
{
    for (long n = 0; n < width; n += width - n >= 2 * KEY_LANES ? 2 * KEY_LANES : KEY_LANES) {
        const int both = width - n >= 2 * KEY_LANES;
#define TILE(R)                                                                                                        \
    case R:                                                                                                            \
        if (both) score_tile(R, 2, D, x, ldx, w + n, S, y + n, ldy);                                                   \
        else score_tile(R, 1, D, x, ldx, w + n, S, y + n, ldy);                                                        \
        break;
        switch (rows) {
            TILE(1) TILE(2) TILE(3)
#if KEY_ROWS == 6
            TILE(4) TILE(5) TILE(6)
#endif
        }
#undef TILE
    }
}

/* The codes of a block's first `width` keys as floats [D, S]. */
static void widen_key_codes(const uint8_t *w, long width, long D, long S, float *to)
{
    const uint8_t *plane = w + D / 2 * S;
    for (long k = 0; k < D / 2; k++)
        for (long n = 0; n < width; n += KEY_LANES) {
            keys_f low, high;
            keys_i uppers = take_bytes(plane + k / 2 * S + n) >> (int)(k % 2 * 4);
            widen_pair(w + k * S + n, uppers, 0, &low, &high);
            KEYS_OF(store)(to + 2 * k * S + n, low);
            KEYS_OF(store)(to + (2 * k + 1) * S + n, high);
        }
}

#endif
