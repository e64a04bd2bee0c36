/* Scores of queries for a chunk of the context to weights of its values, for one type of element.
 *
 * Softmax is computed online (Milakov and Gimelshein, arXiv 1805.02867), over pieces of the context
 * that begin at the same positions for every query: where blocks hold a multiple of 16 tokens, a
 * result does not depend on the batch.
 */

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
