#include "parallel/planner/linear_program.h"

#include <memory>
#include <vector>

#include <coin/Clp_C_Interface.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

// Far above what the planner's programs take; a solve that cycles ends here, the same on every machine.
constexpr int kMostIterations = 20000;

struct DeleteModel {
  void operator()(Clp_Simplex* model) const noexcept { Clp_deleteModel(model); }
};

}  // namespace

int LinearProgram::add_row(double lower, double upper) {
  row_lower.push_back(lower), row_upper.push_back(upper);
  return static_cast<int>(row_lower.size()) - 1;
}

void LinearProgram::add_column(double column_cost, double column_most, std::span<const std::pair<int, double>> entries) {
  cost.push_back(column_cost), most.push_back(column_most);
  for (const auto& [row, value] : entries) {
    rows.push_back(row), values.push_back(value);
  }
  column_starts.push_back(static_cast<int>(rows.size()));
}

struct DualSimplex::Model {
  std::unique_ptr<Clp_Simplex, DeleteModel> clp{Clp_newModel()};
  std::vector<unsigned char> basis;  ///< Of columns, then rows; empty: none yet.
  std::size_t rows = 0, columns = 0;
  int iterations = 0;
};

DualSimplex::DualSimplex() : model_(std::make_unique<Model>()) {
  if (!model_->clp) throw InternalError("CLP: no model");
  Clp_setLogLevel(model_->clp.get(), 0);
  Clp_setMaximumIterations(model_->clp.get(), kMostIterations);
}
DualSimplex::DualSimplex(DualSimplex&&) noexcept = default;
DualSimplex& DualSimplex::operator=(DualSimplex&&) noexcept = default;
DualSimplex::~DualSimplex() = default;

int DualSimplex::iterations() const noexcept { return model_->iterations; }

LinearSolution DualSimplex::solve(const LinearProgram& program) {
  Clp_Simplex* const clp = model_->clp.get();
  const std::size_t rows = program.row_lower.size(), columns = program.cost.size();
  const std::vector<double> zeros(columns, 0.0);
  Clp_loadProblem(clp, static_cast<int>(columns), static_cast<int>(rows), program.column_starts.data(), program.rows.data(),
                  program.values.data(), zeros.data(), program.most.data(), program.cost.data(), program.row_lower.data(),
                  program.row_upper.data());
  if (rows == model_->rows && columns == model_->columns && !model_->basis.empty()) Clp_copyinStatus(clp, model_->basis.data());
  const int status = Clp_dual(clp, 0);
  model_->iterations = Clp_numberIterations(clp);
  LinearSolution solution{.optimal = status == 0, .duals = {}};
  model_->basis.clear();
  if (!solution.optimal) return solution;
  const double* const duals = Clp_dualRowSolution(clp);
  solution.duals.assign(duals, duals + rows);
  if (Clp_statusExists(clp) != 0) {
    const unsigned char* const basis = Clp_statusArray(clp);
    model_->basis.assign(basis, basis + rows + columns);
    model_->rows = rows, model_->columns = columns;
  }
  return solution;
}

}  // namespace periplus::planner
