// Packed residuals as bytes side by side, 64 at a time, for products of bytes; and floats as whole numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace hr {
namespace HR_VARIANT {
namespace {

constexpr int64_t kInputs = 64;  // of a step: bytes of a register

// The nearest whole number, by its bits: adding 1.5 * 2^23 leaves no room for a fraction. values: at most 2^22.
inline int32_t whole(float value, float inverse) {
    const float shifted = value * inverse + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4B400000;
}

// How residuals of one index are spread over steps of 64 inputs. A step takes the same bits of bytes that stand side by
// side: of 64 of them, or of 32 or 16 where a residual has no more, and then other bits of them beside.
struct Spread {
    int64_t width, per_byte, chunk, chunks, copies, steps;
    int nbits;
    Spread(int64_t width, int64_t per_byte)
        : width(width), per_byte(per_byte), chunk(width > 32 ? 64 : width > 16 ? 32 : 16),
          chunks((width + chunk - 1) / chunk), copies(std::min<int64_t>(64 / chunk, per_byte)),
          steps(chunks * per_byte / copies), nbits(static_cast<int>(8 / per_byte)) {}
    // The dimension behind an input, counted over all steps; -1 where there is none.
    int64_t dimension(int64_t input) const {
        const int64_t step = input / kInputs, i = input % kInputs;
        const int64_t copy = i / chunk, each = per_byte / copies, byte = step / each * chunk + i % chunk;
        if (copy >= copies || byte >= width) return -1;
        return (byte + 1) * per_byte - 1 - (step % each * copies + copy);  // a byte's lowest bits are its last dimension
    }
};

#if defined(__AVX512BW__)
// Unpacks residuals as they are spread.
class Spreader {
  public:
    explicit Spreader(const Spread& spread) : spread_(spread), each_(spread.per_byte / spread.copies) {
        for (int64_t s = 0; s < each_; ++s)
            for (int lane = 0; lane < 32; ++lane) {
                const int64_t copy = std::min(2 * lane / spread.chunk, spread.copies - 1);
                shifts_[s][lane] = static_cast<uint16_t>((s * spread.copies + copy) * spread.nbits);
            }
    }

    // Calls take(step, values) with each step's values, bytes below 2^nbits.
    template <typename Take>
    void unpack(const uint8_t* packed, const Take& take) const {
        const auto take_all = [&](__m512i bytes, int64_t chunk, int64_t each) {
            const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << spread_.nbits) - 1));
            for (int64_t s = 0; s < each; ++s)
                take(chunk * each + s, _mm512_and_si512(_mm512_srlv_epi16(bytes, _mm512_load_si512(shifts_[s])), mask));
        };
        if (spread_.width == 64 && each_ == 4) return take_all(_mm512_loadu_si512(packed), 0, 4);  // 256 dimensions of 2 bits
        for (int64_t chunk = 0; chunk < spread_.chunks; ++chunk) {
            const int64_t left = std::min(spread_.chunk, spread_.width - chunk * spread_.chunk);
            const uint8_t* from = packed + chunk * spread_.chunk;
            __m512i bytes;
            if (spread_.chunk == 64)
                bytes = _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - left), from);
            else if (spread_.chunk == 32)
                bytes = _mm512_broadcast_i64x4(_mm256_maskz_loadu_epi8(~uint32_t{0} >> (32 - left), from));
            else
                bytes = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(static_cast<__mmask16>(0xFFFF >> (16 - left)), from));
            take_all(bytes, chunk, each_);
        }
    }

  private:
    const Spread spread_;
    const int64_t each_;  // steps of a chunk
    alignas(64) uint16_t shifts_[8][32];
};
#endif

}  // namespace
}  // namespace HR_VARIANT
}  // namespace hr
