#include "neon.h"

#if HAVE_NEON_DOTS
#include <sys/auxv.h>

/* Of Linux: bits of AT_HWCAP and AT_HWCAP2. Older headers do not name them. */
#define ASIMDDP (1UL << 20)
#define BF16 (1UL << 14)

int sdot_works(void) { return (getauxval(AT_HWCAP) & ASIMDDP) != 0; }
int bfdot_works(void) { return (getauxval(AT_HWCAP2) & BF16) != 0; }
#else
int sdot_works(void) { return 0; }
int bfdot_works(void) { return 0; }
#endif
