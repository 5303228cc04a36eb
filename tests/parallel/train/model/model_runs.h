// Loss and gradients of a model whose rows are spread over ranks that are threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include <gtest/gtest.h>

#include "parallel/train/model/model.h"
#include "parallel/train/random.h"
#include "runtime/comm/thread_transport.h"
#include "tests/parallel/train/start_values.h"

namespace periplus::train {

struct Gradients {
  double loss = 0;  // mean over all labels
  std::vector<double> values;
};

/// A packed row with documents of one byte, odd lengths and one that spans all ranks.
struct Row {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> cu_seqlens;
};

inline Row make_row(std::initializer_list<std::int64_t> lengths) {
  Row row{{}, {0}};
  std::mt19937_64 engine(7);
  for (const std::int64_t length : lengths) {
    row.cu_seqlens.push_back(row.cu_seqlens.back() + length);
    for (std::int64_t i = 0; i < length; ++i) row.tokens.push_back(static_cast<std::int32_t>(engine() % 256));
  }
  return row;
}

inline void fill_weights(Model& model, double factor) {
  const auto weights = model.weights().span<double>();
  for (const Parameter& parameter : model.parameters().all()) {
    std::vector<double> values = start_values(parameter, 3);
    std::mt19937_64 engine = engine_for(5, parameter.name);
    // Larger than the usual start, and norms away from one, so that every derivative is well above rounding.
    for (double& value : values) value = parameter.deviation == 0 ? value + 0.3 * normal(engine) : factor * value;
    std::copy(values.begin(), values.end(), weights.begin() + parameter.offset);
  }
}

/// Sum over ranks of what each rank computes with the same weights; `change` edits the weights beforehand.
inline Gradients run(const ModelConfig& config, const Row& row, LayoutKind kind, int ranks, bool backward = true,
                     const std::function<void(std::span<double>)>& change = {}, bool keeps_hidden = false) {
  Gradients result;
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const Stream stream([communicator] { communicator.progress(); });
    const Memory memory;
    Model model(config, DType::f64, memory, {.hidden = keeps_hidden});
    fill_weights(model, 8);
    if (change) change(model.weights().span<double>());
    const Batch batch = shard_row(row.tokens, row.cu_seqlens, kind, communicator.size(), communicator.rank());
    model.plan(batch, {.communicator = communicator});
    double loss = backward ? model.loss_and_gradients(stream) : model.loss(stream);
    communicator.all_reduce(TensorView(reinterpret_cast<std::byte*>(&loss), DType::f64, {1}), comm::Reduce::sum, stream);
    communicator.all_reduce(model.gradients(), comm::Reduce::sum, stream);
    if (communicator.rank() != 0) return;
    result.loss = loss / static_cast<double>(batch.valid_labels);
    const auto gradients = model.gradients().span<double>();
    result.values.assign(gradients.begin(), gradients.end());
  });
  return result;
}

inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

inline double largest(const std::vector<double>& a) {
  double value = 0;
  for (const double x : a) value = std::max(value, std::abs(x));
  return value;
}

/// Along a random direction of each tensor: touches every element of it at the price of four evaluations. The step is small, and the
/// formula of fourth order, because the norms of short vectors bend sharply.
inline void expect_finite_differences_agree(const ModelConfig& config, const Row& row, LayoutKind kind, int ranks) {
  const Gradients analytic = run(config, row, kind, ranks);
  constexpr double kStep = 2e-6;
  const ParameterTable table(config);
  for (const Parameter& parameter : table.all()) {
    SCOPED_TRACE(parameter.name);
    std::mt19937_64 engine = engine_for(11, parameter.name);
    std::vector<double> direction(static_cast<std::size_t>(parameter.elements));
    for (double& value : direction) value = normal(engine);
    const auto shifted = [&](double step) {
      return run(config, row, kind, ranks, false,
                 [&](std::span<double> weights) {
                   for (std::size_t i = 0; i < direction.size(); ++i)
                     weights[static_cast<std::size_t>(parameter.offset) + i] += step * direction[i];
                 })
          .loss;
    };
    const double numeric = (8 * (shifted(kStep) - shifted(-kStep)) - (shifted(2 * kStep) - shifted(-2 * kStep))) / (12 * kStep);
    double expected = 0, scale = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      const double term = analytic.values[static_cast<std::size_t>(parameter.offset) + i] * direction[i];
      expected += term;
      scale += term * term;
    }
    EXPECT_GT(scale, 0);
    EXPECT_NEAR(numeric, expected, 2e-6 * std::sqrt(scale) + 1e-9);
  }
}

}  // namespace periplus::train
