/* Collectives of ranks that are processes of one machine, through memory that they share.
 *
 * Each rank has two slots for its part of a collective, used in turn, and a word that counts the collectives for which
 * its part lies there. A rank writes its part, moves its word, waits for the others' words, and reads. It writes into a
 * slot again two collectives later: it has then seen every word one further, which a rank moves only after it has read.
 *
 * Sums are taken in the order of the ranks, so every rank has the same bits, and a row has them in any batch. */
#define _GNU_SOURCE
#include "group.h"
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LINE 64
#define BLOCK 1024

/* Of one rank, each word in a line of its own. */
typedef struct {
    _Alignas(LINE) _Atomic uint32_t turn;
    _Alignas(LINE) _Atomic uint32_t read;
    _Alignas(LINE) _Atomic uint32_t beats;
} member;

typedef struct {
    _Alignas(LINE) _Atomic uint32_t broken;
    _Alignas(LINE) _Atomic uint32_t sleepers;
    _Alignas(LINE) _Atomic uint32_t message;
    int64_t length[2];
    _Alignas(LINE) member members[];
} head;

#define HEAD_BYTES 65536

static head *head_of(const group *g) { return (head *)g->base; }

static float *slot(const group *g, long rank, uint32_t turn)
{
    return (float *)(g->base + HEAD_BYTES) + (rank * 2 + (turn & 1)) * g->slot_floats;
}

