// What every pooling kernel is made of: numbers, activations, and one thread's way through time.
#pragma once

#include "language.cuh"

#include "../pool_args.h"

namespace hf_qrnn::gpu {

template <typename T>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
template <typename T>
using State = typename StateOf<T>::type;

// Adjacent channels of a thread. A warp reads whole 128-byte lines of each gate, in 4 bytes a lane;
// what hides the latency is steps in flight, not wider loads.
template <typename T>
constexpr int kChannels = sizeof(T) == 2 ? 2 : 1;

// ------------------------------------------------------------------ numbers

// Channels as they wait in registers: two 16-bit numbers in one word, which the compiler would
// otherwise spread over two registers.
template <typename T>
struct RawOf {
  using type = T;
};
template <>
struct RawOf<__half> {
  using type = uint32_t;
};
template <>
struct RawOf<__nv_bfloat16> {
  using type = uint32_t;
};
template <typename T>
using Raw = typename RawOf<T>::type;

template <typename T>
struct Packed {
  static constexpr int V = 1;
  __device__ __forceinline__ static void unpack(T raw, T (&x)[V]) { x[0] = raw; }
  __device__ __forceinline__ static T pack(const T (&x)[V]) { return x[0]; }
};

template <>
struct Packed<__half> {
  static constexpr int V = 2;
  __device__ __forceinline__ static void unpack(uint32_t raw, float (&x)[V]) {
    x[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(raw & 0xFFFFu)));
    x[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(raw >> 16)));
  }
  __device__ __forceinline__ static uint32_t pack(const float (&x)[V]) {
    const uint32_t low = __half_as_ushort(__float2half_rn(x[0]));
    return low | static_cast<uint32_t>(__half_as_ushort(__float2half_rn(x[1]))) << 16;
  }
};

template <>
struct Packed<__nv_bfloat16> {
  static constexpr int V = 2;
  __device__ __forceinline__ static void unpack(uint32_t raw, float (&x)[V]) {
    x[0] = __uint_as_float(raw << 16);
    x[1] = __uint_as_float(raw & 0xFFFF0000u);
  }
  __device__ __forceinline__ static uint32_t pack(const float (&x)[V]) {
    const uint32_t low = __bfloat16_as_ushort(__float2bfloat16_rn(x[0]));
    return low | static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(x[1]))) << 16;
  }
};

// The states of a thread's channels.
template <typename S, int V>
struct alignas(V * sizeof(S)) Pack {
  S x[V];
};

// ------------------------------------------------------------------ activations

// An activated step of one channel. `rest` is 1 - f, `write` the factor of z: `rest`, or i for ifo.
template <typename S>
struct Gates {
  S z, f, rest, write, o;
};

// Relative errors below 1e-6 wherever 16-bit gates can tell the difference; expf is exact to an
// ulp. Neither is tanh.approx: its 2^-11 would spoil a long memory, f = 0.999.
template <typename T>
__device__ __forceinline__ float exponential(float x) {
  return sizeof(T) == 2 ? __expf(x) : expf(x);
}

// tanh(x) = (1 - a) / (1 + a) with a = exp(-2 |x|) cancels near zero, where its series is short.
__device__ __forceinline__ float tangent(float x, float ratio) {
  const float y = x * x;
  const float series =
      x + x * y * (-1.0f / 3 + y * (2.0f / 15 + y * (-17.0f / 315 + y * (62.0f / 2835))));
  return fabsf(x) < 0.25f ? series : copysignf(ratio, x);
}

