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
    float *spans; /* [items][spans] sums, where items are cut into spans */
    int64_t num_items, num_threads, num_spans;
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

/* What is summed of the rows' values: [num_rows, padded], with the sums of their weights
 * [num_rows, 16] and the largest scores [num_rows] that both are relative to.
 */
struct NAME(sums) {
    float *mixed, *totals, *tops;
};

/* Lies at `memory`, which holds sums_size() floats. */
static struct NAME(sums) NAME(sums_at)(float *memory, int64_t num_rows, int64_t padded)
{
    float *totals = memory + num_rows * padded;
    return (struct NAME(sums)){memory, totals, totals + num_rows * 16};
}

/* Memory of one thread, for the rows of one item. */
struct NAME(workspace) {
    struct NAME(sums) sums, more;
    float *scores;    /* [num_rows, CHUNK * 16] */
    float *rotated;   /* [padded] */
    ELEMENT *copies;  /* [CHUNK, padded * 16] */
    CELL *queries;    /* [num_rows, padded] */
    CELL *weights;    /* [num_rows, CHUNK * 16] */
};

static struct NAME(workspace) NAME(workspace_at)(char *scratch, int64_t num_rows, int64_t padded)
{
    const int64_t size = sums_size(num_rows, padded);
    float *sums = (float *)scratch, *scores = sums + 2 * size;
    float *rotated = scores + num_rows * CHUNK * 16;
    ELEMENT *copies = (ELEMENT *)(rotated + padded);
    CELL *queries = (CELL *)(copies + CHUNK * padded * 16);
    return (struct NAME(workspace)){
        .sums = NAME(sums_at)(sums, num_rows, padded),
        .more = NAME(sums_at)(sums + size, num_rows, padded),
        .scores = scores, .rotated = rotated, .copies = copies, .queries = queries,
        .weights = queries + num_rows * padded,
    };
}

/* Sums over the positions [position, end). While one chunk of them is worked on, the next one is
 * fetched piece by piece: memory is busy all the time. After the last one come the `after` pieces.
 */
static void NAME(attend_span)(
    const struct attention *layer, const struct NAME(rows) *rows, int64_t position, int64_t end,
    const struct NAME(piece) *after, int num_after, const struct NAME(workspace) *work,
    const struct NAME(sums) *sums)
{
    const int64_t padded = layer->padded, group = layer->group_size, num_rows = rows->num;
    struct NAME(piece) pieces[CHUNK], next[CHUNK];
    int num = NAME(find_pieces)(layer, rows->blocks, rows->cache, position, end, pieces);
    memset(sums->mixed, 0, num_rows * padded * sizeof(float));
    memset(sums->totals, 0, num_rows * 16 * sizeof(float));
    for (int64_t row = 0; row < num_rows; row++)
        sums->tops[row] = -INFINITY;
    while (num > 0) {
        const int64_t first = position;
        for (int p = 0; p < num; p++)
            position += pieces[p].end - pieces[p].begin;
        const int all_seen =
            position - first == CHUNK * 16 && position <= rows->start + 1 && !layer->window;
        int num_next = NAME(find_pieces)(layer, rows->blocks, rows->cache, position, end, next);
        const int is_last = num_next == 0;
        if (is_last && num_after > 0) {
            num_next = num_after;
            memcpy(next, after, num_after * sizeof *next);
        }
        NAME(score)(work->queries, num_rows, padded, pieces, num, num_next > 0 ? next : NULL,
                    work->scores);
        if (num_next > 1)
            NAME(fetch)(layer, next + 1);
        for (int p = 0; p < num; p++)
            NAME(use_copy)(layer, pieces + p, work->copies + p * padded * 16);
        for (int64_t row = 0; row < num_rows; row++) {
            float *mine = work->scores + row * CHUNK * 16, *mixed = sums->mixed + row * padded;
            CELL *weight = work->weights + row * CHUNK * 16;
            if (all_seen)
                NAME(soften)(layer, pieces, CHUNK, 0, 0, mine, weight, sums->tops + row,
                             sums->totals + row * 16, mixed);
            else
                NAME(soften)(layer, pieces, num, rows->start + row / group, 1, mine, weight,
                             sums->tops + row, sums->totals + row * 16, mixed);
        }
        NAME(mix)(work->weights, num_rows, padded, pieces, num, num_next > 2 ? next + 2 : NULL,
                  sums->mixed);
        for (int p = 3; p < num_next; p++)
            NAME(fetch)(layer, next + p);
        memcpy(pieces, next, sizeof pieces);
        num = is_last ? 0 : num_next;
    }
}

/* Adds the sums over a later span. Never inlined: every caller rounds alike. */
static __attribute__((noinline)) void NAME(add_sums)(
    const struct NAME(sums) *to, const struct NAME(sums) *more, int64_t num_rows, int64_t padded)
{
    for (int64_t row = 0; row < num_rows; row++) {
        float *mixed = to->mixed + row * padded, *total = to->totals + row * 16;
        const float *later = more->mixed + row * padded;
        const float top = to->tops[row] > more->tops[row] ? to->tops[row] : more->tops[row];
        if (top == -INFINITY) /* nothing seen yet */
            continue;
        const floats shrink = power_of_two(broadcast(to->tops[row] - top));
        const floats shrink_later = power_of_two(broadcast(more->tops[row] - top));
        for (int64_t i = 0; i < padded; i += LANES)
            store_f32(mixed + i, load_f32(mixed + i) * shrink + load_f32(later + i) * shrink_later);
        store_f32(total, load_f32(total) * shrink
                             + load_f32(more->totals + row * 16) * shrink_later);
        to->tops[row] = top;
    }
}

