"""Which queries train, which choose, and which only the gate may see: decided by the query's own words, for good.

A query's text enters, its key and its split leave. The choice depends on nothing else: not on the collection, the day,
the machine or the other queries, so a query that was held out once is held out for ever. Pure.
"""

from __future__ import annotations

from enum import StrEnum

from nvr_rag.query_keys import normalise as normalise
from nvr_rag.query_keys import query_key as query_key

# Never change these, nor nvr_rag.query_keys: queries would move between the splits, and what was held out has been
# trained on.
HOLDOUT_SHARE = 0.2  # of all queries
DEV_SHARE = 0.1  # of the rest
_BUCKETS = 10_000
_HOLDOUT_BUCKETS = round(_BUCKETS * HOLDOUT_SHARE)
_DEV_BUCKETS = round((_BUCKETS - _HOLDOUT_BUCKETS) * DEV_SHARE)


class Split(StrEnum):
    """What a judged query is for."""

    TRAIN = "train"  # fits the weights
    DEV = "dev"  # chooses settings: never trained on
    HOLDOUT = "holdout"  # read by the gate and by nothing else


def split_of(key: str) -> Split:
    """The split of the query with this key."""
    bucket = int(key, 16) % _BUCKETS
    if bucket < _HOLDOUT_BUCKETS:
        return Split.HOLDOUT
    return Split.DEV if bucket < _HOLDOUT_BUCKETS + _DEV_BUCKETS else Split.TRAIN
