"""Where documents come from: the files of a folder, with what selects them and what is said of them. Nothing is parsed
here.

`walk` streams in a fixed order with memory for one folder's names at each depth, and reports whatever it passes over as
`Skipped`, so that a person can see what is missing and why.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from ingest.folders import sidecars
from ingest.folders.selection import IGNORE_FILE, Rules, Selection, relative
from ingest.folders.sidecars import Description
from ingest.folders.small_files import Unusable
from ingest.folders.stamps import FileState
from ingest.parsers.formats import not_a_document
from nvr_rag.corpus import MAX_URI_CHARACTERS
from nvr_rag.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file that may be a document."""

    path: Path
    uri: str  # file:// and the absolute path, symbolic links on the way to it not resolved
    state: FileState
    linked: bool = False  # it is a symbolic link, to a file below the same root
    beside: Sequence[str] = ()  # names of the files beside it that say something about it
    around: Description | Unusable = sidecars.NOTHING  # what the folders around it say, or why that cannot be known


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A file, folder or line that was passed over."""

    path: Path
    reason: str  # "is an image", "is hidden", "cannot be read: Permission denied" ...; the same words for the same case
    unreadable: bool = False  # nobody could look: what is or lies below it may well exist, so nothing may be forgotten
    line: int | None = None  # from 1, in a JSON Lines file


def path_to_uri(path: Path) -> str:
    """The file URI of the absolute path, symbolic links not resolved; undecodable bytes are percent-encoded."""
    return "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))


def uri_to_path(uri: str) -> Path:
    """The path of a file URI on this machine; the inverse of path_to_uri. Raises InvalidInput for other URIs."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidInput(f"not the URI of a file on this machine: {uri!r}; it begins with file:///", field="uri")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path.startswith("/") or "\x00" in path:
        raise InvalidInput(f"not the URI of an absolute path: {uri!r}", field="uri")
    return Path(path)


def status_of(root: Path) -> os.stat_result:
    """Raises InvalidInput when there is no such file or folder."""
    try:
        return os.stat(root)
    except (OSError, ValueError) as error:  # a path with a zero byte is none at all
        strerror = getattr(error, "strerror", None) or str(error)
        reason = "there is no such file or folder" if isinstance(error, FileNotFoundError) else strerror
        raise InvalidInput(f"{shown(root)}: {reason}; give the path of a document or folder", field="path") from error


def walk(
    root: Path, selection: Selection | None = None, *, only: Sequence[Path] = ()
) -> Iterator[SourceFile | Skipped]:
    """The files at or below `root` that are wanted, in the order of their names' bytes; with `only`, those at or below
    these paths, each just as a walk over everything would find it.

    Passed over and reported: what is not selected, hidden entries, sidecars, linked folders, links that lead out,
    special files, temporary files, what its name says is no document, and what cannot be read. Raises InvalidInput when
    there is no `root`, and for a selection that is none.
    """
    rules = (selection or Selection()).rules()
    status = status_of(root)
    top = Path(os.path.abspath(root))
    if not stat.S_ISDIR(status.st_mode):
        yield _only_file(top, status, rules)
        return
    yield from _Walk(str(top), [os.path.abspath(path) for path in only]).run(rules)


def shown(path: Path) -> str:
    """A path for a person: undecodable bytes are marked."""
    return os.fsencode(path).decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """A folder that is being walked through."""

    path: str
    entries: Iterator[str]  # names that are still to be looked at, in order
    telling: Collection[str]  # names in it that say something about others, and those of whom they say it
    rules: Rules
    says: Description | Unusable  # about everything below


