/* y = x w^T + bias over weights of 4 or 8 bits that lie as quant.h says.
 *
 * Invariant: output (m, n) is bias[n] or 0, plus for each chunk of a group in ascending order offset * sum of x and
 * scale * sum, both sums over ascending k (dots.h, or pairs.h where pairs work), whatever M, the tile a row falls into
 * and the number of threads. So a row of a batch is to the bit what it is alone. The offset is what a code of 0 stands
 * for as it lies: -zero * scale, or the minimum and 8 scales. */
#include "bounds.h"
#include "ends.h"
#include "room.h"
#include "widen.h"
#include <stdlib.h>

/* Register tiles of a band of rows: so many stay in the second cache while panels go by. */
#define TILES_A_BAND 24
#define TILE_BAND 256
/* Columns of small groups that lie widened at once to meet many rows, and the smallest of such groups. */
#define SMALL_GROUPS 64
#define SMALLEST 8

static const float nothing[PANEL];

/* What a chunk adds to an output: y = from + offset * sum of x + scale * (codes times x). */
INLINE vf scaled(vf dots, vf scale, float sum, vf offset, vf from)
{
    return madd(scale, dots, madd(fill(sum), offset, from));
}

/* `rows` x PANEL outputs in registers, over the `depth` columns of one chunk. `ends`: as load_ends leaves them. */
INLINE void outputs(const int way, const int source, const int rows, long depth, const void *x, long ldx,
                    const float *sums, long lds, const char *w, const float *ends, const float *from, long ldf,
                    float *y, long ldy)
{
    vf all[2 * ROWS];
    UNROLL for (int r = 0; r < rows; r++) all[2 * r] = all[2 * r + 1] = (vf){0};
    add_products(way, source, rows, depth, x, ldx, w, all);
    UNROLL for (int h = 0; h < 2; h++) {
        vf scale = load(ends + h * LANES), offset = load(ends + PANEL + h * LANES);
        UNROLL for (int r = 0; r < rows; r++)
            store(y + r * ldy + h * LANES,
                  scaled(all[2 * r + h], scale, sums[r * lds], offset, load(from + r * ldf + h * LANES)));
    }
}

#define CASE(R) case R: outputs(way, source, R, depth, x, ldx, sums, lds, w, ends, from, ldf, y, ldy); break;
INLINE void some_rows(const int way, const int source, int rows, long depth, const void *x, long ldx, const float *sums,
                      long lds, const char *w, const float *ends, const float *from, long ldf, float *y, long ldy)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
    }
#if HAVE_PAIRS
    if (way == IN_PAIRS)
        switch (rows) { CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) }
#endif
}
/* Functions of their own: with several of them in one, pointers fight for registers. */
typedef void some(int, long, const void *, long, const float *, long, const char *, const float *, const float *, long,
                  float *, long);
#define DEFINE_ROWS(NAME, WAY, SOURCE)                                                                                 \
    static __attribute__((noinline)) void NAME(int rows, long depth, const void *x, long ldx, const float *sums,       \
                                               long lds, const char *w, const float *ends, const float *from,          \
                                               long ldf, float *y, long ldy)                                           \
    {                                                                                                                  \
        some_rows(WAY, SOURCE, rows, depth, x, ldx, sums, lds, w, ends, from, ldf, y, ldy);                            \
    }
DEFINE_ROWS(fours_in_vectors, IN_VECTORS, FOURS)
DEFINE_ROWS(bytes_in_vectors, IN_VECTORS, BYTES)
DEFINE_ROWS(pairs_in_vectors, IN_VECTORS, PAIRS)
#if HAVE_PAIRS
DEFINE_ROWS(fours_in_pairs, IN_PAIRS, FOURS)
DEFINE_ROWS(bytes_in_pairs, IN_PAIRS, BYTES)
DEFINE_ROWS(pairs_in_pairs, IN_PAIRS, PAIRS)
static some *const SOME[][3] = {{pairs_in_vectors, bytes_in_vectors, fours_in_vectors},
                                {pairs_in_pairs, bytes_in_pairs, fours_in_pairs}};
#else
static some *const SOME[][3] = {{pairs_in_vectors, bytes_in_vectors, fours_in_vectors}};
#endif

/* Rows of a band as round_rows leaves them, in tiles of `high` rows, and the sums that belong to them. */
typedef struct {
    const void *x;
    const float *sums;
    long rows, high;
    int way;
} band;

