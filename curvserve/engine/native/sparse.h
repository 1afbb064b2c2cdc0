/* The products of sparse.c, for one type of numbers and one set of instructions.
 *
 * Included by sparse.c, which defines
 *   T        the type of a number
 *   LANES    numbers in a vector register
 *   COMPACT  leaves out zeros of a vector, where there are instructions for it
 *   TARGET   attributes of a function that may use the instructions
 *   NAME     makes a name of its own
 */

enum { NAME(lanes) = LANES };

/* any alignment: what torch hands over is aligned to its own numbers only */
typedef T NAME(vector) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));

/* The numbers of a line that are not zero, and first + k for the k-th; as many are written to. */
static inline __attribute__((always_inline)) TARGET int64_t NAME(listed)(
    const T *line, int64_t size, int32_t first, int32_t *codes, T *values)
{
    int64_t count = 0, k = 0;
#ifdef COMPACT
    for (; k + LANES <= size; k += LANES)
        count += COMPACT(line + k, (int32_t)(first + k), codes + count, values + count);
#endif
    for (; k < size; k++) {
        codes[count] = (int32_t)(first + k);
        values[count] = line[k];
        count += line[k] != 0;
    }
    return count;
}

/* How many numbers of a line are not zero. */
static TARGET int64_t NAME(count)(const void *cotangents, int64_t place, int64_t size)
{
    const T *line = (const T *)cotangents + place;
    int64_t count = 0;
    for (int64_t o = 0; o < size; o++)
        count += line[o] != 0;
    return count;
}

/* With the breadth of a strip known to the compiler, its sums are registers. */
#define STRIPS(breadth, CASE)                                                                      \
    switch (breadth) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) }

/* What one output of one sample adds to a strip: patches, each as much as the output's cotangent. */
static inline __attribute__((always_inline)) TARGET void NAME(strip)(
    const T *image, const int32_t *positions, const T *values, int64_t count, const int64_t *places,
    T *total, int64_t squared, const int breadth)
{
    NAME(vector) sums[WIDEST];
    for (int j = 0; j < breadth; j++)
        sums[j] = squared ? (NAME(vector)){0} : *(const NAME(vector) *)(total + j * LANES);
    for (int64_t i = 0; i < count; i++) {
        const T *patch = image + positions[i], value = values[i];
        for (int j = 0; j < breadth; j++)
            sums[j] += value * *(const NAME(vector) *)(patch + places[j]);
    }
    for (int j = 0; j < breadth; j++) {
        if (squared)
            *(NAME(vector) *)(total + j * LANES) += sums[j] * sums[j];
        else
            *(NAME(vector) *)(total + j * LANES) = sums[j];
    }
}

/* Some outputs, of one group of samples. */
static TARGET void NAME(rows)(const void *argument, int64_t task, char *scratch)
{
    const struct sparse *work = argument;
    int64_t blocks = (work->outputs + SIDE - 1) / SIDE, group = task / blocks;
    int64_t left = task % blocks * SIDE, length = work->length, row = work->vectors * LANES;
    int64_t height = work->outputs - left < SIDE ? work->outputs - left : SIDE;
    T *last = (T *)scratch, *found = last + room(work->extent), *values = found + SIDE * length + SIDE;
    int32_t *codes = (int32_t *)(values + SIDE * length + SIDE), *positions = codes + SIDE * length + SIDE;
    T *total = (T *)work->totals + (group * work->outputs + left) * row;
    memset(total, 0, sizeof(T) * height * row);
    T *sums = work->sums ? (T *)work->sums + group * work->outputs + left : 0;
    if (sums)
        memset(sums, 0, sizeof(T) * height);
    int64_t stop = work->samples * (group + 1) / work->groups;
    for (int64_t n = work->samples * group / work->groups; n < stop; n++) {
        const T *image = (const T *)work->images + n * work->image_step;
        if ((work->samples - 1 - n) * work->image_step < LANES) /* nothing may lie behind it */
            image = memcpy(last, image, sizeof(T) * work->extent);
        for (int64_t column = 0; column < work->columns; column++) {
            const T *line = (const T *)work->cotangents[column] + n * work->sample_step + left;
            int64_t ends[SIDE], count = 0;
            T sum[SIDE] = {0};
            for (int64_t t = 0; t < length; t++, line += work->line_step) {
                count += NAME(listed)(line, height, (int32_t)(t * SIDE), codes + count, found + count);
                for (int64_t o = 0; o < height && sums; o++)
                    sum[o] += line[o];
            }
            for (int64_t o = 0; o < height && sums; o++)
                sums[o] += sum[o];
            for (int o = 0; o < SIDE; o++)
                ends[o] = o * length;
            for (int64_t i = 0; i < count; i++) {
                int64_t end = ends[codes[i] % SIDE]++;
                positions[end] = (int32_t)work->positions[codes[i] / SIDE];
                values[end] = found[i];
            }
            for (int64_t i = 0; i < work->strips; i++) {
                int64_t from = work->vectors * i / work->strips;
                int64_t to = work->vectors * (i + 1) / work->strips;
                for (int64_t o = 0; o < height; o++) {
                    int64_t start = o * length, size = ends[o] - start;
#define CASE(breadth)                                                                              \
    case breadth:                                                                                  \
        NAME(strip)(image, positions + start, values + start, size, work->places + from,           \
                    total + o * row + from * LANES, work->squared, breadth);                       \
        break;
                    if (size)
                        STRIPS(to - from, CASE)
#undef CASE
                }
            }
        }
    }
}

