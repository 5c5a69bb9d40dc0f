"""What callers are told of a job that failed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import update

from nvr_rag import jobs, retries, uploads
from nvr_rag.access.callers import LOCAL, Caller, Scope
from nvr_rag.api.telling import info_of
from nvr_rag.db import tables as t
from nvr_rag.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    EncoderError,
    InvalidInput,
    NoRoom,
    NotHere,
    StoreUnavailable,
)
from nvr_rag.types import OWNER
from tests.support import House

SENDER = Caller(key_id="sender", scopes=frozenset({Scope.INGEST}))
READER = Caller(key_id="reader", scopes=frozenset({Scope.INGEST}), reader=OWNER)
ADMIN = Caller(key_id="admin", scopes=frozenset({Scope.ADMIN}), reader=OWNER)
HIDDEN = "it failed; nvr-rag jobs show 1, where the server runs, says why"


def failed(house: House, error: Exception) -> jobs.Job:
    """An upload of SENDER that has failed for good."""
    with house.database.write() as connection:
        job_id = jobs.add(connection, uploads.KIND, {"collection": "default"}, by=SENDER)
    assert jobs.claim(house.database, "worker", [uploads.KIND]) is not None
    jobs.fail(house.database, job_id, "worker", retries.decide(error, 1, retries.ONCE, random.Random(0)))
    return jobs.get(house.database, job_id)


INSIDE = [
    DatabaseUnavailable("db.intern did not answer"),
    StoreUnavailable("qdrant.intern refused"),
    EncoderError("/srv/intern is damaged"),
    NoRoom("no room on /srv/intern"),
    NotHere("/srv/intern is not on this machine"),
    ConfigurationError("/srv/intern cannot be used"),
    OSError(13, "Permission denied", "/srv/intern"),
]


@pytest.mark.parametrize("error", INSIDE, ids=lambda error: type(error).__name__)
def test_what_is_wrong_inside_is_for_who_manages_the_server(house: House, error: Exception) -> None:
    job = failed(house, error)
    assert [info_of(job, caller).error for caller in (SENDER, READER)] == [HIDDEN, HIDDEN]
    for caller in (ADMIN, LOCAL):
        assert "intern" in str(info_of(job, caller).error)


def test_what_a_sender_can_mend_he_is_told(house: House) -> None:
    job = failed(house, InvalidInput("the file has no name; give it one"))
    for caller in (SENDER, READER, ADMIN):
        assert info_of(job, caller).error == "the file has no name; give it one"
    assert info_of(job, Caller(key_id="other", scopes=SENDER.scopes)).error == HIDDEN


@pytest.mark.parametrize("failures", [[], [{"attempt": 1, "at": "2026-01-01T00:00:00+00:00", "error": "x"}]])
def test_what_the_release_before_wrote_down_may_be_anything(house: House, failures: list[Mapping[str, Any]]) -> None:
    failed(house, InvalidInput("x"))
    with house.database.write() as connection:
        connection.execute(update(t.Job).values(failures=failures))
    job = jobs.get(house.database, 1)
    assert (info_of(job, SENDER).error, info_of(job, ADMIN).error) == (HIDDEN, "x")


def test_that_it_was_cancelled_is_no_secret(house: House) -> None:
    with house.database.write() as connection:
        job_id = jobs.add(connection, uploads.KIND, {"collection": "default"}, by=SENDER)
    jobs.cancel(house.database, job_id)
    assert info_of(jobs.get(house.database, job_id), SENDER).error == "cancelled"
