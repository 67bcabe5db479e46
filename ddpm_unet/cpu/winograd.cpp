// Convolutions of 3 x 3, stride 1 and padding 1 by minimal filtering: F(4x4, 3x3) of Lavin & Gray,
// "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv 1509.09308), section 4.
//
// A tile of 4 x 4 outputs is A^T [(G g G^T) . (B^T d B)] A, with the 6 x 6 inputs d under it and
// the filter g: 36 products instead of 144. Over all channels and tiles they are 36 products of
// matrices. The paper evaluates polynomials at 0, +-1, +-2 and infinity; at 0, +-sqrt(1/2),
// +-sqrt(2) and infinity, as here, the rounding error is half as large. The filters are transformed
// at every call, which costs less than to read 36 stored numbers for 9.
//
// Images are [N, C, H, W], or [N, H, W, C] if channels_last; filters [outputs, inputs, 3, 3];
// the number of inputs a multiple of 16, that of outputs too where there are gradients. The result
// does not depend on the number of threads, nor that of an image on its neighbours in the batch.
#include <algorithm>
#include <cstdlib>

#include "winograd_transforms.h"

constexpr long panel = 2 * lanes;                    // columns of a product of matrices
constexpr long most_rows = lanes == 16 ? 12 : 6;     // rows of it, so that it stays in registers
constexpr long tiles_at_once = 192;                  // bounds the memory
constexpr long tiles_in_cache = 24;                  // whose products the second-level cache holds
constexpr long line = 16;  // floats between matrices, or rows, lest they share a set of the cache

struct Scratch {  // memory that a thread keeps
    float* data = nullptr;
    long size = 0;
    float* of(long n) {
        if (n > size) {
            free(data);
            size = (n + line - 1) / line * line;
            data = (float*)aligned_alloc(64, size * sizeof(float));
        }
        return data;
    }
    ~Scratch() { free(data); }
};
static thread_local Scratch input_tiles, output_tiles, filters, products, strip;

struct Images {
    float* data;
    long channels, height, width, channels_last;
    long down() const { return (height + 3) / 4; }  // tiles
    long across() const { return (width + 3) / 4; }
    float* at(long image, long channel, long y) const {
        return channels_last ? data + (image * height + y) * width * channels + channel
                             : data + ((image * channels + channel) * height + y) * width;
    }
};

