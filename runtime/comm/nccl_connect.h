#pragma once

#include <memory>

#include "runtime/comm/nccl_lanes.h"
#include "runtime/comm/nccl_transport.h"

namespace periplus::comm::nccl {

struct Connection {
  int size = 0;
  Device device;
  std::unique_ptr<Lanes> lanes;
};

/// Agrees on versions, cards and ids over the caller's bytes, then connects the lanes. If a rank fails, all throw.
Connection connect_lanes(const std::function<Endpoint()>& find, int rank, const AllGatherBytes& all_gather,
                         const TransportOptions& options);

}  // namespace periplus::comm::nccl
