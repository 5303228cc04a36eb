#include "parallel/simulate/simulate.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/trace_event.h"
#include "runtime/error.h"

namespace periplus::simulate {
namespace {

using plan::Op;
using plan::Program;
using plan::Step;
using plan::StepId;

struct StepTime {
  double begin = 0, end = 0;
  bool started = false, finished = false;
  std::size_t open = 0;              ///< Exchanges: messages whose peer has not started.
  std::optional<double> all_to_all;  ///< all_to_all_seconds, once a message has asked.
};

/// One rank: how far each queue has come.
struct Playback {
  const Program* program = nullptr;
  std::array<std::vector<StepId>, plan::kQueues> queues;
  std::array<std::size_t, plan::kQueues> next{};
  std::array<bool, plan::kQueues> busy{};
  std::vector<StepId> exchanges;  ///< By rising phase.
  std::vector<StepTime> times;
  double compute_free = 0;
  StepId computing = -1;   ///< The compute step that runs; -1: none.
  std::size_t moving = 0;  ///< Messages to or from this rank that are on their way.
  RankTime time;

  explicit Playback(const Program& of) : program(&of), times(of.steps.size()) {
    for (std::size_t id = 0; id < of.steps.size(); ++id) {
      queues[static_cast<std::size_t>(plan::queue_of(of.steps[id]))].push_back(static_cast<StepId>(id));
      if (of.steps[id].op == Op::exchange) exchanges.push_back(static_cast<StepId>(id));
    }
  }
  const Step& step(StepId id) const { return program->steps[static_cast<std::size_t>(id)]; }
  StepTime& at(StepId id) { return times[static_cast<std::size_t>(id)]; }
  /// The exchange of a phase, or -1.
  StepId exchange_of(int phase) const {
    const auto found = std::lower_bound(exchanges.begin(), exchanges.end(), phase, [&](StepId id, int p) { return step(id).phase < p; });
    return found != exchanges.end() && step(*found).phase == phase ? *found : -1;
  }
  bool ready(StepId id) {
    const auto after = program->after_of(step(id));
    return std::all_of(after.begin(), after.end(), [&](StepId other) { return at(other).finished; });
  }
};

class Simulation {
 public:
  Simulation(const plan::Plan& plan, const Costs& costs) : costs_(costs), network_(costs.links, static_cast<int>(plan.programs.size())) {
    for (const Program& program : plan.programs) ranks_.emplace_back(program);
    if (!costs.starts.empty() && costs.starts.size() != ranks_.size()) {
      throw InvalidArgument(
          fmt::format("simulate: {} starts for a plan of {} ranks; give one a rank, or none", costs.starts.size(), ranks_.size()));
    }
  }

  Timeline run() {
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      if (costs_.starts.empty()) {
        start_what_can(r, 0);
      } else {
        ranks_[r].time.finish = ranks_[r].compute_free = costs_.starts[r];
        ends_.emplace(costs_.starts[r], r, kBegin);
      }
    }
    while (!ends_.empty() || network_.next_end() < std::numeric_limits<double>::infinity()) {
      const double next = network_.next_end();
      if (ends_.empty() || next < std::get<0>(ends_.top())) {
        take_arrivals(next);
        continue;
      }
      const auto [now, r, id] = ends_.top();
      ends_.pop();
      Playback& rank = ranks_[r];
      if (id == kBegin) {
        start_what_can(r, now);
        continue;
      }
      if (rank.at(id).finished || rank.at(id).end != now) continue;  // a step that has since changed its pace
      if (id == rank.computing) rank.computing = -1;
      const auto queue = static_cast<std::size_t>(plan::queue_of(rank.step(id)));
      rank.at(id).finished = true;
      rank.busy[queue] = false;
      ++rank.next[queue];
      rank.time.finish = std::max(rank.time.finish, now);
      start_what_can(r, now);
    }
    return report();
  }

 private:
  struct Place {
    std::size_t rank;
    StepId step;
  };
  static constexpr StepId kBegin = -1;                  ///< In place of a step: the rank begins.
  using End = std::tuple<double, std::size_t, StepId>;  ///< time, rank, step: ties end in a fixed order

  void start_what_can(std::size_t r, double now) {
    Playback& rank = ranks_[r];
    for (std::size_t queue = 0; queue < plan::kQueues; ++queue) {
      if (rank.busy[queue] || rank.next[queue] == rank.queues[queue].size()) continue;
      const StepId id = rank.queues[queue][rank.next[queue]];
      if (!rank.ready(id)) continue;
      rank.busy[queue] = true;
      rank.at(id).begin = now;
      rank.at(id).started = true;
      if (queue == 0) {
        start_compute(r, id, now);
      } else {
        start_exchange(r, id, now);
      }
    }
  }

  void start_compute(std::size_t r, StepId id, double now) {
    Playback& rank = ranks_[r];
    const double seconds = costs_.compute(*rank.program, rank.step(id)) * pace_of(rank);
    rank.computing = id;
    rank.time.compute += seconds;
    rank.time.exposed += now - rank.compute_free;
    rank.compute_free = now + seconds;
    end_at(r, id, now + seconds);
  }

  double pace_of(const Playback& rank) const { return rank.moving > 0 ? costs_.overlap_slowdown : 1; }

