/* Attention by AVX-512's VDPBF16PS over a cache of bfloat16 or of codes, which bfloat16 holds exactly: queries and
 * weights are rounded to bfloat16; scores, softmax and all sums are float32. `attention_in_pairs` says where; elsewhere
 * nothing else of it is called. */
#ifndef PLIMSOLL_ATTENTION_PAIRS_H
#define PLIMSOLL_ATTENTION_PAIRS_H

#include "attention.h"

/* Whether this processor attends to a cache of this kind in pairs: of dimensions, so of heads of an even number D. */
int attention_in_pairs(int cache, long D);
/* Floats that `rows` query rows of a tile need for one group of heads, a multiple of 64 bytes. */
long attention_pairs_scratch(const attention_job *job, long rows);
/* The rows of a tile, for the heads of groups [g, g + groups): block by block, as memory has them one after the other.
 * Scratch is of each. */
void attend_in_pairs(const attention_job *job, const tile *at, long g, long groups, float *scratch);

#endif
