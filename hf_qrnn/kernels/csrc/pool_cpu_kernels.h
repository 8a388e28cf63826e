// Pooling on the CPU, forward and backward, for one instruction set (QRNN_ISA, QRNN_SIMD_BYTES).
//
// A task is a row of the batch and a range of channels. It walks through time and, at every step,
// over its channels, so that memory is read in the order in which it lies; the state waits in the
// first-level cache. Lanes never mix: a result depends on neither the lane nor the thread.
#pragma once

#include "simd.h"

namespace hf_qrnn {
namespace {

// Channels whose state is kept at once. Backward also keeps the states of a tile.
constexpr int64_t kForwardBlock = 1024, kBackwardBlock = 512;

// Rows of gates fetched ahead of their use.
constexpr int64_t kAhead = 2;

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

// Activated gates: c = f c' + write z. Pads do not come here.
template <typename S>
struct Gates {
  typename Simd<S>::V z, slope_z, f, one_minus_f, write, slope_write;
};

template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE Gates<S> activate(const Step<T>& step, int64_t channel, int64_t count) {
  using V = typename Simd<S>::V;
  const V zero = {};
  Gates<S> g;
  const Tanh<S> z = tanh_and_slope<S>(gate<kTail, T, S>(step, 0, channel, count));
  const Logistic<S> f = logistic<S>(gate<kTail, T, S>(step, 1, channel, count));
  g.z = z.value;
  g.slope_z = z.slope;
  g.f = f.plus;
  g.one_minus_f = f.minus;
  if (step.zoneout) {
    const auto keep = keeps_lanes<S>(step.key, channel, step.threshold);
    g.f = keep ? g.f : zero + S(1);
    g.one_minus_f = keep ? g.one_minus_f : zero;
  }
  if constexpr (kPooling == Pooling::ifo) {
    const Logistic<S> i = logistic<S>(gate<kTail, T, S>(step, 3, channel, count));
    g.write = i.plus;
    g.slope_write = i.plus * i.minus;
  } else {
    g.write = g.one_minus_f;
    g.slope_write = zero;  // not a gate of its own
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

template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE void forward_lanes(const Step<T>& step, int64_t channel, int64_t count, S* state, T* h,
                               S* c) {
  using V = typename Simd<S>::V;
  const Gates<S> g = activate<kTail, kPooling, T, S>(step, channel, count);
  const V value = g.f * load<false, S>(state, count) + g.write * g.z;
  store<false, S>(state, value, count);
  if (c) store<kTail, S>(c, value, count);
  if constexpr (kPooling == Pooling::f) {
    store<kTail, S>(h, value, count);
  } else {
    const V o = logistic<S>(gate<kTail, T, S>(step, 2, channel, count)).plus;
    store<kTail, S>(h, o * value, count);
  }
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
    if (is_pad(in, b, t)) {
      memset(h, 0, count * sizeof(T));
      if (c) memcpy(c, state, count * sizeof(S));
      continue;
    }
    const Step<T> step = step_at(kPooling, in, b, t, t + direction * kAhead);
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      forward_lanes<false, kPooling>(step, first + k, kLanes, state + k, h + k,
                                     c ? c + k : nullptr);
    }
    if (k < count) {
      forward_lanes<true, kPooling>(step, first + k, count - k, state + k, h + k,
                                    c ? c + k : nullptr);
    }
  }
  memcpy(out.state + b * hidden + first, state, count * sizeof(S));
}

// ---------------------------------------------------------------- backward

// What flows from step to step of a block: the gradient of the state, the sum of the gates' own.
template <typename S>
struct Flow {
  S* grad_state;
  S* grad_bias[4];  // by gate; null without a bias
};

template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE void recompute_lanes(const Step<T>& step, int64_t channel, int64_t count,
                                 const S* before, S* after) {
  const Gates<S> g = activate<kTail, kPooling, T, S>(step, channel, count);
  store<false, S>(after, g.f * load<false, S>(before, count) + g.write * g.z, count);
}

template <bool kTail, typename T, typename S>
QRNN_INLINE void write_gradient(T* grad_gates, S* grad_bias, int64_t offset, int64_t k,
                                typename Simd<S>::V value, int64_t count) {
  store<kTail, S>(grad_gates + offset, value, count);
  if (grad_bias) store<false, S>(grad_bias + k, load<false, S>(grad_bias + k, count) + value, count);
}

// Of one step: `grad_gates` (G*H) is its row, `grad_h` and `grad_c` (count) are its own or null.
template <bool kTail, Pooling kPooling, typename T, typename S>
QRNN_INLINE void backward_lanes(const Step<T>& step, int64_t channel, int64_t k, int64_t count,
                                const S* before, const T* grad_h, const S* grad_c,
                                const Flow<S>& flow, T* grad_gates) {
  using V = typename Simd<S>::V;
  const Gates<S> g = activate<kTail, kPooling, T, S>(step, channel, count);
  const V c_before = load<false, S>(before + k, count);
  V grad = load<false, S>(flow.grad_state + k, count);
  if (grad_c) grad += load<kTail, S>(grad_c + k, count);
  const V received = grad_h ? load<kTail, S>(grad_h + k, count) : V{};
  const auto write = [&](int64_t index, V value) __attribute__((always_inline)) {
    write_gradient<kTail>(grad_gates, flow.grad_bias[index], index * step.hidden + channel, k,
                          value, count);
  };
  if constexpr (kPooling == Pooling::f) {
    grad += received;
  } else {
    const Logistic<S> o = logistic<S>(gate<kTail, T, S>(step, 2, channel, count));
    grad += received * o.plus;
    const V c = g.f * c_before + g.write * g.z;
    write(2, received * c * (o.plus * o.minus));
  }
  const V grad_write = grad * g.write;
  write(0, grad_write * g.slope_z);
  if constexpr (kPooling == Pooling::ifo) {
    write(1, grad * c_before * (g.f * g.one_minus_f));
    write(3, grad * g.z * g.slope_write);
  } else {
    write(1, grad_write * (c_before - g.z) * g.f);
  }
  store<false, S>(flow.grad_state + k, grad * g.f, count);
}

// A pad hands the state's gradient on and has none of its own.
template <Pooling kPooling, typename T, typename S>
void backward_pad(int64_t hidden, int64_t channel, int64_t count, const S* grad_c,
                  const Flow<S>& flow, T* grad_gates) {
  if (grad_c) {
    for (int64_t k = 0; k < count; ++k) flow.grad_state[k] += grad_c[k];
  }
  for (int64_t index = 0; index < num_gates(kPooling); ++index) {
    memset(grad_gates + index * hidden + channel, 0, count * sizeof(T));
  }
}

// The states before every step of tile `j`, (num_steps, kBackwardBlock), from the tile's first.
template <Pooling kPooling, typename T, typename S>
void recompute_tile(const PoolInputs<T, S>& in, const S* tiles, int64_t b, int64_t j, int64_t first,
                    int64_t count, int64_t num_steps, S* states) {
  constexpr int64_t kLanes = Simd<S>::kLanes;
  const int64_t hidden = in.hidden, length = in.length;
  const int64_t num_tiles = (length + kTile - 1) / kTile;
  memcpy(states, tiles + (b * num_tiles + j) * hidden + first, count * sizeof(S));
  for (int64_t s = 0; s + 1 < num_steps; ++s) {
    const int64_t n = j * kTile + s;
    const int64_t t = in.reverse ? length - 1 - n : n;
    const S* before = states + s * kBackwardBlock;
    S* after = states + (s + 1) * kBackwardBlock;
    if (is_pad(in, b, t)) {
      memcpy(after, before, count * sizeof(S));
      continue;
    }
    const Step<T> step = step_at(kPooling, in, b, t, t + (in.reverse ? -kAhead : kAhead));
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      recompute_lanes<false, kPooling>(step, first + k, kLanes, before + k, after + k);
    }
    if (k < count) {
      recompute_lanes<true, kPooling>(step, first + k, count - k, before + k, after + k);
    }
  }
}

template <Pooling kPooling, typename T, typename S>
void backward_step(const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, int64_t b,
                   int64_t t, int64_t first, int64_t count, const S* before, const Flow<S>& flow) {
  constexpr int64_t kLanes = Simd<S>::kLanes;
  const int64_t hidden = in.hidden;
  const int64_t row = b * in.length + t;
  T* grad_gates = out.grad_gates + row * num_gates(kPooling) * hidden;
  const T* grad_h = out.grad_h ? out.grad_h + row * hidden + first : nullptr;
  const S* grad_c = out.grad_c ? out.grad_c + row * hidden + first : nullptr;
  if (is_pad(in, b, t)) {
    backward_pad<kPooling>(hidden, first, count, grad_c, flow, grad_gates);
    return;
  }
  const Step<T> step = step_at(kPooling, in, b, t, t + (in.reverse ? kTile : -kTile));
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    backward_lanes<false, kPooling>(step, first + k, k, kLanes, before, grad_h, grad_c, flow,
                                    grad_gates);
  }
  if (k < count) {
    backward_lanes<true, kPooling>(step, first + k, k, count - k, before, grad_h, grad_c, flow,
                                   grad_gates);
  }
}

