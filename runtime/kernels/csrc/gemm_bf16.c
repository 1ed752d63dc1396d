/* y = x w^T + bias over bfloat16 weights in panels of PANEL outputs, [panels][K / 2] pairs of columns as dots.h has
 * them. Where K is odd the last column is [PANEL] of its own. x is rounded to bfloat16.
 *
 * Invariant: output (m, n) is bias[n] or 0, plus for each block of columns in ascending order its sum, as dots.h says,
 * or for each pair of columns its products, as pairs.h says where pairs work; whatever M, tiles or vectors, the tile a
 * row falls into and the number of threads. So a row of a batch is to the bit what it is alone. */
#include "bounds.h"
#include "room.h"
#include "tiles.h"
#include <omp.h>
#include <stdlib.h>

/* Columns of x that stay in the first cache beside a panel, and register tiles of rows that stay in the second. */
#define DEPTH (12 * BLOCK)
#define TILES_A_BAND 12
/* The same where tiles multiply: blocks of a panel, and rows; and bytes ahead that are asked for. */
#define TILE_BLOCKS 20
#define TILE_BAND 256
#define TILES_AHEAD 4096
#define PANELS_A_TASK 16

static const float zeros[PANEL];

/* `rows` x PANEL outputs in registers: y = from + x w^T. */
INLINE void outputs(const int way, const int rows, long depth, const void *x, long ldx, const uint16_t *w,
                    const float *from, long ldf, float *y, long ldy)
{
    vf all[2 * ROWS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) all[r * 2 + h] = load(from + r * ldf + h * LANES);
    add_products(way, PAIRS, rows, depth, x, ldx, (const char *)w, all);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) store(y + r * ldy + h * LANES, all[r * 2 + h]);
}

/* Functions of their own: beside loops over them, sums would leave their registers. */
typedef void some(int, long, const void *, long, const uint16_t *, const float *, long, float *, long);
#define CASE(WAY, R) case R: outputs(WAY, R, depth, x, ldx, w, from, ldf, y, ldy); break;
#define DEFINE_ROWS(NAME, WAY, MORE)                                                                                   \
    static __attribute__((noinline)) void NAME(int rows, long depth, const void *x, long ldx, const uint16_t *w,       \
                                               const float *from, long ldf, float *y, long ldy)                        \
    {                                                                                                                  \
        switch (rows) { CASE(WAY, 1) CASE(WAY, 2) CASE(WAY, 3) CASE(WAY, 4) CASE(WAY, 5) CASE(WAY, 6) MORE }           \
    }
DEFINE_ROWS(rows_in_vectors, IN_VECTORS, )
#if HAVE_PAIRS
DEFINE_ROWS(rows_in_pairs, IN_PAIRS, CASE(IN_PAIRS, 7) CASE(IN_PAIRS, 8) CASE(IN_PAIRS, 9) CASE(IN_PAIRS, 10)
            CASE(IN_PAIRS, 11) CASE(IN_PAIRS, 12))
static some *const SOME[] = {rows_in_vectors, rows_in_pairs};
#else
static some *const SOME[] = {rows_in_vectors};
#endif

/* Rows of a band against panels [first, last), all of them full ones. `x`: of its first row; tiles have `high` rows. */
static void full_panels(int way, long rows, long high, long K, const void *x, const uint16_t *w, long first, long last,
                        const float *bias, float *y, long N)
{
    const long panel = K * PANEL, ldx = way == IN_PAIRS ? high : K, depth = rows <= high ? K : DEPTH;
    for (long k = 0; k < K; k += depth) {
        long now = K - k < depth ? K - k : depth;
        for (long p = first; p < last; p++) {
            const float *start = bias ? bias + p * PANEL : zeros;
            for (long row = 0; row < rows; row += high) {
                float *out = y + row * N + p * PANEL;
                SOME[way]((int)(rows - row < high ? rows - row : high), now, row_at(way, x, row, k, K, K, high), ldx,
                          w + p * panel + k * PANEL, k ? out : start, k ? N : 0, out, N);
            }
        }
    }
}

