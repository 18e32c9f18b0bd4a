// Variants of the kernels against results that the NumPy reference left in a file (record.py) and against the portable
// variant, in a program without Python: for processors that are at hand in emulation only (`make check-neon`). Ends with 1
// where a number differs by more than the file allows.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../hybrid_retrieval/kernels/native/tables.h"

namespace {

enum Case : int64_t { kEnd, kMaxSim, kApproximate, kDense, kTrunk, kProject };

struct Variant {
    const char* name;
    const hr::Kernels& kernels;
    const hr::MaxSimKernels& maxsim;
    const hr::TableKernels& lookup;
};

const Variant kVariants[] = {
    {"portable", hr::portable::table, hr::portable::maxsim_table, hr::portable::lookup_table},
#if defined(HR_ARM64)
    {"neon", hr::neon::table, hr::neon::maxsim_table, hr::neon::lookup_table},
#endif
};

class File {
  public:
    explicit File(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) throw std::runtime_error(std::string("cannot open ") + path);
    }
    File(const File&) = delete;
    ~File() { std::fclose(file_); }

    template <typename T>
    std::vector<T> read() {
        int64_t size[2];
        take(size, sizeof size);
        if (size[0] != sizeof(T)) throw std::runtime_error("an array of another type than the case has there");
        std::vector<T> values(static_cast<size_t>(size[1]));
        take(values.data(), values.size() * sizeof(T));
        return values;
    }

  private:
    void take(void* to, size_t bytes) {
        if (std::fread(to, 1, bytes, file_) != bytes) throw std::runtime_error("the file ends within a case");
    }
    std::FILE* file_;
};

// What has been compared, and the largest differences as shares of what was allowed.
class Comparison {
  public:
    explicit Comparison(const char* kernel) : kernel_(kernel) {}

    // `average`: a bound on the mean difference, where it is to be tighter than that of one number.
    template <typename T>
    void check(const Variant& variant, const char* to, const std::vector<T>& found, const std::vector<T>& expected,
               double allowed, double average = INFINITY) {
        double worst = 0, sum = 0;
        for (size_t i = 0; i < found.size(); ++i) {
            const double a = static_cast<double>(found[i]), b = static_cast<double>(expected[i]);
            const double difference = a == b ? 0 : std::fabs(a - b);  // of infinities: none, or not a number
            worst = difference <= worst ? worst : difference;
            sum += difference;
        }
        const double mean = found.empty() ? 0 : sum / static_cast<double>(found.size());
        ++count_;
        largest_ = std::max(largest_, worst);
        if (found.size() == expected.size() && worst <= allowed && mean <= average) return;
        ++failed_;
        std::printf("%s, case %lld, %s: differs from %s by %g at worst and %g on average (allowed: %g, %g)\n", kernel_,
                    static_cast<long long>(cases), variant.name, to, worst, mean, allowed, average);
    }

    bool report() const {
        std::printf("%-24s %4lld cases, %5lld comparisons, largest difference %.2g, %lld failed\n", kernel_,
                    static_cast<long long>(cases), static_cast<long long>(count_), largest_,
                    static_cast<long long>(failed_));
        return failed_ == 0 && cases > 0;
    }

    int64_t cases = 0;

  private:
    const char* kernel_;
    int64_t count_ = 0, failed_ = 0;
    double largest_ = 0;
};

// One result of each variant, the portable first: against the reference, and the others against the portable.
template <typename T, typename Run>
void compare(Comparison& comparison, const std::vector<T>& expected, double allowed, double among_variants, Run run,
             double average = INFINITY) {
    std::vector<T> first;
    ++comparison.cases;
    for (const Variant& variant : kVariants) {
        const std::vector<T> found = run(variant);
        comparison.check(variant, "the reference", found, expected, allowed, average);
        if (&variant == kVariants)
            first = found;
        else
            comparison.check(variant, kVariants[0].name, found, first, among_variants);
    }
}

void require(bool condition) {
    if (!condition) throw std::runtime_error("a kernel refused its input");
}

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// [n][k] to [k][n rounded up to 32], zeros in between
std::vector<float> columns(const std::vector<float>& rows, int64_t n, int64_t k) {
    const int64_t stride = round_up(n, 32);
    std::vector<float> out(k * stride);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j) out[j * stride + i] = rows[i * k + j];
    return out;
}

