/* The inner loop of every matrix product, for one type of element (see kernels.c).
 *
 * The right-hand matrix [K, columns] lies in *panels* of 16 columns, as [steps][16][DEPTH] with
 * K = steps * DEPTH: one step is what a vector instruction takes at once. The left-hand rows are
 * *cells*: bfloat16 where the processor multiplies pairs of them, float32 elsewhere.
 */

/* What is multiplied: rows [rows, K] by panels, added to sums. K comes in parts, each with panels of
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
};

/* num_rows and num_panels are constants where this is called, so that `sums` are registers. */
INLINE void NAME(multiply)(const int num_rows, const int num_panels, const struct NAME(product) p)
{
    floats sums[MAX_ROWS][MAX_PANELS * PER_PANEL];
#pragma GCC unroll 8
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 8
        for (int v = 0; v < num_panels * PER_PANEL; v++)
            sums[row][v] = load_f32(p.sums + row * p.sums_stride + v * LANES);
    const CELL *rows = p.rows;
    for (int64_t part = 0; part < p.num_parts; part++) {
        const ELEMENT *panels[MAX_PANELS];
#pragma GCC unroll 8
        for (int panel = 0; panel < num_panels; panel++)
            panels[panel] = p.panels[part * num_panels + panel];
        for (int64_t step = 0; step < p.num_steps; step++) {
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
#endif
#if MAX_ROWS == 3
MULTIPLY(3)
#elif MAX_ROWS == 6
MULTIPLY(4)
MULTIPLY(6)
#endif
#undef MULTIPLY

/* Any number of rows, of MAX_PANELS panels or of one: as many rows at a time as there are
 * registers for.
 */
static void NAME(multiply_rows)(struct NAME(product) p, int64_t num_rows, int wide)
{
    while (num_rows > 0) {
        int done = 1;
#if MAX_ROWS == 6
        if (num_rows >= 6) {
            done = 6;
            wide ? NAME(multiply_wide_6)(&p) : NAME(multiply_narrow_6)(&p);
        } else if (num_rows >= 4) {
            done = 4;
            wide ? NAME(multiply_wide_4)(&p) : NAME(multiply_narrow_4)(&p);
        } else
#elif MAX_ROWS == 3
        if (num_rows >= 3) {
            done = 3;
            wide ? NAME(multiply_wide_3)(&p) : NAME(multiply_narrow_3)(&p);
        } else
#endif
#if MAX_ROWS >= 3
            if (num_rows >= 2) {
            done = 2;
            wide ? NAME(multiply_wide_2)(&p) : NAME(multiply_narrow_2)(&p);
        } else
#endif
            wide ? NAME(multiply_wide_1)(&p) : NAME(multiply_narrow_1)(&p);
        p.rows += done * p.stride;
        p.sums += done * p.sums_stride;
        num_rows -= done;
    }
}
