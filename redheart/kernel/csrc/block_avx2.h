// The update for AVX2: codes looked up one by one, found by decade and one line.
//
// Same operations in the same order as block_generic.h, hence the same bits. A block is done in four short loops, each
// with its constants in registers; what they hand on stays in the first-level cache. On Zen 4 this is bound by the
// instructions themselves, 27 cycles for 8 elements at 4 a cycle: 11 for the moments, 11 for their codes, 5 for the
// weights. Measured there, and worse: gathers (43 cycles); values computed from decade and fraction, which needs a
// correction of the last bit by table (36); all in one loop, where square roots and divisions hold up the rest (33).
#pragma once

#include <immintrin.h>

namespace redheart {
namespace avx2 {

#define AVX2 __attribute__((target("avx2,fma"), always_inline)) static inline
#define AVX2_ENTRY __attribute__((target("avx2,fma"))) static

AVX2 __m256i bits(__m256 x) { return _mm256_castps_si256(x); }
AVX2 __m256 floats(__m256i x) { return _mm256_castsi256_ps(x); }
AVX2 __m256i magnitude_bits(__m256 x) { return _mm256_and_si256(bits(x), _mm256_set1_epi32(0x7fffffff)); }

// The values of 8 codes. Bytes are taken out of one register two by two, which the barriers keep the compiler from
// turning into a shift and a mask each: a load for every byte would be one too many for the load units.
AVX2 __m256 look_up8(const float* values, const std::uint8_t* codes) {
    std::uint64_t rest;
    std::memcpy(&rest, codes, sizeof rest);
    __v4sf half[2];
    for (__v4sf& four : half) {
        asm("" : "+Q"(rest));
        four = __v4sf{values[rest & 255]};
        four[1] = values[rest >> 8 & 255];
        rest >>= 16;
        asm("" : "+Q"(rest));
        four[2] = values[rest & 255];
        four[3] = values[rest >> 8 & 255];
        rest >>= 16;
    }
    return _mm256_setr_m128(half[0], half[1]);
}

template <bool kBf16>
AVX2 void load_grad16(const void* grad, std::ptrdiff_t at, __m256 (&g)[2]) {
    if (kBf16) {
        const std::uint16_t* from = static_cast<const std::uint16_t*>(grad) + at;
        const __m256i words = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), 0xd8);
        g[0] = floats(_mm256_unpacklo_epi16(_mm256_setzero_si256(), words));
        g[1] = floats(_mm256_unpackhi_epi16(_mm256_setzero_si256(), words));
    } else {
        for (int k = 0; k < 2; ++k) g[k] = _mm256_loadu_ps(static_cast<const float*>(grad) + at + 8 * k);
    }
}

// A block between its update and its quantisation.
struct Moments {
    alignas(32) float m[kBlock];
    alignas(32) float v[kBlock];
    alignas(32) float denominator[kBlock];
    std::uint32_t largest_m, largest_v;  // bits of the largest magnitudes
};

AVX2 std::uint32_t largest_of(__m256i x) {
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(four));
}

// New moments of a block.
template <bool kBf16>
AVX2 void update_moments(const Step step, const Map& map1, const Map& map2, const Blocks& at, Moments& to) {
    const __m256 scale1 = _mm256_set1_ps(*at.absmax1 * step.beta1), scale2 = _mm256_set1_ps(*at.absmax2 * step.beta2);
    __m256i largest_m = _mm256_setzero_si256(), largest_v = _mm256_setzero_si256();
    for (int i = 0; i < kBlock; i += 16) {
        __m256 g[2];
        load_grad16<kBf16>(at.grad, i, g);
        for (int k = 0; k < 2; ++k) {
            const int here = i + 8 * k;
            const __m256 old_m = _mm256_mul_ps(look_up8(map1.values, at.codes1 + here), scale1);
            const __m256 old_v = _mm256_mul_ps(look_up8(map2.values, at.codes2 + here), scale2);
            const __m256 m = _mm256_fmadd_ps(g[k], _mm256_set1_ps(step.grad_to_m), old_m);
            const __m256 h = _mm256_mul_ps(g[k], _mm256_set1_ps(step.grad_to_h));
            const __m256 v = _mm256_fmadd_ps(h, h, old_v);
            // The square root runs beside the next look-ups.
            const __m256 denominator = _mm256_add_ps(_mm256_sqrt_ps(v), _mm256_set1_ps(step.eps_hat));
            _mm256_store_ps(to.denominator + here, denominator);
            _mm256_store_ps(to.m + here, m);
            _mm256_store_ps(to.v + here, v);
            largest_m = _mm256_max_epu32(largest_m, magnitude_bits(m));
            largest_v = _mm256_max_epu32(largest_v, bits(v));
        }
    }
    to.largest_m = largest_of(largest_m), to.largest_v = largest_of(largest_v);
}

