// The GELU in float32 with its slope, in one pass over memory: torch computes the error function in both passes.

// A comparison may be a choice of lanes: nobody asks which of them would have trapped.
#pragma GCC optimize("no-trapping-math")

#include "pool.h"
#include "widest.h"

#include <cstdint>

namespace redheart {
namespace {

constexpr std::ptrdiff_t kElements = 1 << 14;  // of a task

// e^v for v in [-87, 0]; source: Cephes, expf.
INLINE inline float exp_of(float v) {
    const float rounding = 12582912.0f;  // 1.5 * 2^23: added, it leaves no place behind the point
    const float n = (v * 1.44269504f + rounding) - rounding;
    const float r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __builtin_bit_cast(float, (static_cast<std::int32_t>(n) + 127) << 23);
}

// The normal distribution's tail as a polynomial times its density; source: Abramowitz & Stegun, 7.1.26.
INLINE inline void gelu(std::ptrdiff_t n, const float* __restrict x, float* __restrict out, float* __restrict slope) {
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        const float size = __builtin_fabsf(x[i]), square = 0.5f * size * size;
        const float bell = exp_of(-(square < 87.0f ? square : 87.0f));
        const float t = 1.0f / (1.0f + 0.2316419f * size);
        float p = 0.530702715f;
        p = p * t - 0.726576014f;
        p = p * t + 0.710706871f;
        p = p * t - 0.142248368f;
        p = p * t + 0.127414796f;
        const float tail = p * t * bell;
        const float share = 0.5f + __builtin_copysignf(0.5f - tail, x[i]);
        out[i] = x[i] * share;
        slope[i] = share + x[i] * 0.398942280f * bell;
    }
}

}  // namespace
}  // namespace redheart

using namespace redheart;

extern "C" {

void redheart_gelu(int num_threads, std::int64_t n, const float* x, float* out, float* slope) {
    run(n, kElements, num_threads, [&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t size) {
        in_widest([&]() INLINE { gelu(size, x + begin, out + begin, slope + begin); });
    });
}

}  // extern "C"
