// Matrix products: oneDNN for bf16 and f32, matmul_f64 for f64.
//
// The rows of c are cut into blocks that depend on the shape alone and every block is one single-threaded oneDNN product,
// so that results do not depend on the number of threads, thread 0 reaches the progress hook between blocks, and a
// thread that moves messages takes fewer blocks. (oneDNN's own team would split K among threads and bind the shape to
// the number of threads.)
#include "kernels/matmul.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <unordered_map>

#include <fmt/format.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/cpu/parallel.h"
#include "kernels/cuda/matmul.h"
#include "kernels/matmul_f64.h"
#include "kernels/operands.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels {
namespace {

/// A stored matrix: `rows` x `columns` with `stride` elements from row to row, before any transposition.
struct Matrix {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0, columns = 0, stride = 0;

  bool dense() const { return stride == columns || rows <= 1; }
  const std::byte* at(std::int64_t row, std::int64_t column) const {
    return data + static_cast<std::size_t>(row * stride + column) * size_of(dtype);
  }
  std::byte* writable(std::int64_t row, std::int64_t column) const { return const_cast<std::byte*>(at(row, column)); }
  Matrix block(std::int64_t row, std::int64_t column, std::int64_t row_count, std::int64_t column_count) const {
    return {at(row, column), dtype, row_count, column_count, stride};
  }
};

/// One product, arguments checked: c [m,n] from k terms.
struct Product {
  Matrix a, b, c;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  std::int64_t m = 0, n = 0, k = 0;
  DType compute = DType::f32;  ///< Type that oneDNN sees for a and b.
  Matrix b_tail;               ///< The last k % kTermStep rows of b and zero rows up to kTermStep, where they are needed.
};

Matrix matrix_of(std::string_view name, const ConstTensorView& view) {
  check_dims("matmul", name, view, 2);
  const Matrix matrix{view.bytes(), view.dtype(), view.size(0), view.size(1), view.stride(0)};
  const bool ordered = matrix.columns <= 1 || view.stride(1) == 1;
  if (!ordered || (matrix.rows > 1 && matrix.stride < matrix.columns)) {
    refuse("matmul: {} {} has strides {}; columns must be contiguous and rows must not overlap", name, to_string(view.shape()),
           to_string(view.strides()));
  }
  return matrix;
}

Product checked(const ConstTensorView& a, const ConstTensorView& b, const TensorView& c, const MatmulOptions& options) {
  Product p;
  p.a = matrix_of("a", a);
  p.b = matrix_of("b", b);
  p.c = matrix_of("c", c);
  p.transpose_a = options.transpose_a;
  p.transpose_b = options.transpose_b;
  p.accumulate = options.update == Update::accumulate;
  p.m = p.c.rows;
  p.n = p.c.columns;
  p.k = p.transpose_a ? p.a.rows : p.a.columns;
  const std::int64_t a_m = p.transpose_a ? p.a.columns : p.a.rows;
  const std::int64_t b_k = p.transpose_b ? p.b.columns : p.b.rows, b_n = p.transpose_b ? p.b.rows : p.b.columns;
  if (a_m != p.m || b_k != p.k || b_n != p.n) {
    refuse("matmul: a {}{} times b {}{} does not give c {}; inner sizes {} and {} must agree", to_string(a.shape()),
           p.transpose_a ? " transposed" : "", to_string(b.shape()), p.transpose_b ? " transposed" : "", to_string(c.shape()), p.k, b_k);
  }
  const bool storage_ok = a.dtype() == b.dtype() && (c.dtype() == a.dtype() || (a.dtype() == DType::bf16 && c.dtype() == DType::f32));
  const bool known = a.dtype() == DType::bf16 || a.dtype() == DType::f32 || a.dtype() == DType::f64;
  require(storage_ok && known, "matmul: {} x {} -> {} is not supported; use bf16 x bf16 -> bf16 or f32, f32 -> f32, f64 -> f64",
          to_string(a.dtype()), to_string(b.dtype()), to_string(c.dtype()));
  if (p.accumulate && c.dtype() == DType::bf16) {
    refuse("matmul: accumulating into bf16 c {} would lose the sum; accumulate into f32", to_string(c.shape()));
  }
  return p;
}

/// Grows, never shrinks; 64-byte aligned. One per thread and purpose.
class Scratch {
 public:
  std::byte* bytes(std::size_t count) {
    if (count > size_) {
      const std::size_t rounded = (count + 63) / 64 * 64;
      data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, rounded)));
      size_ = data_ ? rounded : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

TensorView view_of(const Matrix& matrix) {
  return TensorView(matrix.writable(0, 0), matrix.dtype, {matrix.rows, matrix.columns}, {matrix.stride, 1});
}

/// A dense copy in `dtype`, with zero rows and columns added up to the given size.
Matrix packed(const Matrix& from, DType dtype, Scratch& scratch, std::int64_t rows, std::int64_t columns) {
  const Matrix to{scratch.bytes(static_cast<std::size_t>(rows * columns) * size_of(dtype)), dtype, rows, columns, columns};
  const std::size_t row_bytes = static_cast<std::size_t>(from.columns) * size_of(dtype);
  const std::size_t padding = static_cast<std::size_t>(columns - from.columns) * size_of(dtype);
  if (dtype != from.dtype) copy(view_of(from), view_of(to.block(0, 0, from.rows, from.columns)));
  for (std::int64_t row = 0; row < from.rows; ++row) {
    if (dtype == from.dtype) std::memcpy(to.writable(row, 0), from.at(row, 0), row_bytes);
    std::memset(to.writable(row, 0) + row_bytes, 0, padding);
  }
  std::memset(to.writable(from.rows, 0), 0, static_cast<std::size_t>((rows - from.rows) * columns) * size_of(dtype));
  return to;
}

dnnl::memory::data_type dnnl_type(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Key {
  std::int64_t m, n, k, a_stride, b_stride, c_stride;
  DType compute, result;
  bool transpose_a, transpose_b, accumulate;
  friend bool operator==(const Key&, const Key&) = default;
};

struct KeyHash {
  std::size_t operator()(const Key& key) const noexcept {
    std::size_t hash = static_cast<std::size_t>(key.compute) | static_cast<std::size_t>(key.result) << 8 |
                       static_cast<std::size_t>(key.transpose_a) << 16 | static_cast<std::size_t>(key.transpose_b) << 17 |
                       static_cast<std::size_t>(key.accumulate) << 18;
    for (const std::int64_t value : {key.m, key.n, key.k, key.a_stride, key.b_stride, key.c_stride}) {
      hash = (hash ^ static_cast<std::size_t>(value)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

/// One oneDNN product of fixed shape with its argument handles; belongs to one thread.
class BlockProduct {
 public:
  explicit BlockProduct(const Key& key) : stream_(cpu_engine()) {
    using Dims = dnnl::memory::dims;
    const auto strides = [](bool transposed, std::int64_t stride) { return transposed ? Dims{1, stride} : Dims{stride, 1}; };
    const dnnl::memory::desc a({key.m, key.k}, dnnl_type(key.compute), strides(key.transpose_a, key.a_stride));
    const dnnl::memory::desc b({key.k, key.n}, dnnl_type(key.compute), strides(key.transpose_b, key.b_stride));
    const dnnl::memory::desc c({key.m, key.n}, dnnl_type(key.result), Dims{key.c_stride, 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (key.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, cpu_engine());
    product_ = dnnl::matmul(description);
    const auto scratch = description.scratchpad_desc();
    scratch_bytes_ = scratch.get_size();
    const auto memory = [](const dnnl::memory::desc& desc) { return dnnl::memory(desc, cpu_engine(), nullptr); };
    arguments_ = {
        {DNNL_ARG_SRC, memory(a)}, {DNNL_ARG_WEIGHTS, memory(b)}, {DNNL_ARG_DST, memory(c)}, {DNNL_ARG_SCRATCHPAD, memory(scratch)}};
  }

  void operator()(const Matrix& a, const Matrix& b, const Matrix& c, Scratch& scratch) {
    arguments_.at(DNNL_ARG_SRC).set_data_handle(a.writable(0, 0));
    arguments_.at(DNNL_ARG_WEIGHTS).set_data_handle(b.writable(0, 0));
    arguments_.at(DNNL_ARG_DST).set_data_handle(c.writable(0, 0));
    arguments_.at(DNNL_ARG_SCRATCHPAD).set_data_handle(scratch.bytes(scratch_bytes_));
    product_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::stream stream_;
  dnnl::matmul product_;
  std::size_t scratch_bytes_ = 0;
  std::unordered_map<int, dnnl::memory> arguments_;
};

/// What a thread keeps between calls.
struct ThreadState {
  std::unordered_map<Key, BlockProduct, KeyHash> products;
  Scratch a, c, library;
};

ThreadState& thread_state() {
  static thread_local ThreadState state;
  return state;
}

BlockProduct& find_product(ThreadState& state, const Key& key) {
  constexpr std::size_t kMostProducts = 1024;  // batches of ever new lengths must not fill the memory
  const auto found = state.products.find(key);
  if (found != state.products.end()) return found->second;
  if (state.products.size() >= kMostProducts) state.products.clear();
  return state.products.try_emplace(key, key).first->second;
}

/// c (+)= a b on this thread for operands that oneDNN takes as they are.
void multiply(ThreadState& state, const Product& p) {
  const Key key{p.m,
                p.n,
                p.k,
                std::max<std::int64_t>(p.a.stride, 1),
                std::max<std::int64_t>(p.b.stride, 1),
                std::max<std::int64_t>(p.c.stride, 1),
                p.compute,
                p.c.dtype,
                p.transpose_a,
                p.transpose_b,
                p.accumulate};
  try {
    find_product(state, key)(p.a, p.b, p.c, state.library);
  } catch (const dnnl::error& error) {
    throw DeviceError(
        fmt::format("matmul: oneDNN failed with status {} ({}) for {} [{},{}] x [{},{}] -> {}, strides {} {} {}, transposed {} {}",
                    static_cast<int>(error.status), error.what(), to_string(p.compute), p.m, p.k, p.k, p.n, to_string(p.c.dtype),
                    p.a.stride, p.b.stride, p.c.stride, p.transpose_a, p.transpose_b));
  }
}

/// oneDNN 2.6 has its fast products only for dense operands (with gaps bf16 drops to about a third of the rate).
bool must_pack(const Matrix& matrix, DType compute) { return matrix.dtype != compute || !matrix.dense(); }

// A oneDNN product of a new shape costs milliseconds of code generation, and batches of new lengths would ask for one in
// every iteration. So the number of tokens never reaches it: rows come in multiples of kRowStep, and the terms of a
// transposed a (a sum over tokens) in multiples of kTermStep, padded with zeros.
constexpr std::int64_t kRowStep = 32;
constexpr std::int64_t kTermStep = 64;
/// Terms summed at a time when a is transposed: the packed column panel of a then stays in the second-level cache.
constexpr std::int64_t kTermsPerPass = 512;

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

/// Whether the sum is over rows of both operands, into f32 (c or its f32 copy), so that it can be cut into passes.
bool splits_terms(const Product& p) { return p.transpose_a && !p.transpose_b && (p.c.dtype == DType::f32 || p.compute == DType::f32); }

/// The next pass of `whole` from term `first` on: full passes, then one of whole steps, then the padded tail.
std::int64_t terms_from(const Product& whole, std::int64_t first) {
  if (!splits_terms(whole)) return whole.k;
  const std::int64_t left = whole.k - first;
  return left >= kTermStep ? std::min(kTermsPerPass, left / kTermStep * kTermStep) : left;
}

/// c (+)= a b where b needs no packing, c suits oneDNN and whole.m may exceed the rows that a has.
void multiply_packing_a(ThreadState& state, const Product& whole) {
  for (std::int64_t first = 0, terms = 0; first < whole.k; first += terms) {
    terms = terms_from(whole, first);
    Product p = whole;
    p.accumulate = whole.accumulate || first > 0;
    if (splits_terms(whole)) {
      p.k = round_up(terms, kTermStep);
      p.a = whole.a.block(first, 0, terms, whole.a.columns);
      p.b = terms < kTermStep ? whole.b_tail : whole.b.block(first, 0, terms, p.n);
    }
    const std::int64_t a_rows = p.transpose_a ? p.k : p.m, a_columns = p.transpose_a ? p.m : p.k;
    if (must_pack(p.a, p.compute) || p.a.rows != a_rows || p.a.columns != a_columns) {
      p.a = packed(p.a, p.compute, state.a, a_rows, a_columns);
    }
    multiply(state, p);
  }
}

/// Rows [row, row+rows) of c; b needs no packing any more.
void multiply_rows(ThreadState& state, const Product& whole, std::int64_t row, std::int64_t rows) {
  Product p = whole;
  p.m = round_up(rows, kRowStep);
  p.c = whole.c.block(row, 0, rows, whole.n);
  p.a = whole.transpose_a ? whole.a.block(0, row, whole.k, rows) : whole.a.block(row, 0, rows, whole.k);
  const bool suits = p.m == rows && p.c.dense() && (p.compute == DType::bf16 || p.c.dtype == DType::f32);
  if (suits) return multiply_packing_a(state, p);
  const Matrix target = p.c;
  if (p.accumulate) {
    p.c = packed(target, DType::f32, state.c, p.m, p.n);
  } else {
    const DType dtype = p.compute == DType::bf16 ? target.dtype : DType::f32;
    p.c = {state.c.bytes(static_cast<std::size_t>(p.m * p.n) * size_of(dtype)), dtype, p.m, p.n, p.n};
  }
  multiply_packing_a(state, p);
  copy(view_of(p.c.block(0, 0, rows, p.n)), view_of(target));
}

/// Within this scope the calling thread runs oneDNN alone: primitives remember the team size they were made for.
class SingleThread {
 public:
  SingleThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;
  ~SingleThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

/// Rows of c per block: four blocks or more for the team where there are rows enough (smaller ones would have oneDNN
/// rearrange b too often), and no more than 256 rows, beyond which larger blocks are no faster.
std::int64_t rows_per_block(std::int64_t m) { return std::clamp<std::int64_t>(round_up(m / 4, kRowStep), 64, 256); }

void multiply_with_library(Product p, StreamView stream) {
  static thread_local Scratch packed_b, packed_tail;
  p.compute = p.a.dtype == DType::bf16 && bf16_is_native() ? DType::bf16 : DType::f32;
  if (must_pack(p.b, p.compute)) p.b = packed(p.b, p.compute, packed_b, p.b.rows, p.b.columns);
  if (const std::int64_t tail = p.k % kTermStep; splits_terms(p) && tail != 0) {
    p.b_tail = packed(p.b.block(p.k - tail, 0, tail, p.n), p.compute, packed_tail, kTermStep, p.n);
  }
  const std::int64_t block = rows_per_block(p.m), blocks = (p.m + block - 1) / block;
  const int team = cpu::team_size(blocks, 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k));
  cpu::for_each_item_on(team, blocks, stream, [&](std::int64_t index, int, const cpu::Progress&) {
    const SingleThread alone;
    multiply_rows(thread_state(), p, index * block, std::min(block, p.m - index * block));
  });
}

}  // namespace

void matmul(ConstTensorView a, ConstTensorView b, TensorView c, const MatmulOptions& options, StreamView stream) {
  const Product p = checked(a, b, c, options);
  if (p.m == 0 || p.n == 0) return;
  if (on_cuda(stream)) return cuda::matmul({p.m, p.n, p.k}, a, b, c, options, stream);
  if (p.k == 0) {
    if (!p.accumulate) fill_zero(c);
    return;
  }
  if (a.dtype() == DType::f64) {
    const auto operand = [](const Matrix& matrix, bool transposed) {
      return StridedF64{reinterpret_cast<const double*>(matrix.data), transposed ? 1 : matrix.stride, transposed ? matrix.stride : 1};
    };
    return matmul_f64({p.m, p.n, p.k, operand(p.a, p.transpose_a), operand(p.b, p.transpose_b), c.data<double>(), p.c.stride, p.accumulate},
                      stream);
  }
  multiply_with_library(p, stream);
}

bool bf16_is_native() noexcept {
  // Asks oneDNN and not the CPU: it also knows whether the operating system grants the AMX tile state.
  try {
    const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
    return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
  } catch (...) {
    return false;
  }
}

double measure_matmul_peak(DType dtype, Device device) {
  if (dtype != DType::bf16 && dtype != DType::f32 && dtype != DType::f64) throw_unsupported_dtype(dtype, "measure_matmul_peak");
  using Clock = std::chrono::steady_clock;
  const bool on_device = device.kind == DeviceKind::cuda;
  const std::int64_t size = on_device ? 4096 : dtype == DType::f64 ? 256 : 1024;
  const int products = on_device ? 8 : 1;  // per wait of the host
  const Memory host, memory(device);
  const Stream stream = on_device ? periplus::cuda::make_stream(device.index) : Stream();
  const Tensor source({size, size}, DType::f32, host), narrow({size, size}, dtype, host), c({size, size}, dtype, memory);
  std::uint64_t state = 1;
  for (float& value : source.view().span<float>()) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<std::int32_t>(state >> 32)) * 0x1p-31f;  // zeros draw less power and run faster
  }
  copy(source, narrow);
  const Tensor copied = on_device ? to_device(narrow, memory, stream) : Tensor();
  const ConstTensorView a = on_device ? copied.view() : narrow.view();
  const auto multiply = [&] {
    for (int i = 0; i < products; ++i) matmul(a, a, c, {}, stream);
    periplus::cuda::synchronize(stream);
  };
  multiply();
  double best = 0;
  for (const auto end = Clock::now() + std::chrono::milliseconds(200); Clock::now() < end;) {
    const auto start = Clock::now();
    multiply();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, 2.0 * products * static_cast<double>(size * size * size) / seconds);
  }
  return best;
}

}  // namespace periplus::kernels
