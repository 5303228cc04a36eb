#include "kernels/cuda/staging.h"

#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "runtime/cuda/check.h"
#include "runtime/cuda/device.h"

namespace periplus::kernels::cuda {
namespace {

using periplus::cuda::check;

/// What the driver copies aside by itself.
constexpr std::size_t kDriverBytes = std::size_t{64} << 10;

struct Block {
  std::byte* data;
  cudaEvent_t copied;
};

/// Blocks of equal size are used in turn. There are as many as were once under way at a time.
class Staging {
 public:
  void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const std::size_t size = std::bit_ceil(bytes);
    const std::lock_guard lock(mutex_);
    std::deque<Block>& blocks = blocks_[{device, size}];
    const Block block = free_block(blocks, size);
    std::memcpy(block.data, from, bytes);
    check(cudaMemcpyAsync(to, block.data, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync of staged memory");
    check(cudaEventRecord(block.copied, stream), "cudaEventRecord");
    blocks.push_back(block);
  }

 private:
  static Block free_block(std::deque<Block>& blocks, std::size_t size) {
    if (!blocks.empty()) {
      const cudaError_t status = cudaEventQuery(blocks.front().copied);
      if (status == cudaSuccess) {
        const Block oldest = blocks.front();
        blocks.pop_front();
        return oldest;
      }
      cudaGetLastError();  // "not ready" would be found by the next launch
      if (status != cudaErrorNotReady) check(status, "cudaEventQuery");
    }
    Block block{periplus::cuda::allocate_pinned(size), nullptr};
    check(cudaEventCreateWithFlags(&block.copied, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return block;
  }

  std::mutex mutex_;
  std::map<std::pair<int, std::size_t>, std::deque<Block>> blocks_;  // by device and size
};

}  // namespace

void copy_from_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  if (bytes <= kDriverBytes) return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  // Never destroyed: at exit the driver may be gone before it.
  static Staging& staging = *new Staging;
  staging.copy(to, from, bytes, stream);
}

}  // namespace periplus::kernels::cuda
