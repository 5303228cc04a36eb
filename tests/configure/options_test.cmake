# cmake -DFOLDER=<scratch> [-DNVCC=<compiler>] -P options_test.cmake
# Configures with PERIPLUS_WITH_CUDA and PERIPLUS_WITH_NCCL in their values, with and without toolkit, GPU and NCCL. A file
# stands for the GPU, another for NCCL, and a CUDACXX that does not exist for the missing toolkit.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})
file(TOUCH ${FOLDER}/gpu)
file(WRITE ${FOLDER}/nccl/include/nccl.h "#define NCCL_MAJOR 2\n#define NCCL_MINOR 28\n#define NCCL_PATCH 9\n")
file(WRITE ${FOLDER}/nccl/lib/libnccl.so "")
set(there -DPERIPLUS_GPU_DEVICE_FILE=${FOLDER}/gpu)
set(absent -DPERIPLUS_GPU_DEVICE_FILE=${FOLDER}/none)
set(failures 0)

# expect(<name> <exit code> <text that standard output and error together must hold> <argument>...)
function(expect name code text)
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${FOLDER}/build-${name} -DPERIPLUS_WITH_MPI=OFF ${ARGN}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  string(REGEX REPLACE "[ \n]+" " " said "${output} ${errors}")  # CMake wraps messages
  string(FIND "${said}" "${text}" found)
  if(NOT result EQUAL code OR found EQUAL -1 OR (code EQUAL 0 AND NOT errors STREQUAL ""))
    message(NOTICE "${name}: exit ${result}, wanted ${code} and '${text}'; it said: ${said}")
    math(EXPR failures "${failures} + 1")
    set(failures ${failures} PARENT_SCOPE)
  endif()
endfunction()

set(neither "CUDA FALSE, NCCL FALSE")
expect(no_gpu 0 ${neither} ${absent})
expect(off 0 ${neither} ${there} -DPERIPLUS_WITH_CUDA=OFF)
expect(nccl_without_cuda 1 "PERIPLUS_WITH_NCCL=ON needs CUDA" ${absent} -DPERIPLUS_WITH_NCCL=ON)
expect(no_such_value 1 "PERIPLUS_WITH_CUDA is 'yes'; use AUTO, ON or OFF" -DPERIPLUS_WITH_CUDA=yes)
if(NVCC)
  set(ENV{CUDACXX} ${NVCC})
  expect(everything 0 "CUDA TRUE, NCCL TRUE" ${there} -DNCCL_ROOT=${FOLDER}/nccl)
  expect(nccl_off 0 "CUDA TRUE, NCCL FALSE" ${absent} -DPERIPLUS_WITH_CUDA=ON -DPERIPLUS_WITH_NCCL=OFF)
endif()
set(ENV{CUDACXX} ${FOLDER}/no-nvcc)
expect(no_toolkit 0 ${neither} ${there})
expect(on_without_toolkit 1 "no CUDA toolkit of version 12.4 or newer was found" -DPERIPLUS_WITH_CUDA=ON)

if(failures GREATER 0)
  message(FATAL_ERROR "options: ${failures} cases failed")
endif()