INLINE band from_row(const int bits, band b, shape s, long row)
{
    if (b.way == IN_TILES) b.x = (const uint16_t *)b.x + row * filled(s.K, s.group);
    else b.x = row_at(b.way, b.x, row, 0, s.K, s.group, b.high);
    if (has_offset(bits, s.scale)) b.sums += row * chunks_of(s.K, s.group);
    b.rows -= row;
    return b;
}

/* One chunk of a panel, widened, against the tiles of a band. `block`: the first of the chunk. */
static void chunk_in_tiles(band b, shape s, long block, long depth, const uint16_t *wide, long lds, const float *ends,
                           const float *from, long ldf, float *y, long ldy)
{
    static const float start[PANEL];
    float dots[2 * TILE * PANEL];
    const long tile = filled(s.K, s.group) * TILE;
    for (long row = 0; row < b.rows; row += 2 * TILE) {
        long rows = b.rows - row < 2 * TILE ? b.rows - row : 2 * TILE;
        multiply_tiles(rows > TILE ? 2 : 1, (const uint16_t *)b.x + row / TILE * tile + block * TILE * BLOCK, tile,
                       wide, BLOCKS(depth), 0, start, 0, dots, PANEL);
        for (int h = 0; h < 2; h++) {
            vf scale = load(ends + h * LANES), offset = load(ends + PANEL + h * LANES);
            for (long r = 0; r < rows; r++)
                store(y + (row + r) * ldy + h * LANES,
                      scaled(load(dots + r * PANEL + h * LANES), scale, b.sums[(row + r) * lds], offset,
                             load(from + (row + r) * ldf + h * LANES)));
        }
    }
}

/* One panel against the rows of a band. Codes that more than one tile meets are widened once. */
INLINE void panel(const int bits, band b, shape s, const char *w, const float *from, float *y, long ldy)
{
    uint16_t wide[CHUNK * PANEL];
    float ends[2 * PANEL];
    const char *super = w;
    long lds = has_offset(bits, s.scale) ? chunks_of(s.K, s.group) : 0, ldf = 0, ldx = b.way == IN_PAIRS ? b.high : s.K;
    const int widened = b.way == IN_TILES || b.rows > b.high;
    for (long k = 0; k < s.K; k += s.group, w += group_bytes(bits, s)) {
        w = group_at(s, k, w, &super);
        load_ends(bits, s.scale, w + code_bytes(bits, s.group), super, ends);
        for (long done = 0; done < s.group; done += CHUNK, b.sums += lds != 0) {
            long depth = s.group - done < CHUNK ? s.group - done : CHUNK;
            const char *codes = w + code_bytes(bits, done);
            if (widened) widen(bits, depth, codes, wide);
            /* An odd last column is taken as dots.h has it, without the zeros. */
            if (widened && b.way != IN_TILES && depth % 2)
                for (long i = 0, at = (depth - 1) * PANEL; i < PANEL; i++) wide[at + i] = wide[at + 2 * i];
            if (b.way == IN_TILES) {
                long there = (depth + 1) / 2 * 2;
                memset(wide + there * PANEL, 0, (BLOCKS(depth) * BLOCK - there) * PANEL * sizeof *wide);
                chunk_in_tiles(b, s, k / s.group * BLOCKS(s.group) + done / BLOCK, depth, wide, lds, ends, from, ldf, y,
                               ldy);
            } else
                for (long row = 0; row < b.rows; row += b.high)
                    SOME[b.way][widened ? 0 : bits == 4 ? 2 : 1](
                        (int)(b.rows - row < b.high ? b.rows - row : b.high), depth,
                        row_at(b.way, b.x, row, k + done, s.K, s.group, b.high), ldx, b.sums + row * lds, lds,
                        widened ? (const char *)wide : codes, ends, from + row * ldf, ldf, y + row * ldy, ldy);
            from = y, ldf = ldy;
        }
    }
}

/* One panel of small groups against several tiles of rows, in pairs or in vectors. Some groups are widened together,
 * and the sums of a tile stay near until it has met all of them: rows of y may be too far apart for the first cache. */
