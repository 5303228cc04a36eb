#include "parallel/simulate/iteration.h"

#include <array>

#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "parallel/linear_attention.h"
#include "parallel/plan/ops.h"
#include "parallel/simulate/attention_time.h"
#include "parallel/simulate/estimate.h"
#include "parallel/simulate/simulate.h"
#include "runtime/error.h"

namespace periplus::simulate {
namespace {

/// Rates that make times easy: matrices and attention 1 Tflop/s, memory and launches free.
Machine even_machine(int devices, int per_node) {
  Machine machine;
  machine.name = "even", machine.devices = devices, machine.devices_per_node = per_node, machine.memory_bytes = 1e12;
  machine.links.inside = {.bytes_per_second = 1e9}, machine.links.between = {.bytes_per_second = 1e8};
  machine.links.ranks_per_node = per_node, machine.links.ranks_per_nic = per_node;
  machine.node_bytes_per_second = 1e8;
  machine.kernels.matmul_flops_per_second = 1e12, machine.kernels.memory_bytes_per_second = 1e30;
  machine.kernels.forward = {{1024}, {1e12}, {1e12}};
  machine.kernels.backward = machine.kernels.forward;
  return machine;
}

Shape small_shape() {
  Shape shape;
  shape.name = "small", shape.layers = 3, shape.hidden = 64, shape.heads = 4, shape.kv_heads = 2, shape.vocabulary = 100;
  return shape;
}

Training over(int context, std::int64_t tokens) {
  Training training;
  training.tokens = tokens, training.context = context, training.zero = 0;
  return training;
}

double sum(const RankShare& rank) { return rank.compute + rank.attention_wait + rank.collective_wait + rank.imbalance + rank.overhead; }

TEST(AttentionCurve, GoesBetweenItsPoints) {
  const AttentionCurve curve{{1000, 4000}, {100, 300}, {200, 400}};
  EXPECT_DOUBLE_EQ(curve.rate(500, 0.5), 100);
  EXPECT_DOUBLE_EQ(curve.rate(4000, 0.5), 300);
  EXPECT_DOUBLE_EQ(curve.rate(9000, 1), 400);
  EXPECT_NEAR(curve.rate(2000, 0.5), 200, 1e-9);                           // half the way by the logarithm
  EXPECT_NEAR(curve.rate(1000, 0.75), 2 / (1.0 / 100 + 1.0 / 200), 1e-9);  // half the way by time
}

TEST(GatherSeconds, ClosedForms) {
  Machine machine = even_machine(16, 4);
  EXPECT_EQ(gather_seconds(machine, 1, 1e9), 0);
  EXPECT_NEAR(gather_seconds(machine, 4, 1e9), 0.75, 1e-12);              // three of four parts come over links
  EXPECT_NEAR(gather_seconds(machine, 16, 1e9), 10 * 0.9375, 1e-12);      // 15 of 16 parts over each card
  EXPECT_NEAR(gather_seconds(machine, 4, 1e9, 4), 10 * 4 * 0.75, 1e-12);  // four such groups share it
  machine.links.inside.latency_seconds = 1, machine.links.between.latency_seconds = 10;
  EXPECT_NEAR(gather_seconds(machine, 16, 0), 12 * 1 + 3 * 10, 1e-12);  // 15 hops, three of them between nodes
  machine.collective_seconds = 5;
  EXPECT_NEAR(gather_seconds(machine, 16, 0), 5 + 12 * 1 + 3 * 10, 1e-12);
  EXPECT_EQ(gather_seconds(machine, 1, 1e9), 0);
}

TEST(StepSeconds, MergesTouchTheRowsThatABlockCovers) {
  Machine machine = even_machine(4, 4);
  AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::zigzag, 4, std::array<std::int64_t, 2>{0, 4096}),
                           .mask = Mask({}, std::array<std::int64_t, 2>{0, 4096})};
  problem.dtype = DType::bf16;
  const plan::Plan plan = make_plan(problem, {}, Pass::forward);
  Kernels with = machine.kernels, without = machine.kernels;
  with.memory_bytes_per_second = without.memory_bytes_per_second = 1e9;
  with.merge_passes = 2, with.sliced_merge_passes = 3;
  double merges = 0;
  for (const plan::Step& step : plan.programs[0].steps)
    if (step.op == plan::Op::attend) merges += step_seconds(with, plan.programs[0], step) - step_seconds(without, plan.programs[0], step);
  // Rank 0 sees only later ranks: each of three blocks covers the later half of its 1024 rows, f32, 64 wide.
  EXPECT_NEAR(merges, 3 * 3 * 512 * 64 * 4 / 1e9, 1e-12);
}

