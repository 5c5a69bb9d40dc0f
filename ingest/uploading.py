"""Jobs of files that were uploaded: files enter, parsed and stored documents leave, and the files are gone.

Parsing happens outside any transaction; a document is stored in the one that takes its upload out, and only while that
still is the last one that was accepted for it. Doing a job again is fine: what is done is passed over.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from sqlalchemy import Connection

from ingest.parsers.limits import limits_of
from ingest.parsing import PARSER
from ingest.sandbox import Sandbox
from nvr_rag import collections, corpus, documents, uploads
from nvr_rag.errors import ConfigurationError, Conflict, NotFound, NotHere, ParseFailed
from nvr_rag.running.working import Task
from nvr_rag.settings import IngestSettings
from nvr_rag.types import Document, DocumentState, NewDocument, Reader
from nvr_rag.uploads import Folder, Upload

FAILED, SUPERSEDED = "failed", "superseded"  # what can become of an upload beside the outcomes of the corpus log
GONE = "was not found in the folder of uploads any more; upload it again"


class Uploads:
    """The handler of such jobs; its parsing children go on from one to the next. Safe to share between threads."""

    def __init__(self, settings: IngestSettings, *, children: int = 1) -> None:
        limits = limits_of(settings)
        self._sandbox = Sandbox(limits, children=children)

    def close(self) -> None:
        """End the children; what one of them is parsing raises NvrError."""
        self._sandbox.close()

    def __call__(self, task: Task) -> dict[str, Any]:
        """Parse and store: {"collection", "folder", "files": [{"file", "document", "sha256"}]}."""
        payload = task.job.payload
        try:
            mark, files = str(payload["folder"]), [dict(one) for one in payload["files"]]
            names = [str(one["file"]) for one in files]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"job {task.job.id} was made by another release ({error!r})") from error
        folder = Folder(task.workspace.home)
        if folder.mark() != mark:
            raise NotHere(
                f"the uploaded files are not in the data folder of {socket.gethostname()}; a worker that shares the "
                "data folder of the server that took them (NVR_HOME) is to parse them"
            )
        found = []
        try:
            for number, one in enumerate(files):
                task.check()
                task.tell({"done": number, "total": len(files), "words": "files parsed"})
                found.append(self._one(task, folder, one))
                folder.remove([str(one["file"])])
        except NotFound:  # the collection was deleted: nobody will want them
            folder.remove(names)
            raise
        failed = sum(one["outcome"] == FAILED for one in found)
        task.tell({"done": len(files), "total": len(files), "words": "files parsed", "failed": failed})
        return {"documents": found, "failed": failed}

    def _one(self, task: Task, folder: Folder, one: Mapping[str, Any]) -> dict[str, Any]:
        """What became of a file."""
        database, collection = task.workspace.database, str(task.job.payload["collection"])
        reader = uploads.reader_of(task.job.payload)
        with database.read() as connection:
            collections.find(connection, collection)
            upload = uploads.waiting(connection, task.job.id).get(str(one["file"]))
            if upload is None:
                return _before(connection, collection, one, reader)
        document = self._parsed(folder, upload)
        with database.write() as connection:
            collections.find(connection, collection, lock=True)  # whoever accepts another one does so before or after
            if not uploads.take(connection, task.job.id, upload):
                return _became(upload.document_id, upload.uri, SUPERSEDED)
            try:
                return _stored(connection, collection, upload, document, reader)
            except Conflict as error:  # it is somebody else's now
                return _became(upload.document_id, upload.uri, FAILED, error=str(error))

    def _parsed(self, folder: Folder, upload: Upload) -> NewDocument | str:
        """The document, or why there is none."""
        path = folder.path / Path(upload.file).name
        if not path.exists():
            return GONE
        try:
            parsed_file = self._sandbox.parse(path, name=upload.name or upload.file, media_type=_said(upload))
        except ParseFailed as error:
            return str(error)
        parsed = parsed_file.parsed
        title = upload.title or parsed.title or PurePath(upload.name).stem
        return NewDocument(
            uri=upload.uri,
            sha256=parsed_file.sha256,
            parsed=replace(parsed, title=title, metadata={**parsed.metadata, **upload.metadata}),
            parser=PARSER,
            acl=upload.acl,
        )


def _stored(
    connection: Connection, collection: str, upload: Upload, document: NewDocument | str, reader: Reader
) -> dict[str, Any]:
    """Store it, or why there is none. Raises Conflict where there is one that whoever sent it may not read."""
    if isinstance(document, str):
        corpus.fail(connection, collection, uri=upload.uri, source="", error=document, acl=upload.acl, reader=reader)
        return _became(upload.document_id, upload.uri, FAILED, error=document)
    put = corpus.put(connection, collection, [document], reader=reader)[0]
    return _became(put.document_id, upload.uri, put.outcome, seq=put.seq)


def _said(upload: Upload) -> str | None:
    """The media type, where the client knows one."""
    known = upload.media_type.partition(";")[0].strip().lower()
    return None if known in ("", "application/octet-stream") else known


def _before(connection: Connection, collection: str, one: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """What an earlier attempt has made of a file, as far as the log knows it; or something newer has come."""
    key = str(one["document"])
    try:
        document: Document = documents.get(connection, collection, key, reader=reader)
    except NotFound:
        return _became(key, "", SUPERSEDED)
    if document.state is DocumentState.READY and document.sha256 == one["sha256"]:
        return _became(key, document.uri, "unchanged")
    if document.state is DocumentState.FAILED and document.error:
        return _became(key, document.uri, FAILED, error=document.error)
    return _became(key, document.uri, SUPERSEDED)


def _became(key: str, uri: str, outcome: str, *, seq: int = 0, error: str | None = None) -> dict[str, Any]:
    return {"id": key, "uri": uri, "outcome": outcome, "seq": seq, "error": error}
