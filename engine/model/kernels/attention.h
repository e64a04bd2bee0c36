/* Causal attention over a paged cache (see cache.h), for one type of element. */

/* Lets a product fetch a piece: there are as many lines of keys, and of values, as steps. */
INLINE void NAME(fetch_during)(const struct NAME(piece) *piece, struct NAME(product) *product)
{
    product->ahead[0] = (const char *)piece->keys;
    product->ahead[1] = (const char *)piece->values;
    product->num_ahead = 2;
}

static void NAME(fetch)(const struct attention *layer, const struct NAME(piece) *piece)
{
    const char *panel = (const char *)piece->keys; /* values come right behind */
    for (int64_t i = 0; i < 2 * layer->padded * 16 * (int64_t)sizeof(ELEMENT); i += 64)
        __builtin_prefetch(panel + i, 0, 2);
}

/* Scores [num_rows, CHUNK * 16] of the rows for the pieces' keys; fetches `ahead`, if not NULL. */
static void NAME(score)(
    const CELL *queries, int64_t num_rows, int64_t padded, const struct NAME(piece) *pieces,
    int num_pieces, const struct NAME(piece) *ahead, float *scores)
{
    const ELEMENT *panels[CHUNK];
    for (int p = 0; p < CHUNK; p++)
        panels[p] = pieces[p < num_pieces ? p : num_pieces - 1].keys;
    struct NAME(product) product = {
        .rows = queries, .stride = padded, .panels = panels, .num_parts = 1,
        .num_steps = padded / DEPTH, .step_size = 16 * DEPTH, .sums = scores,
        .sums_stride = CHUNK * 16,
    };
    if (ahead)
        NAME(fetch_during)(ahead, &product);
    for (int p = 0, width; p < num_pieces; p += width) {
        width = (num_pieces - p) * 2 > MAX_PANELS ? MAX_PANELS : 1;
        NAME(multiply_rows)(product, num_rows, width > 1);
        product.num_ahead = 0;
        product.panels += width;
        product.sums += 16 * width;
    }
}

/* Adds the rows' weights [num_rows, CHUNK * 16] times the pieces' values to mixed [num_rows, padded];
 * fetches `ahead`, if not NULL.
 */
static void NAME(mix)(
    const CELL *weights, int64_t num_rows, int64_t padded, const struct NAME(piece) *pieces,
    int num_pieces, const struct NAME(piece) *ahead, float *mixed)
{
    const ELEMENT *panels[CHUNK * MAX_PANELS];
    struct NAME(product) product = {
        .rows = weights, .stride = CHUNK * 16, .panels = panels, .num_parts = num_pieces,
        .num_steps = 16 / DEPTH, .step_size = 16 * DEPTH, .sums = mixed, .sums_stride = padded,
        .adds = 1,
    };
    if (ahead)
        NAME(fetch_during)(ahead, &product);
    for (int64_t column = 0, width; column < padded; column += 16 * width) {
        width = padded - column < MAX_PANELS * 16 ? 1 : MAX_PANELS;
        for (int piece = 0; piece < num_pieces; piece++)
            for (int p = 0; p < width; p++)
                panels[piece * width + p] = pieces[piece].values + (column + p * 16) * 16;
        NAME(multiply_rows)(product, num_rows, width > 1);
        product.sums += 16 * width;
        for (int line = 0; line < product.num_ahead; line++)
            product.ahead[line] += product.num_steps * num_pieces * 64;
    }
}

/* What the threads of one call share. */
struct NAME(attention_call) {
    const struct attention *layer;
    const struct attention_step *step;
    const ELEMENT *qkv;
    ELEMENT *cache, *out;
    char *scratch;
    int64_t num_items, num_threads;
};

/* The rows of one tile and key-value head: tokens times the query heads that share it. */
struct NAME(rows) {
    int64_t num, start, end; /* start, end: positions of the tile's tokens */
    const int32_t *blocks;
    const ELEMENT *cache; /* of this head */
    const ELEMENT *queries;
    ELEMENT *out;
    int64_t token_stride, out_stride; /* from one token to the next, of queries and of out */
};

/* Item: a tile, in the order in which they are begun, and a key-value head. */
static struct NAME(rows) NAME(rows_of)(const struct NAME(attention_call) *call, int64_t item)
{
    const struct attention *layer = call->layer;
    const struct attention_step *step = call->step;
    const int64_t heads = layer->num_kv_heads, tile = item / heads, head = item % heads;
    const int64_t width = layer->group_size * layer->head_dim; /* of the heads that share one */
    const int64_t token_stride = heads * (width + 2 * layer->head_dim);
    return (struct NAME(rows)){
        .num = step->lengths[tile] * layer->group_size,
        .start = step->starts[tile],
        .end = step->starts[tile] + step->lengths[tile],
        .blocks = step->blocks + step->tables[tile],
        .cache = call->cache + head * 2 * layer->padded * 16,
        .queries = call->qkv + step->rows[tile] * token_stride + head * width,
        .out = call->out + step->rows[tile] * heads * width + head * width,
        .token_stride = token_stride,
        .out_stride = heads * width,
    };
}

