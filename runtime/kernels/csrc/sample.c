/* Draws a token of each row: temperature, min-p, top-k, top-p, and a uniform number of the row's own.
 *
 * Every sum of a row is in one order, and a row is one thread's: a token depends on its row alone. What top-k and top-p
 * cannot reach is left out before anything is sorted: for top-k by the largest values of stretches of the vocabulary,
 * for top-p by a weight that all tokens below it together cannot make up what the nucleus leaves over. */
#include "bounds.h"
#include "rowwise.h"
#include <stdlib.h>

/* Tokens whose weights are summed as floats before a sum of doubles goes on. */
#define PART 256
/* Tokens of which the largest is taken: long where few are wanted. Multiples of LANES. */
#define LONG 64
#define SHORT 16
/* Candidates that are sorted by insertion. */
#define INSERTED 48
/* Of the mass that is left over: what sums of floats are off by at most. */
#define SLACK 1e-5

typedef struct {
    float temperature, min_p;
    double top_p, uniform;
    int64_t top_k;
} filter;

/* Working space of a row of V tokens. `ids` and `values` share what `sorted` takes later. */
typedef struct {
    double *sums;
    uint64_t *sorted, *spare;
    float *values, *weights;
    uint32_t *ids;
} bench;

static long bench_bytes(long V) { return 16 * ((V + 15) / 16 * 16) + ((V / PART + 2) * 8 + 63) / 64 * 64; }

static bench bench_at(char *memory, long V)
{
    long padded = (V + 15) / 16 * 16;
    uint64_t *first = (uint64_t *)memory, *second = first + padded;
    return (bench){(double *)(second + padded), first, second, (float *)first, (float *)second,
                   (uint32_t *)first + padded};
}

INLINE vf weight_of(vf x, float top, float inverse, float least)
{
    vf w = vexp((x - top) * inverse);
    return kept(w, w, least);
}

/* LANES values from x on, of which `left` are there; the others are so small that they weigh nothing. */
INLINE vf load_or_lowest(const float *x, long left)
{
    if (left >= LANES) return load(x);
    float padded[LANES];
    for (long i = 0; i < LANES; i++) padded[i] = i < left ? x[i] : -__builtin_inff();
    return load(padded);
}

/* Sums of PART weights each, and the sum of these. */
static double sum_parts(const float *x, long V, float top, float inverse, float least, double *sums)
{
    double mass = 0;
    for (long from = 0; from < V; from += PART) {
        vf sum = {0};
        for (long i = from; i < from + PART && i < V; i += LANES)
            sum += weight_of(load_or_lowest(x + i, V - i), top, inverse, least);
        mass += sums[from / PART] = (double)total(sum);
    }
    return mass;
}

/* In the order of ids: the first token at which the sum of weights passes `uniform` times the whole. */
static long draw_whole(const float *x, long V, float top, float inverse, const filter *by, double *sums)
{
    double target = by->uniform * sum_parts(x, V, top, inverse, by->min_p, sums), before = 0;
    long parts = (V + PART - 1) / PART, last = 0, part = parts, found = 0;
    for (long c = 0; c < parts; c++) {
        if (sums[c] > 0) last = c;
        if (before + sums[c] > target) {
            part = c;
            break;
        }
        before += sums[c];
    }
    /* Rounding may push a draw past the end: it belongs to the last token that weighs anything. */
    if (part == parts) part = last, before = -1;
    for (long i = part * PART; i < part * PART + PART && i < V; i += LANES) {
        float w[LANES];
        store(w, weight_of(load_or_lowest(x + i, V - i), top, inverse, by->min_p));
        for (long j = 0; j < LANES; j++) {
            if (w[j] > 0) found = i + j;
            if (before >= 0 && (before += (double)w[j]) > target) return found;
        }
    }
    return found;
}

/* The k-th largest of n values, which change places (Hoare's selection). Everything is finite or -inf. */
static float largest_but(float *v, long n, long k)
{
    long low = 0, high = n - 1, at = k - 1;
    while (low < high) {
        float pivot = v[(low + high) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (v[i] > pivot) i++;
            while (pivot > v[j]) j--;
            if (i <= j) {
                float kept_value = v[i];
                v[i++] = v[j], v[j--] = kept_value;
            }
        }
        if (at <= j) high = j;
        else if (at >= i) low = i;
        else break;
    }
    return v[at];
}

