#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/layout.h"
#include "parallel/train/data/corpus.h"
#include "parallel/train/data/packing.h"

namespace periplus::train {

/// Pieces that some ranks train on together, a packed row say, as one of them sees it: its own tokens, in the layout's local order.
struct Batch {
  SequenceLayout layout;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> labels;     ///< The next token of the same piece, wherever it lives; else kernels::kIgnoreLabel.
  std::vector<std::int64_t> positions;  ///< Inside the piece.
  std::int64_t valid_labels = 0;        ///< What the loss is a mean over: of all these ranks, or of all groups and micro-batches of a step.
};

/// row: the tokens of all pieces one after the other; cu_seqlens: their borders. Labels are shifted on the whole row, then
/// sharded: shifting inside a shard would be wrong at every border.
/// Errors: InvalidArgument for a row of another length.
Batch shard_row(std::span<const std::int32_t> row, std::span<const std::int64_t> cu_seqlens, LayoutKind kind, int ranks, int rank);
/// The same for a layout of the caller, which has the borders.
Batch shard_row(std::span<const std::int32_t> row, SequenceLayout layout, int rank);

/// Reads the pieces of a row and shards them. Every rank reads the whole row.
Batch make_batch(const Corpus& corpus, std::span<const Piece> pieces, LayoutKind kind, int ranks, int rank);

}  // namespace periplus::train
