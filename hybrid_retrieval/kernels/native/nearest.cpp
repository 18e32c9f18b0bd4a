// The nearest centroid of each vector by products of bytes (vpdpbusd): estimates with a bound on what they are wrong by
// leave a few centroids that may be the nearest, and float32 decides among them.
//
// A vector v is step * V and a centroid c is unit * C, V and C whole numbers of 8 bits. So v.c = step * unit * V.C + error,
// and |error| <= |v - step * V| |c| + |step * V| |c - unit * C|.
#include <algorithm>
#include <cmath>
#include <limits>

#include "aligned.h"
#include "bytes.h"
#include "variants.h"
#include "vectors.h"

namespace hr {
namespace HR_VARIANT {
namespace {

constexpr int64_t kTogether = 256;  // vectors that go past centroids while these are in the nearest cache
// What float32 rounds at most: of a product of vectors of length 1, and of half the square of a centroid of length 1.
constexpr float kRounding = 1e-5f, kSquareRounding = 1e-6f;

// Packed: of every kColumns centroids the bytes, as columns stand, and a `Facts`.
struct Facts {
    int32_t sums[kColumns];
    float missed[kColumns], lengths[kColumns];
};

int64_t block_bytes(int64_t d) { return in_fours(d) * kColumns + static_cast<int64_t>(sizeof(Facts)); }

int64_t packed_bytes(int64_t k, int64_t d) { return (k + kColumns - 1) / kColumns * block_bytes(d); }

void pack(const float* centroids, int64_t k, int64_t d, int8_t* packed, float* steps) {
    for (int64_t first = 0; first < k; first += kColumns, packed += block_bytes(d)) {
        Facts facts{};
        for (int64_t c = 0; c < std::min<int64_t>(kColumns, k - first); ++c) {
            const Level level = put_levels(centroids + (first + c) * d, d, [&](int64_t i, int32_t number) {
                packed[column_place(i, c)] = static_cast<int8_t>(number);
            });
            steps[first + c] = level.step;
            facts.sums[c] = level.sum;
            facts.missed[c] = level.missed;
            facts.lengths[c] = level.length;
        }
        std::memcpy(packed + in_fours(d) * kColumns, &facts, sizeof facts);
    }
}

struct Candidate {
    float score;
    uint32_t centroid;
};

inline float dot(const float* a, const float* b, int64_t d) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += kLanes) {
        const __mmask16 some = d - i < kLanes ? static_cast<__mmask16>((1u << (d - i)) - 1) : static_cast<__mmask16>(~0u);
        sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, a + i), _mm512_maskz_loadu_ps(some, b + i), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

class Search {
  public:
    Search(const int8_t* packed, const float* steps, const float* centroids, const float* offsets, int64_t k, int64_t d)
        : packed_(packed), centroids_(centroids), offsets_(offsets), k_(k), d_(d), inputs_(in_fours(d)),
          levels_(kTogether * inputs_), units_((k + kColumns - 1) / kColumns * kColumns, 0.0f),
          ends_(units_.size(), std::numeric_limits<float>::infinity()) {
        std::copy(steps, steps + k, units_.begin());
        std::copy(offsets, offsets + k, ends_.begin());  // infinite where there is no centroid: never near
        for (int64_t first = 0; first < k; first += kColumns) {
            Facts facts;
            std::memcpy(&facts, packed + first / kColumns * block_bytes(d) + inputs_ * kColumns, sizeof facts);
            longest_ = std::max(longest_, *std::max_element(facts.lengths, facts.lengths + kColumns));
            missed_ = std::max(missed_, *std::max_element(facts.missed, facts.missed + kColumns));
        }
    }

