#include "launch/topology.h"

namespace periplus::launch {

struct Topology::Machine {};

Topology::Topology(const std::string&) {}
Topology::~Topology() = default;
std::string Topology::summary() const { return ""; }
Cpus Topology::near(const std::string&) const { return {}; }
std::vector<Cpus> Topology::by_core(const Cpus&) const { return {}; }

}  // namespace periplus::launch
