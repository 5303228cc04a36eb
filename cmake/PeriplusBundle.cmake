# Target gpu-bundle: a folder that tests and measures GPUs on machines where nothing of ours is installed.
get_property(gpu_tests GLOBAL PROPERTY PERIPLUS_GPU_TESTS)
set(programs $<TARGET_FILE:periplus>)
foreach(test ${gpu_tests})
  list(APPEND programs $<TARGET_FILE:${test}>)
endforeach()
add_custom_target(gpu-bundle
  COMMAND ${PROJECT_SOURCE_DIR}/launch/gpu_bundle/make ${PROJECT_BINARY_DIR}/gpu-bundle ${programs}
  DEPENDS periplus ${gpu_tests} VERBATIM)
