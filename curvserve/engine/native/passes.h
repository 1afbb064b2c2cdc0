/* The passes of passes.c, for one type of numbers and one set of instructions.
 *
 * Included by passes.c, which defines
 *   T         the type of a number
 *   BITS      an unsigned integer of its size
 *   INFINITE  the bits of infinity
 *   TARGET    attributes of a function that may use the instructions
 *   NAME      makes a name of its own
 */

/* The squares of x - y, added up in double precision. */
static TARGET double NAME(distance)(const struct passes *work, int64_t tensor, int64_t from, int64_t size)
{
    const T *x = (const T *)work->first[tensor] + from, *y = (const T *)work->second[tensor] + from;
    double sums[SIDE] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + SIDE <= size; i += SIDE)
        for (int k = 0; k < SIDE; k++) {
            double d = (T)(x[i + k] - y[i + k]);
            sums[k] += d * d;
        }
    for (; i < size; i++) {
        double d = (T)(x[i] - y[i]);
        sums[0] += d * d;
    }
    for (int k = 0; k < SIDE; k++)
        sum += sums[k];
    return sum;
}

/* 1 where one of x is not finite: without the sign, its bits are those of infinity or more. */
static TARGET double NAME(improper)(const struct passes *work, int64_t tensor, int64_t from, int64_t size)
{
    const T *x = (const T *)work->first[tensor] + from;
    BITS most = 0;
    for (int64_t i = 0; i < size; i++) {
        BITS bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= ~((BITS)1 << (8 * sizeof bits - 1));
        most = bits > most ? bits : most;
    }
    return most >= INFINITE;
}

/* p + factor * g / (h + shift), each operation rounded by itself, as torch does it. */
static TARGET double NAME(divided)(const struct passes *work, int64_t tensor, int64_t from, int64_t size)
{
    const T *p = (const T *)work->first[tensor] + from, *g = (const T *)work->second[tensor] + from;
    const T *h = (const T *)work->third[tensor] + from;
    T *result = (T *)work->result[tensor] + from;
    const T factor = (T)work->factor, shift = (T)work->shift;
    for (int64_t i = 0; i < size; i++)
        result[i] = p[i] + factor * g[i] / (h[i] + shift);
    return 0;
}

#undef T
#undef BITS
#undef INFINITE
#undef TARGET
#undef NAME
