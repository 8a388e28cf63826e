// The library's operations: their schemas, and their CPU side on the kernels of pool_cpu.h.
//
// Autograd, shapes for compilers and the choice of a backend are Python's (pooling_qrnn.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "pool_run.h"

namespace hf_qrnn {
namespace {

// ---------------------------------------------------------------- instruction sets

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::baseline;
}

Isa best_isa() {
  if (runs_here(Isa::avx512)) return Isa::avx512;
  return runs_here(Isa::avx2) ? Isa::avx2 : Isa::baseline;
}

// A function's static, so that nothing asks the CPU before the first call.
Isa& isa_in_use() {
  static Isa isa = best_isa();
  return isa;
}

// The name of the instruction set in use, after changing to `wanted` ("" leaves it, "best" is the
// default): tests run every one that the CPU has.
std::string simd(std::string wanted) {
  if (wanted == "best") isa_in_use() = best_isa();
  if (!wanted.empty() && wanted != "best") {
    const auto* found = std::find(std::begin(kIsaNames), std::end(kIsaNames), wanted);
    STD_TORCH_CHECK(found != std::end(kIsaNames),
                    "`wanted` must be baseline, avx2, avx512 or best, but is ", wanted, ".");
    const Isa isa = static_cast<Isa>(found - std::begin(kIsaNames));
    STD_TORCH_CHECK(runs_here(isa), "`wanted` must be one the CPU has, but is ", wanted, ".");
    isa_in_use() = isa;
  }
  return kIsaNames[static_cast<int>(current_isa())];
}

template <typename T, typename S>
BackwardFunction<T, S> backward_function() {
#if defined(__x86_64__)
  if (current_isa() == Isa::avx512) return &avx512::backward<T, S>;
  if (current_isa() == Isa::avx2) return &avx2::backward<T, S>;
#endif
  return &baseline::backward<T, S>;
}

// ---------------------------------------------------------------- arguments

// The tensors behind PoolInputs' pointers, contiguous where they must be.
struct Inputs {
  Tensor gates;
  OptionalTensor bias, initial_state, mask, seed;
  Pooling pooling;
  double zoneout;
  bool reverse;
  int64_t batch, length, hidden;

  Inputs(const Tensor& gates_, const OptionalTensor& bias_, const OptionalTensor& initial_,
         const OptionalTensor& mask_, const OptionalTensor& seed_, int64_t pooling_,
         double zoneout_, bool reverse_)
      : gates(gates_), mask(mask_), zoneout(zoneout_), reverse(reverse_) {
    STD_TORCH_CHECK(pooling_ >= 0 && pooling_ <= 2, "`pooling` must be 0, 1 or 2, but is ",
                    pooling_, ".");
    pooling = static_cast<Pooling>(pooling_);
    STD_TORCH_CHECK(gates.is_cpu() && gates.dim() == 3 && gates.size(2) % num_gates(pooling) == 0,
                    "`gates` must be (batch, time, gates * hidden) on the CPU, but is not.");
    STD_TORCH_CHECK(gates.size(2) <= 1 || gates.stride(2) == 1,
                    "`gates` must have adjacent channels, but has stride ", gates.stride(2), ".");
    STD_TORCH_CHECK(zoneout >= 0 && zoneout < 1, "`zoneout` must be in [0, 1), but is ", zoneout,
                    ".");
    STD_TORCH_CHECK(zoneout == 0 || seed_.has_value(), "`seed` must be given with zoneout.");
    batch = gates.size(0);
    length = gates.size(1);
    hidden = gates.size(2) / num_gates(pooling);
    const ScalarType type = gates.scalar_type(), state = state_type();
    if (bias_) {
      check(*bias_, "bias", type, {batch, gates.size(2)});
      bias = torch::stable::contiguous(*bias_);
    }
    if (initial_) {
      check(*initial_, "initial_state", state, {batch, hidden});
      initial_state = torch::stable::contiguous(*initial_);
    }
    if (mask) check(*mask, "mask", ScalarType::Bool, {batch, length});
    if (zoneout > 0) {
      check(*seed_, "seed", ScalarType::Long, {});
      seed = seed_;
    }
  }

  ScalarType state_type() const {
    return gates.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) const {
    return empty_like(gates, shape, type);
  }

  int64_t num_tiles() const { return (length + kTile - 1) / kTile; }

