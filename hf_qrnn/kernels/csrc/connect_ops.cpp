// The operations of the connection around a layer on the CPU: residual, dropout and RMSNorm.
//
// Autograd and the choice of a backend are Python's (connect_qrnn.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "connect_cpu.h"
#include "connect_tensors.h"

namespace hf_qrnn {
namespace {

// `tensor` contiguous; it must be on the CPU and have these sizes.
OptionalTensor checked(const OptionalTensor& tensor, const char* name,
                       std::initializer_list<int64_t> shape, bool is_double) {
  if (!tensor) return std::nullopt;
  check(*tensor, name, tensor->scalar_type(), shape);
  STD_TORCH_CHECK((tensor->scalar_type() == ScalarType::Double) == is_double, "`", name,
                  "` must be float64 where the others are, and only there.");
  return torch::stable::contiguous(*tensor);
}

Dropout dropout_of(const OptionalTensor& seed, double probability) {
  if (seed) check(*seed, "seed", ScalarType::Long, {});
  return make_dropout(seed, probability);
}

// Calls body(part, scratch) for every part of the rows, on torch's threads.
template <typename S, typename Body>
void for_each_part(int64_t rows, int64_t hidden, const Body& body) {
  const int64_t parts = (rows + kPartRows - 1) / kPartRows;
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const Scratch<S> scratch(kConnectScratchRows * padded_channels(hidden));
    for (int64_t part = begin; part < end; ++part) body(part, scratch.data);
  });
}

template <typename S>
using Forward = void (*)(const ConnectInputs<S>&, const ConnectOutputs<S>&, int64_t, S*);
template <typename S>
using Backward = void (*)(const ConnectBackward<S>&, int64_t, S*);

template <typename S>
Forward<S> forward_function() {
#if defined(__x86_64__)
  if (current_isa() == Isa::avx512) return &avx512::connect_forward<S>;
  if (current_isa() == Isa::avx2) return &avx2::connect_forward<S>;
#endif
  return &baseline::connect_forward<S>;
}

template <typename S>
Backward<S> backward_function() {
#if defined(__x86_64__)
  if (current_isa() == Isa::avx512) return &avx512::connect_backward<S>;
  if (current_isa() == Isa::avx2) return &avx2::connect_backward<S>;
#endif
  return &baseline::connect_backward<S>;
}

template <typename S>
void run_forward(const Tensor& h, const OptionalTensor& residual, const OptionalTensor& weight,
                 const Dropout& dropout, double eps, Tensor& out, bool has_out, Tensor& normed,
                 Tensor& inverse) {
  ConnectInputs<S> in = {rows_of(h), rows_of(residual), rows_of(weight), dropout, eps,
                         h.size(0),  h.size(1),         h.size(2)};
  ConnectOutputs<S> to = {};
  if (has_out) to.out = writable(out);
  if (weight) {
    to.normed = writable(normed);
    to.inverse = static_cast<S*>(inverse.mutable_data_ptr());
  }
  const auto run = forward_function<S>();
  for_each_part<S>(in.batch * in.length, in.hidden,
                   [&](int64_t part, S* scratch) { run(in, to, part, scratch); });
}

std::tuple<Tensor, Tensor, Tensor> connect_forward(const Tensor& h_, const OptionalTensor& residual_,
                                                   const OptionalTensor& weight_,
                                                   const OptionalTensor& seed, double probability,
                                                   double eps, std::string normed_dtype) {
  STD_TORCH_CHECK(h_.is_cpu() && h_.dim() == 3, "`h` must be (batch, time, hidden) on the CPU.");
  const int64_t batch = h_.size(0), length = h_.size(1), hidden = h_.size(2);
  const bool is_double = h_.scalar_type() == ScalarType::Double;
  const ScalarType state = is_double ? ScalarType::Double : ScalarType::Float;
  const Tensor h = torch::stable::contiguous(h_);
  const auto residual = checked(residual_, "residual", {batch, length, hidden}, is_double);
  const auto weight = checked(weight_, "weight", {hidden}, is_double);
  const Dropout dropout = dropout_of(seed, probability);
  const bool has_out = residual || seed;
  const ScalarType type = residual ? residual->scalar_type() : h.scalar_type();
  const auto none = {int64_t{0}};
  Tensor out = has_out ? empty_like(h, {batch, length, hidden}, type) : empty_like(h, none, type);
  Tensor normed = weight ? empty_like(h, {batch, length, hidden},
                                      result_type(normed_dtype, is_double))
                         : empty_like(h, none, type);
  Tensor inverse = weight ? empty_like(h, {batch, length}, state) : empty_like(h, none, state);
  if (is_double) {
    run_forward<double>(h, residual, weight, dropout, eps, out, has_out, normed, inverse);
  } else {
    run_forward<float>(h, residual, weight, dropout, eps, out, has_out, normed, inverse);
  }
  return {out, normed, inverse};
}

