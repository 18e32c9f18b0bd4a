// The kernels as tables of functions: the same sources are compiled once per instruction set (see CMakeLists.txt),
// and the module picks a table at run time. Nothing outside a variant's table may be called from it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hr {

// Weights of one dense layer, int8 [K, N] in panels of `panel` columns, as the variant's `pack` lays them out:
// [ceil(N / panel)][K * panel], of `weight_bytes` each.
struct Dense {
    const void* packed;
    const float* scale;  // [N]
    const float* sums;   // [N]: of a column's weights, scaled
    const float* bias;   // [N]
    int64_t k, n;
};

struct Norm {
    const float* weight;  // [H]
    const float* bias;    // [H]
};

struct Layer {
    Dense qkv, attention_out, inner, outer;
    Norm attention_norm, outer_norm;
};

struct TrunkShape {
    int64_t hidden, heads, head_size;
    float epsilon;
};

// How long a run may take. The clock is not read in a variant's own file: inline functions of the library would be
// compiled with its instructions there, and might be linked for all.
struct Time {
    bool (*is_up)(const Time&);
    double ends;
};

// Query tokens as whole numbers: codes in groups of up to 4 blocks of 8 tokens, each [D / 2][blocks][8][2].
struct QueryCodes {
    const int16_t* codes;
    const float* scale;            // [padded]: of one product of levels
    const float* centroid_scores;  // [K, stride]
    int64_t tokens, padded, stride;  // padded: to a multiple of 8; stride: to one of 32
};

// Query tokens as tables (tables.h), groups of 32 one after the other: values [groups][words][16][16][32].
struct ResidualTables {
    const uint16_t* values;
    const float *scale, *bias;     // [groups * 32]: q.w = bias + scale * the sum of values
    const float* centroid_scores;  // [K, stride]
    int64_t stride, tokens;
};

struct PackedTokens {
    const uint32_t* codes;         // [T]
    const uint8_t* residuals;      // [T, width]
    const int16_t* table;          // [256, per_byte]: the levels behind each packed byte
    int64_t width, per_byte, dimensions;
    uint32_t num_centroids;
    // |c + w|^2 = centroid_squares + centroid_scales * (levels of c . levels of w) + square_scale * |levels of w|^2
    const int16_t* centroid_levels;  // [K, D]
    const float* centroid_squares;   // [K]
    const float* centroid_scales;    // [K]
    float square_scale;
    float* inverse_norms;  // [T]: 1 / |c + w|, 0 where nobody has asked yet
};

struct MaxSimKernels {
    // range [2], the least and the largest, widened by the first `tokens` columns of scores [K, stride]
    void (*range)(const float* scores, int64_t k, int64_t stride, int64_t tokens, float* range);
    // scores [K, stride], the first `tokens` columns of them on 256 levels between the least and the largest; zeros beyond
    void (*levels)(const float* scores, int64_t k, int64_t stride, int64_t tokens, float least, float most, uint8_t* table);
    // scores [W], -inf for a window without tokens; false where a code is not below num_centroids
    bool (*maxsim)(const QueryCodes& query, const PackedTokens& index, const int64_t* starts, const int64_t* lengths,
                   int64_t windows, float* scores);
    // table uint8 [K, stride]; scores int32 [W], -1 for a window without tokens; false as above
    bool (*approximate)(const uint8_t* table, int64_t stride, int64_t num_centroids, const uint32_t* codes,
                        const int64_t* starts, const int64_t* lengths, int64_t windows, int32_t* scores);
};

struct TableKernels {
    bool (*maxsim)(const ResidualTables& query, const PackedTokens& index, const int64_t* starts,
                   const int64_t* lengths, int64_t windows, float* scores);
};

// Query tokens as they are, for kernels that lay them out themselves.
struct ResidualQuery {
    const float* query;    // [tokens, D]
    const float* weights;  // [2^nbits], nbits 1, 2 or 4
    const uint8_t* buckets;  // [256, per_byte]: the buckets in each byte
    const float* centroid_scores;  // [K, stride]
    int64_t stride, tokens;
};

