// Products of int8 weights for one instruction set; engine_kernels.h includes this.
//
// A row x becomes integers n with one scale: n = round(x 127 / max |x|). Sums of n times weight are
// exact in 32 bits, so that every instruction set computes the same numbers, and NumPy too.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../simd.h"
#include "functions.h"

namespace hf_qrnn {
namespace engine {
namespace {

using Integers = Simd<float>::I;
using Longs = uint64_t __attribute__((vector_size(QRNN_SIMD_BYTES)));
using Shorts = int16_t __attribute__((vector_size(QRNN_SIMD_BYTES)));
using ShortBytes = int8_t __attribute__((vector_size(QRNN_SIMD_BYTES / 2)));

// How many rows and sums a product keeps in registers. Without VNNI a sum has two halves.
#if defined(__AVX512VNNI__)
using Number = uint8_t;  // n + 128: its instruction wants one factor without a sign
constexpr int kShift = 128, kInt8Rows = 6, kHalves = 1;
#else
using Number = int16_t;
constexpr int kShift = 0, kInt8Rows = 3, kHalves = 2;
#endif
using NumberLanes = Number __attribute__((vector_size(kLanes * sizeof(Number))));

// Rows that are made integers at once.
constexpr int64_t kMostRows = 96;
// A row whose largest number is smaller is 0: the inverse could be infinite.
constexpr float kLeast = 1e-30f;

QRNN_INLINE Integers load_integers(const void* p) {
  Integers x;
  memcpy(&x, p, sizeof x);
  return x;
}

// The nearest integers, ties to even. Never a multiplication and an addition: where a CPU makes
// one of both, the number is another.
QRNN_INLINE Integers nearest(V x) {
#if QRNN_SIMD_BYTES == 64
  return bits_of<Integers>(_mm512_cvtps_epi32(bits_of<__m512>(x)));
#elif QRNN_SIMD_BYTES == 32
  return bits_of<Integers>(_mm256_cvtps_epi32(bits_of<__m256>(x)));
#elif defined(__SSE2__)
  return bits_of<Integers>(_mm_cvtps_epi32(bits_of<__m128>(x)));
#else
  Integers n;
  for (int lane = 0; lane < kLanes; ++lane) n[lane] = static_cast<int32_t>(__builtin_rintf(x[lane]));
  return n;
#endif
}

// Make a row integers, whole lanes of them, and return its scale; NaN where a number is not finite.
QRNN_INLINE float quantize(const float* x, int64_t size, Number* numbers) {
  Integers most = {};
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    // Bits of numbers without a sign are in the order of the numbers, and NaN is the largest.
    const Integers bits =
        bits_of<Integers>(load<decltype(is_tail)::value, float>(x + at, count)) & 0x7FFFFFFF;
    most = bits > most ? bits : most;
  });
  int32_t top = 0;
  for (int lane = 0; lane < kLanes; ++lane) top = most[lane] > top ? most[lane] : top;
  float largest;
  memcpy(&largest, &top, sizeof largest);
  const bool is_finite = top < 0x7F800000, is_seen = is_finite && largest >= kLeast;
  const float factor = is_seen ? 127.0f / largest : 0.0f;
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    Integers n = {};
    if (is_seen) n = nearest(load<decltype(is_tail)::value, float>(x + at, count) * factor);
    const NumberLanes lanes = __builtin_convertvector(n + kShift, NumberLanes);
    memcpy(numbers + at, &lanes, sizeof lanes);
  });
  if (!is_finite) return __builtin_nanf("");
  return is_seen ? largest / 127.0f : 0.0f;
}

#if !defined(__AVX512VNNI__)
QRNN_INLINE Shorts widened(const int8_t* p) {
  ShortBytes x;
  memcpy(&x, p, sizeof x);
#if QRNN_SIMD_BYTES == 64
  return bits_of<Shorts>(_mm512_cvtepi8_epi16(bits_of<__m256i>(x)));
#elif QRNN_SIMD_BYTES == 32
  return bits_of<Shorts>(_mm256_cvtepi8_epi16(bits_of<__m128i>(x)));
#elif defined(__SSE2__)
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i sign = _mm_cmpgt_epi8(_mm_setzero_si128(), low);
  return bits_of<Shorts>(_mm_unpacklo_epi8(low, sign));
#else
  return __builtin_convertvector(x, Shorts);
#endif
}

