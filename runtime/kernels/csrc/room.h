/* Where products keep what they make of x: of many rows once for all threads, of few rows by each thread for itself,
 * so that none waits for another. */
#ifndef PLIMSOLL_ROOM_H
#define PLIMSOLL_ROOM_H

#include "team.h"
#include "tiles.h"
#include <omp.h>

/* Rows that each thread rounds for itself. */
#define FEW_ROWS 4
/* Bytes that the rounded rows of a large product take; the product goes over so many rows at a time. */
#define ROUNDED_BYTES (4L << 20)

/* Whether tiles multiply M rows: from as many on as it pays. Codes of 8 bits are the dearest to widen. */
INLINE int in_tiles(int bits, long M) { return M >= (bits == 4 ? 3 : bits == 8 ? 8 : 4) && tiles_work(); }

/* Of K columns, each `group` filled up to whole blocks. */
INLINE long filled(long K, long group) { return K / group * BLOCKS(group) * BLOCK; }

/* Sums of x that weights of 4 bits need of a row: of each chunk of each group. */
#define CHUNK 256
INLINE long chunks_of(long K, long group) { return K / group * ((group + CHUNK - 1) / CHUNK); }

/* Bytes that a product keeps of a row of x. */
INLINE long row_bytes(int bits, int tiles, long K, long group)
{
    return (tiles ? 2 * filled(K, group) : 4 * K) + (bits == 4 ? 4 * chunks_of(K, group) : 0);
}

/* Rows of a product that are rounded at once: those of all M, if they fit. */
INLINE long rows_at_once(long M, long columns, int tiles)
{
    long most = ROUNDED_BYTES / (columns * (tiles ? 2 : 4)) / (2 * TILE) * 2 * TILE;
    if (most < 2 * TILE) most = 2 * TILE;
    return M < most ? M : most;
}

/* Rounds `rows` rows: into at.shared, waiting for all threads, or few of them into at.own. Returns where they lie as
 * float32 [rows][K]; as tiles they lie in at.shared. */
static inline const float *round_rows(const float *x, long rows, long K, long group, int tiles, room at)
{
    if (!tiles && rows <= FEW_ROWS) {
        for (long r = 0; r < rows; r++) round_row(x + r * K, (float *)at.own + r * K, K);
        return at.own;
    }
    if (tiles) {
        _Pragma("omp for") for (long tile = 0; tile < (rows + TILE - 1) / TILE; tile++)
            fill_tile(x, rows, K, group, tile, at.shared);
    } else {
        _Pragma("omp for") for (long r = 0; r < rows; r++) round_row(x + r * K, (float *)at.shared + r * K, K);
    }
    return at.shared;
}

#endif
