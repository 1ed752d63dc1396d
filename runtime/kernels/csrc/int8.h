/* Rows of 8 bits against codes: rows are quantized to -127..127 about zero, each piece of a group of a row by a scale of
 * its own, and four products of bytes are added to a sum of int32 at once.
 *
 * The sum of a piece is exact, so every instruction and every order gives the same one. What is left is float32: an
 * output starts at its bias or 0; each piece in ascending order adds, by one fused operation each, (scale of the row *
 * sum of its codes) * offset and then (scale of the row * products) * scale. So an output has the same bits on every
 * processor, for any number of rows. Weights are as quant.h has them and the offset as gemm_quant.c has it. */
#ifndef PLIMSOLL_INT8_H
#define PLIMSOLL_INT8_H

#include "dots.h"

/* Columns of a piece: a group is cut into pieces of so many, and what is left. */
#define PIECE 32

/* Whether this build can hold VPDPBUSD: of 512 bits, or of 256, whose form without AVX-512 assemblers know since 2021. A
 * build may leave it out. */
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

/* How four bytes are multiplied: by what every processor of this build has, or by VPDPBUSD. */
enum how { PLAIN, VNNI };

/* Whether this processor has VPDPBUSD for vectors of this build. */
int vnni_works(void);

/* Rows of a register tile. AVX2 without VPDPBUSD needs registers for its steps. */
#define INT8_ROWS (LANES == 8 ? 4 : ROWS)

INLINE long pieces_of(long K, long group) { return K / group * ((group + PIECE - 1) / PIECE); }
/* Words of four columns. A group begins one. */
INLINE long quads_of(long K, long group) { return K / group * ((group + 3) / 4); }
/* Words that a quantized row takes: its codes, and of each piece a start, a scale and a scaled sum. */
INLINE long words_of(long K, long group) { return quads_of(K, group) + 3 * pieces_of(K, group); }

/* x [rows][K] -> codes [quads][high] and ends [pieces][high][3]: what sums start at, to take out what codes of weights
 * are too large by; the scale; the scale times the sum of codes. Places of rows from `rows` on are left alone. A piece
 * with a number that is not finite has codes of 0 and a scale that is no number. `bits`: of the weights. */
void quantize_rows(int bits, const float *x, long rows, long high, long K, long group, uint32_t *out);

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
#else
    (void)how;
#endif
#if defined(__AVX512BW__)
    __m512i a = (__m512i)w, b = (__m512i)x;
    if (negative) b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b), a = _mm512_abs_epi8(a);
    return sum + (vi)_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
#elif defined(__AVX2__) && LANES == 8
    __m256i a = (__m256i)w, b = (__m256i)x;
    if (negative) b = _mm256_sign_epi8(b, a), a = _mm256_abs_epi8(a);
    return sum + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
#else
    UNROLL for (int j = 0; j < 32; j += 8) {
        vi code = negative ? (vi)(w << (24 - j)) >> 24 : (vi)(w >> j & 255);
        sum += code * ((vi)(x << (24 - j)) >> 24);
    }
    return sum;
#endif
}

/* Bytes of LANES outputs, one a lane. */
INLINE vu load_unsigned(const char *p)
{
#if defined(__AVX512F__)
    return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    uint8_t narrow __attribute__((vector_size(LANES)));
    memcpy(&narrow, p, sizeof narrow);
    return __builtin_convertvector(narrow, vu);
#endif
}

/* Four columns of a panel's 8-bit codes. Those after the last are anything: rows have 0 there. */
INLINE vu quad_of_bytes(const int how, const char *at, int half)
{
    vu quad = {0};
    UNROLL for (int j = 0; j < 4; j++) quad |= load_unsigned(at + j * PANEL + half * LANES) << (8 * j);
    return how == VNNI ? quad ^ 0x80808080u : quad;
}

/* Columns 0, 4, 1, 5 of 8, or 2, 6, 3, 7, as codes of 0 to 15. */
INLINE vu quad_of_fours(vu words, int second) { return (words >> (4 * second) & 0x0f0f0f0fu) ^ 0x08080808u; }

#endif