// m[r][0 .. panel) = sum over i < n of a[r * ra + i * ia] * b[i][0 .. panel), or the first half of
// it if `vectors` is 1
template <int rows, int vectors>
static void product(const float* a, long ra, long ia, const float* b, long n, float* m) {
    vec sum[rows][vectors] = {};
    const float* next = a + most_rows * ra;
    for (long i = 0; i < n; ++i, a += ia, b += panel, next += line) {
        __builtin_prefetch(next);
        vec row[vectors];
        for (int j = 0; j < vectors; ++j) row[j] = load(b + j * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
            for (int j = 0; j < vectors; ++j) sum[r][j] += a[r * ra] * row[j];
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < vectors; ++j) store(m + r * panel + j * lanes, sum[r][j]);
}
template <int rows = most_rows, class... Rest>
static void product_of(long given, bool half, Rest... rest) {
    if (given == rows)
        half ? product<rows, 1>(rest...) : product<rows, 2>(rest...);
    else if constexpr (rows > 1)
        product_of<rows - 1>(given, half, rest...);
}
static void multiply(long rows, bool half, const float* a, long ra, long ia, const float* b,
                     long n, float* m) {
    for (long r = 0; r < rows; r += most_rows)
        product_of(std::min(most_rows, rows - r), half, a + r * ra, ra, ia, b, n, m + r * panel);
}

// Transforms the tiles of a row, in `lanes` channels: rows `stride` apart of 36 matrices.
template <class T>
static void read_tiles(const Images& x, long row, long channel, float* v, long stride,
                       long matrix) {
    constexpr long margin = (T::n - 4) / 2;
    const long w = x.width, h = x.height, image = row / x.down();
    const long top = row % x.down() * 4 - margin, first = std::max(top, 0l);
    const long rows = std::min(top + T::n, h) - first, step = x.channels_last ? x.channels : lanes;
    const float* pixels = x.at(image, channel, first);
    if (!x.channels_last) {
        float* s = strip.of(T::n * w * lanes);
        transpose(pixels, h * w, s, lanes, lanes, rows * w);
        pixels = s;
    }
    static const float zeros[lanes] = {};
    for (long left = -margin; left + margin < w; left += 4, v += stride) {
        vec d[T::n * T::n], t[36];
#pragma GCC unroll 36
        for (int i = 0; i < T::n * T::n; ++i) {
            const long y = top - first + i / T::n, x = left + i % T::n;
            const bool inside = y >= 0 && y < rows && x >= 0 && x < w;
            d[i] = load(inside ? pixels + (y * w + x) * step : zeros);
        }
        both_ways<T>(d, t);
#pragma GCC unroll 36
        for (int p = 0; p < 36; ++p) store(v + p * matrix, t[p]);
    }
}
// Transforms rows of tiles, to matrices in panels of `width` columns: [36][panels][tiles][width].
template <class T>
static void read_rows(const Images& x, long start, long rows, float* v, long width,
                      long matrix) {
#pragma omp for collapse(2) schedule(dynamic)
    for (long r = 0; r < rows; ++r)
        for (long c = 0; c < x.channels; c += lanes) {
            const long tile = (c / width * rows + r) * x.across();
            read_tiles<T>(x, start + r, c, v + tile * width + c % width, width, matrix);
        }
}

// Transforms products [36][count][panel] to the tiles of a row, in `lanes` channels.
static void write_tiles(const Images& y, long row, long channel, const float* m, long count,
                        const float* bias) {
    const long w = y.width, h = y.height, image = row / y.down(), top = row % y.down() * 4;
    const long rows = std::min(4l, h - top), step = y.channels_last ? y.channels : lanes;
    const long some = std::min(lanes, y.channels - channel);
    const vec b = bias ? load(bias + channel, some, vec{}) : vec{};
    float* to = y.at(image, channel, top);
    float* pixels = y.channels_last ? to : strip.of(4 * w * lanes);
    for (long left = 0; left < w; left += 4, m += panel) {
        vec d[36], t[16];
#pragma GCC unroll 36
        for (int p = 0; p < 36; ++p) d[p] = load(m + p * count * panel);
        both_ways<Outputs>(d, t);
        for (long i = 0; i < rows; ++i)
            for (long j = 0; j < std::min(4l, w - left); ++j)
                store(pixels + (i * w + left + j) * step, t[4 * i + j] + b,
                      y.channels_last ? some : lanes);
    }
    if (!y.channels_last) transpose(pixels, lanes, to, h * w, rows * w, some);
}

// Transforms the filters of `panel` outputs to 36 matrices [inputs][panel]. For the gradient of
// the input they are read as [inputs, outputs, 3, 3], turned by 180 degrees.
static void read_filters(const float* w, long inputs, long outputs, long output, bool turned,
                         float* u, long matrix) {
    float* g = strip.of(9 * inputs * lanes);
    for (long half = 0; half < panel && output + half < outputs; half += lanes) {
        const float* from = w + (output + half) * 9 * (turned ? 1 : inputs);
        if (turned)
            for (long c = 0; c < inputs; ++c)
                for (long k = 0; k < lanes; ++k)
                    for (long i = 0; i < 9; ++i)
                        g[(9 * c + i) * lanes + k] = from[(c * outputs + k) * 9 + 8 - i];
        else
            transpose(from, 9 * inputs, g, lanes, std::min(lanes, outputs - output - half),
                      9 * inputs);
        for (long c = 0; c < inputs; ++c) {
            vec d[9], t[36];
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) d[i] = load(g + (9 * c + i) * lanes);
            both_ways<Filters>(d, t);
#pragma GCC unroll 36
            for (int p = 0; p < 36; ++p) store(u + p * matrix + c * panel + half, t[p]);
        }
    }
}
// Adds gradients of the transformed filters, [36][inputs][panel], to those of the filters.
static void add_filters(const float* u, long inputs, long outputs, long output, float* w) {
    float* g = strip.of(9 * inputs * lanes);
    for (long half = 0; half < panel && output + half < outputs; half += lanes) {
        float* to = w + (output + half) * 9 * inputs;
        transpose(to, 9 * inputs, g, lanes, lanes, 9 * inputs);
        for (long c = 0; c < inputs; ++c) {
            vec d[36], t[9];
#pragma GCC unroll 36
            for (int p = 0; p < 36; ++p) d[p] = load(u + (p * inputs + c) * panel + half);
            both_ways<FilterGradients>(d, t);
            float* sum = g + 9 * c * lanes;
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) store(sum + i * lanes, load(sum + i * lanes) + t[i]);
        }
        transpose(g, lanes, to, 9 * inputs, 9 * inputs, lanes);
    }
}

