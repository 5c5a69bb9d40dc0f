"""Markdown as a document parser renders it in, Markdown as a person would write it out. Pure."""

from __future__ import annotations

import re

from ingest.parsers.texts import clean

_VERBATIM = r"^ {0,3}```.*?^ {0,3}```|`[^`\n]+`|\$\$.*?\$\$"
_MARKUP_NOISE = re.compile(
    rf"(?P<keep>{_VERBATIM}|^\\[#+-])"
    r"|!\[(?P<alt>[^\]\n]{0,1000})\]\((?:[^()\n]|\([^()\n]*\)){0,4000}\)"
    r"|\\(?P<escaped>[!-/:-@\[-`{}~])",
    re.M | re.S,
)
_LONE_BULLET = re.compile(r"^([ \t]*[-*]) ?\n\n+(?=\S)", re.M)
_EMPTY_ROW = re.compile(r"^\|(?:[ ]*\|)+\n(?!\|[ ]*-)", re.M)
_LEADERS = re.compile(r"(?:\. ?){6,}")
_FILE_NAME = re.compile(r"\S+\.\w{2,4}")


def tidy(markdown: str) -> str:
    """No needless escapes, images as their description, no bullets
    apart from their items, no empty table rows, no dotted leaders."""
    text = _MARKUP_NOISE.sub(_quiet, clean(markdown))
    text = _LEADERS.sub("... ", _EMPTY_ROW.sub("", _LONE_BULLET.sub(r"\1 ", text)))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _quiet(found: re.Match[str]) -> str:
    if found["keep"] is not None:
        return found["keep"]
    if found["escaped"] is not None:
        return found[0] if found["escaped"] == "|" else found["escaped"]
    return "" if _FILE_NAME.fullmatch(found["alt"]) else found["alt"]
