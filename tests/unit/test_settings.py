"""Settings: where they come from, what is refused, and what never shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from nvr_rag.errors import ConfigurationError
from nvr_rag.settings import Settings, load_settings


def test_environment_variables_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_HOME", "/srv/nvr")
    monkeypatch.setenv("NVR_API__PORT", "9000")
    monkeypatch.setenv("NVR_INGEST__PARSE_TIMEOUT_SECONDS", "1.5")
    settings = load_settings()
    assert settings.home == Path("/srv/nvr")
    assert (settings.api.port, settings.api.host) == (9000, "127.0.0.1")
    assert settings.ingest.parse_timeout_seconds == 1.5


def test_a_toml_file_holds_the_same_names_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "nvr.toml"
    file.write_text('encoder = "/models/mine"\n[api]\nport = 1\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("NVR_CONFIG", str(file))
    monkeypatch.setenv("NVR_API__PORT", "2")
    settings = load_settings()
    assert settings.encoder == "/models/mine"
    assert (settings.api.port, settings.api.host) == (2, "0.0.0.0")


def test_values_given_in_code_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_ENCODER", "from-environment")
    assert Settings(encoder="from-code").encoder == "from-code"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NVR_API__PORT", "many"),
        ("NVR_API__PORT", "70000"),
        ("NVR_THREADS", "0"),
        ("NVR_QDRANT__TIMEOUT_SECONDS", "-1"),
        ("NVR_INGEST__MAX_FILE_BYTES", "0"),
        ("NVR_API__POTR", "8000"),
        ("NVR_QDRANT", "not json"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        load_settings()


@pytest.mark.parametrize("text", ["port = = 1", 'hoem = "/srv"', "[api]\nprot = 1\n", 'encoder = "\ud800"'])
def test_a_bad_file_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    file = tmp_path / "nvr.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    monkeypatch.setenv("NVR_CONFIG", str(file))
    with pytest.raises(ConfigurationError, match=r"nvr\.toml"):
        load_settings()


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_CONFIG", "/nowhere/nvr.toml")
    with pytest.raises(ConfigurationError, match=r"/nowhere/nvr\.toml"):
        load_settings()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_DATABASE_URL", "postgresql://me:hunter2@db/nvr")
    monkeypatch.setenv("NVR_QDRANT__API_KEY", "hunter2")
    settings = load_settings()
    assert settings.qdrant.api_key is not None
    assert settings.qdrant.api_key.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_secrets_do_not_show_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_QDRANT", '{"api_key": "hunter2", "timeout_seconds": "hunter2"}')
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def secrets(folder: Path, **values: str | bytes) -> str:
    """A folder with a file for each secret."""
    folder.mkdir()
    for name, value in values.items():
        (folder / name).write_bytes(value if isinstance(value, bytes) else value.encode())
    return str(folder)


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Characters of the password that mean something in a URL arrive as they are; the end of the line does not."""
    folder = secrets(tmp_path / "secrets", database_password="p@ss/w:rd%2F?#\n", qdrant__api_key="key\n", other="x")
    monkeypatch.setenv("NVR_SECRETS_DIR", folder)
    monkeypatch.setenv("NVR_DATABASE_URL", "postgresql://me@db:5433/nvr?sslmode=require")
    settings = load_settings()
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    assert (url.username, url.password, url.host, url.port) == ("me", "p@ss/w:rd%2F?#", "db", 5433)
    assert (url.database, dict(url.query)) == ("nvr", {"sslmode": "require"})
    assert settings.qdrant.api_key is not None
    assert settings.qdrant.api_key.get_secret_value() == "key"
    assert "p@ss" not in f"{settings!r} {settings.model_dump_json()}"
    assert Settings(**settings.model_dump()).database_url == settings.database_url  # not put in twice


def test_the_environment_wins_over_secrets_and_secrets_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "nvr.toml"
    file.write_text('encoder = "file"\nthreads = 1\n[qdrant]\napi_key = "file"\nprefix = "file"\n')
    monkeypatch.setenv("NVR_CONFIG", str(file))
    monkeypatch.setenv("NVR_SECRETS_DIR", secrets(tmp_path / "secrets", encoder="secret", qdrant__api_key="secret"))
    monkeypatch.setenv("NVR_ENCODER", "environment")
    settings = load_settings()
    assert (settings.encoder, settings.threads, settings.qdrant.prefix) == ("environment", 1, "file")
    assert settings.qdrant.api_key is not None
    assert settings.qdrant.api_key.get_secret_value() == "secret"


@pytest.mark.parametrize(
    "url", [None, "sqlite:///x.db", "postgresql://me:hunter3@db/nvr", "postgresql://me@db:hunter3/"]
)
def test_a_password_needs_a_url_without_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str | None) -> None:
    monkeypatch.setenv("NVR_SECRETS_DIR", secrets(tmp_path / "secrets", database_password="hunter2"))
    if url:
        monkeypatch.setenv("NVR_DATABASE_URL", url)
    with pytest.raises(ConfigurationError, match=r"NVR_DATABASE_PASSWORD: .*NVR_DATABASE_URL must be") as caught:
        load_settings()
    assert "hunter" not in str(caught.value)


def test_secrets_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NVR_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="nowhere, which is not a folder"):
        load_settings()
    monkeypatch.setenv("NVR_SECRETS_DIR", secrets(tmp_path / "binary", qdrant__api_key=b"hunter2\xff"))
    with pytest.raises(ConfigurationError, match="binary is not UTF-8 text"):
        load_settings()
    monkeypatch.setenv("NVR_SECRETS_DIR", secrets(tmp_path / "typo", qdrant__api_kye="hunter2"))
    with pytest.raises(ConfigurationError, match="NVR_QDRANT__API_KYE") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_secret_of_another_user_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = secrets(tmp_path / "secrets", qdrant__api_key="hunter2")
    monkeypatch.setenv("NVR_SECRETS_DIR", folder)
    Path(folder, "qdrant__api_key").chmod(0)
    with pytest.raises(ConfigurationError, match=r"qdrant__api_key.*let the user with the id"):
        load_settings()


@pytest.mark.parametrize(
    ("value", "roots"),
    [("/srv/a:/srv/b", ["/srv/a", "/srv/b"]), ('["/srv/a:b"]', ["/srv/a:b"]), ("", []), ("/srv/a:", ["/srv/a"])],
)
def test_roots_are_a_list_of_folders(monkeypatch: pytest.MonkeyPatch, value: str, roots: list[str]) -> None:
    monkeypatch.setenv("NVR_INGEST__ROOTS", value)
    assert [str(root) for root in load_settings().ingest.roots] == roots


@pytest.mark.parametrize("value", ["srv/a", '["/srv/a"', "[7]"])
def test_a_root_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NVR_INGEST__ROOTS", value)
    with pytest.raises(ConfigurationError, match="NVR_INGEST__ROOTS"):
        load_settings()
