// Attention in float32, for the variants without tiles (amx_attention.h has that of the other).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "aligned.h"
#include "vectors.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// exp for x <= 0, relative error below 2e-7 (Cephes' expf polynomial); no branches, so that loops over it vectorise.
inline float exp_negative(float x) {
    x = std::max(x, -87.0f);
    const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float y = p * r * r + r + 1.0f;
    return y * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

// out [rows][size at out_stride] = weights [rows][length at stride] x values [length at v_stride]
template <int rows>
inline void weigh(const float* weights, int64_t stride, int64_t length, const float* values, int64_t v_stride,
                  int64_t size, float* out, int64_t out_stride) {
    for (int64_t d = 0; d < size; d += 2 * kLanes) {
        Vec acc[rows][2] = {};
        for (int64_t j = 0; j < length; ++j) {
            const Vec v0 = load(values + j * v_stride + d), v1 = load(values + j * v_stride + d + kLanes);
            for (int r = 0; r < rows; ++r) {
                const Vec one = splat(weights[r * stride + j]);
                acc[r][0] += one * v0;
                acc[r][1] += one * v1;
            }
        }
        for (int r = 0; r < rows; ++r) {
            store(out + r * out_stride + d, acc[r][0]);
            store(out + r * out_stride + d + kLanes, acc[r][1]);
        }
    }
}

class Attention {
public:
    // qkv [L, 3 * heads * size] -> out [L, heads * size], softmax over the whole sequence.
    void run(const float* qkv, int64_t length, int64_t heads, int64_t size, float* out) {
        constexpr int kQueries = 4;
        const int64_t width = heads * size, row = 3 * width;
        const int64_t stride = (length + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
        // Aligned rows without a remainder: a sum's order, and with it its last bit, then depends on the length alone.
        memory_.assign(size * stride + kQueries * stride, 0.0f);
        float *keys = memory_.data(), *scores = keys + size * stride;
        const float scale = 1.0f / std::sqrt(static_cast<float>(size));
        for (int64_t h = 0; h < heads; ++h) {
            const float *q = qkv + h * size, *k = q + width, *v = k + width;
            for (int64_t j = 0; j < length; ++j)
                for (int64_t d = 0; d < size; ++d) keys[d * stride + j] = k[j * row + d] * scale;
            for (int64_t i = 0; i < length; i += kQueries) {
                const int64_t rows = std::min<int64_t>(kQueries, length - i);
                if (rows == kQueries)
                    query_scores<kQueries>(q + i * row, row, keys, stride, size, scores);
                else
                    for (int64_t r = 0; r < rows; ++r)
                        query_scores<1>(q + (i + r) * row, row, keys, stride, size, scores + r * stride);
                for (int64_t r = 0; r < rows; ++r) {
                    float* s = scores + r * stride;
                    for (int64_t j = length; j < stride; ++j) s[j] = -1e30f;
                    float most = s[0];
#pragma omp simd reduction(max : most) aligned(s : 32)
                    for (int64_t j = 0; j < stride; ++j) most = s[j] > most ? s[j] : most;  // std::max would not vectorise
                    float sum = 0;
#pragma omp simd reduction(+ : sum) aligned(s : 32)
                    for (int64_t j = 0; j < stride; ++j) {
                        s[j] = exp_negative(s[j] - most);
                        sum += s[j];
                    }
                    const float share = 1.0f / sum;
#pragma omp simd aligned(s : 32)
                    for (int64_t j = 0; j < stride; ++j) s[j] *= share;
                }
                float* to = out + i * width + h * size;
                if (rows == kQueries)
                    weigh<kQueries>(scores, stride, length, v, row, size, to, width);
                else
                    for (int64_t r = 0; r < rows; ++r)
                        weigh<1>(scores + r * stride, stride, length, v, row, size, to + r * width, width);
            }
        }
    }

private:
    Aligned<float> memory_;
};

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
