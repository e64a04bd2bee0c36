/* y = x W^T with weights of 8 bits, for one type of element (see kernels.c).
 *
 * Weights are packed as in linear.h, 2 to a step: levels from -127 to 127, which a scale for each
 * column turns into weights. Rows of x are rounded to 16 bits, each segment of them with a scale of
 * its own. Their products are summed in whole numbers, a segment's at a time.
 */

/* What the threads of one call share. */
struct NAME(int8_call) {
    const struct linear *layer;
    const ELEMENT *x, *residual;
    void *out;
    int16_t *cells; /* [rows, stride] */
    float *scales;  /* [rows, segments] */
    int64_t stride, num_segments, num_rows, num_wide;
};

/* Cells of one row of x: normed where the layer has a norm, zero-padded. */
static void NAME(quantize)(const struct NAME(int8_call) *call, int64_t row)
{
    const struct linear *layer = call->layer;
    const ELEMENT *from = call->x + row * layer->in_features, *norm = layer->norm;
    const int64_t in = layer->in_features;
    float norm_scale = 1.0f;
    if (norm) {
        floats squares = ZERO;
        float rest = 0.0f;
        int64_t i = 0;
        for (; i + LANES <= in; i += LANES)
            squares += LOAD(from + i) * LOAD(from + i);
        for (; i < in; i++)
            rest += ONE(from + i) * ONE(from + i);
        norm_scale = 1.0f / sqrtf((sum(squares) + rest) / in + layer->eps);
    }
    for (int64_t segment = 0; segment < call->num_segments; segment++) {
        const int64_t begin = segment * SEGMENT;
        const int64_t length = in - begin < SEGMENT ? in - begin : SEGMENT;
        const int64_t whole = length / LANES * LANES;
        float values[SEGMENT] = {0};
        for (int64_t i = 0; i < whole; i += LANES) {
            const floats y = LOAD(from + begin + i);
            store_f32(values + i, norm ? y * norm_scale * LOAD(norm + begin + i) : y);
        }
        for (int64_t i = whole; i < length; i++) {
            const float y = ONE(from + begin + i);
            values[i] = norm ? y * norm_scale * ONE(norm + begin + i) : y;
        }
        const int64_t left = call->stride - begin;
        call->scales[row * call->num_segments + segment] =
            round_to_levels(values, call->cells + row * call->stride + begin, length,
                            left < SEGMENT ? left : SEGMENT);
    }
}

static void NAME(quantize_item)(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct NAME(int8_call) *call = context;
    const int64_t begin = item * ROWS_PER_ITEM, end = begin + ROWS_PER_ITEM;
    for (int64_t row = begin; row < end && row < call->num_rows; row++)
        NAME(quantize)(call, row);
}

/* Rows [row, row + count) of the outputs of num_panels panels from `panel` on. */
static void NAME(tile_int8)(
    const struct NAME(int8_call) *call, int64_t row, int64_t count, int64_t panel,
    int64_t num_panels)
{
    const struct linear *layer = call->layer;
    const int64_t panel_step = 16 * DEPTH_INT8, step_size = 4 * panel_step;
    const int64_t num_columns = num_panels * 16, divisor = layer->gated ? 2 : 1;
    const int8_t *weight = (const int8_t *)layer->weight
                           + panel / 4 * (call->stride / DEPTH_INT8) * step_size
                           + panel % 4 * panel_step;
    float totals[MAX_ROWS * 64] = {0};
    for (int64_t segment = 0; segment < call->num_segments; segment++) {
        const int64_t begin = segment * SEGMENT, left = call->stride - begin;
        float sums[MAX_ROWS * 64] = {0};
        const int8_t *panels[4];
        for (int64_t p = 0; p < num_panels; p++)
            panels[p] = weight + begin / DEPTH_INT8 * step_size + p * panel_step;
        struct product_int8 product = {
            .rows = call->cells + row * call->stride + begin, .stride = call->stride,
            .panels = panels, .num_parts = 1,
            .num_steps = (left < SEGMENT ? left : SEGMENT) / DEPTH_INT8, .step_size = step_size,
            .sums = sums, .sums_stride = 64,
        };
        const int width = num_panels < MAX_PANELS ? 1 : MAX_PANELS;
        for (int64_t p = 0; p < num_panels; p += width) {
            multiply_rows_int8(product, count, width > 1);
            product.panels += width;
            product.sums += 16 * width;
        }
        for (int64_t r = 0; r < count; r++) {
            const float scale = call->scales[(row + r) * call->num_segments + segment];
            add_scaled(totals + r * 64, sums + r * 64, scale, num_columns);
        }
    }
    for (int64_t r = 0; r < count; r++) {
        float *y = totals + r * 64;
        for (int64_t i = 0; i < num_columns; i += LANES)
            store_f32(y + i, load_f32(y + i) * load_f32(layer->scales + panel * 16 + i));
        if (layer->gated) {
            const ELEMENT *bias = layer->bias;
            NAME(join)(y, bias ? bias + panel * 16 : NULL, num_panels);
        }
        NAME(finish)(layer, y, call->residual, call->out, row + r, panel * 16 / divisor,
                     num_columns / divisor);
    }
}

/* Four panels to an item, but two to the last ones: see columns_item(). */
static void NAME(columns_int8_item)(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct NAME(int8_call) *call = context;
    const int is_wide = item < call->num_wide;
    const int64_t panel = is_wide ? item * 4 : call->num_wide * 2 + item * 2;
    for (int64_t row = 0; row < call->num_rows; row += MAX_ROWS) {
        const int64_t left = call->num_rows - row;
        NAME(tile_int8)(call, row, left < MAX_ROWS ? left : MAX_ROWS, panel, is_wide ? 4 : 2);
    }
}

/* x [num_rows, in_features], residual and out [num_rows, out_features].
 *
 * scratch: for each row its scales, one for each SEGMENT of in_features or part of one, and its cells,
 * in_features rounded up to DEPTH_INT8.
 */
void NAME(linear_int8)(
    const struct linear *layer, const void *x, const void *residual, void *out, void *scratch,
    int64_t num_rows, struct pool *pool)
{
    if (num_rows == 0)
        return;
    const int64_t in = layer->in_features, num_segments = (in + SEGMENT - 1) / SEGMENT;
    const int64_t num_columns = layer->gated ? 2 * layer->out_features : layer->out_features;
    const int64_t num_groups = (num_columns + 63) / 64;
    const int64_t num_split = num_groups < pool->num_workers + 1 ? num_groups : pool->num_workers + 1;
    float *scales = scratch;
    struct NAME(int8_call) call = {
        .layer = layer, .x = x, .residual = residual, .out = out, .scales = scales,
        .cells = (int16_t *)(scales + num_rows * num_segments),
        .stride = (in + DEPTH_INT8 - 1) / DEPTH_INT8 * DEPTH_INT8, .num_segments = num_segments,
        .num_rows = num_rows, .num_wide = num_groups - num_split,
    };
    run(pool, NAME(quantize_item), &call, (num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    run(pool, NAME(columns_int8_item), &call, num_groups + num_split);
}
