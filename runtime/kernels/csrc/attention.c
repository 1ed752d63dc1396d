/* Causal attention over the paged cache, by Milakov and Gimelshein's online softmax (arXiv 1805.02867), a cache block
 * at a time: keys and values of a block are read once for all query heads that share them.
 *
 * Invariant: a query row's sums run over its keys in ascending order, block by block, whatever tile, chunk or batch it
 * is computed in; keys it must not see enter as weight 0, which changes no bit. So chunked equals whole. */
#include "bounds.h"
#include "cache.h"
#include "team.h"
#include <omp.h>
#include <stdlib.h>

/* Query rows (positions x heads of a group) that share a pass over the keys. */
#define TILE_ROWS 48
/* Rows from which widening a block beforehand costs less than in every register tile. */
#define WIDEN_ROWS 24
/* Stands for no key seen yet: below any score, and not so far that differences overflow. */
#define NOTHING -1e30f

/* How a factor of a product lies in memory: as the cache holds it, or the codes of 4 bits of one half. */
enum { OF_F32 = CACHE_F32, OF_BF16 = CACHE_BF16, OF_INT8 = CACHE_INT8, OF_LOW = CACHE_INT4, OF_HIGH };

/* Eight numbers from w[i] on. Codes become the whole numbers that they are: scales come later. */
INLINE v8f widen(const int of, const void *w, long i)
{
    if (of == OF_F32) return load8((const float *)w + i);
    if (of == OF_BF16) return widen8((const uint16_t *)w + i);
    v8b codes;
    memcpy(&codes, (const uint8_t *)w + i, sizeof codes);
    if (of == OF_LOW) codes &= 15;
    if (of == OF_HIGH) codes >>= 4;
#if defined(__AVX2__)
    return (v8f)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)codes)));
#else
    return __builtin_convertvector(__builtin_convertvector(codes, v8i), v8f);
#endif
}

/* y[rows][8 * vectors] (+)= x[rows][depth] w[depth][8 * vectors]. `n`: the first column of w. */
INLINE void fixed(const int of, const int rows, const int vectors, const int add, long depth, const float *x, long ldx,
                  const void *w, long n, long ldw, float *y, long ldy)
{
    v8f sum[rows][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (v8f){0};
    for (long k = 0; k < depth; k++) {
        v8f b[2];
        UNROLL for (int v = 0; v < vectors; v++) b[v] = widen(of, w, n + k * ldw + 8 * v);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = madd8(fill8(x[r * ldx + k]), b[v], sum[r][v]);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *out = y + r * ldy + n + 8 * v;
            store8(out, add ? load8(out) + sum[r][v] : sum[r][v]);
        }
}

INLINE void some_rows(const int of, long rows, const int vectors, const int add, long depth, const float *x, long ldx,
                      const void *w, long n, long ldw, float *y, long ldy)
{
#define FIXED(R) case R: fixed(of, R, vectors, add, depth, x, ldx, w, n, ldw, y, ldy); break;
    switch (rows) {
        FIXED(1) FIXED(2) FIXED(3) FIXED(4) FIXED(5) FIXED(6)
    }
}

INLINE void product_of(const int of, long rows, long width, const int add, long depth, const float *x, long ldx,
                       const void *w, long ldw, float *y, long ldy)
{
    long tiles = (rows + 5) / 6;
    for (long n = 0; n < width; n += 16)
        for (long t = 0; t < tiles; t++) {
            long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
            const float *a = x + row * ldx;
            float *c = y + row * ldy;
            if (n + 16 <= width) some_rows(of, count, 2, add, depth, a, ldx, w, n, ldw, c, ldy);
            else some_rows(of, count, 1, add, depth, a, ldx, w, n, ldw, c, ldy);
        }
}

/* y [rows, width] (+)= x [rows, depth] w [depth, width]; `width` in eights. One function for each kind of w. */
#define DEFINE_PRODUCT(NAME, OF)                                                                                       \
    static void NAME##_made(long rows, long width, long depth, const float *x, long ldx, const void *w, long ldw,      \
                            float *y, long ldy)                                                                        \
    {                                                                                                                  \
        product_of(OF, rows, width, 0, depth, x, ldx, w, ldw, y, ldy);                                                 \
    }                                                                                                                  \
    static void NAME##_added(long rows, long width, long depth, const float *x, long ldx, const void *w, long ldw,     \
                             float *y, long ldy)                                                                       \
    {                                                                                                                  \
        product_of(OF, rows, width, 1, depth, x, ldx, w, ldw, y, ldy);                                                 \
    }