// Products of neighbours, summed.
QRNN_INLINE Integers multiply_pairs(Shorts a, Shorts b) {
#if QRNN_SIMD_BYTES == 64
  return bits_of<Integers>(_mm512_madd_epi16(bits_of<__m512i>(a), bits_of<__m512i>(b)));
#elif QRNN_SIMD_BYTES == 32
  return bits_of<Integers>(_mm256_madd_epi16(bits_of<__m256i>(a), bits_of<__m256i>(b)));
#elif defined(__SSE2__)
  return bits_of<Integers>(_mm_madd_epi16(bits_of<__m128i>(a), bits_of<__m128i>(b)));
#elif defined(__aarch64__)
  const int16x8_t p = bits_of<int16x8_t>(a), q = bits_of<int16x8_t>(b);
  const int32x4_t low = vmull_s16(vget_low_s16(p), vget_low_s16(q));
  return bits_of<Integers>(vpaddq_s32(low, vmull_high_s16(p, q)));
#else
  Integers sums;
  for (int lane = 0; lane < kLanes; ++lane) {
    sums[lane] = a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1];
  }
  return sums;
#endif
}

// Sums of neighbours of two vectors, those of `a` first.
QRNN_INLINE Integers sum_pairs(Integers a, Integers b) {
#if QRNN_SIMD_BYTES == 64
  constexpr Integers kEven = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
#elif QRNN_SIMD_BYTES == 32
  constexpr Integers kEven = {0, 2, 4, 6, 8, 10, 12, 14};
#else
  constexpr Integers kEven = {0, 2, 4, 6};
#endif
  return __builtin_shuffle(a, b, kEven) + __builtin_shuffle(a, b, kEven + 1);
}
#endif

// Sums of R rows and U vectors of a panel's columns.
template <int R, int U>
struct Sums {
  Integers parts[R][kHalves * U];

  QRNN_INLINE Integers of(int r, int u) const {
#if defined(__AVX512VNNI__)
    return parts[r][u];
#else
    return sum_pairs(parts[r][2 * u], parts[r][2 * u + 1]);
#endif
  }
};

#if defined(__AVX512VNNI__)
template <int R, int U>
QRNN_INLINE Sums<R, U> sum_groups(const Number* x, int64_t x_stride, const int8_t* panel,
                                  int64_t groups, const int32_t* shifts) {
  Sums<R, U> sums;
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) sums.parts[r][u] = load_integers(shifts + u * kLanes);
  }
  for (int64_t g = 0; g < groups; ++g, panel += kPanel * kGroup) {
    if (R <= 2) __builtin_prefetch(panel + 16 * kPanel * kGroup);
    Integers b[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) b[u] = load_integers(panel + u * kLanes * kGroup);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      int32_t four;
      memcpy(&four, x + r * x_stride + g * kGroup, sizeof four);
      const __m512i a = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        sums.parts[r][u] = bits_of<Integers>(_mm512_dpbusd_epi32(
            bits_of<__m512i>(sums.parts[r][u]), a, bits_of<__m512i>(b[u])));
      }
    }
  }
  return sums;
}
#else
template <int R, int U>
QRNN_INLINE Sums<R, U> sum_groups(const Number* x, int64_t x_stride, const int8_t* panel,
                                  int64_t groups, const int32_t*) {
  Sums<R, U> sums = {};
  for (int64_t g = 0; g < groups; ++g, panel += kPanel * kGroup) {
    if (R == 1) __builtin_prefetch(panel + 16 * kPanel * kGroup);
    Shorts a[R];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      uint64_t four;
      memcpy(&four, x + r * x_stride + g * kGroup, sizeof four);
      a[r] = bits_of<Shorts>(Longs{} + four);
    }
#pragma GCC unroll 8
    for (int u = 0; u < 2 * U; ++u) {
      const Shorts b = widened(panel + u * 2 * kLanes);
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) sums.parts[r][u] += multiply_pairs(a[r], b);
    }
  }
  return sums;
}
#endif

