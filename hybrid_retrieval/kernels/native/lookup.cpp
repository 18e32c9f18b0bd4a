// MaxSim straight from packed residuals of 1, 2 or 4 bits a dimension, by tables instead of products.
//
// A token's vector is (c + w) / |c + w|, c its centroid and w its residual. q.c is known for every centroid, and q.w is
// the sum over the half bytes of the packed residual of what each adds (tables.h), for 32 query tokens at a time: a load
// and an addition for 16 of them where products of unpacked numbers (pmaddwd) would take four multiplications and
// additions at 2 bits. The values have 16 bits; sums of 8 are widened before the next 8, so every sum is exact.
#include <algorithm>
#include <limits>

#include "aligned.h"
#include "norms.h"
#include "simd.h"
#include "tables.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// Tokens that pass through one word's tables (16 KB) together, so that these are read from the nearest cache.
constexpr int kBatch = 128;
constexpr int kAhead = 16;  // tokens whose centroid's scores are fetched while those before them are summed

#if defined(__AVX512BW__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

inline uint64_t load_word(const uint8_t* packed, int64_t bytes) {
    uint64_t word = 0;
    std::memcpy(&word, packed, static_cast<size_t>(bytes));
    return word;
}

// Where byte i of a word is found in it by shifts, the high half byte first.
inline int shift_of(int half) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return 60 - 4 * half;
#else
    return half / 2 * 8 + (half % 2 ? 0 : 4);
#endif
}

// sums int32 [kRow], in order: the values of a word's 16 half bytes by tables [16][16][kRow], added to what is there if
// the word is not the first.
template <bool first>
inline void add_word(uint64_t word, const uint16_t* tables, int32_t* sums) {
#if defined(__AVX512BW__)
    __m512i total = _mm512_setzero_si512(), high = total;
#pragma GCC unroll 2
    for (int part = 0; part < kWord / kSummed; ++part) {
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int i = 0; i < kSummed; ++i) {
            const int half = part * kSummed + i;
            const uint16_t* row = tables + half * 16 * kRow + ((word >> shift_of(half)) & 15) * kRow;
            sum = _mm512_add_epi16(sum, _mm512_loadu_si512(row));
        }
        total = _mm512_add_epi32(total, sum);
        high = _mm512_add_epi32(high, _mm512_srli_epi32(sum, 16));
    }
    const __m512i low = _mm512_sub_epi32(total, _mm512_slli_epi32(high, 16));
    const __m512i parts[2] = {_mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1),
                              _mm512_shuffle_i64x2(low, high, 0xEE)};
    for (int v = 0; v < 2; ++v) {
        __m512i* to = reinterpret_cast<__m512i*>(sums) + v;
        _mm512_storeu_si512(to, first ? parts[v] : _mm512_add_epi32(_mm512_loadu_si512(to), parts[v]));
    }
#elif defined(__AVX2__)
    __m256i* to = reinterpret_cast<__m256i*>(sums);
    __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, high[2] = {total[0], total[0]};
#pragma GCC unroll 2
    for (int part = 0; part < kWord / kSummed; ++part) {
        __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
        for (int i = 0; i < kSummed; ++i) {
            const int half = part * kSummed + i;
            const __m256i* row = reinterpret_cast<const __m256i*>(tables + half * 16 * kRow +
                                                                  ((word >> shift_of(half)) & 15) * kRow);
            sum[0] = _mm256_add_epi16(sum[0], _mm256_loadu_si256(row));
            sum[1] = _mm256_add_epi16(sum[1], _mm256_loadu_si256(row + 1));
        }
        for (int v = 0; v < 2; ++v) {
            total[v] = _mm256_add_epi32(total[v], sum[v]);
            high[v] = _mm256_add_epi32(high[v], _mm256_srli_epi32(sum[v], 16));
        }
    }
    for (int v = 0; v < 2; ++v) {
        const __m256i low = _mm256_sub_epi32(total[v], _mm256_slli_epi32(high[v], 16));
        _mm256_storeu_si256(to + 2 * v, first ? low : _mm256_add_epi32(_mm256_loadu_si256(to + 2 * v), low));
        _mm256_storeu_si256(to + 2 * v + 1,
                            first ? high[v] : _mm256_add_epi32(_mm256_loadu_si256(to + 2 * v + 1), high[v]));
    }
