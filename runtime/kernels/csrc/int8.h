/* Rows of 8 bits against codes: rows are quantized to -127..127 about zero, each piece of a group of a row by a scale
 * of its own, and four products of bytes are added to a sum of int32 at once.
 *
 * The sum of a piece is exact, so every instruction and every order gives the same one. What is left is float32: an
 * output starts at its bias or 0. Each run in ascending order adds, by one fused operation each, (sum of the row, of
 * each piece its scale * its codes) * offset and then (sum of the row's products) * scale; the latter sum starts at 0,
 * and each piece in ascending order adds scale of the row * products by one fused operation. So an output has the same
 * bits on every processor, for any number of rows. Weights are as quant.h has them and the offset as gemm_quant.c has
 * it. */
#ifndef PLIMSOLL_INT8_H
#define PLIMSOLL_INT8_H

#include "dots.h"

/* Columns of a piece and of a run: a group is cut into runs of so many, and what is left, and a run into pieces. */
#define PIECE 32
#define RUN 512

/* Whether this build can hold VPDPBUSD: of 512 bits, or of 256, whose form without AVX-512 assemblers know since 2021.
 * A build may leave it out. */
#ifndef HAVE_VNNI
#if defined(__AVX512BW__)
#define HAVE_VNNI 1
#elif defined(__AVX2__) && (__clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11))
#define HAVE_VNNI 1
#else
#define HAVE_VNNI 0
#endif
#endif

/* Below it the largest number of a piece counts as 0: what divides by it would overflow. */
#define LEAST 0x1p-100f

/* How four bytes are multiplied: by what every processor of this build has, by VPDPBUSD, or by SDOT (neon.h). */
enum how { PLAIN, VNNI, SDOT };

/* Whether this processor has VPDPBUSD for vectors of this build. */
int vnni_works(void);

/* Rows of a register tile: it holds sums of int32 and of float32 at once. AVX2 without VPDPBUSD needs registers for its
 * steps. */
#define INT8_ROWS (LANES == 8 ? 4 : ROWS / 2)

INLINE long pieces_of(long K, long group) { return K / group * ((group + PIECE - 1) / PIECE); }
INLINE long runs_of(long K, long group) { return K / group * ((group + RUN - 1) / RUN); }
/* Words of four columns. A group begins one. */
INLINE long quads_of(long K, long group) { return K / group * ((group + 3) / 4); }
/* Words that a quantized row takes: its codes, of each piece a start and a scale, and of each run a sum. */
INLINE long words_of(long K, long group) { return quads_of(K, group) + 2 * pieces_of(K, group) + runs_of(K, group); }

/* x [rows][K] -> codes [quads][high], ends [pieces][high][2] and sums [runs][high]. Ends are what sums start at, to
 * take out what codes of weights are too large by, and the scale; a sum is of scale times the sum of codes. Places of
 * rows from `rows` on are left alone. A piece with a number that is not finite has codes of 0 and a scale that is no
 * number. `bits`: of the weights. */
void quantize_rows(int bits, const float *x, long rows, long high, long K, long group, uint32_t *out);
/* SiLU of gate times up, both [rows][2][PIECE], becomes the piece of each row that begins at `column`: `out` as
 * quantize_rows has it, tile after tile. Pieces of a run come in ascending order. Groups are whole pieces. */
void quantize_gated(int bits, const float *both, long rows, long high, long K, long group, long column, uint32_t *out);

/* A code of 8 bits with VPDPBUSD is unsigned: 128 more. One of 4 bits is 8 more always. */
#define EXCESS(how, bits) ((bits) == 4 ? 8 : (how) == VNNI ? 128 : 0)

