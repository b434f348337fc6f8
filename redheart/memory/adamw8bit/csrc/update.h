// What every instruction-set path of the 8-bit AdamW shares: its arguments, its constants, its interface.
#pragma once

#include <cstddef>
#include <cstdint>

namespace redheart {

constexpr int kBlock = 256;          // elements that share one absmax
constexpr int kRanges = 16;          // ranges of magnitude by which a code is searched
constexpr float kSmallest = 0x1p-29f;  // below it every scaled value has the code of zero

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

// A dynamic map and its inverse. Codes are counted by an index: from zero away, 0 to 128 (signed), or 1 to 256.
//
// Magnitudes lie in seven decades, each cut into twice as many equal steps as the one below, so inside a decade the
// index is a line; zero and 1.0 stand apart, as decades of one code. A range is a factor of four, x in [4^(e-16) * 2,
// 4^(e-15) * 2), so it meets at most one border between decades: the index is
//     cap(slope[i] x + offset[i]) with i = e, or e + 1 beyond the border,
// for low(e + 1), the decade at the lower end of the next range, is the one beyond that border. Range 0 would hold
// nothing but zeros and stands for "e + 1" of the last range instead: the code of 1.0.
struct Map {
    const float* values;     // 256 ascending floats
    bool is_signed;
    alignas(64) float slope[kRanges];
    alignas(64) float offset[kRanges];
    alignas(64) std::uint32_t carry[kRanges];  // added to the bits of x, steps over to the next range beyond border[e]
    alignas(64) float cap[kRanges];  // just below the next decade's first index
    alignas(64) std::uint8_t planes[4][256];  // the bytes of `values` by significance
};

inline int zero_code(const Map& map) { return map.is_signed ? 127 : 0; }

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

using UpdateBlocks = void (*)(const Step&, const Map& map1, const Map& map2, const Blocks&, std::ptrdiff_t count);
using Update32 = void (*)(const Step&, float* master, const void* grad, bool grad_is_bf16, float* m, float* v,
                          std::uint16_t* out_bf16, std::ptrdiff_t n);
using QuantiseBlocks = void (*)(const Map&, const float* x, std::uint8_t* codes, float* absmax, std::ptrdiff_t count);
using SumSquares = double (*)(const void* grad, bool grad_is_bf16, std::ptrdiff_t n);

struct Path {
    const char* name;
    UpdateBlocks update;
    Update32 update32;
    QuantiseBlocks quantise;
    SumSquares sum_squares;
};

}  // namespace redheart
