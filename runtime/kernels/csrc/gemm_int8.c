/* y = x w^T + bias over weights of 4 or 8 bits (quant.h) with rows quantized to 8 bits, as int8.h says to the bit. */
#include "band.h"
#include "bounds.h"
#include "int8_tiles.h"
#include "meet_int8.h"
#include <stdlib.h>

/* Bytes of a panel that two tiles do not widen. */
#define NEAR_BYTES (56L << 10)

static const float nothing[PANEL];

/* The first tile of a band at a word of columns, a piece and a run. */
INLINE tile tile_at(band b, shape s, long quad, long piece, long run)
{
    const uint32_t *ends = b.x + quads_of(s.K, s.group) * b.high, *sums = ends + 2 * pieces_of(s.K, s.group) * b.high;
    tile t = {b.x + quad * b.high, ends + 2 * piece * b.high, sums + run * b.high, b.high};
    return t;
}

INLINE void widen(const int how, const int bits, long quads, const char *w, uint32_t *out)
{
    for (; quads > 0; quads -= bits == 4 ? 2 : 1, w += 4 * PANEL, out += (bits == 4 ? 2 : 1) * PANEL) {
        vu made[2][2];
        ask_for(w + WIDEN_AHEAD);
        if (LANES == 16) ask_for(w + WIDEN_AHEAD + 64);
        if (bits == 8) quads_of_bytes(how, w, made[0]);
        else
            UNROLL for (int h = 0; h < 2; h++) {
                const vu words = load_words(w + 4 * LANES * h);
                made[0][h] = quad_of_fours(words, 0), made[1][h] = quad_of_fours(words, 1);
            }
        memcpy(out, made, (bits == 4 ? 2 : 1) * sizeof made[0]);
    }
}

/* Functions of their own: with several of them in one, pointers fight for registers. */
typedef void chunks(const chunk *, int, tile, const float *, long, float *, long);
typedef void panels(shape, band, const char *, long, long, const float *, float *, long);
typedef struct {
    chunks *chunk;
    panels *few;
} kernels;
#define ROW_CASE(R)                                                                                                    \
    case R: meet_chunk(how, bits, offset, lone, R <= INT8_ROWS ? R : 1, c, x, from, ldf, y, ldy); break;
/* A tile against a chunk of a panel. */
INLINE void meet_wide(const int how, const int bits, const int offset, const int lone, const chunk *c, int rows, tile x,
                      const float *from, long ldf, float *y, long ldy)
{
    switch (rows) { ROW_CASE(1) ROW_CASE(2) ROW_CASE(3) ROW_CASE(4) ROW_CASE(5) ROW_CASE(6) }
}

#define AS_IT_LIES_CASE(R)                                                                                             \
    case R:                                                                                                            \
        meet_panel_as_it_lies(how, bits, offset, lone, R <= INT8_ROWS ? R : 1, s, x, w + p * s.panel, from,            \
                              y + p * PANEL, N);                                                                       \
        break;
/* Up to INT8_ROWS rows against panels [first, last) as they lie, one after the other: memory is quickest for a thread
 * that reads it in one stream. */
INLINE void meet_few(const int how, const int bits, const int offset, const int lone, shape s, band b, const char *w,
                     long first, long last, const float *bias, float *y, long N)
{
    const tile x = tile_at(b, s, 0, 0, 0);
    for (long p = first; p < last; p++) {
        const float *from = bias ? bias + p * PANEL : nothing;
        switch (b.rows) {
            AS_IT_LIES_CASE(1) AS_IT_LIES_CASE(2) AS_IT_LIES_CASE(3)
            AS_IT_LIES_CASE(4) AS_IT_LIES_CASE(5) AS_IT_LIES_CASE(6)
        }
    }
}

#define DEFINE_KIND(NAME, HOW, BITS, OFFSET, LONE)                                                                     \
    static __attribute__((noinline)) void wide_##NAME(const chunk *c, int rows, tile x, const float *from, long ldf,   \
                                                      float *y, long ldy)                                              \
    {                                                                                                                  \
        meet_wide(HOW, BITS, OFFSET, LONE, c, rows, x, from, ldf, y, ldy);                                             \
    }                                                                                                                  \
    static __attribute__((noinline)) void few_##NAME(shape s, band b, const char *w, long first, long last,            \
                                                     const float *bias, float *y, long N)                              \
    {                                                                                                                  \
        meet_few(HOW, BITS, OFFSET, LONE, s, b, w, first, last, bias, y, N);                                           \
    }
