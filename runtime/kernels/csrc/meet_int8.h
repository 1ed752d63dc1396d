/* Tiles of rows of 8 bits against panels: sums of pieces, and what they add to outputs, as int8.h says to the bit. */
#ifndef PLIMSOLL_MEET_INT8_H
#define PLIMSOLL_MEET_INT8_H

#include "ends.h"
#include "int8.h"

/* Columns of a panel whose codes lie widened at once, to meet many rows, and runs of them at most. */
#define WIDE_COLUMNS 768
#define WIDE_RUNS 48

/* Codes as they lie (source 4 or 8), or a chunk of a panel as words of four columns. */
enum { WORDS = 32 };

/* Vectors of sums of a tile: of INT8_ROWS rows of one panel, or of up to AT_ONCE panels of one row. */
#define SUMS (2 * (INT8_ROWS > AT_ONCE ? INT8_ROWS : AT_ONCE))

/* Up to `high` rows as quantize_rows leaves them, from a piece that begins a run on. */
typedef struct {
    const uint32_t *codes, *ends, *sums;
    long high;
} tile;

/* A chunk of a panel: some runs, widened. `depth`: columns of each. `first_`: how many the chunks before it have.
 * `next`: what follows in memory, of which `lines` lines are asked at each run. */
typedef struct {
    const char *next;
    long lines, runs, depth[WIDE_RUNS], quads, pieces, first_quad, first_piece, first_run;
    float ends[WIDE_RUNS][2 * PANEL];
    uint32_t wide[WIDE_COLUMNS / 4 * PANEL] __attribute__((aligned(64)));
} chunk;

INLINE float float_of(uint32_t word)
{
    float x;
    memcpy(&x, &word, 4);
    return x;
}

/* sums[panels][rows][2] of `quads` words of four columns, less what codes are too large by. */
INLINE void multiply_piece(const int how, const int bits, const int source, const int rows, const int panels,
                           long quads, tile x, const char *w, long stride, long ahead, vi *sums)
{
    const int negative = bits == 8 && how == PLAIN, step = source == FOURS ? 2 : 1;
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int r = 0; r < rows; r++)
            sums[(p * rows + r) * 2] = sums[(p * rows + r) * 2 + 1] =
                EXCESS(how, bits) ? all_lanes(x.ends[2 * r]) : (vi){0};
    for (; quads > 0; quads -= step, x.codes += step * x.high, w += 4 * PANEL) {
        vu words[AT_ONCE][2];
        UNROLL for (int p = 0; p < panels; p++) {
            const char *at = w + p * stride;
            if (source != WORDS) ask_for(at + ahead);
            if (source != WORDS && LANES == 16) ask_for(at + ahead + 64);
            if (source == BYTES) quads_of_bytes(how, at, words[p]);
            else words[p][0] = load_words(at), words[p][1] = load_words(at + 4 * LANES);
        }
        UNROLL for (int j = 0; j < step; j++)
            UNROLL for (int p = 0; p < panels; p++) {
                vu first = source == FOURS ? quad_of_fours(words[p][0], j) : words[p][0];
                vu second = source == FOURS ? quad_of_fours(words[p][1], j) : words[p][1];
#if HAVE_NEON_DOTS
                /* Four rows a vector: what lies behind the last row is its ends or another word. */
                if (how == SDOT && rows > 1) {
                    UNROLL for (int r = 0; r < rows; r += 4) {
                        const vu four = load_words((const char *)(x.codes + j * x.high + r));
                        UNROLL for (int lane = 0; lane < 4; lane++) {
                            if (r + lane >= rows) break;
                            vi *sum = sums + (p * rows + r + lane) * 2;
                            sum[0] = sdot_lane(sum[0], first, four, lane);
                            sum[1] = sdot_lane(sum[1], second, four, lane);
                        }
                    }
                    continue;
                }
#endif
                UNROLL for (int r = 0; r < rows; r++) {
                    vi *sum = sums + (p * rows + r) * 2;
                    vu four = (vu)all_lanes(x.codes[j * x.high + r]);
                    sum[0] = add_quad(how, negative, sum[0], first, four);
                    sum[1] = add_quad(how, negative, sum[1], second, four);
                }
            }
    }
}

