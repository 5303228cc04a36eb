#pragma once

#include <string>

#include <cublasLt.h>

namespace periplus::kernels::cuda {

/// The functions of cuBLASLt that we call. The library has several hundred megabytes, so it neither travels with our programs
/// nor is it needed for them to start.
struct CublasLt {
  decltype(&::cublasLtCreate) create;
  decltype(&::cublasLtMatmulDescCreate) describe_product;
  decltype(&::cublasLtMatmulDescSetAttribute) set_product;
  decltype(&::cublasLtMatmulDescDestroy) forget_product;
  decltype(&::cublasLtMatrixLayoutCreate) describe_matrix;
  decltype(&::cublasLtMatrixLayoutDestroy) forget_matrix;
  decltype(&::cublasLtMatmulPreferenceCreate) make_preference;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&::cublasLtMatmulPreferenceDestroy) forget_preference;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) choose;
  decltype(&::cublasLtMatmul) multiply;
  decltype(&::cublasLtGetStatusString) status_text;

  /// Null if the library is missing; then `why` says so.
  static const CublasLt* find(std::string* why = nullptr);
};

}  // namespace periplus::kernels::cuda
