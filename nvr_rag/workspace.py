"""What one process works with: settings, database, store, and the encoders and indexes that it has opened.

Opened from settings; everything expensive is made on first use and shared between threads. Commands, the server and the
worker all begin here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from nvr_rag import collections, deployments, disk, indexes, registry
from nvr_rag.chunkings import ChunkingSettings, settings_for
from nvr_rag.db.migrate import migrate
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.encoders.base import Encoder
from nvr_rag.encoders.bundled import BUNDLED
from nvr_rag.errors import ConfigurationError, Conflict, EncoderMismatch, IndexMismatch, IndexMissing, StoreError
from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import new_id
from nvr_rag.indexes import IndexInfo, LiveIndex
from nvr_rag.observing.meter import Meter
from nvr_rag.reranking import Reranker
from nvr_rag.retriever import Retriever
from nvr_rag.settings import Settings
from nvr_rag.stores.base import OpenIndex, Store
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.types import Mode
from nvr_rag.upkeep.leases import Lease

_MODELS = "models"  # the folder of encoder versions, in the data folder
_SPARE_BYTES = 64 * 2**20  # left free beside a new index, for everything else that is written meanwhile


class Workspace:
    """An open data folder. Use as a context manager, or call `close`."""

    def __init__(self, settings: Settings, *, store: Store | None = None, encoder: Encoder | None = None) -> None:
        """Open the data folder, made and migrated as needed.

        `store` and `encoder` (the default for new collections) replace those that the settings name. Raises
        ConfigurationError, NewerDataFolder, DatabaseUnavailable.
        """
        self.settings = settings
        self.id = new_id()  # of this process, in the leases that it holds
        self.home = _make_home(settings.home.expanduser())
        self.database = Database(settings.sql_url())
        try:
            migrate(self.database)
            self.store = store or _make_store(settings, self.home)
        except BaseException:
            self.database.close()
            raise
        self.retriever = Retriever(
            self.database, self.index, reranker=self.reranker, rerank_depth=settings.rerank_depth
        )
        self.meter = Meter()  # told of what happens here
        self.serves = False  # searches are answered from it all the time: what is open stays open
        self.tended = False  # an indexer keeps indexes up in this process, and lets go of them when it is done
        self._default = encoder
        self._encoders: dict[str, Encoder] = {encoder.fingerprint: encoder} if encoder else {}
        self._reranker: Reranker | None = None
        self._loaded: dict[str, Encoder] = {}  # by source: registered and default encoder may be one
        self._indexes: dict[int, LiveIndex] = {}
        self._opening = threading.RLock()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of indexes and database. Twice is fine."""
        with self._opening:
            for index_id in list(self._indexes):
                self.close_index(index_id)
        self.database.close()

    def encoder(self, fingerprint: str) -> Encoder:
        """A registered encoder version, loaded. Raises NotFound, EncoderError, EncoderMismatch (its files changed)."""
        found = self._encoders.get(fingerprint)
        if found is not None:  # without waiting while another one is loaded
            return found
        with self._opening:
            if fingerprint not in self._encoders:
                with self.database.read() as connection:
                    version = registry.usable(connection, fingerprint)
                loaded = self._load(version.source)
                if loaded.fingerprint != fingerprint:
                    raise EncoderMismatch(
                        f"the model at {version.source} is no longer the encoder version {fingerprint[:12]}: its "
                        f"files now have the fingerprint {loaded.fingerprint[:12]}; put the old files back"
                    )
                self._encoders[fingerprint] = loaded
            return self._encoders[fingerprint]

    def default_encoder(self) -> Encoder:
        """The encoder of new collections, loaded."""
        with self._opening:
            if self._default is None:
                self._default = self._load(self.settings.encoder)
                self._encoders.setdefault(self._default.fingerprint, self._default)
            return self._default

    def reranker(self) -> Reranker | None:
        """The cross-encoder that the settings name, loaded; None where they name none. Raises EncoderError."""
        if self._reranker is None and self.settings.reranker:
            with self._opening:
                if self._reranker is None:
                    from nvr_rag.encoders.cross_encoder import load_cross_encoder

                    self._reranker = load_cross_encoder(self.settings.reranker, threads=self.settings.threads)
        return self._reranker

    def index(self, index_id: int) -> LiveIndex:
        """An index, opened on first use and kept open, unless the store has lost it. Raises as `indexes.open_index`."""
        opened = self._indexes.get(index_id)
        if opened is not None and not opened.points.lost:
            return opened
        with self._opening:
            self._let_go_if_lost(index_id)
            if index_id not in self._indexes:
                with self.database.read() as connection:
                    info = indexes.get(connection, index_id)
                opened = indexes.open_index(self.store, info, lambda: self.encoder(info.encoder), _lexical(info))
                opened.lease = self._lease(index_id)
                opened.others = partial(self._relatives, opened)
                self._indexes[index_id] = opened
            return self._indexes[index_id]

    def _relatives(self, index: LiveIndex) -> list[OpenIndex]:
        """What is open here of the same collection and encoder: its vectors need not be made again."""
        key = (index.info.collection_id, index.info.encoder)
        return [
            one.points
            for one in list(self._indexes.values())
            if one is not index and (one.info.collection_id, one.info.encoder) == key
        ]

    def _let_go_if_lost(self, index_id: int) -> None:
        """Close an index that is no longer there, whoever is at work on it: the next call of that fails anyway."""
        opened = self._indexes.get(index_id)
        if opened is not None and opened.points.lost:
            del self._indexes[index_id]
            with suppress(StoreError):
                opened.close()

    def _lease(self, index_id: int) -> Lease | None:
        """What this process needs to write into an index that others may write into as well."""
        if not self.store.shared:
            return None
        seconds = self.settings.qdrant.timeout_seconds
        return Lease(self.database, index_id, self.id, request_seconds=seconds)

    def has_open(self, index_id: int) -> bool:
        """Whether this process owns an index now."""
        return index_id in self._indexes

    def close_index(self, index_id: int) -> None:
        """Let go of an index, once whoever changes it has finished, so that it may be dropped or owned elsewhere."""
        with self._opening:
            opened = self._indexes.pop(index_id, None)
        if opened is not None:
            with opened.maintenance:
                opened.close()
            self._forget_encoder(opened.encoder)

    def release(self) -> None:
        """Let go of every index, once whoever changes it has finished, so that other processes may have them. What is
        loaded stays loaded: the next search opens its index again."""
        with self._opening:
            opened, self._indexes = list(self._indexes.values()), {}
        for index in opened:
            with index.maintenance:
                index.close()

    def create_collection(self, name: str, *, language: str = "english", mode: Mode = Mode.HYBRID) -> int:
        """A new collection that is searchable at once; returns its id.

        Raises InvalidInput (name, language), Conflict when it exists.
        """
        collections.check_name(name)
        lexical = LexicalEncoder(language)
        encoder = self.default_encoder()
        source = self._keep(encoder, self.settings.encoder)
        with self.database.write() as connection:
            collection_id = collections.create(connection, name, language)
            registry.register(connection, encoder, source, training=_origin(self.settings.encoder))
            index_id = indexes.create(
                connection, collection_id, self._chunking(encoder), encoder, lexical, self._store_settings()
            )
            deployments.serve(connection, collection_id, index_id, mode, FusionSettings())
            return collection_id

    def _chunking(self, encoder: Encoder) -> ChunkingSettings:
        """How documents are cut for an index that begins now, and for ever after."""
        return settings_for(encoder, overlap=self.settings.chunk_overlap_tokens)

    def _store_settings(self) -> dict[str, Any]:
        """What an index that begins now is made with, and with what it is made again."""
        if not self.settings.qdrant.url:
            return {}
        from nvr_rag.stores.server_options import creation

        return creation(self.settings.qdrant)

    def adopt(
        self, source: str, *, parent: str | None = None, training: Mapping[str, Any] | None = None
    ) -> registry.EncoderVersion:
        """Check a model directory, a hub id or the bundled model, copy it into the data folder and register it.

        Where nothing is said of how it was made, where it came from is kept. Doing it again is fine. Raises
        EncoderError: what is wrong with which file.
        """
        from nvr_rag.encoders.torch import load_encoder

        encoder = load_encoder(source, threads=self.settings.threads)
        encoder.encode_documents(["a model may load and still make no vectors"])
        kept = self._keep(encoder, source)
        with self.database.write() as connection:
            registry.register(connection, encoder, kept, parent=parent, training=training or _origin(source))
            return registry.get(connection, encoder.fingerprint)

    def discard(self, fingerprint: str) -> int:
        """Forget an encoder version and delete its copy in the data folder; the bytes that are free again.

        Raises NotFound, Conflict for a bundled model and while an index needs it.
        """
        with self.database.write() as connection:
            if registry.usable(connection, fingerprint).source == BUNDLED:
                raise Conflict(f"{BUNDLED} comes with the installation and takes no room here; there is nothing to do")
            registry.remove(connection, fingerprint)
        kept = self.home / "models" / fingerprint
        freed = disk.allocated(kept)
        try:
            disk.remove(kept)
        except OSError as error:
            raise ConfigurationError(
                f"the model is removed, but some of its files could not be deleted ({error.strerror}); delete what "
                f"is left of {fingerprint} in {kept.parent}"
            ) from error
        return freed

    def propose(self, collection: str, encoder: str, *, run: str | None = None) -> Deployment:
        """Begin an index of a collection with another encoder version, beside the one that serves, and a candidate that
        answers from it as the serving deployment does. Whoever keeps the indexes up builds it.

        `run` names the lap that asks: it gets one candidate, however often it asks. Raises NotFound, StoreError when
        the disk is too small for it.
        """
        loaded = self.encoder(encoder)
        with self.database.write() as connection:
            collection_id = collections.find(connection, collection, lock=True)
            found = deployments.of_run(connection, run) if run else None
            if found is not None:
                if indexes.get(connection, found.index_id).encoder != encoder:
                    raise Conflict(
                        f"the lap {run} has made a candidate with another encoder already; begin another lap"
                    )
                return found
            registry.usable(connection, encoder)  # it may have been removed since it was loaded
            now = deployments.serving(connection, collection)
            serving = indexes.get(connection, now.index_id)
            self.check_room(serving.name)
            index_id = indexes.create(
                connection, collection_id, self._chunking(loaded), loaded, _lexical(serving), self._store_settings()
            )
            made = deployments.propose(connection, collection_id, index_id, now.mode, now.fusion, run=run)
            return deployments.get(connection, made)

    def check_room(self, index: str) -> None:
        """Raise StoreError when there is no room for another index as large as this one."""
        if self.settings.qdrant.url:
            return
        needed, left = disk.allocated(self.home / "indexes" / index) + _SPARE_BYTES, disk.free(self.home)
        if left < needed:
            raise StoreError(
                f"another index needs about {needed / 1e6:,.0f} MB in {self.home}, and {left / 1e6:,.0f} MB are free; "
                "make room, or retire an index that is not needed (nvr-rag index list)"
            )

    def rebuild_if_lost(self, index_id: int) -> bool:
        """Start an index over when the store has lost it, or has another under its name, or it was built with other
        lexical settings; True when that was needed. It is then to be caught up."""
        try:
            self.index(index_id).points.get([indexes.NOBODY])
        except (IndexMissing, IndexMismatch):
            self.rebuild(index_id)
            return True
        return False

    def rebuild(self, index_id: int) -> None:
        """Drop an index and begin it anew; it is then to be caught up. Waits for whoever changes it in this process.

        Raises StoreBusy and Maintained while another process has it.
        """
        lease = self._lease(index_id)
        if lease is not None:
            lease.hold()  # nobody fills it while it is dropped; kept by whoever catches it up from here
        opened = self._indexes.get(index_id)
        with opened.maintenance if opened is not None else nullcontext(), self._opening:
            if opened is not None:
                self._indexes.pop(index_id, None)
                with suppress(StoreError):  # it may be past closing in order
                    opened.points.close()
            with self.database.read() as connection:
                info = indexes.get(connection, index_id)
            indexes.start_over(self.database, self.store, index_id, _lexical(info))
            self.index(index_id)

    def location(self, source: str) -> str:
        """Where the source of an encoder version is, for `load_encoder`: paths are relative to the data folder."""
        kept = source.startswith(f"{_MODELS}/")  # also when it is missing: it is no name at a hub
        return str(self.home / source) if kept else source

    def _forget_encoder(self, encoder: Encoder) -> None:
        """Let go of an encoder that no open index needs: a server may see many come and go."""
        with self._opening:
            needed = any(index.encoder is encoder for index in self._indexes.values())
            if not needed and encoder is not self._default:
                self._encoders.pop(encoder.fingerprint, None)
                self._loaded = {source: one for source, one in self._loaded.items() if one is not encoder}

    def _load(self, source: str) -> Encoder:
        if source not in self._loaded:
            from nvr_rag.encoders.torch import load_encoder  # torch takes seconds to import; most commands do without

            self._loaded[source] = load_encoder(self.location(source), threads=self.settings.threads)
        return self._loaded[source]

    def _keep(self, encoder: Encoder, source: str) -> str:
        """Where the encoder can be loaded from for as long as it is registered: a copy in the data folder, by a path
        relative to it, because a directory may be changed and a hub id may move. Bundled models stay where they are."""
        if source == BUNDLED:
            return source
        from nvr_rag.encoders.torch import export

        kept = f"{_MODELS}/{encoder.fingerprint}"
        if not (self.home / kept).is_dir():
            (self.home / _MODELS).mkdir(exist_ok=True)
            export(encoder, self.home / kept)
        return kept


def _origin(source: str) -> dict[str, str] | None:
    """What is kept of where a model came from, as its copy has another name."""
    if source == BUNDLED:
        return None
    return {"added_from": str(Path(source).resolve()) if Path(source).is_dir() else source}


def _lexical(info: IndexInfo) -> LexicalEncoder:
    return LexicalEncoder(str(info.lexical["language"]))


def _make_home(home: Path) -> Path:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {home} cannot be made ({error.strerror}); set NVR_HOME to a folder you can write to"
        ) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the data folder {home} cannot be written to by this user; change its permissions, or set NVR_HOME to "
            "another folder"
        )
    return home.absolute()


def _make_store(settings: Settings, home: Path) -> Store:
    if settings.qdrant.url:
        from nvr_rag.stores.server import connect

        return connect(settings.qdrant)
    from nvr_rag.stores.edge import EdgeStore

    return EdgeStore(home / "indexes")
