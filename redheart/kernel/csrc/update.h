// What every instruction-set path of the 8-bit AdamW shares: its arguments, its constants, its interface.
#pragma once

#include "map.h"

#include <cstddef>
#include <cstdint>

namespace redheart {

constexpr int kBlock = 256;          // elements that share one absmax

// Scalars of one optimizer step, folded so that an element costs as few roundings as possible.
struct Step {
    float grad_to_m;    // grad_scale * (1 - beta1)
    float grad_to_h;    // grad_scale * sqrt(1 - beta2); its square enters the second moment
    float beta1;
    float beta2;
    float keep;         // 1 - lr * weight_decay
    float step_size;    // lr * sqrt(1 - beta2^t) / (1 - beta1^t)
    float eps_hat;      // eps * sqrt(1 - beta2^t)
    std::uint32_t min_code2;  // smallest code a second moment may get: 0 rounds to nearest, 1 never rounds to zero
};

// One block of 256, or `count` blocks one after the other.
struct Blocks {
    float* master;
    const void* grad;        // float, or bfloat16 as std::uint16_t
    bool grad_is_bf16;
    std::uint8_t* codes1;
    std::uint8_t* codes2;
    float* absmax1;
    float* absmax2;
    std::uint16_t* out_bf16;  // null: no bf16 copy is wanted
};

// The absmax of a block whose largest magnitude has these bits: as integers, magnitudes order like floats and a NaN is
// the largest of all. What is below the smallest normal float is stored as zeros; a block with a non-finite value gets
// NaN, which shows at the next step. Either has the code of zero throughout.
inline float absmax_of(std::uint32_t max_bits) {
    if (max_bits < 0x00800000u) return 0.0f;
    return max_bits < 0x7f800000u ? __builtin_bit_cast(float, max_bits) : __builtin_nanf("");
}

using UpdateBlocks = void (*)(const Step&, const Map& map1, const Map& map2, const Blocks&, std::ptrdiff_t count);
using Update32 = void (*)(const Step&, float* master, const void* grad, bool grad_is_bf16, float* m, float* v,
                          std::uint16_t* out_bf16, std::ptrdiff_t n);
using SumSquares = double (*)(const void* grad, bool grad_is_bf16, std::ptrdiff_t n);

struct Path {
    const char* name;
    UpdateBlocks update;
    Update32 update32;
    SumSquares sum_squares;
};

}  // namespace redheart
