from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nvr_rag.encoders.base import Encoder
from nvr_rag.encoders.bundled import BUNDLED, bundled_directory
from nvr_rag.encoders.spec import SPEC_FILE, EncoderSpec
from nvr_rag.encoders.torch import TorchEncoder, export, load_encoder
from nvr_rag.errors import EncoderError

from .conftest import POSITIONS, WIDTH, Build

TEXTS = ["red fox.", "", "green " * 30, "a blueish thing", "FOX fox \ud83d", "red " * 12]


@pytest.fixture(scope="module")
def bundled() -> TorchEncoder:
    return load_encoder(BUNDLED, device="cpu")


def reference(
    directory: Path, texts: Sequence[str], *, max_tokens: int, pooling: str = "mean", normalize: bool = True
) -> NDArray[np.float32]:
    """Vectors by transformers alone, one text at a time, no padding: nothing shared with ours."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(
            text.replace("\ud83d", "\ufffd"), return_tensors="pt", truncation=True, max_length=max_tokens
        )
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]  # (T, D)
        row = hidden[0] if pooling == "cls" else hidden.mean(0)
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows).numpy()


def test_the_bundled_model_gives_the_vectors_of_plain_transformers(bundled: TorchEncoder) -> None:
    texts = ["How do I roll back?", "", "Ein Satz über Öl. 全文検索", "word " * 700, "x\ud83dy"]
    wanted = reference(bundled_directory(), texts, max_tokens=256)
    np.testing.assert_allclose(bundled.encode_documents(texts), wanted, atol=1e-5)
    np.testing.assert_allclose(bundled.encode_queries(texts), wanted, atol=1e-5)


def test_golden_vectors_of_the_bundled_model(bundled: TorchEncoder) -> None:
    # Computed once with transformers' AutoModel, mean pooling and L2 normalisation.
    texts = ["How do I roll back to the previous retriever?", "The quick brown fox jumps over the lazy dog."]
    wanted = [
        [-0.026197, 0.009602, 0.027569, 0.039483, -0.058492, 0.026634],
        [0.043934, 0.058934, 0.048178, 0.077548, 0.026744, -0.03763],
    ]
    np.testing.assert_allclose(bundled.encode_queries(texts)[:, :6], wanted, atol=1e-5)


def test_the_spec_of_the_bundled_model(bundled: TorchEncoder) -> None:
    encoder: Encoder = bundled
    assert encoder.spec == EncoderSpec(dimension=384, max_tokens=256, pooling="mean", normalize=True)
    assert len(encoder.fingerprint) == len(encoder.tokenizer_hash) == 64


def test_vectors_are_float32_contiguous_and_in_order(bundled: TorchEncoder) -> None:
    texts = [f"number {i} " + "word " * ((i * 7) % 40) for i in range(50)]
    together = bundled.encode_documents(texts)
    assert together.dtype == np.float32
    assert together.flags.c_contiguous
    assert together.shape == (50, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([bundled.encode_documents([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts_give_no_rows(bundled: TorchEncoder) -> None:
    assert bundled.encode_queries([]).shape == (0, 384)
    assert bundled.encode_documents([]).shape == (0, 384)
    assert bundled.count_tokens([]) == []


def test_bundled_token_counts(bundled: TorchEncoder) -> None:
    # [CLS] hello world ! [SEP]; nothing is cut at 256.
    assert bundled.count_tokens(["Hello world!", "", "word " * 1000]) == [5, 2, 1002]


@pytest.mark.parametrize(
    ("name", "pooling", "normalize"), [("plain", "mean", True), ("cls", "cls", True), ("dot", "mean", False)]
)
def test_poolings_and_normalisation(tiny: Build, name: str, pooling: str, normalize: bool) -> None:
    directory = tiny(name)
    encoder = load_encoder(str(directory), device="cpu")
    assert encoder.spec == EncoderSpec(
        dimension=WIDTH, max_tokens=POSITIONS, pooling=pooling, normalize=normalize, context_bytes=18
    )
    wanted = reference(directory, TEXTS, max_tokens=POSITIONS, pooling=pooling, normalize=normalize)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), wanted, atol=1e-5)


def test_roles_have_their_own_prompts(tiny: Build) -> None:
    directory = tiny("prompts")
    encoder = load_encoder(str(directory), device="cpu")
    assert (encoder.spec.query_prompt, encoder.spec.document_prompt) == ("query: ", "passage: ")
    queries, documents = encoder.encode_queries(["red fox"]), encoder.encode_documents(["red fox"])
    assert np.abs(queries - documents).max() > 1e-3
    max_tokens = encoder.spec.max_tokens
    np.testing.assert_allclose(queries, reference(directory, ["query: red fox"], max_tokens=max_tokens), atol=1e-5)
    np.testing.assert_allclose(documents, reference(directory, ["passage: red fox"], max_tokens=max_tokens), atol=1e-5)
    assert encoder.count_tokens(["red fox"]) == [6]  # [CLS] passage : red fox [SEP]
    assert encoder.count_query_tokens(["red fox", "fox"]) == [6, 5]  # [CLS] query : red fox [SEP]


def test_a_prompt_left_out_of_pooling_is_left_out(tiny: Build) -> None:
    from sentence_transformers import SentenceTransformer

    directory = tiny("prompts")
    edit(directory / "1_Pooling" / "config.json", include_prompt=False)
    peer = SentenceTransformer(str(directory), device="cpu")
    wanted = peer.encode(["red fox", "green"], prompt="query: ")
    np.testing.assert_allclose(load_encoder(str(directory)).encode_queries(["red fox", "green"]), wanted, atol=1e-5)
    assert (
        np.abs(wanted - load_encoder(str(tiny("prompts", "other"))).encode_queries(["red fox", "green"])).max() > 1e-4
    )


def test_eight_threads_encode_and_count_at_once(bundled: TorchEncoder) -> None:
    texts = [f"text {i} " * (1 + i % 5) for i in range(24)]
    vectors, counts = bundled.encode_documents(texts), bundled.count_tokens(texts)

    def work(_: int) -> bool:
        same = bundled.count_tokens(texts) == counts
        return same and bool(np.abs(bundled.encode_queries(texts) - vectors).max() < 1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


def test_a_query_does_not_wait_for_a_bulk(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(tiny("plain")), device="cpu")
    in_bulk, may_go_on = threading.Event(), threading.Event()
    model: Any = encoder._passes._model

    def slow(features: dict[str, Any]) -> Any:
        if len(features["input_ids"]) > 1:  # a batch of the bulk stands still inside the model
            in_bulk.set()
            assert may_go_on.wait(30)
        return model(features)

    monkeypatch.setattr(encoder._passes, "_model", slow)
    with ThreadPoolExecutor(1) as pool:
        bulk = pool.submit(encoder.encode_documents, ["red fox"] * 64)
        assert in_bulk.wait(30)
        query = encoder.encode_queries(["red fox"])
        assert not bulk.done()
        may_go_on.set()
        np.testing.assert_allclose(bulk.result(30), np.repeat(query, 64, axis=0), atol=1e-5)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def retensor(directory: Path, change: Any) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_model_that_gives_no_numbers_is_an_error(tiny: Build) -> None:
    directory = tiny("plain")
    retensor(directory, lambda tensors: tensors["embeddings.LayerNorm.weight"].fill(np.nan))
    with pytest.raises(EncoderError, match="not numbers"):
        load_encoder(str(directory)).encode_queries(["red"])


def test_weights_with_a_tensor_missing_are_refused(tiny: Build) -> None:
    directory = tiny("plain")
    retensor(directory, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(EncoderError, match=r"lack encoder\.layer\.1\.output\.dense\.weight"):
        load_encoder(str(directory))


def test_weights_without_a_pooler_are_fine(tiny: Build) -> None:
    directory = tiny("plain")
    before = load_encoder(str(directory)).encode_queries(["red"])
    retensor(directory, lambda tensors: [tensors.pop(f"pooler.dense.{name}") for name in ("weight", "bias")])
    np.testing.assert_array_equal(load_encoder(str(directory)).encode_queries(["red"]), before)


def test_weights_of_another_shape_are_refused(tiny: Build) -> None:
    directory = tiny("plain")
    edit(directory / "config.json", hidden_size=64)
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(directory))


def test_a_tokenizer_of_another_model_is_refused(tiny: Build) -> None:
    directory = tiny("plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((bundled_directory() / name).read_bytes())
    with pytest.raises(EncoderError, match="30522 tokens, its model 14"):
        load_encoder(str(directory))


def test_an_unknown_architecture_is_refused(tiny: Build) -> None:
    directory = tiny("plain")
    edit(directory / "config.json", model_type="no-such-type")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(directory))


def test_an_impossible_device_is_refused(tiny: Build) -> None:
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(tiny("plain")), device="abacus")


def test_half_precision_weights_are_computed_in_float32(tiny: Build) -> None:
    directory = tiny("plain")
    full = load_encoder(str(directory)).encode_queries(["red fox"])
    retensor(directory, lambda tensors: tensors.update({k: v.astype(np.float16) for k, v in tensors.items()}))
    edit(directory / "config.json", dtype="float16")
    half = load_encoder(str(directory)).encode_queries(["red fox"])
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, atol=1e-2)


def test_distances_that_an_index_cannot_compute_are_refused(tiny: Build) -> None:
    directory = tiny("dot")
    edit(directory / "config_sentence_transformers.json", similarity_fn_name="euclidean")
    with pytest.raises(EncoderError, match="euclidean"):
        load_encoder(str(directory))


@pytest.mark.parametrize("source", ["/no/such/model", "./nothing here", "bundled:other", "", "nothing"])
def test_a_source_that_is_nothing_is_refused_with_the_choices(source: str) -> None:
    with pytest.raises(EncoderError, match="owner/name") as caught:
        load_encoder(source)
    assert BUNDLED in str(caught.value)


def test_a_hub_model_is_fetched_without_pickles_and_code(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny("cls")
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_encoder("owner/model").fingerprint == load_encoder(str(directory)).fingerprint
    assert asked["name"] == "owner/model"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not [pattern for pattern in asked["allow_patterns"] if pattern in ("*", "*.bin", "*.py", "*.pt")]


def test_a_hub_out_of_reach_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(EncoderError, match="could not be fetched") as caught:
        load_encoder("owner/model")
    assert BUNDLED in str(caught.value)


def test_the_bundled_weights_are_checked(monkeypatch: pytest.MonkeyPatch, tiny: Build) -> None:
    monkeypatch.setattr("nvr_rag.encoders.torch.bundled_directory", lambda: tiny("plain"))
    with pytest.raises(EncoderError, match="not those of all-MiniLM-L6-v2"):
        load_encoder()


def test_an_exported_model_is_the_same_encoder(bundled: TorchEncoder, tmp_path: Path) -> None:
    export(bundled, tmp_path / "version")
    loaded = load_encoder(str(tmp_path / "version"))
    assert loaded.fingerprint == bundled.fingerprint
    assert loaded.spec == bundled.spec
    assert loaded.tokenizer_hash == bundled.tokenizer_hash
    np.testing.assert_array_equal(loaded.encode_queries(["red"]), bundled.encode_queries(["red"]))
    with pytest.raises(EncoderError, match="exists already"):
        export(bundled, tmp_path / "version")


def test_a_model_saved_again_keeps_its_tokenizer_hash(bundled: TorchEncoder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bundled_directory()), device="cpu")
    model.max_seq_length = 128
    model.encode(["this sets truncation and padding"])
    model.save(str(tmp_path / "tuned"))
    tuned = load_encoder(str(tmp_path / "tuned"))
    assert tuned.tokenizer_hash == bundled.tokenizer_hash
    assert tuned.spec.max_tokens == 128
    assert tuned.fingerprint != bundled.fingerprint


def test_the_fingerprint_sees_weights_tokenizer_and_prompts(tiny: Build) -> None:
    before = load_encoder(str(tiny("prompts", "before")))
    weights, words, prompts = tiny("prompts", "weights"), tiny("prompts", "words"), tiny("prompts", "prompts")
    retensor(weights, lambda tensors: tensors["embeddings.word_embeddings.weight"].__setitem__((8, 0), 0.5))
    edit(prompts / "config_sentence_transformers.json", prompts={"query": "query:", "passage": "passage: "})
    tokenizer = (words / "tokenizer.json").read_text()
    (words / "tokenizer.json").write_text(tokenizer.replace('"fox"', '"cat"'))
    (words / "vocab.txt").unlink(missing_ok=True)
    others = [load_encoder(str(directory)) for directory in (weights, words, prompts)]
    assert len({encoder.fingerprint for encoder in (before, *others)}) == 4
    assert [encoder.tokenizer_hash == before.tokenizer_hash for encoder in others] == [True, False, True]


def with_spec(directory: Path, **changes: Any) -> str:
    spec = load_encoder(str(directory)).spec
    replace(spec, **changes).save(directory)
    return str(directory)


def test_a_spec_beside_the_weights_rules(tiny: Build) -> None:
    plain = load_encoder(str(tiny("plain", "other")))
    encoder = load_encoder(with_spec(tiny("plain"), query_prompt="query: ", max_tokens=12, dimension=8))
    assert (encoder.spec.query_prompt, encoder.spec.max_tokens) == ("query: ", 12)
    vectors = encoder.encode_queries(["red fox"])
    whole = plain.encode_queries(["query: red fox"])[:, :8]  # the leading components, of length 1 again
    np.testing.assert_allclose(vectors, whole / np.linalg.norm(whole), atol=1e-5)
    assert encoder.fingerprint != plain.fingerprint
    assert encoder.tokenizer_hash == plain.tokenizer_hash


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dimension": 33}, "dimension 33, the model makes 32"),
        ({"max_tokens": 25}, "max_tokens 25, the model reads 24"),
        ({"pooling": "cls"}, "pooling 'cls', the model has 'mean'"),
        ({"query_prompt": "red " * 30}, "leaves no room"),
    ],
)
def test_a_spec_that_the_model_does_not_keep_is_refused(tiny: Build, change: dict[str, Any], reason: str) -> None:
    source = with_spec(tiny("plain"), **change)
    with pytest.raises(EncoderError, match=reason):
        load_encoder(source)


def test_a_spec_of_a_newer_release_is_refused(tiny: Build) -> None:
    directory = tiny("plain")
    spec = asdict(load_encoder(str(directory)).spec)
    (directory / SPEC_FILE).write_text(json.dumps({**spec, "temperature": 0.02}))
    with pytest.raises(EncoderError, match="temperature"):
        load_encoder(str(directory))
