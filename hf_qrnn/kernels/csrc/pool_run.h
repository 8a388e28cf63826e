// Pooling on the CPU by torch's threads, for every operation that pools.
#pragma once

#include <algorithm>

#include "tensors.h"

namespace hf_qrnn {

template <typename T, typename S>
ForwardFunction<T, S> pool_forward_function() {
#if defined(__x86_64__)
  if (current_isa() == Isa::avx512) return &avx512::forward<T, S>;
  if (current_isa() == Isa::avx2) return &avx2::forward<T, S>;
#endif
  return &baseline::forward<T, S>;
}

// Calls body(T{}, S{}) with the types of gates of `type` and of their state.
template <typename Body>
void with_pool_types(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float:
      return body(float{}, float{});
    case ScalarType::Double:
      return body(double{}, double{});
    case ScalarType::Half:
      return body(Half{}, float{});
    case ScalarType::BFloat16:
      return body(BFloat16{}, float{});
    default:
      STD_TORCH_CHECK(false, "`gates` must be float64, float32, float16 or bfloat16.");
  }
}

// Calls body(b, first, last, scratch) for every row and range of channels, on torch's threads, each
// with `num_scratch` numbers of its own. Channels are divided only where there are too few rows for
// them, in whole cache lines.
template <typename S, typename Body>
void for_each_pool_task(int64_t batch, int64_t length, int64_t hidden, int64_t num_scratch,
                        const Body& body) {
  constexpr int64_t kChannels = 64, kWorthAThread = 32768;
  // Four tasks a thread even out threads that are slower than others.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = threads > 1 ? (4 * threads + batch - 1) / std::max<int64_t>(batch, 1) : 1;
  const int64_t lines = (hidden + kChannels - 1) / kChannels;
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(lines, 1));
  const int64_t width = (lines + parts - 1) / parts * kChannels;
  const int64_t work = std::max<int64_t>(1, length * std::min(width, hidden));
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / work);
  torch::stable::parallel_for(0, batch * parts, grain, [&](int64_t begin, int64_t end) {
    const Scratch<S> scratch(num_scratch);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % parts * width;
      const int64_t last = std::min(hidden, first + width);
      if (first < hidden) body(task / parts, first, last, scratch.data);
    }
  });
}

template <typename T, typename S>
void run_pool_forward(Pooling pooling, const PoolInputs<T, S>& in, const ForwardOutputs<T, S>& out) {
  const auto run = pool_forward_function<T, S>();
  for_each_pool_task<S>(in.batch, in.length, in.hidden, 0,
                        [&](int64_t b, int64_t first, int64_t last, S*) {
                          run(pooling, in, out, b, first, last);
                        });
}

}  // namespace hf_qrnn
