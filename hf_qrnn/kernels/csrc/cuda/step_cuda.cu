// The operation of a decoder's step on CUDA tensors; its schema is step_ops.cpp's.
//
// All is on the current stream, and nothing on the device is read: a CUDA graph can capture it.
#include <torch/csrc/stable/library.h>

#include "device_tensors.cuh"  // first: it brings CUDA's language to builds for the CPU

#include "../step_stack.h"
#include "pool_run.cuh"
#include "step_launch.cuh"

namespace {

using namespace hf_qrnn;

struct Gpu {
  static constexpr const char* kName = "a CUDA device";
  struct Guard {
    explicit Guard(const Tensor& like) : guard(like.get_device_index()) {}
    gpu::DeviceGuard guard;
  };

  static bool is_ours(const Tensor& tensor) { return gpu::is_ours(tensor); }

  template <typename In>
  static void run(const In& in, const Tensor& like) {
    const auto stream = gpu::current_stream(like.get_device_index());
    if (like.scalar_type() == ScalarType::Double) return gpu::launch_step<double>(in, stream);
    gpu::launch_step<float>(in, stream);
  }

  template <typename Body>
  static void with_types(ScalarType type, const Body& body) {
    gpu::with_type(type, [&](auto number) { body(number, gpu::State<decltype(number)>{}); });
  }

  template <typename T, typename S>
  static void pool(Pooling pooling, const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out,
                   const Tensor& like) {
    gpu::run_pool_forward<T>(pooling, in, out, gpu::current_stream(like.get_device_index()));
  }
};

std::vector<Tensor> step_on_gpu(const Tensor& x, std::vector<Tensor> weights,
                                std::vector<Tensor> states, std::vector<Tensor> memory,
                                OptionalTensor mask, std::vector<int64_t> layout,
                                std::vector<double> numbers, bool onednn) {
  std::vector<Tensor> results =
      decoder_step<Gpu>(x, std::move(weights), std::move(states), std::move(memory),
                        std::move(mask), std::move(layout), std::move(numbers), onednn);
  gpu::check_launch("decoder_step");
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(QRNN_NAMESPACE, QRNN_DISPATCH_KEY, m) {
  m.impl("decoder_step", TORCH_BOX(&step_on_gpu));
}
