#include "launch/exam/flexsp_baselines.h"

#include <algorithm>
#include <cstdint>

namespace periplus::launch::exam {
namespace {

using planner::Batch;
using planner::Group;
using planner::MicroBatch;

constexpr double kRowShare = 0.9;
constexpr int kEvenFromDegree = 16;

class Rows {
 public:
  Rows(const Batch& batch, int kind)
      : batch_(batch),
        kind_(kind),
        about_(batch.cost.kinds()[static_cast<std::size_t>(kind)]),
        side_by_side_(static_cast<std::size_t>(batch.cost.devices() / about_.degree)),
        capacity_(std::max(static_cast<std::int64_t>(kRowShare * static_cast<double>(about_.capacity)), batch.lengths.front())) {}

  std::optional<std::vector<MicroBatch>> pack() {
    if (about_.capacity < batch_.lengths.front()) return std::nullopt;
    for (int k = 0; k < batch_.size(); ++k) put(k);
    const std::size_t opened = rows_.size();
    rows_.resize((opened + side_by_side_ - 1) / side_by_side_ * side_by_side_, empty_row());
    for (std::size_t row = opened; row < rows_.size(); ++row) fill(row, opened);
    if (about_.degree >= kEvenFromDegree && opened < rows_.size()) even_out(rows_.size() - side_by_side_);
    return micro_batches();
  }

 private:
  Group empty_row() const { return {.kind = kind_, .seconds = about_.start, .tokens = 0, .members = {}}; }
  std::int64_t length(int k) const { return batch_.lengths[static_cast<std::size_t>(k)]; }

  /// The fullest row with room, the first of equals.
  void put(int k) {
    Group* best = nullptr;
    for (Group& row : rows_)
      if (row.tokens + length(k) <= capacity_ && (best == nullptr || row.tokens > best->tokens)) best = &row;
    add(best == nullptr ? rows_.emplace_back(empty_row()) : *best, k);
  }
  void add(Group& row, int k) { row.members.push_back(k), row.tokens += length(k), row.seconds += batch_.seconds(k, kind_); }
  void move(Group& from, Group& to, int k) {
    std::erase(from.members, k);
    from.tokens -= length(k), from.seconds -= batch_.seconds(k, kind_);
    add(to, k);
  }
  /// Its sequences in the order of the batch before it was sorted.
  std::vector<int> in_order(const Group& row) const {
    std::vector<int> members = row.members;
    std::ranges::sort(members, {}, [&](int k) { return batch_.origin[static_cast<std::size_t>(k)]; });
    return members;
  }

  void fill(std::size_t row, std::size_t opened) {
    for (std::size_t j = opened; j-- > 0;) {
      if (rows_[j].members.size() < 2) continue;
      move(rows_[j], rows_[row], in_order(rows_[j]).front());
      return;
    }
  }

  void even_out(std::size_t first) {
    std::int64_t average = 0;
    for (std::size_t i = first; i < rows_.size(); ++i) average += rows_[i].tokens;
    average /= static_cast<std::int64_t>(side_by_side_);
    for (std::size_t i = first + 1; i < rows_.size(); ++i) {
      if (rows_[i].tokens > average) continue;
      for (std::size_t j = first; j < i; ++j) {
        for (const int k : in_order(rows_[j])) {
          if (rows_[i].tokens >= average || rows_[j].tokens <= average || rows_[j].members.size() < 2) break;
          if (rows_[i].tokens + length(k) <= capacity_) move(rows_[j], rows_[i], k);
        }
      }
    }
  }

  std::optional<std::vector<MicroBatch>> micro_batches() {
    std::vector<MicroBatch> result;
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      if (row % side_by_side_ == 0) result.emplace_back();
      if (rows_[row].tokens > about_.capacity) return std::nullopt;
      if (rows_[row].members.empty()) continue;
      result.back().seconds = std::max(result.back().seconds, rows_[row].seconds);
      result.back().groups.push_back(std::move(rows_[row]));
    }
    return result;
  }

  const Batch& batch_;
  int kind_;
  const planner::Kind& about_;
  std::size_t side_by_side_;
  std::int64_t capacity_;
  std::vector<Group> rows_;
};

}  // namespace

std::optional<std::vector<MicroBatch>> packed_as_released(const Batch& batch, int kind) {
  if (batch.size() == 0) return std::vector<MicroBatch>{};
  return Rows(batch, kind).pack();
}

}  // namespace periplus::launch::exam
