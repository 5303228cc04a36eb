#pragma once

#include <string>
#include <vector>

#include <fmt/format.h>

#include "parallel/attention.h"

namespace periplus::test {

/// "lane: peers that are sent to", one entry an exchange of this rank.
inline std::vector<std::string> routes(const AttentionProblem& problem, const AttentionOptions& options, Pass pass, int rank) {
  const plan::Program program = make_program(problem, options, pass, rank);
  std::vector<std::string> all;
  for (const plan::Step& step : program.steps) {
    if (step.op != plan::Op::exchange) continue;
    std::string text = fmt::format("{}:", step.lane);
    int last = -1;
    for (const plan::Message& m : program.sends_of(step)) {
      if (m.peer != last) text += fmt::format(" {}", m.peer);
      last = m.peer;
    }
    all.push_back(text);
  }
  return all;
}

}  // namespace periplus::test
