/* One row's numbers do not depend on the rows beside it. A score is one sum over pairs of dimensions, a block's part of
 * an output one sum over pairs of positions that begin at the block, both in the order of `pairs.h`; keys that a row
 * does not see weigh 0. The sum of weights has 16 lanes. Of floats it is of the rounded weights, so that they add up to
 * 1. Blocks follow each other in ascending order, and what came before shrinks where a block has a higher score. */
#include "attention_pairs.h"
#include "cache.h"
#include "pairs.h"

#if HAVE_PAIRS && defined(__AVX512BW__)
#include "block_pairs.h"
#include "weigh.h"

/* A register tile: TALL rows and two vectors of columns, or FLAT rows and four. */
#define TALL 12
#define FLAT 6

int attention_in_pairs(int cache, long D) { return cache != CACHE_F32 && D % 2 == 0 && pairs_exist(); }

static long in_sixteens(long count) { return (count + 15) / 16 * 16; }

long attention_pairs_scratch(const attention_job *job, long rows)
{
    long stride = in_sixteens(job->D) + (has_codes(job->cache) ? 16 : 0);
    const long made = made_once(job, rows) ? job->D / 2 * job->S : 0;
    return in_sixteens(rows * job->D / 2) + rows * (stride + job->S + 16) + 2 * in_sixteens(rows) + in_sixteens(made);
}

static void narrow_row(const float *from, long count, uint16_t *to)
{
    for (long i = 0; i < count; i += 32) {
        uint32_t there = count - i >= 32 ? ~0u : (1u << (count - i)) - 1;
        vf low = (vf)_mm512_maskz_loadu_ps((__mmask16)there, from + i);
        vf high = (vf)_mm512_maskz_loadu_ps((__mmask16)(there >> 16), from + i + 16);
        _mm512_mask_storeu_epi16(to + i, there, (__m512i)narrowed(low, high));
    }
}

/* What comes next in memory: lines that are asked for while a product runs, some with each pair of rows of w. */
typedef struct {
    const char *at;
    long lines;
} ahead;

INLINE long lines_of(long bytes) { return (bytes + 63) / 64; }

/* y [rows][vectors] =, or with `add` +=, x w over pairs of rows of w, ldw numbers or bytes apart. `there`: columns of
 * the last vectors. `next`: asks for so many lines with each pair. */
