// What a client says to the store of torchrun's agent: a query is a byte for its kind and operands; integers are little-endian,
// texts follow their length in 64 bits. (PyTorch's TCPStore since 2.1, on either of its two servers.)
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <fmt/format.h>

#include "runtime/comm/tcp_connect.h"

namespace periplus::comm::tcp {
namespace {

enum class Query : std::uint8_t { validate = 0, set = 1, get = 3, wait = 6 };
constexpr std::uint32_t kMagic = 0x3C85F7CE;
constexpr std::uint64_t kMostBytes = 4096;
/// An older one hangs up.
constexpr const char* kStore = "torchrun's store (PyTorch 2.1 or newer)";

class Words {
 public:
  template <class T>
  requires std::is_trivially_copyable_v<T> Words& add(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Words& add_text(const std::string& text) {
    add(std::uint64_t{text.size()});
    text_ += text;
    return *this;
  }
  const std::string& text() const noexcept { return text_; }

 private:
  std::string text_;
};

void say(Caller& caller, Socket& socket, const Words& words) {
  caller.write(socket, words.text().data(), words.text().size(), fmt::format("asking {}", kStore));
}

Socket open_store(Caller& caller, const std::string& host, std::uint16_t port) {
  Socket socket = caller.connect(host, port);
  say(caller, socket, Words().add(Query::validate).add(kMagic));
  return socket;
}

}  // namespace

void set_in_store(Caller& caller, const std::string& host, std::uint16_t port, const std::string& key, const std::string& value) {
  Socket socket = open_store(caller, host, port);
  // The store answers a set with nothing; to wait for the key tells that it is there.
  say(caller, socket, Words().add(Query::set).add_text(key).add_text(value));
  say(caller, socket, Words().add(Query::wait).add(std::uint64_t{1}).add_text(key));
  std::uint8_t ready = 0;
  caller.read(socket, &ready, sizeof(ready), fmt::format("waiting for {} to take the port of rank 0", kStore));
}

std::string wait_in_store(Caller& caller, const std::string& host, std::uint16_t port, const std::string& key) {
  const std::string what = fmt::format("waiting for rank 0 to leave its port in {}", kStore);
  Socket socket = open_store(caller, host, port);
  say(caller, socket, Words().add(Query::wait).add(std::uint64_t{1}).add_text(key));
  std::uint8_t ready = 0;
  caller.read(socket, &ready, sizeof(ready), what);
  say(caller, socket, Words().add(Query::get).add_text(key));
  std::uint64_t length = 0;
  caller.read(socket, &length, sizeof(length), what);
  if (length > kMostBytes) caller.fail(what, "the answer makes no sense; is MASTER_PORT that of the store?");
  std::string value(length, '\0');
  caller.read(socket, value.data(), value.size(), what);
  return value;
}

}  // namespace periplus::comm::tcp
