#include "parallel/strategy/gather.h"

#include <algorithm>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "parallel/strategy/heads.h"
#include "parallel/strategy/ring.h"
#include "parallel/strategy/row_runs.h"
#include "parallel/strategy/travel.h"

namespace periplus::strategy {
namespace {

using plan::Mode;
using plan::ProgramBuilder;
using plan::Rank;
using plan::View;

/// Ranks that many places apart: each fetches from the one before and lends to the one behind.
struct Distance {
  Rank from, to;
  std::span<const RowRange> fetched, lent;  ///< Rows of `from`; own rows.
};

/// Rows that the ranks found out about so far: all of each, and those that others need.
struct KnownRows {
  std::vector<RowRange> all;
  std::vector<std::optional<RowRuns>> needed;  ///< By rank of the queries, then of the keys.
};

struct KvGroup {
  int kv_head, kv_heads;
  std::vector<HeadPart> parts;
};

struct Stage {
  std::size_t first_group, groups;  ///< KV heads that travel, as groups.
  std::size_t first_distance, distances;
  std::size_t bands;  ///< Stages that differ in heads only share them.
  std::int64_t fetched_rows = 0, lent_rows = 0;
};

struct Preset {
  bool all_rows;
  int head_stages, rank_stages;
};

/// What forward and backward share: who fetches what, when.
class Gather {
 public:
  Gather(ProgramBuilder& program, const AttentionProblem& problem, const Preset& preset, View k, View v)
      : program_(program),
        problem_(problem),
        preset_(preset),
        ranks_(problem.layout.ranks()),
        self_(program.rank()),
        known_(program.of_layout_and_mask<KnownRows>()) {
    k_width_ = program.width_of(k), v_width_ = program.width_of(v);
    own_bands_ = bands_between(self_, self_);
    for (int rank = static_cast<int>(known_.all.size()); rank < ranks_; ++rank) known_.all.push_back({0, problem.layout.rows_of(rank)});
    if (!preset.all_rows) known_.needed.resize(static_cast<std::size_t>(ranks_) * static_cast<std::size_t>(ranks_));
    distances_.reserve(static_cast<std::size_t>(ranks_));
    for (int r = 0; r < preset.rank_stages; ++r) add_distances(r);
    make_stages();
    for (const Stage& stage : stages_) most_fetched_ = std::max(most_fetched_, stage.fetched_rows);
    for (const Stage& stage : stages_) most_lent_ = std::max(most_lent_, stage.lent_rows);
    for (std::size_t s = 0; s < heads_of_stages(); ++s) {
      const std::string suffix = heads_of_stages() > 1 ? fmt::format(".{}", s) : "";
      const auto part = [&](View view) { return view.heads_at(stages_[s].first_group * stage_heads(), stage_heads()); };
      if (most_lent_ > 0) own_.push_back({program.sendable(part(k), "k.packed" + suffix), program.sendable(part(v), "v.packed" + suffix)});
    }
  }

  const std::vector<Stage>& stages() const { return stages_; }
  const std::vector<KvGroup>& groups() const { return groups_; }
  std::span<const Band> own_bands() const { return own_bands_; }
  std::int64_t most_fetched() const { return most_fetched_; }

  /// Bands of the own queries and the rows of a stage's buffer.
  std::span<const Band> bands_of(const Stage& stage) const { return bands_[stage.bands]; }

  SparePair spare_blocks() { return pair("k", "v", problem_.dtype, most_fetched_); }
  SparePair spare_parts(DType dtype) { return pair("dk.part", "dv.part", dtype, most_fetched_); }
  SparePair spare_returns(DType dtype) { return pair("dk.back", "dv.back", dtype, most_lent_); }

