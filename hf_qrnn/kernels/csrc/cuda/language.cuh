// CUDA's language with its 16-bit numbers; in builds for the CPU its stand-in, of the tests.
#pragma once

#if defined(QRNN_EMULATE_CUDA)
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
