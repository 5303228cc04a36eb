#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "runtime/comm/communicator.h"
#include "runtime/comm/nccl_api.h"

namespace periplus::comm::nccl {

/// How a call on a communicator went: what NCCL says, and which call.
struct Status {
  Result result = Result::success;
  std::string_view call;
  std::string detail;  ///< NCCL's own words, if it is an error.
};
inline bool failed(Result result) noexcept { return result != Result::success && result != Result::in_progress; }

std::string to_string(const Status& status);
/// DeviceError for an error of CUDA, else CommError.
[[noreturn]] void throw_failure(Result result, const std::string& message);

using LaneIds = std::array<UniqueId, kLanes>;

/// The NCCL communicators of one rank, one per lane: messages of a lane are ordered. One thread calls connect and
/// exchange; poll and abort may come from any.
class Lanes {
 public:
  Lanes(const Api& api, std::chrono::milliseconds deadline) : api_(api), deadline_(deadline) {}
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;
  ~Lanes() { abort(); }

  /// Collective. Throws if a communicator fails or is not ready after the deadline.
  void connect(int rank, int size, const LaneIds& ids, int device);
  /// One grouped call. in_progress: poll the lane until it is not, before the next call.
  Status exchange(int lane, std::span<const Send> sends, std::span<const Receive> receives, void* stream);
  /// The same for one call of ncclAllGather: `mine` is this rank's share in `gathered`.
  Status all_gather(int lane, const Send& mine, void* gathered, void* stream);
  Status poll(int lane);

  /// Ends what is under way; a second call waits for the first. NCCL's abort may itself hang: it gets a few seconds on
  /// helper threads and is then left behind. Returns a sentence about that, empty if there is nothing to tell.
  std::string abort() noexcept;
  /// Orderly end of a group that has not failed, with the same limit.
  void close() noexcept;

 private:
  /// Runs `calls(comm, call)` as a group; `call(result, name)` keeps the first failure and says whether all is well.
  template <class Calls>
  Status in_group(int lane, const Calls& calls);
  Status status_of(Result result, std::string_view call) const;
  std::array<Comm, kLanes> take() noexcept;

  const Api api_;
  const std::chrono::milliseconds deadline_;
  std::mutex ending_;  // held while communicators are aborted or closed
  std::mutex mutex_;   // guards the rest
  std::condition_variable idle_;
  bool calling_ = false;  // inside a grouped call
  std::array<Comm, kLanes> comms_{};
};

}  // namespace periplus::comm::nccl
