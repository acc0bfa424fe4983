// For functions that a kernel calls, and the host in tests.
#pragma once

#ifdef __CUDACC__
#define STOCHPRUNE_DEVICE __host__ __device__ __forceinline__
#else
#define STOCHPRUNE_DEVICE inline
#endif
