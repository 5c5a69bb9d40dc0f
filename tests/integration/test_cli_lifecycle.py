"""The commands models, index and deploy: a model's way from a directory to the searches, and back."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvr_rag import deployments, disk, indexes, output, registry
from nvr_rag.commands import common
from nvr_rag.registry import SHORT
from nvr_rag.running import processes
from nvr_rag.testing import HashEncoder
from nvr_rag.upkeep import catching_up, rounds
from tests.integration.command_line import CommandLine
from tests.integration.lifecycle import Doubles
from tests.support import document
from tests.unit.encoders.conftest import Build

OTHER = HashEncoder(seed=1).fingerprint


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a data folder with a fox and a whale in the collection "default"."""
    line = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    with line.house() as house:
        house.put(document("fox", "red fox"), document("whale", "blue whale"))
        house.catch_up()
    return line


@pytest.fixture
def known(run: CommandLine, doubles: Doubles) -> CommandLine:
    """The same with another model, OTHER."""
    with run.house() as house:
        doubles.register(house.database, 1)
    return run


@pytest.fixture
def built(known: CommandLine) -> CommandLine:
    """The same with an index of it: index 2, deployment 2."""
    assert known.json("index", "build", "--model", OTHER)["index"]["id"] == 2
    return known


def answering(run: CommandLine) -> tuple[int, str]:
    """Number and encoder of the deployment that answers a search."""
    used = run.json("search", "fox")["deployment"]
    return used["id"], used["encoder"]


def states(run: CommandLine) -> dict[int, str]:
    return {one["id"]: one["state"] for one in run.json("deploy", "list")["deployments"]}


def error(run: CommandLine, *arguments: str, code: int = 1) -> str:
    """What a command that must fail says."""
    message: str = run.json(*arguments, code=code)["error"]["message"]
    return message


# models


def test_a_model_is_copied_and_named_by_its_fingerprint(run: CommandLine, tiny: Build) -> None:
    directory = tiny("prompts")
    added = run.json("models", "add", str(directory))
    model = added["model"]
    assert added["added"] is True
    assert (model["dimension"], model["max_tokens"], model["used_by"]) == (32, 24, [])
    assert (model["added_from"], model["source"]) == (str(directory), f"models/{model['fingerprint']}")
    kept = run.home / "models" / model["fingerprint"]
    assert model["bytes_on_disk"] == disk.allocated(kept) > 0
    shutil.rmtree(directory)  # what happens to it now is nobody's business
    assert (kept / "model.safetensors").is_file()


def test_adding_a_model_twice_is_fine_and_says_so(run: CommandLine, tiny: Build) -> None:
    first = run("models", "add", str(tiny("prompts", "one")))
    again = run("models", "add", str(tiny("prompts", "two")))
    assert first.exit_code == again.exit_code == 0
    short = first.stdout.split()[3].rstrip(".")
    assert first.stdout.startswith(f"Added the model {short}.\n")
    assert again.stdout.startswith(f"The model {short} is here already.\n")
    assert f"nvr-rag index build --collection NAME --model {short}" in again.stderr
    listed = [one for one in run.json("models", "list")["models"] if one["fingerprint"].startswith(short)]
    assert [Path(one["added_from"]).name for one in listed] == ["one"]


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_tokenizer(directory: Path) -> None:
    for path in [*directory.glob("tokenizer*"), *directory.glob("vocab*")]:
        path.unlink()


