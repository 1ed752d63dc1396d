/* Ops that touch each row once: norms, gates, rotary positions, writing the cache. Rows never depend on each other. */
#include "vec.h"

INLINE float total(vf v)
{
    float t = 0;
    for (int i = 0; i < LANES; i++) t += v[i];
    return t;
}

static void normalise(const float *x, const float *weight, float *y, long K, float eps)
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

/* x as [outer][inner][K] with strides; y dense. */
void rms_norm(const float *x, long outer, long inner, long outer_stride, long inner_stride, const float *weight,
              float *y, long K, float eps)
{
    long rows = outer * inner;
#pragma omp parallel for if (rows * K > WORTH_THREADS)
    for (long r = 0; r < rows; r++)
        normalise(x + r / inner * outer_stride + r % inner * inner_stride, weight, y + r * K, K, eps);
}

void add_rms_norm(const float *x, float *residual, const float *weight, float *y, long T, long K, float eps)
{
#pragma omp parallel for if (T * K > WORTH_THREADS)
    for (long t = 0; t < T; t++) {
        float *sum = residual + t * K;
        for (long k = 0; k < K; k++) sum[k] += x[t * K + k];
        normalise(sum, weight, y + t * K, K, eps);
    }
}

void silu_mul(const float *gate_up, float *y, long T, long I)
{
#pragma omp parallel for if (T * I > WORTH_THREADS)
    for (long t = 0; t < T; t++) {
        const float *gate = gate_up + t * 2 * I, *up = gate + I;
        float *out = y + t * I;
        long i = 0;
        for (; i + LANES <= I; i += LANES) {
            vf g = load(gate + i);
            store(out + i, g / (vexp(-g) + 1.0f) * load(up + i));
        }
        if (i < I) {
            float g_rest[LANES] = {0}, u_rest[LANES] = {0}, result[LANES];
            memcpy(g_rest, gate + i, (I - i) * sizeof(float));
            memcpy(u_rest, up + i, (I - i) * sizeof(float));
            vf g = load(g_rest);
            store(result, g / (vexp(-g) + 1.0f) * load(u_rest));
            memcpy(out + i, result, (I - i) * sizeof(float));
        }
    }
}

static void rotate(float *x, long heads, long stride, const float *cos, const float *sin, long half)
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

void rope(float *q, long H, long q_row, long q_head, float *k, long G, long k_row, long k_head, const float *cos,
          const float *sin, long T, long D)
{
#pragma omp parallel for if (T * (H + G) * D > WORTH_THREADS)
    for (long t = 0; t < T; t++) {
        const float *c = cos + t * (D / 2), *s = sin + t * (D / 2);
        rotate(q + t * q_row, H, q_head, c, s, D / 2);
        rotate(k + t * k_row, G, k_head, c, s, D / 2);
    }
}

/* A cache block of one head holds keys as [D][S], so that scores of neighbouring keys are one vector, and values as
 * [S][D]. The shape torch sees, [blocks, G, S, D], tells their size only. */
#define DEFINE_WRITE(NAME, C, NARROW)                                                                                  \
    void NAME(const float *k, long k_row, long k_head, const float *v, long v_row, long v_head, C *k_cache,            \
              C *v_cache, const int64_t *slots, long T, long G, long S, long D)                                        \
    {                                                                                                                  \
        _Pragma("omp parallel for collapse(2) if (T * G * D > WORTH_THREADS)") for (long g = 0; g < G; g++)            \
            for (long t = 0; t < T; t++) {                                                                             \
                long block = slots[t] / S, offset = slots[t] % S;                                                      \
                C *keys = k_cache + (block * G + g) * S * D + offset, *values = v_cache + ((block * G + g) * S + offset) * D; \
                const float *key = k + t * k_row + g * k_head, *value = v + t * v_row + g * v_head;                    \
                for (long d = 0; d < D; d++) keys[d * S] = NARROW(key[d]);                                             \
                for (long d = 0; d < D; d++) values[d] = NARROW(value[d]);                                             \
            }                                                                                                          \
    }
#define SAME(x) (x)
DEFINE_WRITE(write_kv_bf16, uint16_t, to_bf16)
DEFINE_WRITE(write_kv_f32, float, SAME)
