// MaxSim of windows of packed tokens for kernels that sum q.w, the query tokens' products with the residuals, in whole
// numbers: batches of tokens across the windows, and from the sums the similarities and their maxima.
//
// A token's vector is (c + w) / |c + w|, c its centroid and w its residual; q.c is known for every centroid.
#pragma once

#include <algorithm>
#include <limits>

#include "aligned.h"
#include "norms.h"
#include "simd.h"
#include "tables.h"
#include "vectors.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// Tokens whose sums are made together; tokens whose centroid's scores are fetched while those before them are read.
constexpr int kBatch = kMostNorms, kAhead = 16;

typedef int32_t Whole __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

// A group of kRow query tokens: q.w = bias + scale * the sum that a kernel makes for it.
struct Group {
    const float *scale, *bias;     // [kRow]
    const float* centroid_scores;  // [K, stride]: the group's columns
    int64_t stride, tokens;        // tokens: of the group
};

// What a window's score is wrong by at most: `each` times the largest inverse norm of its tokens.
struct Errors {
    float each;
    float* windows;  // null where nobody asks
};

// One group against all windows; adds the sums of its maxima to scores, and what they are wrong by to errors. `Sums` has
//     void fill(const PackedTokens&, const int64_t* tokens, int count, int32_t (*sums)[kRow])
template <typename Sums>
class Pass {
  public:
    Pass(Sums& sums, const Group& group, const PackedTokens& index, float* scores, Errors errors = {0, nullptr})
        : sums_(sums), group_(group), index_(index), scores_(scores), errors_(errors),
          scratch_(kUnpacked * index.dimensions) {
        reset();
    }

    // false for a code that is no centroid's
    bool run(const int64_t* starts, const int64_t* lengths, int64_t windows) {
        for (int64_t w = 0; w < windows; ++w) {
            if (lengths[w] == 0) scores_[w] = -std::numeric_limits<float>::infinity();
            for (int64_t token = starts[w]; token < starts[w] + lengths[w]; ++token) {
                if (index_.codes[token] >= index_.num_centroids) return false;
                for (int64_t line = 0; line < index_.width; line += 64)  // on its way when the batch is complete
                    __builtin_prefetch(index_.residuals + token * index_.width + line);
                tokens_[count_] = token;
                owners_[count_++] = w;
                if (count_ == kBatch) flush();
            }
        }
        flush();
        finish();
        return true;
    }

  private:
    void flush() {
        const int count = count_;
        sums_.fill(index_, tokens_, count, values_);
        float factors[kBatch];
        inverse_norms(index_, tokens_, count, scratch_.data(), factors);
        const float* centroids[kBatch];
        for (int i = 0; i < count; ++i)
            centroids[i] = group_.centroid_scores + index_.codes[tokens_[i]] * group_.stride;
        if (group_.tokens > kRow / 2)
            raise<kRow>(count, factors, centroids);
        else
            raise<kRow / 2>(count, factors, centroids);
        count_ = 0;
    }

    // The maxima of the first `columns` query tokens, by the sums of `count` tokens.
    template <int columns>
    void raise(int count, const float* factors, const float* const* centroids) {
        for (int i = 0; i < count;) {
            if (owners_[i] != window_) finish();
            window_ = owners_[i];
            Vec best[columns / kLanes];
            for (int v = 0; v < columns / kLanes; ++v) best[v] = load(best_ + v * kLanes);
            for (; i < count && owners_[i] == window_; ++i) {
                const float factor = factors[i];
                largest_ = std::max(largest_, factor);
                const float* centroid = centroids[i];
                if (i + kAhead < count)
                    for (int q = 0; q < columns; q += 16) __builtin_prefetch(centroids[i + kAhead] + q);
                for (int v = 0; v < columns / kLanes; ++v) {
                    const int q = v * kLanes;
                    const Whole sums = *reinterpret_cast<const Whole*>(values_[i] + q);
                    const Vec s = ((load(centroid + q) + load(group_.bias + q)) +
                                   load(group_.scale + q) * __builtin_convertvector(sums, Vec)) * factor;
                    best[v] = s > best[v] ? s : best[v];
                }
            }
            for (int v = 0; v < columns / kLanes; ++v) store(best_ + v * kLanes, best[v]);
        }
    }

    // The window in hand is complete.
    void finish() {
        if (window_ >= 0) {
            float sum = 0;
            for (int64_t q = 0; q < group_.tokens; ++q) sum += best_[q];
            scores_[window_] += sum;
            if (errors_.windows) errors_.windows[window_] += errors_.each * largest_;
        }
        reset();
    }

    void reset() {
        std::fill(best_, best_ + kRow, -std::numeric_limits<float>::infinity());
        largest_ = 0;
    }

    Sums& sums_;
    const Group group_;
    const PackedTokens& index_;
    float* scores_;
    const Errors errors_;
    Aligned<int16_t> scratch_;
    int count_ = 0;
    int64_t tokens_[kBatch], owners_[kBatch], window_ = -1;
    alignas(64) int32_t values_[kBatch][kRow];
    float best_[kRow], largest_;
};

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
