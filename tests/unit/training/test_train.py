"""A whole training of a tiny model: what it starts from, what it learns, what it leaves behind."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvr_rag.encoders.model_files import inspect_model, weight_hashes
from nvr_rag.encoders.torch import load_encoder
from nvr_rag.errors import EncoderError, InvalidInput, NvrError
from tests.unit.encoders.conftest import POSITIONS, Build
from training.data import Example, Passage
from training.recipe import Recipe, load_recipe
from training.train import TrainingProgress, TrainingResult, planned_steps, train

COLOURS = ("red", "green", "blue")
TEXTS = {"r": "red fox", "g": "green fox .", "b": "blue blueish fox", "x": "fox fox", "l": "blue red green fox : . fox"}
RECIPE = replace(
    load_recipe("quick"), batch_size=4, min_steps=0, learning_rate=1e-3, temperature=0.1, precision="float32"
)


def passage(name: str) -> Passage:
    return Passage(id=name, text=TEXTS[name])


def example(query: str, positive: str, negatives: str, known: str = "") -> Example:
    return Example(
        query_key=query,
        query=query,
        positive=passage(positive),
        negatives=[passage(name) for name in negatives],
        known=frozenset(positive + known),
    )


EXAMPLES = [
    example("red", "g", "xl"),
    example("green", "b", ""),
    example("blue", "r", "g", known="l"),
    example("blue", "l", "x", known="r"),
]


def trained(
    base: Path, target: Path, recipe: Recipe = RECIPE, *, examples: Sequence[Example] = EXAMPLES, seed: int = 1
) -> TrainingResult:
    return train(examples, str(base), recipe, target, seed=seed, threads=1, report=lambda _: None)


def unreachable(_: TrainingProgress) -> None:
    raise AssertionError("a step was made")


def served_loss(base: Path, examples: Sequence[Example], texts: dict[str, str], temperature: float) -> float:
    """InfoNCE over one batch of all examples from the vectors that the encoder serves: the loss of a first step."""
    encoder = load_encoder(str(base), device="cpu")
    vectors = dict(zip(texts, encoder.encode_documents(list(texts.values())), strict=True))
    total = 0.0
    for one, query in zip(examples, encoder.encode_queries([one.query for one in examples]), strict=True):
        score = {name: math.exp(float(query @ vector) / temperature) for name, vector in vectors.items()}
        counted = [name for name in score if name == one.positive.id or name not in one.known]
        total -= math.log(score[one.positive.id] / sum(score[name] for name in counted))
    return total / len(examples)


@pytest.mark.parametrize("name", ["plain", "prompts", "cls", "dot"])
def test_the_first_loss_is_that_of_the_vectors_that_are_served(tiny: Build, tmp_path: Path, name: str) -> None:
    base = tiny(name)
    temperature = 5.0 if name == "dot" else 0.1
    result = trained(base, tmp_path / "made", replace(RECIPE, temperature=temperature))
    assert result.steps == 1
    assert result.curve[0][1] == pytest.approx(served_loss(base, EXAMPLES, TEXTS, temperature), rel=1e-4)


def test_a_smaller_dimension_is_trained_as_it_is_served(tiny: Build, tmp_path: Path) -> None:
    base = tiny("prompts")
    replace(load_encoder(str(base), device="cpu").spec, dimension=8).save(base)
    result = trained(base, tmp_path / "made")
    assert result.curve[0][1] == pytest.approx(served_loss(base, EXAMPLES, TEXTS, 0.1), rel=1e-4)
    assert load_encoder(str(tmp_path / "made"), device="cpu").encode_queries(["red"]).shape == (1, 8)


def test_long_texts_are_cut_while_training_only(tiny: Build, tmp_path: Path) -> None:
    """Seven tokens are [CLS], passage, colon, three words, [SEP]."""
    base = tiny("prompts")
    cut = {name: " ".join(text.split()[:3]) for name, text in TEXTS.items()} | {"b": "blue blueish"}
    assert load_encoder(str(base), device="cpu").count_tokens(list(cut.values())) == [6, 7, 7, 6, 7]
    result = trained(base, tmp_path / "made", replace(RECIPE, max_document_tokens=7))
    assert result.curve[0][1] == pytest.approx(served_loss(base, EXAMPLES, cut, 0.1), rel=1e-4)
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(tmp_path / "made"), device="cpu").max_seq_length == POSITIONS


@pytest.mark.parametrize("name", ["plain", "prompts", "cls", "dot"])
def test_what_is_made_opens_everywhere_and_is_the_base_but_for_its_weights(
    tiny: Build, tmp_path: Path, name: str
) -> None:
    base = load_encoder(str(tiny(name)), device="cpu")
    result = trained(base.files.directory, tmp_path / "made")
    made = load_encoder(str(result.directory), device="cpu")
    assert made.spec == base.spec
    assert made.tokenizer_hash == base.tokenizer_hash
    assert made.fingerprint == result.fingerprint != base.fingerprint
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(result.directory), device="cpu")
    vectors = model.encode(list(TEXTS.values()), prompt=base.spec.document_prompt or None)
    same = vectors if base.spec.normalize is False else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(made.encode_documents(list(TEXTS.values())), same, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "model"]
    assert not list(result.directory.rglob("*.bin"))


def test_it_learns_what_the_examples_say(tiny: Build, tmp_path: Path) -> None:
    base = tiny("prompts")
    pairs = {"red": "g", "green": "b", "blue": "r"}
    examples = [example(query, positive, "x") for query, positive in pairs.items()]

    def found(directory: Path) -> list[str]:
        encoder = load_encoder(str(directory), device="cpu")
        scores = encoder.encode_queries(COLOURS) @ encoder.encode_documents([TEXTS[name] for name in "rgbx"]).T
        return ["rgbx"[column] for column in scores.argmax(axis=1)]

    assert found(base) != list(pairs.values())
    result = trained(base, tmp_path / "made", replace(RECIPE, epochs=80), examples=examples)
    assert found(result.directory) == list(pairs.values())
    assert result.curve[-1][1] < 0.2 < result.curve[0][1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_equal_arguments_make_equal_bytes(tiny: Build, tmp_path: Path, precision: str) -> None:
    base = tiny("prompts")
    recipe = replace(RECIPE, batch_size=2, epochs=4, precision=precision)

    def weights(target: str, seed: int) -> dict[str, str]:
        return weight_hashes(inspect_model(trained(base, tmp_path / target, recipe, seed=seed).directory))

    first = weights("first", 1)
    torch.rand(3)  # what the process drew before does not matter
    assert weights("second", 1) == first
    assert weights("third", 2) != first


def test_bfloat16_is_for_the_products_only(tiny: Build, tmp_path: Path) -> None:
    base = tiny("prompts")
    result = trained(base, tmp_path / "made", replace(RECIPE, precision="bfloat16"))
    assert result.precision == "bfloat16"
    assert result.curve[0][1] == pytest.approx(served_loss(base, EXAMPLES, TEXTS, 0.1), rel=0.02)
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(result.directory / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("capable", "precision"), [({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "float32")]
)
def test_auto_is_bfloat16_where_the_processor_is_made_for_it(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capable: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable)
    assert trained(tiny("prompts"), tmp_path / "made", replace(RECIPE, precision="auto")).precision == precision


def test_progress_is_told_and_the_curve_kept(tiny: Build, tmp_path: Path) -> None:
    told: list[TrainingProgress] = []
    recipe = replace(RECIPE, batch_size=2, epochs=5, learning_rate=1e-4, warmup_ratio=0.2)
    result = train(EXAMPLES, str(tiny("prompts")), recipe, tmp_path / "made", seed=1, threads=1, report=told.append)
    assert [step for step, _ in result.curve] == list(range(1, 11))
    assert (told[0].step, told[-1].step, told[-1].steps) == (1, 10, 10)
    assert [(one.step, one.loss) for one in told] == [result.curve[one.step - 1] for one in told]
    assert told[0].learning_rate == 0  # it rises in the first two steps
    assert told[-1].learning_rate == pytest.approx(1e-4 / 8)  # and falls to nothing in the eight after them
    assert result.seconds >= told[-1].seconds > 0
    assert result.examples == 4


def test_nothing_is_printed(tiny: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained(tiny("prompts"), tmp_path / "made")
    assert capfd.readouterr() == ("", "")


def test_a_loss_that_is_no_number_ends_it_and_nothing_is_written(tiny: Build, tmp_path: Path) -> None:
    base = tiny("dot")
    with pytest.raises(NvrError, match=r"loss is nan at step 1.*lower learning_rate"):
        trained(base, tmp_path / "made", replace(RECIPE, temperature=1e-42))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_no_numbers_are_not_saved(tiny: Build, tmp_path: Path) -> None:
    base = tiny("prompts")
    with pytest.raises(NvrError, match="not numbers: nothing was saved"):
        trained(base, tmp_path / "made", replace(RECIPE, learning_rate=math.inf))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_training_that_is_stopped_leaves_nothing(tiny: Build, tmp_path: Path) -> None:
    def stop(_: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(EXAMPLES, str(tiny("prompts")), RECIPE, tmp_path / "made", seed=1, threads=1, report=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_training_left_is_cleared_away(tiny: Build, tmp_path: Path) -> None:
    base = tiny("prompts")
    left: list[str] = []

    def leave(_: TrainingProgress) -> None:  # what a kill at this moment would leave
        left.extend(path.name for path in tmp_path.iterdir() if path != base)

    train(EXAMPLES, str(base), RECIPE, tmp_path / "made", seed=1, threads=1, report=leave)
    assert len(left) == 1
    (tmp_path / left[0] / "model").mkdir(parents=True)
    (tmp_path / left[0] / "model" / "half").write_text("")
    shutil.rmtree(tmp_path / "made")
    trained(base, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "model"]
    assert not list((tmp_path / "made").rglob("half"))


def test_what_cannot_begin_is_refused_at_once(tiny: Build, tmp_path: Path) -> None:
    base, taken = str(tiny("prompts")), tmp_path / "taken"
    taken.mkdir()

    def begin(examples: Sequence[Example], base: str, target: Path) -> Any:
        return train(examples, base, RECIPE, target, seed=1, threads=1, report=unreachable)

    with pytest.raises(InvalidInput, match="no examples"):
        begin([], base, tmp_path / "made")
    with pytest.raises(EncoderError, match="taken exists already"):
        begin(EXAMPLES, base, taken)
    with pytest.raises(EncoderError, match="no model directory"):
        begin(EXAMPLES, str(tmp_path / "nowhere"), tmp_path / "made")
    assert not list(taken.iterdir())


@pytest.mark.parametrize(
    ("examples", "epochs", "min_steps", "steps"),
    [
        (3200, 1, 75, 100),  # an epoch is enough
        (3201, 1, 75, 101),  # the last batch may be small
        (800, 1, 75, 75),  # 25 steps an epoch, three times
        (1600, 1, 75, 75),  # one and a half
        (320, 1, 75, 30),  # three epochs at most
        (320, 5, 75, 50),  # unless the recipe wants more
        (1, 1, 0, 1),
    ],
)
def test_few_examples_are_seen_up_to_three_times(examples: int, epochs: int, min_steps: int, steps: int) -> None:
    recipe = replace(RECIPE, batch_size=32, epochs=epochs, min_steps=min_steps)
    assert planned_steps(examples, recipe) == steps
