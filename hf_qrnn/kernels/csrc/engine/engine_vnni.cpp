#define QRNN_ISA vnni
#define QRNN_SIMD_BYTES 64
#include "engine_kernels.h"
