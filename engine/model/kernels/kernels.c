/* Kernels of the CPU engine: linear layers, with weights of 8 bits too, and paged attention, in
 * float32 and bfloat16, and the choice and scores of tokens, in float32.
 *
 * Built at first use by build.py, called through ctypes by the Python files beside it. One library
 * is for one set of instructions, that of the compiler's flags.
 */
#include <math.h>
#include <stddef.h>

#include "vectors.h"

#include "pool.h"

#define PER_PANEL (16 / LANES)
/* Sums that fit into the registers: MAX_ROWS rows of MAX_PANELS panels. */
#if LANES == 16
#define MAX_ROWS 6
#define MAX_PANELS 4
#elif LANES == 8 || defined(__aarch64__)
#define MAX_ROWS 3
#define MAX_PANELS 2
#else
#define MAX_ROWS 1
#define MAX_PANELS 2
#endif
enum {
    CHUNK = 4,         /* panels of keys that attention takes at once */
    SPAN = 512,        /* positions that attention sums by themselves, whoever does it */
    SPLIT_ITEMS = 2,   /* heads of sequences for each thread: where there are fewer, spans are items */
    LINES = 4,         /* of 64 bytes in a step of a group of weights, whatever their type */
    FETCHED = 8,       /* steps for which memory is fetched at once: seldom, for the inner loop's sake */
    FETCHING_PASSES = 4, /* over weights, the last ones, during which the next ones are fetched */
    ROWS_PER_ITEM = 8, /* of rows that are normed, of tokens that are stored */
};

struct linear {
    const void *weight; /* packed, see linear.h */
    const void *bias;   /* [out_features] or NULL */
    const void *norm;   /* [in_features] weight of an RMS norm of the rows of x, or NULL */
    int64_t in_features, out_features;
    float eps; /* of the norm */
    int32_t gated;
    int32_t float_out; /* outputs are float32, whatever the type of the rest */
    const float *scales; /* of the columns of a weight of 8 bits, in the order of the panels */
};

/* One item of a product: rows [row, end) of the outputs of num_panels panels, 2 or 4, from `panel`. */
struct share {
    int64_t panel, num_panels, row, end;
};

/* Items of a product: groups, of which the last ones, one for each thread, are cut in two. */
INLINE int64_t num_shares(int64_t num_groups, int64_t num_threads)
{
    return num_groups + (num_groups < num_threads ? num_groups : num_threads);
}

/* A group or half of one, so that all threads end together: half of the panels where all rows are
 * one pass, else half of the passes.
 */
static struct share share_of(
    int64_t item, int64_t num_groups, int64_t num_threads, int64_t num_rows)
{
    const int64_t num_whole = 2 * num_groups - num_shares(num_groups, num_threads);
    if (item < num_whole)
        return (struct share){item * 4, 4, 0, num_rows};
    const int64_t panel = (num_whole + (item - num_whole) / 2) * 4, second = (item - num_whole) % 2;
    if (num_rows <= MAX_ROWS)
        return (struct share){panel + second * 2, 2, 0, num_rows};
    const int64_t num_passes = (num_rows + MAX_ROWS - 1) / MAX_ROWS, first = (num_passes + 1) / 2;
    const int64_t half = (num_rows * first + num_passes - 1) / num_passes;
    return (struct share){panel, 4, second ? half : 0, second ? num_rows : half};
}

struct attention {
    int64_t num_kv_heads, group_size, head_dim;
    int64_t padded; /* head_dim rounded up to 16 */
    int64_t block_size;
    int64_t scratch_bytes;   /* of one thread */
    const float *cos, *sin;  /* [positions, head_dim / 2] */
    /* [head_dim] weight of an RMS norm of each head before its rotation, or NULL */
    const float *query_norm, *key_norm;
    int64_t window; /* positions that a query sees, its own among them; 0: all before it */
    float scale, eps; /* eps: of the norms */
};

