"""How a server and a worker write their log: records enter, a line each leaves on stderr, for people or as JSON.

A line of JSON has time, level, logger and message, the ids that are known (see context.py), and where there is one the
exception, all on one line. Keys and passwords that come by are blotted out in both forms. Ours is as talkative as
NVR_LOG_LEVEL says; libraries are only heard when they warn.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, SecretStr

from nvr_rag.observing import context
from nvr_rag.settings import Settings

OURS = ("nvr_rag", "ingest", "training", "uvicorn")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_KEY = re.compile(r"(nvr_[A-Za-z0-9]{12})_[A-Za-z0-9]{43}")  # its id may be seen
_BLOT = "***"
_SHORTEST = 4  # characters of a secret that is blotted out wherever it stands


def begin(settings: Settings) -> None:
    """Let everything that this process logs be written as the settings say."""
    handler = logging.StreamHandler()
    handler.setFormatter((_Json if settings.log_format == "json" else _Text)(settings))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    threading.excepthook = _thread_died


def _thread_died(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is SystemExit:
        return
    name = arguments.thread.name if arguments.thread else "?"
    error = (arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback)
    logging.getLogger("nvr_rag").critical("the thread %s has died", name, exc_info=error)


class _Text(logging.Formatter):
    """Lines for people."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(_TEXT)
        self._secrets = sorted(_secrets(settings), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        return self.blotted(super().format(record))

    def blotted(self, text: str) -> str:
        """`text` without what nobody may see."""
        for secret in self._secrets:
            text = text.replace(secret, _BLOT)
        return _KEY.sub(rf"\1_{_BLOT}", text)


class _Json(_Text):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.blotted(record.getMessage()),
            **context.known(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.blotted(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = self.blotted(self.formatStack(record.stack_info))
        # ASCII, so that no character can break the line. Blotted once more for what else stands in it, such as a path.
        return self.blotted(json.dumps(line, default=str))


def _secrets(settings: BaseModel) -> Iterator[str]:
    """The secrets among the settings, and the password in a URL."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _secrets(value)
        elif isinstance(value, SecretStr):
            secret = value.get_secret_value()
            password = re.search(r"://[^:/@\s]*:([^@\s]+)@", secret)
            yield from (one for one in (secret, password[1] if password else "") if len(one) >= _SHORTEST)


def is_for_people(settings: Settings) -> bool:
    """Whether stderr may have other lines than those of the log."""
    return settings.log_format == "text"
