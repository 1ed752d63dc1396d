/* Products of many rows in AMX's tiles: 16 rows x 16 outputs x BLOCK columns an instruction. In builds without vectors
 * of 512 bits, and on processors that have no such tiles, `tiles_work` says 0 and nothing else is called. */
#ifndef PLIMSOLL_TILES_H
#define PLIMSOLL_TILES_H

#include "dots.h"

#define TILE 16

/* Whether this processor multiplies in tiles, and the kernel lets this process do so. */
int tiles_work(void);
/* The same of tiles of bytes. */
int byte_tiles_work(void);
/* A thread's tiles: taken before it multiplies, given back after. */
void take_tiles(void);
void drop_tiles(void);

/* x [rows][K] -> rounded, in tiles [ceil(rows / TILE)][blocks][TILE][BLOCK]; each `group` columns begin a block, and
 * what is not there is 0. `tile`: which of the tiles of rows. */
void fill_tile(const float *x, long rows, long K, long group, long tile, uint16_t *out);

/* y [count * TILE][PANEL], rows `ldy` apart, = from + x w^T over `blocks` blocks of one panel. `x`: of `count` (1 or 2)
 * tiles of rows, `tile` numbers apart. `from`: rows `ldf` apart. `ahead`: so many bytes after a
 * block are asked of memory while one tile of rows meets it; 0 is nothing. */
void multiply_tiles(int count, const uint16_t *x, long tile, const uint16_t *w, long blocks, long ahead,
                    const float *from, long ldf, float *y, long ldy);
#endif
