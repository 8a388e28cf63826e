// One step of a decoder's stack, T = 1: what one token of each row costs (Eqs. 7 and 8 of arXiv
// 1611.01576, model/step_qrnn.py). Products are torch's; what is between them is `Device`'s.
//
// Shapes as in step_args.h, L layers.
#pragma once

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "connect_tensors.h"
#include "step_args.h"

namespace hf_qrnn {

// What a layer has, bits of a number of its layout.
enum StepPart : int64_t {
  kConvolutionBias = 1,
  kNorm = 2,
  kResidual = 4,
  kDense = 8,
  kGateBias = 16,      // V h~ of Eq. 7
  kAttendsInside = 32,  // Eq. 8
  kAttendsBehind = 64,  // a block of attention
  kFeedForward = 128,
};

// Numbers of a layer in `layout` (pooling, parts, heads) and in `numbers` (eps of the norm, scale
// of the scores, eps of the attention's norm and of the feed-forward's).
constexpr size_t kStepLayout = 3, kStepNumbers = 4;

// The library of products: torch's choice, or oneDNN where there is enough to multiply, which is
// faster on some processors (model/products_qrnn.py).
enum class Products { torch, onednn };
constexpr int64_t kLeastRows = 8, kLeastWork = int64_t{1} << 21;

inline Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     Products by) {
  using torch::stable::detail::from;
  const int64_t work = x.size(0) * x.size(1) * weight.size(0);
  if (by == Products::onednn && x.size(0) >= kLeastRows && work >= kLeastWork) {
    std::array<StableIValue, 6> stack = {from(x),
                                         from(weight),
                                         from(bias),
                                         from(std::string("none")),
                                         from(std::vector<std::optional<double>>()),
                                         from(std::optional<std::string>())};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("mkldnn::_linear_pointwise", "",
                                                        stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
  std::array<StableIValue, 3> stack = {from(x), from(weight), from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor concatenate(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack = {from(std::vector<Tensor>{a, b}), from(int64_t{1})};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::cat", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename Device>
class Step {
 public:
  Step(const Tensor& x, std::vector<Tensor> weights, std::vector<Tensor> states,
       std::vector<Tensor> memory, OptionalTensor mask, Products by)
      : like_(x), weights_(std::move(weights)), states_(std::move(states)),
        memory_(std::move(memory)), by_(by) {
    STD_TORCH_CHECK(x.dim() == 3 && x.size(1) == 1 && Device::is_ours(x),
                    "`x` must be (rows, 1, width) on ", Device::kName, ", but is not.");
    number_of(x);
    rows_ = x.size(0);
    state_ = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    if (!mask) return;
    STD_TORCH_CHECK(mask->dim() == 2 && mask->scalar_type() == ScalarType::Bool &&
                        Device::is_ours(*mask) && mask->size(0) > 0 && rows_ % mask->size(0) == 0,
                    "`mask` must be boolean, (rows or sources, steps), but is not.");
    mask_ = torch::stable::contiguous(*mask);
  }

  // The stack's output (R, 1, H), then of each layer its window (R, K, E) and its state c (R, H).
  std::vector<Tensor> run(const std::vector<int64_t>& layout, const std::vector<double>& numbers) {
    const size_t layers = layout.size() / kStepLayout;
    STD_TORCH_CHECK(layers > 0 && layout.size() == layers * kStepLayout &&
                        states_.size() == 2 * layers &&
                        (numbers.size() == layers * kStepNumbers ||
                         numbers.size() == layers * kStepNumbers + 1),
                    "`layout`, `numbers` and `states` must be of as many layers, but are not.");
    std::vector<Tensor> results = {like_};
    Tensor x = torch::stable::view(torch::stable::contiguous(like_), {{rows_, like_.size(2)}});
    for (size_t i = 0; i < layers; ++i) {
      x = layer(x, states_[2 * i], states_[2 * i + 1], &layout[i * kStepLayout],
                &numbers[i * kStepNumbers], results);
    }
    // The last number is the eps of a norm behind the stack.
    if (numbers.size() > layers * kStepNumbers) x = window(x, nullptr, &next("norm"), numbers.back());
    STD_TORCH_CHECK(weight_ == weights_.size() && remembered_ == memory_.size(),
                    "`weights` and `memory` must be as `layout` says, but there are more.");
    results[0] = torch::stable::view(x, {{rows_, 1, x.size(1)}});
    return results;
  }

 private:
  Tensor layer(const Tensor& x, const Tensor& inputs, const Tensor& c, const int64_t* layout,
               const double* numbers, std::vector<Tensor>& results) {
    STD_TORCH_CHECK(layout[0] >= 0 && layout[0] <= 2, "`pooling` must be 0, 1 or 2, but is ",
                    layout[0], ".");
    const auto pooling = static_cast<Pooling>(layout[0]);
    const int64_t parts = layout[1], heads = layout[2];
    const Tensor* norm = parts & kNorm ? &next("norm") : nullptr;
    const Tensor read = window(x, &inputs, norm, numbers[0]);
    const Tensor& weight = next("convolution");
    OptionalTensor bias;
    if (parts & kConvolutionBias) bias = next("convolution's bias");
    const Tensor gates = product(read, weight, bias);
    OptionalTensor gate_bias;
    if (parts & kGateBias) gate_bias = remembered();
    auto [h, state] = pool(pooling, gates, gate_bias, c);
    results.push_back(torch::stable::view(read, {{rows_, inputs.size(1) + 1, inputs.size(2)}}));
    results.push_back(state);
    if (parts & kAttendsInside) {
      const Tensor cell = torch::stable::to(state, x.scalar_type());
      const Tensor& of_context = next("context");
      const Tensor k = product(attend(cell, heads, numbers[1]), of_context, {});
      h = gate(pooling, k, product(cell, next("cell"), {}), gates, gate_bias);
    }
    // The norm of whatever reads the sum comes with it.
    const bool behind = parts & kAttendsBehind, feeds = parts & kFeedForward;
    const Tensor* reader = behind || feeds ? &next("norm of a block") : nullptr;
    auto [out, normed] = join(parts & kResidual ? &x : nullptr, h, reader, numbers[behind ? 2 : 3]);
    if (behind) {
      const Tensor context = attend(product(normed, next("query"), {}), heads, numbers[1]);
      const Tensor found = product(context, next("attention's out"), {});
      reader = feeds ? &next("feed-forward's norm") : nullptr;
      std::tie(out, normed) = join(&out, found, reader, numbers[3]);
    }
    if (feeds) {
      const Tensor inner = activate(product(normed, next("gate_and_in"), {}));
      out = join(&out, product(inner, next("feed-forward's out"), {}), nullptr, 0).first;
    }
    return parts & kDense ? concatenate(x, out) : out;
  }

  // ---------------------------------------------------------------- the next arguments

  // A weight; its shape is checked where it is used.
  const Tensor& next(const char* name) {
    STD_TORCH_CHECK(weight_ < weights_.size(), "`weights` must have a ", name, ", but ends.");
    Tensor& weight = weights_[weight_++];
    STD_TORCH_CHECK(weight.scalar_type() == like_.scalar_type() && is_here(weight), "the ", name,
                    " must have the dtype and the device of `x`, but has not.");
    if (!weight.is_contiguous()) weight = torch::stable::contiguous(weight);
    return weight;
  }

  // What is kept of the source.
  const Tensor& remembered() {
    STD_TORCH_CHECK(remembered_ < memory_.size(), "`memory` must be as `layout` says, but ends.");
    return memory_[remembered_++];
  }

  bool is_here(const Tensor& tensor) const {
    return Device::is_ours(tensor) && tensor.get_device_index() == like_.get_device_index();
  }

  void check(const Tensor& tensor, const char* name, ScalarType type,
             std::initializer_list<int64_t> shape) const {
    bool fits = tensor.dim() == static_cast<int64_t>(shape.size()) && is_here(tensor) &&
                tensor.scalar_type() == type;
    for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = tensor.size(i) == shape.begin()[i];
    STD_TORCH_CHECK(fits, "`", name, "` must have the shape, dtype and device that belong to `x`, "
                    "but has not.");
  }

  Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) const {
    return empty_like(like_, shape, type);
  }
  Tensor empty(std::initializer_list<int64_t> shape) const {
    return empty(shape, like_.scalar_type());
  }

  // ---------------------------------------------------------------- parts of a layer

  Tensor product(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) const {
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == x.size(1),
                    "a weight must have as many columns as its input, but has not.");
    if (bias) check(*bias, "bias", like_.scalar_type(), {weight.size(0)});
    return linear(x, weight, bias, by_);
  }

  // The window (R, K * E) of the inputs before and x (R, E), normed where there is a weight.
  Tensor window(const Tensor& x, const Tensor* inputs, const Tensor* weight, double eps) const {
    const int64_t width = x.size(1), before = inputs ? inputs->size(1) : 0;
    StepWindow in = {};
    in.x = rows_of(x);
    if (inputs) {
      check(*inputs, "inputs", like_.scalar_type(), {rows_, before, width});
      STD_TORCH_CHECK(before == 0 || width <= 1 || inputs->stride(2) == 1,
                      "`inputs` must have adjacent channels, but has not.");
      in.inputs = rows_of(*inputs);
      in.inputs_stride_r = inputs->stride(0);
      in.inputs_stride_t = inputs->stride(1);
    }
    if (weight) {
      check(*weight, "norm", like_.scalar_type(), {width});
      in.weight = rows_of(*weight);
    }
    Tensor read = empty({rows_, (before + 1) * width});
    in.window = writable(read);
    in.eps = eps;
    in.rows = rows_;
    in.steps = before + 1;
    in.width = width;
    Device::run(in, like_);
    return read;
  }

  // h (R, H) and the new state (R, H).
  std::pair<Tensor, Tensor> pool(Pooling pooling, const Tensor& gates, OptionalTensor& gate_bias,
                                 const Tensor& c) const {
    const int64_t channels = gates.size(1), hidden = channels / num_gates(pooling);
    STD_TORCH_CHECK(channels % num_gates(pooling) == 0,
                    "the convolution must give every gate as many channels, but does not.");
    check(c, "c", state_, {rows_, hidden});
    if (gate_bias) {
      check(*gate_bias, "gate_bias", like_.scalar_type(), {rows_, channels});
      gate_bias = torch::stable::contiguous(*gate_bias);
    }
    const Tensor before = torch::stable::contiguous(c);
    Tensor h = empty({rows_, hidden}), state = empty({rows_, hidden}, state_);
    Device::with_types(like_.scalar_type(), [&](auto t, auto s) {
      using T = decltype(t);
      using S = decltype(s);
      PoolInputs<T, S> in = {};
      in.gates = static_cast<const T*>(gates.const_data_ptr());
      in.gates_stride_b = in.gates_stride_t = channels;
      in.bias = pointer<T>(gate_bias);
      in.initial_state = static_cast<const S*>(before.const_data_ptr());
      in.batch = rows_;
      in.length = 1;
      in.hidden = hidden;
      ForwardOutputs<T, S> out = {};
      out.h = static_cast<T*>(h.mutable_data_ptr());
      out.state = static_cast<S*>(state.mutable_data_ptr());
      Device::pool(pooling, in, out, like_);
    });
    return {h, state};
  }

  // The context (R, H) of a query (R, H), by the next keys and values.
  Tensor attend(const Tensor& query, int64_t heads, double scale) {
    const Tensor &keys = remembered(), &values = remembered();
    STD_TORCH_CHECK(keys.dim() == 4 && heads > 0 && keys.size(0) > 0 && rows_ % keys.size(0) == 0,
                    "`keys` must be (sources, heads, steps, size), but is not.");
    StepAttention in = {};
    in.rows = rows_;
    in.sources = keys.size(0);
    in.heads = heads;
    in.length = keys.size(2);
    in.size = keys.size(3);
    const ScalarType type = like_.scalar_type();
    check(query, "query", type, {rows_, heads * in.size});
    check(keys, "keys", type, {in.sources, heads, in.length, in.size});
    check(values, "values", type, {in.sources, heads, in.length, in.size});
    STD_TORCH_CHECK(in.size <= 1 || (keys.stride(3) == 1 && values.stride(3) == 1),
                    "`keys` and `values` must have adjacent channels, but have not.");
    in.query = rows_of(query);
    in.keys = rows_of(keys);
    in.keys_stride_b = keys.stride(0);
    in.keys_stride_n = keys.stride(1);
    in.keys_stride_s = keys.stride(2);
    in.values = rows_of(values);
    in.values_stride_b = values.stride(0);
    in.values_stride_n = values.stride(1);
    in.values_stride_s = values.stride(2);
    if (mask_) {
      STD_TORCH_CHECK(mask_->size(1) == in.length && is_here(*mask_),
                      "`mask` must have a column for every step of the source, but has not.");
      in.mask = static_cast<const bool*>(mask_->const_data_ptr());
      in.mask_each = rows_ / mask_->size(0);
    }
    in.scale = scale;
    Tensor context = empty({rows_, heads * in.size});
    in.context = writable(context);
    Device::run(in, like_);
    return context;
  }

  // sigma(o) . (k + c), with the output gates' part of `gates` and `gate_bias` (R, G*H).
  Tensor gate(Pooling pooling, const Tensor& k, const Tensor& c, const Tensor& gates,
              const OptionalTensor& gate_bias) const {
    const int64_t channels = gates.size(1), hidden = channels / num_gates(pooling);
    check(k, "context", like_.scalar_type(), {rows_, hidden});
    check(c, "cell", like_.scalar_type(), {rows_, hidden});
    StepGate in = {};
    in.k = rows_of(k);
    in.c = rows_of(c);
    if (pooling != Pooling::f) {
      in.o = behind(rows_of(gates), 2 * hidden);
      if (gate_bias) in.bias = behind(rows_of(*gate_bias), 2 * hidden);
    }
    in.o_stride = channels;
    Tensor h = empty({rows_, hidden});
    in.h = writable(h);
    in.rows = rows_;
    in.hidden = hidden;
    Device::run(in, like_);
    return h;
  }

  // x + h, or h where there is no x, and that normed where there is a weight.
  std::pair<Tensor, Tensor> join(const Tensor* x, const Tensor& h, const Tensor* weight,
                                 double eps) const {
    if (!x) return {h, weight ? window(h, nullptr, weight, eps) : h};
    const int64_t hidden = h.size(1);
    check(*x, "input of a residual", like_.scalar_type(), {rows_, hidden});
    StepSum in = {};
    in.x = rows_of(*x);
    in.h = rows_of(h);
    Tensor out = empty({rows_, hidden}), normed = out;
    in.out = writable(out);
    if (weight) {
      check(*weight, "norm", like_.scalar_type(), {hidden});
      in.weight = rows_of(*weight);
      normed = empty({rows_, hidden});
      in.normed = writable(normed);
    }
    in.eps = eps;
    in.rows = rows_;
    in.hidden = hidden;
    Device::run(in, like_);
    return {out, normed};
  }

  Tensor activate(const Tensor& gate_and_in) const {
    StepInner in = {};
    in.gate_and_in = rows_of(gate_and_in);
    in.rows = rows_;
    in.inner = gate_and_in.size(1) / 2;
    Tensor out = empty({rows_, in.inner});
    in.out = writable(out);
    Device::run(in, like_);
    return out;
  }

  const Tensor like_;
  std::vector<Tensor> weights_, states_, memory_;
  size_t weight_ = 0, remembered_ = 0;
  OptionalTensor mask_;
  Products by_;
  int64_t rows_ = 0;
  ScalarType state_;
};

// x (R, 1, E); of each layer `states` has its inputs (R, K-1, E) and c (R, H); `weights` and `memory`
// are in the order in which `Step` reads them. `mask` is (M, S), R / M rows to one of it.
template <typename Device>
std::vector<Tensor> decoder_step(const Tensor& x, std::vector<Tensor> weights,
                                 std::vector<Tensor> states, std::vector<Tensor> memory,
                                 OptionalTensor mask, std::vector<int64_t> layout,
                                 std::vector<double> numbers, bool onednn) {
  // First: it says whether `x` is on a device that can be guarded.
  Step<Device> step(x, std::move(weights), std::move(states), std::move(memory), std::move(mask),
                    onednn ? Products::onednn : Products::torch);
  const typename Device::Guard guard(x);
  return step.run(layout, numbers);
}

}  // namespace hf_qrnn
