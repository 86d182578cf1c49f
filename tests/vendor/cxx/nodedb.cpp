#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
