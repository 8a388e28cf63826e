#define QRNN_ISA avx2
#define QRNN_SIMD_BYTES 32
#include "pool_cpu_kernels.h"
#include "connect_cpu_kernels.h"
#include "step_cpu_kernels.h"
