// Pooling on the CPU, forward and backward, for one instruction set (QRNN_ISA, QRNN_SIMD_BYTES).
//
// A task is a row of the batch and a range of channels. It walks through time and, at every step,
// over its channels, so that memory is read in the order in which it lies; the state waits in the
// first-level cache. Lanes never mix: a result depends on neither the lane nor the thread.
#pragma once

#include "simd.h"

namespace hf_qrnn {
namespace {

// Steps between fetching a row and using it. Rows to be written are fetched too: the backward pass
// would wait for their lines most of its time.
constexpr int64_t kAhead = 4;

// What one step (b, t) reads beside the gates.
template <typename T>
struct Step {
  const T* gates;  // (G*H)
  const T* ahead;  // a later step's gates, to be fetched
  const T* bias;   // (G*H) or null
  int64_t hidden;
  bool zoneout;
  uint64_t key;
  uint64_t threshold;
};

template <typename T, typename S>
QRNN_INLINE Step<T> step_at(Pooling pooling, const PoolInputs<T, S>& in, int64_t b, int64_t t,
                            int64_t ahead) {
  Step<T> step;
  const T* row = in.gates + b * in.gates_stride_b;
  step.gates = row + t * in.gates_stride_t;
  step.ahead = row + (ahead < 0 || ahead >= in.length ? t : ahead) * in.gates_stride_t;
  step.bias = in.bias ? in.bias + b * num_gates(pooling) * in.hidden : nullptr;
  step.hidden = in.hidden;
  step.zoneout = in.seed != nullptr;
  if (step.zoneout) {
    const uint64_t counter = (static_cast<uint64_t>(b) << 32) + static_cast<uint64_t>(t) + 1;
    step.key = mix_lanes(static_cast<uint64_t>(*in.seed) + counter * kGolden);
    step.threshold = in.zoneout_threshold;
  }
  return step;
}

template <typename T, typename S>
QRNN_INLINE bool is_pad(const PoolInputs<T, S>& in, int64_t b, int64_t t) {
  return in.mask && !in.mask[b * in.mask_stride_b + t * in.mask_stride_t];
}

template <bool kTail, typename T, typename S>
QRNN_INLINE typename Simd<S>::V gate(const Step<T>& step, int64_t index, int64_t channel,
                                     int64_t count) {
  const int64_t offset = index * step.hidden + channel;
  __builtin_prefetch(step.ahead + offset, 0, 2);
  typename Simd<S>::V x = load<kTail, S>(step.gates + offset, count);
  if (step.bias) x += load<kTail, S>(step.bias + offset, count);
  return x;
}

// Activated gates: c = f c' + write z and h = o c. Pads do not come here.
template <typename S>
struct Gates {
  typename Simd<S>::V z, f, write, o;
};

template <bool kTail, bool kWithO, Pooling kPooling, typename T, typename S>
QRNN_INLINE Gates<S> activate(const Step<T>& step, int64_t channel, int64_t count) {
  using V = typename Simd<S>::V;
  constexpr bool kIfo = kPooling == Pooling::ifo;
  const V zero = {}, one = zero + S(1);
  const Tanh<S> z(gate<kTail, T, S>(step, 0, channel, count));
  const Logistic<S> f(gate<kTail, T, S>(step, 1, channel, count));
  const Logistic<S> o(kWithO ? gate<kTail, T, S>(step, 2, channel, count) : zero);
  const Logistic<S> i(kIfo ? gate<kTail, T, S>(step, 3, channel, count) : zero);
  // One division serves all gates, and a NaN in one of them would spread to all. o concerns one h
  // only, so its NaN must not reach the state: `largest` puts 1 in its place here.
  V of_z = z.below, of_f = f.below, of_o = largest<S>(o.below, one), of_i = i.below;
  if constexpr (kWithO && kIfo) {
    invert(of_z, of_f, of_o, of_i);
  } else if constexpr (kWithO) {
    invert(of_z, of_f, of_o);
  } else if constexpr (kIfo) {
    invert(of_z, of_f, of_i);
  } else {
    invert(of_z, of_f);
  }
  Gates<S> g = {z.value(of_z), f.plus(of_f), kIfo ? i.plus(of_i) : f.minus(of_f), o.plus(of_o)};
  if (step.zoneout) {
    // Eq. 6. An input gate of its own (ifo) still writes.
    const auto keep = keeps_lanes<S>(step.key, channel, step.threshold);
    g.f = keep ? g.f : one;
    if constexpr (!kIfo) g.write = keep ? g.write : zero;
  }
  return g;
}

template <typename S>
QRNN_INLINE void set_state(S* state, const S* from, int64_t count) {
  if (from) {
    memcpy(state, from, count * sizeof(S));
  } else {
    memset(state, 0, count * sizeof(S));
  }
}

// ---------------------------------------------------------------- forward

// `h_ahead` lies in the row of a later step.
template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE void forward_lanes(const Step<T>& step, int64_t channel, int64_t count, S* state, T* h,
                               const T* h_ahead, S* c) {
  using V = typename Simd<S>::V;
  constexpr bool kWithO = kPooling != Pooling::f;
  __builtin_prefetch(h_ahead, 1, 2);
  const Gates<S> g = activate<kTail, kWithO, kPooling, T, S>(step, channel, count);
  const V value = g.f * load<false, S>(state, count) + g.write * g.z;  // Eqs. 3 to 5
  store<false, S>(state, value, count);
  if (c) store<kTail, S>(c, value, count);
  store<kTail, S>(h, kWithO ? g.o * value : value, count);
}

template <Pooling kPooling, typename T, typename S>
void forward_block(const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out, int64_t b,
                   int64_t first, int64_t count) {
  constexpr int64_t kLanes = Simd<S>::kLanes;
  alignas(64) S state[kForwardBlock + kLanes];
  const int64_t hidden = in.hidden, length = in.length;
  const int64_t num_tiles = (length + kTile - 1) / kTile;
  set_state(state, in.initial_state ? in.initial_state + b * hidden + first : nullptr, count);
  const int64_t direction = in.reverse ? -1 : 1;
  for (int64_t n = 0; n < length; ++n) {
    const int64_t t = in.reverse ? length - 1 - n : n;
    if (out.tiles && n % kTile == 0) {
      S* tile = out.tiles + (b * num_tiles + n / kTile) * hidden + first;
      memcpy(tile, state, count * sizeof(S));
    }
    T* h = out.h + (b * length + t) * hidden + first;
    S* c = out.c ? out.c + (b * length + t) * hidden + first : nullptr;
    // A pad carries the state and lets nothing out. Its gates are not read: they may be NaN.
    if (is_pad(in, b, t)) {
      memset(h, 0, count * sizeof(T));
      if (c) memcpy(c, state, count * sizeof(S));
      continue;
    }
    const int64_t later = t + direction * kAhead;
    const Step<T> step = step_at(kPooling, in, b, t, later);
    const T* h_ahead = later < 0 || later >= length ? h : h + (later - t) * hidden;
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      forward_lanes<false, kPooling>(step, first + k, kLanes, state + k, h + k, h_ahead + k,
                                     c ? c + k : nullptr);
    }
    if (k < count) {
      forward_lanes<true, kPooling>(step, first + k, count - k, state + k, h + k, h_ahead + k,
                                    c ? c + k : nullptr);
    }
  }
  memcpy(out.state + b * hidden + first, state, count * sizeof(S));
}

// ---------------------------------------------------------------- backward

// A block's own memory, parts of its scratch. Of a tile: the states before its steps and the
// activated gates of the recurrence, (kTile, kBackwardBlock); from step to step: the gradient of the
// state and the sums over time of the gates' gradients, by gate and null without a bias.
template <typename S>
struct Workspace {
  S *c, *z, *f, *write;
  S* grad_state;
  S* grad_bias[4];
};

template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE void recompute_lanes(const Step<T>& step, int64_t channel, int64_t count, int64_t k,
                                 const Workspace<S>& work) {
  const Gates<S> g = activate<kTail, false, kPooling, T, S>(step, channel, count);
  store<false, S>(work.z + k, g.z, count);
  store<false, S>(work.f + k, g.f, count);
  store<false, S>(work.write + k, g.write, count);
  const typename Simd<S>::V c = g.f * load<false, S>(work.c + k, count) + g.write * g.z;
  store<false, S>(work.c + kBackwardBlock + k, c, count);
}

template <bool kTail, typename T, typename S>
QRNN_INLINE void write_gradient(T* grad_gates, S* sum, typename Simd<S>::V value, int64_t count) {
  store<kTail, S>(grad_gates, value, count);
  if (sum) store<false, S>(sum, load<false, S>(sum, count) + value, count);
}

// Of one step: `grad_gates` (G*H) is its row, `grad_h` and `grad_c` (count) are its own or null,
// and the tile's part of `work` begins at the step.
template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE void backward_lanes(const Step<T>& step, int64_t channel, int64_t count, int64_t k,
                                const Workspace<S>& work, const T* grad_h, const S* grad_c,
                                T* grad_gates) {
  using V = typename Simd<S>::V;
  const V c_before = load<false, S>(work.c + k, count), z = load<false, S>(work.z + k, count);
  const V f = load<false, S>(work.f + k, count), w = load<false, S>(work.write + k, count);
  V grad = load<false, S>(work.grad_state + k, count);
  if (grad_c) grad += load<kTail, S>(grad_c + k, count);
  const V received = grad_h ? load<kTail, S>(grad_h + k, count) : V{};
  const auto write = [&](int64_t index, V value) __attribute__((always_inline)) {
    S* sum = work.grad_bias[index] ? work.grad_bias[index] + k : nullptr;
    write_gradient<kTail>(grad_gates + index * step.hidden + channel, sum, value, count);
  };
  if constexpr (kPooling == Pooling::f) {
    grad += received;
  } else {
    const Logistic<S> o(gate<kTail, T, S>(step, 2, channel, count));
    const V r = S(1) / o.below, plus = o.plus(r);
    // h = o c, with c computed as the forward pass did.
    grad += received * plus;
    write(2, received * (f * c_before + w * z) * (plus * o.minus(r)));
  }
  // Where f was set to 1 (zoneout) it is a constant, and f (1 - f) is zero of itself.
  const V grad_write = grad * w;
  write(0, grad_write * (S(1) - z * z));
  if constexpr (kPooling == Pooling::ifo) {
    write(1, grad * c_before * (f - f * f));
    write(3, grad * z * (w - w * w));
  } else {
    write(1, grad_write * (c_before - z) * f);
  }
  store<false, S>(work.grad_state + k, grad * f, count);
}

// A pad hands the state's gradient on and has none of its own.
template <Pooling kPooling, typename T, typename S>
void backward_pad(int64_t hidden, int64_t channel, int64_t count, const S* grad_c, S* grad_state,
                  T* grad_gates) {
  if (grad_c) {
    for (int64_t k = 0; k < count; ++k) grad_state[k] += grad_c[k];
  }
  for (int64_t index = 0; index < num_gates(kPooling); ++index) {
    memset(grad_gates + index * hidden + channel, 0, count * sizeof(T));
  }
}

// Fetch what the backward half of a step reads and writes, a cache line a time.
template <Pooling kPooling, typename T, typename S>
QRNN_INLINE void fetch_for_backward(const Step<T>& step, const BackwardArguments<T, S>& out,
                                    int64_t row, int64_t first, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T), kGates = num_gates(kPooling);
  const int64_t hidden = step.hidden;
  for (int64_t k = first; k < first + count; k += kLine) {
    if (kPooling != Pooling::f) __builtin_prefetch(step.gates + 2 * hidden + k, 0, 2);
    if (out.grad_h) __builtin_prefetch(out.grad_h + row * hidden + k, 0, 2);
    T* grad_gates = out.grad_gates + row * kGates * hidden + k;
    for (int64_t index = 0; index < kGates; ++index) {
      __builtin_prefetch(grad_gates + index * hidden, 1, 2);
    }
  }
}

