"""From what a setting names to a folder on this machine: a model directory, or a model of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from nvr_rag.encoders.model_files import PATTERNS
from nvr_rag.errors import EncoderError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def model_directory(source: str, *, otherwise: str) -> Path:
    """The directory that holds a model; one of the hub is fetched, restricted to the files that we read. Raises
    EncoderError, which ends with what can be done `otherwise`."""
    if source and Path(source).is_dir():
        return Path(source).resolve()
    if not _HUB_ID.fullmatch(source):
        raise EncoderError(
            f'no model directory at {source!r}; give a directory, a hub id as "owner/name", or {otherwise}'
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(PATTERNS), ignore_patterns=["onnx/*", "openvino/*"]))
    except Exception as error:
        raise EncoderError(
            f"{source!r} is no directory here and could not be fetched from the Hugging Face hub ({error}); check the "
            f"name and the connection, or use {otherwise}"
        ) from error
