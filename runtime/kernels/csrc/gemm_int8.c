/* y = x w^T + bias over weights of 4 or 8 bits (quant.h) with rows quantized to 8 bits, as int8.h says to the bit. */
#include "bounds.h"
#include "ends.h"
#include "int8.h"
#include "room.h"
#include <stdlib.h>

#define TILES_A_BAND 24

/* Columns and pieces of a panel whose codes lie widened at once, to meet many rows. */
#define WIDE_COLUMNS 512
#define WIDE_PIECES 16

/* Codes as they lie, or a chunk of a panel as words of four columns. */
enum { WORDS = 32 };

static const float nothing[PANEL];

/* Rows as quantize_rows leaves them, in tiles of `high` rows, from one that begins a tile on. */
typedef struct {
    const uint32_t *x;
    long rows, high;
} band;

INLINE band from_row(band b, shape s, long row)
{
    b.x += row * words_of(s.K, s.group), b.rows -= row;
    return b;
}

/* What a piece of columns of one row or tile is, for the loops below: codes and ends of x at the piece. */
typedef struct {
    const uint32_t *codes, *ends;
    long high;
} piece;

INLINE piece piece_at(band b, shape s, long quad, long index)
{
    piece p = {b.x + quad * b.high, b.x + (quads_of(s.K, s.group) + 3 * index) * b.high, b.high};
    return p;
}

INLINE float float_of(uint32_t word)
{
    float x;
    memcpy(&x, &word, 4);
    return x;
}

/* sums[panels][rows][2] of `quads` words of four columns, less what codes are too large by. */
INLINE void multiply_piece(const int how, const int bits, const int source, const int rows, const int panels, long quads,
                           piece x, const char *w, long stride, long ahead, vi *sums)
{
    const int negative = bits == 8 && how == PLAIN, step = source == FOURS ? 2 : 1;
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int r = 0; r < rows; r++)
            sums[(p * rows + r) * 2] = sums[(p * rows + r) * 2 + 1] =
                EXCESS(how, bits) ? all_lanes(x.ends[3 * r]) : (vi){0};
    for (; quads > 0; quads -= step, x.codes += step * x.high, w += 4 * PANEL) {
        vu words[AT_ONCE][2];
        UNROLL for (int p = 0; p < panels; p++) {
            const char *at = w + p * stride;
            if (source != WORDS) ask_for(at + ahead);
            if (source != WORDS && LANES == 16) ask_for(at + ahead + 64);
            UNROLL for (int h = 0; h < 2; h++)
                words[p][h] = source == BYTES ? quad_of_bytes(how, at, h) : load_words(at + h * 4 * LANES);
        }
        UNROLL for (int j = 0; j < step; j++)
            UNROLL for (int p = 0; p < panels; p++) {
                vu first = source == FOURS ? quad_of_fours(words[p][0], j) : words[p][0];
                vu second = source == FOURS ? quad_of_fours(words[p][1], j) : words[p][1];
                UNROLL for (int r = 0; r < rows; r++) {
                    vi *sum = sums + (p * rows + r) * 2;
                    vu four = (vu)all_lanes(x.codes[j * x.high + r]);
                    sum[0] = add_quad(how, negative, sum[0], first, four);
                    sum[1] = add_quad(how, negative, sum[1], second, four);
                }
            }
    }
}

/* y = from + what a piece adds. `ends`: of each panel, as load_ends leaves them. */
INLINE void add_to_outputs(const int offset, const int rows, const int panels, const vi *sums, const piece *x,
                           const float *ends, const float *from, long ldf, long step, float *y, long ldy)
{
    UNROLL for (int p = 0; p < panels; p++, ends += 2 * PANEL)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) {
                vf all = load(from + r * ldf + p * step + h * LANES);
                if (offset) all = fused(fill(float_of(x->ends[3 * r + 2])), load(ends + PANEL + h * LANES), all);
                vf dots = __builtin_convertvector(sums[(p * rows + r) * 2 + h], vf) * float_of(x->ends[3 * r + 1]);
                store(y + r * ldy + p * PANEL + h * LANES, fused(dots, load(ends + h * LANES), all));
            }
}

/* A chunk of a panel: some pieces, widened. */
typedef struct {
    long count, quads[WIDE_PIECES], first_quad, first_piece;
    int offset;
    float ends[WIDE_PIECES][2 * PANEL];
    uint32_t wide[WIDE_COLUMNS / 4 * PANEL] __attribute__((aligned(64)));
} chunk;

