// The update for AVX-512 with VBMI: 256 table entries looked up by byte planes, codes found by range and one line.
//
// Same operations in the same order as block_generic.h, hence the same bits. Shuffles inside 128-bit lanes transpose a
// group of 64 as a 4x4 matrix of dwords; `kTranspose` undoes it, before the unpacks and after the packs.
//
// Included with PATH (a namespace), TARGET (an attribute) and ROUNDS_BF16 set, the last to 1 where the processor has an
// instruction for it. On Zen 4 all of this is bound by the vector ports, 42 cycles for 16 elements at 1.1 operations a
// cycle; exact division and square root cost 3 of them more than estimates without refinement would.

namespace redheart {
namespace PATH {

#define AVX512 TARGET __attribute__((always_inline)) static inline
#define AVX512_ENTRY TARGET static

AVX512 __m512i transpose(__m512i x) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

AVX512 __m512i plane(const std::uint8_t* table, __m512i index, __mmask64 upper) {
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
    const __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), index, _mm512_load_si512(table + 192));
    return _mm512_mask_blend_epi8(upper, low, high);
}

// 64 codes to 64 floats in their order.
template <bool kSigned>
AVX512 void dequantise64(const Map& map, const std::uint8_t* codes, __m512 (&out)[4]) {
    const __m512i index = transpose(_mm512_loadu_si512(codes));
    const __mmask64 upper = _mm512_movepi8_mask(index);
    const __m512i byte3 = plane(map.planes[3], index, upper);
    const __m512i byte2 = plane(map.planes[2], index, upper);
    __m512i byte1, byte0;
    if (kSigned) {
        // Values of either sign share their low bytes, and those of 0 and 1.0 are zero: 128 entries do.
        const __m512i distance = _mm512_abs_epi8(_mm512_sub_epi8(index, _mm512_set1_epi8(127)));
        const std::uint8_t* table1 = map.planes[1] + 127;
        const std::uint8_t* table0 = map.planes[0] + 127;
        byte1 = _mm512_permutex2var_epi8(_mm512_loadu_si512(table1), distance, _mm512_loadu_si512(table1 + 64));
        byte0 = _mm512_permutex2var_epi8(_mm512_loadu_si512(table0), distance, _mm512_loadu_si512(table0 + 64));
    } else {
        byte1 = plane(map.planes[1], index, upper);
        byte0 = plane(map.planes[0], index, upper);
    }
    const __m512i low_a = _mm512_unpacklo_epi8(byte0, byte1), low_b = _mm512_unpackhi_epi8(byte0, byte1);
    const __m512i high_a = _mm512_unpacklo_epi8(byte2, byte3), high_b = _mm512_unpackhi_epi8(byte2, byte3);
    out[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low_a, high_a));
    out[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low_a, high_a));
    out[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low_b, high_b));
    out[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low_b, high_b));
}

AVX512 __m512i bits(__m512 x) { return _mm512_castps_si512(x); }
AVX512 __m512i magnitude_bits(__m512 x) { return _mm512_and_si512(bits(x), _mm512_set1_epi32(0x7fffffff)); }

AVX512 __m512i code_index(const Map& map, __m512 scaled) {
    const __m512 x = _mm512_range_ps(scaled, _mm512_set1_ps(kSmallest), 0x0b);  // max(|scaled|, kSmallest)
    // A lookup takes the low four bits of `range`. The carry moves what lies beyond the border into the next range.
    const __m512i range = _mm512_srli_epi32(bits(x), 24);
    const __m512i carry = _mm512_permutexvar_epi32(range, _mm512_load_si512(map.carry));
    const __m512i at = _mm512_srli_epi32(_mm512_add_epi32(bits(x), carry), 24);
    const __m512 slope = _mm512_permutexvar_ps(at, _mm512_load_ps(map.slope));
    const __m512 offset = _mm512_permutexvar_ps(at, _mm512_load_ps(map.offset));
    const __m512 cap = _mm512_permutexvar_ps(at, _mm512_load_ps(map.cap));
    return bits(_mm512_min_ps(_mm512_fmadd_ps(x, slope, offset), cap));
}

// How a block is scaled before its codes are found.
struct Scale {
    float absmax;
    __m512 inverse;
    __mmask16 finite;  // empty for a block of zeros or with a non-finite value: all its codes are that of zero
};

AVX512 Scale scale_of(__m512i largest) {
    const float absmax = absmax_of(_mm512_reduce_max_epu32(largest));
    if (__builtin_expect(!(absmax > 0.0f), 0)) return {absmax, _mm512_setzero_ps(), 0};
    return {absmax, _mm512_set1_ps(1.0f / absmax), 0xffff};
}

