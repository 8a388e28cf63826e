// The kernels of a decoder's step that pooling and connection have not: no torch here.
//
// Rows, vectors and teams are those of connect_device.cuh.
#pragma once

#include <limits>

#include "../step_args.h"
#include "connect_kernels.cuh"

namespace hf_qrnn::gpu {

// ------------------------------------------------------------------ the window

// A team a row of the window: one of the K - 1 inputs before, or the step's own, normed.
template <typename S, int W>
__global__ void __launch_bounds__(W == kWarp ? kBlockThreads : W)
    step_window_kernel(StepWindow in, bool whole) {
  constexpr int N = kVectors<S, W>;
  const int64_t place = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (place >= in.rows * in.steps) return;
  const int64_t row = place / in.steps, step = place % in.steps;
  const bool is_new = step == in.steps - 1;
  const bool norms = is_new && in.weight.data != nullptr;
  const ConstRows from = is_new ? in.x : in.inputs;
  Place at = {is_new ? row * in.width : row * in.inputs_stride_r + step * in.inputs_stride_t, 0,
              in.width, whole};
  Place to = {place * in.width, 0, in.width, whole};
  S x[N][4];
  S squares = 0;
  for (int64_t run = 0; run < in.width; run += kRun<S, W>) {
    at.channel = to.channel = run + 4 * threadIdx.x;
    load<S, W>(x, from, at);
    if (!norms) store<S, W>(x, in.window, to);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) squares += x[n][k] * x[n][k];
    }
  }
  if (norms) store_normed<S, W>(x, squares, from, at.row, in.weight, in.eps, in.window, to);
}

// ------------------------------------------------------------------ attention

// Warps of a block divide the source of one query of one head: tiles of kStepsOfTile steps, whose
// loads are on their way together. Each keeps the largest score so far, and the sums of weights and
// of weighted values that belong to it; the block joins them in the order of its warps.

constexpr int kAttendWarps = kBlockThreads / kWarp;

template <typename S, int N>
constexpr int kStepsOfTile = N == 1 ? 4 : 1;

// Below every score that is a number, and no infinity: it can be subtracted from itself.
template <typename S>
constexpr S kLowest = std::numeric_limits<S>::lowest();

// What a warp knows of its part of the source.
template <typename S>
struct Seen {
  S most, total;
  bool real;  // whether a step of it is
};

// The scores of the tile of steps from `first` on; the others' query and keys are not read.
template <typename S, int N>
__device__ __forceinline__ void score_tile(const StepAttention& in, int64_t query, int64_t keys,
                                           const int64_t (&sizes)[kStepsOfTile<S, N>],
                                           int64_t first, bool whole,
                                           S (&scores)[kStepsOfTile<S, N>]) {
  constexpr int64_t kChannels = int64_t{4} * kWarp * N;
  S q[N][4], key[N][4];
#pragma unroll
  for (int k = 0; k < kStepsOfTile<S, N>; ++k) scores[k] = 0;
  for (int64_t run = 0; run < in.size; run += kChannels) {
    const int64_t channel = run + 4 * threadIdx.x;
    load<S, kWarp>(q, in.query, Place{query, channel, in.size, whole});
#pragma unroll
    for (int k = 0; k < kStepsOfTile<S, N>; ++k) {
      const int64_t row = keys + (first + k) * in.keys_stride_s;
      load<S, kWarp>(key, in.keys, Place{row, channel, sizes[k], whole});
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[k] += q[n][i] * key[n][i];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kStepsOfTile<S, N>; ++k) {
    scores[k] = sum_over_team<S, kWarp>(scores[k]) * static_cast<S>(in.scale);
  }
}

// A warp's part of the channels from `run` on of the context of one row and head.
template <typename S, int N>
__device__ __forceinline__ Seen<S> attend_in_warp(const StepAttention& in, int64_t task,
                                                  int64_t run, bool whole, S (&context)[N][4]) {
  constexpr int kSteps = kStepsOfTile<S, N>;
  const int64_t row = task / in.heads, head = task % in.heads;
  const int64_t source = row / (in.rows / in.sources);
  const int64_t keys = source * in.keys_stride_b + head * in.keys_stride_n;
  const int64_t values = source * in.values_stride_b + head * in.values_stride_n;
  const bool* mask = in.mask == nullptr ? nullptr : in.mask + row / in.mask_each * in.length;
  Seen<S> seen = {kLowest<S>, 0, false};
  for (int64_t first = threadIdx.y * kSteps; first < in.length; first += kAttendWarps * kSteps) {
    // A step that is not real has no channels: nothing of it is read.
    int64_t sizes[kSteps];
    S scores[kSteps], value[N][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const bool real = first + k < in.length && (mask == nullptr || mask[first + k]);
      sizes[k] = real ? in.size : 0;
      seen.real = seen.real || real;
    }
    score_tile<S, N>(in, task * in.size, keys, sizes, first, whole, scores);
    S most = seen.most;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      // A score that is not a number has no largest, but its weight is no number either.
      if (sizes[k] > 0 && !(scores[k] < most)) most = scores[k];
    }
    const S fade = exp(seen.most - most);
    seen.most = most;
    seen.total *= fade;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) context[n][i] *= fade;
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const S weight = sizes[k] > 0 ? exp(scores[k] - most) : S(0);
      const int64_t place = values + (first + k) * in.values_stride_s;
      load<S, kWarp>(value, in.values, Place{place, run + 4 * threadIdx.x, sizes[k], whole});
      seen.total += weight;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) context[n][i] += weight * value[n][i];
      }
    }
  }
  return seen;
}

