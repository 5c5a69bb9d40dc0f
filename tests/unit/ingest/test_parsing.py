from __future__ import annotations

import io
import json
import random
import zipfile

import pytest

from ingest.parsers import ocr
from ingest.parsers.limits import DEFAULT_LIMITS, ParseLimits
from ingest.parsers.tidying import tidy
from ingest.parsing import PARSER, parse_bytes
from nvr_rag.errors import ParseFailed
from nvr_rag.types import TextFormat
from tests.unit.ingest import documents, files

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def locked_zip(data: bytes) -> bytes:
    """Every member is said to be encrypted, in the archive's directory and before the member."""
    locked = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            locked[at + offset] |= 1
    return bytes(locked)


def locked_odt() -> bytes:
    """As an office program writes it with a password: the members' content is gibberish."""
    manifest = '<manifest:manifest><manifest:file-entry manifest:full-path="content.xml"><manifest:encryption-data/>'
    parts = {"mimetype": "application/vnd.oasis.opendocument.text", "META-INF/manifest.xml": manifest}
    return documents.zipped({**parts, "content.xml": bytes(range(256))}, stored="mimetype")


@pytest.fixture(autouse=True)
def without_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "installed", lambda: None)


def failure(data: bytes, name: str, **options: object) -> str:
    with pytest.raises(ParseFailed) as raised:
        parse_bytes(data, name=name, **options)  # type: ignore[arg-type]
    return str(raised.value)


class TestText:
    def test_markdown_keeps_every_character_but_newlines_and_controls(self) -> None:
        parsed = parse_bytes(b"# Guide\r\n\r\n* a  *b*\x00\t`c\\d`\r* \xe2\x82\xac\x07\n", name="guide.md")
        assert parsed.text == "# Guide\n\n* a  *b*\t`c\\d`\n* €\n"
        assert (parsed.format, parsed.media_type, parsed.title) == (TextFormat.MARKDOWN, "text/markdown", "Guide")

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_unicode_encodings(self, encoding: str) -> None:
        text = "Straße, naïve café, 42 € and more words of plain text.\n"
        parsed = parse_bytes(text.encode(encoding), name="a.txt")
        assert (parsed.text, parsed.format, list(parsed.notes)) == (text, TextFormat.PLAIN, [])

    def test_western_text_that_is_not_utf8_is_read_with_a_note(self) -> None:
        parsed = parse_bytes("Die Straße ist für alle – “wirklich” alle.".encode("cp1252"), name="a.txt")
        assert parsed.text == "Die Straße ist für alle – “wirklich” alle."
        assert parsed.notes == ["is not valid UTF-8; read as Windows-1252"]

    @pytest.mark.parametrize(
        "data",
        [
            "Привет, как дела, мир".encode("cp1251"),
            "日本語のテキスト".encode("shift_jis"),
            random.Random(1).randbytes(5000),
        ],
    )
    def test_other_bytes_are_refused_rather_than_guessed(self, data: bytes) -> None:
        assert "binary" in failure(data, "a.txt")

    def test_source_code_by_extension_name_and_shebang(self) -> None:
        source = b"def f(x):\n\treturn x  # <b>\n"
        assert parse_bytes(source, name="f.py").text == source.decode()
        assert parse_bytes(source, name="f.py").media_type == "text/x-python"
        assert parse_bytes(b"all:\n\techo\n", name="Makefile").format is TextFormat.CODE
        assert parse_bytes(b"#!/bin/sh\necho\n", name="run").format is TextFormat.CODE
        assert parse_bytes(b'{"a": [1, 2]}', name="a.json").format is TextFormat.CODE
        assert parse_bytes(b"just words", name="NOTES").format is TextFormat.PLAIN

    def test_the_media_type_helps_where_the_name_does_not(self) -> None:
        assert parse_bytes(b"# A\n\ntext", name="download", media_type="text/markdown; charset=utf-8").title == "A"
        assert parse_bytes(b"<p>x</p>", name="", media_type="text/html").text == "x"


