/* Runs the AMX instructions of the C kernels on a processor that has none, for tests.
 *
 * Loaded before the kernels (LD_PRELOAD). An AMX instruction raises SIGILL where it does not exist; the handler decodes
 * it, does what Intel's manual says (Software Developer's Manual, volume 2, and its chapter on AMX exceptions), and
 * steps over it. Tiles belong to a thread. Whatever else raises SIGILL, and an AMX instruction whose operands the
 * manual forbids, ends the process as it does without this file. The kernels ask `tiles_work` and `byte_tiles_work`,
 * whose answers here come before their own. Nothing here is part of an installation. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#define TILES 8
#define ROWS 16
#define BYTES 64

typedef struct {
    int configured;
    /* Of each tile: bytes of a row, and rows. */
    uint16_t wide[TILES];
    uint8_t high[TILES];
    uint8_t of[TILES][ROWS][BYTES] __attribute__((aligned(64)));
} tiles;

static __thread tiles mine __attribute__((tls_model("initial-exec")));

enum { LOADED, STORED, OF_BF16, OF_BYTES, KINDS };
static atomic_long done[KINDS];

int tiles_work(void) { return 1; }
int byte_tiles_work(void) { return 1; }
/* Instructions of a kind since the process began. */
long emulated(int kind) { return done[kind]; }

/* What the bytes of an instruction say. `memory`: of its operand, `step`: what its index register holds times scale. */
typedef struct {
    int opcode, prefix, reg, rm, vvvv, is_register, has_sib;
    long length, memory, step;
} instruction;

enum { NONE, P66, PF3, PF2 };

static long value_of(const ucontext_t *context, int number)
{
    static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[places[number]];
}

/* VEX of three bytes, map 0F38, W 0, 128 bits, then opcode, ModRM, SIB and displacement. Returns 0 for anything
 * else. */
static int decode(const ucontext_t *context, instruction *found)
{
    const uint8_t *start = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP], *at = start;
    if (at[0] != 0xc4 || (at[1] & 31) != 2 || at[2] & 0x84) return 0;
    const int r = !(at[1] & 128) * 8, x = !(at[1] & 64) * 8, b = !(at[1] & 32) * 8;
    found->vvvv = ~(at[2] >> 3) & 15, found->prefix = at[2] & 3, found->opcode = at[3];
    const uint8_t modrm = at[4];
    const int mod = modrm >> 6;
    found->reg = (modrm >> 3 & 7) + r, found->rm = (modrm & 7) + b;
    found->is_register = mod == 3, found->has_sib = mod != 3 && (modrm & 7) == 4;
    found->memory = found->step = 0;
    at += 5;
    int relative = 0;
    if (mod != 3) {
        int base = found->rm, absent = mod == 0 && (modrm & 7) == 5;
        relative = absent;
        if (found->has_sib) {
            const uint8_t sib = *at++;
            const int index = (sib >> 3 & 7) + x;
            base = (sib & 7) + b, absent = mod == 0 && (sib & 7) == 5, relative = 0;
            if (index != 4) found->step = value_of(context, index) << (sib >> 6);
        }
        if (!absent) found->memory = value_of(context, base);
        if (mod == 1) found->memory += (int8_t)*at++;
        if (mod == 2 || absent) {
            int32_t far;
            memcpy(&far, at, 4);
            found->memory += far, at += 4;
        }
    }
    found->length = at - start;
    if (relative) found->memory += (long)at;
    return 1;
}

/* LDTILECFG. Returns 0 for what #GP is raised for. */
static int configure(const uint8_t *from)
{
    tiles next;
    memset(&next, 0, sizeof next);
    if (from[0] > 1) return 0;
    if (from[0] == 1) {
        for (int i = 1; i < 16; i++)
            if (from[i]) return 0;
        for (int i = 0; i < 16; i++) {
            uint16_t wide;
            memcpy(&wide, from + 16 + 2 * i, 2);
            const uint8_t high = from[48 + i];
            if (wide > BYTES || high > ROWS || (i >= TILES && (wide || high)) || !wide != !high) return 0;
            if (i < TILES) next.wide[i] = wide, next.high[i] = high;
        }
        next.configured = 1;
    }
    mine = next;
    return 1;
}

/* TDPBF16PS: of each output the products of even and of odd numbers are a sum of their own, each from 0 by fused
 * operations; their sum is added. To nearest even, with subnormal numbers as 0. */
