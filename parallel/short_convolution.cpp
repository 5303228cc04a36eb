#include "parallel/short_convolution.h"

#include <algorithm>

#include <fmt/format.h>

#include "parallel/units.h"
#include "runtime/error.h"

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

/// Copies rows of `source` one after the other.
void gather(ConstTensorView source, const std::vector<std::int64_t>& rows, TensorView to) {
  for (std::size_t i = 0; i < rows.size(); ++i) copy(source.slice(0, rows[i], 1), to.slice(0, static_cast<std::int64_t>(i), 1));
}

TensorView flat(TensorView halo) { return halo.reshape({halo.size(0) * halo.size(1), halo.size(2)}); }

}  // namespace

DistributedConvolution::DistributedConvolution(const ConvolutionProblem& problem, comm::Communicator communicator, const Memory& memory)
    : communicator_(std::move(communicator)), channels_(problem.channels) {
  if (problem.layout.ranks() != communicator_.size()) {
    throw InvalidArgument(fmt::format("short convolution: the layout is for {} ranks and the communicator has {}; make the layout for {}",
                                      problem.layout.ranks(), communicator_.size(), communicator_.size()));
  }
  if (problem.width < 1 || problem.channels < 1) {
    throw InvalidArgument(
        fmt::format("short convolution: width {} and {} channels; both must be 1 or more", problem.width, problem.channels));
  }
  const int rank = communicator_.rank();
  const std::int64_t reach = problem.width - 1;
  const Units units(problem.layout);
  units_ = std::ssize(units.of_rank(rank));
  runs_ = units.runs_of(rank);
  std::vector<Peer> all(static_cast<std::size_t>(communicator_.size()));
  for (const HaloToken& token : halo_tokens(problem.layout, units, reach)) {
    if (token.owner == rank) all[static_cast<std::size_t>(token.reader)].rows.push_back(token.row);
    if (token.reader == rank) all[static_cast<std::size_t>(token.owner)].halo_rows.push_back(token.halo_row);
  }
  std::int64_t rows = 0, halo_rows = 0;
  for (std::size_t peer = 0; peer < all.size(); ++peer) {
    if (all[peer].rows.empty() && all[peer].halo_rows.empty()) continue;
    all[peer].rank = static_cast<int>(peer);
    rows += std::ssize(all[peer].rows);
    halo_rows += std::ssize(all[peer].halo_rows);
    peers_.push_back(std::move(all[peer]));
  }
  const DType accumulator = accumulator_of(problem.dtype);
  rows_ = Tensor({rows, channels_}, problem.dtype, memory);
  halo_rows_ = Tensor({halo_rows, channels_}, problem.dtype, memory);
  drows_ = Tensor({rows, channels_}, accumulator, memory);
  dhalo_rows_ = Tensor({halo_rows, channels_}, accumulator, memory);
  dhalo_ = Tensor({units_, reach, channels_}, accumulator, memory);
}

/// Between the boxes of rows and of halo rows; `home`: from the halos back to the owners.
void DistributedConvolution::exchange(const Tensor& outbox, const Tensor& inbox, bool home, StreamView stream) {
  std::vector<comm::Send> sends;
  std::vector<comm::Receive> receives;
  std::int64_t sent = 0, received = 0;
  for (const Peer& peer : peers_) {
    const std::int64_t out = std::ssize(home ? peer.halo_rows : peer.rows), in = std::ssize(home ? peer.rows : peer.halo_rows);
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
  std::int64_t at = 0;
  for (const Peer& peer : peers_) {
    gather(x, peer.rows, rows_.view().slice(0, at, std::ssize(peer.rows)));
    at += std::ssize(peer.rows);
  }
  exchange(rows_, halo_rows_, false, stream);
  fill_zero(halo);
  at = 0;
  for (const Peer& peer : peers_) {
    for (const std::int64_t row : peer.halo_rows) copy(halo_rows_.view().slice(0, at++, 1), flat(halo).slice(0, row, 1));
  }
  forward_again(x, weight, halo, y, stream);
}

void DistributedConvolution::forward_again(ConstTensorView x, ConstTensorView weight, ConstTensorView halo, TensorView y,
                                           StreamView stream) const {
  kernels::short_convolution({x, weight, halo, runs_}, y, stream);
}

void DistributedConvolution::backward(ConstTensorView x, ConstTensorView weight, ConstTensorView halo, ConstTensorView dy, TensorView dx,
                                      TensorView dweight, StreamView stream) {
  kernels::short_convolution_backward({x, weight, halo, runs_}, dy, dx, dhalo_, dweight, stream);
  std::int64_t at = 0;
  for (const Peer& peer : peers_) {
    gather(flat(dhalo_), peer.halo_rows, dhalo_rows_.view().slice(0, at, std::ssize(peer.halo_rows)));
    at += std::ssize(peer.halo_rows);
  }
  exchange(dhalo_rows_, drows_, true, stream);
  at = 0;
  for (const Peer& peer : peers_) {
    for (const std::int64_t row : peer.rows) add(drows_.view().slice(0, at++, 1), dx.slice(0, row, 1));
  }
}

}  // namespace periplus
