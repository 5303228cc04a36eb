#pragma once

#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace periplus::planner {

/// min cost * x with lower <= A x <= upper and 0 <= x <= most.
struct LinearProgram {
  std::vector<double> row_lower, row_upper;
  std::vector<double> cost, most;
  std::vector<int> column_starts = {0}, rows;  ///< A by columns.
  std::vector<double> values;

  int add_row(double lower, double upper);
  void add_column(double cost, double most, std::span<const std::pair<int, double>> entries);
};

struct LinearSolution {
  bool optimal = false;
  std::vector<double> duals;  ///< By row: cost of a unit more of the row's bound.
};

/// How a linear program is solved: what tests put in the place of the solver.
using SolveLinear = std::function<LinearSolution(const LinearProgram&)>;

/// CLP's dual simplex. Keeps the basis, and starts from it if the next program has as many rows and columns.
class DualSimplex {
 public:
  DualSimplex();
  DualSimplex(DualSimplex&&) noexcept;
  DualSimplex& operator=(DualSimplex&&) noexcept;
  ~DualSimplex();

  LinearSolution solve(const LinearProgram& program);
  int iterations() const noexcept;  ///< Of the last solve.

 private:
  struct Model;
  std::unique_ptr<Model> model_;
};

}  // namespace periplus::planner
