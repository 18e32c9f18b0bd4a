// Tile products of Intel's AMX, for the variant that has them: whole numbers (tdpbusd) for the dense layers, and attention
// in bfloat16 products (tdpbf16ps) of numbers split in two, which keeps about 16 of float32's 24 bits.
//
// A tile is 16 rows of 64 bytes. The first operand's rows are numbers of its inputs; the second holds inputs in groups
// that fill 32 bits, side by side for each of 16 columns, which is how `pack` lays out weights already.
#pragma once

#if defined(__AMX_INT8__)

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "aligned.h"
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
// codes: the first row's tile of the first input, the next 16 rows' `next` bytes on. panel: [inputs / 4][32][4].
template <bool two>
inline void tile_products(const uint8_t* codes, int64_t next, int64_t inputs, const int8_t* panel, int32_t* sums,
                          bool more) {
    constexpr int64_t width = 128, lower = 16 * 32;
    stored();
    if (more) {
        _tile_loadd(0, sums, width);
        _tile_loadd(1, sums + 16, width);
        if (two) {
            _tile_loadd(2, sums + lower, width);
            _tile_loadd(3, sums + lower + 16, width);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < inputs; i += kTileInputs) {
        _tile_loadd(6, panel + i * 32, width);
        _tile_loadd(7, panel + i * 32 + 64, width);
        _tile_loadd(4, codes + i * kTileRows, kTileInputs);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        if (two) {
            _tile_loadd(5, codes + next + i * kTileRows, kTileInputs);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, width);
    _tile_stored(1, sums + 16, width);
    if (two) {
        _tile_stored(2, sums + lower, width);
        _tile_stored(3, sums + lower + 16, width);
    }
}

typedef uint16_t Half;  // a bfloat16's bits

inline __m512 upper_half(__m512 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(~0xffff)));
}

// 32 numbers as sums of two bfloat16: their upper halves, and what these leave.
inline void split(__m512 first, __m512 second, Half* high, Half* low) {
    alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    _mm512_storeu_si512(high, _mm512_permutex2var_epi16(_mm512_castps_si512(first), _mm512_load_si512(kUpper),
                                                        _mm512_castps_si512(second)));
    const __m512bh rest = _mm512_cvtne2ps_pbh(_mm512_sub_ps(second, upper_half(second)),
                                              _mm512_sub_ps(first, upper_half(first)));
    _mm512_storeu_si512(low, (__m512i)rest);
}

// The same of 16 columns of two rows, in pairs as the second operand takes them.
inline void split_pairs(__m512 first, __m512 second, Half* high, Half* low) {
    const __m512i left = _mm512_set1_epi32(~0xffff);
    const auto joined = [left](__m512i x, __m512i y) {
        return _mm512_or_si512(_mm512_srli_epi32(x, 16), _mm512_and_si512(y, left));
    };
    _mm512_storeu_si512(high, joined(_mm512_castps_si512(first), _mm512_castps_si512(second)));
    const __m512i half = _mm512_set1_epi32(0x8000);  // rounds
    const __m512i x = _mm512_castps_si512(_mm512_sub_ps(first, upper_half(first)));
    const __m512i y = _mm512_castps_si512(_mm512_sub_ps(second, upper_half(second)));
    _mm512_storeu_si512(low, joined(_mm512_add_epi32(x, half), _mm512_add_epi32(y, half)));
}

inline __m512 exp_negative(__m512 x) {  // as the scalar one
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order, what is no number stays none
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    const __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504088896341f), magic), magic);
    const __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f),
                                     _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x));
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    const __m512 y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

// Attention of one head over tiles; buffers grow to the longest sequence seen.
class Attention {
public:
    // As the other variants' attention; size: a multiple of 32.
    void run(const float* qkv, int64_t length, int64_t heads, int64_t size, float* out) {
        const int64_t width = heads * size, row = 3 * width;
        keys_ = (length + 31) / 32 * 32;
        reserve(size);
        const float scale = 1.0f / std::sqrt(static_cast<float>(size));
        for (int64_t h = 0; h < heads; ++h) {
            const float* q = qkv + h * size;
            lay_out(q, row, length, size, scale);
            for (int64_t i = 0; i < length; i += kTileRows) {
                score(i, size);
                weigh(std::min(kTileRows, length - i), length);
                gather(std::min(kTileRows, length - i), size, out + i * width + h * size, width);
            }
        }
    }

private:
    void reserve(int64_t size) {
        for (Aligned<Half>* part : {&query_[0], &query_[1], &key_[0], &key_[1], &value_[0], &value_[1]})
            part->assign(keys_ * size, 0);
        for (auto& part : weight_) part.resize(kTileRows * keys_);
        scores_.resize(kTileRows * keys_);
    }

