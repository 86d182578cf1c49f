#!/usr/bin/env python3
"""How good are codes of vectors? Ours (4 and 8 bits for each component of the turned vector) beside product
quantisation (PQ), with a learnt rotation (OPQ), and RaBitQ, all from faiss.

usage: codes_beside_pq.py BASE QUERY GT [--sample N] [--seed N]

    python3 -m venv venv && venv/bin/pip install faiss-cpu numpy
    venv/bin/python tests/bench/codes_beside_pq.py tests/data/sift10k.base.u8bin tests/data/sift10k.query.u8bin \\
        tests/data/sift10k.gt

Files as for bench_vamana: u8bin or fbin, and gt. Every vector is compared with every query by its code alone, so no
graph is in the way. A line for each code: its bytes; the share of the true ten nearest among the 46 nearest by code
(what a search for ten reranks; the mean over the queries) and among the 10; seconds to train and to encode.
"""
import argparse
import time

import faiss
import numpy as np

K, RERANK = 10, 46  # 3 k + 16: see nodedb_vamana_query.rerank


def load(path, kind):
    with open(path, "rb") as f:
        n, width = np.fromfile(f, "<u4", 2)
        return np.fromfile(f, kind, int(n) * int(width)).reshape(n, width)


def load_vectors(path):
    return load(path, "u1" if path.endswith("u8bin") else "<f4").astype("float32")


class Turned:
    """Ours: less the mean, turned at random, every component rounded to one of 2^bits values, one step for all."""

    def __init__(self, dim, bits, seed):
        self.half = 2 ** (bits - 1)
        self.turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0].astype("float32")
        self.bits, self.bytes = bits, dim * bits // 8

    def train(self, sample):
        self.mean = sample.mean(0)
        turned = (sample - self.mean) @ self.turn
        steps = turned.std() * (0.335 if self.bits == 4 else 0.0308) * np.array([1, 1.25, 1.6, 2, 2.5, 3.2, 4])
        self.step = min(steps, key=lambda s: ((self.rounded(turned, s) - turned) ** 2).sum())

    def rounded(self, turned, step):
        return (np.clip(np.floor(turned / step + self.half), 0, 2 * self.half - 1) - self.half + 0.5) * step

    def add(self, base):
        self.codes = self.rounded((base - self.mean) @ self.turn, self.step).astype("float32")

    def search(self, queries, k):
        exact = faiss.IndexFlatL2(self.codes.shape[1])
        exact.add(self.codes)
        return exact.search((queries - self.mean) @ self.turn, k)


class FromFaiss:
    def __init__(self, index, code_bytes):
        self.index, self.bytes = index, code_bytes
        self.train, self.add, self.search = index.train, index.add, index.search


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base"), parser.add_argument("query"), parser.add_argument("gt")
    parser.add_argument("--sample", type=int, default=50000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    base, queries = load_vectors(arguments.base), load_vectors(arguments.query)
    truth = load(arguments.gt, "<u4")[: len(queries), :K]
    dim = base.shape[1]
    picked = np.random.default_rng(arguments.seed).permutation(len(base))[: arguments.sample]
    sample = np.ascontiguousarray(base[picked])
    codes = {"ours, 4 bits": Turned(dim, 4, arguments.seed), "ours, 8 bits": Turned(dim, 8, arguments.seed)}
    for parts in (dim // 2, dim // 4, dim // 8):
        codes[f"PQ, {parts} parts of 8 bits"] = FromFaiss(faiss.IndexPQ(dim, parts, 8), parts)
    codes[f"PQ, {dim} parts of 4 bits"] = FromFaiss(faiss.IndexPQ(dim, dim, 4), dim // 2)
    opq = faiss.IndexPreTransform(faiss.OPQMatrix(dim, dim // 8), faiss.IndexPQ(dim, dim // 8, 8))
    codes[f"OPQ, {dim // 8} parts of 8 bits"] = FromFaiss(opq, dim // 8)
    turned = faiss.RandomRotationMatrix(dim, dim)
    codes["RaBitQ, 1 bit"] = FromFaiss(faiss.IndexPreTransform(turned, faiss.IndexRaBitQ(dim)), dim // 8 + 8)
    print(f"{len(base)} x {dim}, {len(queries)} queries, seed {arguments.seed}")
    for name, code in codes.items():
        begin = time.time()
        code.train(sample)
        trained = time.time()
        code.add(base)
        encoded = time.time()
        near = np.asarray(code.search(queries, RERANK)[1])
        shares = [np.mean([len(np.intersect1d(t, n[:k])) / K for t, n in zip(truth, near)]) for k in (RERANK, K)]
        print(f"{name:24s} {code.bytes:4d} bytes  in {RERANK}: {shares[0]:.4f}  in {K}: {shares[1]:.4f}  "
              f"train {trained - begin:.1f} s, encode {encoded - trained:.1f} s", flush=True)


main()
