/* Other people's single-producer single-consumer queues, as bench_tpc measures them beside ours: where build.sh found
 * their headers and a C++ compiler (BENCH_SPSC) by peer_spsc.cpp, else there are none. 8-byte messages, capacity 4096,
 * two pinned threads; the loops are those of bench_tpc. */
#ifndef NODEDB_PEER_SPSC_H
#define NODEDB_PEER_SPSC_H

#include <stddef.h>
#include <stdint.h>

#if defined(BENCH_SPSC)
#if defined(__cplusplus)
extern "C" {
#endif
/* The name of queue `i`, from 0 on, as in its cases; NULL: there are no more. */
const char *peer_spsc_name(size_t i);
/* Messages per second of `count` that go through it one by one; 0: some were lost or altered. */
double peer_spsc_single(size_t i, uint64_t count, const int cpus[2]);
/* Nanoseconds that a message takes there and back, between threads that spin. */
double peer_spsc_roundtrip(size_t i, uint64_t count, const int cpus[2]);
#if defined(__cplusplus)
}
#endif
#else
static inline const char *peer_spsc_name(size_t i) {
    (void)i;
    return NULL;
}
static inline double peer_spsc_single(size_t i, uint64_t count, const int cpus[2]) {
    (void)i, (void)count, (void)cpus;
    return 0;
}
static inline double peer_spsc_roundtrip(size_t i, uint64_t count, const int cpus[2]) {
    (void)i, (void)count, (void)cpus;
    return 0;
}
#endif
#endif
