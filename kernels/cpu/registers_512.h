// What fits the registers where a vector has 512 bits. First include of each level_<level>.cpp of such a level.
#pragma once

namespace periplus::kernels::cpu {
namespace {
constexpr int kLanes = 16;      // f32 in a vector, and rows of a tile
constexpr int kMaxVectors = 4;  // kMaxRows x kMaxVectors sums and kMaxVectors operands fit the registers
constexpr int kMaxRows = 6;
}  // namespace
}  // namespace periplus::kernels::cpu
