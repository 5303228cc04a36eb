#include "parallel/plan/ops.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace periplus::plan {
namespace {

using enum OperandType;

constexpr std::array<Operand, 5> kAttend{
    {{"q", "r", storage}, {"k", "r", storage}, {"v", "r", storage}, {"out", "wa", accumulator}, {"lse", "wa", accumulator}}};
constexpr std::array<Operand, 9> kAttendBackward{{{"q", "r", storage},
                                                  {"k", "r", storage},
                                                  {"v", "r", storage},
                                                  {"dout", "r", storage},
                                                  {"lse", "r", accumulator},
                                                  {"delta", "r", accumulator},
                                                  {"dq", "wa", accumulator},
                                                  {"dk", "wa", accumulator},
                                                  {"dv", "wa", accumulator}}};
constexpr std::array<Operand, 4> kMerge{
    {{"part_out", "r", accumulator}, {"part_lse", "r", accumulator}, {"out", "a", accumulator}, {"lse", "a", accumulator}}};
constexpr std::array<Operand, 5> kFinish{{{"state_out", "r", accumulator},
                                          {"state_lse", "r", accumulator},
                                          {"sink", "r", accumulator, true},
                                          {"out", "w", storage},
                                          {"lse", "w", accumulator}}};
constexpr std::array<Operand, 7> kDelta{{{"dout", "r", storage},
                                         {"out", "r", storage},
                                         {"lse", "r", accumulator},
                                         {"dlse", "r", accumulator, true},
                                         {"sink", "r", accumulator, true},
                                         {"delta", "w", accumulator},
                                         {"dsink", "w", accumulator, true}}};
constexpr std::array<Operand, 2> kCopy{{{"source", "r", any}, {"destination", "w", any}}};
constexpr std::array<Operand, 2> kAdd{{{"source", "r", any}, {"destination", "a", any}}};

constexpr std::array<Operand, 5> kUnitStates{{{"k", "r", storage},
                                              {"v", "r", storage},
                                              {"log_decay", "r", accumulator, true},
                                              {"beta", "r", accumulator, true},
                                              {"elements", "w", accumulator}}};
constexpr std::array<Operand, 6> kUnitStatesBackward{{{"q", "r", storage},
                                                      {"k", "r", storage},
                                                      {"log_decay", "r", accumulator, true},
                                                      {"beta", "r", accumulator, true},
                                                      {"dout", "r", storage},
                                                      {"elements", "w", accumulator}}};
constexpr std::array<Operand, 2> kUnitScan{{{"elements", "r", accumulator}, {"states", "wa", accumulator}}};
constexpr std::array<Operand, 7> kUnitApply{{{"q", "r", storage},
                                             {"k", "r", storage},
                                             {"v", "r", storage},
                                             {"log_decay", "r", accumulator, true},
                                             {"beta", "r", accumulator, true},
                                             {"incoming", "r", accumulator},
                                             {"out", "w", storage}}};
constexpr std::array<Operand, kMostOperands> kUnitApplyBackward{{{"q", "r", storage},
                                                                 {"k", "r", storage},
                                                                 {"v", "r", storage},
                                                                 {"log_decay", "r", accumulator, true},
                                                                 {"beta", "r", accumulator, true},
                                                                 {"incoming", "r", accumulator},
                                                                 {"dout", "r", storage},
                                                                 {"doutgoing", "r", accumulator},
                                                                 {"dq", "w", storage},
                                                                 {"dk", "w", storage},
                                                                 {"dv", "w", storage},
                                                                 {"dlog_decay", "w", accumulator, true},
                                                                 {"dbeta", "w", accumulator, true}}};

// An element is its transition and what its unit adds to a state, M or N.
constexpr std::array<Operand, 3> kSplitElements{
    {{"elements", "r", accumulator}, {"transitions", "w", accumulator, true}, {"added", "w", accumulator, true}}};
constexpr std::array<Operand, 3> kJoinElements{
    {{"transitions", "r", accumulator}, {"added", "r", accumulator}, {"elements", "w", accumulator}}};

constexpr std::array<Operand, 2> kMirrorDecay{{{"log_decay", "r", accumulator}, {"mirrored", "w", accumulator}}};
constexpr std::array<Operand, 2> kDecayStates{{{"log_decay", "r", accumulator}, {"states", "a", accumulator}}};
constexpr std::array<Operand, 5> kAddMirrored{
    {{"q", "r", storage}, {"k", "r", storage}, {"v", "r", storage}, {"mirrored", "r", storage}, {"out", "a", storage}}};
constexpr std::array<Operand, 12> kAddMirroredBackward{{{"q", "r", storage},
                                                        {"k", "r", storage},
                                                        {"v", "r", storage},
                                                        {"dout", "r", storage},
                                                        {"mirrored_dq", "r", storage},
                                                        {"mirrored_dk", "r", storage},
                                                        {"mirrored_dv", "r", storage},
                                                        {"mirrored_dlog_decay", "r", accumulator, true},
                                                        {"dq", "a", storage},
                                                        {"dk", "a", storage},
                                                        {"dv", "a", storage},
                                                        {"dlog_decay", "a", accumulator, true}}};
constexpr std::array<Operand, 2> kExtendValues{{{"values", "r", storage}, {"extended", "w", storage}}};
constexpr std::array<Operand, 2> kCutValues{{{"extended", "r", storage}, {"values", "w", storage}}};
constexpr std::array<Operand, 3> kNormalise{{{"extended", "r", storage}, {"out", "w", storage}, {"normaliser", "w", accumulator}}};
constexpr std::array<Operand, 4> kNormaliseBackward{
    {{"dout", "r", storage}, {"out", "r", storage}, {"normaliser", "r", accumulator}, {"extended", "w", storage}}};

constexpr std::array<OpInfo, 23> kOps{{{Op::attend, "attend", kAttend},
                                       {Op::attend_backward, "attend_backward", kAttendBackward},
                                       {Op::merge, "merge", kMerge},
                                       {Op::finish, "finish", kFinish},
                                       {Op::delta, "delta", kDelta},
                                       {Op::copy, "copy", kCopy},
                                       {Op::add, "add", kAdd},
                                       {Op::exchange, "exchange", {}},
                                       {Op::unit_states, "unit_states", kUnitStates},
                                       {Op::unit_states_backward, "unit_states_backward", kUnitStatesBackward},
                                       {Op::unit_scan, "unit_scan", kUnitScan},
                                       {Op::unit_apply, "unit_apply", kUnitApply},
                                       {Op::unit_apply_backward, "unit_apply_backward", kUnitApplyBackward},
                                       {Op::split_elements, "split_elements", kSplitElements},
                                       {Op::join_elements, "join_elements", kJoinElements},
                                       {Op::mirror_decay, "mirror_decay", kMirrorDecay},
                                       {Op::decay_states, "decay_states", kDecayStates},
                                       {Op::add_mirrored, "add_mirrored", kAddMirrored},
                                       {Op::add_mirrored_backward, "add_mirrored_backward", kAddMirroredBackward},
                                       {Op::extend_values, "extend_values", kExtendValues},
                                       {Op::cut_values, "cut_values", kCutValues},
                                       {Op::normalise, "normalise", kNormalise},
                                       {Op::normalise_backward, "normalise_backward", kNormaliseBackward}}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < kOps.size(); ++i) {
    if (kOps[i].op != static_cast<Op>(i)) return false;
  }
  return true;
}
static_assert(in_order());

