#include "parallel/planner/cost.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

constexpr double kSumBytes = 4;  // gradients of keys and values travel and gather in f32

/// Bytes of a token's keys and values of one layer, and of what a ring moves of them: forward, backward, and the gradients.
double kv_elements(const Model& model, int head_degree) {
  const double kv_heads = std::max(1.0, static_cast<double>(model.kv_heads) / head_degree);
  return 2 * kv_heads * model.head_size();
}
double kv_bytes_moved(const Model& model, int head_degree) {
  return model.layers * kv_elements(model, head_degree) * (2 * model.element_bytes + kSumBytes);
}

bool shares_heads(const Model& model, int degree) {
  return model.heads % degree == 0 && (model.kv_heads % degree == 0 || degree % model.kv_heads == 0);
}

/// Bytes a device sends for a token of its group: queries and results, keys and values, forward and backward. Where fewer
/// heads than devices hold keys, each device needs a copy of one.
double head_exchange_bytes(const Model& model, int head_degree) {
  const double kv_share = std::max(static_cast<double>(model.kv_heads) / head_degree, 1.0);
  const double elements = 2.0 * model.hidden / head_degree + 2 * kv_share * model.head_size();
  return 2.0 * model.layers * elements * model.element_bytes;
}

/// One device's share of the links that a ring of `hops` devices uses, of which `rings` run side by side in a group.
double ring_bytes_per_second(const Machine& machine, int degree, int rings) {
  if (degree <= machine.devices_per_node) return machine.link_bytes_per_second;
  const double share = machine.node_bytes_per_second / std::min(rings, machine.devices_per_node);
  return std::min({machine.link_bytes_per_second, machine.stream_bytes_per_second, share});
}

double all_to_all_rate(const Machine& machine, int degree) {
  const auto row = std::ranges::find(machine.all_to_all, degree, &Machine::AllToAll::degree);
  return row == machine.all_to_all.end() ? 0 : row->bytes_per_second;
}

Kind plain(const Model& model, int degree) {
  return {.degree = degree, .pair = model.seconds_per_pair / degree, .token = model.seconds_per_token / degree};
}

/// Heads over `inner` devices, a ring over the rest; inner == 1 is a plain ring.
Kind ring_kind(const Model& model, const Machine& machine, int degree, int inner) {
  Kind kind = plain(model, degree);
  const int outer = degree / inner;
  kind.method = inner == 1 ? Method::ring : Method::usp;
  kind.head_degree = inner;
  kind.pair /= machine.ring_efficiency;
  const double moved = kv_bytes_moved(model, inner) * (outer - 1) / outer;
  kind.hidden = moved / ring_bytes_per_second(machine, degree, inner);
  // Once forward; in backward blocks and sums.
  kind.start = 3.0 * model.layers * (outer - 1) * machine.hop_seconds;
  if (inner > 1) kind.token += head_exchange_bytes(model, inner) / outer / all_to_all_rate(machine, inner);
  return kind;
}

Kind gather_kind(const Model& model, const Machine& machine, int degree) {
  Kind kind = plain(model, degree);
  kind.method = Method::gather_kv;
  const double rate = degree <= machine.devices_per_node ? machine.link_bytes_per_second
                                                         : std::min(machine.link_bytes_per_second, machine.node_bytes_per_second);
  kind.token += kv_bytes_moved(model, 1) * (degree - 1) / degree / rate;
  return kind;
}

}  // namespace

std::string_view to_string(Method method) noexcept {
  constexpr std::string_view kNames[] = {"local", "ulysses", "ring", "usp", "gather_kv"};
  return kNames[static_cast<int>(method)];
}

double Kind::seconds(std::int64_t length) const noexcept {
  const auto s = static_cast<double>(length);
  return std::max(pair * s * s, hidden * s) + token * s;
}

