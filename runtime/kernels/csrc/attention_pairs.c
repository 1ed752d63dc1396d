/* One row's numbers do not depend on the rows beside it. A score is one sum over pairs of dimensions, a block's part of
 * an output one sum over pairs of positions that begin at the block, both in the order of `pairs.h`; keys that a row
 * does not see weigh 0. The sum of weights has 16 lanes. Of floats it is of the rounded weights, so that they add up to
 * 1. Blocks follow each other in ascending order, and what came before shrinks where a block has a higher score. */
#include "attention_pairs.h"
#include "cache.h"
#include "pairs.h"

#if HAVE_PAIRS && defined(__AVX512BW__)

/* A register tile: TALL rows and two vectors of columns, or FLAT rows and four. */
#define TALL 12
#define FLAT 6

int attention_in_pairs(int cache) { return cache != CACHE_F32 && pairs_exist(); }

static long in_sixteens(long count) { return (count + 15) / 16 * 16; }

long attention_pairs_scratch(const attention_job *job, long rows)
{
    long stride = in_sixteens(job->D) + (has_codes(job->cache) ? 16 : 0);
    return in_sixteens(rows * job->D / 2) + rows * (stride + job->S + 16) + 2 * in_sixteens(rows);
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

/* What a factor of a product is: numbers of bfloat16, bytes, the lower or upper halves of bytes, or keys of 6 bits. */
enum factor { OF_BF16, OF_BYTES, OF_LOW, OF_HIGH, OF_SIX };

/* The numbers from 0 to 63 as bfloat16. */
static const uint16_t NUMBERS[64] = {
    0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140,
    0x4150, 0x4160, 0x4170, 0x4180, 0x4188, 0x4190, 0x4198, 0x41a0, 0x41a8, 0x41b0, 0x41b8, 0x41c0, 0x41c8,
    0x41d0, 0x41d8, 0x41e0, 0x41e8, 0x41f0, 0x41f8, 0x4200, 0x4204, 0x4208, 0x420c, 0x4210, 0x4214, 0x4218,
    0x421c, 0x4220, 0x4224, 0x4228, 0x422c, 0x4230, 0x4234, 0x4238, 0x423c, 0x4240, 0x4244, 0x4248, 0x424c,
    0x4250, 0x4254, 0x4258, 0x425c, 0x4260, 0x4264, 0x4268, 0x426c, 0x4270, 0x4274, 0x4278, 0x427c,
};

INLINE vu bytes_of(const uint8_t *from, uint32_t there)
{
    if (there == ~0u) return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
    return (vu)_mm512_cvtepu8_epi32(_mm512_castsi512_si128(_mm512_maskz_loadu_epi8(there, from)));
}

/* 16 columns of two rows of bytes as pairs of the numbers that they are. */
INLINE vu byte_pairs(const uint8_t *even, const uint8_t *odd, uint32_t there)
{
    static const uint16_t upper[32] = {
        1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11, 43, 13, 45, 15, 47,
        17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63,
    };
    __m512i a = (__m512i)_mm512_cvtepi32_ps((__m512i)bytes_of(even, there));
    __m512i b = (__m512i)_mm512_cvtepi32_ps((__m512i)bytes_of(odd, there));
    return (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(upper), b);
}

/* The same of halves of bytes. A permutation of 32 looks at 5 bits; of the fifth bit both halves of the numbers are. */
INLINE vu half_pairs(const uint8_t *even, const uint8_t *odd, const int shift, uint32_t there)
{
    vu both = bytes_of(even, there) | bytes_of(odd, there) << 16;
    __m512i numbers = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)NUMBERS));
    return (vu)_mm512_permutexvar_epi16((__m512i)(both >> shift), numbers);
}

