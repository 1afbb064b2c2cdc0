/* The squared rows of a layer y_t = W a_t, summed over the samples: sum_n (S_n^T A_n)^2.
 *
 * A product of matrices for each sample, of which nothing is ever written but the sum of the
 * squares: a tile of the product stays in registers until it is squared and added. A is read where
 * it lies, so the patches of a convolution are not written either, but for the few lines that a
 * tile is about to read.
 *
 * Tasks are panels of the result for groups of samples. How many there are depends on the sizes
 * alone, each is computed by one thread from its first sample to its last, and groups are added up
 * in order: so the bits do not depend on the number of threads.
 */

#include <string.h>

#include "kernels.h"

/* Positions that are summed up at once: a panel of them stays in the first-level cache. */
enum { BLOCK = 128 };

/* Bytes from the inputs of one position to the next that may be read where they lie. */
enum { IN_PLACE = 1024 };

/* See curvserve/engine/native/__init__.py, which fills it in; steps and offsets count numbers. */
struct squares {
    int64_t samples, length, inputs, outputs, columns, segments, groups;
    int64_t image_step, sample_step, line_step, inputs_step;
    const int64_t *positions, *offsets, *lengths;
    const void *images;
    const void *const *cotangents;
    void *totals, *result;
    struct team team;
};

#define T float
#define LANES 4
#define WIDTH 2
#define HEIGHT 6
#define TARGET
#define NAME(x) x##_float
#include "squares.h"

#define T double
#define LANES 2
#define WIDTH 2
#define HEIGHT 6
#define TARGET
#define NAME(x) x##_double
#include "squares.h"

#ifdef __x86_64__
#define T float
#define LANES 8
#define WIDTH 2
#define HEIGHT 6
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_float_avx2
#include "squares.h"

#define T double
#define LANES 4
#define WIDTH 2
#define HEIGHT 6
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_double_avx2
#include "squares.h"

#define T float
#define LANES 16
#define WIDTH 3
#define HEIGHT 8
#define TARGET __attribute__((target("avx512f,fma")))
#define NAME(x) x##_float_avx512
#include "squares.h"

#define T double
#define LANES 8
#define WIDTH 3
#define HEIGHT 8
#define TARGET __attribute__((target("avx512f,fma")))
#define NAME(x) x##_double_avx512
#include "squares.h"
#endif

struct kernel {
    void (*panel)(const void *, int64_t, char *);
    void (*gather)(const struct squares *);
    int64_t breadth;
};

static struct kernel chosen(int is_double, int instructions)
{
#define KERNEL(name) {panel_##name, gather_##name, breadth_##name}
    static const struct kernel kernels[][2] = KERNELS(KERNEL);
#undef KERNEL
    return kernels[usable(instructions)][is_double];
}

/* How many numbers wide a panel is. */
int64_t squares_breadth(int is_double, int instructions)
{
    return chosen(is_double, instructions).breadth;
}

/* How many numbers a thread needs room for beside its results. */
int64_t squares_scratch(int64_t length, int64_t outputs, int is_double, int instructions)
{
    return chosen(is_double, instructions).breadth * (outputs + (length < BLOCK ? length : BLOCK));
}

void squares(const struct squares *work, int is_double, int instructions)
{
    struct kernel kernel = chosen(is_double, instructions);
    int64_t panels = (work->inputs + kernel.breadth - 1) / kernel.breadth;
    do_tasks((struct tasks){&work->team, kernel.panel, work, work->groups * panels, 0});
    kernel.gather(work);
}
