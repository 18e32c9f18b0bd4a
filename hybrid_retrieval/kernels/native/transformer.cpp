// BERT layers over unpadded sequences: int8 weights, activations on 256 levels between a token's least and largest, exact
// 32-bit sums.
//
// AMX multiplies tiles of such numbers (amx.h). AVX-512 VNNI multiplies and sums four 8-bit pairs at once (vpdpbusd).
// Without an 8-bit dot instruction, 16-bit products (pmaddwd) are as fast as 8-bit ones, which would need a second
// multiplication to widen. Sums of whole numbers do not depend on order: every variant gives the same integers, and a
// row never depends on the rows beside it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "aligned.h"
#include "simd.h"
#include "variants.h"
#include "vectors.h"
#if defined(__AMX_INT8__)
#include "amx.h"
#include "amx_attention.h"
#else
#include "attention.h"
#endif

namespace hr {
namespace HR_VARIANT {
namespace {

// kPanel: columns whose weights are read together. kTogether: weights of a column that stand side by side, as the
// instruction takes them. kTile: rows whose accumulators, two each, fit the registers.
#if defined(__AVX512VNNI__)
typedef uint8_t Code;
typedef int8_t Weight;
constexpr int64_t kPanel = 32, kTogether = 4, kTile = 8;
#else
typedef int16_t Code;
typedef int16_t Weight;
constexpr int64_t kPanel = 16;
#if defined(HR_NEON)
constexpr int64_t kTogether = 1, kTile = 4;
#else
constexpr int64_t kTogether = 2, kTile = 4;
#endif
#endif
constexpr int64_t kBlock = 128;  // rows that stay in the second-level cache while all panels pass
constexpr int64_t kInputs = 512;  // of a panel at a time: 16 KB of weights that stay in the first-level cache
constexpr int64_t kGroup = 160;  // tokens that go through the layers together, at least, where there are as many
constexpr float kLevels = 255.0f;  // steps; 255 * 127 * K stays below 2^31 up to K = 66,311

// [ceil(N / kPanel)][K / kTogether][kPanel][kTogether]
void pack(const int8_t* weight, int64_t k, int64_t n, void* to) {
    auto* out = static_cast<Weight*>(to);
    const int64_t panels = (n + kPanel - 1) / kPanel;
    for (int64_t p = 0; p < panels; ++p)
        for (int64_t i = 0; i < k; i += kTogether)
            for (int64_t j = 0; j < kPanel; ++j)
                for (int64_t t = 0; t < kTogether; ++t) {
                    const int64_t column = p * kPanel + j;
                    *out++ = column < n ? weight[(i + t) * n + column] : 0;
                }
}

// x * Phi(x), Phi by Abramowitz and Stegun 7.1.28 (absolute error of erf 3e-7).
void gelu(const float* x, int64_t count, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const float v = x[i], z = std::fabs(v) * 0.70710678118654752f;
        float p = 0.0000430638f;
        p = p * z + 0.0002765672f;
        p = p * z + 0.0001520143f;
        p = p * z + 0.0092705272f;
        p = p * z + 0.0422820123f;
        p = p * z + 0.0705230784f;
        p = p * z + 1.0f;
        p *= p;
        p *= p;
        p *= p;
        p *= p;
        const float tail = 0.5f / p;
        out[i] = v * (v >= 0 ? 1.0f - tail : tail);
    }
}

// Room for the codes of m rows of k; where code j of row i stands, and how many stand side by side from j on.
#if defined(__AMX_INT8__)
inline bool tiled(int64_t k) { return k % kTileInputs == 0; }  // other rows stand one below the other
inline int64_t room(int64_t m, int64_t k) { return (m + kTileRows - 1) / kTileRows * kTileRows * k; }
inline int64_t place(int64_t i, int64_t j, int64_t k) { return tiled(k) ? tiled_place(i, j, k) : i * k + j; }
inline int64_t adjacent(int64_t j, int64_t k) { return tiled(k) ? kTileInputs : k - j; }
#else
inline int64_t room(int64_t m, int64_t k) { return m * k; }
inline int64_t place(int64_t i, int64_t j, int64_t k) { return i * k + j; }
inline int64_t adjacent(int64_t j, int64_t k) { return k - j; }
#endif

struct Scratch {
    Aligned<Code> codes;
    Aligned<float> step, least;
    Aligned<float> activated, scaled;
};

// x [m, k], or gelu(x), in whole numbers: a row is about least + step * codes.
template <bool activate>
void quantise_rows(const float* x, int64_t m, int64_t k, Scratch& to) {
    to.codes.resize(room(m, k));
    to.step.resize(m);
    to.least.resize(m);
    to.scaled.resize(k);
    to.activated.resize(k);
    float* scaled = to.scaled.data();
    for (int64_t i = 0; i < m; ++i) {
        const float* row = x + i * k;
        if (activate) {
            gelu(row, k, to.activated.data());
            row = to.activated.data();
        }
        float least = row[0], most = row[0], none = 0;
#pragma omp simd reduction(min : least) reduction(max : most) reduction(+ : none)
        for (int64_t j = 0; j < k; ++j) {
            least = row[j] < least ? row[j] : least;
            most = row[j] > most ? row[j] : most;
            none += row[j] * 0.0f;  // NaN for a row that is not finite, and so is all that comes of it
        }
        const float range = most - least;
        const bool usable = range > 0 && std::isfinite(range);
        to.step[i] = (usable ? range / kLevels : 0.0f) + none;
        to.least[i] = least;
        const float factor = usable ? kLevels / range : 0.0f;
        if (!usable) {
            for (int64_t j = 0; j < k; ++j) to.codes[place(i, j, k)] = 0;
            continue;
        }
        // Adding and taking away 1.5 * 2^23 rounds to the nearest even whole number. Two loops, so that no processor
        // fuses the product with the sum: all variants round alike.
#pragma omp simd
        for (int64_t j = 0; j < k; ++j) scaled[j] = (row[j] - least) * factor;
        for (int64_t first = 0, count; first < k; first += count) {
            count = adjacent(first, k);
            Code* codes = to.codes.data() + place(i, first, k);
#pragma omp simd
            for (int64_t j = 0; j < count; ++j)
                codes[j] = static_cast<Code>(static_cast<int32_t>((scaled[first + j] + 12582912.0f) - 12582912.0f));
        }
    }
}

#if defined(HR_NEON)
// The products of one input, in `lane` of each row's `a`, with its weights in a panel, added to acc.
template <int rows, int lane>
inline void add_input(const int16x8_t* a, const int16_t* weights, int32x4_t (*acc)[4]) {
    const int16x8_t b0 = vld1q_s16(weights), b1 = vld1q_s16(weights + 8);
    for (int r = 0; r < rows; ++r) {
        acc[r][0] = vmlal_laneq_s16(acc[r][0], vget_low_s16(b0), a[r], lane);
        acc[r][1] = vmlal_high_laneq_s16(acc[r][1], b0, a[r], lane);
        acc[r][2] = vmlal_laneq_s16(acc[r][2], vget_low_s16(b1), a[r], lane);
        acc[r][3] = vmlal_high_laneq_s16(acc[r][3], b1, a[r], lane);
    }
}
#endif

// Whole-number sums of `rows` rows, `stride` apart, over k inputs of one panel: sums [rows][kPanel].
template <int rows>
inline void multiply(const Code* a, int64_t stride, int64_t k, const Weight* panel, int32_t* sums) {
#if defined(__AVX512VNNI__)
    __m512i acc[rows][2];
    for (int r = 0; r < rows; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < k / 4; ++i) {
        const __m512i b0 = _mm512_loadu_si512(panel + i * 4 * kPanel);
        const __m512i b1 = _mm512_loadu_si512(panel + i * 4 * kPanel + 64);
        for (int r = 0; r < rows; ++r) {
            int32_t four;
            std::memcpy(&four, a + r * stride + 4 * i, 4);
            const __m512i all = _mm512_set1_epi32(four);
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], all, b0);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], all, b1);
        }
    }
    for (int r = 0; r < rows; ++r) {
        _mm512_storeu_si512(sums + r * kPanel, acc[r][0]);
        _mm512_storeu_si512(sums + r * kPanel + 16, acc[r][1]);
    }
