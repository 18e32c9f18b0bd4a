// Python bindings: arrays are checked here once, and the global lock is released while a kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "aligned.h"
#include "lists.h"
#include "tables.h"
#include "variants.h"

#if defined(HR_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T, typename Shape>
using Array = nb::ndarray<const T, Shape, nb::c_contig, nb::device::cpu>;
using Floats = Array<float, nb::ndim<1>>;
using Matrix = Array<float, nb::ndim<2>>;
using Weights = Array<int8_t, nb::ndim<2>>;
using Remembered = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;  // written to
using Offsets = Array<int64_t, nb::ndim<1>>;

// The kernels of one instruction set.
struct Variant {
    const char* name;
    bool (*runs_here)();
    const hr::Kernels& layers;
    const hr::MaxSimKernels& products;
    const hr::TableKernels& lookups;
    const hr::DigitKernels* digits;       // null where there are no tiles
    const hr::NearestKernels* nearest;     // null where faiss is as quick
    const hr::EstimateKernels* estimates;  // null where there are no quick products of bytes
};

bool always() { return true; }

#if defined(HR_X86)
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512vnni() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

#if defined(HR_AMX)
// The instructions, bfloat16 vectors, and the kernel's leave to use the tiles' registers, which holds for the process.
bool has_amx() {
    unsigned a, b, c, d;
    if (!has_avx512vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, amx_int8 = 1u << 25;
    constexpr unsigned needed = amx_bf16 | amx_tile | amx_int8;
    if ((d & needed) != needed) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // of <asm/prctl.h>
    static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return granted;
}
#endif
#endif

// Best first.
const Variant kVariants[] = {
#if defined(HR_X86)
#if defined(HR_AMX)
    {"amx", has_amx, hr::amx::table, hr::avx512vnni::maxsim_table, hr::avx512vnni::lookup_table,
     &hr::amx::digit_table, &hr::amx::nearest_table, &hr::amx::estimate_table},
#endif
    {"avx512vnni", has_avx512vnni, hr::avx512vnni::table, hr::avx512vnni::maxsim_table, hr::avx512vnni::lookup_table,
     nullptr, &hr::avx512vnni::nearest_table, &hr::avx512vnni::estimate_table},
    {"avx2", has_avx2, hr::avx2::table, hr::avx2::maxsim_table, hr::avx2::lookup_table, nullptr,
     nullptr, nullptr},
#endif
#if defined(HR_ARM64)
    {"neon", always, hr::neon::table, hr::neon::maxsim_table, hr::neon::lookup_table,
     nullptr, nullptr, nullptr},  // part of the architecture
#endif
    {"portable", always, hr::portable::table, hr::portable::maxsim_table, hr::portable::lookup_table, nullptr,
     nullptr, nullptr},
};

std::vector<std::string> variants() {
    std::vector<std::string> names;
    for (const Variant& variant : kVariants)
        if (variant.runs_here()) names.emplace_back(variant.name);
    return names;
}

const Variant& variant_of(const std::string& name) {
    for (const Variant& variant : kVariants)
        if (name == variant.name && variant.runs_here()) return variant;
    throw nb::value_error(("this processor cannot run the variant '" + name + "'").c_str());
}

template <typename Vector>
nb::object owned(Vector&& values, std::vector<size_t> shape) {
    using Kept = std::remove_reference_t<Vector>;
    auto* kept = new Kept(std::move(values));
    nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<Kept*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, typename Kept::value_type>(kept->data(), shape.size(), shape.data(), owner));
}

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

class Dense {
  public:
    Dense(const hr::Kernels& kernels, Weights weight, Floats scale, Floats bias)
        : scale_(scale.data(), scale.data() + scale.shape(0)), bias_(bias.data(), bias.data() + bias.shape(0)) {
        const auto k = static_cast<int64_t>(weight.shape(0)), n = static_cast<int64_t>(weight.shape(1));
        require(k > 0 && n > 0 && k % 4 == 0 && k <= 65536,
                "weight must be int8 [K, N] with K a multiple of 4 of at most 65536");
        require(scale.shape(0) == weight.shape(1) && bias.shape(0) == weight.shape(1),
                "scale and bias must be float32 [N]");
        packed_.resize((n + kernels.panel - 1) / kernels.panel * kernels.panel * k * kernels.weight_bytes);
        kernels.pack(weight.data(), k, n, packed_.data());
        for (int64_t j = 0; j < n; ++j) {
            int32_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += weight(i, j);
            sums_.push_back(static_cast<float>(sum) * scale_[j]);
        }
        view = {packed_.data(), scale_.data(), sums_.data(), bias_.data(), k, n};
    }
    Dense(const Dense&) = delete;
    hr::Dense view;

