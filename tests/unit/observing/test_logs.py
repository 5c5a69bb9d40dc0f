"""Lines of the log: what stands in them, that each is one line, and what must never stand there."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from nvr_rag.observing import context, logs
from nvr_rag.settings import QdrantSettings, Settings

KEY = f"nvr_{'a' * 12}_{'B' * 43}"


def settings(**options: object) -> Settings:
    return Settings(
        log_format="json",
        database_url=SecretStr("postgresql://nvr:hunter22@db/nvr"),
        qdrant=QdrantSettings(url="http://q:6333", api_key=SecretStr("s3cr3t-of-qdrant")),
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What a logger "nvr_rag.of.a.test" writes."""
    written: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Keep()
    handler.setFormatter(logs._Json(settings()))
    log = logging.getLogger("nvr_rag.of.a.test")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield written
    log.removeHandler(handler)


log = logging.getLogger("nvr_rag.of.a.test")


def test_a_line(lines: list[str]) -> None:
    with context.begun(request_id="r-1"):
        context.note(key_id="k-1", query_id=None)
        context.note(collection="default")
        log.info("GET %s", "/v1", extra={"fields": {"status": 200}})
    log.info("later")
    first, second = (json.loads(line) for line in lines)
    time = first.pop("time")
    assert time.endswith("+00:00")
    assert "T" in time
    assert first == {
        "level": "info",
        "logger": "nvr_rag.of.a.test",
        "message": "GET /v1",
        "request_id": "r-1",
        "key_id": "k-1",
        "collection": "default",
        "status": 200,
    }
    assert second.keys() == {"time", "level", "logger", "message"}


def test_everything_is_one_line(lines: list[str]) -> None:
    try:
        raise ValueError("two\nlines\u2028and\x85more")
    except ValueError:
        log.exception("it failed\r\nbadly")
    (line,) = lines
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert found["message"] == "it failed\r\nbadly"
    assert found["exception"].startswith("Traceback")
    assert "ValueError: two\nlines" in found["exception"]


def test_no_secret_stands_in_it(lines: list[str]) -> None:
    try:
        raise ValueError(f"Authorization: Bearer {KEY}")
    except ValueError:
        log.exception("%s and %s and %s", KEY, "postgresql://nvr:hunter22@db/nvr", "s3cr3t-of-qdrant")
    (line,) = lines
    assert "BBBB" not in line
    assert "hunter22" not in line
    assert "s3cr3t" not in line
    assert f"nvr_{'a' * 12}_***" in line  # its id may be seen


def test_threads_of_a_request_know_what_it_is_about() -> None:
    """As a thread pool runs them: in a copy of the context."""
    import contextvars

    with context.begun(request_id="r-1"):
        copied = contextvars.copy_context()
        thread = threading.Thread(target=lambda: copied.run(context.note, query_id="q-1"))
        thread.start()
        thread.join()
        assert dict(context.known()) == {"request_id": "r-1", "query_id": "q-1"}
        with context.begun(job_id=7):
            context.note(collection="c")
            assert dict(context.known()) == {"request_id": "r-1", "query_id": "q-1", "job_id": 7, "collection": "c"}
        assert "job_id" not in context.known()
    assert dict(context.known()) == {}
    context.note(query_id="nobody's")
    assert dict(context.known()) == {}


PROGRAM = """
import logging, threading, warnings
from nvr_rag.observing import logs
from nvr_rag.settings import load_settings
logs.begin(load_settings())
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
logging.getLogger("uvicorn.error").info("told")
logging.getLogger("nvr_rag.api").info("told as well")
logging.getLogger("httpx").info("a library's chatter")
warnings.warn("a warning")
def die():
    raise ValueError("in a thread")
thread = threading.Thread(target=die, name="mine")
thread.start()
thread.join()
"""


@pytest.mark.parametrize(("level", "told"), [("info", 2), ("warning", 0)])
def test_a_process(monkeypatch: pytest.MonkeyPatch, level: str, told: int) -> None:
    monkeypatch.setenv("NVR_LOG_FORMAT", "json")
    monkeypatch.setenv("NVR_LOG_LEVEL", level)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert sum(line["message"].startswith("told") for line in found) == told
    assert not any("chatter" in line["message"] for line in found)
    by_logger = {line["logger"]: line for line in found}
    assert by_logger["uvicorn.error"]["message"] in ("Invalid HTTP request received.", "told")
    assert "a warning" in by_logger["py.warnings"]["message"]
    died = by_logger["nvr_rag"]
    assert (died["level"], died["message"]) == ("critical", "the thread mine has died")
    assert died["exception"].endswith("ValueError: in a thread")


def test_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert "WARNING uvicorn.error: Invalid HTTP request received." in done.stderr
    assert "CRITICAL nvr_rag: the thread mine has died" in done.stderr
