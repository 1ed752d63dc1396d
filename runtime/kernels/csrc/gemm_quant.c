/* y = x w^T + bias over weights of 4 or 8 bits that lie as quant.h says.
 *
 * Invariant: output (m, n) is bias[n] or 0, plus for each chunk of a group in ascending order offset * sum of x and
 * scale * sum, both sums over ascending k, whatever M, the tile a row falls into and the number of threads. So a row of
 * a batch is to the bit what it is alone. The offset is what a code of 0 stands for as it lies: -zero * scale, or the
 * minimum and 8 scales. */
#include "quant.h"
#include "team.h"
#include <omp.h>
#include <stdlib.h>

/* Columns of one sum; so many floats of a panel lie in the first cache beside the rows that meet them. */
#define CHUNK 128
#define BAND (12 * ROWS)
#define PANELS_A_TASK 8
/* Rows that meet several panels at once. */
#define FEW (ROWS == 12 ? 3 : 2)

/* What a tile multiplies with: the codes, or floats that one panel's codes were made into. */
enum source { FOURS = 4, BYTES = 8, FLOATS = 32 };

static const float nothing[PANEL];

INLINE long chunks_of(shape s) { return s.K / s.group * ((s.group + CHUNK - 1) / CHUNK); }

INLINE vf load_bytes(const char *p)
{
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    signed char narrow __attribute__((vector_size(LANES)));
    memcpy(&narrow, p, sizeof narrow);
    return __builtin_convertvector(narrow, vf);
#endif
}

/* Column j of 4: the nibbles j of the low and of the high half of each word, as numbers from -8 to 7. */
INLINE void nibbles(const char *p, int j, vf *a, vf *b)
{
    vi words;
    memcpy(&words, p, sizeof words);
#if defined(__AVX512BW__)
    /* Numbers as bfloat16, twice: the permutation looks at the low 5 bits of an index, of which the fifth is another
     * column's. */
    static const uint16_t numbers[32] = {
        0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0,
        0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
        0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    };
    vu pairs = (vu)_mm512_permutexvar_epi16((__m512i)((vu)words >> (4 * j)), _mm512_loadu_si512(numbers));
    *a = (vf)(pairs << 16);
    *b = (vf)(pairs & 0xffff0000u);
#else
    *a = __builtin_convertvector((words << (28 - 4 * j)) >> 28, vf);
    *b = __builtin_convertvector((words << (12 - 4 * j)) >> 28, vf);
#endif
}

/* The processor itself looks less far ahead than arithmetic on so few bytes needs. Not the compiler's builtin: it
 * counts as one that may change memory, and sums would leave their registers for it. */
#define AHEAD 2048
INLINE void ask_for(const char *p)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetcht0 (%0)" : : "r"(p));
#elif defined(__aarch64__)
    __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(p));
#endif
}

/* Scales [PANEL], then offsets [PANEL], of a group of a panel as floats. */
INLINE void load_ends(const int bits, int kind, const char *from, float *ends)
{
    const char *zeros = from + PANEL * scale_bytes(kind);
    UNROLL for (int v = 0; v < 2; v++) {
        vf scale = load_scale(bits == 4 ? kind : SCALE_F32, from, v), offset = {0};
        if (bits == 4 && kind == SCALE_F16_MINIMUM)
            offset = madd(fill(8), scale, load_scale(SCALE_F16, zeros, v));
        else if (bits == 4)
            offset = -load_bytes(zeros + v * LANES) * scale;
        store(ends + v * LANES, scale), store(ends + PANEL + v * LANES, offset);
    }
}

/* `rows` x (`panels` * PANEL) outputs in registers: y = from + offset * sum of x + scale * x w^T over the `depth`
 * columns of one chunk. `ends`: of each panel, as load_ends leaves them. */
