// From arguments to launched kernels, without torch. The host code of both builds.
#pragma once

#include "launch.cuh"
#include "pool_kernels.cuh"
#include "pool_plan.h"

#include <type_traits>

namespace hf_qrnn::gpu {

// Whether every pack of V channels, in every tensor, lies on a multiple of its size, as null does.
template <typename T>
bool inputs_are_paired(const PoolInputs<T, State<T>>& in) {
  constexpr int V = kChannels<T>;
  const bool strides =
      in.hidden % V == 0 && in.gates_stride_b % V == 0 && in.gates_stride_t % V == 0;
  return strides && is_aligned(in.gates, V * sizeof(T)) && is_aligned(in.bias, V * sizeof(T)) &&
         is_aligned(in.initial_state, V * sizeof(State<T>));
}

template <typename T>
bool is_paired(const PoolInputs<T, State<T>>& in, const ForwardOutputs<T, State<T>>& out) {
  constexpr size_t pack = kChannels<T> * sizeof(T), states = kChannels<T> * sizeof(State<T>);
  return inputs_are_paired(in) && is_aligned(out.h, pack) && is_aligned(out.c, states) &&
         is_aligned(out.state, states) && is_aligned(out.tiles, states);
}

template <typename T>
bool is_paired(const PoolInputs<T, State<T>>& in, const BackwardArguments<T, State<T>>& grads) {
  constexpr size_t pack = kChannels<T> * sizeof(T), states = kChannels<T> * sizeof(State<T>);
  return inputs_are_paired(in) && is_aligned(grads.grad_h, pack) &&
         is_aligned(grads.grad_gates, pack) && is_aligned(grads.grad_c, states) &&
         is_aligned(grads.grad_state, states) && is_aligned(grads.tiles, states) &&
         is_aligned(grads.grad_bias, states) && is_aligned(grads.grad_initial, states);
}

// Threads for the channels of a row.
template <typename T>
int64_t packs_of(int64_t hidden, bool paired) {
  return paired ? hidden / kChannels<T> : hidden;
}

template <typename T>
constexpr bool kCanSplit = sizeof(T) < 8;

template <typename T>
Plan make_plan(const PoolInputs<T, State<T>>& in, Form form, Direction direction, bool paired) {
  if (form == Form::stream) return {form, kStreamThreads<T>, 1};
  return plan_split(direction, in.batch, in.length, packs_of<T>(in.hidden, paired), kSplitThreads,
                    kSlice, static_cast<int>(kTile));
}

template <typename T>
Form choose_form(const PoolInputs<T, State<T>>& in) {
  return choose_form(in.batch, in.length, in.hidden, kCanSplit<T>);
}

// One dimension holds rows and runs of channels: up to 2^31 - 1 blocks.
template <typename T>
dim3 grid_of(const PoolInputs<T, State<T>>& in, const Plan& plan, bool paired) {
  const int64_t packs = packs_of<T>(in.hidden, paired);
  const int64_t blocks = plan.form == Form::stream
                             ? (in.batch * packs + plan.lanes - 1) / plan.lanes
                             : in.batch * ((packs + plan.lanes - 1) / plan.lanes);
  return dim3(static_cast<unsigned>(blocks), 1, 1);
}

inline dim3 block_of(const Plan& plan) {
  return dim3(static_cast<unsigned>(plan.lanes), static_cast<unsigned>(plan.slices), 1);
}

template <typename T, Pooling P, typename Stream>
void launch_forward(const PoolInputs<T, State<T>>& in, const ForwardOutputs<T, State<T>>& out,
                    Form form, Stream stream) {
  if (in.batch == 0 || in.hidden == 0) return;  // an empty grid is an error
  const bool paired = is_paired<T>(in, out);
  const Plan plan = make_plan<T>(in, form, Direction::forward, paired);
  const dim3 grid = grid_of<T>(in, plan, paired), block = block_of(plan);
  if constexpr (kCanSplit<T>) {
    if (form == Form::split) {
      QRNN_LAUNCH((split_forward<T, P>), grid, block, stream, in, out, paired);
      return;
    }
  }
  QRNN_LAUNCH((stream_forward<T, P>), grid, block, stream, in, out, paired);
}

template <typename T, Pooling P, typename Stream>
void launch_backward(const PoolInputs<T, State<T>>& in, const BackwardArguments<T, State<T>>& grads,
                     Form form, Stream stream) {
  if (in.batch == 0 || in.hidden == 0) return;  // an empty grid is an error
  const bool paired = is_paired<T>(in, grads);
  const Plan plan = make_plan<T>(in, form, Direction::backward, paired);
  const dim3 grid = grid_of<T>(in, plan, paired), block = block_of(plan);
  if constexpr (kCanSplit<T>) {
    if (form == Form::split) {
      QRNN_LAUNCH((split_backward<T, P>), grid, block, stream, in, grads, paired);
      return;
    }
  }
  QRNN_LAUNCH((stream_backward<T, P>), grid, block, stream, in, grads, paired);
}

// Calls `use(constant)` with the pooling kind as a constant.
template <typename Use>
void with_pooling(Pooling pooling, Use&& use) {
  switch (pooling) {
    case Pooling::f:
      return use(std::integral_constant<Pooling, Pooling::f>());
    case Pooling::fo:
      return use(std::integral_constant<Pooling, Pooling::fo>());
    case Pooling::ifo:
      return use(std::integral_constant<Pooling, Pooling::ifo>());
  }
}

}  // namespace hf_qrnn::gpu
