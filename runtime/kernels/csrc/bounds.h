/* Indices are looked at before memory is: one that lies outside is an error of the caller, not a fault of the process.
 * `ids`, slots and blocks come from requests and the scheduler; a step looks at a few hundred of them. */
#ifndef PLIMSOLL_BOUNDS_H
#define PLIMSOLL_BOUNDS_H

#include "team.h"

/* What operations return. */
enum { DONE = 0, NO_MEMORY = 1, OUTSIDE = 2, APART = 3 };

/* Whether each of `count` indices is in [0, end). */
INLINE int all_within(const int64_t *indices, long count, long end)
{
    int within = 1;
    for (long i = 0; i < count; i++) within &= (uint64_t)indices[i] < (uint64_t)end;
    return within;
}

/* Whether the sequences own rows [0, T) in order, each no more than it has keys, and all their keys lie in `blocks`. */
INLINE int sequences_fit(const attention_job *job, long T, long blocks)
{
    if (job->starts[0] != 0 || job->starts[job->B] != T || job->S < 1 || job->D < 1) return 0;
    if (job->G < 1 || job->H < job->G || job->H % job->G) return 0;
    for (long b = 0; b < job->B; b++) {
        long rows = (long)job->starts[b + 1] - job->starts[b], keys = job->contexts[b];
        if (rows < 0 || keys < rows || keys > job->table_width * job->S) return 0;
        const int32_t *table = job->tables + b * job->table_width;
        for (long n = 0; n * job->S < keys; n++)
            if (table[n] < 0 || table[n] >= blocks) return 0;
    }
    return 1;
}

#endif
