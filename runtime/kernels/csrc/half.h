/* float16, one number at a time where the processor has no instruction for it. */
#ifndef PLIMSOLL_HALF_H
#define PLIMSOLL_HALF_H

#include "vec.h"

INLINE float from_f16(uint16_t h)
{
    /* Moved to float32's places a half is 2^112 times too small, subnormal or not; only infinity and NaN are else. */
    uint32_t u = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float x;
    if ((h & 0x7c00) == 0x7c00) u |= 0x7f800000u;
    memcpy(&x, &u, 4);
    if ((h & 0x7c00) != 0x7c00) x *= 5192296858534827628530496329220096.0f;
    memcpy(&u, &x, 4);
    u |= sign;
    memcpy(&x, &u, 4);
    return x;
}

/* Rounds to nearest even, as torch does. 65520 and above become infinity; NaN stays NaN. */
INLINE uint16_t to_f16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) {
        /* A subnormal half: the last place of 0.5 is the last place of a half, so that the sum rounds as needed. */
        float shifted;
        memcpy(&shifted, &u, 4);
        shifted += 0.5f;
        memcpy(&u, &shifted, 4);
        return (uint16_t)(sign | (u - 0x3f000000u));
    }
    u += 0xc8000fffu + (u >> 13 & 1u);
    return (uint16_t)(sign | u >> 13);
}

INLINE v8f widen8_f16(const uint16_t *p)
{
#if defined(__F16C__)
    return (v8f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    v8f wide;
    for (int i = 0; i < 8; i++) wide[i] = from_f16(p[i]);
    return wide;
#endif
}

#endif
