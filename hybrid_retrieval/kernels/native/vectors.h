// Vectors of float32 as wide as the variant's registers, and products of rows with a matrix.
#pragma once

#include <cstdint>

namespace hr {
namespace HR_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int64_t kRows = 4;  // at a time, with two accumulators each

typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec splat(float v) { return v - Vec{}; }  // v - 0 is v, whatever its sign

// Scores of `rows` query vectors with keys in columns: keys [size][stride], scores [rows][stride].
template <int rows>
inline void query_scores(const float* q, int64_t q_stride, const float* keys, int64_t stride, int64_t size,
                         float* scores) {
    for (int64_t j = 0; j < stride; j += 2 * kLanes) {
        Vec acc[rows][2] = {};
        for (int64_t d = 0; d < size; ++d) {
            const Vec k0 = load(keys + d * stride + j), k1 = load(keys + d * stride + j + kLanes);
            for (int r = 0; r < rows; ++r) {
                const Vec one = splat(q[r * q_stride + d]);
                acc[r][0] += one * k0;
                acc[r][1] += one * k1;
            }
        }
        for (int r = 0; r < rows; ++r) {
            store(scores + r * stride + j, acc[r][0]);
            store(scores + r * stride + j + kLanes, acc[r][1]);
        }
    }
}

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