// Forward through the `num_steps` of a tile from its state before step `n`.
template <Pooling kPooling, typename T, typename S>
void recompute_tile(const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, int64_t b,
                    int64_t n, int64_t num_steps, int64_t first, int64_t count,
                    Workspace<S> work) {
  constexpr int64_t kLanes = Simd<S>::kLanes;
  for (int64_t s = 0; s < num_steps; ++s, ++n) {
    const int64_t t = in.reverse ? in.length - 1 - n : n;
    if (is_pad(in, b, t)) {
      memcpy(work.c + kBackwardBlock, work.c, count * sizeof(S));
    } else {
      const Step<T> step = step_at(kPooling, in, b, t, t + (in.reverse ? -kAhead : kAhead));
      fetch_for_backward<kPooling>(step, out, b * in.length + t, first, count);
      int64_t k = 0;
      for (; k + kLanes <= count; k += kLanes) {
        recompute_lanes<false, kPooling>(step, first + k, kLanes, k, work);
      }
      if (k < count) recompute_lanes<true, kPooling>(step, first + k, count - k, k, work);
    }
    work.c += kBackwardBlock;
    work.z += kBackwardBlock;
    work.f += kBackwardBlock;
    work.write += kBackwardBlock;
  }
}

template <Pooling kPooling, typename T, typename S>
void backward_step(const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, int64_t b,
                   int64_t t, int64_t first, int64_t count, Workspace<S> work, int64_t s) {
  constexpr int64_t kLanes = Simd<S>::kLanes;
  const int64_t hidden = in.hidden;
  const int64_t row = b * in.length + t;
  T* grad_gates = out.grad_gates + row * num_gates(kPooling) * hidden;
  const T* grad_h = out.grad_h ? out.grad_h + row * hidden + first : nullptr;
  const S* grad_c = out.grad_c ? out.grad_c + row * hidden + first : nullptr;
  if (is_pad(in, b, t)) {
    backward_pad<kPooling>(hidden, first, count, grad_c, work.grad_state, grad_gates);
    return;
  }
  work.c += s * kBackwardBlock;
  work.z += s * kBackwardBlock;
  work.f += s * kBackwardBlock;
  work.write += s * kBackwardBlock;
  const Step<T> step = step_at(kPooling, in, b, t, t);
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    backward_lanes<false, kPooling>(step, first + k, kLanes, k, work, grad_h, grad_c, grad_gates);
  }
  if (k < count) {
    backward_lanes<true, kPooling>(step, first + k, count - k, k, work, grad_h, grad_c,
                                   grad_gates);
  }
}

