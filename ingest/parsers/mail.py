"""E-mails (RFC 822) as Markdown: the letterhead, then the body; HTML goes through a converter that the caller gives.

The headers become metadata, too. Attachments are named, not read: they are documents of their own. No document parser
is known here.
"""

from __future__ import annotations

import email
import email.utils
from collections.abc import Callable, Iterator
from email.header import decode_header, make_header
from email.message import Message
from typing import Any

from ingest.parsers.texts import as_markdown, clean, decode, json_metadata, proper_title
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText, TextFormat

_HEADERS = ("from", "to", "subject", "date", "message-id", "received", "cc", "mime-version", "content-type")
_SHOWN = {"Subject": "subject", "From": "from", "To": "to", "Cc": "cc", "Date": "date"}
_HEADER_CHARACTERS = 2_000
_RAW_CHARACTERS = 10_000  # of a header as it is encoded; decoding more takes too long
_ADDRESSES = 100
_DEPTH = 30  # of parts within parts


def read_mail(data: bytes, html_to_markdown: Callable[[bytes], str]) -> ParsedText:
    """The text of a mail. Raises ParseFailed for bytes that are none, and for one that is nested too deeply."""
    mail = email.message_from_bytes(data)
    if not any(name in mail for name in _HEADERS):
        raise ParseFailed("is damaged, or not the e-mail that its name says: it has no headers")
    attachments: list[str] = []
    bodies = [
        html_to_markdown(content) if html else as_markdown(decode(content)[0])
        for html, content in _bodies(mail, attachments, 0)
        if content.strip()
    ]
    headers = {name: _header(mail, key) for name, key in _SHOWN.items()}
    head = "\n".join(f"**{name}**: {value}  " for name, value in headers.items() if value)
    named = f"Attachments: {', '.join(attachments)}" if attachments else ""
    return ParsedText(
        text="\n\n".join(part.strip("\n") for part in (head, *bodies, named) if part.strip()),
        format=TextFormat.MARKDOWN,
        media_type="message/rfc822",
        title=proper_title(headers["Subject"]),
        metadata=_metadata(mail, headers, attachments),
    )


def iso_date(date: str | None) -> str | None:
    """An e-mail's date in ISO 8601 where it is well-formed."""
    try:
        return email.utils.parsedate_to_datetime(date).isoformat() if date else None
    except (ValueError, OverflowError):
        return date


def _bodies(part: Message, attachments: list[str], depth: int) -> Iterator[tuple[bool, bytes]]:
    """(whether it is HTML, UTF-8 bytes) of each part that is read with the mail; the others are named."""
    if depth > _DEPTH:
        raise ParseFailed(f"is nested too deeply: it has parts within parts, more than {_DEPTH} levels of them")
    kind, name = part.get_content_type(), part.get_filename()
    if kind.startswith("message/"):
        attachments.append(_line(name or f"a message ({_forwarded(part)})"))
    elif kind == "multipart/alternative" and part.is_multipart():
        yield from _richest(part, attachments, depth)
    elif part.is_multipart():
        for child in _children(part):
            yield from _bodies(child, attachments, depth + 1)
    elif name or part.get_content_disposition() == "attachment" or kind not in ("text/plain", "text/html"):
        attachments.append(_line(name or kind))
    else:
        yield kind == "text/html", _utf8(part)


def _richest(part: Message, attachments: list[str], depth: int) -> Iterator[tuple[bool, bytes]]:
    """The last alternative that says something: they come in ascending richness."""
    for child in reversed(_children(part)):
        found = list(_bodies(child, attachments, depth + 1))
        if any(content.strip() for _, content in found):
            yield from found
            return


def _children(part: Message) -> list[Message]:
    payload = part.get_payload()
    return [child for child in payload if isinstance(child, Message)] if isinstance(payload, list) else []


def _utf8(part: Message) -> bytes:
    """The content of a text part; a charset that is wrong or unknown is guessed."""
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return b""
    charset = part.get_content_charset()
    try:
        return content.decode(charset).encode("utf-8", "replace") if charset else content
    except (LookupError, UnicodeError, ValueError):
        return content


def _forwarded(part: Message) -> str:
    return next((subject for child in _children(part) if (subject := _header(child, "subject"))), "forwarded")


def _header(mail: Message, name: str) -> str:
    raw = str(mail.get(name, ""))[:_RAW_CHARACTERS]
    try:
        return _line(str(make_header(decode_header(raw))))
    except (LookupError, ValueError, email.errors.MessageError):  # an unknown or wrong encoding
        return _line(raw)


def _line(text: str) -> str:
    return " ".join(clean(text).split())[:_HEADER_CHARACTERS]


def _addresses(header: str) -> list[tuple[str, str]]:
    try:
        return email.utils.getaddresses([header])
    except RecursionError:  # brackets within brackets
        return []


def _metadata(mail: Message, headers: dict[str, str], attachments: list[str]) -> dict[str, Any]:
    def addresses(name: str) -> list[str]:
        return [address for _, address in _addresses(headers[name]) if address][:_ADDRESSES]

    sender, address = next(iter(_addresses(headers["From"])), ("", ""))
    found = {
        "authors": [sender] if sender else [],
        "created_at": iso_date(headers["Date"]),
        "from": address,
        "to": addresses("To"),
        "cc": addresses("Cc"),
        "message_id": _header(mail, "message-id"),
        "attachments": attachments[:_ADDRESSES],
    }
    return json_metadata({name: value for name, value in found.items() if value})
