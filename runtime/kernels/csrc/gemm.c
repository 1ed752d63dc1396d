/* y = x w^T + bias over weights packed in panels of PANEL outputs: [panels][K][PANEL].
 *
 * Invariant: output (m, n) is bias[n] or 0, plus for each CHUNK of k in ascending order the sum over it, by one fused
 * multiply-add for each k in ascending order; whatever M, the tile a row falls into and the number of threads. So a
 * row of a batch is to the bit what it is alone. */
#include "bounds.h"
#include "team.h"
#include <omp.h>

/* A sum of sums rounds less than one long sum. */
#define CHUNK 96

/* Columns of x that stay in the first cache beside a panel, and rows that stay in the second. */
#define DEPTH (4 * CHUNK)
#define BAND (12 * ROWS)
#define PANELS_A_TASK 16

static const float zeros[PANEL];

/* `rows` x (`panels` * PANEL) outputs in registers: y = from + x w^T, a chunk of k at a time. */
#define DEFINE_TILE(NAME, W, LOAD_TWO)                                                                                 \
    INLINE void NAME(const int rows, const int panels, long depth, const float *x, long ldx, const W *w, long stride,  \
                     const float *from, long ldf, long step, float *y, long ldy)                                       \
    {                                                                                                                  \
        for (long done = 0; done < depth; done += CHUNK) {                                                             \
            long now = depth - done < CHUNK ? depth - done : CHUNK;                                                    \
            vf sum[panels][rows][2];                                                                                   \
            UNROLL for (int p = 0; p < panels; p++)                                                                    \
                UNROLL for (int r = 0; r < rows; r++) sum[p][r][0] = sum[p][r][1] = (vf){0};                           \
            for (long k = 0; k < now; k++)                                                                             \
                UNROLL for (int p = 0; p < panels; p++) {                                                              \
                    vf a, b;                                                                                           \
                    LOAD_TWO(w + p * stride + k * PANEL, &a, &b);                                                      \
                    UNROLL for (int r = 0; r < rows; r++) {                                                            \
                        vf one = fill(x[r * ldx + k]);                                                                 \
                        sum[p][r][0] = madd(one, a, sum[p][r][0]);                                                     \
                        sum[p][r][1] = madd(one, b, sum[p][r][1]);                                                     \
                    }                                                                                                  \
                }                                                                                                      \
            UNROLL for (int p = 0; p < panels; p++)                                                                    \
                UNROLL for (int r = 0; r < rows; r++)                                                                  \
                    UNROLL for (int v = 0; v < 2; v++)                                                                 \
                        store(y + r * ldy + p * PANEL + v * LANES,                                                     \
                              load(from + r * ldf + p * step + v * LANES) + sum[p][r][v]);                             \
            from = y, ldf = ldy, step = PANEL, x += now, w += now * PANEL;                                             \
        }                                                                                                              \
    }

INLINE void load_floats(const float *p, vf *a, vf *b)
{
    *a = load(p);
    *b = load(p + LANES);
}

#define DEFINE_LINEAR(NAME, W, TILE)                                                                                   \
    static void NAME##_rows(int rows, long depth, const float *x, long ldx, const W *w, const float *from, long ldf,   \
                            float *y, long ldy)                                                                        \
    {                                                                                                                  \
        switch (rows) {                                                                                                \
            CASE(TILE, 1) CASE(TILE, 2) CASE(TILE, 3) CASE(TILE, 4) CASE(TILE, 5) CASE(TILE, 6)                        \
            MORE_CASES(TILE)                                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    /* Rows of a band against panels [first, last), all of them full ones. */                                          \
    static void NAME##_band(long rows, long K, const float *x, const W *w, long first, long last, const float *bias,   \
                            float *y, long N)                                                                          \
    {                                                                                                                  \
        long p = first;                                                                                                \
        if (rows == 1)                                                                                                 \
            for (; p + 4 <= last; p += 4)                                                                              \
                TILE(1, 4, K, x, K, w + p * K * PANEL, K * PANEL, bias ? bias + p * PANEL : zeros, 0,                  \
                     bias ? PANEL : 0, y + p * PANEL, N);                                                              \
        if (rows == 2)                                                                                                 \
            for (; p + 2 <= last; p += 2)                                                                              \
                TILE(2, 2, K, x, K, w + p * K * PANEL, K * PANEL, bias ? bias + p * PANEL : zeros, 0,                  \
                     bias ? PANEL : 0, y + p * PANEL, N);                                                              \
        long left = p, tiles = (rows + ROWS - 1) / ROWS, depth = rows <= ROWS ? K : DEPTH;                             \
        for (long k = 0; k < K; k += depth) {                                                                          \
            long now = K - k < depth ? K - k : depth;                                                                  \
            for (p = left; p < last; p++) {                                                                            \
                const float *start = bias ? bias + p * PANEL : zeros;                                                  \
                for (long t = 0; t < tiles; t++) {                                                                     \
                    long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;                                 \
                    float *out = y + row * N + p * PANEL;                                                              \
                    NAME##_rows((int)count, now, x + row * K + k, K, w + (p * K + k) * PANEL, k ? out : start,         \
                                k ? N : 0, out, N);                                                                    \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    /* The last panel where N does not fill it: through a buffer, so that nothing beyond y is written. */              \
    static void NAME##_tail(long rows, long K, const float *x, const W *w, long N, const float *bias, float *y)        \
    {                                                                                                                  \
        long p = N / PANEL, width = N - p * PANEL;                                                                     \
        float start[PANEL] = {0}, out[ROWS * PANEL];                                                                   \
        if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));                                              \
        for (long row = 0; row < rows; row += ROWS) {                                                                  \
            long count = rows - row < ROWS ? rows - row : ROWS;                                                        \
            NAME##_rows((int)count, K, x + row * K, K, w + p * K * PANEL, start, 0, out, PANEL);                       \
            for (long r = 0; r < count; r++)                                                                           \
                memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));                         \
        }                                                                                                              \
    }                                                                                                                  \
    void NAME##_team(const float *x, const W *w, const float *bias, float *y, long M, long N, long K)                  \
    {                                                                                                                  \
        long panels = (N + PANEL - 1) / PANEL, full = N / PANEL;                                                       \
        long bands = (M + BAND - 1) / BAND, threads = omp_get_num_threads();                                           \
        long band = ((M + bands - 1) / bands + ROWS - 1) / ROWS * ROWS;                                                \
        bands = (M + band - 1) / band;                                                                                 \
        long share = PANELS_A_TASK;                                                                                    \
        if (bands * ((panels + share - 1) / share) < 4 * threads) share = (panels * bands + 4 * threads - 1) / (4 * threads); \
        if (M <= 2 && share % 4) share += 4 - share % 4;                                                               \
        long shares = (panels + share - 1) / share;                                                                    \
        _Pragma("omp for schedule(dynamic, 1)") for (long task = 0; task < bands * shares; task++) {                   \
            long row = task / shares * band, rows = M - row < band ? M - row : band;                                   \
            long first = task % shares * share, last = first + share < panels ? first + share : panels;                \
            NAME##_band(rows, K, x + row * K, w, first, last < full ? last : full, bias, y + row * N, N);              \
            if (last > full) NAME##_tail(rows, K, x + row * K, w, N, bias, y + row * N);                               \
        }                                                                                                              \
    }                                                                                                                  \
    void NAME(const float *x, const W *w, const float *bias, float *y, long M, long N, long K)                         \
    {                                                                                                                  \
        _Pragma("omp parallel") NAME##_team(x, w, bias, y, M, N, K);                                                   \
    }
