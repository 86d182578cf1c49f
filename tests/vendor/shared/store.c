/* Compiled with -fvisibility=hidden: visible are store_nearest and, by NODEDB_WAL_API, the log's functions. The index
 * is not STATIC, but nobody outside sees it. */
#define NODEDB_WAL_IMPLEMENTATION
#include "store.h"
#define NODEDB_VAMANA_IMPLEMENTATION
#include "nodedb_vamana.h"

int store_nearest(int points, float x) {
    nodedb_vamana_config config;
    nodedb_vamana_query query;
    nodedb_vamana_result nearest;
    nodedb_vamana_searcher *searcher;
    nodedb_vamana *index;
    uint32_t found = 0;
    int i;
    memset(&config, 0, sizeof config);
    memset(&query, 0, sizeof query);
    config.dim = 1;
    index = nodedb_vamana_create(&config, NULL);
    if (index == NULL) return -1;
    for (i = 0; i < points; i++) {
        const float point = (float)i;
        if (nodedb_vamana_insert(index, (uint64_t)i, &point, NULL) != NODEDB_OK) return -1;
    }
    searcher = nodedb_vamana_searcher_create(index, NULL, NULL);
    query.vector = &x, query.k = 1;
    if (searcher == NULL) return -1;
    if (nodedb_vamana_search(searcher, &query, &nearest, &found, NULL, NULL) != NODEDB_OK) return -1;
    nodedb_vamana_searcher_destroy(searcher);
    nodedb_vamana_destroy(index);
    return found == 1 ? (int)nearest.id : -1;
}
