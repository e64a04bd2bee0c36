/* Numbers of 8 and 16 bits: levels, which a scale turns into values.
 *
 * A product of two levels has 22 bits or less, the sum of a segment's 31: exact in any order.
 */
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum {
    DEPTH_INT8 = 2,  /* levels of a column that lie side by side */
    SEGMENT = 512,   /* values of a row that share a scale: 512 * 127 * MAX_LEVEL is below 2^31 */
    MAX_LEVEL = 32767,
};

typedef int8_t byte_pairs __attribute__((vector_size(LANES * 2)));
typedef int16_t shorts __attribute__((vector_size(LANES * 2)));
typedef int16_t short_pairs __attribute__((vector_size(LANES * 4)));

/* sum + row[0] * at[even] + row[1] * at[odd]: LANES pairs. The sums are int32 in the bits of floats. */
INLINE floats add_product_int8(floats sum, const int8_t *at, const int16_t *row)
{
    byte_pairs packed;
    memcpy(&packed, at, sizeof packed);
    const short_pairs weights = __builtin_convertvector(packed, short_pairs);
    int32_t pair;
    memcpy(&pair, row, sizeof pair);
#if defined(__AVX512VNNI__)
    return (floats)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(pair));
#elif defined(__AVX512BW__)
    return (floats)((ints)sum
                    + (ints)_mm512_madd_epi16((__m512i)weights, _mm512_set1_epi32(pair)));
#elif defined(__AVX2__)
    return (floats)((ints)sum
                    + (ints)_mm256_madd_epi16((__m256i)weights, _mm256_set1_epi32(pair)));
#else
    const ints pairs = (ints)weights, even = (ints)((words)pairs << 16) >> 16, odd = pairs >> 16;
    return (floats)((ints)sum + even * row[0] + odd * row[1]);
#endif
}

/* totals += sums * scale; sums are int32 in the bits of floats. */
static void add_scaled(float *totals, const float *sums, float scale, int64_t size)
{
    for (int64_t i = 0; i < size; i += LANES) {
        const floats whole = __builtin_convertvector((ints)load_f32(sums + i), floats);
        store_f32(totals + i, load_f32(totals + i) + whole * scale);
    }
}

/* Rounds values to the nearest levels; the scale that turns them back, NaN if one is not finite.
 *
 * values: [SEGMENT], of which `length` count, zeros behind. to: [padded], at least as many.
 */
static float round_to_levels(const float *values, int16_t *to, int64_t length, int64_t padded)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves a whole number in the low bits */
    int16_t levels[SEGMENT];
    floats tops = ZERO, poison = ZERO;
    for (int64_t i = 0; i < length; i += LANES) {
        const floats x = load_f32(values + i);
        tops = larger(larger(x, -x), tops);
        poison += x * 0.0f;
    }
    const float top = largest(tops);
    const int is_zero = !(top > 1e-30f);
    const float inverse = is_zero ? 0.0f : MAX_LEVEL / top;
    for (int64_t i = 0; i < length; i += LANES) {
        const ints shifted = (ints)(load_f32(values + i) * inverse + magic);
        const shorts rounded = __builtin_convertvector(shifted, shorts);
        memcpy(levels + i, &rounded, sizeof rounded);
    }
    memcpy(to, levels, padded * sizeof *to);
    return (is_zero ? 0.0f : top / MAX_LEVEL) + sum(poison);
}
