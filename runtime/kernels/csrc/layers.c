/* All layers of a step of few rows in one parallel region: what the operations do one by one, in the same order and to
 * the same bit, without a call and a start of threads for each.
 *
 * Covers layers with RMS norms before attention and before the MLP, of each head of q and k or of none; one rotary
 * embedding of whole heads; scores without a cap; a gated SiLU. `native_layers.covers` says so: others run op by op. */
#include "layers.h"
#include <omp.h>
#include <stdlib.h>

/* Columns of a gate that are one thread's share. */
#define GATES 512

typedef struct {
    float *qkv, *mixed, *gate_up, *gated, *added, *own;
    long own_floats;
    int *apart;
    needs needed;
    char *rooms;
} space;

static void multiply(const model *m, const float *x, const matrix *w, float *y, long T, const space *at)
{
    room own = room_in(at->rooms, at->needed);
    if (w->bits == 16) linear_bf16_team(x, w->data, w->bias, y, T, w->N, w->K, own);
    else if (w->bits == 32) linear_f32_team(x, w->data, w->bias, y, T, w->N, w->K, own);
    else if (m->int8)
        linear_int8_team((int)w->bits, (int)w->scale, x, w->data, w->bias, y, T, w->N, w->K, w->group, own);
    else linear_quant_team((int)w->bits, (int)w->scale, x, w->data, w->bias, y, T, w->N, w->K, w->group, own);
}

/* One thread talks to the other ranks. Once that has failed nothing is worth computing, and the call says so. */
static void sum_over_ranks(const model *m, const step *s, const space *at)
{
    if (!m->sum) return;
#pragma omp master
    if (!*at->apart) *at->apart = m->sum(m->group, at->added, s->T * m->hidden);
#pragma omp barrier
}

static void run_layer(const model *m, const layer *l, const float *next_norm, const step *s, const long *first_task,
                      const space *at, float *residual, float *hidden)
{
    long T = s->T, I = l->down.K, parts = (I + GATES - 1) / GATES;
    float *own = at->own + omp_get_thread_num() * at->own_floats;
    attention_job job = {at->qkv, l->qkv.N, m->D, m->H, m->G, m->D, m->S, l->k_cache, l->v_cache, s->starts,
                         s->contexts,
                         s->tables, s->B, s->table_width, l->window, m->scale, 0, at->mixed, (int)m->cache};
    multiply(m, hidden, &l->qkv, at->qkv, T, at);
#pragma omp for
    for (long task = 0; task < T * m->G; task++) place_heads(m, l, s, at->qkv, task / m->G, task % m->G);
    attention_team(&job, first_task, own);
    multiply(m, at->mixed, &l->output, at->added, T, at);
    sum_over_ranks(m, s, at);
#pragma omp for
    for (long t = 0; t < T; t++)
        add_and_normalise(at->added + t * m->hidden, residual + t * m->hidden, l->mlp_norm, hidden + t * m->hidden,
                          m->hidden, m->eps);
    multiply(m, hidden, &l->gate_up, at->gate_up, T, at);
#pragma omp for
    for (long task = 0; task < T * parts; task++) {
        long t = task / parts, from = task % parts * GATES, to = from + GATES < I ? from + GATES : I;
        activate_row(SILU, at->gate_up + t * 2 * I, at->gate_up + t * 2 * I + I, at->gated + t * I, from, to);
    }
    multiply(m, at->gated, &l->down, at->added, T, at);
    sum_over_ranks(m, s, at);
#pragma omp for
    for (long t = 0; t < T; t++)
        add_and_normalise(at->added + t * m->hidden, residual + t * m->hidden, next_norm, hidden + t * m->hidden,
                          m->hidden, m->eps);
}

/* Layers [first, last): residual [T, hidden], changed in place. After the last layer of all, hidden [T, hidden] is the
 * residual, normed by the last norm. Returns DONE, or NO_MEMORY or OUTSIDE: then nothing was changed; APART: the other
 * ranks are gone. */
int run_layers(const model *m, const step *s, long first, long last, float *residual, float *hidden)
{
    long T = s->T, qkv = 0, gate_up = 0, down = 0;
    needs needed = {0, 0};
    attention_job any = {.H = m->H, .G = m->G, .D = m->D, .S = m->S, .starts = s->starts, .contexts = s->contexts,
                         .tables = s->tables, .B = s->B, .table_width = s->table_width, .cache = (int)m->cache};
    if (!all_within(s->positions, T, m->positions) || !all_within(s->slots, T, m->blocks * m->S) ||
        !sequences_fit(&any, T, m->blocks))
        return OUTSIDE;
    for (long i = first; i < last; i++) {
        const layer *l = m->layers + i;
        const matrix *all[] = {&l->qkv, &l->output, &l->gate_up, &l->down};
        qkv = most(qkv, l->qkv.N), gate_up = most(gate_up, l->gate_up.N), down = most(down, l->down.K);
        for (int w = 0; w < 4; w++) {
            const matrix *v = all[w];
            needs one = m->int8 && v->bits <= 8 ? needs_of_int8(T, v->K, v->group)
                                                : needs_of((int)v->bits, T, v->K, v->bits == 16 ? v->K : v->group);
            needed.own = most(needed.own, one.own), needed.shared = most(needed.shared, one.shared);
        }
    }
    int apart = 0;
    space at = {.own_floats = padded(attention_scratch(&any)), .apart = &apart, .needed = needed};
    long sizes[] = {T * qkv, T * m->H * m->D, T * gate_up, T * down, T * m->hidden};
    long threads = omp_get_max_threads(), rooms = room_bytes(needed) / (long)sizeof(float);
    long all = threads * at.own_floats + rooms, *first_task = malloc((s->B + 1) * sizeof(long));
    for (int i = 0; i < 5; i++) all += padded(sizes[i]);
    float *memory = aligned_alloc(64, all * sizeof(float)),
        **places[] = {&at.qkv, &at.mixed, &at.gate_up, &at.gated, &at.added};
    int failed = !memory || !first_task;
    if (!failed) {
        float *next = memory;
        for (int i = 0; i < 5; next += padded(sizes[i]), i++) *places[i] = next;
        at.rooms = (char *)next, at.own = next + rooms;
        clear_parts(at.rooms);
        attention_tasks(&any, first_task);
#pragma omp parallel
        {
#pragma omp for
            for (long t = 0; t < T; t++)
                normalise(residual + t * m->hidden, m->layers[first].attention_norm, hidden + t * m->hidden, m->hidden,
                          m->eps);
            for (long i = first; i < last; i++)
                run_layer(m, m->layers + i, i + 1 < m->count ? m->layers[i + 1].attention_norm : m->final_norm, s,
                          first_task, &at, residual, hidden);
        }
    }
    free(memory);
    free(first_task);
    return failed ? NO_MEMORY : apart ? APART : DONE;
}
