// Compiled once, for any processor: the same tables whatever variant reads them.
#include "tables.h"

#include <algorithm>

namespace hr {
namespace {

// Where query token q of a row stands: lanes 2i and 2i + 1 hold tokens i and i + 8 of each 16, so that the sums of the
// even and of the odd lanes are tokens in order.
inline int lane(int q) { return q / 16 * 16 + q % 8 * 2 + q % 16 / 8; }

}  // namespace

QueryTables::QueryTables(int64_t rows, int64_t padded)
    : memory(rows * kRow + 32), scale(padded, 1.0f), bias(padded, 0.0f) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    values = memory.data() + (64 - address % 64) % 64 / sizeof(uint16_t);
}

ResidualTables QueryTables::view(const float* centroid_scores, int64_t stride, int64_t tokens) const {
    return {values, scale.data(), bias.data(), centroid_scores, stride, tokens};
}

std::unique_ptr<QueryTables> make_tables(const float* query, int64_t tokens, int64_t dimensions, const float* weights,
                                         const uint8_t* buckets, int64_t per_byte) {
    const int64_t width = dimensions / per_byte, halves = 2 * width, each = per_byte / 2;
    const int64_t words = (width + 7) / 8, groups = (tokens + kRow - 1) / kRow;
    // Zeros where the last word goes beyond the last dimension: they add nothing.
    auto made = std::make_unique<QueryTables>(groups * words * kWord * 16, groups * kRow);
    // float [halves][16][kRow]: the sums of a half byte's dimensions, and [halves][kRow]: the least of each
    std::vector<float> sums(halves * 16 * kRow), least(halves * kRow), columns(dimensions * kRow);
    for (int64_t group = 0; group < groups; ++group) {
        std::fill(columns.begin(), columns.end(), 0.0f);
        for (int64_t q = 0; q < std::min<int64_t>(kRow, tokens - group * kRow); ++q)
            for (int64_t i = 0; i < dimensions; ++i)
                columns[i * kRow + lane(static_cast<int>(q))] = query[(group * kRow + q) * dimensions + i];
        float widest[kRow] = {}, range[kRow] = {};
        double bias[kRow] = {};  // up to 1,024 numbers that may all be alike: float32 would round them one way
        for (int64_t half = 0; half < halves; ++half) {
            float low[kRow], high[kRow];
            for (int value = 0; value < 16; ++value) {
                // The first of a byte's buckets stand in its high half (`reference.pack_buckets`).
                const uint8_t* bucket =
                    buckets + (half % 2 ? value : value << 4) * per_byte + (half % 2 ? each : 0);
                float* sum = sums.data() + (half * 16 + value) * kRow;
                for (int64_t i = 0; i < each; ++i) {
                    const float weight = weights[bucket[i]];
                    const float* column = columns.data() + (half * each + i) * kRow;
                    if (i == 0)
                        for (int q = 0; q < kRow; ++q) sum[q] = weight * column[q];
                    else
                        for (int q = 0; q < kRow; ++q) sum[q] += weight * column[q];
                }
                for (int q = 0; q < kRow; ++q) low[q] = value ? std::min(low[q], sum[q]) : sum[q];
                for (int q = 0; q < kRow; ++q) high[q] = value ? std::max(high[q], sum[q]) : sum[q];
            }
            for (int q = 0; q < kRow; ++q) {
                least[half * kRow + q] = low[q];
                bias[q] += low[q];
                range[q] = (half % kSummed ? range[q] : 0) + (high[q] - low[q]);
                widest[q] = std::max(widest[q], range[q]);
            }
        }
        // One scale a query token, as fine as lets no sum of kSummed values, each rounded up at worst, exceed 16 bits.
        float scale[kRow], inverse[kRow];
        for (int q = 0; q < kRow; ++q) {
            scale[q] = widest[q] > 0 ? widest[q] / (65535 - 2 * kSummed) : 1.0f;
            inverse[q] = 1.0f / scale[q];
        }
        for (int64_t half = 0; half < halves; ++half)
            for (int value = 0; value < 16; ++value) {
                const float *sum = sums.data() + (half * 16 + value) * kRow, *low = least.data() + half * kRow;
                uint16_t* to = made->values + ((group * words * kWord + half) * 16 + value) * kRow;
                for (int q = 0; q < kRow; ++q)
                    to[q] = static_cast<uint16_t>(static_cast<int32_t>((sum[q] - low[q]) * inverse[q] + 0.5f));
            }
        for (int q = 0; q < kRow; ++q) {
            made->scale[group * kRow + q] = scale[lane(q)];
            made->bias[group * kRow + q] = static_cast<float>(bias[lane(q)]);
        }
    }
    return made;
}

}  // namespace hr
