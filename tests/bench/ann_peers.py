#!/usr/bin/env python3
"""hnswlib, VSAG and SymphonyQG, measured in the language of the benchmarks (bench.h), to stand beside bench_vamana.

usage: ann_peers.py --kind NAME,.. [--n N] [--dim D] [--queries N] [--seed N] [options]
       ann_peers.py --base F --query F --gt F [--metric l2|ip|cosine] [options]
options: [--peers NAME,..] [--ef N,..] [--rounds N] [--threads N]

    python3 -m venv venv && venv/bin/pip install numpy hnswlib pyvsag rabitqlib
    venv/bin/python tests/bench/ann_peers.py --kind topics >build/peers.tsv
    ./build.sh bench vamana --hard --kind topics --how build --beams 10,16,24,32,48,64,96,128,192,256 >build/ours.tsv

Kinds are those of tests/hard_kinds.h; `bench_vamana --hard --write` makes them, so both programs measure the same
vectors. Files are u8bin or fbin, and gt, as bench_vamana takes them. Rows:

    peer/NAME/SET         build_s (--threads, 2)
    peer/NAME/SET/ef=N    recall_at_10, qps (one thread)

SET is the kind, or the base file's name up to the first dot. Recall follows hard_kinds.h: a vector counts as found if
it is as near as the tenth, as many are equally far. (Of files, bench_vamana counts only the ten that the gt names.) A
qps is the median of the rounds (7); in each, every ef goes over the queries for 100 ms. Peers get floats, and for
cosine vectors of length 1. Each runs in a process of its own: one that is not installed, or fails, is named on stderr
and left out, and the others go on.

    hnswlib      M=32, ef_construction=200, as in bench_vamana; all queries to a call
    vsag         hgraph, its default graph, on 8-bit codes (sq8), reranked on floats. sq8_uniform is no faster on SIFT,
                 and finds 0.73 instead of 0.996 of the kind `outliers` at ef=64. The build also tunes its prefetching,
                 half a minute or more from 10,000 vectors on. A call takes one query; Python adds up to 10 us to each
    symphonyqg   of rabitqlib: degree 32, ef_construction=400; all queries to a call of search_batch

Tried with hnswlib 0.8.0, pyvsag 0.18.5 and rabitqlib 0.7.1.
"""
import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

K = 10
ROUND_S = 0.1
EQUALLY_FAR = 1e-6  # relative: what rounding may do to a distance
PROJECT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def load(path, kind):
    with open(path, "rb") as file:
        n, width = np.fromfile(file, "<u4", 2)
        return np.fromfile(file, kind, int(n) * int(width)).reshape(n, width)


def load_vectors(path):
    return load(path, "u1" if path.endswith("u8bin") else "<f4").astype("float32")


def normalized(rows):
    lengths = np.linalg.norm(rows.astype("f8"), axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype("float32")


class Set:
    """Vectors, queries, and of each query how far the tenth true neighbour is."""

    def __init__(self, name, base, query, gt, metric):
        self.name, self.metric = name, metric
        self.base, self.queries, truth = load_vectors(base), load_vectors(query), load(gt, "<u4")
        if self.base.shape[1] != self.queries.shape[1] or len(truth) != len(self.queries) or truth.shape[1] < K:
            sys.exit(f"ann_peers: {base}, {query} and {gt} do not fit together")
        self.limits = [self.distances(query, ids[K - 1:K])[0] for query, ids in enumerate(truth)]

    def distances(self, query, ids):
        """As hard_distance: squared L2, the negative inner product, or 1 - cosine, which is 1 for a vector of zeros."""
        q, rows = self.queries[query].astype("f8"), self.base[ids].astype("f8")
        if self.metric == "l2":
            return np.square(rows - q).sum(1)
        products = (rows * q).sum(1)
        if self.metric == "ip":
            return -products
        lengths = np.sqrt(np.square(rows).sum(1) * np.square(q).sum())
        return 1 - products / np.where(lengths > 0, lengths, 1)

    def recall(self, answers):
        """The rule of hard_hits. An id that comes twice counts once, and one that no vector has does not count."""
        hits = 0
        for query, (ids, limit) in enumerate(zip(answers, self.limits)):
            ids = np.unique(ids[(ids >= 0) & (ids < len(self.base))])
            hits += np.sum(self.distances(query, ids) <= limit + EQUALLY_FAR * abs(limit))
        return hits / (K * len(self.limits))


def make_kind(kind, options):
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, kind)
        command = ["./build.sh", "bench", "vamana", "--hard", "--write", prefix, "--kind", kind, "--n", options.n,
                   "--dim", options.dim, "--queries", options.queries, "--seed", options.seed]
        done = subprocess.run([str(word) for word in command], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"ann_peers: cannot make the kind {kind}")
        return Set(kind, prefix + ".base.fbin", prefix + ".query.fbin", prefix + ".gt", done.stdout.strip())


