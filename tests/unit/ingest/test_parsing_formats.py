"""What comes out of each format: title, headings, lists, tables, code, pages, metadata."""

from __future__ import annotations

import json

import pytest

from ingest.parsers.json_text import laid_out
from ingest.parsers.mail import read_mail
from ingest.parsers.notebooks import OUTPUT_CHARACTERS
from ingest.parsing import parse_bytes
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText, TextFormat
from tests.unit.ingest import documents, files

TABLE = "| kind | minutes |\n| --- | --- |\n| green | 2 |"
LIST = "- boil\n- pour"
CODE = "```python\nbrew(1)\n```"


def parse(data: bytes | str, name: str) -> ParsedText:
    return parse_bytes(data.encode() if isinstance(data, str) else data, name=name)


def pages(parsed: ParsedText) -> list[str]:
    ends = [*parsed.page_starts[1:], len(parsed.text)]
    return [parsed.text[a:b].strip("\n") for a, b in zip(parsed.page_starts, ends, strict=True)]


@pytest.mark.parametrize("name", sorted(documents.every()))
def test_every_format_is_read_and_says_its_word(name: str) -> None:
    parsed = parse(documents.every()[name], name)
    assert "tea" in f"{parsed.title} {parsed.text}".lower()
    assert list(parsed.notes) == []


@pytest.mark.parametrize("name", ["a.rst", "a.adoc", "a.html"])
def test_markup_has_its_headings_list_code_and_table(name: str) -> None:
    parsed = parse(documents.every()[name], name)
    assert parsed.format is TextFormat.MARKDOWN
    blocks = parsed.text.split("\n\n")
    assert blocks[0] == "# Tea"
    assert blocks[2:] == ["## Brewing", LIST, CODE, TABLE]
    assert parsed.title == ("Tea handbook" if name == "a.html" else "Tea")


def test_odt() -> None:
    parsed = parse(documents.odt(), "a.odt")
    assert parsed.title == "Tea handbook"
    assert parsed.text.split("\n\n") == ["# Tea", "All of it.", "## Brewing", LIST, TABLE]


def test_ods_has_a_heading_for_each_sheet() -> None:
    parsed = parse(documents.ods(), "a.ods")
    assert parsed.text == f"## Kinds\n\n{TABLE}\n\n## Shops\n\n| city |\n| --- |\n| Riga |"
    assert parsed.title == ""


class TestOpenPresentation:
    def test_slides_are_pages_with_titles_lists_and_notes(self) -> None:
        parsed = parse(documents.odp(), "a.odp")
        assert pages(parsed) == ["## Tea\n\n- why\n\nNotes: say hello", "## Brewing\n\n- how\n\nNotes: wait"]
        assert (parsed.title, parsed.metadata) == ("Tea", {"pages": 2})

    def test_tables_nested_lists_and_odd_spaces(self) -> None:
        items = "<text:list><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>two</text:p>"
        items += "</text:list-item></text:list></text:list-item></text:list>"
        cell = "<table:table-cell><text:p>x</text:p></table:table-cell>"
        table = f'<table:table><table:table-row>{cell}<table:table-cell table:number-columns-repeated="2"/>'
        table += f"</table:table-row><table:table-row>{cell}{cell}{cell}</table:table-row></table:table>"
        text = '<text:p>a<text:s text:c="99999999"/>b<text:span>c</text:span><text:line-break/>d</text:p>'
        body = f"<draw:page>{items}<draw:frame>{table}</draw:frame><draw:custom-shape>{text}</draw:custom-shape>"
        body += '<draw:frame presentation:class="footer"><text:p>left out</text:p></draw:frame></draw:page>'
        parsed = parse(documents.open_document("presentation", body, title="A talk"), "a.odp")
        assert parsed.text == "- one\n  - two\n\n| x |  |  |\n| --- | --- | --- |\n| x | x | x |\n\na bc d"
        assert parsed.title == "A talk"

    def test_a_document_type_is_refused(self) -> None:
        bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
        data = documents.zipped(
            {"mimetype": "application/vnd.oasis.opendocument.presentation", "content.xml": bomb}, stored="mimetype"
        )
        with pytest.raises(ParseFailed, match="declares a document type"):
            parse(data, "a.odp")


