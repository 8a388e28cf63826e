// The CUDA kernels and their operations, built by the host compiler to run on the CPU: for tests.
// The operations are those of torch.ops.hf_qrnn_emulated; a C interface chooses the form.
#include "pool_cuda.cu"

namespace {

using namespace hf_qrnn;
using namespace hf_qrnn::gpu;

// Fields of 8 bytes, so that no caller has to know about padding. A form of -1 asks the table.
struct Call {
  int64_t dtype;  // 0 float64, 1 float32, 2 bfloat16, 3 float16
  int64_t pooling;
  int64_t form;
  int64_t reverse;
  int64_t batch, length, hidden;
  const void* gates;
  int64_t gates_stride_b, gates_stride_t;
  const void* bias;
  const void* initial_state;
  const void* mask;
  int64_t mask_stride_b, mask_stride_t;
  const int64_t* seed;
  uint64_t zoneout_threshold;
  void* h;
  void* c;
  void* state;
  void* tiles;
  const void* grad_h;
  const void* grad_c;
  const void* grad_state;
  void* grad_gates;
  void* grad_bias;
  void* grad_initial;
};

template <typename T>
PoolInputs<T, State<T>> inputs_of(const Call& call) {
  return {static_cast<const T*>(call.gates),
          call.gates_stride_b,
          call.gates_stride_t,
          static_cast<const T*>(call.bias),
          static_cast<const State<T>*>(call.initial_state),
          static_cast<const bool*>(call.mask),
          call.mask_stride_b,
          call.mask_stride_t,
          call.seed,
          call.zoneout_threshold,
          call.batch,
          call.length,
          call.hidden,
          call.reverse != 0};
}

template <typename T>
void run(const Call& call, bool backward) {
  using S = State<T>;
  const PoolInputs<T, S> in = inputs_of<T>(call);
  const Form form = call.form < 0 ? choose_form<T>(in) : static_cast<Form>(call.form);
  with_pooling(static_cast<Pooling>(call.pooling), [&](auto kind) {
    constexpr Pooling P = decltype(kind)::value;
    if (backward) {
      const BackwardArguments<T, S> grads{
          static_cast<const T*>(call.grad_h),     static_cast<const S*>(call.grad_c),
          static_cast<const S*>(call.grad_state), static_cast<const S*>(call.tiles),
          static_cast<T*>(call.grad_gates),       static_cast<S*>(call.grad_bias),
          static_cast<S*>(call.grad_initial)};
      launch_backward<T, P>(in, grads, form, nullptr);
    } else {
      const ForwardOutputs<T, S> out{static_cast<T*>(call.h), static_cast<S*>(call.c),
                                     static_cast<S*>(call.state), static_cast<S*>(call.tiles)};
      launch_forward<T, P>(in, out, form, nullptr);
    }
  });
}

template <typename Use>
void with_dtype(int64_t dtype, Use&& use) {
  switch (dtype) {
    case 0:
      return use(double());
    case 1:
      return use(float());
    case 2:
      return use(__nv_bfloat16());
    default:
      return use(__half());
  }
}

}  // namespace

extern "C" {

void qrnn_emulate(const Call* call, int64_t backward) {
  with_dtype(call->dtype, [&](auto number) { run<decltype(number)>(*call, backward != 0); });
}

// Form, threads across channels and slices of time that the table gives.
void qrnn_plan(int64_t backward, int64_t dtype, int64_t batch, int64_t length, int64_t hidden,
               int64_t* form_lanes_slices) {
  with_dtype(dtype, [&](auto number) {
    PoolInputs<decltype(number), State<decltype(number)>> in{};
    in.batch = batch;
    in.length = length;
    in.hidden = hidden;
    const Plan plan = make_plan<decltype(number)>(
        in, choose_form<decltype(number)>(in),
        backward != 0 ? Direction::backward : Direction::forward,
        hidden % kChannels<decltype(number)> == 0);
    form_lanes_slices[0] = static_cast<int64_t>(plan.form);
    form_lanes_slices[1] = plan.lanes;
    form_lanes_slices[2] = plan.slices;
  });
}

// The stand-ins of 16-bit numbers: to float and back.
void qrnn_widen(int64_t dtype, int64_t count, const uint16_t* from, float* to) {
  for (int64_t k = 0; k < count; ++k) {
    to[k] = dtype == 2 ? __bfloat162float({from[k]}) : __half2float({from[k]});
  }
}

void qrnn_narrow(int64_t dtype, int64_t count, const float* from, uint16_t* to) {
  for (int64_t k = 0; k < count; ++k) {
    to[k] = dtype == 2 ? __float2bfloat16_rn(from[k]).bits : __float2half_rn(from[k]).bits;
  }
}

}  // extern "C"
