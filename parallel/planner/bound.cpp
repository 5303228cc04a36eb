#include "parallel/planner/bound.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <numeric>

#include "parallel/planner/bucket.h"

namespace periplus::planner {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
/// Size of the program; fixed, so that a basis fits the next batch too.
constexpr int kClasses = 6, kSingles = 8, kBuckets = 16;
/// The shortest class of durations ends at such a share of the mean. The first usually does; the others are tried while the
/// known plan is further from the bound than this, and the best bound counts.
constexpr double kShortestClass[] = {0.7, 1.0, 0.45};
constexpr double kFar = 1.05;

using Entry = std::pair<int, double>;

/// Of one degree, over all its kinds.
struct DegreeLimits {
  int degree;
  double capacity;
  int first_kind, end_kind;
};

/// `single`: number of a long sequence that has rows of its own, else -1.
struct Item {
  double count, length;
  int single;
  std::vector<double> seconds;  ///< By degree; infinite where it does not fit.
};

class DurationProgram {
 public:
  DurationProgram(const Batch& batch, double best, double shortest_class)
      : batch_(batch),
        best_(best),
        most_counts_(std::min<double>(batch.size(), best / std::max(1e-300, batch.cost.micro_batch_seconds()))) {
    const CostModel& cost = batch.cost;
    for (std::size_t d = 0; d < cost.degrees().size(); ++d) {
      DegreeLimits limits{cost.degrees()[d], 0, cost.first_kind(static_cast<int>(d)), cost.first_kind(static_cast<int>(d) + 1)};
      for (int kind = limits.first_kind; kind < limits.end_kind; ++kind)
        limits.capacity = std::max(limits.capacity, static_cast<double>(cost.kinds()[static_cast<std::size_t>(kind)].capacity));
      degrees_.push_back(limits);
    }
    set_classes(shortest_class);
    set_items();
    add_rows();
    add_columns();
  }

  const LinearProgram& program() const { return program_; }

