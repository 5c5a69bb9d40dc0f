"""Texts through a model: the overlapping way gives what the plain one does, and what runs ahead is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nvr_rag.encoders import passes
from nvr_rag.encoders.passes import ahead
from nvr_rag.encoders.torch import load_encoder

from .conftest import WIDTH, Build


def test_tokenising_ahead_in_several_windows_gives_the_same_vectors_in_order(
    tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(str(tiny("plain")), device="cpu", threads=1)
    texts = [f"{'red ' * (i % 7)}{'fox green ' * (i % 3)}blue" for i in range(50)]
    alone = np.concatenate([encoder.encode_documents([text]) for text in texts])
    monkeypatch.setattr(passes, "_WINDOW_TEXTS", 16)
    monkeypatch.setattr(passes, "_FIRST_TEXTS", 5)
    threads = set()
    tokenise = encoder._tokens.encode

    def listening(*arguments: object) -> object:
        threads.add((threading.current_thread().name.split("_")[0], len(arguments[0])))  # type: ignore[arg-type]
        return tokenise(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder._tokens, "encode", listening)
    for one in (False, True):
        monkeypatch.setattr(encoder._passes, "_ahead", one)
        found = encoder.encode_documents(texts)
        assert found.shape == (50, WIDTH)
        np.testing.assert_allclose(found, alone, atol=1e-6)
    plain, other = ({size for name, size in threads if (name == "tokenize") is own} for own in (False, True))
    assert (plain, other) == ({16, 2}, {5, 16, 13})  # 16 + 16 + 16 + 2; 5 + 16 + 16 + 13


def test_a_prompt_is_part_of_every_text(tiny: Build) -> None:
    encoder = load_encoder(str(tiny("prompts")), device="cpu", threads=1)
    np.testing.assert_allclose(
        encoder._passes.encode(["red fox"], "query: "), encoder._passes.encode(["query: red fox"]), atol=1e-6
    )


def test_what_is_made_ahead_is_bounded_and_in_order() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    for i, item in enumerate(ahead(items(), 3)):
        assert item == i
        assert len(made) <= i + 5  # this one, three ahead of it, and one that is begun
    assert made == list(range(20))


def test_an_error_ahead_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("cannot be tokenised")

    found = ahead(items(), 2)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="tokenised"):
        next(found)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    found = ahead(iter(range(100)), 2)
    next(found)
    found.close()
    assert threading.active_count() == before


def test_a_query_has_all_cores_alone_and_one_beside_others(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        model = str(tiny("plain"))
        encoder = load_encoder(model, device="cpu", threads=3)
        seen: list[tuple[str, int]] = []
        through, beside = encoder._passes._model.forward, threading.Event()

        def listening(*arguments: object, **options: object) -> object:
            seen.append((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
            if not beside.is_set():
                beside.set()
                other = threading.Thread(target=lambda: found.append(encoder.encode_queries(["red fox"])))
                other.start()
                other.join(30)
            return through(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(encoder._passes._model, "forward", listening)
        found: list[object] = []
        found.append(encoder.encode_queries(["red fox"]))
        assert seen == [("encode", 3), ("encode", 1)]
        again = load_encoder(model, device="cpu", threads=3)
        assert again._passes._cores is encoder._passes._cores  # one thread of the process may have all
        for vectors in found:
            np.testing.assert_allclose(vectors[:1], found[0], atol=1e-6)  # type: ignore[index]
    finally:
        torch.set_num_threads(before)
