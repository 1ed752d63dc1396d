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
    /* Where other ranks hold the other heads and columns: makes `added` the sum over ranks. Null where there are none. */
    int (*sum)(void *group, float *added, long floats);
    void *group;
    /* Whether rows are quantized to 8 bits where they meet codes. */
    long int8;
} model;

typedef struct {
    const int64_t *positions, *slots;
    const int32_t *starts, *contexts, *tables;
    long T, B, table_width;
} step;

static inline long most(long a, long b) { return a > b ? a : b; }
static inline long padded(long floats) { return (floats + 15) / 16 * 16; }

/* Norms, rotations and the cache of the heads that share one key; norms first, as the model was trained. */
static inline void place_heads(const model *m, const layer *l, const step *s, float *qkv, long t, long g)
{
    long D = m->D, group = m->H / m->G, row = (m->H + 2 * m->G) * D;
    float *q = qkv + t * row + g * group * D, *k = qkv + t * row + (m->H + g) * D, *v = k + m->G * D;
    if (l->q_norm) {
        for (long h = 0; h < group; h++) normalise(q + h * D, l->q_norm, q + h * D, D, m->eps);
        normalise(k, l->k_norm, k, D, m->eps);
    }
    const float *cos = m->cos + s->positions[t] * (D / 2), *sin = m->sin + s->positions[t] * (D / 2);
    rotate(q, group, D, cos, sin, D / 2);
    rotate(k, 1, D, cos, sin, D / 2);
    write_row((int)m->cache, k, v, l->k_cache, l->v_cache, s->slots[t], g, m->G, m->S, D);
}

#endif