template <Pooling kPooling, typename T, typename S>
void backward_block(const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, int64_t b,
                    int64_t first, int64_t count) {
  constexpr int64_t kGates = num_gates(kPooling), kWidth = kBackwardBlock + Simd<S>::kLanes;
  alignas(64) S grad_state[kWidth];
  alignas(64) S grad_bias[kGates][kWidth];
  alignas(64) S states[kTile * kBackwardBlock + Simd<S>::kLanes];
  const int64_t hidden = in.hidden, length = in.length;
  set_state(grad_state, out.grad_state ? out.grad_state + b * hidden + first : nullptr, count);
  Flow<S> flow = {grad_state, {}};
  if (out.grad_bias) {
    memset(grad_bias, 0, sizeof grad_bias);
    for (int64_t index = 0; index < kGates; ++index) flow.grad_bias[index] = grad_bias[index];
  }
  for (int64_t j = (length + kTile - 1) / kTile - 1; j >= 0; --j) {
    const int64_t left = length - j * kTile;
    const int64_t num_steps = left < kTile ? left : kTile;
    recompute_tile<kPooling>(in, out.tiles, b, j, first, count, num_steps, states);
    for (int64_t s = num_steps - 1; s >= 0; --s) {
      const int64_t n = j * kTile + s;
      backward_step<kPooling>(in, out, b, in.reverse ? length - 1 - n : n, first, count,
                              states + s * kBackwardBlock, flow);
    }
  }
  memcpy(out.grad_initial + b * hidden + first, grad_state, count * sizeof(S));
  if (out.grad_bias) {
    for (int64_t index = 0; index < kGates; ++index) {
      memcpy(out.grad_bias + (b * kGates + index) * hidden + first, grad_bias[index],
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
                    int64_t first, int64_t last) {
  for (int64_t k = first; k < last; k += kBackwardBlock) {
    backward_block<kPooling>(in, out, b, k, last - k < kBackwardBlock ? last - k : kBackwardBlock);
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
              int64_t b, int64_t first, int64_t last) {
  if (pooling == Pooling::f) return backward_range<Pooling::f>(in, out, b, first, last);
  if (pooling == Pooling::fo) return backward_range<Pooling::fo>(in, out, b, first, last);
  return backward_range<Pooling::ifo>(in, out, b, first, last);
}

#define QRNN_INSTANTIATE(T, S)                                                                 \
  template void forward<T, S>(Pooling, const PoolInputs<T, S>&, const ForwardOutputs<T, S>&,   \
                              int64_t, int64_t, int64_t);                                      \
  template void backward<T, S>(Pooling, const PoolInputs<T, S>&,                               \
                               const BackwardArguments<T, S>&, int64_t, int64_t, int64_t);
QRNN_INSTANTIATE(float, float)
QRNN_INSTANTIATE(double, double)
QRNN_INSTANTIATE(Half, float)
QRNN_INSTANTIATE(BFloat16, float)

}  // namespace QRNN_ISA
}  // namespace hf_qrnn
