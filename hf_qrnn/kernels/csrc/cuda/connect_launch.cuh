// From the connection's arguments to launched kernels, without torch. The host code of both builds.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "connect_kernels.cuh"
#include "launch.cuh"

namespace hf_qrnn::gpu {

// Blocks of the backward pass, at most: three for each of 132 multiprocessors, which with eight
// vectors a thread have more on their way than memory's latency asks for. Calculated, not measured.
// Tests have fewer, so that few rows are more than a block's.
#if !defined(QRNN_MAX_PARTS)
#define QRNN_MAX_PARTS 396
#endif
constexpr int64_t kMaxParts = QRNN_MAX_PARTS;

// Calls `use(constant)` with the threads of a team for rows of `hidden` channels.
template <typename S, typename Use>
void with_team(int64_t hidden, Use&& use) {
  if (hidden <= kRun<S, kWarp>) return use(std::integral_constant<int, kWarp>());
  return use(std::integral_constant<int, kWide>());
}

constexpr int64_t teams_of(int team) { return team == kWarp ? kBlockThreads / kWarp : 1; }

template <typename S>
int64_t parts_of(int64_t rows, int64_t hidden) {
  int64_t parts = 0;
  with_team<S>(hidden, [&](auto team) {
    const int64_t teams = teams_of(decltype(team)::value);
    parts = std::min(kMaxParts, (rows + teams - 1) / teams);
  });
  return parts;
}

// Whether every vector of four channels of every tensor is aligned, as null is.
inline bool is_whole(int64_t hidden, std::initializer_list<ConstRows> tensors) {
  bool whole = hidden % 4 == 0;
  for (const ConstRows& rows : tensors) {
    const bool is_short = rows.number == Number::float16 || rows.number == Number::bfloat16;
    whole = whole && is_aligned(rows.data, is_short ? 8 : 16);
  }
  return whole;
}

inline ConstRows readable(const Rows& rows) { return {rows.data, rows.number}; }

// An empty grid is an error, so nothing is launched for no rows or no channels.

template <typename S, typename Stream>
void launch_connect_forward(const ConnectInputs<S>& in, const ConnectOutputs<S>& out,
                            Stream stream) {
  const int64_t rows = in.batch * in.length;
  if (rows == 0 || in.hidden == 0) return;
  const bool whole = is_whole(
      in.hidden, {in.h, in.residual, in.weight, readable(out.out), readable(out.normed)});
  with_team<S>(in.hidden, [&](auto team) {
    constexpr int W = decltype(team)::value;
    const dim3 grid(static_cast<unsigned>((rows + teams_of(W) - 1) / teams_of(W)), 1, 1);
    const dim3 block(W, static_cast<unsigned>(teams_of(W)), 1);
    QRNN_LAUNCH((connect_forward_kernel<S, W>), grid, block, stream, in, out, whole);
  });
}

// `in.grad_weight` has `parts_of` rows, whose sum goes to `grad_weight`.
template <typename S, typename Stream>
void launch_connect_backward(const ConnectBackward<S>& in, S* grad_weight, Stream stream) {
  const int64_t rows = in.batch * in.length;
  if (in.hidden == 0) return;
  const int64_t parts = parts_of<S>(rows, in.hidden);
  if (rows > 0) {
    const bool whole =
        is_whole(in.hidden, {in.grad_out, in.grad_normed, in.out, in.weight,
                             readable(in.grad_h), readable(in.grad_residual)});
    with_team<S>(in.hidden, [&](auto team) {
      constexpr int W = decltype(team)::value;
      const dim3 grid(static_cast<unsigned>(parts), 1, 1);
      const dim3 block(W, static_cast<unsigned>(teams_of(W)), 1);
      QRNN_LAUNCH((connect_backward_kernel<S, W>), grid, block, stream, in, whole);
    });
  }
  if (grad_weight == nullptr) return;
  const int64_t blocks = (in.hidden + kSumChannels - 1) / kSumChannels;
  const dim3 grid(static_cast<unsigned>(blocks), 1, 1), block(kSumChannels, kSumSlices, 1);
  const S* from = in.grad_weight;
  QRNN_LAUNCH((sum_parts_kernel<S>), grid, block, stream, from, grad_weight, parts, in.hidden);
}

}  // namespace hf_qrnn::gpu
