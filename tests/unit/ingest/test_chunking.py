"""What callers of a chunker rely on: chunks fit, nothing is lost, structure and edits are respected, linear time."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ingest.chunking import chunk
from ingest.leaves import without_surrogates
from ingest.sections import Kind, plain, structure
from nvr_rag.encoders.base import Encoder, Vectors
from nvr_rag.encoders.bundled import bundled_directory
from nvr_rag.encoders.spec import EncoderSpec
from nvr_rag.errors import ChunkingMismatch
from nvr_rag.testing import HashEncoder
from nvr_rag.types import ChunkDraft, ParsedText, TextFormat

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "folders"
MARKDOWN, PLAIN, CODE = TextFormat.MARKDOWN, TextFormat.PLAIN, TextFormat.CODE


@lru_cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(bundled_directory() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Counter:
    """An encoder as far as a chunker needs one: the bundled tokenizer and any budget."""

    fingerprint = "none"
    tokenizer_hash = "bundled"

    def __init__(self, max_tokens: int = 256, *, context_bytes: int = 192, prompt: str = "") -> None:
        self.spec = EncoderSpec(
            dimension=384,
            max_tokens=max_tokens,
            pooling="mean",
            normalize=True,
            context_bytes=context_bytes,
            document_prompt=prompt,
        )

        self.read = 0  # characters counted so far

    def count_tokens(self, inputs: Sequence[str]) -> list[int]:
        prompt = self.spec.document_prompt
        self.read += sum(map(len, inputs))
        clean = [without_surrogates(prompt + text) for text in inputs]
        return [len(encoding) for encoding in _tokenizer().encode_batch_fast(clean)]

    def encode_documents(self, inputs: Sequence[str]) -> Vectors:
        raise NotImplementedError

    encode_queries = encode_documents


def cut(
    text: str,
    encoder: Encoder | None = None,
    format_: TextFormat = MARKDOWN,
    *,
    title: str = "",
    pages: Sequence[int] = (),
) -> list[ChunkDraft]:
    """The chunks of a text, after checking what holds for every text."""
    encoder = encoder or Counter()
    parsed = ParsedText(text=text, format=format_, media_type="text/plain", title=title, page_starts=pages)
    chunks = chunk(parsed, encoder)
    inputs = [encoder.spec.render(title=title, headings=c.headings, text=c.text) for c in chunks]
    assert all(n <= encoder.spec.max_tokens for n in encoder.count_tokens(inputs))
    assert all(c.text.endswith(text[c.start : c.end]) and text[c.start : c.end].strip() for c in chunks)
    assert all(a.end <= b.start for a, b in pairwise(chunks))
    assert not lost(text, chunks, format_)
    return chunks


def lost(text: str, chunks: Sequence[ChunkDraft], format_: TextFormat) -> str:
    """What is in no chunk and in no heading path: blanks aside, nothing may be."""
    gaps, position = [], 0
    for start, end in [*((c.start, c.end) for c in chunks), (len(text), len(text))]:
        gaps.append((position, start))
        position = end
    sections, blocks = structure(without_surrogates(text), format_)
    paths = {heading for c in chunks for heading in c.headings}
    excused = [
        (block.start, block.end)
        for block in blocks
        if block.kind is Kind.HEADING and sections[block.section].path[-1] in paths
    ]
    return "".join(text[i] for a, b in gaps for i in range(a, b) if not any(x <= i < y for x, y in excused)).strip()


def words(n: int, word: str = "word") -> str:
    """n words of one token each, in sentences of ten."""
    return " ".join(f"{word}." if i % 10 == 9 else word for i in range(n))


# --- the promises, over any text -------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "\n", "\n\n", "\r\n", " ", "\t", "\x00", "\x0b", "\u2028", "\u200b", "\u0301", "e\u0301", "word ",
        "A sentence. ",
        "# Title\n", "## Sub *part*\n", "### \n", "#", "Under\n-----\n", "Over\n====\n", "---\n", "```\n", "~~~py\n",
        "x = f(y)\n", "    indented\n", "- item\n", "  * nested\n", "1. one\n", "> quote\n", ">\n", "| a | b |\n",
        "|---|---|\n", "| 1 | 2 |\n", "नमस्ते",
        "<!-- ", "-->\n", "<div>\n", "漢字かな交じり文。", "한국어", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "ไทย",
        "\ud800", "a" * 150, "https://example.org/" + "path/" * 20, "é", "\u202e", "[link](http://x.y)", "`code`", "**",
    ]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=400),
    st.lists(PIECES, max_size=120).map("".join),
    st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=80).map("".join),
    st.text("a漢\u0301👍\n ", max_size=1500),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    text=TEXTS,
    format_=st.sampled_from(TextFormat),
    max_tokens=st.sampled_from([32, 64, 256]),
    title=st.text(max_size=8),
)
def test_every_chunk_fits_and_nothing_is_lost(text: str, format_: TextFormat, max_tokens: int, title: str) -> None:
    chunks = cut(text, Counter(max_tokens), format_, title=title)
    assert cut(text, Counter(max_tokens), format_, title=title) == chunks
    assert bool(chunks) == bool(text.strip())


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, max_tokens=st.sampled_from([12, 24, 64]))
def test_the_double_s_tokenizer_is_served_as_well(text: str, max_tokens: int) -> None:
    cut(text, HashEncoder(max_tokens=max_tokens, document_prompt="passage: "), title="A title")


@pytest.mark.parametrize("text", ["", " ", "\n\n\t \r\n", "\u2003\x0c"])
def test_a_blank_text_gives_no_chunks(text: str) -> None:
    assert [cut(text, format_=format_) for format_ in TextFormat] == [[], [], []]


def test_headings_that_fill_the_budget_give_way_to_the_text() -> None:
    long = "漢" * 60  # 60 tokens, 180 bytes
    chunks = cut(f"# {long}\n\n## Short\n\n{words(300)}", Counter(64))
    assert len(chunks) > 4
    assert all(list(c.headings) in ([], ["Short"]) for c in chunks)


def test_a_title_that_fills_the_budget_is_refused_with_the_remedy() -> None:
    with pytest.raises(ChunkingMismatch, match="context_bytes"):
        cut("text", Counter(32), title="漢" * 60)


def test_combining_marks_and_emoji_sequences_stay_whole() -> None:
    family = "👩‍👩‍👧‍👦"
    for unit in (family, "🇩🇪", "e\u0301\u0323", "각"):
        for c in cut(unit * 400, Counter(32), PLAIN):
            assert len(c.text) % len(unit) == 0
            assert c.text == unit * (len(c.text) // len(unit))


# --- structure -------------------------------------------------------------------------------------------------------


def test_headings_become_the_path_and_leave_the_text() -> None:
    lead, rest = f"# Guide\n\n{words(60)}\n\n## First *part*\n\n{words(60, 'red')}", words(60, "green")
    text = f"{lead}\n\n### Deep\n\n{words(60, 'blue')}\n\nSecond\n------\n\n{rest}"
    assert [(list(c.headings), c.text.split()[0]) for c in cut(text)] == [
        (["Guide"], "word"),
        (["Guide", "First part"], "red"),
        (["Guide", "First part", "Deep"], "blue"),
        (["Guide", "Second"], "green"),
    ]


def test_setext_headings_and_marks_inside_code() -> None:
    text = f"Top\n===\n\n```sh\n# not a heading\n```\n\n{words(50)}\n\n## Real ##\n\n{words(50)}"
    chunks = cut(text)
    assert [list(c.headings) for c in chunks] == [["Top"], ["Top", "Real"]]
    assert "# not a heading" in chunks[0].text


def test_an_unclosed_fence_hides_headings_to_the_end_and_a_quoted_one_to_the_end_of_the_quote() -> None:
    assert len(structure("```\n# a\n## b\n", MARKDOWN)[0]) == 1
    assert structure("> ```\n> # a\n\n# b\n", MARKDOWN)[0][-1].path == ("b",)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("The `Box<T>` **type**", "The Box<T> type"),
        ("[Link](http://a.b/c_(d)) and ![alt](x.png)", "Link and alt"),
        ("snake_case_name and _this_", "snake_case_name and this"),
        ("A \\* star &amp; more {#anchor}", "A * star & more"),
        ('<a id="x"></a>Setup', "Setup"),
    ],
)
def test_plain(line: str, expected: str) -> None:
    assert plain(line) == expected


def test_a_heading_without_text_joins_what_follows_it() -> None:
    chunks = cut(f"# A\n\n## B\n\n## C\n\n{words(60)}")
    assert [(list(c.headings), c.text[:9]) for c in chunks] == [(["A"], "## B\n\n## ")]


def test_headings_with_nothing_behind_them_are_kept() -> None:
    assert [(list(c.headings), c.text) for c in cut("# A\n\n## B\n")] == [(["A"], "## B")]
    assert [(list(c.headings), c.text) for c in cut("# A")] == [([], "# A")]


def test_tiny_neighbours_are_joined_under_one_parent_only() -> None:
    faq = "".join(f"## Q{i}\n\n{words(5)}\n\n" for i in range(3))
    chunks = cut(f"# One\n\n{faq}# Two\n\n{faq}")
    assert [list(c.headings) for c in chunks] == [["One", "Q0"], ["Two", "Q0"]]
    assert all("## Q1" in c.text and "## Q2" in c.text for c in chunks)


def test_a_tiny_section_does_not_leave_its_parent() -> None:
    text = f"## A\n\n{words(100)}\n\n### a\n\n{words(100)}\n\n### tiny\n\nFew words.\n\n## B\n\n{words(100)}"
    chunks = cut(text)
    assert [list(c.headings) for c in chunks] == [["A"], ["A", "a"], ["B"]]
    assert chunks[1].text.endswith("### tiny\n\nFew words.")


def test_large_neighbours_stay_apart_even_when_both_would_fit() -> None:
    assert len(cut(f"## A\n\n{words(50)}\n\n## B\n\n{words(50)}")) == 2


def test_a_long_section_is_cut_in_pieces_of_like_size() -> None:
    paragraphs = "\n\n".join(words(30) for _ in range(9))  # 9 x 33 tokens: 297 + specials, so two chunks
    sizes = [len(c.text.split()) for c in cut(paragraphs)]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 30


def test_cuts_fall_between_sentences() -> None:
    text = " ".join(f"Sentence number {i} says that e.g. Dr. Who et al. came." for i in range(60))
    chunks = cut(text, Counter(64), PLAIN)
    assert len(chunks) > 10
    assert all(c.text.startswith("Sentence") and c.text.endswith("came.") for c in chunks)


def test_chinese_sentences() -> None:
    text = "这是一个句子，里面有一些字，而且还比较长，大约有三十多个字左右吧。" * 20
    assert all(c.text.endswith("。") for c in cut(text, Counter(96), PLAIN))


def test_a_table_that_fits_is_whole_and_a_long_one_repeats_its_header() -> None:
    header = "| name | value |\n|------|-------|\n"
    rows = [f"| row | {i} |\n" for i in range(200)]
    assert len(cut(header + "".join(rows[:20]))) == 1
    chunks = cut(f"# T\n\n{words(40)}\n\n{header}{''.join(rows)}\n{words(40)}")
    inside = [c for c in chunks if "| row |" in c.text]
    assert len(inside) >= 4
    assert all("| name | value |" in c.text for c in inside)
    assert all(c.text.startswith(header) for c in inside[1:])
    got = [line for c in inside for line in c.text.splitlines() if line.startswith("| row |")]
    assert got == [row.strip() for row in rows]


def test_code_that_fits_is_whole_and_long_code_is_cut_at_lines() -> None:
    code = "```py\n" + "".join(f"value_{i} = compute({i})\n" for i in range(12)) + "```"
    chunks = cut(f"{words(150)}\n\n{code}\n\n{words(150)}")
    assert sum(code in c.text for c in chunks) == 1
    lines = [f"value_{i} = compute({i})" for i in range(200)]
    pieces = cut("```py\n" + "\n".join(lines) + "\n```")
    assert len(pieces) > 5
    assert [line for c in pieces for line in c.text.splitlines()] == ["```py", *lines, "```"]


def test_a_comment_is_no_structure_and_is_not_torn_apart() -> None:
    comment = "<!--\n# not a heading\n\n* not an item\n-->"
    chunks = cut(f"{words(100)}\n\n{comment}\n\n{words(200)}")
    assert not any(c.headings for c in chunks)
    assert sum(comment in c.text for c in chunks) == 1


def test_a_line_that_announces_a_block_stays_with_it() -> None:
    text = f"{words(90)}\n\n{words(30)}\n\nRun this:\n\n```sh\nmake install\n```\n\n{words(120)}"
    assert sum("Run this:\n\n```sh\nmake install\n```" in c.text for c in cut(text)) == 1


def test_front_matter_is_no_heading() -> None:
    assert [c.headings for c in cut(f"---\ntitle: x\n---\n\n# A\n\n{words(60)}")] == [()]


def test_source_code_is_cut_at_blank_lines_and_keeps_its_indentation() -> None:
    functions = [f"def f{i}(x):\n    y = x + {i}\n\n    return y * {i}" for i in range(80)]
    chunks = cut("\n\n\n".join(functions), format_=CODE)
    assert len(chunks) > 3
    assert all(c.text.startswith("def f") for c in chunks)
    assert all(not c.headings for c in chunks)


def test_pages_are_those_of_the_first_character() -> None:
    text = "\n\n".join([words(150)] * 3)
    second, third = text.index("word", len(text) // 3), text.index("word", 2 * len(text) // 3)
    chunks = cut(text, format_=PLAIN, pages=[0, second, third])
    assert [c.page for c in chunks] == [1 + (c.start >= second) + (c.start >= third) for c in chunks]
    assert chunks[0].page == 1
    assert chunks[-1].page == 3
    assert cut("a", format_=PLAIN)[0].page is None


def test_surrogates_survive_in_the_text() -> None:
    assert cut("a \ud800 b")[0].text == "a \ud800 b"


# --- edits -----------------------------------------------------------------------------------------------------------


def _sections(n: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [f"## Part {i}\n\n{words(random_.randint(40, 700), f'w{i}')}\n\n" for i in range(n)]


@pytest.mark.parametrize("edit", range(5))
def test_an_edit_leaves_the_chunks_of_other_sections_alone(edit: int) -> None:
    sections = _sections(8, seed=edit)
    before = {c.text for c in cut("# Doc\n\n" + "".join(sections))}
    sections[edit] = f"## Part {edit}\n\n{words(333, 'new')}\n\n"
    after = {c.text for c in cut("# Doc\n\n" + "".join(sections))}
    assert all(f"w{edit}" in text for text in before - after)
    assert all("new" in text for text in after - before)


@pytest.mark.parametrize("format_", [PLAIN, CODE])
def test_an_edit_at_the_top_of_a_long_text_without_headings_changes_few_chunks(format_: TextFormat) -> None:
    random_ = random.Random(7)
    vocabulary = [
        f"{a}{b}" for a in ("red", "blue", "old", "new", "big") for b in ("", " cat", " dog", " house", " tree")
    ]
    paragraphs = [" ".join(random_.choices(vocabulary, k=random_.randint(8, 60))) + "." for _ in range(600)]
    before = cut("\n\n".join(paragraphs), format_=format_)
    after = cut("\n\n".join(["A new paragraph stands in front of all the others.", *paragraphs]), format_=format_)
    kept = {c.text for c in before} & {c.text for c in after}
    assert len(before) > 80
    assert len(kept) > 0.7 * len(before)


# --- time ------------------------------------------------------------------------------------------------------------

SIZE = 400_000  # characters


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * SIZE, id="unbroken"),
        pytest.param("漢" * (SIZE // 4), id="unbroken chinese"),
        pytest.param("a\u0301\u0301" * (SIZE // 3), id="marks"),
        pytest.param("a" + "\u0301" * SIZE, id="one grapheme"),
        pytest.param("a\n" * (SIZE // 2), id="lines"),
        pytest.param("a" + " " * SIZE + "b", id="blanks"),
        pytest.param("# H\n" * (SIZE // 4), id="headings"),
        pytest.param("| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * (SIZE // 10), id="table"),
        pytest.param("| a |\n|---|\n|" + " x |" * (SIZE // 4), id="one row"),
        pytest.param("> " * (SIZE // 2), id="quotes"),
        pytest.param("[" * SIZE, id="brackets"),
        pytest.param(". " * (SIZE // 2), id="stops"),
        pytest.param("<!-- " * (SIZE // 5), id="comments"),
    ],
)
def test_time_is_linear_in_the_length(text: str) -> None:
    begin = time.process_time()
    parsed = ParsedText(text=text, format=MARKDOWN, media_type="text/markdown")
    assert chunk(parsed, Counter())
    assert time.process_time() - begin < 20  # some take two seconds; a quadratic step takes minutes


@pytest.mark.parametrize(
    "alphabet",
    [
        pytest.param("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/", id="base64"),
        pytest.param("漢字仮名交文学校東京大阪", id="chinese"),
        pytest.param("a\u0301👩🏽\u200d🇩🇪é", id="marks and emoji"),
        pytest.param("aaabbbccc    ,.;", id="words"),
    ],
)
def test_what_is_tokenized_is_a_fixed_multiple_of_the_text(alphabet: str) -> None:
    """Tokenizing is where the time goes: a line without an end costs each of its characters as much as a short one."""
    random_ = random.Random(3)
    read = []
    for size in (40_000, 160_000):
        encoder = Counter()
        text = "".join(random_.choices(alphabet, k=size))
        chunk(ParsedText(text=text, format=MARKDOWN, media_type="text/markdown"), encoder)
        read.append(encoder.read / size)
    assert read[0] < 4
    assert read[1] <= read[0] * 1.05


def test_a_line_of_five_megabytes_without_a_blank() -> None:
    begin = time.process_time()
    text = "abcd" * 1_250_000
    chunks = chunk(ParsedText(text=text, format=PLAIN, media_type="text/plain"), Counter())
    assert "".join(c.text for c in chunks) == text
    assert time.process_time() - begin < 60  # two seconds; hours where a step is quadratic


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_real_markdown_is_cut_well() -> None:
    files = sorted((DATA / "rust-book" / "md").glob("*.md"))[:25]
    chunks = [c for file in files for c in cut(file.read_text("utf-8"), title=file.stem)]
    inputs = [Counter().spec.render(title="", headings=c.headings, text=c.text) for c in chunks]
    fill = [n / 256 for n in Counter().count_tokens(inputs)]
    assert sum(fill) / len(fill) > 0.6
    assert sum(f < 1 / 8 for f in fill) < 0.02 * len(fill)
