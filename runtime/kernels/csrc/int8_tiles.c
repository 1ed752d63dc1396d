#include "int8_tiles.h"
#include "band.h"

#if defined(__AVX512F__) && defined(__linux__)
/* Tile 0 holds sums; 1 and 2 hold rows and codes of a whole piece, 3 and 4 those of one that a group ends with. */
void take_byte_tiles(long group)
{
    const uint8_t rest = (uint8_t)((group % PIECE + 3) / 4), quads = rest ? rest : PIECE / 4;
    const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } layout = {1, 0, {0}, {64, PIECE, 64, 4 * quads, 64}, {BYTE_TILE, BYTE_TILE, PIECE / 4, BYTE_TILE, quads}};
    __asm__ volatile("ldtilecfg %0" : : "m"(layout));
}

/* sums [BYTE_TILE][LANES] = the codes of rows, `step` words apart, times those of a piece for LANES outputs. */
#define MULTIPLY(X, W)                                                                                                 \
    __asm__ volatile("tilezero %%tmm0\n tileloadd (%0,%1,1), %%tmm" #X "\n tileloadd (%2,%3,1), %%tmm" #W "\n"         \
                     "tdpbsud %%tmm" #W ", %%tmm" #X ", %%tmm0\n tilestored %%tmm0, (%4,%5,1)"                         \
                     : : "r"(codes), "r"(4 * step), "r"(w), "r"(4L * PANEL), "r"(sums), "r"(4L * LANES) : "memory")
INLINE void multiply_piece_in_tiles(long quads, const uint32_t *codes, long step, const uint32_t *w, int32_t *sums)
{
    if (quads == PIECE / 4) MULTIPLY(1, 2);
    else MULTIPLY(3, 4);
}

/* LANES outputs of BYTE_TILE rows, or of the first `rows`. Codes of rows lie `step` words apart. */
#define EACH_ROW UNROLL for (int r = 0; r < BYTE_TILE; r++) if (full || r < rows)
INLINE void meet_half(const int full, const int offset, const int lone, const chunk *c, long rows,
                      const uint32_t *codes,
                      long step, tile x, long words, int half, const float *from, long ldf, float *y, long ldy)
{
    int32_t sums[BYTE_TILE * LANES] __attribute__((aligned(64)));
    const uint32_t *w = c->wide + half * LANES;
    from += half * LANES, y += half * LANES;
    for (long i = 0; i < c->runs; i++, x.sums++, from = y, ldf = ldy) {
        const float *end = c->ends[i] + half * LANES;
        vf dots[BYTE_TILE];
        EACH_ROW dots[r] = (vf){0};
        for (long done = 0; done < c->depth[i]; done += PIECE, x.ends += 2) {
            const long left = c->depth[i] - done, quads = ((left < PIECE ? left : PIECE) + 3) / 4;
            multiply_piece_in_tiles(quads, codes, step, w, sums);
            EACH_ROW
            {
                const vi all = (vi)load_words((const char *)(sums + r * LANES)) + all_lanes(x.ends[r * words]);
                const vf whole = __builtin_convertvector(all, vf), scale = fill(float_of(x.ends[r * words + 1]));
                dots[r] = lone ? whole * scale : fused(whole, scale, dots[r]);
            }
            codes += quads, w += quads * PANEL;
        }
        EACH_ROW
        {
            vf total = load(from + r * ldf);
            if (offset) total = fused(fill(float_of(x.sums[r * words])), load(end + PANEL), total);
            store(y + r * ldy, fused(dots[r], load(end), total));
        }
    }
}

#define KIND(FULL, OFFSET, LONE)                                                                                       \
    for (int half = 0; half < 2; half++)                                                                               \
        meet_half(FULL, OFFSET, LONE, c, rows, codes, step, x, words, half, from, ldf, y, ldy)
void chunk_in_byte_tiles(const chunk *c, int offset, int lone, long rows, tile x, long words, const float *from,
                         long ldf, float *y, long ldy)
{
    const uint32_t *codes = x.codes;
    long step = words;
    /* What lies after the last row may be of nobody: a tile that is not full is copied. */
    uint32_t few[BYTE_TILE][WIDE_COLUMNS / 4];
    if (rows == BYTE_TILE) {
        if (offset && lone) KIND(1, 1, 1);
        else if (offset) KIND(1, 1, 0);
        else if (lone) KIND(1, 0, 1);
        else KIND(1, 0, 0);
        return;
    }
    for (long r = 0; r < rows; r++) memcpy(few[r], codes + r * words, c->quads * sizeof few[r][0]);
    for (long r = rows; r < BYTE_TILE; r++) memset(few[r], 0, c->quads * sizeof few[r][0]);
    codes = few[0], step = WIDE_COLUMNS / 4;
    KIND(0, offset, lone);
}
#else
void take_byte_tiles(long group) { (void)group; }
void chunk_in_byte_tiles(const chunk *c, int offset, int lone, long rows, tile x, long words, const float *from,
                         long ldf, float *y, long ldy)
{
    (void)c, (void)offset, (void)lone, (void)rows, (void)x, (void)words, (void)from, (void)ldf, (void)y, (void)ldy;
}
#endif
