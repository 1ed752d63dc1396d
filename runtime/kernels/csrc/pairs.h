/* Products of bfloat16 pairs by AVX-512's VDPBF16PS or by AArch64's BFDOT (neon.h): twice the arithmetic of fused
 * multiply-adds, and no weight is widened. In builds without vectors of 512 bits or NEON or with
 * PLIMSOLL_WITHOUT_PAIRS, and on other processors, `pairs_work` says 0 and nothing else is called.
 *
 * An output is one sum: for each pair of columns in ascending order the product of the odd column and then that of the
 * even one are added, each by one fused multiply-add with subnormal numbers as 0. VDPBF16PS does exactly this
 * (tests/kernels/test_pairs.py). BFDOT adds both products at once: their sum is rounded to odd, and so is the sum with
 * what came before (tests/kernels/test_neon.py). A last column without a neighbour is a pair with 0. */
#ifndef PLIMSOLL_PAIRS_H
#define PLIMSOLL_PAIRS_H

#include "dots.h"

/* Whether this processor has AVX512_BF16 or FEAT_BF16, and this build uses it. */
int pairs_exist(void);
/* Whether this processor multiplies all rows in pairs: it has them, and no tiles, whose order is another. */
int pairs_work(void);

/* Pairs of a row of K columns; each `group` columns begin a pair. */
INLINE long pairs_of(long K, long group) { return K / group * ((group + 1) / 2); }

/* x [rows][K] -> rounded, [pairs_of(K, group)][high] pairs of bfloat16, the even column low: rows that meet a weight
 * together lie together. Places of rows from `rows` on are left alone. */
void fill_pairs(const float *x, long rows, long high, long K, long group, uint32_t *out);

#if ((defined(__AVX512BW__) && defined(__linux__)) || HAVE_NEON_DOTS) && !defined(PLIMSOLL_WITHOUT_PAIRS)
#define HAVE_PAIRS 1
/* By its name, so that a build for all processors of a kind has it too. */
INLINE vf add_pair(vf sum, vu x, vu w)
{
#if HAVE_NEON_DOTS
    return bfdot(sum, w, x);
#else
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
#endif
}

/* A pair of columns of a panel. `words`: of both vectors of outputs, if codes have 4 bits. */
INLINE vu weight_pair(const int source, const char *at, int half, vu words, int j)
{
    if (source == FOURS) return nibble_pairs(words, j);
    if (source == BYTES) return joined(load_bytes(at + half * LANES), load_bytes(at + PANEL + half * LANES));
    return load_words(at + 2 * half * PANEL);
}

/* all[rows][2] += x w^T over `depth` columns. x: as fill_pairs leaves it, pairs `high` apart. */
INLINE void add_pairs(const int source, const int rows, long depth, const uint32_t *x, long high, const char *w,
                      vf *all)
{
    const int step = STEP(source), bytes = PANEL * source / 8;
    /* Of a size that is known before anything is inlined, as in dots.h. */
    vf sum[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) sum[r][h] = all[r * 2 + h];
    for (; depth >= step; depth -= step, w += step * bytes) {
        vu words[2] = {{0}};
        if (source != PAIRS) ask_for(w + AHEAD);
        if (source == FOURS && LANES == 16) ask_for(w + AHEAD + 64);
        if (source == FOURS) words[0] = load_words(w), words[1] = load_words(w + 4 * LANES);
        UNROLL for (int j = 0; j < step / 2; j++, x += high) {
            vu first = weight_pair(source, w, 0, words[0], j), second = weight_pair(source, w, 1, words[1], j);
            int r = 0;
#if HAVE_NEON_DOTS
            UNROLL for (; r + 4 <= rows; r += 4) {
                const vu four = load_words((const char *)(x + r));
                UNROLL for (int lane = 0; lane < 4; lane++) {
                    vf *two = sum[r + lane];
                    two[0] = bfdot_lane(two[0], first, four, lane), two[1] = bfdot_lane(two[1], second, four, lane);
                }
            }
#endif
            UNROLL for (; r < rows; r++) {
                vu both = x[r] - (vu){0};
                sum[r][0] = add_pair(sum[r][0], both, first), sum[r][1] = add_pair(sum[r][1], both, second);
            }
        }
    }
    if (source != FOURS && depth)
        UNROLL for (int h = 0; h < 2; h++) {
            vu last = (vu)lone(source, w, h) >> 16;
            UNROLL for (int r = 0; r < rows; r++) sum[r][h] = add_pair(sum[r][h], x[r] - (vu){0}, last);
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) all[r * 2 + h] = sum[r][h];
}
#else
#define HAVE_PAIRS 0
INLINE void add_pairs(const int source, const int rows, long depth, const uint32_t *x, long high, const char *w,
                      vf *all)
{
    (void)source, (void)rows, (void)depth, (void)x, (void)high, (void)w, (void)all;
}
#endif
#endif
