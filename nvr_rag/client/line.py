"""The line to one server, as far as waiting has no part in it: where it goes, which headers go along, what came back.

The key goes into the headers of the HTTP client and is kept nowhere else: not in a record, not in a message.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from nvr_rag import __version__
from nvr_rag.client import answers
from nvr_rag.client.problems import content_of, is_problem, lost
from nvr_rag.client.records import Readiness, ServerGone
from nvr_rag.client.repeating import Attempts, Outcome
from nvr_rag.client.requests import Call, Record, Request
from nvr_rag.errors import InvalidInput, NotFound

_PRINCIPALS = "X-NVR-Principals"
_KEY_CHARACTERS = 200  # far more than any key has


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What the calls of one client share. Safe to share between threads."""

    url: str
    retries: int  # attempts after the first one, at most
    headers: Mapping[str, bytes] = field(default_factory=dict)  # that tell on whose behalf it asks
    chance: random.Random = field(default_factory=random.Random, repr=False)

    def on_behalf_of(self, principals: Iterable[str]) -> Line:
        """The same line for other principals. Raises InvalidInput for names that cannot be sent."""
        return replace(self, headers=_on_behalf_of(principals))

    def attempts(self, request: Request) -> Attempts:
        """The attempts at a request, of which none has been made."""
        return Attempts(repeatable=request.repeatable, retries=self.retries, chance=self.chance)

    def read(self, call: Call[Record], attempts: Attempts, outcome: Outcome) -> Record:
        """The record that the last attempt came to. Raises what the server says, and as `problems.lost`."""
        try:
            content = self._content(outcome)
        except NotFound:
            if call.gone is not None and attempts.unsure:
                return call.gone
            raise
        return self._understood(call.read, content)

    def readiness(self, outcome: Outcome) -> Readiness:
        """What /readyz says: that a server is not ready is an answer there."""
        if isinstance(outcome, httpx.Response) and outcome.status_code == 503 and is_problem(outcome):
            return self._understood(lambda told: answers.not_ready(told.json()), outcome)
        self._content(outcome)
        return Readiness(ready=True, reasons=[])

    def _understood(self, read: Callable[[Any], Record], answer: Any) -> Record:
        try:
            return read(answer)
        except answers.MISREAD as error:
            raise ServerGone(f"what answers at {self.url} does not answer as nvr-rag: {error!r}") from error

    def _content(self, outcome: Outcome) -> Any:
        if isinstance(outcome, httpx.Response):
            return content_of(outcome, self.url)
        raise lost(outcome, self.url) from outcome


def line_to(url: str, principals: Iterable[str] | None, retries: int) -> Line:
    """A line to a server. Raises InvalidInput for what cannot be one."""
    if retries < 0:
        raise InvalidInput(f"retries is 0 or more, not {retries}", field="retries")
    line = Line(url=_checked(url), retries=retries)
    return line if principals is None else line.on_behalf_of(principals)


def http_options(line: Line, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """What both kinds of HTTP clients are made with. No proxy that the environment names is used: servers are near."""
    headers = {"User-Agent": f"nvr-rag/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {_secret(api_key)}"
    if not timeout_seconds > 0:
        raise InvalidInput(f"timeout_seconds is more than 0, not {timeout_seconds:g}", field="timeout_seconds")
    return {
        "base_url": line.url,
        "headers": headers,
        "timeout": timeout_seconds,
        "trust_env": False,
        "verify": _certificates(),
    }


@cache
def _certificates() -> ssl.SSLContext:
    """Loading them takes a while, and every client needs the same. SSL_CERT_FILE and SSL_CERT_DIR name others."""
    return httpx.create_ssl_context()


def _checked(url: str) -> str:
    """The address without the slash at its end. A password in it would be in every message."""
    if "@" in url:
        raise InvalidInput("the address of a server has no user and no password; pass a key as api_key", field="url")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise InvalidInput(f"the address of a server is such as http://127.0.0.1:8000, not {url[:200]!r}", field="url")
    return url.rstrip("/")


def _secret(api_key: str) -> str:
    """The key; the message about a wrong one does not have it."""
    if not (api_key.isascii() and api_key.isprintable() and 0 < len(api_key) <= _KEY_CHARACTERS) or " " in api_key:
        raise InvalidInput("api_key is not a key: no blanks, line ends or other letters than ASCII's", field="api_key")
    return api_key


def _on_behalf_of(principals: Iterable[str]) -> dict[str, bytes]:
    if isinstance(principals, str):  # letters otherwise
        raise InvalidInput(f"principals is a list of names, not one: [{principals[:80]!r}]", field="principals")
    names = list(principals)
    for name in names:
        if "," in name or name != name.strip() or not name.isprintable() or not name:
            raise InvalidInput(
                f"a principal that is sent is printable, without a comma or a blank at its ends, not {name[:80]!r}",
                field="principals",
            )
    return {_PRINCIPALS: ", ".join(names).encode("utf-8")}
