/* The next token of each row of float32 logits: the largest, or one drawn.
 *
 * A row's weights are exp((logit - largest) / temperature), so that the largest is 1. What min_p,
 * top_k and top_p leave out becomes 0, and the token is where the cumulated weights pass noise *
 * total. There is no sort: the smallest weight that stays is searched for by halving the numbers
 * that a float between 0 and 1 can be, each time with one pass over the weights.
 *
 * A row's token depends on that row alone. Weights are padded with zeros to whole pieces.
 */

enum {
    PIECE = 256,       /* weights that are summed at once */
    LONG_PIECE = 4096, /* the same where only the total counts */
};

struct choice {
    double noise;      /* in [0, 1) */
    float temperature; /* 0: the largest */
    float min_p;       /* least weight, relative to the largest */
    float top_p;       /* 1: all */
    int32_t top_k;     /* 0: all */
};

struct choose_call {
    const float *logits;
    const struct choice *choices;
    int64_t *tokens;
    float *scratch;
    int64_t size, padded;
};

/* Index of the largest: the first of equals; the first of all where there is nothing but NaN. */
static int64_t index_of_largest(const float *logits, int64_t size)
{
    float top = -INFINITY;
    int64_t begin = 0; /* of the piece in which the largest one was seen first */
    for (int64_t i = 0; i < size; i += PIECE) {
        float piece_top = -INFINITY;
        if (i + PIECE <= size) {
            floats tops = broadcast(-INFINITY);
            for (int64_t j = i; j < i + PIECE; j += LANES)
                tops = larger(load_f32(logits + j), tops);
            piece_top = largest(tops);
        } else {
            for (int64_t j = i; j < size; j++)
                piece_top = logits[j] > piece_top ? logits[j] : piece_top;
        }
        if (piece_top > top) {
            top = piece_top;
            begin = i;
        }
    }
    int64_t index = begin;
    while (index + 1 < size && index < begin + PIECE - 1 && logits[index] != top)
        index++;
    return logits[index] == top ? index : 0;
}

/* Weights of all tokens, 0 below min_p and for NaN. */
static void weigh(
    const float *logits, float *weights, int64_t size, int64_t padded, float top,
    const struct choice *choice)
{
    const int64_t whole = size / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        const floats weight = exponential((load_f32(logits + i) - top) / choice->temperature);
        store_f32(weights + i, blend(weight >= choice->min_p, weight, ZERO));
    }
    if (whole < padded)
        memset(weights + whole, 0, (padded - whole) * sizeof *weights);
    if (whole < size) {
        float rest[LANES] = {0};
        memcpy(rest, logits + whole, (size - whole) * sizeof *rest);
        const floats weight = exponential((load_f32(rest) - top) / choice->temperature);
        store_f32(rest, blend(weight >= choice->min_p, weight, ZERO));
        memcpy(weights + whole, rest, (size - whole) * sizeof *rest);
    }
}

/* Of the weights that are at least `threshold`: their sum, in an order that is always the same. */
static double sum_from(const float *weights, int64_t padded, float threshold)
{
    double total = 0;
    for (int64_t begin = 0; begin < padded; begin += LONG_PIECE) {
        const int64_t end = begin + LONG_PIECE < padded ? begin + LONG_PIECE : padded;
        floats sums[4] = {ZERO, ZERO, ZERO, ZERO};
        for (int64_t i = begin; i < end; i += 4 * LANES)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const floats weight = load_f32(weights + i + j * LANES);
                sums[j] += blend(weight >= threshold, weight, ZERO);
            }
        total += sum(sums[0] + sums[1] + (sums[2] + sums[3]));
    }
    return total;
}

