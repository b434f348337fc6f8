// Every function on arrays of exactly the size it is told, on every path: for the address and behaviour sanitizers, and
// for one digest of all results, which must not depend on the path, nor on the processor that it is compiled for.
#include "../../redheart/kernel/csrc/adamw8bit.cpp"
#include "../../redheart/kernel/csrc/gelu.cpp"
#include "../../redheart/kernel/csrc/rms_norm.cpp"

#include <cstdio>
#include <memory>

struct Random {
    std::uint64_t state = 88172645463325252u;
    std::uint32_t bits() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<std::uint32_t>(state >> 32);
    }
    // Of either sign, over fifteen decades: all ranges of a map and what lies below.
    float number() {
        const std::uint32_t exponent = 127 - bits() % 50;
        return __builtin_bit_cast(float, (bits() & 0x807fffffu) | exponent << 23);
    }
};

std::uint64_t digest = 0;

template <class T>
struct Array {
    std::unique_ptr<T[]> items;
    std::int64_t size;
    template <class Next>
    Array(std::int64_t n, Next next) : items(new T[n]), size(n) {
        for (std::int64_t i = 0; i < n; ++i) items[i] = static_cast<T>(next());
    }
    operator T*() { return items.get(); }
    void add_to_digest() {
        const unsigned char* bytes = reinterpret_cast<const unsigned char*>(items.get());
        for (std::size_t i = 0; i < sizeof(T) * size; ++i) digest = (digest ^ bytes[i]) * 1099511628211u;
    }
};

// Seven decades of 1, 2, ... 64 steps each (signed), or twice as many, with zero and 1.0: see map.h.
void fill_map(float (&values)[256], bool is_signed) {
    int index = is_signed ? 127 : 0;
    values[index++] = 0.0f;
    for (int decade = 0; decade < 7; ++decade) {
        const int steps = (is_signed ? 1 : 2) << decade;
        for (int i = 0; i < steps; ++i)
            values[index++] = static_cast<float>((0.1 + 0.9 * (i + 0.5) / steps) * std::pow(10.0, decade - 6));
    }
    values[index] = 1.0f;
    if (is_signed)
        for (int i = 1; i < 128; ++i) values[127 - i] = -values[127 + i];
}

int main() {
    float signed_map[256], unsigned_map[256];
    fill_map(signed_map, true), fill_map(unsigned_map, false);
    const Step step = {0.1f, 0.03f, 0.9f, 0.999f, 1.0f, 1e-3f, 1e-8f, 1};
    int calls = 0;
    std::uint64_t portable_digest = 0;
    for (int rank = 0; rank < 4; ++rank) {
        if (!redheart_path_name(rank)) continue;
        digest = 14695981039346656037u;
        Random random;
        const auto number = [&] { return random.number(); };
        const auto positive = [&] { return std::fabs(random.number()); };
        const auto upper_half = [&] { return __builtin_bit_cast(std::uint32_t, random.number()) >> 16; };
        const auto bits = [&] { return random.bits() >> 24; };
        const auto zero = [] { return 0; };
        for (std::int64_t n : {0, 1, 15, 64, 255, 256, 257, 511, 16383, 16385, 70000}) {
            for (int bf16 = 0; bf16 < 2; ++bf16) {
                for (int copy = 0; copy < 2; ++copy) {
                    const std::int64_t blocks = (n + 255) / 256;
                    Array<float> master(n, number), m(n, number), v(n, positive), grad32(n, number);
                    Array<std::uint16_t> grad16(n, upper_half), out(n, zero);
                    Array<std::uint8_t> codes1(n, bits), codes2(n, bits);
                    Array<float> absmax1(blocks, positive), absmax2(blocks, positive);
                    const void* grad = bf16 ? static_cast<void*>(grad16) : static_cast<void*>(grad32);
                    std::uint16_t* to = copy ? static_cast<std::uint16_t*>(out) : nullptr;
                    redheart_adamw8bit(rank, 3, &step, signed_map, unsigned_map, n, master, grad, bf16, codes1, codes2,
                                       absmax1, absmax2, to);
                    redheart_adamw32(rank, 3, &step, n, master, grad, bf16, m, v, to);
                    Array<double> sum(1, [&] { return redheart_sum_squares(rank, 3, n, grad, bf16); });
                    redheart_add_bf16(3, n, grad32, grad16);
                    calls += 4;
                    for (auto* array : {&master, &m, &v, &grad32, &absmax1, &absmax2}) array->add_to_digest();
                    codes1.add_to_digest(), codes2.add_to_digest(), out.add_to_digest(), sum.add_to_digest();
                }
            }
        }
        for (std::int64_t n : {0, 1, 7, 9, 16385}) {
            Array<float> x(n, number), out(n, zero), slope(n, zero);
            redheart_gelu(3, n, x, out, slope);
            calls += 1;
            for (auto* array : {&out, &slope}) array->add_to_digest();
        }
        for (std::int64_t rows : {0, 1, 127, 128, 129, 300}) {
            for (std::int64_t width : {1, 15, 16, 17, 88}) {
                Array<float> x(rows * width, number), weight(width, number), grad(rows * width, number);
                Array<float> inverse(rows, zero), out(rows * width, zero), grad_x(rows * width, zero);
                Array<float> grad_weight(width, zero);
                redheart_rms_norm(3, rows, width, 1e-6f, x, weight, inverse, out);
                redheart_rms_norm_gradients(3, rows, width, grad, x, weight, inverse, grad_x, grad_weight);
                calls += 2;
                for (auto* array : {&inverse, &out, &grad_x, &grad_weight}) array->add_to_digest();
            }
        }
        if (rank == 0) portable_digest = digest;
        if (digest != portable_digest) return 3;
    }
    std::printf("%d %016llx\n", calls, static_cast<unsigned long long>(portable_digest));
}