DEFINE_PRODUCT(f32, OF_F32)
DEFINE_PRODUCT(bf16, OF_BF16)
DEFINE_PRODUCT(int8, OF_INT8)
DEFINE_PRODUCT(low, OF_LOW)
DEFINE_PRODUCT(high, OF_HIGH)
typedef void product(long, long, long, const float *, long, const void *, long, float *, long);
static product *const MADE[] = {f32_made, bf16_made, int8_made, low_made, high_made};
static product *const ADDED[] = {f32_added, bf16_added, int8_added, low_added, high_added};

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

/* Columns of a head of D in whole vectors. Keys lie [D, S], so that only values and their sums need them. */
static long whole_vectors(long D) { return (D + 7) / 8 * 8; }

/* `count` numbers of a block from `from` on as float32, made once where enough rows will read them. */
static void widen_run(int of, const void *from, float *to, long count)
{
    long i = 0;
    switch (of) {
    case OF_F32: memcpy(to, from, count * sizeof(float)); break;
    case OF_BF16: for (; i < count; i += 8) store8(to + i, widen(OF_BF16, from, i)); break;
    case OF_INT8: for (; i < count; i += 8) store8(to + i, widen(OF_INT8, from, i)); break;
    case OF_LOW: for (; i < count; i += 8) store8(to + i, widen(OF_LOW, from, i)); break;
    default: for (; i < count; i += 8) store8(to + i, widen(OF_HIGH, from, i));
    }
}

/* One number of a block's values. */
static float one_value(int cache, const void *values, long row, long d, long D)
{
    const uint8_t *codes = values;
    if (cache == CACHE_F32) return ((const float *)values)[row * D + d];
    if (cache == CACHE_BF16) return from_bf16(((const uint16_t *)values)[row * D + d]);
    if (cache == CACHE_INT8) return codes[row * D + d];
    return d < D / 2 ? codes[row * (D / 2) + d] & 15 : codes[row * (D / 2) + d - D / 2] >> 4;
}

/* scores [rows, width] of a block's keys: of codes as they are where keys are codes. Halves of keys of 4 bits are summed
 * one after the other, however many rows there are. */
static void score(const attention_job *job, const void *keys, long rows, long width, const float *q, float *spare,
                  float *scores)
{
    long D = job->D, S = job->S, part = job->cache == CACHE_INT4 ? D / 2 : D;
    for (int of = job->cache, i = 0; i * part < D; of++, i++) {
        const void *w = keys;
        if (rows >= WIDEN_ROWS && of != OF_F32) widen_run(of, keys, spare, S * part), w = spare;
        (i ? ADDED : MADE)[w == keys ? of : OF_F32](rows, width, part, q + i * part, D, w, S, scores, S);
    }
}

/* mixed [rows, W] += weights [rows, width] times a block's values. */
static void mix(const attention_job *job, const void *values, long rows, long width, const float *weights, float *spare,
                float *mixed, long stride)
{
    long D = job->D, W = whole_vectors(D), S = job->S, part = job->cache == CACHE_INT4 ? D / 2 : D;
    if (part % 8) {
        /* Zeros at the ends of rows: no vector reaches into another row. */
        memset(spare, 0, width * W * sizeof(float));
        for (long r = 0; r < width; r++)
            for (long d = 0; d < D; d++) spare[r * W + d] = one_value(job->cache, values, r, d, D);
        f32_added(rows, W, width, weights, S, spare, W, mixed, stride);
        return;
    }
    for (int of = job->cache, i = 0; i * part < D; of++, i++) {
        const void *w = values;
        if (rows >= WIDEN_ROWS && of != OF_F32) widen_run(of, values, spare, width * part), w = spare;
        ADDED[w == values ? of : OF_F32](rows, part, width, weights, S, w, part, mixed + i * part, stride);
    }
}

/* Scores of codes become scores of keys: q (minimum + code * scale) summed is minimum * sum(q) + scale * (q code). */
static void scale_scores(float *scores, long width, const uint16_t *scales, const uint16_t *minimums, float sum_of_q)
{
    for (long i = 0; i < width; i += 8) {
        v8f offset = widen8_f16(minimums + i) * sum_of_q;
        store8(scores + i, madd8(load8(scores + i), widen8_f16(scales + i), offset));
    }
}

/* Weights of values become weights of their codes. What the minimums add to every column goes into `base` [8]. */
static void scale_weights(float *weights, long width, const uint16_t *scales, const uint16_t *minimums, float *base)
{
    v8f sum = load8(base);
    for (long i = 0; i < width; i += 8) {
        v8f weight = load8(weights + i);
        sum = madd8(weight, widen8_f16(minimums + i), sum);
        store8(weights + i, weight * widen8_f16(scales + i));
    }
    store8(base, sum);
}

