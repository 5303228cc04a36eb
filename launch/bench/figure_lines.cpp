#include "launch/bench/figure_lines.h"

#include <cstdio>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch::bench {

void show_progress(const std::string& text) {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  if (!terminal) return;
  std::fputs(("\r\x1b[K" + text).c_str(), stderr);
  std::fflush(stderr);
}

void print_line(const std::string& text) {
  show_progress("");
  std::fputs((text + "\n").c_str(), stdout);
  std::fflush(stdout);
}

std::vector<std::string> chosen_ids(const std::string& only, const std::vector<std::string>& known, const std::string& option) {
  std::vector<std::string> wanted(1);
  for (const char c : only) {
    if (c == ',') {
      wanted.emplace_back();
    } else {
      wanted.back() += c;
    }
  }
  for (const std::string& id : wanted) {
    if (std::ranges::find(known, id) == known.end()) {
      throw InvalidArgument(
          fmt::format("{}: there is no figure '{}'{}; there are {}", option, id, did_you_mean(id, known), fmt::join(known, ", ")));
    }
  }
  return wanted;
}

}  // namespace periplus::launch::bench
