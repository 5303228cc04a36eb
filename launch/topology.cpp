#include "launch/topology.h"

#include <algorithm>

#include <fmt/format.h>
#include <hwloc.h>

namespace periplus::launch {
namespace {

std::string count_text(int count, const char* noun) { return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s"); }

Cpus to_cpus(hwloc_const_bitmap_t set) {
  Cpus cpus;
  for (int cpu = hwloc_bitmap_first(set); cpu >= 0; cpu = hwloc_bitmap_next(set, cpu)) cpus.push_back(cpu);
  return cpus;
}

}  // namespace

struct Topology::Machine {
  hwloc_topology_t topology;
  int count(hwloc_obj_type_t type) const { return std::max(0, hwloc_get_nbobjs_by_type(topology, type)); }
};

Topology::Topology(const std::string& xml_file) {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return;
  // PCI devices alone: to look for more, plugins of hwloc would start CUDA and others.
  const bool good = (xml_file.empty() || hwloc_topology_set_xml(topology, xml_file.c_str()) == 0) &&
                    hwloc_topology_set_type_filter(topology, HWLOC_OBJ_PCI_DEVICE, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) == 0 &&
                    hwloc_topology_load(topology) == 0;
  if (good) {
    machine_ = std::make_unique<Machine>(topology);
  } else {
    hwloc_topology_destroy(topology);
  }
}

Topology::~Topology() {
  if (machine_) hwloc_topology_destroy(machine_->topology);
}

std::string Topology::summary() const {
  if (!machine_) return "";
  return fmt::format("{}, {}, {}, {}", count_text(machine_->count(HWLOC_OBJ_PACKAGE), "package"),
                     count_text(machine_->count(HWLOC_OBJ_NUMANODE), "NUMA node"), count_text(machine_->count(HWLOC_OBJ_CORE), "core"),
                     count_text(machine_->count(HWLOC_OBJ_PU), "hardware thread"));
}

Cpus Topology::near(const std::string& pci_bus_id) const {
  if (!machine_) return {};
  const hwloc_obj_t device = hwloc_get_pcidev_by_busidstring(machine_->topology, pci_bus_id.c_str());
  if (device == nullptr) return {};
  const hwloc_obj_t place = hwloc_get_non_io_ancestor_obj(machine_->topology, device);
  return place == nullptr || place->cpuset == nullptr ? Cpus() : to_cpus(place->cpuset);
}

std::vector<Cpus> Topology::by_core(const Cpus& cpus) const {
  std::vector<Cpus> cores;
  if (!machine_) return cores;
  for (int index = 0; index < machine_->count(HWLOC_OBJ_CORE); ++index) {
    Cpus mine;
    std::ranges::set_intersection(to_cpus(hwloc_get_obj_by_type(machine_->topology, HWLOC_OBJ_CORE, static_cast<unsigned>(index))->cpuset),
                                  cpus, std::back_inserter(mine));
    if (!mine.empty()) cores.push_back(std::move(mine));
  }
  return cores;
}

}  // namespace periplus::launch