#define CASE(TILE, R) case R: TILE(R, 1, depth, x, ldx, w, 0, from, ldf, 0, y, ldy); break;
#if ROWS == 12
#define MORE_CASES(TILE) CASE(TILE, 7) CASE(TILE, 8) CASE(TILE, 9) CASE(TILE, 10) CASE(TILE, 11) CASE(TILE, 12)
#else
#define MORE_CASES(TILE)
#endif

DEFINE_TILE(tile_bf16, uint16_t, load_pairs)
DEFINE_TILE(tile_f32, float, load_floats)
DEFINE_LINEAR(linear_bf16, uint16_t, tile_bf16)
DEFINE_LINEAR(linear_f32, float, tile_f32)

/* Where output n of a panel lies: bfloat16 pairs output i with output i + LANES. */
#define SPOT_bf16(i) ((i) < LANES ? 2 * (i) : 2 * ((i)-LANES) + 1)
#define SPOT_f32(i) (i)

#define DEFINE_PACK(KIND, W)                                                                                           \
    void pack_##KIND(const W *w, W *packed, long N, long K)                                                            \
    {                                                                                                                  \
        long panels = (N + PANEL - 1) / PANEL;                                                                         \
        _Pragma("omp parallel for") for (long p = 0; p < panels; p++)                                                  \
            for (long k0 = 0; k0 < K; k0 += 64)                                                                        \
                for (long i = 0; i < PANEL; i++)                                                                       \
                    for (long k = k0; k < K && k < k0 + 64; k++)                                                       \
                        packed[(p * K + k) * PANEL + SPOT_##KIND(i)] =                                                 \
                            p * PANEL + i < N ? w[(p * PANEL + i) * K + k] : 0;                                        \
    }                                                                                                                  \
    void unpack_##KIND(const W *packed, W *w, long N, long K)                                                          \
    {                                                                                                                  \
        _Pragma("omp parallel for") for (long n = 0; n < N; n++)                                                       \
            for (long k = 0; k < K; k++)                                                                               \
                w[n * K + k] = packed[(n / PANEL * K + k) * PANEL + SPOT_##KIND(n % PANEL)];                           \
    }                                                                                                                  \
    int embed_##KIND(const int64_t *ids, const W *packed, float *y, long T, long N, long K)                            \
    {                                                                                                                  \
        if (!all_within(ids, T, N)) return OUTSIDE;                                                                    \
        _Pragma("omp parallel for if (T > 16)") for (long t = 0; t < T; t++) {                                         \
            const W *row = packed + ids[t] / PANEL * K * PANEL + SPOT_##KIND(ids[t] % PANEL);                          \
            for (long k = 0; k < K; k++) y[t * K + k] = VALUE_##KIND(row[k * PANEL]);                                  \
        }                                                                                                              \
        return DONE;                                                                                                   \
    }
#define VALUE_bf16(x) from_bf16(x)
#define VALUE_f32(x) (x)
DEFINE_PACK(bf16, uint16_t)
DEFINE_PACK(f32, float)

long panel_width(void) { return PANEL; }
long threads_in_use(void)
{
    long n = 0;
#pragma omp parallel reduction(+ : n)
    n += 1;
    return n;
}