// Exponents are never positive, so no sum leaves [1, 2] and no product [1, 8]. Gates of the state
// share one reciprocal: special functions, 16 a clock and SM, are what a 16-bit kernel would run
// out of before memory. o has its own: a NaN in it concerns one h, not all states to come.
template <typename T, Pooling P>
__device__ __forceinline__ Gates<float> activate(float z, float f, float o, float i) {
  const float a = exponential<T>(-2.0f * fabsf(z));
  const float b = exponential<T>(-fabsf(f));
  Gates<float> gates;
  float over_b;  // 1 / (1 + b)
  if constexpr (P == Pooling::ifo) {
    const float d = exponential<T>(-fabsf(i));
    const float ab = (1.0f + a) * (1.0f + b);
    const float over = __fdividef(1.0f, ab * (1.0f + d));
    const float over_ab = over * (1.0f + d);
    const float over_d = over * ab;
    gates.z = tangent(z, (1.0f - a) * (1.0f + b) * over_ab);
    over_b = (1.0f + a) * over_ab;
    gates.write = i < 0.0f ? d * over_d : over_d;
  } else {
    const float over = __fdividef(1.0f, (1.0f + a) * (1.0f + b));
    gates.z = tangent(z, (1.0f - a) * (1.0f + b) * over);
    over_b = (1.0f + a) * over;
  }
  gates.f = f < 0.0f ? b * over_b : over_b;
  gates.rest = f < 0.0f ? over_b : b * over_b;
  if constexpr (P != Pooling::ifo) gates.write = gates.rest;
  if constexpr (P == Pooling::f) {
    gates.o = 1.0f;
  } else {
    const float d = exponential<T>(-fabsf(o));
    const float over_d = __fdividef(1.0f, 1.0f + d);
    gates.o = o < 0.0f ? d * over_d : over_d;
  }
  return gates;
}

template <typename T, Pooling P>
__device__ __forceinline__ Gates<double> activate(double z, double f, double o, double i) {
  Gates<double> gates;
  gates.z = tanh(z);
  gates.f = 1.0 / (1.0 + exp(-f));
  gates.rest = 1.0 / (1.0 + exp(f));
  gates.write = P == Pooling::ifo ? 1.0 / (1.0 + exp(-i)) : gates.rest;
  gates.o = P == Pooling::f ? 1.0 : 1.0 / (1.0 + exp(-o));
  return gates;
}

// ------------------------------------------------------------------ one thread's channels

// A bit for each of up to 32 steps: whether it is real, and whether a channel's f is set to 1.
template <int V>
struct Flags {
  uint32_t real;
  uint32_t zoned[V];
};

// Adjacent channels of one row, walked in processing order: step 0 is the last time if reversed.
//
// `paired` says that every pack of V channels of every tensor is aligned. Otherwise a thread takes
// one channel, and what it computes for a second one is not written.
template <typename T, Pooling P>
struct Lane {
  using S = State<T>;
  static constexpr int V = kChannels<T>;
  static constexpr int G = num_gates(P);

  int64_t b;
  int64_t channel;
  int64_t hidden;
  int64_t length;
  int64_t first_time;  // of step 0
  int sign;            // of time
  bool paired;
  bool writes;
  const T* gates;    // of step 0
  const bool* mask;  // of step 0, or null
  int64_t gates_step;
  int64_t mask_step;
  int64_t seed;
  uint64_t threshold;
  bool zoneout;
  S bias[G][V];

  __device__ __forceinline__ static int64_t packs(int64_t hidden, bool paired) {
    return paired ? hidden / V : hidden;
  }

