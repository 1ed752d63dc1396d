/* Rows of 8 bits in AMX's tiles of bytes, against codes. The sums of a piece are exact, and scales follow in the order
 * of int8.h, so that a row has the bits that it has in vectors. Where `byte_tiles_work` says 0 nothing of it is
 * called. */
#ifndef PLIMSOLL_INT8_TILES_H
#define PLIMSOLL_INT8_TILES_H

#include "meet_int8.h"

/* This thread's tiles, for groups of so many columns; `drop_tiles` gives them back. */
void take_byte_tiles(long group);
/* y [rows][PANEL] = from + up to BYTE_TILE rows against a chunk. x: the first row, where the chunk begins. Each row
 * lies as quantize_rows leaves one alone, `words` words after the one before. Codes of weights are unsigned. */
void chunk_in_byte_tiles(const chunk *c, int offset, int lone, long rows, tile x, long words, const float *from,
                         long ldf, float *y, long ldy);

#endif
