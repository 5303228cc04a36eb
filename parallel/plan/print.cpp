#include "parallel/plan/print.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "parallel/plan/ops.h"

namespace periplus::plan {
namespace {

using Json = nlohmann::ordered_json;

std::string_view role_name(Role role) {
  switch (role) {
    case Role::input:
      return "input";
    case Role::output:
      return "output";
    case Role::saved:
      return "saved";
    case Role::scratch:
      return "scratch";
  }
  return "?";
}

std::string_view transition_name(kernels::Transition transition) {
  switch (transition) {
    case kernels::Transition::identity:
      return "identity";
    case kernels::Transition::scalar:
      return "scalar";
    case kernels::Transition::diagonal:
      return "diagonal";
    case kernels::Transition::dense:
      return "dense";
  }
  return "?";
}

std::string queue_name(const Step& step) { return step.op == Op::exchange ? fmt::format("lane {}", step.lane) : "compute"; }

std::string label_of(const Step& step) {
  return step.label.index < 0 ? step.label.text : fmt::format("{} {}", step.label.text, step.label.index);
}

/// "k.0[0:4]", with heads only where they are a part: "q[0:4, heads 2:3]".
std::string view_text(const Program& program, const View& view) {
  const Slot& slot = program.slot_of(view);
  const std::string rows = fmt::format("{}:{}", view.row0, view.row0 + view.rows);
  if (view.heads == slot.heads) return fmt::format("{}[{}]", slot.name, rows);
  return fmt::format("{}[{}, heads {}:{}]", slot.name, rows, view.head0, view.head0 + view.heads);
}

std::string bound_text(std::int64_t bound) {
  if (bound <= -kUnbounded / 2) return "-inf";
  return bound >= kUnbounded / 2 ? "inf" : std::to_string(bound);
}

std::string step_text(const Program& program, std::size_t id) {
  const Step& step = program.steps[id];
  const OpInfo& op = info(step.op);
  std::string line = fmt::format("  {:>4}  {:<8} {:<16} {:<14}", id, queue_name(step), op.name, label_of(step));
  const auto accesses = program.accesses_of(step);
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    if (accesses[i].view.present())
      line += fmt::format(" {}:{}={}", op.operands[i].name, letter(accesses[i].mode), view_text(program, accesses[i].view));
  }
  for (const Message& m : program.sends_of(step))
    line += fmt::format(" send {} -> {} ({} B)", view_text(program, m.view), m.peer, program.bytes_of(m.view));
  for (const Message& m : program.receives_of(step))
    line += fmt::format(" recv {} <- {} ({} B)", view_text(program, m.view), m.peer, program.bytes_of(m.view));
  if (step.op == Op::exchange) line += fmt::format(" phase {}", step.phase);
  if (step.moves.count > 0) line += fmt::format(" in {} moves", step.moves.count);
  if (step.bands.count > 0) {
    std::int64_t pairs = 0;
    for (const Band& band : program.bands_of(step)) pairs += area(band);
    line += fmt::format(" bands {} ({} {})", step.bands.count, pairs, pairs == 1 ? "pair" : "pairs");
  }
  if (step.runs.count > 0) line += fmt::format(" runs {}", step.runs.count);
  for (const kernels::UnitFold& fold : program.folds_of(step)) line += fmt::format(" fold {}:{} to {}", fold.begin, fold.end, fold.target);
  if (step.transition != kernels::Transition::identity) line += fmt::format(" {}", transition_name(step.transition));
  if (step.reverse) line += " reverse";
  if (step.mirrored) line += " mirrored";
  if (step.after.count > 0) line += fmt::format(" after {}", fmt::join(program.after_of(step), ","));
  return line + "\n";
}

Json view_json(const Program& program, const View& view) {
  if (!view.present()) return nullptr;
  return {
      {"slot", program.slot_of(view).name}, {"rows", {view.row0, view.row0 + view.rows}}, {"heads", {view.head0, view.head0 + view.heads}}};
}

Json message_json(const Program& program, const Message& message) {
  return {{"peer", message.peer}, {"view", view_json(program, message.view)}, {"bytes", program.bytes_of(message.view)}};
}

Json step_json(const Program& program, std::size_t id) {
  const Step& step = program.steps[id];
  const OpInfo& op = info(step.op);
  Json json{{"id", id}, {"op", op.name}, {"queue", queue_name(step)}, {"label", label_of(step)}};
  const auto accesses = program.accesses_of(step);
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    json["operands"].push_back({{"name", op.operands[i].name},
                                {"mode", std::string(1, letter(accesses[i].mode))},
                                {"view", view_json(program, accesses[i].view)}});
  }
  if (step.op == Op::exchange) {
    json["phase"] = step.phase;
    json["sends"] = json["receives"] = Json::array();
    for (const Message& m : program.sends_of(step)) json["sends"].push_back(message_json(program, m));
    for (const Message& m : program.receives_of(step)) json["receives"].push_back(message_json(program, m));
  }
  if (step.op == Op::attend || step.op == Op::attend_backward) {
    json["scale"] = step.scale;
    json["softcap"] = step.softcap;
    json["bands"] = Json::array();
    for (const Band& b : program.bands_of(step)) {
      json["bands"].push_back({{"q", {b.q0, b.q1}}, {"k", {b.k0, b.k1}}, {"lo", bound_text(b.lo)}, {"hi", bound_text(b.hi)}});
    }
  }
  if (step.runs.count > 0) json["scale"] = step.scale;
  if (step.runs.count + step.folds.count > 0) json["transition"] = transition_name(step.transition);
  for (const kernels::UnitRun& run : program.runs_of(step)) {
    json["runs"].push_back({{"row0", run.row0}, {"rows", run.rows}, {"unit", run.unit}, {"enters", run.enters}, {"leaves", run.leaves}});
  }
  if (step.mirrored) json["mirrored"] = true;
  if (step.op == Op::normalise) json["epsilon"] = step.epsilon;
  if (step.op == Op::unit_scan) json["reverse"] = step.reverse;
  for (const kernels::UnitFold& fold : program.folds_of(step)) {
    json["folds"].push_back({{"target", fold.target}, {"begin", fold.begin}, {"end", fold.end}});
  }
  for (const RowMove& move : program.moves_of(step)) {
    Json& entry = json["moves"].emplace_back(Json{{"from", move.from}, {"to", move.to}, {"rows", move.rows}});
    if (move.from_stride != 1) entry["from_stride"] = move.from_stride;
    if (move.to_stride != 1) entry["to_stride"] = move.to_stride;
  }
  json["after"] = program.after_of(step);
  return json;
}

}  // namespace

