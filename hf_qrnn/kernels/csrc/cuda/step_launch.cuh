// From the arguments of a decoder's step to launched kernels, without torch. The host code of both
// builds. Grids are functions of the shape alone, so that every bit is.
#pragma once

#include "connect_launch.cuh"
#include "step_kernels.cuh"

namespace hf_qrnn::gpu {

// The most blocks that a grid may have; who has more to do takes turns. Tests have fewer.
#if !defined(QRNN_MAX_BLOCKS)
#define QRNN_MAX_BLOCKS 0x7FFFFFFF
#endif
constexpr int64_t kMaxBlocks = QRNN_MAX_BLOCKS;

inline dim3 grid_for(int64_t tasks, int64_t each) {
  return dim3(static_cast<unsigned>((tasks + each - 1) / each), 1, 1);
}

// Whether vectors that begin behind `strides` numbers are as aligned as the first.
inline bool are_whole(std::initializer_list<int64_t> strides) {
  return std::all_of(strides.begin(), strides.end(), [](int64_t n) { return n % 4 == 0; });
}

template <typename S, typename Stream>
void launch_step(const StepWindow& in, Stream stream) {
  const int64_t places = in.rows * in.steps;
  if (places == 0 || in.width == 0) return;
  const bool whole = is_whole(in.width, {in.x, in.weight, in.inputs, readable(in.window)}) &&
                     are_whole({in.inputs_stride_r, in.inputs_stride_t});
  with_team<S>(in.width, [&](auto team) {
    constexpr int W = decltype(team)::value;
    const dim3 block(W, static_cast<unsigned>(teams_of(W)), 1);
    QRNN_LAUNCH((step_window_kernel<S, W>), grid_for(places, teams_of(W)), block, stream, in,
                whole);
  });
}

template <typename S, typename Stream>
void launch_step(const StepAttention& in, Stream stream) {
  const int64_t tasks = in.rows * in.heads;
  if (tasks == 0 || in.size == 0) return;
  const bool whole =
      is_whole(in.size, {in.query, in.keys, in.values, readable(in.context)}) &&
      are_whole({in.keys_stride_b, in.keys_stride_n, in.keys_stride_s, in.values_stride_b,
                 in.values_stride_n, in.values_stride_s});
  const dim3 grid = grid_for(std::min(tasks, kMaxBlocks), 1), block(kWarp, kAttendWarps, 1);
  if (in.size <= 4 * kWarp) {
    QRNN_LAUNCH((step_attend_kernel<S, 1>), grid, block, stream, in, whole);
  } else {
    constexpr int N = kVectors<S, kWarp>;
    QRNN_LAUNCH((step_attend_kernel<S, N>), grid, block, stream, in, whole);
  }
}

template <typename S, typename Stream>
void launch_step(const StepGate& in, Stream stream) {
  if (in.rows == 0 || in.hidden == 0) return;
  const bool whole = is_whole(in.hidden, {in.k, in.c, in.o, in.bias, readable(in.h)}) &&
                     are_whole({in.o_stride});
  const dim3 grid = grid_for(in.rows * ((in.hidden + 3) / 4), kBlockThreads), block(kBlockThreads);
  QRNN_LAUNCH((step_gate_kernel<S>), grid, block, stream, in, whole);
}

// The connection without dropout, whose backward pass nobody wants.
template <typename S, typename Stream>
void launch_step(const StepSum& in, Stream stream) {
  const ConnectInputs<S> given = {in.h, in.x, in.weight, Dropout{}, in.eps, in.rows, 1, in.hidden};
  launch_connect_forward<S>(given, ConnectOutputs<S>{in.out, in.normed, nullptr}, stream);
}

template <typename S, typename Stream>
void launch_step(const StepInner& in, Stream stream) {
  if (in.rows == 0 || in.inner == 0) return;
  const bool whole = is_whole(in.inner, {in.gate_and_in, readable(in.out)});
  const dim3 grid = grid_for(in.rows * ((in.inner + 3) / 4), kBlockThreads), block(kBlockThreads);
  QRNN_LAUNCH((step_inner_kernel<S>), grid, block, stream, in, whole);
}

}  // namespace hf_qrnn::gpu
