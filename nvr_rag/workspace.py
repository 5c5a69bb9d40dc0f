"""What one process works with: settings, database, store, and the encoders and indexes that it has opened.

Opened from settings; everything expensive is made on first use and shared between threads. Commands, the server and the
worker all begin here.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from nvr_rag import collections, deployments, indexes, registry
from nvr_rag.chunkings import settings_for
from nvr_rag.db.migrate import migrate
from nvr_rag.db.session import Database, sqlite_url
from nvr_rag.encoders.base import Encoder
from nvr_rag.encoders.bundled import BUNDLED
from nvr_rag.errors import ConfigurationError, EncoderMismatch, IndexMismatch, IndexMissing
from nvr_rag.fusion import FusionSettings
from nvr_rag.indexes import IndexInfo, LiveIndex
from nvr_rag.retriever import Retriever
from nvr_rag.settings import Settings
from nvr_rag.stores.base import Store
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.types import Mode


class Workspace:
    """An open data folder. Use as a context manager, or call `close`."""

    def __init__(self, settings: Settings, *, store: Store | None = None, encoder: Encoder | None = None) -> None:
        """Open the data folder, made and migrated as needed.

        `store` and `encoder` (the default for new collections) replace those that the settings name. Raises
        ConfigurationError, NewerDataFolder, DatabaseUnavailable.
        """
        self.settings = settings
        self.home = _make_home(settings.home.expanduser())
        url = settings.database_url
        self.database = Database(url.get_secret_value() if url else sqlite_url(self.home / "corpus.sqlite3"))
        try:
            migrate(self.database)
            self.store = store or _make_store(settings, self.home)
        except BaseException:
            self.database.close()
            raise
        self.retriever = Retriever(self.database, self.index)
        self._default = encoder
        self._encoders: dict[str, Encoder] = {encoder.fingerprint: encoder} if encoder else {}
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
        with self._opening:
            if fingerprint not in self._encoders:
                with self.database.read() as connection:
                    version = registry.get(connection, fingerprint)
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

    def index(self, index_id: int) -> LiveIndex:
        """An index, opened on first use and kept open. Raises as `indexes.open_index` does."""
        opened = self._indexes.get(index_id)
        if opened is not None:
            return opened
        with self._opening:
            if index_id not in self._indexes:
                with self.database.read() as connection:
                    info = indexes.get(connection, index_id)
                self._indexes[index_id] = indexes.open_index(
                    self.store, info, lambda: self.encoder(info.encoder), _lexical(info)
                )
            return self._indexes[index_id]

    def close_index(self, index_id: int) -> None:
        """Let go of an index, once whoever changes it has finished, so that it may be dropped or owned elsewhere."""
        with self._opening:
            opened = self._indexes.pop(index_id, None)
        if opened is not None:
            with opened.maintenance:
                opened.points.close()

    def create_collection(self, name: str, *, language: str = "english", mode: Mode = Mode.HYBRID) -> int:
        """A new collection that is searchable at once; returns its id.

        Raises InvalidInput (name, language), Conflict when it exists.
        """
        collections.check_name(name)
        lexical = LexicalEncoder(language)
        encoder = self.default_encoder()
        source = self._keep(encoder)
        with self.database.write() as connection:
            collection_id = collections.create(connection, name, language)
            registry.register(connection, encoder, source)
            index_id = indexes.create(connection, collection_id, settings_for(encoder), encoder, lexical)
            deployments.serve(connection, collection_id, index_id, mode, FusionSettings())
            return collection_id

    def rebuild_if_lost(self, index_id: int) -> bool:
        """Start an index over when the store has lost it, or has another under its name, or it was built with other
        lexical settings; True when that was needed. It is then to be caught up."""
        try:
            self.index(index_id)
        except (IndexMissing, IndexMismatch):
            with self.database.read() as connection:
                info = indexes.get(connection, index_id)
            indexes.start_over(self.database, self.store, index_id, _lexical(info))
            self.index(index_id)
            return True
        return False

    def _load(self, source: str) -> Encoder:
        if source not in self._loaded:
            from nvr_rag.encoders.torch import load_encoder  # torch takes seconds to import; most commands do without

            kept = self.home / source
            self._loaded[source] = load_encoder(str(kept) if kept.is_dir() else source, threads=self.settings.threads)
        return self._loaded[source]

    def _keep(self, encoder: Encoder) -> str:
        """Where the encoder can be loaded from for as long as it is registered: a copy in the data folder, by a path
        relative to it, because a directory may be changed and a hub id may move. Bundled models stay where they are."""
        if self.settings.encoder == BUNDLED:
            return self.settings.encoder
        from nvr_rag.encoders.torch import export

        source = f"models/{encoder.fingerprint}"
        if not (self.home / source).is_dir():
            (self.home / "models").mkdir(exist_ok=True)
            export(self.settings.encoder, self.home / source)
        return source


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

        key = settings.qdrant.api_key
        return connect(
            settings.qdrant.url,
            api_key=key.get_secret_value() if key else None,
            timeout_seconds=settings.qdrant.timeout_seconds,
        )
    from nvr_rag.stores.edge import EdgeStore

    return EdgeStore(home / "indexes")
