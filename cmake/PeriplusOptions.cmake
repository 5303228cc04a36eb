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

# No kernel of this version runs on a GPU, so AUTO is OFF for both and ON says so instead of building something that
# would not do what was asked for.
foreach(feature CUDA NCCL)
  if(PERIPLUS_WITH_${feature} STREQUAL ON)
    message(FATAL_ERROR "PERIPLUS_WITH_${feature}=ON: this version of Periplus has no ${feature} back end yet; use AUTO or OFF")
  endif()
endforeach()

message(STATUS "Periplus: MPI ${PERIPLUS_HAS_MPI}, CUDA ${PERIPLUS_HAS_CUDA}, NCCL ${PERIPLUS_HAS_NCCL}")
