// Form "split": a block takes a few channels of one row and divides each chunk of time among its
// threads: few channels, many steps.
#pragma once

#include "pool_device.cuh"

// A test builds the kernels without this barrier and must see them fail.
#if defined(QRNN_WITHOUT_CARRY_BARRIER)
#define QRNN_CARRY_BARRIER() ((void)0)
#else
#define QRNN_CARRY_BARRIER() __syncthreads()
#endif

namespace hf_qrnn::gpu {

// Steps of a slice: with their gates in registers a slice is read from memory once, and its states
// cost two sweeps over registers. A divisor of kTile: tiles begin where slices begin.
constexpr int kSlice = 4;
constexpr int kSplitThreads = 256;
constexpr int kSlicesOfTile = static_cast<int>(kTile) / kSlice;
static_assert(kTile % kSlice == 0, "tiles begin where slices begin");

// Blocks lie on the one wide dimension of the grid, row by row.
template <typename T, Pooling P>
__device__ __forceinline__ void place_in_split(const PoolInputs<T, State<T>>& in, bool paired,
                                               Lane<T, P>& lane) {
  const int64_t packs = Lane<T, P>::packs(in.hidden, paired);
  const int64_t runs = (packs + blockDim.x - 1) / blockDim.x;
  const int64_t run = static_cast<int64_t>(blockIdx.x) % runs;
  lane.place(in, static_cast<int64_t>(blockIdx.x) / runs, run * blockDim.x + threadIdx.x, paired);
}

// What a slice makes of the state before it.
template <typename S, int V>
__device__ __forceinline__ Pack<S, V> follow(Pack<S, V> c, const Pack<S, V>& decay,
                                             const Pack<S, V>& end) {
#pragma unroll
  for (int v = 0; v < V; ++v) c.x[v] = decay.x[v] * c.x[v] + end.x[v];
  return c;
}

// A slice carries c to decay . c + end. Slices are combined in their order by every thread that
// needs them, from shared memory: the same order in every run. Two buffers, used in turn, make one
// barrier a chunk enough: who writes a buffer has passed the barrier behind its last readers.
template <typename T, Pooling P>
__global__ void __launch_bounds__(kSplitThreads)
    split_forward(PoolInputs<T, State<T>> in, ForwardOutputs<T, State<T>> out, bool paired) {
  using S = State<T>;
  constexpr int V = kChannels<T>, G = num_gates(P), N = kSlice;
  __shared__ Pack<S, V> decays[2][kSplitThreads];
  __shared__ Pack<S, V> ends[2][kSplitThreads];
  const int x = static_cast<int>(threadIdx.x), slice = static_cast<int>(threadIdx.y);
  const int lanes = static_cast<int>(blockDim.x), slices = static_cast<int>(blockDim.y);

  Lane<T, P> lane;
  place_in_split(in, paired, lane);
  Pack<S, V> carry = lane.row_or_zero(in.initial_state);
  const int64_t chunk = static_cast<int64_t>(slices) * N;
  const int64_t tiles = (in.length + kTile - 1) / kTile;
  RawGates<T, P, N, Part::all> now{}, next{};
  if (in.length > 0) now.load(lane, slice * N);
  int buffer = 0;
  for (int64_t begin = 0; begin < in.length; begin += chunk, buffer ^= 1) {
    const int64_t start = begin + slice * N;
    const bool more = begin + chunk < in.length;
    if (more) next.load(lane, start + chunk);

    // A step past the end carries the state, as a pad does.
    const Flags<V> flags = lane.flags(start, N, now.real);
    Gates<S> gates[N][V];
    Pack<S, V> decay, end = {};
#pragma unroll
    for (int v = 0; v < V; ++v) decay.x[v] = 1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Raw<T> raw[G];
      now.spread(n, raw);
      lane.activate_step(raw, flags, n, gates[n]);
      advance(gates[n], end);
#pragma unroll
      for (int v = 0; v < V; ++v) decay.x[v] *= gates[n][v].f;
    }
    decays[buffer][slice * lanes + x] = decay;
    ends[buffer][slice * lanes + x] = end;
    QRNN_CARRY_BARRIER();
    Pack<S, V> c = {};
    for (int other = 0; other < slices; ++other) {
      if (other == slice) c = carry;
      carry = follow(carry, decays[buffer][other * lanes + x], ends[buffer][other * lanes + x]);
    }
    if (out.tiles != nullptr && start % kTile == 0 && start < in.length) {
      lane.store_state(out.tiles + lane.at_row(tiles, start / kTile), c);
    }
    int64_t at = lane.at(start, in.hidden);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (start + n >= in.length) break;
      advance(gates[n], c);
      S h[V];
#pragma unroll
      for (int v = 0; v < V; ++v) h[v] = gates[n][v].o * c.x[v];
      lane.store(out.h + at, h);
      if (out.c != nullptr) lane.store_state(out.c + at, c);
      at += lane.sign * in.hidden;
    }
    // The owner of the last step: its c is the one that `c` of that step holds, to the bit.
    if (start < in.length && start + N >= in.length) {
      lane.store_state(out.state + lane.at_row(1, 0), c);
    }
    if (more) now = next;
  }
  if (in.length == 0 && slice == 0) {
    lane.store_state(out.state + lane.at_row(1, 0), carry);
  }
}

