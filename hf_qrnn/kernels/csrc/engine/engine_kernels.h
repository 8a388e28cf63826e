// The engine's functions for one instruction set (QRNN_ISA, QRNN_SIMD_BYTES).
#pragma once

#include <type_traits>

#include "../simd.h"
#include "functions.h"

namespace hf_qrnn {
namespace engine {
namespace {

using V = Simd<float>::V;
constexpr int kLanes = Simd<float>::kLanes;
// Sums that a product keeps in registers: of kRows rows and kVectors vectors of columns. There are
// 32 registers with AVX-512 and 16 without.
constexpr int kRows = 6, kVectors = QRNN_SIMD_BYTES == 64 ? 4 : 2;
constexpr int64_t kPanel = kVectors * kLanes;

QRNN_INLINE V load_all(const float* p) { return load<false, float>(p, kLanes); }

// Run `body(is_tail, at, count)` over all lanes of `size` numbers.
template <typename Body>
QRNN_INLINE void for_lanes(int64_t size, Body body) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) body(std::false_type{}, at, int64_t{kLanes});
  if (at < size) body(std::true_type{}, at, size - at);
}

QRNN_INLINE float sum_of(V x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
}

}  // namespace
}  // namespace engine
}  // namespace hf_qrnn

#include "int8_kernels.h"

namespace hf_qrnn {
namespace engine {
namespace {

// ---------------------------------------------------------------- products

// Of R rows and U vectors of a panel. One row alone has more sums than vectors, or each multiply
// would wait for the last.
// Only unrolled loops keep the sums in registers.
template <int R, int U, typename W>
void product_block(const float* x, int64_t x_stride, const W* panel, int64_t inner,
                   const float* bias, float* y, int64_t y_stride, int64_t columns, bool adds) {
  constexpr int kSums = R > 2 ? 1 : (R == 2 ? 2 : 4);
  V sums[kSums][R][U] = {};
  int64_t k = 0;
  for (; k + kSums <= inner; k += kSums) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      const W* w = panel + (k + s) * kPanel;
      if (R <= 2) __builtin_prefetch(w + 24 * kPanel * (4 / sizeof(W)));
      V b[U];
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) b[u] = load<false, float>(w + u * kLanes, kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const float a = x[r * x_stride + k + s];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) sums[s][r][u] += b[u] * a;
      }
    }
  }
  for (; k < inner; ++k) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const V b = load<false, float>(panel + k * kPanel + u * kLanes, kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sums[0][r][u] += b * x[r * x_stride + k];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      V sum = sums[0][r][u];
#pragma GCC unroll 4
      for (int s = 1; s < kSums; ++s) sum += sums[s][r][u];
      const int64_t at = u * kLanes, count = columns - at;
      float* out = y + r * y_stride + at;
      if (count >= kLanes) {
        if (bias) sum += load_all(bias + at);
        if (adds) sum += load_all(out);
        store<false, float>(out, sum, kLanes);
      } else {
        if (bias) sum += load<true, float>(bias + at, count);
        if (adds) sum += load<true, float>(out, count);
        store<true, float>(out, sum, count);
      }
    }
  }
}

template <int U, typename W>
void product_panel(const float* x, int64_t x_stride, int64_t rows, const W* panel,
                   int64_t inner, const float* bias, float* y, int64_t y_stride, int64_t columns,
                   bool adds) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    product_block<kRows, U, W>(x + r * x_stride, x_stride, panel, inner, bias, y + r * y_stride,
                            y_stride, columns, adds);
  }
  const float* from = x + r * x_stride;
  float* to = y + r * y_stride;
  switch (rows - r) {
    case 1: return product_block<1, U, W>(from, x_stride, panel, inner, bias, to, y_stride, columns, adds);
    case 2: return product_block<2, U, W>(from, x_stride, panel, inner, bias, to, y_stride, columns, adds);
    case 3: return product_block<3, U, W>(from, x_stride, panel, inner, bias, to, y_stride, columns, adds);
    case 4: return product_block<4, U, W>(from, x_stride, panel, inner, bias, to, y_stride, columns, adds);
    case 5: return product_block<5, U, W>(from, x_stride, panel, inner, bias, to, y_stride, columns, adds);
    default: return;
  }
}

template <typename W>
void product_of(const float* x, int64_t x_stride, int64_t rows, const Panels& w, const float* bias,
             float* y, int64_t y_stride, bool adds) {
  const W* panel = static_cast<const W*>(w.data);
  for (int64_t at = 0; at < w.outer; at += kPanel, panel += w.inner * kPanel) {
    const int64_t columns = w.outer - at < kPanel ? w.outer - at : kPanel;
    const float* own = bias ? bias + at : nullptr;
    switch ((columns + kLanes - 1) / kLanes) {
      case 1: product_panel<1, W>(x, x_stride, rows, panel, w.inner, own, y + at, y_stride, columns, adds); break;
      case 2: product_panel<2, W>(x, x_stride, rows, panel, w.inner, own, y + at, y_stride, columns, adds); break;
#if QRNN_SIMD_BYTES == 64
      case 3: product_panel<3, W>(x, x_stride, rows, panel, w.inner, own, y + at, y_stride, columns, adds); break;
      case 4: product_panel<4, W>(x, x_stride, rows, panel, w.inner, own, y + at, y_stride, columns, adds); break;
#endif
      default: break;
    }
  }
}

void product(const float* x, int64_t x_stride, int64_t rows, const Panels& w, const float* bias,
             float* y, int64_t y_stride, bool adds) {
  if (w.scales) return int8_product(x, x_stride, rows, w, bias, y, y_stride, adds);
  if (w.halves) return product_of<BFloat16>(x, x_stride, rows, w, bias, y, y_stride, adds);
  product_of<float>(x, x_stride, rows, w, bias, y, y_stride, adds);
}

