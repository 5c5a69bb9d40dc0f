"""What may be asked: a query goes in, and nothing comes out unless it is outside the limits. Knows no index."""

from __future__ import annotations

from nvr_rag.errors import InvalidInput
from nvr_rag.types import Query

MAX_K = 1000
MAX_QUERY_CHARACTERS = 10_000


def check_query(query: Query) -> None:
    """Raise InvalidInput, naming the field, for a query outside the limits."""
    if not query.text.strip():
        raise InvalidInput("the query is empty; ask something", field="query")
    if len(query.text) > MAX_QUERY_CHARACTERS:
        raise InvalidInput(
            f"a query has at most {MAX_QUERY_CHARACTERS} characters, this one has {len(query.text)}; shorten it",
            field="query",
        )
    if not 1 <= query.k <= MAX_K:
        raise InvalidInput(f"k is a number from 1 to {MAX_K}, not {query.k}", field="k")
