#include "kernels/cuda/occupy.h"
#include "runtime/cuda/check.h"

namespace periplus::kernels::cuda {
namespace {

__global__ void wait_until(const volatile int* over) {
  while (*over == 0) __nanosleep(1000);
}

}  // namespace

Occupation::Occupation(int device, int multiprocessors) : stream_(periplus::cuda::make_stream(device, periplus::cuda::Priority::high)) {
  const periplus::cuda::CurrentDevice current(device);
  over_ = reinterpret_cast<int*>(periplus::cuda::allocate_pinned(sizeof(int)));
  *over_ = 0;
  const int bytes = periplus::cuda::known_properties(device).shared_bytes_per_block;
  periplus::cuda::check(cudaFuncSetAttribute(wait_until, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute for wait_until");
  wait_until<<<multiprocessors, 32, bytes, static_cast<cudaStream_t>(stream_.native())>>>(over_);
  periplus::cuda::check(cudaGetLastError(), "launch of wait_until");
}

Occupation::~Occupation() {
  *over_ = 1;
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream_.native()));
  periplus::cuda::release_pinned(reinterpret_cast<std::byte*>(const_cast<int*>(over_)));
}

}  // namespace periplus::kernels::cuda