TEST(StepSeconds, HeadsArePaddedToTheKernelsSizes) {
  AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::contiguous, 1, std::array<std::int64_t, 2>{0, 1024}),
                           .mask = Mask({}, std::array<std::int64_t, 2>{0, 1024})};
  problem.head_size = 96, problem.dtype = DType::bf16;
  Kernels padded = even_machine(1, 1).kernels, exact = padded;
  padded.head_sizes = {64, 128}, exact.head_sizes = {32, 64, 96};
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const plan::Plan plan = make_plan(problem, {}, pass);
    double with = 0, without = 0;
    for (const plan::Step& step : plan.programs[0].steps) {
      if (step.op != plan::Op::attend && step.op != plan::Op::attend_backward) continue;
      with += step_seconds(padded, plan.programs[0], step), without += step_seconds(exact, plan.programs[0], step);
    }
    EXPECT_NEAR(with, without * 128 / 96, 1e-12);
  }
}

TEST(StepSeconds, TilesAreComputedWhole) {
  AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::contiguous, 1, std::array<std::int64_t, 2>{0, 1024}),
                           .mask = Mask({}, std::array<std::int64_t, 2>{0, 1024})};
  problem.head_size = 64, problem.dtype = DType::bf16;
  Kernels pairs = even_machine(1, 1).kernels, tiles = pairs;
  tiles.tile_queries = 128, tiles.tile_keys = 256;
  const plan::Plan plan = make_plan(problem, {}, Pass::forward);
  double with = 0, without = 0;
  for (const plan::Step& step : plan.programs[0].steps) {
    if (step.op != plan::Op::attend) continue;
    with += step_seconds(tiles, plan.programs[0], step), without += step_seconds(pairs, plan.programs[0], step);
  }
  // Two rows of tiles each touch 1, 2, 3 and 4 tiles of keys.
  EXPECT_NEAR(with / without, 2.0 * 10 * 128 * 256 / (1024 * 1025 / 2), 1e-9);
}

/// A kernel's measured time contains the states of its chunks; steps that make them apart share it.
TEST(StepSeconds, StatesOfChunksTakeTheirShareOfTheKernel) {
  Machine machine = even_machine(2, 2);
  machine.kernels.memory_bytes_per_second = 1e9, machine.kernels.matmul_flops_per_second = 1e30;
  machine.kernels.linear_efficiency = 0.5, machine.kernels.linear_backward_efficiency = 0.25;
  LinearAttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::contiguous, 2, std::array<std::int64_t, 2>{0, 4096})};
  problem.heads = 2, problem.head_size = 64, problem.dtype = DType::bf16;
  LinearAttentionOptions how;
  how.strategy = "lasp2";
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const bool forward = pass == Pass::forward;
    const plan::Op apply = forward ? plan::Op::unit_apply : plan::Op::unit_apply_backward;
    const plan::Op states = forward ? plan::Op::unit_states : plan::Op::unit_states_backward;
    const plan::Plan plan = make_plan(problem, how, pass);
    double seconds = 0, applied = 0;
    int made = 0;
    for (const plan::Step& step : plan.programs[1].steps) {
      if (step.op != apply && step.op != states) continue;
      seconds += step_seconds(machine.kernels, plan.programs[1], step);
      if (step.op == apply) applied += static_cast<double>(plan::bytes(plan.programs[1], step));
      made += step.op == states;
    }
    EXPECT_GT(made, 0);
    EXPECT_NEAR(seconds, applied / (1e9 * (forward ? 0.5 : 0.25)), 1e-9);
  }
}

