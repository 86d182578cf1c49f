/* See peer_hnswlib.h. No exception leaves this file: the caller is C. */
#include "peer_hnswlib.h"

#include <atomic>
#include <cstdio>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <hnswlib/hnswlib.h>

namespace {

enum { M = 32, EF_CONSTRUCTION = 200 };

typedef hnswlib::HierarchicalNSW<float> graph_type;

void say(const char *what, const std::exception &why) { std::fprintf(stderr, "hnswlib: %s: %s\n", what, why.what()); }

/* What stands in for the distance function while distances are counted, by one thread. */
hnswlib::DISTFUNC<float> counted_function;
uint64_t counted;

float count_and_compute(const void *a, const void *b, const void *dim) {
    counted++;
    return counted_function(a, b, dim);
}

hnswlib::SpaceInterface<float> *space_of(uint32_t dim, peer_metric metric) {
    if (metric == PEER_L2) return new hnswlib::L2Space(dim);
    return new hnswlib::InnerProductSpace(dim);
}

} // namespace

struct peer_hnswlib {
    std::unique_ptr<hnswlib::SpaceInterface<float>> space;
    std::unique_ptr<graph_type> graph;
    size_t row; /* floats of a vector */

    peer_hnswlib(uint32_t dim, size_t n, peer_metric metric)
        : space(space_of(dim, metric)), graph(new graph_type(space.get(), n, M, EF_CONSTRUCTION)), row(dim) {}
};

extern "C" peer_hnswlib *peer_hnswlib_create(uint32_t dim, size_t n, peer_metric metric) {
    try {
        return new peer_hnswlib(dim, n, metric);
    } catch (const std::exception &why) {
        return say("cannot make an index", why), nullptr;
    }
}

extern "C" void peer_hnswlib_destroy(peer_hnswlib *peer) { delete peer; }

extern "C" bool peer_hnswlib_add(peer_hnswlib *peer, const float *rows, size_t n, unsigned threads) {
    std::atomic<size_t> next(1);
    std::atomic<bool> failed(false);
    auto add = [&](size_t i) {
        try {
            peer->graph->addPoint(rows + i * peer->row, i);
        } catch (const std::exception &why) {
            if (!failed.exchange(true)) say("cannot add a vector", why);
        }
    };
    auto work = [&]() {
        for (size_t i = next++; i < n && !failed; i = next++) add(i);
    };
    if (n > 0) add(0); /* alone: it becomes the entry, without which the others find nothing to link to */
    try {
        std::vector<std::thread> others;
        for (unsigned i = 1; i < threads; i++) others.emplace_back(work);
        work();
        for (std::thread &other : others) other.join();
    } catch (const std::exception &why) {
        say("cannot start a thread", why);
        std::abort(); /* those that run use what this frame holds */
    }
    return !failed;
}

extern "C" bool peer_hnswlib_save(peer_hnswlib *peer, const char *path) {
    try {
        const std::string unfinished = std::string(path) + ".tmp"; /* a run that is stopped here leaves no half index */
        peer->graph->saveIndex(unfinished);
        if (std::rename(unfinished.c_str(), path) != 0) throw std::runtime_error("cannot rename");
        return true;
    } catch (const std::exception &why) {
        return say(path, why), false;
    }
}

extern "C" bool peer_hnswlib_load(peer_hnswlib *peer, const char *path, size_t n) {
    try {
        const size_t bytes = peer->graph->size_data_per_element_;
        peer->graph.reset();
        peer->graph.reset(new graph_type(peer->space.get(), path, false, n));
        if (peer->graph->cur_element_count != n || peer->graph->size_data_per_element_ != bytes)
            throw std::runtime_error("this is an index of other vectors, or with another M");
        peer->graph->num_deleted_ = 0; /* some releases leave it as the memory was */
        return true;
    } catch (const std::exception &why) {
        return say(path, why), false;
    }
}

extern "C" size_t peer_hnswlib_search(peer_hnswlib *peer, const float *query, size_t k, size_t ef, uint64_t *ids,
                                      uint64_t *distances) {
    size_t found = 0;
    graph_type &graph = *peer->graph;
    graph.setEf(ef);
    counted = 0, counted_function = graph.fstdistfunc_;
    if (distances != nullptr) graph.fstdistfunc_ = count_and_compute;
    try {
        auto results = graph.searchKnn(query, k);
        for (; !results.empty(); results.pop()) ids[found++] = results.top().second;
    } catch (const std::exception &why) {
        say("a search failed", why), found = 0;
    }
    if (distances != nullptr) graph.fstdistfunc_ = counted_function, *distances += counted;
    return found;
}

extern "C" size_t peer_hnswlib_bytes(const peer_hnswlib *peer) {
    const graph_type &graph = *peer->graph;
    size_t n = graph.cur_element_count, i;
    size_t bytes = n * (graph.size_data_per_element_ + sizeof(char *) + sizeof(int));
    for (i = 0; i < n; i++) bytes += (size_t)graph.element_levels_[i] * graph.size_links_per_element_;
    return bytes;
}
