"""Recipes are read strictly: what is missing, misspelt or out of range is named with its file and key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from nvr_rag.errors import InvalidInput
from training.recipe import Recipe, load_recipe

Write = Callable[..., Path]

SHIPPED = Path(__file__).parents[3] / "training" / "recipes"


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """The quick recipe with one line in place of another, as a file."""

    def write(old: str = "", new: str = "") -> Path:
        text = (SHIPPED / "quick.toml").read_text(encoding="utf-8")
        lines = [new if old and line.startswith(old) else line for line in text.splitlines()]
        path = tmp_path / "mine.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def test_quick_is_what_the_design_says() -> None:
    quick = load_recipe("quick")
    mining = (quick.rule, quick.ratio, quick.margin, quick.depth, quick.negatives)
    training = (quick.epochs, quick.batch_size, quick.learning_rate, quick.temperature, quick.warmup_ratio)
    assert mining == ("perc-pos", 0.95, 0.05, 100, 4)
    assert training == (1, 32, 3e-5, 0.05, 0.1)
    assert (quick.max_document_tokens, quick.precision) == (128, "auto")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read_by_its_bare_name(path: Path) -> None:
    assert load_recipe(path.stem) == load_recipe(path)


def test_a_file_of_ones_own_is_read_by_its_path(written: Write) -> None:
    assert load_recipe(written("learning_rate", "learning_rate = 1")).learning_rate == 1.0
    assert load_recipe(str(written("rule", 'rule = "naive"'))).rule == "naive"


def test_as_json_has_every_field_and_makes_the_recipe_again() -> None:
    quick = load_recipe("quick")
    assert list(quick.as_json()) == [one.name for one in fields(Recipe)]
    assert Recipe(**quick.as_json()) == quick  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "key", "problem"),
    [
        ("rule", 'rule = "abs"', "mining.rule", "must be one of naive, margin-pos, perc-pos, not 'abs'"),
        ("rule", "rule = 3", "mining.rule", "must be one of"),
        ("ratio", "ratio = 1.5", "mining.ratio", "must be above 0 and at most 1, not 1.5"),
        ("ratio", "ratio = 0", "mining.ratio", "must be above 0"),
        ("margin", "margin = -0.1", "mining.margin", "must be at least 0"),
        ("depth", "depth = 0", "mining.depth", "must be at least 1"),
        ("depth", "depth = 9.5", "mining.depth", "must be a whole number, not 9.5"),
        ("negatives", "negatives = true", "mining.negatives", "must be a whole number, not True"),
        ("neighbours", "", "mining.neighbours", "is missing"),
        ("neighbours", "neighbors = 1", "mining.neighbours", "is missing"),
        ("epochs", 'epochs = "1"', "training.epochs", "must be a whole number, not '1'"),
        ("batch_size", "batch_size = 1", "training.batch_size", "must be at least 2"),
        ("learning_rate", "learning_rate = 0.0", "training.learning_rate", "must be above 0"),
        ("learning_rate", "learning_rate = nan", "training.learning_rate", "must be above 0"),
        ("temperature", "temperature = inf", "training.temperature", "must be above 0, not inf"),
        ("precision", 'precision = "float16"', "training.precision", "must be one of auto, float32, bfloat16"),
        ("seed", "seed = 4294967296", "training.seed", "must be at least 0 and at most 4294967295"),
    ],
)
def test_a_wrong_value_is_named(written: Write, old: str, new: str, key: str, problem: str) -> None:
    path = written(old, new)
    with pytest.raises(InvalidInput, match=r"mine\.toml") as caught:
        load_recipe(path)
    assert f"{key} {problem}" in str(caught.value)
    assert caught.value.field == key


def test_what_is_not_known_is_named(written: Write) -> None:
    with pytest.raises(InvalidInput, match=r"mine\.toml: training\.learning-rate is not known") as caught:
        load_recipe(written("epochs", "epochs = 1\nlearning-rate = 1e-5"))
    assert caught.value.field == "training.learning-rate"
    with pytest.raises(InvalidInput, match=r"mine\.toml: gate is not known"):
        load_recipe(written("[training]", "[gate]\nqueries = 5\n[training]"))


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[mining\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"broken\.toml cannot be read"):
        load_recipe(broken)
    with pytest.raises(InvalidInput, match=r"none\.toml cannot be read"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(InvalidInput, match=r"no recipe 'quik'.*one of: .*quick"):
        load_recipe("quik")
