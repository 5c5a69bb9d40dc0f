"""Overlap: a chunk begins with the end of the one before it, of the same section; and what holds without it holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.chunking import chunk
from nvr_rag.chunkings import ChunkingSettings, settings_for
from nvr_rag.errors import ChunkingMismatch
from nvr_rag.testing import HashEncoder
from nvr_rag.types import ChunkDraft, ParsedText, TextFormat
from tests.unit.ingest.test_chunking import CODE, MARKDOWN, PLAIN, TEXTS, Counter, lost, words


def cut(
    text: str, overlap: int, max_tokens: int = 64, format_: TextFormat = MARKDOWN, title: str = ""
) -> list[ChunkDraft]:
    """The chunks of a text, after checking what holds for every text."""
    encoder = Counter(max_tokens)
    parsed = ParsedText(text=text, format=format_, media_type="text/plain", title=title)
    chunks = chunk(parsed, encoder, overlap=overlap)
    inputs = [encoder.spec.render(title=title, headings=c.headings, text=c.text) for c in chunks]
    assert all(n <= max_tokens for n in encoder.count_tokens(inputs))
    assert all(c.text.endswith(text[c.start : c.end]) and text[c.start : c.end].strip() for c in chunks)
    assert all(a.start <= b.start and a.end < b.end for a, b in pairwise(chunks))
    assert not lost(text, [_behind(a, b) for a, b in pairwise([None, *chunks]) if b], format_)
    return chunks


def _behind(earlier: ChunkDraft | None, chunk: ChunkDraft) -> ChunkDraft:
    """What a chunk holds that the one before it does not."""
    start = max(chunk.start, earlier.end if earlier else 0)
    return ChunkDraft(text=chunk.text, start=start, end=chunk.end, headings=chunk.headings)


def shared(text: str, chunks: Sequence[ChunkDraft]) -> list[str]:
    return [text[b.start : a.end] for a, b in pairwise(chunks)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(text=TEXTS, format_=st.sampled_from(TextFormat), overlap=st.sampled_from([1, 8, 16]), title=st.text(max_size=8))
def test_every_chunk_fits_and_nothing_is_lost(text: str, format_: TextFormat, overlap: int, title: str) -> None:
    chunks = cut(text, overlap, 32, format_, title)
    assert bool(chunks) == bool(text.strip())


def test_a_chunk_begins_with_the_last_sentences_of_the_one_before() -> None:
    """Sentences of eight tokens ("Sentence number 12 says so much .", 12 being one): an overlap of 20 holds two."""
    text = " ".join(f"Sentence number {i} says so much." for i in range(10, 60))
    chunks = cut(text, 20)
    assert len(chunks) > 5
    for said, (before, after) in zip(shared(text, chunks), pairwise(chunks), strict=True):
        assert said.count("Sentence") == 2
        assert after.text.startswith(said)
        assert before.text.endswith(said)


def test_an_overlap_of_less_than_a_sentence_begins_between_words() -> None:
    text = " ".join("word" for _ in range(400))
    for said in shared(text, cut(text, 10, format_=PLAIN)):
        assert 3 <= len(said.split()) <= 10


def test_nothing_is_taken_over_a_heading() -> None:
    text = f"## One\n\n{words(100, 'red')}\n\n## Two\n\n{words(100, 'blue')}"
    chunks = cut(text, 16)
    assert {tuple(c.headings) for c in chunks if "red" in c.text} == {("One",)}
    assert {tuple(c.headings) for c in chunks if "blue" in c.text} == {("Two",)}
    said = shared(text, chunks)
    border = next(i for i, (a, b) in enumerate(pairwise(chunks)) if a.headings != b.headings)
    assert not said[border].strip()
    assert all(said[i].strip() for i in range(len(said)) if i != border)


def test_rows_and_lines_are_taken_over_whole_and_the_header_is_still_repeated() -> None:
    header = "| name | value |\n|---|---|\n"
    table = header + "".join(f"| row | {i} |\n" for i in range(100, 160))
    chunks = cut(table, 16)
    assert all(c.text.startswith(header) for c in chunks)
    assert all(said.startswith("| row |") and said.count("row") == 3 for said in shared(table, chunks))
    code = "\n".join(f"value_{i} = compute({i})" for i in range(100))
    assert all(said.startswith("value_") for said in shared(code, cut(code, 24, format_=CODE)))


def test_no_overlap_is_as_it_always_was() -> None:
    text = f"# A\n\n{words(300)}\n\n## B\n\n{words(300, 'red')}"
    parsed = ParsedText(text=text, format=MARKDOWN, media_type="text/markdown")
    assert chunk(parsed, Counter(64), overlap=0) == chunk(parsed, Counter(64))
    assert all(a.end <= b.start for a, b in pairwise(chunk(parsed, Counter(64))))


def test_a_chunking_without_overlap_keeps_the_hash_of_those_before_there_was_one() -> None:
    plain = settings_for(HashEncoder(max_tokens=64))
    assert "overlap" not in plain.as_json()
    other = settings_for(HashEncoder(max_tokens=64), overlap=12)
    assert other.as_json()["overlap"] == 12
    assert other.hash != plain.hash
    assert ChunkingSettings(**other.as_json()) == other
    assert ChunkingSettings(**plain.as_json()) == plain


def test_more_than_half_of_the_budget_is_refused() -> None:
    settings_for(HashEncoder(max_tokens=64), overlap=32)
    with pytest.raises(ChunkingMismatch, match="NVR_CHUNK_OVERLAP_TOKENS to 32"):
        settings_for(HashEncoder(max_tokens=64), overlap=33)
