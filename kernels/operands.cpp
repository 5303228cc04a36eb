#include "kernels/operands.h"

namespace periplus::kernels {

void check_runs(std::string_view op, std::span<const UnitRun> runs, std::int64_t rows) {
  std::int64_t free = 0;  // first row that no earlier run holds
  for (const UnitRun& run : runs) {
    require(run.row0 >= 0 && run.rows > 0 && run.row0 + run.rows <= rows,
            "{}: run of {} rows from row {} on is empty or leaves the block of {} rows", op, run.rows, run.row0, rows);
    require(run.row0 >= free, "{}: run from row {} on begins before the run ahead of it ends, at row {}; runs must be in the order of rows",
            op, run.row0, free);
    free = run.row0 + run.rows;
  }
}

}  // namespace periplus::kernels
