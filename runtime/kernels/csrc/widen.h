/* Codes of 4 or 8 bits, as quant.h has them, as bfloat16. */
#ifndef PLIMSOLL_WIDEN_H
#define PLIMSOLL_WIDEN_H

#include "dots.h"

/* The codes of a chunk as pairs of bfloat16. An odd last column is a pair with 0. */
INLINE void widen(const int bits, long depth, const char *w, uint16_t *out)
{
    long k = 0;
    if (bits == 4)
        for (; k < depth; k += 8, w += 8 * LANES)
            UNROLL for (int h = 0; h < 2; h++) {
                vu words = load_words(w + 4 * LANES * h);
                ask_for(w + WIDEN_AHEAD + 4 * LANES * h);
                UNROLL for (int j = 0; j < 4; j++) {
#if defined(__AVX512BW__) || defined(__aarch64__)
                    vu pairs = nibble_pairs(words, j);
#else
                    vf even, odd;
                    nibbles(words, j, &even, &odd);
                    vu pairs = joined(even, odd);
#endif
                    memcpy(out + (k + 2 * j + h) * PANEL, &pairs, sizeof pairs);
                }
            }
    else
        for (; k < depth; k += 2, w += 2 * PANEL) {
            ask_for(w + WIDEN_AHEAD);
            UNROLL for (int h = 0; h < 2; h++) {
                vf odd = k + 1 < depth ? load_bytes(w + PANEL + h * LANES) : (vf){0};
                vu pairs = joined(load_bytes(w + h * LANES), odd);
                memcpy(out + (k + h) * PANEL, &pairs, sizeof pairs);
            }
        }
}

#endif
