/* Vectors of floats as wide as the processor's registers, and bfloat16 in memory.
 *
 * GCC's vector extensions: the same source becomes AVX-512, AVX2, SSE2 or NEON, by the flags it is
 * compiled with. bfloat16 is the upper half of a float32.
 */
#ifndef VECTORS_H
#define VECTORS_H
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pairs of bfloat16 are read as little-endian words"
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define DOT_BF16 1 /* has products of pairs of bfloat16, added to a float32 */
#else
#define DOT_BF16 0
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

static const floats ZERO;

/* x in every lane. */
INLINE floats broadcast(float x) { return ZERO + x; }

INLINE floats load_f32(const float *from)
{
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store_f32(float *to, floats x) { memcpy(to, &x, sizeof x); }

INLINE floats load_bf16(const bf16 *from)
{
    halves x;
    memcpy(&x, from, sizeof x);
    return (floats)(__builtin_convertvector(x, words) << 16);
}

/* Rounds to the nearest, ties to even; a NaN stays one. What is below 2^-126 may become 0. */
INLINE void store_bf16(bf16 *to, floats x)
{
#if DOT_BF16
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &rounded, sizeof rounded);
#else
    words bits = (words)x;
    bits += 0x7fff + ((bits >> 16) & 1);
    words nan = (words)(x != x);
    bits = (bits & ~nan) | (nan & 0x7fc00000u);
    halves rounded = __builtin_convertvector(bits >> 16, halves);
    memcpy(to, &rounded, sizeof rounded);
#endif
}

INLINE float one_f32(const float *from) { return *from; }

INLINE float one_bf16(const bf16 *from)
{
    uint32_t bits = (uint32_t)*from << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void put_f32(float *to, float x) { *to = x; }

INLINE void put_bf16(bf16 *to, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = x != x ? 0x7fc00000u : bits + 0x7fff + ((bits >> 16) & 1);
    *to = (bf16)(bits >> 16);
}

INLINE ints lane_numbers(void)
{
    ints numbers;
    for (int lane = 0; lane < LANES; lane++)
        numbers[lane] = lane;
    return numbers;
}

/* x where `keep` is all ones, y where it is zero. */
INLINE floats blend(ints keep, floats x, floats y)
{
    return (floats)(((ints)x & keep) | ((ints)y & ~keep));
}

/* x where it is larger, else y: NaN only if y is one. */
INLINE floats larger(floats x, floats y)
{
#if defined(__AVX512F__)
    return (floats)_mm512_max_ps((__m512)x, (__m512)y);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)x, (__m256)y);
#else
    return blend(x > y, x, y);
#endif
}

INLINE floats swap(floats x, int distance)
{
#if defined(__clang__)
    floats swapped;
    for (int lane = 0; lane < LANES; lane++)
        swapped[lane] = x[lane ^ distance];
    return swapped;
#else
    return __builtin_shuffle(x, lane_numbers() ^ distance);
#endif
}

INLINE float sum(floats x)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        x += swap(x, distance);
    return x[0];
}

INLINE float largest(floats x)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        x = larger(x, swap(x, distance));
    return x[0];
}

/* e to the x for x up to 88, zero below -87, NaN for NaN; relative error below 2e-7.
 *
 * x = n ln 2 + r with |r| <= ln(2)/2; e^r by its Taylor polynomial; 2^n goes into the exponent.
 */
INLINE floats exponential(floats x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    floats in_range = blend(x > -87.0f, x, broadcast(-87.0f));
    floats shifted = in_range * 1.44269504f + magic;
    floats n = shifted - magic;
    floats r = in_range - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    floats p = r * 1.38888889e-3f + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    words power = (words)shifted << 23; /* the low bits of `shifted` are n */
    floats scaled = (floats)((words)p + power);
    return blend(x < -87.0f, ZERO, blend(x == x, scaled, x));
}

/* 2 to the x for x below 127, zero below -126 or -149, NaN for NaN; relative error below 2e-7.
 *
 * x = n + r with |r| <= 1/2; 2^r by its Taylor polynomial.
 */
INLINE floats power_of_two(floats x)
{
#if defined(__AVX512F__)
    x = larger(broadcast(-200.0f), x);
    const floats n = (floats)_mm512_roundscale_ps((__m512)x, 0);
#else
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const floats whole = x;
    x = larger(broadcast(-126.0f), x);
    const floats shifted = x + magic, n = shifted - magic;
#endif
    const floats r = x - n;
    floats p = r * 1.54035304e-4f + 1.33335581e-3f;
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const floats scaled = (floats)((words)p + ((words)shifted << 23)); /* low bits: n */
    return blend(whole < -126.0f, ZERO, blend(whole == whole, scaled, whole));
#endif
}

/* sum + row[0] * at[...] */
INLINE floats add_product_f32(floats sum, const float *at, const float *row)
{
    return sum + load_f32(at) * *row;
}

/* sum + row[0] * at[even] + row[1] * at[odd]: LANES pairs. */
#if DOT_BF16
INLINE floats add_product_bf16(floats sum, const bf16 *at, const bf16 *row)
{
    int32_t pair;
    memcpy(&pair, row, sizeof pair);
    return (floats)_mm512_dpbf16_ps(
        (__m512)sum, (__m512bh)_mm512_loadu_si512(at), (__m512bh)_mm512_set1_epi32(pair));
}
#else
INLINE floats add_product_bf16(floats sum, const bf16 *at, const float *row)
{
    words pairs;
    memcpy(&pairs, at, sizeof pairs);
    sum += (floats)(pairs << 16) * row[0];
    return sum + (floats)(pairs & 0xffff0000u) * row[1];
}
#endif
#endif
