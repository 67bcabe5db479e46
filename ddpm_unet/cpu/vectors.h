// Vectors of floats as wide as the processor has them.
#pragma once
#include <algorithm>
#include <cstring>

#if defined __AVX512F__
constexpr long lanes = 16;
#elif defined __AVX2__ && defined __FMA__
constexpr long lanes = 8;
#else
#error "neither AVX-512 nor AVX2 with FMA"
#endif

typedef float vec __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
typedef int index_vec __attribute__((vector_size(4 * lanes)));

static inline vec load(const float* a) { return *(const vec*)a; }
static inline void store(float* a, vec v) { *(vec*)a = v; }

// The first n values of a vector, the others being `rest`.
static inline vec load(const float* a, long n, vec rest) {
    if (n == lanes) return load(a);
    memcpy(&rest, a, n * sizeof(float));
    return rest;
}
static inline void store(float* a, vec v, long n) {
    if (n == lanes)
        store(a, v);
    else
        memcpy(a, &v, n * sizeof(float));
}

static inline float sum(vec v) {
#pragma GCC unroll 4
    for (int half = lanes / 2; half; half /= 2) {
        index_vec other;
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) other[i] = i ^ half;
        v += __builtin_shuffle(v, other);
    }
    return v[0];
}

// e^x to 2e-7, for x clamped to [-87, 87]: 2^n e^r, |r| <= ln 2 / 2, by Cephes' polynomial.
static inline vec exponential(vec x) {
    x = x < -87.f ? vec{} - 87.f : x > 87.f ? vec{} + 87.f : x;
    const vec rounding = vec{} + 12582912.f;  // 1.5 * 2^23: what is added to it loses its fraction
    const vec n = (x * 1.44269504f + rounding) - rounding;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const index_vec power = (__builtin_convertvector(n, index_vec) + 127) << 23;
    return (p * r * r + r + 1.f) * (vec)power;
}
