/* What the threads of a parallel region do together: all of them call it, and none goes on before the last is done. */
#ifndef PLIMSOLL_TEAM_H
#define PLIMSOLL_TEAM_H

#include "parts.h"
#include <stdlib.h>

/* Working space of a product: of this thread alone, and of all; and how its tasks are shared out. 64-byte aligned. */
typedef struct {
    void *own, *shared;
    part *parts;
} room;

/* Bytes of each, multiples of 64. */
typedef struct {
    long own, shared;
} needs;

/* What a product of M rows needs; `bits` of a weight, 4, 8 or 16. Products of 32 need none. */
needs needs_of(int bits, long M, long K, long group);
/* What linear_int8_team needs of M rows. */
needs needs_of_int8(long M, long K, long group);

/* Bytes of the rooms of all threads, a multiple of 64: the parts, the shared one, then each thread's own. */
INLINE long room_bytes(needs needed)
{
    return needed.shared + omp_get_max_threads() * (needed.own + (long)sizeof(part));
}

/* Before a region begins. */
INLINE void clear_parts(char *memory) { memset(memory, 0, omp_get_max_threads() * sizeof(part)); }

/* Rooms for one product, which the caller frees, or NULL. */
static inline char *make_rooms(needs needed)
{
    char *memory = aligned_alloc(64, room_bytes(needed));
    if (memory) clear_parts(memory);
    return memory;
}

/* This thread's room in `memory` of room_bytes. */
INLINE room room_in(char *memory, needs needed)
{
    char *shared = memory + omp_get_max_threads() * sizeof(part);
    return (room){shared + needed.shared + omp_get_thread_num() * needed.own, shared, (part *)memory};
}

/* y [M, N] = x [M, K] w^T + bias; bias may be null. */
void linear_bf16_team(const float *x, const uint16_t *w, const float *bias, float *y, long M, long N, long K, room at);
void linear_f32_team(const float *x, const float *w, const float *bias, float *y, long M, long N, long K, room at);
void linear_quant_team(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                       long K, long group, room at);
/* The same with rows quantized to 8 bits. */
void linear_int8_team(int bits, int scale, const float *x, const char *w, const float *bias, float *y, long M, long N,
                      long K, long group, room at);

typedef struct {
    const float *q;
    long q_row, q_head, H, G, D, S;
    const void *k_cache, *v_cache;
    const int32_t *starts, *contexts, *tables;
    long B, table_width, window;
    /* Scores s become cap * tanh(s / cap); 0 is no cap. */
    float scale, cap, *out;
    /* As `enum cache`. */
    int cache;
} attention_job;

/* Fills first_task [B + 1] with the first task of each sequence; its last is how many there are. */
void attention_tasks(const attention_job *job, long *first_task);
/* Floats each thread needs for itself, a multiple of 64 bytes. */
long attention_scratch(const attention_job *job);
void attention_team(const attention_job *job, const long *first_task, float *scratch);

#endif
