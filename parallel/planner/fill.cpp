#include "parallel/planner/fill.h"

#include <algorithm>
#include <bit>

namespace periplus::planner {
namespace {

/// A new group must save this share of device-seconds over one that is open.
constexpr double kOpenOnlyFor = 0.005;

}  // namespace

Filler::Filler(const Batch& batch, const Menu& menu) : batch_(batch), menu_(menu), classes_(menu.kinds.size()) {}

int Filler::fitting(int choice, int sequence, double limit) {
  Class& of = classes_[static_cast<std::size_t>(choice)];
  const std::int64_t length = batch_.lengths[static_cast<std::size_t>(sequence)];
  if (of.groups.empty() || of.most_free < length) return -1;
  const double latest = limit - menu_.time(sequence, choice);
  const std::int64_t capacity = menu_.capacity[static_cast<std::size_t>(choice)];
  std::int64_t most_free = 0;
  for (std::size_t g = 0; g < of.groups.size(); ++g) {
    if (of.groups[g].seconds > latest) return -1;  // and so are the rest
    const std::int64_t free = capacity - of.groups[g].tokens;
    if (free >= length) return static_cast<int>(g);
    most_free = std::max(most_free, free);
  }
  of.most_free = most_free;
  return -1;
}

void Filler::add(int choice, int position, double seconds, std::int64_t tokens) {
  std::vector<Open>& groups = classes_[static_cast<std::size_t>(choice)].groups;
  auto at = static_cast<std::size_t>(position);
  Open open = groups[at];
  open.seconds += seconds, open.tokens += tokens;
  for (; at + 1 < groups.size() && groups[at + 1].seconds < open.seconds; ++at) groups[at] = groups[at + 1];
  groups[at] = open;
}

Filler::Place Filler::cheapest(int sequence, double limit, int devices_left) {
  Place open, fresh;
  for (int c = 0; c < menu_.size(); ++c) {
    const auto choice = static_cast<std::size_t>(c);
    const double seconds = menu_.time(sequence, c), work = menu_.degrees[choice] * seconds;
    if (work < open.work) {
      if (const int at = fitting(c, sequence, limit); at >= 0) open = {work, c, at};
    }
    if (work < fresh.work && menu_.degrees[choice] <= devices_left && menu_.start[choice] + seconds <= limit) fresh = {work, c, -1};
  }
  return fresh.work < open.work * (1 - kOpenOnlyFor) ? fresh : open;
}

void Filler::open(int choice, int group) {
  Class& of = classes_[static_cast<std::size_t>(choice)];
  of.groups.insert(of.groups.begin(), {menu_.start[static_cast<std::size_t>(choice)], 0, group});
  of.most_free = menu_.capacity[static_cast<std::size_t>(choice)];
}

void Filler::fill(std::span<const int> offered, double limit, Filling& result) {
  for (Class& of : classes_) of.groups.clear(), of.most_free = 0;
  result.seconds = result.work = 0;
  result.tokens = 0;
  result.choice.clear(), result.rest.clear();
  result.group_of.assign(offered.size(), -1);
  int left = batch_.cost.devices();
  for (std::size_t at = 0; at < offered.size(); ++at) {
    const int sequence = offered[at];
    Place place = cheapest(sequence, limit, left);
    if (place.choice < 0) {
      result.rest.push_back(sequence);
      continue;
    }
    if (place.at < 0) {
      open(place.choice, static_cast<int>(result.choice.size()));
      left -= menu_.degrees[static_cast<std::size_t>(place.choice)];
      result.choice.push_back(place.choice);
      place.at = 0;
    }
    const Open& chosen = classes_[static_cast<std::size_t>(place.choice)].groups[static_cast<std::size_t>(place.at)];
    const double seconds = menu_.time(sequence, place.choice);
    result.group_of[at] = chosen.group;
    result.seconds = std::max(result.seconds, chosen.seconds + seconds);
    result.work += menu_.least_work[static_cast<std::size_t>(sequence)];
    const std::int64_t length = batch_.lengths[static_cast<std::size_t>(sequence)];
    result.tokens += length;
    add(place.choice, place.at, seconds, length);
  }
}

bool fits_side_by_side(const Batch& batch, const Menu& menu, std::span<const int> choices) {
  const int per_node = batch.cost.devices_per_node();
  const auto whole = [](int degree) { return std::has_single_bit(static_cast<unsigned>(degree)); };
  if (whole(per_node) && std::ranges::all_of(menu.degrees, whole)) return true;  // halves of halves always do
  std::vector<int> degrees;
  for (const int choice : choices) degrees.push_back(menu.degrees[static_cast<std::size_t>(choice)]);
  return degrees.empty() || !place(degrees, batch.cost.devices(), per_node).empty();
}

}  // namespace periplus::planner