static char *message_of(const group *g, uint32_t message)
{
    return (char *)slot(g, g->size, 0) + (message & 1) * g->message_bytes;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void move(const group *g, _Atomic uint32_t *word, uint32_t to)
{
    atomic_store(word, to);
    if (atomic_load(&head_of(g)->sleepers)) syscall(SYS_futex, word, FUTEX_WAKE, 1 << 20, 0, 0, 0);
}

/* Waits until `word` has come to `to`. `seconds` below 0 is for ever. */
static int await(const group *g, _Atomic uint32_t *word, uint32_t to, double seconds)
{
    head *h = head_of(g);
    for (long spin = 0; spin <= g->spins; spin++) {
        if ((int32_t)(atomic_load_explicit(word, memory_order_acquire) - to) >= 0) return GROUP_DONE;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    /* Should the rank that is waited for want this CPU, it gets it now, and not when this one is stopped. */
    for (long yield = 0; yield < g->yields; yield++) {
        sched_yield();
        if ((int32_t)(atomic_load_explicit(word, memory_order_acquire) - to) >= 0) return GROUP_DONE;
    }
    double end = now() + seconds;
    for (;;) {
        /* Short enough to notice that the group has broken, long enough to cost nothing. */
        struct timespec nap = {0, 50000000};
        atomic_fetch_add(&h->sleepers, 1);
        uint32_t seen = atomic_load(word);
        int there = (int32_t)(seen - to) >= 0;
        if (!there) syscall(SYS_futex, word, FUTEX_WAIT, seen, &nap, 0, 0);
        atomic_fetch_sub(&h->sleepers, 1);
        if (there) return GROUP_DONE;
        if (atomic_load(&h->broken)) return GROUP_BROKEN;
        if (seconds >= 0 && now() > end) {
            /* Nothing that follows could be whole. */
            atomic_store(&h->broken, 1);
            return GROUP_LATE;
        }
    }
}

static int await_all(const group *g, uint32_t turn)
{
    for (long rank = 0; rank < g->size; rank++) {
        if (rank == g->rank) continue;
        int failed = await(g, &head_of(g)->members[rank].turn, turn, g->seconds);
        if (failed) return failed;
    }
    return GROUP_DONE;
}

/* Begins the next collective: its own slot may be written once all have read what lay there. */
static int begin(group *g, float **own)
{
    int failed = await_all(g, g->turn);
    g->turn++;
    *own = slot(g, g->rank, g->turn);
    return failed;
}

static void add(float *into, const float *from, long count)
{
    for (long i = 0; i < count; i++) into[i] += from[i];
}

static void raise_to(float *into, const float *from, long count)
{
    /* What is not a number is above all. */
    for (long i = 0; i < count; i++) into[i] = into[i] == into[i] && !(from[i] <= into[i]) ? from[i] : into[i];
}

static int combine(group *g, float *data, long count, void (*one)(float *, const float *, long))
{
    for (long from = 0; from < count; from += g->slot_floats) {
        long part = count - from < g->slot_floats ? count - from : g->slot_floats;
        float *own, made[BLOCK], *at = data + from;
        int failed = begin(g, &own);
        if (failed) return failed;
        memcpy(own, at, part * sizeof(float));
        move(g, &head_of(g)->members[g->rank].turn, g->turn);
        if ((failed = await_all(g, g->turn))) return failed;
        for (long start = 0; start < part; start += BLOCK) {
            long some = part - start < BLOCK ? part - start : BLOCK;
            memcpy(made, slot(g, 0, g->turn) + start, some * sizeof(float));
            for (long rank = 1; rank < g->size; rank++) one(made, slot(g, rank, g->turn) + start, some);
            memcpy(at + start, made, some * sizeof(float));
        }
    }
    return GROUP_DONE;
}

/* data [count] becomes its sum over ranks. */
int group_sum(void *g, float *data, long count) { return combine(g, data, count, add); }

/* data [count] becomes its largest over ranks. */
int group_largest(group *g, float *data, long count) { return combine(g, data, count, raise_to); }

/* own [rows, widths[rank]] of every rank -> out [rows, sum of widths] on rank 0; `out` is not looked at elsewhere. */
int group_gather(group *g, const float *own, float *out, long rows, const int64_t *widths)
{
    long widest = 1, total = 0;
    for (long rank = 0; rank < g->size; rank++) {
        total += widths[rank];
        if (widths[rank] > widest) widest = widths[rank];
    }
    long piece = widest < g->slot_floats ? widest : g->slot_floats, at_once = g->slot_floats / piece;
    for (long row = 0; row < rows; row += at_once)
        for (long column = 0; column < widest; column += piece) {
            long count = rows - row < at_once ? rows - row : at_once, start = 0, mine = widths[g->rank];
            float *place;
            int failed = begin(g, &place);
            if (failed) return failed;
            /* What rank 0 has itself goes straight to where it belongs. */
            float *to = g->rank ? place : out + row * total + column;
            long step = g->rank ? piece : total;
            for (long r = 0; r < count; r++) {
                long some = mine - column < piece ? mine - column : piece;
                if (some > 0) memcpy(to + r * step, own + (row + r) * mine + column, some * sizeof(float));
            }
            move(g, &head_of(g)->members[g->rank].turn, g->turn);
            if (g->rank) continue;
            if ((failed = await_all(g, g->turn))) return failed;
            for (long rank = 1; rank < g->size; rank++) {
                start += widths[rank - 1];
                long some = widths[rank] - column < piece ? widths[rank] - column : piece;
                for (long r = 0; r < count && some > 0; r++)
                    memcpy(out + (row + r) * total + start + column, slot(g, rank, g->turn) + r * piece,
                           some * sizeof(float));
            }
        }
    return GROUP_DONE;
}

/* Rank 0 sends at most `message_bytes`, once all have read the message before the last. */
int group_send(group *g, const char *data, long bytes)
{
    head *h = head_of(g);
    uint32_t message = g->message + 1;
    for (long rank = 1; rank < g->size; rank++) {
        int failed = await(g, &h->members[rank].read, message - 2, g->seconds);
        if (failed) return failed;
    }
    g->message = message;
    memcpy(message_of(g, message), data, bytes);
    h->length[message & 1] = bytes;
    move(g, &h->message, message);
    return GROUP_DONE;
}

/* The next message of rank 0 into `data`, of `message_bytes`; its length into `bytes`. */
int group_receive(group *g, char *data, int64_t *bytes, double seconds)
{
    head *h = head_of(g);
    uint32_t message = g->message + 1;
    int failed = await(g, &h->message, message, seconds);
    if (failed) return failed;
    *bytes = h->length[message & 1];
    memcpy(data, message_of(g, message), *bytes);
    g->message = message;
    move(g, &h->members[g->rank].read, message);
    return GROUP_DONE;
}

void group_beat(group *g) { atomic_fetch_add(&head_of(g)->members[g->rank].beats, 1); }

long group_beats(const group *g, long rank) { return atomic_load(&head_of(g)->members[rank].beats); }

/* Ends every wait, of this process and of the others. */
void group_break(group *g) { atomic_store(&head_of(g)->broken, 1); }

long group_bytes(long size, long slot_floats, long message_bytes)
{
    return HEAD_BYTES + size * 2 * slot_floats * (long)sizeof(float) + 2 * message_bytes;
}
