/* Sums of products of rows of x with weights that lie in pairs: for each two columns of a panel, the first and then the
 * second LANES outputs, of each the weight of the even column low and that of the odd column high.
 *
 * On one processor every sum over bfloat16 rows has one order. Where pairs.h works it is that one. Processors of few
 * registers add one column after the other by one fused multiply-add each. Elsewhere columns go in blocks of BLOCK. In a
 * block the products of even columns are one sum and those of odd columns another, each from 0 by one fused multiply-add
 * a column in ascending order; the block adds (even + odd) to the sum so far. That is what AMX's TDPBF16PS does in
 * hardware, with subnormal numbers as 0: so rows in tiles and rows in vectors have the same bits
 * (tests/kernels/test_tiles.py). */
#ifndef PLIMSOLL_DOTS_H
#define PLIMSOLL_DOTS_H

#include "neon.h"

#define BLOCK 32
#define BLOCKS(columns) (((columns) + BLOCK - 1) / BLOCK)
/* Rows of a register tile that is one panel wide: of many registers there are two sums a vector. */
#define PAIR_ROWS 6

/* What is multiplied: 4-bit codes, 8-bit codes, or bfloat16. */
enum source { FOURS = 4, BYTES = 8, PAIRS = 16 };

/* Columns that one step of a loop over a source takes. */
#define STEP(source) ((source) == FOURS ? 8 : 2)

/* x rounded to bfloat16, as float32. */
INLINE vf rounded(vf x)
{
    vu u = (vu)x, up = (u + 0x7fffu + ((u >> 16) & 1)) & 0xffff0000u;
    vi nan = x != x;
    return (vf)((up & ~(vu)nan) | (0x7fc00000u & (vu)nan));
}

static inline void round_row(const float *x, float *out, long K)
{
    long k = 0;
    for (; k + LANES <= K; k += LANES) store(out + k, rounded(load(x + k)));
    for (; k < K; k++) out[k] = from_bf16(to_bf16(x[k]));
}

INLINE vf load_bytes(const char *p)
{
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    signed char narrow __attribute__((vector_size(LANES)));
    memcpy(&narrow, p, sizeof narrow);
    return __builtin_convertvector(narrow, vf);
#endif
}

#if defined(__AVX512BW__)
/* Columns 2j and 2j + 1 of 8, of LANES outputs, as pairs of bfloat16 from -8 to 7. Numbers are there twice: the
 * permutation looks at the low 5 bits of an index, of which the fifth is another column's. */
INLINE vu nibble_pairs(vu words, int j)
{
    static const uint16_t numbers[32] = {
        0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0,
        0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
        0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    };
    return (vu)_mm512_permutexvar_epi16((__m512i)(words >> (4 * j)), _mm512_loadu_si512(numbers));
}
#endif

/* Columns 2j and 2j + 1 of 8, of LANES outputs, as numbers from -8 to 7: the nibbles j of both halves of each output's
 * word. */
INLINE void nibbles(vu words, int j, vf *even, vf *odd)
{
#if defined(__AVX512BW__) || defined(__aarch64__)
    vu pairs = nibble_pairs(words, j);
    *even = (vf)(pairs << 16);
    *odd = (vf)(pairs & 0xffff0000u);
#else
    *even = __builtin_convertvector((vi)(words << (28 - 4 * j)) >> 28, vf);
    *odd = __builtin_convertvector((vi)(words << (12 - 4 * j)) >> 28, vf);
#endif
}

/* Pairs of numbers that bfloat16 holds. */
INLINE vu joined(vf even, vf odd) { return (vu)even >> 16 | (vu)odd; }

INLINE vu load_words(const char *p)
{
    vu words;
    memcpy(&words, p, sizeof words);
    return words;
}

/* Bytes ahead of those that few rows meet: the processor itself looks less far ahead than arithmetic on so few bytes
 * needs. Panels lie one after the other, so this reaches into the next one. Not the compiler's builtin: it counts as one
 * that may change memory, and sums would leave their registers for it. */
#define AHEAD 6144
/* The same where codes are widened for many rows. */
#define WIDEN_AHEAD 2048
#if defined(__x86_64__)
#define DEFINE_ASK(NAME, X86, ARM) INLINE void NAME(const void *p) { __asm__ volatile(X86 " (%0)" : : "r"(p)); }
#elif defined(__aarch64__)
#define DEFINE_ASK(NAME, X86, ARM)                                                                                     \
    INLINE void NAME(const void *p) { __asm__ volatile("prfm " ARM ", [%0]" : : "r"(p)); }
#else
#define DEFINE_ASK(NAME, X86, ARM) INLINE void NAME(const void *p) { (void)p; }
#endif
DEFINE_ASK(ask_for, "prefetcht0", "pldl1keep")
/* For what will be written. */
DEFINE_ASK(ask_to_write, "prefetchw", "pstl1keep")
/* Into the second cache, for what is read after much else. */
DEFINE_ASK(ask_later, "prefetcht1", "pldl2keep")

