"""Whatever is parsed and cut: spans point into the stored text exactly, and pages are the right ones."""

from __future__ import annotations

import json
from bisect import bisect_right
from html import escape
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.chunking import chunk
from ingest.parsing import parse_bytes
from nvr_rag.testing import HashEncoder
from nvr_rag.types import ParsedText
from tests.unit.ingest import documents, files

ENCODER = HashEncoder(max_tokens=32)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

Block = tuple[str, list[str]]  # (heading, paragraph, list, code or table; its lines)
_WORDS = st.text(st.sampled_from("abcdefgh äßλ日🦆#*_|`\\<>&-'\"."), min_size=1, max_size=40).filter(str.strip)
_BLOCK = st.tuples(
    st.sampled_from(["heading", "paragraph", "list", "code", "table"]), st.lists(_WORDS, min_size=1, max_size=6)
)
_BLOCKS = st.lists(_BLOCK, min_size=1, max_size=12)
_PAGES = st.lists(st.lists(st.text(st.sampled_from("abc xyz."), max_size=30), max_size=4), min_size=1, max_size=6)


def markdown(blocks: list[Block]) -> bytes:
    def block(kind: str, lines: list[str]) -> str:
        if kind == "table":
            return "\n".join(["| a | b |", "| --- | --- |", *(f"| {line} | 1 |" for line in lines)])
        mark = {"heading": "## ", "list": "* "}.get(kind, "")
        text = "\n".join(mark + line for line in lines[: 1 if kind == "heading" else None])
        return f"```\n{text}\n```" if kind == "code" else text

    return "\n\n".join(block(*one) for one in blocks).encode()


def html(blocks: list[Block]) -> bytes:
    tags = {"heading": "h2", "paragraph": "p", "code": "pre"}

    def block(kind: str, lines: list[str]) -> str:
        if kind == "list":
            return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        if kind == "table":
            return f"<table>{''.join(f'<tr><td>{escape(line)}</td><td>1</td></tr>' for line in lines)}</table>"
        return f"<{tags[kind]}>{escape(chr(10).join(lines))}</{tags[kind]}>"

    return ("<!doctype html><html><body>" + "".join(block(*one) for one in blocks) + "</body></html>").encode()


def docx(blocks: list[Block]) -> bytes:
    def block(kind: str, lines: list[str]) -> str:
        if kind == "table":
            return files.word_table([[escape(line), "1"] for line in lines])
        return "".join(files.paragraph(escape(line), "Heading2" if kind == "heading" else "") for line in lines)

    return files.docx("".join(block(*one) for one in blocks))


def notebook(blocks: list[Block]) -> bytes:
    cells = [
        {"cell_type": "code" if kind == "code" else "markdown", "source": "\n".join(lines), "outputs": []}
        for kind, lines in blocks
    ]
    return json.dumps({"nbformat": 4, "cells": cells}).encode()


def mail(blocks: list[Block]) -> bytes:
    head = "Subject: x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    return (head + "\r\n".join(line for _, lines in blocks for line in lines)).encode()


def csv(blocks: list[Block]) -> bytes:
    quoted = [[line.replace('"', '""') for line in lines] for _, lines in blocks]
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in quoted).encode()


FORMATS = {
    "a.md": markdown,
    "a.html": html,
    "a.docx": docx,
    "a.ipynb": notebook,
    "a.eml": mail,
    "a.csv": csv,
    "a.txt": markdown,
    "a.py": markdown,
}


def check_spans(parsed: ParsedText) -> None:
    drafts = chunk(parsed, ENCODER)
    assert drafts
    for draft in drafts:
        assert 0 <= draft.start < draft.end <= len(parsed.text)
        span = parsed.text[draft.start : draft.end]
        assert draft.text.endswith(span)
        header = draft.text[: len(draft.text) - len(span)]
        assert not header or (header.startswith("|") and header in parsed.text[: draft.start])
        assert draft.page == (bisect_right(parsed.page_starts, draft.start) if parsed.page_starts else None)
    assert all(before.end <= after.start for before, after in pairwise(drafts))
    assert list(parsed.page_starts) == sorted(parsed.page_starts)
    assert all(0 <= start <= len(parsed.text) for start in parsed.page_starts)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_spans_of_any_document_point_into_its_text(name: str) -> None:
    @QUICK
    @given(_BLOCKS)
    def holds(blocks: list[Block]) -> None:
        check_spans(parse_bytes(FORMATS[name](blocks), name=name))

    holds()


@pytest.mark.parametrize("name", ["a.pdf", "a.pptx", "a.odp"])
def test_each_page_is_found_by_its_number(name: str) -> None:
    @QUICK
    @given(_PAGES)
    def holds(pages: list[list[str]]) -> None:
        marked = [[f"Mark{number}end", *lines] for number, lines in enumerate(pages, start=1)]
        parsed = parse_bytes(in_pages(name, marked), name=name)
        check_spans(parsed)
        assert len(parsed.page_starts) == len(pages)
        for number in range(1, len(pages) + 1):
            assert bisect_right(parsed.page_starts, parsed.text.index(f"Mark{number}end")) == number

    holds()


def in_pages(name: str, pages: list[list[str]]) -> bytes:
    if name == "a.pdf":
        return files.pdf([[(11, line) for line in lines] for lines in pages])
    if name == "a.pptx":
        return files.pptx([(lines[0], " ".join(lines[1:])) for lines in pages])
    slides = ("".join(f"<text:p>{line}</text:p>" for line in lines) for lines in pages)
    return documents.open_document("presentation", "".join(f"<draw:page>{slide}</draw:page>" for slide in slides))
