from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nvr_rag.encoders.spec import SPEC_FILE, EncoderSpec
from nvr_rag.errors import EncoderError

SPEC = EncoderSpec(dimension=8, max_tokens=16, pooling="mean", normalize=True, query_prompt="Frage: ")


def test_a_saved_spec_loads_equal(tmp_path: Path) -> None:
    SPEC.save(tmp_path)
    assert EncoderSpec.load(tmp_path) == SPEC


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_tokens": "16"}, "max_tokens must be of type int"),
        ({"max_tokens": True}, "max_tokens must be of type int"),
        ({"max_tokens": 0}, "max_tokens is too small"),
        ({"dimension": -1}, "dimension is too small"),
        ({"context_bytes": -1}, "context_bytes is too small"),
        ({"normalize": 1}, "normalize must be of type bool"),
        ({"query_prompt": None}, "query_prompt must be of type str"),
        ({"temperature": 1}, "unknown keys ['temperature']"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    (tmp_path / SPEC_FILE).write_text(json.dumps({**asdict(SPEC), **change}))
    with pytest.raises(EncoderError) as caught:
        EncoderSpec.load(tmp_path)
    assert reason in str(caught.value)
    assert str(tmp_path / SPEC_FILE) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"dimension": 8}', "\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SPEC_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(EncoderError, match="not a usable encoder spec"):
        EncoderSpec.load(tmp_path)


def test_optional_fields_may_be_left_out(tmp_path: Path) -> None:
    values = {"dimension": 8, "max_tokens": 16, "pooling": "cls", "normalize": False}
    (tmp_path / SPEC_FILE).write_text(json.dumps(values))
    assert EncoderSpec.load(tmp_path) == EncoderSpec(dimension=8, max_tokens=16, pooling="cls", normalize=False)


def test_documents_are_rendered_with_title_and_headings_once() -> None:
    assert SPEC.render(title="Guide", headings=("Guide", "Start"), text="Do it.") == "Guide > Start\nDo it."
    assert SPEC.render(title="", headings=(), text="Do it.") == "Do it."


def test_a_context_over_its_bytes_is_cut_between_characters() -> None:
    spec = EncoderSpec(dimension=8, max_tokens=16, pooling="mean", normalize=True, context_bytes=9)
    assert spec.context(title="ééééé", headings=()) == "éééé"  # two bytes each, 9 hold four
    assert spec.context(title="ab", headings=("outer part", "in")) == "ab > in"
