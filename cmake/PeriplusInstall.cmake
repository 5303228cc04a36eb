# install(): headers under include/periplus, libraries, the command, and a package for find_package(periplus).
include(CMakePackageConfigHelpers)
get_property(libraries GLOBAL PROPERTY PERIPLUS_LIBRARIES)
install(TARGETS ${libraries} EXPORT periplus-targets)
# Not those that only our own sources can use: of kernels for one instruction set or device, and around headers of others.
install(DIRECTORY runtime kernels parallel DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/periplus FILES_MATCHING PATTERN "*.h"
  PATTERN kernels/cpu EXCLUDE PATTERN kernels/cuda EXCLUDE PATTERN kernels/no_cuda EXCLUDE PATTERN kernels/mixer EXCLUDE
  PATTERN kernels/operands.h EXCLUDE PATTERN kernels/rows.h EXCLUDE
  PATTERN runtime/no_cuda EXCLUDE PATTERN runtime/cuda/check.h EXCLUDE PATTERN runtime/comm/tcp_connect.h EXCLUDE
  PATTERN "parallel/plan/verify_states_*.h" EXCLUDE PATTERN parallel/plan/failure.h EXCLUDE)
install(FILES periplus.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/periplus)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/periplus)
install(EXPORT periplus-targets NAMESPACE periplus:: DESTINATION ${package_dir})
configure_package_config_file(cmake/periplus-config.cmake.in periplus-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(periplus-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/periplus-config.cmake ${PROJECT_BINARY_DIR}/periplus-config-version.cmake
  cmake/FindxxHash.cmake cmake/FindoneDNN.cmake cmake/FindCLP.cmake DESTINATION ${package_dir})