void maxsim_case(File& file, const std::vector<int64_t>& sizes, Comparison& by_tables, Comparison& by_products) {
    const int64_t tokens = sizes[1], d = sizes[2], nbits = sizes[3], k = sizes[4], stride = round_up(tokens, 32);
    const int64_t width = d * nbits / 8, per_byte = 8 / nbits;
    const double allowed = file.read<float>()[0];
    const auto centroids = file.read<float>(), weights = file.read<float>();
    const auto buckets = file.read<uint8_t>();
    const auto query = file.read<float>();
    const auto codes = file.read<uint32_t>();
    const auto residuals = file.read<uint8_t>();
    const auto starts = file.read<int64_t>(), lengths = file.read<int64_t>();
    const auto table = file.read<int16_t>(), centroid_levels = file.read<int16_t>();
    const auto squares = file.read<float>(), scales = file.read<float>(), square_scale = file.read<float>();
    const auto levels = file.read<int16_t>();
    const auto query_scale = file.read<float>(), expected = file.read<float>();
    const auto windows = static_cast<int64_t>(starts.size());
    const auto turned = columns(query, tokens, d);
    auto score = [&](const Variant& variant, bool tables) {
        std::vector<float> centroid_scores(k * stride), norms(codes.size()), scores(windows), again(windows);
        variant.kernels.multiply(centroids.data(), k, d, turned.data(), stride, centroid_scores.data());
        const hr::PackedTokens index{codes.data(), residuals.data(), table.data(), width, per_byte, d,
                                     static_cast<uint32_t>(k), centroid_levels.data(), squares.data(), scales.data(),
                                     square_scale[0], norms.data()};
        const auto values = tables ? hr::make_tables(query.data(), tokens, d, weights.data(), buckets.data(), per_byte)
                                   : nullptr;
        for (auto* out : {&scores, &again}) {  // the second time with the norms of the first
            if (tables)
                require(variant.lookup.maxsim(values->view(centroid_scores.data(), stride, tokens), index,
                                              starts.data(), lengths.data(), windows, out->data()));
            else
                require(variant.maxsim.maxsim({levels.data(), query_scale.data(), centroid_scores.data(), tokens,
                                               round_up(tokens, 8), stride},
                                              index, starts.data(), lengths.data(), windows, out->data()));
        }
        (tables ? by_tables : by_products).check(variant, "itself, asked again", again, scores, 0);
        return scores;
    };
    const double among = 1e-6 * static_cast<double>(tokens);
    compare(by_products, expected, allowed, among, [&](const Variant& variant) { return score(variant, false); });
    if (nbits < 8 && width >= 8)
        compare(by_tables, expected, allowed, among, [&](const Variant& variant) { return score(variant, true); });
}

void approximate_case(File& file, const std::vector<int64_t>& sizes, Comparison& comparison) {
    const auto table = file.read<uint8_t>();
    const auto codes = file.read<uint32_t>();
    const auto starts = file.read<int64_t>(), lengths = file.read<int64_t>();
    const auto expected = file.read<int32_t>();
    compare(comparison, expected, 0, 0, [&](const Variant& variant) {
        std::vector<int32_t> scores(starts.size());
        require(variant.maxsim.approximate(table.data(), sizes[1], sizes[2], codes.data(), starts.data(),
                                           lengths.data(), static_cast<int64_t>(starts.size()), scores.data()));
        return scores;
    });
}

// A layer's arrays in the file, and the layer in the packing of any variant.
struct DenseArrays {
    std::vector<int8_t> weight;
    std::vector<float> scale, bias, sums;
    std::vector<int8_t> packed;
    explicit DenseArrays(File& file)
        : weight(file.read<int8_t>()), scale(file.read<float>()), bias(file.read<float>()) {}

    hr::Dense pack(const hr::Kernels& kernels) {
        const auto n = static_cast<int64_t>(scale.size()), k = static_cast<int64_t>(weight.size()) / n;
        packed.assign(round_up(n, kernels.panel) * k * kernels.weight_bytes, 0);
        kernels.pack(weight.data(), k, n, packed.data());
        sums.assign(n, 0);
        for (int64_t j = 0; j < n; ++j) {
            int32_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += weight[i * n + j];
            sums[j] = static_cast<float>(sum) * scale[j];
        }
        return {packed.data(), scale.data(), sums.data(), bias.data(), k, n};
    }
};