/* Their number. */
static double count_from(const float *weights, int64_t padded, float threshold)
{
    ints counts[4] = {0};
    for (int64_t i = 0; i < padded; i += 4 * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            counts[j] -= load_f32(weights + i + j * LANES) >= threshold;
    counts[0] += counts[1] + counts[2] + counts[3];
    int64_t total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += counts[0][lane];
    return total;
}

typedef double (*measure_function)(const float *weights, int64_t padded, float threshold);

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Keeps the largest weights, as few as measure `goal` or more; of equals the first; at least one.
 *
 * `measure` of all positive weights is at least `goal`. Floats between 0 and 1 are in the order of
 * their bits.
 */
INLINE void keep_largest(float *weights, int64_t padded, measure_function measure, double goal)
{
    uint32_t low = 1, high = 0x3f800001; /* the smallest float above 0, the one after 1 */
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (measure(weights, padded, float_of(middle)) >= goal)
            low = middle;
        else
            high = middle;
    }
    const float least = float_of(low);
    const double missing = goal - measure(weights, padded, float_of(high));
    const double each = measure == count_from ? 1.0 : least;
    const double num_equal =
        count_from(weights, padded, least) - count_from(weights, padded, float_of(high));
    double num_kept = ceil(missing / each);
    num_kept = num_kept < 1 ? 1 : num_kept;
    for (int64_t i = 0; i < padded; i += LANES) {
        const floats weight = load_f32(weights + i);
        store_f32(weights + i, blend(weight >= least, weight, ZERO));
    }
    for (int64_t i = padded; num_equal > num_kept && i-- > 0;)
        if (weights[i] == least) {
            weights[i] = 0;
            num_kept++;
        }
}

/* Where the cumulated weights pass noise * total; -1 if there are none. */
static int64_t draw(const float *weights, int64_t padded, double noise)
{
    double total = 0, before = 0;
    for (int64_t pass = 0; pass < 2; pass++) {
        for (int64_t begin = 0; begin < padded; begin += PIECE) {
            floats sums = ZERO;
            for (int64_t i = begin; i < begin + PIECE; i += LANES)
                sums += load_f32(weights + i);
            const double piece = sum(sums);
            if (pass == 0) {
                total += piece;
            } else if (before + piece > noise * total) {
                double passed = before;
                int64_t last = -1; /* the piece's sum was rounded: perhaps none passes */
                for (int64_t i = begin; i < begin + PIECE && passed <= noise * total; i++) {
                    passed += weights[i];
                    last = weights[i] > 0 ? i : last;
                }
                return last;
            } else {
                before += piece;
            }
        }
    }
    return -1;
}

static void choose_item(void *context, int64_t row, int thread)
{
    const struct choose_call *call = context;
    const struct choice *choice = call->choices + row;
    const float *logits = call->logits + row * call->size;
    const int64_t padded = call->padded;
    const int64_t best = index_of_largest(logits, call->size);
    call->tokens[row] = best;
    if (!(choice->temperature > 0))
        return;
    float *weights = call->scratch + thread * padded;
    weigh(logits, weights, call->size, padded, logits[best], choice);
    if (choice->top_k > 0 && count_from(weights, padded, float_of(1)) > choice->top_k)
        keep_largest(weights, padded, count_from, choice->top_k);
    if (choice->top_p < 1)
        keep_largest(
            weights, padded, sum_from, choice->top_p * sum_from(weights, padded, float_of(1)));
    const int64_t drawn = draw(weights, padded, choice->noise);
    call->tokens[row] = drawn < 0 ? best : drawn;
}

/* logits [num_rows, size], choices and tokens [num_rows].
 *
 * scratch: for each thread `size` floats, rounded up to 256.
 */
void choose(
    const float *logits, const struct choice *choices, int64_t *tokens, void *scratch,
    int64_t num_rows, int64_t size, struct pool *pool)
{
    struct choose_call call = {
        .logits = logits, .choices = choices, .tokens = tokens, .scratch = scratch, .size = size,
        .padded = (size + PIECE - 1) / PIECE * PIECE,
    };
    run(pool, choose_item, &call, num_rows);
}
