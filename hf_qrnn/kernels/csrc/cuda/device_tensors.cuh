// Torch's tensors and the device they are on, for the operations of both builds.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "language.cuh"

// A build for the CPU runs these very wrappers on CPU tensors, under a name of its own.
#if defined(QRNN_EMULATE_CUDA)
#define QRNN_NAMESPACE hf_qrnn_emulated
#define QRNN_DISPATCH_KEY CPU
#else
#define QRNN_NAMESPACE hf_qrnn_kernels
#define QRNN_DISPATCH_KEY CUDA
// The one symbol of libtorch_cuda in this library: weak, so that a CPU-only torch can load it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** stream);
#endif

namespace hf_qrnn::gpu {

// ------------------------------------------------------------------ the device

#if defined(QRNN_EMULATE_CUDA)

inline bool is_ours(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

using Stream = void*;

inline Stream current_stream(int32_t) { return nullptr; }

inline void check_launch(const char*) {}

#else

inline bool is_ours(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

using torch::stable::accelerator::DeviceGuard;

using Stream = cudaStream_t;

inline Stream current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "the CUDA kernels need a torch that is built with CUDA, but this one is not.");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<Stream>(stream);
}

// cudart is linked statically and keeps its own last error, so it is asked right behind the launch.
inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, " could not be launched: ", cudaGetErrorString(error),
                  ".");
}

#endif

// ------------------------------------------------------------------ shapes

inline std::string text_of(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "(";
  for (size_t k = 0; k < sizes.size(); ++k) text += (k > 0 ? ", " : "") + std::to_string(sizes[k]);
  return text + ")";
}

inline std::string text_of(const std::vector<int64_t>& sizes) {
  return text_of(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
}

inline void check_shape(const char* name, const torch::stable::Tensor& tensor,
                        const std::vector<int64_t>& shape) {
  const auto found = tensor.sizes();
  const bool fits = std::vector<int64_t>(found.begin(), found.end()) == shape;
  STD_TORCH_CHECK(fits, "`", name, "` must have shape ", text_of(shape), ", but has ",
                  text_of(found), ".");
}

inline torch::stable::Tensor empty(const torch::stable::Tensor& like,
                                   const std::vector<int64_t>& shape,
                                   torch::headeronly::ScalarType type) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, type);
}

// ------------------------------------------------------------------ dtypes

// Calls `use(number)` with a value of the kernels' type for `type`.
template <typename Use>
void with_type(torch::headeronly::ScalarType type, Use&& use) {
  using torch::headeronly::ScalarType;
  if (type == ScalarType::Double) return use(double());
  if (type == ScalarType::Float) return use(float());
  if (type == ScalarType::BFloat16) return use(__nv_bfloat16());
  return use(__half());
}

}  // namespace hf_qrnn::gpu
