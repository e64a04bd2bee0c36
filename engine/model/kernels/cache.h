/* A paged cache of keys and values, for one type of element: rotary embedding, writing, finding.
 *
 * A layer's cache is [panels][key-value heads][2][padded * 16]: a panel holds the keys, then the
 * values of 16 consecutive slots (slot = block * block size + offset), each laid out as the
 * right-hand matrix of its product: keys as [padded / DEPTH][16 slots][DEPTH], values as
 * [padded / 16][16 / DEPTH slots][16][DEPTH]; `padded` is the head size rounded up to 16.
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
    ELEMENT *keys = cache + slot / 16 * layer->num_kv_heads * 2 * padded * 16;
    ELEMENT *values = keys + padded * 16;
    ELEMENT rounded[padded];
    for (int64_t i = 0; i < padded; i += LANES)
        STORE(rounded + i, load_f32(rotated + i));
    for (int64_t i = 0; i < padded; i += DEPTH)
        memcpy(keys + (i * 16 + lane * DEPTH), rounded + i, DEPTH * sizeof *keys);
    for (int64_t i = 0; i < layer->head_dim; i++)
        values[i / 16 * 256 + (lane / DEPTH * 16 + i % 16) * DEPTH + lane % DEPTH] = value[i];
}

/* Where a piece is not a whole panel: lets its values be a copy with zeros in all other lanes.
 *
 * Their weights are zero, but what is there belongs to others, and zero times a NaN is one.
 */
static void NAME(use_copy)(
    const struct attention *layer, struct NAME(piece) *piece, ELEMENT *to)
{
    if (piece->end - piece->begin == 16)
        return;
    const ELEMENT *values = piece->values;
    const int64_t step_size = 16 * DEPTH;
    for (int step = 0; step < 16 / DEPTH; step++) {
        uint32_t keep = 0; /* of each word: DEPTH elements */
        for (int lane = step * DEPTH; lane < (step + 1) * DEPTH; lane++)
            if (piece->begin <= lane && lane < piece->end)
                keep |= (uint32_t)(ELEMENT_BITS << lane % DEPTH * 16);
        for (int64_t i = step * step_size; i < layer->padded * 16; i += 256)
            for (int64_t j = 0; j < step_size * (int64_t)sizeof *to; j += sizeof(words)) {
                words x;
                memcpy(&x, (const char *)(values + i) + j, sizeof x);
                x &= keep;
                memcpy((char *)(to + i) + j, &x, sizeof x);
            }
    }
    piece->values = to;
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

/* Pieces, CHUNK at most, of a sequence's positions [position, end) in its blocks; how many. */
static int NAME(find_pieces)(
    const struct attention *layer, const int32_t *blocks, const ELEMENT *cache, int64_t position,
    int64_t end, struct NAME(piece) *pieces)
{
    int num = 0;
    int64_t block = position / layer->block_size, offset = position % layer->block_size;
    while (num < CHUNK && position < end) {
        const int64_t slot = blocks[block] * layer->block_size + offset, lane = slot % 16;
        int64_t count = 16 - lane;
        if (count > layer->block_size - offset)
            count = layer->block_size - offset;
        if (count > end - position)
            count = end - position;
        const ELEMENT *keys = cache + slot / 16 * layer->num_kv_heads * 2 * layer->padded * 16;
        pieces[num++] = (struct NAME(piece)){
            .keys = keys, .values = keys + layer->padded * 16, .position = position - lane,
            .begin = lane, .end = lane + count,
        };
        position += count;
        offset += count;
        if (offset == layer->block_size) {
            offset = 0;
            block++;
        }
    }
    return num;
}