// Codes of 32 values. Four registers go through each step together: a step waits for the one before it.
template <bool kSigned>
AVX2 void quantise32(const Map& map, const float* from, __m256 inverse, std::uint8_t min_code, std::uint8_t* codes) {
    const __m256i shifts = _mm256_load_si256(reinterpret_cast<const __m256i*>(map.shift_of_range));
    const __m256 borders = _mm256_load_ps(map.border_by_shift), steepness = _mm256_load_ps(map.steepness_by_shift);
    __m256 scaled[4], y[4];
    __m256i x[4], shift[4], index[4];
#define EACH for (int k = 0; k < 4; ++k)
    // The sign is turned around so that all signed indices fit into a byte, code = 127 - byte; there is no -1.0, its
    // index saturates in the packing.
    EACH scaled[k] = _mm256_mul_ps(_mm256_load_ps(from + 8 * k), kSigned ? -inverse : inverse);
    // Bits of positive floats order like floats, and integer units are more.
    EACH x[k] = _mm256_max_epi32(kSigned ? magnitude_bits(scaled[k]) : bits(scaled[k]),
                                 bits(_mm256_set1_ps(kSmallest)));
    // The decade at the lower end of the range of x, and the next one beyond the border.
    EACH shift[k] = _mm256_shuffle_epi8(shifts, _mm256_srli_epi32(x[k], 24));
    EACH y[k] = _mm256_permutevar8x32_ps(borders, shift[k]);
    EACH shift[k] = _mm256_add_epi32(shift[k], _mm256_cmpgt_epi32(x[k], bits(y[k])));
    EACH y[k] = _mm256_permutevar8x32_ps(steepness, shift[k]);
    EACH y[k] = _mm256_fmadd_ps(floats(x[k]), y[k], _mm256_set1_ps(8.0f / 9.0f));
    EACH index[k] = _mm256_min_epi32(bits(y[k]), bits(_mm256_set1_ps(kBelowTwo)));
    EACH index[k] = _mm256_srlv_epi32(_mm256_sub_epi32(index[k], _mm256_set1_epi32(kHalfBits)), shift[k]);
    if (kSigned) EACH index[k] = _mm256_sign_epi32(index[k], bits(scaled[k]));
#undef EACH
    __m256i low = _mm256_packs_epi32(index[0], index[1]), high = _mm256_packs_epi32(index[2], index[3]), packed;
    if (kSigned) {
        packed = _mm256_sub_epi8(_mm256_set1_epi8(127), _mm256_packs_epi16(low, high));
    } else {
        const __m256i one = _mm256_set1_epi16(1);
        packed = _mm256_packus_epi16(_mm256_sub_epi16(low, one), _mm256_sub_epi16(high, one));
        packed = _mm256_max_epu8(packed, _mm256_set1_epi8(static_cast<char>(min_code)));
    }
    packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), packed);
}

template <bool kSigned>
AVX2 void quantise_block(const Map& map, const float* from, std::uint32_t max_bits, std::uint8_t min_code,
                         std::uint8_t* codes, float* absmax) {
    *absmax = absmax_of(max_bits);
    if (__builtin_expect(!(*absmax > 0.0f), 0)) {
        std::memset(codes, zero_code(map) > min_code ? zero_code(map) : min_code, kBlock);
        return;
    }
    const __m256 inverse = _mm256_set1_ps(1.0f / *absmax);
    for (int i = 0; i < kBlock; i += 32) quantise32<kSigned>(map, from + i, inverse, min_code, codes + i);
}

