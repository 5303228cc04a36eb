# Warnings are errors for our own targets only, and never reach a consumer.
add_library(periplus_warnings INTERFACE)
target_compile_options(periplus_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion;-Wnon-virtual-dtor;-Wold-style-cast;-Woverloaded-virtual;-Werror>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror;-Werror=all-warnings>)

# periplus_library(<name> SOURCES ... [PUBLIC targets...] [PRIVATE targets...])
# Makes static library periplus_<name>, alias periplus::<name>, include root = the repository, installed and exported.
function(periplus_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(periplus_${name} STATIC ${ARG_SOURCES})
  add_library(periplus::${name} ALIAS periplus_${name})
  set_target_properties(periplus_${name} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  target_compile_features(periplus_${name} PUBLIC cxx_std_20)
  target_include_directories(periplus_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/periplus>)
  target_link_libraries(periplus_${name} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE} $<BUILD_INTERFACE:periplus_warnings>)
  set_property(GLOBAL APPEND PROPERTY PERIPLUS_LIBRARIES periplus_${name})
endfunction()