TEST(Iteration, OneDeviceIsTheSumOfItsFlops) {
  const Shape shape = small_shape();
  Training training = over(1, 1000);
  training.recompute = Recompute::none;
  const Iteration iteration = simulate_iteration(shape, even_machine(1, 1), training);
  EXPECT_NEAR(iteration.seconds * 1e12 / model_flops(shape, training), 1, 1e-9);
  // By hand: matrices of 3 x (64 x 192 + 8 x 64 x 64) + 64 x 100 weights, 6 flops a token each; 7 x 64 flops a pair and layer.
  EXPECT_NEAR(model_flops(shape, training), 6e3 * (3 * (64 * 192 + 8 * 64 * 64) + 6400) + 3 * 14.0 * 64 * 500500, 1);
  training.recompute = Recompute::all;
  const Iteration again = simulate_iteration(shape, even_machine(1, 1), training);
  EXPECT_GT(again.seconds, iteration.seconds * 1.2);
  // Of the matrices, backward repeats those of queries, keys, values and result; or those of the feed-forward part but its last as well.
  training.recompute = Recompute::but_hidden;
  const double but_hidden = simulate_iteration(shape, even_machine(1, 1), training).seconds;
  training.recompute = Recompute::but_attention;
  const double but_attention = simulate_iteration(shape, even_machine(1, 1), training).seconds;
  EXPECT_NEAR((but_hidden - iteration.seconds) * 1e12, 2e3 * 3 * 64 * 192, 1e-3);
  EXPECT_NEAR((but_attention - but_hidden) * 1e12, 2e3 * 3 * 64 * 256, 1e-3);
  EXPECT_EQ(again.flops, iteration.flops);
}

TEST(Iteration, PartsAddUpAndBytesAreThePlansOwn) {
  for (const char* const strategy : {"ring", "ulysses", "gather_kv"}) {
    for (const int zero : {0, 1, 2, 3}) {
      Training training = over(2, 3000);
      training.replicas = 2, training.micro_batches = 2, training.attention.strategy = strategy, training.zero = zero;
      training.layout = LayoutKind::contiguous;  // unequal work: ranks do not come together
      const Iteration iteration = simulate_iteration(small_shape(), even_machine(8, 4), training);
      for (const RankShare& rank : iteration.ranks) EXPECT_NEAR(sum(rank), iteration.seconds, 1e-9 * iteration.seconds) << strategy << zero;
      EXPECT_GT(iteration.link_bytes, 0);
      EXPECT_EQ(iteration.card_bytes, 0) << "one node";
    }
  }
}

TEST(Iteration, LayersThatFollowEachOtherAreNotSimulatedApart) {
  // One long plan would give the same: a second layer's ranks start when their first is done.
  Shape shape = small_shape();
  shape.layers = 1;
  Training training = over(4, 4000);
  training.layout = LayoutKind::contiguous, training.recompute = Recompute::none;
  const Machine machine = even_machine(4, 4);
  const Iteration one = simulate_iteration(shape, machine, training);
  shape.layers = 2;
  const Iteration two = simulate_iteration(shape, machine, training);
  EXPECT_LT(two.seconds, 2 * one.seconds + 1e-12);
  EXPECT_GT(two.seconds, 1.5 * one.seconds);
}

