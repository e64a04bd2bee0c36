/* Rotary embedding, cache writes and causal attention over a paged cache, for one type of element.
 *
 * A layer's cache is [key-value heads][panels][2][padded * 16]: a panel holds the keys, then the
 * values of 16 consecutive slots (slot = block * block size + offset), each laid out as the
 * right-hand matrix of its product: keys as [padded / DEPTH][16 slots][DEPTH], values as
 * [padded / 16][16 / DEPTH slots][16][DEPTH]; `padded` is the head size rounded up to 16.
 *
 * Softmax is computed online (Milakov and Gimelshein, arXiv 1805.02867), over pieces of the context
 * that begin at the same positions for every query: where blocks hold a multiple of 16 tokens, a
 * result does not depend on the batch.
 */

/* Up to 16 slots of one panel that hold consecutive positions. */
struct NAME(piece) {
    const ELEMENT *keys, *values;
    int64_t position; /* of lane 0, were it the sequence's */
    int begin, end;   /* lanes */
};

/* Norms one head where a norm is given: x / sqrt(mean(x^2) + eps) * norm. */
INLINE void NAME(norm_head)(
    const struct attention *layer, const ELEMENT *head, const float *norm, float *to)
{
    const int64_t size = layer->head_dim;
    floats squares = ZERO;
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        floats x = LOAD(head + i);
        store_f32(to + i, x);
        squares += x * x;
    }
    for (; i < size; i++) {
        to[i] = ONE(head + i);
        rest += to[i] * to[i];
    }
    if (!norm)
        return;
    const float scale = 1.0f / sqrtf((sum(squares) + rest) / size + layer->eps);
    for (i = 0; i + LANES <= size; i += LANES)
        store_f32(to + i, load_f32(to + i) * scale * load_f32(norm + i));
    for (; i < size; i++)
        to[i] = to[i] * scale * norm[i];
}

/* Norms, then rotates one head: halves (a, b) become (a cos - b sin, b cos + a sin). */
INLINE void NAME(rotate)(
    const struct attention *layer, const ELEMENT *head, const float *norm, int64_t position,
    float *to)
{
    const int64_t half = layer->head_dim / 2;
    const float *cos = layer->cos + position * half, *sin = layer->sin + position * half;
    NAME(norm_head)(layer, head, norm, to);
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        floats a = load_f32(to + i), b = load_f32(to + half + i);
        floats c = load_f32(cos + i), s = load_f32(sin + i);
        store_f32(to + i, a * c - b * s);
        store_f32(to + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = to[i], b = to[half + i];
        to[i] = a * cos[i] - b * sin[i];
        to[half + i] = b * cos[i] + a * sin[i];
    }
}

/* Stores the keys and values of one token and key-value head. */
static void NAME(write)(
    const struct attention *layer, const ELEMENT *key, const ELEMENT *value, int64_t position,
    int64_t slot, ELEMENT *cache)
{
    const int64_t padded = layer->padded, lane = slot % 16;
    float rotated[padded];
    for (int64_t i = layer->head_dim; i < padded; i++)
        rotated[i] = 0.0f;
    NAME(rotate)(layer, key, layer->key_norm, position, rotated);
    ELEMENT *keys = cache + slot / 16 * 2 * padded * 16, *values = keys + padded * 16;
    ELEMENT rounded[padded];
    for (int64_t i = 0; i < padded; i += LANES)
        STORE(rounded + i, load_f32(rotated + i));
    for (int64_t i = 0; i < padded; i += DEPTH)
        memcpy(keys + (i * 16 + lane * DEPTH), rounded + i, DEPTH * sizeof *keys);
    for (int64_t i = 0; i < layer->head_dim; i++)
        values[i / 16 * 256 + (lane / DEPTH * 16 + i % 16) * DEPTH + lane % DEPTH] = value[i];
}

/* Copies a panel of values with zeros in the lanes outside [begin, end).
 *
 * Their weights are zero, but what is there belongs to others, and zero times a NaN is one.
 */
static void NAME(copy_lanes)(
    const ELEMENT *values, int64_t padded, int begin, int end, ELEMENT *to)
{
    const int64_t step_size = 16 * DEPTH;
    for (int step = 0; step < 16 / DEPTH; step++) {
        uint32_t keep = 0; /* of each word: DEPTH elements */
        for (int lane = step * DEPTH; lane < (step + 1) * DEPTH; lane++)
            if (begin <= lane && lane < end)
                keep |= (uint32_t)(ELEMENT_BITS << lane % DEPTH * 16);
        for (int64_t i = step * step_size; i < padded * 16; i += 256)
            for (int64_t j = 0; j < step_size * (int64_t)sizeof *to; j += sizeof(words)) {
                words x;
                memcpy(&x, (const char *)(values + i) + j, sizeof x);
                x &= keep;
                memcpy((char *)(to + i) + j, &x, sizeof x);
            }
    }
}