  private:
    hr::Aligned<int8_t> packed_;
    std::vector<float> scale_, sums_, bias_;
};

// Seconds on a clock that never goes back.
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Layers of one trunk, in the packing of one variant.
class Trunk {
  public:
    Trunk(const std::string& variant, int64_t hidden, int64_t heads, int64_t head_size, float epsilon)
        : kernels_(variant_of(variant).layers), shape_{hidden, heads, head_size, epsilon} {
        require(hidden > 0 && hidden <= 65536 && heads > 0 && heads <= 65536, "hidden and heads must be 1 to 65,536");
        require(head_size > 0 && head_size <= 65536 && head_size % 32 == 0,
                "head_size must be a multiple of 32 up to 65,536");
    }

    Trunk(const Trunk&) = delete;

    void add_layer(Weights qkv, Floats qkv_scale, Floats qkv_bias, Weights out, Floats out_scale, Floats out_bias,
                   Floats norm_weight, Floats norm_bias, Weights inner, Floats inner_scale, Floats inner_bias,
                   Weights outer, Floats outer_scale, Floats outer_bias, Floats last_weight, Floats last_bias) {
        const size_t hidden = shape_.hidden, width = shape_.heads * shape_.head_size;
        require(qkv.shape(0) == hidden && qkv.shape(1) == 3 * width, "qkv must be int8 [hidden, 3 * heads * head_size]");
        require(out.shape(0) == width && out.shape(1) == hidden, "out must be int8 [heads * head_size, hidden]");
        require(inner.shape(0) == hidden && outer.shape(1) == hidden && inner.shape(1) == outer.shape(0),
                "inner and outer must be int8 [hidden, inner] and [inner, hidden]");
        for (const Floats& norm : {norm_weight, norm_bias, last_weight, last_bias})
            require(norm.shape(0) == hidden, "weights of a LayerNorm must be float32 [hidden]");
        auto dense = [&](Weights w, Floats s, Floats b) -> const hr::Dense& {
            dense_.push_back(std::make_unique<Dense>(kernels_, w, s, b));
            return dense_.back()->view;
        };
        auto norm = [&](Floats w, Floats b) {
            norms_.push_back(std::vector<float>(w.data(), w.data() + hidden));
            norms_.push_back(std::vector<float>(b.data(), b.data() + hidden));
            return hr::Norm{norms_[norms_.size() - 2].data(), norms_.back().data()};
        };
        layers_.push_back({dense(qkv, qkv_scale, qkv_bias), dense(out, out_scale, out_bias),
                           dense(inner, inner_scale, inner_bias), dense(outer, outer_scale, outer_bias),
                           norm(norm_weight, norm_bias), norm(last_weight, last_bias)});
    }

    // States, or None where they took more than `seconds`.
    nb::object run(Matrix x, Offsets offsets, double seconds) const {
        require(x.shape(1) == static_cast<size_t>(shape_.hidden), "x must be float32 [T, hidden]");
        require(offsets.shape(0) > 0 && offsets(0) == 0, "offsets must start at 0");
        const auto sequences = static_cast<int64_t>(offsets.shape(0)) - 1;
        for (int64_t i = 0; i < sequences; ++i) require(offsets(i) <= offsets(i + 1), "offsets must never fall");
        require(offsets(sequences) == static_cast<int64_t>(x.shape(0)), "offsets must end at the number of rows of x");
        std::vector<float> states(x.data(), x.data() + x.size());
        const hr::Time time{[](const hr::Time& own) { return now() > own.ends; }, now() + seconds};
        bool done;
        {
            nb::gil_scoped_release released;
            done = states.empty() || kernels_.run(states.data(), offsets.data(), sequences, layers_.data(),
                                                  static_cast<int64_t>(layers_.size()), shape_, time);
        }
        if (!done) return nb::none();
        return owned(std::move(states), {x.shape(0), x.shape(1)});
    }

  private:
    const hr::Kernels& kernels_;
    hr::TrunkShape shape_;
    std::vector<std::unique_ptr<Dense>> dense_;
    std::vector<std::vector<float>> norms_;
    std::vector<hr::Layer> layers_;
};

// A matrix [N, K] that rows are projected by, laid out once.
class Projection {
  public:
    Projection(const std::string& variant, Matrix weight)
        : table_(variant_of(variant).layers), n_(weight.shape(0)), k_(weight.shape(1)), stride_((n_ + 31) / 32 * 32),
          columns_(k_ * stride_) {
        for (size_t j = 0; j < n_; ++j)
            for (size_t i = 0; i < k_; ++i) columns_[i * stride_ + j] = weight(j, i);
    }
    Projection(const Projection&) = delete;

