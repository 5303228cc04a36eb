// Best-fit packing, dataset decomposition (algorithms.md 9) and the plain stream cutting they are compared with.
#include "parallel/train/data/packing.h"

#include <algorithm>
#include <bit>
#include <map>
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

constexpr std::int64_t kLeastPiece = 16;  // shorter ones predict from next to nothing
constexpr std::int64_t kCycles = 8;       // of an epoch: as published

std::int64_t power_below(std::int64_t value) { return static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(value))); }

/// Rows by ascending size of their pieces; `buckets` gets the ends of those of each size.
Rows decompose(std::span<const std::int64_t> lengths, std::int64_t context, std::vector<std::int64_t>& buckets) {
  const std::int64_t largest = power_below(context), least = std::min(kLeastPiece, largest);
  std::map<std::int64_t, std::vector<Piece>> by_size;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    for (std::int64_t offset = 0; lengths[document] - offset >= least;) {
      const std::int64_t size = std::min(largest, power_below(lengths[document] - offset));
      by_size[size].push_back({static_cast<std::int32_t>(document), offset, size});
      offset += size;
    }
  }
  Rows rows;
  for (const auto& [size, pieces] : by_size) {
    for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
      if (piece % static_cast<std::size_t>(context / size) == 0) rows.emplace_back();
      rows.back().push_back(pieces[piece]);
    }
    buckets.push_back(std::ssize(rows));
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
  const auto all = static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}));
  return {.padding_fraction = 1 - tokens / (count * static_cast<double>(context)),
          .truncated_fraction = cut / static_cast<double>(lengths.size()),
          .dropped_fraction = 1 - tokens / all,
          .attention_share = share / count};
}

}  // namespace

Packing::Packing(std::string_view method, std::span<const std::int64_t> lengths, std::int64_t context) {
  if (context < 1) throw InvalidArgument(fmt::format("packing: context is {}; rows need at least one token", context));
  Rows rows;
  if (method == "best_fit") {
    rows = best_fit(lengths, context);
  } else if (method == "concat") {
    rows = concatenate(lengths, context);
  } else if (method == "decompose") {
    rows = decompose(lengths, context, buckets_);
  } else {
    throw InvalidArgument(fmt::format("packing: method '{}' is not known; use best_fit, concat or decompose", method));
  }
  if (rows.empty() && !lengths.empty()) {
    throw InvalidArgument(
        fmt::format("packing: decompose drops what is shorter than {} tokens, and the longest of {} documents has {}; use best_fit",
                    kLeastPiece, lengths.size(), std::ranges::max(lengths)));
  }
  if (buckets_.empty()) buckets_.push_back(std::ssize(rows));
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

std::vector<std::int64_t> RowOrder::order_of_epoch(std::int64_t epoch) const {
  std::vector<std::int64_t> shuffled(static_cast<std::size_t>(rows()));
  std::iota(shuffled.begin(), shuffled.end(), std::int64_t{0});
  std::mt19937_64 engine = engine_for(seed_, fmt::format("rows of epoch {}", epoch));
  std::vector<std::int64_t> order;
  const auto bucket = [&](std::size_t b) {
    const std::int64_t begin = b == 0 ? 0 : buckets_[b - 1];
    return std::span(shuffled).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(buckets_[b] - begin));
  };
  for (std::size_t b = 0; b < buckets_.size(); ++b) shuffle(bucket(b), engine);
  for (std::int64_t cycle = 0; cycle < kCycles; ++cycle) {
    for (std::size_t b = 0; b < buckets_.size(); ++b) {
      const auto rows = bucket(b);
      const std::int64_t begin = cycle * std::ssize(rows) / kCycles, end = (cycle + 1) * std::ssize(rows) / kCycles;
      order.insert(order.end(), rows.begin() + begin, rows.begin() + end);
    }
  }
  return order;
}

std::int64_t RowOrder::row_of_step(std::int64_t step) {
  if (const std::int64_t epoch = epoch_of_step(step); epoch != cached_epoch_) {
    order_ = order_of_epoch(epoch);
    cached_epoch_ = epoch;
  }
  return order_[static_cast<std::size_t>((step - 1) % rows())];
}

}  // namespace periplus::train