class TestFrontMatter:
    def test_becomes_metadata_and_title(self) -> None:
        data = (
            b"---\ntitle: Go back\ntags: [a, b]\ndate: 2024-05-01\nn: 3\nnested: {x: .inf}\n---\n\n# Heading\n\nText\n"
        )
        parsed = parse_bytes(data, name="a.md")
        assert parsed.text == "# Heading\n\nText\n"
        assert parsed.title == "Go back"
        assert parsed.metadata == {"tags": ["a", "b"], "date": "2024-05-01", "n": 3, "nested": {"x": "inf"}}
        json.dumps(parsed.metadata, allow_nan=False)

    @pytest.mark.parametrize(
        "front",
        [
            "---\n: [broken\n---\n",
            "---\njust a line\n---\n",
            "---\nno: end\n",
            "---\nrun: !!python/object/apply:os.getcwd []\n---\n",
            "---\na: &a [x, *a]\n---\n",
            "---\na: &a [0,0,0,0,0,0,0,0]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n---\n",
        ],
        ids=["broken", "no mapping", "no end", "python object", "recursive", "alias bomb"],
    )
    def test_what_is_no_sound_mapping_stays_in_the_text(self, front: str) -> None:
        parsed = parse_bytes(f"{front}\nText\n".encode(), name="a.md")
        assert parsed.text == f"{front}\nText\n"
        assert parsed.metadata == {}

    def test_a_page_of_front_matter_alone_is_found_by_its_title(self) -> None:
        parsed = parse_bytes(b"---\ntitle: Handbook\nredirect_to: https://a.example\n---\n", name="a.md")
        assert (parsed.text, parsed.metadata) == ("Handbook", {"redirect_to": "https://a.example"})


class TestTitle:
    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ("intro\n\n## Low\n\n# **High** `x`\n", "High x"),
            ("Old style\n=========\n\ntext", "Old style"),
            ("```\n# comment\n```\n\n## Real ##\n", "Real"),
            ("no heading", ""),
        ],
    )
    def test_of_markdown_is_its_highest_first_heading(self, text: str, title: str) -> None:
        assert parse_bytes(text.encode(), name="a.md").title == title

    def test_what_programs_invent_is_no_title(self) -> None:
        for invented in ("untitled", "Microsoft Word - report.doc", "report.docx"):
            assert parse_bytes(files.pdf([[(11, "Some text.")]], title=invented), name="a.pdf").title == ""


class TestTables:
    def test_csv_becomes_a_table_under_its_first_row(self) -> None:
        data = b'name;note;n\n"Tea; green";"a|b\nc";1\nshort\n\n'
        parsed = parse_bytes(data, name="a.csv")
        assert parsed.text == (
            "| name | note | n |\n| --- | --- | --- |\n| Tea; green | a\\|b c | 1 |\n| short |  |  |\n"
        )
        assert (parsed.format, parsed.media_type) == (TextFormat.MARKDOWN, "text/csv")

    def test_tsv_and_a_single_column(self) -> None:
        assert parse_bytes(b"a,b\tc\n1\t2\n", name="a.tsv").text == "| a,b | c |\n| --- | --- |\n| 1 | 2 |\n"
        assert parse_bytes(b"Industry\nFood\nArt\n", name="a.csv").text == "| Industry |\n| --- |\n| Food |\n| Art |\n"

    def test_sheets_are_headings_and_no_title(self) -> None:
        data = files.xlsx({"Prices": [["item", "price"], ["tea", 3]], "Notes": [["x"], ["y"]]})
        parsed = parse_bytes(data, name="a.xlsx")
        assert (
            parsed.text
            == "## Prices\n\n| item | price |\n| --- | --- |\n| tea | 3 |\n\n## Notes\n\n| x |\n| --- |\n| y |"
        )
        assert parsed.title == ""


