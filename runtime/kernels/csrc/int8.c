#include "int8.h"
#include "rowwise.h"
#include "six_rows.h"

#if HAVE_VNNI
#include <cpuid.h>
#include <pthread.h>

static int there;

static void look(void)
{
    unsigned a, b, c, d;
#if LANES == 16
    /* Leaf 7: AVX512_VNNI. */
    there = __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & 1u << 11;
#else
    /* Leaf 7, subleaf 1: AVX_VNNI. */
    there = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
#endif
}

int vnni_works(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look);
    return there;
}
#else
int vnni_works(void) { return 0; }
#endif

INLINE vi most_of(vi a, vi b)
{
#if defined(__AVX512F__)
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    vi more = a > b;
    return (a & more) | (b & ~more);
#endif
}

/* The largest and the sum of all lanes. */
INLINE int32_t largest_lane(vi a)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32((__m512i)a);
#else
    int32_t most = a[0];
    for (int i = 1; i < LANES; i++) most = a[i] > most ? a[i] : most;
    return most;
#endif
}

INLINE int32_t sum_of_lanes(vi a)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)a);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += a[i];
    return sum;
#endif
}

/* The nearest whole numbers, ties to even: of numbers far below 2^22. */
INLINE vi nearest(vf x) { return (vi)(x + 12582912.0f) - 0x4b400000; }

/* Each eight columns as the nibbles of a word of weights lie: 0, 4, 1, 5, then 2, 6, 3, 7. By instructions where there
 * are some: the compiler takes a vector apart for its own shuffle. */
