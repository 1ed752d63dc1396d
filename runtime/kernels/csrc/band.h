/* Bands of rows of 8 bits, and what multiplies one by panels of codes. */
#ifndef PLIMSOLL_BAND_H
#define PLIMSOLL_BAND_H

#include "int8.h"
#include "quant.h"
#include "room.h"

/* Tiles of a band of rows: so many stay in the second cache while panels go by. */
#define TILES_A_BAND 48

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

/* y [rows of the band][PANEL], rows `ldy` apart, = the band against one panel + `from` [PANEL], if there is one. */
void meet_panel(int bits, band b, shape s, const char *w, const float *from, float *y, long ldy);
/* y [rows of the band][N] = the band against panels [first, last) + bias; bias may be null. Writes their columns alone. */
void meet_share(int bits, band b, shape s, const char *w, long first, long last, const float *bias, float *y, long N);

#endif
