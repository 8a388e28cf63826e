// The CPU's connection kernels: the same functions, compiled for several instruction sets.
#pragma once

#include "connect_args.h"
#include "pool_cpu.h"

namespace hf_qrnn {

// A row in scratch memory is as long as whole vectors of the widest instruction set.
constexpr int64_t padded_channels(int64_t hidden) { return (hidden + 15) / 16 * 16; }
// Rows that forward and backward need beside their arguments.
constexpr int64_t kConnectScratchRows = 4;

#define QRNN_DECLARE_CONNECT_KERNELS(isa)                                                     \
  namespace isa {                                                                             \
  template <typename S>                                                                       \
  void connect_forward(const ConnectInputs<S>& in, const ConnectOutputs<S>& out, int64_t part, \
                       S* scratch);                                                           \
  template <typename S>                                                                       \
  void connect_backward(const ConnectBackward<S>& in, int64_t part, S* scratch);              \
  }

QRNN_DECLARE_CONNECT_KERNELS(baseline)
QRNN_DECLARE_CONNECT_KERNELS(avx2)
QRNN_DECLARE_CONNECT_KERNELS(avx512)

}  // namespace hf_qrnn
