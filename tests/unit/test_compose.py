"""compose.yaml without Docker: what is in it fits together, fits the code, and is closed to others."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from pydantic import BaseModel
from sqlalchemy.engine import make_url
from typer.main import get_command

import ingest.worker
import nvr_rag.running.working
from nvr_rag import __version__
from nvr_rag.api.server import GRACE_SECONDS
from nvr_rag.cli import app
from nvr_rag.running.services import installed
from nvr_rag.running.worker import chosen
from nvr_rag.settings import Settings, load_settings
from tests.composition import FILE, ROOT, composition, seconds
from tests.qdrant_stand_in import Fault, StandIn

COMPOSE = composition()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("api", "worker", "trainer", "trainer-gpu")
DOCKERFILE: str = SERVICES["api"]["build"]["dockerfile_inline"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EVERY = pytest.mark.parametrize("name", SERVICES)
EACH_OF_OURS = pytest.mark.parametrize("name", OURS)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash's")


def instructions(word: str) -> list[str]:
    """What comes after an instruction of the Dockerfile, wherever it stands."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split(maxsplit=1)[:1] == [word]]


def settings_names(model: type[BaseModel], prefix: str = "NVR") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}_{name.upper()}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_names(field.annotation, f"{prefix}_{name.upper()}_")


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that the command line would run, and its parameters. Raises a usage error for what it refuses."""
    root: Any = get_command(app)
    context = root.make_context("nvr-rag", list(arguments))
    name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
    return name, command.make_context(name, rest, parent=context).params


def test_the_services() -> None:
    assert set(SERVICES) == {*OURS, "postgres", "qdrant"}
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "trainer-gpu": ["gpu"]
    }
    assert {SERVICES[name]["image"] for name in OURS} == {f"nvr-rag:{__version__}"}
    assert [name for name in SERVICES if "build" in SERVICES[name]] == ["api"]


@EVERY
def test_a_service_is_watched_limited_and_restarted(name: str) -> None:
    service, check = SERVICES[name], SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) <= seconds(check["interval"])
    assert check["retries"] >= 3
    assert seconds(check["start_period"]) >= 60
    assert service["restart"] == "unless-stopped"
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert re.fullmatch(r"\d+g", service["mem_limit"])
    assert service["pids_limit"] > 0


@EVERY
def test_a_service_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service)
    assert any(entry.startswith("/tmp:") for entry in service["tmpfs"])


@EVERY
def test_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+[.\d]*(-[a-z]+)?", SERVICES[name]["image"])


def test_the_base_image_is_pinned() -> None:
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", image) for image in instructions("FROM"))


@EVERY
def test_no_secret_is_in_an_environment_or_on_a_command_line(name: str) -> None:
    """`docker inspect` shows both."""
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|KEY|SECRET|TOKEN", variable):
            assert variable.endswith(("_FILE", "_DIR")), variable
            assert value.startswith("/run/secrets"), variable
        assert urlsplit(value).password is None, variable
    said = str([SERVICES[name].get("command"), SERVICES[name].get("entrypoint"), SERVICES[name]["healthcheck"]])
    assert not re.search(r"://\w+:\w+@|--api-key|--password", said)


def test_secrets_are_files_and_go_to_those_who_need_them() -> None:
    assert {name: set(secret) for name, secret in COMPOSE["secrets"].items()} == {
        "database_password": {"file"},
        "qdrant__api_key": {"file"},
    }
    given = {name: set(service["secrets"]) for name, service in SERVICES.items()}
    both = {"database_password", "qdrant__api_key"}
    assert given == {
        **dict.fromkeys(OURS, both),
        "postgres": {"database_password"},
        "qdrant": {"qdrant__api_key"},
    }


def test_the_secrets_and_what_else_people_put_beside_the_file_stay_out_of_git() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {".secrets/", ".env", "compose.override.yaml"} <= set(ignored)
    assert COMPOSE["secrets"]["database_password"]["file"] == "./.secrets/database_password"


def test_everything_listens_on_loopback_until_it_is_told_otherwise() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"postgres": ["127.0.0.1:54320:5432"], "qdrant": ["127.0.0.1:63330:6333"]}
    assert [name for name, service in SERVICES.items() if "network_mode" in service] == ["api"]
    assert SERVICES["api"]["network_mode"] == "host"
    assert SERVICES["api"]["environment"]["NVR_API__HOST"] == "127.0.0.1"


@EVERY
def test_what_a_service_uses_is_declared(name: str) -> None:
    service = SERVICES[name]
    assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
    assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_what_is_declared_is_used() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == set(COMPOSE["volumes"])
    assert {name for service in SERVICES.values() for name in service.get("networks", [])} == set(COMPOSE["networks"])


@EACH_OF_OURS
def test_a_service_of_ours_waits_for_the_databases_and_shares_the_data_folder(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"] == {key: {"condition": "service_healthy"} for key in ("postgres", "qdrant")}
    assert service["volumes"] == ["home:/data"]
    assert service["environment"]["NVR_HOME"] == "/data"


@EACH_OF_OURS
def test_every_variable_is_a_setting(name: str) -> None:
    known = {*settings_names(Settings), "NVR_CONFIG", "NVR_SECRETS_DIR"}
    assert {"NVR_HOME", "NVR_QDRANT__URL", "NVR_API__PORT"} <= known  # the walk has found something
    assert set(SERVICES[name]["environment"]) <= known


@EACH_OF_OURS
def test_the_settings_that_a_service_gets(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for secret in SERVICES[name]["secrets"]:
        (tmp_path / secret).write_text(f"the {secret}\n", encoding="utf-8")
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, value)
    assert os.environ["NVR_SECRETS_DIR"] == "/run/secrets"
    monkeypatch.setenv("NVR_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    url = make_url(settings.sql_url())
    address = ("127.0.0.1", 54320) if name == "api" else ("postgres", 5432)
    assert (url.username, url.password, url.database) == ("nvr", "the database_password", "nvr")
    assert (url.host, url.port) == address
    assert settings.qdrant.url == ("http://127.0.0.1:63330" if name == "api" else "http://qdrant:6333")
    assert settings.qdrant.api_key is not None
    assert settings.qdrant.api_key.get_secret_value() == "the qdrant__api_key"
    assert (settings.api.host, settings.api.port) == ("127.0.0.1", 8000)


def test_the_servers_are_what_the_services_expect() -> None:
    environment = SERVICES["postgres"]["environment"]
    assert (environment["POSTGRES_USER"], environment["POSTGRES_DB"]) == ("nvr", "nvr")
    assert environment["POSTGRES_PASSWORD_FILE"] == "/run/secrets/database_password"
    moved = composition(API_HOST="0.0.0.0", API_PORT="1", POSTGRES_PORT="2", QDRANT_PORT="3", SECRETS="/s")
    assert moved["services"]["api"]["environment"]["NVR_API__HOST"] == "0.0.0.0"
    assert moved["services"]["api"]["environment"]["NVR_API__PORT"] == "1"
    assert moved["services"]["api"]["environment"]["NVR_DATABASE_URL"] == "postgresql://nvr@127.0.0.1:2/nvr"
    assert moved["services"]["api"]["environment"]["NVR_QDRANT__URL"] == "http://127.0.0.1:3"
    assert moved["services"]["postgres"]["ports"] == ["127.0.0.1:2:5432"]
    assert moved["services"]["qdrant"]["ports"] == ["127.0.0.1:3:6333"]
    assert moved["secrets"]["qdrant__api_key"]["file"] == "/s/qdrant__api_key"


@EACH_OF_OURS
def test_every_command_is_one(name: str) -> None:
    command, options = parse(SERVICES[name]["command"])
    if name == "api":
        assert (command, options["api_only"], options["host"]) == ("serve", True, None)
        return
    kinds = {"worker": "index,ingest", "trainer": "train", "trainer-gpu": "train"}[name]
    assert (command, options["kinds"], options["check"]) == ("worker", kinds, False)
    assert [service.work for service in chosen(installed(), kinds.split(","))] == kinds.split(",")
    program, *check = SERVICES[name]["healthcheck"]["test"][1:]
    assert program == "nvr-rag"
    assert parse(check)[1]["check"] is True


def test_a_command_that_is_none_would_be_found() -> None:
    with pytest.raises(typer.TyperException):
        parse(["serve", "--api-onyl"])


def test_there_is_time_to_stop_in_order() -> None:
    jobs = nvr_rag.running.working.STOP_SECONDS  # of the indexer, and then of the ingester
    worst = jobs + ingest.worker.STOP_SECONDS + jobs
    assert all(seconds(SERVICES[name]["stop_grace_period"]) > max(worst, GRACE_SECONDS) for name in OURS)


def test_what_the_image_copies_is_there() -> None:
    sources = [source for line in instructions("COPY") for source in shlex.split(line)[:-1]]
    assert {"pyproject.toml", "nvr_rag", "ingest", "training"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_installs_and_runs_what_there_is() -> None:
    runs = instructions("RUN")
    installs = [line for line in runs if "pip install" in line]
    extras = {extra for line in installs for found in re.findall(r"\.\[([\w,]+)\]", line) for extra in found.split(",")}
    assert extras == {"mcp", "postgres", "training"}
    assert extras <= set(PROJECT["optional-dependencies"])
    assert "--constraint requirements.lock" in installs[0]
    assert instructions("ENTRYPOINT") == ['["nvr-rag"]']
    assert "nvr-rag" in PROJECT["scripts"]
    assert set(instructions("ARG")) == set(SERVICES["api"]["build"]["args"])


def test_the_image_has_the_user_and_the_folder_that_the_services_use() -> None:
    users = {SERVICES[name]["user"] for name in OURS}
    assert users == set(instructions("USER"))
    (made,) = (line for line in instructions("RUN") if "useradd" in line)
    assert f"--uid {users.pop().partition(':')[0]} " in made
    assert "install --directory --owner nvr --group nvr --mode 700 /data" in made


def test_every_address_is_a_service_or_loopback() -> None:
    hosts = set(re.findall(r"\w+://(?:\w+@)?([\w.]+)", FILE.read_text(encoding="utf-8")))
    assert hosts == {"127.0.0.1", "postgres", "qdrant"}


def test_the_gpu_is_reserved_for_one_trainer() -> None:
    plain, gpu = dict(SERVICES["trainer"]), dict(SERVICES["trainer-gpu"])
    (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert gpu.pop("profiles") == ["gpu"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert gpu == plain


def start_qdrant(folder: Path, key: bytes | None) -> subprocess.CompletedProcess[str]:
    """What the container runs, with a program in place of the image's that shows the file it is pointed to."""
    if key is not None:
        (folder / "qdrant__api_key").write_bytes(key)
    program = folder / "entrypoint.sh"
    program.write_text('#!/bin/bash\n[ "$1" = --config-path ] && cat "$2" && stat -c %a "$2" >&2\n', encoding="utf-8")
    program.chmod(0o755)
    shell, options, script = SERVICES["qdrant"]["entrypoint"]
    assert (shell, options) == ("/bin/bash", "-euc")
    script = script.replace("/run/secrets/", f"{folder}/").replace("/tmp/key.yaml", f"{folder}/key.yaml")
    return subprocess.run(["bash", options, script], cwd=folder, capture_output=True, text=True, timeout=30)


