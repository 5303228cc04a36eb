#pragma once

#include <span>
#include <string_view>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Element type of an operand: the storage type of the step, the accumulator type that belongs to it, or either.
enum class OperandType : std::uint8_t { storage, accumulator, any };

constexpr char letter(Mode mode) noexcept { return mode == Mode::read ? 'r' : mode == Mode::write ? 'w' : 'a'; }

/// Which modes are allowed, of r(ead), w(rite), a(dd).
class Modes {
 public:
  constexpr Modes(const char* letters) {  // NOLINT(google-explicit-constructor): tables of operands read better
    for (const char* l = letters; *l != 0; ++l) {
      for (const Mode mode : {Mode::read, Mode::write, Mode::add}) bits_ |= *l == letter(mode) ? bit(mode) : 0;
    }
  }
  constexpr bool allow(Mode mode) const noexcept { return (bits_ & bit(mode)) != 0; }

 private:
  static constexpr unsigned bit(Mode mode) { return 1u << static_cast<unsigned>(mode); }
  unsigned bits_ = 0;
};

/// One operand of an op, in the order of the step's accesses.
struct Operand {
  std::string_view name;
  Modes modes;
  OperandType type;
  bool optional = false;  ///< May be absent (kNoSlot).
};

/// One row per op; verify, print, simulate and execute read it instead of knowing ops one by one.
struct OpInfo {
  Op op;
  std::string_view name;
  std::span<const Operand> operands;
};

const OpInfo& info(Op op) noexcept;

/// Positions of the operands of the ops that are looked at one by one.
namespace attend_operand {
enum { q, k, v, out, lse };
}
namespace attend_backward_operand {
enum { q, k, v, dout, lse, delta, dq, dk, dv };
}
namespace merge_operand {
enum { part_out, part_lse, out, lse };
}
namespace finish_operand {
enum { state_out, state_lse, sink, out, lse };
}
namespace delta_operand {
enum { dout, out, lse, dlse, sink, delta, dsink };
}
namespace unit_states_operand {
enum { k, v, log_decay, beta, elements };
}
namespace unit_states_backward_operand {
enum { q, k, log_decay, beta, dout, elements };
}
namespace unit_scan_operand {
enum { elements, states };
}
namespace unit_apply_operand {
enum { q, k, v, log_decay, beta, incoming, out };
}
namespace unit_apply_backward_operand {
enum { q, k, v, log_decay, beta, incoming, dout, doutgoing, dq, dk, dv, dlog_decay, dbeta };
}
namespace split_elements_operand {
enum { elements, transitions, added };
}
namespace join_elements_operand {
enum { transitions, added, elements };
}
namespace mirror_decay_operand {
enum { log_decay, mirrored };
}
namespace decay_states_operand {
enum { log_decay, states };
}
namespace add_mirrored_operand {
enum { q, k, v, mirrored, out };
}
namespace add_mirrored_backward_operand {
enum { q, k, v, dout, mirrored_dq, mirrored_dk, mirrored_dv, mirrored_dlog_decay, dq, dk, dv, dlog_decay };
}
namespace extension_operand {  // extend_values and, the other way round, cut_values
enum { from, to };
}
namespace normalise_operand {
enum { extended, out, normaliser };
}
namespace normalise_backward_operand {
enum { dout, out, normaliser, extended };
}
namespace transfer_operand {  // copy and add
enum { source, destination };
}

/// The most operands that an op has.
inline constexpr std::size_t kMostOperands = 13;

/// Floating-point operations of a compute step, counted from its bands, or runs or folds; 0 for the others. Linear attention is
/// counted as computed in chunks of 64 tokens (algorithms.md 5.5, 6.4), products inside a chunk in full.
double flops(const Program& program, const Step& step);
/// Bytes a step touches (compute) or sends (exchange).
std::int64_t bytes(const Program& program, const Step& step);

}  // namespace periplus::plan
