// Form "stream": a thread takes its channels through all of time, the next steps' loads in flight.
#pragma once

#include "pool_device.cuh"

namespace hf_qrnn::gpu {

// A group of steps is on its way in registers while the one before, laid down in the thread's own
// column of shared memory, is worked through by a loop that need not be unrolled. Threads share
// nothing, so there are no barriers. Small blocks, so that few channels still reach all
// multiprocessors. The backward pass needs 48 KB for ifo in 16 bits: the most that needs no opt-in.
template <typename T>
constexpr int kStreamThreads = sizeof(T) == 8 ? 32 : 64;
template <typename T>
constexpr int kStreamGroup = sizeof(T) == 8 ? 8 : 16;
constexpr int kStreamBackwardGroup = 8;

// Places the thread, or says that it has no channels. Rows and packs share the one wide dimension
// of the grid: neither batch nor hidden meets the limit of 65,535.
template <typename T, Pooling P>
__device__ __forceinline__ bool place_in_stream(const PoolInputs<T, State<T>>& in, bool paired,
                                                Lane<T, P>& lane) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t packs = Lane<T, P>::packs(in.hidden, paired);
  if (item >= in.batch * packs) return false;
  lane.place(in, item / packs, item % packs, paired);
  return true;
}

template <typename T, Pooling P>
__global__ void __launch_bounds__(kStreamThreads<T>)
    stream_forward(PoolInputs<T, State<T>> in, ForwardOutputs<T, State<T>> out, bool paired) {
  using S = State<T>;
  constexpr int V = kChannels<T>, G = num_gates(P), N = kStreamGroup<T>;
  __shared__ Raw<T> group[N][G][kStreamThreads<T>];
  const int column = static_cast<int>(threadIdx.x);

  Lane<T, P> lane;
  if (!place_in_stream(in, paired, lane)) return;
  Pack<S, V> c = lane.row_or_zero(in.initial_state);
  const int64_t tiles = (in.length + kTile - 1) / kTile;
  RawGates<T, P, N, Part::all> next{};
  if (in.length > 0) next.load(lane, 0);
  for (int64_t start = 0; start < in.length; start += N) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int g = 0; g < G; ++g) group[n][g][column] = next.gate[n][g];
    }
    const Flags<V> flags = lane.flags(start, N, next.real);
    if (start + N < in.length) next.load(lane, start + N);
    if (out.tiles != nullptr && start % kTile == 0) {
      lane.store_state(out.tiles + lane.at_row(tiles, start / kTile), c);
    }
    const int steps = static_cast<int>(in.length - start < N ? in.length - start : N);
    int64_t at = lane.at(start, in.hidden);
#pragma unroll 2
    for (int n = 0; n < steps; ++n, at += lane.sign * in.hidden) {
      Raw<T> raw[G];
#pragma unroll
      for (int g = 0; g < G; ++g) raw[g] = group[n][g][column];
      Gates<S> gates[V];
      lane.activate_step(raw, flags, n, gates);
      advance(gates, c);
      S h[V];
#pragma unroll
      for (int v = 0; v < V; ++v) h[v] = gates[v].o * c.x[v];
      lane.store(out.h + at, h);
      if (out.c != nullptr) lane.store_state(out.c + at, c);
    }
  }
  lane.store_state(out.state + lane.at_row(1, 0), c);
}

// Tile by tile from the last: the states of a tile are recomputed from its first one, kept with
// their raw gates, then swept backwards. Every input is read from memory once.
template <typename T, Pooling P>
__global__ void __launch_bounds__(kStreamThreads<T>)
    stream_backward(PoolInputs<T, State<T>> in, BackwardArguments<T, State<T>> grads, bool paired) {
  using S = State<T>;
  constexpr int V = kChannels<T>, G = num_gates(P), N = kStreamBackwardGroup;
  constexpr int K = kGatesOf<P, Part::state>, L = kGatesOf<P, Part::output>;
  constexpr int threads = kStreamThreads<T>, tile_steps = static_cast<int>(kTile);
  __shared__ Raw<T> kept[tile_steps][K][threads];
  __shared__ Pack<S, V> states[tile_steps][threads];
  __shared__ Raw<T> late[N][L + 1][threads];  // o, where there is one, and grad_h
  __shared__ Pack<S, V> late_c[N][threads];
  const int column = static_cast<int>(threadIdx.x);

  Lane<T, P> lane;
  if (!place_in_stream(in, paired, lane)) return;
  Pack<S, V> flow = lane.row_or_zero(grads.grad_state), sums[G] = {};
  const int64_t tiles = (in.length + kTile - 1) / kTile;
  RawGates<T, P, N, Part::state> next{};
  Received<T, P, N> received{};
  if (tiles > 0) next.load(lane, (tiles - 1) * kTile);
  for (int64_t tile = tiles - 1; tile >= 0; --tile) {
    const int64_t first = tile * kTile;
    const int steps = static_cast<int>(in.length - first < kTile ? in.length - first : kTile);
    const int last_group = (steps - 1) / N * N;
    Flags<V> flags = lane.flags(first, tile_steps, ~0u);
    Pack<S, V> c = lane.load_state(grads.tiles + lane.at_row(tiles, tile));
    for (int group = 0; group <= last_group; group += N) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int k = 0; k < K; ++k) kept[group + n][k][column] = next.gate[n][k];
      }
      flags.real &= ~((~next.real & ((1u << N) - 1u)) << group);
      if (group < last_group) {
        next.load(lane, first + group + N);
      } else {
        received.load(lane, grads, first + group);
      }
      const int end = group + N < steps ? group + N : steps;
      for (int n = group; n < end; ++n) {
        Raw<T> raw[G] = {};
#pragma unroll
        for (int k = 0; k < K; ++k) raw[place_of<Part::state>(k)] = kept[n][k][column];
        Gates<S> gates[V];
        lane.activate_step(raw, flags, n, gates);
        states[n][column] = c;
        advance(gates, c);
      }
    }
    for (int group = last_group; group >= 0; group -= N) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (L > 0) late[n][0][column] = received.o.gate[n][0];
        late[n][L][column] = received.grad_h[n];
        late_c[n][column] = received.grad_c[n];
      }
      if (group > 0) {
        received.load(lane, grads, first + group - N);
      } else if (tile > 0) {
        next.load(lane, first - kTile);
      }
      const int end = group + N < steps ? group + N : steps;
      int64_t at = lane.at(first + end - 1, G * in.hidden);
      for (int n = end - 1; n >= group; --n, at -= lane.sign * G * in.hidden) {
        Raw<T> raw[G] = {};
#pragma unroll
        for (int k = 0; k < K; ++k) raw[place_of<Part::state>(k)] = kept[n][k][column];
        if constexpr (L > 0) raw[2] = late[n - group][0][column];
        Gates<S> gates[V];
        lane.activate_step(raw, flags, n, gates);
        backward_step(lane, gates, states[n][column], late[n - group][L][column],
                      late_c[n - group][column], flow, sums, grads.grad_gates + at);
      }
    }
  }
  lane.store_state(grads.grad_initial + lane.at_row(1, 0), flow);
  if (grads.grad_bias != nullptr) {
#pragma unroll
    for (int g = 0; g < G; ++g) lane.store_state(grads.grad_bias + lane.at_row(G, g), sums[g]);
  }
}

}  // namespace hf_qrnn::gpu