  // Past the end of the row the thread reads the last pack and writes nothing, so that it can meet
  // the others at barriers.
  __device__ __forceinline__ void place(const PoolInputs<T, S>& in, int64_t row, int64_t pack,
                                        bool aligned) {
    const int64_t last_pack = packs(in.hidden, aligned) - 1;
    b = row;
    writes = pack <= last_pack;
    paired = aligned;
    channel = (writes ? pack : last_pack) * (paired ? V : 1);
    hidden = in.hidden;
    length = in.length;
    first_time = in.reverse ? length - 1 : 0;
    sign = in.reverse ? -1 : 1;
    gates = in.gates + b * in.gates_stride_b + first_time * in.gates_stride_t + channel;
    gates_step = sign * in.gates_stride_t;
    mask = in.mask == nullptr
               ? nullptr
               : in.mask + b * in.mask_stride_b + first_time * in.mask_stride_t;
    mask_step = sign * in.mask_stride_t;
    zoneout = in.seed != nullptr;
    seed = zoneout ? *in.seed : 0;
    threshold = in.zoneout_threshold;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int v = 0; v < V; ++v) bias[g][v] = 0;
      if (in.bias != nullptr) {
        Packed<T>::unpack(load(in.bias + (b * G + g) * hidden + channel), bias[g]);
      }
    }
  }

  __device__ __forceinline__ int64_t time(int64_t step) const { return first_time + sign * step; }

  // Where (b, time of `step`, channel) lies in a contiguous (B, T, width) tensor. The next step
  // lies sign * width further.
  __device__ __forceinline__ int64_t at(int64_t step, int64_t width) const {
    return (b * length + time(step)) * width + channel;
  }

  // Where (b, row, channel) lies in a contiguous (B, rows, hidden) tensor.
  __device__ __forceinline__ int64_t at_row(int64_t rows, int64_t row) const {
    return (b * rows + row) * hidden + channel;
  }

  __device__ __forceinline__ Raw<T> load(const T* address) const {
    if constexpr (V == 1) {
      return *address;
    } else {
      return paired ? *reinterpret_cast<const uint32_t*>(address)
                    : uint32_t{*reinterpret_cast<const uint16_t*>(address)};
    }
  }

  __device__ __forceinline__ void store(T* address, const S (&values)[V]) const {
    if (!writes) return;
    const Raw<T> raw = Packed<T>::pack(values);
    if constexpr (V == 1) {
      *address = raw;
    } else if (paired) {
      *reinterpret_cast<uint32_t*>(address) = raw;
    } else {
      *reinterpret_cast<uint16_t*>(address) = static_cast<uint16_t>(raw);
    }
  }

  __device__ __forceinline__ Pack<S, V> load_state(const S* address) const {
    if constexpr (V > 1) {
      if (!paired) {
        Pack<S, V> pack = {};
        pack.x[0] = *address;
        return pack;
      }
    }
    return *reinterpret_cast<const Pack<S, V>*>(address);
  }

  __device__ __forceinline__ void store_state(S* address, const Pack<S, V>& values) const {
    if (!writes) return;
    if (V == 1 || paired) {
      *reinterpret_cast<Pack<S, V>*>(address) = values;
    } else {
      *address = values.x[0];
    }
  }

  // This row of a (B, H) tensor of states; zero where there is none.
  __device__ __forceinline__ Pack<S, V> row_or_zero(const S* tensor) const {
    return tensor == nullptr ? Pack<S, V>{} : load_state(tensor + at_row(1, 0));
  }

  // The flags of `count` steps from `start`; none past the end is real. Drawn once for many steps,
  // in a loop of its own: unrolled among the activations the draws would be most of the code.
  __device__ __forceinline__ Flags<V> flags(int64_t start, int count, uint32_t real) const {
    const int64_t left = length - start;
    const int valid = left <= 0 ? 0 : left < count ? static_cast<int>(left) : count;
    Flags<V> out = {valid < 32 ? real & ((1u << valid) - 1u) : real, {}};
    if (!zoneout) return out;
#pragma unroll 1
    for (int n = 0; n < valid; ++n) {
      const uint64_t key = zoneout_key(seed, b, time(start + n));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out.zoned[v] |= (keeps(key, channel + v, threshold) ? 0u : 1u) << n;
      }
    }
    return out;
  }

  // Adds the bias, activates, and makes a pad or a zoned-out channel carry the state: step n of the
  // flags.
  __device__ __forceinline__ void activate_step(const Raw<T> (&raw)[G], const Flags<V>& flags,
                                                int n, Gates<S> (&out)[V]) const {
    S x[4][V] = {};
#pragma unroll
    for (int g = 0; g < G; ++g) Packed<T>::unpack(raw[g], x[g]);
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int g = 0; g < G; ++g) x[g][v] += bias[g][v];
      out[v] = activate<T, P>(x[0][v], x[1][v], x[2][v], x[3][v]);
      if ((flags.zoned[v] >> n & 1u) != 0) {  // Eq. 6
        out[v].f = 1;
        out[v].rest = 0;
        if constexpr (P != Pooling::ifo) out[v].write = 0;
      }
      // By assignment, not by products: a pad may hold anything, NaN too.
      if ((flags.real >> n & 1u) == 0) out[v] = Gates<S>{0, 1, 0, 0, 0};
    }
  }
};

// One step of the recurrence, Eqs. 3 to 5.
template <typename S, int V>
__device__ __forceinline__ void advance(const Gates<S> (&gates)[V], Pack<S, V>& c) {
#pragma unroll
  for (int v = 0; v < V; ++v) c.x[v] = gates[v].f * c.x[v] + gates[v].write * gates[v].z;
}

// ------------------------------------------------------------------ groups of steps

// Which gates a group holds: all, those that the state depends on (z, f, and i for ifo), or the
// output gate, if there is one.
enum class Part { all, state, output };

template <Pooling P, Part part>
constexpr int kGatesOf = part == Part::all      ? num_gates(P)
                         : part == Part::output ? (P == Pooling::f ? 0 : 1)
                                                : (P == Pooling::ifo ? 3 : 2);

