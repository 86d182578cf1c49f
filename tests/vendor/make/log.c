#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