TEST(Iteration, WithoutOverlapMessagesAddToCompute) {
  Training training = over(4, 8192);
  const Machine machine = even_machine(4, 4);
  const Iteration with = simulate_iteration(small_shape(), machine, training);
  training.overlap = false;
  const Iteration without = simulate_iteration(small_shape(), machine, training);
  EXPECT_GT(without.seconds, with.seconds);
  EXPECT_NEAR(without.ranks[0].compute, with.ranks[0].compute, 1e-12);
  EXPECT_EQ(without.link_bytes, with.link_bytes);
}

TEST(Iteration, TensorParallelMatricesMoveActivations) {
  Training training = over(1, 4096);
  training.tensor = 2, training.recompute = Recompute::none;
  const Shape shape = small_shape();
  const Iteration iteration = simulate_iteration(shape, even_machine(2, 2), training);
  // Four gathers or scatters of a layer in forward, six in backward, half of the rows' activations each. Of backward's two go beside a
  // matrix of qkv's size (64 x 128), two beside one of ffn's (64 x 256), of which a device has half.
  EXPECT_NEAR(iteration.link_bytes, shape.layers * 10 * 4096 * 64 * 2 / 2, 1);
  const double beside = shape.layers * 2 * (2.0 * 4096 * 64 * (128 + 256) / 2) / 1e12;
  EXPECT_NEAR(iteration.ranks[0].collective_wait, iteration.link_bytes / 1e9 - beside, 1e-9);
}

TEST(Iteration, CollectivesThatNothingIsComputedBesideAreExposed) {
  Training training = over(2, 4096);
  training.zero = 1;
  const Shape shape = small_shape();
  const Machine machine = even_machine(2, 2);
  const Iteration beside = simulate_iteration(shape, machine, training);
  training.by_section = true;
  const Iteration last = simulate_iteration(shape, machine, training);
  const double sum = gather_seconds(machine, 2, shape.weights() * 4), weights = gather_seconds(machine, 2, shape.weights() * 2);
  EXPECT_GT(last.seconds, beside.seconds);
  for (const RankShare& rank : last.ranks) EXPECT_NEAR(rank.collective_wait, sum + weights, 1e-9);
  training.zero = 3;
  const double layer = gather_seconds(machine, 2, shape.layer_weights() * 2);
  for (const RankShare& rank : simulate_iteration(shape, machine, training).ranks)
    EXPECT_NEAR(rank.collective_wait, sum + 2 * shape.layers * layer, 1e-9);
}

/// Makespan of a plan whose steps compute nothing.
double messages_alone(const plan::Plan& plan, const comm::Links& links) {
  return simulate(plan, {[](const plan::Program&, const plan::Step&) { return 0.0; }, links}).makespan;
}

std::int64_t bytes_of_rank(const plan::Plan& plan, std::size_t rank) { return plan.programs[rank].bytes_sent(); }

TEST(ClosedForms, RingAllToAllAndPipeline) {
  constexpr int kRanks = 8;
  const std::array<std::int64_t, 2> borders{0, 8192};
  const Mask full({.causal = false}, borders);
  const comm::Links links{{.bytes_per_second = 1e9, .latency_seconds = 1e-5}};
  AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::contiguous, kRanks, borders), .mask = full};
  problem.q_heads = problem.kv_heads = 8, problem.dtype = DType::bf16;
  // Seven hops of a block of keys and values, one after the other.
  const double block = 1024 * 2 * 8 * 64 * 2;
  EXPECT_NEAR(messages_alone(make_plan(problem, {}, Pass::forward), links), 7 * (block / 1e9 + 1e-5), 1e-9);
  // Queries, keys and values out, results back: each exchange fills a rank's port, and then one latency.
  const plan::Plan ulysses = make_plan(problem, {.strategy = "ulysses"}, Pass::forward);
  std::size_t exchanges = 0;
  for (const plan::Step& step : ulysses.programs[0].steps) exchanges += step.op == plan::Op::exchange ? 1 : 0;
  EXPECT_NEAR(messages_alone(ulysses, links), static_cast<double>(bytes_of_rank(ulysses, 0)) / 1e9 + static_cast<double>(exchanges) * 1e-5,
              1e-9);
  // A measured all-to-all takes the links' place: a rank's own part counts.
  const auto nothing = [](const plan::Program&, const plan::Step&) { return 0.0; };
  EXPECT_NEAR(simulate(ulysses, {.compute = nothing, .links = links, .all_to_all = {{8, 1e8}}}).makespan,
              static_cast<double>(bytes_of_rank(ulysses, 0)) * 8 / 7 / 1e8, 1e-9);
  EXPECT_EQ(simulate(ulysses, {.compute = nothing, .links = links, .all_to_all = {{4, 1e8}}}).makespan, messages_alone(ulysses, links));
  // A state goes through seven ranks.
  LinearAttentionProblem linear{.layout = problem.layout};
  linear.heads = 8, linear.dtype = DType::bf16;
  const double state = 8 * 64 * 64 * 4;
  EXPECT_NEAR(messages_alone(make_plan(linear, {.strategy = "lasp"}, Pass::forward), links), 7 * (state / 1e9 + 1e-5), 1e-9);
}

