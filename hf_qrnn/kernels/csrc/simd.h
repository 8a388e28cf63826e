// Vectors of numbers, the activations on them, and memory of every type.
//
// Only GCC's vector extensions: one text for every instruction set. Everything here and in
// pool_cpu_kernels.h is in an anonymous namespace, so that no code compiled for one CPU is linked
// into another's unit; for the same reason nothing of std:: is called.
#pragma once

#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "pool_cpu.h"

#define QRNN_INLINE inline __attribute__((always_inline))

namespace hf_qrnn {
namespace {

// `V` holds as many numbers of type S as fit, `I` signed integers and `U` 64-bit ones, lane by lane.
template <typename S>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = QRNN_SIMD_BYTES / 4;
  using V = float __attribute__((vector_size(QRNN_SIMD_BYTES)));
  using I = int32_t __attribute__((vector_size(QRNN_SIMD_BYTES)));
  using U = uint64_t __attribute__((vector_size(2 * QRNN_SIMD_BYTES)));
  using Wide = int64_t __attribute__((vector_size(2 * QRNN_SIMD_BYTES)));
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kExponentBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer
  static constexpr float kLargest = 88.0f;    // its exponential is 0: a scale of 2^-127
#if defined(__FMA__)
  // One constant is enough where its product is not rounded: wrong by n 2e-9 for |n| <= 127.
  static constexpr float kLn2High = 0x1.62e43p-1f, kLn2Low = 0;
#else
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
#endif

  // (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, by least squares at Chebyshev nodes: e^r to 1e-8.
  static QRNN_INLINE V series(V r) {
    const V r2 = r * r;
    return (r2 * kSeries4 + (r * kSeries3 + kSeries2)) * r2 + (r * kSeries1 + kSeries0);
  }
  static constexpr float kSeries0 = 0.5f, kSeries1 = 0.16666575f, kSeries2 = 0.04166646f;
  static constexpr float kSeries3 = 0.008363475f, kSeries4 = 0.0013934093f;
};

template <>
struct Simd<double> {
  static constexpr int kLanes = QRNN_SIMD_BYTES / 8;
  using V = double __attribute__((vector_size(QRNN_SIMD_BYTES)));
  using I = int64_t __attribute__((vector_size(QRNN_SIMD_BYTES)));
  using U = uint64_t __attribute__((vector_size(QRNN_SIMD_BYTES)));
  using Wide = I;
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kExponentBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLargest = 709.1;  // 2^-1023
  static constexpr double kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;

