#include "parallel/plan/verify_messages.h"

#include <span>
#include <string>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/fingerprint.h"

namespace periplus::plan {
namespace {

/// A message as one of its ends sees it.
struct Letter {
  std::int32_t phase;
  std::int32_t order;  ///< k-th of its pair and phase
  std::int32_t lane;
  std::int64_t bytes;
  std::int64_t heads, width;
  DType dtype;
  StepId step;
  auto key() const { return std::pair(phase, order); }
  auto content() const { return std::tuple(lane, bytes, heads, width, dtype); }
  std::string text() const {
    return fmt::format("{} bytes of {} on lane {} in rows of {} heads of {}", bytes, to_string(dtype), lane, heads, width);
  }
};

/// All messages of a program to or from a peer, by rising phase and order, because phases rise along programs.
std::vector<Letter> letters_with(const Program& program, Rank peer, bool sent) {
  std::vector<Letter> letters;
  for (std::size_t id = 0; id < program.steps.size(); ++id) {
    const Step& step = program.steps[id];
    std::int32_t order = 0;
    for (const Message& m : sent ? program.sends_of(step) : program.receives_of(step)) {
      if (m.peer != peer) continue;
      const Slot& slot = program.slot_of(m.view);
      letters.push_back(
          {step.phase, order++, step.lane, program.bytes_of(m.view), m.view.heads, slot.width, slot.dtype, static_cast<StepId>(id)});
    }
  }
  return letters;
}

void compare(Rank from, std::span<const Letter> sent, Rank to, std::span<const Letter> received, std::size_t most_failures,
             std::vector<std::string>& failures) {
  std::size_t s = 0, r = 0;
  while ((s < sent.size() || r < received.size()) && failures.size() < most_failures) {
    if (r == received.size() || (s < sent.size() && sent[s].key() < received[r].key())) {
      failures.push_back(fmt::format("rank {} step {}: sends {} bytes to rank {} in phase {}, which does not receive them", from,
                                     sent[s].step, sent[s].bytes, to, sent[s].phase));
      ++s;
    } else if (s == sent.size() || received[r].key() < sent[s].key()) {
      failures.push_back(fmt::format("rank {} step {}: receives {} bytes from rank {} in phase {}, which does not send them", to,
                                     received[r].step, received[r].bytes, from, received[r].phase));
      ++r;
    } else {
      if (sent[s].content() != received[r].content()) {
        failures.push_back(fmt::format("rank {} step {} sends {} to rank {} step {}, which receives {}", from, sent[s].step, sent[s].text(),
                                       to, received[r].step, received[r].text()));
      }
      ++s, ++r;
    }
  }
}

}  // namespace

void MessageCheck::begin(std::size_t ranks) {
  ranks_ = ranks;
  // Not zero, of which a message could be taken away unseen.
  sent_.assign(ranks * ranks, 1), received_.assign(ranks * ranks, 1);
  messages_ = bytes_sent_ = 0;
}

void MessageCheck::enter(const Program& program) {
  constexpr std::uint64_t kBase = 0x1b873593cc9e2d51 % field::kPrime, kOfPlace = 0x0e6546b64b2c3f19 % field::kPrime;
  constexpr std::uint64_t kOfHeads = 0x4cf5ad432745937f % field::kPrime, kOfWidth = 0x52dce729da3ed6bb % field::kPrime;
  constexpr std::uint64_t kOfType = 0x38495ab5a1b2c3d7 % field::kPrime;
  // Messages have all heads of their slots.
  shapes_.clear();
  for (const Slot& slot : program.slots) {
    const std::uint64_t shape = field::add(field::multiply(static_cast<std::uint64_t>(slot.heads), kOfHeads),
                                           field::multiply(static_cast<std::uint64_t>(slot.width), kOfWidth));
    shapes_.push_back(field::add(shape, field::multiply(static_cast<std::uint64_t>(slot.dtype), kOfType)));
  }
  const std::size_t row = static_cast<std::size_t>(program.rank) * ranks_;
  std::uint64_t place = 0;
  const auto add = [&](std::vector<std::uint64_t>& sums, const Message& m) {
    const std::int64_t bytes = program.bytes_of(m.view);
    std::uint64_t& sum = sums[row + static_cast<std::size_t>(m.peer)];
    const std::uint64_t form = field::add(place, shapes_[static_cast<std::size_t>(m.view.slot)]);
    sum = field::add(field::multiply(sum, kBase), field::add(static_cast<std::uint64_t>(bytes), form));
    return bytes;
  };
  for (const Step& step : program.steps) {
    if (step.op != Op::exchange) continue;
    place = field::multiply(static_cast<std::uint64_t>(step.phase) << 8 | static_cast<std::uint64_t>(step.lane), kOfPlace);
    for (const Message& m : program.sends_of(step)) bytes_sent_ += add(sent_, m);
    for (const Message& m : program.receives_of(step)) add(received_, m);
    messages_ += step.sends.count;
  }
}

void MessageCheck::finish(const Plan& plan, std::size_t most_failures, std::vector<std::string>& failures) const {
  for (std::size_t from = 0; from < ranks_; ++from) {
    for (std::size_t to = 0; to < ranks_; ++to) {
      if (sent_[from * ranks_ + to] == received_[to * ranks_ + from]) continue;
      const auto sender = static_cast<Rank>(from), receiver = static_cast<Rank>(to);
      compare(sender, letters_with(plan.programs[from], receiver, true), receiver, letters_with(plan.programs[to], sender, false),
              most_failures, failures);
    }
  }
}

}  // namespace periplus::plan
