#pragma once
// What every element of an AdamW step shares, on the CPU and on devices.

#include <cmath>

#include "kernels/transformer.h"

namespace periplus::kernels {

template <class A>
struct AdamwCoefficients {
  A gradient_scale, beta1, beta2, step_size, inverse_correction2, epsilon, decay;
};

template <class A>
AdamwCoefficients<A> adamw_coefficients(const AdamwOptions& options) {
  const auto step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step), correction2 = 1 - std::pow(options.beta2, step);
  return {static_cast<A>(options.gradient_scale),
          static_cast<A>(options.beta1),
          static_cast<A>(options.beta2),
          static_cast<A>(options.learning_rate / correction1),
          static_cast<A>(1 / correction2),
          static_cast<A>(options.epsilon),
          static_cast<A>(options.learning_rate * options.weight_decay)};
}

}  // namespace periplus::kernels