INLINE void panel_of_groups(const int bits, band b, shape s, const char *w, const float *from, float *y, long ldy)
{
    uint16_t wide[SMALL_GROUPS * PANEL];
    float ends[SMALL_GROUPS / SMALLEST][2 * PANEL], near[ROWS * PANEL];
    const char *super = w;
    const long lds = has_offset(bits, s.scale) ? chunks_of(s.K, s.group) : 0, ldx = b.way == IN_PAIRS ? b.high : s.K;
    const long most = SMALL_GROUPS / s.group;
    for (long k = 0, count, ldf = 0; k < s.K; k += count * s.group, from = y, ldf = ldy) {
        count = (s.K - k) / s.group < most ? (s.K - k) / s.group : most;
        for (long i = 0; i < count; i++, w += group_bytes(bits, s)) {
            w = group_at(s, k + i * s.group, w, &super);
            widen(bits, s.group, w, wide + i * s.group * PANEL);
            load_ends(bits, s.scale, w + code_bytes(bits, s.group), super, ends[i]);
        }
        for (long row = 0; row < b.rows; row += b.high)
            for (long i = 0; i < count; i++) {
                const int first = i == 0, last = i == count - 1;
                SOME[b.way][0]((int)(b.rows - row < b.high ? b.rows - row : b.high), s.group,
                               row_at(b.way, b.x, row, k + i * s.group, s.K, s.group, b.high), ldx,
                               b.sums + (lds ? row * lds + k / s.group + i : 0), lds,
                               (const char *)(wide + i * s.group * PANEL), ends[i], first ? from + row * ldf : near,
                               first ? ldf : PANEL, last ? y + row * ldy : near, last ? ldy : PANEL);
            }
    }
}

/* Up to FEW rows against panels [first, last): without a call for each chunk. */
INLINE void few_rows(const int way, const int bits, const int rows, shape s, band b, const char *w, long first,
                     long last, const float *bias, float *y, long N)
{
    const long lds = has_offset(bits, s.scale) ? chunks_of(s.K, s.group) : 0, ldx = way == IN_PAIRS ? b.high : s.K;
    float ends[2 * PANEL];
    for (long p = first; p < last; p++) {
        const char *at = w + p * s.panel, *super = at;
        const float *from = bias ? bias + p * PANEL : nothing, *sums = b.sums;
        float *out = y + p * PANEL;
        for (long k = 0, ldf = 0; k < s.K; k += s.group, at += group_bytes(bits, s)) {
            at = group_at(s, k, at, &super);
            load_ends(bits, s.scale, at + code_bytes(bits, s.group), super, ends);
            for (long done = 0; done < s.group; done += CHUNK, sums += lds != 0, from = out, ldf = N)
                outputs(way, bits, rows, s.group - done < CHUNK ? s.group - done : CHUNK,
                        row_at(way, b.x, 0, k + done, s.K, s.group, b.high), ldx, sums, lds,
                        at + code_bytes(bits, done), ends, from, ldf, out, N);
        }
    }
}

typedef void few(band, shape, const char *, long, long, const float *, float *, long);
#define DEFINE_FEW(NAME, WAY, BITS)                                                                                    \
    static __attribute__((noinline)) void NAME(band b, shape s, const char *w, long first, long last,                  \
                                               const float *bias, float *y, long N)                                    \
    {                                                                                                                  \
        if (b.rows == 1)                                                                                               \
            few_rows(WAY, BITS, 1, s, b, w, first, last, bias, y, N);                                                  \
        else                                                                                                           \
            few_rows(WAY, BITS, 2, s, b, w, first, last, bias, y, N);                                                  \
    }
DEFINE_FEW(few_fours_in_vectors, IN_VECTORS, 4)
DEFINE_FEW(few_bytes_in_vectors, IN_VECTORS, 8)
#if HAVE_PAIRS
DEFINE_FEW(few_fours_in_pairs, IN_PAIRS, 4)
DEFINE_FEW(few_bytes_in_pairs, IN_PAIRS, 8)
static few *const FEW_OF[][2] = {{few_bytes_in_vectors, few_fours_in_vectors},
                                 {few_bytes_in_pairs, few_fours_in_pairs}};
#else
static few *const FEW_OF[][2] = {{few_bytes_in_vectors, few_fours_in_vectors}};
#endif

/* Whether panel_of_groups pays: of two tiles only where a chunk of a group is half a block. */
INLINE int has_small_groups(band b, shape s)
{
    if (b.way == IN_TILES || b.rows <= b.high || s.group > SMALL_GROUPS / 2 || s.group % SMALLEST) return 0;
    return b.rows > 2 * b.high || s.group < BLOCK;
}

#define DEFINE(BITS)                                                                                                   \
    static __attribute__((noinline)) void panel_##BITS(band b, shape s, const char *w, const float *from, float *y,    \
                                                       long ldy)                                                       \
    {                                                                                                                  \
        if (has_small_groups(b, s))                                                                                    \
            panel_of_groups(BITS, b, s, w, from, y, ldy);                                                              \
        else                                                                                                           \
            panel(BITS, b, s, w, from, y, ldy);                                                                        \
    }
DEFINE(4)
DEFINE(8)

/* Rows of a band against panels [first, last); the last panel through a buffer where N does not fill it, so that
 * nothing beyond y is written. */