std::string to_text(const Program& program) {
  std::string text = fmt::format("rank {}: {} steps, workspace {} bytes, sends {} bytes\n", program.rank, program.steps.size(),
                                 program.workspace_bytes, program.bytes_sent());
  for (const Slot& slot : program.slots) {
    text += fmt::format("  slot  {:<10} {:<8} {} [{}, {}, {}]", slot.name, role_name(slot.role), to_string(slot.dtype), slot.rows,
                        slot.heads, slot.width);
    text += slot.role == Role::scratch ? fmt::format(" at {}\n", slot.offset) : "\n";
  }
  for (std::size_t id = 0; id < program.steps.size(); ++id) text += step_text(program, id);
  return text;
}

std::string to_json(const Program& program) {
  Json json{{"rank", program.rank}, {"workspace_bytes", program.workspace_bytes}, {"bytes_sent", program.bytes_sent()}};
  json["slots"] = json["steps"] = Json::array();
  for (const Slot& slot : program.slots) {
    Json row{{"name", slot.name},
             {"role", role_name(slot.role)},
             {"dtype", to_string(slot.dtype)},
             {"shape", {slot.rows, slot.heads, slot.width}}};
    if (slot.role == Role::scratch) row["offset"] = slot.offset;
    json["slots"].push_back(std::move(row));
  }
  for (std::size_t id = 0; id < program.steps.size(); ++id) json["steps"].push_back(step_json(program, id));
  return json.dump(1);
}

}  // namespace periplus::plan