/* Where to begin for a tile that begins at `start`: not before the window.
 *
 * A multiple of what is taken at once, for pieces that are the same for every query; in blocks that
 * cut panels, only the sequence's beginning is.
 */
static int64_t NAME(first_position)(const struct attention *layer, int64_t start)
{
    if (!layer->window || start < layer->window || layer->block_size % 16)
        return 0;
    return (start - layer->window + 1) / (CHUNK * 16) * (CHUNK * 16);
}

/* The next pieces, CHUNK at most, of the context's positions [*position, end); how many. */
static int NAME(next_pieces)(
    const struct attention *layer, const int32_t *blocks, const ELEMENT *cache, int64_t *position,
    int64_t end, ELEMENT *copies, struct NAME(piece) *pieces)
{
    int num = 0;
    while (num < CHUNK && *position < end) {
        const int64_t offset = *position % layer->block_size;
        const int64_t slot = (int64_t)blocks[*position / layer->block_size] * layer->block_size
                             + offset;
        int64_t count = 16 - slot % 16;
        if (count > layer->block_size - offset)
            count = layer->block_size - offset;
        if (count > end - *position)
            count = end - *position;
        struct NAME(piece) *piece = &pieces[num];
        piece->keys = cache + slot / 16 * 2 * layer->padded * 16;
        piece->values = piece->keys + layer->padded * 16;
        piece->position = *position - slot % 16;
        piece->begin = slot % 16;
        piece->end = slot % 16 + count;
        if (count < 16) {
            ELEMENT *copy = copies + num * layer->padded * 16;
            NAME(copy_lanes)(piece->values, layer->padded, piece->begin, piece->end, copy);
            piece->values = copy;
        }
        *position += count;
        num++;
    }
    return num;
}

/* Scores [num_rows, CHUNK * 16] of the rows for the pieces' keys; fetches those of the next. */
static void NAME(score)(
    const CELL *queries, int64_t num_rows, int64_t padded, const struct NAME(piece) *pieces,
    int num_pieces, const struct NAME(piece) *next, int num_next, float *scores)
{
    const ELEMENT *panels[CHUNK];
    for (int p = 0; p < CHUNK; p++)
        panels[p] = pieces[p < num_pieces ? p : num_pieces - 1].keys;
    memset(scores, 0, num_rows * CHUNK * 16 * sizeof(float));
    struct NAME(product) product = {
        .rows = queries, .stride = padded, .panels = panels, .num_parts = 1,
        .num_steps = padded / DEPTH, .step_size = 16 * DEPTH, .sums = scores,
        .sums_stride = CHUNK * 16, .num_ahead = num_next,
    };
    for (int p = 0; p < num_next; p++)
        product.ahead[p] = (const char *)next[p].keys;
    for (int p = 0, width; p < num_pieces; p += width) {
        width = (num_pieces - p) * 2 > MAX_PANELS ? MAX_PANELS : 1;
        NAME(multiply_rows)(product, num_rows, width > 1);
        product.num_ahead = 0;
        product.panels += width;
        product.sums += 16 * width;
    }
}

/* Adds the rows' weights [num_rows, CHUNK * 16] times the pieces' values to mixed [num_rows, padded];
 * fetches the values of the next.
 */
static void NAME(mix)(
    const CELL *weights, int64_t num_rows, int64_t padded, const struct NAME(piece) *pieces,
    int num_pieces, const struct NAME(piece) *next, int num_next, float *mixed)
{
    const ELEMENT *panels[CHUNK * MAX_PANELS];
    struct NAME(product) product = {
        .rows = weights, .stride = CHUNK * 16, .panels = panels, .num_parts = num_pieces,
        .num_steps = 16 / DEPTH, .step_size = 16 * DEPTH, .sums = mixed, .sums_stride = padded,
        .num_ahead = num_next,
    };
    for (int p = 0; p < num_next; p++)
        product.ahead[p] = (const char *)next[p].values;
    for (int64_t column = 0, width; column < padded; column += 16 * width) {
        width = padded - column < MAX_PANELS * 16 ? 1 : MAX_PANELS;
        for (int piece = 0; piece < num_pieces; piece++)
            for (int p = 0; p < width; p++)
                panels[piece * width + p] = pieces[piece].values + (column + p * 16) * 16;
        NAME(multiply_rows)(product, num_rows, width > 1);
        product.sums += 16 * width;
        for (int p = 0; p < num_next; p++)
            product.ahead[p] += product.num_steps * num_pieces * 64;
    }
}