/* A value that at least k tokens reach, and few more unless k is a large part of V. */
static float reached_by(const float *x, long V, long k, float *best)
{
    long stretch = V / LONG >= 2 * k ? LONG : SHORT, stretches = V / stretch;
    if (stretches < k) return -__builtin_inff();
    for (long s = 0; s < stretches; s++) {
        vf most = load(x + s * stretch);
        for (long i = LANES; i < stretch; i += LANES) most = larger(most, load(x + s * stretch + i));
        float top = most[0];
        for (long i = 1; i < LANES; i++) top = most[i] > top ? most[i] : top;
        best[s] = top;
    }
    return largest_but(best, stretches, k);
}

/* The lanes of v that are set in `stays`, next to each other from `to` on, where there is room for all; how many. */
INLINE long put(vf v, vi stays, float *to)
{
#if defined(__AVX512F__)
    __mmask16 mask = _mm512_test_epi32_mask((__m512i)stays, (__m512i)stays);
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, (__m512)v));
    return __builtin_popcount(mask);
#else
    long n = 0;
    for (long i = 0; i < LANES; i++) to[n] = v[i], n -= stays[i];
    return n;
#endif
}

INLINE vi counted_from(long first)
{
    vi lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    return lanes + (int32_t)first;
}

/* Tokens with values from `bound` on, by rising id. */
static long gather(const float *x, long V, float bound, const bench *at)
{
    long n = 0;
    vi ids = counted_from(0);
    for (long i = 0; i < V; i += LANES, ids += LANES) {
        vf v = load_or_lowest(x + i, V - i);
        vi reaches = v >= bound;
        if (V - i < LANES) reaches &= ids < (int32_t)V;
        put((vf)ids, reaches, (float *)at->ids + n);
        n += put(v, reaches, at->values + n);
    }
    return n;
}

static void weigh(const float *values, long n, float top, float inverse, float least, float *weights)
{
    for (long i = 0; i < n; i += LANES) {
        vf w = weight_of(load_or_lowest(values + i, n - i), top, inverse, least);
        memcpy(weights + i, &w, (n - i < LANES ? n - i : LANES) * sizeof(float));
    }
}

/* Of n candidates those that weigh at least `bound`, and something; their weights' sum is added to `sum`. */
static long keep_heavy(const bench *at, long n, float bound, double *sum)
{
    long left = 0;
    for (long from = 0; from < n; from += PART) {
        vf part = {0};
        for (long i = from; i < from + PART && i < n; i += LANES) {
            vf w = load_or_lowest(at->weights + i, n - i);
            vi stays = (w >= bound) & (w > 0.0f);
            part += (vf)((vi)w & stays);
            put(load((float *)at->ids + i), stays, (float *)at->ids + left);
            put(load(at->values + i), stays, at->values + left);
            left += put(w, stays, at->weights + left);
        }
        *sum += (double)total(part);
    }
    return left;
}

/* The candidates of a nucleus without top-k: what is left out weighs less than `spare` together. */
static long gather_nucleus(const float *x, long V, float top, float inverse, double mass, const filter *by,
                           const bench *at)
{
    double spare = (1 - by->top_p - SLACK) * mass, bound = spare / (double)V;
    float lowest = -__builtin_inff();
    if (bound > 0) {
        /* A little lower than the bound, as the logarithm, the division and the sum are rounded. */
        lowest = top + ((float)__builtin_log(bound) - 1e-3f) / inverse;
        lowest -= 4e-7f * (__builtin_fabsf(top) + __builtin_fabsf(lowest));
    }
    long n = gather(x, V, lowest, at);
    weigh(at->values, n, top, inverse, by->min_p, at->weights);
    for (int turn = 0;; turn++) {
        double sum = 0;
        long before = n;
        n = keep_heavy(at, n, bound > 0 ? (float)(bound * (1 - 1e-6)) : 0, &sum);
        if (n <= INSERTED || (turn && n > before - before / 8)) return n;
        /* What lies below so small a weight is less than what may still be left out. */
        bound = (spare - (mass - sum)) / (double)n;
        if (!(bound > 0)) return n;
    }
}

/* A number that falls as the value rises; -0 is 0. */
INLINE uint32_t falling(float value)
{
    uint32_t bits;
    value += 0.0f;
    memcpy(&bits, &value, 4);
    return ~(bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u));
}

