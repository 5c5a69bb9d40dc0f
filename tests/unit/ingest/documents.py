"""One small valid document of every format, written by hand so that a test shows what is in them (see `files`, too).

What they say is much the same everywhere: a handbook called "Tea", with headings, a list, a table and code.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

from tests.unit.ingest import compound, files

_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_NAMESPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in {
        "office": "office",
        "text": "text",
        "table": "table",
        "draw": "drawing",
        "presentation": "presentation",
        "style": "style",
        "meta": "meta",
    }.items()
)
_OPEN_DOCUMENT = "application/vnd.oasis.opendocument."


def zipped(parts: Mapping[str, str | bytes], *, stored: str = "") -> bytes:
    """A ZIP file with these members, `stored` first and uncompressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(parts, key=lambda name: name != stored):
            archive.writestr(name, parts[name], zipfile.ZIP_STORED if name == stored else zipfile.ZIP_DEFLATED)
    return out.getvalue()


def open_document(kind: str, body: str, *, title: str = "") -> bytes:
    """An OpenDocument file; kind is text, spreadsheet or presentation, `body` what stands in its office:<kind>."""
    parts = {
        "mimetype": _OPEN_DOCUMENT + kind,
        "content.xml": f"{_XML}<office:document-content {_NAMESPACES}><office:body><office:{kind}>{body}"
        f"</office:{kind}></office:body></office:document-content>",
        "meta.xml": f'{_XML}<office:document-meta {_NAMESPACES} xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<office:meta><dc:title>{title}</dc:title></office:meta></office:document-meta>",
        "META-INF/manifest.xml": f"{_XML}<manifest:manifest xmlns:manifest="
        f'"urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"><manifest:file-entry manifest:full-path="/" '
        f'manifest:media-type="{_OPEN_DOCUMENT}{kind}"/></manifest:manifest>',
    }
    return zipped(parts, stored="mimetype")


def open_table(name: str, rows: Sequence[Sequence[str]]) -> str:
    cells = (
        "".join(
            f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>' for cell in row
        )
        for row in rows
    )
    listed = "".join(f"<table:table-row>{row}</table:table-row>" for row in cells)
    return f'<table:table table:name="{name}">{listed}</table:table>'


def odt() -> bytes:
    body = '<text:h text:outline-level="1">Tea</text:h><text:p>All of it.</text:p>'
    body += '<text:h text:outline-level="2">Brewing</text:h><text:list><text:list-item><text:p>boil</text:p>'
    body += "</text:list-item><text:list-item><text:p>pour</text:p></text:list-item></text:list>"
    return open_document(
        "text", body + open_table("Kinds", [["kind", "minutes"], ["green", "2"]]), title="Tea handbook"
    )


def ods() -> bytes:
    kinds = open_table("Kinds", [["kind", "minutes"], ["green", "2"]])
    return open_document("spreadsheet", kinds + open_table("Shops", [["city"], ["Riga"]]))


def odp() -> bytes:
    def slide(name: str, title: str, body: str, notes: str) -> str:
        return (
            f'<draw:page draw:name="{name}"><draw:frame presentation:class="title"><draw:text-box><text:p>{title}'
            '</text:p></draw:text-box></draw:frame><draw:frame presentation:class="outline"><draw:text-box><text:list>'
            f"<text:list-item><text:p>{body}</text:p></text:list-item></text:list></draw:text-box></draw:frame>"
            f'<presentation:notes><draw:frame presentation:class="notes"><draw:text-box><text:p>{notes}</text:p>'
            "</draw:text-box></draw:frame></presentation:notes></draw:page>"
        )

    return open_document("presentation", slide("a", "Tea", "why", "say hello") + slide("b", "Brewing", "how", "wait"))


def epub(chapters: Sequence[tuple[str, str]] = (("Zeal", "First words."), ("Art", "Second words."))) -> bytes:
    """An EPUB with these (heading, text) in this order, in files whose names sort the other way."""
    count = len(chapters)
    names = [f"chapter{count - number}.xhtml" for number in range(count)]
    items = "".join(
        f'<item id="c{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(names)
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(count))
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": f'{_XML}<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:'
        'container"><rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/>'
        "</rootfiles></container>",
        "OEBPS/book.opf": f'{_XML}<package version="3.0" xmlns="http://www.idpf.org/2007/opf" unique-identifier="id">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Book of Tea</dc:title>'
        "<dc:creator>Ann Author</dc:creator><dc:language>en</dc:language></metadata>"
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
    }
    for name, (heading, text) in zip(names, chapters, strict=True):
        parts[f"OEBPS/{name}"] = (
            f'{_XML}<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{heading}</title></head>'
            f"<body><h1>{heading}</h1><p>{text}</p></body></html>"
        )
    return zipped(parts, stored="mimetype")


def rtf() -> bytes:
    return (
        rb"{\rtf1\ansi\deff0{\fonttbl{\f0 Arial;}}{\stylesheet{\s1\outlinelevel0 heading 1;}}"
        rb"{\info{\title Tea handbook}}"
        rb"{\pard\s1\outlinelevel0 Tea\par}\pard Gr\'fc\'dfe and {\b bold} words \u8364?.\par "
        rb"\trowd\cellx1000\cellx2000\intbl kind\cell minutes\cell\row\trowd"
        rb"\cellx1000\cellx2000\intbl green\cell 2\cell"
        rb"\row\pard After.\par}"
    )


