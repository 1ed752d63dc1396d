/* One row's numbers do not depend on the rows beside it. A block's keys, or values, become panels of PANEL keys, or
 * dimensions, in pairs of dimensions, or keys: what tiles.h multiplies. A score is one sum over blocks of BLOCK
 * dimensions, an output one over the blocks of BLOCK keys of each cache block, both as dots.h says. Keys and dimensions
 * that are not there are 0, and keys that a row does not see weigh 0. Weights and their sum are those of soften.h. */
#include "attention_tiles.h"
#include "pairs.h"
#include "tiles.h"

#if HAVE_PAIRS && defined(__AVX512BW__)
#include "weigh.h"

/* Numbers of a pair of rows of a panel. */
#define PAIR (2 * PANEL)

int attention_in_tiles(int cache, long D) { return cache != CACHE_F32 && D % 2 == 0 && pairs_exist() && tiles_work(); }

/* The halves of int4's bytes are dimensions half a head apart: panels of each begin there. */
static long run_of(const attention_job *job) { return job->cache == CACHE_INT4 ? job->D / 2 : job->D; }

static long in_sixteens(long count) { return (count + 15) / 16 * 16; }

/* Rows of tiles lie [rows / TILE][blocks][TILE][BLOCK] as bfloat16: where row r of `columns` columns begins, whose
 * blocks are TILE * BLOCK numbers apart, and words that `rows` rows take, a multiple of TILE. */
#define NEXT (TILE * BLOCK)
static uint16_t *tiled_row(uint16_t *x, long r, long columns)
{
    return x + (r / TILE * BLOCKS(columns) * TILE + r % TILE) * BLOCK;
}
static long tiled_words(long rows, long columns) { return rows * BLOCKS(columns) * BLOCK / 2; }

/* Where a task's numbers lie, in floats from its scratch on; queries come first. `high`: its rows, filled up to whole
 * tiles. `lds` and `stride`: from one row of scores, or of sums, to the next. */
typedef struct {
    long high, stride, lds, mixed, scores, mass, top, sums_of_q, weights, panel, end;
} places;

static places places_of(const attention_job *job, long rows)
{
    const long D = job->D, S = job->S, run = run_of(job), columns = in_sixteens(D - run + BLOCKS(run) * PANEL);
    places in = {.high = (rows + TILE - 1) / TILE * TILE, .lds = BLOCKS(S) * BLOCK};
    in.stride = columns + (has_codes(job->cache) ? 16 : 0);
    in.mixed = tiled_words(in.high, D);
    in.scores = in.mixed + in.high * in.stride;
    in.mass = in.scores + in.high * in.lds;
    in.top = in.mass + rows * 16;
    in.sums_of_q = in.top + in_sixteens(rows);
    in.weights = in.sums_of_q + in_sixteens(rows);
    in.panel = in.weights + tiled_words(in.high, S);
    in.end = in.panel + BLOCKS(D > S ? D : S) * BLOCK * PANEL / 2;
    return in;
}

long attention_tiles_scratch(const attention_job *job, long rows) { return places_of(job, rows).end; }

INLINE void put(uint16_t *to, vu first, vu second)
{
    memcpy(to, &first, sizeof first);
    memcpy(to + PANEL, &second, sizeof second);
}

/* Of two neighbouring rows from `even` and `odd` on, the first 32 columns or those that are `there`. */
INLINE void put_rows(const int of, const char *even, const char *odd, uint32_t there, uint16_t *to)
{
    vu first, second = {0};
    if (of == OF_BF16) {
        interleave((const uint16_t *)even, (const uint16_t *)odd, there, &first, &second);
    } else {
        const uint8_t *a = (const uint8_t *)even, *b = (const uint8_t *)odd;
        const uint32_t low = there & 0xffff, high = there >> 16;
        const int shift = of == OF_HIGH ? 4 : 0;
        first = of == OF_BYTES ? byte_pairs(a, b, low == 0xffff ? ~0u : low)
                               : half_pairs(a, b, shift, low == 0xffff ? ~0u : low);
        if (high)
            second = of == OF_BYTES ? byte_pairs(a + 16, b + 16, high == 0xffff ? ~0u : high)
                                    : half_pairs(a + 16, b + 16, shift, high == 0xffff ? ~0u : high);
    }
    put(to, first, second);
}

/* The last block of a panel of `pairs` pairs, filled up. */
static void fill_up(uint16_t *panel, long pairs)
{
    memset(panel + pairs * PAIR, 0, (BLOCKS(2 * pairs) * BLOCK / 2 - pairs) * PAIR * sizeof *panel);
}

