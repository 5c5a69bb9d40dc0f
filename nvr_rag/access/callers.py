"""Who asks, as far as a key or the machine itself vouches for it: scopes, collections, and what may be read. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from nvr_rag.errors import Forbidden, NoCollection
from nvr_rag.ids import sha256_json
from nvr_rag.types import ANYBODY, OWNER, Reader

MAX_PRINCIPALS = 256
MAX_PRINCIPAL_CHARACTERS = 256


class Scope(StrEnum):
    """What a key is for; none of them includes another."""

    SEARCH = "search"  # search, read documents, embed texts
    FEEDBACK = "feedback"
    INGEST = "ingest"  # put and delete documents, mirror folders, see what became of it
    TRAIN = "train"  # retrain, and give judgments from outside
    ADMIN = "admin"  # make, change and delete collections; see every job and why a server is not ready
    METRICS = "metrics"  # read the figures that are kept for a supervisor
    IMPERSONATE = "impersonate"  # say on whose behalf it asks: a bot that knows who its users are


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks, and what he may: no more than his key says, unless that lets him ask on behalf of others."""

    key_id: str | None = None  # None = no keys exist, and this machine's own user asks
    scopes: frozenset[Scope] = frozenset()
    collections: frozenset[str] | None = None  # None = all
    reader: Reader = ANYBODY
    per_minute: int | None = None  # requests; None = what the settings say

    @property
    def asker(self) -> str:
        """Names the key and those it asks for: an answer may be judged by whom it was shown, and by nobody else.

        A rotated key keeps it; "" where there are no keys.
        """
        if self.key_id is None:
            return ""
        return sha256_json([self.key_id, sorted(self.reader.principals), self.reader.everything])

    @property
    def knows_all(self) -> bool:
        """Whether he may be told numbers that count what some may not read. Whoever is on a machine without keys has
        the data folder."""
        return self.reader.everything or self.key_id is None

    @property
    def manages(self) -> bool:
        """Whether he may be told how the server is inside: hosts, folders, what is wrong."""
        return self.key_id is None or Scope.ADMIN in self.scopes

    @property
    def counts(self) -> Reader:
        """Whose documents are counted for him."""
        return OWNER if self.knows_all else self.reader

    @property
    def default_acl(self) -> list[str] | None:
        """Who may read what he stores without saying who may."""
        return sorted(self.reader.principals) or None

    def check(self, scope: Scope) -> None:
        """Raise Forbidden without this scope."""
        if scope not in self.scopes:
            raise Forbidden(
                f"this key has not the scope {scope}; ask for one that has (nvr-rag keys create NAME --scope {scope})"
            )

    def check_collection(self, name: str) -> None:
        """Raise NoCollection for one that this caller may not know of, as for one that does not exist."""
        if not self.knows(name):
            raise NoCollection(name)

    def knows(self, collection: str) -> bool:
        """Whether the caller may know of a collection."""
        return self.collections is None or collection in self.collections

    def on_behalf_of(self, principals: frozenset[str]) -> Caller:
        """The same caller, reading what these principals may. Raises Forbidden without the scope for it."""
        self.check(Scope.IMPERSONATE)
        return replace(self, reader=Reader(principals=principals))


LOCAL = Caller(scopes=frozenset(Scope) - {Scope.IMPERSONATE})  # a user of this machine, while there are no keys
