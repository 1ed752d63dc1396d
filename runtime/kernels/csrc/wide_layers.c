/* Layers of a step of many rows whose weights are all codes and whose rows are quantized to 8 bits: what the operations
 * do one by one, to the same bit, without most of what they leave in memory for each other.
 *
 * Norms go straight into quantized rows, and so does SiLU of gate times up, a piece of columns at a time; what
 * attention and the MLP make is added to the residual as it is made. `wide_floats` says which models are covered. */
#include "band.h"
#include "layers.h"
#include <omp.h>
#include <stdlib.h>

/* Rows of a band at most. */
#define BAND_ROWS (TILES_A_BAND * INT8_ROWS)

/* `T`: the rows that there is room for. */
typedef struct {
    long T;
    float *qkv, *mixed, *own;
    uint32_t *rows;
} space;

INLINE shape shape_of(const matrix *w)
{
    shape s = {w->K, w->group, 0, (int)w->scale};
    s.panel = panel_bytes((int)w->bits, s);
    return s;
}

INLINE long words(const matrix *w) { return words_of(w->K, w->group); }

/* Rows that go through products at once, of which each takes `words` words as it is quantized. */
static long rows_at_a_time(long T, long words)
{
    const long unit = 2 * INT8_ROWS, longest = most(ROUNDED_BYTES / (4 * words) / unit * unit, unit);
    const long parts = (T + longest - 1) / longest;
    return ((T + parts - 1) / parts + unit - 1) / unit * unit;
}

/* Words of `rows` rows in whole tiles. */
static long room_of(long rows, long words) { return padded((rows + INT8_ROWS) * words); }

/* x [rows][K], normed if there is a norm, in tiles. */
static band quantize_all(const matrix *w, const float *x, const float *norm, float eps, long rows, uint32_t *out,
                         float *own)
{
    const band all = {out, rows, tile_height(rows)};
#pragma omp for
    for (long row = 0; row < rows; row += all.high) {
        const long count = rows - row < all.high ? rows - row : all.high;
        const float *from = x + row * w->K;
        for (long r = 0; norm && r < count; r++) normalise(from + r * w->K, norm, own + r * w->K, w->K, eps);
        quantize_rows((int)w->bits, norm ? own : from, count, all.high, w->K, w->group, out + row * words(w));
    }
    return all;
}

INLINE band part_of(band all, shape s, tasks t, long task)
{
    const long row = task / t.shares * t.height;
    band mine = from_row(all, s, row);
    if (mine.rows > t.height) mine.rows = t.height;
    return mine;
}

/* y [rows][N] = the rows against panels [first, last) of w + their bias. Columns of others are left alone. */
static void put_products(const matrix *w, band all, long first, long last, float *y)
{
    const shape s = shape_of(w);
    const long panels = last - first;
    const tasks t = tasks_of_band(all, panels, omp_get_num_threads());
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < t.bands * t.shares; task++) {
        const long share = task % t.shares;
        meet_share((int)w->bits, part_of(all, s, t, task), s, w->data, first + panels * share / t.shares,
                   first + panels * (share + 1) / t.shares, w->bias, y + task / t.shares * t.height * w->N, w->N);
    }
}

/* y [rows][N] += the rows against w + its bias; N is whole panels. */
static void sum_products(const matrix *w, band all, float *y, float *own)
{
    const shape s = shape_of(w);
    const long panels = w->N / PANEL;
    const tasks t = tasks_of_band(all, panels, omp_get_num_threads());
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < t.bands * t.shares; task++) {
        const long share = task % t.shares;
        const band mine = part_of(all, s, t, task);
        for (long p = panels * share / t.shares; p < panels * (share + 1) / t.shares; p++) {
            float *to = y + task / t.shares * t.height * w->N + p * PANEL;
            /* No processor foresees lines that are rows apart. */
            for (long r = 0; r < mine.rows; r++) ask_later(to + r * w->N), ask_later(to + r * w->N + LANES);
            meet_panel((int)w->bits, mine, s, (const char *)w->data + p * s.panel,
                       w->bias ? w->bias + p * PANEL : NULL, own, PANEL);
            for (long r = 0; r < mine.rows; r++)
                UNROLL for (int h = 0; h < PANEL; h += LANES)
                    store(to + r * w->N + h, load(to + r * w->N + h) + load(own + r * PANEL + h));
        }
    }
}

