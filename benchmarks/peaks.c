/* What some cores can do at most: loops on registers alone for arithmetic, a buffer that no cache holds for memory. */
#include <stdint.h>
#include <stddef.h>

/* Reads `bytes` once with all threads; returns a sum, so that nothing is left out. */
int64_t read_all(const char *at, size_t bytes) {
    int64_t total = 0;
    const int64_t *words = (const int64_t *)at;
#pragma omp parallel for simd reduction(+ : total) schedule(static)
    for (size_t i = 0; i < bytes / 8; i++)
        total += words[i];
    return total;
}

/* a = b + 3 c: STREAM's triad. */
void triad(float *a, const float *b, const float *c, size_t count) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < count; i++)
        a[i] = b[i] + 3.0f * c[i];
}

/* 12 or 20 chains of one instruction, in registers that no compiler moves about. */
#define EACH_OF_12(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define EACH_OF_20(DO) EACH_OF_12(DO) DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19)
#define LOOP(name, each, clear, step, ...)                                                                             \
    void name(long rounds)                                                                                             \
    {                                                                                                                  \
        _Pragma("omp parallel firstprivate(rounds)")                                                                   \
            __asm__ volatile(each(clear) "1:\n" each(step) "dec %0\njnz 1b" : "+r"(rounds) : : "cc", __VA_ARGS__);     \
    }

#if defined(__AVX512F__)
#define CLEAR(i) "vpxorq %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define WIDE(instruction, i) instruction " %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define USED                                                                                                           \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",         \
        "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19"
#define FLOAT32(i) WIDE("vfmadd231ps", i)
LOOP(float32, EACH_OF_20, CLEAR, FLOAT32, USED)
#elif defined(__FMA__)
#define CLEAR(i) "vxorps %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n"
#define FLOAT32(i) "vfmadd231ps %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n"
LOOP(float32, EACH_OF_12, CLEAR, FLOAT32, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
     "xmm9", "xmm10", "xmm11")
#endif
#ifdef __AVX512BF16__
#define BFLOAT16(i) WIDE("vdpbf16ps", i)
LOOP(bfloat16, EACH_OF_20, CLEAR, BFLOAT16, USED)
#endif
#ifdef __AVX512VNNI__
#define INT8(i) WIDE("vpdpbusd", i)
LOOP(int8, EACH_OF_20, CLEAR, INT8, USED)
#endif
