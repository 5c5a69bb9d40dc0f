"""The settings of a process: environment variables with the prefix NVR_, nested by __, over an optional folder of
secrets, over an optional TOML file.

    NVR_HOME=/srv/nvr NVR_API__PORT=9000 nvr-rag serve
    NVR_CONFIG=/etc/nvr-rag.toml nvr-rag serve          (the file holds the same names in lower case)
    NVR_SECRETS_DIR=/run/secrets nvr-rag serve          (a file a setting: database_password, qdrant__api_key)

Read once, passed in; nothing fetches them from a global.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from nvr_rag.encoders.bundled import BUNDLED
from nvr_rag.errors import ConfigurationError

_FILE = "corpus.sqlite3"  # the database in the data folder


class QdrantSettings(BaseModel):
    """A Qdrant server or cluster; without a URL, indexes are Edge shards in the data folder.

    What is said of shards, copies, memory and payload indexes holds for indexes made from then on: each keeps what it
    was made with, also when it is rebuilt.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: str | None = Field(default=None, pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$")
    """Such as http://localhost:6333, without a user name or a key; https:// for TLS. Port 6333 unless it names one."""
    api_key: SecretStr | None = None
    """Sent with every request."""
    ca_file: Path | None = None
    """PEM file of the authorities that may have signed the server's certificate; default: the usual public ones."""
    client_certificate_file: Path | None = None
    """PEM file with the certificate that a server asks its clients for."""
    client_key_file: Path | None = None
    """PEM file with the key of the client certificate."""
    grpc: bool = False
    """Speak gRPC instead of HTTP: less work a request, one more port to open."""
    grpc_port: int = Field(default=6334, ge=1, le=65535)
    """The server's port for gRPC; its host is that of the URL."""
    timeout_seconds: int = Field(default=10, gt=0)
    """How long one search, look-up or batch of writes may take, repetitions included."""
    prefix: str = Field(default="nvr-", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """How the names of our Qdrant collections begin, where a server is shared."""
    batch_points: int = Field(default=256, ge=1)
    """Most points in one request; a server's strict mode may set a lower limit."""
    batch_bytes: int = Field(default=8 * 2**20, ge=2**16)
    """About the most bytes in one request; a server takes 32 MiB unless told otherwise."""
    write_ordering: Literal["weak", "medium", "strong"] = "medium"
    """Whether all writes go through one leader of a shard: weak no, medium any, strong always the same."""
    read_consistency: Literal["majority", "quorum", "all"] | Annotated[int, Field(ge=1)] | None = None
    """How many copies of a shard must agree on an answer; default: one. "majority" needs every copy to be up."""
    exact: bool = False
    """Compare a query with every vector instead of walking the HNSW graph: slower, and nothing is overlooked."""
    oversampling: float | None = Field(default=None, ge=1)
    """How many times k candidates of a quantized index are compared again in full; default: int8 2, binary 4."""
    shard_number: int | None = Field(default=None, ge=1)
    """Shards of an index; default: the server decides."""
    replication_factor: int | None = Field(default=None, ge=1)
    """Copies of every shard; default: the server decides, mostly 1."""
    write_consistency_factor: int | None = Field(default=None, ge=1)
    """How many copies must have a write before it counts; default: more than half of replication_factor."""
    quantization: Literal["none", "int8", "binary"] = "none"
    """Smaller copies of the vectors to search first: int8 a quarter, binary 1/32 of the size."""
    quantized_in_ram: bool = True
    """Keep the quantized vectors in memory wherever the vectors are."""
    vectors_on_disk: bool = False
    """Leave the vectors to the page cache instead of memory."""
    payload_on_disk: bool = True
    """The same for the filterable fields; those with an index are in memory anyhow."""
    hnsw_on_disk: bool = False
    """The same for the HNSW graph."""
    metadata_indexes: dict[
        Annotated[str, Field(pattern=r"^[\w-]+(\.[\w-]+)*$")], Literal["keyword", "number", "boolean", "tenant"]
    ] = {}
    """Metadata fields that filters may use under strict mode, and fast: {"year": "number", "team": "keyword"}. "tenant"
    is a keyword by which nearly every search is filtered; without one, it is the permissions."""

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        """What does not would be quoted in the error of the request that it spoils."""
        if key is not None and not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
            raise ValueError("has characters that no key has; look for a line break at its end")
        return key

    @field_validator("metadata_indexes")
    @classmethod
    def _without_metadata(cls, indexes: dict[str, str]) -> dict[str, str]:
        for field in indexes:
            if field.startswith("metadata."):
                raise ValueError(f"name the field {field.removeprefix('metadata.')}, without metadata.")
        return indexes


class ApiSettings(BaseModel):
    """The HTTP server."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach needs API keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_body_bytes: int = Field(default=20_000_000, gt=0)
    """Larger request bodies are refused."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """How often a key may ask that says nothing itself; default: no limit. Counted by each server process."""
    timeout_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """How long the server works on one request before it says that the answer would come too late."""
    max_in_flight: int = Field(default=256, ge=1)
    """How many requests a server process takes at a time; more are told to come again a little later."""


class IngestSettings(BaseModel):
    """Reading files."""

    model_config = ConfigDict(extra="forbid")

    roots: Annotated[list[Path], NoDecode] = []
    """Folders that POST /v1/ingest may name, with all that is below them, such as /srv/documents:/srv/mail; default:
    none. Set alike for the server and for the workers that read them."""
    max_file_bytes: int = Field(default=100 * 2**20, gt=0)
    """Larger files are reported as failed, and refused as an upload."""
    max_upload_bytes: int = Field(default=2**30, gt=0)
    """How large one upload may be, all its files together."""
    parse_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long one file may take to parse before its parser is killed."""
    parse_memory_bytes: int = Field(default=2 * 2**30, gt=0)
    """How much memory a parser may use before it is stopped."""
    max_pages: int = Field(default=10_000, ge=1)
    """PDFs and presentations with more pages are reported as failed."""
    ocr_pages: int = Field(default=1_000, ge=0)
    """How many scanned pages of one PDF are read by OCR, where Tesseract is installed; 0 = none."""
    parsers: int = Field(default=1, ge=1, le=64)
    """How many files are parsed at a time, each in a process of its own."""

    @field_validator("roots", mode="before")
    @classmethod
    def _split(cls, roots: object) -> object:
        """From a variable: a list as JSON, or as every other list of folders is written."""
        if not isinstance(roots, str):
            return roots
        if roots.lstrip().startswith("["):
            return json.loads(roots)
        return [root for root in roots.split(os.pathsep) if root.strip()]

    @field_validator("roots")
    @classmethod
    def _absolute(cls, roots: list[Path]) -> list[Path]:
        whole = [root.expanduser() for root in roots]
        for root in whole:
            if not root.is_absolute():
                raise ValueError(f"{str(root)!r} is not an absolute path")
        return whole


class TrainingSettings(BaseModel):
    """The feedback loop."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = "quick"
    """A recipe that comes with the package, or a TOML file."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of mining and training; default: all but one beside a server, otherwise all."""
    min_queries: int = Field(default=200, ge=1)
    """Judged holdout queries below which the gate decides nothing."""
    min_gain: float = Field(default=0.0, ge=0, lt=1)
    """Mean gain in nDCG@10 that a candidate must reliably exceed."""


class RetentionSettings(BaseModel):
    """How long things are kept that nothing needs any more; empty or "none" = for ever. What answers, what is built and
    what can be gone back to is never among them."""

    model_config = ConfigDict(extra="forbid")

    previous_days: float | None = Field(default=30, ge=0)
    """How long deployments that have served stay ready to be gone back to; the last one of a collection always is."""
    encoder_days: float | None = Field(default=90, ge=0)
    """How long the files of an encoder version stay that no index and no fine-tuning needs any more."""
    run_days: float | None = Field(default=90, ge=0)
    """How long the folder and the report of a finished lap stay."""
    run_count: int = Field(default=10, ge=1)
    """So many of the newest laps stay, however old they are."""
    job_days: float | None = Field(default=30, ge=0)
    """How long a job that has ended is remembered."""
    version_days: float | None = Field(default=30, ge=0)
    """How long the text of a version stays that another one has replaced, or whose document was deleted."""
    query_days: float | None = Field(default=None, ge=0)
    """How long a query stays in the log on which nobody has given feedback."""

    @field_validator("*", mode="before")
    @classmethod
    def _for_ever(cls, value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


class Settings(BaseSettings):
    """Everything that a process of nvr-rag can be told."""

    model_config = SettingsConfigDict(env_prefix="NVR_", env_nested_delimiter="__", extra="forbid")

    home: Path = Path("~/.nvr-rag")
    """The data folder: database, indexes, models. NVR_HOME."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of a PostgreSQL database; default: SQLite in the data folder."""
    database_password: SecretStr | None = None
    """Put into database_url, which then has none: so the URL may be seen while the password comes from a file."""
    encoder: str = BUNDLED
    """What new collections are encoded with: bundled:<name>, a model directory, or a hub id."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for the encoder; default: as many as torch takes."""
    reranker: str | None = None
    """A cross-encoder for searches that ask to be reranked: a model directory or a hub id; default: none."""
    rerank_depth: int = Field(default=50, ge=1, le=1000)
    """How many candidates a search that asks for it has reranked, when it asks for fewer hits."""
    log_format: Literal["text", "json"] = "text"
    """How a server and a worker write their log: lines for people, or one JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """What is worth a line; from info on every request is."""
    chunk_overlap_tokens: int = Field(default=0, ge=0)
    """Tokens at most that a chunk repeats of the one before it, in indexes made from then on; each keeps its own."""
    qdrant: QdrantSettings = QdrantSettings()
    api: ApiSettings = ApiSettings()
    ingest: IngestSettings = IngestSettings()
    training: TrainingSettings = TrainingSettings()
    retention: RetentionSettings = RetentionSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file, folder = os.environ.get("NVR_CONFIG"), os.environ.get("NVR_SECRETS_DIR")
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        secrets = (_secrets_in(folder, file_secret_settings),) if folder else ()
        return (init_settings, env_settings, *secrets, *toml)

    @model_validator(mode="after")
    def _put_password_into_url(self) -> Settings:
        if self.database_password is not None:
            self.database_url = _with_password(self.database_url, self.database_password)
            self.database_password = None  # a copy of these settings must not put it in twice
        return self

    def sql_url(self) -> str:
        """SQLAlchemy URL of the database, with its password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.expanduser().absolute() / _FILE}"


def load_settings() -> Settings:
    """The settings of this process. Raises ConfigurationError with the names and the reasons, never with a secret."""
    file, folder = os.environ.get("NVR_CONFIG"), os.environ.get("NVR_SECRETS_DIR")
    if file and not Path(file).is_file():
        raise ConfigurationError(f"NVR_CONFIG names {file}, which is not a file")
    if folder:
        _check_secrets(folder)
    where = " and ".join(["the environment", *(name for name in (folder, file) if name)])
    try:
        return Settings()
    except ValidationError as error:
        reasons = "; ".join(
            f"{_variable(item['loc'])}: {item['msg']}" for item in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(f"settings from {where} cannot be used: {reasons}") from None
    except SettingsError as error:  # a group of settings in one variable that is not JSON
        names = ", ".join(f"NVR_{name.upper()}" for name in Settings.model_fields if f'"{name}"' in str(error))
        raise ConfigurationError(f"{names} is not valid JSON; set the values one by one, as NVR_API__PORT") from None
    except ValueError as error:
        raise ConfigurationError(f"NVR_CONFIG: {file} is not valid TOML: {error}") from error


def _variable(location: tuple[int | str, ...]) -> str:
    """The variable that a value can come from; what is wrong between several values is told of the password."""
    return f"NVR_{'__'.join(str(part) for part in location or ('database_password',)).upper()}"


def _secrets_in(folder: str, source: PydanticBaseSettingsSource) -> NestedSecretsSettingsSource:
    """A folder with files that are named like settings, __ between the parts, in place of the library's own source."""
    return NestedSecretsSettingsSource(source, folder, secrets_prefix="")


def _check_secrets(folder: str) -> None:
    """Raise ConfigurationError when a secret cannot be read: going on without it would only fail later."""
    if not (os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)):
        raise ConfigurationError(f"NVR_SECRETS_DIR names {folder}, which is not a folder that this user may read")
    try:
        _secrets_in(folder, SecretsSettingsSource(Settings))
    except UnicodeDecodeError:  # its words would show a part of the secret
        raise ConfigurationError(f"NVR_SECRETS_DIR: a file in {folder} is not UTF-8 text") from None
    except (OSError, SettingsError) as error:
        raise ConfigurationError(
            f"NVR_SECRETS_DIR: the secrets cannot be read ({error}); let the user with the id {os.geteuid()} read them"
        ) from error


def _with_password(url: SecretStr | None, password: SecretStr) -> SecretStr:
    from sqlalchemy.engine import make_url  # takes a tenth of a second, and most settings need it not
    from sqlalchemy.exc import SQLAlchemyError

    try:
        parsed = make_url(url.get_secret_value() if url else "")
    except (SQLAlchemyError, ValueError):  # its message may hold a part of a password
        parsed = None
    if parsed is None or parsed.get_backend_name() != "postgresql" or parsed.password is not None:
        raise ValueError("NVR_DATABASE_URL must be the URL of a PostgreSQL database, without a password of its own")
    whole = parsed.set(password=password.get_secret_value())
    return SecretStr(whole.render_as_string(hide_password=False))
