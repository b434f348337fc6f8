// Every function on arrays of exactly the size it is told, on every path, for the address and behaviour sanitizers.
#include "../../../redheart/memory/adamw8bit/csrc/adamw8bit.cpp"

#include <cstdio>
#include <memory>

template <class T>
std::unique_ptr<T[]> array(std::int64_t n, T value) {
    std::unique_ptr<T[]> result(new T[n]);
    for (std::int64_t i = 0; i < n; ++i) result[i] = value;
    return result;
}

int main() {
    float signed_map[256], unsigned_map[256];
    for (int i = 0; i < 256; ++i) signed_map[i] = (i - 127) / 128.0f, unsigned_map[i] = i / 255.0f;
    const Step step = {0.1f, 0.03f, 0.9f, 0.999f, 1.0f, 1e-3f, 1e-8f, 1};
    int calls = 0;
    for (int rank = 0; rank < 4; ++rank) {
        if (!redheart_path_name(rank)) continue;
        for (std::int64_t n : {0, 1, 15, 64, 255, 256, 257, 511, 16383, 16385, 70000}) {
            for (int bf16 = 0; bf16 < 2; ++bf16) {
                for (int copy = 0; copy < 2; ++copy) {
                    const std::int64_t blocks = (n + 255) / 256;
                    auto master = array<float>(n, 0.5f), m = array<float>(n, 0.0f), v = array<float>(n, 0.0f);
                    auto grad32 = array<float>(n, 0.25f);
                    auto grad16 = array<std::uint16_t>(n, 0x3e80);
                    auto codes1 = array<std::uint8_t>(n, 130), codes2 = array<std::uint8_t>(n, 3);
                    auto absmax1 = array<float>(blocks, 0.1f), absmax2 = array<float>(blocks, 0.01f);
                    auto out = array<std::uint16_t>(n, 0);
                    const void* grad = bf16 ? static_cast<void*>(grad16.get()) : static_cast<void*>(grad32.get());
                    std::uint16_t* to = copy ? out.get() : nullptr;
                    double sum = 0;
                    int bad = redheart_adamw8bit(rank, 3, &step, signed_map, unsigned_map, n, master.get(), grad, bf16,
                                                 codes1.get(), codes2.get(), absmax1.get(), absmax2.get(), to);
                    bad += redheart_adamw32(rank, 3, &step, n, master.get(), grad, bf16, m.get(), v.get(), to);
                    bad += redheart_sum_squares(rank, 3, n, grad, bf16, &sum);
                    bad += redheart_quantise(rank, signed_map, 1, n, master.get(), codes1.get(), absmax1.get());
                    bad += redheart_quantise(rank, unsigned_map, 0, n, grad32.get(), codes2.get(), absmax2.get());
                    redheart_add_bf16(3, n, grad32.get(), grad16.get());
                    if (bad) return 2;
                    calls += 6;
                }
            }
        }
    }
    std::printf("%d calls\n", calls);
}
