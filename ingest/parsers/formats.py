"""What a file is, told from its name, its media type and its first bytes: which reader it needs, or why none reads it.

Enters: a name, bytes, perhaps a media type. Leaves: a `Format`, or ParseFailed with the reason. Nothing is decoded or
parsed here, and no parser is known by name.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import PurePath

from nvr_rag.errors import ParseFailed


class Reader(Enum):
    """How the bytes become text."""

    MARKDOWN = auto()  # kept as it is, front matter taken off
    PLAIN = auto()  # kept as it is
    CODE = auto()  # kept as it is
    JSON = auto()  # kept as it is, laid out in lines where it has none
    TABLE = auto()  # delimiter-separated values
    HTML = auto()
    MARKUP = auto()  # other marked-up text: decoded here, converted by the document parser
    MAIL = auto()
    NOTEBOOK = auto()
    BINARY = auto()  # bytes that only the document parser understands
    PAGED = auto()  # the same, and the format has pages


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    reader: Reader
    media_type: str


_OPEN_XML = "application/vnd.openxmlformats-officedocument."
PDF = Format(reader=Reader.PAGED, media_type="application/pdf")
DOCX = Format(reader=Reader.BINARY, media_type=_OPEN_XML + "wordprocessingml.document")
XLSX = Format(reader=Reader.BINARY, media_type=_OPEN_XML + "spreadsheetml.sheet")
PPTX = Format(reader=Reader.PAGED, media_type=_OPEN_XML + "presentationml.presentation")
RTF = Format(reader=Reader.BINARY, media_type="application/rtf")
HTML = Format(reader=Reader.HTML, media_type="text/html")
PLAIN = Format(reader=Reader.PLAIN, media_type="text/plain")
MARKDOWN = Format(reader=Reader.MARKDOWN, media_type="text/markdown")

_OPEN_DOCUMENT = "application/vnd.oasis.opendocument."
_DOCUMENTS = {
    Reader.MARKDOWN: {"md markdown mdown mkd mdx qmd rmd": "text/markdown"},
    Reader.PLAIN: {"txt text log me readme": "text/plain"},
    Reader.HTML: {"html htm xhtml xht": "text/html"},
    Reader.TABLE: {"csv": "text/csv", "tsv tab": "text/tab-separated-values"},
    Reader.MARKUP: {
        "rst": "text/prs.fallenstein.rst",
        "adoc asciidoc": "text/asciidoc",
        "org": "text/org",
        "tex latex": "application/x-latex",
        "vtt": "text/vtt",
        "xml nxml": "application/xml",
    },
    Reader.MAIL: {"eml": "message/rfc822"},
    Reader.NOTEBOOK: {"ipynb": "application/x-ipynb+json"},
    Reader.PAGED: {
        "pdf": PDF.media_type,
        "pptx pptm ppsx ppsm": PPTX.media_type,
        "odp": _OPEN_DOCUMENT + "presentation",
    },
    Reader.BINARY: {
        "docx docm": DOCX.media_type,
        "xlsx xlsm": XLSX.media_type,
        "doc": "application/msword",
        "xls": "application/vnd.ms-excel",
        "ppt": "application/vnd.ms-powerpoint",
        "odt": _OPEN_DOCUMENT + "text",
        "ods": _OPEN_DOCUMENT + "spreadsheet",
        "rtf": RTF.media_type,
        "epub": "application/epub+zip",
        "msg": "application/vnd.ms-outlook",
    },
    Reader.JSON: {"json jsonl ndjson geojson webmanifest": "application/json"},
    Reader.CODE: {
        "yaml yml": "application/yaml",
        "toml": "application/toml",
        "ini cfg conf properties env": "text/x-ini",
        "py pyi pyw": "text/x-python",
        "js mjs cjs jsx": "text/javascript",
        "ts tsx mts cts": "text/x-typescript",
        "c h": "text/x-c",
        "cc cpp cxx hh hpp hxx": "text/x-c++",
        "cs": "text/x-csharp",
        "sh bash zsh fish ksh": "text/x-shellscript",
        "bat cmd ps1 psm1": "text/x-script",
        "rb": "text/x-ruby",
        "rs": "text/x-rust",
        "kt kts": "text/x-kotlin",
        "pl pm": "text/x-perl",
        "ex exs": "text/x-elixir",
        "erl hrl": "text/x-erlang",
        "hs": "text/x-haskell",
        "ml mli": "text/x-ocaml",
        "clj cljs cljc edn": "text/x-clojure",
        "f f90 f95": "text/x-fortran",
        "tf hcl": "text/x-hcl",
        "proto": "text/x-protobuf",
        "graphql gql": "text/x-graphql",
        "css scss sass less": "text/css",
        "sql": "application/sql",
        "vue svelte": "text/x-component",
        "diff patch": "text/x-diff",
        "go java scala swift lua r jl dart php groovy gradle nim zig elm": "",  # named after the extension
        "cmake mk asm s el lisp scm tcl v sv vhd sol": "",
    },
}

_NAMES = {"makefile": "text/x-makefile", "dockerfile": "text/x-dockerfile", "jenkinsfile": "text/x-groovy"}

_NO_DOCUMENTS = {
    "an image": "png jpg jpeg gif bmp tif tiff webp ico heic heif avif svg psd ai eps xcf raw cr2 nef dng jp2 icns",
    "audio": "mp3 wav flac ogg oga opus m4a aac wma aif aiff mid midi",
    "video": "mp4 m4v mkv mov avi wmv webm mpg mpeg flv ogv 3gp",
    "an archive": "zip tar gz tgz bz2 tbz xz txz zst 7z rar lz4 lzma jar war ear whl egg deb rpm apk dmg iso cab pkg",
    "a font": "ttf otf woff woff2 eot",
    "a program or library": "exe dll so dylib a o obj lib class pyc pyo pyd wasm bin elf com msi app ko rlib rmeta",
    "a database or data file": "db sqlite sqlite3 mdb accdb parquet feather arrow avro orc h5 hdf5 mat rdata rds dbf",
    "model weights or arrays": "npy npz pt pth ckpt safetensors onnx gguf ggml pkl pickle joblib tflite",
    "a temporary or backup file": "tmp temp swp swo swn bak crdownload part partial lock",
    "a key or certificate": "pem key crt cer der p12 pfx jks keystore gpg gpg sig",
}

_BY_SUFFIX = {
    suffix: Format(reader=reader, media_type=media_type or f"text/x-{suffix}")
    for reader, groups in _DOCUMENTS.items()
    for suffixes, media_type in groups.items()
    for suffix in suffixes.split()
}
_BY_MEDIA_TYPE = {known.media_type: known for known in reversed(_BY_SUFFIX.values())} | {
    "text/x-markdown": MARKDOWN,
    "text/x-rst": _BY_SUFFIX["rst"],
    "application/xhtml+xml": HTML,
    "text/xml": _BY_SUFFIX["xml"],
    "text/rtf": RTF,
    "application/csv": _BY_SUFFIX["csv"],
}
_NOT_A_DOCUMENT = {suffix: what for what, suffixes in _NO_DOCUMENTS.items() for suffix in suffixes.split()}

SHEETS = frozenset(_BY_SUFFIX[suffix] for suffix in ("xlsx", "xls", "ods"))  # their headings are sheet names

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_STREAMS = {
    "WordDocument": "doc",
    "Workbook": "xls",
    "PowerPoint Document": "ppt",
    "__properties_version1.0": "msg",
}
_ZIP_SUFFIXES = frozenset(["docx", "docm", "xlsx", "xlsm", "pptx", "pptm", "ppsx", "ppsm", "odt", "ods", "odp", "epub"])
_ZIP_PARTS = {"word/": DOCX, "xl/": XLSX, "ppt/": PPTX}
_HTML_START = re.compile(rb"^(?:\xef\xbb\xbf)?\s*(?:<!--.{0,2000}?-->\s*)?<(?:!doctype\s+html|html)\b", re.I | re.S)
ENCRYPTED = "is encrypted; remove the password and ingest it again"


def suffix_of(name: str) -> str:
    """The extension without its dot, in lower case; "" without one."""
    base = name.rstrip("/").rpartition("/")[2]
    stem, _, suffix = base.rpartition(".")
    return suffix.lower() if stem else ""  # a hidden file has none


def not_a_document(name: str) -> str | None:
    """What a file with this name is when it cannot be a document ("an image", ...); None when it may be one."""
    if name.startswith("~$") or name.endswith("~") or (name.startswith("#") and name.endswith("#")):
        return _NOT_A_DOCUMENT["tmp"]
    return _NOT_A_DOCUMENT.get(suffix_of(name))


def format_of(data: bytes, *, name: str, media_type: str | None = None) -> Format:
    """The format of these bytes: what they begin with decides, then the media type, then the name.

    Text that nothing names is plain. Raises ParseFailed for a container that no reader knows and for a name that
    promises a binary format that the bytes are not.
    """
    suffix = suffix_of(name)
    found = _by_content(data, suffix)
    if found is not None:
        return found
    named = _named(media_type, name, suffix)
    if named is None or named.media_type == "application/octet-stream":
        return _unnamed(data)
    if named.reader in (Reader.PAGED, Reader.BINARY):
        if _HTML_START.match(data):
            return HTML  # what many web applications call .xls or .doc
        raise ParseFailed(f"is damaged, or not the {suffix.upper() or named.media_type} file that its name says")
    return named


def _named(media_type: str | None, name: str, suffix: str) -> Format | None:
    if media_type:
        plain = media_type.split(";")[0].strip().lower()
        by_type = _BY_MEDIA_TYPE.get(plain)
        if by_type is not None and by_type != PLAIN:
            return by_type
    by_name = _NAMES.get(PurePath(name).name.lower())
    if by_name is not None:
        return Format(reader=Reader.CODE, media_type=by_name)
    return _BY_SUFFIX.get(suffix)


def _unnamed(data: bytes) -> Format:
    if _HTML_START.match(data):
        return HTML
    if data.startswith(b"#!"):
        return Format(reader=Reader.CODE, media_type="text/x-script")
    return PLAIN


def _by_content(data: bytes, suffix: str) -> Format | None:
    if b"%PDF-" in data[:1024] and (suffix in ("pdf", "") or data.startswith(b"%PDF-")):
        return PDF
    if data.startswith(b"{\\rtf"):
        return RTF
    if data.startswith(b"PK\x03\x04"):
        return _zip_format(data, suffix)
    if data.startswith(_OLE):
        return _ole_format(data, suffix)
    return None


def _zip_format(data: bytes, suffix: str) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            locked = any(member.flag_bits & 1 for member in archive.infolist()) or _is_locked(archive, names)
            declared = "" if locked else _start(archive, names, "mimetype", 200).decode("ascii", "replace")
    except Exception as error:  # zipfile raises many kinds on hostile input
        raise ParseFailed("is damaged: its ZIP container cannot be read (was it cut off?)") from error
    if locked:
        raise ParseFailed(ENCRYPTED)
    if declared.strip() in _BY_MEDIA_TYPE:
        return _BY_MEDIA_TYPE[declared.strip()]
    for prefix, known in _ZIP_PARTS.items():
        if "[Content_Types].xml" in names and any(name.startswith(prefix) for name in names):
            return known
    if suffix in _ZIP_SUFFIXES:
        return _BY_SUFFIX[suffix]  # its parts are damaged or missing: the parser says which, or reads the others
    raise ParseFailed("is a ZIP container that no parser knows; unpack it, or export it as PDF or DOCX")


def _is_locked(archive: zipfile.ZipFile, names: list[str]) -> bool:
    """Whether it is an OpenDocument file with a password: its members are sound, but what they hold is encrypted."""
    return b"manifest:encryption-data" in _start(archive, names, "META-INF/manifest.xml", 1 << 20)


def _start(archive: zipfile.ZipFile, names: list[str], name: str, size: int) -> bytes:
    if name not in names:
        return b""
    with archive.open(name) as member:
        return member.read(size)


def _ole_format(data: bytes, suffix: str) -> Format:
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise ParseFailed(ENCRYPTED)
    if suffix in _OLE_STREAMS.values():
        return _BY_SUFFIX[suffix]
    for stream, known in _OLE_STREAMS.items():
        if stream.encode("utf-16-le") in data:
            return _BY_SUFFIX[known]
    raise ParseFailed("is an old Office container that no parser knows; export it as PDF or DOCX")
