#include "runtime/comm/nccl_lanes.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "runtime/comm/transport.h"
#include "runtime/error.h"

namespace periplus::comm::nccl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kEndLimit = std::chrono::milliseconds(3000);
constexpr auto kPollInterval = std::chrono::microseconds(100);

constexpr std::array<std::string_view, 8> kNames = {"ncclSuccess",         "ncclUnhandledCudaError", "ncclSystemError", "ncclInternalError",
                                                    "ncclInvalidArgument", "ncclInvalidUsage",       "ncclRemoteError", "ncclInProgress"};

std::string_view name_of(Result result) {
  const auto index = static_cast<std::size_t>(result);
  return index < kNames.size() ? kNames[index] : "a result that NCCL 2.28 does not know";
}

/// Runs each job on a thread of its own for at most `limit`; returns how many are still running. Those keep what they
/// captured and nothing else.
std::size_t run_for(std::vector<std::function<void()>> jobs, std::chrono::milliseconds limit) {
  struct Open {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t count = 0;
  };
  const auto open = std::make_shared<Open>();
  std::vector<std::thread> threads;
  const auto end = [&](auto how) {
    for (std::thread& thread : threads) (thread.*how)();
  };
  try {
    threads.reserve(jobs.size());
    for (std::function<void()>& job : jobs) {
      {
        const std::lock_guard lock(open->mutex);
        ++open->count;
      }
      threads.emplace_back([open, job = std::move(job)] {
        job();
        const std::lock_guard lock(open->mutex);
        --open->count;
        open->changed.notify_all();
      });
    }
  } catch (...) {
    end(&std::thread::detach);
    throw;
  }
  std::unique_lock lock(open->mutex);
  open->changed.wait_for(lock, limit, [&] { return open->count == 0; });
  const std::size_t left = open->count;
  lock.unlock();
  end(left == 0 ? &std::thread::join : &std::thread::detach);
  return left;
}

/// A communicator may be freed once all ranks have finalized it.
void finalize(const Api& api, Comm comm, Clock::time_point until) {
  Result state = api.comm_finalize(comm);
  while (!failed(state)) {
    if (failed(api.comm_get_async_error(comm, &state)) || state != Result::in_progress || Clock::now() >= until) break;
    std::this_thread::sleep_for(kPollInterval);
  }
  state == Result::success ? api.comm_destroy(comm) : api.comm_abort(comm);
}

}  // namespace

std::string to_string(const Status& status) {
  return fmt::format("{} says {}{}{}", status.call, name_of(status.result), status.detail.empty() ? "" : ": ", status.detail);
}

void throw_failure(Result result, const std::string& message) {
  if (result == Result::unhandled_cuda_error) throw DeviceError(message);
  throw CommError(message);
}

Status Lanes::status_of(Result result, std::string_view call) const {
  Status status{result, call, {}};
  if (!failed(result)) return status;
  if (const char* text = api_.get_error_string(result)) status.detail = text;
  const char* const last = api_.get_last_error();
  if (last != nullptr && *last != '\0') status.detail += fmt::format(" ({})", last);
  return status;
}

void Lanes::connect(int rank, int size, const LaneIds& ids, int device) {
  constexpr std::string_view kCall = "ncclCommInitRankConfig";
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto index = static_cast<std::size_t>(lane);
    const auto fail = [&](Result result, std::string_view what) {
      throw_failure(result, fmt::format("rank {} of {}: connecting lane {} of {} (NCCL {}): {}", rank, size, lane, kLanes,
                                        version_text(api_.version), what));
    };
    const Clock::time_point start = Clock::now();
    Comm comm = nullptr;
    const Result made = api_.comm_init_rank(&comm, size, &ids[index], rank, device);
    {
      const std::lock_guard lock(mutex_);
      comms_[index] = comm;
    }
    if (failed(made)) fail(made, to_string(status_of(made, kCall)));
    if (comm == nullptr) fail(Result::internal_error, fmt::format("{} made no communicator", kCall));
    for (Status status = poll(lane); status.result != Result::success; status = poll(lane)) {
      if (failed(status.result)) fail(status.result, fmt::format("{}: {}", kCall, to_string(status)));
      if (Clock::now() - start >= deadline_) {
        fail(Result::in_progress, fmt::format("{} not finished after {:.1f} s; {}", kCall,
                                              std::chrono::duration<double>(Clock::now() - start).count(), kDeadlineAdvice));
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  }
}

template <class Calls>
Status Lanes::in_group(int lane, const Calls& calls) {
  Comm comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    comm = comms_[static_cast<std::size_t>(lane)];
    if (comm == nullptr) return {Result::invalid_usage, "the exchange", "the communicator has been aborted"};
    calling_ = true;
  }
  Status status;
  const auto call = [&](Result result, std::string_view name) {
    if (!failed(status.result) && (failed(result) || status.call.empty())) status = status_of(result, name);
    return !failed(status.result);
  };
  if (call(api_.group_start(), "ncclGroupStart")) {
    calls(comm, call);
    call(api_.group_end(), "ncclGroupEnd");  // also after an error: an open group would take in every later call of the thread
  }
  const std::lock_guard lock(mutex_);
  calling_ = false;
  idle_.notify_all();
  return status;
}

