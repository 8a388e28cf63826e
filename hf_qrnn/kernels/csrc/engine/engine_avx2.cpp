#define QRNN_ISA avx2
#define QRNN_SIMD_BYTES 32
#include "engine_kernels.h"
