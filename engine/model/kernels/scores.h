/* Log-probabilities of one token, and of the largest ones, of each row of float32 logits.
 *
 * A row's results depend on that row alone.
 */

struct score_call {
    const float *logits;
    const int64_t *tokens;
    float *own, *top;
    int64_t *top_ids;
    int64_t size, num_top;
};

/* Logarithm of the sum of e to the power of each. */
static float log_sum_exp(const float *logits, int64_t size, float top)
{
    double total = 0;
    for (int64_t begin = 0; begin < size; begin += LONG_PIECE) {
        const int64_t end = begin + LONG_PIECE < size ? begin + LONG_PIECE : size;
        floats sums = ZERO;
        int64_t i = begin;
        for (; i + LANES <= end; i += LANES)
            sums += exponential(load_f32(logits + i) - top);
        for (; i < end; i++)
            total += expf(logits[i] - top);
        total += sum(sums);
    }
    return top + (float)log(total);
}

/* The num_top largest with their indices, the largest first; of equals the first. */
static void find_largest(
    const float *logits, int64_t size, float *top, int64_t *top_ids, int64_t num_top)
{
    int64_t num = 0;
    for (int64_t begin = 0; begin < size; begin += PIECE) {
        if (num == num_top && begin + PIECE <= size) {
            floats tops = broadcast(-INFINITY);
            for (int64_t i = begin; i < begin + PIECE; i += LANES)
                tops = larger(load_f32(logits + i), tops);
            if (!(largest(tops) > top[num - 1]))
                continue;
        }
        for (int64_t i = begin; i < size && i < begin + PIECE; i++) {
            const float x = logits[i] == logits[i] ? logits[i] : -INFINITY;
            if (num == num_top && !(x > top[num - 1]))
                continue;
            num += num < num_top;
            int64_t place = num - 1;
            for (; place > 0 && x > top[place - 1]; place--) {
                top[place] = top[place - 1];
                top_ids[place] = top_ids[place - 1];
            }
            top[place] = x;
            top_ids[place] = i;
        }
    }
}

static void score_item(void *context, int64_t row, int thread)
{
    (void)thread;
    const struct score_call *call = context;
    const float *logits = call->logits + row * call->size;
    const float total =
        log_sum_exp(logits, call->size, logits[index_of_largest(logits, call->size)]);
    call->own[row] = logits[call->tokens[row]] - total;
    if (call->num_top == 0)
        return;
    float *top = call->top + row * call->num_top;
    find_largest(logits, call->size, top, call->top_ids + row * call->num_top, call->num_top);
    for (int64_t i = 0; i < call->num_top; i++)
        top[i] -= total;
}

/* logits [num_rows, size], tokens and own [num_rows], top and top_ids [num_rows, num_top]; num_top
 * is at most size.
 */
void score(
    const float *logits, const int64_t *tokens, float *own, float *top, int64_t *top_ids,
    int64_t num_rows, int64_t size, int64_t num_top, struct pool *pool)
{
    struct score_call call = {
        .logits = logits, .tokens = tokens, .own = own, .top = top, .top_ids = top_ids,
        .size = size, .num_top = num_top,
    };
    run(pool, score_item, &call, num_rows);
}
