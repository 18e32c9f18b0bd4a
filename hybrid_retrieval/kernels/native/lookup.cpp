// MaxSim straight from packed residuals of 1, 2 or 4 bits a dimension, by tables instead of products.
//
// A query token's product with a residual is the sum over the half bytes of the packed residual of what each adds
// (tables.h), for 32 query tokens at a time: a load and an addition for 16 of them where products of unpacked numbers
// (pmaddwd) would take four multiplications and additions at 2 bits. The values have 16 bits; sums of 8 are widened before
// the next 8, so every sum is exact.
#include "windows.h"

namespace hr {
namespace HR_VARIANT {
namespace {

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

// Sums by the tables of one group of query tokens.
class TableSums {
  public:
    TableSums(const uint16_t* tables, int64_t words) : tables_(tables), words_(words) {}

    // One word of all tokens after the other: its tables (16 KB) are read from the nearest cache.
    void fill(const PackedTokens& index, const int64_t* tokens, int count, int32_t (*sums)[kRow]) {
        for (int64_t word = 0; word < words_; ++word) {
            if (word == 0)
                add_words<true>(index, word, tokens, count, sums);
            else
                add_words<false>(index, word, tokens, count, sums);
        }
    }

  private:
    template <bool first>
    void add_words(const PackedTokens& index, int64_t word, const int64_t* tokens, int count, int32_t (*sums)[kRow]) {
        const uint16_t* tables = tables_ + word * kWord * 16 * kRow;
        const uint8_t* packed = index.residuals + word * 8;
        const int64_t bytes = std::min<int64_t>(8, index.width - word * 8);
        if (bytes == 8)  // a size that the compiler knows is one load
            for (int i = 0; i < count; ++i)
                add_word<first>(load_word(packed + tokens[i] * index.width, 8), tables, sums[i]);
        else
            for (int i = 0; i < count; ++i)
                add_word<first>(load_word(packed + tokens[i] * index.width, bytes), tables, sums[i]);
    }

    const uint16_t* tables_;
    const int64_t words_;
};

bool maxsim_by_tables(const ResidualTables& query, const PackedTokens& index, const int64_t* starts,
                      const int64_t* lengths, int64_t windows, float* scores) {
    std::fill(scores, scores + windows, 0.0f);
    const int64_t words = (index.width + 7) / 8;
    for (int64_t first = 0; first < query.tokens; first += kRow) {
        TableSums sums(query.values + first / kRow * words * kWord * 16 * kRow, words);
        const Group group{query.scale + first, query.bias + first, query.centroid_scores + first, query.stride,
                          std::min<int64_t>(kRow, query.tokens - first)};
        if (!Pass<TableSums>(sums, group, index, scores).run(starts, lengths, windows)) return false;
    }
    return true;
}

}  // namespace

extern const TableKernels lookup_table;
const TableKernels lookup_table{maxsim_by_tables};

}  // namespace HR_VARIANT
}  // namespace hr
