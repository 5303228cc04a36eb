#include "launch/devices.h"

#include <algorithm>
#include <charconv>
#include <set>

#include <fmt/format.h>

#include "launch/cores.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

[[noreturn]] void throw_no_gpu_left(std::span<const RankGpus> ranks, std::size_t rank) {
  const std::string& host = ranks[rank].host;
  int sharing = 0;
  std::set<std::string> cards;
  for (const RankGpus& other : ranks) {
    if (other.host != host) continue;
    ++sharing;
    cards.insert(other.cards.begin(), other.cards.end());
  }
  throw InvalidArgument(
      fmt::format("--device: rank {} of {} finds no free GPU: host {} has {} ranks for {} {}; start at most as many ranks there as it "
                  "offers GPUs, or one process with --ranks {}, whose ranks share a GPU",
                  rank, ranks.size(), host, sharing, cards.size(), cards.size() == 1 ? "GPU" : "GPUs", ranks.size()));
}

std::string to_bytes(const RankGpus& gpus) {
  std::string bytes = gpus.host;
  for (std::size_t i = 0; i < gpus.cards.size(); ++i) bytes += fmt::format("\n{}{}", gpus.near[i] ? '+' : '-', gpus.cards[i]);
  return bytes;
}

RankGpus gpus_from(std::string_view bytes) {
  RankGpus gpus;
  for (std::size_t line = 0; !bytes.empty(); ++line) {
    const std::size_t end = std::min(bytes.find('\n'), bytes.size());
    const std::string text(bytes.substr(0, end));
    if (line == 0) {
      gpus.host = text;
    } else {
      gpus.near.push_back(text[0] == '+');
      gpus.cards.push_back(text.substr(1));
    }
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
  }
  return gpus;
}

}  // namespace

DeviceRequest parse_device(std::string_view text) {
  constexpr std::string_view kIndexed = "cuda:";
  if (text == "cpu") return {};
  if (text == "cuda") return {DeviceKind::cuda, {}};
  int index = -1;
  if (text.starts_with(kIndexed)) {
    const std::string_view number = text.substr(kIndexed.size());
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
    if (error == std::errc{} && end == number.data() + number.size() && index >= 0) return {DeviceKind::cuda, index};
  }
  throw InvalidArgument(fmt::format("--device: there is no device '{}'; use cpu, cuda, or cuda:N for the GPU with index N", text));
}

void require_device(const DeviceRequest& request) {
  if (request.kind == DeviceKind::cpu) return;
  if (const std::string reason = cuda::unavailable_reason(); !reason.empty()) {
    throw BackendUnavailable(fmt::format("--device cuda: {}; or leave out --device to run on the CPU", reason));
  }
  const int count = cuda::device_count();
  if (request.index.value_or(0) >= count) {
    throw InvalidArgument(fmt::format("--device cuda:{}: this machine has {} {}, indices count from 0; periplus doctor lists them",
                                      *request.index, count, count == 1 ? "GPU" : "GPUs"));
  }
}

Device shared_device(const DeviceRequest& request) { return {request.kind, request.index.value_or(0)}; }

std::vector<int> deal_gpus(std::span<const RankGpus> ranks) {
  std::set<std::string> taken;
  std::vector<int> indices(ranks.size(), -1);
  const auto take = [&](std::size_t rank, bool near_only) {
    const RankGpus& gpus = ranks[rank];
    for (std::size_t i = 0; i < gpus.cards.size() && indices[rank] < 0; ++i) {
      if ((!near_only || gpus.near.empty() || gpus.near[i]) && taken.insert(gpus.cards[i]).second) indices[rank] = static_cast<int>(i);
    }
  };
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) take(rank, true);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    take(rank, false);
    if (indices[rank] < 0) throw_no_gpu_left(ranks, rank);
  }
  return indices;
}

Device own_device(const DeviceRequest& request, const comm::Communicator& ranks, const Topology& topology) {
  RankGpus mine;
  const Cpus allowed = allowed_cpus();
  const int first = request.index.value_or(0), end = request.index ? first + 1 : cuda::device_count();
  for (int index = first; index < end; ++index) {
    comm::nccl::Endpoint gpu = comm::nccl::find_endpoint(index);
    mine.host = std::move(gpu.host);
    mine.cards.push_back(std::move(gpu.card));
    const Cpus near = topology.near(cuda::properties(index).pci_bus_id);
    mine.near.push_back(near.empty() || std::ranges::find_first_of(near, allowed) != near.end());
  }
  std::vector<RankGpus> all;
  for (const std::string& bytes : ranks.all_gather_bytes(to_bytes(mine), Stream())) all.push_back(gpus_from(bytes));
  return {DeviceKind::cuda, first + deal_gpus(all)[static_cast<std::size_t>(ranks.rank())]};
}

}  // namespace periplus::launch
