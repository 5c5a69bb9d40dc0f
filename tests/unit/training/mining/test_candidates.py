"""The exact search against a sort of everything, where rounding, ties and tiles would show."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvr_rag.errors import InvalidInput
from training.mining.candidates import exact_scores, nearest
from training.mining.records import Vectors

TILES = (1, 2, 3, 7, 64, 1000, 8192)


def reference(queries: Vectors, vectors: Vectors, depth: int) -> list[list[int]]:
    """Every score, each rounded once from the exact sum; then a plain sort."""
    table, rows = vectors.astype(np.float64), range(len(vectors))
    scores = [[math.fsum(query * table[row]) for row in rows] for query in queries.astype(np.float64)]
    return [sorted(rows, key=lambda row, line=line: (-line[row], row))[:depth] for line in scores]


def unit(rng: np.random.Generator, number: int, dimensions: int) -> Vectors:
    drawn = rng.normal(size=(number, dimensions))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_by_hand() -> None:
    queries = np.array([[1, 0], [0, -1]], dtype=np.float32)
    vectors = np.array([[0.5, 0.25], [1, 1], [-1, -2], [0.5, -0.25]], dtype=np.float32)
    found = nearest(queries, vectors, 3)
    assert found.rows.tolist() == [[1, 0, 3], [2, 3, 0]]
    assert found.scores.tolist() == [[1.0, 0.5, 0.5], [2.0, 0.25, -0.25]]


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_sort_of_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dimensions, depth = int(rng.integers(1, 40)), int(rng.integers(1, 30))
    queries, vectors = unit(rng, 9, dimensions), unit(rng, 150, dimensions)
    vectors[rng.integers(0, 150, 40)] = vectors[rng.integers(0, 150, 40)]  # exact copies
    expected = reference(queries, vectors, depth)
    for tile in TILES:
        assert nearest(queries, vectors, depth, rows_per_tile=tile).rows.tolist() == expected


@pytest.mark.parametrize("tile", TILES)
def test_what_float32_puts_in_the_wrong_order(tile: int) -> None:
    """Vectors at right angles to the query: their scores differ by less than a sum in float32 is off."""
    rng = np.random.default_rng(5)
    query = unit(rng, 1, 384)
    aside = rng.normal(size=(600, 384))
    aside -= (aside @ query.T) / (query @ query.T) * query
    vectors = (aside / np.linalg.norm(aside, axis=1, keepdims=True)).astype(np.float32)
    expected = reference(query, vectors, 20)
    single = np.argsort(-(query @ vectors.T)[0], kind="stable")[:20]
    assert len(set(single.tolist()) & set(expected[0])) < 15, "the case is too easy: float32 nearly gets it right"
    assert nearest(query, vectors, 20, rows_per_tile=tile).rows.tolist() == expected


def test_the_answer_does_not_depend_on_the_tiles_nor_on_the_company() -> None:
    rng = np.random.default_rng(11)
    queries, vectors = unit(rng, 20, 96), unit(rng, 3000, 96)
    whole = nearest(queries, vectors, 50)
    for tile in (17, 100, 1024, 2999, 3000):
        found = nearest(queries, vectors, 50, rows_per_tile=tile)
        assert np.array_equal(found.rows, whole.rows)
        assert np.array_equal(found.scores, whole.scores)  # to the bit
    for at in range(20):
        alone = nearest(queries[at : at + 1], vectors, 50, rows_per_tile=500)
        assert np.array_equal(alone.rows[0], whole.rows[at])
        assert np.array_equal(alone.scores[0], whole.scores[at])


@pytest.mark.parametrize("tile", [7, 500, 8192])
def test_any_number_of_ties_goes_to_the_first_rows(tile: int) -> None:
    rng = np.random.default_rng(3)
    query, copy = unit(rng, 2, 64), unit(rng, 1, 64)
    vectors = np.repeat(copy, 3000, axis=0)
    assert nearest(query, vectors, 5, rows_per_tile=tile).rows.tolist() == [[0, 1, 2, 3, 4]] * 2
    better = query[0] + np.float32(1)
    vectors[2900] = better / np.linalg.norm(better)
    vectors[2900] *= np.float32(3)
    assert nearest(query[:1], vectors, 4, rows_per_tile=tile).rows.tolist() == [[2900, 0, 1, 2]]


def test_lengths_of_every_size() -> None:
    rng = np.random.default_rng(7)
    queries = unit(rng, 5, 24) * np.float32(1e-3)
    vectors = unit(rng, 300, 24) * (10.0 ** rng.integers(-12, 6, (300, 1))).astype(np.float32)
    for tile in (10, 8192):
        assert nearest(queries, vectors, 40, rows_per_tile=tile).rows.tolist() == reference(queries, vectors, 40)


def test_scores_may_all_be_negative() -> None:
    rng = np.random.default_rng(8)
    queries, vectors = np.abs(unit(rng, 3, 12)), -np.abs(unit(rng, 90, 12))
    found = nearest(queries, vectors, 10, rows_per_tile=16)
    assert found.rows.tolist() == reference(queries, vectors, 10)
    assert (found.scores < 0).all()


def test_each_tile_better_than_the_last() -> None:
    vectors = np.arange(1, 501, dtype=np.float32)[:, None]
    query = np.ones((1, 1), dtype=np.float32)
    assert nearest(query, vectors, 3, rows_per_tile=50).rows.tolist() == [[499, 498, 497]]
    assert nearest(query, vectors[::-1], 3, rows_per_tile=50).rows.tolist() == [[0, 1, 2]]


def test_fewer_rows_than_the_depth() -> None:
    rng = np.random.default_rng(9)
    queries, vectors = unit(rng, 2, 8), unit(rng, 5, 8)
    for tile in (1, 3, 5, 100):
        assert nearest(queries, vectors, 50, rows_per_tile=tile).rows.tolist() == reference(queries, vectors, 50)
    assert nearest(queries, vectors[:0], 50).rows.shape == (2, 0)


def test_a_memory_map_is_read_a_tile_at_a_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    queries, vectors = unit(rng, 4, 16), unit(rng, 1000, 16)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    slices: list[int] = []

    class Spy:
        """Says how many rows are asked for at once."""

        def __len__(self) -> int:
            return len(mapped)

        def __getitem__(self, key: slice) -> Any:
            slices.append(len(range(len(mapped))[key]))
            return mapped[key]

    spy: Any = Spy()
    found = nearest(queries, spy, 10, rows_per_tile=128)
    assert np.array_equal(found.rows, nearest(queries, vectors, 10).rows)
    assert slices == [128] * 7 + [104]


def test_memory_is_bounded_by_the_tile() -> None:
    rng = np.random.default_rng(12)
    queries, vectors = unit(rng, 100, 4), unit(rng, 200_000, 4)  # all scores at once: 80 MB
    tracemalloc.start()
    try:
        nearest(queries, vectors, 20, rows_per_tile=2000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_named(wrong: float) -> None:
    good, bad = np.ones((30, 2), dtype=np.float32), np.ones((30, 2), dtype=np.float32)
    bad[23, 1] = wrong
    with pytest.raises(InvalidInput, match="chunk row 23 "):
        nearest(good, bad, 3, rows_per_tile=10)
    with pytest.raises(InvalidInput, match="query row 23 "):
        nearest(bad, good, 3)


def test_exact_scores_by_hand_and_in_any_company() -> None:
    queries = np.array([[1, 2], [3, -4]], dtype=np.float32)
    vectors = np.array([[0.5, 0.25], [1, 1]], dtype=np.float32)
    assert exact_scores(queries, np.array([0, 1, 1]), vectors, np.array([0, 0, 1])).tolist() == [1.0, 0.5, -1.0]
    rng = np.random.default_rng(13)
    many, query = unit(rng, 10_000, 100), unit(rng, 1, 100)
    rows = np.arange(10_000)
    whole = exact_scores(query, np.zeros(10_000, np.int64), many, rows)
    for size in (1, 2, 9, 4097):
        some = rows[-size:]
        assert np.array_equal(exact_scores(query, np.zeros(size, np.int64), many, some), whole[-size:])
