// 8-bit AdamW on the host: choice of the instruction set, threads, and the functions that Python calls.

#include "pool.h"
#include "update.h"

#include <algorithm>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PATH portable
#define TARGET
#include "block_generic.h"
#undef PATH
#undef TARGET

#if defined(__x86_64__)
// For everything that the compiler vectorises well by itself.
#define PATH avx2_generic
#define TARGET __attribute__((target("avx2,fma")))
#include "block_generic.h"
#undef PATH
#undef TARGET
#include "block_avx2.h"

#define PATH avx512_generic
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#include "block_generic.h"
#undef PATH
#undef TARGET
#define VBMI "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi"
#define PATH avx512
#define TARGET __attribute__((target(VBMI)))
#define ROUNDS_BF16 0
#include "block_avx512.h"
#undef PATH
#undef TARGET
#undef ROUNDS_BF16

#define PATH avx512_bf16
#define TARGET __attribute__((target(VBMI ",avx512bf16")))
#define ROUNDS_BF16 1
#include "block_avx512.h"
#endif

namespace redheart {
namespace {

const Path kPortable = {"portable", portable::update_blocks, portable::update32, portable::sum_squares};
#if defined(__x86_64__)
const Path kAvx2 = {"avx2", avx2::update_blocks, avx2_generic::update32, avx2_generic::sum_squares};
const Path kAvx512 = {"avx512", avx512::update_blocks, avx512_generic::update32, avx512_generic::sum_squares};
const Path kAvx512Bf16 = {"avx512_bf16", avx512_bf16::update_blocks, avx512_generic::update32,
                          avx512_generic::sum_squares};

bool has_vbmi() {
    return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi");
}
#endif

// By rank: 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with bf16 rounding; null where this processor lacks it.
const Path* path_of_rank(int rank) {
    if (rank == 0) return &kPortable;
#if defined(__x86_64__)
    if (rank == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2;
    if (rank == 2 && has_vbmi()) return &kAvx512;
    if (rank == 3 && has_vbmi() && __builtin_cpu_supports("avx512bf16")) return &kAvx512Bf16;
#endif
    return nullptr;
}

// Pieces of a sum are of one size, so that the sum does not depend on the number of threads.
constexpr std::ptrdiff_t kSumElements = 16384;

// A thread is woken only for what takes longer than that.
constexpr std::ptrdiff_t kAddElements = 1 << 18;

// Elements per task of an update. Small tasks cost time, for neighbouring tasks of two threads fight over the lines
// that the processor reads ahead: 0.80 ns an element with 16 blocks, 0.53 with 64, 0.45 with 4096.
std::ptrdiff_t task_elements(std::ptrdiff_t n, int num_threads) {
    return kBlock * std::clamp<std::ptrdiff_t>(n / kBlock / (8 * num_threads), 64, 4096);
}

// The last, partial block works on copies filled up with zeros, so that no path needs masks.
void update_tail(const Path& path, const Step& step, const Map& map1, const Map& map2, const Blocks& at, int size) {
    alignas(64) float master[kBlock] = {}, grad[kBlock] = {};
    alignas(64) std::uint8_t codes1[kBlock], codes2[kBlock] = {};
    alignas(64) std::uint16_t out[kBlock];
    std::memset(codes1, zero_code(map1), sizeof codes1);
    std::memcpy(master, at.master, sizeof(float) * size);
    std::memcpy(grad, at.grad, (at.grad_is_bf16 ? sizeof(std::uint16_t) : sizeof(float)) * size);
    std::memcpy(codes1, at.codes1, size);
    std::memcpy(codes2, at.codes2, size);
    Blocks copy = at;
    copy.master = master, copy.grad = grad, copy.codes1 = codes1, copy.codes2 = codes2;
    copy.out_bf16 = at.out_bf16 ? out : nullptr;
    path.update(step, map1, map2, copy, 1);
    std::memcpy(at.master, master, sizeof(float) * size);
    std::memcpy(at.codes1, codes1, size);
    std::memcpy(at.codes2, codes2, size);
    if (at.out_bf16) std::memcpy(at.out_bf16, out, sizeof(std::uint16_t) * size);
}

const void* element(const void* grad, bool is_bf16, std::ptrdiff_t index) {
    return static_cast<const char*>(grad) + index * (is_bf16 ? sizeof(std::uint16_t) : sizeof(float));
}

}  // namespace
}  // namespace redheart

using namespace redheart;

extern "C" {

// The name of a path, null where this processor cannot run it.
const char* redheart_path_name(int rank) {
    const Path* path = path_of_rank(rank);
    return path ? path->name : nullptr;
}

// The others take the rank of a path that has a name.

void redheart_adamw8bit(int rank, int num_threads, const Step* step, const float* values1, const float* values2,
                       std::int64_t n, float* master, const void* grad, int grad_is_bf16, std::uint8_t* codes1,
                       std::uint8_t* codes2, float* absmax1, float* absmax2, std::uint16_t* out_bf16) {
    const Path* path = path_of_rank(rank);
    const Map map1 = make_map(values1, true), map2 = make_map(values2, false);
    const auto at = [&](std::ptrdiff_t begin) {
        return Blocks{master + begin, element(grad, grad_is_bf16, begin), grad_is_bf16 != 0, codes1 + begin,
                      codes2 + begin, absmax1 + begin / kBlock, absmax2 + begin / kBlock,
                      out_bf16 ? out_bf16 + begin : nullptr};
    };
    run(n, task_elements(n, num_threads), num_threads, [&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t size) {
        path->update(*step, map1, map2, at(begin), size / kBlock);
        const int rest = static_cast<int>(size % kBlock);
        if (rest) update_tail(*path, *step, map1, map2, at(begin + size - rest), rest);
    });
}

void redheart_adamw32(int rank, int num_threads, const Step* step, std::int64_t n, float* master, const void* grad,
                      int grad_is_bf16, float* m, float* v, std::uint16_t* out_bf16) {
    const Path* path = path_of_rank(rank);
    run(n, task_elements(n, num_threads), num_threads, [&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t size) {
        path->update32(*step, master + begin, element(grad, grad_is_bf16, begin), grad_is_bf16 != 0, m + begin,
                       v + begin, out_bf16 ? out_bf16 + begin : nullptr, size);
    });
}

// Sum of squares in double over fixed pieces, added in their order: the same for any number of threads.
double redheart_sum_squares(int rank, int num_threads, std::int64_t n, const void* grad, int grad_is_bf16) {
    const Path* path = path_of_rank(rank);
    std::vector<double> parts(static_cast<std::size_t>((n + kSumElements - 1) / kSumElements));
    run(n, kSumElements, num_threads, [&](std::ptrdiff_t task, std::ptrdiff_t begin, std::ptrdiff_t size) {
        parts[task] = path->sum_squares(element(grad, grad_is_bf16, begin), grad_is_bf16 != 0, size);
    });
    double sum = 0.0;
    for (const double part : parts) sum += part;
    return sum;
}

// Add n values in bf16 to a sum in float32, elementwise: the same for any number of threads.
void redheart_add_bf16(int num_threads, std::int64_t n, float* sum, const std::uint16_t* addend) {
    run(n, kAddElements, num_threads, [&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t size) {
        for (std::ptrdiff_t i = begin; i < begin + size; ++i) sum[i] += portable::from_bf16(addend[i]);
    });
}

}  // extern "C"
