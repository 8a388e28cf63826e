// What the CPU and the CUDA kernels of the connection around a layer share.
//
// Shapes: B batch, T time, H hidden. Rows are steps, B * T of them, H adjacent channels each.
#pragma once

#include "pool_args.h"

namespace hf_qrnn {

// What numbers in memory are.
enum class Number : int { float64, float32, float16, bfloat16 };

// Rows of channels, B * T * H of them; null where there are none.
struct Rows {
  void* data = nullptr;
  Number number = Number::float32;
};
struct ConstRows {
  const void* data = nullptr;
  Number number = Number::float32;
};

// Dropout zeroes a channel where its draw is below the threshold, and multiplies the others.
struct Dropout {
  const int64_t* seed;  // one number, or null without dropout
  uint32_t threshold;   // round(probability * 2^16)
  double scale;         // 2^16 / (2^16 - threshold); 0 where all are zeroed
};

// out = residual + dropout(h) and normed = out / sqrt(mean(out^2) + eps) * weight.
template <typename S>
struct ConnectInputs {
  ConstRows h, residual, weight;
  Dropout dropout;
  double eps;
  int64_t batch, length, hidden;
};

template <typename S>
struct ConnectOutputs {
  Rows out;     // null where it is `h` itself
  Rows normed;  // null without a norm
  S* inverse;   // (B, T), 1 / sqrt(mean(out^2) + eps); null without a norm
};

// Gradients: of `out` and `normed` given, of `h`, `residual` and `weight` wanted.
template <typename S>
struct ConnectBackward {
  ConstRows grad_out, grad_normed;  // null where nothing comes
  ConstRows out, weight;            // as the forward pass had them; null without a norm
  const S* inverse;
  Dropout dropout;
  Rows grad_h, grad_residual;  // null where not wanted
  S* grad_weight;              // (parts, H), a sum over each part's rows; null without a norm
  int64_t batch, length, hidden;
};

// Rows of a part: what one thread sums the weight's gradient over, whatever the number of threads.
constexpr int64_t kPartRows = 64;

// Four channels share a draw of 64 bits: SplitMix64 at counter channel / 4, keyed by `zoneout_key`
// of (seed, b, t); channel c has its bits 16 (c % 4) to 16 (c % 4) + 15.
QRNN_HOST_DEVICE uint64_t dropout_draw(uint64_t key, int64_t four) {
  return mix(key + (static_cast<uint64_t>(four) + 1) * kGolden);
}

// Whether number `k`, 0 to 3, of a draw's channels is left alone.
QRNN_HOST_DEVICE bool dropout_keeps(uint64_t draw, int k, uint32_t threshold) {
  return ((draw >> (16 * k)) & 0xFFFF) >= threshold;
}

}  // namespace hf_qrnn
