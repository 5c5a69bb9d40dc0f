"""What an encoder is, apart from its weights: roles, template, budget. Saved beside the weights and fingerprinted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvr_rag.errors import EncoderError

SPEC_FILE = "nvr_encoder.json"
_SLACK = 0.01  # of a length of 1: half precision makes 0.001
_JOIN = " > "


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _cut(text: str, size: int) -> str:
    """The longest prefix of `text` of at most `size` UTF-8 bytes."""
    return text.encode("utf-8", "surrogatepass")[:size].decode("utf-8", "ignore")


def _check(name: str, kind: str, value: object) -> None:
    """Raise ValueError unless a value read from JSON is of the kind that its field says."""
    if value is MISSING:
        raise ValueError(f"{name} is missing")
    if type(value).__name__ != kind:
        raise ValueError(f"{name} must be of type {kind}, not {value!r}")
    if isinstance(value, int) and not isinstance(value, bool) and value < (0 if name == "context_bytes" else 1):
        raise ValueError(f"{name} is too small: {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """Everything besides weights and tokenizer that decides which vector a text gets."""

    dimension: int  # D
    max_tokens: int  # per input, special tokens and prompt included
    pooling: str  # "mean", "cls", "lasttoken" ...
    normalize: bool  # vectors have length 1, so that the inner product is the cosine
    query_prompt: str = ""  # put before every query
    document_prompt: str = ""  # put before every document input
    separator: str = "\n"  # document template: context (title and heading path), separator, text
    context_bytes: int = 192  # of UTF-8 that the context may take; no tokenizer makes more tokens than bytes of it

    def render(self, *, title: str, headings: Sequence[str], text: str) -> str:
        """The document input for a chunk: the template applied, the prompt not yet."""
        context = self.context(title=title, headings=headings)
        return f"{context}{self.separator}{text}" if context else text

    def context(self, *, title: str, headings: Sequence[str]) -> str:
        """What stands before a chunk's text: the title, then the headings that do not repeat what is before them.

        Over `context_bytes` the title is cut to half of it and headings go, outermost first.
        """
        path = [part for part in (title, *headings) if part]
        path = [part for i, part in enumerate(path) if i == 0 or part != path[i - 1]]
        if not path or _size(_JOIN.join(path)) <= self.context_bytes:
            return _JOIN.join(path)
        head, tail = path[0], path[1:]
        head = _cut(head, self.context_bytes // 2 if tail else self.context_bytes)
        while tail and _size(_JOIN.join((head, *tail))) > self.context_bytes:
            tail = tail[1:]
        return _JOIN.join((head, *tail))

    def fits(self, vector: NDArray[np.float32]) -> bool:
        """Whether this can be a vector of the encoder: (D,), finite, and of length 1 where it makes them so."""
        if vector.shape != (self.dimension,) or not np.isfinite(vector).all():
            return False
        return not self.normalize or abs(float(np.linalg.norm(vector.astype(np.float64))) - 1.0) < _SLACK

    def save(self, directory: Path) -> None:
        """Write the spec beside the weights."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False)
        (directory / SPEC_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> EncoderSpec:
        """Read the spec of a model directory. Raises EncoderError when the file is damaged or from a newer release."""
        path = directory / SPEC_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
            unknown = set(values) - {field.name for field in fields(cls)}
            if unknown:
                raise ValueError(f"unknown keys {sorted(unknown)}")
            for field in fields(cls):
                _check(field.name, str(field.type), values.get(field.name, field.default))
            return cls(**values)
        except (OSError, ValueError, TypeError) as error:
            raise EncoderError(f"{path} is not a usable encoder spec ({error}); export the model again") from error