class _Walk:
    """One walk over a folder. Not recursive: folders may be nested more deeply than calls."""

    def __init__(self, top: str, only: Sequence[str]) -> None:
        self._top, self._inside, self._only = top, os.path.realpath(top), only
        self._open: list[_Folder] = []  # from the top to the one that is looked at

    def run(self, rules: Rules) -> Iterator[SourceFile | Skipped]:
        yield from self._enter(self._top, rules, _above(Path(self._top)))
        while self._open:
            folder = self._open[-1]
            name = next(folder.entries, None)
            if name is None:
                self._open.pop()
                continue
            path = os.path.join(folder.path, name)
            found = self._look(folder, name, path)
            if found is None:
                yield from self._enter(path, folder.rules, folder.says)
            else:
                yield found

    def _enter(self, path: str, rules: Rules, around: Description | Unusable) -> Iterator[Skipped]:
        """Go into a folder; report it when it cannot be listed, or when nobody knows what it ignores."""
        try:
            names = sorted(os.listdir(path), key=os.fsencode)
            telling = _telling(names)
            if IGNORE_FILE in telling:
                prefix = relative(path, self._top) + "/" if path != self._top else ""
                rules = rules.below(prefix, Path(path, IGNORE_FILE))
        except OSError as error:
            yield _unreadable(Path(path), error)
            return
        except Unusable as error:
            yield Skipped(path=Path(path), reason=f"is left as it is: its {IGNORE_FILE} {error}", unreadable=True)
            return
        wanted = iter(names) if not self._only else iter([n for n in names if self._wanted(os.path.join(path, n))])
        says = _says(Path(path), telling, around)
        self._open.append(_Folder(path=path, entries=wanted, telling=telling, rules=rules, says=says))

    def _wanted(self, path: str) -> bool:
        """Whether it is one of those that are looked for, lies below one, or leads to one."""
        return any(_at_or_below(path, one) or _at_or_below(one, path) for one in self._only)

    def _look(self, folder: _Folder, name: str, path: str) -> SourceFile | Skipped | None:
        """What an entry is; None for a folder to enter."""
        try:
            if name.startswith("."):
                return Skipped(path=Path(path), reason="is hidden")
            status = os.lstat(path)
            is_folder, linked = stat.S_ISDIR(status.st_mode), stat.S_ISLNK(status.st_mode)
            reason = folder.rules.against(relative(path, self._top), folder=is_folder)
            if reason is None and linked:
                reason = self._bad_link(path)
            if reason is None and is_folder:
                return None
            reason = reason or _no_document(name, folder.telling)
            if reason is not None:
                return Skipped(path=Path(path), reason=reason)
            status = os.stat(path) if linked else status
            beside = sidecars.sidecars_of(name, folder.telling)
            return _file(Path(path), status, linked=linked, beside=beside, around=folder.says)
        except OSError as error:
            return _unreadable(Path(path), error)

    def _bad_link(self, path: str) -> str | None:
        if os.path.isdir(path):
            return "is a symbolic link to a folder"
        target = os.path.realpath(path)
        if os.path.commonpath((self._inside, target)) != self._inside:
            return "is a symbolic link that leads out of the folder"
        return None if os.path.exists(target) else "is a broken symbolic link"


def _only_file(path: Path, status: os.stat_result, rules: Rules) -> SourceFile | Skipped:
    reason = rules.against(path.name, folder=False)
    if reason is not None:
        return Skipped(path=path, reason=reason)
    beside = tuple(path.name + ending for ending in sidecars.SIDECAR_ENDINGS if os.path.lexists(f"{path}{ending}"))
    return _file(path, status, linked=path.is_symlink(), beside=beside, around=_above(path))


def _file(
    path: Path, status: os.stat_result, *, linked: bool, beside: Sequence[str], around: Description | Unusable
) -> SourceFile | Skipped:
    if not stat.S_ISREG(status.st_mode):
        return Skipped(path=path, reason="is not a regular file (a pipe, socket or device)")
    if not os.access(path, os.R_OK):
        return Skipped(path=path, reason="cannot be read: Permission denied", unreadable=True)
    uri = path_to_uri(path)
    if len(uri) > MAX_URI_CHARACTERS:
        return Skipped(path=path, reason="has a path that is too long to be stored; move it up", unreadable=True)
    state = FileState.of(status)
    return SourceFile(path=path, uri=uri, state=state, linked=linked, beside=beside, around=around)


def _no_document(name: str, names: Collection[str]) -> str | None:
    """What a file of this name is instead of a document, among these names; None when it may be one."""
    document = sidecars.document_of(name)
    if document is not None:
        return "is a sidecar" if document in names else "is a sidecar of nothing"
    what = not_a_document(name)
    return f"is {what}" if what else None


def _telling(names: Sequence[str]) -> frozenset[str]:
    """Of the names in a folder, those that say something about others, and those of whom they say it."""
    said = {name: sidecars.document_of(name) for name in names if ".meta." in name}
    about = set(said.values())
    special = (IGNORE_FILE, *sidecars.FOLDER_FILES)
    return frozenset(name for name in names if said.get(name) or name in about or name in special)


def _above(path: Path) -> Description | Unusable:
    try:
        return sidecars.folders_above_say(path)
    except Unusable as error:
        return error


def _says(folder: Path, names: Collection[str], around: Description | Unusable) -> Description | Unusable:
    if isinstance(around, Unusable):
        return around
    try:
        return sidecars.folder_says(folder, names).within(around)
    except Unusable as error:
        return error


def _at_or_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _unreadable(path: Path, error: OSError) -> Skipped:
    return Skipped(path=path, reason=f"cannot be read: {error.strerror or error}", unreadable=True)