template <bool kSigned>
AVX512 void quantise64(const Map& map, const float* x, const Scale& scale, std::uint8_t min_code, std::uint8_t* codes) {
    __m512i index[4];
    for (int k = 0; k < 4; ++k) {
        const __m512 scaled = _mm512_maskz_mul_ps(scale.finite, _mm512_load_ps(x + 16 * k), scale.inverse);
        __m512i found = code_index(map, scaled);
        // The sign is turned around so that all signed indices fit into a byte, code = 127 - byte; there is no -1.0,
        // its index saturates in the packing.
        if (kSigned) found = _mm512_ternarylogic_epi32(found, bits(scaled), _mm512_set1_epi32(INT32_MIN), 0x72);
        index[k] = _mm512_cvttps_epi32(_mm512_castsi512_ps(found));
    }
    __m512i packed;
    if (kSigned) {
        packed = _mm512_packs_epi16(_mm512_packs_epi32(index[0], index[1]), _mm512_packs_epi32(index[2], index[3]));
        packed = _mm512_sub_epi8(_mm512_set1_epi8(127), packed);
    } else {
        const __m512i one = _mm512_set1_epi16(1);
        packed = _mm512_packus_epi16(_mm512_sub_epi16(_mm512_packus_epi32(index[0], index[1]), one),
                                     _mm512_sub_epi16(_mm512_packus_epi32(index[2], index[3]), one));
        packed = _mm512_max_epu8(packed, _mm512_set1_epi8(static_cast<char>(min_code)));
    }
    _mm512_storeu_si512(codes, transpose(packed));
}

template <bool kBf16>
AVX512 __m512 load_grad(const void* grad, std::ptrdiff_t at) {
    if (!kBf16) return _mm512_loadu_ps(static_cast<const float*>(grad) + at);
    const __m256i halves = _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(static_cast<const std::uint16_t*>(grad) + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

#if ROUNDS_BF16
// The instruction takes denormal numbers for zeros and keeps the payload of a NaN; portable code does neither.
AVX512 __mmask16 needs_care(__m512 x) { return _mm512_fpclass_ps_mask(x, 0x01 | 0x20 | 0x80); }

AVX512 __m512i round_bf16(__m512 first, __m512 second) {
    return __builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(second, first));
}
#else
AVX512 __mmask16 needs_care(__m512 x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }

AVX512 __m512i round_upper(__m512 x) {
    const __mmask16 odd = _mm512_test_epi32_mask(bits(x), _mm512_set1_epi32(0x10000));
    const __m512i down = _mm512_add_epi32(bits(x), _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(down, odd, bits(x), _mm512_set1_epi32(0x8000));
}

AVX512 __m512i round_bf16(__m512 first, __m512 second) {
    alignas(64) static constexpr std::uint16_t kUpperHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                                   23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                                   45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(round_upper(first), _mm512_load_si512(kUpperHalves), round_upper(second));
}
#endif

AVX512 void store_bf16(const __m512 (&x)[4], std::uint16_t* to, bool streaming) {
    const __mmask16 care = needs_care(x[0]) | needs_care(x[1]) | needs_care(x[2]) | needs_care(x[3]);
    if (__builtin_expect(care != 0, 0)) {
        alignas(64) float room[64];
        for (int k = 0; k < 4; ++k) _mm512_store_ps(room + 16 * k, x[k]);
        for (int i = 0; i < 64; ++i) to[i] = portable::to_bf16(room[i]);
        return;
    }
    for (int k = 0; k < 4; k += 2, to += 32) {
        const __m512i both = round_bf16(x[k], x[k + 1]);
        // The copy is not read again by this step: writing past the cache spares reading its lines first.
        if (streaming) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), both);
        else _mm512_storeu_si512(to, both);
    }
}

// New moments of a block, between its update and its quantisation.
struct Moments {
    alignas(64) float m[kBlock];
    alignas(64) float v[kBlock];
};

struct Largest {
    __m512i m, v;
};

// First half of 64 updates: new moments, and the denominators.
template <bool kBf16>
AVX512 void moments64(const Step& step, const Map& map1, const Map& map2, const Blocks& at, std::ptrdiff_t begin,
                      __m512 scale1, __m512 scale2, float* m, float* v, Largest& largest, __m512 (&root)[4]) {
    __m512 old_m[4], old_v[4];
    dequantise64<true>(map1, at.codes1 + begin, old_m);
    dequantise64<false>(map2, at.codes2 + begin, old_v);
    for (int k = 0; k < 4; ++k) {
        const __m512 g = load_grad<kBf16>(at.grad, begin + 16 * k);
        const __m512 new_m = _mm512_fmadd_ps(g, _mm512_set1_ps(step.grad_to_m), _mm512_mul_ps(old_m[k], scale1));
        const __m512 h = _mm512_mul_ps(g, _mm512_set1_ps(step.grad_to_h));
        const __m512 new_v = _mm512_fmadd_ps(h, h, _mm512_mul_ps(old_v[k], scale2));
        root[k] = _mm512_add_ps(_mm512_sqrt_ps(new_v), _mm512_set1_ps(step.eps_hat));
        _mm512_store_ps(m + 16 * k, new_m);
        _mm512_store_ps(v + 16 * k, new_v);
        largest.m = _mm512_max_epu32(largest.m, magnitude_bits(new_m));
        largest.v = _mm512_max_epu32(largest.v, bits(new_v));
    }
}

