/* Layers of a decoder one after the other, in one call: no row waits for the caller in between. */

typedef void (*linear_function)(
    const struct linear *layer, const void *x, const void *residual, void *out, void *scratch,
    int64_t num_rows, struct pool *pool);
typedef void (*attention_function)(
    const struct attention *layer, const struct attention_step *step, const void *qkv, void *cache,
    void *out, void *scratch, struct pool *pool);

struct decoder_layer {
    const struct linear *qkv, *out, *gate_up, *down;
    linear_function multiply_qkv, multiply_out, multiply_gate_up, multiply_down;
    const struct attention *attention;
    attention_function attend;
    void *cache;
    int64_t is_last;
};

struct decoder_step {
    const struct attention_step *attention;
    void *x;                  /* [tokens, hidden size], overwritten */
    void *qkv;                /* [tokens, (query heads + 2 * key-value heads) * head_dim] */
    void *attended;           /* [tokens, query heads * head_dim] */
    void *gated;              /* [tokens, intermediate size] */
    void *scratch;            /* as much as any of the kernels needs */
    const int64_t *rows;      /* [num_rows] tokens whose hidden states are wanted */
    void *hidden;             /* [num_rows, hidden size] of those, by the last layer */
    int64_t num_rows;
    int64_t element_bytes;
};

static void pick_rows(
    const char *from, const int64_t *rows, int64_t num_rows, int64_t row_bytes, char *to)
{
    for (int64_t i = 0; i < num_rows; i++)
        memcpy(to + i * row_bytes, from + rows[i] * row_bytes, row_bytes);
}

/* After its attention the last layer goes on with the wanted rows alone. */
void decode_layers(
    const struct decoder_layer *layers, int64_t num_layers, const struct decoder_step *step,
    struct pool *pool)
{
    for (const struct decoder_layer *layer = layers; layer < layers + num_layers; layer++) {
        int64_t num_rows = step->attention->num_tokens;
        void *x = step->x, *attended = step->attended;
        layer->multiply_qkv(layer->qkv, x, NULL, step->qkv, step->scratch, num_rows, pool);
        layer->attend(layer->attention, step->attention, step->qkv, layer->cache, attended,
                      step->scratch, pool);
        if (layer->is_last) {
            num_rows = step->num_rows;
            pick_rows(x, step->rows, num_rows, layer->out->out_features * step->element_bytes,
                      step->hidden);
            pick_rows(attended, step->rows, num_rows,
                      layer->out->in_features * step->element_bytes, step->qkv);
            x = step->hidden;
            attended = step->qkv; /* the queries have done their work */
        }
        layer->multiply_out(layer->out, attended, x, x, step->scratch, num_rows, pool);
        layer->multiply_gate_up(layer->gate_up, x, NULL, step->gated, step->scratch, num_rows, pool);
        layer->multiply_down(layer->down, step->gated, x, x, step->scratch, num_rows, pool);
    }
}
