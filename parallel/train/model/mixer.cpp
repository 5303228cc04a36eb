#include "parallel/train/model/mixer.h"

#include <algorithm>
#include <array>

namespace periplus::train {
namespace {

bool is_mamba2(const ModelConfig& model) { return model.gate == "mamba2"; }

std::vector<ParameterShape> gated_parameters(const ModelConfig& model) {
  return is_mamba2(model) ? mamba2_parameters(model) : linear_parameters(model);
}
std::unique_ptr<Mixer> make_gated_mixer(const MixerSetup& setup) {
  return is_mamba2(setup.model) ? make_mamba2_mixer(setup) : make_linear_mixer(setup);
}

constexpr std::array kKinds = {
    MixerKind{'S', "softmax attention", false, softmax_parameters, make_softmax_mixer},
    MixerKind{'W', "softmax attention in a window", false, softmax_parameters, make_window_mixer},
    MixerKind{'L', "linear attention with model.gate", true, gated_parameters, make_gated_mixer},
    MixerKind{'D', "gated delta rule", true, delta_parameters, make_delta_mixer},
};

}  // namespace

std::span<const MixerKind> mixer_kinds() { return kKinds; }

const MixerKind* find_mixer_kind(char letter) {
  const auto found = std::ranges::find(kKinds, letter, &MixerKind::letter);
  return found == kKinds.end() ? nullptr : &*found;
}

}  // namespace periplus::train
