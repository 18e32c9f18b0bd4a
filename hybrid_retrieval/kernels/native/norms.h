// 1 / |centroid + residual| of packed tokens, computed when a token is first scored and remembered.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.h"
#include "variants.h"

namespace hr {
namespace HR_VARIANT {
namespace {

// levels [D] of one packed residual
inline void unpack(const uint8_t* packed, int64_t width, int64_t per_byte, const int16_t* table, int16_t* levels) {
    switch (per_byte) {
        case 8:
            for (int64_t i = 0; i < width; ++i) std::memcpy(levels + 8 * i, table + 8 * packed[i], 16);
            break;
        case 4:
            for (int64_t i = 0; i < width; ++i) std::memcpy(levels + 4 * i, table + 4 * packed[i], 8);
            break;
        case 2:
            for (int64_t i = 0; i < width; ++i) std::memcpy(levels + 2 * i, table + 2 * packed[i], 4);
            break;
        default:
            for (int64_t i = 0; i < width; ++i) levels[i] = table[packed[i]];
    }
}

inline int32_t dot(const int16_t* a, const int16_t* b, int64_t n) {
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
    return sum;
}

// Shorter, and centroid and residual cancel: what is left has no direction but rounding's, so the token counts as the zero
// vector (`reference.SHORTEST`).
constexpr float kShortest = 0.1f;
constexpr float kNothing = 1e-30f;  // in place of an inverse norm; 0 says that nobody has asked yet

inline float inverse_norm(const PackedTokens& index, int64_t code, int32_t cw, int32_t ww) {
    const float square = index.centroid_squares[code] + index.centroid_scales[code] * static_cast<float>(cw) +
                         index.square_scale * static_cast<float>(ww);
    return square < kShortest * kShortest ? kNothing : 1.0f / std::sqrt(square);
}

constexpr int kUnpacked = 16;    // tokens unpacked at a time
constexpr int kMostNorms = 128;  // that are asked for at once
constexpr int kNormsAhead = 6;   // tokens whose centroid is fetched while those before them are read

#if defined(__AVX512BW__)
// Residuals of up to 4 bits a dimension, unpacked in registers, 32 dimensions at a time.
class Unpacker {
  public:
    explicit Unpacker(const PackedTokens& index) : index_(index), nbits_(static_cast<int>(8 / index.per_byte)) {
        alignas(64) int16_t levels[32] = {}, places[32], shifts[32];
        // A value in a byte's lowest bits, which are its last dimension's.
        for (int value = 0; value < 1 << nbits_; ++value)
            levels[value] = index.table[(value + 1) * index.per_byte - 1];
        for (int i = 0; i < 32; ++i) {
            places[i] = static_cast<int16_t>(0x8000 | i / static_cast<int>(index.per_byte));  // the upper byte: zero
            shifts[i] = static_cast<int16_t>(nbits_ * (index.per_byte - 1 - i % index.per_byte));
        }
        levels_ = _mm512_load_si512(levels);
        places_ = _mm512_load_si512(places);
        shifts_ = _mm512_load_si512(shifts);
        mask_ = _mm512_set1_epi16(static_cast<int16_t>((1 << nbits_) - 1));
    }

