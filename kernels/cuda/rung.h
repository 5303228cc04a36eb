#pragma once

#include "kernels/cuda/attention.h"

namespace periplus::kernels::cuda {

/// The best rung that the device can run and highest_rung() allows.
Rung best_rung(int device);

}  // namespace periplus::kernels::cuda