// Estimates by products of bytes, where the variant has such.
struct EstimateKernels {
    // scores [W], errors [W]: what each is wrong by at most; -inf and 0 for a window without tokens; false as above
    bool (*maxsim)(const ResidualQuery& query, const PackedTokens& index, const int64_t* starts, const int64_t* lengths,
                   int64_t windows, float* scores, float* errors);
    int64_t (*packed_bytes)(int64_t k, int64_t d);
    // centroids float32 [K, D] -> rows uint8 [packed_bytes], and steps float32 [K]
    void (*pack)(const float* centroids, int64_t k, int64_t d, uint8_t* rows, float* steps);
    // What `levels` makes of the scores of all centroids (to about .002) with query [tokens, D]: table [K, stride], range
    // [2] as above
    void (*level_table)(const uint8_t* rows, const float* steps, int64_t k, int64_t d, const float* query,
                        int64_t tokens, int64_t stride, uint8_t* table, float* range);
};

// Products in digits, on the variant that has tiles.
struct DigitKernels {
    int64_t (*packed_bytes)(int64_t k, int64_t d, int digits);
    // centroids float32 [K, D] in 2 or 3 digits -> packed int8 [packed_bytes], zeros at first, and steps float32 [K]
    void (*pack)(const float* centroids, int64_t k, int64_t d, int digits, int8_t* packed, float* steps);
    // packed in 3 digits; query [tokens, D] -> out float32 [K, stride], stride a multiple of 32; range [2] as above
    void (*centroid_scores)(const int8_t* packed, const float* steps, int64_t k, int64_t d, const float* query,
                            int64_t tokens, int64_t stride, float* out, float* range);
    // some of the centroids packed in 3 digits, packed beside each other
    void (*gather)(const int8_t* packed, int64_t d, const uint32_t* centroids, int64_t count, int8_t* out);
    bool (*maxsim)(const ResidualQuery& query, const PackedTokens& index, const int64_t* starts, const int64_t* lengths,
                   int64_t windows, float* scores);
};

// The nearest centroids of vectors, where the variant is quicker at that than faiss.
struct NearestKernels {
    int64_t (*packed_bytes)(int64_t k, int64_t d);
    // centroids float32 [K, D] -> packed [packed_bytes], zeros at first, and steps float32 [K]
    void (*pack)(const float* centroids, int64_t k, int64_t d, int8_t* packed, float* steps);
    // vectors [N, D] -> found [N], the centroid of the largest product less its offset, the first of those that tie
    void (*nearest)(const int8_t* packed, const float* steps, const float* centroids, const float* offsets, int64_t k,
                    int64_t d, const float* vectors, int64_t n, uint32_t* found);
};

struct Kernels {
    int64_t panel, weight_bytes;
    void (*pack)(const int8_t* weight, int64_t k, int64_t n, void* out);
    // x float32 [M, K] -> out float32 [M, N]
    void (*dense)(const float* x, int64_t m, const Dense& layer, float* out);
    // x float32 [T, H], changed in place; sequences are rows offsets[i] to offsets[i + 1]. Whether it went through all
    // layers: it ends between two of them where time is up.
    bool (*run)(float* x, const int64_t* offsets, int64_t sequences, const Layer* layers, int64_t depth,
                const TrunkShape& shape, const Time& time);
    // x [M, K] times matrix [K, stride] (stride a multiple of 32, zeros from column n on), rows made unit: out [M, n].
    void (*project)(const float* x, int64_t m, int64_t k, const float* matrix, int64_t stride, int64_t n, float* out);
    // x [M, K] times matrix [K, stride]: out [M, stride]
    void (*multiply)(const float* x, int64_t m, int64_t k, const float* matrix, int64_t stride, float* out);
};

namespace portable {
extern const Kernels table;
extern const MaxSimKernels maxsim_table;
extern const TableKernels lookup_table;
}
#if defined(HR_X86)
namespace avx2 {
extern const Kernels table;
extern const MaxSimKernels maxsim_table;
extern const TableKernels lookup_table;
}
namespace avx512vnni {
extern const Kernels table;
extern const MaxSimKernels maxsim_table;
extern const TableKernels lookup_table;
extern const EstimateKernels estimate_table;
extern const NearestKernels nearest_table;
}
#if defined(HR_AMX)
namespace amx {
extern const Kernels table;
extern const DigitKernels digit_table;
extern const EstimateKernels estimate_table;
extern const NearestKernels nearest_table;
}
#endif
#endif
#if defined(HR_ARM64)
namespace neon {
extern const Kernels table;
extern const MaxSimKernels maxsim_table;
extern const TableKernels lookup_table;
}
#endif

}  // namespace hr
