#include "room.h"

static long in_lines(long bytes) { return (bytes + 63) / 64 * 64; }

needs needs_of(int bits, long M, long K, long group)
{
    needs all = {0, 0};
    if (bits == 32) return all;
    const int tiles = in_tiles(bits, M);
    long rows = rows_at_once(M, K, tiles), whole = (rows + TILE - 1) / TILE * TILE;
    if (!tiles) all.own = in_lines((M < FEW_ROWS ? M : FEW_ROWS) * row_bytes(bits, 0, K, group));
    if (tiles || M > FEW_ROWS) all.shared = in_lines(whole * row_bytes(bits, tiles, K, group));
    return all;
}