@needs_bash
@pytest.mark.parametrize("key", ["0a1b", "'", 'it\'s: {a} "key" # $HOME `id` %s \\n', "ключ"])
def test_qdrant_is_started_with_the_key(tmp_path: Path, key: str) -> None:
    started = start_qdrant(tmp_path, f"{key}\n".encode())
    assert yaml.safe_load(started.stdout) == {"service": {"api_key": key}}
    assert (started.returncode, started.stderr) == (0, "600\n")


@needs_bash
@pytest.mark.parametrize("key", [None, b"", b"\n"])
def test_qdrant_is_not_started_without_a_key(tmp_path: Path, key: bytes | None) -> None:
    started = start_qdrant(tmp_path, key)
    assert started.returncode != 0
    assert started.stdout == ""


@needs_bash
def test_qdrant_is_healthy_when_it_says_so() -> None:
    shell, option, script = SERVICES["qdrant"]["healthcheck"]["test"][1:]
    assert (shell, option) == ("/bin/bash", "-c")

    def healthy() -> bool:
        asked = script.replace("/127.0.0.1/6333", f"/127.0.0.1/{server.port}")
        return subprocess.run(["bash", option, asked], capture_output=True, timeout=30).returncode == 0

    with StandIn(api_key="none is sent") as server:
        assert healthy()
        server.fail(Fault(status=503))
        assert not healthy()
    assert not healthy()
