"""How much one document may cost, and the refusal of what is too large to be read at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvr_rag.errors import ParseFailed

if TYPE_CHECKING:  # a parsing child needs no settings, and they are slow to import
    from nvr_rag.settings import IngestSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ParseLimits:
    """How much one document may cost; seconds and memory are kept by the sandbox."""

    input_bytes: int = 100 * 2**20
    characters: int = 20_000_000  # of text that comes out
    pages: int = 10_000  # of a PDF, or slides
    ocr_pages: int = 1_000  # of one PDF that are read by OCR, where Tesseract is installed; 0 = no OCR
    seconds: float = 60.0
    memory_bytes: int = 2 * 2**30  # of the child process

    @property
    def ocr_seconds(self) -> float:
        """How long OCR of one document may take, on top of `seconds`: a page takes about one."""
        return 10 * self.seconds


DEFAULT_LIMITS = ParseLimits()


def limits_of(settings: IngestSettings) -> ParseLimits:
    """The limits that a process was told."""
    return ParseLimits(
        input_bytes=settings.max_file_bytes,
        pages=settings.max_pages,
        ocr_pages=settings.ocr_pages,
        seconds=settings.parse_timeout_seconds,
        memory_bytes=settings.parse_memory_bytes,
    )


def check_size(size: int, limits: ParseLimits) -> None:
    """Raise ParseFailed when a document of this many bytes is not worth reading."""
    if size == 0:
        raise ParseFailed("is empty (0 bytes)")
    if size > limits.input_bytes:
        raise ParseFailed(
            f"is larger than {limits.input_bytes / 2**20:.0f} MB ({size / 2**20:.0f} MB); split it into smaller files"
        )