/* Queries, normed, rotated and scaled so that scores are exponents of 2. */
static void NAME(prepare_queries)(
    const struct attention *layer, const struct NAME(rows) *rows, float *rotated, CELL *cells)
{
    const int64_t padded = layer->padded, size = layer->head_dim, group = layer->group_size;
    const float scale = layer->scale * 1.44269504f;
    for (int64_t i = size; i < padded; i++)
        rotated[i] = 0.0f;
    for (int64_t row = 0; row < rows->num; row++) {
        const int64_t token = row / group;
        const ELEMENT *query = rows->queries + token * rows->token_stride + row % group * size;
        NAME(rotate)(layer, query, layer->query_norm, rows->start + token, rotated);
        for (int64_t i = 0; i < padded; i += LANES)
            STORE_CELLS(cells + row * padded + i, load_f32(rotated + i) * scale);
    }
}

/* What was mixed [rows, padded], divided by the sums of weights [rows, 16]. */
static void NAME(store_rows)(
    const struct attention *layer, const struct NAME(rows) *rows, const float *mixed,
    const float *totals)
{
    const int64_t size = layer->head_dim, group = layer->group_size;
    for (int64_t row = 0; row < rows->num; row++, mixed += layer->padded) {
        ELEMENT *to = rows->out + row / group * rows->out_stride + row % group * size;
        const float share = 1.0f / sum(load_f32(totals + row * 16));
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            STORE(to + i, load_f32(mixed + i) * share);
        for (; i < size; i++)
            PUT(to + i, mixed[i] * share);
    }
}

/* Attention of the rows of one item. While one chunk of the context is worked on, the next one is
 * fetched piece by piece: memory is busy all the time. After the last chunk comes the first one of
 * the item that this thread will probably take next.
 */
static void NAME(attend)(const struct NAME(attention_call) *call, int64_t item, char *scratch)
{
    const struct attention *layer = call->layer;
    const struct NAME(rows) rows = NAME(rows_of)(call, item);
    const int64_t padded = layer->padded, group = layer->group_size, num_rows = rows.num;
    float *mixed = (float *)scratch;                     /* [num_rows, padded] */
    float *scores = mixed + num_rows * padded;           /* [num_rows, CHUNK * 16] */
    float *totals = scores + num_rows * CHUNK * 16;      /* [num_rows, 16] */
    float *tops = totals + num_rows * 16;                /* [num_rows] */
    float *rotated = tops + (num_rows + 15) / 16 * 16;   /* [padded] */
    ELEMENT *copies = (ELEMENT *)(rotated + padded);     /* [CHUNK, padded * 16] */
    CELL *queries = (CELL *)(copies + CHUNK * padded * 16); /* [num_rows, padded] */
    CELL *weights = queries + num_rows * padded;         /* [num_rows, CHUNK * 16] */
    struct NAME(piece) pieces[CHUNK], next[CHUNK];
    int64_t position = NAME(first_position)(layer, rows.start);
    int num = NAME(find_pieces)(layer, rows.blocks, rows.cache, position, rows.end, pieces);
    NAME(prepare_queries)(layer, &rows, rotated, queries);
    memset(mixed, 0, num_rows * padded * sizeof(float));
    memset(totals, 0, num_rows * 16 * sizeof(float));
    for (int64_t row = 0; row < num_rows; row++)
        tops[row] = -INFINITY;
    while (num > 0) {
        const int64_t first = position;
        for (int p = 0; p < num; p++)
            position += pieces[p].end - pieces[p].begin;
        const int all_seen =
            position - first == CHUNK * 16 && position <= rows.start + 1 && !layer->window;
        int num_next = NAME(find_pieces)(layer, rows.blocks, rows.cache, position, rows.end, next);
        const int is_last = num_next == 0;
        if (is_last && item + call->num_threads < call->num_items) {
            const struct NAME(rows) others = NAME(rows_of)(call, item + call->num_threads);
            num_next = NAME(find_pieces)(layer, others.blocks, others.cache,
                                         NAME(first_position)(layer, others.start), others.end, next);
        }
        NAME(score)(queries, num_rows, padded, pieces, num, num_next > 0 ? next : NULL, scores);
        if (num_next > 1)
            NAME(fetch)(layer, next + 1);
        for (int p = 0; p < num; p++)
            NAME(use_copy)(layer, pieces + p, copies + p * padded * 16);
        for (int64_t row = 0; row < num_rows; row++) {
            float *mine = scores + row * CHUNK * 16, *sums = mixed + row * padded;
            CELL *weight = weights + row * CHUNK * 16;
            if (all_seen)
                NAME(soften)(layer, pieces, CHUNK, 0, 0, mine, weight, tops + row,
                             totals + row * 16, sums);
            else
                NAME(soften)(layer, pieces, num, rows.start + row / group, 1, mine, weight,
                             tops + row, totals + row * 16, sums);
        }
        NAME(mix)(weights, num_rows, padded, pieces, num, num_next > 2 ? next + 2 : NULL, mixed);
        for (int p = 3; p < num_next; p++)
            NAME(fetch)(layer, next + p);
        memcpy(pieces, next, sizeof pieces);
        num = is_last ? 0 : num_next;
    }
    NAME(store_rows)(layer, &rows, mixed, totals);
}

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
                        call->cache + head * 2 * layer->padded * 16);
    }
}

static void NAME(attend_item)(void *context, int64_t item, int thread)
{
    const struct NAME(attention_call) *call = context;
    NAME(attend)(call, item, call->scratch + thread * call->layer->scratch_bytes);
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
    struct NAME(attention_call) call = {
        .layer = layer, .step = step, .qkv = qkv, .cache = cache, .out = out, .scratch = scratch,
        .num_items = step->num_tiles * layer->num_kv_heads, .num_threads = pool->num_workers + 1,
    };
    run(pool, NAME(write_item), &call, (step->num_tokens + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    run(pool, NAME(attend_item), &call, call.num_items);
}