/* The rows against gate and up, through SiLU and quantized for `next`, into `out`: a piece of columns of both at a
 * time. One thread makes all pieces of a run that has a sum. */
static void gate_products(const matrix *w, const matrix *next, band all, uint32_t *out, float *own)
{
    const shape s = shape_of(w);
    const long group = next->group, run = group < RUN ? group : RUN;
    const long unit = has_offset((int)next->bits, (int)next->scale) ? run : PIECE,
        units_of_group = (group + unit - 1) / unit;
    const long units = next->K / group * units_of_group;
    tasks t = tasks_of_band(all, w->N / PANEL, omp_get_num_threads());
    if (t.shares > units) t.shares = units;
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < t.bands * t.shares; task++) {
        const long share = task % t.shares;
        const band mine = part_of(all, s, t, task);
        uint32_t *to = out + task / t.shares * t.height * words(next);
        for (long u = units * share / t.shares; u < units * (share + 1) / t.shares; u++) {
            const long begin = u / units_of_group * group, first = begin + u % units_of_group * unit;
            const long end = first + unit < begin + group ? first + unit : begin + group;
            for (long column = first; column < end; column += PIECE) {
                for (long at = 0; at < 2 * PIECE; at += PANEL) {
                    const long n = at < PIECE ? column + at : next->K + column + at - PIECE;
                    meet_panel((int)w->bits, mine, s, (const char *)w->data + n / PANEL * s.panel,
                               w->bias ? w->bias + n : NULL, own + at, 2 * PIECE);
                }
                quantize_gated((int)next->bits, own, mine.rows, mine.high, next->K, group, column, to);
            }
        }
    }
}

/* Outputs of qkv from the panels [first, last) of all rows. `at_a_time`: as rows_at_a_time says. */
static void put_heads(const model *m, const layer *l, const step *s, const space *at, long at_a_time, long first,
                      long last, const float *residual, float *own)
{
    for (long done = 0; done < s->T; done += at_a_time) {
        const long rows = s->T - done < at_a_time ? s->T - done : at_a_time;
        const band all = quantize_all(&l->qkv, residual + done * m->hidden, l->attention_norm, m->eps, rows, at->rows,
                                      own);
        put_products(&l->qkv, all, first, last, at->qkv + done * l->qkv.N);
    }
}

/* What comes after the queries, and the keys and values of the cache. */
static void finish_layer(const model *m, const layer *l, const step *s, const long *first_task, const space *at,
                         float *residual, float *own)
{
    const long T = s->T, hidden = m->hidden;
    attention_job job = {at->qkv, l->qkv.N, m->D, m->H, m->G, m->D, m->S, l->k_cache, l->v_cache, s->starts,
                         s->contexts,
                         s->tables, s->B, s->table_width, l->window, m->scale, 0, at->mixed, (int)m->cache};
    attention_team(&job, first_task, own);
    long count = rows_at_a_time(at->T, words(&l->output));
    for (long done = 0; done < T; done += count) {
        const long rows = T - done < count ? T - done : count;
        const band all = quantize_all(&l->output, at->mixed + done * l->output.K, NULL, 0, rows, at->rows, own);
        sum_products(&l->output, all, residual + done * hidden, own);
    }
    count = rows_at_a_time(at->T, words(&l->gate_up) + words(&l->down));
    uint32_t *gated = at->rows + room_of(count, words(&l->gate_up));
    for (long done = 0; done < T; done += count) {
        const long rows = T - done < count ? T - done : count;
        const band all = quantize_all(&l->gate_up, residual + done * hidden, l->mlp_norm, m->eps, rows, at->rows, own);
        gate_products(&l->gate_up, &l->down, all, gated, own);
        const band made = {gated, rows, all.high};
        sum_products(&l->down, made, residual + done * hidden, own);
    }
}

