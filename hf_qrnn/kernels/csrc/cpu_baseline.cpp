#define QRNN_ISA baseline
#define QRNN_SIMD_BYTES 16
#include "pool_cpu_kernels.h"
#include "connect_cpu_kernels.h"
#include "step_cpu_kernels.h"