INLINE void band_of_rows(const int bits, band b, shape s, const char *w, long first, long last, const float *bias,
                         float *y, long N)
{
    long p = first, full = last * PANEL <= N ? last : last - 1;
    if (b.way != IN_TILES && b.rows <= FEW) FEW_OF[b.way][bits == 4](b, s, w, first, full, bias, y, N), p = full;
    for (; p < full; p++)
        (bits == 4 ? panel_4 : panel_8)(b, s, w + p * s.panel, bias ? bias + p * PANEL : nothing, y + p * PANEL, N);
    if (full == last) return;
    long width = N - p * PANEL;
    float start[PANEL] = {0}, out[2 * TILE * PANEL];
    if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));
    for (long row = 0; row < b.rows; row += b.high) {
        band part = from_row(bits, b, s, row);
        if (part.rows > b.high) part.rows = b.high;
        (bits == 4 ? panel_4 : panel_8)(part, s, w + p * s.panel, start, out, PANEL);
        for (long r = 0; r < part.rows; r++)
            memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));
    }
}

/* The sum of x, rounded, over each chunk, [rows][chunks]. */
static void sum_chunks(shape s, long rows, const float *x, float *sums)
{
    for (long r = 0; r < rows; r++, x += s.K)
        for (long k = 0; k < s.K; k += s.group)
            for (long done = 0; done < s.group; done += CHUNK) {
                long depth = s.group - done < CHUNK ? s.group - done : CHUNK, i = 0;
                const float *part = x + k + done;
                vf all = {0};
                float sum = 0;
                for (; i + LANES <= depth; i += LANES) all += rounded(load(part + i));
                for (int lane = 0; lane < LANES; lane++) sum += all[lane];
                for (; i < depth; i++) sum += from_bf16(to_bf16(part[i]));
                *sums++ = sum;
            }
}

/* Rounds `rows` rows, and sums them where weights have offsets. */
static band round_band(int bits, shape s, const float *x, long rows, int way, room at)
{
    const void *made = round_rows(x, rows, s.K, s.group, way, at);
    band all = {made, nothing, rows, high_of(way, rows), way};
    if (!has_offset(bits, s.scale)) return all;
    long lds = chunks_of(s.K, s.group), before = made == at.own ? rows : whole_rows(way, rows);
    float *sums = (float *)((char *)made + before * rounded_bytes(way, s.K, s.group));
    all.sums = sums;
    if (made == at.own) {
        sum_chunks(s, rows, x, sums);
        return all;
    }
    _Pragma("omp for") for (long r = 0; r < rows; r++) sum_chunks(s, 1, x + r * s.K, sums + r * lds);
    return all;
}

void linear_quant_team(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                       long K, long group, room at)
{
    shape s = {K, group, 0, scale};
    s.panel = panel_bytes(bits, s);
    const int way = way_of(bits, M);
    const long panels = (N + PANEL - 1) / PANEL, threads = omp_get_num_threads(), most = rows_at_once(way, M, K, group);
    const unsigned state = without_subnormals();
    if (way == IN_TILES) take_tiles();
    for (long done = 0; done < M; done += most, x += most * K, y += most * N) {
        long rows = M - done < most ? M - done : most;
        const band all = round_band(bits, s, x, rows, way, at);
        const long longest = way == IN_TILES ? TILE_BAND : TILES_A_BAND * all.high;
        const tasks t = tasks_of(rows, longest, all.high, panels, threads);
        next_turn(at.parts);
        for (long task; (task = next_task(at.parts, t.bands * t.shares)) >= 0;) {
            long row = task / t.shares * t.height, share = task % t.shares;
            long first = panels * share / t.shares, last = panels * (share + 1) / t.shares;
            band mine = from_row(bits, all, s, row);
            if (mine.rows > t.height) mine.rows = t.height;
            if (bits == 4) band_of_rows(4, mine, s, w, first, last, bias, y + row * N, N);
            else band_of_rows(8, mine, s, w, first, last, bias, y + row * N, N);
        }
        _Pragma("omp barrier")
    }
    if (way == IN_TILES) drop_tiles();
    as_before(state);
}

/* Returns DONE or NO_MEMORY. */
int linear_quant(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                 long K, long group)
{
    needs needed = needs_of(bits, M, K, group);
    char *memory = make_rooms(needed);
    if (!memory) return NO_MEMORY;
    _Pragma("omp parallel")
        linear_quant_team(bits, scale, x, w, bias, y, M, N, K, group, room_in(memory, needed));
    free(memory);
    return DONE;
}
