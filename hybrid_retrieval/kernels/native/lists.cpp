// Compiled once, for any processor: what takes time here is fetching, not computing.
#include "lists.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace hr {
namespace {

constexpr int64_t kBlock = 64;  // centroids whose largest level is looked at before their own
constexpr int64_t kAhead = 16;  // entries of a list whose windows are fetched while those before them are counted

using Probe = std::pair<int32_t, uint32_t>;  // level, centroid

// The largest level that at least `wanted` of the counted have or exceed; 0 where there are fewer.
int level_of(const std::vector<int64_t>& counts, int64_t wanted) {
    int64_t sum = 0;
    for (int level = static_cast<int>(counts.size()) - 1; level > 0; --level)
        if ((sum += counts[level]) >= wanted) return level;
    return 0;
}

// A query token's probes, the best first, and the level of the last one.
std::vector<Probe> probes(const uint8_t* table, int64_t k, int64_t stride, int64_t token, int64_t nprobe,
                          const std::vector<uint8_t>& largest, int* least) {
    const int64_t blocks = (k + kBlock - 1) / kBlock;
    std::vector<int64_t> counts(256);
    for (int64_t b = 0; b < blocks; ++b) ++counts[largest[b * stride + token]];
    // nprobe blocks with a centroid of this level or more: no probe lies below it.
    const int known = level_of(counts, nprobe);
    std::fill(counts.begin(), counts.end(), 0);
    std::vector<Probe> found;
    for (int64_t b = 0; b < blocks; ++b) {
        if (largest[b * stride + token] < known) continue;
        for (int64_t c = b * kBlock; c < std::min(k, (b + 1) * kBlock); ++c) {
            const int level = table[c * stride + token];
            if (level < known) continue;
            ++counts[level];
            found.emplace_back(level, static_cast<uint32_t>(c));
        }
    }
    *least = level_of(counts, nprobe);
    found.erase(std::remove_if(found.begin(), found.end(), [&](const Probe& probe) { return probe.first < *least; }),
                found.end());
    std::sort(found.begin(), found.end(), std::greater<>());
    return found;
}

struct Count {
    int32_t last = -1, levels = 0;  // the last query token that came to the window; the sum
};

}  // namespace

bool listed_windows(const uint8_t* table, int64_t k, int64_t stride, int64_t tokens, int64_t nprobe,
                    const InvertedLists& lists, const uint8_t* allowed, int64_t most, Listed* listed) {
    const int64_t blocks = (k + kBlock - 1) / kBlock;
    std::vector<uint8_t> largest(blocks * stride);
    for (int64_t c = 0; c < k; ++c) {
        uint8_t* to = largest.data() + c / kBlock * stride;
        const uint8_t* row = table + c * stride;
        for (int64_t q = 0; q < stride; ++q) to[q] = std::max(to[q], row[q]);
    }
    std::vector<Count> counts(lists.windows);
    for (int64_t q = 0; q < tokens; ++q) {
        int least;
        // The best first, so that the first to name a window is the one that counts.
        for (const auto& [level, centroid] : probes(table, k, stride, q, nprobe, largest, &least)) {
            const int64_t end = lists.offsets[centroid + 1];
            for (int64_t i = lists.offsets[centroid]; i < end; ++i) {
                const uint32_t window = lists.entries[i];
                if (window >= lists.windows) return false;
                if (i + kAhead < end) __builtin_prefetch(counts.data() + lists.entries[i + kAhead]);
                Count& count = counts[window];
                if (count.last == q) continue;
                count.last = static_cast<int32_t>(q);
                count.levels += level - least;
            }
        }
    }
    // How many windows there are of each sum, so that the `most` highest are known without ordering them.
    std::vector<int64_t> sums(static_cast<size_t>(tokens) * 255 + 1);
    for (int64_t w = 0; w < lists.windows; ++w) {
        if (allowed && !allowed[w]) counts[w].last = -1;
        if (counts[w].last < 0) continue;
        ++sums[counts[w].levels];
        ++listed->named;
    }
    const int limit = level_of(sums, most);
    int64_t above = 0;
    for (size_t level = limit + 1; level < sums.size(); ++level) above += sums[level];
    int64_t tied = most - above;
    for (int64_t w = 0; w < lists.windows; ++w) {
        if (counts[w].last < 0 || counts[w].levels < limit || (counts[w].levels == limit && tied-- <= 0)) continue;
        listed->windows.push_back(static_cast<uint32_t>(w));
        listed->levels.push_back(counts[w].levels);
    }
    return true;
}

}  // namespace hr
