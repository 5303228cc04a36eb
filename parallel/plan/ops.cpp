#include "parallel/plan/ops.h"

#include <array>

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

// In the order of enum Op.
const std::array<OpInfo, 8> kOps{{{Op::attend, "attend", kAttend},
                                  {Op::attend_backward, "attend_backward", kAttendBackward},
                                  {Op::merge, "merge", kMerge},
                                  {Op::finish, "finish", kFinish},
                                  {Op::delta, "delta", kDelta},
                                  {Op::copy, "copy", kCopy},
                                  {Op::add, "add", kAdd},
                                  {Op::exchange, "exchange", {}}}};

}  // namespace

const OpInfo& info(Op op) noexcept { return kOps[static_cast<std::size_t>(op)]; }

char letter(Mode mode) noexcept { return mode == Mode::read ? 'r' : mode == Mode::write ? 'w' : 'a'; }

double flops(const Program& program, const Step& step) {
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