    // Projected rows, made unit.
    nb::object run(Matrix x) const {
        check(x);
        const size_t m = x.shape(0);
        std::vector<float> out(m * n_);
        {
            nb::gil_scoped_release released;
            table_.project(x.data(), static_cast<int64_t>(m), static_cast<int64_t>(k_), columns_.data(),
                           static_cast<int64_t>(stride_), static_cast<int64_t>(n_), out.data());
        }
        return owned(std::move(out), {m, n_});
    }

    // Projected rows as they are.
    nb::object product(Matrix x) const {
        check(x);
        const size_t m = x.shape(0);
        std::vector<float> out(m * n_);
        {
            nb::gil_scoped_release released;
            hr::Aligned<float> padded(m * stride_);
            table_.multiply(x.data(), static_cast<int64_t>(m), static_cast<int64_t>(k_), columns_.data(),
                            static_cast<int64_t>(stride_), padded.data());
            for (size_t i = 0; i < m; ++i) std::copy_n(padded.data() + i * stride_, n_, out.data() + i * n_);
        }
        return owned(std::move(out), {m, n_});
    }

  private:
    void check(const Matrix& x) const {
        require(x.shape(1) == k_, "x must be float32 [M, K] for a projection of float32 [N, K]");
    }

    const hr::Kernels& table_;
    size_t n_, k_, stride_;
    std::vector<float> columns_;
};

nb::object multiply(const std::string& variant, Matrix x, Weights weight, Floats scale, Floats bias) {
    const hr::Kernels& table = variant_of(variant).layers;
    Dense layer(table, weight, scale, bias);
    require(x.shape(1) == weight.shape(0), "x must be float32 [M, K]");
    std::vector<float> out(x.shape(0) * weight.shape(1));
    table.dense(x.data(), static_cast<int64_t>(x.shape(0)), layer.view, out.data());
    return owned(std::move(out), {x.shape(0), weight.shape(1)});
}

void check_spans(const Offsets& starts, const Offsets& lengths, size_t tokens) {
    require(starts.shape(0) == lengths.shape(0), "starts and lengths must be int64 [W]");
    for (size_t w = 0; w < starts.shape(0); ++w)
        require(starts(w) >= 0 && lengths(w) >= 0 && static_cast<size_t>(starts(w)) <= tokens &&
                    static_cast<size_t>(lengths(w)) <= tokens - static_cast<size_t>(starts(w)),
                "a window lies outside the tokens");
}

void check_lists(const Offsets& offsets, size_t entries) {
    require(offsets(0) == 0, "list_offsets must start at 0");
    for (size_t i = 0; i + 1 < offsets.shape(0); ++i)
        require(offsets(i) <= offsets(i + 1), "list_offsets must never fall");
    require(static_cast<size_t>(offsets(offsets.shape(0) - 1)) == entries, "list_offsets must end at the lists' length");
}

// The codec's part of what MaxSim over packed tokens needs; tokens come with each call (they stay memory-mapped).
class Codec {
  public:
    Codec(const std::string& variant, Matrix centroids, Floats weights, Array<uint8_t, nb::ndim<2>> buckets)
        : variant_(variant_of(variant)),
          weights_(weights.data(), weights.data() + weights.size()),
          buckets_(buckets.data(), buckets.data() + buckets.size()), k_(centroids.shape(0)), d_(centroids.shape(1)),
          per_byte_(buckets.shape(1)) {
        require(k_ > 0 && k_ <= UINT32_MAX && d_ > 0 && d_ % 8 == 0 && d_ <= 1024,
                "centroids must be float32 [K, D] with D a multiple of 8 up to 1024");
        require(buckets.shape(0) == 256 && per_byte_ >= 1 && per_byte_ <= 8 && 8 % per_byte_ == 0,
                "buckets must be uint8 [256, 8 / nbits]");
        require(weights.shape(0) == size_t{1} << (8 / per_byte_), "weights must be float32 [2^nbits]");
        for (float weight : weights_) require(std::isfinite(weight), "weights must be finite");
        // As many levels as leave no sum of D products beyond 32 bits: 4,095 at 128 dimensions.
        const float most = static_cast<float>(std::floor(std::sqrt(2147483647.0 / static_cast<double>(d_))));
        most_ = most;
        float largest = 0;
        for (size_t i = 0; i < weights.shape(0); ++i) largest = std::max(largest, std::fabs(weights(i)));
        weight_scale_ = largest > 0 ? largest / most : 1.0f;
        table_levels_.resize(256 * per_byte_);
        for (size_t i = 0; i < 256 * per_byte_; ++i) {
            require(buckets.data()[i] < weights.shape(0), "a bucket has no weight");
            table_levels_[i] = static_cast<int16_t>(std::lrint(weights(buckets.data()[i]) / weight_scale_));
        }
        levels_.resize(k_ * d_);
        squares_.resize(k_);
        scales_.resize(k_);
        for (size_t c = 0; c < k_; ++c) {
            const float* row = centroids.data() + c * d_;
            float top = 0;
            double square = 0;
            for (size_t i = 0; i < d_; ++i) {
                top = std::max(top, std::fabs(row[i]));
                square += static_cast<double>(row[i]) * row[i];
            }
            require(std::isfinite(top), "centroids must be finite");
            const float scale = top > 0 ? top / most : 1.0f;
            for (size_t i = 0; i < d_; ++i) levels_[c * d_ + i] = static_cast<int16_t>(std::lrint(row[i] / scale));
            squares_[c] = static_cast<float>(square);
            scales_[c] = 2 * scale * weight_scale_;
        }
        if (variant_.digits) {
            const auto k = static_cast<int64_t>(k_), d = static_cast<int64_t>(d_);
            digits_.resize(variant_.digits->packed_bytes(k, d, 3));
            digit_steps_.resize(k_);
            variant_.digits->pack(centroids.data(), k, d, 3, digits_.data(), digit_steps_.data());
        } else {
            centroids_.assign(centroids.data(), centroids.data() + centroids.size());
        }
        if (variant_.estimates) {
            const auto k = static_cast<int64_t>(k_), d = static_cast<int64_t>(d_);
            rows_.resize(variant_.estimates->packed_bytes(k, d));
            row_steps_.resize(k_);
            variant_.estimates->pack(centroids.data(), k, d, rows_.data(), row_steps_.data());
        }
    }
    Codec(const Codec&) = delete;

