/* Attention in AMX's tiles over a cache of bfloat16 or of codes. Queries and weights are rounded as in
 * attention_pairs.h; scores, softmax and all sums are float32. Rows of prompts and of decoding run in tiles alike, so
 * that they have one order of sums. Where `attention_in_tiles` says 0 nothing else of it is called. */
#ifndef PLIMSOLL_ATTENTION_TILES_H
#define PLIMSOLL_ATTENTION_TILES_H

#include "attention.h"

/* Query rows that share a pass over the keys where tiles multiply. */
#define ROWS_IN_TILES 64

/* Whether this processor attends to a cache of this kind in tiles. Then `attention_in_pairs` says so of pairs too. */
int attention_in_tiles(int cache, long D);
/* Floats that `rows` query rows need, a multiple of 64 bytes. */
long attention_tiles_scratch(const attention_job *job, long rows);
/* The rows of `at`, for the heads of group g. Tiles are taken. */
void attend_in_tiles(const attention_job *job, const tile *at, long g, float *scratch);

#endif
