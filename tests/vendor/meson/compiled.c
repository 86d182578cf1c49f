#include <nodedb_mem.h>
#include <nodedb_prefetch.h>
#include <nodedb_tpc.h>
#include <nodedb_vamana.h>
#include <nodedb_wal.h>
#include "use.h"

int main(int argc, char **argv) { return argc == 2 ? use_all(argv[1]) : 2; }
