#include "kernels/reference/linear_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/operands.h"

namespace periplus::kernels::reference {
namespace {

using Vector = std::vector<double>;

Vector zeros(std::int64_t count) { return Vector(static_cast<std::size_t>(count)); }

struct Matrix {
  Matrix(std::int64_t row_count, std::int64_t column_count)
      : rows(row_count), columns(column_count), values(zeros(row_count * column_count)) {}
  double* row(std::int64_t i) { return values.data() + i * columns; }
  const double* row(std::int64_t i) const { return values.data() + i * columns; }

  std::int64_t rows, columns;
  Vector values;
};

Matrix identity(std::int64_t size) {
  Matrix result(size, size);
  for (std::int64_t i = 0; i < size; ++i) result.row(i)[i] = 1;
  return result;
}

double dot(const Vector& x, const Vector& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

Vector scaled(double factor, Vector x) {
  for (double& value : x) value *= factor;
  return x;
}

Vector add(double factor, const Vector& x, Vector to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += factor * x[i];
  return to;
}

/// x m
Vector product(const Vector& x, const Matrix& m) {
  Vector result = zeros(m.columns);
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.columns; ++j) result[static_cast<std::size_t>(j)] += x[static_cast<std::size_t>(i)] * m.row(i)[j];
  }
  return result;
}

/// m y^T
Vector product(const Matrix& m, const Vector& y) {
  Vector result = zeros(m.rows);
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.columns; ++j) result[static_cast<std::size_t>(i)] += m.row(i)[j] * y[static_cast<std::size_t>(j)];
  }
  return result;
}

/// m += x^T y
void add_outer(const Vector& x, const Vector& y, Matrix& m) {
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.columns; ++j) m.row(i)[j] += x[static_cast<std::size_t>(i)] * y[static_cast<std::size_t>(j)];
  }
}

/// m := diag(factors) m
void scale_rows(const Vector& factors, Matrix& m) {
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.columns; ++j) m.row(i)[j] *= factors[static_cast<std::size_t>(i)];
  }
}

/// Empty for an operand that was not given.
template <class T>
Vector load(const Strided<const T>& tensor, std::int64_t row, std::int64_t head, std::int64_t width) {
  if (tensor.data == nullptr) return {};
  Vector result = zeros(width);
  for (std::int64_t i = 0; i < width; ++i) result[static_cast<std::size_t>(i)] = static_cast<double>(at(tensor, row, head)[i]);
  return result;
}

template <class T>
void store(const Vector& values, T* to) {
  using Step = std::conditional_t<std::is_same_v<T, double>, double, float>;  // the 16-bit types convert from float alone
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = static_cast<T>(static_cast<Step>(values[i]));
}

template <class A>
Matrix load_state(const Strided<const A>& states, bool continues, std::int64_t unit, std::int64_t head, const LinearShape& shape) {
  Matrix state(shape.width_qk, shape.width_v);
  if (continues) state.values = load(states, unit, head, shape.width_qk * shape.width_v);
  return state;
}

struct Token {
  Vector q, k, v;
  Vector decay;  ///< Of each row of the state.
  double beta;
  bool delta_rule;
};

template <class S, class A>
Token load_token(const LinearProblem<S, A>& p, std::int64_t row, std::int64_t head) {
  const LinearShape& shape = p.shape;
  Token token{load(p.q, row, head, shape.width_qk),
              load(p.k, row, head, shape.width_qk),
              load(p.v, row, head, shape.width_v),
              Vector(static_cast<std::size_t>(shape.width_qk), 1),
              1,
              p.beta.data != nullptr};
  token.q = scaled(p.scale, std::move(token.q));
  for (std::int64_t d = 0; d < shape.width_qk && shape.decay_width > 0; ++d) {
    const A log_decay = at(p.log_decay, row, head)[shape.decay_width == 1 ? 0 : d];
    token.decay[static_cast<std::size_t>(d)] = std::exp(static_cast<double>(log_decay));
  }
  if (token.delta_rule) token.beta = static_cast<double>(*at(p.beta, row, head));
  return token;
}

/// What the token adds under its key to the decayed state.
Vector news(const Token& token, const Vector& v, const Matrix& decayed) {
  return token.delta_rule ? scaled(token.beta, add(-1, product(token.k, decayed), v)) : v;
}

void advance(const Token& token, const Vector& v, Matrix& state) {
  scale_rows(token.decay, state);
  add_outer(token.k, news(token, v, state), state);
}

/// From the gradient of the state behind the token to that of the decayed state; dnews is the gradient of its news.
void retreat(const Token& token, const Vector& dnews, Matrix& dstate) {
  if (token.delta_rule) add_outer(scaled(-token.beta, token.k), dnews, dstate);
}

