// The operation of a decoder's step on the CPU.
//
// Whether it may be taken is Python's question (model/step_qrnn.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "pool_run.h"
#include "step_cpu.h"
#include "step_stack.h"

namespace hf_qrnn {
namespace {

// The kernel `name` of the instruction set in use, for numbers of type S.
#if defined(__x86_64__)
#define QRNN_CHOOSE(name, S)                                     \
  (current_isa() == Isa::avx512  ? &avx512::name<S>              \
   : current_isa() == Isa::avx2 ? &avx2::name<S> : &baseline::name<S>)
#else
#define QRNN_CHOOSE(name, S) (&baseline::name<S>)
#endif

#define QRNN_CHOOSER(name, In)          \
  template <typename S>                 \
  auto kernel_of(const In&) {           \
    return QRNN_CHOOSE(name, S);        \
  }
QRNN_CHOOSER(step_window, StepWindow)
QRNN_CHOOSER(step_attend, StepAttention)
QRNN_CHOOSER(step_gate, StepGate)
QRNN_CHOOSER(step_sum, StepSum)
QRNN_CHOOSER(step_inner, StepInner)

struct Cpu {
  static constexpr const char* kName = "the CPU";
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static bool is_ours(const Tensor& tensor) { return tensor.is_cpu(); }

  template <typename In>
  static void run(const In& in, const Tensor& like) {
    if (like.scalar_type() == ScalarType::Double) return run_as<double>(in);
    run_as<float>(in);
  }

  template <typename S, typename In>
  static void run_as(const In& in) {
    constexpr int64_t kWorthAThread = 32768;
    const StepWork work = work_of(in);
    const auto kernel = kernel_of<S>(in);
    const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work.cost));
    torch::stable::parallel_for(0, work.tasks, grain, [&](int64_t first, int64_t last) {
      const Scratch<S> scratch(work.scratch);
      kernel(in, first, last, scratch.data);
    });
  }

  template <typename Body>
  static void with_types(ScalarType type, const Body& body) {
    with_pool_types(type, body);
  }

  template <typename T, typename S>
  static void pool(Pooling pooling, const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out,
                   const Tensor&) {
    run_pool_forward(pooling, in, out);
  }
};

}  // namespace
}  // namespace hf_qrnn

STABLE_TORCH_LIBRARY_FRAGMENT(hf_qrnn_kernels, m) {
  m.def(
      "decoder_step(Tensor x, Tensor[] weights, Tensor[] states, Tensor[] memory, Tensor? mask,"
      " int[] layout, float[] numbers, bool onednn) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(hf_qrnn_kernels, CPU, m) {
  m.impl("decoder_step", TORCH_BOX(&hf_qrnn::decoder_step<hf_qrnn::Cpu>));
}