void dense_case(File& file, const std::vector<int64_t>& sizes, Comparison& comparison) {
    const double allowed = file.read<float>()[0];
    const auto x = file.read<float>();
    DenseArrays layer(file);
    const auto expected = file.read<float>();
    compare(comparison, expected, allowed, allowed / 4, [&](const Variant& variant) {
        std::vector<float> out(sizes[1] * sizes[3]);
        variant.kernels.dense(x.data(), sizes[1], layer.pack(variant.kernels), out.data());
        return out;
    });
}

struct NormArrays {
    std::vector<float> weight, bias;
    explicit NormArrays(File& file) : weight(file.read<float>()), bias(file.read<float>()) {}
    hr::Norm view() const { return {weight.data(), bias.data()}; }
};

struct LayerArrays {
    DenseArrays qkv, out;
    NormArrays attention_norm;
    DenseArrays inner, outer;
    NormArrays outer_norm;
    explicit LayerArrays(File& file)  // in this order
        : qkv(file), out(file), attention_norm(file), inner(file), outer(file), outer_norm(file) {}
    hr::Layer pack(const hr::Kernels& kernels) {
        return {qkv.pack(kernels), out.pack(kernels), inner.pack(kernels), outer.pack(kernels),
                attention_norm.view(), outer_norm.view()};
    }
};

void trunk_case(File& file, const std::vector<int64_t>& sizes, Comparison& comparison) {
    const auto allowed = file.read<float>();
    const auto x = file.read<float>();
    const auto offsets = file.read<int64_t>();
    std::vector<LayerArrays> arrays;
    for (int64_t i = 0; i < sizes[5]; ++i) arrays.emplace_back(file);
    const auto expected = file.read<float>();
    const hr::TrunkShape shape{sizes[1], sizes[2], sizes[3], 1e-12f};
    auto run = [&](const Variant& variant) {
        std::vector<hr::Layer> layers;
        for (auto& layer : arrays) layers.push_back(layer.pack(variant.kernels));
        std::vector<float> states = x;
        const hr::Time forever{[](const hr::Time&) { return false; }, 0};
        variant.kernels.run(states.data(), offsets.data(), static_cast<int64_t>(offsets.size()) - 1, layers.data(),
                            static_cast<int64_t>(layers.size()), shape, forever);
        return states;
    };
    compare(comparison, expected, allowed[0], allowed[0], run, allowed[1]);
}

void project_case(File& file, const std::vector<int64_t>& sizes, Comparison& comparison) {
    const int64_t m = sizes[1], k = sizes[2], n = sizes[3];
    const double allowed = file.read<float>()[0];
    const auto x = file.read<float>(), matrix = columns(file.read<float>(), n, k), expected = file.read<float>();
    compare(comparison, expected, allowed, allowed, [&](const Variant& variant) {
        std::vector<float> out(m * n);
        variant.kernels.project(x.data(), m, k, matrix.data(), round_up(n, 32), n, out.data());
        return out;
    });
}

bool check_all(File& file) {
    Comparison tables("MaxSim by tables"), products("MaxSim by products"), approximate("approximate scores"),
        dense("dense layers"), trunk("transformer layers"), project("projection");
    for (;;) {
        const auto sizes = file.read<int64_t>();
        switch (sizes[0]) {
            case kMaxSim: maxsim_case(file, sizes, tables, products); break;
            case kApproximate: approximate_case(file, sizes, approximate); break;
            case kDense: dense_case(file, sizes, dense); break;
            case kTrunk: trunk_case(file, sizes, trunk); break;
            case kProject: project_case(file, sizes, project); break;
            case kEnd: {
                bool good = true;
                for (const auto* comparison : {&tables, &products, &approximate, &dense, &trunk, &project})
                    good = comparison->report() && good;
                return good;
            }
            default: throw std::runtime_error("a case of no known kind");
        }
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::fprintf(stderr, "usage: %s FILE (of tests/kernels/record.py)\n", arguments[0]);
        return 2;
    }
    try {
        File file(arguments[1]);
        const bool good = check_all(file);
        std::string names;
        for (const Variant& variant : kVariants) names += (names.empty() ? "" : ", ") + std::string(variant.name);
        std::printf("%s: %s\n", names.c_str(), good ? "as the reference has it" : "FAILED");
        return good ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