template <class S, class A>
void store_transition(const LinearProblem<S, A>& p, const UnitRun& run, std::int64_t head, A* to) {
  const LinearShape& shape = p.shape;
  if (shape.transition == Transition::dense) {
    Matrix transition = identity(shape.width_qk);
    const Vector nothing = zeros(shape.width_qk);
    for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) advance(load_token(p, row, head), nothing, transition);
    return store(transition.values, to);
  }
  Vector logs = zeros(shape.decay_width);
  for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
    logs = add(1, load(p.log_decay, row, head, shape.decay_width), std::move(logs));
  }
  for (double& value : logs) value = std::exp(value);
  store(logs, to);
}

template <class A>
void store_neutral(const LinearShape& shape, A* to) {
  const bool dense = shape.transition == Transition::dense;
  store(dense ? identity(shape.width_qk).values : Vector(static_cast<std::size_t>(shape.decay_width), 1), to);
  const std::int64_t width = transition_width(shape.transition, shape.width_qk);
  std::fill_n(to + width, shape.width_qk * shape.width_v, A{0});
}

template <class S, class A>
double flop_of(const LinearProblem<S, A>& p, double per_state_element) {
  std::int64_t rows = 0;
  for (std::int64_t i = 0; i < p.run_count; ++i) rows += p.runs[i].rows;
  return per_state_element * static_cast<double>(rows * p.shape.heads * p.shape.width_qk * p.shape.width_v);
}

/// state(run, head, progress) is the second part of a unit's element; picks(run): it is what the unit's element is made of.
template <class S, class A, class Picks, class State>
void make_elements(const LinearProblem<S, A>& p, Strided<A> elements, StreamView stream, const Picks& picks, const State& state) {
  std::vector<const UnitRun*> run_of(static_cast<std::size_t>(p.shape.units), nullptr);
  for (std::int64_t i = 0; i < p.run_count; ++i) {
    if (picks(p.runs[i])) run_of[static_cast<std::size_t>(p.runs[i].unit)] = &p.runs[i];
  }
  const std::int64_t width = transition_width(p.shape.transition, p.shape.width_qk);
  cpu::for_each_item(p.shape.units * p.shape.heads, flop_of(p, 4), stream, [&](std::int64_t item, const cpu::Progress& progress) {
    const std::int64_t unit = item / p.shape.heads, head = item % p.shape.heads;
    const UnitRun* run = run_of[static_cast<std::size_t>(unit)];
    A* to = at(elements, unit, head);
    if (run == nullptr) return store_neutral(p.shape, to);
    store_transition(p, *run, head, to);
    store(state(*run, head, progress).values, to + width);
  });
}

template <class S, class A, class Body>
void for_each_run(const LinearProblem<S, A>& p, double flop, StreamView stream, const Body& body) {
  cpu::for_each_item(p.run_count * p.shape.heads, flop, stream, [&](std::int64_t item, const cpu::Progress& progress) {
    body(p.runs[item / p.shape.heads], item % p.shape.heads, progress);
  });
}

/// All gradients of one token. `before` is the state it found; dstate, the gradient of the one it left, becomes that of `before`.
template <class S, class A>
void token_backward(const LinearProblem<S, A>& p, std::int64_t row, std::int64_t head, Matrix before, const Vector& dout, Matrix& dstate,
                    const LinearResults<S, A>& results) {
  const Token token = load_token(p, row, head);
  Matrix& decayed = before;
  scale_rows(token.decay, decayed);
  const Vector added = news(token, token.v, decayed);
  Matrix state = decayed;
  add_outer(token.k, added, state);

  store(scaled(p.scale, product(state, dout)), at(results.dq, row, head));
  add_outer(token.q, dout, dstate);
  const Vector dnews = product(token.k, dstate);
  Vector dk = product(dstate, added);
  if (token.delta_rule) {
    dk = add(-token.beta, product(decayed, dnews), std::move(dk));
    *at(results.dbeta, row, head) = static_cast<A>(dot(dnews, add(-1, product(token.k, decayed), token.v)));
  }
  store(dk, at(results.dk, row, head));
  store(scaled(token.beta, dnews), at(results.dv, row, head));
  retreat(token, dnews, dstate);

  if (p.shape.decay_width > 0) {
    Vector dlog_decay = zeros(p.shape.decay_width);
    for (std::int64_t d = 0; d < dstate.rows; ++d) {
      double& sum = dlog_decay[static_cast<std::size_t>(p.shape.decay_width == 1 ? 0 : d)];
      for (std::int64_t e = 0; e < dstate.columns; ++e) sum += dstate.row(d)[e] * decayed.row(d)[e];
    }
    store(dlog_decay, at(results.dlog_decay, row, head));
  }
  scale_rows(token.decay, dstate);
}

}  // namespace

