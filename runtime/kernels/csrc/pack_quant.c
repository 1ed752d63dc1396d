/* Weights of 4 or 8 bits into the layout of quant.h, and out of it as floats. */
#include "bounds.h"
#include "quant.h"

/* What is packed, as rows: codes [N][K] a byte each, scales [N][K / group], zeros (or minimums, as the kind of scale
 * says) likewise or NULL; where scales are bytes, also float16 [N][K / SUPER] that they, and the minimums, are
 * multiplied by. */
typedef struct {
    const uint8_t *codes;
    const char *scales, *zeros, *super_scales, *super_minimums;
} matrix_rows;

void pack_quant(int bits, int scale, const matrix_rows *from, char *packed, long N, long K, long group)
{
    shape s = {K, group, 0, scale};
    long panels = (N + PANEL - 1) / PANEL, groups = K / group, size = scale_bytes(scale),
        least = zero_bytes(bits, scale);
    s.panel = panel_bytes(bits, s);
    memset(packed, 0, panels * s.panel);
    _Pragma("omp parallel for") for (long p = 0; p < panels; p++) {
        char *start = packed + p * s.panel;
        for (long g = 0; g < groups; g++, start += group_bytes(bits, s)) {
            char *super = NULL, *end;
            if (in_supers(scale) && g * group % SUPER == 0) super = start, start += super_bytes(scale);
            end = start + code_bytes(bits, group);
            for (long i = 0; i < PANEL && p * PANEL + i < N; i++) {
                long n = p * PANEL + i, one = n * groups + g, whole = n * (K / SUPER) + g * group / SUPER;
                const uint8_t *codes = from->codes + n * K + g * group;
                for (long k = 0; k < group; k++)
                    if (bits == 8)
                        start[k * PANEL + i] = (char)codes[k];
                    else
                        start[(k / 8 * PANEL + i) * 4 + k % 2 * 2 + k % 8 / 4] |=
                            (char)((codes[k] ^ 8) << k / 2 % 2 * 4);
                memcpy(end + i * size, from->scales + one * size, size);
                char *zero = end + PANEL * size + i * least;
                if (has_minimum(scale)) memcpy(zero, from->zeros + one * least, least);
                else if (least) *zero = from->zeros ? (char)(from->zeros[one] - 8) : 0;
                if (!super) continue;
                memcpy(super + 2 * i, from->super_scales + 2 * whole, 2);
                if (has_minimum(scale)) memcpy(super + 2 * (PANEL + i), from->super_minimums + 2 * whole, 2);
            }
        }
    }
}

/* Columns [first, last) of a group of output i of a panel, its codes at `start`, as floats. */
INLINE void read_group(const int bits, shape s, const char *start, const char *super, long i, long first, long last,
                       float *y)
{
    const char *end = start + code_bytes(bits, s.group);
    float scale, least = 0;
    one_end(s.scale, end, super, i, &scale, &least);
    if (bits == 8) {
        for (long k = first; k < last; k++) {
            float value = (float)(int8_t)start[k * PANEL + i] * scale;
            *y++ = has_minimum(s.scale) ? value + least : value;
        }
        return;
    }
    int32_t zero = has_minimum(s.scale) ? -8 : 0;
    if (!has_minimum(s.scale) && !in_supers(s.scale)) zero = ((const int8_t *)end)[PANEL * scale_bytes(s.scale) + i];
    for (long k = first; k < last; k += 8, y += 8) {
        int32_t eight;
        memcpy(&eight, start + (k / 8 * PANEL + i) * 4, 4);
        v8i codes = (((v8i){0} + eight) << (v8i){28, 12, 24, 8, 20, 4, 16, 0}) >> 28;
        v8f values = __builtin_convertvector(codes - zero, v8f) * scale;
        store8(y, has_minimum(s.scale) ? values + least : values);
    }
}

/* Output n as it is, [K]. */
INLINE void read_row(const int bits, shape s, const char *packed, long n, float *y)
{
    const char *start = packed + n / PANEL * s.panel, *super = start;
    for (long k = 0; k < s.K; k += s.group, start += group_bytes(bits, s)) {
        start = group_at(s, k, start, &super);
        read_group(bits, s, start, super, n % PANEL, 0, s.group, y + k);
    }
}

/* Rows as they are: ids [T] of N -> y [T][K]. */
int embed_quant(int bits, int scale, const int64_t *ids, const char *packed, float *y, long T, long N, long K,
                long group)
{
    if (!all_within(ids, T, N)) return OUTSIDE;
    shape s = {K, group, 0, scale};
    s.panel = panel_bytes(bits, s);
    _Pragma("omp parallel for if (T * K > WORTH_THREADS)") for (long t = 0; t < T; t++)
        if (bits == 4) read_row(4, s, packed, ids[t], y + t * K);
        else read_row(8, s, packed, ids[t], y + t * K);
    return DONE;
}

/* Columns of a group that are floats at once. */
#define PART 256

INLINE void narrow_row(const int bits, shape s, const char *packed, long n, uint16_t *out)
{
    const char *start = packed + n / PANEL * s.panel, *super = start;
    float part[PART];
    for (long k = 0; k < s.K; k += s.group, start += group_bytes(bits, s)) {
        start = group_at(s, k, start, &super);
        for (long first = 0; first < s.group; first += PART) {
            long last = s.group - first < PART ? s.group : first + PART;
            read_group(bits, s, start, super, n % PANEL, first, last, part);
            for (long i = first; i < last; i++) out[k + i] = to_bf16(part[i - first]);
        }
    }
}

/* The first N rows as bfloat16 [N][K], rounded to nearest even. */
void unpack_quant(int bits, int scale, const char *packed, uint16_t *out, long N, long K, long group)
{
    shape s = {K, group, 0, scale};
    s.panel = panel_bytes(bits, s);
    _Pragma("omp parallel for") for (long n = 0; n < N; n++)
        if (bits == 4) narrow_row(4, s, packed, n, out + n * K);
        else narrow_row(8, s, packed, n, out + n * K);
}
