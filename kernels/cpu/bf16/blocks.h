// Blocks of packed keys and values, which the items of a head share. Included by forward_run.h.
#pragma once

#include <sched.h>

#include "kernels/cpu/bf16/kernels.h"
#include "kernels/cpu/bf16/pack.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kUnitsPerBlock = bf16::kBlock / bf16::kUnit;

/// A unit of keys and values, as rows and packed.
struct KeyUnit {
  const bfloat16 *k, *v;
  std::int64_t keys;  ///< That exist.
  bfloat16 *to_keys, *to_values;
  std::uint8_t* poisoned;
};
inline std::int64_t key_steps(const AttentionShape& shape) { return bf16::padded(shape.width_qk) / bf16::kUnit; }
inline std::int64_t value_pairs(const AttentionShape& shape) { return bf16::padded(shape.width_v) / bf16::kUnit; }
constexpr std::int64_t kValuePairStride = kUnitsPerBlock * 2 * kTile;

inline KeyUnit unit_of(const ForwardProblem<bfloat16, float>& p, const bf16::PackedKeys& packed, std::int64_t block, std::int64_t unit) {
  const std::int64_t local = block * bf16::kBlock + unit * bf16::kUnit, key = packed.first_key + local;
  const std::int64_t slot = packed.slots[block] * packed.block_stride;
  return {p.k.data + packed.kv_head * p.k.head + key * p.k.row,
          p.v.data + packed.kv_head * p.v.head + key * p.v.row,
          larger(0, smaller(bf16::kUnit, packed.keys_end - key)),
          packed.keys + slot + unit * key_steps(p.shape) * 2 * kTile,
          packed.values + slot + unit * 2 * kTile,
          packed.poisoned + local};
}

/// Packs one block of keys and values.
inline void pack_block(const ForwardProblem<bfloat16, float>& p, std::int64_t block, const bf16::PackedKeys& packed) {
  const std::int64_t steps = key_steps(p.shape), pairs = value_pairs(p.shape);
  __builtin_memset(packed.poisoned + block * bf16::kBlock, 0, static_cast<std::size_t>(bf16::kBlock));
  for (std::int64_t i = 0; i < kUnitsPerBlock; ++i) {
    const KeyUnit unit = unit_of(p, packed, block, i);
    pack_rows_as_a(unit.k, p.k.row, unit.keys, p.shape.width_qk, steps, unit.to_keys);
    const bool bad =
        pack_rows_transposed(unit.v, p.v.row, unit.keys, p.shape.width_v, pairs, kValuePairStride, unit.to_values, unit.poisoned);
    if (bad) __atomic_store_n(packed.any_poisoned, std::uint8_t{1}, __ATOMIC_RELAXED);
  }
}

/// Whether nobody has begun to pack the block of a key.
inline bool is_unpacked(const bf16::PackedKeys& packed, std::int64_t key) {
  return __atomic_load_n(packed.blocks + (key - packed.first_key) / bf16::kBlock, __ATOMIC_RELAXED) == bf16::kUnpacked;
}

/// Who changes the list of free slots.
class SpareSlots {
 public:
  explicit SpareSlots(const bf16::PackedKeys& packed) : spare_(packed.spare) {
    while (__atomic_exchange_n(spare_, std::int32_t{1}, __ATOMIC_ACQUIRE) != 0) sched_yield();
  }
  ~SpareSlots() { __atomic_store_n(spare_, std::int32_t{0}, __ATOMIC_RELEASE); }
  SpareSlots(const SpareSlots&) = delete;
  SpareSlots& operator=(const SpareSlots&) = delete;

  std::int32_t take() {
    set(1, spare_[1] - 1);
    return spare_[2 + spare_[1]];
  }
  void give(std::int32_t slot) {
    set(2 + spare_[1], slot);
    set(1, spare_[1] + 1);
  }

 private:
  // next_slot() looks without the lock.
  void set(std::int64_t i, std::int32_t value) { __atomic_store_n(spare_ + i, value, __ATOMIC_RELAXED); }

  std::int32_t* spare_;
};

/// Whether the block is now the caller's to pack, into a slot of its own.
inline bool take_block(const bf16::PackedKeys& packed, std::int64_t block) {
  std::int32_t expected = bf16::kUnpacked;
  if (!__atomic_compare_exchange_n(packed.blocks + block, &expected, std::int32_t{bf16::kBeingPacked}, false, __ATOMIC_RELAXED,
                                   __ATOMIC_RELAXED)) {
    return false;
  }
  __atomic_store_n(packed.slots + block, SpareSlots(packed).take(), __ATOMIC_RELAXED);
  return true;
}
inline void hand_out(const bf16::PackedKeys& packed, std::int64_t block) {
  __atomic_store_n(packed.blocks + block, std::int32_t{bf16::kPacked}, __ATOMIC_RELEASE);
}

/// Packs those blocks of `range` that the item sees and nobody has begun.
inline void pack_range(const ForwardProblem<bfloat16, float>& p, const bf16::ForwardItem& item, KeyRange range) {
  const bf16::PackedKeys& packed = item.packed;
  for (std::int64_t i = 0; i < item.seen_count; ++i) {
    const std::int64_t block = item.seen[i], key = packed.first_key + block * bf16::kBlock;
    if (key < range.begin || key >= range.end || !is_unpacked(packed, key) || !take_block(packed, block)) continue;
    pack_block(p, block, packed);
    hand_out(packed, block);
    item.progress();
  }
}

/// Packs blocks slice by slice, one after the other: whatever of a list nobody else has begun. A thread that has begun one must finish()
/// it before it waits for another's, or two threads could wait for each other.
class BlockPacking {
 public:
  explicit BlockPacking(const ForwardProblem<bfloat16, float>& p) : p_(p) {}
  BlockPacking(const BlockPacking&) = delete;
  BlockPacking& operator=(const BlockPacking&) = delete;

