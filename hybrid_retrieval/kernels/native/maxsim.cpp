// MaxSim straight from packed residuals of 8 bits a dimension (or of few dimensions: lookup.cpp and digits.cpp have the
// rest), in whole numbers: query tokens and residual weights on as many levels as 32-bit sums allow (4,095 at 128
// dimensions), pairs of products summed at once (pmaddwd). A similarity is exact to about 1e-5 on average and 2e-4 at
// most, nearly all of it the norm's, and its whole numbers are the same on every variant.
//
// A token's vector is (c + w) / |c + w|, c its centroid and w its residual. With q.c known for every centroid,
// q.v = (q.c + q.w) / sqrt(|c|^2 + 2 c.w + |w|^2), so nothing but the levels of w is ever unpacked.
#include <algorithm>
#include <limits>

#include "aligned.h"
#include "norms.h"
#include "simd.h"

namespace hr {
namespace HR_VARIANT {
namespace {

constexpr int kTokens = 8;  // query tokens in one register
constexpr int kBatch = 16;  // passage tokens unpacked at a time

#if defined(__AVX2__)
inline __m256i multiply_add(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}
#elif defined(HR_NEON)
// Four pairs of levels of each token with `blocks` * 8 query tokens: one product of dimension 2 * pair and one of the next.
template <int blocks, int tokens, int pair>
inline void add_pair(const int16_t* query, const int16x8_t* levels, int32x4_t (*acc)[blocks][2]) {
    for (int b = 0; b < blocks; ++b) {
        const int16x8x2_t q = vld2q_s16(query + (pair * blocks + b) * 16);
        for (int t = 0; t < tokens; ++t) {
            acc[t][b][0] = vmlal_laneq_s16(acc[t][b][0], vget_low_s16(q.val[0]), levels[t], 2 * pair);
            acc[t][b][1] = vmlal_high_laneq_s16(acc[t][b][1], q.val[0], levels[t], 2 * pair);
            acc[t][b][0] = vmlal_laneq_s16(acc[t][b][0], vget_low_s16(q.val[1]), levels[t], 2 * pair + 1);
            acc[t][b][1] = vmlal_high_laneq_s16(acc[t][b][1], q.val[1], levels[t], 2 * pair + 1);
        }
    }
}
#endif

// sums [tokens][blocks * 8] of `tokens` unpacked residuals with `blocks` * 8 query tokens.
template <int blocks, int tokens>
inline void products(const int16_t* query, int64_t pairs, const int16_t* levels, int64_t stride, int32_t* sums) {
#if defined(__AVX2__)
    __m256i acc[tokens][blocks];
    for (int t = 0; t < tokens; ++t)
        for (int b = 0; b < blocks; ++b) acc[t][b] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; ++p) {
        __m256i both[tokens];
        for (int t = 0; t < tokens; ++t) {
            int32_t two;
            std::memcpy(&two, levels + t * stride + 2 * p, 4);
            both[t] = _mm256_set1_epi32(two);
        }
        for (int b = 0; b < blocks; ++b) {
            __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query + (p * blocks + b) * 16));
            __asm__("" : "+x"(q));  // one load for all tokens: loads are what this loop is short of
            for (int t = 0; t < tokens; ++t) acc[t][b] = multiply_add(acc[t][b], both[t], q);
        }
    }
    for (int t = 0; t < tokens; ++t)
        for (int b = 0; b < blocks; ++b)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + (t * blocks + b) * kTokens), acc[t][b]);
