#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/plan/builder.h"

/// Tensors of the same rows that travel together: the messages that carry them and the scratch they arrive in.
namespace periplus::strategy {

/// Keys and values, or their gradients.
struct Pair {
  plan::View k, v;
  Pair rows_at(std::int64_t first, std::int64_t count) const { return {k.rows_at(first, count), v.rows_at(first, count)}; }
};

/// Messages of one exchange. Those with a peer below 0, nobody, are left out.
struct Mail {
  std::vector<plan::Message> sends, receives;
  void clear() { sends.clear(), receives.clear(); }
  void send(plan::Rank to, const Pair& pair) { add(sends, to, pair.k), add(sends, to, pair.v); }
  void receive(plan::Rank from, const Pair& pair) { add(receives, from, pair.k), add(receives, from, pair.v); }
  void send(plan::Rank to, std::span<const plan::View> views) {
    for (const plan::View& view : views) add(sends, to, view);
  }
  void receive(plan::Rank from, std::span<const plan::View> views) {
    for (const plan::View& view : views) add(receives, from, view);
  }

 private:
  static void add(std::vector<plan::Message>& messages, plan::Rank peer, const plan::View& view) {
    if (peer >= 0) messages.emplace_back(peer, view);
  }
};

/// Scratch for pairs, two in turn: one arrives while the other is in use.
class SparePair {
 public:
  struct Shape {
    DType dtype;
    std::int64_t rows, heads, k_width, v_width;
  };
  SparePair(plan::ProgramBuilder& program, std::string_view k, std::string_view v, const Shape& shape)
      : k_(program.rotating_scratch(k, 2, shape.dtype, shape.rows, shape.heads, shape.k_width)),
        v_(program.rotating_scratch(v, 2, shape.dtype, shape.rows, shape.heads, shape.v_width)) {}
  Pair next(std::int64_t rows) { return {k_.next(rows), v_.next(rows)}; }

 private:
  plan::RotatingScratch k_, v_;
};

/// The same for any tensors: those of `like` with other rows. Their names end in `suffix`.
class SpareTensors {
 public:
  SpareTensors(plan::ProgramBuilder& program, std::span<const plan::View> like, std::span<const std::string_view> names,
               std::string_view suffix, std::int64_t rows) {
    for (std::size_t i = 0; i < like.size(); ++i) {
      scratch_.push_back(program.rotating_scratch(std::string(names[i]).append(suffix), 2, program.dtype_of(like[i]), rows, like[i].heads,
                                                  program.width_of(like[i])));
    }
  }
  std::vector<plan::View> next(std::int64_t rows) {
    std::vector<plan::View> views;
    for (plan::RotatingScratch& scratch : scratch_) views.push_back(scratch.next(rows));
    return views;
  }

 private:
  std::vector<plan::RotatingScratch> scratch_;
};

/// The views, or copies of them that messages can be sent from, if they travel at all.
inline std::vector<plan::View> sendable(plan::ProgramBuilder& program, std::span<const plan::View> views,
                                        std::span<const std::string_view> names, bool travels) {
  std::vector<plan::View> result(views.begin(), views.end());
  for (std::size_t i = 0; i < result.size() && travels; ++i) result[i] = program.sendable(views[i], std::string(names[i]) + ".packed");
  return result;
}

}  // namespace periplus::strategy
