#include "parallel/planner/description.h"

#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

void require(bool holds, const std::string& who, std::string_view key, double value, std::string_view rule) {
  if (!holds) throw InvalidArgument(fmt::format("{}: {} is {:g}; it must be {}", who, key, value, rule));
}

void require_positive(const std::string& who, std::string_view key, double value) {
  require(std::isfinite(value) && value > 0, who, key, value, "a number above 0");
}

void require_not_negative(const std::string& who, std::string_view key, double value) {
  require(std::isfinite(value) && value >= 0, who, key, value, "0 or more");
}

}  // namespace

void check(const Model& model) {
  const std::string who = "model " + model.name;
  require_positive(who, "shape.layers", model.layers);
  require_positive(who, "shape.hidden", model.hidden);
  require_positive(who, "shape.heads", model.heads);
  require_positive(who, "shape.kv_heads", model.kv_heads);
  require(model.hidden % model.heads == 0, who, "shape.heads", model.heads, fmt::format("a divisor of shape.hidden, {}", model.hidden));
  require(model.heads % model.kv_heads == 0, who, "shape.kv_heads", model.kv_heads,
          fmt::format("a divisor of shape.heads, {}", model.heads));
  require_positive(who, "shape.element_bytes", model.element_bytes);
  require_not_negative(who, "seconds.pair", model.seconds_per_pair);
  require_positive(who, "seconds.token", model.seconds_per_token);
  require_not_negative(who, "seconds.micro_batch", model.seconds_per_micro_batch);
  require_positive(who, "memory.activation_bytes", model.activation_bytes);
  require_not_negative(who, "memory.state_bytes", model.state_bytes);
}

void check(const Machine& machine) {
  const std::string who = "machine " + machine.name;
  require_positive(who, "devices.count", machine.devices);
  require_positive(who, "devices.per_node", machine.devices_per_node);
  require_positive(who, "devices.memory_bytes", machine.memory_bytes);
  require_positive(who, "links.device_bytes_per_second", machine.link_bytes_per_second);
  require_positive(who, "links.stream_bytes_per_second", machine.stream_bytes_per_second);
  require_positive(who, "links.node_bytes_per_second", machine.node_bytes_per_second);
  require_not_negative(who, "links.hop_seconds", machine.hop_seconds);
  require(machine.ring_efficiency > 0 && machine.ring_efficiency <= 1, who, "links.ring_efficiency", machine.ring_efficiency,
          "above 0 and at most 1");
  int last = 1;
  for (const Machine::AllToAll& row : machine.all_to_all) {
    require(row.degree > last, who, "all_to_all.degrees", row.degree, "above 1 and ascending");
    require(row.degree <= machine.devices_per_node || row.degree % machine.devices_per_node == 0, who, "all_to_all.degrees", row.degree,
            fmt::format("at most the {} devices of a node, or whole nodes", machine.devices_per_node));
    require_positive(who, "all_to_all.bytes_per_second", row.bytes_per_second);
    last = row.degree;
  }
}

}  // namespace periplus::planner
