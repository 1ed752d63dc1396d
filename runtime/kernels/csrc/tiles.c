#include "tiles.h"

#if defined(__AVX512F__) && defined(__linux__)
#define HAVE_TILES 1
#include <cpuid.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef HAVE_TILES
/* Of Linux: asks to use the state that the tiles are. */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

static int allowed, of_bytes;

static void ask(void)
{
    unsigned a, b, c, d;
    /* Leaf 7: AMX-BF16, AMX-TILE and AMX-INT8. */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24)) return;
    allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    of_bytes = allowed && d & 1u << 25;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

int tiles_work(void)
{
    pthread_once(&once, ask);
    return allowed;
}

int byte_tiles_work(void)
{
    pthread_once(&once, ask);
    return of_bytes;
}

void take_tiles(void)
{
    /* All eight tiles: 16 rows of 64 bytes. */
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } layout = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(layout));
}

void drop_tiles(void) { __asm__ volatile("tilerelease"); }

#define LOAD(T, P, STRIDE) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #T : : "r"((const void *)(P)), "r"((long)(STRIDE)) : "memory")
#define STORE(T, P, STRIDE) \
    __asm__ volatile("tilestored %%tmm" #T ", (%0,%1,1)" : : "r"((void *)(P)), "r"((long)(STRIDE)) : "memory")
/* y += x w: tiles of y, x and w. */
#define MULTIPLY(Y, X, W) __asm__ volatile("tdpbf16ps %%tmm" #W ", %%tmm" #X ", %%tmm" #Y : :)

void multiply_tiles(int count, const uint16_t *x, long tile, const uint16_t *w, long blocks, long ahead,
                    const float *from, long ldf, float *y, long ldy)
{
    const long bytes = sizeof(float), next = 2 * PANEL * sizeof(uint16_t);
    const float *lower = from + TILE * ldf;
    LOAD(0, from, ldf * bytes);
    LOAD(1, from + LANES, ldf * bytes);
    if (count == 2) {
        LOAD(2, lower, ldf * bytes);
        LOAD(3, lower + LANES, ldf * bytes);
        for (long b = 0; b < blocks; b++, x += TILE * BLOCK, w += BLOCK * PANEL) {
            LOAD(4, x, 2 * BLOCK);
            LOAD(6, w, next);
            MULTIPLY(0, 4, 6);
            LOAD(7, w + PANEL, next);
            MULTIPLY(1, 4, 7);
            LOAD(5, x + tile, 2 * BLOCK);
            MULTIPLY(2, 5, 6);
            MULTIPLY(3, 5, 7);
        }
        STORE(2, y + TILE * ldy, ldy * bytes);
        STORE(3, y + TILE * ldy + LANES, ldy * bytes);
    } else {
        for (long b = 0; b < blocks; b++, x += TILE * BLOCK, w += BLOCK * PANEL) {
            if (ahead)
                for (int i = 0; i < 32; i++) ask_for((const char *)w + ahead + 64 * i);
            LOAD(4, x, 2 * BLOCK);
            LOAD(6, w, next);
            MULTIPLY(0, 4, 6);
            LOAD(7, w + PANEL, next);
            MULTIPLY(1, 4, 7);
        }
    }
    STORE(0, y, ldy * bytes);
    STORE(1, y + LANES, ldy * bytes);
}
#else
int tiles_work(void) { return 0; }
int byte_tiles_work(void) { return 0; }
void take_tiles(void) {}
void drop_tiles(void) {}
void multiply_tiles(int count, const uint16_t *x, long tile, const uint16_t *w, long blocks, long ahead,
                    const float *from, long ldf, float *y, long ldy)
{
    (void)count, (void)x, (void)tile, (void)w, (void)blocks, (void)ahead, (void)from, (void)ldf, (void)y, (void)ldy;
}
#endif

void fill_tile(const float *x, long rows, long K, long group, long tile, uint16_t *out)
{
    long blocks = BLOCKS(group), all = K / group * blocks;
    out += tile * all * TILE * BLOCK;
    for (long r = 0; r < TILE; r++) {
        long row = tile * TILE + r;
        for (long b = 0; b < all; b++) {
            uint16_t *to = out + (b * TILE + r) * BLOCK;
            long begin = b % blocks * BLOCK, there = row < rows ? group - begin : 0;
            const float *from = x + row * K + b / blocks * group + begin;
            if (there >= BLOCK) {
                for (int i = 0; i < BLOCK; i += LANES) {
                    vu wide = (vu)rounded(load(from + i)) >> 16;
                    uint16_t narrow __attribute__((vector_size(LANES * 2))) =
                        __builtin_convertvector(wide, __typeof__(narrow));
                    memcpy(to + i, &narrow, sizeof narrow);
                }
                continue;
            }
            for (long i = 0; i < BLOCK; i++) to[i] = i < there ? to_bf16(from[i]) : 0;
        }
    }
}
