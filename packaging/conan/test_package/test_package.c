#define NODEDB_WAL_IMPLEMENTATION
#include "nodedb_wal.h"
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"

int main(void) {
    static const float vector[2] = {1, 2};
    nodedb_error err;
    nodedb_wal_config log = {0};
    nodedb_vamana_config config = {0};
    nodedb_wal_record record = {0};
    nodedb_vamana *index;
    nodedb_wal *wal;
    log.dir = "log";
    wal = nodedb_wal_open(&log, &err);
    record.type = NODEDB_WAL_TYPE_USER, record.payload = vector, record.payload_bytes = sizeof vector;
    if (wal == NULL || nodedb_wal_commit(wal, &record, 1, NULL, &err) != NODEDB_OK) return 1;
    if (nodedb_wal_close(wal, &err) != NODEDB_OK) return 1;
    config.dim = 2;
    index = nodedb_vamana_create(&config, &err);
    if (index == NULL || nodedb_vamana_insert(index, 1, vector, &err) != NODEDB_OK) return 1;
    printf("nodedb %s: a record and %d vector\n", NODEDB_VERSION, (int)nodedb_vamana_count(index));
    nodedb_vamana_destroy(index);
    return 0;
}
