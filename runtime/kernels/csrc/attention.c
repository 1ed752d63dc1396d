/* Causal attention over the paged cache, by Milakov and Gimelshein's online softmax (arXiv 1805.02867), a cache block
 * at a time: keys and values of a block are read once for all query heads that share them.
 *
 * Invariant: a query row's sums run over its keys in ascending order, block by block, whatever tile, chunk or batch it
 * is computed in; keys it must not see enter as weight 0, which changes no bit. So chunked equals whole. */
#include "attention.h"
#include "cache.h"
#include "key_codes.h"

/* A register tile of a product is TALL rows and two vectors of WIDE lanes. Lanes are outputs, so that no bit depends on
 * their number. From WIDEN_ROWS rows on widening a block beforehand costs less than in every register tile; tiles of
 * vectors of 512 bits have so many rows that it never does. */
#if defined(__AVX512F__)
#define WIDE 16
#define TALL 12
#define WIDEN_ROWS INT32_MAX
#else
#define WIDE 8
#define TALL 6
#define WIDEN_ROWS 24
#endif
/* How a factor of a product lies in memory: as the cache holds it, or the codes of 4 bits of one half. Keys beside
 * them are those of `key_codes.h`. */
enum { OF_F32 = CACHE_F32, OF_BF16 = CACHE_BF16, OF_INT8 = CACHE_INT8, OF_LOW = CACHE_INT4, OF_HIGH };

/* Eight numbers from w[i] on. Codes become the whole numbers that they are: scales come later. */
INLINE v8f widen_8(const int of, const void *w, long i)
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

#if WIDE == 16
INLINE vf widen_16(const int of, const void *w, long i)
{
    if (of == OF_F32) return load((const float *)w + i);
    if (of == OF_BF16) {
        __m256i narrow = _mm256_loadu_si256((const __m256i *)((const uint16_t *)w + i));
        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
    }
    vi codes = (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)((const uint8_t *)w + i)));
    if (of == OF_LOW) codes &= 15;
    if (of == OF_HIGH) codes >>= 4;
    return (vf)_mm512_cvtepi32_ps((__m512i)codes);
}
#endif

