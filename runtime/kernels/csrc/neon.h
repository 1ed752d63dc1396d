/* Dot products of AArch64: SDOT of bytes and BFDOT of bfloat16. Every library for AArch64 holds them, and the processor
 * is asked when the kernels run, so one build for ARMv8 serves all of them. In other builds `sdot_works` and
 * `bfdot_works` say 0 and nothing else is called. */
#ifndef PLIMSOLL_NEON_H
#define PLIMSOLL_NEON_H

#include "vec.h"

/* Whether this build holds SDOT and BFDOT. A build may leave them out. */
#ifndef HAVE_NEON_DOTS
#if defined(__aarch64__) && defined(__linux__)
#define HAVE_NEON_DOTS 1
#else
#define HAVE_NEON_DOTS 0
#endif
#endif

/* Whether this processor has FEAT_DotProd. */
int sdot_works(void);
/* Whether this processor has FEAT_BF16. */
int bfdot_works(void);

#if HAVE_NEON_DOTS
/* By their codes: assemblers take the names only where they may use them everywhere. Symbols stand for registers. */
#define THREE_VECTORS(CODE)                                                                                            \
    ".ifndef .Lregister_v0\n.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30," \
    "31\n.equ .Lregister_v\\n, \\n\n.endr\n.endif\n"                                                                  \
    ".inst " CODE " | .Lregister_%0 | .Lregister_%1 << 5 | .Lregister_%2 << 16"

/* sum + four products of signed bytes in each lane. */
INLINE vi sdot(vi sum, vu w, vu x)
{
    __asm__(THREE_VECTORS("0x4e809400") : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}

/* The same by the four bytes of one lane of x for all. */
INLINE vi sdot_lane(vi sum, vu w, vu x, const int lane)
{
    if (lane == 0) __asm__(THREE_VECTORS("0x4f80e000") : "+w"(sum) : "w"(w), "w"(x));
    else if (lane == 1) __asm__(THREE_VECTORS("0x4fa0e000") : "+w"(sum) : "w"(w), "w"(x));
    else if (lane == 2) __asm__(THREE_VECTORS("0x4f80e800") : "+w"(sum) : "w"(w), "w"(x));
    else __asm__(THREE_VECTORS("0x4fa0e800") : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}

/* sum + two products of bfloat16 in each lane: the products' sum is rounded to odd and so is what it is added to;
 * subnormal numbers are 0. That is so with FEAT_EBF16 too: Linux starts programs with FPCR.EBF 0. */
INLINE vf bfdot(vf sum, vu w, vu x)
{
    __asm__(THREE_VECTORS("0x6e40fc00") : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}

INLINE vf bfdot_lane(vf sum, vu w, vu x, const int lane)
{
    if (lane == 0) __asm__(THREE_VECTORS("0x4f40f000") : "+w"(sum) : "w"(w), "w"(x));
    else if (lane == 1) __asm__(THREE_VECTORS("0x4f60f000") : "+w"(sum) : "w"(w), "w"(x));
    else if (lane == 2) __asm__(THREE_VECTORS("0x4f40f800") : "+w"(sum) : "w"(w), "w"(x));
    else __asm__(THREE_VECTORS("0x4f60f800") : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}
#endif

#if defined(__aarch64__)
/* The same sum as sdot's on every processor: a pair of products of a byte and one of -127 to 127 fits int16. */
INLINE vi add_four_products(vi sum, vu w, vu x)
{
    const int8x16_t a = (int8x16_t)w, b = (int8x16_t)x;
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return (vi)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
}

/* Four columns of eight outputs' bytes as words of both vectors. Not by TBL: compilers move its registers about. */
INLINE void columns_to_words(const char *at, vu *words)
{
    uint8x16_t column[4];
    for (int k = 0; k < 4; k++)
        column[k] = vcombine_u8(vld1_u8((const uint8_t *)at + 8 * k), vdup_n_u8(0));
    const uint16x8_t first = (uint16x8_t)vzip1q_u8(column[0], column[1]);
    const uint16x8_t second = (uint16x8_t)vzip1q_u8(column[2], column[3]);
    words[0] = (vu)vzip1q_u16(first, second), words[1] = (vu)vzip2q_u16(first, second);
}

/* Nibbles j of both halves of each word as a pair of bfloat16 from -8 to 7: a byte of the first 16 is the low one of a
 * number, and one of the others the high one. */
INLINE vu nibble_pairs(vu words, int j)
{
    static const uint8_t numbers[32] = {0,    0x80, 0,    0x40, 0x80, 0xa0, 0xc0, 0xe0, 0,    0xe0, 0xc0,
                                        0xa0, 0x80, 0x40, 0,    0x80, 0,    0x3f, 0x40, 0x40, 0x40, 0x40,
                                        0x40, 0x40, 0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf};
    const uint8x16x2_t both = {{vld1q_u8(numbers), vld1q_u8(numbers + 16)}};
    const vu codes = words >> (4 * j) & 0x000f000fu;
    return (vu)vqtbl2q_u8(both, (uint8x16_t)(codes | codes << 8 | 0x10001000u));
}
#endif
#endif
