/* What this.c and that.c have in common but for the version of the header that they take: a log of that version is
 * written and read, and its version is told. */
#define NODEDB_WAL_STATIC
#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#include "use.h"

#define DECLARE_VERSION(name) \
    int name##_works(const char *dir); \
    const char *name##_version(void)
#define DEFINE_VERSION(name) \
    DECLARE_VERSION(name); \
    int name##_works(const char *dir) { return use_all(dir); } \
    const char *name##_version(void) { return NODEDB_VERSION; }