#elif defined(HR_NEON)
    uint32x4_t total[4], high[4];
    for (int v = 0; v < 4; ++v) total[v] = high[v] = vdupq_n_u32(0);
#pragma GCC unroll 2
    for (int part = 0; part < kWord / kSummed; ++part) {
        uint16x8_t sum[4];
        for (int v = 0; v < 4; ++v) sum[v] = vdupq_n_u16(0);
#pragma GCC unroll 8
        for (int i = 0; i < kSummed; ++i) {
            const int half = part * kSummed + i;
            const uint16_t* row = tables + half * 16 * kRow + ((word >> shift_of(half)) & 15) * kRow;
            for (int v = 0; v < 4; ++v) sum[v] = vaddq_u16(sum[v], vld1q_u16(row + 8 * v));
        }
        for (int v = 0; v < 4; ++v) {
            const uint32x4_t pairs = vreinterpretq_u32_u16(sum[v]);
            total[v] = vaddq_u32(total[v], pairs);
            high[v] = vsraq_n_u32(high[v], pairs, 16);
        }
    }
    for (int v = 0; v < 4; ++v) {
        const int32x4_t low = vreinterpretq_s32_u32(vsubq_u32(total[v], vshlq_n_u32(high[v], 16)));
        int32_t* to = sums + v / 2 * 16 + v % 2 * 4;
        const int32x4_t upper = vreinterpretq_s32_u32(high[v]);
        vst1q_s32(to, first ? low : vaddq_s32(vld1q_s32(to), low));
        vst1q_s32(to + 8, first ? upper : vaddq_s32(vld1q_s32(to + 8), upper));
    }
#else
    if (first) std::memset(sums, 0, kRow * sizeof *sums);
    for (int part = 0; part < kWord / kSummed; ++part) {
        uint16_t sum[kRow] = {};
        for (int i = 0; i < kSummed; ++i) {
            const int half = part * kSummed + i;
            const uint16_t* row = tables + (half * 16 + ((word >> shift_of(half)) & 15)) * kRow;
            for (int q = 0; q < kRow; ++q) sum[q] = static_cast<uint16_t>(sum[q] + row[q]);
        }
        for (int v = 0; v < kRow; v += 16)
            for (int i = 0; i < 8; ++i) {
                sums[v + i] += sum[v + 2 * i];
                sums[v + 8 + i] += sum[v + 2 * i + 1];
            }
    }
#endif
}

struct Batch {
    int count = 0;
    int64_t token[kBatch], window[kBatch];
    alignas(64) int32_t sums[kBatch][kRow];
};

// One group of kRow query tokens against all windows; adds the sums of their maxima to scores.
class Pass {
  public:
    Pass(const ResidualTables& query, int64_t group, const PackedTokens& index, float* scores)
        : index_(index), scores_(scores), stride_(query.stride), tokens_(std::min<int64_t>(kRow, query.tokens - group * kRow)),
          words_((index.width + 7) / 8), tables_(query.values + group * words_ * kWord * 16 * kRow),
          scale_(query.scale + group * kRow), bias_(query.bias + group * kRow),
          centroid_scores_(query.centroid_scores + group * kRow), scratch_(kUnpacked * index.dimensions) {}

    // false for a code that is no centroid's
    bool run(const int64_t* starts, const int64_t* lengths, int64_t windows) {
        for (int64_t w = 0; w < windows; ++w) {
            if (lengths[w] == 0) scores_[w] = -std::numeric_limits<float>::infinity();
            for (int64_t token = starts[w]; token < starts[w] + lengths[w]; ++token) {
                if (index_.codes[token] >= index_.num_centroids) return false;
                __builtin_prefetch(index_.residuals + token * index_.width);  // on its way when the batch is complete
                batch_.token[batch_.count] = token;
                batch_.window[batch_.count++] = w;
                if (batch_.count == kBatch) flush();
            }
        }
        flush();
        finish();
        return true;
    }