#if defined(__AVX512F__)
INLINE vi in_order_of_fours(vi codes)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return (vi)_mm512_permutexvar_epi32(order, (__m512i)codes);
}
INLINE void put_in_order_of_fours(int8_t *codes, long count) { (void)codes, (void)count; }
#elif defined(__AVX2__)
INLINE vi in_order_of_fours(vi codes)
{
    return (vi)_mm256_permutevar8x32_epi32((__m256i)codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
INLINE void put_in_order_of_fours(int8_t *codes, long count) { (void)codes, (void)count; }
#else
INLINE vi in_order_of_fours(vi codes) { return codes; }
INLINE void put_in_order_of_fours(int8_t *codes, long count)
{
    for (int8_t *end = codes + count; codes < end; codes += 8) {
        const int8_t made[] = {codes[0], codes[4], codes[1], codes[5], codes[2], codes[6], codes[3], codes[7]};
        memcpy(codes, made, sizeof made);
    }
}
#endif

/* Codes of `count` numbers, filled up with zeros to whole words of eight, in room for whole vectors. Returns their sum.
 * Beside weights of 4 bits each eight columns lie as the nibbles of a word do: 0, 4, 1, 5, then 2, 6, 3, 7. */
INLINE int32_t quantize_piece(const int bits, const float *x, const long count, int8_t *codes, float *scale)
{
    int8_t narrow __attribute__((vector_size(LANES)));
    float rest[LANES] = {0};
    const long whole = count / LANES * LANES;
    if (count > whole) memcpy(rest, x + whole, (count - whole) * sizeof(float));
    vi most = (vi)load(rest) & 0x7fffffff, sums = {0};
    UNROLL for (long k = 0; k < whole; k += LANES) most = most_of(most, (vi)load(x + k) & 0x7fffffff);
    const int32_t power = largest_lane(most);
    float largest;
    memcpy(&largest, &power, sizeof largest);
    if (power >= 0x7f800000 || largest < LEAST) {
        *scale = power >= 0x7f800000 ? __builtin_nanf("") : 0;
        memset(codes, 0, (count + 7) / 8 * 8);
        return 0;
    }
    *scale = largest / 127;
    const vf factor = fill(127 / largest);
    UNROLL for (long k = 0; k < count; k += LANES) {
        vi made = nearest((k < whole ? load(x + k) : load(rest)) * factor);
        sums += made;
        if (bits == 4) made = in_order_of_fours(made);
        narrow = __builtin_convertvector(made, __typeof__(narrow));
        memcpy(codes + k, &narrow, sizeof narrow);
    }
    if (bits == 4) put_in_order_of_fours(codes, count);
    return sum_of_lanes(sums);
}

/* A piece of a row into its places. Returns its part of the run's sum. */
INLINE float put_piece(const int bits, const long count, const float *x, int32_t excess, long high, uint32_t *quads,
                       uint32_t *ends)
{
    int8_t codes[PIECE + 16] __attribute__((aligned(64)));
    float scale;
    int32_t sum = quantize_piece(bits, x, count, codes, &scale);
    ends[0] = (uint32_t)(-excess * sum);
    memcpy(ends + 1, &scale, 4);
    UNROLL for (long k = 0; k < count; k += 4) memcpy(quads + k / 4 * high, codes + k, 4);
    return scale * (float)sum;
}

INLINE void put_rows(const int bits, const float *x, long rows, long high, long K, long group, uint32_t *out)
{
    const int32_t excess = EXCESS(vnni_works() ? VNNI : PLAIN, bits);
    for (long r = 0; r < rows; r++) {
        uint32_t *quads = out + r, *ends = out + quads_of(K, group) * high + 2 * r;
        uint32_t *sums = out + (quads_of(K, group) + 2 * pieces_of(K, group)) * high + r;
        for (long begin = 0; begin < K; begin += group)
            for (long run = 0; run < group; run += RUN, sums += high) {
                const long end = group - run < RUN ? group - run : RUN;
                float sum = 0;
                for (long done = 0; done < end; done += PIECE, x += PIECE, ends += 2 * high,
                     quads += PIECE / 4 * high) {
                    if (end - done >= PIECE) {
                        sum += put_piece(bits, PIECE, x, excess, high, quads, ends);
                        continue;
                    }
                    sum += put_piece(bits, end - done, x, excess, high, quads, ends);
                    x -= PIECE - (end - done), quads -= (PIECE / 4 - (end - done + 3) / 4) * high;
                }
                memcpy(sums, &sum, 4);
            }
    }
}

#if defined(SIX)
/* A tile of six rows, a piece of all at a time: groups are whole pieces. */
INLINE void put_six_rows(const int bits, const float *x, long K, long group, uint32_t *out)
{
    const int32_t excess = EXCESS(vnni_works() ? VNNI : PLAIN, bits);
    uint32_t *quads = out, *ends = out + quads_of(K, group) * SIX, *sums = ends + 2 * pieces_of(K, group) * SIX;
    float parts[LANES], sum[SIX] = {0};
    for (long k = 0; k < K; k += PIECE, quads += PIECE / 4 * SIX, ends += 2 * SIX) {
        if (!quantize_six(bits, x + k, K, excess, quads, ends, parts))
            for (int r = 0; r < SIX; r++)
                parts[r] = put_piece(bits, PIECE, x + r * K + k, excess, SIX, quads + r, ends + 2 * r);
        for (int r = 0; r < SIX; r++) sum[r] += parts[r];
        const long next = (k + PIECE) % group;
        if (next && next % RUN) continue;
        memcpy(sums, sum, sizeof sum), memset(sum, 0, sizeof sum);
        sums += SIX;
    }
}
#endif

INLINE void put_tile(const int bits, const float *x, long rows, long high, long K, long group, uint32_t *out)
{
#if defined(SIX)
    if (rows == SIX && high == SIX && group % PIECE == 0) {
        put_six_rows(bits, x, K, group, out);
        return;
    }
#endif
    put_rows(bits, x, rows, high, K, group, out);
}

void quantize_rows(int bits, const float *x, long rows, long high, long K, long group, uint32_t *out)
{
    if (bits == 4) put_tile(4, x, rows, high, K, group, out);
    else put_tile(8, x, rows, high, K, group, out);
}

INLINE void put_gated(const int bits, const float *both, long rows, long high, long K, long group, long column,
                      uint32_t *out)
{
    const int32_t excess = EXCESS(vnni_works() ? VNNI : PLAIN, bits);
    const long runs = (group + RUN - 1) / RUN, run = column / group * runs + column % group / RUN;
    const long quads = quads_of(K, group), first = quads + 2 * (column / PIECE),
        sums = quads + 2 * pieces_of(K, group) + run;
    for (long row = 0; row < rows; row += high, out += high * words_of(K, group), both += 2 * PIECE * high) {
        const long count = rows - row < high ? rows - row : high;
        float made[INT8_ROWS * PIECE] __attribute__((aligned(64))), parts[LANES > INT8_ROWS ? LANES : INT8_ROWS];
        for (long r = 0; r < count; r++)
            activate_row_of(SILU, both + r * 2 * PIECE, both + r * 2 * PIECE + PIECE, made + r * PIECE, 0, PIECE);
        uint32_t *codes = out + column / 4 * high, *ends = out + first * high, *place = out + sums * high;
        int done = 0;
#if defined(SIX)
        if (count == SIX && high == SIX) done = quantize_six(bits, made, PIECE, excess, codes, ends, parts);
#endif
        for (long r = 0; r < count; r++) {
            float sum = 0;
            if (!done) parts[r] = put_piece(bits, PIECE, made + r * PIECE, excess, high, codes + r, ends + 2 * r);
            if (column % group % RUN) memcpy(&sum, place + r, 4);
            sum += parts[r];
            memcpy(place + r, &sum, 4);
        }
    }
}

void quantize_gated(int bits, const float *both, long rows, long high, long K, long group, long column, uint32_t *out)
{
    if (bits == 4) put_gated(4, both, rows, high, K, group, column, out);
    else put_gated(8, both, rows, high, K, group, column, out);
}
