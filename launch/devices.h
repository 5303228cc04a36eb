#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/topology.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"

namespace periplus::launch {

/// What --device says: "cpu", "cuda" (each rank its own GPU, or all threads of a process the first) or "cuda:1".
struct DeviceRequest {
  DeviceKind kind = DeviceKind::cpu;
  std::optional<int> index{};
};
/// Errors: InvalidArgument for any other text.
DeviceRequest parse_device(std::string_view text);

/// Errors: BackendUnavailable if no GPU can be used, InvalidArgument for an index that this machine lacks.
void require_device(const DeviceRequest& request);
/// The one that ranks which are threads share.
Device shared_device(const DeviceRequest& request);

/// The GPUs that one rank may use, in the order of its CUDA indices; `cards` name them, the same card alike on every rank.
struct RankGpus {
  std::string host;
  std::vector<std::string> cards;
  std::vector<bool> near{};  ///< Which are near the cores that the rank may use; a process that is not bound is near all.
};
/// Which of its GPUs each rank takes: the first near one that no rank before it took; ranks for which there is none take what is
/// left. So ranks that see all GPUs of their host take one after the other, and ranks that a scheduler shows one each take that. Errors:
/// InvalidArgument for more ranks than GPUs.
std::vector<int> deal_gpus(std::span<const RankGpus> ranks);

/// This process's own GPU. Collective over `ranks`, which are processes. Errors: as deal_gpus, BackendUnavailable without NCCL.
Device own_device(const DeviceRequest& request, const comm::Communicator& ranks, const Topology& topology);

}  // namespace periplus::launch
