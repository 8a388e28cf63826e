// The kernels of the connection around a layer: no torch here, as in pool_kernels.cuh.
#pragma once

#include "connect_device.cuh"

namespace hf_qrnn::gpu {

// ------------------------------------------------------------------ forward

// Stores x / sqrt(mean(x^2) + eps) . weight in the row `to`, and returns the root's inverse. `squares`
// is a thread's sum; `x` holds its channels, or, where a row has more than a run, they are loaded
// `again`, from channel `from` on.
template <typename S, int W, int N>
__device__ __forceinline__ S store_normed(S (&x)[N][4], S squares, const ConstRows& again,
                                          int64_t from, const ConstRows& weight, double eps,
                                          const Rows& normed, Place to) {
  const S mean = sum_over_team<S, W>(squares) / static_cast<S>(to.hidden);
  const S inverse = S(1) / sqrt(mean + static_cast<S>(eps));
  const bool held = to.hidden <= kRun<S, W>;
  S y[N][4];
  for (int64_t run = 0; run < to.hidden; run += kRun<S, W>) {
    to.channel = run + 4 * threadIdx.x;
    if (!held) load<S, W>(x, again, Place{from, to.channel, to.hidden, to.whole});
    load<S, W>(y, weight, Place{0, to.channel, to.hidden, to.whole});
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) y[n][k] *= x[n][k] * inverse;
    }
    store<S, W>(y, normed, to);
  }
  return inverse;
}

// A team a row: W threads across, rows of the block down.
template <typename S, int W>
__global__ void __launch_bounds__(W == kWarp ? kBlockThreads : W)
    connect_forward_kernel(ConnectInputs<S> in, ConnectOutputs<S> out, bool whole) {
  constexpr int N = kVectors<S, W>;
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= in.batch * in.length) return;
  const bool drops = in.dropout.seed != nullptr;
  const uint64_t key =
      drops ? zoneout_key(*in.dropout.seed, row / in.length, row % in.length) : 0;
  Place at = {row * in.hidden, 0, in.hidden, whole};
  S x[N][4], y[N][4];
  S squares = 0;
  for (int64_t run = 0; run < in.hidden; run += kRun<S, W>) {
    at.channel = run + 4 * threadIdx.x;
    load<S, W>(x, in.h, at);
    if (in.residual.data != nullptr) load<S, W>(y, in.residual, at);
    if (drops) drop<S, W>(x, in.dropout, key, at.channel);
    if (in.residual.data != nullptr) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) x[n][k] += y[n][k];
      }
    }
    if (out.out.data != nullptr) {
      store<S, W>(x, out.out, at);
      round_as(x, out.out.number);  // the norm is of what is in memory, with its digits
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) squares += x[n][k] * x[n][k];
    }
  }
  if (out.normed.data == nullptr) return;
  // What this very thread wrote above, or never changed.
  const ConstRows again = out.out.data == nullptr ? in.h : ConstRows{out.out.data, out.out.number};
  const S inverse =
      store_normed<S, W>(x, squares, again, at.row, in.weight, in.eps, out.normed, at);
  if (threadIdx.x == 0 && out.inverse != nullptr) out.inverse[row] = inverse;
}

// ------------------------------------------------------------------ backward

// With n = x r, r = 1 / sqrt(mean(x^2) + eps): the gradient of x is r (a - n mean(a n)), where
// a = grad_normed . weight, and that of the weight the sum of grad_normed . n.

// Reads a run of a row: n into `n_`, grad_normed into `grad`, the weight into `weight`.
template <typename S, int W, int N>
__device__ __forceinline__ void load_norm(const ConnectBackward<S>& in, const Place& at, S inverse,
                                          S (&n_)[N][4], S (&grad)[N][4], S (&weight)[N][4]) {
  load<S, W>(n_, in.out, at);
  load<S, W>(grad, in.grad_normed, at);
  load<S, W>(weight, in.weight, Place{0, at.channel, at.hidden, at.whole});
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) n_[n][k] *= inverse;
  }
}

// Adds to `total`, in registers, what the block writes of it when all its rows are done.
template <typename S, int W, int N>
__device__ __forceinline__ void write_totals(const ConnectBackward<S>& in, const S (&total)[N][4]) {
  S* part = in.grad_weight + int64_t{blockIdx.x} * in.hidden;
  if constexpr (W == kWarp) {
    // Teams of the block in order.
    constexpr int kTeams = kBlockThreads / kWarp;
    __shared__ S sums[kTeams][kRun<S, W>];
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[threadIdx.y][4 * (static_cast<int>(threadIdx.x) + n * W) + k] = total[n][k];
      }
    }
    QRNN_TEAM_BARRIER();
    const int thread = static_cast<int>(threadIdx.y * W + threadIdx.x);
    for (int channel = thread; channel < in.hidden; channel += kBlockThreads) {
      S sum = 0;
#pragma unroll
      for (int team = 0; team < kTeams; ++team) sum += sums[team][channel];
      part[channel] = sum;
    }
  } else {
    store_as<S, S, W>(total, part, Place{0, 4 * int64_t{threadIdx.x}, in.hidden, false});
  }
}

