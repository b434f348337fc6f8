// The update in plain C++, included once per instruction set with PATH (a namespace) and TARGET (an attribute) set.
// Every loop but the look-up of codes is one that compilers vectorise, for NEON too.
//
// Every operation is an IEEE one in a fixed order with explicit fma (the build forbids contraction), so that all
// paths, hand-written ones included, give the same bits.

namespace redheart {
namespace PATH {

TARGET static inline float from_bf16(std::uint16_t x) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(x) << 16);
}

// Round to nearest even; every NaN becomes the quiet one.
TARGET static inline std::uint16_t to_bf16(float x) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

TARGET static inline const float* as_floats(const void* grad, bool is_bf16, std::ptrdiff_t begin, int n, float* room) {
    if (!is_bf16) return static_cast<const float*>(grad) + begin;
    const std::uint16_t* source = static_cast<const std::uint16_t*>(grad) + begin;
    for (int i = 0; i < n; ++i) room[i] = from_bf16(source[i]);
    return room;
}

TARGET static void copy_bf16(const float* from, std::uint16_t* to, std::ptrdiff_t n) {
    for (std::ptrdiff_t i = 0; i < n; ++i) to[i] = to_bf16(from[i]);
}

// Index of the code nearest to each magnitude, which is at most 1: its decade by comparison with all borders, then one
// line. Tables would be lookups, which no compiler vectorises.
TARGET static void code_indices(const Map& map, const float* x, float inverse, std::int32_t* indices) {
    float magnitude[kBlock], steepness[kBlock];
    std::int32_t shift[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        const float scaled = __builtin_fabsf(x[i] * inverse);
        magnitude[i] = scaled > kSmallest ? scaled : kSmallest;
    }
    for (int i = 0; i < kBlock; ++i) {
        float found = map.steepness[0];
        std::int32_t bits = map.shift[0];
        for (int decade = 1; decade < kDecades; ++decade) {
            const bool beyond = magnitude[i] > map.border[decade - 1];
            found = beyond ? map.steepness[decade] : found;
            bits -= beyond;
        }
        steepness[i] = found, shift[i] = bits;
    }
    for (int i = 0; i < kBlock; ++i) {
        const float y = __builtin_fmaf(magnitude[i], steepness[i], 8.0f / 9.0f);
        magnitude[i] = y < kBelowTwo ? y : kBelowTwo;
    }
    for (int i = 0; i < kBlock; ++i)
        indices[i] = (__builtin_bit_cast(std::int32_t, magnitude[i]) - kHalfBits) >> shift[i];
}

TARGET static void quantise_block(const Map& map, const float* x, std::uint32_t max_bits, std::uint8_t* codes,
                                  float* absmax) {
    *absmax = absmax_of(max_bits);
    if (!(*absmax > 0.0f)) {
        std::memset(codes, zero_code(map), kBlock);
        return;
    }
    const float inverse = 1.0f / *absmax;
    std::int32_t indices[kBlock];
    code_indices(map, x, inverse, indices);
    if (map.is_signed)  // there is no -1.0
        for (int i = 0; i < kBlock; ++i) {
            const std::int32_t negative = indices[i] < 127 ? -indices[i] : -127;
            codes[i] = static_cast<std::uint8_t>(127 + (x[i] < 0.0f ? negative : indices[i]));
        }
    else
        for (int i = 0; i < kBlock; ++i) codes[i] = static_cast<std::uint8_t>(indices[i] ? indices[i] - 1 : 0);
}

TARGET static inline void update_one(const Step& step, float g, float old_m, float old_v, float& m, float& v, float& p) {
    m = __builtin_fmaf(g, step.grad_to_m, old_m);
    const float h = g * step.grad_to_h;
    v = __builtin_fmaf(h, h, old_v);
    p = __builtin_fmaf(-step.step_size, m / (__builtin_sqrtf(v) + step.eps_hat), p * step.keep);
}