def test_slides_have_their_speaker_notes() -> None:
    parsed = parse(files.pptx([("First", "one"), ("Second", "two")], notes={2: "Breathe."}), "a.pptx")
    assert pages(parsed) == ["## First\n\none", "## Second\n\ntwo\n\nNotes: Breathe."]


def test_docx_headings_and_nested_lists() -> None:
    def item(level: int, text: str) -> str:
        numbering = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="1"/></w:numPr>'
        return f"<w:p><w:pPr>{numbering}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"

    body = (
        files.paragraph("One", "Heading1") + files.paragraph("Two", "Heading2") + files.paragraph("Three", "Heading3")
    )
    body += item(0, "boil") + item(1, "slowly") + item(0, "pour")
    parsed = parse(files.docx(body), "a.docx")
    assert parsed.text == "# One\n\n## Two\n\n### Three\n\n- boil\n  - slowly\n- pour"
    assert parsed.title == "One"


def test_epub_chapters_come_in_the_order_of_the_spine() -> None:
    parsed = parse(documents.epub((("Zeal", "First."), ("Art", "Second."), ("Mist", "Third."))), "a.epub")
    assert parsed.text == "# Zeal\n\nFirst.\n\n# Art\n\nSecond.\n\n# Mist\n\nThird."
    assert (parsed.title, parsed.metadata) == ("The Book of Tea", {"authors": ["Ann Author"], "language": "en"})


def test_rtf() -> None:
    parsed = parse(documents.rtf(), "a.rtf")
    assert parsed.title == "Tea handbook"
    assert parsed.text.split("\n\n") == ["# Tea", "Grüße and **bold** words €.", TABLE, "After."]


class TestMail:
    def test_the_richer_alternative_is_read_and_attachments_are_named(self) -> None:
        parsed = parse(documents.eml(), "a.eml")
        head, body, attachments = parsed.text.split("\n\n")
        assert "**From**: Ann Author <ann@a.example>" in head
        assert (body, attachments) == ("Green tea costs **3**.", "Attachments: prices.csv")
        assert parsed.title == "Tea prices"
        assert parsed.metadata == {
            "authors": ["Ann Author"],
            "created_at": "2024-05-06T10:00:00+02:00",
            "from": "ann@a.example",
            "to": ["bob@b.example"],
            "cc": ["eve@e.example"],
            "attachments": ["prices.csv"],
        }

    def test_html_alone_without_its_style(self) -> None:
        parsed = parse(documents.html_eml(), "a.eml")
        assert parsed.text.endswith("## Grüße\n\n- one\n- two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |")
        assert "p{}" not in parsed.text

    def test_plain_text_is_not_taken_for_headings(self) -> None:
        parsed = parse(b"Subject: x\r\n\r\n# 1 is best\r\nAnn\r\n-- \r\nTea Ltd\r\n", "a.eml")
        assert parsed.text == "**Subject**: x  \n\n\\# 1 is best\nAnn\n\\-- \nTea Ltd"

    def test_a_forwarded_message_is_named(self) -> None:
        data = b"Subject: fwd\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nSee below.\r\n--b\r\n"
        data += b"Content-Type: message/rfc822\r\n\r\nSubject: Old news\r\n\r\nwords\r\n--b--\r\n"
        parsed = parse(data, "a.eml")
        assert parsed.text.endswith("See below.\n\nAttachments: a message (Old news)")

    @pytest.mark.parametrize(
        ("header", "subject"),
        [
            (b"=?utf-8?b?VGVh?= =?iso-8859-1?q?_=FC?=", "Tea ü"),
            (b"=?no-such-code?q?Tea?=", "=?no-such-code?q?Tea?="),
            (b"=?utf-8?b?V?=", "=?utf-8?b?V?="),
        ],
    )
    def test_odd_headers(self, header: bytes, subject: str) -> None:
        assert parse(b"Subject: " + header + b"\r\n\r\nwords\r\n", "a.eml").title == subject

    def test_a_wrong_charset_and_an_impossible_date(self) -> None:
        data = b"Subject: x\r\nDate: Mon, 99 May 2024 10:00:00 +0200\r\nContent-Type: text/plain; charset=klingon\r\n"
        parsed = parse(data + b"\r\nGr\xc3\xbc\xc3\x9fe\r\n", "a.eml")
        assert "Grüße" in parsed.text
        assert parsed.metadata["created_at"] == "Mon, 99 May 2024 10:00:00 +0200"

    def test_what_is_no_mail(self) -> None:
        with pytest.raises(ParseFailed, match="it has no headers"):
            parse(b"just words\n", "a.eml")

    def test_parts_within_parts_have_an_end(self) -> None:
        data = b"Subject: x\r\n"
        for level in range(60):
            data += b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (level, level)
        with pytest.raises(ParseFailed, match="nested too deeply"):
            read_mail(data + b"\r\nwords", lambda page: page.decode())


