#include "parallel/short_convolution.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "kernels/operands.h"
#include "kernels/transfer.h"
#include "parallel/units.h"
#include "runtime/device_tensor.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus {
namespace {

/// A token that a unit's halo holds.
struct HaloToken {
  int owner, reader;
  std::int64_t row;       ///< Of the owner.
  std::int64_t halo_row;  ///< Of the reader.
};

/// Every token of every halo, by unit and then by token: the order in which both ends of a message list their rows.
std::vector<HaloToken> halo_tokens(const SequenceLayout& layout, const Units& units, std::int64_t reach) {
  std::vector<HaloToken> tokens;
  std::vector<std::int64_t> seen(static_cast<std::size_t>(layout.ranks()));  // units of each rank so far
  const auto cu_seqlens = layout.cu_seqlens();
  for (std::int64_t u = 0; u < units.count(); ++u) {
    const Unit& unit = units.all()[static_cast<std::size_t>(u)];
    const std::int64_t begins = *(std::ranges::upper_bound(cu_seqlens, unit.global0) - 1);
    const std::int64_t number = seen[static_cast<std::size_t>(unit.rank)]++;
    const std::int64_t first = std::max(begins, unit.global0 - reach);
    std::int64_t holder = u;
    while (holder > 0 && units.all()[static_cast<std::size_t>(holder)].global0 > first) --holder;
    for (std::int64_t token = first; token < unit.global0; ++token) {
      while (holder + 1 < u && units.all()[static_cast<std::size_t>(holder) + 1].global0 <= token) ++holder;
      const Unit& from = units.all()[static_cast<std::size_t>(holder)];
      tokens.push_back({from.rank, unit.rank, from.row0 + token - from.global0, number * reach + reach - (unit.global0 - token)});
    }
  }
  return tokens;
}

/// [rows, channels] or [units, width - 1, channels] as the rows that kernels/transfer.h takes.
template <class View>
View as_rows(const View& tensor) {
  const std::int64_t channels = tensor.size(tensor.dims() - 1),
                     rows = tensor.dims() == 2 ? tensor.size(0) : tensor.size(0) * tensor.size(1);
  return tensor.reshape({rows, 1, channels});
}

/// Adds the move of a row, as part of the one before if it goes on from there.
void add_row(std::vector<RowMove>& moves, std::int64_t from, std::int64_t to) {
  if (!moves.empty() && moves.back().from + moves.back().rows == from && moves.back().to + moves.back().rows == to) {
    ++moves.back().rows;
  } else {
    moves.push_back(row_move(from, to, 1));
  }
}

std::vector<RowMove> reversed(const std::vector<RowMove>& moves) {
  std::vector<RowMove> back;
  for (const RowMove& move : moves) back.push_back(move.reversed());
  return back;
}

}  // namespace

std::uint64_t ConvolutionProblem::digest() const {
  const std::array<std::uint64_t, 4> words{layout.digest(), static_cast<std::uint64_t>(channels), static_cast<std::uint64_t>(width),
                                           static_cast<std::uint64_t>(dtype)};
  return hash64({reinterpret_cast<const char*>(words.data()), sizeof(words)});
}

DistributedConvolution::DistributedConvolution(ConvolutionProblem of, comm::Communicator communicator, const Memory& memory)
    : problem_(std::move(of)), communicator_(std::move(communicator)) {
  const ConvolutionProblem& problem = problem_;
  if (problem.layout.ranks() != communicator_.size()) {
    throw InvalidArgument(fmt::format("short convolution: the layout is for {} ranks and the communicator has {}; make the layout for {}",
                                      problem.layout.ranks(), communicator_.size(), communicator_.size()));
  }
  if (problem.width < 1 || problem.channels < 1) {
    throw InvalidArgument(
        fmt::format("short convolution: width {} and {} channels; both must be 1 or more", problem.width, problem.channels));
  }
  if (problem.dtype != DType::f64 && problem.dtype != DType::f32 && problem.dtype != DType::bf16) {
    throw InvalidArgument(fmt::format("short convolution: dtype {} is not supported; use f64, f32 or bf16", to_string(problem.dtype)));
  }
  const int rank = communicator_.rank();
  const std::int64_t reach = problem.width - 1;
  const Units units(problem.layout);
  units_ = std::ssize(units.of_rank(rank));
  runs_ = units.runs_of(rank);
  // What this rank has for a peer's halos, and what its own get from there, both in the order of the sequence.
  struct Lists {
    std::vector<std::int64_t> rows, halo_rows;
  };
  std::vector<Lists> all(static_cast<std::size_t>(communicator_.size()));
  for (const HaloToken& token : halo_tokens(problem.layout, units, reach)) {
    if (token.owner == rank) all[static_cast<std::size_t>(token.reader)].rows.push_back(token.row);
    if (token.reader == rank) all[static_cast<std::size_t>(token.owner)].halo_rows.push_back(token.halo_row);
  }
  std::int64_t rows = 0, halo_rows = 0;
  for (std::size_t peer = 0; peer < all.size(); ++peer) {
    const Lists& lists = all[peer];
    if (lists.rows.empty() && lists.halo_rows.empty()) continue;
    peers_.push_back({static_cast<int>(peer), std::ssize(lists.rows), std::ssize(lists.halo_rows)});
    for (const std::int64_t row : lists.rows) add_row(to_box_, row, rows++);
    for (const std::int64_t row : lists.halo_rows) add_row(to_halo_, halo_rows++, row);
  }
  const DType accumulator = accumulator_of(problem.dtype);
  rows_ = Tensor({rows, problem.channels}, problem.dtype, memory);
  halo_rows_ = Tensor({halo_rows, problem.channels}, problem.dtype, memory);
  drows_ = Tensor({rows, problem.channels}, accumulator, memory);
  dhalo_rows_ = Tensor({halo_rows, problem.channels}, accumulator, memory);
  dhalo_ = Tensor({units_, reach, problem.channels}, accumulator, memory);
}