INLINE void widen(const int how, const int bits, long quads, const char *w, uint32_t *out)
{
    for (; quads > 0; quads -= bits == 4 ? 2 : 1, w += 4 * PANEL) {
        ask_for(w + AHEAD);
        if (LANES == 16) ask_for(w + AHEAD + 64);
        if (bits == 4) {
            UNROLL for (int h = 0; h < 2; h++) {
                vu words = load_words(w + 4 * LANES * h), first = quad_of_fours(words, 0), second = quad_of_fours(words, 1);
                memcpy(out + h * LANES, &first, sizeof first);
                memcpy(out + PANEL + h * LANES, &second, sizeof second);
            }
            out += 2 * PANEL;
        } else {
            UNROLL for (int h = 0; h < 2; h++) {
                vu quad = quad_of_bytes(how, w, h);
                memcpy(out + h * LANES, &quad, sizeof quad);
            }
            out += PANEL;
        }
    }
}

/* A tile of rows against a chunk of a panel. */
INLINE void meet_chunk(const int how, const int bits, const int rows, const chunk *c, band b, shape s, const float *from,
                       long ldf, float *y, long ldy)
{
    vi sums[2 * INT8_ROWS];
    float all[INT8_ROWS * PANEL] __attribute__((aligned(64)));
    const uint32_t *w = c->wide;
    piece x = piece_at(b, s, c->first_quad, c->first_piece);
    for (int r = 0; r < rows; r++) memcpy(all + r * PANEL, from + r * ldf, PANEL * sizeof(float));
    for (long i = 0; i < c->count; i++) {
        multiply_piece(how, bits, WORDS, rows, 1, c->quads[i], x, (const char *)w, 0, 0, sums);
        if (bits == 4 || c->offset) add_to_outputs(1, rows, 1, sums, &x, c->ends[i], all, PANEL, 0, all, PANEL);
        else add_to_outputs(0, rows, 1, sums, &x, c->ends[i], all, PANEL, 0, all, PANEL);
        w += c->quads[i] * PANEL, x.codes += c->quads[i] * x.high, x.ends += 3 * x.high;
    }
    for (int r = 0; r < rows; r++) memcpy(y + r * ldy, all + r * PANEL, PANEL * sizeof(float));
}

/* All pieces of `panels` panels at once, from codes as they lie. */
INLINE void meet_panels(const int how, const int bits, const int rows, const int panels, shape s, band b, const char *w,
                        const float *from, long ldf, long step, float *y, long ldy)
{
    const char *last = w + s.panel - AHEAD, *super = w;
    const int offset = has_offset(bits, s.scale);
    vi sums[2 * INT8_ROWS];
    float ends[panels * 2 * PANEL] __attribute__((aligned(64)));
    piece x = piece_at(b, s, 0, 0);
    for (long k = 0; k < s.K; k += s.group, w += group_bytes(bits, s)) {
        w = group_at(s, k, w, &super);
        for (int p = 0; p < panels; p++)
            load_ends(bits, s.scale, w + p * s.panel + code_bytes(bits, s.group), super + p * s.panel,
                      ends + p * 2 * PANEL);
        for (long done = 0; done < s.group; done += PIECE) {
            long quads = ((s.group - done < PIECE ? s.group - done : PIECE) + 3) / 4;
            const char *codes = w + code_bytes(bits, done);
            /* After the end of a panel comes that of the panels which are met next. */
            long ahead = AHEAD + (codes < last ? 0 : (panels - 1) * s.panel);
            multiply_piece(how, bits, bits, rows, panels, quads, x, codes, s.panel, ahead, sums);
            if (offset) add_to_outputs(1, rows, panels, sums, &x, ends, from, ldf, step, y, ldy);
            else add_to_outputs(0, rows, panels, sums, &x, ends, from, ldf, step, y, ldy);
            x.codes += quads * x.high, x.ends += 3 * x.high;
            from = y, ldf = ldy, step = PANEL;
        }
    }
}

#define ROW_CASE(R)                                                                                                    \
    case R:                                                                                                            \
        if (R <= INT8_ROWS) {                                                                                          \
            if (c) meet_chunk(how, bits, R <= INT8_ROWS ? R : 1, c, b, s, from, ldf, y, ldy);                          \
            else meet_panels(how, bits, R <= INT8_ROWS ? R : 1, 1, s, b, w, from, ldf, 0, y, ldy);                     \
        }                                                                                                              \
        break;
/* A tile of up to INT8_ROWS rows against a panel as it lies, or against a chunk of it. */
INLINE void meet(const int how, const int bits, const chunk *c, band b, shape s, const char *w, const float *from,
                 long ldf, float *y, long ldy)
{
    switch (b.rows) {
        ROW_CASE(1) ROW_CASE(2) ROW_CASE(3) ROW_CASE(4) ROW_CASE(5) ROW_CASE(6)
        ROW_CASE(7) ROW_CASE(8) ROW_CASE(9) ROW_CASE(10) ROW_CASE(11) ROW_CASE(12)
    }
}

