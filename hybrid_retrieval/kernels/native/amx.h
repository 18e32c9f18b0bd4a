// Tiles of Intel's AMX, and products of whole numbers on them (tdpbusd), for the dense layers of the variant that has them.
//
// A tile is 16 rows of 64 bytes. The first operand's rows are numbers of its inputs; the second holds inputs in groups
// that fill 32 bits, side by side for each of 16 columns, which is how `pack` lays out weights already.
#pragma once

#include <cstdint>

#include "simd.h"

namespace hr {
namespace HR_VARIANT {
namespace {

constexpr int64_t kTileRows = 16, kTileInputs = 64;
constexpr int64_t kTileBytes = kTileRows * kTileInputs;

// Constant, because GCC takes the configuration's first eight bytes to be all that is read.
alignas(64) const struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} kShape = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// The thread's eight tiles, all of full size, for as long as this lives.
class Tiles {
public:
    Tiles() { _tile_loadconfig(&kShape); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// GCC 12 takes a tile to be loaded without a look at memory: what was stored before must be there.
inline void stored() { asm volatile("" ::: "memory"); }

// Where code j of row i stands: tiles of 16 rows and 64 inputs one after the other, a tile's rows side by side.
inline int64_t tiled_place(int64_t i, int64_t j, int64_t k) {
    return i / kTileRows * kTileRows * k + j / kTileInputs * kTileBytes + i % kTileRows * kTileInputs + j % kTileInputs;
}

// Sums of 16 or 32 rows with 32 columns over `inputs` inputs: sums int32 [rows][32], added to what is there where `more`.
// codes: the first row's tile of the first input, the next 16 rows' `next` bytes on. panel: [inputs / 4][32][4]. Where not
// `wide`, of the first 16 columns alone.
template <bool two, bool wide = true>
inline void tile_products(const uint8_t* codes, int64_t next, int64_t inputs, const int8_t* panel, int32_t* sums,
                          bool more) {
    constexpr int64_t width = 128, lower = 16 * 32;
    stored();
    if (more) {
        _tile_loadd(0, sums, width);
        if (wide) _tile_loadd(1, sums + 16, width);
        if (two) _tile_loadd(2, sums + lower, width);
        if (two && wide) _tile_loadd(3, sums + lower + 16, width);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < inputs; i += kTileInputs) {
        _tile_loadd(6, panel + i * 32, width);
        if (wide) _tile_loadd(7, panel + i * 32 + 64, width);
        _tile_loadd(4, codes + i * kTileRows, kTileInputs);
        _tile_dpbusd(0, 4, 6);
        if (wide) _tile_dpbusd(1, 4, 7);
        if (two) {
            _tile_loadd(5, codes + next + i * kTileRows, kTileInputs);
            _tile_dpbusd(2, 5, 6);
            if (wide) _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, width);
    if (wide) _tile_stored(1, sums + 16, width);
    if (two) _tile_stored(2, sums + lower, width);
    if (two && wide) _tile_stored(3, sums + lower + 16, width);
}

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