INLINE float value_of(uint64_t key)
{
    uint32_t bits = ~(uint32_t)(key >> 32);
    bits ^= bits & 0x80000000u ? 0x80000000u : 0xffffffffu;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void insert_sort(uint64_t *keys, long n)
{
    for (long i = 1; i < n; i++) {
        uint64_t key = keys[i];
        long j = i;
        for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

/* Sorts by the upper half of each key, which leaves equals as they are. Returns the one of both that has them then. */
static uint64_t *radix_sort(uint64_t *keys, uint64_t *other, long n)
{
    uint32_t counts[4][256] = {{0}};
    for (long i = 0; i < n; i++)
        for (int pass = 0; pass < 4; pass++) counts[pass][keys[i] >> (32 + pass * 8) & 255]++;
    for (int pass = 0; pass < 4; pass++) {
        uint32_t sum = 0, *start = counts[pass];
        int shift = 32 + pass * 8;
        if (start[keys[0] >> shift & 255] == n) continue;
        for (long d = 0; d < 256; d++) {
            uint32_t count = start[d];
            start[d] = sum, sum += count;
        }
        for (long i = 0; i < n; i++) other[start[keys[i] >> shift & 255]++] = keys[i];
        uint64_t *next = keys;
        keys = other, other = next;
    }
    return keys;
}

/* Sorts the candidates by falling value, then by rising id, into `sorted`. */
static void sort_candidates(bench *at, long n)
{
    uint64_t *keys = at->spare, *other = at->sorted;
    for (long i = 0; i < n; i++) keys[i] = (uint64_t)falling(at->values[i]) << 32 | at->ids[i];
    if (n <= INSERTED) insert_sort(keys, n);
    else keys = radix_sort(keys, other, n);
    at->spare = keys == at->spare ? other : at->spare;
    at->sorted = keys;
    at->weights = (float *)at->spare;
}

static long draw_filtered(const float *x, long V, float top, float inverse, const filter *by, bench *at)
{
    int limited = by->top_k > 0 && by->top_k < V;
    double mass = 0, running = 0, end = 0;
    long n;
    if (limited) {
        n = gather(x, V, reached_by(x, V, by->top_k, at->weights), at);
    } else {
        mass = sum_parts(x, V, top, inverse, by->min_p, at->sums);
        n = gather_nucleus(x, V, top, inverse, mass, by, at);
    }
    sort_candidates(at, n);
    if (limited && n > by->top_k) n = by->top_k;
    for (long i = 0; i < n; i++) at->weights[i] = value_of(at->sorted[i]);
    weigh(at->weights, n, top, inverse, by->min_p, at->weights);
    /* Weights fall, so what min-p or underflow took is at the end. */
    while (n > 1 && !(at->weights[n - 1] > 0)) n--;
    if (limited)
        for (long i = 0; i < n; i++) mass += (double)at->weights[i];
    long left = 0;
    for (; left < n && (left == 0 || end < by->top_p * mass); left++) end += (double)at->weights[left];
    double target = by->uniform * end;
    for (long i = 0; i < left; i++)
        if ((running += (double)at->weights[i]) > target || i + 1 == left) return (long)(at->sorted[i] & 0xffffffffu);
    return 0;
}

/* A token of each of n rows of logits [count, V] into `out`. `largest` [n] of each row is finite and none of its values
 * NaN or greater. `floats` [n, 4] are temperature, top-p, min-p and a uniform number in [0, 1). Returns DONE, OUTSIDE
 * or NO_MEMORY. */
int draw_tokens(const float *logits, long count, long V, const int64_t *rows, const float *largest,
                const double *floats, const int64_t *top_k, int64_t *out, long n)
{
    if (V < 1 || V > INT32_MAX - LANES || !all_within(rows, n, count)) return OUTSIDE;
    /* Only the threads that draw touch their part. */
    long bytes = bench_bytes(V);
    char *memory = aligned_alloc(64, omp_get_max_threads() * bytes);
    if (!memory) return NO_MEMORY;
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
    for (long r = 0; r < n; r++) {
        bench at = bench_at(memory + omp_get_thread_num() * bytes, V);
        const double *f = floats + 4 * r;
        filter by = {(float)f[0], (float)f[2], f[1], f[3], top_k[r]};
        const float *x = logits + rows[r] * V;
        int whole = by.top_p >= 1 && !(by.top_k > 0 && by.top_k < V);
        float inverse = 1.0f / by.temperature;
        out[r] = whole ? draw_whole(x, V, largest[r], inverse, &by, at.sums)
                       : draw_filtered(x, V, largest[r], inverse, &by, &at);
    }
    free(memory);
    return DONE;
}
