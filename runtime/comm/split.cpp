#include "runtime/comm/split.h"

#include <algorithm>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::comm {

Fragment fragment(std::size_t bytes, std::size_t index) {
  if (index >= fragment_count(bytes)) throw InternalError(fmt::format("fragment: a message of {} bytes has no fragment {}", bytes, index));
  const std::size_t offset = index * kFragmentBytes;
  return {offset, static_cast<int>(std::min(kFragmentBytes, bytes - offset))};
}

}  // namespace periplus::comm
