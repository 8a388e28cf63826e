#define QRNN_ISA avx512
#define QRNN_SIMD_BYTES 64
#include "pool_cpu_kernels.h"
#include "connect_cpu_kernels.h"
#include "step_cpu_kernels.h"