/* 16 keys' dimensions 2 k and 2 k + 1, as `cache.h` lays out 6 bits; `place`: where k's upper bits begin. */
INLINE vu six_pairs(const uint8_t *pairs, const uint8_t *uppers, int place)
{
    vu lower = bytes_of(pairs, ~0u), upper = bytes_of(uppers, ~0u);
    vu codes = ((lower | lower << 12) & 0x000f000f) | ((upper << (4 - place) | upper << (18 - place)) & 0x00300030);
    __m512i low = _mm512_loadu_si512(NUMBERS), high = _mm512_loadu_si512(NUMBERS + 32);
    return (vu)_mm512_permutex2var_epi16(low, (__m512i)codes, high);
}

/* y [rows][vectors] =, or with `add` +=, x w over pairs of rows of w, ldw numbers or bytes apart. `there`: columns of
 * the last vectors. */
INLINE void pair_tile(const int of, const int rows, const int vectors, uint32_t there, int add, long pairs,
                      const uint32_t *x, long ldx, const void *factor, long ldw, float *y, long ldy)
{
    const uint8_t *w = factor, *plane = w + pairs * ldw;
    const long odd = of == OF_BF16 ? 2 * ldw : ldw, step = of == OF_SIX ? ldw : 2 * odd;
    /* Of a size that is known before anything is inlined, as in dots.h. */
    vf sum[2 * TALL];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) sum[r * vectors + v] = (vf){0};
    for (long k = 0; k < pairs; k++, w += step) {
        vu b[4];
        if (of == OF_BF16)
            UNROLL for (int v = 0; v < vectors; v += 2)
                interleave((const uint16_t *)w + 16 * v, (const uint16_t *)(w + odd) + 16 * v, there, b + v, b + v + 1);
        else
            UNROLL for (int v = 0; v < vectors; v++) {
                const uint8_t *at = w + 16 * v;
                if (of == OF_BYTES) b[v] = byte_pairs(at, at + odd, there);
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
                      const void *w, long ldw, float *y, long ldy)
{
    const uint32_t there = columns >= 16 ? 0xffff : (1u << columns) - 1;
#define TILE(R, VECTORS, THERE)                                                                                        \
    case R: pair_tile(of, R, VECTORS, THERE, add, pairs, x, ldx, w, ldw, y, ldy); break;
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
 * next sixteen become, or get, 0. Making pairs of codes costs more, so more rows share it. */
#define DEFINE_PRODUCT(NAME, OF)                                                                                       \
    static void NAME(long rows, long columns, int add, long pairs, const uint32_t *x, long ldx, const void *w,         \
                     long ldw, float *y, long ldy)                                                                     \
    {                                                                                                                  \
        const int flat = OF == OF_BF16 || rows <= FLAT;                                                                \
        for (long n = 0, step; n < columns; n += step) {                                                               \
            step = columns - n >= 64 && flat ? 64 : columns - n >= 32 ? 32 : 16;                                       \
            const long tall = step == 64 ? FLAT : TALL, tiles = (rows + tall - 1) / tall;                              \
            const char *from = (const char *)w + (OF == OF_BF16 ? 2 * n : n);                                          \
            for (long t = 0; t < tiles; t++) {                                                                         \
                long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;                                     \
                long left = step == 32 ? 32 : columns - n;                                                             \
                some_rows(OF, count, left, add, pairs, x + row * ldx, ldx, from, ldw, y + row * ldy + n, ldy);         \
            }                                                                                                          \
        }                                                                                                              \
    }
DEFINE_PRODUCT(by_bf16, OF_BF16)
DEFINE_PRODUCT(by_bytes, OF_BYTES)
DEFINE_PRODUCT(by_low, OF_LOW)
DEFINE_PRODUCT(by_high, OF_HIGH)
DEFINE_PRODUCT(by_six, OF_SIX)

INLINE vf widened_f16(const uint16_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* Scores of codes become scores of keys: q (minimum + code * scale) summed is minimum * sum(q) + scale * (q code). */
static void scale_scores(float *scores, long width, const uint16_t *scales, const uint16_t *minimums, float sum_of_q)
{
    for (long i = 0; i < width; i += 16) {
        vf offset = widened_f16(minimums + i) * sum_of_q;
        store(scores + i, madd(load(scores + i), widened_f16(scales + i), offset));
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

/* What a row has summed so far, and the highest score times log2 e that it has met. `end`: columns of `mixed`. */
typedef struct {
    float *top, *mass, *mixed;
    long end;
} sums;

/* Shrinks a row's sums where a block has a higher score. `factor`: of a score, times log2 e. */
INLINE void rise(const float *scores, long width, float factor, sums *row)
{
    vf most = load(scores);
    for (long i = 16; i < width; i += 16) most = larger(load(scores + i), most);
    most = most * factor;
    if (!_mm512_cmp_ps_mask((__m512)most, (__m512)fill(*row->top), _CMP_GT_OQ)) return;
    float highest = _mm512_reduce_max_ps((__m512)most);
    vf shrink = power_of_2(fill(*row->top - highest));
    store(row->mass, load(row->mass) * shrink);
    for (long d = 0; d < row->end; d += 16) store(row->mixed + d, load(row->mixed + d) * shrink);
    *row->top = highest;
}

/* A row's scores of a block become weights of bfloat16, at their beginning, and what is summed is the rounded ones. */
static void soften(float *scores, long width, float factor, sums *row)
{
    const vf base = fill(-*row->top);
    vf sum = load(row->mass);
    for (long i = 0; i < width; i += 32) {
        vf low = power_of_2(madd(load(scores + i), fill(factor), base)), high = {0};
        if (i + 16 < width) high = power_of_2(madd(load(scores + i + 16), fill(factor), base));
        vu both = narrowed(low, high);
        memcpy(scores + i / 2, &both, sizeof both);
        sum = add_pair(sum, both, 0x3f803f80u - (vu){0});
    }
    store(row->mass, sum);
}

/* The same of values that are codes: the weights of their codes, times their scales; the sum is of the weights as they
 * are. What every column gets besides, for the minimums, goes into the last 16 columns of the row's sums. So does what
 * rounding took from a code of `middle`, so that only a code's distance from it meets the rounding. */
static void soften_codes(float *scores, long width, float factor, const uint16_t *scales, const uint16_t *minimums,
                         float middle, sums *row)
{
    const vf base = fill(-*row->top);
    const vu back = narrowed(fill(-middle), fill(-middle));
    vf sum = load(row->mass), offset = load(row->mixed + row->end - 16);
    for (long i = 0; i < width; i += 32) {
        vf weight[2] = {{0}, {0}};
        UNROLL for (int h = 0; h < 2; h++) {
            long at = i + 16 * h;
            if (at >= width) break;
            vf one = power_of_2(madd(load(scores + at), fill(factor), base)), scale = widened_f16(scales + at);
            sum = sum + one;
            offset = madd(one, madd(scale, fill(middle), widened_f16(minimums + at)), offset);
            weight[h] = one * scale;
        }
        vu both = narrowed(weight[0], weight[1]);
        memcpy(scores + i / 2, &both, sizeof both);
        offset = add_pair(offset, both, back);
    }
    store(row->mass, sum), store(row->mixed + row->end - 16, offset);
}

/* mixed [rows, D] += weights [rows, width] times a block's values. What a product adds behind its columns is 0. */
static void mix(const attention_job *job, const char *values, long rows, long width, const uint32_t *weights,
                float *mixed, long stride)
{
    long D = job->D, S = job->S, half = D / 2, pairs = width / 2;
    if (job->cache == CACHE_BF16) by_bf16(rows, D, 1, pairs, weights, S, values, D, mixed, stride);
    else if (job->cache == CACHE_INT8) by_bytes(rows, D, 1, pairs, weights, S, values, D, mixed, stride);
    else {
        by_low(rows, half, 1, pairs, weights, S, values, half, mixed, stride);
        by_high(rows, half, 1, pairs, weights, S, values, half, mixed + half, stride);
    }
}

void attend_in_pairs(const attention_job *job, const tile *at, long g, float *scratch)
{
    const int codes = has_codes(job->cache);
    long D = job->D, W = in_sixteens(D), S = job->S, rows = at->rows, bytes = head_bytes(job->cache, S, D), low, high;
    long k_codes = S * key_bytes(job->cache, D), k_bytes = codes ? k_codes + 4 * S : bytes, stride = codes ? W + 16 : W;
    float *mixed = scratch + in_sixteens(rows * D / 2), *scores = mixed + rows * stride, *mass = scores + rows * S;
    float *top = mass + rows * 16, *sums_of_q = top + in_sixteens(rows);
    uint16_t *q = (uint16_t *)scratch;
    const float middle = job->cache == CACHE_INT8 ? 128 : 8;
    const float log2_e = 1.44269504088896341f, factor = job->cap ? log2_e : job->scale * log2_e;
    for (long r = 0; r < rows; r++) {
        const float *from = query(job, at, g, r);
        if (job->cache == CACHE_INT4) from = memcpy(mixed, from, D * sizeof(float)), spread(mixed, D);
        narrow_row(from, D, q + r * D);
        sums_of_q[r] = 0, top[r] = NOTHING;
        for (long d = 0; codes && d < D; d++) sums_of_q[r] += from_bf16(q[r * D + d]);
    }
    memset(mixed, 0, rows * stride * sizeof(float));
    memset(mass, 0, rows * 16 * sizeof(float));
    if (rows < FEW_ROWS) ask_for_all((const char *)job->k_cache + (at->table[at->begin] * job->G + g) * bytes, k_bytes);
    for (long n = at->begin; n * S < at->reach; n++) {
        long place = (at->table[n] * job->G + g) * bytes, width = keys_of(job, at, n);
        const char *keys = (const char *)job->k_cache + place, *values = (const char *)job->v_cache + place;
        const uint16_t *k_scales = (const uint16_t *)(keys + k_codes), *v_scales = (const uint16_t *)values;
        if (codes) v_scales = (const uint16_t *)(values + S * vector_bytes(job->cache, D));
        if (rows < FEW_ROWS) ask_for_all(values, codes ? bytes - k_bytes : vector_bytes(job->cache, width * D));
        (job->cache == CACHE_BF16 ? by_bf16 : job->cache == CACHE_INT8 ? by_bytes : by_six)(
            rows, width, 0, D / 2, (const uint32_t *)q, D / 2, keys, S, scores, S);
        for (long r = 0; r < rows; r++) {
            float *row = scores + r * S;
            sums of = {top + r, mass + r * 16, mixed + r * stride, stride};
            if (codes) scale_scores(row, width, k_scales, k_scales + S, sums_of_q[r]);
            if (job->cap) cap_scores(row, width, job->scale, job->cap);
            seen_by(job, at, n, r, &low, &high);
            if (low > 0 || high < width) hide(row, width, low, high);
            rise(row, width, factor, &of);
            if (codes) soften_codes(row, width, factor, v_scales, v_scales + S, middle, &of);
            else soften(row, width, factor, &of);
        }
        if (rows < FEW_ROWS && (n + 1) * S < at->reach)
            ask_for_all((const char *)job->k_cache + (at->table[n + 1] * job->G + g) * bytes, k_bytes);
        mix(job, values, rows, width, (const uint32_t *)scores, mixed, stride);
    }
    for (long r = 0; r < rows; r++) {
        float *to = answer(job, at, g, r), all = 0, base = 0;
        for (int i = 0; i < 16; i++) all += mass[r * 16 + i];
        for (long i = W; i < stride; i++) base += mixed[r * stride + i];
        for (long d = 0; d < D; d++) to[d] = (mixed[r * stride + d] + base) / all;
        if (job->cache == CACHE_INT4) spread(to, D);
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
