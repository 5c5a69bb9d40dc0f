"""The structure of a text: in goes a parsed text, out come its sections and blocks with exact character spans.

A section is a heading with the text up to the next heading; section 0 is what stands before the first one. A block is
a heading line, a paragraph, a list item, a table or a piece of code. Together the blocks hold every character of the
text that is not whitespace, in order. Knows Markdown, plain text and source code; nothing of tokens or chunks.
"""

from __future__ import annotations

import html
import re
import string
from enum import Enum, auto
from typing import NamedTuple

from nvr_rag.types import TextFormat

# How good a place to cut the start of a block or of a part of it is; higher is better. Headings add 6 - level.
GLUED, HARD, WORD, LINE, SENTENCE, NESTED, ITEM, BLOCK, HEADING = range(-1, 8)

_MAX_HEADING = 300  # characters; a longer "heading" is a paragraph that begins with '#'
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(?=\S)(?:.*\n){1,200}?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")
_CLOSING = re.compile(r"(?:^|[ \t]+)#+$")
_FENCE = re.compile(r"((?:[ \t]*>)*)[ \t]*(?:[-*+][ \t]+)?(`{3,}(?=[^`]*$)|~{3,})")
_OPENING_TAG = re.compile(r"<(?![A-Za-z]+:)[A-Za-z][^<>]*>(?:[^<>]*</[A-Za-z]+>)?$")  # the whole line
_LIST_ITEM = re.compile(r"([ \t]*)(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_MARKED = frozenset("#`~|=-*+_>:<0123456789")  # first characters of lines that may be more than running text


class Kind(Enum):
    """What a block is, which decides where it may be cut."""

    HEADING = auto()
    TEXT = auto()  # at sentences
    ITEM = auto()  # a list item: like text
    CODE = auto()  # at lines, and only when it must be
    TABLE = auto()  # between rows, and only when it must be


class Section(NamedTuple):
    """A heading's place in the tree. A plain tuple: a text may have a million of them."""

    level: int  # 1-6; 0 = before the first heading
    parent: int  # index of the enclosing section; -1 = none
    path: tuple[str, ...]  # headings in force, outermost first, its own last; inline markup stripped


class Block(NamedTuple):
    """Whole lines of the text that belong together."""

    kind: Kind
    start: int
    end: int  # the start of the next block: blank lines belong to the block before them
    section: int
    strength: int  # of a cut before it
    header_end: int = 0  # of a table: where the rows below the header begin


def structure(text: str, format_: TextFormat) -> tuple[list[Section], list[Block]]:
    """The sections and blocks of a text, both in its order; linear in its length."""
    scanner = _Markdown(text) if format_ is TextFormat.MARKDOWN else _Lines(text, code=format_ is TextFormat.CODE)
    scanner.scan()
    ends = [block.start for block in scanner.blocks[1:]] + [len(text)] * bool(scanner.blocks)
    blocks = [Block(*block[:2], end, *block[3:]) for block, end in zip(scanner.blocks, ends, strict=True)]
    return scanner.sections, blocks


def plain(inline: str) -> str:
    """The words of a line of Markdown without its inline markup: code, emphasis, links, images, tags, entities."""
    if not _MARKUP.search(inline):
        return " ".join(inline.split())
    inline = _LITERAL.sub(lambda m: (m[2] or m[3]).translate(_HIDE), inline)
    for pattern, replacement in _INLINE:
        inline = pattern.sub(replacement, inline)
    return " ".join(html.unescape(inline).translate(_SHOW).split())


_MARKUP = re.compile(r"[\[{<`*~_\\&]")
_LITERAL = re.compile(r"(`+)([^`]+)\1(?!`)|\\([!-/:-@\[-`{-~])")  # code, or an escaped mark
_HIDE = {ord(mark): 0xF0000 + ord(mark) for mark in string.punctuation}  # private characters while markup is removed
_SHOW = {hidden: mark for mark, hidden in _HIDE.items()}
_INLINE = [
    (re.compile(r"!?\[([^\[\]]*)\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\[\]]*\])"), r"\1"),
    (re.compile(r"[ \t]*\{[#.:][^{}]*\}[ \t]*$"), ""),
    (re.compile(r"</?[A-Za-z][^<>]*>"), ""),
    (re.compile(r"(\*{1,3}|~~)(?=\S)([^*~]+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<!\w)(_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)"), r"\2"),
]


class _Lines:
    """Blocks between blank lines: the whole story of plain text and of source code."""

    def __init__(self, text: str, *, code: bool = False) -> None:
        self.text = text
        self.sections = [Section(0, -1, ())]
        self.blocks: list[Block] = []
        self._plain_kind = Kind.CODE if code else Kind.TEXT
        self._kind: Kind | None = None  # of the open block
        self._start = 0
        self._end = 0
        self._strength = BLOCK
        self._header_end = 0
        self._gap = True  # a blank line stands before the next block

    def scan(self) -> None:
        for match in _LINE.finditer(self.text):
            line = match.group()
            if line.isspace():
                self._close()
                self._gap = True
            elif self._kind is None:
                indented = self._plain_kind is Kind.CODE and line[0].isspace()
                self._open(self._plain_kind, match.start(), match.end(), NESTED if indented else BLOCK)
            else:
                self._end = match.end()
        self._close()

    def _open(self, kind: Kind, start: int, end: int, strength: int) -> None:
        self._close()
        self._kind, self._start, self._end, self._strength = kind, start, end, strength
        self._gap = False

    def _close(self) -> None:
        if self._kind is not None:
            section = len(self.sections) - 1
            block = Block(self._kind, self._start, self._end, section, self._strength, self._header_end)
            self.blocks.append(block)
            self._kind, self._header_end = None, 0


class _Markdown(_Lines):
    """Blocks and headings of Markdown, by CommonMark's rules as far as they matter for cutting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._fence = ""  # the marks that opened the code block we are in
        self._comment = False  # inside <!-- ... -->
        self._quoted = False  # ... inside a block quote
        self._last_start = 0  # of the last line of the open block
        self._announces = False  # the last line belongs to what follows
        self._in_list = False

    def scan(self) -> None:
        position = 0
        if front := _FRONT_MATTER.match(self.text):
            self._open(Kind.CODE, 0, front.end(), BLOCK)
            self._close()
            position = front.end()
        for match in _LINE.finditer(self.text, position):
            self._line(match.start(), match.end(), match.group())
        self._close()

    def _line(self, start: int, end: int, line: str) -> None:
        body = line.strip()
        if self._fence:
            self._inside_fence(start, end, body)
        elif self._comment:
            self._end, self._comment = end, "-->" not in body
            if not self._comment:
                self._close()
            return  # what comes before a comment still announces what comes behind it
        elif not body or not body.strip("> \t"):
            self._blank(start, end, quoted=bool(body))
        elif body[0] not in _MARKED or not self._marked(start, end, line, body):
            self._running_text(start, end, line)
        self._last_start = start
        if body and not body.startswith("<!--"):
            self._announces = body.endswith((":", "：")) or bool(_OPENING_TAG.match(body))

    def _blank(self, start: int, end: int, *, quoted: bool) -> None:
        if quoted and self._kind is not None:
            self._end = end  # the lone '>' belongs to the paragraph before it
        elif quoted:
            self._open(Kind.TEXT, start, end, self._announced(NESTED))
        self._close()
        self._gap = True

    def _running_text(self, start: int, end: int, line: str) -> None:
        if self._kind in (Kind.TEXT, Kind.ITEM, Kind.TABLE):
            self._end = end
            return
        nested = self._in_list and line[0] in " \t"
        self._in_list = nested
        strength = LINE if line.startswith("</") else NESTED if nested else BLOCK if self._gap else ITEM
        self._open(Kind.TEXT, start, end, self._announced(strength))

    def _announced(self, strength: int) -> int:
        """Less of a place to cut when the line before belongs to what follows; none right below a heading."""
        if self._kind is None and self.blocks and self.blocks[-1].kind is Kind.HEADING:
            return GLUED
        return min(strength, LINE) if self._announces else strength

    def _marked(self, start: int, end: int, line: str, body: str) -> bool:
        """Take a line that begins with a mark; False when it is running text after all."""
        if body[0] == "#":
            return self._atx(start, end, line)
        return (
            self._underline(end, line, body)
            or self._opens_fence(start, end, line)
            or self._delimiter_row(end, body)
            or self._rule(start, end, body)
            or self._item(start, end, line)
            or self._opens_comment(start, end, body)
        )

    def _underline(self, end: int, line: str, body: str) -> bool:
        mark = body[0]
        if self._kind is not Kind.TEXT or mark not in "=-" or body.strip(mark) or line[:4].isspace():
            return False
        words = self.text[self._start : self._end]
        if len(words) > _MAX_HEADING or words.lstrip()[:1] == ">" or not (title := plain(words)):
            return False
        self._kind = None
        self._heading(1 if mark == "=" else 2, title, self._start, end)
        return True

    def _atx(self, start: int, end: int, line: str) -> bool:
        match = _ATX.match(line) if len(line) <= _MAX_HEADING else None
        title = plain(_CLOSING.sub("", match[2].rstrip())) if match else ""
        if not match or not title:
            return False
        self._close()
        self._heading(len(match[1]), title, start, end)
        return True

    def _heading(self, level: int, title: str, start: int, end: int) -> None:
        last = len(self.sections) - 1
        parent = last
        while parent and self.sections[parent].level >= level:
            parent = self.sections[parent].parent
        below = bool(self.blocks) and self.blocks[-1].kind is Kind.HEADING and parent == last
        self.sections.append(Section(level, parent, (*self.sections[parent].path, title)))
        self._open(Kind.HEADING, start, end, GLUED if below else HEADING + 6 - level)
        self._close()
        self._in_list = False

    def _opens_fence(self, start: int, end: int, line: str) -> bool:
        match = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if not match:
            return False
        strength = self._announced(NESTED if self._in_list and line[0] in " \t" else BLOCK if self._gap else ITEM)
        self._open(Kind.CODE, start, end, strength)
        self._fence, self._quoted = match[2], bool(match[1])
        return True

    def _inside_fence(self, start: int, end: int, body: str) -> None:
        if self._quoted and body[:1] != ">":
            self._fence = ""
            self._close()
            self._line(start, end, self.text[start:end])
            return
        self._end = end
        marks = body.lstrip("> \t") if self._quoted else body
        if len(marks) >= len(self._fence) and not marks.strip(self._fence[0]):
            self._fence = ""
            self._close()

    def _delimiter_row(self, end: int, body: str) -> bool:
        if self._kind not in (Kind.TEXT, Kind.ITEM) or "|" not in body or "-" not in body or body.strip("|-: \t"):
            return False
        if "|" not in self.text[self._last_start : self._end] or set(body) - set("|-: \t"):
            return False
        strength = self._strength
        if self._last_start > self._start:  # the paragraph above the header row
            self._end, strength = self._last_start, ITEM
            self._close()
        self._kind = None
        self._open(Kind.TABLE, self._last_start, end, strength)
        self._header_end = end
        return True

    def _rule(self, start: int, end: int, body: str) -> bool:
        marks = body.replace(" ", "")
        if len(marks) < 3 or marks[0] not in "-*_" or marks.strip(marks[0]):
            return False
        self._open(Kind.TEXT, start, end, self._announced(BLOCK))
        self._close()
        self._in_list = False
        return True

    def _item(self, start: int, end: int, line: str) -> bool:
        match = _LIST_ITEM.match(line)
        if not match:
            return False
        strength = NESTED if match[1] else ITEM if self._in_list or not self._gap else BLOCK
        self._open(Kind.ITEM, start, end, strength if self._in_list else self._announced(strength))
        self._in_list = True
        return True

    def _opens_comment(self, start: int, end: int, body: str) -> bool:
        if self._kind is not None or not body.startswith("<!--"):
            return False
        self._open(Kind.CODE, start, end, self._announced(BLOCK))
        self._comment = "-->" not in body
        if not self._comment:
            self._close()
        return True