#define PANELS_CASE(P)                                                                                                 \
    case P:                                                                                                            \
        if (P <= most)                                                                                                 \
            meet_panels(how, bits, rows, P, s, b, w + p * s.panel, bias ? bias + p * PANEL : nothing, 0,               \
                        bias ? PANEL : 0, y + p * PANEL, N);                                                           \
        break;
/* Up to FEW rows against panels [first, last). */
INLINE void meet_several(const int how, const int bits, const int rows, band b, shape s, const char *w, long first,
                         long last, const float *bias, float *y, long N)
{
    const long most = rows == 1 ? AT_ONCE : AT_ONCE / 2;
    long count;
    for (long p = first; p < last; p += count) {
        count = last - p < most ? last - p : most;
        switch (count) { PANELS_CASE(1) PANELS_CASE(2) PANELS_CASE(3) PANELS_CASE(4) }
    }
}

/* Functions of their own: with several of them in one, pointers fight for registers. */
typedef void meets(const chunk *, const band *, const shape *, const char *, const float *, long, float *, long);
typedef void widens(long, const char *, uint32_t *);
typedef void several(band, shape, const char *, long, long, const float *, float *, long);
typedef struct {
    meets *tile;
    widens *widen;
    several *one, *two;
} kernels;
#define DEFINE(NAME, HOW, BITS)                                                                                        \
    static __attribute__((noinline)) void tile_##NAME(const chunk *c, const band *b, const shape *s, const char *w,    \
                                                      const float *from, long ldf, float *y, long ldy)                 \
    {                                                                                                                  \
        meet(HOW, BITS, c, *b, *s, w, from, ldf, y, ldy);                                                              \
    }                                                                                                                  \
    static __attribute__((noinline)) void widen_##NAME(long quads, const char *w, uint32_t *out)                       \
    {                                                                                                                  \
        widen(HOW, BITS, quads, w, out);                                                                               \
    }                                                                                                                  \
    static __attribute__((noinline)) void one_##NAME(band b, shape s, const char *w, long first, long last,            \
                                                     const float *bias, float *y, long N)                              \
    {                                                                                                                  \
        meet_several(HOW, BITS, 1, b, s, w, first, last, bias, y, N);                                                  \
    }                                                                                                                  \
    static __attribute__((noinline)) void two_##NAME(band b, shape s, const char *w, long first, long last,            \
                                                     const float *bias, float *y, long N)                              \
    {                                                                                                                  \
        meet_several(HOW, BITS, 2, b, s, w, first, last, bias, y, N);                                                  \
    }                                                                                                                  \
    static const kernels NAME = {tile_##NAME, widen_##NAME, one_##NAME, two_##NAME};
DEFINE(plain_fours, PLAIN, 4)
DEFINE(plain_bytes, PLAIN, 8)
#if HAVE_VNNI
DEFINE(vnni_fours, VNNI, 4)
DEFINE(vnni_bytes, VNNI, 8)
static const kernels *const BY[][2] = {{&plain_bytes, &plain_fours}, {&vnni_bytes, &vnni_fours}};
#else
static const kernels *const BY[][2] = {{&plain_bytes, &plain_fours}};
#endif

/* Where a panel is being read: a column, the codes of its group and the beginning of its super-block. */
typedef struct {
    long k;
    const char *group, *super;
} reader;

/* The next chunk of a panel. */
static void take_chunk(const kernels *by, int bits, shape s, reader *at, chunk *c)
{
    long words = 0, columns = 0;
    c->offset = has_offset(bits, s.scale);
    for (c->count = 0; at->k < s.K && c->count < WIDE_PIECES && columns + PIECE <= WIDE_COLUMNS; c->count++) {
        long done = at->k % s.group, left = s.group - done, depth = left < PIECE ? left : PIECE, quads = (depth + 3) / 4;
        if (!done) at->group = group_at(s, at->k, at->group, &at->super);
        load_ends(bits, s.scale, at->group + code_bytes(bits, s.group), at->super, c->ends[c->count]);
        by->widen(quads, at->group + code_bytes(bits, done), c->wide + words * PANEL);
        c->quads[c->count] = quads, words += quads, columns += depth, at->k += depth;
        if (depth == left) at->group += group_bytes(bits, s);
    }
}

/* One panel against the rows of a band. Codes that more than one tile meets are widened once. */
static void meet_band(const kernels *by, int bits, band b, shape s, const char *w, const float *from, float *y, long ldy)
{
    long ldf = 0;
    if (b.rows <= b.high) {
        by->tile(NULL, &b, &s, w, from, ldf, y, ldy);
        return;
    }
    chunk c;
    c.first_quad = c.first_piece = 0;
    for (reader at = {0, w, w}; at.k < s.K;) {
        take_chunk(by, bits, s, &at, &c);
        for (long row = 0; row < b.rows; row += b.high) {
            band tile = from_row(b, s, row);
            if (tile.rows > b.high) tile.rows = b.high;
            by->tile(&c, &tile, &s, NULL, from + row * ldf, ldf, y + row * ldy, ldy);
        }
        for (long i = 0; i < c.count; i++) c.first_quad += c.quads[i];
        c.first_piece += c.count, from = y, ldf = ldy;
    }
}

/* Rows of a band against panels [first, last); the last panel through a buffer where N does not fill it, so that
 * nothing beyond y is written. */
static void meet_share(const kernels *by, int bits, band b, shape s, const char *w, long first, long last,
                       const float *bias, float *y, long N)
{
    long p = first, full = last * PANEL <= N ? last : last - 1;
    if (b.rows <= FEW) (b.rows == 1 ? by->one : by->two)(b, s, w, first, full, bias, y, N), p = full;
    for (; p < full; p++) meet_band(by, bits, b, s, w + p * s.panel, bias ? bias + p * PANEL : nothing, y + p * PANEL, N);
    if (full == last) return;
    long width = N - p * PANEL;
    float start[PANEL] = {0}, out[INT8_ROWS * PANEL];
    if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));
    for (long row = 0; row < b.rows; row += b.high) {
        band part = from_row(b, s, row);
        if (part.rows > b.high) part.rows = b.high;
        meet_band(by, bits, part, s, w + p * s.panel, start, out, PANEL);
        for (long r = 0; r < part.rows; r++)
            memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));
    }
}