    // float32 [K, Lq rounded up to 32]: the product of every centroid with every query token, zeros for the padding; and
    // the least and the largest of the products
    nb::object centroid_scores(Matrix query) const {
        require(query.shape(1) == d_ && query.shape(0) > 0, "query must be float32 [Lq, D]");
        const size_t tokens = query.shape(0), stride = round_up(tokens, 32);
        hr::Uninitialised<float> out(k_ * stride);
        float range[2] = {INFINITY, -INFINITY};
        {
            nb::gil_scoped_release released;
            if (variant_.digits)
                variant_.digits->centroid_scores(digits_.data(), digit_steps_.data(), static_cast<int64_t>(k_),
                                                 static_cast<int64_t>(d_), query.data(), static_cast<int64_t>(tokens),
                                                 static_cast<int64_t>(stride), out.data(), range);
            else
                products(query, stride, out.data(), range);
        }
        return nb::make_tuple(owned(std::move(out), {k_, stride}), range[0], range[1]);
    }

    // uint8 [K, stride]: centroid_scores on 256 levels from the least to the largest, one scale for the first `tokens`
    // columns; zeros for the others
    nb::object levels(Matrix scores, int64_t tokens, float least, float most) const {
        require(scores.shape(0) == k_ && tokens > 0 && static_cast<size_t>(tokens) <= scores.shape(1),
                "scores must come from centroid_scores");
        require(least <= most, "least and most must come from centroid_scores");
        hr::Uninitialised<uint8_t> out(scores.size());
        {
            nb::gil_scoped_release released;
            variant_.products.levels(scores.data(), static_cast<int64_t>(k_), static_cast<int64_t>(scores.shape(1)),
                                     tokens, least, most, out.data());
        }
        return owned(std::move(out), {scores.shape(0), scores.shape(1)});
    }

    bool rough_levels() const { return variant_.estimates != nullptr; }

    // (uint8 [K, stride], least, most): what `levels` makes of scores that are good to about .002
    nb::object level_table(Matrix query) const {
        require(rough_levels(), "this variant has no rough levels");
        require(query.shape(1) == d_ && query.shape(0) > 0, "query must be float32 [Lq, D]");
        const size_t stride = round_up(query.shape(0), 32);
        hr::Uninitialised<uint8_t> out(k_ * stride);
        float range[2] = {INFINITY, -INFINITY};
        {
            nb::gil_scoped_release released;
            variant_.estimates->level_table(rows_.data(), row_steps_.data(), static_cast<int64_t>(k_),
                                            static_cast<int64_t>(d_), query.data(),
                                            static_cast<int64_t>(query.shape(0)), static_cast<int64_t>(stride),
                                            out.data(), range);
        }
        return nb::make_tuple(owned(std::move(out), {k_, stride}), range[0], range[1]);
    }

