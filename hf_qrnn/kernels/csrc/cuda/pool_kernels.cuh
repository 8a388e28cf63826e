// The pooling kernels: no torch here, so that a host compiler can build and run them (tests/cuda_emulation/).
#pragma once

#include "pool_split.cuh"
#include "pool_stream.cuh"
