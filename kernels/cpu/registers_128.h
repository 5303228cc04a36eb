// What fits the registers where a vector has 128 bits. First include of each level_<level>.cpp of such a level.
#pragma once

namespace periplus::kernels::cpu {
namespace {
constexpr int kLanes = 4;       // f32 in a vector
constexpr int kMaxVectors = 2;  // kMaxRows x kMaxVectors sums and kMaxVectors operands fit the registers
constexpr int kMaxRows = 6;
}  // namespace
}  // namespace periplus::kernels::cpu
