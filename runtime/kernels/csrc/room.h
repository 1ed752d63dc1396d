/* Where products keep what they make of x: of many rows once for all threads, of few rows by each thread for itself,
 * so that none waits for another. */
#ifndef PLIMSOLL_ROOM_H
#define PLIMSOLL_ROOM_H

#include "pairs.h"
#include "team.h"
#include "tiles.h"
#include <omp.h>

/* Rows that each thread rounds for itself. */
#define OWN_ROWS 4
/* Bytes that the rounded rows of a large product take; the product goes over so many rows at a time. */
#define ROUNDED_BYTES (4L << 20)

/* What multiplies rows: vectors by fused multiply-adds, vectors of pairs (pairs.h), or tiles. */
enum way { IN_VECTORS, IN_PAIRS, IN_TILES };

/* The way of M rows. Vectors and tiles have the same bits, so tiles are used from as many rows on as it pays: codes of 8
 * bits are the dearest to widen. Pairs have an order of their own: where they work they multiply every number of rows. */
INLINE int way_of(int bits, long M)
{
    if (M >= (bits == 4 ? 3 : bits == 8 ? 8 : 4) && tiles_work()) return IN_TILES;
    return pairs_work() ? IN_PAIRS : IN_VECTORS;
}

/* Most rows of a register tile, and how many of its rows a tile has so that M rows fill all about equally. */
INLINE long most_high(int way) { return way == IN_TILES ? 2 * TILE : way == IN_PAIRS ? ROWS : PAIR_ROWS; }
INLINE long high_of(int way, long M)
{
    long most = most_high(way), tiles = (M + most - 1) / most;
    return way == IN_TILES ? most : (M + tiles - 1) / tiles;
}

/* Of K columns, each `group` filled up to whole blocks. */
INLINE long filled(long K, long group) { return K / group * BLOCKS(group) * BLOCK; }

/* Sums of x that weights with offsets need of a row: of each chunk of each group. */
#define CHUNK 256
INLINE long chunks_of(long K, long group) { return K / group * ((group + CHUNK - 1) / CHUNK); }

/* Bytes of a row of x as it is rounded. */
INLINE long rounded_bytes(int way, long K, long group)
{
    return way == IN_TILES ? 2 * filled(K, group) : 4 * (way == IN_PAIRS ? pairs_of(K, group) : K);
}

/* Bytes that a product keeps of a row of x: room for sums beside codes of any kind. */
INLINE long row_bytes(int bits, int way, long K, long group)
{
    return rounded_bytes(way, K, group) + (bits <= 8 ? 4 * chunks_of(K, group) : 0);
}

/* Rows of a product that are rounded at once: those of all M, if they fit. */
INLINE long rows_at_once(int way, long M, long K, long group)
{
    const long unit = way == IN_PAIRS ? 2 * ROWS : 2 * TILE;
    long most = ROUNDED_BYTES / rounded_bytes(way, K, group) / unit * unit;
    if (most < unit) most = unit;
    return M < most ? M : most;
}

/* Rows that M rows take the place of. */
INLINE long whole_rows(int way, long M)
{
    long high = way == IN_TILES ? TILE : high_of(way, M);
    return (M + high - 1) / high * high;
}

/* Rounds `rows` rows: into at.shared, waiting for all threads, or few of them into at.own. Returns where they lie:
 * tiles as tiles.h fills them; [tiles of high_of rows] of pairs as pairs.h fills them; or float32 [rows][K]. */
static inline const void *round_rows(const float *x, long rows, long K, long group, int way, room at)
{
    const long high = high_of(way, rows);
    if (way != IN_TILES && rows <= OWN_ROWS) {
        if (way == IN_PAIRS) fill_pairs(x, rows, rows, K, group, at.own);
        else
            for (long r = 0; r < rows; r++) round_row(x + r * K, (float *)at.own + r * K, K);
        return at.own;
    }
    if (way == IN_TILES) {
        _Pragma("omp for") for (long tile = 0; tile < (rows + TILE - 1) / TILE; tile++)
            fill_tile(x, rows, K, group, tile, at.shared);
    } else if (way == IN_PAIRS) {
        _Pragma("omp for") for (long row = 0; row < rows; row += high)
            fill_pairs(x + row * K, rows - row < high ? rows - row : high, high, K, group,
                       (uint32_t *)at.shared + row * pairs_of(K, group));
    } else {
        _Pragma("omp for") for (long r = 0; r < rows; r++) round_row(x + r * K, (float *)at.shared + r * K, K);
    }
    return at.shared;
}

/* Panels of codes of a task, and rows whose products wait for memory alone. */
#define PANELS_OF_CODES 8
#define FEW 2

/* Tasks of a product with codes: bands of `height` rows, each with so many shares of the panels. */
typedef struct {
    long height, bands, shares;
} tasks;

/* Of `rows` rows in tiles of `high`, at most `longest` to a band. */
INLINE tasks tasks_of(long rows, long longest, long high, long panels, long threads)
{
    tasks t;
    t.bands = (rows + longest - 1) / longest;
    t.height = ((rows + t.bands - 1) / t.bands + high - 1) / high * high;
    t.bands = (rows + t.height - 1) / t.height;
    t.shares = (panels + PANELS_OF_CODES - 1) / PANELS_OF_CODES;
    if (t.bands * t.shares < 4 * threads) t.shares = (4 * threads + t.bands - 1) / t.bands;
    /* Few rows: each thread gets as many panels as the next. */
    if (rows <= FEW) t.shares = threads * ((panels + PANELS_OF_CODES * threads - 1) / (PANELS_OF_CODES * threads));
    if (t.shares > panels) t.shares = panels;
    return t;
}

/* Column `k` of a row that begins a tile of `high` rows, as round_rows leaves it in pairs or in vectors. */
INLINE const void *row_at(int way, const void *x, long row, long k, long K, long group, long high)
{
    if (way == IN_PAIRS)
        return (const uint32_t *)x + row * pairs_of(K, group) + (k / group * ((group + 1) / 2) + k % group / 2) * high;
    return (const float *)x + row * K + k;
}

/* all[rows][2] += x w^T in pairs or in vectors. `ldx`: of pairs `high`, else K. */
INLINE void add_products(const int way, const int source, const int rows, long depth, const void *x, long ldx,
                         const char *w, vf *all)
{
    if (way == IN_PAIRS) add_pairs(source, rows, depth, x, ldx, w, all);
    else add_dots(source, rows, depth, x, ldx, w, all);
}

#endif