/// Flop of a linear attention step; D, E the widths, C the tokens of a chunk.
struct UnitFlops {
  double d, e;
  bool delta_rule;
  static constexpr double c = 64;

  /// Of the delta rule's WY form, per token: K K^T, its inverse, U and W.
  double wy() const { return 2 * c * (2 * d + e) + c * c; }
  /// The transition of a chunk, built and multiplied, or pushed through: the cheaper.
  double dense_transition() const { return std::min(2 * d * d + 2 * d * d * d / c, 4 * d * d); }
  double states() const { return delta_rule ? wy() + dense_transition() + 4 * d * e : 2 * d * e; }
  double states_backward() const { return delta_rule ? wy() + dense_transition() + 2 * c * (d + e) + 6 * d * e : 2 * d * e; }
  double apply() const { return 2 * c * (d + e) + 4 * d * e + (delta_rule ? wy() + 2 * d * e : 0); }
  /// 5.3: five products inside a chunk and five with states; 6.3 has the WY form's own gradients besides.
  double apply_backward() const {
    return 2 * c * (3 * d + 2 * e) + 10 * d * e + (delta_rule ? 2 * wy() + 2 * c * (3 * d + e) + 6 * d * e : 0);
  }
};

double unit_scan_flops(const Program& program, const Step& step) {
  const auto accesses = program.accesses_of(step);
  const double state = static_cast<double>(program.slot_of(accesses[unit_scan_operand::states].view).width);
  const double transition = static_cast<double>(program.slot_of(accesses[unit_scan_operand::elements].view).width) - state;
  double per_element = step.transition == kernels::Transition::identity ? state : 2 * state;
  if (step.transition == kernels::Transition::dense) per_element = state + 2 * std::sqrt(transition) * state;
  double elements = 0;
  for (const kernels::UnitFold& fold : program.folds_of(step)) elements += static_cast<double>(fold.end - fold.begin);
  return per_element * elements * static_cast<double>(accesses[unit_scan_operand::states].view.heads);
}