// What a product writes: y, its rows `stride` apart, from a column on; see `Kernels::product`.
struct Target {
  const float* bias;
  float* y;
  int64_t stride, columns;
  bool adds;
};

template <int R, int U>
void int8_block(const Number* x, int64_t x_stride, const float* x_scales, const int8_t* panel,
                int64_t groups, const float* scales, const int32_t* shifts, const Target& target) {
  const Sums<R, U> sums = sum_groups<R, U>(x, x_stride, panel, groups, shifts);
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const int64_t at = u * kLanes, count = target.columns - at;
      const V scale = load_all(scales + at) * x_scales[r];
      V y = __builtin_convertvector(sums.of(r, u), V) * scale;
      float* out = target.y + r * target.stride + at;
      if (count >= kLanes) {
        if (target.bias) y += load_all(target.bias + at);
        if (target.adds) y += load_all(out);
        store<false, float>(out, y, kLanes);
      } else {
        if (target.bias) y += load<true, float>(target.bias + at, count);
        if (target.adds) y += load<true, float>(out, count);
        store<true, float>(out, y, count);
      }
    }
  }
}

template <int U>
void int8_panel(const Number* x, int64_t x_stride, const float* x_scales, int64_t rows,
                const int8_t* panel, int64_t groups, const float* scales, const int32_t* shifts,
                Target target) {
  int64_t r = 0;
  for (; r + kInt8Rows <= rows; r += kInt8Rows, target.y += kInt8Rows * target.stride) {
    int8_block<kInt8Rows, U>(x + r * x_stride, x_stride, x_scales + r, panel, groups, scales,
                             shifts, target);
  }
  x += r * x_stride;
  x_scales += r;
  switch (rows - r) {
    case 1: return int8_block<1, U>(x, x_stride, x_scales, panel, groups, scales, shifts, target);
    case 2: return int8_block<2, U>(x, x_stride, x_scales, panel, groups, scales, shifts, target);
#if defined(__AVX512VNNI__)
    case 3: return int8_block<3, U>(x, x_stride, x_scales, panel, groups, scales, shifts, target);
    case 4: return int8_block<4, U>(x, x_stride, x_scales, panel, groups, scales, shifts, target);
    case 5: return int8_block<5, U>(x, x_stride, x_scales, panel, groups, scales, shifts, target);
#endif
    default: return;
  }
}

void int8_product(const float* x, int64_t x_stride, int64_t rows, const Panels& w,
                  const float* bias, float* y, int64_t y_stride, bool adds) {
  alignas(64) Number numbers[kMostInt8Inner];
  float x_scales[kMostRows];
  const int64_t groups = (w.inner + kGroup - 1) / kGroup;
  const int64_t stride = (w.inner + kLanes - 1) / kLanes * kLanes;
  const int64_t fitting = kMostInt8Inner / stride, most = fitting < kMostRows ? fitting : kMostRows;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = rows - first < most ? rows - first : most;
    for (int64_t r = 0; r < count; ++r) {
      x_scales[r] = quantize(x + (first + r) * x_stride, w.inner, numbers + r * stride);
    }
    const int8_t* panel = static_cast<const int8_t*>(w.data);
    for (int64_t at = 0; at < w.outer; at += kPanel, panel += groups * kGroup * kPanel) {
      const int64_t columns = w.outer - at < kPanel ? w.outer - at : kPanel;
      const Target target = {bias ? bias + at : nullptr, y + first * y_stride + at, y_stride,
                             columns, adds};
      const float* scales = w.scales + at;
      const int32_t* shifts = w.shifts + at;
      switch ((columns + kLanes - 1) / kLanes) {
        case 1: int8_panel<1>(numbers, stride, x_scales, count, panel, groups, scales, shifts, target); break;
        case 2: int8_panel<2>(numbers, stride, x_scales, count, panel, groups, scales, shifts, target); break;
#if QRNN_SIMD_BYTES == 64
        case 3: int8_panel<3>(numbers, stride, x_scales, count, panel, groups, scales, shifts, target); break;
        case 4: int8_panel<4>(numbers, stride, x_scales, count, panel, groups, scales, shifts, target); break;
#endif
        default: break;
      }
    }
  }
}

}  // namespace
}  // namespace engine
}  // namespace hf_qrnn
