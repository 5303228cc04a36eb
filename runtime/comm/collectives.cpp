// Collective verbs built on exchange. Every reduction runs in rank order in the element type, whatever the path, so that
// all transports and all ranks get the same bits.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>

#include <fmt/format.h>

#include "runtime/comm/communicator.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

constexpr std::size_t kGatherAllBytes = 4 << 10;  // below: one round trip beats two, although it moves P times the bytes
constexpr std::size_t kBroadcastBytes = 1 << 20;  // above: the root's link is the bottleneck, so all ranks forward
constexpr std::int64_t kReduceBlock = 1024;       // elements; the partial result stays in the first-level cache
constexpr std::int64_t kParallelElements = 1 << 18;
constexpr std::size_t kArrivingBytes = 16 << 20;  // room for what reductions receive at a time

/// Element ranges of the ranks: rank r owns [begin[r], begin[r+1]).
class Shares {
 public:
  static Shares even(std::int64_t elements, int ranks) {
    Shares shares;
    for (int r = 0; r <= ranks; ++r) shares.begin_.push_back(elements / ranks * r + std::min<std::int64_t>(r, elements % ranks));
    return shares;
  }
  static Shares of_counts(std::span<const std::int64_t> counts) {
    Shares shares;
    shares.begin_.push_back(0);
    for (const std::int64_t count : counts) shares.begin_.push_back(shares.begin_.back() + count);
    return shares;
  }
  std::int64_t begin(int rank) const { return begin_[static_cast<std::size_t>(rank)]; }
  std::int64_t count(int rank) const { return begin(rank + 1) - begin(rank); }
  std::int64_t total() const { return begin_.back(); }
  std::int64_t largest() const {
    std::int64_t most = 0;
    for (int rank = 0; rank + 1 < std::ssize(begin_); ++rank) most = std::max(most, count(rank));
    return most;
  }
  bool equal() const {
    return std::ranges::adjacent_find(begin_, [this](auto a, auto b) { return b - a != count(0); }) == begin_.end();
  }

 private:
  std::vector<std::int64_t> begin_;
};

std::size_t bytes_of(std::int64_t elements, std::size_t element_bytes) { return static_cast<std::size_t>(elements) * element_bytes; }

void check_stream(StreamView stream, std::string_view operation) {
  if (stream.device().kind == DeviceKind::cpu) return;
  throw InvalidArgument(fmt::format("{}: this verb works on host memory, but the stream is on {}; copy to the host and give a cpu stream",
                                    operation, to_string(stream.device())));
}

template <class Byte>
void check_tensor(const BasicTensorView<Byte>& tensor, std::string_view operation) {
  if (!tensor.contiguous()) throw InvalidArgument(fmt::format("{}: the tensor {} is not contiguous", operation, to_string(tensor.shape())));
}

Shares check_counts(const Communicator& communicator, std::span<const std::int64_t> counts, ConstTensorView mine, ConstTensorView all,
                    std::string_view operation) {
  check_tensor(mine, operation);
  check_tensor(all, operation);
  if (std::ssize(counts) != communicator.size()) {
    throw InvalidArgument(fmt::format("{}: {} counts for {} ranks", operation, counts.size(), communicator.size()));
  }
  if (std::any_of(counts.begin(), counts.end(), [](std::int64_t count) { return count < 0; })) {
    throw InvalidArgument(fmt::format("{}: negative count in {}", operation, fmt::join(counts, ",")));
  }
  if (mine.dtype() != all.dtype()) {
    throw InvalidArgument(fmt::format("{}: dtypes {} and {} differ", operation, to_string(mine.dtype()), to_string(all.dtype())));
  }
  const Shares shares = Shares::of_counts(counts);
  if (mine.elements() != shares.count(communicator.rank()) || all.elements() != shares.total()) {
    throw InvalidArgument(fmt::format("{}: rank {} has {} of {} elements, but the counts say {} of {}", operation, communicator.rank(),
                                      mine.elements(), all.elements(), shares.count(communicator.rank()), shares.total()));
  }
  return shares;
}

Purpose collective(std::string_view operation) { return {.operation = operation, .lane = kCollectiveLane}; }

