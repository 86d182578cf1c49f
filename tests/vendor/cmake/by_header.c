#define NODEDB_WAL_IMPLEMENTATION
#include <nodedb_wal.h>
#define NODEDB_PREFETCH_IMPLEMENTATION
#include <nodedb_prefetch.h>
#include "use.h"

int main(int argc, char **argv) { return argc == 2 ? use_all(argv[1]) : 2; }
