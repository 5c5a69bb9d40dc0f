"""`nvr-rag evaluate` and `nvr-rag compare` over doubles: what is measured, what is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import text

from nvr_rag import cli
from nvr_rag.commands import common
from nvr_rag.encoders import torch as torch_encoders
from nvr_rag.errors import ConfigurationError
from nvr_rag.testing import HashEncoder
from tests.integration.command_line import CommandLine
from tests.support import document
from training import measures
from training.commands.compare import compare
from training.commands.evaluate import evaluate
from training.evaluation import Dataset, Evaluation

DOCUMENTS = {"d1": "green tea is hot", "d2": "blue whale swims", "d3": "red fox jumps", "d4": "nobody asks for this"}
QUERIES = {"q1": "green tea", "q2": "whale", "q3": "fox that jumps", "q4": "unanswerable"}
QRELS = {"q1": {"d1": 2}, "q2": {"d2": 1}, "q3": {"gone": 1}, "q4": {"d1": 0}}


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)
    app.command("compare")(compare)


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on an empty data folder, with the commands of this file."""
    line = CommandLine(bare_home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    contributed = EntryPoint("training", f"{__name__}:register", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [contributed])
    return line


@pytest.fixture
def filled(run: CommandLine) -> CommandLine:
    """The same with the documents of the folder under URIs of all kinds, and one more."""
    with run.house() as house:
        house.put(
            document("d1", DOCUMENTS["d1"]),
            document("file:///set/d2.md", DOCUMENTS["d2"] + "\n\nthe whale is blue"),
            document("file:///set/corpus.jsonl#d3", DOCUMENTS["d3"]),
            document("file:///set/other.md", "a whale of a time"),
        )
        house.catch_up()
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", DOCUMENTS)
    write(folder / "queries.jsonl", QUERIES)
    lines = [f"{query}\t{id_}\t{grade}" for query, grades in QRELS.items() for id_, grade in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder


def write(path: Path, texts: Mapping[str, str]) -> None:
    rows = [json.dumps({"_id": id_, "title": "", "text": content}) for id_, content in texts.items()]
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """What was asked of the loader of encoders, which gives a double."""
    asked: list[tuple[str, int | None]] = []

    def load(source: str, *, threads: int | None = None) -> HashEncoder:
        asked.append((source, threads))
        return HashEncoder(seed=3)

    monkeypatch.setattr(torch_encoders, "load_encoder", load)
    return asked


# evaluate, an encoder


def test_an_encoder_searches_the_corpus_of_the_folder(
    run: CommandLine, folder: Path, loaded: list[tuple[str, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVR_THREADS", "2")
    found = run.json("evaluate", str(folder))
    assert loaded == [("bundled:all-MiniLM-L6-v2", 2)]
    assert found["what"] == {"kind": "encoder", "fingerprint": HashEncoder(seed=3).fingerprint}
    # q1 and q2 share words with their documents only; what q3 needs is not there; q4 has nothing to find.
    assert {query: values["MRR@10"] for query, values in found["per_query"].items()} == {"q1": 1, "q2": 1, "q3": 0}
    assert found["means"] == pytest.approx(
        {"nDCG@10": 2 / 3, "MRR@10": 2 / 3, "R@10": 2 / 3, "R@100": 2 / 3, "Judged@10": (1 / 4 + 1 / 4 + 0) / 3}
    )
    counts = {"documents": 4, "queries": 3, "unanswerable": 1, "judgments": 4, "unknown": 1}
    assert {name: found["data"][name] for name in counts} == counts
    assert (found["data"]["name"], found["data"]["split"]) == ("animals", "test")


def test_a_model_can_be_named(
    run: CommandLine, folder: Path, loaded: list[tuple[str, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("evaluate", str(folder), "--model", "owner/name").exit_code == 0
    assert run("evaluate", str(folder), "--model", str(folder)).exit_code == 0
    monkeypatch.chdir(folder)
    (folder / "cafe").mkdir()  # might begin a fingerprint, too
    assert run("evaluate", str(folder), "--model", "cafe").exit_code == 0
    assert loaded == [("owner/name", None), (str(folder), None), ("cafe", None)]


def test_a_registered_encoder_is_named_by_the_beginning_of_its_fingerprint(
    filled: CommandLine, folder: Path, loaded: list[tuple[str, int | None]]
) -> None:
    fingerprint = filled.encoder.fingerprint
    found = filled.json("evaluate", str(folder), "--model", fingerprint[:8])
    assert (found["what"]["fingerprint"], loaded) == (fingerprint, [])
    error = filled.json("evaluate", str(folder), "--model", "0000", code=1)["error"]
    assert error["type"] == "NotFound"


def test_people_see_a_table_and_what_was_left_out(
    run: CommandLine, folder: Path, loaded: list[tuple[str, int | None]]
) -> None:
    result = run("evaluate", str(folder))
    assert result.exit_code == 0
    assert "animals test: 3 queries, 4 documents" in result.stdout
    assert "nDCG@10\t0.6667\n" in result.stdout
    assert result.stderr.splitlines() == [
        "Judged queries without any grade above 0, which are left out: 1",
        "Judged ids that are not in the corpus, and so count as never found: 1",
    ]


def test_an_evaluation_is_written_as_it_is_shown(
    run: CommandLine, folder: Path, tmp_path: Path, loaded: list[tuple[str, int | None]]
) -> None:
    shown = run.json("evaluate", str(folder), "--output", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text()) == shown
    assert Evaluation.read(tmp_path / "a.json").means["MRR@10"] == pytest.approx(2 / 3)


def test_what_is_wrong_is_told_before_any_model_is_loaded(
    run: CommandLine, folder: Path, tmp_path: Path, loaded: list[tuple[str, int | None]]
) -> None:
    assert "no split 'dev'" in run.json("evaluate", str(folder), "--split", "dev", code=2)["error"]["message"]
    nowhere = str(tmp_path / "none" / "a.json")
    assert "there is no folder" in run.json("evaluate", str(folder), "--output", nowhere, code=2)["error"]["message"]
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("{}\n")
    assert "corpus.jsonl, line 5" in run.json("evaluate", str(folder), code=2)["error"]["message"]
    assert loaded == []


def test_without_ir_measures_nothing_is_begun(
    run: CommandLine, folder: Path, loaded: list[tuple[str, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise ConfigurationError("pip install 'nvr-rag[training]'")

    monkeypatch.setattr(measures, "library", missing)
    assert "nvr-rag[training]" in run.json("evaluate", str(folder), code=1)["error"]["message"]
    assert loaded == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--collection", "default", "--model", "a/b"], "--model and --collection exclude each other"),
        (["--mode", "dense"], "--mode is about a collection"),
    ],
)
def test_options_that_do_not_go_together(run: CommandLine, folder: Path, options: list[str], told: str) -> None:
    assert told in run.json("evaluate", str(folder), *options, code=2)["error"]["message"]


# evaluate, a collection


def test_a_collection_is_asked_the_way_users_do(filled: CommandLine, folder: Path) -> None:
    found = filled.json("evaluate", str(folder), "--collection", "default", "--mode", "lexical")
    # BM25: q2's word is in both chunks of d2, and once in the longer other.md: d2 before it. d1 is the only one for q1.
    assert {query: values["MRR@10"] for query, values in found["per_query"].items()} == {"q1": 1, "q2": 1, "q3": 0}
    assert {query: values["Judged@10"] for query, values in found["per_query"].items()} == {"q1": 1, "q2": 0.5, "q3": 0}
    counts = {"documents": 4, "queries": 3, "unanswerable": 1, "judgments": 4, "unknown": 1}
    assert {name: found["data"][name] for name in counts} == counts
    what = found["what"]
    assert (what["kind"], what["collection"], what["mode"]) == ("deployment", "default", "lexical")
    assert what["fingerprint"] == filled.encoder.fingerprint


def test_documents_that_are_not_for_everybody_are_measured_too(filled: CommandLine, folder: Path) -> None:
    with filled.house() as house:
        house.put(document("d1", DOCUMENTS["d1"], acl=["user:ann"]))
        house.catch_up()
    found = filled.json("evaluate", str(folder), "--collection", "default", "--mode", "lexical")
    assert found["per_query"]["q1"]["MRR@10"] == 1


def test_the_serving_deployment_says_how_when_nobody_else_does(filled: CommandLine, folder: Path) -> None:
    assert filled.json("evaluate", str(folder), "-c", "default")["what"]["mode"] == "hybrid"


def test_an_evaluation_logs_no_query(filled: CommandLine, folder: Path) -> None:
    filled.json("evaluate", str(folder), "--collection", "default")
    with filled.house() as house, house.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM query")).scalar_one() == 0


def test_both_paths_ask_the_same_data(filled: CommandLine, folder: Path, loaded: list[tuple[str, int | None]]) -> None:
    alone, live = filled.json("evaluate", str(folder)), filled.json("evaluate", str(folder), "-c", "default")
    assert alone["data"]["sha256"] == live["data"]["sha256"]
    assert alone["per_query"].keys() == live["per_query"].keys()


def test_ids_that_no_document_fits_are_told(filled: CommandLine, folder: Path) -> None:
    with filled.house() as house:
        house.put(document("file:///set/again/d2.md", "another second"))
        house.catch_up()
    result = filled("evaluate", str(folder), "--collection", "default")
    assert result.exit_code == 0
    assert "that are no document of default, and so count as never found: 1 (gone)" in result.stderr
    assert "that fit the URIs of several documents, and so count as never found: 1 (d2)" in result.stderr
    assert filled.json("evaluate", str(folder), "--collection", "default")["data"]["unknown"] == 2


def test_a_collection_of_other_documents_is_refused(filled: CommandLine, folder: Path) -> None:
    with filled.house() as house:
        house.delete("d1", "file:///set/d2.md", "file:///set/corpus.jsonl#d3")
        house.catch_up()
    error = filled.json("evaluate", str(folder), "--collection", "default", code=2)["error"]
    assert "none of the 3 judged ids" in error["message"]
    assert "nvr-rag ingest" in error["message"]


def test_an_index_that_is_owned_elsewhere_is_told_as_such(filled: CommandLine, folder: Path) -> None:
    with filled.house() as house:
        assert house.index  # open, and so owned
        error = filled.json("evaluate", str(folder), "--collection", "default", code=1)["error"]
    assert error["type"] == "StoreBusy"
    assert "another nvr-rag command is at work" in error["message"]


def test_an_unknown_collection_is_named(filled: CommandLine, folder: Path) -> None:
    assert "no collection 'nope'" in filled("evaluate", str(folder), "--collection", "nope").stderr


# compare


def evaluation(path: Path, values: Mapping[str, float], sha256: str = "a" * 64) -> str:
    data = Dataset(
        name="animals", split="test", sha256=sha256, documents=4, queries=3, unanswerable=0, judgments=3, unknown=0
    )
    per_query = {query: {"nDCG@10": value, "R@10": 1.0} for query, value in values.items()}
    kept = Evaluation(
        what={"kind": "encoder"}, data=data, means={"nDCG@10": 0.0, "R@10": 1.0}, per_query=per_query, seconds={}
    )
    kept.write(path)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    base = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.25, "e": 0.25}
    other = {"a": 0.75, "b": 1.0, "c": 0.25, "d": 0.25, "e": 1.0}
    return [evaluation(tmp_path / "base.json", base), evaluation(tmp_path / "other.json", other)]


def test_a_comparison_has_everything(run: CommandLine, pair: list[str]) -> None:
    found = run.json("compare", *pair)
    assert (found["measure"], found["n"], found["base"], found["other"]) == ("nDCG@10", 5, 0.4, 0.65)
    assert found["difference"]["mean"] == pytest.approx(0.25)
    assert found["difference"]["low"] < 0.25 < found["difference"]["high"]
    # Sums of +-0.25 +-0.5 +-0.25 +-0.75 as far out as 1.25: 1.75 once, 1.25 twice, with either sign: 6 of 16.
    assert found["p"] == 6 / 16
    assert (found["wins"], found["losses"], found["ties"]) == (3, 1, 1)
    assert [(row["query"], row["difference"]) for row in found["winners"]] == [("e", 0.75), ("b", 0.5), ("a", 0.25)]
    assert found["losers"] == [{"query": "c", "base": 0.5, "other": 0.25, "difference": -0.25}]


def test_people_see_the_difference_and_who_moved(run: CommandLine, pair: list[str]) -> None:
    result = run("compare", *pair)
    assert result.exit_code == 0
    assert "0.4000 -> 0.6500 over 5 queries" in result.stdout
    assert "+0.2500, 95 % interval [" in result.stdout
    assert "3 better, 1 worse, 1 equal" in result.stdout
    assert "e\t0.2500\t1.0000\t0.7500\n" in result.stdout
    assert "c\t0.5000\t0.2500\t-0.2500\n" in result.stdout


def test_only_the_five_that_moved_most_are_shown(run: CommandLine, tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base.json", {f"q{i:02d}": 0.5 for i in range(20)})
    other = evaluation(tmp_path / "other.json", {f"q{i:02d}": i / 20 for i in range(20)})
    found = run.json("compare", base, other)
    assert [row["query"] for row in found["winners"]] == ["q19", "q18", "q17", "q16", "q15"]
    assert [row["query"] for row in found["losers"]] == ["q00", "q01", "q02", "q03", "q04"]
    assert run.json("compare", base, other, "--seed", "1")["difference"]["low"] != found["difference"]["low"]


def test_another_measure(run: CommandLine, tmp_path: Path, pair: list[str]) -> None:
    found = run.json("compare", *pair, "--measure", "R@10")
    assert (found["difference"]["mean"], found["p"], found["ties"]) == (0, 1, 5)
    assert (found["winners"], found["losers"]) == ([], [])
    error = run.json("compare", *pair, "--measure", "MAP", code=2)["error"]
    assert error["message"] == "no measure 'MAP'; there are: nDCG@10, R@10"


def test_evaluations_of_different_data_are_not_compared(run: CommandLine, tmp_path: Path, pair: list[str]) -> None:
    foreign = evaluation(tmp_path / "foreign.json", {"a": 1.0}, sha256="b" * 64)
    error = run.json("compare", pair[0], foreign, code=2)["error"]
    assert "different data: animals test (aaaaaaaaaaaa) and animals test (bbbbbbbbbbbb)" in error["message"]


def test_queries_of_one_side_only_are_counted(run: CommandLine, tmp_path: Path, pair: list[str]) -> None:
    less = evaluation(tmp_path / "less.json", {"a": 0.5, "z": 1.0})
    result = run("compare", pair[0], less)
    assert "Left out: 4 queries only in the first, 1 only in the second" in result.stderr


def test_a_file_that_is_not_there_is_wrong_usage(run: CommandLine, pair: list[str]) -> None:
    assert "none.json cannot be read" in run.json("compare", pair[0], "none.json", code=2)["error"]["message"]