void DistributedConvolution::check(const ConstTensorView& x, const ConstTensorView& weight, const ConstTensorView& halo) const {
  constexpr std::string_view op = "short convolution";
  const std::int64_t rows = problem_.layout.rows_of(communicator_.rank()), channels = problem_.channels, width = problem_.width;
  const bool bias = weight.dims() == 2 && weight.size(1) == width + 1;
  kernels::check_dense(op, "x", x, {rows, channels}, problem_.dtype);
  kernels::check_dense(op, "weight", weight, {channels, bias ? width + 1 : width}, problem_.dtype);
  kernels::check_dense(op, "halo", halo, {units_, width - 1, channels}, problem_.dtype);
}

/// Between the boxes of rows and of halo rows; `home`: from the halos back to the owners.
void DistributedConvolution::exchange(const Tensor& outbox, const Tensor& inbox, bool home, StreamView stream) {
  std::vector<comm::Send> sends;
  std::vector<comm::Receive> receives;
  std::int64_t sent = 0, received = 0;
  for (const Peer& peer : peers_) {
    const std::int64_t out = home ? peer.halo_rows : peer.rows, in = home ? peer.rows : peer.halo_rows;
    const TensorView from = outbox.view().slice(0, sent, out), to = inbox.view().slice(0, received, in);
    if (out > 0) sends.push_back({peer.rank, from.bytes(), from.size_bytes()});
    if (in > 0) receives.push_back({peer.rank, to.bytes(), to.size_bytes()});
    sent += out;
    received += in;
  }
  const double waited = communicator_.traffic().wait_seconds;
  communicator_.exchange(sends, receives, {.operation = home ? "gradients of convolution halos" : "convolution halos"}, stream).wait();
  exposed_seconds_ += communicator_.traffic().wait_seconds - waited;
}

void DistributedConvolution::forward(ConstTensorView x, ConstTensorView weight, TensorView halo, TensorView y, StreamView stream) {
  check(x, weight, halo);
  kernels::move_rows(as_rows(x), as_rows(rows_.view()), to_box_, stream);
  exchange(rows_, halo_rows_, false, stream);
  fill_zero(halo, stream);
  kernels::move_rows(as_rows(halo_rows_.view()), as_rows(halo), to_halo_, stream);
  forward_again(x, weight, halo, y, stream);
}

void DistributedConvolution::forward_again(ConstTensorView x, ConstTensorView weight, ConstTensorView halo, TensorView y,
                                           StreamView stream) const {
  kernels::short_convolution({x, weight, halo, runs_}, y, stream);
}

void DistributedConvolution::backward(ConstTensorView x, ConstTensorView weight, ConstTensorView halo, ConstTensorView dy, TensorView dx,
                                      TensorView dweight, StreamView stream) {
  check(x, weight, halo);
  kernels::short_convolution_backward({x, weight, halo, runs_}, dy, dx, dhalo_, dweight, stream);
  kernels::move_rows(as_rows(dhalo_.view()), as_rows(dhalo_rows_.view()), reversed(to_halo_), stream);
  exchange(dhalo_rows_, drows_, true, stream);
  // One after the other: several halos may hold the same row.
  for (const RowMove& move : to_box_) {
    kernels::add(as_rows(drows_.view().slice(0, move.to, move.rows)), as_rows(dx.slice(0, move.from, move.rows)), stream);
  }
}

}  // namespace periplus
