#include "kernels/cuda/schedule.h"

#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "tests/kernels/attention_cases.h"

// What attention kernels on a GPU do for a list of bands, read on the CPU.
namespace periplus::kernels::cuda {
namespace {

struct Problem {
  std::vector<Band> bands;
  std::int64_t query_rows, key_rows;
};

Problem random_problem(std::mt19937_64& random) {
  const std::int64_t queries = test::pick_of(random, {1, 40, 64, 129, 300}), keys = test::pick_of(random, {1, 50, 64, 200, 257});
  return {test::random_bands(random, queries, keys), queries, keys};
}

bool mask_allows(const MaskBand& band, std::int64_t q, std::int64_t k) {
  return q >= band.q0 && q < band.q1 && k >= band.k0 && k < band.k1 && k - q >= band.lo && k - q <= band.hi;
}

/// How often a schedule computes each pair [query][key].
std::vector<std::vector<int>> computed_pairs(const Schedule& schedule, RowAxis axis, const Problem& problem) {
  std::vector<std::vector<int>> count(static_cast<std::size_t>(problem.query_rows),
                                      std::vector<int>(static_cast<std::size_t>(problem.key_rows), 0));
  for (const RowTile& row : schedule.rows) {
    for (std::int32_t c = row.first; c < row.first + row.columns; ++c) {
      const ColumnTile& tile = schedule.columns[static_cast<std::size_t>(c)];
      for (std::int64_t r = row.begin; r < row.begin + row.count; ++r) {
        for (std::int64_t column = tile.begin; column < tile.begin + tile.count; ++column) {
          const std::int64_t q = axis == RowAxis::query ? r : column, k = axis == RowAxis::query ? column : r;
          bool allowed = tile.masks == 0;
          for (std::int32_t m = tile.first_mask; m < tile.first_mask + tile.masks; ++m) {
            allowed = allowed || mask_allows(schedule.masks[static_cast<std::size_t>(m)], q, k);
          }
          if (allowed) ++count.at(static_cast<std::size_t>(q)).at(static_cast<std::size_t>(k));
        }
      }
    }
  }
  return count;
}

TEST(Schedule, ComputesEveryAllowedPairOnce) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 60; ++i) {
    const Problem problem = random_problem(random);
    for (const RowAxis axis : {RowAxis::query, RowAxis::key}) {
      for (const auto& [fixed, cut] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
        const Schedule schedule = make_schedule(problem.bands, axis, problem.query_rows, problem.key_rows, {64, 32, fixed, cut});
        const auto count = computed_pairs(schedule, axis, problem);
        for (std::int64_t q = 0; q < problem.query_rows; ++q) {
          for (std::int64_t k = 0; k < problem.key_rows; ++k) {
            ASSERT_EQ(count[static_cast<std::size_t>(q)][static_cast<std::size_t>(k)], test::allowed(problem.bands, q, k) ? 1 : 0)
                << "problem " << i << ", pair " << q << ", " << k << (fixed ? ", fixed columns" : "") << (cut ? ", cut rows" : "");
          }
        }
      }
    }
  }
}

TEST(Schedule, HoldsEveryRowAndThoseWithoutWorkLast) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 40; ++i) {
    const Problem problem = random_problem(random);
    for (const auto& [fixed, cut] : {std::pair{false, false}, {true, false}, {false, true}}) {
      const Schedule schedule = make_schedule(problem.bands, RowAxis::key, problem.query_rows, problem.key_rows, {64, 32, fixed, cut});
      std::set<std::int64_t> rows;
      for (const RowTile& row : schedule.rows) {
        for (std::int64_t r = row.begin; r < row.begin + row.count; ++r) EXPECT_TRUE(rows.insert(r).second);
      }
      EXPECT_EQ(static_cast<std::int64_t>(rows.size()), problem.key_rows);
      for (std::size_t at = 0; at < schedule.rows.size(); ++at) {
        EXPECT_EQ(schedule.rows[at].columns > 0, static_cast<std::int32_t>(at) < schedule.reached_rows);
      }
    }
  }
}

std::vector<Band> causal_documents(std::initializer_list<std::int64_t> lengths) {
  std::vector<Band> documents;
  std::int64_t at = 0;
  for (const std::int64_t length : lengths) {
    documents.push_back({at, at + length, at, at + length, -kUnbounded, 0});
    at += length;
  }
  return documents;
}

