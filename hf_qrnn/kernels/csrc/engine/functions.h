// The engine's functions that are compiled for several instruction sets. No code here: a copy of it
// that was compiled for a newer CPU must not be linked into another's unit.
#pragma once

#include <cstdint>

namespace hf_qrnn {
namespace engine {

// Of int8 weights: so many neighbours in the inner dimension lie together, and that dimension is at
// most so long, or the sums would not fit into 32 bits.
constexpr int kGroup = 4;
constexpr int64_t kMostInt8Inner = 1 << 15;

// A matrix (inner, outer) as products read it: panels of some outer columns, in each panel one row
// of the inner dimension behind the other. Of int8 weights a row is `kGroup` of them, column by
// column.
struct Panels {
  int64_t inner, outer;
  const void* data;
  bool halves;           // bfloat16, else float32
  const float* scales;   // of int8 columns, else null: whole panels of them
  const int32_t* shifts; // of int8 columns: -128 times the sum of the weights
};

// The functions that are compiled for several instruction sets.
struct Kernels {
  // Columns of a panel.
  int64_t panel;
  // y = x W + bias, of `rows` rows that lie `x_stride` and `y_stride` apart. With `adds`, y is added
  // to instead, and there is no bias. `bias` may be null.
  void (*product)(const float* x, int64_t x_stride, int64_t rows, const Panels& w,
                  const float* bias, float* y, int64_t y_stride, bool adds);
  // Activate gates (G*H) + bias (G*H) and go on from c (H): c = f c + write, h = o c. Where `o` is
  // not null it gets the output gate, and h is not written. `bias` may be null.
  void (*pool)(int pooling, const float* gates, const float* bias, int64_t hidden, float* c,
               float* h, float* o);
  // y = x / sqrt(mean(x^2) + eps) weight.
  void (*normalize)(const float* x, const float* weight, int64_t size, float* y);
  // y = silu(x) y.
  void (*gate_inner)(const float* x, int64_t size, float* y);
  // y = x y.
  void (*multiply)(const float* x, int64_t size, float* y);
  // The softmax of scale x, in place.
  void (*softmax)(float* x, int64_t size, float scale);
  // The logarithm of the sum of the exponentials; NaN if there is one.
  float (*log_sum)(const float* x, int64_t size);
};

namespace baseline {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace vnni {
extern const Kernels kKernels;
}

// Number of instruction sets that this CPU runs: 1 is the baseline, 2 AVX2, 3 AVX-512,
// 4 AVX-512 with VNNI.
int64_t num_instruction_sets();

}  // namespace engine
}  // namespace hf_qrnn