def eml() -> bytes:
    """A mail in plain text and HTML with an attachment, the plain text poorer."""
    return (
        b"From: Ann Author <ann@a.example>\r\nTo: bob@b.example\r\nCc: Eve <eve@e.example>\r\nSubject: Tea prices\r\n"
        b"Date: Mon, 6 May 2024 10:00:00 +0200\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="outer"\r\n\r\n--outer\r\n'
        b'Content-Type: multipart/alternative; boundary="inner"\r\n\r\n--inner\r\nContent-Type: text/plain\r\n\r\n'
        b"Green tea costs 3.\r\n--inner\r\nContent-Type: text/html\r\n\r\n"
        b"<p>Green tea costs <b>3</b>.</p>\r\n--inner--\r\n--outer\r\nContent-Type: text/csv; name=prices.csv\r\n"
        b"Content-Disposition: attachment; filename=prices.csv\r\n\r\na,b\r\n--outer--\r\n"
    )


def html_eml() -> bytes:
    """A mail that is HTML alone, in quoted-printable Latin-1."""
    return (
        b"From: ann@a.example\r\nSubject: Tea\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=iso-8859-1\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"<html><head><style>p{}</style></head><body><h2>Gr=FC=DFe</h2><ul><li>one</li><li>two</li></ul>"
        b"<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></body></html>\r\n"
    )


def msg() -> bytes:
    return compound.message(
        subject="Tea prices", sender="ann@a.example", recipient="bob@b.example", body="Green tea costs 3.\r\n"
    )


def notebook(output: str = "42\n") -> bytes:
    def cell(kind: str, source: str, **more: object) -> dict[str, object]:
        return {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True), **more}

    png = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"},
    }
    printed = {"output_type": "stream", "name": "stdout", "text": [output]}
    cells = [
        cell("markdown", "# Tea\n\nWhat it costs."),
        cell("code", "price = 6 * 7\nprint(price)", execution_count=1, outputs=[printed, png]),
        cell("markdown", "## More\n\n* one\n* two"),
        cell("raw", "raw words"),
    ]
    metadata = {"kernelspec": {"name": "python3", "language": "python"}, "language_info": {"name": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}).encode()


RST = """\
Tea
===

All of it, with *stress* and ``code``.

Brewing
-------

* boil
* pour

.. code-block:: python

   brew(1)

=====  =======
kind   minutes
=====  =======
green  2
=====  =======
"""

ASCIIDOC = """\
= Tea

All of it, with *stress* and `code`.

== Brewing

* boil
* pour

[source,python]
----
brew(1)
----

|===
|kind |minutes

|green |2
|===
"""

MARKDOWN = """\
---
title: Tea handbook
tags: [hot]
---

# Tea

All of it, with *stress* and `code`.

## Brewing

* boil
* pour

```python
brew(1)
```

| kind | minutes |
| --- | --- |
| green | 2 |
"""

HTML = """\
<!doctype html><html><head><title>Tea handbook</title></head><body><h1>Tea</h1><p>All of it.</p><h2>Brewing</h2>
<ul><li>boil</li><li>pour</li></ul><pre><code class="language-python">brew(1)
</code></pre><table><tr><th>kind</th><th>minutes</th></tr><tr><td>green</td><td>2</td></tr></table></body></html>
"""

XML = '<?xml version="1.0"?>\n<shop city="Riga"><item price="3"><name>Green tea</name></item><!-- old --></shop>\n'


def every() -> dict[str, bytes]:
    """A file of each format by its name; each holds the word "tea" somewhere, in upper or lower case."""
    docx = files.paragraph("Tea", "Heading1") + files.paragraph("Green tea.")
    docx += files.word_table([["kind", "minutes"], ["green", "2"]])
    return {
        "a.pdf": files.pdf([[(24, "Tea"), (11, "All of it.")], [(24, "Brewing"), (11, "Boil and pour.")]], title="Tea"),
        "a.docx": files.docx(docx, title="Tea handbook"),
        "a.pptx": files.pptx([("Tea", "why"), ("Brewing", "how")]),
        "a.xlsx": files.xlsx({"Kinds": [["kind", "minutes"], ["green tea", 2]], "Shops": [["city"], ["Riga"]]}),
        "a.odt": odt(),
        "a.ods": open_document("spreadsheet", open_table("Kinds", [["tea", "minutes"], ["green", "2"]])),
        "a.odp": odp(),
        "a.html": HTML.encode(),
        "a.md": MARKDOWN.encode(),
        "a.rst": RST.encode(),
        "a.adoc": ASCIIDOC.encode(),
        "a.txt": "Tea is a drink.\n\nIt is hot: “très chaud”.\n".encode(),
        "a.csv": b"kind;minutes\ngreen tea;2\nblack tea;4\n",
        "a.tsv": b"kind\tminutes\ngreen tea\t2\n",
        "a.json": json.dumps({"tea": [{"kind": "green", "minutes": 2}]}, indent=2).encode(),
        "a.jsonl": b'{"id": "1", "text": "Green tea."}\n{"id": "2", "text": "Black tea."}\n',
        "a.xml": XML.encode(),
        "a.epub": epub((("Tea", "First words."), ("Art", "Second words."))),
        "a.rtf": rtf(),
        "a.eml": eml(),
        "b.eml": html_eml(),
        "a.msg": msg(),
        "a.ipynb": notebook(),
        "a.py": b'def brew(minutes: int) -> str:\n    """Make tea."""\n    return "tea" * minutes\n',
        "a.c": b"/* tea */\nint main(void) {\n\treturn 0;\n}\n",
    }
