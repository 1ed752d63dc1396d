/* Single AMX instructions for tests/kernels/test_amx.py, which holds them against sums of its own. */
#include <stdint.h>

typedef struct {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} layout;

/* y [M][64] += x [M][4 K] w [K][64], with `bytes` of each row of y and w; rows of memory are 64 bytes apart. */
#define DEFINE(NAME, INSTRUCTION)                                                                                      \
    void NAME(int M, int K, int bytes, const void *x, const void *w, void *y)                                          \
    {                                                                                                                  \
        layout of = {.palette = 1, .bytes = {bytes, 4 * K, bytes}, .rows = {M, M, K}};                                 \
        __asm__ volatile("ldtilecfg %0\n tileloadd 64(%1,%4,1), %%tmm0\n tileloadd (%2,%4,2), %%tmm1\n"                \
                         "tileloaddt1 -64(%3,%4,1), %%tmm2\n" INSTRUCTION " %%tmm2, %%tmm1, %%tmm0\n"                  \
                         "tilestored %%tmm0, 64(%1,%4,1)\n tilerelease"                                                \
                         : : "m"(of), "r"((char *)y - 64), "r"(x), "r"((const char *)w + 64), "r"(64L) : "memory");    \
    }
DEFINE(bf16, "tdpbf16ps")
DEFINE(signed_signed, "tdpbssd")
DEFINE(signed_unsigned, "tdpbsud")
DEFINE(unsigned_signed, "tdpbusd")
DEFINE(unsigned_unsigned, "tdpbuud")

/* Zeros over y, by a tile of 16 rows. */
void zero(void *y)
{
    layout of = {.palette = 1, .bytes = {64}, .rows = {16}};
    __asm__ volatile("ldtilecfg %0\n tileloadd (%1,%2,1), %%tmm0\n tilezero %%tmm0\n tilestored %%tmm0, (%1,%2,1)\n"
                     "tilerelease"
                     : : "m"(of), "r"(y), "r"(64L) : "memory");
}

/* What each of these does ends the process. */
void use_released_tiles(void) { __asm__ volatile("tilerelease\n tilezero %tmm0"); }
void run_an_instruction_that_is_none(void) { __asm__ volatile("ud2"); }
void multiply_tiles_that_do_not_fit(void)
{
    layout of = {.palette = 1, .bytes = {64, 64, 64}, .rows = {16, 16, 15}};
    __asm__ volatile("ldtilecfg %0\n tdpbf16ps %%tmm2, %%tmm1, %%tmm0" : : "m"(of));
}
