// MaxSim from packed residuals to about a thousandth, by products of bytes, with a bound on what each estimate
// is wrong by: so cheap that it pays to estimate every window and to score only those exactly that may be among the best.
//
// A query token q is step * Q, Q whole numbers of 8 bits, and a residual w is offset + unit * L, L of 0 to 255. So
// q.w = offset * sum(step * Q) + step * unit * Q.L + error, and |error| <= |q - step * Q| |w| + sum |step * Q| * e, where
// e is the most that a weight differs from its level. What exact scores round (lookup.cpp, digits.cpp) is added: the bound
// is on the difference from these.
//
// The centroids' scores on 256 levels, which choose and prune, come from bytes as well.
#include "products.h"
#include "windows.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// What float32 rounds in a similarity, at most, for a query token and a residual of length 1 each; more than it ever is.
constexpr float kRounding = 1e-4f;

static_assert(kRow == kColumns);

class EstimatedSums {
  public:
    EstimatedSums(const ResidualQuery& query, int64_t first, const PackedTokens& index)
        : few_(query.tokens - first <= kRow / 2), spread_(index.width, index.per_byte), spreader_(spread_),
          query_(spread_.steps * kInputs * kRow), unpacked_(spread_.steps * kInputs * kTogether * 2) {
        const float wrong = fit_levels(query.weights, query.buckets);
        float largest = 0, range = 0;
        for (int64_t b = 0; b < 1 << spread_.nbits; ++b) {
            largest = std::max(largest, std::fabs(query.weights[b]));
            range = std::max(range, query.weights[b] - offset_);
        }
        const int64_t d = index.dimensions, tokens = std::min<int64_t>(kRow, query.tokens - first);
        const float residual = largest * std::sqrt(static_cast<float>(d));  // the longest that one can be
        Aligned<int64_t> inputs(d);  // where each dimension is spread to
        for (int64_t i = 0; i < spread_.steps * kInputs; ++i)
            if (spread_.dimension(i) >= 0) inputs[spread_.dimension(i)] = i;
        for (int64_t q = 0; q < tokens; ++q) {
            const Level level = put_levels(query.query + (first + q) * d, d, [&](int64_t i, int32_t number) {
                query_[column_place(inputs[i], q)] = static_cast<int8_t>(number);
            });
            scale_[q] = level.step * unit_;
            bias_[q] = offset_ * level.step * static_cast<float>(level.sum);
            // It counts as zeros, here and perhaps in the scores of the centroids, which are of length 1.
            if (level.missed >= level.length) {
                error_ += level.length * (1 + residual);
                continue;
            }
            // A sum of D sizes is at most sqrt(D) times the length.
            const float rounded = (level.length + level.missed) * std::sqrt(static_cast<float>(d)) * wrong;
            error_ += level.missed * residual + rounded + kRounding * level.length * (1 + residual);
            error_ += rounded_exactly(query.query + (first + q) * d, level, residual, range, index);
        }
    }

    void fill(const PackedTokens& index, const int64_t* tokens, int count, int32_t (*sums)[kRow]) {
        const int64_t inputs = spread_.steps * kInputs, block = inputs * kTogether;
        const __m512i levels = _mm512_load_si512(levels_);
        const auto unpack = [&](int64_t first) {
            uint8_t* const rows = unpacked_.data() + first / kTogether % 2 * block;
            for (int64_t t = 0; t < std::min<int64_t>(kTogether, count - first); ++t) {
                uint8_t* const to = rows + row_place(t, 0, inputs);
                spreader_.unpack(index.residuals + tokens[first + t] * index.width, [&](int64_t step, __m512i values) {
                    _mm512_store_si512(to + row_place(0, step * kInputs, inputs), _mm512_shuffle_epi8(levels, values));
                });
            }
        };
        // The next rows before the products of these: a load across stores that are still on their way would wait for them.
        if (count) unpack(0);
        for (int64_t first = 0; first < count; first += kTogether) {
            if (first + kTogether < count) unpack(first + kTogether);
            products(unpacked_.data() + first / kTogether % 2 * block, std::min<int64_t>(kTogether, count - first), inputs,
                     query_.data(), few_, sums + first);
        }
    }

    const float* scale() const { return scale_; }
    const float* bias() const { return bias_; }
    // What the estimates of a token with inverse norm 1 are wrong by at most, in all of the group's query tokens together.
    float error() const { return error_; }

  private:
    // What exact scores are wrong by at most, of one query token with a residual that is no longer than `residual`.
    static float rounded_exactly(const float* values, const Level& level, float residual, float range,
                                 const PackedTokens& index) {
#if defined(__AMX_INT8__)
        // Two digits (digits.cpp): half a step of 1 / 16,256 of the largest number on either side, and the product of the
        // lower digits, of which the query's are what its levels missed and a weight's at most 64 steps.
        (void)values, (void)range;
        const float steps = std::sqrt(static_cast<float>(index.dimensions)) * level.step / 256;
        return residual * (level.missed * (64.0f / 16256) + steps + level.length / 32512);
#else
        (void)level, (void)residual;
        // Tables (tables.cpp): half a step for each half byte.
        const int64_t together = kSummed / 2 * index.per_byte;
        float largest = 0;  // sum of sizes of values that are summed
        for (int64_t i = 0; i < index.dimensions; i += together) {
            float sum = 0;
            for (int64_t j = i; j < std::min(index.dimensions, i + together); ++j) sum += std::fabs(values[j]);
            largest = std::max(largest, sum);
        }
        return static_cast<float>(index.width) * range * largest / (65535 - 2 * kSummed);
#endif
    }