// The place of gate `k` of a part in the memory order z, f, o, i.
template <Part part>
__device__ __forceinline__ constexpr int place_of(int k) {
  return part == Part::all ? k : part == Part::output ? 2 : (k < 2 ? k : 3);
}

// Gates of N steps as they lie in memory, and a bit per step: set where it is real.
template <typename T, Pooling P, int N, Part part>
struct RawGates {
  static constexpr int K = kGatesOf<P, part>;
  Raw<T> gate[N][K > 0 ? K : 1];
  uint32_t real;

  // Steps past the end read the last one again. The mask's bytes come last: all gates are in flight
  // by the time the first of them is waited for.
  __device__ __forceinline__ void load(const Lane<T, P>& lane, int64_t start) {
    const int64_t last = lane.length - 1;
    const int64_t first = start < last ? start : last;
    const int left = static_cast<int>(last - first < N ? last - first : N);
    if constexpr (K > 0) {
      const T* row = lane.gates + first * lane.gates_step;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int k = 0; k < K; ++k) gate[n][k] = lane.load(row + place_of<part>(k) * lane.hidden);
        row += n < left ? lane.gates_step : 0;
      }
    }
    real = ~0u;
    if (part != Part::output && lane.mask != nullptr) {
      const bool* byte = lane.mask + first * lane.mask_step;
      real = 0;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        real |= (*byte ? 1u : 0u) << n;
        byte += n < left ? lane.mask_step : 0;
      }
    }
  }

  // Puts the gates of step n where all gates of a step are.
  __device__ __forceinline__ void spread(int n, Raw<T> (&raw)[num_gates(P)]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) raw[place_of<part>(k)] = gate[n][k];
  }
};

// What the backward sweep needs at N steps besides the gates of the state.
template <typename T, Pooling P, int N>
struct Received {
  using S = State<T>;
  static constexpr int V = kChannels<T>;
  RawGates<T, P, N, Part::output> o;
  Raw<T> grad_h[N];
  Pack<S, V> grad_c[N];

  __device__ __forceinline__ void load(const Lane<T, P>& lane, const BackwardArguments<T, S>& grads,
                                       int64_t start) {
    o.load(lane, start);
    const int64_t last = lane.length - 1;
    const int64_t first = start < last ? start : last;
    const int left = static_cast<int>(last - first < N ? last - first : N);
    const int64_t step = lane.sign * lane.hidden;
    int64_t at = lane.at(first, lane.hidden);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      grad_h[n] = 0;
      if (grads.grad_h != nullptr) grad_h[n] = lane.load(grads.grad_h + at);
      grad_c[n] = {};
      if (grads.grad_c != nullptr) grad_c[n] = lane.load_state(grads.grad_c + at);
      at += n < left ? step : 0;
    }
  }
};

// The gradients of one step, written to `address` and added to `sums`. `before` is c before the
// step. `flow` is what the next processed step sends back, its f times the gradient of its c; on
// return it is what this step sends on.
template <typename T, Pooling P, typename S, int V, int G>
__device__ __forceinline__ void backward_step(const Lane<T, P>& lane, const Gates<S> (&gates)[V],
                                              const Pack<S, V>& before, Raw<T> grad_h,
                                              const Pack<S, V>& grad_c, Pack<S, V>& flow,
                                              Pack<S, V> (&sums)[G], T* address) {
  S grad[4][V], from_h[V];
  Packed<T>::unpack(grad_h, from_h);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const Gates<S> gate = gates[v];
    const S c = gate.f * before.x[v] + gate.write * gate.z;
    const S grad_state = from_h[v] * gate.o + grad_c.x[v] + flow.x[v];
    const S change = P == Pooling::ifo ? before.x[v] : before.x[v] - gate.z;
    grad[0][v] = grad_state * gate.write * (1 - gate.z * gate.z);
    grad[1][v] = grad_state * change * gate.f * gate.rest;
    grad[2][v] = from_h[v] * c * gate.o * (1 - gate.o);
    grad[3][v] = grad_state * gate.z * gate.write * (1 - gate.write);
    flow.x[v] = gate.f * grad_state;
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    lane.store(address + g * lane.hidden, grad[g]);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[g].x[v] += grad[g][v];
  }
}

}  // namespace hf_qrnn::gpu