double unit_flops(const Program& program, const Step& step) {
  const auto accesses = program.accesses_of(step);
  const auto width = [&](std::size_t operand) { return static_cast<double>(program.slot_of(accesses[operand].view).width); };
  const bool backward = step.op == Op::unit_states_backward || step.op == Op::unit_apply_backward;
  const bool states = step.op == Op::unit_states || step.op == Op::unit_states_backward;
  const std::size_t value = step.op == Op::unit_states            ? std::size_t{unit_states_operand::v}
                            : step.op == Op::unit_states_backward ? std::size_t{unit_states_backward_operand::dout}
                                                                  : std::size_t{unit_apply_operand::v};
  double tokens = 0;
  for (const kernels::UnitRun& run : program.runs_of(step)) {
    if (!states || (backward ? run.enters : run.leaves)) tokens += static_cast<double>(run.rows);
  }
  const UnitFlops of{width(0), width(value), step.transition == kernels::Transition::dense};
  const double per_token = states ? (backward ? of.states_backward() : of.states()) : (backward ? of.apply_backward() : of.apply());
  return per_token * tokens * static_cast<double>(accesses[0].view.heads);
}

}  // namespace

const OpInfo& info(Op op) noexcept { return kOps[static_cast<std::size_t>(op)]; }

double flops(const Program& program, const Step& step) {
  if (step.op == Op::unit_scan) return unit_scan_flops(program, step);
  if (Op::unit_states <= step.op && step.op <= Op::unit_apply_backward) return unit_flops(program, step);
  if (step.op != Op::attend && step.op != Op::attend_backward) return 0;
  double pairs = 0;
  for (const Band& band : program.bands_of(step)) pairs += static_cast<double>(area(band));
  const auto accesses = program.accesses_of(step);
  const View& q = accesses[attend_operand::q].view;
  const double d = static_cast<double>(program.slot_of(q).width);
  const double e = static_cast<double>(program.slot_of(accesses[attend_operand::v].view).width);
  const double per_pair = step.op == Op::attend ? 2 * (d + e) : 6 * d + 4 * e;
  return per_pair * static_cast<double>(q.heads) * pairs;
}

std::int64_t bytes(const Program& program, const Step& step) {
  std::int64_t sum = 0;
  for (const Access& access : program.accesses_of(step)) {
    if (access.view.present()) sum += program.bytes_of(access.view);
  }
  for (const Message& message : program.sends_of(step)) sum += program.bytes_of(message.view);
  return sum;
}

}  // namespace periplus::plan
