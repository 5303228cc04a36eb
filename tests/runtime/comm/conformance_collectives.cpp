#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>

#include "conformance.h"
#include "runtime/error.h"

namespace periplus::comm::conformance {
namespace {

template <class T>
TensorView view_of(std::vector<T>& values) {
  return TensorView(reinterpret_cast<std::byte*>(values.data()), dtype_of<T>, {std::ssize(values)});
}

std::uint32_t mixed(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

/// Magnitudes over eight decades, so that the sum depends on its order.
template <class T>
T value_of(int rank, std::int64_t index) {
  const std::uint32_t bits = mixed(static_cast<std::uint32_t>(rank) * 1'000'003u + static_cast<std::uint32_t>(index));
  constexpr std::array<double, 8> kPowers{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7};
  const double value = (static_cast<double>(bits % 2001) - 1000.0) / 7.0;
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(value * kPowers[bits >> 29]);
  return static_cast<T>(bits % 200'001) - 100'000;
}

template <class T>
std::vector<T> values_of(int rank, std::int64_t elements) {
  std::vector<T> values(static_cast<std::size_t>(elements));
  for (std::int64_t i = 0; i < elements; ++i) values[static_cast<std::size_t>(i)] = value_of<T>(rank, i);
  return values;
}

template <class T>
T reduced(Reduce reduce, T a, T b) {
  if (reduce == Reduce::max) return std::max(a, b);
  return a + b;
}

template <class T>
T expected_at(Reduce reduce, int ranks, std::int64_t index) {
  T result = value_of<T>(0, index);
  for (int rank = 1; rank < ranks; ++rank) result = reduced(reduce, result, value_of<T>(rank, index));
  return result;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
void check_all_reduce(const Communicator& communicator) {
  for (const std::int64_t elements : {0, 1, 5, 512, 513, 1024, 1025, 1029, 20'011}) {
    for (const Reduce reduce : {Reduce::sum, Reduce::max}) {
      std::vector<T> values = values_of<T>(communicator.rank(), elements);
      std::vector<T> expected(values.size());
      for (std::int64_t i = 0; i < elements; ++i) expected[static_cast<std::size_t>(i)] = expected_at<T>(reduce, communicator.size(), i);
      communicator.all_reduce(view_of(values), reduce, stream());
      require(same_bits(values, expected), "all_reduce of " + std::to_string(elements) + " " + std::string(to_string(dtype_of<T>)));
    }
  }
}

void all_reduce_runs_in_rank_order(const Communicator& communicator) {
  check_all_reduce<double>(communicator);
  check_all_reduce<float>(communicator);
  check_all_reduce<std::int64_t>(communicator);
  check_all_reduce<std::int32_t>(communicator);
  // The inputs must be able to show a wrong order, or the comparison above proves nothing.
  int sensitive = 0;
  for (std::int64_t i = 0; i < 100; ++i) {
    float backwards = value_of<float>(communicator.size() - 1, i);
    for (int rank = communicator.size() - 2; rank >= 0; --rank) backwards += value_of<float>(rank, i);
    if (backwards != expected_at<float>(Reduce::sum, communicator.size(), i)) ++sensitive;
  }
  require(communicator.size() < 3 || sensitive > 5, "order-sensitive inputs");
}

void all_reduce_keeps_nan(const Communicator& communicator) {
  for (const Reduce reduce : {Reduce::sum, Reduce::max}) {
    std::vector<float> values(2, 1.0F);
    if (communicator.rank() == communicator.size() - 1) values[0] = std::numeric_limits<float>::quiet_NaN();
    communicator.all_reduce(view_of(values), reduce, stream());
    require(std::isnan(values[0]) && !std::isnan(values[1]), "NaN of one rank reaches all");
  }
}

/// Uneven, with zeros in front, in the middle and, for some sizes, at the end.
std::vector<std::int64_t> uneven_counts(int ranks) {
  std::vector<std::int64_t> counts;
  for (int rank = 0; rank < ranks; ++rank) counts.push_back(rank % 3 == 0 && ranks > 1 ? 0 : 1000 * rank + 7);
  return counts;
}

std::int64_t begin_of(const std::vector<std::int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, std::int64_t{0});
}

void check_reduce_scatter(const Communicator& communicator, const std::vector<std::int64_t>& counts) {
  const int self = communicator.rank();
  std::vector<float> parts = values_of<float>(self, begin_of(counts, communicator.size()));
  std::vector<float> mine(static_cast<std::size_t>(counts[static_cast<std::size_t>(self)]));
  communicator.reduce_scatter(view_of(parts), view_of(mine), counts, stream());
  std::vector<float> expected(mine.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] = expected_at<float>(Reduce::sum, communicator.size(), begin_of(counts, self) + static_cast<std::int64_t>(i));
  }
  require(same_bits(mine, expected), "reduce_scatter");
}

void reduce_scatter_of_uneven_counts(const Communicator& communicator) {
  check_reduce_scatter(communicator, uneven_counts(communicator.size()));
}

/// One share does not arrive at once, and the others have ended by then.
void reduce_scatter_goes_by_slices(const Communicator& communicator) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(communicator.size()), 7);
  counts.back() = 9'000'001 / communicator.size();
  check_reduce_scatter(communicator, counts);
}

void all_gather_of_uneven_counts(const Communicator& communicator) {
  const std::vector<std::int64_t> counts = uneven_counts(communicator.size());
  const auto self = static_cast<std::size_t>(communicator.rank());
  std::vector<bfloat16> expected;
  for (int rank = 0; rank < communicator.size(); ++rank) {
    for (std::int64_t i = 0; i < counts[static_cast<std::size_t>(rank)]; ++i) expected.emplace_back(value_of<float>(rank, i));
  }
  const std::int64_t begin = begin_of(counts, communicator.rank());
  std::vector<bfloat16> mine(expected.begin() + begin, expected.begin() + begin + counts[self]);
  std::vector<bfloat16> gathered(expected.size());
  communicator.all_gather(view_of(mine), view_of(gathered), counts, stream());
  require(same_bits(gathered, expected), "all_gather");

  std::vector<bfloat16> in_place(expected.size());
  std::copy(mine.begin(), mine.end(), in_place.begin() + begin);
  communicator.all_gather(view_of(in_place).slice(0, begin, counts[self]), view_of(in_place), counts, stream());
  require(same_bits(in_place, expected), "all_gather in place");
}

void broadcast_from_every_root(const Communicator& communicator) {
  for (int root = 0; root < communicator.size(); ++root) {
    for (const std::int64_t elements :
         {std::int64_t{0}, std::int64_t{1}, std::int64_t{1000}, std::int64_t{262'144}, std::int64_t{262'145}}) {
      std::vector<float> values = values_of<float>(communicator.rank(), elements);
      communicator.broadcast(view_of(values), root, stream());
      require(same_bits(values, values_of<float>(root, elements)),
              "broadcast of " + std::to_string(elements) + " from " + std::to_string(root));
    }
  }
}

void barrier_waits_for_the_last_rank(const Communicator& communicator) {
  if (communicator.rank() == communicator.size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const auto now = [] { return static_cast<std::int64_t>(std::chrono::steady_clock::now().time_since_epoch().count()); };
  std::vector<std::int64_t> entered{now()};
  communicator.barrier(stream());
  std::vector<std::int64_t> left{-now()};
  communicator.all_reduce(view_of(entered), Reduce::max, stream());
  communicator.all_reduce(view_of(left), Reduce::max, stream());
  require(entered[0] <= -left[0], "no rank leaves the barrier before all have entered");
}

void all_gather_bytes_of_any_length(const Communicator& communicator) {
  const auto text_of = [](int rank) { return std::string(static_cast<std::size_t>(rank % 3) * 100'000, static_cast<char>('a' + rank)); };
  const std::vector<std::string> all = communicator.all_gather_bytes(text_of(communicator.rank()), stream());
  require(std::ssize(all) == communicator.size(), "one entry per rank");
  for (int rank = 0; rank < communicator.size(); ++rank) require(all[static_cast<std::size_t>(rank)] == text_of(rank), "bytes of a rank");
}

void collectives_move_the_bytes_they_promise(const Communicator& communicator) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  std::vector<double> values(1000 * ranks, 1.0);
  communicator.all_reduce(view_of(values), Reduce::sum, stream());
  const Traffic traffic = communicator.traffic();
  require(traffic.bytes_sent == 2 * (ranks - 1) * 8000 || ranks == 1, "all_reduce sends 2(P-1)/P of its bytes");
  require(traffic.bytes_received == traffic.bytes_sent, "and receives as many");
}

void differing_digest_is_named_on_every_rank(const Communicator& communicator) {
  require_same_on_all_ranks(communicator, 42, "plan", stream());
  if (communicator.size() == 1) return;
  const int odd = communicator.size() - 1;
  const std::uint64_t digest = communicator.rank() == odd ? 43 : 42;
  const std::string message =
      message_of<InvalidArgument>([&] { require_same_on_all_ranks(communicator, digest, "plan of layer 3", stream()); });
  for (const std::string& part : {std::string("plan of layer 3"), "rank " + std::to_string(odd), std::string("2b"), std::string("2a")}) {
    require_contains(message, part);
  }
  const std::array<NamedDigest, 3> several = {{{1, "layout"}, {digest, "problem"}, {digest, "options"}}};
  require_contains(message_of<InvalidArgument>([&] { require_same_on_all_ranks(communicator, several, stream()); }),
                   "problem: rank " + std::to_string(odd));
}

void wrong_collective_arguments_are_refused(const Communicator& communicator) {
  std::vector<bfloat16> half(4);
  std::vector<float> values(4);
  const std::vector<std::int64_t> too_many(static_cast<std::size_t>(communicator.size()) + 1, 1);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(communicator.size()), 1);
  require_contains(message_of<InvalidArgument>([&] { communicator.all_reduce(view_of(half), Reduce::sum, stream()); }), "bf16");
  require_contains(message_of<InvalidArgument>([&] { communicator.broadcast(view_of(values), communicator.size(), stream()); }), "root");
  require_contains(message_of<InvalidArgument>([&] { communicator.all_gather(view_of(values), view_of(values), too_many, stream()); }),
                   "counts");
  require_contains(message_of<InvalidArgument>([&] { communicator.all_gather(view_of(values), view_of(values), counts, stream()); }),
                   "elements");
  counts[0] = -1;
  require_contains(message_of<InvalidArgument>([&] { communicator.reduce_scatter(view_of(values), view_of(values), counts, stream()); }),
                   "negative");
  const TensorView strided(reinterpret_cast<std::byte*>(values.data()), DType::f32, {2, 1}, {2, 1});
  require_contains(message_of<InvalidArgument>([&] { communicator.all_reduce(strided, Reduce::sum, stream()); }), "contiguous");
}

constexpr Case kCollectiveCases[] = {
    {"all_reduce_runs_in_rank_order", all_reduce_runs_in_rank_order},
    {"all_reduce_keeps_nan", all_reduce_keeps_nan},
    {"reduce_scatter_of_uneven_counts", reduce_scatter_of_uneven_counts},
    {"reduce_scatter_goes_by_slices", reduce_scatter_goes_by_slices},
    {"all_gather_of_uneven_counts", all_gather_of_uneven_counts},
    {"broadcast_from_every_root", broadcast_from_every_root},
    {"barrier_waits_for_the_last_rank", barrier_waits_for_the_last_rank},
    {"all_gather_bytes_of_any_length", all_gather_bytes_of_any_length},
    {"collectives_move_the_bytes_they_promise", collectives_move_the_bytes_they_promise},
    {"differing_digest_is_named_on_every_rank", differing_digest_is_named_on_every_rank},
    {"wrong_collective_arguments_are_refused", wrong_collective_arguments_are_refused},
};

}  // namespace

std::span<const Case> collective_cases() { return kCollectiveCases; }

}  // namespace periplus::comm::conformance