/* y[rows][vectors of V] (+)= x[rows][depth] w[depth][vectors of V]. `n`: the first column of w. */
#define DEFINE_FIXED(NAME, V, LANES_OF_V, WIDEN, LOAD, STORE, FILL, MADD)                                              \
    INLINE void NAME(const int of, const int rows, const int vectors, int add, long depth, const float *x, long ldx,   \
                     const void *w, long n, long ldw, float *y, long ldy)                                              \
    {                                                                                                                  \
        V sum[TALL][2];                                                                                                \
        UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (V){0};                                          \
        for (long k = 0; k < depth; k++) {                                                                             \
            V b[2];                                                                                                    \
            UNROLL for (int v = 0; v < vectors; v++) b[v] = WIDEN(of, w, n + k * ldw + LANES_OF_V * v);                \
            UNROLL for (int r = 0; r < rows; r++) {                                                                    \
                V one = FILL(x[r * ldx + k]);                                                                          \
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = MADD(one, b[v], sum[r][v]);                       \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int r = 0; r < rows; r++)                                                                          \
            UNROLL for (int v = 0; v < vectors; v++) {                                                                 \
                float *out = y + r * ldy + n + LANES_OF_V * v;                                                         \
                STORE(out, add ? LOAD(out) + sum[r][v] : sum[r][v]);                                                   \
            }                                                                                                          \
    }
DEFINE_FIXED(fixed_8, v8f, 8, widen_8, load8, store8, fill8, madd8)
#if WIDE == 16
DEFINE_FIXED(fixed_16, vf, 16, widen_16, load, store, fill, madd)
#endif

INLINE void some_rows(const int of, long rows, long columns, int add, long depth, const float *x, long ldx,
                      const void *w, long n, long ldw, float *y, long ldy)
{
#define FIXED(NAME, R, VECTORS) case R: NAME(of, R, VECTORS, add, depth, x, ldx, w, n, ldw, y, ldy); break;
#define SIX(NAME, VECTORS)                                                                                             \
    FIXED(NAME, 1, VECTORS) FIXED(NAME, 2, VECTORS) FIXED(NAME, 3, VECTORS)                                            \
    FIXED(NAME, 4, VECTORS) FIXED(NAME, 5, VECTORS) FIXED(NAME, 6, VECTORS)
#if WIDE == 16
#define TWELVE(NAME, VECTORS)                                                                                          \
    SIX(NAME, VECTORS)                                                                                                 \
    FIXED(NAME, 7, VECTORS) FIXED(NAME, 8, VECTORS) FIXED(NAME, 9, VECTORS)                                            \
    FIXED(NAME, 10, VECTORS) FIXED(NAME, 11, VECTORS) FIXED(NAME, 12, VECTORS)
    if (columns >= 32) switch (rows) { TWELVE(fixed_16, 2) }
    else if (columns >= 16) switch (rows) { TWELVE(fixed_16, 1) }
    else switch (rows) { TWELVE(fixed_8, 1) }
#else
    if (columns >= 16) switch (rows) { SIX(fixed_8, 2) }
    else switch (rows) { SIX(fixed_8, 1) }
#endif
}

/* y [rows, width] =, or with `add` +=, x [rows, depth] w [depth, width]; `width` in eights. A function a kind of w. */
#define DEFINE_PRODUCT(NAME, OF)                                                                                       \
    static void NAME(long rows, long width, int add, long depth, const float *x, long ldx, const void *w, long ldw,    \
                     float *y, long ldy)                                                                               \
    {                                                                                                                  \
        long tiles = (rows + TALL - 1) / TALL;                                                                         \
        for (long n = 0; n < width; n += width - n >= 2 * WIDE ? 2 * WIDE : width - n >= WIDE ? WIDE : 8)              \
            for (long t = 0; t < tiles; t++) {                                                                         \
                long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;                                     \
                some_rows(OF, count, width - n, add, depth, x + row * ldx, ldx, w, n, ldw, y + row * ldy, ldy);        \
            }                                                                                                          \
    }
DEFINE_PRODUCT(by_f32, OF_F32)
DEFINE_PRODUCT(by_bf16, OF_BF16)
DEFINE_PRODUCT(by_int8, OF_INT8)
DEFINE_PRODUCT(by_low, OF_LOW)
DEFINE_PRODUCT(by_high, OF_HIGH)
typedef void product(long, long, int, long, const float *, long, const void *, long, float *, long);
static product *const PRODUCTS[] = {by_f32, by_bf16, by_int8, by_low, by_high};

/* The largest of eight. */
INLINE float largest(v8f most)
{
    for (int apart = 4; apart; apart /= 2) {
        v8i from = (v8i){0, 1, 2, 3, 4, 5, 6, 7} ^ apart;
        most = larger8(__builtin_shuffle(most, from), most);
    }
    return most[0];
}

/* One row's scores of a block become weights; keys outside [low, high) weigh 0. Its sums so far are rescaled. */
static void soften(float *scores, long width, long low, long high, float *top, float *mass, float *mixed, long D)
{
    for (long i = 0; i < low && i < width; i++) scores[i] = -__builtin_inff();
    for (long i = high < 0 ? 0 : high; i < width; i++) scores[i] = -__builtin_inff();
    v8f most = load8(scores);
    for (long i = 8; i < width; i += 8) most = larger8(load8(scores + i), most);
    float highest = largest(most);
    highest = highest > *top ? highest : *top;
    v8f sum = load8(mass);
    if (highest > *top) {
        v8f shrink = vexp8((v8f){0} + (*top - highest));
        sum = sum * shrink;
        for (long d = 0; d < D; d += 8) store8(mixed + d, load8(mixed + d) * shrink);
        *top = highest;
    }
    v8f block = {0};
    for (long i = 0; i < width; i += 16) {
#if WIDE == 16
        store(scores + i, vexp(load(scores + i) - highest));
        block = (block + load8(scores + i)) + load8(scores + i + 8);
#else
        for (long at = i; at < i + 16; at += 8) {
            v8f weight = vexp8(load8(scores + at) - highest);
            block = block + weight;
            store8(scores + at, weight);
        }
#endif
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
    case OF_BF16: for (; i < count; i += 8) store8(to + i, widen_8(OF_BF16, from, i)); break;
    case OF_INT8: for (; i < count; i += 8) store8(to + i, widen_8(OF_INT8, from, i)); break;
    case OF_LOW: for (; i < count; i += 8) store8(to + i, widen_8(OF_LOW, from, i)); break;
    default: for (; i < count; i += 8) store8(to + i, widen_8(OF_HIGH, from, i));
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

/* scores [rows, width] of a block's keys: of codes as they are where keys are codes. */
static void score(const attention_job *job, const void *keys, long rows, long width, const float *q, float *spare,
                  float *scores)
{
    long D = job->D, S = job->S;
    int of = job->cache;
    if (of == CACHE_INT4 && rows <= KEY_ROWS) {
        score_key_codes(rows, width, D, q, D, keys, S, scores, S);
        return;
    }
    const void *w = keys;
    if (of == CACHE_INT4) widen_key_codes(keys, width, D, S, spare), w = spare;
    else if (rows >= WIDEN_ROWS && of != OF_F32) widen_run(of, keys, spare, S * D), w = spare;
    PRODUCTS[w == keys ? of : OF_F32](rows, width, 0, D, q, D, w, S, scores, S);
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
        by_f32(rows, W, 1, width, weights, S, spare, W, mixed, stride);
        return;
    }
    for (int of = job->cache, i = 0; i * part < D; of++, i++) {
        const void *w = values;
        if (rows >= WIDEN_ROWS && of != OF_F32) widen_run(of, values, spare, width * part), w = spare;
        PRODUCTS[w == values ? of : OF_F32](rows, part, 1, width, weights, S, w, part, mixed + i * part, stride);
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

long attention_vectors_scratch(const attention_job *job, long rows)
{
    const long W = whole_vectors(job->D), stride = has_codes(job->cache) ? W + 8 : W;
    return (rows * (job->D + stride + job->S + 10) + job->S * W + 15) / 16 * 16;
}

void attend_in_vectors(const attention_job *job, const tile *at, long g, float *scratch)
{
    long D = job->D, W = whole_vectors(D), S = job->S, rows = at->rows, low, high;
    long bytes = head_bytes(job->cache, S, D), codes = S * vector_bytes(job->cache, D);
    long k_codes = S * key_bytes(job->cache, D), k_bytes = has_codes(job->cache) ? k_codes + 4 * S : bytes;
    /* A row of sums ends with what the minimums of its values add, so that both are rescaled together. */
    long stride = has_codes(job->cache) ? W + 8 : W;
    float *q = scratch, *mixed = q + rows * D, *scores = mixed + rows * stride, *mass = scores + rows * S;
    float *top = mass + rows * 8, *sums_of_q = top + rows, *spare = sums_of_q + rows;
    for (long r = 0; r < rows; r++) {
        const float *from = query(job, at, g, r);
        for (long d = 0; d < D; d++) q[r * D + d] = from[d] * job->scale;
        if (job->cache == CACHE_INT4) spread(q + r * D, D);
        sums_of_q[r] = 0;
        for (long d = 0; d < D; d++) sums_of_q[r] += q[r * D + d];
        top[r] = NOTHING;
    }
    memset(mixed, 0, rows * stride * sizeof(float));
    memset(mass, 0, rows * 8 * sizeof(float));
    if (rows < PREFETCH_ROWS)
        ask_for_all((const char *)job->k_cache + (at->table[at->begin] * job->G + g) * bytes, k_bytes);
    for (long n = at->begin; n * S < at->reach; n++) {
        long place = (at->table[n] * job->G + g) * bytes, width = keys_of(job, at, n);
        const char *keys = (const char *)job->k_cache + place, *values = (const char *)job->v_cache + place;
        const uint16_t *k_scales = (const uint16_t *)(keys + k_codes), *v_scales = (const uint16_t *)(values + codes);
        if (rows < PREFETCH_ROWS)
            ask_for_all(values, has_codes(job->cache) ? bytes - k_bytes : vector_bytes(job->cache, width * D));
        score(job, keys, rows, width, q, spare, scores);
        for (long r = 0; r < rows; r++) {
            float *row = scores + r * S;
            seen_by(job, at, n, r, &low, &high);
            if (has_codes(job->cache)) scale_scores(row, width, k_scales, k_scales + S, sums_of_q[r]);
            if (job->cap) cap_scores(row, width, job->cap);
            soften(row, width, low, high, top + r, mass + r * 8, mixed + r * stride, stride);
            if (has_codes(job->cache)) scale_weights(row, width, v_scales, v_scales + S, mixed + r * stride + W);
        }
        if (rows < PREFETCH_ROWS && (n + 1) * S < at->reach)
            ask_for_all((const char *)job->k_cache + (at->table[n + 1] * job->G + g) * bytes, k_bytes);
        mix(job, values, rows, width, scores, spare, mixed, stride);
    }
    for (long r = 0; r < rows; r++) {
        float all = 0, base = 0, *to = answer(job, at, g, r);
        for (int i = 0; i < 8; i++) all += mass[r * 8 + i];
        for (long i = W; i < stride; i++) base += mixed[r * stride + i];
        for (long d = 0; d < D; d++) to[d] = (mixed[r * stride + d] + base) / all;
        if (job->cache == CACHE_INT4) spread(to, D);
    }
}