  /// The Lagrangian at these prices; a bound whatever they are. NaN if a price is.
  double value(std::vector<double> duals) const {
    for (const int row : at_most_zero_) duals[index(row)] = std::min(0.0, duals[index(row)]);
    raise_prices(duals);
    double& count_price = duals[index(count_row_)];
    count_price = std::max(0.0, count_price);
    double sum = count_price * batch_.least_micro_batches();
    for (int k = 0; k < batch_.size(); ++k) sum += cheapest(duals, k);
    // What prices that are a little off would earn with the other variables, at the most these can be.
    for (int g = 0; g < kClasses; ++g) {
      sum += std::min(0.0, reduced(duals, batch_.cost.micro_batch_seconds() + begin_[index(g)], counts_column(g))) * most_counts_;
      sum += std::min(0.0, reduced(duals, 1, excess_column(g))) * best_;
      for (int d = 0; d < degree_count(); ++d) {
        const double groups = most_counts_ * batch_.cost.devices() / degrees_[index(d)].degree;
        sum += std::min(0.0, reduced(duals, 0, groups_column(d, g))) * groups;
        sum += std::min(0.0, reduced(duals, 0, group_excess_column(d, g))) * groups * best_;
      }
    }
    return sum;
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  int degree_count() const { return static_cast<int>(degrees_.size()); }
  int row_of(const std::vector<int>& rows, int d, int g) const { return rows[index(d * kClasses + g)]; }

  /// Durations, without micro_batch_seconds, in classes from 0 that end geometrically. The last ends where a better plan would
  /// have no time left for other micro-batches.
  void set_classes(double shortest_class) {
    const int least = batch_.least_micro_batches();
    const double most = best_ - least * batch_.cost.micro_batch_seconds();
    const double work = std::accumulate(batch_.least_work.begin(), batch_.least_work.end(), 0.0);
    const double first = std::min(shortest_class * work / batch_.cost.devices() / least, most / 2);
    for (int g = 0; g < kClasses; ++g) {
      begin_.push_back(g == 0 ? 0 : end_.back());
      end_.push_back(g == kClasses - 1 ? most : first * std::pow(most / first, g / (kClasses - 1.0)));
    }
  }

  double best_seconds(double length, const DegreeLimits& of) const {
    double least = kNever;
    for (int kind = of.first_kind; kind < of.end_kind; ++kind) {
      const Kind& about = batch_.cost.kinds()[index(kind)];
      if (length <= static_cast<double>(about.capacity)) least = std::min(least, about.seconds(static_cast<std::int64_t>(length)));
    }
    return least;
  }

  void add_item(double count, double length, int single) {
    Item item{count, length, single, {}};
    for (const DegreeLimits& of : degrees_) item.seconds.push_back(count > 0 ? best_seconds(std::floor(length), of) : kNever);
    items_.push_back(std::move(item));
  }

  /// The longest alone, the rest in buckets with their means; empty items fill up.
  void set_items() {
    const int singles = std::min(kSingles, batch_.size());
    for (int k = 0; k < singles; ++k) add_item(1, static_cast<double>(batch_.lengths[index(k)]), k);
    std::vector<std::int64_t> rest(batch_.lengths.begin() + singles, batch_.lengths.end());
    std::ranges::reverse(rest);
    int begin = 0;
    for (const int end : cut_into_buckets(rest, kBuckets)) {
      const double tokens = static_cast<double>(std::accumulate(rest.begin() + begin, rest.begin() + end, std::int64_t{0}));
      add_item(end - begin, tokens / (end - begin), -1);
      begin = end;
    }
    while (static_cast<int>(items_.size()) < kSingles + kBuckets) add_item(0, 0, -1);
    for (int k = 0; k < batch_.size(); ++k) {
      for (const DegreeLimits& of : degrees_) seconds_.push_back(best_seconds(static_cast<double>(batch_.lengths[index(k)]), of));
    }
  }

  void add_rows() {
    const auto not_above_zero = [&] {
      at_most_zero_.push_back(program_.add_row(-kNever, 0));
      return at_most_zero_.back();
    };
    for (const Item& item : items_) item_rows_.push_back(program_.add_row(item.count, item.count));
    for (int i = 0; i < degree_count() * kClasses; ++i) {
      time_rows_.push_back(not_above_zero()), memory_rows_.push_back(not_above_zero());
      length_rows_.push_back(not_above_zero()), half_rows_.push_back(not_above_zero());
    }
    for (int g = 0; g < kClasses; ++g) {
      device_rows_.push_back(not_above_zero()), device_time_rows_.push_back(not_above_zero()), idle_time_rows_.push_back(not_above_zero());
      for (int single = 0; single < kSingles; ++single) once_rows_.push_back(not_above_zero()), long_rows_.push_back(not_above_zero());
    }
    count_row_ = program_.add_row(batch_.least_micro_batches(), kNever);
  }

  // Variables of a class [a, b): c micro-batches, whose durations exceed a by e in sum; n groups of degree d, whose
  // micro-batches' durations exceed a by y in sum, group by group. Rows, all <= 0:
  //   time    sum of seconds in groups - (a n + y)         memory     sum of lengths - capacity n
  //   length  y - (b - a) n                                half       sequences over half a group's time or memory - n
  //   device  sum of d n - N c                             device_time  sum of d y - N e
  //   idle_time  sum of d ((b - a) n - y) - N ((b - a) c - e)
  //   once    a long sequence - c                          long       its seconds - (a c + e)
  std::vector<Entry> counts_column(int g) const {
    const double a = begin_[index(g)], width = end_[index(g)] - a, devices = batch_.cost.devices();
    std::vector<Entry> column = {{device_rows_[index(g)], -devices}, {idle_time_rows_[index(g)], -devices * width}, {count_row_, 1}};
    for (int single = 0; single < kSingles; ++single) {
      column.emplace_back(once_rows_[index(g * kSingles + single)], -1);
      column.emplace_back(long_rows_[index(g * kSingles + single)], -a);
    }
    return column;
  }
  std::vector<Entry> excess_column(int g) const {
    const double devices = batch_.cost.devices();
    std::vector<Entry> column = {{device_time_rows_[index(g)], -devices}, {idle_time_rows_[index(g)], devices}};
    for (int single = 0; single < kSingles; ++single) column.emplace_back(long_rows_[index(g * kSingles + single)], -1);
    return column;
  }
  std::vector<Entry> groups_column(int d, int g) const {
    const DegreeLimits& of = degrees_[index(d)];
    const double a = begin_[index(g)], width = end_[index(g)] - a;
    return {{row_of(time_rows_, d, g), -a}, {row_of(memory_rows_, d, g), -of.capacity}, {row_of(length_rows_, d, g), -width},
            {row_of(half_rows_, d, g), -1}, {device_rows_[index(g)], of.degree},        {idle_time_rows_[index(g)], of.degree * width}};
  }
  std::vector<Entry> group_excess_column(int d, int g) const {
    const double degree = degrees_[index(d)].degree;
    return {{row_of(time_rows_, d, g), -1},
            {row_of(length_rows_, d, g), 1},
            {device_time_rows_[index(g)], degree},
            {idle_time_rows_[index(g)], -degree}};
  }
  bool over_half(double seconds, double length, int d, int g) const {
    return seconds > end_[index(g)] / 2 || length > degrees_[index(d)].capacity / 2;
  }
  std::vector<Entry> item_column(std::size_t i, int d, int g) const {
    const Item& item = items_[i];
    const double seconds = item.seconds[index(d)];
    std::vector<Entry> column = {{item_rows_[i], 1}, {row_of(time_rows_, d, g), seconds}, {row_of(memory_rows_, d, g), item.length}};
    if (over_half(seconds, item.length, d, g)) column.emplace_back(row_of(half_rows_, d, g), 1);
    if (item.single >= 0) {
      column.emplace_back(once_rows_[index(g * kSingles + item.single)], 1);
      column.emplace_back(long_rows_[index(g * kSingles + item.single)], seconds);
    }
    return column;
  }

  void add_columns() {
    for (int g = 0; g < kClasses; ++g) {
      program_.add_column(batch_.cost.micro_batch_seconds() + begin_[index(g)], kNever, counts_column(g));
      program_.add_column(1, kNever, excess_column(g));
      for (int d = 0; d < degree_count(); ++d) {
        program_.add_column(0, kNever, groups_column(d, g));
        program_.add_column(0, kNever, group_excess_column(d, g));
        for (std::size_t i = 0; i < items_.size(); ++i) {
          const bool allowed = items_[i].seconds[index(d)] <= end_[index(g)];
          program_.add_column(0, allowed ? kNever : 0, allowed ? item_column(i, d, g) : std::vector<Entry>{});
        }
      }
    }
  }

  static double reduced(const std::vector<double>& duals, double cost, const std::vector<Entry>& column) {
    for (const auto& [row, value] : column) cost -= duals[index(row)] * value;
    return cost;
  }

  /// The solver leaves prices of groups that its buckets do not use anywhere; true lengths would find the cheap ones. What
  /// the columns of groups have to spare goes to time and to memory.
  void raise_prices(std::vector<double>& duals) const {
    for (int g = 0; g < kClasses; ++g) {
      for (int d = 0; d < degree_count(); ++d) {
        double &time = duals[index(row_of(time_rows_, d, g))], &memory = duals[index(row_of(memory_rows_, d, g))];
        double& length = duals[index(row_of(length_rows_, d, g))];
        const double a = begin_[index(g)], spare_excess = std::max(0.0, reduced(duals, 0, group_excess_column(d, g)));
        const double spare = std::max(0.0, reduced(duals, 0, groups_column(d, g)));
        const double more = a > 0 ? std::min(spare_excess, spare / a) : spare_excess;
        time -= more;
        const double left = std::max(0.0, spare - a * more) / 2;
        time -= left / end_[index(g)], length -= left / end_[index(g)];
        memory -= left / degrees_[index(d)].capacity;
      }
    }
  }

  /// What sequence k costs at least, by degree and class.
  double cheapest(const std::vector<double>& duals, int k) const {
    const auto price = [&](int row) { return -duals[index(row)]; };
    const auto length = static_cast<double>(batch_.lengths[index(k)]);
    double least = kNever;
    for (int d = 0; d < degree_count(); ++d) {
      const double seconds = seconds_[index(k) * degrees_.size() + index(d)];
      for (int g = 0; g < kClasses; ++g) {
        if (!(seconds <= end_[index(g)])) continue;
        double sum = price(row_of(time_rows_, d, g)) * seconds + price(row_of(memory_rows_, d, g)) * length;
        if (over_half(seconds, length, d, g)) sum += price(row_of(half_rows_, d, g));
        if (k < kSingles) sum += price(once_rows_[index(g * kSingles + k)]) + price(long_rows_[index(g * kSingles + k)]) * seconds;
        least = std::isnan(sum) ? sum : std::min(least, sum);
      }
    }
    return least;
  }

  const Batch& batch_;
  double best_, most_counts_;
  std::vector<DegreeLimits> degrees_;
  std::vector<double> begin_, end_;
  std::vector<Item> items_;
  std::vector<double> seconds_;  ///< [sequence, degree]
  LinearProgram program_;
  std::vector<int> at_most_zero_, item_rows_, time_rows_, memory_rows_, length_rows_, half_rows_, device_rows_, device_time_rows_,
      idle_time_rows_, once_rows_, long_rows_;
  int count_row_ = 0;
};

/// 0 if the solver fails.
double bound_of(const DurationProgram& durations, const SolveLinear& solve) {
  const LinearSolution solution = solve(durations.program());
  if (!solution.optimal || solution.duals.size() != durations.program().row_lower.size()) return 0;
  const double value = durations.value(solution.duals);
  return std::isfinite(value) ? value : 0;
}

}  // namespace

double LowerBound::seconds() const noexcept { return std::max({area, longest, linear}); }

LowerBound simple_bound(const Batch& batch) {
  if (batch.size() == 0) return {};
  const double fixed = batch.least_micro_batches() * batch.cost.micro_batch_seconds();
  const double work = std::accumulate(batch.least_work.begin(), batch.least_work.end(), 0.0);
  return {.area = fixed + work / batch.cost.devices(), .longest = fixed + std::ranges::max(batch.least_seconds), .linear = 0};
}

LowerBound linear_bound(const Batch& batch, double best, const SolveLinear& solve) {
  LowerBound bound = simple_bound(batch);
  if (batch.tokens == 0 || !std::isfinite(best) || best <= bound.seconds()) return bound;
  try {
    for (const double shortest_class : kShortestClass) {
      bound.linear = std::max(bound.linear, bound_of(DurationProgram(batch, best, shortest_class), solve));
      if (bound.seconds() * kFar >= best) break;
    }
  } catch (const std::exception&) {
    bound.linear = 0;  // the simple bounds hold without a solver
  }
  bound.linear = std::min(bound.linear, best);
  return bound;
}

}  // namespace periplus::planner
