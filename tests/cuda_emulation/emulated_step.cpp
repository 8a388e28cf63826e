// The CUDA kernels and operation of a decoder's step on the CPU: in the library of emulated.cpp.
#include "step_cuda.cu"