#elif defined(__AVX2__)
    __m256i acc[rows][2];
    for (int r = 0; r < rows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t i = 0; i < k / 2; ++i) {
        const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + i * 2 * kPanel));
        const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + i * 2 * kPanel + 16));
        for (int r = 0; r < rows; ++r) {
            int32_t two;
            std::memcpy(&two, a + r * stride + 2 * i, 4);
            const __m256i both = _mm256_set1_epi32(two);
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(both, b0));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(both, b1));
        }
    }
    for (int r = 0; r < rows; ++r) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * kPanel), acc[r][0]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * kPanel + 8), acc[r][1]);
    }
#elif defined(HR_NEON)
    int32x4_t acc[rows][4];
    for (int r = 0; r < rows; ++r) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = vdupq_n_s32(0);
    int16x8_t eight[rows];
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) {
        for (int r = 0; r < rows; ++r) eight[r] = vld1q_s16(a + r * stride + i);
        const int16_t* weights = panel + i * kPanel;
        add_input<rows, 0>(eight, weights, acc);
        add_input<rows, 1>(eight, weights + kPanel, acc);
        add_input<rows, 2>(eight, weights + 2 * kPanel, acc);
        add_input<rows, 3>(eight, weights + 3 * kPanel, acc);
        add_input<rows, 4>(eight, weights + 4 * kPanel, acc);
        add_input<rows, 5>(eight, weights + 5 * kPanel, acc);
        add_input<rows, 6>(eight, weights + 6 * kPanel, acc);
        add_input<rows, 7>(eight, weights + 7 * kPanel, acc);
    }
    for (; i < k; ++i) {
        for (int r = 0; r < rows; ++r) eight[r] = vdupq_n_s16(a[r * stride + i]);
        add_input<rows, 0>(eight, panel + i * kPanel, acc);
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < 4; ++v) vst1q_s32(sums + r * kPanel + 4 * v, acc[r][v]);
#else
    for (int r = 0; r < rows; ++r) {
        int32_t acc[kPanel] = {};
        for (int64_t i = 0; i < k / 2; ++i) {
            const int32_t first = a[r * stride + 2 * i], second = a[r * stride + 2 * i + 1];
            const int16_t* b = panel + i * 2 * kPanel;
            for (int64_t j = 0; j < kPanel; ++j) acc[j] += first * b[2 * j] + second * b[2 * j + 1];
        }
        std::memcpy(sums + r * kPanel, acc, sizeof acc);
    }
