#include "conformance.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "runtime/error.h"

namespace periplus::comm::conformance {
namespace {

int next_of(const Communicator& communicator) { return (communicator.rank() + 1) % communicator.size(); }
int previous_of(const Communicator& communicator) { return (communicator.rank() + communicator.size() - 1) % communicator.size(); }

void empty_messages_complete_and_move_nothing(const Communicator& communicator) {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < communicator.size(); ++peer) {
    sends.push_back({peer, nullptr, 0});
    receives.push_back({peer, nullptr, 0});
  }
  Pending pending = exchange(communicator, sends, receives);
  require(pending.done(), "nothing to wait for");
  pending.wait();
  exchange(communicator, {}, {}).wait();
  require(communicator.traffic().messages_sent == 0, "empty messages are not sent");
}

void ring_shift_of_many_sizes(const Communicator& communicator) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  for (const std::size_t size : {std::size_t{1}, std::size_t{3}, std::size_t{63}, std::size_t{4097}, std::size_t{65535}, kMiB - 1, kMiB,
                                 kMiB + 1, 3 * kMiB, 3 * kMiB + 7}) {
    const Bytes outgoing = pattern(size, communicator.rank());
    Bytes incoming(size);
    exchange(communicator, {to(next_of(communicator), outgoing)}, {from(previous_of(communicator), incoming)}).wait();
    require(incoming == pattern(size, previous_of(communicator)), "ring shift of " + std::to_string(size) + " bytes");
  }
}

// With two ranks both messages go to the same peer and only their order tells them apart.
void shift_both_ways(const Communicator& communicator) {
  const int self = communicator.rank();
  const Bytes clockwise = pattern(5000, 2 * self);
  const Bytes counter = pattern(5000, 2 * self + 1);
  Bytes from_previous(5000);
  Bytes from_next(5000);
  exchange(communicator, {to(next_of(communicator), clockwise), to(previous_of(communicator), counter)},
           {from(previous_of(communicator), from_previous), from(next_of(communicator), from_next)})
      .wait();
  require(from_previous == pattern(5000, 2 * previous_of(communicator)), "from previous");
  require(from_next == pattern(5000, 2 * next_of(communicator) + 1), "from next");
}

void self_messages_pair_in_order(const Communicator& communicator) {
  const int self = communicator.rank();
  const Bytes first = pattern(10, 1);
  const Bytes second = pattern(2'000'003, 2);
  const Bytes outgoing = pattern(77, self);
  Bytes first_copy(10);
  Bytes second_copy(second.size());
  Bytes incoming(77);
  exchange(communicator, {to(self, first), to(next_of(communicator), outgoing), to(self, second)},
           communicator.size() == 1
               ? std::vector<Receive>{from(self, first_copy), from(self, incoming), from(self, second_copy)}
               : std::vector<Receive>{from(self, first_copy), from(self, second_copy), from(previous_of(communicator), incoming)})
      .wait();
  require(first_copy == first && second_copy == second, "self messages");
  require(incoming == pattern(77, previous_of(communicator)), "message beside self messages");
}

void messages_of_a_pair_arrive_in_posted_order(const Communicator& communicator) {
  constexpr int kMessages = 7;
  constexpr int kExchanges = 3;
  std::vector<Bytes> outgoing;
  std::vector<Bytes> incoming;
  for (int k = 0; k < kMessages * kExchanges; ++k) {
    outgoing.push_back(pattern(1 << 10, 100 * communicator.rank() + k));
    incoming.emplace_back(1 << 10);
  }
  std::vector<Pending> open;
  for (std::size_t e = 0; e < kExchanges; ++e) {
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (std::size_t k = e * kMessages; k < (e + 1) * kMessages; ++k) {
      sends.push_back(to(next_of(communicator), outgoing[k]));
      receives.push_back(from(previous_of(communicator), incoming[k]));
    }
    open.push_back(exchange(communicator, sends, receives));
  }
  for (auto pending = open.rbegin(); pending != open.rend(); ++pending) pending->wait();
  for (int k = 0; k < kMessages * kExchanges; ++k) {
    require(incoming[static_cast<std::size_t>(k)] == pattern(1 << 10, 100 * previous_of(communicator) + k), "message " + std::to_string(k));
  }
}

std::size_t uneven_size(int source, int destination) { return static_cast<std::size_t>((source * 3 + destination * 5) % 7) * 30'001; }

void all_to_all_of_uneven_sizes(const Communicator& communicator) {
  const int self = communicator.rank();
  std::vector<Bytes> outgoing;
  std::vector<Bytes> incoming;
  for (int peer = 0; peer < communicator.size(); ++peer) {
    outgoing.push_back(pattern(uneven_size(self, peer), 10 * self + peer));
    incoming.emplace_back(uneven_size(peer, self));
  }
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < communicator.size(); ++peer) {
    sends.push_back(to(peer, outgoing[static_cast<std::size_t>(peer)]));
    receives.push_back(from(peer, incoming[static_cast<std::size_t>(peer)]));
  }
  exchange(communicator, sends, receives).wait();
  for (int peer = 0; peer < communicator.size(); ++peer) {
    require(incoming[static_cast<std::size_t>(peer)] == pattern(uneven_size(peer, self), 10 * peer + self),
            "from rank " + std::to_string(peer));
  }
}

