// A decoder's step on the CPU, for one instruction set; beside `connect_cpu_kernels.h`, whose rows
// in scratch memory it works on.
#pragma once

#include "connect_cpu_kernels.h"
#include "step_cpu.h"

namespace hf_qrnn {
namespace {

// `rows` from its number `at` on. (`behind` may not be called here: see simd.h.)
QRNN_INLINE ConstRows from(const ConstRows& rows, int64_t at) {
  return {static_cast<const char*>(rows.data) + at * bytes_of(rows.number), rows.number};
}

// Calls body(k) for every vector of `width` numbers, which are whole ones.
template <typename S, typename Body>
QRNN_INLINE void for_vectors(int64_t width, const Body& body) {
  for (int64_t k = 0; k < width; k += Simd<S>::kLanes) body(k);
}

template <typename S>
QRNN_INLINE typename Simd<S>::V at(const S* x) {
  return Convert<S, S>::load(x);
}

template <typename S>
QRNN_INLINE typename Simd<S>::V sigmoid(typename Simd<S>::V x) {
  const Logistic<S> logistic(x);
  return logistic.plus(1 / logistic.below);
}

// to = x / sqrt(mean(x^2) + eps) . weight. Not in place: behind `count` numbers x stays zero, which
// times an inverse that is no number would be none either, and in the next row's mean.
template <typename S>
QRNN_INLINE void normalize(S* to, const S* x, const S* weight, int64_t count, double eps) {
  const int64_t width = padded_channels(count);
  const S mean = dot(x, x, width) / static_cast<S>(count);
  const S inverse = inverse_root(mean + static_cast<S>(eps));
  for_vectors<S>(width, [&](int64_t k) {
    Convert<S, S>::store(to + k, at(x + k) * inverse * at(weight + k));
  });
}

}  // namespace

namespace QRNN_ISA {

template <typename S>
void step_window(const StepWindow& in, int64_t first, int64_t last, S* scratch) {
  const int64_t width = padded_channels(in.width), bytes = in.width * bytes_of(in.window.number);
  S *x = scratch, *weight = scratch + width, *normed = scratch + 2 * width;
  memset(scratch, 0, 3 * width * sizeof(S));
  if (in.weight.data) load_row(weight, in.weight, 0, in.width);
  for (int64_t r = first; r < last; ++r) {
    char* const window = static_cast<char*>(in.window.data) + r * in.steps * bytes;
    for (int64_t t = 0; t + 1 < in.steps; ++t) {
      const int64_t place = r * in.inputs_stride_r + t * in.inputs_stride_t;
      memcpy(window + t * bytes, from(in.inputs, place).data, bytes);
    }
    if (!in.weight.data) {
      memcpy(window + (in.steps - 1) * bytes, from(in.x, r * in.width).data, bytes);
      continue;
    }
    load_row(x, in.x, r, in.width);
    normalize(normed, x, weight, in.width, in.eps);
    store_row(in.window, (r + 1) * in.steps - 1, normed, in.width);
  }
}

template <typename S>
void step_attend(const StepAttention& in, int64_t first, int64_t last, S* scratch) {
  using V = typename Simd<S>::V;
  const int64_t size = in.size, width = padded_channels(size), each = in.rows / in.sources;
  const int64_t steps = padded_channels(in.length);
  S *query = scratch, *row = scratch + width, *context = scratch + 2 * width;
  S* scores = scratch + 3 * width;
  memset(scratch, 0, (3 * width + steps) * sizeof(S));
  for (int64_t task = first; task < last; ++task) {
    const int64_t r = task / in.heads, n = task % in.heads, b = r / each;
    const bool* mask = in.mask ? in.mask + r / in.mask_each * in.length : nullptr;
    const ConstRows keys = from(in.keys, b * in.keys_stride_b + n * in.keys_stride_n);
    const ConstRows values = from(in.values, b * in.values_stride_b + n * in.values_stride_n);
    load_row(query, in.query, task, size);
    S most = -__builtin_inff();
    for (int64_t s = 0; s < in.length; ++s) {
      if (mask && !mask[s]) continue;
      load_row(row, from(keys, s * in.keys_stride_s), 0, size);
      scores[s] = dot(query, row, width) * static_cast<S>(in.scale);
      // A score that is not a number stays one: no comparison is true of it.
      most = scores[s] < most ? most : scores[s];
    }
    for_vectors<S>(steps, [&](int64_t s) {
      Convert<S, S>::store(scores + s, decay<S>(at(scores + s) - most).value);
    });
    S total = 0;
    memset(context, 0, width * sizeof(S));
    for (int64_t s = 0; s < in.length; ++s) {
      if (mask && !mask[s]) continue;
      total += scores[s];
      load_row(row, from(values, s * in.values_stride_s), 0, size);
      const V weight = V{} + scores[s];
      for_vectors<S>(width, [&](int64_t k) {
        Convert<S, S>::store(context + k, at(context + k) + weight * at(row + k));
      });
    }
    const S scale = total == 0 ? 0 : 1 / total;
    for_vectors<S>(width, [&](int64_t k) {
      Convert<S, S>::store(context + k, at(context + k) * scale);
    });
    store_row(in.context, task, context, size);
  }
}

template <typename S>
void step_gate(const StepGate& in, int64_t first, int64_t last, S* scratch) {
  const int64_t width = padded_channels(in.hidden);
  S *h = scratch, *y = scratch + width, *o = scratch + 2 * width;
  memset(scratch, 0, 3 * width * sizeof(S));
  for (int64_t r = first; r < last; ++r) {
    load_row(h, in.k, r, in.hidden);
    load_row(y, in.c, r, in.hidden);
    for_vectors<S>(width, [&](int64_t k) {
      Convert<S, S>::store(h + k, at(h + k) + at(y + k));
    });
    if (in.o.data) {
      load_row(o, from(in.o, r * in.o_stride), 0, in.hidden);
      if (in.bias.data) {
        load_row(y, from(in.bias, r * in.o_stride), 0, in.hidden);
      } else {
        memset(y, 0, width * sizeof(S));
      }
      for_vectors<S>(width, [&](int64_t k) {
        Convert<S, S>::store(h + k, at(h + k) * sigmoid<S>(at(o + k) + at(y + k)));
      });
    }
    store_row(in.h, r, h, in.hidden);
  }
}

template <typename S>
void step_sum(const StepSum& in, int64_t first, int64_t last, S* scratch) {
  const int64_t width = padded_channels(in.hidden);
  S *x = scratch, *h = scratch + width, *weight = scratch + 2 * width, *normed = weight + width;
  memset(scratch, 0, 4 * width * sizeof(S));
  if (in.weight.data) load_row(weight, in.weight, 0, in.hidden);
  for (int64_t r = first; r < last; ++r) {
    load_row(x, in.x, r, in.hidden);
    load_row(h, in.h, r, in.hidden);
    for_vectors<S>(width, [&](int64_t k) { Convert<S, S>::store(x + k, at(x + k) + at(h + k)); });
    store_row(in.out, r, x, in.hidden);
    if (!in.weight.data) continue;
    // The norm is of what is in memory, with its digits.
    load_row(x, ConstRows{in.out.data, in.out.number}, r, in.hidden);
    normalize(normed, x, weight, in.hidden, in.eps);
    store_row(in.normed, r, normed, in.hidden);
  }
}

template <typename S>
void step_inner(const StepInner& in, int64_t first, int64_t last, S* scratch) {
  const int64_t width = padded_channels(in.inner);
  S *gate = scratch, *inner = scratch + width;
  memset(scratch, 0, 2 * width * sizeof(S));
  for (int64_t r = first; r < last; ++r) {
    load_row(gate, in.gate_and_in, 2 * r, in.inner);
    load_row(inner, in.gate_and_in, 2 * r + 1, in.inner);
    for_vectors<S>(width, [&](int64_t k) {
      const auto g = at(gate + k);
      Convert<S, S>::store(inner + k, g * sigmoid<S>(g) * at(inner + k));
    });
    store_row(in.out, r, inner, in.inner);
  }
}

#define QRNN_INSTANTIATE_STEP(S)                                                   \
  template void step_window<S>(const StepWindow&, int64_t, int64_t, S*);           \
  template void step_attend<S>(const StepAttention&, int64_t, int64_t, S*);        \
  template void step_gate<S>(const StepGate&, int64_t, int64_t, S*);               \
  template void step_sum<S>(const StepSum&, int64_t, int64_t, S*);                 \
  template void step_inner<S>(const StepInner&, int64_t, int64_t, S*);
QRNN_INSTANTIATE_STEP(float)
QRNN_INSTANTIATE_STEP(double)

}  // namespace QRNN_ISA
}  // namespace hf_qrnn