#elif defined(HR_NEON)
    int32x4_t acc[tokens][blocks][2];
    for (int t = 0; t < tokens; ++t)
        for (int b = 0; b < blocks; ++b) acc[t][b][0] = acc[t][b][1] = vdupq_n_s32(0);
    for (int64_t p = 0; p < pairs; p += 4) {  // dimensions come in multiples of 8
        int16x8_t eight[tokens];
        for (int t = 0; t < tokens; ++t) eight[t] = vld1q_s16(levels + t * stride + 2 * p);
        const int16_t* from = query + p * blocks * 16;
        add_pair<blocks, tokens, 0>(from, eight, acc);
        add_pair<blocks, tokens, 1>(from, eight, acc);
        add_pair<blocks, tokens, 2>(from, eight, acc);
        add_pair<blocks, tokens, 3>(from, eight, acc);
    }
    for (int t = 0; t < tokens; ++t)
        for (int b = 0; b < blocks; ++b)
            for (int half = 0; half < 2; ++half)
                vst1q_s32(sums + (t * blocks + b) * kTokens + 4 * half, acc[t][b][half]);
#else
    for (int t = 0; t < tokens; ++t) {
        int32_t acc[blocks * kTokens] = {};
        for (int64_t p = 0; p < pairs; ++p) {
            const int32_t first = levels[t * stride + 2 * p], second = levels[t * stride + 2 * p + 1];
            const int16_t* q = query + p * blocks * 16;
            for (int i = 0; i < blocks * kTokens; ++i) acc[i] += first * q[2 * i] + second * q[2 * i + 1];
        }
        std::memcpy(sums + t * blocks * kTokens, acc, sizeof acc);
    }
#endif
}

// Raise best [blocks * 8] by the tokens start to stop; false for a code that is no centroid's.
template <int blocks>
bool raise(const QueryCodes& query, int64_t block, const PackedTokens& index, int64_t start, int64_t stop,
           int16_t* levels, int16_t* scratch, float* best) {
    constexpr int kWidth = blocks * kTokens;
    const int64_t d = index.dimensions;
    const int16_t* codes = query.codes + block * d * kTokens;
    const float* scale = query.scale + block * kTokens;
    for (int64_t first = start; first < stop; first += kBatch) {
        const int count = static_cast<int>(std::min<int64_t>(kBatch, stop - first));
        // All of a batch before any product: a load across stores that are still on their way would wait for them.
        float factors[kBatch];
        int64_t tokens[kBatch];
        for (int i = 0; i < count; ++i) {
            tokens[i] = first + i;
            if (index.codes[first + i] >= index.num_centroids) return false;
            unpack(index.residuals + (first + i) * index.width, index.width, index.per_byte, index.table,
                   levels + i * d);
        }
        inverse_norms(index, tokens, count, scratch, factors);
        for (int i = 0; i < count; i += 2) {
            int32_t sums[2 * kWidth];
            const int both = std::min(2, count - i);
            if (both == 2)
                products<blocks, 2>(codes, d / 2, levels + i * d, d, sums);
            else
                products<blocks, 1>(codes, d / 2, levels + i * d, d, sums);
            for (int t = 0; t < both; ++t) {
                const float factor = factors[i + t];
                const float* centroid =
                    query.centroid_scores + index.codes[first + i + t] * query.stride + block * kTokens;
#pragma omp simd
                for (int q = 0; q < kWidth; ++q) {
                    const float s = (centroid[q] + scale[q] * static_cast<float>(sums[t * kWidth + q])) * factor;
                    best[q] = s > best[q] ? s : best[q];
                }
            }
        }
    }
    return true;
}

bool maxsim(const QueryCodes& query, const PackedTokens& index, const int64_t* starts, const int64_t* lengths,
            int64_t windows, float* scores) {
    Aligned<int16_t> levels(kBatch * index.dimensions), scratch(kUnpacked * index.dimensions);
    Aligned<float> best(query.padded);
    for (int64_t w = 0; w < windows; ++w) {
        std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
        const int64_t start = starts[w], stop = start + lengths[w];
        for (int64_t block = 0; block < query.padded / kTokens;) {
            const int64_t left = query.padded / kTokens - block;
            float* to = best.data() + block * kTokens;
            bool known;
            // As query.codes was packed: as many full groups of 32 tokens as there are, then one of what is left.
            switch (std::min<int64_t>(left, 4)) {
                case 4: known = raise<4>(query, block, index, start, stop, levels.data(), scratch.data(), to); block += 4; break;
                case 3: known = raise<3>(query, block, index, start, stop, levels.data(), scratch.data(), to); block += 3; break;
                case 2: known = raise<2>(query, block, index, start, stop, levels.data(), scratch.data(), to); block += 2; break;
                default: known = raise<1>(query, block, index, start, stop, levels.data(), scratch.data(), to); block += 1; break;
            }
            if (!known) return false;
        }
        float sum = 0;
        for (int64_t q = 0; q < query.tokens; ++q) sum += best[q];
        scores[w] = sum;
    }
    return true;
}

