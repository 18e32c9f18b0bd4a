// Products of centroids and of packed residuals with query tokens on AMX tiles: real numbers as whole ones of two or three
// digits of 7 bits, whose products (tdpbssd) are summed by the weight of the digits. Three digits each give centroids'
// scores as exact as float32; two digits, without the product of the lower ones, give q.w to about 1e-6.
#include <cmath>

#include "amx.h"
#include "spread.h"
#include "windows.h"

namespace hr {
namespace HR_VARIANT {
namespace {

constexpr int kDigitBits = 7;
constexpr int64_t kColumnTile = kTileBytes;  // of 16 query tokens and 64 inputs

// The largest whole number of `digits` digits: the first lies between -127 and 127, the others between -64 and 63.
constexpr int32_t largest(int digits) { return digits == 1 ? 127 : largest(digits - 1) << kDigitBits; }

// The `digits` digits of a whole number, the first one first, `stride` apart.
template <int digits>
inline void split(int32_t number, int8_t* out, int64_t stride) {
    for (int i = digits - 1; i > 0; --i) {
        const int32_t digit = ((number + 64) & 127) - 64;
        out[i * stride] = static_cast<int8_t>(digit);
        number = (number - digit) >> kDigitBits;
    }
    out[0] = static_cast<int8_t>(number);
}

// What one step of whole numbers with `digits` digits is worth, so that the largest of n floats has the largest number.
// Floats whose step would have no inverse count as zeros.
inline float step_of(const float* values, int64_t n, int digits) {
    float top = 0;
    for (int64_t i = 0; i < n; ++i) top = std::max(top, std::fabs(values[i]));
    return top > 1e-30f ? top / static_cast<float>(largest(digits)) : 1.0f;
}

// Where input i of a query token stands among the digits of up to 32 tokens: [steps of 64 inputs][digits][2 tiles of 16
// tokens][16][16 tokens][4 inputs].
inline int64_t query_place(int64_t i, int64_t q, int digits) {
    return i / kTileInputs * digits * 2 * kColumnTile + q / 16 * kColumnTile + i % kTileInputs / 4 * 64 + q % 16 * 4 + i % 4;
}

// ---- Centroids: packed as [K rounded up to 16 / 16][steps][digits][16 centroids][64 inputs]

inline int64_t steps_of(int64_t d) { return (d + kTileInputs - 1) / kTileInputs; }

int64_t packed_bytes(int64_t k, int64_t d, int digits) {
    return (k + kTileRows - 1) / kTileRows * steps_of(d) * digits * kTileBytes;
}

template <int digits>
void pack_rows(const float* centroids, int64_t k, int64_t d, int8_t* packed, float* steps) {
    for (int64_t c = 0; c < k; ++c) {
        const float* row = centroids + c * d;
        steps[c] = step_of(row, d, digits);
        int8_t* to = packed + c / kTileRows * steps_of(d) * digits * kTileBytes + c % kTileRows * kTileInputs;
        const float inverse = 1.0f / steps[c];
        for (int64_t i = 0; i < d; ++i)
            split<digits>(whole(row[i], inverse), to + i / kTileInputs * digits * kTileBytes + i % kTileInputs,
                          kTileBytes);
    }
}

void pack_centroids(const float* centroids, int64_t k, int64_t d, int digits, int8_t* packed, float* steps) {
    if (digits == 2)
        pack_rows<2>(centroids, k, d, packed, steps);
    else
        pack_rows<3>(centroids, k, d, packed, steps);
}

void gather_centroids(const int8_t* packed, int64_t d, const uint32_t* centroids, int64_t count, int8_t* out) {
    const auto row = [&](auto* of, int64_t c) {
        return of + c / kTileRows * steps_of(d) * 3 * kTileBytes + c % kTileRows * kTileInputs;
    };
    for (int64_t i = 0; i < count; ++i)
        for (int64_t part = 0; part < steps_of(d) * 3; ++part)
            std::memcpy(row(out, i) + part * kTileBytes, row(packed, centroids[i]) + part * kTileBytes, kTileInputs);
}

// sums int32 [3][16][16] of 16 centroids with 16 query tokens, by the weight of the digits: the first times the first;
// first times second; first times third and second times second.
inline void centroid_products(const int8_t* centroids, const int8_t* query, int64_t steps, int32_t* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t s = 0; s < steps; ++s) {
        const int8_t* a = centroids + s * 3 * kTileBytes;
        const int8_t* b = query + s * 6 * kColumnTile;
        _tile_loadd(3, a, 64);
        _tile_loadd(4, a + kTileBytes, 64);
        _tile_loadd(5, a + 2 * kTileBytes, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + 2 * kColumnTile, 64);
        _tile_dpbssd(0, 3, 6);
        _tile_dpbssd(1, 4, 6);
        _tile_dpbssd(2, 5, 6);
        _tile_loadd(6, b + 4 * kColumnTile, 64);
        _tile_dpbssd(1, 3, 7);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(2, 3, 6);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
}

void centroid_scores(const int8_t* packed, const float* steps, int64_t k, int64_t d, const float* query, int64_t tokens,
                     int64_t stride, float* out, float* range) {
    const int64_t count = steps_of(d);
    const int64_t group_bytes = count * 6 * kColumnTile;
    Aligned<int8_t> columns(stride / kRow * group_bytes);
    Aligned<float> scales(stride, 0.0f), least(stride, range[0]), most(stride, range[1]);
    for (int64_t q = 0; q < tokens; ++q) {
        scales[q] = step_of(query + q * d, d, 3);
        const float inverse = 1.0f / scales[q];
        for (int64_t i = 0; i < d; ++i)
            split<3>(whole(query[q * d + i], inverse),
                     columns.data() + q / kRow * group_bytes + query_place(i, q % kRow, 3), 2 * kColumnTile);
        scales[q] *= 1 << 2 * kDigitBits;  // of the lowest sums that are kept
    }
    const Tiles tiles;
    alignas(64) int32_t sums[3][16][16];
    for (int64_t c = 0; c < k; c += kTileRows) {
        const int64_t rows = std::min(kTileRows, k - c);
        for (int64_t q = 0; q < stride; q += 16) {
            stored();
            centroid_products(packed + c / kTileRows * count * 3 * kTileBytes,
                              columns.data() + q / kRow * group_bytes + q % kRow / 16 * kColumnTile, count, sums[0][0]);
            stored();
            const Vec scale = load(scales.data() + q);
            Vec low = load(least.data() + q), high = load(most.data() + q);
            for (int64_t r = 0; r < rows; ++r) {
                const auto part = [&](int i) { return __builtin_convertvector(*reinterpret_cast<const Whole*>(sums[i][r]), Vec); };
                const Vec sum = (part(0) * 128.0f + part(1)) * 128.0f + part(2);
                const Vec score = sum * (scale * steps[c + r]);
                low = score < low ? score : low;
                high = score > high ? score : high;
                store(out + (c + r) * stride + q, score);
            }
            store(least.data() + q, low);
            store(most.data() + q, high);
        }
    }
    for (int64_t q = 0; q < tokens; ++q) {
        range[0] = std::min(range[0], least[q]);
        range[1] = std::max(range[1], most[q]);
    }
}

// ---- The nearest centroids

// Of 16 rows with 32 columns: upper, the sums of the first digits' products; lower, of a first with a second digit.
// a: [steps][2 digits] tiles of rows; b: as `query_place` lays out two digits.
inline void two_digit_products(const int8_t* a, const int8_t* b, int64_t steps, int32_t (*upper)[kRow],
                               int32_t (*lower)[kRow]) {
    stored();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s, a += 2 * kTileBytes, b += 4 * kColumnTile) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + kColumnTile, 64);
        _tile_loadd(5, a + kTileBytes, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
        _tile_loadd(6, b + 2 * kColumnTile, 64);
        _tile_loadd(7, b + 3 * kColumnTile, 64);
        _tile_dpbssd(2, 4, 6);
        _tile_dpbssd(3, 4, 7);
    }
    _tile_stored(0, upper[0], 128);
    _tile_stored(1, upper[0] + 16, 128);
    _tile_stored(2, lower[0], 128);
    _tile_stored(3, lower[0] + 16, 128);
    stored();
}

// The sums of both, in steps of the first digit times the second: at most 1,024 * 127 * (127 * 128 + 2 * 64), within 32 bits.
inline __m512i joined(const int32_t* upper, const int32_t* lower) {
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(upper), kDigitBits), _mm512_load_si512(lower));
}

