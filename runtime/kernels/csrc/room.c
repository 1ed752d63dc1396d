#include "room.h"

static long in_lines(long bytes) { return (bytes + 63) / 64 * 64; }

needs needs_of(int bits, long M, long K, long group)
{
    needs all = {0, 0};
    if (bits == 32) return all;
    const int way = way_of(bits, M);
    long rows = rows_at_once(way, M, K, group);
    if (way != IN_TILES) all.own = in_lines((M < OWN_ROWS ? M : OWN_ROWS) * row_bytes(bits, way, K, group));
    if (way == IN_TILES || M > OWN_ROWS) all.shared = in_lines(whole_rows(way, rows) * row_bytes(bits, way, K, group));
    return all;
}