    // Fill in the rows of scores [K, stride] for the codes of windows, as centroid_scores has them, where `known` uint8
    // [K] is 0.
    void fill_scores(Matrix query, nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> scores,
              nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> known, Array<uint32_t, nb::ndim<1>> codes,
              Offsets starts, Offsets lengths) const {
        require(rough_levels(), "this variant has no rough levels");
        require(query.shape(1) == d_ && query.shape(0) > 0, "query must be float32 [Lq, D]");
        const size_t stride = round_up(query.shape(0), 32);
        require(scores.shape(0) == k_ && scores.shape(1) == stride, "scores must be float32 [K, Lq rounded up to 32]");
        require(known.shape(0) == k_, "known must be uint8 [K]");
        check_spans(starts, lengths, codes.shape(0));
        bool within = true;
        {
            nb::gil_scoped_release released;
            const std::vector<float> columns = variant_.digits ? std::vector<float>() : columns_of(query, stride);
            std::vector<uint32_t> waiting;
            std::vector<float> out(kFilled * stride);
            const auto compute = [&] {
                products_of(waiting, query, columns, stride, out.data());
                for (size_t i = 0; i < waiting.size(); ++i)
                    std::copy_n(out.data() + i * stride, stride, scores.data() + waiting[i] * stride);
                waiting.clear();
            };
            for (size_t w = 0; within && w < starts.shape(0); ++w)
                for (int64_t t = starts(w); t < starts(w) + lengths(w); ++t) {
                    const uint32_t code = codes(t);
                    if (code >= k_) {
                        within = false;
                        break;
                    }
                    if (known(code)) continue;
                    known(code) = 1;
                    waiting.push_back(code);
                    if (waiting.size() == kFilled) compute();
                }
            compute();
        }
        require(within, "a token's code is not below the number of centroids");
    }

    // float32 [W]: MaxSim of windows of packed tokens. inverse_norms float32 [T] belongs to codes and residuals: zeros at
    // first, filled in here.
    nb::object maxsim(Matrix query, Matrix scores, Array<uint32_t, nb::ndim<1>> codes,
                      Array<uint8_t, nb::ndim<2>> residuals, Remembered inverse_norms, Offsets starts,
                      Offsets lengths) const {
        const hr::PackedTokens index = packed(query, scores, codes, residuals, inverse_norms, starts, lengths);
        std::vector<float> out(starts.shape(0));
        bool known;
        {
            nb::gil_scoped_release released;
            known = !by_sums()         ? by_products(query, scores, index, starts, lengths, out)
                    : variant_.digits ? by_digits(query, scores, index, starts, lengths, out)
                                      : by_tables(query, scores, index, starts, lengths, out);
        }
        require(known, "a token's code is not below the number of centroids");
        return owned(std::move(out), {starts.shape(0)});
    }

    bool estimates() const { return by_sums() && variant_.estimates != nullptr; }

    // float32 [2, W]: estimates of what maxsim gives, and what each is wrong by at most
    nb::object estimate(Matrix query, Matrix scores, Array<uint32_t, nb::ndim<1>> codes,
                        Array<uint8_t, nb::ndim<2>> residuals, Remembered inverse_norms, Offsets starts,
                        Offsets lengths) const {
        require(estimates(), "this variant has no estimates for such residuals");
        const hr::PackedTokens index = packed(query, scores, codes, residuals, inverse_norms, starts, lengths);
        const size_t windows = starts.shape(0);
        std::vector<float> out(2 * windows);
        bool known;
        {
            nb::gil_scoped_release released;
            known = variant_.estimates->maxsim(asked(query, scores), index, starts.data(), lengths.data(),
                                               static_cast<int64_t>(windows), out.data(), out.data() + windows);
        }
        require(known, "a token's code is not below the number of centroids");
        return owned(std::move(out), {2, windows});
    }

    // int32 [W]: sums over query tokens of the best of table uint8 [K, multiple of 32] among a window's codes
    nb::object approximate(Array<uint8_t, nb::ndim<2>> table, Array<uint32_t, nb::ndim<1>> codes, Offsets starts,
                           Offsets lengths) const {
        require(table.shape(0) == k_ && table.shape(1) % 32 == 0, "table must be uint8 [K, a multiple of 32]");
        check_spans(starts, lengths, codes.shape(0));
        std::vector<int32_t> out(starts.shape(0));
        bool known;
        {
            nb::gil_scoped_release released;
            known = variant_.products.approximate(table.data(), static_cast<int64_t>(table.shape(1)),
                                                  static_cast<int64_t>(k_), codes.data(), starts.data(),
                                                  lengths.data(), static_cast<int64_t>(starts.shape(0)), out.data());
        }
        require(known, "a token's code is not below the number of centroids");
        return owned(std::move(out), {starts.shape(0)});
    }