template <Pooling kPooling, typename T, typename S>
void backward_block(const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, int64_t b,
                    int64_t first, int64_t count, S* scratch) {
  constexpr int64_t kGates = num_gates(kPooling);
  const auto row = [scratch](int64_t index) { return scratch + index * kBackwardBlock; };
  Workspace<S> work = {row(3 * kTile), row(0), row(kTile), row(2 * kTile), row(4 * kTile + 1), {}};
  S* sums = row(4 * kTile + 2);
  const int64_t hidden = in.hidden, length = in.length;
  const int64_t num_tiles = (length + kTile - 1) / kTile;
  set_state(work.grad_state, out.grad_state ? out.grad_state + b * hidden + first : nullptr, count);
  if (out.grad_bias) {
    memset(sums, 0, kGates * kBackwardBlock * sizeof(S));
    for (int64_t index = 0; index < kGates; ++index) {
      work.grad_bias[index] = sums + index * kBackwardBlock;
    }
  }
  for (int64_t j = num_tiles - 1; j >= 0; --j) {
    const int64_t n = j * kTile;
    const int64_t num_steps = length - n < kTile ? length - n : kTile;
    set_state(work.c, out.tiles + (b * num_tiles + j) * hidden + first, count);
    recompute_tile<kPooling>(in, out, b, n, num_steps, first, count, work);
    for (int64_t s = num_steps - 1; s >= 0; --s) {
      const int64_t t = in.reverse ? length - 1 - (n + s) : n + s;
      backward_step<kPooling>(in, out, b, t, first, count, work, s);
    }
  }
  memcpy(out.grad_initial + b * hidden + first, work.grad_state, count * sizeof(S));
  if (out.grad_bias) {
    for (int64_t index = 0; index < kGates; ++index) {
      memcpy(out.grad_bias + (b * kGates + index) * hidden + first, work.grad_bias[index],
             count * sizeof(S));
    }
  }
}