/* The last panel where N does not fill it: through a buffer, so that nothing beyond y is written. */
static void last_panel(int way, long rows, long high, long K, const void *x, const uint16_t *w, long N,
                       const float *bias, float *y)
{
    long p = N / PANEL, width = N - p * PANEL;
    float start[PANEL] = {0}, out[ROWS * PANEL];
    if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));
    for (long row = 0; row < rows; row += high) {
        long count = rows - row < high ? rows - row : high;
        SOME[way]((int)count, K, row_at(way, x, row, 0, K, K, high), way == IN_PAIRS ? high : K, w + p * K * PANEL,
                  start, 0, out, PANEL);
        for (long r = 0; r < count; r++)
            memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));
    }
}

static void band_of_rows(int way, long rows, long high, long K, const void *x, const uint16_t *w, long first, long last,
                         const float *bias, float *y, long N)
{
    const long full = N / PANEL;
    full_panels(way, rows, high, K, x, w, first, last < full ? last : full, bias, y, N);
    if (last > full) last_panel(way, rows, high, K, x, w, N, bias, y);
}

/* Rows that do not fill their tiles, or outputs that do not fill their panel: through a buffer. */
static void part_of_tiles(int count, long rows, long width, const uint16_t *x, long tile, const uint16_t *w,
                          long blocks, const float *from, long ldf, float *y, long ldy)
{
    float part[2 * TILE * PANEL] = {0};
    for (long r = 0; r < rows; r++) memcpy(part + r * PANEL, from + r * ldf, width * sizeof(float));
    multiply_tiles(count, x, tile, w, blocks, TILES_AHEAD, part, PANEL, part, PANEL);
    for (long r = 0; r < rows; r++) memcpy(y + r * ldy, part + r * PANEL, width * sizeof(float));
}

/* The last block of a panel, filled with zeros. */
static void last_block(const uint16_t *from, long columns, uint16_t *block)
{
    long pairs = columns / 2 * 2 * PANEL;
    memset(block, 0, BLOCK * PANEL * sizeof *block);
    memcpy(block, from, pairs * sizeof *block);
    if (columns % 2)
        for (long i = 0; i < PANEL; i++) block[pairs + 2 * i] = from[pairs + i];
}

/* Rows of a band, in tiles as tiles.h fills them, against panels [first, last). */
static void band_in_tiles(long rows, long K, const uint16_t *x, const uint16_t *w, long first, long last,
                          const float *bias, float *y, long N)
{
    uint16_t rest[BLOCK * PANEL];
    long blocks = BLOCKS(K), tile = blocks * TILE * BLOCK, parts = (blocks + TILE_BLOCKS - 1) / TILE_BLOCKS;
    for (long part = 0; part < parts; part++) {
        long begin = blocks * part / parts, end = blocks * (part + 1) / parts, whole = end * BLOCK <= K ? end : end - 1;
        for (long p = first; p < last; p++) {
            const uint16_t *weights = w + (p * K + begin * BLOCK) * PANEL;
            const float *start = bias ? bias + p * PANEL : zeros;
            long width = N - p * PANEL < PANEL ? N - p * PANEL : PANEL;
            if (whole < end) last_block(w + (p * K + whole * BLOCK) * PANEL, K % BLOCK, rest);
            for (long row = 0; row < rows; row += 2 * TILE) {
                long now = rows - row < 2 * TILE ? rows - row : 2 * TILE, ldf = part ? N : 0;
                int count = now > TILE ? 2 : 1;
                const uint16_t *mine = x + row / TILE * tile + begin * TILE * BLOCK;
                float *out = y + row * N + p * PANEL;
                const float *from = part ? out : start;
                if (now == count * TILE && width == PANEL) {
                    multiply_tiles(count, mine, tile, weights, whole - begin, TILES_AHEAD, from, ldf, out, N);
                    if (whole < end)
                        multiply_tiles(count, mine + (whole - begin) * TILE * BLOCK, tile, rest, 1, 0, out, N, out, N);
                } else {
                    part_of_tiles(count, now, width, mine, tile, weights, whole - begin, from, ldf, out, N);
                    if (whole < end)
                        part_of_tiles(count, now, width, mine + (whole - begin) * TILE * BLOCK, tile, rest, 1, out, N,
                                      out, N);
                }
            }
        }
    }
}