    // `listed_windows` (lists.h): (uint32 [n], int32 [n], windows named at all)
    nb::object candidates(Array<uint8_t, nb::ndim<2>> table, int64_t tokens, int64_t nprobe,
                          Array<uint32_t, nb::ndim<1>> lists, Offsets list_offsets, int64_t windows, int64_t most,
                          std::optional<Array<uint8_t, nb::ndim<1>>> allowed) const {
        require(table.shape(0) == k_, "table must be uint8 [K, stride]");
        require(tokens > 0 && static_cast<size_t>(tokens) <= table.shape(1), "tokens must be within the table's width");
        require(nprobe > 0 && windows >= 0 && most > 0, "nprobe and most must be positive");
        require(!allowed || allowed->shape(0) == static_cast<size_t>(windows), "allowed must be uint8 [windows]");
        require(list_offsets.shape(0) == k_ + 1, "list_offsets must be int64 [K + 1]");
        check_lists(list_offsets, lists.shape(0));
        hr::Listed listed;
        bool known;
        {
            nb::gil_scoped_release released;
            known = hr::listed_windows(table.data(), static_cast<int64_t>(k_), static_cast<int64_t>(table.shape(1)),
                                       tokens, nprobe, {lists.data(), list_offsets.data(), windows},
                                       allowed ? allowed->data() : nullptr, most, &listed);
        }
        require(known, "a list names a window that does not exist");
        const size_t count = listed.windows.size();
        return nb::make_tuple(owned(std::move(listed.windows), {count}), owned(std::move(listed.levels), {count}),
                              listed.named);
    }

  private:
    static constexpr size_t kFilled = 256;   // centroids whose scores are filled in together
    static constexpr size_t kScored = 1024;  // centroids whose scores are still in a near cache when their range is read

    static size_t round_up(size_t tokens, size_t to) { return (tokens + to - 1) / to * to; }

    // Below 8 bytes a residual, sums of 16-bit values are too coarse.
    bool by_sums() const { return per_byte_ > 1 && d_ / per_byte_ >= 8; }

    // Packed tokens, once everything that a kernel is given with them fits.
    hr::PackedTokens packed(const Matrix& query, const Matrix& scores, const Array<uint32_t, nb::ndim<1>>& codes,
                            const Array<uint8_t, nb::ndim<2>>& residuals, const Remembered& inverse_norms,
                            const Offsets& starts, const Offsets& lengths) const {
        require(query.shape(1) == d_ && query.shape(0) > 0, "query must be float32 [Lq, D]");
        require(scores.shape(0) == k_ && scores.shape(1) == round_up(query.shape(0), 32),
                "scores must come from centroid_scores");
        require(residuals.shape(0) == codes.shape(0) && residuals.shape(1) * per_byte_ == d_,
                "residuals must be uint8 [T, D * nbits / 8]");
        require(inverse_norms.shape(0) == codes.shape(0), "inverse_norms must be float32 [T]");
        check_spans(starts, lengths, codes.shape(0));
        return {codes.data(), residuals.data(), table_levels_.data(), static_cast<int64_t>(residuals.shape(1)),
                static_cast<int64_t>(per_byte_), static_cast<int64_t>(d_), static_cast<uint32_t>(k_), levels_.data(),
                squares_.data(), scales_.data(), weight_scale_ * weight_scale_, inverse_norms.data()};
    }

    hr::ResidualQuery asked(const Matrix& query, const Matrix& scores) const {
        return {query.data(), weights_.data(), buckets_.data(), scores.data(), static_cast<int64_t>(scores.shape(1)),
                static_cast<int64_t>(query.shape(0))};
    }

    std::vector<float> columns_of(const Matrix& query, size_t stride) const {
        std::vector<float> columns(d_ * stride);
        for (size_t q = 0; q < query.shape(0); ++q)
            for (size_t i = 0; i < d_; ++i) columns[i * stride + q] = query(q, i);
        return columns;
    }

    // Scores of some centroids, the very numbers of `centroid_scores`: out [some, stride]. columns: the query's, which
    // digits do without.
    void products_of(const std::vector<uint32_t>& some, const Matrix& query, const std::vector<float>& columns,
                     size_t stride, float* out) const {
        const auto count = static_cast<int64_t>(some.size()), d = static_cast<int64_t>(d_);
        const auto width = static_cast<int64_t>(stride);
        if (variant_.digits) {
            hr::Aligned<int8_t> digits(variant_.digits->packed_bytes(count, d, 3));
            std::vector<float> steps;
            for (const uint32_t c : some) steps.push_back(digit_steps_[c]);
            variant_.digits->gather(digits_.data(), d, some.data(), count, digits.data());
            float range[2] = {INFINITY, -INFINITY};
            variant_.digits->centroid_scores(digits.data(), steps.data(), count, d, query.data(),
                                             static_cast<int64_t>(query.shape(0)), width, out, range);
            return;
        }
        std::vector<float> rows(some.size() * d_);
        for (size_t i = 0; i < some.size(); ++i) std::copy_n(centroids_.data() + some[i] * d_, d_, rows.data() + i * d_);
        variant_.layers.multiply(rows.data(), count, d, columns.data(), width, out);
    }

