/* Products of the kernels for AArch64, for test_neon.py: jobs from standard input, outputs to standard output.
 *
 * A job is eight int64 (kind, bits, kind of scale, M, N, K, group, 0) and seven arrays, each an int64 of bytes and so
 * many bytes: x, weights or codes, scales, zeros, super_scales, super_minimums, bias. One of 0 bytes is NULL. An answer
 * is y [M][N] float32. First comes a line on standard error: the instructions in use and whether SDOT is. Exits 3 where
 * a row has other bits alone than among the others. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BFLOAT16, CODES, ROWS_OF_BYTES };

typedef struct {
    const void *codes, *scales, *zeros, *super_scales, *super_minimums;
} matrix_rows;

const char *instructions_in_use(void);
int sdot_works(void);
void pack_bf16(const void *w, void *packed, long N, long K);
void pack_quant(int bits, int scale, const matrix_rows *from, char *packed, long N, long K, long group);
int linear_bf16(const float *x, const void *w, const float *bias, float *y, long M, long N, long K);
int linear_quant(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                 long K, long group);
int linear_int8(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N, long K,
                long group);

static void take(void *to, size_t bytes)
{
    if (fread(to, 1, bytes, stdin) != bytes) exit(4);
}

static void *array(void)
{
    int64_t bytes;
    take(&bytes, sizeof bytes);
    if (!bytes) return NULL;
    void *made = aligned_alloc(64, (bytes + 127) / 64 * 64);
    take(made, bytes);
    return made;
}

static void multiply(const int64_t *job, const float *x, const char *w, const float *bias, float *y, long M)
{
    const long N = job[4], K = job[5], group = job[6];
    const int bits = (int)job[1], scale = (int)job[2];
    int failed;
    if (job[0] == BFLOAT16) failed = linear_bf16(x, w, bias, y, M, N, K);
    else failed = (job[0] == CODES ? linear_quant : linear_int8)(bits, scale, x, w, bias, y, M, N, K, group);
    if (failed) exit(5);
}

int main(void)
{
    int64_t job[8];
    fprintf(stderr, "%s %d\n", instructions_in_use(), sdot_works());
    while (fread(job, sizeof job, 1, stdin) == 1) {
        const long M = job[3], N = job[4], K = job[5];
        const float *x = array();
        const void *weights = array(), *scales = array(), *zeros = array(), *first = array(), *second = array();
        const float *bias = array();
        const matrix_rows from = {weights, scales, zeros, first, second};
        /* Room for outputs that fill their panel, two of everything a column, and what is read ahead. */
        char *packed = aligned_alloc(64, ((N + 64) * (K + 64) * 8 + 63) / 64 * 64);
        float *y = malloc(M * N * sizeof *y), *alone = malloc(N * sizeof *y);
        if (job[0] == BFLOAT16) pack_bf16(weights, packed, N, K);
        else pack_quant((int)job[1], (int)job[2], &from, packed, N, K, job[6]);
        multiply(job, x, packed, bias, y, M);
        for (long row = 0; row < M; row++) {
            multiply(job, x + row * K, packed, bias, alone, 1);
            if (memcmp(alone, y + row * N, N * sizeof *y)) return 3;
        }
        fwrite(y, sizeof *y, M * N, stdout);
    }
    return 0;
}
