// Residual, dropout and RMSNorm around a layer on the CPU, for one instruction set.
//
// A row is read into scratch memory as numbers of type S, whatever it is in memory, and worked on
// there, in the first-level cache. Lanes beyond the last channel hold zeros.
#pragma once

#include "connect_cpu.h"
#include "simd.h"

namespace hf_qrnn {
namespace {

template <typename T, typename S>
QRNN_INLINE void copy_in(S* to, const T* from, int64_t count) {
  using Sd = Simd<S>;
  int64_t k = 0;
  for (; k + Sd::kLanes <= count; k += Sd::kLanes) {
    Convert<S, S>::store(to + k, Convert<T, S>::load(from + k));
  }
  if (k < count) Convert<S, S>::store(to + k, load<true, S>(from + k, count - k));
}

template <typename T, typename S>
QRNN_INLINE void copy_out(T* to, const S* from, int64_t count) {
  using Sd = Simd<S>;
  int64_t k = 0;
  for (; k + Sd::kLanes <= count; k += Sd::kLanes) {
    Convert<T, S>::store(to + k, Convert<S, S>::load(from + k));
  }
  if (k < count) store<true, S>(to + k, Convert<S, S>::load(from + k), count - k);
}

// Row `row` of `rows` as numbers of type S; the fewer-digit types are float's.
template <typename S>
void load_row(S* to, const ConstRows& rows, int64_t row, int64_t count) {
  const int64_t at = row * count;
  if constexpr (sizeof(S) == 8) {
    copy_in(to, static_cast<const double*>(rows.data) + at, count);
  } else if (rows.number == Number::float32) {
    copy_in(to, static_cast<const float*>(rows.data) + at, count);
  } else if (rows.number == Number::bfloat16) {
    copy_in(to, static_cast<const BFloat16*>(rows.data) + at, count);
  } else {
    copy_in(to, static_cast<const Half*>(rows.data) + at, count);
  }
}

template <typename S>
void store_row(const Rows& rows, int64_t row, const S* from, int64_t count) {
  const int64_t at = row * count;
  if constexpr (sizeof(S) == 8) {
    copy_out(static_cast<double*>(rows.data) + at, from, count);
  } else if (rows.number == Number::float32) {
    copy_out(static_cast<float*>(rows.data) + at, from, count);
  } else if (rows.number == Number::bfloat16) {
    copy_out(static_cast<BFloat16*>(rows.data) + at, from, count);
  } else {
    copy_out(static_cast<Half*>(rows.data) + at, from, count);
  }
}

// As many draws of two bytes as there are lanes.
template <typename S>
QRNN_INLINE typename Simd<S>::I draws_of(const uint16_t* shorts) {
  if constexpr (sizeof(S) == 4) {
    return bits_of<typename Simd<S>::I>(load_bits(shorts));
  } else {
    typename Simd<S>::I draws;
    for (int lane = 0; lane < Simd<S>::kLanes; ++lane) draws[lane] = shorts[lane];
    return draws;
  }
}

// Multiply the channels that stay by `scale` and zero the others.
template <typename S>
void drop(S* x, const Dropout& dropout, int64_t b, int64_t t, int64_t count) {
  using Sd = Simd<S>;
  using U = typename Simd<double>::U;  // as many words as fit
  constexpr int kWords = sizeof(U) / 8, kChannels = 4 * kWords;
  const uint64_t counter = (static_cast<uint64_t>(b) << 32) + static_cast<uint64_t>(t) + 1;
  const uint64_t key = mix_lanes(static_cast<uint64_t>(*dropout.seed) + counter * kGolden);
  const S scale = static_cast<S>(dropout.scale);
  U lane = {};
  for (int i = 0; i < kWords; ++i) lane[i] = static_cast<uint64_t>(i) + 1;
  for (int64_t k = 0; k < count; k += kChannels) {
    const U draw = mix_lanes(key + (lane + static_cast<uint64_t>(k / 4)) * kGolden);
    uint16_t shorts[kChannels];  // x86 keeps the lowest bits first
    memcpy(shorts, &draw, sizeof shorts);
    for (int j = 0; j < kChannels && k + j < count; j += Sd::kLanes) {
      const typename Sd::I keep = draws_of<S>(shorts + j) >= static_cast<int>(dropout.threshold);
      const typename Sd::V value = Convert<S, S>::load(x + k + j);
      Convert<S, S>::store(x + k + j, bits_of<typename Sd::V>(
          bits_of<typename Sd::I>(value * scale) & keep));
    }
  }
}

template <typename S>
QRNN_INLINE S sum_lanes(typename Simd<S>::V x) {
  S total = 0;
  for (int lane = 0; lane < Simd<S>::kLanes; ++lane) total += x[lane];
  return total;
}

// Sum of a . b over all lanes; four sums at once, in a fixed order.
template <typename S>
QRNN_INLINE S dot(const S* a, const S* b, int64_t width) {
  using Sd = Simd<S>;
  typename Sd::V sums[2] = {};
  int64_t k = 0;
  for (; k + 2 * Sd::kLanes <= width; k += 2 * Sd::kLanes) {
    sums[0] += Convert<S, S>::load(a + k) * Convert<S, S>::load(b + k);
    sums[1] += Convert<S, S>::load(a + k + Sd::kLanes) * Convert<S, S>::load(b + k + Sd::kLanes);
  }
  for (; k < width; k += Sd::kLanes) {
    sums[0] += Convert<S, S>::load(a + k) * Convert<S, S>::load(b + k);
  }
  return sum_lanes<S>(sums[0] + sums[1]);
}

template <typename S>
S inverse_root(S x) {
  if constexpr (sizeof(S) == 4) return 1 / __builtin_sqrtf(x);
  return 1 / __builtin_sqrt(x);
}

}  // namespace

namespace QRNN_ISA {

template <typename S>
void connect_forward(const ConnectInputs<S>& in, const ConnectOutputs<S>& out, int64_t part,
                     S* scratch) {
  using Sd = Simd<S>;
  const int64_t hidden = in.hidden, width = padded_channels(hidden);
  const int64_t rows = in.batch * in.length;
  const int64_t last = (part + 1) * kPartRows < rows ? (part + 1) * kPartRows : rows;
  S *x = scratch, *y = scratch + width, *weight = scratch + 2 * width;
  memset(scratch, 0, 3 * width * sizeof(S));
  if (out.normed.data) load_row(weight, in.weight, 0, hidden);
  for (int64_t row = part * kPartRows; row < last; ++row) {
    load_row(x, in.h, row, hidden);
    if (in.dropout.seed) drop(x, in.dropout, row / in.length, row % in.length, hidden);
    if (in.residual.data) {
      load_row(y, in.residual, row, hidden);
      for (int64_t k = 0; k < width; k += Sd::kLanes) {
        Convert<S, S>::store(x + k, Convert<S, S>::load(x + k) + Convert<S, S>::load(y + k));
      }
    }
    if (out.out.data) {
      store_row(out.out, row, x, hidden);
      // The norm is of what is in memory, with its digits.
      if (out.out.number == Number::bfloat16 || out.out.number == Number::float16) {
        load_row(x, ConstRows{out.out.data, out.out.number}, row, hidden);
      }
    }
    if (!out.normed.data) continue;
    const S mean = dot(x, x, width) / static_cast<S>(hidden);
    const S inverse = inverse_root(mean + static_cast<S>(in.eps));
    for (int64_t k = 0; k < width; k += Sd::kLanes) {
      const auto normed = Convert<S, S>::load(x + k) * inverse * Convert<S, S>::load(weight + k);
      Convert<S, S>::store(y + k, normed);
    }
    store_row(out.normed, row, y, hidden);
    out.inverse[row] = inverse;
  }
}

// With n = x r, r = 1 / sqrt(mean(x^2) + eps): the gradient of x is r (a - n mean(a n)), where
// a = grad_normed . weight, and that of the weight the sum of grad_normed . n.
template <typename S>
void connect_backward(const ConnectBackward<S>& in, int64_t part, S* scratch) {
  using Sd = Simd<S>;
  const int64_t hidden = in.hidden, width = padded_channels(hidden);
  const int64_t rows = in.batch * in.length;
  const int64_t last = (part + 1) * kPartRows < rows ? (part + 1) * kPartRows : rows;
  S *x = scratch, *grad = scratch + width, *weight = scratch + 2 * width;
  S* total = scratch + 3 * width;
  memset(scratch, 0, 4 * width * sizeof(S));
  if (in.grad_normed.data) load_row(weight, in.weight, 0, hidden);
  for (int64_t row = part * kPartRows; row < last; ++row) {
    if (in.grad_normed.data) {
      load_row(x, in.out, row, hidden);
      load_row(grad, in.grad_normed, row, hidden);
      const S inverse = in.inverse[row];
      for (int64_t k = 0; k < width; k += Sd::kLanes) {
        const auto n = Convert<S, S>::load(x + k) * inverse, g = Convert<S, S>::load(grad + k);
        Convert<S, S>::store(total + k, Convert<S, S>::load(total + k) + g * n);
        Convert<S, S>::store(x + k, n);
        Convert<S, S>::store(grad + k, g * Convert<S, S>::load(weight + k));
      }
      const S mean = dot(grad, x, width) / static_cast<S>(hidden);
      for (int64_t k = 0; k < width; k += Sd::kLanes) {
        const auto a = Convert<S, S>::load(grad + k), n = Convert<S, S>::load(x + k);
        Convert<S, S>::store(grad + k, inverse * (a - n * mean));
      }
      if (in.grad_out.data) {
        load_row(x, in.grad_out, row, hidden);
        for (int64_t k = 0; k < width; k += Sd::kLanes) {
          Convert<S, S>::store(grad + k,
                               Convert<S, S>::load(grad + k) + Convert<S, S>::load(x + k));
        }
      }
    } else {
      load_row(grad, in.grad_out, row, hidden);
    }
    if (in.grad_residual.data) store_row(in.grad_residual, row, grad, hidden);
    if (in.grad_h.data) {
      if (in.dropout.seed) drop(grad, in.dropout, row / in.length, row % in.length, hidden);
      store_row(in.grad_h, row, grad, hidden);
    }
  }
  if (in.grad_weight) memcpy(in.grad_weight + part * hidden, total, hidden * sizeof(S));
}

#define QRNN_INSTANTIATE_CONNECT(S)                                                          \
  template void connect_forward<S>(const ConnectInputs<S>&, const ConnectOutputs<S>&, int64_t, \
                                   S*);                                                      \
  template void connect_backward<S>(const ConnectBackward<S>&, int64_t, S*);
QRNN_INSTANTIATE_CONNECT(float)
QRNN_INSTANTIATE_CONNECT(double)

}  // namespace QRNN_ISA
}  // namespace hf_qrnn