CostModel::CostModel(const Model& model, const Machine& machine, const CostOptions& options)
    : devices_(options.devices == 0 ? machine.devices : options.devices),
      devices_per_node_(machine.devices_per_node),
      micro_batch_seconds_(model.seconds_per_micro_batch),
      memory_bytes_(machine.memory_bytes),
      activation_bytes_(model.activation_bytes),
      state_bytes_(model.state_bytes) {
  check(model);
  check(machine);
  possible_degrees_.push_back(1);
  for (const Machine::AllToAll& row : machine.all_to_all) possible_degrees_.push_back(row.degree);
  if (devices_ < 1 || devices_ > machine.devices)
    throw InvalidArgument(fmt::format("planner: {} devices: machine {} has {}", devices_, machine.name, machine.devices));
  if (state_bytes_ / devices_ + activation_bytes_ > memory_bytes_) {
    throw InvalidArgument(
        fmt::format("planner: the states of model {}, {:.3g} bytes a device on {} devices, leave no room in {:.3g}; it needs {} devices",
                    model.name, state_bytes_ / devices_, devices_, memory_bytes_, devices_for(1)));
  }
  add_kinds(model, machine, 1, 0, options.ulysses_only);
  for (const Machine::AllToAll& row : machine.all_to_all) {
    if (row.degree <= devices_) add_kinds(model, machine, row.degree, row.bytes_per_second, options.ulysses_only);
  }
}

void CostModel::add_kinds(const Model& model, const Machine& machine, int degree, double all_to_all, bool ulysses_only) {
  const std::size_t first = kinds_.size();
  if (degree == 1) {
    kinds_.push_back(plain(model, 1));
  } else {
    if (shares_heads(model, degree)) {
      Kind kind = plain(model, degree);
      kind.method = Method::ulysses, kind.head_degree = degree;
      kind.token += head_exchange_bytes(model, degree) / all_to_all;
      kinds_.push_back(kind);
    }
    for (int inner = 1; inner < degree && !ulysses_only; ++inner) {
      if (degree % inner != 0 || !shares_heads(model, inner) || (inner > 1 && all_to_all_rate(machine, inner) == 0)) continue;
      if (inner > machine.devices_per_node) continue;  // heads over nodes and a ring inside them: never the better way round
      kinds_.push_back(ring_kind(model, machine, degree, inner));
    }
    if (!ulysses_only) kinds_.push_back(gather_kind(model, machine, degree));
  }
  if (kinds_.size() == first) return;
  for (std::size_t k = first; k < kinds_.size(); ++k) {
    // gather_kv holds one layer's keys and values of all the group's tokens, and their gradients.
    const double gathered = kinds_[k].method == Method::gather_kv ? kv_elements(model, 1) * (model.element_bytes + kSumBytes) : 0;
    const double free = memory_bytes_ - state_bytes_ / devices_;
    kinds_[k].capacity = static_cast<std::int64_t>(std::floor(free / (activation_bytes_ / degree + gathered)));
  }
  degrees_.push_back(degree);
  first_kind_.push_back(static_cast<int>(first));
  if (first_kind_.size() == degrees_.size()) first_kind_.push_back(0);
  first_kind_.back() = static_cast<int>(kinds_.size());
}

std::int64_t CostModel::tokens_per_micro_batch() const noexcept {
  return static_cast<std::int64_t>(std::floor((memory_bytes_ - state_bytes_ / devices_) / activation_bytes_ * devices_));
}

std::int64_t CostModel::longest() const noexcept {
  std::int64_t most = 0;
  for (const Kind& kind : kinds_) most = std::max(most, kind.capacity);
  return most;
}

std::int64_t CostModel::devices_for(std::int64_t length) const {
  const double bytes = static_cast<double>(length) * activation_bytes_;
  const auto up = [](double value) { return static_cast<std::int64_t>(std::ceil(value * (1 - 1e-12))); };
  std::int64_t least = 0;
  for (const int degree : possible_degrees_) {
    const double free = memory_bytes_ - bytes / degree;
    if (free < 0 || (free == 0 && state_bytes_ > 0)) continue;
    const std::int64_t devices = std::max<std::int64_t>(degree, state_bytes_ > 0 ? up(state_bytes_ / free) : 1);
    if (least == 0 || devices < least) least = devices;
  }
  if (least > 0) return least;
  // Beyond what was measured: one group of whole nodes.
  const std::int64_t devices = up((bytes + state_bytes_) / memory_bytes_);
  return (devices + devices_per_node_ - 1) / devices_per_node_ * devices_per_node_;
}

}  // namespace periplus::planner
