"""Small documents in binary formats, written by hand so that a test shows what is in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ENCRYPTED_PDF = Path(__file__).parents[2] / "data" / "files" / "encrypted.pdf"

_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
_TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"


def pdf(pages: Sequence[Sequence[tuple[int, str]] | str], *, title: str = "") -> bytes:
    """A PDF with one line of text for each (font size, text) of each page, from the top; or pages of such commands."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        lines, drawing = ([], lines) if isinstance(lines, str) else (lines, "0 0 10 10 re f")
        shown = [f"BT /F1 {size} Tf 72 {740 - 60 * row} Td ({text}) Tj ET" for row, (size, text) in enumerate(lines)]
        content = "\n".join([drawing, *shown]).encode()
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (5 + 2 * number)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    objects.append(f"<< /Title ({title}) >>".encode())
    return _pdf_file(objects)


def _pdf_file(objects: Sequence[bytes]) -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(objects), start)
    return bytes(out)


def docx(body: str, *, title: str = "") -> bytes:
    """A DOCX with these WordprocessingML paragraphs (see `paragraph`)."""
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{n}"><w:name w:val="heading {n}"/>'
        f'<w:pPr><w:outlineLvl w:val="{n - 1}"/></w:pPr></w:style>'
        for n in (1, 2, 3)
    )
    core = "http://schemas.openxmlformats.org/package/2006/metadata/core-properties"
    parts = {
        "word/document.xml": f'{_XML}<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>',
        "word/styles.xml": f'{_XML}<w:styles xmlns:w="{_WORD}">{styles}</w:styles>',
        "word/_rels/document.xml.rels": _rels({"styles": "styles.xml"}),
        "docProps/core.xml": f'{_XML}<cp:coreProperties xmlns:cp="{core}" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></cp:coreProperties>',
    }
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    return _package(parts, "word/document.xml", {"word/document.xml": f"{main}.document.main+xml"})


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def word_table(rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def xlsx(sheets: Mapping[str, Sequence[Sequence[str | int]]]) -> bytes:
    """An XLSX with these sheets, row by row."""
    parts, types, listed = {}, {}, ""
    for number, (name, rows) in enumerate(sheets.items(), start=1):
        path = f"xl/worksheets/sheet{number}.xml"
        parts[path] = f'{_XML}<worksheet xmlns="{_SHEET}"><sheetData>{_sheet_rows(rows)}</sheetData></worksheet>'
        types[path] = "application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"
        listed += f'<sheet name="{name}" sheetId="{number}" r:id="worksheet{number}"/>'
    parts["xl/workbook.xml"] = (
        f'{_XML}<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}"><sheets>{listed}</sheets></workbook>'
    )
    parts["xl/_rels/workbook.xml.rels"] = _rels(
        {f"worksheet{number}": f"worksheets/sheet{number}.xml" for number in range(1, len(sheets) + 1)}
    )
    types["xl/workbook.xml"] = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"
    return _package(parts, "xl/workbook.xml", types)


def _sheet_rows(rows: Sequence[Sequence[str | int]]) -> str:
    out = ""
    for number, row in enumerate(rows, start=1):
        cells = ""
        for column, value in zip("ABCDEFGH", row, strict=False):
            place = f'r="{column}{number}"'
            is_number = isinstance(value, int)
            cells += f"<c {place}><v>{value}</v></c>" if is_number else _inline(place, str(value))
        out += f'<row r="{number}">{cells}</row>'
    return out


def _inline(place: str, text: str) -> str:
    return f'<c {place} t="inlineStr"><is><t>{text}</t></is></c>'


def pptx(slides: Sequence[tuple[str, str]], notes: Mapping[int, str] | None = None) -> bytes:
    """A PPTX with a slide for each (title, body), and speaker notes by number from 1."""
    parts, types, listed = {}, {}, ""
    for number, text in (notes or {}).items():
        parts[f"ppt/slides/_rels/slide{number}.xml.rels"] = _rels(
            {"notesSlide1": f"../notesSlides/notesSlide{number}.xml"}
        )
        parts[f"ppt/notesSlides/notesSlide{number}.xml"] = (
            f'{_XML}<p:notes xmlns:p="{_SLIDE}" xmlns:a="{_DRAWING}">'
            f"<p:cSld><p:spTree>{_shape(2, 'body', text)}</p:spTree></p:cSld></p:notes>"
        )
    for number, (title, body) in enumerate(slides, start=1):
        path = f"ppt/slides/slide{number}.xml"
        shapes = _shape(2, "title", title) + _shape(3, "body", body) if title else ""
        parts[path] = (
            f'{_XML}<p:sld xmlns:p="{_SLIDE}" xmlns:a="{_DRAWING}">'
            f"<p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"
        )
        types[path] = "application/vnd.openxmlformats-officedocument.presentationml.slide+xml"
        listed += f'<p:sldId id="{255 + number}" r:id="slide{number}"/>'
    parts["ppt/presentation.xml"] = (
        f'{_XML}<p:presentation xmlns:p="{_SLIDE}" xmlns:r="{_OFFICE}">'
        f"<p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"
    )
    parts["ppt/_rels/presentation.xml.rels"] = _rels(
        {f"slide{number}": f"slides/slide{number}.xml" for number in range(1, len(slides) + 1)}
    )
    types["ppt/presentation.xml"] = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    return _package(parts, "ppt/presentation.xml", types)


def _shape(number: int, kind: str, text: str) -> str:
    return (
        f'<p:sp><p:nvSpPr><p:cNvPr id="{number}" name="{kind}"/><p:cNvSpPr/><p:nvPr><p:ph type="{kind}"/></p:nvPr>'
        f"</p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
    )


def _rels(targets: Mapping[str, str]) -> str:
    listed = "".join(
        f'<Relationship Id="{name}" Type="{_OFFICE}/{name.rstrip("0123456789")}" Target="{target}"/>'
        for name, target in targets.items()
    )
    return f'{_XML}<Relationships xmlns="{_RELATIONS}">{listed}</Relationships>'


def _package(parts: Mapping[str, str], main: str, types: Mapping[str, str]) -> bytes:
    overrides = "".join(f'<Override PartName="/{name}" ContentType="{kind}"/>' for name, kind in types.items())
    known = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    known += '<Default Extension="xml" ContentType="application/xml"/>'
    whole = {
        "[Content_Types].xml": f'{_XML}<Types xmlns="{_TYPES}">{known}{overrides}</Types>',
        "_rels/.rels": _rels({"officeDocument": main}),
        **parts,
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in whole.items():
            archive.writestr(name, text)
    return out.getvalue()


_STROKES = {  # letters as lines on a grid of 4 by 6
    "A": "0,0 2,6 4,0|1,2 3,2",
    "E": "4,0 0,0 0,6 4,6|0,3 3,3",
    "F": "0,0 0,6 4,6|0,3 3,3",
    "H": "0,0 0,6|4,0 4,6|0,3 4,3",
    "I": "2,0 2,6",
    "L": "0,6 0,0 4,0",
    "N": "0,0 0,6 4,0 4,6",
    "T": "2,0 2,6|0,6 4,6",
    "V": "0,6 2,0 4,6",
    "W": "0,6 1,0 2,4 3,0 4,6",
}


def drawn(text: str, *, size: float = 5.0) -> str:
    """PDF drawing commands for one line of capital letters: a page that only OCR can read."""
    out = [f"{size * 0.8} w 1 J 1 j"]
    for number, letter in enumerate(text):
        left, bottom = 72 + number * size * 6, 600
        for stroke in filter(None, _STROKES.get(letter, "").split("|")):
            points = [tuple(map(int, point.split(","))) for point in stroke.split()]
            moves = [f"{left + x * size} {bottom + y * size} {'l' if n else 'm'}" for n, (x, y) in enumerate(points)]
            out.append(" ".join(moves) + " S")
    return "\n".join(out)
