/* Tasks of a parallel region, shared out among its threads. Each has a part of its own and goes through it in order:
 * weights then come from memory in one stream a thread, which is quickest. A thread that is done takes from the end of
 * what others have left, so that nothing waits for one that was held up. */
#ifndef PLIMSOLL_PARTS_H
#define PLIMSOLL_PARTS_H

#include "vec.h"
#include <omp.h>
#include <stdatomic.h>

/* What is left of a thread's part: its first task, its end and the turn they belong to, in one word that changes as a
 * whole. A word of an earlier turn is a part that no thread has begun. `turn` is its owner's alone. All are 0 before a
 * region begins. */
typedef struct {
    _Atomic uint64_t left;
    long turn;
    char apart[64 - sizeof(uint64_t) - sizeof(long)];
} part;

/* Of a first task and of an end; the turn has the rest. */
#define TASK_BITS 24
#define TASK_MASK ((1l << TASK_BITS) - 1)

typedef struct {
    long first, end;
} range;

INLINE range range_of(uint64_t word, long turn, long count, long thread, long threads)
{
    if (word >> 2 * TASK_BITS == (uint64_t)turn) return (range){word & TASK_MASK, word >> TASK_BITS & TASK_MASK};
    return (range){count * thread / threads, count * (thread + 1) / threads};
}

INLINE uint64_t word_of(range left, long turn)
{
    return (uint64_t)turn << 2 * TASK_BITS | (uint64_t)left.end << TASK_BITS | (uint64_t)left.first;
}

/* All threads call it before they ask for tasks; a barrier lies between two turns. */
INLINE void next_turn(part *parts) { parts[omp_get_thread_num()].turn++; }

/* One of `count` tasks that no thread has had in this turn, or -1. Fewer than 2^24 tasks, and 2^16 turns. */
static inline long next_task(part *parts, long count)
{
    const long me = omp_get_thread_num(), threads = omp_get_num_threads(), turn = parts[me].turn;
    for (long of = me; of >= 0;) {
        uint64_t word = atomic_load(&parts[of].left);
        range left = range_of(word, turn, count, of, threads);
        while (left.first < left.end) {
            const range then = {left.first + (of == me), left.end - (of != me)};
            if (atomic_compare_exchange_weak(&parts[of].left, &word, word_of(then, turn)))
                return of == me ? left.first : then.end;
            left = range_of(word, turn, count, of, threads);
        }
        of = -1;
        for (long i = 0, most = 0; i < threads; i++) {
            left = range_of(atomic_load(&parts[i].left), turn, count, i, threads);
            if (left.end - left.first > most) most = left.end - left.first, of = i;
        }
    }
    return -1;
}

#endif
