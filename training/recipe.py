"""Recipes: every number of a lap, read from a TOML file. A file enters, a checked record leaves.

Knows no model and no data. The recipes that come with the package are beside this file, in `recipes/`.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nvr_rag.errors import InvalidInput

RULES = ("naive", "margin-pos", "perc-pos")
PRECISIONS = ("auto", "float32", "bfloat16")

_SHIPPED = Path(__file__).with_name("recipes")


def _number(group: str, low: float, high: float = math.inf, *, above: bool = False) -> Any:
    """A field for a number of a TOML table: at least `low`, or `above` it, and at most `high`."""
    return field(metadata={"group": group, "low": low, "high": high, "above": above})


def _choice(group: str, values: tuple[str, ...]) -> Any:
    return field(metadata={"group": group, "values": values})


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How negatives are mined and how the encoder is trained. Every field is a key of its TOML table."""

    rule: str = _choice("mining", RULES)  # which candidates may be negatives
    margin: float = _number("mining", 0)  # of margin-pos: a negative scores less than its positive minus this
    ratio: float = _number("mining", 0, 1, above=True)  # of perc-pos: less than its positive times this
    depth: int = _number("mining", 1)  # candidates examined a query
    negatives: int = _number("mining", 0)  # kept for each (query, positive)
    neighbours: int = _number("mining", 0)  # chunks before and after a positive, in its document, that are no negatives

    epochs: int = _number("training", 1)  # passes over the examples
    min_steps: int = _number("training", 0)  # of the optimiser; more passes where there would be fewer, three at most
    batch_size: int = _number("training", 2)  # examples a step
    learning_rate: float = _number("training", 0, 1, above=True)  # at its peak
    warmup_ratio: float = _number("training", 0, 1)  # share of the steps in which the rate rises; then it falls to 0
    weight_decay: float = _number("training", 0, 1)  # of AdamW
    temperature: float = _number("training", 0, above=True)  # that scores are divided by
    max_query_tokens: int = _number("training", 8)  # prompt and special tokens included
    max_document_tokens: int = _number("training", 8)  # the same of passages, in training only
    precision: str = _choice("training", PRECISIONS)  # of matrix products; auto = bfloat16 where it is fast
    seed: int = _number("training", 0, 2**32 - 1)  # of the order of the examples

    def as_json(self) -> dict[str, str | int | float]:
        """Every value under its name, in the order of the fields."""
        return asdict(self)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe: a file, or the bare name of one that comes with the package. Raises InvalidInput: file and key."""
    path = _find(str(name_or_path))
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the recipe {path} cannot be read: {error}", field="recipe") from error
    values: dict[str, Any] = {}
    for one in fields(Recipe):
        table = tables.get(one.metadata["group"])
        if not isinstance(table, dict) or one.name not in table:
            raise _invalid(path, one.metadata["group"], one.name, "is missing")
        values[one.name] = _checked(path, one.name, str(one.type), table.pop(one.name), one.metadata)
    _check_rest(path, tables)
    return Recipe(**values)


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.name != name_or_path or path.suffix:  # a folder or an ending: a file
        return path
    shipped = _SHIPPED / f"{name_or_path}.toml"
    if not shipped.is_file():
        names = ", ".join(sorted(one.stem for one in _SHIPPED.glob("*.toml")))
        raise InvalidInput(f"there is no recipe {name_or_path!r}; give a TOML file or one of: {names}", field="recipe")
    return shipped


def _checked(path: Path, key: str, kind: str, value: Any, rule: Any) -> str | int | float:
    if "values" in rule:
        if value not in rule["values"]:
            raise _invalid(path, rule["group"], key, f"must be one of {', '.join(rule['values'])}, not {value!r}")
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
        raise _invalid(path, rule["group"], key, f"must be {'a whole' if kind == 'int' else 'a'} number, not {value!r}")
    low, high = rule["low"], rule["high"]
    if not (math.isfinite(value) and low <= value <= high) or (rule["above"] and value == low):
        bound = f"{'above' if rule['above'] else 'at least'} {low}" + (
            f" and at most {high}" if high < math.inf else ""
        )
        raise _invalid(path, rule["group"], key, f"must be {bound}, not {value!r}")
    return value if kind == "int" else float(value)


def _check_rest(path: Path, tables: dict[str, Any]) -> None:
    """Raise InvalidInput for what no field has taken."""
    groups = {one.metadata["group"] for one in fields(Recipe)}
    for name, table in tables.items():
        if name not in groups:
            raise InvalidInput(f"{path}: {name} is not known; the tables are mining and training", field=name)
        for key in table:
            raise _invalid(path, name, key, "is not known; remove it or correct its name")


def _invalid(path: Path, group: str, key: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{path}: {group}.{key} {problem}", field=f"{group}.{key}")
