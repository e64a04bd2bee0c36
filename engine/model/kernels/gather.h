/* Columns of packed weights, for one type of element: the embedding of tokens, from a head that is
 * tied to it and packed as linear.h describes.
 */

/* What the threads of one call share. */
struct NAME(gather_call) {
    const ELEMENT *weight;
    const int64_t *columns; /* [num_rows] */
    ELEMENT *out;           /* [num_rows, in_features] */
    int64_t num_rows, in_features;
};

static void NAME(gather_item)(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct NAME(gather_call) *call = context;
    const int64_t in = call->in_features, num_steps = (in + DEPTH - 1) / DEPTH;
    const int64_t begin = item * ROWS_PER_ITEM, end = begin + ROWS_PER_ITEM;
    for (int64_t row = begin; row < end && row < call->num_rows; row++) {
        const int64_t column = call->columns[row];
        const ELEMENT *at = call->weight + column / 64 * num_steps * 64 * DEPTH + column % 64 * DEPTH;
        ELEMENT *to = call->out + row * in;
        for (int64_t i = 0; i < in / DEPTH; i++)
            memcpy(to + i * DEPTH, at + i * 64 * DEPTH, DEPTH * sizeof *to);
        if (in % DEPTH)
            to[in - 1] = at[(num_steps - 1) * 64 * DEPTH];
    }
}

void NAME(gather)(
    const void *weight, const int64_t *columns, void *out, int64_t num_rows, int64_t in_features,
    struct pool *pool)
{
    struct NAME(gather_call) call = {
        .weight = weight, .columns = columns, .out = out, .num_rows = num_rows,
        .in_features = in_features,
    };
    run(pool, NAME(gather_item), &call, (num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
}
