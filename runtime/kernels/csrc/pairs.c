#include "pairs.h"
#include "tiles.h"

#if HAVE_PAIRS && HAVE_NEON_DOTS
int pairs_exist(void) { return bfdot_works(); }
#elif HAVE_PAIRS
#include <cpuid.h>
#include <pthread.h>

static int there;

static void look(void)
{
    unsigned a, b, c, d;
    /* Leaf 7, subleaf 1: AVX512_BF16. */
    there = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 5;
}

int pairs_exist(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look);
    return there;
}
#else
int pairs_exist(void) { return 0; }
#endif

int pairs_work(void) { return pairs_exist() && !tiles_work(); }

void fill_pairs(const float *x, long rows, long high, long K, long group, uint32_t *out)
{
    const long pairs = (group + 1) / 2;
    for (long r = 0; r < rows; r++, x += K)
        for (long begin = 0; begin < K; begin += group) {
            const float *from = x + begin;
            uint32_t *to = out + begin / group * pairs * high + r;
            long k = 0;
            for (; k + 2 * LANES <= group; k += 2 * LANES) {
                vu both[2] = {(vu)rounded(load(from + k)), (vu)rounded(load(from + k + LANES))};
                for (int i = 0; i < 2; i++)
                    for (int lane = 0; lane < LANES; lane += 2)
                        to[(k / 2 + (i * LANES + lane) / 2) * high] = both[i][lane] >> 16 | both[i][lane + 1];
            }
            for (; k < group; k += 2)
                to[k / 2 * high] = to_bf16(from[k]) | (k + 1 < group ? (uint32_t)to_bf16(from[k + 1]) << 16 : 0);
        }
}
