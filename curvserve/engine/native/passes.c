/* Passes over all parameters of a step, one each, where torch makes several over one after another.
 *
 * Tensors are cut into chunks. Each is gone through by one thread, and what chunks add up to is
 * added in their order: so the bits do not depend on the number of threads.
 */

#include <string.h>

#include "kernels.h"

/* Numbers of a chunk, and sums that are formed side by side. */
enum { CHUNK = 16384, SIDE = 16 };

/* See curvserve/engine/native/passes.py, which fills it in. Of tensors the first numbers. */
struct passes {
    int64_t tensors, chunks, threads;
    const int64_t *sizes;
    const void *const *first, *const *second, *const *third;
    void *const *result;
    double *sums;
    double factor, shift;
    parallel parallel;
};

/* Goes through some numbers of a tensor, and returns what they add to the sum. */
typedef double (*pass)(const struct passes *, int64_t tensor, int64_t from, int64_t size);

#define T float
#define BITS uint32_t
#define INFINITE 0x7f800000u
#define TARGET
#define NAME(x) x##_float
#include "passes.h"

#define T double
#define BITS uint64_t
#define INFINITE 0x7ff0000000000000u
#define TARGET
#define NAME(x) x##_double
#include "passes.h"

#ifdef __x86_64__
#define T float
#define BITS uint32_t
#define INFINITE 0x7f800000u
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_float_avx2
#include "passes.h"

#define T double
#define BITS uint64_t
#define INFINITE 0x7ff0000000000000u
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_double_avx2
#include "passes.h"

#define T float
#define BITS uint32_t
#define INFINITE 0x7f800000u
#define TARGET __attribute__((target("avx512f,fma")))
#define NAME(x) x##_float_avx512
#include "passes.h"

#define T double
#define BITS uint64_t
#define INFINITE 0x7ff0000000000000u
#define TARGET __attribute__((target("avx512f,fma")))
#define NAME(x) x##_double_avx512
#include "passes.h"
#endif

struct shared {
    const struct passes *work;
    pass pass;
    int64_t next;
};

static int64_t chunks_of(int64_t size)
{
    return (size + CHUNK - 1) / CHUNK;
}

static void take(void *argument)
{
    struct shared *shared = argument;
    const struct passes *work = shared->work;
    for (;;) {
        int64_t chunk = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
        if (chunk >= work->chunks)
            return;
        int64_t tensor = 0, before = 0;
        while (chunk - before >= chunks_of(work->sizes[tensor]))
            before += chunks_of(work->sizes[tensor++]);
        int64_t from = (chunk - before) * CHUNK, rest = work->sizes[tensor] - from;
        work->sums[chunk] = shared->pass(work, tensor, from, rest < CHUNK ? rest : CHUNK);
    }
}

/* How many chunks there are of a tensor. */
int64_t passes_chunks(int64_t size)
{
    return chunks_of(size);
}

double passes(const struct passes *work, int which, int is_double, int instructions)
{
#define PASSES(name)                                                                 \
    {                                                                                \
        distance_##name, improper_##name, divided_##name                             \
    }
    static const pass all[][2][3] = KERNELS(PASSES);
#undef PASSES
    struct shared shared = {work, all[usable(instructions)][is_double][which], 0};
    if (work->threads > 1)
        work->parallel(take, &shared, (unsigned)work->threads, 0);
    else
        take(&shared);
    double sum = 0;
    for (int64_t chunk = 0; chunk < work->chunks; chunk++)
        sum += work->sums[chunk];
    return sum;
}
