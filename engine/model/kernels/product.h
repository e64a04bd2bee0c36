/* The inner loop of every matrix product, for one type of element (see kernels.c).
 *
 * The right-hand matrix [K, columns] lies in *panels* of 16 columns, as [steps][16][DEPTH] with
 * K = steps * DEPTH: one step is what a vector instruction takes at once. The left-hand rows are
 * *cells*: bfloat16 where the processor multiplies pairs of them, float32 elsewhere.
 */

/* What is multiplied: rows [rows, K] by panels, into sums. K comes in parts, each with panels of
 * its own: part 1 begins where the cells of part 0 end.
 */
struct NAME(product) {
    const CELL *rows;
    int64_t stride;               /* cells from one row to the next */
    const ELEMENT *const *panels; /* [parts][panels] first element of each */
    int64_t num_parts, num_steps; /* steps in one part */
    int64_t step_size;            /* elements from one step of a panel to the next */
    float *sums;                  /* [rows][16 * panels] */
    int64_t sums_stride;
    int64_t adds;                 /* to what sums are already */
    /* What is fetched into the cache meanwhile: in each step the next line of each. */
    const char *ahead[LINES];
    int64_t num_ahead;
};

/* num_rows and num_panels are constants where this is called, so that `sums` are registers. */
INLINE void NAME(multiply)(const int num_rows, const int num_panels, const struct NAME(product) p)
{
    floats sums[MAX_ROWS][MAX_PANELS * PER_PANEL];
#pragma GCC unroll 8
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < num_panels * PER_PANEL; v++)
            sums[row][v] = p.adds ? load_f32(p.sums + row * p.sums_stride + v * LANES) : ZERO;
    const CELL *rows = p.rows;
    for (int64_t part = 0; part < p.num_parts; part++) {
        const ELEMENT *panels[MAX_PANELS];
#pragma GCC unroll 8
        for (int panel = 0; panel < num_panels; panel++)
            panels[panel] = p.panels[part * num_panels + panel];
        for (int64_t step = 0; step < p.num_steps;) {
            const int64_t end = step + FETCHED < p.num_steps ? step + FETCHED : p.num_steps;
            for (int64_t line = 0; line < p.num_ahead; line++)
                for (int64_t i = step; i < end; i++)
                    __builtin_prefetch(p.ahead[line] + (part * p.num_steps + i) * 64, 0, 2);
            for (; step < end; step++) {
#pragma GCC unroll 8
                for (int v = 0; v < num_panels * PER_PANEL; v++) {
                    const ELEMENT *at = panels[v / PER_PANEL] + v % PER_PANEL * LANES * DEPTH;
#pragma GCC unroll 8
                    for (int row = 0; row < num_rows; row++)
                        sums[row][v] = ADD_PRODUCT(sums[row][v], at, rows + row * p.stride);
                }
#pragma GCC unroll 8
                for (int panel = 0; panel < num_panels; panel++)
                    panels[panel] += p.step_size;
                rows += DEPTH;
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < num_panels * PER_PANEL; v++)
            store_f32(p.sums + row * p.sums_stride + v * LANES, sums[row][v]);
}

#define MULTIPLY(rows)                                                                             \
    static void NAME(multiply_wide_##rows)(const struct NAME(product) *p)                          \
    {                                                                                              \
        NAME(multiply)(rows, MAX_PANELS, *p);                                                      \
    }                                                                                              \
    static void NAME(multiply_narrow_##rows)(const struct NAME(product) *p)                        \
    {                                                                                              \
        NAME(multiply)(rows, 1, *p);                                                               \
    }
MULTIPLY(1)
#if MAX_ROWS >= 3
MULTIPLY(2)
MULTIPLY(3)
#endif
#if MAX_ROWS >= 6
MULTIPLY(4)
MULTIPLY(5)
MULTIPLY(6)
#endif
#undef MULTIPLY

typedef void (*NAME(multiply_function))(const struct NAME(product) *);

/* [wide][rows - 1] */
static const NAME(multiply_function) NAME(multiply_functions)[2][MAX_ROWS] = {
#if MAX_ROWS == 6
    {NAME(multiply_narrow_1), NAME(multiply_narrow_2), NAME(multiply_narrow_3),
     NAME(multiply_narrow_4), NAME(multiply_narrow_5), NAME(multiply_narrow_6)},
    {NAME(multiply_wide_1), NAME(multiply_wide_2), NAME(multiply_wide_3),
     NAME(multiply_wide_4), NAME(multiply_wide_5), NAME(multiply_wide_6)},
#elif MAX_ROWS == 3
    {NAME(multiply_narrow_1), NAME(multiply_narrow_2), NAME(multiply_narrow_3)},
    {NAME(multiply_wide_1), NAME(multiply_wide_2), NAME(multiply_wide_3)},
#else
    {NAME(multiply_narrow_1)},
    {NAME(multiply_wide_1)},
#endif
};

/* Any number of rows, of MAX_PANELS panels or of one, in passes of about as many rows each. */
static void NAME(multiply_rows)(struct NAME(product) p, int64_t num_rows, int wide)
{
    for (int64_t passes = (num_rows + MAX_ROWS - 1) / MAX_ROWS; passes > 0; passes--) {
        const int64_t count = (num_rows + passes - 1) / passes;
        NAME(multiply_functions)[wide][count - 1](&p);
        p.rows += count * p.stride;
        p.sums += count * p.sums_stride;
        p.num_ahead = 0;
        num_rows -= count;
    }
}
