// Group normalisation (Wu & He 2018, arXiv 1803.08494), modulation and SiLU in one go.
//
// The mean and then the variance of a group are of a pass each, while the cache has it; what is
// left is one factor and one summand for each channel. The result does not depend on the number of
// threads, nor that of an image on its neighbours in the batch.
#include <cmath>

#include "vectors.h"

// Of n values x: sums f(x) in single precision, in blocks, and the blocks in double. `rest` fills
// the last vector.
template <class F>
static double total(const float* x, long n, float rest, F f) {
    constexpr long block = 64 * lanes;
    double all = 0;
    for (long start = 0; start < n; start += block) {
        const long end = std::min(start + block, n);
        vec part[4] = {};
        long i = start;
        for (; i + 4 * lanes <= end; i += 4 * lanes)
            for (int j = 0; j < 4; ++j) part[j] += f(load(x + i + j * lanes));
        for (; i + lanes <= end; i += lanes) part[0] += f(load(x + i));
        if (i < end) part[1] += f(load(x + i, end - i, vec{} + rest));
        all += sum((part[0] + part[1]) + (part[2] + part[3]));
    }
    return all;
}
static inline vec silu(vec x) { return x / (1.f + exponential(-x)); }
static void finish(const float* x, long n, float factor, float summand, float* y) {
    long i = 0;
    for (; i + lanes <= n; i += lanes) store(y + i, silu(load(x + i) * factor + summand));
    if (i < n) store(y + i, silu(load(x + i, n - i, vec{}) * factor + summand), n - i);
}

// y = silu(norm(x) * weight + bias), with (1 + scale) and shift before the SiLU unless they are null;
// images are [N, C, pixels], `scale` and `shift` [C] for the i-th image at i times `stride`.
extern "C" void norm_silu(const float* x, const float* weight, const float* bias,
                          const float* scale, const float* shift, long stride, float* y,
                          long images, long channels, long pixels, long groups, float eps,
                          int threads) {
    const long some = channels / groups, all = some * pixels;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < images * groups; ++i) {
        const float* from = x + i * all;
        const float mean = total(from, all, 0.f, [](vec v) { return v; }) / all;
        const double squares =
            total(from, all, mean, [mean](vec v) { return (v - mean) * (v - mean); });
        const double inverse = 1 / std::sqrt(squares / all + eps);
        for (long c = 0; c < some; ++c) {
            const long channel = i % groups * some + c, at = i / groups * stride + channel;
            double factor = weight[channel] * inverse, summand = bias[channel] - mean * factor;
            if (scale) {
                factor *= 1 + scale[at];
                summand = summand * (1 + scale[at]) + shift[at];
            }
            finish(from + c * pixels, pixels, factor, summand, y + (i * some + c) * pixels);
        }
    }
}
