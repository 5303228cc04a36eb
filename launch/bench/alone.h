#pragma once

#include <chrono>
#include <thread>
#include <vector>

#include "runtime/comm/communicator.h"

namespace periplus::launch::bench {

/// Rank 0 works alone while the others sleep: a spinning wait would take the cores it measures. Collective.
template <class Work>
void alone(const comm::Communicator& communicator, Work&& work) {
  const char token = 0;
  char arrived = 0;
  if (communicator.rank() == 0) {
    work();
    std::vector<comm::Send> sends;
    for (int peer = 1; peer < communicator.size(); ++peer) sends.push_back({peer, &token, 1});
    communicator.exchange(sends, {}, {"wake up"}, Stream()).wait();
    return;
  }
  const comm::Receive receive{0, &arrived, 1};
  comm::Pending wake = communicator.exchange({}, {&receive, 1}, {"wake up"}, Stream());
  while (!wake.done()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

}  // namespace periplus::launch::bench
