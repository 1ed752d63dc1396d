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

/* Vectors of sums of a tile. */
#define SUMS (2 * INT8_ROWS)

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

/* sums[rows][2] of `quads` words of four columns, less what codes are too large by. */
INLINE void multiply_piece(const int how, const int bits, const int source, const int rows, long quads, tile x,
                           const char *w, vi *sums)
{
    const int negative = bits == 8 && how == PLAIN, step = source == FOURS ? 2 : 1;
    UNROLL for (int i = 0; i < 2 * rows; i++)
        sums[i] = EXCESS(how, bits) && !SUMS_OF_16(how, negative) ? all_lanes(x.ends[i / 2 * 2]) : (vi){0};
    for (; quads > 0; quads -= step, x.codes += step * x.high, w += 4 * PANEL) {
        vu words[2];
        if (source != WORDS) ask_for(w + AHEAD);
        if (source != WORDS && LANES == 16) ask_for(w + AHEAD + 64);
        if (source == BYTES) quads_of_bytes(how, w, words);
        else words[0] = load_words(w), words[1] = load_words(w + 4 * LANES);
#if defined(__AVX2__) && LANES == 8
        /* They stay in registers: the compiler would load them again for each row. */
        if (SUMS_OF_16(how, negative)) __asm__("" : "+x"(words[0]), "+x"(words[1]));
#endif
        UNROLL for (int j = 0; j < step; j++) {
            vu first = source == FOURS ? quad_of_fours(words[0], j) : words[0];
            vu second = source == FOURS ? quad_of_fours(words[1], j) : words[1];
#if HAVE_NEON_DOTS
            /* Four rows a vector: what lies behind the last row is its ends or another word. */
            if (how == SDOT && rows > 1) {
                UNROLL for (int r = 0; r < rows; r += 4) {
                    const vu four = load_words((const char *)(x.codes + j * x.high + r));
                    UNROLL for (int lane = 0; lane < 4; lane++) {
                        if (r + lane >= rows) break;
                        vi *sum = sums + 2 * (r + lane);
                        sum[0] = sdot_lane(sum[0], first, four, lane);
                        sum[1] = sdot_lane(sum[1], second, four, lane);
                    }
                }
                continue;
            }
#endif
            UNROLL for (int r = 0; r < rows; r++) {
                vi *sum = sums + 2 * r;
                vu four = (vu)all_lanes(x.codes[j * x.high + r]);
                sum[0] = add_quad(how, negative, sum[0], first, four);
                sum[1] = add_quad(how, negative, sum[1], second, four);
            }
        }
    }
    if (SUMS_OF_16(how, negative))
        UNROLL for (int i = 0; i < 2 * rows; i++)
            sums[i] = all_lanes(x.ends[i / 2 * 2]) + whole_sum(how, negative, sums[i]);
}

/* all[rows][2] += what a run of `depth` columns adds. `ends`: as load_ends leaves them. `lone`: whether a run is one
 * piece. x is left after the run. */
INLINE void add_run(const int how, const int bits, const int source, const int offset, const int lone, const int rows,
                    long depth, tile *x, const char *w, const float *ends, vf *all)
{
    vi sums[SUMS];
    vf dots[SUMS];
    if (!lone) UNROLL for (int i = 0; i < 2 * rows; i++) dots[i] = (vf){0};
    for (long done = 0; done < depth; done += PIECE) {
        const long quads = ((depth - done < PIECE ? depth - done : PIECE) + 3) / 4;
        multiply_piece(how, bits, source, rows, quads, *x, w, sums);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++) {
                const int at = 2 * r + h;
                const vf whole = __builtin_convertvector(sums[at], vf), scale = fill(float_of(x->ends[2 * r + 1]));
                dots[at] = lone ? whole * scale : fused(whole, scale, dots[at]);
            }
        x->codes += quads * x->high, x->ends += 2 * x->high;
        w += quads * (source == WORDS ? 4 * PANEL : PANEL * bits / 2);
        if (lone) break;
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) {
            const int at = 2 * r + h;
            if (offset) all[at] = fused(fill(float_of(x->sums[r])), load(ends + PANEL + h * LANES), all[at]);
            all[at] = fused(dots[at], load(ends + h * LANES), all[at]);
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
        add_run(how, bits, WORDS, offset, lone, rows, c->depth[i], &x, (const char *)w, c->ends[i], all);
        w += (c->depth[i] + 3) / 4 * PANEL;
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) store(y + r * ldy + h * LANES, all[2 * r + h]);
}

/* A tile of rows against a panel as it lies. */
INLINE void meet_panel_as_it_lies(const int how, const int bits, const int offset, const int lone, const int rows,
                                  shape s, tile x, const char *w, const float *from, float *y, long ldy)
{
    const char *super = w;
    float ends[2 * PANEL] __attribute__((aligned(64)));
    vf all[SUMS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) all[2 * r + h] = load(from + h * LANES);
    for (long k = 0; k < s.K; k += s.group, w += group_bytes(bits, s)) {
        w = group_at(s, k, w, &super);
        load_ends(bits, s.scale, w + code_bytes(bits, s.group), super, ends);
        for (long done = 0; done < s.group; done += RUN) {
            const long depth = s.group - done < RUN ? s.group - done : RUN;
            add_run(how, bits, bits, offset, lone, rows, depth, &x, w + code_bytes(bits, done), ends, all);
            if (lone) break;
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) store(y + r * ldy + h * LANES, all[2 * r + h]);
}

#endif