/* all[panels][rows][2] += what a run of `depth` columns adds. `ends`: of each panel, as load_ends leaves them. `lone`:
 * whether a run is one piece. x is left after the run. */
INLINE void add_run(const int how, const int bits, const int source, const int offset, const int lone, const int rows,
                    const int panels, long depth, tile *x, const char *w, long stride, long ahead, const float *ends,
                    vf *all)
{
    vi sums[SUMS];
    vf dots[SUMS];
    if (!lone) UNROLL for (int i = 0; i < 2 * rows * panels; i++) dots[i] = (vf){0};
    for (long done = 0; done < depth; done += PIECE) {
        const long quads = ((depth - done < PIECE ? depth - done : PIECE) + 3) / 4;
        multiply_piece(how, bits, source, rows, panels, quads, *x, w, stride, ahead, sums);
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int h = 0; h < 2; h++) {
                    const int at = (p * rows + r) * 2 + h;
                    const vf whole = __builtin_convertvector(sums[at], vf), scale = fill(float_of(x->ends[2 * r + 1]));
                    dots[at] = lone ? whole * scale : fused(whole, scale, dots[at]);
                }
        x->codes += quads * x->high, x->ends += 2 * x->high;
        w += quads * (source == WORDS ? 4 * PANEL : PANEL * bits / 2);
        if (lone) break;
    }
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) {
                const int at = (p * rows + r) * 2 + h;
                const float *end = ends + 2 * p * PANEL + h * LANES;
                if (offset) all[at] = fused(fill(float_of(x->sums[r])), load(end + PANEL), all[at]);
                all[at] = fused(dots[at], load(end), all[at]);
            }
    x->sums += x->high;
}

/* A tile of rows against a chunk of a panel. */
INLINE void meet_chunk(const int how, const int bits, const int offset, const int lone, const int rows, const chunk *c,
                       tile x, const float *from, long ldf, float *y, long ldy)
{
    vf all[SUMS];
    const uint32_t *w = c->wide;
    const char *next = c->next;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) all[2 * r + h] = load(from + r * ldf + h * LANES);
    /* Stores that wait for their lines hold up what is read after them. */
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int line = 0; line < 2; line++) ask_to_write(y + r * ldy + line * LANES);
    for (long i = 0; i < c->runs; i++) {
        for (long line = 0; line < c->lines; line++, next += 64) ask_later(next);
        add_run(how, bits, WORDS, offset, lone, rows, 1, c->depth[i], &x, (const char *)w, 0, 0, c->ends[i], all);
        w += (c->depth[i] + 3) / 4 * PANEL;
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) store(y + r * ldy + h * LANES, all[2 * r + h]);
}

/* A tile of rows against all of `panels` panels as they lie. `from`: where outputs of each panel start, `step`
 * apart. */
INLINE void meet_panels(const int how, const int bits, const int offset, const int lone, const int rows,
                        const int panels,
                        shape s, tile x, const char *w, const float *from, long step, float *y, long ldy)
{
    const char *last = w + s.panel - AHEAD, *super = w;
    float ends[AT_ONCE * 2 * PANEL] __attribute__((aligned(64)));
    vf all[SUMS];
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) all[(p * rows + r) * 2 + h] = load(from + p * step + h * LANES);
    for (long k = 0; k < s.K; k += s.group, w += group_bytes(bits, s)) {
        w = group_at(s, k, w, &super);
        for (int p = 0; p < panels; p++)
            load_ends(bits, s.scale, w + p * s.panel + code_bytes(bits, s.group), super + p * s.panel,
                      ends + p * 2 * PANEL);
        for (long done = 0; done < s.group; done += RUN) {
            const long depth = s.group - done < RUN ? s.group - done : RUN;
            const char *codes = w + code_bytes(bits, done);
            /* After the end of a panel comes that of the panels which are met next. */
            const long ahead = AHEAD + (codes < last ? 0 : (panels - 1) * s.panel);
            add_run(how, bits, bits, offset, lone, rows, panels, depth, &x, codes, s.panel, ahead, ends, all);
            if (lone) break;
        }
    }
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) store(y + r * ldy + p * PANEL + h * LANES, all[(p * rows + r) * 2 + h]);
}

#endif
