"""What a chunking is: settings that belong to an index, and what a chunker must be able to do.

The chunker itself lives in `ingest`; an index only needs to know that its chunks fit its encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ChunkingMismatch, ConfigurationError
from nvr_rag.ids import sha256_json
from nvr_rag.types import ChunkDraft, ParsedText

GROUP = "nvr_rag.chunkers"  # of the entry points
METHOD = "structure-1"  # changes whenever the same settings would cut a text differently


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkingSettings:
    """Everything that decides where a text is cut."""

    max_tokens: int  # of one encoder input: special tokens, prompt, context and text together
    tokenizer: str  # sha256 of the tokenizer that counts
    document_prompt: str
    separator: str
    context_bytes: int
    method: str = METHOD
    overlap: int = 0  # tokens at most that a chunk takes over from the end of the one before it, where a section is cut

    @property
    def hash(self) -> str:
        return sha256_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Without what is as it always was: chunkings that are older than a setting keep their hash."""
        values = asdict(self)
        if not self.overlap:
            del values["overlap"]
        return values


class Chunker(Protocol):
    """Cuts parsed texts into chunks that fit one encoder."""

    def __call__(self, parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
        """Chunks in the order of the text; none for a text without words. For each of them
        `encoder.count_tokens([encoder.spec.render(...)])` is at most `encoder.spec.max_tokens`. `overlap` is that of
        the ChunkingSettings."""


def installed_chunker() -> Chunker:
    """The chunker that an installed package offers: building an index may have to cut documents that were never cut."""
    for entry in entry_points(group=GROUP, name="default"):
        chunker: Chunker = entry.load()
        return chunker
    raise ConfigurationError(f"no installed package offers a chunker (entry point {GROUP}); install nvr-rag again")


def settings_for(encoder: Encoder, *, overlap: int = 0) -> ChunkingSettings:
    """The chunking that uses an encoder's budget fully. Raises ChunkingMismatch when too much is to overlap."""
    spec = encoder.spec
    if overlap > spec.max_tokens // 2:
        raise ChunkingMismatch(
            f"chunks cannot overlap by {overlap} tokens where the encoder reads {spec.max_tokens}; set "
            f"NVR_CHUNK_OVERLAP_TOKENS to {spec.max_tokens // 2} at most"
        )
    return ChunkingSettings(
        max_tokens=spec.max_tokens,
        tokenizer=encoder.tokenizer_hash,
        document_prompt=spec.document_prompt,
        separator=spec.separator,
        context_bytes=spec.context_bytes,
        overlap=overlap,
    )


def check_fits(settings: ChunkingSettings, encoder: Encoder) -> None:
    """Raise ChunkingMismatch when chunks of this chunking could be truncated by this encoder."""
    own = settings_for(encoder)
    if settings.max_tokens > own.max_tokens:
        raise ChunkingMismatch(
            f"chunks of up to {settings.max_tokens} tokens do not fit an encoder that reads {own.max_tokens}; "
            "build the index with a chunking made for this encoder"
        )
    if (settings.tokenizer, settings.document_prompt) != (own.tokenizer, own.document_prompt) or (
        settings.separator,
        settings.context_bytes,
    ) != (own.separator, own.context_bytes):
        raise ChunkingMismatch(
            "this chunking counted tokens with another tokenizer or document template; "
            "build the index with a chunking made for this encoder"
        )