INLINE void tile(const int source, const int rows, const int panels, long depth, const float *x, long ldx,
                 const float *sums, long lds, const char *w, long stride, long ahead, const float *ends,
                 const float *from, long ldf, long step, float *y, long ldy)
{
    const int now = source == FOURS ? 4 : 1;
    vf sum[panels][rows][2];
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int r = 0; r < rows; r++) sum[p][r][0] = sum[p][r][1] = (vf){0};
    for (long k = 0; k < depth; k += now, w += now * PANEL * source / 8)
        UNROLL for (int p = 0; p < panels; p++) {
            if (source != FLOATS) ask_for(w + p * stride + ahead);
            UNROLL for (int j = 0; j < now; j++) {
                vf a, b;
                if (source == FOURS)
                    nibbles(w + p * stride, j, &a, &b);
                else if (source == BYTES)
                    a = load_bytes(w + p * stride), b = load_bytes(w + p * stride + LANES);
                else
                    a = load((const float *)w), b = load((const float *)w + LANES);
                UNROLL for (int r = 0; r < rows; r++) {
                    vf one = fill(x[r * ldx + k + j]);
                    sum[p][r][0] = madd(one, a, sum[p][r][0]);
                    sum[p][r][1] = madd(one, b, sum[p][r][1]);
                }
            }
        }
    UNROLL for (int p = 0; p < panels; p++)
        UNROLL for (int v = 0; v < 2; v++) {
            vf scale = load(ends + 2 * p * PANEL + v * LANES), offset = load(ends + (2 * p + 1) * PANEL + v * LANES);
            UNROLL for (int r = 0; r < rows; r++)
                store(y + r * ldy + p * PANEL + v * LANES,
                      madd(scale, sum[p][r][v],
                           madd(fill(sums[r * lds]), offset, load(from + r * ldf + p * step + v * LANES))));
        }
}

/* The codes of a chunk as floats [depth][PANEL]. */
INLINE void widen(const int bits, long depth, const char *w, float *out)
{
    if (bits == 8)
        for (long k = 0; k < depth; k++, w += PANEL, out += PANEL) {
            ask_for(w + AHEAD);
            store(out, load_bytes(w)), store(out + LANES, load_bytes(w + LANES));
        }
    else
        for (long k = 0; k < depth; k += 4, w += 4 * LANES, out += 4 * PANEL) {
            ask_for(w + AHEAD);
            UNROLL for (int j = 0; j < 4; j++) {
                vf a, b;
                nibbles(w, j, &a, &b);
                store(out + j * PANEL, a), store(out + j * PANEL + LANES, b);
            }
        }
}

#if ROWS == 12
#define ALL_CASES(C) C(1) C(2) C(3) C(4) C(5) C(6) C(7) C(8) C(9) C(10) C(11) C(12)
#else
#define ALL_CASES(C) C(1) C(2) C(3) C(4) C(5) C(6)
#endif
#define CASE(R)                                                                                                        \
    case R: tile(source, R, 1, depth, x, ldx, sums, lds, w, 0, AHEAD, ends, from, ldf, 0, y, ldy); break;

INLINE void some_rows(const int source, int rows, long depth, const float *x, long ldx, const float *sums, long lds,
                      const char *w, const float *ends, const float *from, long ldf, float *y, long ldy)
{
    switch (rows) { ALL_CASES(CASE) }
}
/* Functions of their own: with several of them in one, pointers fight for registers. */
#define DEFINE_ROWS(NAME, SOURCE)                                                                                      \
    static __attribute__((noinline)) void NAME(int rows, long depth, const float *x, long ldx, const float *sums,      \
                                               long lds, const char *w, const float *ends, const float *from,          \
                                               long ldf, float *y, long ldy)                                           \
    {                                                                                                                  \
        some_rows(SOURCE, rows, depth, x, ldx, sums, lds, w, ends, from, ldf, y, ldy);                                 \
    }
DEFINE_ROWS(rows_of_fours, FOURS)
DEFINE_ROWS(rows_of_bytes, BYTES)
DEFINE_ROWS(rows_of_floats, FLOATS)

