// The CPU kernels of a decoder's step: the same functions, compiled for several instruction sets.
#pragma once

#include "connect_cpu.h"
#include "step_args.h"

namespace hf_qrnn {

// Each does rows [first, last), and of attention (row, head) pairs. `scratch` has room for
// `work_of`'s numbers of type S, in whole cache lines.
#define QRNN_DECLARE_STEP_KERNELS(isa)                                                      \
  namespace isa {                                                                           \
  template <typename S>                                                                     \
  void step_window(const StepWindow& in, int64_t first, int64_t last, S* scratch);          \
  template <typename S>                                                                     \
  void step_attend(const StepAttention& in, int64_t first, int64_t last, S* scratch);       \
  template <typename S>                                                                     \
  void step_gate(const StepGate& in, int64_t first, int64_t last, S* scratch);              \
  template <typename S>                                                                     \
  void step_sum(const StepSum& in, int64_t first, int64_t last, S* scratch);                \
  template <typename S>                                                                     \
  void step_inner(const StepInner& in, int64_t first, int64_t last, S* scratch);            \
  }

QRNN_DECLARE_STEP_KERNELS(baseline)
QRNN_DECLARE_STEP_KERNELS(avx2)
QRNN_DECLARE_STEP_KERNELS(avx512)

// What a kernel does: rows (of attention a row's heads), numbers of scratch memory, and numbers that
// a row costs.
struct StepWork {
  int64_t tasks, scratch, cost;
};

inline StepWork work_of(const StepWindow& in) {
  return {in.rows, 3 * padded_channels(in.width), in.steps * in.width};
}
inline StepWork work_of(const StepAttention& in) {
  return {in.rows * in.heads, 3 * padded_channels(in.size) + padded_channels(in.length),
          2 * in.length * in.size};
}
inline StepWork work_of(const StepGate& in) {
  return {in.rows, 3 * padded_channels(in.hidden), 8 * in.hidden};
}
inline StepWork work_of(const StepSum& in) {
  return {in.rows, 4 * padded_channels(in.hidden), 4 * in.hidden};
}
inline StepWork work_of(const StepInner& in) {
  return {in.rows, 2 * padded_channels(in.inner), 8 * in.inner};
}

}  // namespace hf_qrnn