INLINE long tile_height(long rows)
{
    long tiles = (rows + INT8_ROWS - 1) / INT8_ROWS;
    return (rows + tiles - 1) / tiles;
}

INLINE long most_rows(long M, long K, long group)
{
    const long unit = 2 * INT8_ROWS;
    long most = ROUNDED_BYTES / (4 * words_of(K, group)) / unit * unit;
    if (most < unit) most = unit;
    return M < most ? M : most;
}

needs needs_of_int8(long M, long K, long group)
{
    needs all = {0, 0};
    long rows = most_rows(M, K, group), high = tile_height(rows), bytes = 4 * words_of(K, group);
    if (M <= FEW_ROWS) all.own = (tile_height(M) * ((M + tile_height(M) - 1) / tile_height(M)) * bytes + 63) / 64 * 64;
    else all.shared = ((rows + high - 1) / high * high * bytes + 63) / 64 * 64;
    return all;
}

/* Rows in tiles: of few rows by each thread for itself. */
INLINE band quantize_band(int bits, const float *x, long rows, shape s, long M, room at)
{
    band b = {M <= FEW_ROWS ? at.own : at.shared, rows, tile_height(rows)};
    uint32_t *out = (uint32_t *)b.x;
    const long words = words_of(s.K, s.group);
    if (M <= FEW_ROWS) {
        for (long row = 0; row < rows; row += b.high)
            quantize_rows(bits, x + row * s.K, rows - row < b.high ? rows - row : b.high, b.high, s.K, s.group, out + row * words);
        return b;
    }
    _Pragma("omp for") for (long row = 0; row < rows; row += b.high)
        quantize_rows(bits, x + row * s.K, rows - row < b.high ? rows - row : b.high, b.high, s.K, s.group, out + row * words);
    return b;
}

void linear_int8_team(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                      long K, long group, room at)
{
    shape s = {K, group, 0, scale};
    s.panel = panel_bytes(bits, s);
    const kernels *by = BY[vnni_works()][bits == 4];
    const long panels = (N + PANEL - 1) / PANEL, threads = omp_get_num_threads(), most = most_rows(M, K, group);
    for (long done = 0; done < M; done += most, x += most * K, y += most * N) {
        long rows = M - done < most ? M - done : most;
        const band all = quantize_band(bits, x, rows, s, M, at);
        const long longest = TILES_A_BAND * all.high;
        const tasks t = tasks_of(rows, longest, all.high, panels, threads);
        _Pragma("omp for schedule(dynamic, 1)") for (long task = 0; task < t.bands * t.shares; task++) {
            long row = task / t.shares * t.height, share = task % t.shares;
            band mine = from_row(all, s, row);
            if (mine.rows > t.height) mine.rows = t.height;
            long first = panels * share / t.shares, last = panels * (share + 1) / t.shares;
            meet_share(by, bits, mine, s, w, first, last, bias, y + row * N, N);
        }
    }
}

/* Returns DONE or NO_MEMORY. */
int linear_int8(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N, long K,
                long group)
{
    needs needed = needs_of_int8(M, K, group);
    char *memory = aligned_alloc(64, needed.shared + omp_get_max_threads() * needed.own + 64);
    if (!memory) return NO_MEMORY;
    _Pragma("omp parallel")
        linear_int8_team(bits, scale, x, w, bias, y, M, N, K, group, room_in(memory, needed));
    free(memory);
    return DONE;
}
