/* What the kernels have in common. */

#include <stdint.h>

/* Starts threads that call a function once each, as OpenMP does for GCC's code. */
typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

/* See curvserve/engine/native/library.py, which fills it in: threads, and memory of each. */
struct team {
    int64_t threads, scratch_bytes;
    char *scratch;
    parallel parallel;
    int (*thread)(void);
};

/* What threads take one after the other; each is done by one of them. */
struct tasks {
    const struct team *team;
    void (*task)(const void *work, int64_t number, char *scratch);
    const void *work;
    int64_t count, next;
};

static inline void take_tasks(void *argument)
{
    struct tasks *tasks = argument;
    const struct team *team = tasks->team;
    char *scratch = team->scratch + (team->threads > 1 ? team->thread() : 0) * team->scratch_bytes;
    for (;;) {
        int64_t number = __atomic_fetch_add(&tasks->next, 1, __ATOMIC_RELAXED);
        if (number >= tasks->count)
            return;
        tasks->task(tasks->work, number, scratch);
    }
}

static inline void do_tasks(struct tasks tasks)
{
    if (tasks.team->threads > 1)
        tasks.team->parallel(take_tasks, &tasks, (unsigned)tasks.team->threads, 0);
    else
        take_tasks(&tasks);
}

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

/* A line for each level of instructions, for float and for double: what KERNEL makes of a name. */
#ifdef __x86_64__
#define KERNELS(KERNEL)                                                              \
    {                                                                                \
        {KERNEL(float), KERNEL(double)}, {KERNEL(float_avx2), KERNEL(double_avx2)},  \
            {KERNEL(float_avx512), KERNEL(double_avx512)},                           \
    }
#else
#define KERNELS(KERNEL)                                                              \
    {                                                                                \
        {KERNEL(float), KERNEL(double)},                                             \
    }
#endif
