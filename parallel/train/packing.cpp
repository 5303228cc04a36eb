// Best-fit packing (algorithms.md 9) and the plain stream cutting it is compared with.
#include "parallel/train/packing.h"

#include <algorithm>
#include <numeric>
#include <set>

#include <fmt/format.h>

#include "parallel/train/random.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

using Rows = std::vector<std::vector<Piece>>;

std::vector<Piece> cut_documents(std::span<const std::int64_t> lengths, std::int64_t context) {
  std::vector<Piece> pieces;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    for (std::int64_t offset = 0; offset < lengths[document]; offset += context) {
      pieces.push_back({static_cast<std::int32_t>(document), offset, std::min(context, lengths[document] - offset)});
    }
  }
  return pieces;
}

Rows best_fit(std::span<const std::int64_t> lengths, std::int64_t context) {
  std::vector<Piece> pieces = cut_documents(lengths, context);
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.length > b.length; });
  Rows rows;
  std::set<std::pair<std::int64_t, std::size_t>> open;  // (room left, row): the first that fits is the fullest, then the oldest
  for (const Piece& piece : pieces) {
    auto fit = open.lower_bound({piece.length, 0});
    std::size_t row = rows.size();
    std::int64_t room = context;
    if (fit == open.end()) {
      rows.emplace_back();
    } else {
      std::tie(room, row) = *fit;
      open.erase(fit);
    }
    rows[row].push_back(piece);
    if (room > piece.length) open.emplace(room - piece.length, row);
  }
  return rows;
}

Rows concatenate(std::span<const std::int64_t> lengths, std::int64_t context) {
  Rows rows;
  std::int64_t room = 0;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    for (std::int64_t offset = 0; offset < lengths[document];) {
      if (room == 0) {
        rows.emplace_back();
        room = context;
      }
      const std::int64_t length = std::min(room, lengths[document] - offset);
      rows.back().push_back({static_cast<std::int32_t>(document), offset, length});
      offset += length;
      room -= length;
    }
  }
  return rows;
}

PackingStatistics measure(const Rows& rows, std::span<const std::int64_t> lengths, std::int64_t context) {
  std::vector<int> pieces_of(lengths.size());
  double tokens = 0, share = 0;
  for (const auto& row : rows) {
    double sum = 0, squares = 0;
    for (const Piece& piece : row) {
      ++pieces_of[static_cast<std::size_t>(piece.document)];
      const auto length = static_cast<double>(piece.length);
      sum += length;
      squares += length * length;
    }
    tokens += sum;
    share += squares / (static_cast<double>(context) * sum);
  }
  const auto count = static_cast<double>(rows.size());
  const auto cut = static_cast<double>(std::count_if(pieces_of.begin(), pieces_of.end(), [](int pieces) { return pieces > 1; }));
  if (rows.empty()) return {};
  return {1 - tokens / (count * static_cast<double>(context)), cut / static_cast<double>(lengths.size()), share / count};
}

}  // namespace

Packing::Packing(std::string_view method, std::span<const std::int64_t> lengths, std::int64_t context) {
  if (context < 1) throw InvalidArgument(fmt::format("packing: context is {}; rows need at least one token", context));
  if (method != "best_fit" && method != "concat") {
    throw InvalidArgument(fmt::format("packing: method '{}' is not known; use best_fit or concat", method));
  }
  const Rows rows = method == "best_fit" ? best_fit(lengths, context) : concatenate(lengths, context);
  statistics_ = measure(rows, lengths, context);
  first_piece_.push_back(0);
  for (const auto& row : rows) {
    pieces_.insert(pieces_.end(), row.begin(), row.end());
    first_piece_.push_back(pieces_.size());
  }
  for (const Piece& piece : pieces_) longest_piece_ = std::max(longest_piece_, piece.length);
}

std::span<const Piece> Packing::row(std::int64_t index) const {
  const auto row = static_cast<std::size_t>(index);
  return std::span(pieces_).subspan(first_piece_.at(row), first_piece_.at(row + 1) - first_piece_[row]);
}

std::int64_t RowOrder::row_of_step(std::int64_t step) {
  const std::int64_t epoch = epoch_of_step(step);
  if (epoch != cached_epoch_) {
    order_.resize(static_cast<std::size_t>(rows_));
    std::iota(order_.begin(), order_.end(), std::int64_t{0});
    std::mt19937_64 engine = engine_for(seed_, fmt::format("rows of epoch {}", epoch));
    shuffle(std::span(order_), engine);
    cached_epoch_ = epoch;
  }
  return order_[static_cast<std::size_t>((step - 1) % rows_)];
}

}  // namespace periplus::train
