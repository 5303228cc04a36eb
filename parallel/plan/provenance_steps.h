#pragma once

#include <optional>
#include <span>

#include "parallel/plan/plan.h"
#include "parallel/plan/provenance_pieces.h"
#include "parallel/plan/provenance_ranks.h"
#include "parallel/plan/provenance_records.h"
#include "parallel/plan/provenance_truth.h"

namespace periplus::plan {

/// What the steps of softmax attention do to the slots of the rank that is looked at. All throw ProvenanceFailure where an
/// operand is not what it must be, and TwinsApart where twins prove to be none.
class SoftmaxSteps {
 public:
  SoftmaxSteps(const Plan& plan, RowOrders& orders, RankSlots& slots, KnownPairs& known, TermStore& terms, AttendRecords& records)
      : plan_(plan), orders_(orders), slots_(slots), truth_(plan.claim, orders, known), terms_(terms), records_(records) {}

  /// Any step but an exchange. A copy or sum that writes to a twin counts for both.
  void run(const Step& step);
  /// The outputs of the rank are what the claim says.
  void check_outputs();

 private:
  int record(const Step& step, const View& q_view, const View& k_view);
  void accumulate(const View& view, const Pieces& pieces, Cell cell);
  void put(const Access& to, const Pieces& like, Cell cell, int record = 0, bool contributes = false);
  void put_alone(const Access& to, const Pieces& like, Cell cell, int record = 0, bool contributes = false);
  void put_both(const Access& first, const Access& second, const Pieces& like, Cell cell, int record = 0, bool contributes = false);
  void read_queries_and_keys(std::span<const Access> a);
  void run_attend(const Step& step, std::span<const Access> a);
  void run_attend_backward(const Step& step, std::span<const Access> a);
  void run_merge(std::span<const Access> a);
  void run_copy(const Step& step, std::span<const Access> a);
  void add(const View& source, const View& destination, std::optional<Cell> wanted);
  void require_sink(const View& operand, const Pieces& queries);
  void run_finish(std::span<const Access> a);
  void run_delta(std::span<const Access> a);
  void write_dsink(const View& dsink, const View& dout, const Pieces& gradient);
  void require_complete(const Pieces& sums) const;
  void require_complete(const Piece& piece) const;
  bool like_the_last(const Pieces& sums);
  View output(std::string_view name, Cell cell) const;
  void check_output(std::string_view name, const View& view, Cell cell);
  void check_outputs(std::string_view leader_name, Cell leader, std::string_view follower_name, Cell follower);

  const Plan& plan_;
  RowOrders& orders_;
  RankSlots& slots_;
  Truth truth_;
  TermStore& terms_;
  AttendRecords& records_;
  Pieces queries_, keys_, sums_, scratch_, after_;  ///< Of the step at hand.
};

}  // namespace periplus::plan
