// Attention on AMX's tiles: bfloat16 products (tdpbf16ps) of numbers split in two, which keeps about 16 of float32's 24 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "aligned.h"
#include "amx.h"
#include "simd.h"

namespace hr {
namespace HR_VARIANT {
namespace {

typedef uint16_t Half;  // a bfloat16's bits

// The nearest number whose lower 16 bits are zeros.
inline __m512i rounded(__m512 x) {
    return _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)),
                            _mm512_set1_epi32(~0xffff));
}

inline __m512i rest(__m512 x, __m512i high) { return rounded(_mm512_sub_ps(x, _mm512_castsi512_ps(high))); }

// 32 numbers as sums of two bfloat16.
inline void split(__m512 first, __m512 second, Half* high, Half* low) {
    alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i upper = _mm512_load_si512(kUpper), x = rounded(first), y = rounded(second);
    _mm512_storeu_si512(high, _mm512_permutex2var_epi16(x, upper, y));
    _mm512_storeu_si512(low, _mm512_permutex2var_epi16(rest(first, x), upper, rest(second, y)));
}

// The same of 16 columns of two rows, in pairs as the second operand takes them.
inline void split_pairs(__m512 first, __m512 second, Half* high, Half* low) {
    const auto joined = [](__m512i x, __m512i y) { return _mm512_or_si512(_mm512_srli_epi32(x, 16), y); };
    const __m512i x = rounded(first), y = rounded(second);
    _mm512_storeu_si512(high, joined(x, y));
    _mm512_storeu_si512(low, joined(rest(first, x), rest(second, y)));
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

typedef Aligned<Half> Halves[2];  // the nearest bfloat16 of numbers, and of what these leave

// Adds to tiles 0 and 1 the products of 16 rows of 32 numbers, `stride` apart from `row` on, with two blocks of 16 columns;
// the smallest first.
inline void add_products(const Halves& rows, int64_t row, int64_t stride, const Halves& columns, int64_t first,
                         int64_t second) {
    _tile_loadd(2, &rows[0][row], stride * 2);
    _tile_loadd(3, &rows[1][row], stride * 2);
    _tile_loadd(4, &columns[0][first], 64);
    _tile_loadd(5, &columns[0][second], 64);
    _tile_loadd(6, &columns[1][first], 64);
    _tile_loadd(7, &columns[1][second], 64);
    _tile_dpbf16ps(0, 3, 6);
    _tile_dpbf16ps(1, 3, 7);
    _tile_dpbf16ps(0, 3, 4);
    _tile_dpbf16ps(1, 3, 5);
    _tile_dpbf16ps(0, 2, 6);
    _tile_dpbf16ps(1, 2, 7);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(1, 2, 5);
}

// Attention over tiles, one head at a time; buffers grow to the longest sequence seen.
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
                const int64_t columns = j * size + d * 16;
                add_products(query_, i * size + d, size, key_, columns, columns + 16 * size);
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
                const int64_t columns = j * size + d * 32;
                add_products(weight_, j, keys_, value_, columns, columns + 16 * 32);
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
    Halves query_, key_, value_, weight_;
    Aligned<float> scores_;
    float share_[kTileRows] = {};
};

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
