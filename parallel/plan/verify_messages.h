#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Part 2 of verify(): every message meets the one it should. Of each ordered pair of ranks, what the sender and what the
/// receiver say of all messages, in their order, is summed up in one number each (mod 2^61 - 1; unlike lists agree with
/// probability below 1e-12); only where two numbers differ are the messages compared one by one.
class MessageCheck {
 public:
  void begin(std::size_t ranks);
  /// Takes in the messages of a program that has passed the check of form.
  void enter(const Program& program);
  /// Appends what does not match, after all programs have been taken in. Stops at so many failures.
  void finish(const Plan& plan, std::size_t most_failures, std::vector<std::string>& failures) const;

  std::int64_t messages() const noexcept { return messages_; }  ///< Sent.
  std::int64_t bytes_sent() const noexcept { return bytes_sent_; }

 private:
  std::size_t ranks_ = 0;
  std::vector<std::uint64_t> sent_, received_;  ///< By the rank that says so, then by its peer.
  std::vector<std::uint64_t> shapes_;           ///< By slot of the program at hand.
  std::int64_t messages_ = 0, bytes_sent_ = 0;
};

}  // namespace periplus::plan
