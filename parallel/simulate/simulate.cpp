#include "parallel/simulate/simulate.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "runtime/error.h"

namespace periplus::simulate {
namespace {

using plan::Op;
using plan::Program;
using plan::Step;

/// Where one rank stands while the plan is played phase by phase.
struct Playback {
  const Program* program = nullptr;
  std::size_t next = 0;                            ///< Step to play.
  std::vector<double> end;                         ///< Per step.
  std::array<double, plan::kQueues> queue_free{};  ///< When each queue's last step ends.
  RankTime time;
};

double start_of(const Playback& rank, const Step& step) {
  double start = rank.queue_free[static_cast<std::size_t>(plan::queue_of(step))];
  for (const plan::StepId other : rank.program->after_of(step)) start = std::max(start, rank.end[static_cast<std::size_t>(other)]);
  return start;
}

void finish_step(Playback& rank, Tracer& trace, double start, double end) {
  const Step& step = rank.program->steps[rank.next];
  rank.queue_free[static_cast<std::size_t>(plan::queue_of(step))] = end;
  rank.end[rank.next] = end;
  rank.time.finish = std::max(rank.time.finish, end);
  const std::string name = step.label.index < 0 ? std::string(step.label.text) : fmt::format("{} {}", step.label.text, step.label.index);
  const std::string track = step.op == Op::exchange ? fmt::format("lane {}", step.lane) : "compute";
  trace.record({fmt::format("{}: {}", plan::info(step.op).name, name), track, start * 1e6, (end - start) * 1e6, static_cast<int>(rank.next),
                plan::bytes(*rank.program, step)});
  ++rank.next;
}

/// Plays compute steps up to the next exchange.
void play_compute(Playback& rank, const Costs& costs, Tracer& trace) {
  while (rank.next < rank.program->steps.size() && rank.program->steps[rank.next].op != Op::exchange) {
    const Step& step = rank.program->steps[rank.next];
    const double start = start_of(rank, step), seconds = costs.compute(*rank.program, step);
    rank.time.compute += seconds;
    rank.time.exposed += start - rank.queue_free[0];
    finish_step(rank, trace, start, start + seconds);
  }
}

int next_phase(const std::vector<Playback>& ranks) {
  int phase = std::numeric_limits<int>::max();
  for (const Playback& rank : ranks) {
    if (rank.next < rank.program->steps.size()) phase = std::min(phase, rank.program->steps[rank.next].phase);
  }
  return phase;
}

/// All exchanges of one phase: they start where their ranks are, and end when their messages have.
void play_phase(std::vector<Playback>& ranks, std::vector<Tracer>& traces, int phase, const Costs& costs) {
  const auto in_phase = [&](const Playback& rank) {
    return rank.next < rank.program->steps.size() && rank.program->steps[rank.next].phase == phase;
  };
  std::vector<double> start(ranks.size(), 0), end(ranks.size(), 0);
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (in_phase(ranks[r])) start[r] = end[r] = start_of(ranks[r], ranks[r].program->steps[ranks[r].next]);
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (!in_phase(ranks[r])) continue;
    const Program& program = *ranks[r].program;
    for (const plan::Message& m : program.sends_of(program.steps[ranks[r].next])) {
      const auto peer = static_cast<std::size_t>(m.peer);
      if (peer >= ranks.size() || !in_phase(ranks[peer])) {
        throw InvalidArgument(
            fmt::format("simulate: rank {} sends to rank {} in phase {}, which takes no part in it; verify the plan", r, peer, phase));
      }
      const double done = std::max(start[r], start[peer]) + costs.message(static_cast<int>(r), m.peer, program.bytes_of(m.view));
      end[r] = std::max(end[r], done);
      end[peer] = std::max(end[peer], done);
    }
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (in_phase(ranks[r])) finish_step(ranks[r], traces[r], start[r], end[r]);
  }
}

}  // namespace

// Phases rise along every program and `after` points backward, so playing phase by phase meets every step after all it
// waits for; no event queue is needed.
Timeline simulate(const plan::Plan& plan, const Costs& costs) {
  Timeline timeline;
  std::vector<Playback> ranks(plan.programs.size());
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    ranks[r].program = &plan.programs[r];
    ranks[r].end.assign(plan.programs[r].steps.size(), 0);
    timeline.traces.emplace_back(static_cast<int>(r));
  }
  while (true) {
    for (std::size_t r = 0; r < ranks.size(); ++r) play_compute(ranks[r], costs, timeline.traces[r]);
    const int phase = next_phase(ranks);
    if (phase == std::numeric_limits<int>::max()) break;
    play_phase(ranks, timeline.traces, phase, costs);
  }
  for (const Playback& rank : ranks) timeline.makespan = std::max(timeline.makespan, rank.time.finish);
  for (Playback& rank : ranks) {
    rank.time.exposed += rank.time.finish - rank.queue_free[0];
    rank.time.idle = timeline.makespan - rank.time.compute;
    timeline.ranks.push_back(rank.time);
  }
  return timeline;
}

}  // namespace periplus::simulate
