// Marks functions that kernels call; tests call them on the host.
#pragma once

#ifdef __CUDACC__
#define STOCHPRUNE_DEVICE __host__ __device__ __forceinline__
#else
#define STOCHPRUNE_DEVICE inline
#endif