// Blocks take (row, head) pairs in turn; N vectors of a lane are a run of the head's channels, and
// of wider heads the scores are computed anew for every run.
template <typename S, int N>
__global__ void __launch_bounds__(kBlockThreads) step_attend_kernel(StepAttention in, bool whole) {
  constexpr int64_t kChannels = int64_t{4} * kWarp * N;
  constexpr int M = (N * kWarp + kBlockThreads - 1) / kBlockThreads;
  alignas(16) __shared__ S parts[kAttendWarps][kChannels];
  __shared__ Seen<S> all[kAttendWarps];
  const int64_t thread = threadIdx.y * kWarp + threadIdx.x;
  for (int64_t task = blockIdx.x; task < in.rows * in.heads; task += gridDim.x) {
    for (int64_t run = 0; run < in.size; run += kChannels) {
      S context[N][4] = {};
      const Seen<S> seen = attend_in_warp<S, N>(in, task, run, whole, context);
      if (threadIdx.x == 0) all[threadIdx.y] = seen;
      store_as<S, S, kWarp>(context, parts[threadIdx.y],
                            Place{0, 4 * int64_t{threadIdx.x}, kChannels, true});
      QRNN_TEAM_BARRIER();
      S most = kLowest<S>, total = 0, joined[M][4] = {};
      bool real = false;
#pragma unroll
      for (int warp = 0; warp < kAttendWarps; ++warp) {
        if (!(all[warp].most < most)) most = all[warp].most;
        real = real || all[warp].real;
      }
#pragma unroll
      for (int warp = 0; warp < kAttendWarps; ++warp) {
        const S share = exp(all[warp].most - most);
        total += share * all[warp].total;
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const int64_t channel = 4 * (thread + m * kBlockThreads);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (channel < kChannels) joined[m][i] += share * parts[warp][channel + i];
          }
        }
      }
      // Without a real step zeros. Real ones that all score -inf have no softmax: 0 / 0.
      const S scale = real ? S(1) / total : S(0);
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) joined[m][i] *= scale;
      }
      const int64_t end = run + kChannels < in.size ? run + kChannels : in.size;
      store<S, kBlockThreads>(joined, in.context, Place{task * in.size, run + 4 * thread, end, whole});
      __syncthreads();  // the parts have been read
    }
  }
}

// ------------------------------------------------------------------ a thread a vector

template <typename S>
__device__ __forceinline__ S sigmoid(S x) {
  return S(1) / (S(1) + exp(-x));
}

// The place of this thread's vector in rows of `hidden` channels; its row is `row`.
struct VectorPlace {
  int64_t row, channel;
  __device__ __forceinline__ explicit VectorPlace(int64_t hidden) {
    const int64_t vectors = (hidden + 3) / 4;
    const int64_t thread = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
    row = thread / vectors;
    channel = thread % vectors * 4;
  }
};

template <typename S>
__global__ void __launch_bounds__(kBlockThreads) step_gate_kernel(StepGate in, bool whole) {
  const VectorPlace vector(in.hidden);
  if (vector.row >= in.rows) return;
  const Place at = {vector.row * in.hidden, vector.channel, in.hidden, whole};
  const Place gate = {vector.row * in.o_stride, vector.channel, in.hidden, whole};
  S h[1][4], c[1][4], o[1][4], bias[1][4] = {};
  load<S, kBlockThreads>(h, in.k, at);
  load<S, kBlockThreads>(c, in.c, at);
#pragma unroll
  for (int i = 0; i < 4; ++i) h[0][i] += c[0][i];
  if (in.o.data != nullptr) {
    load<S, kBlockThreads>(o, in.o, gate);
    if (in.bias.data != nullptr) load<S, kBlockThreads>(bias, in.bias, gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) h[0][i] *= sigmoid(o[0][i] + bias[0][i]);
  }
  store<S, kBlockThreads>(h, in.h, at);
}

template <typename S>
__global__ void __launch_bounds__(kBlockThreads) step_inner_kernel(StepInner in, bool whole) {
  const VectorPlace vector(in.inner);
  if (vector.row >= in.rows) return;
  const int64_t first = 2 * vector.row * in.inner;
  S gate[1][4], inner[1][4];
  load<S, kBlockThreads>(gate, in.gate_and_in, Place{first, vector.channel, in.inner, whole});
  load<S, kBlockThreads>(inner, in.gate_and_in,
                         Place{first + in.inner, vector.channel, in.inner, whole});
#pragma unroll
  for (int i = 0; i < 4; ++i) inner[0][i] *= gate[0][i] * sigmoid(gate[0][i]);
  store<S, kBlockThreads>(inner, in.out,
                          Place{vector.row * in.inner, vector.channel, in.inner, whole});
}

}  // namespace hf_qrnn::gpu
