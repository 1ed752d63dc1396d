/* A block's codes as pairs of bfloat16, made once for all rows of a tile. */
#ifndef PLIMSOLL_BLOCK_PAIRS_H
#define PLIMSOLL_BLOCK_PAIRS_H

#include "attention.h"
#include "cache_pairs.h"

/* Rows from which making them once pays: more than one register tile. */
#define MADE_ROWS 13

/* Whether a tile of `rows` rows meets pairs that were made once. Halves of values fill whole vectors then. */
INLINE int made_once(const attention_job *job, long rows)
{
    return has_codes(job->cache) && rows >= MADE_ROWS && job->D % 32 == 0;
}

/* Keys [D][S] of codes -> pairs [D / 2][S] of the first `width`. */
INLINE void pairs_of_keys(const attention_job *job, const char *keys, long width, uint32_t *pairs)
{
    const long S = job->S, half = job->D / 2;
    const int bytes = job->cache == CACHE_INT8;
    for (long k = 0; k < half; k++)
        for (long i = 0; i < width; i += 16) {
            const uint8_t *codes = (const uint8_t *)keys + i, *six = codes + k * S, *plane = codes + half * S;
            const vu made = bytes ? byte_pairs(codes + 2 * k * S, codes + (2 * k + 1) * S, ~0u)
                                  : six_pairs(six, plane + k / 2 * S, (int)(k % 2 * 4));
            memcpy(pairs + k * S + i, &made, sizeof made);
        }
}

/* Values [S][D] of codes -> pairs [width / 2][D]. */
INLINE void pairs_of_values(const attention_job *job, const char *values, long width, uint32_t *pairs)
{
    const long D = job->D, row = vector_bytes(job->cache, D);
    const int bytes = job->cache == CACHE_INT8;
    for (long k = 0; k < width / 2; k++)
        for (long i = 0; i < row; i += 16) {
            const uint8_t *even = (const uint8_t *)values + 2 * k * row + i, *odd = even + row;
            vu made = bytes ? byte_pairs(even, odd, ~0u) : half_pairs(even, odd, 0, ~0u);
            memcpy(pairs + k * D + i, &made, sizeof made);
            if (bytes) continue;
            made = half_pairs(even, odd, 4, ~0u);
            memcpy(pairs + k * D + D / 2 + i, &made, sizeof made);
        }
}

#endif
