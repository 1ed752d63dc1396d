/* Attention's tasks, and the threads that share them. */
#include "attention_pairs.h"
#include "attention_tiles.h"
#include "bounds.h"
#include "tiles.h"
#include <omp.h>
#include <stdlib.h>

/* Positions of a task. */
static long span_of(const attention_job *job)
{
    long group = job->H / job->G, rows = attention_in_tiles(job->cache, job->D) ? ROWS_IN_TILES : TILE_ROWS;
    return group < rows ? rows / group : 1;
}

/* Groups of heads of a task of sequence b: of few rows as many as make no more rows than a task has at most, as their
 * keys and values lie one after the other. The first sequences, as many as there are threads, have tasks of one group:
 * these come last, and no thread waits long. */
static long groups_of(const attention_job *job, long b)
{
    const long heads = job->H / job->G, rows = (job->starts[b + 1] - job->starts[b]) * heads;
    long groups = job->G;
    if (!attention_in_pairs(job->cache, job->D) || attention_in_tiles(job->cache, job->D)) return 1;
    if (rows >= PREFETCH_ROWS || b < omp_get_max_threads()) return 1;
    while (groups > 1 && (groups * rows > span_of(job) * heads || job->G % groups)) groups--;
    return groups;
}

void attention_tasks(const attention_job *job, long *first_task)
{
    long span = span_of(job), tasks = 0;
    for (long b = 0; b < job->B; b++) {
        first_task[b] = tasks;
        tasks += (job->starts[b + 1] - job->starts[b] + span - 1) / span * (job->G / groups_of(job, b));
    }
    first_task[job->B] = tasks;
}

long attention_scratch(const attention_job *job)
{
    const long rows = span_of(job) * (job->H / job->G);
    if (attention_in_tiles(job->cache, job->D)) return attention_tiles_scratch(job, rows);
    /* Each group of a task begins on lines of its own. */
    if (attention_in_pairs(job->cache, job->D)) return attention_pairs_scratch(job, rows) + 64 * job->G;
    return attention_vectors_scratch(job, rows);
}

/* The rows of a task and its groups of heads, from g on. */
static tile tile_of_task(const attention_job *job, const long *first_task, long span, long task, long *g, long *groups)
{
    long b = 0, end = job->B;
    while (end - b > 1) {
        long middle = (b + end) / 2;
        if (first_task[middle] <= task) b = middle;
        else end = middle;
    }
    const long spans = (job->starts[b + 1] - job->starts[b] + span - 1) / span;
    const long parts = (first_task[b + 1] - first_task[b]) / spans;
    const long first = job->starts[b] + (task - first_task[b]) / parts * span;
    *groups = job->G / parts;
    *g = (task - first_task[b]) % parts * *groups;
    return tile_of(job, b, first, first + span < job->starts[b + 1] ? first + span : job->starts[b + 1]);
}

/* Queries of the task that this thread takes next, most likely, into the second cache: they lie rows apart. */
static void ask_for_queries(const attention_job *job, const long *first_task, long span, long task)
{
    long g, groups;
    const tile at = tile_of_task(job, first_task, span, task, &g, &groups);
    for (long r = 0; r < at.rows; r++)
        for (long d = 0; d < job->D; d += 16) __builtin_prefetch(query(job, &at, g, r) + d, 0, 2);
}

void attention_team(const attention_job *job, const long *first_task, float *scratch)
{
    const long span = span_of(job), threads = omp_get_num_threads();
    const int in_pairs = attention_in_pairs(job->cache, job->D), in_tiles = attention_in_tiles(job->cache, job->D);
    if (in_tiles) take_tiles();
    /* Later tiles of a prompt see more keys: they go first, so that none is left alone at the end. */
#pragma omp for schedule(dynamic, 1)
    for (long task = first_task[job->B] - 1; task >= 0; task--) {
        long g, groups;
        const tile at = tile_of_task(job, first_task, span, task, &g, &groups);
        if (at.rows >= PREFETCH_ROWS && task >= threads) ask_for_queries(job, first_task, span, task - threads);
        if (in_tiles) attend_in_tiles(job, &at, g, scratch);
        else if (in_pairs) attend_in_pairs(job, &at, g, groups, scratch);
        else attend_in_vectors(job, &at, g, scratch);
    }
    if (in_tiles) drop_tiles();
}

/* Returns DONE, NO_MEMORY or OUTSIDE. q [T, H, D] with strides; out dense [T, H*D]; window 0 and cap 0 are none. */
int attention(const float *q, long q_row, long q_head, const void *k_cache, const void *v_cache, int cache, float *out,
              const int32_t *starts, const int32_t *contexts, const int32_t *tables, long T, long B, long table_width,
              long blocks, long H, long G, long S, long D, float scale, long window, float cap)
{
    attention_job job = {q, q_row, q_head, H, G, D, S, k_cache, v_cache, starts, contexts, tables, B, table_width,
                         window, scale, cap, out, cache};
    if (!sequences_fit(&job, T, blocks)) return OUTSIDE;
    long share = attention_scratch(&job), *first_task = malloc((B + 1) * sizeof(long));
    float *scratch = aligned_alloc(64, omp_get_max_threads() * share * sizeof(float));
    int failed = !first_task || !scratch;
    if (!failed) {
        attention_tasks(&job, first_task);
#pragma omp parallel
        attention_team(&job, first_task, scratch + omp_get_thread_num() * share);
    }
    free(scratch);
    free(first_task);
    return failed ? NO_MEMORY : DONE;
}