#endif
}

// What whole-number sums [rows][kPanel] of rows from i on with one panel mean, written to out.
inline void finish(const Scratch& x, int64_t i, int64_t rows, const Dense& layer, int64_t p, const int32_t* sums,
                   float* out) {
    const int64_t first = p * kPanel, width = std::min(kPanel, layer.n - first);
    for (int64_t r = 0; r < rows; ++r) {
        float* to = out + (i + r) * layer.n + first;
        const float step = x.step[i + r], least = x.least[i + r];
#pragma omp simd
        for (int64_t j = 0; j < width; ++j)
            to[j] = static_cast<float>(sums[r * kPanel + j]) * (step * layer.scale[first + j]) +
                    (least * layer.sums[first + j] + layer.bias[first + j]);
    }
}

// Rows i to i + rows of one panel, inputs from `from` on: added to what `partial` [rows][kPanel] holds, and written to out
// with the last inputs.
template <int rows>
inline void tile(const Scratch& x, int64_t i, const Dense& layer, int64_t p, int64_t from, int32_t* partial, float* out) {
    int32_t sums[rows * kPanel];
    const int64_t count = std::min(kInputs, layer.k - from);
    const Weight* panel = static_cast<const Weight*>(layer.packed) + (p * layer.k + from) * kPanel;
    multiply<rows>(x.codes.data() + i * layer.k + from, layer.k, count, panel, sums);
    if (from > 0)
        for (int64_t j = 0; j < rows * kPanel; ++j) sums[j] += partial[j];
    if (from + count < layer.k) {
        std::memcpy(partial, sums, sizeof sums);
        return;
    }
    finish(x, i, rows, layer, p, sums, out);
}

