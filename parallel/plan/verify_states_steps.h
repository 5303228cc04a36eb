#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

#include "parallel/plan/plan.h"
#include "parallel/plan/verify_states_ranks.h"

namespace periplus::plan::play {

/// What the steps of linear attention do to the slots of the rank that is looked at. All throw Failure where an operand is not
/// what it must be.
class StateSteps : protected PlayedRanks {
 public:
  using PlayedRanks::PlayedRanks;
  using PlayedRanks::where;

 protected:
  /// False if messages are missing: then nothing has been done, and it is to be played again.
  bool play_step(const Step& step);
  /// Done bits of a run and head whose results are complete.
  std::uint8_t all_done() const;

 private:
  using Accesses = std::span<const Access>;

  void play_copy(const Step& step, Accesses a);
  void play_split(const Step& step, Accesses a);
  void play_join(const Step& step, Accesses a);
  void play_scan(const Step& step, Accesses a);
  void play_unit_states(const Step& step, Accesses a);
  void play_unit_states_backward(const Step& step, Accesses a);
  void play_states(const Step& step, const View& base, const View& elements, bool down, bool gradient);
  void play_unit_apply(const Step& step, Accesses a);
  void play_unit_apply_backward(const Step& step, Accesses a);
  void play_apply(const Step& step, const View& base, const View& incoming, const View* doutgoing);
  void play_mirrored(const Step& step, Accesses a, const View* gradients, std::initializer_list<Named> inputs,
                     std::initializer_list<Named> results);
  void play_mirror_decay(const Step& step, Accesses a);
  void play_decay_states(const Step& step, Accesses a);
  void play_add_mirrored(const Step& step, Accesses a);
  void play_add_mirrored_backward(const Step& step, Accesses a);
  void play_sum(const Step& step, Accesses a, std::initializer_list<Named> operands);
  void play_extend_values(const Step& step, Accesses a);
  void play_cut_values(const Step& step, Accesses a);
  void play_normalise(const Step& step, Accesses a);
  void play_normalise_backward(const Step& step, Accesses a);

  void advance(const Step& step, const View& base, Done to);
  bool is_mirrored(const Step& step, Accesses a) const;
  void require_scale(const Step& step);
  void require_states(const Step& step, const View& base, const View& from, std::string_view name, const View* gradients, bool mirrored);

  Symbols copied_;
};

}  // namespace periplus::plan::play
