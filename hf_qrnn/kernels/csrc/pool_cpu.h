// The CPU kernels' interface: the same functions, compiled for several instruction sets.
#pragma once

#include "pool_args.h"

namespace hf_qrnn {

// Two-byte floating point as memory holds it. Not torch's types: a header with code in it must not
// enter a translation unit for a newer CPU, or the linker may keep that unit's copy for all.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Pool row `b`, channels [first, last).
template <typename T, typename S>
using ForwardFunction = void (*)(Pooling, const PoolInputs<T, S>&, const ForwardOutputs<T, S>&,
                                 int64_t b, int64_t first, int64_t last);
template <typename T, typename S>
using BackwardFunction = void (*)(Pooling, const PoolInputs<T, S>&,
                                  const BackwardArguments<T, S>&, int64_t b, int64_t first,
                                  int64_t last);

#define QRNN_DECLARE_CPU_KERNELS(isa)                                                            \
  namespace isa {                                                                                \
  template <typename T, typename S>                                                              \
  void forward(Pooling pooling, const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out,     \
               int64_t b, int64_t first, int64_t last);                                          \
  template <typename T, typename S>                                                              \
  void backward(Pooling pooling, const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, \
                int64_t b, int64_t first, int64_t last);                                         \
  }

QRNN_DECLARE_CPU_KERNELS(baseline)
QRNN_DECLARE_CPU_KERNELS(avx2)
QRNN_DECLARE_CPU_KERNELS(avx512)

}  // namespace hf_qrnn
