/* Numbers of 8 and 16 bits: levels, which a scale turns into values.
 *
 * A product of two levels has 22 bits or less, the sum of a segment's 31: exact in any order.
 */
enum {
    DEPTH_INT8 = 2,  /* levels of a column that lie side by side */
    SEGMENT = 1024,  /* values of a row that share a scale: 1024 * 127 * MAX_LEVEL is below 2^31 */
    MAX_LEVEL = 16383,
    PANEL_STEP = 16 * DEPTH_INT8, /* levels of one step of a panel, and of a group */
    GROUP_STEP = 4 * PANEL_STEP,
    WIDE_ROWS = 48, /* from so many rows on it pays to widen the weights first */
};

typedef int8_t byte_pairs __attribute__((vector_size(LANES * 2)));
typedef int16_t shorts __attribute__((vector_size(LANES * 2)));
typedef int16_t short_pairs __attribute__((vector_size(LANES * 4)));

/* LANES pairs of levels, as 16 bits each. */
INLINE words pairs_int8(const int8_t *at)
{
#if defined(__AVX512BW__)
    return (words)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
#elif defined(__AVX2__)
    return (words)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
#else
    byte_pairs packed;
    memcpy(&packed, at, sizeof packed);
    return (words)__builtin_convertvector(packed, short_pairs);
#endif
}

INLINE words pairs_int16(const int16_t *at)
{
    words pairs;
    memcpy(&pairs, at, sizeof pairs);
    return pairs;
}

/* sum + row[0] * pairs[even] + row[1] * pairs[odd]. Sums are int32 in the bits of floats. */
INLINE floats add_pairs(floats sum, words pairs, const int16_t *row)
{
    int32_t both;
    memcpy(&both, row, sizeof both);
#if defined(__AVX512VNNI__)
    return (floats)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)pairs, _mm512_set1_epi32(both));
#elif defined(__AVX512BW__)
    const ints products = (ints)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi32(both));
#elif defined(__AVX2__)
    const ints products = (ints)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32(both));
#elif defined(__SSE2__)
    const ints products = (ints)_mm_madd_epi16((__m128i)pairs, _mm_set1_epi32(both));
#else
    const ints products = ((ints)(pairs << 16) >> 16) * row[0] + ((ints)pairs >> 16) * row[1];
#endif
#if !defined(__AVX512VNNI__)
    return (floats)((ints)sum + products);
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

/* A panel's levels as 16 bits, steps of which lie `step_size` apart in both. */
static void widen(const int8_t *from, int16_t *to, int64_t num_steps, int64_t step_size)
{
    for (int64_t step = 0; step < num_steps; step++)
        for (int v = 0; v < PER_PANEL; v++) {
            const int64_t at = step * step_size + v * LANES * DEPTH_INT8;
            const words pairs = pairs_int8(from + at);
            memcpy(to + at, &pairs, sizeof pairs);
        }
}
