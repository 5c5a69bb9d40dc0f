"""The doubles that other tests stand on; MemoryStore is under the store contract besides."""

from __future__ import annotations

import numpy as np
import pytest

from nvr_rag.errors import StoreBusy, StoreError, StoreUnavailable
from nvr_rag.testing import Crash, Fault, FaultyStore, HashEncoder, MemoryStore
from tests.contract.store_cases import CONFIG, point, terms, uid, vector


def test_a_memory_index_has_one_owner() -> None:
    store = MemoryStore()
    store.create("main", CONFIG)
    index = store.open("main")
    with pytest.raises(StoreBusy):
        store.open("main")
    with pytest.raises(StoreBusy):
        store.drop("main")
    index.close()
    store.open("main")


@pytest.mark.parametrize(("power_cut", "left"), [(False, [1, 2]), (True, [1])])
def test_a_killed_owner_keeps_its_writes_and_a_power_cut_only_the_flushed(power_cut: bool, left: list[int]) -> None:
    store = MemoryStore()
    store.create("main", CONFIG)
    index = store.open("main")
    index.upsert([point(1, payload={"uri": "old"})])
    index.flush()
    index.upsert([point(2)])
    store.kill(power_cut=power_cut)
    with pytest.raises(StoreError, match="closed"):
        index.count()
    assert [stored.id for stored in store.open("main").scan()] == [uid(n) for n in left]


def test_writing_to_a_vector_after_upsert_changes_nothing_stored() -> None:
    store = MemoryStore()
    store.create("main", CONFIG)
    index = store.open("main")
    mine = point(1, (1.0,))
    index.upsert([mine])
    mine.dense[0] = 7.0
    assert index.search_dense(vector(1.0), 1)[0].score == 1.0


def test_hash_vectors_are_unit_deterministic_and_close_for_shared_words() -> None:
    encoder = HashEncoder()
    vectors = encoder.encode_documents(["how to roll back a deployment", "roll back", "cheese and wine"])
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 1.0, 1.0])
    assert (
        vectors == HashEncoder().encode_documents(["how to roll back a deployment", "roll back", "cheese and wine"])
    ).all()
    scores = vectors @ encoder.encode_queries(["roll back deployment"])[0]
    assert scores[0] > scores[2]
    assert scores[1] > scores[2]
    assert encoder.encode_documents([]).shape == (0, 64)


def test_hash_roles_differ_by_their_prompts_only() -> None:
    text = "roll back"
    encoder = HashEncoder()
    assert not np.array_equal(encoder.encode_queries([text]), encoder.encode_documents([text]))
    plain = HashEncoder(query_prompt="")
    assert np.array_equal(plain.encode_queries([text]), plain.encode_documents([text]))


def test_hash_tokens_count_specials_and_prompt_and_texts_are_cut_at_the_budget() -> None:
    encoder = HashEncoder(max_tokens=6, document_prompt="passage: ")
    assert encoder.count_tokens(["", "one two", "one, two!"]) == [4, 6, 8]
    assert np.array_equal(encoder.encode_documents(["one two three"]), encoder.encode_documents(["one two"]))


def test_hash_fingerprints_tell_versions_apart_that_share_a_tokenizer() -> None:
    first, second = HashEncoder(), HashEncoder(seed=1)
    assert first.fingerprint == HashEncoder().fingerprint != second.fingerprint
    assert first.fingerprint != HashEncoder(max_tokens=32).fingerprint
    assert first.tokenizer_hash == second.tokenizer_hash
    assert not np.array_equal(first.encode_documents(["a"]), second.encode_documents(["a"]))


def test_hash_encoder_counts_what_it_embedded() -> None:
    encoder = HashEncoder()
    encoder.encode_documents(["a", "b"])
    encoder.encode_queries(["c"])
    encoder.encode_documents(["a"])
    assert encoder.encoded == 3


@pytest.mark.parametrize(("after", "count"), [(False, 1), (True, 2)])
def test_a_fault_strikes_once_before_or_after_the_chosen_call(after: bool, count: int) -> None:
    store = FaultyStore(MemoryStore(), Fault(method="upsert", call=2, after=after, error=StoreUnavailable))
    store.create("main", CONFIG)
    index = store.open("main")
    index.upsert([point(1)])
    with pytest.raises(StoreUnavailable):
        index.upsert([point(2)])
    assert index.count() == count
    index.upsert([point(3, lexical=terms())])
    assert store.calls == ["create", "open", "upsert", "upsert", "count", "upsert"]


def test_a_fault_without_a_method_counts_every_call() -> None:
    store = FaultyStore(MemoryStore(), Fault(call=3))
    store.create("main", CONFIG)
    index = store.open("main")
    with pytest.raises(Crash):
        list(index.scan())
    assert not issubclass(Crash, Exception)
    index.close()
    store.fault = None
    store.drop("main")
    assert store.names() == []
