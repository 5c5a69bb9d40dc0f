"""Who asks: the headers of a request in, a caller out, before anything of its body is read. Plain ASGI.

A few paths are open to everybody; whatever else there is, also what is added later, needs a caller. Where keys exist
that takes a key; `request.state.caller` says what it is for.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from nvr_rag.access.callers import LOCAL, Caller
from nvr_rag.access.keys import check_principals
from nvr_rag.api.dependencies import Parts
from nvr_rag.api.problems import answer_to
from nvr_rag.errors import Forbidden, InvalidInput, NvrError, Unauthenticated
from nvr_rag.observing import context

KEY_HEADER = "X-API-Key"
PRINCIPALS_HEADER = "X-NVR-Principals"  # names that the caller vouches for, between commas
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json"})
_PASSED_ON = ("Forwarded", "X-Forwarded-For")  # how proxies say for whom they ask
_OWN_SITES = frozenset({"none", "same-origin"})  # what a browser says of an address that was typed, and of our own page


class Doorman:
    """Lets in who may come in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope["state"]["caller"] = await _caller(scope)
            except NvrError as error:
                await answer_to(Request(scope), error, _guess(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _guess(scope: Scope) -> Caller | None:
    """Who it is that was not let in, as far as the words about it go: this machine's user, while there were no keys
    when that was last known."""
    app: FastAPI = scope["app"]
    parts: Parts = app.state.parts
    return None if has_key(Headers(scope=scope)) or not parts.keyring.was_open else LOCAL


async def _caller(scope: Scope) -> Caller:
    """Who asks. Raises Unauthenticated, Forbidden (from elsewhere), TooManyRequests, and on whose behalf he may not
    ask: Forbidden, InvalidInput."""
    app: FastAPI = scope["app"]
    parts: Parts = app.state.parts
    headers = Headers(scope=scope)
    key = key_of(headers)
    caller = parts.keyring.remembered(key)
    parts.workspace.meter.looked_up("keys", hit=caller is not None)
    if caller is None:
        caller = await run_sync(parts.keyring.identify, key, limiter=parts.spare)
    context.note(key_id=caller.key_id)
    if caller.key_id is None:
        _check_place(headers)
    parts.buckets.take(caller)
    named = headers.getlist(PRINCIPALS_HEADER)
    return caller.on_behalf_of(_principals(named)) if named else caller


def has_key(headers: Headers) -> bool:
    """Whether a request has something that could be a key."""
    return KEY_HEADER in headers or "Authorization" in headers


def key_of(headers: Headers) -> str | None:
    """The key of a request. Raises Unauthenticated for what is no key, and for two that differ."""
    found = set(headers.getlist(KEY_HEADER))
    for value in headers.getlist("Authorization"):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("send the key as Authorization: Bearer KEY or as X-API-Key")
        found.add(credentials.strip())
    if len(found) > 1:
        raise Unauthenticated("the request has two different keys; send one")
    return next(iter(found), None)


def _check_place(headers: Headers) -> None:
    """Raise Forbidden for what comes from elsewhere, where there are no keys: through a proxy of this machine, or from
    a page of another site in one of its browsers. A form needs nobody's leave to go anywhere, and nothing else tells
    it from what the machine's user sends."""
    if any(name in headers for name in _PASSED_ON):
        raise Forbidden(
            "a proxy has passed this on, and without a key only programs of this machine may ask; make a key "
            "(nvr-rag keys create) and send it"
        )
    told = headers.getlist("Sec-Fetch-Site")
    host = headers.get("Host", "").lower()
    origins = [origin.lower().partition("://")[2] for origin in headers.getlist("Origin")]
    if not _OWN_SITES.issuperset(told) or any(not origin or origin != host for origin in origins):
        raise Forbidden(
            "a web page of another site has sent this, and without a key only programs of this machine may ask; make "
            "a key (nvr-rag keys create) and send it"
        )


def _principals(values: list[str]) -> frozenset[str]:
    """The names in the header, which are UTF-8. Raises InvalidInput."""
    if len(values) > 1:  # a proxy that adds its own would let through what its client said before
        raise InvalidInput(f"{PRINCIPALS_HEADER} is there more than once; send it once", field=PRINCIPALS_HEADER)
    try:
        said = [value.encode("latin-1").decode("utf-8") for value in values]  # as the bytes were sent
    except UnicodeError:
        raise InvalidInput(f"{PRINCIPALS_HEADER} is not UTF-8", field=PRINCIPALS_HEADER) from None
    found = [name.strip() for value in said for name in value.split(",") if name.strip()]
    try:
        check_principals(found)
    except InvalidInput as error:
        raise InvalidInput(str(error), field=PRINCIPALS_HEADER) from error
    return frozenset(found)
