"""What laps have of documents and users that are erased: their folders are searched by name, and cleared.

Files of a lap name a chunk by its id, a text by its sha256, a query by its id and its key: none of these is anything
else by chance. A lap that is still to be trained begins anew, from what the database has left; of one that is past
that, every line that bears a name goes. While a process works on a lap only that process changes its files, so it
finds a note there, and clears them at the next word from the step that it is at.

    erased-<record>.json     the note: names that are to go
    cleared-<record>         they are gone, and whatever came since came without them
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence, Set
from datetime import datetime
from pathlib import Path

from nvr_rag.workspace import Workspace
from training.data import write_json
from training.runs import FOLDER, LapBusy, RunFolder
from training.splits import query_key

_NAME = re.compile(rb"[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MARGIN_SECONDS = 60.0  # by which the clocks of a database and of a disk may differ
_GONE = b"erased"  # in the place of a name, in files that are not made of lines


class BeginAnew(Exception):
    """Something that the lap works on was erased; its folder is as it was when it began."""


class RunFiles:
    """The files of laps; see nvr_rag.removal.erasing."""

    def names(self, queries: Sequence[str]) -> list[str]:
        return [query_key(text) for text in queries]

    def encoders(self, workspace: Workspace, names: Collection[str]) -> list[str]:
        from nvr_rag import registry

        wanted = {name.encode() for name in names}
        runs = {folder.path.name for folder in _folders(workspace.home) if _names_in([folder.mined], wanted)}
        with workspace.database.read() as connection:
            versions = registry.all_versions(connection)
        return [one.fingerprint for one in versions if (one.training or {}).get("run") in runs]

    def erase(self, home: Path, names: Collection[str], record: int, since: datetime) -> bool:
        left = [folder for folder in _folders(home) if not _erased(folder, names, record, since)]
        return not left


def obey(folder: RunFolder, *, at_work: bool = False) -> None:
    """Clear what notes say, in a lap that this process owns; `at_work`: it is in the middle of a step. Raises BeginAnew
    when the lap has to: also where it has read the database already and not yet written what it read."""
    anew = False
    for note in sorted(folder.path.glob("erased-*.json")):
        names = json.loads(note.read_text(encoding="utf-8"))["names"]
        anew |= _clear(folder, {name.encode() for name in names})
        anew |= at_work and folder.finished("collect") is None
        (folder.path / f"cleared-{note.stem.removeprefix('erased-')}").touch()
        note.unlink()
    if anew:
        raise BeginAnew


def _erased(folder: RunFolder, names: Collection[str], record: int, since: datetime) -> bool:
    """Clear a folder, or leave a note for the process that works on it; False as long as that has not read it."""
    if (folder.path / f"cleared-{record}").exists():
        return True
    try:
        with folder.owned():
            _clear(folder, {name.encode() for name in names})
            (folder.path / f"erased-{record}.json").unlink(missing_ok=True)
            return True
    except LapBusy:
        if _began_after(folder, since):
            return True
        write_json(folder.path / f"erased-{record}.json", {"names": sorted(names)})
        return False


def _began_after(folder: RunFolder, since: datetime) -> bool:
    try:
        return os.stat(folder.path / "config.json").st_mtime > since.timestamp() + _MARGIN_SECONDS
    except FileNotFoundError:
        return False


def _clear(folder: RunFolder, names: Set[bytes]) -> bool:
    """Remove what bears a name from a lap that nobody else works on; True when it is to begin anew."""
    for partial in folder.path.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    harmed = [path for path in _files(folder) if _names_in([path], names)]
    anew = bool(harmed) and folder.corpus.exists() and folder.finished("register") is None
    if anew:
        _forget_everything(folder)
    for path in harmed:
        if path.exists():
            _without(path, names)
    return anew


def _forget_everything(folder: RunFolder) -> None:
    """As it was when the lap began. The steps first: what they came to is worth nothing without the files."""
    shutil.rmtree(folder.path / "steps", ignore_errors=True)
    folder.forget_texts()
    folder.forget_files()
    for path in (folder.mined, folder.mining):
        path.unlink(missing_ok=True)
    folder.make()


def _without(path: Path, names: Set[bytes]) -> None:
    """Rewrite a file: without the lines that bear a name, or with nothing in the place of the name."""
    partial = path.with_name(f".{path.name}.partial")
    with path.open("rb") as old, partial.open("wb") as new:
        for line in old:
            if not names.isdisjoint(_NAME.findall(line)):
                if path.suffix == ".jsonl":
                    continue
                line = _NAME.sub(lambda match: _GONE if match[0] in names else match[0], line)
            new.write(line)
        new.flush()
        os.fsync(new.fileno())
    partial.replace(path)


def _names_in(paths: Sequence[Path], names: Set[bytes]) -> bool:
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                if any(not names.isdisjoint(_NAME.findall(line)) for line in file):
                    return True
    return False


def _files(folder: RunFolder) -> list[Path]:
    """Everything that may name something, the notes aside."""
    found = [*folder.path.glob("*.json*"), *folder.path.glob("*.html"), *folder.path.glob("steps/*.json")]
    found += [folder.corpus / "rows.jsonl"]
    return [path for path in found if path.is_file() and not path.name.startswith("erased-")]


def _folders(home: Path) -> Iterator[RunFolder]:
    root = home / FOLDER
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.is_dir() and not path.name.startswith("."):
            yield RunFolder(path)
