// CUDA's language for a host compiler: a std::thread per CUDA thread, blocks one after the other.
//
// What runs here is the kernels' own source. What cannot be seen here is the hardware: warps that
// advance together, caches, the weaker order of memory without a barrier, speed.
#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// Blocks run one after the other, so one copy is one block's.
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_on_cpu {

// The threads of a warp, at most 32, and what each shows the others.
struct Warp {
  explicit Warp(unsigned size) : barrier(static_cast<std::ptrdiff_t>(size)) {}
  std::barrier<> barrier;
  double shown[32] = {};
};

inline thread_local std::barrier<>* block_barrier = nullptr;
inline thread_local Warp* warp = nullptr;
inline thread_local unsigned lane = 0;

}  // namespace cuda_on_cpu

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { cuda_on_cpu::block_barrier->arrive_and_wait(); }

// Of whole warps alone: every thread must come. A double holds any float.
template <typename S>
S __shfl_xor_sync(unsigned, S x, int distance) {
  cuda_on_cpu::Warp& warp = *cuda_on_cpu::warp;
  warp.shown[cuda_on_cpu::lane] = x;
  warp.barrier.arrive_and_wait();
  const S other = static_cast<S>(warp.shown[cuda_on_cpu::lane ^ static_cast<unsigned>(distance)]);
  warp.barrier.arrive_and_wait();
  return other;
}

namespace cuda_on_cpu {

// Runs `kernel` in `grid` blocks of `block` threads. The threads of a block serve all blocks, and
// meet between two of them: shared memory passes from one to the next.
template <typename Kernel>
void launch(const dim3& grid, const dim3& block, const Kernel& kernel) {
  const unsigned count = block.x * block.y * block.z;
  std::barrier<> inside(static_cast<std::ptrdiff_t>(count));
  std::barrier<> between(static_cast<std::ptrdiff_t>(count));
  std::deque<Warp> warps;  // barriers cannot move
  for (unsigned first = 0; first < count; first += 32) {
    warps.emplace_back(std::min(32u, count - first));
  }
  const auto work = [&](unsigned index) {
    block_barrier = &inside;
    warp = &warps[index / 32];
    lane = index % 32;
    blockDim = block;
    gridDim = grid;
    threadIdx = dim3(index % block.x, index / block.x % block.y, index / (block.x * block.y));
    for (unsigned number = 0; number < grid.x; ++number) {
      blockIdx = dim3(number, 0, 0);
      kernel();
      between.arrive_and_wait();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (unsigned index = 0; index < count; ++index) threads.emplace_back(work, index);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace cuda_on_cpu

#define QRNN_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), cuda_on_cpu::launch(blocks, threads, [&] { kernel(__VA_ARGS__); }))

// ------------------------------------------------------------------ device functions

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
using std::copysign;
using std::exp;
using std::fabs;
using std::sqrt;
using std::tanh;

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// ------------------------------------------------------------------ 16-bit numbers

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }

// To the nearest, ties to even; every NaN to one.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}

inline float __half2float(__half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t exponent = x.bits >> 10 & 0x1Fu, fraction = x.bits & 0x3FFu;
  // Subnormal: fraction units of 2^-24.
  if (exponent == 0) return std::copysign(std::ldexp(float(fraction), -24), __uint_as_float(sign));
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// To the nearest, ties to even.
inline __half __float2half_rn(float x) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(x) >> 16 & 0x8000u);
  const float size = std::fabs(x);
  if (std::isnan(x)) return {0x7FFF};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00u)};
  // Units of the last place at this size, which nearbyint rounds in: 2^-24 for subnormals.
  const int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
  const uint32_t units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  const uint32_t bits = units + (static_cast<uint32_t>(exponent + 14) << 10);
  return {static_cast<uint16_t>(sign | bits)};
}
