"""The ingestion worker: folders and texts in, searchable documents out.

From a notebook, or a task of Airflow:

    from ingest import sync
    report = sync("handbook", collection="docs")
    print(report.added, report.failed)

Importing it is quick: what it needs is loaded when it is used. Errors are those of nvr_rag.errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from ingest.report import IngestOptions, IngestReport, Plan
    from nvr_rag.workspace import Workspace

__all__ = ["plan", "sync"]


def sync(
    *paths: str | PathLike[str],
    collection: str = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_empty: bool = False,
    home: str | PathLike[str] | None = None,
    workspace: Workspace | None = None,
) -> IngestReport:
    """Mirror folders, files, and the lines of JSON Lines files into a collection; returns when all can be found.

    New and edited files are stored, those that have gone are deleted, and what has not changed is not read again, so it
    may be called as often as one likes, and again after it was interrupted. `include` and `exclude` are patterns as in
    a .gitignore. `home` is the data folder (default: NVR_HOME); a `workspace` that is open already is used instead.

    A document that cannot be read is in `report.failed` with the reason, and nothing is raised for it. Raises
    InvalidInput for a path that is not there, Conflict for a folder that has become empty (unless `allow_empty`), and
    other NvrErrors; `error.retry` says whether the same call can succeed later by itself.
    """
    from ingest.pipeline import ingest

    with _open(home, workspace) as opened:
        options = _options(include, exclude)
        return ingest(opened, _paths(paths), collection=collection, allow_empty=allow_empty, options=options)


def plan(
    *paths: str | PathLike[str],
    collection: str = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_empty: bool = False,
    home: str | PathLike[str] | None = None,
    workspace: Workspace | None = None,
) -> Plan:
    """What `sync` would do with the same words; nothing is written."""
    from ingest import planning

    with _open(home, workspace) as opened:
        options = _options(include, exclude)
        return planning.plan(opened, _paths(paths), collection=collection, allow_empty=allow_empty, options=options)


def _options(include: Sequence[str], exclude: Sequence[str]) -> IngestOptions:
    from ingest.folders.selection import Selection
    from ingest.report import IngestOptions
    from nvr_rag.errors import InvalidInput

    for name, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise InvalidInput(f"{name} is a list of patterns, such as ['{patterns[:80]}']", field=name)
    return IngestOptions(selection=Selection(include=tuple(include), exclude=tuple(exclude)))


def _paths(paths: Sequence[str | PathLike[str]]) -> list[Path]:
    from pathlib import Path

    from nvr_rag.errors import InvalidInput

    if not paths or not all(map(str, paths)):
        raise InvalidInput("give the path of a folder or file with documents", field="path")
    return [Path(path).expanduser() for path in paths]


@contextmanager
def _open(home: str | PathLike[str] | None, workspace: Workspace | None) -> Iterator[Workspace]:
    from pathlib import Path

    from nvr_rag.settings import load_settings
    from nvr_rag.workspace import Workspace

    if workspace is not None:
        yield workspace
        return
    settings = load_settings()
    if home is not None:
        settings = settings.model_copy(update={"home": Path(home)})
    with Workspace(settings) as opened:
        yield opened