/* The last column where their number is odd: [PANEL] bfloat16 or codes. */
INLINE vf lone(const int source, const char *w, int half)
{
    if (source == BYTES) return load_bytes(w + half * LANES);
    vf wide;
    for (int i = 0; i < LANES; i++) {
        uint16_t h;
        memcpy(&h, w + 2 * (half * LANES + i), 2);
        wide[i] = from_bf16(h);
    }
    return wide;
}

#if ROWS == PAIR_ROWS
/* Column i of a step: both vectors of outputs. */
INLINE void load_column(const int source, const char *w, const int i, vf *column)
{
    UNROLL for (int h = 0; h < 2; h++) {
        vf pair[2];
        if (source == FOURS) nibbles(load_words(w + h * 4 * LANES), i / 2, pair, pair + 1);
        else if (source == BYTES) pair[i % 2] = load_bytes(w + i * PANEL + h * LANES);
        else load_pairs((const uint16_t *)w + h * PANEL, pair, pair + 1);
        column[h] = pair[i % 2];
    }
}

/* all[rows][2] += x w^T over `depth` columns. x is rounded to bfloat16 already. */
INLINE void add_dots(const int source, const int rows, long depth, const float *x, long ldx, const char *w, vf *all)
{
    const int step = STEP(source);
    vf sum[PAIR_ROWS][2], column[2];
    long k = 0;
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = all[2 * r], sum[r][1] = all[2 * r + 1];
    for (; k + step <= depth; k += step, w += step * PANEL * source / 8) {
        if (source != PAIRS) ask_for(w + AHEAD);
        UNROLL for (int i = 0; i < step; i++) {
            load_column(source, w, i, column);
            /* What one column was made of is loaded again for the next: no register is left to keep it. */
            if (rows > 3) __asm__("" : "+r"(w));
            UNROLL for (int r = 0; r < rows; r++) {
                const vf one = fill(x[r * ldx + k + i]);
                sum[r][0] = madd(one, column[0], sum[r][0]), sum[r][1] = madd(one, column[1], sum[r][1]);
            }
        }
    }
    if (source != FOURS && k < depth)
        UNROLL for (int h = 0; h < 2; h++) {
            const vf last = lone(source, w, h);
            UNROLL for (int r = 0; r < rows; r++) sum[r][h] = madd(fill(x[r * ldx + k]), last, sum[r][h]);
        }
    UNROLL for (int r = 0; r < rows; r++) all[2 * r] = sum[r][0], all[2 * r + 1] = sum[r][1];
}
#else
/* all[rows][2] += x w^T over `depth` columns that begin a block. x is rounded to bfloat16 already. */
INLINE void add_dots(const int source, const int rows, long depth, const float *x, long ldx, const char *w, vf *all)
{
    const int step = STEP(source), bytes = PANEL * source / 8;
    for (long done = 0; done < depth; done += BLOCK, x += BLOCK) {
        long end = depth - done < BLOCK ? depth - done : BLOCK, k = 0;
        /* Of a size that is known before anything is inlined: other arrays do not become registers. */
        vf even[PAIR_ROWS][2], odd[PAIR_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) even[r][h] = odd[r][h] = (vf){0};
        for (; k + step <= end; k += step, w += step * bytes) {
            if (source != PAIRS) ask_for(w + AHEAD);
            if (source == FOURS && LANES == 16) ask_for(w + AHEAD + 64);
            UNROLL for (int h = 0; h < 2; h++) {
                vu words = {0};
                if (source == FOURS) words = load_words(w + h * 4 * LANES);
                UNROLL for (int j = 0; j < step / 2; j++) {
                    vf a, b;
                    if (source == FOURS)
                        nibbles(words, j, &a, &b);
                    else if (source == BYTES)
                        a = load_bytes(w + h * LANES), b = load_bytes(w + PANEL + h * LANES);
                    else
                        load_pairs((const uint16_t *)w + h * PANEL, &a, &b);
                    UNROLL for (int r = 0; r < rows; r++) {
                        even[r][h] = madd(fill(x[r * ldx + k + 2 * j]), a, even[r][h]);
                        odd[r][h] = madd(fill(x[r * ldx + k + 2 * j + 1]), b, odd[r][h]);
                    }
                }
            }
        }
        if (source != FOURS && k < end) {
            UNROLL for (int h = 0; h < 2; h++) {
                vf a = lone(source, w, h);
                UNROLL for (int r = 0; r < rows; r++) even[r][h] = madd(fill(x[r * ldx + k]), a, even[r][h]);
            }
            w += bytes;
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) all[r * 2 + h] += even[r][h] + odd[r][h];
    }
}
#endif

/* Subnormal numbers are 0 in tiles; so they are in vectors, while products run. Returns what `as_before` takes. */
INLINE unsigned without_subnormals(void)
{
#if defined(__AVX512F__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}

INLINE void as_before(unsigned state)
{
#if defined(__AVX512F__)
    _mm_setcsr(state);
#else
    (void)state;
#endif
}

#endif