/* -INFINITY instead of the scores of a piece that a query at `position` does not see. */
INLINE void NAME(hide)(
    const struct attention *layer, const struct NAME(piece) *piece, int64_t position,
    floats *scores)
{
    const ints lanes = lane_numbers();
    int64_t end = position - piece->position + 1; /* causal: later lanes are hidden */
    int64_t begin = layer->window ? end - layer->window : 0; /* and those before the window */
    end = end > piece->end ? piece->end : end < 0 ? 0 : end;
    begin = begin < piece->begin ? piece->begin : begin > 16 ? 16 : begin;
    for (int v = 0; v < PER_PANEL; v++) {
        const ints lane = lanes + v * LANES;
        const ints seen = (lane >= (int32_t)begin) & (lane < (int32_t)end);
        scores[v] = blend(seen, scores[v], broadcast(-INFINITY));
    }
}

/* One row's scores to weights, with what was summed so far scaled to the new largest score.
 *
 * some_hidden: constant; 0 where there are CHUNK pieces and the query sees all of them.
 */
INLINE void NAME(soften)(
    const struct attention *layer, const struct NAME(piece) *pieces, int num_pieces,
    int64_t position, const int some_hidden, const float *scores, CELL *weights,
    float *largest_so_far, float *total, float *mixed)
{
    floats all[CHUNK * PER_PANEL], top = broadcast(-INFINITY);
#pragma GCC unroll 16
    for (int p = 0; p < CHUNK; p++) {
        floats *own = all + p * PER_PANEL;
#pragma GCC unroll 4
        for (int v = 0; v < PER_PANEL; v++)
            own[v] = p < num_pieces ? load_f32(scores + p * 16 + v * LANES) : broadcast(-INFINITY);
        if (some_hidden && p < num_pieces)
            NAME(hide)(layer, pieces + p, position, own);
#pragma GCC unroll 4
        for (int v = 0; v < PER_PANEL; v++)
            top = larger(top, own[v]);
    }
    const float new_largest = largest(top);
    if (new_largest > *largest_so_far) {
        const floats shrink = power_of_two(broadcast(*largest_so_far - new_largest));
        for (int64_t i = 0; i < layer->padded; i += LANES)
            store_f32(mixed + i, load_f32(mixed + i) * shrink);
        store_f32(total, load_f32(total) * shrink);
        *largest_so_far = new_largest;
    }
    /* Nothing seen yet: all weights are zero, which -INFINITY less itself is not. */
    const float least = *largest_so_far == -INFINITY ? 0.0f : *largest_so_far;
    floats sums = ZERO;
#pragma GCC unroll 16
    for (int i = 0; i < CHUNK * PER_PANEL; i++) {
        const floats weight = power_of_two(all[i] - least);
        STORE_CELLS(weights + i * LANES, weight);
        sums += weight;
    }
    store_f32(total, load_f32(total) + sums);
}

/* Attention of the query rows of one tile and key-value head.
 *
 * Rows are tokens times the query heads that share the key-value head.
 */
