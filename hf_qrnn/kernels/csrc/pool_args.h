// What the CPU and the CUDA kernels share: arguments, layout and the zoneout bits.
//
// The definition of all they compute is model/pool_equations_qrnn.py (Eqs. 3 to 6 of arXiv
// 1611.01576). Gates lie side by side in the order z, f, o, i.
//
// Shapes: B batch, T time, H hidden, G gates. Strides count elements; channels have stride 1.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(QRNN_EMULATE_CUDA)
#define QRNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QRNN_HOST_DEVICE inline
#endif

namespace hf_qrnn {

// Eqs. 3, 4 and 5. The numbers are those of the operations' `pooling` argument.
enum class Pooling : int { f = 0, fo = 1, ifo = 2 };

QRNN_HOST_DEVICE constexpr int num_gates(Pooling pooling) {
  return pooling == Pooling::f ? 2 : pooling == Pooling::fo ? 3 : 4;
}

// The forward pass keeps the state before every 32nd processed step; the backward pass
// recomputes the states between.
constexpr int64_t kTile = 32;

// What forward and backward read. T is the gates' type, S the state's.
template <typename T, typename S>
struct PoolInputs {
  const T* gates;  // (B, T, G*H)
  int64_t gates_stride_b;
  int64_t gates_stride_t;
  const T* bias;           // (B, G*H) contiguous, or null
  const S* initial_state;  // (B, H) contiguous, or null for zeros
  const bool* mask;        // (B, T), or null where nothing is a pad
  int64_t mask_stride_b;
  int64_t mask_stride_t;
  const int64_t* seed;        // one number, or null without zoneout
  uint64_t zoneout_threshold;  // round(probability * 2^24)
  int64_t batch;
  int64_t length;
  int64_t hidden;
  bool reverse;
};

template <typename T, typename S>
struct ForwardOutputs {
  T* h;      // (B, T, H)
  S* c;      // (B, T, H), or null where not wanted
  S* state;  // (B, H)
  S* tiles;  // (B, ceil(T / kTile), H), or null where not wanted
};

template <typename T, typename S>
struct BackwardArguments {
  const T* grad_h;      // (B, T, H) contiguous, or null
  const S* grad_c;      // (B, T, H) contiguous, or null
  const S* grad_state;  // (B, H) contiguous, or null
  const S* tiles;       // as the forward pass wrote them
  T* grad_gates;        // (B, T, G*H) contiguous
  S* grad_bias;         // (B, G*H), or null without a bias
  S* grad_initial;      // (B, H)
};

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
QRNN_HOST_DEVICE uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

// The key of a (row, step): `keeps` draws one bit per channel from it.
QRNN_HOST_DEVICE uint64_t zoneout_key(int64_t seed, int64_t b, int64_t t) {
  const uint64_t counter = (static_cast<uint64_t>(b) << 32) + static_cast<uint64_t>(t) + 1;
  return mix(static_cast<uint64_t>(seed) + counter * kGolden);
}

// Whether the forget gate of a channel is left alone (Eq. 6).
QRNN_HOST_DEVICE bool keeps(uint64_t key, int64_t channel, uint64_t threshold) {
  const uint64_t draw = mix(key + (static_cast<uint64_t>(channel) + 1) * kGolden) >> 40;
  return draw >= threshold;
}

}  // namespace hf_qrnn
