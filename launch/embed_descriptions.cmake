# Writes the descriptions of examples/{models,machines,kernels,lengths} into a source file, so that their names work wherever the
# command is. Sets embedded_descriptions to it.
set(embedded_descriptions ${CMAKE_CURRENT_BINARY_DIR}/built_in_descriptions.cpp)
set(embedded_rows "")
foreach(folder models machines kernels lengths)
  file(GLOB embedded_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/${folder}/*.toml)
  foreach(embedded_file ${embedded_files})
    get_filename_component(embedded_name ${embedded_file} NAME_WE)
    file(READ ${embedded_file} embedded_text)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${embedded_file})
    string(APPEND embedded_rows "      {\"${folder}\", \"${embedded_name}\", R\"toml(${embedded_text})toml\"},\n")
  endforeach()
endforeach()
file(CONFIGURE OUTPUT ${embedded_descriptions} @ONLY CONTENT [[
#include "launch/descriptions.h"

namespace periplus::launch {

const std::vector<BuiltInFile>& built_in_files() {
  static const std::vector<BuiltInFile> files = {
@embedded_rows@  };
  return files;
}

}  // namespace periplus::launch
]])
