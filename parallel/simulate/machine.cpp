#include "parallel/simulate/machine.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "runtime/error.h"

namespace periplus::simulate {
namespace {

void require(bool holds, const Machine& machine, std::string_view key, double value, std::string_view rule) {
  if (!holds) throw InvalidArgument(fmt::format("machine {}: {} is {:g}; it must be {}", machine.name, key, value, rule));
}
void require_positive(const Machine& machine, std::string_view key, double value) {
  require(std::isfinite(value) && value > 0, machine, key, value, "a number above 0");
}
void require_not_negative(const Machine& machine, std::string_view key, double value) {
  require(std::isfinite(value) && value >= 0, machine, key, value, "0 or more");
}

void check(const Machine& machine, const AttentionCurve& curve, std::string_view pass) {
  const auto key = [&](std::string_view name) { return fmt::format("kernels.{}_{}", pass, name); };
  if (curve.lengths.empty() || curve.lengths.size() != curve.causal_flops_per_second.size() ||
      curve.lengths.size() != curve.full_flops_per_second.size()) {
    throw InvalidArgument(fmt::format("machine {}: {} has {} lengths, {} causal and {} full rates; each length needs one of both",
                                      machine.name, key("lengths"), curve.lengths.size(), curve.causal_flops_per_second.size(),
                                      curve.full_flops_per_second.size()));
  }
  double last = 0;
  for (std::size_t i = 0; i < curve.lengths.size(); ++i) {
    require(curve.lengths[i] > last, machine, key("lengths"), curve.lengths[i], "above 0 and ascending");
    last = curve.lengths[i];
    require_positive(machine, key("causal"), curve.causal_flops_per_second[i]);
    require_positive(machine, key("full"), curve.full_flops_per_second[i]);
  }
}

double at_length(const std::vector<double>& lengths, const std::vector<double>& values, double length) {
  if (length <= lengths.front()) return values.front();
  if (length >= lengths.back()) return values.back();
  const auto above = static_cast<std::size_t>(std::ranges::upper_bound(lengths, length) - lengths.begin());
  const double part = std::log(length / lengths[above - 1]) / std::log(lengths[above] / lengths[above - 1]);
  return std::lerp(values[above - 1], values[above], part);
}

/// What the bands of a step cover of its rows: queries, keys, allowed pairs.
struct Block {
  std::int64_t rows = 0, keys = 0;
  double pairs = 0;
};

std::int64_t covered(std::vector<std::pair<std::int64_t, std::int64_t>>& ranges) {
  std::ranges::sort(ranges);
  std::int64_t sum = 0, end = 0;
  for (const auto& [from, to] : ranges) {
    sum += std::max<std::int64_t>(0, to - std::max(from, end));
    end = std::max(end, to);
  }
  return sum;
}

Block block_of(std::span<const Band> bands) {
  Block block;
  std::vector<std::pair<std::int64_t, std::int64_t>> rows, keys;
  for (const Band& band : bands) {
    rows.emplace_back(band.q0, band.q1), keys.emplace_back(band.k0, band.k1);
    block.pairs += static_cast<double>(area(band));
  }
  block.rows = covered(rows), block.keys = covered(keys);
  return block;
}

double row_bytes(const plan::Program& program, const plan::View& view) {
  constexpr double kF32 = 4;
  return kF32 * static_cast<double>(view.heads * program.slot_of(view).width);
}

/// How much larger a head is than the query's when a kernel pads it.
double padding(const Kernels& kernels, const plan::Program& program, const plan::Step& step) {
  const auto width = static_cast<double>(program.slot_of(program.accesses_of(step)[plan::attend_operand::q].view).width);
  const auto size = std::ranges::lower_bound(kernels.head_sizes, width);
  return size == kernels.head_sizes.end() ? 1 : *size / width;
}

/// Pairs of the whole tiles that bands touch. Tiles count from the first row and key of the views.
double tiled_pairs(const Kernels& kernels, std::span<const Band> bands) {
  const auto rows = static_cast<std::int64_t>(kernels.tile_queries), keys = static_cast<std::int64_t>(kernels.tile_keys);
  double pairs = 0;
  for (const Band& band : bands) {
    for (std::int64_t q = band.q0 / rows * rows; q < band.q1; q += rows) {
      const std::int64_t first = std::max(q, band.q0), last = std::min(q + rows, band.q1) - 1;
      const std::int64_t begin = std::max(band.k0, first + band.lo), end = std::min(band.k1, last + band.hi + 1);
      if (begin < end) pairs += static_cast<double>(rows) * static_cast<double>((end + keys - 1) / keys * keys - begin / keys * keys);
    }
  }
  return pairs;
}

double attention_seconds(const Kernels& kernels, const AttentionCurve& curve, const plan::Program& program, const plan::Step& step,
                         const Block& block) {
  if (block.pairs == 0) return 0;
  const double all = static_cast<double>(block.rows) * static_cast<double>(block.keys);
  const double tiles = kernels.tile_queries > 0 ? tiled_pairs(kernels, program.bands_of(step)) / block.pairs : 1;
  return kernels.launch_seconds +
         tiles * padding(kernels, program, step) * plan::flops(program, step) / curve.rate(std::sqrt(all), block.pairs / all);
}

double forward_seconds(const Kernels& kernels, const plan::Program& program, const plan::Step& step) {
  const Block block = block_of(program.bands_of(step));
  double seconds = attention_seconds(kernels, kernels.forward, program, step, block);
  if (block.pairs == 0) return seconds;
  const plan::Access& out = program.accesses_of(step)[plan::attend_operand::out];
  const bool first = out.mode != plan::Mode::add;
  const double passes = first                        ? kernels.first_merge_passes
                        : block.rows < out.view.rows ? kernels.sliced_merge_passes
                                                     : kernels.merge_passes;
  if (!first) seconds += kernels.merge_launches * kernels.launch_seconds;
  return seconds + passes * static_cast<double>(block.rows) * row_bytes(program, out.view) /
                       (kernels.memory_bytes_per_second * kernels.merge_efficiency);
}

double backward_seconds(const Kernels& kernels, const plan::Program& program, const plan::Step& step) {
  using namespace plan::attend_backward_operand;
  const Block block = block_of(program.bands_of(step));
  const auto accesses = program.accesses_of(step);
  const double rows = static_cast<double>(block.rows), keys = static_cast<double>(block.keys);
  const double bytes =
      rows * row_bytes(program, accesses[dq].view) + keys * (row_bytes(program, accesses[dk].view) + row_bytes(program, accesses[dv].view));
  return attention_seconds(kernels, kernels.backward, program, step, block) +
         kernels.backward_merge_passes * bytes / (kernels.memory_bytes_per_second * kernels.merge_efficiency);
}

double bytes_of(const plan::Program& program, plan::Op op) {
  double sum = 0;
  for (const plan::Step& step : program.steps)
    if (step.op == op) sum += static_cast<double>(plan::bytes(program, step));
  return sum;
}

/// Chunked kernels were measured over all that they do, the states of chunks among it. Where a plan makes states in steps of their own, the
/// steps of both kinds together take what those that apply them would take alone, and share it by their bytes.
double linear_seconds(const Kernels& kernels, const plan::Program& program, const plan::Step& step, plan::Op states, plan::Op apply,
                      double efficiency) {
  const double bytes = static_cast<double>(plan::bytes(program, step));
  if (bytes == 0) return 0;
  double share = 1;
  if (step.op == states || step.op == apply) {
    const double made = bytes_of(program, states), applied = bytes_of(program, apply);
    if (applied > 0) share = applied / (made + applied);
  }
  const double seconds = std::max(plan::flops(program, step) / kernels.matmul_flops_per_second,
                                  share * bytes / (kernels.memory_bytes_per_second * efficiency));
  return kernels.launch_seconds + seconds;
}

}  // namespace

double AttentionCurve::rate(double length, double fill) const {
  const double causal = at_length(lengths, causal_flops_per_second, length), full = at_length(lengths, full_flops_per_second, length);
  const double part = std::clamp(2 * fill - 1, 0.0, 1.0);
  return 1 / std::lerp(1 / causal, 1 / full, part);
}

void check(const Machine& machine) {
  require_positive(machine, "devices.count", machine.devices);
  require_positive(machine, "devices.per_node", machine.devices_per_node);
  require_positive(machine, "devices.memory_bytes", machine.memory_bytes);
  require_not_negative(machine, "devices.peak_flops_per_second", machine.peak_flops_per_second);
  require_positive(machine, "links.device_bytes_per_second", machine.links.inside.bytes_per_second);
  require_not_negative(machine, "links.device_hop_seconds", machine.links.inside.latency_seconds);
  require_positive(machine, "links.stream_bytes_per_second", machine.links.between.bytes_per_second);
  require_not_negative(machine, "links.hop_seconds", machine.links.between.latency_seconds);
  require_positive(machine, "links.node_bytes_per_second", machine.node_bytes_per_second);
  require_not_negative(machine, "links.collective_seconds", machine.collective_seconds);
  require_not_negative(machine, "links.host_bytes_per_second", machine.host_bytes_per_second);
  require(std::isfinite(machine.overlap_slowdown) && machine.overlap_slowdown >= 1, machine, "links.overlap_slowdown",
          machine.overlap_slowdown, "1 or more");
  require(machine.exposed_gather_share >= 0 && machine.exposed_gather_share <= 1, machine, "links.exposed_gather_share",
          machine.exposed_gather_share, "0 to 1");
  const Kernels& kernels = machine.kernels;
  require_positive(machine, "kernels.matmul_flops_per_second", kernels.matmul_flops_per_second);
  require_positive(machine, "kernels.memory_bytes_per_second", kernels.memory_bytes_per_second);
  require_not_negative(machine, "kernels.launch_seconds", kernels.launch_seconds);
  require_not_negative(machine, "kernels.merge_passes", kernels.merge_passes);
  require_not_negative(machine, "kernels.sliced_merge_passes", kernels.sliced_merge_passes);
  require_not_negative(machine, "kernels.first_merge_passes", kernels.first_merge_passes);
  require_not_negative(machine, "kernels.merge_launches", kernels.merge_launches);
  require_not_negative(machine, "kernels.backward_merge_passes", kernels.backward_merge_passes);
  for (const auto& [key, value] : {std::pair{"kernels.linear_efficiency", kernels.linear_efficiency},
                                   {"kernels.linear_backward_efficiency", kernels.linear_backward_efficiency},
                                   {"kernels.merge_efficiency", kernels.merge_efficiency}}) {
    require(value > 0 && value <= 1, machine, key, value, "above 0 and at most 1");
  }
  for (const auto& [key, value] : {std::pair{"kernels.tile_queries", kernels.tile_queries}, {"kernels.tile_keys", kernels.tile_keys}}) {
    constexpr double kMost = 1 << 20;
    require(value == 0 || (value >= 1 && value <= kMost && std::floor(value) == value), machine, key, value,
            "a number of rows up to 1048576, or 0");
  }
  require((kernels.tile_queries > 0) == (kernels.tile_keys > 0), machine, "kernels.tile_keys", kernels.tile_keys,
          "given with kernels.tile_queries");
  double last = 0;
  for (const double size : kernels.head_sizes) {
    require(size > last, machine, "kernels.head_sizes", size, "above 0 and ascending");
    last = size;
  }
  check(machine, kernels.forward, "forward");
  check(machine, kernels.backward, "backward");
}

double step_seconds(const Kernels& kernels, const plan::Program& program, const plan::Step& step) {
  const double bytes = static_cast<double>(plan::bytes(program, step));
  switch (step.op) {
    case plan::Op::attend:
      return forward_seconds(kernels, program, step);
    case plan::Op::attend_backward:
      return backward_seconds(kernels, program, step);
    case plan::Op::unit_states:
    case plan::Op::unit_scan:
    case plan::Op::unit_apply:
      return linear_seconds(kernels, program, step, plan::Op::unit_states, plan::Op::unit_apply, kernels.linear_efficiency);
    case plan::Op::unit_states_backward:
    case plan::Op::unit_apply_backward:
      return linear_seconds(kernels, program, step, plan::Op::unit_states_backward, plan::Op::unit_apply_backward,
                            kernels.linear_backward_efficiency);
    default:
      return bytes == 0 ? 0 : kernels.launch_seconds + bytes / kernels.memory_bytes_per_second;
  }
}

double gather_seconds(const Machine& machine, int group, double bytes, int groups) {
  if (group <= 1) return 0;
  const int nodes = machine.nodes_of(group * groups);
  const double through_links = bytes * (group - 1) / group / machine.links.inside.bytes_per_second;
  const double through_cards = nodes > 1 ? bytes * groups * (group - 1) / group / machine.node_bytes_per_second : 0;
  // As NCCL counts them: a message goes through all other devices, and once between any two nodes.
  const int between = std::min(nodes, group) - 1;
  const double hops = (group - 1 - between) * machine.links.inside.latency_seconds + between * machine.links.between.latency_seconds;
  return machine.collective_seconds + std::max(through_links, through_cards) + hops;
}

}  // namespace periplus::simulate
