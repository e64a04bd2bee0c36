/* y = x W^T, with what surrounds it in a decoder layer, for one type of element.
 *
 * Weights are packed as [groups][steps][4][16][DEPTH]: a group is 4 panels side by side, so that
 * memory is read in one stream. Columns are padded with zeros to whole groups. In a gated layer the
 * panels of a group are gate, up, gate, up, and y = silu(x G^T) * (x U^T).
 *
 * Each output is summed in the same order whatever the number of rows and threads.
 */

/* Cells of the rows [begin, end) of x: normed where `norm` is given, zero-padded. */
static void NAME(prepare)(
    const struct linear *layer, const ELEMENT *x, CELL *cells, int64_t stride, int64_t begin,
    int64_t end)
{
    const ELEMENT *norm = layer->norm;
    const int64_t in = layer->in_features, whole = in / LANES * LANES;
    for (int64_t row = begin; row < end; row++) {
        const ELEMENT *from = x + row * in;
        CELL *to = cells + row * stride;
        float scale = 1.0f;
        if (norm) {
            floats squares = ZERO;
            float rest = 0.0f;
            for (int64_t i = 0; i < whole; i += LANES)
                squares += LOAD(from + i) * LOAD(from + i);
            for (int64_t i = whole; i < in; i++)
                rest += ONE(from + i) * ONE(from + i);
            scale = 1.0f / sqrtf((sum(squares) + rest) / in + layer->eps);
        }
        for (int64_t i = 0; i < whole; i += LANES) {
            floats y = LOAD(from + i);
            STORE_CELLS(to + i, norm ? y * scale * LOAD(norm + i) : y);
        }
        for (int64_t i = whole; i < in; i++) {
            float y = ONE(from + i);
            PUT_CELL(to + i, norm ? y * scale * ONE(norm + i) : y);
        }
        for (int64_t i = in; i < stride; i++)
            PUT_CELL(to + i, 0.0f);
    }
}

/* Stores one row's outputs from `column` on, as far as the layer has columns.
 *
 * y: [num_columns] sums, a multiple of 16.
 */
INLINE void NAME(finish)(
    const struct linear *layer, const float *y, const ELEMENT *residual, void *out, int64_t row,
    int64_t column, int64_t num_columns)
{
    const ELEMENT *bias = layer->gated ? NULL : layer->bias; /* see join() */
    const int64_t place = row * layer->out_features + column;
    const int64_t left = layer->out_features - column;
    float *wide = layer->float_out ? (float *)out + place : NULL;
    ELEMENT *narrow = (ELEMENT *)out + place;
    int64_t i = 0;
    for (; i < num_columns && i + LANES <= left; i += LANES) {
        floats sums = load_f32(y + i);
        if (bias)
            sums += LOAD(bias + column + i);
        if (residual)
            sums += LOAD(residual + place + i);
        if (wide) /* logits: more than the cache holds */
            stream_f32(wide + i, sums);
        else
            STORE(narrow + i, sums);
    }
    for (; i < num_columns && i < left; i++) {
        const float sum = y[i] + (bias ? ONE(bias + column + i) : 0.0f)
                          + (residual ? ONE(residual + place + i) : 0.0f);
        if (wide)
            wide[i] = sum;
        else
            PUT(narrow + i, sum);
    }
}

/* Gate and up panels in turn to half as many panels of silu(gate) * up, in place.
 *
 * bias: [16 * num_panels], in the order of the panels, or NULL.
 */
static void NAME(join)(float *y, const ELEMENT *bias, int64_t num_panels)
{
    for (int64_t panel = 0; panel < num_panels / 2; panel++)
        for (int lane = 0; lane < 16; lane += LANES) {
            const int64_t i = panel * 32 + lane;
            floats gate = load_f32(y + i), up = load_f32(y + i + 16);
            if (bias) {
                gate += LOAD(bias + i);
                up += LOAD(bias + i + 16);
            }
            const floats below = blend(gate > -80.0f, gate, broadcast(-80.0f));
            store_f32(y + panel * 16 + lane, gate / (1.0f + exponential(-below)) * up);
        }
}

/* What the threads of one call share. */
struct NAME(linear_call) {
    const struct linear *layer;
    const ELEMENT *x, *residual;
    void *out;
    CELL *cells;
    int64_t stride, num_rows, num_groups, num_threads;
};

/* Fetches where a pass will store its outputs: [num_rows][num_columns] from `column` on. */
INLINE void NAME(fetch_outputs)(
    const struct NAME(linear_call) *call, int64_t row, int64_t num_rows, int64_t column,
    int64_t num_columns)
{
    const int64_t out = call->layer->out_features, line = 64 / sizeof(ELEMENT);
    for (int64_t r = row; r < row + num_rows; r++)
        for (int64_t i = column; i < column + num_columns && i < out; i += line)
            __builtin_prefetch((const ELEMENT *)call->out + r * out + i, 1);
}

