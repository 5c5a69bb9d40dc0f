"""What goes wrong with a Qdrant server, in this project's errors. The client's exceptions enter, whether they come from
HTTP, from gRPC or from its local mode; StoreErrors leave that say whether a retry helps and what to do.

A server's own words are passed on, cut short; never a header, hence never a key.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import grpc  # type: ignore[import-untyped]
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from nvr_rag.errors import IndexExists, IndexMissing, InvalidFilter, NvrError, StoreError, StoreUnavailable

_LONGEST = 300  # characters of a server's words
_STATUS_OF = {  # what Qdrant answers over gRPC where it answers this over HTTP
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.DEADLINE_EXCEEDED: 408,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 503,  # a locked storage among them
    grpc.StatusCode.UNIMPLEMENTED: 405,
}
_TLS = re.compile(r"CERTIFICATE_VERIFY_FAILED|SSL_ERROR|Ssl handshake|WRONG_VERSION_NUMBER|TLSV1_ALERT", re.IGNORECASE)
_STRICT_FILTER = re.compile(r"Index required but not found|Filter condition limit|Condition size limit")
_NO_JSON = re.compile(r"at line \d+ column \d+")


class StoreSlowDown(StoreUnavailable):
    """The server limits how often it may be asked; `seconds` is how long it wants to be left alone."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn whatever the client raises about the index `name` into a StoreError."""
    try:
        yield
    except NvrError:
        raise
    except ResponseHandlingException as error:
        raise _no_answer(name, error.source) from error
    except UnexpectedResponse as error:
        raise refusal(name, error.status_code or 0, _words(error.content)) from error
    except ResourceExhaustedResponse as error:
        raise StoreSlowDown(
            f"index {name!r}: the Qdrant server wants fewer requests ({_short(str(error))})", error.retry_after_s
        ) from error
    except grpc.RpcError as error:
        raise _grpc_refusal(name, error) from error
    except (ApiException, AssertionError) as error:
        if isinstance(error, AssertionError) and "None" not in str(error):  # not the client's "returned None result"
            raise
        raise StoreUnavailable(f"index {name!r}: the Qdrant server gave no usable answer ({error})") from error
    except ValueError as error:  # how the client refuses a request by itself, and how its local mode reports
        raise _local_refusal(name, error) from error


def refusal(name: str, status: int, words: str) -> NvrError:
    """The error for an answer with this HTTP status and these words."""
    said = f" ({_short(words)})" if words else ""
    if status == 404 and "ollection" in words:
        return IndexMissing(missing(name))
    if status == 409:
        return IndexExists(f"there is an index {name!r} on the server already; drop it first")
    if status in (403, 503) and "locked" in words:
        return StoreUnavailable(f"index {name!r}: the Qdrant server takes no writes now{said}")
    if status in (401, 403):
        return StoreError(f"the Qdrant server refused our key with {status}{said}; set NVR_QDRANT__API_KEY")
    if status in (408, 429) or status >= 500:
        return StoreUnavailable(f"index {name!r}: the Qdrant server failed with {status}{said}")
    if _STRICT_FILTER.search(words):
        return InvalidFilter(
            f"the Qdrant server's strict mode does not allow this filter{said}; a field of metadata gets its index "
            "when an index is made with it in NVR_QDRANT__METADATA_INDEXES"
        )
    if status in (404, 405):
        return StoreError(f"no Qdrant server answers there, or an old one: {status}{said}; check NVR_QDRANT__URL")
    return StoreError(f"index {name!r}: the Qdrant server refused the request with {status}{said}")


def missing(name: str) -> str:
    """The words for an index that is not there."""
    return f"there is no index {name!r} on the Qdrant server; `nvr-rag verify --repair` rebuilds it from the corpus log"


def _no_answer(name: str, source: Exception) -> StoreError:
    reason = _short(str(source)) or type(source).__name__
    if any(isinstance(error, ssl.SSLError) for error in _chain(source)) or _TLS.search(reason):
        return _no_trust(reason)
    return StoreUnavailable(f"index {name!r}: no usable answer from the Qdrant server ({reason}); is it up?")


def _no_trust(reason: str) -> StoreError:
    return StoreError(
        f"no trusted connection to the Qdrant server ({reason}); check that NVR_QDRANT__URL begins with https:// where "
        "the server speaks TLS, and name the authority that signed its certificate in NVR_QDRANT__CA_FILE"
    )


def _grpc_refusal(name: str, error: grpc.RpcError) -> NvrError:
    code, details = (error.code(), error.details() or "") if isinstance(error, grpc.Call) else (None, str(error))
    if code == grpc.StatusCode.UNAVAILABLE:
        if _TLS.search(details):
            return _no_trust(_short(details))
        return StoreUnavailable(
            f"index {name!r}: no usable answer from the Qdrant server ({_short(details)}); is it up?"
        )
    return refusal(name, _STATUS_OF.get(code, 500) if code else 500, details)


def _local_refusal(name: str, error: ValueError) -> StoreError:
    if isinstance(error, json.JSONDecodeError) or _NO_JSON.search(str(error)):
        return StoreUnavailable(
            f"index {name!r}: what answers is no Qdrant server, or not all of it ({_short(str(error))}); check "
            "NVR_QDRANT__URL"
        )
    if "not found" in str(error):
        return IndexMissing(missing(name))
    return StoreError(f"index {name!r}: {_short(str(error))}")


def _words(content: bytes) -> str:
    """The server's message: in an envelope of JSON, or bare."""
    try:
        status = json.loads(content)["status"]
        return str(status["error"])
    except (ValueError, KeyError, TypeError):
        return content.decode("utf-8", "replace").strip()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
