#include "kernels/cuda/cublaslt.h"

#include <cstdlib>
#include <optional>
#include <vector>

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace periplus::kernels::cuda {
namespace {

std::vector<std::string> places() {
  const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
  std::vector<std::string> all = {name};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* const folder = std::getenv(variable)) all.push_back(fmt::format("{}/lib64/{}", folder, name));
  }
  all.push_back("/usr/local/cuda/lib64/" + name);
  return all;
}

struct Found {
  std::optional<CublasLt> functions;
  std::string why;
};

template <class Function>
bool load(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Found search() {
  void* library = nullptr;
  for (const std::string& place : places()) {
    library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    return {{}, fmt::format("cuBLASLt is missing (looked for {}); install the CUDA libraries or set CUDA_HOME", fmt::join(places(), ", "))};
  }
  CublasLt f{};
  const bool complete =
      load(library, "cublasLtCreate", f.create) && load(library, "cublasLtMatmulDescCreate", f.describe_product) &&
      load(library, "cublasLtMatmulDescSetAttribute", f.set_product) && load(library, "cublasLtMatmulDescDestroy", f.forget_product) &&
      load(library, "cublasLtMatrixLayoutCreate", f.describe_matrix) && load(library, "cublasLtMatrixLayoutDestroy", f.forget_matrix) &&
      load(library, "cublasLtMatmulPreferenceCreate", f.make_preference) &&
      load(library, "cublasLtMatmulPreferenceSetAttribute", f.set_preference) &&
      load(library, "cublasLtMatmulPreferenceDestroy", f.forget_preference) && load(library, "cublasLtMatmulAlgoGetHeuristic", f.choose) &&
      load(library, "cublasLtMatmul", f.multiply) && load(library, "cublasLtGetStatusString", f.status_text);
  if (!complete) return {{}, "the cuBLASLt that was found lacks functions; install that of the CUDA toolkit this build was made with"};
  return {f, ""};
}

}  // namespace

const CublasLt* CublasLt::find(std::string* why) {
  static const Found found = search();
  if (why != nullptr) *why = found.why;
  return found.functions ? &*found.functions : nullptr;
}

}  // namespace periplus::kernels::cuda
