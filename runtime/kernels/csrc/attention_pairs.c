/* One row's numbers do not depend on the rows beside it. A score is one sum over pairs of dimensions, a block's part of
 * an output one sum over pairs of positions that begin at the block, both in the order of `pairs.h`; keys that a row
 * does not see weigh 0. The sum of weights is of the rounded ones, so that they add up to 1, in 16 lanes: lane i takes
 * keys 2 i and 2 i + 1 of each 32. Blocks follow each other in ascending order, and what came before shrinks where a
 * block has a higher score. */
#include "attention_pairs.h"
#include "cache.h"
#include "pairs.h"

#if HAVE_PAIRS

/* A register tile: TALL rows and two vectors of columns, or FLAT rows and four. */
#define TALL 12
#define FLAT 6

int attention_in_pairs(int cache) { return cache == CACHE_BF16 && pairs_exist(); }

static long in_sixteens(long count) { return (count + 15) / 16 * 16; }

long attention_pairs_scratch(const attention_job *job, long rows)
{
    return in_sixteens(rows * job->D / 2) + rows * (in_sixteens(job->D) + job->S + 16) + in_sixteens(rows);
}

/* Numbers of both, low first, as bfloat16, to nearest even; subnormal ones become 0 and NaN stays NaN. */
INLINE vu narrowed(vf low, vf high)
{
    vu both;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
    return both;
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

/* Columns of two rows as pairs: 16 in `first`, and 16 more in `second`. */
INLINE void interleave(const uint16_t *even, const uint16_t *odd, uint32_t there, vu *first, vu *second)
{
    static const uint16_t order[64] = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
        11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
        22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63,
    };
    __m512i a = _mm512_maskz_loadu_epi16(there, even), b = _mm512_maskz_loadu_epi16(there, odd);
    *first = (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(order), b);
    *second = (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(order + 32), b);
}