constexpr int64_t kTogether = 256;  // vectors that go past a centroid while it is in the nearest cache

int64_t bytes_in_two_digits(int64_t k, int64_t d) { return packed_bytes(k, d, 2); }

void pack_in_two_digits(const float* centroids, int64_t k, int64_t d, int8_t* packed, float* steps) {
    pack_rows<2>(centroids, k, d, packed, steps);
}

void nearest(const int8_t* packed, const float* steps, const float*, const float* offsets, int64_t k, int64_t d,
             const float* vectors, int64_t n, uint32_t* found) {
    const int64_t count = steps_of(d), group_bytes = count * 4 * kColumnTile;
    Aligned<int8_t> columns(kTogether / kRow * group_bytes);
    Aligned<float> scales(kTogether), best(kTogether);
    Aligned<uint32_t> chosen(kTogether);
    alignas(64) int32_t upper[kTileRows][kRow], lower[kTileRows][kRow];
    const Tiles tiles;
    for (int64_t first = 0; first < n; first += kTogether) {
        const int64_t here = std::min(kTogether, n - first), groups = (here + kRow - 1) / kRow;
        std::fill(columns.begin(), columns.end(), int8_t{0});
        std::fill(scales.begin(), scales.end(), 0.0f);
        std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
        std::fill(chosen.begin(), chosen.end(), uint32_t{0});
        for (int64_t i = 0; i < here; ++i) {
            const float* vector = vectors + (first + i) * d;
            const float step = step_of(vector, d, 2), inverse = 1.0f / step;
            scales[i] = step * (1 << kDigitBits);
            for (int64_t j = 0; j < d; ++j)
                split<2>(whole(vector[j], inverse), columns.data() + i / kRow * group_bytes + query_place(j, i % kRow, 2),
                         2 * kColumnTile);
        }
        for (int64_t c = 0; c < k; c += kTileRows) {
            const int64_t rows = std::min(kTileRows, k - c);
            const int8_t* centroids = packed + c / kTileRows * count * 2 * kTileBytes;
            for (int64_t g = 0; g < groups; ++g) {
                two_digit_products(centroids, columns.data() + g * group_bytes, count, upper, lower);
                for (int64_t i = g * kRow; i < (g + 1) * kRow; i += 16) {
                    __m512 high = _mm512_load_ps(best.data() + i);
                    __m512i which = _mm512_load_si512(chosen.data() + i);
                    const __m512 scale = _mm512_load_ps(scales.data() + i);
                    for (int64_t r = 0; r < rows; ++r) {
                        const __m512 sum = _mm512_cvtepi32_ps(joined(upper[r] + i % kRow, lower[r] + i % kRow));
                        const __m512 score = _mm512_fmsub_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(steps[c + r])),
                                                             _mm512_set1_ps(offsets[c + r]));
                        const __mmask16 more = _mm512_cmp_ps_mask(score, high, _CMP_GT_OQ);
                        high = _mm512_mask_mov_ps(high, more, score);
                        which = _mm512_mask_set1_epi32(which, more, static_cast<int32_t>(c + r));
                    }
                    _mm512_store_ps(best.data() + i, high);
                    _mm512_store_si512(chosen.data() + i, which);
                }
            }
        }
        std::copy(chosen.begin(), chosen.begin() + here, found + first);
    }
}

