// Which windows the inverted lists of a query's best centroids name.
#pragma once

#include <cstdint>
#include <vector>

namespace hr {

struct InvertedLists {
    const uint32_t* entries;  // the lists, one after the other
    const int64_t* offsets;   // [K + 1]
    int64_t windows;
};

// Windows, rising, and for each what the lists say of its score: over the query tokens, the level of its best probed
// centroid above the last probed one.
struct Listed {
    std::vector<uint32_t> windows;
    std::vector<int32_t> levels;
    int64_t named = 0;  // windows in the lists at all
};

// The windows in the lists of each query token's `nprobe` best centroids by table uint8 [K, stride], the `most` of the
// highest levels, ties by window. Where table values tie at the limit, all of them are probed. allowed: uint8 [windows],
// or null for all; others are left out before anything is counted. false where a list names a window that is none.
bool listed_windows(const uint8_t* table, int64_t k, int64_t stride, int64_t tokens, int64_t nprobe,
                    const InvertedLists& lists, const uint8_t* allowed, int64_t most, Listed* listed);

}  // namespace hr
