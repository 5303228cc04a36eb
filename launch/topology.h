#pragma once

#include <memory>
#include <string>
#include <vector>

/// What lies near what inside of this machine: topology.cpp asks hwloc; in a build without it topology_absent.cpp knows nothing.
namespace periplus::launch {

/// Hardware threads by the numbers that the system gives them, rising.
using Cpus = std::vector<int>;

/// "0-3,8"
std::string to_string(const Cpus& cpus);

class Topology {
 public:
  /// This machine, or the one that the file of lstopo describes. Knows nothing if that cannot be had.
  explicit Topology(const std::string& xml_file = "");
  ~Topology();
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;

  /// "2 packages, 4 NUMA nodes, 64 cores, 128 hardware threads"; empty if it knows nothing.
  std::string summary() const;
  /// The hardware threads that are nearest to the device at "0000:18:00.0"; empty if it does not know.
  Cpus near(const std::string& pci_bus_id) const;
  /// Those of `cpus`, one list for each core.
  std::vector<Cpus> by_core(const Cpus& cpus) const;

 private:
  struct Machine;
  std::unique_ptr<Machine> machine_;
};

}  // namespace periplus::launch
