/* Causal attention over the paged cache, by Milakov and Gimelshein's online softmax (arXiv 1805.02867), a cache block
 * at a time: keys and values of a block are read once for all query heads that share them.
 *
 * Invariant: a query row's sums run over its keys in ascending order, block by block, whatever tile, chunk or batch it
 * is computed in; keys it must not see enter as weight 0, which changes no bit. So chunked equals whole. */
#include "bounds.h"
#include "team.h"
#include <omp.h>
#include <stdlib.h>

/* Query rows (positions x heads of a group) that share a pass over the keys. */
#define TILE_ROWS 48
/* Rows from which widening a block beforehand costs less than in every register tile. */
#define WIDEN_ROWS 24
/* Stands for no key seen yet: below any score, and not so far that differences overflow. */
#define NOTHING -1e30f

INLINE v8f widen_bf16(const uint16_t *p) { return widen8(p); }
INLINE v8f widen_f32(const float *p) { return load8(p); }

/* y[rows][8 * vectors] (+)= x[rows][depth] w[depth][8 * vectors]. */
#define DEFINE_PRODUCT(KIND, C)                                                                                        \
    INLINE void fixed_##KIND(const int rows, const int vectors, const int add, long depth, const float *x, long ldx,   \
                             const C *w, long ldw, float *y, long ldy)                                                 \
    {                                                                                                                  \
        v8f sum[rows][2];                                                                                              \
        UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (v8f){0};                                        \
        for (long k = 0; k < depth; k++) {                                                                             \
            v8f b[2];                                                                                                  \
            UNROLL for (int v = 0; v < vectors; v++) b[v] = widen_##KIND(w + k * ldw + 8 * v);                         \
            UNROLL for (int r = 0; r < rows; r++)                                                                      \
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = madd8(fill8(x[r * ldx + k]), b[v], sum[r][v]);    \
        }                                                                                                              \
        UNROLL for (int r = 0; r < rows; r++)                                                                          \
            UNROLL for (int v = 0; v < vectors; v++) {                                                                 \
                float *out = y + r * ldy + 8 * v;                                                                      \
                store8(out, add ? load8(out) + sum[r][v] : sum[r][v]);                                                 \
            }                                                                                                          \
    }                                                                                                                  \
    INLINE void rows_##KIND(long rows, const int vectors, const int add, long depth, const float *x, long ldx,         \
                            const C *w, long ldw, float *y, long ldy)                                                  \
    {                                                                                                                  \
        switch (rows) {                                                                                                \
            PRODUCT(KIND, 1) PRODUCT(KIND, 2) PRODUCT(KIND, 3) PRODUCT(KIND, 4) PRODUCT(KIND, 5) PRODUCT(KIND, 6)      \
        }                                                                                                              \
    }                                                                                                                  \
    static void product_##KIND(long rows, long width, const int add, long depth, const float *x, long ldx, const C *w, \
                               long ldw, float *y, long ldy)                                                           \
    {                                                                                                                  \
        long tiles = (rows + 5) / 6;                                                                                   \
        for (long n = 0; n < width; n += 16)                                                                           \
            for (long t = 0; t < tiles; t++) {                                                                         \
                long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;                                     \
                const float *a = x + row * ldx;                                                                        \
                float *c = y + row * ldy + n;                                                                          \
                if (n + 16 <= width) {                                                                                 \
                    if (add) rows_##KIND(count, 2, 1, depth, a, ldx, w + n, ldw, c, ldy);                              \
                    else rows_##KIND(count, 2, 0, depth, a, ldx, w + n, ldw, c, ldy);                                  \
                } else rows_##KIND(count, 1, add, depth, a, ldx, w + n, ldw, c, ldy);                                  \
            }                                                                                                          \
    }
#define PRODUCT(KIND, R) case R: fixed_##KIND(R, vectors, add, depth, x, ldx, w, ldw, y, ldy); break;
DEFINE_PRODUCT(bf16, uint16_t)
DEFINE_PRODUCT(f32, float)

/* Few rows make little of a block: what comes next is asked of memory while they do. */
static void ask_for(const void *from, long bytes)
{
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i);
}

