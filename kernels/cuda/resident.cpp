#include "kernels/cuda/resident.h"

#include <algorithm>
#include <list>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "kernels/cuda/staging.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

struct Entry {
  std::size_t hash;
  std::vector<std::byte> bytes;
  int device;
  void* stream;
  std::byte* memory;
};

/// Kept until those of a stream take too much room; then all of the stream go. Those of others may be in other threads' hands.
class Copies {
 public:
  const std::byte* find(std::span<const std::byte> bytes, int device, void* stream) {
    const std::size_t hash = std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    const std::lock_guard lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->hash != hash || entry->device != device || entry->stream != stream || !std::ranges::equal(entry->bytes, bytes)) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return entry->memory;
    }
    constexpr std::size_t kMostBytes = std::size_t{64} << 20;
    std::size_t& total = totals_[{device, stream}];
    if (total > kMostBytes) {
      drop_all_of(device, stream);
      total = 0;
    }
    std::byte* const memory = periplus::cuda::allocate(device, std::max<std::size_t>(bytes.size(), 1));
    if (memory == nullptr)
      throw DeviceError(fmt::format("linear attention: cannot allocate {} bytes on cuda:{} for its tables", bytes.size(), device));
    entries_.push_front({hash, {bytes.begin(), bytes.end()}, device, stream, memory});
    total += bytes.size();
    copy_from_host(memory, bytes.data(), bytes.size(), static_cast<cudaStream_t>(stream));
    return memory;
  }

 private:
  void drop_all_of(int device, void* stream) {
    entries_.remove_if([&](const Entry& entry) {
      if (entry.device != device || entry.stream != stream) return false;
      periplus::cuda::release(device, entry.memory);
      return true;
    });
  }
  std::mutex mutex_;
  std::list<Entry> entries_;
  std::map<std::pair<int, void*>, std::size_t> totals_;
};

}  // namespace

const std::byte* resident_bytes(std::span<const std::byte> bytes, StreamView stream) {
  // Never destroyed: at exit the driver may be gone before it.
  static Copies& copies = *new Copies;
  return copies.find(bytes, stream.device().index, stream.native());
}

}  // namespace periplus::kernels::cuda