// Second half: the weights.
AVX512 void weights64(const Step& step, const Blocks& at, std::ptrdiff_t begin, const float* m,
                      const __m512 (&root)[4], bool streaming) {
    __m512 p[4];
    for (int k = 0; k < 4; ++k) {
        const std::ptrdiff_t here = begin + 16 * k;
        const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(at.master + here), _mm512_set1_ps(step.keep));
        const __m512 ratio = _mm512_div_ps(_mm512_load_ps(m + 16 * k), root[k]);
        p[k] = _mm512_fmadd_ps(_mm512_set1_ps(-step.step_size), ratio, kept);
        _mm512_storeu_ps(at.master + here, p[k]);
    }
    if (at.out_bf16) store_bf16(p, at.out_bf16 + begin, streaming);
}

// Two blocks are under way at once, group by group: while one is updated, the one before it is quantised. So nothing
// waits for a block's largest value, and square roots and divisions run beside the search for codes.
struct Flight {
    Moments moments[2];
    Scale before1, before2;
};

template <bool kBf16, bool kUpdate, bool kQuantise>
AVX512 void advance(Flight& flight, const Step& step, const Map& map1, const Map& map2, const Blocks at,
                    std::ptrdiff_t block, bool streaming) {
    const std::ptrdiff_t begin = block * kBlock;
    float* m = flight.moments[block % 2].m;
    float* v = flight.moments[block % 2].v;
    const float* m_before = flight.moments[(block + 1) % 2].m;
    const float* v_before = flight.moments[(block + 1) % 2].v;
    const std::uint8_t min_code2 = static_cast<std::uint8_t>(step.min_code2);
    Largest largest{_mm512_setzero_si512(), _mm512_setzero_si512()};
    const __m512 scale1 = _mm512_set1_ps(kUpdate ? at.absmax1[block] * step.beta1 : 0.0f);
    const __m512 scale2 = _mm512_set1_ps(kUpdate ? at.absmax2[block] * step.beta2 : 0.0f);
    for (int i = 0; i < kBlock; i += 64) {
        __m512 root[4];
        if (kUpdate)
            moments64<kBf16>(step, map1, map2, at, begin + i, scale1, scale2, m + i, v + i, largest, root);
        if (kQuantise) quantise64<true>(map1, m_before + i, flight.before1, 0, at.codes1 + begin - kBlock + i);
        if (kUpdate) weights64(step, at, begin + i, m + i, root, streaming);
        if (kQuantise)
            quantise64<false>(map2, v_before + i, flight.before2, min_code2, at.codes2 + begin - kBlock + i);
    }
    if (!kUpdate) return;
    flight.before1 = scale_of(largest.m);
    flight.before2 = scale_of(largest.v);
    at.absmax1[block] = flight.before1.absmax;
    at.absmax2[block] = flight.before2.absmax;
}

template <bool kBf16>
AVX512_ENTRY void update_blocks_of(const Step& step, const Map& map1, const Map& map2, const Blocks& at,
                                   std::ptrdiff_t count) {
    if (count == 0) return;
    const bool streaming = reinterpret_cast<std::uintptr_t>(at.out_bf16) % 64 == 0;
    Flight flight{};
    advance<kBf16, true, false>(flight, step, map1, map2, at, 0, streaming);
    for (std::ptrdiff_t block = 1; block < count; ++block)
        advance<kBf16, true, true>(flight, step, map1, map2, at, block, streaming);
    advance<kBf16, false, true>(flight, step, map1, map2, at, count, streaming);
    if (streaming && at.out_bf16) _mm_sfence();
}

AVX512_ENTRY void update_blocks(const Step& step, const Map& map1, const Map& map2, const Blocks& at,
                                std::ptrdiff_t count) {
    if (at.grad_is_bf16) update_blocks_of<true>(step, map1, map2, at, count);
    else update_blocks_of<false>(step, map1, map2, at, count);
}

#undef AVX512
#undef AVX512_ENTRY

}  // namespace PATH
}  // namespace redheart
