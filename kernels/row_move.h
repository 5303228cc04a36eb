#pragma once

#include <cstdint>

namespace periplus {

/// Rows [from, from + rows) become rows [to, to + rows).
struct RowMove {
  std::int64_t from = 0, to = 0, rows = 0;
  friend bool operator==(const RowMove&, const RowMove&) = default;
};

}  // namespace periplus
