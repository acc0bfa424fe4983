// The CUDA backend's own code, thread after thread on the host.
#include "bindings.h"

PYBIND11_MODULE(emulation, m) { stochprune::bind_cuda(m); }
