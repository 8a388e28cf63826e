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

// Channels whose state is kept at once. Backward also keeps states and gates of a tile, which
// should stay in the second-level cache.
constexpr int64_t kForwardBlock = 1024, kBackwardBlock = 512;

// What backward needs beside its arguments: rows of a block of channels for a tile's states (one
// more than its steps) and for its z, f and write, for the gradient of the state, and for the sums
// over time of at most four gates' gradients. A thread's stack may be smaller: musl gives 128 KiB.
constexpr int64_t kScratchRows = (4 * kTile + 1) + 1 + 4;
constexpr int64_t kScratch = kScratchRows * kBackwardBlock;

// Pool row `b`, channels [first, last). `scratch` has room for kScratch numbers, in whole cache
// lines.
template <typename T, typename S>
using ForwardFunction = void (*)(Pooling, const PoolInputs<T, S>&, const ForwardOutputs<T, S>&,
                                 int64_t b, int64_t first, int64_t last);
template <typename T, typename S>
using BackwardFunction = void (*)(Pooling, const PoolInputs<T, S>&,
                                  const BackwardArguments<T, S>&, int64_t b, int64_t first,
                                  int64_t last, S* scratch);

#define QRNN_DECLARE_CPU_KERNELS(isa)                                                            \
  namespace isa {                                                                                \
  template <typename T, typename S>                                                              \
  void forward(Pooling pooling, const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out,     \
               int64_t b, int64_t first, int64_t last);                                          \
  template <typename T, typename S>                                                              \
  void backward(Pooling pooling, const PoolInputs<T, S>& in, const BackwardArguments<T, S>& out, \
                int64_t b, int64_t first, int64_t last, S* scratch);                             \
  }

QRNN_DECLARE_CPU_KERNELS(baseline)
QRNN_DECLARE_CPU_KERNELS(avx2)
QRNN_DECLARE_CPU_KERNELS(avx512)

}  // namespace hf_qrnn