    float inverse_norm(int64_t token) const {
        const uint8_t* packed = index_.residuals + token * index_.width;
        const int64_t d = index_.dimensions, code = index_.codes[token], step = 4 * nbits_;
        const int16_t* centroid = index_.centroid_levels + code * d;
        __m512i cw = _mm512_setzero_si512(), ww = cw;
        int64_t i = 0;
        for (; i + 32 <= d; i += 32, packed += step) {
            __m512i bytes;  // a block's, in each of the four lanes
            if (nbits_ == 2) {
                bytes = _mm512_set1_epi64(load<int64_t>(packed));
            } else if (nbits_ == 1) {
                bytes = _mm512_set1_epi32(load<int32_t>(packed));
            } else {
                bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
            }
            const __m512i found = _mm512_permutexvar_epi16(values(bytes), levels_);
            cw = _mm512_dpwssd_epi32(cw, found, _mm512_loadu_si512(centroid + i));
            ww = _mm512_dpwssd_epi32(ww, found, found);
        }
        if (i < d) {
            const __mmask32 some = ~uint32_t{0} >> (32 - (d - i));
            const auto bytes = static_cast<__mmask16>(0xFFFF >> (16 - (d - i) * nbits_ / 8));
            const __m512i last = values(_mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(bytes, packed)));
            const __m512i found = _mm512_maskz_permutexvar_epi16(some, last, levels_);
            cw = _mm512_dpwssd_epi32(cw, found, _mm512_maskz_loadu_epi16(some, centroid + i));
            ww = _mm512_dpwssd_epi32(ww, found, found);
        }
        return hr::HR_VARIANT::inverse_norm(index_, code, _mm512_reduce_add_epi32(cw), _mm512_reduce_add_epi32(ww));
    }

    void prefetch(int64_t token) const {
        const int16_t* centroid = index_.centroid_levels + index_.codes[token] * index_.dimensions;
        for (int64_t i = 0; i < index_.dimensions; i += 32) __builtin_prefetch(centroid + i);
    }

  private:
    template <typename T>
    static T load(const uint8_t* packed) {
        T value;
        std::memcpy(&value, packed, sizeof value);
        return value;
    }

    // The values of a block's dimensions in lanes of 16 bits.
    __m512i values(__m512i bytes) const {
        const __m512i shifted = _mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, places_), shifts_);
        return _mm512_and_si512(shifted, mask_);
    }

    const PackedTokens& index_;
    const int nbits_;
    __m512i levels_, places_, shifts_, mask_;
};
#endif

// factors [count <= kMostNorms]: the inverse norms of tokens whose codes are below num_centroids; scratch [kUnpacked][D] is for levels.
// Threads may come to a token at once: they find the same number, so it does not matter whose is kept.
inline void inverse_norms(const PackedTokens& index, const int64_t* tokens, int count, int16_t* scratch, float* factors) {
    const auto keep = [&](int i, float factor) {
        factors[i] = factor;
        __atomic_store(index.inverse_norms + tokens[i], &factor, __ATOMIC_RELAXED);
    };
#if defined(__AVX512BW__)
    if (index.per_byte > 1) {
        const Unpacker unpacker(index);
        int waiting[kMostNorms], number = 0;
        for (int i = 0; i < count; ++i) {
            __atomic_load(index.inverse_norms + tokens[i], factors + i, __ATOMIC_RELAXED);
            if (!(factors[i] > 0)) waiting[number++] = i;
        }
        for (int i = 0; i < number; ++i) {
            if (i + kNormsAhead < number) unpacker.prefetch(tokens[waiting[i + kNormsAhead]]);
            keep(waiting[i], unpacker.inverse_norm(tokens[waiting[i]]));
        }
        return;
    }
#endif
    int waiting[kUnpacked], number = 0;
    for (int i = 0; i <= count; ++i) {
        // All of a batch before any product: a load across stores that are still on their way would wait for them.
        if (number == kUnpacked || (i == count && number)) {
            for (int j = 0; j < number; ++j) {
                const int64_t code = index.codes[tokens[waiting[j]]], d = index.dimensions;
                const int16_t* levels = scratch + j * d;
                const int32_t cw = dot(index.centroid_levels + code * d, levels, d);
                keep(waiting[j], inverse_norm(index, code, cw, dot(levels, levels, d)));
            }
            number = 0;
        }
        if (i == count) break;
        __atomic_load(index.inverse_norms + tokens[i], factors + i, __ATOMIC_RELAXED);
        if (factors[i] > 0) continue;
        unpack(index.residuals + tokens[i] * index.width, index.width, index.per_byte, index.table,
               scratch + number * index.dimensions);
        waiting[number++] = i;
    }
}

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