template <typename S>
void sum_parts(const Tensor& parts, Tensor& total) {
  const int64_t number = parts.size(0), hidden = parts.size(1);
  const S* from = static_cast<const S*>(parts.const_data_ptr());
  S* to = static_cast<S*>(total.mutable_data_ptr());
  std::fill(to, to + hidden, S(0));
  for (int64_t part = 0; part < number; ++part) {
    for (int64_t k = 0; k < hidden; ++k) to[k] += from[part * hidden + k];
  }
}

template <typename S>
void run_backward(ConnectBackward<S> in, const OptionalTensor& inverse, Tensor& parts,
                  Tensor& grad_weight) {
  in.inverse = pointer<S>(inverse);
  if (inverse) in.grad_weight = static_cast<S*>(parts.mutable_data_ptr());
  const auto run = backward_function<S>();
  for_each_part<S>(in.batch * in.length, in.hidden,
                   [&](int64_t part, S* scratch) { run(in, part, scratch); });
  // Not by a pointer: of no rows there is none, but a sum.
  if (inverse) sum_parts<S>(parts, grad_weight);
}

// `grad_h` and `grad_residual` are empty where they are not wanted: `h_dtype` or
// `residual_dtype` is "".
std::tuple<Tensor, Tensor, Tensor> connect_backward(
    const OptionalTensor& grad_out_, const OptionalTensor& grad_normed_, const OptionalTensor& out_,
    const OptionalTensor& weight_, const OptionalTensor& inverse_, const OptionalTensor& seed,
    double probability, std::string h_dtype, std::string residual_dtype) {
  STD_TORCH_CHECK(grad_out_ || grad_normed_, "a gradient must be given.");
  const Tensor& like = grad_normed_ ? *grad_normed_ : *grad_out_;
  STD_TORCH_CHECK(like.is_cpu() && like.dim() == 3,
                  "gradients must be (batch, time, hidden) on the CPU.");
  const int64_t batch = like.size(0), length = like.size(1), hidden = like.size(2);
  const bool is_double = like.scalar_type() == ScalarType::Double;
  const ScalarType state = is_double ? ScalarType::Double : ScalarType::Float;
  const auto grad_out = checked(grad_out_, "grad_out", {batch, length, hidden}, is_double);
  const auto grad_normed = checked(grad_normed_, "grad_normed", {batch, length, hidden}, is_double);
  OptionalTensor out, weight, inverse;
  if (grad_normed) {
    STD_TORCH_CHECK(out_ && weight_ && inverse_, "`out`, `weight` and `inverse` must be given.");
    out = checked(out_, "out", {batch, length, hidden}, is_double);
    weight = checked(weight_, "weight", {hidden}, is_double);
    check(*inverse_, "inverse", state, {batch, length});
    inverse = torch::stable::contiguous(*inverse_);
  }
  const auto none = {int64_t{0}};
  const auto grad_named = [&](const std::string& name) {
    return name.empty() ? empty_like(like, none, state)
                        : empty_like(like, {batch, length, hidden}, result_type(name, is_double));
  };
  Tensor grad_h = grad_named(h_dtype), grad_residual = grad_named(residual_dtype);
  const int64_t number = (batch * length + kPartRows - 1) / kPartRows;
  Tensor parts = grad_normed ? empty_like(like, {number, hidden}, state)
                             : empty_like(like, none, state);
  Tensor grad_weight = grad_normed ? empty_like(like, {hidden}, state)
                                   : empty_like(like, none, state);
  const auto run = [&](auto s) {
    using S = decltype(s);
    ConnectBackward<S> in = {};
    in.grad_out = rows_of(grad_out);
    in.grad_normed = rows_of(grad_normed);
    in.out = rows_of(out);
    in.weight = rows_of(weight);
    in.dropout = dropout_of(seed, probability);
    if (!h_dtype.empty()) in.grad_h = writable(grad_h);
    if (!residual_dtype.empty()) in.grad_residual = writable(grad_residual);
    in.batch = batch;
    in.length = length;
    in.hidden = hidden;
    run_backward<S>(in, inverse, parts, grad_weight);
  };
  if (is_double) {
    run(double{});
  } else {
    run(float{});
  }
  return {grad_h, grad_residual, grad_weight};
}

}  // namespace
}  // namespace hf_qrnn

STABLE_TORCH_LIBRARY_FRAGMENT(hf_qrnn_kernels, m) {
  m.def(
      "connect_forward(Tensor h, Tensor? residual, Tensor? weight, Tensor? seed, float dropout,"
      " float eps, str normed_dtype) -> (Tensor, Tensor, Tensor)");
  m.def(
      "connect_backward(Tensor? grad_out, Tensor? grad_normed, Tensor? out, Tensor? weight,"
      " Tensor? inverse, Tensor? seed, float dropout, str h_dtype, str residual_dtype)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(hf_qrnn_kernels, CPU, m) {
  m.impl("connect_forward", TORCH_BOX(&hf_qrnn::connect_forward));
  m.impl("connect_backward", TORCH_BOX(&hf_qrnn::connect_backward));
}
