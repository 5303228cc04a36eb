#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/comm/transport.h"

namespace periplus::comm {

/// Communicators of `ranks` ranks that are threads of this process; element r is for the thread that plays rank r.
/// A message is copied once, directly between the two spans, by whichever side posts second.
std::vector<Communicator> make_thread_group(int ranks, const TransportOptions& options = {});

/// Runs `body` on `ranks` threads, each with its communicator, and joins them. If ranks throw, the group is aborted so
/// that the others stop waiting, and the exception of the rank that failed first is rethrown.
/// Each thread's OpenMP team gets an equal share of `threads` (at least one; 0 = the team size of the caller:
/// all cores unless OMP_NUM_THREADS says otherwise).
void run_thread_ranks(int ranks, const std::function<void(Communicator)>& body, const TransportOptions& options = {}, int threads = 0);

}  // namespace periplus::comm
