"""Which paths of this machine others may have ingested: a path enters as it was sent, and leaves only when it lies in
one of the allowed folders, wherever its symbolic links lead.

What lies outside is never told of: a path that is not there is refused in the same words as one that is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nvr_rag.errors import Conflict, InvalidInput

HOW = "set NVR_INGEST__ROOTS to the folders that may be ingested, for example NVR_INGEST__ROOTS=/srv/documents"


def allowed(path: str, roots: Sequence[Path]) -> Path:
    """The absolute path, without "." and "..", if it lies in a root or is one.

    Links on the way are followed to decide, and kept in what is returned: documents are named after the path that
    people know. Raises Conflict where nothing is allowed, InvalidInput.
    """
    if not roots:
        raise Conflict(f"no folder of this machine may be ingested over HTTP; {HOW} on the server and its workers")
    if not os.path.isabs(path):
        raise InvalidInput("path is an absolute path on the server, such as /srv/documents/handbook", field="path")
    if not _inside(path, roots):
        raise InvalidInput(
            "path is not inside a folder that may be ingested (NVR_INGEST__ROOTS on the server says which)",
            field="path",
        )
    # With ".." after a link the shortened path would be another one.
    return Path(os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path))


def _inside(path: str, roots: Sequence[Path]) -> bool:
    try:
        real = os.path.realpath(path)
        return any(os.path.commonpath((real, os.path.realpath(root))) == os.path.realpath(root) for root in roots)
    except (OSError, ValueError):  # NUL, or what no file system can name
        return False
