#include "runtime/host.h"

#include <array>
#include <fstream>

#include <unistd.h>

namespace periplus {

std::string host_name() {
  std::array<char, 256> text{};
  return gethostname(text.data(), text.size() - 1) == 0 ? std::string(text.data()) : std::string("unknown");
}

std::string host_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  std::getline(file, text);
  return text.empty() ? host_name() : text;
}

}  // namespace periplus
