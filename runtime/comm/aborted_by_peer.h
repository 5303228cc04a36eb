#pragma once

#include "runtime/error.h"

namespace periplus::comm {

/// What ranks of the thread transport see that did not fail themselves; run_thread_ranks looks for the cause behind it.
class AbortedByPeer : public CommError {
 public:
  using CommError::CommError;
};

}  // namespace periplus::comm
