#include "launch/cores.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>

#include "runtime/host.h"

namespace periplus::launch {

int share_of_cores(int own, int together, int sum) { return std::max(1, own * together / std::max(1, sum)); }

namespace {

/// Of all ranks of this host, each with its number of threads and the cores that it may use.
struct HostCores {
  int own = 0, together = 0, sum = 0, threads = 0;
};
HostCores host_cores(const comm::Communicator& ranks) {
  struct Mine {
    cpu_set_t cpus;
    int threads;
  } mine;
  std::memset(&mine, 0, sizeof(mine));
  if (sched_getaffinity(0, sizeof(mine.cpus), &mine.cpus) != 0) CPU_ZERO(&mine.cpus);
  mine.threads = omp_get_max_threads();
  const std::string host = host_id();
  HostCores cores{.own = CPU_COUNT(&mine.cpus)};
  cpu_set_t together;
  CPU_ZERO(&together);
  const std::string said(reinterpret_cast<const char*>(&mine), sizeof(mine));
  for (const std::string& bytes : ranks.all_gather_bytes(said + host, Stream())) {
    if (bytes.compare(sizeof(mine), std::string::npos, host) != 0) continue;
    Mine other;
    std::memcpy(&other, bytes.data(), sizeof(other));
    CPU_OR(&together, &together, &other.cpus);
    cores.sum += CPU_COUNT(&other.cpus);
    cores.threads += other.threads;
  }
  cores.together = CPU_COUNT(&together);
  return cores;
}

}  // namespace

void share_cores(const comm::Communicator& ranks) {
  const HostCores cores = host_cores(ranks);
  if (cores.own > 0 && std::getenv("OMP_NUM_THREADS") == nullptr) {
    omp_set_num_threads(share_of_cores(cores.own, cores.together, cores.sum));
  }
}

double part_of_a_core(const comm::Communicator& ranks) {
  const HostCores cores = host_cores(ranks);
  return cores.together > 0 ? std::min(1.0, static_cast<double>(cores.together) / cores.threads) : 1;
}

std::string to_string(const Cpus& cpus) {
  std::string text;
  for (std::size_t first = 0, last = 0; first < cpus.size(); first = last + 1) {
    for (last = first; last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1;) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", cpus[first]);
    if (last > first) text += fmt::format("-{}", cpus[last]);
  }
  return text;
}

Cpus cores_near_gpu(std::span<const RankCores> ranks, int rank, const Topology& topology) {
  const auto near_and_allowed = [](const RankCores& one) {
    Cpus both;
    std::ranges::set_intersection(one.allowed, one.near, std::back_inserter(both));
    return both;
  };
  const RankCores& own = ranks[static_cast<std::size_t>(rank)];
  const Cpus mine = near_and_allowed(own);
  std::size_t sharing = 0, before = 0;
  for (std::size_t other = 0; other < ranks.size(); ++other) {
    if (ranks[other].host != own.host || near_and_allowed(ranks[other]) != mine) continue;
    ++sharing;
    before += other < static_cast<std::size_t>(rank) ? 1 : 0;
  }
  if (mine.empty() || (sharing == 1 && mine == own.allowed)) return {};
  const std::vector<Cpus> cores = topology.by_core(mine);
  if (cores.size() < sharing) return mine;
  Cpus part;
  for (std::size_t core = before * cores.size() / sharing; core < (before + 1) * cores.size() / sharing; ++core) {
    part.insert(part.end(), cores[core].begin(), cores[core].end());
  }
  std::ranges::sort(part);
  return part;
}

Cpus allowed_cpus() {
  cpu_set_t set;
  Cpus cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void bind_near_gpu(const comm::Communicator& ranks, const std::string& pci_bus_id, const Topology& topology) {
  const auto text_of = [](const Cpus& cpus) { return std::string(reinterpret_cast<const char*>(cpus.data()), cpus.size() * sizeof(int)); };
  const auto cpus_of = [](const std::string& text) {
    Cpus cpus(text.size() / sizeof(int));
    std::ranges::copy(text, reinterpret_cast<char*>(cpus.data()));
    return cpus;
  };
  const std::vector<std::string> hosts = ranks.all_gather_bytes(host_id(), Stream());
  const std::vector<std::string> allowed = ranks.all_gather_bytes(text_of(allowed_cpus()), Stream());
  const std::vector<std::string> near = ranks.all_gather_bytes(text_of(topology.near(pci_bus_id)), Stream());
  std::vector<RankCores> all;
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) all.push_back({hosts[rank], cpus_of(allowed[rank]), cpus_of(near[rank])});
  for (const char* decided : {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"}) {
    if (std::getenv(decided) != nullptr) return;
  }
  const Cpus chosen = cores_near_gpu(all, ranks.rank(), topology);
  if (chosen.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : chosen) CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);  // if it may not, it stays where it is
}

}  // namespace periplus::launch
