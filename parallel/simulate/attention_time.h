#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/plan/plan.h"
#include "parallel/simulate/iteration.h"

namespace periplus::simulate {

/// Borders of the documents of a micro-batch, as SequenceLayout takes them.
std::vector<std::int64_t> document_borders(const Training& training);

/// Makes results and sums of a softmax plan travel as bf16, as other systems do; ours travel as f32. For times and bytes only.
void narrow_sums(plan::Plan& plan);

/// Makes a chain of states run as the source of LASP-1 does (OpenNLPLab/LASP, lasp_fuse_parallel.py): a rank computes only once its
/// state has come, and sends only once it has computed all. Ours makes its elements before, and sends before it applies. For times only:
/// `after` then points forward, too.
void in_turn(plan::Plan& plan);

/// The attention of one kind of layer: its plans, and what they take when ranks come to them at given times.
class AttentionTime {
 public:
  /// By rank: when a pass is done, how long it computes and waits for messages.
  struct Took {
    std::vector<double> done, compute, exposed;
  };

  /// letter: of Shape::pattern. Shape, machine and training must outlive this.
  AttentionTime(const Shape& shape, const Machine& machine, const Training& training, char letter);

  const plan::Plan& plan(Pass pass) const { return plans_[pass == Pass::forward ? 0 : 1]; }
  /// Between the ranks of a context group.
  const comm::Links& links() const noexcept { return links_; }

  /// Times that differ only in when the first rank comes are simulated once.
  Took run(Pass pass, const std::vector<double>& starts);

 private:
  Took overlapped(Pass pass, const std::vector<double>& starts) const;
  Took one_by_one(Pass pass, const std::vector<double>& starts) const;

  const Machine& machine_;
  const Training& training_;
  comm::Links links_;
  std::vector<plan::Plan> plans_;                    ///< forward, backward
  std::map<std::vector<std::int64_t>, Took> known_;  ///< By pass and distances between the starts.
};

}  // namespace periplus::simulate
