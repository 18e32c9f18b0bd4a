// The kernels as tables of functions: the same sources are compiled once per instruction set (see CMakeLists.txt),
// and the module picks a table at run time. Nothing outside a variant's table may be called from it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hr {

// Weights of one dense layer, int8 [K, N] in panels of `panel` columns: [ceil(N / panel)][K / 2][panel][2] int16.
struct Dense {
    const int16_t* packed;
    const float* scale;  // [N]
    const float* bias;   // [N]
    int64_t k, n;
};

struct Norm {
    const float* weight;  // [H]
    const float* bias;    // [H]
};

struct Layer {
    Dense qkv, attention_out, inner, outer;
    Norm attention_norm, outer_norm;
};

struct TrunkShape {
    int64_t hidden, heads, head_size;
    float epsilon;
};

struct Kernels {
    const char* name;
    int64_t panel;
    void (*pack)(const int8_t* weight, int64_t k, int64_t n, int16_t* out);
    // x float32 [M, K] -> out float32 [M, N]
    void (*dense)(const float* x, int64_t m, const Dense& layer, float* out);
    // x float32 [T, H], changed in place; sequences are rows offsets[i] to offsets[i + 1].
    void (*run)(float* x, const int64_t* offsets, int64_t sequences, const Layer* layers, int64_t depth,
                const TrunkShape& shape);
    // x [M, K] times matrix [K, stride] (stride a multiple of 32, zeros from column n on), rows made unit: out [M, n].
    void (*project)(const float* x, int64_t m, int64_t k, const float* matrix, int64_t stride, int64_t n, float* out);
};

namespace portable {
extern const Kernels table;
}
#if defined(HR_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
#endif

}  // namespace hr
