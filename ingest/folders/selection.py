"""Which files of a folder are wanted: globs of the user, and ignore files in the folders themselves.

Patterns enter, written as in a .gitignore; a reason to pass an entry over leaves. Later patterns go before earlier
ones, those of a folder before those of the folders above it, and nothing below a folder that is passed over is looked
at. Knows no documents, and reads nothing but ignore files that it is given the path of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.folders.small_files import Unusable, read_small
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".nvrignore"
_IGNORE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What the user wants of a source; everything unless something is said."""

    include: Sequence[str] = ()  # patterns; with any, only files that match one are wanted
    exclude: Sequence[str] = ()  # patterns of files and folders that are not wanted

    def rules(self) -> Rules:
        """Raises InvalidInput for what is no pattern."""
        return Rules(
            include=_option(self.include, "include") if self.include else None,
            exclude=_option(self.exclude, "exclude") if self.exclude else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What holds in one folder of a source. Paths are relative to the source, with "/" between their parts."""

    include: GitIgnoreSpec | None = None
    exclude: GitIgnoreSpec | None = None
    ignored: Sequence[
        tuple[str, GitIgnoreSpec]
    ] = ()  # by folder ("" or "a/b/") whose patterns they are; innermost first

    def below(self, folder: str, ignore_file: Path) -> Rules:
        """What holds in a folder ("" or "a/b/") with an ignore file of its own. Raises Unusable for that."""
        text = read_small(ignore_file, _IGNORE_BYTES).decode("utf-8-sig", "surrogateescape")
        try:
            spec = _compiled(text.splitlines())
        except ValueError as error:
            raise Unusable(f"has a line that is no pattern: {error}") from error
        return replace(self, ignored=[(folder, spec), *self.ignored])

    def against(self, path: str, *, folder: bool) -> str | None:
        """Why an entry is not wanted, in words; None for one that is, and for a folder that has to be looked into."""
        name = f"{path}/" if folder else path
        if self.exclude is not None and self.exclude.check_file(name).include:
            return "is excluded"
        if self._ignores(name):
            return f"is ignored by {IGNORE_FILE}"
        if self.include is not None and not folder and not self.include.check_file(name).include:
            return "is not included"
        return None

    def _ignores(self, name: str) -> bool:
        for folder, spec in self.ignored:
            found = spec.check_file(name.removeprefix(folder)).include
            if found is not None:
                return found
        return False


def _option(patterns: Sequence[str], field: str) -> GitIgnoreSpec:
    for pattern in patterns:
        try:
            usable = any(entry.include is not None for entry in _compiled([pattern]).patterns)
        except ValueError:
            usable = False
        if not usable:
            raise InvalidInput(
                f"{pattern[:80]!r} is no pattern; write it as in a .gitignore, such as '*.pdf', 'drafts/' or '/top.md'",
                field=field,
            )
    return _compiled(patterns)


def _compiled(lines: Iterable[str]) -> GitIgnoreSpec:
    """Raises ValueError for a line that is no pattern."""
    from pathspec import GitIgnoreSpec  # only runs that select need it

    return GitIgnoreSpec.from_lines(lines)


def relative(path: str, root: str) -> str:
    """A path below `root`, relative to it; its name where it is the root itself."""
    return os.path.basename(path) if path == root else path[len(root.rstrip("/")) + 1 :]