class TestHtml:
    PAGE = (
        "<!doctype html><html><head><title>Roll&nbsp;back &amp; more</title><style>p{}</style></head><body>"
        "<nav>Menu</nav><h1>Grüße</h1>"
        "<p>See <a class='x>y' href='https://long.example/?q=1'>the guide</a>, 5 &lt; 6!</p>"
        "<pre><code class='language-python'>a = 1\n</code></pre><ul><li>one</li><li>two</li></ul>"
        "<form><p>asked</p></form><img src='data:image/png;base64,AAAA' alt='a map'>"
        "<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>"
        "<script>alert(1)</script><footer>Imprint</footer></body></html>"
    )
    TEXT = (
        "# Grüße\n\nSee the guide, 5 < 6!\n\n```python\na = 1\n```\n\n- one\n- two\n\nasked\n\na map\n\n"
        "| k | v |\n| --- | --- |\n| 1 | 2 |"
    )

    def test_structure_stays_and_what_surrounds_it_goes(self) -> None:
        parsed = parse_bytes(self.PAGE.encode(), name="a.html")
        assert parsed.text == self.TEXT
        assert (parsed.title, parsed.media_type) == ("Roll back & more", "text/html")

    def test_a_declared_encoding_counts(self) -> None:
        page = self.PAGE.replace("<head>", '<head><meta charset="shift_jis">').replace("Grüße", "日本")
        assert parse_bytes(page.encode("shift_jis"), name="a.html").text.startswith("# 日本\n")
        assert parse_bytes(self.PAGE.encode("utf-16"), name="a.html").text == self.TEXT

    def test_a_page_is_known_without_its_extension(self) -> None:
        assert parse_bytes(self.PAGE.encode(), name="page").text == self.TEXT
        assert parse_bytes(self.PAGE.encode(), name="export.xls").text == self.TEXT


class TestPages:
    def test_of_a_pdf_point_into_the_text(self) -> None:
        data = files.pdf(
            [[(24, "Roll back"), (11, "Go back one step.")], [], [(11, "Third page.")]], title="Operations"
        )
        parsed = parse_bytes(data, name="a.pdf")
        assert parsed.title == "Operations"
        assert list(parsed.page_starts) == [0, parsed.text.index("Third"), parsed.text.index("Third")]
        assert parsed.text[: parsed.page_starts[2]].split() == ["Roll", "back", "Go", "back", "one", "step."]
        assert parsed.metadata["pages"] == 3
        assert parsed.notes == [f"1 of 3 pages have no text layer; {ocr.NOT_INSTALLED}"]

    def test_of_slides_that_say_the_same(self) -> None:
        parsed = parse_bytes(files.pptx([("First", "same"), ("", ""), ("First", "same")]), name="a.pptx")
        assert parsed.text == "## First\n\nsame\n\n## First\n\nsame"
        assert list(parsed.page_starts) == [0, 16, 16]

    def test_a_document_cannot_forge_a_page_break(self) -> None:
        parsed = parse_bytes(files.pdf([[(11, "<!-- PAGE 2 --> text")]]), name="a.pdf")
        assert list(parsed.page_starts) == [0]


def test_docx_structure() -> None:
    body = files.paragraph("Roll back", "Heading1") + files.paragraph("Use # and &lt;b&gt; freely! `x`")
    body += files.paragraph("# no heading") + files.paragraph("Steps", "Heading2")
    body += files.word_table([["a", "b|c"], ["1", "2"]])
    parsed = parse_bytes(files.docx(body, title="Operations"), name="a.docx")
    assert parsed.text == (
        "# Roll back\n\nUse # and <b> freely! `x`\n\n\\# no heading\n\n"
        "## Steps\n\n| a | b\\|c |\n| --- | --- |\n| 1 | 2 |"
    )
    assert parsed.title == "Operations"


def test_email() -> None:
    data = (
        b"From: Ann <ann@a.example>\r\nTo: bob@b.example\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
        b"Date: Mon, 6 May 2024 10:00:00 +0200\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\nIch \xfcbe.\r\n"
    )
    parsed = parse_bytes(data, name="a.eml")
    assert parsed.title == "Grüße"
    assert "Ich übe." in parsed.text
    assert "Ann <ann@a.example>" in parsed.text
    assert parsed.metadata["from"] == "ann@a.example"
    assert parsed.metadata["created_at"] == "2024-05-06T10:00:00+02:00"