def test_msg() -> None:
    parsed = parse(documents.msg(), "a.msg")
    assert parsed.title == "Tea prices"
    assert parsed.text.endswith("Green tea costs 3.")
    assert parsed.metadata["from"] == "ann@a.example"


class TestNotebook:
    def test_text_code_and_what_it_printed(self) -> None:
        parsed = parse(documents.notebook(), "a.ipynb")
        code = "```python\nprice = 6 * 7\nprint(price)\n```\n\n```\n42\n```\n\n```\n<Figure>\n```"
        assert parsed.text == f"# Tea\n\nWhat it costs.\n\n{code}\n\n## More\n\n* one\n* two\n\nraw words"
        assert (parsed.title, parsed.metadata) == ("Tea", {"language": "python"})

    def test_long_outputs_are_cut(self) -> None:
        parsed = parse(documents.notebook("x" * 50_000 + "end"), "a.ipynb")
        assert f"```\n{'x' * OUTPUT_CHARACTERS}\n...\n```" in parsed.text
        assert "end" not in parsed.text

    def test_fences_in_code_tracebacks_and_format_3(self) -> None:
        error = {"output_type": "pyerr", "ename": "ValueError", "evalue": "\x1b[31mno tea\x1b[0m", "traceback": ["x"]}
        cells = [
            {"cell_type": "heading", "level": 2, "source": ["Old\n", "style"]},
            {"cell_type": "code", "input": "'''\n```\n'''", "outputs": [error, "odd", None]},
            "no cell",
        ]
        parsed = parse(json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}), "a.ipynb")
        assert parsed.text == "## Old style\n\n````\n'''\n```\n'''\n````\n\n```\nValueError: no tea\n```"

    @pytest.mark.parametrize("data", ["{", "[]", '{"cells": 3}', "words"])
    def test_what_is_none(self, data: str) -> None:
        with pytest.raises(ParseFailed, match="not the notebook that its name says"):
            parse(data, "a.ipynb")


class TestJson:
    def test_lines_stay_as_they_are(self) -> None:
        for name in ("a.json", "a.jsonl"):
            assert parse(documents.every()[name], name).text == documents.every()[name].decode()

    def test_one_long_line_is_laid_out_with_every_character(self) -> None:
        value = {"tea, [hot]": [{"kind": f'gr"e\\en{n}', "price": 1.10, "none": None} for n in range(200)], "a": {}}
        text = json.dumps(value, separators=(",", ":"))
        parsed = parse(text, "a.json")
        assert json.loads(parsed.text) == value
        assert "".join(parsed.text.split()) == "".join(text.split())
        assert parsed.text.splitlines()[:4] == ["{", '  "tea, [hot]": [', "    {", '      "kind": "gr\\"e\\\\en0",']

    @pytest.mark.parametrize("text", ["[" * 100_000, '"' + "x" * 5_000_000, "]" * 5000, '{"a":"\\' * 1000])
    def test_what_is_broken_is_laid_out_as_far_as_it_goes(self, text: str) -> None:
        assert "".join(laid_out(text).split()) == text


def test_pdf_pages_and_headings() -> None:
    parsed = parse(documents.every()["a.pdf"], "a.pdf")
    first, second = pages(parsed)
    assert first.startswith("## Tea\n\nAll of")
    assert second == "## Brewing\n\nBoil and pour."
    assert parsed.metadata == {"pages": 2}