/* Of codes of one kind: [whether they have offsets][whether a run is one piece]. */
typedef struct {
    kernels by[2][2];
    void (*widen)(long, const char *, uint32_t *);
} codes;
#define PAIR(NAME) {wide_##NAME, few_##NAME}
#define DEFINE(HOW, NAME)                                                                                              \
    DEFINE_KIND(NAME##_fours_lone, HOW, 4, 1, 1)                                                                       \
    DEFINE_KIND(NAME##_fours, HOW, 4, 1, 0)                                                                            \
    DEFINE_KIND(NAME##_bytes_lone, HOW, 8, 0, 1)                                                                       \
    DEFINE_KIND(NAME##_bytes, HOW, 8, 0, 0)                                                                            \
    DEFINE_KIND(NAME##_offset_bytes_lone, HOW, 8, 1, 1)                                                                \
    DEFINE_KIND(NAME##_offset_bytes, HOW, 8, 1, 0)                                                                     \
    static void widen_##NAME##_fours(long quads, const char *w, uint32_t *out) { widen(HOW, 4, quads, w, out); }       \
    static void widen_##NAME##_bytes(long quads, const char *w, uint32_t *out) { widen(HOW, 8, quads, w, out); }       \
    static const codes NAME[] = {{{{PAIR(NAME##_bytes), PAIR(NAME##_bytes_lone)},                                      \
                                   {PAIR(NAME##_offset_bytes), PAIR(NAME##_offset_bytes_lone)}},                       \
                                  widen_##NAME##_bytes},                                                               \
                                 {{{{0}}, {PAIR(NAME##_fours), PAIR(NAME##_fours_lone)}}, widen_##NAME##_fours}};
DEFINE(PLAIN, plain)
#if HAVE_VNNI
DEFINE(VNNI, vnni)
#endif
#if HAVE_NEON_DOTS
DEFINE(SDOT, in_sdots)
#endif

INLINE const codes *codes_of(int bits)
{
#if HAVE_VNNI
    if (vnni_works()) return &vnni[bits == 4];
#endif
#if HAVE_NEON_DOTS
    if (sdot_works()) return &in_sdots[bits == 4];
#endif
    return &plain[bits == 4];
}

/* Where a panel is being read: a column, the codes of its group and the beginning of its super-block. */
typedef struct {
    long k;
    const char *group, *super;
} reader;

/* The next chunk of a panel: runs of whole pieces, at most `columns` columns. */
static void take_chunk(const codes *of, int bits, shape s, long columns, reader *at, chunk *c)
{
    c->first_quad += c->quads, c->first_piece += c->pieces, c->first_run += c->runs;
    c->quads = c->pieces = 0;
    for (c->runs = 0; at->k < s.K && c->runs < WIDE_RUNS; c->runs++) {
        const long done = at->k % s.group, left = s.group - done, depth = left < RUN ? left : RUN,
            quads = (depth + 3) / 4;
        if (c->runs && (c->quads + quads) * 4 > columns) break;
        if (!done) at->group = group_at(s, at->k, at->group, &at->super);
        load_ends(bits, s.scale, at->group + code_bytes(bits, s.group), at->super, c->ends[c->runs]);
        of->widen(quads, at->group + code_bytes(bits, done), c->wide + c->quads * PANEL);
        c->depth[c->runs] = depth, c->quads += quads, c->pieces += (depth + PIECE - 1) / PIECE, at->k += depth;
        if (depth == left) at->group += group_bytes(bits, s);
    }
}

/* One panel against the tiles of a band: codes are widened once. */
static void meet_band(const codes *of, int bits, band b, shape s, const char *w, const float *from, float *y, long ldy)
{
    const int offset = has_offset(bits, s.scale), lone = s.group <= PIECE, tiles = in_byte_tiles(b);
    const kernels *by = &of->by[offset][lone];
    const long all = 4 * quads_of(s.K, s.group), parts = (all + WIDE_COLUMNS - 1) / WIDE_COLUMNS;
    const long high = tiles ? BYTE_TILE : b.high;
    chunk c;
    long ldf = 0;
    if (tiles) take_byte_tiles(s.group);
    c.runs = c.quads = c.pieces = c.first_quad = c.first_piece = c.first_run = 0;
    for (reader at = {0, w, w}; at.k < s.K; from = y, ldf = ldy) {
        const char *before = at.group;
        take_chunk(of, bits, s, (all + parts - 1) / parts, &at, &c);
        const long lines = (at.group - before) / 64, asking = b.rows <= 4 * high ? (b.rows + high - 1) / high : 4;
        c.next = at.group;
        for (long row = 0; row < b.rows; row += high, c.next += c.lines * c.runs * 64) {
            const long rows = b.rows - row < high ? b.rows - row : high;
            const tile x = tile_at(from_row(b, s, row), s, c.first_quad, c.first_piece, c.first_run);
            c.lines = row < asking * high ? (lines + asking * c.runs - 1) / (asking * c.runs) : 0;
            if (tiles)
                chunk_in_byte_tiles(&c, offset, lone, rows, x, words_of(s.K, s.group), from + row * ldf, ldf,
                                    y + row * ldy, ldy);
            else by->chunk(&c, (int)rows, x, from + row * ldf, ldf, y + row * ldy, ldy);
        }
    }
    if (tiles) drop_tiles();
}

void meet_panel(int bits, band b, shape s, const char *w, const float *from, float *y, long ldy)
{
    meet_band(codes_of(bits), bits, b, s, w, from ? from : nothing, y, ldy);
}

/* Rows of a band against panels [first, last); the last panel through a buffer where N does not fill it, so that
 * nothing beyond y is written. */
void meet_share(int bits, band b, shape s, const char *w, long first, long last, const float *bias, float *y, long N)
{
    const codes *of = codes_of(bits);
    const kernels *by = &of->by[has_offset(bits, s.scale)][s.group <= PIECE];
    long p = first, full = last * PANEL <= N ? last : last - 1;
    if (b.rows <= b.high) by->few(s, b, w, first, full, bias, y, N), p = full;
    /* Two tiles take a panel as it lies, one after the other: the second finds it near. */
    for (; p < full && b.rows <= 2 * b.high && s.panel <= NEAR_BYTES; p++)
        for (long row = 0; row < b.rows; row += b.high) {
            band part = from_row(b, s, row);
            if (part.rows > b.high) part.rows = b.high;
            by->few(s, part, w + p * s.panel, 0, 1, bias ? bias + p * PANEL : NULL, y + row * N + p * PANEL, N);
        }
    for (; p < full; p++)
        meet_band(of, bits, b, s, w + p * s.panel, bias ? bias + p * PANEL : nothing, y + p * PANEL, N);
    if (full == last) return;
    long width = N - p * PANEL;
    float start[PANEL] = {0}, out[INT8_ROWS * PANEL];
    if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));
    for (long row = 0; row < b.rows; row += b.high) {
        band part = from_row(b, s, row);
        if (part.rows > b.high) part.rows = b.high;
        by->few(s, part, w + p * s.panel, 0, 1, start, out, PANEL);
        for (long r = 0; r < part.rows; r++)
            memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));
    }
}

needs needs_of_int8(long M, long K, long group)
{
    needs all = {0, 0};
    long rows = most_rows(M, K, group), high = tile_height(rows), bytes = 4 * words_of(K, group);
    if (M <= OWN_ROWS) all.own = (tile_height(M) * ((M + tile_height(M) - 1) / tile_height(M)) * bytes + 63) / 64 * 64;
    else all.shared = ((rows + high - 1) / high * high * bytes + 63) / 64 * 64;
    return all;
}

/* Rows in tiles: of few rows by each thread for itself. */
INLINE band quantize_band(int bits, const float *x, long rows, shape s, long M, room at)
{
    band b = {M <= OWN_ROWS ? at.own : at.shared, rows, tile_height(rows)};
    uint32_t *out = (uint32_t *)b.x;
    const long words = words_of(s.K, s.group);
    if (M <= OWN_ROWS) {
        for (long row = 0; row < rows; row += b.high)
            quantize_rows(bits, x + row * s.K, rows - row < b.high ? rows - row : b.high, b.high, s.K, s.group,
                          out + row * words);
        return b;
    }
    _Pragma("omp for") for (long row = 0; row < rows; row += b.high)
        quantize_rows(bits, x + row * s.K, rows - row < b.high ? rows - row : b.high, b.high, s.K, s.group,
                      out + row * words);
    return b;
}

void linear_int8_team(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                      long K, long group, room at)
{
    shape s = {K, group, 0, scale};
    s.panel = panel_bytes(bits, s);
    const long panels = (N + PANEL - 1) / PANEL, threads = omp_get_num_threads(), most = most_rows(M, K, group);
    for (long done = 0; done < M; done += most, x += most * K, y += most * N) {
        long rows = M - done < most ? M - done : most;
        const band all = quantize_band(bits, x, rows, s, M, at);
        const tasks t = tasks_of_band(all, panels, threads);
        next_turn(at.parts);
        for (long task; (task = next_task(at.parts, t.bands * t.shares)) >= 0;) {
            long row = task / t.shares * t.height, share = task % t.shares;
            band mine = from_row(all, s, row);
            if (mine.rows > t.height) mine.rows = t.height;
            long first = panels * share / t.shares, last = panels * (share + 1) / t.shares;
            meet_share(bits, mine, s, w, first, last, bias, y + row * N, N);
        }
        _Pragma("omp barrier")
    }
}

/* Returns DONE or NO_MEMORY. */
int linear_int8(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N, long K,
                long group)
{
    needs needed = needs_of_int8(M, K, group);
    char *memory = make_rooms(needed);
    if (!memory) return NO_MEMORY;
    _Pragma("omp parallel")
        linear_int8_team(bits, scale, x, w, bias, y, M, N, K, group, room_in(memory, needed));
    free(memory);
    return DONE;
}