/* a * b + c, rounded once on every processor. */
INLINE vf fused(vf a, vf b, vf c)
{
#if defined(__FMA__) || defined(__aarch64__)
    return madd(a, b, c);
#else
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE vi all_lanes(uint32_t word) { return (vi)(word - (vu){0}); }

/* Whether a sum of a piece is two sums of 16 bits a lane until it is whole: where no instruction adds four products,
 * and codes of 4 bits are so small that 16 products stay below 2^15. */
#if defined(__AVX512BW__) || (defined(__AVX2__) && LANES == 8)
#define SUMS_OF_16(how, negative) ((how) == PLAIN && !(negative))
#else
#define SUMS_OF_16(how, negative) 0
#endif

/* sum + four products of bytes of w, unsigned unless `negative`, and of x, which is -127 to 127. */
INLINE vi add_quad(const int how, const int negative, vi sum, vu w, vu x)
{
#if HAVE_VNNI
    /* By its name, so that a build for all processors of a kind has it too. */
    if (how == VNNI) {
#if LANES == 16
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
#else
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
#endif
        return sum;
    }
#elif HAVE_NEON_DOTS
    if (how == SDOT) return sdot(sum, w, x);
#else
    (void)how;
#endif
#if defined(__AVX512BW__)
    __m512i a = (__m512i)w, b = (__m512i)x;
    if (!negative) return (vi)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16(a, b));
    b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b), a = _mm512_abs_epi8(a);
    return sum + (vi)_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
#elif defined(__AVX2__) && LANES == 8
    __m256i a = (__m256i)w, b = (__m256i)x;
    if (!negative) return (vi)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16(a, b));
    b = _mm256_sign_epi8(b, a), a = _mm256_abs_epi8(a);
    return sum + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
#elif defined(__aarch64__)
    /* Codes that are not negative are below 16. */
    (void)negative;
    return add_four_products(sum, w, x);
#else
    UNROLL for (int j = 0; j < 32; j += 8) {
        vi code = negative ? (vi)(w << (24 - j)) >> 24 : (vi)(w >> j & 255);
        sum += code * ((vi)(x << (24 - j)) >> 24);
    }
    return sum;
#endif
}

/* What the sum of a piece is once `add_quad` has seen all of it. */
INLINE vi whole_sum(const int how, const int negative, vi sum)
{
    if (!SUMS_OF_16(how, negative)) return sum;
#if defined(__AVX512BW__)
    return (vi)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    return (vi)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#else
    return sum;
#endif
}

/* Four columns of a panel's 8-bit codes as words of both vectors. Those after the last are anything: rows have 0
 * there. */
INLINE void quads_of_bytes(const int how, const char *at, vu *quads)
{
#if defined(__AVX512BW__)
    const __m512i columns = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
    UNROLL for (int h = 0; h < 2; h++) {
        const __m512i four = _mm512_permutex2var_epi32(a, _mm512_add_epi32(columns, _mm512_set1_epi32(4 * h)), b);
        quads[h] = (vu)_mm512_shuffle_epi8(four, order);
    }
#elif defined(__AVX2__) && LANES == 8
    const __m256i columns = _mm256_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5);
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i a = _mm256_loadu_si256((const __m256i *)at), b = _mm256_loadu_si256((const __m256i *)(at + 32));
    UNROLL for (int h = 0; h < 2; h++) {
        const __m256i part = _mm256_add_epi32(columns, _mm256_set1_epi32(2 * h));
        const __m256i first = _mm256_permutevar8x32_epi32(a, part), second = _mm256_permutevar8x32_epi32(b, part);
        quads[h] = (vu)_mm256_shuffle_epi8(_mm256_blend_epi32(first, second, 0xcc), order);
    }
#elif defined(__aarch64__)
    columns_to_words(at, quads);
#else
    quads[0] = quads[1] = (vu){0};
    UNROLL for (int h = 0; h < 2; h++)
        UNROLL for (int lane = 0; lane < LANES; lane++) {
            const char *one = at + h * LANES + lane;
            const uint8_t four[4] = {one[0], one[PANEL], one[2 * PANEL], one[3 * PANEL]};
            uint32_t word;
            memcpy(&word, four, 4);
            quads[h][lane] = word;
        }
#endif
    if (how == VNNI) quads[0] ^= 0x80808080u, quads[1] ^= 0x80808080u;
}

/* Columns 0, 4, 1, 5 of 8, or 2, 6, 3, 7, as codes of 0 to 15. */
INLINE vu quad_of_fours(vu words, int second)
{
    words >>= 4 * second;
#if defined(__AVX512F__)
    return (vu)_mm512_ternarylogic_epi32((__m512i)words, _mm512_set1_epi8(15), _mm512_set1_epi8(8), 0x6a);
#else
    return (words & 0x0f0f0f0fu) ^ 0x08080808u;
#endif
}

#endif
