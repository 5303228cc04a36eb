#include "launch/bench/onednn_products.h"

#include <map>
#include <random>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

namespace periplus::launch::bench {
namespace {

using Dims = dnnl::memory::dims;
using Type = dnnl::memory::data_type;

struct Step {
  dnnl::matmul product;
  std::unordered_map<int, dnnl::memory> arguments;
};

/// A stored matrix [rows, columns] as oneDNN describes it.
struct Operand {
  void* data;
  Type type;
  Dims strides;
};

}  // namespace

struct OneDnnProducts::State {
  ProductShape shape;
  std::vector<bfloat16> q, k, v, scores;
  std::vector<float> out;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::vector<Step> steps;
  std::map<std::tuple<const void*, std::int64_t, bool>, dnnl::memory> packed;

  explicit State(const ProductShape& given) : shape(given) {
    const auto size = static_cast<std::size_t>(shape.heads * shape.rows * shape.width);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::vector<bfloat16>* operand : {&q, &k, &v}) {
      operand->resize(size);
      for (bfloat16& value : *operand) value = bfloat16(normal(random));
    }
    scores.resize(static_cast<std::size_t>(shape.block * (shape.whole_panels ? shape.rows : shape.block)));
    out.resize(size);
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      for (std::int64_t row = 0; row < shape.rows; row += shape.block) {
        const std::int64_t end = row + shape.block, keys = shape.whole_panels ? end : shape.block;
        for (std::int64_t key = 0; key < end; key += keys) add_block(head, row, key, keys);
      }
    }
  }

  void add_block(std::int64_t head, std::int64_t row, std::int64_t key, std::int64_t keys) {
    const std::int64_t width = shape.width;
    const auto at = [&](std::int64_t index) { return static_cast<std::size_t>((head * shape.rows + index) * width); };
    const Operand score{scores.data(), Type::bf16, {keys, 1}};
    add_product({shape.block, keys, width}, {&q[at(row)], Type::bf16, {width, 1}}, {&k[at(key)], Type::bf16, {1, width}}, score, false);
    add_product({shape.block, width, keys}, score, {&v[at(key)], Type::bf16, {width, 1}}, {&out[at(row)], Type::f32, {width, 1}}, key > 0);
  }

  /// `sizes`: m, n, k.
  void add_product(const std::array<std::int64_t, 3>& sizes, const Operand& a, const Operand& b, const Operand& c, bool accumulate) {
    const auto [m, n, k_size] = sizes;
    const dnnl::memory::desc a_desc({m, k_size}, a.type, a.strides), b_desc({k_size, n}, b.type, b.strides),
        b_any({k_size, n}, b.type, dnnl::memory::format_tag::any), c_desc({m, n}, c.type, c.strides);
    dnnl::primitive_attr attributes;
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a_desc, b_any, c_desc), attributes, engine);
    const auto key = std::tuple(static_cast<const void*>(b.data), n * k_size, accumulate);
    auto weights = packed.find(key);
    if (weights == packed.end()) {
      const dnnl::memory plain(b_desc, engine, b.data);
      const dnnl::memory ready(description.weights_desc(), engine);
      dnnl::reorder(plain, ready).execute(stream, {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, ready}});
      stream.wait();
      weights = packed.emplace(key, ready).first;
    }
    steps.push_back({dnnl::matmul(description),
                     {{DNNL_ARG_SRC, dnnl::memory(a_desc, engine, a.data)},
                      {DNNL_ARG_WEIGHTS, weights->second},
                      {DNNL_ARG_DST, dnnl::memory(c_desc, engine, c.data)}}});
  }
};

OneDnnProducts::OneDnnProducts(const ProductShape& shape) : state_(std::make_unique<State>(shape)) {}
OneDnnProducts::~OneDnnProducts() = default;
OneDnnProducts::OneDnnProducts(OneDnnProducts&&) noexcept = default;
OneDnnProducts& OneDnnProducts::operator=(OneDnnProducts&&) noexcept = default;

void OneDnnProducts::run() const {
  for (const Step& step : state_->steps) step.product.execute(state_->stream, step.arguments);
  state_->stream.wait();
}

std::span<const bfloat16> OneDnnProducts::q() const { return state_->q; }
std::span<const bfloat16> OneDnnProducts::k() const { return state_->k; }
std::span<const bfloat16> OneDnnProducts::v() const { return state_->v; }
std::span<const float> OneDnnProducts::out() const { return state_->out; }

}  // namespace periplus::launch::bench