    // found [count <= kTogether]
    void run(const float* vectors, int64_t count, uint32_t* found) {
        std::fill(levels_.begin(), levels_.end(), uint8_t{128});
        for (int64_t i = 0; i < count; ++i) {
            uint8_t* to = levels_.data() + i * inputs_;
            const Level level = put_levels(vectors + i * d_, d_, [&](int64_t j, int32_t number) {
                to[j] = static_cast<uint8_t>(number + 128);
            });
            const float wrong = level.missed * longest_ + (level.length + level.missed) * missed_ +
                                (kRounding * level.length + kSquareRounding * longest_) * longest_;
            steps_[i] = level.step;
            margins_[i] = 2 * wrong;
            best_[i] = -std::numeric_limits<float>::infinity();
            candidates_[i].clear();
        }
        for (int64_t first = 0; first < k_; first += kColumns)
            for (int64_t i = 0; i < count; i += kShared) compare(first, i, std::min<int64_t>(kShared, count - i));
        for (int64_t i = 0; i < count; ++i) found[i] = decide(vectors + i * d_, i);
    }

  private:
    void compare(int64_t first, int64_t from, int64_t count) {
        const int8_t* block = packed_ + first / kColumns * block_bytes(d_);
        alignas(64) int32_t sums[kShared][kColumns];
        byte_products<kShared, 2>(levels_.data() + from * inputs_, inputs_, block, sums);
        for (int half = 0; half < 2; ++half) {
            const int64_t at = first + half * kLanes;
            // The vectors' bytes are 128 too large.
            const __m512i extra = _mm512_slli_epi32(
                _mm512_load_si512(block + inputs_ * kColumns + half * kLanes * sizeof(int32_t)), 7);
            const __m512 unit = _mm512_loadu_ps(units_.data() + at), end = _mm512_loadu_ps(ends_.data() + at);
#pragma GCC unroll 8
            for (int t = 0; t < kShared; ++t) {
                if (t >= count) break;
                const int64_t i = from + t;
                const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums[t] + half * kLanes), extra);
                const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), unit);
                const __m512 score = _mm512_fmsub_ps(product, _mm512_set1_ps(steps_[i]), end);
                __mmask16 open = _mm512_cmp_ps_mask(score, _mm512_set1_ps(best_[i] - margins_[i]), _CMP_GE_OQ);
                if (open) keep(i, at, score, open);
            }
        }
    }

    void keep(int64_t i, int64_t at, __m512 scores, unsigned open) {
        alignas(64) float values[kLanes];
        _mm512_store_ps(values, scores);
        for (; open; open &= open - 1) {
            const int lane = __builtin_ctz(open);
            if (at + lane >= k_) break;
            best_[i] = std::max(best_[i], values[lane]);
            candidates_[i].push_back({values[lane], static_cast<uint32_t>(at + lane)});
        }
    }

    // The first of those whose product less their offset is largest.
    uint32_t decide(const float* vector, int64_t i) const {
        uint32_t chosen = 0;
        float most = -std::numeric_limits<float>::infinity();
        const float least = best_[i] - margins_[i];
        for (const Candidate& candidate : candidates_[i]) {
            if (candidate.score < least) continue;
            const float score = dot(vector, centroids_ + candidate.centroid * d_, d_) - offsets_[candidate.centroid];
            if (score > most) {
                most = score;
                chosen = candidate.centroid;
            }
        }
        return chosen;
    }

    const int8_t* packed_;
    const float *centroids_, *offsets_;
    const int64_t k_, d_, inputs_;
    Aligned<uint8_t> levels_;  // [kTogether][inputs]
    Aligned<float> units_, ends_;
    float longest_ = 0, missed_ = 0;
    float steps_[kTogether], margins_[kTogether], best_[kTogether];
    Aligned<Candidate> candidates_[kTogether];
};

void nearest(const int8_t* packed, const float* steps, const float* centroids, const float* offsets, int64_t k, int64_t d,
             const float* vectors, int64_t n, uint32_t* found) {
    Search search(packed, steps, centroids, offsets, k, d);
    for (int64_t first = 0; first < n; first += kTogether)
        search.run(vectors + first * d, std::min(kTogether, n - first), found + first);
}

}  // namespace

extern const NearestKernels nearest_table;
const NearestKernels nearest_table{packed_bytes, pack, nearest};

}  // namespace HR_VARIANT
}  // namespace hr