// ---- Residuals

static_assert(kInputs == kTileInputs);

// Query tokens and the residuals' weights in two digits.
class DigitSums {
  public:
    DigitSums(const ResidualQuery& query, int64_t first, const PackedTokens& index)
        : spread_(index.width, index.per_byte), spreader_(spread_), query_(spread_.steps * 4 * kColumnTile),
          unpacked_(spread_.steps * 2 * kTileBytes) {
        const int64_t d = index.dimensions, count = 1 << spread_.nbits;
        const float weight_step = step_of(query.weights, count, 2), weight_inverse = 1.0f / weight_step;
        for (int64_t value = 0; value < count; ++value) {
            // The bucket behind a value in a byte's lowest bits, which are its last dimension's.
            const uint8_t bucket = query.buckets[(value + 1) * spread_.per_byte - 1];
            int8_t digits[2];
            split<2>(whole(query.weights[bucket], weight_inverse), digits, 1);
            for (int lane = 0; lane < 64; lane += 16) {
                high_[lane + value] = digits[0];
                low_[lane + value] = digits[1];
            }
        }
        const int64_t tokens = std::min<int64_t>(kRow, query.tokens - first);
        float inverse[kRow];
        for (int64_t q = 0; q < tokens; ++q) {
            const float step = step_of(query.query + (first + q) * d, d, 2);
            inverse[q] = 1.0f / step;
            scale_[q] = step * weight_step * (1 << kDigitBits);
        }
        for (int64_t i = 0; i < spread_.steps * kTileInputs; ++i) {
            const int64_t dimension = spread_.dimension(i);
            if (dimension < 0) continue;
            for (int64_t q = 0; q < tokens; ++q)
                split<2>(whole(query.query[(first + q) * d + dimension], inverse[q]),
                         query_.data() + query_place(i, q, 2), 2 * kColumnTile);
        }
    }