  /// From now on blocks of seen[count] whose keys begin in `keys`.
  void aim(const bf16::PackedKeys& packed, const std::int32_t* seen, std::int64_t count, KeyRange keys) {
    finish();
    packed_ = &packed;
    begun_ = 0;
    next_ = seen;
    while (count > 0 && packed.first_key + *next_ * bf16::kBlock < keys.begin) {
      ++next_;
      --count;
    }
    end_ = next_;
    while (end_ < next_ + count && packed.first_key + *end_ * bf16::kBlock < keys.end) ++end_;
  }
  void aim_at_nothing() {
    finish();
    next_ = end_ = nullptr;
  }

  /// Of all blocks that are left.
  std::int64_t slices() const {
    std::int64_t units = at_work() ? kUnitsPerBlock - unit_ : 0;
    for (const std::int32_t* block = next_; block < end_; ++block) {
      if (is_unpacked(*packed_, packed_->first_key + *block * bf16::kBlock)) units += kUnitsPerBlock;
    }
    return units * unit_slices() - (at_work() ? part_ : 0);
  }
  void slice(std::int64_t /*i*/) {
    if (!at_work() && !begin()) return;
    if (__atomic_load_n(packed_->blocks + block_, __ATOMIC_RELAXED) == bf16::kAwaited) return finish();
    pack_part();
  }
  /// Ends the block at work.
  void finish() {
    while (at_work()) pack_part();
  }

  bool is_at(const bf16::PackedKeys& packed, std::int64_t block) const {
    return at_work() && block == block_ && packed.blocks == packed_->blocks;
  }
  std::int64_t begun() const { return begun_; }

 private:
  static constexpr std::int64_t kKeyParts = 8;  ///< A part is 4 keys, or 8 values of 32 keys.
  std::int64_t unit_slices() const { return kKeyParts + 4 * value_pairs(p_.shape); }
  bool at_work() const { return block_ >= 0; }

  bool begin() {
    while (next_ < end_) {
      const std::int64_t block = *next_++;
      if (!is_unpacked(*packed_, packed_->first_key + block * bf16::kBlock) || !take_block(*packed_, block)) continue;
      __builtin_memset(packed_->poisoned + block * bf16::kBlock, 0, static_cast<std::size_t>(bf16::kBlock));
      block_ = block;
      unit_ = part_ = 0;
      ++begun_;
      return true;
    }
    return false;
  }

  void pack_part() {
    const KeyUnit unit = unit_of(p_, *packed_, block_, unit_);
    if (part_ < kKeyParts) {
      const std::int64_t rows = bf16::kUnit / kKeyParts;
      for (std::int64_t i = 0; i < rows; ++i) {
        pack_row_as_a(unit.k, p_.k.row, unit.keys, p_.shape.width_qk, key_steps(p_.shape), part_ * rows + i, unit.to_keys);
      }
    } else {
      pack_values(unit, (part_ - kKeyParts) / 4, (part_ - kKeyParts) % 4);
    }
    if (++part_ < unit_slices()) return;
    part_ = 0;
    if (++unit_ < kUnitsPerBlock) return;
    hand_out(*packed_, block_);
    block_ = -1;
  }
  [[gnu::always_inline]] void pack_values(const KeyUnit& unit, std::int64_t pair, std::int64_t quarter) {
    bfloat16* to = unit.to_values + pair * kValuePairStride;
    if (quarter == 0) {
      corner_.aim(unit.v + pair * 32, p_.v.row, unit.keys, larger(0, p_.shape.width_v - pair * 32));
      most_ = Brains{};
    }
    pack_8_columns(corner_, 8 * quarter, to, most_);
    const bool bad = quarter == 3 && clean_columns(corner_, most_, to, unit.poisoned);
    if (bad) __atomic_store_n(packed_->any_poisoned, std::uint8_t{1}, __ATOMIC_RELAXED);
  }

  const ForwardProblem<bfloat16, float>& p_;
  const bf16::PackedKeys* packed_ = nullptr;
  const std::int32_t *next_ = nullptr, *end_ = nullptr;
  std::int64_t begun_ = 0;
  std::int64_t block_ = -1, unit_ = 0, part_ = 0;  // at work; block -1: none
  Corner<bfloat16, 32, 32> corner_;
  Brains most_;
};

/// Frees the slots of blocks that nobody will need again.
inline void release_blocks(const bf16::ForwardItem& item) {
  const bf16::PackedKeys& packed = item.packed;
  for (std::int64_t i = 0; i < item.seen_count; ++i) {
    const std::int64_t block = item.seen[i];
    if (__atomic_sub_fetch(packed.uses + block, 1, __ATOMIC_ACQ_REL) == 0) SpareSlots(packed).give(packed.slots[block]);
  }
}

/// Another thread may still be at it: it waits for nobody.
inline void wait_until_packed(const bf16::ForwardItem& item, std::int64_t block, BlockPacking& packing) {
  std::int32_t* state = item.packed.blocks + block;
  if constexpr (Unit::kTilesRunBeside) {
    if (__atomic_load_n(state, __ATOMIC_ACQUIRE) == bf16::kPacked) return;
    packing.finish();
    std::int32_t expected = bf16::kBeingPacked;
    __atomic_compare_exchange_n(state, &expected, std::int32_t{bf16::kAwaited}, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  }
  for (int spins = 0; __atomic_load_n(state, __ATOMIC_ACQUIRE) != bf16::kPacked; ++spins) {
    if (spins % 64 == 63) item.progress();
    if (spins > 100) sched_yield();
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