INLINE long panels_of(long columns) { return (columns + PANEL - 1) / PANEL; }

static void run_layer(const model *m, const layer *l, const step *s, const long *first_task, const space *at,
                      float *residual, float *own)
{
    put_heads(m, l, s, at, rows_at_a_time(at->T, words(&l->qkv)), 0, panels_of(l->qkv.N), residual, own);
#pragma omp for
    for (long t = 0; t < s->T; t++) {
        /* The next row comes from far away while heads of this one are turned. */
        for (long n = 0; t + 1 < s->T && n < l->qkv.N; n += 16) ask_to_write(at->qkv + (t + 1) * l->qkv.N + n);
        for (long g = 0; g < m->G; g++) place_heads(m, l, s, at->qkv, t, g);
    }
    finish_layer(m, l, s, first_task, at, residual, own);
}

/* The last layer where few rows are due: keys and values of all, and the rest of `few`, which are the due rows, each a
 * sequence of its own. Their residuals are `hidden` then. */
static void run_last_layer(const model *m, const layer *l, const step *s, const step *few, const long *first_task,
                           const space *at, const float *residual, float *hidden, float *own)
{
    const long at_a_time = rows_at_a_time(at->T, words(&l->qkv)), queries = m->H * m->D;
    put_heads(m, l, s, at, at_a_time, queries / PANEL, panels_of(l->qkv.N), residual, own);
#pragma omp for
    for (long t = 0; t < s->T; t++)
        for (long g = 0; g < m->G; g++) place_key(m, l, s, at->qkv, t, g);
#pragma omp for
    for (long i = 0; i < few->T; i++)
        memcpy(hidden + i * m->hidden, residual + s->due[i] * m->hidden, m->hidden * sizeof(float));
    put_heads(m, l, few, at, at_a_time, 0, panels_of(queries), hidden, own);
#pragma omp for
    for (long i = 0; i < few->T; i++)
        for (long g = 0; g < m->G; g++) turn_queries(m, l, few, at->qkv, i, g);
    finish_layer(m, l, few, first_task, at, hidden, own);
}

/* The due rows of s as a step: row i is the last of sequence i. `places`: of few_places(s) numbers of 8 bytes. */
static long few_places(const step *s) { return s->rows_due * (s->table_width + 4) + 1; }
static step few_of(const step *s, int64_t *places)
{
    const long count = s->rows_due, width = s->table_width;
    int32_t *starts = (int32_t *)(places + count), *contexts = starts + count + 1, *tables = contexts + count;
    for (long i = 0; i < count; i++) {
        const long row = s->due[i];
        long b = 0, end = s->B;
        while (end - b > 1) {
            const long middle = (b + end) / 2;
            if (s->starts[middle] <= row) b = middle;
            else end = middle;
        }
        places[i] = s->positions[row], starts[i] = (int32_t)i;
        contexts[i] = (int32_t)(s->contexts[b] - (s->starts[b + 1] - 1 - row));
        memcpy(tables + i * width, s->tables + b * width, width * sizeof *tables);
    }
    starts[count] = (int32_t)count;
    return (step){places, NULL, starts, contexts, tables, count, count, width, NULL, -1};
}

/* Floats of working space: of all threads together, of the rows that are quantized, and of each thread. */
typedef struct {
    long qkv, mixed, rows, own;
} floats;

