#pragma once

#include <string>
#include <utility>

#include <fmt/format.h>

namespace periplus::plan {

/// What verify() found wrong, on its way to who looks for it.
struct Failure {
  std::string what;
};

template <class... Args>
void require(bool holds, fmt::format_string<Args...> what, Args&&... args) {
  if (!holds) throw Failure{fmt::format(what, std::forward<Args>(args)...)};
}

}  // namespace periplus::plan