    void products(const Matrix& query, size_t stride, float* out, float* range) const {
        const std::vector<float> columns = columns_of(query, stride);
        for (size_t c = 0; c < k_; c += kScored) {
            const auto count = static_cast<int64_t>(std::min(kScored, k_ - c)), width = static_cast<int64_t>(stride);
            float* to = out + c * stride;
            variant_.layers.multiply(centroids_.data() + c * d_, count, static_cast<int64_t>(d_), columns.data(), width, to);
            variant_.products.range(to, count, width, static_cast<int64_t>(query.shape(0)), range);
        }
    }

    bool by_tables(const Matrix& query, const Matrix& scores, const hr::PackedTokens& index, const Offsets& starts,
                   const Offsets& lengths, std::vector<float>& out) const {
        const auto tokens = static_cast<int64_t>(query.shape(0));
        const auto tables = hr::make_tables(query.data(), tokens, static_cast<int64_t>(d_), weights_.data(),
                                            buckets_.data(), static_cast<int64_t>(per_byte_));
        return variant_.lookups.maxsim(tables->view(scores.data(), static_cast<int64_t>(scores.shape(1)), tokens),
                                       index, starts.data(), lengths.data(), static_cast<int64_t>(out.size()),
                                       out.data());
    }

    bool by_digits(const Matrix& query, const Matrix& scores, const hr::PackedTokens& index, const Offsets& starts,
                   const Offsets& lengths, std::vector<float>& out) const {
        return variant_.digits->maxsim(asked(query, scores), index, starts.data(), lengths.data(), static_cast<int64_t>(out.size()),
                                       out.data());
    }

    bool by_products(const Matrix& query, const Matrix& scores, const hr::PackedTokens& index, const Offsets& starts,
                     const Offsets& lengths, std::vector<float>& out) const {
        const size_t tokens = query.shape(0), padded = round_up(tokens, 8);
        std::vector<int16_t> levels(padded * d_);
        std::vector<float> scale(padded);
        pack_query(query, padded, levels.data(), scale.data());
        const hr::QueryCodes packed{levels.data(), scale.data(), scores.data(),
                                    static_cast<int64_t>(tokens), static_cast<int64_t>(padded),
                                    static_cast<int64_t>(scores.shape(1))};
        return variant_.products.maxsim(packed, index, starts.data(), lengths.data(),
                                        static_cast<int64_t>(out.size()), out.data());
    }

    void pack_query(const Matrix& query, size_t padded, int16_t* levels, float* scale) const {
        for (size_t q = 0; q < padded; ++q) {
            float top = 0;
            if (q < query.shape(0))
                for (size_t i = 0; i < d_; ++i) top = std::max(top, std::fabs(query(q, i)));
            const float step = top > 0 ? top / most_ : 1.0f;
            scale[q] = step * weight_scale_;
            const size_t block = q / 8, first = block / 4 * 4, blocks = std::min<size_t>(4, padded / 8 - first);
            for (size_t i = 0; i < d_; ++i) {
                const int16_t level =
                    q < query.shape(0) ? static_cast<int16_t>(std::lrint(query(q, i) / step)) : int16_t{0};
                levels[first * 8 * d_ + ((i / 2) * blocks + (block - first)) * 16 + (q % 8) * 2 + i % 2] = level;
            }
        }
    }

    const Variant& variant_;
    std::vector<float> centroids_, weights_;
    std::vector<uint8_t> buckets_;
    size_t k_, d_, per_byte_;
    float most_, weight_scale_;
    std::vector<int16_t> table_levels_, levels_;
    hr::Aligned<int8_t> digits_;  // the centroids', where the variant has tiles; else centroids_ holds them
    std::vector<float> digit_steps_;
    hr::Aligned<uint8_t> rows_;  // the centroids as bytes, where there are estimates
    std::vector<float> row_steps_;
    std::vector<float> squares_, scales_;
};

