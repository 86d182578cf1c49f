/* A library that a project ships. Its users get the log as it is, and the index behind one function. */
#define STORE_API __attribute__((visibility("default")))
#define NODEDB_WAL_API STORE_API extern
#include "nodedb_wal.h"

/* The number of the point of a line, 0 .. points - 1, that is nearest to `x`; -1 on failure. */
STORE_API int store_nearest(int points, float x);
