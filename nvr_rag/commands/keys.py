"""`nvr-rag keys`: create, list, revoke, rotate. A key is shown once, when it is made: alone on stdout, the words about
it on stderr."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.access.callers import Scope
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nvr_rag.access.keys import ApiKey

app = typer.Typer(help="Create, list, revoke and rotate API keys.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The key's name, or its id; nvr-rag keys list shows them.")]
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_LONGEST = timedelta(days=36_500)
_SPAN = re.compile(r"([0-9]{1,6})([hdw])")
_COLUMNS = ("name", "id", "state", "scopes", "collections", "reads", "a minute", "created (UTC)", "expires (UTC)")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it: whose it is, or what for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it is for; may be given several times.")],
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="Only this one; several times for several.")
    ] = None,
    principal: Annotated[
        list[str] | None,
        typer.Option(help="Reads documents whose acl names this, such as group:sea; several times for several."),
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Reads every document, whatever its acl.")] = False,
    per_minute: Annotated[
        int | None, typer.Option(help="Requests it may send.  [default: what NVR_API__REQUESTS_PER_MINUTE says]")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When: after 12h, 90d or 8w, or on a day, 2027-01-01.  [default: never]")
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Make a key. It is shown now and never again."""
    from nvr_rag.access import keys
    from nvr_rag.db import clock
    from nvr_rag.types import Reader

    with common.open_workspace() as workspace, workspace.database.write() as connection:
        first = not keys.exist(connection)
        new = keys.NewKey(
            name=name,
            scopes=frozenset(scope),
            collections=frozenset(collection) if collection else None,
            reader=Reader(principals=frozenset(principal or ()), everything=everything),
            per_minute=per_minute,
            expires_at=_end(expires, clock.now(connection)),
        )
        made, secret = keys.create(connection, new)
        unknown = _unknown(connection, collection or ())
    for one in unknown:
        output.note(f"There is no collection {one!r} yet.")
    if first:
        output.note("This is the first key: from now on every request to the API needs one.")
    _tell(made, secret, f"The key {made.name!r}; it is not shown again:", as_json=as_json)


@app.command("list")
def list_keys(as_json: common.AsJson = False) -> None:
    """List the keys, those that are not usable any more as well; never the secrets, which nobody has kept."""
    from nvr_rag.access import keys

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        found = keys.all_keys(connection)
    if as_json:
        output.emit({"keys": [_as_json(key) for key in found]})
    elif found:
        output.table(_COLUMNS, [_row(key) for key in found])
    else:
        output.say("There are no keys: whoever is on this machine may ask, and nobody else.")


@app.command("revoke")
def revoke(name: Name, as_json: common.AsJson = False) -> None:
    """Let a key be good for nothing any more, within a second and for ever."""
    from nvr_rag.access import keys

    with common.open_workspace() as workspace, workspace.database.write() as connection:
        key = keys.revoke(connection, name)
    if as_json:
        output.emit({"key": _as_json(key)})
    else:
        output.say(f"Revoked the key {key.name!r}.")


@app.command("rotate")
def rotate(name: Name, as_json: common.AsJson = False) -> None:
    """Give a key another secret, which is shown now and never again; the old one is good for nothing from now on."""
    from nvr_rag.access import keys

    with common.open_workspace() as workspace, workspace.database.write() as connection:
        key, secret = keys.rotate(connection, name)
    _tell(key, secret, f"The key {key.name!r} anew; it is not shown again:", as_json=as_json)


def _tell(key: ApiKey, secret: str, words: str, *, as_json: bool) -> None:
    if as_json:
        output.emit({"key": _as_json(key), "secret": secret})
        return
    output.note(words)
    output.flush()
    output.say(secret)


def _end(expires: str | None, now: datetime) -> datetime | None:
    """When a key expires. Raises InvalidInput."""
    if expires is None:
        return None
    span = _SPAN.fullmatch(expires.strip())
    end = now + min(int(span[1]) * _UNITS[span[2]], 2 * _LONGEST) if span else _until(expires.strip())
    if not timedelta() < end - now <= _LONGEST:
        raise InvalidInput(f"a key expires later than now and within 100 years, not {expires[:80]!r}", field="expires")
    return end


def _until(day: str) -> datetime:
    try:
        when = datetime.fromisoformat(day)
    except ValueError:
        raise InvalidInput(
            f"a key expires after a time such as 12h, 90d or 8w, or on a day such as 2027-01-01, not {day[:80]!r}",
            field="expires",
        ) from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _unknown(connection: Connection, names: Sequence[str]) -> list[str]:
    from nvr_rag import collections

    there = {info.name for info in collections.all_infos(connection)}
    return [name for name in dict.fromkeys(names) if name not in there]


def _state(key: ApiKey) -> str:
    return "usable" if key.usable else "revoked" if key.revoked_at is not None else "expired"


def _reads(key: ApiKey) -> str:
    reader = key.caller.reader
    return "everything" if reader.everything else ", ".join(sorted(reader.principals)) or "what has no acl"


def _row(key: ApiKey) -> list[object]:
    caller = key.caller
    return [
        key.name,
        key.id,
        _state(key),
        ", ".join(sorted(caller.scopes)),
        "all" if caller.collections is None else ", ".join(sorted(caller.collections)),
        _reads(key),
        caller.per_minute,
        common.moment(key.created_at),
        common.moment(key.expires_at),
    ]


def _as_json(key: ApiKey) -> dict[str, Any]:
    caller = key.caller
    moments = ("created_at", "expires_at", "revoked_at")
    return {
        "id": key.id,
        "name": key.name,
        "state": _state(key),
        "scopes": sorted(caller.scopes),
        "collections": None if caller.collections is None else sorted(caller.collections),
        "principals": sorted(caller.reader.principals),
        "everything": caller.reader.everything,
        "per_minute": caller.per_minute,
        **{name: when.isoformat() if (when := getattr(key, name)) else None for name in moments},
    }