    // Queries [L][size]; keys in blocks of 16: [keys / 16][size / 2][16][2]; values in blocks of 32 keys and 16 numbers:
    // [keys / 32][size / 16][16][16][2].
    void lay_out(const float* q, int64_t row, int64_t length, int64_t size, float scale) {
        const float *k = q + row / 3, *v = k + row / 3;
        alignas(64) Half pairs[2][32];
        for (int64_t j = 0; j < length; ++j)
            for (int64_t d = 0; d < size; d += 32) {
                const float *query = q + j * row + d, *key = k + j * row + d;
                split(_mm512_loadu_ps(query), _mm512_loadu_ps(query + 16), &query_[0][j * size + d],
                      &query_[1][j * size + d]);
                const __m512 scaled = _mm512_set1_ps(scale);
                split(_mm512_mul_ps(_mm512_loadu_ps(key), scaled), _mm512_mul_ps(_mm512_loadu_ps(key + 16), scaled),
                      pairs[0], pairs[1]);
                for (int part = 0; part < 2; ++part) {
                    Half* to = &key_[part][j / 16 * 16 * size + d * 16 + j % 16 * 2];
                    for (int64_t p = 0; p < 16; ++p) std::memcpy(to + p * 32, pairs[part] + 2 * p, 4);
                }
            }
        for (int64_t j = 0; j < length; j += 2)
            for (int64_t d = 0; d < size; d += 16) {
                const float* value = v + j * row + d;
                const int64_t at = j / 32 * 32 * size + d * 32 + j % 32 / 2 * 32;
                split_pairs(_mm512_loadu_ps(value), j + 1 < length ? _mm512_loadu_ps(value + row) : _mm512_setzero_ps(),
                            &value_[0][at], &value_[1][at]);
            }
    }

    // scores [16][keys] of the queries from i on.
    void score(int64_t i, int64_t size) {
        stored();
        for (int64_t j = 0; j < keys_; j += 32) {
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t d = 0; d < size; d += 32) {
                const int64_t first = j * size + d * 16, second = first + 16 * size;
                _tile_loadd(2, &query_[0][i * size + d], size * 2);
                _tile_loadd(3, &query_[1][i * size + d], size * 2);
                _tile_loadd(4, &key_[0][first], 64);
                _tile_loadd(5, &key_[0][second], 64);
                _tile_loadd(6, &key_[1][first], 64);
                _tile_loadd(7, &key_[1][second], 64);
                _tile_dpbf16ps(0, 3, 4);
                _tile_dpbf16ps(1, 3, 5);
                _tile_dpbf16ps(0, 2, 6);
                _tile_dpbf16ps(1, 2, 7);
                _tile_dpbf16ps(0, 2, 4);
                _tile_dpbf16ps(1, 2, 5);
            }
            _tile_stored(0, &scores_[j], keys_ * 4);
            _tile_stored(1, &scores_[j + 16], keys_ * 4);
        }
    }

    // Their softmax, but for its denominator, of which the inverse is kept.
    void weigh(int64_t rows, int64_t length) {
        const int64_t keys = keys_;
        for (int64_t r = 0; r < rows; ++r) {
            float* s = &scores_[r * keys];
            Half *to_high = &weight_[0][r * keys], *to_low = &weight_[1][r * keys];
            for (int64_t j = length; j < keys; ++j) s[j] = -1e30f;
            __m512 most[2] = {_mm512_loadu_ps(s), _mm512_loadu_ps(s + 16)};
            for (int64_t j = 32; j < keys; j += 32)
                for (int side = 0; side < 2; ++side)
                    most[side] = _mm512_max_ps(most[side], _mm512_loadu_ps(s + j + 16 * side));
            const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1])));
            __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            for (int64_t j = 0; j < keys; j += 32) {
                const __m512 first = exp_negative(_mm512_sub_ps(_mm512_loadu_ps(s + j), top));
                const __m512 second = exp_negative(_mm512_sub_ps(_mm512_loadu_ps(s + j + 16), top));
                sum[0] = _mm512_add_ps(sum[0], first);
                sum[1] = _mm512_add_ps(sum[1], second);
                split(first, second, to_high + j, to_low + j);
            }
            share_[r] = 1.0f / _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
        }
    }

    // out [rows][size at stride]: values by weight.
    void gather(int64_t rows, int64_t size, float* out, int64_t stride) {
        stored();
        for (int64_t d = 0; d < size; d += 32) {
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t j = 0; j < keys_; j += 32) {
                const int64_t first = j * size + d * 32, second = first + 16 * 32;
                _tile_loadd(2, &weight_[0][j], keys_ * 2);
                _tile_loadd(3, &weight_[1][j], keys_ * 2);
                _tile_loadd(4, &value_[0][first], 64);
                _tile_loadd(5, &value_[0][second], 64);
                _tile_loadd(6, &value_[1][first], 64);
                _tile_loadd(7, &value_[1][second], 64);
                _tile_dpbf16ps(0, 3, 4);
                _tile_dpbf16ps(1, 3, 5);
                _tile_dpbf16ps(0, 2, 6);
                _tile_dpbf16ps(1, 2, 7);
                _tile_dpbf16ps(0, 2, 4);
                _tile_dpbf16ps(1, 2, 5);
            }
            alignas(64) float found[kTileRows * 32];
            _tile_stored(0, found, 128);
            _tile_stored(1, found + 16, 128);
            for (int64_t r = 0; r < rows; ++r) {
                const __m512 share = _mm512_set1_ps(share_[r]);
                for (int64_t half = 0; half < 32; half += 16)
                    _mm512_storeu_ps(out + r * stride + d + half,
                                     _mm512_mul_ps(_mm512_load_ps(found + r * 32 + half), share));
            }
        }
    }

    int64_t keys_ = 0;  // the length, to a multiple of 32
    Aligned<Half> query_[2], key_[2], value_[2], weight_[2];  // upper halves, and what these leave
    Aligned<float> scores_;
    float share_[kTileRows] = {};
};

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr

#endif
