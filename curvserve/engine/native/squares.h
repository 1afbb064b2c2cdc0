/* sum_n (S_n^T A_n)^2 in tiles, for one type of numbers and one set of instructions.
 *
 * Included by squares.c, which defines
 *   T       the type of a number
 *   LANES   numbers in a vector register
 *   WIDTH   registers side by side in a tile, at most 3
 *   HEIGHT  lines of a tile, at most 8: WIDTH * HEIGHT sums have to stay in registers
 *   TARGET  attributes of a function that may use the instructions
 *   NAME    makes a name of its own
 */

#define PANEL (WIDTH * LANES)

enum { NAME(breadth) = PANEL };

/* any alignment: what torch hands over is aligned to its own numbers only */
typedef T NAME(vector) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));

/* What positions of one sample add to a tile. The last of them square it and add it to the total. */
static inline __attribute__((always_inline)) TARGET void NAME(tile)(
    const T *a, int64_t a_step, const T *s, int64_t step, int64_t length, int first, int last, T *sums,
    T *total, const int height, const int width)
{
    NAME(vector) tile[HEIGHT][WIDTH];
    for (int i = 0; i < height; i++)
        for (int j = 0; j < width; j++)
            tile[i][j] = first ? (NAME(vector)){0}
                               : *(const NAME(vector) *)(sums + (i * width + j) * LANES);
    for (int64_t t = 0; t < length; t++, a += a_step, s += step) {
        NAME(vector) line[WIDTH];
        for (int j = 0; j < width; j++)
            line[j] = *(const NAME(vector) *)(a + j * LANES);
        for (int i = 0; i < height; i++)
            for (int j = 0; j < width; j++)
                tile[i][j] += s[i] * line[j];
    }
    for (int i = 0; i < height; i++)
        for (int j = 0; j < width; j++) {
            if (last)
                *(NAME(vector) *)(total + (i * width + j) * LANES) += tile[i][j] * tile[i][j];
            else
                *(NAME(vector) *)(sums + (i * width + j) * LANES) = tile[i][j];
        }
}

/* With the size of a tile known to the compiler, its sums are registers. */
#define SIZE(height, width)                                                          \
    case (height) * 4 + (width):                                                     \
        NAME(tile)(a, a_step, s, step, length, first, last, sums, total, height, width); \
        break;
#if HEIGHT == 8
#define SIZES(width)                                                                 \
    SIZE(1, width) SIZE(2, width) SIZE(3, width) SIZE(4, width) SIZE(5, width)       \
    SIZE(6, width) SIZE(7, width) SIZE(8, width)
#else
#define SIZES(width)                                                                 \
    SIZE(1, width) SIZE(2, width) SIZE(3, width) SIZE(4, width) SIZE(5, width) SIZE(6, width)
#endif

/* All tiles of a panel, which is one tile wide, below each other. */
static TARGET void NAME(tiles)(
    const T *a, int64_t a_step, const T *s, int64_t step, int64_t length, int first, int last, T *sums,
    T *total, int64_t outputs, int width)
{
    for (int64_t o = 0; o < outputs; o += HEIGHT) {
        int height = outputs - o < HEIGHT ? (int)(outputs - o) : HEIGHT;
        switch (height * 4 + width) {
            SIZES(1)
            SIZES(2)
#if WIDTH == 3
            SIZES(3)
#endif
        }
        s += height;
        sums += (int64_t)height * width * LANES;
        total += (int64_t)height * width * LANES;
    }
}
#undef SIZES
#undef SIZE

/* A run of neighbours. Those of few channels are a handful, for which a call or a loop that has to
 * find out how many there are takes as long as all of them: two moves that overlap do not. */
static inline __attribute__((always_inline)) TARGET void NAME(copy)(T *to, const T *from, int64_t size)
{
#define TWICE(half)                                                                  \
    {                                                                                \
        T head[half], tail[half];                                                    \
        memcpy(head, from, sizeof head);                                             \
        memcpy(tail, from + size - half, sizeof tail);                               \
        memcpy(to, head, sizeof head);                                               \
        memcpy(to + size - half, tail, sizeof tail);                                 \
    }
    if (size > 16)
        memcpy(to, from, sizeof(T) * size);
    else if (size >= 8)
        TWICE(8)
    else if (size >= 4)
        TWICE(4)
    else if (size >= 2)
        TWICE(2)
    else if (size == 1)
        *to = *from;
#undef TWICE
}

