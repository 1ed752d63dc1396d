/* A model's layers and the rows of a step, as `native_layers` describes them. */
#ifndef PLIMSOLL_LAYERS_H
#define PLIMSOLL_LAYERS_H

#include "bounds.h"
#include "cache.h"
#include "rowwise.h"
#include "team.h"

/* `bits`: 4 and 8 are codes, 16 bfloat16, 32 float32. */
typedef struct {
    const void *data;
    const float *bias;
    long bits, scale, N, K, group;
} matrix;

typedef struct {
    matrix qkv, output, gate_up, down;
    const float *attention_norm, *q_norm, *k_norm, *mlp_norm;
    void *k_cache, *v_cache;
    long window;
} layer;

typedef struct {
    const layer *layers;
    const float *final_norm, *cos, *sin;
    long count, hidden, H, G, D, S, cache, positions, blocks;
    float eps, scale;
    /* Where other ranks hold the other heads and columns: makes `added` the sum over ranks. Null where there are
     * none. */
    int (*sum)(void *group, float *added, long floats);
    void *group;
    /* Whether rows are quantized to 8 bits where they meet codes. */
    long int8;
} model;

/* `due`: the `rows_due` rows that are wanted after the last layer; all T are where it is below 0. */
typedef struct {
    const int64_t *positions, *slots;
    const int32_t *starts, *contexts, *tables;
    long T, B, table_width;
    const int64_t *due;
    long rows_due;
} step;

static inline long most(long a, long b) { return a > b ? a : b; }
static inline long padded(long floats) { return (floats + 15) / 16 * 16; }

/* Norms and rotations of the query heads that share one key; norms first, as the model was trained. */
static inline void turn_queries(const model *m, const layer *l, const step *s, float *qkv, long t, long g)
{
    const long D = m->D, group = m->H / m->G, angle = s->positions[t] * (D / 2);
    float *q = qkv + t * (m->H + 2 * m->G) * D + g * group * D;
    for (long h = 0; l->q_norm && h < group; h++) normalise(q + h * D, l->q_norm, q + h * D, D, m->eps);
    rotate(q, group, D, m->cos + angle, m->sin + angle, D / 2);
}

/* The same of their key, which goes into the cache with its value. */
static inline void place_key(const model *m, const layer *l, const step *s, float *qkv, long t, long g)
{
    const long D = m->D, angle = s->positions[t] * (D / 2);
    float *k = qkv + t * (m->H + 2 * m->G) * D + (m->H + g) * D;
    if (l->k_norm) normalise(k, l->k_norm, k, D, m->eps);
    rotate(k, 1, D, m->cos + angle, m->sin + angle, D / 2);
    write_row((int)m->cache, k, k + m->G * D, l->k_cache, l->v_cache, s->slots[t], g, m->G, m->S, D);
}

static inline void place_heads(const model *m, const layer *l, const step *s, float *qkv, long t, long g)
{
    turn_queries(m, l, s, qkv, t, g);
    place_key(m, l, s, qkv, t, g);
}

#endif
