/* Bands of rows of 8 bits, and what multiplies one by panels of codes. */
#ifndef PLIMSOLL_BAND_H
#define PLIMSOLL_BAND_H

#include "int8.h"
#include "quant.h"
#include "room.h"

/* Tiles of a band of rows: so many stay in the second cache while panels go by. */
#define TILES_A_BAND 48

/* Rows of one of AMX's tiles, and rows of a product from which these multiply them. */
#define BYTE_TILE 16
#define BYTE_TILES_FROM 8

/* Rows as quantize_rows leaves them, in tiles of `high` rows, from one that begins a tile on. Where AMX's tiles multiply
 * them each lies by itself: `high` is 1. */
typedef struct {
    const uint32_t *x;
    long rows, high;
} band;

INLINE band from_row(band b, shape s, long row)
{
    b.x += row * words_of(s.K, s.group), b.rows -= row;
    return b;
}

/* Whether AMX's tiles multiply a band. One row alone is for vectors, to the same bit. */
INLINE int in_byte_tiles(band b) { return b.high == 1 && b.rows > 1; }

INLINE long tile_height(long rows)
{
    if (rows >= BYTE_TILES_FROM && byte_tiles_work() && vnni_works()) return 1;
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

/* Rows from which a task has few panels, so that no thread waits long for the last task of another. */
#define MANY_ROWS 128
#define PANELS_OF_MANY 3

/* Tasks of a product of the rows `all`. */
INLINE tasks tasks_of_band(band all, long panels, long threads)
{
    const int tiles = in_byte_tiles(all);
    tasks t = tasks_of(all.rows, tiles ? TILES_A_BAND * INT8_ROWS / BYTE_TILE * BYTE_TILE : TILES_A_BAND * all.high,
                       tiles ? BYTE_TILE : all.high, panels, threads);
    const long shares = (panels + PANELS_OF_MANY - 1) / PANELS_OF_MANY;
    if (all.rows >= MANY_ROWS && shares > t.shares) t.shares = shares;
    return t;
}

/* y [rows of the band][PANEL], rows `ldy` apart, = the band against one panel + `from` [PANEL], if there is one. */
void meet_panel(int bits, band b, shape s, const char *w, const float *from, float *y, long ldy);
/* y [rows of the band][N] = the band against panels [first, last) + bias; bias may be null. Writes their columns alone. */
void meet_share(int bits, band b, shape s, const char *w, long first, long last, const float *bias, float *y, long N);

#endif
