#include "kernels/cuda/resident.h"

#include <algorithm>
#include <functional>
#include <string_view>
#include <vector>

#include <cuda_runtime.h>

#include "kernels/cuda/staging.h"
#include "kernels/cuda/stream_cache.h"
#include "runtime/memory.h"

namespace periplus::kernels::cuda {
namespace {

struct Copy {
  std::vector<std::byte> original;
  Buffer memory;
  std::size_t bytes() const { return original.size(); }
};

Copy make_copy(std::span<const std::byte> bytes, StreamView stream) {
  Buffer memory(std::max<std::size_t>(bytes.size(), 1), Memory(stream.device()));
  copy_from_host(memory.data(), bytes.data(), bytes.size(), static_cast<cudaStream_t>(stream.native()));
  return {{bytes.begin(), bytes.end()}, std::move(memory)};
}

}  // namespace

std::shared_ptr<const std::byte> resident_bytes(std::span<const std::byte> bytes, StreamView stream) {
  // Never destroyed: at exit the driver may be gone before it.
  static StreamCache<Copy>& copies = *new StreamCache<Copy>;
  const std::size_t hash = std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  const auto copy = copies.find(
      stream, hash, [&](const Copy& kept) { return std::ranges::equal(kept.original, bytes); }, [&] { return make_copy(bytes, stream); });
  return {copy, copy->memory.data()};
}

}  // namespace periplus::kernels::cuda