TEST(InTurn, RanksOfAChainComputeOneAfterTheOther) {
  const std::array<std::int64_t, 2> borders{0, 4096};
  LinearAttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::contiguous, 4, borders)};
  problem.heads = 2, problem.dtype = DType::bf16;
  const auto one = [](const plan::Program&, const plan::Step&) { return 1.0; };
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    plan::Plan plan = make_plan(problem, {.strategy = "lasp"}, pass);
    double all = 0;
    for (const plan::Program& program : plan.programs)
      for (const plan::Step& step : program.steps) all += step.op == plan::Op::exchange ? 0 : 1;
    EXPECT_LT(simulate(plan, {.compute = one}).makespan, all);
    in_turn(plan);
    EXPECT_EQ(simulate(plan, {.compute = one}).makespan, all);
  }
}

TEST(Iteration, CountsTheBytesThatItsPlansSend) {
  Training training = over(4, 4096);
  training.recompute = Recompute::none;
  const Shape shape = small_shape();
  const Iteration iteration = simulate_iteration(shape, even_machine(4, 2), training);
  const std::array<std::int64_t, 2> borders{0, 4096};
  AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::zigzag, 4, borders), .mask = Mask({}, borders)};
  problem.q_heads = 4, problem.kv_heads = 2, problem.head_size = 16, problem.dtype = DType::bf16;
  double most = 0;
  for (const Pass pass : {Pass::forward, Pass::backward}) most += static_cast<double>(bytes_of_rank(make_plan(problem, {}, pass), 1));
  // Rank 1 sends to rank 2, in the other node; rank 0 sends as much to rank 1, in its own. Gradients cross nodes, both ways.
  const double gradients = 2 * shape.layers * shape.layer_weights() * 2 * 3 / 4;
  EXPECT_NEAR(iteration.card_bytes, shape.layers * most + gradients, 1e-6 * most);
  EXPECT_NEAR(iteration.link_bytes, shape.layers * most, 1e-6 * most);
}

TEST(Estimate, OffersWhatFitsAndTheLongestSequence) {
  Machine machine = even_machine(4, 4);
  machine.memory_bytes = 8e6;
  const Shape shape = small_shape();
  const Estimate found = estimate(shape, machine, {.tokens = 4096});
  ASSERT_FALSE(found.candidates.empty());
  double last = 1e300;
  for (const Candidate& candidate : found.candidates) {
    EXPECT_LE(candidate.iteration.memory.total(), machine.memory_bytes);
    EXPECT_EQ(candidate.training.devices(), 4);
    EXPECT_LE(candidate.iteration.tokens_per_second(candidate.training), last);
    last = candidate.iteration.tokens_per_second(candidate.training);
  }
  Training most = found.candidates.front().training;
  most.context = 4, most.replicas = 1, most.zero = 3, most.recompute = Recompute::but_attention, most.tokens = found.longest;
  most.attention = found.candidates.front().training.attention, most.tiled_loss = true;
  EXPECT_NEAR(simulate_iteration(shape, machine, most).memory.total() / machine.memory_bytes, 1, 0.03);
  EXPECT_EQ(found.longest_on_host, 0) << "the machine has no link to a host";
  machine.memory_bytes = 1000;
  EXPECT_TRUE(estimate(shape, machine, {.tokens = 4096}).candidates.empty());
  EXPECT_THROW(estimate(shape, machine, {.tokens = 10, .devices = 5}), InvalidArgument);
}

