/* What this machine can do at most, in the kernels' own threads: reading memory, multiplying.
 *
 * Compiled by kernels.py with the flags of the kernels' path.
 */
#include "vectors.h"

#include "pool.h"

enum { STEPS = 20000, SUMS = 24 };

struct reading {
    const char *memory;
    int64_t item_bytes;
    int32_t *sums; /* [items] */
};

static void read_item(void *context, int64_t item, int thread)
{
    (void)thread;
    const struct reading *reading = context;
    const char *begin = reading->memory + item * reading->item_bytes;
    ints sums[4] = {0};
    for (int64_t i = 0; i < reading->item_bytes; i += sizeof sums)
        for (int j = 0; j < 4; j++) {
            ints x;
            memcpy(&x, begin + i + j * sizeof x, sizeof x);
            sums[j] += x;
        }
    sums[0] += sums[1] + sums[2] + sums[3];
    reading->sums[item] = sums[0][0];
}

/* Reads num_items * item_bytes bytes; item_bytes is a multiple of 256. */
void read_memory(
    const void *memory, int64_t item_bytes, int64_t num_items, int32_t *sums, struct pool *pool)
{
    struct reading reading = {memory, item_bytes, sums};
    run(pool, read_item, &reading, num_items);
}

static void multiply_item(void *context, int64_t item, int thread)
{
    (void)thread;
    floats sums[SUMS];
    for (int i = 0; i < SUMS; i++)
        sums[i] = ZERO;
#if DOT_BF16
    const bf16 *operands = context;
    const bf16 *row = operands;
#else
    const float *operands = context;
    const float *row = operands;
#endif
    for (int step = 0; step < STEPS; step++) {
        __asm__ volatile("" : "+r"(row)); /* not the same as before, for all the compiler knows */
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++)
#if DOT_BF16
            sums[i] = add_product_bf16(sums[i], operands + 32, row);
#else
            sums[i] = add_product_f32(sums[i], operands + 32, row);
#endif
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] += sums[i];
    ((float *)context)[64 + item] = sums[0][0];
}

/* Multiplies num_items * STEPS * SUMS times in registers; operands: [64 + num_items] floats. */
int64_t multiply(float *operands, int64_t num_items, struct pool *pool)
{
    run(pool, multiply_item, operands, num_items);
    return num_items * STEPS * SUMS * LANES * (DOT_BF16 ? 4 : 2);
}
