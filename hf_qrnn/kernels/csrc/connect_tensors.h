// Torch's tensors as arguments of the connection's kernels: what CPU and CUDA share.
#pragma once

#include <cmath>
#include <string>

#include "connect_args.h"
#include "tensors.h"

namespace hf_qrnn {

inline Number number_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Number::float64;
    case ScalarType::Float:
      return Number::float32;
    case ScalarType::Half:
      return Number::float16;
    case ScalarType::BFloat16:
      return Number::bfloat16;
    default:
      STD_TORCH_CHECK(false, "numbers must be float64, float32, float16 or bfloat16.");
  }
}

inline ConstRows rows_of(const OptionalTensor& tensor) {
  if (!tensor) return {};
  return {tensor->const_data_ptr(), number_of(*tensor)};
}

inline Rows writable(Tensor& tensor) { return {tensor.mutable_data_ptr(), number_of(tensor)}; }

inline Dropout make_dropout(const OptionalTensor& seed, double probability) {
  STD_TORCH_CHECK(probability >= 0 && probability <= 1, "`dropout` must be in [0, 1], but is ",
                  probability, ".");
  Dropout dropout = {};
  if (!seed) return dropout;
  dropout.seed = static_cast<const int64_t*>(seed->const_data_ptr());
  // Ties to even, as Python's round.
  dropout.threshold = static_cast<uint32_t>(std::nearbyint(probability * (1 << 16)));
  const uint32_t kept = (1 << 16) - dropout.threshold;
  dropout.scale = kept ? static_cast<double>(1 << 16) / kept : 0;
  return dropout;
}

// The dtype of a result by the name that Python's side gives it; kernels of float64 write nothing
// else, and others no float64.
inline ScalarType result_type(const std::string& name, bool is_double) {
  ScalarType type = ScalarType::BFloat16;
  if (name == "float64") {
    type = ScalarType::Double;
  } else if (name == "float32") {
    type = ScalarType::Float;
  } else if (name == "float16") {
    type = ScalarType::Half;
  } else {
    STD_TORCH_CHECK(name == "bfloat16", "a result must have a floating dtype, but is asked for in ",
                    name, ".");
  }
  STD_TORCH_CHECK((type == ScalarType::Double) == is_double,
                  "results must be float64 where the tensors are, and only there.");
  return type;
}

}  // namespace hf_qrnn
