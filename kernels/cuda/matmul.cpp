#include "kernels/cuda/matmul.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "kernels/cuda/cublaslt.h"
#include "runtime/cuda/check.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

void check(const CublasLt& library, cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw DeviceError(fmt::format("{} failed: {}", call, library.status_text(status)));
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f32:
      return CUDA_R_32F;
    case DType::f64:
      return CUDA_R_64F;
    default:
      throw_unsupported_dtype(dtype, "matmul on cuda");
  }
}

/// cuBLASLt counts columns first: our row-major c = a b is its c^T = b^T a^T, so b is its first operand.
struct Product {
  std::int64_t m, n, k, a_stride, b_stride, c_stride;
  DType operand, result;
  bool transpose_a, transpose_b;
  std::uint32_t a_alignment, b_alignment, c_alignment;  ///< Of the addresses, in bytes.
  auto operator<=>(const Product&) const = default;
};

/// Largest power of two up to 256 that divides the address.
std::uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data) | 256u;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

/// One product's descriptors and the algorithm chosen for it. Kept for the life of the process.
struct Prepared {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

/// What the products of one stream share: the workspace is in use until they have passed.
class Library {
 public:
  Library(const CublasLt& functions, int device) : functions_(functions) {
    check(functions_, functions_.create(&handle_), "cublasLtCreate");
    workspace_ = periplus::cuda::allocate(device, kWorkspaceBytes);
    if (workspace_ == nullptr)
      throw DeviceError(fmt::format("matmul: cannot allocate {} bytes of workspace on cuda:{}", kWorkspaceBytes, device));
  }

  void multiply(const Product& key, const void* a, const void* b, void* c, bool accumulate, cudaStream_t stream) {
    const auto [entry, added] = prepared_.try_emplace(key);
    if (added) entry->second = prepare(key);
    const Prepared& p = entry->second;
    // Scalars have the type of the sums.
    const double wide[2] = {1, accumulate ? 1.0 : 0.0};
    const float narrow[2] = {1, accumulate ? 1.0f : 0.0f};
    const bool f64 = key.operand == DType::f64;
    const void* const alpha = f64 ? static_cast<const void*>(&wide[0]) : &narrow[0];
    const void* const beta = f64 ? static_cast<const void*>(&wide[1]) : &narrow[1];
    check(functions_,
          functions_.multiply(handle_, p.product, alpha, b, p.b, a, p.a, beta, c, p.c, c, p.c, &p.algorithm, workspace_, kWorkspaceBytes,
                              stream),
          "cublasLtMatmul");
  }

 private:
  cublasLtMatrixLayout_t layout(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride) const {
    cublasLtMatrixLayout_t made = nullptr;
    check(functions_,
          functions_.describe_matrix(&made, type_of(dtype), static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows), stride),
          "cublasLtMatrixLayoutCreate");
    return made;
  }

  Prepared prepare(const Product& key) const {
    Prepared p;
    const cublasComputeType_t sums = key.operand == DType::f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    check(functions_, functions_.describe_product(&p.product, sums, key.operand == DType::f64 ? CUDA_R_64F : CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    const auto flag = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const cublasOperation_t first = flag(key.transpose_b), second = flag(key.transpose_a);
    check(functions_, functions_.set_product(p.product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
          "cublasLtMatmulDescSetAttribute");
    check(functions_, functions_.set_product(p.product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
          "cublasLtMatmulDescSetAttribute");
    p.a = key.transpose_a ? layout(key.operand, key.k, key.m, key.a_stride) : layout(key.operand, key.m, key.k, key.a_stride);
    p.b = key.transpose_b ? layout(key.operand, key.n, key.k, key.b_stride) : layout(key.operand, key.k, key.n, key.b_stride);
    p.c = layout(key.result, key.m, key.n, key.c_stride);
    cublasLtMatmulPreference_t preference = nullptr;
    check(functions_, functions_.make_preference(&preference), "cublasLtMatmulPreferenceCreate");
    check(functions_,
          functions_.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes, sizeof kWorkspaceBytes),
          "cublasLtMatmulPreferenceSetAttribute");
    // Else it takes all for 256: right for whole tensors, wrong for most slices.
    const auto alignment = [&](cublasLtMatmulPreferenceAttributes_t attribute, std::uint32_t bytes) {
      check(functions_, functions_.set_preference(preference, attribute, &bytes, sizeof bytes), "cublasLtMatmulPreferenceSetAttribute");
    };
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b_alignment);
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a_alignment);
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.c_alignment);
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.c_alignment);
    cublasLtMatmulHeuristicResult_t chosen{};
    int found = 0;
    check(functions_, functions_.choose(handle_, p.product, p.b, p.a, p.c, p.c, preference, 1, &chosen, &found),
          "cublasLtMatmulAlgoGetHeuristic");
    functions_.forget_preference(preference);
    if (found == 0) {
      throw DeviceError(fmt::format("matmul: cuBLASLt has no algorithm for {} x {} x {} of {} into {}", key.m, key.n, key.k,
                                    to_string(key.operand), to_string(key.result)));
    }
    p.algorithm = chosen.algo;
    return p;
  }

  const CublasLt& functions_;
  cublasLtHandle_t handle_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::map<Product, Prepared> prepared_;
};

const CublasLt& functions() {
  std::string why;
  const CublasLt* const found = CublasLt::find(&why);
  if (found == nullptr) throw BackendUnavailable("matmul on cuda: " + why);
  return *found;
}

Library& library_of(StreamView stream) {
  static std::mutex mutex;
  // Never destroyed: at exit the driver may be gone before it.
  static auto& all = *new std::map<std::tuple<int, void*>, std::unique_ptr<Library>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Library>& entry = all[{stream.device().index, stream.native()}];
  if (!entry) entry = std::make_unique<Library>(functions(), stream.device().index);
  return *entry;
}

}  // namespace

bool matmul_available(std::string* why) { return CublasLt::find(why) != nullptr; }

void matmul(const MatmulShape& shape, ConstTensorView a, ConstTensorView b, TensorView c, const MatmulOptions& options, StreamView stream) {
  const periplus::cuda::CurrentDevice current(stream.device().index);
  const auto native = static_cast<cudaStream_t>(stream.native());
  const bool accumulate = options.update == Update::accumulate;
  if (shape.k == 0) {
    if (accumulate) return;
    const auto size = size_of(c.dtype());
    return periplus::cuda::check(cudaMemset2DAsync(c.bytes(), static_cast<std::size_t>(c.stride(0)) * size, 0,
                                                   static_cast<std::size_t>(shape.n) * size, static_cast<std::size_t>(shape.m), native),
                                 "cudaMemset2DAsync");
  }
  const Product key{shape.m,
                    shape.n,
                    shape.k,
                    a.stride(0),
                    b.stride(0),
                    c.stride(0),
                    a.dtype(),
                    c.dtype(),
                    options.transpose_a,
                    options.transpose_b,
                    alignment_of(a.bytes()),
                    alignment_of(b.bytes()),
                    alignment_of(c.bytes())};
  library_of(stream).multiply(key, a.bytes(), b.bytes(), c.bytes(), accumulate, native);
}

}  // namespace periplus::kernels::cuda