void lanes_do_not_order_each_other(const Communicator& communicator) {
  constexpr std::size_t kSize = (std::size_t{2} << 20) + 5;
  std::vector<Bytes> outgoing;
  std::vector<Bytes> incoming;
  for (int lane = 0; lane < 2; ++lane) {
    outgoing.push_back(pattern(kSize, 2 * communicator.rank() + lane));
    incoming.emplace_back(kSize);
  }
  const auto post = [&](std::size_t lane) {
    return exchange(communicator, {to(next_of(communicator), outgoing[lane])}, {from(previous_of(communicator), incoming[lane])},
                    {.operation = "lane", .step = 1, .lane = static_cast<int>(lane)});
  };
  const std::size_t first_lane = communicator.rank() % 2 == 0 ? 0 : 1;
  Pending first = post(first_lane);
  Pending second = post(1 - first_lane);
  second.wait();
  first.wait();
  for (int lane = 0; lane < 2; ++lane) {
    require(incoming[static_cast<std::size_t>(lane)] == pattern(kSize, 2 * previous_of(communicator) + lane),
            "lane " + std::to_string(lane));
  }
}

void polling_finishes_an_exchange(const Communicator& communicator) {
  const Bytes outgoing = pattern(3'000'000, communicator.rank());
  Bytes incoming(outgoing.size());
  Pending pending = exchange(communicator, {to(next_of(communicator), outgoing)}, {from(previous_of(communicator), incoming)});
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!pending.done()) {
    communicator.progress();
    require(std::chrono::steady_clock::now() < limit, "progress without wait");
  }
  require(pending.done(), "done stays done");
  require(incoming == pattern(outgoing.size(), previous_of(communicator)), "polled data");
}

void forgotten_pending_waits(const Communicator& communicator) {
  const Bytes outgoing = pattern(2'500'000, communicator.rank());
  Bytes incoming(outgoing.size());
  Bytes incoming_again(outgoing.size());
  {
    Pending pending = exchange(communicator, {to(next_of(communicator), outgoing)}, {from(previous_of(communicator), incoming)});
    pending = exchange(communicator, {to(next_of(communicator), outgoing)}, {from(previous_of(communicator), incoming_again)});
    require(incoming == pattern(outgoing.size(), previous_of(communicator)), "assignment waits for the old operation");
  }
  require(incoming_again == pattern(outgoing.size(), previous_of(communicator)), "destruction waits");
}

void traffic_counts_payload_to_other_ranks(const Communicator& communicator) {
  const Bytes data = pattern(1000, 0);
  Bytes own(1000);
  Bytes incoming(1000);
  exchange(communicator, {to(communicator.rank(), data)}, {from(communicator.rank(), own)}).wait();
  exchange(communicator, {to(next_of(communicator), data)}, {from(previous_of(communicator), incoming)}).wait();
  const Traffic traffic = communicator.traffic();
  const std::size_t messages = communicator.size() > 1 ? 1 : 0;
  require(traffic.messages_sent == messages, "messages");
  require(traffic.bytes_sent == messages * 1000 && traffic.bytes_received == messages * 1000, "bytes");
}

void wrong_arguments_are_refused(const Communicator& communicator) {
  Bytes data(8);
  const int size = communicator.size();
  for (const int peer : {-1, size}) {
    require_contains(message_of<InvalidArgument>([&] { exchange(communicator, {to(peer, data)}, {}); }),
                     "names rank " + std::to_string(peer));
    require_contains(message_of<InvalidArgument>([&] { exchange(communicator, {}, {from(peer, data)}); }), "ranks of this group are 0..");
  }
  const int self = communicator.rank();
  require_contains(message_of<InvalidArgument>([&] { exchange(communicator, {}, {}, {.lane = kLanes}); }), "lane 4");
  require_contains(message_of<InvalidArgument>([&] { exchange(communicator, {{self, nullptr, 4}}, {}); }), "no memory");
  require_contains(message_of<CommError>([&] { exchange(communicator, {to(self, data)}, {}); }), "without a receive");
  require_contains(message_of<CommError>([&] { exchange(communicator, {}, {from(self, data)}); }), "without a send");
  Bytes shorter(4);
  require_contains(message_of<CommError>([&] { exchange(communicator, {to(self, data)}, {from(self, shorter)}); }), "receives 4");
  communicator.barrier(stream());  // the refused calls left nothing behind
}