/* The groups added up in their order, vectors back to lines: [outputs, inputs]; and [outputs]. */
static TARGET void NAME(gather)(const struct sparse *work)
{
    int64_t row = work->vectors * LANES;
    for (int64_t group = 0; group < work->groups; group++)
        for (int64_t o = 0; o < work->outputs; o++) {
            const T *from = (const T *)work->totals + (group * work->outputs + o) * row;
            for (int64_t j = 0; j < work->vectors; j++, from += LANES) {
                T *to = (T *)work->result + o * work->inputs + work->ranks[j];
                for (int64_t k = 0; k < work->widths[j]; k++)
                    to[k] = group ? to[k] + from[k] : from[k];
            }
        }
    T *sums = (T *)work->sums;
    for (int64_t i = work->outputs; sums && i < work->groups * work->outputs; i++)
        sums[i % work->outputs] += sums[i];
}

/* The weights, [outputs, inputs], in strips: a vector of each output behind the other's. */
static TARGET void NAME(pack)(const struct sparse *work)
{
    T *to = (T *)work->totals;
    for (int64_t i = 0; i < work->strips; i++)
        for (int64_t o = 0; o < work->outputs; o++)
            for (int64_t j = work->vectors * i / work->strips; j < work->vectors * (i + 1) / work->strips; j++) {
                const T *from = (const T *)work->images + o * work->inputs + work->ranks[j];
                for (int64_t k = 0; k < LANES; k++)
                    *to++ = k < work->widths[j] ? from[k] : 0;
            }
}

/* What one position adds to the image: a strip of the weights of its outputs. */
static inline __attribute__((always_inline)) TARGET void NAME(patch)(
    const T *weights, const int32_t *outputs, const T *values, int64_t count, const int64_t *places,
    T *image, const int breadth)
{
    NAME(vector) sums[WIDEST];
    for (int j = 0; j < breadth; j++)
        sums[j] = (NAME(vector)){0};
    for (int64_t i = 0; i < count; i++) {
        const T *weight = weights + (int64_t)outputs[i] * breadth * LANES, value = values[i];
        for (int j = 0; j < breadth; j++)
            sums[j] += value * *(const NAME(vector) *)(weight + j * LANES);
    }
    for (int j = 0; j < breadth; j++) /* one by one: the zeros behind a run lie over the next */
        *(NAME(vector) *)(image + places[j]) += sums[j];
}

/* The image of one sample. */
static TARGET void NAME(spread)(const void *argument, int64_t n, char *scratch)
{
    const struct sparse *work = argument;
    T *image = (T *)scratch, *values = image + room(work->extent);
    int64_t *starts = (int64_t *)(values + BLOCK * work->outputs + SIDE), row = sizeof(T) * work->line;
    int32_t *outputs = (int32_t *)(starts + BLOCK + 1);
    memset(image, 0, sizeof(T) * room(work->extent));
    for (int64_t first = 0; first < work->length; first += BLOCK) {
        int64_t size = work->length - first < BLOCK ? work->length - first : BLOCK, count = 0;
        const T *line = (const T *)work->cotangents[0] + n * work->sample_step + first * work->line_step;
        for (int64_t t = 0; t < size; t++, line += work->line_step) {
            starts[t] = count;
            count += NAME(listed)(line, work->outputs, 0, outputs + count, values + count);
        }
        starts[size] = count;
        const T *weights = (const T *)work->totals;
        const int64_t *positions = work->positions + first;
        for (int64_t i = 0; i < work->strips; i++) {
            int64_t from = work->vectors * i / work->strips, to = work->vectors * (i + 1) / work->strips;
#define CASE(breadth)                                                                              \
    case breadth:                                                                                  \
        for (int64_t t = 0; t < size; t++)                                                         \
            if (starts[t + 1] > starts[t])                                                         \
                NAME(patch)(weights, outputs + starts[t], values + starts[t],                      \
                            starts[t + 1] - starts[t], work->places + from, image + positions[t],  \
                            breadth);                                                              \
        break;
            STRIPS(to - from, CASE)
#undef CASE
            weights += work->outputs * (to - from) * LANES;
        }
    }
    char *result = (char *)work->result + n * work->lines * row;
    for (int64_t y = 0; y < work->lines; y++)
        memcpy(result + y * row, image + work->first_line + y * work->from_line, row);
}

#undef STRIPS
#undef T
#undef LANES
#undef TARGET
#undef NAME
