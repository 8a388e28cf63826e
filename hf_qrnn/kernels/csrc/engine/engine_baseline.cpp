#define QRNN_ISA baseline
#define QRNN_SIMD_BYTES 16
#include "engine_kernels.h"