/* Attention of the rows of one item, span by span. While the last one is worked on, the beginning
 * of the item that this thread will probably take next is fetched.
 */
static void NAME(attend)(const struct NAME(attention_call) *call, int64_t item, char *scratch)
{
    const struct attention *layer = call->layer;
    const struct NAME(rows) rows = NAME(rows_of)(call, item);
    const struct NAME(workspace) work = NAME(workspace_at)(scratch, rows.num, layer->padded);
    const int64_t first = NAME(first_position)(layer, rows.start);
    NAME(prepare_queries)(layer, &rows, work.rotated, work.queries);
    for (int64_t begin = first, end; begin < rows.end; begin = end) {
        const struct NAME(sums) *sums = begin == first ? &work.sums : &work.more;
        struct NAME(piece) after[CHUNK];
        int num_after = 0;
        end = (begin / SPAN + 1) * SPAN;
        if (end < rows.end) {
            num_after =
                NAME(find_pieces)(layer, rows.blocks, rows.cache, end, rows.end, after);
        } else if (item + call->num_threads < call->num_items) {
            const struct NAME(rows) others = NAME(rows_of)(call, item + call->num_threads);
            num_after = NAME(find_pieces)(layer, others.blocks, others.cache,
                                          NAME(first_position)(layer, others.start), others.end,
                                          after);
        }
        NAME(attend_span)(layer, &rows, begin, end < rows.end ? end : rows.end, after, num_after,
                          &work, sums);
        if (begin != first)
            NAME(add_sums)(&work.sums, &work.more, rows.num, layer->padded);
    }
    NAME(store_rows)(layer, &rows, work.sums.mixed, work.sums.totals);
}

/* Item: one span of what attend() takes together, where that would not give work to all threads. */
static void NAME(span_item)(void *context, int64_t index, int thread)
{
    const struct NAME(attention_call) *call = context;
    const struct attention *layer = call->layer;
    const int64_t item = index / call->num_spans, span = index % call->num_spans;
    const struct NAME(rows) rows = NAME(rows_of)(call, item);
    const int64_t first = NAME(first_position)(layer, rows.start);
    const int64_t begin = span * SPAN, end = begin + SPAN;
    if (end <= first || begin >= rows.end)
        return;
    const struct NAME(workspace) work = NAME(workspace_at)(
        call->scratch + thread * layer->scratch_bytes, rows.num, layer->padded);
    const int64_t size = sums_size(rows.num, layer->padded);
    const struct NAME(sums) sums =
        NAME(sums_at)(call->spans + index * size, rows.num, layer->padded);
    NAME(prepare_queries)(layer, &rows, work.rotated, work.queries);
    NAME(attend_span)(layer, &rows, begin > first ? begin : first, end < rows.end ? end : rows.end,
                      NULL, 0, &work, &sums);
}

/* The spans of an item added up, in the order in which attend() does it. */
static void NAME(add_spans)(const struct NAME(attention_call) *call, int64_t item)
{
    const struct attention *layer = call->layer;
    const struct NAME(rows) rows = NAME(rows_of)(call, item);
    const int64_t padded = layer->padded, size = sums_size(rows.num, padded);
    const int64_t first = NAME(first_position)(layer, rows.start) / SPAN;
    float *spans = call->spans + item * call->num_spans * size;
    const struct NAME(sums) sums = NAME(sums_at)(spans + first * size, rows.num, padded);
    for (int64_t span = first + 1; span * SPAN < rows.end; span++) {
        const struct NAME(sums) more = NAME(sums_at)(spans + span * size, rows.num, padded);
        NAME(add_sums)(&sums, &more, rows.num, padded);
    }
    NAME(store_rows)(layer, &rows, sums.mixed, sums.totals);
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
 * scratch  attention_scratch_bytes()
 */
void NAME(attention)(
    const struct attention *layer, const struct attention_step *step, const void *qkv, void *cache,
    void *out, void *scratch, struct pool *pool)
{
    const int64_t num_threads = pool->num_workers + 1;
    struct NAME(attention_call) call = {
        .layer = layer, .step = step, .qkv = qkv, .cache = cache, .out = out, .scratch = scratch,
        .spans = (float *)((char *)scratch + num_threads * layer->scratch_bytes),
        .num_items = step->num_tiles * layer->num_kv_heads, .num_threads = num_threads,
        .num_spans = step->num_tiles ? step->starts[0] / SPAN + 1 : 0,
    };
    run(pool, NAME(write_item), &call, (step->num_tokens + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    const int are_decodes = step->num_tiles == step->num_tokens;
    if (!are_decodes || call.num_spans < 2 || call.num_items >= SPLIT_ITEMS * num_threads) {
        run(pool, NAME(attend_item), &call, call.num_items);
        return;
    }
    run(pool, NAME(span_item), &call, call.num_items * call.num_spans);
    for (int64_t item = 0; item < call.num_items; item++)
        NAME(add_spans)(&call, item);
}