  // The Taylor series: its first term left out is below 2^-54 for |r| <= ln(2) / 2.
  static QRNN_INLINE V series(V r) {
    V p = r * (1.0 / 87178291200) + 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    return p * r + 0.5;
  }
};

template <typename To, typename From>
QRNN_INLINE To bits_of(From x) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

// ---------------------------------------------------------------- activations

// The larger of two; `b` where it is not a number.
template <typename S>
QRNN_INLINE typename Simd<S>::V largest(typename Simd<S>::V a, typename Simd<S>::V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return bits_of<typename Simd<S>::V>(_mm512_max_ps(a, b));
  if constexpr (sizeof(S) == 8) return bits_of<typename Simd<S>::V>(_mm512_max_pd(a, b));
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return bits_of<typename Simd<S>::V>(_mm256_max_ps(a, b));
  if constexpr (sizeof(S) == 8) return bits_of<typename Simd<S>::V>(_mm256_max_pd(a, b));
#endif
  return a > b ? a : b;
}

// e^-|x| - 1, in every digit, and e^-|x|, 0 where it is no normal number. A NaN stays one.
template <typename S>
struct Decay {
  typename Simd<S>::V minus_one, value;
};

template <typename S>
QRNN_INLINE Decay<S> decay(typename Simd<S>::V x) {
  using Sd = Simd<S>;
  using V = typename Sd::V;
  using I = typename Sd::I;
  const V zero = {};
  V a = bits_of<V>(bits_of<I>(x) | bits_of<I>(-zero));  // -|x|
  a = largest<S>(zero - Sd::kLargest, a);
  const V shifted = a * S(1.4426950408889634074) + Sd::kRound;
  const V n = shifted - Sd::kRound;
  V r = a - n * Sd::kLn2High;
  if constexpr (Sd::kLn2Low != 0) r = r - n * Sd::kLn2Low;
  const V p = r * r * Sd::series(r) + r;
  const V scale = bits_of<V>((bits_of<I>(shifted) + Sd::kExponentBias) << Sd::kMantissaBits);
  const V minus_one = scale * p + (scale - S(1));
  return {minus_one, scale * p + scale};
}

// 1/a, 1/b, ... in place of numbers from 1 to 2, by one division.
template <typename V>
QRNN_INLINE void invert(V& a, V& b) {
  const V r = 1 / (a * b), of_a = r * b;
  b = r * a;
  a = of_a;
}
template <typename V>
QRNN_INLINE void invert(V& a, V& b, V& c) {
  V ab = a * b;
  const V r = 1 / (ab * c), of_ab = r * c, of_a = of_ab * b;
  c = r * ab;
  b = of_ab * a;
  a = of_a;
}
template <typename V>
QRNN_INLINE void invert(V& a, V& b, V& c, V& d) {
  V ab = a * b, cd = c * d;
  invert(ab, cd);  // from 1 to 4 is as good
  const V of_a = ab * b, of_c = cd * d;
  b = ab * a;
  a = of_a;
  d = cd * c;
  c = of_c;
}

// sigma(x) and sigma(-x) = 1 - sigma(x), each in every digit, as functions of e = e^-|x| and of
// 1 / below.
template <typename S>
struct Logistic {
  using V = typename Simd<S>::V;
  V x, e, below;

  explicit QRNN_INLINE Logistic(V x_) : x(x_), e(decay<S>(x_).value), below(S(1) + e) {}
  // With `r` for 1 / below. Where x is not a number, e is none,
  // and `plus` must be none even if r is finite.
  QRNN_INLINE V plus(V r) const { return r * (x >= V{} ? V{} + S(1) : e); }
  QRNN_INLINE V minus(V r) const { return r * (x >= V{} ? e : V{} + S(1)); }
};

// tanh(x), in every digit, as a function of 1 / below.
template <typename S>
struct Tanh {
  using V = typename Simd<S>::V;
  using I = typename Simd<S>::I;
  V x, minus_one, below;

