// Threads over the MaxSim kernels, for the thread sanitizer (`make sanitize SANITIZE=thread`): several queries at once,
// each shared out among threads by windows, all of them filling in the same remembered norms. Ends with 1 where a score
// differs from that of one thread alone.
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#if defined(HR_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../../hybrid_retrieval/kernels/native/tables.h"

namespace {

constexpr int64_t kDimensions = 64, kCentroids = 37, kWindows = 90, kQueryTokens = 40, kStride = 64;
constexpr int kThreads = 4, kQueries = 3, kRounds = 5;

struct Collection {
    std::vector<uint32_t> codes;
    std::vector<uint8_t> residuals, buckets;
    std::vector<int16_t> table, centroid_levels;
    std::vector<float> squares, scales, weights, norms;
    std::vector<int64_t> starts, lengths;
    int64_t per_byte;

    Collection(int nbits, std::mt19937& random) : per_byte(8 / nbits) {
        for (int64_t w = 0; w < kWindows; ++w) {
            starts.push_back(static_cast<int64_t>(codes.size()));
            lengths.push_back(random() % 50);
            for (int64_t i = 0; i < lengths.back(); ++i) codes.push_back(random() % kCentroids);
        }
        residuals.resize(codes.size() * kDimensions / per_byte);
        for (auto& byte : residuals) byte = static_cast<uint8_t>(random());
        for (int byte = 0; byte < 256; ++byte)
            for (int64_t i = 0; i < per_byte; ++i)
                buckets.push_back(static_cast<uint8_t>(byte >> (nbits * (per_byte - 1 - i)) & ((1 << nbits) - 1)));
        for (int b = 0; b < 1 << nbits; ++b) weights.push_back(0.01f * static_cast<float>(b) - 0.02f);
        for (uint8_t bucket : buckets) table.push_back(static_cast<int16_t>(std::lrint(weights[bucket] * 1e4f)));
        centroid_levels.resize(kCentroids * kDimensions);
        for (auto& level : centroid_levels) level = static_cast<int16_t>(random() % 2000) - 1000;
        squares.assign(kCentroids, 1.0f);
        scales.assign(kCentroids, 1e-8f);
        norms.assign(codes.size(), 0.0f);
    }

    hr::PackedTokens view() {
        return {codes.data(), residuals.data(), table.data(), kDimensions / per_byte, per_byte, kDimensions,
                kCentroids, centroid_levels.data(), squares.data(), scales.data(), 1e-8f, norms.data()};
    }
};

std::vector<float> random_floats(int64_t count, std::mt19937& random) {
    std::vector<float> values(count);
    for (auto& value : values) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    return values;
}

// Scores of windows by a variant's tables, or in digits.
using Scorer = std::function<bool(Collection&, const std::vector<float>& query, const std::vector<float>& centroid_scores,
                                  int64_t first, int64_t count, float* out)>;

Scorer by(const hr::TableKernels& lookup) {
    return [&lookup](Collection& tokens, const std::vector<float>& query, const std::vector<float>& centroid_scores,
                     int64_t first, int64_t count, float* out) {
        const auto tables = hr::make_tables(query.data(), kQueryTokens, kDimensions, tokens.weights.data(),
                                            tokens.buckets.data(), tokens.per_byte);
        return lookup.maxsim(tables->view(centroid_scores.data(), kStride, kQueryTokens), tokens.view(),
                             tokens.starts.data() + first, tokens.lengths.data() + first, count, out);
    };
}

#if defined(HR_X86)
hr::ResidualQuery asked(const Collection& tokens, const std::vector<float>& query,
                        const std::vector<float>& centroid_scores) {
    return {query.data(), tokens.weights.data(), tokens.buckets.data(), centroid_scores.data(), kStride, kQueryTokens};
}

// Estimates, and what they are wrong by.
Scorer by(const hr::EstimateKernels& estimates) {
    return [&estimates](Collection& tokens, const std::vector<float>& query, const std::vector<float>& centroid_scores,
                        int64_t first, int64_t count, float* out) {
        std::vector<float> errors(count);
        if (!estimates.maxsim(asked(tokens, query, centroid_scores), tokens.view(), tokens.starts.data() + first, tokens.lengths.data() + first, count, out,
                              errors.data()))
            return false;
        for (int64_t w = 0; w < count; ++w) out[w] += 1e3f * errors[w];
        return true;
    };
}
#endif

#if defined(HR_AMX)
Scorer by(const hr::DigitKernels& digits) {
    return [&digits](Collection& tokens, const std::vector<float>& query, const std::vector<float>& centroid_scores,
                     int64_t first, int64_t count, float* out) {
        return digits.maxsim(asked(tokens, query, centroid_scores), tokens.view(), tokens.starts.data() + first, tokens.lengths.data() + first, count, out);
    };
}

bool has_tiles() {
    unsigned a, b, c, d;
    constexpr unsigned tile_and_int8 = 1u << 24 | 1u << 25;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tile_and_int8) == tile_and_int8 &&
           syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // leave to use the tiles' registers
}
#endif

bool check(const Scorer& scorer, const char* name, int nbits) {
    std::mt19937 random(7 + nbits);
    Collection tokens(nbits, random);
    std::vector<std::vector<float>> queries, centroid_scores, expected;
    for (int i = 0; i < kQueries; ++i) {
        queries.push_back(random_floats(kQueryTokens * kDimensions, random));
        centroid_scores.push_back(random_floats(kCentroids * kStride, random));
    }
    auto score = [&](int query, int64_t first, int64_t count, float* out) {
        return scorer(tokens, queries[query], centroid_scores[query], first, count, out);
    };
    for (int i = 0; i < kQueries; ++i) {
        expected.emplace_back(kWindows);
        if (!score(i, 0, kWindows, expected[i].data())) return false;
    }
    for (int round = 0; round < kRounds; ++round) {
        std::fill(tokens.norms.begin(), tokens.norms.end(), 0.0f);
        std::vector<std::vector<float>> found(kQueries, std::vector<float>(kWindows));
        std::vector<std::thread> threads;
        for (int i = 0; i < kQueries; ++i)
            for (int part = 0; part < kThreads; ++part)
                threads.emplace_back([&, i, part] {
                    const int64_t first = kWindows * part / kThreads, end = kWindows * (part + 1) / kThreads;
                    score(i, first, end - first, found[i].data() + first);
                });
        for (auto& thread : threads) thread.join();
        if (found != expected) {
            std::printf("%s, %d bits: scores differ on threads\n", name, nbits);
            return false;
        }
    }
    return true;
}

}  // namespace

int main() {
    bool good = true;
    for (int nbits : {1, 2, 4}) {
        good = check(by(hr::portable::lookup_table), "portable", nbits) && good;
#if defined(HR_X86)
        if (__builtin_cpu_supports("avx2")) good = check(by(hr::avx2::lookup_table), "avx2", nbits) && good;
        if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            good = check(by(hr::avx512vnni::estimate_table), "avx512vnni", nbits) && good;
#endif
#if defined(HR_AMX)
        if (has_tiles()) good = check(by(hr::amx::digit_table), "amx, digits", nbits) && good;
        if (has_tiles()) good = check(by(hr::amx::estimate_table), "amx, estimates", nbits) && good;
#endif
    }
    std::puts(good ? "no race found, the same scores on any number of threads" : "FAILED");
    return good ? 0 : 1;
}
