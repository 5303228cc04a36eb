#pragma once

#include <optional>

#include "runtime/comm/nccl_api.h"

/// NCCL for ranks that are threads and messages in host memory, with NCCL's rules: a communicator is in progress until all
/// ranks have joined, a group until all its messages have met their other ends, and takes no call meanwhile. Messages of
/// different sizes, and of an all-gather and an exchange, never meet. Streams are ignored. One fake per process.
namespace periplus::comm::fake_nccl {

enum class State {
  unique_id,      ///< ncclGetUniqueId
  init,           ///< ncclCommInitRankConfig returns the code
  init_poll,      ///< it succeeds, and the code is found while the communicator connects
  send,           ///< ncclSend returns the code
  receive,        ///< ncclRecv returns the code
  all_gather,     ///< ncclAllGather returns the code
  group_end,      ///< ncclGroupEnd returns the code
  exchange_poll,  ///< the group succeeds, and the code is found afterwards
  abort,          ///< as exchange_poll, and ncclCommAbort does not return
  finalize,       ///< ncclCommFinalize returns the code
};

/// What goes wrong on one rank. in_progress lasts for ever.
struct Fault {
  State state;
  nccl::Result code;
  int rank = 0;
};

const nccl::Api& api();

/// Sets what goes wrong from now on while it lives. Its end lets hanging aborts return and waits for them.
class Injection {
 public:
  explicit Injection(std::optional<Fault> fault);
  Injection(const Injection&) = delete;
  Injection& operator=(const Injection&) = delete;
  ~Injection();
};

struct Counts {
  int made = 0;
  int destroyed = 0;
  int aborted = 0;  ///< Calls of abort, those that hang too.
  int all_gathers = 0;
};
/// Since the start of the process.
Counts counts();

}  // namespace periplus::comm::fake_nccl