  /// A message more or fewer of a rank; the step that runs goes on at the pace that it now has.
  void change_moving(std::size_t r, int more, double now) {
    Playback& rank = ranks_[r];
    const double before = pace_of(rank);
    rank.moving += static_cast<std::size_t>(more);
    const double change = pace_of(rank) / before;
    if (change == 1 || rank.computing < 0) return;
    const double left = rank.at(rank.computing).end - now, later = left * (change - 1);
    rank.time.compute += later;
    rank.compute_free += later;
    end_at(r, rank.computing, now + left + later);
  }

  /// Whichever end of a message starts second sets it moving: receives first, then sends, as transports post them.
  void start_exchange(std::size_t r, StepId id, double now) {
    Playback& rank = ranks_[r];
    StepTime& time = rank.at(id);
    const Step& step = rank.step(id);
    time.end = now;
    time.open = step.sends.count + step.receives.count;
    const auto meet = [&](const plan::Message& m, bool sent) {
      const auto peer = static_cast<std::size_t>(m.peer);
      const StepId other = peer < ranks_.size() ? ranks_[peer].exchange_of(step.phase) : -1;
      if (other < 0) {
        throw InvalidArgument(fmt::format("simulate: rank {} {} rank {} in phase {}, which takes no part in it; verify the plan", r,
                                          sent ? "sends to" : "receives from", peer, step.phase));
      }
      StepTime& theirs = ranks_[peer].at(other);
      if (!theirs.started) return;
      const int from = sent ? static_cast<int>(r) : m.peer, to = sent ? m.peer : static_cast<int>(r);
      const std::array<Place, 2> ends{{{r, id}, {peer, other}}};
      if (const double seconds = sent ? all_to_all_seconds(rank, id) : all_to_all_seconds(ranks_[peer], other); seconds > 0) {
        for (const Place& end : ends) arrive(end, now + seconds);
      } else {
        network_.start(from, to, rank.program->bytes_of(m.view), now);
        in_flight_.push_back(ends);
        for (const Place& end : ends) change_moving(end.rank, 1, now);
      }
    };
    for (const plan::Message& m : rank.program->receives_of(step)) meet(m, false);
    for (const plan::Message& m : rank.program->sends_of(step)) meet(m, true);
  }

  double all_to_all_seconds(Playback& rank, StepId id) const {
    if (costs_.all_to_all.empty()) return 0;
    std::optional<double>& known = rank.at(id).all_to_all;
    if (!known) known = all_to_all_seconds(rank, rank.step(id));
    return *known;
  }
  /// Of all that a rank sends in an exchange; 0: it is none with all of a group, or nothing is known of that size.
  double all_to_all_seconds(const Playback& rank, const Step& step) const {
    std::set<plan::Rank> to, from;
    double bytes = 0;
    for (const plan::Message& m : rank.program->sends_of(step))
      to.insert(m.peer), bytes += static_cast<double>(rank.program->bytes_of(m.view));
    for (const plan::Message& m : rank.program->receives_of(step)) from.insert(m.peer);
    const auto others = static_cast<double>(to.size());
    const auto found = costs_.all_to_all.find(static_cast<int>(to.size()) + 1);
    return to.size() < 2 || to != from || found == costs_.all_to_all.end() ? 0 : bytes * (others + 1) / others / found->second;
  }

  void take_arrivals(double now) {
    arrivals_.clear();
    network_.advance(now, arrivals_);
    for (const comm::Network::Arrival& arrival : arrivals_) {
      for (const Place& end : in_flight_[arrival.message]) {
        change_moving(end.rank, -1, now);
        arrive(end, arrival.time);
      }
    }
  }

  void arrive(const Place& at, double arrival) {
    StepTime& time = ranks_[at.rank].at(at.step);
    time.end = std::max(time.end, arrival);
    if (--time.open == 0) end_at(at.rank, at.step, time.end);
  }

  void end_at(std::size_t r, StepId id, double time) {
    ranks_[r].at(id).end = time;
    ends_.emplace(time, r, id);
  }

  Timeline report() {
    Timeline timeline;
    for (const Playback& rank : ranks_) timeline.makespan = std::max(timeline.makespan, rank.time.finish);
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      Playback& rank = ranks_[r];
      rank.time.exposed += rank.time.finish - rank.compute_free;
      timeline.ranks.push_back(rank.time);
      timeline.traces.emplace_back(static_cast<int>(r));
      for (std::size_t id = 0; id < rank.times.size(); ++id) {
        if (!rank.times[id].finished) {
          throw InvalidArgument(fmt::format("simulate: rank {} step {} can never finish; verify the plan", r, id));
        }
        const StepTime& time = rank.times[id];
        timeline.traces.back().record(
            plan::trace_event(*rank.program, static_cast<StepId>(id), time.begin * 1e6, (time.end - time.begin) * 1e6));
      }
    }
    return timeline;
  }

  const Costs& costs_;
  comm::Network network_;
  std::vector<std::array<Place, 2>> in_flight_;  ///< By message of the network: both exchanges.
  std::vector<comm::Network::Arrival> arrivals_;
  std::vector<Playback> ranks_;
  std::priority_queue<End, std::vector<End>, std::greater<>> ends_;
};

}  // namespace

Timeline simulate(const plan::Plan& plan, const Costs& costs) { return Simulation(plan, costs).run(); }

}  // namespace periplus::simulate
