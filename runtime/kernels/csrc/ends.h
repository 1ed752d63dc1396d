/* What the sums of a group are multiplied by and added to, read from where quant.h has it. */
#ifndef PLIMSOLL_ENDS_H
#define PLIMSOLL_ENDS_H

#include "dots.h"
#include "quant.h"

/* Scales [PANEL], then offsets [PANEL], of a group of a panel as floats. `super`: as group_at leaves it. */
INLINE void load_ends(const int bits, int kind, const char *from, const char *super, float *ends)
{
    const char *zeros = from + PANEL * scale_bytes(kind);
    UNROLL for (int v = 0; v < 2; v++) {
        vf scale, offset = {0};
        if (in_supers(kind)) {
            scale = load_scale(SCALE_F16, super, v) * load_bytes(from + v * LANES);
            if (kind == SCALE_BYTE_MINIMUM)
                offset = load_scale(SCALE_F16, super + 2 * PANEL, v) * load_bytes(zeros + v * LANES);
        } else {
            scale = load_scale(kind, from, v);
            if (kind == SCALE_F16_MINIMUM) offset = load_scale(SCALE_F16, zeros, v);
            else if (bits == 4) offset = -load_bytes(zeros + v * LANES) * scale;
        }
        if (bits == 4 && has_minimum(kind)) offset = madd(fill(8), scale, offset);
        store(ends + v * LANES, scale), store(ends + PANEL + v * LANES, offset);
    }
}

#endif
