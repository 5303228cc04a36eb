// Runs ranks as threads over the thread transport, and says which of them failed first.
#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <omp.h>

#include "runtime/comm/aborted_by_peer.h"
#include "runtime/comm/thread_transport.h"

namespace periplus::comm {
namespace {

/// The exception to report for a group: the first one that is not merely the echo of another rank's failure.
class FirstFailure {
 public:
  void record(std::exception_ptr error, bool echo) {
    const std::lock_guard lock(mutex_);
    if (error_ && (echo || !echo_)) return;
    error_ = std::move(error);
    echo_ = echo;
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
  bool echo_ = false;
};

void run_rank(const std::function<void(Communicator)>& body, const Communicator& communicator, FirstFailure& failure) noexcept {
  const auto abort = [&](std::string_view what) {
    try {
      communicator.abort(fmt::format("rank {} of {} failed: {}", communicator.rank(), communicator.size(), what));
    } catch (...) {
      communicator.abort("a rank failed and its message could not be built");
    }
  };
  try {
    body(communicator);
  } catch (const AbortedByPeer&) {
    failure.record(std::current_exception(), true);
  } catch (const std::exception& error) {
    failure.record(std::current_exception(), false);
    abort(error.what());
  } catch (...) {
    failure.record(std::current_exception(), false);
    abort("unknown exception");
  }
}

}  // namespace

void run_thread_ranks(int ranks, const std::function<void(Communicator)>& body, const TransportOptions& options, int threads) {
  const std::vector<Communicator> communicators = make_thread_group(ranks, options);
  const int team = std::max(1, (threads > 0 ? threads : omp_get_max_threads()) / ranks);
  FirstFailure failure;
  {
    std::vector<std::jthread> running;
    running.reserve(communicators.size());
    try {
      for (const Communicator& communicator : communicators) {
        running.emplace_back([&] {
          omp_set_num_threads(team);
          run_rank(body, communicator, failure);
        });
      }
    } catch (...) {
      // Without this the ranks that did start would wait for the missing ones until their deadline.
      communicators.front().abort("run_thread_ranks: the system refused to start a thread");
      throw;
    }
  }
  failure.rethrow();
}

}  // namespace periplus::comm
