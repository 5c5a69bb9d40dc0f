"""Do the encoders still make vectors, and are the indexes still those that they were made for? Deployments that serve
enter; what is wrong leaves, in words.

Looked at now and then by one thread (`look`), and asked by others (`problems`): so an encoder that hangs is told of by
somebody who does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np

from nvr_rag.deployments import Deployment
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import NvrError, StoreUnavailable
from nvr_rag.indexes import LiveIndex
from nvr_rag.retries import in_words
from nvr_rag.workspace import Workspace

EVERY_SECONDS = 30.0  # at most: a look costs as much as a query
HUNG_SECONDS = 60.0
_QUESTION = "does the encoder answer?"

log = logging.getLogger(__name__)


class Probe:
    """What is known of the encoders and indexes that searches are answered from."""

    def __init__(self, workspace: Workspace, now: Callable[[], float] = time.monotonic) -> None:
        self._workspace, self._now = workspace, now
        self._due = now()
        self._asked: float | None = None  # since when an encoder is being asked
        self._wrong: dict[str, str] = {}  # by encoder or collection

    def problems(self) -> list[str]:
        """What is wrong, as far as it was seen; waits for nothing."""
        asked = self._asked
        found = [f"{what}: {words}" for what, words in self._wrong.items()]
        if asked is not None and self._now() - asked > HUNG_SECONDS:
            found.append(f"an encoder has not answered for {self._now() - asked:.0f} s; restart the server")
        return found

    def look(self, serving: Mapping[str, Deployment]) -> None:
        """Look at what serves, by collection, if it is time to."""
        if self._now() < self._due:
            return
        wrong: dict[str, str] = {}
        asked: set[str] = set()
        for collection, deployment in serving.items():
            index = self._workspace.index(deployment.index_id)
            self._see_index(collection, index, wrong)
            if index.encoder.fingerprint not in asked:
                asked.add(index.encoder.fingerprint)
                self._ask(index.encoder, wrong)
        for what in wrong.keys() - self._wrong.keys():
            log.warning("%s: %s", what, wrong[what])
        self._wrong, self._due = wrong, self._now() + EVERY_SECONDS

    def _see_index(self, collection: str, index: LiveIndex, wrong: dict[str, str]) -> None:
        """Whether the store still has vectors of this encoder under the index's name."""
        try:
            kept = index.points.stored_config().encoder
        except StoreUnavailable:
            return  # whoever asks for readiness finds that out at once, and we cannot know
        except NvrError as error:
            wrong[f"collection {collection}"] = str(error)
            return
        matches = kept == index.encoder.fingerprint == index.info.encoder
        self._workspace.meter.matched(collection, index.info.name, matches=matches)
        if not matches:
            wrong[f"collection {collection}"] = (
                f"the physical index {index.info.name} holds vectors of the encoder {kept[:12]}, not of "
                f"{index.encoder.fingerprint[:12]}; run nvr-rag verify --repair to rebuild it"
            )

    def _ask(self, encoder: Encoder, wrong: dict[str, str]) -> None:
        """Have it encode something."""
        self._asked = self._now()
        try:
            vectors = encoder.encode_queries([_QUESTION])
            if vectors.shape != (1, encoder.spec.dimension) or not np.isfinite(vectors).all():
                wrong[f"encoder {encoder.fingerprint[:12]}"] = "it makes no vectors any more; restart the server"
        except Exception as error:  # whatever a model can raise
            wrong[f"encoder {encoder.fingerprint[:12]}"] = in_words(error)
        finally:
            self._asked = None
