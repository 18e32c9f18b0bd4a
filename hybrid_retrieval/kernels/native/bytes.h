// Products of rows with columns of bytes (vpdpbusd).
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace hr {
namespace HR_VARIANT {
namespace {

constexpr int kColumns = 32;  // side by side, in two registers
constexpr int kShared = 8;    // rows that share a load of columns

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
