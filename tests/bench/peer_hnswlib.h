/* hnswlib, as bench_vamana measures it: where build.sh found its headers and a C++ compiler (BENCH_HNSWLIB) by
 * peer_hnswlib.cpp, else by nothing, and `peer_hnswlib_create` answers NULL. Float vectors, M = 32, efConstruction =
 * 200; what is not said here is the library's default. Who fails says why on stderr. */
#ifndef NODEDB_PEER_HNSWLIB_H
#define NODEDB_PEER_HNSWLIB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct peer_hnswlib peer_hnswlib;

/* What "near" means. hnswlib has no cosine of its own: for PEER_COSINE the caller divides each vector and each query by
 * its length, and the library compares inner products, as its own users do it. */
typedef enum peer_metric { PEER_L2 = 0, PEER_IP, PEER_COSINE } peer_metric;

#if defined(BENCH_HNSWLIB)
#if defined(__cplusplus)
extern "C" {
#endif

/* An empty index with room for `n` vectors; it borrows nothing. NULL: no memory. */
peer_hnswlib *peer_hnswlib_create(uint32_t dim, size_t n, peer_metric metric);
void peer_hnswlib_destroy(peer_hnswlib *peer);

/* Adds the `n` rows, labelled 0 .. n-1, to an empty index. One thread adds them in order, and the graph is the same
 * each time; of several each takes the next, as hnswlib's users do it, and the graph differs from run to run. */
bool peer_hnswlib_add(peer_hnswlib *peer, const float *rows, size_t n, unsigned threads);

/* Its own file format. `load` replaces what is there, and refuses an index of other data by number and dimensions. */
bool peer_hnswlib_save(peer_hnswlib *peer, const char *path);
bool peer_hnswlib_load(peer_hnswlib *peer, const char *path, size_t n);

/* The `k` nearest that it finds with `ef`, the farthest first, to `ids`; how many. `distances`, if not NULL, is raised
 * by the distances computed, and the search is slower; hnswlib's own counter has those too that it saved. For one
 * thread. */
size_t peer_hnswlib_search(peer_hnswlib *peer, const float *query, size_t k, size_t ef, uint64_t *ids,
                           uint64_t *distances);

/* Vectors, links of all levels, labels, and what finds the links of the upper levels. Not its locks (40 bytes for each
 * vector), its table of labels and its lists of visited nodes: a search over a finished index could do without them. */
size_t peer_hnswlib_bytes(const peer_hnswlib *peer);

#if defined(__cplusplus)
}
#endif
#else
static inline peer_hnswlib *peer_hnswlib_create(uint32_t dim, size_t n, peer_metric metric) {
    return (void)dim, (void)n, (void)metric, NULL;
}
static inline void peer_hnswlib_destroy(peer_hnswlib *peer) { (void)peer; }
static inline bool peer_hnswlib_add(peer_hnswlib *peer, const float *rows, size_t n, unsigned threads) {
    return (void)peer, (void)rows, (void)n, (void)threads, false;
}
static inline bool peer_hnswlib_save(peer_hnswlib *peer, const char *path) { return (void)peer, (void)path, false; }
static inline bool peer_hnswlib_load(peer_hnswlib *peer, const char *path, size_t n) {
    return (void)peer, (void)path, (void)n, false;
}
static inline size_t peer_hnswlib_search(peer_hnswlib *peer, const float *query, size_t k, size_t ef, uint64_t *ids,
                                         uint64_t *distances) {
    return (void)peer, (void)query, (void)k, (void)ef, (void)ids, (void)distances, (size_t)0;
}
static inline size_t peer_hnswlib_bytes(const peer_hnswlib *peer) { return (void)peer, (size_t)0; }
#endif

#endif