def test_the_parsers_markdown_is_tidied() -> None:
    ugly = "- \n\n**Tea**: hot\\!\n\n\n\n![image1.png](media/image1.png)\n\n![A cup](media/2.png)\n\n"
    ugly += "Intro . . . . . . . . 3\n\n| a | b |\n| --- | --- |\n|  |  |\n| x\\|y | 1 |\n\n"
    ugly += "```\n\\! | |\n```\n\n`\\!` $$\\{x\\}$$ \\\\"
    assert tidy(ugly) == (
        "- **Tea**: hot!\n\nA cup\n\nIntro ... 3\n\n"
        "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n\n```\n\\! | |\n```\n\n`\\!` $$\\{x\\}$$ \\"
    )


def test_generic_xml_keeps_its_text_without_a_heading_for_each_element() -> None:
    parsed = parse_bytes(b"<order><item><name>Green tea</name></item></order>", name="a.xml")
    assert "Green tea" in parsed.text
    assert "#" not in parsed.text
    assert parsed.format is TextFormat.PLAIN


def test_xml_of_a_scientific_article_has_its_sections() -> None:
    data = (
        b'<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Publishing DTD v1.2 20190208//EN" "jats.dtd">'
        b"<article><front><article-meta><title-group><article-title>On Tea</article-title></title-group>"
        b"</article-meta></front><body><sec><title>Methods</title><p>We drank it.</p></sec></body></article>"
    )
    parsed = parse_bytes(data, name="a.xml")
    assert parsed.title == "On Tea"
    assert "## Methods\n\nWe drank it." in parsed.text


def test_a_latex_fragment_is_kept_as_it_is() -> None:
    assert "two words" in parse_bytes(b"Here are two words.\n\n\\section{A} More.\n", name="part.tex").text


class TestRefusals:
    def test_empty_and_blank(self) -> None:
        assert failure(b"", "a.pdf") == "is empty (0 bytes)"
        assert failure(b" \r\n\t", "a.txt") == "has no text, only white space or images"

    def test_binary(self) -> None:
        assert failure(bytes(range(256)) * 20, "mystery") == "looks binary; no parser knows it"
        assert failure(b"\x00" * 1000, "a.txt") == "looks binary; no parser knows it"

    def test_encrypted(self) -> None:
        wanted = "is encrypted; remove the password and ingest it again"
        assert failure(files.ENCRYPTED_PDF.read_bytes(), "a.pdf") == wanted
        assert failure(locked_zip(files.docx(files.paragraph("secret"))), "a.docx") == wanted
        assert failure(locked_odt(), "a.odt") == wanted
        assert failure(OLE + bytes(1000) + "EncryptedPackage".encode("utf-16-le"), "a.docx") == wanted

    def test_scan(self) -> None:
        scan = files.pdf([[], []])
        wanted = "has no text layer (a scan?); install Tesseract (tesseract-ocr) to have scans read by OCR"
        assert failure(scan, "a.pdf") == wanted
        limits = ParseLimits(ocr_pages=0)
        assert failure(scan, "a.pdf", limits=limits) == "has no text layer (a scan?); OCR is switched off"

    def test_damaged(self) -> None:
        for name, data in {
            "a.pdf": files.pdf([[(11, "text")]])[:300],
            "a.docx": files.docx(files.paragraph("text"))[:900],
            "b.docx": b"no zip at all",
            "c.pdf": b"no PDF at all",
        }.items():
            assert failure(data, name).startswith("is damaged"), name

    def test_archive(self) -> None:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("a.txt", "text")
        assert failure(data.getvalue(), "a.pages").startswith("is a ZIP container that no parser knows")

    def test_too_large(self) -> None:
        limits = ParseLimits(input_bytes=2**20, characters=1000)
        assert failure(b"x" * (2**20 + 1), "a.txt", limits=limits).startswith("is larger than 1 MB")
        assert failure(b"x" * 1001, "a.txt", limits=limits) == "has more than 1,000 characters of text; split it"
        assert failure(b"a,b\n" * 900, "a.csv", limits=limits).startswith("has more than")
        assert DEFAULT_LIMITS.input_bytes == 100 * 2**20


def test_the_parser_has_a_name_and_a_version() -> None:
    assert PARSER.startswith("nvr-2/xberg-1.")
