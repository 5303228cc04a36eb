#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/comm/communicator.h"

namespace periplus::comm::conformance {

/// What every transport must do. `body` runs once per rank on a group of its own and throws if something is wrong; it
/// does not report and go on, because a rank that is out of step would only produce more failures.
struct Case {
  std::string_view name;
  void (*body)(const Communicator&);
  std::chrono::milliseconds deadline{30'000};
};

std::span<const Case> message_cases();
std::span<const Case> collective_cases();
/// Each leaves its group unusable.
std::span<const Case> failure_cases();
std::vector<Case> all_cases();

// Shared by the case files.

using Bytes = std::vector<std::byte>;

const Stream& stream();
void require(bool condition, std::string_view what);
void require_contains(std::string_view text, std::string_view part);
/// Bytes that depend on position and seed, so that a misplaced fragment or message shows.
Bytes pattern(std::size_t bytes, int seed);
Pending exchange(const Communicator& communicator, const std::vector<Send>& sends, const std::vector<Receive>& receives,
                 const Purpose& purpose = {});
inline Send to(int peer, const Bytes& data) { return {peer, data.data(), data.size()}; }
inline Receive from(int peer, Bytes& data) { return {peer, data.data(), data.size()}; }

/// Message of the Failure that `action` must throw.
template <class Failure, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Failure& error) {
    return error.what();
  }
  require(false, "an exception was expected");
  return {};
}

}  // namespace periplus::comm::conformance