// Centroids, laid out once, for finding which of them is nearest.
class Assigner {
  public:
    Assigner(const std::string& variant, Matrix centroids, bool by_distance)
        : kernels_(variant_of(variant).nearest), k_(centroids.shape(0)), d_(centroids.shape(1)),
          centroids_(centroids.data(), centroids.data() + centroids.size()), steps_(k_), offsets_(k_) {
        require(kernels_ != nullptr, "this variant has no kernels for that");
        require(k_ > 0 && k_ <= UINT32_MAX && d_ > 0 && d_ <= 1024, "centroids must be float32 [K, D], D up to 1024");
        for (size_t c = 0; c < k_; ++c) {
            double square = 0;
            for (size_t i = 0; i < d_; ++i) square += static_cast<double>(centroids(c, i)) * centroids(c, i);
            require(std::isfinite(square), "centroids must be finite");
            offsets_[c] = by_distance ? static_cast<float>(square / 2) : 0.0f;
        }
        const auto k = static_cast<int64_t>(k_), d = static_cast<int64_t>(d_);
        packed_.resize(kernels_->packed_bytes(k, d));
        kernels_->pack(centroids.data(), k, d, packed_.data(), steps_.data());
    }
    Assigner(const Assigner&) = delete;

    // uint32 [N]
    nb::object nearest(Matrix vectors) const {
        require(vectors.shape(1) == d_, "vectors must be float32 [N, D]");
        const size_t count = vectors.shape(0);
        std::vector<uint32_t> found(count);
        {
            nb::gil_scoped_release released;
            kernels_->nearest(packed_.data(), steps_.data(), centroids_.data(), offsets_.data(),
                              static_cast<int64_t>(k_), static_cast<int64_t>(d_), vectors.data(),
                              static_cast<int64_t>(count), found.data());
        }
        return owned(std::move(found), {count});
    }

  private:
    const hr::NearestKernels* kernels_;
    size_t k_, d_;
    hr::Aligned<int8_t> packed_;
    std::vector<float> centroids_, steps_, offsets_;
};

bool finds_nearest(const std::string& variant) { return variant_of(variant).nearest != nullptr; }

}  // namespace

NB_MODULE(_native, m) {
    m.def("variants", &variants);
    m.def("finds_nearest", &finds_nearest, "variant"_a);
    nb::class_<Assigner>(m, "Assigner")
        .def(nb::init<const std::string&, Matrix, bool>(), "variant"_a, "centroids"_a, "by_distance"_a)
        .def("nearest", &Assigner::nearest, "vectors"_a);
    m.def("dense", &multiply, "variant"_a, "x"_a, "weight"_a, "scale"_a, "bias"_a);
    nb::class_<Projection>(m, "Projection")
        .def(nb::init<const std::string&, Matrix>(), "variant"_a, "weight"_a)
        .def("run", &Projection::run, "x"_a)
        .def("product", &Projection::product, "x"_a);
    nb::class_<Codec>(m, "Codec")
        .def(nb::init<const std::string&, Matrix, Floats, Array<uint8_t, nb::ndim<2>>>(), "variant"_a, "centroids"_a,
             "weights"_a, "buckets"_a)
        .def("centroid_scores", &Codec::centroid_scores, "query"_a)
        .def("levels", &Codec::levels, "scores"_a, "tokens"_a, "least"_a, "most"_a)
        .def("maxsim", &Codec::maxsim, "query"_a, "scores"_a, "codes"_a, "residuals"_a,
             "inverse_norms"_a.noconvert(), "starts"_a, "lengths"_a)
        .def_prop_ro("estimates", &Codec::estimates)
        .def_prop_ro("rough_levels", &Codec::rough_levels)
        .def("level_table", &Codec::level_table, "query"_a)
        .def("fill_scores", &Codec::fill_scores, "query"_a, "scores"_a.noconvert(), "known"_a.noconvert(), "codes"_a,
             "starts"_a, "lengths"_a)
        .def("estimate", &Codec::estimate, "query"_a, "scores"_a, "codes"_a, "residuals"_a,
             "inverse_norms"_a.noconvert(), "starts"_a, "lengths"_a)
        .def("candidates", &Codec::candidates, "table"_a, "tokens"_a, "nprobe"_a, "lists"_a, "list_offsets"_a,
             "windows"_a, "most"_a, "allowed"_a = nb::none())
        .def("approximate", &Codec::approximate, "table"_a, "codes"_a, "starts"_a, "lengths"_a);
    nb::class_<Trunk>(m, "Trunk")
        .def(nb::init<const std::string&, int64_t, int64_t, int64_t, float>(), "variant"_a, "hidden"_a, "heads"_a,
             "head_size"_a, "epsilon"_a)
        .def("add_layer", &Trunk::add_layer)
        .def("run", &Trunk::run, "x"_a, "offsets"_a, "seconds"_a = std::numeric_limits<double>::infinity());
}