static void add_bf16(int to, int left, int right)
{
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    const __mmask16 there = (__mmask16)((1u << mine.wide[to] / 4) - 1);
    _mm_setcsr(0x1f80 | 0x8040);
    for (int m = 0; m < mine.high[to]; m++) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int k = 0; k < mine.wide[left] / 4; k++) {
            int32_t pair;
            memcpy(&pair, mine.of[left][m] + 4 * k, 4);
            const __m512i x = _mm512_set1_epi32(pair), w = _mm512_load_si512(mine.of[right][k]);
            even = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16), (__m512)_mm512_slli_epi32(w, 16), even);
            odd = _mm512_fmadd_ps((__m512)_mm512_and_si512(x, upper), (__m512)_mm512_and_si512(w, upper), odd);
        }
        const __m512 sum = _mm512_add_ps(_mm512_load_ps((float *)mine.of[to][m]), _mm512_add_ps(even, odd));
        _mm512_store_ps((float *)mine.of[to][m], _mm512_maskz_mov_ps(there, sum));
    }
}

/* TDPBSSD and its like. `is_signed`: of both factors. */
static void add_bytes(int to, int left, int right, int left_signed, int right_signed)
{
    for (int m = 0; m < mine.high[to]; m++) {
        uint32_t sums[BYTES / 4];
        memcpy(sums, mine.of[to][m], sizeof sums);
        for (int k = 0; k < mine.wide[left] / 4; k++)
            for (int n = 0; n < mine.wide[to] / 4; n++)
                for (int i = 0; i < 4; i++) {
                    const uint8_t x = mine.of[left][m][4 * k + i], w = mine.of[right][k][4 * n + i];
                    sums[n] += (uint32_t)((left_signed ? (int8_t)x : x) * (right_signed ? (int8_t)w : w));
                }
        memcpy(mine.of[to][m], sums, sizeof sums);
    }
}

static int multiply(const instruction *i)
{
    const int to = i->reg, left = i->rm, right = i->vvvv;
    if (!i->is_register || to >= TILES || left >= TILES || right >= TILES) return 0;
    if (to == left || to == right || left == right) return 0;
    if (!mine.high[to] || !mine.high[left] || !mine.high[right]) return 0;
    if (mine.wide[to] % 4 || mine.wide[left] % 4 || mine.wide[right] % 4) return 0;
    if (mine.wide[to] != mine.wide[right] || mine.high[to] != mine.high[left]) return 0;
    if (mine.wide[left] / 4 != mine.high[right]) return 0;
    if (i->opcode == 0x5c) {
        if (i->prefix != PF3) return 0;
        add_bf16(to, left, right), done[OF_BF16]++;
    } else
        add_bytes(to, left, right, i->prefix == PF2 || i->prefix == PF3, i->prefix == PF2 || i->prefix == P66),
            done[OF_BYTES]++;
    return 1;
}

/* TILELOADD, TILELOADDT1 and TILESTORED: rows lie `step` bytes apart. */
static int move(const instruction *i)
{
    if (i->is_register || !i->has_sib || i->vvvv || i->reg >= TILES || !mine.high[i->reg] || i->prefix == NONE)
        return 0;
    for (int row = 0; row < mine.high[i->reg]; row++) {
        void *place = (void *)(i->memory + row * i->step), *tile = mine.of[i->reg][row];
        if (i->prefix == PF3) memcpy(place, tile, mine.wide[i->reg]);
        else memset(tile, 0, BYTES), memcpy(tile, place, mine.wide[i->reg]);
    }
    done[i->prefix == PF3 ? STORED : LOADED]++;
    return 1;
}

/* Returns 0 where the instruction is none of AMX's, or one that faults. */
static int run(const instruction *i)
{
    if (i->opcode == 0x49 && !i->vvvv) {
        if (i->prefix == NONE && !i->is_register && i->reg % 8 == 0)
            return configure((const uint8_t *)i->memory);
        if (i->prefix == NONE && i->is_register && i->reg == 0 && i->rm == 0) return memset(&mine, 0, sizeof mine), 1;
        if (i->prefix == PF2 && i->is_register && i->rm == 0 && i->reg < TILES && mine.high[i->reg])
            return memset(mine.of[i->reg], 0, sizeof mine.of[i->reg]), 1;
        return 0;
    }
    if (!mine.configured) return 0;
    if (i->opcode == 0x4b) return move(i);
    if (i->opcode == 0x5c || i->opcode == 0x5e) return multiply(i);
    return 0;
}

static void step(int number, siginfo_t *info, void *given)
{
    ucontext_t *context = given;
    instruction found;
    (void)info;
    if (decode(context, &found) && run(&found)) {
        context->uc_mcontext.gregs[REG_RIP] += found.length;
        return;
    }
    /* It runs once more, and ends the process. */
    signal(number, SIG_DFL);
}

static __attribute__((constructor)) void begin(void)
{
    struct sigaction action = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}
