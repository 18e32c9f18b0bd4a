// MaxSim from packed residuals to about a thousandth, by products of bytes (vpdpbusd), with a bound on what each estimate
// is wrong by: so cheap that it pays to estimate every window and to score only those exactly that may be among the best.
//
// A query token q is step * Q, Q whole numbers of 8 bits, and a residual w is offset + unit * L, L of 0 to 255. So
// q.w = offset * sum(step * Q) + step * unit * Q.L + error, and |error| <= |q - step * Q| |w| + sum |step * Q| * e, where
// e is the most that a weight differs from its level.
#include <cmath>

#include "bytes.h"
#include "spread.h"
#include "windows.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// Exact scores are rounded too: to about 1e-6 of a similarity, more where vectors are odd.
constexpr float kRounding = 1e-4f;

static_assert(kRow == kColumns);

class EstimatedSums {
  public:
    EstimatedSums(const ResidualQuery& query, int64_t first, const PackedTokens& index)
        : few_(query.tokens - first <= kRow / 2), spread_(index.width, index.per_byte), spreader_(spread_), query_(spread_.steps * kInputs * kRow),
          unpacked_(spread_.steps * kInputs * kShared) {
        const float wrong = put_levels(query.weights, query.buckets);
        float largest = 0;
        for (int64_t b = 0; b < 1 << spread_.nbits; ++b) largest = std::max(largest, std::fabs(query.weights[b]));
        const int64_t d = index.dimensions, tokens = std::min<int64_t>(kRow, query.tokens - first);
        const double residual = largest * std::sqrt(static_cast<double>(d));  // the longest that one can be
        for (int64_t q = 0; q < tokens; ++q) {
            const float* vector = query.query + (first + q) * d;
            float top = 0;
            for (int64_t i = 0; i < d; ++i) top = std::max(top, std::fabs(vector[i]));
            // Floats whose step would have no inverse count as zeros.
            const float step = top > 1e-30f ? top / 127.0f : 1.0f, inverse = 1.0f / step;
            int64_t sum = 0, sizes = 0;
            double square = 0, missed = 0;
            for (int64_t i = 0; i < d; ++i) {
                const int32_t level = whole(vector[i], inverse);
                const double rest = vector[i] - static_cast<double>(step) * level;
                sum += level;
                sizes += std::abs(level);
                missed += rest * rest;
                square += static_cast<double>(vector[i]) * vector[i];
            }
            for (int64_t i = 0; i < spread_.steps * kInputs; ++i) {
                const int64_t dimension = spread_.dimension(i);
                if (dimension >= 0)
                    query_[column_place(i, q)] = static_cast<int8_t>(whole(vector[dimension], inverse));
            }
            scale_[q] = step * unit_;
            bias_[q] = offset_ * step * static_cast<float>(sum);
            error_ += static_cast<float>(std::sqrt(missed) * residual + static_cast<double>(step) * sizes * wrong +
                                         kRounding * std::sqrt(square));
        }
    }

    void fill(const PackedTokens& index, const int64_t* tokens, int count, int32_t (*sums)[kRow]) {
        for (int first = 0; first < count; first += kShared) {
            const int here = std::min(kShared, count - first);
            const int64_t inputs = spread_.steps * kInputs;
            const __m512i levels = _mm512_load_si512(levels_);
            for (int t = 0; t < here; ++t) {
                uint8_t* const to = unpacked_.data() + t * inputs;
                spreader_.unpack(index.residuals + tokens[first + t] * index.width, [&](int64_t step, __m512i values) {
                    _mm512_store_si512(to + step * kInputs, _mm512_shuffle_epi8(levels, values));
                });
            }
            if (here < kShared)
                for (int t = 0; t < here; ++t)
                    byte_products<1, 2>(unpacked_.data() + t * inputs, inputs, query_.data(), sums + first + t);
            else if (few_)
                byte_products<kShared, 1>(unpacked_.data(), inputs, query_.data(), sums + first);
            else
                byte_products<kShared, 2>(unpacked_.data(), inputs, query_.data(), sums + first);
        }
    }

    const float* scale() const { return scale_; }
    const float* bias() const { return bias_; }
    // What the estimates of a token with inverse norm 1 are wrong by at most, in all of the group's query tokens together.
    float error() const { return error_; }

  private:
    // Weights on levels, as many of 128 to 255 as fit them best; returns what they are wrong by at most.
    float put_levels(const float* weights, const uint8_t* buckets) {
        const int64_t count = 1 << spread_.nbits;
        const auto [low, high] = std::minmax_element(weights, weights + count);
        offset_ = *low;
        const float range = *high - *low;
        float best = std::numeric_limits<float>::infinity();
        for (int most = range > 1e-30f ? 128 : 255; most < 256; ++most) {
            const float unit = range > 1e-30f ? range / static_cast<float>(most) : 1.0f;
            float wrong = 0;
            for (int64_t b = 0; b < count; ++b) {
                const auto level = static_cast<float>(whole(weights[b] - offset_, 1.0f / unit));
                wrong = std::max(wrong, std::fabs(weights[b] - offset_ - level * unit));
            }
            if (wrong < best) {
                best = wrong;
                unit_ = unit;
            }
        }
        for (int64_t value = 0; value < count; ++value) {
            // The bucket behind a value in a byte's lowest bits, which are its last dimension's.
            const uint8_t bucket = buckets[(value + 1) * spread_.per_byte - 1];
            const auto level = static_cast<uint8_t>(whole(weights[bucket] - offset_, 1.0f / unit_));
            for (int lane = 0; lane < 64; lane += 16) levels_[lane + value] = level;
        }
        return best;
    }

    const bool few_;  // query tokens: at most half a row
    const Spread spread_;
    const Spreader spreader_;
    Aligned<int8_t> query_;
    Aligned<uint8_t> unpacked_;  // [kShared][inputs]
    alignas(64) uint8_t levels_[64] = {};
    float offset_ = 0, unit_ = 1, error_ = 0;
    float scale_[kRow] = {}, bias_[kRow] = {};
};

bool estimate(const ResidualQuery& query, const PackedTokens& index, const int64_t* starts, const int64_t* lengths,
              int64_t windows, float* scores, float* errors) {
    std::fill(scores, scores + windows, 0.0f);
    std::fill(errors, errors + windows, 0.0f);
    for (int64_t first = 0; first < query.tokens; first += kRow) {
        EstimatedSums sums(query, first, index);
        const Group group{sums.scale(), sums.bias(), query.centroid_scores + first, query.stride,
                          std::min<int64_t>(kRow, query.tokens - first)};
        if (!Pass<EstimatedSums>(sums, group, index, scores, Errors{sums.error(), errors}).run(starts, lengths, windows))
            return false;
    }
    return true;
}

}  // namespace

extern const EstimateKernels estimate_table;
const EstimateKernels estimate_table{estimate};

}  // namespace HR_VARIANT
}  // namespace hr
