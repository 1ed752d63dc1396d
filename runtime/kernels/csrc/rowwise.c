/* Ops that touch each row once, as torch calls them. Rows never depend on each other. */
#include "bounds.h"
#include "cache.h"
#include "rowwise.h"

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
    for (long t = 0; t < T; t++) add_and_normalise(x + t * K, residual + t * K, weight, y + t * K, K, eps);
}

/* x dense; bias may be null. */
void layer_norm(const float *x, const float *weight, const float *bias, float *y, long T, long K, float eps)
{
#pragma omp parallel for if (T * K > WORTH_THREADS)
    for (long t = 0; t < T; t++) normalise_about_mean(x + t * K, weight, bias, y + t * K, K, eps);
}

/* x [T, 2I], gate and up, or [T, I] where nothing is gated. */
void activate(int kind, int gated, const float *x, float *y, long T, long I)
{
    long row = gated ? 2 * I : I;
#pragma omp parallel for if (T * I > WORTH_THREADS)
    for (long t = 0; t < T; t++) activate_row(kind, x + t * row, gated ? x + t * row + I : 0, y + t * I, 0, I);
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

/* `kind` as `enum cache`; k and v [T, G, D] with strides. Returns DONE or OUTSIDE. */
int write_kv(int kind, const float *k, long k_row, long k_head, const float *v, long v_row, long v_head, void *k_cache,
             void *v_cache, const int64_t *slots, long T, long blocks, long G, long S, long D)
{
    if (!all_within(slots, T, blocks * S)) return OUTSIDE;
#pragma omp parallel for collapse(2) if (T * G * D > WORTH_THREADS)
    for (long g = 0; g < G; g++)
        for (long t = 0; t < T; t++)
            write_row(kind, k + t * k_row + g * k_head, v + t * v_row + g * v_head, k_cache, v_cache, slots[t], g, G,
                      S, D);
    return DONE;
}
