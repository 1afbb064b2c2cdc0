/* Products with cotangents that are mostly zero, as those behind a pool and a rectifier are.
 *
 * A layer of patches, y_t = W a_t. Only what is not zero of S is gone through: for an output all
 * patches at whose positions it is not zero, for a position all lines of W whose output is not zero
 * there. What is summed up stays in registers, some vectors of a patch at a time.
 *
 * Tasks depend on the sizes alone, each is computed by one thread, and what they add up to is added
 * in their order: so the bits do not depend on the number of threads.
 */

#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels.h"

/* Outputs of a task, vectors of a strip, and positions that are spread at once. */
enum { SIDE = 16, WIDEST = 9, BLOCK = 128 };

/* See curvserve/engine/native/sparse.py, which fills it in; steps, sizes and places count numbers.
 *
 * A patch is read and written in vectors: where each begins, how much of it counts, and where that
 * stands among the inputs. A strip is some of them. An image has room for a vector behind its end.
 */
struct sparse {
    int64_t samples, length, inputs, outputs, columns, vectors, strips, groups, squared;
    int64_t image_step, sample_step, line_step, extent;
    int64_t lines, line, first_line, from_line; /* of an image that is handed over, and here */
    const int64_t *positions, *places, *widths, *ranks;
    const void *images;
    const void *const *cotangents;
    void *totals, *sums, *result;
    struct team team;
};

/* Numbers that an image takes with a vector behind it, in whole lines of the cache. */
static inline int64_t room(int64_t extent)
{
    return (extent + 2 * SIDE - 1) / SIDE * SIDE;
}

#ifdef __x86_64__
/* Some numbers and their codes, without those that are zero; returns how many are left. */
static inline __attribute__((always_inline, target("avx512f,popcnt"))) int64_t compact_avx512(
    const float *line, int32_t first, int32_t *codes, float *values)
{
    __m512 seen = _mm512_loadu_ps(line);
    __mmask16 kept = _mm512_cmp_ps_mask(seen, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    __m512i code = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    code = _mm512_add_epi32(code, _mm512_set1_epi32(first));
    _mm512_storeu_si512(codes, _mm512_maskz_compress_epi32(kept, code));
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(kept, seen));
    return _mm_popcnt_u32(kept);
}
#endif

#define T float
#define LANES 4
#define TARGET
#define NAME(x) x##_float
#include "sparse.h"

#define T double
#define LANES 2
#define TARGET
#define NAME(x) x##_double
#include "sparse.h"

#ifdef __x86_64__
#define T float
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_float_avx2
#include "sparse.h"

#define T double
#define LANES 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_double_avx2
#include "sparse.h"

#define T float
#define LANES 16
#define TARGET __attribute__((target("avx512f,fma,popcnt")))
#define NAME(x) x##_float_avx512
#define COMPACT compact_avx512
#include "sparse.h"
#undef COMPACT

#define T double
#define LANES 8
#define TARGET __attribute__((target("avx512f,fma")))
#define NAME(x) x##_double_avx512
#include "sparse.h"
#endif

struct kernel {
    void (*rows)(const void *, int64_t, char *);
    void (*gather)(const struct sparse *);
    void (*spread)(const void *, int64_t, char *);
    void (*pack)(const struct sparse *);
    int64_t (*count)(const void *, int64_t, int64_t);
    int64_t lanes;
};

static struct kernel chosen(int is_double, int instructions)
{
#define KERNEL(name) {rows_##name, gather_##name, spread_##name, pack_##name, count_##name, lanes_##name}
    static const struct kernel kernels[][2] = KERNELS(KERNEL);
#undef KERNEL
    return kernels[usable(instructions)][is_double];
}

/* How many numbers a vector has. */
int64_t sparse_lanes(int is_double, int instructions)
{
    return chosen(is_double, instructions).lanes;
}

/* How many numbers are not zero of some lines, which lie evenly among all. */
int64_t sparse_count(
    const void *cotangents, int64_t samples, int64_t length, int64_t outputs, int64_t sample_step,
    int64_t line_step, int64_t lines, int is_double, int instructions)
{
    int64_t count = 0;
    for (int64_t i = 0; i < lines; i++) {
        int64_t at = samples * length * i / lines, n = at / length, t = at % length;
        int64_t place = n * sample_step + t * line_step;
        count += chosen(is_double, instructions).count(cotangents, place, outputs);
    }
    return count;
}

/* Bytes of a thread's own. */
int64_t sparse_scratch(const struct sparse *work, int is_double)
{
    int64_t listed = SIDE * work->length, block = BLOCK * work->outputs;
    int64_t most = (listed > block ? listed : block) + SIDE;
    return (is_double ? 8 : 4) * (room(work->extent) + 2 * most) + 4 * 2 * most + 8 * (BLOCK + 1);
}

/* sum_n S_n^T A_n, or of its squares; where there is room for them, the sums of S before the rest. */
void sparse_rows(const struct sparse *work, int is_double, int instructions)
{
    struct kernel kernel = chosen(is_double, instructions);
    int64_t count = work->groups * ((work->outputs + SIDE - 1) / SIDE);
    do_tasks((struct tasks){&work->team, kernel.rows, work, count, 0});
    kernel.gather(work);
}

/* For each sample the sum over t of W^T s_t, laid over the patch. */
void sparse_spread(const struct sparse *work, int is_double, int instructions)
{
    struct kernel kernel = chosen(is_double, instructions);
    kernel.pack(work);
    do_tasks((struct tasks){&work->team, kernel.spread, work, work->samples, 0});
}
