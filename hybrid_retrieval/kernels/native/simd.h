// The intrinsics of the instruction set that a variant is compiled for; none for the portable one.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(HR_NEON)
#include <arm_neon.h>
#endif