    // Weights on levels, as many of 128 to 255 as fit them best; returns what they are wrong by at most.
    float fit_levels(const float* weights, const uint8_t* buckets) {
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
    Aligned<uint8_t> unpacked_;  // twice kTogether rows
    alignas(64) uint8_t levels_[64] = {};
    float offset_ = 0, unit_ = 1, error_ = 0;
    float scale_[kRow] = {}, bias_[kRow] = {};
};

bool estimate(const ResidualQuery& query, const PackedTokens& index, const int64_t* starts, const int64_t* lengths,
              int64_t windows, float* scores, float* errors) {
    std::fill(scores, scores + windows, 0.0f);
    std::fill(errors, errors + windows, 0.0f);
    [[maybe_unused]] const Products ready;
    for (int64_t first = 0; first < query.tokens; first += kRow) {
        EstimatedSums sums(query, first, index);
        const Group group{sums.scale(), sums.bias(), query.centroid_scores + first, query.stride,
                          std::min<int64_t>(kRow, query.tokens - first)};
        if (!Pass<EstimatedSums>(sums, group, index, scores, Errors{sums.error(), errors}).run(starts, lengths, windows))
            return false;
    }
    return true;
}

// Rows of bytes, 128 too large, as `products` reads them.
int64_t packed_bytes(int64_t k, int64_t d) { return (k + kTogether - 1) / kTogether * kTogether * inputs_of(d); }

void pack(const float* centroids, int64_t k, int64_t d, uint8_t* rows, float* steps) {
    const int64_t inputs = inputs_of(d);
    std::fill(rows, rows + packed_bytes(k, d), uint8_t{128});
    for (int64_t c = 0; c < k; ++c)
        steps[c] = put_levels(centroids + c * d, d, [&](int64_t i, int32_t number) {
                       rows[row_place(c, i, inputs)] = static_cast<uint8_t>(number + 128);
                   }).step;
}

// Scores of centroids with up to kColumns query tokens.
class LevelScores {
  public:
    LevelScores(const float* query, int64_t tokens, int64_t d) : inputs_(inputs_of(d)), columns_(inputs_ * kColumns) {
        for (int64_t q = 0; q < tokens; ++q) {
            const Level level = put_levels(query + q * d, d, [&](int64_t i, int32_t number) {
                columns_[column_place(i, q)] = static_cast<int8_t>(number);
            });
            scale_[q] = level.step;
            bias_[q] = -128.0f * level.step * static_cast<float>(level.sum);
        }
    }

    // take(centroid, q, score): of every centroid the scores with query tokens q to q + kLanes
    template <typename Take>
    void scan(const uint8_t* rows, const float* steps, int64_t k, const Take& take) const {
        alignas(64) int32_t sums[kTogether][kColumns];
        for (int64_t c = 0; c < k; c += kTogether, rows += kTogether * inputs_) {
            const int64_t count = std::min<int64_t>(kTogether, k - c);
            products(rows, count, inputs_, columns_.data(), false, sums);
            for (int64_t t = 0; t < count; ++t)
                for (int q = 0; q < kColumns; q += kLanes) {
                    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[t] + q));
                    const __m512 product = _mm512_fmadd_ps(_mm512_loadu_ps(scale_ + q), sum, _mm512_loadu_ps(bias_ + q));
                    take(c + t, q, _mm512_mul_ps(product, _mm512_set1_ps(steps[c + t])));
                }
        }
    }

  private:
    const int64_t inputs_;
    Aligned<int8_t> columns_;
    float scale_[kColumns] = {}, bias_[kColumns] = {};
};

// Scores are scanned twice, for their range and for their levels: that costs less than to keep them.
void level_table(const uint8_t* rows, const float* steps, int64_t k, int64_t d, const float* query, int64_t tokens,
                 int64_t stride, uint8_t* table, float* range) {
    [[maybe_unused]] const Products ready;
    const auto each_group = [&](const auto& work) {
        for (int64_t first = 0; first < stride; first += kColumns) {
            const int64_t here = std::min<int64_t>(kColumns, tokens - first);
            work(first, here, LevelScores(query + first * d, here, d));
        }
    };
    each_group([&](int64_t, int64_t here, const LevelScores& group) {
        alignas(64) float low[kColumns], high[kColumns];
        std::fill(low, low + kColumns, std::numeric_limits<float>::infinity());
        std::fill(high, high + kColumns, -std::numeric_limits<float>::infinity());
        group.scan(rows, steps, k, [&](int64_t, int q, __m512 score) {
            _mm512_store_ps(low + q, _mm512_min_ps(_mm512_load_ps(low + q), score));
            _mm512_store_ps(high + q, _mm512_max_ps(_mm512_load_ps(high + q), score));
        });
        range[0] = std::min(range[0], *std::min_element(low, low + here));
        range[1] = std::max(range[1], *std::max_element(high, high + here));
    });
    const __m512 least = _mm512_set1_ps(range[0]), most = _mm512_set1_ps(255.0f), half = _mm512_set1_ps(0.5f);
    const __m512 factor = _mm512_set1_ps(255.0f / std::max(range[1] - range[0], 1e-9f));
    each_group([&](int64_t first, int64_t here, const LevelScores& group) {
        const uint32_t real = ~uint32_t{0} >> (kColumns - here);
        group.scan(rows, steps, k, [&](int64_t c, int q, __m512 score) {
            const __m512 level = _mm512_min_ps(_mm512_fmadd_ps(_mm512_sub_ps(score, least), factor, half), most);
            const __m128i bytes =
                _mm512_maskz_cvtusepi32_epi8(static_cast<__mmask16>(real >> q), _mm512_cvttps_epi32(level));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(table + c * stride + first + q), bytes);
        });
    });
}

}  // namespace

extern const EstimateKernels estimate_table;
const EstimateKernels estimate_table{estimate, packed_bytes, pack, level_table};

}  // namespace HR_VARIANT
}  // namespace hr