/* Keys [n, n + 32) of a block, as far as it has `width`, and pairs of dimensions. */
INLINE void panel_of_keys(const int cache, const attention_job *job, const char *keys, long n, long width,
                          uint16_t *panel)
{
    const long S = job->S, pairs = job->D / 2, size = cache == CACHE_BF16 ? 2 : 1;
    const uint32_t there = width - n >= PANEL ? ~0u : 0xffff;
    const char *at = keys + n * size, *uppers = keys + pairs * S + n;
    for (long k = 0; k < pairs; k++) {
        uint16_t *to = panel + k * PAIR;
        const char *even = at + 2 * k * S * size;
        if (cache == CACHE_BF16) put_rows(OF_BF16, even, even + S * size, there, to);
        else if (cache == CACHE_INT8) put_rows(OF_BYTES, even, even + S * size, there, to);
        else {
            const uint8_t *codes = (const uint8_t *)at + k * S, *upper = (const uint8_t *)uppers + k / 2 * S;
            const int place = (int)(k % 2 * 4);
            put(to, six_pairs(codes, upper, place), there == ~0u ? six_pairs(codes + 16, upper + 16, place) : (vu){0});
        }
    }
    fill_up(panel, pairs);
}

/* Dimensions [d, d + 32) of a run, as far as it has them, and pairs of a block's keys. */
INLINE void panel_of_values(const int of, const char *values, long d, long run, long width, uint16_t *panel)
{
    const long size = of == OF_BF16 ? 2 : 1;
    const uint32_t there = run - d >= PANEL ? ~0u : (1u << (run - d)) - 1;
    for (long k = 0; k < width / 2; k++) {
        const char *even = values + (2 * k * run + d) * size;
        put_rows(of, even, even + run * size, there, panel + k * PAIR);
    }
    fill_up(panel, width / 2);
}

/* y [rows][PANEL] = from + x times a panel of `depth` numbers a column; rows of x have `columns`. */
static void multiply_panel(long rows, const uint16_t *x, long columns, const uint16_t *panel, long depth,
                           const float *from, long ldf, float *y, long ldy)
{
    const long tile = BLOCKS(columns) * NEXT;
    for (long row = 0; row < rows; row += 2 * TILE)
        multiply_tiles(rows - row > TILE ? 2 : 1, x + row / TILE * tile, tile, panel, BLOCKS(depth), 0,
                       from + row * ldf, ldf, y + row * ldy, ldy);
}

/* scores [rows][width] of a block's keys; whole tiles of rows and whole panels of keys are written. */
static void score(const attention_job *job, const char *keys, long rows, long width, const uint16_t *q, uint16_t *panel,
                  float *scores, long lds)
{
    static const float nothing[PANEL];
    for (long n = 0; n < width; n += PANEL) {
        if (job->cache == CACHE_BF16) panel_of_keys(CACHE_BF16, job, keys, n, width, panel);
        else if (job->cache == CACHE_INT8) panel_of_keys(CACHE_INT8, job, keys, n, width, panel);
        else panel_of_keys(CACHE_INT4, job, keys, n, width, panel);
        multiply_panel(rows, q, job->D, panel, job->D, nothing, 0, scores + n, lds);
    }
}

/* mixed [rows][D] += weights [rows][S] times a block's first `width` values; whole tiles of both are written. */
static void mix(const attention_job *job, const char *values, long rows, long width, const uint16_t *weights,
                uint16_t *panel, float *mixed, long stride)
{
    const long run = run_of(job);
    for (long begin = 0; begin < job->D; begin += run)
        for (long d = 0; d < run; d += PANEL) {
            float *to = mixed + begin + d;
            if (job->cache == CACHE_BF16) panel_of_values(OF_BF16, values, d, run, width, panel);
            else if (job->cache == CACHE_INT8) panel_of_values(OF_BYTES, values, d, run, width, panel);
            else if (begin == 0) panel_of_values(OF_LOW, values, d, run, width, panel);
            else panel_of_values(OF_HIGH, values, d, run, width, panel);
            multiply_panel(rows, weights, job->S, panel, width, to, stride, to, stride);
        }
}
/* A query into its tile, rounded; what is not there stays as it is. */
static void put_query(const float *from, long count, uint16_t *to)
{
    for (long i = 0; i < count; i += BLOCK, to += NEXT) {
        uint32_t there = count - i >= BLOCK ? ~0u : (1u << (count - i)) - 1;
        vf low = (vf)_mm512_maskz_loadu_ps((__mmask16)there, from + i);
        vf high = (vf)_mm512_maskz_loadu_ps((__mmask16)(there >> 16), from + i + 16);
        _mm512_mask_storeu_epi16(to, there, (__m512i)narrowed(low, high));
    }
}

