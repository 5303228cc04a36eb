# cmake -DROOT=<folder> -P layering_test.cmake
# Holds the rules that keep the floors apart: includes point only down, vendor headers stay in their leaf files, and
# algorithm files have no feature #if. Prints each offence as file:line and fails if there is one.
cmake_minimum_required(VERSION 3.25)

set(floors runtime kernels parallel launch interop)
set(may_include_runtime runtime)
set(may_include_kernels runtime kernels)
set(may_include_parallel runtime kernels parallel)
set(may_include_launch runtime kernels parallel launch)
set(may_include_interop ${floors})

# Header pattern, a space, pattern of the files that may include it.
set(vendor_rules
  "^mpi\\.h$ ^runtime/comm/mpi_(process|transport)\\.cpp$"
  "^nccl ^(kernels/cuda/|runtime/cuda/|runtime/comm/nccl)"
  "^(cuda|cublas|cooperative_groups|cub/|thrust/) ^(kernels/cuda/|runtime/cuda/|runtime/comm/nccl)"
  "^(oneapi/)?dnnl ^(kernels/matmul[^/]*\\.cpp|launch/doctor[^/]*|launch/bench/onednn_products\\.cpp)$"
  "^xxhash\\.h$ ^runtime/file\\.cpp$"
  "^coin/ ^parallel/planner/linear_program\\.cpp$"
  "^hwloc ^launch/topology\\.cpp$"
  "^boost/ ^(launch/|runtime/comm/tcp_)"
  "^(toml\\+\\+|toml\\.hpp) ^(launch/|parallel/train/config[^/]*$)")

set(offences 0)

# The line is looked up only here, so that a clean tree is read fast.
function(offence file directive reason)
  file(READ "${ROOT}/${file}" text)
  string(FIND "${text}" "${directive}" position)
  string(SUBSTRING "${text}" 0 ${position} before)
  string(REGEX MATCHALL "\n" breaks "${before}")
  list(LENGTH breaks line)
  math(EXPR line "${line} + 1")
  message(NOTICE "${file}:${line}: ${reason}: ${directive}")
  math(EXPR count "${offences} + 1")
  set(offences ${count} PARENT_SCOPE)
endfunction()

macro(check_own_include file floor header directive)
  string(REGEX MATCH "^[^/]+" included_floor "${header}")
  if(NOT included_floor IN_LIST may_include_${floor} OR "${header}" MATCHES "\\.\\.")
    offence("${file}" "${directive}" "${floor} may include only ${may_include_${floor}}, by paths from the root")
  elseif("${file}" MATCHES "^parallel/plan/" AND "${header}" MATCHES "^(parallel/(execute|strategy|train)/|runtime/comm/|runtime/device\\.h)")
    offence("${file}" "${directive}" "a plan is plain data and knows nothing above it, no device and no transport")
  endif()
endmacro()

macro(check_vendor_include file header directive)
  foreach(rule ${vendor_rules})
    string(REGEX MATCH "^([^ ]+) (.+)$" matched "${rule}")
    set(pattern "${CMAKE_MATCH_1}")
    set(allowed "${CMAKE_MATCH_2}")
    if("${header}" MATCHES "${pattern}" AND NOT "${file}" MATCHES "${allowed}")
      offence("${file}" "${directive}" "vendor header outside its leaf files")
    endif()
  endforeach()
endmacro()

foreach(floor ${floors})
  file(GLOB_RECURSE files RELATIVE "${ROOT}" "${ROOT}/${floor}/*.h" "${ROOT}/${floor}/*.cpp" "${ROOT}/${floor}/*.cuh"
    "${ROOT}/${floor}/*.cu")
  list(SORT files)
  foreach(file ${files})
    file(STRINGS "${ROOT}/${file}" directives REGEX "^[ \t]*#[ \t]*(include|if|ifdef|ifndef|elif)")
    foreach(directive ${directives})
      if("${directive}" MATCHES "#[ \t]*include[ \t]*([\"<])([^\">]+)")
        set(header "${CMAKE_MATCH_2}")
        if("${CMAKE_MATCH_1}" STREQUAL "\"" OR "${header}" MATCHES "^(periplus|runtime|kernels|parallel|launch|interop|tests|examples)[/.]")
          check_own_include("${file}" "${floor}" "${header}" "${directive}")
        else()
          check_vendor_include("${file}" "${header}" "${directive}")
        endif()
      elseif("${directive}" MATCHES "#[ \t]*include")
        offence("${file}" "${directive}" "an include that cannot be checked")
      elseif("${directive}" MATCHES "PERIPLUS_" AND "${file}" MATCHES "^(parallel/|kernels/[^/]+\\.h$)")
        offence("${file}" "${directive}" "feature #if in an algorithm file; choose the source file in CMake instead")
      endif()
    endforeach()
  endforeach()
  list(LENGTH files count)
  math(EXPR total "${total} + ${count}")
endforeach()

if(total EQUAL 0)
  message(FATAL_ERROR "layering: no source files under '${ROOT}'")
elseif(offences GREATER 0)
  message(FATAL_ERROR "layering: ${offences} offences")
endif()
message(STATUS "layering: ${total} files are clean")
