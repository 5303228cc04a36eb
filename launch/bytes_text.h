#pragma once

#include <string>

namespace periplus::launch {

/// "216.1 MiB".
std::string bytes_text(double bytes);

}  // namespace periplus::launch
