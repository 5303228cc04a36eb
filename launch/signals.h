#pragma once

#include <atomic>

namespace periplus::launch {

/// Makes SIGUSR1 and the first SIGTERM set the returned flag instead of ending the process; a second SIGTERM ends it.
const std::atomic<bool>& catch_stop_signals();

}  // namespace periplus::launch