void attend_in_tiles(const attention_job *job, const tile *at, long g, float *scratch)
{
    const int codes = has_codes(job->cache);
    const places in = places_of(job, at->rows);
    const long D = job->D, S = job->S, rows = at->rows, bytes = head_bytes(job->cache, S, D);
    const long k_codes = S * key_bytes(job->cache, D), k_bytes = codes ? k_codes + 4 * S : bytes;
    float *mixed = scratch + in.mixed, *scores = scratch + in.scores, *mass = scratch + in.mass,
        *top = scratch + in.top;
    float *sums_of_q = scratch + in.sums_of_q;
    uint16_t *q = (uint16_t *)scratch, *weights = (uint16_t *)(scratch + in.weights);
    uint16_t *panel = (uint16_t *)(scratch + in.panel);
    const float middle = job->cache == CACHE_INT8 ? 128 : 8;
    const float log2_e = 1.44269504088896341f, factor = job->cap ? log2_e : job->scale * log2_e;
    block_ends ends;
    long low, high;
    /* Rows and columns that fill up tiles. */
    memset(q, 0, in.mixed * sizeof(float)), memset(weights, 0, (in.panel - in.weights) * sizeof(float));
    for (long r = 0; r < rows; r++) {
        const float *from = query(job, at, g, r);
        uint16_t *to = tiled_row(q, r, D);
        if (job->cache == CACHE_INT4) from = memcpy(mixed, from, D * sizeof(float)), spread(mixed, D);
        put_query(from, D, to);
        sums_of_q[r] = 0, top[r] = NOTHING;
        for (long d = 0; codes && d < D; d++) sums_of_q[r] += from_bf16(to[d / BLOCK * NEXT + d % BLOCK]);
    }
    memset(mixed, 0, in.high * in.stride * sizeof(float));
    memset(mass, 0, rows * 16 * sizeof(float));
    if (rows < PREFETCH_ROWS)
        ask_for_all((const char *)job->k_cache + (at->table[at->begin] * job->G + g) * bytes, k_bytes);
    for (long n = at->begin; n * S < at->reach; n++) {
        const long place = (at->table[n] * job->G + g) * bytes, width = keys_of(job, at, n);
        const char *keys = (const char *)job->k_cache + place, *values = (const char *)job->v_cache + place;
        const uint16_t *k_scales = (const uint16_t *)(keys + k_codes), *v_scales = (const uint16_t *)values;
        const int at_once = width == WEIGHED && S == WEIGHED && !job->cap;
        if (codes) v_scales = (const uint16_t *)(values + S * vector_bytes(job->cache, D));
        if (rows < PREFETCH_ROWS) ask_for_all(values, codes ? bytes - k_bytes : vector_bytes(job->cache, width * D));
        score(job, keys, rows, width, q, panel, scores, in.lds);
        if (codes && at_once) read_ends(k_scales, v_scales, middle, &ends);
        for (long r = 0; r < rows; r++) {
            float *row = scores + r * in.lds;
            uint32_t *to = (uint32_t *)tiled_row(weights, r, S);
            sums of = {top + r, mass + r * 16, mixed + r * in.stride, in.stride};
            seen_by(job, at, n, r, &low, &high);
            if (at_once) {
                if (codes) weigh(1, row, &ends, sums_of_q[r], low, high, factor, middle, to, NEXT / 2, &of);
                else weigh(0, row, NULL, 0, low, high, factor, 0, to, NEXT / 2, &of);
                continue;
            }
            if (codes) scale_scores(row, width, k_scales, k_scales + S, sums_of_q[r]);
            if (job->cap) cap_scores(row, width, job->scale, job->cap);
            if (low > 0 || high < width) hide(row, width, low, high);
            rise(row, width, factor, &of);
            if (codes) soften_codes(row, width, factor, v_scales, v_scales + S, middle, to, NEXT / 2, &of);
            else soften(row, width, factor, to, NEXT / 2, &of);
        }
        if (rows < PREFETCH_ROWS && (n + 1) * S < at->reach)
            ask_for_all((const char *)job->k_cache + (at->table[n + 1] * job->G + g) * bytes, k_bytes);
        mix(job, values, rows, width, weights, panel, mixed, in.stride);
    }
    for (long r = 0; r < rows; r++) {
        const float *sum = mixed + r * in.stride;
        float *to = answer(job, at, g, r), all = 0, base = 0;
        for (int i = 0; i < 16; i++) all += mass[r * 16 + i];
        for (int i = 0; codes && i < 16; i++) base += sum[in.stride - 16 + i];
        for (long d = 0; d < D; d++) to[d] = (sum[d] + base) / all;
        if (job->cache == CACHE_INT4) spread(to, D);
    }
}
#else
int attention_in_tiles(int cache, long D) { return (void)cache, (void)D, 0; }
long attention_tiles_scratch(const attention_job *job, long rows) { return (void)job, (void)rows, 0; }
void attend_in_tiles(const attention_job *job, const tile *at, long g, float *scratch)
{
    (void)job, (void)at, (void)g, (void)scratch;
}
#endif
