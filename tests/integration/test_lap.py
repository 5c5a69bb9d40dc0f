"""A lap of the feedback loop with a real model: what it makes, what it decides, and what it reads."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from nvr_rag import deployments, promotion, registry
from nvr_rag.collections import head_seq
from nvr_rag.db import tables as t
from nvr_rag.encoders.torch import load_encoder
from nvr_rag.fusion import FusionSettings
from nvr_rag.types import Mode, Query
from nvr_rag.upkeep.verification import verify
from tests.integration.lap_support import (
    DEV,
    DOCUMENTS,
    HOLDOUT,
    STEPS,
    TRAIN,
    Finished,
    Laboratory,
    Question,
    in_process,
    lab,
    small_laps,
    undisturbed,
)
from training import judging, judgments, page, preparation
from training.runs import RunFolder
from training.splits import Split

__all__ = ["lab", "small_laps", "undisturbed"]

LATENCY = judging._latency  # laps here have another one

pytestmark = pytest.mark.usefixtures("small_laps")


def reasons(report: Mapping[str, Any]) -> dict[str, str]:
    """What the gate found, by rule."""
    return {one["rule"]: one["text"] for one in report["decision"]["findings"]}


def only_reason(report: Mapping[str, Any]) -> str:
    [finding] = report["decision"]["findings"]
    return str(finding["text"])


def copied(laboratory: Laboratory, tmp_path: Path) -> Laboratory:
    return laboratory.copy(tmp_path / "copy")


# a whole lap


def test_a_lap_that_learns_ends_with_another_deployment_that_serves(undisturbed: Finished) -> None:
    report = undisturbed.report
    assert (report["outcome"], report["promoted"], report["error"]) == ("accept", True, None)
    assert undisturbed.lab.states() == {1: "previous", 2: "serving"}
    assert [step["name"] for step in report["steps"]] == list(STEPS)
    assert all(step["seconds"] > 0 for step in report["steps"])
    assert report["data"]["splits"] == {"train": TRAIN, "dev": DEV, "holdout": HOLDOUT}
    origins = report["data"]["judgments"]
    assert origins["training"]["origins"]["train"] == {"feedback": {"queries": TRAIN, "judgments": TRAIN}}
    assert origins["holdout"]["origins"]["holdout"] == {"feedback": {"queries": HOLDOUT, "judgments": HOLDOUT}}
    assert (report["mining"]["pairs"], report["mining"]["emitted"]) == (TRAIN, {"judged": 0, "mined": 2 * TRAIN})
    steps = 4 * math.ceil(TRAIN / 16)  # of the recipe: 4 epochs in batches of 16
    assert (report["training"]["examples"], report["training"]["steps"]) == (TRAIN, steps)
    assert [step for step, _ in report["training"]["curve"]] == list(range(1, steps + 1))
    assert report["training"]["curve"][-1][1] < 0.5 < report["training"]["curve"][0][1]


def test_the_figures_are_those_of_the_encoders_and_the_questions(undisturbed: Finished) -> None:
    """Dense figures from the vectors alone; of one answer a question, at rank r, nDCG@10 is 1 / log2(1 + r)."""
    lab, report = undisturbed.lab, undisturbed.report
    held_out = lab.of(Split.HOLDOUT)
    taught = {question.uri for question in lab.of(Split.TRAIN)}
    groups = {
        "all": held_out,
        "fresh": [question for question in held_out if question.uri not in taught],
        "trained": [question for question in held_out if question.uri in taught],
    }
    assert all(groups.values())
    for side, fingerprint in (("base", report["training"]["base"]), ("candidate", report["training"]["encoder"])):
        values = dense_values(lab, lab.home / "models" / fingerprint, held_out)
        for name, questions in groups.items():
            [figures] = [one for one in report["figures"] if (one["path"], one["group"]) == ("dense", name)]
            assert figures["queries"] == len(questions)
            expected = sum(values[question.text] for question in questions) / len(questions)
            assert figures[side]["nDCG@10"] == pytest.approx(expected, abs=1e-6)
    comparison = report["decision"]["comparisons"]["all"]
    assert comparison["base"] < 0.3 < 0.9 < comparison["other"]
    assert sum(report["changes"]["differences"]) / HOLDOUT == pytest.approx(comparison["difference"]["mean"])


def dense_values(lab: Laboratory, model: Path, questions: list[Question]) -> dict[str, float]:
    encoder = load_encoder(str(model), threads=1)
    with lab.open() as workspace, workspace.database.read() as connection:
        texts = dict(connection.execute(select(t.Chunk.id, t.Chunk.text)).all())
    ids = sorted(texts)
    scores = (
        encoder.encode_queries([one.text for one in questions])
        @ encoder.encode_documents([texts[key] for key in ids]).T
    )
    values = {}
    for question, row in zip(questions, scores, strict=True):
        right = ids.index(lab.chunks[question.uri])
        rank = 1 + sum((-score, at) < (-row[right], right) for at, score in enumerate(row))
        values[question.text] = 1 / math.log2(1 + rank) if rank <= 10 else 0.0
    return values


def test_the_new_encoder_is_registered_with_what_it_was_made_of(undisturbed: Finished) -> None:
    lab, report = undisturbed.lab, undisturbed.report
    with lab.open() as workspace, workspace.database.read() as connection:
        made = registry.get(connection, report["training"]["encoder"])
        measured = registry.measured(connection, made.fingerprint)
    assert made.fingerprint != made.parent == report["training"]["base"] == report["training"]["teacher"]
    assert made.training is not None
    assert (made.training["run"], made.training["collection"]) == ("lap", "default")
    assert made.training["recipe"] == report["training"]["recipe"]
    assert made.training["hashes"] == {"judgments": report["data"]["hashes"]["judgments"]}
    assert load_encoder(str(lab.home / made.source)).fingerprint == made.fingerprint
    [one] = measured
    assert (one.deployment_id, one.data["queries"], one.data["run"]) == (2, HOLDOUT, "lap")
    assert one.measures["nDCG@10"] == report["decision"]["comparisons"]["all"]["other"]


def test_the_new_index_is_whole_and_the_choice_is_what_answers(undisturbed: Finished) -> None:
    lab, report = undisturbed.lab, undisturbed.report
    with lab.open() as workspace:
        with workspace.database.read() as connection:
            deployment = deployments.serving(connection, "default")
            head = head_seq(connection, deployment.collection_id)
        assert deployment.run == "lap"
        index = workspace.index(deployment.index_id)
        found = verify(workspace.database, index)
        assert (found.clean, found.checked, found.applied_seq) == (True, DOCUMENTS, head)
        assert index.info.encoder == report["training"]["encoder"]
        answer = workspace.retriever.search(Query(text=lab.questions[0].text, k=1))
    assert (answer.hits[0].uri, answer.deployment.id) == (lab.questions[0].uri, 2)
    # Lexical search finds one word, in wrong documents: mixed in, it can only do harm.
    assert (deployment.mode, report["choice"]["mode"], report["choice"]["queries"]) == (Mode.DENSE, "dense", DEV)
    values = {way["mode"]: way["value"] for way in reversed(report["choice"]["tried"])}
    assert values["dense"] > 0.9 > values["lexical"]


def test_a_page_and_a_file_for_programs_tell_of_the_lap(undisturbed: Finished) -> None:
    lab, report = undisturbed.lab, undisturbed.report
    assert lab.report() == report
    shown = (lab.folder().path / "report.html").read_text()
    assert page.PROMOTED in shown
    assert all(reason in shown for reason in ("nDCG@10", "sha256 of judgments", "Mining of hard negatives"))
    assert "nvr-rag deploy rollback --collection default" in shown


def test_what_is_not_needed_any_more_takes_no_room(undisturbed: Finished) -> None:
    kept = {"config.json", "mined.jsonl", "mining.json", "steps", "owner.lock", "report.html", "report.json"}
    assert {path.name for path in undisturbed.lab.folder().path.iterdir()} == kept


def test_what_a_lap_promotes_can_be_undone(undisturbed: Finished, tmp_path: Path) -> None:
    lab = copied(undisturbed.lab, tmp_path)
    [step] = undisturbed.report["next_steps"]
    assert step["command"] == "nvr-rag deploy rollback --collection default"
    with lab.open() as workspace:
        promotion.roll_back(workspace, collection="default")
    assert lab.states() == {1: "serving", 2: "previous"}


def test_progress_names_every_step_and_counts_up_to_its_total(lab: Laboratory) -> None:
    told = []
    lab.say()
    lab.lap(tell=told.append, dry_run=True)
    assert list(dict.fromkeys((one.step, one.number, one.steps) for one in told)) == [
        ("collect", 1, 8),
        ("mine", 2, 8),
    ]
    counted = [(one.done, one.total) for one in told if one.step == "mine" and one.total is not None]
    assert counted[-1] == (TRAIN, TRAIN)
    json.dumps([one.as_json() for one in told])


def test_latency_is_the_median_of_answers_asked_in_turn(small_laps: pytest.MonkeyPatch) -> None:
    class Asked:
        def search(self, text: str, deployment_id: int, k: int) -> None:
            order.append((text, deployment_id))
            clock[0] += takes[deployment_id].pop(0) / 1000

    order: list[tuple[str, int]] = []
    clock, takes = [0.0], {1: [10.0, 90.0, 20.0], 2: [40.0, 50.0, 70.0]}
    sides: Any = [SimpleNamespace(id=1), SimpleNamespace(id=2)]
    small_laps.setattr(judging.time, "perf_counter", lambda: clock[0])
    found = LATENCY(Asked(), *sides, ["a", "b", "c"])  # type: ignore[arg-type]
    assert found == {"base_ms": pytest.approx(20.0), "candidate_ms": pytest.approx(50.0)}
    assert order == [(text, side) for text in "abc" for side in (1, 2)]


# what follows from the decision


def test_without_being_asked_a_lap_promotes_nothing_and_says_how(undisturbed: Finished, tmp_path: Path) -> None:
    lab = copied(undisturbed.before["conclude"], tmp_path)
    report = lab.lap()
    assert (report["outcome"], report["promoted"]) == ("accept", False)
    [step] = report["next_steps"]
    assert step["command"] == "nvr-rag deploy promote 2 --collection default"
    assert lab.states() == {1: "serving", 2: "candidate"}
    assert page.HEADLINES["accept"] in (lab.folder().path / "report.html").read_text()
    with lab.open() as workspace:
        assert promotion.promote(workspace, 2, collection="default").serving == 2


@pytest.mark.parametrize("step", ["judge", "conclude"])
def test_documents_that_come_in_meanwhile_are_no_reason_against_a_candidate(
    undisturbed: Finished, tmp_path: Path, step: str
) -> None:
    lab = copied(undisturbed.before[step], tmp_path)
    lab.put({"doc:new": "zab zob"})  # the index that serves has it
    assert lab.lap(promote=True)["promoted"] is True
    with lab.open() as workspace:
        found = verify(workspace.database, workspace.index(2))
    assert (found.clean, found.checked) == (True, DOCUMENTS + 1)


def test_a_candidate_is_not_promoted_over_what_it_was_not_compared_with(undisturbed: Finished, tmp_path: Path) -> None:
    lab = copied(undisturbed.before["conclude"], tmp_path)
    with lab.open() as workspace, workspace.database.write() as connection:
        deployments.serve(connection, 1, 1, Mode.LEXICAL, FusionSettings())
    assert lab.lap(promote=True)["promoted"] is False
    assert lab.states() == {1: "previous", 2: "candidate", 3: "serving"}


def test_a_lap_does_not_promote_again_what_somebody_has_taken_back(undisturbed: Finished, tmp_path: Path) -> None:
    """It died after the switch, before that was noted."""
    lab = copied(undisturbed.before["conclude"], tmp_path)
    with lab.open() as workspace:
        promotion.promote(workspace, 2, collection="default")
        promotion.roll_back(workspace, collection="default")
    assert lab.lap(promote=True)["promoted"] is False
    assert lab.states() == {1: "serving", 2: "previous"}


def test_a_rejected_candidate_that_somebody_has_promoted_goes_on_serving(undisturbed: Finished, tmp_path: Path) -> None:
    lab = copied(undisturbed.before["conclude"], tmp_path)
    judged = lab.result("judge")
    judged["decision"]["outcome"] = "reject"
    lab.folder().finish("judge", judged)
    with lab.open() as workspace:
        promotion.promote(workspace, 2, collection="default")
        assert workspace.index(2)
        lab.lap(inside=workspace, promote=True)
        assert workspace.has_open(2)
    assert lab.states() == {1: "previous", 2: "serving"}
    assert len(lab.store.names()) == 2


# the holdout


def test_only_the_gate_reads_what_is_held_out(lab: Laboratory, small_laps: pytest.MonkeyPatch) -> None:
    class Forbidden(Exception):
        pass

    def forbidden(*_: Any) -> None:
        raise Forbidden

    lab.say()
    for module in (judgments, judging):
        small_laps.setattr(module, "holdout_queries", forbidden)
    with pytest.raises(Forbidden):
        lab.lap(promote=True)
    assert lab.finished() == list(STEPS[: STEPS.index("judge")])
    assert not files_with(lab.folder(), [question.text for question in lab.of(Split.HOLDOUT)])
    assert lab.states() == {1: "serving", 2: "candidate"}


def test_no_file_of_a_lap_holds_what_is_held_out(undisturbed: Finished) -> None:
    lab = undisturbed.before["conclude"]
    for ended in (lab, undisturbed.lab):
        assert not files_with(ended.folder(), [question.text for question in lab.of(Split.HOLDOUT)])
    for split, names in ((Split.TRAIN, {"queries.jsonl", "examples.jsonl"}), (Split.DEV, {"dev.jsonl"})):
        assert files_with(lab.folder(), [question.text for question in lab.of(split)]) == names
        assert not files_with(undisturbed.lab.folder(), [question.text for question in lab.of(split)])


def files_with(folder: RunFolder, texts: list[str]) -> set[str]:
    """Names of the files that hold one of the texts."""
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {path.name for path in files if any(text.encode() in path.read_bytes() for text in texts)}


# feedback that teaches nothing


def test_feedback_at_random_is_rejected_and_leaves_no_trace_in_the_answers(lab: Laboratory) -> None:
    def ranking() -> list[str]:
        with lab.open() as workspace:
            return [hit.chunk_id for hit in workspace.retriever.search(Query(text=lab.questions[0].text)).hits]

    before, chance = ranking(), random.Random(5)
    lab.say(lambda _question: f"doc:{chance.randrange(DOCUMENTS):02}")
    report = lab.lap(promote=True)
    assert (report["outcome"], report["promoted"], report["next_steps"]) == ("reject", False, [])
    assert reasons(report)["gain"].startswith(f"no reliable gain: nDCG@10 on {HOLDOUT} holdout queries ")
    assert lab.states() == {1: "serving", 2: "rejected"}
    [served, given_up] = lab.indexes()
    assert (served.state, given_up.state) == ("live", "retired")
    assert lab.store.names() == [served.name]
    assert ranking() == before
    (lab.folder().path / "steps" / "conclude.json").unlink()  # it died before that was noted
    assert lab.lap(promote=True)["outcome"] == "reject"
    assert lab.states() == {1: "serving", 2: "rejected"}
    again = lab.lap("again", promote=True)  # nobody has said anything since
    assert (again["outcome"], again["training"]["encoder"]) == ("reject", report["training"]["encoder"])
    assert lab.states() == {1: "serving", 2: "rejected", 3: "rejected"}
    assert lab.store.names() == [served.name]


def test_an_encoder_that_serves_already_is_no_candidate(lab: Laboratory, small_laps: pytest.MonkeyPatch) -> None:
    def learns_nothing(step: str, folder: RunFolder, **options: Any) -> dict[str, Any]:
        if step == "mine":
            return in_process(step, folder, **options)
        config = folder.config()
        assert config is not None
        shutil.copytree(config.base_source, folder.model)
        numbers = {"examples": 1, "steps": 1, "training_seconds": 1.0, "peak_memory_bytes": 1, "curve": []}
        return {"encoder": config.base, "device": "cpu", "precision": "float32", **numbers}

    lab.say()
    small_laps.setattr(preparation, "run_child", learns_nothing)
    report = lab.lap(promote=True)
    assert report["outcome"] == "reject"
    assert "there are no new judgments since it was made" in only_reason(report)
    assert lab.states() == {1: "serving"}
    assert not lab.folder().model.exists()
    assert not lab.folder().corpus.exists()
