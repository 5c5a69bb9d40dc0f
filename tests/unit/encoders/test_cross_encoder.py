"""Cross-encoders: the scores are those of sentence-transformers, and what cannot be used is refused with a reason."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvr_rag.encoders import cross_encoder
from nvr_rag.encoders.cross_encoder import load_cross_encoder
from nvr_rag.errors import EncoderError
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore, WordReranker
from nvr_rag.workspace import Workspace
from tests.unit.encoders.conftest import POSITIONS, Build

QUERY = "red fox"
TEXTS = ["green fox .", "blue", "", "red red red fox fox", "query : passage", "green blue"] * 7


def reference(directory: Path, query: str, texts: list[str]) -> Any:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(directory), device="cpu")
    return np.array([model.predict([(query, text)], show_progress_bar=False)[0] for text in texts])


@pytest.mark.parametrize("name", ["pairs", "saved-pairs"])
def test_scores_are_those_of_the_library_in_the_order_given(tiny: Build, name: str) -> None:
    directory = tiny(name)
    scores = load_cross_encoder(str(directory)).score(QUERY, TEXTS)
    np.testing.assert_allclose(scores, reference(directory, QUERY, TEXTS), rtol=1e-4)
    assert len({round(score, 6) for score in scores}) == 6  # texts that differ are told apart
    assert all(isinstance(score, float) for score in scores)


def test_nothing_is_scored_without_texts(tiny: Build) -> None:
    assert load_cross_encoder(str(tiny("pairs"))).score(QUERY, []) == []


def test_what_is_too_long_is_cut_to_what_the_model_reads(tiny: Build) -> None:
    reranker = load_cross_encoder(str(tiny("pairs")))
    long = ["green " * 500, "blue " * 40, "green " * (POSITIONS - 5)]
    first, _, cut = reranker.score(QUERY, long)
    assert first == pytest.approx(cut, rel=1e-4)  # [CLS] red fox [SEP] green ... [SEP]: 19 fit
    assert np.isfinite(reranker.score("red " * 1000, long)).all()


def test_threads_share_a_model(tiny: Build) -> None:
    reranker = load_cross_encoder(str(tiny("pairs")))
    expected = reranker.score(QUERY, TEXTS[:6])
    with ThreadPoolExecutor(4) as pool:
        asked = [[*TEXTS[:6], "red " * n] for n in range(24)]
        for scores in pool.map(lambda texts: reranker.score(QUERY, texts), asked):
            assert scores[:6] == pytest.approx(expected, rel=1e-4)


def test_the_fingerprint_names_weights_and_settings(tiny: Build) -> None:
    first, same = tiny("pairs"), tiny("pairs", "same")
    assert load_cross_encoder(str(first)).fingerprint == load_cross_encoder(str(same)).fingerprint
    config = json.loads((same / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (same / "config.json").write_text(json.dumps(config))
    other = load_cross_encoder(str(same))
    assert other.fingerprint != load_cross_encoder(str(first)).fingerprint
    assert other.score(QUERY, TEXTS[:2]) != load_cross_encoder(str(first)).score(QUERY, TEXTS[:2])


def with_config(**values: Any) -> Any:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def as_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def cut_off(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"x" * 40)


def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (as_pickle, "pickle"),
        (cut_off, "damaged or cut off"),
        (no_tokenizer, "no tokenizer"),
        (with_config(auto_map={"AutoModel": "code.Model"}), "auto_map"),
        (with_config(sentence_transformers={"activation_fn": "os.system"}), "none of torch.nn"),
        (with_config(sbert_ce_default_activation_function="torch.hub.load"), "none of torch.nn"),
        (with_config(sentence_transformers={"activation_fn": ["x"]}), "none of torch.nn"),
        (with_config(model_type="no-such-kind"), "cannot be loaded"),
    ],
)
def test_what_is_unsafe_or_broken_is_refused_with_the_file(tiny: Build, change: Any, reason: str) -> None:
    directory = tiny("pairs")
    change(directory)
    with pytest.raises(EncoderError, match=reason) as raised:
        load_cross_encoder(str(directory))
    assert str(directory) in str(raised.value)


def test_an_encoder_of_single_texts_is_no_reranker(tiny: Build) -> None:
    with pytest.raises(EncoderError, match=r"lack classifier\.\w+ .*no cross-encoder"):
        load_cross_encoder(str(tiny("plain")))
    with pytest.raises(EncoderError, match="must be a CrossEncoder"):
        load_cross_encoder(str(tiny("prompts", "other")))


def test_a_model_with_several_scores_is_refused(tiny: Build) -> None:
    with pytest.raises(EncoderError, match="gives 3 scores"):
        load_cross_encoder(str(tiny("classes")))


@pytest.mark.parametrize("source", ["", "no such place", "/nowhere/at/all", "bundled:all-MiniLM-L6-v2"])
def test_what_is_no_directory_and_no_hub_id_is_refused(source: str) -> None:
    with pytest.raises(EncoderError, match="leave NVR_RERANKER unset"):
        load_cross_encoder(source)


def test_what_the_libraries_raise_says_what_to_do(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = load_cross_encoder(str(tiny("pairs")))

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reranker._model, "predict", fails)
    with pytest.raises(EncoderError, match="NVR_RERANK_DEPTH"):
        reranker.score(QUERY, ["red"])
    monkeypatch.setattr(reranker._model, "predict", lambda *_, **__: np.array([np.nan], np.float32))
    with pytest.raises(EncoderError, match="not numbers"):
        reranker.score(QUERY, ["red"])


def test_a_workspace_loads_the_reranker_of_its_settings_once(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(source: str, **options: Any) -> WordReranker:
        loaded.append(source)
        return WordReranker()

    monkeypatch.setattr(cross_encoder, "load_cross_encoder", load)
    for source in (None, "some/model"):
        settings = Settings(home=tmp_path / str(source).replace("/", "-"), reranker=source)
        with Workspace(settings, store=MemoryStore(), encoder=HashEncoder()) as workspace:
            found = [workspace.reranker() for _ in range(3)]
        assert all(one is found[0] for one in found)
        assert (found[0] is None) == (source is None)
    assert loaded == ["some/model"]


def test_the_double_prefers_texts_with_more_of_the_words() -> None:
    reranker = WordReranker()
    best, good, none = reranker.score("red fox", ["A red fox.", "the fox", "whale"])
    assert best > good > none
    assert reranker.scored == 3
