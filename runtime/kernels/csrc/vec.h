/* Vectors of the widest kind the compiler was told of, as GCC's extension.
 *
 * Sums that must not depend on the batch say `madd`. The compiler itself fuses nothing (-ffp-contract=off): it would
 * do so in one tile and not in another, as its tuning for some processors avoids chains of fused operations. */
#ifndef PLIMSOLL_VEC_H
#define PLIMSOLL_VEC_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* LANES floats a vector; ROWS rows of a register tile that is two vectors wide, so that it leaves room for operands. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 12
#else
#define LANES 4
#define ROWS 6
#endif
#define PANEL (2 * LANES)
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
/* Attention sums 8 lanes everywhere: values of a head size that is no multiple of 8 are padded. */
typedef float v8f __attribute__((vector_size(32)));
typedef uint32_t v8u __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint16_t v8h __attribute__((vector_size(16)));
typedef uint8_t v8b __attribute__((vector_size(8)));

INLINE vf load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE v8f load8(const float *p) { v8f v; memcpy(&v, p, sizeof v); return v; }
INLINE void store8(float *p, v8f v) { memcpy(p, &v, sizeof v); }

/* a * b + c, rounded once where the processor can. */
INLINE v8f madd8(v8f a, v8f b, v8f c)
{
#if defined(__FMA__)
    return (v8f)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    float32x4_t x[2], y[2], z[2];
    memcpy(x, &a, sizeof a), memcpy(y, &b, sizeof b), memcpy(z, &c, sizeof c);
    z[0] = vfmaq_f32(z[0], x[0], y[0]), z[1] = vfmaq_f32(z[1], x[1], y[1]);
    memcpy(&c, z, sizeof c);
    return c;
#else
    return a * b + c;
#endif
}

INLINE vf madd(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* All lanes x. */
INLINE vf fill(float x) { return x - (vf){0}; }
INLINE v8f fill8(float x) { return x - (v8f){0}; }

/* LANES pairs of bfloat16, the first of each pair low: widening is a shift and a mask. */
INLINE void load_pairs(const uint16_t *p, vf *low, vf *high)
{
    vu v;
    memcpy(&v, p, sizeof v);
    *low = (vf)(v << 16);
    *high = (vf)(v & 0xffff0000u);
}

INLINE v8f widen8(const uint16_t *p)
{
    v8h v;
    memcpy(&v, p, sizeof v);
    return (v8f)(__builtin_convertvector(v, v8u) << 16);
}

/* Round to nearest even, as torch does; NaN stays NaN. */
INLINE uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

INLINE float from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* The larger and the smaller of a and b; b where either is NaN. `kept`: a where not x < low, elsewhere 0. */
INLINE v8f larger8(v8f a, v8f b)
{
#if defined(__AVX__)
    return (v8f)_mm256_max_ps((__m256)a, (__m256)b);
#else
    v8i more = a > b;
    return (v8f)(((v8i)a & more) | ((v8i)b & ~more));
#endif
}

INLINE v8f smaller8(v8f a, v8f b)
{
#if defined(__AVX__)
    return (v8f)_mm256_min_ps((__m256)a, (__m256)b);
#else
    v8i less = a < b;
    return (v8f)(((v8i)a & less) | ((v8i)b & ~less));
#endif
}

INLINE v8f kept8(v8f a, v8f x, float low) { return (v8f)((v8i)a & ~(x < low)); }

INLINE vf larger(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    vi more = a > b;
    return (vf)(((vi)a & more) | ((vi)b & ~more));
#endif
}

INLINE vf smaller(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    vi less = a < b;
    return (vf)(((vi)a & less) | ((vi)b & ~less));
#endif
}

INLINE vf kept(vf a, vf x, float low)
{
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(low), _CMP_NLT_UQ), (__m512)a);
#else
    return (vf)((vi)a & ~(x < low));
#endif
}

/* e^x within 2 ulp on [-87.3, 88.3], below it 0, above it clamped; e^0 is 1 exactly, e^NaN NaN. Cody and Waite's
 * reduction and Cephes' polynomial. */
#define DEFINE_EXP(NAME, F, I, FILL, MADD, LARGER, SMALLER, KEPT)                                                      \
    INLINE F NAME(F given)                                                                                             \
    {                                                                                                                  \
        F x = SMALLER(FILL(88.3f), LARGER(FILL(-87.3f), given));                                                       \
        F shifted = MADD(x, FILL(1.44269504088896341f), FILL(12582912.0f));                                            \
        F n = shifted - 12582912.0f;                                                                                   \
        F r = MADD(n, FILL(-0.693359375f), x);                                                                         \
        r = MADD(n, FILL(2.12194440e-4f), r);                                                                          \
        F p = MADD(r, FILL(1.9875691500e-4f), FILL(1.3981999507e-3f));                                                 \
        p = MADD(p, r, FILL(8.3334519073e-3f));                                                                        \
        p = MADD(p, r, FILL(4.1665795894e-2f));                                                                        \
        p = MADD(p, r, FILL(1.6666665459e-1f));                                                                        \
        p = MADD(p, r, FILL(5.0000001201e-1f));                                                                        \
        p = MADD(r * r, p, r) + 1.0f;                                                                                  \
        I power = ((I)shifted << 23) + (127 << 23);                                                                    \
        return KEPT(p * (F)power, given, -87.3f);                                                                      \
    }
DEFINE_EXP(vexp, vf, vi, fill, madd, larger, smaller, kept)
DEFINE_EXP(vexp8, v8f, v8i, fill8, madd8, larger8, smaller8, kept8)

/* Fewer elements than this are done before a second thread would have started. */
#define WORTH_THREADS 16384

#endif
