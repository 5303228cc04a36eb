#include "tests/kernels/cuda_emulation/emulator.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include <ucontext.h>

namespace periplus::emulation {
namespace {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = std::size_t{128} << 10;
constexpr std::size_t kMostShared = std::size_t{227} << 10;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u, %u, %u, thread %u)\n", what, place().block.x, place().block.y, place().block.z,
               place().thread.x);
  std::abort();
}

/// A point that `expected` threads pass together.
struct Gate {
  unsigned arrived = 0;
  std::uint64_t passed = 0;
};

struct Copy {
  unsigned char* to;
  const void* from;
  std::size_t bytes;
  bool copies;
};

struct Fiber {
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  ucontext_t start = {};
  std::jmp_buf resume = {};
  bool begun = false, done = false;
  const Gate* waits_at = nullptr;
  std::uint64_t waits_past = 0;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  Gate gate;
  const void* operands[kLanes];
  void* results[kLanes];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Gate gate;
  unsigned threads = 0, current = 0;
  std::vector<unsigned char> shared;
  const std::function<void()>* body = nullptr;
  std::jmp_buf scheduler = {};
};

Block& state() {
  static Block block;
  return block;
}

Fiber& current() { return state().fibers[state().current]; }

void enter() {
  (*state().body)();
  current().done = true;
  _longjmp(state().scheduler, 1);
}

/// Back to the scheduler until the gate has been passed once more.
void wait_at(const Gate& gate) {
  Fiber& fiber = current();
  fiber.waits_at = &gate;
  fiber.waits_past = gate.passed;
  if (_setjmp(fiber.resume) == 0) _longjmp(state().scheduler, 1);
}

bool runnable(const Fiber& fiber) { return !fiber.done && (fiber.waits_at == nullptr || fiber.waits_at->passed != fiber.waits_past); }

/// Lets the current fiber run until it waits or ends.
void step() {
  Fiber& fiber = current();
  if (_setjmp(state().scheduler) != 0) return;
  fiber.waits_at = nullptr;
  place().thread = {state().current, 0, 0};
  if (fiber.begun) _longjmp(fiber.resume, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

void start(Fiber& fiber) {
  fiber.begun = fiber.done = false;
  fiber.waits_at = nullptr;
  fiber.groups.clear();
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
}

/// Threads start in turn from another one each time round, so that an order that happens to be right does not hide a missing barrier.
void run_block() {
  Block& block = state();
  std::memset(block.shared.data(), 0xff, block.shared.size());
  block.gate = {};
  for (Warp& warp : block.warps) warp.gate = {};
  for (unsigned thread = 0; thread < block.threads; ++thread) start(block.fibers[thread]);
  for (unsigned round = 0;; ++round) {
    bool any = false, all_done = true;
    for (unsigned i = 0; i < block.threads; ++i) {
      block.current = (i + round * 7 * kLanes) % block.threads;
      all_done &= current().done;
      if (!runnable(current())) continue;
      any = true;
      step();
    }
    if (all_done) return;
    if (!any) fail("threads wait for others that have ended or wait elsewhere");
  }
}

}  // namespace

Place& place() {
  static Place now;
  return now;
}
unsigned char* shared_memory() { return state().shared.data(); }
std::size_t shared_memory_bytes() { return state().shared.size(); }

void run_grid(Index grid, Index block_extent, std::size_t shared_bytes, const std::function<void()>& body) {
  Block& block = state();
  block.threads = block_extent.x;
  place().grid_extent = grid;
  place().block_extent = block_extent;
  if (block.fibers.size() < block.threads) block.fibers.resize(block.threads);
  block.warps.resize((block.threads + kLanes - 1) / kLanes);
  block.current = 0;
  const bool fits = block_extent.y == 1 && block_extent.z == 1 && block.threads <= 1024 && block.threads % kLanes == 0 && grid.y < 65536 &&
                    grid.z < 65536 && shared_bytes <= kMostShared;
  if (!fits) fail("a launch that no device takes");
  block.shared.assign(shared_bytes, 0xff);
  block.body = &body;
  Index& at = place().block;
  for (at.z = 0; at.z < grid.z; ++at.z) {
    for (at.y = 0; at.y < grid.y; ++at.y) {
      for (at.x = 0; at.x < grid.x; ++at.x) run_block();
    }
  }
}

void wait_for_block() {
  Gate& gate = state().gate;
  if (++gate.arrived < state().threads) return wait_at(gate);
  gate.arrived = 0;
  ++gate.passed;
}

void with_warp(const void* operand, void* result, Combine combine) {
  const unsigned thread = state().current;
  Warp& warp = state().warps[thread / kLanes];
  warp.operands[thread % kLanes] = operand;
  warp.results[thread % kLanes] = result;
  if (++warp.gate.arrived < kLanes) return wait_at(warp.gate);
  combine(warp.operands, warp.results);
  warp.gate.arrived = 0;
  ++warp.gate.passed;
}

void start_copy(unsigned char* to, const void* from, std::size_t bytes, bool copies) {
  if (copies && reinterpret_cast<std::uintptr_t>(from) % bytes != 0) fail("a copy from an address that is no multiple of its size");
  std::memset(to, 0xff, bytes);  // what is read too early is NaN
  if (current().groups.empty()) current().groups.emplace_back();
  current().groups.back().push_back({to, from, bytes, copies});
}

void close_copy_group() {
  if (current().groups.empty()) current().groups.emplace_back();
  current().groups.emplace_back();
}

void finish_copies(std::size_t groups_left) {
  auto& groups = current().groups;  // the last one is still open
  while (groups.size() > groups_left + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.copies) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    groups.pop_front();
  }
}

}  // namespace periplus::emulation
