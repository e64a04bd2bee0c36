/* Index of the largest logit of each row, for one type of element. */

struct NAME(best_call) {
    const ELEMENT *logits;
    int64_t *best;
    int64_t size;
};

/* The first of equals; the first of all where there is nothing but NaN. */
static void NAME(best_item)(void *context, int64_t row, int thread)
{
    (void)thread;
    const struct NAME(best_call) *call = context;
    const ELEMENT *logits = call->logits + row * call->size;
    float top = -INFINITY;
    int64_t begin = 0; /* of the piece in which the largest one was seen first */
    enum { PIECE = 256 };
    for (int64_t i = 0; i < call->size; i += PIECE) {
        float piece_top = -INFINITY;
        if (i + PIECE <= call->size) {
            floats tops = broadcast(-INFINITY);
            for (int64_t j = i; j < i + PIECE; j += LANES)
                tops = larger(LOAD(logits + j), tops);
            piece_top = largest(tops);
        } else {
            for (int64_t j = i; j < call->size; j++)
                piece_top = ONE(logits + j) > piece_top ? ONE(logits + j) : piece_top;
        }
        if (piece_top > top) {
            top = piece_top;
            begin = i;
        }
    }
    int64_t index = begin;
    while (index + 1 < call->size && index < begin + PIECE - 1 && ONE(logits + index) != top)
        index++;
    call->best[row] = ONE(logits + index) == top ? index : 0;
}

/* logits [num_rows, size], best [num_rows]. */
void NAME(best)(const void *logits, int64_t *best, int64_t num_rows, int64_t size, struct pool *pool)
{
    struct NAME(best_call) call = {logits, best, size};
    run(pool, NAME(best_item), &call, num_rows);
}