  template <typename T, typename S>
  PoolInputs<T, S> pointers() const {
    PoolInputs<T, S> in = {};
    in.gates = static_cast<const T*>(gates.const_data_ptr());
    in.gates_stride_b = gates.stride(0);
    in.gates_stride_t = gates.stride(1);
    if (bias) in.bias = static_cast<const T*>(bias->const_data_ptr());
    if (initial_state) in.initial_state = static_cast<const S*>(initial_state->const_data_ptr());
    if (mask) {
      in.mask = static_cast<const bool*>(mask->const_data_ptr());
      in.mask_stride_b = mask->stride(0);
      in.mask_stride_t = mask->stride(1);
    }
    if (seed) in.seed = static_cast<const int64_t*>(seed->const_data_ptr());
    // Ties to even, as Python's round.
    in.zoneout_threshold = static_cast<uint64_t>(std::nearbyint(zoneout * (1 << 24)));
    in.batch = batch;
    in.length = length;
    in.hidden = hidden;
    in.reverse = reverse;
    return in;
  }
};

// ---------------------------------------------------------------- operations

std::tuple<Tensor, Tensor, Tensor, Tensor> pool_forward(
    const Tensor& gates, const OptionalTensor& bias, const OptionalTensor& initial_state,
    const OptionalTensor& mask, const OptionalTensor& seed, int64_t pooling, double zoneout,
    bool reverse, bool want_c, bool want_tiles) {
  const Inputs x(gates, bias, initial_state, mask, seed, pooling, zoneout, reverse);
  const ScalarType state_type = x.state_type();
  Tensor h = x.empty({x.batch, x.length, x.hidden}, gates.scalar_type());
  Tensor c = want_c ? x.empty({x.batch, x.length, x.hidden}, state_type) : x.empty({0}, state_type);
  Tensor state = x.empty({x.batch, x.hidden}, state_type);
  Tensor tiles = want_tiles ? x.empty({x.batch, x.num_tiles(), x.hidden}, state_type)
                            : x.empty({0}, state_type);
  with_pool_types(gates.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto in = x.pointers<T, S>();
    ForwardOutputs<T, S> out = {};
    out.h = static_cast<T*>(h.mutable_data_ptr());
    if (want_c) out.c = static_cast<S*>(c.mutable_data_ptr());
    out.state = static_cast<S*>(state.mutable_data_ptr());
    if (want_tiles) out.tiles = static_cast<S*>(tiles.mutable_data_ptr());
    run_pool_forward(x.pooling, in, out);
  });
  return {h, c, state, tiles};
}

OptionalTensor checked_grad(const OptionalTensor& grad, const char* name, ScalarType type,
                            std::initializer_list<int64_t> shape) {
  if (!grad) return std::nullopt;
  check(*grad, name, type, shape);
  return torch::stable::contiguous(*grad);
}

std::tuple<Tensor, Tensor, Tensor> pool_backward(
    const OptionalTensor& grad_h, const OptionalTensor& grad_c, const OptionalTensor& grad_state,
    const Tensor& gates, const OptionalTensor& bias, const OptionalTensor& initial_state,
    const OptionalTensor& mask, const OptionalTensor& seed, const Tensor& tiles, int64_t pooling,
    double zoneout, bool reverse) {
  const Inputs x(gates, bias, initial_state, mask, seed, pooling, zoneout, reverse);
  const ScalarType type = gates.scalar_type(), state_type = x.state_type();
  const auto of_h = checked_grad(grad_h, "grad_h", type, {x.batch, x.length, x.hidden});
  const auto of_c = checked_grad(grad_c, "grad_c", state_type, {x.batch, x.length, x.hidden});
  const auto of_state = checked_grad(grad_state, "grad_state", state_type, {x.batch, x.hidden});
  check(tiles, "tiles", state_type, {x.batch, x.num_tiles(), x.hidden});
  const Tensor starts = torch::stable::contiguous(tiles);
  Tensor grad_gates = x.empty({x.batch, x.length, gates.size(2)}, type);
  Tensor grad_bias = bias ? x.empty({x.batch, gates.size(2)}, state_type) : x.empty({0}, state_type);
  Tensor grad_initial = x.empty({x.batch, x.hidden}, state_type);
  with_pool_types(gates.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto in = x.pointers<T, S>();
    BackwardArguments<T, S> out = {};
    out.grad_h = pointer<T>(of_h);
    out.grad_c = pointer<S>(of_c);
    out.grad_state = pointer<S>(of_state);
    out.tiles = static_cast<const S*>(starts.const_data_ptr());
    out.grad_gates = static_cast<T*>(grad_gates.mutable_data_ptr());
    if (bias) out.grad_bias = static_cast<S*>(grad_bias.mutable_data_ptr());
    out.grad_initial = static_cast<S*>(grad_initial.mutable_data_ptr());
    const auto run = backward_function<T, S>();
    for_each_pool_task<S>(x.batch, x.length, x.hidden, kScratch, [&](int64_t b, int64_t first, int64_t last, S* scratch) {
      run(x.pooling, in, out, b, first, last, scratch);
    });
  });
  return {grad_gates, grad_bias, grad_initial};
}

}  // namespace

Isa current_isa() { return isa_in_use(); }

}  // namespace hf_qrnn

STABLE_TORCH_LIBRARY(hf_qrnn_kernels, m) {
  m.def(
      "pool_forward(Tensor gates, Tensor? bias, Tensor? initial_state, Tensor? mask, Tensor? seed,"
      " int pooling, float zoneout, bool reverse, bool want_c, bool want_tiles)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pool_backward(Tensor? grad_h, Tensor? grad_c, Tensor? grad_state, Tensor gates, Tensor? bias,"
      " Tensor? initial_state, Tensor? mask, Tensor? seed, Tensor tiles, int pooling,"
      " float zoneout, bool reverse) -> (Tensor, Tensor, Tensor)");
  m.def("simd(str wanted) -> str");
  m.def("pool_form(str wanted) -> str");  // of the CUDA side alone
}

STABLE_TORCH_LIBRARY_IMPL(hf_qrnn_kernels, CPU, m) {
  m.impl("pool_forward", TORCH_BOX(&hf_qrnn::pool_forward));
  m.impl("pool_backward", TORCH_BOX(&hf_qrnn::pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(hf_qrnn_kernels, CompositeExplicitAutograd, m) {
  m.impl("simd", TORCH_BOX(&hf_qrnn::simd));
}