  /// Starts a stage; what arrives lies in the order of distances.
  Pair fetch(int index, SparePair& spare) {
    const Stage& stage = stages_[static_cast<std::size_t>(index)];
    const Pair arriving = spare.next(stage.fetched_rows);
    mail_.clear();
    std::int64_t at = 0;
    for (const Distance& distance : distances_of(stage)) {
      for (const RowRange& run : distance.lent) {
        if (run.rows() > 0) mail_.send(distance.to, own_of(stage).rows_at(run.begin, run.rows()));
      }
      for (const RowRange& run : distance.fetched) {
        mail_.receive(distance.from, arriving.rows_at(at, run.rows()));
        at += run.rows();
      }
    }
    program_.exchange({"kv of stage", index}, kBlockLane, mail_.sends, mail_.receives);
    return arriving;
  }

  /// Sends the gradients of a stage's rows home and receives those of the own rows that were lent.
  Pair give_back(int index, const Pair& parts, SparePair& spare) {
    const Stage& stage = stages_[static_cast<std::size_t>(index)];
    const Pair arriving = spare.next(stage.lent_rows);
    mail_.clear();
    std::int64_t from = 0, to = 0;
    for (const Distance& distance : distances_of(stage)) {
      mail_.send(distance.from, parts.rows_at(from, rows_of(distance.fetched)));
      mail_.receive(distance.to, arriving.rows_at(to, rows_of(distance.lent)));
      from += rows_of(distance.fetched), to += rows_of(distance.lent);
    }
    program_.exchange({"dkdv of stage", index}, kResultLane, mail_.sends, mail_.receives);
    return arriving;
  }

  /// Adds what give_back brought to the own sums.
  void add_returned(int index, const Pair& returned, View dk, View dv) {
    const Stage& stage = stages_[static_cast<std::size_t>(index)];
    const KvGroup &first = groups_[stage.first_group], &last = groups_[stage.first_group + stage.groups - 1];
    const int heads = last.kv_head + last.kv_heads - first.kv_head;
    std::int64_t at = 0;
    for (const Distance& distance : distances_of(stage)) {
      for (const RowRange& run : distance.lent) {
        const Pair part = returned.rows_at(at, run.rows());
        program_.add({"dk of stage", index}, part.k, dk.rows_at(run.begin, run.rows()).heads_at(first.kv_head, heads));
        program_.add({"dv of stage", index}, part.v, dv.rows_at(run.begin, run.rows()).heads_at(first.kv_head, heads));
        at += run.rows();
      }
    }
  }

  /// First head of a stage's buffer, among the KV heads of the problem.
  int first_head(const Stage& stage) const { return groups_[stage.first_group].kv_head; }

 private:
  static std::size_t share(std::size_t count, int index, int parts) {
    return count * static_cast<std::size_t>(index) / static_cast<std::size_t>(parts);
  }

  /// Of one stage by ranks, with its bands.
  void add_distances(int rank_stage) {
    const auto others = static_cast<std::size_t>(ranks_ - 1);
    const std::size_t end = share(others, rank_stage + 1, preset_.rank_stages);
    std::vector<Band>& bands = bands_.emplace_back();
    std::int64_t at = 0;
    for (std::size_t i = share(others, rank_stage, preset_.rank_stages); i < end; ++i) {
      const int apart = static_cast<int>(i) + 1;
      Distance distance{(self_ - apart + ranks_) % ranks_, (self_ + apart) % ranks_, {}, {}};
      distance.lent = rows_for(distance.to, self_), distance.fetched = rows_for(self_, distance.from);
      append_compacted(bands_between(self_, distance.from), distance.fetched, at, bands);
      at += rows_of(distance.fetched);
      distances_.push_back(distance);
    }
  }

  /// The rows of a rank that travel to another.
  std::span<const RowRange> rows_for(Rank queries, Rank keys) const {
    if (preset_.all_rows) return std::span(known_.all).subspan(static_cast<std::size_t>(keys), 1);
    auto& rows = known_.needed[static_cast<std::size_t>(queries) * static_cast<std::size_t>(ranks_) + static_cast<std::size_t>(keys)];
    if (!rows) rows = rows_needed(bands_between(queries, keys));
    return *rows;
  }

