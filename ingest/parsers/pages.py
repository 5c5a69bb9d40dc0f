"""Pages in one text: joined so that each begins at a known character, and taken apart again. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nvr_rag.types import ParsedText


def join(pages: Sequence[str]) -> tuple[str, list[int]]:
    """The pages in one text, and where each begins; a blank page begins where the next one does."""
    starts: list[int] = []
    length = 0
    for page in pages:
        starts.append(length)
        length += len(page) + 2 if page else 0
    text = "\n\n".join(page for page in pages if page)
    return text, [min(start, len(text)) for start in starts]


def split(parsed: ParsedText) -> list[str]:
    """The pages that were joined."""
    ends = [*parsed.page_starts[1:], len(parsed.text)]
    return [parsed.text[start:end].strip("\n") for start, end in zip(parsed.page_starts, ends, strict=True)]
