"""Does an encoder measure here what it measures elsewhere? The bundled one on four sets, beside known figures.

    python -m tests.bench.parity [--data ../shared/data] [--threads 2] [SET ...]

The known figures are of all-MiniLM-L6-v2 in sentence-transformers, with title and text joined by a blank and cut at 256
tokens, by pytrec_eval. Ends with 1 when one is further away than 0.0005. Each corpus is encoded once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from nvr_rag.encoders.torch import load_encoder
from tests.bench.common import table
from training.beir import corpus_ids, read_beir, read_corpus
from training.evaluation import exact_search
from training.measures import means, measure

KNOWN = {
    "squad2-dev": {"test": 0.7754, "train": 0.7886},
    "cranfield": {"test": 0.3953},
    "scifact": {"test": 0.6451, "train": 0.6602},
    "medquad": {"test": 0.7548, "dev": 0.7568, "train": 0.7489},
}
KNOWN_RECALL = {("scifact", "test"): 0.9250}
TOLERANCE = 0.0005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("sets", nargs="*", metavar="SET", default=list(KNOWN), help=f"of {', '.join(KNOWN)}")
    arguments = parser.parse_args()
    encoder = load_encoder(threads=arguments.threads)
    rows = []
    for name in arguments.sets:
        folder = arguments.data / name
        splits = {split: read_beir(folder, split) for split in KNOWN[name]}
        queries = {query: text for data in splits.values() for query, text in data.queries.items()}
        started = time.perf_counter()
        run = exact_search(encoder, queries, read_corpus(folder), ids=corpus_ids(folder))
        print(f"{name}: {len(queries):,} queries in {time.perf_counter() - started:.0f} s", flush=True)
        for split, data in splits.items():
            found = means(measure(data.qrels, run))
            rows.append([f"{name} {split}", len(data.qrels), "nDCG@10", found["nDCG@10"], KNOWN[name][split]])
            if (name, split) in KNOWN_RECALL:
                known = KNOWN_RECALL[name, split]
                rows.append([f"{name} {split}", len(data.qrels), "R@100", found["R@100"], known])
    cells = [[*row[:3], f"{row[3]:.4f}", f"{row[4]:.4f}", f"{row[3] - row[4]:+.4f}"] for row in rows]
    table("Exact search with the bundled encoder", ["set", "queries", "measure", "here", "known", "difference"], cells)
    # Known figures are rounded to four digits.
    if any(abs(round(row[3], 4) - row[4]) > TOLERANCE for row in rows):
        raise SystemExit(f"a measure is further than {TOLERANCE} from the known one")


if __name__ == "__main__":
    main()