// All row tiles of a document, the longest document first; within one the longest row tile first.
TEST(Schedule, HandsOutOneDocumentAfterTheOther) {
  std::vector<Band> documents = causal_documents({256, 1024, 100, 512});
  const std::int64_t at = documents.back().q1;
  documents.push_back({at + 300, at + 400, 0, 100, -kUnbounded, kUnbounded});  // and 300 rows that see nothing before them
  const Schedule schedule = make_schedule(documents, RowAxis::query, at + 400, at, {128, 128, false, true});
  std::vector<std::int32_t> begins;
  for (const RowTile& row : schedule.rows) begins.push_back(row.begin);
  EXPECT_EQ(begins, (std::vector<std::int32_t>{1152, 1024, 896, 768, 640, 512, 384, 256,  // of 1,024 tokens
                                               1764, 1636, 1508, 1380,                    // of 512
                                               128, 0,                                    // of 256
                                               1280, 2192,                                // of 100, and those that see 100
                                               1892, 2020, 2148}));                       // nothing
}

TEST(Schedule, HandsOutTheLongestRowTileOfOneDocumentFirst) {
  for (const std::int64_t window : {kUnbounded, std::int64_t{300}}) {
    const Schedule schedule =
        make_schedule(std::vector<Band>{{0, 3000, 0, 3000, -window, 0}}, RowAxis::query, 3000, 3000, {128, 128, false});
    for (std::size_t at = 1; at < schedule.rows.size(); ++at) EXPECT_LE(schedule.rows[at].columns, schedule.rows[at - 1].columns);
  }
}

// Documents of 200, 8, 100 and 300 rows: a row tile ends where one begins, but for the 8 rows, which are fewer than 16.
TEST(Schedule, CutsRowsWhereDocumentsBegin) {
  const std::vector<Band> documents = causal_documents({200, 8, 100, 300});
  const std::int64_t at = documents.back().q1;
  const auto make = [&](bool cut) { return make_schedule(documents, RowAxis::query, at, at, {128, 128, false, cut}); };
  Schedule schedule = make(true);
  std::ranges::sort(schedule.rows, {}, &RowTile::begin);
  std::vector<std::int32_t> ends;
  for (const RowTile& row : schedule.rows) ends.push_back(row.begin + row.count);
  EXPECT_EQ(ends, (std::vector<std::int32_t>{128, 208, 308, 436, 564, 608}));
  const auto masked = [](const Schedule& all) {
    return std::ranges::count_if(all.columns, [](const ColumnTile& c) { return c.masks > 0; });
  };
  EXPECT_LT(masked(schedule), masked(make(false)));
  // Rows that a row tile lacks need no mask, since nothing is stored of them: of 44 rows, the first two tiles of keys have none.
  const RowTile& last = schedule.rows.back();
  ASSERT_EQ(last.columns, 3);
  EXPECT_EQ(schedule.columns[static_cast<std::size_t>(last.first)].masks, 0);
  EXPECT_EQ(schedule.columns[static_cast<std::size_t>(last.first) + 1].masks, 0);
  EXPECT_GT(schedule.columns[static_cast<std::size_t>(last.first) + 2].masks, 0);
}

// A band that begins in the middle of a document, as that of its first keys does beside a window, is no place to cut.
TEST(Schedule, DoesNotCutRowsInsideDocuments) {
  const std::vector<Band> bands = {{0, 256, 0, 256, -99, 0}, {100, 256, 0, 1, -kUnbounded, -100}, {256, 400, 256, 400, -99, 0}};
  Schedule schedule = make_schedule(bands, RowAxis::query, 400, 400, {128, 128, false, true});
  std::ranges::sort(schedule.rows, {}, &RowTile::begin);
  std::vector<std::int32_t> ends;
  for (const RowTile& row : schedule.rows) ends.push_back(row.begin + row.count);
  EXPECT_EQ(ends, (std::vector<std::int32_t>{128, 256, 384, 400}));
}