/* The outputs of a share.
 *
 * From two passes over the weights on arithmetic takes longer than memory: the last of them fetch
 * the group that this thread will probably take next, so many lines of it in each step.
 */
static void NAME(columns)(const struct NAME(linear_call) *call, struct share share)
{
    const struct linear *layer = call->layer;
    const int64_t stride = call->stride;
    const int64_t num_steps = stride / DEPTH, panel_step = 16 * DEPTH, step_size = 4 * panel_step;
    const int64_t group = share.panel / 4, group_size = num_steps * step_size;
    const int64_t first_column = share.panel * 16 / (layer->gated ? 2 : 1);
    const int64_t num_columns = share.num_panels * 16 / (layer->gated ? 2 : 1);
    const ELEMENT *weight = (const ELEMENT *)layer->weight + group * group_size;
    const ELEMENT *bias = layer->bias;
    const ELEMENT *panels[4];
    for (int64_t p = 0; p < share.num_panels; p++)
        panels[p] = weight + (share.panel % 4 + p) * panel_step;
    int64_t num_passes = (share.end - share.row + MAX_ROWS - 1) / MAX_ROWS;
    const int64_t has_next = group + call->num_threads < call->num_groups;
    int64_t lines_left = has_next && num_passes > 1 ? LINES : 0;
    const char *ahead = (const char *)(weight + (lines_left ? call->num_threads * group_size : 0));
    for (int64_t row = share.row, count; row < share.end; row += count, num_passes--) {
        count = (share.end - row + num_passes - 1) / num_passes;
        if (!layer->float_out)
            NAME(fetch_outputs)(call, row, count, first_column, num_columns);
        _Alignas(64) float sums[MAX_ROWS * 64];
        struct NAME(product) product = {
            .rows = call->cells + row * stride, .stride = stride, .panels = panels, .num_parts = 1,
            .num_steps = num_steps, .step_size = step_size, .sums = sums, .sums_stride = 64,
            .num_ahead = num_passes <= FETCHING_PASSES ? lines_left / num_passes : 0,
        };
        for (int64_t line = 0; line < product.num_ahead; line++, lines_left--)
            product.ahead[line] = ahead + (LINES - lines_left) * num_steps * 64;
        const int width = share.num_panels < MAX_PANELS ? 1 : MAX_PANELS;
        for (int64_t p = 0; p < share.num_panels; p += width) {
            NAME(multiply_rows)(product, count, width > 1);
            product.panels += width;
            product.sums += 16 * width;
            product.num_ahead = 0;
        }
        for (int64_t r = 0; r < count; r++) {
            if (layer->gated)
                NAME(join)(sums + r * 64, bias ? bias + share.panel * 16 : NULL, share.num_panels);
            NAME(finish)(layer, sums + r * 64, call->residual, call->out, row + r, first_column,
                         num_columns);
        }
    }
    if (layer->float_out)
        finish_streams();
}

static void NAME(prepare_item)(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct NAME(linear_call) *call = context;
    const int64_t begin = item * ROWS_PER_ITEM, end = begin + ROWS_PER_ITEM;
    NAME(prepare)(call->layer, call->x, call->cells, call->stride, begin,
                  end < call->num_rows ? end : call->num_rows);
}

static void NAME(columns_item)(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct NAME(linear_call) *call = context;
    NAME(columns)(call, share_of(item, call->num_groups, call->num_threads, call->num_rows));
}

/* x [num_rows, in_features], residual and out [num_rows, out_features].
 *
 * scratch: num_rows * (in_features rounded up to DEPTH) cells.
 */
void NAME(linear)(
    const struct linear *layer, const void *x, const void *residual, void *out, void *scratch,
    int64_t num_rows, struct pool *pool)
{
    if (num_rows == 0)
        return;
    const int64_t in = layer->in_features, stride = (in + DEPTH - 1) / DEPTH * DEPTH;
    const int64_t num_columns = layer->gated ? 2 * layer->out_features : layer->out_features;
    const int64_t num_groups = (num_columns + 63) / 64;
    const int64_t num_threads = pool->num_workers + 1;
    struct NAME(linear_call) call = {
        .layer = layer, .x = x, .residual = residual, .out = out, .cells = scratch,
        .stride = stride, .num_rows = num_rows, .num_groups = num_groups,
        .num_threads = num_threads,
    };
    if (sizeof(CELL) == sizeof(ELEMENT) && !layer->norm && in == stride)
        call.cells = (CELL *)x; /* as they are */
    else
        run(pool, NAME(prepare_item), &call, (num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    run(pool, NAME(columns_item), &call, num_shares(num_groups, num_threads));
}
