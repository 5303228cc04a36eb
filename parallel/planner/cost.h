#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "parallel/planner/description.h"

namespace periplus::planner {

enum class Method { local, ulysses, ring, usp, gather_kv };
std::string_view to_string(Method method) noexcept;

/// A way to run a group: how many devices, and how they exchange. Coefficients of its cost, by the length s of a sequence:
///   seconds(s) = max(pair * s * s, hidden * s) + token * s
/// where `hidden` is transfer that attention can hide. The sequences of a group run one after another.
struct Kind {
  int degree = 1;
  Method method = Method::local;
  int head_degree = 1;  ///< Devices that share heads: the degree for ulysses, the inner one for usp.
  double pair = 0, hidden = 0, token = 0;
  double start = 0;           ///< Seconds of a group whatever it holds.
  std::int64_t capacity = 0;  ///< Tokens that fit, all sequences together.

  double seconds(std::int64_t length) const noexcept;
};

struct CostOptions {
  int devices = 0;            ///< 0: all of the machine.
  bool ulysses_only = false;  ///< Groups of more than one device exchange heads.
};

/// The cost tables of a model on a machine. Immutable; built once.
class CostModel {
 public:
  /// Errors: InvalidArgument for descriptions that contradict themselves, more devices than the machine has, or a model whose
  /// states alone do not fit.
  CostModel(const Model& model, const Machine& machine, const CostOptions& options = {});

  int devices() const noexcept { return devices_; }
  int devices_per_node() const noexcept { return devices_per_node_; }
  double micro_batch_seconds() const noexcept { return micro_batch_seconds_; }
  /// Ascending degree; within a degree ulysses first if it is legal.
  std::span<const Kind> kinds() const noexcept { return kinds_; }
  /// Ascending, with the kinds of each: [first_kind, first_kind of the next).
  std::span<const int> degrees() const noexcept { return degrees_; }
  int first_kind(int degree_index) const { return first_kind_.at(degree_index); }

  /// Tokens that fit on all devices together in one micro-batch, and the longest sequence that fits at all.
  std::int64_t tokens_per_micro_batch() const noexcept;
  std::int64_t longest() const noexcept;
  /// Least number of devices of such a machine that would hold one sequence of that length.
  std::int64_t devices_for(std::int64_t length) const;

 private:
  void add_kinds(const Model& model, const Machine& machine, int degree, double all_to_all, bool ulysses_only);

  int devices_ = 0, devices_per_node_ = 0;
  double micro_batch_seconds_ = 0;
  double memory_bytes_ = 0, activation_bytes_ = 0, state_bytes_ = 0;
  std::vector<Kind> kinds_;
  std::vector<int> degrees_, first_kind_;
  std::vector<int> possible_degrees_;  ///< Of the machine, also beyond `devices_`.
};

}  // namespace periplus::planner
