# PERIPLUS_WITH_X = AUTO (use what is found) | ON (missing is an error that names the package) | OFF.
# Result: PERIPLUS_HAS_X, TRUE or FALSE.
foreach(feature MPI CUDA NCCL)
  set(PERIPLUS_WITH_${feature} AUTO CACHE STRING "Build with ${feature}: AUTO, ON or OFF")
  set_property(CACHE PERIPLUS_WITH_${feature} PROPERTY STRINGS AUTO ON OFF)
  if(NOT PERIPLUS_WITH_${feature} MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "PERIPLUS_WITH_${feature} is '${PERIPLUS_WITH_${feature}}'; use AUTO, ON or OFF")
  endif()
  set(PERIPLUS_HAS_${feature} FALSE)
endforeach()

if(NOT PERIPLUS_WITH_MPI STREQUAL OFF)
  set(MPI_CXX_SKIP_MPICXX TRUE)  # the C interface only
  find_package(MPI QUIET COMPONENTS CXX)
  set(PERIPLUS_HAS_MPI ${MPI_CXX_FOUND})
  if(PERIPLUS_WITH_MPI STREQUAL ON AND NOT PERIPLUS_HAS_MPI)
    message(FATAL_ERROR "PERIPLUS_WITH_MPI=ON but no MPI was found; install the Debian packages libopenmpi-dev and openmpi-bin")
  endif()
endif()

# AUTO builds for the GPU only where both a GPU and the toolkit are found. The first is looked for first: it is cheap.
set(PERIPLUS_GPU_DEVICE_FILE /dev/nvidiactl CACHE FILEPATH "Exists where there is an NVIDIA GPU with its driver")
mark_as_advanced(PERIPLUS_GPU_DEVICE_FILE)
if(PERIPLUS_WITH_CUDA STREQUAL ON OR (PERIPLUS_WITH_CUDA STREQUAL AUTO AND EXISTS ${PERIPLUS_GPU_DEVICE_FILE}))
  include(CheckLanguage)
  check_language(CUDA)
  find_package(CUDAToolkit 12.4 QUIET)
  if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
    set(PERIPLUS_HAS_CUDA TRUE)
  elseif(PERIPLUS_WITH_CUDA STREQUAL ON)
    message(FATAL_ERROR "PERIPLUS_WITH_CUDA=ON but no CUDA toolkit of version 12.4 or newer was found; install it, or set CUDACXX to its nvcc")
  endif()
endif()
if(PERIPLUS_HAS_CUDA)
  # Machine code for the cards the kernels are tuned on, PTX for newer ones.
  set(CMAKE_CUDA_ARCHITECTURES 80-real;90-real;90-virtual CACHE STRING "GPUs that the portable kernels are compiled for")
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)  # only now: CMake's own check of the compiler cannot take it yet
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  foreach(kind STANDARD EXTENSION)  # CMake 3.25 does not know C++20 of nvcc
    if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
      set(CMAKE_CUDA20_${kind}_COMPILE_OPTION -std=c++20)
    endif()
  endforeach()
endif()

# NCCL moves device memory only, so AUTO wants CUDA.
if(PERIPLUS_WITH_NCCL STREQUAL ON AND NOT PERIPLUS_HAS_CUDA)
  message(FATAL_ERROR "PERIPLUS_WITH_NCCL=ON needs CUDA; configure with -DPERIPLUS_WITH_CUDA=ON too")
endif()
if(PERIPLUS_HAS_CUDA AND NOT PERIPLUS_WITH_NCCL STREQUAL OFF)
  find_package(NCCL MODULE QUIET)
  set(PERIPLUS_HAS_NCCL ${NCCL_FOUND})
  if(PERIPLUS_WITH_NCCL STREQUAL ON AND NOT PERIPLUS_HAS_NCCL)
    message(FATAL_ERROR "PERIPLUS_WITH_NCCL=ON but nccl.h or libnccl was not found; install NVIDIA's packages libnccl2 and libnccl-dev, or set NCCL_ROOT")
  endif()
endif()

message(STATUS "Periplus: MPI ${PERIPLUS_HAS_MPI}, CUDA ${PERIPLUS_HAS_CUDA}, NCCL ${PERIPLUS_HAS_NCCL}")