INLINE void pair_tile(const int of, const int rows, const int vectors, uint32_t there, int add, long pairs,
                      const uint32_t *x, long ldx, const void *factor, long ldw, float *y, long ldy, ahead next)
{
    const uint8_t *w = factor, *plane = w + pairs * ldw;
    const long odd = of == OF_BF16 ? 2 * ldw : ldw, step = of == OF_SIX ? ldw : of == OF_PAIRS ? 4 * ldw : 2 * odd;
    /* Of a size that is known before anything is inlined, as in dots.h. */
    vf sum[2 * TALL];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) sum[r * vectors + v] = (vf){0};
    for (long k = 0; k < pairs; k++, w += step) {
        vu b[4];
        for (long line = 0; line < next.lines; line++, next.at += 64) ask_for(next.at);
        if (of == OF_BF16)
            UNROLL for (int v = 0; v < vectors; v += 2)
                interleave((const uint16_t *)w + 16 * v, (const uint16_t *)(w + odd) + 16 * v, there, b + v, b + v + 1);
        else
            UNROLL for (int v = 0; v < vectors; v++) {
                const uint8_t *at = w + (of == OF_PAIRS ? 64 : 16) * v;
                if (of == OF_PAIRS) memcpy(b + v, at, sizeof *b);
                else if (of == OF_BYTES) b[v] = byte_pairs(at, at + odd, there);
                else if (of == OF_SIX) b[v] = six_pairs(at, plane + k / 2 * ldw + 16 * v, (int)(k % 2 * 4));
                else b[v] = half_pairs(at, at + odd, of == OF_HIGH ? 4 : 0, there);
            }
        UNROLL for (int r = 0; r < rows; r++) {
            vu both = x[r * ldx + k] - (vu){0};
            UNROLL for (int v = 0; v < vectors; v++)
                sum[r * vectors + v] = add_pair(sum[r * vectors + v], both, b[v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *out = y + r * ldy + 16 * v;
            store(out, add ? load(out) + sum[r * vectors + v] : sum[r * vectors + v]);
        }
}

INLINE void some_rows(const int of, long rows, long columns, int add, long pairs, const uint32_t *x, long ldx,
                      const void *w, long ldw, float *y, long ldy, ahead next)
{
    const uint32_t there = columns >= 16 ? 0xffff : (1u << columns) - 1;
#define TILE(R, VECTORS, THERE)                                                                                        \
    case R: pair_tile(of, R, VECTORS, THERE, add, pairs, x, ldx, w, ldw, y, ldy, next); break;
#define SIX(VECTORS, THERE)                                                                                            \
    TILE(1, VECTORS, THERE) TILE(2, VECTORS, THERE) TILE(3, VECTORS, THERE)                                            \
    TILE(4, VECTORS, THERE) TILE(5, VECTORS, THERE) TILE(6, VECTORS, THERE)
#define TWELVE(VECTORS, THERE)                                                                                         \
    SIX(VECTORS, THERE)                                                                                                \
    TILE(7, VECTORS, THERE) TILE(8, VECTORS, THERE) TILE(9, VECTORS, THERE)                                            \
    TILE(10, VECTORS, THERE) TILE(11, VECTORS, THERE) TILE(12, VECTORS, THERE)
    if (columns >= 64 && rows <= FLAT) switch (rows) { SIX(4, ~0u) }
    else if (columns >= 32) switch (rows) { TWELVE(2, ~0u) }
    else switch (rows) { TWELVE(1, there) }
}

/* y [rows, columns] =, or with `add` +=, x [rows, 2 * pairs] w [2 * pairs, columns]. Columns of y from `columns` to the
 * next sixteen become, or get, 0. Making pairs of codes costs more, so more rows share it. Asks for all lines of `next`
 * meanwhile. */
#define DEFINE_PRODUCT(NAME, OF)                                                                                       \
    static void NAME(long rows, long columns, int add, long pairs, const uint32_t *x, long ldx, const void *w,         \
                     long ldw, float *y, long ldy, ahead next)                                                         \
    {                                                                                                                  \
        const long steps = pairs * ((columns + 63) / 64);                                                              \
        const ahead none = {NULL, 0};                                                                                  \
        if (next.lines) next.lines = (next.lines + steps - 1) / steps;                                                 \
        const int flat = OF == OF_BF16 || OF == OF_PAIRS || rows <= FLAT;                                              \
        for (long n = 0, step; n < columns; n += step) {                                                               \
            step = columns - n >= 64 && flat ? 64 : columns - n >= 32 ? 32 : 16;                                       \
            const long tall = step == 64 ? FLAT : TALL, tiles = (rows + tall - 1) / tall;                              \
            const char *from = (const char *)w + (OF == OF_BF16 ? 2 * n : OF == OF_PAIRS ? 4 * n : n);                 \
            for (long t = 0; t < tiles; t++) {                                                                         \
                long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;                                     \
                long left = step == 32 ? 32 : columns - n;                                                             \
                some_rows(OF, count, left, add, pairs, x + row * ldx, ldx, from, ldw, y + row * ldy + n, ldy,          \
                          t ? none : next);                                                                            \
            }                                                                                                          \
            next.at += 64 * next.lines * pairs;                                                                        \
        }                                                                                                              \
    }
DEFINE_PRODUCT(by_bf16, OF_BF16)
DEFINE_PRODUCT(by_bytes, OF_BYTES)
DEFINE_PRODUCT(by_low, OF_LOW)
DEFINE_PRODUCT(by_high, OF_HIGH)
DEFINE_PRODUCT(by_six, OF_SIX)
DEFINE_PRODUCT(by_pairs, OF_PAIRS)

/* mixed [rows, D] += weights [rows, width] times a block's values. What a product adds behind its columns is 0. */
static void mix(const attention_job *job, const char *values, long rows, long width, const uint32_t *weights,
                float *mixed, long stride, ahead next)
{
    long D = job->D, S = job->S, half = D / 2, pairs = width / 2;
    const ahead none = {NULL, 0};
    if (job->cache == CACHE_BF16) by_bf16(rows, D, 1, pairs, weights, S, values, D, mixed, stride, next);
    else if (job->cache == CACHE_INT8) by_bytes(rows, D, 1, pairs, weights, S, values, D, mixed, stride, next);
    else {
        by_low(rows, half, 1, pairs, weights, S, values, half, mixed, stride, next);
        by_high(rows, half, 1, pairs, weights, S, values, half, mixed + half, stride, none);
    }
}

/* What is kept of one group's rows between blocks, and room for the scores of a block. */
typedef struct {
    uint16_t *q;
    float *mixed, *scores, *mass, *top, *sums_of_q;
    uint32_t *pairs;
} kept_rows;

static kept_rows kept_in(const attention_job *job, long rows, long stride, float *scratch)
{
    float *mixed = scratch + in_sixteens(rows * job->D / 2), *scores = mixed + rows * stride;
    float *mass = scores + rows * job->S, *top = mass + rows * 16, *sums_of_q = top + in_sixteens(rows);
    return (kept_rows){(uint16_t *)scratch, mixed, scores, mass, top, sums_of_q,
                  (uint32_t *)(sums_of_q + in_sixteens(rows))};
}

static void begin_rows(const attention_job *job, const tile *at, long g, long stride, const kept_rows *of)
{
    const long D = job->D, rows = at->rows;
    const int codes = has_codes(job->cache);
    for (long r = 0; r < rows; r++) {
        const float *from = query(job, at, g, r);
        if (job->cache == CACHE_INT4) from = memcpy(of->mixed, from, D * sizeof(float)), spread(of->mixed, D);
        narrow_row(from, D, of->q + r * D);
        of->sums_of_q[r] = 0, of->top[r] = NOTHING;
        for (long d = 0; codes && d < D; d++) of->sums_of_q[r] += from_bf16(of->q[r * D + d]);
    }
    memset(of->mixed, 0, rows * stride * sizeof(float));
    memset(of->mass, 0, rows * 16 * sizeof(float));
}

/* Rows of group g meet block n, whose values and whose `follows` are asked of memory meanwhile. */
static void meet_block(const attention_job *job, const tile *at, long g, long n, long stride, const kept_rows *of,
                       ahead follows)
{
    const int codes = has_codes(job->cache), made = made_once(job, at->rows), few = at->rows < PREFETCH_ROWS;
    const long D = job->D, S = job->S, rows = at->rows, bytes = head_bytes(job->cache, S, D);
    const long k_codes = S * key_bytes(job->cache, D), k_bytes = codes ? k_codes + 4 * S : bytes;
    const float middle = job->cache == CACHE_INT8 ? 128 : 8;
    const float log2_e = 1.44269504088896341f, factor = job->cap ? log2_e : job->scale * log2_e;
    const long place = (at->table[n] * job->G + g) * bytes, width = keys_of(job, at, n);
    const char *keys = (const char *)job->k_cache + place, *values = (const char *)job->v_cache + place;
    const uint16_t *k_scales = (const uint16_t *)(keys + k_codes), *v_scales = (const uint16_t *)values;
    if (codes) v_scales = (const uint16_t *)(values + S * vector_bytes(job->cache, D));
    const ahead none = {NULL, 0};
    const ahead next = {values, few ? lines_of(codes ? bytes - k_bytes : vector_bytes(job->cache, width * D)) : 0};
    if (made) {
        pairs_of_keys(job, keys, width, of->pairs);
        by_pairs(rows, width, 0, D / 2, (const uint32_t *)of->q, D / 2, of->pairs, S, of->scores, S, none);
    } else
        (job->cache == CACHE_BF16 ? by_bf16 : job->cache == CACHE_INT8 ? by_bytes : by_six)(
            rows, width, 0, D / 2, (const uint32_t *)of->q, D / 2, keys, S, of->scores, S, next);
    const int at_once = width == WEIGHED && S == WEIGHED && !job->cap;
    block_ends ends;
    if (codes && at_once) read_ends(k_scales, v_scales, middle, &ends);
    for (long r = 0; r < rows; r++) {
        float *row = of->scores + r * S;
        sums sum = {of->top + r, of->mass + r * 16, of->mixed + r * stride, stride};
        long low, high;
        seen_by(job, at, n, r, &low, &high);
        if (at_once) {
            if (codes) weigh(1, row, &ends, of->sums_of_q[r], low, high, factor, middle, (uint32_t *)row, 16, &sum);
            else weigh(0, row, NULL, 0, low, high, factor, 0, (uint32_t *)row, 16, &sum);
            continue;
        }
        if (codes) scale_scores(row, width, k_scales, k_scales + S, of->sums_of_q[r]);
        if (job->cap) cap_scores(row, width, job->scale, job->cap);
        if (low > 0 || high < width) hide(row, width, low, high);
        rise(row, width, factor, &sum);
        if (codes) soften_codes(row, width, factor, v_scales, v_scales + S, middle, (uint32_t *)row, 16, &sum);
        else soften(row, width, factor, (uint32_t *)row, 16, &sum);
    }
    if (made) {
        pairs_of_values(job, values, width, of->pairs);
        by_pairs(rows, D, 1, width / 2, (const uint32_t *)of->scores, S, of->pairs, D, of->mixed, stride, none);
    } else mix(job, values, rows, width, (const uint32_t *)of->scores, of->mixed, stride, follows);
}

static void end_rows(const attention_job *job, const tile *at, long g, long stride, const kept_rows *of)
{
    const long D = job->D, rows = at->rows;
    /* Stores that wait for their lines one after the other take longer than those whose lines were asked for at
     * once. */
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < D; d += 16) ask_to_write(answer(job, at, g, r) + d);
    for (long r = 0; r < rows; r++) {
        float *to = answer(job, at, g, r), all = 0, base = 0;
        for (int i = 0; i < 16; i++) all += of->mass[r * 16 + i];
        for (long i = in_sixteens(D); i < stride; i++) base += of->mixed[r * stride + i];
        for (long d = 0; d < D; d++) to[d] = (of->mixed[r * stride + d] + base) / all;
        if (job->cache == CACHE_INT4) spread(to, D);
    }
}

void attend_in_pairs(const attention_job *job, const tile *at, long g, long groups, float *scratch)
{
    const int few = at->rows < PREFETCH_ROWS;
    const long S = job->S, size = attention_pairs_scratch(job, at->rows), bytes = head_bytes(job->cache, S, job->D);
    const long stride = in_sixteens(job->D) + (has_codes(job->cache) ? 16 : 0), end = g + groups;
    const long k_lines = lines_of(has_codes(job->cache) ? S * key_bytes(job->cache, job->D) + 4 * S : bytes);
    if (few) ask_for_all((const char *)job->k_cache + (at->table[at->begin] * job->G + g) * bytes, 64 * k_lines);
    for (long i = g; i < end; i++) {
        const kept_rows of = kept_in(job, at->rows, stride, scratch + (i - g) * size);
        begin_rows(job, at, i, stride, &of);
    }
    for (long n = at->begin; n * S < at->reach; n++)
        for (long i = g; i < end; i++) {
            const kept_rows of = kept_in(job, at->rows, stride, scratch + (i - g) * size);
            const long after = i + 1 < end ? n : n + 1, other = i + 1 < end ? i + 1 : g;
            ahead follows = {NULL, 0};
            if (few && after * S < at->reach)
                follows = (ahead){(const char *)job->k_cache + (at->table[after] * job->G + other) * bytes, k_lines};
            meet_block(job, at, i, n, stride, &of, follows);
        }
    for (long i = g; i < end; i++) {
        const kept_rows of = kept_in(job, at->rows, stride, scratch + (i - g) * size);
        end_rows(job, at, i, stride, &of);
    }
}
#else
int attention_in_pairs(int cache, long D) { return (void)cache, (void)D, 0; }
long attention_pairs_scratch(const attention_job *job, long rows) { return (void)job, (void)rows, 0; }
void attend_in_pairs(const attention_job *job, const tile *at, long g, long groups, float *scratch)
{
    (void)job, (void)at, (void)g, (void)groups, (void)scratch;
}
#endif
