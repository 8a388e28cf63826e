// The pooling operations on CUDA tensors. libtorch's stable ABI: one binary for every torch since
// 2.10, CPU-only builds of it included.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "device_tensors.cuh"
#include "pool_launch.cuh"
#include "pool_run.cuh"

namespace hf_qrnn::gpu {

template <typename T, typename Stream>
void run_pool_forward(Pooling pooling, const PoolInputs<T, State<T>>& in,
                      const ForwardOutputs<T, State<T>>& out, Stream stream) {
  with_pooling(pooling, [&](auto kind) {
    launch_forward<T, decltype(kind)::value>(in, out, choose_form<T>(in), stream);
  });
}

#define QRNN_INSTANTIATE_FORWARD(T)                                          \
  template void run_pool_forward<T>(Pooling, const PoolInputs<T, State<T>>&, \
                                    const ForwardOutputs<T, State<T>>&, Stream);
QRNN_INSTANTIATE_FORWARD(double)
QRNN_INSTANTIATE_FORWARD(float)
QRNN_INSTANTIATE_FORWARD(__nv_bfloat16)
QRNN_INSTANTIATE_FORWARD(__half)

}  // namespace hf_qrnn::gpu

namespace {

using namespace hf_qrnn;
using namespace hf_qrnn::gpu;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// ------------------------------------------------------------------ checks

ScalarType state_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Sizes that follow from the gates.
struct Sizes {
  int64_t batch, length, hidden, channels;
  ScalarType type, state;
  int32_t device;

  int64_t tiles() const { return (length + kTile - 1) / kTile; }
};

Sizes sizes_of(const Tensor& gates, int64_t pooling) {
  STD_TORCH_CHECK(pooling >= 0 && pooling <= 2,
                  "`pooling` must be 0 (f), 1 (fo) or 2 (ifo), but is ", pooling, ".");
  const int count = num_gates(static_cast<Pooling>(pooling));
  STD_TORCH_CHECK(gates.dim() == 3 && gates.size(2) % count == 0, "`gates` must be (batch, time, ",
                  count, " * hidden), but is ", text_of(gates.sizes()), ".");
  STD_TORCH_CHECK(is_ours(gates), "`gates` must be on a CUDA device, but is not.");
  STD_TORCH_CHECK(gates.size(2) <= 1 || gates.stride(2) == 1,
                  "`gates` must have adjacent channels, but has stride ", gates.stride(2), ".");
  const ScalarType type = gates.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float ||
                      type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "`gates` must be float64, float32, bfloat16 or float16, but is not.");
  return {gates.size(0),    gates.size(1), gates.size(2) / count,   gates.size(2),
          type,             state_type(type), gates.get_device_index()};
}

void check(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
           ScalarType type, const Sizes& sizes) {
  check_shape(name, tensor, shape);
  STD_TORCH_CHECK(tensor.scalar_type() == type, "`", name,
                  "` must have the dtype that belongs to that of the gates, but has another.");
  STD_TORCH_CHECK(is_ours(tensor) && tensor.get_device_index() == sizes.device, "`", name,
                  "` must be on the device of the gates, but is not.");
}

// The address of an optional tensor that the kernels read contiguously, or null. Where a copy is
// needed the tensor is replaced, and lives as long as the caller's variable.
template <typename T>
const T* address_of(const char* name, Optional& tensor, const std::vector<int64_t>& shape,
                    ScalarType type, const Sizes& sizes) {
  if (!tensor.has_value()) return nullptr;
  check(name, *tensor, shape, type, sizes);
  if (!tensor->is_contiguous()) tensor = torch::stable::contiguous(*tensor);
  return static_cast<const T*>(tensor->const_data_ptr());
}

template <typename T>
PoolInputs<T, State<T>> inputs_of(const Tensor& gates, Optional& bias, Optional& initial_state,
                                  const Optional& mask, const Optional& seed, double zoneout,
                                  bool reverse, const Sizes& sizes) {
  using S = State<T>;
  STD_TORCH_CHECK(zoneout >= 0.0 && zoneout < 1.0, "`zoneout` must be in [0, 1), but is ", zoneout,
                  ".");
  STD_TORCH_CHECK(zoneout == 0.0 || seed.has_value(),
                  "`seed` must be given with zoneout, but is None.");
  PoolInputs<T, S> in{};
  in.gates = static_cast<const T*>(gates.const_data_ptr());
  in.gates_stride_b = gates.stride(0);
  in.gates_stride_t = gates.stride(1);
  in.bias = address_of<T>("bias", bias, {sizes.batch, sizes.channels}, sizes.type, sizes);
  in.initial_state = address_of<S>("initial_state", initial_state, {sizes.batch, sizes.hidden},
                                   sizes.state, sizes);
  if (mask.has_value()) {
    check("mask", *mask, {sizes.batch, sizes.length}, ScalarType::Bool, sizes);
    in.mask = static_cast<const bool*>(mask->const_data_ptr());
    in.mask_stride_b = mask->stride(0);
    in.mask_stride_t = mask->stride(1);
  }
  if (zoneout > 0.0) {
    check("seed", *seed, {}, ScalarType::Long, sizes);
    in.seed = static_cast<const int64_t*>(seed->const_data_ptr());
    // Python's round: to the nearest, ties to even.
    in.zoneout_threshold = static_cast<uint64_t>(std::nearbyint(zoneout * 16777216.0));
  }
  in.batch = sizes.batch;
  in.length = sizes.length;
  in.hidden = sizes.hidden;
  in.reverse = reverse;
  return in;
}

