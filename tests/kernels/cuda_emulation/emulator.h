#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

/// Runs CUDA kernels on the CPU so that their logic can be tested where there is no GPU: the threads of a block are fibers of the calling
/// thread that switch at barriers and warp instructions, blocks run one after the other. Warp instructions need all 32 lanes. What it
/// cannot show: races between barriers, memory order, speed.
namespace periplus::emulation {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

/// Of the running thread; threadIdx and its like refer to these.
struct Place {
  Index thread, block, block_extent, grid_extent;
};
Place& place();

/// Runs body() in every thread of every block. Aborts, saying why, where threads wait for others that have ended.
void run_grid(Index grid, Index block, std::size_t shared_bytes, const std::function<void()>& body);

/// Dynamic shared memory of the block: filled with NaN at its start.
unsigned char* shared_memory();
std::size_t shared_memory_bytes();

void wait_for_block();

/// All lanes of a warp hand in an operand; combine(operands, results) runs once with pointers to those of the 32 lanes.
using Combine = void (*)(const void* const* operands, void* const* results);
void with_warp(const void* operand, void* result, Combine combine);

/// Copies that a thread has started and not waited for, in groups.
void start_copy(unsigned char* to, const void* from, std::size_t bytes, bool copies);
void close_copy_group();
void finish_copies(std::size_t groups_left);

}  // namespace periplus::emulation
