// Rows of bytes, 0 to 255, times columns of bytes, -128 to 127: on tiles where the variant has them, else vpdpbusd.
#pragma once

#include "bytes.h"
#if defined(__AMX_INT8__)
#include "amx.h"
#endif

namespace hr {
namespace HR_VARIANT {
namespace {

#if defined(__AMX_INT8__)

using Products = Tiles;  // lives as long as products are asked for

constexpr int64_t kTogether = 2 * kTileRows;  // rows, with room for as many in values and sums

inline int64_t inputs_of(int64_t d) { return (d + kTileInputs - 1) / kTileInputs * kTileInputs; }

// Where input i of a row stands among `inputs`.
inline int64_t row_place(int64_t row, int64_t i, int64_t inputs) { return tiled_place(row, i, inputs); }

// sums int32 [rows][kColumns] of up to kTogether rows of `inputs_of` inputs; where `few`, of the first half of the columns.
inline void products(const uint8_t* values, int64_t rows, int64_t inputs, const int8_t* columns, bool few,
                     int32_t (*sums)[kColumns]) {
    const int64_t next = kTileRows * inputs;
    if (rows > kTileRows)
        few ? tile_products<true, false>(values, next, inputs, columns, sums[0], false)
            : tile_products<true, true>(values, next, inputs, columns, sums[0], false);
    else
        few ? tile_products<false, false>(values, next, inputs, columns, sums[0], false)
            : tile_products<false, true>(values, next, inputs, columns, sums[0], false);
    stored();
}

#else

struct Products {};

constexpr int64_t kTogether = kShared;

inline int64_t inputs_of(int64_t d) { return in_fours(d); }

inline int64_t row_place(int64_t row, int64_t i, int64_t inputs) { return row * inputs + i; }

inline void products(const uint8_t* values, int64_t rows, int64_t inputs, const int8_t* columns, bool few,
                     int32_t (*sums)[kColumns]) {
    if (rows < kTogether)
        for (int64_t r = 0; r < rows; ++r) byte_products<1, 2>(values + r * inputs, inputs, columns, sums + r);
    else if (few)
        byte_products<kShared, 1>(values, inputs, columns, sums);
    else
        byte_products<kShared, 2>(values, inputs, columns, sums);
}

#endif

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
