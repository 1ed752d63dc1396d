/* Which instructions of this processor the kernels use. */
#include "int8.h"
#include "neon.h"
#include "pairs.h"
#include "tiles.h"

/* The name of the instructions, such as avx512-amx. It lives as long as the library does. */
const char *instructions_in_use(void)
{
#if defined(__AVX512F__)
    return tiles_work() ? "avx512-amx" : pairs_work() ? "avx512-bf16" : "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__AVX__)
    return "avx";
#elif defined(__aarch64__)
    return pairs_work() ? "neon-bf16" : "neon";
#else
    return "generic";
#endif
}

/* Whether rows of 8 bits are faster here than rows of bfloat16: VPDPBUSD adds twice the products of VDPBF16PS, and
 * VPMADDUBSW of a fused multiply-add; tiles of bfloat16 add more than both. SDOT adds twice the products of BFDOT. */
int int8_is_faster(void)
{
#if defined(__AVX2__)
    return !tiles_work();
#else
    return sdot_works();
#endif
}
