"""The commands of nvr-rag over doubles for store and encoder: what they do, what they say, and how they end."""

from __future__ import annotations

import json
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from sqlalchemy import text

from nvr_rag import chunkings, cli, jobs
from nvr_rag.api.search_schemas import SearchAnswer
from nvr_rag.commands import common
from nvr_rag.disk import allocated
from nvr_rag.running import processes
from tests.integration.command_line import CommandLine
from tests.support import document, paragraphs


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on an empty data folder."""
    line = CommandLine(bare_home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    return line


@pytest.fixture
def filled(run: CommandLine) -> CommandLine:
    """The same with two documents: tea and whales."""
    with run.house() as house:
        house.put(
            document("file:///tea", "green tea is hot", title="Tea", metadata={"year": 2020, "kind": "drink"}),
            document("file:///sea", "blue whale swims\n\nred fox jumps", title="Sea", metadata={"year": "2020"}),
        )
        house.catch_up()
    return run


# search


def test_search_shows_rank_title_uri_and_text(filled: CommandLine) -> None:
    result = filled("search", "whale that swims")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["1.", "Sea"]
    assert lines[1].strip() == "file:///sea"
    assert lines[2].strip() == "blue whale swims"
    assert result.stdout.count("file:///sea") == 2  # both of its chunks


def test_search_names_a_query_that_is_in_the_log(filled: CommandLine) -> None:
    answer = filled.json("search", "green tea", "-k", "1")
    with filled.house() as house, house.database.read() as connection:
        logged = connection.execute(text("SELECT id, text, k FROM query")).all()
    assert [tuple(row) for row in logged] == [(answer["query_id"], "green tea", 1)]
    assert " query " in filled("search", "green tea").stdout.splitlines()[-1]


def test_search_as_json_is_what_the_api_answers(filled: CommandLine) -> None:
    result = filled("search", "green tea", "--json")
    answer = SearchAnswer.model_validate_json(result.stdout)
    assert answer.hits[0].text == "green tea is hot"
    assert answer.hits[0].document.metadata == {"year": 2020, "kind": "drink"}
    assert answer.hits[0].lexical is not None
    assert answer.hits[0].lexical.rank == 1


def test_a_query_can_come_from_stdin(filled: CommandLine) -> None:
    answer = json.loads(filled("search", "-", "-k", "1", "--json", stdin="blue whale\n").stdout)
    assert answer["hits"][0]["text"] == "blue whale swims"


def test_bytes_on_stdin_that_are_no_text_are_no_disaster(filled: CommandLine) -> None:
    assert filled("search", "-", stdin=b"\xff\xfe whale").exit_code == 0


@pytest.mark.parametrize("query", ["", "   ", "x" * 100_000])
def test_a_query_outside_the_limits_is_wrong_usage(filled: CommandLine, query: str) -> None:
    error = filled.json("search", query, code=2)["error"]
    assert (error["type"], error["field"]) == ("InvalidInput", "query")


@pytest.mark.parametrize("k", ["0", "-3", "10000000"])
def test_k_outside_its_range_is_wrong_usage(filled: CommandLine, k: str) -> None:
    result = filled("search", "tea", "-k", k)
    assert result.exit_code == 2
    assert result.stderr == f"Error: k is a whole number from 1 to 1000, not {k}\n"


def test_an_unknown_collection_is_named_with_those_there_are(filled: CommandLine) -> None:
    result = filled("search", "tea", "--collection", "nope")
    assert result.exit_code == 1
    assert result.stderr == "Error: no collection 'nope'; there are: default\n"


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (["title=Tea"], {"file:///tea"}),
        (["metadata.kind=drink"], {"file:///tea"}),
        (["metadata.year=2020"], {"file:///tea", "file:///sea"}),  # a number in one, a string in the other
        (["metadata.year=2020", "title=Sea"], {"file:///sea"}),
        (['{"metadata.year": {"gte": 2000}}'], {"file:///tea"}),
        (['{"title": "Tea"}', "title=Sea"], set()),
        (["title=Tea=hot"], set()),
    ],
)
def test_filters(filled: CommandLine, entries: list[str], found: set[str]) -> None:
    options = [part for entry in entries for part in ("--filter", entry)]
    answer = filled.json("search", "tea whale fox", *options)
    assert {hit["document"]["uri"] for hit in answer["hits"]} == found


@pytest.mark.parametrize("entry", ["title", "=x", "{title: Tea}", '{"nope": 1}', "nope=1", "[1]", '{"title": NaN}'])
def test_a_bad_filter_is_wrong_usage(filled: CommandLine, entry: str) -> None:
    error = filled.json("search", "tea", "--filter", entry, code=2)["error"]
    assert (error["type"], error["field"]) == ("InvalidFilter", "filter")


def test_a_busy_index_without_a_server_says_what_to_do(filled: CommandLine) -> None:
    with filled.house() as house:
        assert house.index
        result = filled("search", "tea")
    assert result.exit_code == 1
    assert "another nvr-rag command is at work; try again when it has finished" in result.stderr


def test_a_busy_index_names_the_server_that_owns_it(filled: CommandLine) -> None:
    with filled.house() as house:
        assert house.index
        processes.announce(house.database, "serve", None)  # it has not said where it listens yet
        pid = processes.alive(house.database, "serve")[0].pid
        result = filled("search", "tea")
    assert result.exit_code == 1
    assert f"process id {pid}" in result.stderr


# what reaches a terminal


def test_no_control_character_of_a_document_reaches_the_terminal(run: CommandLine) -> None:
    with run.house() as house:
        house.put(
            document(
                "file:///\x1b[2Jevil\x9b31m",
                "whale \x1b]0;owned\x07 [red]text[/red] \x1b[31mred \x7f\u202egnp",
                title="\x1b[31mTi[bold]tle\x08",
            )
        )
        house.catch_up()
    shown = [
        run(*arguments).output
        for arguments in (
            ["search", "whale"],
            ["search", "whale", "--json"],
            ["documents", "list"],
            ["documents", "list", "--json"],
            ["documents", "show", "file:///\x1b[2Jevil\x9b31m", "--text"],
            ["documents", "show", "\x1b[31mnone"],
        )
    ]
    for answer in shown:
        assert not {character for character in answer if ord(character) < 32 and character not in "\n\t"}
        assert not set(answer) & {"\x7f", "\x9b", "\u202e"}
    assert "[red]text[/red]" in shown[0]  # markup is text
    assert "Ti[bold]tle" in shown[0]
    assert json.loads(shown[1])["hits"][0]["text"].startswith("whale \x1b]0;owned\x07")  # nothing is lost in JSON


# collections


def test_a_collection_is_created_listed_and_configured(run: CommandLine) -> None:
    assert run("collections", "create", "news", "--language", "german", "--mode", "lexical").exit_code == 0
    configured = run.json("collections", "configure", "news", "--mode", "hybrid", "--dense-weight", "2.5")
    assert configured["collection"]["mode"] == "hybrid"
    [listed] = run.json("collections", "list")["collections"]
    assert (listed["name"], listed["language"], listed["mode"]) == ("news", "german", "hybrid")
    assert (listed["fusion"]["dense_weight"], listed["fusion"]["lexical_weight"]) == (2.5, 1.0)
    assert listed["documents"] == {"ready": 0, "failed": 0, "deleted": 0}


def test_configuring_what_is_so_already_makes_no_new_deployment(filled: CommandLine) -> None:
    before = filled.json("status")["collections"][0]["deployment"]["id"]
    filled.json("collections", "configure", "default", "--mode", "hybrid", "--method", "rrf")
    assert filled.json("status")["collections"][0]["deployment"]["id"] == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create", "default"], 1),
        (["create", "../x"], 2),
        (["create", "x", "--language", "klingon"], 2),
        (["create", "x", "--mode", "telepathic"], 2),
        (["configure", "default"], 2),
        (["configure", "default", "--dense-weight", "-1"], 2),
        (["configure", "default", "--dense-weight", "nan"], 2),
        (["configure", "default", "--dense-weight", "0", "--lexical-weight", "0"], 2),
        (["configure", "nope", "--mode", "dense"], 1),
        (["delete", "nope", "--yes"], 1),
        (["delete", "default"], 2),  # nobody there to ask
    ],
)
def test_what_collections_refuses(filled: CommandLine, arguments: list[str], code: int) -> None:
    before = filled.json("collections", "list")
    assert filled.json("collections", *arguments, code=code)["error"]["message"]
    assert filled.json("collections", "list") == before


def test_deleting_a_collection_drops_its_index(filled: CommandLine) -> None:
    assert len(filled.store.names()) == 1
    assert filled.json("collections", "delete", "default", "--yes")["indexes_left"] == []
    assert filled.store.names() == []
    assert filled.json("status")["collections"] == []


def test_deleting_a_collection_leaves_an_index_that_is_in_use_to_its_owner(filled: CommandLine) -> None:
    with filled.house() as house:
        assert house.index
        assert filled.json("collections", "delete", "default", "--yes")["indexes_left"] == filled.store.names()
    assert filled.json("collections", "list")["collections"] == []


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_deleting_a_collection_asks_at_a_terminal(
    filled: CommandLine, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    monkeypatch.setattr(common, "is_watched", lambda: True)
    assert filled("collections", "delete", "default", stdin=answer).exit_code == left
    assert len(filled.json("collections", "list")["collections"]) == left


# documents


def test_documents_are_listed_by_uri_up_to_the_limit(filled: CommandLine) -> None:
    listed = filled.json("documents", "list", "--limit", "1")
    assert [one["uri"] for one in listed["documents"]] == ["file:///sea"]
    assert listed["more"] is True
    assert [one["uri"] for one in filled.json("documents", "list")["documents"]] == ["file:///sea", "file:///tea"]


def test_failed_documents_are_listed_with_the_reason(filled: CommandLine) -> None:
    with filled.house() as house:
        house.fail("file:///broken.pdf", "it is encrypted")
    [failed] = filled.json("documents", "list", "--state", "failed")["documents"]
    assert (failed["uri"], failed["error"]) == ("file:///broken.pdf", "it is encrypted")
    assert "it is encrypted" in filled("documents", "list", "--state", "failed").stdout


def test_a_document_is_shown_by_uri_and_by_id(filled: CommandLine) -> None:
    by_uri = filled.json("documents", "show", "file:///tea")["document"]
    assert by_uri["title"] == "Tea"
    assert "text" not in by_uri
    assert filled.json("documents", "show", by_uri["id"])["document"] == by_uri
    assert filled.json("documents", "show", by_uri["id"], "--text")["document"]["text"] == "green tea is hot"
    assert filled("documents", "show", "file:///sea", "--text").stdout == "blue whale swims\n\nred fox jumps\n"


def test_deleting_documents_goes_on_after_an_unknown_one_and_says_so(filled: CommandLine) -> None:
    result = filled("documents", "delete", "file:///nope", "file:///tea", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (len(answer["deleted"]), answer["unknown"]) == (1, ["file:///nope"])
    assert [hit["document"]["uri"] for hit in filled.json("search", "green tea")["hits"]] == ["file:///sea"] * 2
    assert filled("documents", "delete", "file:///tea").exit_code == 1  # it is gone already


# status


def test_status_counts_documents_lag_servers_and_jobs(filled: CommandLine) -> None:
    with filled.house() as house:
        house.delete("file:///tea")
        house.fail("file:///x")
        jobs.enqueue(house.database, "verify", {"index_id": 1})
        processes.announce(house.database, "serve", "http://127.0.0.1:9")
    found = filled.json("status")
    assert found["home"] == str(filled.home)
    [collection] = found["collections"]
    assert collection["documents"] == {"ready": 1, "failed": 1, "deleted": 1}
    [index] = collection["indexes"]
    assert (index["applied_seq"], index["head_seq"], index["lag"]) == (2, 3, 1)
    assert collection["deployment"]["index"] == index["name"]
    assert [server["url"] for server in found["servers"]] == ["http://127.0.0.1:9"]
    assert [(job["kind"], job["state"]) for job in found["jobs"]] == [("verify", "queued")]
    assert filled("status").exit_code == 0


def test_sizes_on_disk_are_of_what_is_allocated(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "full").write_bytes(b"x" * 1_000_000)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(50_000_000)
    assert 1_000_000 <= allocated(tmp_path) < 2_000_000
    assert allocated(tmp_path / "nothing") == 0


# verify


def test_verify_finds_and_repairs(filled: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled.json("verify")["clean"] is True
    with filled.house() as house:
        house.index.points.delete([sorted(house.points())[0]])
    [found] = filled.json("verify", code=1)["indexes"]
    assert (found["missing"], found["clean"], found["collection"]) == (1, False, "default")
    [repaired] = filled.json("verify", "--repair")["indexes"]
    assert (repaired["missing"], repaired["repaired"]) == (1, True)
    assert filled("verify").exit_code == 0


def test_verify_rebuilds_a_lost_index(filled: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkings, "installed_chunker", lambda: paragraphs)
    filled.store.drop(filled.store.names()[0])
    result = filled("verify")
    assert result.exit_code == 1
    assert "there is no index" in result.stderr
    [found] = filled.json("verify", "--repair")["indexes"]
    assert (found["rebuilt"], found["checked"], found["clean"]) == (True, 3, True)
    assert filled.json("search", "blue whale")["hits"][0]["text"] == "blue whale swims"


def test_one_index_that_cannot_be_verified_does_not_stop_the_others(filled: CommandLine) -> None:
    assert filled("collections", "create", "other").exit_code == 0
    filled.store.drop(filled.store.names()[0])
    found = filled.json("verify", code=1)["indexes"]
    assert [one["collection"] for one in found] == ["default", "other"]
    assert [one["clean"] for one in found] == [False, True]
    assert [one["collection"] for one in filled.json("verify", "-c", "other")["indexes"]] == ["other"]


def test_the_installed_chunker_is_found() -> None:
    assert callable(chunkings.installed_chunker())


def test_verify_leaves_the_index_of_a_server_to_the_server(filled: CommandLine) -> None:
    def serve() -> None:
        while (job := jobs.claim(house.database, "server", ["verify"])) is None:
            time.sleep(0.01)
        payloads.append(dict(job.payload))
        jobs.heartbeat(house.database, job.id, "server", {"checked": 1000})
        jobs.finish(house.database, job.id, "server", result=result, error=None)

    payloads: list[dict[str, object]] = []
    result = {"missing": 7, "stale": 0, "foreign": 0, "checked": 2000, "repaired": True, "clean": True}
    with filled.house() as house:
        index_id = house.index.info.id
        processes.announce(house.database, "serve", None)
        server = threading.Thread(target=serve)
        server.start()
        [found] = filled.json("verify", "--repair")["indexes"]
        server.join()
    assert payloads == [{"index_id": index_id, "repair": True}]
    assert (found["missing"], found["checked"], found["clean"]) == (7, 2000, True)


def test_verify_of_a_busy_index_without_a_server_asks_nobody(filled: CommandLine) -> None:
    with filled.house() as house:
        assert house.index
        [found] = filled.json("verify", code=1)["indexes"]
        assert "try again when it has finished" in found["error"]
        assert jobs.unfinished(house.database) == []


def test_verify_stops_waiting_for_a_server_that_stops(filled: CommandLine) -> None:
    with filled.house() as house:
        assert house.index
        server = processes.announce(house.database, "serve", None)
        threading.Timer(0.5, processes.withdraw, (house.database, server)).start()
        [found] = filled.json("verify", code=1)["indexes"]
    assert "stopped before it had finished" in found["error"]


# how commands end


def test_without_arguments_the_help_is_shown(run: CommandLine) -> None:
    result = run()
    assert result.exit_code == 0
    assert {"search", "serve", "status", "collections", "documents", "verify"} <= set(result.stdout.split())


def test_version(run: CommandLine) -> None:
    assert run("--version").stdout == "nvr-rag 0.1.0\n"


def test_home_goes_before_the_environment(run: CommandLine, tmp_path: Path) -> None:
    assert run.json("--home", str(tmp_path / "elsewhere"), "status")["home"] == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("arguments", [["nope"], ["search"], ["search", "x", "-k", "many"], ["documents", "nope"]])
def test_wrong_usage_is_code_2_and_json_when_wanted(run: CommandLine, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    error = json.loads(run(*arguments, "--json").stdout)["error"]
    assert error["type"] == "UsageError"
    assert error["message"] in result.stderr


def test_settings_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, run: CommandLine) -> None:
    monkeypatch.setenv("NVR_API__PORT", "many")
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: settings from the environment cannot be used: NVR_API__PORT")


def test_a_data_folder_of_a_newer_release(filled: CommandLine) -> None:
    with filled.house() as house, house.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE schema_info SET oldest = '9998'"))
    assert filled.json("status", code=1)["error"]["type"] == "NewerDataFolder"


def test_a_data_folder_that_cannot_be_made(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = run("--home", str(tmp_path / "file" / "home"), "status")
    assert result.exit_code == 1
    assert "set NVR_HOME to a folder you can write to" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "open_workspace", interrupted)
    assert run("status").exit_code == 130
    assert run.json("status", code=130)["error"]["type"] == "Interrupted"


def test_what_nobody_has_foreseen(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(common, "open_workspace", broken)
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: unexpected RuntimeError: the disk is on fire; run it again with NVR_DEBUG=1"
    )
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("NVR_DEBUG", "1")
    assert "Traceback" in run("status").stderr


def test_a_broken_package_takes_no_other_command_away(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "nvr_rag.nowhere:register", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [broken])
    assert run("status").stderr == ""  # it was not needed
    result = run("--help")
    assert result.exit_code == 0
    assert "search" in result.stdout
    assert result.stderr.startswith("Warning: the commands of 'broken' cannot be loaded")
    assert result.stderr.count("\n") == 1


def test_commands_of_other_packages_are_mounted_but_replace_none(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    contributed = EntryPoint("extra", "tests.integration.command_line:register", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [contributed])
    assert run("extra").stdout == "extra\n"
    assert run.json("status")["collections"] == []