/* One panel against the rows of a band. Codes that more than one tile meets are made floats once. */
INLINE void panel(const int bits, long rows, shape s, const float *x, const float *sums, const char *w,
                  const float *from, float *y, long ldy)
{
    float wide[CHUNK * PANEL], ends[2 * PANEL];
    long tiles = (rows + ROWS - 1) / ROWS, lds = bits == 4 ? chunks_of(s) : 0, ldf = 0;
    for (long k = 0; k < s.K; k += s.group, w += group_bytes(bits, s)) {
        load_ends(bits, s.scale, w + code_bytes(bits, s.group), ends);
        for (long done = 0; done < s.group; done += CHUNK, sums += bits == 4) {
            long depth = s.group - done < CHUNK ? s.group - done : CHUNK;
            const char *codes = w + code_bytes(bits, done);
            const float *part = x + k + done;
            if (tiles > 1) widen(bits, depth, codes, wide);
            for (long t = 0; t < tiles; t++) {
                long row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
                (tiles > 1 ? rows_of_floats : bits == 4 ? rows_of_fours : rows_of_bytes)(
                    (int)count, depth, part + row * s.K, s.K, sums + row * lds, lds,
                    tiles > 1 ? (const char *)wide : codes, ends, from + row * ldf, ldf, y + row * ldy, ldy);
            }
            from = y, ldf = ldy;
        }
    }
}

/* All chunks of `panels` panels at once: so many sums hide how long a step of one takes. */
INLINE void several_panels(const int bits, const int rows, const int panels, shape s, const float *x, const float *sums,
                           const char *w, const float *from, long step, float *y, long ldy)
{
    const char *last = w + s.panel - AHEAD;
    long lds = bits == 4 ? chunks_of(s) : 0, ldf = 0;
    float ends[panels * 2 * PANEL];
    for (long k = 0; k < s.K; k += s.group, w += group_bytes(bits, s)) {
        for (int p = 0; p < panels; p++)
            load_ends(bits, s.scale, w + p * s.panel + code_bytes(bits, s.group), ends + p * 2 * PANEL);
        for (long done = 0; done < s.group; done += CHUNK, sums += bits == 4) {
            long depth = s.group - done < CHUNK ? s.group - done : CHUNK;
            /* After the end of a panel comes that of the panels which are met next. */
            long ahead = AHEAD + (w + code_bytes(bits, done) < last ? 0 : (panels - 1) * s.panel);
            tile(bits, rows, panels, depth, x + k + done, s.K, sums, lds, w + code_bytes(bits, done), s.panel, ahead,
                 ends, from, ldf, step, y, ldy);
            from = y, ldf = ldy, step = PANEL;
        }
    }
}

#define CASE_PANELS(P)                                                                                                 \
    case P:                                                                                                            \
        if (P <= most) several_panels(bits, rows, P, s, x, sums, w + p * s.panel, from, step, y + p * PANEL, N);       \
        break;

/* Up to FEW rows against panels [first, last). */
INLINE void few_rows(const int bits, const int rows, shape s, const float *x, const float *sums, const char *w,
                     long first, long last, const float *bias, float *y, long N)
{
    const long most = rows == 1 ? 4 : 2;
    long step = bias ? PANEL : 0, count;
    for (long p = first; p < last; p += count) {
        const float *from = bias ? bias + p * PANEL : nothing;
        count = last - p < most ? last - p : most;
        switch (count) { CASE_PANELS(1) CASE_PANELS(2) CASE_PANELS(3) CASE_PANELS(4) }
    }
}

#define DEFINE(BITS)                                                                                                   \
    static __attribute__((noinline)) void panel_##BITS(long rows, shape s, const float *x, const float *sums,          \
                                                       const char *w, const float *from, float *y, long ldy)           \
    {                                                                                                                  \
        panel(BITS, rows, s, x, sums, w, from, y, ldy);                                                                \
    }                                                                                                                  \
    static __attribute__((noinline)) void few_rows_##BITS(long rows, shape s, const float *x, const float *sums,       \
                                                          const char *w, long first, long last, const float *bias,     \
                                                          float *y, long N)                                            \
    {                                                                                                                  \
        if (rows == 1)                                                                                                 \
            few_rows(BITS, 1, s, x, sums, w, first, last, bias, y, N);                                                 \
        else if (rows == 2)                                                                                            \
            few_rows(BITS, 2, s, x, sums, w, first, last, bias, y, N);                                                 \
        else                                                                                                           \
            few_rows(BITS, 3, s, x, sums, w, first, last, bias, y, N);                                                 \
    }
DEFINE(4)
DEFINE(8)

/* Rows of a band against panels [first, last); the last panel through a buffer where N does not fill it, so that
 * nothing beyond y is written. */