template <class T>
T combine(Reduce reduce, T a, T b) {
  // NaN must survive max, or a damaged gradient norm would look healthy.
  if (reduce == Reduce::max) return (a < b || b != b) ? b : a;
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;  // wraps instead of overflowing
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

template <class T, Reduce kReduce>
void reduce_block(std::span<const std::byte* const> pieces, std::byte* out, std::int64_t begin, std::int64_t count) {
  T sum[kReduceBlock];
  std::memcpy(sum, reinterpret_cast<const T*>(pieces[0]) + begin, bytes_of(count, sizeof(T)));
  for (const std::byte* piece : pieces.subspan(1)) {
    const T* values = reinterpret_cast<const T*>(piece) + begin;
    for (std::int64_t i = 0; i < count; ++i) sum[i] = combine(kReduce, sum[i], values[i]);
  }
  std::memcpy(reinterpret_cast<T*>(out) + begin, sum, bytes_of(count, sizeof(T)));
}

/// out[i] := pieces[0][i] op pieces[1][i] op ... ; out may be one of the pieces.
template <class T, Reduce kReduce>
void reduce_pieces(std::span<const std::byte* const> pieces, std::byte* out, std::int64_t elements) {
  const std::int64_t blocks = (elements + kReduceBlock - 1) / kReduceBlock;
#pragma omp parallel for schedule(static) if (elements >= kParallelElements)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * kReduceBlock;
    reduce_block<T, kReduce>(pieces, out, begin, std::min(kReduceBlock, elements - begin));
  }
}

void reduce_pieces(DType dtype, Reduce reduce, std::span<const std::byte* const> pieces, std::byte* out, std::int64_t elements,
                   std::string_view operation) {
  visit_dtype<double, float, std::int64_t, std::int32_t>(dtype, operation, [&]<class T>() {
    switch (reduce) {
      case Reduce::sum:
        return reduce_pieces<T, Reduce::sum>(pieces, out, elements);
      case Reduce::max:
        return reduce_pieces<T, Reduce::max>(pieces, out, elements);
    }
  });
}

/// Sends share r of `parts` to every rank r and reduces the pieces of the own share into `mine` in rank order, slice by slice, so that
/// what arrives needs little room.
void exchange_and_reduce(const Communicator& communicator, const std::byte* parts, std::byte* mine, DType dtype, Reduce reduce,
                         const Shares& shares, std::string_view operation, StreamView stream) {
  const int self = communicator.rank(), others = communicator.size() - 1;
  const std::size_t element = size_of(dtype);
  const std::int64_t slice = std::max(kReduceBlock, static_cast<std::int64_t>(kArrivingBytes / element) / std::max(1, others));
  const std::size_t room = bytes_of(std::min(slice, shares.count(self)), element);
  const auto arriving = std::make_unique_for_overwrite<std::byte[]>(room * static_cast<std::size_t>(others));
  std::int64_t first = 0;
  do {
    const auto begin_of = [&](int peer) { return bytes_of(std::min(first, shares.count(peer)), element); };
    const auto bytes_to = [&](int peer) { return bytes_of(std::clamp<std::int64_t>(shares.count(peer) - first, 0, slice), element); };
    std::vector<Send> sends;
    std::vector<Receive> receives;
    std::vector<const std::byte*> pieces;
    for (int peer = 0; peer < communicator.size(); ++peer) {
      const std::byte* part = parts + bytes_of(shares.begin(peer), element) + begin_of(peer);
      if (peer == self) {
        pieces.push_back(part);
        continue;
      }
      std::byte* piece = arriving.get() + receives.size() * room;
      sends.push_back({peer, part, bytes_to(peer)});
      receives.push_back({peer, piece, bytes_to(self)});
      pieces.push_back(piece);
    }
    communicator.exchange(sends, receives, collective(operation), stream).wait();
    reduce_pieces(dtype, reduce, pieces, mine + begin_of(self), static_cast<std::int64_t>(bytes_to(self) / element), operation);
    first += slice;
  } while (first < shares.largest());
}

