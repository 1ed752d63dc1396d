/* What is done to one row: norms, gates, rotary positions. */
#ifndef PLIMSOLL_ROWWISE_H
#define PLIMSOLL_ROWWISE_H

#include "vec.h"

INLINE float total(vf v)
{
    float t = 0;
    for (int i = 0; i < LANES; i++) t += v[i];
    return t;
}

static inline void normalise(const float *x, const float *weight, float *y, long K, float eps)
{
    vf sums[4] = {{0}};
    long k = 0;
    for (; k + 4 * LANES <= K; k += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            vf v = load(x + k + j * LANES);
            sums[j] = madd(v, v, sums[j]);
        }
    for (; k + LANES <= K; k += LANES) {
        vf v = load(x + k);
        sums[0] = madd(v, v, sums[0]);
    }
    float square = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; k < K; k++) square += x[k] * x[k];
    float scale = 1.0f / __builtin_sqrtf(square / (float)K + eps);
    for (k = 0; k + LANES <= K; k += LANES) store(y + k, load(x + k) * scale * load(weight + k));
    for (; k < K; k++) y[k] = x[k] * scale * weight[k];
}

/* sum += x, y = norm(sum). */
static inline void add_and_normalise(const float *x, float *sum, const float *weight, float *y, long K, float eps)
{
    for (long k = 0; k < K; k++) sum[k] += x[k];
    normalise(sum, weight, y, K, eps);
}

/* y = (x - mean) / sqrt(variance + eps) * weight + bias; bias may be null. */
static inline void normalise_about_mean(const float *x, const float *weight, const float *bias, float *y, long K,
                                        float eps)
{
    float sum = 0, square = 0;
    for (long k = 0; k < K; k++) sum += x[k];
    float mean = sum / (float)K;
    for (long k = 0; k < K; k++) square += (x[k] - mean) * (x[k] - mean);
    float scale = 1.0f / __builtin_sqrtf(square / (float)K + eps);
    for (long k = 0; k < K; k++) y[k] = (x[k] - mean) * scale * weight[k] + (bias ? bias[k] : 0.0f);
}

/* As `native.ACTIVATIONS` counts them. */
enum { SILU, GELU, GELU_TANH, RELU2 };

INLINE vf activation(const int kind, vf g)
{
    if (kind == SILU) return g / (vexp(-g) + 1.0f);
    /* 0.5 g (1 + tanh(u)) is g / (1 + e^(-2u)), for u = sqrt(2 / pi) (g + 0.044715 g^3). */
    if (kind == GELU_TANH) return g / (vexp(g * (g * g * 0.044715f + 1.0f) * -1.5957691216057308f) + 1.0f);
    if (kind == RELU2) {
        vf positive = (vf)((vi)g & (g > 0.0f));
        return positive * positive;
    }
    for (int i = 0; i < LANES; i++) g[i] = 0.5f * g[i] * (1.0f + __builtin_erff(g[i] * 0.70710678118654752f));
    return g;
}

INLINE void activate_row_of(const int kind, const float *gate, const float *up, float *y, long from, long to)
{
    long i = from;
    for (; i + LANES <= to; i += LANES) {
        vf made = activation(kind, load(gate + i));
        store(y + i, up ? made * load(up + i) : made);
    }
    if (i < to) {
        float g_rest[LANES] = {0}, u_rest[LANES] = {0}, result[LANES];
        memcpy(g_rest, gate + i, (to - i) * sizeof(float));
        if (up) memcpy(u_rest, up + i, (to - i) * sizeof(float));
        vf made = activation(kind, load(g_rest));
        store(result, up ? made * load(u_rest) : made);
        memcpy(y + i, result, (to - i) * sizeof(float));
    }
}

/* y[from .. to) = act(gate) * up; act(gate) where up is null. */
static inline void activate_row(int kind, const float *gate, const float *up, float *y, long from, long to)
{
    if (kind == SILU) activate_row_of(SILU, gate, up, y, from, to);
    else if (kind == GELU_TANH) activate_row_of(GELU_TANH, gate, up, y, from, to);
    else if (kind == RELU2) activate_row_of(RELU2, gate, up, y, from, to);
    else activate_row_of(GELU, gate, up, y, from, to);
}

static inline void rotate(float *x, long heads, long stride, const float *cos, const float *sin, long half)
{
    for (long h = 0; h < heads; h++) {
        float *first = x + h * stride, *second = first + half;
        for (long i = 0; i < half; i++) {
            float a = first[i], b = second[i];
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

#endif
