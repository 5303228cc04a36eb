#include "fake_nccl.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace periplus::comm::fake_nccl {
namespace {

using nccl::Comm;
using nccl::Result;
using nccl::UniqueId;

struct Member;

struct Message {
  Member* owner;
  int peer;
  const void* source;  // of a send
  void* destination;   // of a receive
  std::size_t bytes;
  bool of_all_gather = false;
};

struct World {
  int size = 0;
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<Message>> sends, receives;  // by source and destination
};

struct Member {
  std::shared_ptr<World> world;
  int rank = 0;
  std::size_t open = 0;  // messages of the group that have not met
  bool exchanged = false;
  bool finalizing = false;
};

struct Fake {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Fault> fault;
  bool release_aborts = false;
  int hanging = 0;
  std::uint64_t next_id = 1;
  std::map<std::uint64_t, std::shared_ptr<World>> worlds;
  std::map<Member*, std::unique_ptr<Member>> members;
  Counts counts;

  Result code(State state, int rank) const { return fault && fault->state == state && fault->rank == rank ? fault->code : Result::success; }
};

Fake& fake() {
  static Fake instance;
  return instance;
}

thread_local int group_depth = 0;
thread_local std::vector<Message> group;

Result get_unique_id(UniqueId* id) {
  const std::lock_guard lock(fake().mutex);
  if (const Result code = fake().code(State::unique_id, 0); code != Result::success) return code;
  const std::uint64_t number = fake().next_id++;
  std::memcpy(id->bytes.data(), &number, sizeof(number));
  return Result::success;
}

Result comm_init_rank(Comm* comm, int size, const UniqueId* id, int rank, int) {
  const std::lock_guard lock(fake().mutex);
  std::uint64_t number = 0;
  std::memcpy(&number, id->bytes.data(), sizeof(number));
  const Result code = fake().code(State::init, rank);
  if (code != Result::success && code != Result::in_progress) return code;
  std::shared_ptr<World>& world = fake().worlds[number];
  if (!world) world = std::make_shared<World>();
  world->size = size;
  if (code != Result::in_progress) ++world->joined;
  auto member = std::make_unique<Member>(Member{world, rank});
  Member* const handle = member.get();
  fake().members.emplace(handle, std::move(member));
  ++fake().counts.made;
  *comm = handle;
  return Result::in_progress;
}

/// Null for a communicator that is gone: a call on it is a mistake of the transport.
Member* find(Comm comm) {
  const auto found = fake().members.find(static_cast<Member*>(comm));
  return found == fake().members.end() ? nullptr : found->second.get();
}

Result comm_get_async_error(Comm comm, Result* state) {
  const std::lock_guard lock(fake().mutex);
  const Member* const member = find(comm);
  if (member == nullptr) return Result::invalid_argument;
  Result code = fake().code(State::init_poll, member->rank);
  if (member->exchanged) {
    for (const State later : {State::send, State::receive, State::all_gather, State::group_end, State::exchange_poll, State::abort}) {
      const Result found = fake().code(later, member->rank);
      const bool polled = later == State::exchange_poll || later == State::abort;
      if (found == Result::in_progress || (polled && found != Result::success)) code = found;
    }
  }
  if (member->finalizing) code = fake().code(State::finalize, member->rank);
  const bool busy = member->world->joined < member->world->size || member->open > 0;
  *state = code != Result::success ? code : busy ? Result::in_progress : Result::success;
  return Result::success;
}

Result group_start() {
  ++group_depth;
  return Result::success;
}

Result add(State state, const Message& message) {
  const std::lock_guard lock(fake().mutex);
  Member* const member = find(message.owner);
  if (member == nullptr || member->open > 0 || member->world->joined < member->world->size) return Result::invalid_argument;
  if (group_depth != 1 || message.bytes == 0 || message.peer < 0 || message.peer >= member->world->size) return Result::invalid_usage;
  if (const Result code = fake().code(state, member->rank); code != Result::success && code != Result::in_progress) return code;
  group.push_back(message);
  return Result::success;
}

Result send(const void* data, std::size_t bytes, int peer, Comm comm, void*) {
  return add(State::send, {static_cast<Member*>(comm), peer, data, nullptr, bytes});
}
Result receive(void* data, std::size_t bytes, int peer, Comm comm, void*) {
  return add(State::receive, {static_cast<Member*>(comm), peer, nullptr, data, bytes});
}

/// In place only, as the transport does it: this rank sends its share to all and receives those of the others.
Result all_gather(const void* mine, void* gathered, std::size_t bytes, Comm comm, void*) {
  auto* const member = static_cast<Member*>(comm);
  auto* const all = static_cast<std::byte*>(gathered);
  int size = 0, self = 0;
  {
    const std::lock_guard lock(fake().mutex);
    if (find(comm) == nullptr) return Result::invalid_argument;
    size = member->world->size;
    self = member->rank;
    if (mine != all + bytes * static_cast<std::size_t>(self)) return Result::invalid_usage;
    ++fake().counts.all_gathers;
  }
  for (int peer = 0; peer < size; ++peer) {
    if (peer == self) continue;
    for (const Message& message : {Message{member, peer, mine, nullptr, bytes, true},
                                   Message{member, peer, nullptr, all + bytes * static_cast<std::size_t>(peer), bytes, true}}) {
      if (const Result code = add(State::all_gather, message); code != Result::success) return code;
    }
  }
  return Result::success;
}

void match(std::deque<Message>& sends, std::deque<Message>& receives) {
  while (!sends.empty() && !receives.empty() && sends.front().bytes == receives.front().bytes &&
         sends.front().of_all_gather == receives.front().of_all_gather) {
    std::memcpy(receives.front().destination, sends.front().source, sends.front().bytes);
    for (std::deque<Message>* queue : {&sends, &receives}) {
      --queue->front().owner->open;
      queue->pop_front();
    }
  }
}

Result group_end() {
  const std::lock_guard lock(fake().mutex);
  if (--group_depth != 0) return Result::invalid_usage;
  const std::vector<Message> messages = std::exchange(group, {});
  if (messages.empty()) return Result::success;
  Member* const member = find(messages.front().owner);
  if (member == nullptr) return Result::invalid_argument;
  const Result code = fake().code(State::group_end, member->rank);
  if (code != Result::success && code != Result::in_progress) return code;
  member->exchanged = true;
  member->open = messages.size();
  for (const Message& message : messages) {
    World& world = *member->world;
    const bool is_send = message.source != nullptr;
    const std::pair<int, int> way = is_send ? std::pair(member->rank, message.peer) : std::pair(message.peer, member->rank);
    (is_send ? world.sends : world.receives)[way].push_back(message);
    match(world.sends[way], world.receives[way]);
  }
  return member->open > 0 ? Result::in_progress : Result::success;
}

Result comm_finalize(Comm comm) {
  const std::lock_guard lock(fake().mutex);
  Member* const member = find(comm);
  if (member == nullptr) return Result::invalid_argument;
  member->finalizing = true;
  return fake().code(State::finalize, member->rank);
}

/// From now on no peer reaches the memory of its messages.
Result forget(Comm comm) {
  Member* const member = find(comm);
  if (member == nullptr) return Result::invalid_argument;
  for (auto* queues : {&member->world->sends, &member->world->receives}) {
    for (auto& [way, queue] : *queues) std::erase_if(queue, [&](const Message& message) { return message.owner == member; });
  }
  fake().members.erase(member);
  return Result::success;
}

Result comm_destroy(Comm comm) {
  const std::lock_guard lock(fake().mutex);
  ++fake().counts.destroyed;
  return forget(comm);
}

Result comm_abort(Comm comm) {
  std::unique_lock lock(fake().mutex);
  ++fake().counts.aborted;
  const Member* const member = find(comm);
  if (member != nullptr && fake().code(State::abort, member->rank) != Result::success) {
    ++fake().hanging;
    fake().changed.wait(lock, [] { return fake().release_aborts; });
    --fake().hanging;
    fake().changed.notify_all();
  }
  return forget(comm);
}

const char* get_error_string(Result result) { return result == Result::remote_error ? "remote process exited" : "some error"; }
const char* get_last_error() { return "fake"; }

}  // namespace

const nccl::Api& api() {
  static const nccl::Api table = {.version = 22809,
                                  .get_unique_id = get_unique_id,
                                  .comm_init_rank = comm_init_rank,
                                  .comm_get_async_error = comm_get_async_error,
                                  .group_start = group_start,
                                  .group_end = group_end,
                                  .send = send,
                                  .receive = receive,
                                  .all_gather = all_gather,
                                  .comm_finalize = comm_finalize,
                                  .comm_destroy = comm_destroy,
                                  .comm_abort = comm_abort,
                                  .get_error_string = get_error_string,
                                  .get_last_error = get_last_error};
  return table;
}

Injection::Injection(std::optional<Fault> fault) {
  const std::lock_guard lock(fake().mutex);
  fake().fault = fault;
  fake().release_aborts = false;
}

Injection::~Injection() {
  std::unique_lock lock(fake().mutex);
  fake().fault.reset();
  fake().release_aborts = true;
  fake().changed.notify_all();
  fake().changed.wait(lock, [] { return fake().hanging == 0; });
}

Counts counts() {
  const std::lock_guard lock(fake().mutex);
  return fake().counts;
}

}  // namespace periplus::comm::fake_nccl