  explicit QRNN_INLINE Tanh(V x_)
      : x(x_), minus_one(decay<S>(x_ + x_).minus_one), below(S(2) + minus_one) {}
  QRNN_INLINE V value(V r) const {
    const V size = minus_one * r;  // -tanh |x|
    return bits_of<V>(bits_of<I>(-size) | (bits_of<I>(x) & bits_of<I>(-V{})));
  }
};

// ---------------------------------------------------------------- memory

// Numbers of memory type T as lanes of type S and back; rounding is to the nearest, ties to even.
template <typename T, typename S>
struct Convert;

template <typename S>
struct Convert<S, S> {
  using V = typename Simd<S>::V;
  static QRNN_INLINE V load(const S* p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static QRNN_INLINE void store(S* p, V x) { memcpy(p, &x, sizeof x); }
};

using F = Simd<float>::V;
using Bits = uint32_t __attribute__((vector_size(QRNN_SIMD_BYTES)));
using HalfBits = uint16_t __attribute__((vector_size(QRNN_SIMD_BYTES / 2)));

QRNN_INLINE Bits load_bits(const void* p) {
  HalfBits x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, Bits);
}

QRNN_INLINE void store_bits(void* p, Bits bits) {
  const HalfBits x = __builtin_convertvector(bits, HalfBits);
  memcpy(p, &x, sizeof x);
}

template <>
struct Convert<BFloat16, float> {
  static QRNN_INLINE F load(const BFloat16* p) { return bits_of<F>(load_bits(p) << 16); }
  static QRNN_INLINE void store(BFloat16* p, F x) {
    const Bits bits = bits_of<Bits>(x);
    const Bits rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    store_bits(p, (bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
  }
};

template <>
struct Convert<Half, float> {
#if defined(__AVX512F__)
  static QRNN_INLINE F load(const Half* p) {
    return bits_of<F>(_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static QRNN_INLINE void store(Half* p, F x) {
    const __m256i y = _mm512_maskz_cvtps_ph(0xFFFF, bits_of<__m512>(x), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), y);
  }
#elif defined(__F16C__)
  static QRNN_INLINE F load(const Half* p) {
    return bits_of<F>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static QRNN_INLINE void store(Half* p, F x) {
    const __m128i y = _mm256_cvtps_ph(bits_of<__m256>(x), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), y);
  }
#else
  static QRNN_INLINE F load(const Half* p) {
    const Bits half = load_bits(p);
    const Bits size = half & 0x7FFF, sign = (half & 0x8000) << 16;
    // The product moves the exponent and makes subnormal numbers normal ones.
    const Bits finite = bits_of<Bits>(bits_of<F>(size << 13) * 0x1p112f);
    return bits_of<F>((size >= 0x7C00 ? (size << 13) | 0x7F800000 : finite) | sign);
  }
  static QRNN_INLINE void store(Half* p, F x) {
    const Bits bits = bits_of<Bits>(x);
    const Bits size = bits & 0x7FFFFFFF, sign = (bits >> 16) & 0x8000;
    const Bits normal = (size + 0xC8000FFF + ((size >> 13) & 1)) >> 13;
    // Adding 1/2 leaves the multiple of 2^-24, rounded, in the last bits.
    const Bits subnormal = bits_of<Bits>(bits_of<F>(size) + 0.5f) - 0x3F000000;
    const Bits none = {};
    const Bits special = size > 0x7F800000 ? none + 0x7E00 : none + 0x7C00;
    const Bits finite = size < 0x38800000 ? subnormal : normal;
    store_bits(p, (size >= 0x47800000 ? special : finite) | sign);
  }
#endif
};

// Lanes at `p`: all of them, or for the last few channels (`kTail`) the first `count`.
template <bool kTail, typename S, typename T>
QRNN_INLINE typename Simd<S>::V load(const T* p, int64_t count) {
  if constexpr (kTail) {
    T lanes[Simd<S>::kLanes] = {};
    memcpy(lanes, p, count * sizeof(T));
    return Convert<T, S>::load(lanes);
  } else {
    return Convert<T, S>::load(p);
  }
}

template <bool kTail, typename S, typename T>
QRNN_INLINE void store(T* p, typename Simd<S>::V x, int64_t count) {
  if constexpr (kTail) {
    T lanes[Simd<S>::kLanes];
    Convert<T, S>::store(lanes, x);
    memcpy(p, lanes, count * sizeof(T));
  } else {
    Convert<T, S>::store(p, x);
  }
}

// ---------------------------------------------------------------- zoneout

// `mix` of pool_args.h on lanes; that one may not be called here (see above).
template <typename X>
QRNN_INLINE X mix_lanes(X x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// All ones where the forget gate of channel, channel + 1, ... is left alone.
template <typename S>
QRNN_INLINE typename Simd<S>::I keeps_lanes(uint64_t key, int64_t channel, uint64_t threshold) {
  using U = typename Simd<S>::U;
  U counter = {};
  for (int lane = 0; lane < Simd<S>::kLanes; ++lane) {
    counter[lane] = static_cast<uint64_t>(channel + lane) + 1;
  }
  const U draw = mix_lanes(key + counter * kGolden) >> 40;
  return __builtin_convertvector(static_cast<typename Simd<S>::Wide>(draw >= threshold),
                                 typename Simd<S>::I);
}

}  // namespace
}  // namespace hf_qrnn