/* Some inputs of some positions of one sample, side by side: [positions, breadth], zero beyond. */
static TARGET void NAME(pack)(
    const struct squares *work, const T *sample, int64_t from, int64_t to, int64_t left,
    int64_t right, int64_t breadth, T *panel)
{
    int64_t first = 0, before = 0;
    while (before + work->lengths[first] <= left)
        before += work->lengths[first++];
    for (int64_t t = from; t < to; t++, panel += breadth) {
        const T *seen = sample + work->positions[t];
        int64_t start = before, written = 0;
        for (int64_t i = first; start < right; i++) {
            int64_t stop = start + work->lengths[i];
            int64_t low = start > left ? start : left, high = stop < right ? stop : right;
            const T *source = seen + work->offsets[i] + (low - start);
            NAME(copy)(panel + written, source, high - low);
            written += high - low;
            start = stop;
        }
        while (written < breadth)
            panel[written++] = 0;
    }
}

/* One panel of the result, of one group of samples: breadth is a multiple of LANES. */
static TARGET void NAME(panel)(const void *argument, int64_t task, char *scratch)
{
    const struct squares *work = argument;
    int64_t panels = (work->inputs + PANEL - 1) / PANEL;
    int64_t group = task / panels, left = task % panels * PANEL;
    int64_t right = left + PANEL < work->inputs ? left + PANEL : work->inputs;
    int width = (int)((right - left + LANES - 1) / LANES);
    int64_t breadth = (int64_t)width * LANES;
    int64_t blocks = (work->length + BLOCK - 1) / BLOCK;
    int64_t block = (work->length + blocks - 1) / blocks;
    T *sums = (T *)scratch, *packed = sums + work->outputs * PANEL;
    T *total = (T *)work->totals + (group * panels * PANEL + left) * work->outputs;
    memset(total, 0, sizeof(T) * work->outputs * breadth);
    /* whole vectors, and lines that do not push each other out of the cache */
    int in_place = work->inputs_step && work->inputs % LANES == 0 &&
                   work->inputs_step * (int64_t)sizeof(T) <= IN_PLACE;
    int64_t stop = work->samples * (group + 1) / work->groups;
    for (int64_t n = work->samples * group / work->groups; n < stop; n++) {
        for (int64_t column = 0; column < work->columns; column++) {
            for (int64_t from = 0; from < work->length; from += block) {
                int64_t to = from + block < work->length ? from + block : work->length;
                const T *sample = (const T *)work->images + n * work->image_step, *a = packed;
                if (in_place)
                    a = sample + work->positions[from] + left;
                else if (column == 0 || blocks > 1)
                    NAME(pack)(work, sample, from, to, left, right, breadth, packed);
                const T *s = (const T *)work->cotangents[column] + n * work->sample_step;
                NAME(tiles)(a, in_place ? work->inputs_step : breadth, s + from * work->line_step,
                            work->line_step, to - from, from == 0, to == work->length, sums, total,
                            work->outputs, width);
            }
        }
    }
}

/* The groups added up in their order, tiles back to lines: [outputs, inputs]. */
static TARGET void NAME(gather)(const struct squares *work)
{
    int64_t panels = (work->inputs + PANEL - 1) / PANEL;
    for (int64_t group = 0; group < work->groups; group++)
        for (int64_t left = 0; left < work->inputs; left += PANEL) {
            int64_t right = left + PANEL < work->inputs ? left + PANEL : work->inputs;
            int64_t breadth = (right - left + LANES - 1) / LANES * LANES;
            const T *from = (const T *)work->totals + (group * panels * PANEL + left) * work->outputs;
            for (int64_t o = 0; o < work->outputs; o++, from += breadth) {
                T *line = (T *)work->result + o * work->inputs + left;
                for (int64_t k = 0; k < right - left; k++)
                    line[k] = group ? line[k] + from[k] : from[k];
            }
        }
}

#undef PANEL
#undef T
#undef LANES
#undef WIDTH
#undef HEIGHT
#undef TARGET
#undef NAME
