"""Settings: where they come from, what is refused, and what never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

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
