// Pooling on a GPU, for every operation that pools; its kernels are compiled once, in pool_cuda.cu.
#pragma once

#include "pool_device.cuh"

namespace hf_qrnn::gpu {

// In the form that the table of pool_plan.h chooses.
template <typename T, typename Stream>
void run_pool_forward(Pooling pooling, const PoolInputs<T, State<T>>& in,
                      const ForwardOutputs<T, State<T>>& out, Stream stream);

}  // namespace hf_qrnn::gpu
