#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace periplus::launch {

/// "; did you mean 'steps'?" with the most similar of `names`, or "" if none is close. Similar: few edits (insertion,
/// deletion, replacement, swap of neighbours) for the length of the word without its dashes and table.
std::string did_you_mean(std::string_view wrong, const std::vector<std::string>& names);

}  // namespace periplus::launch
