"""What an Edge shard is made of: its vectors, the indexes of its payloads, its segments and their graph.

Points are written to a segment that can grow, which keeps their ids and the indexes of their payloads on the heap: 2 kB
a chunk. So that an index of any size takes the same memory, this segment is sealed whenever it has SEAL_POINTS: the
library copies it to files that are only mapped, 50 bytes a chunk are left on the heap, and a new segment takes what
comes. Segments are searched in parallel, each exactly. What is deleted or overwritten in a sealed one counts in the
weights of words until a fifth of it is; then it is copied again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import qdrant_edge as edge

from nvr_rag.stores.base import StoreConfig
from nvr_rag.stores.points import DENSE, INDEXED, LEXICAL

CONFIG_FILE, SHARD_FOLDER = "index.json", "shard"
LINKS, EF_CONSTRUCT = 16, 100  # of the graph

# A seal takes 0.1 s and 40 microseconds a point, during which no other thread runs, and leaves 100 memory maps, of
# which a process may have 65,530.
SEAL_POINTS, MAX_SEGMENTS = 8192, 300
_ON_DISK = edge.Memory.Cached  # mapped, and read ahead when a shard is loaded
_KINDS: dict[str, edge.KeywordIndexParams | edge.FloatIndexParams] = {
    "keyword": edge.KeywordIndexParams(memory=_ON_DISK),
    "number": edge.FloatIndexParams(memory=_ON_DISK),
}
_ANY_NUMBER = 2**31 - 1


def make_shard(folder: Path, config: StoreConfig) -> None:
    shard = edge.EdgeShard.create(
        str(folder),
        _shape(
            config,
            links=0,
            # Of less than half of what a seal is for none is made: SEAL_POINTS counts what was written, new or not.
            optimizers=edge.EdgeOptimizersConfig(
                indexing_threshold=max(1, SEAL_POINTS * config.dimension * 4 // 1024 // 2),
                default_segment_number=_ANY_NUMBER,
            ),
        ),
    )
    index_fields(shard)
    shard.close()


def can_seal(folder: Path, shard: edge.EdgeShard) -> bool:
    """Whether the shard in here may seal a segment. One that has a graph would drop it for that, and one of an earlier
    release would be copied whole."""
    if shard.info().segments_count >= MAX_SEGMENTS:
        return False
    try:
        shape = json.loads((folder / SHARD_FOLDER / "edge_config.json").read_text(encoding="utf-8"))
        return bool(shape["hnsw_config"]["m"] == 0)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def index_fields(shard: edge.EdgeShard) -> None:
    """Without an index a filter reads every payload: 18 ms instead of 2 at 20,000 points."""
    there = shard.info().payload_schema
    missing = {field: kind for field, kind in INDEXED.items() if field not in there}
    for field, kind in missing.items():
        shard.update(edge.UpdateOperation.create_field_index(field, _KINDS[kind]))
    if missing:
        shard.flush()


def sealing_bytes(config: StoreConfig) -> int:
    """Room on the disk that is enough to copy a segment: of four times the points, each with 4 kB beside its vector."""
    return 4 * SEAL_POINTS * (4 * config.dimension + 4096)


def optimize_shard(folder: Path) -> None:
    """Build the graph of an index that nobody has loaded, and keep it. For the child process."""
    config = StoreConfig(**json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    threads = max(1, (os.cpu_count() or 1) - 1)  # one is left to whoever searches meanwhile
    shard = edge.EdgeShard.load(
        str(folder / SHARD_FOLDER),
        _shape(
            config,
            links=LINKS,
            threads=threads,
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        ),
    )
    shard.optimize()
    shard.flush()
    shard.close()


def _shape(
    config: StoreConfig, *, links: int, optimizers: edge.EdgeOptimizersConfig, threads: int = 1
) -> edge.EdgeConfig:
    """What a shard is made of; no links are no graph. The library keeps it with the shard."""
    return edge.EdgeConfig(
        vectors={DENSE: edge.EdgeVectorParams(size=config.dimension, distance=edge.Distance.Dot)},
        sparse_vectors={LEXICAL: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf, memory=_ON_DISK)},
        id_tracker_memory=_ON_DISK,
        hnsw_config=edge.HnswIndexConfig(links, EF_CONSTRUCT, 1, max_indexing_threads=threads),
        optimizers=optimizers,
    )