template <Pooling kPooling, typename T, typename S>
void forward_range(const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out, int64_t b,
                   int64_t first, int64_t last) {
  for (int64_t k = first; k < last; k += kForwardBlock) {
    forward_block<kPooling>(in, out, b, k, last - k < kForwardBlock ? last - k : kForwardBlock);
  }
}

template <Pooling kPooling, typename T, typename S>
void backward_range(const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, int64_t b,
                    int64_t first, int64_t last, S* scratch) {
  // Blocks of equal size, in whole cache lines.
  const int64_t count = last - first, num_blocks = (count + kBackwardBlock - 1) / kBackwardBlock;
  const int64_t lines = num_blocks ? (count / num_blocks + 31) / 32 : 1;
  const int64_t width = 32 * lines < kBackwardBlock ? 32 * lines : kBackwardBlock;
  for (int64_t k = first; k < last; k += width) {
    backward_block<kPooling>(in, out, b, k, last - k < width ? last - k : width, scratch);
  }
}

}  // namespace

namespace QRNN_ISA {

template <typename T, typename S>
void forward(Pooling pooling, const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out,
             int64_t b, int64_t first, int64_t last) {
  if (pooling == Pooling::f) return forward_range<Pooling::f>(in, out, b, first, last);
  if (pooling == Pooling::fo) return forward_range<Pooling::fo>(in, out, b, first, last);
  return forward_range<Pooling::ifo>(in, out, b, first, last);
}

template <typename T, typename S>
void backward(Pooling pooling, const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out,
              int64_t b, int64_t first, int64_t last, S* scratch) {
  if (pooling == Pooling::f) return backward_range<Pooling::f>(in, out, b, first, last, scratch);
  if (pooling == Pooling::fo) return backward_range<Pooling::fo>(in, out, b, first, last, scratch);
  return backward_range<Pooling::ifo>(in, out, b, first, last, scratch);
}

#define QRNN_INSTANTIATE(T, S)                                                                 \
  template void forward<T, S>(Pooling, const PoolInputs<T, S>&, const ForwardOutputs<T, S>&,   \
                              int64_t, int64_t, int64_t);                                      \
  template void backward<T, S>(Pooling, const PoolInputs<T, S>&,                               \
                               const BackwardArguments<T, S>&, int64_t, int64_t, int64_t, S*);
QRNN_INSTANTIATE(float, float)
QRNN_INSTANTIATE(double, double)
QRNN_INSTANTIATE(Half, float)
QRNN_INSTANTIATE(BFloat16, float)

}  // namespace QRNN_ISA
}  // namespace hf_qrnn