INLINE void band_of_rows(const int bits, long rows, shape s, const float *x, const float *sums, const char *w,
                         long first, long last, const float *bias, float *y, long N)
{
    long p = first, full = last * PANEL <= N ? last : last - 1, lds = bits == 4 ? chunks_of(s) : 0;
    if (rows <= FEW) (bits == 4 ? few_rows_4 : few_rows_8)(rows, s, x, sums, w, first, full, bias, y, N), p = full;
    for (; p < full; p++)
        (bits == 4 ? panel_4 : panel_8)(rows, s, x, sums, w + p * s.panel, bias ? bias + p * PANEL : nothing,
                                        y + p * PANEL, N);
    if (full == last) return;
    long width = N - p * PANEL;
    float start[PANEL] = {0}, out[ROWS * PANEL];
    if (bias) memcpy(start, bias + p * PANEL, width * sizeof(float));
    for (long row = 0; row < rows; row += ROWS) {
        long count = rows - row < ROWS ? rows - row : ROWS;
        (bits == 4 ? panel_4 : panel_8)(count, s, x + row * s.K, sums + row * lds, w + p * s.panel, start, out, PANEL);
        for (long r = 0; r < count; r++)
            memcpy(y + (row + r) * N + p * PANEL, out + r * PANEL, width * sizeof(float));
    }
}

/* The sum of x over each chunk, [rows][chunks]. */
static void sum_chunks(shape s, long rows, const float *x, float *sums)
{
    for (long r = 0; r < rows; r++, x += s.K)
        for (long k = 0; k < s.K; k += s.group)
            for (long done = 0; done < s.group; done += CHUNK) {
                long depth = s.group - done < CHUNK ? s.group - done : CHUNK, i = 0;
                const float *part = x + k + done;
                vf all = {0};
                float sum = 0;
                for (; i + LANES <= depth; i += LANES) all += load(part + i);
                for (int lane = 0; lane < LANES; lane++) sum += all[lane];
                for (; i < depth; i++) sum += part[i];
                *sums++ = sum;
            }
}

long sums_of_x(int bits, long M, long K, long group)
{
    shape s = {K, group, 0, 0};
    return bits == 4 ? (M < BAND ? M : BAND) * chunks_of(s) : 0;
}

void linear_quant_team(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                       long K, long group, float *sums)
{
    shape s = {K, group, 0, scale};
    s.panel = K / group * group_bytes(bits, s);
    long panels = (N + PANEL - 1) / PANEL, bands = (M + BAND - 1) / BAND, threads = omp_get_num_threads();
    long band = ((M + bands - 1) / bands + ROWS - 1) / ROWS * ROWS, summed = -1;
    bands = (M + band - 1) / band;
    long shares = (panels + PANELS_A_TASK - 1) / PANELS_A_TASK;
    if (bands * shares < 4 * threads) shares = (4 * threads + bands - 1) / bands;
    /* Few rows meet several panels at once, and each thread gets as many of them as the next. */
    if (M <= FEW) shares = threads * ((panels + PANELS_A_TASK * threads - 1) / (PANELS_A_TASK * threads));
    if (shares > panels) shares = panels;
    _Pragma("omp for schedule(dynamic, 1)") for (long task = 0; task < bands * shares; task++) {
        long index = task / shares, row = index * band, rows = M - row < band ? M - row : band;
        long share = task % shares, first = panels * share / shares, last = panels * (share + 1) / shares;
        if (bits == 8) {
            band_of_rows(8, rows, s, x + row * K, nothing, w, first, last, bias, y + row * N, N);
            continue;
        }
        if (summed != index) sum_chunks(s, rows, x + row * K, sums), summed = index;
        band_of_rows(4, rows, s, x + row * K, sums, w, first, last, bias, y + row * N, N);
    }
}

/* Returns 1 where there is no memory for the sums of x, else 0. */
int linear_quant(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                 long K, long group)
{
    long count = sums_of_x(bits, M, K, group);
    float *sums = count ? malloc((size_t)omp_get_max_threads() * count * sizeof(float)) : NULL;
    if (count && !sums) return 1;
    _Pragma("omp parallel")
        linear_quant_team(bits, scale, x, w, bias, y, M, N, K, group, sums + omp_get_thread_num() * count);
    free(sums);
    return 0;
}
