/* Weights of 4 or 8 bits into the layout of quant.h, and out of it as bfloat16. */
#include "bounds.h"
#include "quant.h"

/* codes [N][K] a byte each, scales [N][K / group], zeros (or minimums, as the kind of scale says) likewise or NULL. */
void pack_quant(int bits, int scale, const uint8_t *codes, const char *scales, const char *zeros, char *packed,
                long N, long K, long group)
{
    shape s = {K, group, 0, scale};
    long panels = (N + PANEL - 1) / PANEL, groups = K / group, size = bits == 4 ? scale_bytes(scale) : 4;
    s.panel = groups * group_bytes(bits, s);
    memset(packed, 0, panels * s.panel);
    _Pragma("omp parallel for") for (long p = 0; p < panels; p++)
        for (long g = 0; g < groups; g++) {
            char *start = packed + p * s.panel + g * group_bytes(bits, s), *end = start + code_bytes(bits, group);
            for (long i = 0; i < PANEL && p * PANEL + i < N; i++) {
                long n = p * PANEL + i;
                const uint8_t *from = codes + n * K + g * group;
                for (long k = 0; k < group; k++)
                    if (bits == 8)
                        start[k * PANEL + i] = (char)from[k];
                    else
                        start[(k / 8 * PANEL + i) * 4 + k % 2 * 2 + k % 8 / 4] |= (char)((from[k] ^ 8) << k / 2 % 2 * 4);
                memcpy(end + i * size, scales + (n * groups + g) * size, size);
                char *zero = end + PANEL * size + i * zero_bytes(scale);
                if (bits == 4 && scale == SCALE_F16_MINIMUM)
                    memcpy(zero, zeros + (n * groups + g) * 2, 2);
                else if (bits == 4)
                    *zero = zeros ? (char)(zeros[n * groups + g] - 8) : 0;
            }
        }
}

/* Rows of 8 bits as they are: ids [T] of N -> y [T][K]. */
int embed_quant(const int64_t *ids, const char *packed, float *y, long T, long N, long K, long group)
{
    if (!all_within(ids, T, N)) return OUTSIDE;
    shape s = {K, group, 0, SCALE_F32};
    s.panel = K / group * group_bytes(8, s);
    _Pragma("omp parallel for if (T * K > WORTH_THREADS)") for (long t = 0; t < T; t++)
        for (long g = 0; g < K / group; g++) {
            long i = ids[t] % PANEL;
            const char *start = packed + ids[t] / PANEL * s.panel + g * group_bytes(8, s);
            float scale = one_scale(SCALE_F32, start + code_bytes(8, group), i);
            for (long k = 0; k < group; k++)
                y[t * K + g * group + k] = (float)(int8_t)start[k * PANEL + i] * scale;
        }
    return DONE;
}

/* The first N rows as bfloat16 [N][K], rounded to nearest even. */
void unpack_quant(int bits, int scale, const char *packed, uint16_t *out, long N, long K, long group)
{
    shape s = {K, group, 0, scale};
    long groups = K / group;
    s.panel = groups * group_bytes(bits, s);
    _Pragma("omp parallel for") for (long n = 0; n < N; n++)
        for (long g = 0; g < groups; g++) {
            long i = n % PANEL;
            const char *start = packed + n / PANEL * s.panel + g * group_bytes(bits, s);
            const char *end = start + code_bytes(bits, group);
            uint16_t *to = out + n * K + g * group;
            float factor = one_scale(bits == 4 ? scale : SCALE_F32, end, i);
            if (bits == 8) {
                for (long k = 0; k < group; k++) to[k] = to_bf16((float)(int8_t)start[k * PANEL + i] * factor);
                continue;
            }
            const char *ends = end + PANEL * scale_bytes(scale);
            int32_t zero = scale == SCALE_F16_MINIMUM ? -8 : ((const int8_t *)ends)[i];
            float least = scale == SCALE_F16_MINIMUM ? one_scale(SCALE_F16, ends, i) : 0;
            for (long k = 0; k < group; k += 8) {
                int32_t eight;
                memcpy(&eight, start + (k / 8 * PANEL + i) * 4, 4);
                v8i codes = (((v8i){0} + eight) << (v8i){28, 12, 24, 8, 20, 4, 16, 0}) >> 28;
                v8u bits32 = (v8u)(__builtin_convertvector(codes - zero, v8f) * factor + least);
                v8h narrow = __builtin_convertvector((bits32 + 0x7fff + ((bits32 >> 16) & 1)) >> 16, v8h);
                memcpy(to + k, &narrow, sizeof narrow);
            }
        }
}