// Both directions of a chunk share a barrier: a slice sends `flow` back as decay . flow + back, and
// neither `end` nor `back` needs what the other direction brings. Chunks hold whole tiles, so that
// the state before a slice follows from its tile and the slices since.
template <typename T, Pooling P>
__global__ void __launch_bounds__(kSplitThreads)
    split_backward(PoolInputs<T, State<T>> in, BackwardArguments<T, State<T>> grads, bool paired) {
  using S = State<T>;
  constexpr int V = kChannels<T>, G = num_gates(P), N = kSlice;
  __shared__ Pack<S, V> decays[2][kSplitThreads];
  __shared__ Pack<S, V> ends[2][kSplitThreads];
  __shared__ Pack<S, V> backs[2][kSplitThreads];
  __shared__ Pack<S, V> totals[kSplitThreads];
  const int x = static_cast<int>(threadIdx.x), slice = static_cast<int>(threadIdx.y);
  const int lanes = static_cast<int>(blockDim.x), slices = static_cast<int>(blockDim.y);

  Lane<T, P> lane;
  place_in_split(in, paired, lane);
  Pack<S, V> carry = lane.row_or_zero(grads.grad_state), sums[G] = {};
  const int64_t chunk = static_cast<int64_t>(slices) * N;
  const int64_t tiles = (in.length + kTile - 1) / kTile;
  const int64_t last = (in.length - 1) / chunk * chunk;
  RawGates<T, P, N, Part::state> now{}, next{};
  Received<T, P, N> received{}, next_received{};
  if (in.length > 0) {
    now.load(lane, last + slice * N);
    received.load(lane, grads, last + slice * N);
  }
  int buffer = 0;
  for (int64_t begin = last; begin >= 0 && in.length > 0; begin -= chunk, buffer ^= 1) {
    const int64_t start = begin + slice * N;
    if (begin > 0) {
      next.load(lane, start - chunk);
      next_received.load(lane, grads, start - chunk);
    }
    // Asked for before the sweep below, used behind the barrier.
    const int64_t tile = start / kTile < tiles ? start / kTile : tiles - 1;
    Pack<S, V> c = lane.load_state(grads.tiles + lane.at_row(tiles, tile));

    const Flags<V> flags = lane.flags(start, N, now.real);
    Gates<S> gates[N][V];
    Pack<S, V> decay, end = {}, back = {};
#pragma unroll
    for (int v = 0; v < V; ++v) decay.x[v] = 1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Raw<T> raw[G];
      now.spread(n, raw);
      received.o.spread(n, raw);
      lane.activate_step(raw, flags, n, gates[n]);
      advance(gates[n], end);
#pragma unroll
      for (int v = 0; v < V; ++v) decay.x[v] *= gates[n][v].f;
    }
#pragma unroll
    for (int n = N - 1; n >= 0; --n) {
      if (start + n >= in.length) continue;
      S from_h[V];
      Packed<T>::unpack(received.grad_h[n], from_h);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const S grad = from_h[v] * gates[n][v].o + received.grad_c[n].x[v] + back.x[v];
        back.x[v] = gates[n][v].f * grad;
      }
    }
    decays[buffer][slice * lanes + x] = decay;
    ends[buffer][slice * lanes + x] = end;
    backs[buffer][slice * lanes + x] = back;
    QRNN_CARRY_BARRIER();
    Pack<S, V> flow = {};
    for (int other = slices - 1; other >= 0; --other) {
      if (other == slice) flow = carry;
      carry = follow(carry, decays[buffer][other * lanes + x], backs[buffer][other * lanes + x]);
    }
    for (int other = slice / kSlicesOfTile * kSlicesOfTile; other < slice; ++other) {
      c = follow(c, decays[buffer][other * lanes + x], ends[buffer][other * lanes + x]);
    }
    Pack<S, V> before[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      before[n] = c;
      advance(gates[n], c);
    }
    int64_t at = lane.at(start + N - 1, G * in.hidden);
#pragma unroll
    for (int n = N - 1; n >= 0; --n, at -= lane.sign * G * in.hidden) {
      if (start + n >= in.length) continue;
      backward_step(lane, gates[n], before[n], received.grad_h[n], received.grad_c[n], flow, sums,
                    grads.grad_gates + at);
    }
    if (begin > 0) {
      now = next;
      received = next_received;
    }
  }
  if (slice == 0) lane.store_state(grads.grad_initial + lane.at_row(1, 0), carry);
  if (grads.grad_bias == nullptr) return;
  // The slices' sums, gate by gate, added in the order of the slices.
#pragma unroll
  for (int g = 0; g < G; ++g) {
    totals[slice * lanes + x] = sums[g];
    __syncthreads();
    if (slice == 0) {
      Pack<S, V> total = {};
      for (int other = 0; other < slices; ++other) {
#pragma unroll
        for (int v = 0; v < V; ++v) total.x[v] += totals[other * lanes + x].x[v];
      }
      lane.store_state(grads.grad_bias + lane.at_row(G, g), total);
    }
    __syncthreads();
  }
}

}  // namespace hf_qrnn::gpu