#if defined(__AMX_INT8__)
// Rows from `first` to `last` of one panel. sums: room for [kBlock][kPanel].
void multiply_tiles(const Scratch& x, int64_t first, int64_t last, const Dense& layer, int64_t p, int32_t* sums,
                    float* out) {
    const int64_t next = kTileRows * layer.k;
    for (int64_t from = 0; from < layer.k; from += kInputs) {
        const int64_t count = std::min(kInputs, layer.k - from);
        const Weight* panel = static_cast<const Weight*>(layer.packed) + (p * layer.k + from) * kPanel;
        for (int64_t i = first; i < last; i += 2 * kTileRows) {
            const Code* codes = x.codes.data() + tiled_place(i, from, layer.k);
            int32_t* here = sums + (i - first) * kPanel;
            if (last - i > kTileRows)
                tile_products<true>(codes, next, count, panel, here, from > 0);
            else
                tile_products<false>(codes, next, count, panel, here, from > 0);
            if (from + count == layer.k) finish(x, i, std::min(2 * kTileRows, last - i), layer, p, here, out);
        }
    }
}
#endif

// x, or gelu(x), times the layer's weights.
template <bool activate = false>
void multiply_all(const float* x, int64_t m, const Dense& layer, float* out, Scratch& scratch) {
    quantise_rows<activate>(x, m, layer.k, scratch);
    const int64_t panels = (layer.n + kPanel - 1) / kPanel;
    alignas(64) int32_t partial[kBlock * kPanel];
#if defined(__AMX_INT8__)
    if (tiled(layer.k)) {
        for (int64_t first = 0; first < m; first += kBlock)
            for (int64_t p = 0; p < panels; ++p)
                multiply_tiles(scratch, first, std::min(m, first + kBlock), layer, p, partial, out);
        return;
    }
#endif
    for (int64_t first = 0; first < m; first += kBlock) {
        const int64_t last = std::min(m, first + kBlock);
        for (int64_t p = 0; p < panels; ++p)
            for (int64_t from = 0; from < layer.k; from += kInputs) {
                int64_t i = first;
                for (; i + kTile <= last; i += kTile)
                    tile<kTile>(scratch, i, layer, p, from, partial + (i - first) * kPanel, out);
                if (kTile > 4 && i + 4 <= last) {
                    tile<4>(scratch, i, layer, p, from, partial + (i - first) * kPanel, out);
                    i += 4;
                }
                for (; i < last; ++i) tile<1>(scratch, i, layer, p, from, partial + (i - first) * kPanel, out);
            }
    }
}

void dense(const float* x, int64_t m, const Dense& layer, float* out) {
    Scratch scratch;
#if defined(__AMX_INT8__)
    const Tiles tiles;
#endif
    multiply_all(x, m, layer, out, scratch);
}

// x = LayerNorm(x + y), rows of H.
void add_norm(float* x, const float* y, int64_t m, int64_t h, const Norm& norm, float epsilon) {
    for (int64_t i = 0; i < m; ++i) {
        float* row = x + i * h;
        const float* other = y + i * h;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < h; ++j) {
            row[j] += other[j];
            sum += row[j];
        }
        const float mean = sum / static_cast<float>(h);
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t j = 0; j < h; ++j) square += (row[j] - mean) * (row[j] - mean);
        const float factor = 1.0f / std::sqrt(square / static_cast<float>(h) + epsilon);