extern "C" {

// y = x * w + bias, where `bias` may be null. `turned`: from the gradient of the output to that of
// the input.
void winograd_convolve(float* x, const float* w, const float* bias, float* y, long n, long inputs,
                       long outputs, long height, long width, int channels_last, int turned,
                       int threads) {
    const Images in{x, inputs, height, width, channels_last};
    const Images out{y, outputs, height, width, channels_last};
    const long across = in.across(), all = n * in.down(), stride = inputs + line;
    const long most = std::clamp(tiles_at_once / across, 1l, all);
    const long cached = std::clamp(tiles_in_cache / across, 1l, most);
    float* v = input_tiles.of(36 * (most * across * stride + line));
#pragma omp parallel num_threads(threads)
    for (long start = 0; start < all; start += most) {
        const long rows = std::min(most, all - start), v_matrix = rows * across * stride + line;
        const long u_matrix = inputs * panel + line;
        read_rows<Inputs>(in, start, rows, v, stride, v_matrix);
#pragma omp for schedule(dynamic)
        for (long k = 0; k < outputs; k += panel) {
            float* u = filters.of(36 * u_matrix);
            float* m = products.of(36 * cached * across * panel);
            read_filters(w, inputs, outputs, k, turned, u, u_matrix);
            for (long r = 0; r < rows; r += cached) {
                const long some = std::min(cached, rows - r), count = some * across;
                for (long p = 0; p < 36; ++p)
                    multiply(count, outputs - k <= lanes, v + p * v_matrix + r * across * stride,
                             stride, 1, u + p * u_matrix, inputs, m + p * count * panel);
                for (long i = 0; i < some; ++i)
                    for (long half = 0; half < panel && k + half < outputs; half += lanes)
                        write_tiles(out, start + r + i, k + half, m + i * across * panel + half,
                                    count, bias);
            }
        }
    }
}

// Adds the gradient of w to dw, given that of y.
void winograd_filter_gradient(float* x, float* dy, float* dw, long n, long inputs, long outputs,
                              long height, long width, int channels_last, int threads) {
    const Images in{x, inputs, height, width, channels_last};
    const Images out{dy, outputs, height, width, channels_last};
    const long across = in.across(), all = n * in.down(), stride = inputs + line;
    const long most = std::clamp(tiles_at_once / across, 1l, all);
    const long padded = (outputs + panel - 1) / panel * panel;
    float* v = input_tiles.of(36 * (most * across * stride + line));
    float* z = output_tiles.of(36 * (most * across * padded + line));
#pragma omp parallel num_threads(threads)
    for (long start = 0; start < all; start += most) {
        const long rows = std::min(most, all - start), tiles = rows * across;
        const long v_matrix = tiles * stride + line, z_matrix = tiles * padded + line;
        read_rows<Inputs>(in, start, rows, v, stride, v_matrix);
        read_rows<OutputGradients>(out, start, rows, z, panel, z_matrix);
#pragma omp for schedule(dynamic)
        for (long k = 0; k < outputs; k += panel) {
            float* u = filters.of(36 * inputs * panel);
            for (long p = 0; p < 36; ++p)
                multiply(inputs, outputs - k <= lanes, v + p * v_matrix, 1, stride,
                         z + p * z_matrix + k * tiles, tiles, u + p * inputs * panel);
            add_filters(u, inputs, outputs, k, dw);
        }
    }
}
}
