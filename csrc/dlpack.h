// The part of DLPack's C interface that describes a tensor's memory without a call of Python: dlpack.h of
// github.com/dmlc/dlpack, version 1.3. torch exports it as torch.Tensor.__dlpack_c_exchange_api__.
#pragma once
#include <cstdint>

namespace stochprune::dlpack {

enum DeviceType : int32_t { kCpu = 1 };
enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

struct DataType {
  TypeCode code;
  uint8_t bits;
  uint16_t lanes;

  bool operator==(const DataType&) const = default;
};
constexpr DataType kFloat32{kFloat, 32, 1}, kBfloat16{kBfloat, 16, 1}, kInt64{kInt, 64, 1};

struct Tensor {
  void* data;
  DeviceType device;
  int32_t device_id, dimensions;
  DataType dtype;
  int64_t *shape, *strides;  // of the tensor itself, valid until it changes
  uint64_t byte_offset;
};

struct Exchange {
  uint32_t major, minor;
  const Exchange* older;                        // the functions of an older major version
  void *allocate, *from_object, *to_object;     // not used
  int (*describe)(void* object, Tensor* to);    // 0, or -1 and a Python error; `object` is a tensor
  void* stream;                                 // not used
};

}  // namespace stochprune::dlpack