/// Every rank's share of `all` reaches every rank except `complete`, which needs none (-1: all need them). Shares that are equal on
/// all ranks are what a library's all-gather takes.
void exchange_shares(const Communicator& communicator, std::byte* all, std::size_t element, const Shares& shares,
                     std::string_view operation, StreamView stream, int complete = -1) {
  const int self = communicator.rank();
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < communicator.size(); ++peer) {
    if (peer == self) continue;
    if (peer != complete) sends.push_back({peer, all + bytes_of(shares.begin(self), element), bytes_of(shares.count(self), element)});
    if (self != complete) receives.push_back({peer, all + bytes_of(shares.begin(peer), element), bytes_of(shares.count(peer), element)});
  }
  Purpose purpose = collective(operation);
  purpose.all_gather = complete < 0 && shares.equal();
  communicator.exchange(sends, receives, purpose, stream).wait();
}

void all_reduce_by_gathering(const Communicator& communicator, TensorView tensor, Reduce reduce, StreamView stream) {
  const std::size_t bytes = tensor.size_bytes();
  const auto copies = std::make_unique_for_overwrite<std::byte[]>(bytes * static_cast<std::size_t>(communicator.size()));
  const auto copy_of = [&](int rank) { return copies.get() + bytes * static_cast<std::size_t>(rank); };
  std::vector<const std::byte*> pieces;
  for (int rank = 0; rank < communicator.size(); ++rank) pieces.push_back(copy_of(rank));
  std::memcpy(copy_of(communicator.rank()), tensor.bytes(), bytes);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(communicator.size()), tensor.elements());
  exchange_shares(communicator, copies.get(), size_of(tensor.dtype()), Shares::of_counts(counts), "all_reduce", stream);
  reduce_pieces(tensor.dtype(), reduce, pieces, tensor.bytes(), tensor.elements(), "all_reduce");
}

}  // namespace

void Communicator::all_reduce(TensorView tensor, Reduce reduce, StreamView stream) const {
  check_stream(stream, "all_reduce");
  check_tensor(tensor, "all_reduce");
  visit_dtype<double, float, std::int64_t, std::int32_t>(tensor.dtype(), "all_reduce", []<class T>() {});
  if (size() == 1 || tensor.elements() == 0) return;
  if (tensor.size_bytes() <= kGatherAllBytes) return all_reduce_by_gathering(*this, tensor, reduce, stream);
  const Shares shares = Shares::even(tensor.elements(), size());
  std::byte* mine = tensor.bytes() + bytes_of(shares.begin(rank()), size_of(tensor.dtype()));
  exchange_and_reduce(*this, tensor.bytes(), mine, tensor.dtype(), reduce, shares, "all_reduce", stream);
  exchange_shares(*this, tensor.bytes(), size_of(tensor.dtype()), shares, "all_reduce", stream);
}

void Communicator::all_gather(ConstTensorView mine, TensorView gathered, std::span<const std::int64_t> counts, StreamView stream) const {
  const Shares shares = check_counts(*this, counts, mine, gathered, "all_gather");
  std::byte* place = gathered.bytes() + bytes_of(shares.begin(rank()), size_of(gathered.dtype()));
  if (place != mine.bytes() && mine.elements() > 0) {
    stream.device().kind == DeviceKind::cuda ? cuda::copy_bytes(place, mine.bytes(), mine.size_bytes(), stream)
                                             : void(std::memcpy(place, mine.bytes(), mine.size_bytes()));
  }
  exchange_shares(*this, gathered.bytes(), size_of(gathered.dtype()), shares, "all_gather", stream);
}

void Communicator::reduce_scatter(ConstTensorView parts, TensorView mine, std::span<const std::int64_t> counts, StreamView stream) const {
  check_stream(stream, "reduce_scatter");
  const Shares shares = check_counts(*this, counts, mine, parts, "reduce_scatter");
  visit_dtype<double, float, std::int64_t, std::int32_t>(mine.dtype(), "reduce_scatter", []<class T>() {});
  exchange_and_reduce(*this, parts.bytes(), mine.bytes(), mine.dtype(), Reduce::sum, shares, "reduce_scatter", stream);
}

