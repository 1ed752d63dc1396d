/* y = x w^T + bias over float32 weights packed in panels of PANEL outputs: [panels][K][PANEL].
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
INLINE void tile(const int rows, const int panels, long depth, const float *x, long ldx, const float *w, long stride,
                 const float *from, long ldf, long step, float *y, long ldy)
{
    for (long done = 0; done < depth; done += CHUNK) {
        long now = depth - done < CHUNK ? depth - done : CHUNK;
        vf sum[panels][rows][2];
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++) sum[p][r][0] = sum[p][r][1] = (vf){0};
        for (long k = 0; k < now; k++)
            UNROLL for (int p = 0; p < panels; p++) {
                vf a = load(w + p * stride + k * PANEL), b = load(w + p * stride + k * PANEL + LANES);
                UNROLL for (int r = 0; r < rows; r++) {
                    vf one = fill(x[r * ldx + k]);
                    sum[p][r][0] = madd(one, a, sum[p][r][0]);
                    sum[p][r][1] = madd(one, b, sum[p][r][1]);
                }
            }
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < 2; v++)
                    store(y + r * ldy + p * PANEL + v * LANES,
                          load(from + r * ldf + p * step + v * LANES) + sum[p][r][v]);
        from = y, ldf = ldy, step = PANEL, x += now, w += now * PANEL;
    }
}

#define CASE(R) case R: tile(R, 1, depth, x, ldx, w, 0, from, ldf, 0, y, ldy); break;
#if ROWS == 12
#define MORE_CASES CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#else
#define MORE_CASES
#endif

static void some_rows(int rows, long depth, const float *x, long ldx, const float *w, const float *from, long ldf,
                      float *y, long ldy)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) MORE_CASES
    }
}

/* Rows of a band against panels [first, last), all of them full ones. */
static void band_of_rows(long rows, long K, const float *x, const float *w, long first, long last, const float *bias,
                         float *y, long N)
{
    long p = first;
    if (rows == 1)
        for (; p + 4 <= last; p += 4)
            tile(1, 4, K, x, K, w + p * K * PANEL, K * PANEL, bias ? bias + p * PANEL : zeros, 0,
                 bias ? PANEL : 0, y + p * PANEL, N);
    if (rows == 2)
        for (; p + 2 <= last; p += 2)
            tile(2, 2, K, x, K, w + p * K * PANEL, K * PANEL, bias ? bias + p * PANEL : zeros, 0,
                 bias ? PANEL : 0, y + p * PANEL, N);
    long left = p, tiles = (rows + ROWS - 1) / ROWS, depth = rows <= ROWS ? K : DEPTH;
    for (long k = 0; k < K; k += depth) {
        long now = K - k < depth ? K - k : depth;
        for (p = left; p < last; p++) {
            const float *start = bias ? bias + p * PANEL : zeros;
            for (long t = 0; t < tiles; t++) {
                long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
                float *out = y + row * N + p * PANEL;
                some_rows((int)count, now, x + row * K + k, K, w + (p * K + k) * PANEL, k ? out : start,
                          k ? N : 0, out, N);
            }
        }
    }
}

/* The last panel where N does not fill it: through a buffer, so that nothing beyond y is written. */
static void last_panel(long rows, long K, const float *x, const float *w, long N, const float *bias, float *y)
{
    long p = N / PANEL, width = N - p * PANEL;
    float start[PANEL] = {0}, out[ROWS * PANEL];
    if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));
    for (long row = 0; row < rows; row += ROWS) {
        long count = rows - row < ROWS ? rows - row : ROWS;
        some_rows((int)count, K, x + row * K, K, w + p * K * PANEL, start, 0, out, PANEL);
        for (long r = 0; r < count; r++)
            memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));
    }
}

void linear_f32_team(const float *x, const float *w, const float *bias, float *y, long M, long N, long K, room at)
{
    long panels = (N + PANEL - 1) / PANEL, full = N / PANEL;
    long bands = (M + BAND - 1) / BAND, threads = omp_get_num_threads();
    long band = ((M + bands - 1) / bands + ROWS - 1) / ROWS * ROWS;
    bands = (M + band - 1) / band;
    long share = PANELS_A_TASK;
    if (bands * ((panels + share - 1) / share) < 4 * threads)
        share = (panels * bands + 4 * threads - 1) / (4 * threads);
    if (M <= 2 && share % 4) share += 4 - share % 4;
    long shares = (panels + share - 1) / share;
    next_turn(at.parts);
    for (long task; (task = next_task(at.parts, bands * shares)) >= 0;) {
        long row = task / shares * band, rows = M - row < band ? M - row : band;
        long first = task % shares * share, last = first + share < panels ? first + share : panels;
        band_of_rows(rows, K, x + row * K, w, first, last < full ? last : full, bias, y + row * N, N);
        if (last > full) last_panel(rows, K, x + row * K, w, N, bias, y + row * N);
    }
    _Pragma("omp barrier")
}

/* Returns DONE or NO_MEMORY. */
int linear_f32(const float *x, const float *w, const float *bias, float *y, long M, long N, long K)
{
    const needs none = {0, 0};
    char *memory = make_rooms(none);
    if (!memory) return NO_MEMORY;
    _Pragma("omp parallel") linear_f32_team(x, w, bias, y, M, N, K, room_in(memory, none));
    free(memory);
    return DONE;
}

void pack_f32(const float *w, float *packed, long N, long K)
{
    long panels = (N + PANEL - 1) / PANEL;
    _Pragma("omp parallel for") for (long p = 0; p < panels; p++)
        for (long k0 = 0; k0 < K; k0 += 64)
            for (long i = 0; i < PANEL; i++)
                for (long k = k0; k < K && k < k0 + 64; k++)
                    packed[(p * K + k) * PANEL + i] = p * PANEL + i < N ? w[(p * PANEL + i) * K + k] : 0;
}

void unpack_f32(const float *packed, float *w, long N, long K)
{
    _Pragma("omp parallel for") for (long n = 0; n < N; n++)
        for (long k = 0; k < K; k++) w[n * K + k] = packed[(n / PANEL * K + k) * PANEL + n % PANEL];
}

int embed_f32(const int64_t *ids, const float *packed, float *y, long T, long N, long K)
{
    if (!all_within(ids, T, N)) return OUTSIDE;
    _Pragma("omp parallel for if (T > 16)") for (long t = 0; t < T; t++) {
        const float *row = packed + ids[t] / PANEL * K * PANEL + ids[t] % PANEL;
        for (long k = 0; k < K; k++) y[t * K + k] = row[k * PANEL];
    }
    return DONE;
}

long panel_width(void) { return PANEL; }
long threads_in_use(void)
{
    long n = 0;
#pragma omp parallel reduction(+ : n)
    n += 1;
    return n;
}