void range(const float* scores, int64_t k, int64_t stride, int64_t tokens, float* range) {
    float least = range[0], most = range[1];
    for (int64_t c = 0; c < k; ++c) {
        const float* row = scores + c * stride;
#pragma omp simd reduction(min : least) reduction(max : most)
        for (int64_t q = 0; q < tokens; ++q) {
            least = row[q] < least ? row[q] : least;
            most = row[q] > most ? row[q] : most;
        }
    }
    range[0] = least;
    range[1] = most;
}

void levels(const float* scores, int64_t k, int64_t stride, int64_t tokens, float least, float most, uint8_t* table) {
    const float factor = 255.0f / std::max(most - least, 1e-9f);
    for (int64_t c = 0; c < k; ++c) {
        const float* row = scores + c * stride;
        uint8_t* to = table + c * stride;
#pragma omp simd
        for (int64_t q = 0; q < tokens; ++q) {
            const float level = (row[q] - least) * factor + 0.5f;
            to[q] = static_cast<uint8_t>(static_cast<int32_t>(level < 255.0f ? level : 255.0f));
        }
        std::fill(to + tokens, to + stride, uint8_t{0});
    }
}

// Sum over query tokens of the best centroid score (uint8 [K, stride], stride a multiple of 32) in each window.
bool approximate(const uint8_t* table, int64_t stride, int64_t num_centroids, const uint32_t* codes,
                 const int64_t* starts, const int64_t* lengths, int64_t windows, int32_t* scores) {
    Aligned<uint8_t> memory(stride);
    for (int64_t w = 0; w < windows; ++w) {
        const uint32_t *code = codes + starts[w], *end = code + lengths[w];
        int32_t sum = 0;
        for (int64_t part = 0; part < stride; part += 32) {
#if defined(__AVX2__)
            __m256i best = _mm256_setzero_si256();
            for (const uint32_t* c = code; c < end; ++c) {
                if (*c >= num_centroids) return false;
                best = _mm256_max_epu8(
                    best, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table + *c * stride + part)));
            }
            const __m256i sums = _mm256_sad_epu8(best, _mm256_setzero_si256());
            int64_t four[4];
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(four), sums);
            sum += static_cast<int32_t>(four[0] + four[1] + four[2] + four[3]);
#elif defined(HR_NEON)
            uint8x16_t best[2] = {vdupq_n_u8(0), vdupq_n_u8(0)};
            for (const uint32_t* c = code; c < end; ++c) {
                if (*c >= num_centroids) return false;
                const uint8_t* row = table + *c * stride + part;
                for (int v = 0; v < 2; ++v) best[v] = vmaxq_u8(best[v], vld1q_u8(row + 16 * v));
            }
            sum += vaddlvq_u8(best[0]) + vaddlvq_u8(best[1]);
#else
            uint8_t best[32] = {};
            for (const uint32_t* c = code; c < end; ++c) {
                if (*c >= num_centroids) return false;
                const uint8_t* row = table + *c * stride + part;
                for (int i = 0; i < 32; ++i) best[i] = std::max(best[i], row[i]);
            }
            for (int i = 0; i < 32; ++i) sum += best[i];
#endif
        }
        scores[w] = lengths[w] ? sum : -1;
    }
    return true;
}

}  // namespace

extern const MaxSimKernels maxsim_table;
const MaxSimKernels maxsim_table{range, levels, maxsim, approximate};

}  // namespace HR_VARIANT
}  // namespace hr
