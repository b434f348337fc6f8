// Loops that the compiler makes vectors of, in the widest registers that are used here and that the processor has.
//
// Without contraction, and where no sum's order follows the width, the bits are the same in all of them.
#pragma once

#define INLINE __attribute__((always_inline))

namespace redheart {

#if defined(__x86_64__)
template <class Work>
__attribute__((target("avx2"))) void in_avx2(const Work& work) {
    work();
}
#endif

// Call `work`, an INLINE function, compiled for them.
template <class Work>
void in_widest(const Work& work) {
#if defined(__x86_64__)
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2) return in_avx2(work);
#endif
    work();
}

}  // namespace redheart
