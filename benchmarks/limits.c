/* What a machine can do at most, by the kernels' own threads: reading memory, products in registers.
 *
 * Built by kernels.py with the flags of a path of the kernels.
 */
#include "vectors.h"

#include "pool.h"

enum {
    SUMS = 24,     /* products at a time: more than one of them takes cycles */
    STEPS = 20000, /* of them, in one item */
};

#if defined(BF16) && DOT_BF16
#define OPERAND bf16
#define ADD_PRODUCT add_product_bf16
#define FLOP 4 /* of a lane */
#else
#define OPERAND float
#define ADD_PRODUCT add_product_f32
#define FLOP 2
#endif

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

/* Reads num_items items of item_bytes, a multiple of 256. */
void read_memory(
    const void *memory, int64_t item_bytes, int64_t num_items, int32_t *sums, struct pool *pool)
{
    struct reading reading = {memory, item_bytes, sums};
    run(pool, read_item, &reading, num_items);
}

static void multiply_item(void *context, int64_t item, int thread)
{
    (void)thread;
    float *operands = context;
    const OPERAND *row = context, *at = (const OPERAND *)(operands + 32);
    floats sums[SUMS];
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; i++)
        sums[i] = broadcast(operands[i]); /* or the compiler would see that all are equal */
    for (int step = 0; step < STEPS; step++) {
        __asm__ volatile("" : "+r"(row)); /* not known to be the same in each step */
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++)
            sums[i] = ADD_PRODUCT(sums[i], at, row);
    }
#pragma GCC unroll 24
    for (int i = 1; i < SUMS; i++)
        sums[0] += sums[i];
    operands[64 + item] = sums[0][0];
}

/* Multiplies; how many floating-point operations it was. operands: [64 + num_items]. */
int64_t multiply(float *operands, int64_t num_items, struct pool *pool)
{
    run(pool, multiply_item, operands, num_items);
    return num_items * STEPS * SUMS * LANES * FLOP;
}
