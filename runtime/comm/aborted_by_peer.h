#pragma once

#include <cstdint>
#include <string>

#include "runtime/error.h"

namespace periplus::comm {

/// Why a rank ended its group.
enum class AbortCause : std::int32_t { failure, invalid_argument };

/// What ranks of the thread and the TCP transport see that did not fail themselves. run_thread_ranks looks for the cause behind it;
/// processes end with the exit code of the rank that failed.
class AbortedByPeer : public CommError {
 public:
  explicit AbortedByPeer(const std::string& message, AbortCause cause = AbortCause::failure) : CommError(message), cause_(cause) {}
  AbortCause cause() const noexcept { return cause_; }

 private:
  AbortCause cause_;
};

}  // namespace periplus::comm
