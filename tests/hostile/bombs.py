"""Documents that are small on disk and large, deep or locked inside."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from random import Random

from tests.unit.ingest import documents, files

Made = tuple[str, bytes]

_MAIN = {  # what a reader of each container opens, and its root element
    "docx": ("word/document.xml", "w:document"),
    "pptx": ("ppt/slides/slide1.xml", "p:sld"),
    "xlsx": ("xl/worksheets/sheet1.xml", "worksheet"),
    "odt": ("content.xml", "office:document-content"),
    "ods": ("content.xml", "office:document-content"),
    "odp": ("content.xml", "office:document-content"),
    "epub": ("OEBPS/chapter1.xhtml", "html"),
}
_NAMESPACES = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    'xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"'
)


def _main_part(name: str) -> tuple[str, str]:
    return _MAIN.get(name.rpartition(".")[2], ("content.xml", "x"))


def zip_bomb(name: str, members: Mapping[str, bytes], chance: Random) -> Made:
    """A container whose members unpack to far more than they take; anything else becomes one."""
    part, root = _main_part(name)
    kind = chance.choice(("blanks", "words", "many", "overlapping", "lying"))
    if kind == "many":
        return name, documents.zipped({**members, **{f"x/{number}": b"" for number in range(20_000)}})
    if kind in ("overlapping", "lying"):
        return name, _crooked(documents.zipped({**members, part: b" " * 1_000_000}), kind)
    filler = " " * 80_000_000 if kind == "blanks" else "".join(chance.choices("ab ", k=5000)) * 1000
    return name, documents.zipped(
        {**members, part: f"<{root} {_NAMESPACES}><p>{filler}</p></{root}>"}, stored="mimetype"
    )


def _crooked(data: bytes, kind: str) -> bytes:
    """The directory of the archive lists its last member a thousand times, or tells wrong sizes."""
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", data[end + 12 : end + 20])
    directory = bytearray(data[start : start + size])
    if kind == "lying":
        at = 0
        while (at := directory.find(b"PK\x01\x02", at)) >= 0:
            directory[at + 24 : at + 28] = struct.pack("<I", 10)
            at += 4
        return data[:start] + bytes(directory) + data[end:]
    last = bytes(directory[directory.rindex(b"PK\x01\x02") :])
    listed = bytes(directory) + b"".join(last.replace(b"content", b"c%06d" % number) for number in range(1000))
    count = struct.pack("<HH", *[(struct.unpack("<H", data[end + 10 : end + 12])[0] + 1000) & 0xFFFF] * 2)
    return data[:start] + listed + data[end : end + 8] + count + struct.pack("<II", len(listed), start) + b"\0\0"


def xml_bomb(name: str, members: Mapping[str, bytes], chance: Random) -> Made:
    part, root = _main_part(name)
    kind = chance.choice(("laughs", "quadratic", "file", "web", "parameter", "attributes", "names"))
    text = _bomb(kind, root)
    if members:
        return name, documents.zipped({**members, part: text}, stored="mimetype")
    return f"{name}.{chance.choice(('xml', 'html', 'xhtml', 'nxml'))}", text.encode()


def _bomb(kind: str, root: str) -> str:
    if kind == "attributes":
        return f"<{root} {_NAMESPACES} " + " ".join(f'a{n}="{n}"' for n in range(100_000)) + "/>"
    if kind == "names":
        return f"<{root} {_NAMESPACES}>" + "".join(f"<a{n}/>" for n in range(100_000)) + f"</{root}>"
    entities = {
        "laughs": '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)),
        "quadratic": f'<!ENTITY a9 "{"a" * 100_000}">',
        "file": '<!ENTITY a9 SYSTEM "file:///dev/zero">',
        "web": '<!ENTITY a9 SYSTEM "http://127.0.0.1:9/x">',
        "parameter": '<!ENTITY % b SYSTEM "file:///etc/hostname"> %b; <!ENTITY a9 "x">',
    }[kind]
    body = "&a9;" * (20_000 if kind == "quadratic" else 1)
    return f'<?xml version="1.0"?><!DOCTYPE {root} [{entities}]><{root} {_NAMESPACES}>{body}</{root}>'


def encrypted(name: str, data: bytes, chance: Random) -> Made:
    """Locked in the way of its format, as far as a header can tell."""
    if data.startswith(b"PK"):
        if chance.random() < 0.5:
            ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + chance.randbytes(3000)
            return name, ole + "EncryptedPackage".encode("utf-16-le") + chance.randbytes(3000)
        return name, _locked(data)
    if name.endswith(".eml"):
        body = b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n"
        body += b"Content-Transfer-Encoding: base64\r\n\r\n"
        return name, b"From: a@b.c\r\nSubject: secret\r\n" + body + b"TUlJ" * 500
    if name.endswith(".pdf"):
        known = files.ENCRYPTED_PDF.read_bytes()
        return name, known if chance.random() < 0.5 else data.replace(b"/Root", b"/Encrypt 3 0 R /Root")
    return name, chance.randbytes(len(data) + 100)


def _locked(data: bytes) -> bytes:
    """Every member is said to be encrypted, in both places where a ZIP file says so."""
    locked = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            locked[at + offset] |= 1
    return bytes(locked)


_DEEP = {  # opening, middle, closing
    "json": ("[", "1", "]"),
    "jsonl": ('{"a":', "1", "}"),
    "xml": ("<a>", "x", "</a>"),
    "html": ("<div>", "x", "</div>"),
    "htm": ("<table><tr><td>", "x", "</td></tr></table>"),
    "xhtml": ("<ul><li>", "x", "</li></ul>"),
    "rtf": ("{", "x", "}"),
    "md": ("> ", "x", ""),
    "txt": ("(", "x", ")"),
    "rst": ("* ", "x", ""),
    "adoc": ("*", " x", ""),
    "py": ("(", "x", ")"),
    "csv": ('"', "x", '"'),
    "tex": ("{\\bf ", "x", "}"),
    "yaml": ("[", "x", "]"),
    "org": ("*", " x", ""),
}
_DEEP_PARTS = {
    "docx": "<w:document {0}><w:body><w:p>{1}</w:p></w:body></w:document>|<w:ins>|</w:ins>",
    "odt": "<office:document-content {0}><office:body><office:text>{1}</office:text></office:body>"
    "</office:document-content>|<x>|</x>",
    "odp": "<office:document-content {0}>{1}</office:document-content>|<x>|</x>",
    "ods": "<office:document-content {0}>{1}</office:document-content>|<x>|</x>",
    "epub": "<html><body>{1}</body></html>|<div>|</div>",
    "pptx": "<p:sld {0}>{1}</p:sld>|<x>|</x>",
    "xlsx": "<worksheet>{1}</worksheet>|<x>|</x>",
}


def deep(name: str, chance: Random) -> Made:
    """Things within things, of a format in which that can be."""
    levels = chance.choice((500, 5_000, 50_000, 300_000))
    kind = chance.choice([*_DEEP, *_DEEP_PARTS, "eml", "pdf", "ipynb", "zip.docx"])
    name = f"{name}.{kind}"
    if kind in _DEEP:
        opening, middle, closing = _DEEP[kind]
        start = {"rtf": "{\\rtf1 ", "html": "<html>", "htm": "<html>", "xhtml": "<html>"}.get(kind, "")
        return name, (start + opening * levels + middle + closing * (levels if chance.random() < 0.7 else 0)).encode()
    if kind in _DEEP_PARTS:
        outer, opening, closing = _DEEP_PARTS[kind].split("|")
        part, _ = _main_part(name)
        text = outer.format(_NAMESPACES, opening * levels + "x" + closing * levels)
        base = {made.partition(".")[2]: data for made, data in documents.every().items()}[kind]
        with zipfile.ZipFile(io.BytesIO(base)) as archive:
            members: dict[str, str | bytes] = {member: archive.read(member) for member in archive.namelist()}
        return name, documents.zipped({**members, part: text}, stored="mimetype")
    return name, _deep_binary(kind, min(levels, 50_000))


def _deep_binary(kind: str, levels: int) -> bytes:
    if kind == "eml":
        part = b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n'
        return b"Subject: x\r\n" + b"".join(part % (n, n) for n in range(levels // 10)) + b"\r\nwords"
    if kind == "ipynb":
        return b'{"nbformat": 4, "cells": ' + b"[" * levels + b"]" * levels + b"}"
    if kind == "pdf":
        return files.pdf([[(11, "x")]]).replace(
            b"/Type /Catalog", b"/Type /Catalog /X " + b"[" * levels + b"]" * levels
        )
    data = b"x"
    for number in range(min(levels, 300)):
        data = documents.zipped({f"word/{number}.docx": data, "[Content_Types].xml": b"<Types/>"})
    return data