#pragma omp simd
        for (int64_t j = 0; j < h; ++j) row[j] = (row[j] - mean) * factor * norm.weight[j] + norm.bias[j];
    }
}

// Unit rows of x [M, K] times matrix [K, stride], whose columns from n on are padding: out [M, n].
void project(const float* x, int64_t m, int64_t k, const float* matrix, int64_t stride, int64_t n, float* out) {
    Aligned<float> rows(kRows * stride);
    for (int64_t i = 0; i < m; i += kRows) {
        const int64_t count = std::min(kRows, m - i);
        if (count == kRows)
            query_scores<kRows>(x + i * k, k, matrix, stride, k, rows.data());
        else
            for (int64_t r = 0; r < count; ++r)
                query_scores<1>(x + (i + r) * k, k, matrix, stride, k, rows.data() + r * stride);
        for (int64_t r = 0; r < count; ++r) {
            float square = 0;
            for (int64_t j = 0; j < n; ++j) square += rows[r * stride + j] * rows[r * stride + j];
            const float factor = 1.0f / std::max(std::sqrt(square), 1e-12f);
            for (int64_t j = 0; j < n; ++j) out[(i + r) * n + j] = rows[r * stride + j] * factor;
        }
    }
}

void multiply_matrix(const float* x, int64_t m, int64_t k, const float* matrix, int64_t stride, float* out) {
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) query_scores<kRows>(x + i * k, k, matrix, stride, k, out + i * stride);
    for (; i < m; ++i) query_scores<1>(x + i * k, k, matrix, stride, k, out + i * stride);
}

bool run_group(float* x, const int64_t* offsets, int64_t sequences, const Layer* layers, int64_t depth,
               const TrunkShape& shape, const Time& time) {
    const int64_t start = offsets[0], total = offsets[sequences] - start;
    const int64_t h = shape.hidden, width = shape.heads * shape.head_size;
    Scratch scratch;
    Aligned<float> wide, narrow(total * width), sum(total * h);
    Attention attention;
    for (int64_t i = 0; i < depth; ++i) {
        if (time.is_up(time)) return false;
        const Layer& layer = layers[i];
        wide.resize(total * std::max(3 * width, layer.inner.n));
        multiply_all(x, total, layer.qkv, wide.data(), scratch);
        for (int64_t s = 0; s < sequences; ++s) {
            const float* qkv = wide.data() + (offsets[s] - start) * 3 * width;
            const int64_t length = offsets[s + 1] - offsets[s];
            float* to = narrow.data() + (offsets[s] - start) * width;
            attention.run(qkv, length, shape.heads, shape.head_size, to);
        }
        multiply_all(narrow.data(), total, layer.attention_out, sum.data(), scratch);
        add_norm(x, sum.data(), total, h, layer.attention_norm, shape.epsilon);
        multiply_all(x, total, layer.inner, wide.data(), scratch);
        multiply_all<true>(wide.data(), total, layer.outer, sum.data(), scratch);
        add_norm(x, sum.data(), total, h, layer.outer_norm, shape.epsilon);
    }
    return true;
}

bool run(float* x, const int64_t* offsets, int64_t sequences, const Layer* layers, int64_t depth,
         const TrunkShape& shape, const Time& time) {
#if defined(__AMX_INT8__)
    const Tiles tiles;
#endif
    for (int64_t first = 0; first < sequences;) {
        int64_t last = first + 1;
        while (last < sequences && offsets[last] - offsets[first] < kGroup) ++last;
        if (!run_group(x + offsets[first] * shape.hidden, offsets + first, last - first, layers, depth, shape, time))
            return false;
        first = last;
    }
    return true;
}

}  // namespace

extern const Kernels table;
const Kernels table{kPanel, sizeof(Weight), pack, dense, run, project, multiply_matrix};

}  // namespace HR_VARIANT
}  // namespace hr