/* y [rows][vectors] =, or with `add` +=, x w over pairs of rows of w. `there`: columns of the last 32. */
INLINE void pair_tile(const int rows, const int vectors, uint32_t there, int add, long pairs, const uint32_t *x,
                      long ldx, const uint16_t *w, long ldw, float *y, long ldy)
{
    /* Of a size that is known before anything is inlined, as in dots.h. */
    vf sum[2 * TALL];
    UNROLL for (int i = 0; i < rows * vectors; i++) sum[i] = (vf){0};
    for (long k = 0; k < pairs; k++, w += 2 * ldw) {
        vu b[4];
        UNROLL for (int v = 0; v < vectors; v += 2) interleave(w + 16 * v, w + ldw + 16 * v, there, b + v, b + v + 1);
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

static void some_rows(long rows, long columns, int add, long pairs, const uint32_t *x, long ldx, const uint16_t *w,
                      long ldw, float *y, long ldy)
{
    const uint32_t there = columns >= 16 ? 0xffff : (1u << columns) - 1;
#define TILE(R, VECTORS, THERE) case R: pair_tile(R, VECTORS, THERE, add, pairs, x, ldx, w, ldw, y, ldy); break;
#define SIX(VECTORS, THERE)                                                                                            \
    TILE(1, VECTORS, THERE) TILE(2, VECTORS, THERE) TILE(3, VECTORS, THERE)                                            \
    TILE(4, VECTORS, THERE) TILE(5, VECTORS, THERE) TILE(6, VECTORS, THERE)
#define TWELVE(VECTORS, THERE)                                                                                         \
    SIX(VECTORS, THERE)                                                                                                \
    TILE(7, VECTORS, THERE) TILE(8, VECTORS, THERE) TILE(9, VECTORS, THERE)                                            \
    TILE(10, VECTORS, THERE) TILE(11, VECTORS, THERE) TILE(12, VECTORS, THERE)
    if (columns >= 64) switch (rows) { SIX(4, ~0u) }
    else if (columns >= 32) switch (rows) { TWELVE(2, ~0u) }
    else switch (rows) { TWELVE(1, there) }
}

/* y [rows, columns] =, or with `add` +=, x [rows, 2 * pairs] w [2 * pairs, columns]. Columns of y from `columns` to the
 * next sixteen become, or get, 0. */
static void multiply(long rows, long columns, int add, long pairs, const uint32_t *x, long ldx, const uint16_t *w,
                     long ldw, float *y, long ldy)
{
    for (long n = 0, step; n < columns; n += step) {
        step = columns - n >= 64 ? 64 : columns - n >= 32 ? 32 : 16;
        const long tall = step == 64 ? FLAT : TALL, tiles = (rows + tall - 1) / tall;
        for (long t = 0; t < tiles; t++) {
            long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
            some_rows(count, columns - n, add, pairs, x + row * ldx, ldx, w + n, ldw, y + row * ldy + n, ldy);
        }
    }
}

/* 2^x within 3e-6 of itself; 2^0 is 1, from -160 down it is 0, and of NaN NaN. */
INLINE vf power_of_2(vf x)
{
    x = larger(fill(-160.0f), x);
    vf whole = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT), part = x - whole;
    vf p = madd(part, fill(9.582836385263582e-3f), fill(5.590641339066969e-2f));
    p = madd(p, part, fill(0.24024098822058854f));
    p = madd(p, part, fill(0.6931241947999938f));
    return (vf)_mm512_scalef_ps((__m512)madd(p, part, fill(1.0f)), (__m512)whole);
}

static void hide(float *scores, long width, long low, long high)
{
    for (long i = 0; i < width; i++)
        if (i < low || i >= high) scores[i] = -__builtin_inff();
}

/* Scores of a row become cap * tanh(score / cap): tanh(x) is 1 - 2 / (e^2x + 1). */
static void cap_scores(float *scores, long width, float scale, float cap)
{
    for (long i = 0; i < width; i += 16)
        store(scores + i, cap - 2.0f * cap / (vexp(load(scores + i) * (2.0f * scale / cap)) + 1.0f));
}

/* One row's scores of a block become weights of bfloat16, at the row's beginning. `factor`: of a score, times log2 e. */
static void soften(float *scores, long width, float factor, float *top, float *mass, float *mixed, long W)
{
    vf most = load(scores), sum = load(mass);
    for (long i = 16; i < width; i += 16) most = larger(load(scores + i), most);
    most = most * factor;
    if (_mm512_cmp_ps_mask((__m512)most, (__m512)fill(*top), _CMP_GT_OQ)) {
        float highest = _mm512_reduce_max_ps((__m512)most);
        vf shrink = power_of_2(fill(*top - highest));
        sum = sum * shrink;
        for (long d = 0; d < W; d += 16) store(mixed + d, load(mixed + d) * shrink);
        *top = highest;
    }
    const vf base = fill(-*top);
    for (long i = 0; i < width; i += 32) {
        vf low = power_of_2(madd(load(scores + i), fill(factor), base)), high = {0};
        if (i + 16 < width) high = power_of_2(madd(load(scores + i + 16), fill(factor), base));
        vu both = narrowed(low, high);
        memcpy(scores + i / 2, &both, sizeof both);
        sum = add_pair(sum, both, 0x3f803f80u - (vu){0});
    }
    store(mass, sum);
}

void attend_in_pairs(const attention_job *job, const tile *at, long g, float *scratch)
{
    long D = job->D, W = in_sixteens(D), S = job->S, rows = at->rows, bytes = head_bytes(job->cache, S, D), low, high;
    float *mixed = scratch + in_sixteens(rows * D / 2), *scores = mixed + rows * W, *mass = scores + rows * S;
    float *top = mass + rows * 16;
    uint16_t *q = (uint16_t *)scratch;
    const float log2_e = 1.44269504088896341f, factor = job->cap ? log2_e : job->scale * log2_e;
    for (long r = 0; r < rows; r++) {
        narrow_row(query(job, at, g, r), D, q + r * D);
        top[r] = NOTHING;
    }
    memset(mixed, 0, rows * W * sizeof(float));
    memset(mass, 0, rows * 16 * sizeof(float));
    if (rows < FEW_ROWS) ask_for_all((const char *)job->k_cache + (at->table[at->begin] * job->G + g) * bytes, bytes);
    for (long n = at->begin; n * S < at->reach; n++) {
        long place = (at->table[n] * job->G + g) * bytes, width = keys_of(job, at, n);
        const char *keys = (const char *)job->k_cache + place, *values = (const char *)job->v_cache + place;
        if (rows < FEW_ROWS) ask_for_all(values, vector_bytes(job->cache, width * D));
        multiply(rows, width, 0, D / 2, (const uint32_t *)q, D / 2, (const uint16_t *)keys, S, scores, S);
        for (long r = 0; r < rows; r++) {
            float *row = scores + r * S;
            if (job->cap) cap_scores(row, width, job->scale, job->cap);
            seen_by(job, at, n, r, &low, &high);
            if (low > 0 || high < width) hide(row, width, low, high);
            soften(row, width, factor, top + r, mass + r * 16, mixed + r * W, W);
        }
        if (rows < FEW_ROWS && (n + 1) * S < at->reach)
            ask_for_all((const char *)job->k_cache + (at->table[n + 1] * job->G + g) * bytes, bytes);
        multiply(rows, D, 1, width / 2, (const uint32_t *)scores, S, (const uint16_t *)values, D, mixed, W);
    }
    for (long r = 0; r < rows; r++) {
        float *to = answer(job, at, g, r), all = 0;
        for (int i = 0; i < 16; i++) all += mass[r * 16 + i];
        for (long d = 0; d < D; d++) to[d] = mixed[r * W + d] / all;
    }
}
#else
int attention_in_pairs(int cache) { return (void)cache, 0; }
long attention_pairs_scratch(const attention_job *job, long rows) { return (void)job, (void)rows, 0; }
void attend_in_pairs(const attention_job *job, const tile *at, long g, float *scratch)
{
    (void)job, (void)at, (void)g, (void)scratch;
}
#endif
