/* What the kernels have in common. */

#include <stdint.h>

/* Starts threads that call a function once each, as OpenMP does for GCC's code. */
typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

/* What is computed with: 0 what every processor has, 1 AVX2, 2 AVX-512; never more than there is. */
static inline int usable(int asked)
{
#ifdef __x86_64__
    if (asked >= 2 && __builtin_cpu_supports("avx512f"))
        return 2;
    if (asked >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 1;
#endif
    (void)asked;
    return 0;
}
