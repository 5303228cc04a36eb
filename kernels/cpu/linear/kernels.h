#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_set.h"
#include "kernels/cpu/parallel.h"
#include "kernels/linear_attention_problem.h"

/// Boundary between the driver (units.cpp), compiled for any CPU, and the kernels, compiled once per instruction set: plain data,
/// as in ../tile_kernels.h.
namespace periplus::kernels::cpu::linear {

inline constexpr std::int64_t kChunk = 64;  ///< Tokens of a chunk.

/// One run of one head.
struct Item {
  UnitRun run;
  std::int64_t head;
  std::byte* scratch;
  Progress progress;
};

template <class S>
struct Kernels {
  /// For runs of up to `most_rows` rows.
  std::int64_t (*scratch_bytes)(const LinearShape&);
  std::int64_t (*backward_scratch_bytes)(const LinearShape&, std::int64_t most_rows);

  void (*states)(const LinearProblem<S, float>&, Strided<float> elements, const Item&);
  void (*states_backward)(const LinearProblem<S, float>&, Strided<const S> dout, Strided<float> elements, const Item&);
  void (*apply)(const LinearProblem<S, float>&, Strided<const float> incoming, Strided<S> out, const Item&);
  void (*apply_backward)(const LinearProblem<S, float>&, Strided<const float> incoming, Strided<const S> dout,
                         Strided<const float> doutgoing, const LinearResults<S, float>&, const Item&);
};

KernelSet<Kernels> scalar_kernels() noexcept;
KernelSet<Kernels> avx2_kernels() noexcept;
KernelSet<Kernels> avx512_kernels() noexcept;
/// On matrix tiles, which are of bf16.
Kernels<bfloat16> amx_kernels() noexcept;
Kernels<bfloat16> dot_kernels() noexcept;
Kernels<bfloat16> emulated_kernels() noexcept;

}  // namespace periplus::kernels::cpu::linear
