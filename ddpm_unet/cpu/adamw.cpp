// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) and the average of the weights in
// one pass over memory, which is all the time they take.
#include <algorithm>
#include <cmath>

struct Parameter {  // n numbers each
    float *weights, *gradient, *mean, *square, *average;
    long n;
};

// `corrections`: 1 - beta^step of both means; `follow`: the weights' part of the new average.
extern "C" void adamw(const Parameter* all, long count, double rate, double decay, double beta1,
                      double beta2, double eps, double correction1, double correction2,
                      double follow, int threads) {
    constexpr long some = 1 << 14;
    const float keep = 1 - rate * decay, new1 = 1 - beta1, old2 = beta2, new2 = 1 - beta2;
    const float step = rate / correction1, scale = 1 / std::sqrt(correction2), least = eps;
    const float part = follow;
#pragma omp parallel num_threads(threads)
    for (const Parameter* p = all; p < all + count; ++p) {
        float *weights = p->weights, *mean = p->mean, *square = p->square, *average = p->average;
        const float* gradient = p->gradient;
#pragma omp for nowait
        for (long start = 0; start < p->n; start += some) {
            const long end = std::min(start + some, p->n);
#pragma omp simd
            for (long i = start; i < end; ++i) {
                const float g = gradient[i];
                const float m = mean[i] + new1 * (g - mean[i]);
                const float v = old2 * square[i] + new2 * (g * g);
                const float w = weights[i] * keep - step * m / (std::sqrt(v) * scale + least);
                mean[i] = m;
                square[i] = v;
                weights[i] = w;
                average[i] += part * (w - average[i]);
            }
        }
    }
}
