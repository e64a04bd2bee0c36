/* y = x W^T with weights of 8 bits, for one type of element (see kernels.c).
 *
 * Weights are packed as in linear.h, 2 to a step: levels from -127 to 127, which a scale for each
 * column turns into weights. Rows of x are rounded to 16 bits, each segment of them with a scale of
 * its own. Their products are summed in whole numbers, a segment's at a time. Where there are many
 * rows, a group's weights are widened to 16 bits first.
 */

/* What the threads of one call share. */
struct NAME(int8_call) {
    const struct linear *layer;
    const ELEMENT *x, *residual;
    void *out;
    int16_t *cells; /* [rows, stride] */
    float *scales;  /* [rows, segments] */
    int16_t *wide;  /* [threads][group] of panels that have been widened, or NULL */
    int64_t stride, num_segments, num_rows, num_groups, num_threads;
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

/* Adds one segment's products to totals [count][64].
 *
 * weight: the item's first panel. wide: the same of 16 bits, or NULL.
 */
static void NAME(add_segment)(
    const struct NAME(int8_call) *call, const int8_t *weight, const int16_t *wide, float *totals,
    int64_t row, int64_t count, int64_t segment, int64_t num_panels)
{
    const int64_t begin = segment * SEGMENT, left = call->stride - begin;
    const int64_t num_steps = (left < SEGMENT ? left : SEGMENT) / DEPTH_INT8;
    const int width = num_panels < MAX_PANELS ? 1 : MAX_PANELS;
    _Alignas(64) float sums[MAX_ROWS * 64];
    const int8_t *panels[4];
    const int16_t *wide_panels[4];
    for (int64_t p = 0; p < num_panels; p++) {
        const int64_t at = begin / DEPTH_INT8 * GROUP_STEP + p * PANEL_STEP;
        panels[p] = weight + at;
        wide_panels[p] = wide ? wide + at : NULL;
    }
    for (int64_t p = 0; p < num_panels; p += width) {
        const struct product_int8 narrow = {
            .rows = call->cells + row * call->stride + begin, .stride = call->stride,
            .panels = panels + p, .num_parts = 1, .num_steps = num_steps,
            .step_size = GROUP_STEP, .sums = sums + 16 * p, .sums_stride = 64,
        };
        if (!wide) {
            multiply_rows_int8(narrow, count, width > 1);
            continue;
        }
        const struct product_int16 widened = {
            .rows = narrow.rows, .stride = narrow.stride, .panels = wide_panels + p,
            .num_parts = 1, .num_steps = num_steps, .step_size = GROUP_STEP,
            .sums = narrow.sums, .sums_stride = 64,
        };
        multiply_rows_int16(widened, count, width > 1);
    }
    for (int64_t r = 0; r < count; r++) {
        const float scale = call->scales[(row + r) * call->num_segments + segment];
        add_scaled(totals + r * 64, sums + r * 64, scale, num_panels * 16);
    }
}

static void NAME(columns_int8_item)(void *context, int64_t item, int thread)
{
    const struct NAME(int8_call) *call = context;
    const struct linear *layer = call->layer;
    const struct share share = share_of(item, call->num_groups, call->num_threads, call->num_rows);
    const int64_t panel = share.panel, num_panels = share.num_panels;
    const int64_t divisor = layer->gated ? 2 : 1;
    const int64_t num_steps = call->stride / DEPTH_INT8, group_size = num_steps * GROUP_STEP;
    const int8_t *weight =
        (const int8_t *)layer->weight + panel / 4 * group_size + panel % 4 * PANEL_STEP;
    int16_t *wide = call->wide ? call->wide + thread * group_size : NULL;
    for (int64_t p = 0; wide && p < num_panels; p++) /* by both threads that share a group */
        widen(weight + p * PANEL_STEP, wide + p * PANEL_STEP, num_steps, GROUP_STEP);
    for (int64_t row = share.row; row < share.end; row += MAX_ROWS) {
        const int64_t left = share.end - row, count = left < MAX_ROWS ? left : MAX_ROWS;
        _Alignas(64) float totals[MAX_ROWS * 64] = {0};
        for (int64_t segment = 0; segment < call->num_segments; segment++)
            NAME(add_segment)(call, weight, wide, totals, row, count, segment, num_panels);
        for (int64_t r = 0; r < count; r++) {
            float *y = totals + r * 64;
            for (int64_t i = 0; i < num_panels * 16; i += LANES)
                store_f32(y + i, load_f32(y + i) * load_f32(layer->scales + panel * 16 + i));
            if (layer->gated) {
                const ELEMENT *bias = layer->bias;
                NAME(join)(y, bias ? bias + panel * 16 : NULL, num_panels);
            }
            NAME(finish)(layer, y, call->residual, call->out, row + r, panel * 16 / divisor,
                         num_panels * 16 / divisor);
        }
    }
    if (layer->float_out)
        finish_streams();
}

/* x [num_rows, in_features], residual and out [num_rows, out_features].
 *
 * scratch: a group's weights of 16 bits for each thread; for each row its scales, one for each
 * SEGMENT of in_features or part of one, and its cells of 16 bits, in_features rounded up to
 * DEPTH_INT8.
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
    const int64_t num_threads = pool->num_workers + 1;
    const int64_t stride = (in + DEPTH_INT8 - 1) / DEPTH_INT8 * DEPTH_INT8;
    int16_t *wide = scratch;
    float *scales = (float *)(wide + num_threads * stride * 64);
    struct NAME(int8_call) call = {
        .layer = layer, .x = x, .residual = residual, .out = out, .scales = scales,
        .cells = (int16_t *)(scales + num_rows * num_segments),
        .wide = num_rows >= WIDE_ROWS ? wide : NULL, .stride = stride,
        .num_segments = num_segments, .num_rows = num_rows, .num_groups = num_groups,
        .num_threads = num_threads,
    };
    run(pool, NAME(quantize_item), &call, (num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    run(pool, NAME(columns_int8_item), &call, num_shares(num_groups, num_threads));
}
