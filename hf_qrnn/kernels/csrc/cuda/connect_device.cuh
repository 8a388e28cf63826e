// What the connection's kernels are made of: vectors of four channels, rows, sums over a team.
//
// A team of threads owns a row at a time. A thread's vectors are W apart, so that neighbours read
// neighbouring memory; four channels are what one draw of dropout decides. Which type numbers in
// memory have is asked when the kernel runs, once for all vectors of a row: the answer is the same
// in the whole grid, and templates over every mix would be dozens of kernels.
#pragma once

#include "language.cuh"

#include "../connect_args.h"

// A test builds the kernels without these barriers and must see them fail.
#if defined(QRNN_WITHOUT_TEAM_BARRIER)
#define QRNN_TEAM_BARRIER() ((void)0)
#else
#define QRNN_TEAM_BARRIER() __syncthreads()
#endif

namespace hf_qrnn::gpu {

// Teams: a warp, several in a block, or a block of their own for wide rows.
constexpr int kWarp = 32, kWide = 256, kBlockThreads = 128;

// Vectors of four channels that a thread holds in registers at once.
template <typename S, int W>
constexpr int kVectors = (W == kWarp ? 8 : 4) * 4 / static_cast<int>(sizeof(S));

// Channels that a team holds at once; a row of more is walked in several runs.
template <typename S, int W>
constexpr int64_t kRun = int64_t{4} * W * kVectors<S, W>;

// ------------------------------------------------------------------ numbers

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

template <typename T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Vector {
  T x[4];
};

// ------------------------------------------------------------------ a thread's part of a row

// `whole` says that the row is a multiple of four channels, and every vector of it aligned.
struct Place {
  int64_t row;      // of the first channel of the row, in the tensor
  int64_t channel;  // of this thread's first vector
  int64_t hidden;
  bool whole;
};

template <typename T, typename S, int W, int N>
__device__ __forceinline__ void load_as(S (&x)[N][4], const void* data, const Place& at) {
  const T* row = static_cast<const T*>(data) + at.row;
  if (at.whole) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int64_t channel = at.channel + n * 4 * W;
      Vector<T> vector = {};
      if (channel < at.hidden) vector = *reinterpret_cast<const Vector<T>*>(row + channel);
#pragma unroll
      for (int k = 0; k < 4; ++k) x[n][k] = widen(vector.x[k]);
    }
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t channel = at.channel + n * 4 * W + k;
        x[n][k] = channel < at.hidden ? widen(row[channel]) : S(0);
      }
    }
  }
}

template <typename T, typename S, int W, int N>
__device__ __forceinline__ void store_as(const S (&x)[N][4], void* data, const Place& at) {
  T* row = static_cast<T*>(data) + at.row;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int64_t channel = at.channel + n * 4 * W;
    Vector<T> vector;
#pragma unroll
    for (int k = 0; k < 4; ++k) narrow(x[n][k], vector.x[k]);
    if (at.whole) {
      if (channel < at.hidden) *reinterpret_cast<Vector<T>*>(row + channel) = vector;
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (channel + k < at.hidden) row[channel + k] = vector.x[k];
      }
    }
  }
}

template <typename T, typename S, int N>
__device__ __forceinline__ void round_to(S (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      T rounded;
      narrow(x[n][k], rounded);
      x[n][k] = widen(rounded);
    }
  }
}

// A thread's channels of a row of `rows`; zeros beyond the last channel.
template <typename S, int W, int N>
__device__ __forceinline__ void load(S (&x)[N][4], const ConstRows& rows, const Place& at) {
  if constexpr (sizeof(S) == 8) {
    load_as<double, S, W>(x, rows.data, at);
  } else if (rows.number == Number::float32) {
    load_as<float, S, W>(x, rows.data, at);
  } else if (rows.number == Number::bfloat16) {
    load_as<__nv_bfloat16, S, W>(x, rows.data, at);
  } else {
    load_as<__half, S, W>(x, rows.data, at);
  }
}

template <typename S, int W, int N>
__device__ __forceinline__ void store(const S (&x)[N][4], const Rows& rows, const Place& at) {
  if constexpr (sizeof(S) == 8) {
    store_as<double, S, W>(x, rows.data, at);
  } else if (rows.number == Number::float32) {
    store_as<float, S, W>(x, rows.data, at);
  } else if (rows.number == Number::bfloat16) {
    store_as<__nv_bfloat16, S, W>(x, rows.data, at);
  } else {
    store_as<__half, S, W>(x, rows.data, at);
  }
}

// Gives numbers the digits that they have in memory.
template <typename S, int N>
__device__ __forceinline__ void round_as(S (&x)[N][4], Number number) {
  if constexpr (sizeof(S) == 4) {
    if (number == Number::bfloat16) round_to<__nv_bfloat16>(x);
    if (number == Number::float16) round_to<__half>(x);
  }
}

// Multiplies the channels that stay by the scale and zeroes the others, NaN too.
template <typename S, int W, int N>
__device__ __forceinline__ void drop(S (&x)[N][4], const Dropout& dropout, uint64_t key,
                                     int64_t channel) {
  const S scale = static_cast<S>(dropout.scale);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const uint64_t draw = dropout_draw(key, channel / 4 + n * W);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      x[n][k] = dropout_keeps(draw, k, dropout.threshold) ? x[n][k] * scale : S(0);
    }
  }
}

// ------------------------------------------------------------------ sums

// The sum of `x` over a team, with the same bits in every thread: always in the same order.
template <typename S, int W>
__device__ __forceinline__ S sum_over_team(S x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
  }
  if constexpr (W > kWarp) {
    __shared__ S sums[W / kWarp];
    __syncthreads();  // the sums of the row before have been read
    if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
    QRNN_TEAM_BARRIER();
    x = 0;
#pragma unroll
    for (int warp = 0; warp < W / kWarp; ++warp) x += sums[warp];
  }
  return x;
}

}  // namespace hf_qrnn::gpu