/* Query rows [first, last) of the step, all of sequence b, for the heads of group g. Rows lie position-major. */
static void attend(const attention_job *job, long b, long g, long first, long last, float *scratch)
{
    long D = job->D, W = whole_vectors(D), S = job->S, group = job->H / job->G, rows = (last - first) * group;
    long bytes = head_bytes(job->cache, S, D), codes = S * vector_bytes(job->cache, D);
    /* A row of sums ends with what the minimums of its values add, so that both are rescaled together. */
    long stride = has_codes(job->cache) ? W + 8 : W;
    float *q = scratch, *mixed = q + rows * D, *scores = mixed + rows * stride, *mass = scores + rows * S;
    float *top = mass + rows * 8, *sums_of_q = top + rows, *spare = sums_of_q + rows;
    for (long r = 0; r < rows; r++) {
        const float *from = job->q + (first + r / group) * job->q_row + (g * group + r % group) * job->q_head;
        for (long d = 0; d < D; d++) q[r * D + d] = from[d] * job->scale;
        if (job->cache == CACHE_INT4) spread(q + r * D, D);
        sums_of_q[r] = 0;
        for (long d = 0; d < D; d++) sums_of_q[r] += q[r * D + d];
        top[r] = NOTHING;
    }
    memset(mixed, 0, rows * stride * sizeof(float));
    memset(mass, 0, rows * 8 * sizeof(float));
    long position = job->contexts[b] - (job->starts[b + 1] - first), reach = position + (last - first);
    long begin = job->window && position >= job->window ? (position - job->window + 1) / S : 0;
    const int32_t *table = job->tables + b * job->table_width;
    if (rows < WIDEN_ROWS) ask_for((const char *)job->k_cache + (table[begin] * job->G + g) * bytes, bytes);
    for (long n = begin; n * S < reach; n++) {
        long place = (table[n] * job->G + g) * bytes, here = reach - n * S < S ? reach - n * S : S;
        long width = (here + 15) / 16 * 16;
        const char *keys = (const char *)job->k_cache + place, *values = (const char *)job->v_cache + place;
        const uint16_t *k_scales = (const uint16_t *)(keys + codes), *v_scales = (const uint16_t *)(values + codes);
        if (rows < WIDEN_ROWS) ask_for(values, has_codes(job->cache) ? bytes : vector_bytes(job->cache, width * D));
        score(job, keys, rows, width, q, spare, scores);
        for (long r = 0; r < rows; r++) {
            long own = position + r / group - n * S, low = job->window ? own - job->window + 1 : 0;
            float *row = scores + r * S;
            if (has_codes(job->cache)) scale_scores(row, width, k_scales, k_scales + S, sums_of_q[r]);
            if (job->cap) cap_scores(row, width, job->cap);
            soften(row, width, low, own + 1, top + r, mass + r * 8, mixed + r * stride, stride);
            if (has_codes(job->cache)) scale_weights(row, width, v_scales, v_scales + S, mixed + r * stride + W);
        }
        if (rows < WIDEN_ROWS && (n + 1) * S < reach)
            ask_for((const char *)job->k_cache + (table[n + 1] * job->G + g) * bytes, bytes);
        mix(job, values, rows, width, scores, spare, mixed, stride);
    }
    for (long r = 0; r < rows; r++) {
        float all = 0, base = 0, *to = job->out + ((first + r / group) * job->H + g * group + r % group) * D;
        for (int i = 0; i < 8; i++) all += mass[r * 8 + i];
        for (long i = W; i < stride; i++) base += mixed[r * stride + i];
        for (long d = 0; d < D; d++) to[d] = (mixed[r * stride + d] + base) / all;
        if (job->cache == CACHE_INT4) spread(to, D);
    }
}

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
    long stride = has_codes(job->cache) ? W + 8 : W;
    return (rows * (job->D + stride + job->S + 10) + job->S * W + 15) / 16 * 16;
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
        attend(job, b, (task - first_task[b]) % job->G, first, last, scratch);
    }
}

/* Returns DONE, NO_MEMORY or OUTSIDE. q [T, H, D] with strides; out dense [T, H*D]; window 0 and cap 0 are none. */
int attention(const float *q, long q_row, long q_head, const void *k_cache, const void *v_cache, int cache, float *out,
              const int32_t *starts, const int32_t *contexts, const int32_t *tables, long T, long B, long table_width,
              long blocks, long H, long G, long S, long D, float scale, long window, float cap)
{
    attention_job job = {q, q_row, q_head, H, G, D, S, k_cache, v_cache, starts, contexts, tables, B, table_width, window,
                         scale, cap, out, cache};
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