TEST(Estimate, TheLongestSequenceDoesNotDependOnTheOneAskedFor) {
  Machine machine = even_machine(4, 4);
  machine.memory_bytes = 8e6;
  machine.host_bytes_per_second = 1e9;
  const Estimate found = estimate(small_shape(), machine, {.tokens = 64});
  EXPECT_FALSE(estimate(small_shape(), machine, {.tokens = found.longest_on_host * 95 / 100}).candidates.empty());
  for (const std::int64_t tokens : {std::int64_t{4096}, found.longest, found.longest_on_host, std::int64_t{1} << 30}) {
    const Estimate again = estimate(small_shape(), machine, {.tokens = tokens});
    EXPECT_EQ(again.longest, found.longest) << tokens;
    EXPECT_EQ(again.longest_on_host, found.longest_on_host) << tokens;
  }
}

TEST(Estimate, PlansForAThousandRanksAtMost) {
  for (const Candidate& candidate : estimate(small_shape(), even_machine(65535, 8), {.tokens = 4096}).candidates) {
    EXPECT_EQ(candidate.training.context, 1);
  }
}

TEST(Iteration, FasterLinksAndMoreDevicesNeverTakeLonger) {
  double last = 1e300;
  for (const double rate : {1e7, 1e8, 1e9, 1e10}) {
    Machine machine = even_machine(8, 8);
    machine.links.inside.bytes_per_second = rate;
    const double seconds = simulate_iteration(small_shape(), machine, over(8, 16384)).seconds;
    EXPECT_LE(seconds, last * (1 + 1e-12));
    last = seconds;
  }
}

TEST(MemoryOf, CountsWhatIsKept) {
  const Shape shape = small_shape();
  Training training = over(2, 2000);
  training.recompute = Recompute::all, training.zero = 1;
  const Memory all = memory_of(shape, training);
  EXPECT_NEAR(all.states, shape.weights() * (2 + 2 + 12 / 2.0), 1);
  EXPECT_NEAR(all.checkpoints, 3 * 1000 * 64 * 2, 1);
  EXPECT_NEAR(all.logits, 1000 * 100 * 4, 1);
  // A token's values of a layer: 4 hidden, 2 q and 2 kv sizes, and 2 of its feed-forward part; then gradients of the larger half.
  EXPECT_NEAR(all.working, 1000 * 2 * (4 * 64 + 2 * 64 + 2 * 32 + 2 * 256 + 2 * 256), 1);
  EXPECT_NEAR(memory_of(shape, training, 1e6).working, 1000 * 2 * (2 * 448 + 2 * 256) + 1e6, 1);
  training.recompute = Recompute::but_attention;
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 3 * 1000 * (64 * 2 + 64 * 2 + 4 * 4), 1);
  training.recompute = Recompute::but_hidden;
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 3 * 1000 * (64 * 2 + (64 + 256) * 2 + 4 * 4), 1);
  EXPECT_NEAR(memory_of(shape, training).working, 1000 * 2 * (4 * 64 + 2 * 64 + 2 * 32 + 256 + 2 * 256), 1);
  training.recompute = Recompute::none;
  EXPECT_GT(memory_of(shape, training).checkpoints, 2 * all.checkpoints);
  training.zero = 3, training.optimizer_on_host = true;
  EXPECT_NEAR(memory_of(shape, training).states, shape.weights() * 4 / 2.0 + 2 * shape.layer_weights() * 2, 1);
  EXPECT_NEAR(memory_of(shape, training).host, shape.weights() * 12 / 2.0, 1);
  training.checkpoints_on_host = true, training.recompute = Recompute::all;
  EXPECT_NEAR(memory_of(shape, training).host, shape.weights() * 12 / 2.0 + all.checkpoints * (shape.layers - 2) / shape.layers, 1);
  training.recompute = Recompute::but_attention;
  const double input = 1000 * 64 * 2, mixed = 1000 * (64 * 2 + 4 * 4);
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 2 * input + 2 * mixed, 1);
  Shape hybrid = shape;
  hybrid.pattern = "SSL";  // each kind of attention holds two layers of its own
  EXPECT_NEAR(memory_of(hybrid, training).checkpoints, 2 * input + 3 * mixed, 1);
  EXPECT_NEAR(memory_of(hybrid, training).host, memory_of(shape, training).host - mixed, 1);
}

