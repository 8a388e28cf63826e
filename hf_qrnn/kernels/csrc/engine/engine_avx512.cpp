#define QRNN_ISA avx512
#define QRNN_SIMD_BYTES 64
#include "engine_kernels.h"
