"""JSON without line breaks, laid out in lines, so that it can be cut and read. Every character but blanks stays.

Works on its marks alone: what is broken, endless or nested without end is laid out as far as it goes.
"""

from __future__ import annotations

import re

_TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]|[^\s{}\[\],:"]+', re.S)
_LINE = 2_000  # characters of an average line above which nobody reads it
_MOST = 8_000_000  # characters; laying out more takes too long
_INDENT = 20  # levels


def laid_out(text: str) -> str:
    """The text in indented lines when its lines are long, otherwise as it is."""
    if len(text) > _MOST or len(text) < _LINE * (text.count("\n") + 1):
        return text
    out: list[str] = []
    depth, length = 0, 0
    for found in _TOKENS.finditer(text):
        part = found[0]
        if part in "]}":
            depth -= 1
            out.append(_line(depth))
        out.append(part)
        if part in "[{":
            depth += 1
        if part in "[{,":
            out.append(_line(depth))
        elif part == ":":
            out.append(" ")
        length += max(depth, 0) if part in "[{,]}" else 0
        if length > 2 * len(text):
            return text  # nested so deeply that most of it would be indentation
    return "".join(out) + "\n"


def _line(depth: int) -> str:
    return "\n" + "  " * min(max(depth, 0), _INDENT)
