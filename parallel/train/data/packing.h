#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace periplus::train {

/// Consecutive tokens of one document. In its row a piece counts as a document of its own: positions start at 0 and
/// nothing outside it is attended to.
struct Piece {
  std::int32_t document = 0;
  std::int64_t offset = 0;
  std::int64_t length = 0;
  friend bool operator==(const Piece&, const Piece&) = default;
};

struct PackingStatistics {
  double padding_fraction = 0;    ///< Of rows x context, tokens that no piece fills (rows are then simply shorter).
  double truncated_fraction = 0;  ///< Of the documents, those cut into more than one piece.
  double dropped_fraction = 0;    ///< Of the tokens, those in no row.
  double attention_share = 0;     ///< Mean over rows of sum(len^2) / (context * sum(len)): work relative to one full causal row.
};

/// Documents laid into rows of at most `context` tokens. Depends on lengths and context only.
class Packing {
 public:
  /// method: best_fit (longest first, each into the fullest row it fits, no document cut unless longer than context),
  /// concat (the stream of documents cut every `context` tokens), or decompose (each document cut into powers of two of at most
  /// context, the largest first, which must be of 16 tokens, or of the context if that is less; a row has as many pieces of one
  /// size as it holds).
  /// InvalidArgument for another name, context < 1, or if nothing is left of all documents.
  /// Source of decompose: Dataset Decomposition (arXiv 2405.13226).
  Packing(std::string_view method, std::span<const std::int64_t> lengths, std::int64_t context);

  std::int64_t rows() const noexcept { return static_cast<std::int64_t>(first_piece_.size()) - 1; }
  std::span<const Piece> row(std::int64_t index) const;
  /// Rows by the size of their pieces, with decompose: ends of the runs of equal sizes, ascending. Otherwise one run.
  std::span<const std::int64_t> buckets() const noexcept { return buckets_; }
  std::int64_t longest_piece() const noexcept { return longest_piece_; }  ///< Tokens.
  const PackingStatistics& statistics() const noexcept { return statistics_; }

 private:
  std::vector<Piece> pieces_;             // grouped by row
  std::vector<std::size_t> first_piece_;  // rows + 1
  std::vector<std::int64_t> buckets_;
  std::int64_t longest_piece_ = 0;
  PackingStatistics statistics_;
};

/// Which row comes when: every epoch visits every row once in an order that only (seed, epoch) decides. With several buckets an
/// epoch is a curriculum of eight cycles, each with its share of every bucket, from the shortest pieces to the longest. No state
/// survives a call but a cache, so any step can be asked for.
class RowOrder {
 public:
  RowOrder(const Packing& packing, std::uint64_t seed) : buckets_(packing.buckets().begin(), packing.buckets().end()), seed_(seed) {}
  /// step: 1-based.
  std::int64_t row_of_step(std::int64_t step);
  std::int64_t epoch_of_step(std::int64_t step) const noexcept { return (step - 1) / rows(); }

 private:
  std::int64_t rows() const noexcept { return buckets_.back(); }
  std::vector<std::int64_t> order_of_epoch(std::int64_t epoch) const;

  std::vector<std::int64_t> buckets_;
  std::uint64_t seed_;
  std::int64_t cached_epoch_ = -1;
  std::vector<std::int64_t> order_;
};

}  // namespace periplus::train
