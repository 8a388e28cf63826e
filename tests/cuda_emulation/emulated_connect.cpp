// The connection's CUDA kernels and operations on the CPU: in the library of emulated.cpp.
#include "connect_cuda.cu"
