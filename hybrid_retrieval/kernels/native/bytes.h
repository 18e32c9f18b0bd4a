// Floats as bytes, and products of rows with columns of bytes (vpdpbusd).
#pragma once

#include <cmath>

#include "spread.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// Of floats v that became step * V, V whole numbers between -127 and 127.
struct Level {
    float step;
    int32_t sum;           // of V
    float missed, length;  // of v - step * V and of v
};

// Puts [d] floats on whole numbers: put(i, number).
template <typename Put>
Level put_levels(const float* values, int64_t d, const Put& put) {
    float top = 0;
    for (int64_t i = 0; i < d; ++i) top = std::max(top, std::fabs(values[i]));
    // Floats whose step would have no inverse count as zeros.
    Level level{top > 1e-30f ? top / 127.0f : 1.0f, 0, 0, 0};
    const float inverse = 1.0f / level.step;
    double missed = 0, square = 0;
    int64_t sum = 0;
    for (int64_t i = 0; i < d; ++i) {
        const int32_t number = whole(values[i], inverse);
        const double rest = values[i] - static_cast<double>(level.step) * number;
        missed += rest * rest;
        square += static_cast<double>(values[i]) * values[i];
        sum += number;
        put(i, number);
    }
    level.sum = static_cast<int32_t>(sum);
    level.missed = static_cast<float>(std::sqrt(missed));
    level.length = static_cast<float>(std::sqrt(square));
    return level;
}

constexpr int kColumns = 32;  // side by side, in two registers
constexpr int kShared = 8;    // rows that share a load of columns

// Inputs are taken four at a time.
inline int64_t in_fours(int64_t d) { return (d + 3) / 4 * 4; }

// Where input i of a column stands: [inputs / 4][kColumns][4].
inline int64_t column_place(int64_t i, int64_t column) { return i / 4 * 4 * kColumns + column * 4 + i % 4; }

// sums int32 [rows][kColumns], the first `registers` * 16 columns: of rows, bytes of 0 to 255, `inputs` (a multiple of 4)
// each, with columns, bytes of -128 to 127.
template <int rows, int registers>
inline void byte_products(const uint8_t* values, int64_t inputs, const int8_t* columns, int32_t (*sums)[kColumns]) {
    __m512i acc[registers][rows];  // its loops are unrolled: else it may stay in memory
    for (int v = 0; v < registers; ++v)
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) acc[v][t] = _mm512_setzero_si512();
    for (int64_t i = 0; i < inputs; i += 4, columns += 4 * kColumns) {
        __m512i four_inputs[registers];
        for (int v = 0; v < registers; ++v) four_inputs[v] = _mm512_load_si512(columns + v * 64);
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) {
            int32_t four;
            std::memcpy(&four, values + t * inputs + i, 4);
            const __m512i all = _mm512_set1_epi32(four);
            for (int v = 0; v < registers; ++v) acc[v][t] = _mm512_dpbusd_epi32(acc[v][t], all, four_inputs[v]);
        }
    }
    for (int v = 0; v < registers; ++v)
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) _mm512_store_si512(sums[t] + 16 * v, acc[v][t]);
}

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