static void NAME(attend)(
    const struct attention *layer, const struct attention_step *step, const ELEMENT *qkv,
    const ELEMENT *cache, ELEMENT *out, int64_t tile, int64_t head, char *scratch)
{
    const int64_t padded = layer->padded, size = layer->head_dim, group = layer->group_size;
    const int64_t num_tokens = step->lengths[tile], num_rows = num_tokens * group;
    const int64_t qkv_row = layer->num_kv_heads * (group + 2) * size;
    const int64_t out_row = layer->num_kv_heads * group * size;
    const int64_t start = step->starts[tile], end = start + num_tokens;
    const float scale = layer->scale * 1.44269504f; /* of scores, for powers of two */
    const int32_t *blocks = step->blocks + step->tables[tile];
    float *mixed = (float *)scratch;                     /* [num_rows, padded] */
    float *scores = mixed + num_rows * padded;           /* [num_rows, CHUNK * 16] */
    float *totals = scores + num_rows * CHUNK * 16;      /* [num_rows, 16] */
    float *tops = totals + num_rows * 16;                /* [num_rows] */
    float *rotated = tops + (num_rows + 15) / 16 * 16;   /* [padded] */
    ELEMENT *copies = (ELEMENT *)(rotated + padded);     /* [CHUNK, padded * 16] */
    CELL *queries = (CELL *)(copies + CHUNK * padded * 16); /* [num_rows, padded] */
    CELL *weights = queries + num_rows * padded;         /* [num_rows, CHUNK * 16] */
    for (int64_t i = size; i < padded; i++)
        rotated[i] = 0.0f;
    for (int64_t row = 0; row < num_rows; row++) {
        const int64_t token = row / group;
        const ELEMENT *query = qkv + (step->rows[tile] + token) * qkv_row
                               + (head * group + row % group) * size;
        NAME(rotate)(layer, query, layer->query_norm, start + token, rotated);
        for (int64_t i = 0; i < padded; i += LANES)
            STORE_CELLS(queries + row * padded + i, load_f32(rotated + i) * scale);
        tops[row] = -INFINITY;
    }
    memset(mixed, 0, num_rows * padded * sizeof(float));
    memset(totals, 0, num_rows * 16 * sizeof(float));
    for (int64_t position = NAME(first_position)(layer, start); position < end;) {
        struct NAME(piece) pieces[CHUNK];
        const int64_t first = position;
        const int num = NAME(next_pieces)(layer, blocks, cache, &position, end, copies, pieces);
        const int all_seen =
            position - first == CHUNK * 16 && position <= start + 1 && !layer->window;
        NAME(score)(queries, num_rows, padded, pieces, num, pieces, 0, scores);
        for (int64_t row = 0; row < num_rows; row++) {
            float *mine = scores + row * CHUNK * 16, *sums = mixed + row * padded;
            CELL *weight = weights + row * CHUNK * 16;
            if (all_seen)
                NAME(soften)(layer, pieces, CHUNK, 0, 0, mine, weight, tops + row,
                             totals + row * 16, sums);
            else
                NAME(soften)(layer, pieces, num, start + row / group, 1, mine, weight, tops + row,
                             totals + row * 16, sums);
        }
        NAME(mix)(weights, num_rows, padded, pieces, num, pieces, 0, mixed);
    }
    for (int64_t row = 0; row < num_rows; row++) {
        ELEMENT *to = out + (step->rows[tile] + row / group) * out_row
                      + (head * group + row % group) * size;
        const float share = 1.0f / sum(load_f32(totals + row * 16));
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            STORE(to + i, load_f32(mixed + row * padded + i) * share);
        for (; i < size; i++)
            PUT(to + i, mixed[row * padded + i] * share);
    }
}

/* What the threads of one call share. */
struct NAME(attention_call) {
    const struct attention *layer;
    const struct attention_step *step;
    const ELEMENT *qkv;
    ELEMENT *cache, *out;
    char *scratch;
};

static void NAME(write_item)(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct NAME(attention_call) *call = context;
    const struct attention *layer = call->layer;
    const int64_t heads = layer->num_kv_heads, size = layer->head_dim;
    const int64_t qkv_row = heads * (layer->group_size + 2) * size;
    const int64_t begin = item * ROWS_PER_ITEM;
    for (int64_t token = begin;
         token < begin + ROWS_PER_ITEM && token < call->step->num_tokens; token++) {
        const ELEMENT *keys = call->qkv + token * qkv_row + heads * layer->group_size * size;
        for (int64_t head = 0; head < heads; head++)
            NAME(write)(layer, keys + head * size, keys + (heads + head) * size,
                        call->step->positions[token], call->step->slots[token],
                        call->cache + head * layer->num_panels * 2 * layer->padded * 16);
    }
}

/* Tiles are in the order in which they are begun. */
static void NAME(attend_item)(void *context, int64_t item, int thread)
{
    const struct NAME(attention_call) *call = context;
    const struct attention *layer = call->layer;
    const int64_t heads = layer->num_kv_heads, head = item % heads;
    NAME(attend)(layer, call->step, call->qkv,
                 call->cache + head * layer->num_panels * 2 * layer->padded * 16, call->out,
                 item / heads, head,
                 call->scratch + thread * layer->scratch_bytes);
}

/* Stores the step's keys and values, then attends.
 *
 * qkv      [tokens, (query heads + 2 * key-value heads) * head_dim]
 * cache    of this layer
 * out      [tokens, query heads * head_dim]
 * scratch  layer->scratch_bytes for each thread
 */
void NAME(attention)(
    const struct attention *layer, const struct attention_step *step, const void *qkv, void *cache,
    void *out, void *scratch, struct pool *pool)
{
    struct NAME(attention_call) call = {layer, step, qkv, cache, out, scratch};
    run(pool, NAME(write_item), &call, (step->num_tokens + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    run(pool, NAME(attend_item), &call, step->num_tiles * layer->num_kv_heads);
}