static floats floats_of(const model *m, long T, const attention_job *any)
{
    floats all = {0, padded(T * m->H * m->D), 0, most(attention_scratch(any), 2 * PIECE * BAND_ROWS)};
    for (long i = 0; i < m->count; i++) {
        const layer *l = m->layers + i;
        const long qkv = words(&l->qkv), output = words(&l->output), both = words(&l->gate_up) + words(&l->down);
        const long count = rows_at_a_time(T, both);
        all.qkv = most(all.qkv, padded(T * l->qkv.N));
        all.own = most(all.own, INT8_ROWS * m->hidden);
        all.rows = most(all.rows, room_of(count, words(&l->gate_up)) + room_of(count, words(&l->down)));
        all.rows = most(all.rows, most(room_of(rows_at_a_time(T, qkv), qkv),
                                       room_of(rows_at_a_time(T, output), output)));
    }
    all.own = padded(all.own);
    return all;
}

static attention_job any_job(const model *m, const step *s)
{
    return (attention_job){.H = m->H, .G = m->G, .D = m->D, .S = m->S, .starts = s->starts, .contexts = s->contexts,
                           .tables = s->tables, .B = s->B, .table_width = s->table_width, .cache = (int)m->cache};
}

/* Floats that `run_wide_layers` works in, for a step of T rows; 0 where it does not cover the model. */
long wide_floats(const model *m, long T)
{
    if (!m->int8 || m->sum || m->hidden % PANEL) return 0;
    for (long i = 0; i < m->count; i++) {
        const layer *l = m->layers + i;
        if (l->qkv.bits > 8 || l->output.bits > 8 || l->gate_up.bits > 8 || l->down.bits > 8 || l->down.group % PIECE)
            return 0;
    }
    const attention_job any = any_job(m, &(step){0});
    const floats all = floats_of(m, T, &any);
    return all.qkv + all.mixed + all.rows + omp_get_max_threads() * all.own;
}

/* Layers [first, last): residual [T, hidden], changed in place. After the last layer of all, hidden [rows, hidden] is
 * the residual of the rows that are due, normed by the last norm; that of others is of no use then. `memory`: of
 * wide_floats, 64-byte aligned. Returns as run_layers does. */
int run_wide_layers(const model *m, const step *s, long first, long last, float *residual, float *hidden, float *memory)
{
    const attention_job any = any_job(m, s);
    if (!all_within(s->positions, s->T, m->positions) || !all_within(s->slots, s->T, m->blocks * m->S) ||
        !sequences_fit(&any, s->T, m->blocks) || !all_within(s->due, s->rows_due, s->T))
        return OUTSIDE;
    const floats all = floats_of(m, s->T, &any);
    float *rows = memory + all.qkv + all.mixed;
    const space at = {s->T, memory, memory + all.qkv, rows + all.rows, (uint32_t *)rows};
    const int few_due = s->rows_due >= 0 && last == m->count;
    long *first_task = malloc((s->B + 1) * sizeof(long)), *few_task = NULL;
    int64_t *places = NULL;
    step few;
    if (few_due) few_task = malloc((s->rows_due + 1) * sizeof(long)), places = malloc(few_places(s) * sizeof *places);
    const int failed = !first_task || (few_due && (!few_task || !places));
    if (!failed) {
        attention_tasks(&any, first_task);
        if (few_due) {
            few = few_of(s, places);
            const attention_job of_few = any_job(m, &few);
            attention_tasks(&of_few, few_task);
        }
#pragma omp parallel
        {
            float *own = at.own + omp_get_thread_num() * all.own;
            for (long i = first; i < last; i++)
                if (few_due && i + 1 == m->count)
                    run_last_layer(m, m->layers + i, s, &few, few_task, &at, residual, hidden, own);
                else run_layer(m, m->layers + i, s, first_task, &at, residual, own);
            if (last == m->count) {
                const float *from = few_due ? hidden : residual;
#pragma omp for
                for (long t = 0; t < (few_due ? few.T : s->T); t++)
                    normalise(from + t * m->hidden, m->final_norm, hidden + t * m->hidden, m->hidden, m->eps);
            }
        }
    }
    free(first_task), free(few_task), free(places);
    return failed ? NO_MEMORY : DONE;
}
