#include "parallel/execute/resolve_slots.h"

#include <cstdint>
#include <functional>

#include <fmt/format.h>

#include "parallel/plan/arena.h"
#include "runtime/error.h"

namespace periplus::execute {
namespace {

using plan::Program;
using plan::Role;
using plan::Slot;

Extents shape_of(const Slot& slot) { return {slot.rows, slot.heads, slot.width}; }

bool written(const Slot& slot) { return slot.role == Role::output || slot.role == Role::saved; }

void check_binding(const Program& program, const Slot& slot, const TensorView& tensor) {
  const bool as_planned = slot.role != Role::scratch && tensor.dtype() == slot.dtype && tensor.shape() == shape_of(slot);
  const bool has_rows = tensor.elements() > 0;
  const bool gaps_in_widths = as_planned && has_rows && slot.width > 1 && tensor.stride(2) != 1;
  if (!as_planned || gaps_in_widths || (slot.contiguous && !tensor.contiguous())) {
    const std::string strides = tensor.contiguous() ? "" : fmt::format(" and strides {}", to_string(tensor.strides()));
    throw InvalidArgument(fmt::format("execute: rank {} binds '{}' to a {} tensor of shape {}{}, the plan has {} {}{}", program.rank,
                                      slot.name, to_string(tensor.dtype()), to_string(tensor.shape()), strides, to_string(slot.dtype),
                                      to_string(shape_of(slot)),
                                      slot.contiguous  ? ", contiguous"
                                      : gaps_in_widths ? " with contiguous widths"
                                                       : ""));
  }
  if (has_rows && tensor.bytes() == nullptr) {
    throw InvalidArgument(fmt::format("execute: rank {} binds '{}' to a tensor of shape {} without memory", program.rank, slot.name,
                                      to_string(tensor.shape())));
  }
}

void check_workspace(const Program& program, const TensorView& workspace) {
  if (workspace.dtype() != DType::u8 || !workspace.contiguous()) {
    throw InvalidArgument(fmt::format("execute: the workspace is a {} tensor of shape {}, and contiguous u8 is needed",
                                      to_string(workspace.dtype()), to_string(workspace.shape())));
  }
  if (workspace.elements() < program.workspace_bytes) {
    throw InvalidArgument(
        fmt::format("execute: the workspace holds {} bytes, the program needs {}", workspace.elements(), program.workspace_bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.bytes()) % plan::kArenaAlignment != 0)
    throw InvalidArgument(fmt::format("execute: the workspace does not begin at a multiple of {} bytes", plan::kArenaAlignment));
}

/// Of tensors with gaps nothing is said: rows of one may lie between those of another.
bool share_memory(const TensorView& a, const TensorView& b) {
  if (!a.contiguous() || !b.contiguous() || a.elements() == 0 || b.elements() == 0) return false;
  const std::less<> before;
  return before(a.bytes(), b.bytes() + b.size_bytes()) && before(b.bytes(), a.bytes() + a.size_bytes());
}

void check_results(const Program& program, const std::vector<TensorView>& slots) {
  std::vector<std::size_t> bound;
  for (std::size_t id = 0; id < slots.size(); ++id) {
    if (program.slots[id].role == Role::scratch) continue;
    for (const std::size_t other : bound) {
      const Slot &a = program.slots[other], &b = program.slots[id];
      if (!(written(a) || written(b)) || !share_memory(slots[other], slots[id])) continue;
      throw InvalidArgument(
          fmt::format("execute: rank {}: the tensors bound to '{}' and '{}' share memory; results need memory of their own", program.rank,
                      a.name, b.name));
    }
    bound.push_back(id);
  }
}

}  // namespace

std::vector<TensorView> resolve_slots(const Program& program, const Bindings& bindings, TensorView workspace) {
  if (program.workspace_bytes > 0) check_workspace(program, workspace);
  std::vector<TensorView> slots;
  std::vector<bool> bound(program.slots.size(), false);
  for (const Slot& slot : program.slots) {
    slots.emplace_back(slot.role == Role::scratch ? workspace.bytes() + slot.offset : nullptr, slot.dtype, shape_of(slot));
  }
  for (const auto& [name, tensor] : bindings.tensors()) {
    const auto id = static_cast<std::size_t>(program.find_slot(name));
    if (bound[id]) throw InvalidArgument(fmt::format("execute: rank {} binds '{}' twice", program.rank, name));
    check_binding(program, program.slots[id], tensor);
    slots[id] = tensor;
    bound[id] = true;
  }
  for (std::size_t id = 0; id < slots.size(); ++id) {
    if (program.slots[id].role != Role::scratch && !bound[id]) {
      throw InvalidArgument(fmt::format("execute: rank {} does not bind slot '{}'", program.rank, program.slots[id].name));
    }
  }
  check_results(program, slots);
  return slots;
}

}  // namespace periplus::execute
