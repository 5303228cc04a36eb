#pragma once

#include "runtime/dtype.h"

struct __half : periplus::float16 {
  using periplus::float16::float16;
};
