// Memory of devices, and of the host for copies to them. Freed blocks are kept: cudaMalloc and cudaFree take a tenth of a millisecond and
// more, and what a training step needs is about the same in every step.
#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "runtime/cuda/check.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/home_stream.h"
#include "runtime/error.h"

namespace periplus::cuda {
namespace {

/// Of the current device. nullptr if there is not so much.
std::byte* new_block(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "cudaMalloc");
  return static_cast<std::byte*>(data);
}

/// Of the calling thread; null without one.
thread_local const Stream* home = nullptr;

/// A block that nobody has, and the stream that may still use it until `free`; null if nothing does.
struct Kept {
  std::byte* data;
  void* user = nullptr;
  Event free{};

  bool ready() const { return user == nullptr || (home != nullptr && home->native() == user) || free.done(); }
};

/// One device's blocks.
class Blocks {
 public:
  std::byte* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    // Not one that is much larger: it would be missed elsewhere.
    for (auto kept = kept_.lower_bound(bytes); kept != kept_.end() && kept->first - bytes <= bytes / 8; ++kept) {
      if (!kept->second.ready()) continue;
      std::byte* const data = kept->second.data;
      sizes_[data] = kept->first;
      kept_bytes_ -= kept->first;
      kept_.erase(kept);
      return data;
    }
    std::byte* data = new_block(bytes);
    if (data == nullptr && !kept_.empty()) {
      free_kept();
      data = new_block(bytes);
    }
    if (data != nullptr) sizes_[data] = bytes;
    return data;
  }

  void give(Kept block, std::size_t most_kept) {
    const std::lock_guard lock(mutex_);
    const auto entry = sizes_.find(block.data);
    const std::size_t bytes = entry->second;
    sizes_.erase(entry);
    if (kept_bytes_ + bytes > most_kept) {
      cudaFree(block.data);
    } else {
      kept_.emplace(bytes, std::move(block));
      kept_bytes_ += bytes;
    }
  }

 private:
  void free_kept() {
    for (const auto& [bytes, block] : kept_) cudaFree(block.data);
    kept_.clear();
    kept_bytes_ = 0;
  }

  std::mutex mutex_;
  std::unordered_map<std::byte*, std::size_t> sizes_;  // of what is in use
  std::multimap<std::size_t, Kept> kept_;
  std::size_t kept_bytes_ = 0;
};

Blocks& blocks_of(int index) {
  static std::mutex mutex;
  // Never destroyed: at exit the driver may be gone before it.
  static auto& all = *new std::map<int, Blocks>;
  const std::lock_guard lock(mutex);
  return all[index];
}

/// Work areas that kernels free in stream order stay with the process too: by default every wait gives them back to the driver.
void keep_work_areas(int index) {
  static std::once_flag done[64];
  std::call_once(done[index % std::size(done)], [index] {
    cudaMemPool_t pool = nullptr;
    std::uint64_t all = UINT64_MAX;
    check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "cudaMemPoolSetAttribute");
  });
}

}  // namespace

std::byte* allocate(int index, std::size_t bytes) {
  if (device_count() == 0) throw BackendUnavailable("cuda: " + unavailable_reason());
  const CurrentDevice current(index);
  keep_work_areas(index);
  if (std::byte* const data = blocks_of(index).take(bytes)) return data;
  // Work areas that nobody uses may be what is missing.
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  check(cudaMemPoolTrimTo(pool, 0), "cudaMemPoolTrimTo");
  return blocks_of(index).take(bytes);
}

void release(int index, std::byte* data) noexcept {
  if (data == nullptr) return;
  try {
    const CurrentDevice current(index);
    Kept block{data};
    if (home != nullptr && home->device().index == index) {
      block.user = home->native();
      block.free = Event(index);
      block.free.record(*home);
    } else {
      check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
    blocks_of(index).give(std::move(block), known_properties(index).memory_bytes / 8);
  } catch (const std::exception&) {
    // At exit the driver may be gone already, and the memory with it. A device that has failed gives it back when the process ends.
  }
}

HomeStream::HomeStream(const Stream& stream) : stream_(stream) { home = &stream_; }
HomeStream::~HomeStream() {
  home = nullptr;
  drain(stream_);
}

std::byte* allocate_pinned(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMallocHost(&data, bytes);
  if (status != cudaSuccess) check(status, fmt::format("cudaMallocHost of {} bytes of the host's memory", bytes));
  return static_cast<std::byte*>(data);
}
void release_pinned(std::byte* data) noexcept { cudaFreeHost(data); }

}  // namespace periplus::cuda
