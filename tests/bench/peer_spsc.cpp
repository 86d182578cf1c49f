// See peer_spsc.h. boost::lockfree::spsc_queue (Debian: libboost-dev), and rigtorp::SPSCQueue where its header is
// installed.
#include "peer_spsc.h"
#include <boost/lockfree/spsc_queue.hpp>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#if defined(__has_include)
#if __has_include(<rigtorp/SPSCQueue.h>)
#define BENCH_RIGTORP 1
#include <rigtorp/SPSCQueue.h>
#endif
#endif

namespace {

const size_t capacity = 4096;

struct boost_queue {
    boost::lockfree::spsc_queue<uint64_t> q;
    boost_queue() : q(capacity) {}
    bool push(uint64_t v) { return q.push(v); }
    bool pop(uint64_t *v) { return q.pop(*v); }
};

#if defined(BENCH_RIGTORP)
struct rigtorp_queue {
    rigtorp::SPSCQueue<uint64_t> q;
    rigtorp_queue() : q(capacity) {}
    bool push(uint64_t v) { return q.try_push(v); }
    bool pop(uint64_t *v) {
        uint64_t *front = q.front();
        if (front == NULL) return false;
        *v = *front;
        q.pop();
        return true;
    }
};
#endif

void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

uint64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

void spin() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

template <class Queue> struct game {
    Queue there, back;
    uint64_t count, sum;
    int cpu;
};

template <class Queue> void *take_all(void *arg) {
    game<Queue> *g = static_cast<game<Queue> *>(arg);
    uint64_t v = 0, sum = 0, i;
    pin(g->cpu);
    for (i = 0; i < g->count; i++) {
        while (!g->there.pop(&v)) spin();
        sum += v;
    }
    g->sum = sum;
    return NULL;
}

template <class Queue> void *return_all(void *arg) {
    game<Queue> *g = static_cast<game<Queue> *>(arg);
    uint64_t v = 0, i;
    pin(g->cpu);
    for (i = 0; i < g->count; i++) {
        while (!g->there.pop(&v)) spin();
        while (!g->back.push(v)) spin();
    }
    return NULL;
}

template <class Queue> double single(uint64_t count, const int cpus[2]) {
    game<Queue> *g = new game<Queue>();
    pthread_t thread;
    uint64_t i, begin;
    double seconds;
    g->count = count, g->sum = 0, g->cpu = cpus[1];
    pin(cpus[0]);
    if (pthread_create(&thread, NULL, take_all<Queue>, g) != 0) return 0;
    begin = now_ns();
    for (i = 0; i < count; i++)
        while (!g->there.push(i)) spin();
    pthread_join(thread, NULL);
    seconds = double(now_ns() - begin) / 1e9;
    if (g->sum != count * (count - 1) / 2) seconds = 0;
    delete g;
    return seconds > 0 ? double(count) / seconds : 0;
}

template <class Queue> double roundtrip(uint64_t count, const int cpus[2]) {
    game<Queue> *g = new game<Queue>();
    pthread_t thread;
    uint64_t i, v, begin;
    g->count = count, g->cpu = cpus[1];
    pin(cpus[0]);
    if (pthread_create(&thread, NULL, return_all<Queue>, g) != 0) return 0;
    begin = now_ns();
    for (i = 0; i < count; i++) {
        while (!g->there.push(i)) spin();
        while (!g->back.pop(&v)) spin();
    }
    begin = now_ns() - begin;
    pthread_join(thread, NULL);
    delete g;
    return double(begin) / double(count);
}

struct peer {
    const char *name;
    double (*single)(uint64_t count, const int cpus[2]), (*roundtrip)(uint64_t count, const int cpus[2]);
};

const peer peers[] = {
    {"boost", single<boost_queue>, roundtrip<boost_queue>},
#if defined(BENCH_RIGTORP)
    {"rigtorp", single<rigtorp_queue>, roundtrip<rigtorp_queue>},
#endif
};

} // namespace

const char *peer_spsc_name(size_t i) { return i < sizeof peers / sizeof peers[0] ? peers[i].name : NULL; }
double peer_spsc_single(size_t i, uint64_t count, const int cpus[2]) { return peers[i].single(count, cpus); }
double peer_spsc_roundtrip(size_t i, uint64_t count, const int cpus[2]) { return peers[i].roundtrip(count, cpus); }