def no_numbers(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"].fill(np.nan)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupt": (lambda d: os.truncate(d / "model.safetensors", 3000), "damaged or cut off"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "pickle": (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "is a pickle"),
    "code": (lambda d: rewrite(d / "config.json", auto_map={"AutoModel": "m.M"}), "which is never run"),
    "not json": (lambda d: (d / "config.json").write_text("{"), "config.json cannot be read"),
    "empty": (lambda d: [shutil.rmtree(d), d.mkdir()], "config.json is missing"),
    "not there": (shutil.rmtree, "no model directory at"),
    "no numbers": (no_numbers, "vectors that are not numbers"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_model_is_refused_and_leaves_nothing(run: CommandLine, tiny: Build, kind: str) -> None:
    directory = tiny("plain")
    damage, words = BAD[kind]
    damage(directory)
    before = run.json("models", "list")
    found = run.json("models", "add", str(directory), code=1)["error"]
    assert found["type"] == "EncoderError"
    assert words in found["message"]
    assert run.json("models", "list") == before
    assert list((run.home / "models").glob("*")) == []


def test_models_are_listed_with_what_uses_them(built: CommandLine) -> None:
    first, second = built.json("models", "list")["models"]
    assert first["used_by"] == [{"index": 1, "collection": "default", "serves": True}]
    assert second["used_by"] == [{"index": 2, "collection": "default", "serves": False}]
    assert (second["fingerprint"], second["dimension"], second["bytes_on_disk"]) == (OTHER, 64, None)
    lines = built("models", "list").stdout.splitlines()
    assert lines[0].split("\t")[:4] == ["model", "from", "parent", "dimension"]
    assert lines[2].split("\t")[0] == OTHER[:SHORT]
    assert "index 1 (serves default)" in lines[1]
    assert "index 2 (default)" in lines[2]


def test_a_model_is_shown_with_all_that_is_known_of_it(run: CommandLine) -> None:
    child = HashEncoder(seed=7)
    with run.house() as house, house.database.write() as connection:
        training = {"run": "lap-1", "recipe": "quick", "data": {"sha256": "ab"}}
        registry.register(connection, child, "models/x", parent=house.encoder.fingerprint, training=training)
        registry.record(connection, child.fingerprint, {"name": "holdout", "queries": 3}, {"nDCG@10": 0.5})
    model = run.json("models", "show", child.fingerprint[:8])["model"]
    assert (model["parent"], model["run"], model["training"]) == (HashEncoder().fingerprint, "lap-1", training)
    assert (model["spec"]["query_prompt"], model["tokenizer"]) == ("query: ", child.tokenizer_hash)
    (evaluation,) = model["evaluations"]
    assert (evaluation["data"]["name"], evaluation["measures"]) == ("holdout", {"nDCG@10": 0.5})
    shown = run("models", "show", child.fingerprint).stdout
    for words in ("lap-1", '"quick"', "query_prompt", "holdout\t0.5000"):
        assert words in shown


def test_models_that_are_not_there_or_not_named_clearly(run: CommandLine, doubles: Doubles) -> None:
    assert "nvr-rag models list" in error(run, "models", "show", "feed")
    seeds: dict[str, int] = {}
    for seed in range(1, 10_000):
        beginning = HashEncoder(seed=seed).fingerprint[:4]
        if beginning in seeds:
            break
        seeds[beginning] = seed
    with run.house() as house:
        both = [doubles.register(house.database, one) for one in (seeds[beginning], seed)]
    for command in ("show", "remove"):
        found = run.json("models", command, beginning, code=2)["error"]
        assert (found["type"], found["field"]) == ("InvalidInput", "model")
        assert all(fingerprint[:SHORT] in found["message"] for fingerprint in both)


def test_a_model_that_nothing_needs_is_removed_with_its_files_alone(run: CommandLine, tiny: Build) -> None:
    directory = tiny("prompts", "one")
    gone, stays = (run.json("models", "add", str(one))["model"] for one in (directory, tiny("cls", "two")))
    removed = run.json("models", "remove", gone["fingerprint"][:8], "--yes")
    assert removed == {"removed": gone["fingerprint"], "bytes_freed": gone["bytes_on_disk"]}
    assert [path.name for path in (run.home / "models").iterdir()] == [stays["fingerprint"]]
    assert (directory / "model.safetensors").is_file()
    assert "no encoder version" in error(run, "models", "show", gone["fingerprint"])
    assert "no encoder version" in error(run, "index", "build", "--model", gone["fingerprint"])
    back = run.json("models", "add", str(directory))
    assert (back["added"], back["model"]["bytes_on_disk"]) == (True, gone["bytes_on_disk"])


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_removing_a_model_asks(
    run: CommandLine, tiny: Build, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    model = run.json("models", "add", str(tiny()))["model"]["fingerprint"]
    assert "say --yes" in error(run, "models", "remove", model, code=2)
    monkeypatch.setattr(common, "is_watched", lambda: True)
    assert run("models", "remove", model, stdin=answer).exit_code == code
    assert (run.home / "models" / model).is_dir() == bool(code)


def test_a_model_that_an_index_needs_stays(built: CommandLine) -> None:
    kept = built.home / "models" / OTHER
    kept.mkdir(parents=True)
    message = error(built, "models", "remove", OTHER, "--yes")
    assert "is needed by index 2; retire that first (nvr-rag index retire)" in message
    assert kept.is_dir()
    built.json("index", "retire", "2")
    assert built.json("models", "remove", OTHER, "--yes")["removed"] == OTHER
    assert not kept.exists()


def test_files_that_cannot_be_deleted_are_never_taken_for_a_model(
    run: CommandLine, tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (folder / "config.json").unlink()
            raise PermissionError(13, "Permission denied")

    directory = str(tiny())
    model = run.json("models", "add", directory)["model"]["fingerprint"]
    with monkeypatch.context() as patched:
        patched.setattr(disk.shutil, "rmtree", refuse)
        message = error(run, "models", "remove", model, "--yes")
    assert f"(Permission denied); delete what is left of {model} in {run.home / 'models'}" in message
    assert run.json("models", "add", directory)["added"] is True
    assert run.json("index", "build", "--model", model)["index"]["lag"] == 0
    run.json("index", "retire", "2")
    run.json("models", "remove", model, "--yes")
    assert list((run.home / "models").iterdir()) == []


def test_the_bundled_model_is_nobodys_to_remove(run: CommandLine) -> None:
    assert "comes with the installation" in error(run, "models", "remove", "bundled:all-MiniLM-L6-v2", "--yes")
    assert len(run.json("models", "list")["models"]) == 1


# index


def test_an_index_is_built_beside_the_one_that_serves(known: CommandLine) -> None:
    result = known("index", "build", "--model", OTHER[:6])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("Index 2 has all 2 changes of default, after ")
    assert result.stdout.splitlines()[1] == "Make it serve: nvr-rag deploy promote 2 --collection default"
    assert result.stderr == f"Index 2 of default begun with the model {OTHER[:SHORT]}.\n"
    assert answering(known) == (1, HashEncoder().fingerprint)
    first, second = known.json("index", "list")["indexes"]
    assert first["deployments"] == [{"id": 1, "state": "serving"}]
    assert second["deployments"] == [{"id": 2, "state": "candidate"}]
    assert (second["applied_seq"], second["head_seq"], second["lag"], second["state"]) == (2, 2, 0, "live")
    assert second["encoder"] == OTHER
    assert sorted((first["name"], second["name"])) == known.store.names()


def test_the_same_build_again_goes_on_with_the_index(built: CommandLine) -> None:
    with built.house() as house:
        house.put(document("tea", "green tea"))
        house.catch_up()
    again = built.json("index", "build", "--model", OTHER)["index"]
    assert (again["id"], again["encoded"], again["lag"]) == (2, 1, 0)
    assert len(built.json("index", "list")["indexes"]) == 2


def test_a_build_that_is_stopped_goes_on_where_it_was(known: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 1)
    encode = HashEncoder.encode_documents

    def interrupted(self: HashEncoder, inputs: list[str]) -> object:
        if any("whale" in text for text in inputs):
            raise KeyboardInterrupt
        return encode(self, inputs)

    monkeypatch.setattr(HashEncoder, "encode_documents", interrupted)
    result = known("index", "build", "--model", OTHER)
    assert result.exit_code == 130
    assert "Index 2 is not finished; nvr-rag index build --resume 2 goes on with it.\n" in result.stderr
    assert known.json("index", "list")["indexes"][1]["lag"] == 1
    monkeypatch.setattr(HashEncoder, "encode_documents", encode)
    resumed = known.json("index", "build", "--resume", "2")["index"]
    assert (resumed["id"], resumed["encoded"], resumed["lag"]) == (2, 1, 0)
    assert states(known) == {1: "serving", 2: "candidate"}


def test_the_bar_follows_the_index(known: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bars:
        def add_task(self, description: str, total: float | None) -> int:
            return 0

        def update(self, _task: int, **values: Any) -> None:
            drawn.append(values)

    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(output, "progress", lambda: nullcontext(Bars()))
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 1)
    known.json("index", "build", "--model", OTHER)
    # told after every group of chunks and after every round, here one of each a document
    assert [(bar["completed"], bar["total"]) for bar in drawn] == [(0, 2), (1, 2), (1, 2), (2, 2)]
    assert re.fullmatch(r"Building index 2 \([\d.,]+ chunks a second.*\)", drawn[0]["description"])


def test_stopping_to_watch_a_server_build(known: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with known.house() as house:
        processes.announce(house.database, "serve")
    monkeypatch.setattr(catching_up, "settle", interrupted)
    result = known("index", "build", "--model", OTHER)
    assert result.exit_code == 130
    assert "The server goes on building index 2; nvr-rag index build --resume 2 shows how far" in result.stderr


def test_an_index_that_can_be_gone_back_to_is_brought_up_as_well(built: CommandLine) -> None:
    built.json("deploy", "promote", "2")
    with built.house() as house:
        house.put(document("tea", "green tea"))
    result = built("index", "build", "--resume", "1")
    assert result.stdout.splitlines()[1] == "Make it serve: nvr-rag deploy rollback 1 --collection default"
    serving = built("index", "build", "--resume", "2")
    assert serving.stdout.splitlines()[1] == "Deployment 2 answers from it already."


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "feedfeed"], 1, "nvr-rag models list"),
        (["--model", OTHER, "--collection", "nope"], 1, "no collection 'nope'; there are: default"),
        (["--resume", "9"], 1, "no index 9; nvr-rag index list"),
        (["--resume", "2"], 1, "index 2 was given up"),
        (["--resume", "1", "--collection", "other"], 1, "one of the collection 'default', not of 'other'"),
        (["--resume", "many"], 2, "valid integer"),
        (["--resume", "1", "--model", OTHER], 2, "--resume INDEX"),
        ([], 2, "--model FINGERPRINT"),
    ],
)
def test_builds_that_are_refused(built: CommandLine, arguments: list[str], code: int, words: str) -> None:
    with built.house() as house:
        house.workspace.create_collection("other")
        with house.database.write() as connection:
            deployments.reject(connection, 2)
    before = built.json("index", "list")
    assert words in error(built, "index", "build", *arguments, code=code)
    assert built.json("index", "list") == before


def test_without_room_on_the_disk_nothing_is_begun(known: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free", lambda folder: 10 * 2**20)
    message = error(known, "index", "build", "--model", OTHER)
    assert "another index needs about 67 MB" in message
    assert "10 MB are free; make room" in message
    assert len(known.json("index", "list")["indexes"]) == 1
    assert states(known) == {1: "serving"}


def test_an_index_that_is_given_up_while_it_is_built(known: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = HashEncoder.encode_documents

    def overtaken(self: HashEncoder, inputs: list[str]) -> object:
        with known.house() as house, house.database.write() as connection:
            deployments.reject(connection, 2)
        return encode(self, inputs)

    monkeypatch.setattr(HashEncoder, "encode_documents", overtaken)
    assert "index 2 was given up" in error(known, "index", "build", "--model", OTHER)


def test_indexes_are_listed_by_collection(built: CommandLine) -> None:
    built.json("collections", "create", "other")
    listed = {one["id"]: one["collection"] for one in built.json("index", "list")["indexes"]}
    assert listed == {1: "default", 2: "default", 3: "other"}
    assert [one["id"] for one in built.json("index", "list", "--collection", "other")["indexes"]] == [3]
    assert "no collection 'nope'" in error(built, "index", "list", "--collection", "nope")
    lines = built("index", "list").stdout.splitlines()
    assert lines[2].split("\t")[:7] == ["2", "default", "live", OTHER[:SHORT], "2", "2", "0"]
    assert lines[2].split("\t")[8] == "2 candidate"


def test_the_index_that_serves_is_not_retired(built: CommandLine) -> None:
    message = error(built, "index", "retire", "1", "--yes")
    assert "answers the searches of default (deployment 1); promote another deployment first" in message
    assert states(built) == {1: "serving", 2: "candidate"}


def test_a_candidates_index_is_given_up_and_dropped(built: CommandLine) -> None:
    assert built.json("index", "retire", "2") == {"retired": 2, "deployments": [2], "dropped": True}
    assert states(built) == {1: "serving", 2: "rejected"}
    assert [one["id"] for one in built.json("index", "list")["indexes"]] == [1]
    assert len(built.store.names()) == 1
    assert "no index 2" in error(built, "index", "retire", "2")


def test_retiring_what_can_be_gone_back_to_asks(built: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    built.json("deploy", "promote", "2")
    assert "say --yes" in error(built, "index", "retire", "1", code=2)
    monkeypatch.setattr(common, "is_watched", lambda: True)
    refused = built("index", "retire", "1", stdin="n\n")
    assert refused.exit_code == 1
    assert "There is no going back to deployment 1 then." in refused.stderr
    assert states(built) == {1: "previous", 2: "serving"}
    assert built("index", "retire", "1", stdin="y\n").exit_code == 0
    assert states(built) == {1: "retired", 2: "serving"}
    assert "no previous deployment" in error(built, "deploy", "rollback")
    assert len(built.store.names()) == 1


def test_an_index_that_another_process_has_open_is_left_to_it(built: CommandLine) -> None:
    with built.house() as house:
        assert house.workspace.index(2)
        result = built("index", "retire", "2", "--json")
        assert json.loads(result.stdout)["dropped"] is False
        assert "removes what is left of it" in result.stderr
        with house.database.read() as connection:
            assert [info.id for info in indexes.retired(connection)] == [2]
    assert [one["state"] for one in built.json("index", "list")["indexes"]] == ["live", "retired"]
    assert built.json("index", "retire", "2")["dropped"] is True  # once more, now that nobody has it


# deploy


def test_deployments_are_listed_with_how_they_answer(built: CommandLine) -> None:
    built.json("collections", "configure", "default", "--dense-weight", "2")
    listed = built.json("deploy", "list")
    assert listed["collection"] == "default"
    first, second, third = listed["deployments"]
    assert [one["state"] for one in (first, second, third)] == ["previous", "candidate", "serving"]
    assert [one["index"] for one in (first, second, third)] == [1, 2, 1]
    assert (second["encoder"], second["run"], second["stopped_at"]) == (OTHER, None, None)
    assert (third["mode"], third["fusion"]["dense_weight"], third["fusion"]["lexical_weight"]) == ("hybrid", 2.0, 1.0)
    assert first["stopped_at"] is not None
    lines = [line.split("\t") for line in built("deploy", "list").stdout.splitlines()]
    assert lines[0][:2] == ["deployment", "state"]
    assert lines[3][:8] == ["3", "serving", "hybrid", "rrf", "2.0", "1.0", "1", HashEncoder().fingerprint[:SHORT]]
    assert "no collection 'nope'" in error(built, "deploy", "list", "--collection", "nope")


def test_a_promotion_tells_its_steps_and_how_to_undo_it(built: CommandLine) -> None:
    result = built("deploy", "promote", "2")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "verifying the index against the documents",
        "preparing: servers load index and encoder",
        "switched",
    ]
    said = result.stdout.splitlines()
    assert said[0].startswith("Deployment 2 serves default now, after ")
    assert said[0].endswith(" s; before it, deployment 1 did.")
    assert said[1] == "To undo: nvr-rag deploy rollback --collection default"
    assert answering(built) == (2, OTHER)
    undone = built.json("deploy", "rollback", "--collection", "default")
    assert (undone["serving"], undone["previous"], undone["prepared_by"]) == (1, 2, 0)
    assert undone["undo"] == "nvr-rag deploy rollback --collection default"
    assert answering(built) == (1, HashEncoder().fingerprint)
    assert built.json("deploy", "rollback", "2")["serving"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["promote", "99"], 1, "no deployment 99; nvr-rag deploy list"),
        (["promote", "1"], 1, "deployment 1 is serving; one can promote 2 (candidate)"),
        (["promote", "2", "--collection", "other"], 1, "not one of the collection 'other'"),
        (["promote", "2", "--collection", "nope"], 1, "no collection 'nope'"),
        (["promote", "two"], 2, "valid integer"),
        (["promote"], 2, "Missing argument"),
        (["rollback"], 1, "no previous deployment to go back to"),
        (["rollback", "2"], 1, "deployment 2 is candidate; one can go back to none at the moment"),
        (["rollback", "99"], 1, "no deployment 99"),
    ],
)
def test_what_deploy_refuses(built: CommandLine, arguments: list[str], code: int, words: str) -> None:
    built.json("collections", "create", "other")
    before = built.json("deploy", "list")
    assert words in error(built, "deploy", *arguments, code=code)
    assert built.json("deploy", "list") == before


def test_a_lagging_and_a_damaged_index_are_not_promoted(built: CommandLine) -> None:
    with built.house() as house:
        house.put(document("tea", "green tea"))
        house.catch_up()
    assert "1 changes behind" in error(built, "deploy", "promote", "2")
    built.json("index", "build", "--resume", "2")
    with built.house() as house:
        points = house.workspace.index(2).points
        points.delete([next(points.scan()).id])
    assert "1 missing" in error(built, "deploy", "promote", "2")
    assert states(built) == {1: "serving", 2: "candidate"}
    built.json("verify", "--repair")
    assert built.json("deploy", "promote", "2")["serving"] == 2


# all of it


def test_a_real_model_goes_the_whole_way_and_back(run: CommandLine, tiny: Build) -> None:
    model = run.json("models", "add", str(tiny("prompts")))["model"]["fingerprint"]
    index = run.json("index", "build", "--model", model[:10])["index"]
    assert (index["encoded"], index["lag"]) == (2, 0)
    run.json("deploy", "promote", str(index["deployments"][0]["id"]))
    found = run.json("search", "blue fox", "--mode", "dense")
    assert (found["deployment"]["encoder"], len(found["hits"])) == (model, 2)
    assert -1 <= found["hits"][0]["score"] <= 1.0001
    run.json("deploy", "rollback")
    assert answering(run) == (1, HashEncoder().fingerprint)
    run.json("index", "retire", str(index["id"]), "--yes")
    run.json("models", "remove", model, "--yes")
    assert [one["fingerprint"] for one in run.json("models", "list")["models"]] == [HashEncoder().fingerprint]
    assert list((run.home / "models").iterdir()) == []