/// As Korthikanti et al. (arXiv 2205.05198) count a layer of Megatron in f16, dropout included: 34 bytes a token and hidden element, ten of
/// them whole on each device of a tensor group that does not split norms; 5 a score of a head.
TEST(MemoryOf, KeptScoresAndMasksAndWholeNorms) {
  Shape shape = small_shape();
  shape.kv_heads = 4, shape.tie_embeddings = true, shape.logit_bytes = 0;
  shape.score_bytes = 5, shape.mask_bytes = 2;
  Training training = over(1, 200);
  training.documents = {150, 50};
  training.recompute = Recompute::none;
  const double scores = 4 * (150.0 * 150 + 50 * 50), element = 200 * 64;
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 3 * (34 * element + 5 * scores) + element, 1) << "and the embedding's mask";
  EXPECT_NEAR(memory_of(shape, training).working, element * 2 * 8 + 2 * scores * 2, 1);
  training.tensor = 2;
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 3 * (34 * element + 5 * scores) / 2 + element / 2, 1);
  training.split_norms = false;
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 3 * (10 * element + (24 * element + 5 * scores) / 2) + element, 1);
  training.tensor = 1, training.context = 2, training.in_flight = 3;  // three micro-batches, each with what goes on to the next stage
  EXPECT_NEAR(memory_of(shape, training).checkpoints, 3 * (3 * (34 * element + 5 * scores) + (1 + 2) * element) / 2, 1);
  training.recompute = Recompute::all;
  EXPECT_NEAR(memory_of(shape, training).working, (element * 2 * (8 + 8) + 5 * scores + element * 2 * 8 + 2 * scores * 2) / 2, 1);
}

void expect_refused(const Training& training, const std::string& reason) {
  try {
    simulate_iteration(small_shape(), even_machine(8, 4), training);
    FAIL() << "not refused: " << reason;
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
  }
}

TEST(Iteration, RefusesWhatCannotBe) {
  expect_refused(over(0, 100), "each must be at least 1");
  expect_refused(over(16, 100), "16 devices (ranks 16 x replicas 1 x tensor 1): machine even has 8");
  Training training = over(1, 100);
  training.zero = 4;
  expect_refused(training, "ZeRO stage 4");
  training = over(1, 100), training.tensor = 3;
  expect_refused(training, "tensor 3 does not divide the 4 heads");
  training = over(1, 100), training.documents = {40, 50};
  expect_refused(training, "documents of 90 tokens in all, for 100");
  training = over(1, 100), training.in_flight = 2;
  expect_refused(training, "only their memory");
  Shape scores = small_shape();
  scores.score_bytes = 5;
  EXPECT_THROW(simulate_iteration(scores, even_machine(8, 4), over(1, 100)), InvalidArgument);
}

}  // namespace
}  // namespace periplus::simulate
