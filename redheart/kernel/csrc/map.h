// A dynamic map and its inverse, in the forms in which the instruction sets look things up.
//
// Codes are counted by an index: from zero away, 0 to 128 (signed), or 1 to 256. Magnitudes lie in seven decades, each
// cut into twice as many equal steps as the one below, so inside a decade the index is a line; zero and 1.0 stand
// apart, as decades of one code. A decade ends at the midpoint between its last code and the next one's first.
#pragma once

#include <cmath>
#include <cstdint>

namespace redheart {

constexpr int kRanges = 16;            // ranges of magnitude by which a code is searched
constexpr int kDecades = 9;            // zero, 1e-7 to 1e-6, ..., 0.1 to 1.0, and 1.0 itself
constexpr float kSmallest = 0x1p-29f;  // below it every scaled value has the code of zero
constexpr float kBelowTwo = 0x1.fffffep0f;
constexpr std::int32_t kHalfBits = 0x3f000000;  // the bits of 0.5

// A range is a factor of four, x in [4^(e-16) * 2, 4^(e-15) * 2), so it meets at most one border between decades.
struct Map {
    const float* values;  // 256 ascending floats
    bool is_signed;

    // By decade. Divided by its number of codes, a power of two, so that no bit is lost, a decade's line is
    //     y = steepness x + 8/9, from 1 to just below 2,
    // for every decade begins at a ninth of its width: one constant serves them all. The index is then the leading bits
    // of min(y, kBelowTwo), (bits - kHalfBits) >> shift; 0 stands for zero in either map.
    float border[kDecades];  // where it ends, and belongs to it
    float steepness[kDecades];
    std::int32_t shift[kDecades];

    // AVX2: the same by `shift % 8`, for a register holds eight; zero and 1.0 share an entry.
    alignas(32) float border_by_shift[8];
    alignas(32) float steepness_by_shift[8];
    alignas(32) std::uint8_t shift_of_range[2 * kRanges];  // at a range's lower end, twice; 0 for range 0, never met

    // AVX-512, whose registers hold all 16 ranges: the index is
    //     cap(slope[i] x + offset[i]) with i = e, or e + 1 beyond the border,
    // for low(e + 1), the decade at the lower end of the next range, is the one beyond that border. Range 0 would hold
    // nothing but zeros and stands for "e + 1" of the last range instead: the code of 1.0.
    alignas(64) float slope[kRanges];
    alignas(64) float offset[kRanges];
    alignas(64) std::uint32_t carry[kRanges];  // added to the bits of x, steps over to the next range beyond border[e]
    alignas(64) float cap[kRanges];            // just below the next decade's first index
    alignas(64) std::uint8_t planes[4][256];   // the bytes of `values` by significance
};

inline int zero_code(const Map& map) { return map.is_signed ? 127 : 0; }

inline std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }

inline Map make_map(const float* values, bool is_signed) {
    Map map{};
    map.values = values;
    map.is_signed = is_signed;
    const int first = is_signed ? 1 : 2;  // index of the smallest code that is not zero, and how many its decade has
    const int code_of_index = is_signed ? 127 : -1;
    const int last = kDecades - 1;
    double border[kDecades], slope[kDecades] = {}, offset[kDecades], cap[kDecades];
    offset[0] = first - 0.5, cap[0] = first;
    for (int decade = 0; decade <= last; ++decade) {
        if (decade > 0) {
            const int steps = first << (decade - 1);
            const double begin = std::pow(10.0, decade - 8), width = 9.0 * begin / steps;
            slope[decade] = decade < last ? 1.0 / width : 0.0;
            offset[decade] = decade < last ? steps - begin / width : steps + 0.5;
            cap[decade] = 2 * steps;
        }
        const int next = first << decade;
        border[decade] = decade < last ? 0.5 * (static_cast<double>(values[code_of_index + next - 1]) +
                                                values[code_of_index + next])
                                       : HUGE_VAL;
        map.border[decade] = static_cast<float>(border[decade]);
        map.shift[decade] = (is_signed ? 24 : 23) - decade;
        // Zero and 1.0 are no lines: whatever takes 0 below 1 and 1.0 to the first half of an index serves.
        map.steepness[decade] = static_cast<float>(decade % last ? std::ldexp(slope[decade], map.shift[decade] - 23)
                                                                 : 1.0 / 9.0 + 0.5 / (first << 7));
    }
    for (int decade = 0; decade < last; ++decade) {
        map.border_by_shift[map.shift[decade] % 8] = map.border[decade];
        map.steepness_by_shift[map.shift[decade] % 8] = map.steepness[decade];
    }
    for (int range = 0; range < kRanges; ++range) {
        const double low = std::ldexp(1.0, 2 * range - 31), high = 4 * low;
        int decade = range ? 0 : last;
        while (border[decade] < low) ++decade;
        if (border[decade] < high) map.carry[range] = bits_of(static_cast<float>(high)) - bits_of(map.border[decade]) - 1;
        map.slope[range] = static_cast<float>(slope[decade]);
        map.offset[range] = static_cast<float>(offset[decade]);
        map.cap[range] = std::nextafter(static_cast<float>(cap[decade]), 0.0f);
        map.shift_of_range[range] = map.shift_of_range[kRanges + range] =
            static_cast<std::uint8_t>(range ? map.shift[decade] : 0);
    }
    for (int code = 0; code < 256; ++code)
        for (int byte = 0; byte < 4; ++byte)
            map.planes[byte][code] = static_cast<std::uint8_t>(bits_of(values[code]) >> (8 * byte));
    return map;
}

}  // namespace redheart
