/* What one pass over the cache of a sequence is: the query rows of a tile, and the blocks that they see. */
#ifndef PLIMSOLL_ATTENTION_H
#define PLIMSOLL_ATTENTION_H

#include "team.h"

/* Query rows (positions x heads of a group) that share a pass over the keys. */
#define TILE_ROWS 48
/* Stands for no key seen yet: below any score, and not so far that differences overflow. */
#define NOTHING -1e30f
/* Rows that make so little of a block that the next one is asked of memory meanwhile. */
#define PREFETCH_ROWS 24

/* Rows [first, last) of the step, all of sequence b. Rows of a tile lie position-major, `group` heads a position. */
typedef struct {
    long first, last, group, rows;
    /* The first row's position, and the end of what the last one sees. */
    long position, reach;
    /* The first block that any row sees, and the blocks of the sequence. */
    long begin;
    const int32_t *table;
} tile;

INLINE tile tile_of(const attention_job *job, long b, long first, long last)
{
    long group = job->H / job->G, position = job->contexts[b] - (job->starts[b + 1] - first);
    long begin = job->window && position >= job->window ? (position - job->window + 1) / job->S : 0;
    return (tile){first, last, group, (last - first) * group, position, position + last - first, begin,
                  job->tables + b * job->table_width};
}

INLINE const float *query(const attention_job *job, const tile *at, long g, long r)
{
    return job->q + (at->first + r / at->group) * job->q_row + (g * at->group + r % at->group) * job->q_head;
}

INLINE float *answer(const attention_job *job, const tile *at, long g, long r)
{
    return job->out + ((at->first + r / at->group) * job->H + g * at->group + r % at->group) * job->D;
}

/* Keys of block n that some row of the tile sees, in sixteens. */
INLINE long keys_of(const attention_job *job, const tile *at, long n)
{
    long here = at->reach - n * job->S < job->S ? at->reach - n * job->S : job->S;
    return (here + 15) / 16 * 16;
}

/* Row r sees keys [low, high) of block n; both may lie outside of the block. */
INLINE void seen_by(const attention_job *job, const tile *at, long n, long r, long *low, long *high)
{
    long own = at->position + r / at->group - n * job->S;
    *low = job->window ? own - job->window + 1 : 0;
    *high = own + 1;
}

/* Floats that `rows` query rows need where vectors multiply, a multiple of 64 bytes. */
long attention_vectors_scratch(const attention_job *job, long rows);
/* The rows of a tile, for the heads of group g. */
void attend_in_vectors(const attention_job *job, const tile *at, long g, float *scratch);

/* Few rows make little of a block: what comes next is asked of memory while they do. */
INLINE void ask_for_all(const void *from, long bytes)
{
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i);
}

#endif
