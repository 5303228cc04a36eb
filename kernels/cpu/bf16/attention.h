#pragma once

#include <span>

#include "kernels/cpu/bf16/kernels.h"

/// bf16 attention on matrix tiles, with the kernels of one tile unit. Arguments are already checked, and both
/// widths are at most kWidestHead.
namespace periplus::kernels::cpu::bf16 {

void attend(const Kernels& kernels, const ForwardProblem<bfloat16, float>& problem, std::span<const Band> bands, StreamView stream);
void attend_backward(const Kernels& kernels, const BackwardProblem<bfloat16, float>& problem, std::span<const Band> bands,
                     StreamView stream);

}  // namespace periplus::kernels::cpu::bf16
