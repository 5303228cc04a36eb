# COIN-OR's linear programming solver. Debian's coinor-libclp-dev ships pkg-config files but no CMake package. Target: CLP::clp.
find_path(CLP_INCLUDE_DIR coin/Clp_C_Interface.h)
find_library(CLP_LIBRARY Clp)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CLP REQUIRED_VARS CLP_LIBRARY CLP_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "install the Debian package coinor-libclp-dev")
if(CLP_FOUND AND NOT TARGET CLP::clp)
  add_library(CLP::clp UNKNOWN IMPORTED)
  set_target_properties(CLP::clp PROPERTIES IMPORTED_LOCATION ${CLP_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${CLP_INCLUDE_DIR})
endif()