template <class S, class A>
void unit_states(const LinearProblem<S, A>& p, Strided<A> elements, StreamView stream) {
  const auto leaves = [](const UnitRun& run) { return run.leaves; };
  make_elements(p, elements, stream, leaves, [&](const UnitRun& run, std::int64_t head, const cpu::Progress& progress) {
    Matrix state(p.shape.width_qk, p.shape.width_v);
    for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
      const Token token = load_token(p, row, head);
      advance(token, token.v, state);
      progress();
    }
    return state;
  });
}

template <class S, class A>
void unit_states_backward(const LinearProblem<S, A>& p, Strided<const S> dout, Strided<A> elements, StreamView stream) {
  const auto enters = [](const UnitRun& run) { return run.enters; };
  make_elements(p, elements, stream, enters, [&](const UnitRun& run, std::int64_t head, const cpu::Progress& progress) {
    Matrix dstate(p.shape.width_qk, p.shape.width_v);
    for (std::int64_t row = run.row0 + run.rows - 1; row >= run.row0; --row) {
      const Token token = load_token(p, row, head);
      add_outer(token.q, load(dout, row, head, p.shape.width_v), dstate);
      if (token.delta_rule) retreat(token, product(token.k, dstate), dstate);
      scale_rows(token.decay, dstate);
      progress();
    }
    return dstate;
  });
}

template <class S, class A>
void unit_apply(const LinearProblem<S, A>& p, Strided<const A> incoming, Strided<S> out, StreamView stream) {
  for_each_run(p, flop_of(p, 4), stream, [&](const UnitRun& run, std::int64_t head, const cpu::Progress& progress) {
    Matrix state = load_state(incoming, run.enters, run.unit, head, p.shape);
    for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
      const Token token = load_token(p, row, head);
      advance(token, token.v, state);
      store(product(token.q, state), at(out, row, head));
      progress();
    }
  });
}

template <class S, class A>
void unit_apply_backward(const LinearProblem<S, A>& p, Strided<const A> incoming, Strided<const S> dout, Strided<const A> doutgoing,
                         const LinearResults<S, A>& results, StreamView stream) {
  // States are kept at the start of each stretch, and those inside a stretch are made again when backward reaches it.
  constexpr std::int64_t kStretch = 32;
  for_each_run(p, flop_of(p, 16), stream, [&](const UnitRun& run, std::int64_t head, const cpu::Progress& progress) {
    const std::int64_t end = run.row0 + run.rows;
    std::vector<Matrix> starts;
    Matrix state = load_state(incoming, run.enters, run.unit, head, p.shape);
    for (std::int64_t row = run.row0; row < end; ++row) {
      if ((row - run.row0) % kStretch == 0) starts.push_back(state);
      const Token token = load_token(p, row, head);
      advance(token, token.v, state);
      progress();
    }
    Matrix dstate = load_state(doutgoing, run.leaves, run.unit, head, p.shape);
    for (std::int64_t first = run.row0 + (run.rows - 1) / kStretch * kStretch; first >= run.row0; first -= kStretch) {
      std::vector<Matrix> before = {starts.back()};
      starts.pop_back();
      const std::int64_t last = std::min(first + kStretch, end) - 1;
      for (std::int64_t row = first; row < last; ++row) {
        const Token token = load_token(p, row, head);
        before.push_back(before.back());
        advance(token, token.v, before.back());
      }
      for (std::int64_t row = last; row >= first; --row) {
        token_backward(p, row, head, before[static_cast<std::size_t>(row - first)], load(dout, row, head, p.shape.width_v), dstate,
                       results);
        progress();
      }
    }
  });
}

#define PERIPLUS_INSTANTIATE(S, A)                                                                                    \
  template void unit_states(const LinearProblem<S, A>&, Strided<A>, StreamView);                                      \
  template void unit_states_backward(const LinearProblem<S, A>&, Strided<const S>, Strided<A>, StreamView);           \
  template void unit_apply(const LinearProblem<S, A>&, Strided<const A>, Strided<S>, StreamView);                     \
  template void unit_apply_backward(const LinearProblem<S, A>&, Strided<const A>, Strided<const S>, Strided<const A>, \
                                    const LinearResults<S, A>&, StreamView);

PERIPLUS_INSTANTIATE(double, double)
PERIPLUS_INSTANTIATE(float, float)
PERIPLUS_INSTANTIATE(bfloat16, float)
PERIPLUS_INSTANTIATE(float16, float)

#undef PERIPLUS_INSTANTIATE

}  // namespace periplus::kernels::reference
