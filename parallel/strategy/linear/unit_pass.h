#pragma once

#include <vector>

#include "parallel/linear_attention.h"
#include "parallel/plan/builder.h"
#include "parallel/units.h"

namespace periplus::strategy::linear {

/// What a strategy works on: the caller's tensors, but for values with a normaliser. Forward has out, and writes incoming and following;
/// backward has dout and gradients.
struct Slots {
  plan::ProgramBuilder::UnitInputs inputs;
  plan::View incoming;
  plan::View following = {};    ///< Bidirectional: the states of the tokens behind the units.
  plan::View transitions = {};  ///< Of all units, if they are kept: forward writes them, backward reads them.
  plan::View out = {}, dout = {};
  plan::ProgramBuilder::UnitGradients gradients = {};
};

/// The units of the problem's layout, which the programs of a plan share.
const Units& units_of(plan::ProgramBuilder& program, const LinearAttentionProblem& problem);

/// One pass of one rank, by groups of heads: the steps that a strategy puts into an order and joins by messages. Forward and
/// backward are mirror images: states run up the units, gradients of states down them. So is the mirrored pass of bidirectional
/// attention (kernels/linear_tokens.h): its states run down, its gradients up.
class UnitPass {
 public:
  UnitPass(plan::ProgramBuilder& program, const LinearAttentionProblem& problem, const Slots& on, Pass pass, int groups,
           bool mirrored = false);

  const Units& units() const noexcept { return units_; }
  /// Numbers of the rank's units.
  std::span<const std::int64_t> own() const { return units_.of_rank(program_.rank()); }
  int groups() const noexcept { return static_cast<int>(heads_.size()); }
  /// Whether states run down the units.
  bool reverse() const noexcept { return backward() != mirrored_; }
  bool backward() const noexcept { return pass_ == Pass::backward; }
  /// Scratch of a group for so many elements or states.
  plan::View element_scratch(std::string_view name, int group, std::int64_t count);
  plan::View state_scratch(std::string_view name, int group, std::int64_t count);

  /// Whether there are transitions to keep on this rank.
  bool keeps_transitions() const noexcept { return on_.transitions.present() && on_.transitions.rows > 0; }
  plan::View transitions(int group) const {
    const auto& [first, count] = heads_[static_cast<std::size_t>(group)];
    return on_.transitions.heads_at(first, count);
  }

  /// Emits the step that makes the elements of the rank's units, and returns them.
  plan::View make_elements(int group);
  /// Where the states belong that come to the rank's units: `incoming`, `following`, or the gradients of those that go out.
  plan::View states(int group) const { return states_[static_cast<std::size_t>(group)]; }
  /// The folds that give them.
  std::vector<kernels::UnitFold> folds_of(int rank) const { return reverse() ? units_.outgoing_of(rank) : units_.incoming_of(rank); }
  void scan(plan::Label label, plan::View elements, plan::Range folds, plan::View states, plan::Mode mode);
  /// Emits the recurrence from states(group) on: over all rows, or those of one of the rank's units.
  void apply(int group);
  void apply(int group, std::int64_t own_unit);

 private:
  struct Heads {
    std::int64_t first, count;
  };
  plan::View scratch(std::string_view name, int group, std::int64_t count, std::int64_t width);
  void emit_apply(int group, std::int64_t row0, std::int64_t rows, const plan::ProgramBuilder::Recurrence& how, std::int64_t unit,
                  std::int64_t units);
  void emit_mirrored(int group, std::int64_t row0, std::int64_t rows, plan::ProgramBuilder::Recurrence how, std::int64_t unit,
                     std::int64_t units);
  plan::View token_scratch(std::string_view name, plan::View like);
  void make_token_scratch();

  plan::ProgramBuilder& program_;
  const LinearAttentionProblem& problem_;
  Slots on_;
  Pass pass_;
  bool mirrored_;
  const Units& units_;
  std::vector<Heads> heads_;  ///< of the groups
  std::vector<plan::View> states_;
  plan::View mirrored_decay_, mirrored_out_;  ///< Of the mirrored pass.
  plan::ProgramBuilder::UnitGradients mirrored_gradients_;
  plan::ProgramBuilder::Recurrence whole_;               ///< All runs of the rank.
  std::vector<plan::ProgramBuilder::Recurrence> parts_;  ///< Those of each of its units.
};

}  // namespace periplus::strategy::linear