struct attention_step {
    int64_t num_tokens, num_tiles;
    const int64_t *positions, *slots; /* [num_tokens] */
    /* Tiles, the costliest first: where all are of one token, that is the longest context. */
    const int64_t *rows;              /* [num_tiles] first token */
    const int64_t *lengths;           /* [num_tiles] tokens */
    const int64_t *starts;            /* [num_tiles] position of the first token */
    const int64_t *tables;            /* [num_tiles] index in `blocks` of the sequence's first */
    const int32_t *blocks;
};

/* Floats of what attention sums for so many rows, `struct sums` of attention.h. */
INLINE int64_t sums_size(int64_t num_rows, int64_t padded)
{
    return (num_rows * (padded + 17) + 15) / 16 * 16;
}

/* Scratch that one thread needs for tiles of so many tokens, see workspace_at(). */
int64_t attention_thread_bytes(const struct attention *layer, int64_t num_tokens)
{
    const int64_t rows = num_tokens * layer->group_size;
    const int64_t row = layer->padded + 2 * CHUNK * 16;
    const int64_t shared = layer->padded + CHUNK * layer->padded * 16;
    const int64_t bytes = (2 * sums_size(rows, layer->padded) + rows * row + shared) * sizeof(float);
    return (bytes + 127) / 64 * 64;
}

/* Scratch of all threads, for sequences of max_len tokens at most: the threads' own, then spans. */
int64_t attention_scratch_bytes(
    const struct attention *layer, int64_t num_threads, int64_t max_len)
{
    const int64_t sums = sums_size(layer->group_size, layer->padded);
    const int64_t num_spans = (max_len + SPAN - 1) / SPAN;
    return num_threads * (layer->scratch_bytes + SPLIT_ITEMS * num_spans * sums * sizeof(float));
}

#include "choice.h"
#include "layers.h"
#include "scores.h"

#include "levels.h"
#define DEPTH DEPTH_INT8
#define CELL int16_t
#define NAME(name) name##_int8
#define ELEMENT int8_t
#define ADD_PRODUCT(sum, at, row) add_pairs(sum, pairs_int8(at), row)
#include "product.h"
#undef NAME
#undef ELEMENT
#undef ADD_PRODUCT
#define NAME(name) name##_int16
#define ELEMENT int16_t
#define ADD_PRODUCT(sum, at, row) add_pairs(sum, pairs_int16(at), row)
#include "product.h"
#undef NAME
#undef ELEMENT
#undef ADD_PRODUCT
#undef DEPTH
#undef CELL

#define NAME(name) name##_f32
#define ELEMENT float
#define ELEMENT_BITS 0xffffffffu
#define DEPTH 1
#define LOAD load_f32
#define STORE store_f32
#define ONE one_f32
#define PUT put_f32
#define CELL float
#define ADD_PRODUCT add_product_f32
#define STORE_CELLS store_f32
#define PUT_CELL put_f32
#include "product.h"

#include "cache.h"

#include "softmax.h"

#include "attention.h"
#include "gather.h"
#include "linear.h"
#include "linear_int8.h"

#undef NAME
#undef ELEMENT
#undef ELEMENT_BITS
#undef DEPTH
#undef LOAD
#undef STORE
#undef ONE
#undef PUT
#undef ADD_PRODUCT
#define NAME(name) name##_bf16
#define ELEMENT bf16
#define ELEMENT_BITS 0xffffu
#define DEPTH 2
#define LOAD load_bf16
#define STORE store_bf16
#define ONE one_bf16
#define PUT put_bf16
#define ADD_PRODUCT add_product_bf16
#if DOT_BF16
#undef CELL
#undef STORE_CELLS
#undef PUT_CELL
#define CELL bf16
#define STORE_CELLS store_bf16
#define PUT_CELL put_bf16
#endif
#include "product.h"

#include "cache.h"

#include "softmax.h"

#include "attention.h"
#include "gather.h"
#include "linear.h"
#include "linear_int8.h"
