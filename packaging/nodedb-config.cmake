# The targets of NodeDB's headers: for CMakeLists.txt beside this file, and for find_package(nodedb) once
# `./build.sh install` has copied it to share/nodedb.
#
#     nodedb::wal  nodedb::mem  nodedb::tpc  nodedb::vamana  nodedb::prefetch
#         One for each header that is there. Define NODEDB_WAL_IMPLEMENTATION (and so on) in one file of yours.
#     nodedb::compiled
#         All five, compiled. Define nothing. Only where C is enabled, and built only if something links it.
#
# Options:
#     NODEDB_LIBURING   io_uring through liburing: ON, OFF, or AUTO (the default: where it is found)
#     NODEDB_JEMALLOC   arenas in nodedb_mem.h through jemalloc, which then is the program's malloc: ON or OFF (default)
set(NODEDB_LIBURING AUTO CACHE STRING "io_uring through liburing: ON, OFF or AUTO")
option(NODEDB_JEMALLOC "arenas through jemalloc, which then is the program's malloc" OFF)

# In the source tree the headers lie one folder up; installed in PREFIX/share/nodedb, in PREFIX/include.
file(GLOB nodedb_headers "${CMAKE_CURRENT_LIST_DIR}/../nodedb_*.h")
get_filename_component(nodedb_include "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
if(NOT nodedb_headers)
  get_filename_component(nodedb_include "${CMAKE_CURRENT_LIST_DIR}/../../include" ABSOLUTE)
endif()

# nodedb_library(TARGET WANTED HEADER LIBRARY MACRO): a target that links the library, or else defines the macro that
# does without it.
function(nodedb_library target wanted header library macro)
  if(TARGET ${target})
    return()
  endif()
  add_library(${target} INTERFACE)
  if(wanted)
    find_path(NODEDB_${library}_INCLUDE ${header})
    find_library(NODEDB_${library}_LIBRARY ${library})
    mark_as_advanced(NODEDB_${library}_INCLUDE NODEDB_${library}_LIBRARY)
    if(NODEDB_${library}_INCLUDE AND NODEDB_${library}_LIBRARY)
      target_include_directories(${target} INTERFACE "${NODEDB_${library}_INCLUDE}")
      target_link_libraries(${target} INTERFACE "${NODEDB_${library}_LIBRARY}")
      return()
    elseif(NOT wanted STREQUAL "AUTO")
      message(FATAL_ERROR "nodedb: lib${library} or its header ${header} is not found, and was asked for")
    endif()
  endif()
  target_compile_definitions(${target} INTERFACE ${macro})
endfunction()

# nodedb_header(NAME NEEDS...): the target of a header, if the header is there.
function(nodedb_header name)
  if(NOT EXISTS "${nodedb_include}/nodedb_${name}.h" OR TARGET nodedb_${name})
    return()
  endif()
  add_library(nodedb_${name} INTERFACE)
  add_library(nodedb::${name} ALIAS nodedb_${name})
  target_include_directories(nodedb_${name} INTERFACE "${nodedb_include}")
  target_link_libraries(nodedb_${name} INTERFACE ${ARGN})
endfunction()

nodedb_library(nodedb_uring "${NODEDB_LIBURING}" liburing.h uring NODEDB_NO_LIBURING)
nodedb_library(nodedb_jemalloc "${NODEDB_JEMALLOC}" jemalloc/jemalloc.h jemalloc NODEDB_NO_JEMALLOC)
nodedb_header(wal nodedb_uring pthread)
nodedb_header(mem nodedb_jemalloc pthread)
nodedb_header(tpc pthread)
nodedb_header(vamana nodedb_uring pthread m)
nodedb_header(prefetch nodedb_uring)

get_property(nodedb_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
set(nodedb_all nodedb_wal nodedb_mem nodedb_tpc nodedb_vamana nodedb_prefetch)
set(nodedb_complete TRUE)
foreach(nodedb_target IN LISTS nodedb_all)
  if(NOT TARGET ${nodedb_target})
    set(nodedb_complete FALSE)
  endif()
endforeach()
if(nodedb_complete AND "C" IN_LIST nodedb_languages AND NOT TARGET nodedb_compiled)
  add_library(nodedb_compiled EXCLUDE_FROM_ALL "${CMAKE_CURRENT_LIST_DIR}/nodedb.c")
  add_library(nodedb::compiled ALIAS nodedb_compiled)
  set_target_properties(nodedb_compiled PROPERTIES OUTPUT_NAME nodedb C_STANDARD 99 POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(nodedb_compiled PUBLIC ${nodedb_all})
endif()
