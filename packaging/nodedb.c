/* All five headers, compiled once: what CMake's nodedb::compiled and Meson's dependency `nodedb` are made of. Programs
 * that link it include the headers plainly and define no macro. The functions stay visible in a shared library that is
 * compiled with -fvisibility=hidden. */
#define NODEDB_WAL_API __attribute__((visibility("default"))) extern
#define NODEDB_MEM_API __attribute__((visibility("default"))) extern
#define NODEDB_TPC_API __attribute__((visibility("default"))) extern
#define NODEDB_VAMANA_API __attribute__((visibility("default"))) extern
#define NODEDB_PREFETCH_API __attribute__((visibility("default"))) extern

#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#define NODEDB_MEM_IMPLEMENTATION
#include "nodedb_mem.h"
#define NODEDB_TPC_IMPLEMENTATION
#include "nodedb_tpc.h"
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
#define NODEDB_PREFETCH_IMPLEMENTATION
#include "nodedb_prefetch.h"
