// What each half byte of a packed residual adds to its product with each query token.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "variants.h"

namespace hr {

// Query tokens in one row of a table, half bytes whose values are summed in 16 bits, half bytes in one load of 8 bytes.
constexpr int kRow = 32, kSummed = 8, kWord = 16;

struct QueryTables {
    std::vector<uint16_t> memory;
    uint16_t* values;  // in memory, at the start of a cache line: a row is one
    std::vector<float> scale, bias;
    QueryTables(int64_t rows, int64_t padded);
    QueryTables(const QueryTables&) = delete;
    ResidualTables view(const float* centroid_scores, int64_t stride, int64_t tokens) const;
};

// query [tokens][dimensions]; weights [2^nbits], nbits 1, 2 or 4; buckets [256][8 / nbits]: the buckets in each byte.
std::unique_ptr<QueryTables> make_tables(const float* query, int64_t tokens, int64_t dimensions, const float* weights,
                                         const uint8_t* buckets, int64_t per_byte);

}  // namespace hr
