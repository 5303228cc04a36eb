#include "runtime/comm/process_ranks.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>

#include <fmt/format.h>

#include "runtime/comm/mpi_process.h"
#include "runtime/comm/mpi_transport.h"
#include "runtime/error.h"
#include "runtime/out_of_memory.h"

namespace periplus::comm {
namespace {

struct Place {
  int rank, size;
  bool mpi;
};

void say(const std::string& line) {
  std::fputs((line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

/// Uses MPI only where it is known to be sane: after a communication failure any MPI call may hang, and a launcher ends
/// the job anyway when a process leaves with an error.
[[noreturn]] void end_failed_rank(const std::exception& error, const Place& place, const Communicator& ranks) {
  const int code = exit_code_of(error);
  const auto* const of_peer = dynamic_cast<const AbortedByPeer*>(&error);
  if (of_peer != nullptr && of_peer->cause() == AbortCause::invalid_argument) std::_Exit(kBadInputCode);  // that rank has spoken
  if (code == kBadInputCode) let_rank_zero_speak(place.rank, ranks);
  const std::string who = fmt::format("rank {} of {}: ", place.rank, place.size), message = message_of(error);
  const std::string line = (message.find(who) == std::string::npos ? who : "") + message;
  say("periplus: " + line);
  std::fflush(stdout);
  ranks.abort(line, code == kBadInputCode ? AbortCause::invalid_argument : AbortCause::failure);
  if (!place.mpi || dynamic_cast<const CommError*>(&error) != nullptr) std::_Exit(code);
  abort_mpi(code);
}

/// Ends this process if MPI, whose start and end know no deadline, takes longer than the deadline (and 10 s, which starting may well
/// take). Rank 0 speaks first: when it has ended, mpirun ends the others.
class MpiWatch {
 public:
  MpiWatch(int rank, const TransportOptions& options, const char* call)
      : thread_([=, deadline = options.deadline](const std::stop_token& stop) {
          const double seconds = std::max(std::chrono::duration<double>(deadline).count(), 10.0);
          std::mutex mutex;
          std::unique_lock lock(mutex);
          const auto stopped = [&] { return stop.stop_requested(); };
          if (std::condition_variable_any().wait_for(lock, stop, std::chrono::duration<double>(seconds + (rank > 0 ? 2 : 0)), stopped))
            return;
          const std::string who = rank >= 0 ? fmt::format("rank {}: ", rank) : "";
          say(fmt::format("periplus: {}{} has not finished after {} s; {}", who, call, seconds, kDeadlineAdvice));
          std::_Exit(kFailureCode);
        }) {}

 private:
  std::jthread thread_;
};

void run_rank(const Place& place, const std::function<Communicator()>& join, const std::function<void(const Communicator&)>& body) {
  Communicator communicator;  // outlives a failing body: freeing it while other ranks still wait in it could hang
  try {
    communicator = join();
    body(communicator);
    communicator.barrier(Stream());
  } catch (const std::exception& error) {
    end_failed_rank(error, place, communicator);
  }
}

}  // namespace

void run_mpi_rank(const std::function<void(const Communicator&)>& body, const TransportOptions& options) {
  std::optional<MpiWatch> watch(std::in_place, announced_mpi_rank(), options, "MPI_Init");
  const MpiWorld world = start_mpi();
  const auto join = [&] {
    Communicator communicator = make_mpi_world(options);
    watch.reset();
    return communicator;
  };
  run_rank({world.rank, world.size, true}, join, body);
  watch.emplace(world.rank, options, "MPI_Finalize");
  if (world.started_here) finish_mpi();
}

void run_tcp_rank(const TcpGroup& group, const std::function<void(const Communicator&)>& body, const TransportOptions& options) {
  run_rank(
      {group.rank, group.size, false}, [&] { return make_tcp_communicator(group, options); }, body);
}

int exit_code_of(const std::exception& error) {
  return dynamic_cast<const InvalidArgument*>(&error) != nullptr ? kBadInputCode : kFailureCode;
}

std::string message_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return kOutOfMemory;
  const auto* const refused = dynamic_cast<const std::system_error*>(&error);
  if (refused != nullptr && refused->code() == std::errc::resource_unavailable_try_again)
    return "threads: the system starts no more; use fewer ranks or threads, or raise the limit (ulimit -u, ulimit -v, a container's)";
  std::string message = error.what();
  const auto controls = [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f; };
  std::ranges::replace_if(message, controls, '?');
  return message;
}

void let_rank_zero_speak(int rank, const Communicator& ranks) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (rank > 0 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    try {
      ranks.progress();
      ranks.throw_if_failed();
    } catch (const CommError&) {
      std::_Exit(kBadInputCode);  // rank 0 has spoken, and nobody else ends this process
    }
  }
}

}  // namespace periplus::comm