  std::span<const Band> bands_between(Rank queries, Rank keys) const {
    return program_.bands_between(problem_.layout, problem_.mask, queries, keys);
  }

  void make_stages() {
    const HeadRange heads{0, problem_.q_heads, problem_.q_heads / problem_.kv_heads};
    // Two groups at least, where there are heads for it, so that backward can keep one half of the own block for the end.
    const int groups = std::min(problem_.kv_heads, std::max(2, preset_.head_stages));
    for (int i = 0; i < groups; ++i) {
      const HeadRange kv = HeadRange::share(problem_.kv_heads, 1, i, groups);
      groups_.push_back({kv.first, kv.count, heads.parts(kv.first, kv.count)});
    }
    for (int h = 0; h < preset_.head_stages; ++h) {
      for (int r = 0; r < preset_.rank_stages; ++r) {
        Stage stage{share(groups_.size(), h, preset_.head_stages), 0, share(distances_.size(), r, preset_.rank_stages), 0,
                    static_cast<std::size_t>(r)};
        stage.groups = share(groups_.size(), h + 1, preset_.head_stages) - stage.first_group;
        stage.distances = share(distances_.size(), r + 1, preset_.rank_stages) - stage.first_distance;
        for (const Distance& distance : distances_of(stage)) {
          stage.fetched_rows += rows_of(distance.fetched), stage.lent_rows += rows_of(distance.lent);
        }
        stages_.push_back(stage);
      }
    }
  }

  std::size_t heads_of_stages() const { return static_cast<std::size_t>(preset_.head_stages); }
  int stage_heads() const { return problem_.kv_heads / preset_.head_stages; }
  const Pair& own_of(const Stage& stage) const { return own_[static_cast<std::size_t>(first_head(stage) / stage_heads())]; }
  std::span<const Distance> distances_of(const Stage& stage) const {
    return std::span(distances_).subspan(stage.first_distance, stage.distances);
  }
  SparePair pair(std::string_view k, std::string_view v, DType dtype, std::int64_t rows) {
    return {program_, k, v, {dtype, rows, stage_heads(), k_width_, v_width_}};
  }

