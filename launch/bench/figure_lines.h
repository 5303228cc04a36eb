#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "launch/bench/report.h"

/// What the suites that print one line a figure share.
namespace periplus::launch::bench {

/// One line on standard error that replaces itself; nothing where nobody looks.
void show_progress(const std::string& text);
/// A line of the report, in place of the progress.
void print_line(const std::string& text);

/// One figure of a suite; several may share an id. `measure` may name its lines itself.
template <class Sampling>
struct FigureOf {
  std::string id, name;
  std::function<std::vector<Line>(Sampling&)> measure;
};

/// Prints the header, unless in JSON, and a line as soon as it is measured. Returns whether one `misses`.
template <class Sampling>
bool print_figures(bool json, const std::vector<FigureOf<Sampling>>& figures, Sampling& sampling) {
  if (!json) print_line(text_header());
  bool missed = false;
  for (const FigureOf<Sampling>& figure : figures) {
    const std::string title = figure.id + " " + figure.name;
    show_progress(title);
    if constexpr (requires { sampling.progress; }) sampling.progress = [&](const std::string& text) { show_progress(title + ": " + text); };
    for (Line& line : figure.measure(sampling)) {
      if (line.id.empty()) line.id = figure.id;
      if (line.name.empty()) line.name = figure.name;
      print_line(json ? to_json_line(line) : to_text(line));
      missed = misses(line) || missed;
    }
  }
  return missed;
}

/// The ids that `only`, the value of `option`, lists, separated by commas; throws InvalidArgument, with a suggestion, if one is not in
/// `known`.
std::vector<std::string> chosen_ids(const std::string& only, const std::vector<std::string>& known, const std::string& option);

/// Leaves the figures whose ids are listed in `only`, the value of `option`; all if it is empty.
template <class Figure>
void keep_chosen(std::vector<Figure>& figures, const std::string& only, const std::string& option = "--only") {
  if (only.empty()) return;
  std::vector<std::string> known;
  for (const Figure& figure : figures) {
    if (std::ranges::find(known, figure.id) == known.end()) known.push_back(figure.id);
  }
  const std::vector<std::string> wanted = chosen_ids(only, known, option);
  std::erase_if(figures, [&](const Figure& figure) { return std::ranges::find(wanted, figure.id) == wanted.end(); });
}

}  // namespace periplus::launch::bench