// ---------------------------------------------------------------- pooling

template <bool kWithO, bool kWithI, bool kTail>
QRNN_INLINE void pool_lanes(const float* gates, const float* bias, int64_t hidden, int64_t at,
                            int64_t count, float* c, float* h, float* o_out) {
  const V zero = {}, one = zero + 1.0f;
  const auto gate = [&](int64_t index) {
    const int64_t offset = index * hidden + at;
    V x = load<kTail, float>(gates + offset, count);
    if (bias) x += load<kTail, float>(bias + offset, count);
    return x;
  };
  const Tanh<float> z(gate(0));
  const Logistic<float> f(gate(1)), o(kWithO ? gate(2) : zero), i(kWithI ? gate(3) : zero);
  const V of_z = one / z.below, of_f = one / f.below;
  const V write = (kWithI ? i.plus(one / i.below) : f.minus(of_f)) * z.value(of_z);
  const V next = f.plus(of_f) * load<kTail, float>(c + at, count) + write;
  store<kTail, float>(c + at, next, count);
  const V open = kWithO ? o.plus(one / o.below) : one;
  if (o_out) {
    store<kTail, float>(o_out + at, open, count);
  } else {
    store<kTail, float>(h + at, kWithO ? open * next : next, count);
  }
}

template <bool kWithO, bool kWithI>
void pool_kind(const float* gates, const float* bias, int64_t hidden, float* c, float* h,
               float* o) {
  for_lanes(hidden, [&](auto is_tail, int64_t at, int64_t count) {
    pool_lanes<kWithO, kWithI, decltype(is_tail)::value>(gates, bias, hidden, at, count, c, h, o);
  });
}

void pool(int pooling, const float* gates, const float* bias, int64_t hidden, float* c, float* h,
          float* o) {
  switch (static_cast<Pooling>(pooling)) {
    case Pooling::f: return pool_kind<false, false>(gates, bias, hidden, c, h, o);
    case Pooling::fo: return pool_kind<true, false>(gates, bias, hidden, c, h, o);
    case Pooling::ifo: return pool_kind<true, true>(gates, bias, hidden, c, h, o);
  }
}

// ---------------------------------------------------------------- the rest

void normalize(const float* x, const float* weight, int64_t size, float* y) {
  V sums = {};
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    const V v = load<decltype(is_tail)::value, float>(x + at, count);
    sums += v * v;
  });
  const float factor = 1.0f / __builtin_sqrtf(sum_of(sums) / static_cast<float>(size) + 1e-6f);
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    const V v = load<kTail, float>(x + at, count) * factor;
    store<kTail, float>(y + at, v * load<kTail, float>(weight + at, count), count);
  });
}

void gate_inner(const float* x, int64_t size, float* y) {
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    const V v = load<kTail, float>(x + at, count);
    const Logistic<float> s(v);
    store<kTail, float>(y + at, v * s.plus(1.0f / s.below) * load<kTail, float>(y + at, count),
                        count);
  });
}

void multiply(const float* x, int64_t size, float* y) {
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    store<kTail, float>(y + at, load<kTail, float>(x + at, count) * load<kTail, float>(y + at, count),
                        count);
  });
}

// The largest of all, or NaN where there is one: a comparison with it is false.
float largest_of(const float* x, int64_t size) {
  V best = V{} - __builtin_inff(), sums = {};
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    if constexpr (decltype(is_tail)::value) {
      for (int64_t j = 0; j < count; ++j) {
        best[j] = x[at + j] > best[j] ? x[at + j] : best[j];
        sums[j] += x[at + j] == x[at + j] ? 0 : 1;
      }
    } else {
      const V v = load_all(x + at);
      best = v > best ? v : best;
      sums = v == v ? sums : sums + 1.0f;
    }
  });
  float result = best[0];
  for (int lane = 1; lane < kLanes; ++lane) result = best[lane] > result ? best[lane] : result;
  return sum_of(sums) > 0 ? __builtin_nanf("") : result;
}

void softmax(float* x, int64_t size, float scale) {
  const V zero = {};
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    store<kTail, float>(x + at, load<kTail, float>(x + at, count) * scale, count);
  });
  const float top = largest_of(x, size);
  V sums = {};
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    const V e = decay<float>(load<kTail, float>(x + at, count) - top).value;
    store<kTail, float>(x + at, e, count);
    if constexpr (kTail) {
      for (int64_t j = 0; j < count; ++j) sums[j] += e[j];
    } else {
      sums += e;
    }
  });
  const V factor = zero + 1.0f / sum_of(sums);
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    store<kTail, float>(x + at, load<kTail, float>(x + at, count) * factor, count);
  });
}

float log_sum(const float* x, int64_t size) {
  const float top = largest_of(x, size);
  V sums = {};
  for_lanes(size, [&](auto is_tail, int64_t at, int64_t count) {
    constexpr bool kTail = decltype(is_tail)::value;
    const V e = decay<float>(load<kTail, float>(x + at, count) - top).value;
    if constexpr (kTail) {
      for (int64_t j = 0; j < count; ++j) sums[j] += e[j];
    } else {
      sums += e;
    }
  });
  return top + __builtin_logf(sum_of(sums));
}

}  // namespace

namespace QRNN_ISA {
extern const Kernels kKernels = {kPanel,     product,  pool,    normalize,
                                 gate_inner, multiply, softmax, log_sum};
}

}  // namespace engine
}  // namespace hf_qrnn
