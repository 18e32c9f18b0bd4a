// Python bindings: arrays are checked here once, and the global lock is released while a kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "variants.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T, typename Shape>
using Array = nb::ndarray<const T, Shape, nb::c_contig, nb::device::cpu>;
using Floats = Array<float, nb::ndim<1>>;
using Matrix = Array<float, nb::ndim<2>>;
using Weights = Array<int8_t, nb::ndim<2>>;
using Offsets = Array<int64_t, nb::ndim<1>>;

bool runs_here(const std::string& name) {
#if defined(HR_X86)
    __builtin_cpu_init();
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx512vnni")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return name == "portable";
}

// Best first.
std::vector<std::string> variants() {
    std::vector<std::string> names;
    for (const char* name : {"avx512vnni", "avx2", "portable"})
        if (runs_here(name)) names.emplace_back(name);
    return names;
}

const hr::Kernels& kernels(const std::string& name) {
    if (!runs_here(name)) throw nb::value_error(("this processor cannot run the variant '" + name + "'").c_str());
#if defined(HR_X86)
    if (name == "avx2") return hr::avx2::table;
    if (name == "avx512vnni") return hr::avx512vnni::table;
#endif
    return hr::portable::table;
}

template <typename T>
nb::object owned(std::vector<T>&& values, std::vector<size_t> shape) {
    auto* kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), shape.size(), shape.data(), owner));
}

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

class Dense {
  public:
    Dense(const hr::Kernels& kernels, Weights weight, Floats scale, Floats bias)
        : scale_(scale.data(), scale.data() + scale.shape(0)), bias_(bias.data(), bias.data() + bias.shape(0)) {
        const auto k = static_cast<int64_t>(weight.shape(0)), n = static_cast<int64_t>(weight.shape(1));
        require(k > 0 && n > 0 && k % 2 == 0 && k <= 8192, "weight must be int8 [K, N] with an even K of at most 8192");
        require(scale.shape(0) == weight.shape(1) && bias.shape(0) == weight.shape(1),
                "scale and bias must be float32 [N]");
        packed_.resize((n + kernels.panel - 1) / kernels.panel * kernels.panel * k);
        kernels.pack(weight.data(), k, n, packed_.data());
        view = {packed_.data(), scale_.data(), bias_.data(), k, n};
    }
    Dense(const Dense&) = delete;
    hr::Dense view;

  private:
    std::vector<int16_t> packed_;
    std::vector<float> scale_, bias_;
};

// Layers of one trunk, in the packing of one variant.
class Trunk {
  public:
    Trunk(const std::string& variant, int64_t hidden, int64_t heads, int64_t head_size, float epsilon)
        : kernels_(kernels(variant)), shape_{hidden, heads, head_size, epsilon} {
        require(hidden > 0 && heads > 0, "hidden and heads must be positive");
        require(head_size > 0 && head_size % 32 == 0, "head_size must be a multiple of 32");
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

    nb::object run(Matrix x, Offsets offsets) const {
        require(x.shape(1) == static_cast<size_t>(shape_.hidden), "x must be float32 [T, hidden]");
        require(offsets.shape(0) > 0 && offsets(0) == 0, "offsets must start at 0");
        const auto sequences = static_cast<int64_t>(offsets.shape(0)) - 1;
        for (int64_t i = 0; i < sequences; ++i) require(offsets(i) <= offsets(i + 1), "offsets must never fall");
        require(offsets(sequences) == static_cast<int64_t>(x.shape(0)), "offsets must end at the number of rows of x");
        std::vector<float> states(x.data(), x.data() + x.size());
        {
            nb::gil_scoped_release released;
            if (!states.empty())
                kernels_.run(states.data(), offsets.data(), sequences, layers_.data(),
                             static_cast<int64_t>(layers_.size()), shape_);
        }
        return owned(std::move(states), {x.shape(0), x.shape(1)});
    }

  private:
    const hr::Kernels& kernels_;
    hr::TrunkShape shape_;
    std::vector<std::unique_ptr<Dense>> dense_;
    std::vector<std::vector<float>> norms_;
    std::vector<hr::Layer> layers_;
};

nb::object project(const std::string& variant, Matrix x, Matrix weight) {
    const hr::Kernels& table = kernels(variant);
    require(x.shape(1) == weight.shape(1), "x and weight must be float32 [M, K] and [N, K]");
    const size_t m = x.shape(0), k = x.shape(1), n = weight.shape(0), stride = (n + 31) / 32 * 32;
    std::vector<float> columns(k * stride), out(m * n);
    for (size_t j = 0; j < n; ++j)
        for (size_t i = 0; i < k; ++i) columns[i * stride + j] = weight(j, i);
    {
        nb::gil_scoped_release released;
        table.project(x.data(), static_cast<int64_t>(m), static_cast<int64_t>(k), columns.data(),
                      static_cast<int64_t>(stride), static_cast<int64_t>(n), out.data());
    }
    return owned(std::move(out), {m, n});
}

nb::object multiply(const std::string& variant, Matrix x, Weights weight, Floats scale, Floats bias) {
    const hr::Kernels& table = kernels(variant);
    Dense layer(table, weight, scale, bias);
    require(x.shape(1) == weight.shape(0), "x must be float32 [M, K]");
    std::vector<float> out(x.shape(0) * weight.shape(1));
    table.dense(x.data(), static_cast<int64_t>(x.shape(0)), layer.view, out.data());
    return owned(std::move(out), {x.shape(0), weight.shape(1)});
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("variants", &variants);
    m.def("dense", &multiply, "variant"_a, "x"_a, "weight"_a, "scale"_a, "bias"_a);
    m.def("project", &project, "variant"_a, "x"_a, "weight"_a);
    nb::class_<Trunk>(m, "Trunk")
        .def(nb::init<const std::string&, int64_t, int64_t, int64_t, float>(), "variant"_a, "hidden"_a, "heads"_a,
             "head_size"_a, "epsilon"_a)
        .def("add_layer", &Trunk::add_layer)
        .def("run", &Trunk::run, "x"_a, "offsets"_a);
}
