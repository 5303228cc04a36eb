#include "parallel/train/data/batch.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "kernels/transformer.h"
#include "parallel/balanced_layout.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

std::vector<std::int32_t> shifted_labels(std::span<const std::int32_t> row, std::span<const std::int64_t> cu_seqlens) {
  std::vector<std::int32_t> labels(row.size(), kernels::kIgnoreLabel);
  for (std::size_t piece = 0; piece + 1 < cu_seqlens.size(); ++piece) {
    for (std::int64_t i = cu_seqlens[piece]; i + 1 < cu_seqlens[piece + 1]; ++i) {
      labels[static_cast<std::size_t>(i)] = row[static_cast<std::size_t>(i) + 1];
    }
  }
  return labels;
}

}  // namespace

Batch shard_row(std::span<const std::int32_t> row, std::span<const std::int64_t> cu_seqlens, LayoutKind kind, int ranks, int rank) {
  return shard_row(row, make_layout(kind, ranks, Mask({}, cu_seqlens)), rank);
}

Batch shard_row(std::span<const std::int32_t> row, SequenceLayout layout, int rank) {
  if (std::ssize(row) != layout.tokens()) {
    throw InvalidArgument(
        fmt::format("batch: the row has {} tokens, its layout {}; give a token for each row of the layout", row.size(), layout.tokens()));
  }
  const std::vector<std::int32_t> labels = shifted_labels(row, layout.cu_seqlens());
  Batch batch{std::move(layout), {}, {}, {}, 0};
  batch.valid_labels = std::count_if(labels.begin(), labels.end(), [](std::int32_t label) { return label != kernels::kIgnoreLabel; });
  for (const std::int64_t global : batch.layout.global_rows(rank)) {
    batch.tokens.push_back(row[static_cast<std::size_t>(global)]);
    batch.labels.push_back(labels[static_cast<std::size_t>(global)]);
  }
  batch.positions = batch.layout.positions(rank);
  return batch;
}

Batch make_batch(const Corpus& corpus, std::span<const Piece> pieces, LayoutKind kind, int ranks, int rank) {
  std::vector<std::int64_t> cu_seqlens = {0};
  for (const Piece& piece : pieces) cu_seqlens.push_back(cu_seqlens.back() + piece.length);
  std::vector<std::int32_t> row(static_cast<std::size_t>(cu_seqlens.back()));
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto to = std::span(row).subspan(static_cast<std::size_t>(cu_seqlens[i]), static_cast<std::size_t>(pieces[i].length));
    corpus.read(static_cast<std::size_t>(pieces[i].document), pieces[i].offset, to);
  }
  return shard_row(row, cu_seqlens, kind, ranks, rank);
}

}  // namespace periplus::train
