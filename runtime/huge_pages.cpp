#include "runtime/huge_pages.h"

#include <cstdlib>

#include <sys/mman.h>

namespace periplus {

void* allocate_in_huge_pages(std::size_t bytes) noexcept {
  void* data = nullptr;
  if (::posix_memalign(&data, kHugePageBytes, bytes) != 0) return nullptr;
  ::madvise(data, bytes, MADV_HUGEPAGE);  // only advice: a system without huge pages says no, and nothing changes
  return data;
}

}  // namespace periplus
