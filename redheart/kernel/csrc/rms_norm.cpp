// The RMS norm of rows in float32, and its gradients: each one pass over memory, where torch takes one an operator.
//
// Sums are taken in an order that no instruction set and no number of threads changes.

#include "pool.h"
#include "widest.h"

#include <cmath>
#include <cstdint>
#include <vector>

namespace redheart {
namespace {

constexpr std::ptrdiff_t kRows = 128;  // of a task
constexpr std::ptrdiff_t kLanes = 16;  // partial sums of a row, as many as the widest registers hold

template <class Term>
INLINE inline float sum(std::ptrdiff_t width, const Term& term) {
    float lanes[kLanes] = {};
    std::ptrdiff_t i = 0;
    for (; i + kLanes <= width; i += kLanes)
        for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
    for (; i < width; ++i) lanes[i % kLanes] += term(i);
    float total = 0.0f;
    for (const float lane : lanes) total += lane;
    return total;
}

INLINE inline void norm(std::ptrdiff_t rows, std::ptrdiff_t width, float eps, const float* x, const float* weight,
                        float* inverse, float* out) {
    for (std::ptrdiff_t row = 0; row < rows; ++row, x += width, out += width) {
        const float squares = sum(width, [&](std::ptrdiff_t i) { return x[i] * x[i]; });
        const float scale = inverse[row] = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
        for (std::ptrdiff_t i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
    }
}

INLINE inline void gradients(std::ptrdiff_t rows, std::ptrdiff_t width, const float* grad, const float* x,
                             const float* weight, const float* inverse, float* grad_x, float* grad_weight) {
    for (std::ptrdiff_t row = 0; row < rows; ++row, grad += width, x += width, grad_x += width) {
        const float scale = inverse[row];
        const float along = sum(width, [&](std::ptrdiff_t i) { return grad[i] * weight[i] * x[i]; });
        const float back = along * scale * scale / static_cast<float>(width);
        for (std::ptrdiff_t i = 0; i < width; ++i) {
            grad_weight[i] += grad[i] * (x[i] * scale);
            grad_x[i] = (grad[i] * weight[i] - x[i] * back) * scale;
        }
    }
}

}  // namespace
}  // namespace redheart

using namespace redheart;

extern "C" {

// out = x * inverse * weight, with inverse = 1 / sqrt(mean(x^2) + eps) of every row.
void redheart_rms_norm(int num_threads, std::int64_t rows, std::int64_t width, float eps, const float* x,
                       const float* weight, float* inverse, float* out) {
    run(rows, kRows, num_threads, [&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t size) {
        const std::ptrdiff_t at = begin * width;
        in_widest([&]() INLINE { norm(size, width, eps, x + at, weight, inverse + begin, out + at); });
    });
}

// Gradients of x and of the weight, from that of the norm's result.
void redheart_rms_norm_gradients(int num_threads, std::int64_t rows, std::int64_t width, const float* grad,
                                 const float* x, const float* weight, const float* inverse, float* grad_x,
                                 float* grad_weight) {
    // Of every task, added up in their order.
    std::vector<float> parts(static_cast<std::size_t>((rows + kRows - 1) / kRows * width));
    run(rows, kRows, num_threads, [&](std::ptrdiff_t task, std::ptrdiff_t begin, std::ptrdiff_t size) {
        const std::ptrdiff_t at = begin * width;
        float* part = parts.data() + task * width;
        in_widest([&]() INLINE {
            gradients(size, width, grad + at, x + at, weight, inverse + begin, grad_x + at, part);
        });
    });
    for (std::ptrdiff_t i = 0; i < width; ++i) grad_weight[i] = 0.0f;
    for (std::size_t at = 0; at < parts.size(); at += width)
        for (std::ptrdiff_t i = 0; i < width; ++i) grad_weight[i] += parts[at + i];
}

}  // extern "C"