/* One row's scores of a block become weights; keys outside [low, high) weigh 0. Its sums so far are rescaled. */
static void soften(float *scores, long width, long low, long high, float *top, float *mass, float *mixed, long D)
{
    for (long i = 0; i < low && i < width; i++) scores[i] = -__builtin_inff();
    for (long i = high < 0 ? 0 : high; i < width; i++) scores[i] = -__builtin_inff();
    v8f most = load8(scores);
    for (long i = 8; i < width; i += 8) {
        v8f v = load8(scores + i);
        v8i more = v > most;
        most = (v8f)(((v8i)v & more) | ((v8i)most & ~more));
    }
    float highest = *top;
    for (int i = 0; i < 8; i++) highest = most[i] > highest ? most[i] : highest;
    v8f sum = load8(mass);
    if (highest > *top) {
        v8f shrink = vexp8((v8f){0} + (*top - highest));
        sum = sum * shrink;
        for (long d = 0; d < D; d += 8) store8(mixed + d, load8(mixed + d) * shrink);
        *top = highest;
    }
    v8f block = {0};
    for (long i = 0; i < width; i += 8) {
        v8f weight = vexp8(load8(scores + i) - highest);
        block = block + weight;
        store8(scores + i, weight);
    }
    store8(mass, sum + block);
}

static void cap_scores(float *scores, long width, float cap)
{
    /* tanh(x) is 1 - 2 / (e^2x + 1). */
    for (long i = 0; i < width; i += 8)
        store8(scores + i, cap - 2.0f * cap / (vexp8(load8(scores + i) * (2.0f / cap)) + 1.0f));
}

/* A block as float32, made once where enough rows will read it. */
static const float *widened_bf16(const uint16_t *block, float *spare, long count)
{
    for (long i = 0; i < count; i += 8) store8(spare + i, widen8(block + i));
    return spare;
}

static const float *widened_f32(const float *block, float *spare, long count)
{
    (void)spare, (void)count;
    return block;
}

/* Columns of a head of D in whole vectors. Keys lie [D, S], so that only values and their sums need them. */
static long whole_vectors(long D) { return (D + 7) / 8 * 8; }

/* The first `count` rows of D as float32 rows of W > D, zeros at their ends: no vector reaches into another row. */
#define DEFINE_PADDED(KIND, C, WIDEN)                                                                                  \
    static const float *padded_##KIND(const C *rows, float *spare, long count, long D, long W)                         \
    {                                                                                                                  \
        memset(spare, 0, count * W * sizeof(float));                                                                   \
        for (long r = 0; r < count; r++)                                                                               \
            for (long d = 0; d < D; d++) spare[r * W + d] = WIDEN(rows[r * D + d]);                                    \
        return spare;                                                                                                  \
    }
DEFINE_PADDED(bf16, uint16_t, from_bf16)
DEFINE_PADDED(f32, float, (float))

