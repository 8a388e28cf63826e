// The operations of the connection around a layer on CUDA tensors; schemas are connect_ops.cpp's.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "connect_launch.cuh"  // first: it brings CUDA's language to builds for the CPU

#include "../connect_tensors.h"
#include "device_tensors.cuh"

namespace {

using namespace hf_qrnn;
using namespace hf_qrnn::gpu;
using Shape = std::vector<int64_t>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

// What the first tensor says about the others.
struct Like {
  const Tensor& tensor;
  Shape whole;
  bool is_double;
  ScalarType state;
  int32_t device;
};

Like like(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(is_ours(tensor), "`", name, "` must be on a CUDA device, but is not.");
  STD_TORCH_CHECK(tensor.dim() == 3, "`", name, "` must be (batch, time, hidden), but is ",
                  text_of(tensor.sizes()), ".");
  const bool is_double = tensor.scalar_type() == ScalarType::Double;
  return {tensor,
          {tensor.size(0), tensor.size(1), tensor.size(2)},
          is_double,
          is_double ? ScalarType::Double : ScalarType::Float,
          tensor.get_device_index()};
}

void check_device(const char* name, const Tensor& tensor, const Like& as) {
  STD_TORCH_CHECK(is_ours(tensor) && tensor.get_device_index() == as.device, "`", name,
                  "` must be on the device of the others, but is not.");
}

// `tensor` contiguous, after its checks.
OptionalTensor checked(const char* name, const OptionalTensor& tensor, const Shape& shape,
                       const Like& as) {
  if (!tensor) return std::nullopt;
  check_shape(name, *tensor, shape);
  check_device(name, *tensor, as);
  const bool is_double = number_of(*tensor) == Number::float64;
  STD_TORCH_CHECK(is_double == as.is_double, "`", name,
                  "` must be float64 where the others are, and only there.");
  return torch::stable::contiguous(*tensor);
}

Dropout dropout_of(const OptionalTensor& seed, double probability, const Like& as) {
  if (seed) {
    check_shape("seed", *seed, {});
    check_device("seed", *seed, as);
    STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long,
                    "`seed` must be int64, but is not.");
  }
  return make_dropout(seed, probability);
}

template <typename S>
void run_forward(const OptionalTensor& h, const OptionalTensor& residual,
                 const OptionalTensor& weight, const Dropout& dropout, double eps, const Like& as,
                 Tensor& out, Tensor& normed, Tensor& inverse) {
  const ConnectInputs<S> in = {rows_of(h), rows_of(residual), rows_of(weight), dropout, eps,
                               as.whole[0], as.whole[1],      as.whole[2]};
  ConnectOutputs<S> to = {};
  if (residual || dropout.seed != nullptr) to.out = writable(out);
  if (weight) {
    to.normed = writable(normed);
    to.inverse = static_cast<S*>(inverse.mutable_data_ptr());
  }
  launch_connect_forward<S>(in, to, current_stream(as.device));
}

Three connect_forward(const Tensor& h_, const OptionalTensor& residual_,
                      const OptionalTensor& weight_, const OptionalTensor& seed, double probability,
                      double eps, std::string normed_dtype) {
  const Like as = like(h_, "h");
  const DeviceGuard guard(as.device);
  const OptionalTensor h = checked("h", h_, as.whole, as);
  const OptionalTensor residual = checked("residual", residual_, as.whole, as);
  const OptionalTensor weight = checked("weight", weight_, {as.whole[2]}, as);
  const Dropout dropout = dropout_of(seed, probability, as);
  const ScalarType type = residual ? residual->scalar_type() : h_.scalar_type();
  const Shape none = {0};
  Tensor out = empty(h_, residual || seed ? as.whole : none, type);
  Tensor normed = weight ? empty(h_, as.whole, result_type(normed_dtype, as.is_double))
                         : empty(h_, none, type);
  Tensor inverse = empty(h_, weight ? Shape{as.whole[0], as.whole[1]} : none, as.state);
  if (as.is_double) {
    run_forward<double>(h, residual, weight, dropout, eps, as, out, normed, inverse);
  } else {
    run_forward<float>(h, residual, weight, dropout, eps, as, out, normed, inverse);
  }
  check_launch("connect_forward");
  return {out, normed, inverse};
}