AVX2 void update_weights(const Step step, const Blocks& at, const Moments& moments) {
    const __m256 keep = _mm256_set1_ps(step.keep), minus_step = _mm256_set1_ps(-step.step_size);
    // The copy is not read again by this step: writing past the cache spares reading its lines first.
    const bool streaming = reinterpret_cast<std::uintptr_t>(at.out_bf16) % 32 == 0;
    // Half is added before the lower half is cut off. What that gets wrong is rare, so it is looked for once a block: a
    // tie, which leaves zeros below, and a NaN.
    __m256i lowest = _mm256_set1_epi32(-1), is_nan = _mm256_setzero_si256();
    for (int i = 0; i < kBlock; i += 16) {
        __m256 p[2];
        __m256i rounded[2];
        for (int k = 0; k < 2; ++k) {
            const int here = i + 8 * k;
            const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(at.master + here), keep);
            const __m256 ratio = _mm256_div_ps(_mm256_load_ps(moments.m + here),
                                               _mm256_load_ps(moments.denominator + here));
            p[k] = _mm256_fmadd_ps(minus_step, ratio, kept);
            _mm256_storeu_ps(at.master + here, p[k]);
            rounded[k] = _mm256_add_epi32(bits(p[k]), _mm256_set1_epi32(0x8000));
            lowest = _mm256_min_epu16(lowest, rounded[k]);
            rounded[k] = _mm256_srli_epi32(rounded[k], 16);
        }
        if (!at.out_bf16) continue;
        is_nan = _mm256_or_si256(is_nan, bits(_mm256_cmp_ps(p[0], p[1], _CMP_UNORD_Q)));
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded[0], rounded[1]), 0xd8);
        __m256i* to = reinterpret_cast<__m256i*>(at.out_bf16 + i);
        if (streaming) _mm256_stream_si256(to, both);
        else _mm256_storeu_si256(to, both);
    }
    if (!at.out_bf16) return;
    const __m256i is_tie = _mm256_slli_epi32(_mm256_cmpeq_epi16(lowest, _mm256_setzero_si256()), 16);
    if (__builtin_expect(!_mm256_testz_si256(_mm256_or_si256(is_nan, is_tie), _mm256_set1_epi32(-1)), 0))
        avx2_generic::copy_bf16(at.master, at.out_bf16, kBlock);
}

template <bool kBf16>
AVX2_ENTRY void update_blocks_of(const Step& step, const Map& map1, const Map& map2, Blocks at, std::ptrdiff_t count) {
    Moments moments;
    for (; count > 0; --count) {
        update_moments<kBf16>(step, map1, map2, at, moments);
        quantise_block<true>(map1, moments.m, moments.largest_m, 0, at.codes1, at.absmax1);
        quantise_block<false>(map2, moments.v, moments.largest_v, static_cast<std::uint8_t>(step.min_code2), at.codes2,
                              at.absmax2);
        update_weights(step, at, moments);
        at.master += kBlock, at.codes1 += kBlock, at.codes2 += kBlock, ++at.absmax1, ++at.absmax2;
        at.grad = static_cast<const char*>(at.grad) + kBlock * (kBf16 ? sizeof(std::uint16_t) : sizeof(float));
        if (at.out_bf16) at.out_bf16 += kBlock;
    }
    _mm_sfence();
}

AVX2_ENTRY void update_blocks(const Step& step, const Map& map1, const Map& map2, const Blocks& at,
                              std::ptrdiff_t count) {
    if (at.grad_is_bf16) update_blocks_of<true>(step, map1, map2, at, count);
    else update_blocks_of<false>(step, map1, map2, at, count);
}

#undef AVX2
#undef AVX2_ENTRY

}  // namespace avx2
}  // namespace redheart
