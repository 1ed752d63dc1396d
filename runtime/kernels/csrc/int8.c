#include "int8.h"

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

/* Codes of `count` numbers, filled up with zeros to whole words of eight, in room for whole vectors. Returns their sum. */
static int32_t quantize_piece(const float *x, long count, int8_t *codes, float *scale)
{
    int8_t narrow __attribute__((vector_size(LANES)));
    float rest[LANES] = {0};
    const long whole = count / LANES * LANES;
    memcpy(rest, x + whole, (count - whole) * sizeof(float));
    vi most = (vi)load(rest) & 0x7fffffff, sums = {0};
    for (long k = 0; k < whole; k += LANES) most = most_of(most, (vi)load(x + k) & 0x7fffffff);
    const int32_t bits = largest_lane(most);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    memset(codes, 0, (count + 7) / 8 * 8);
    *scale = bits >= 0x7f800000 ? __builtin_nanf("") : 0;
    if (bits >= 0x7f800000 || largest < LEAST) return 0;
    *scale = largest / 127;
    const vf factor = fill(127 / largest);
    for (long k = 0; k < count; k += LANES) {
        vi made = nearest((k < whole ? load(x + k) : load(rest)) * factor);
        sums += made;
        narrow = __builtin_convertvector(made, __typeof__(narrow));
        memcpy(codes + k, &narrow, sizeof narrow);
    }
    return sum_of_lanes(sums);
}

/* Each eight columns as the nibbles of a word of weights lie: 0, 4, 1, 5, then 2, 6, 3, 7. */
INLINE void in_order_of_fours(int8_t *codes, long count)
{
    typedef int8_t bytes __attribute__((vector_size(16)));
    bytes some;
    for (long k = 0; k < count; k += 16) {
        memcpy(&some, codes + k, sizeof some);
        some = __builtin_shuffle(some, (bytes){0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15});
        memcpy(codes + k, &some, sizeof some);
    }
}

void quantize_rows(int bits, const float *x, long rows, long high, long K, long group, uint32_t *out)
{
    int8_t codes[PIECE + 16] __attribute__((aligned(64)));
    const int32_t excess = EXCESS(vnni_works() ? VNNI : PLAIN, bits);
    for (long r = 0; r < rows; r++, x += K) {
        uint32_t *quads = out + r, *ends = out + quads_of(K, group) * high + 3 * r;
        for (long begin = 0; begin < K; begin += group)
            for (long done = 0; done < group; done += PIECE, ends += 3 * high) {
                long count = group - done < PIECE ? group - done : PIECE;
                float scale, scaled;
                int32_t sum = quantize_piece(x + begin + done, count, codes, &scale);
                scaled = scale * (float)sum;
                ends[0] = (uint32_t)(-excess * sum);
                memcpy(ends + 1, &scale, 4), memcpy(ends + 2, &scaled, 4);
                if (bits == 4) in_order_of_fours(codes, count);
                for (long k = 0; k < count; k += 4, quads += high) memcpy(quads, codes + k, 4);
            }
    }
}
