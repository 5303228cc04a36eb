#pragma once

#include "runtime/dtype.h"

struct __nv_bfloat16 : periplus::bfloat16 {
  using periplus::bfloat16::bfloat16;
};
