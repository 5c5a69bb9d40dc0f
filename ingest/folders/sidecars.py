"""What people say about documents in files beside them: a title, metadata, and who may read them.

    report.pdf.meta.json, report.pdf.meta.yaml     of report.pdf: {"title": ..., "metadata": {...}, "acl": [...]}
    .nvrmeta.json, .nvrmeta.yaml                   of everything in its folder and below: "metadata" and "acl"

Paths enter, a Description leaves. Whatever is not entirely as it should be raises Unusable, and the document is then
not taken in: a permission that cannot be read must not become one for everybody. It knows no documents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ingest.folders.small_files import Unusable, read_small
from ingest.parsers.texts import clean, json_metadata
from nvr_rag.ids import sha256_json

SIDECAR_ENDINGS = (".meta.json", ".meta.yaml", ".meta.yml")
FOLDER_FILES = (".nvrmeta.json", ".nvrmeta.yaml", ".nvrmeta.yml")
_BYTES = 64 * 1024
_TITLE_CHARACTERS = 300
_PRINCIPALS = 1000
_PRINCIPAL_CHARACTERS = 200
_DIGITS = 10  # of a hash of fields, of which one document has a handful


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What is said about a document besides what it says itself."""

    title: str | None = None  # None = nothing is said
    metadata: Mapping[str, Any] = field(default_factory=dict)
    acl: Sequence[str] | None = None  # principals in order, each once; None = everyone
    restricts: bool = False  # whether `acl` was said at all

    def within(self, outer: Description) -> Description:
        """The whole of it, where the folder around it says `outer`: what is nearer goes first."""
        return Description(
            title=self.title or outer.title,
            metadata={**outer.metadata, **self.metadata},
            acl=self.acl if self.restricts else outer.acl,
            restricts=self.restricts or outer.restricts,
        )

    def fields_hash(self) -> str:
        """Of the names of the fields that are said; "" when there are none."""
        names = sorted(self.metadata)
        return sha256_json({"title": self.title is not None, "names": names})[:_DIGITS] if names or self.title else ""

    def values_hash(self) -> str:
        """Of the fields that are said, permissions left out; "" when there are none."""
        said = {"title": self.title, "metadata": self.metadata}
        return sha256_json(said)[:_DIGITS] if self.metadata or self.title else ""


NOTHING = Description()


def sidecars_of(name: str, names: Collection[str]) -> tuple[str, ...]:
    """The sidecars of a document among the names in its folder."""
    return tuple(name + ending for ending in SIDECAR_ENDINGS if name + ending in names)


def document_of(name: str) -> str | None:
    """The name of the document that a file of this name is the sidecar of; None when it is no sidecar."""
    return next((name[: -len(ending)] for ending in SIDECAR_ENDINGS if name.endswith(ending)), None)


def described(path: Path, sidecars: Sequence[str]) -> Description:
    """What the sidecars of the document at `path` say, which are in its folder. Raises Unusable."""
    return _from(path.parent, sidecars, titled=True)


def folder_says(folder: Path, names: Collection[str]) -> Description:
    """What a folder with these names in it says about everything below. Raises Unusable."""
    return _from(folder, [name for name in FOLDER_FILES if name in names], titled=False)


def folders_above_say(folder: Path) -> Description:
    """What the folders above one say about everything below them. Raises Unusable."""
    said = NOTHING
    for above in reversed(folder.parents):
        names = [name for name in FOLDER_FILES if os.path.lexists(above / name)]
        said = folder_says(above, names).within(said) if names else said
    return said


def _from(folder: Path, names: Sequence[str], *, titled: bool) -> Description:
    if not names:
        return NOTHING
    shown = [name.encode("utf-8", "replace").decode() for name in names]
    if len(names) > 1:
        raise Unusable(f"has {shown[0]} and {shown[1]} beside it; keep one of them")
    try:
        return _read(folder / names[0], titled=titled)
    except Unusable as error:
        raise Unusable(f"has {shown[0]} to go with it, which {error}") from error


def _read(path: Path, *, titled: bool) -> Description:
    data = read_small(path, _BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable("is not UTF-8") from error
    load, kind = (_json, "JSON") if path.name.endswith(".json") else (_yaml, "YAML")
    try:
        value = load(text)
    except (ValueError, RecursionError, TypeError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, _Refused) else "cannot be understood"
        raise Unusable(f"is not {kind} as it should be: {reason}") from error
    return _description(value, titled=titled)


def _description(value: object, *, titled: bool) -> Description:
    if not isinstance(value, Mapping):
        raise Unusable('is not an object such as {"metadata": {"team": "sales"}, "acl": ["group:sales"]}')
    known = ("title", "metadata", "acl") if titled else ("metadata", "acl")
    for name in value:
        if name not in known:  # a permission with a slip in its name must not be overlooked
            raise Unusable(f"has a field {str(name)[:80]!r}; it may have {', '.join(known)}")
    return Description(
        title=_title(value.get("title")),
        metadata=_metadata(value.get("metadata")),
        acl=_acl(value.get("acl")),
        restricts="acl" in value,
    )


def _title(value: object) -> str | None:
    if value is None:
        return None
    title = " ".join(clean(value).split())[:_TITLE_CHARACTERS] if isinstance(value, str) else ""
    if not title:
        raise Unusable('has a "title" that is not a text')
    return title


def _metadata(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Unusable('has "metadata" that is not an object')
    try:
        return json_metadata(value)
    except (ValueError, RecursionError) as error:
        raise Unusable(f'has "metadata" that is too much: {error}') from error


def _acl(value: object) -> Sequence[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise Unusable('has an "acl" that is not a list of names; null is for everyone, [] for nobody')
    if len(value) > _PRINCIPALS or max(map(len, value), default=0) > _PRINCIPAL_CHARACTERS:
        raise Unusable(f'has an "acl" of more than {_PRINCIPALS} names, or {_PRINCIPAL_CHARACTERS} characters in one')
    if any(clean(one) != one for one in value):
        raise Unusable('has an "acl" with control characters')
    return tuple(sorted(set(value)))


class _Refused(ValueError):
    """Understood, and not taken; the message says why."""


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise _Refused(f"{error.msg} at line {error.lineno}") from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one field the last one would win, and nobody would know."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Refused(f"{name[:80]!r} is there twice")
        found[name] = value
    return found


def _no_number(name: str) -> float:
    raise _Refused(f"{name} is no number; use null")


def _yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped]  # only documents with such sidecars need it

    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506  # a safe loader's child
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _Refused(f"{error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise _Refused("it holds characters that YAML does not know") from error


@cache
def _loader() -> Callable[[str], Any]:
    """The safe one, written in Python because a deep text must not overflow the stack of this process; without what
    makes a small text large, and a field that is there twice."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise _Refused("it merges other objects (<<), which is not known here")

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
                raise _Refused("it has a field whose name is not a text")
            _once((key.value, None) for key, _ in node.value)
            return dict(super().construct_mapping(node, deep=deep))

    return Loader