/* Query rows [first, last) of the step, all of sequence b, for the heads of group g. Rows lie position-major. */
#define DEFINE_ATTEND(KIND, C)                                                                                         \
    static void attend_##KIND(const attention_job *job, long b, long g, long first, long last, float *scratch)         \
    {                                                                                                                  \
        long D = job->D, W = whole_vectors(D), S = job->S, group = job->H / job->G, rows = (last - first) * group;     \
        float *q = scratch, *mixed = q + rows * D, *scores = mixed + rows * W, *mass = scores + rows * S;              \
        float *top = mass + rows * 8, *spare = top + rows;                                                             \
        for (long r = 0; r < rows; r++) {                                                                              \
            const float *from = job->q + (first + r / group) * job->q_row + (g * group + r % group) * job->q_head;     \
            for (long d = 0; d < D; d++) q[r * D + d] = from[d] * job->scale;                                          \
            top[r] = NOTHING;                                                                                          \
        }                                                                                                              \
        memset(mixed, 0, rows * W * sizeof(float));                                                                    \
        memset(mass, 0, rows * 8 * sizeof(float));                                                                     \
        long position = job->contexts[b] - (job->starts[b + 1] - first), reach = position + (last - first);            \
        long begin = job->window && position >= job->window ? (position - job->window + 1) / S : 0;                    \
        if (rows < WIDEN_ROWS)                                                                                         \
            ask_for((const C *)job->k_cache + (job->tables[b * job->table_width + begin] * job->G + g) * S * D,        \
                    S * D * sizeof(C));                                                                                \
        for (long n = begin; n * S < reach; n++) {                                                                     \
            long block = job->tables[b * job->table_width + n], here = reach - n * S < S ? reach - n * S : S;          \
            long width = (here + 15) / 16 * 16;                                                                        \
            const C *keys = (const C *)job->k_cache + (block * job->G + g) * S * D;                                    \
            const C *values = (const C *)job->v_cache + (block * job->G + g) * S * D;                                  \
            if (rows < WIDEN_ROWS) ask_for(values, width * D * sizeof(C));                                             \
            const float *wide = rows < WIDEN_ROWS ? 0 : widened_##KIND(keys, spare, S * D);                            \
            if (wide) product_f32(rows, width, 0, D, q, D, wide, S, scores, S);                                        \
            else product_##KIND(rows, width, 0, D, q, D, keys, S, scores, S);                                          \
            for (long r = 0; r < rows; r++) {                                                                          \
                long own = position + r / group - n * S, low = job->window ? own - job->window + 1 : 0;                \
                if (job->cap) cap_scores(scores + r * S, width, job->cap);                                             \
                soften(scores + r * S, width, low, own + 1, top + r, mass + r * 8, mixed + r * W, W);                  \
            }                                                                                                          \
            if (rows < WIDEN_ROWS && (n + 1) * S < reach)                                                              \
                ask_for((const C *)job->k_cache + (job->tables[b * job->table_width + n + 1] * job->G + g) * S * D,    \
                        S * D * sizeof(C));                                                                            \
            if (W != D) wide = padded_##KIND(values, spare, width, D, W);                                              \
            else wide = rows < WIDEN_ROWS ? 0 : widened_##KIND(values, spare, S * D);                                  \
            if (wide) product_f32(rows, W, 1, width, scores, S, wide, W, mixed, W);                                    \
            else product_##KIND(rows, D, 1, width, scores, S, values, D, mixed, D);                                    \
        }                                                                                                              \
        for (long r = 0; r < rows; r++) {                                                                              \
            float all = 0;                                                                                             \
            for (int i = 0; i < 8; i++) all += mass[r * 8 + i];                                                        \
            float *to = job->out + ((first + r / group) * job->H + g * group + r % group) * D;                         \
            for (long d = 0; d < D; d++) to[d] = mixed[r * W + d] / all;                                               \
        }                                                                                                              \
    }
DEFINE_ATTEND(bf16, uint16_t)
DEFINE_ATTEND(f32, float)

static long span_of(const attention_job *job)
{
    long group = job->H / job->G;
    return group < TILE_ROWS ? TILE_ROWS / group : 1;
}

void attention_tasks(const attention_job *job, long *first_task)
{
    long span = span_of(job), tasks = 0;
    for (long b = 0; b < job->B; b++) {
        first_task[b] = tasks;
        tasks += (job->starts[b + 1] - job->starts[b] + span - 1) / span * job->G;
    }
    first_task[job->B] = tasks;
}

long attention_scratch(const attention_job *job)
{
    long rows = span_of(job) * (job->H / job->G);
    long W = whole_vectors(job->D);
    return (rows * (job->D + W + job->S + 9) + job->S * W + 15) / 16 * 16;
}

void attention_team(const attention_job *job, const long *first_task, float *scratch)
{
    long span = span_of(job);
    /* Later tiles of a prompt see more keys: they go first, so that none is left alone at the end. */
#pragma omp for schedule(dynamic, 1)
    for (long task = first_task[job->B] - 1; task >= 0; task--) {
        long b = 0, end = job->B;
        while (end - b > 1) {
            long middle = (b + end) / 2;
            if (first_task[middle] <= task) b = middle;
            else end = middle;
        }
        long tile = (task - first_task[b]) / job->G, first = job->starts[b] + tile * span;
        long last = first + span < job->starts[b + 1] ? first + span : job->starts[b + 1];
        (job->narrow ? attend_bf16 : attend_f32)(job, b, (task - first_task[b]) % job->G, first, last, scratch);
    }
}

/* Returns DONE, NO_MEMORY or OUTSIDE. q [T, H, D] with strides; out dense [T, H*D]; window 0 and cap 0 are none. */
int attention(const float *q, long q_row, long q_head, const void *k_cache, const void *v_cache, int narrow, float *out,
              const int32_t *starts, const int32_t *contexts, const int32_t *tables, long T, long B, long table_width,
              long blocks, long H, long G, long S, long D, float scale, long window, float cap)
{
    attention_job job = {q, q_row, q_head, H, G, D, S, k_cache, v_cache, starts, contexts, tables, B, table_width, window,
                         scale, cap, out, narrow};
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