void linear_bf16_team(const float *x, const uint16_t *w, const float *bias, float *y, long M, long N, long K, room at)
{
    const int way = way_of(16, M);
    const long panels = (N + PANEL - 1) / PANEL, threads = omp_get_num_threads(), most = rows_at_once(way, M, K, K);
    const unsigned state = without_subnormals();
    if (way == IN_TILES) take_tiles();
    for (long done = 0; done < M; done += most, x += most * K, y += most * N) {
        long all = M - done < most ? M - done : most;
        const void *made = round_rows(x, all, K, K, way, at);
        long high = high_of(way, all), longest = way == IN_TILES ? TILE_BAND : TILES_A_BAND * high;
        long bands = (all + longest - 1) / longest, share = PANELS_A_TASK;
        long band = ((all + bands - 1) / bands + high - 1) / high * high;
        bands = (all + band - 1) / band;
        if (bands * ((panels + share - 1) / share) < 4 * threads)
            share = (panels * bands + 4 * threads - 1) / (4 * threads);
        long shares = (panels + share - 1) / share;
        next_turn(at.parts);
        for (long task; (task = next_task(at.parts, bands * shares)) >= 0;) {
            long row = task / shares * band, rows = all - row < band ? all - row : band;
            long first = task % shares * share, last = first + share < panels ? first + share : panels;
            if (way == IN_TILES)
                band_in_tiles(rows, K, (const uint16_t *)made + row * BLOCKS(K) * BLOCK, w, first, last, bias,
                              y + row * N, N);
            else
                band_of_rows(way, rows, high, K, row_at(way, made, row, 0, K, K, high), w, first, last, bias,
                             y + row * N, N);
        }
        _Pragma("omp barrier")
    }
    if (way == IN_TILES) drop_tiles();
    as_before(state);
}

/* Returns DONE or NO_MEMORY. */
int linear_bf16(const float *x, const uint16_t *w, const float *bias, float *y, long M, long N, long K)
{
    needs needed = needs_of(16, M, K, K);
    char *memory = make_rooms(needed);
    if (!memory) return NO_MEMORY;
    _Pragma("omp parallel") linear_bf16_team(x, w, bias, y, M, N, K, room_in(memory, needed));
    free(memory);
    return DONE;
}

/* Where output i of a panel has column k. */
INLINE long spot(long i, long k, long K)
{
    if (k == K / 2 * 2) return k * PANEL + i;
    return k / 2 * 2 * PANEL + i / LANES * PANEL + i % LANES * 2 + k % 2;
}

void pack_bf16(const uint16_t *w, uint16_t *packed, long N, long K)
{
    long panels = (N + PANEL - 1) / PANEL;
    _Pragma("omp parallel for") for (long p = 0; p < panels; p++)
        for (long k0 = 0; k0 < K; k0 += 64)
            for (long i = 0; i < PANEL; i++)
                for (long k = k0; k < K && k < k0 + 64; k++)
                    packed[p * K * PANEL + spot(i, k, K)] = p * PANEL + i < N ? w[(p * PANEL + i) * K + k] : 0;
}

void unpack_bf16(const uint16_t *packed, uint16_t *w, long N, long K)
{
    _Pragma("omp parallel for") for (long n = 0; n < N; n++)
        for (long k = 0; k < K; k++) w[n * K + k] = packed[n / PANEL * K * PANEL + spot(n % PANEL, k, K)];
}

int embed_bf16(const int64_t *ids, const uint16_t *packed, float *y, long T, long N, long K)
{
    if (!all_within(ids, T, N)) return OUTSIDE;
    _Pragma("omp parallel for if (T > 16)") for (long t = 0; t < T; t++) {
        const uint16_t *panel = packed + ids[t] / PANEL * K * PANEL;
        for (long k = 0; k < K; k++) y[t * K + k] = from_bf16(panel[spot(ids[t] % PANEL, k, K)]);
    }
    return DONE;
}
