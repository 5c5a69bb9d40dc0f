"""The manifest of a backup: what the folder holds, and the hash of each file. Written last, so that a backup without
one was never finished.

    manifest.json            this
    tables/<table>.jsonl.gz  the rows of a table (see `tables`)
    models/<fingerprint>/    encoder versions
    runs/<run>/              reports of laps

Knows no database: what is in the files is for others to say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nvr_rag.errors import ConfigurationError, InvalidInput
from nvr_rag.ids import sha256_json
from nvr_rag.transfer.files import whole_file

FORMAT, VERSION = "nvr-rag-backup", 1
NAME = "manifest.json"
TABLES, MODELS, RUNS = "tables", "models", "runs"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of the backup."""

    path: str  # POSIX, relative to the folder
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEntry:
    """The file of a table."""

    rows: int
    unpacked: int  # bytes of the rows before they were compressed
    file: FileEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a backup holds."""

    release: str  # that made it
    schema: str  # revision of the database
    created_at: str  # ISO 8601; everything acknowledged before is in it
    tables: Mapping[str, TableEntry]
    files: Sequence[FileEntry]  # all others
    missing: Sequence[str] = field(default_factory=tuple)  # encoder versions whose files were not there

    @property
    def all_files(self) -> list[FileEntry]:
        return [*(table.file for table in self.tables.values()), *self.files]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.all_files)


def write(folder: Path, manifest: Manifest) -> None:
    """Finish a backup."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    content["missing"], content["files"] = list(manifest.missing), [asdict(file) for file in manifest.files]
    with whole_file(folder / NAME) as file:
        file.write(json.dumps({**content, "sha256": sha256_json(content)}, indent=1, ensure_ascii=False).encode())


def read(folder: Path) -> Manifest:
    """The manifest of a backup. Raises InvalidInput for a folder that is none, or not whole, and for one of a newer
    release."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder; give one that nvr-rag backup has written", field="folder")
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{folder} has no {NAME}: it is no backup, or one that was never finished; use another", field="folder"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{NAME} cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInput(f"{folder / NAME} is not the manifest of a backup of nvr-rag", field="folder")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InvalidInput(
            f"the backup {folder} was written by nvr-rag {content.get('release')} in a newer format ({version}); "
            "upgrade nvr-rag to restore it",
            field="folder",
        )
    if content.pop("sha256", None) != sha256_json(content):
        raise _damaged(folder, f"{NAME} was changed")
    return _manifest(folder, content)


def _manifest(folder: Path, content: dict[str, Any]) -> Manifest:
    del content["format"], content["version"]
    try:
        tables = {
            name: TableEntry(rows=table["rows"], unpacked=table["unpacked"], file=FileEntry(**table["file"]))
            for name, table in content.pop("tables").items()
        }
        files = tuple(FileEntry(**file) for file in content.pop("files"))
        manifest = Manifest(tables=tables, files=files, **content)
    except (KeyError, TypeError) as error:
        raise _damaged(folder, f"{NAME} is incomplete ({error})") from error
    for file in manifest.all_files:
        parts = PurePosixPath(file.path).parts
        if not parts or parts[0] not in (TABLES, MODELS, RUNS) or ".." in parts:
            raise _damaged(folder, f"{NAME} names {file.path!r}, which is no part of a backup")
    return manifest


def check_files(folder: Path, manifest: Manifest, report: Callable[[int], None]) -> None:
    """Raise InvalidInput unless each file is there and is what the manifest says; `report` hears bytes."""
    done = 0
    for file in manifest.all_files:
        path = folder / file.path
        try:
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise _damaged(folder, f"{file.path} cannot be read ({error.strerror or error})") from error
        if digest != file.sha256:
            raise _damaged(folder, f"{file.path} is not what it was when the backup was made")
        done += file.bytes
        report(done)


def _damaged(folder: Path, what: str) -> InvalidInput:
    return InvalidInput(
        f"the backup {folder} is damaged: {what}. Nothing was changed; copy it again from where it came from, or use "
        "another",
        field="folder",
    )


def new_folder(folder: Path) -> None:
    """Make the folder of a backup, for this user only. Raises ConfigurationError unless it is new or empty."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(
                f"{folder} is not empty; give a new folder for each backup"
                + ("" if (folder / NAME).exists() else f" (what is there was never finished: it has no {NAME})")
            )
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made or written to ({error.strerror or error})") from error