# The peers. Each builds its index, for l2 or ip, and returns what answers all queries with one thread.

def build_hnswlib(base, metric, threads):
    import hnswlib
    index = hnswlib.Index(metric, base.shape[1])
    index.init_index(len(base), M=32, ef_construction=200)
    index.add_items(base, num_threads=threads)

    def answer(queries, ef):
        index.set_ef(ef)
        return index.knn_query(queries, K, num_threads=1)[0]
    return answer


def build_vsag(base, metric, threads):
    import pyvsag
    pyvsag.set_logger_off()
    build = {"base_quantization_type": "sq8", "use_reorder": True, "precise_quantization_type": "fp32",
             "max_degree": 64, "ef_construction": 400, "use_elp_optimizer": True, "build_thread_count": threads}
    index = pyvsag.Index("hgraph", json.dumps(
        {"dtype": "float32", "metric_type": metric, "dim": base.shape[1], "index_param": build}))
    index.build(vectors=base, ids=np.arange(len(base)), num_elements=len(base), dim=base.shape[1])

    def answer(queries, ef):
        search = json.dumps({"hgraph": {"ef_search": ef}})
        return np.array([index.knn_search(query, K, search)[0] for query in queries])
    return answer


def build_symphonyqg(base, metric, threads):
    import rabitqlib
    index = rabitqlib.SymqgIndex(base.shape[1], 32, metric=metric)
    index.build(base, 400, num_threads=threads)
    return lambda queries, ef: index.search_batch(queries, K, ef, num_threads=1)[0]


PEERS = {"hnswlib": build_hnswlib, "vsag": build_vsag, "symphonyqg": build_symphonyqg}
PACKAGES = {"hnswlib": "hnswlib", "vsag": "pyvsag", "symphonyqg": "rabitqlib"}


def row(case, metric, value, unit):
    print(f"vamana\t{case}\t{metric}\t{value:.6g}\t{unit}", flush=True)


def seconds_of(function, *arguments, times=1):
    begin = time.perf_counter()
    for _ in range(times):
        function(*arguments)
    return time.perf_counter() - begin


def measure(name, data, options):
    """All rows of one peer and one set, in a process of its own."""
    case, queries = f"peer/{name}/{data.name}", data.queries
    base, metric = data.base, data.metric
    if metric == "cosine":
        base, queries, metric = normalized(base), normalized(queries), "ip"
    try:
        begin = time.perf_counter()
        answer = PEERS[name](base, metric, options.threads)
        build_s = time.perf_counter() - begin
        recalls = [data.recall(answer(queries, ef)) for ef in options.ef]
        passes = [1 + int(ROUND_S / seconds_of(answer, queries, ef)) for ef in options.ef]
        rounds = [[seconds_of(answer, queries, ef, times=times) for ef, times in zip(options.ef, passes)]
                  for _ in range(options.rounds)]
    except Exception as why:
        sys.exit(f"{case}: {type(why).__name__}: {why}")
    row(case, "build_s", build_s, "s")
    for ef, recall, times, took in zip(options.ef, recalls, passes, zip(*rounds)):
        row(f"{case}/ef={ef}", "recall_at_10", recall, "ratio")
        row(f"{case}/ef={ef}", "qps", times * len(queries) / statistics.median(took), "1/s")


def measure_all(data, options):
    for name in options.peers:
        child = multiprocessing.get_context("fork").Process(target=measure, args=(name, data, options))
        child.start()
        child.join()
        if child.exitcode != 0:  # below 0: a signal ended it
            print(f"{name} is left out of {data.name} (status {child.exitcode}); "
                  f"if it is not installed: pip install {PACKAGES[name]}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for option in ("--kind", "--base", "--query", "--gt"):
        parser.add_argument(option)
    for option, otherwise in (("n", 20000), ("dim", 128), ("queries", 500), ("seed", 1), ("rounds", 7), ("threads", 2)):
        parser.add_argument("--" + option, type=int, default=otherwise)
    parser.add_argument("--metric", choices=("l2", "ip", "cosine"), default="l2")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--ef", default="10,16,24,32,48,64,96,128,192,256")
    options = parser.parse_args()
    options.peers, options.ef = options.peers.split(","), [int(width) for width in options.ef.split(",")]
    if not set(options.peers) <= set(PEERS) or options.rounds < 1 or min(options.ef) < 1:
        parser.error(f"--peers are some of {', '.join(PEERS)}; --rounds and --ef are at least 1")
    if options.kind is None and None in (options.base, options.query, options.gt):
        parser.error("either --kind, or --base, --query and --gt")
    for kind in options.kind.split(",") if options.kind is not None else []:
        measure_all(make_kind(kind, options), options)
    if options.kind is None:
        name = os.path.basename(options.base).split(".")[0]
        measure_all(Set(name, options.base, options.query, options.gt, options.metric), options)


if __name__ == "__main__":
    main()
