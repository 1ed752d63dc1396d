/* Collectives of ranks that are processes of one machine, through memory that they share. */
#ifndef PLIMSOLL_GROUP_H
#define PLIMSOLL_GROUP_H

#include <stdint.h>

/* What collectives return. */
enum { GROUP_DONE = 0, GROUP_BROKEN = 1, GROUP_LATE = 2 };

typedef struct {
    char *base;
    long rank, size, slot_floats, message_bytes;
    /* Looks at a word before this process sleeps on it, at first one after the other and then letting others run in
     * between; and seconds that a collective may take. */
    long spins, yields;
    double seconds;
    uint32_t turn, message;
} group;

/* `int (*)(void *, float *, long)`, for `model.sum` of layers.c. */
int group_sum(void *g, float *data, long count);

#endif
