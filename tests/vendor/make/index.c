#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"