  ProgramBuilder& program_;
  const AttentionProblem& problem_;
  Preset preset_;
  int ranks_, self_;
  KnownRows& known_;
  std::int64_t k_width_ = 0, v_width_ = 0, most_fetched_ = 0, most_lent_ = 0;
  std::span<const Band> own_bands_;
  std::vector<Distance> distances_;
  Mail mail_;  ///< Of the exchange at hand.
  std::vector<KvGroup> groups_;
  std::vector<Stage> stages_;
  std::vector<std::vector<Band>> bands_;  ///< Of stages.
  std::vector<Pair> own_;                 ///< The own rows as they are sent, by head stage; none if nobody needs any.
};

template <class PresetOf>
void plan_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const ForwardSlots& on) {
  const RunningState running = running_state(program, on);
  const View state_out = running.out, state_lse = running.lse;
  Gather gather(program, problem, PresetOf()(problem, options), on.k, on.v);
  SparePair spare = gather.spare_blocks();
  const auto attend = [&](plan::Label label, const KvGroup& group, const Pair& block, int first_head, std::span<const Band> bands,
                          Mode mode) {
    for (const HeadPart& part : group.parts) {
      const auto of_queries = [&](const View& view) { return view.heads_at(part.q_head, part.q_heads); };
      const auto of_keys = [&](const View& view) { return view.heads_at(part.kv_head - first_head, part.kv_heads); };
      program.attend(label, {of_queries(on.q), of_keys(block.k), of_keys(block.v), of_queries(state_out), of_queries(state_lse)}, bands,
                     problem.scale_or_default(), problem.softcap, mode);
    }
  };

  const int stages = problem.layout.ranks() > 1 ? static_cast<int>(gather.stages().size()) : 0;
  Pair arriving = stages > 0 ? gather.fetch(0, spare) : Pair{};
  for (const KvGroup& group : gather.groups()) attend({"own rows"}, group, {on.k, on.v}, 0, gather.own_bands(), Mode::write);
  for (int s = 0; s < stages; ++s) {
    const Stage& stage = gather.stages()[static_cast<std::size_t>(s)];
    const Pair block = arriving;
    if (s + 1 < stages) arriving = gather.fetch(s + 1, spare);
    const std::span<const Band> bands = gather.bands_of(stage);
    for (std::size_t g = 0; g < stage.groups; ++g) {
      attend({"stage", s}, gather.groups()[stage.first_group + g], block, gather.first_head(stage), bands, Mode::add);
    }
  }
  program.finish({"finish"}, state_out, state_lse, on.sink, on.out, on.lse);
}

template <class PresetOf>
void plan_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const BackwardSlots& on) {
  const DType accumulator = accumulator_of(problem.dtype);
  const View dq = sum_of(program, on.dq, "dq.sum"), dk = sum_of(program, on.dk, "dk.sum"), dv = sum_of(program, on.dv, "dv.sum");
  Gather gather(program, problem, PresetOf()(problem, options), on.k, on.v);
  SparePair spare = gather.spare_blocks(), parts = gather.spare_parts(accumulator), returns = gather.spare_returns(accumulator);
  std::vector<Mode> dq_modes(gather.groups().size(), Mode::write);
  // `block` and `gradient` begin at these KV heads.
  const auto attend = [&](plan::Label label, std::size_t g, const Pair& block, int block_head, const Pair& gradient, int gradient_head,
                          std::span<const Band> bands) {
    for (const HeadPart& part : gather.groups()[g].parts) {
      const auto of_queries = [&](const View& view) { return view.heads_at(part.q_head, part.q_heads); };
      const auto of_keys = [&](const View& view, int first) { return view.heads_at(part.kv_head - first, part.kv_heads); };
      program.attend_backward(
          label,
          {of_queries(on.q), of_keys(block.k, block_head), of_keys(block.v, block_head), of_queries(on.dout), of_queries(on.lse),
           of_queries(on.delta), of_queries(dq), of_keys(gradient.k, gradient_head), of_keys(gradient.v, gradient_head)},
          bands, problem.scale_or_default(), problem.softcap, dq_modes[g]);
    }
    dq_modes[g] = Mode::add;
  };
  // Half of the own block hides the first rows to arrive, the other half the last gradients on their way home. The sums of
  // that half start at zero, so that what comes home meanwhile need not be kept.
  const std::size_t groups = gather.groups().size(), at_once = (groups + 1) / 2;
  const Pair own{on.k, on.v}, sum{dk, dv};
  const int late_head = at_once < groups ? gather.groups()[at_once].kv_head : problem.kv_heads, late_heads = problem.kv_heads - late_head;
  const Pair late{program.scratch("dk.own", accumulator, on.k.rows, late_heads, program.width_of(on.k)),
                  program.scratch("dv.own", accumulator, on.v.rows, late_heads, program.width_of(on.v))};
  const int stages = problem.layout.ranks() > 1 ? static_cast<int>(gather.stages().size()) : 0;
  Pair arriving = stages > 0 ? gather.fetch(0, spare) : Pair{};
  for (std::size_t g = 0; g < groups; ++g) {
    const std::span<const Band> bands = g < at_once ? gather.own_bands() : std::span<const Band>();
    attend({g < at_once ? "own rows" : "zero"}, g, own, 0, sum, 0, bands);
  }
  Pair returned;
  for (int s = 0; s < stages; ++s) {
    const Stage& stage = gather.stages()[static_cast<std::size_t>(s)];
    const Pair block = arriving;
    if (s + 1 < stages) arriving = gather.fetch(s + 1, spare);
    const std::span<const Band> bands = gather.bands_of(stage);
    const Pair gradient = parts.next(stage.fetched_rows);
    for (std::size_t g = stage.first_group; g < stage.first_group + stage.groups; ++g) {
      attend({"stage", s}, g, block, gather.first_head(stage), gradient, gather.first_head(stage), bands);
    }
    if (s > 0) gather.add_returned(s - 1, returned, dk, dv);
    returned = gather.give_back(s, gradient, returns);
  }
  for (std::size_t g = at_once; g < groups; ++g) {
    attend({"own rows"}, g, own, 0, late, late_head, gather.own_bands());
  }
  if (at_once < groups) {
    program.add({"dk of own rows"}, late.k, dk.heads_at(late_head, late_heads));
    program.add({"dv of own rows"}, late.v, dv.heads_at(late_head, late_heads));
  }
  if (stages > 0) gather.add_returned(stages - 1, returned, dk, dv);
  settle(program, dq, on.dq);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

/// The largest divisor of the KV heads up to 8: more stages start work earlier, and each costs a message to every rank.
struct GatherKv {
  Preset operator()(const AttentionProblem& problem, const AttentionOptions& options) const {
    int stages = options.stages;
    for (int count = 1; options.stages == 0 && count <= std::min(problem.kv_heads, 8); ++count) {
      if (problem.kv_heads % count == 0) stages = count;
    }
    return {true, stages, 1};
  }
  static std::string refusal(const AttentionProblem& problem, const AttentionOptions& options) {
    if (options.stages == 0 || problem.kv_heads % options.stages == 0) return {};
    return fmt::format("{} stages for {} KV heads; a stage is a group of KV heads, use a divisor", options.stages, problem.kv_heads);
  }
  static std::int64_t bytes_sent(const AttentionProblem& problem, const AttentionOptions&, Pass pass) {
    return ring_bytes(problem, pass, problem.layout.ranks(), problem.layout.tokens(), problem.kv_heads);
  }
};

std::int64_t no_formula(const AttentionProblem&, const AttentionOptions&, Pass) { return -1; }

struct GroupCast {
  static constexpr int kUsualStages = 4;
  Preset operator()(const AttentionProblem& problem, const AttentionOptions& options) const {
    const int stages = options.stages > 0 ? options.stages : kUsualStages;
    return {false, 1, std::min(stages, most_stages(problem))};
  }
  static int most_stages(const AttentionProblem& problem) { return std::max(1, problem.layout.ranks() - 1); }
  static std::string refusal(const AttentionProblem& problem, const AttentionOptions& options) {
    if (options.stages <= most_stages(problem)) return {};
    return fmt::format("{} stages on {} ranks; a stage is a group of other ranks, use at most {}", options.stages, problem.layout.ranks(),
                       most_stages(problem));
  }
};

struct Halo {
  Preset operator()(const AttentionProblem&, const AttentionOptions&) const { return {false, 1, 1}; }
  static std::string refusal(const AttentionProblem& problem, const AttentionOptions&) {
    const MaskSpec& mask = problem.mask.spec();
    if (mask.window_left >= 0 && (mask.causal || mask.window_right >= 0)) return {};
    return "it is for sliding windows, and this mask has no limit on a side that it leaves open; use group_cast or ring";
  }
};

}  // namespace

Strategy gather_kv_strategy() {
  return {"gather_kv",
          "all K,V are gathered by groups of KV heads, each while the last one is worked on",
          kStages,
          GatherKv::refusal,
          plan_forward<GatherKv>,
          plan_backward<GatherKv>,
          GatherKv::bytes_sent};
}
Strategy group_cast_strategy() {
  return {"group_cast",
          "the K,V rows that the mask needs come from their owners, nearest ranks first",
          kStages,
          GroupCast::refusal,
          plan_forward<GroupCast>,
          plan_backward<GroupCast>,
          no_formula};
}
Strategy halo_strategy() {
  return {"halo",
          "sliding windows: the K,V rows at the borders come from the neighbours",
          0,
          Halo::refusal,
          plan_forward<Halo>,
          plan_backward<Halo>,
          no_formula};
}

}  // namespace periplus::strategy
