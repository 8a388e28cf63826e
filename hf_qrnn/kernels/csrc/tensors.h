// Torch's tensors at the door of the kernels: their checks, and memory of one thread.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <new>
#include <optional>

#include "pool_cpu.h"

namespace hf_qrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

enum class Isa { baseline, avx2, avx512 };

// The instruction set in use (ops.cpp).
Isa current_isa();

inline void check(const Tensor& tensor, const char* name, ScalarType type,
           std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(tensor.is_cpu(), "`", name, "` must be on the CPU, but is not.");
  STD_TORCH_CHECK(tensor.scalar_type() == type, "`", name, "` has the wrong dtype.");
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; same && i < tensor.dim(); ++i) same = tensor.size(i) == shape.begin()[i];
  STD_TORCH_CHECK(same, "`", name, "` has the wrong shape.");
}

// Memory of one thread for a while, in whole cache lines; none for no numbers.
template <typename S>
struct Scratch {
  static constexpr std::align_val_t kLine{64};
  S* data = nullptr;

  explicit Scratch(int64_t count) {
    if (count > 0) data = static_cast<S*>(::operator new(count * sizeof(S), kLine));
  }
  ~Scratch() { ::operator delete(data, kLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

template <typename P>
const P* pointer(const OptionalTensor& tensor) {
  return tensor ? static_cast<const P*>(tensor->const_data_ptr()) : nullptr;
}

inline Tensor empty_like(const Tensor& tensor, std::initializer_list<int64_t> shape,
                         ScalarType type) {
  return torch::stable::new_empty(
      tensor, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

}  // namespace hf_qrnn