void Communicator::broadcast(TensorView tensor, int root, StreamView stream) const {
  check_stream(stream, "broadcast");
  check_tensor(tensor, "broadcast");
  if (root < 0 || root >= size()) throw InvalidArgument(fmt::format("broadcast: root {} is not a rank of 0..{}", root, size() - 1));
  const std::size_t bytes = tensor.size_bytes();
  const bool scattered = bytes > kBroadcastBytes;
  const Shares shares = Shares::even(static_cast<std::int64_t>(bytes), size());
  const auto part_of = [&](int peer) { return scattered ? tensor.bytes() + shares.begin(peer) : tensor.bytes(); };
  const auto bytes_to = [&](int peer) { return scattered ? bytes_of(shares.count(peer), 1) : bytes; };
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < size(); ++peer) {
    if (rank() == root && peer != root) sends.push_back({peer, part_of(peer), bytes_to(peer)});
  }
  if (rank() != root) receives.push_back({root, part_of(rank()), bytes_to(rank())});
  exchange(sends, receives, collective("broadcast"), stream).wait();
  if (scattered) exchange_shares(*this, tensor.bytes(), 1, shares, "broadcast", stream, root);
}

void Communicator::barrier(StreamView stream) const {
  check_stream(stream, "barrier");
  // Dissemination: after round k a rank has heard, directly or not, from the 2^(k+1)-1 ranks before it.
  for (int distance = 1; distance < size(); distance *= 2) {
    const std::byte token{1};
    std::byte heard{};
    const Send send{(rank() + distance) % size(), &token, 1};
    const Receive receive{(rank() - distance + size()) % size(), &heard, 1};
    exchange({&send, 1}, {&receive, 1}, collective("barrier"), stream).wait();
  }
}

std::vector<std::string> Communicator::all_gather_bytes(std::string_view mine, StreamView stream) const {
  check_stream(stream, "all_gather_bytes");
  const auto ranks = static_cast<std::size_t>(size());
  const auto self = static_cast<std::size_t>(rank());
  std::vector<std::uint64_t> lengths(ranks);
  lengths[self] = mine.size();
  exchange_shares(*this, reinterpret_cast<std::byte*>(lengths.data()), sizeof(std::uint64_t), Shares::even(size(), size()),
                  "all_gather_bytes", stream);
  std::vector<std::string> all(ranks);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (std::size_t r = 0; r < ranks; ++r) {
    all[r].resize(lengths[r]);
    sends.push_back({static_cast<int>(r), mine.data(), mine.size()});
    receives.push_back({static_cast<int>(r), all[r].data(), all[r].size()});
  }
  exchange(sends, receives, collective("all_gather_bytes"), stream).wait();
  return all;
}

void require_same_on_all_ranks(const Communicator& communicator, std::span<const NamedDigest> digests, StreamView stream) {
  check_stream(stream, "require_same_on_all_ranks");
  const auto ranks = static_cast<std::size_t>(communicator.size());
  std::vector<std::uint64_t> all(ranks * digests.size());  // rank by rank
  for (std::size_t i = 0; i < digests.size(); ++i)
    all[static_cast<std::size_t>(communicator.rank()) * digests.size() + i] = digests[i].digest;
  exchange_shares(communicator, reinterpret_cast<std::byte*>(all.data()), sizeof(std::uint64_t),
                  Shares::even(std::ssize(all), communicator.size()), "require_same_on_all_ranks", stream);
  for (std::size_t i = digests.size(); i < all.size(); ++i) {
    const std::uint64_t expected = all[i % digests.size()];
    if (all[i] == expected) continue;
    throw InvalidArgument(fmt::format("{}: rank {} of {} has digest {:016x}, but rank 0 has {:016x}; every rank must be given the same",
                                      digests[i % digests.size()].what, i / digests.size(), ranks, all[i], expected));
  }
}

void require_same_on_all_ranks(const Communicator& communicator, std::uint64_t digest, std::string_view what, StreamView stream) {
  const NamedDigest one{digest, what};
  require_same_on_all_ranks(communicator, {&one, 1}, stream);
}

}  // namespace periplus::comm