TARGET static void update_blocks(const Step& step, const Map& map1, const Map& map2, const Blocks& at,
                                 std::ptrdiff_t count) {
    float m[kBlock], v[kBlock], old_m[kBlock], old_v[kBlock], room[kBlock];
    for (std::ptrdiff_t block = 0; block < count; ++block) {
        const std::ptrdiff_t begin = block * kBlock;
        const float* g = as_floats(at.grad, at.grad_is_bf16, begin, kBlock, room);
        float* p = at.master + begin;
        std::uint8_t* codes1 = at.codes1 + begin;
        std::uint8_t* codes2 = at.codes2 + begin;
        const float scale1 = at.absmax1[block] * step.beta1;
        const float scale2 = at.absmax2[block] * step.beta2;
        for (int i = 0; i < kBlock; ++i) old_m[i] = map1.values[codes1[i]];
        for (int i = 0; i < kBlock; ++i) old_v[i] = map2.values[codes2[i]];
        for (int i = 0; i < kBlock; ++i) update_one(step, g[i], old_m[i] * scale1, old_v[i] * scale2, m[i], v[i], p[i]);
        std::uint32_t max1 = 0, max2 = 0;
        for (int i = 0; i < kBlock; ++i) {
            const std::uint32_t bits1 = __builtin_bit_cast(std::uint32_t, m[i]) & 0x7fffffffu;
            const std::uint32_t bits2 = __builtin_bit_cast(std::uint32_t, v[i]) & 0x7fffffffu;
            max1 = bits1 > max1 ? bits1 : max1;
            max2 = bits2 > max2 ? bits2 : max2;
        }
        quantise_block(map1, m, max1, codes1, at.absmax1 + block);
        quantise_block(map2, v, max2, codes2, at.absmax2 + block);
        for (int i = 0; i < kBlock; ++i)
            codes2[i] = codes2[i] < step.min_code2 ? static_cast<std::uint8_t>(step.min_code2) : codes2[i];
        if (at.out_bf16) copy_bf16(p, at.out_bf16 + begin, kBlock);
    }
}

TARGET static void update32(const Step& step, float* master, const void* grad, bool grad_is_bf16, float* m, float* v,
                            std::uint16_t* out_bf16, std::ptrdiff_t n) {
    float room[kBlock];
    for (std::ptrdiff_t begin = 0; begin < n; begin += kBlock) {
        const int size = static_cast<int>(n - begin < kBlock ? n - begin : kBlock);
        const float* g = as_floats(grad, grad_is_bf16, begin, size, room);
        for (int i = 0; i < size; ++i) {
            const std::ptrdiff_t k = begin + i;
            update_one(step, g[i], m[k] * step.beta1, v[k] * step.beta2, m[k], v[k], master[k]);
        }
        if (out_bf16) copy_bf16(master + begin, out_bf16 + begin, size);
    }
}

// The square of a float is exact in double; 32 running sums in a fixed order make the result the same everywhere.
TARGET static double sum_squares(const void* grad, bool grad_is_bf16, std::ptrdiff_t n) {
    constexpr int kSums = 32;
    double sums[kSums] = {};
    float room[kBlock];
    for (std::ptrdiff_t begin = 0; begin < n; begin += kBlock) {
        const int size = static_cast<int>(n - begin < kBlock ? n - begin : kBlock);
        const float* g = as_floats(grad, grad_is_bf16, begin, size, room);
        int i = 0;
        for (; i + kSums <= size; i += kSums)
            for (int k = 0; k < kSums; ++k) sums[k] += static_cast<double>(g[i + k]) * static_cast<double>(g[i + k]);
        for (int k = 0; i < size; ++i, ++k) sums[k] += static_cast<double>(g[i]) * static_cast<double>(g[i]);
    }
    for (int half = kSums / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
    return sums[0];
}

}  // namespace PATH
}  // namespace redheart
