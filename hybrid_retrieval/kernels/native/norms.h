// 1 / |centroid + residual| of packed tokens, computed when a token is first scored and remembered.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "variants.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// levels [D] of one packed residual
inline void unpack(const uint8_t* packed, int64_t width, int64_t per_byte, const int16_t* table, int16_t* levels) {
    switch (per_byte) {
        case 8:
            for (int64_t i = 0; i < width; ++i) std::memcpy(levels + 8 * i, table + 8 * packed[i], 16);
            break;
        case 4:
            for (int64_t i = 0; i < width; ++i) std::memcpy(levels + 4 * i, table + 4 * packed[i], 8);
            break;
        case 2:
            for (int64_t i = 0; i < width; ++i) std::memcpy(levels + 2 * i, table + 2 * packed[i], 4);
            break;
        default:
            for (int64_t i = 0; i < width; ++i) levels[i] = table[packed[i]];
    }
}

inline int32_t dot(const int16_t* a, const int16_t* b, int64_t n) {
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
    return sum;
}

inline float compute_inverse_norm(const PackedTokens& index, int64_t code, const int16_t* levels) {
    const int64_t d = index.dimensions;
    const float cw = static_cast<float>(dot(index.centroid_levels + code * d, levels, d));
    const float ww = static_cast<float>(dot(levels, levels, d));
    const float square = index.centroid_squares[code] + index.centroid_scales[code] * cw + index.square_scale * ww;
    return 1.0f / std::max(std::sqrt(std::max(square, 0.0f)), 1e-12f);
}

constexpr int kUnpacked = 16;  // tokens unpacked at a time

// factors [count]: the inverse norms of tokens whose codes are below num_centroids; scratch [kUnpacked][D] is for levels.
// Threads may come to a token at once: they find the same number, so it does not matter whose is kept.
inline void inverse_norms(const PackedTokens& index, const int64_t* tokens, int count, int16_t* scratch, float* factors) {
    int waiting[kUnpacked], number = 0;
    for (int i = 0; i <= count; ++i) {
        // All of a batch before any product: a load across stores that are still on their way would wait for them.
        if (number == kUnpacked || (i == count && number)) {
            for (int j = 0; j < number; ++j) {
                const int64_t token = tokens[waiting[j]];
                float& factor = factors[waiting[j]];
                factor = compute_inverse_norm(index, index.codes[token], scratch + j * index.dimensions);
                __atomic_store(index.inverse_norms + token, &factor, __ATOMIC_RELAXED);
            }
            number = 0;
        }
        if (i == count) break;
        __atomic_load(index.inverse_norms + tokens[i], factors + i, __ATOMIC_RELAXED);
        if (factors[i] > 0) continue;
        unpack(index.residuals + tokens[i] * index.width, index.width, index.per_byte, index.table,
               scratch + number * index.dimensions);
        waiting[number++] = i;
    }
}

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
