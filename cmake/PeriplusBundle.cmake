# Target gpu-bundle: a folder that tests and measures GPUs on machines where nothing of ours is installed.
set(programs periplus)
if(PERIPLUS_BUILD_TESTS)
  list(APPEND programs gpu_tests)
endif()
list(TRANSFORM programs REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE files)
add_custom_target(gpu-bundle
  COMMAND ${PROJECT_SOURCE_DIR}/launch/gpu_bundle/make ${PROJECT_BINARY_DIR}/gpu-bundle ${files}
  DEPENDS ${programs} VERBATIM)
