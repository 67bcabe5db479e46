// Attention of a panel of queries, one in each lane, to blocks of keys, with the maximum and the sum
// of the softmax going along: Rabe & Staats 2021 (arXiv 2112.05682), Dao 2022 (arXiv 2205.14135).
// The result does not depend on the number of threads, nor that of an image on its neighbours.
#include "vectors.h"

constexpr long panel = 2 * lanes;  // queries at a time
constexpr long block = 64;         // keys at a time
constexpr long most = 64;          // channels of a head
constexpr int keys_abreast = 4, channels_abreast = 8;  // whose sums stay in registers

// scores[key][query] of `count` keys, `row` apart; queries are [dim][panel].
static void products(const float* queries, const float* key, long row, long count, long dim,
                     float* scores) {
    for (long j = 0; j < count; j += keys_abreast) {
        const float* keys[keys_abreast];
        vec sums[keys_abreast][2] = {};
        for (int i = 0; i < keys_abreast; ++i) keys[i] = key + std::min(j + i, count - 1) * row;
        for (long c = 0; c < dim; ++c) {
            const vec q0 = load(queries + c * panel), q1 = load(queries + c * panel + lanes);
#pragma GCC unroll 4
            for (int i = 0; i < keys_abreast; ++i) {
                sums[i][0] += q0 * keys[i][c];
                sums[i][1] += q1 * keys[i][c];
            }
        }
        for (int i = 0; i < keys_abreast; ++i)
            for (int half = 0; half < 2; ++half)
                store(scores + (j + i) * panel + half * lanes, sums[i][half]);
    }
}
// sums[channel][query] += weights[key][query] * value[key][channel]
static void add_values(const float* weights, const float* value, long row, long count, long dim,
                       float* sums) {
    for (long c = 0; c < dim; c += channels_abreast) {
        vec part[channels_abreast][2];
        for (int i = 0; i < channels_abreast; ++i)
            for (int half = 0; half < 2; ++half)
                part[i][half] = load(sums + (c + i) * panel + half * lanes);
        for (long j = 0; j < count; ++j) {
            const vec w0 = load(weights + j * panel), w1 = load(weights + j * panel + lanes);
            const float* from = value + j * row + c;
#pragma GCC unroll 8
            for (int i = 0; i < channels_abreast; ++i) {
                part[i][0] += w0 * from[i];
                part[i][1] += w1 * from[i];
            }
        }
        for (int i = 0; i < channels_abreast; ++i)
            for (int half = 0; half < 2; ++half)
                store(sums + (c + i) * panel + half * lanes, part[i][half]);
    }
}
// From scores to weights relative to the maximum so far; what was summed before shrinks with it.
static void soften(float* scores, long count, long dim, float* sums, vec& top, vec& total) {
    vec now = top;
    for (long j = 0; j < count; ++j) {
        const vec s = load(scores + j * panel);
        now = s > now ? s : now;
    }
    const vec shrink = exponential(top - now);
    total *= shrink;
    for (long c = 0; c < dim; ++c) store(sums + c * panel, load(sums + c * panel) * shrink);
    for (long j = 0; j < count; ++j) {
        const vec weight = exponential(load(scores + j * panel) - now);
        store(scores + j * panel, weight);
        total += weight;
    }
    top = now;
}

// out = softmax(scale q k^T) v of every head; all are [batch, tokens, heads * dim], dim a multiple of
// 8 and at most 64.
extern "C" void attend(const float* q, const float* k, const float* v, float* out, long batch,
                       long heads, long tokens, long keys, long dim, float scale, int threads) {
    const long panels = (tokens + panel - 1) / panel, row = heads * dim;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < batch * heads * panels; ++i) {
        const long image = i / (heads * panels), head = i / panels % heads;
        const long first = i % panels * panel, some = std::min(panel, tokens - first);
        const long place = (image * tokens + first) * row + head * dim;
        const long source = image * keys * row + head * dim;
        alignas(64) float queries[most * panel] = {}, sums[most * panel] = {};
        alignas(64) float scores[block * panel];
        for (long t = 0; t < some; ++t)
            for (long c = 0; c < dim; ++c) queries[c * panel + t] = scale * q[place + t * row + c];
        vec top[2] = {vec{} - 1e30f, vec{} - 1e30f}, total[2] = {};
        for (long start = 0; start < keys; start += block) {
            const long count = std::min(block, keys - start), from = source + start * row;
            products(queries, k + from, row, count, dim, scores);
            for (int half = 0; half < 2; ++half)
                soften(scores + half * lanes, count, dim, sums + half * lanes, top[half],
                       total[half]);
            add_values(scores, v + from, row, count, dim, sums);
        }
        for (long c = 0; c < dim; ++c)
            for (int half = 0; half < 2; ++half) {
                float* sum = sums + c * panel + half * lanes;
                store(sum, load(sum) / total[half]);
            }
        for (long t = 0; t < some; ++t)
            for (long c = 0; c < dim; ++c) out[place + t * row + c] = sums[c * panel + t];
    }
}
