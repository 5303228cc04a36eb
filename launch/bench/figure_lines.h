#pragma once

#include <algorithm>
#include <string>
#include <vector>

/// What the suites that print one line a figure share.
namespace periplus::launch::bench {

/// One line on standard error that replaces itself; nothing where nobody looks.
void show_progress(const std::string& text);
/// A line of the report, in place of the progress.
void print_line(const std::string& text);

/// The ids that `only`, the value of `option`, lists, separated by commas; throws InvalidArgument, with a suggestion, if one is not in
/// `known`.
std::vector<std::string> chosen_ids(const std::string& only, const std::vector<std::string>& known, const std::string& option);

/// Leaves the figures whose ids are listed in `only`; all if it is empty.
template <class Figure>
void keep_chosen(std::vector<Figure>& figures, const std::string& only, const std::string& option) {
  if (only.empty()) return;
  std::vector<std::string> known;
  for (const Figure& figure : figures) {
    if (std::ranges::find(known, figure.id) == known.end()) known.push_back(figure.id);
  }
  const std::vector<std::string> wanted = chosen_ids(only, known, option);
  std::erase_if(figures, [&](const Figure& figure) { return std::ranges::find(wanted, figure.id) == wanted.end(); });
}

}  // namespace periplus::launch::bench
