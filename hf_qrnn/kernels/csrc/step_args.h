// What the CPU and the CUDA kernels of a decoder's step share, beside pooling and connection.
//
// Shapes: R rows, B sources of R / B rows each, E input channels, H units, K filter width, G gates,
// N attention heads, D = H / N their size, S source steps, I inner units of a feed-forward block.
#pragma once

#include "connect_args.h"

namespace hf_qrnn {

// The window of a step: the K - 1 inputs before it, and its own, normed where there is a weight.
struct StepWindow {
  ConstRows x;       // (R, E)
  ConstRows weight;  // (E), or null without a norm
  ConstRows inputs;  // (R, K-1, E), with adjacent channels
  int64_t inputs_stride_r, inputs_stride_t;
  Rows window;  // (R, K, E)
  double eps;
  int64_t rows, steps, width;  // R, K, E
};

// Attention of one query a row: softmax(scale q . k) v, over the real steps of the row's source. A
// row without one sees zeros.
struct StepAttention {
  ConstRows query;         // (R, H)
  ConstRows keys, values;  // (B, N, S, D), with adjacent channels
  int64_t keys_stride_b, keys_stride_n, keys_stride_s;
  int64_t values_stride_b, values_stride_n, values_stride_s;
  const bool* mask;  // (M, S), contiguous, or null where every step is real
  int64_t mask_each;  // R / M, the rows that share a row of the mask
  Rows context;       // (R, H)
  double scale;
  int64_t rows, sources, heads, length, size;  // R, B, N, S, D
};

// h = sigma(o) . (k + c), of W_k k_t and W_c c_t of Eq. 8; without output gates only the sum.
struct StepGate {
  ConstRows k, c;  // (R, H)
  ConstRows o;     // the first row's output gates, the next row's `o_stride` on; or null
  ConstRows bias;  // the same of V h~, or null
  int64_t o_stride;
  Rows h;  // (R, H)
  int64_t rows, hidden;
};

// out = x + h, and normed = out / sqrt(mean(out^2) + eps) . weight.
struct StepSum {
  ConstRows x, h;    // (R, H)
  ConstRows weight;  // (H), or null without a norm
  Rows out, normed;  // (R, H)
  double eps;
  int64_t rows, hidden;
};

// silu(gate) . inner of a feed-forward block.
struct StepInner {
  ConstRows gate_and_in;  // (R, 2 I)
  Rows out;               // (R, I)
  int64_t rows, inner;
};

QRNN_HOST_DEVICE constexpr int64_t bytes_of(Number number) {
  return number == Number::float64 ? 8 : number == Number::float32 ? 4 : 2;
}

// `rows` from its number `at` on.
QRNN_HOST_DEVICE ConstRows behind(const ConstRows& rows, int64_t at) {
  return {static_cast<const char*>(rows.data) + at * bytes_of(rows.number), rows.number};
}

}  // namespace hf_qrnn