TEST(Schedule, KeepsTheFirstMaskBesideTheTile) {
  std::mt19937_64 random(3);
  const Problem problem = random_problem(random);
  const Schedule schedule = make_schedule(problem.bands, RowAxis::query, problem.query_rows, problem.key_rows, {64, 32, false});
  for (const ColumnTile& tile : schedule.columns) {
    if (tile.masks == 0) continue;
    const MaskBand& first = schedule.masks[static_cast<std::size_t>(tile.first_mask)];
    EXPECT_EQ(tile.mask.q0, first.q0);
    EXPECT_EQ(tile.mask.k1, first.k1);
    EXPECT_EQ(tile.mask.hi, first.hi);
  }
  // The copy engine brings a tile to shared memory in multiples of 16 bytes.
  EXPECT_EQ(sizeof(ColumnTile) % 16, 0U);
  EXPECT_EQ(alignof(ColumnTile), 16U);
}

/// Plays the sums of column tiles on so many blocks: each takes rows in the order of the schedule and waits for its turn.
/// Returns how often a column tile was added to; empty if nothing moves any more.
std::map<std::int32_t, std::int32_t> play_turns(const Schedule& schedule, std::size_t blocks) {
  struct Block {
    std::size_t row;
    std::int32_t step;
  };
  std::map<std::int32_t, std::int32_t> turns;
  std::vector<Block> running;
  std::size_t next = 0;
  while (next < schedule.rows.size() || !running.empty()) {
    while (running.size() < blocks && next < schedule.rows.size()) running.push_back({next++, 0});
    bool moved = false;
    for (Block& block : running) {
      const RowTile& row = schedule.rows[block.row];
      if (block.step == row.columns) continue;
      const ColumnTile& tile = schedule.columns[static_cast<std::size_t>(row.first + block.step)];
      if (turns[tile.begin] != tile.turn) continue;
      ++turns[tile.begin];
      ++block.step;
      moved = true;
    }
    moved |= std::erase_if(running, [&](const Block& block) { return block.step == schedule.rows[block.row].columns; }) > 0;
    if (!moved) return {};
  }
  return turns;
}

TEST(Schedule, TurnsNeverDeadlock) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 40; ++i) {
    const Problem problem = random_problem(random);
    const Schedule schedule = make_schedule(problem.bands, RowAxis::key, problem.query_rows, problem.key_rows, {32, 16, true});
    if (schedule.columns.empty()) continue;
    for (const std::size_t blocks : {1, 2, 5, 100}) {
      const auto turns = play_turns(schedule, blocks);
      ASSERT_FALSE(turns.empty()) << "problem " << i << " stands still on " << blocks << " blocks";
      for (const ColumnTile& tile : schedule.columns) EXPECT_EQ(turns.at(tile.begin), tile.turns);
    }
  }
}

TEST(Schedule, NamesTheColumnTilesThatNothingReaches) {
  const Schedule schedule = make_schedule(std::vector<Band>{{10, 20, 0, 64}, {70, 90, 0, 64}}, RowAxis::key, 200, 64, {64, 32, true});
  EXPECT_EQ(schedule.unreached, (std::vector<std::int32_t>{1, 3, 4, 5, 6}));
  EXPECT_EQ(make_schedule({}, RowAxis::key, 64, 64, {64, 32, true}).unreached, (std::vector<std::int32_t>{0, 1}));
}

// With a causal mask the rows of a head reach different column tiles at a time, so nobody waits for a turn.
TEST(Schedule, CausalRowsDoNotMeet) {
  const std::int64_t rows = 2048;
  const Schedule schedule = make_schedule(std::vector<Band>{{0, rows, 0, rows, -kUnbounded, 0}}, RowAxis::key, rows, rows, {128, 64, true});
  ASSERT_EQ(schedule.rows.size(), 16U);
  for (std::size_t at = 1; at < schedule.rows.size(); ++at) EXPECT_GT(schedule.rows[at - 1].begin, schedule.rows[at].begin);
  std::set<std::pair<std::int32_t, std::int32_t>> met;
  for (const RowTile& row : schedule.rows) {
    for (std::int32_t step = 0; step < row.columns; ++step) {
      EXPECT_TRUE(met.insert({step, schedule.columns[static_cast<std::size_t>(row.first + step)].begin}).second);
    }
  }
}

}  // namespace
}  // namespace periplus::kernels::cuda