  private:
    void flush() {
        const int count = batch_.count;
        for (int64_t word = 0; word < words_; ++word) {
            if (word == 0)
                add_words<true>(word);
            else
                add_words<false>(word);
        }
        float factors[kBatch];
        inverse_norms(index_, batch_.token, count, scratch_.data(), factors);
        const float* centroids[kBatch];
        for (int i = 0; i < count; ++i) centroids[i] = centroid_scores_ + index_.codes[batch_.token[i]] * stride_;
        for (int i = 0; i < count;) {
            if (batch_.window[i] != window_) finish();
            window_ = batch_.window[i];
            Vec best[kRow / kLanes];
            for (int v = 0; v < kRow / kLanes; ++v) best[v] = load(best_ + v * kLanes);
            for (; i < count && batch_.window[i] == window_; ++i) {
                const float factor = factors[i];
                const float* centroid = centroids[i];
                if (i + kAhead < count) {
                    __builtin_prefetch(centroids[i + kAhead]);
                    __builtin_prefetch(centroids[i + kAhead] + kRow / 2);
                }
                for (int v = 0; v < kRow / kLanes; ++v) {
                    const int q = v * kLanes;
                    const Whole sums = *reinterpret_cast<const Whole*>(batch_.sums[i] + q);
                    const Vec s = ((load(centroid + q) + load(bias_ + q)) +
                                   load(scale_ + q) * __builtin_convertvector(sums, Vec)) * factor;
                    best[v] = s > best[v] ? s : best[v];
                }
            }
            for (int v = 0; v < kRow / kLanes; ++v) store(best_ + v * kLanes, best[v]);
        }
        batch_.count = 0;
    }

    // One word of each token's residual.
    template <bool first>
    void add_words(int64_t word) {
        const uint16_t* tables = tables_ + word * kWord * 16 * kRow;
        const uint8_t* packed = index_.residuals + word * 8;
        const int64_t bytes = std::min<int64_t>(8, index_.width - word * 8);
        if (bytes == 8)  // a size that the compiler knows is one load
            for (int i = 0; i < batch_.count; ++i)
                add_word<first>(load_word(packed + batch_.token[i] * index_.width, 8), tables, batch_.sums[i]);
        else
            for (int i = 0; i < batch_.count; ++i)
                add_word<first>(load_word(packed + batch_.token[i] * index_.width, bytes), tables, batch_.sums[i]);
    }

    // The window in hand is complete.
    void finish() {
        if (window_ >= 0) {
            float sum = 0;
            for (int64_t q = 0; q < tokens_; ++q) sum += best_[q];
            scores_[window_] += sum;
        }
        std::fill(best_, best_ + kRow, -std::numeric_limits<float>::infinity());
    }

    const PackedTokens& index_;
    float* scores_;
    const int64_t stride_, tokens_, words_;
    const uint16_t* tables_;
    const float *scale_, *bias_, *centroid_scores_;
    Aligned<int16_t> scratch_;
    Batch batch_;
    int64_t window_ = -1;
    float best_[kRow];
};

bool maxsim_by_tables(const ResidualTables& query, const PackedTokens& index, const int64_t* starts,
                      const int64_t* lengths, int64_t windows, float* scores) {
    std::fill(scores, scores + windows, 0.0f);
    for (int64_t group = 0; group * kRow < query.tokens; ++group) {
        Pass pass(query, group, index, scores);
        if (!pass.run(starts, lengths, windows)) return false;
    }
    return true;
}

}  // namespace

extern const TableKernels lookup_table;
const TableKernels lookup_table{maxsim_by_tables};

}  // namespace HR_VARIANT
}  // namespace hr