Status Lanes::exchange(int lane, std::span<const Send> sends, std::span<const Receive> receives, void* stream) {
  return in_group(lane, [&](Comm comm, const auto& call) {
    for (const Receive& receive : receives) {
      if (!call(api_.receive(receive.data, receive.bytes, receive.peer, comm, stream), "ncclRecv")) return;
    }
    for (const Send& send : sends) {
      if (!call(api_.send(send.data, send.bytes, send.peer, comm, stream), "ncclSend")) return;
    }
  });
}

Status Lanes::all_gather(int lane, const Send& mine, void* gathered, void* stream) {
  return in_group(
      lane, [&](Comm comm, const auto& call) { call(api_.all_gather(mine.data, gathered, mine.bytes, comm, stream), "ncclAllGather"); });
}

Status Lanes::poll(int lane) {
  constexpr std::string_view kCall = "ncclCommGetAsyncError";
  const std::lock_guard lock(mutex_);  // keeps abort from freeing the communicator meanwhile
  Comm comm = comms_[static_cast<std::size_t>(lane)];
  if (comm == nullptr) return {Result::invalid_usage, kCall, "the communicator has been aborted"};
  Result state = Result::success;
  const Result result = api_.comm_get_async_error(comm, &state);
  return status_of(result == Result::success ? state : result, kCall);
}

/// The communicators, which no other thread can reach from now on. A grouped call under way is waited for, but not for
/// ever: to end it may be what the abort is for.
std::array<Comm, kLanes> Lanes::take() noexcept {
  std::unique_lock lock(mutex_);
  idle_.wait_for(lock, std::min(deadline_, kEndLimit), [this] { return !calling_; });
  return std::exchange(comms_, {});
}

std::string Lanes::abort() noexcept {
  try {
    const std::lock_guard ending(ending_);
    const std::array<Comm, kLanes> comms = take();
    std::vector<std::function<void()>> jobs;
    // All at once: aborting one may wait for kernels of another.
    for (Comm comm : comms) {
      if (comm != nullptr) jobs.emplace_back([api = api_, comm] { api.comm_abort(comm); });
    }
    const std::chrono::milliseconds limit = std::min(deadline_, kEndLimit);
    const std::size_t count = jobs.size();
    const std::size_t left = run_for(std::move(jobs), limit);
    if (left == 0) return {};
    return fmt::format("ncclCommAbort of {} of {} communicators has not returned after {:.1f} s and is left behind; end the process", left,
                       count, std::chrono::duration<double>(limit).count());
  } catch (const std::exception&) {
    // No memory or no thread: the communicators stay as they are until the process ends.
    return {};
  }
}

void Lanes::close() noexcept {
  try {
    const std::lock_guard ending(ending_);
    const std::chrono::milliseconds limit = std::min(deadline_, kEndLimit);
    std::vector<std::function<void()>> jobs;
    for (Comm comm : take()) {
      if (comm != nullptr) jobs.emplace_back([api = api_, comm, limit] { finalize(api, comm, Clock::now() + limit); });
    }
    run_for(std::move(jobs), 2 * limit);
  } catch (const std::exception&) {
    // As in abort.
  }
}

}  // namespace periplus::comm::nccl