constexpr Purpose kLabelled{.operation = "ring kv", .step = 12, .lane = 1};

void disagreeing_sizes(const Communicator& communicator, std::size_t sent, std::size_t expected) {
  if (communicator.size() < 2) return;
  Bytes data(std::max(sent, expected));
  if (communicator.rank() == 0) {
    try {
      exchange(communicator, {{1, data.data(), sent}}, {}, kLabelled).wait();
    } catch (const CommError&) {
      // Only the receiver is sure to find out: a short message may have left before.
    }
  }
  if (communicator.rank() == 1) {
    const std::string message = message_of<CommError>([&] { exchange(communicator, {}, {{0, data.data(), expected}}, kLabelled).wait(); });
    for (const char* part : {"sizes disagree", "rank 0", "rank 1", "ring kv", "plan step 12"}) require_contains(message, part);
    require_contains(message, std::to_string(expected));
    message_of<CommError>([&] { exchange(communicator, {{0, data.data(), 1}}, {}).wait(); });
  }
}

void longer_message_than_expected_fails(const Communicator& communicator) { disagreeing_sizes(communicator, 100, 50); }
void shorter_message_than_expected_fails(const Communicator& communicator) { disagreeing_sizes(communicator, 50, 100); }

void wait_ends_at_the_deadline(const Communicator& communicator) {
  if (communicator.size() < 2 || communicator.rank() != 0) return;
  Bytes data(64);
  Pending pending = exchange(communicator, {}, {from(1, data)}, kLabelled);
  const std::string message = message_of<CommError>([&] { pending.wait(); });
  for (const char* part :
       {"rank 0 of ", "not finished after 0.2 s", "'ring kv'", "plan step 12", "lane 1", "receive 64 bytes from rank 1", "--deadline"}) {
    require_contains(message, part);
  }
  require(pending.done(), "a failed operation is released");
  require(communicator.traffic().wait_seconds > 0.19, "blocked time is counted");
  require_contains(message_of<CommError>([&] { exchange(communicator, {}, {from(1, data)}).wait(); }), "not finished after 0.2 s");
}

constexpr Case kMessageCases[] = {
    {"empty_messages_complete_and_move_nothing", empty_messages_complete_and_move_nothing},
    {"ring_shift_of_many_sizes", ring_shift_of_many_sizes},
    {"shift_both_ways", shift_both_ways},
    {"self_messages_pair_in_order", self_messages_pair_in_order},
    {"messages_of_a_pair_arrive_in_posted_order", messages_of_a_pair_arrive_in_posted_order},
    {"all_to_all_of_uneven_sizes", all_to_all_of_uneven_sizes},
    {"lanes_do_not_order_each_other", lanes_do_not_order_each_other},
    {"polling_finishes_an_exchange", polling_finishes_an_exchange},
    {"forgotten_pending_waits", forgotten_pending_waits},
    {"traffic_counts_payload_to_other_ranks", traffic_counts_payload_to_other_ranks},
    {"wrong_arguments_are_refused", wrong_arguments_are_refused},
};

constexpr Case kFailureCases[] = {
    {"longer_message_than_expected_fails", longer_message_than_expected_fails},
    {"shorter_message_than_expected_fails", shorter_message_than_expected_fails},
    {"wait_ends_at_the_deadline", wait_ends_at_the_deadline, std::chrono::milliseconds(200)},
};

}  // namespace

std::span<const Case> message_cases() { return kMessageCases; }
std::span<const Case> failure_cases() { return kFailureCases; }

std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (const std::span<const Case> some : {message_cases(), collective_cases(), failure_cases()})
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

const Stream& stream() {
  static const Stream host;
  return host;
}

void require(bool condition, std::string_view what) {
  if (!condition) throw std::runtime_error("conformance: wrong: " + std::string(what));
}

void require_contains(std::string_view text, std::string_view part) {
  std::string what("a message lacks '");
  what.append(part).append("': ").append(text);
  require(text.find(part) != std::string_view::npos, what);
}

Bytes pattern(std::size_t bytes, int seed) {
  // Whole words: byte by byte the sanitizers would spend most of the suite here.
  std::vector<std::uint64_t> words((bytes + 7) / 8);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = (i + static_cast<std::size_t>(seed) * 1'000'003 + 1) * 0x9e3779b97f4a7c15u;
  Bytes data(bytes);
  if (bytes > 0) std::memcpy(data.data(), words.data(), bytes);
  return data;
}

Pending exchange(const Communicator& communicator, const std::vector<Send>& sends, const std::vector<Receive>& receives,
                 const Purpose& purpose) {
  return communicator.exchange(sends, receives, purpose, stream());
}

}  // namespace periplus::comm::conformance
