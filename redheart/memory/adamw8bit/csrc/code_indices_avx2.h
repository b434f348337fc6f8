// The search for codes with AVX2: tables of 16 in two registers each, where a compiler would gather from memory.
#pragma once

namespace redheart {
namespace avx2 {

#define AVX2 __attribute__((target("avx2,fma"))) static inline

AVX2 __m256 pick(const float* table, __m256i index) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

AVX2 void code_indices(const Map& map, const float* x, float inverse, std::int32_t* indices) {
    const __m256 all_but_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int i = 0; i < kBlock; i += 8) {
        const __m256 scaled = _mm256_and_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)), all_but_sign);
        const __m256 magnitude = _mm256_max_ps(scaled, _mm256_set1_ps(kSmallest));
        const __m256i bits = _mm256_castps_si256(magnitude);
        const __m256i carry = _mm256_castps_si256(
            pick(reinterpret_cast<const float*>(map.carry), _mm256_srli_epi32(bits, 24)));
        const __m256i at = _mm256_srli_epi32(_mm256_add_epi32(bits, carry), 24);
        const __m256 index = _mm256_fmadd_ps(magnitude, pick(map.slope, at), pick(map.offset, at));
        const __m256i whole = _mm256_cvttps_epi32(_mm256_min_ps(index, pick(map.cap, at)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + i), whole);
    }
}

#undef AVX2

}  // namespace avx2
}  // namespace redheart