    void fill(const PackedTokens& index, const int64_t* tokens, int count, int32_t (*sums)[kRow]) {
        for (int first = 0; first < count; first += kTileRows) {
            const int rows = std::min<int>(kTileRows, count - first);
            for (int r = 0; r < rows; ++r) unpack_row(index.residuals + tokens[first + r] * index.width, r);
            two_digit_products(unpacked_.data(), query_.data(), spread_.steps, upper_, lower_);
            for (int r = 0; r < rows; ++r)
                for (int half = 0; half < kRow; half += 16)
                    _mm512_storeu_si512(sums[first + r] + half, joined(upper_[r] + half, lower_[r] + half));
        }
    }

    const float* scale() const { return scale_; }
    const float* bias() const { return bias_; }

  private:
    void unpack_row(const uint8_t* packed, int row) {
        const __m512i high = _mm512_load_si512(high_), low = _mm512_load_si512(low_);
        int8_t* const first = unpacked_.data() + row * kTileInputs;
        spreader_.unpack(packed, [&](int64_t step, __m512i values) {
            int8_t* to = first + step * 2 * kTileBytes;
            _mm512_store_si512(to, _mm512_shuffle_epi8(high, values));
            _mm512_store_si512(to + kTileBytes, _mm512_shuffle_epi8(low, values));
        });
    }

    const Spread spread_;
    const Spreader spreader_;
    Aligned<int8_t> query_, unpacked_;
    alignas(64) int8_t high_[64] = {}, low_[64] = {};
    alignas(64) int32_t upper_[kTileRows][kRow], lower_[kTileRows][kRow];
    float scale_[kRow] = {}, bias_[kRow] = {};
};

bool maxsim_by_digits(const ResidualQuery& query, const PackedTokens& index, const int64_t* starts,
                      const int64_t* lengths, int64_t windows, float* scores) {
    std::fill(scores, scores + windows, 0.0f);
    const Tiles tiles;
    for (int64_t first = 0; first < query.tokens; first += kRow) {
        DigitSums sums(query, first, index);
        const Group group{sums.scale(), sums.bias(), query.centroid_scores + first, query.stride,
                          std::min<int64_t>(kRow, query.tokens - first)};
        if (!Pass<DigitSums>(sums, group, index, scores).run(starts, lengths, windows)) return false;
    }
    return true;
}

}  // namespace

extern const DigitKernels digit_table;
const DigitKernels digit_table{packed_bytes, pack_centroids, centroid_scores, gather_centroids, maxsim_by_digits};
extern const NearestKernels nearest_table;
const NearestKernels nearest_table{bytes_in_two_digits, pack_in_two_digits, nearest};

}  // namespace HR_VARIANT
}  // namespace hr
