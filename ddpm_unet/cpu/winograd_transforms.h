// The transforms of F(4x4, 3x3), of vectors of channels; see winograd.cpp.
#pragma once
#include "vectors.h"

constexpr float root2 = 1.41421356237309505f;

// The transforms in one dimension: from n values at distance s to m values at distance q. With
// a = sqrt(1/2) and b = sqrt(2), rows in pairs of an even part plus and minus an odd one:
//
//        | 1   0  -5/2   0   1   0 |         |   1     0     0  |
//        | 0  -b   -2    a   1   0 |         | -2/3  -b/3  -1/3 |         | 1  1   1   1   1  0 |
//  B^T = | 0   b   -2   -a   1   0 |     G = | -2/3   b/3  -1/3 |     A^T = | 0  a  -a   b  -b  0 |
//        | 0  -a  -1/2   b   1   0 |         |  1/6   b/6   1/3 |         | 0 1/2 1/2  2   2  0 |
//        | 0   a  -1/2  -b   1   0 |         |  1/6  -b/6   1/3 |         | 0 a/2 -a/2 2b -2b 1 |
//        | 0   1    0  -5/2  0   1 |         |   0     0     1  |
static inline void pairs(vec* v, int q, vec even1, vec odd1, vec even2, vec odd2) {
    v[q] = even1 + odd1;
    v[2 * q] = even1 - odd1;
    v[3 * q] = even2 + odd2;
    v[4 * q] = even2 - odd2;
}
struct Inputs {  // B^T
    static constexpr int n = 6, m = 6;
    static inline void run(const vec* d, int s, vec* v, int q) {
        v[0] = d[0] - 2.5f * d[2 * s] + d[4 * s];
        pairs(v, q, d[4 * s] - 2.f * d[2 * s], (d[3 * s] - 2.f * d[s]) * (root2 / 2),
              d[4 * s] - .5f * d[2 * s], (d[3 * s] - .5f * d[s]) * root2);
        v[5 * q] = d[s] - 2.5f * d[3 * s] + d[5 * s];
    }
};
struct Filters {  // G
    static constexpr int n = 3, m = 6;
    static inline void run(const vec* g, int s, vec* u, int q) {
        u[0] = g[0];
        pairs(u, q, g[0] * (-2.f / 3) - g[2 * s] * (1.f / 3), g[s] * (-root2 / 3),
              g[0] * (1.f / 6) + g[2 * s] * (1.f / 3), g[s] * (root2 / 6));
        u[5 * q] = g[2 * s];
    }
};
struct Outputs {  // A^T
    static constexpr int n = 6, m = 4;
    static inline void run(const vec* p, int s, vec* y, int q) {
        vec even1 = p[s] + p[2 * s], odd1 = (p[s] - p[2 * s]) * (root2 / 2);
        vec even2 = p[3 * s] + p[4 * s], odd2 = (p[3 * s] - p[4 * s]) * root2;
        y[0] = p[0] + even1 + even2;
        y[q] = odd1 + odd2;
        y[2 * q] = .5f * even1 + 2.f * even2;
        y[3 * q] = .5f * odd1 + 2.f * odd2 + p[5 * s];
    }
};
struct OutputGradients {  // A
    static constexpr int n = 4, m = 6;
    static inline void run(const vec* y, int s, vec* z, int q) {
        z[0] = y[0];
        pairs(z, q, y[0] + .5f * y[2 * s], (y[s] + .5f * y[3 * s]) * (root2 / 2),
              y[0] + 2.f * y[2 * s], (y[s] + 2.f * y[3 * s]) * root2);
        z[5 * q] = y[3 * s];
    }
};
struct FilterGradients {  // G^T
    static constexpr int n = 6, m = 3;
    static inline void run(const vec* u, int s, vec* g, int q) {
        vec even1 = u[s] + u[2 * s], odd1 = u[s] - u[2 * s];
        vec even2 = u[3 * s] + u[4 * s], odd2 = u[3 * s] - u[4 * s];
        g[0] = u[0] - even1 * (2.f / 3) + even2 * (1.f / 6);
        g[q] = odd2 * (root2 / 6) - odd1 * (root2 / 3);
        g[2 * q] = (even2 - even1) * (1.f / 3) + u[5 * s];
    }
};
template <class T>  // from n x n values to m x m
static inline void both_ways(const vec (&a)[T::n * T::n], vec (&b)[T::m * T::m]) {
    vec half[T::m * T::n];
#pragma GCC unroll 6
    for (int j = 0; j < T::n; ++j) T::run(a + j, T::n, half + j, T::n);
#pragma GCC unroll 6
    for (int i = 0; i < T::m; ++i) T::run(half + i * T::n, 1, b + i * T::m, 1);
}

template <int step>  // exchanges the off-diagonal squares of size `step`
static inline void exchange(vec (&v)[lanes]) {
    index_vec upper, lower;
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j) {
        upper[j] = j & step ? lanes + j - step : j;
        lower[j] = j & step ? lanes + j : j + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
        if (!(i & step)) {
            vec a = v[i], b = v[i + step];
            v[i] = __builtin_shuffle(a, b, upper);
            v[i + step] = __builtin_shuffle(a, b, lower);
        }
}
// b[j][i] = a[i][j], rows of `a` and of `b` being sa and sb apart
static void transpose(const float* a, long sa, float* b, long sb, long rows, long columns) {
    for (long r = 0; r < rows; r += lanes)
        for (long c = 0; c < columns; c += lanes) {
            const float* from = a + r * sa + c;
            float* to = b + c * sb + r;
            if (r + lanes > rows || c + lanes > columns) {
                for (long i = 0; i < std::min(lanes, rows - r); ++i)
                    for (long j = 0; j < std::min(lanes, columns - c); ++j)
                        to[j * sb + i] = from[i * sa + j];
                continue;
            }
            vec v[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) v[i] = load(from + i * sa);
            exchange<1>(v);
            exchange<2>(v);
            exchange<4>(v);
            if constexpr (lanes == 16) exchange<8>(v);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) store(to + i * sb, v[i]);
        }
}
