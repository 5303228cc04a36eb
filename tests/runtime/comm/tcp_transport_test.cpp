#include "runtime/comm/tcp_transport.h"

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <thread>

#include <boost/asio.hpp>
#include <gtest/gtest.h>
#include <unistd.h>

#include "conformance.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using conformance::Bytes;
using conformance::exchange;
using conformance::from;
using conformance::stream;
using conformance::to;
using std::chrono::milliseconds;

/// Below the ports that the system gives to those who connect: one of these may be taken before a rank listens there.
std::uint16_t free_port() {
  constexpr int kFirst = 30000, kCount = 2768;
  static std::atomic<int> next{getpid() * 37};
  asio::io_context io;
  for (int tries = 0; tries < kCount; ++tries) {
    const auto port = static_cast<std::uint16_t>(kFirst + next++ % kCount);
    boost::system::error_code code;
    tcp::acceptor acceptor(io, tcp::v4());
    acceptor.bind({tcp::v4(), port}, code);
    if (!code) return port;
  }
  throw DeviceError("no port is free");
}

/// Runs a rank on each of `ranks` threads and returns what each threw. All communicators live until all ranks have ended, as
/// processes that wait for each other's end do.
std::vector<std::string> run_ranks(TcpGroup group, const std::function<void(const Communicator&)>& body, const TransportOptions& options) {
  std::vector<Communicator> communicators(static_cast<std::size_t>(group.size));
  std::vector<std::string> errors(communicators.size());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < group.size; ++rank) {
    threads.emplace_back([&, rank] {
      const auto index = static_cast<std::size_t>(rank);
      TcpGroup mine = group;
      mine.rank = rank;
      try {
        communicators[index] = make_tcp_communicator(mine, options);
        body(communicators[index]);
      } catch (const std::exception& error) {
        errors[index] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

TcpGroup group_of(int size) { return {.size = size, .host = "localhost", .port = free_port()}; }

class TcpTransportConformance : public testing::TestWithParam<int> {};

TEST_P(TcpTransportConformance, Holds) {
  for (const conformance::Case& item : conformance::all_cases()) {
    SCOPED_TRACE(item.name);
    for (const std::string& error : run_ranks(group_of(GetParam()), item.body, {.deadline = item.deadline})) EXPECT_EQ(error, "");
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, TcpTransportConformance, testing::Values(1, 2, 3, 4, 8), testing::PrintToStringParamName());

/// What torchrun's agent answers to a few queries; one thread, one client after the other, as they come.
class FakeStore {
 public:
  FakeStore() : acceptor_(io_, {tcp::v4(), 0}) {
    thread_ = std::thread([this] { serve(); });
  }
  FakeStore(const FakeStore&) = delete;
  FakeStore& operator=(const FakeStore&) = delete;
  ~FakeStore() {
    asio::post(io_, [this] { io_.stop(); });
    thread_.join();
  }
  std::uint16_t port() const { return acceptor_.local_endpoint().port(); }
  const std::map<std::string, std::string>& values() const { return values_; }

 private:
  struct Client {
    tcp::socket socket;
    std::string said{};
    std::optional<std::string> awaited{};
  };

  void serve() {
    accept();
    io_.run();
  }
  void accept() {
    acceptor_.async_accept([this](boost::system::error_code code, tcp::socket socket) {
      if (code) return;
      listen(std::make_shared<Client>(Client{std::move(socket)}));
      accept();
    });
  }
  void listen(const std::shared_ptr<Client>& client) {
    const auto buffer = std::make_shared<std::array<char, 256>>();
    client->socket.async_read_some(asio::buffer(*buffer), [this, client, buffer](boost::system::error_code code, std::size_t bytes) {
      if (code) return;
      client->said.append(buffer->data(), bytes);
      while (answer(*client)) {
      }
      waiting_.push_back(client);
      std::erase_if(waiting_, [this](const std::shared_ptr<Client>& other) {
        if (!other->awaited) return true;
        if (!values_.contains(*other->awaited)) return false;
        other->awaited.reset();
        reply(*other, std::string(1, '\0'));
        return true;
      });
      listen(client);
    });
  }
  static void reply(Client& client, const std::string& words) { asio::write(client.socket, asio::buffer(words)); }

  /// Takes one whole query off what was said.
  bool answer(Client& client) {
    std::size_t at = 1;
    bool whole = !client.said.empty();
    const auto number = [&]<class T>(T) {
      T value{};
      whole = whole && client.said.size() >= at + sizeof(T);
      if (whole) std::memcpy(&value, client.said.data() + at, sizeof(T));
      at += sizeof(T);
      return value;
    };
    const auto text = [&] {
      const std::uint64_t length = number(std::uint64_t{});
      whole = whole && client.said.size() >= at + length;
      if (!whole) return std::string();
      at += length;
      return client.said.substr(at - length, length);
    };
    switch (client.said.empty() ? -1 : client.said[0]) {
      case 0:
        EXPECT_EQ(number(std::uint32_t{}), whole ? 0x3C85F7CEu : 0u);
        break;
      case 1: {
        const std::string key = text(), value = text();
        if (whole) values_[key] = value;
        break;
      }
      case 3: {
        const std::string key = text();
        if (!whole) break;
        const std::uint64_t length = values_.at(key).size();
        std::string words(sizeof(length), '\0');
        std::memcpy(words.data(), &length, sizeof(length));
        reply(client, words + values_.at(key));
        break;
      }
      case 6:
        EXPECT_EQ(number(std::uint64_t{}), whole ? 1u : 0u);
        if (const std::string key = text(); whole) client.awaited = key;
        break;
      default:
        return false;
    }
    if (whole) client.said.erase(0, at);
    return whole;
  }

  asio::io_context io_;
  tcp::acceptor acceptor_;
  std::map<std::string, std::string> values_;
  std::vector<std::shared_ptr<Client>> waiting_;
  std::thread thread_;
};

void pass_ranks_round(const Communicator& communicator) {
  const std::vector<std::string> all = communicator.all_gather_bytes(std::to_string(communicator.rank()), stream());
  for (std::size_t rank = 0; rank < all.size(); ++rank) EXPECT_EQ(all[rank], std::to_string(rank));
}

TEST(TcpTransport, RanksMeetThroughTorchrunsStore) {
  const FakeStore store;
  for (const char* key : {"first", "again"}) {
    const TcpGroup group{.size = 3, .host = "127.0.0.1", .port = store.port(), .store_key = key};
    for (const std::string& error : run_ranks(group, pass_ranks_round, {})) EXPECT_EQ(error, "");
  }
  EXPECT_EQ(store.values().size(), 2u);
}

TEST(TcpTransport, AStoreThatHangsUpMayBeTooOld) {
  asio::io_context io;
  tcp::acceptor store(io, {tcp::v4(), 0});
  std::thread old([&] { store.accept(); });
  const TcpGroup group{.size = 2, .host = "127.0.0.1", .port = store.local_endpoint().port(), .store_key = "key"};
  const std::string said = conformance::message_of<CommError>([&] { make_tcp_communicator(group); });
  old.join();
  EXPECT_NE(said.find("torchrun's store (PyTorch 2.1 or newer)"), std::string::npos) << said;
}

TEST(TcpTransport, RanksMeetAtAPortThatTheProgramShares) {
  std::atomic<std::uint16_t> first{0};
  std::atomic<int> calls{0};
  const auto share = [&](std::uint16_t own) {
    ++calls;
    if (own != 0) first = own;
    while (first == 0) std::this_thread::yield();
    return first.load();
  };
  const TcpGroup group{.size = 3, .host = "127.0.0.1", .share_port = share};
  for (const std::string& error : run_ranks(group, pass_ranks_round, {})) EXPECT_EQ(error, "");
  EXPECT_EQ(calls, 3);
  const TcpGroup unable{.size = 2, .host = "127.0.0.1", .share_port = [](std::uint16_t) { return std::uint16_t{0}; }};
  for (const std::string& error : run_ranks(unable, pass_ranks_round, {}))
    EXPECT_NE(error.find("port of rank 0"), std::string::npos) << error;
}

TEST(TcpTransport, TellsForWhomItStillWaits) {
  TcpGroup group = group_of(2);
  std::vector<std::string> lines;
  group.on_wait = [&](const std::string& line) { lines.push_back(line); };
  group.word_after = milliseconds(50), group.patience = milliseconds(400);
  EXPECT_THROW(make_tcp_communicator(group), CommError);  // after 50, 150 and 350 ms
  EXPECT_LE(lines.size(), 3u);
  ASSERT_GE(lines.size(), 1u);
  EXPECT_EQ(lines.front(), "tcp transport: rank 0 of 2: waiting at port " + std::to_string(group.port) + " for rank 1");
  lines.clear();
  group.rank = 1;
  EXPECT_THROW(make_tcp_communicator(group), CommError);
  EXPECT_LE(lines.size(), 3u);
  ASSERT_GE(lines.size(), 1u);
  EXPECT_NE(lines.front().find("rank 1 of 2: connecting to"), std::string::npos) << lines.front();
}

TEST(TcpTransport, SaysWhoIsMissing) {
  TcpGroup group = group_of(3);
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (const int rank : {0, 2}) {
    threads.emplace_back([rank, group, &error = errors[rank == 0 ? 0 : 1]]() mutable {
      group.rank = rank;
      try {
        group.patience = milliseconds(rank == 0 ? 300 : 5000);
        make_tcp_communicator(group);
      } catch (const CommError& failure) {
        error = failure.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(errors[0].find("rank 0 of 3: waiting at port " + std::to_string(group.port) + " for rank 1: not finished in time"),
            std::string::npos)
      << errors[0];
  EXPECT_NE(errors[1].find("rank 2 of 3: waiting for rank 0 to hear of all ranks: End of file"), std::string::npos) << errors[1];
  group.rank = 1;
  try {
    group.patience = milliseconds(200);
    make_tcp_communicator(group);
    ADD_FAILURE() << "nobody listens";
  } catch (const CommError& error) {
    EXPECT_NE(std::string(error.what()).find("connecting to localhost at port"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("nobody listens there"), std::string::npos) << error.what();
  }
}

TEST(TcpTransport, StrangersAreSentAway) {
  TcpGroup group = group_of(2);
  std::thread stranger([&] {
    asio::io_context io;
    tcp::socket socket(io);
    boost::system::error_code code = asio::error::connection_refused;
    while (code == asio::error::connection_refused) {
      socket.close();
      socket.connect({asio::ip::make_address("127.0.0.1"), group.port}, code);
    }
    asio::write(socket, asio::buffer(std::string("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")), code);
  });
  std::thread one([group]() mutable {
    std::this_thread::sleep_for(milliseconds(100));
    group.rank = 1;
    pass_ranks_round(make_tcp_communicator(group));
  });
  pass_ranks_round(make_tcp_communicator(group));
  one.join();
  stranger.join();
}

TEST(TcpTransport, TwoProcessesOfOneRankAreRefused) {
  TcpGroup group = group_of(3);
  std::thread zero([group] {
    EXPECT_NE(conformance::message_of<CommError>([&] { make_tcp_communicator(group); }).find("rank 1 of 3, which is taken"),
              std::string::npos);
  });
  group.rank = 1;
  std::thread other([group] { EXPECT_THROW(make_tcp_communicator(group), CommError); });
  EXPECT_THROW(make_tcp_communicator(group), CommError);
  zero.join();
  other.join();
  EXPECT_THROW(make_tcp_communicator({.rank = 3, .size = 3}), InvalidArgument);
}

TEST(TcpTransport, ARankThatLeavesIsNoticedByThoseThatWaitForIt) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::string> errors(3);
  TcpGroup group = group_of(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([rank, group, &error = errors[static_cast<std::size_t>(rank)]]() mutable {
      group.rank = rank;
      const Communicator communicator = make_tcp_communicator(group);
      if (rank == 2) return;  // rank 1 waits for it, and rank 0 for rank 1
      Bytes data(100);
      try {
        exchange(communicator, {}, {from(rank + 1, data)}).wait();
      } catch (const CommError& failure) {
        error = failure.what();
      }
      if (rank == 1) std::this_thread::sleep_for(milliseconds(50));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(errors[1].find("rank 2 has left"), std::string::npos) << errors[1];
  EXPECT_NE(errors[0].find("rank 1 gave up: rank 1 of 3: rank 2 has left"), std::string::npos) << errors[0];
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << "long before the deadline";
}

TEST(TcpTransport, ThoseThatWaitLearnWhyARankGaveUp) {
  std::vector<AbortCause> causes(2, AbortCause::failure);
  const auto body = [&](const Communicator& communicator) {
    if (communicator.rank() == 2) return communicator.abort("an option that cannot be", AbortCause::invalid_argument);
    Bytes data(100);
    try {
      exchange(communicator, {}, {from(communicator.rank() + 1, data)}).wait();  // rank 0 may hear of it from rank 1
    } catch (const AbortedByPeer& failure) {
      causes[static_cast<std::size_t>(communicator.rank())] = failure.cause();
      throw;
    }
  };
  const std::vector<std::string> errors = run_ranks(group_of(3), body, {});
  for (std::size_t rank = 0; rank < causes.size(); ++rank) {
    EXPECT_EQ(causes[rank], AbortCause::invalid_argument) << rank;
    EXPECT_NE(errors[rank].find("an option that cannot be"), std::string::npos) << errors[rank];
  }
}

TEST(TcpTransport, MessagesThatCameEarlyAreKeptAlsoAfterTheirRankHasLeft) {
  TcpGroup group = group_of(2);
  std::thread sender([group]() mutable {
    group.rank = 1;
    const Communicator communicator = make_tcp_communicator(group);
    const Bytes first = conformance::pattern(50'000, 1), second = conformance::pattern(100, 2);
    exchange(communicator, {to(0, first)}, {}, {.lane = 1}).wait();
    exchange(communicator, {to(0, second)}, {}, {.lane = 0}).wait();
  });
  const Communicator communicator = make_tcp_communicator(group);
  sender.join();
  Bytes first(50'000), second(100);
  exchange(communicator, {}, {from(1, second)}, {.lane = 0}).wait();
  exchange(communicator, {}, {from(1, first)}, {.lane = 1}).wait();
  EXPECT_EQ(first, conformance::pattern(50'000, 1));
  EXPECT_EQ(second, conformance::pattern(100, 2));
  EXPECT_NE(conformance::message_of<CommError>([&] { exchange(communicator, {}, {from(1, second)}).wait(); }).find("rank 1 has left"),
            std::string::npos);
}

}  // namespace
}  // namespace periplus::comm
