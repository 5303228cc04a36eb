#include "kernels/cpu/linear/units.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/best_kernels.h"
#include "kernels/cpu/linear/kernels.h"
#include "kernels/cpu/scratch.h"

namespace periplus::kernels::cpu {
namespace {

template <class S>
linear::Kernels<S> kernels_of() {
  if constexpr (std::is_same_v<S, bfloat16>) {
    if (const auto matrix = matrix_kernels<linear::emulated_kernels, linear::dot_kernels, linear::amx_kernels>()) return *matrix;
  }
  return best_kernels<S, linear::scalar_kernels, linear::avx2_kernels, linear::avx512_kernels>();
}

/// body(item) for each head of the runs, longest first: a long one that begins last would be waited for.
template <class S, class Body>
void for_each_head(const LinearProblem<S, float>& p, std::vector<const UnitRun*> runs, double flop_per_state_element,
                   std::int64_t scratch_bytes, StreamView stream, const Body& body) {
  std::stable_sort(runs.begin(), runs.end(), [](const UnitRun* a, const UnitRun* b) { return a->rows > b->rows; });
  std::int64_t rows = 0;
  for (const UnitRun* run : runs) rows += run->rows;
  const LinearShape& shape = p.shape;
  const std::int64_t items = static_cast<std::int64_t>(runs.size()) * shape.heads;
  const int team = team_size(
      items, flop_per_state_element * static_cast<double>(rows) * static_cast<double>(shape.heads * shape.width_qk * shape.width_v));
  const std::int64_t bytes = whole_pages(scratch_bytes);
  std::byte* scratch = team_scratch(bytes * team);
  for_each_item_on(team, items, stream, [&](std::int64_t item, int thread, const Progress& progress) {
    body(linear::Item{*runs[static_cast<std::size_t>(item / shape.heads)], item % shape.heads, scratch + thread * bytes, progress});
  });
}

template <class S>
std::vector<const UnitRun*> all_runs(const LinearProblem<S, float>& p) {
  std::vector<const UnitRun*> runs;
  for (std::int64_t i = 0; i < p.run_count; ++i) runs.push_back(p.runs + i);
  return runs;
}

/// The runs that elements are made of. Units without one get the element that changes nothing.
template <class S, class Picks>
std::vector<const UnitRun*> picked_runs(const LinearProblem<S, float>& p, const Strided<float>& elements, const Picks& picks) {
  std::vector<const UnitRun*> runs;
  std::vector<bool> made(static_cast<std::size_t>(p.shape.units));
  for (const UnitRun* run : all_runs(p)) {
    if (!picks(*run)) continue;
    runs.push_back(run);
    made[static_cast<std::size_t>(run->unit)] = true;
  }
  const std::int64_t qk = p.shape.width_qk, transition = transition_width(p.shape.transition, qk);
  for (std::int64_t item = 0; item < p.shape.units * p.shape.heads; ++item) {
    const std::int64_t unit = item / p.shape.heads;
    if (made[static_cast<std::size_t>(unit)]) continue;
    float* to = elements.data + unit * elements.row + item % p.shape.heads * elements.head;
    std::fill_n(to, transition + qk * p.shape.width_v, 0.0f);
    const std::int64_t step = p.shape.transition == Transition::dense ? qk + 1 : 1;
    for (std::int64_t i = 0; i < transition; i += step) to[i] = 1;
  }
  return runs;
}

}  // namespace

template <class S>
void unit_states(const LinearProblem<S, float>& problem, Strided<float> elements, StreamView stream) {
  const linear::Kernels<S> kernels = kernels_of<S>();
  const auto runs = picked_runs(problem, elements, [](const UnitRun& run) { return run.leaves; });
  for_each_head(problem, runs, 2, kernels.scratch_bytes(problem.shape), stream,
                [&](const linear::Item& item) { kernels.states(problem, elements, item); });
}

template <class S>
void unit_states_backward(const LinearProblem<S, float>& problem, Strided<const S> dout, Strided<float> elements, StreamView stream) {
  const linear::Kernels<S> kernels = kernels_of<S>();
  const auto runs = picked_runs(problem, elements, [](const UnitRun& run) { return run.enters; });
  for_each_head(problem, runs, 2, kernels.scratch_bytes(problem.shape), stream,
                [&](const linear::Item& item) { kernels.states_backward(problem, dout, elements, item); });
}

template <class S>
void unit_apply(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<S> out, StreamView stream) {
  const linear::Kernels<S> kernels = kernels_of<S>();
  for_each_head(problem, all_runs(problem), 4, kernels.scratch_bytes(problem.shape), stream,
                [&](const linear::Item& item) { kernels.apply(problem, incoming, out, item); });
}

template <class S>
void unit_apply_backward(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<const S> dout,
                         Strided<const float> doutgoing, const LinearResults<S, float>& results, StreamView stream) {
  const linear::Kernels<S> kernels = kernels_of<S>();
  std::int64_t most_rows = 0;
  for (std::int64_t i = 0; i < problem.run_count; ++i) most_rows = std::max(most_rows, problem.runs[i].rows);
  for_each_head(problem, all_runs(problem), 12, kernels.backward_scratch_bytes(problem.shape, most_rows), stream,
                [&](const linear::Item& item) { kernels.apply_backward(problem, incoming, dout, doutgoing, results, item); });
}

#define PERIPLUS_INSTANTIATE(S)                                                                                                   \
  template void unit_states(const LinearProblem<S, float>&, Strided<float>, StreamView);                                          \
  template void unit_states_backward(const LinearProblem<S, float>&, Strided<const S>, Strided<float>, StreamView);               \
  template void unit_apply(const LinearProblem<S, float>&, Strided<const float>, Strided<S>, StreamView);                         \
  template void unit_apply_backward(const LinearProblem<S, float>&, Strided<const float>, Strided<const S>, Strided<const float>, \
                                    const LinearResults<S, float>&, StreamView);

PERIPLUS_INSTANTIATE(float)
PERIPLUS_INSTANTIATE(bfloat16)
PERIPLUS_INSTANTIATE(float16)

#undef PERIPLUS_INSTANTIATE

}  // namespace periplus::kernels::cpu
