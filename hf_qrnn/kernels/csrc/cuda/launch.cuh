// How kernels are launched, on a GPU and on the CPU of tests.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(QRNN_EMULATE_CUDA)
#define QRNN_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace hf_qrnn::gpu {

inline bool is_aligned(const void* address, size_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

}  // namespace hf_qrnn::gpu
