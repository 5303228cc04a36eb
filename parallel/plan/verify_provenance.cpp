#include "parallel/plan/verify_provenance.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "parallel/plan/provenance_mail.h"
#include "parallel/plan/provenance_ranks.h"
#include "parallel/plan/provenance_steps.h"
#include "runtime/error.h"

namespace periplus::plan {
namespace {

bool is_transfer(const Step& step) { return step.op == Op::copy || step.op == Op::add; }

/// Plays the programs of all ranks.
class Player {
 public:
  Player(const Plan& plan, ProvenanceMemory& memory)
      : plan_(plan),
        orders_(plan.claim.layout),
        slots_(plan, orders_, memory.slots, memory.twins),
        steps_(plan, orders_, slots_, memory.known, memory.terms, memory.records),
        next_(plan.programs.size(), 0),
        phases_(plan.programs.size(), kNoPhase) {}

  void play() {
    for (Rank rank = 0; rank < ranks(); ++rank) play_compute(rank);
    while (true) {
      const int phase = *std::ranges::min_element(phases_);
      if (phase == kNoPhase) break;
      play_phase(phase);
    }
    for (Rank rank = 0; rank < ranks(); ++rank) {
      slots_.look_at(rank);
      step_ = -1;
      steps_.check_outputs();
    }
  }

  std::string where() const { return fmt::format("rank {} step {}: ", slots_.rank(), step_); }

 private:
  int ranks() const { return static_cast<int>(plan_.programs.size()); }
  const Program& program() const { return slots_.program(); }
  std::size_t& next() { return next_[static_cast<std::size_t>(slots_.rank())]; }

  /// The steps of a rank up to its next exchange.
  void play_compute(Rank rank) {
    slots_.look_at(rank);
    while (next() < program().steps.size() && program().steps[next()].op != Op::exchange) {
      const Step& step = program().steps[next()];
      const bool twins = is_transfer(step) && !slots_.mates_of(destination(step)).alone();
      next() += twins ? play_transfers_to_twins() : play_step(next());
    }
    phases_[static_cast<std::size_t>(rank)] = next() < program().steps.size() ? program().steps[next()].phase : kNoPhase;
  }

  std::size_t play_step(std::size_t id) {
    step_ = static_cast<StepId>(id);
    steps_.run(program().steps[id]);
    return 1;
  }

  const View& source(const Step& step) const { return program().accesses_of(step)[transfer_operand::source].view; }
  const View& destination(const Step& step) const { return program().accesses_of(step)[transfer_operand::destination].view; }

  /// Copies and sums from leaders into leaders, and behind them the same from followers into followers. No other step is
  /// between them, so it is enough to play the former. Returns how many steps they are together.
  std::size_t play_transfers_to_twins() {
    const std::span<const Step> steps = std::span(program().steps).subspan(next());
    const auto leads = [&](const Step& step) { return is_transfer(step) && slots_.mates_of(destination(step)).leads_all(); };
    const std::size_t run = static_cast<std::size_t>(std::ranges::find_if_not(steps, leads) - steps.begin());
    if (run == 0) throw TwinsApart{};
    const std::size_t runs = slots_.twins_behind(destination(steps[0]).slot);
    for (std::size_t i = 0; i < run; ++i) {
      if (slots_.twins_behind(destination(steps[i]).slot) != runs) throw TwinsApart{};
    }
    if ((runs + 1) * run > steps.size()) throw TwinsApart{};
    for (std::size_t i = 0; i < runs * run; ++i) {
      const Step &leader = steps[i], &follower = steps[run + i];
      const bool alike = leader.op == follower.op && leader.moves == follower.moves && slots_.are_twins(source(leader), source(follower)) &&
                         slots_.are_twins(destination(leader), destination(follower));
      if (!alike) throw TwinsApart{};
    }
    for (std::size_t i = 0; i < run; ++i) play_step(next() + i);
    return (runs + 1) * run;
  }

  /// The exchanges of a phase, and what each rank does from there to its next.
  void play_phase(int phase) {
    mail_.begin(next_.size());
    taking_part_.clear();
    for (Rank rank = 0; rank < ranks(); ++rank) {
      if (phases_[static_cast<std::size_t>(rank)] == phase) taking_part_.push_back(rank);
    }
    for (const Rank rank : taking_part_) {
      const Step& exchange = exchange_of(rank);
      for_messages(program().sends_of(exchange), slots_.mates(), [&](const Message& m, const Followers& followers) {
        mail_.post(rank, m.peer, m.view, followers, [&](const View& view, Pieces& pieces) { slots_.append(view, pieces); });
      });
    }
    for (const Rank rank : taking_part_) {
      const Step& exchange = exchange_of(rank);
      for_messages(program().receives_of(exchange), slots_.mates(), [&](const Message& m, const Followers& followers) {
        if (followers.runs == 0) slots_.require_alone(m.view);
        slots_.write(m.view, mail_.take(m.peer, rank, followers));
      });
      ++next();
      play_compute(rank);
    }
  }

  /// The exchange that a rank is at, which is looked at from now on.
  const Step& exchange_of(Rank rank) {
    slots_.look_at(rank);
    step_ = static_cast<StepId>(next());
    return program().steps[next()];
  }

  const Plan& plan_;
  RowOrders orders_;
  RankSlots slots_;
  SoftmaxSteps steps_;
  static constexpr int kNoPhase = std::numeric_limits<int>::max();
  std::vector<std::size_t> next_;  ///< Steps, by rank.
  std::vector<int> phases_;        ///< Of the exchanges that the ranks are at.
  std::vector<Rank> taking_part_;  ///< In the phase at hand.
  PhaseMail mail_;
  StepId step_ = -1;
};

/// What was wrong, or nothing. TwinsApart is left to the caller.
std::string played(const Plan& plan, ProvenanceMemory& memory, bool with_twins) {
  memory.begin(plan);
  memory.twins.find(plan, with_twins);
  std::optional<Player> player;
  try {
    player.emplace(plan, memory);
    player->play();
  } catch (const ProvenanceFailure& failure) {
    return (player ? player->where() : std::string()) + failure.what;
  } catch (const InvalidArgument& missing_slot) {
    return (player ? player->where() : std::string()) + missing_slot.what();
  }
  return {};
}

}  // namespace

void ProvenanceMemory::begin(const Plan& plan) {
  records.begin(plan.claim);
  if (!records.same_claim()) known.clear();
  terms.clear();
  if (slots.size() < plan.programs.size()) slots.resize(plan.programs.size());
  for (std::vector<SlotPieces>& of_rank : std::span(slots).first(plan.programs.size())) {
    for (SlotPieces& slot : of_rank) slot.clear();
  }
}

std::string check_provenance(const Plan& plan, ProvenanceMemory& memory) {
  // What fails is played once more in full: that says what is wrong, of either twin.
  try {
    if (played(plan, memory, true).empty()) return {};
  } catch (const TwinsApart&) {
  }
  return played(plan, memory, false);
}

}  // namespace periplus::plan
