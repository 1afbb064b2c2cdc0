/* Has each thread of an OpenMP team stay on a CPU of its own. */

#define _GNU_SOURCE
#ifdef __linux__
#include <sched.h>
#endif

#include "kernels.h"

struct binding {
    const int64_t *cpus;
    int (*thread)(void);
    int64_t bound;
};

static void stay(void *argument)
{
    struct binding *binding = argument;
#ifdef __linux__
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(binding->cpus[binding->thread()], &one);
    if (sched_setaffinity(0, sizeof one, &one) == 0)
        __atomic_fetch_add(&binding->bound, 1, __ATOMIC_RELAXED);
#else
    (void)binding;
#endif
}

/* Returns how many do. */
int64_t bind_team(const int64_t *cpus, int64_t threads, parallel parallel, int (*thread)(void))
{
    struct binding binding = {cpus, thread, 0};
    parallel(stay, &binding, (unsigned)threads, 0);
    return binding.bound;
}