// A block takes every gridDim.x-th group of rows, and sums the weight's gradient over them into
// its own row of `grad_weight`. The grid is a function of the shape alone: so is every bit.
template <typename S, int W>
__global__ void __launch_bounds__(W == kWarp ? kBlockThreads : W)
    connect_backward_kernel(ConnectBackward<S> in, bool whole) {
  constexpr int N = kVectors<S, W>;
  const bool drops = in.dropout.seed != nullptr && in.grad_h.data != nullptr;
  const bool norms = in.grad_normed.data != nullptr;
  // Wide rows do not fit registers: read twice, and totals are kept in memory.
  const bool held = in.hidden <= kRun<S, W>;
  S* part = norms ? in.grad_weight + int64_t{blockIdx.x} * in.hidden : nullptr;
  S total[N][4] = {};
  S x[N][4], grad[N][4], weight[N][4];
  const int64_t rows = in.batch * in.length, step = int64_t{gridDim.x} * blockDim.y;
  const int64_t first = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  for (int64_t row = first; row < rows; row += step) {
    Place at = {row * in.hidden, 0, in.hidden, whole};
    S inverse = 0, mean = 0;
    if (norms) {
      inverse = in.inverse[row];
      S products = 0;
      for (int64_t run = 0; run < in.hidden; run += kRun<S, W>) {
        at.channel = run + 4 * threadIdx.x;
        load_norm<S, W>(in, at, inverse, x, grad, weight);
        const Place mine = {0, at.channel, in.hidden, false};
        if (!held) {
          if (row == first) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
              for (int k = 0; k < 4; ++k) total[n][k] = 0;
            }
          } else {
            load_as<S, S, W>(total, part, mine);
          }
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            total[n][k] += grad[n][k] * x[n][k];
            grad[n][k] *= weight[n][k];
            products += grad[n][k] * x[n][k];
          }
        }
        if (!held) store_as<S, S, W>(total, part, mine);
      }
      mean = sum_over_team<S, W>(products) / static_cast<S>(in.hidden);
    }
    const uint64_t key =
        drops ? zoneout_key(*in.dropout.seed, row / in.length, row % in.length) : 0;
    for (int64_t run = 0; run < in.hidden; run += kRun<S, W>) {
      at.channel = run + 4 * threadIdx.x;
      if (norms) {
        if (!held) load_norm<S, W>(in, at, inverse, x, grad, weight);
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (!held) grad[n][k] *= weight[n][k];
            grad[n][k] = inverse * (grad[n][k] - x[n][k] * mean);
          }
        }
        if (in.grad_out.data != nullptr) {
          load<S, W>(x, in.grad_out, at);
#pragma unroll
          for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int k = 0; k < 4; ++k) grad[n][k] += x[n][k];
          }
        }
      } else {
        load<S, W>(grad, in.grad_out, at);
      }
      if (in.grad_residual.data != nullptr) store<S, W>(grad, in.grad_residual, at);
      if (drops) drop<S, W>(grad, in.dropout, key, at.channel);
      if (in.grad_h.data != nullptr) store<S, W>(grad, in.grad_h, at);
    }
  }
  if (norms && held) write_totals<S, W>(in, total);
}

// ------------------------------------------------------------------ the weight's gradient

constexpr int kSumChannels = 32, kSumSlices = 8;

// The sum of `number` rows of `parts`: slices of rows, then the slices in order.
template <typename S>
__global__ void __launch_bounds__(kSumChannels* kSumSlices)
    sum_parts_kernel(const S* parts, S* total, int64_t number, int64_t hidden) {
  __shared__ S sums[kSumSlices][kSumChannels];
  const int64_t channel = int64_t{blockIdx.x} * kSumChannels + threadIdx.x;
  S sum = 0;
  if (channel < hidden) {
#pragma unroll 8
    for (int64_t part = threadIdx.y; part < number; part += kSumSlices) {
      sum += parts[part * hidden + channel];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || channel >= hidden) return;
  sum = 0;
#pragma unroll
  for (int slice = 0; slice < kSumSlices; ++slice) sum += sums[slice][threadIdx.x];
  total[channel] = sum;
}

}  // namespace hf_qrnn::gpu