// Everything the backward pass reads and writes, as tensors.
struct Gradients {
  OptionalTensor grad_out, grad_normed, out, weight, inverse;
  OptionalTensor grad_h, grad_residual;
};

template <typename S>
Tensor run_backward(Gradients& tensors, const Dropout& dropout, const Like& as) {
  const int64_t hidden = as.whole[2];
  const bool norms = tensors.grad_normed.has_value();
  const int64_t number = norms ? parts_of<S>(as.whole[0] * as.whole[1], hidden) : 0;
  Tensor parts = empty(as.tensor, {number, hidden}, as.state);
  Tensor grad_weight = empty(as.tensor, norms ? Shape{hidden} : Shape{0}, as.state);
  ConnectBackward<S> in = {};
  in.grad_out = rows_of(tensors.grad_out);
  in.grad_normed = rows_of(tensors.grad_normed);
  in.out = rows_of(tensors.out);
  in.weight = rows_of(tensors.weight);
  in.inverse = pointer<S>(tensors.inverse);
  in.dropout = dropout;
  if (tensors.grad_h) in.grad_h = writable(*tensors.grad_h);
  if (tensors.grad_residual) in.grad_residual = writable(*tensors.grad_residual);
  if (norms) in.grad_weight = static_cast<S*>(parts.mutable_data_ptr());
  in.batch = as.whole[0];
  in.length = as.whole[1];
  in.hidden = hidden;
  launch_connect_backward<S>(in, norms ? static_cast<S*>(grad_weight.mutable_data_ptr()) : nullptr,
                             current_stream(as.device));
  return grad_weight;
}

// `grad_h` and `grad_residual` are empty where they are not wanted: `h_dtype` or
// `residual_dtype` is "".
Three connect_backward(const OptionalTensor& grad_out, const OptionalTensor& grad_normed,
                       const OptionalTensor& out, const OptionalTensor& weight,
                       const OptionalTensor& inverse, const OptionalTensor& seed,
                       double probability, std::string h_dtype, std::string residual_dtype) {
  STD_TORCH_CHECK(grad_out || grad_normed, "a gradient must be given.");
  const Like as = grad_normed ? like(*grad_normed, "grad_normed") : like(*grad_out, "grad_out");
  const DeviceGuard guard(as.device);
  Gradients tensors;
  tensors.grad_out = checked("grad_out", grad_out, as.whole, as);
  if (grad_normed) {
    STD_TORCH_CHECK(out && weight && inverse, "`out`, `weight` and `inverse` must be given.");
    STD_TORCH_CHECK(inverse->scalar_type() == as.state,
                    "`inverse` must be as the forward pass gave it, but has another dtype.");
    tensors.grad_normed = checked("grad_normed", grad_normed, as.whole, as);
    tensors.out = checked("out", out, as.whole, as);
    tensors.weight = checked("weight", weight, {as.whole[2]}, as);
    tensors.inverse = checked("inverse", inverse, {as.whole[0], as.whole[1]}, as);
  }
  if (!h_dtype.empty()) {
    tensors.grad_h = empty(as.tensor, as.whole, result_type(h_dtype, as.is_double));
  }
  if (!residual_dtype.empty()) {
    tensors.grad_residual = empty(as.tensor, as.whole, result_type(residual_dtype, as.is_double));
  }
  const Dropout dropout = dropout_of(seed, probability, as);
  const Tensor grad_weight = as.is_double ? run_backward<double>(tensors, dropout, as)
                                          : run_backward<float>(tensors, dropout, as);
  check_launch("connect_backward");
  const auto or_none = [&](const OptionalTensor& tensor) {
    return tensor ? *tensor : empty(as.tensor, {0}, as.state);
  };
  return {or_none(tensors.grad_h), or_none(tensors.grad_residual), grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(QRNN_NAMESPACE, QRNN_DISPATCH_KEY, m) {
  m.impl("connect_forward", TORCH_BOX(&connect_forward));
  m.impl("connect_backward", TORCH_BOX(&connect_backward));
}