// ------------------------------------------------------------------ the operations

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Four pool_forward(const Tensor& gates, Optional bias, Optional initial_state, Optional mask,
                  Optional seed, int64_t pooling, double zoneout, bool reverse, bool want_c,
                  bool want_tiles) {
  const Sizes sizes = sizes_of(gates, pooling);
  const DeviceGuard guard(sizes.device);
  Tensor h = empty(gates, {sizes.batch, sizes.length, sizes.hidden}, sizes.type);
  Tensor state = empty(gates, {sizes.batch, sizes.hidden}, sizes.state);
  const std::vector<int64_t> nothing = {0};
  Tensor c = empty(gates,
                   want_c ? std::vector<int64_t>{sizes.batch, sizes.length, sizes.hidden} : nothing,
                   sizes.state);
  Tensor tiles = empty(
      gates,
      want_tiles ? std::vector<int64_t>{sizes.batch, sizes.tiles(), sizes.hidden} : nothing,
      sizes.state);
  with_type(sizes.type, [&](auto number) {
    using T = decltype(number);
    using S = State<T>;
    const auto in =
        inputs_of<T>(gates, bias, initial_state, mask, seed, zoneout, reverse, sizes);
    const ForwardOutputs<T, S> out{
        static_cast<T*>(h.mutable_data_ptr()),
        want_c ? static_cast<S*>(c.mutable_data_ptr()) : nullptr,
        static_cast<S*>(state.mutable_data_ptr()),
        want_tiles ? static_cast<S*>(tiles.mutable_data_ptr()) : nullptr};
    run_pool_forward<T>(static_cast<Pooling>(pooling), in, out, current_stream(sizes.device));
  });
  check_launch("pool_forward");
  return {h, c, state, tiles};
}

Three pool_backward(Optional grad_h, Optional grad_c, Optional grad_state, const Tensor& gates,
                    Optional bias, Optional initial_state, Optional mask, Optional seed,
                    const Tensor& tiles, int64_t pooling, double zoneout, bool reverse) {
  const Sizes sizes = sizes_of(gates, pooling);
  const DeviceGuard guard(sizes.device);
  const std::vector<int64_t> whole = {sizes.batch, sizes.length, sizes.hidden};
  Tensor grad_gates = empty(gates, {sizes.batch, sizes.length, sizes.channels}, sizes.type);
  Tensor grad_initial = empty(gates, {sizes.batch, sizes.hidden}, sizes.state);
  Tensor grad_bias = empty(
      gates,
      bias.has_value() ? std::vector<int64_t>{sizes.batch, sizes.channels}
                       : std::vector<int64_t>{0},
      sizes.state);
  Optional starts = tiles;
  with_type(sizes.type, [&](auto number) {
    using T = decltype(number);
    using S = State<T>;
    const auto in =
        inputs_of<T>(gates, bias, initial_state, mask, seed, zoneout, reverse, sizes);
    BackwardArguments<T, S> grads{};
    grads.grad_h = address_of<T>("grad_h", grad_h, whole, sizes.type, sizes);
    grads.grad_c = address_of<S>("grad_c", grad_c, whole, sizes.state, sizes);
    grads.grad_state = address_of<S>("grad_state", grad_state, {sizes.batch, sizes.hidden},
                                     sizes.state, sizes);
    grads.tiles = address_of<S>("tiles", starts, {sizes.batch, sizes.tiles(), sizes.hidden},
                                sizes.state, sizes);
    grads.grad_gates = static_cast<T*>(grad_gates.mutable_data_ptr());
    grads.grad_bias = bias.has_value() ? static_cast<S*>(grad_bias.mutable_data_ptr()) : nullptr;
    grads.grad_initial = static_cast<S*>(grad_initial.mutable_data_ptr());
    with_pooling(static_cast<Pooling>(pooling), [&](auto kind) {
      launch_backward<T, decltype(kind)::value>(in, grads, choose_form<T>(in),
                                                current_stream(sizes.device));
    });
  });
  check_launch("pool_backward");
  return {grad_gates, grad_bias, grad_initial};
}

// The form in use, after changing to `wanted` ("" leaves it): "auto" asks the table of pool_plan.h.
std::string pool_form(std::string wanted) {
  const char* const names[] = {"auto", "stream", "split"};
  if (!wanted.empty()) {
    int form = -2;
    for (int k = 0; k < 3; ++k) {
      if (wanted == names[k]) form = k - 1;
    }
    STD_TORCH_CHECK(form >= -1, "`wanted` must be auto, stream or split, but is ", wanted, ".");
    forced_form() = form;
  }
  return names[forced_form() + 1];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(QRNN_NAMESPACE, QRNN_DISPATCH_KEY, m) {
  m.impl("pool_forward", TORCH_BOX(&pool_forward));
  m.impl("pool_backward", TORCH_BOX(&pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(QRNN_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("pool_form", TORCH_BOX(&pool_form));
}
